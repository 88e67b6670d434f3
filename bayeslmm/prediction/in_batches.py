"""Predictions of data beyond memory, batch by batch, into a Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Generator
from os import PathLike
from typing import Any

import pandas as pd

from bayeslmm.data.design import Design
from bayeslmm.data.frames import plain_frame
from bayeslmm.data.inputs import check_present
from bayeslmm.data.row_tables import checked_path, write_tables
from bayeslmm.data.sources import Source, frames_source, open_source
from bayeslmm.exceptions import DataError

ENTRIES = 1 << 25
"""Draws of random effects that are held at once: 256 MB."""


def predictions_of(new: Any, out: str | PathLike[str] | None) -> Source | None:
    """The rows to predict where they go to a file; None where a table is wanted.

    Raises
    ------
    DataError
        If they are beyond memory and no file is given, or are not given.
    """
    source = None if new is None else open_source(new)
    if out is None:
        if source is not None:
            raise DataError(
                f"{source.words}: predictions of data beyond memory go to a file; give "
                'out="predictions.parquet".'
            )
        return None
    if new is None:
        raise DataError("out= is for predictions of new rows: give them as predict(new, out=...).")
    return source or frames_source("The data frame", [new])


def predict_to_file(
    design: Design,
    source: Source,
    out: str | PathLike[str],
    weights: Any,
    draws: int,
    table: Callable[[pd.DataFrame], pd.DataFrame],
) -> None:
    """Write predictions of all rows, in their order, beside the variables of the formula.

    Parameters
    ----------
    design : Design
        Of the model.
    source : Source
        The rows to predict, complete.
    out : path
        A Parquet file that does not exist.
    weights : str or None
        Column of their precision weights.
    draws : int
        How many draws a prediction is made from.
    table : callable
        From rows to their predictions.

    Raises
    ------
    DataError
        If rows cannot be read or predicted; nothing is written then.
    FileExistsError
        If there is such a file.
    ValueError
        If the name does not end in ``.parquet``.
    """
    path = checked_path(out)
    names = source.columns()
    wanted = design.formula.predictors() | {design.spec.weights, weights} - {None}
    columns = [name for name in names if name in wanted]
    check_present(design.formula.predictors(groups=False), names)
    effects = sum(factor.n_coefs for factor in design.random)
    step = max(1, ENTRIES // max(1, draws * effects))

    def tables() -> Generator[pd.DataFrame]:
        for start, raw in source.frames(columns):
            frame = plain_frame(raw, columns)
            for first in range(0, len(frame), step):
                part = frame.iloc[first : first + step].reset_index(drop=True)
                try:
                    found = table(part).reset_index(drop=True)
                except DataError as error:
                    raise DataError(
                        f"{error} (rows from {start + first} on of {source.words})"
                    ) from error
                yield pd.concat([part, found], axis=1)

    write_tables(path, tables())
