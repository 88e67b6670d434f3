"""Residual checks: residuals against lme4 and dense algebra, statistics against scipy, power."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.checks.residual_checks import (
    normal_misfit,
    outlier_count,
    spread_across,
    spread_against_fitted,
)
from bayeslmm.checks.residuals import marginal_residuals
from bayeslmm.data.connected import independent_parts
from bayeslmm.sampling.joint_draws import point_draws

FOLDER = Path(__file__).parent / "reference" / "influence"
LME4 = 2e-4
"""Accuracy of lme4's covariance parameters, in residuals that depend on them."""

FORMULA = "Reaction ~ Days + (Days | Subject)"


def _data(rng, n_levels=30, per_level=12, *, effects=None, noise=None):
    """Response of a random-intercept model with given effects and noise."""
    group = np.repeat(np.arange(n_levels), per_level)
    x = rng.normal(size=len(group))
    u = rng.normal(size=n_levels) * 2.0 if effects is None else effects
    e = rng.normal(size=len(group)) if noise is None else noise
    return pd.DataFrame({"y": 1.0 + 3.0 * x + u[group] + e, "x": x, "g": group.astype(str)})


def _p_values(data):
    return blm.LMM("y ~ x + (1 | g)", data).reml().check.residuals(random_seed=1).table["p_value"]


@pytest.mark.parametrize("weighted", [False, True])
def test_residuals_are_those_of_lme4(weighted):
    reference = pd.read_csv(FOLDER / "rows.csv")
    name = "sleepstudy_weighted" if weighted else "sleepstudy"
    expected = reference[reference["fit"] == name].reset_index()
    data = blm.load_dataset("sleepstudy")
    reml = blm.LMM(FORMULA, data, weights=1.0 / (1.0 + data["Days"]) if weighted else None).reml()
    found = reml.check.residuals(20, random_seed=1).residuals
    np.testing.assert_allclose(found["pearson"], expected["residual"], atol=LME4 * 5)
    np.testing.assert_allclose(found["standardised"], expected["rstudent"], atol=LME4 * 5)
    np.testing.assert_allclose(found["response"], reml.residuals(), atol=1e-8)
    np.testing.assert_allclose(found["fitted"], reml.fitted(), rtol=1e-10)


@pytest.mark.parametrize(
    ("formula", "name"),
    [(FORMULA, "sleepstudy"), ("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin")],
)
def test_marginal_residuals_are_whitened(formula, name):
    reml = blm.LMM(formula, blm.load_dataset(name)).reml()
    design = reml.design
    found = marginal_residuals(design, point_draws(reml.fit, ()))[0]
    lower = np.linalg.cholesky(reml.V().to_numpy())
    expected = np.linalg.solve(lower, design.y - design.X @ reml.fit.beta)
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_parts_of_the_data(sleepstudy_model):
    assert [len(part) for part in independent_parts(sleepstudy_model.design)] == [10] * 18
    crossed = blm.LMM(
        "diameter ~ 1 + (1 | plate) + (1 | sample)", blm.load_dataset("Penicillin")
    ).design
    assert [len(part) for part in independent_parts(crossed)] == [144]
    nested = blm.LMM("strength ~ 1 + (1 | batch) + (1 | sample)", blm.load_dataset("Pastes")).design
    assert sorted(len(part) for part in independent_parts(nested)) == [6] * 10


def test_statistics_are_those_of_scipy():
    rng = np.random.default_rng(1)
    values, fitted = rng.normal(size=(2, 40)), rng.normal(size=(2, 40))
    codes = rng.integers(0, 4, 40)
    for row in range(2):
        size = np.abs(values[row])
        rank = stats.spearmanr(size, fitted[row]).statistic
        assert spread_against_fitted(values, fitted)[row] == pytest.approx(abs(rank))
        levene = stats.f_oneway(*(size[codes == c] for c in range(4))).statistic
        assert spread_across(codes, 4)(values, fitted)[row] == pytest.approx(levene)
        theoretical, ordered = stats.probplot(values[row], fit=False)
        near = 1.0 - np.corrcoef(theoretical, ordered)[0, 1] ** 2
        # scipy's probability plot has Filliben's plotting positions, ours Blom's
        assert normal_misfit(values)[row] == pytest.approx(near, rel=0.1)
    assert outlier_count(np.array([[3.1, -3.2, 2.9]]), None).tolist() == [2.0]


