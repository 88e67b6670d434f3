"""Rows of the root of the covariance matrix of the linear predictor, made when they are needed."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ROW_ENTRIES = 1 << 17
"""Entries of the rows of U that are worked on at once, so that they stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowForms:
    """Rows of U, and conditional residuals, for a batch of C covariance parameters.

    Attributes
    ----------
    codes : tuple of ndarray of int (n,)
        Level of each row, per grouping factor that is eliminated level by level.
    levels : tuple of ndarray (n, C, k)
        Columns of U that belong to this level.
    residual : ndarray (n, C)
        Response less conditional mean of the linear predictor.
    shared : tuple of ndarray (C, J, k, m)
        What the levels take from the columns of U that all rows share.
    own : tuple of (ndarray of int (n,), ndarray (n, C))
        Pairs of places among the m shared columns, and coefficients there, of each row.
    X : ndarray (n, p)
        Fixed-effects covariates, which take the last places; p is 0 where beta is given.
    turn : ndarray (C, m, m)
        Map from these places to columns of U.
    """

    codes: tuple[Indices, ...]
    levels: tuple[Array, ...]
    residual: Array
    shared: tuple[Array, ...]
    own: tuple[tuple[Indices, Array], ...]
    X: Array
    turn: Array

    @property
    def width(self) -> int:
        """Number m of the columns that all rows share."""
        return self.turn.shape[2]

    def take(self, draws: slice) -> RowForms:
        """Some of the C."""
        return replace(
            self,
            levels=tuple(level[:, draws] for level in self.levels),
            residual=self.residual[:, draws],
            shared=tuple(shared[draws] for shared in self.shared),
            own=tuple((places, values[:, draws]) for places, values in self.own),
            turn=self.turn[draws],
        )

    @property
    def leverage(self) -> Array:
        """Conditional variance of the linear predictor over sigma^2: (n, C)."""
        result = np.asarray(sum(np.sum(part**2, axis=2) for part in self.levels))
        n, size = self.residual.shape
        step = max(1, ROW_ENTRIES // (size * max(1, self.width)))
        for start in range(0, n, step):
            rows = np.arange(start, min(start + step, n))
            border = self.border(rows)
            result[rows] += np.einsum("cnm,cnm->cn", border, border).T
        return result

    def border(self, rows: Indices) -> Array:
        """Columns of U that all rows share, at some rows: (C, len(rows), m)."""
        turned = self.turn[:, self.width - self.X.shape[1] :]
        result = np.matmul(self.X[rows], turned)
        for places, values in self.own:
            part = np.take(self.turn, places[rows], axis=1)
            part *= values[rows].T[:, :, None]
            result += part
        for codes, level, shared in zip(self.codes, self.levels, self.shared, strict=True):
            for i in range(level.shape[2]):
                part = np.take(shared[:, :, i], codes[rows], axis=1)
                part *= level[rows, :, i].T[:, :, None]
                result -= part
        return result
