"""Density, gradient, conditional moments and draws against dense algebra."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from dense import (
    Case,
    Columns,
    assert_factor_gradients,
    make_case,
    numerical,
    random_factors,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.likelihood.crossprod import cross_products, working_basis
from bayeslmm.likelihood.draws import draw, draw_given_beta
from bayeslmm.likelihood.elimination import make_plan
from bayeslmm.likelihood.factorise import GaussianBeta, factorise
from bayeslmm.likelihood.marginal import (
    log_density,
    log_density_given_beta_grad,
    log_density_grad,
    marginal_system,
    ml_criterion,
    reml_criterion,
)
from bayeslmm.likelihood.moments import (
    conditional_covariances,
    conditional_modes,
    fixed_sensitivities,
)

# Two algorithms of backward error about 1e-15 n on numbers of order 100.
VALUE = 1e-9
# Central differences of step 1e-6 carry an error of about 1e-8 on derivatives of order 10.
DERIVATIVE = 1e-6

ONE, PAIR, MIXED = ((0,),), ((0, 1),), ((0, 1), (2,))
DESIGNS = {
    "one scalar": ((8,), (ONE,), False),
    "one pair, weighted": ((8,), (PAIR,), True),
    "two scalars": ((8, 5), (ONE, ONE), False),
    "three mixed, weighted": ((8, 5, 3), (PAIR, MIXED, ONE), True),
    "leading factor second": ((3, 9), (ONE, PAIR), False),
    "two vectors": ((6, 5), (MIXED, PAIR), False),
}
PRIOR = GaussianBeta(
    np.array([0.5, 1.0, 2.0]),
    np.linalg.cholesky([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.7]]).T,
)
SIGMA = 1.3


@pytest.fixture(params=[False, True], ids=["regular", "singular"])
def singular(request):
    return request.param


@pytest.fixture(params=DESIGNS, ids=lambda name: name.replace(" ", "-"))
def problem(request, singular):
    levels, blocks, weighted = DESIGNS[request.param]
    case = make_case(3, 60, levels, blocks, weighted)
    return case, marginal_system(case), random_factors(case, 4, singular=singular)


def generalised_least_squares(case: Case, factors):
    inverse = np.linalg.inv(case.covariance(factors))
    information = case.X.T @ inverse @ case.X
    beta = np.linalg.solve(information, case.X.T @ inverse @ case.y)
    return inverse, information, beta


def test_criteria_equal_dense_algebra(problem):
    case, plan, factors = problem
    v = case.covariance(factors)
    inverse, information, beta = generalised_least_squares(case, factors)
    residual = case.y - case.X @ beta
    rss = residual @ inverse @ residual
    n, p = case.X.shape
    log_det, log_det_x = np.linalg.slogdet(v)[1], np.linalg.slogdet(information)[1]
    fact = factorise(plan, factors)
    reml = log_det + log_det_x + (n - p) * (1 + np.log(2 * np.pi * rss / (n - p)))
    assert reml_criterion(fact) == pytest.approx(reml, abs=VALUE)
    ml = log_det + n * (1 + np.log(2 * np.pi * rss / n))
    assert ml_criterion(fact) == pytest.approx(ml, abs=VALUE)
    assert fact.beta == pytest.approx(beta, abs=VALUE)


def test_bayesian_density_equals_the_normal_one(problem):
    case, plan, factors = problem
    v = SIGMA**2 * case.covariance(factors)
    v = v + case.X @ np.linalg.inv(PRIOR.root.T @ PRIOR.root) @ case.X.T
    expected = multivariate_normal(case.X @ PRIOR.mean, v).logpdf(case.y)
    assert log_density(plan, factors, SIGMA, PRIOR) == pytest.approx(expected, abs=VALUE)


def test_flat_prior_gives_the_restricted_likelihood(problem):
    case, plan, factors = problem
    fact = factorise(plan, factors)
    n, p = case.X.shape
    sigma = np.sqrt(fact.rss / (n - p))
    value = log_density(plan, factors, sigma)
    assert -2 * value == pytest.approx(reml_criterion(fact), abs=VALUE)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "normal"])
def test_gradient_equals_differences(problem, prior):
    _, plan, factors = problem
    value, d_factors, _, d_sigma, _ = log_density_grad(plan, factors, SIGMA, prior)
    assert value == pytest.approx(log_density(plan, factors, SIGMA, prior), abs=VALUE)
    expected = numerical(lambda s: log_density(plan, factors, float(s[0]), prior), [SIGMA])
    assert d_sigma == pytest.approx(expected[0], abs=DERIVATIVE)
    assert_factor_gradients(
        lambda t: log_density(plan, t, SIGMA, prior), plan, factors, d_factors, DERIVATIVE
    )


def test_density_given_beta_and_its_gradient(problem):
    case, plan, factors = problem
    beta = generalised_least_squares(case, factors)[2] + 0.1
    value, d_factors, _, d_sigma, d_beta = log_density_given_beta_grad(plan, factors, SIGMA, beta)
    v = SIGMA**2 * case.covariance(factors)
    expected = multivariate_normal(case.X @ beta, v).logpdf(case.y)
    assert value == pytest.approx(expected, abs=VALUE)

    def density(t, s, b):
        return log_density_given_beta_grad(plan, t, s, b)[0]

    assert d_beta == pytest.approx(
        numerical(lambda b: density(factors, SIGMA, b), beta), rel=1e-6, abs=1e-5
    )
    assert d_sigma == pytest.approx(
        numerical(lambda s: density(factors, float(s[0]), beta), [SIGMA])[0], abs=DERIVATIVE
    )
    assert_factor_gradients(lambda t: density(t, SIGMA, beta), plan, factors, d_factors, DERIVATIVE)


@pytest.mark.parametrize("given_beta", [False, True])
def test_conditional_moments_equal_dense_algebra(problem, given_beta):
    case, plan, factors = problem
    inverse, information, beta = generalised_least_squares(case, factors)
    if given_beta:
        projector = inverse
    else:
        left = inverse @ case.X
        projector = inverse - left @ np.linalg.solve(information, left.T)
    fact = factorise(plan, factors)
    modes, _ = conditional_modes(fact)
    blocks = conditional_covariances(fact, given_beta=given_beta)
    for f, t in enumerate(factors):
        z, a = case.z_matrix(f), plan.products.basis.random[f]
        levels, k = case.random[f].n_levels, len(t)
        g = np.kron(np.eye(levels), t @ t.T)
        u = g @ z.T @ inverse @ (case.y - case.X @ beta)
        assert modes[f] @ a.T == pytest.approx(u.reshape(levels, k), abs=VALUE)
        full = g - g @ z.T @ projector @ z @ g
        for j in range(levels):
            expected = full[j * k : (j + 1) * k, j * k : (j + 1) * k]
            assert a @ blocks[f][j] @ a.T == pytest.approx(expected, abs=VALUE)


def test_sensitivities_of_the_fixed_effects(problem):
    case, plan, factors = problem
    inverse, information, _ = generalised_least_squares(case, factors)
    parts = fixed_sensitivities(factorise(plan, factors))
    for f, part in enumerate(parts):
        full = case.z_matrix(f).T @ inverse @ case.X @ np.linalg.inv(information)
        expected = plan.products.basis.random[f].T @ full.reshape(part.shape)
        assert part == pytest.approx(expected, abs=VALUE)


def test_draws_have_the_exact_moments():
    levels, blocks, weighted = DESIGNS["three mixed, weighted"]
    case = make_case(3, 60, levels, blocks, weighted)
    plan, factors = marginal_system(case), random_factors(case, 4, singular=False)
    size = 20_000
    beta, u = draw(plan, factors, SIGMA, np.random.default_rng(5), PRIOR, size)
    prior_cov = np.linalg.inv(PRIOR.root.T @ PRIOR.root)
    zs = [case.z_matrix(f) for f in range(len(factors))]
    gs = [
        np.kron(np.eye(c.n_levels), SIGMA**2 * t @ t.T)
        for c, t in zip(case.random, factors, strict=True)
    ]
    v = SIGMA**2 * case.covariance(factors) + case.X @ prior_cov @ case.X.T
    gain = np.linalg.solve(v, case.y - case.X @ PRIOR.mean)
    means = [PRIOR.mean + prior_cov @ case.X.T @ gain]
    means += [g @ z.T @ gain for g, z in zip(gs, zs, strict=True)]
    loads = [prior_cov @ case.X.T] + [g @ z.T for g, z in zip(gs, zs, strict=True)]
    priors = [prior_cov, *gs]
    drawn = [beta, *(part.reshape(size, -1) for part in u)]
    for mean, load, prior, sample in zip(means, loads, priors, drawn, strict=True):
        cov = prior - load @ np.linalg.solve(v, load.T)
        sds = np.sqrt(np.diag(cov))
        # Monte Carlo: five standard errors of a mean, and of a covariance of normal draws.
        assert np.max(np.abs(sample.mean(axis=0) - mean) / sds) < 5 / np.sqrt(size)
        scaled = (np.cov(sample.T) - cov) / np.outer(sds, sds)
        assert np.max(np.abs(scaled)) < 5 * np.sqrt(2 / size)


@pytest.mark.slow
def test_draws_given_beta_are_centred_at_the_conditional_modes():
    levels, blocks, weighted = DESIGNS["two vectors"]
    case = make_case(3, 60, levels, blocks, weighted)
    plan, factors = marginal_system(case), random_factors(case, 4, singular=False)
    beta = np.array([1.0, 2.0, 3.0])
    rng = np.random.default_rng(6)
    draws = [draw_given_beta(plan, factors, SIGMA, beta, rng) for _ in range(4000)]
    inverse = np.linalg.inv(case.covariance(factors))
    for f, t in enumerate(factors):
        g = np.kron(np.eye(case.random[f].n_levels), t @ t.T)
        expected = g @ case.z_matrix(f).T @ inverse @ (case.y - case.X @ beta)
        sample = np.array([u[f].ravel() for u in draws])
        error = sample.std(axis=0) / np.sqrt(len(draws))
        assert np.max(np.abs(sample.mean(axis=0) - expected) / error) < 5


def test_large_designs_take_the_route_without_the_products_map(monkeypatch):
    case = make_case(3, 60, (8, 5, 3), (PAIR, MIXED, ONE), True)
    factors = random_factors(case, 4, singular=False)
    expected = log_density_grad(marginal_system(case), factors, SIGMA, PRIOR)
    monkeypatch.setattr("bayeslmm.likelihood.elimination.MAX_PRODUCTS", 0)
    plan = marginal_system(case)
    assert plan.products_map is None
    value, d_factors, _, d_sigma, _ = log_density_grad(plan, factors, SIGMA, PRIOR)
    assert value == pytest.approx(expected[0], abs=VALUE)
    assert d_sigma == pytest.approx(expected.sigma, abs=VALUE)
    for ours, theirs in zip(d_factors, expected[1], strict=True):
        assert ours == pytest.approx(theirs, abs=VALUE)


def test_cross_products_of_parts_add_up():
    case = make_case(3, 60, (8, 5), (PAIR, ONE), True)
    basis = working_basis(case.y, case.X, case.random, case.weights)

    def part(rows):
        random = [Columns(c.codes[rows], c.Z[rows], c.blocks, c.n_levels) for c in case.random]
        return cross_products(
            case.y[rows], case.X[rows], random, weights=case.weights[rows], basis=basis
        )

    whole = part(slice(None))
    added = part(slice(0, 25)) + pickle.loads(pickle.dumps(part(slice(25, None))))
    factors = random_factors(case, 4, singular=False)
    assert added.n_obs == whole.n_obs
    assert log_density(make_plan(added), factors, SIGMA, PRIOR) == pytest.approx(
        log_density(make_plan(whole), factors, SIGMA, PRIOR), abs=VALUE
    )


def test_cross_products_in_other_bases_do_not_add():
    case = make_case(3, 60, (8, 5), (PAIR, ONE), True)
    one = cross_products(case.y, case.X, case.random)
    other = cross_products(2.0 * case.y, case.X, case.random)
    with pytest.raises(ValueError, match="different bases"):
        one + other


@pytest.mark.slow
@given(
    scale=st.floats(-6, 6).map(lambda e: 10.0**e),
    shift=st.floats(-1e6, 1e6),
    seed=st.integers(0, 50),
)
@settings(max_examples=25, deadline=None)
def test_units_and_origin_of_a_covariate_do_not_matter(scale, shift, seed):
    """X and Z hold a + b x: the criterion moves by the known constant, sigma and V not at all."""
    case = make_case(seed, 60, (8,), (PAIR,), False)
    x = case.X[:, 1]
    z = np.column_stack([np.ones(60), x])
    base = Case(case.y, case.X, (Columns(case.random[0].codes, z, PAIR, 8),), None)
    moved = scale * x + shift * scale
    X = np.column_stack([case.X[:, 0], moved, case.X[:, 2]])
    columns = Columns(case.random[0].codes, np.column_stack([np.ones(60), moved]), PAIR, 8)
    other = Case(case.y, X, (columns,), None)
    first = fit_likelihood(marginal_system(base), "REML")
    second = fit_likelihood(marginal_system(other), "REML")
    # A shift by 1e6 standard deviations costs six of sixteen digits of the covariate itself.
    assert second.criterion == pytest.approx(first.criterion + 2 * np.log(scale), abs=1e-6)
    assert second.sigma == pytest.approx(first.sigma, rel=1e-5)
    assert second.beta[1] * scale == pytest.approx(first.beta[1], rel=1e-5, abs=1e-7)
