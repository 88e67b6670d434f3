"""Damaged and hostile files, full disks, killed processes: the old or the new, or our error.

What could end the interpreter runs in a process of its own, which must end well and print nothing
but its findings: a fork of one that has imported all there is to import.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from forged_files import forge

import bayeslmm as blm
from bayeslmm.exceptions import StorageError
from bayeslmm.storage import files as _files

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

KINDS = ("nc", "zarr")


@pytest.fixture(scope="module")
def posterior():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), weights=np.ones(30))
    return model.fit(method="laplace", draws=15, chains=2, random_seed=1)


@pytest.fixture(scope="module")
def original(posterior, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    for kind in KINDS:
        posterior.save(folder / f"a.{kind}")
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """Copies of the files that may be damaged."""
    (tmp_path / "a.nc").write_bytes((original / "a.nc").read_bytes())
    shutil.copytree(original / "a.zarr", tmp_path / "a.zarr")
    return tmp_path


FORKS = """
import json, os, resource, shutil, signal, sys, time, faulthandler
from pathlib import Path
faulthandler.enable()
import numpy as np
import xarray as xr
import zarr  # as another user, it could not be
import bayeslmm as blm
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.report import page

for line in sys.stdin:
    code, folder, *streams = json.loads(line)
    child = os.fork()
    if not child:
        for number, stream in enumerate(streams, 1):
            os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        folder = Path(folder)
        exec(compile(code, "<child>", "exec"))
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

HEAD = """
post = blm.load(folder / "a.nc")
arrays = ("y", "offset", "X", "weights", "dropped")

def same(one, two):
    xr.testing.assert_identical(one.data, two.data)
    assert one.priors.table().equals(two.priors.table())
    for name in arrays:
        assert np.array_equal(getattr(one.design, name), getattr(two.design, name))
    assert np.array_equal(one.design.random[0].Z, two.design.random[0].Z)
    assert one.design.data.equals(two.design.data)
    return True

def tried(path):
    try:
        return "same" if same(blm.load(path), post) else None
    except BayesLMMError:
        return "refused"

found = {}
"""


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    """Findings of a process that may print nothing else and must not crash."""
    streams = [tmp_path_factory.mktemp("child") / name for name in ("stdout", "stderr")]
    command = [sys.executable, "-W", "error", "-c", FORKS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True) as forks:

        def run(folder, code):
            whole = HEAD + code + "\nprint(json.dumps(found))"
            print(json.dumps([whole, *map(str, (folder, *streams))]), file=forks.stdin, flush=True)
            status = forks.stdout.readline()
            stdout, stderr = (stream.read_text() for stream in streams)
            assert status == "0\n", stderr
            assert stderr == ""
            assert stdout.count("\n") == 1
            return json.loads(stdout)

        yield run
    assert not forks.returncode


# --- damage ----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, pytest.param(100, marks=pytest.mark.slow)])
def test_truncations_and_flips(child, folder, n):
    """Lengths and 2.5 times as many flipped bits of a netCDF file, some of a Zarr store."""
    code = """
whole, path = (folder / "a.nc").read_bytes(), folder / "b.nc"
random = np.random.default_rng(1)
ends = [0, 1, 23, 24, len(whole) - 1, *random.integers(0, len(whole), N - 5).tolist()]
found["truncations"], found["flips"] = [], []
for end in ends:
    path.write_bytes(whole[:end])
    found["truncations"].append(tried(path))
places = random.integers(0, len(whole), 5 * N // 2 - 30).tolist()
places += list(range(len(whole) - 30, len(whole)))
for place in places:
    content = bytearray(whole)
    content[place] ^= 1 << int(random.integers(8))
    path.write_bytes(content)
    found["flips"].append(tried(path))
found["zarr"] = []
files = [file for file in sorted((folder / "a.zarr").rglob("*")) if file.is_file()]
for i in range(5 * N // 4):
    file = files[int(random.integers(len(files)))]
    old = file.read_bytes()
    content = bytearray(old)
    content[int(random.integers(len(old)))] ^= 1 << int(random.integers(8))
    file.write_bytes(content if i % 5 else old[: len(old) // 2])
    found["zarr"].append(tried(folder / "a.zarr"))
    file.write_bytes(old)
"""
    found = child(folder, code.replace("N ", f"{n} "))
    assert found["truncations"] == ["refused"] * n
    assert len(found["flips"]) == 5 * n // 2 and len(found["zarr"]) == 5 * n // 4
    for kind in ("flips", "zarr"):
        assert set(found[kind]) == {"same", "refused"}  # metadata of the libraries is not read


