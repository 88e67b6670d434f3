"""Covariance patterns: correlations of coefficients that follow from a few parameters.

The rows of a Cholesky factor are built from sines and cosines of angles, one per parameter: a
parameter is the sine of its angle, moved to the range in which the correlation matrix is positive
definite. So rows are smooth across the ends of that range, where the matrix is singular, and theta
holds angles. The unconstrained coordinate of a parameter is the inverse hyperbolic tangent of the
sine. Priors are densities of the parameters themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Blocks, Indices, log_cosh

Array = NDArray[np.float64]

LARGEST_Z = 300.0
"""Coordinates beyond this are as good as infinite; squares of their cosines must not overflow."""

COMPLEX_STEP = 1e-40
"""Step of derivatives along the imaginary axis, which have no cancellation."""


@dataclass(frozen=True)
class Pattern(ABC):
    """A pattern of the correlations of k coefficients, with one variance or one for each.

    Attributes
    ----------
    n_coefs : int
        Number of coefficients k, in their order.
    homogeneous : bool
        Whether they have one standard deviation.

    References
    ----------
    Squire, Trapp (1998), doi:10.1137/S003614459631241X: derivatives by a complex step.
    """

    n_coefs: int
    homogeneous: bool = False

    mixes: ClassVar[bool] = False
    words: ClassVar[str]
    """What the pattern is called in a sentence."""

    names: ClassVar[tuple[str, str]]
    """As in a formula: with a variance for each coefficient, with one."""

    # --- what a pattern is -------------------------------------------------------------

    @property
    @abstractmethod
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (row, column) whose correlations determine all others, one per parameter."""

    @abstractmethod
    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor, as combinations of unit vectors: for arrays and tensors."""

    @property
    def lowest(self) -> float:
        """Lower end of the range of the parameters; the upper one is 1."""
        return -1.0

    def sines_of(self, correlations: Array) -> Array:
        """Sines (..., n_cors) from the correlations at `pairs`."""
        return self.sine(correlations)

    @property
    def half_range(self) -> float:
        """Half the range of the parameters."""
        return 0.5 * (1.0 - self.lowest)

    def sine(self, parameter: Any) -> Any:
        """Sine of the angle of a parameter: for arrays and tensors."""
        return (parameter - 1.0) / self.half_range + 1.0

    def alike(self, number: int) -> tuple[Indices, Indices]:
        """Rows and columns of the correlations that equal that of a pair."""
        row, col = self.pairs[number]
        return np.array([row]), np.array([col])

    # --- sizes -------------------------------------------------------------------------

    @property
    def blocks(self) -> Blocks:
        """All coefficients together."""
        return (tuple(range(self.n_coefs)),)

    @property
    def parts(self) -> tuple[Pattern]:
        """Itself."""
        return (self,)

    @property
    def name(self) -> str:
        """As in a formula."""
        return self.names[self.homogeneous]

    @property
    def n_cors(self) -> int:
        """Number of parameters of the correlations."""
        return len(self.pairs)

    @property
    def sd_places(self) -> Indices:
        """Which standard deviation each coefficient has (k,)."""
        return (
            np.zeros(self.n_coefs, dtype=np.intp) if self.homogeneous else np.arange(self.n_coefs)
        )

    @property
    def n_sds(self) -> int:
        """Number of standard deviations."""
        return 1 if self.homogeneous else self.n_coefs

    @property
    def n_theta(self) -> int:
        """Number of standard deviations and angles."""
        return self.n_sds + self.n_cors

    @property
    def even(self) -> NDArray[np.bool_]:
        """Only the sign of all standard deviations together is free."""
        return np.full(self.n_sds, self.n_sds == 1)

    @property
    def direct(self) -> bool:
        """Whether coordinates are inverse hyperbolic tangents of the correlations at `pairs`."""
        return self.lowest == -1.0

    # --- correlation coordinates -------------------------------------------------------

    def cholesky(self, z: Array) -> Array:
        """Cholesky factor (..., k, k) of Omega at correlation coordinates (..., n_cors)."""
        return self._stacked(np.tanh(z), _sech(z))

    def parameters(self, root: Array) -> Array:
        """Parameters (..., n_cors) of correlation matrices with roots (..., k, k)."""
        return 1.0 + self.half_range * (self._sines(root) - 1.0)

    def coordinates_at(self, parameters: Array) -> Array:
        """Coordinates (..., n_cors) of parameters."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.arctanh(np.clip(self.sine(parameters), -1.0, 1.0)))

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative (..., n_cors) of each parameter by its coordinate."""
        return self.half_range * _sech(z) ** 2

    def coordinates(self, lower: Array) -> Array:
        """Inverse of :meth:`cholesky`; infinite at the ends of the range."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.arctanh(self._sines(lower)))

    def from_correlations(self, correlations: Array) -> Array:
        """Coordinates (..., n_cors) from the correlations at `pairs`."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.arctanh(np.clip(self.sines_of(correlations), -1.0, 1.0)))

    def pull_back(self, z: Array, slope: Array) -> Array:
        """Derivatives (..., n_cors) from those by the entries of :meth:`cholesky` (..., k, k)."""
        cosines = _sech(z)
        by_angle = np.einsum("...ij,...qij->...q", slope, self._slopes(np.tanh(z), cosines))
        return np.asarray(by_angle * cosines)

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (...,) of the parameters by the coordinates."""
        return np.asarray(np.sum(np.log(self.half_range) - 2.0 * log_cosh(z), axis=-1))

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (..., n_cors) of :meth:`log_jacobian`."""
        return np.asarray(-2.0 * np.tanh(z))

    # --- theta: roots of the sds (an sd itself where its sign is free), then angles --------

    def factor(self, theta: Array) -> Array:
        """Relative factor T (..., k, k) at theta (..., n_theta)."""
        angles = theta[..., self.n_sds :]
        return self._sds(theta)[..., None] * self._stacked(np.sin(angles), np.cos(angles))

    def theta(self, factor: Array) -> Array:
        """Theta (..., n_theta) of the nearest T of the pattern."""
        sds = np.linalg.norm(factor, axis=-1)
        safe = np.where(sds > 0.0, sds, 1.0)[..., None]
        rows = np.where(sds[..., None] > 0.0, factor / safe, np.eye(self.n_coefs))
        own = np.sqrt(sds)
        if self.n_sds == 1:
            own = np.sqrt(np.mean(sds**2, axis=-1, keepdims=True))
        return np.concatenate([own, np.arcsin(self._sines(rows))], axis=-1)

    def theta_slopes(self, theta: Array) -> Array:
        """Derivatives (..., n_theta, k, k) of :meth:`factor`."""
        angles = theta[..., self.n_sds :]
        sines, cosines = np.sin(angles), np.cos(angles)
        lower = self._stacked(sines, cosines)[..., None, :, :]
        chosen = np.equal.outer(np.arange(self.n_sds), self.sd_places)  # (n_sds, k)
        own = theta[..., : self.n_sds]
        weights = np.ones_like(own) if self.n_sds == 1 else 2.0 * own
        by_sds = (weights[..., None] * chosen)[..., None] * lower
        by_angles = self._sds(theta)[..., None, :, None] * self._slopes(sines, cosines)
        return np.concatenate([by_sds, by_angles], axis=-3)

    def theta_gradient(self, theta: Array, slope: Array) -> Array:
        """Derivatives (..., n_theta) from those by the entries of T (..., k, k)."""
        return np.einsum("...ij,...qij->...q", slope, self.theta_slopes(theta))

    @property
    def theta_sds(self) -> NDArray[np.bool_]:
        """The standard deviations."""
        return np.arange(self.n_theta) < self.n_sds

    def negligible(self, theta: Array, tolerance: float) -> Iterator[tuple[Indices, Array]]:
        """Small standard deviations, and angles near the ends of the range."""
        own = np.abs(theta[: self.n_sds])
        for place in np.flatnonzero((own if self.n_sds == 1 else own**2) < tolerance):
            yield np.array([place]), np.zeros(1)
        angles = theta[self.n_sds :]
        for place in np.flatnonzero(np.abs(np.cos(angles)) < tolerance):
            end = (np.floor(angles[place] / np.pi) + 0.5) * np.pi
            yield np.array([self.n_sds + place]), np.array([end])

    # --- rows as arrays ----------------------------------------------------------------

    def _sds(self, theta: Array) -> Array:
        own = theta[..., : self.n_sds]
        return own[..., self.sd_places] if self.n_sds == 1 else own**2

    def _sines(self, root: Array) -> Array:
        omega = root @ root.swapaxes(-2, -1)
        correlations = np.empty((*root.shape[:-2], self.n_cors))
        for number in range(self.n_cors):
            rows, cols = self.alike(number)
            correlations[..., number] = omega[..., rows, cols].mean(axis=-1)
        return np.clip(self.sines_of(correlations), -1.0, 1.0)

    def _stacked(self, sines: Array, cosines: Array) -> Array:
        rows = self.rows(
            [sines[..., i, None] for i in range(self.n_cors)],
            [cosines[..., i, None] for i in range(self.n_cors)],
            list(np.eye(self.n_coefs)),
        )
        shape = (*sines.shape[:-1], self.n_coefs)
        return np.stack([np.broadcast_to(row, shape) for row in rows], axis=-2)

    def _slopes(self, sines: Array, cosines: Array) -> Array:
        """Derivatives (..., n_cors, k, k) of the Cholesky factor by the angles."""
        step = 1j * COMPLEX_STEP * np.eye(self.n_cors)
        ahead = self._stacked(
            sines[..., None, :] + step * cosines[..., None, :],
            cosines[..., None, :] - step * sines[..., None, :],
        )
        return np.asarray(ahead.imag / COMPLEX_STEP)


def _sech(z: Array) -> Array:
    return np.asarray(1.0 / np.cosh(np.clip(z, -LARGEST_Z, LARGEST_Z)))
