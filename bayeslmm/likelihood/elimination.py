"""Elimination plan: which block of the mixed-model equations is factored how.

The grouping factor with the most random effects leads: its part of Z'Z is block diagonal and is
eliminated level by level. Grouping factors that it is nested in may follow in the same way
(``nested``). The random effects of the remaining factors form one dense Schur complement. The
indices of all steps depend on the data only and are worked out once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import CrossProducts, Split
from bayeslmm.likelihood.nested import Stage, choose_stages, make_stages
from bayeslmm.likelihood.tail import TailBlock, symmetric

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_TAIL = 20_000
"""Largest dense Schur complement attempted: 3.2 GB."""

MAX_PRODUCTS = 50_000_000
"""Most pairwise products of couplings held in memory: 0.6 GB."""


SAME_DIGITS = 13
"""Decimal digits to which the blocks of two levels agree that are taken for equal."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """Cross-products arranged for elimination.

    Attributes
    ----------
    products : CrossProducts
        The data.
    lead : int
        Index of the leading grouping factor.
    stages : tuple of Stage
        What is eliminated level by level: the leading grouping factor and, in their order, those
        that it is nested in and that are not left to the tail.
    tail : tuple of TailBlock
        The other grouping factors.
    n_tail : int
        Number q of random effects in the tail.
    tail_gram : ndarray (q, q)
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
    class_map : scipy.sparse.csr_array (n_filled, C * k * k) or None
        The same map with the levels added up that share their block of Z'Z, and so their W_j.
    representatives : ndarray (C,)
        A level of each of these classes.
    split : Split or None
        [X y] split into what the random effects can reproduce and the rest, where little is left:
        see :mod:`bayeslmm.likelihood.shrinkage`.
    """

    products: CrossProducts
    lead: int
    stages: tuple[Stage, ...]
    tail: tuple[TailBlock, ...]
    n_tail: int
    tail_gram: Array
    tail_mixed: Array
    coupling: sp.csr_array
    products_map: sp.csr_array | None
    filled: Indices
    class_map: sp.csr_array | None
    representatives: Indices
    split: Split | None = None

    @property
    def nested(self) -> bool:
        """Whether more than the leading grouping factor is eliminated level by level."""
        return len(self.stages) > 1

    def without_congruence(self, blocks: Array) -> Array:
        """tail_gram - coupling @ blockdiag(blocks) @ coupling.T: (q, q), lower triangle at least.

        A new array in Fortran order, as LAPACK likes its lower triangles best.
        """
        if self.class_map is not None:
            schur = self.tail_gram.copy()
            schur.reshape(-1)[self.filled] -= self.class_map @ blocks[self.representatives].ravel()
            return schur.T
        product = self.coupling @ _block_diagonal(blocks) @ self.coupling.T
        return self.tail_gram.T - product.toarray().T

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


def make_plan(products: CrossProducts, *, nested: bool | None = None) -> Plan:
    """Choose the leading factor and lay out the rest.

    Parameters
    ----------
    products : CrossProducts
        The data.
    nested : bool, optional
        Whether nested grouping factors stay sparse; by default where that pays.

    Returns
    -------
    Plan

    Raises
    ------
    DataError
        If the dense part would be too large for memory.
    """
    chain = choose_stages(products, nested)
    lead = chain[0]
    tail = tuple(_tail_blocks(products, chain))
    q = sum(block.n_levels * block.n_coefs for block in tail)
    if q > MAX_TAIL:
        raise DataError(
            f"the grouping factors crossed with the largest have {q:,} random effects together; "
            f"at most {MAX_TAIL:,} are supported. Drop a crossed random-effects term."
        )
    couplings = [_tail_coupling(products, factor, tail, q) for factor in chain]
    coupling = couplings[0]
    products_map, filled = _products_map(coupling, products.random[lead].shape[1])
    class_map, representatives = _class_map(products_map, products.random[lead])
    return Plan(
        products=products,
        lead=lead,
        stages=make_stages(products, chain, couplings),
        tail=tail,
        n_tail=q,
        tail_gram=_tail_gram(products, tail, q),
        tail_mixed=np.vstack(
            [products.mixed[b.factor].reshape(-1, products.n_fixed + 1) for b in tail]
            or [np.zeros((0, products.n_fixed + 1))]
        ),
        coupling=coupling,
        products_map=products_map,
        filled=filled,
        class_map=class_map,
        representatives=representatives,
    )


def level_classes(blocks: Array) -> Indices:
    """Class of each level, levels with the same block sharing one."""
    levels, k = blocks.shape[:2]
    size = np.einsum("jaa->j", blocks)
    scaled = np.round(blocks / np.where(size > 0, size, 1.0)[:, None, None], SAME_DIGITS)
    magnitude = np.round(size / np.max(size), SAME_DIGITS)
    key = np.column_stack([scaled.reshape(levels, k * k), magnitude])
    codes = np.zeros(levels, dtype=np.int64)
    for column in key.T:
        distinct, inverse = np.unique(column, return_inverse=True)
        codes = codes * len(distinct) + inverse
        codes = np.unique(codes, return_inverse=True)[1]
    return codes.astype(np.intp)


def _tail_blocks(products: CrossProducts, chain: Sequence[int]) -> Iterator[TailBlock]:
    start = 0
    for factor, gram in enumerate(products.random):
        if factor not in chain:
            yield TailBlock(factor, start, gram.shape[0], gram.shape[1])
            start += gram.shape[0] * gram.shape[1]


def _tail_gram(products: CrossProducts, tail: tuple[TailBlock, ...], q: int) -> Array:
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
    for i in range(row.n_coefs):
        for j in range(col.n_coefs):
            rows = row.start + first * row.n_coefs + i
            gram[rows, col.start + second * col.n_coefs + j] += blocks[:, i, j]


def _tail_coupling(
    products: CrossProducts, stage: int, tail: tuple[TailBlock, ...], q: int
) -> sp.csr_array:
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
        row = block.start + outer[:, None] * block.n_coefs + np.arange(block.n_coefs)
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
    if q == 0:
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


def _class_map(
    products_map: sp.csr_array | None, blocks: Array
) -> tuple[sp.csr_array | None, Indices]:
    """The map of the products from one W per class of levels, and a level of each class."""
    if products_map is None:
        return None, np.zeros(0, dtype=np.intp)
    classes = level_classes(blocks)
    _, representatives = np.unique(classes, return_index=True)
    levels, size = blocks.shape[0], blocks.shape[1] ** 2
    columns = (classes[:, None] * size + np.arange(size)).ravel()
    index = (np.arange(levels * size), columns)
    shape = (levels * size, len(representatives) * size)
    gather = sp.csr_array((np.ones(levels * size), index), shape=shape)
    return sp.csr_array(products_map @ gather), representatives


def _block_diagonal(blocks: Array) -> sp.bsr_array:
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
