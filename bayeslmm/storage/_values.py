"""Python values as JSON and back, without losing their types."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd

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
    return str(value.dtype)


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
        return np.array(inner, dtype=value["dtype"]).reshape(value["shape"])
    if kind == "numpy":
        return np.dtype(value["dtype"]).type(inner)
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
