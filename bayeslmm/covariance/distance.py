"""Residuals of a group whose correlation falls with their distance in time or space."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.residual import (
    BoundCorrelation,
    Entries,
    ResidualRows,
    blocks_of_groups,
    by_matrix,
    distinct,
    distinct_rows,
    inverses,
)

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

Decay = Literal["ar1", "car1", "exp", "gau"]

SAME_DIGITS = 10
"""Digits to which distances, in units of the typical one, agree that are taken for equal."""

LARGEST_Z = 18.0
"""Coordinates beyond this are correlations of one in double precision."""


@dataclass(frozen=True)
class OverDistance:
    """A correlation that is a function of distance.

    It is ``rho ** d`` for "ar1", with distances in whole steps and rho in (-1, 1), for "car1" and,
    over coordinates, "exp", with rho in (0, 1); ``rho ** (d ** 2)`` for "gau". Distances are in
    multiples of `unit`.

    Attributes
    ----------
    decay : {"ar1", "car1", "exp", "gau"}
    unit : float
        The distance at which the correlation is rho.
    n_arms : int
        Number of sets of parameters.
    """

    decay: Decay
    unit: float = 1.0
    n_arms: int = 1

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates, one per arm."""
        return self.n_arms

    @property
    def signed(self) -> bool:
        """Whether the correlation can be negative."""
        return self.decay == "ar1"

    def rho(self, z: Array) -> Array:
        """Correlations at a distance of one unit, from coordinates of the same shape."""
        z = np.clip(z, -LARGEST_Z, LARGEST_Z)
        return np.tanh(z) if self.signed else 1.0 / (1.0 + np.exp(-z))

    def rho_slope(self, z: Array) -> Array:
        """Derivatives of :meth:`rho`."""
        rho = self.rho(z)
        return 1.0 - rho**2 if self.signed else rho * (1.0 - rho)

    def coordinates(self, rho: Array) -> Array:
        """Inverse of :meth:`rho`, infinite at its limits."""
        with np.errstate(divide="ignore"):
            return np.arctanh(rho) if self.signed else np.log(rho) - np.log1p(-rho)

    def correlations(self, z: Array) -> Array:
        """The correlations (S, n_cors) at a distance of one unit."""
        return self.rho(z)

    def from_correlations(self, correlations: Array) -> Array:
        """Inverse (S, n_cors) of :meth:`correlations`."""
        return self.coordinates(correlations)

    @property
    def nlme_name(self) -> str:
        """Phi of autoregressions, the range of fields."""
        return "range" if self.decay in ("exp", "gau") else "Phi"

    def nlme(self, correlations: Array) -> Array:
        """Correlations at distance one; or ranges, at which that of a field is 1 / e."""
        if self.decay in ("ar1", "car1"):
            return np.asarray(correlations ** (1.0 / self.unit))
        power = 1.0 if self.decay == "exp" else 0.5
        with np.errstate(divide="ignore"):
            return np.asarray(self.unit * (-np.log(correlations)) ** -power)

    def from_nlme(self, parameters: Array) -> Array:
        """Inverse (S, n_cors) of :meth:`nlme`, for nonnegative correlations."""
        if self.decay in ("ar1", "car1"):
            return np.asarray(np.sign(parameters) * np.abs(parameters) ** self.unit)
        power = 1.0 if self.decay == "exp" else 2.0
        return np.asarray(np.exp(-((self.unit / parameters) ** power)))

    @property
    def separable(self) -> bool:
        """Whether each correlation is a function of one coordinate."""
        return True

    def isolated(self, place: int, z: Array) -> tuple[OverDistance, Array, int]:
        """Itself: each correlation is a function of one coordinate."""
        return self, z, place

    @property
    def on_matrix(self) -> bool:
        """Whether the prior is on the whole matrix: it is on the correlation."""
        return False

    @property
    def lowest(self) -> float:
        """Lower end of the range of the correlation."""
        return -1.0 if self.signed else 0.0

    def parameters(self, z: Array) -> Array:
        """The correlation, which has the prior."""
        return self.rho(z)

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative of the correlation by its coordinate."""
        return self.rho_slope(z)

    def from_parameters(self, parameters: Array) -> Array:
        """Inverse of :meth:`parameters`."""
        return self.coordinates(parameters)

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (S,) of the correlations by the coordinates (S, n_cors)."""
        with np.errstate(divide="ignore"):
            return np.log(self.rho_slope(z)).sum(axis=-1)

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (n_cors,) of :meth:`log_jacobian`."""
        rho = self.rho(z)
        return -2.0 * rho if self.signed else 1.0 - 2.0 * rho

    def exponent(self, distance: Array) -> Array:
        """The power of rho at a distance."""
        steps = np.round(distance / self.unit, SAME_DIGITS)
        return steps**2 if self.decay == "gau" else steps

    def matrix(self, z: Array, rows: ResidualRows) -> Array:
        """Correlation matrices (S, n, n) of rows of one group at coordinates (S, n_cors)."""
        power = self.exponent(_distances(rows))
        return self.rho(z)[:, rows.arm[0], None, None] ** power

    def bind(self, rows: ResidualRows) -> BoundCorrelation:
        """The inverse correlation matrix of some rows."""
        if self.decay in ("ar1", "car1"):
            return BoundChain.of(self, rows)
        return BoundField.of(self, rows)


def _distances(rows: ResidualRows) -> Array:
    """Euclidean distances (n, n)."""
    assert rows.place is not None
    place = rows.place.reshape(rows.n, -1)
    return np.sqrt(np.sum((place[:, None] - place[None]) ** 2, axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class BoundChain:
    """The tridiagonal inverse of correlations along a line.

    A row at gaps of correlation a and b from its neighbours has ``1 / (1 - a^2) + b^2 / (1 - b^2)``
    on the diagonal, where a missing neighbour has correlation zero.

    Attributes
    ----------
    correlation : OverDistance
        The structure.
    gaps : ndarray (m,)
        Distinct powers of rho between neighbours; the first is of none and without meaning.
    gap_arm : ndarray of int (m,)
        Arm of each.
    gap_count : ndarray (m,)
        How often each occurs.
    before, after : ndarray of int (n_diagonal,)
        The gaps of each kind of row.
    entries : Entries
        Kinds of rows, then gaps.
    """

    correlation: OverDistance
    gaps: Array
    gap_arm: Indices
    gap_count: Array
    before: Indices
    after: Indices
    entries: Entries

    @classmethod
    def of(cls, correlation: OverDistance, rows: ResidualRows) -> BoundChain:
        """Find the gaps of some rows."""
        assert rows.group is not None and rows.place is not None
        order = np.lexsort((rows.place, rows.group))
        group, place, arm = rows.group[order], rows.place[order], rows.arm[order]
        joined = group[1:] == group[:-1]
        power = correlation.exponent(np.diff(place)[joined])
        pairs, own = np.unique(
            np.column_stack([arm[1:][joined], power]), axis=0, return_inverse=True
        )
        gap = np.zeros(len(order) + 1, dtype=np.intp)  # before each row; the last after the last
        gap[1:-1][joined] = own.ravel() + 1
        kinds, (before, after) = distinct([gap[:-1], gap[1:]])
        first, second = order[:-1][joined], order[1:][joined]
        size = len(before)
        entries = Entries(
            rows=np.concatenate([order, np.maximum(first, second)]),
            cols=np.concatenate([order, np.minimum(first, second)]),
            kinds=np.concatenate([kinds, size + own.ravel()]),
            size=size + len(pairs),
        )
        counts = np.bincount(own.ravel(), minlength=len(pairs)).astype(float)
        return cls(
            correlation=correlation,
            gaps=np.append(1.0, pairs[:, 1]),
            gap_arm=np.append(0, pairs[:, 0]).astype(np.intp),
            gap_count=np.append(0.0, counts),
            before=before,
            after=after,
            entries=entries,
        )

    @property
    def diagonal(self) -> NDArray[np.bool_]:
        """Kinds of rows come first."""
        return np.arange(self.entries.size) < len(self.before)

    def under(self, correlation: OverDistance) -> Self:
        """The same rows under another arrangement of the coordinates."""
        return replace(self, correlation=correlation)

    def joined(self, other: BoundChain) -> tuple[BoundChain, Indices, Indices]:
        """Both sets of rows, and the kinds of entries there of one and the other."""
        both = (self, other)
        pairs, own = distinct_rows([np.column_stack([b.gap_arm, b.gaps])[1:] for b in both])
        gap = [np.append(0, 1 + at) for at in own]
        sides, diagonal = distinct_rows(
            [np.column_stack([at[b.before], at[b.after]]) for b, at in zip(both, gap, strict=True)]
        )
        counts = np.zeros(1 + len(pairs))
        for b, at in zip(both, gap, strict=True):
            counts[at] += b.gap_count
        law = replace(
            self,
            gaps=np.append(1.0, pairs[:, 1]),
            gap_arm=np.append(0, pairs[:, 0]).astype(np.intp),
            gap_count=counts,
            before=sides[:, 0],
            after=sides[:, 1],
            entries=Entries.nowhere(len(sides) + len(pairs)),
        )
        places = zip(diagonal, own, strict=True)
        first, second = (np.concatenate([on, len(sides) + off]) for on, off in places)
        return law, first, second

    def precision(self, z: Array) -> tuple[Array, Array]:
        """Values (S, K) of C^-1 and ``log |C^-1|`` (S,) at coordinates (S, n_cors)."""
        r, left = self._at(z)
        diagonal = 1.0 / left[:, self.before] + r[:, self.after] ** 2 / left[:, self.after]
        values = np.concatenate([diagonal, -r[:, 1:] / left[:, 1:]], axis=1)
        return values, -np.log(left[:, 1:]) @ self.gap_count[1:]

    def _at(self, z: Array) -> tuple[Array, Array]:
        """Correlations r (S, m) across the gaps, and ``1 - r^2``."""
        rho = self.correlation.rho(z)[:, self.gap_arm]
        r = rho**self.gaps
        r[:, 0] = 0.0
        log_rho = np.log(np.maximum(np.abs(rho), np.finfo(float).tiny))
        left = -np.expm1(2.0 * self.gaps * log_rho)
        left[:, 0] = 1.0
        return r, left

    def pull_back(self, z: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (n_cors,) at z (n_cors,) from those by values (K,) and log determinant."""
        r, left = (part[0] for part in self._at(z[None]))
        size, m = len(self.before), len(self.gaps)
        by_diagonal, by_gap = by_value[:size], np.append(0.0, by_value[size:])
        shared = 2.0 * r / left**2  # of 1 / (1 - r^2) and of r^2 / (1 - r^2)
        by_r = np.bincount(self.before, by_diagonal, minlength=m) * shared
        by_r += np.bincount(self.after, by_diagonal, minlength=m) * shared
        by_r -= by_gap * (1.0 + r**2) / left**2
        by_r += by_log_det * self.gap_count * 2.0 * r / left
        rho = self.correlation.rho(z)[self.gap_arm]
        by_rho = by_r * self.gaps * rho ** (self.gaps - 1.0)
        total = np.bincount(self.gap_arm[1:], by_rho[1:], minlength=len(z))
        return total * self.correlation.rho_slope(z)


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """Groups of one arm whose rows have the same distances.

    Attributes
    ----------
    arm : int
    power : ndarray (o, o)
        Powers of rho.
    count : int
        Number of groups.
    values : slice
        Places of the lower triangle of the inverse, row by row, among the K values.
    """

    arm: int
    power: Array
    count: int
    values: slice


