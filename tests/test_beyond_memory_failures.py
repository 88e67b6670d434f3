"""Files that are damaged, differ or change, a full disk, Ctrl-C: nothing is lost or half written.

Each failure is one of our errors and names what it is about; no file, thread or open handle stays
behind, and the same call on sound data gives the model of the rows in memory.
"""

from __future__ import annotations

import errno
import lzma
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from slow_cases import one_in, slow, some

import bayeslmm as blm
from bayeslmm.data import sources
from bayeslmm.exceptions import BayesLMMError, DataError, StorageError

FORMULA = "distance ~ age + Sex + (age | Subject)"
CRITERION = 1e-9
"""Largest difference of REML criteria: sums in another order differ by rounding."""

FIVE = 5
HANDLES = Path("/proc/self/fd")

linux = pytest.mark.skipif(not HANDLES.exists(), reason="open files are listed by Linux")


@pytest.fixture(scope="module")
def frame():
    """108 rows."""
    return blm.load_dataset("Orthodont").astype({"Subject": str, "Sex": str})


@pytest.fixture(scope="module")
def expected(frame):
    return blm.LMM(FORMULA, frame).reml().criterion


@pytest.fixture(scope="module")
def fit(frame):
    return blm.LMM(FORMULA, frame).reml()


def write_parquet(table, path):
    pq.write_table(table, path, row_group_size=7)


WRITERS = {
    "parquet": write_parquet,
    "checked": lambda table, path: pq.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True
    ),
    "plain": lambda table, path: pq.write_table(
        table, path, compression="none", use_dictionary=False
    ),
    "csv": pyarrow.csv.write_csv,
    "feather": lambda table, path: pyarrow.feather.write_feather(table, str(path)),
}


def suffix(kind):
    return f".{kind}" if kind in ("csv", "feather") else ".parquet"


def parts_of(frame):
    return [frame.iloc[part] for part in np.array_split(np.arange(len(frame)), FIVE)]


@pytest.fixture
def folder(frame, tmp_path):
    """Makes a folder of five files of a kind."""

    def make(kind="parquet", **changes):
        path = tmp_path / "data"
        path.mkdir()
        for number, part in enumerate(parts_of(frame)):
            table = pa.Table.from_pandas(part, preserve_index=False)
            WRITERS[kind](table, path / f"{number}{suffix(kind)}")
        return path

    return make


@pytest.fixture(autouse=True)
def each_file_is_a_batch(monkeypatch):
    monkeypatch.setattr(sources, "BATCH", 30)


def open_under(path):
    """Open files in a folder."""
    found = [handle for handle in HANDLES.glob("*") if handle.is_symlink()]
    return [name for h in found if (name := _target(h)).startswith(str(path))]


def _target(handle):
    try:
        return os.readlink(handle)
    except OSError:  # the one that lists them
        return ""


@contextmanager
def nothing_left(path):
    """No thread, open file or fragment of a file is left, also while an error is being handled."""
    threads, files = threading.active_count(), sorted(path.rglob("*"))
    yield
    end = time.monotonic() + 2  # threads of pyarrow may be about to close a file
    while open_under(path) and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() == threads
    assert not open_under(path)
    assert not [new for new in path.rglob("*") if new not in files]


def refused(call, path, match, error=DataError):
    """The message of an error in words, at which nothing is left."""
    with nothing_left(path), pytest.raises(error, match=match) as caught:
        call()
    return str(caught.value)


def same_model(data, expected, n=108):
    model = blm.LMM(FORMULA, data)
    assert model.nobs == n
    assert abs(model.reml().criterion - expected) < CRITERION


# --- damaged files ---------------------------------------------------------------------


