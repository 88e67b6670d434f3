"""The collapsed sampler against Stan, numerical integration and dense algebra."""

from __future__ import annotations

from functools import cache

import arviz as az
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from dense import case_of, fixed_moments, log_posterior_dense, random_moments
from reference_data import list_posteriors, load_posterior, load_posterior_data
from scipy.stats import kstest
from test_stan import draws_by_reference_name

import bayeslmm as blm
from bayeslmm.design.design import build_design
from bayeslmm.exceptions import PriorError
from bayeslmm.inference.collapsed import fit_collapsed
from bayeslmm.inference.laplace import fit_laplace
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.defaults import default_priors

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

REFERENCES = list_posteriors()


@cache
def reference_model(name: str):
    reference = load_posterior(name)
    design = build_design(reference["formula"], load_posterior_data(name))
    return reference, design, marginal_system(design), default_priors(design)


@cache
def precise(name: str) -> xr.DataTree:
    _, design, plan, priors = reference_model(name)
    return fit_collapsed(design, plan, priors, draws=10_000, random_seed=31)


def ours(tree: xr.DataTree, name: str) -> dict[str, np.ndarray]:
    reference, design, _, _ = reference_model(name)
    draws = draws_by_reference_name(tree["posterior"].dataset, design, reference)
    return {key: draws[key] for key in reference["parameters"]}


def fit(model: blm.LMM, draws: int = 10_000, seed: int = 32) -> xr.DataTree:
    return fit_collapsed(model.design, model.system, model.priors, draws=draws, random_seed=seed)


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
    assert float(tree["sample_stats"]["pareto_k"].max()) < MAX_K


# --- against Stan and quadrature -----------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("name", REFERENCES)
def test_posterior_is_that_of_stan(name):
    reference = reference_model(name)[0]
    for key, draws in ours(precise(name), name).items():
        expected = reference["parameters"][key]
        sd = expected["sd"]
        allowed = MEAN * sd + STAN_ERRORS * expected["mcse_mean"]
        assert draws.mean() == pytest.approx(expected["mean"], abs=allowed), key
        allowed = SD * sd + STAN_ERRORS * expected["mcse_sd"]
        assert draws.std(ddof=1) == pytest.approx(sd, abs=allowed), key
        for level in (5, 95):
            allowed = QUANTILE * sd + STAN_ERRORS * expected["mcse_q"][str(level)]
            found = np.percentile(draws, level)
            assert found == pytest.approx(expected[f"q{level}"], abs=allowed), (key, level)


@pytest.mark.reference
@pytest.mark.parametrize("name", [n for n in REFERENCES if "quadrature" in load_posterior(n)])
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
@pytest.mark.parametrize("name", REFERENCES)
def test_evidence_is_that_of_importance_sampling(name):
    other = load_posterior(name)["crosscheck"]
    tree = precise(name)
    error = np.hypot(other["log_marginal_likelihood_se"], tree.attrs["log_evidence_error"])
    assert abs(tree.attrs["log_evidence"] - other["log_marginal_likelihood"]) < 3 * error
    assert tree.attrs["log_evidence_error"] < 0.01


@pytest.mark.reference
@pytest.mark.parametrize("name", REFERENCES)
def test_default_size_converges(name):
    _, design, plan, priors = reference_model(name)
    assert_healthy(fit_collapsed(design, plan, priors, random_seed=33))


# --- what the tree holds -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sleepstudy() -> blm.LMM:
    return blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def dyestuff() -> blm.LMM:
    return blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))


def test_tree_has_the_layout_of_other_methods(sleepstudy):
    tree = fit(sleepstudy, draws=50)
    other = fit_laplace(
        sleepstudy.design, sleepstudy.system, sleepstudy.priors, draws=50, random_seed=1
    )
    assert set(tree.children) == set(other.children)
    for group in ("posterior", "observed_data", "constant_data"):
        found, expected = tree[group].dataset, other[group].dataset
        assert list(found.data_vars) == list(expected.data_vars)
        for name in expected.data_vars:
            assert found[name].dims == expected[name].dims
            assert found[name].dtype == expected[name].dtype
        for name in expected.coords:
            assert found[name].equals(expected[name])


