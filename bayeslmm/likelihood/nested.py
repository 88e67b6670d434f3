"""Nested grouping factors: the stages of the elimination that stay block diagonal.

Where every level of one grouping factor meets a single level of another, eliminating the first
leaves the second block diagonal, so that it can be eliminated level by level as well, and so on up
the hierarchy. Elimination couples nothing that does not meet in the data, so the places of all
blocks are fixed; they are worked out here, once per plan, and only the values change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.likelihood.crossprod import Coupling, WorkingProducts

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

WORTHWHILE = 200
"""Random effects that nested stages must take out of the dense tail to be used."""

FILLED = 0.1
"""Share of nonzero entries from which a dense product is faster than a sparse one."""

BATCH = 4_000_000
"""Most entries of a temporary dense matrix: 32 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Places where a stage meets the tail: pairs of a level and a column of the tail.

    Attributes
    ----------
    level, column : ndarray (n_cells,)
        The pairs, sorted by level, then column.
    by_level : scipy.sparse.csr_array (J, n_cells)
        Sums over the cells of each level.
    pattern : scipy.sparse.csr_array (q, J * k)
        The coupling as a sparse matrix, with any values.
    order : ndarray (n_cells * k,)
        Where the stored entries of `pattern` are in cells (n_cells, k) laid flat.
    """

    level: Indices
    column: Indices
    by_level: sp.csr_array
    pattern: sp.csr_array
    order: Indices

    def matrix(self, values: Array) -> sp.csr_array:
        """Sparse matrix (q, J * k) of the values (n_cells, k)."""
        pattern = self.pattern
        stored = (values.ravel()[self.order], pattern.indices, pattern.indptr)
        return sp.csr_array(stored, shape=pattern.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Parent:
    """A later stage as an earlier one sees it.

    Attributes
    ----------
    factor : int
        Grouping factor of the later stage.
    level : ndarray (J,)
        The level that each level of the earlier stage belongs to.
    sums : scipy.sparse.csr_array (J of the later stage, J)
        Sums over the levels within each level of the later stage.
    cell : ndarray (n_cells,)
        The cell of the later stage that each cell of the earlier one belongs to.
    cell_sums : scipy.sparse.csr_array (n_cells of the later stage, n_cells)
        Sums over the cells within each cell of the later stage.
    """

    factor: int
    level: Indices
    sums: sp.csr_array
    cell: Indices
    cell_sums: sp.csr_array


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Cross-products of one stage with itself and everything later.

    Attributes
    ----------
    columns : tuple of ndarray
        Of each level with itself (J, k, k), with the level of each later stage that it belongs to
        (J, k, k of the later stage), and with [X y] (J, k, p + 1).
    cells : ndarray (n_cells, k)
        With the columns of the tail that it meets.
    """

    columns: tuple[Array, ...]
    cells: Array

    @property
    def gram(self) -> Array:
        """Of each level with itself."""
        return self.columns[0]

    @property
    def links(self) -> tuple[Array, ...]:
        """With the later stages."""
        return self.columns[1:-1]

    @property
    def mixed(self) -> Array:
        """With [X y]."""
        return self.columns[-1]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """A grouping factor that is eliminated level by level.

    Attributes
    ----------
    factor : int
        The grouping factor.
    block : Block
        Its cross-products in the data.
    parents : tuple of Parent
        The later stages.
    cells : Cells
        Where it meets the tail; empty where there is one stage only.
    """

    factor: int
    block: Block
    parents: tuple[Parent, ...]
    cells: Cells


@dataclass(frozen=True, slots=True, eq=False)
class Pivot:
    """A stage at the moment of its elimination.

    Attributes
    ----------
    block : Block
        Its cross-products after the elimination of the earlier stages.
    coupling : scipy.sparse.csr_array (q, J * k)
        The part of `block` with the tail.
    whiten : ndarray (J, k, k)
        H_j with ``H_j' H_j = T (T'A_j T + I)^-1 T'``.
    kernel : ndarray (J, k, k)
        ``H_j' H_j``.
    """

    block: Block
    coupling: sp.csr_array
    whiten: Array
    kernel: Array


