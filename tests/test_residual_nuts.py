"""PyMC models and NUTS where residuals have a structure: dense algebra, collapsed draws."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
import xarray as xr
from pytensor.compile.mode import Mode
from scipy import stats
from slow_cases import one_in
from test_nuts import quick
from test_residual_likelihood import differences, relative

import bayeslmm as blm
from bayeslmm.covariance.distance import OverDistance
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.families import LKJ
from bayeslmm.sampling.model import build_model

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile
# Two orders of the same arithmetic; matrices of condition up to 1e4.
EXACT = 1e-8
# Five-point differences of the density itself, which is about 100.
SLOPE = 1e-6


def frame(seed=4, groups=10, occasions=4):
    """Groups in two arms that miss occasions, in shuffled order."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(groups * occasions)[: groups * occasions - 5]
    group, t = np.divmod(cells, occasions)
    n = len(cells)
    return pd.DataFrame(
        {
            "y": rng.normal(2.0, 2.0, n),
            "x": rng.normal(size=n),
            "id": [f"p{i}" for i in group],
            "t": t,
            "time": t * 1.5 + rng.integers(0, 3, n) * 0.25,
            "a": rng.normal(size=n),
            "b": rng.normal(size=n),
            "arm": np.where(group % 2, "new", "old"),
            "f": np.where(rng.random(n) < 0.5, "one", "two"),
            "h": [f"h{i}" for i in rng.integers(0, 5, n)],
            "v": rng.uniform(0.5, 2.0, n),
            "w": rng.uniform(0.5, 2.0, n),
        }
    )


CASES = [
    ("y ~ x", "us(t | arm / id)", None),
    ("y ~ x + (1 | id)", "ar1(t | id) * strata(f)", "w"),
    ("y ~ x + (1 | h)", "car1(time | id) * power(v)", "w"),
    ("y ~ x", "exp(a + b | id) * strata(f) * exp(v)", "w"),
    ("y ~ x + (1 | h)", "us(t | id)", "w"),
    ("y ~ x + (1 | id)", "power(v)", "w"),
    ("y ~ x + (1 | id)", "strata(f)", None),
    ("y ~ x", "cs(t | id)", "w"),
    ("y ~ x + (1 | h)", "toeph(t | id)", "w"),
    ("y ~ x", "adh(t | arm / id)", None),
    ("y ~ 0 + x + (1 | h)", "gau(a + b | id)", None),
    ("y ~ 0", "ar1h(t | arm / id)", None),
]


def model_of(formula, residual, weights):
    return blm.LMM(formula, frame(), residual=residual, weights=weights)


def random_point(model, seed=1):
    rng = np.random.default_rng(seed)
    return {k: v + rng.normal(0.0, 0.4, np.shape(v)) for k, v in model.initial_point().items()}


