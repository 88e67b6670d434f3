"""Elimination plan: which block of the mixed-model equations is factored how.

The grouping factor with the most random effects leads: its part of Z'Z is block diagonal and is
eliminated level by level. Grouping factors that it is nested in may follow in the same way
(``nested``). The random effects of the remaining factors form one dense Schur complement. The
indices of all steps depend on the data only and are worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Theta
from bayeslmm.covariance.residual import PLAIN, Residual
from bayeslmm.covariance.structure import Structure
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.blocks import TailBlock, lower_pairs, symmetric
from bayeslmm.likelihood.crossprod import Split, WorkingProducts
from bayeslmm.likelihood.nested import Stage, batches, choose_stages, make_stages
from bayeslmm.likelihood.related import can_diagonalise, diagonalised, stays_sparse
from bayeslmm.likelihood.stack import Stack
from bayeslmm.likelihood.tail import SparseTail, sparse_tail
from bayeslmm.likelihood.whole import Whole, make_whole

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_TAIL = 20_000
"""Largest dense Schur complement attempted: 3.2 GB."""

MAX_PRODUCTS = 50_000_000
"""Most pairwise products of couplings held in memory: 0.6 GB."""

LARGEST_TAIL = 128
"""Largest dense tail that is factorised at many points at once."""

LARGEST_SUMS = 50_000_000
"""Most entries of sums of products of Z'[X y] that are held in memory: 0.4 GB."""

SAME_DIGITS = 13
"""Decimal digits to which the blocks of two levels agree that are taken for equal."""


class Classes(NamedTuple):
    """Levels by their block of Z'Z.

    Attributes
    ----------
    level : ndarray (J,) or slice
        Class of each level; all of them in order where no two levels share their block.
    counts : ndarray (C,)
        Levels of each class.
    gram : ndarray (k, k, C)
        Block of each class.
    """

    level: Indices | slice
    counts: Array
    gram: Array

    @classmethod
    def each(cls, blocks: Array) -> Classes:
        """A class for each of the blocks (J, k, k)."""
        return cls(slice(None), np.ones(len(blocks)), blocks.transpose(1, 2, 0))


