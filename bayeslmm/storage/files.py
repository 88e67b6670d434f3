"""A netCDF file or a Zarr store: other programs' libraries write it, and plain reading reads it."""

from __future__ import annotations

import io
import json
import math
import os
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeds_of
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import StorageError, require
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.tree import arranged, assemble
from bayeslmm.storage.layout import (
    DOCUMENT,
    MODEL,
    Contents,
    Fetch,
    Numbers,
    Packed,
    check_head,
    contents_of,
    pack,
    reading,
)
from bayeslmm.storage.model import pack_model, unpack_model
from bayeslmm.storage.summaries import SUMS
from bayeslmm.storage.sums import pack_sums, unpack_sums
from bayeslmm.writing import check_replaceable, replacing, restore

NETCDF, ZARR = ".nc", ".zarr"
_DRAWS = ("posterior", "prior")

END = b"\0bayeslmm index\n"
"""Last 16 bytes of a netCDF file of ours; the 8 before are the length of the index before them.

The index, JSON, has the head of the file and where in the file the numbers of each variable are.
HDF5 does not read beyond its own end of the file.
"""

HDF5 = b"\x89HDF\r\n\x1a\n"
"""The first bytes of a netCDF file."""

LARGEST_HEAD = 2**24
"""Bytes of metadata of a group of a Zarr store that are read; the largest are a few thousand."""

# --- writing ---------------------------------------------------------------------------


