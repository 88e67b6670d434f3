"""Batches of which each has all rows of its groups, from a source that is sorted by group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.data.batches import Batch
from bayeslmm.data.frames import Codes
from bayeslmm.data.grouping import column_levels
from bayeslmm.data.level_sets import merged_categories
from bayeslmm.exceptions import DataError

MOST_ROWS = 1 << 22
"""Rows of one group that are held."""


def whole_groups(batches: Iterable[Batch], names: Sequence[str], text: str) -> Iterator[Batch]:
    """The same rows in batches that no group of neighbouring rows is divided between.

    The last group of a batch waits for the next one, as its rows may go on there.

    Parameters
    ----------
    batches : iterable of Batch
    names : sequence of str
        Columns whose cells are the groups.
    text : str
        What needs them, as written.

    Raises
    ------
    DataError
        If a group has too many rows to be held.
    """
    held: list[Batch] = []
    for batch in batches:
        last = int(run_starts(batch.frame, names)[-1])
        if held and not last and not _same_group(held[-1], batch, names):
            yield _joined(held)
            held = []
        elif last:
            yield _joined([*held, _rows(batch, slice(0, last))])
            held = []
        held.append(_rows(batch, slice(last, None)))
        if sum(len(part.frame) for part in held) > MOST_ROWS:
            shown = ":".join(map(str, _key(batch, names, -1)))
            raise DataError(
                f"{text}: `{shown}` of {':'.join(names)} has more than {MOST_ROWS:,} rows, and the "
                "rows of a group are held together while data are read. Add a variable to the "
                "group that divides it, such as the day."
            )
    if held:
        yield _joined(held)


def run_starts(frame: pd.DataFrame, names: Sequence[str]) -> Codes:
    """First row of each run of rows of one group."""
    new = np.zeros(len(frame), dtype=bool)
    new[0] = True
    for name in names:
        new[1:] |= np.diff(column_levels(frame[name])[0]) != 0
    return np.flatnonzero(new)


def _key(batch: Batch, names: Sequence[str], row: int) -> tuple[Any, ...]:
    return tuple(batch.frame[name].iloc[row] for name in names)


def _same_group(first: Batch, second: Batch, names: Sequence[str]) -> bool:
    return _key(first, names, -1) == _key(second, names, 0)


def _rows(batch: Batch, rows: slice) -> Batch:
    weights = None if batch.weights is None else batch.weights[rows]
    return Batch(
        start=batch.start,
        frame=batch.frame.iloc[rows],
        weights=weights,
        places=batch.places[rows],
    )


def _joined(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    weights = [part.weights for part in parts if part.weights is not None]
    return Batch(
        start=parts[0].start,
        frame=_concatenated([part.frame for part in parts]),
        weights=np.concatenate(weights) if weights else None,
        places=np.concatenate([part.places for part in parts]),
    )


def _concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One below the other, with the categories of all."""
    for name, dtype in frames[0].dtypes.items():
        if not isinstance(dtype, pd.CategoricalDtype):
            continue
        known = dtype.categories
        for frame in frames[1:]:
            found = frame[name].cat.categories
            known = known if found.equals(known) else merged_categories(str(name), known, found)
        frames = [
            frame.assign(**{str(name): frame[name].cat.set_categories(known)}) for frame in frames
        ]
    return pd.concat(frames, ignore_index=True)
