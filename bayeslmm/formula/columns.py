"""Columns of a data frame in the few forms that a model matrix is built from."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.column_types import EXACT, kind_of, level_order, plain, refused, to_floats
from bayeslmm.exceptions import DataError


def prepare(frame: pd.DataFrame, variables: Iterable[str]) -> pd.DataFrame:
    """Copy the columns that a formula reads, normalised.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows, any index.
    variables : iterable of str
        Columns to take.

    Returns
    -------
    pandas.DataFrame
        With a range index. Numbers of any type become float64, truth values bool, strings
        objects; unused categories are dropped.

    Raises
    ------
    DataError
        If a column does not exist, or holds whole numbers that floats cannot tell apart.
    """
    wanted = sorted(variables)
    present = set(frame.columns)
    absent = [name for name in wanted if name not in present]
    if absent:
        raise DataError(
            f"{listed(absent)} not found in the data; the columns are "
            f"{listed(sorted(map(str, frame.columns)))}."
        )
    columns = {name: _normalised(frame[name].reset_index(drop=True)) for name in wanted}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(frame)))


def _normalised(column: pd.Series) -> pd.Series:
    column = plain(column)
    kind = kind_of(column)
    if kind == "numbers" and not refused(column):
        return to_floats(column)  # whole numbers wrap around: 3 - 5 is 254 in eight bits
    if kind == "categories":
        return column.cat.remove_unused_categories()
    if kind == "truth values":
        return column.astype(object if column.isna().any() else bool)
    if kind == "mixed values":
        return _categorical(column)
    return column.astype(object) if kind == "text" else column


def _categorical(column: pd.Series) -> pd.Series:
    """Levels of mixed kinds, in an order that pandas does not have."""
    codes, found = pd.factorize(column)
    order = level_order(found)
    place = np.append(np.argsort(order), -1)
    categories = pd.Index(found.to_numpy()[order], dtype=object, tupleize_cols=False)
    return pd.Series(pd.Categorical.from_codes(place[codes], categories))


def check_kinds(prepared: pd.DataFrame, names: Iterable[str]) -> None:
    """Raise DataError for a column among `names` that is neither numeric nor a factor."""
    for name in names:
        kind = kind_of(prepared[name])
        if kind in ("dates or times", "intervals"):
            raise DataError(
                f"`{name}` must be converted from {kind} to numbers. To make it a factor, write "
                f"C({name})."
            )


def whole_numbers(values: Any) -> Any:
    """Levels that are whole numbers as integers, so that labels do not say ``2.0``."""
    if not isinstance(values, pd.Series) or values.dtype != np.float64:
        return values
    whole = (values == np.rint(values)) & (np.abs(values) < EXACT)
    return values.astype(np.int64) if whole.all() else values


def categories_of(prepared: pd.DataFrame) -> dict[str, pd.Index]:
    """Return the categories of each categorical column."""
    return {
        str(name): column.cat.categories
        for name, column in prepared.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
    }


def conform(prepared: pd.DataFrame, categories: Mapping[str, pd.Index]) -> pd.DataFrame:
    """Give columns the categories of earlier data; values outside them become missing."""
    columns = dict(prepared.items())
    for name, known in categories.items():
        values = pd.Index(prepared[name].to_numpy(dtype=object), dtype=object, tupleize_cols=False)
        codes = known.get_indexer(values)
        columns[name] = pd.Series(pd.Categorical.from_codes(codes, categories=known))
    return pd.DataFrame(columns, index=prepared.index)


def holds_levels(values: Any) -> bool:
    """Tell whether values are levels (strings, booleans, categories) and not numbers."""
    dtype = getattr(values, "dtype", None)
    if not isinstance(values, pd.Series | pd.Categorical | np.ndarray):
        return False
    if isinstance(dtype, np.dtype):
        return dtype.kind in "bOSU"
    return (
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(dtype)
        or pd.api.types.is_bool_dtype(dtype)
    )


def outside(values: Any, known: Iterable[Any]) -> list[Any]:
    """List the distinct values, in order of appearance, that are not among `known`."""
    allowed = set(known)
    found = pd.Series(values).dropna().unique().tolist()
    return [value for value in found if value not in allowed]


def check_finite(values: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise DataError for the first column of `values` (n, k) that is not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        rows = np.flatnonzero(bad[:, column])
        raise DataError(
            f"`{names[column]}` is missing, undefined or infinite in {rows.size} of "
            f"{len(values)} rows (first at position {rows[0]})."
        )


def listed(values: Iterable[Any]) -> str:
    """Join names or levels for a message."""
    return ", ".join(f"`{value}`" for value in values)
