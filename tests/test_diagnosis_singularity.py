"""Singularity of random effects: against lme4's rePCA, closed forms and counts of draws."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.checks.singularity import (
    effective_rank,
    integrated_likelihood,
    posterior_messages,
    working_points,
)
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.residual import PLAIN
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import Parameter, covariance_parameters, joint_parameter

FOLDER = Path(__file__).parent / "reference"
LME4 = 2e-4
"""Relative accuracy of lme4's optimum in singular values: its criterion is flat there."""
SLICES = 0.1
"""Relative Monte Carlo error of 100 conditional densities, some three standard errors."""

FORMULAS = {
    "sleepstudy": "Reaction ~ Days + (Days | Subject)",
    "Penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)",
    "Pastes": "strength ~ 1 + (1 | batch) + (1 | sample)",
    "Machines": "score ~ Machine + (Machine | Worker)",
}


@pytest.mark.parametrize("name", FORMULAS)
def test_principal_components_are_those_of_lme4(name):
    reference = pd.read_csv(FOLDER / "influence" / "pca.csv")
    expected = reference[reference["fit"] == name].set_index(["group", "component"])
    reml = blm.LMM(FORMULAS[name], blm.load_dataset(name)).reml()
    found = reml.check.singularity(standardise=False).pca.loc[expected.index]
    np.testing.assert_allclose(found["sd"], expected["sd"], rtol=LME4)
    np.testing.assert_allclose(found["cumulative"], expected["cumulative"], rtol=LME4)


def test_standardised_components_do_not_depend_on_units(sleepstudy_model):
    data = blm.load_dataset("sleepstudy").assign(Days=lambda d: 1000.0 * d["Days"])
    other = blm.LMM(FORMULAS["sleepstudy"], data).reml().check.singularity()
    here = sleepstudy_model.reml().check.singularity()
    for column in ("sd", "cumulative"):
        np.testing.assert_allclose(other.pca[column], here.pca[column], rtol=1e-6)
    np.testing.assert_allclose(other.table["relative"], here.table["relative"], rtol=1e-6)


def test_estimate_at_zero_is_at_the_boundary(dyestuff2_model):
    found = dyestuff2_model.reml().check.singularity()
    assert found.singular
    assert found.table["at_boundary"].tolist() == [True]
    assert "estimated at zero" in str(found)
    assert "not singular" in str(
        blm.LMM(FORMULAS["Pastes"], blm.load_dataset("Pastes")).reml().check.singularity()
    )


def test_perfect_correlation_is_at_the_boundary():
    data = pd.read_csv(FOLDER / "data" / "sim_corr_pos.csv")
    reml = blm.LMM(_slope_formula(), data).reml()
    table = reml.check.singularity().table
    assert reml.singular
    assert table["at_boundary"].tolist() == [False, False, True]


@pytest.mark.parametrize("shift", [100.0, 1e6])
def test_a_fit_is_not_singular_for_the_origin_of_a_covariate(shift):
    data = blm.load_dataset("sleepstudy").assign(Days=lambda d: d["Days"] + shift)
    reml = blm.LMM(FORMULAS["sleepstudy"], data).reml()
    assert reml.corrs["Subject"].iloc[0, 1] < -0.99  # of the subjects at day zero, long before
    assert not reml.singular
    assert not reml.notes
    assert not reml.check.singularity().table["at_boundary"].any()


def test_a_zero_of_another_factor_leaves_the_correlation_where_it_is():
    data = blm.load_dataset("sleepstudy").assign(
        Days=lambda d: d["Days"] + 1e6, odd=lambda d: d["Subject"].astype(int) % 2
    )
    reml = blm.LMM("Reaction ~ Days + (Days | Subject) + (1 | odd)", data).reml()
    assert reml.sds["odd"].iloc[0] == 0.0
    table = reml.check.singularity().table
    assert list(table.index[table["at_boundary"]]) == ["sd[odd, Intercept]"]


