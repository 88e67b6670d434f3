"""Sums over pairs of rows that a residual precision matrix ties, by the kind of its entry.

An entry of a cross-product is a linear function of the K values of the precision matrix: the sum
over its kinds of value times a sum over pairs of rows. These sums are of parts of the data: they
add, and a change of basis is the same for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.residual import BoundResidual, Entries
from bayeslmm.data.memberships import Slot
from bayeslmm.likelihood.crossprod import Basis, Coupling, RandomColumns, WorkingProducts

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

AT_ONCE = 1 << 22
"""Products of pairs of rows held at once: 32 MB."""


def at_levels(maps: Array, levels: Indices) -> Array:
    """Maps of levels, or the one of all."""
    return maps if maps.ndim == 2 else maps[levels]


class TiedSums(NamedTuple):
    """Sums by cell and kind of entry, those that are there.

    Attributes
    ----------
    first, second : ndarray of int (m,)
        Levels of the cell; zero where there is one or none.
    kind : ndarray of int (m,)
        Kind of the entries.
    sums : ndarray (m, a, b)
        Of products of a columns and b columns.
    """

    first: Indices
    second: Indices
    kind: Indices
    sums: Array

    @classmethod
    def joined(cls, parts: Sequence[TiedSums]) -> TiedSums:
        """Sum of parts, sorted by cell and kind."""
        first, second, kind, sums = (np.concatenate(own) for own in zip(*parts, strict=True))
        order = np.lexsort((kind, second, first))
        keys = np.stack([first, second, kind])[:, order]
        new = np.ones(len(order), dtype=bool)
        new[1:] = np.any(keys[:, 1:] != keys[:, :-1], axis=0)
        starts = np.flatnonzero(new)
        total = np.add.reduceat(sums[order], starts) if len(starts) else sums
        return cls(keys[0, starts], keys[1, starts], keys[2, starts], total)

    def where(self, chosen: NDArray[np.bool_]) -> TiedSums:
        """Some of them."""
        return TiedSums(
            self.first[chosen], self.second[chosen], self.kind[chosen], self.sums[chosen]
        )

    def of_kinds(self, places: Indices) -> TiedSums:
        """With the kinds at other places."""
        return self._replace(kind=places[self.kind])

    def of_levels(self, first: Indices, second: Indices | None) -> TiedSums:
        """With the levels at other places; `second` is None where there are no second ones."""
        return self._replace(
            first=first[self.first],
            second=self.second if second is None else second[self.second],
        )

    def ascending(self) -> TiedSums:
        """Cells of two levels of one grouping factor with the smaller level first."""
        turned = self.first > self.second
        if not turned.any():
            return self
        sums = self.sums.copy()
        sums[turned] = self.sums[turned].swapaxes(1, 2)
        return TiedSums(
            np.minimum(self.first, self.second),
            np.maximum(self.first, self.second),
            self.kind,
            sums,
        )

    def changed(self, left: Array, right: Array) -> TiedSums:
        """Of other columns: those on the left times `left` (a, c), on the right `right` (b, d).

        Each may be one for each level, (J, a, c).
        """
        left, right = at_levels(left, self.first), at_levels(right, self.second)
        return self._replace(sums=np.asarray(left.swapaxes(-1, -2) @ self.sums @ right))

    def cells(self, n_second: int) -> tuple[Indices, Indices, Indices]:
        """Levels of the distinct cells, in their order, and the cell of each sum."""
        codes = self.first.astype(np.int64) * n_second + self.second
        cells, place = np.unique(codes, return_inverse=True)
        first, second = np.divmod(cells, n_second)
        return first.astype(np.intp), second.astype(np.intp), place.ravel().astype(np.intp)

    def map(self, cell: Indices, n_cells: int, size: int) -> sp.csr_array:
        """The map (n_cells * a * b, K) from values to cross-products, with cells (m,)."""
        width = int(np.prod(self.sums.shape[1:]))
        rows = cell[:, None] * width + np.arange(width)
        cols = np.broadcast_to(self.kind[:, None], rows.shape)
        index = (rows.ravel(), cols.ravel())
        return sp.csr_array((self.sums.ravel(), index), shape=(n_cells * width, size))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TiedProducts:
    """The sums of all cross-products of some rows.

    Attributes
    ----------
    n_obs : int
        Number of rows.
    log_weights : float
        Sum of the log precision weights.
    law : BoundResidual
        Relative precision matrix of the rows, without weights.
    basis : Basis
        The working basis.
    fixed : TiedSums
        Of the columns of X and the response with themselves.
    random, mixed : tuple of TiedSums
        Of each grouping factor's columns with themselves, and with those of X and the response.
    couplings : mapping of (int, int) to TiedSums
        Of two grouping factors; of one twice, with cells of two levels, the smaller first.
    """

    n_obs: int
    log_weights: float
    law: BoundResidual
    basis: Basis
    fixed: TiedSums
    random: tuple[TiedSums, ...]
    mixed: tuple[TiedSums, ...]
    couplings: Mapping[tuple[int, int], TiedSums]

    @property
    def parts(self) -> tuple[TiedSums, ...]:
        """All sums."""
        return (self.fixed, *self.random, *self.mixed, *self.couplings.values())

    @property
    def n_numbers(self) -> int:
        """How many numbers they are."""
        return sum(part.sums.size + 3 * len(part.kind) for part in self.parts)

    def __add__(self, other: TiedProducts) -> TiedProducts:
        """Those of both sets of rows, of other groups, in one basis and with the same levels."""
        if not self.basis.equals(other.basis):
            raise ValueError("cross-products in different bases cannot be added")
        law, mine, theirs = self.law.joined(other.law)

        def both(one: TiedSums, two: TiedSums) -> TiedSums:
            return TiedSums.joined([one.of_kinds(mine), two.of_kinds(theirs)])

        return TiedProducts(
            n_obs=self.n_obs + other.n_obs,
            log_weights=self.log_weights + other.log_weights,
            law=law,
            basis=self.basis,
            fixed=both(self.fixed, other.fixed),
            random=tuple(map(both, self.random, other.random)),
            mixed=tuple(map(both, self.mixed, other.mixed)),
            couplings={
                pair: both(own, other.couplings[pair]) for pair, own in self.couplings.items()
            },
        )

    def untied(self, factors: Sequence[RandomColumns]) -> WorkingProducts:
        """Cross-products of the same rows as if residuals were independent with one variance."""
        chosen = self.law.diagonal
        counts = [factor.n_levels for factor in factors]
        couplings = []
        for (i, j), own in self.couplings.items():
            here = own.where(chosen[own.kind])
            if i != j or len(here.kind):
                first, second, cell = here.cells(counts[j])
                blocks = _summed(here.sums, cell, len(first))
                couplings.append(Coupling((i, j), first, second, blocks))

        def by_level(own: TiedSums, size: int) -> Array:
            here = own.where(chosen[own.kind])
            return _summed(here.sums, here.first, size)

        return WorkingProducts(
            n_obs=self.n_obs,
            log_weights=self.log_weights,
            fixed=by_level(self.fixed, 1)[0],
            random=tuple(map(by_level, self.random, counts)),
            mixed=tuple(map(by_level, self.mixed, counts)),
            couplings=tuple(couplings),
            structures=tuple(map(structure_of, factors)),
            relationships=tuple(factor.relationship for factor in factors),
            basis=self.basis,
        )

    def changed(self, basis: Basis, fixed: Array, random: Sequence[Array]) -> TiedProducts:
        """In another basis.

        Parameters
        ----------
        basis : Basis
        fixed : ndarray (p + 1, q + 1)
            New columns of X and the response by the old ones.
        random : sequence of ndarray (k, m) or (J, k, m)
            New columns of each grouping factor, or of each of its levels.
        """
        return replace(
            self,
            basis=basis,
            fixed=self.fixed.changed(fixed, fixed),
            random=tuple(
                s._replace(second=s.first).changed(a, a)._replace(second=s.second)
                for s, a in zip(self.random, random, strict=True)
            ),
            mixed=tuple(s.changed(a, fixed) for s, a in zip(self.mixed, random, strict=True)),
            couplings={
                (i, j): own.changed(random[i], random[j]) for (i, j), own in self.couplings.items()
            },
        )

    def of_levels(self, places: Sequence[Indices]) -> TiedProducts:
        """With the levels of each grouping factor at other places."""
        couplings = {
            (i, j): own.of_levels(places[i], places[j]) for (i, j), own in self.couplings.items()
        }
        return replace(
            self,
            random=tuple(s.of_levels(at, None) for s, at in zip(self.random, places, strict=True)),
            mixed=tuple(s.of_levels(at, None) for s, at in zip(self.mixed, places, strict=True)),
            couplings={
                (i, j): own.ascending() if i == j else own for (i, j), own in couplings.items()
            },
        )


def _summed(sums: Array, place: Indices, size: int) -> Array:
    result = np.zeros((size, *sums.shape[1:]))
    np.add.at(result, place, sums)
    return result


def tied_products(
    basis: Basis,
    columns: Array,
    slots: Sequence[Sequence[Slot]],
    law: BoundResidual,
    log_weights: float,
) -> TiedProducts:
    """The sums of rows.

    Parameters
    ----------
    basis : Basis
        The working basis of the columns.
    columns : ndarray (n, p + 1)
        Weighted columns of X and the response.
    slots : sequence of sequence of Slot
        Weighted covariates of each grouping factor, with the levels.
    law : BoundResidual
        Of these rows.
    log_weights : float
        Sum of the log precision weights.
    """
    ties = _Ties.of(law.entries)
    rows = [_SlotRows.of(own) for own in slots]
    random, mixed = [], []
    for own in rows:
        met = ties.between(len(columns), own.n_slots, own.n_slots)
        within = met.where(own.codes[met.first] == own.codes[met.second])
        random.append(within.sums(own.Z, own.Z, own.codes[within.first]))
        met = ties.between(len(columns), own.n_slots, 1)
        mixed.append(met.sums(own.Z, columns, own.codes[met.first]))
    count = len(rows)
    pairs = [*combinations(range(count), 2), *((f, f) for f in range(count))]
    return TiedProducts(
        n_obs=len(columns),
        log_weights=log_weights,
        law=law,
        basis=basis,
        fixed=ties.sums(columns, columns),
        random=tuple(random),
        mixed=tuple(mixed),
        couplings={(i, j): _meeting(rows[i], rows[j], ties, same=i == j) for i, j in pairs},
    )


class _Ties(NamedTuple):
    """Ordered pairs of tied rows (M,), and the kind of entry that ties them."""

    first: Indices
    second: Indices
    kind: Indices
    size: int

    @classmethod
    def of(cls, entries: Entries) -> _Ties:
        apart = entries.rows != entries.cols
        return cls(
            np.concatenate([entries.rows, entries.cols[apart]]),
            np.concatenate([entries.cols, entries.rows[apart]]),
            np.concatenate([entries.kinds, entries.kinds[apart]]),
            entries.size,
        )

    def where(self, chosen: NDArray[np.bool_]) -> _Ties:
        return _Ties(self.first[chosen], self.second[chosen], self.kind[chosen], self.size)

    def between(self, n: int, first: int, second: int) -> _Ties:
        """The same of n rows written `first` times one below the other, and `second` times."""
        if first == second == 1:
            return self
        below = [(i * n, j * n) for i in range(first) for j in range(second)]
        return _Ties(
            np.concatenate([self.first + i for i, _ in below]),
            np.concatenate([self.second + j for _, j in below]),
            np.tile(self.kind, len(below)),
            self.size,
        )

    def sums(
        self, left: Array, right: Array, first: Indices | None = None, second: Indices | None = None
    ) -> TiedSums:
        """The sums left_i' right_j of pairs by their cells, of levels (M,) where there are some."""
        none = np.zeros(len(self.kind), dtype=np.int64)
        first, second = (none if own is None else own.astype(np.int64) for own in (first, second))
        wide = int(second.max(initial=0)) + 1
        code = (first * wide + second) * self.size + self.kind
        found, place = np.unique(code, return_inverse=True)
        width = left.shape[1] * right.shape[1]
        sums = np.zeros((len(found), width))
        step = max(1, AT_ONCE // max(width, 1))
        for start in range(0, len(code), step):
            part = slice(start, start + step)
            pairs = left[self.first[part], :, None] * right[self.second[part], None, :]
            own = place.ravel()[part]
            gather = sp.csr_array(
                (np.ones(len(own)), (own, np.arange(len(own)))), shape=(len(found), len(own))
            )
            sums += gather @ pairs.reshape(len(own), width)
        cell, kind = np.divmod(found, self.size)
        at = np.divmod(cell, wide)
        return TiedSums(
            at[0].astype(np.intp),
            at[1].astype(np.intp),
            kind.astype(np.intp),
            sums.reshape(len(found), left.shape[1], right.shape[1]),
        )


class _SlotRows(NamedTuple):
    """Slots one below the other: levels (m n,) and covariates (m n, k) of m slots."""

    codes: Indices
    Z: Array
    n_slots: int

    @classmethod
    def of(cls, slots: Sequence[Slot]) -> _SlotRows:
        if len(slots) == 1:
            return cls(slots[0].codes, slots[0].Z, 1)
        codes = np.concatenate([slot.codes for slot in slots])
        return cls(codes, np.vstack([slot.Z for slot in slots]), len(slots))


def _meeting(f: _SlotRows, g: _SlotRows, ties: _Ties, *, same: bool) -> TiedSums:
    """Cells of two grouping factors that tied rows make meet, or of two levels of one."""
    ties = ties.between(len(f.codes) // f.n_slots, f.n_slots, g.n_slots)
    if same:
        ties = ties.where(f.codes[ties.first] < f.codes[ties.second])
    return ties.sums(f.Z, g.Z, f.codes[ties.first], g.codes[ties.second])
