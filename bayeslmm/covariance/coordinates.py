"""The parameters of a model as one vector, and what the vector means.

Samplers and optimisers move a vector x of unconstrained coordinates: for each grouping factor the
log standard deviations and the correlation coordinates of its working columns, then log sigma, then
the fixed effects where they are not integrated out. Only :class:`Coordinates` knows where in x a
parameter stands and how it maps to what users read.

Working columns are ``Z @ W`` with a matrix W of the model's priors: the random effects of the
user's columns are ``u = W w``, their covariance matrix ``W Sigma_w W'``. Likewise the sampled
coordinates of the fixed effects are ``gamma = C beta``.

Maxima of likelihoods are searched in other coordinates, :class:`Theta`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Structure, lower_factor, sd_leaders

Array = NDArray[np.float64]

LARGEST_LOG = 300.0
"""Logarithms beyond this are as good as infinite; their squares must not overflow."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Points:
    """S points in the space of the parameters, in the columns that users see.

    Attributes
    ----------
    sds : tuple of ndarray (S, k)
        Standard deviations of the random effects per grouping factor.
    chols : tuple of ndarray (S, k, k)
        Roots of their correlation matrices, with rows of unit length.
    sigma : ndarray (S,)
        Residual standard deviations.
    beta : ndarray (S, p)
        Fixed effects where they are not integrated out, else (S, 0).
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    sigma: Array
    beta: Array

    @property
    def roots(self) -> list[Array]:
        """Roots D chol(Omega) (S, k, k) of the covariance matrices per grouping factor."""
        pairs = zip(self.sds, self.chols, strict=True)
        return [sd[:, :, None] * chol for sd, chol in pairs]

    @property
    def factors(self) -> list[Array]:
        """Relative factors T = D chol(Omega) / sigma (S, k, k)."""
        return [root / self.sigma[:, None, None] for root in self.roots]

    def take(self, rows: slice | NDArray[np.intp]) -> Points:
        """Some of the points."""
        return Points(
            sds=tuple(sds[rows] for sds in self.sds),
            chols=tuple(chols[rows] for chols in self.chols),
            sigma=self.sigma[rows],
            beta=self.beta[rows],
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WorkingPoints:
    """S points in working columns, in which the priors are given.

    Attributes
    ----------
    sds, chols, sigma
        As of :class:`Points`, for the working columns. A negative sd stands for its absolute value
        with the signs of its correlations turned.
    gamma : ndarray (S, p)
        Coordinates of the fixed effects where they are not integrated out, else (S, 0).
    beta : ndarray (S, p)
        The fixed effects themselves.
    mixing : tuple of ndarray (k, k)
        The matrices W.
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    sigma: Array
    gamma: Array
    beta: Array
    mixing: tuple[Array, ...]

    @property
    def factors(self) -> list[Array]:
        """Relative factors W D chol(Omega) / sigma (S, k, k) of the user's columns."""
        parts = zip(self.mixing, self.sds, self.chols, strict=True)
        scale = self.sigma[:, None, None]
        return [w @ (sd[:, :, None] * chol) / scale for w, sd, chol in parts]


AnyPoints = Points | WorkingPoints
"""Points in either columns: both have relative factors of the user's columns, sigma and beta."""