def test_posterior_at_a_perfect_correlation():
    data = pd.read_csv(FOLDER / "data" / "sim_corr_pos.csv")
    found = blm.LMM(_slope_formula(), data).fit(random_seed=1).check.singularity()
    label = found.table.index[-1]
    assert found.reml_singular
    assert found.table.loc[label, "support"] > 0.15
    assert "a perfect correlation is compatible" in " ".join(found.messages)
    assert "REML is singular, and the posterior agrees" in found.messages[-1]


def _slope_formula():
    import json

    fit = json.loads((FOLDER / "fits" / "sim_corr_pos__slope_reml.json").read_text())
    return fit["formula"]


def _one_way(zero):
    """Log likelihood (A, B) on grids of sd and sigma, from the eigenvalues of a balanced design."""
    design, priors = zero.design, zero.priors
    y = design.y.reshape(6, 5) if np.all(np.diff(design.random[0].codes) >= 0) else None
    assert y is not None
    tau = priors.beta[0].sigma
    s = np.concatenate([[0.0], np.linspace(1e-3, 25.0, 1500)])
    sigma = np.linspace(1.5, 15.0, 400)
    within = np.sum((y - y.mean(axis=1, keepdims=True)) ** 2)
    between = 5.0 * np.sum((y.mean(axis=1) - y.mean()) ** 2)
    mean = 30.0 * (y.mean() - priors.beta[0].mu) ** 2
    v = sigma**2 + np.zeros((len(s), 1))
    b = v + 5.0 * s[:, None] ** 2
    m = b + 30.0 * tau**2
    log_det = 24.0 * np.log(v) + 5.0 * np.log(b) + np.log(m)
    log_lik = -0.5 * (log_det + within / v + between / b + mean / m)
    return s, sigma, log_lik


def test_integrated_likelihood_at_zero_is_that_of_quadrature(dyestuff2_model, dyestuff2_fit):
    s, sigma, log_lik = _one_way(dyestuff2_model)
    log_lik = log_lik + dyestuff2_model.priors.sigma.logpdf(sigma) + np.log(np.gradient(sigma))
    over_sigma = logsumexp(log_lik, axis=1)
    weights = np.gradient(s)
    evidence = logsumexp(over_sigma + dyestuff2_model.priors.sd[0][0].logpdf(s) + np.log(weights))
    row = dyestuff2_fit.check.singularity().table.iloc[0]
    assert row["bayes_factor"] == pytest.approx(np.exp(over_sigma[0] - evidence), rel=SLICES)
    assert row["support"] == pytest.approx(np.exp(over_sigma[0] - over_sigma.max()), rel=SLICES)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_integrated_likelihood_gives_the_posterior_back(sleepstudy_model, sleepstudy_fit, place):
    row = covariance_parameters(sleepstudy_model.design)[place]
    values, curve = integrated_likelihood(
        sleepstudy_fit.model.system, sleepstudy_model.priors, sleepstudy_fit._joint, row
    )
    values, curve = values[:-1], curve[:-1]
    if row.kind == "cor":
        values, curve = values[:-1], curve[:-1]
        prior = np.full(len(values), np.log(0.5))
    else:
        prior = sleepstudy_model.priors.sd[0][place].logpdf(values)
    density = np.exp(curve + prior)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(values))])
    points = working_points(sleepstudy_model.priors, sleepstudy_fit._joint)
    roots = points.chols[0]
    correlations = (roots @ roots.swapaxes(1, 2))[:, 0, 1]
    draws = correlations if row.kind == "cor" else points.sds[0][:, place]
    quantiles = np.quantile(draws, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(np.interp(quantiles, values, mass), [0.1, 0.5, 0.9], atol=0.04)


def test_table_counts_draws(sleepstudy_model, sleepstudy_fit):
    found = sleepstudy_fit.check.singularity(eps=0.6, rho=0.3)
    sd = sleepstudy_fit._draws["sd_Subject"].to_numpy().reshape(-1, 2)
    sigma = sleepstudy_fit._draws["sigma"].to_numpy().ravel()
    cor = sleepstudy_fit._draws["cor_Subject"].to_numpy()[..., 0, 1].ravel()
    slope = sd[:, 1] * np.std(sleepstudy_model.design.X[:, 1], ddof=1) / sigma
    expected = [np.mean(sd[:, 0] / sigma < 0.6), np.mean(slope < 0.6), np.mean(np.abs(cor) > 0.3)]
    np.testing.assert_allclose(found.table["probability"], expected, atol=1e-12)
    assert 0.0 < expected[1] < 1.0
    np.testing.assert_allclose(found.table["relative"].iloc[1], np.median(slope))


def test_components_of_draws(sleepstudy_model, sleepstudy_fit):
    found = sleepstudy_fit.check.singularity(standardise=False)
    first = []
    for cov in sleepstudy_fit._joint.covariances[0][::50]:
        values = np.linalg.eigvalsh(cov)
        first.append(values[-1] / values.sum())
    assert found.pca.loc[("Subject", 1), "mean"] == pytest.approx(np.mean(first), abs=0.02)
    assert found.pca.loc[("Subject", 2), "mean"] == pytest.approx(1.0)


def test_effective_rank():
    shares = np.array([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]])
    expected = [2.0, 1.0, np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1))]
    np.testing.assert_allclose(effective_rank(shares), expected)


