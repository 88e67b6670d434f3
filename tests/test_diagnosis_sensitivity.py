"""Prior sensitivity, contraction and implied priors: against dense algebra and closed forms."""

import arviz_stats as az
import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from scipy import stats

import bayeslmm as blm
from bayeslmm.checks.implied_priors import implied_priors
from bayeslmm.checks.sensitivity import (
    compare_draws,
    log_prior_parts,
    marginal_log_likelihood,
    overlap,
    unbounded_parameters,
)
from bayeslmm.exceptions import PriorError

DRAWN = 0.02
"""Monte Carlo error of quantiles of 40,000 draws, in probability or on their scale."""

FORMULA = "Reaction ~ Days + (Days | Subject)"


def _dense_log_density(post, s):
    """log N(y; offset + X beta, V) at draw s."""
    design, joint = post.design, post._joint
    weights = np.ones(design.n) if design.weights is None else design.weights
    cov = np.diag(joint.sigma[s] ** 2 / weights)
    for factor, sigma in zip(design.random, joint.covariances, strict=True):
        same = factor.codes[:, None] == factor.codes
        cov += same * (factor.Z @ sigma[s] @ factor.Z.T)
    mean = design.offset + design.X @ joint.beta[s]
    return stats.multivariate_normal(mean, cov).logpdf(design.y)


@pytest.mark.parametrize("case", ["slopes", "weighted with offset", "crossed"])
def test_marginal_log_likelihood_is_the_dense_density(sleepstudy_fit, case):
    sleep = blm.load_dataset("sleepstudy")
    if case == "weighted with offset":
        formula = "Reaction ~ 0 + Days + offset(Shift) + (Days || Subject)"
        data = sleep.assign(Shift=2.0 * sleep["Days"] + 200.0)
        sleepstudy_fit = blm.LMM(formula, data, weights=1.0 / (1.0 + data["Days"])).fit(
            method="laplace", draws=20, chains=1, random_seed=1
        )
    if case == "crossed":
        formula = "diameter ~ 1 + (1 | plate) + (1 | sample)"
        sleepstudy_fit = blm.LMM(formula, blm.load_dataset("Penicillin")).fit(
            method="laplace", draws=20, chains=1, random_seed=1
        )
    found = marginal_log_likelihood(sleepstudy_fit.model, sleepstudy_fit._joint)
    expected = [_dense_log_density(sleepstudy_fit, s) for s in range(5)]
    np.testing.assert_allclose(found[:5], expected, rtol=1e-8)


def test_log_prior_parts_are_those_of_the_log_prior_group(sleepstudy_fit):
    parts = log_prior_parts(sleepstudy_fit.priors, sleepstudy_fit._joint)
    group = sleepstudy_fit.with_log_prior().data["log_prior"].to_dataset()
    assert set(parts) == {"beta", "sd", "cor", "sigma"}
    np.testing.assert_allclose(parts["beta"], group["beta"].sum("coef").to_numpy().ravel())
    np.testing.assert_allclose(parts["sd"], group["sd_Subject"].sum("Subject_coef").values.ravel())
    np.testing.assert_allclose(parts["cor"], group["cor_Subject"].values.ravel(), rtol=1e-6)
    np.testing.assert_allclose(parts["sigma"], group["sigma"].values.ravel())


def test_table_is_that_of_arviz(sleepstudy_fit):
    parts = log_prior_parts(sleepstudy_fit.priors, sleepstudy_fit._joint)
    shape, dims = sleepstudy_fit._joint.shape, ("chain", "draw")
    likelihood = marginal_log_likelihood(sleepstudy_fit.model, sleepstudy_fit._joint)
    tree = xr.DataTree.from_dict(
        {
            "posterior": sleepstudy_fit._draws[["beta", "sigma"]],
            "log_prior": xr.Dataset({k: (dims, v.reshape(shape)) for k, v in parts.items()}),
            "log_likelihood": xr.Dataset({"y": (dims, likelihood.reshape(shape))}),
        }
    )
    expected = az.psense_summary(tree, round_to=12)
    found = sleepstudy_fit.check.sensitivity().table.loc[["beta[Intercept]", "beta[Days]", "sigma"]]
    # the groups' densities are summed in another order
    np.testing.assert_allclose(found["prior"], expected["prior"], atol=1e-9)
    np.testing.assert_allclose(found["likelihood"], expected["likelihood"], atol=1e-9)


def test_well_informed_model_is_not_sensitive(sleepstudy_fit):
    found = sleepstudy_fit.check.sensitivity()
    assert (found.table["diagnosis"] == "").all()
    assert (found.table["likelihood"] > 0.05).all()
    assert "No parameter is sensitive to the priors" in str(found)
    assert "compare_reml tells" in str(found)
    assert "<table" in found._repr_html_()


