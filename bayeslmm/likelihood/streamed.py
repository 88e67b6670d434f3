"""Cross-products of data beyond memory: sums over batches, in a basis that follows the rows.

The basis of the first batch is used until one of the rows so far is much better: it centres and
scales, so that the sums lose no digits to large means or odd units, whatever the order and the size
of the batches. At the end the sums are taken to the basis of all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.frames import Codes
from bayeslmm.data.memberships import Slot
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.survey import Layout, Taken, Totals
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import (
    Basis,
    Coupling,
    Meetings,
    WorkingProducts,
    add_couplings,
    coupling,
)
from bayeslmm.likelihood.rebasing import basis_of_part, in_basis, placed
from bayeslmm.likelihood.streamed_stack import StackSums
from bayeslmm.likelihood.tied import TiedProducts

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

CHUNK = 1 << 18
"""Rows whose products are held at once."""

PENDING = 1 << 22
"""Cells of couplings that wait to be added up."""

MORE = 8
"""The basis is renewed when there are so many times more rows than it was made of ..."""

FAR = 30.0
"""... or when rows are so many times larger in it than in that of the rows so far: the squares of
their working columns would then cost three of the sixteen digits."""

_NUMBERED = 1 << 31
"""More than the number of levels of a factor."""


class RunningSums:
    """Cross-products of all rows of a reading.

    Parameters
    ----------
    layout : Layout
        The columns.
    residual : ResidualSpec or None
        Structure of the residuals.
    """

    def __init__(self, layout: Layout, residual: ResidualSpec | None) -> None:
        self.layout, self.residual = layout, residual
        self._counts = [np.zeros(0, dtype=np.intp) for _ in layout.factors]
        self._carried: Any = None
        self._sums: ProductSums | StackSums | None = None
        self._made_of = 0

    def add(self, taken: Taken, totals: Totals, sizes: Sequence[int]) -> None:
        """Take in rows of a batch.

        Parameters
        ----------
        taken : Taken
        totals : Totals
            Of all rows so far, those of the batch among them.
        sizes : sequence of int
            Number of levels of each grouping factor so far.
        """
        now = basis_of_part(totals.weighted, self.layout.factors)
        if self._sums is None or self._renew(self._sums.basis, now, totals):
            self._change(now, sizes)
            self._made_of = totals.n
        assert self._sums is not None
        found, layout = taken.columns, self.layout
        y, X = found.y - found.offset, found.sides[layout.right]
        root = None if found.weights is None else np.sqrt(found.weights)
        covariates = [_joined([found.sides[side] for side in own]) for own in layout.factors]
        if isinstance(self._sums, ProductSums):
            self._sums.add(y, X, covariates, taken.codes, root, sizes)
        else:
            assert taken.residual is not None
            slots = [[Slot(c, z, c)] for c, z in zip(taken.codes, covariates, strict=True)]
            self._sums.add(y, X, slots, root, taken.residual)
        for f, (codes, size) in enumerate(zip(taken.codes, sizes, strict=True)):
            self._counts[f] = _grown(self._counts[f], size)
            self._counts[f][:size] += np.bincount(codes, minlength=size)

    def finish(
        self, totals: Totals, places: Sequence[Codes]
    ) -> tuple[WorkingProducts | TiedProducts, list[Codes]]:
        """The sums in the basis of all rows, and the number of rows of each level.

        Parameters
        ----------
        totals : Totals
        places : sequence of ndarray of int (J,)
            Place of each number of a level.
        """
        sizes = list(map(len, places))
        self._change(basis_of_part(totals.weighted, self.layout.factors), sizes)
        assert self._carried is not None
        counts = []
        for own, place in zip(self._counts, places, strict=True):
            ordered = np.empty(len(place), dtype=np.intp)
            ordered[place] = own[: len(place)]
            counts.append(ordered)
        return placed(self._carried, places, sizes), counts

    def _renew(self, old: Basis, now: Basis, totals: Totals) -> bool:
        """Whether the basis of the rows so far is much better for them."""
        if totals.n >= MORE * self._made_of:
            return True
        own, right = self.layout.factors, self.layout.right
        if _largest(totals.latest, old, own) > FAR * max(_largest(totals.latest, now, own), 1.0):
            return True
        latest, whole = totals.latest[right], totals.weighted[right]
        rounding = 1e-12 * float(latest.root_mean_squares[-1])
        least = max(_rest(whole, now), _rest(latest, now), rounding)
        return _rest(latest, old) > FAR * least

    def _change(self, now: Basis, sizes: Sequence[int]) -> None:
        """Take the sums so far to a basis, and go on in it."""
        known = self._carried
        if isinstance(self._sums, ProductSums):
            both = self._sums.products(sizes)
            if isinstance(known, WorkingProducts):
                numbers = [np.arange(len(own)) for own in known.random]
                both = both + placed(known, numbers, sizes)
            self._carried = in_basis(both, now)
        elif self._sums is not None:
            self._carried = in_basis(self._sums.products(), now)
        spec = self.residual
        if spec is None or spec.structure.plain:
            self._sums = ProductSums(self.layout, now)
        else:
            self._sums = StackSums(now, spec.structure, spec.formula.source, self._carried)


def _largest(
    moments: Mapping[Side, Moments], basis: Basis, factors: Sequence[Sequence[Side]]
) -> float:
    """Largest root mean square of a working column of X or Z, from moments of rows."""
    right = next(iter(moments))
    sizes = [_root_mean_squares(moments[right], basis.fixed, len(basis.shift))]
    for own, maps in zip(factors, basis.random, strict=True):
        start = 0
        for side in own:
            k = len(moments[side].centre) - (side == right)
            block = maps[start : start + k, start : start + k]
            sizes.append(_root_mean_squares(moments[side], block, k))
            start += k
    return max(float(np.max(own, initial=0.0)) for own in sizes)


def _root_mean_squares(moments: Moments, maps: Array, k: int) -> Array:
    working = moments.columns[:, :k] @ maps
    return np.asarray(np.linalg.norm(working, axis=0) / np.sqrt(moments.n))


def _rest(moments: Moments, basis: Basis) -> float:
    """Root mean square of the working response."""
    whole = moments.columns
    rest = whole[:, -1] - whole[:, :-1] @ basis.shift
    return float(np.linalg.norm(rest) / np.sqrt(moments.n))


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def _grown(values: NDArray[Any], size: int) -> NDArray[Any]:
    """Values (J,) with room for at least `size` levels."""
    if len(values) >= size:
        return values
    more = np.zeros(max(size, len(values) * 5 // 4), dtype=values.dtype)
    more[: len(values)] = values
    return more


class ProductSums:
    """Cross-products of batches of rows, added up in place.

    Parameters
    ----------
    layout : Layout
        The columns.
    basis : Basis
        Of all columns.
    """

    def __init__(self, layout: Layout, basis: Basis) -> None:
        self.layout, self.basis = layout, basis
        width = len(self.basis.shift) + 1
        count = len(layout.factors)
        self._fixed = np.zeros((width, width))
        self._levels = [_LevelSums(layout, basis, f) for f in range(count)]
        self._couplings: dict[tuple[int, int], list[Coupling]] = {
            pair: [] for pair in combinations(range(count), 2)
        }
        self._n, self._log_weights = 0, 0.0

    def add(
        self,
        y: Array,
        X: Array,
        covariates: Sequence[Array],
        codes: Sequence[Indices],
        root: Array | None,
        sizes: Sequence[int],
    ) -> None:
        """Take in rows.

        Parameters
        ----------
        y : ndarray (n,)
            Response less offset.
        X : ndarray (n, p)
        covariates : sequence of ndarray (n, k)
            Z of each grouping factor.
        codes : sequence of ndarray of int (n,)
            Levels of each.
        root : ndarray (n,) or None
            Root of the precision weights.
        sizes : sequence of int
            Number of levels of each so far.
        """
        self._n += len(y)
        if root is not None:
            self._log_weights += 2.0 * float(np.sum(np.log(root)))
        for level_sums, size in zip(self._levels, sizes, strict=True):
            level_sums.grow(size)
        for start in range(0, len(y), CHUNK):
            rows = slice(start, start + CHUNK)
            x = np.ascontiguousarray(X[rows].T)
            columns = np.vstack([self.basis.fixed.T @ x, y[rows] - self.basis.shift @ x])
            if root is not None:
                columns *= root[rows]
            self._fixed += columns @ columns.T
            own = [code[rows] for code in codes]
            zs = {}
            for f, sums in enumerate(self._levels):
                if sums.within is None or self._couplings:
                    z = self.basis.random[f].T @ np.ascontiguousarray(covariates[f][rows].T)
                    zs[f] = z if root is None else z * root[rows]
                sums.add(zs.get(f, columns), columns, own[f])
            for i, j in self._couplings:
                self._add_coupling((i, j), (zs[i].T, zs[j].T), (own[i], own[j]))

    def products(self, sizes: Sequence[int]) -> WorkingProducts:
        """The sums as cross-products, for all levels so far."""
        for level_sums, size in zip(self._levels, sizes, strict=True):
            level_sums.grow(size)
        blocks = [sums.blocks() for sums in self._levels]
        return WorkingProducts(
            n_obs=self._n,
            log_weights=self._log_weights,
            fixed=self._fixed,
            random=tuple(random for random, _ in blocks),
            mixed=tuple(mixed for _, mixed in blocks),
            couplings=tuple(
                add_couplings(parts) if parts else self._no_coupling(pair)
                for pair, parts in self._couplings.items()
            ),
            structures=self.layout.structures,
            relationships=(None,) * len(blocks),
            basis=self.basis,
        )

    def _add_coupling(
        self,
        pair: tuple[int, int],
        covariates: tuple[Array, Array],
        codes: tuple[Indices, Indices],
    ) -> None:
        parts = self._couplings[pair]
        met = Meetings(*codes, *covariates)
        parts.append(coupling(pair, met, _NUMBERED))
        waiting = sum(len(part.first) for part in parts[1:])
        if waiting > max(len(parts[0].first), PENDING):
            parts[:] = [add_couplings(parts)]

    def _no_coupling(self, pair: tuple[int, int]) -> Coupling:
        none = np.empty(0, dtype=np.intp)
        i, j = pair
        return Coupling(pair, none, none, np.empty((0, self._width(i), self._width(j))))

    def _width(self, factor: int) -> int:
        return len(self.basis.random[factor])


class _LevelSums:
    """Sums of Z'Z and Z'[X y] over the rows of each level of a grouping factor.

    Where each covariate is a column of X too, products of the working columns of X are summed,
    which are fewer, and made into those of Z at the end.

    Attributes
    ----------
    within : ndarray (m, k) or None
        Working columns of Z by the first m of X; None where Z has others.
    """

    def __init__(self, layout: Layout, basis: Basis, f: int) -> None:
        own = basis.random[f]
        self.width = len(basis.shift) + 1
        self.within = _within(layout, basis, layout.factors[f], own)
        m = len(own if self.within is None else self.within)
        first = [(i, j, True) for i in range(m) for j in range(i + 1)]
        if self.within is None:
            second = [(i, j, False) for i in range(m) for j in range(self.width)]
        else:
            second = [(i, j, False) for i in range(m) for j in range(m, self.width)]
        self.pairs = first + second
        self.size = m
        self.levels = 0
        self.sums = [np.zeros(0) for _ in self.pairs]

    def grow(self, size: int) -> None:
        """Make room for levels, pair by pair, so that no second copy of all is held."""
        self.levels = size
        for place, row in enumerate(self.sums):
            self.sums[place] = _grown(row, size)

    def add(self, z: Array, columns: Array, codes: Indices) -> None:
        """Take in rows: z (k, n), columns (p + 1, n) of [X y], codes (n,)."""
        size = self.levels
        places: Any = slice(size)
        if size > 4 * len(codes):
            places, codes = np.unique(codes, return_inverse=True)
            size = len(places)
        for row, (i, j, own) in zip(self.sums, self.pairs, strict=True):
            row[places] += np.bincount(codes, z[i] * (z[j] if own else columns[j]), size)

    def blocks(self) -> tuple[Array, Array]:
        """Z'Z (J, k, k) and Z'[X y] (J, k, p + 1)."""
        m, levels = self.size, self.levels
        random = np.empty((levels, m, m))
        mixed = np.empty((levels, m, self.width))
        for sums, (i, j, own) in zip(self.sums, self.pairs, strict=True):
            if own:
                random[:, i, j] = random[:, j, i] = sums[:levels]
            else:
                mixed[:, i, j] = sums[:levels]
        if self.within is None:
            return random, mixed
        mixed[:, :, :m] = random
        return self.within.T @ random @ self.within, self.within.T @ mixed


def _within(layout: Layout, basis: Basis, sides: Sequence[Side], own: Array) -> Array | None:
    """Working columns (m, k) of Z by the first m of X; None where that takes more sums."""
    right = layout.right
    names = layout.names[right]
    plain = {"Intercept"} if () in right.terms else set()
    plain |= set(right.names)
    places: list[int] = []
    for side in sides:
        same = side == right
        known = plain & ({"Intercept"} if () in side.terms else set()) | plain & set(side.names)
        coefs = layout.names[side]
        if any(coef not in names or not (same or coef in known) for coef in coefs):
            return None
        places += [names.index(coef) for coef in coefs]
    chosen = np.zeros((len(names), len(places)))
    chosen[places, np.arange(len(places))] = 1.0
    within = np.linalg.solve(basis.fixed, chosen @ own)
    m = 1 + max(places)
    k, width = len(places), len(names) + 1
    fewer = m * (m + 1) // 2 + m * (width - m) < k * (k + 1) // 2 + k * width
    return within[:m] if fewer else None