class Sums(NamedTuple):
    """What the W of the classes take from the equations, as linear maps.

    Attributes
    ----------
    fixed : ndarray (n_pairs, C, (p + 1)^2)
        From [X y]'[X y].
    mixed : scipy.sparse.csr_array (q * (p + 1), n_pairs * C) or None
        From the tail's Z'[X y], where there is a tail.
    """

    fixed: Array
    mixed: sp.csr_array | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Border:
    """The equations of one related factor, bordered by all other columns.

    Attributes
    ----------
    plan : Plan
        Of the related factor alone, with the columns of the others before those of X.
    factor : int
        The related factor.
    tail : tuple of TailBlock
        The places of the others.
    panels : dict
        What is known of the equations after eliminating the related factor, as `panels` has it.
    """

    plan: Plan
    factor: int
    tail: tuple[TailBlock, ...]
    panels: dict[int, Array | None] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """Cross-products arranged for elimination.

    Attributes
    ----------
    products : WorkingProducts
        The data.
    lead : int
        Index of the leading grouping factor; -1 where there is none: no random effects, or all
        levels related or tied by correlated residuals.
    stages : tuple of Stage
        What is eliminated level by level: the leading grouping factor and, in their order, those
        that it is nested in and that are not left to the tail.
    tail : tuple of TailBlock
        The other grouping factors.
    n_tail : int
        Number q of random effects in the tail.
    tail_gram : ndarray (q, q) or scipy.sparse.csc_array
        Z'Z of the tail.
    tail_mixed : ndarray (q, p + 1)
        Z'[X y] of the tail.
    coupling : scipy.sparse.csr_array (q, J * k)
        Z'Z between the tail (rows) and the leading factor (columns, level by level).
    products_map : scipy.sparse.csr_array (n_filled, J * k * k) or None
        Linear map from the blocks W_j of the leading factor to the entries of the lower triangle of
        ``coupling @ blockdiag(W) @ coupling.T`` that are not always zero; None where it would be
        too large.
    filled : ndarray (n_filled,)
        Places of these entries: column times q plus row.
    classes : Classes
        Levels of the leading factor that share their block of Z'Z, and so their W_j.
    class_map : scipy.sparse.csr_array (n_filled, n_pairs * C) or None
        `products_map` from the lower triangles of one W per class.
    stack : Stack or None
        Where residuals have parameters beside sigma, the cross-products as functions of them.
    shape : ndarray (r,)
        These parameters, at which the plan is made.
    sparse : SparseTail or None
        The system of the tail where it is sparse; all random effects are in the tail then.
    border : Border or None
        Where the sparse part of the tail is one coefficient of related levels, and the rest small.
    split : Split or None
        [X y] split into what the random effects can reproduce and the rest, where little is left:
        see :mod:`bayeslmm.likelihood.shrinkage`.
    held : Coordinates or None
        Coordinates of the user's columns, some of which are held at known values; None where all
        covariance parameters are free.
    """

    products: WorkingProducts
    lead: int
    stages: tuple[Stage, ...]
    tail: tuple[TailBlock, ...]
    n_tail: int
    tail_gram: Array | sp.csc_array
    tail_mixed: Array
    coupling: sp.csr_array
    products_map: sp.csr_array | None
    filled: Indices
    classes: Classes
    class_map: sp.csr_array | None
    stack: Stack | None = None
    shape: Array = field(default_factory=lambda: np.zeros(0))
    sparse: SparseTail | None = None
    border: Border | None = None
    split: Split | None = None
    held: Coordinates | None = None

    @property
    def residual(self) -> Residual:
        """Structure of the residuals."""
        return PLAIN if self.stack is None else self.stack.law.structure

    @property
    def theta(self) -> Theta:
        """The coordinates in which likelihoods are maximised."""
        return _theta(self.products.structures, len(self.shape))

    def at(self, shape: Array) -> Plan:
        """The plan at other parameters of the residuals; itself where there are none."""
        if self.stack is None or not len(shape):
            return self
        products = self.stack.products(shape)
        sparse = self.sparse or False
        moved = make_plan(products, stack=self.stack, shape=shape, sparse=sparse)
        return moved if self.held is None else replace(moved, held=self.held)

    @property
    def nested(self) -> bool:
        """Whether more than the leading grouping factor is eliminated level by level."""
        return len(self.stages) > 1

    @property
    def tail_alone(self) -> bool:
        """Whether all random effects are in a small dense tail, and [X y] is not split."""
        small = 0 < self.n_tail <= LARGEST_TAIL and self.sparse is None
        return small and not self.stages and self.stack is None and self.split is None

    @cached_property
    def sums(self) -> Sums | None:
        """Sums of products over classes of levels; None where points are taken one by one.

        That is where they change with the residuals' parameters (`stack`), where they would not
        fit, or would cancel (`split`), or where factorising a large tail takes all of the time.
        """
        if not self.stages or self.stack is not None:
            return None
        width, size = self.products.n_fixed + 1, len(self.classes.counts)
        k = self.classes.gram.shape[0]
        fits = k * (k + 1) // 2 * size * width**2 <= LARGEST_SUMS and self.split is None
        small = not self.n_tail or (self.n_tail <= LARGEST_TAIL and self.class_map is not None)
        return _sums(self) if fits and small and not self.nested else None

    @cached_property
    def whole(self) -> Whole | None:
        """All equations as functions of the residuals' parameters, where that is the fastest way.

        That is in small models of several grouping factors, or of one that residuals tie.
        """
        if self.stack is None or self.leads_alone or self.sparse is not None:
            return None
        blocks = tuple(tail_blocks(self.products, ()))
        return make_whole(self.stack, blocks) if blocks else None

    @property
    def leads_alone(self) -> bool:
        """Whether one grouping factor is all there is."""
        return len(self.stages) == 1 and not self.n_tail

    @property
    def lead_gram(self) -> Array:
        """Z'Z (J, k, k) of the leading factor, which has no levels where there is none."""
        return self.products.random[self.lead] if self.stages else np.zeros((0, 1, 1))

    @property
    def lead_mixed(self) -> Array:
        """Z'[X y] (J, k, p + 1) of the leading factor."""
        if self.stages:
            return self.products.mixed[self.lead]
        return np.zeros((0, 1, self.products.n_fixed + 1))

    @property
    def separable(self) -> bool:
        """Whether there is one grouping factor, whose levels are independent given the rest."""
        alone = len(self.products.structures) == 1 and not self.n_tail
        return alone and self.stack is None and self.products.basis.levels is None

    def without_congruence(self, kernel: Array) -> Array:
        """tail_gram - coupling @ blockdiag(W) @ coupling.T at S points: (S, q, q).

        From the lower triangles of the W of the classes, (n_pairs, S, C). Lower triangles are
        valid at least, and in Fortran order, as LAPACK likes them best.
        """
        batch = kernel.shape[1]
        schur = np.repeat(self.tail_gram.reshape(1, -1), batch, axis=0)
        if self.class_map is not None:
            flat = kernel.transpose(0, 2, 1).reshape(-1, batch)
            for own, taken in zip(schur, (self.class_map @ flat).T, strict=True):
                own[self.filled] -= taken
        else:
            for own, pairs in zip(schur, kernel.swapaxes(0, 1), strict=True):
                blocks = _full_blocks(pairs)[self.classes.level]
                product = self.coupling @ block_diagonal(blocks) @ self.coupling.T
                own -= product.toarray().ravel()
        return schur.reshape(batch, self.n_tail, self.n_tail).swapaxes(1, 2)

    def diagonal_of_congruence(self, inner: Array) -> Array:
        """Diagonal blocks (J, k, k) of coupling.T @ inner @ coupling for a symmetric inner.

        `inner` (q, q) needs a valid lower triangle only.
        """
        levels, k = self.products.random[self.lead].shape[:2]
        if self.products_map is not None:
            columns, rows = np.divmod(self.filled, self.n_tail)
            entries = inner[rows, columns]
            entries[rows == columns] *= 0.5
            half = (self.products_map.T @ entries).reshape(levels, k, k)
            return half + half.transpose(0, 2, 1)
        return _diagonal_blocks_sparse(self.coupling, symmetric(inner), levels, k)


