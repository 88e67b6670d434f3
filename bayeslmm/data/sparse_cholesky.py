"""Cholesky factors of sparse symmetric matrices, and entries of their inverses.

The order of elimination and the filled pattern are found once for all matrices of one pattern.
Factors are SuperLU's in symmetric mode, without pivoting. The inverse is computed on the pattern of
the factor only, from the last column to the first: many columns at once, those that do not depend
on each other in the elimination tree, after the last ones, which fill up, as one dense block.

References
----------
Takahashi, Fagan, Chin (1973), 8th PICA Conference Proceedings, 63-69.
Li (2005), doi:10.1145/1089014.1089017, for SuperLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotri
from scipy.sparse.linalg import SuperLU, splu

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PAIR = 2e-8
"""Seconds, roughly, that a pair of entries of a column takes in the inverse."""

DENSE = 2e-10
"""Seconds, roughly, that the cube of the size of the dense block takes."""

WIDE = 4096
"""Largest dense block: 0.13 GB."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Elimination of symmetric sparse matrices that have their entries at the same places.

    Attributes
    ----------
    order : ndarray of int (n,)
        Row of the matrix that is eliminated first, second and so on.
    source : ndarray of int (nnz,)
        Where the entries of the matrix in this order, column by column, are in the original.
    indices, indptr : ndarray
        Their rows, and the beginning of each column.
    filled : scipy.sparse.csc_array (n, n)
        Lower triangle of the factor's pattern, the diagonal first; its values mean nothing.
    """

    order: Indices
    source: Indices
    indices: NDArray[np.intc]
    indptr: NDArray[np.intc]
    filled: sp.csc_array

    @classmethod
    def of(cls, matrix: sp.csc_array) -> Pattern:
        """The pattern of a symmetric matrix, stored zeros included."""
        n = matrix.shape[0]
        places = sp.csc_array((np.arange(1.0, matrix.nnz + 1.0), matrix.indices, matrix.indptr))
        # Values without structure of their own: no fill-in of theirs cancels by chance.
        noise = sp.csc_array(
            (np.random.default_rng(0).uniform(0.5, 1.0, matrix.nnz), matrix.indices, matrix.indptr)
        )
        noise = sp.csc_array(noise + noise.T)
        noise.setdiag(np.asarray(noise.sum(axis=0)).ravel() + 1.0)
        order, spec = np.arange(n), "MMD_AT_PLUS_A"
        for _ in range(5):  # SuperLU reorders within the tree until that is in order
            lu = _superlu(sp.csc_array(noise[order][:, order]), spec)
            spec = "NATURAL"
            if np.array_equal(lu.perm_c, np.arange(n)):
                break
            order = order[np.argsort(lu.perm_c)]
        lower = sp.csc_array(lu.L)
        lower.eliminate_zeros()
        lower.sort_indices()
        permuted = sp.csc_array(places[order][:, order])
        permuted.sort_indices()
        return cls(
            order=order,
            source=permuted.data.astype(np.intp) - 1,
            indices=permuted.indices.astype(np.intc),
            indptr=permuted.indptr.astype(np.intc),
            filled=lower,
        )

    @property
    def size(self) -> int:
        """Number of rows n."""
        return len(self.order)

    def factor(self, values: Array) -> SparseCholesky:
        """Factorise the matrix with these entries (nnz,), in the order of the original.

        Raises
        ------
        numpy.linalg.LinAlgError
            If it is not positive definite.
        """
        shape = (self.size, self.size)
        matrix = sp.csc_array((values[self.source], self.indices, self.indptr), shape=shape)
        lu = _superlu(matrix, "NATURAL")
        identity = np.arange(self.size)
        if not (np.array_equal(lu.perm_r, identity) and np.array_equal(lu.perm_c, identity)):
            raise np.linalg.LinAlgError("the sparse matrix is not positive definite")
        pivots = lu.U.diagonal()
        if not np.all(pivots > 0.0) or not np.all(np.isfinite(pivots)):
            raise np.linalg.LinAlgError("the sparse matrix is not positive definite")
        return SparseCholesky(self, lu, pivots)

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """Places of the filled pattern, column times n plus row, ascending."""
        return self.columns.astype(np.int64) * self.size + self.filled.indices

    @cached_property
    def columns(self) -> Indices:
        """Column of each place of the filled pattern."""
        return np.repeat(np.arange(self.size), np.diff(self.filled.indptr))

    @cached_property
    def position(self) -> Indices:
        """Where in the order each row of the matrix is."""
        return np.argsort(self.order)

    @cached_property
    def dense_from(self) -> int:
        """First column of those that are inverted as one dense block."""
        below = np.diff(self.filled.indptr) - 1.0
        rest = np.concatenate([[0.0], np.cumsum(below**2)])  # of the columns before
        first = np.arange(max(0, self.size - WIDE), self.size + 1)
        costs = PAIR * rest[first] + DENSE * (self.size - first) ** 3.0
        return int(first[np.argmin(costs)])

    def places(self, rows: Indices, cols: Indices) -> Indices:
        """Where entries, by their places in the order, are in the values of an inverse."""
        low, high = np.minimum(rows, cols), np.maximum(rows, cols)
        start = self.dense_from
        keys = low.astype(np.int64) * self.size + high
        found = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        sparse = low < start
        if not np.array_equal(self.keys[found[sparse]], keys[sparse]):
            raise LookupError("the entries are not in the pattern of the factor")
        dense = self.filled.indptr[start] + (high - start) * (self.size - start) + (low - start)
        return np.where(sparse, found, dense).astype(np.intp)

    @cached_property
    def depth(self) -> Indices:
        """Steps from each column before the dense block to that or to a root of the tree."""
        start, indptr = self.dense_from, self.filled.indptr
        below = np.diff(indptr) > 1
        parent = self.filled.indices[np.minimum(indptr[:-1] + 1, self.filled.nnz - 1)]
        depth = [0] * start
        for j in reversed(np.flatnonzero(below[:start] & (parent[:start] < start)).tolist()):
            depth[j] = depth[parent[j]] + 1
        return np.array(depth, dtype=np.intp)

    @cached_property
    def steps(self) -> list[_Step]:
        """Columns before the dense block, those together that do not need each other."""
        columns = np.flatnonzero(np.diff(self.filled.indptr)[: self.dense_from] > 1)
        order = columns[np.argsort(self.depth[columns], kind="stable")]
        cuts = np.flatnonzero(np.diff(self.depth[order])) + 1
        return [self._step(part) for part in np.split(order, cuts) if len(part)]

    @cached_property
    def levels(self) -> _Levels:
        """The factor by levels of the tree."""
        start, size = self.dense_from, self.size
        turned = np.concatenate(
            [np.argsort(-self.depth, kind="stable"), np.arange(start, size)]
        ).astype(np.intp)
        place = np.argsort(turned)
        cuts = np.flatnonzero(np.diff(self.depth[turned[:start]])) + 1
        bounds = np.unique(np.concatenate([[0], cuts, [start]])).tolist()
        kept = (self.columns < start) & (self.filled.indices > self.columns)
        source = np.flatnonzero(kept)
        rows, cols = place[self.filled.indices[kept]], place[self.columns[kept]]
        return _Levels(
            turned=turned,
            slices=[slice(*pair) for pair in pairwise(bounds)],
            rows=_Rows.of(rows, cols, source, size),
            columns=_Rows.of(cols, rows, source, size),
        )

    def _step(self, columns: Indices) -> _Step:
        indptr = self.filled.indptr.astype(np.intp)
        counts = indptr[columns + 1] - indptr[columns] - 1
        entries = _ranges(indptr[columns] + 1, counts)
        each = np.repeat(counts, counts)  # entries of the column of each entry
        others = _ranges(np.repeat(indptr[columns] + 1, counts), each)
        rows = self.filled.indices
        return _Step(
            diagonal=indptr[columns],
            entries=entries,
            by_column=np.concatenate([[0], np.cumsum(counts)[:-1]]),
            others=others.astype(np.int32),
            places=self.places(rows[np.repeat(entries, each)], rows[others]).astype(np.int32),
            by_entry=np.concatenate([[0], np.cumsum(each)[:-1]]),
        )


class _Step(NamedTuple):
    """Columns of an inverse that are computed together.

    Attributes
    ----------
    diagonal : ndarray of int
        Place of the diagonal entry of each column.
    entries : ndarray of int
        Places of the entries below it, column by column.
    by_column : ndarray of int
        Where each column begins among the entries.
    others, places : ndarray of int
        For each entry, all entries of its column, and the places in the inverse where the two rows
        meet.
    by_entry : ndarray of int
        Where each entry begins among these.
    """

    diagonal: Indices
    entries: Indices
    by_column: Indices
    others: NDArray[np.int32]
    places: NDArray[np.int32]
    by_entry: Indices


class _Levels(NamedTuple):
    """Columns before the dense block by their depth, the deepest first, and the block.

    Columns of one level do not depend on each other, so that triangular systems are solved level
    by level, for many right-hand sides at once.

    Attributes
    ----------
    turned : ndarray of int (n,)
        The columns in this order.
    slices : list of slice
        The levels.
    rows, columns : _Rows
        The factor below the diagonal and outside the block, and its transpose.
    """

    turned: Indices
    slices: list[slice]
    rows: _Rows
    columns: _Rows


class _Rows(NamedTuple):
    """A sparse matrix (n, n) by rows.

    Attributes
    ----------
    indptr, indices : ndarray of int
        Beginnings of the rows, and columns.
    source : ndarray of int
        Where the values are in the filled pattern.
    """

    indptr: NDArray[np.intc]
    indices: NDArray[np.intc]
    source: Indices

    @classmethod
    def of(cls, rows: Indices, cols: Indices, source: Indices, size: int) -> _Rows:
        order = np.lexsort((cols, rows))
        indptr = np.searchsorted(rows[order], np.arange(size + 1))
        return cls(indptr.astype(np.intc), cols[order].astype(np.intc), source[order])

    def take(self, values: Array, rows: slice) -> sp.csr_array:
        """Some of the rows, with values from the filled pattern."""
        own = slice(self.indptr[rows.start], self.indptr[rows.stop])
        indptr = self.indptr[rows.start : rows.stop + 1] - self.indptr[rows.start]
        shape = (rows.stop - rows.start, len(self.indptr) - 1)
        return sp.csr_array((values[self.source[own]], self.indices[own], indptr), shape=shape)


@dataclass(frozen=True, eq=False)
class SparseCholesky:
    """A factor ``S = L L'`` of a sparse matrix, L being lower triangular up to an order of rows.

    Attributes
    ----------
    pattern : Pattern
        The order of elimination.
    lu : scipy.sparse.linalg.SuperLU
        Factor in this order, ``M D M'`` with ones on the diagonal of M.
    pivots : ndarray (n,)
        D.
    """

    pattern: Pattern
    lu: SuperLU
    pivots: Array

    @property
    def log_det(self) -> float:
        """Log determinant of S."""
        return float(np.sum(np.log(self.pivots)))

    @cached_property
    def lower(self) -> sp.csc_array:
        """M, on the filled pattern: entries that cancel are zeros there."""
        own, filled = sp.csc_array(self.lu.L), self.pattern.filled
        own.sort_indices()
        same = np.array_equal(own.indptr, filled.indptr)
        if same and np.array_equal(own.indices, filled.indices):
            return own
        columns = np.repeat(np.arange(self.pattern.size), np.diff(own.indptr))
        keys = columns.astype(np.int64) * self.pattern.size + own.indices
        kept = own.data != 0.0
        values = np.zeros(filled.nnz)
        values[np.searchsorted(self.pattern.keys, keys[kept])] = own.data[kept]
        return sp.csc_array((values, filled.indices, filled.indptr), shape=filled.shape)

    @property
    def root(self) -> sp.csc_array:
        """L, with its rows in the order of those of S."""
        lower, order = self.lower, self.pattern.order
        values = lower.data * np.sqrt(self.pivots)[self.pattern.columns]
        return sp.csc_array((values, order[lower.indices], lower.indptr), shape=lower.shape)

    @cached_property
    def order(self) -> Indices:
        """Rows of S in the order of levels."""
        return self.pattern.order[self.pattern.levels.turned]

    @cached_property
    def scale(self) -> Array:
        """Square roots of the pivots (n, 1) in the order of levels."""
        return np.sqrt(self.pivots[self.pattern.levels.turned])[:, None]

    @cached_property
    def _dense(self) -> Array:
        """The dense block of M."""
        start = self.pattern.dense_from
        return np.asfortranarray(self.lower[start:, start:].toarray())

    @cached_property
    def _forward(self) -> list[tuple[slice, sp.csr_array]]:
        levels, size = self.pattern.levels, self.pattern.size
        rows = [*levels.slices[1:], slice(self.pattern.dense_from, size)]
        return [(own, levels.rows.take(self.lower.data, own)) for own in rows]

    @cached_property
    def _backward(self) -> list[tuple[slice, sp.csr_array]]:
        levels = self.pattern.levels
        return [(own, levels.columns.take(self.lower.data, own)) for own in reversed(levels.slices)]

    def _down(self, x: Array) -> Array:
        """M^-1 times (n, m) in the order of levels, in place."""
        for own, part in self._forward:
            x[own] -= part @ x
        start = self.pattern.dense_from
        if start < len(x):
            x[start:] = dtrsm(1.0, self._dense, x[start:], lower=1, diag=1)
        return x

    def _up(self, x: Array) -> Array:
        """M'^-1 times (n, m) in the order of levels, in place."""
        start = self.pattern.dense_from
        if start < len(x):
            x[start:] = dtrsm(1.0, self._dense, x[start:], lower=1, diag=1, trans_a=1)
        for own, part in self._backward:
            x[own] -= part @ x
        return x

    def solve(self, right: Array) -> Array:
        """S^-1 times right-hand sides (n,) or (n, m)."""
        x = self._down(self._taken(right))
        x /= self.scale**2
        return self._put(self._up(x), right)

    def half(self, right: Array) -> Array:
        """L^-1 times right-hand sides (n,) or (n, m): its square is that by S^-1."""
        return (self._down(self._taken(right)) / self.scale).reshape(right.shape)

    def back(self, half: Array) -> Array:
        """L'^-1 times columns (n,) or (n, m): covariance S^-1, where these are standard normal."""
        return self._put(self._up(half.reshape(len(half), -1) / self.scale), half)

    def times(self, columns: Array) -> Array:
        """L times columns (n,) or (n, m): covariance S, where these are standard normal."""
        x = columns.reshape(len(columns), -1) * self.scale
        start, levels = self.pattern.dense_from, self.pattern.levels
        result = x + levels.rows.take(self.lower.data, slice(0, len(x))) @ x
        result[start:] += self._dense @ x[start:] - x[start:]
        return self._put(result, columns)

    def _taken(self, rows: Array) -> Array:
        """Rows (n, m) in the order of levels."""
        return rows.reshape(len(rows), -1)[self.order]

    def _put(self, x: Array, like: Array) -> Array:
        result = np.empty_like(x)
        result[self.order] = x
        return result.reshape(like.shape)

    @cached_property
    def inverse(self) -> SelectedInverse:
        """Entries of S^-1 on the pattern of the factor."""
        pattern, lower = self.pattern, self.lower
        start, entries = pattern.dense_from, lower.data
        border = pattern.filled.indptr[start]
        block = lower[start:, start:].toarray() * np.sqrt(self.pivots[start:])
        values = np.empty(border + block.size)
        if len(block):
            dense, info = dpotri(block, lower=1)
            if info:
                raise np.linalg.LinAlgError("the sparse matrix is singular")
            values[border:] = (np.tril(dense) + np.tril(dense, -1).T).ravel()
        values[pattern.filled.indptr[:start]] = 1.0 / self.pivots[:start]
        for step in pattern.steps:
            sums = np.add.reduceat(values[step.places] * entries[step.others], step.by_entry)
            values[step.entries] = -sums
            values[step.diagonal] += np.add.reduceat(entries[step.entries] * sums, step.by_column)
        return SelectedInverse(pattern, values)