def cut(content):
    return content[: len(content) // 2]


def without_the_end(content):
    return content[:-1]


def with_another_length_of_footer(content):
    return content[:-8] + (2**31 - 1).to_bytes(4, "little") + content[-4:]


def with_a_negative_length_of_footer(content):
    return content[:-8] + b"\xff\xff\xff\xff" + content[-4:]


def with_noise_in_the_footer(content):
    return content[:-200] + bytes(150) + content[-50:]


def empty(content):
    return b""


def other(content):
    return b"a,b\n1,2\n"


DAMAGES = [
    cut,
    without_the_end,
    with_another_length_of_footer,
    with_a_negative_length_of_footer,
    with_noise_in_the_footer,
    empty,
    other,
]


@pytest.mark.parametrize("damage", one_in(3, DAMAGES), ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_named(damage, folder, frame, fit, expected, tmp_path):
    path = folder()
    file = path / "2.parquet"
    content = file.read_bytes()
    file.write_bytes(damage(content))
    match = r"5 files at .* cannot be read after row \d+: OSError: `.*2\.parquet`: "
    message = refused(lambda: blm.LMM(FORMULA, path), path, match)
    assert "\n" not in message
    out = tmp_path / "out.parquet"
    refused(lambda: fit.predict(path, out=out), tmp_path, match)
    file.write_bytes(content)
    same_model(path, expected)


def test_a_damaged_first_file(folder):
    path = folder()
    (path / "0.parquet").write_bytes(b"nothing")
    refused(lambda: blm.LMM(FORMULA, path), path, r"5 files at .* cannot be read: .*0\.parquet")


def flipped(content, place, bit=0):
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    return bytes(changed)


def places_of_values(file):
    """Bytes from the first page to the end of the last one."""
    metadata = pq.ParquetFile(file).metadata
    columns = [metadata.row_group(0).column(j) for j in range(metadata.num_columns)]
    start = min(column.data_page_offset for column in columns)
    return start, max(c.data_page_offset + c.total_compressed_size for c in columns)


@pytest.mark.parametrize("seed", one_in(4, range(12)))
def test_pages_with_checksums_show_any_flipped_bit(seed, folder, expected):
    """Every bit of a page counts: its values by the checksum, its header by not being one."""
    path = folder("checked")
    file = path / "2.parquet"
    content = file.read_bytes()
    rng = np.random.default_rng(seed)
    file.write_bytes(flipped(content, rng.integers(*places_of_values(file)), rng.integers(8)))
    try:
        same_model(path, expected)
    except DataError as error:
        assert re.search(r"`.*2\.parquet`|of the first", str(error))


def test_a_flipped_bit_of_a_number_is_found_by_the_checksum(folder, frame):
    path = folder("checked")
    file = path / "2.parquet"
    content = file.read_bytes()
    place = content.index(np.array(parts_of(frame)[2]["distance"]).tobytes())
    file.write_bytes(flipped(content, place + 6))
    match = r"after row \d+: OSError: `.*2\.parquet`: .*CRC"
    refused(lambda: blm.LMM(FORMULA, path), path, match)


@pytest.mark.parametrize("kind", ["plain", "feather"])
def test_text_that_is_none_is_refused(kind, folder):
    path = folder(kind)
    file = path / f"2{suffix(kind)}"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"Female", b"\xff\xfe\xfd\xfc\xfb\xfa"))
    assert file.read_bytes() != content
    refused(lambda: blm.LMM(FORMULA, path), path, r"`.*2\.\w+`: .*UTF8")


@pytest.mark.parametrize("kind", one_in(2, WRITERS))
def test_noise_in_a_file_is_a_model_or_our_error(kind, folder):
    """What a file without checksums says may be wrong and readable; anything else is said."""
    path = folder(kind)
    file = path / f"2{suffix(kind)}"
    content = file.read_bytes()
    refusals = 0
    for seed in some(10, range(100)):
        rng = np.random.default_rng(seed)
        place = rng.integers(len(content))
        noise = content[:place] + (b"" if seed % 2 else rng.bytes(8) + content[place + 8 :])
        file.write_bytes(noise)
        try:
            assert blm.LMM(FORMULA, path).nobs <= 108
        except BayesLMMError:
            refusals += 1
    assert refusals > 3  # most of the files that are cut


def test_lines_of_another_length(folder):
    path = folder("csv")
    file = path / "2.csv"
    file.write_text(file.read_text() + "1.0,2.0\n")
    refused(lambda: blm.LMM(FORMULA, path), path, r"`.*2\.csv`: .*Expected \d columns, got 2")


@pytest.mark.parametrize(
    "error",
    [pa.ArrowMemoryError("2 EB"), pa.ArrowException("?"), zlib.error("-3"), lzma.LZMAError("bad")],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_readers_that_python_has_no_base_for(error, frame, tmp_path):
    def broken():
        yield frame
        raise error

    match = (
        rf"function cannot be read after row 108: {type(error).__name__}: {re.escape(str(error))}"
    )
    refused(lambda: blm.LMM(FORMULA, broken), tmp_path, match)


def test_a_compressed_file_with_noise_in_the_middle(frame, tmp_path):
    file = tmp_path / "data.csv.gz"
    pd.concat([frame] * 50).to_csv(file, index=False)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    file.write_bytes(bytes(content))
    refused(lambda: blm.LMM(FORMULA, file), tmp_path, r"`.*data\.csv\.gz` cannot be read")
    chunks = lambda: pd.read_csv(file, chunksize=100)  # noqa: E731
    with pytest.raises(DataError, match="function cannot be read: EOFError: "):
        blm.LMM(FORMULA, chunks)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: pl.scan_parquet(path / "*.parquet"),
        lambda path: lambda: ds.dataset(path / "never"),
        lambda path: lambda: iter([pd.read_parquet(path / "2.parquet")]),
        lambda path: f"file://{path}/2.parquet",
        lambda path: f"nowhere://{path}/2.parquet",
    ],
    ids=["LazyFrame", "function of nothing", "function", "address", "unknown address"],
)
def test_what_cannot_be_opened(make, folder):
    path = folder()
    for file in path.iterdir():
        file.write_bytes(b"nothing")
    refused(lambda: blm.LMM(FORMULA, make(path)), path, r" cannot be read: \w+: ")


