"""Data beyond memory in pieces: read anywhere, the same sums to the bit, and nothing is lost."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from slow_cases import one_in, slow
from test_beyond_memory import CRITERION

import bayeslmm as blm
from bayeslmm.__main__ import main
from bayeslmm.data import pieces as cutting
from bayeslmm.data.pieces import pieces_of
from bayeslmm.data.sources import open_source
from bayeslmm.estimation import reading
from bayeslmm.exceptions import DataError, FormulaError, StorageError
from bayeslmm.storage.sums import pack_sums

FORMULAS = (
    "y ~ x + f + (x | g)",
    "y ~ poly(scale(x), 2) + (poly(x, 2) | g) + (1 | h)",
    "y ~ ns(x, knots=[0.5]) + offset(z) + (1 | g / h)",
    "halved(y + 9) ~ center(x) * I(x > 0) + (1 | g)",
)
FUNCTIONS = {"halved": lambda column: column / 2}


@pytest.fixture(scope="module")
def frame():
    """Six parts of 40 rows: levels of f come late, those of g come and go, h is in the middle."""
    rng = np.random.default_rng(8)
    part = np.repeat(np.arange(6), 40)
    g, h = rng.integers(0, 9, 240) + 3 * part, rng.integers(0, 4, 240)
    x, z = rng.normal(size=240) + part / 4, rng.normal(size=240)
    y = 3 + x + 0.1 * g + rng.normal(size=4)[h] + 0.3 * rng.normal(size=240)
    frame = pd.DataFrame({"y": y, "x": x, "z": z, "w": rng.uniform(0.5, 2, 240), "g": g, "h": h})
    frame["f"] = np.where(part > 2, "late", np.where(x > 0.1, "up", "down"))
    frame.loc[[3, 90, 200], "x"] = np.nan
    frame.loc[part == 4, "z"] = np.nan  # a part without complete rows where z is used
    return frame


def write(folder, frame, count=6):
    folder.mkdir(exist_ok=True)
    for number, rows in enumerate(np.array_split(np.arange(len(frame)), count)):
        frame.iloc[rows].to_parquet(folder / f"{number}.parquet")
    return folder


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Every file is a piece."""
    monkeypatch.setattr(cutting, "FEWEST_ROWS", 1)
    monkeypatch.setattr(cutting, "FEWEST_BYTES", 1)


@pytest.fixture
def folder(tmp_path, frame):
    return write(tmp_path / "rows", frame)


@pytest.fixture
def state(tmp_path):
    return tmp_path / "reading.blm"


def lmm(formula, data, **options):
    return blm.LMM(formula, data, functions=FUNCTIONS, **options)


def assert_same_bits(one, other):
    (a, first), (b, second) = (pack_sums(m.design, m.priors) for m in (one, other))
    assert a["sums"] | {"words": ""} == b["sums"] | {"words": ""}
    unlike = {"sums": 0, "sample": 0}  # text has a type of its own in Dask
    assert a | unlike == b | unlike
    samples = (model.design.summary.sample for model in (one, other))
    pd.testing.assert_frame_equal(*samples, check_dtype=False)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)


# --- pieces ----------------------------------------------------------------------------


def rows_of(piece):
    piece = pickle.loads(pickle.dumps(piece.source))
    frames = [pd.DataFrame(table.to_pandas()) for table in piece.read(piece.names())]
    return pd.concat(frames, ignore_index=True)


def check_pieces(found, whole, columns):
    rows = pd.concat([rows_of(piece) for piece in found.every], ignore_index=True)
    pd.testing.assert_frame_equal(rows, whole[columns].reset_index(drop=True))
    assert len({piece.key() for piece in found.every}) == len(found.every)


def test_pieces_are_row_groups_of_files(tmp_path, frame, monkeypatch):
    for number in range(2):
        table = pa.Table.from_pandas(frame.iloc[120 * number :][:120], preserve_index=False)
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=50)
    source = open_source(tmp_path)
    found = pieces_of(source, ["x", "g"])
    assert [piece.rows for piece in found.every] == [50, 50, 20, 50, 50, 20]
    assert "1.parquet`, row group 3" in found.every[-1].source.words
    check_pieces(found, frame, ["x", "g"])
    assert 0 < found.size < sum(path.stat().st_size for path in tmp_path.iterdir())
    monkeypatch.setattr(cutting, "FEWEST_ROWS", 90)
    found = pieces_of(source, ["x", "g"])
    assert [piece.rows for piece in found.every] == [100, 120, 20]
    check_pieces(found, frame, ["x", "g"])


