"""Levels of grouping factors: numbered as batches bring them, put in order at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import level_order
from bayeslmm.data.frames import Codes, read_only
from bayeslmm.data.grouping import (
    GroupingFactor,
    canonical,
    column_levels,
    factor_of_cells,
    value_kind,
)
from bayeslmm.exceptions import DataError

WIDEST = 1 << 25
"""Range of whole numbers up to which numbers are looked up by place: a table of 128 MB."""

_HALF = 32
"""Bits of a key that each of two numbers takes."""


class Numbers:
    """Distinct values, numbered 0, 1, ... as they are met.

    They are held in parts whose sizes at least halve, so that taking in J values, however many at a
    time, hashes each of them about log J times.
    """

    def __init__(self) -> None:
        self._parts: list[pd.Index] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> pd.Index:
        """The values (J,) by number."""
        if not self._parts:
            return pd.Index([], dtype=object)
        return self._parts[0].append(self._parts[1:])

    def number(self, values: pd.Index) -> Codes:
        """Numbers (m,) of distinct values, new ones among them."""
        found = np.full(len(values), -1, dtype=np.intp)
        start = 0
        for part in self._parts:
            rest = np.flatnonzero(found < 0)
            if not len(rest):
                return found
            at = part.get_indexer(values[rest])
            found[rest] = np.where(at < 0, -1, at + start)
            start += len(part)
        rest = np.flatnonzero(found < 0)
        if len(rest):
            found[rest] = self._size + np.arange(len(rest))
            self._append(values[rest])
        return found

    def _append(self, values: pd.Index) -> None:
        self._size += len(values)
        while self._parts and len(self._parts[-1]) < 2 * len(values):
            values = self._parts.pop().append(values)
        self._parts.append(values)


class LevelSet:
    """Distinct values of one column."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.categories: pd.Index | None = None
        self._numbers = Numbers()
        self._table = np.empty(0, dtype=np.int32)
        self._low = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, column: pd.Series) -> Codes:
        """Take in the values of a batch; the number (n,) of each."""
        if isinstance(column.dtype, pd.CategoricalDtype):
            self._merge_categories(column)
        elif column.dtype == np.int64:
            values = column.to_numpy()
            if self._widen(int(values.min()), int(values.max())):
                return self._look_up(values)
        codes, levels = column_levels(column)
        return self._numbers.number(levels)[codes]

    def finish(self) -> tuple[pd.Index, Codes]:
        """All values, in the order that they have as levels, and the place of each number."""
        return in_order(canonical(self._numbers.values), self.categories)

    def _widen(self, low: int, high: int) -> bool:
        """Make the table wide enough; false where that would be too wide."""
        if len(self._table):
            low, high = min(low, self._low), max(high, self._low + len(self._table) - 1)
        if high - low >= WIDEST:
            return False
        if high - low >= len(self._table):
            wider = np.full(high - low + 1, -1, dtype=np.int32)
            start = self._low - low if len(self._table) else 0
            wider[start : start + len(self._table)] = self._table
            self._table, self._low = wider, low
        return True

    def _look_up(self, values: NDArray[np.int64]) -> Codes:
        places = values - self._low
        codes = self._table[places]
        if codes.min() < 0:
            seen = np.zeros(len(self._table), dtype=bool)
            seen[places[codes < 0]] = True
            new = np.flatnonzero(seen)
            self._table[new] = self._numbers.number(pd.Index(new + self._low))
            codes = self._table[places]
        return codes.astype(np.intp)

    def _merge_categories(self, column: pd.Series) -> None:
        """The categories of all batches, which must have them in one order."""
        found = column.cat.categories
        if self.categories is None:
            self.categories = found
        elif not found.equals(self.categories):
            self.categories = merged_categories(self.name, self.categories, found)


