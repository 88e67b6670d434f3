"""Batches of log densities and of exact draws: point by point, and against dense algebra."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from dense import Case, Columns, all_z, case_of, fixed_moments, make_case, random_moments
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import kstest
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.covariance.coordinates import WorkingPoints
from bayeslmm.likelihood import batch, elimination
from bayeslmm.likelihood.batch import CHUNK, THREADED_CELLS, chunks_of, reduce_equations
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.draws import LARGEST_HYPERCUBE, draw_random, normal_draws
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import factorise, to_working_beta
from bayeslmm.likelihood.log_posterior import (
    beta_prior,
    fixed_effects_at,
    log_posterior_batch,
    log_posterior_unconstrained,
    reduce_at,
)
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.sampling.tree import draw_beta


def at(factors):
    """Points of relative factors (S, k, k) alone."""
    return SimpleNamespace(
        factors=factors, sigma=np.ones(len(factors[0])), shapes=np.empty((len(factors[0]), 0))
    )


# Two orders of the same arithmetic: backward error about 1e-15 n at condition numbers up to 1e3.
VALUE = 1e-10
# With relative sds up to e^12 the equations have condition numbers up to e^24 = 3e10, so that two
# orders of the same arithmetic on 1e-16 agree to 1e-6 of the residual sum of squares.
NEAR_SINGULAR = 1e-6
# Normal equations of condition up to 1e6 for dense algebra, on effects of order one.
MOMENT = 1e-8
# Largest of up to 2,000 standard normal scores: beyond 5 with probability 0.1%.
MAX_Z = 5.0

N = 90


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    """Unbalanced rows: `a` is nested in `b`, `g` and `h` are crossed, `few` has counts 1, 2, 3."""
    rng = np.random.default_rng(17)
    a = np.concatenate([np.arange(14), rng.integers(0, 14, N - 14)])
    g = np.concatenate([np.arange(11), rng.integers(0, 11, N - 11)])
    x, z = 3.0 * rng.normal(size=N) + 5.0, rng.normal(size=N)
    data = {
        "x": x,
        "z": z,
        "v": rng.normal(size=N),
        "w": rng.uniform(0.5, 2.0, N),
        "g": g.astype(str),
        "h": rng.integers(0, 6, N).astype(str),
        "a": a.astype(str),
        "b": (a // 4).astype(str),
        "few": np.repeat(np.arange(45), np.tile([1, 2, 3], 15)).astype(str),
        "f": rng.choice(list("pqr"), N),
    }
    effect = rng.normal(size=(2, 14))
    data["y"] = 2.0 + 0.5 * x + effect[0, g] + 0.3 * effect[1, g] * z + rng.normal(size=N)
    return pd.DataFrame(data)


FORMULAS = {
    "intercept": "y ~ x + (1 | g)",
    "intercept-few-classes": "y ~ x + (1 | few)",
    "slope-distinct-levels": "y ~ x + (x | g)",
    "two-slopes": "y ~ x + z + (x + z | g)",
    "three-slopes": "y ~ x + (x + z + v | g)",
    "no-intercept": "y ~ x + (0 + z | g)",
    "uncorrelated": "y ~ x + (x || g)",
    "blocks": "y ~ x + (x + z | g) + (0 + v | g)",
    "crossed": "y ~ x + (1 | g) + (1 | h)",
    "crossed-slopes": "y ~ x + (x | g) + (z | h)",
    "nested": "y ~ x + (1 | b / f)",
    "nested-slopes": "y ~ x + (x | a) + (z | b)",
    "nested-and-crossed": "y ~ x + (1 | a) + (1 | b) + (1 | h)",
    "three-crossed-blocks": "y ~ x + (x + z || h) + (1 | g) + (x | a)",
    "no-fixed-effects": "y ~ 0 + (1 | g)",
    "no-fixed-effects-tail": "y ~ 0 + (x | g) + (1 | h)",
    "offset": "y ~ z + offset(x) + (z | g)",
    "many-fixed-effects": "y ~ f * x * z + v + (1 | g)",
}
PRIORS = {"default": None, "flat": "flat"}


def coordinates(model: blm.LMM, size: int, seed: int, scale: float = 1.0) -> np.ndarray:
    """Unconstrained points (size, d), fixed effects around two where they are coordinates."""
    rng = np.random.default_rng(seed)
    d = model.priors.coordinates.n_covariance
    x = rng.normal(scale=scale, size=(size, d))
    if model.priors.beta_sampled:
        x = np.hstack([x, rng.normal(2.0, 1.0, (size, model.design.p))])
    return x


def densities(plan: Plan, priors, x: np.ndarray) -> np.ndarray:
    return log_posterior_batch(plan, priors, partial(reduce_at, plan, priors.coordinates), x)


def one_by_one(plan, priors, x: np.ndarray) -> np.ndarray:
    return np.array([log_posterior_unconstrained(plan, priors, point)[0] for point in x])


def assert_same_as_one_by_one(plan, priors, x, tolerance=VALUE):
    expected = one_by_one(plan, priors, x)
    assert np.isfinite(expected).all()
    found = densities(plan, priors, x)
    assert found == pytest.approx(expected, abs=tolerance, rel=tolerance)


# --- densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("priors", PRIORS)
@pytest.mark.parametrize("name", FORMULAS)
def test_density_is_that_of_single_points(frame, name, priors):
    model = blm.LMM(FORMULAS[name], frame, priors=PRIORS[priors])
    assert_same_as_one_by_one(model.system, model.priors, coordinates(model, 7, seed=1))


@pytest.mark.parametrize("name", ["slope-distinct-levels", "crossed-slopes", "offset"])
def test_density_with_weights(frame, name):
    plain = blm.LMM(FORMULAS[name], frame)
    model = blm.LMM(FORMULAS[name], frame, weights="w")
    x = coordinates(model, 7, seed=2)
    assert_same_as_one_by_one(model.system, model.priors, x)
    unweighted = densities(plain.system, plain.priors, x)
    assert np.abs(densities(model.system, model.priors, x) - unweighted).min() > 1e-3


@pytest.mark.parametrize("name", ["intercept", "two-slopes", "crossed-slopes", "nested"])
def test_density_with_sampled_fixed_effects(frame, name):
    import pymc as pm

    user = {"x": pm.Laplace.dist(0.0, 0.3), "Intercept": pm.StudentT.dist(nu=4, mu=1.0, sigma=2.0)}
    model = blm.LMM(FORMULAS[name], frame, priors=user)
    assert model.priors.beta_sampled
    assert_same_as_one_by_one(model.system, model.priors, coordinates(model, 7, seed=3))


def test_density_under_priors_without_a_closed_form(frame):
    import pymc as pm

    user = {
        "sd[g]": pm.Weibull.dist(1.5, 2.0),
        "sigma": pm.Truncated.dist(pm.Normal.dist(1.0, 0.5), lower=0.0),
        "cor[g]": pm.LKJCorr.dist(n=2, eta=3.0),
        "x": pm.Normal.dist(1.0, 0.2),
    }
    model = blm.LMM(FORMULAS["slope-distinct-levels"], frame, priors=user)
    assert_same_as_one_by_one(model.system, model.priors, coordinates(model, 7, seed=4))


def extreme_points(model: blm.LMM) -> np.ndarray:
    """Each coordinate at its extremes in turn, and all together: sds of e^-30 and e^10."""
    plan = model.system
    base = coordinates(model, 1, seed=5, scale=0.3)[0]
    far, start = [], 0
    for s in plan.products.structures:
        far += [(-30.0, 10.0)] * s.n_coefs + [(-8.0, 8.0)] * len(s.pairs)
        start += s.n_theta
    rows = [base]
    for i, values in enumerate(far):
        for value in values:
            rows.append(base.copy())
            rows[-1][i] = value
    for side in (0, 1):
        rows.append(base.copy())
        rows[-1][:start] = [values[side] for values in far]
    for log_sigma in (-2.0, 8.0):
        rows.append(base.copy())
        rows[-1][start] = log_sigma
    return np.array(rows)


@pytest.mark.parametrize("name", FORMULAS)
def test_density_near_singular_points(frame, name):
    model = blm.LMM(FORMULAS[name], frame)
    assert_same_as_one_by_one(model.system, model.priors, extreme_points(model), NEAR_SINGULAR)


def test_density_at_unused_levels_is_that_without_them():
    for levels, blocks in (((8,), (((0, 1),),)), ((9, 5), (((0,),), ((0, 1),)))):
        case = make_case(3, 60, levels, blocks, True)
        padded = replace(
            case, random=tuple(replace(c, n_levels=c.n_levels + 3) for c in case.random)
        )
        rng = np.random.default_rng(6)
        factors = [np.tril(rng.normal(size=(5, len(c.Z[0]), len(c.Z[0])))) for c in case.random]
        few, many = (reduce_equations(marginal_system(c), at(factors)) for c in (case, padded))
        assert few.log_det == pytest.approx(many.log_det, abs=VALUE)
        assert few.fixed == pytest.approx(many.fixed, abs=VALUE)


def test_broken_arithmetic_is_no_density_and_spares_the_other_points(frame):
    for name in ("two-slopes", "crossed-slopes", "many-fixed-effects"):
        model = blm.LMM(FORMULAS[name], frame)
        x = coordinates(model, 5, seed=7)
        expected = one_by_one(model.system, model.priors, x)
        k = model.system.products.structures[0].n_coefs
        x[1, :k], x[3, :k], x[2] = 400.0, 50.0, np.nan
        found = densities(model.system, model.priors, x)
        assert not np.isnan(found).any()
        assert np.isneginf(found[2])
        # A density that is not refused there is at most that of an absurd point.
        assert (found[[1, 3]] < expected[0] - 50.0).all()
        assert found[[0, 4]] == pytest.approx(expected[[0, 4]], abs=VALUE)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.lists(st.integers(2, 9), min_size=1, max_size=3),
    shapes=st.lists(
        st.sampled_from([((0,),), ((0, 1),), ((0,), (1,)), ((0, 2), (1,)), ((0, 1, 2),)]),
        min_size=3,
        max_size=3,
    ),
    weighted=st.booleans(),
    size=st.integers(1, 5),
)
@example(0, [8, 2, 4], [((0, 2), (1,)), ((0,),), ((0,),)], True, 1)  # a level of two rows
def test_equations_are_those_of_dense_algebra(seed, levels, shapes, weighted, size):
    case = make_case(seed, 40, tuple(levels), tuple(shapes[: len(levels)]), weighted)
    plan = marginal_system(case)
    rng = np.random.default_rng(seed)
    factors = [np.tril(rng.normal(size=(size, c.Z.shape[1], c.Z.shape[1]))) for c in case.random]
    found = reduce_equations(plan, at(factors))
    basis = plan.products.basis
    right = np.column_stack([case.X @ basis.fixed, case.y - case.X @ basis.shift])
    for s in range(size):
        v = case.covariance([t[s] for t in factors])
        expected = right.T @ np.linalg.solve(v, right)
        log_det = np.linalg.slogdet(v)[1]
        assert found.log_det[s] == pytest.approx(log_det, abs=VALUE)
        scale = np.sqrt(np.diag(expected))
        assert found.fixed[s] / scale / scale[:, None] == pytest.approx(
            expected / scale / scale[:, None], abs=MOMENT
        )


# --- chunks, threads and other paths -------------------------------------------------------------

PATHS = ["intercept-few-classes", "two-slopes", "crossed", "crossed-slopes", "many-fixed-effects"]


class CountingPool(batch.ThreadPoolExecutor):
    """A pool that counts how often one is made."""

    made = 0

    def __init__(self, *args, **kwargs):
        type(self).made += 1
        super().__init__(*args, **kwargs)


@pytest.fixture
def small_chunks(monkeypatch):
    """Few points per chunk, and several cores; returns how to count the pools made."""
    monkeypatch.setattr(batch, "CHUNK", CHUNK >> 8)
    monkeypatch.setattr(batch, "THREADED_CELLS", 1)
    monkeypatch.setattr(batch, "available_cores", lambda: 3)
    monkeypatch.setattr(batch, "ThreadPoolExecutor", CountingPool)
    monkeypatch.setattr(CountingPool, "made", 0)
    return lambda: CountingPool.made


@pytest.mark.parametrize("name", PATHS)
def test_chunks_and_threads_change_nothing(frame, name, small_chunks, monkeypatch):
    model = blm.LMM(FORMULAS[name], frame)
    plan = model.system
    assert plan.sums is not None
    x = coordinates(model, 301, seed=8)
    chunks = list(chunks_of(plan, len(x)))
    assert len(chunks) > 2
    assert np.array_equal(np.concatenate([np.arange(301)[c] for c in chunks]), np.arange(301))
    found = densities(plan, model.priors, x)
    assert small_chunks() == 1
    monkeypatch.setattr(batch, "THREADED_CELLS", THREADED_CELLS)
    assert densities(plan, model.priors, x) == pytest.approx(found, abs=0.0, rel=0.0)
    assert small_chunks() == 1
    monkeypatch.setattr(batch, "CHUNK", 1 << 30)
    assert len(list(chunks_of(plan, len(x)))) == 1
    assert densities(plan, model.priors, x) == pytest.approx(found, abs=VALUE, rel=VALUE)
    alone = np.concatenate([densities(plan, model.priors, row[None]) for row in x[::50]])
    assert alone == pytest.approx(found[::50], abs=VALUE, rel=VALUE)


@pytest.mark.parametrize("name", ["crossed", "crossed-slopes", "nested-slopes"])
def test_large_tails_agree_with_small_ones(frame, name, monkeypatch):
    model = blm.LMM(FORMULAS[name], frame)
    x = coordinates(model, 9, seed=9)
    expected = densities(model.system, model.priors, x)
    monkeypatch.setattr(elimination, "LARGEST_TAIL", 2)
    plan = replace(model.system)
    assert plan.sums is None
    assert densities(plan, model.priors, x) == pytest.approx(expected, abs=VALUE, rel=VALUE)
    assert densities(plan, model.priors, x[:1]) == pytest.approx(expected[:1], rel=VALUE)


def test_sums_that_do_not_fit_are_done_without(frame, monkeypatch):
    model = blm.LMM(FORMULAS["two-slopes"], frame)
    x = coordinates(model, 9, seed=9)
    expected = densities(model.system, model.priors, x)
    monkeypatch.setattr(elimination, "LARGEST_SUMS", 3)
    plan = replace(model.system)
    assert plan.sums is None
    assert densities(plan, model.priors, x) == pytest.approx(expected, abs=VALUE, rel=VALUE)


def nested_and_dense(model: blm.LMM) -> tuple[Plan, Plan]:
    design = model.design
    assert not design.offset.any()
    products = cross_products(design.y, design.X, design.random, weights=design.weights)
    plans = [make_plan(products, nested=nested) for nested in (True, False)]
    assert [plan.nested for plan in plans] == [True, False]
    return plans[0], plans[1]


@pytest.mark.parametrize("name", ["nested-slopes", "nested-and-crossed", "nested"])
def test_nested_stages_agree_with_the_dense_tail(frame, name):
    formula = FORMULAS[name] if name != "nested" else "y ~ x + (1 | b) + (1 | b:f)"
    model = blm.LMM(formula, frame, weights="w")
    nested, dense = nested_and_dense(model)
    x = coordinates(model, 9, seed=10)
    found = densities(nested, model.priors, x)
    assert found == pytest.approx(densities(dense, model.priors, x), abs=VALUE, rel=VALUE)


def test_equal_levels_are_eliminated_once():
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    assert model.system.classes.counts.tolist() == [18.0]


def test_levels_share_a_class_by_their_counts(frame):
    plan = blm.LMM(FORMULAS["intercept-few-classes"], frame).system
    assert sorted(plan.classes.counts.tolist()) == [15.0, 15.0, 15.0]
    distinct = blm.LMM(FORMULAS["slope-distinct-levels"], frame).system
    assert distinct.classes.counts.tolist() == [1.0] * 11


def test_levels_that_differ_in_the_ninth_digit_are_told_apart():
    """Classes of levels may only hide differences below the accuracy of the density."""
    rng = np.random.default_rng(11)
    x = np.tile(np.arange(5.0), 6)
    x[7] += 1e-9
    Z = np.column_stack([np.ones(30), x])
    case = Case(
        rng.normal(size=30),
        np.ones((30, 1)),
        (Columns(np.repeat(np.arange(6), 5), Z, ((0, 1),), 6),),
        None,
    )
    assert sorted(marginal_system(case).classes.counts.tolist()) == [1.0, 5.0]


# --- fixed effects given the covariance parameters -----------------------------------------------

DRAWN = {
    "slope": ("y ~ x + (x | g)", "w"),
    "two slopes": ("y ~ x + z + (x + z | g)", None),
    "crossed": ("y ~ x + (1 | g) + (1 | h)", "w"),
    "crossed slopes": ("y ~ z + offset(x) + (z | g) + (z || h)", None),
    "many fixed effects": ("y ~ f * x * z + v + (1 | g)", None),
}


def points_of(model: blm.LMM, x: np.ndarray) -> WorkingPoints:
    return model.priors.coordinates.points(x)


def prior_moments(priors, p: int) -> tuple[np.ndarray, np.ndarray]:
    if priors.beta_precision is None:
        return np.zeros(p), np.zeros((p, p))
    return priors.beta_mean, priors.beta_precision


@pytest.mark.parametrize("priors", PRIORS)
@pytest.mark.parametrize("name", DRAWN)
def test_fixed_effects_are_affine_in_the_noise_with_exact_moments(frame, name, priors):
    """Without noise the mean; with the unit vectors as noise a root of the covariance matrix."""
    formula, weights = DRAWN[name]
    model = blm.LMM(formula, frame, weights=weights, priors=PRIORS[priors])
    case, plan, p = case_of(model.design), model.system, model.design.p
    noise = np.vstack([np.zeros(p), np.eye(p)])
    for x in coordinates(model, 3, seed=12, scale=0.5):
        points = points_of(model, np.repeat(x[None], p + 1, axis=0))
        reduced = reduce_equations(plan, points)
        found = fixed_effects_at(
            model.system, beta_prior(model.priors), reduced, points.sigma, noise
        )
        factors = [t[0] for t in points.factors]
        mean, cov = fixed_moments(
            case, factors, float(points.sigma[0]), *prior_moments(model.priors, p)
        )
        sd = np.sqrt(np.diag(cov))
        assert (found[0] - mean) / sd == pytest.approx(np.zeros(p), abs=MOMENT)
        root = (found[1:] - found[0]).T / sd[:, None]
        assert root @ root.T == pytest.approx(cov / sd / sd[:, None], abs=MOMENT)


def test_sampled_fixed_effects_are_left_alone(frame):
    import pymc as pm

    model = blm.LMM(FORMULAS["intercept"], frame, priors={"x": pm.Laplace.dist(0.0, 0.3)})
    x = coordinates(model, 4, seed=13)
    points = points_of(model, x)
    plan = model.system
    found = draw_beta(model.priors, plan, None, points, np.random.default_rng(1))
    np.testing.assert_allclose(found @ model.priors.fixed_map.T, x[:, -2:], rtol=1e-12)


# --- random effects given everything else --------------------------------------------------------


def drawing(model: blm.LMM, path: str, monkeypatch) -> Plan:
    """The plan of a model on one of the paths that draws can take."""
    if path == "single":
        monkeypatch.setattr(elimination, "LARGEST_SUMS", 0)
    if path == "nested":
        return nested_and_dense(model)[0]
    plan = replace(model.system)
    assert (plan.sums is not None) == (path == "batch")
    return plan


def flat(effects: list[np.ndarray]) -> np.ndarray:
    return np.hstack([u.reshape(len(u), -1) for u in effects])


@pytest.mark.parametrize("name", DRAWN)
def test_random_effects_are_affine_in_the_noise_with_exact_moments(frame, name, monkeypatch):
    """Points differ from one another: each must get the moments of its own parameters."""
    formula, weights = DRAWN[name]
    model = blm.LMM(formula, frame, weights=weights)
    case, plan, p = case_of(model.design), model.system, model.design.p
    q = all_z(case).shape[1]
    noise = np.tile(np.vstack([np.zeros(q), np.eye(q)]), (2, 1))
    monkeypatch.setattr("bayeslmm.likelihood.draws.normal_draws", given_noise(noise))
    x = coordinates(model, 2, seed=14, scale=0.5)
    points = points_of(model, np.repeat(x, q + 1, axis=0))
    beta = np.repeat(np.random.default_rng(15).normal(2.0, 1.0, (2, p)), q + 1, axis=0)
    found = flat(draw_random(plan, points, beta, np.random.default_rng(0)))
    for start in (0, q + 1):
        factors = [t[start] for t in points.factors]
        sigma = float(points.sigma[start])
        mean, cov = random_moments(case, factors, sigma, beta[start])
        sd = np.sqrt(np.diag(cov))
        assert (found[start] - mean) / sd == pytest.approx(np.zeros(q), abs=MOMENT)
        root = (found[start + 1 : start + 1 + q] - found[start]).T / sd[:, None]
        assert root @ root.T == pytest.approx(cov / sd / sd[:, None], abs=MOMENT)


def given_noise(noise: np.ndarray):
    """A stand-in for normal_draws that deals out the columns of `noise` in turn."""
    used = 0

    def deal(rng, coordinates, size):
        nonlocal used
        assert size == len(noise)
        part = noise[:, used : used + coordinates]
        used += coordinates
        return part

    return deal


DRAWS = 4000


@pytest.mark.parametrize(
    ("formula", "path"),
    [
        slow("y ~ x + (x | g)", "batch"),
        ("y ~ x + (x | g)", "single"),
        ("y ~ x + (x | g) + (1 | h)", "batch"),
        slow("y ~ x + (1 | a) + (z | b)", "batch"),
        ("y ~ x + (1 | a) + (z | b)", "nested"),
    ],
)
def test_draws_have_the_exact_moments(frame, formula, path, monkeypatch):
    model = blm.LMM(formula, frame, weights="w")
    case, plan = case_of(model.design), drawing(model, path, monkeypatch)
    size = DRAWS // 8 if path == "nested" else DRAWS  # that path goes from draw to draw
    x = np.repeat(coordinates(model, 1, seed=16, scale=0.5), size, axis=0)
    points = points_of(model, x)
    beta = np.array([1.5, 0.6])
    effects = draw_random(plan, points, np.tile(beta, (size, 1)), np.random.default_rng(17))
    draws = flat(effects)
    sigma = float(points.sigma[0])
    mean, cov = random_moments(case, [t[0] for t in points.factors], sigma, beta)
    sd = np.sqrt(np.diag(cov))
    z = (draws - mean) / sd
    assert np.abs(z.mean(axis=0)).max() < MAX_Z / np.sqrt(size)
    if path == "batch":
        # Sums of functions of single coordinates of a Latin hypercube hardly vary.
        assert np.abs(z.mean(axis=0)).max() < 0.1 / np.sqrt(size)
    corr = cov / sd / sd[:, None]
    spread = np.sqrt((1.0 + corr**2) / size)
    assert (np.abs(z.T @ z / size - corr) / spread).max() < MAX_Z
    white = np.linalg.solve(np.linalg.cholesky(corr), z.T)
    # The largest of about thirty p-values: one in a thousand runs of this test has a smaller one.
    assert min(kstest(row, "norm").pvalue for row in white) > 1e-3 / len(white)

    fact = factorise(plan, [t[0] for t in points.factors])
    modes, _ = conditional_modes(fact, to_working_beta(plan.products, beta))
    covs = conditional_covariances(fact, given_beta=True)
    for u, mode, own, a in zip(effects, modes, covs, plan.products.basis.random, strict=True):
        own = sigma**2 * a @ own @ a.T
        error = np.sqrt(np.diagonal(own, axis1=1, axis2=2))
        assert (np.abs(u.mean(axis=0) - mode @ a.T) / error).max() < MAX_Z / np.sqrt(size)
        ratio = u.std(axis=0) / error
        assert np.abs(ratio - 1.0).max() < MAX_Z / np.sqrt(2 * size)


@pytest.mark.parametrize("path", ["batch", "single", slow("nested")])
def test_draws_depend_on_the_seed_alone(frame, path, small_chunks, monkeypatch):
    """Neither the number of cores nor the number of threads matters."""
    model = blm.LMM(FORMULAS["nested-and-crossed"], frame)
    plan = drawing(model, path, monkeypatch)
    points = points_of(model, coordinates(model, 120, seed=18))
    beta = np.ones((120, 2))

    def run(seed: int) -> np.ndarray:
        return flat(draw_random(plan, points, beta, np.random.default_rng(seed)))

    first = run(19)
    assert small_chunks() == 1
    for cores in (1, 2, 8):
        monkeypatch.setattr(batch, "available_cores", lambda cores=cores: cores)
        assert np.array_equal(run(19), first)
    if path == "batch":
        monkeypatch.setattr(batch, "THREADED_CELLS", THREADED_CELLS)
        assert np.array_equal(run(19), first)
    other = run(20)
    assert np.mean(other == first) < 0.01
    # Successive calls with one generator go on where the last one ended.
    rng = np.random.default_rng(19)
    twice = [flat(draw_random(plan, points, beta, rng)) for _ in range(2)]
    assert np.array_equal(twice[0], first)
    assert np.mean(twice[1] == first) < 0.01


# --- noise ---------------------------------------------------------------------------------------


def test_normal_draws_visit_every_interval_once():
    size = 500
    draws = normal_draws(np.random.default_rng(21), 7, size)
    assert draws.shape == (size, 7)
    strata = np.floor(ndtr(draws) * size).astype(int)
    for column in strata.T:
        assert np.array_equal(np.sort(column), np.arange(size))


def test_normal_draws_are_independent_across_coordinates_and_order():
    size = 4000
    draws = normal_draws(np.random.default_rng(22), 12, size)
    corr = np.corrcoef(draws.T)[np.tril_indices(12, -1)]
    assert np.abs(corr).max() < MAX_Z / np.sqrt(size)
    # Neither squares (dependence without correlation) nor neighbours in the order of the draws.
    squares = np.corrcoef(draws.T**2)[np.tril_indices(12, -1)]
    assert np.abs(squares).max() < MAX_Z / np.sqrt(size)
    neighbours = np.mean(draws[1:] * draws[:-1], axis=0)
    assert np.abs(neighbours).max() < MAX_Z / np.sqrt(size)


def test_normal_draws_are_uniform_within_their_intervals():
    size = 2000
    draws = normal_draws(np.random.default_rng(23), 5, size)
    within = ndtr(draws) * size % 1.0
    assert kstest(within.ravel(), "uniform").pvalue > 1e-3


def test_many_normal_draws_are_plain_ones(monkeypatch):
    monkeypatch.setattr("bayeslmm.likelihood.draws.LARGEST_HYPERCUBE", 3 * 1000 - 1)
    draws = normal_draws(np.random.default_rng(24), 3, 1000)
    assert np.array_equal(draws, np.random.default_rng(24).standard_normal((1000, 3)))
    strata = np.floor(ndtr(draws) * 1000).astype(int)
    assert len(np.unique(strata[:, 0])) < 900
    assert LARGEST_HYPERCUBE >= 4000 * 100


def test_normal_draws_of_no_coordinates():
    assert normal_draws(np.random.default_rng(25), 0, 10).shape == (10, 0)


def test_same_seed_same_normal_draws():
    first, again, other = (normal_draws(np.random.default_rng(s), 2, 50) for s in (26, 26, 27))
    assert np.array_equal(first, again)
    assert np.mean(first == other) < 0.01
