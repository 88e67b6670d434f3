"""Data frames of any kind to complete rows of pandas data."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import check_usable, plain
from bayeslmm.exceptions import DataError, listed

if TYPE_CHECKING:
    import narwhals.stable.v2 as nw

Codes = NDArray[np.intp]


# --- frames ----------------------------------------------------------------------------


def column_names(data: Any) -> list[str]:
    """List the columns of a data frame of any kind.

    Parameters
    ----------
    data : data frame or mapping
        As for `to_frame`.

    Returns
    -------
    list of str

    Raises
    ------
    DataError
        If `data` is not a data frame or has duplicate column names.
    """
    columns = data if isinstance(data, Mapping) else _native(data).columns
    return [str(name) for name in _checked_names(columns)]


def to_frame(data: Any, columns: Collection[str] | None = None) -> pd.DataFrame:
    """Turn a data frame of any kind into a new pandas data frame.

    Parameters
    ----------
    data : data frame or mapping
        A frame of pandas, polars, pyarrow or another library that narwhals reads, or a mapping
        from names to columns. It is never changed.
    columns : set or list of str, optional
        Take only those of these columns that exist; default all. They are in the order of the
        data, or in that of a list.

    Returns
    -------
    pandas.DataFrame
        With column names made strings. A pandas frame keeps its index; other frames get a range.
        Categories keep their order, except polars' ``Categorical``, whose order is that of first
        appearance: they are sorted (``Enum`` keeps its order).

    Raises
    ------
    DataError
        If `data` is not a data frame, has duplicate column names, or has no rows.

    Examples
    --------
    >>> to_frame({"y": [1.0, 2.0], "g": ["a", "b"]}).shape
    (2, 2)
    """
    frame = _native(data)
    names = _checked_names(frame.columns)
    written = {str(name): name for name in names}
    texts = _chosen(written, columns)
    if not len(frame):
        raise DataError("The data have no rows.")
    if isinstance(frame, pd.DataFrame):
        own = {text: frame[written[text]].copy() for text in texts}
        taken = pd.DataFrame(own, index=frame.index, copy=False)
        taken.columns = pd.Index(texts, dtype=object)
        return taken
    read = {text: _of_narwhals(frame[text], text) for text in texts}
    names_of = pd.Index(texts, dtype=object)
    return pd.DataFrame(read, index=pd.RangeIndex(len(frame)), columns=names_of, copy=False)


def _chosen(names: Collection[str], columns: Collection[str] | None) -> list[str]:
    if columns is None:
        return list(names)
    if isinstance(columns, Sequence):
        return [name for name in columns if name in names]
    return [name for name in names if name in columns]


def plain_frame(data: Any, columns: Collection[str]) -> pd.DataFrame:
    """Turn columns of a data frame of any kind into the forms that models are built from.

    Parameters
    ----------
    data : data frame or mapping
        As for `to_frame`.
    columns : set or list of str
        Take only those of these columns that exist.

    Returns
    -------
    pandas.DataFrame
        As `to_frame`, each column as `plain` gives it: the same for the same content, whatever
        the type of the frame and of its columns.

    Raises
    ------
    DataError
        As `to_frame`, and if a column holds what no model can use, such as lists.

    Examples
    --------
    >>> frame = pd.DataFrame({"x": pd.array([3, 1], dtype="uint8"), "other": [[1], [2]]})
    >>> plain_frame(frame, ["x"]).dtypes.to_dict()
    {'x': dtype('int64')}
    """
    result = _plain(to_frame(data, columns))
    check_usable(result)
    return result


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The same frame, its columns made plain in place."""
    for place, (_, column) in enumerate(frame.items()):
        new = plain(column)
        if new is not column:
            frame.isetitem(place, new)
    return frame


def to_column(values: Any, name: str) -> Any:
    """Turn one column of any kind, or a list, into what makes a column of pandas."""
    if isinstance(values, list | tuple):  # pandas would make floats of whole numbers with gaps
        return plain(pd.Series(np.fromiter(values, dtype=object, count=len(values)))).array
    if isinstance(values, pd.Series) or type(values).__module__.startswith("numpy"):
        return values
    module = type(values).__module__.partition(".")[0]
    if module in ("polars", "pyarrow") and hasattr(values, "__len__"):
        from bayeslmm import arrow

        read = arrow.from_polars if module == "polars" else arrow.from_arrow
        return plain(read(values, name)).array
    return values


def _of_narwhals(column: nw.Series[Any], name: str) -> Any:
    known = column.implementation.is_polars() or column.implementation.is_pyarrow()
    if known:
        return to_column(column.to_native(), name)
    return column.to_pandas().array


