"""Columns of any type in the few forms that models are built from, or refused in words."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError

Kind = Literal[
    "numbers", "truth values", "text", "categories", "dates or times", "intervals", "mixed values"
]

ALLOWED = "numbers, truth values, text, categories, dates, times, periods or intervals"
EXACT = 2.0**53
"""Up to here float64 holds every whole number."""

_WHOLE = (int, np.integer)
_NUMBERS = (*_WHOLE, float, np.floating, Decimal, Fraction)
_TRUTH = (bool, np.bool_)
_INFERRED = ("datetime", "datetime64", "timedelta", "timedelta64", "period", "interval")
_DATES = (dt.date, dt.time, dt.timedelta, np.datetime64, np.timedelta64, pd.Period)
_KNOWN = (np.dtype, pd.StringDtype, pd.PeriodDtype, pd.IntervalDtype, pd.DatetimeTZDtype)
_INT64, _UINT64 = np.iinfo(np.int64), np.iinfo(np.uint64)


def plain(column: pd.Series) -> pd.Series:
    """Bring a column of any type into one of few forms, without loss.

    Parameters
    ----------
    column : pandas.Series
        Of a type of NumPy, pandas or Arrow.

    Returns
    -------
    pandas.Series
        With the same index and missing values in the same places. Numbers are float64, int64 or
        uint64, or pandas' nullable integers where some are missing; whole numbers beyond 64 bits
        stay Python's. Truth values are bool, or pandas' nullable ones. Dates, times, periods,
        intervals and text have pandas' types, and so have the categories of categorical columns.
        What no model can use is left as it is; see `refused`.

    Examples
    --------
    >>> plain(pd.Series([1, None], dtype=object)).dtype
    Int64Dtype()
    >>> plain(pd.Series([3, 200], dtype="uint8")).dtype
    dtype('int64')
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _plain_categories(column)
    if isinstance(dtype, pd.SparseDtype):
        return plain(column.sparse.to_dense())
    if isinstance(dtype, pd.ArrowDtype):
        from bayeslmm.arrow import from_arrow

        return _like(column, plain(from_arrow(column.array.__arrow_array__(), str(column.name))))
    if dtype in (np.float64, np.int64, np.bool_) or isinstance(dtype, pd.StringDtype):
        return column
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return _plain_objects(column)
    if pd.api.types.is_bool_dtype(dtype):
        return _like(column, column.astype(bool)) if not column.hasnans else column
    if pd.api.types.is_integer_dtype(dtype):
        return _plain_integers(column)
    if pd.api.types.is_float_dtype(dtype):
        with np.errstate(over="ignore"):  # a long double beyond float64 is infinite
            return _like(column, column.to_numpy(dtype=np.float64, na_value=np.nan))
    return column


def _like(column: pd.Series, values: Any) -> pd.Series:
    values = getattr(values, "array", values)
    return pd.Series(values, index=column.index, name=column.name, copy=False)


def _plain_integers(column: pd.Series) -> pd.Series:
    signed = not pd.api.types.is_unsigned_integer_dtype(column.dtype)
    signed = signed or column.dropna().max() <= _INT64.max
    missing = column.isna().any()
    if missing:
        return column.astype("Int64" if signed else "UInt64")
    return column.astype(np.int64 if signed else np.uint64)


def _plain_categories(column: pd.Series) -> pd.Series:
    """Categories keep their values; only their types become plain."""
    old = column.cat.categories
    if isinstance(old.dtype, pd.StringDtype) or old.dtype in (np.int64, np.float64, object):
        return column
    new = pd.Index(plain(pd.Series(old)))
    return column if new.dtype == old.dtype else column.cat.rename_categories(new)


# --- columns of Python values ----------------------------------------------------------


def _plain_objects(column: pd.Series) -> pd.Series:
    if pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty"):
        return column
    values = column.to_numpy()
    present = np.array([not _is_gap(value) for value in values], dtype=bool)
    types = set(map(type, values[present]))
    if types and all(issubclass(kind, _TRUTH) for kind in types):
        return plain(_like(column, pd.array(_masked(values, present, bool), dtype="boolean")))
    if types and all(issubclass(kind, _NUMBERS) and kind is not bool for kind in types):
        return _plain_numbers(column, values, present)
    if pd.api.types.infer_dtype(values[present]) in _INFERRED:
        return column.infer_objects()
    return column


def _is_gap(value: Any) -> bool:
    """Whether a single value is missing; a signalling NaN would raise in pandas."""
    if isinstance(value, Decimal):
        return value.is_nan()
    if isinstance(value, float | np.floating | np.datetime64 | np.timedelta64):
        return bool(value != value)
    return value is None or value is pd.NA or value is pd.NaT


def _masked(values: NDArray[Any], present: NDArray[np.bool_], change: Any) -> list[Any]:
    pairs = zip(values, present, strict=True)
    return [change(value) if known else pd.NA for value, known in pairs]