def test_statistics_and_attributes(sleepstudy):
    tree = fit(sleepstudy, draws=60, seed=34)
    stats = tree["sample_stats"].dataset
    assert {"lp", "acceptance_rate", "pareto_k", "n_evaluations"} <= set(stats.data_vars)
    assert stats["lp"].dims == stats["acceptance_rate"].dims == ("chain", "draw")
    assert stats["pareto_k"].dims == stats["n_evaluations"].dims == ("chain",)
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert float(stats["n_evaluations"].sum()) > 4 * 60
    draw = tree["posterior"].dataset.isel(chain=2, draw=17)
    z = np.arctanh(draw["cor_Subject"][1, 0].item())
    x = np.array([*np.log(draw["sd_Subject"].to_numpy()), z, np.log(draw["sigma"].item())])
    lp = log_posterior_unconstrained(sleepstudy.system, sleepstudy.priors, x)[0]
    assert stats["lp"][2, 17].item() == pytest.approx(lp, abs=1e-8)
    assert tree.attrs["method"] == "collapsed"
    assert tree.attrs["inference_library"] == "bayeslmm"
    assert tree.attrs["sampling_time"] > 0
    assert 0 < tree.attrs["log_evidence_error"] < 0.1


def test_evaluations_are_counted(dyestuff, monkeypatch):
    from bayeslmm.inference import covariance_sampler

    counted = 0
    real = covariance_sampler.reduce_at

    def counting(system, x):
        nonlocal counted
        counted += len(x)
        return real(system, x)

    monkeypatch.setattr(covariance_sampler, "reduce_at", counting)
    tree = fit(dyestuff, draws=40)
    assert float(tree["sample_stats"]["n_evaluations"].sum()) == counted - 4 * 40 or (
        float(tree["sample_stats"]["n_evaluations"].sum()) == counted
    )


def test_size_of_the_result(dyestuff):
    tree = fit_collapsed(
        dyestuff.design, dyestuff.system, dyestuff.priors, draws=7, chains=3, random_seed=1
    )
    assert dict(tree["posterior"].sizes) | {"chain": 3, "draw": 7} == dict(tree["posterior"].sizes)


def test_the_seed_decides(sleepstudy):
    trees = [fit(sleepstudy, draws=30, seed=seed) for seed in (35, 35, 36)]
    generator = fit(sleepstudy, draws=30, seed=np.random.default_rng(35))
    first, again, other = (tree["posterior"].to_dataset() for tree in trees)
    assert first.equals(again)
    assert first.equals(generator["posterior"].to_dataset())
    assert trees[0].attrs["log_evidence"] == trees[1].attrs["log_evidence"]
    for name in ("sigma", "beta", "u_Subject"):
        assert not np.isin(first[name].to_numpy(), other[name].to_numpy()).any()


# --- one draw of beta and u for each state -------------------------------------------------------

# Largest of up to 50 scores of averages of 8,000 independent, nearly normal terms.
MAX_AVERAGE = 4.5


