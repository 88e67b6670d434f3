"""Influence of rows and levels: against lme4, refits and dense algebra."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.checks.integrated import leave_out
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.engine import sample_posterior

FOLDER = Path(__file__).parent / "reference" / "influence"
LME4 = 2e-4
"""Accuracy of lme4's covariance parameters, in leverages and distances that depend on them."""
REFITS = 2e-3
"""The same for differences between two such optima, relative to the largest."""
WEIGHTED = 0.12
"""Monte Carlo error of shifts in posterior sds: importance ESS above 500 and a refit's draws."""

FORMULAS = {
    "sleepstudy": "Reaction ~ Days + (Days | Subject)",
    "sleepstudy_weighted": "Reaction ~ Days + (Days | Subject)",
    "Penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)",
    "Pastes": "strength ~ 1 + (1 | batch) + (1 | sample)",
    "Machines": "score ~ Machine + (Machine | Worker)",
}


def _model(name):
    data = blm.load_dataset(name.split("_")[0])
    weights = 1.0 / (1.0 + data["Days"]) if name.endswith("weighted") else None
    return blm.LMM(FORMULAS[name], data, weights=weights)


@pytest.mark.parametrize("name", FORMULAS)
def test_rows_are_those_of_lme4(name):
    reference = pd.read_csv(FOLDER / "rows.csv")
    expected = reference[reference["fit"] == name].reset_index()
    found = _model(name).reml().check.influence().table
    for ours, theirs in (
        ("leverage", "leverage"),
        ("residual", "residual"),
        ("standardised", "rstudent"),
        ("cooks_distance", "cooks_distance"),
    ):
        scale = np.abs(expected[theirs]).max()
        np.testing.assert_allclose(found[ours], expected[theirs], atol=LME4 * scale, err_msg=ours)


@pytest.mark.parametrize(("name", "by"), [("sleepstudy", "Subject"), ("Penicillin", "sample")])
def test_levels_are_those_of_refits_by_lme4(name, by):
    reference = pd.read_csv(FOLDER / "groups.csv", dtype={"level": str})
    expected = reference[reference["fit"] == name].set_index("level")
    model = _model(name)
    found = model.reml().check.influence(by, progressbar=False)
    assert list(found.table.index) == list(expected.index)
    for column in ("cooks_distance", "covratio"):
        scale = expected[column].max()
        np.testing.assert_allclose(
            found.table[column], expected[column], atol=REFITS * scale, err_msg=column
        )
    for i, coef in enumerate(model.design.coefs, start=1):
        np.testing.assert_allclose(found.dfbetas[coef], expected[f"dfbetas{i}"], atol=REFITS)
        estimates = found.estimates[f"beta[{coef}]"]
        np.testing.assert_allclose(estimates, expected[f"estimate{i}"], rtol=1e-5)
    np.testing.assert_allclose(found.estimates["sigma"], expected["sigma"], rtol=LME4)
    first = next(c for c in found.estimates if c.startswith("sd["))
    np.testing.assert_allclose(found.estimates[first], expected["sd1"], rtol=5 * LME4)


def test_changes_are_from_the_whole_estimate(sleepstudy_model):
    reml = sleepstudy_model.reml()
    found = reml.check.influence("Subject", progressbar=False)
    whole = reml.summary()["estimate"]
    np.testing.assert_allclose(found.change, found.estimates - whole[found.change.columns])
    sds = found.relative_change.columns
    assert list(sds) == ["sd[Subject, Intercept]", "sd[Subject, Days]", "sigma"]
    expected = found.estimates[sds] / whole[sds] - 1.0
    np.testing.assert_allclose(found.relative_change, expected)
    np.testing.assert_allclose(found.table["max_sd_change"], expected.abs().max(axis=1))
    np.testing.assert_allclose(found.table["max_dfbetas"], found.dfbetas.abs().max(axis=1))
    assert (found.table["rows"] == 10).all()


def test_a_refit_is_a_fit_to_the_other_rows(sleepstudy_model):
    data = blm.load_dataset("sleepstudy")
    found = sleepstudy_model.ml().check.influence("Days", progressbar=False).estimates
    other = blm.LMM(FORMULAS["sleepstudy"], data[data["Days"] != 3]).ml().summary()["estimate"]
    np.testing.assert_allclose(found.loc[3.0], other[found.columns], rtol=1e-5)