@cache
def _theta(structures: tuple[Structure, ...], n_shape: int) -> Theta:
    return Theta(structures, n_shape)


def make_plan(
    products: WorkingProducts,
    *,
    nested: bool | None = None,
    diagonal: bool = True,
    stack: Stack | None = None,
    shape: Array | None = None,
    sparse: bool | SparseTail | None = None,
) -> Plan:
    """Choose the leading factor and lay out the rest.

    Parameters
    ----------
    products : WorkingProducts
        The data.
    nested : bool, optional
        Whether nested grouping factors stay sparse; by default where that pays. Not with a stack.
    diagonal : bool
        Whether related levels may be exchanged for independent combinations of them. Not with a
        stack.
    stack : Stack, optional
        What the products are made from, where residuals have parameters beside sigma.
    shape : ndarray (r,), optional
        These parameters.
    sparse : bool or SparseTail, optional
        Whether all random effects are eliminated together, by a sparse matrix, and its layout where
        that is known; by default where relationships are given so and levels are many.

    Returns
    -------
    Plan

    Raises
    ------
    DataError
        If the dense part would be too large for memory.
    """
    if diagonal and not sparse and stack is None and can_diagonalise(products):
        products = diagonalised(products)
    shape = np.zeros(0) if shape is None else shape
    if sparse is None:
        sparse = stays_sparse(products)
    chain = () if sparse else choose_stages(products, nested if stack is None else False)
    tail = tuple(tail_blocks(products, chain))
    q = sum(block.n_levels * block.n_coefs for block in tail)
    layout = sparse_tail(products, tail) if sparse is True else sparse or None
    if q > MAX_TAIL and layout is None:
        raise DataError(
            f"the grouping factors crossed with the largest have {q:,} random effects together; "
            f"at most {MAX_TAIL:,} are supported. Drop a crossed random-effects term."
        )
    couplings = [tail_coupling(products, factor, tail, q) for factor in chain]
    coupling = couplings[0] if chain else sp.csr_array((q, 0))
    lead_blocks = products.random[chain[0]] if chain else np.zeros((0, 1, 1))
    products_map, filled = _products_map(coupling, lead_blocks.shape[1])
    known = stack.classes[chain[0]] if stack is not None and chain else None
    classes = level_classes(lead_blocks, known) if chain else Classes.each(lead_blocks)
    class_map = None
    if products_map is not None:
        class_map = sp.csr_array(products_map @ _expansion(classes, *lead_blocks.shape[:2]))
    return Plan(
        products=products,
        lead=chain[0] if chain else -1,
        stages=make_stages(products, chain, couplings),
        tail=tail,
        n_tail=q,
        tail_gram=tail_gram(products, tail, q) if layout is None else layout.gram(products, tail),
        tail_mixed=np.vstack(
            [products.mixed[b.factor].reshape(-1, products.n_fixed + 1) for b in tail]
            or [np.zeros((0, products.n_fixed + 1))]
        ),
        coupling=coupling,
        products_map=products_map,
        filled=filled,
        classes=classes,
        class_map=class_map,
        stack=stack,
        shape=shape,
        sparse=layout,
        border=None if layout is None or stack is not None else _border(products),
    )