@dataclass(frozen=True, eq=False)
class Coordinates:
    """The unconstrained vector x (d,) of a model's parameters.

    Attributes
    ----------
    structures : tuple of Structure
        Shape of the covariance matrix of each grouping factor.
    mixing : tuple of ndarray (k, k)
        The matrix W of each grouping factor: working columns are ``Z @ W``; zero across blocks.
    fixed : ndarray (p, p) or (0, 0)
        The matrix C of the fixed effects' coordinates ``gamma = C beta`` where these are part of x.

    Examples
    --------
    >>> from bayeslmm.covariance.unstructured import Unstructured
    >>> two = Unstructured(2, ((0, 1),))
    >>> coordinates = plain_coordinates([two])
    >>> coordinates.size, coordinates.sigma
    (4, 3)
    """

    structures: tuple[Structure, ...]
    mixing: tuple[Array, ...]
    fixed: Array

    @cached_property
    def _starts(self) -> list[int]:
        sizes = [structure.n_sds + structure.n_cors for structure in self.structures]
        return [int(start) for start in np.cumsum([0, *sizes])]

    @property
    def sigma(self) -> int:
        """Place of log sigma."""
        return self._starts[-1]

    @property
    def n_covariance(self) -> int:
        """Number of covariance parameters, sigma among them."""
        return self._starts[-1] + 1

    @property
    def size(self) -> int:
        """Number of coordinates d."""
        return self.n_covariance + len(self.fixed)

    @property
    def beta(self) -> slice:
        """Places of the fixed effects; empty where they are integrated out."""
        return slice(self.n_covariance, self.size)

    def sds(self, factor: int) -> slice:
        """Places of the log standard deviations of a grouping factor."""
        start = self._starts[factor]
        return slice(start, start + self.structures[factor].n_sds)

    def cors(self, factor: int) -> slice:
        """Places of the correlation coordinates of a grouping factor."""
        return slice(self.sds(factor).stop, self._starts[factor + 1])

    @cached_property
    def logs(self) -> NDArray[np.intp]:
        """Places of all logarithms: standard deviations, then sigma."""
        places = [np.arange(self.size)[self.sds(f)] for f in range(len(self.structures))]
        return np.concatenate([*places, [self.sigma]]).astype(np.intp)

    def points(self, x: Array) -> WorkingPoints:
        """Parameters at coordinates (S, d)."""
        logs = np.clip(x[:, self.logs], -LARGEST_LOG, LARGEST_LOG)
        scales = np.exp(logs)
        sds, chols, start = [], [], 0
        for f, structure in enumerate(self.structures):
            sds.append(scales[:, start + structure.sd_places])
            chols.append(structure.cholesky(x[:, self.cors(f)]))
            start += structure.n_sds
        return self.working(sds, chols, scales[:, -1], x[:, self.beta])

    def working(
        self, sds: Sequence[Array], chols: Sequence[Array], sigma: Array, gamma: Array
    ) -> WorkingPoints:
        """Points from parameters of the working columns."""
        beta = np.linalg.solve(self.fixed, gamma.T).T if len(self.fixed) else gamma
        return WorkingPoints(
            sds=tuple(sds),
            chols=tuple(chols),
            sigma=sigma,
            gamma=gamma,
            beta=beta,
            mixing=self.mixing,
        )

    def vector(self, points: WorkingPoints) -> Array:
        """Coordinates (S, d) of points; infinite at standard deviations of zero."""
        pieces: list[Array] = []
        with np.errstate(divide="ignore"):
            for f, structure in enumerate(self.structures):
                pieces.append(np.log(points.sds[f][:, sd_leaders(structure)]))
                pieces.append(structure.coordinates(points.chols[f]))
            pieces.append(np.log(points.sigma)[:, None])
        return np.concatenate([*pieces, points.gamma], axis=1)

    def to_user(self, points: WorkingPoints) -> Points:
        """The same points in the columns that users see."""
        sds, chols = [], []
        for w, sd, chol in zip(self.mixing, points.sds, points.chols, strict=True):
            if is_identity(w):
                sds.append(sd)
                chols.append(chol)
            else:
                scales, rows = unit_rows(w @ (sd[:, :, None] * chol))
                sds.append(scales)
                chols.append(rows)
        return Points(sds=tuple(sds), chols=tuple(chols), sigma=points.sigma, beta=points.beta)

    def to_working(self, points: Points) -> WorkingPoints:
        """Points in working columns; inverse of :meth:`to_user`."""
        sds, chols = [], []
        for structure, w, sd, chol in zip(
            self.structures, self.mixing, points.sds, points.chols, strict=True
        ):
            if is_identity(w):
                sds.append(sd)
                chols.append(chol)
            else:
                root = np.linalg.solve(w, sd[:, :, None] * chol)
                scales, rows = unit_rows(lower_factor(structure, root))
                sds.append(scales)
                chols.append(rows)
        gamma = points.beta @ self.fixed.T if len(self.fixed) else points.beta[:, :0]
        return self.working(sds, chols, points.sigma, gamma)

    def log_jacobian(self, x: Array) -> Array:
        """Log Jacobian (S,) of sds, correlation entries and sigma by the coordinates (S, d)."""
        total = np.asarray(x[:, self.logs].sum(axis=1))
        for f, structure in enumerate(self.structures):
            if structure.n_cors:
                total = total + structure.log_jacobian(x[:, self.cors(f)])
        return total

    def pull_back(self, x: Array, slope: Slopes, *, jacobian: bool) -> Array:
        """Gradient (d,) by the coordinates x (d,) from derivatives by the parameters.

        Parameters
        ----------
        x : ndarray (d,)
            Where.
        slope : Slopes
            Derivatives there.
        jacobian : bool
            Whether the gradient of :meth:`log_jacobian` is added.
        """
        gradient = np.empty(self.size)
        scales = np.exp(np.clip(x[self.logs], -LARGEST_LOG, LARGEST_LOG))
        shared = zip(self.structures, slope.sds, strict=True)
        sums = [np.bincount(s.sd_places, by_sd, s.n_sds) for s, by_sd in shared]
        derivatives = np.concatenate([*sums, [slope.sigma]])
        gradient[self.logs] = derivatives * scales + float(jacobian)
        for f, structure in enumerate(self.structures):
            z = x[self.cors(f)]
            gradient[self.cors(f)] = structure.pull_back(z, slope.chols[f])
            gradient[self.cors(f)] += structure.parameter_slopes(z) * slope.cors[f]
            if jacobian:
                gradient[self.cors(f)] += structure.log_jacobian_slope(z)
        gradient[self.beta] = slope.gamma
        return gradient


