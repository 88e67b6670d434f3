"""Data frames as arrays of plain types with a description, and back, dtypes and all."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import StorageError
from bayeslmm.storage.layout import from_plain, to_plain

Arrays = dict[str, NDArray[Any]]
Stored = Mapping[str, NDArray[Any]]
Description = dict[str, Any]

_ARROW_TEXT = ("large_string", "string")


def pack_frame(frame: pd.DataFrame, arrays: Arrays) -> Description:
    """Describe a data frame.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns of numbers, booleans, text, categories, dates or mixed Python values.
    arrays : dict
        Where the values go.

    Returns
    -------
    dict
        What :func:`unpack_frame` needs besides the arrays; fit for JSON.

    Raises
    ------
    StorageError
        If a column has a type that cannot be stored.
    """
    columns = {
        str(name): _pack(column.array, f"column {i}", f"The column `{name}`", arrays)
        for i, (name, column) in enumerate(frame.items())
    }
    return {"columns": columns, "index": pack_index(frame.index, arrays)}


def unpack_frame(description: Description, arrays: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """The data frame that :func:`pack_frame` described."""
    index = unpack_index(description["index"], arrays)
    columns = description["columns"]
    unpacked = {name: _unpack(columns[name], arrays) for name in columns}
    series = {name: pd.Series(v, dtype=v.dtype, index=index) for name, v in unpacked.items()}
    frame = pd.DataFrame(series, index=index)
    frame.columns = pd.Index(list(columns), dtype=object)
    return frame


def same_frame(one: pd.DataFrame, two: pd.DataFrame) -> bool:
    """Whether two data frames have the same columns, dtypes, index and values."""
    return (
        one.equals(two)
        and list(one.dtypes) == list(two.dtypes)
        and one.index.equals(two.index)
        and one.index.names == two.index.names
    )


# --- indexes ---------------------------------------------------------------------------


def pack_index(index: pd.Index, arrays: Arrays, place: str = "index") -> Description:
    """Describe an index; its values go to arrays whose names begin with `place`."""
    names = [to_plain(name, "The name of the index") for name in index.names]
    if isinstance(index, pd.RangeIndex):
        return {"names": names, "range": [index.start, index.stop, index.step]}
    if not isinstance(index, pd.MultiIndex):
        return {"names": names, "values": _pack(index.array, place, "The index", arrays)}
    levels = []
    for i, (level, codes) in enumerate(zip(index.levels, index.codes, strict=True)):
        arrays[f"{place} codes {i}"] = np.asarray(codes)
        levels.append(_pack(level.array, f"{place} level {i}", "The index", arrays))
    return {"names": names, "levels": levels, "place": place}


def unpack_index(description: Description, arrays: Mapping[str, NDArray[Any]]) -> pd.Index:
    """The index that :func:`pack_index` described."""
    names: list[Hashable] = [from_plain(name) for name in description["names"]]
    if "range" in description:
        return pd.RangeIndex(*description["range"], name=names[0])
    if "levels" in description:
        levels = [_as_index(_unpack(level, arrays)) for level in description["levels"]]
        place = description["place"]
        codes = [arrays[f"{place} codes {i}"] for i in range(len(levels))]
        for level, places in zip(levels, codes, strict=True):
            _check_codes(places, len(level))
        return pd.MultiIndex(levels, codes, names=names, verify_integrity=False)
    return _as_index(_unpack(description["values"], arrays), names[0])


def _check_codes(codes: NDArray[Any], size: int) -> None:
    """Raise StorageError for codes beyond a table; -1 is a missing value."""
    if codes.ndim != 1 or codes.dtype.kind != "i" or np.any((codes < -1) | (codes >= size)):
        raise StorageError("The data have codes of values that are not there.")


def _as_index(values: Any, name: Hashable = None) -> pd.Index:
    return pd.Index(values, dtype=values.dtype, name=name)


# --- values ----------------------------------------------------------------------------


def _pack(values: Any, name: str, what: str, arrays: Arrays) -> Description:
    if isinstance(values, pd.arrays.NumpyExtensionArray):
        values = values.to_numpy()
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        arrays[name] = np.asarray(values.codes)
        categories = _pack(dtype.categories.array, f"{name} categories", what, arrays)
        return {
            "kind": "categorical",
            "array": name,
            "ordered": bool(dtype.ordered),
            "categories": categories,
        }
    if isinstance(dtype, pd.IntervalDtype):
        sides = {side: getattr(values, side).array for side in ("left", "right")}
        parts = {side: _pack(part, f"{name} {side}", what, arrays) for side, part in sides.items()}
        return {"kind": "interval", "closed": values.closed, **parts}
    if isinstance(dtype, pd.PeriodDtype):
        arrays[name] = np.asarray(values.asi8)
        return {"kind": "period", "array": name, "dtype": str(dtype)}
    if dtype.kind in "mM":
        arrays[name] = np.asarray(values.asi8 if hasattr(values, "asi8") else values.view("i8"))
        return {"kind": "time", "array": name, "dtype": str(dtype)}
    if isinstance(dtype, pd.StringDtype):
        return _pack_text(values, name, arrays) | {"kind": "string", "dtype": str(dtype)}
    if dtype.kind == "O" and isinstance(dtype, np.dtype):
        return _pack_objects(values, name, what, arrays)
    return _pack_numbers(values, name, what, arrays)


def _pack_numbers(values: Any, name: str, what: str, arrays: Arrays) -> Description:
    dtype = values.dtype
    if isinstance(dtype, pd.ArrowDtype) and str(dtype.pyarrow_dtype) in _ARROW_TEXT:
        text = str(dtype.pyarrow_dtype)
        return _pack_text(values, name, arrays) | {"kind": "arrow text", "dtype": text}
    kind = dtype.kind if isinstance(dtype, np.dtype) or hasattr(dtype, "numpy_dtype") else "V"
    if kind not in "biuf" or dtype.itemsize > 8:
        raise StorageError(
            f"{what} has the type {dtype}, which cannot be stored: convert it, with "
            "data.astype, to numbers, text or categories and build the model again."
        )
    result = {"kind": "numbers", "array": name, "dtype": str(dtype)}
    if isinstance(dtype, np.dtype):
        arrays[name] = np.asarray(values)
        return result
    missing = np.asarray(values.isna())
    filler = np.nan if kind == "f" else dtype.numpy_dtype.type(0)
    arrays[name] = values.to_numpy(dtype=dtype.numpy_dtype, na_value=filler)
    if missing.any():
        arrays[f"{name} missing"] = missing
        result["missing"] = f"{name} missing"
    return result


def _pack_text(values: Any, name: str, arrays: Arrays) -> Description:
    codes, texts = pd.factorize(np.asarray(values, dtype=object))
    arrays[name] = codes.astype(np.int64)
    return {"array": name, "texts": [str(text) for text in texts]}


def _pack_objects(values: Any, name: str, what: str, arrays: Arrays) -> Description:
    found: dict[tuple[str, str], int] = {}
    distinct: list[Any] = []
    codes = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        key = (type(value).__name__, repr(value))
        if key not in found:
            found[key] = len(distinct)
            distinct.append(to_plain(value, what))
        codes[i] = found[key]
    arrays[name] = codes
    return {"kind": "objects", "array": name, "values": distinct}


def _unpack(description: Description, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Values as an array of pandas or numpy with the dtype they had."""
    kind = description["kind"]
    if kind == "interval":
        left, right = (_as_index(_unpack(description[s], arrays)) for s in ("left", "right"))
        return pd.arrays.IntervalArray.from_arrays(left, right, closed=description["closed"])
    array = arrays[description["array"]]
    if kind == "categorical":
        categories = _as_index(_unpack(description["categories"], arrays))
        dtype = pd.CategoricalDtype(categories, ordered=description["ordered"])
        return pd.Categorical.from_codes(array, dtype=dtype)
    if kind == "objects":
        return _chosen([from_plain(value) for value in description["values"]], array)
    if kind in ("string", "arrow text"):
        return _unpack_text(kind, description, array)
    dtype = pd.api.types.pandas_dtype(description["dtype"])
    if kind == "period":
        return pd.arrays.PeriodArray(array, dtype=dtype)
    if kind == "time":
        return _unpack_times(array, dtype)
    if kind != "numbers":
        raise StorageError(f"The data have a column of the kind {kind!r:.80}.")
    return _unpack_numbers(description, array, dtype, arrays)


