"""The collapsed sampler against Stan, numerical integration and dense algebra."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import arviz as az
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dense import case_of, fixed_moments, log_posterior_dense, random_moments
from reference_data import list_posteriors, load_posterior, load_posterior_data
from sampler_search import Case, bridged, coordinates, difference
from scipy.stats import kstest, laplace, multivariate_t, skew
from slow_cases import one_in, slow, whole
from test_stan import draws_by_reference_name

import bayeslmm as blm
from bayeslmm.data.building import build_design
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import PriorError
from bayeslmm.likelihood.log_posterior import (
    log_posterior_batch,
    log_posterior_unconstrained,
    reduce_at,
)
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.defaults import default_priors
from bayeslmm.sampling.collapsed import fit_collapsed, fit_laplace
from bayeslmm.sampling.joint_draws import points_of
from bayeslmm.sampling.nuts import sample_nuts

# What exact means here, in posterior sds and after three of Stan's Monte Carlo errors. With
# 4 x 10,000 draws our own Monte Carlo errors are 0.005 (means), 0.4% (sds), 0.011 (5% quantiles),
# so that all of some 450 parameters stay within five of them.
MEAN = 0.03
SD = 0.025
QUANTILE = 0.06
STAN_ERRORS = 3.0
# Agreement with integration that has no error of its own, in our Monte Carlo errors: the largest
# of about 150 scores.
MAX_Z = 4.5
EVIDENCE = 0.03

MAX_RHAT = 1.01
MIN_ESS = 1500.0
MAX_K = 0.7
BRIDGE = 0.05  # of log evidence by 6,000 dependent particles: 0.01 to 0.02 from run to run

REFERENCES = list_posteriors()
EARLY = {"Dyestuff2__int", "Orthodont__slope", "Penicillin__crossed", "sleepstudy__uncor"}
"""References of the default run: its tests have one long fit to each in common."""


def early(names: list[str]) -> list[str]:
    """All names, those that are not of the default run marked as slow."""
    return [name if name in EARLY else slow(name) for name in names]


@cache
def reference_model(name: str):
    reference = load_posterior(name)
    design = build_design(reference["formula"], load_posterior_data(name))
    return reference, design, marginal_system(design), default_priors(design)


@cache
def precise(name: str) -> xr.DataTree:
    _, design, _, priors = reference_model(name)
    return fit_collapsed(Model(design, priors), draws=10_000, random_seed=31)


def ours(tree: xr.DataTree, name: str) -> dict[str, np.ndarray]:
    reference, design, _, _ = reference_model(name)
    draws = draws_by_reference_name(tree["posterior"].dataset, design, reference)
    return {key: draws[key] for key in reference["parameters"]}


def fit(model: blm.LMM, draws: int = 10_000, seed: int = 32) -> xr.DataTree:
    return fit_collapsed(model.model, draws=draws, random_seed=seed)


def worst_diagnostics(tree: xr.DataTree) -> tuple[float, float]:
    """Largest R-hat and smallest bulk ESS over all entries that vary."""
    rhats, sizes = [], []
    for variable in tree["posterior"].data_vars.values():
        values = variable.to_numpy().reshape(*variable.shape[:2], -1)
        values = values[..., np.ptp(values, axis=(0, 1)) > 0]
        data = xr.Dataset({"x": (("chain", "draw", "i"), values)})
        if values.shape[2]:
            rhats.append(float(az.rhat(data)["x"].max()))
            sizes.append(float(az.ess(data, method="bulk")["x"].min()))
    return max(rhats), min(sizes)


def assert_healthy(tree: xr.DataTree) -> None:
    rhat, ess = worst_diagnostics(tree)
    assert rhat < MAX_RHAT
    assert ess > MIN_ESS
    # The k of one chain is an estimate with an error of 0.1 or more.
    assert float(tree["sample_stats"]["pareto_k"].mean()) < MAX_K


# --- against Stan and quadrature -----------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("name", early(REFERENCES))
def test_posterior_is_that_of_stan(name):
    reference = reference_model(name)[0]
    for key, draws in ours(precise(name), name).items():
        expected = reference["parameters"][key]
        sd = expected["sd"]
        allowed = MEAN * sd + STAN_ERRORS * expected["mcse_mean"]
        assert draws.mean() == pytest.approx(expected["mean"], abs=allowed), key
        allowed = SD * sd + STAN_ERRORS * expected["mcse_sd"]
        assert draws.std(ddof=1) == pytest.approx(sd, abs=allowed), key
        for level in (5, 95) if "mcse_q" in expected else ():  # not stated for random effects
            allowed = QUANTILE * sd + STAN_ERRORS * expected["mcse_q"][str(level)]
            found = np.percentile(draws, level)
            assert found == pytest.approx(expected[f"q{level}"], abs=allowed), (key, level)


@pytest.mark.reference
@pytest.mark.parametrize(
    "name", early([n for n in REFERENCES if "quadrature" in load_posterior(n)])
)
def test_moments_are_those_of_quadrature(name):
    exact = load_posterior(name)["quadrature"]
    draws = ours(precise(name), name)
    for key, mean in exact["means"].items():
        for statistic, expected in (("mean", mean), ("sd", exact["sds"][key])):
            error = float(az.mcse(draws[key], method=statistic))
            found = getattr(np, statistic.replace("sd", "std"))(draws[key])
            assert abs(found - expected) < MAX_Z * error, (key, statistic)
    tree = precise(name)
    found = tree.attrs["log_evidence"]
    assert found == pytest.approx(exact["log_marginal_likelihood"], abs=EVIDENCE)
    z = (found - exact["log_marginal_likelihood"]) / tree.attrs["log_evidence_error"]
    assert abs(z) < MAX_Z


@pytest.mark.reference
@pytest.mark.parametrize("name", early(REFERENCES))
def test_evidence_is_that_of_importance_sampling(name):
    other = load_posterior(name)["crosscheck"]
    tree = precise(name)
    error = np.hypot(other["log_marginal_likelihood_se"], tree.attrs["log_evidence_error"])
    assert abs(tree.attrs["log_evidence"] - other["log_marginal_likelihood"]) < 3 * error
    assert tree.attrs["log_evidence_error"] < 0.01


@pytest.mark.reference
@pytest.mark.parametrize("name", early(REFERENCES))
def test_default_size_converges(name):
    _, design, _, priors = reference_model(name)
    assert_healthy(fit_collapsed(Model(design, priors), random_seed=33))


# --- what the tree holds -------------------------------------------------------------------------


def test_tree_has_the_layout_of_other_methods(sleepstudy_model):
    tree = fit(sleepstudy_model, draws=50)
    other = fit_laplace(sleepstudy_model.model, draws=50, random_seed=1)
    assert set(tree.children) == set(other.children)
    for group in ("posterior", "observed_data", "constant_data"):
        found, expected = tree[group].dataset, other[group].dataset
        assert list(found.data_vars) == list(expected.data_vars)
        for name in expected.data_vars:
            assert found[name].dims == expected[name].dims
            assert found[name].dtype == expected[name].dtype
        assert list(found.coords) == list(expected.coords)
        for name in expected.coords:
            assert found[name].dims == expected[name].dims
            assert name == "cor_Subject" or found[name].equals(expected[name])  # draws of its own


def test_statistics_and_attributes(sleepstudy_model):
    tree = fit(sleepstudy_model, draws=60, seed=34)
    stats = tree["sample_stats"].dataset
    assert {"lp", "acceptance_rate", "pareto_k", "n_evaluations"} <= set(stats.data_vars)
    assert stats["lp"].dims == stats["acceptance_rate"].dims == ("chain", "draw")
    assert stats["pareto_k"].dims == stats["n_evaluations"].dims == ("chain",)
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert float(stats["n_evaluations"].sum()) > 4 * 60
    x = coordinates_of(sleepstudy_model, tree)[:, 2 * 60 + 17]
    lp = log_posterior_unconstrained(sleepstudy_model.system, sleepstudy_model.priors, x)[0]
    assert stats["lp"][2, 17].item() == pytest.approx(lp, abs=1e-8)
    assert tree.attrs["method"] == "collapsed"
    assert tree.attrs["inference_library"] == "bayeslmm"
    assert tree.attrs["sampling_time"] > 0
    assert 0 < tree.attrs["log_evidence_error"] < 0.1


def test_evaluations_are_counted(dyestuff_model, monkeypatch):
    from bayeslmm.sampling import surrogate

    counted = 0
    real = surrogate.reduce_at

    def counting(system, coordinates, x):
        nonlocal counted
        counted += len(x)
        return real(system, coordinates, x)

    monkeypatch.setattr(surrogate, "reduce_at", counting)
    tree = fit(dyestuff_model, draws=40)
    # The equations of the fixed effects are evaluated once more for each draw.
    assert float(tree["sample_stats"]["n_evaluations"].sum()) == counted - 4 * 40


def test_size_of_the_result(dyestuff_model):
    tree = fit_collapsed(dyestuff_model.model, draws=7, chains=3, random_seed=1)
    assert dict(tree["posterior"].sizes) | {"chain": 3, "draw": 7} == dict(tree["posterior"].sizes)


def test_the_seed_decides(sleepstudy_model):
    trees = [fit(sleepstudy_model, draws=30, seed=seed) for seed in (35, 35, 36)]
    generator = fit(sleepstudy_model, draws=30, seed=np.random.default_rng(35))
    first, again, other = (tree["posterior"].to_dataset() for tree in trees)
    assert first.equals(again)
    assert first.equals(generator["posterior"].to_dataset())
    assert trees[0].attrs["log_evidence"] == trees[1].attrs["log_evidence"]
    for name in ("sigma", "beta", "u_Subject"):
        assert not np.isin(first[name].to_numpy(), other[name].to_numpy()).any()


# --- one draw of beta and u for each state -------------------------------------------------------

# Largest of up to 50 scores of averages of 8,000 independent, nearly normal terms.
MAX_AVERAGE = 4.5


@pytest.mark.parametrize("weights", [slow(None), "w"])
def test_beta_and_u_are_exact_given_the_covariance_parameters(weights):
    """Draws standardised by their own conditional moments from dense algebra are normal."""
    data = blm.load_dataset("Penicillin").iloc[::2].copy()
    data["w"] = np.random.default_rng(37).uniform(0.5, 2.0, len(data))
    model = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", data, weights=weights)
    posterior = fit(model, draws=500, seed=38)["posterior"].dataset
    stacked = {
        str(name): values.to_numpy().reshape(2000, *values.shape[2:])
        for name, values in posterior.data_vars.items()
    }
    case, priors = case_of(model.design), model.priors
    scores = []
    for i in range(0, 2000, 5):
        draw = {name: values[i] for name, values in stacked.items()}
        sigma = float(draw["sigma"])
        factors = [draw[f"sd_{f.key}"][:, None] / sigma for f in model.design.random]
        beta = draw["beta"]
        mean, cov = fixed_moments(case, factors, sigma, priors.beta_mean, priors.beta_precision)
        parts = [np.linalg.solve(np.linalg.cholesky(cov), beta - mean)]
        u = np.concatenate([draw[f"u_{f.key}"].T.ravel() for f in model.design.random])
        mean, cov = random_moments(case, factors, sigma, beta)
        parts.append(np.linalg.solve(np.linalg.cholesky(cov), u - mean))
        scores.append(np.concatenate(parts))
    white = np.array(scores)
    assert kstest(white.ravel(), "norm").pvalue > 1e-3
    assert np.abs(white.mean(axis=0)).max() < MAX_AVERAGE / np.sqrt(len(white))
    squares = (white**2 - 1.0).mean(axis=0) / np.sqrt(2.0)
    assert np.abs(squares).max() < MAX_AVERAGE / np.sqrt(len(white))


def test_residuals_know_sigma(sleepstudy_model):
    """Posterior identity: E[(y - X beta - Z u)'(...)/sigma^2] + E[u'G^-1 u] = n + q - E[tilt].

    From the scale parameter: integrating by parts over a common log scale of sigma and the sds
    gives n + q - (E of the derivative of the log prior of the parameters by that scale), beta
    entering through its own quadratic form under a flat prior.
    """
    model = blm.LMM(
        "Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"), priors="flat"
    )
    posterior = fit(model, draws=4000, seed=39)["posterior"].dataset
    design = model.design
    term = design.random[0]
    beta, u = posterior["beta"].to_numpy(), posterior["u_Subject"].to_numpy()
    u = u.swapaxes(-2, -1)
    sigma, sds = posterior["sigma"].to_numpy(), posterior["sd_Subject"].to_numpy()
    residual = design.y - beta @ design.X.T
    residual = residual - np.einsum("cdnk,nk->cdn", u[:, :, term.codes], term.Z)
    scaled = u / sds[:, :, None, :]
    inverse = np.linalg.inv(posterior["cor_Subject"].to_numpy())
    quadratic = np.sum(residual**2, axis=-1) / sigma**2
    quadratic += np.einsum("cdjk,cdkl,cdjl->cd", scaled, inverse, scaled)
    # Flat on sigma and two sds: the scale's own density adds three to minus n + q.
    expected = design.n + 36 - 3
    error = float(az.mcse(quadratic, method="mean"))
    assert abs(quadratic.mean() - expected) < 4 * error
    assert error < 0.5


# --- hard posteriors -----------------------------------------------------------------------------


def dense_grid(model: blm.LMM, log_sd: np.ndarray, log_sigma: np.ndarray) -> np.ndarray:
    """Log densities of y, the log of one sd and that of sigma at all their pairs."""
    case, priors = case_of(model.design), model.priors
    z, X, y = case.z_matrix(0), case.X, case.y
    sd, sigma = np.exp(log_sd)[:, None], np.exp(log_sigma)
    v = (sd**2)[..., None, None] * (z @ z.T) + (sigma**2)[:, None, None] * np.eye(len(y))
    n, flat = len(y), priors.beta_precision is None
    if flat:
        left = np.linalg.solve(v, X)
        information = X.T @ left
        beta = np.linalg.solve(information, (y @ left)[..., None])
        gap = y - (X @ beta)[..., 0]
        n -= X.shape[1]
    else:
        v = v + X @ np.linalg.solve(priors.beta_precision, X.T)
        gap = np.broadcast_to(y - X @ priors.beta_mean, v.shape[:-1])
    square = np.sum(gap * np.linalg.solve(v, gap[..., None])[..., 0], axis=-1)
    value = n * np.log(2 * np.pi) + np.linalg.slogdet(v)[1] + square
    if flat:
        value = value + np.linalg.slogdet(information)[1]
    own = priors.sd[0][0].logpdf(sd) + log_sd[:, None] + priors.sigma.logpdf(sigma) + log_sigma
    return own - 0.5 * value


def grid_moments(model: blm.LMM, log_sd: tuple[float, float], log_sigma: tuple[float, float]):
    """Trapezoid sums over the logs of one sd and sigma, by dense algebra.

    Returns
    -------
    evidence : float
    means, sds : ndarray (4,)
        Of sd, log sd, sigma, log sigma.
    """
    a, b = np.linspace(*log_sd, 54), np.linspace(*log_sigma, 54)
    values = dense_grid(model, a, b)
    for i, j in ((0, 0), (20, 30), (53, 10)):
        expected = log_posterior_dense(
            case_of(model.design), model.priors, [np.exp(a[[i]])], [np.ones((1, 1))], np.exp(b[j])
        )
        assert values[i, j] == pytest.approx(expected + a[i] + b[j], abs=1e-6)
    # What the grid leaves out is as small as its edge.
    edge = max(values[0].max(), values[-1].max(), values[:, 0].max(), values[:, -1].max())
    assert edge < values.max() - 8.0
    top = values.max()
    mass = np.exp(values - top)
    total = mass.sum()
    grid = np.stack(np.meshgrid(a, b, indexing="ij"))
    columns = np.stack([np.exp(grid[0]), grid[0], np.exp(grid[1]), grid[1]])
    means = np.sum(columns * mass, axis=(1, 2)) / total
    seconds = np.sum(columns**2 * mass, axis=(1, 2)) / total
    evidence = top + np.log(total * (a[1] - a[0]) * (b[1] - b[0]))
    return float(evidence), means, np.sqrt(seconds - means**2)


def assert_moments(tree: xr.DataTree, factor: str, means: np.ndarray, sds: np.ndarray) -> None:
    sd = tree["posterior"][f"sd_{factor}"].to_numpy()[..., 0]
    sigma = tree["posterior"]["sigma"].to_numpy()
    for i, draws in enumerate((sd, np.log(sd), sigma, np.log(sigma))):
        assert abs(draws.mean() - means[i]) < MAX_Z * float(az.mcse(draws, method="mean")), i
        assert abs(draws.std() - sds[i]) < MAX_Z * float(az.mcse(draws, method="sd")), i


def one_way(levels: int, rows: int, sd: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(levels), rows)
    y = 3.0 + sd * rng.normal(size=levels)[g] + rng.normal(size=len(g))
    return pd.DataFrame({"y": y, "g": g.astype(str)})


GRIDS = {
    "an sd near zero": (lambda: one_way(6, 5, 0.0, 40), "default", (-12.0, 3.0), (-1.2, 1.2)),
    "three levels": (lambda: one_way(3, 6, 1.0, 41), "default", (-9.0, 5.0), (-1.5, 1.5)),
    "four levels, two rows": (lambda: one_way(4, 2, 0.5, 42), "default", (-9.0, 5.0), (-2.8, 2.2)),
    "flat, proper": (lambda: one_way(8, 4, 1.0, 43), "flat", (-12.0, 5.0), (-1.2, 1.2)),
    "flat, six levels, an sd near zero": (
        lambda: one_way(6, 5, 0.0, 40),
        "flat",
        (-12.0, 3.5),
        (-1.2, 1.2),
    ),
}


@pytest.mark.parametrize("name", one_in(3, GRIDS))
def test_hard_posteriors_are_those_of_dense_integration(name):
    data, priors, log_sd, log_sigma = GRIDS[name]
    model = blm.LMM("y ~ 1 + (1 | g)", data(), priors=priors)
    tree = fit(model)
    evidence, means, sds = grid_moments(model, log_sd, log_sigma)
    assert_moments(tree, "g", means, sds)
    if priors == "flat":
        assert "log_evidence" not in tree.attrs
    else:
        assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)
        assert abs(tree.attrs["log_evidence"] - evidence) < 4 * tree.attrs["log_evidence_error"]
        assert_healthy(fit(model, draws=1000))


def test_a_prior_far_from_the_likelihood():
    """Sds of 0.1 and 2 in the data; the priors say 3, give or take a third, and 0.5."""
    import pymc as pm

    data = one_way(5, 4, 0.1, 44)
    data["y"] *= 2.0
    user = {"sd[g]": pm.Gamma.dist(100.0, 30.0), "sigma": pm.LogNormal.dist(np.log(0.5), 0.2)}
    model = blm.LMM("y ~ 1 + (1 | g)", data, priors=user)
    evidence, means, sds = grid_moments(model, (-0.5, 2.2), (-1.5, 1.5))
    # Between what the likelihood and what the priors say.
    assert means[0] > 2.0 and 0.7 < means[2] < 2.2
    tree = fit(model)
    assert_moments(tree, "g", means, sds)
    assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)
    assert_healthy(fit(model, draws=1000))


def two_levels() -> pd.DataFrame:
    data = blm.load_dataset("Dyestuff2")
    few = data[data["Batch"].isin(["A", "B"])]
    return pd.DataFrame({"y": few["Yield"].to_numpy(), "g": few["Batch"].astype(str).to_numpy()})


def two_crossed() -> pd.DataFrame:
    """Twelve levels of one factor, two of another, which differ by one sd."""
    data = one_way(12, 6, 1.0, 47)
    data["h"] = np.tile(["a", "b"], 36)
    data["y"] += data["h"] == "a"
    return data


IMPROPER = (
    "The posterior is improper under flat priors: its density does not fall off as {0} grows, "
    "because the data have too few levels (or rows) for them. Give them proper priors, such as "
    'priors={{"{0}": pm.HalfStudentT.dist(3, scale)}}, or use the defaults.'
)


@pytest.mark.parametrize(
    ("formula", "data", "parameter"),
    [
        ("y ~ 1 + (1 | g)", lambda: one_way(2, 6, 0.0, 5), "sd[g, Intercept]"),
        ("y ~ 1 + (1 | g)", two_levels, "sd[g, Intercept]"),
        ("y ~ 1 + (1 | g)", lambda: one_way(2, 6, 1.0, 0), "sd[g, Intercept]"),
        ("y ~ 1 + (1 | g)", lambda: one_way(2, 6, 1.0, 15), "sd[g, Intercept]"),
        ("y ~ 1 + (1 | g) + (1 | h)", two_crossed, "sd[h, Intercept]"),
    ],
    ids=["no-variance", "dyestuff", "variance", "variance-again", "second-factor"],
)
def test_flat_priors_with_two_levels_are_refused(formula, data, parameter):
    """With J levels the density of the sd falls like its power 1 - J."""
    model = blm.LMM(formula, data(), priors="flat")
    with pytest.raises(PriorError) as caught:
        fit(model, draws=10)
    assert str(caught.value) == IMPROPER.format(parameter)


@pytest.mark.parametrize(
    ("data", "priors", "log_sd", "log_sigma"),
    [
        (two_levels, "default", (-9.0, 10.0), (0.0, 3.0)),
        slow(lambda: one_way(3, 6, 1.0, 45), "flat", (-10.0, 10.0), (-1.5, 1.5)),
    ],
    ids=["two levels", "three levels, flat"],
)
def test_few_levels(data, priors, log_sd, log_sigma):
    """The tail of the sd has no moments to speak of, so that its log is compared."""
    model = blm.LMM("y ~ 1 + (1 | g)", data(), priors=priors)
    tree = fit(model)
    evidence, means, sds = grid_moments(model, log_sd, log_sigma)
    draws = np.log(tree["posterior"]["sd_g"].to_numpy()[..., 0])
    assert abs(draws.mean() - means[1]) < MAX_Z * float(az.mcse(draws, method="mean"))
    assert abs(draws.std() - sds[1]) < MAX_Z * float(az.mcse(draws, method="sd"))
    if priors == "default":
        assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)


def slopes(sds: list[float], correlation: float, levels: int, rows: int, seed: int):
    """Rows of a model whose coefficients all have the same correlation."""
    rng = np.random.default_rng(seed)
    k = len(sds)
    cor = np.full((k, k), correlation) + (1.0 - correlation) * np.eye(k)
    values, vectors = np.linalg.eigh(cor)
    root = np.diag(sds) @ vectors @ np.diag(np.sqrt(np.maximum(values, 0.0)))
    u = rng.normal(size=(levels, k)) @ root.T
    g = np.repeat(np.arange(levels), rows)
    z = np.column_stack([np.ones(len(g)), rng.normal(size=(len(g), k - 1))])
    data = {f"x{i}": z[:, i] for i in range(1, k)}
    y = 2.0 + np.sum(z * u[g], axis=1) + rng.normal(size=len(g))
    return pd.DataFrame({"y": y, "g": g.astype(str), **data})


def coordinates_of(model: blm.LMM, tree: xr.DataTree) -> np.ndarray:
    """Unconstrained coordinates (d, S) of the draws."""
    where = model.priors.coordinates
    draws = tree["posterior"].to_dataset()
    points = points_of(model.design, draws)
    beta = draws["beta"].to_numpy().reshape(len(points.sigma), -1)
    return where.vector(where.to_working(replace(points, beta=beta))).T


def assert_reweighting_agrees(model: blm.LMM, tree: xr.DataTree, spread: float) -> None:
    """Means, sds and evidence by importance sampling from one wide t distribution.

    `spread` times the scale of the draws, and three degrees of freedom.
    """
    found = coordinates_of(model, tree)
    centre, root = found.mean(axis=1), spread * np.linalg.cholesky(np.cov(found))
    proposal = multivariate_t(centre, root @ root.T, df=3, seed=48)
    points = proposal.rvs(60_000)
    value = log_posterior_batch(
        model.system,
        model.priors,
        partial(reduce_at, model.system, model.priors.coordinates),
        points,
    )
    ratios = np.exp(value - proposal.logpdf(points) - value.max())
    weights = ratios / ratios.sum()
    size = 1.0 / np.sum(weights**2)
    assert size > 4000
    chained = found.reshape(len(found), *tree["sample_stats"]["lp"].shape)
    for i, (draws, column) in enumerate(zip(chained, points.T, strict=True)):
        mean = weights @ column
        for power, values in ((1, column), (2, (column - mean) ** 2)):
            expected = weights @ values
            ours = draws if power == 1 else (draws - mean) ** 2
            error = np.sqrt(np.sum(weights**2 * (values - expected) ** 2))
            error = np.hypot(error, float(az.mcse(ours, method="mean")))
            assert abs(ours.mean() - expected) < MAX_Z * error, (i, power)
    evidence = value.max() + np.log(ratios.mean())
    error = np.hypot(tree.attrs["log_evidence_error"], size**-0.5)
    assert abs(tree.attrs["log_evidence"] - evidence) < 4 * error


@pytest.mark.parametrize("correlation", [-1.0, slow(1.0)])
def test_correlations_near_one(correlation):
    """The posterior piles up at the end of the range."""
    model = blm.LMM("y ~ x1 + (x1 | g)", slopes([1.5, 1.0], correlation, 25, 12, 46))
    tree = fit(model, draws=4000)
    rho = tree["posterior"]["cor_g"].to_numpy()[..., 1, 0]
    assert np.abs(rho).max() <= 1.0
    assert np.median(correlation * rho) > 0.9
    assert_reweighting_agrees(model, tree, 1.3)
    assert_healthy(fit(model, draws=1000))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sds",
    [[1.0, 0.8, 0.6, 0.3], pytest.param([1.0, 0.8, 0.6, 0.3, 0.5], marks=whole)],
)
def test_many_correlated_coefficients(sds):
    """Eleven and sixteen covariance parameters, against particles that start from the prior."""
    terms = " + ".join(f"x{i}" for i in range(1, len(sds)))
    case = Case(
        number=len(sds),
        formula=f"y ~ {terms} + ({terms} | g)",
        data=slopes(sds, 0.4, 40, 10, 49),
        weights=None,
        priors={},
        generators={},
    )
    post = case.model.fit(method="collapsed", draws=2500, random_seed=1, progressbar=False)
    assert_reweighting_agrees(case.model, post.data, 1.0)
    assert_healthy(fit(case.model, draws=1000))
    reference = bridged(case, 6000)
    assert difference(coordinates(case.model, post), reference) == ""
    assert abs(post.log_evidence.value - reference.log_evidence) < BRIDGE


def test_skewed_log_sds():
    """Four levels, and slopes without variance: both log sds have long tails to the left."""
    data = slopes([0.3, 0.0], 0.0, 4, 8, 50)
    model = blm.LMM("y ~ x1 + (x1 | g)", data)
    tree = fit(model, draws=4000)
    logs = coordinates_of(model, tree)[:2]
    assert (skew(logs, axis=1) < -0.8).all()
    assert_reweighting_agrees(model, tree, 1.5)
    assert_healthy(fit(model, draws=1000))


# --- fixed effects that are sampled --------------------------------------------------------------


def sampled_beta() -> tuple[blm.LMM, float]:
    import pymc as pm

    data = one_way(7, 6, 0.8, 51)
    x = np.random.default_rng(52).normal(size=len(data))
    data["x"] = x - x.mean()
    data["y"] += 0.3 * data["x"]
    scale = 0.1
    priors = {"x": pm.Laplace.dist(0.0, scale)}
    return blm.LMM("y ~ x + (1 | g)", data, priors=priors), scale


def test_sampled_fixed_effects_are_those_of_dense_integration():
    """The slope has a Laplace prior: a grid over it, log sd and log sigma; the rest is normal."""
    model, scale = sampled_beta()
    assert model.priors.beta_sampled
    case = case_of(model.design)
    centre = model.priors.beta[0]
    slopes_tried = np.linspace(-0.6, 1.0, 401)
    axes = np.linspace(-6.0, 2.5, 60), np.linspace(-0.8, 0.8, 50)
    ones, x = case.X.T
    z, both = case.z_matrix(0), np.column_stack([case.y - centre.mu * ones, x])
    sd, sigma = np.exp(axes[0])[:, None], np.exp(axes[1])
    v = (sd**2)[..., None, None] * (z @ z.T) + (sigma**2)[:, None, None] * np.eye(len(x))
    v += centre.sigma**2
    squares = (both.T @ np.linalg.solve(v, both))[..., None]
    gap = squares[:, :, 0, 0] - 2 * squares[:, :, 0, 1] * slopes_tried
    gap = gap + squares[:, :, 1, 1] * slopes_tried**2
    density = model.priors.sd[0][0].logpdf(sd) + model.priors.sigma.logpdf(sigma)
    density = density + axes[0][:, None] + axes[1] - 0.5 * np.linalg.slogdet(2 * np.pi * v)[1]
    values = density[..., None] - 0.5 * gap + laplace(0.0, scale).logpdf(slopes_tried)
    mass = np.exp(values - values.max())
    cell = np.prod([axis[1] - axis[0] for axis in (*axes, slopes_tried)])
    evidence = values.max() + np.log(mass.sum() * cell)
    mass /= mass.sum()
    tree = fit(model)
    posterior = tree["posterior"]
    assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)
    for draws, column in (
        (posterior["beta"].to_numpy()[..., 1], slopes_tried),
        (posterior["sigma"].to_numpy(), np.exp(axes[1])[:, None]),
        (np.log(posterior["sd_g"].to_numpy()[..., 0]), axes[0][:, None, None]),
    ):
        mean = np.sum(mass * column)
        sd = np.sqrt(np.sum(mass * (column - mean) ** 2))
        assert abs(draws.mean() - mean) < MAX_Z * float(az.mcse(draws, method="mean"))
        assert abs(draws.std() - sd) < MAX_Z * float(az.mcse(draws, method="sd"))
    assert_healthy(fit(model, draws=1000))


@pytest.mark.slow
def test_sampled_fixed_effects_are_those_of_nuts():
    model, _ = sampled_beta()
    nuts = sample_nuts(
        model.design,
        model.priors,
        "noncentered",
        draws=4000,
        random_seed=53,
        progressbar=False,
        target_accept=0.95,
    )["posterior"]
    ours = fit(model)["posterior"]
    for name in ("beta", "sd_g", "sigma", "u_g"):
        found, other = (p[name].to_numpy().reshape(4, p.sizes["draw"], -1) for p in (ours, nuts))
        for i in range(found.shape[2]):
            for statistic in ("mean", "sd"):
                pair = [
                    getattr(d[..., i], statistic.replace("sd", "std"))() for d in (found, other)
                ]
                errors = [float(az.mcse(d[..., i], method=statistic)) for d in (found, other)]
                assert abs(pair[0] - pair[1]) < MAX_Z * np.hypot(*errors), (name, i, statistic)


# --- polynomials in place of expensive equations -------------------------------------------------

# A surrogate whose error in log density has an sd of 0.005 moves means by 0.005 posterior sds.
SURROGATE = 0.005


def by_surrogate(name: str, seed: int, monkeypatch) -> xr.DataTree:
    """A model that is too small for a surrogate by one nevertheless."""
    for constant in ("CHEAP", "OVERHEAD"):
        monkeypatch.setattr(f"bayeslmm.sampling.surrogate.{constant}", 0.0)
    _, design, _, priors = reference_model(name)
    return fit_collapsed(Model(design, priors), draws=4000, random_seed=seed)


@pytest.mark.reference
@pytest.mark.parametrize("name", ["sleepstudy__int", "Dyestuff2__int", "sleepstudy__uncor"])
def test_surrogates_are_accurate(name, monkeypatch):
    assert precise(name).attrs["surrogate_error"] == 0.0
    tree = by_surrogate(name, 54, monkeypatch)
    assert 0.0 < tree.attrs["surrogate_error"] <= SURROGATE
    assert float(tree["sample_stats"]["n_evaluations"].sum()) < 1000
    exact = load_posterior(name)["quadrature"]
    draws = ours(tree, name)
    for key, mean in exact["means"].items():
        sd = exact["sds"][key]
        error = MAX_Z * float(az.mcse(draws[key], method="mean")) + SURROGATE * sd
        assert abs(draws[key].mean() - mean) < error, key
        error = MAX_Z * float(az.mcse(draws[key], method="sd")) + SURROGATE * sd
        assert abs(draws[key].std() - sd) < error, key
    evidence = exact["log_marginal_likelihood"]
    assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)


@pytest.mark.reference
@pytest.mark.parametrize("seeds", [range(60, 63), slow(range(63, 68))])
def test_surrogates_reach_all_of_the_posterior(seeds, monkeypatch):
    exact = load_posterior("Dyestuff__int")["quadrature"]["log_marginal_likelihood"]
    trees = [by_surrogate("Dyestuff__int", seed, monkeypatch) for seed in seeds]
    errors = [tree.attrs["log_evidence"] - exact for tree in trees]
    allowed = [MAX_Z * tree.attrs["log_evidence_error"] for tree in trees]
    assert (np.abs(errors) < allowed).all()
