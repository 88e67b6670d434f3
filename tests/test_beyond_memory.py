"""Data beyond memory: any source in any batches gives the model that the data give in memory."""

from __future__ import annotations

import copy
import pickle

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pytest
from reference_data import list_fits, load_fit, load_reference_data
from reference_formulas import translated
from slow_cases import one_in, slow

import bayeslmm as blm
from bayeslmm.__main__ import main
from bayeslmm.exceptions import DataError, FormulaError, StorageError
from bayeslmm.storage.sums import pack_sums, unpack_sums

CRITERION = 1e-9
"""Largest difference of REML criteria: sums in another order differ by rounding."""

DRAWS = 1e-8
"""Of draws with one seed, relative: searches end within rounding of each other."""

MODELS = {
    "bcg": "log_rr ~ latitude + (1 | allocation)",
    "cake": "angle ~ recipe * temperature + (1 | recipe:replicate)",
    "Dyestuff": "Yield ~ 1 + (1 | Batch)",
    "Dyestuff2": "Yield ~ 1 + (1 | Batch)",
    "ergoStool": "effort ~ Type + (1 | Subject)",
    "fev": "FEV1 ~ ARMCD * AVISIT + FEV1_BL + (1 | USUBJID)",
    "lecture_plants": "height ~ moisture + (1 | pot)",
    "lecture_surgery": "y ~ procedure + (1 | team)",
    "Machines": "score ~ Machine + (0 + Machine | Worker)",
    "Oats": "yield ~ nitro * Variety + (1 | Block / Variety)",
    "Orthodont": "distance ~ age * Sex + (age | Subject)",
    "Pastes": "strength ~ 1 + (1 | batch / cask)",
    "Penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)",
    "periodontal": "difference ~ outcome + (1 | trial)",
    "Pixel": "pixel ~ day + I(day**2) + (day | Dog) + (1 | Dog:Side)",
    "school_calendar": "d ~ year + (1 | district)",
    "Rail": "travel ~ 1 + (1 | Rail)",
    "sleepstudy": "Reaction ~ Days + (Days | Subject)",
}

OTHERS = (
    "Reaction ~ scale(Days) + (Days || Subject)",
    "Reaction ~ poly(Days, 3) + (poly(Days, 2) | Subject)",
    "Reaction ~ bs(Days, knots=[3, 6]) + (center(Days) | Subject)",
    "log(Reaction) ~ ns(scale(log1p(Days)), knots=[0.1]) + (0 + Days | Subject)",
    "Reaction ~ standardize(Days, ddof=1) + poly(scale(Days), 2) + (1 | Subject)",
    "Reaction ~ factor(Days) + (1 | Subject)",
    "Reaction ~ C(Days, Sum) + offset(2 * Days) + (1 | Subject)",
    "Reaction ~ I(Days > 4) + Days:I(Days > 4) + (1 | Subject)",
    "Reaction ~ 0 + Days + I(Days * 2) + (1 | Subject) + (0 + Days | Subject)",
    "Reaction ~ Days + homcs(0 + factor(Days > 4) | Subject)",
    "Reaction ~ Days + (Days || Subject) + (1 | Days)",
)


