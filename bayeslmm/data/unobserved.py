"""Rows that lack nothing but their response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import missing, plain_frame, read_only
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.residual import ResidualFormula

Array = NDArray[np.float64]
Missing = Literal["drop", "keep", "raise"]
"""What becomes of incomplete rows; "keep" is of those that lack the response alone."""


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
        If the structure of the residuals is over the order of the rows, or rows are incomplete that
        may not be.
    """
    check_missing(how)
    if how == "raise" and len(dropped):
        names = [name for name in frame.columns if name not in formula.members]
        counts = {name: int(missing(frame[name]).sum()) for name in names}
        if weights is not None:
            counts["weights"] = int(np.isnan(weights).sum())
        first = int(dropped[0])
        place = f"first at position {first} (index {frame.index[first]!r})"
        raise incomplete(len(dropped), len(frame), f", {place}", counts)
    if how != "keep":
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


def check_missing(how: Any) -> None:
    """Raise ValueError unless `how` says what becomes of incomplete rows."""
    check_choice(how, get_args(Missing), "missing")


def refuse_incomplete(design: Any, how: Missing) -> None:
    """Raise DataError if a design has dropped rows that may not be incomplete.

    Raise ValueError unless `how` says what becomes of them.
    """
    check_missing(how)
    if how == "raise" and design.n_dropped:
        raise incomplete(design.n_dropped, design.n + design.n_dropped)


def incomplete(
    count: int, n: int, place: str = "", counts: Mapping[str, int] | None = None
) -> DataError:
    """The error for incomplete rows where there may be none."""
    lacking = ", ".join(f"`{name}` {number}" for name, number in (counts or {}).items() if number)
    return DataError(
        f'missing="raise": {count} of {n} rows are incomplete{place}'
        f"{f' (missing values: {lacking})' if lacking else ''}. Fill them in or take the rows out; "
        'missing="drop" leaves them out and counts them.'
    )
