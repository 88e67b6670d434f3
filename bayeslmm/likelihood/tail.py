"""The system ``Lambda' S Lambda + Q`` of the tail, dense or sparse, and its Cholesky factor.

S is what is left of Z'Z, and Q the precision matrix of the spherical random effects: the identity,
or A^-1 x I for levels with relationships A. Where A^-1 is sparse no level is eliminated before, so
that S is Z'Z itself and the system is as sparse as the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf, dpotri

from bayeslmm.data.sparse_cholesky import Pattern
from bayeslmm.likelihood.blocks import TailBlock, add_precisions, scaled_both
from bayeslmm.likelihood.crossprod import WorkingProducts

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class Inverse(Protocol):
    """Inverse of the system, known where random effects meet at least."""

    def at(self, rows: Indices, cols: Indices) -> Array:
        """Entries at some places, arrays of one shape."""
        ...


class Root(Protocol):
    """Cholesky factor L of the system; its rows may be in another order."""

    @property
    def log_det(self) -> float:
        """Log determinant of the system."""
        ...

    def half(self, right: Array) -> Array:
        """L^-1 times (q,) or (q, m)."""
        ...

    def back(self, half: Array) -> Array:
        """L'^-1 times (q,) or (q, m)."""
        ...

    def solve(self, right: Array) -> Array:
        """The inverse of the system times (q, m)."""
        ...

    @property
    def inverse(self) -> Inverse:
        """Inverse of the system."""
        ...


@dataclass(frozen=True, eq=False)
class DenseRoot:
    """Lower Cholesky factor (q, q) in an array whose upper triangle is arbitrary."""

    lower: Array

    @property
    def log_det(self) -> float:
        """Log determinant of the system."""
        return 2.0 * float(np.sum(np.log(np.diag(self.lower))))

    def half(self, right: Array) -> Array:
        """L^-1 times (q,) or (q, m)."""
        return np.asarray(solve_triangular(self.lower, right, lower=True, check_finite=False))

    def back(self, half: Array) -> Array:
        """L'^-1 times (q,) or (q, m)."""
        solved = solve_triangular(self.lower, half, lower=True, trans="T", check_finite=False)
        return np.asarray(solved)

    def solve(self, right: Array) -> Array:
        """The inverse of the system times (q, m)."""
        half = dtrsm(1.0, self.lower, np.array(right, order="F"), lower=1, overwrite_b=1)
        return np.asarray(dtrsm(1.0, self.lower, half, lower=1, trans_a=1, overwrite_b=1))

    @property
    def inverse(self) -> DenseInverse:
        """Inverse of the system."""
        if not len(self.lower):
            return DenseInverse(self.lower)
        inverse, info = dpotri(self.lower, lower=1)
        if info:
            raise np.linalg.LinAlgError("the tail of the mixed-model equations is singular")
        return DenseInverse(np.asarray(inverse))


@dataclass(frozen=True, eq=False)
class DenseInverse:
    """The inverse as an array whose lower triangle is valid."""

    lower: Array

    def at(self, rows: Indices, cols: Indices) -> Array:
        """Entries at some places, arrays of one shape."""
        return self.lower[np.maximum(rows, cols), np.minimum(rows, cols)]


def dense_root(
    schur: Array, tail: Sequence[TailBlock], factors: Sequence[Array], *, overwrite: bool
) -> DenseRoot:
    """Factorise the system from the lower triangle of S."""
    system = scaled_both(schur, tail, factors, transposed=True, overwrite=overwrite)
    add_precisions(system, tail)
    # LAPACK itself: SciPy's wrapper of it holds the interpreter lock.
    lower, info = dpotrf(system, lower=1, overwrite_a=1, clean=0)
    if info:
        raise np.linalg.LinAlgError(
            "the tail of the mixed-model equations is not positive definite"
        )
    return DenseRoot(np.asarray(lower))


class Cells(NamedTuple):
    """Blocks of Z'Z of one or two grouping factors.

    Attributes
    ----------
    factors : tuple of int
        The grouping factors of the rows and the columns of the blocks.
    places : ndarray of int (n_cells, k, l)
        Where the entries are in the stored values of the sparse matrix.
    mirrored : ndarray of int (n_cells, k, l) or None
        Where they are once more, transposed; None for blocks of levels with themselves.
    """

    factors: tuple[int, int]
    places: Indices
    mirrored: Indices | None