def test_prior_far_from_the_data_is_a_conflict():
    priors = {"sd[Subject, Days]": pm.HalfNormal.dist(1.0)}
    found = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors=priors).fit(random_seed=1)
    found = found.check.sensitivity()
    assert found.table.loc["sd[Subject, Days]", "diagnosis"] == "potential prior-data conflict"
    assert found.by_prior.loc["sd[Subject, Days]"].idxmax() == "sd"
    assert "the priors on the random-effect standard deviations" in " ".join(found.messages)


def test_flat_priors_are_refused_by_name():
    post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors="flat").fit(
        method="laplace", draws=50, random_seed=1
    )
    with pytest.raises(PriorError, match="Every prior is flat"):
        post.check.sensitivity()
    with pytest.raises(PriorError, match=r"sd\[Batch, Intercept\]"):
        post.check.contraction()
    with pytest.raises(PriorError, match="Flat priors"):
        implied_priors(post.design, post.priors, 100)


@pytest.mark.parametrize("threshold", [0.0, -1.0, np.nan])
def test_threshold_is_checked(sleepstudy_fit, threshold):
    with pytest.raises(ValueError, match="threshold="):
        sleepstudy_fit.check.sensitivity(threshold)


def test_contraction_of_known_distributions():
    rng = np.random.default_rng(1)
    found = compare_draws(rng.normal(0.0, 2.0, 40_000), rng.normal(1.0, 1.0, 40_000))
    assert found["prior_scale"] == pytest.approx(2.0, rel=DRAWN)
    assert found["posterior_scale"] == pytest.approx(1.0, rel=DRAWN)
    assert found["contraction"] == pytest.approx(0.75, abs=DRAWN)
    assert found["z_score"] == pytest.approx(1.0, abs=2 * DRAWN)
    assert found["prior_quantile"] == pytest.approx(stats.norm.cdf(0.5), abs=DRAWN)


def test_overlap_of_known_distributions():
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal(40_000), rng.standard_normal(10_000)
    # 30 bins of some hundred draws each make the overlap of equal densities smaller by 0.02
    assert overlap(first, second) == pytest.approx(1.0, abs=0.03)
    assert overlap(first, second + 1.0) == pytest.approx(2.0 * stats.norm.cdf(-0.5), abs=0.02)
    assert overlap(first, second + 10.0) == 0.0


def test_contraction_of_a_correlation_is_that_of_the_columns_of_its_prior(sleepstudy_fit):
    found = sleepstudy_fit.check.contraction(random_seed=1)
    uniform = 1.0 / (2.0 * stats.norm.ppf(0.75))  # of interquartile range one, on (-1, 1)
    assert found.table.loc["cor[Subject, Intercept, Days]", "prior_scale"] == pytest.approx(
        uniform, rel=2 * DRAWN
    )
    assert "The data narrow every parameter" in " ".join(found.messages)  # no alarm


def test_contraction_measures_prior_scales_that_have_no_variance():
    priors = {"sd[Batch]": pm.HalfCauchy.dist(30.0)}
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors=priors)
    post = model.fit(random_seed=1)
    found = post.check.contraction(40_000, random_seed=1).table
    iqr = 30.0 * (np.tan(0.375 * np.pi) - np.tan(0.125 * np.pi))
    scale = iqr / (2.0 * stats.norm.ppf(0.75))
    assert found.loc["sd[Batch, Intercept]", "prior_scale"] == pytest.approx(scale, rel=2 * DRAWN)
    sigma = post._draws["sigma"].to_numpy().ravel()
    spread = stats.iqr(sigma) / (2.0 * stats.norm.ppf(0.75))
    assert found.loc["sigma", "posterior_scale"] == pytest.approx(spread)


def test_contraction_in_words():
    sleep = blm.load_dataset("sleepstudy")
    priors = {"Days": pm.Normal.dist(10.0, 0.05), "sd[Subject, Days]": pm.HalfNormal.dist(0.5)}
    found = (
        blm.LMM(FORMULA, sleep, priors=priors).fit(random_seed=1).check.contraction(random_seed=1)
    )
    text = " ".join(found.messages)
    assert "beta[Days]: the data add little to its prior" in text
    assert "sd[Subject, Days]: its posterior median lies in the upper 1.0 % tail" in text
    assert found.table.loc["beta[Days]", "overlap"] > 0.9
    assert found.table.loc["sigma", "contraction"] > 0.9


def test_posterior_beside_its_prior_is_not_called_the_prior():
    priors = {"sd[Subject, Intercept]": pm.Gamma.dist(0.5, 0.1)}
    post = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors=priors).fit(random_seed=1)
    found = post.check.contraction(random_seed=1)
    assert found.table.loc["sd[Subject, Intercept]", "contraction"] < 0.1
    assert found.table.loc["sd[Subject, Intercept]", "overlap"] < 0.5
    text = " ".join(found.messages)
    assert "sd[Subject, Intercept]: the posterior is no narrower than the prior but lies" in text
    assert "mostly the prior" not in text