def test_words(dyestuff2_fit, sleepstudy_fit):
    text = " ".join(dyestuff2_fit.check.singularity().messages)
    assert "zero is compatible with the data" in text
    assert "REML is singular, and the posterior agrees" in text
    text = " ".join(sleepstudy_fit.check.singularity().messages)
    assert "zero is not compatible" in text
    assert "REML is not singular, and the posterior stays away" in text
    assert "<table" in dyestuff2_fit.check.singularity()._repr_html_()


def test_weights_count_in_the_residual_deviation(sleepstudy_model):
    data = blm.load_dataset("sleepstudy")
    reml = blm.LMM(FORMULAS["sleepstudy"], data, weights=np.full(180, 4.0)).reml()
    found, expected = (
        reml.check.singularity().table,
        sleepstudy_model.reml().check.singularity().table,
    )
    np.testing.assert_allclose(found["relative"], expected["relative"], rtol=1e-6)


def test_flat_priors_have_support_and_no_bayes_factor():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors="flat")
    row = model.fit(random_seed=1).check.singularity().table.iloc[0]
    assert np.isnan(row["bayes_factor"])
    assert 0.0 < row["support"] < 0.15


@pytest.mark.parametrize(
    ("formula", "name"),
    [
        ("score ~ Machine + (Machine | Worker)", "Machines"),
        slow("Reaction ~ Days + (Days || Subject)", "sleepstudy"),
        slow("Reaction ~ 0 + Days + (0 + Days | Subject)", "sleepstudy"),
        slow(FORMULAS["Pastes"], "Pastes"),
    ],
)
def test_other_models(formula, name):
    model = blm.LMM(formula, blm.load_dataset(name))
    found = model.fit(draws=100, random_seed=1, store_u=False).check.singularity()
    assert len(found.messages) >= len(found.table) + 1
    correlated = found.table.index.str.startswith("cor") & (name == "Machines")
    assert np.isfinite(found.table["support"][~correlated]).all()
    assert found.table["support"][correlated].isna().all()


def _three_coefficients(roots, seed):
    """40 levels of 20 rows, random effects ``z @ roots`` and standard normal residuals."""
    rng = np.random.default_rng(seed)
    group, x = np.repeat(np.arange(40), 20), rng.normal(size=(800, 2))
    u = rng.normal(size=(40, len(roots))) @ np.asarray(roots)
    y = u[group, 0] + np.sum(u[group, 1:] * x, axis=1) + rng.normal(size=800)
    data = pd.DataFrame({"y": y, "a": x[:, 0], "b": x[:, 1], "g": group.astype(str)})
    return blm.LMM("y ~ a + b + (a + b | g)", data)


