"""Hypotheses at the edge: odds that no draw tells, ambiguous labels, options of tables."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from scipy import stats
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.exceptions import FormulaError
from bayeslmm.planning.assurance import Assurance

EXACT = 1e-9
"""Relative error of the same sums."""


@pytest.fixture(scope="module")
def post(sleepstudy_model):
    return sleepstudy_model.fit(method="laplace", draws=200, random_seed=1)


def figures(result):
    return result.table()[["prior_odds", "evidence_ratio"]]


# --- odds ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("sigma > 1e6", "at none of 20000 prior draws, so that its prior odds are below 1/20000"),
        ("sigma < 1e6", "at all of 20000 prior draws, so that its prior odds are above 20000"),
        ("sd[Subject, Days] > 1e5", "at none of 20000"),
        ("1e5 < sd[Subject, Days]", "at none of 20000"),
        ("Days > 1e6", "surely false under the priors"),
        ("Days < 1e6", "surely true under the priors"),
        ("100 * sqrt(4) > 3", "does not depend on the parameters"),
        ("Days - Days > -1", "does not depend on the parameters"),
        ("Days - Days = 0", "does not depend on the parameters"),
        ("sqrt(sigma - 20) > 0", "not defined at every prior draw"),
        ("sqrt(sigma - 1000) > 0", "not defined at any draw"),
    ],
)
def test_what_priors_cannot_tell_is_a_note(post, text, note):
    result = post.hypothesis(text)
    assert figures(result).isna().all(axis=None)
    (found,) = result.notes
    assert found.startswith(f"{text}: ")
    assert note in found
    assert found in repr(result)


def test_probabilities_stay_where_prior_odds_are_unknown(post):
    table = post.hypothesis(["sigma > 1e6", "sigma < 1e6"]).table()
    assert table["probability"].tolist() == [0.0, 1.0]
    assert table["posterior_odds"].tolist() == [1 / 800, 800.0]


@pytest.mark.parametrize("edge", [10.0, 35.0])
def test_prior_odds_of_the_far_tail_are_exact(post, edge):
    # `edge` prior standard deviations out, where a probability of one minus 1e-16 is one
    sd = post.priors.records()["Days"].sigma
    names = [f"Days > {edge * sd}", f"Days < {edge * sd}"]
    result = post.hypothesis(names)
    expected = stats.norm.sf(edge)
    odds = result.table()["prior_odds"]
    assert odds.iloc[0] == pytest.approx(expected, rel=1e-6)
    assert odds.iloc[1] == pytest.approx(1.0 / expected, rel=1e-6)
    ratio = result.table()["evidence_ratio"]
    np.testing.assert_allclose(ratio, result.table()["posterior_odds"] / odds, rtol=EXACT)
    assert result.notes == ()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("sd[Subject, Days] = 0", "boundary of a standard deviation; check.singularity()"),
        ("2 * sd[Subject, Days] = 0", "boundary of a standard deviation; check.singularity()"),
        ("sd[Subject, Days] = 5", "linear in the fixed effects"),
        ("Days * Days = 100", "linear in the fixed effects"),
        ("sigma = 0.5 * Days", "linear in the fixed effects"),
    ],
)
def test_a_missing_density_ratio_has_a_reason(post, text, note):
    result = post.hypothesis([text, "Days = 10"])
    ratio = result.table()["evidence_ratio"]
    assert np.isnan(ratio.iloc[0])
    assert np.isfinite(ratio.iloc[1])
    (found,) = result.notes
    assert note in found
    assert found.split(":")[0] in result._repr_html_()


def test_priors_without_a_density_ratio_are_named():
    data = blm.load_dataset("Dyestuff")
    flat = blm.LMM("Yield ~ 1 + (1 | Batch)", data, priors="flat")
    post = flat.fit(method="laplace", draws=50, random_seed=1)
    equal, larger = post.hypothesis(["Intercept = 1500", "Intercept > 1500"]).notes
    assert "fixed effects are flat" in equal
    assert "the priors of" in larger
    assert "improper" in larger


def test_sampled_fixed_effects_have_no_density_ratio():
    from bayeslmm.priors.families import HalfStudentT

    data = blm.load_dataset("sleepstudy")
    prior = {"Days": HalfStudentT(3.0, 10.0)}
    model = blm.LMM("Reaction ~ Days + (1 | Subject)", data, priors=prior)
    post = model.fit(method="laplace", draws=50, random_seed=1)
    (note,) = post.hypothesis("Days = 10").notes
    assert "not all normal" in note


def test_what_cannot_be_estimated_is_a_note():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"a": np.repeat(["u", "v", "w"], 20), "g": np.tile(np.arange(10), 6)})
    data["b"] = np.where(data["a"] == "w", "s", np.tile(["r", "s"], 30))
    data["y"] = rng.normal(size=60) + data["g"]
    model = blm.LMM("y ~ a * b + (1 | g)", data)
    post = model.fit(method="laplace", draws=50, random_seed=1)
    (note,) = post.hypothesis("b[r] > 0").notes
    assert "cannot be estimated" in note


# --- labels ----------------------------------------------------------------------------


def test_a_covariate_called_sigma_is_ambiguous():
    data = blm.load_dataset("sleepstudy").rename(columns={"Days": "sigma"})
    model = blm.LMM("Reaction ~ sigma + (1 | Subject)", data)
    post, reml = model.fit(method="laplace", draws=50, random_seed=1), model.reml()
    for fit in (post, reml):
        with pytest.raises(FormulaError, match=r"Write `beta\[sigma\]`") as caught:
            fit.hypothesis("2 * sigma > 0")
        assert (caught.value.start, caught.value.end) == (4, 9)
    mean = post.hypothesis("beta[sigma] > 0").table()["mean"].iloc[0]
    assert mean == pytest.approx(post.beta["sigma"])
    assert post.hypothesis("sd[Subject] > 0").table()["probability"].iloc[0] == 1.0


def test_correlations_are_named_in_either_order(post):
    names = ["cor[Subject, Intercept, Days] > 0.1", "cor[Subject, Days, Intercept] > 0.1"]
    table = post.hypothesis(names).table()
    np.testing.assert_array_equal(table.iloc[0, :-1].to_numpy(), table.iloc[1, :-1].to_numpy())


# --- options ---------------------------------------------------------------------------


@pytest.mark.parametrize("rope", [(-1, 1), [-1, 1], np.array([-1.0, 1.0]), 1, np.float64(1.0)])
def test_a_rope_is_any_pair_or_a_number(post, rope):
    result = post.hypothesis("Days = 10", rope=rope)
    inside = np.abs(result.draws[:, 0]) < 1.0
    assert 0.0 < inside.mean() < 1.0
    assert result.table()["rope_probability"].iloc[0] == inside.mean()


def test_a_rope_includes_its_bounds(post):
    draws = post.hypothesis("Days = 10").draws[:, 0]
    rope = (draws.min(), draws.max())
    assert post.hypothesis("Days = 10", rope=rope).table()["rope_probability"].iloc[0] == 1.0
    plans = SimpleNamespace()  # not looked at here
    found = Assurance(plans=plans, threshold=0.9, prob=0.95, rope=(-1.0, 1.0))
    row = found._intervals(np.array([[0.0, 0.5, 0.5, -1.0, 1.0]]), np.zeros(1), 1)
    assert (row["rope_inside"], row["rope_outside"]) == (1.0, 0.0)


@pytest.mark.parametrize("rope", [[1, -1], [0, 1, 2], "wide", (0, np.inf), [[0, 1]], -1, 0])
def test_bad_ropes_are_refused(post, rope):
    with pytest.raises(ValueError, match="a pair"):
        post.hypothesis("Days = 10", rope=rope)


def test_tables_of_estimates_take_a_level(sleepstudy_model):
    reml = sleepstudy_model.reml()
    row = reml.fixef(level=0.5).loc["Days"]
    hypothesis = reml.hypothesis("Days = 0")
    for table in (hypothesis.table(0.5), hypothesis.table(prob=0.5), hypothesis.table(level=0.5)):
        np.testing.assert_allclose(
            table.iloc[0][["conf_low", "conf_high"]], row[["conf_low", "conf_high"]], rtol=EXACT
        )
    default = reml.hypothesis("Days = 0", level=0.5).table()
    pd.testing.assert_frame_equal(default, hypothesis.table(0.5))
    usual = reml.fixef().loc["Days", "conf_low"]
    assert hypothesis.table()["conf_low"].iloc[0] == pytest.approx(usual)
    slopes = reml.slopes("Days")
    pd.testing.assert_frame_equal(slopes.table(level=0.5), slopes.table(prob=0.5))
    assert slopes.table(level=0.5)["conf_low"].iloc[0] > slopes.table()["conf_low"].iloc[0]


# --- Monte Carlo errors ----------------------------------------------------------------


@pytest.fixture(scope="module")
def ten_fits(sleepstudy_model):
    return [sleepstudy_model.fit(draws=500, chains=2, random_seed=seed) for seed in range(10)]


@pytest.fixture(scope="module")
def whole(sleepstudy_model):
    return sleepstudy_model.fit(draws=2000, random_seed=98).log_evidence


def evidence_at(value):
    """Log evidence of sleepstudy with the slope held at a value, whatever prior it had."""
    priors = {"Days": pm.Normal.dist(value, 1e-5)}
    data = blm.load_dataset("sleepstudy")
    held = blm.LMM("Reaction ~ Days + (Days | Subject)", data, priors=priors)
    return held.fit(draws=2000, random_seed=99).log_evidence


@pytest.mark.parametrize(("value", "fits"), [(8, 10), slow(5, 10), (0, 3), slow(40, 10)])
def test_errors_of_evidence_ratios_cover_the_difference_of_evidences(whole, ten_fits, value, fits):
    """In the middle by densities, far out by evidences: both are as near as they say."""
    held = evidence_at(value)
    exact, known = held.value - whole.value, np.hypot(held.error, whole.error)
    tables = [fit.hypothesis(f"Days = {value}").table() for fit in ten_fits[:fits]]
    logs = np.log([table["evidence_ratio"].iloc[0] for table in tables])
    errors = np.array([table["log_ratio_error"].iloc[0] for table in tables])
    assert (errors > 0).all() and (errors < 0.1).all()
    score = (logs - exact) / np.hypot(errors, known)
    # standard normal numbers: four for each, and the 0.999 quantile of their mean square
    assert np.abs(score).max() < 4.0
    assert np.mean(score**2) < stats.chi2.isf(0.001, fits) / fits
    # the errors are those of independent fits: within the 0.0005 quantiles of chi-square on 9 df
    if value == 8:
        assert 0.3 < np.std(logs, ddof=1) / np.mean(errors) < 1.85


def test_errors_of_odds_are_those_of_their_draws(ten_fits):
    tables = [fit.hypothesis(["Days > 9", "sigma > 26", "Days > 0"]).table() for fit in ten_fits]
    logs = np.log([table["evidence_ratio"].to_numpy() for table in tables])
    errors = np.array([table["log_ratio_error"].to_numpy() for table in tables])
    # an inequality on which all draws agree is known to a bound only
    assert np.isnan(errors[:, 2]).all()
    # `sigma > 26` shares the same prior draws between fits: that part of its error does not show
    ratio = np.std(logs, axis=0, ddof=1) / errors.mean(axis=0)
    assert 0.3 < ratio[0] < 1.85
    assert 0.2 < ratio[1] < 1.85


def test_an_error_is_printed(post):
    result = post.hypothesis("Days = 8")
    assert "log_ratio_error" in repr(result)
    assert 0.0 < result.table()["log_ratio_error"].iloc[0] < 0.1


def test_far_out_without_evidences_is_a_note(post, monkeypatch):
    monkeypatch.setattr("bayeslmm.effects.hypothesis.Resampler.affordable", False)
    result = post.hypothesis("Days = 0")
    assert result.table()["evidence_ratio"].isna().all()
    assert "hardly a draw comes near equality" in result.notes[0]
