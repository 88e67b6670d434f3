"""Rows that lack nothing but their response."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import missing, plain_frame, read_only
from bayeslmm.exceptions import DataError
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.residual import ResidualFormula

Array = NDArray[np.float64]
Missing = Literal["drop", "keep"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Unobserved:
    """Rows that lack nothing but their response: they are kept to be predicted.

    Attributes
    ----------
    data : pandas.DataFrame
        The variables of the formula there, but for those of the response.
    weights : ndarray (m,) or None
        Their precision weights.
    rows : ndarray of int (m,)
        Their positions in the data.
    """

    data: pd.DataFrame
    weights: Array | None
    rows: NDArray[np.intp]

    @property
    def n(self) -> int:
        """Number of rows m."""
        return len(self.rows)


def unobserved_rows(
    formula: Formula,
    residual: ResidualFormula | None,
    frame: pd.DataFrame,
    weights: Array | None,
    dropped: NDArray[np.intp],
    how: Missing,
) -> Unobserved | None:
    """The rows among those dropped that lack the response alone; None unless they are kept.

    Raises
    ------
    ValueError
        If `how` is unknown.
    DataError
        If the structure of the residuals is over the order of the rows.
    """
    if how not in get_args(Missing):
        raise ValueError(f"missing={how!r}: 'drop' or 'keep' is expected.")
    if how == "drop":
        return None
    term = None if residual is None else residual.correlation
    if term is not None and term.place == ("1",) and term.kind != "cs":
        raise DataError(
            f"{term.text} takes the order of the rows for times, in which rows without a response "
            f'have no place; missing="keep" needs times: {term.kind}(time | '
            f"{':'.join(term.group)})."
        )
    needed = formula.left.variables - (frozenset() if residual is None else residual.variables)
    names = [name for name in frame.columns if name not in needed]
    lost = np.zeros(len(dropped), dtype=bool) if weights is None else np.isnan(weights[dropped])
    for name in set(names) - formula.members:
        lost |= missing(frame[name].iloc[dropped])
    rows = read_only(dropped[~lost])
    data = frame[names].iloc[rows]
    return Unobserved(
        data=plain_frame(data, names) if len(rows) else data,
        weights=None if weights is None else read_only(weights[rows]),
        rows=rows,
    )