def _border(products: WorkingProducts) -> Border | None:
    """The border of the one related factor with one coefficient; None where there is more."""
    known = [f for f, related in enumerate(products.relationships) if related is not None]
    blocks, q = [], 0
    for f, gram in enumerate(products.random):
        if f not in known:
            blocks.append(TailBlock(f, q, gram.shape[0], gram.shape[1]))
            q += gram.shape[0] * gram.shape[1]
    tail, factor = tuple(blocks), known[0]
    if len(known) > 1 or products.random[factor].shape[1] > 1 or q > LARGEST_TAIL:
        return None
    rows = [products.mixed[b.factor].reshape(b.n_levels * b.n_coefs, -1) for b in tail]
    mixed = np.vstack([*rows, np.zeros((0, products.n_fixed + 1))])
    coupling = tail_coupling(products, factor, tail, q).toarray().T
    alone = replace(
        products,
        fixed=np.block([[tail_gram(products, tail, q), mixed], [mixed.T, products.fixed]]),
        random=(products.random[factor],),
        mixed=(np.hstack([coupling, products.mixed[factor][:, 0]])[:, None],),
        couplings=(),
        structures=(products.structures[factor],),
        relationships=(products.relationships[factor],),
    )
    block = TailBlock(0, 0, len(coupling), 1, products.relationships[factor])
    layout = sparse_tail(alone, (block,))
    plan = replace(
        _empty_plan(alone),
        tail=(block,),
        n_tail=len(coupling),
        tail_gram=layout.gram(alone, (block,)),
        tail_mixed=alone.mixed[0][:, 0],
        sparse=layout,
    )
    return Border(plan=plan, factor=factor, tail=tail)


def _empty_plan(products: WorkingProducts) -> Plan:
    """A plan that eliminates nothing."""
    return make_plan(
        replace(products, random=(), mixed=(), structures=(), relationships=()), sparse=False
    )


def plan_of_stack(stack: Stack) -> Plan:
    """The plan at shape zero: equal standard deviations, no correlations where these may be."""
    shape = np.zeros(stack.law.structure.n_shape)
    return make_plan(stack.products(shape), stack=stack, shape=shape)


def level_classes(blocks: Array, known: Indices | None = None) -> Classes:
    """Classes of levels with blocks (J, k, k), in the order of their first members.

    `known` (J,) are the classes, where they are.
    """
    levels, k = blocks.shape[:2]
    if known is not None:
        return _classes(blocks, known)
    size = np.einsum("jaa->j", blocks)
    scaled = np.round(blocks / np.where(size > 0, size, 1.0)[:, None, None], SAME_DIGITS)
    magnitude = np.round(size / np.max(size), SAME_DIGITS)
    codes = np.zeros(levels, dtype=np.int64)
    for column in (magnitude, *scaled.reshape(levels, k * k).T):
        own, distinct = pd.factorize(column)
        codes = pd.factorize(codes * len(distinct) + own)[0]
        if codes[-1] == levels - 1:  # all levels differ
            return Classes.each(blocks)
    return _classes(blocks, codes)


def _classes(blocks: Array, codes: Indices) -> Classes:
    first = np.unique(codes, return_index=True)[1]
    gram = np.ascontiguousarray(blocks[first].transpose(1, 2, 0))
    return Classes(codes.astype(np.intp), np.bincount(codes).astype(float), gram)


