"""Covariance structures: coordinates, factors, Jacobians."""

from __future__ import annotations

import numpy as np
import pytest
from dense import relative_factor
from hypothesis import given, settings
from hypothesis import strategies as st

from bayeslmm.covariance.coordinates import plain_coordinates
from bayeslmm.covariance.structure import (
    Structure,
    correlation_cholesky,
    correlation_cholesky_jacobian,
    correlation_coordinates,
    correlation_log_jacobian,
    factor_from_theta,
    is_singular,
    lower_factor,
    sds_and_correlation,
    split,
    theta_from_factor,
)
from bayeslmm.estimation.start import Start, vector_of

STRUCTURES = [
    Structure(1, ((0,),)),
    Structure(2, ((0, 1),)),
    Structure(2, ((0,), (1,))),
    Structure(3, ((0, 2), (1,))),
    Structure(4, ((0, 1, 2, 3),)),
    Structure(5, ((0, 3, 4), (1, 2))),
]
# Differences of step 1e-6 on functions of order one.
DERIVATIVE = 1e-8

structures = st.sampled_from(STRUCTURES)
seeds = st.integers(0, 2**32 - 1)


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_unconstrained_coordinates_round_trip(structure, seed):
    eta = np.random.default_rng(seed).normal(size=structure.n_theta)
    factor = relative_factor(structure, eta, 0.3)
    estimate = Start((factor,), np.exp(0.3), np.empty(0), np.empty((0, 0)))
    found = vector_of(plain_coordinates([structure]), estimate)
    assert found == pytest.approx(np.append(eta, 0.3), abs=1e-9)


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_theta_round_trips_and_follows_lme4s_order(structure, seed):
    theta = np.random.default_rng(seed).normal(size=structure.n_theta)
    factor = factor_from_theta(structure, theta)
    assert np.array_equal(theta_from_factor(structure, factor), theta)
    assert np.array_equal(factor, np.tril(factor))
    for block in structure.blocks:
        outside = [i for i in range(structure.n_coefs) if i not in block]
        assert not factor[np.ix_(list(block), outside)].any()


def test_theta_is_the_lower_triangle_by_columns():
    rows, cols = Structure(3, ((0, 1, 2),)).theta_index
    assert list(zip(rows, cols, strict=True)) == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)]


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_correlation_cholesky_is_one(structure, seed):
    z = 3.0 * np.random.default_rng(seed).normal(size=len(structure.pairs))
    lower = correlation_cholesky(structure, z)
    correlation = lower @ lower.T
    assert np.diag(correlation) == pytest.approx(np.ones(structure.n_coefs), abs=1e-12)
    assert correlation_coordinates(structure, lower) == pytest.approx(z, rel=1e-4, abs=1e-6)


@given(structures, seeds)
@settings(max_examples=60, deadline=None)
def test_cholesky_jacobian_equals_differences(structure, seed):
    z = np.random.default_rng(seed).normal(size=len(structure.pairs))
    jacobian = correlation_cholesky_jacobian(structure, z)
    for i, part in enumerate(jacobian):
        step = np.zeros(len(z))
        step[i] = 1e-6
        upper, lower = (correlation_cholesky(structure, z + s * step) for s in (1, -1))
        assert part == pytest.approx((upper - lower) / 2e-6, abs=DERIVATIVE)


@given(structures, seeds)
@settings(max_examples=40, deadline=None)
def test_log_jacobian_of_the_correlations_equals_differences(structure, seed):
    z = np.random.default_rng(seed).normal(size=len(structure.pairs))

    def entries(at):
        lower = correlation_cholesky(structure, at)
        correlation = lower @ lower.T
        return np.array([correlation[pair] for pair in structure.pairs])

    jacobian = np.empty((len(z), len(z)))
    for i in range(len(z)):
        step = np.zeros(len(z))
        step[i] = 1e-6
        jacobian[:, i] = (entries(z + step) - entries(z - step)) / 2e-6
    expected = np.linalg.slogdet(jacobian)[1] if len(z) else 0.0
    assert correlation_log_jacobian(structure, z) == pytest.approx(expected, abs=1e-5)


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
        assert is_singular(root, lower, 1e-4)


def test_correlations_with_a_zero_sd_are_undefined():
    sds, corr = sds_and_correlation(np.array([[2.0, 0.0], [0.0, 0.0]]))
    assert sds.tolist() == [2.0, 0.0]
    assert np.isnan(corr[0, 1])
    assert np.diag(corr).tolist() == [1.0, 1.0]


def test_singularity_does_not_depend_on_units():
    small = np.array([[1.7, 0.0], [-4.8e-7, 3.4e-7]])
    working = np.array([[1.0, 0.0], [0.2, 0.5]])
    assert not is_singular(working, small, 1e-4)
    assert is_singular(np.array([[1.0, 0.0], [0.2, 0.0]]), np.array([[1.0, 0], [0.2, 0]]), 1e-4)
    assert is_singular(np.array([[0.0]]), np.array([[0.0]]), 1e-4)


def test_split_cuts_by_factor():
    pieces = split(STRUCTURES[:3], np.arange(6.0))
    assert [piece.tolist() for piece in pieces] == [[0.0], [1.0, 2.0, 3.0], [4.0, 5.0]]