def test_coefficients_that_other_levels_do_not_determine():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(6), 5)
    data = pd.DataFrame({"g": group.astype(str), "x": (group == 5) * 1.0})
    data["y"] = rng.normal(size=6)[group] + rng.normal(size=30) + data["x"]
    found = blm.LMM("y ~ x + (1 | g)", data).reml().check.influence("g", progressbar=False)
    assert np.isnan(found.estimates.loc["5", "beta[x]"])
    assert np.isfinite(found.estimates.loc["5", "beta[Intercept]"])
    assert np.isnan(found.table.loc["5", "cooks_distance"])
    assert np.isfinite(found.table.drop("5")["cooks_distance"]).all()
    assert "Without 5 the rest of the data does not determine" in " ".join(found.messages)


def test_what_is_asked_for_is_checked(sleepstudy_model, sleepstudy_fit):
    for fit in (sleepstudy_model.reml(), sleepstudy_fit):
        unknown = "by='Rail' is neither .*: one of Subject, .*Days"
        with pytest.raises(DataError, match=unknown):
            fit.check.influence("Rail", progressbar=False)
        for values in (fit.design.data["Days"], fit.design.index.to_numpy(), ["Subject"]):
            with pytest.raises(DataError, match=r"by= takes the name of .*: one of Subject, "):
                fit.check.influence(values, progressbar=False)
    with pytest.raises(ValueError, match="REML and ML"):
        sleepstudy_model.map().check.influence("Subject")
    assert len(sleepstudy_model.map().check.influence().table) == 180


def test_density_of_a_level_given_beta_is_the_dense_one(sleepstudy_fit):
    design, joint = sleepstudy_fit.design, sleepstudy_fit._joint.thin(5)
    codes = design.random[0].codes
    points = replace(joint.points, beta=joint.beta)
    given = sleepstudy_fit.model.with_priors(replace(sleepstudy_fit.priors, beta_sampled=True))
    found = leave_out(given, replace(joint, points=points), codes).log_density
    rows = codes == 4
    for s in range(5):
        z = design.random[0].Z[rows]
        cov = z @ joint.covariances[0][s] @ z.T + joint.sigma[s] ** 2 * np.eye(10)
        mean = design.X[rows] @ joint.beta[s]
        expected = stats.multivariate_normal(mean, cov).logpdf(design.y[rows])
        assert found[s, 4] == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("by", "case"), [("Subject", "309"), slow("Subject", "335"), (None, 130)])
def test_shifts_are_those_of_another_posterior(sleepstudy_fit, by, case):
    design = sleepstudy_fit.design
    found = sleepstudy_fit.check.influence(by, progressbar=False)
    assert found.table.loc[case, "pareto_k"] < 0.7
    labels = design.random[0].levels[design.random[0].codes]
    kept = np.flatnonzero(labels != case if by else design.index != case)
    present = np.unique(design.random[0].codes[kept])
    factor = design.random[0].take(kept).with_levels(present)
    part = replace(
        design,
        y=design.y[kept],
        offset=design.offset[kept],
        X=design.X[kept],
        index=design.index[kept],
        data=design.data.iloc[kept],
        random=(factor,),
    )
    tree = sample_posterior(
        Model(part, sleepstudy_fit.priors),
        method="collapsed",
        draws=2000,
        chains=4,
        random_seed=3,
        options={},
    )
    other = blm.Posterior(Model(part, sleepstudy_fit.priors), tree).summary()
    here = sleepstudy_fit.summary()
    shift = (other["mean"] - here["mean"]) / here["sd"]
    np.testing.assert_allclose(found.shift.loc[case], shift[found.shift.columns], atol=WEIGHTED)
    assert np.abs(shift).max() > 2 * WEIGHTED


def test_posterior_words_and_reliability(sleepstudy_fit):
    found = sleepstudy_fit.check.influence("Subject", progressbar=False)
    text = " ".join(found.messages)
    assert found.table["kl"].idxmax() == "332"
    assert found.table.loc["332", "pareto_k"] > 0.7
    assert "Without Subject 332 the posterior would be so different" in text
    assert "Without Subject 308 the posterior mean of sigma would be" in text
    assert "<table" in found._repr_html_()
    assert (found.table["kl"] >= 0).all()
    assert len(sleepstudy_fit.check.influence(progressbar=False).table) == 180


def test_estimate_words(sleepstudy_model):
    text = " ".join(sleepstudy_model.reml().check.influence().messages)
    assert "3 rows with a Cook's distance above 1: 59, 56 and 7" in text
    assert "3 rows more than three standard deviations" in text
    text = " ".join(sleepstudy_model.reml().check.influence("Subject", progressbar=False).messages)
    assert "Days: absolute dfbetas above 0.47 without 335" in text


