"""Files of cross-products: text that describes them, then plain numbers, then a SHA-256.

A file is 18 bytes that name the format, 8 bytes with the length of the document (little-endian),
the document, JSON in UTF-8, the arrays that it lists, one after the other, little-endian and in C
order, and the SHA-256 of all that. No library of another format reads it, and nothing in it is run.
"""

from __future__ import annotations

import hashlib
import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np

from bayeslmm.exceptions import StorageError
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.likelihood.parts import Part
from bayeslmm.storage.frames import Arrays, Description
from bayeslmm.storage.layout import checked_dtype, checked_shape, reading
from bayeslmm.storage.parts import pack_part, unpack_part
from bayeslmm.writing import check_replaceable, replacing

SUFFIX = ".products"

MAGIC = b"bayeslmm products\n"

SCHEMA = 1
"""Version of the layout; a reader refuses others."""

_LENGTH, _DIGEST = 8, 32
"""Bytes of the length of the document, and of the SHA-256."""


def check_products_path(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot or must not be written.

    Raises
    ------
    ValueError
        If the name does not end in ``.products``.
    FileNotFoundError, FileExistsError
        As :func:`bayeslmm.writing.check_replaceable`.
    """
    _check_suffix(path)
    check_replaceable(path, overwrite=overwrite)


def _check_suffix(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise ValueError(f"{str(path)!r}: names of files of cross-products end in {SUFFIX}.")


def write_products(part: Part, facts: Description, path: Path, *, overwrite: bool) -> None:
    """Write a file beside the path, read it back, and only then put it in place.

    Parameters
    ----------
    part : Part
        The sums.
    facts : dict
        What else to keep, fit for JSON.
    path : pathlib.Path
    overwrite : bool
        Whether to replace what is there.

    Raises
    ------
    StorageError
        If values cannot be stored exactly, or the system refuses to write.
    """
    described, arrays = pack_part(part)
    content = packed({"facts": facts, "part": described}, arrays, MAGIC)
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(content)
        _read(temporary, part.functions, f"{path} was not written: what was")


def read_products(path: Path, functions: UserFunctions | None) -> tuple[Part, Description]:
    """The sums of a file, and what else it keeps.

    Raises
    ------
    ValueError
        If the name does not end in ``.products``.
    FileNotFoundError
        If there is no such file.
    StorageError
        If it is not one of ours, of another layout, cut short, damaged or changed.
    """
    _check_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not path.is_file():
        raise StorageError(f"{path} is no file.")
    return _read(path, functions, str(path))


def packed(document: Description, arrays: Arrays, magic: bytes) -> bytes:
    """The content of a file."""
    listed = {
        name: {"dtype": array.dtype.name, "shape": list(array.shape)}
        for name, array in arrays.items()
    }
    versions = {name: metadata.version(name) for name in ("bayeslmm", "formulaic", "numpy")}
    head = {"schema": SCHEMA, "versions": versions, **document, "arrays": listed}
    text = json.dumps(head, allow_nan=False).encode()
    parts = [magic, len(text).to_bytes(_LENGTH, "little"), text]
    for name, array in arrays.items():
        checked_dtype(array.dtype.name)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise StorageError(f"The numbers {name} of the sums are not finite.")
        parts.append(np.asarray(array, array.dtype.newbyteorder("<"), order="C").tobytes())
    content = b"".join(parts)
    return content + hashlib.sha256(content).digest()


def _read(path: Path, functions: UserFunctions | None, what: str) -> tuple[Part, Description]:
    with reading(what):
        content = path.read_bytes()
        if content[: len(MAGIC)] != MAGIC:
            raise StorageError(
                f"{what} holds no cross-products of bayeslmm: CrossProducts.save did not write it."
            )
        document, arrays = unpacked(content, what, MAGIC)
        facts = document["facts"]
        if not isinstance(facts, dict):
            raise TypeError("the facts are none")
        return unpack_part(document["part"], arrays, functions), facts


def unpacked(content: bytes, what: str, magic: bytes) -> tuple[Description, Arrays]:
    """The document and the arrays of a file that begins as it should."""
    start = len(magic) + _LENGTH
    if hashlib.sha256(content[:-_DIGEST]).digest() != content[-_DIGEST:]:
        raise StorageError(
            f"{what} is damaged, cut short or was changed after it was saved: it has another "
            "SHA-256 than recorded. Save it again, or fetch another copy."
        )
    end = start + int.from_bytes(content[len(magic) : start], "little")
    document = json.loads(content[start:end])
    if document.get("schema") != SCHEMA:
        raise StorageError(
            f"{what} was written by bayeslmm {document['versions']['bayeslmm']} in layout "
            f"{document.get('schema')}; this version reads layout {SCHEMA}. Install the bayeslmm "
            "that wrote it, or save it again."
        )
    arrays: Arrays = {}
    for name, item in document["arrays"].items():
        dtype, shape = checked_dtype(item["dtype"]), checked_shape(item["shape"])
        size = math.prod(shape) * dtype.itemsize
        if end + size > len(content) - _DIGEST:
            raise ValueError(f"{name} is not there")
        found = np.frombuffer(content, dtype.newbyteorder("<"), math.prod(shape), end)
        if dtype == np.bool_ and np.any(found.view(np.uint8) > 1):
            raise ValueError(f"{name} holds other values than true and false")
        arrays[name] = np.require(found.astype(dtype, copy=False).reshape(shape), None, "A")
        end += size
    if end != len(content) - _DIGEST:
        raise ValueError("there is more than is described")
    return document, arrays
