"""Algebra on the blocks of the mixed-model equations, at any number of points.

The levels of a grouping factor have a small block each, and share the relative factor T. Lambda
stands for the block-diagonal matrix of the T of all levels. Points come first: (S, q, m), with
relative factors (S, k, k). Where the block of every level is factorised, entry by entry, the small
dimensions come first and the points and levels last, so that each operation is a long loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.relationships import Matrix, Relationship

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class Levels(NamedTuple):
    """The levels of a grouping factor at the moment of their elimination.

    Attributes
    ----------
    whiten : ndarray (k, k, S, C)
        H with ``H'H = T (T'AT + I)^-1 T'``, A the block of a level.
    kernel : ndarray (n_pairs, S, C)
        The lower triangle of H'H, in the order of :func:`lower_pairs`.
    log_det : ndarray (S, C)
        ``log |T'AT + I|``, not finite where the arithmetic broke down.
    """

    whiten: Array
    kernel: Array
    log_det: Array

    def of_each(self, level_class: Indices | slice) -> Array:
        """H of the levels (J, k, k) at a single point, from the class that each belongs to."""
        return np.ascontiguousarray(self.whiten[:, :, 0].transpose(2, 0, 1)[level_class])


def eliminate_levels(gram: Array, factor: Array) -> Levels:
    """Eliminate levels with blocks (k, k, C) for relative factors (S, k, k).

    Blocks (k, k, S, C) differ from point to point.
    """
    k, size = gram.shape[0], gram.shape[-1]
    rows, cols = lower_pairs(k)
    weights = np.einsum("sap,sbp->psab", factor[:, :, rows], factor[:, :, cols])
    if gram.ndim == 4:
        flat = np.einsum("psab,absc->psc", weights, gram)
    else:
        flat = weights.reshape(len(rows), -1, k * k) @ gram.reshape(k * k, size)
    lower = dict(zip(zip(rows.tolist(), cols.tolist(), strict=True), flat, strict=True))
    for i in range(k):
        lower[i, i] = lower[i, i] + 1.0
    small_cholesky(lower, k)
    whiten = np.empty((k, k, *flat.shape[1:]))
    for i in range(k):
        for b in range(k):
            entry = factor[:, b, i, None]
            for m in range(i):
                entry = entry - lower[i, m] * whiten[m, b]
            whiten[i, b] = entry / lower[i, i]
    kernel = np.stack(
        [np.sum(whiten[:, a] * whiten[:, b], axis=0) for a, b in zip(rows, cols, strict=True)]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        pivots = np.prod([lower[i, i] for i in range(k)], axis=0)
        return Levels(whiten, kernel, 2.0 * np.log(pivots))


@cache
def lower_pairs(k: int) -> tuple[Indices, Indices]:
    """Rows and columns of the lower triangle of a (k, k) matrix."""
    return np.tril_indices(k)


def small_cholesky(lower: dict[tuple[int, int], Array], size: int) -> None:
    """Factorise, in place, matrices given entry by entry.

    A matrix that is not positive definite gets NaN or infinite entries.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(size):
            for m in range(j):
                lower[j, j] = lower[j, j] - lower[j, m] ** 2
            lower[j, j] = np.sqrt(lower[j, j])
            for i in range(j + 1, size):
                for m in range(j):
                    lower[i, j] = lower[i, j] - lower[i, m] * lower[j, m]
                lower[i, j] = lower[i, j] / lower[j, j]


def batched_cholesky(matrices: Array) -> Array:
    """Cholesky factors (..., m, m) from lower triangles; NaN where there is none."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        result = np.full_like(matrices, np.nan)
        for place in np.ndindex(matrices.shape[:-2]):
            with suppress(np.linalg.LinAlgError):
                result[place] = np.linalg.cholesky(matrices[place])
        return result


# --- the tail: random effects that are eliminated together ---


@dataclass(frozen=True, slots=True, eq=False)
class TailBlock:
    """Place of one grouping factor in the tail: columns ``start : start + n_levels * n_coefs``.

    The covariance matrix of its spherical random effects v, with u = Lambda v, is A x I for levels
    with a known relationship A, and the identity without one.
    """

    factor: int
    start: int
    n_levels: int
    n_coefs: int
    relationship: Relationship | None = None

    @property
    def columns(self) -> slice:
        """Columns of this factor in the tail."""
        return slice(self.start, self.start + self.n_levels * self.n_coefs)

    @property
    def shape(self) -> tuple[int, int]:
        """Its levels and coefficients."""
        return self.n_levels, self.n_coefs

    def places(self, levels: Indices) -> Indices:
        """Places (m, k) in the tail of the effects of some levels."""
        return self.start + levels[:, None] * self.n_coefs + np.arange(self.n_coefs)

    @property
    def log_det(self) -> float:
        """Log determinant of the covariance matrix of its spherical random effects."""
        return 0.0 if self.relationship is None else self.n_coefs * self.relationship.log_det


def scaled(
    rows: Array, tail: Sequence[TailBlock], factors: Sequence[Array], *, transposed: bool = False
) -> Array:
    """Lambda or Lambda' times rows (..., q, m)."""
    result = np.empty_like(rows)
    for block in tail:
        t = factors[block.factor]
        t = t.swapaxes(-1, -2) if transposed else t
        own = rows[..., block.columns, :]
        if own.shape[-1] == 1:  # one product for all levels
            product = own.reshape(*own.shape[:-2], *block.shape) @ t.swapaxes(-1, -2)
        else:
            part = own.reshape(*own.shape[:-2], *block.shape, own.shape[-1])
            product = t[..., None, :, :] @ part
        result[..., block.columns, :] = product.reshape(own.shape)
    return result