def _unpack_text(kind: str, description: Description, codes: NDArray[Any]) -> Any:
    missing: list[Any] = [None]
    values = _chosen(description["texts"] + missing, codes)
    if kind == "string":
        return pd.array(values, dtype=pd.api.types.pandas_dtype(description["dtype"]))
    if description["dtype"] not in _ARROW_TEXT:
        raise StorageError(f"The data have a column of type {description['dtype']!r:.80}.")
    pyarrow = import_module("pyarrow")
    return pd.array(values, dtype=pd.ArrowDtype(getattr(pyarrow, description["dtype"])()))


def _unpack_times(array: NDArray[Any], dtype: Any) -> Any:
    if isinstance(dtype, np.dtype):
        return array.view(dtype)
    utc = pd.Series(array.view(f"M8[{dtype.unit}]")).dt.tz_localize("UTC")
    return utc.dt.tz_convert(dtype.tz).array


def _unpack_numbers(
    description: Description, array: NDArray[Any], dtype: Any, arrays: Mapping[str, NDArray[Any]]
) -> Any:
    if isinstance(dtype, np.dtype):
        return array.astype(dtype, copy=False)
    result = pd.array(array, dtype=dtype)
    if "missing" in description:
        result[arrays[description["missing"]]] = pd.NA
    return result


def _chosen(values: list[Any], codes: NDArray[Any]) -> NDArray[np.object_]:
    """Objects by their codes; -1 is the last."""
    _check_codes(codes, len(values))
    table = np.empty(len(values), dtype=object)
    table[:] = values
    return table[codes]
