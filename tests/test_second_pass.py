"""What needs rows of data beyond memory reads them again and gives what it gives in memory."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pymc as pm
import pytest
from slow_cases import slow
from test_beyond_memory import MODELS, batches, both

import bayeslmm as blm
from bayeslmm.checks import loo, residual_checks, row_extremes, row_forms, row_scores, streamed_loo
from bayeslmm.data import row_tables, second_pass
from bayeslmm.exceptions import DataError, FormulaError, SamplingError, StorageError

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


@cache
def models(name):
    """The model of a data set in memory and that of its batches."""
    return both(MODELS[name], blm.load_dataset(name).reset_index(drop=True))


FEW = ("Dyestuff2", "fev", "Oats", "Penicillin", "sleepstudy")
"""A variance of zero, gaps, nested and crossed factors, slopes."""

SOME_MODELS = [name if name in FEW else slow(name) for name in MODELS]


@pytest.fixture(scope="module")
def pair():
    return models("Orthodont")


@pytest.fixture(scope="module")
def estimates(pair):
    return tuple(model.reml() for model in pair)


@pytest.fixture(scope="module")
def post(pair):
    """Draws of the model of batches."""
    return pair[1].fit(draws=60, chains=1, random_seed=1)


# --- fitted values, residuals, augment ---------------------------------------------------


@pytest.mark.parametrize("name", SOME_MODELS)
def test_fitted_values_and_residuals(name):
    memory, streamed = (model.reml() for model in models(name))
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


def test_files_have_what_is_returned(estimates, tmp_path, few_rows):
    memory, streamed = estimates
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


def test_many_rows_are_refused_without_a_file(estimates, few_rows):
    fit = estimates[1]
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


@pytest.fixture(scope="module")
def text_frame():
    return blm.load_dataset("Orthodont").astype({"Subject": str, "Sex": str})


@pytest.fixture(scope="module")
def text_fit(text_frame):
    return blm.LMM(MODELS["Orthodont"], batches(text_frame)).reml()


@pytest.mark.parametrize("change", OTHER_ROWS)
def test_other_rows_are_an_error_and_leave_no_file(change, text_frame, text_fit, tmp_path):
    frame, fit = text_frame, text_fit
    other = fit.with_source(batches(OTHER_ROWS[change](frame)))
    with pytest.raises(DataError, match="not the rows that the model was made of"):
        other.fitted(out=tmp_path / "never.parquet")
    assert not list(tmp_path.iterdir())


def test_the_order_of_the_rows_does_not_matter(estimates):
    frame = blm.load_dataset("Orthodont")
    order = np.random.default_rng(2).permutation(len(frame))
    fit = estimates[1]
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


def test_a_full_disk_leaves_no_file(estimates, tmp_path, monkeypatch):
    def full(self, *args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(StorageError, match="No space left"):
        estimates[1].augment(out=tmp_path / "never.parquet")
    assert not list(tmp_path.iterdir())


# --- cross-validation ------------------------------------------------------------------------

SCORES = 1e-8
"""Largest difference of a score in memory and streamed, at the same draws."""


@pytest.fixture
def two_anew(monkeypatch):
    """At most two scores are sampled anew, which is what takes the time."""
    for module in (loo, streamed_loo):
        monkeypatch.setattr(module, "MOST_RESAMPLED", 2)


def in_memory(model, post):
    """The posterior of the data in memory with the draws of another one."""
    return type(post)(model.model, post.data)


def assert_same_scores(streamed, memory):
    for name in ("elpd", "se", "p"):
        assert streamed[name] == pytest.approx(memory[name], abs=SCORES)
    for name in ("elpd_i", "pareto_k"):
        np.testing.assert_allclose(streamed[name], memory[name], rtol=0, atol=SCORES)
        assert streamed[name].indexes["obs_id"].equals(memory[name].indexes["obs_id"])
    assert (streamed.n_samples, streamed.n_data_points) == (memory.n_samples, memory.n_data_points)
    assert streamed.n_poor == int((memory.pareto_k > memory.good_k).sum())


@pytest.mark.parametrize("name", SOME_MODELS)
def test_scores_of_rows(name, two_anew):
    memory, streamed = models(name)
    post = streamed.fit(draws=60, chains=1, random_seed=1)
    assert_same_scores(post.loo(), in_memory(memory, post).loo())


NESTED = pd.DataFrame(
    {
        "s": np.repeat(np.arange(210), 6) % 70,
        "c": np.repeat(np.arange(210), 6),
        "p": np.repeat(np.arange(630), 2),
        "x": np.random.default_rng(8).normal(size=1260),
        "w": np.random.default_rng(9).uniform(0.5, 2.0, 1260),
        "y": np.random.default_rng(7).normal(size=1260)
        + np.random.default_rng(6).normal(size=630).repeat(2)
        + np.random.default_rng(5).normal(size=210).repeat(6),
    }
)


@pytest.mark.parametrize(
    ("formula", "priors"),
    [
        ("y ~ x + (x | s) + (1 | c) + (1 | p)", None),
        ("y ~ 1 + (1 | c)", "flat"),
        ("y ~ x", None),
        slow("y ~ x + (1 | s) + (0 + x | c)", {"x": pm.Laplace.dist(0.0, 0.3)}),
    ],
)
def test_scores_of_nested_crossed_and_no_factors(formula, priors, two_anew):
    nested = "p" in formula
    frame = NESTED if nested else NESTED.iloc[::3].reset_index(drop=True)
    memory, streamed = both(formula, frame, weights="w", priors=priors)
    if nested:
        assert streamed.system.nested
    post = streamed.fit(method="laplace", draws=40, chains=1, random_seed=1)
    expected = in_memory(memory, post)
    assert_same_scores(post.loo(), expected.loo())
    np.testing.assert_allclose(post.check.loo_pit(), expected.check.loo_pit(), rtol=0, atol=SCORES)


def test_few_rows_at_a_time_give_the_same_scores(post, monkeypatch, two_anew):
    expected = post.loo()
    monkeypatch.setattr(row_scores, "ENTRIES", 500)
    monkeypatch.setattr(row_forms, "ENTRIES", 300)
    np.testing.assert_allclose(post.loo().elpd_i, expected.elpd_i, rtol=0, atol=SCORES)


def test_scores_go_to_a_file(pair, post, tmp_path, few_rows, two_anew):
    memory = pair[0]
    expected = in_memory(memory, post).loo()
    out = tmp_path / "scores.parquet"
    found = post.loo(out=out)
    assert found.elpd == pytest.approx(expected.elpd, abs=SCORES)
    assert found.se == pytest.approx(expected.se, abs=SCORES)
    assert found.elpd_i is None
    assert f"{found.n_poor} of 108 rows have a Pareto k above" in str(found)
    rows = pd.read_parquet(out)
    assert (rows["pareto_k"] == 0).any()  # sampled anew after the row had been written
    np.testing.assert_allclose(rows["elpd_i"], expected.elpd_i, rtol=0, atol=SCORES)
    np.testing.assert_allclose(rows["pareto_k"], expected.pareto_k, rtol=0, atol=SCORES)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    assert post.loo().elpd == found.elpd
    with pytest.raises(DataError, match="give out="):
        post.check.loo_pit()
    post.check.loo_pit(out=tmp_path / "pit.parquet")
    np.testing.assert_allclose(
        pd.read_parquet(tmp_path / "pit.parquet")["loo_pit"],
        in_memory(memory, post).check.loo_pit(),
        rtol=0,
        atol=SCORES,
    )
    for wrong in (lambda: in_memory(memory, post).loo(out=out), lambda: post.loo("Sex", out=out)):
        with pytest.raises(ValueError, match="single rows of data beyond memory"):
            wrong()


def test_scores_of_other_rows_are_an_error(post, tmp_path):
    frame = blm.load_dataset("Orthodont")
    other = post.with_source(batches(swapped(frame)))
    with pytest.raises(DataError, match="not the rows that the model was made of"):
        other.loo(out=tmp_path / "never.parquet")
    assert not list(tmp_path.iterdir())


def test_rows_that_alone_determine_a_fixed_effect():
    frame = blm.load_dataset("Orthodont").reset_index(drop=True)
    frame["alone"] = (np.arange(108) == 70).astype(float)
    memory, streamed = both("distance ~ age + alone + (1 | Subject)", frame, priors="flat")
    post = streamed.fit(draws=20, chains=1, random_seed=1)
    for fit in (post, in_memory(memory, post)):
        with pytest.raises(SamplingError, match="Without 1 row the fixed effects are not"):
            fit.loo()


# --- checks ------------------------------------------------------------------------------------


def assert_same_report(streamed, memory, tables):
    for name in tables:
        assert_close(getattr(streamed, name), getattr(memory, name), 1e-4)
    assert streamed.messages == memory.messages
    assert streamed.heading == memory.heading


REPORTS = {
    "residuals": (lambda fit: fit.check.residuals(20, random_seed=1), ("table", "residuals")),
    "influence": (lambda fit: fit.check.influence(progressbar=False), ("table",)),
    "levels": (lambda fit: fit.check.influence("Subject", progressbar=False), ("table",)),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("sampled", [False, True])
def test_checks_are_those_of_all_rows(name, sampled, pair, estimates, post):
    report, tables = REPORTS[name]
    fits = [in_memory(pair[0], post), post] if sampled else estimates
    assert_same_report(report(fits[1]), report(fits[0]), tables)


@pytest.mark.parametrize("by", ["Subject", "Sex", "age"])
def test_scores_of_levels(by, pair, post, two_anew):
    found, expected = post.loo(by), in_memory(pair[0], post).loo(by)
    np.testing.assert_allclose(found.elpd_i, expected.elpd_i, rtol=0, atol=SCORES)
    assert str(found) == str(expected)


# --- averages over rows --------------------------------------------------------------------------


AVERAGES = {
    "slopes": lambda fit: fit.slopes("age"),
    "slopes by": lambda fit: fit.slopes("age", by="Sex"),
    "slopes by two": lambda fit: fit.slopes("age", by=["Sex", "age"]),
    "predictions": lambda fit: fit.average_predictions(),
    "predictions by": lambda fit: fit.average_predictions(["Sex", "Subject"]),
    "factor": lambda fit: fit.comparisons("Sex", by="age"),
    **{
        str(change): lambda fit, change=change: fit.comparisons("age", change)
        for change in (2, (8, 14), "sd", "2sd", "iqr", "minmax")
    },
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_over_rows(name, estimates):
    memory, streamed = (AVERAGES[name](fit) for fit in estimates)
    assert streamed.title == memory.title
    pd.testing.assert_frame_equal(streamed.table(), memory.table(), rtol=1e-5, atol=1e-7)


def test_averages_with_random_effects(pair, post):
    memory = pair[0]
    for answer in (
        lambda fit: fit.average_predictions("Subject", target="conditional"),
        lambda fit: fit.slopes("age", by="Sex", target="conditional"),
    ):
        pd.testing.assert_frame_equal(
            answer(post).table(), answer(in_memory(memory, post)).table(), rtol=1e-9
        )


def test_averages_over_other_data_in_batches(estimates, tmp_path):
    new = blm.load_dataset("Orthodont").iloc[::3].astype({"Subject": str, "Sex": str})
    new.to_parquet(tmp_path / "new.parquet")
    memory = estimates[0]
    found = memory.slopes("age", by="Sex", new=tmp_path / "new.parquet")
    pd.testing.assert_frame_equal(found.table(), memory.slopes("age", by="Sex", new=new).table())
    with pytest.raises(DataError, match="have no column `age`"):
        memory.comparisons("age", new=[new.drop(columns="age")])


# --- residual checks in two readings ---------------------------------------------------------

BINNED = {
    "normality of residuals": 1e-4,  # bins of a 64th of a standard deviation
    "outliers": 1.0,  # those in the bin of the limit
    "spread against fitted": 0.01,  # ranks in 64 cells
}
"""Largest differences of statistics of residuals that are counted in bins."""

CHANCE = 4.0
"""Standard errors of a difference of two means of simulated statistics."""


def assert_same_checks(streamed, memory, tolerance):
    expected = memory.table.drop(index="normality of whitened y - X beta", errors="ignore")
    assert list(streamed.table.index) == list(expected.index)
    for name, row in expected.iterrows():
        found = streamed.table.loc[name]
        assert found["observed"] == pytest.approx(
            row["observed"], abs=BINNED.get(name, 0.0) + tolerance, rel=tolerance
        )
        p = np.clip(row["p_value"], 0.01, 0.99)
        if name != "largest residual":
            error = np.sqrt(2.0 * p * (1.0 - p) / streamed.draws)
            assert abs(found["p_value"] - row["p_value"]) < CHANCE * error, name
    assert streamed.largest["case"].tolist() == memory.largest["case"].tolist()
    np.testing.assert_allclose(
        streamed.largest["deviation"].tolist(), memory.largest["deviation"].tolist(), rtol=tolerance
    )


@pytest.mark.parametrize("name", ["Orthodont", "Penicillin", slow("Pixel")])
def test_residual_checks_in_two_readings(name, few_rows):
    frame = blm.load_dataset(name).reset_index(drop=True)
    rng = np.random.default_rng(0)
    frame["w"] = rng.uniform(0.5, 2.0, len(frame))
    memory, streamed = (model.reml() for model in both(MODELS[name], frame, weights="w"))
    found = streamed.check.residuals(100, random_seed=1)
    expected = memory.check.residuals(100, random_seed=1)
    assert_same_checks(found, expected, 1e-5)
    assert found.heading == expected.heading
    assert any("random sample of" in message for message in found.messages)
    assert_close(found.residuals.iloc[:, :4], expected.residuals.iloc[:, :4])


@pytest.mark.slow
def test_residual_checks_of_nested_factors_in_two_readings(few_rows):
    memory, streamed = (
        model.reml() for model in both("y ~ x + (x | s) + (1 | c) + (1 | p)", NESTED, weights="w")
    )
    assert streamed.model.system.nested
    found = streamed.check.residuals(40, random_seed=1)
    assert_same_checks(found, memory.check.residuals(40, random_seed=1), 1e-4)


@pytest.mark.parametrize("priors", [slow(None), {"age": pm.Laplace.dist(0.0, 0.3)}])
def test_residual_checks_of_posteriors_in_two_readings(priors, few_rows, monkeypatch):
    monkeypatch.setattr(residual_checks, "MOST_POINTS", 20)  # so that draws are the same
    memory, streamed = both(MODELS["Orthodont"], blm.load_dataset("Orthodont"), priors=priors)
    post = streamed.fit(draws=40, chains=1, random_seed=1)
    found = post.check.residuals(40, random_seed=1)
    expected = in_memory(memory, post).check.residuals(40, random_seed=1)
    assert_same_checks(found, expected, 0.05)  # where the row is left out anew, by other draws


def test_sources_that_change_their_order_cannot_be_simulated(few_rows):
    frame, rng = blm.load_dataset("Orthodont"), np.random.default_rng(3)

    def turning():
        return iter([frame.iloc[rng.permutation(len(frame))]])

    fit = blm.LMM(MODELS["Orthodont"], turning).reml()
    with pytest.raises(DataError, match="come in another order"):
        fit.check.residuals(20, random_seed=1)


# --- levels left out, from packed rows -----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "by"),
    [
        slow("Orthodont", "Subject"),
        slow("Orthodont", "Sex"),
        ("Orthodont", "Sex:age"),
        ("Pastes", "batch"),
        slow(None, "s"),
    ],
)
def test_levels_left_out_of_packed_rows(name, by, few_rows, two_anew):
    frame, formula = NESTED, "y ~ x + (1 | s)"
    if name is not None:
        frame, formula = blm.load_dataset(name).reset_index(drop=True), MODELS[name]
        frame["w"] = np.random.default_rng(0).uniform(0.5, 2.0, len(frame))
    memory, streamed = both(formula, frame, weights="w")
    post = streamed.fit(draws=60, chains=1, random_seed=1)
    expected = in_memory(memory, post)
    scores, right = post.loo(by), expected.loo(by)
    for name in ("elpd_i", "pareto_k"):
        np.testing.assert_allclose(scores[name], right[name], rtol=0, atol=SCORES)
    found = post.check.influence(by, progressbar=False)
    assert_same_report(found, expected.check.influence(by, progressbar=False), ("table", "shift"))


@pytest.mark.parametrize("by", [slow("Subject"), "age"])
def test_refits_without_levels_of_packed_rows(by, estimates, few_rows):
    memory, streamed = (fit.check.influence(by, progressbar=False) for fit in estimates)
    assert_same_report(streamed, memory, ("table", "estimates"))


def test_influence_of_many_rows_is_that_of_the_extremes(few_rows, monkeypatch):
    monkeypatch.setattr(row_extremes, "EXTREME", 10)
    frame = blm.load_dataset("Orthodont").reset_index(drop=True)
    frame.loc[40, "distance"] += 12.0
    frame.loc[70, "age"] = 20.0
    memory, streamed = (model.reml() for model in both(MODELS["Orthodont"], frame))
    whole = memory.check.influence(progressbar=False)
    found = streamed.check.influence(progressbar=False)
    assert_close(found.table, whole.table.loc[found.table.index], 1e-5)
    for name, values in whole.table.drop(columns="residual").items():
        assert set(values.abs().nlargest(10).index) <= set(found.table.index), name
    assert found.counts == {
        "cooks_distance": int((whole.table["cooks_distance"] > 1).sum()),
        "leverage": int((whole.table["leverage"] > 2 * whole.table["leverage"].mean()).sum()),
        "standardised": int((whole.table["standardised"].abs() > 3).sum()),
    }
    assert found.heading == whole.heading
    assert [text.split(":")[0].split(",")[0] for text in found.messages] == [
        text.split(":")[0] for text in whole.messages
    ]
    assert "largest: 40" in str(found)


def test_influence_of_rows_on_a_posterior_takes_rows_in_memory(post, monkeypatch):
    for module in (row_tables, second_pass):
        monkeypatch.setattr(module, "BATCH", 50)
    with pytest.raises(DataError, match=r"Influence on a posterior of 108 rows.*some groups"):
        post.check.influence()


def test_rows_with_correlated_residuals_are_taken_together(monkeypatch):
    frame = blm.load_dataset("Orthodont").reset_index(drop=True)
    formula, residual = "distance ~ age * Sex + (1 | Subject)", "ar1(age | Subject)"
    memory, streamed = both(formula, frame, residual=residual)
    post = streamed.fit(method="laplace", draws=30, chains=1, random_seed=1)
    expected = in_memory(memory, post)
    assert post.loo(draws=20).elpd == pytest.approx(expected.loo(draws=20).elpd, abs=SCORES)
    np.testing.assert_allclose(
        post.check.loo_pit(draws=20), expected.check.loo_pit(draws=20), rtol=0, atol=SCORES
    )
    for module in (row_tables, second_pass):
        monkeypatch.setattr(module, "BATCH", 50)
    for answer in (
        post.loo,
        lambda: post.loo("Subject"),
        post.check.residuals,
        streamed.reml().check.influence,
    ):
        with pytest.raises(DataError, match=r"of 108 rows: these are more than are held"):
            answer()