def correlation_coordinates(law, prior, arm, point):
    """Coordinates of the correlations of one arm, and the log prior."""
    name = f"_cor_residual_{arm}"
    if isinstance(prior, LKJ):
        z = point[f"{name}_correlation__"]
        return z, float(prior.logpdf(law.structure.cholesky(z)))
    values = [point[f"{name}_{i}_interval__"] for i in range(law.n_cors // law.n_arms)]
    parameters = prior.lower + (prior.upper - prior.lower) / (1.0 + np.exp(-np.array(values)))
    log_prior = -len(values) * np.log(prior.upper - prior.lower)
    if isinstance(law, OverDistance):
        signed = law.decay == "ar1"
        own = np.arctanh(parameters) if signed else np.log(parameters / (1.0 - parameters))
        return own, log_prior
    return law.from_parameters(parameters), log_prior


def residual_part(priors, point):
    """Scale, shape, and log prior of the parameters of the residuals."""
    own, structure = priors.residuals, priors.residual
    sds = np.atleast_1d(np.exp(point["sigma_log__"]))
    powers = np.atleast_1d(point.get("power_residual", np.zeros(0)))
    value = sum(float(p.logpdf(sd)) for p, sd in zip(own.sd, sds, strict=True))
    value += sum(float(p.logpdf(x)) for p, x in zip(own.power, powers, strict=True))
    pieces = [np.log(sds[1:] / sds[0]), powers]
    for arm, prior in enumerate(own.cor):
        z, log_prior = correlation_coordinates(structure.correlation, prior, arm, point)
        pieces.append(np.atleast_1d(z))
        value += log_prior
    return sds[0], np.concatenate(pieces), value


def dense(model, form, point):
    """Log density of parameters and data, without Jacobian, and the residuals' parameters."""
    design, priors = model.design, model.priors
    sigma, shape, value = residual_part(priors, point)
    v = sigma**2 * relative(priors.residual, design.residual_rows, design.weights, shape)
    mean = design.offset + design.X @ priors.beta_mean
    if form == "marginal":
        v = v + design.X @ np.linalg.solve(priors.beta_precision, design.X.T)
    elif design.p:
        gamma = point.get("_beta_gamma", point.get("beta"))
        value += sum(float(p.logpdf(g)) for p, g in zip(priors.beta, gamma, strict=True))
        mean = design.offset + design.X @ np.linalg.solve(priors.fixed_map, gamma)
    for f, factor in enumerate(design.random):
        sd = np.exp(point[f"sd_{factor.key}_log__"][0])
        value += float(priors.sd[f][0].logpdf(sd))
        if form == "marginal":
            v = v + sd**2 * (factor.codes[:, None] == factor.codes)
        else:
            z = point[f"_z_{factor.key}"][0]
            value += stats.norm.logpdf(z).sum()
            mean = mean + sd * z[factor.codes]
    return value + stats.multivariate_normal(mean, v).logpdf(design.y), sigma, shape


@pytest.mark.parametrize(("formula", "residual", "weights"), one_in(3, CASES))
@pytest.mark.parametrize("form", ["noncentered", "marginal"])
def test_density_and_gradient_are_those_of_dense_algebra(formula, residual, weights, form):
    model = model_of(formula, residual, weights)
    built = build_model(model.design, model.priors, form)
    density = built.compile_logp(jacobian=False, mode=PLAIN)
    point = random_point(built)
    expected, sigma, shape = dense(model, form, point)
    assert float(density(point)) == pytest.approx(expected, rel=EXACT)
    found = built.compile_dlogp(jacobian=False, mode=PLAIN)(point)
    names = [variable.name for variable in built.value_vars]
    sizes = np.cumsum([np.size(point[name]) for name in names])[:-1]

    def moved(x):
        parts = zip(names, np.split(x, sizes), strict=True)
        return float(density({k: own.reshape(np.shape(point[k])) for k, own in parts}))

    flat = np.concatenate([np.ravel(point[name]) for name in names])
    assert found == pytest.approx(differences(moved, flat), abs=SLOPE)
    assert_public_correlations(model, built, point, sigma, shape)


def assert_public_correlations(model, built, point, sigma, shape):
    """The recorded correlations are those of the matrix that the density has."""
    structure = model.priors.residual
    if structure.correlation is None:
        return
    (recorded,) = built.replace_rvs_by_values([built["cor_residual"]])
    evaluate = built.compile_fn(
        recorded, inputs=built.value_vars, on_unused_input="ignore", mode=PLAIN
    )
    known = structure.natural(np.array([sigma]), shape[None])[2][0]
    assert np.ravel(evaluate(point)) == pytest.approx(known, abs=1e-10)
    law = structure.correlation
    if isinstance(law, OverOccasions):
        lower = law.structure.cholesky(shape[len(shape) - law.n_cors :].reshape(law.n_arms, -1))
        omega = lower @ lower.swapaxes(1, 2)
        pairs = [omega[:, i, j] for i, j in law.structure.pairs]
        assert known == pytest.approx(np.array(pairs).T.ravel(), abs=1e-10)


@pytest.mark.parametrize(("formula", "residual", "weights"), one_in(4, CASES))
def test_marginal_form_is_our_log_posterior_up_to_a_constant(formula, residual, weights):
    model = model_of(formula, residual, weights)
    built = build_model(model.design, model.priors, "marginal")
    density, system = built.compile_logp(mode=PLAIN), marginal_system(model.design)
    gaps = []
    for seed in (1, 2, 3):
        point = random_point(built, seed)
        sigma, shape, _ = residual_part(model.priors, point)
        own = model.priors.residual.coordinates(np.array([sigma]), shape[None])[0]
        sds = [point[f"sd_{factor.key}_log__"] for factor in model.design.random]
        x = np.concatenate([*sds, own])
        ours, _ = log_posterior_unconstrained(system, model.priors, x)
        gaps.append(float(density(point)) - ours)
    assert gaps == pytest.approx([gaps[0]] * 3, abs=1e-7)