def _native(data: Any) -> Any:
    """A pandas frame as it is, a mapping as a pandas frame, or a narwhals frame."""
    if isinstance(data, pd.DataFrame):
        return data
    if isinstance(data, Mapping):
        return _from_mapping(data)
    import narwhals.stable.v2 as nw

    try:
        return nw.from_native(data, eager_only=True)
    except TypeError as error:
        lazy = " Collect a lazy frame first." if "LazyFrame" in type(data).__name__ else ""
        raise DataError(
            "The data must be a data frame of pandas, polars, pyarrow or another library that "
            f"narwhals reads, or a mapping of columns, got {type(data).__name__}.{lazy}"
        ) from error
    except ValueError as error:  # duplicate names
        raise DataError(f"This data frame cannot be read: {error}") from error


def _from_mapping(data: Mapping[Any, Any]) -> pd.DataFrame:
    indexes = [column.index for column in data.values() if isinstance(column, pd.Series)]
    if any(not index.equals(indexes[0]) for index in indexes):
        raise DataError(
            "The columns are pandas Series with different indexes, so it is not clear which values "
            "belong together; pass a data frame."
        )
    try:
        return pd.DataFrame({name: to_column(column, str(name)) for name, column in data.items()})
    except (ValueError, TypeError) as error:
        if not any(
            hasattr(column, "__len__") and not isinstance(column, str) for column in data.values()
        ):
            raise DataError(
                "The columns are single values; give a list for each, such as {'x': [1.0]}."
            ) from error
        raise DataError(f"These columns do not make a data frame: {error}.") from error


def _checked_names(columns: Iterable[Hashable]) -> list[Hashable]:
    if isinstance(columns, pd.MultiIndex):
        raise DataError("The columns have several levels of names; flatten them to one.")
    names = list(columns)
    texts = [str(name) for name in names]
    if len(set(texts)) < len(texts):
        repeated = sorted({text for text in texts if texts.count(text) > 1})
        raise DataError(
            f"Column names must be unique, but {listed(repeated)} "
            f"{'occurs' if len(repeated) == 1 else 'occur'} more than once; rename or drop the "
            "extra columns."
        )
    return names


def read_only[A: NDArray[Any]](array: A) -> A:
    """Return the array itself, which can no longer be written to."""
    array.setflags(write=False)
    return array


# --- rows ------------------------------------------------------------------------------


def missing(column: pd.Series) -> NDArray[np.bool_]:
    """Tell which values of a column are missing: NaN, None, NaT, pandas' NA or null."""
    result = np.asarray(column.array.isna(), dtype=bool)
    dtype = column.dtype
    if not isinstance(dtype, np.dtype) and pd.api.types.is_float_dtype(dtype):
        result = result | np.isnan(column.to_numpy(dtype=np.float64, na_value=np.nan))
    return result


def complete_cases(
    frame: pd.DataFrame,
    variables: Iterable[str],
    unweighted: NDArray[np.bool_] | None = None,
    optional: Collection[str] = (),
) -> tuple[pd.DataFrame, Codes]:
    """Keep the rows without a missing value in the variables.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows.
    variables : iterable of str
        The columns that count, and the columns returned.
    unweighted : ndarray of bool, shape (n,), optional
        Rows whose weight is missing; they are dropped too.
    optional : collection of str
        Those among the variables of which values may be missing.

    Returns
    -------
    frame : pandas.DataFrame
        The complete rows of the variables, under their original index.
    dropped : ndarray of int
        Positions of the dropped rows in `frame`, increasing.

    Raises
    ------
    DataError
        If a column has no value at all or no row is complete.
    """
    names = list(dict.fromkeys(variables))
    gaps = {name: missing(frame[name]) for name in names}
    empty = sorted(name for name in names if gaps[name].all())
    if empty:
        raise DataError(
            f"All {len(frame)} values of {listed(empty)} are missing; take the variable out of the "
            "formula or fill it in."
        )
    if unweighted is not None:
        gaps["weights"] = gaps.get("weights", False) | unweighted
    drop = np.zeros(len(frame), dtype=bool)
    for name, gap in gaps.items():
        drop |= gap & (name not in optional)
    if drop.all():
        counts = ", ".join(f"`{name}` {gap.sum()}" for name, gap in gaps.items() if gap.any())
        raise DataError(
            f"No row is complete: each of the {len(frame)} rows lacks a value of some variable "
            f"(missing values: {counts})."
        )
    complete = frame if list(frame.columns) == names else frame[names]
    if drop.any():
        complete = _plain(complete.take(np.flatnonzero(~drop)))  # no longer nullable
    return complete, np.flatnonzero(drop)


def check_infinite(frame: pd.DataFrame, variables: Iterable[str]) -> None:
    """Raise DataError if a numeric column among `variables` holds an infinite value."""
    for name in sorted(variables):
        column = frame[name]
        if not pd.api.types.is_float_dtype(column.dtype):
            continue
        bad = np.isinf(column.to_numpy(dtype=np.float64, na_value=np.nan))
        if bad.any():
            first = int(bad.argmax())
            raise DataError(
                f"`{name}` is infinite in {bad.sum()} of {len(frame)} rows, first at position "
                f"{first} (index {frame.index[first]!r}); mark these values as missing or take "
                "the rows out."
            )
