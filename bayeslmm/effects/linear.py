"""Labelled linear combinations of the fixed effects, and which of them can be estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]


def names_of(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One name or several as a tuple, without the backticks that a formula needs around some."""
    if value is None:
        return ()
    names = (value,) if isinstance(value, str) else tuple(value)
    return tuple(name.strip("`") if isinstance(name, str) else name for name in names)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Combinations:
    """m quantities that are linear in the fixed effects: ``weights @ beta + constant``.

    Attributes
    ----------
    labels : pandas.DataFrame
        m rows: what each quantity is.
    weights : ndarray (m, p_full)
        Weights of all columns of X, dropped ones included.
    constant : ndarray (m,) or (S, m)
        What is added: the offset and, on draws, random effects.
    by : tuple of str
        Columns of `labels` within whose values contrasts are taken.
    """

    labels: pd.DataFrame
    weights: Array
    constant: Array
    by: tuple[str, ...] = ()

    def combine(self, matrix: Array, labels: pd.DataFrame, by: tuple[str, ...]) -> Combinations:
        """Linear combinations (k, m) of these quantities."""
        return replace(
            self,
            labels=labels,
            weights=_product(matrix, self.weights),
            constant=_product(matrix, self.constant.T).T,
            by=by,
        )


def _product(matrix: Array, rows: Array) -> Array:
    """``matrix @ rows`` where rows that are not defined count only with a weight."""
    lost = np.isnan(rows.reshape(len(rows), -1)).any(axis=1)
    if not lost.any():
        return matrix @ rows
    result = matrix[:, ~lost] @ rows[~lost]
    result[(matrix[:, lost] != 0).any(axis=1)] = np.nan
    return result
