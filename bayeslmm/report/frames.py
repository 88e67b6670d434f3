"""Data frames as tables of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from bayeslmm.report.markup import TextTable
from bayeslmm.report.numbers import decimals_of, number, significant

DIGITS = 3


def estimates_table(
    frame: pd.DataFrame,
    caption: str,
    *,
    first: str = "Parameter",
    columns: Mapping[str, tuple[str, ...]],
    scale: str,
    others: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    digits: int = DIGITS,
) -> TextTable:
    """A table of estimates and intervals, each row at the decimals of its own error.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows by label.
    caption, first : str
        Caption, and heading of the row labels.
    columns : mapping of str to tuple of str
        Columns of the frame by heading; two of them are an interval.
    scale : str
        Column with the error that sets the decimals of a row.
    others : mapping of str to str, optional
        Further columns by heading: numbers at three significant digits, or text.
    notes : sequence of str
        Footnotes.
    digits : int
        Significant digits of the error.
    """
    others = others or {}
    rows = []
    for label, row in frame.iterrows():
        values = [row[name] for names in columns.values() for name in names]
        decimals = decimals_of([row[scale]], values, digits)
        cells = [
            " to ".join(number(row[name], decimals, digits) for name in names).strip()
            if all(np.isfinite(row[name]) for name in names)
            else "–"
            for names in columns.values()
        ]
        rows.append((str(label), *cells, *(cell(row[name]) for name in others.values())))
    return TextTable(
        caption=caption,
        header=(first, *columns, *others),
        groups=(("", tuple(rows)),),
        notes=tuple(notes),
    )


def text_table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: bool = False
) -> TextTable:
    """A table of text and numbers."""
    body = tuple(tuple(cell(value) for value in row) for row in rows)
    return TextTable(caption=caption, header=tuple(header), groups=(("", body),), numeric=numeric)


def cell(value: object) -> str:
    """A value as text: counts in full, other numbers at three significant digits."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else significant(float(value), DIGITS)
    return "–" if value is None else str(value)
