"""Cross-products under a residual precision matrix with tied entries.

Where entry (a, b) of the relative precision matrix is one of K values c_k, every cross-product is
a linear function of c. The functions are found once, in one pass over the rows; afterwards
cross-products at other parameters, and derivatives by these, cost nothing that depends on the
number of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.residual import BoundResidual, Entries
from bayeslmm.data.memberships import Slot
from bayeslmm.likelihood.crossprod import (
    Basis,
    Coupling,
    RandomColumns,
    WorkingProducts,
    working_columns,
)

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

AT_ONCE = 1 << 22
"""Products of pairs of rows held at once: 32 MB."""

type Map = sp.csr_array | Array
"""A linear map of the K values, dense where most of its entries are not zero."""

FULL = 0.25
"""Share of entries that are not zero from which a dense map is faster than a sparse one."""

SAME_DIGITS = 12
"""Decimal digits to which the functions of two levels agree that are taken for equal."""


class ProductSlopes(NamedTuple):
    """Derivatives of a function by cross-products, laid out as those of ``WorkingProducts``.

    An entry that stands at two places, such as those of `mixed`, counts twice.
    """

    fixed: Array
    random: tuple[Array, ...]
    mixed: tuple[Array, ...]
    couplings: tuple[Array, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stack:
    """Cross-products as functions of the residual parameters.

    Attributes
    ----------
    law : BoundResidual
        The relative precision matrix of the rows, without weights.
    template : WorkingProducts
        What does not depend on them, and the places of couplings; its other arrays are empty.
    fixed : ndarray or scipy.sparse.csr_array ((p + 1)^2, K)
        Linear map of the values to the cross-products of X and the response.
    random, mixed, couplings : tuple of scipy.sparse.csr_array
        Those of the other arrays of cross-products, laid flat.
    classes : tuple of ndarray of int (J,)
        Class of each level of a grouping factor: those of one have equal blocks at every shape.
    """

    law: BoundResidual
    template: WorkingProducts
    fixed: Map
    random: tuple[sp.csr_array, ...]
    mixed: tuple[sp.csr_array, ...]
    couplings: tuple[sp.csr_array, ...]
    classes: tuple[Indices, ...]

    def products(self, shape: Array) -> WorkingProducts:
        """Cross-products at a shape (r,)."""
        values, log_det = (part[0] for part in self.law.precision(shape[None]))
        if not np.all(np.isfinite(values)) or not np.isfinite(log_det):
            raise np.linalg.LinAlgError("the covariance matrix of the residuals is singular")
        part = self.template
        return replace(
            part,
            log_weights=part.log_weights + float(log_det),
            fixed=(self.fixed @ values).reshape(part.fixed.shape),
            random=_filled(self.random, values, part.random),
            mixed=_filled(self.mixed, values, part.mixed),
            couplings=tuple(
                replace(c, blocks=(m @ values).reshape(c.blocks.shape))
                for c, m in zip(part.couplings, self.couplings, strict=True)
            ),
        )

    def fixed_at(self, shapes: Array) -> tuple[Array, Array]:
        """Cross-products (S, p + 1, p + 1) of X and y, and log determinants, at shapes (S, r)."""
        fixed = np.empty((len(shapes), *self.template.fixed.shape))
        log_det = np.empty(len(shapes))
        step = max(1, AT_ONCE // max(self.fixed.shape))
        for start in range(0, len(shapes), step):
            rows = slice(start, start + step)
            values, log_det[rows] = self.law.precision(shapes[rows])
            fixed[rows] = _batch(self.fixed, values, self.template.fixed)
        return fixed, log_det + self.template.log_weights

    def factor_at(self, factor: int, shapes: Array) -> tuple[Array, Array, Array, Array]:
        """Cross-products of one grouping factor and the fixed effects at shapes (S, r).

        Returns
        -------
        gram : ndarray (k, k, S, C)
            Blocks of the classes of levels.
        mixed : ndarray (S, J, k, p + 1)
        fixed : ndarray (S, p + 1, p + 1)
        log_weights : ndarray (S,)
        """
        values, log_det = self.law.precision(shapes)
        part, k = self.template, self.template.random[factor].shape[1]
        first = np.unique(self.classes[factor], return_index=True)[1]
        rows = (first[:, None] * k * k + np.arange(k * k)).ravel()
        gram = (self.random[factor][rows] @ values.T).reshape(len(first), k, k, -1)
        mixed = _batch(self.mixed[factor], values, part.mixed[factor])
        fixed = _batch(self.fixed, values, part.fixed)
        return gram.transpose(1, 2, 3, 0), mixed, fixed, log_det + part.log_weights

    def pull_back(self, shape: Array, slopes: ProductSlopes, by_log_det: float) -> Array:
        """Derivatives (r,) at a shape (r,) from those by cross-products and log determinant."""
        by_value = self.fixed.T @ slopes.fixed.ravel()
        for maps, parts in (
            (self.random, slopes.random),
            (self.mixed, slopes.mixed),
            (self.couplings, slopes.couplings),
        ):
            for one, slope in zip(maps, parts, strict=True):
                by_value = by_value + one.T @ slope.ravel()
        return self.law.pull_back(shape, by_value, by_log_det)


def _filled(
    maps: Sequence[sp.csr_array], values: Array, like: Sequence[Array]
) -> tuple[Array, ...]:
    pairs = zip(maps, like, strict=True)
    return tuple((one @ values).reshape(part.shape) for one, part in pairs)


def _dense_if_full(one: sp.csr_array) -> Map:
    return one.toarray() if one.nnz > FULL * np.prod(one.shape) else one


def _batch(one: Map, values: Array, like: Array) -> Array:
    """A map of values (S, K), laid out as `like` for each."""
    return np.asarray((one @ values.T).T.reshape(-1, *like.shape))


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

    def map(self, left: Array, right: Array, cell: Indices, n_cells: int) -> sp.csr_array:
        """Map (n_cells * a * b, K) from values to the sums left_i' right_j of pairs by cell."""
        code = cell.astype(np.int64) * self.size + self.kind
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
        at, kind = np.divmod(found, self.size)
        rows = at[:, None] * width + np.arange(width)
        cols = np.broadcast_to(kind[:, None], rows.shape)
        index = (rows.ravel(), cols.ravel())
        return sp.csr_array((sums.ravel(), index), shape=(n_cells * width, self.size))


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


