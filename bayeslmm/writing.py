"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bayeslmm.exceptions import StorageError

_log = logging.getLogger(__name__)

BUILDING, ASIDE = "building", "aside"
"""Kinds of fragments: what is being written or removed, and an old folder while a new one comes."""

_AT_FDCWD, _EXCHANGE = -100, 2  # of Linux' fcntl.h and fs.h; macOS has the same RENAME_SWAP


@contextmanager
def replacing(path: Path, *, overwrite: bool, folder: bool = False) -> Iterator[Path]:
    """Give a new file or folder to write that takes the place of `path` once it is complete.

    Whatever happens in between, a full disk or a killed process, `path` is what it was or what it
    is to be. What a killed process left is removed by the next one that writes to the same path;
    what a living one is writing is not touched.

    Parameters
    ----------
    path : pathlib.Path
        What is to be written. A symbolic link stays one, and what it points to is replaced.
    overwrite : bool
        Whether something may be there already, also at the end.
    folder : bool
        Whether to write a folder.

    Yields
    ------
    pathlib.Path
        An empty file or folder beside it.

    Raises
    ------
    FileNotFoundError
        If the folder that is to hold it does not exist.
    FileExistsError
        If there is something that may not or cannot be replaced.
    StorageError
        If the system refuses to write: no room, no permission.
    """
    target = Path(os.path.realpath(path))
    check_replaceable(path, overwrite=overwrite, folder=folder)
    try:
        _clear_fragments(target)
        with _created(target, folder=folder) as temporary:
            yield temporary
            _sync(temporary)
            _keep_mode(temporary, target)
            put = _put_folder if folder else _put_file
            put(temporary, target, overwrite=overwrite)
    except FileExistsError as error:
        raise FileExistsError(_exists(path)) from error
    except OSError as error:
        raise StorageError(
            f"{path} was not written: {error.strerror or error}. What was there before is "
            "unchanged; make room, or give a name in another folder."
        ) from error


def check_replaceable(path: Path, *, overwrite: bool, folder: bool = False) -> None:
    """Refuse a path that cannot or must not be written; raises as :func:`replacing`."""
    if not os.path.isdir(path.parent):
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}.")
    restore(path)
    mode = _mode(path)
    if mode is None:
        return
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFREG: "file", stat.S_IFIFO: "pipe"}
        kind = kinds.get(stat.S_IFMT(mode), "device or socket")
        raise FileExistsError(f"{path} is a {kind}: choose another name.")
    if not overwrite:
        raise FileExistsError(_exists(path))


def restore(path: Path) -> None:
    """Put back an old folder that a killed process had set aside, if nothing has its place."""
    target = Path(os.path.realpath(path))
    if os.path.lexists(target):
        return
    for old in _fragments(target, ASIDE):
        with _lock(old, wait=True) as ours:
            free = os.path.lexists(old) and not os.path.lexists(target)
            if ours and free and _renamed(old, target):
                _log.warning("%s: what a killed process had set aside is put back", path)


def _mode(path: Path) -> int | None:
    """What kind of thing is there, asked in one step: another process may take it away."""
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):  # as os.path.exists
        return None


def _exists(path: Path) -> str:
    return f"{path} exists: choose another name, or give overwrite=True."


# --- fragments -------------------------------------------------------------------------


def _fragment(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{kind}")


def _fragments(target: Path, kind: str) -> list[Path]:
    start, end = f".{target.name}.", f".{kind}"
    size = len(_fragment(target, kind).name)
    try:
        names = os.listdir(target.parent)
    except PermissionError:  # a folder that may be written and not listed
        return []
    found = [name for name in names if name.startswith(start) and name.endswith(end)]
    return [target.with_name(name) for name in sorted(found) if len(name) == size]


def _clear_fragments(target: Path) -> None:
    """Remove what processes that are gone left of writing `target`."""
    kinds = (BUILDING, ASIDE) if os.path.lexists(target) else (BUILDING,)
    for fragment in [found for kind in kinds for found in _fragments(target, kind)]:
        with _lock(fragment, wait=False) as ours:
            if ours:
                _remove(fragment)


def _remove(path: Path) -> None:
    """Remove a fragment; what cannot be removed is left for the next one who writes."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def _created(target: Path, *, folder: bool) -> Iterator[Path]:
    """An empty file or folder beside the target, locked, and removed at the end."""
    while True:
        path = _fragment(target, BUILDING)
        try:
            path.mkdir() if folder else path.touch(exist_ok=False)
            with _lock(path, wait=True):
                if path.exists():  # nobody took it for a fragment before it was locked
                    yield path
                    return
        finally:
            _remove(path)


@contextmanager
def _lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a file or folder; the lock goes with the process. Yields whether it was possible."""
    if sys.platform == "win32":
        yield False  # nothing is ever taken for a fragment there
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        yield False
        return
    try:
        yield _flock(descriptor, wait=wait)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, *, wait: bool) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


# --- into place ------------------------------------------------------------------------


def _sync(path: Path) -> None:
    """Have the system write a file, or all of a folder, to the disk."""
    files = [path]
    if path.is_dir():
        files = [Path(root, name) for root, _, names in os.walk(path) for name in names]
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def _keep_mode(temporary: Path, target: Path) -> None:
    mode = _mode(target)
    if mode is not None:
        os.chmod(temporary, stat.S_IMODE(mode))


def _put_file(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if not overwrite:
        try:
            os.link(temporary, target)  # which fails where another process was quicker
            return
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if os.path.lexists(target):
                raise FileExistsError(target) from None
    os.replace(temporary, target)


def _put_folder(temporary: Path, target: Path, *, overwrite: bool) -> None:
    while not _renamed(temporary, target):
        if not overwrite:
            raise FileExistsError(target)
        if _exchanged(temporary, target) or _put_aside(temporary, target):
            return


def _renamed(temporary: Path, target: Path) -> bool:
    """Rename a folder; False where there is one that is not empty."""
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True


def _exchanged(one: Path, two: Path) -> bool:
    """Exchange two folders in one step, where the system can."""
    libc: Any = None if sys.platform == "win32" else ctypes.CDLL(None)
    names = os.fsencode(one), os.fsencode(two)
    if hasattr(libc, "renameat2"):  # Linux
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
    if hasattr(libc, "renamex_np"):  # macOS
        return bool(libc.renamex_np(*names, _EXCHANGE) == 0)
    return False


def _put_aside(temporary: Path, target: Path) -> bool:
    """Rename the old folder, then the new one; False where another process came between.

    A process that is killed between the two steps leaves what :func:`restore` puts back.
    """
    old = _fragment(target, ASIDE)
    with _lock(target, wait=True):
        try:
            os.rename(target, old)
        except FileNotFoundError:
            return False
        try:
            done = _renamed(temporary, target)
        except BaseException:
            os.rename(old, target)
            raise
        gone = _fragment(target, BUILDING)  # no longer to be put back
        os.rename(old, gone)
        _remove(gone)
    return done
