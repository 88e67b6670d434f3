"""The safeguarded minimiser."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import rosen, rosen_der

from bayeslmm.estimation.optimise import hessian, minimise


def test_finds_a_curved_valley():
    optimum = minimise(lambda x: (rosen(x), rosen_der(x)), np.array([-1.2, 1.0, 0.5]), 1.0)
    assert optimum.converged
    assert optimum.x == pytest.approx(np.ones(3), abs=1e-6)


def test_leaves_a_saddle_point_with_a_vanishing_gradient():
    def double_well(x):
        return float((x[0] ** 2 - 1) ** 2 + x[1] ** 2), np.array(
            [4 * x[0] * (x[0] ** 2 - 1), 2 * x[1]]
        )

    optimum = minimise(double_well, np.array([0.0, 0.0]), 1.0)
    assert optimum.converged
    assert abs(optimum.x[0]) == pytest.approx(1.0, abs=1e-6)


def test_a_flat_direction_is_a_minimum_too():
    optimum = minimise(lambda x: (float(x[0] ** 2), np.array([2 * x[0], 0.0])), np.ones(2), 1.0)
    assert optimum.converged
    assert optimum.x[0] == pytest.approx(0.0, abs=1e-6)


def test_without_a_minimum_it_does_not_claim_one():
    optimum = minimise(lambda x: (float(x[0]), np.array([1.0])), np.zeros(1), 1.0)
    assert not optimum.converged
    assert "stopped" in optimum.message


def test_a_wrong_gradient_does_not_converge():
    optimum = minimise(lambda x: (float(x @ x), 2 * x + 1.0), np.ones(2), 1.0)
    assert not optimum.converged


def test_hessian_of_a_quadratic():
    matrix = np.array([[2.0, 0.5], [0.5, 1.0]])
    assert hessian(lambda x: matrix @ x, np.array([10.0, -3.0])) == pytest.approx(matrix, abs=1e-8)