def stack_products(
    y: Array,
    X: Array,
    factors: Sequence[RandomColumns],
    law: BoundResidual,
    *,
    weights: Array | None = None,
    basis: Basis | None = None,
) -> Stack:
    """Cross-products as functions of residual parameters.

    Parameters
    ----------
    y, X, factors, weights, basis
        As of :func:`bayeslmm.likelihood.crossprod.cross_products`.
    law : BoundResidual
        The relative precision matrix; weights come on top.

    Returns
    -------
    Stack
    """
    basis, columns, slots = working_columns(y, X, factors, weights, basis)
    ties, width = _Ties.of(law.entries), columns.shape[1]
    rows = [_SlotRows.of(own) for own in slots]
    sizes = [(f.n_levels, own.Z.shape[1]) for f, own in zip(factors, rows, strict=True)]
    random, mixed = [], []
    for own, (n_levels, _) in zip(rows, sizes, strict=True):
        met = ties.between(len(y), own.n_slots, own.n_slots)
        within = met.where(own.codes[met.first] == own.codes[met.second])
        random.append(within.map(own.Z, own.Z, own.codes[within.first], n_levels))
        met = ties.between(len(y), own.n_slots, 1)
        mixed.append(met.map(own.Z, columns, own.codes[met.first], n_levels))
    meetings = [
        _meeting(pair, rows[pair[0]], rows[pair[1]], sizes[pair[1]][0], ties)
        for pair in [*combinations(range(len(factors)), 2), *((f, f) for f in range(len(factors)))]
    ]
    pooled = {(f, f) for f, own in enumerate(rows) if own.n_slots > 1}
    apart = {c.factors for c, _ in meetings if len(c.first) or c.factors[0] != c.factors[1]}
    meetings = [(c, m) for c, m in meetings if c.factors in pooled | apart]
    return Stack(
        law=law,
        template=WorkingProducts(
            n_obs=len(y),
            log_weights=0.0 if weights is None else float(np.sum(np.log(weights))),
            fixed=np.empty((width, width)),
            random=tuple(np.empty((levels, k, k)) for levels, k in sizes),
            mixed=tuple(np.empty((levels, k, width)) for levels, k in sizes),
            couplings=tuple(coupling for coupling, _ in meetings),
            structures=tuple(structure_of(f) for f in factors),
            relationships=tuple(f.relationship for f in factors),
            basis=basis,
        ),
        fixed=_dense_if_full(
            ties.map(columns, columns, np.zeros(len(ties.kind), dtype=np.intp), 1)
        ),
        random=tuple(random),
        mixed=tuple(mixed),
        couplings=tuple(one for _, one in meetings),
        classes=tuple(_classes(one, k * k) for one, (_, k) in zip(random, sizes, strict=True)),
    )


def _classes(gram: sp.csr_array, width: int) -> Indices:
    """Class (J,) of each level by its rows of a map (J * width, K)."""
    size = float(np.max(np.abs(gram.data), initial=0.0))
    data = np.round(gram.data / (size or 1.0), SAME_DIGITS) + 0.0
    found: dict[bytes, int] = {}
    codes = np.empty(gram.shape[0] // width, dtype=np.intp)
    for level in range(len(codes)):
        ends = gram.indptr[level * width : (level + 1) * width + 1]
        own = slice(ends[0], ends[-1])
        key = np.diff(ends).tobytes() + gram.indices[own].tobytes() + data[own].tobytes()
        codes[level] = found.setdefault(key, len(found))
    return codes


def _meeting(
    pair: tuple[int, int], f: _SlotRows, g: _SlotRows, n_second: int, ties: _Ties
) -> tuple[Coupling, sp.csr_array]:
    """Cells of two grouping factors that tied rows make meet, or of two levels of one."""
    ties = ties.between(len(f.codes) // f.n_slots, f.n_slots, g.n_slots)
    if pair[0] == pair[1]:
        ties = ties.where(f.codes[ties.first] < f.codes[ties.second])
    codes = f.codes[ties.first].astype(np.int64) * n_second + g.codes[ties.second]
    cells, place = np.unique(codes, return_inverse=True)
    first, second = np.divmod(cells, n_second)
    blocks = np.empty((len(cells), f.Z.shape[1], g.Z.shape[1]))
    found = ties.map(f.Z, g.Z, place.ravel().astype(np.intp), len(cells))
    return Coupling(pair, first.astype(np.intp), second.astype(np.intp), blocks), found
