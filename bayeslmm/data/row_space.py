"""Which linear combinations of the fixed effects the data determine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design

Array = NDArray[np.float64]

ESTIMABLE = 1e-8
"""Squared share of a combination outside the row space of X that counts as nothing (emmeans)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowSpace:
    """Which combinations of the columns of X the data can say anything about.

    Attributes
    ----------
    kept : ndarray of bool (p_full,)
        Columns of the model.
    scale : ndarray (p_full,)
        Size of each column.
    null : ndarray (p_full, r)
        Orthonormal basis of the combinations of scaled columns that vanish in every row.
    coefs : tuple of str, length p
        Labels of the columns of the model.
    """

    kept: NDArray[np.bool_]
    scale: Array
    null: Array
    coefs: tuple[str, ...]

    def estimable(self, weights: Array) -> NDArray[np.bool_]:
        """Which rows of weights (m, p_full) are combinations of rows of X."""
        scaled = weights / self.scale
        outside = np.sum((scaled @ self.null) ** 2, axis=1)
        return outside <= ESTIMABLE * np.sum(scaled**2, axis=1)

    def reduce(self, weights: Array) -> Array:
        """Weights (m, p) of the coefficients that the model has, NaN where not estimable."""
        return np.where(self.estimable(weights)[:, None], weights[:, self.kept], np.nan)


def row_space(design: Design) -> RowSpace:
    """Row space of the fixed effects of a design."""
    kept = np.array([name not in design.aliased for name in design.coefs_full], dtype=bool)
    scale = np.sqrt(np.mean(design.X_full**2, axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    null = np.zeros((len(kept), int(np.sum(~kept))))
    if null.size:
        scaled = design.X_full / scale
        solution = np.linalg.lstsq(scaled[:, kept], scaled[:, ~kept])[0]
        null[kept] = -solution
        null[~kept] = np.eye(null.shape[1])
        null = np.linalg.qr(null)[0]
    return RowSpace(kept=kept, scale=scale, null=null, coefs=design.coefs)