def tail_blocks(products: WorkingProducts, chain: Sequence[int]) -> Iterator[TailBlock]:
    """Blocks of the grouping factors that are not in a chain, one after the other."""
    start = 0
    for factor, gram in enumerate(products.random):
        if factor not in chain:
            known = products.relationships[factor]
            yield TailBlock(factor, start, gram.shape[0], gram.shape[1], known)
            start += gram.shape[0] * gram.shape[1]


def tail_gram(products: WorkingProducts, tail: tuple[TailBlock, ...], q: int) -> Array:
    """Z'Z (q, q) of the tail."""
    gram = np.zeros((q, q))
    place = {block.factor: block for block in tail}
    for block in tail:
        _add_cells(
            gram,
            block,
            block,
            np.arange(block.n_levels),
            np.arange(block.n_levels),
            products.random[block.factor],
        )
    for coupling in products.couplings:
        first, second = (place.get(factor) for factor in coupling.factors)
        if first is not None and second is not None:
            blocks = coupling.blocks
            _add_cells(gram, first, second, coupling.first, coupling.second, blocks)
            transposed = blocks.transpose(0, 2, 1)
            _add_cells(gram, second, first, coupling.second, coupling.first, transposed)
    return gram


def _add_cells(
    gram: Array,
    row: TailBlock,
    col: TailBlock,
    first: Indices,
    second: Indices,
    blocks: Array,
) -> None:
    gram[row.places(first)[:, :, None], col.places(second)[:, None]] += blocks


def tail_coupling(
    products: WorkingProducts, stage: int, tail: tuple[TailBlock, ...], q: int
) -> sp.csr_array:
    """Z'Z between the tail (q) and the levels of a grouping factor outside it."""
    levels, k = products.random[stage].shape[:2]
    place = {block.factor: block for block in tail}
    rows, cols, values = [], [], []
    for coupling in products.couplings:
        if stage not in coupling.factors:
            continue
        leads = coupling.factors[0] == stage
        block = place.get(coupling.factors[1] if leads else coupling.factors[0])
        if block is None:
            continue
        inner, outer = coupling.first, coupling.second
        if not leads:
            inner, outer = outer, inner
        blocks = coupling.blocks if leads else coupling.blocks.transpose(0, 2, 1)
        row = block.places(outer)
        col = inner[:, None] * k + np.arange(k)
        shape = (len(inner), k, block.n_coefs)
        rows.append(np.broadcast_to(row[:, None, :], shape).ravel())
        cols.append(np.broadcast_to(col[:, :, None], shape).ravel())
        values.append(blocks.ravel())
    if not rows:
        return sp.csr_array((q, levels * k))
    index = (np.concatenate(rows), np.concatenate(cols))
    return sp.csr_array((np.concatenate(values), index), shape=(q, levels * k))


def _products_map(coupling: sp.csr_array, k: int) -> tuple[sp.csr_array | None, Indices]:
    """All products of two couplings of one level, as a map from W to the filled lower triangle."""
    q, width = coupling.shape
    nothing = np.zeros(0, dtype=np.intp)
    if q == 0 or width == 0:
        return None, nothing
    by_level = coupling.tocsc()
    counts = np.add.reduceat(np.diff(by_level.indptr), np.arange(0, width, k))
    if np.sum(counts.astype(np.int64) ** 2) > 2 * MAX_PRODUCTS or q**2 > MAX_PRODUCTS:
        return None, nothing
    coo = by_level.tocoo()
    tail_index, coef, value = coo.row.astype(np.int32), coo.col % k, coo.data
    start = np.concatenate([[0], np.cumsum(counts)])
    left = np.repeat(np.arange(len(value), dtype=np.int32), np.repeat(counts, counts))
    level = np.repeat(np.arange(len(counts), dtype=np.int32), counts**2)
    offset = np.arange(len(left), dtype=np.int64) - np.repeat(
        np.concatenate([[0], np.cumsum(counts.astype(np.int64) ** 2)])[:-1], counts**2
    )
    right = (start[level] + offset % np.maximum(counts[level], 1)).astype(np.int32)
    keep = tail_index[left] >= tail_index[right]
    left, right, level = left[keep], right[keep], level[keep]
    position = tail_index[right].astype(np.int64) * q + tail_index[left]
    column = level.astype(np.int64) * k * k + coef[left] * k + coef[right]
    shape = (q * q, len(counts) * k * k)
    dtype = np.int32 if max(shape) < np.iinfo(np.int32).max else np.int64
    index = (position.astype(dtype), column.astype(dtype))
    products = sp.csr_array((value[left] * value[right], index), shape=shape)
    filled = np.flatnonzero(np.diff(products.indptr))
    starts = np.concatenate([products.indptr[:1], products.indptr[1:][filled]])
    stored = (products.data, products.indices, starts)
    return sp.csr_array(stored, shape=(len(filled), shape[1])), filled


