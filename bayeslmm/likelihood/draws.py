"""Exact draws of the fixed and random effects, given the covariance parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import (
    Factorisation,
    GaussianBeta,
    factorise,
    to_working_beta,
)
from bayeslmm.likelihood.nested import without_later
from bayeslmm.likelihood.shrinkage import apply_tail

Array = NDArray[np.float64]


def draw(
    plan: Plan,
    factors: Sequence[Array],
    sigma: float,
    rng: np.random.Generator,
    prior: GaussianBeta | None = None,
    size: int = 1,
) -> tuple[Array, list[Array]]:
    """Draw (beta, u) from p(beta, u | y, T, sigma).

    Parameters
    ----------
    plan : Plan
        The data.
    factors : sequence of ndarray (k, k)
        Relative factors in the user's coordinates.
    sigma : float
        Residual standard deviation.
    rng : numpy.random.Generator
        Source of randomness.
    prior : GaussianBeta, optional
        Prior on beta; flat by default.
    size : int
        Number of independent draws.

    Returns
    -------
    beta : ndarray (size, p)
    u : list of ndarray (size, J, k)
        Random effects per grouping factor, on the scale of the response.
    """
    fact = factorise(plan, factors, prior, sigma)
    noise = rng.standard_normal((plan.products.n_fixed, size))
    working = fact.fixed_half[:, None] + sigma * noise
    if plan.products.n_fixed:
        working = solve_triangular(fact.fixed_chol, working, lower=True, trans="T")
    basis = plan.products.basis
    beta = (basis.fixed @ working).T + basis.shift
    return beta, _draw_random(fact, working, sigma, rng)


def draw_given_beta(
    plan: Plan, factors: Sequence[Array], sigma: float, beta: Array, rng: np.random.Generator
) -> list[Array]:
    """Draw u from p(u | y, beta, T, sigma): one (J, k) array per grouping factor."""
    fact = factorise(plan, factors)
    working = to_working_beta(plan.products, beta)[:, None]
    return [u[0] for u in _draw_random(fact, working, sigma, rng)]


def _draw_random(
    fact: Factorisation, beta: Array, sigma: float, rng: np.random.Generator
) -> list[Array]:
    """Random effects (size, J, k) per factor for working fixed effects (p, size)."""
    plan, size = fact.plan, beta.shape[1]
    contrast = np.vstack([-beta, np.ones((1, size))])
    working: list[Array] = [np.zeros(0)] * len(plan.products.random)
    tail_u = np.zeros((0, size))
    if plan.n_tail:
        right = fact.tail_half @ contrast + sigma * rng.standard_normal((plan.n_tail, size))
        spherical = solve_triangular(
            fact.tail_chol, right, lower=True, trans="T", check_finite=False
        )
        tail_u = apply_tail(spherical, plan.tail, fact.factors)
    for block in plan.tail:
        shape = (block.n_levels, block.n_coefs, size)
        working[block.factor] = tail_u[block.columns].reshape(shape)
    for stage, pivot in reversed(list(zip(plan.stages, fact.pivots, strict=True))):
        mixed = pivot.block.mixed
        rest = (mixed.reshape(-1, mixed.shape[2]) @ contrast).reshape(*mixed.shape[:2], size)
        white = pivot.whiten @ without_later(stage, pivot, rest, tail_u, working)
        white += sigma * rng.standard_normal(white.shape)
        working[stage.factor] = pivot.whiten.transpose(0, 2, 1) @ white
    basis = plan.products.basis.random
    return [np.einsum("kl,jls->sjk", a, u) for a, u in zip(basis, working, strict=True)]