@dataclass(frozen=True, eq=False)
class SelectedInverse:
    """Some entries of the inverse of a sparse matrix: where the matrix or its factor has entries.

    Attributes
    ----------
    pattern : Pattern
        The order of elimination.
    values : ndarray
        The entries: of the columns before the dense block, then this block.
    """

    pattern: Pattern
    values: Array

    def at(self, rows: Indices, cols: Indices) -> Array:
        """Entries at some places, arrays of one shape."""
        rows, cols = np.broadcast_arrays(rows, cols)
        position = self.pattern.position
        return self.values[self.pattern.places(position[rows], position[cols])]

    @property
    def diagonal(self) -> Array:
        """The diagonal (n,)."""
        return self.at(np.arange(self.pattern.size), np.arange(self.pattern.size))


def sparse_cholesky(matrix: sp.csc_array) -> SparseCholesky:
    """Factorise one sparse symmetric matrix.

    Parameters
    ----------
    matrix : scipy.sparse.csc_array (n, n)
        The matrix.

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is not positive definite.
    """
    matrix = sp.csc_array(matrix)
    matrix.sum_duplicates()
    return Pattern.of(matrix).factor(matrix.data)


def _superlu(matrix: sp.csc_array, order: str) -> SuperLU:
    try:
        return splu(
            matrix, permc_spec=order, diag_pivot_thresh=0.0, options={"SymmetricMode": True}
        )
    except RuntimeError as error:
        raise np.linalg.LinAlgError("the sparse matrix is singular") from error


def _ranges(starts: Indices, counts: Indices) -> Indices:
    """Numbers from each start on, as many as counted, one range after the other."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