def _one_way(means, size=6, **columns):
    """Groups of rows around given means, within which residuals are symmetric."""
    inside = np.linspace(-1.0, 1.0, size)
    group = np.repeat(np.arange(len(means)), size)
    data = {"y": np.asarray(means)[group] + np.tile(inside, len(means)), "g": group.astype(str)}
    return pd.DataFrame(data | columns)


def test_without_fixed_effects():
    model = blm.LMM("y ~ 0 + (1 | g)", _one_way([0.5, -1.0, 2.0, 0.0, 9.0]))
    rows = model.reml().check.influence()
    assert rows.table["cooks_distance"].isna().all()
    assert np.isfinite(rows.table["standardised"]).all()
    assert "no fixed effects" in rows.messages[0]
    assert "with a Cook's distance above" not in str(rows)
    assert "The five largest standardised residuals" in str(rows)
    groups = model.ml().check.influence("g", progressbar=False)
    undefined = groups.table[["cooks_distance", "covratio", "max_dfbetas"]]
    assert undefined.isna().all(axis=None)
    assert groups.table["max_sd_change"].idxmax() == "4"
    kept = model.design.data.query("g != '4'")
    other = blm.LMM("y ~ 0 + (1 | g)", kept).ml().summary()["estimate"]
    np.testing.assert_allclose(groups.estimates.loc["4"], other, rtol=1e-5)
    text = str(groups)
    assert "no fixed effects" in text
    assert "does not determine" not in text
    assert "sd[g, Intercept] changes by more than 28 % without 4" in " ".join(text.split())


def test_changes_of_standard_deviations_are_named():
    data = _one_way([0.0, 0.3, -0.3, 0.2, -0.2, 0.1, -0.1, 0.4])
    data.loc[data["g"] == "3", "y"] += np.tile([9.0, -9.0], 3)
    found = blm.LMM("y ~ 1 + (1 | g)", data).reml().check.influence("g", progressbar=False)
    assert found.relative_change.loc["3", "sigma"] < -0.5
    text = " ".join(found.messages)
    value = found.estimates.loc["3", "sigma"]
    assert (
        f"sigma changes by more than 18 % without 3; without 3 the estimate is {value:.4g}" in text
    )
    assert "No level stands out" not in text


def test_a_standard_deviation_of_zero_that_hangs_on_one_level():
    means = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    data = _one_way(means)
    data.loc[data["g"] == "5", "y"] += np.tile([30.0, -30.0], 3)
    found = blm.LMM("y ~ 1 + (1 | g)", data).reml().check.influence("g", progressbar=False)
    whole = (found.estimates - found.change)["sd[g, Intercept]"]
    assert (whole == 0.0).all()
    text = " ".join(found.messages)
    value = found.estimates.loc["5", "sd[g, Intercept]"]
    assert value > 0.5
    assert (
        f"sd[g, Intercept] is no longer zero without 5; without 5 the estimate is {value:.4g}"
        in text
    )


def test_changes_of_precision_are_named():
    rng = np.random.default_rng(2)
    x = np.where(np.repeat(np.arange(12), 6) == 7, 8.0, 1.0) * np.tile(np.linspace(-1, 1, 6), 12)
    data = _one_way(rng.normal(size=12), x=x)
    data["y"] += rng.normal(size=len(data))
    found = blm.LMM("y ~ x + (1 | g)", data).reml().check.influence("g", progressbar=False)
    ratio = found.table["covratio"]
    assert ratio["7"] > 1.0 + 3.0 * 2 / 12
    expected = (
        "Without 7 the fixed effects are estimated less precisely (covratio more than 0.5 from "
        f"one; it is {ratio['7']:.3g} without 7)"
    )
    assert expected in " ".join(found.messages)


def test_one_level_cannot_be_left_out_nor_left_over():
    data = blm.load_dataset("Dyestuff").assign(one=1.0)
    reml = blm.LMM("Yield ~ 0 + one + (1 | Batch)", data).reml()
    with pytest.raises(DataError, match="by='one' has one level"):
        reml.check.influence("one", progressbar=False)
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", data[data["Batch"].isin(["A", "B"])]).reml()
    with pytest.raises(DataError, match="one level of Batch left, 'B'"):
        reml.check.influence("Batch", progressbar=False)


@pytest.mark.parametrize("name", ["Penicillin", "Pastes"])
def test_several_factors(name):
    post = _model(name).fit(method="laplace", draws=200, random_seed=1, chains=2)
    by = post.design.random[0].name
    found = post.check.influence(by, progressbar=False)
    assert found.shift.shape == (post.design.random[0].n_levels, 4)
    assert np.isfinite(found.shift.to_numpy()).all()