@dataclass(frozen=True, slots=True, eq=False)
class BoundField:
    """The inverse of correlations that fall with distance, group by group.

    Attributes
    ----------
    correlation : OverDistance
        The structure.
    fields : tuple of Field
        The distinct matrices of distances.
    entries : Entries
        Where the inverse is not zero.
    """

    correlation: OverDistance
    fields: tuple[Field, ...]
    entries: Entries

    @classmethod
    def of(cls, correlation: OverDistance, rows: ResidualRows) -> BoundField:
        """Find the distances within the groups of some rows."""

        def kind_of(group: Indices) -> tuple[int, Array]:
            return int(rows.arm[group[0]]), correlation.exponent(_distances(rows.take(group)))

        kinds, entries = blocks_of_groups(rows.groups(), kind_of)
        return cls(correlation, tuple(Field(*kind) for kind in kinds), entries)

    @property
    def diagonal(self) -> NDArray[np.bool_]:
        """Which kinds of entries (K,) are on the diagonal."""
        result = np.zeros(self.entries.size, dtype=bool)
        for field in self.fields:
            rows, cols = np.tril_indices(len(field.power))
            result[field.values] = rows == cols
        return result

    def under(self, correlation: OverDistance) -> Self:
        """The same rows under another arrangement of the coordinates."""
        return replace(self, correlation=correlation)

    def joined(self, other: BoundField) -> tuple[BoundField, Indices, Indices]:
        """Both sets of rows, and the kinds of entries there of one and the other."""
        found: dict[tuple[int, bytes], Field] = {}
        size, places = 0, []
        for bound in (self, other):
            place = np.empty(bound.entries.size, dtype=np.intp)
            for field in bound.fields:
                key = (field.arm, field.power.tobytes())
                width = field.values.stop - field.values.start
                known = found.get(key)
                if known is None:
                    known = replace(field, count=0, values=slice(size, size + width))
                    size += width
                found[key] = replace(known, count=known.count + field.count)
                place[field.values] = np.arange(known.values.start, known.values.stop)
            places.append(place)
        law = replace(self, fields=tuple(found.values()), entries=Entries.nowhere(size))
        return law, places[0], places[1]

    def precision(self, z: Array) -> tuple[Array, Array]:
        """Values (S, K) of C^-1 and ``log |C^-1|`` (S,) at coordinates (S, n_cors)."""
        rho = self.correlation.rho(z)
        values = np.empty((len(z), self.entries.size))
        log_det = np.zeros(len(z))
        for field in self.fields:
            omega = rho[:, field.arm, None, None] ** field.power
            inverse, own = inverses(omega)
            values[:, field.values] = inverse[:, *np.tril_indices(len(field.power))]
            log_det -= field.count * own
        return values, log_det

    def pull_back(self, z: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (n_cors,) at z (n_cors,) from those by values (K,) and log determinant."""
        rho = self.correlation.rho(z)
        total = np.zeros(len(z))
        for field in self.fields:
            own = rho[field.arm]
            inverse = inverses(own ** field.power[None])[0][0]
            slope = by_matrix(inverse, by_value[field.values], by_log_det * field.count)
            with np.errstate(divide="ignore", invalid="ignore"):
                by_rho = np.where(field.power > 0, field.power * own ** (field.power - 1.0), 0.0)
            total[field.arm] += np.sum(slope * by_rho)
        return total * self.correlation.rho_slope(z)
