"""Files and folders that are written whole or not at all."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bayeslmm import writing
from bayeslmm.exceptions import StorageError
from bayeslmm.writing import replacing, restore

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks, links and pipes of POSIX")


def put(path, text, *, overwrite=True):
    """Write a file, or a folder with one, where the name ends in .d."""
    with replacing(path, overwrite=overwrite, folder=path.suffix == ".d") as temporary:
        (temporary / "x" if path.suffix == ".d" else temporary).write_text(text)


def got(path):
    return (path / "x" if path.suffix == ".d" else path).read_text()


@pytest.fixture(params=["file.t", "folder.d"])
def path(request, tmp_path):
    """Something old."""
    path = tmp_path / request.param
    put(path, "old", overwrite=False)
    return path


def names(path):
    return [entry.name for entry in path.parent.iterdir()]


def test_what_is_new_replaces_what_is_old(path):
    put(path, "new")
    assert got(path) == "new"
    assert names(path) == [path.name]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ValueError("of its own"), ValueError),
    ],
)
def test_a_failure_leaves_what_was_there_and_nothing_else(path, error, raised):
    with (
        pytest.raises(raised, match=r"No space left|^$|own"),
        replacing(path, overwrite=True, folder=path.is_dir()) as temporary,
    ):
        if path.is_dir():
            (temporary / "y").write_text("half")
        raise error
    assert got(path) == "old"
    assert names(path) == [path.name]


def test_nothing_is_replaced_unasked(path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        put(path, "new", overwrite=False)
    assert got(path) == "old"


def test_nothing_that_came_in_between_is_replaced_unasked(path):
    other = path.with_name(f"other{path.suffix}")
    with (
        pytest.raises(FileExistsError, match="overwrite=True"),
        replacing(other, overwrite=False, folder=path.is_dir()) as temporary,
    ):
        (temporary / "x" if path.is_dir() else temporary).write_text("mine")
        put(other, "theirs")
    assert got(other) == "theirs"
    assert sorted(names(path)) == sorted([path.name, other.name])


def test_files_are_not_replaced_unasked_without_links(path, monkeypatch):
    def refuse(*args):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    other = path.with_name("new.t")
    put(other, "new", overwrite=False)
    assert got(other) == "new"


def test_the_other_kind_is_not_replaced(path):
    with (
        pytest.raises(FileExistsError, match=r"is a (file|folder): choose another"),
        replacing(path, overwrite=True, folder=not path.is_dir()),
    ):
        pass
    assert got(path) == "old"


@posix
def test_pipes_and_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.t")
    with pytest.raises(FileExistsError, match="is a pipe"):
        put(tmp_path / "pipe.t", "new")
    (tmp_path / "full.t").symlink_to("/dev/full")
    with pytest.raises(FileExistsError, match="is a device or socket"):
        put(tmp_path / "full.t", "new")
    assert stat.S_ISFIFO((tmp_path / "pipe.t").stat().st_mode)


@posix
def test_links_stay_links(path):
    for name, end in (("link", path), ("dangling", path.with_name(f"elsewhere{path.suffix}"))):
        link = path.with_name(name + path.suffix)
        link.symlink_to(end.name)
        put(link, "new")
        assert link.is_symlink() and got(end) == "new"


@posix
def test_permissions_stay(path):
    path.chmod(0o700)
    put(path, "new")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


@posix
def test_names_that_are_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.d"))
    put(path, "old")
    put(path, "new")
    assert got(path) == "new"


@pytest.mark.parametrize("name", ["absent/a.t", "file/a.t"])
def test_no_folder(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        put(tmp_path / name, "new")


def test_names_that_are_too_long(tmp_path):
    with pytest.raises(StorageError, match="too long"):
        put(tmp_path / ("a" * 300 + ".t"), "new")


# --- what killed processes leave -------------------------------------------------------


@posix
def test_fragments_of_the_dead_are_removed_and_of_the_living_not(path):
    folder = path.is_dir()
    dead, foreign = writing._fragment(path, "building"), path.with_name(f".{path.name}.mine")
    aside = writing._fragment(path, "aside")
    for fragment in (dead, aside):
        fragment.mkdir() if folder else fragment.touch()
    foreign.touch()
    with replacing(path, overwrite=True, folder=folder) as living:
        assert not dead.exists() and not aside.exists() and foreign.exists()
        put(path, "by another")
        assert living.exists()
        (living / "x" if folder else living).write_text("mine")
    assert got(path) == "mine"
    assert sorted(names(path)) == sorted([path.name, foreign.name])


@pytest.fixture
def no_exchange(monkeypatch):
    """A system that cannot exchange two folders."""
    monkeypatch.setattr(writing, "_exchanged", lambda one, two: False)


@pytest.mark.usefixtures("no_exchange")
def test_folders_are_replaced_where_they_cannot_be_exchanged(tmp_path):
    path = tmp_path / "folder.d"
    for text in ("old", "new", "newer"):
        put(path, text)
        assert got(path) == text
    assert names(path) == [path.name]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("which", [1, 2])
def test_a_folder_that_cannot_be_moved_stays(tmp_path, monkeypatch, which):
    path, rename, calls = tmp_path / "folder.d", os.rename, []
    put(path, "old")

    def refuse(source, target):
        if path in (source, target):
            calls.append(target)
            if len(calls) == which + 1:  # the first finds that there is an old one
                raise PermissionError(errno.EACCES, "in use")
        return rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(StorageError, match=r"folder\.d was not written: in use"):
        put(path, "new")
    assert got(path) == "old"
    assert names(path) == [path.name]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("which", [1, 2, 3, 4])
def test_what_another_process_takes_away_is_not_missed(tmp_path, monkeypatch, which):
    """The other one puts the old folder aside at the moment at which it is looked at."""
    path, look, calls = tmp_path / "folder.d", os.stat, []
    put(path, "old")

    def gone(name, *args, **kwargs):
        if name == path:
            calls.append(name)
            if len(calls) == which:
                shutil.rmtree(path)
        return look(name, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", gone)
        put(path, "new")
    assert len(calls) >= 2
    assert got(path) == "new"


@posix
@pytest.mark.usefixtures("no_exchange")
def test_a_folder_set_aside_by_the_dead_is_put_back(tmp_path, caplog):
    path = tmp_path / "folder.d"
    put(path, "old")
    path.rename(writing._fragment(path, "aside"))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        put(path, "new", overwrite=False)
    assert got(path) == "old"
    assert "put back" in caplog.text
    path.rename(writing._fragment(path, "aside"))
    restore(path)
    assert names(path) == [path.name]


WRITER = """
import sys
from pathlib import Path
from bayeslmm import writing
path, text, exchange = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
if not exchange:
    writing._exchanged = lambda one, two: False
