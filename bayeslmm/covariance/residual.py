"""The covariance matrix R of the residuals: standard deviations times correlations.

``R = S C S``, with S diagonal and C the correlations, which tie rows of one group only. The log
standard deviation of a row is linear in its parameters: one per stratum or occasion, and powers of
covariates. C is a structure over occasions or a function of distance.

The first standard deviation is the scale sigma; the rest of the parameters, *shape* (r,), is free
of it: logs of the other standard deviations over the first, then powers, then correlation
coordinates. Bound to rows, the relative precision matrix ``sigma^2 R^-1`` is a matrix with tied
entries: entry (a, b) has one of K values c_k(shape), so that cross-products are linear in c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGEST_LOG = 300.0
"""Logarithms beyond this are as good as infinite; their squares must not overflow."""

STEP = 1e-5
"""Step of the central differences of correlations by their coordinates."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResidualRows:
    """What a residual structure needs of n rows.

    Attributes
    ----------
    group : ndarray of int (n,) or None
        Group within which residuals are correlated; None where they are independent.
    place : ndarray (n,) or (n, d) or None
        Occasion (codes), time or coordinates of each row.
    arm : ndarray of int (n,)
        Which of several sets of correlation parameters a row has; constant within groups.
    log_sd : ndarray (n, m + q)
        Coefficients of the m log standard deviations and q powers in each row's own.
    """

    group: Indices | None
    place: Array | None
    arm: Indices
    log_sd: Array

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.log_sd)

    def groups(self) -> list[Indices]:
        """Rows of each group, in the order of their places."""
        assert self.group is not None and self.place is not None
        order = np.lexsort((*self.place.reshape(self.n, -1).T[::-1], self.group))
        return np.split(order, np.flatnonzero(np.diff(self.group[order])) + 1)

    def followed_by(self, other: ResidualRows) -> ResidualRows:
        """These rows and then others."""

        def both(one: Any, two: Any) -> Any:
            return None if one is None or two is None else np.concatenate([one, two])

        return ResidualRows(
            group=both(self.group, other.group),
            place=both(self.place, other.place),
            arm=both(self.arm, other.arm),
            log_sd=both(self.log_sd, other.log_sd),
        )

    def take(self, rows: Indices | slice) -> ResidualRows:
        """Some of the rows."""
        return ResidualRows(
            group=None if self.group is None else self.group[rows],
            place=None if self.place is None else self.place[rows],
            arm=self.arm[rows],
            log_sd=self.log_sd[rows],
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Entries:
    """Lower triangle of a symmetric matrix with tied entries, the diagonal among them.

    Attributes
    ----------
    rows, cols : ndarray of int (M,)
        Places, rows >= cols, in any order.
    kinds : ndarray of int (M,)
        Which of the K values stands there.
    size : int
        K.
    """

    rows: Indices
    cols: Indices
    kinds: Indices
    size: int

    @classmethod
    def nowhere(cls, size: int) -> Entries:
        """Of rows that are not kept: K values without places."""
        none = np.zeros(0, dtype=np.intp)
        return cls(rows=none, cols=none, kinds=none, size=size)


class BoundCorrelation(Protocol):
    """The inverse of a correlation matrix C of rows as a function of its coordinates."""

    @property
    def entries(self) -> Entries:
        """Where C^-1 is not zero."""
        ...

    @property
    def diagonal(self) -> NDArray[np.bool_]:
        """Which kinds of entries (K,) are on the diagonal."""
        ...

    def under(self, correlation: Any) -> BoundCorrelation:
        """The same rows under another arrangement of the coordinates."""
        ...

    def joined(self, other: Any) -> tuple[BoundCorrelation, Indices, Indices]:
        """Both sets of rows, of different groups, without places of entries.

        Also the kind of entry there that each kind of these rows, and of the others, is.
        """
        ...

    def precision(self, z: Array) -> tuple[Array, Array]:
        """Values (S, K) of C^-1 and ``log |C^-1|`` (S,) at coordinates (S, n_cors)."""
        ...

    def pull_back(self, z: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (n_cors,) at z (n_cors,) from those by the values (K,) and log determinant.

        A value off the diagonal stands at (a, b) and (b, a); its derivative is that of both.
        """
        ...


class Correlation(Protocol):
    """Correlations of residuals within groups: to add one, write a class with these members."""

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates."""
        ...

    @property
    def n_arms(self) -> int:
        """Number of sets of parameters, one after another in the coordinates."""
        ...

    @property
    def separable(self) -> bool:
        """Whether each correlation is a function of one coordinate."""
        ...

    @property
    def on_matrix(self) -> bool:
        """Whether the prior is on the whole matrix, not on each parameter."""
        ...

    @property
    def lowest(self) -> float:
        """Lower end of the range of a parameter; the upper one is 1."""
        ...

    def isolated(self, place: int, z: Array) -> tuple[Correlation, Array, int] | None:
        """The same at z (n_cors,) with a correlation as a coordinate of its own, if there is such.

        Returns the correlations, their coordinates and the place of this one; None without.
        """
        ...

    def parameters(self, z: Array) -> Array:
        """What has priors (S, n), of one arm, at its coordinates (S, n).

        Not called where the prior is on the whole matrix.
        """
        ...

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative (n,) of each parameter by its coordinate."""
        ...

    def from_parameters(self, parameters: Array) -> Array:
        """Inverse (S, n) of :meth:`parameters`."""
        ...

    def bind(self, rows: ResidualRows) -> BoundCorrelation:
        """The inverse correlation matrix of some rows."""
        ...

    def matrix(self, z: Array, rows: ResidualRows) -> Array:
        """Correlation matrices (S, n, n) of rows of one group at coordinates (S, n_cors)."""
        ...

    def correlations(self, z: Array) -> Array:
        """The correlations (S, n_cors) that determine all others."""
        ...

    def from_correlations(self, correlations: Array) -> Array:
        """Inverse (S, n_cors) of :meth:`correlations`."""
        ...

    @property
    def nlme_name(self) -> str:
        """What nlme calls a parameter."""
        ...

    def nlme(self, correlations: Array) -> Array:
        """Nlme's parameters (S, n_cors) from the correlations that determine all others."""
        ...

    def from_nlme(self, parameters: Array) -> Array:
        """Inverse (S, n_cors) of :meth:`nlme`."""
        ...

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (S,) of what has the prior by the coordinates (S, n_cors)."""
        ...

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (n_cors,) of :meth:`log_jacobian` at one point (n_cors,)."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BoundResidual:
    """The relative precision matrix ``sigma^2 R^-1`` of rows.

    Attributes
    ----------
    log_sds : ndarray (V, m + q)
        Coefficients of the log standard deviations of the V kinds of rows.
    counts : ndarray (V,)
        Rows of each kind.
    entries : Entries
        Where the matrix is not zero.
    parts : tuple of ndarray of int (K,)
        For each kind of entry: the kind of its correlation, and the kinds of its two rows.
    correlation : BoundCorrelation or None
        C^-1; None where residuals are independent.
    structure : Residual
        What it is a matrix of.
    """

    log_sds: Array
    counts: Array
    entries: Entries
    parts: tuple[Indices, Indices, Indices]
    correlation: BoundCorrelation | None
    structure: Residual

    @property
    def diagonal(self) -> NDArray[np.bool_]:
        """Which kinds of entries (K,) are on the diagonal."""
        if self.correlation is None:
            return np.ones(len(self.parts[0]), dtype=bool)
        return self.correlation.diagonal[self.parts[0]]

    def under(self, structure: Residual) -> BoundResidual:
        """The same rows under another arrangement of the coordinates of their correlations."""
        bound, law = self.correlation, structure.correlation
        assert bound is not None and law is not None
        return replace(self, structure=structure, correlation=bound.under(law))

    def joined(self, other: BoundResidual) -> tuple[BoundResidual, Indices, Indices]:
        """Both sets of rows, of different groups, without places of entries.

        Also the kind of entry there that each kind of these rows, and of the others, is.
        """
        log_sds, sd = distinct_rows([self.log_sds, other.log_sds])
        bound, kinds = None, [np.zeros(1, dtype=np.intp)] * 2
        if self.correlation is not None:
            bound, *kinds = self.correlation.joined(other.correlation)
        triples = [
            np.column_stack([own[law.parts[0]], at[law.parts[1]], at[law.parts[2]]])
            for law, own, at in zip((self, other), kinds, sd, strict=True)
        ]
        parts, (first, second) = distinct_rows(triples)
        counts = np.zeros(len(log_sds))
        for law, at in zip((self, other), sd, strict=True):
            counts[at] += law.counts
        law = replace(
            self,
            log_sds=log_sds,
            counts=counts,
            entries=Entries.nowhere(len(parts)),
            parts=(parts[:, 0], parts[:, 1], parts[:, 2]),
            correlation=bound,
        )
        return law, first, second

    def log_sd(self, shape: Array) -> Array:
        """Log relative standard deviations (S, V) of the kinds of rows."""
        return shape[..., : self._n_sds] @ self.log_sds[:, 1:].T

    @property
    def _n_sds(self) -> int:
        return self.log_sds.shape[1] - 1

    def precision(self, shape: Array) -> tuple[Array, Array]:
        """Values (S, K) and log determinant (S,) at shapes (S, r)."""
        log_sd, (kinds, first, second) = self.log_sd(shape), self.parts
        log_det = -2.0 * log_sd @ self.counts
        values = np.exp(-log_sd[:, first] - log_sd[:, second])
        if self.correlation is not None:
            inverse, own = self.correlation.precision(shape[:, self._n_sds :])
            values, log_det = values * inverse[:, kinds], log_det + own
        return values, log_det

    def pull_back(self, shape: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (r,) at a shape (r,) from those by the values (K,) and log determinant."""
        kinds, first, second = self.parts
        log_sd, z = self.log_sd(shape), shape[self._n_sds :]
        scale = np.exp(-log_sd[first] - log_sd[second])
        by_sd = -2.0 * by_log_det * self.counts
        if self.correlation is None:
            weighted, by_z = by_value * scale, z
        else:
            inverse = self.correlation.precision(z[None])[0][0]
            weighted = by_value * scale * inverse[kinds]
            by_inverse = np.bincount(kinds, by_value * scale, minlength=len(inverse))
            by_z = self.correlation.pull_back(z, by_inverse, by_log_det)
        size = len(self.counts)
        by_sd = by_sd - np.bincount(first, weighted, minlength=size)
        by_sd = by_sd - np.bincount(second, weighted, minlength=size)
        return np.concatenate([by_sd @ self.log_sds[:, 1:], by_z])


@dataclass(frozen=True, kw_only=True)
class Residual:
    """Residual covariance structure of a model.

    Attributes
    ----------
    scales : tuple of str
        Labels of the m standard deviations: strata or occasions; one empty label where there is
        one of all rows.
    powers : tuple of str
        Labels of the q coefficients of covariates in the log standard deviation.
    correlation : Correlation or None
        Correlations within groups.
    cors : tuple of str
        Labels of the correlations that determine all others; one empty label where there is one.
    arms : tuple of str
        Labels of the arms; one empty label where there is one set of correlations.
    """

    scales: tuple[str, ...] = ("",)
    powers: tuple[str, ...] = ()
    correlation: Correlation | None = None
    cors: tuple[str, ...] = ()
    arms: tuple[str, ...] = ("",)

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates."""
        return 0 if self.correlation is None else self.correlation.n_cors

    @property
    def n_shape(self) -> int:
        """Number r of parameters beside the scale."""
        return len(self.scales) - 1 + len(self.powers) + self.n_cors

    @property
    def sd_names(self) -> list[str]:
        """Names of the standard deviations in tables: ``sigma`` or ``sigma[stratum]``."""
        return [_bracketed("sigma", label) for label in self.scales]

    @property
    def cor_names(self) -> list[str]:
        """Names of the correlations in tables."""
        return [_bracketed("cor_residual", label) for label in self.cors]

    @property
    def prior_names(self) -> list[str]:
        """Names of what has a prior: correlations have one per arm."""
        arms = self.arms if self.n_cors else ()
        own = [_bracketed("cor_residual", label) for label in arms]
        return [*self.sd_names, *self.powers, *own]

    @cached_property
    def plain(self) -> bool:
        """Whether R is sigma^2 times the inverse weights."""
        return self.n_shape == 0 and self.correlation is None

    def relative(self, x: Array) -> tuple[Array, Array]:
        """Scale (S,) and shapes (S, r) at coordinates: m log sds, powers, correlations."""
        m = len(self.scales)
        first = np.clip(x[:, 0], -LARGEST_LOG, LARGEST_LOG)
        ratios = np.clip(x[:, 1:m] - x[:, :1], -LARGEST_LOG, LARGEST_LOG)
        return np.exp(first), np.concatenate([ratios, x[:, m:]], axis=1)

    def coordinates(self, sigma: Array, shapes: Array) -> Array:
        """Inverse (S, 1 + r) of :meth:`relative`."""
        log_sigma, m = np.log(sigma)[:, None], len(self.scales)
        return np.concatenate(
            [log_sigma, shapes[:, : m - 1] + log_sigma, shapes[:, m - 1 :]], axis=1
        )

    def sds(self, sigma: Array, shapes: Array) -> Array:
        """Standard deviations (S, m)."""
        ratios = np.exp(shapes[:, : len(self.scales) - 1])
        return sigma[:, None] * np.concatenate([np.ones((len(sigma), 1)), ratios], axis=1)

    def powers_of(self, shapes: Array) -> Array:
        """Coefficients (S, q) of covariates."""
        m = len(self.scales) - 1
        return shapes[:, m : m + len(self.powers)]

    def from_natural(self, sds: Array, powers: Array, cors: Array) -> tuple[Array, Array]:
        """Scale (S,) and shapes (S, r) of standard deviations, powers and correlations."""
        with np.errstate(divide="ignore"):
            ratios = np.log(sds[:, 1:]) - np.log(sds[:, :1])
        z = cors if self.correlation is None else self.correlation.from_correlations(cors)
        return sds[:, 0], np.concatenate([ratios, powers, z], axis=1)

    def natural(self, sigma: Array, shapes: Array) -> tuple[Array, Array, Array]:
        """Standard deviations (S, m), powers (S, q), and correlations (S, n_cors).

        The correlations are those that determine all others.
        """
        z, sds = self.cors_of(shapes), self.sds(sigma, shapes)
        cors = z if self.correlation is None else self.correlation.correlations(z)
        return sds, self.powers_of(shapes), cors

    def report(self, sigma: float, shape: Array) -> tuple[Array, Array]:
        """Parameters as estimates report them, and their Jacobian by (log sigma, shape).

        They are (1 + r,): logs of the standard deviations, powers, inverse hyperbolic tangents of
        the correlations that determine all others.
        """
        sds = self.sds(np.array([sigma]), shape[None])[0]
        m, size = len(sds), 1 + self.n_shape
        values, jacobian = np.append(np.log(sds), shape[m - 1 :]), np.eye(size)
        jacobian[:m, 0] = 1.0
        if self.correlation is not None:
            z, place = shape[len(shape) - self.n_cors :], size - self.n_cors
            shifts = STEP * np.eye(self.n_cors)
            ahead, behind = (
                np.arctanh(self.correlation.correlations(z + s)) for s in (shifts, -shifts)
            )
            values[place:] = np.arctanh(self.correlation.correlations(z[None])[0])
            jacobian[place:, place:] = (ahead - behind).T / (2.0 * STEP)
        return values, jacobian

    def isolated(self, place: int, shape: Array) -> tuple[Residual, Array, int] | None:
        """The same at a shape (r,) with a correlation as a coordinate of its own, if there is."""
        start = self.n_shape - self.n_cors
        found = self.correlation and self.correlation.isolated(place, shape[start:])
        if not found:
            return None
        law, z, at = found
        return replace(self, correlation=law), np.append(shape[:start], z), start + at

    def cors_of(self, shapes: Array) -> Array:
        """Correlation coordinates (S, n_cors)."""
        return shapes[:, shapes.shape[1] - self.n_cors :]

    def row_sds(self, log_sd: Array, sigma: Array, shapes: Array) -> Array:
        """Standard deviations (S, n) of residuals by coefficients (n, m + q), without weights."""
        width = log_sd.shape[1] - 1
        return sigma[:, None] * np.exp(shapes[:, :width] @ log_sd[:, 1:].T)

    def covariance(self, rows: ResidualRows, sigma: Array, shapes: Array) -> sp.csr_array:
        """R (n, n) of rows without weights, its mean over the points."""
        values, row, col = self.covariance_entries(rows, sigma, shapes)
        return sp.csr_array((values.mean(axis=0), (row, col)), shape=(rows.n, rows.n))

    def covariance_entries(
        self, rows: ResidualRows, sigma: Array, shapes: Array
    ) -> tuple[Array, Indices, Indices]:
        """Entries (S, M) of R without weights that are not always zero, their rows and columns."""
        sds, every = self.row_sds(rows.log_sd, sigma, shapes), np.arange(rows.n)
        if self.correlation is None or rows.group is None:
            return sds**2, every, every
        z, pieces = self.cors_of(shapes), []
        for own in rows.groups():
            block = self.correlation.matrix(z, rows.take(own))
            block *= sds[:, own, None] * sds[:, None, own]
            at = np.broadcast_to(own, (len(own), len(own)))
            pieces.append((block.reshape(len(sds), -1), at.T.ravel(), at.ravel()))
        values, row, col = zip(*pieces, strict=True)
        return np.concatenate(values, axis=1), np.concatenate(row), np.concatenate(col)

    def bind(self, rows: ResidualRows) -> BoundResidual:
        """The relative precision matrix of some rows."""
        log_sds, (row_kind,) = distinct_rows([rows.log_sd])
        bound = None if self.correlation is None else self.correlation.bind(rows)
        every = np.arange(rows.n)
        ties = Entries(rows=every, cols=every, kinds=np.zeros(rows.n, dtype=np.intp), size=1)
        ties = ties if bound is None else bound.entries
        triples = [ties.kinds, row_kind[ties.rows], row_kind[ties.cols]]
        kinds, parts = distinct(triples)
        return BoundResidual(
            log_sds=log_sds,
            counts=np.bincount(row_kind, minlength=len(log_sds)).astype(float),
            entries=Entries(rows=ties.rows, cols=ties.cols, kinds=kinds, size=len(parts[0])),
            parts=(parts[0], parts[1], parts[2]),
            correlation=bound,
            structure=self,
        )


def _bracketed(name: str, label: str) -> str:
    return f"{name}[{label}]" if label else name


PLAIN = Residual()
"""Independent residuals of one variance."""


def distinct(columns: Sequence[Indices]) -> tuple[Indices, tuple[Indices, ...]]:
    """Code (n,) of each combination of nonnegative integers, and the combinations' columns."""
    code = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        code = code * (int(column.max(initial=0)) + 1) + column
        code = np.unique(code, return_inverse=True)[1].ravel()
    first = np.unique(code, return_index=True)[1]
    return code.astype(np.intp), tuple(np.asarray(column)[first] for column in columns)


def distinct_rows[T: Any](tables: Sequence[NDArray[T]]) -> tuple[NDArray[T], list[Indices]]:
    """Distinct rows of tables, in lexicographic order, and the place of each row of each table."""
    both = np.concatenate(tables)
    order = np.lexsort(both.T[::-1])  # many times faster than unique() by rows
    both = both[order]
    new = np.ones(len(both), dtype=bool)
    new[1:] = np.any(both[1:] != both[:-1], axis=1)
    place = np.empty(len(both), dtype=np.intp)
    place[order] = np.cumsum(new) - 1
    ends = np.cumsum([len(table) for table in tables])[:-1]
    return both[new], np.split(place, ends)


# --- correlation matrices that are inverted group by group ---


def blocks_of_groups[A: NDArray[Any]](
    groups: Sequence[Indices], kind_of: Callable[[Indices], tuple[int, A]]
) -> tuple[list[tuple[int, A, int, slice]], Entries]:
    """Dense blocks of groups, of which those of one kind share the values of their inverse.

    Parameters
    ----------
    groups : sequence of ndarray of int
        The rows of each group.
    kind_of : callable
        Arm, and an array that tells the kinds of an arm apart, of the rows of a group in this
        order.

    Returns
    -------
    kinds : list of (arm, array, count, values)
        With the number of groups, and the places of the lower triangle of their inverse, row by
        row, among the values of the entries.
    entries : Entries
    """
    members: dict[tuple[int, bytes], list[Indices]] = {}
    arrays: dict[tuple[int, bytes], A] = {}
    for rows in groups:
        arm, array = kind_of(rows)
        members.setdefault((arm, array.tobytes()), []).append(rows)
        arrays[arm, array.tobytes()] = array
    kinds, places, start = [], [], 0
    for key, found in members.items():
        block = np.array(found)  # (groups, o): the rows of each group
        lower, upper = np.tril_indices(block.shape[1])
        pairs = np.stack([block[:, lower], block[:, upper]])
        kind = np.broadcast_to(start + np.arange(len(lower)), pairs.shape[1:])
        places.append((pairs.max(axis=0).ravel(), pairs.min(axis=0).ravel(), kind.ravel()))
        kinds.append((key[0], arrays[key], len(block), slice(start, start + len(lower))))
        start += len(lower)
    row, col, kind = (np.concatenate(part) for part in zip(*places, strict=True))
    return kinds, Entries(rows=row, cols=col, kinds=kind, size=start)


def inverses(omega: Array) -> tuple[Array, Array]:
    """Inverses (..., o, o) and log determinants (...,) of matrices, these NaN where singular."""
    sign, log_det = np.linalg.slogdet(omega)
    singular = sign <= 0
    if singular.any():
        omega = np.where(singular[..., None, None], np.eye(omega.shape[-1]), omega)
        log_det = np.where(singular, np.nan, log_det)
    return np.linalg.inv(omega), log_det


def by_matrix(inverse: Array, by_value: Array, by_log_det: Array | float) -> Array:
    """Derivatives (..., o, o) by matrices Omega from those by the lower triangles of inverses N.

    As ``dN = -N dOmega N`` and ``d log |N| = -tr(N dOmega)``; values off the diagonal stand twice.
    """
    rows, cols = np.tril_indices(inverse.shape[-1])
    half = np.zeros_like(inverse)
    half[..., rows, cols] = 0.5 * by_value
    weights = np.asarray(by_log_det)[..., None, None]
    return -inverse @ (half + half.swapaxes(-1, -2)) @ inverse - weights * inverse
