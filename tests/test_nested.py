"""Nested grouping factors kept sparse: against dense algebra, the dense tail and lme4."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import reference_checks as checks
from dense import Case, Columns, assert_factor_gradients, numerical, random_factors
from scipy.stats import multivariate_normal
from slow_cases import slow

from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import WorkingProducts, cross_products
from bayeslmm.likelihood.draws import draw, draw_given_beta
from bayeslmm.likelihood.elimination import Plan, make_plan
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
    precision_blocks,
)

# Two algorithms of backward error about 1e-15 n on numbers of order 100.
VALUE = 1e-9
# Central differences of step 1e-6 carry an error of about 1e-8 on derivatives of order 10.
DERIVATIVE = 1e-6
# As in test_reference: lme4's optimizer stops within 1e-6; what depends on theta follows it.
CRITERION = 1e-6
CRITERION_AT = 1e-10
SMOOTH = 1e-4
SIGMA = 1.3
PRIOR = GaussianBeta(np.array([0.5, 1.0]), np.linalg.cholesky([[2.0, 0.3], [0.3, 1.0]]).T)

ONE, PAIR, MIXED = ((0,),), ((0, 1),), ((0, 1), (2,))


@dataclass(frozen=True)
class Layout:
    """Levels and blocks of a hierarchy, finest first, and of crossed factors; order of factors."""

    hierarchy: tuple[tuple[int, tuple], ...]
    crossed: tuple[tuple[int, tuple], ...] = ()
    order: tuple[int, ...] = ()
    weighted: bool = False


LAYOUTS = {
    "two": Layout(((12, ONE), (4, ONE))),
    "two, coarse first": Layout(((12, ONE), (4, ONE)), order=(1, 0)),
    "two, slopes, weighted": Layout(((9, PAIR), (4, PAIR)), weighted=True),
    "two, mixed slopes": Layout(((8, ONE), (3, MIXED)), order=(1, 0)),
    "three": Layout(((18, ONE), (7, ONE), (3, ONE)), order=(1, 2, 0)),
    "three, slopes": Layout(((14, ONE), (7, PAIR), (3, MIXED)), order=(2, 1, 0), weighted=True),
    "four": Layout(((20, ONE), (10, PAIR), (5, ONE), (2, ONE)), order=(3, 0, 2, 1)),
    "two, one crossed": Layout(((12, ONE), (4, ONE)), ((5, ONE),), order=(2, 0, 1)),
    "two, larger crossed": Layout(((12, PAIR), (4, PAIR)), ((25, ONE),), weighted=True),
    "three, two crossed": Layout(
        ((16, PAIR), (8, ONE), (3, PAIR)), ((5, PAIR), (3, ONE)), order=(3, 2, 0, 4, 1)
    ),
    "three, crossed slopes": Layout(
        ((16, ONE), (8, PAIR), (3, ONE)), ((6, PAIR),), order=(1, 3, 0, 2)
    ),
    "two equal": Layout(((6, ONE), (6, PAIR)), ((4, ONE),)),
}


def nested_case(layout: Layout, seed: int = 3, n: int = 70) -> Case:
    """A random unbalanced design: levels of the hierarchy belong to random coarser levels."""
    rng = np.random.default_rng(seed)
    codes: list[np.ndarray] = []
    for count, _ in layout.hierarchy:
        size = n if not codes else int(codes[-1].max()) + 1
        own = np.concatenate([np.arange(count), rng.integers(0, count, size - count)])
        own = rng.permutation(own)
        codes.append(own if not codes else own[codes[-1]])
    codes += [
        rng.permutation(np.concatenate([np.arange(m), rng.integers(0, m, n - m)]))
        for m, _ in layout.crossed
    ]
    x = rng.normal(size=n)
    random = []
    for code, (count, blocks) in zip(codes, layout.hierarchy + layout.crossed, strict=True):
        k = sum(map(len, blocks))
        Z = np.column_stack([np.ones(n), x, rng.normal(size=n) + 2.0])[:, :k]
        random.append(Columns(code.astype(np.intp), Z, blocks, count))
    order = layout.order or range(len(random))
    weights = rng.uniform(0.5, 2.0, n) if layout.weighted else None
    X = np.column_stack([np.ones(n), x])
    return Case(rng.normal(size=n) + X @ [1.0, 2.0], X, tuple(random[i] for i in order), weights)


def products_of(case: Case) -> WorkingProducts:
    return cross_products(case.y, case.X, case.random, weights=case.weights)


def nested_plan(case: Case) -> Plan:
    plan = make_plan(products_of(case), nested=True)
    assert plan.nested
    return plan


SINGULAR = {"regular": None, "first-0": 0, "second-0": 1, "last-0": -1}


@pytest.fixture(params=SINGULAR.values(), ids=SINGULAR)
def singular(request):
    """Which relative factor has a zero on the diagonal."""
    return request.param


@pytest.fixture(params=LAYOUTS, ids=lambda name: name.replace(",", "").replace(" ", "-"))
def problem(request, singular):
    case = nested_case(LAYOUTS[request.param])
    factors = random_factors(case, 4, singular=False)
    if singular is not None:
        factors[singular][-1, -1] = 0.0
    return case, nested_plan(case), factors


def least_squares(case: Case, factors):
    inverse = np.linalg.inv(case.covariance(factors))
    information = case.X.T @ inverse @ case.X
    beta = np.linalg.solve(information, case.X.T @ inverse @ case.y)
    left = inverse @ case.X
    return inverse, inverse - left @ np.linalg.solve(information, left.T), information, beta


def assert_all_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=VALUE, rel=VALUE)


# --- stages --------------------------------------------------------------------------------------


def test_the_whole_hierarchy_is_eliminated_level_by_level():
    plan = nested_plan(nested_case(LAYOUTS["four"]))
    assert [stage.factor for stage in plan.stages] == [1, 3, 2, 0]
    assert plan.n_tail == 0


def test_crossed_factors_stay_in_the_tail():
    plan = nested_plan(nested_case(LAYOUTS["three, two crossed"]))
    assert [stage.factor for stage in plan.stages] == [2, 4, 1]
    assert [block.factor for block in plan.tail] == [0, 3]
    assert plan.n_tail == 5 * 2 + 3


def test_of_two_hierarchies_the_larger_one_is_taken():
    first = nested_case(Layout(((12, ONE), (4, ONE))))
    second = nested_case(Layout(((20, ONE), (3, ONE))), seed=8)
    case = replace(first, random=first.random + second.random)
    plan = nested_plan(case)
    assert [stage.factor for stage in plan.stages] == [2, 3]


def test_small_hierarchies_and_crossed_factors_keep_the_dense_tail():
    assert not make_plan(products_of(nested_case(LAYOUTS["three"]))).nested
    crossed = nested_case(Layout((), ((12, ONE), (5, ONE))))
    plan = make_plan(products_of(crossed), nested=True)
    assert not plan.nested
    assert plan.n_tail == 5


def test_nested_stages_are_used_from_the_size_at_which_they_pay():
    for outer, used in ((200, False), (201, True)):
        case = nested_case(Layout(((500, ONE), (outer, ONE))), n=800)
        assert make_plan(products_of(case)).nested is used
    plan = make_plan(products_of(case), nested=False)
    assert (plan.nested, plan.lead, plan.n_tail) == (False, 0, 201)


def test_only_crossed_factors_count_towards_the_largest_tail(monkeypatch):
    monkeypatch.setattr("bayeslmm.likelihood.elimination.MAX_TAIL", 10)
    case = nested_case(Layout(((500, ONE), (300, ONE)), ((8, ONE),)), n=800)
    assert make_plan(products_of(case)).n_tail == 8
    with pytest.raises(DataError, match="crossed with the largest have 308"):
        make_plan(products_of(case), nested=False)


# --- against dense algebra -----------------------------------------------------------------------


def test_criteria_equal_dense_algebra(problem):
    case, plan, factors = problem
    inverse, _, information, beta = least_squares(case, factors)
    residual = case.y - case.X @ beta
    rss = residual @ inverse @ residual
    n, p = case.X.shape
    log_det = -np.linalg.slogdet(inverse)[1]
    log_det_x = np.linalg.slogdet(information)[1]
    log_weights = plan.products.log_weights
    fact = factorise(plan, factors)
    assert fact.rss == pytest.approx(rss, abs=VALUE)
    assert fact.beta == pytest.approx(beta, abs=VALUE)
    assert fact.log_det_random - log_weights == pytest.approx(log_det, abs=VALUE)
    reml = log_det + log_det_x + (n - p) * (1 + np.log(2 * np.pi * rss / (n - p)))
    assert reml_criterion(fact) == pytest.approx(reml, abs=VALUE)
    ml = log_det + n * (1 + np.log(2 * np.pi * rss / n))
    assert ml_criterion(fact) == pytest.approx(ml, abs=VALUE)


def test_bayesian_density_equals_the_normal_one(problem):
    case, plan, factors = problem
    v = SIGMA**2 * case.covariance(factors)
    v = v + case.X @ np.linalg.inv(PRIOR.root.T @ PRIOR.root) @ case.X.T
    expected = multivariate_normal(case.X @ PRIOR.mean, v).logpdf(case.y)
    assert log_density(plan, factors, SIGMA, PRIOR) == pytest.approx(expected, abs=VALUE)


@pytest.mark.parametrize("prior", [None, PRIOR], ids=["flat", "normal"])
def test_gradient_equals_differences(problem, prior):
    _, plan, factors = problem
    _, d_factors, _, d_sigma, _ = log_density_grad(plan, factors, SIGMA, prior)
    expected = numerical(lambda s: log_density(plan, factors, float(s[0]), prior), [SIGMA])
    assert d_sigma == pytest.approx(expected[0], abs=DERIVATIVE)
    assert_factor_gradients(
        lambda t: log_density(plan, t, SIGMA, prior), plan, factors, d_factors, DERIVATIVE
    )


@pytest.mark.parametrize(
    "singular",
    [pytest.param(f, marks=pytest.mark.slow if f in (0, 1) else ()) for f in SINGULAR.values()],
    ids=SINGULAR,
    indirect=True,
)
def test_density_given_beta_and_its_gradient(problem):
    case, plan, factors = problem
    beta = least_squares(case, factors)[3] + 0.1
    value, d_factors, *_ = log_density_given_beta_grad(plan, factors, SIGMA, beta)
    v = SIGMA**2 * case.covariance(factors)
    expected = multivariate_normal(case.X @ beta, v).logpdf(case.y)
    assert value == pytest.approx(expected, abs=VALUE)

    def density(t):
        return log_density_given_beta_grad(plan, t, SIGMA, beta)[0]

    assert_factor_gradients(density, plan, factors, d_factors, DERIVATIVE)


@pytest.mark.parametrize("given_beta", [False, True])
def test_conditional_moments_equal_dense_algebra(problem, given_beta):
    case, plan, factors = problem
    inverse, projector, _, beta = least_squares(case, factors)
    fact = factorise(plan, factors)
    modes, residuals = conditional_modes(fact)
    blocks = conditional_covariances(fact, given_beta=given_beta)
    precisions = precision_blocks(fact, restricted=not given_beta)
    if given_beta:
        projector = inverse
    for f, t in enumerate(factors):
        z, a = case.z_matrix(f), plan.products.basis.random[f]
        levels, k = case.random[f].n_levels, len(t)
        g = np.kron(np.eye(levels), t @ t.T)
        q = (z.T @ inverse @ (case.y - case.X @ beta)).reshape(levels, k)
        assert residuals[f] == pytest.approx(q @ a, abs=VALUE)
        assert modes[f] @ a.T == pytest.approx(q @ t @ t.T, abs=VALUE)
        middle = z.T @ projector @ z
        full = g - g @ middle @ g
        own = [slice(j * k, (j + 1) * k) for j in range(levels)]
        assert a @ blocks[f] @ a.T == pytest.approx(np.array([full[s, s] for s in own]), abs=VALUE)
        total = a.T @ sum(middle[s, s] for s in own) @ a
        assert precisions[f] == pytest.approx(total, abs=VALUE, rel=VALUE)


def test_sensitivities_of_the_fixed_effects(problem):
    case, plan, factors = problem
    inverse, _, information, _ = least_squares(case, factors)
    for f, part in enumerate(fixed_sensitivities(factorise(plan, factors))):
        full = case.z_matrix(f).T @ inverse @ case.X @ np.linalg.inv(information)
        expected = plan.products.basis.random[f].T @ full.reshape(part.shape)
        assert part == pytest.approx(expected, abs=VALUE)


def test_models_without_fixed_effects():
    case = nested_case(LAYOUTS["three, crossed slopes"])
    case = replace(case, X=np.zeros((len(case.y), 0)))
    plan, factors = nested_plan(case), random_factors(case, 4, singular=False)
    value, *_ = log_density_grad(plan, factors, SIGMA)
    v = SIGMA**2 * case.covariance(factors)
    assert value == pytest.approx(multivariate_normal(np.zeros(70), v).logpdf(case.y), abs=VALUE)


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["three, slopes", "three, two crossed"])
def test_draws_have_the_exact_moments(layout):
    case = nested_case(LAYOUTS[layout])
    plan, factors = nested_plan(case), random_factors(case, 4, singular=False)
    size = 20_000
    beta, u = draw(plan, factors, SIGMA, np.random.default_rng(5), PRIOR, size)
    drawn = np.hstack([beta, *(part.reshape(size, -1) for part in u)])
    prior_cov = np.linalg.inv(PRIOR.root.T @ PRIOR.root)
    v = SIGMA**2 * case.covariance(factors) + case.X @ prior_cov @ case.X.T
    loads, priors = [prior_cov @ case.X.T], [prior_cov]
    for f, t in enumerate(factors):
        priors.append(np.kron(np.eye(case.random[f].n_levels), SIGMA**2 * t @ t.T))
        loads.append(priors[-1] @ case.z_matrix(f).T)
    load = np.vstack(loads)
    mean = load @ np.linalg.solve(v, case.y - case.X @ PRIOR.mean)
    mean[: len(PRIOR.mean)] += PRIOR.mean
    cov = -load @ np.linalg.solve(v, load.T)
    start = 0
    for part in priors:
        own = slice(start, start + len(part))
        cov[own, own] += part
        start += len(part)
    sds = np.sqrt(np.diag(cov))
    # Monte Carlo: five standard errors of a mean, and of a covariance of normal draws.
    assert np.max(np.abs(drawn.mean(axis=0) - mean) / sds) < 5 / np.sqrt(size)
    scaled = (np.cov(drawn.T) - cov) / np.outer(sds, sds)
    assert np.max(np.abs(scaled)) < 5 * np.sqrt(2 / size)


@pytest.mark.slow
def test_draws_given_beta_are_centred_at_the_conditional_modes():
    case = nested_case(LAYOUTS["three, crossed slopes"])
    plan, factors = nested_plan(case), random_factors(case, 4, singular=False)
    beta, rng = np.array([1.0, 2.0]), np.random.default_rng(6)
    draws = [draw_given_beta(plan, factors, SIGMA, beta, rng) for _ in range(1000)]
    inverse = np.linalg.inv(case.covariance(factors))
    for f, t in enumerate(factors):
        g = np.kron(np.eye(case.random[f].n_levels), t @ t.T)
        expected = g @ case.z_matrix(f).T @ inverse @ (case.y - case.X @ beta)
        sample = np.array([u[f].ravel() for u in draws])
        error = sample.std(axis=0) / np.sqrt(len(draws))
        assert np.max(np.abs(sample.mean(axis=0) - expected) / error) < 5


# --- against the dense tail ----------------------------------------------------------------------


def assert_same_figures(products: WorkingProducts, factors):
    one, two = (factorise(make_plan(products, nested=nested), factors) for nested in (True, False))
    for name in ("beta", "beta_root", "log_det_random", "log_det_fixed", "rss", "fixed_half"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), abs=VALUE, rel=VALUE)
    for found, expected in zip(conditional_modes(one), conditional_modes(two), strict=True):
        assert_all_close(found, expected)
    assert_all_close(fixed_sensitivities(one), fixed_sensitivities(two))
    assert_all_close(conditional_covariances(one), conditional_covariances(two))
    assert_all_close(precision_blocks(one), precision_blocks(two))


@pytest.mark.parametrize("seed", range(12))
def test_random_hierarchies_agree_with_the_dense_tail(seed):
    rng = np.random.default_rng(seed)
    depth, n_crossed = int(rng.integers(2, 5)), int(rng.integers(0, 3))
    counts = np.sort(rng.choice(np.arange(2, 60), depth, replace=False))[::-1]

    def blocks():
        return (ONE, PAIR, MIXED)[rng.integers(3)]

    layout = Layout(
        tuple((int(count), blocks()) for count in counts),
        tuple((int(rng.integers(2, 30)), blocks()) for _ in range(n_crossed)),
        tuple(int(i) for i in rng.permutation(depth + n_crossed)),
        bool(rng.integers(2)),
    )
    case = nested_case(layout, seed=seed, n=300)
    factors = random_factors(case, seed, singular=bool(rng.integers(2)))
    products = products_of(case)
    assert_same_figures(products, factors)


@pytest.mark.parametrize("filled", [0.0, 1.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("batch", [1, 50])
def test_all_ways_to_couple_with_the_tail_agree(filled, batch, monkeypatch):
    monkeypatch.setattr("bayeslmm.likelihood.nested.FILLED", filled)
    monkeypatch.setattr("bayeslmm.likelihood.nested.BATCH", batch)
    monkeypatch.setattr("bayeslmm.likelihood.elimination.MAX_PRODUCTS", 0)
    case = nested_case(LAYOUTS["three, two crossed"], n=200)
    products, factors = products_of(case), random_factors(case, 4, singular=False)
    assert_same_figures(products, factors)


def test_levels_without_rows():
    """A level that no row has keeps its prior, in every stage."""
    case = nested_case(LAYOUTS["three, crossed slopes"])
    grown = tuple(replace(c, n_levels=c.n_levels + 1) for c in case.random)
    products = products_of(replace(case, random=grown))
    factors = random_factors(case, 4, singular=False)
    assert_same_figures(products, factors)


# --- against lme4 --------------------------------------------------------------------------------

FITS = [
    "Pastes__nested_reml",
    "Pastes__nested_ml",
    "Oats__split_reml",
    "Oats__split_variety_reml",
    "Machines__nested_reml",
    "Pixel__nested_slope_reml",
    slow("Chem97__slope_ml"),
    "sim_labels__nested_reml",
]


@pytest.mark.reference
@pytest.mark.parametrize("name", FITS)
def test_reference_fits(name):
    case = checks.load_case(name)
    plan = nested_plan(case.design)
    case = replace(case, fit=fit_likelihood(plan, "REML" if case.restricted else "ML"))
    assert abs(checks.criterion(case)) <= CRITERION
    assert checks.criterion_at(case) <= CRITERION_AT
    assert checks.covariances(case) <= SMOOTH
    assert checks.modes(case) <= SMOOTH
    assert checks.conditional_sds(case, given_beta=True) <= SMOOTH
    assert checks.conditional_sds(case, given_beta=False) <= SMOOTH
    assert checks.fitted(case) <= SMOOTH


# --- large designs -------------------------------------------------------------------------------


def simulated(levels: tuple[int, ...], n: int, n_items: int = 0) -> Case:
    """A response with variances 1 (residual), 0.5, 0.3, ... of the levels, finest first."""
    layout = Layout(
        tuple((count, ONE) for count in levels), ((n_items, ONE),) if n_items else (), ()
    )
    case = nested_case(layout, n=n)
    rng = np.random.default_rng(9)
    variances = (0.5, 0.3, 0.2, 0.4)
    y = case.y + sum(
        np.sqrt(variance) * rng.normal(size=c.n_levels)[c.codes]
        for variance, c in zip(variances, case.random, strict=False)
    )
    return replace(case, y=y)


def test_a_fit_agrees_with_the_dense_tail():
    products = products_of(simulated((1500, 400, 40), 5000, 30))
    fit = fit_likelihood(make_plan(products), "REML")
    dense = fit_likelihood(make_plan(products, nested=False), "REML")
    assert fit.plan.nested
    assert fit.criterion == pytest.approx(dense.criterion, abs=CRITERION)
    assert fit.sigma == pytest.approx(dense.sigma, rel=SMOOTH)
    for ours, theirs in zip(fit.factors, dense.factors, strict=True):
        assert ours == pytest.approx(theirs, rel=SMOOTH)


def test_a_large_hierarchy():
    """25,000 rows of 10,000 students in 2,000 classes in 100 schools."""
    case = simulated((10_000, 2_000, 100), 25_000)
    fit = fit_likelihood(marginal_system(case), "REML")
    assert fit.plan.nested
    assert fit.plan.n_tail == 0
    assert fit.optimum.converged
    found = [float(t[0, 0] * fit.sigma) ** 2 for t in fit.factors]
    # Five times sqrt(2 / levels), relative, plus what the finer levels blur.
    assert found == pytest.approx([0.5, 0.3, 0.2], rel=0.3)
    assert fit.sigma == pytest.approx(1.0, rel=0.03)
    dense = factorise(make_plan(fit.plan.products, nested=False), fit.factors)
    ours = factorise(fit.plan, fit.factors)
    assert ours.log_det_random == pytest.approx(dense.log_det_random, rel=VALUE)
    assert ours.rss == pytest.approx(dense.rss, rel=VALUE)
    assert ours.beta == pytest.approx(dense.beta, rel=VALUE)
