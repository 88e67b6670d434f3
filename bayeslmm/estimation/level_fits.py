"""Least squares in each level of a grouping factor, all levels at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEPENDENT = 1e-7
"""Share of a column's length outside the earlier ones up to which it counts as dependent (R's)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelFits:
    """Least squares in J levels.

    Attributes
    ----------
    coef : ndarray (J, p)
        Coefficients; NaN for a column that is a linear combination of earlier ones in the level.
    unscaled : ndarray (J, p)
        Variances of these over the residual variance.
    rss : ndarray (J,)
        Residual sums of squares.
    counts, df : ndarray (J,)
        Rows, and rows less coefficients.
    """

    coef: Array
    unscaled: Array
    rss: Array
    counts: NDArray[np.intp]
    df: NDArray[np.intp]


def fit_levels(y: Array, X: Array, codes: NDArray[np.intp], levels: int) -> LevelFits:
    """Fit the same regression to the rows of each level.

    Gram-Schmidt orthogonalisation, twice, with sums by level in place of sums over rows.

    Parameters
    ----------
    y : ndarray (n,)
        Response.
    X : ndarray (n, p)
        Columns.
    codes : ndarray (n,)
        Level of each row.
    levels : int
        Number of levels J.
    """
    p = X.shape[1]
    sums = _Sums(codes, levels)
    basis, triangle = np.empty(X.shape), np.zeros((levels, p, p))
    free = np.empty((levels, p), dtype=bool)
    for j in range(p):
        column, along = sums.rest(X[:, j], basis[:, :j])
        length, size = np.sqrt(sums.of(column**2)), np.sqrt(sums.of(X[:, j] ** 2))
        free[:, j] = length > DEPENDENT * size
        scale = np.where(free[:, j], length, 1.0)
        basis[:, j] = np.where(free[codes, j], column / scale[codes], 0.0)
        triangle[:, :j, j], triangle[:, j, j] = along, scale
    residuals, along = sums.rest(y, basis)
    inverse = np.linalg.inv(triangle)  # a dependent column has a row of its own in it
    coef = np.einsum("jkl,jl->jk", inverse, along)
    unscaled = np.einsum("jkl,jl->jk", inverse**2, free.astype(float))
    counts = np.bincount(codes, minlength=levels)
    return LevelFits(
        coef=np.where(free, coef, np.nan),
        unscaled=np.where(free, unscaled, np.nan),
        rss=sums.of(residuals**2),
        counts=counts,
        df=counts - free.sum(axis=1),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Sums over the rows of each level."""

    codes: NDArray[np.intp]
    levels: int

    def of(self, values: Array) -> Array:
        """Sums (J,) of values (n,)."""
        return np.bincount(self.codes, weights=values, minlength=self.levels)

    def rest(self, column: Array, basis: Array) -> tuple[Array, Array]:
        """A column less its projections on orthonormal ones, and these (J, m)."""
        along = np.zeros((self.levels, basis.shape[1]))
        for _ in range(2):
            for k in range(basis.shape[1]):
                share = self.of(basis[:, k] * column)
                column = column - basis[:, k] * share[self.codes]
                along[:, k] += share
        return column, along