@pytest.mark.parametrize("kind", ["normality of residuals", "outliers"])
def test_heavy_tails_are_found(kind):
    rng = np.random.default_rng(2)
    p = _p_values(_data(rng, noise=rng.standard_t(2, 360)))
    assert p[kind] < 0.01


def test_spread_that_grows_with_the_mean_is_found():
    rng = np.random.default_rng(2)
    data = _data(rng, noise=np.zeros(360))
    spread = np.exp(0.25 * (data["y"] - data["y"].mean()))
    p = _p_values(data.assign(y=data["y"] + spread * rng.normal(size=360)))
    assert p["spread against fitted"] < 0.01


def test_levels_of_different_spread_are_found():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=360) * np.repeat(np.where(np.arange(30) < 6, 3.0, 1.0), 12)
    p = _p_values(_data(rng, noise=noise))
    assert p["spread across g"] < 0.01


def test_draws_have_the_spread_of_the_model():
    data = _data(np.random.default_rng(4), 200, 100)
    reml = blm.LMM("y ~ x + (1 | g)", data, weights=np.full(20_000, 0.25)).reml()
    found = reml.check.residuals(20, random_seed=1).table.loc["outliers"]
    expected = 20_000 * 2.0 * stats.norm.sf(3.0)
    # four standard deviations of a count
    assert found["observed"] == pytest.approx(expected, abs=4.0 * np.sqrt(expected))
    assert found["expected"] == pytest.approx(expected, abs=4.0 * np.sqrt(expected / 20.0))


def test_large_data_have_a_word_of_caution():
    noise = np.random.default_rng(1).standard_t(3, 6000)
    data = _data(np.random.default_rng(4), 60, 100, noise=noise)
    found = blm.LMM("y ~ x + (1 | g)", data).reml().check.residuals(20, random_seed=1)
    assert "With 6000 rows the checks find departures" in " ".join(found.messages)


def test_outlying_level_is_found():
    rng = np.random.default_rng(2)
    effects = rng.normal(size=30)
    effects[3] = 12.0
    p = _p_values(_data(rng, effects=effects))
    assert p["normality of random effects[g, Intercept]"] < 0.01
    assert p["normality of residuals"] > 0.01


def test_words(sleepstudy_model):
    found = sleepstudy_model.reml().check.residuals(random_seed=1)
    text = " ".join(found.messages)
    assert "normality of residuals (p below 0.005): the residuals are not normal" in text
    assert "shrunken" in text
    assert "<table" in found._repr_html_()
    clean = blm.LMM("y ~ x + (1 | g)", _data(np.random.default_rng(5))).reml()
    assert "No check finds fault" in " ".join(clean.check.residuals(random_seed=1).messages)


@pytest.mark.parametrize("store_u", [True, slow(False)])
def test_posterior_checks(sleepstudy_model, sleepstudy_fit, store_u):
    post = sleepstudy_fit if store_u else sleepstudy_model.fit(random_seed=1, store_u=False)
    found = post.check.residuals(random_seed=1)
    assert found.table.loc["normality of residuals", "p_value"] < 0.05
    assert found.table.loc["normality of random effects[Subject, Days]", "p_value"] > 0.05
    # residuals are means over 200 of 4000 draws
    error = 4.0 * post.sigma / np.sqrt(200)
    np.testing.assert_allclose(found.residuals["response"], post.residuals(), atol=error)
    assert found.draws == 200


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin"),
        slow("strength ~ 1 + (1 | batch) + (1 | sample)", "Pastes"),
        ("Yield ~ 1 + (1 | Batch)", "Dyestuff2"),
        ("Reaction ~ 0 + Days + offset(Days) + (0 + Days || Subject)", "sleepstudy"),
    ],
)
def test_other_models(formula, name):
    model = blm.LMM(formula, blm.load_dataset(name))
    for fit in (model.reml(), model.fit(method="laplace", draws=50, chains=2, random_seed=1)):
        found = fit.check.residuals(20, random_seed=1)
        assert np.isfinite(found.table.to_numpy()).all()
        assert np.isfinite(found.residuals.to_numpy()).all()
    effects = found.table.index.str.startswith("normality of random effects")
    assert effects.sum() == sum(factor.n_coefs for factor in model.design.random)


def test_draws_are_checked(sleepstudy_model):
    with pytest.raises(ValueError, match="draws=5: a whole number of at least 20"):
        sleepstudy_model.reml().check.residuals(5)