def test_large_data_have_few_pieces(tmp_path, frame, monkeypatch):
    monkeypatch.setattr(cutting, "MOST_PIECES", 5)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    found = pieces_of(open_source(tmp_path), ["x"])
    assert [piece.rows for piece in found.every] == [50, 50, 50, 50, 40]
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=10)
    assert len(pieces_of(open_source(tmp_path), ["x"]).every) == 5
    longer = pieces_of(open_source(tmp_path), ["x"], found.share)
    assert [piece.key() for piece in longer.every[:4]] == [p.key() for p in found.every[:4]]


def test_pieces_of_files_of_text(tmp_path, frame):
    for number in range(3):
        frame.iloc[80 * number :][:80].to_csv(tmp_path / f"{number}.csv", index=False)
    found = pieces_of(open_source(tmp_path), ["x", "f"])
    assert (found.rows, found.size) == (None, sum(p.stat().st_size for p in tmp_path.iterdir()))
    check_pieces(found, frame, ["x", "f"])


def test_pieces_of_partitions_have_their_columns(tmp_path):
    table = pa.table({"a": [1, 2, 3], "k": ["u", "v", "u"]})
    pq.write_to_dataset(table, tmp_path, partition_cols=["k"])
    found = pieces_of(open_source(ds.dataset(tmp_path, partitioning="hive")), ["a", "k"])
    assert [rows_of(piece)["k"].tolist() for piece in found.every] == [["u", "u"], ["v"]]


def test_frames_are_known_by_what_is_in_them(frame):
    parts = [frame.iloc[:100], frame.iloc[100:]]
    keys = [piece.key() for piece in pieces_of(open_source(parts), ["x", "f"]).every]
    other = [frame.iloc[:100].assign(z=0.0), pl.from_pandas(frame.iloc[100:].assign(x=0.0))]
    others = [piece.key() for piece in pieces_of(open_source(other), ["x", "f"]).every]
    assert [one == two for one, two in zip(keys, others, strict=True)] == [True, False]


@pytest.mark.parametrize("option", ["executor", "checkpoint"])
def test_what_has_no_pieces_is_refused(option, frame, threads, state):
    given = {option: {"executor": threads, "checkpoint": state}[option]}
    for data in (lambda: iter([frame]), pl.LazyFrame(frame), pa.table(frame).to_reader()):
        with pytest.raises(DataError, match=r"cannot be read in pieces.*list of data frames"):
            lmm(FORMULAS[0], data, **given)
    with pytest.raises(DataError, match=rf"`{option}=`: .* these are in memory"):
        lmm(FORMULAS[0], frame, **given)
    assert not state.exists()


# --- the same sums ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "weights"), one_in(4, zip(FORMULAS, [None, "w"] * 2, strict=True))
)
def test_sums_do_not_depend_on_where_they_are_made(
    formula, weights, folder, frame, threads, pool, state
):
    given = {"weights": weights}
    here = lmm(formula, folder, checkpoint=state, **given)
    for executor in (threads, pool):
        assert_same_bits(here, lmm(formula, str(folder / "*"), executor=executor, **given))
    frames = [pd.read_parquet(path) for path in sorted(folder.iterdir())]
    assert_same_bits(here, lmm(formula, frames, executor=threads, **given))
    memory, once = lmm(formula, frame, **given), lmm(formula, folder, **given)
    assert (here.nobs, here.dropped) == (memory.nobs, memory.dropped)
    assert here.design.coefs == memory.design.coefs
    for other in (memory, once):
        assert here.reml().criterion == pytest.approx(other.reml().criterion, abs=CRITERION)
    assert not state.exists()


@pytest.mark.slow
def test_an_executor_of_joblib(folder, pool):
    from joblib.externals.loky import get_reusable_executor

    expected = lmm(FORMULAS[0], folder, executor=pool)
    assert_same_bits(expected, lmm(FORMULAS[0], folder, executor=get_reusable_executor(1)))


def test_other_executors(folder, pool):
    import distributed

    expected = lmm(FORMULAS[0], folder, executor=pool)
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = lmm(FORMULAS[0], folder, executor=client.get_executor())
        assert_same_bits(expected, found)


