"""What needs rows of data beyond memory reads them again and gives what it gives in memory."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_beyond_memory import MODELS, batches, both

import bayeslmm as blm
from bayeslmm.data import row_tables
from bayeslmm.exceptions import DataError, FormulaError, StorageError

SEARCH = 1e-6
"""Largest difference relative to the largest value: searches end within rounding of each other."""


def assert_close(found, expected, tolerance=SEARCH):
    """Tables or series with the same labels and, to a share of the largest in a column, values."""
    found, expected = pd.DataFrame(found), pd.DataFrame(expected)
    assert list(found.columns) == list(expected.columns)
    assert found.index.tolist() == expected.index.tolist()
    for name in found:
        if not pd.api.types.is_float_dtype(expected[name].dtype):
            assert found[name].tolist() == expected[name].tolist()
            continue
        size = np.nanmax(np.abs(expected[name].to_numpy()), initial=1e-300)
        np.testing.assert_allclose(
            found[name], expected[name], rtol=0, atol=tolerance * size, err_msg=str(name)
        )


@pytest.fixture
def few_rows(monkeypatch):
    """Results of more than fifty rows are too many for memory."""
    monkeypatch.setattr(row_tables, "BATCH", 50)


@pytest.fixture(scope="module")
def pair():
    return both(MODELS["Orthodont"], blm.load_dataset("Orthodont"))


# --- fitted values, residuals, augment ---------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_fitted_values_and_residuals(name):
    memory, streamed = (model.reml() for model in both(MODELS[name], blm.load_dataset(name)))
    for values in (
        lambda fit: fit.fitted(),
        lambda fit: fit.fitted(random_effects=False),
        lambda fit: fit.residuals("pearson"),
        lambda fit: fit.augment(),
    ):
        assert_close(values(streamed), values(memory))


def test_gaps_weights_and_offsets():
    frame = blm.load_dataset("Orthodont").reset_index(drop=True)
    rng = np.random.default_rng(1)
    frame["w"] = rng.uniform(0.5, 3.0, len(frame))
    frame["base"] = rng.normal(size=len(frame))
    for name in ("age", "distance", "w"):
        frame.loc[rng.choice(frame.index, 4, replace=False), name] = np.nan
    formula = "distance ~ age * Sex + offset(base) + (age | Subject)"
    memory, streamed = (model.reml() for model in both(formula, frame, weights="w"))
    assert_close(streamed.augment(), memory.augment())
    assert streamed.augment().attrs["rows_dropped"] == memory.augment().attrs["rows_dropped"]
    assert_close(streamed.residuals("normalised"), memory.residuals("normalised"))


def test_posteriors(pair):
    memory, streamed = (model.fit(draws=50, chains=2, random_seed=1) for model in pair)
    assert_close(streamed.augment(prob=0.8), memory.augment(prob=0.8))
    assert_close(streamed.fitted(), memory.fitted())


def test_files_have_what_is_returned(pair, tmp_path, few_rows):
    memory, streamed = (model.reml() for model in pair)
    for number, (values, expected) in enumerate(
        (
            (lambda out: streamed.fitted(out=out), memory.fitted()),
            (lambda out: streamed.residuals("pearson", out=out), memory.residuals("pearson")),
            (lambda out: streamed.augment(out=out), memory.augment().iloc[:, -4:]),
            (lambda out: memory.fitted(out=out), memory.fitted()),
        )
    ):
        out = tmp_path / f"{number}.parquet"
        assert values(out) is None
        found = pd.read_parquet(out)
        assert list(found.columns[:5]) == [".row", "Sex", "Subject", "age", "distance"]
        assert found[".row"].tolist() == list(range(108))
        assert_close(found.iloc[:, 5:], pd.DataFrame(expected).reset_index(drop=True))
        with pytest.raises(FileExistsError):
            values(out)


def test_many_rows_are_refused_without_a_file(pair, few_rows):
    fit = pair[1].reml()
    for values in (fit.fitted, fit.residuals, fit.augment):
        with pytest.raises(DataError, match=r"a row for each of 108 rows.*give out="):
            values()
    with pytest.raises(ValueError, match="must end in"):
        fit.fitted(out="a.csv")
    with pytest.raises(DataError, match=r"data= and incomplete='keep' are for a data frame"):
        fit.augment(incomplete="keep")


# --- where the rows are --------------------------------------------------------------------


def test_the_source_is_known_while_the_model_lives(pair, tmp_path):
    frame = blm.load_dataset("Orthodont")
    fit = pair[1].fit(draws=20, chains=1, random_seed=1)
    expected = fit.fitted()
    for made in (copy.copy(fit), copy.deepcopy(fit), blm.LMM.from_fit(fit).reml()):
        assert len(made.fitted()) == 108
    fit.save(tmp_path / "post.nc")
    frame.astype({"Subject": str, "Sex": str}).to_parquet(tmp_path / "rows.parquet")
    for lost in (blm.load(tmp_path / "post.nc"), pickle.loads(pickle.dumps(fit))):
        with pytest.raises(DataError, match=r"fit\.with_source\(source\)"):
            lost.fitted()
        for source in (batches(frame, seed=5), frame, tmp_path / "rows.parquet"):
            pd.testing.assert_series_equal(lost.with_source(source).fitted(), expected)
        with pytest.raises(FormulaError, match="age"):
            lost.with_source([frame.drop(columns="age")])
    model = pair[1].with_source(batches(frame))
    assert model.system is pair[1].system
    with pytest.raises(DataError, match="has its rows in memory"):
        pair[0].with_source([frame])


def swapped(frame):
    """The responses of two rows of different levels exchanged."""
    values = frame["distance"].to_numpy().copy()
    values[[0, 40]] = values[[40, 0]]
    return frame.assign(distance=values)


OTHER_ROWS = {
    "a row less": lambda frame: frame.iloc[:-1],
    "a row twice": lambda frame: pd.concat([frame, frame.iloc[:1]]),
    "another response": lambda frame: frame.assign(
        distance=frame["distance"] + (np.arange(108) == 40)
    ),
    "another covariate": lambda frame: frame.assign(age=frame["age"] + (np.arange(108) == 40)),
    "two responses exchanged": swapped,
    "a new level": lambda frame: frame.assign(
        Subject=frame["Subject"].astype(str).where(np.arange(108) != 60, "nobody")
    ),
    "a new category": lambda frame: frame.assign(
        Sex=frame["Sex"].astype(str).where(np.arange(108) != 60, "other")
    ),
    "a gap": lambda frame: frame.assign(age=frame["age"].where(np.arange(108) != 30)),
}


@pytest.mark.parametrize("change", OTHER_ROWS)
def test_other_rows_are_an_error_and_leave_no_file(change, tmp_path):
    frame = blm.load_dataset("Orthodont").astype({"Subject": str, "Sex": str})
    fit = blm.LMM(MODELS["Orthodont"], batches(frame)).reml()
    other = fit.with_source(batches(OTHER_ROWS[change](frame)))
    with pytest.raises(DataError, match="not the rows that the model was made of"):
        other.fitted(out=tmp_path / "never.parquet")
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_rows_does_not_matter(pair):
    frame = blm.load_dataset("Orthodont")
    order = np.random.default_rng(2).permutation(len(frame))
    fit = pair[1].reml()
    turned = fit.with_source(batches(frame.iloc[order]))
    np.testing.assert_array_equal(turned.fitted(), fit.fitted().to_numpy()[order])


class Broken:
    """Batches that raise after a few."""

    def __init__(self, frame, error):
        self.frame, self.error = frame, error

    def __call__(self):
        yield from batches(self.frame)[:3]
        if self.error is not None:
            raise self.error
        yield from batches(self.frame)[3:]


def test_sources_that_die_leave_no_file(tmp_path):
    source = Broken(blm.load_dataset("Orthodont"), None)
    fit = blm.LMM(MODELS["Orthodont"], source).reml()
    for error, raised in (
        (OSError("gone"), DataError),
        (ValueError("corrupt"), DataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        source.error = error
        with pytest.raises(raised):
            fit.fitted(out=tmp_path / "never.parquet")
        assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file(pair, tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match="No space left"):
        pair[1].reml().augment(out=tmp_path / "never.parquet")
    assert not list(tmp_path.iterdir())
