"""The layout of a file: groups of draws as they are, and a group that describes the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.storage._digest import arrays_digest, dataset_digest
from bayeslmm.storage._values import from_plain, to_plain

_log = logging.getLogger(__name__)

SCHEMA = 1
"""Version of the layout of the file. A reader refuses files with a later one."""

MODEL = "bayeslmm_model"
"""Group that holds the model."""

DOCUMENT = "document"
"""Its variable with the description, JSON in UTF-8."""

FORMAT = "bayeslmm posterior"

LARGEST_ATTRIBUTE = 32_000
"""Bytes of text that are written as an attribute: HDF5 allows 64 kB, and longer ones are in the
document all the same."""


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


# --- to groups -------------------------------------------------------------------------


def stored_tree(contents: Contents) -> xr.DataTree:
    """Groups as they are written: with the model, and in types that netCDF and Zarr share.

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
    groups[f"/{MODEL}"] = _model_group(contents, described)
    return xr.DataTree.from_dict(groups)


def _describe(dataset: xr.Dataset, path: str) -> dict[str, Any]:
    """What a file does not keep of a group, and its fingerprint."""
    where = f"The group {path}"
    variables = []
    for name, variable in dataset.variables.items():
        _check_variable(variable, f"The variable {name} of the group {path}")
        variables.append(
            {
                "name": str(name),
                "dtype": str(variable.dtype),
                "dims": [str(dim) for dim in variable.dims],
                "shape": list(variable.shape),
                "order": _axis_order(variable.to_numpy()),
                "coordinate": name in dataset.coords,
                "attrs": to_plain(dict(variable.attrs), where),
            }
        )
    return {
        "variables": variables,
        "attrs": to_plain(dict(dataset.attrs), where),
        "sha256": dataset_digest(dataset),
    }


def _axis_order(array: NDArray[Any]) -> list[int]:
    """Axes from the slowest to the fastest in memory: sums depend on it in their last digits."""
    return sorted(range(array.ndim), key=lambda axis: (-array.strides[axis], axis))


def _in_order(array: NDArray[Any], order: list[int]) -> NDArray[Any]:
    """The same array with its axes in that order in memory."""
    back = sorted(range(len(order)), key=order.__getitem__)
    return np.ascontiguousarray(array.transpose(order)).transpose(back) if order else array


def _check_variable(variable: xr.Variable, what: str) -> None:
    kind = variable.dtype.kind
    if kind not in "biufOU":
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
    if values.dtype.kind == "U":
        values = values.astype(object)
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


