"""Levels of grouping factors, found out batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import level_order
from bayeslmm.data.frames import Codes
from bayeslmm.data.grouping import GroupingFactor, canonical, column_levels, factor_of_cells
from bayeslmm.exceptions import DataError

WIDEST = 1 << 26
"""Range of whole numbers up to which a mark for each is kept: 64 MB."""


class LevelSet:
    """Distinct values of one column."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._known = pd.Index([], dtype=object)
        self._pending: list[pd.Index] = []
        self._marks: NDArray[np.bool_] = np.zeros(0, dtype=bool)
        self._low = 0
        self._categories: pd.Index | None = None

    def add(self, column: pd.Series) -> None:
        """Take in the values of a batch."""
        if isinstance(column.dtype, pd.CategoricalDtype):
            self._merge_categories(column)
        elif column.dtype == np.int64 and self._mark(column.to_numpy()):
            return
        self._append(column_levels(column)[1])

    def finish(self) -> pd.Index:
        """All values, in the order that they have as levels."""
        self._pending.append(pd.Index(np.flatnonzero(self._marks) + self._low))
        self._compact()
        values = canonical(self._known)
        if self._categories is None:
            return values[level_order(values)]
        order = canonical(self._categories)
        return order[order.isin(values)]

    def _append(self, values: pd.Index) -> None:
        self._pending.append(values)
        if sum(map(len, self._pending)) > max(len(self._known), 1 << 16):
            self._compact()

    def _compact(self) -> None:
        parts = [part for part in (self._known, *self._pending) if len(part)]
        self._pending = []
        if parts:
            self._known = parts[0].append(parts[1:]).unique()

    def _mark(self, values: NDArray[np.int64]) -> bool:
        """Mark whole numbers as seen; false where their range is too wide."""
        low, high = int(values.min()), int(values.max())
        if len(self._marks):
            low, high = min(low, self._low), max(high, self._low + len(self._marks) - 1)
        if high - low >= WIDEST:
            return False
        if high - low >= len(self._marks):
            wider = np.zeros(high - low + 1, dtype=bool)
            start = self._low - low if len(self._marks) else 0
            wider[start : start + len(self._marks)] = self._marks
            self._marks, self._low = wider, low
        self._marks[values - self._low] = True
        return True

    def _merge_categories(self, column: pd.Series) -> None:
        """The categories of all batches, which must have them in one order."""
        found = column.cat.categories
        if self._categories is None:
            self._categories = found
        elif not found.equals(self._categories):
            self._categories = merged_categories(self.name, self._categories, found)


def merged_categories(name: str, known: pd.Index, found: pd.Index) -> pd.Index:
    """Known categories and then those that are new, if both have one order.

    Raises
    ------
    DataError
        If two categories are in one order in one batch and in the other in another.
    """
    places = known.get_indexer(found)
    if np.any(np.diff(places[places >= 0]) < 0):
        raise DataError(
            f"The categories of `{name}` are in another order in a later part of the data, so that "
            "they have none. Give all parts the same categories, or make it text."
        )
    return known.append(found[places < 0])


class CellSet:
    """Cells of several columns that occur."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._numbers = [pd.Index([], dtype=object) for _ in names]
        self._cells = np.empty((0, len(names)), dtype=np.intp)

    def add(self, frame: pd.DataFrame) -> None:
        """Take in the rows of a batch."""
        columns = []
        for i, name in enumerate(self.names):
            codes, values = column_levels(frame[name])
            known = self._numbers[i]
            new = values[known.get_indexer(values) < 0]
            self._numbers[i] = known = known.append(new) if len(known) else new
            columns.append(known.get_indexer(values)[codes])
        self._cells = _distinct([self._cells, np.column_stack(columns)])

    def finish(self, parts: Sequence[pd.Index]) -> Codes:
        """The cells (J, m) by the levels of each column, in lexicographic order."""
        columns = [
            part.get_indexer(canonical(known))[self._cells[:, i]]
            for i, (part, known) in enumerate(zip(parts, self._numbers, strict=True))
        ]
        return _distinct([np.column_stack(columns)])


def _distinct(cells: Iterable[Codes]) -> Codes:
    """Distinct rows of cells (n, m), in lexicographic order."""
    both = np.concatenate(list(cells))
    order = np.lexsort(both.T[::-1])
    both = both[order]
    fresh = np.ones(len(both), dtype=bool)
    fresh[1:] = np.any(both[1:] != both[:-1], axis=1)
    return both[fresh]


class GroupingSets:
    """Levels of all grouping factors of a formula.

    Parameters
    ----------
    groups : sequence of sequence of str
        Variables of each.
    """

    def __init__(self, groups: Sequence[Sequence[str]]) -> None:
        self.groups = [tuple(group) for group in groups]
        self._levels = {name: LevelSet(name) for group in self.groups for name in group}
        self._cells = {group: CellSet(group) for group in self.groups if len(group) > 1}

    def add(self, frame: pd.DataFrame) -> None:
        """Take in the complete rows of a batch."""
        for name, levels in self._levels.items():
            levels.add(frame[name])
        for cells in self._cells.values():
            cells.add(frame)

    def finish(self) -> list[GroupingFactor]:
        """The grouping factors, as :func:`grouping.grouping_factor` finds them in all rows."""
        parts = {name: levels.finish() for name, levels in self._levels.items()}
        result = []
        for group in self.groups:
            own = [parts[name] for name in group]
            if len(group) > 1:
                cells = self._cells[group].finish(own)
            else:
                cells = np.arange(len(own[0]), dtype=np.intp)[:, None]
            result.append(factor_of_cells(group, own, cells))
        return result
