"""REML and ML criteria of one grouping factor, with gradients, at many relative factors at once.

With A_j = Z_j'Z_j and M_j = Z_j'[X y] of level j, S = TT' and W_j = (A_j + S^-1)^-1,

    [X y]'V^-1[X y] sigma^2 = [X y]'[X y] - sum_j M_j' W_j M_j,
    log |L_ZZ|^2 = sum_j log |I + A_j S|,    dW_j = (I - W_j A_j) dS (I - A_j W_j),

so the derivative of a criterion whose derivative by the fixed effects' equations is Q is

    sum_j (A_j - A_j W_j A_j) - (I - A_j W_j) M_j Q M_j' (I - W_j A_j)

by S, and twice that times T by T. Levels with equal A_j share everything but M_j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.batch import (
    BatchSystem,
    batch_system,
    batched_cholesky,
    eliminate_lead,
    lead_equations,
    lower_pairs,
)
from bayeslmm.likelihood.elimination import Plan, level_classes
from bayeslmm.likelihood.marginal import LOG_2PI

Array = NDArray[np.float64]

LARGEST = 512
"""Distinct blocks of Z'Z up to which a batch takes less time than its members one by one."""

MOST_LEVELS = 20_000
"""Levels up to which arranging a plan for batches takes little of the time of a search."""


def criteria_system(plan: Plan) -> BatchSystem | None:
    """The plan arranged for :func:`profiled_criteria`; None where that does not serve, or pay."""
    blocks = plan.products.random[plan.lead]
    if plan.n_tail or plan.nested or plan.split is not None or len(blocks) > MOST_LEVELS:
        return None
    classes = level_classes(blocks)
    if classes.max() >= LARGEST:
        return None
    system = batch_system(plan, classes)
    return system if system.batched else None


def profiled_criteria(system: BatchSystem, theta: Array, reml: bool) -> tuple[Array, Array]:
    """Criteria, -2 log likelihood with beta and sigma profiled out, and their gradients.

    Parameters
    ----------
    system : BatchSystem
        A plan with one grouping factor.
    theta : ndarray (S, d)
        Free entries of relative factors in the working basis.
    reml : bool
        Restricted or full likelihood.

    Returns
    -------
    values : ndarray (S,)
    gradients : ndarray (S, d)
        Both not finite where the arithmetic broke down.
    """
    products = system.plan.products
    p, factor = products.n_fixed, products.theta.factors(theta)[0]
    with np.errstate(all="ignore"):
        _, kernel, value = eliminate_lead(system, factor)
        lower = batched_cholesky(lead_equations(system, kernel))
        dof = products.n_obs - (p if reml else 0)
        diagonal = np.diagonal(lower, axis1=1, axis2=2)
        value = value + dof * (1.0 + LOG_2PI + 2.0 * np.log(diagonal[:, p]) - np.log(dof))
        if reml:
            value += 2.0 * np.log(diagonal[:, :p]).sum(axis=1) - 2.0 * products.basis.log_det_fixed
        by_square = _by_square(system, kernel, _by_equations(lower, float(reml), dof))
        gradients = products.theta.gradient(theta, [2.0 * by_square @ factor])
    return value - products.log_weights, gradients


def _by_equations(lower: Array, of_log_det: float, dof: int) -> Array:
    """Derivative Q (S, p + 1, p + 1) by the equations with Cholesky factors `lower`.

    Of ``of_log_det log|X'V^-1 X| + dof log r^2``; the last row of the inverse factor is
    (-beta', 1) / r.
    """
    p = lower.shape[1] - 1
    scale = np.append(np.full(p, of_log_det), dof)
    # The response has units of its own, in which rows would be exchanged as pivots.
    units = np.ones(lower.shape[:2])
    units[:, p] = 1.0 / lower[:, p, p]
    try:
        inverse = np.linalg.inv(lower * units[:, :, None]) * units[:, None, :]
    except np.linalg.LinAlgError:  # of an equation that is zero: nothing of the batch is needed
        inverse = np.full_like(lower, np.nan)
    return inverse.swapaxes(1, 2) @ (scale[:, None] * inverse)


def _by_square(system: BatchSystem, kernel: Array, by_equations: Array) -> Array:
    """Derivative (S, k, k) by S = TT' at blocks W (n_pairs, S, C) and Q (S, p + 1, p + 1)."""
    assert system.fixed_map is not None
    k, size = system.gram.shape[0], len(by_equations)
    rows, cols = lower_pairs(k)
    gram = system.gram.transpose(2, 0, 1)
    flat = by_equations.reshape(size, -1)
    blocks = np.empty((2, size, len(system.counts), k, k))
    for pair, (a, b) in enumerate(zip(rows, cols, strict=True)):
        seen = flat @ system.fixed_map[pair].T  # the map has both halves of a symmetric pair
        blocks[0, :, :, a, b] = blocks[0, :, :, b, a] = kernel[pair]
        blocks[1, :, :, a, b] = blocks[1, :, :, b, a] = seen if a == b else 0.5 * seen
    rest = np.eye(k) - gram @ blocks[0]
    determinants = np.einsum("c,scab->sab", system.counts, rest @ gram)
    return determinants - (rest @ blocks[1] @ rest.swapaxes(2, 3)).sum(axis=1)
