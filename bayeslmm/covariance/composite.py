"""Several structures side by side: one for each block of the coefficients of a grouping factor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Array, Blocks, Indices, Structure


@dataclass(frozen=True)
class Composite:
    """Independent blocks, each with a structure of one part.

    Standard deviations, correlation coordinates and theta are those of the parts, one after the
    other.

    Attributes
    ----------
    blocks : tuple of tuple of int
        A partition of ``range(k)``.
    parts : tuple of Structure
        The structure of each block.
    """

    blocks: Blocks
    parts: tuple[Structure, ...]

    @property
    def name(self) -> str:
        """Of all parts."""
        return " + ".join(part.name for part in self.parts)

    @property
    def words(self) -> str:
        """Of all parts."""
        return ", ".join(part.words for part in self.parts)

    @property
    def mixes(self) -> bool:
        """Where all parts do."""
        return all(part.mixes for part in self.parts)

    @property
    def homogeneous(self) -> bool:
        """Parts have standard deviations of their own."""
        return False

    @property
    def n_coefs(self) -> int:
        """Number of coefficients k."""
        return sum(part.n_coefs for part in self.parts)

    @property
    def n_sds(self) -> int:
        """Number of standard deviations."""
        return sum(part.n_sds for part in self.parts)

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates."""
        return sum(part.n_cors for part in self.parts)

    @property
    def n_theta(self) -> int:
        """Number of entries of theta."""
        return sum(part.n_theta for part in self.parts)

    @property
    def sd_places(self) -> Indices:
        """Which standard deviation each coefficient has (k,)."""
        places, start = np.empty(self.n_coefs, dtype=np.intp), 0
        for block, part in zip(self.blocks, self.parts, strict=True):
            places[list(block)] = start + part.sd_places
            start += part.n_sds
        return places

    @property
    def even(self) -> NDArray[np.bool_]:
        """Which sds may change sign (n_sds,)."""
        return np.concatenate([part.even for part in self.parts])

    @property
    def theta_sds(self) -> NDArray[np.bool_]:
        """Which entries of theta are standard deviations (n_theta,)."""
        return np.concatenate([part.theta_sds for part in self.parts])

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (row, column) whose correlations determine all others."""
        blocks = zip(self.blocks, self.parts, strict=True)
        return tuple((block[i], block[j]) for block, part in blocks for i, j in part.pairs)

    @property
    def direct(self) -> bool:
        """Whether coordinates are inverse hyperbolic tangents of the correlations at `pairs`."""
        return all(part.direct for part in self.parts)

    def cholesky(self, z: Array) -> Array:
        """Cholesky factor (..., k, k) of Omega at correlation coordinates (..., n_cors)."""
        return self._placed([p.cholesky(own) for p, own in self._by_cors(z)])

    def coordinates(self, lower: Array) -> Array:
        """Inverse of :meth:`cholesky`."""
        return self._joined([p.coordinates(own) for p, own in self._by_block(lower)])

    def from_correlations(self, correlations: Array) -> Array:
        """Coordinates (..., n_cors) from the correlations at `pairs`."""
        return self._joined([p.from_correlations(own) for p, own in self._by_cors(correlations)])

    def pull_back(self, z: Array, slope: Array) -> Array:
        """Derivatives (..., n_cors) from those by the entries of :meth:`cholesky`."""
        pairs = zip(self._by_cors(z), self._by_block(slope), strict=True)
        return self._joined([part.pull_back(own, d) for (part, own), (_, d) in pairs])

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (...,) of what has the priors by the coordinates."""
        zero: Array = np.zeros(z.shape[:-1])
        return sum((part.log_jacobian(own) for part, own in self._by_cors(z)), zero)

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (..., n_cors) of :meth:`log_jacobian`."""
        return self._joined([p.log_jacobian_slope(own) for p, own in self._by_cors(z)])

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative (..., n_cors) of each parameter of a pattern by its coordinate, else zero."""
        return self._joined([p.parameter_slopes(own) for p, own in self._by_cors(z)])

    def factor(self, theta: Array) -> Array:
        """Relative factor T (..., k, k) at theta (..., n_theta)."""
        return self._placed([p.factor(own) for p, own in self._by_theta(theta)])

    def theta(self, factor: Array) -> Array:
        """Inverse of :meth:`factor`."""
        return self._joined([p.theta(own) for p, own in self._by_block(factor)])

    def theta_slopes(self, theta: Array) -> Array:
        """Derivatives (n_theta, k, k) of :meth:`factor` at one theta."""
        slopes, start = np.zeros((self.n_theta, self.n_coefs, self.n_coefs)), 0
        for block, (part, own) in zip(self.blocks, self._by_theta(theta), strict=True):
            rows = np.array(block)
            places = np.arange(start, start + part.n_theta)[:, None, None]
            slopes[places, rows[:, None], rows] = part.theta_slopes(own)
            start += part.n_theta
        return slopes

    def theta_gradient(self, theta: Array, slope: Array) -> Array:
        """Derivatives (..., n_theta) from those by the entries of T (..., k, k)."""
        pairs = zip(self._by_theta(theta), self._by_block(slope), strict=True)
        return self._joined([part.theta_gradient(own, d) for (part, own), (_, d) in pairs])

    def negligible(self, theta: Array, tolerance: float) -> Iterator[tuple[Indices, Array]]:
        """Sets of entries near to values of a singular T, with these values."""
        start = 0
        for part, own in self._by_theta(theta):
            for entries, values in part.negligible(own, tolerance):
                yield start + entries, values
            start += part.n_theta

    # --- cutting and joining -------------------------------------------------------------

    def _by_cors(self, z: Array) -> list[tuple[Structure, Array]]:
        return self._cut(z, lambda part: part.n_cors)

    def _by_theta(self, theta: Array) -> list[tuple[Structure, Array]]:
        return self._cut(theta, lambda part: part.n_theta)

    def _cut(
        self, values: Array, size: Callable[[Structure], int]
    ) -> list[tuple[Structure, Array]]:
        ends = np.cumsum([size(part) for part in self.parts])
        return list(zip(self.parts, np.split(values, ends[:-1], axis=-1), strict=True))

    def _by_block(self, matrix: Array) -> list[tuple[Structure, Array]]:
        rows = [np.array(block) for block in self.blocks]
        blocks = [matrix[..., own[:, None], own] for own in rows]
        return list(zip(self.parts, blocks, strict=True))

    def _placed(self, blocks: list[Array]) -> Array:
        result = np.zeros((*blocks[0].shape[:-2], self.n_coefs, self.n_coefs))
        for block, values in zip(self.blocks, blocks, strict=True):
            rows = np.array(block)
            result[..., rows[:, None], rows] = values
        return result

    def _joined(self, pieces: list[Array]) -> Array:
        return np.concatenate(pieces, axis=-1)