def in_order(values: pd.Index, categories: pd.Index | None) -> tuple[pd.Index, Codes]:
    """Distinct values in the order that they have as levels, and the place (J,) of each."""
    if categories is not None:
        order = canonical(categories)
        order = order[order.isin(values)]
        return order, order.get_indexer(values)
    found = level_order(values)
    places = np.empty(len(values), dtype=np.intp)
    places[found] = np.arange(len(values))
    return values[found], places


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
        self._pairs = [Numbers() for _ in names[1:]]

    def __len__(self) -> int:
        return len(self._pairs[-1])

    def add(self, columns: Sequence[Codes]) -> Codes:
        """Take in the numbers (n,) of each column; the number of each cell."""
        codes = columns[0]
        for numbers, more in zip(self._pairs, columns[1:], strict=True):
            own, keys = pd.factorize(codes << _HALF | more)
            codes = numbers.number(pd.Index(keys))[own]
        return codes

    def finish(self) -> Codes:
        """Numbers (J, m) of the columns of each cell."""
        place, columns = np.arange(len(self), dtype=np.int64), []
        for numbers in reversed(self._pairs):
            keys = numbers.values.to_numpy()[place]
            columns.append(keys & ((1 << _HALF) - 1))
            place = keys >> _HALF
        return np.column_stack([place, *reversed(columns)]).astype(np.intp)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SeenLevels:
    """Levels of a grouping factor that rows have, without their labels.

    Attributes
    ----------
    names : tuple of str
        Its m variables.
    parts : tuple of pandas.Index
        The levels of each variable.
    cells : ndarray of int (J, m)
        The level of each variable in each cell, in lexicographic order.
    categories : tuple of pandas.Index or None
        All categories of each of its variables that has some.
    """

    names: tuple[str, ...]
    parts: tuple[pd.Index, ...]
    cells: Codes
    categories: tuple[pd.Index | None, ...]

    @classmethod
    def of(cls, factor: GroupingFactor, categories: tuple[pd.Index | None, ...]) -> Self:
        """The levels of a grouping factor."""
        own = factor.factors, factor.parts, factor.cells
        return cls(names=own[0], parts=own[1], cells=own[2], categories=categories)

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def factor(self) -> GroupingFactor:
        """The grouping factor; its labels are made anew each time."""
        return factor_of_cells(self.names, self.parts, self.cells)


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

    @property
    def sizes(self) -> list[int]:
        """Number of levels of each so far."""
        return [
            len(self._cells[group] if len(group) > 1 else self._levels[group[0]])
            for group in self.groups
        ]

    def add(self, frame: pd.DataFrame) -> list[Codes]:
        """Take in the complete rows of a batch; the number (n,) of the level of each factor."""
        codes = {name: levels.add(frame[name]) for name, levels in self._levels.items()}
        result = []
        for group in self.groups:
            own = [codes[name] for name in group]
            result.append(self._cells[group].add(own) if len(group) > 1 else own[0])
        return result

    def finish(self) -> list[tuple[SeenLevels, Codes]]:
        """The factors, as :func:`grouping.grouping_factor` finds them in all rows.

        With each comes the place (J,) among its levels of each number.
        """
        found = {name: levels.finish() for name, levels in self._levels.items()}
        result = []
        for group in self.groups:
            if len(group) > 1:
                numbers = self._cells[group].finish()
            else:
                numbers = np.arange(len(found[group[0]][0]), dtype=np.intp)[:, None]
            cells = np.column_stack([found[name][1][numbers[:, i]] for i, name in enumerate(group)])
            categories = tuple(self._levels[name].categories for name in group)
            parts = [found[name][0] for name in group]
            levels, places = of_cells(group, parts, cells, categories)
            result.append((levels, places))
        return result


def united(first: SeenLevels, second: SeenLevels) -> tuple[SeenLevels, Codes, Codes]:
    """Levels that either of two sets of rows has.

    Returns
    -------
    SeenLevels
    ndarray of int (J,), ndarray of int (K,)
        Place among them of the levels of the first and of the second.

    Raises
    ------
    DataError
        If a variable holds numbers in one and text in the other, or categories in another order.
    """
    names = first.names
    parts, categories, columns = [], [], []
    for i, name in enumerate(names):
        one, two = first.parts[i], second.parts[i]
        _check_kinds(name, one, two)
        own = _both_categories(name, first.categories[i], second.categories[i])
        values = canonical(one.append(two).unique())
        part, _ = in_order(values, own)
        cells = [part.get_indexer(one)[first.cells[:, i]]]
        cells.append(part.get_indexer(two)[second.cells[:, i]])
        columns.append(np.concatenate(cells))
        parts.append(part)
        categories.append(own)
    every = np.column_stack(columns)
    if len(names) > 1:
        numbers = CellSet(names)
        codes = numbers.add(list(every.T))
        cells_found = numbers.finish()
    else:
        codes = every[:, 0]
        cells_found = np.arange(len(parts[0]), dtype=np.intp)[:, None]
    levels, places = of_cells(names, parts, cells_found, tuple(categories))
    places = places[codes]
    size = len(first.cells)
    return levels, places[:size], places[size:]


def of_cells(
    names: Sequence[str],
    parts: Sequence[pd.Index],
    cells: Codes,
    categories: tuple[pd.Index | None, ...],
) -> tuple[SeenLevels, Codes]:
    """A factor of distinct cells (J, m) in any order, and the place of each."""
    order = np.lexsort(cells.T[::-1])
    places = np.empty(len(cells), dtype=np.intp)
    places[order] = np.arange(len(cells))
    seen = SeenLevels(
        names=tuple(names),
        parts=tuple(parts),
        cells=read_only(cells[order]),
        categories=categories,
    )
    return seen, places


def _check_kinds(name: str, one: pd.Index, two: pd.Index) -> None:
    kinds = value_kind(one), value_kind(two)
    if set(kinds) == {"numbers", "text"}:
        raise DataError(
            f"`{name}` holds {kinds[0]} in one part of the data and {kinds[1]} in another, so that "
            "no level would be recognised; convert one of them."
        )


def _both_categories(name: str, one: pd.Index | None, two: pd.Index | None) -> pd.Index | None:
    if one is None or two is None:
        if one is not two:
            raise DataError(
                f"`{name}` has categories in one part of the data and none in another, so that its "
                "levels have no order. Give all parts the same categories, or make it text."
            )
        return None
    return one if one.equals(two) else merged_categories(name, one, two)
