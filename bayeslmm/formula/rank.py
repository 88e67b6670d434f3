"""Which columns of a model matrix, and which combinations of its coefficients, rows determine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.formula.moments import Moments, moments_of

Array = NDArray[np.float64]

# --- which columns to keep ---------------------------------------------------------------


TOLERANCE = 1e-7
"""Relative length below which what is left of a column counts as nothing, as in R's ``qr``."""

_ROUNDING = 16 * float(np.finfo(np.float64).eps)


def independent_columns(matrix: Array | Moments) -> NDArray[np.bool_]:
    """Find the columns that are not linear combinations of earlier ones.

    Parameters
    ----------
    matrix : ndarray, shape (n, p), or Moments
        Finite values.

    Returns
    -------
    ndarray of bool, shape (p,)
        In exact arithmetic, the columns that R's ``lm`` and lme4 keep.

    Notes
    -----
    R drops a column if what is left of it after projection on the earlier ones is shorter than
    1e-7 of its length, so that after an intercept it drops a covariate of 1e8 give or take 1. Here
    the constant is put first and columns are measured from their means, so that neither scale nor
    origin of a covariate matters; the first column that a constant would make redundant, if
    any, is the one that carries the constant and is kept.
    """
    moments = moments_of(matrix)
    centred, means = moments.centred, moments.along
    lengths = np.linalg.norm(centred, axis=0)
    full_lengths = np.hypot(lengths, means)
    kept = np.zeros(len(means), dtype=bool)
    carrier = None
    basis = np.zeros((len(centred), 0))
    for j, column in enumerate(centred.T):
        left = _residual(_residual(column, basis), basis)
        length = np.linalg.norm(left)
        if length > max(TOLERANCE * lengths[j], _ROUNDING * full_lengths[j]):
            kept[j] = True
            basis = np.column_stack([basis, left / length])
        elif carrier is None:
            constant = means[j] - means[kept] @ _solve(centred[:, kept], column)
            carrier = j if abs(constant) > TOLERANCE * full_lengths[j] else None
    if carrier is not None:
        kept[carrier] = True
    return kept


def _residual(vector: Array, basis: Array) -> Array:
    return vector - basis @ (basis.T @ vector)


def _solve(columns: Array, target: Array) -> Array:
    """Least squares coefficients, with the columns brought to one scale."""
    scale = np.linalg.norm(columns, axis=0)
    return np.asarray(np.linalg.lstsq(columns / scale, target)[0]) / scale


# --- which combinations of the coefficients rows determine ---------------------------------


ESTIMABLE = 1e-8
"""Squared share of a combination outside the row space of X that counts as nothing (emmeans)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowSpace:
    """The fixed effects of a model, and which combinations of them its rows can say anything about.

    Attributes
    ----------
    coefs : tuple of str, length p
        Labels of the columns of the model.
    coefs_full : tuple of str, length p_full
        Labels with those of the columns that were dropped.
    aliased : tuple of str
        Columns dropped because they are linear combinations of earlier ones.
    kept : ndarray of bool (p_full,)
        Columns of the model.
    scale : ndarray (p_full,)
        Size of each column.
    basis : ndarray (p_full, p) or None
        Orthonormal basis of the rows of scaled columns; None where they span everything.
    """

    coefs: tuple[str, ...]
    coefs_full: tuple[str, ...]
    aliased: tuple[str, ...]
    kept: NDArray[np.bool_]
    scale: Array
    basis: Array | None

    def full_rank(self, columns: Array) -> Array:
        """The columns (n, p) of the model among all columns (n, p_full): the same where all are."""
        return columns if self.kept.all() else np.ascontiguousarray(columns[:, self.kept])

    def estimable(self, weights: Array) -> NDArray[np.bool_]:
        """Which rows of weights (m, p_full) are combinations of rows of X."""
        if self.basis is None:
            return np.ones(len(weights), dtype=bool)
        scaled = weights / self.scale
        outside = scaled - (scaled @ self.basis) @ self.basis.T
        return np.sum(outside**2, axis=1) <= ESTIMABLE * np.sum(scaled**2, axis=1)

    def reduce(self, weights: Array) -> Array:
        """Weights (m, p) of the coefficients that the model has, NaN where not estimable."""
        return np.where(self.estimable(weights)[:, None], weights[:, self.kept], np.nan)


def row_space(columns: Array | Moments, names: Sequence[str], kept: NDArray[np.bool_]) -> RowSpace:
    """Row space of columns (n, p_full) with their names, of which those `kept` are independent."""
    n = columns.n if isinstance(columns, Moments) else len(columns)
    columns = columns.columns if isinstance(columns, Moments) else columns
    scale = np.sqrt(np.sum(columns**2, axis=0) / n)
    scale = np.where(scale > 0, scale, 1.0)
    basis = None
    if not kept.all():
        scaled = columns / scale
        rows = np.empty((len(kept), int(kept.sum())))
        rows[kept] = np.eye(rows.shape[1])
        rows[~kept] = np.linalg.lstsq(scaled[:, kept], scaled[:, ~kept])[0].T
        basis = np.linalg.qr(rows)[0]
    return RowSpace(
        coefs=tuple(itertools.compress(names, kept)),
        coefs_full=tuple(names),
        aliased=tuple(itertools.compress(names, ~kept)),
        kept=kept,
        scale=scale,
        basis=basis,
    )
