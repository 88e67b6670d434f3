"""Residuals correlated over the occasions of a group, by any structure of their correlations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.residual import (
    Entries,
    ResidualRows,
    blocks_of_groups,
    by_matrix,
    distinct_rows,
    inverses,
)
from bayeslmm.covariance.structure import Structure

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class OverOccasions:
    """A correlation matrix over m occasions, of which a group may miss some.

    Attributes
    ----------
    structure : Structure
        Which correlation matrices (m, m) there are.
    n_arms : int
        Number of sets of parameters.
    order : tuple of int or None
        The occasion that each row of the structure's matrices stands for, where not in order.
    """

    structure: Structure
    n_arms: int = 1
    order: tuple[int, ...] | None = None

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates, arm after arm."""
        return self.n_arms * self.structure.n_cors

    def bind(self, rows: ResidualRows) -> BoundOccasions:
        """The inverse correlation matrix of some rows."""
        return BoundOccasions.of(self, rows)

    def factors(self, z: Array) -> Array:
        """Cholesky factors (..., n_arms, m, m) at coordinates (..., n_cors)."""
        return self._by_occasion(self.structure.cholesky(z.reshape(*z.shape[:-1], self.n_arms, -1)))

    def _by_occasion(self, rows: Array) -> Array:
        """Rows (..., m, m) of the structure's matrices in the order of occasions."""
        return rows if self.order is None else rows[..., np.argsort(self.order), :]

    def by_structure(self, rows: Array) -> Array:
        """Rows (..., m, m) of occasions in the order of the structure's matrices."""
        return rows if self.order is None else rows[..., self.order, :]

    def isolated(self, place: int, z: Array) -> tuple[OverOccasions, Array, int] | None:
        """Itself where each correlation is a coordinate; an order from the pair on without pattern.

        The first two occasions of an unstructured matrix have a coordinate of their own.
        """
        if self.separable:
            return self, z, place
        if not self.structure.mixes or self.order is not None:
            return None
        n, m = self.structure.n_cors, self.structure.n_coefs
        arm, pair = place // n, sorted(self.structure.pairs[place % n])
        order = (*pair, *(i for i in range(m) if i not in pair))
        lower = self.factors(z)[..., order, :]
        omega = lower @ lower.swapaxes(-1, -2)
        rows, cols = np.array(self.structure.pairs, dtype=np.intp).T
        moved = self.structure.from_correlations(omega[..., rows, cols]).ravel()
        return replace(self, order=order), moved, arm * n + self.structure.pairs.index((1, 0))

    def matrix(self, z: Array, rows: ResidualRows) -> Array:
        """Correlation matrices (S, n, n) of rows of one group at coordinates (S, n_cors)."""
        assert rows.place is not None
        place, lower = rows.place.astype(np.intp), self.factors(z)[:, rows.arm[0]]
        if place.max(initial=0) < self.structure.n_coefs:
            lower = lower[:, place]
            return lower @ lower.swapaxes(1, 2)
        # more rows than any group of the data had, which rows without occasions can be: all alike
        rho = np.sum(lower[:, 0] * lower[:, 1], axis=1)[:, None, None]
        return np.where(np.eye(rows.n, dtype=bool), 1.0, rho)

    def correlations(self, z: Array) -> Array:
        """The correlations (S, n_cors) that determine all others, arm after arm."""
        lower = self.factors(z)
        omega = lower @ lower.swapaxes(-1, -2)
        rows, cols = np.array(self.structure.pairs, dtype=np.intp).reshape(-1, 2).T
        return np.clip(omega[..., rows, cols], -1.0, 1.0).reshape(*z.shape[:-1], -1)

    def from_correlations(self, correlations: Array) -> Array:
        """Inverse (S, n_cors) of :meth:`correlations`."""
        parts = correlations.reshape(*correlations.shape[:-1], self.n_arms, -1)
        return self.structure.from_correlations(parts).reshape(correlations.shape)

    @property
    def nlme_name(self) -> str:
        """Rho where there is one correlation."""
        return "Rho" if self.structure.n_cors == 1 else "cor"

    def nlme(self, correlations: Array) -> Array:
        """The correlations themselves."""
        return correlations

    def from_nlme(self, parameters: Array) -> Array:
        """Inverse of :meth:`nlme`."""
        return parameters

    @property
    def separable(self) -> bool:
        """Whether each correlation is a function of one coordinate."""
        return self.structure.n_cors == 1 or (self.structure.direct and not self.structure.mixes)

    @property
    def on_matrix(self) -> bool:
        """Whether the prior is on the whole matrix."""
        return self.structure.mixes

    @property
    def lowest(self) -> float:
        """Lower end of the range of a parameter."""
        return self._pattern.lowest

    def parameters(self, z: Array) -> Array:
        """Parameters (S, n) of the pattern of one arm."""
        return self._pattern.parameters(self.structure.cholesky(z))

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative (n,) of each parameter by its coordinate."""
        return self.structure.parameter_slopes(z)

    def from_parameters(self, parameters: Array) -> Array:
        """Inverse (S, n) of :meth:`parameters`."""
        return self._pattern.coordinates_at(parameters)

    @property
    def _pattern(self) -> Pattern:
        assert isinstance(self.structure, Pattern)
        return self.structure

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (S,) of the correlations by the coordinates (S, n_cors)."""
        parts = self.structure.log_jacobian(z.reshape(*z.shape[:-1], self.n_arms, -1))
        return np.asarray(parts).sum(axis=-1)

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (n_cors,) of :meth:`log_jacobian`."""
        return self.structure.log_jacobian_slope(z.reshape(self.n_arms, -1)).ravel()


@dataclass(frozen=True, slots=True, eq=False)
class Subsets:
    """Sets of o occasions on which groups of one arm were seen.

    Attributes
    ----------
    arms : ndarray of int (P,)
    occasions : ndarray of int (P, o)
        In increasing order.
    counts : ndarray (P,)
        Numbers of groups.
    values : ndarray of int (P, o (o + 1) / 2)
        Places of the lower triangles of the inverses, row by row, among the K values.
    """

    arms: Indices
    occasions: Indices
    counts: Array
    values: Indices

    @property
    def places(self) -> tuple[Indices, Indices, Indices]:
        """Arm, row and column of each entry (P, o, o) in the matrices of all occasions."""
        at = self.occasions
        return self.arms[:, None, None], at[:, :, None], at[:, None, :]


@dataclass(frozen=True, slots=True, eq=False)
class BoundOccasions:
    """The inverse of the correlation matrix of rows, by the occasions that go together.

    Attributes
    ----------
    correlation : OverOccasions
        The structure.
    subsets : tuple of Subsets
        Those of each size.
    entries : Entries
        Where the inverse is not zero.
    """

    correlation: OverOccasions
    subsets: tuple[Subsets, ...]
    entries: Entries

    @classmethod
    def of(cls, correlation: OverOccasions, rows: ResidualRows) -> BoundOccasions:
        """Find the occasions of the groups of some rows."""
        assert rows.place is not None
        occasion = rows.place.astype(np.intp)

        def kind_of(group: Indices) -> tuple[int, Indices]:
            return int(rows.arm[group[0]]), occasion[group]

        kinds, entries = blocks_of_groups(rows.groups(), kind_of)
        sizes = np.array([len(occasions) for _, occasions, _, _ in kinds])
        subsets = []
        for size in np.unique(sizes):
            arms, occasions, counts, values = zip(
                *(kinds[i] for i in np.flatnonzero(sizes == size)), strict=True
            )
            places = [np.arange(own.start, own.stop) for own in values]
            subsets.append(
                Subsets(
                    np.array(arms, dtype=np.intp),
                    np.array(occasions, dtype=np.intp),
                    np.array(counts, dtype=float),
                    np.array(places, dtype=np.intp),
                )
            )
        return cls(correlation, tuple(subsets), entries)

    @property
    def diagonal(self) -> NDArray[np.bool_]:
        """Which kinds of entries (K,) are on the diagonal."""
        result = np.zeros(self.entries.size, dtype=bool)
        for part in self.subsets:
            rows, cols = np.tril_indices(part.occasions.shape[1])
            result[part.values] = rows == cols
        return result

    def under(self, correlation: OverOccasions) -> Self:
        """The same rows under another arrangement of the coordinates."""
        return replace(self, correlation=correlation)

    def joined(self, other: BoundOccasions) -> tuple[BoundOccasions, Indices, Indices]:
        """Both sets of rows, and the kinds of entries there of one and the other."""
        both = (self, other)
        places = [np.empty(bound.entries.size, dtype=np.intp) for bound in both]
        subsets: list[Subsets] = []
        size = 0
        for o in sorted({part.occasions.shape[1] for bound in both for part in bound.subsets}):
            parts = [[p for p in b.subsets if p.occasions.shape[1] == o] for b in both]
            tables = [np.vstack([np.empty((0, 1 + o), np.intp), *map(_table, p)]) for p in parts]
            rows, at = distinct_rows(tables)
            width = o * (o + 1) // 2
            values = size + np.arange(len(rows) * width).reshape(len(rows), width)
            counts = np.zeros(len(rows))
            for place, own, found in zip(places, parts, at, strict=True):
                for part in own:
                    counts[found] += part.counts
                    place[part.values] = values[found]
            subsets.append(Subsets(rows[:, 0], rows[:, 1:], counts, values))
            size += len(rows) * width
        law = replace(self, subsets=tuple(subsets), entries=Entries.nowhere(size))
        return law, places[0], places[1]

    def precision(self, z: Array) -> tuple[Array, Array]:
        """Values (S, K) of C^-1 and ``log |C^-1|`` (S,) at coordinates (S, n_cors)."""
        lower = self.correlation.factors(z)
        omega = lower @ lower.swapaxes(-1, -2)
        values = np.empty((len(z), self.entries.size))
        log_det = np.zeros(len(z))
        for part in self.subsets:
            inverse, own = inverses(omega[:, *part.places])
            rows, cols = np.tril_indices(part.occasions.shape[1])
            values[:, part.values] = inverse[..., rows, cols]
            log_det -= own @ part.counts
        return values, log_det

    def pull_back(self, z: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (n_cors,) at z (n_cors,) from those by values (K,) and log determinant."""
        lower = self.correlation.factors(z)
        omega = lower @ lower.swapaxes(-1, -2)
        by_omega = np.zeros_like(omega)
        for part in self.subsets:
            inverse = inverses(omega[part.places])[0]
            slope = by_matrix(inverse, by_value[part.values], by_log_det * part.counts)
            np.add.at(by_omega, part.places, slope)
        by_lower = np.tril(self.correlation.by_structure(2.0 * by_omega @ lower))
        parts = z.reshape(len(omega), -1)
        return self.correlation.structure.pull_back(parts, by_lower).ravel()


def _table(part: Subsets) -> Indices:
    """Arm and occasions of each subset."""
    return np.column_stack([part.arms, part.occasions])