def _expansion(classes: Classes, levels: int, k: int) -> sp.csr_array:
    """Map (J * k * k, n_pairs * C) from lower triangles of the classes to blocks of the levels."""
    rows, cols = lower_pairs(k)
    pair = np.empty((k, k), dtype=np.intp)
    pair[rows, cols] = pair[cols, rows] = np.arange(len(rows))
    size = len(classes.counts)
    column = (pair.ravel() * size + np.arange(size)[:, None])[classes.level]
    n = levels * k * k
    index = (np.arange(n), column.ravel())
    return sp.csr_array((np.ones(n), index), shape=(n, len(rows) * size))


def _sums(plan: Plan) -> Sums:
    """The maps of :class:`Sums`; symmetric pairs count once, with both halves."""
    mixed = plan.products.mixed[plan.lead]
    levels, k, width = mixed.shape
    size = len(plan.classes.counts)
    code = np.arange(size)[plan.classes.level]
    gather = sp.csr_array((np.ones(levels), (code, np.arange(levels))), shape=(size, levels))
    fixed = np.zeros((k * (k + 1) // 2, size, width**2))
    for number, (a, b) in enumerate(zip(*lower_pairs(k), strict=True)):
        for batch in batches(levels, width**2):
            products = mixed[batch, a, :, None] * mixed[batch, b, None, :]
            if a != b:
                products = products + products.transpose(0, 2, 1)
            fixed[number] += gather[:, batch] @ products.reshape(-1, width**2)
    if not plan.n_tail:
        return Sums(fixed, None)
    return Sums(fixed, _mixed_map(plan) @ _expansion(plan.classes, levels, k))


def _mixed_map(plan: Plan) -> sp.csr_array:
    """Map (q * (p + 1), J * k * k) from leading blocks to their part of the tail's mixed."""
    mixed = plan.products.mixed[plan.lead]
    levels, k, width = mixed.shape
    coupling = plan.coupling.tocoo()
    tail, (level, a) = coupling.row, np.divmod(coupling.col, k)
    shape = (len(tail), k, width)
    row = np.broadcast_to(tail[:, None, None] * width + np.arange(width), shape)
    column = np.broadcast_to((level * k * k + a * k)[:, None, None] + np.arange(k)[:, None], shape)
    values = coupling.data[:, None, None] * mixed[level]
    return sp.csr_array(
        (values.ravel(), (row.ravel(), column.ravel())),
        shape=(plan.n_tail * width, levels * k * k),
    )


def _full_blocks(pairs: Array) -> Array:
    """Symmetric blocks (C, k, k) from their lower triangles (n_pairs, C)."""
    k = int(np.sqrt(2 * len(pairs)))
    rows, cols = lower_pairs(k)
    blocks = np.empty((pairs.shape[1], k, k))
    blocks[:, rows, cols] = blocks[:, cols, rows] = pairs.T
    return blocks


def block_diagonal(blocks: Array) -> sp.bsr_array:
    """Blocks (J, k, k) as a matrix (J k, J k)."""
    levels, k = blocks.shape[:2]
    return sp.bsr_array(
        (blocks, np.arange(levels), np.arange(levels + 1)), shape=(levels * k, levels * k)
    )


def _diagonal_blocks_sparse(coupling: sp.csr_array, inner: Array, levels: int, k: int) -> Array:
    """Diagonal blocks of coupling.T @ inner @ coupling, a batch of leading levels at a time."""
    result = np.empty((levels, k, k))
    columns = coupling.tocsc()
    for start in range(0, levels, 256):
        stop = min(start + 256, levels)
        part = columns[:, start * k : stop * k]
        product = (part.T @ inner).reshape(stop - start, k, -1)
        dense = part.toarray().T.reshape(stop - start, k, -1)
        result[start:stop] = product @ dense.transpose(0, 2, 1)
    return result
