"""The columns about which default priors speak: those of the linear predictor, not coefficients.

A prior that speaks about the linear predictor in units of the response does not change with the
units, origin, contrasts or basis of the columns. For fixed effects it is a joint normal prior on
orthonormal combinations of the columns; for a block of correlated random effects it is a prior on
the working columns, each of which is what a column adds to those before it.

References
----------
Goodrich, Gabry, Ali, Brilleman: rstanarm's ``QR = TRUE``; Buerkner (2017),
doi:10.18637/jss.v080.i01, brms's ``decomp = "QR"``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Array = NDArray[np.float64]

DEPENDENT = 1e-12
"""Length of a column's residual, relative to the column, below which it counts as dependent.

A square of years in units of a day away from their origin leaves 2e-11; rounding in long columns of
dependent ones about 1e-14.
"""

IN_SPAN = 1e-8
"""Largest distance of a combination of columns from the constant that counts as being it."""


@dataclass(frozen=True, slots=True, eq=False)
class WorkingColumns:
    """Working columns ``z @ mixing`` of one block of k random-effects columns z (n, k).

    Attributes
    ----------
    mixing : ndarray (k, k)
        One on the diagonal: a working column is a column less its part along earlier ones.
    scales : ndarray (k,)
        Standard deviation of each working column where the block has the constant, which itself
        counts one; root mean square where it has not.
    """

    mixing: Array
    scales: Array


def working_columns(z: Array) -> WorkingColumns:
    """Orthogonalise the columns (n, k) of a block in the order written, the constant first.

    A single column, and a block whose columns depend on each other, stays as it is.
    """
    constant = np.ptp(z, axis=0) == 0
    has_constant = bool(np.any(constant & (z[0] != 0.0)))
    order = np.argsort(~constant, kind="stable") if has_constant else np.arange(z.shape[1])
    r = np.linalg.qr(z[:, order], mode="r")
    diagonal = np.abs(np.diag(r))
    if z.shape[1] == 1 or np.any(diagonal <= DEPENDENT * np.linalg.norm(r, axis=0)):
        return WorkingColumns(np.eye(z.shape[1]), root_mean_squares(z))
    inverse = solve_triangular(r / np.diag(r)[:, None], np.eye(len(r)), unit_diagonal=True)
    mixing, scales = np.empty_like(r), np.empty(len(r))
    mixing[np.ix_(order, order)] = inverse
    scales[order] = diagonal / np.sqrt(len(z) - 1.0 if has_constant else len(z))
    if has_constant:
        scales[order[0]] = 1.0
    return WorkingColumns(mixing, scales)


def column_scales(columns: Array) -> Array:
    """Standard deviation (k,) of each column, one for a constant one."""
    if len(columns) < 2:
        return np.ones(columns.shape[1])
    constant = np.ptp(columns, axis=0) == 0
    return np.where(constant, 1.0, np.std(columns, axis=0, ddof=1))


def root_mean_squares(columns: Array) -> Array:
    """Root mean square (k,) of each column; one for a constant one, and where all is zero."""
    rms = np.sqrt(np.mean(columns**2, axis=0))
    return np.where((np.ptp(columns, axis=0) == 0) | (rms == 0), 1.0, rms)


@dataclass(frozen=True, slots=True, eq=False)
class FixedCoordinates:
    """Combinations ``gamma = rows @ beta`` that are worth one unit of the linear predictor each.

    Attributes
    ----------
    rows : ndarray (p, p)
    centred : bool
        Whether the first row of `rows` is the linear predictor at the column means, and the others
        have standard deviation one; otherwise all have root mean square one.
    """

    rows: Array
    centred: bool


def fixed_coordinates(x: Array) -> FixedCoordinates:
    """Coordinates of the coefficients of columns x (n, p) of full rank.

    With the constant in their span the first is the linear predictor at the column means, and the
    others are orthonormal combinations of the centred columns; else of the columns themselves.
    """
    n, p = x.shape
    if p == 0:
        return FixedCoordinates(np.empty((0, 0)), False)
    lengths = np.linalg.norm(x, axis=0)
    scaled = x / lengths
    if not _spans_constant(scaled):
        return FixedCoordinates(np.linalg.qr(scaled, mode="r") * lengths / np.sqrt(n), False)
    means = x.mean(axis=0)
    constant = np.flatnonzero(np.ptp(x, axis=0) == 0)
    rows = np.empty((p, p))
    if constant.size:
        others = np.delete(np.arange(p), constant[0])
        order = np.concatenate([constant[:1], others])
        rows[:, constant[0]] = 0.0
        rows[np.ix_(order[1:], others)] = _centred_root(x[:, others] - means[others], n)
        rows[constant[0]] = means
        return FixedCoordinates(rows[order], True)
    rows[0] = means
    rows[1:] = _reduced_root(x - means, n)
    return FixedCoordinates(rows, True)


def _spans_constant(scaled: Array) -> bool:
    ones = np.ones(len(scaled))
    if np.any(np.ptp(scaled, axis=0) == 0):
        return True
    weights = np.linalg.lstsq(scaled, ones, rcond=None)[0]
    return bool(np.allclose(scaled @ weights, ones, rtol=0.0, atol=IN_SPAN))


def _centred_root(centred: Array, n: int) -> Array:
    """Upper triangular R (q, q) with R'R the covariance matrix of centred columns."""
    return np.asarray(np.linalg.qr(centred, mode="r")) / np.sqrt(n - 1.0)


def _reduced_root(centred: Array, n: int) -> Array:
    """Root (p - 1, p) of the covariance matrix of centred columns of rank p - 1."""
    lengths = np.linalg.norm(centred, axis=0)
    safe = np.where(lengths > 0, lengths, 1.0)
    _, values, vectors = np.linalg.svd(centred / safe, full_matrices=False)
    return values[:-1, None] * vectors[:-1] * safe / np.sqrt(n - 1.0)