def test_damage_is_told_in_words(folder):
    whole = (folder / "a.nc").read_bytes()
    for content, message in (
        (b"", "it is no netCDF file"),
        (whole[: len(whole) // 2], r"no model of bayeslmm that can be read: it is cut short"),
        (whole[:-24] + bytes([255] * 8) + whole[-16:], r"cannot be read: it is damaged"),
    ):
        (folder / "a.nc").write_bytes(content)
        with pytest.raises(StorageError, match=rf"a\.nc .*{message}"):
            blm.load(folder / "a.nc")


# --- hostile files with right checksums ------------------------------------------------

HUGE = 10**15


def variable(document, name):
    found = document["groups"]["/posterior"]["variables"]
    return next(item for item in found if item["name"] == name)


def column(document, name):
    return document["model"]["data"]["columns"][name]


def nested(document, _):
    return b'{"a": ' * 100_000 + b"1" + b"}" * 100_000


def exploit_pyarrow(document, _):
    batch = column(document, "Batch")
    batch.clear()
    batch.update(kind="arrow text", dtype="default_memory_pool", array="codes 0", texts=["a"] * 6)


def far_codes(document, _):
    index = {"names": [None], "levels": [column(document, "Batch")["categories"]]}
    document["model"]["data"]["index"] = index
    document["arrays"]["index codes 0"] = document["arrays"]["codes 0"]


HOSTILE = {
    "no object": lambda d, _: b"[1, 2]",
    "no text": lambda d, _: b"\xff\xfe{",
    "nested": nested,
    "long number": lambda d, _: b'{"arrays": ' + b"9" * 10_000 + b"}",
    "no model": lambda d, _: d.update(model=None),
    "no groups": lambda d, _: d.update(groups={}),
    "huge": lambda d, _: d["arrays"]["y"].update(shape=[HUGE]),
    "huger": lambda d, _: d["arrays"]["y"].update(shape=[HUGE] * 60),
    "overflow": lambda d, _: d["arrays"]["y"].update(shape=[2**62, 4]),
    "negative": lambda d, _: d["arrays"]["y"].update(shape=[-1]),
    "fraction": lambda d, _: d["arrays"]["y"].update(shape=[30.0]),
    "huge and empty": lambda d, _: d["arrays"]["y"].update(shape=[0, HUGE]),
    "objects": lambda d, _: d["arrays"]["y"].update(dtype="object"),
    "records": lambda d, _: d["arrays"]["y"].update(dtype="V8"),
    "dates": lambda d, _: d["arrays"]["y"].update(dtype="datetime64[ns]"),
    "integers": lambda d, _: d["arrays"]["y"].update(dtype="int64"),
    "absent": lambda d, _: d["arrays"].pop("Z 0"),
    "other rows": lambda d, _: d["arrays"]["X"].update(shape=[15, 2]),
    "wide text": lambda d, _: variable(d, "coef").update(dtype="<U1000000"),
    "text as bytes": lambda d, _: variable(d, "coef").update(dtype="S9"),
    "numbers as text": lambda d, _: variable(d, "coef").update(texts=[1]),
    "no labels": lambda d, _: variable(d, "coef").update(texts=["Other"]),
    "dimensions": lambda d, _: variable(d, "sigma").update(dims=["draw", "chain"]),
    "order": lambda d, _: variable(d, "beta").update(order=[0, 0, 7]),
    "path": lambda d, _: variable(d, "sigma").update(name="../../../../etc/passwd"),
    "group": lambda d, _: d["groups"].update({"/../..": d["groups"]["/posterior"]}),
    "attributes": lambda d, _: d["groups"]["/"].update(attrs={"$": "exec", "value": "1"}),
    "wide attribute": lambda d, _: d["groups"]["/"].update(
        attrs={"$": "array", "value": ["a"], "dtype": "<U99999999", "shape": [1]}
    ),
    "huge index": lambda d, _: d["model"]["data"].update(
        index={"names": [None], "range": [0, HUGE, 1]}
    ),
    "huge index, no columns": lambda d, _: d["model"]["data"].update(
        columns={}, index={"names": [None], "range": [0, HUGE, 1]}
    ),
    "far codes": far_codes,
    "pyarrow": exploit_pyarrow,
    "time zone": lambda d, _: column(d, "Yield").update(
        kind="time", dtype="datetime64[ns, ../../../etc/passwd]"
    ),
    "column type": lambda d, _: column(d, "Yield").update(dtype="interval"),
    "column kind": lambda d, _: column(d, "Yield").update(kind="pickle"),
    "formula": lambda d, _: d["model"].update(formula="("),
    "long formula": lambda d, _: d["model"].update(formula="y ~ " + "(" * 20_000),
    "labels": lambda d, _: d["model"]["labels"].update(coefs=["a", "b"]),
    "blocks": lambda d, _: d["model"]["labels"]["factors"][0].update(blocks=[[0], [0]]),
    "far block": lambda d, _: d["model"]["labels"]["factors"][0].update(blocks=[[HUGE]]),
    "priors": lambda d, _: d["model"]["priors"].update(beta=[]),
    "prior": lambda d, _: d["model"]["priors"]["residuals"][0][0].update(parameters={"x": 1}),
    "code": lambda d, _: d["model"]["priors"].update(
        residuals=[[{"name": "sigma", "pymc": "CustomDist", "values": [], "density": []}], [], []]
    ),
    "no prior of PyMC": lambda d, _: d["model"]["priors"].update(
        residuals=[[{"name": "sigma", "pymc": "Model", "values": [], "density": []}], [], []]
    ),
    "infinite": lambda d, n: n.update({"bayeslmm_model/X": np.full(30, np.inf).tobytes()}),
    "weights": lambda d, n: n.update({"bayeslmm_model/weights": np.full(30, -1.0).tobytes()}),
    "codes": lambda d, n: n.update({"bayeslmm_model/codes_0": np.full(30, HUGE).tobytes()}),
    "booleans": lambda d, n: n.update({"bayeslmm_model/kept": b"\7"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(folder, name):
    def change(document, numbers):
        text = HOSTILE[name](document, numbers)
        return text if isinstance(text, bytes) else None

    forge(folder / "a.nc", change)
    with pytest.raises(StorageError):
        blm.load(folder / "a.nc")


def test_forging_alone_changes_nothing(folder, posterior):
    forge(folder / "a.nc", lambda document, numbers: None)
    xr.testing.assert_identical(blm.load(folder / "a.nc").data, posterior.data)


def test_hostile_places(folder):
    for places in (
        {"posterior/sigma": -8},
        {"posterior/sigma": HUGE},
        {"posterior/sigma": "0"},
        [],
    ):
        whole = (folder / "a.nc").read_bytes()
        size = int.from_bytes(whole[-24:-16], "little")
        index = json.loads(whole[-24 - size : -24])
        index["places"] = index["places"] | places if places else places
        text = json.dumps(index).encode()
        end = len(text).to_bytes(8, "little") + whole[-16:]
        (folder / "b.nc").write_bytes(whole[: -24 - size] + text + end)
        with pytest.raises(StorageError, match="damaged"):
            blm.load(folder / "b.nc")


def test_hostile_stores(folder):
    store = folder / "a.zarr"
    sigma = store / "posterior" / "sigma" / "c" / "0" / "0"
    content = sigma.read_bytes()
    secret = folder / "secret"
    secret.write_bytes(content)

    def link():
        sigma.symlink_to(secret)

    def pipe():
        os.mkfifo(sigma)

    def sparse():
        with sigma.open("wb") as file:
            file.truncate(2**40)

    for make, message in ((link, "is a link"), (pipe, "is a link, a pipe"), (sparse, "bytes inst")):
        sigma.unlink()
        make()
        with pytest.raises(StorageError, match=message):
            blm.load(store)
    sigma.unlink()
    sigma.write_bytes(content)
    moved = folder / "posterior"
    (store / "posterior").rename(moved)
    (store / "posterior").symlink_to(moved)
    with pytest.raises(StorageError, match="is a link"):
        blm.load(store)


def test_hostile_metadata_of_stores(folder):
    store = folder / "a.zarr"
    metadata = store / "bayeslmm_model" / "zarr.json"
    whole = metadata.read_text()
    for text in ("", "[]", '{"attributes": 3}', whole.replace('"schema": 3', '"schema": "x"')):
        metadata.write_text(text)
        with pytest.raises(StorageError):
            blm.load(store)
    with metadata.open("w") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="bytes"):
        blm.load(store)
    metadata.write_text(whole)
    (store / "posterior" / "sigma" / "zarr.json").write_text('{"shape": [1000000000000000]}')
    assert blm.load(store).design.n == 30  # which is read by other programs only


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.nc")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file.zarr").touch()
    for name in ("pipe.nc", "folder.nc", "file.zarr"):
        with pytest.raises(StorageError, match="is no f"):
            blm.load(tmp_path / name)


# --- disks, permissions, kills ---------------------------------------------------------


def test_full_disks_and_folders_that_cannot_be_written(child, original):
    """Every write of more than some bytes fails, as on a full disk; then all of them."""
    code = """
from bayeslmm.report.page import write_report
page.report_page = lambda *args, **options: "page" * 10_000
saved = []
(folder / "a.html").write_text("old")
for limit in (0, 10, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for name in ("a.nc", "a.zarr", "new.nc", "new.zarr"):
        try:
            post.save(folder / name, overwrite=True)
        except StorageError as error:
            saved.append(str(error))
    try:
        write_report(None, folder / "a.html", overwrite=True)
    except StorageError as error:
        saved.append(str(error))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found["full"] = saved
found["left"] = sorted(os.listdir(folder))
found["old"] = [tried(folder / name) for name in ("a.nc", "a.zarr")]
found["html"] = (folder / "a.html").read_text()
if os.getuid() == 0:
    os.chmod(folder, 0o755)
    os.setuid(65534)
else:
    os.chmod(folder, 0o555)
found["locked"] = []
for name in ("a.nc", "a.zarr", "new.nc"):
    try:
        post.save(folder / name, overwrite=True)
    except StorageError as error:
        found["locked"].append(str(error))
"""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # so that another user comes to it
        shutil.copy(original / "a.nc", folder)
        shutil.copytree(original / "a.zarr", Path(folder) / "a.zarr")
        found = child(folder, code)
        os.chmod(folder, 0o755)
    assert len(found["full"]) == 15
    assert all("was not written: File too large" in text for text in found["full"])
    assert found["left"] == ["a.html", "a.nc", "a.zarr"]
    assert found["old"] == ["same", "same"]
    assert found["html"] == "old"
    assert len(found["locked"]) == 3
    assert all("was not written: Permission denied" in text for text in found["locked"])


KILL = """
from dataclasses import replace
other = replace(post, data=post.data.isel(draw=slice(0, 10)))
found["after"] = []
random = np.random.default_rng(2)
for kind in ("nc", "zarr"):
    path = folder / f"a.{kind}"
    for round_ in range(12):
        child = os.fork()
        if not child:
            while True:
                other.save(path, overwrite=True)
                post.save(path, overwrite=True)
        time.sleep(random.uniform(0.1, 1.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        back = blm.load(path)
        draws = back.data["posterior"].sizes["draw"]
        found["after"].append(draws)
        same(back, post if draws == 15 else other)
    post.save(path, overwrite=True)
found["left"] = sorted(os.listdir(folder))
"""


@pytest.mark.slow
def test_saves_that_are_killed(child, folder):
    """12 of either kind; test_writing.py has more kills of writers that do little else."""
    found = child(folder, KILL)
    assert len(found["after"]) == 24
    assert set(found["after"]) <= {10, 15}
    assert found["left"] == ["a.nc", "a.zarr"]


@pytest.mark.slow
def test_two_processes_save_to_one_path(child, folder):
    code = """
from dataclasses import replace
other = replace(post, data=post.data.isel(draw=slice(0, 10)))
child = os.fork()
for path in 2 * [folder / "a.nc", folder / "a.zarr"]:
    (post if child else other).save(path, overwrite=True)
    back = blm.load(path)
    same(back, post if back.data["posterior"].sizes["draw"] == 15 else other)
if not child:
    os._exit(0)
found["child"] = os.waitpid(child, 0)[1]
found["left"] = sorted(os.listdir(folder))
"""
    assert child(folder, code) == {"child": 0, "left": ["a.nc", "a.zarr"]}


def test_a_store_that_is_replaced_while_it_is_read(folder, posterior, monkeypatch):
    """The listing is of the old one, and its files have gone when they are read."""
    store, listing, done = folder / "a.zarr", _files._files, []

    def replaced(path):
        found = listing(path)
        if not done:
            done.append(store.rename(folder / "old.zarr"))
            shutil.copytree(folder / "old.zarr", store)
            del found["posterior/sigma/c/0/0"]
        return found

    monkeypatch.setattr(_files, "_files", replaced)
    xr.testing.assert_identical(blm.load(store).data, posterior.data)
    assert done