def _plain_numbers(
    column: pd.Series, values: NDArray[Any], present: NDArray[np.bool_]
) -> pd.Series:
    known = values[present]
    if not all(map(_is_whole, known)):
        with np.errstate(over="ignore"):
            floats = [to_float(v) if p else math.nan for v, p in zip(values, present, strict=True)]
        return _like(column, np.array(floats, dtype=np.float64))
    numbers = _masked(values, present, int)
    low, high = min(map(int, known)), max(map(int, known))
    if _INT64.min <= low and high <= _INT64.max:
        return plain(_like(column, pd.array(numbers, dtype="Int64")))
    if low >= 0 and high <= _UINT64.max:
        return plain(_like(column, pd.array(numbers, dtype="UInt64")))
    return pd.Series(numbers, index=column.index, name=column.name, dtype=object)


def _is_whole(value: Any) -> bool:
    """Whether a number is whole by its type, or is a whole decimal or fraction."""
    if isinstance(value, Decimal):
        return value.is_finite() and value == value.to_integral_value()
    if isinstance(value, Fraction):
        return value.denominator == 1
    return isinstance(value, _WHOLE)


def to_float(value: Any) -> float:
    """A number as a float, infinite beyond what a float can hold."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


# --- what a plain column holds ---------------------------------------------------------


def kind_of(column: pd.Series) -> Kind:
    """Tell what a plain column holds, in words."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return "categories"
    if pd.api.types.is_bool_dtype(dtype):
        return "truth values"
    if pd.api.types.is_object_dtype(dtype):
        return _kind_of_objects(column)
    if pd.api.types.is_numeric_dtype(dtype):
        return "numbers"
    if isinstance(dtype, pd.StringDtype):
        return "text"
    return "intervals" if isinstance(dtype, pd.IntervalDtype) else "dates or times"


def _kind_of_objects(column: pd.Series) -> Kind:
    inferred = pd.api.types.infer_dtype(column, skipna=True)
    if inferred in ("string", "integer"):
        return "text" if inferred == "string" else "numbers"
    if inferred == "interval":
        return "intervals"
    types = set(map(type, column.dropna()))
    return (
        "dates or times"
        if types and all(issubclass(kind, _DATES) for kind in types)
        else "mixed values"
    )


def check_usable(columns: pd.DataFrame) -> None:
    """Raise DataError for the first of some plain columns that no model can use."""
    for name, column in columns.items():
        found = refused(column)
        if found:
            raise DataError(
                f"`{name}` holds {found}, which a model cannot use. A column may hold {ALLOWED}, "
                "one value per row; convert it first."
            )


def refused(column: pd.Series) -> str:
    """Say what a plain column holds that no model can use; empty if it is all right."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return refused(pd.Series(dtype.categories))
    if pd.api.types.is_complex_dtype(dtype):
        return f"complex numbers ({dtype})"
    if isinstance(dtype, np.dtype) and dtype.kind == "V":
        return f"records ({dtype})"
    known = isinstance(dtype, _KNOWN) or pd.api.types.is_numeric_dtype(dtype)
    if not known:
        return f"values of the type {dtype}"
    return _refused_objects(column) if pd.api.types.is_object_dtype(dtype) else ""


def _refused_objects(column: pd.Series) -> str:
    if pd.api.types.infer_dtype(column, skipna=True) == "string":
        return _refused_text(column)
    values = [value for value in column if not _is_gap(value)]
    odd = sorted({type(value).__name__ for value in values if not _can_be_level(value)})
    if odd:
        return f"values of type {', '.join(odd)}"
    if any(isinstance(value, complex | np.complexfloating) for value in values):
        return "complex numbers"
    truth = any(isinstance(value, _TRUTH) for value in values)
    if truth and any(isinstance(v, _NUMBERS) and not isinstance(v, bool) for v in values):
        return "both truth values and numbers, which count as equal (True == 1)"
    return _refused_text(value for value in values if isinstance(value, str))


def _can_be_level(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _refused_text(values: Iterable[Any]) -> str:
    texts = {value for value in values if isinstance(value, str)}
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        return f"text that is not valid Unicode ({error.reason})"
    return ""


def level_order(values: pd.Index) -> NDArray[np.intp]:
    """How to sort distinct values: numbers by size, text by code point, mixed kinds as text."""
    if values.dtype != object:
        return np.argsort(values.to_numpy(), kind="stable")
    items = values.tolist()
    try:
        return np.array(sorted(range(len(items)), key=items.__getitem__), dtype=np.intp)
    except TypeError:
        texts = [(str(item), type(item).__name__) for item in items]
        return np.array(sorted(range(len(items)), key=texts.__getitem__), dtype=np.intp)


# --- numbers ---------------------------------------------------------------------------


def to_floats(column: pd.Series) -> pd.Series:
    """Turn a plain column of numbers into float64, NaN where missing.

    Raises
    ------
    DataError
        If distinct whole numbers would become equal.
    """
    if column.dtype == np.float64:
        return column
    if pd.api.types.is_object_dtype(column.dtype):
        floats = np.array([math.nan if _is_gap(v) else to_float(v) for v in column], dtype=float)
    else:
        floats = column.to_numpy(dtype=np.float64, na_value=np.nan)
    known = floats[~np.isnan(floats)]
    beyond = np.abs(known).max(initial=0.0) >= EXACT
    if beyond and len(np.unique(known)) < column.nunique():
        raise DataError(
            f"`{column.name}` holds whole numbers beyond 2^53, some of which are one and the same "
            "as floating-point numbers. Subtract a constant first, or make it text or "
            "categories if it is a factor."
        )
    return _like(column, floats)
