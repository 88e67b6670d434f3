"""Groups of draws and a described model in one netCDF file or Zarr store."""

from __future__ import annotations

import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xarray as xr

from bayeslmm._optional import require
from bayeslmm.storage._layout import MODEL, Contents, contents_of, reading, stored_tree

SUFFIXES = (".nc", ".zarr")

# --- writing ---------------------------------------------------------------------------


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
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not path.exists():
        return
    if path.is_dir() != (path.suffix == ".zarr"):
        kind = "folder" if path.is_dir() else "file"
        raise FileExistsError(f"{path} is a {kind}: choose another name.")
    if path.is_dir() and any(path.iterdir()) and not (path / "zarr.json").exists():
        raise FileExistsError(f"The folder {path} is no Zarr store: choose another name.")
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or give overwrite=True.")


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"{str(path)!r}: the name must end in .nc (one netCDF file) or .zarr (a Zarr store)."
        )
    if path.suffix == ".zarr":
        require("zarr", "zarr")


def write(contents: Contents, path: Path) -> None:
    """Write a file under a temporary name, read it back, and only then give it its name.

    Parameters
    ----------
    contents : Contents
        What the file is to hold.
    path : pathlib.Path
        Where; what is there already is replaced.

    Raises
    ------
    StorageError
        If the contents cannot be stored exactly.
    """
    tree = stored_tree(contents)
    with _beside(path) as temporary:
        _write_tree(tree, temporary)
        read(temporary, f"{path} was not written: what was")
        _replace(temporary, path)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    temporary = _hidden(path)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        temporary.replace(path)
        return
    old = _hidden(path)  # a folder cannot replace one that is not empty
    try:
        path.rename(old)
        temporary.rename(path)
    except BaseException:
        if not path.exists():
            old.rename(path)
        raise
    _remove(old)


def _write_tree(tree: xr.DataTree, path: Path) -> None:
    encoding: dict[str, dict[str, Any]] = {
        node.path: {str(name): {"_FillValue": None} for name in _floats(node.to_dataset())}
        for node in tree.subtree
    }
    if path.suffix == ".nc":
        for name in tree[MODEL].data_vars:
            encoding[f"/{MODEL}"].setdefault(str(name), {}).update(zlib=True, complevel=1)
        tree.to_netcdf(path, engine="h5netcdf", encoding=encoding)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")  # readers want them
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        tree.to_zarr(path, mode="w", encoding=encoding)


def _floats(dataset: xr.Dataset) -> list[Any]:
    return [name for name, values in dataset.variables.items() if values.dtype.kind == "f"]


# --- reading ---------------------------------------------------------------------------


def read(path: Path, what: str | None = None) -> Contents:
    """Read a file and check that it holds what was saved.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    what : str, optional
        What the file is called in messages.

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
        If it is not one of ours, of a later layout, incomplete or damaged.
    """
    _check_suffix(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    what = str(path) if what is None else what
    with reading(what):
        groups = _open(path)
    return contents_of(groups, what)


def _open(path: Path) -> dict[str, xr.Dataset]:
    options: dict[str, Any] = {"engine": "h5netcdf"}
    if path.suffix == ".zarr":
        options = {"engine": "zarr", "chunks": None, "consolidated": False}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        with xr.open_datatree(path, decode_times=False, **options) as tree:
            return {node.path: node.to_dataset(inherit=False).load() for node in tree.subtree}