def scaled_both(
    lower: Array,
    tail: Sequence[TailBlock],
    factors: Sequence[Array],
    *,
    transposed: bool = False,
    overwrite: bool = False,
) -> Array:
    """Lambda S Lambda', or Lambda' S Lambda where `transposed`, from a lower triangle (..., q, q).

    The lower triangle of the result is valid. Where every block has one coefficient the result can
    take the place of S.
    """
    if all(block.n_coefs == 1 for block in tail):
        scale = np.concatenate(
            [np.repeat(factors[b.factor][..., 0], b.n_levels, axis=-1) for b in tail], axis=-1
        )
        system = np.multiply(lower, scale[..., None], out=lower if overwrite else None)
        system *= scale[..., None, :]
        return system
    half = scaled(symmetric(lower), tail, factors, transposed=transposed)
    return scaled(half.swapaxes(-1, -2), tail, factors, transposed=transposed)


def symmetric(lower: Array) -> Array:
    """Symmetric matrices (..., q, q) from their lower triangles."""
    return np.tril(lower) + np.tril(lower, -1).swapaxes(-1, -2)


def add_precisions(system: Array, tail: Sequence[TailBlock]) -> None:
    """Add the precision matrix of the spherical random effects to (..., q, q), in place."""
    for block in tail:
        k, places = block.n_coefs, np.arange(block.columns.start, block.columns.stop)
        if block.relationship is None:
            system[..., places, places] += 1.0
            continue
        precision = block.relationship.precision
        for i in range(k):
            if isinstance(precision, np.ndarray):
                own = slice(block.start + i, block.columns.stop, k)
                system[..., own, own] += precision
            else:
                cells, first = precision.tocoo(), block.start + i
                system[..., first + cells.row * k, first + cells.col * k] += cells.data


def bordered_cholesky(system: Array, tail: Sequence[TailBlock], factors: Sequence[Array]) -> Array:
    """Cholesky factors (S, q + m, q + m) of equations with their first q columns scaled.

    Lower triangles of ``[Z X]'P[Z X]`` at S points become those of ``Lambda'Z'PZ Lambda + Q``,
    bordered by X; Q is the precision matrix of the spherical random effects. The factor is NaN
    where the matrix is not positive definite.
    """
    q = _size(tail)
    matrix = np.empty_like(system)
    matrix[:, :q, :q] = scaled_both(system[:, :q, :q], tail, factors, transposed=True)
    add_precisions(matrix[:, :q, :q], tail)
    border = scaled(system[:, q:, :q].swapaxes(1, 2), tail, factors, transposed=True)
    matrix[:, q:, :q] = border.swapaxes(1, 2)
    matrix[:, q:, q:] = system[:, q:, q:]
    return batched_cholesky(matrix)


def log_det_of(lower: Array, tail: Sequence[TailBlock]) -> Array:
    """Log determinant (S,) of what random effects add to that of V, from a bordered factor."""
    diagonal = np.diagonal(lower, axis1=1, axis2=2)[:, : _size(tail)]
    return 2.0 * np.sum(np.log(diagonal), axis=1) + sum(block.log_det for block in tail)


def rest_of(lower: Array, tail: Sequence[TailBlock]) -> Array:
    """The border's equations (S, m, m) after eliminating the random effects."""
    rest = lower[:, _size(tail) :, _size(tail) :]
    return np.asarray(rest @ rest.swapaxes(1, 2))


def _size(tail: Sequence[TailBlock]) -> int:
    return sum(block.n_levels * block.n_coefs for block in tail)


def times_precisions(columns: Array, tail: Sequence[TailBlock]) -> Array:
    """The precision matrix of the spherical random effects times columns (q, m)."""
    if all(block.relationship is None for block in tail):
        return columns
    result = columns.copy()
    for block in tail:
        if block.relationship is not None:
            own = columns[block.columns]
            flat = block.relationship.precision @ own.reshape(block.n_levels, -1)
            result[block.columns] = flat.reshape(own.shape)
    return result


def precision_draws(noise: Array, tail: Sequence[TailBlock]) -> Array:
    """Vectors (q, m) of that precision matrix as covariance from standard normal ones."""
    result = noise.copy()
    for block in tail:
        if block.relationship is not None:
            own = noise[block.columns]
            drawn = block.relationship.precision_draws(own.reshape(block.n_levels, -1))
            result[block.columns] = drawn.reshape(own.shape)
    return result


def contracted(at: Callable[[Indices, Indices], Array], block: TailBlock, weights: Matrix) -> Array:
    """Sum over pairs of levels of weights (J, J) times the blocks (k, k) of a matrix.

    `at` gives entries of the matrix by arrays of rows and columns, places in the tail.
    """
    if not isinstance(weights, np.ndarray):
        cells = weights.tocoo()
        rows, cols = block.places(cells.row), block.places(cells.col)
        return np.einsum("n,nab->ab", cells.data, at(rows[:, :, None], cols[:, None, :]))
    places = block.places(np.arange(block.n_levels)).T
    total = np.empty((block.n_coefs, block.n_coefs))
    for i, rows in enumerate(places):
        for j, cols in enumerate(places):
            total[i, j] = np.sum(weights * at(rows[:, None], cols))
    return total