def _model_group(contents: Contents, described: Mapping[str, Any]) -> xr.Dataset:
    shapes = {
        name: {"dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in contents.arrays.items()
    }
    packages = ("bayeslmm", "formulaic", "numpy", "pandas", "pymc", "xarray")
    document = {
        "versions": {name: version(name) for name in packages},
        "model": contents.model,
        "arrays": shapes,
        "groups": described,
    }
    text = np.frombuffer(json.dumps(document).encode(), dtype=np.uint8)
    variables: dict[str, Any] = {DOCUMENT: (("bytes",), text)}
    for name, array in contents.arrays.items():
        if array.size:
            dims = tuple(f"size_{size}" for size in _distinct(array.shape))
            variables[name.replace(" ", "_")] = (dims, array.reshape(_distinct(array.shape)))
    attrs = {
        "format": FORMAT,
        "schema": SCHEMA,
        "bayeslmm_version": version("bayeslmm"),
        "formula": contents.model["formula"],
        "sha256": _model_digest(text, contents.arrays),
    }
    return xr.Dataset(variables, attrs=_readable_attrs(attrs))


def _distinct(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape itself, or its product where two sizes are equal: dimensions go by their sizes."""
    return shape if len(set(shape)) == len(shape) else (int(np.prod(shape)),)


def _model_digest(text: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]]) -> str:
    return arrays_digest(arrays, text.tobytes())


# --- from groups -----------------------------------------------------------------------


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Give every failure of the libraries on damaged files one form."""
    try:
        yield
    except (BayesLMMError, MemoryError):
        raise
    except Exception as error:
        raise StorageError(
            f"{what} cannot be read: it is damaged, cut short or no such file at all "
            f"({type(error).__name__}: {error})."
        ) from error


def contents_of(groups: Mapping[str, xr.Dataset], what: str) -> Contents:
    """What the groups of a file hold.

    Parameters
    ----------
    groups : mapping of str to xarray.Dataset
        By path.
    what : str
        What the file is called in messages.

    Returns
    -------
    Contents

    Raises
    ------
    StorageError
        If they were not written by this package or are not what was saved.
    """
    document, arrays = _read_model(groups.get(f"/{MODEL}"), what)
    with reading(what):
        datasets = {
            name: _restored(description, groups.get(name), name, what)
            for name, description in document["groups"].items()
        }
    if extra := sorted(set(groups) - set(datasets) - {f"/{MODEL}"}):
        _log.info("groups that were added to the file are not read: %s", ", ".join(extra))
    tree = xr.DataTree.from_dict(datasets)
    return Contents(tree=tree, model=document["model"], arrays=arrays)


def _read_model(
    group: xr.Dataset | None, what: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if group is None or group.attrs.get("format") != FORMAT:
        raise StorageError(
            f"{what} holds no model of bayeslmm: it was not written by Posterior.save, or another "
            "program wrote it again. Draws alone are read by arviz.from_netcdf or "
            "arviz.from_zarr."
        )
    with reading(what):
        schema = int(group.attrs["schema"])
    if schema > SCHEMA:
        raise StorageError(
            f"{what} was written by bayeslmm {group.attrs.get('bayeslmm_version')} in layout "
            f"{schema}; this version reads layouts up to {SCHEMA}. Install a later bayeslmm."
        )
    with reading(what):
        text = group[DOCUMENT].to_numpy().astype(np.uint8)
        document = json.loads(text.tobytes())
        arrays = {name: _array(group, name, shape) for name, shape in document["arrays"].items()}
    if _model_digest(text, arrays) != group.attrs.get("sha256"):
        raise StorageError(_changed(what, "the model or its data"))
    return document, arrays


def _array(group: xr.Dataset, name: str, description: Mapping[str, Any]) -> NDArray[Any]:
    dtype, shape = np.dtype(description["dtype"]), tuple(description["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)
    values = group[name.replace(" ", "_")].to_numpy()
    return np.ascontiguousarray(values.astype(dtype, copy=False)).reshape(shape)


def _restored(
    description: Mapping[str, Any], stored: xr.Dataset | None, path: str, what: str
) -> xr.Dataset:
    if stored is None:
        raise StorageError(f"{what} lacks the group {path}: it is damaged or was changed.")
    variables, coords = {}, []
    for item in description["variables"]:
        name, dtype, shape = item["name"], np.dtype(item["dtype"]), tuple(item["shape"])
        filled = 0 not in shape
        if filled and name not in stored.variables:
            raise StorageError(f"{what} lacks the variable {name} of the group {path}.")
        values = stored[name].to_numpy() if filled else np.empty(shape)
        array = _in_order(values.astype(dtype, copy=False), item["order"])
        variables[name] = xr.Variable(item["dims"], array, from_plain(item["attrs"]))
        if item["coordinate"]:
            coords.append(name)
    dataset = xr.Dataset(variables).set_coords(coords)
    dataset.attrs = from_plain(description["attrs"])
    if dataset_digest(dataset) != description["sha256"]:
        raise StorageError(_changed(what, f"the group {path}"))
    return dataset


def _changed(what: str, part: str) -> str:
    return (
        f"{what} is damaged or was changed after it was saved: {part} has another SHA-256 than "
        "recorded. Save it again from the model, or fetch another copy."
    )