@pytest.mark.parametrize("weights", [None, "w"])
def test_beta_and_u_are_exact_given_the_covariance_parameters(weights):
    """Draws standardised by their own conditional moments from dense algebra are normal."""
    data = blm.load_dataset("Penicillin").iloc[::2].copy()
    data["w"] = np.random.default_rng(37).uniform(0.5, 2.0, len(data))
    model = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", data, weights=weights)
    posterior = fit(model, draws=500, seed=38)["posterior"].dataset.stack(s=("chain", "draw"))
    case, priors = case_of(model.design), model.priors
    scores = []
    for i in range(0, 2000, 5):
        draw = posterior.isel(s=i)
        sigma = draw["sigma"].item()
        factors = [draw[f"sd_{f.key}"].to_numpy()[:, None] / sigma for f in model.design.random]
        beta = draw["beta"].to_numpy()
        mean, cov = fixed_moments(case, factors, sigma, priors.beta_mean, priors.beta_precision)
        parts = [np.linalg.solve(np.linalg.cholesky(cov), beta - mean)]
        u = np.concatenate([draw[f"u_{f.key}"].to_numpy().ravel() for f in model.design.random])
        mean, cov = random_moments(case, factors, sigma, beta)
        parts.append(np.linalg.solve(np.linalg.cholesky(cov), u - mean))
        scores.append(np.concatenate(parts))
    white = np.array(scores)
    assert kstest(white.ravel(), "norm").pvalue > 1e-3
    assert np.abs(white.mean(axis=0)).max() < MAX_AVERAGE / np.sqrt(len(white))
    squares = (white**2 - 1.0).mean(axis=0) / np.sqrt(2.0)
    assert np.abs(squares).max() < MAX_AVERAGE / np.sqrt(len(white))


def test_residuals_know_sigma(sleepstudy):
    """Posterior identity: E[(y - X beta - Z u)'(...)/sigma^2] + E[u'G^-1 u] = n + q - E[tilt].

    From the scale parameter: integrating by parts over a common log scale of sigma and the sds
    gives n + q - (E of the derivative of the log prior of the parameters by that scale), beta
    entering through its own quadratic form under a flat prior.
    """
    model = blm.LMM(
        "Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"), priors="flat"
    )
    posterior = fit(model, draws=10_000, seed=39)["posterior"].dataset
    design = model.design
    term = design.random[0]
    beta, u = posterior["beta"].to_numpy(), posterior["u_Subject"].to_numpy()
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


def grid_moments(model: blm.LMM, log_sd: tuple[float, float], log_sigma: tuple[float, float]):
    """Trapezoid sums over the logs of one sd and sigma, by dense algebra.

    Returns
    -------
    evidence : float
    means, sds : ndarray (4,)
        Of sd, log sd, sigma, log sigma.
    """
    case, count = case_of(model.design), 70
    a, b = np.linspace(*log_sd, count), np.linspace(*log_sigma, count)
    chol = [np.ones((1, 1))]
    values = np.array(
        [
            [
                s + t + log_posterior_dense(case, model.priors, [np.exp([s])], chol, np.exp(t))
                for t in b
            ]
            for s in a
        ]
    )
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
    "an sd near zero": (lambda: one_way(6, 5, 0.0, 40), "default", (-9.0, 3.0), (-1.2, 1.2)),
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


@pytest.mark.parametrize("name", GRIDS)
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
    return few.assign(Batch=few["Batch"].astype(str))


def test_flat_priors_with_too_few_levels_are_refused():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", two_levels(), priors="flat")
    with pytest.raises(PriorError) as caught:
        fit(model, draws=10)
    assert str(caught.value) == (
        "The posterior is improper under flat priors: its density does not fall off as "
        "sd[Batch] grows, because the data have too few levels (or rows) for them. Give them "
        'proper priors, such as priors={"sd[Batch]": pm.HalfStudentT.dist(3, scale)}, or use the '
        "defaults."
    )
    # Three levels are still too few for p(sd) = 1: the density falls like 1 / sd; four are not.
    for levels, proper in ((3, False), (4, True)):
        data = one_way(levels, 6, 1.0, 45)
        model = blm.LMM("y ~ 1 + (1 | g)", data, priors="flat")
        if proper:
            assert np.isfinite(fit(model, draws=10)["posterior"]["sd_g"].to_numpy()).all()
        else:
            with pytest.raises(PriorError, match=r"as sd\[g\] grows"):
                fit(model, draws=10)