# --- files that differ -----------------------------------------------------------------


def rewrite(path, change):
    """Change the columns of the third file."""
    table = pq.read_table(path / "2.parquet")
    write_parquet(change(table), path / "2.parquet")


def put(table, name, values):
    return table.set_column(table.schema.get_field_index(name), name, values)


DIFFERENT = {
    "missing": (lambda t: t.drop_columns("age"), r"`.*2\.parquet` has no column `age`"),
    "renamed": (
        lambda t: t.rename_columns({"age": "Age"}),
        r"`.*2\.parquet` has no column `age`",
    ),
    "text": (
        lambda t: put(t, "age", t["age"].cast(pa.string())),
        r"a column has types in different files that do not go together.*age",
    ),
    "time": (
        lambda t: put(t, "age", t["age"].cast(pa.int64()).cast(pa.timestamp("s"))),
        r"a column has types in different files that do not go together.*age",
    ),
    "list": (
        lambda t: put(t, "age", pa.array([[1.0]] * len(t))),
        r"a column has types in different files that do not go together.*age",
    ),
    "numbers for text": (
        lambda t: put(t, "Subject", pa.array(range(len(t)))),
        r"a column has types in different files that do not go together.*Subject",
    ),
    "coded text": (
        lambda t: put(t, "Sex", t["Sex"].dictionary_encode()),
        r"a column has types in different files that do not go together.*Sex",
    ),
    "twice": (
        lambda t: t.append_column("age", t["age"]),
        r"`.*2\.parquet`.*age",
    ),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_a_file_with_other_columns_is_refused(difference, folder, fit, tmp_path):
    change, match = DIFFERENT[difference]
    path = folder()
    rewrite(path, change)
    refused(lambda: blm.LMM(FORMULA, path), path, match)
    refused(lambda: fit.predict(path, out=tmp_path / "out.parquet"), tmp_path, match)


ALIKE = {
    "another order": lambda t: t.select(t.column_names[::-1]),
    "more columns": lambda t: t.append_column("other", pa.array([[1]] * len(t))),
    "whole numbers": lambda t: put(t, "age", t["age"].cast(pa.int16())),
    "single precision": lambda t: put(t, "age", t["age"].cast(pa.float32())),
    "long text": lambda t: put(t, "Sex", t["Sex"].cast(pa.large_string())),
}


@pytest.mark.parametrize("difference", one_in(2, ALIKE))
def test_a_file_with_the_same_content_is_read(difference, folder, expected, fit, tmp_path, frame):
    path = folder()
    rewrite(path, ALIKE[difference])
    same_model(path, expected)
    fit.predict(path, out=tmp_path / "out.parquet")
    found = pd.read_parquet(tmp_path / "out.parquet")
    assert found["age"].tolist() == frame["age"].tolist()
    assert found["Sex"].tolist() == frame["Sex"].tolist()


def test_text_after_numbers_in_one_file(folder):
    path = folder("csv")
    for number in (0, 1, 3, 4):
        (path / f"{number}.csv").unlink()
    file = path / "2.csv"
    lines = file.read_text().splitlines()
    many = lines[:1] + lines[1:] * 4000 + [lines[-1].replace(lines[-1].split(",")[1], "ten")]
    file.write_text("\n".join(many) + "\n")
    refused(lambda: blm.LMM(FORMULA, path), path, r"`.*2\.csv`: .*conversion error.*'ten'")


def test_a_folder_within_that_is_named_like_a_file(folder, expected):
    path = folder()
    (path / "within.parquet").mkdir()
    (path / "4.parquet").rename(path / "within.parquet" / "part.parquet")
    same_model(path, expected)


def test_batches_of_other_types_are_not_written(fit, frame, tmp_path):
    """The first batch has whole numbers, and the second one none."""
    first, second = frame.astype({"age": int}).head(20), frame.tail(20).assign(age=9.5)
    out = tmp_path / "out.parquet"
    match = r"rows from 20 on do not have the types.*9\.5.*Give all parts one type"
    refused(lambda: fit.predict([first, second], out=out), tmp_path, match)


# --- files that change -----------------------------------------------------------------


def vanish(file):
    file.unlink()


def grow(file):
    table = pq.read_table(file)
    write_parquet(pa.concat_tables([table, table]), file)


def change_a_value(file):
    content = file.read_bytes()
    file.write_bytes(flipped(content, len(content) // 3))


def become_a_folder(file):
    file.unlink()
    file.mkdir()


CHANGES = [vanish, grow, change_a_value, become_a_folder]
CHANGED = r"5 files at .*: `.*3\.parquet` changed or vanished since the data were opened"


@pytest.mark.parametrize("change", one_in(2, CHANGES), ids=lambda change: change.__name__)
def test_a_file_that_changes_while_others_are_read(change, folder, tmp_path):
    """The function of the formula is called with each batch; one more is read meanwhile."""
    path = folder()
    file = path / "3.parquet"
    content = file.read_bytes()
    due = []

    def same(age):
        if due:
            due.pop()(file)
        return age

    def build():
        return blm.LMM("distance ~ same(age) + (1 | Subject)", path, functions={"same": same})

    fit = build().reml()
    for call in (build, lambda: fit.predict(path, out=tmp_path / "out.parquet")):
        due.append(change)
        message = refused(call, file, CHANGED)
        assert not open_under(tmp_path) and not due, message
        assert sorted(tmp_path.iterdir()) == [path]
        if file.is_dir():
            file.rmdir()
        file.write_bytes(content)
        assert build().reml().criterion == fit.criterion


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_changes_between_two_readings(change, folder):
    path = folder()
    source = sources.open_source(path)
    assert sum(len(found) for _, found in source.frames(["age"])) == 108
    change(path / "3.parquet")
    refused(lambda: list(source.frames(["age"])), path, CHANGED)


def test_files_that_come_later_are_not_read(folder, frame):
    path = folder()
    source = sources.open_source(path)
    shutil.copy(path / "0.parquet", path / "9.parquet")
    assert sum(len(found) for _, found in source.frames(["age"])) == 108


def test_a_dataset_of_the_user_that_changes(folder):
    path = folder()
    dataset = ds.dataset(path)
    source = sources.open_source(dataset)
    (path / "3.parquet").unlink()
    refused(lambda: list(source.frames(["age"])), path, r"The .*Dataset of pyarrow: .*vanished")


def test_batches_that_come_once_are_all_read(frame):
    source = sources.open_source(iter(parts_of(frame)))
    assert source.names() == source.names() == list(frame.columns)
    assert sum(len(found) for _, found in source.frames(["age"])) == 108


# --- a full disk -----------------------------------------------------------------------


@contextmanager
def files_of_at_most(size):
    """Writing more into one file fails, as it does on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("size", [slow(0), 100, slow(3000), 8000])
def test_a_file_that_cannot_grow_is_not_written(size, folder, fit, tmp_path):
    path, out = folder(), tmp_path / "out.parquet"
    with files_of_at_most(size):
        match = r"out\.parquet was not written: .*File too large. What was there"
        refused(lambda: fit.predict(path, out=out), tmp_path, match, StorageError)
    fit.predict(path, out=out)
    assert pq.read_metadata(out).num_rows == 108


FULL = """
import sys
import bayeslmm as blm
from bayeslmm.data import sources
from bayeslmm.exceptions import StorageError

sources.BATCH = 30
fit = blm.LMM({formula!r}, {data!r}).reml()
try:
    fit.predict({data!r}, out={out!r})
except StorageError as error:
    print(error)
"""


@pytest.mark.slow
@linux
def test_a_full_disk(folder, tmp_path):
    path, disk = folder(), tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=8k none {disk}"
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk cannot be made here")
    script = tmp_path / "full.py"
    script.write_text(FULL.format(formula=FORMULA, data=str(path), out=str(disk / "out.parquet")))
    run = f"{mount} && {sys.executable} {script} && ls -A {disk} | wc -l"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", run], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    said, left = done.stdout.strip().splitlines()
    assert re.search(r"out\.parquet was not written: .*No space left on device\. What was", said)
    assert left == "0"


# --- Ctrl-C ----------------------------------------------------------------------------


def interrupting(call):
    """The identity, which is interrupted when it is called for the time `call`."""
    calls = iter(range(1, 10**6))

    def same(age):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return age

    return same


@pytest.mark.parametrize("call", [1, slow(3), 5])
def test_an_interrupt_while_a_batch_is_worked_on(call, folder):
    path = folder()
    formula = "distance ~ same(age) + (1 | Subject)"
    expected = blm.LMM(formula, path, functions={"same": lambda age: age}).reml().criterion
    same = interrupting(call)
    with nothing_left(path), pytest.raises(KeyboardInterrupt):
        blm.LMM(formula, path, functions={"same": same})
    again = blm.LMM(formula, path, functions={"same": same})
    assert again.nobs == 108
    assert again.reml().criterion == expected


def test_an_interrupt_while_a_batch_is_waited_for(folder, monkeypatch, expected):
    path = folder()
    read = sources._file_batches
    waiting = threading.Event()

    def slow(file, *rest):
        if file.path.endswith("3.parquet"):
            waiting.set()
            time.sleep(0.3)
        yield from read(file, *rest)

    monkeypatch.setattr(sources, "_file_batches", slow)
    main = threading.main_thread().ident

    def interrupt():
        waiting.wait()
        time.sleep(0.1)
        signal.pthread_kill(main, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    with nothing_left(path):
        other.start()
        with pytest.raises(KeyboardInterrupt):
            blm.LMM(FORMULA, path)
        other.join()
    monkeypatch.undo()
    same_model(path, expected)


WRITES = {
    "predictions": lambda fit, path, out: fit.predict(path, out=out),
    "fitted values": lambda fit, path, out: fit.with_source(path).fitted(out=out),
}


@pytest.mark.parametrize("step", ["write_table", "close"])
@pytest.mark.parametrize("what", WRITES)
def test_an_interrupt_while_rows_are_written(what, step, folder, tmp_path, monkeypatch):
    path, out = folder(), tmp_path / "out.parquet"
    fit = blm.LMM(FORMULA, path).reml()
    done = getattr(pq.ParquetWriter, step)
    calls = iter(range(100))

    def interrupted(self, *rest, **options):
        done(self, *rest, **options)
        if step == "close" or next(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(pq.ParquetWriter, step, interrupted)
    with nothing_left(tmp_path), pytest.raises(KeyboardInterrupt):
        WRITES[what](fit, path, out)
    monkeypatch.undo()
    WRITES[what](fit, path, out)
    assert pq.read_metadata(out).num_rows == 108


@pytest.mark.parametrize("step", ["write_table", "close"])
@pytest.mark.parametrize("what", WRITES)
def test_a_disk_that_fails(what, step, folder, tmp_path, monkeypatch):
    path, out = folder(), tmp_path / "out.parquet"
    fit = blm.LMM(FORMULA, path).reml()

    def fails(self, *rest, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, step, fails)
    match = rf"out\.parquet was not written: {os.strerror(errno.ENOSPC)}"
    refused(lambda: WRITES[what](fit, path, out), tmp_path, match, StorageError)


def test_a_disk_without_room_for_a_folder(folder, tmp_path, monkeypatch):
    path, out = folder(), tmp_path / "out.parquet"
    post = blm.LMM(FORMULA, path).fit(draws=20, chains=1, random_seed=1)

    def fails(**options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tempfile.mkdtemp", fails)
    match = rf"out\.parquet was not written: {os.strerror(errno.ENOSPC)}"
    refused(lambda: post.loo(out=out), tmp_path, match, StorageError)


@pytest.mark.slow
@linux
def test_an_interrupt_of_the_command_line(folder, tmp_path):
    """A hundred links to a file are many rows that take no room."""
    path, out = tmp_path / "links", tmp_path / "out.nc"
    path.mkdir()
    rng = np.random.default_rng(1)
    x = rng.standard_normal(200_000)
    table = pa.table(
        {"y": x + rng.standard_normal(len(x)), "x": x, "g": rng.integers(50, size=len(x))}
    )
    pq.write_table(table, path / "0.parquet")
    for number in range(1, 200):
        os.link(path / "0.parquet", path / f"{number}.parquet")
    command = [sys.executable, "-m", "bayeslmm", "y ~ x + (x | g)", str(path), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and not reads(process.pid, path):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip() == "bayeslmm: Interrupted."
    assert not shown
    assert not out.exists() and not list(tmp_path.glob(".out*"))


def reads(pid, path):
    """Whether a process has a file of a folder open."""
    handles = Path(f"/proc/{pid}/fd")
    return any(_target(handle).startswith(str(path)) for handle in handles.glob("*"))
