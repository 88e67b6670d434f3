"""Covariance structures: coordinates, factors, Jacobians."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from dense import relative_factor
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslmm.covariance.ante_dependence import AnteDependence
from bayeslmm.covariance.autoregressive import Autoregressive
from bayeslmm.covariance.composite import Composite
from bayeslmm.covariance.compound_symmetry import CompoundSymmetry
from bayeslmm.covariance.coordinates import Coordinates, Slopes, Theta, plain_coordinates
from bayeslmm.covariance.independent import Independent
from bayeslmm.covariance.structure import (
    is_singular,
    lower_factor,
    sd_leaders,
    sds_and_correlation,
)
from bayeslmm.covariance.toeplitz import Toeplitz
from bayeslmm.covariance.unstructured import Unstructured
from bayeslmm.data.memberships import Slot
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.estimation.start import Start, vector_of
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.elimination import make_plan

STRUCTURES = [
    Unstructured(1, ((0,),)),
    Unstructured(2, ((0, 1),)),
    Unstructured(2, ((0,), (1,))),
    Unstructured(3, ((0, 2), (1,))),
    Unstructured(4, ((0, 1, 2, 3),)),
    Unstructured(5, ((0, 3, 4), (1, 2))),
]


@dataclass(frozen=True)
class Term:
    """A random-effects term by its numbers."""

    codes: np.ndarray
    Z: np.ndarray
    n_levels: int
    blocks: tuple
    kinds: tuple
    relationship: None = None

    @property
    def slots(self) -> tuple:
        return (Slot(self.codes, self.Z, self.codes),)


PATTERNS = [
    pattern(size, homogeneous)
    for pattern in (Autoregressive, AnteDependence, CompoundSymmetry, Toeplitz)
    for size in (2, 3, 5)
    for homogeneous in (False, True)
] + [Independent(3, homogeneous=True)]
COMPOSITE = Composite(
    ((0, 3), (1, 2, 4), (5,)),
    (Unstructured(2, ((0, 1),)), CompoundSymmetry(3, homogeneous=True), Unstructured(1, ((0,),))),
)
ALL = [*STRUCTURES, *PATTERNS, COMPOSITE]
# Differences of step 1e-6 on functions of order one.
DERIVATIVE = 1e-8

structures = st.sampled_from(STRUCTURES)
seeds = st.integers(0, 2**32 - 1)


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_unconstrained_coordinates_round_trip(structure, seed):
    eta = np.random.default_rng(seed).normal(size=structure.n_theta)
    factor = relative_factor(structure, eta, 0.3)
    estimate = Start((factor,), np.exp(0.3), np.empty(0), np.empty(0), np.empty((0, 0)))
    found = vector_of(plain_coordinates([structure]), estimate)
    assert found == pytest.approx(np.append(eta, 0.3), abs=1e-9)


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_theta_round_trips_and_follows_lme4s_order(structure, seed):
    theta = np.random.default_rng(seed).normal(size=structure.n_theta)
    factor = structure.factor(theta)
    assert np.array_equal(structure.theta(factor), theta)
    assert np.array_equal(factor, np.tril(factor))
    for block in structure.blocks:
        outside = [i for i in range(structure.n_coefs) if i not in block]
        assert not factor[np.ix_(list(block), outside)].any()


def test_theta_is_the_lower_triangle_by_columns():
    rows, cols = Unstructured(3, ((0, 1, 2),)).theta_index
    assert list(zip(rows, cols, strict=True)) == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)]


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_correlation_cholesky_is_one(structure, seed):
    z = 3.0 * np.random.default_rng(seed).normal(size=len(structure.pairs))
    lower = structure.cholesky(z)
    correlation = lower @ lower.T
    assert np.diag(correlation) == pytest.approx(np.ones(structure.n_coefs), abs=1e-12)
    assert structure.coordinates(lower) == pytest.approx(z, rel=1e-4, abs=1e-6)


@given(st.sampled_from(ALL), seeds)
@settings(max_examples=60, deadline=None)
def test_derivatives_by_coordinates_equal_differences(structure, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, structure.n_cors))
    weights = rng.normal(size=(2, structure.n_coefs, structure.n_coefs))
    step = 1e-6 * np.eye(structure.n_cors)
    slopes = structure.pull_back(z, weights), structure.log_jacobian_slope(z)
    for point, weight, *found in zip(z, weights, *slopes, strict=True):
        ahead, behind = point + step, point - step
        gap = structure.cholesky(ahead) - structure.cholesky(behind)
        assert found[0] == pytest.approx(np.sum(weight * gap, (1, 2)) / 2e-6, abs=DERIVATIVE * 10)
        gap = structure.log_jacobian(ahead) - structure.log_jacobian(behind)
        assert found[1] == pytest.approx(gap / 2e-6, abs=DERIVATIVE)


@given(st.sampled_from(ALL), seeds)
@settings(max_examples=60, deadline=None)
def test_derivatives_by_theta_equal_differences(structure, seed):
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=structure.n_theta)
    weight = rng.normal(size=(structure.n_coefs, structure.n_coefs))
    step = 1e-6 * np.eye(structure.n_theta)
    slopes = (structure.factor(theta + step) - structure.factor(theta - step)) / 2e-6
    assert structure.theta_slopes(theta) == pytest.approx(slopes, abs=DERIVATIVE)
    expected = np.sum(weight * slopes, (1, 2))
    assert structure.theta_gradient(theta, weight) == pytest.approx(expected, abs=DERIVATIVE * 10)


@given(structures, seeds)
@settings(max_examples=40, deadline=None)
def test_log_jacobian_of_the_correlations_equals_differences(structure, seed):
    z = np.random.default_rng(seed).normal(size=len(structure.pairs))

    def entries(at):
        lower = structure.cholesky(at)
        correlation = lower @ lower.T
        return np.array([correlation[pair] for pair in structure.pairs])

    jacobian = np.empty((len(z), len(z)))
    for i in range(len(z)):
        step = np.zeros(len(z))
        step[i] = 1e-6
        jacobian[:, i] = (entries(z + step) - entries(z - step)) / 2e-6
    expected = np.linalg.slogdet(jacobian)[1] if len(z) else 0.0
    assert structure.log_jacobian(z) == pytest.approx(expected, abs=1e-5)


@given(structures, seeds, st.booleans())
@settings(max_examples=60, deadline=None)
def test_lower_factor_keeps_the_covariance_and_its_rank(structure, seed, singular):
    rng = np.random.default_rng(seed)
    root = np.zeros((structure.n_coefs, structure.n_coefs))
    for block in structure.blocks:
        root[np.ix_(block, block)] = rng.normal(size=(len(block), len(block)))
        if singular:
            root[list(block), block[-1]] = 0.0
    lower = lower_factor(structure, root)
    assert lower @ lower.T == pytest.approx(root @ root.T, abs=1e-12)
    assert np.array_equal(lower, np.tril(lower))
    assert np.all(np.diag(lower) >= 0)
    if singular:
        assert is_singular(root, 1e-4)


@given(st.sampled_from([*PATTERNS, COMPOSITE]), seeds)
@settings(max_examples=80, deadline=None)
def test_patterns_go_there_and_back(structure, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(3, structure.n_cors))
    lower = structure.cholesky(z)
    assert np.array_equal(lower, np.tril(lower))
    correlation = lower @ lower.swapaxes(1, 2)
    assert np.diagonal(correlation, axis1=1, axis2=2) == pytest.approx(1.0, abs=1e-12)
    assert structure.coordinates(lower) == pytest.approx(z, abs=1e-6)
    rows, cols = np.array(structure.pairs, dtype=int).reshape(-1, 2).T
    assert structure.from_correlations(correlation[:, rows, cols]) == pytest.approx(z, abs=1e-6)
    theta = rng.uniform(0.2, 1.5, size=structure.n_theta)
    factor = structure.factor(theta)
    assert structure.factor(structure.theta(factor)) == pytest.approx(factor, abs=1e-10)
    assert structure.negligible(theta, 1e-4) is not None
    sds = np.linalg.norm(factor, axis=1)
    leaders = sd_leaders(structure)
    assert sds == pytest.approx(sds[leaders][structure.sd_places], abs=1e-12)
    assert len(leaders) == structure.n_sds == np.sum(structure.theta_sds)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.n_cors])
def test_log_jacobian_of_a_pattern_is_that_of_its_parameters(pattern):
    z = np.random.default_rng(pattern.n_coefs).normal(size=pattern.n_cors)
    step = 1e-6 * np.eye(len(z))
    ahead, behind = (pattern.parameters(pattern.cholesky(z + s)) for s in (step, -step))
    jacobian = (ahead - behind).T / 2e-6
    assert jacobian == pytest.approx(np.diag(np.diag(jacobian)), abs=1e-7)
    assert pattern.parameter_slopes(z) == pytest.approx(np.diag(jacobian), abs=1e-7)
    expected = np.linalg.slogdet(jacobian)[1]
    assert pattern.log_jacobian(z) == pytest.approx(expected, abs=1e-6)


def test_correlations_of_the_patterns():
    at = np.array([0.3, -0.5, 0.2])
    omega = {
        pattern: (lower := pattern(4).cholesky(pattern(4).from_correlations(rho))) @ lower.T
        for pattern, rho in (
            (AnteDependence, at),
            (Autoregressive, at[1:2]),
            (CompoundSymmetry, at[2:]),
            (Toeplitz, np.array([0.3, -0.2, 0.1])),
        )
    }
    lag = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert omega[Autoregressive] == pytest.approx((-0.5) ** lag, abs=1e-12)
    assert omega[CompoundSymmetry] == pytest.approx(np.where(lag, 0.2, 1.0), abs=1e-12)
    assert omega[Toeplitz] == pytest.approx(np.array([1.0, 0.3, -0.2, 0.1])[lag], abs=1e-12)
    assert omega[AnteDependence][3] == pytest.approx([0.3 * -0.5 * 0.2, -0.1, 0.2, 1.0], abs=1e-12)


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p.n_cors])
@pytest.mark.parametrize("z", [-30.0, 30.0])
def test_patterns_are_finite_where_they_are_singular(pattern, z):
    at = np.full(pattern.n_cors, z)
    lower = pattern.cholesky(at)
    assert np.diag(lower @ lower.T) == pytest.approx(1.0, abs=1e-12)
    assert np.isfinite(pattern.pull_back(at, np.ones_like(lower))).all()
    assert np.isfinite(pattern.log_jacobian(at))
    theta = np.ones(pattern.n_theta)
    theta[pattern.n_sds :] = np.sign(z) * 0.5 * np.pi
    for slopes in (pattern.theta_slopes(theta), pattern.factor(theta)):
        assert np.isfinite(slopes).all()
    assert is_singular(pattern.factor(theta), 1e-4)
    assert len(list(pattern.negligible(theta + 1e-6, 1e-4))) == pattern.n_cors


def test_correlations_with_a_zero_sd_are_undefined():
    sds, corr = sds_and_correlation(np.array([[2.0, 0.0], [0.0, 0.0]]))
    assert sds.tolist() == [2.0, 0.0]
    assert np.isnan(corr[0, 1])
    assert np.diag(corr).tolist() == [1.0, 1.0]


def test_singularity_is_lost_rank():
    assert not is_singular(np.array([[1.0, 0.0], [0.2, 0.5]]), 1e-4)
    assert is_singular(np.array([[1.0, 0.0], [0.2, 0.0]]), 1e-4)
    assert is_singular(np.array([[1.0, 0.5], [0.2, 0.1]]), 1e-4)
    assert is_singular(np.array([[0.0]]), 1e-4)


def test_theta_is_cut_by_factor():
    theta = Theta(tuple(STRUCTURES[:3]))
    pieces = theta.parts(np.arange(6.0))
    assert [piece.tolist() for piece in pieces] == [[0.0], [1.0, 2.0, 3.0], [4.0, 5.0]]
    assert theta.sds.tolist() == [True, True, False, True, True, True]


def test_negligible_entries_of_theta():
    theta = Theta((Unstructured(1, ((0,),)), Unstructured(2, ((0, 1),)), Autoregressive(2)))
    x = np.array([1e-5, 1.0, 3.0, 2e-4, 1.0, -1e-3, 1.5 * np.pi - 1e-5])
    found = [(places.tolist(), values.tolist()) for places, values in theta.negligible(x, 1e-4)]
    zeros = [([place], [0.0]) for place in (0, 0, 3, 5)]
    assert found == [*zeros, ([6], [1.5 * np.pi])]


# --- structures together, and in a model ---


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_coordinates_serve_any_structure(seed):
    """Points go there and back, and gradients of a function of all parameters are right."""
    rng = np.random.default_rng(seed)
    structures = (Autoregressive(3), Unstructured(2, ((0, 1),)))
    scales = tuple(np.diag(rng.uniform(0.5, 2.0, s.n_coefs)) for s in structures)
    coordinates = Coordinates(structures, scales, np.empty((0, 0)))
    x = rng.normal(size=(2, coordinates.size))
    assert coordinates.size == 3 + 1 + 2 + 1 + 1
    points = coordinates.points(x)
    assert coordinates.vector(points) == pytest.approx(x, abs=1e-8)
    again = coordinates.to_working(coordinates.to_user(points))
    assert coordinates.vector(again) == pytest.approx(x, abs=1e-8)
    weights = Slopes(
        sds=tuple(rng.normal(size=s.n_coefs) for s in structures),
        chols=tuple(rng.normal(size=(s.n_coefs, s.n_coefs)) for s in structures),
        cors=tuple(rng.normal(size=s.n_cors) for s in structures),
        sigma=0.7,
        shapes=np.empty(0),
        gamma=np.empty(0),
    )

    def value(x):
        p = coordinates.points(x)
        parts = [sds @ w for sds, w in zip(p.sds, weights.sds, strict=True)]
        parts += [np.sum(c * w, (1, 2)) for c, w in zip(p.chols, weights.chols, strict=True)]
        parts.append(structures[0].parameters(p.chols[0]) @ weights.cors[0])
        return sum(parts) + 0.7 * p.sigma + coordinates.log_jacobian(x)

    step = 1e-6 * np.eye(coordinates.size)
    expected = (value(x[0] + step) - value(x[0] - step)) / 2e-6
    found = coordinates.pull_back(x[0], weights, jacobian=True)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_likelihoods_are_maximised_over_any_structure(method):
    """A longitudinal model whose random effects follow an AR(1), against dense algebra."""
    rng = np.random.default_rng(3)
    levels, k, rows = 12, 3, 4
    codes = np.repeat(np.arange(levels), k * rows)
    z = np.tile(np.repeat(np.eye(k), rows, axis=0), (levels, 1)) * [1.0, 100.0, 0.01]
    X = np.column_stack([np.ones(len(codes)), rng.normal(size=len(codes))])
    structure = Autoregressive(k)
    factor = np.array([1.5, 0.02, 80.0])[:, None] * structure.cholesky(np.array([0.9]))
    u = rng.normal(size=(levels, k)) @ factor.T
    y = X @ [1.0, 2.0] + np.sum(z * u[codes], axis=1) + rng.normal(size=len(codes))
    term = Term(codes=codes, Z=z, n_levels=levels, blocks=structure.blocks, kinds=("hetar1",))
    plan = make_plan(cross_products(y, X, [term]))
    assert plan.products.structures == (structure,)
    fit = fit_likelihood(plan, method)
    assert fit.optimum.converged
    # T stays of the form: equal correlations of neighbours, their square at lag two.
    sds, corr = sds_and_correlation(fit.factors[0])
    assert corr[1, 0] == pytest.approx(corr[2, 1], abs=1e-12)
    assert corr[2, 0] == pytest.approx(corr[1, 0] ** 2, abs=1e-12)

    def criterion(x):
        t = np.exp(x[:k])[:, None] * structure.cholesky(x[k : k + 1])
        V = np.exp(2 * x[-1]) * np.eye(len(y))
        for level in range(levels):
            own = np.where((codes == level)[:, None], z @ t, 0.0)
            V += own @ own.T
        inverse = np.linalg.inv(V)
        information = X.T @ inverse @ X
        rest = y - X @ np.linalg.solve(information, X.T @ inverse @ y)
        value = len(y) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + rest @ inverse @ rest
        if method == "REML":
            value += np.linalg.slogdet(information)[1] - 2 * np.log(2 * np.pi)
        return value

    at = np.concatenate([np.log(sds * fit.sigma), np.arctanh(corr[1:2, 0]), [np.log(fit.sigma)]])
    assert fit.criterion == pytest.approx(criterion(at), abs=1e-8)
    step = 1e-4 * np.eye(len(at))
    slope = [(criterion(at + s) - criterion(at - s)) / 2e-4 for s in step]
    assert slope == pytest.approx(np.zeros(len(at)), abs=1e-4)