@pytest.mark.parametrize("formula", one_in(4, FORMULAS))
def test_a_frame_of_dask_is_read_by_its_own_scheduler(formula, folder, threads, state):
    dd = pytest.importorskip("dask.dataframe")
    data = dd.from_map(pd.read_parquet, sorted(map(str, folder.iterdir())))
    assert data.npartitions == 6
    expected = lmm(formula, folder, executor=threads)
    assert_same_bits(expected, lmm(formula, data))
    assert_same_bits(expected, lmm(formula, data, executor=threads, checkpoint=state))


def counting(monkeypatch):
    """Words of the pieces that are read from here on."""
    read, plain = [], reading.read_piece

    def counted(request, source):
        read.append(source.words.split("/")[-1].removesuffix(".parquet`"))
        return plain(request, source)

    monkeypatch.setattr(reading, "read_piece", counted)
    return read


@pytest.mark.parametrize(
    ("formula", "times"),
    [
        ("y ~ x + (x | g)", 1),
        ("y ~ x + f + (1 | h)", 2),
        ("y ~ scale(x) + f + (1 | h)", 2),
        ("y ~ poly(scale(x), 2) + (1 | h)", 3),
    ],
)
def test_data_are_read_as_often_as_it_takes(formula, times, folder, monkeypatch, state):
    read = counting(monkeypatch)
    lmm(formula, folder, checkpoint=state)
    assert len(read) == 6 * times