def choose_stages(products: WorkingProducts, nested: bool | None = None) -> tuple[int, ...]:
    """Grouping factors to eliminate level by level, in order.

    Parameters
    ----------
    products : WorkingProducts
        The data.
    nested : bool, optional
        Whether to use nested grouping factors where there are some. By default they are used
        where that takes more than :data:`WORTHWHILE` random effects out of the dense tail;
        otherwise there is one stage, the largest grouping factor. Factors whose levels are related,
        or tied by correlated residuals, are left to the tail; there is no stage if that is all.
    """
    sizes = [gram.shape[0] * gram.shape[1] for gram in products.random]
    tied = {c.factors[0] for c in products.couplings if c.factors[0] == c.factors[1]}
    unrelated = [f for f, known in enumerate(products.relationships) if known is None]
    free = [factor for factor in unrelated if factor not in tied]
    if not free:
        return ()
    largest = max(free, key=lambda factor: sizes[factor])
    if nested is False:
        return (largest,)
    chain = _largest_chain(_nestings(products), sizes, free)
    if nested is None:
        nested = sum(sizes[factor] for factor in chain) - sizes[largest] > WORTHWHILE
    return chain if nested and len(chain) > 1 else (largest,)


def make_stages(
    products: WorkingProducts, chain: Sequence[int], couplings: Sequence[sp.csr_array]
) -> tuple[Stage, ...]:
    """Index work for eliminating the factors of `chain`, coupled with the tail as given."""
    if not chain:
        return ()
    if len(chain) == 1:
        couplings = [couplings[0][:0]]
    cells, values = zip(
        *(
            _tail_cells(coupling, products.random[factor].shape[1])
            for factor, coupling in zip(chain, couplings, strict=True)
        ),
        strict=True,
    )
    stages = []
    for i, factor in enumerate(chain):
        found = [
            _parent(products, (factor, chain[j]), (cells[i], cells[j]))
            for j in range(i + 1, len(chain))
        ]
        links = [link for _, link in found]
        columns = (products.random[factor], *links, products.mixed[factor])
        parents = tuple(parent for parent, _ in found)
        stages.append(Stage(factor, Block(columns, values[i]), parents, cells[i]))
    return tuple(stages)


def reduced(stage: Stage, pivot: Pivot, later: Block, position: int) -> Block:
    """Cross-products `later` of a stage's parent number `position` after its elimination."""
    parent = stage.parents[position]
    weighted = pivot.block.links[position].transpose(0, 2, 1) @ pivot.kernel
    columns = tuple(
        own - _segment_sums(parent.sums, weighted @ column)
        for own, column in zip(later.columns, pivot.block.columns[1 + position :], strict=True)
    )
    cells = later.cells
    if cells.size:
        parts = weighted[stage.cells.level] @ pivot.block.cells[:, :, None]
        cells = cells - parent.cell_sums @ parts[:, :, 0]
    return Block(columns, cells)


def tail_products(pivot: Pivot) -> Array:
    """What eliminating a later stage takes from the tail's Z'Z: (q, q)."""
    levels, k = pivot.whiten.shape[:2]
    blocks = (pivot.whiten, np.arange(levels), np.arange(levels + 1))
    rows = (sp.bsr_array(blocks, shape=(levels * k, levels * k)) @ pivot.coupling.T).tocsr()
    if not is_filled(rows):
        return (rows.T @ rows).toarray()
    total = np.zeros((rows.shape[1], rows.shape[1]))
    for batch in batches(rows.shape[0], rows.shape[1]):
        dense = rows[batch].toarray()
        total += dense.T @ dense
    return total


def without_later(
    stage: Stage, pivot: Pivot, right: Array, tail: Array, known: Sequence[Array]
) -> Array:
    """`right` (J, k) or (J, k, m) of a stage less what later random effects explain.

    `tail` (q,) or (q, m) and `known`, by grouping factor, hold these effects.
    """
    if len(tail):
        right = right - (pivot.coupling.T @ tail).reshape(right.shape)
    for parent, link in zip(stage.parents, pivot.block.links, strict=True):
        effects = known[parent.factor][parent.level]
        if effects.ndim == 2:
            right = right - np.einsum("jkl,jl->jk", link, effects)
        else:
            right = right - link @ effects
    return right


