"""Saved posteriors: what comes back, in another process too, and what is refused."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import arviz as az
import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from forged_files import forge
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import OptionalDependencyError, StorageError
from bayeslmm.fits.load import load
from bayeslmm.priors import LKJ, Gamma, Normal
from bayeslmm.storage import files as _files
from bayeslmm.storage import layout as _layout
from bayeslmm.storage import model as _model
from bayeslmm.storage.frames import pack_frame, same_frame, unpack_frame
from bayeslmm.storage.layout import from_plain, to_plain

SMALL = {"draws": 30, "chains": 2, "random_seed": 1}


def messy_data():
    """Text, ordered categories, booleans, nullable integers, gaps, a named index of text."""
    rng = np.random.default_rng(7)
    n = 72
    x = rng.normal(3.0, 2.0, n)
    frame = pd.DataFrame(
        {
            "y": 2.0 * x + rng.normal(size=n),
            "x": x,
            "my z": rng.normal(100.0, 5.0, n).astype(np.float32),
            "dose": pd.Categorical(
                rng.choice(["low", "high"], n), ["none", "low", "high"], ordered=True
            ),
            "arm": rng.choice(["a b", "ü"], n),
            "flag": rng.random(n) < 0.5,
            "count": pd.array(rng.integers(0, 9, n), dtype="Int64"),
            "g": np.repeat(np.arange(12) * 10, 6),
            "h": rng.choice(["1:2", "1", "2"], n).astype(object),
            "w": rng.uniform(0.5, 2.0, n),
            "unused": "never stored",
        },
        index=pd.Index([f"row {i}" for i in range(n)], name="id"),
    )
    frame.loc[["row 3", "row 40"], "x"] = np.nan
    frame.loc["row 50", "w"] = np.nan
    return frame


MESSY = (
    "y ~ ns(x, df=3) + center(`my z`) + dose * flag + arm + poly(count, 2) + offset(log(w))"
    " + (scale(x) || g) + (1 | h:arm)"
)


def cases():
    """Models with their data, arguments of LMM and of fit."""
    import pymc as pm

    sleep = blm.load_dataset("sleepstudy")
    slopes = "Reaction ~ Days + (Days | Subject)"
    days = np.linspace(0.5, 2.0, len(sleep))
    closed = {"Days": Normal(10.0, 5.0), "sd[Subject, Days]": Gamma(2.0, 0.2), "cor": LKJ(3.0)}
    of_pymc = {"Days": pm.StudentT.dist(3, mu=0, sigma=20), "sigma": pm.Weibull.dist(2, 30)}
    return {
        "plain": (slopes, sleep, {}, {}),
        "zarr": (slopes, sleep, {}, {}),
        "laplace": (slopes, sleep, {"weights": days}, {"method": "laplace"}),
        "closed": (slopes, sleep, {"priors": closed}, {}),
        "pymc": (slopes, sleep, {"priors": of_pymc}, {"store_u": False}),
        "flat": ("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), {"priors": "flat"}, {}),
        "nested": (
            "strength ~ 1 + (1 | batch / cask)",
            blm.load_dataset("Pastes"),
            {},
            {"store_u": False},
        ),
        "crossed": (
            "diameter ~ 1 + (1 | plate) + (1 | sample)",
            blm.load_dataset("Penicillin"),
            {},
            {},
        ),
        "cells": ("effort ~ 0 + Type + (1 | Subject)", blm.load_dataset("ergoStool"), {}, {}),
        "aliased": ("Reaction ~ Days + I(2 * Days) + (1 | Subject)", sleep, {}, {}),
        "no fixed effects": ("I(Reaction - 300) ~ 0 + (1 | Subject)", sleep, {}, {}),
        "messy": (MESSY, messy_data(), {"weights": "w"}, {}),
    }


class MadeWhenAsked(dict[str, Any]):
    """What `make` makes of a name, once."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, name: str) -> Any:
        made = self[name] = self.make(name)
        return made


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The file, the posterior and the data of a case."""
    folder, given = tmp_path_factory.mktemp("saved"), cases()

    def make(name):
        formula, data, of_model, of_fit = given[name]
        posterior = (
            made["plain"][1]
            if name == "zarr"
            else blm.LMM(formula, data, **of_model).fit(**SMALL, **of_fit)
        )
        path = folder / f"{name}.{'zarr' if name == 'zarr' else 'nc'}"
        posterior.save(path)
        return path, posterior, data

    made = MadeWhenAsked(make)
    return made


EARLY = ("plain", "zarr", "laplace", "pymc", "flat", "aliased", "no fixed effects", "messy")
LATE = ("closed", "nested", "crossed", "cells")
each_case = pytest.mark.parametrize("name", [*EARLY, *map(slow, LATE)])


def results(posterior, new):
    """What a posterior says, as arrays and tables."""
    draws, predicted = [], []
    for factor in posterior.design.random:
        draws.append(posterior.draw_u(group=factor.name, random_seed=3).to_numpy())
    for options in (
        {"target": "conditional", "kind": "epred"},
        {"target": "new", "kind": "response"},
    ):
        predicted.append(posterior.predict(new, random_seed=5, **options))
    tables = [*predicted, posterior.fixef(), posterior.varcorr(), posterior.tidy()]
    frames = [posterior.fitted().to_frame(), *posterior.ranef().values()]
    numbers = [t.select_dtypes("number").to_numpy() for t in [*tables, *frames]]
    return [*draws, *numbers, posterior.priors.table(), posterior.design.index]


CHILD = """
import pickle, sys
sys.path.insert(0, {tests!r})
from test_storage import load, results
with open({given!r}, "rb") as file:
    given = pickle.load(file)
