"""The layout of a file: a document that describes all of it, and arrays of plain numbers.

The document, JSON, has everything but numbers: the model, the variables of every group with their
types, shapes and attributes, and their labels. The numbers are arrays of fixed types without
compression, whose places in the file follow from the document or stand at its end, so that they
are read without the libraries that wrote them: no file, whatever is in it, can make those crash or
run code. For other programs the same arrays are the variables of a netCDF file or a Zarr store.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.exceptions import BayesLMMError, StorageError

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


# --- the layout of a file -----------------------------------------------------------

SCHEMA = 3
"""Version of the layout of the file; a reader refuses others."""

MODEL = "bayeslmm_model"
"""Group that holds the model."""

DOCUMENT = f"{MODEL}/document"
"""Its variable with the document, JSON in UTF-8."""

FORMAT = "bayeslmm posterior"

LARGEST_ATTRIBUTE = 32_000
"""Bytes of text that are written as an attribute: HDF5 allows 64 kB, and longer ones are in the
document all the same."""

Numbers = NDArray[Any]
Fetch = Callable[[str, np.dtype[Any], tuple[int, ...]], Numbers]
"""Reads the numbers of a variable, such as "posterior/sigma", of a type and shape."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contents:
    """What a file holds.

    Attributes
    ----------
    tree : xarray.DataTree
        Draws and data in the ArviZ schema.
    model : dict
        Description of the model.
    arrays : dict of str to ndarray
        Its arrays.
    """

    tree: xr.DataTree
    model: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Packed:
    """What is written.

    Attributes
    ----------
    tree : xarray.DataTree
        Groups for other programs, with the document and the arrays of the model.
    numbers : dict of str to ndarray
        The document and every variable of numbers by path, as they are in memory of the file.
    head : dict
        Format, layout, version and SHA-256.
    """

    tree: xr.DataTree
    numbers: Mapping[str, Numbers]
    head: dict[str, Any]


# --- to groups -------------------------------------------------------------------------


def pack(contents: Contents) -> Packed:
    """Describe what is to be written, in types that netCDF and Zarr share.

    Raises
    ------
    StorageError
        If a variable or an attribute has a type that cannot be stored.
    """
    groups: dict[str, xr.Dataset] = {}
    described: dict[str, Any] = {}
    for node in contents.tree.subtree:
        dataset = node.to_dataset(inherit=False).load()
        described[node.path] = _describe(dataset, node.path)
        groups[node.path] = _writable(dataset)
    document = np.frombuffer(_document(contents, described), dtype=np.uint8)
    model = _model_group(contents, document)
    groups[f"/{MODEL}"] = model
    numbers = {DOCUMENT: document}
    for name in map(_array_name, contents.arrays):
        if name in model:
            numbers[_key(MODEL, name)] = model[name].to_numpy()
    for path, description in described.items():
        for item in description["variables"]:
            if "texts" not in item and 0 not in item["shape"]:
                numbers[_key(path, item["name"])] = groups[path][item["name"]].to_numpy()
    head = {
        "format": FORMAT,
        "schema": SCHEMA,
        "bayeslmm_version": _version("bayeslmm"),
        "sha256": digest(numbers.values()),
    }
    groups[f"/{MODEL}"] = model.assign_attrs(head)
    return Packed(tree=xr.DataTree.from_dict(groups), numbers=numbers, head=head)


def _key(path: str, name: str) -> str:
    return f"{path}/{name}".lstrip("/")


def digest(numbers: Iterable[Numbers]) -> str:
    """SHA-256 of arrays, the document first, which tells their types and shapes."""
    running = hashlib.sha256()
    for array in numbers:
        running.update(_as_bytes(array))
    return running.hexdigest()


def _as_bytes(array: Numbers) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _as_in_file(array: Numbers) -> Numbers:
    """Little-endian numbers in the order of their axes."""
    return np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")