def batches(count: int, width: int) -> Iterator[slice]:
    """Cut `count` rows into parts with at most :data:`BATCH` entries, `width` in each row."""
    size = max(1, BATCH // max(1, width))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def is_filled(matrix: sp.sparray) -> bool:
    """Whether a sparse matrix is better treated as a dense one."""
    rows, columns = matrix.shape
    return bool(matrix.nnz > FILLED * rows * columns)


def _nestings(products: WorkingProducts) -> list[list[int]]:
    """For each grouping factor, those that it is nested in; of two equal ones the later."""
    inside: list[list[int]] = [[] for _ in products.random]
    for coupling in products.couplings:
        first, second = coupling.factors
        n_first, n_second = (
            np.count_nonzero(np.bincount(levels)) for levels in (coupling.first, coupling.second)
        )
        if len(coupling.first) == n_first:
            inside[first].append(second)
        elif len(coupling.first) == n_second:
            inside[second].append(first)
    return inside


def _largest_chain(
    inside: Sequence[Sequence[int]], sizes: Sequence[int], free: Sequence[int]
) -> tuple[int, ...]:
    """Factors among `free`, each nested in the next, with the most random effects together."""

    def size(chain: tuple[int, ...]) -> int:
        return sum(sizes[factor] for factor in chain)

    def chain_from(factor: int) -> tuple[int, ...]:
        outer = [other for other in inside[factor] if other in free]
        return (factor, *max(map(chain_from, outer), key=size, default=()))

    return max(map(chain_from, free), key=size)


def _tail_cells(coupling: sp.csr_array, k: int) -> tuple[Cells, Array]:
    """Cells of a coupling (q, J * k) with the tail, and their values (n_cells, k)."""
    coo = coupling.tocoo()
    level, coef = np.divmod(coo.col, k)
    order = np.lexsort((coef, coo.row, level))
    values = coo.data[order].reshape(-1, k)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    level = level[order][::k].astype(np.intp)
    column = coo.row[order][::k].astype(np.intp)
    sums = _indicator(level, coupling.shape[1] // k)
    return Cells(level, column, sums, coupling, place), values


def _parent(
    products: WorkingProducts, factors: tuple[int, int], cells: tuple[Cells, Cells]
) -> tuple[Parent, Array]:
    """How the first factor is nested in the second, and the blocks (J, k, l) between them."""
    inner, outer, blocks = _oriented(products, factors)
    levels, k = products.random[factors[0]].shape[:2]
    level = np.zeros(levels, dtype=np.intp)
    level[inner] = outer
    links = np.zeros((levels, k, blocks.shape[2]))
    links[inner] = blocks
    own, other = cells
    width = own.pattern.shape[0]
    keys = other.level * width + other.column
    cell = np.searchsorted(keys, level[own.level] * width + own.column)
    sums = _indicator(level, products.random[factors[1]].shape[0])
    return Parent(factors[1], level, sums, cell, _indicator(cell, len(keys))), links


def _oriented(
    products: WorkingProducts, factors: tuple[int, int]
) -> tuple[Indices, Indices, Array]:
    """Levels and blocks of the coupling between two factors, in the order given."""
    coupling: Coupling = next(
        c for c in products.couplings if c.factors in (factors, factors[::-1])
    )
    if coupling.factors == factors:
        return coupling.first, coupling.second, coupling.blocks
    return coupling.second, coupling.first, coupling.blocks.transpose(0, 2, 1)


def _indicator(group: Indices, n_groups: int) -> sp.csr_array:
    """Matrix (n_groups, n) that sums over the members of each group."""
    n = len(group)
    index = (group, np.arange(n))
    return sp.csr_array((np.ones(n), index), shape=(n_groups, n))


def _segment_sums(sums: sp.csr_array, blocks: Array) -> Array:
    """Sums of blocks (J, k, m) over groups of levels."""
    return (sums @ blocks.reshape(len(blocks), -1)).reshape(-1, *blocks.shape[1:])
