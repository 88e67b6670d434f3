"""Predictions of REML, ML and MAP estimates."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from dense import all_z, case_of, fixed_moments, random_moments
from monte_carlo import DEVIATIONS, EXACT, assert_mean, assert_second_moments
from reference_data import FOLDER, load_reference_data
from scipy import stats
from scipy.stats import norm
from slow_cases import one_in, slow

import bayeslmm as blm
from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.marginal import marginal_system, reml_criterion
from bayeslmm.prediction.rows import prediction_rows
from bayeslmm.sampling.joint_draws import estimate_draws

# Two optimisers at one optimum: the criterion is flat there, so that parameters agree to about the
# square root of its precision. In residual standard deviations.
OPTIMUM = 1e-4
# At a boundary lme4 stops short of it.
BOUNDARY = 1e-3
# Effective sample size over the number of draws, of weights by observed rows: at fixed covariance
# parameters only the fixed effects are weighted.
EFFICIENCY = 0.5

REFERENCE = json.loads((FOLDER / "prediction" / "prediction.json").read_text(encoding="utf-8"))
CASES = {case["id"]: case for case in REFERENCE["cases"]}
SEEN = {
    "Days": [0, 1, 4, 2, 9, 3],
    "Subject": ["new", "new", "new", "other", "other", "308"],
    "Reaction": [300.0, 310.0, 380.0, 250.0, 200.0, 260.0],
}


@pytest.fixture(scope="module")
def lme4_fits():
    """Estimates of the models that lme4 predicts."""

    def fit(case):
        data = load_reference_data(case["data"])
        return blm.LMM(case["formula"], data, weights=case["weights"]).reml()

    return {id_: fit(case) for id_, case in CASES.items()}


RE_FORM = {
    "conditional": {"target": "new"},
    "average": {"target": "average"},
    "intercept": {"target": "new", "terms": {"Subject": ["Intercept"]}},
    "slope": {"target": "new", "terms": {"Subject": ["Days"]}},
    "plate": {"target": "new", "terms": ["plate"]},
    "sample": {"target": "new", "terms": ["sample"]},
    "batch": {"target": "new", "terms": ["batch"]},
}


@pytest.mark.reference
@pytest.mark.parametrize(
    ("id_", "form"), [(id_, form) for id_, case in CASES.items() for form in case["re_form"]]
)
def test_points_are_those_of_lme4(lme4_fits, id_, form):
    case = CASES[id_]
    tolerance = (BOUNDARY if case["singular"] else OPTIMUM) * case["sigma"]
    table = lme4_fits[id_].predict(
        case["new"], uncertainty="plugin", draws=2, random_seed=1, **RE_FORM[form]
    )
    assert table["estimate"].to_numpy() == pytest.approx(case["re_form"][form], abs=tolerance)


def henderson(fit, rows):
    """Dense prediction error variances (n,) of X beta + Z u at the estimated parameters."""
    design, members = fit.design, rows.members
    case = case_of(design)
    factors = list(fit.fit.factors)
    sigma = fit.sigma
    v = sigma**2 * case.covariance(factors)
    z = all_z(case)
    g = fit.G().to_numpy()
    inverse = np.linalg.inv(v)
    vcov = np.linalg.inv(case.X.T @ inverse @ case.X)
    cross = -vcov @ case.X.T @ inverse @ z @ g
    p = inverse - inverse @ case.X @ vcov @ case.X.T @ inverse
    u_cov = g - g @ z.T @ p @ z @ g
    x = rows.design.X
    c = np.zeros((len(x), z.shape[1]))
    extra = np.zeros(len(x))
    start = 0
    for factor, member, t in zip(design.random, members, factors, strict=bool(members)):
        k = factor.n_coefs
        (own,) = member.levels
        for i, level in enumerate(own.known):
            if level >= 0:
                c[i, start + k * level : start + k * (level + 1)] = own.Z[i]
            elif own.fresh[i] >= 0:
                extra[i] += np.sum((sigma * t.T @ own.Z[i]) ** 2)
        start += k * factor.n_levels
    return (
        np.einsum("ni,ij,nj->n", x, vcov, x)
        + 2 * np.einsum("ni,ij,nj->n", x, cross, c)
        + np.einsum("ni,ij,nj->n", c, u_cov, c)
        + extra
    )


@pytest.mark.parametrize("id_", one_in(3, CASES))
def test_plugin_errors_are_those_of_henderson(lme4_fits, id_):
    fit, new, size = lme4_fits[id_], CASES[id_]["new"], 4000
    for options in RE_FORM["conditional"], RE_FORM["average"]:
        rows = prediction_rows(fit.design, new, options["target"])
        variances = henderson(fit, rows)
        table = fit.predict(new, uncertainty="plugin", draws=size, random_seed=1, **options)
        error = DEVIATIONS / np.sqrt(2 * size)
        assert table["std_error"].to_numpy() == pytest.approx(np.sqrt(variances), rel=error)
        # quantiles of 0.025 of normal draws have an error of 2.7 sd / sqrt(S)
        margin = norm.ppf(0.975) * np.sqrt(variances)
        tolerance = DEVIATIONS * 2.7 / np.sqrt(size) * np.sqrt(variances)
        assert np.all(np.abs(table["conf_high"] - table["estimate"] - margin) < tolerance)
        assert np.all(np.abs(table["estimate"] - table["conf_low"] - margin) < tolerance)
        response = fit.predict(
            new, uncertainty="plugin", draws=size, random_seed=1, kind="response", **options
        )
        total = np.sqrt(variances + fit.sigma**2)
        assert response["std_error"].to_numpy() == pytest.approx(total, rel=error)
        assert response["estimate"].equals(table["estimate"])


def test_estimate_given_observed_rows_is_that_of_all_rows(sleepstudy_reml, sleepstudy):
    """Dense BLUP and prediction errors of old and observed rows at the estimated parameters."""
    seen = pd.DataFrame(SEEN)
    new = pd.DataFrame({"Days": [6.0, 7.0, 7.0], "Subject": ["new", "308", "unseen"]})
    both = pd.concat([sleepstudy.astype({"Subject": str}), seen], ignore_index=True)
    other = blm.LMM("Reaction ~ Days + (Days | Subject)", both).design
    case = case_of(other)
    factors = list(sleepstudy_reml.fit.factors)
    beta, _ = fixed_moments(case, factors, sleepstudy_reml.sigma, np.zeros(2), np.zeros((2, 2)))
    modes, _ = random_moments(case, factors, sleepstudy_reml.sigma, beta)
    modes = modes.reshape(-1, 2)
    levels = list(other.random[0].levels)
    u = np.array([modes[levels.index("new")], modes[levels.index("308")], [0.0, 0.0]])
    z = np.column_stack([np.ones(3), new["Days"]])
    expected = z @ beta + np.sum(z * u, axis=1)
    size = 4000
    table = sleepstudy_reml.predict(
        new, target="new", observed=seen, uncertainty="plugin", draws=size, random_seed=1
    )
    assert table["estimate"].to_numpy() == pytest.approx(expected, rel=1e-7)
    assert sleepstudy_reml.predict(new, target="new", observed=seen, terms=[], draws=2)[
        "estimate"
    ].to_numpy() == pytest.approx(z @ beta, rel=1e-7)

    fit = blm.Estimate(
        model=Model(other, sleepstudy_reml.priors),
        fit=replace(sleepstudy_reml.fit, plan=marginal_system(other)),
    )
    variances = henderson(fit, prediction_rows(other, new, "new"))
    error = DEVIATIONS / np.sqrt(2 * EFFICIENCY * size)
    assert table["std_error"].to_numpy() == pytest.approx(np.sqrt(variances), rel=error)
    middle = 0.5 * (table["conf_low"] + table["conf_high"])
    assert np.all(np.abs(middle - table["estimate"]) < 0.2 * table["std_error"])


@pytest.mark.parametrize("id_", ["sleepstudy", "crossed", "weights", "log", "cells"])
def test_laplace_draws_have_the_asymptotic_covariance(lme4_fits, id_):
    fit = lme4_fits[id_]
    size = 4000
    joint = estimate_draws(fit.design, fit.fit, "laplace", size, 1)
    for covariance in joint.covariances:
        assert np.linalg.eigvalsh(covariance).min() > 0.0
    columns, kept, start = [], [], 0
    for sds, covariance in zip(joint.points.sds, joint.covariances, strict=True):
        k = sds.shape[1]
        columns.append(np.log(sds))
        pairs = k * (k - 1) // 2
        kept += range(start, start + k + (pairs if k == 2 else 0))
        if k == 2:  # with k > 2 correlations move on a curve, so that theirs is asymptotic
            rho = covariance[:, 0, 1] / sds.prod(axis=1)
            columns.append(np.arctanh(rho)[:, None])
        start += k + pairs
    columns.append(np.log(joint.sigma)[:, None])
    values = np.concatenate(columns, axis=1)
    kept.append(start)
    mean = fit.fit.parameters[kept]
    assert_mean(values, mean)
    assert_second_moments(values - mean, fit.fit.parameter_cov[np.ix_(kept, kept)])


@pytest.mark.parametrize("id_", ["sleepstudy", "cells"])
def test_laplace_draws_near_the_estimate(lme4_fits, id_):
    """Where draws stay so near that curvature does not matter, all parameters have the covariance
    of the asymptotic distribution, three correlations of one factor included."""
    fit = lme4_fits[id_]
    shrink = 1e-6
    near = replace(fit.fit, parameter_cov=shrink * fit.fit.parameter_cov)
    joint = estimate_draws(fit.design, near, "laplace", 4000, 1)
    (covariances,), (sds,) = joint.covariances, joint.points.sds
    correlations = covariances / (sds[:, :, None] * sds[:, None, :])
    pairs = np.tril_indices(sds.shape[1], -1)
    values = np.column_stack(
        [np.log(sds), np.arctanh(correlations[:, pairs[0], pairs[1]]), np.log(joint.sigma)]
    )
    away = (values - fit.fit.parameters) / np.sqrt(shrink)
    assert_second_moments(away, fit.fit.parameter_cov)


def test_laplace_adds_the_uncertainty_of_the_covariance_parameters(sleepstudy_reml):
    new = {"Days": [9.0], "Subject": ["x"]}
    options = {"target": "new", "draws": 4000, "random_seed": 1}
    plain = sleepstudy_reml.predict(new, uncertainty="plugin", **options)
    wide = sleepstudy_reml.predict(new, **options)
    assert wide["std_error"].item() > 1.02 * plain["std_error"].item()
    assert wide["estimate"].item() == plain["estimate"].item()


@pytest.mark.parametrize("name", [slow("Dyestuff"), "Dyestuff2"])
def test_bootstrap_draws_mix_over_refits(name):
    """Variance by the law of total variance over the refits, each by dense algebra."""
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset(name)).reml()
    size = 30
    joint = estimate_draws(reml.design, reml.fit, "bootstrap", size, 1)
    fits = bootstrap_fits(reml.design, reml.fit, size, np.random.default_rng(1), progressbar=False)
    assert joint.sigma == pytest.approx([fit.sigma for fit in fits], rel=EXACT)
    case = case_of(reml.design)
    white = []
    for s, fit in enumerate(fits):
        factors = list(fit.factors)
        mean, cov = fixed_moments(case, factors, fit.sigma, np.zeros(1), np.zeros((1, 1)))
        white.append((joint.beta[s] - mean) / np.sqrt(cov[0, 0]))
    assert_mean(np.array(white), 0.0)
    assert_second_moments(np.array(white), np.eye(1))
    (u,) = joint.effects([np.arange(6)])
    singular = np.array([fit.singular for fit in fits])
    assert singular.any() and not singular.all()
    assert np.abs(u[singular]).max() < 1e-6 * reml.sigma
    table = reml.predict(uncertainty="bootstrap", draws=5, random_seed=1, progressbar=False)
    assert np.all(table["std_error"] > 0)


def test_singular_estimates(lme4_fits):
    fit = lme4_fits["singular"]
    assert np.all(fit.predict(draws=50, random_seed=1)["std_error"] > 0)
    table = fit.predict(uncertainty="plugin", draws=2000, random_seed=1)
    expected = fit.fit.vcov[0, 0] ** 0.5
    assert table["std_error"].to_numpy() == pytest.approx(
        np.full(30, expected), rel=DEVIATIONS / np.sqrt(4000)
    )


def test_laplace_at_zero_is_the_likelihood_folded(lme4_fits):
    """Against the restricted likelihood on a grid of theta, sigma maximised out."""
    fit = lme4_fits["singular"]
    theta = np.linspace(0.0, 1.5, 301)
    plan = fit.fit.plan
    criterion = [reml_criterion(factorise(plan, [np.array([[t]])])) for t in theta]
    density = np.exp(-0.5 * (np.array(criterion) - fit.criterion))
    cdf = np.cumsum(density) / density.sum()
    joint = estimate_draws(fit.design, fit.fit, "laplace", 4000, 1)
    found = np.median(joint.points.sds[0][:, 0] / joint.sigma)
    # The likelihood's tail is heavier than the normal's, which moves its median by 10 %.
    assert found == pytest.approx(np.interp(0.5, cdf, theta), rel=0.15)


@pytest.mark.parametrize("excess", [1.02, 1.5])
def test_laplace_near_zero_is_folded_too(excess):
    """A log standard deviation with an error of many units would make draws of any size."""
    rng = np.random.default_rng(1)
    noise = rng.standard_normal((4, 5))
    noise -= noise.mean(axis=1, keepdims=True)
    noise /= np.sqrt(np.sum(noise**2) / 16)
    means = np.array([-1.5, -0.5, 0.5, 1.5])
    means *= np.sqrt(excess / 5) / means.std(ddof=1)
    frame = pd.DataFrame({"y": (means[:, None] + noise).ravel(), "g": np.repeat(list("abcd"), 5)})
    reml = blm.LMM("y ~ 1 + (1 | g)", frame).reml()
    assert not reml.singular
    theta = np.sqrt((excess - 1) / 5)
    assert reml.sds["g"].iloc[0] / reml.sigma == pytest.approx(theta, rel=1e-4)
    joint = estimate_draws(reml.design, reml.fit, "laplace", 4000, 1)
    found = joint.points.sds[0][:, 0] / joint.sigma
    spread = np.sqrt(reml.fit.internal_cov[0, 0])
    folded = stats.foldnorm(theta / spread, scale=spread)
    assert stats.kstest(found, folded.cdf).pvalue > 0.01
    table = reml.predict(random_seed=1)
    assert np.isfinite(table).all(axis=None)
    assert (table["std_error"] < 1.0).all()


def test_singular_correlations_keep_their_covariance():
    data = load_reference_data("sim_corr_pos")
    reml = blm.LMM("y ~ x + (x | g)", data).reml()
    assert reml.singular
    joint = estimate_draws(reml.design, reml.fit, "plugin", 3, 1)
    for covariance in joint.covariances[0]:
        assert covariance == pytest.approx(reml._covariances[0], rel=1e-9, abs=1e-12)


def test_map_estimates(sleepstudy_model):
    estimate = sleepstudy_model.map()
    new = {"Days": [9.0, 9.0], "Subject": ["308", "x"]}
    table = estimate.predict(new, target="new", random_seed=1)
    u = estimate.ranef()["Subject"].loc["308"].to_numpy()
    expected = np.array([1.0, 9.0]) @ (estimate.beta.to_numpy() + u)
    assert table["estimate"].iloc[0] == pytest.approx(expected, rel=EXACT)
    with pytest.raises(SamplingError, match="this one is MAP"):
        estimate.predict(new, target="new", uncertainty="bootstrap")


def test_singular_correlations_of_four_coefficients_can_be_drawn_around():
    """No single correlation is one there, only their matrix is singular."""
    rng = np.random.default_rng(0)
    group, kind = np.repeat(np.arange(40), 20), np.tile(np.arange(4), 200)
    y = rng.normal(size=40)[group] + rng.normal(size=800)
    data = pd.DataFrame({"y": y, "kind": kind.astype(str), "g": group.astype(str)})
    reml = blm.LMM("y ~ 1 + (kind | g)", data).reml()
    assert reml.singular
    joint = estimate_draws(reml.design, reml.fit, "laplace", 20, 1)
    assert np.linalg.eigvalsh(joint.covariances[0]).min() > -1e-9


# --- closed forms ----------------------------------------------------------------------


def test_the_average_has_the_exact_error_and_interval_of_its_mean(sleepstudy_reml):
    new = pd.DataFrame({"Days": [0.0, 3.5, 12.0], "id": ["a", "b", "c"]})
    found = sleepstudy_reml.predict(new, target="average")
    for seed in (1, 2):
        pd.testing.assert_frame_equal(
            found, sleepstudy_reml.predict(new, target="average", random_seed=seed)
        )
    for i, days in enumerate(new["Days"]):
        mean = sleepstudy_reml.means(at={"Days": days}).table().iloc[0]
        for column in found:
            assert found[column].iloc[i] == pytest.approx(mean[column], rel=EXACT)
    wide = sleepstudy_reml.predict(new, target="average", level=0.5)
    assert (wide["conf_low"] > found["conf_low"]).all()


@pytest.mark.parametrize("method", ["reml", "ml", "map"])
@pytest.mark.parametrize("kind", ["linpred", "epred", "response"])
@pytest.mark.parametrize("target", ["average", "population", "new"])
def test_closed_forms_are_what_draws_come_to(sleepstudy_model, method, kind, target):
    fit = getattr(sleepstudy_model, method)()
    new = pd.DataFrame({"Days": [0.0, 9.0], "Subject": ["one", "two"]})
    options = {"target": target, "kind": kind, "uncertainty": "plugin"}
    exact = fit.predict(new, **options)
    z = np.column_stack([np.ones(2), new["Days"]])
    variance = np.einsum("ni,ij,nj->n", z, fit.vcov.to_numpy(), z)
    if target != "average":
        sds = fit.sds["Subject"].to_numpy()
        covariance = np.outer(sds, sds) * fit.corrs["Subject"].to_numpy()
        variance += np.einsum("ni,ij,nj->n", z, covariance, z)
    if kind == "response":
        variance += fit.sigma**2
    np.testing.assert_allclose(exact["std_error"], np.sqrt(variance), rtol=EXACT)
    margin = exact["conf_high"] - exact["estimate"]
    np.testing.assert_allclose(margin, norm.isf(0.025) * np.sqrt(variance), rtol=EXACT)


def test_refits_stay_draws(sleepstudy_model):
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    options = {"target": "average", "uncertainty": "bootstrap", "draws": 20, "progressbar": False}
    found = reml.predict(**options, random_seed=1)
    assert not found["std_error"].equals(reml.predict(target="average")["std_error"])


def test_weights_are_in_the_error_of_a_response(sleepstudy):
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", sleepstudy, weights=np.full(180, 2.0)).reml()
    new = pd.DataFrame({"Days": [1.0, 1.0]})
    options = {"target": "average", "uncertainty": "plugin", "weights": [1.0, 4.0]}
    mean = reml.predict(new, **options)["std_error"]
    response = reml.predict(new, kind="response", **options)["std_error"]
    np.testing.assert_allclose(
        response**2 - mean**2, reml.sigma**2 / np.array([1.0, 4.0]), rtol=1e-6
    )