def test_levels_that_come_late_and_once(folder, frame, threads):
    """Each piece has its own level of a factor among the covariates, of categories or text."""
    for kind in (str, pd.CategoricalDtype(["c5", "c1", "c0", "c2", "c4", "c3"])):
        values = np.where(np.arange(240) % 40 == 7, np.arange(240) // 40, 0)
        changed = frame.assign(c=pd.Series([f"c{v}" for v in values]).astype(kind))
        parts = [changed.iloc[40 * i :][:40] for i in range(6)]
        found = lmm("y ~ c + (1 | h)", parts, executor=threads)
        memory = lmm("y ~ c + (1 | h)", changed)
        assert found.design.coefs == memory.design.coefs
        assert found.reml().criterion == pytest.approx(memory.reml().criterion, abs=CRITERION)


def test_progress_is_shown_by_rows_and_bytes(folder, threads, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    for given in ({}, {"executor": threads}):
        lmm(FORMULAS[0], folder, **given)
        shown = capsys.readouterr()
        assert not shown.out
        assert "Reading" in shown.err
        assert "240 of 240 rows, 0.0 of 0.0 MB" in shown.err
        lmm(FORMULAS[0], folder, progressbar=False, **given)
        assert not capsys.readouterr().err
    lmm("y ~ x + (1 | g)", lambda: iter([pd.read_parquet(folder)]))
    assert "240 rows" in capsys.readouterr().err


# --- what goes wrong -------------------------------------------------------------------


class Once:
    """A function that does something to the process where it first meets a value in a piece."""

    def __init__(self, value, flag, what):
        self.value, self.flag, self.what = value, flag, what
        self.home = os.getpid()

    def __call__(self, column):
        if len(column) <= 40 and (column == self.value).any() and not self.flag.exists():
            self.flag.touch()
            if self.what == "die" and os.getpid() != self.home:
                os._exit(1)
            if self.what == "interrupt":
                raise KeyboardInterrupt
        return 2.0 * column


OWN = "y ~ twice(x) + (x | g)"


def own(frame, tmp_path, what, part):
    """The user's functions: the first reading of a part does not end well."""
    value = frame["x"].iloc[40 * part + 11]
    return {"twice": Once(value, tmp_path / f"{what} {part}", what)}


def plain(folder, **options):
    """The model, where nothing goes wrong."""
    return blm.LMM(OWN, folder, functions={"twice": lambda x: 2.0 * x}, **options)


def test_a_worker_that_dies_loses_nothing(folder, frame, tmp_path, state, workers):
    functions = own(frame, tmp_path, "die", 3)
    with (
        ProcessPoolExecutor(1, mp_context=workers) as executor,
        pytest.raises(DataError, match=r"died before.*Piece [2345] of 6.*reading.blm`: the same"),
    ):
        blm.LMM(OWN, folder, functions=functions, executor=executor, checkpoint=state)
    found = blm.LMM(OWN, folder, functions=functions, checkpoint=state)
    assert_same_bits(plain(folder, checkpoint=tmp_path / "other"), found)


@pytest.mark.parametrize("what", [slow("partitions"), slow("pieces")])
def test_dask_reads_the_rows_of_a_dead_worker_elsewhere(what, folder, frame, tmp_path, state):
    import dask.dataframe as dd
    import distributed

    expected = plain(folder, checkpoint=state)
    functions = own(frame, tmp_path, "die", 3)
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        data, given = folder, {"executor": client.get_executor()}
        if what == "partitions":
            data, given = dd.from_map(pd.read_parquet, sorted(map(str, folder.iterdir()))), {}
        found = blm.LMM(OWN, data, functions=functions, **given)
    assert (tmp_path / "die 3").exists()
    assert_same_bits(expected, found)


@pytest.mark.parametrize("where", ["here", "threads", "pool"])
def test_a_corrupt_file_in_the_middle(where, folder, frame, tmp_path, state, request, monkeypatch):
    executor = None if where == "here" else request.getfixturevalue(where)
    expected = plain(folder, checkpoint=state)
    file = folder / "3.parquet"
    content = file.read_bytes()
    data = content.index(b"PAR1") + 4
    file.write_bytes(content[:data] + bytes(600) + content[data + 600 :])
    with pytest.raises(DataError, match=r"3.parquet` cannot be read: OSError"):
        plain(folder, executor=executor, checkpoint=state)
    kept = state.read_bytes()
    with pytest.raises(DataError, match=r"3.parquet` cannot be read"):
        plain(folder, executor=executor, checkpoint=state)
    assert state.read_bytes() == kept
    file.write_bytes(content)
    read = counting(monkeypatch)
    assert_same_bits(expected, plain(folder, executor=None, checkpoint=state))
    assert read == ["`" * (len(name) > 1) + name for name in ("3", "4", "5")]
    assert not state.exists()


def test_a_column_that_holds_something_else_in_one_piece(frame, threads):
    parts = [frame.iloc[:80], frame.iloc[80:160].assign(x="a"), frame.iloc[160:]]
    for formula in ("y ~ x + (1 | g)", "y ~ z + (x | h)", "x ~ z + (1 | g)"):
        with pytest.raises(DataError, match=r"x.*(text|numbers)"):
            lmm(formula, parts, executor=threads)
    parts[1] = frame.iloc[80:160].assign(g="a")
    with pytest.raises(DataError, match="`g` holds numbers in one part of the data and text in an"):
        lmm("y ~ x + (1 | g)", parts, executor=threads)


def test_data_that_change_between_two_readings(frame, state):
    parts = [frame.iloc[40 * i :][:40].copy() for i in range(3)]

    def changing(column):
        if column.iloc[-1] == parts[1]["x"].iloc[-1]:  # the first piece has been read
            parts[0].loc[:5, "z"] = np.nan
        return column

    with pytest.raises(DataError, match="changed while it was read"):
        blm.LMM(
            "y ~ scale(same(x)) + z + (1 | h)",
            parts,
            functions={"same": changing},
            checkpoint=state,
        )


@pytest.mark.parametrize(
    ("formula", "error", "words"),
    [
        ("y ~ nothing + (1 | g)", FormulaError, "not a column"),
        ("y ~ lag(x) + (1 | g)", DataError, r"lag\(\) takes the value of another row"),
        ("y ~ y + (1 | g)", FormulaError, "own predictors"),
    ],
)
def test_errors_are_those_of_one_reading(formula, error, words, folder, threads):
    said = []
    for given in ({}, {"executor": threads}):
        with pytest.raises(error, match=words) as caught:
            lmm(formula, folder, **given)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_what_is_no_executor(folder):
    with pytest.raises(TypeError, match="executor=4"):
        lmm("y ~ x + (1 | g)", folder, executor=4)


def test_rows_that_are_all_incomplete(folder, frame, threads):
    parts = [frame.iloc[:40].assign(x=np.nan)] * 3
    with pytest.raises(DataError, match=r"All 120 values of `x` are missing"):
        lmm("y ~ x + (1 | g)", parts, executor=threads)


# --- Ctrl-C, and going on --------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "threads"])
def test_ctrl_c_keeps_what_has_been_read(
    where, folder, frame, tmp_path, state, monkeypatch, request
):
    """Twice, and each time it goes on where it stopped; threads may end what they have begun."""
    executor = None if where == "here" else request.getfixturevalue(where)
    expected = plain(folder, checkpoint=state)
    read = counting(monkeypatch)
    for part in (2, 5):
        functions = own(frame, tmp_path, "interrupt", part)
        with pytest.raises(KeyboardInterrupt):
            blm.LMM(OWN, folder, functions=functions, executor=executor, checkpoint=state)
        assert state.exists()
    found = blm.LMM(OWN, folder, functions=functions, executor=executor, checkpoint=state)
    assert_same_bits(expected, found)
    assert 3 + 4 + 1 <= len(read) <= (3 + 4 + 1 if executor is None else 6 + 4 + 1)
    assert not state.exists()


SCRIPT = """
import sys, time
from pathlib import Path
import bayeslmm as blm
from bayeslmm.data import pieces
pieces.FEWEST_ROWS = 1

def twice(column):
    if len(column) <= 40 and (column == float(sys.argv[3])).any():
        Path(sys.argv[4]).touch()
        time.sleep(60)
    return 2.0 * column

blm.LMM(sys.argv[1], sys.argv[2], functions={"twice": twice}, checkpoint=sys.argv[5])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_to_a_process(folder, frame, tmp_path, state, monkeypatch):
    flag = tmp_path / "begun"
    value = repr(float(frame["x"].iloc[40 * 4 + 11]))
    given = [OWN, str(folder), value, str(flag), str(state)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *given], stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not flag.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=60)[1]
    assert state.exists()
    read = counting(monkeypatch)
    found = plain(folder, checkpoint=state)
    assert len(read) == 2
    assert_same_bits(plain(folder, checkpoint=state), found)


def interrupted(folder, frame, tmp_path, state, part=3):
    functions = own(frame, tmp_path, "interrupt", part)
    with pytest.raises(KeyboardInterrupt):
        blm.LMM(OWN, folder, functions=functions, checkpoint=state)


def test_a_full_disk_leaves_what_was_saved(folder, frame, tmp_path, state, monkeypatch):
    expected = plain(folder, checkpoint=state)
    interrupted(folder, frame, tmp_path, state, 2)
    kept, names = state.read_bytes(), sorted(os.listdir(tmp_path))

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(reading, "EVERY", 0.0)
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(StorageError, match=r"reading.blm was not written: No space left"):
            plain(folder, checkpoint=state)
    assert state.read_bytes() == kept
    assert sorted(os.listdir(tmp_path)) == names
    read = counting(monkeypatch)
    assert_same_bits(expected, plain(folder, checkpoint=state))
    assert len(read) == 4


def test_it_is_saved_every_so_often(folder, monkeypatch, state):
    saved, save = [], reading._Keeper.save

    def counted(keeper, now):
        saved.append(len(now.keys))
        save(keeper, now)

    monkeypatch.setattr(reading._Keeper, "save", counted)
    plain(folder, checkpoint=state)
    assert not saved
    monkeypatch.setattr(reading, "EVERY", 0.0)
    monkeypatch.setattr(reading, "SLOWEST", 0.0)
    plain(folder, checkpoint=state)
    assert saved == [1, 2, 3, 4, 5, 6]
    assert not state.exists()
    saved.clear()
    monkeypatch.setattr(reading, "SLOWEST", 1e9)  # after the first one it is not due again
    plain(folder, checkpoint=state)
    assert saved == [1]


def test_sums_of_a_reading_that_are_not_used_are_not_saved(folder, frame, tmp_path, state):
    """Levels of f come late, so that the first reading has sums of other columns."""
    functions = own(frame, tmp_path, "interrupt", 5)
    with pytest.raises(KeyboardInterrupt):
        blm.LMM("y ~ twice(x) + f + (1 | g)", folder, functions=functions, checkpoint=state)
    assert not state.exists()
    blm.LMM("y ~ twice(x) + f + (1 | g)", folder, functions=functions, checkpoint=state)


def change_formula(folder):
    return {"formula": "y ~ twice(x) + (1 | g)"}


def change_weights(folder):
    return {"weights": "w"}


def change_function(folder):
    return {"functions": {"twice": lambda x: 2.5 * x}}


def touch(folder):
    os.utime(folder / "1.parquet")


def put_before(folder):
    pd.read_parquet(folder / "5.parquet").to_parquet(folder / "+.parquet")


def remove_one(folder):
    (folder / "1.parquet").unlink()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (change_formula, r"has sums of `.*\(x \| g\)`, and this is `.*\(1 \| g\)`.*another name"),
        (change_weights, r"and this is `.*` with weights `w`"),
        (change_function, r"functions that are given, make other columns"),
        (touch, r"has sums of .*1.parquet of \d+ bytes.*where now there is .*1.parquet of \d+"),
        (put_before, r"has sums of .*0.parquet.*where now there is .*\+.parquet.*counted twice"),
        (remove_one, r"has sums of .*1.parquet.*where now there is .*2.parquet"),
    ],
)
def test_a_state_refuses_what_it_is_not_of(change, words, folder, frame, tmp_path, state):
    interrupted(folder, frame, tmp_path, state)
    kept = state.read_bytes()
    options = {"formula": OWN, "functions": {"twice": lambda x: 2.0 * x}} | (change(folder) or {})
    with pytest.raises(StorageError, match=words):
        blm.LMM(data=folder, checkpoint=state, **options)
    assert state.read_bytes() == kept


def test_another_function_of_the_response_is_refused(folder, frame, tmp_path, state):
    formula = "twice(y) ~ x + (1 | g)"
    functions = {"twice": Once(frame["y"].iloc[131], tmp_path / "flag", "interrupt")}
    with pytest.raises(KeyboardInterrupt):
        blm.LMM(formula, folder, functions=functions, checkpoint=state)
    with pytest.raises(StorageError, match="other values of the response"):
        blm.LMM(formula, folder, functions={"twice": lambda y: 3.0 * y}, checkpoint=state)


def test_files_that_come_after_are_read_too(folder, frame, tmp_path, state):
    """What is there after the pieces that are done may change: it has not been counted."""
    interrupted(folder, frame, tmp_path, state)
    more = pd.read_parquet(folder / "5.parquet")
    more.to_parquet(folder / "7.parquet")
    more.iloc[:30].to_parquet(folder / "5.parquet")
    found = plain(folder, checkpoint=state)
    assert found.nobs + found.dropped == 270
    assert_same_bits(plain(folder, checkpoint=state), found)


def test_frames_of_a_list_go_on_too(folder, frame, tmp_path, state, threads):
    frames = [pd.read_parquet(path) for path in sorted(folder.iterdir())]
    interrupted(frames, frame, tmp_path, state)
    changed = [frames[0].assign(x=0.0), *frames[1:]]
    with pytest.raises(StorageError, match="has sums of frame 1: "):
        plain(changed, checkpoint=state)
    assert_same_bits(plain(folder, executor=threads), plain(frames, checkpoint=state))


@pytest.mark.parametrize("what", ["cut", "changed", "other"])
def test_files_that_are_no_states_are_refused_and_stay(what, folder, frame, tmp_path, state):
    interrupted(folder, frame, tmp_path, state)
    content = state.read_bytes()
    wrong = {"cut": content[:-40], "changed": content[:-50] + bytes(50), "other": b"PAR1 rows"}
    state.write_bytes(wrong[what])
    with pytest.raises(StorageError, match=r"reading.blm` is (damaged|no file of checkpoint=)"):
        plain(folder, checkpoint=state)
    assert state.read_bytes() == wrong[what]


def test_places_where_nothing_can_be_saved_are_refused_at_once(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        plain(folder, checkpoint=tmp_path / "no" / "reading.blm")
    with pytest.raises(FileExistsError, match="is a folder"):
        plain(folder, checkpoint=folder)


def test_the_command_line_goes_on_after_a_stop(folder, state, capsys):
    given = ["y ~ x + (1 | g)", str(folder), "--checkpoint", str(state), "--quiet", "--seed", "1"]
    given += ["--method", "laplace", "--draws", "50"]
    damaged = folder / "4.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:4] + bytes(600) + whole[604:])
    assert main(given) != 0
    assert state.exists() and "4.parquet" in capsys.readouterr().err
    damaged.write_bytes(whole)
    assert main(given) == 0
    assert not state.exists() and "REML" in capsys.readouterr().out