def _describe(dataset: xr.Dataset, path: str) -> dict[str, Any]:
    """What is not numbers in a group."""
    where = f"The group {path}"
    variables = []
    for name, variable in dataset.variables.items():
        _check_variable(variable, f"The variable {name} of the group {path}")
        text = variable.dtype.kind in "OU"
        item = {
            "name": str(name),
            "dtype": str(variable.dtype) if text else variable.dtype.name,
            "dims": [str(dim) for dim in variable.dims],
            "shape": list(variable.shape),
            "order": _axis_order(variable.to_numpy()),
            "coordinate": name in dataset.coords,
            "attrs": to_plain(dict(variable.attrs), where),
        }
        if text:
            item["texts"] = [str(value) for value in variable.to_numpy().reshape(-1).tolist()]
        variables.append(item)
    return {"variables": variables, "attrs": to_plain(dict(dataset.attrs), where)}


def _axis_order(array: NDArray[Any]) -> list[int]:
    """Axes from the slowest to the fastest in memory: sums depend on it in their last digits."""
    return sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis))


def _in_order(array: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """The same array with its axes in that order in memory."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return np.ascontiguousarray(array.transpose(order)).transpose(back) if order else array


def _check_variable(variable: xr.Variable, what: str) -> None:
    kind = variable.dtype.kind
    if kind not in "biufOU" or (kind == "f" and variable.dtype.itemsize > 8):
        raise StorageError(f"{what} has the type {variable.dtype}: convert it to numbers or text.")
    if kind in "OU":
        for text in variable.to_numpy().reshape(-1).tolist():
            if not isinstance(text, str):
                raise StorageError(f"{what} has the value {text!r}: convert all of it to text.")
            if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
                raise StorageError(
                    f"{what} has the label {text!r}, with characters that files cannot hold."
                )


def _writable(dataset: xr.Dataset) -> xr.Dataset:
    """The group without empty variables, and with the attributes that other programs can read."""
    filled = [name for name, variable in dataset.variables.items() if variable.size]
    result = xr.Dataset(
        {name: _writable_variable(dataset[name].variable) for name in filled},
        attrs=_readable_attrs(dataset.attrs),
    )
    return result.set_coords([name for name in filled if name in dataset.coords])


def _writable_variable(variable: xr.Variable) -> xr.Variable:
    values = variable.to_numpy()
    values = values.astype(object) if values.dtype.kind in "OU" else _as_in_file(values)
    return xr.Variable(variable.dims, values, _readable_attrs(variable.attrs))


def _readable_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes of types that netCDF and Zarr share; the exact ones are in the document."""
    return {str(key): value for key, value in attrs.items() if _readable(value)}


def _readable(value: Any) -> bool:
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass")) < LARGEST_ATTRIBUTE
    if isinstance(value, list):
        one_kind = all(isinstance(item, str) for item in value) or all(map(_is_number, value))
        return bool(value) and one_kind and len(str(value)) < LARGEST_ATTRIBUTE
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@cache
def _version(package: str) -> str:
    return metadata.version(package)


def _document(contents: Contents, described: Mapping[str, Any]) -> bytes:
    packages = ("bayeslmm", "formulaic", "numpy", "pandas", "pymc", "xarray")
    document = {
        "versions": {name: _version(name) for name in packages},
        "model": contents.model,
        "arrays": {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in contents.arrays.items()
        },
        "groups": described,
    }
    return json.dumps(document).encode()


def _model_group(contents: Contents, document: NDArray[np.uint8]) -> xr.Dataset:
    variables: dict[str, Any] = {DOCUMENT.rpartition("/")[2]: (("bytes",), document)}
    for name, array in contents.arrays.items():
        if array.size:
            shape = _distinct(array.shape)
            dims = tuple(f"size_{size}" for size in shape)
            variables[_array_name(name)] = (dims, _as_in_file(array).reshape(shape))
    return xr.Dataset(variables, attrs=_readable_attrs({"formula": contents.model["formula"]}))


def _array_name(name: str) -> str:
    return name.replace(" ", "_")


def _distinct(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape itself, or its product where two sizes are equal: dimensions go by their sizes."""
    return shape if len(set(shape)) == len(shape) else (math.prod(shape),)


# --- from groups -----------------------------------------------------------------------


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Give every failure on damaged or hostile files one form."""
    try:
        yield
    except BayesLMMError:
        raise
    except MemoryError as error:
        raise StorageError(f"{what} cannot be read: it does not fit into the memory.") from error
    except Exception as error:
        raise StorageError(
            f"{what} cannot be read: it is damaged, cut short or no such file at all "
            f"({type(error).__name__}: {error})."
        ) from error


def check_head(head: Mapping[str, Any], what: str) -> None:
    """Raise StorageError for a file of another program or another layout."""
    if head.get("format") != FORMAT:
        raise StorageError(
            f"{what} holds no model of bayeslmm: it was not written by Posterior.save, or another "
            "program wrote it again. Draws alone are read by arviz.from_netcdf or "
            "arviz.from_zarr."
        )
    if head.get("schema") != SCHEMA:
        raise StorageError(
            f"{what} was written by bayeslmm {head.get('bayeslmm_version')} in layout "
            f"{head.get('schema')}; this version reads layout {SCHEMA}. Install the bayeslmm that "
            "wrote it, or fit the model again."
        )


def contents_of(document: bytes, fetch: Fetch, sha256: Any, what: str) -> Contents:
    """What a file holds.

    Parameters
    ----------
    document : bytes
        Its description.
    fetch : callable
        Reads the numbers of a variable.
    sha256 : str
        Of the document and the numbers.
    what : str
        What the file is called in messages.

    Returns
    -------
    Contents

    Raises
    ------
    StorageError
        If it is not what was saved.
    """
    running = hashlib.sha256(document)

    def numbers(key: str, dtype: str, shape: Sequence[int], stored: Sequence[int]) -> Numbers:
        found = fetch(key, checked_dtype(dtype).newbyteorder("<"), tuple(stored))
        running.update(_as_bytes(found))
        if found.dtype == np.bool_ and np.any(found.view(np.uint8) > 1):
            raise ValueError(f"{key} holds other values than true and false")
        return found.astype(checked_dtype(dtype), copy=False).reshape(tuple(shape))

    with reading(what):
        described = json.loads(document)
        arrays = {
            name: _array(numbers, name, item["dtype"], checked_shape(item["shape"]))
            for name, item in described["arrays"].items()
        }
        datasets = {
            path: _restored(numbers, path, item) for path, item in described["groups"].items()
        }
        if running.hexdigest() != sha256:
            raise StorageError(
                f"{what} is damaged or was changed after it was saved: it has another SHA-256 than "
                "recorded. Save it again from the model, or fetch another copy."
            )
        tree = xr.DataTree.from_dict(datasets)
    return Contents(tree=tree, model=described["model"], arrays=arrays)


def _array(numbers: Any, name: str, dtype: str, shape: tuple[int, ...]) -> Numbers:
    if 0 in shape:
        return np.empty(shape, checked_dtype(dtype))
    return numbers(_key(MODEL, _array_name(name)), dtype, shape, _distinct(shape))


def _restored(numbers: Any, path: str, description: Mapping[str, Any]) -> xr.Dataset:
    variables, coords = {}, []
    for item in description["variables"]:
        name, shape = item["name"], checked_shape(item["shape"])
        if "texts" in item:
            array = text_array(item["texts"], item["dtype"], shape)
        elif 0 in shape:
            array = np.empty(shape, checked_dtype(item["dtype"]))
        else:
            array = numbers(_key(path, name), item["dtype"], shape, shape)
        array = _in_order(array, item["order"])
        variables[name] = xr.Variable(item["dims"], array, from_plain(item["attrs"]))
        if item["coordinate"]:
            coords.append(name)
    dataset = xr.Dataset(variables).set_coords(coords)
    dataset.attrs = from_plain(description["attrs"])
    return dataset