def batches(frame, count=6, seed=0):
    """Consecutive rows in batches of random sizes, some of them empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(frame) + 1, count))
    return [frame.iloc[rows] for rows in np.split(np.arange(len(frame)), cuts)]


def both(formula, frame, parts=None, **options):
    """The model of data in memory and that of their batches."""
    parts = batches(frame) if parts is None else parts
    return blm.LMM(formula, frame, **options), blm.LMM(formula, lambda: iter(parts), **options)


def assert_same_spec(a, b):
    """Two designs of the same rows: columns, numbers of rows, levels."""
    assert (a.coefs, a.coefs_full, a.aliased) == (b.coefs, b.coefs_full, b.aliased)
    assert (a.n, a.n_dropped) == (b.n, b.n_dropped)
    for f, g in zip(a.spec.random, b.spec.random, strict=True):
        assert (f.name, f.key, f.coefs, f.blocks, f.kinds) == (
            g.name,
            g.key,
            g.coefs,
            g.blocks,
            g.kinds,
        )
        assert f.levels.tolist() == g.levels.tolist()
        assert all(
            p.equals(q) and p.dtype == q.dtype for p, q in zip(f.parts, g.parts, strict=True)
        )
        np.testing.assert_array_equal(f.cells, g.cells)


def assert_same_model(memory, streamed, tolerance=CRITERION):
    assert_same_spec(memory.design, streamed.design)
    assert repr(memory.priors.table()) == repr(streamed.priors.table())
    try:
        expected = memory.model.reml
    except DataError:
        assert streamed.model.reml_or_none() is None
        return
    assert streamed.model.reml.criterion == pytest.approx(expected.criterion, abs=tolerance)


# --- the model in memory ---------------------------------------------------------------


def test_all_datasets_have_a_model():
    assert set(MODELS) == set(blm.list_datasets().name)


@pytest.mark.parametrize("name", one_in(3, MODELS))
def test_batches_give_the_model_of_all_rows(name):
    assert_same_model(*both(MODELS[name], blm.load_dataset(name)))


REFERENCES = {
    (translated(fit), fit["dataset"], fit["weights"]): name
    for name, fit in ((name, load_fit(name)) for name in reversed(list_fits()))
    if "ns(x, 3)" not in fit["formula"]  # its knots are quantiles
}


SMALL = [case for case in REFERENCES if case[1] != "InstEval"]
LARGE = [case for case in REFERENCES if case[1] == "InstEval"]


@pytest.mark.parametrize(
    "case", [*one_in(12, [[case] for case in SMALL]), *(slow([case]) for case in LARGE)], ids=str
)
def test_batches_give_the_fits_of_lme4(case):
    formula, name, weights = case[0]
    frame = load_reference_data(name)
    memory, streamed = both(formula, frame, weights=weights)
    assert memory.design.coefs == streamed.design.coefs
    for fit in ("reml", "ml"):
        expected = getattr(memory, fit)().criterion
        assert getattr(streamed, fit)().criterion == pytest.approx(expected, abs=CRITERION)


@pytest.mark.parametrize("formula", one_in(2, OTHERS))
def test_transforms_and_codings_are_those_of_all_rows(formula):
    assert_same_model(*both(formula, blm.load_dataset("sleepstudy")))


@pytest.mark.parametrize("name", ["Orthodont", "Penicillin"])
def test_draws_with_one_seed_are_the_same(name):
    memory, streamed = both(MODELS[name], blm.load_dataset(name))
    first, second = (model.fit(draws=100, chains=2, random_seed=3) for model in (memory, streamed))
    for variable, values in first.data["posterior"].items():
        np.testing.assert_allclose(
            second.data["posterior"][variable].values, values.values, rtol=DRAWS, atol=DRAWS
        )
    assert second.log_evidence.value == pytest.approx(first.log_evidence.value, abs=1e-9)


def test_sources_of_equal_batches_give_equal_draws_bit_for_bit(tmp_path):
    frame = blm.load_dataset("sleepstudy").astype({"Subject": str})
    frame.to_parquet(tmp_path / "a.parquet")
    models = [
        blm.LMM(MODELS["sleepstudy"], data)
        for data in (tmp_path / "a.parquet", [frame], lambda: iter([frame]))
    ]
    draws = [model.fit(draws=50, chains=1, random_seed=1).data["posterior"] for model in models]
    for other in draws[1:]:
        for name, values in draws[0].items():
            np.testing.assert_array_equal(other[name].values, values.values)


def test_weights_gaps_and_offsets_are_as_in_memory(caplog):
    frame = blm.load_dataset("Orthodont")
    rng = np.random.default_rng(1)
    frame["w"] = rng.uniform(0.5, 3.0, len(frame))
    frame["base"] = rng.normal(size=len(frame))
    for name in ("age", "distance", "w"):
        frame.loc[rng.choice(frame.index, 4, replace=False), name] = np.nan
    formula = "distance ~ age * Sex + offset(base) + (age | Subject)"
    with caplog.at_level("INFO", "bayeslmm"):
        memory, streamed = both(formula, frame, weights="w")
    assert_same_model(memory, streamed)
    assert sum("rows are incomplete and dropped" in text for text in caplog.messages) == 2
    for fit in (lambda m: m.ml().criterion, lambda m: m.map().sigma):
        assert fit(streamed) == pytest.approx(fit(memory), rel=1e-7)
    for table in (lambda m: m.reml().icc(), lambda m: m.reml().r2()):
        pd.testing.assert_frame_equal(table(streamed), table(memory), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_size_and_order_of_batches_do_not_matter(size):
    frame = blm.load_dataset("Penicillin").head(60).astype({"plate": str})
    parts = [frame.iloc[start : start + size] for start in range(0, len(frame), size)]
    order = np.random.default_rng(size).permutation(len(parts))
    memory, streamed = both(MODELS["Penicillin"], frame, [parts[i] for i in order])
    assert streamed.reml().criterion == pytest.approx(memory.reml().criterion, abs=1e-10)


@pytest.mark.parametrize(
    ("shift", "scale", "up"),
    [(1e9, 1.0, 0.0), (0.0, 1e-8, 1e7), (0.0, 1e8, 0.0), (1e6, 1e-3, -1e9)],
)
def test_origins_and_units_cost_no_digits(shift, scale, up):
    frame = blm.load_dataset("sleepstudy").sort_values("Days")
    plain = blm.LMM(
        "y ~ x + (x | g)", frame.rename(columns={"Reaction": "y", "Days": "x", "Subject": "g"})
    )
    moved = pd.DataFrame(
        {"y": frame["Reaction"] + up, "x": frame["Days"] * scale + shift, "g": frame["Subject"]}
    )
    streamed = blm.LMM("y ~ x + (x | g)", lambda: iter(batches(moved)))
    digits = np.finfo(float).eps * max(abs(up), abs(shift / scale)) * 1e3
    expected = plain.reml().criterion - 2 * np.log(scale)
    # the REML criterion has log|X'X|, so that it moves with the units of x
    assert streamed.reml().criterion == pytest.approx(
        expected + 4 * np.log(scale), abs=1e-9 + digits
    )


def test_levels_that_come_late_and_in_another_order():
    rng = np.random.default_rng(5)
    frame = pd.DataFrame(
        {
            "g": np.repeat([f"g{i}" for i in range(30, 0, -1)], 10),
            "f": np.repeat(["z", "m", "a"], 100),
            "x": rng.normal(size=300),
            "h": rng.integers(0, 9, 300)[::-1] * 7,
        }
    )
    frame["y"] = (
        frame["x"] + rng.normal(size=30)[np.repeat(np.arange(30), 10)] + rng.normal(size=300)
    )
    memory, streamed = both("y ~ x * f + (x | g) + (1 | h) + (1 | f:h)", frame)
    assert memory.design.spec.random[2].name == "f:h"
    assert_same_model(memory, streamed)


def test_columns_that_depend_on_each_other_are_the_same():
    frame = blm.load_dataset("Orthodont")
    frame["twice"] = 2 * frame["age"] - 1
    memory, streamed = both("distance ~ Sex + age + twice + (1 | Subject)", frame)
    assert streamed.design.aliased == ("twice",)
    assert_same_model(memory, streamed)


def test_priors_and_known_parameters():
    memory, streamed = both(
        MODELS["sleepstudy"], blm.load_dataset("sleepstudy"), priors="flat", fixed={"sigma": 25.0}
    )
    assert streamed.reml().criterion == pytest.approx(memory.reml().criterion, abs=CRITERION)
    changed = [model.update(priors="default").map().sds["Subject"] for model in (memory, streamed)]
    np.testing.assert_allclose(changed[0], changed[1], rtol=1e-6)


def test_many_levels():
    levels, rows = 100_000, 250_000
    rng = np.random.default_rng(3)
    g = rng.integers(0, levels, rows)
    y = rng.normal(size=levels)[g] + rng.normal(size=rows)
    frame = pd.DataFrame({"y": y, "g": g})
    parts = [frame.iloc[start : start + 50_000] for start in range(0, rows, 50_000)]
    streamed = blm.LMM("y ~ 1 + (1 | g)", parts)
    assert streamed.design.random[0].n_levels == len(np.unique(g))
    assert streamed.reml().sds["g"].iloc[0] == pytest.approx(1.0, abs=0.02)


# --- sources ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_frame():
    return blm.load_dataset("Orthodont").astype({"Subject": str, "Sex": str})


@pytest.fixture(scope="module")
def in_memory(text_frame):
    return blm.LMM(MODELS["Orthodont"], text_frame)


@pytest.fixture(scope="module")
def folder(text_frame, tmp_path_factory):
    """The data as Parquet files, a CSV file and an Arrow file."""
    path = tmp_path_factory.mktemp("sources")
    (path / "parts").mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(text_frame)), 3)):
        file = path / "parts" / f"{number}.parquet"
        text_frame.iloc[part].to_parquet(file, row_group_size=7, index=False)
    text_frame.to_csv(path / "data.csv", index=False)
    table = pa.Table.from_pandas(text_frame, preserve_index=False)
    with (
        pa.OSFile(str(path / "data.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as out,
    ):
        out.write_table(table)
    return path


SOURCES = {
    "file": lambda path, frame: path / "data.csv",
    "text": lambda path, frame: str(path / "data.arrow"),
    "folder": lambda path, frame: path / "parts",
    "glob": lambda path, frame: f"{path}/parts/*.parquet",
    "dataset": lambda path, frame: ds.dataset(path / "parts", format="parquet"),
    "table dataset": lambda path, frame: ds.dataset(pa.Table.from_pandas(frame)),
    "LazyFrame": lambda path, frame: pl.scan_parquet(path / "parts" / "*.parquet"),
    "LazyFrame of narwhals": lambda path, frame: nw.from_native(pl.from_pandas(frame).lazy()),
    "list of polars": lambda path, frame: [
        pl.from_pandas(part) for part in batches(frame) if len(part)
    ],
    "list of mappings": lambda path, frame: [dict(part) for part in batches(frame)],
    "function of batches": lambda path, frame: (
        lambda: iter(pa.Table.from_pandas(frame).to_batches(9))
    ),
    "function of a reader": lambda path, frame: lambda: pa.Table.from_pandas(frame).to_reader(9),
    "function of a source": lambda path, frame: lambda: ds.dataset(path / "parts"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources(kind, folder, text_frame, in_memory):
    assert_same_model(in_memory, blm.LMM(MODELS["Orthodont"], SOURCES[kind](folder, text_frame)))


def test_duckdb_relations(folder, in_memory):
    import duckdb

    relation = duckdb.connect().read_parquet(str(folder / "parts" / "*.parquet"))
    assert_same_model(in_memory, blm.LMM(MODELS["Orthodont"], relation))


def test_dask_data_frames(text_frame, in_memory):
    from dask.dataframe import from_pandas

    streamed = blm.LMM(MODELS["Orthodont"], from_pandas(text_frame, npartitions=4))
    assert_same_model(in_memory, streamed)


def test_frames_in_memory_stay_as_they_are(text_frame):
    for data in (
        text_frame,
        pl.from_pandas(text_frame),
        pa.Table.from_pandas(text_frame),
        dict(text_frame),
    ):
        assert len(blm.LMM(MODELS["Orthodont"], data).y) == len(text_frame)


@pytest.mark.parametrize(
    "data",
    [
        lambda t: iter([t]),
        lambda t: pa.Table.from_pandas(t).to_reader(),
        lambda t: (t for _ in "a"),
    ],
)
def test_what_can_be_read_once_is_read_once(data, text_frame):
    assert blm.LMM(MODELS["Orthodont"], data(text_frame)).nobs == len(text_frame)
    with pytest.raises(DataError, match=r"read only once.*function that returns a new iterator"):
        blm.LMM("distance ~ scale(age) + (1 | Subject)", data(text_frame))


# --- predictions to files, and the command line ------------------------------------------


def test_predictions_go_to_a_file(tmp_path, folder, text_frame):
    model = blm.LMM(MODELS["Orthodont"], folder / "parts")
    for number, fit in enumerate((model.reml(), model.fit(draws=50, chains=1, random_seed=1))):
        out = tmp_path / f"{number}.parquet"
        assert fit.predict(folder / "parts", out=out, random_seed=1, draws=50) is None
        found = pd.read_parquet(out)
        expected = fit.predict(text_frame, random_seed=1, draws=50)
        assert list(found.columns) == ["age", "Subject", "Sex", *expected.columns]
        assert found["Subject"].tolist() == text_frame["Subject"].tolist()
        centre = expected.columns[0]
        np.testing.assert_allclose(found[centre], expected[centre], rtol=1e-10)
        with pytest.raises(FileExistsError):
            fit.predict(folder / "parts", out=out)
    one = tmp_path / "one.parquet"
    fit.predict(text_frame.head(5), out=one, target="average", random_seed=1)
    np.testing.assert_allclose(
        pd.read_parquet(one)["mean"], fit.predict(text_frame.head(5), target="average")["mean"]
    )


def test_predictions_that_fail_leave_no_file(tmp_path, folder, text_frame):
    fit = blm.LMM(MODELS["Orthodont"], text_frame).reml()
    strange = text_frame.assign(Subject=["F01"] * 100 + ["nobody"] * 8)
    out = tmp_path / "never.parquet"
    with pytest.raises(DataError, match=r"nobody.*rows from 54 on of The list of 2 data frames"):
        fit.predict(list(halves(strange)), out=out)
    with pytest.raises(DataError, match=r"go to a file; give out="):
        fit.predict(folder / "parts")
    with pytest.raises(DataError, match="new rows"):
        fit.predict(out=out)
    with pytest.raises(ValueError, match="must end in"):
        fit.predict(text_frame, out=tmp_path / "a.csv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [["parts"], slow(["parts/*.parquet"]), ["data.csv", "--batches"]])
def test_the_command_line_reads_in_batches(data, folder, capsys):
    name, *options = data
    quick = ["--draws", "100", "--seed", "1", "--quiet"]
    assert main([MODELS["Orthodont"], str(folder / name), *options, *quick]) == 0
    shown = capsys.readouterr().out
    assert "Number of obs: 108, groups: Subject, 27" in shown
    assert "sd[Subject, age]" in shown


# --- hostile data ----------------------------------------------------------------------


def parquet(tmp_path, *frames):
    for number, frame in enumerate(frames):
        frame.to_parquet(tmp_path / f"{number}.parquet", index=False)
    return tmp_path


def halves(frame):
    return frame.iloc[: len(frame) // 2], frame.iloc[len(frame) // 2 :]


def test_whole_numbers_with_a_gap_in_the_last_file(tmp_path, text_frame):
    numbered = text_frame.assign(number=text_frame["Subject"].str[1:].astype(int))
    first, second = halves(numbered)
    second = second.assign(number=second["number"].astype(float))
    second.iloc[-1, second.columns.get_loc("number")] = np.nan
    formula = "distance ~ age + number + (1 | number)"
    memory = blm.LMM(formula, pd.concat([first, second]))
    assert_same_model(memory, blm.LMM(formula, parquet(tmp_path, first, second)))
    assert memory.design.n_dropped == 1


def test_a_column_of_another_type_in_a_later_file(tmp_path, text_frame):
    first, second = halves(text_frame)
    with pytest.raises(DataError, match=r"types in different files that do not go together.*age"):
        blm.LMM(MODELS["Orthodont"], parquet(tmp_path, first, second.astype({"age": str})))
    with pytest.raises(DataError, match=r"`age` holds numbers at first and text after row 54"):
        blm.LMM(MODELS["Orthodont"], [first, second.astype({"age": str})])


def test_a_column_that_is_not_in_a_later_file(tmp_path, text_frame):
    first, second = halves(text_frame)
    with pytest.raises(DataError, match=r"1\.parquet` has no column `age`"):
        blm.LMM(MODELS["Orthodont"], parquet(tmp_path, first, second.drop(columns="age")))
    with pytest.raises(DataError, match=r"batch 2 has no column `age`"):
        blm.LMM(MODELS["Orthodont"], [first, second.drop(columns="age")])


def test_a_corrupt_file_in_the_middle(tmp_path, text_frame):
    parts = np.array_split(np.arange(len(text_frame)), 3)
    path = parquet(tmp_path, *(text_frame.iloc[part] for part in parts))
    file = path / "1.parquet"
    content = bytearray(file.read_bytes())
    content[4:900] = b"\xff" * 896
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"3 files at .* cannot be read after row \d+"):
        blm.LMM(MODELS["Orthodont"], path)
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot be read"):
        blm.LMM(MODELS["Orthodont"], path)


def test_an_error_of_the_function_of_the_user_is_its_own(text_frame):
    def stopped():
        yield text_frame
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        blm.LMM(MODELS["Orthodont"], stopped)


def test_data_that_change_between_two_readings(text_frame):
    count = iter([text_frame, text_frame, text_frame.iloc[:-1], text_frame.iloc[:-1]])
    with pytest.raises(DataError, match=r"changed while it was read"):
        blm.LMM("distance ~ scale(age) + (1 | Subject)", lambda: iter([next(count)]))


def test_categories_in_different_orders(text_frame):
    first, second = (part.copy() for part in halves(text_frame))
    first["Sex"] = pd.Categorical(first["Sex"], ["Male", "Female"])
    second["Sex"] = pd.Categorical(second["Sex"], ["Female", "Male"])
    with pytest.raises(DataError, match=r"categories of `Sex` are in another order"):
        blm.LMM(MODELS["Orthodont"], [first, second])


@pytest.mark.parametrize(
    ("change", "formula", "error", "words"),
    [
        ({}, "distance ~ age + (1 | nowhere)", FormulaError, "`nowhere` is not a column"),
        ({}, "distance ~ age + (1 | distance)", FormulaError, "not whole"),
        ({"age": np.nan}, "distance ~ age + (1 | Subject)", DataError, "All 108 values of `age`"),
        (
            {"distance": 1.0},
            "distance ~ age + (1 | Subject)",
            DataError,
            "same value, 1, in all 108",
        ),
        (
            {"Sex": "Male"},
            "distance ~ Sex + (1 | Subject)",
            DataError,
            "has one level, 'Male', in the 108",
        ),
        (
            {"Subject": "a"},
            "distance ~ age + (1 | Subject)",
            DataError,
            "one level, 'a', in the 108",
        ),
        ({"age": np.inf}, "distance ~ age + (1 | Subject)", DataError, "`age` is infinite"),
        (
            {"age": 1e60},
            "distance ~ age + (1 | Subject)",
            DataError,
            "too large for double precision",
        ),
        ({"Subject": range(108)}, "distance ~ age + (1 | Subject)", DataError, "as many levels as"),
        (
            {"Sex": [str(i) for i in range(108)]},
            "distance ~ Sex + (1 | Subject)",
            DataError,
            "look like numbers",
        ),
    ],
)
def test_errors_are_those_of_data_in_memory(change, formula, error, words, text_frame):
    frame = text_frame.assign(**change)
    raised = []
    for data in (frame, batches(frame)):
        with pytest.raises(error, match=words) as caught:
            blm.LMM(formula, data)
        raised.append(str(caught.value))
    if "infinite" not in words:
        assert raised[0] == raised[1]


def test_empty_sources(tmp_path, text_frame):
    for data in ([text_frame.iloc[:0]], lambda: iter([])):
        with pytest.raises(DataError, match="The data have no rows"):
            blm.LMM(MODELS["Orthodont"], data)
    for path in (tmp_path, tmp_path / "*.parquet", tmp_path / "no.csv"):
        with pytest.raises(DataError, match="No file is found"):
            blm.LMM(MODELS["Orthodont"], path)
    (tmp_path / "a.xlsx").write_text("")
    with pytest.raises(DataError, match=r"format of .*a\.xlsx` is not known"):
        blm.LMM(MODELS["Orthodont"], tmp_path / "a.xlsx")


def test_a_list_of_files_is_their_rows(tmp_path):
    frame = blm.load_dataset("sleepstudy")
    formula = "Reaction ~ Days + (Days | Subject)"
    paths = [tmp_path / name for name in ("b.parquet", "a.parquet")]
    frame.iloc[:70].to_parquet(paths[0])
    frame.iloc[70:].to_parquet(paths[1])
    expected = blm.LMM(formula, batches(frame)).reml()
    for data in (paths, [str(path) for path in paths], tuple(paths), [tmp_path / "*.parquet"]):
        assert blm.LMM(formula, data).reml().criterion == pytest.approx(expected.criterion)
    products = blm.CrossProducts.of(formula, paths)
    assert blm.LMM.from_products(products).reml().criterion == pytest.approx(expected.criterion)


def test_lists_of_files_that_do_not_go_together(tmp_path):
    frame = blm.load_dataset("sleepstudy")
    formula = "Reaction ~ Days + (Days | Subject)"
    frame.to_parquet(tmp_path / "a.parquet")
    frame.drop(columns="Days").to_parquet(tmp_path / "b.parquet")
    frame.to_csv(tmp_path / "c.csv", index=False)
    for names, words in (
        (["a.parquet", "b.parquet"], "has no column `Days`"),
        (["a.parquet", "c.csv"], "several formats, `csv`, `parquet`"),
        (["a.parquet", "d.parquet"], "No file is found at .*d.parquet"),
        (["a.parquet", "a.parquet"], "a.parquet` more than once"),
    ):
        with pytest.raises(DataError, match=words):
            blm.LMM(formula, [tmp_path / name for name in names])
    with pytest.raises(DataError, match=r"not `s3://here/a\.parquet`"):
        blm.LMM(formula, [str(tmp_path / "a.parquet"), "s3://here/a.parquet"])


# --- without rows ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    return both(MODELS["Orthodont"], blm.load_dataset("Orthodont"))


TABLES = {
    "summary": lambda fit: fit.summary(),
    "varcorr": lambda fit: fit.varcorr(),
    "ranef": lambda fit: fit.ranef()["Subject"],
    "coef": lambda fit: fit.coef()["Subject"],
    "icc": lambda fit: fit.icc(),
    "r2": lambda fit: fit.r2(),
    "variance_partition": lambda fit: fit.variance_partition(),
    "means": lambda fit: fit.means("Sex", at={"age": 9}).table(),
    "contrasts": lambda fit: fit.contrasts("Sex").table(),
    "hypothesis": lambda fit: fit.hypothesis("age = 0.5").table(),
    "icc at covariates": lambda fit: fit.icc(at={"age": [8.0, 14.0]}),
    "slopes of new rows": lambda fit: fit.slopes(
        "age", new=blm.load_dataset("Orthodont"), by="Sex"
    ).table(),
    "tidy": lambda fit: fit.tidy(),
    "glance": lambda fit: fit.glance(),
    "new rows": lambda fit: fit.predict(blm.load_dataset("Orthodont").head(3), random_seed=1),
    "new levels": lambda fit: fit.predict(
        {"age": [9.0], "Sex": ["Male"], "Subject": ["new"]}, target="new", random_seed=1
    ),
    "population": lambda fit: fit.predict(
        {"age": [9.0], "Sex": ["Male"]}, target="population", random_seed=1
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_answers_that_need_no_rows(name, pair):
    fits = [model.reml() for model in pair]
    pd.testing.assert_frame_equal(
        TABLES[name](fits[1]), TABLES[name](fits[0]), rtol=1e-6, atol=1e-8
    )


def test_words_need_no_rows(pair):
    fits = [model.reml() for model in pair]
    assert repr(fits[0]) == repr(fits[1])
    assert fits[0].methods_paragraph() == fits[1].methods_paragraph()
    assert repr(pair[0]) == repr(pair[1])
    assert str(fits[0].check.singularity()) == str(fits[1].check.singularity())


def test_draws_need_no_rows(pair):
    fits = [model.fit(draws=100, chains=2, random_seed=1) for model in pair]
    assert "observed_data" not in fits[1].data.children
    for table in (lambda f: f.fixef(), lambda f: f.r2(), lambda f: f.icc()):
        pd.testing.assert_frame_equal(table(fits[1]), table(fits[0]), rtol=1e-3)
    compared = [blm.compare_reml(fit, model.reml()) for fit, model in zip(fits, pair, strict=True)]
    assert list(compared[0].index) == list(compared[1].index)
    laplace = pair[1].fit(method="laplace", draws=50, chains=1, random_seed=1)
    assert laplace.method == "laplace"


NEEDS_ROWS = {
    "X": lambda model: model.X,
    "y": lambda model: model.y,
    "Z": lambda model: model.Z,
    "predict": lambda model: model.reml().predict(),
    "simulate": lambda model: model.reml().simulate(2),
}


@pytest.mark.parametrize("name", NEEDS_ROWS)
def test_what_needs_rows_says_so(name, pair):
    with pytest.raises(
        DataError, match=r"needs the rows of the data all at once.*data frame in memory"
    ):
        NEEDS_ROWS[name](pair[1])


def test_copies(pair):
    model = pair[1]
    for made in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert made.reml().criterion == model.reml().criterion
    assert len(pickle.dumps(model)) < 100_000


SAVED = {
    "Orthodont": "distance ~ ns(age, knots=[11]) * Sex + poly(age, 2) + (scale(age) | Subject)",
    "Oats": "yield ~ nitro + C(Variety, Sum) + (1 | Block / Variety)",
    "Penicillin": "double(diameter) ~ 1 + (1 | plate) + (1 | sample)",
}


def double(values):
    return 2 * values


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(("Orthodont", ".nc"), slow("Orthodont", ".zarr"), slow("Oats", ".nc")),
        *(slow("Oats", ".zarr"), slow("Penicillin", ".nc"), ("Penicillin", ".zarr")),
    ],
)
def test_posteriors_are_saved_and_loaded(name, suffix, tmp_path):
    frame = blm.load_dataset(name)
    frame["w"] = np.linspace(1, 2, len(frame))
    functions = {"double": double}
    model = blm.LMM(SAVED[name], batches(frame), weights="w", functions=functions)
    post = model.fit(draws=40, chains=2, random_seed=1)
    post.save(tmp_path / f"post{suffix}")
    again = blm.load(tmp_path / f"post{suffix}", functions=functions)
    assert repr(again) == repr(post)
    assert again.model.reml.criterion == post.model.reml.criterion
    new = frame.iloc[::9]
    for answer in (
        lambda fit: fit.predict(new, random_seed=2),
        lambda fit: fit.predict(new, target="population", random_seed=2),
        lambda fit: fit.r2(),
        lambda fit: fit.means().table(),
        lambda fit: fit.priors.table(),
    ):
        pd.testing.assert_frame_equal(answer(again), answer(post))
    with pytest.raises(DataError, match="with_source"):
        again.loo()


def test_files_whose_sums_do_not_fit_are_refused(pair):
    post = pair[1].fit(draws=20, chains=1, random_seed=1)
    description, arrays = pack_sums(post.design, post.priors)
    draws = post.data["posterior"].to_dataset()
    for name, wrong in {
        "random 0": arrays["random 0"][:, :1],
        "products": arrays["products"] * np.nan,
        "kept": np.ones(2, dtype=bool),
        "factor 0 cells": arrays["factor 0 cells"] + 1,
        "side 0 low": arrays["side 0 low"][1:],
    }.items():
        with pytest.raises(StorageError, match="do not fit"):
            unpack_sums(description, arrays | {name: wrong}, draws)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"missing": "keep"}, r"missing='keep'.*only sums over rows.*predict\(new\) after the fit"),
        ({"family": "student"}, r"family='student'.*no function of sums over rows.*data frame"),
        ({"sigma": "~ Sex"}, r"sigma='~ Sex'.*no function of sums.*residual='strata\(f\)'"),
        ({"weights": np.ones(108)}, r"name of a column, got ndarray.*as a column"),
    ],
)
def test_what_is_for_data_in_memory_is_refused(options, words, text_frame):
    with pytest.raises(DataError, match=words):
        blm.LMM(MODELS["Orthodont"], [text_frame], **options)


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("distance ~ ns(age, df=3) + (1 | Subject)", "Name the knots"),
        ("distance ~ bs(age, df=5) + (1 | Subject)", "Name the knots"),
        ("distance ~ cr(age, df=3) + (1 | Subject)", "quantiles of the whole column"),
        ("distance ~ lag(age) + (1 | Subject)", "another row"),
    ],
)
def test_terms_that_need_whole_columns_are_refused(formula, words, text_frame):
    with pytest.raises(DataError, match=words):
        blm.LMM(formula, [text_frame])


@pytest.mark.parametrize("formula", [None, "~ . - age:Sex"])
def test_updates_to_what_needs_rows_are_refused(formula, pair):
    with pytest.raises(DataError, match=r"missing='keep' is not there for"):
        pair[1].update(formula, missing="keep")