def test_implied_priors_in_closed_form():
    priors = {"sd[Batch]": pm.HalfNormal.dist(7.0), "sigma": pm.HalfNormal.dist(7.0)}
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors=priors)
    found = implied_priors(model.design, model.priors, 40_000, random_seed=1)
    # the ratio of two half-normal sds is half-Cauchy, so the ICC has the arcsine distribution
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    columns = ["q5", "q25", "q50", "q75", "q95"]
    expected = np.sin(0.5 * np.pi * levels) ** 2
    np.testing.assert_allclose(found.table.loc["icc[Batch]", columns], expected, atol=DRAWN)
    np.testing.assert_allclose(found.table.loc["r2[conditional]", columns], expected, atol=DRAWN)
    assert found.table.loc["r2[marginal]", "q95"] == 0.0
    # sums of two independent squares of normals: the total sd is Rayleigh
    rayleigh = stats.rayleigh(scale=7.0).ppf(levels)
    np.testing.assert_allclose(found.table.loc["total_sd", columns], rayleigh, rtol=2 * DRAWN)


def test_implied_spread_is_that_of_the_prior_predictive():
    data = blm.load_dataset("sleepstudy")
    model = blm.LMM(FORMULA, data, weights=1.0 / (1.0 + data["Days"]))
    found = implied_priors(model.design, model.priors, 10_000, random_seed=1)
    tree = model.prior_predictive(10_000, random_seed=2)
    y = tree["prior_predictive"]["y"].to_numpy()[0]
    spread = np.std(y, axis=1, ddof=1)
    expected = np.quantile(spread, [0.05, 0.5, 0.95])
    np.testing.assert_allclose(found.table.loc["sd_y", ["q5", "q50", "q95"]], expected, rtol=0.05)
    observed = np.std(model.design.y, ddof=1)
    assert found.table.loc["sd_y", "observed"] == pytest.approx(observed)
    below = np.mean(spread < observed)
    assert found.table.loc["sd_y", "prior_quantile"] == pytest.approx(below, abs=DRAWN)


def test_implied_priors_in_words():
    data = blm.load_dataset("Dyestuff")
    wide = {"sigma": pm.HalfNormal.dist(1e5), "sd[Batch]": pm.HalfNormal.dist(1.0)}
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", data, priors=wide)
    text = " ".join(implied_priors(model.design, model.priors, 2000, random_seed=1).messages)
    assert "more than a hundred times the observed" in text
    assert "expect a larger spread than the observed one" in text
    assert "icc[Batch] is between" in text
    with pytest.raises(ValueError, match="draws=1"):
        implied_priors(model.design, model.priors, 1)


# --- too few levels --------------------------------------------------------------------


def unbounded(formula, **columns):
    rng = np.random.default_rng(0)
    data = pd.DataFrame(columns).assign(y=lambda d: rng.standard_normal(len(d)))
    return list(unbounded_parameters(blm.LMM(formula, data).design))


@pytest.mark.parametrize(
    ("formula", "levels", "found"),
    [
        ("y ~ 1 + (1 | g)", 2, ["sd[g, Intercept]"]),
        ("y ~ 1 + (1 | g)", 3, []),
        ("y ~ 0 + (1 | g)", 2, []),
        ("y ~ z + (1 | g)", 3, ["sd[g, Intercept]"]),
        ("y ~ z + (1 | g)", 4, []),
        ("y ~ x + (1 | g)", 3, []),
        ("y ~ 1 + (1 | g) + (0 + x | g)", 2, ["sd[g, Intercept]"]),
        ("y ~ 1 + (x | g)", 2, ["sd[g, Intercept]", "cor[g, Intercept, x]"]),
        ("y ~ 1 + (1 | h)", 4, ["sd[h, Intercept]"]),
    ],
)
def test_levels_that_the_fixed_effects_leave(formula, levels, found):
    """z is constant within levels of g, x is not; h has two levels whatever g has."""
    g = np.repeat(np.arange(levels), 6)
    x = np.tile(np.arange(6.0), levels) ** 2
    assert unbounded(formula, g=g, x=x, z=g**2.0, h=g % 2) == found


def test_unbounded_is_what_flat_priors_make_improper():
    """The rule is that of the tail of the density, which the sampler measures."""
    g = np.repeat(np.arange(3), 6)
    y = np.random.default_rng(1).standard_normal(18)
    data = pd.DataFrame({"g": g, "z": g**2.0, "y": y})
    for formula in ("y ~ z + (1 | g)", "y ~ 1 + (1 | g)"):
        model = blm.LMM(formula, data, priors="flat")
        if unbounded_parameters(model.design):
            with pytest.raises(PriorError, match="improper"):
                model.fit(random_seed=1)
        else:
            model.fit(draws=100, random_seed=1)