found = {{name: results(load(path), new) for name, (path, new) in given.items()}}
with open({found!r}, "wb") as file:
    pickle.dump(found, file)
"""


@pytest.mark.slow
def test_another_process_predicts_the_same_bits(saved, tmp_path):
    import pickle

    made = {name: saved[name] for name in EARLY + LATE}
    given = {name: (str(path), data.dropna().iloc[:7]) for name, (path, _, data) in made.items()}
    (tmp_path / "given").write_bytes(pickle.dumps(given))
    code = CHILD.format(
        tests=os.path.dirname(__file__),
        given=str(tmp_path / "given"),
        found=str(tmp_path / "found"),
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
    found = pickle.loads((tmp_path / "found").read_bytes())
    for name, (_, posterior, _) in made.items():
        expected = results(posterior, given[name][1])
        assert len(found[name]) == len(expected)
        for one, two in zip(found[name], expected, strict=True):
            if isinstance(two, np.ndarray):
                assert np.array_equal(one, two, equal_nan=True), name
            else:
                assert one.equals(two), name


@pytest.fixture(scope="module")
def loaded(saved):
    return MadeWhenAsked(lambda name: load(saved[name][0]))


@each_case
def test_draws_come_back_exactly(saved, loaded, name):
    _, posterior, _ = saved[name]
    back = loaded[name].data
    xr.testing.assert_identical(back, posterior.data)
    assert list(back.children) == list(posterior.data.children)
    for node in posterior.data.subtree:
        assert list(node.variables) == list(back[node.path].variables)
        for variable in node.variables:
            one, two = node[variable], back[node.path][variable]
            assert one.dtype == two.dtype, (name, variable)
            assert one.attrs == two.attrs
        assert repr(node.attrs) == repr(back[node.path].attrs)


@each_case
def test_models_come_back_exactly(saved, loaded, name):
    _, posterior, _ = saved[name]
    one, two = posterior.design, loaded[name].design
    assert same_frame(one.data, two.data)
    assert one.index.equals(two.index) and one.index.name == two.index.name
    for field in ("y", "offset", "X", "X_full", "dropped"):
        assert np.array_equal(getattr(one, field), getattr(two, field)), (name, field)
        assert not getattr(two, field).flags.writeable
    assert np.array_equal(one.weights, two.weights) or one.weights is two.weights is None
    assert one.spec.weights == two.spec.weights
    for a, b in zip(one.random, two.random, strict=True):
        assert (a.name, a.key, a.coefs, a.blocks) == (b.name, b.key, b.coefs, b.blocks)
        assert a.levels.tolist() == b.levels.tolist()
        assert np.array_equal(a.Z, b.Z) and np.array_equal(a.codes, b.codes)
        assert b.spec.keys == a.spec.keys
    assert one.aliased == two.aliased


@each_case
def test_a_spec_that_was_loaded_makes_the_same_rows(saved, loaded, name):
    _, posterior, _ = saved[name]
    rows = posterior.design.data.iloc[::2]
    one, two = (fit.design.spec.rows(rows) for fit in (posterior, loaded[name]))
    for field in ("y", "offset", "X", "X_full"):
        assert np.array_equal(getattr(one, field), getattr(two, field)), (name, field)
    for a, b in zip(one.random, two.random, strict=True):
        assert np.array_equal(a.Z, b.Z) and np.array_equal(a.codes, b.codes)


@each_case
def test_priors_come_back_exactly(saved, loaded, name):
    points = np.linspace(-5.0, 60.0, 131)
    _, posterior, _ = saved[name]
    one, two = posterior.priors, loaded[name].priors
    assert one.table().equals(two.table())
    for a, b in zip(one.records().values(), two.records().values(), strict=True):
        assert type(a) is type(b)
        if isinstance(a, LKJ):
            assert a == b
        else:
            assert np.array_equal(a.logpdf(points), b.logpdf(points))
    for field in ("fixed_map", "beta_mean", "beta_precision"):
        a, b = getattr(one, field), getattr(two, field)
        assert a is b is None or np.array_equal(a, b)
    assert one.beta_sampled == two.beta_sampled
    assert one.blocks == two.blocks


def test_stored_priors_do_not_follow_the_defaults(saved, monkeypatch):
    path, posterior, _ = saved["plain"]
    monkeypatch.setattr("bayeslmm.priors.defaults.WIDTH", 100.0)
    assert load(path).priors.table().equals(posterior.priors.table())
    fresh = blm.LMM(posterior.design.formula.source, blm.load_dataset("sleepstudy"))
    assert not fresh.priors.table().equals(posterior.priors.table())


def test_only_what_the_model_uses_is_stored(saved):
    path, _, _ = saved["messy"]
    assert b"never stored" not in path.read_bytes()
    assert "unused" not in load(path).design.data


def test_only_the_rows_of_the_model_are_stored(loaded):
    assert loaded["messy"].design.dropped.tolist() == [3, 40, 50]
    assert loaded["messy"].design.n == 69


@pytest.mark.parametrize("name", ["messy", "pymc", slow("no fixed effects")])
def test_saving_what_was_loaded_changes_nothing(loaded, tmp_path, name):
    loaded[name].save(tmp_path / "again.nc")
    xr.testing.assert_identical(load(tmp_path / "again.nc").data, loaded[name].data)


def test_arviz_reads_the_draws(saved):
    for name, read in (("plain", az.from_netcdf), ("zarr", az.from_zarr)):
        path, posterior, _ = saved[name]
        with read(path) as tree:
            assert tree["posterior"].attrs["sample_dims"] == ["chain", "draw"]
            assert tree.attrs["modeling_interface"] == "bayeslmm"
            sigma = tree["posterior"]["sigma"].to_numpy()
            assert np.array_equal(sigma, posterior.data["posterior"]["sigma"].to_numpy())
            assert list(tree["posterior"]["Subject"].values[:2]) == ["308", "309"]


@pytest.mark.parametrize("name", ["odd.nc", "odd.zarr"])
def test_groups_and_attributes_of_users_survive(saved, tmp_path, name):
    _, posterior, _ = saved["flat"]
    extra = xr.Dataset(
        {"ok": ("k", np.array([True, False])), "small": ((), np.float32(0.1))},
        coords={"k": ["a", "long label"]},
        attrs={"none": None, "flag": True, "pair": (1, "a"), "empty": [], "nested": {"a": [None]}},
    )
    changed = posterior.with_groups(mine=extra)
    changed.data.attrs |= {"half": np.float32(0.5), "array": np.arange(3), "long": "é" * 70_000}
    changed.save(tmp_path / name)
    back = load(tmp_path / name).data
    xr.testing.assert_identical(back["mine"].to_dataset(), extra)
    assert back["mine"]["small"].dtype == np.float32
    assert repr(back["mine"].attrs) == repr(extra.attrs)
    assert repr(back.attrs) == repr(changed.data.attrs)
    changed.data.attrs.clear()
    changed.data.attrs |= posterior.data.attrs


@pytest.mark.slow
@pytest.mark.parametrize("form", ["noncentered", "marginal"])
def test_nuts_posteriors_come_back(tmp_path, form):
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    options = {"form": form, "tune": 100, "progressbar": False}
    posterior = model.fit(method="nuts", **SMALL, **options).with_log_likelihood()
    posterior.save(tmp_path / "nuts.nc")
    back = load(tmp_path / "nuts.nc")
    xr.testing.assert_identical(back.data, posterior.data)
    assert back.data["sample_stats"]["diverging"].dtype == bool
    assert back.summary().equals(posterior.summary())


# --- values and frames -----------------------------------------------------------------


def test_values_keep_their_types():
    values = {
        "numbers": [1, 1.0, True, None, float("inf"), np.float32(0.1), np.bool_(True)],
        ("a", 1): (Decimal("1.50"), date(2020, 2, 29), pd.Timestamp("2020-01-01 10:00"), pd.NaT),
        "$": {"$": "tuple", "value": []},
        "array": np.array([[1, 2]], dtype=np.int16),
        "text": ["\0", "\ud800", np.str_("a")],
    }
    back = from_plain(json.loads(json.dumps(to_plain(values, "it"))))
    assert repr(back) == repr(values)
    assert back["array"].dtype == np.int16
    with pytest.raises(StorageError, match=r"it holds a value of type object"):
        to_plain([object()], "it")
    with pytest.raises(StorageError, match="complex128"):
        to_plain(np.array([1j]), "it")


def columns():
    """Columns of six rows of every type that is stored."""
    text = list("abcabc")
    mixed = [1, "a", 2.5, True, Decimal("1.5"), date(2020, 1, 1)]
    return {
        **{t: np.arange(6).astype(t) for t in ("int8", "uint64", "float16", "float32", "bool")},
        "text": text,
        "object": pd.Series(text, dtype=object),
        "string": pd.Series(text, dtype="string"),
        "categories": pd.Categorical(text, list("dcba"), ordered=True),
        "numbers": pd.Categorical([3, 1, 2, 3, 1, 2]),
        "bins": pd.cut(np.arange(6), 3),
        "Int64": pd.array(range(6), dtype="Int64"),
        "Float32": pd.array(range(6), dtype="Float32"),
        "boolean": pd.array([True, False] * 3, dtype="boolean"),
        "arrow": pd.array(range(6), dtype="int64[pyarrow]"),
        "arrow text": pd.array(text, dtype="large_string[pyarrow]"),
        "dates": pd.date_range("2020-01-01", periods=6),
        "zoned": pd.date_range("2020-01-01", periods=6, tz="Europe/Berlin"),
        "spans": pd.to_timedelta(np.arange(6), unit="h"),
        "months": pd.period_range("2020-01", periods=6, freq="M"),
        "mixed": pd.Series(mixed, dtype=object),
    }


INDEXES = [
    pd.RangeIndex(5, 17, 2, name=3),
    pd.Index([1.5, np.nan, 3, 4, 5, 6]),
    pd.Index(["a", None, "c", "d", "e", "f"], name="id"),
    pd.Index(pd.array([1, None, 3, 4, 5, 6], dtype="Int64")),
    pd.Index(list("abcdef"), dtype=object),
    pd.MultiIndex.from_product([[1, 2], ["a", "b", "c"]], names=["k", None]),
    pd.CategoricalIndex(list("abcabc")),
    pd.date_range("2020", periods=6, tz="UTC"),
    pd.Index([("a", 1), ("b", 2)] * 3, tupleize_cols=False),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__)
def test_frames_keep_types_and_index(index):
    frame = pd.DataFrame(columns())
    frame.columns = frame.columns.astype(object)  # as the frames of designs
    frame.index = index
    for part in (frame, frame.iloc[[0, 2, 5]]):
        arrays = {}
        described = json.loads(json.dumps(pack_frame(part, arrays)))
        assert all(array.dtype.kind in "biuf" for array in arrays.values())
        back = unpack_frame(described, arrays)
        pd.testing.assert_frame_equal(back, part, check_freq=False)
        assert same_frame(back, part)
        for name in part:
            assert list(map(type, back[name])) == list(map(type, part[name]))


def test_different_frames_are_told_apart():
    frame = pd.DataFrame({"a": [1, 2]})
    assert not same_frame(frame, frame.astype(float))
    assert not same_frame(frame, frame.rename_axis("id"))
    assert not same_frame(frame, frame + 1)


@pytest.mark.parametrize(
    "values",
    [[1j, 2j], pd.arrays.SparseArray([0, 1]), [object(), object()]],
    ids=["complex", "sparse", "objects"],
)
def test_columns_that_cannot_be_stored(values):
    with pytest.raises(StorageError, match="The column `a`"):
        pack_frame(pd.DataFrame({"a": values}), {})


def test_a_model_with_such_a_column_is_refused(tmp_path):
    data = blm.load_dataset("Dyestuff")
    data["Batch"] = [frozenset(batch) for batch in data["Batch"]]
    posterior = blm.LMM("Yield ~ 1 + (1 | Batch)", data).fit(method="laplace", **SMALL)
    with pytest.raises(StorageError, match="The column `Batch` holds a value of type frozenset"):
        posterior.save(tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


# --- priors that cannot be stored ------------------------------------------------------


def test_priors_made_of_code_are_refused(saved, tmp_path):
    import pymc as pm
    import pytensor

    _, posterior, data = saved["flat"]
    half = [pm.HalfNormal.dist(10.0), pm.HalfNormal.dist(100.0)]
    for prior in (
        pm.CustomDist.dist(50.0, logp=lambda x, s: pm.logp(pm.HalfNormal.dist(s), x)),
        pm.Mixture.dist([0.5, 0.5], half),
        pm.Truncated.dist(pm.Gamma.dist(2.0, 0.05), upper=200.0),
    ):
        with pytensor.config.change_flags(cxx=""):  # nothing is evaluated often enough to compile
            model = blm.LMM("Yield ~ 1 + (1 | Batch)", data, priors={"sigma": prior})
        with pytest.raises(StorageError, match=r"The prior for 'sigma', .* cannot be stored"):
            replace(posterior, model=model.model).save(tmp_path / "a.nc")


def test_foreign_records_are_refused(tmp_path, saved):
    class Mine(Normal):
        pass

    _, posterior, _ = saved["flat"]
    priors = replace(posterior.priors, beta=(Mine(0.0, 1.0),))
    changed = replace(posterior, model=Model(posterior.design, priors))
    with pytest.raises(StorageError, match="'Intercept' is of type Mine"):
        changed.save(tmp_path / "a.nc")


def test_a_prior_that_pymc_makes_otherwise_is_noticed(saved, monkeypatch):
    import pymc as pm

    path, _, _ = saved["pymc"]
    right = pm.Weibull.rv_op
    monkeypatch.setattr(pm.Weibull, "rv_op", lambda a, b, **options: right(b, a, **options))
    with pytest.raises(StorageError, match=r"'sigma', Weibull.* has another density"):
        load(path)


# --- files that are refused ------------------------------------------------------------


@pytest.fixture
def file(saved, tmp_path):
    """A copy of a file that may be damaged."""
    path = tmp_path / "copy.nc"
    path.write_bytes(saved["plain"][0].read_bytes())
    return path


def test_names_that_are_refused(saved, tmp_path):
    _, posterior, _ = saved["flat"]
    for name in ("a.csv", "a", "a.nc.gz"):
        with pytest.raises(ValueError, match=r"must end in \.nc"):
            posterior.save(tmp_path / name)
        with pytest.raises(ValueError, match=r"must end in \.nc"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no folder"):
        posterior.save(tmp_path / "absent" / "a.nc")
    with pytest.raises(FileNotFoundError, match=r"no file .*a\.nc"):
        load(tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unasked(saved, file):
    _, posterior, _ = saved["flat"]
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        posterior.save(file)
    assert file.read_bytes() == before
    posterior.save(str(file), overwrite=True)
    assert load(file).design.response == "Yield"


def test_versions_that_made_the_draws_come_back(saved, tmp_path):
    _, posterior, _ = saved["flat"]
    assert load(saved["flat"][0]).data.attrs["python_version"] == platform.python_version()
    data = posterior.data.copy()
    data.attrs |= {"python_version": "3.0.1", "numpy_version": "1.0.5"}
    replace(posterior, data=data).save(tmp_path / "old.nc")
    assert "Python 3.0.1, NumPy 1.0.5" in load(tmp_path / "old.nc").methods_paragraph()


def test_a_zarr_store_is_replaced_whole(saved, tmp_path):
    path = tmp_path / "a.zarr"
    saved["pymc"][1].save(path)
    assert (path / "random_effects").exists()
    saved["flat"][1].save(path, overwrite=True)
    assert load(path).design.response == "Yield"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    assert not (path / "random_effects").exists()


def test_folders_that_are_no_store_are_left_alone(saved, tmp_path):
    (tmp_path / "full.zarr").mkdir()
    (tmp_path / "full.zarr" / "thesis.txt").write_text("all of it")
    (tmp_path / "folder.nc").mkdir()
    (tmp_path / "file.zarr").write_text("")
    for name in ("full.zarr", "folder.nc", "file.zarr"):
        with pytest.raises(FileExistsError, match="choose another name"):
            saved["flat"][1].save(tmp_path / name, overwrite=True)
    assert (tmp_path / "full.zarr" / "thesis.txt").exists()


def test_what_is_written_wrongly_gets_no_name(saved, tmp_path, monkeypatch):
    write = _files._write_netcdf

    def cut(packed, path):
        write(packed, path)
        path.write_bytes(path.read_bytes()[1000:])

    monkeypatch.setattr(_files, "_write_netcdf", cut)
    with pytest.raises(StorageError, match=r"a\.nc was not written: what was"):
        saved["flat"][1].save(tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_draws_that_are_not_those_of_the_model_are_not_saved(saved, tmp_path):
    _, posterior, _ = saved["plain"]
    draws = posterior.data["posterior"].to_dataset()
    for changed in (
        draws.drop_vars("sigma"),
        draws.isel(Subject=slice(5)),
        draws.assign_coords(coef=["Days", "Intercept"]),
        draws.isel(draw=slice(0)),
    ):
        with pytest.raises(StorageError, match=r"draws|labels"):
            posterior.with_groups(posterior=changed).save(tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())
    posterior.with_groups(posterior=draws.isel(draw=slice(1, None, 2))).save(tmp_path / "a.nc")
    assert load(tmp_path / "a.nc").data["posterior"].sizes["draw"] == SMALL["draws"] // 2


def test_labels_that_files_cannot_hold(saved, tmp_path):
    odd = xr.Dataset(coords={"k": np.array(["a\0b"])})
    with pytest.raises(StorageError, match="characters that files cannot hold"):
        saved["flat"][1].with_groups(mine=odd).save(tmp_path / "a.nc")
    times = xr.Dataset(coords={"k": pd.date_range("2020", periods=2)})
    with pytest.raises(StorageError, match="convert it to numbers or text"):
        saved["flat"][1].with_groups(mine=times).save(tmp_path / "a.nc")


def test_any_flipped_byte_of_the_numbers_is_noticed(file):
    with h5py.File(file) as content:
        places = [
            content[name].id.get_offset()
            for name in ("posterior/sigma", "posterior/u_Subject", "sample_stats/lp")
        ]
    whole = bytearray(file.read_bytes())
    for place in places:
        damaged = bytearray(whole)
        damaged[place + 11] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(StorageError, match="has another SHA-256"):
            load(file)


def test_files_that_another_program_changed(file):
    with h5py.File(file, "a") as content:
        content.create_group("notes")
    with pytest.raises(StorageError, match=r"another program .* changed it.*arviz\.from_netcdf"):
        load(file)


@pytest.mark.parametrize(
    ("schema", "hint"), [(1, "or fit the model again"), slow(99, "Install the")]
)
def test_other_layouts(saved, file, tmp_path, monkeypatch, schema, hint):
    for path in (tmp_path / "a.zarr", tmp_path / "a.nc"):
        with monkeypatch.context() as other:
            other.setattr(_layout, "SCHEMA", schema)
            saved["flat"][1].save(path)
        with pytest.raises(StorageError, match=f"in layout {schema}; this version.*{hint}"):
            load(path)


def test_changed_formula_or_prior(file):
    forge(file, lambda d, _: d["model"].update(formula="Reaction ~ 1"), signed=False)
    with pytest.raises(StorageError, match="has another SHA-256"):
        load(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(formula="Reaction ~ I(Days * 2) + (Days | Subject)"), "other columns"),
        (lambda m: m.update(formula="Reaction ~ 0 + Days + (Days | Subject)"), "other columns"),
        (lambda m: m.update(formula="Reaction ~ Nights + (Days | Subject)"), "cannot be evaluated"),
    ],
)
def test_a_formula_that_means_something_else(file, change, message):
    """As when another version of formulaic makes other columns: every fingerprint is right."""
    forge(file, lambda document, _: change(document["model"]))
    back = load(file)
    assert list(back.fixef().index) == ["Intercept", "Days"]
    with pytest.raises(StorageError, match=message):
        back.predict(blm.load_dataset("sleepstudy"))


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        ("log(Reaction) ~ Days + (Days | Subject)", "The response of the saved model"),
        ("Reaction ~ Days", "The grouping factors of the saved"),
        ("Reaction ~ Days + (Days | Subject) + (1 | Days)", "The grouping factors of the saved"),
        ("Reaction ~ Days + (Days | Subject", "cannot be read"),
    ],
)
def test_a_formula_of_another_model(file, formula, message):
    forge(file, lambda document, _: document["model"].update(formula=formula))
    with pytest.raises(StorageError, match=message):
        load(file)


def test_an_unknown_prior(file):
    forge(file, lambda d, _: d["model"]["priors"]["residuals"][0][0].update(family="Horseshoe"))
    with pytest.raises(StorageError, match="unknown family 'Horseshoe'"):
        load(file)


@each_case
def test_loading_evaluates_nothing(saved, name, monkeypatch):
    """Not even functions that have gone: the stored matrices are all that is needed."""

    path, posterior, _ = saved[name]

    def refuse(*args, **kwargs):
        raise AssertionError("evaluated")

    monkeypatch.setattr(_model, "build_design", refuse)
    monkeypatch.setattr("bayeslmm.formula.matrices._values", refuse)
    monkeypatch.setattr("bayeslmm.formula.evaluation._Evaluation", refuse)
    back = load(path)
    assert back.fixef().equals(posterior.fixef())
    assert back.fitted().equals(posterior.fitted())
    with pytest.raises(AssertionError, match="evaluated"):
        back.predict(posterior.design.data)


def test_last_digits_of_another_processor_are_taken_from_the_file(saved, monkeypatch, caplog):
    path, posterior, _ = saved["messy"]
    build = _model.build_design

    def shaken(factor):
        def changed(*args, **kwargs):
            design = build(*args, **kwargs)
            return replace(design, X=design.X * factor, X_full=design.X * factor)

        return changed

    new = posterior.design.data.iloc[:3]
    monkeypatch.setattr(_model, "build_design", shaken(1.0 + 2e-16 * 4))
    back = load(path)
    assert np.array_equal(back.design.X, posterior.design.X)
    with caplog.at_level("INFO", logger="bayeslmm"):
        assert back.predict(new).equals(posterior.predict(new))
    assert "other last digits" in caplog.text
    monkeypatch.setattr(_model, "build_design", shaken(1.0 + 1e-7))
    with pytest.raises(StorageError, match=r"the fixed-effects columns .* to other values"):
        load(path).predict(new)


def test_other_programs_files(tmp_path, saved):
    saved["flat"][1].data.to_netcdf(tmp_path / "draws.nc", engine="h5netcdf")
    with pytest.raises(StorageError, match=r"holds no model of bayeslmm.*arviz\.from_netcdf"):
        load(tmp_path / "draws.nc")
    (tmp_path / "text.nc").write_text("x,y\n1,2\n")
    with pytest.raises(StorageError, match="it is no netCDF file"):
        load(tmp_path / "text.nc")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StorageError, match="holds no model of bayeslmm"):
        load(tmp_path / "empty.zarr")


def test_a_zarr_store_that_lost_a_chunk(saved, tmp_path):
    saved["flat"][1].save(tmp_path / "a.zarr")
    chunk = next((tmp_path / "a.zarr" / "posterior" / "sigma" / "c").rglob("0"))
    while chunk.is_dir():
        chunk = next(chunk.iterdir())
    chunk.unlink()
    with pytest.raises(StorageError, match=r"damaged.*posterior/sigma/c/0/0 has no bytes"):
        load(tmp_path / "a.zarr")


def test_zarr_is_optional(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(OptionalDependencyError, match=r"bayeslmm\[zarr\]"):
        saved["flat"][1].save(tmp_path / "a.zarr")