def save(design: Design, priors: Priors, tree: xr.DataTree, path: Path, *, overwrite: bool) -> None:
    """Write draws and their model: see :meth:`bayeslmm.Posterior.save`."""
    check_target(path, overwrite=overwrite)
    if isinstance(design, SummarisedDesign):
        model, arrays = pack_sums(design, priors)
    else:
        model, arrays = pack_model(design, priors)
    contents = Contents(tree=tree, model=model, arrays=arrays)
    write(contents, path, overwrite=overwrite, functions=design.spec.functions)


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that cannot or must not be written.

    Raises
    ------
    ValueError
        If the suffix is unknown.
    FileNotFoundError
        If the folder does not exist.
    FileExistsError
        If there is something already that may not be overwritten.
    """
    _check_suffix(path)
    folder = path.suffix == ZARR
    if folder:
        require("zarr", "zarr")
    check_replaceable(path, overwrite=True, folder=folder)
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").exists():
        raise FileExistsError(f"The folder {path} is no Zarr store: choose another name.")
    check_replaceable(path, overwrite=overwrite, folder=folder)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (NETCDF, ZARR):
        raise ValueError(
            f"{str(path)!r}: the name must end in .nc (one netCDF file) or .zarr (a Zarr store)."
        )


def write(
    contents: Contents, path: Path, *, overwrite: bool, functions: UserFunctions | None = None
) -> None:
    """Write a file beside the path, read it back, and only then put it in place.

    Parameters
    ----------
    contents : Contents
        What the file is to hold.
    path : pathlib.Path
        Where.
    overwrite : bool
        Whether to replace what is there.
    functions : mapping of str to callable, optional
        The user's functions that the formula calls, to read the file back with.

    Raises
    ------
    StorageError
        If the contents cannot be stored exactly, or the system refuses to write.
    """
    folder = path.suffix == ZARR
    packed = pack(contents)
    with replacing(path, overwrite=overwrite, folder=folder) as temporary:
        (_write_zarr if folder else _write_netcdf)(packed, temporary)
        unread = f"{path} was not written: what was"
        unpacked(_read(temporary, folder=folder, what=unread), unread, functions)


def _write_netcdf(packed: Packed, path: Path) -> None:
    # HDF5 can crash where a disk is full, so it never writes to one
    buffer = io.BytesIO()
    packed.tree.to_netcdf(buffer, engine="h5netcdf", encoding=_encoding(packed.tree))
    places = _places(buffer, packed.numbers)
    size = len(packed.numbers[DOCUMENT])
    index = {"head": packed.head, "document": size, "places": places}
    text = json.dumps(index).encode()
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.write(text + len(text).to_bytes(8, "little") + END)


def _places(buffer: BinaryIO, numbers: Mapping[str, Numbers]) -> dict[str, int]:
    """Where in a file of HDF5 the numbers of each variable begin."""
    import h5py

    with h5py.File(buffer, "r") as file:
        return {name: int(file[name].id.get_offset()) for name in numbers}


def _write_zarr(packed: Packed, path: Path) -> None:
    plain: dict[str, Any] = {"compressors": None, "filters": None}
    encoding = _encoding(packed.tree)
    for name, array in packed.numbers.items():
        group, _, variable = name.rpartition("/")
        encoding[f"/{group}"].setdefault(variable, {}).update(plain, chunks=array.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # readers want them
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        # "w" would remove the folder, and its lock, and make another
        packed.tree.to_zarr(path, mode="w-", encoding=encoding, write_empty_chunks=True)


def _encoding(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """No value stands for a missing one."""
    return {
        node.path: {
            str(name): {"_FillValue": None}
            for name, variable in node.to_dataset().variables.items()
            if variable.dtype.kind == "f"
        }
        for node in tree.subtree
    }


# --- reading ---------------------------------------------------------------------------


def read_posterior(
    path: Path, functions: UserFunctions | None = None
) -> tuple[Design, Priors, xr.DataTree]:
    """Model and draws of a file: see :func:`bayeslmm.load`."""
    contents = read(path)
    design, priors = unpacked(contents, str(path), functions)
    return design, priors, _arranged(design, contents.tree)


def _arranged(design: Design, tree: xr.DataTree) -> xr.DataTree:
    """The groups of draws as this version lays them out, whichever wrote them."""
    groups = {str(name): node.to_dataset() for name, node in tree.children.items()}
    draws = {name: arranged(design, groups[name]) for name in _DRAWS if name in groups}
    return assemble({**groups, **draws}, {str(key): value for key, value in tree.attrs.items()})


def read(path: Path) -> Contents:
    """Read a file and check that it holds what was saved.

    Parameters
    ----------
    path : pathlib.Path
        The file.

    Returns
    -------
    Contents

    Raises
    ------
    ValueError
        If the suffix is unknown.
    FileNotFoundError
        If there is no such file.
    StorageError
        If it is not one of ours, of another layout, incomplete or damaged.
    """
    _check_suffix(path)
    folder = path.suffix == ZARR
    if folder:
        restore(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if not (path.is_dir() if folder else path.is_file()):
        raise StorageError(f"{path} is no {'folder' if folder else 'file'}.")
    while True:
        found = path.stat()
        try:
            return _read(path, folder=folder, what=str(path))
        except StorageError:
            if os.path.samestat(found, path.stat()):
                raise  # else another process replaced a folder while it was read


def _read(path: Path, *, folder: bool, what: str) -> Contents:
    with reading(what):
        head, document, fetch = (_open_zarr if folder else _open_netcdf)(path, what)
    return contents_of(document, fetch, head["sha256"], what)


def unpacked(
    contents: Contents, what: str, functions: UserFunctions | None = None
) -> tuple[Design, Priors]:
    """The model of a file, called `what` in messages; raises StorageError if it is none."""
    with reading(what):
        draws = contents.tree["posterior"].to_dataset()
        if not isinstance(contents.tree.attrs["method"], str):
            raise TypeError("the method is no text")
        seeds_of(contents.tree.attrs)
        back = unpack_sums if SUMS in contents.model else unpack_model
        return back(contents.model, contents.arrays, draws, functions)


def _open_netcdf(path: Path, what: str) -> tuple[Mapping[str, Any], bytes, Fetch]:
    content = np.fromfile(path, dtype=np.uint8)
    foot = content[-len(END) - 8 :].tobytes()
    if foot[8:] != END:
        if content[:8].tobytes() != HDF5:
            raise StorageError(f"{what} cannot be read: it is no netCDF file.")
        raise StorageError(
            f"{what} holds no model of bayeslmm that can be read: it is cut short, or another "
            "program or an earlier version wrote it or changed it. Draws alone are read by "
            "arviz.from_netcdf."
        )
    end = len(content) - len(foot)
    start = end - int.from_bytes(foot[:8], "little")
    index = json.loads(content[max(start, 0) : end].tobytes())
    check_head(index["head"], what)
    places = index["places"]

    def fetch(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Numbers:
        place, size = places[name], math.prod(shape) * dtype.itemsize
        if type(place) is not int or not 0 <= place <= place + size <= start:
            raise ValueError(f"{name} is not where it should be")
        return np.require(content[place : place + size].view(dtype).reshape(shape), None, "A")

    size = index["document"]
    return index["head"], fetch(DOCUMENT, np.dtype(np.uint8), (size,)).tobytes(), fetch


def _open_zarr(path: Path, what: str) -> tuple[Mapping[str, Any], bytes, Fetch]:
    files = _files(path)
    metadata = f"{MODEL}/zarr.json"
    if metadata not in files:
        check_head({}, what)
    if files[metadata] > LARGEST_HEAD:
        raise ValueError(f"{metadata} has {files[metadata]} bytes")
    head = json.loads((path / metadata).read_bytes())["attributes"]
    check_head(head, what)

    def fetch(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Numbers:
        chunk = f"{name}/c" + "/0" * len(shape)
        size = math.prod(shape) * dtype.itemsize
        if files.get(chunk) != size:
            raise ValueError(f"{chunk} has {files.get(chunk, 'no')} bytes instead of {size}")
        return np.fromfile(path / chunk, dtype=dtype, count=math.prod(shape)).reshape(shape)

    size = files.get(f"{DOCUMENT}/c/0", 0)
    return head, fetch(DOCUMENT, np.dtype(np.uint8), (size,)).tobytes(), fetch


def _files(path: Path) -> dict[str, int]:
    """Sizes of the files of a store by their names in it; nothing but plain files and folders."""
    found = {}
    for root, folders, names in os.walk(path):
        for name in folders + names:
            entry = Path(root, name)
            state = entry.lstat()
            if stat.S_ISREG(state.st_mode):
                found[entry.relative_to(path).as_posix()] = state.st_size
            elif not stat.S_ISDIR(state.st_mode):
                raise StorageError(
                    f"{entry} is a link, a pipe or a device: a Zarr store of ours has none, so it "
                    "is not read."
                )
    return found