def test_a_small_share_of_a_large_variance_is_not_negligible():
    post = _three_coefficients(np.diag([100.0, 5.0, 5.0]), 0).fit(method="laplace", random_seed=1)
    found = post.check.singularity()
    row = found.rank.loc["g"]
    assert row["p_deficient"] > 0.99
    assert row["p_negligible"] == 0.0
    text = " ".join(found.messages)
    assert "this does not show that fewer dimensions would do" in text
    assert ". Fewer dimensions would do" not in text
    smallest = []
    scale = np.array([1.0, *np.std(post.design.X[:, 1:], axis=0, ddof=1)])
    for cov, sigma in zip(post._joint.covariances[0], post._joint.sigma, strict=True):
        values = np.linalg.eigvalsh(cov * np.outer(scale, scale))
        smallest.append(np.sqrt(values[0]) / sigma)
    middle = float(np.median(smallest))
    share = post.check.singularity(eps=middle, standardise=False).rank.loc["g", "p_negligible"]
    assert share == pytest.approx(0.5, abs=1e-3)
    assert ". Fewer dimensions would do" in " ".join(
        post.check.singularity(eps=2 * middle).messages
    )


def test_boundaries_that_were_not_judged_are_named():
    names = "cor[g, Intercept, a], cor[g, Intercept, b] and cor[g, a, b]"
    dependent = _three_coefficients([[1.0, 0.0, 0.7], [0.0, 1.0, 0.7]], 0)
    found = dependent.fit(method="laplace", random_seed=1).check.singularity()
    assert found.reml_singular
    assert found.table["support"].isna().sum() == 3
    last = found.messages[-1]
    assert last.startswith("REML is singular, although every boundary that was judged")
    assert f"Not judged were the boundaries of {names}" in last
    assert "No single parameter's boundary" not in last
    independent = _three_coefficients(np.eye(3), 1)
    found = independent.fit(method="laplace", random_seed=1).check.singularity()
    assert not found.reml_singular
    assert f"Not judged were the boundaries of {names}" in found.messages[-1]
    assert "stays away from the boundary too" not in found.messages[-1]


def test_words_on_boundaries_that_were_judged():
    rank = pd.DataFrame({"n_coefs": [2]}, index=["g"])
    columns = {"probability": 0.1, "support": 0.01}
    table = pd.DataFrame(columns, index=["sd[g, a]", "cor[g, a, b]"])
    options = {"eps": 0.05, "rho": 0.95}
    last = posterior_messages(table, rank, reml_singular=True, **options)[-1]
    assert last.endswith(
        "No single parameter's boundary is supported once the others are integrated out."
    )
    last = posterior_messages(table, rank, reml_singular=False, **options)[-1]
    assert last == "REML is not singular, and the posterior stays away from the boundary too."
    table.loc["cor[g, a, b]", "support"] = np.nan
    table.loc["sd[g, a]", "support"] = 0.5
    last = posterior_messages(table, rank, reml_singular=True, **options)[-1]
    assert "boundary is possible (sd[g, a])" in last
    assert "Not judged were the boundaries of cor[g, a, b]" in last


def test_correlations_stay_within_their_bounds():
    chol = np.array([[[1.0, 0.0], [1.0 + 1e-15, 1e-9]]])
    points = Points(
        sds=(np.ones((1, 2)),),
        chols=(chol,),
        sigma=np.ones(1),
        shapes=np.empty((1, 0)),
        residual=PLAIN,
        beta=np.empty((1, 0)),
    )
    joint = JointDraws(shape=(1, 1), beta=np.empty((1, 0)), points=points, effects=lambda _: [])
    row = Parameter("cor[g, a, b]", "cor", "g", ("a", "b"), 0, (0, 1))
    assert joint_parameter(joint, row).item() == 1.0
    prior = points
    assert joint_parameter(prior, row).item() == 1.0


@pytest.mark.parametrize(
    ("options", "match"), [({"eps": 0.0}, "eps=0.0"), ({"rho": 1.0}, "rho=1.0")]
)
def test_options_are_checked(dyestuff2_fit, options, match):
    with pytest.raises(ValueError, match=match):
        dyestuff2_fit.check.singularity(**options)