@dataclass(frozen=True, eq=False)
class SparseTail:
    """The system as a sparse matrix, for all covariance parameters.

    Attributes
    ----------
    pattern : Pattern
        Its order of elimination.
    precision : ndarray (nnz,)
        Values of Q.
    cells : tuple of Cells
        Where the blocks of Z'Z are.
    """

    pattern: Pattern
    precision: Array
    cells: tuple[Cells, ...]

    def root(self, gram: sp.csc_array, factors: Sequence[Array]) -> Root:
        """Factorise the system; Z'Z as of :meth:`gram`, relative factors in the working basis."""
        values = self.precision.copy()
        for (f, g), places, mirrored in self.cells:
            blocks = np.einsum("ka,nkl,lb->nab", factors[f], gram.data[places], factors[g])
            values[places] += blocks
            if mirrored is not None:
                values[mirrored] += blocks
        return self.pattern.factor(values)

    def gram(self, products: WorkingProducts, tail: Sequence[TailBlock]) -> sp.csc_array:
        """Z'Z of the tail on the pattern of the system."""
        values = np.zeros_like(self.precision)
        parts = _blocks(products, tail)
        for cells, (_, _, blocks) in zip(self.cells, parts, strict=True):
            values[cells.places] += blocks
            if cells.mirrored is not None:
                values[cells.mirrored] += blocks
        return sp.csc_array((values, self._places.indices, self._places.indptr))

    @cached_property
    def _places(self) -> sp.csc_array:
        """The pattern in the tail's order."""
        order, size = self.pattern.order, self.pattern.size
        columns = order[np.repeat(np.arange(size), np.diff(self.pattern.indptr))]
        rows = order[self.pattern.indices]
        matrix = sp.csc_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
        matrix.sort_indices()
        return matrix


def sparse_tail(products: WorkingProducts, tail: Sequence[TailBlock]) -> SparseTail:
    """Lay out the system of a tail that has all of the random effects."""
    size = sum(block.n_levels * block.n_coefs for block in tail)
    gram = [(r, c, r is c) for r, c, _ in _blocks(products, tail)]
    whole = [_whole(block) for block in tail]
    rows = [*(np.broadcast_to(r[:, :, None], (*r.shape, c.shape[1])) for r, c, _ in gram)]
    cols = [*(np.broadcast_to(c[:, None, :], (*r.shape, c.shape[1])) for r, c, _ in gram)]
    rows += [r for r, _, _ in whole]
    cols += [c for _, c, _ in whole]
    first = np.concatenate([part.ravel() for part in rows])
    second = np.concatenate([part.ravel() for part in cols])
    keys = np.unique(np.concatenate([second * size + first, first * size + second]))

    def places(rows: Indices, cols: Indices) -> Indices:
        return np.searchsorted(keys, cols * size + rows)

    precision = np.zeros(len(keys))
    for r, c, values in whole:
        precision[places(r, c)] = values
    columns, indices = np.divmod(keys, size)
    indptr = np.searchsorted(columns, np.arange(size + 1))
    matrix = sp.csc_array((np.ones(len(keys)), indices, indptr), shape=(size, size))
    cells = []
    for factors, (r, c, own) in zip(_pairs(products, tail), gram, strict=True):
        here = places(r[:, :, None], c[:, None, :])
        cells.append(Cells(factors, here, None if own else places(c[:, None, :], r[:, :, None])))
    return SparseTail(Pattern.of(matrix), precision, tuple(cells))


def _pairs(products: WorkingProducts, tail: Sequence[TailBlock]) -> Iterator[tuple[int, int]]:
    for block in tail:
        yield block.factor, block.factor
    for coupling in products.couplings:
        yield coupling.factors


def _blocks(
    products: WorkingProducts, tail: Sequence[TailBlock]
) -> Iterator[tuple[Indices, Indices, Array]]:
    """Rows (n_cells, k) and columns (n_cells, l) of the blocks of Z'Z, and their values."""
    place = {block.factor: block for block in tail}
    for block in tail:
        own = block.places(np.arange(block.n_levels))
        yield own, own, products.random[block.factor]
    for coupling in products.couplings:
        f, g = (place[factor] for factor in coupling.factors)
        yield f.places(coupling.first), g.places(coupling.second), coupling.blocks


def _whole(block: TailBlock) -> tuple[Indices, Indices, Array]:
    """Rows, columns and values of Q, with zeros between different coefficients of two levels."""
    k = block.n_coefs
    if block.relationship is None:
        cells = sp.eye_array(block.n_levels).tocoo()
    else:
        cells = sp.coo_array(block.relationship.precision)
        cells.sum_duplicates()
    rows = np.repeat(block.places(cells.row), k, axis=1)
    cols = np.tile(block.places(cells.col), k)
    values = cells.data[:, None] * np.eye(k).ravel()
    return rows.ravel(), cols.ravel(), values.ravel()
