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

from bayeslmm.covariance.residual import LARGEST_LOG, PLAIN, Residual
from bayeslmm.covariance.scale import ScalePoints
from bayeslmm.covariance.structure import Structure, lower_factor, sd_leaders

Array = NDArray[np.float64]


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
    shapes : ndarray (S, r)
        Parameters of the residuals beside sigma: see ``covariance.residual``.
    residual : Residual
        Structure of the residuals.
    beta : ndarray (S, p)
        Fixed effects where they are not integrated out, else (S, 0).
    scale : ScalePoints or None
        Tails of the residuals and predictors of their scale; None where they are normal with
        standard deviations that `sigma` and `shapes` say. Where the scale has predictors, `sigma`
        is that at their column means.
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    sigma: Array
    shapes: Array
    residual: Residual
    beta: Array
    scale: ScalePoints | None = None

    @property
    def plain(self) -> bool:
        """Whether residuals are independent and normal with one variance."""
        return self.residual.plain and self.scale is None

    @property
    def roots(self) -> list[Array]:
        """Roots D chol(Omega) (S, k, k) of the covariance matrices per grouping factor."""
        pairs = zip(self.sds, self.chols, strict=True)
        return [sd[:, :, None] * chol for sd, chol in pairs]

    @property
    def factors(self) -> list[Array]:
        """Relative factors T = D chol(Omega) / sigma (S, k, k)."""
        return [root / self.sigma[:, None, None] for root in self.roots]

    @property
    def natural(self) -> tuple[Array, Array, Array]:
        """Standard deviations (S, m), powers (S, q) and correlations of the residuals."""
        return self.residual.natural(self.sigma, self.shapes)

    def take(self, rows: slice | NDArray[np.intp]) -> Points:
        """Some of the points."""
        return Points(
            sds=tuple(sds[rows] for sds in self.sds),
            chols=tuple(chols[rows] for chols in self.chols),
            sigma=self.sigma[rows],
            shapes=self.shapes[rows],
            residual=self.residual,
            beta=self.beta[rows],
            scale=None if self.scale is None else self.scale.take(rows),
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WorkingPoints:
    """S points in working columns, in which the priors are given.

    Attributes
    ----------
    sds, chols, sigma, shapes, residual
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
    shapes: Array
    residual: Residual
    gamma: Array
    beta: Array
    mixing: tuple[Array, ...]
    scale: None = None

    @property
    def plain(self) -> bool:
        """Whether residuals are independent and normal with one variance."""
        return self.residual.plain

    @property
    def natural(self) -> tuple[Array, Array, Array]:
        """Standard deviations (S, m), powers (S, q) and correlations of the residuals."""
        return self.residual.natural(self.sigma, self.shapes)

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
    residual : Residual
        Structure of the residuals: log standard deviations, powers, correlation coordinates.
    held : tuple of (int, float)
        Places of x that are known, and the values there. Correlations of one block are held
        together. Everything that takes x takes all of it; searches and samplers move `free`.

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
    residual: Residual = PLAIN
    held: tuple[tuple[int, float], ...] = ()

    @cached_property
    def held_places(self) -> NDArray[np.intp]:
        """Places of the coordinates that are known."""
        return np.array([place for place, _ in self.held], dtype=np.intp)

    @cached_property
    def held_values(self) -> Array:
        """The coordinates there."""
        return np.array([value for _, value in self.held], dtype=np.float64)

    @cached_property
    def free(self) -> NDArray[np.intp]:
        """Places of the coordinates that are not known."""
        return np.setdiff1d(np.arange(self.size), self.held_places)

    def complete(self, z: Array) -> Array:
        """All coordinates (..., d) of free ones (..., f)."""
        x = np.empty((*z.shape[:-1], self.size))
        x[..., self.free] = z
        x[..., self.held_places] = self.held_values
        return x

    @cached_property
    def _held_jacobian(self) -> float:
        """What known coordinates would add to :meth:`log_jacobian`: known parameters have none."""
        x = self.complete(np.zeros(len(self.free)))
        known = np.isin(np.arange(self.size), self.held_places)
        total = float(x[self.logs][known[self.logs]].sum())
        for f, structure in enumerate(self.structures):
            start = self.cors(f).start
            for part in structure.parts:
                own = slice(start, start + part.n_cors)
                start = own.stop
                if part.n_cors and known[own].all():
                    total += float(part.log_jacobian(x[None, own])[0])
        law, places = self.residual.correlation, self._residual_cors
        if law is not None and law.n_cors:
            arms = x[places].reshape(law.n_arms, -1)
            for z, held in zip(arms, known[places].reshape(law.n_arms, -1), strict=True):
                if held.all():
                    every = np.tile(z, law.n_arms)[None]
                    total += float(law.log_jacobian(every)[0]) / law.n_arms
        return total

    @cached_property
    def _starts(self) -> list[int]:
        sizes = [structure.n_sds + structure.n_cors for structure in self.structures]
        return [int(start) for start in np.cumsum([0, *sizes])]

    @property
    def sigma(self) -> int:
        """Place of log sigma, the first of the residuals' parameters."""
        return self._starts[-1]

    @property
    def shape(self) -> slice:
        """Places of the other parameters of the residuals."""
        return slice(self.sigma + 1, self.n_covariance)

    @property
    def n_covariance(self) -> int:
        """Number of covariance parameters, those of the residuals among them."""
        return self._starts[-1] + 1 + self.residual.n_shape

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
        """Places of all logarithms: standard deviations, then those of the residuals."""
        places = [np.arange(self.size)[self.sds(f)] for f in range(len(self.structures))]
        residual = self.sigma + np.arange(len(self.residual.scales))
        return np.concatenate([*places, residual]).astype(np.intp)

    def points(self, x: Array) -> WorkingPoints:
        """Parameters at coordinates (S, d)."""
        logs = np.clip(x[:, self.logs], -LARGEST_LOG, LARGEST_LOG)
        scales = np.exp(logs)
        sds, chols, start = [], [], 0
        for f, structure in enumerate(self.structures):
            sds.append(scales[:, start + structure.sd_places])
            chols.append(structure.cholesky(x[:, self.cors(f)]))
            start += structure.n_sds
        sigma, shapes = self.residual.relative(x[:, self.sigma : self.n_covariance])
        return self.working(sds, chols, sigma, shapes, x[:, self.beta])

    def working(
        self,
        sds: Sequence[Array],
        chols: Sequence[Array],
        sigma: Array,
        shapes: Array,
        gamma: Array,
    ) -> WorkingPoints:
        """Points from parameters of the working columns."""
        beta = np.linalg.solve(self.fixed, gamma.T).T if len(self.fixed) else gamma
        return WorkingPoints(
            sds=tuple(sds),
            chols=tuple(chols),
            sigma=sigma,
            shapes=shapes,
            residual=self.residual,
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
            pieces.append(self.residual.coordinates(points.sigma, points.shapes))
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
        return Points(
            sds=tuple(sds),
            chols=tuple(chols),
            sigma=points.sigma,
            shapes=points.shapes,
            residual=self.residual,
            beta=points.beta,
        )

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
        return self.working(sds, chols, points.sigma, points.shapes, gamma)

    def log_jacobian(self, x: Array) -> Array:
        """Log Jacobian (S,) of sds, correlation entries and sigma by the coordinates (S, d).

        Of those that are not held.
        """
        total = np.asarray(x[:, self.logs].sum(axis=1))
        for f, structure in enumerate(self.structures):
            if structure.n_cors:
                total = total + structure.log_jacobian(x[:, self.cors(f)])
        if self.residual.correlation is not None:
            total = total + self.residual.correlation.log_jacobian(x[:, self._residual_cors])
        return total - self._held_jacobian if self.held else total

    @property
    def _residual_cors(self) -> slice:
        return slice(self.n_covariance - self.residual.n_cors, self.n_covariance)

    def pull_back(self, x: Array, slope: Slopes, *, jacobian: bool) -> Array:
        """Gradient (d,) by the coordinates x (d,) from derivatives by the parameters.

        Held ones are differentiated as if they were free.

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
        ratios = len(self.residual.scales) - 1
        by_log_sigma = slope.sigma * scales[-1 - ratios] - np.sum(slope.shapes[:ratios])
        shared = zip(self.structures, slope.sds, strict=True)
        sums = [np.bincount(s.sd_places, by_sd, s.n_sds) for s, by_sd in shared]
        by_logs = np.concatenate([np.zeros(0), *sums]) * scales[: len(scales) - 1 - ratios]
        gradient[self.shape] = slope.shapes
        gradient[self.logs] = np.concatenate([by_logs, [by_log_sigma], slope.shapes[:ratios]])
        gradient[self.logs] += float(jacobian)
        correlation, own = self.residual.correlation, self._residual_cors
        if correlation is not None and jacobian:
            gradient[own] += correlation.log_jacobian_slope(x[own])
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
    n_shape : int
        Number of parameters of the residuals beside sigma, which come last.

    Examples
    --------
    >>> from bayeslmm.covariance.unstructured import Unstructured
    >>> theta = Theta((Unstructured(2, ((0, 1),)), Unstructured(1, ((0,),))))
    >>> theta.size, theta.places(1)
    (4, slice(3, 4, None))
    """

    structures: tuple[Structure, ...]
    n_shape: int = 0

    @cached_property
    def _starts(self) -> list[int]:
        sizes = [structure.n_theta for structure in self.structures]
        return [int(start) for start in np.cumsum([0, *sizes])]

    @property
    def size(self) -> int:
        """Number of entries m."""
        return self._starts[-1] + self.n_shape

    @property
    def shape(self) -> slice:
        """Places of the parameters of the residuals."""
        return slice(self._starts[-1], self.size)

    def places(self, factor: int) -> slice:
        """Places of the entries of a grouping factor."""
        return slice(self._starts[factor], self._starts[factor + 1])

    def parts(self, theta: Array) -> list[Array]:
        """The entries (..., m) of each grouping factor."""
        return [theta[..., self.places(f)] for f in range(len(self.structures))]

    def factors(self, theta: Array) -> list[Array]:
        """Relative factors (..., k, k) at theta (..., m)."""
        return [s.factor(x) for s, x in zip(self.structures, self.parts(theta), strict=True)]

    def vector(self, factors: Sequence[Array], shape: Array) -> Array:
        """Theta (..., m) of lower triangular relative factors (..., k, k) and shapes (..., r)."""
        own = [s.theta(t) for s, t in zip(self.structures, factors, strict=True)]
        return np.concatenate([*own, shape], axis=-1)

    def gradient(self, theta: Array, slopes: Sequence[Array], by_shape: Array) -> Array:
        """Derivatives (..., m) from those by relative factors (..., k, k) and shape (..., r)."""
        parts = zip(self.structures, self.parts(theta), slopes, strict=True)
        return np.concatenate([*(s.theta_gradient(x, d) for s, x, d in parts), by_shape], axis=-1)

    @cached_property
    def sds(self) -> NDArray[np.bool_]:
        """Which entries are zero at a singular fit and positive elsewhere: (m,)."""
        own = [structure.theta_sds for structure in self.structures]
        return np.concatenate([*own, np.zeros(self.n_shape, dtype=bool)])

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
        At fixed `shapes`.
    shapes : ndarray (r,)
        By the parameters of the residuals beside sigma.
    gamma : ndarray (p,) or (0,)
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    cors: tuple[Array, ...]
    sigma: float
    shapes: Array
    gamma: Array


def plain_coordinates(structures: Sequence[Structure], residual: Residual = PLAIN) -> Coordinates:
    """Coordinates of the user's columns, without fixed effects."""
    identities = tuple(np.eye(structure.n_coefs) for structure in structures)
    return Coordinates(tuple(structures), identities, np.empty((0, 0)), residual)


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