print("go", flush=True)
i = 0
while True:
    i += 1
    with writing.replacing(path, overwrite=True, folder=path.suffix == ".d") as temporary:
        if path.suffix == ".d":
            for j in range(3):
                (temporary / str(j)).write_text(f"{text} {i} " * 1000)
        else:
            temporary.write_text(f"{text} {i} " * 3000)
"""


def writer(path, text, exchange):
    command = [sys.executable, "-c", WRITER, str(path), text, str(exchange)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def whole(path):
    files = [path / str(j) for j in range(3)] if path.suffix == ".d" else [path]
    content = "".join(file.read_text() for file in files)
    text, i = content.split(" ", 2)[:2]
    assert content == f"{text} {i} " * 3000
    return text


@posix
@pytest.mark.parametrize("rounds", [1, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "exchange"), [("a.t", True), ("a.d", True), ("a.d", False)])
def test_two_writers_killed_at_any_moment(tmp_path, name, exchange, rounds):
    """Two processes write to one path for a while, then one is killed, then the other."""
    path = tmp_path / name
    for round_ in range(rounds):
        processes = [writer(path, text, exchange) for text in ("one", "two")]
        ends = []
        for process in processes:
            time.sleep(0.05 + 0.007 * round_)
            process.kill()
            ends.append(process.wait())
            process.stdout.close()
        assert ends == [-signal.SIGKILL] * 2  # neither had ended by itself
        restore(path)
        assert whole(path) in ("one", "two")
    with replacing(path, overwrite=True, folder=path.is_dir()):
        pass
    assert names(path) == [name]


@posix
@pytest.mark.parametrize("name", ["a.t", "a.d"])
def test_a_reader_finds_something_whole_at_any_moment(tmp_path, name):
    path = tmp_path / name
    process = writer(path, "text", exchange=True)
    try:
        while not path.exists():
            time.sleep(0.001)
        for _ in range(2000):
            assert path.exists()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