@dataclass(frozen=True)
class Theta:
    """The vector theta (m,) in which likelihoods are maximised, sigma profiled out.

    Attributes
    ----------
    structures : tuple of Structure
        Shape of the covariance matrix of each grouping factor.

    Examples
    --------
    >>> from bayeslmm.covariance.unstructured import Unstructured
    >>> theta = Theta((Unstructured(2, ((0, 1),)), Unstructured(1, ((0,),))))
    >>> theta.size, theta.places(1)
    (4, slice(3, 4, None))
    """

    structures: tuple[Structure, ...]

    @cached_property
    def _starts(self) -> list[int]:
        sizes = [structure.n_theta for structure in self.structures]
        return [int(start) for start in np.cumsum([0, *sizes])]

    @property
    def size(self) -> int:
        """Number of entries m."""
        return self._starts[-1]

    def places(self, factor: int) -> slice:
        """Places of the entries of a grouping factor."""
        return slice(self._starts[factor], self._starts[factor + 1])

    def parts(self, theta: Array) -> list[Array]:
        """The entries (..., m) of each grouping factor."""
        return [theta[..., self.places(f)] for f in range(len(self.structures))]

    def factors(self, theta: Array) -> list[Array]:
        """Relative factors (..., k, k) at theta (..., m)."""
        return [s.factor(x) for s, x in zip(self.structures, self.parts(theta), strict=True)]

    def vector(self, factors: Sequence[Array]) -> Array:
        """Theta (..., m) of lower triangular relative factors (..., k, k)."""
        pairs = zip(self.structures, factors, strict=True)
        return np.concatenate([s.theta(t) for s, t in pairs], axis=-1)

    def gradient(self, theta: Array, slopes: Sequence[Array]) -> Array:
        """Derivatives (..., m) from those by the entries of the relative factors (..., k, k)."""
        parts = zip(self.structures, self.parts(theta), slopes, strict=True)
        return np.concatenate([s.theta_gradient(x, d) for s, x, d in parts], axis=-1)

    @cached_property
    def sds(self) -> NDArray[np.bool_]:
        """Which entries are zero at a singular fit and positive elsewhere: (m,)."""
        return np.concatenate([structure.theta_sds for structure in self.structures])

    def negligible(
        self, theta: Array, tolerance: float
    ) -> Iterator[tuple[NDArray[np.intp], Array]]:
        """Sets of entries near to values of a singular relative factor, with these values."""
        for f, (structure, part) in enumerate(zip(self.structures, self.parts(theta), strict=True)):
            for entries, values in structure.negligible(part, tolerance):
                yield self.places(f).start + entries, values


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Slopes:
    """Derivatives of a function at one point by the parameters of the working columns.

    Attributes
    ----------
    sds : tuple of ndarray (k,)
    chols : tuple of ndarray (k, k)
        By the entries of the Cholesky factors of the correlations.
    cors : tuple of ndarray (n_cors,)
        By the parameters of patterns, where they do not enter through `chols`.
    sigma : float
    gamma : ndarray (p,) or (0,)
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    cors: tuple[Array, ...]
    sigma: float
    gamma: Array


def plain_coordinates(structures: Sequence[Structure]) -> Coordinates:
    """Coordinates of the user's columns, without fixed effects."""
    identities = tuple(np.eye(structure.n_coefs) for structure in structures)
    return Coordinates(tuple(structures), identities, np.empty((0, 0)))


def is_identity(matrix: Array) -> bool:
    """Whether a matrix maps everything to itself."""
    return bool(np.array_equal(matrix, np.eye(len(matrix))))


def unit_rows(roots: Array) -> tuple[Array, Array]:
    """Lengths (S, k) of the rows of roots (S, k, k), and the rows at unit length.

    A row of zeros becomes the unit vector of its coefficient.
    """
    lengths = np.linalg.norm(roots, axis=2)
    safe = np.where(lengths > 0, lengths, 1.0)[:, :, None]
    return lengths, np.where(lengths[:, :, None] > 0, roots / safe, np.eye(roots.shape[1]))
