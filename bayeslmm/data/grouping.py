"""Grouping factors: levels, labels and codes, for the data of a model and for new data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import level_order
from bayeslmm.data.frames import Codes, read_only
from bayeslmm.exceptions import DataError

_FRACTIONAL = ("floating", "mixed-integer-float", "decimal")  # pandas' names for object columns


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class GroupingFactor:
    """A grouping factor: the levels of one variable, or the cells of several that occur.

    A cell is identified by the tuple of its raw values, so that ``("a:b", "c")`` and
    ``("a", "b:c")`` are two levels.

    Attributes
    ----------
    name : str
        ``"batch:cask"``.
    factors : tuple of str
        Its m variables.
    levels : ndarray of str, shape (J,), object
        Unique labels. The values are joined by ``:``; where labels would be equal, the parts that
        contain ``:`` are quoted, then all parts, then a number is added.
    parts : tuple of pandas.Index
        The levels of each variable.
    cells : ndarray of int, shape (J, m)
        The level of each variable in each cell, in lexicographic order.
    """

    name: str
    factors: tuple[str, ...]
    levels: NDArray[np.object_]
    parts: tuple[pd.Index, ...]
    cells: Codes

    @property
    def keys(self) -> tuple[tuple[Any, ...], ...]:
        """The raw values behind each level, a tuple of one value per variable."""
        columns = (part[self.cells[:, i]] for i, part in enumerate(self.parts))
        return tuple(zip(*columns, strict=True))


def column_levels(column: pd.Series) -> tuple[Codes, pd.Index]:
    """Find the levels of a complete column and the level of each row.

    Parameters
    ----------
    column : pandas.Series
        n values of any kind.

    Returns
    -------
    codes : ndarray of int, shape (n,)
    levels : pandas.Index
        The values that occur: in the order of the categories of a categorical column, else
        sorted (numbers by size, text by code point, values of mixed kinds as text). Numbers that
        are whole are integers.

    Raises
    ------
    DataError
        If the values cannot be levels, such as lists.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        values = canonical(column.dtype.categories)
        codes = np.asarray(column.array.codes, dtype=np.intp)
        used = np.flatnonzero(np.bincount(codes, minlength=len(values)))
        values = values if len(used) == len(values) else values[used]
        return _renumber(codes, used, len(column.dtype.categories)), values
    try:
        first, uniques = pd.factorize(column)
    except TypeError as error:
        raise DataError(
            f"The values of `{column.name}` cannot be levels of a factor: {error}."
        ) from error
    values = canonical(pd.Index(uniques))
    order = level_order(values)
    return _renumber(first, order, len(values)), values[order]


def _renumber(codes: Codes, order: Codes, size: int) -> Codes:
    """Codes after their values 0..size-1 are rearranged (or thinned out) as `order` says."""
    if np.array_equal(order, np.arange(size)):
        return codes
    place = np.empty(size, dtype=np.intp)
    place[order] = np.arange(len(order))
    return place[codes]


def canonical(values: pd.Index) -> pd.Index:
    """Distinct values in one of few forms: whole numbers int64, text and the rest objects."""
    dtype = values.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return pd.Index(values.to_numpy(dtype=object), dtype=object)
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        numbers = values.to_numpy()
        if pd.api.types.is_float_dtype(dtype):
            numbers = values.to_numpy(dtype=np.float64)
            whole = (numbers == np.rint(numbers)) & (np.abs(numbers) < 2.0**53)
            return pd.Index(numbers.astype(np.int64) if whole.all() else numbers)
        return pd.Index(numbers.astype(np.uint64 if numbers.dtype.kind == "u" else np.int64))
    if isinstance(dtype, pd.StringDtype | pd.ArrowDtype):
        return pd.Index(values.to_numpy(dtype=object), dtype=object)
    kind = pd.api.types.infer_dtype(values) if pd.api.types.is_object_dtype(dtype) else ""
    if kind in _FRACTIONAL:
        return canonical(pd.Index(values.to_numpy(dtype=np.float64)))
    if kind == "integer" and max(abs(value) for value in values) < 2**63:
        return pd.Index(values.to_numpy(dtype=np.int64))
    return values


def is_continuous(column: pd.Series) -> bool:
    """Tell whether a column holds numbers that are not all whole, so no levels of a factor."""
    if pd.api.types.is_object_dtype(column.dtype):
        fractional = pd.api.types.infer_dtype(column, skipna=True) in _FRACTIONAL
    else:
        fractional = pd.api.types.is_float_dtype(column.dtype)
    if not fractional:
        return False
    numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
    numbers = numbers[np.isfinite(numbers)]
    return bool(np.any(numbers != np.rint(numbers)))


