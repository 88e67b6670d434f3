"""Python values as JSON and back, without losing their types."""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import StorageError

TAG = "$"
"""Key that marks an object which stands for a value that JSON does not have."""


def to_plain(value: Any, what: str) -> Any:
    """Turn a value into what JSON can hold.

    Parameters
    ----------
    value : object
        None, booleans, numbers, text, dates, numpy's scalars and arrays, and lists, tuples and
        dicts of them.
    what : str
        What the value is, for the message.

    Returns
    -------
    object
        What :func:`from_plain` turns back into an equal value of the same type.

    Raises
    ------
    StorageError
        For anything else.
    """
    if isinstance(value, np.ndarray):
        return _tagged("array", value.reshape(-1).tolist(), dtype=_plain_dtype(value, what)) | {
            "shape": list(value.shape)
        }
    if isinstance(value, np.generic):
        return _tagged("numpy", value.item(), dtype=_plain_dtype(value, what))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [to_plain(item, what) for item in value]
    if isinstance(value, tuple):
        return _tagged("tuple", [to_plain(item, what) for item in value])
    if isinstance(value, dict):
        pairs = [[to_plain(key, what), to_plain(item, what)] for key, item in value.items()]
        return _tagged("dict", pairs)
    return _scalar(value, what)


def _scalar(value: Any, what: str) -> Any:
    if value is pd.NA or value is pd.NaT:
        return _tagged("missing", "NA" if value is pd.NA else "NaT")
    if isinstance(value, Decimal):
        return _tagged("decimal", str(value))
    aware = isinstance(value, dt.datetime) and value.tzinfo is not None
    for kind, cls in (("timestamp", pd.Timestamp), ("datetime", dt.datetime), ("date", dt.date)):
        if isinstance(value, cls) and not aware:
            return _tagged(kind, value.isoformat())
    raise StorageError(
        f"{what} holds a value of type {type(value).__name__}, which cannot be stored: "
        f"{value!r:.80}. Make it a number or text."
    )


def _plain_dtype(value: Any, what: str) -> str:
    if value.dtype.kind not in "biufU":
        raise StorageError(f"{what} holds values of type {value.dtype}, which cannot be stored.")
    return str(value.dtype) if value.dtype.kind == "U" else value.dtype.name


def _tagged(kind: str, value: Any, **more: Any) -> dict[str, Any]:
    return {TAG: kind, "value": value, **more}


def from_plain(value: Any) -> Any:
    """Turn back what :func:`to_plain` made."""
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value[TAG], value["value"]
    if kind == "array":
        if value["dtype"].startswith("<U"):
            return text_array(inner, value["dtype"], checked_shape(value["shape"]))
        return np.array(inner, dtype=checked_dtype(value["dtype"])).reshape(value["shape"])
    if kind == "numpy":
        text = value["dtype"].startswith("<U")
        return np.str_(inner) if text else checked_dtype(value["dtype"]).type(inner)
    if kind == "tuple":
        return tuple(from_plain(item) for item in inner)
    if kind == "dict":
        return {from_plain(key): from_plain(item) for key, item in inner}
    if kind == "missing":
        return pd.NA if inner == "NA" else pd.NaT
    return _PARSERS[kind](inner)


_PARSERS: dict[str, Any] = {
    "decimal": Decimal,
    "timestamp": pd.Timestamp,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
}


# --- types and shapes out of files -----------------------------------------------------

TYPES = frozenset(
    ["bool", "float16", "float32", "float64"]
    + [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
)
"""Types of arrays of numbers in files."""

PADDING = 256
"""Largest ratio of the memory of an array of text to its text: a file can ask for any width."""


def checked_dtype(name: str) -> np.dtype[Any]:
    """The type of numbers of that name; no objects, no records, nothing of any width."""
    if name not in TYPES:
        raise StorageError(f"It holds an array of type {name!r}; {', '.join(sorted(TYPES))} exist.")
    return np.dtype(name)


def checked_shape(sizes: Any) -> tuple[int, ...]:
    """Sizes of an array, whole numbers from 0 on."""
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise StorageError(f"It holds an array of the shape {sizes!r:.80}.")
    return tuple(sizes)


def text_array(texts: Sequence[str], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of text, of objects or of numpy's fixed width."""
    if not all(isinstance(text, str) for text in texts) or math.prod(shape) != len(texts):
        raise StorageError(f"It holds an array of text of the shape {shape} that is none.")
    result = np.empty(len(texts), dtype=object)
    result[:] = texts
    if not re.fullmatch(r"object|<U\d{1,9}", dtype):
        raise StorageError(f"It holds an array of text of type {dtype!r}.")
    kind = np.dtype(dtype)
    if kind.itemsize * len(texts) > PADDING * (len(texts) + sum(map(len, texts))):
        raise StorageError(f"It holds short text in an array of type {dtype!r}.")
    return result.astype(kind).reshape(shape)
