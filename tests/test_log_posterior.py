"""Log posterior density of the covariance parameters, its gradient, and the modes found on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal

import bayeslmm as blm
from bayeslmm.estimation.start import vector_of
from bayeslmm.likelihood.log_posterior import log_posterior, log_posterior_unconstrained
from bayeslmm.priors.families import LKJ, Gamma, HalfCauchy, HalfStudentT

# Central differences of step 1e-5 on derivatives of order ten.
DERIVATIVE = 1e-5


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(8)
    n = 120
    data = pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "z": rng.normal(size=n),
            "g": rng.integers(0, 9, n).astype(str),
            "h": rng.integers(0, 6, n).astype(str),
        }
    )
    effects = rng.normal(size=(9, 2))
    codes = data["g"].astype(int)
    data["y"] = 2 + data.x + effects[codes, 0] + effects[codes, 1] * data.x + rng.normal(size=n)
    return data


FORMULAS = ["y ~ x + (x | g)", "y ~ x + (x + z | g) + (1 | h)", "y ~ x + (x || g)"]
USER = {"sd[g]": Gamma(2.0, 0.5), "sigma": HalfCauchy(1.0), "cor[g]": LKJ(3.0)}


@pytest.mark.parametrize("jacobian", [False, True])
@pytest.mark.parametrize("formula", FORMULAS)
def test_gradient_equals_differences(frame, formula, jacobian):
    user = {k: v for k, v in USER.items() if k != "cor[g]" or "||" not in formula}
    model = blm.LMM(formula, frame, priors=user)
    d = model.priors.coordinates.size
    x = np.random.default_rng(1).normal(scale=0.3, size=d)

    def value(at):
        return log_posterior_unconstrained(model.system, model.priors, at, jacobian=jacobian)[0]

    _, gradient = log_posterior_unconstrained(model.system, model.priors, x, jacobian=jacobian)
    for i in range(d):
        step = np.zeros(d)
        step[i] = 1e-5
        expected = (value(x + step) - value(x - step)) / 2e-5
        assert gradient[i] == pytest.approx(expected, abs=DERIVATIVE)


def test_value_is_prior_plus_marginal_likelihood(frame):
    model = blm.LMM("y ~ x + (x | g)", frame)
    sds, rho, sigma = np.array([0.8, 1.2]), 0.3, 0.9
    coordinates = model.priors.coordinates
    point = coordinates.points(np.array([[*np.log(sds), np.arctanh(rho), np.log(sigma)]]))
    value, _ = log_posterior(model.system, model.priors, point)
    design, priors = model.design, model.priors
    cov = np.diag(sds) @ [[1, rho], [rho, 1]] @ np.diag(sds)
    z = design.random[0].Z - [0.0, 1.0] * design.X.mean(axis=0)  # the working columns
    same = design.random[0].codes[:, None] == design.random[0].codes
    v = np.where(same, z @ cov @ z.T, 0.0) + sigma**2 * np.eye(design.n)
    v += design.X @ np.linalg.inv(priors.beta_precision) @ design.X.T
    expected = multivariate_normal(design.X @ priors.beta_mean, v).logpdf(design.y)
    s_y = design.y.std(ddof=1)
    s_x = design.X[:, 1].std(ddof=1)
    for scale, at in ((s_y, sds[0]), (s_y / s_x, sds[1]), (s_y, sigma)):
        expected += HalfStudentT(3.0, scale).logpdf(at)
    expected += np.log(0.5)
    assert value == pytest.approx(expected, abs=1e-8)


def test_map_under_flat_priors_is_reml(frame):
    for formula in FORMULAS:
        model = blm.LMM(formula, frame, priors="flat")
        mode, reml = model.map(), model.reml()
        assert mode.method == "MAP"
        assert mode.sigma == pytest.approx(reml.sigma, rel=1e-9)
        assert mode.beta.to_numpy() == pytest.approx(reml.beta.to_numpy(), rel=1e-9)


def test_the_search_in_signed_coordinates_finds_reml_too(frame, monkeypatch):
    """The search that priors take, given flat priors, against the likelihood's own search."""
    monkeypatch.setattr("bayeslmm.estimation.map_estimate.is_flat", lambda priors: False)
    model = blm.LMM("y ~ x + (x | g)", frame, priors="flat")
    mode, reml = model.map(), model.reml()
    assert mode.converged
    assert mode.sigma == pytest.approx(reml.sigma, rel=1e-5)
    assert mode.sds["g"].to_numpy() == pytest.approx(reml.sds["g"].to_numpy(), rel=1e-4)
    errors = [e.summary()["std_error"].to_numpy() for e in (mode, reml)]
    # The covariance of sigma and the sds comes from one Hessian in two coordinate systems.
    assert errors[0] == pytest.approx(errors[1], rel=1e-3)


def test_map_beats_its_surroundings(frame):
    model = blm.LMM("y ~ x + (x + z | g) + (1 | h)", frame)
    mode = model.map()
    assert mode.converged
    rng = np.random.default_rng(2)
    free = np.isfinite(mode.fit.parameters)
    assert free.all()
    x = vector_of(model.priors.coordinates, mode.fit)
    best = log_posterior_unconstrained(model.system, model.priors, x, jacobian=False)[0]
    assert -2 * best == pytest.approx(mode.criterion, abs=1e-6)
    for _ in range(40):
        other = x + rng.normal(scale=0.05, size=len(x))
        value = log_posterior_unconstrained(model.system, model.priors, other, jacobian=False)[0]
        assert value < best


def test_map_at_an_sd_of_zero():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
    mode = model.map()
    assert mode.converged
    assert mode.sds["Batch"].iloc[0] == pytest.approx(0.0, abs=1e-4)
    assert mode.singular


def test_map_with_a_prior_that_samples_beta(frame):
    import pymc as pm

    prior = {"x": pm.Laplace.dist(0.0, 0.01)}
    shrunk = blm.LMM("y ~ x + (x | g)", frame, priors=prior).map()
    free = blm.LMM("y ~ x + (x | g)", frame).map()
    assert abs(shrunk.beta["x"]) < 0.5 * abs(free.beta["x"])