def grouping_factor(
    frame: pd.DataFrame, factors: Sequence[str], taken: Iterable[str] = ()
) -> tuple[Codes, GroupingFactor]:
    """Find the levels of a grouping factor and the level of each row.

    Parameters
    ----------
    frame : pandas.DataFrame
        n complete rows.
    factors : sequence of str
        Its variables: one, or several whose cells that occur are the levels.
    taken : iterable of str, optional
        Labels that its levels may not have.

    Returns
    -------
    codes : ndarray of int, shape (n,)
    factor : GroupingFactor

    Raises
    ------
    DataError
        If the values of a variable cannot be levels.
    """
    found = [column_levels(frame[name]) for name in factors]
    parts = tuple(levels for _, levels in found)
    codes, cells = found[0][0], np.arange(len(parts[0]), dtype=np.intp)[:, None]
    for part_codes, levels in found[1:]:
        size = len(levels)
        codes, occurring = _compress(codes * size + part_codes, len(cells) * size)
        cells = np.column_stack([cells[occurring // size], occurring % size])
    factor = GroupingFactor(
        name=":".join(factors),
        factors=tuple(factors),
        levels=read_only(_labels(parts, cells, set(taken))),
        parts=parts,
        cells=read_only(cells),
    )
    return read_only(codes), factor


def factor_of_cells(
    factors: Sequence[str], parts: Sequence[pd.Index], cells: Codes
) -> GroupingFactor:
    """A grouping factor from the levels of its m variables and its cells (J, m), in their order."""
    return GroupingFactor(
        name=":".join(factors),
        factors=tuple(factors),
        levels=read_only(_labels(parts, cells, set())),
        parts=tuple(parts),
        cells=read_only(cells),
    )


def with_levels(
    codes: Codes, factor: GroupingFactor, values: pd.Index
) -> tuple[Codes, GroupingFactor, Codes]:
    """The same grouping by one variable with more levels than occur.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        Level of each row.
    factor : GroupingFactor
        The levels that occur.
    values : pandas.Index
        Those that there are, in any order.

    Returns
    -------
    codes : ndarray of int, shape (n,)
        -1 for a level that is not among `values`.
    factor : GroupingFactor
    order : ndarray of int
        Places of its levels among `values`.

    Raises
    ------
    DataError
        If the data hold numbers and `values` text, or the reverse.
    """
    (part,), name = factor.parts, factor.name
    values = canonical(values)
    kinds = value_kind(part), value_kind(values)
    if set(kinds) == {"numbers", "text"}:
        raise DataError(
            f"`{name}` holds {kinds[0]} in the data and {kinds[1]} in its relationship, so "
            "that no level would be recognised; convert one of them."
        )
    order = level_order(values)
    part_of = values[order]
    more = GroupingFactor(
        name=name,
        factors=factor.factors,
        levels=read_only(_labels((part_of,), np.arange(len(order))[:, None], set())),
        parts=(part_of,),
        cells=read_only(np.arange(len(order), dtype=np.intp)[:, None]),
    )
    return read_only(part_of.get_indexer(part)[codes]), more, order


def _compress(codes: Codes, size: int) -> tuple[Codes, Codes]:
    """Number the codes that occur among 0..size-1; return the new codes and the old values."""
    if size <= max(4 * len(codes), 1 << 16):
        occurring = np.flatnonzero(np.bincount(codes, minlength=size))
        return _renumber(codes, occurring, size), occurring
    first, occurring = pd.factorize(codes)
    order = np.argsort(occurring)
    return _renumber(first, order, len(order)), occurring[order]


def _labels(parts: Sequence[pd.Index], cells: Codes, taken: set[str]) -> NDArray[np.object_]:
    if len(parts) == 1 and not taken and (own := _own_labels(parts[0])) is not None:
        return own[cells[:, 0]]
    labels: list[str] = []
    clashing: Sequence[int] = range(len(cells))
    for style in (_plain, _quoted, _shown):
        columns = [np.array(style(part), dtype=object) for part in parts]
        fresh = _joined([texts[cells[clashing, i]] for i, texts in enumerate(columns)])
        labels = labels or fresh
        for i, label in zip(clashing, fresh, strict=True):
            labels[i] = label
        clashing = _clashes(labels, taken)
        if not clashing:
            break
    for i in clashing:
        used = taken.union(labels)
        labels[i] = next(text for k in count(2) if (text := f"{labels[i]} ({k})") not in used)
    result = np.empty(len(labels), dtype=object)
    result[:] = labels
    return result


def _own_labels(values: pd.Index) -> NDArray[np.object_] | None:
    """Labels of distinct whole numbers or texts, which are distinct; None of other values."""
    if pd.api.types.is_integer_dtype(values.dtype):
        return np.array(list(map(str, values.tolist())), dtype=object)
    text = values.dtype == object and pd.api.types.infer_dtype(values, skipna=False) == "string"
    return values.to_numpy(copy=True) if text else None


def _plain(values: pd.Index) -> list[str]:
    if values.dtype == object:
        return [str(value) for value in values]
    return values.astype(str).tolist()


def _quoted(values: pd.Index) -> list[str]:
    return [repr(text) if ":" in text else text for text in _plain(values)]


def _shown(values: pd.Index) -> list[str]:
    return [repr(value) for value in values.tolist()]


def _joined(columns: Sequence[NDArray[np.object_]]) -> list[str]:
    if len(columns) == 1:
        return columns[0].tolist()
    return list(map(":".join, zip(*columns, strict=True)))


def _clashes(labels: Sequence[str], taken: set[str]) -> list[int]:
    """Positions of the labels that are taken or occur more than once."""
    if len(set(labels)) == len(labels) and taken.isdisjoint(labels):
        return []
    index = pd.Index(labels, dtype=object)
    twice = index.duplicated(keep=False)
    return [i for i, label in enumerate(labels) if twice[i] or label in taken]


# --- levels of new data ----------------------------------------------------------------


def lookup_levels(factor: GroupingFactor, frame: pd.DataFrame) -> Codes:
    """Find the known level of each row of new data.

    Parameters
    ----------
    factor : GroupingFactor
        The known levels.
    frame : pandas.DataFrame
        n complete rows.

    Returns
    -------
    ndarray of int, shape (n,)
        -1 where the level is new.

    Raises
    ------
    DataError
        If a variable held numbers and now holds text, or the reverse.
    """
    sizes = [len(part) for part in factor.parts]
    cell, known = np.zeros(len(frame), dtype=np.intp), np.arange(1, dtype=np.intp)
    rows = np.ones(len(frame), dtype=bool)
    merged = np.zeros(len(factor.cells), dtype=np.intp)
    for i, (name, part) in enumerate(zip(factor.factors, factor.parts, strict=True)):
        codes, levels = column_levels(frame[name])
        _check_kind(name, part, levels)
        place = part.get_indexer(levels)[codes]
        rows &= place >= 0
        merged, known = _compress(merged * sizes[i] + factor.cells[:, i], len(known) * sizes[i])
        at = np.searchsorted(known, cell * sizes[i] + place)
        at = np.minimum(at, len(known) - 1)
        rows &= known[at] == cell * sizes[i] + place
        cell = np.where(rows, at, 0)
    return np.where(rows, cell, -1)


def new_levels(
    factor: GroupingFactor, frame: pd.DataFrame, codes: Codes
) -> tuple[Codes, NDArray[np.object_]]:
    """Number the new levels of new data from J on.

    Parameters
    ----------
    factor : GroupingFactor
        The J known levels.
    frame : pandas.DataFrame
        n complete rows.
    codes : ndarray of int, shape (n,)
        What `lookup_levels` found.

    Returns
    -------
    codes : ndarray of int, shape (n,)
        The known level, or J, J + 1, ...: rows with equal new values share a number.
    labels : ndarray of str, object
        Labels of the new levels, distinct from the known ones.
    """
    rows = np.flatnonzero(codes < 0)
    if not len(rows):
        return codes, np.empty(0, dtype=object)
    found, fresh = grouping_factor(
        frame[list(factor.factors)].iloc[rows], factor.factors, taken=factor.levels.tolist()
    )
    extended = codes.copy()
    extended[rows] = len(factor.levels) + found
    return extended, fresh.levels


def _check_kind(name: str, known: pd.Index, levels: pd.Index) -> None:
    kinds = (value_kind(known), value_kind(levels))
    if set(kinds) == {"numbers", "text"}:
        raise DataError(
            f"`{name}` held {kinds[0]} when the model was built and holds {kinds[1]} here, so that "
            "no level would be recognised; convert the column."
        )


def value_kind(values: pd.Index) -> str:
    """Whether values are numbers, text or other."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return "numbers"
    return "text" if all(isinstance(value, str) for value in values) else "other"