def test_two_levels_under_default_priors():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", two_levels())
    tree = fit(model)
    evidence, means, sds = grid_moments(model, (-9.0, 10.0), (0.0, 3.0))
    assert tree.attrs["log_evidence"] == pytest.approx(evidence, abs=EVIDENCE)
    log_sd = np.log(tree["posterior"]["sd_Batch"].to_numpy()[..., 0])
    # A half t prior with three degrees of freedom is all that bounds the sd: no fourth moment, so
    # that only its log has Monte Carlo errors to speak of.
    assert abs(log_sd.mean() - means[1]) < MAX_Z * float(az.mcse(log_sd, method="mean"))
    assert abs(log_sd.std() - sds[1]) < MAX_Z * float(az.mcse(log_sd, method="sd"))


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


def line_moments(model: blm.LMM, tree: xr.DataTree) -> tuple[float, float]:
    """Importance weights of the draws under dense algebra: their spread and the largest share."""
    posterior = tree["posterior"].dataset.stack(s=("chain", "draw"))
    case = case_of(model.design)
    gaps = []
    for i in range(0, posterior.sizes["s"], posterior.sizes["s"] // 60):
        draw = posterior.isel(s=i)
        sds = draw["sd_g"].to_numpy()
        chol = np.linalg.cholesky(draw["cor_g"].to_numpy())
        log_density = log_posterior_dense(case, model.priors, [sds], [chol], draw["sigma"].item())
        gaps.append(tree["sample_stats"]["lp"].to_numpy().ravel()[i] - log_density)
    return float(np.std(gaps)), float(np.ptp(gaps))


@pytest.mark.parametrize("correlation", [-1.0, 1.0])
def test_correlations_near_one(correlation):
    """The posterior piles up at the end of the range; importance weights of a wide run agree."""
    model = blm.LMM("y ~ x1 + (x1 | g)", slopes([1.5, 1.0], correlation, 25, 12, 46))
    tree = fit(model, draws=2000)
    assert_healthy(tree)
    rho = tree["posterior"]["cor_g"].to_numpy()[..., 1, 0]
    assert np.abs(rho).max() <= 1.0
    assert np.median(np.abs(rho)) > 0.9
    found = weighted_grid(model, tree)
    for key, draws in (("rho", rho), ("z", np.arctanh(rho))):
        mean, sd = found[key]
        assert abs(draws.mean() - mean) < MAX_Z * float(az.mcse(draws, method="mean")) + 0.02 * sd
        assert draws.std() == pytest.approx(sd, rel=0.06)


def weighted_grid(model: blm.LMM, tree: xr.DataTree) -> dict[str, tuple[float, float]]:
    """Mean and sd of the correlation and its coordinate by integration over a grid of four.

    A trapezoid sum over the whitened log sds, log sigma and z, the scales from the draws; the
    density is that of single points.
    """
    posterior = tree["posterior"]
    rho = posterior["cor_g"].to_numpy()[..., 1, 0]
    x = np.stack(
        [
            *np.moveaxis(np.log(posterior["sd_g"].to_numpy()), -1, 0),
            np.arctanh(rho),
            np.log(posterior["sigma"].to_numpy()),
        ]
    ).reshape(4, -1)
    centre, root = x.mean(axis=1), np.linalg.cholesky(np.cov(x))
    ticks = [np.linspace(-5, 5, 11), np.linspace(-5, 5, 11), np.linspace(-6, 12, 37)]
    ticks.append(np.linspace(-5, 5, 11))
    grid = np.stack(np.meshgrid(*ticks, indexing="ij")).reshape(4, -1)
    points = centre + (root @ grid).T
    value = np.array(
        [log_posterior_unconstrained(model.system, model.priors, p)[0] for p in points]
    )
    mass = np.exp(value - value.max())
    mass /= mass.sum()
    result = {}
    for key, column in (("rho", np.tanh(points[:, 2])), ("z", points[:, 2])):
        mean = float(mass @ column)
        result[key] = (mean, float(np.sqrt(mass @ (column - mean) ** 2)))
    return result
