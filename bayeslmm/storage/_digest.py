"""Fingerprints of arrays, by which damage and later changes are found."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray


def array_digest(array: NDArray[Any]) -> bytes:
    """SHA-256 of the type, shape and values of an array of numbers, booleans or text."""
    plain = np.ascontiguousarray(array)
    text = plain.dtype.kind in "OU"
    kind = "text" if text else plain.dtype.name
    digest = hashlib.sha256(f"{kind} {array.shape} ".encode())
    if text:
        digest.update(_text_bytes(plain))
    elif plain.size:
        little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.digest()


def _text_bytes(array: NDArray[Any]) -> bytes:
    texts = [str(value) for value in array.reshape(-1).tolist()]
    return b"".join(f"{len(text)}:{text}".encode("utf-8", "surrogatepass") for text in texts)


def arrays_digest(arrays: Mapping[str, NDArray[Any]], head: bytes = b"") -> str:
    """SHA-256 of named arrays in the order of their names, after `head`."""
    digest = hashlib.sha256(head)
    for name in sorted(arrays):
        digest.update(f"{len(name)}:{name}".encode())
        digest.update(array_digest(arrays[name]))
    return digest.hexdigest()


def dataset_digest(dataset: xr.Dataset) -> str:
    """SHA-256 of the variables and coordinates of a dataset with their dimensions."""
    dims = {str(name): variable.dims for name, variable in dataset.variables.items()}
    head = repr(sorted(dims.items())).encode()
    arrays = {str(name): variable.to_numpy() for name, variable in dataset.variables.items()}
    return arrays_digest(arrays, head)
