"""The marginal density of a linear mixed model, with u and the fixed effects integrated out.

Every function works on relative factors ``T_f = D_f chol(Omega_f) / sigma`` in the user's
coordinates, one (k, k) array per grouping factor in the order of ``design.random``. One
factorisation of the mixed-model equations gives the REML and ML criteria, the Bayesian marginal
density under a Gaussian prior on beta, and their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import CrossProducts, RandomColumns, cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import (
    Factorisation,
    GaussianBeta,
    factorise,
    single_threaded,
    to_working_beta,
)
from bayeslmm.likelihood.moments import conditional_modes, precision_blocks
from bayeslmm.likelihood.split_rows import EXACT, is_saturated, split_where_small

Array = NDArray[np.float64]
LOG_2PI = float(np.log(2.0 * np.pi))

EXACT_RESPONSE = (
    "the fixed effects reproduce the response exactly, so there is nothing left to model: look for "
    "a predictor that is a copy of the response"
)


class Columns(Protocol):
    """What the marginal density needs of a design (``design.Design`` has it)."""

    @property
    def y(self) -> Array:
        """Response (n,)."""
        ...

    @property
    def offset(self) -> Array:
        """Offset (n,)."""
        ...

    @property
    def X(self) -> Array:
        """Fixed-effects columns (n, p)."""
        ...

    @property
    def weights(self) -> Array | None:
        """Precision weights (n,)."""
        ...

    @property
    def random(self) -> Sequence[RandomColumns]:
        """Grouping factors."""
        ...


def marginal_system(design: Columns) -> Plan:
    """Cross-products of a design, arranged for evaluating its marginal density.

    Parameters
    ----------
    design : Design
        The design of a model.

    Returns
    -------
    Plan

    Raises
    ------
    DataError
        If fixed effects, or fixed and random effects, reproduce the response exactly, unless few
        rows make that no wonder.
    """
    y, X, factors, weights = design.y - design.offset, design.X, design.random, design.weights
    with single_threaded():
        products = cross_products(y, X, factors, weights=weights)
        plan = make_plan(products)
        if products.fixed[-1, -1] >= EXACT * _sum_of_squares(y, weights):
            return split_where_small(plan, y, X, factors, weights)
        if not _is_learnable(plan) or not is_saturated(plan, X, factors, weights):
            raise DataError(EXACT_RESPONSE)
        return make_plan(_without_rounding(products))


def _sum_of_squares(y: Array, weights: Array | None) -> float:
    w = np.ones_like(y) if weights is None else weights
    return float(w @ (y - np.average(y, weights=w)) ** 2)


def _is_learnable(plan: Plan) -> bool:
    """Whether the density of a response without residuals can be integrated near zero.

    It is of the order of all standard deviations together to the power p - n.
    """
    products = plan.products
    n_sds = sum(s.n_coefs for s in products.structures)
    return products.n_obs - products.n_fixed <= n_sds


def _without_rounding(products: CrossProducts) -> CrossProducts:
    """Exactly nothing in place of the rounding that the fixed effects leave of the response."""
    fixed = products.fixed.copy()
    fixed[-1, :] = fixed[:, -1] = 0.0
    mixed = [part.copy() for part in products.mixed]
    for part in mixed:
        part[:, :, -1] = 0.0
    return replace(products, fixed=fixed, mixed=tuple(mixed))


def reml_criterion(fact: Factorisation) -> float:
    """-2 times the REML log-likelihood, sigma profiled out, all constants kept (lme4's)."""
    products = fact.plan.products
    dof = products.n_obs - products.n_fixed
    scale = dof * (1.0 + LOG_2PI + np.log(fact.rss / dof))
    return fact.log_det_random + fact.log_det_fixed + scale - products.log_weights


def ml_criterion(fact: Factorisation) -> float:
    """-2 times the log-likelihood, beta and sigma profiled out, all constants kept (lme4's)."""
    n = fact.plan.products.n_obs
    scale = n * (1.0 + LOG_2PI + np.log(fact.rss / n))
    return fact.log_det_random + scale - fact.plan.products.log_weights


def log_density(
    plan: Plan, factors: Sequence[Array], sigma: float, prior: GaussianBeta | None = None
) -> float:
    """Log marginal density log p(y | T, sigma), u and beta integrated out.

    Parameters
    ----------
    plan : Plan
        The data.
    factors : sequence of ndarray (k, k)
        Relative factors in the user's coordinates.
    sigma : float
        Residual standard deviation.
    prior : GaussianBeta, optional
        Prior on beta. Flat by default, which gives the REML log-likelihood.

    Returns
    -------
    float
    """
    fact = factorise(plan, factors, prior, sigma, value_only=True)
    return _log_density(fact, sigma, prior)


def log_density_grad(
    plan: Plan, factors: Sequence[Array], sigma: float, prior: GaussianBeta | None = None
) -> tuple[float, list[Array], float]:
    """Log marginal density and its derivatives.

    Returns
    -------
    value : float
        log p(y | T, sigma).
    d_factors : list of ndarray (k, k)
        Derivatives by the entries of each relative factor.
    d_sigma : float
        Derivative by sigma at fixed relative factors.
    """
    fact = factorise(plan, factors, prior, sigma)
    gradients = score(fact, 1.0 / sigma**2)
    dof = plan.products.n_obs - plan.products.n_fixed
    d_sigma = (dof - fact.rss / sigma**2) / sigma
    if prior is not None:
        gap = prior.root @ (fact.beta - prior.mean)
        d_sigma += sigma * float(np.sum((prior.root @ fact.beta_root) ** 2))
        d_sigma += float(gap @ gap) / sigma
    value = _log_density(fact, sigma, prior)
    return value, [-0.5 * g for g in to_user_gradient(plan, gradients)], -d_sigma


def log_density_given_beta_grad(
    plan: Plan, factors: Sequence[Array], sigma: float, beta: Array
) -> tuple[float, list[Array], float, Array]:
    """Log density log p(y | beta, T, sigma), u integrated out, and its derivatives.

    Returns
    -------
    value : float
    d_factors : list of ndarray (k, k)
    d_sigma : float
    d_beta : ndarray (p,)
    """
    fact = factorise(plan, factors)
    products = plan.products
    working = to_working_beta(products, beta)
    gap = fact.fixed_chol.T @ (working - fact.beta_working)
    rss = fact.rss + float(gap @ gap)
    n = products.n_obs
    value = -0.5 * (
        n * (LOG_2PI + 2.0 * np.log(sigma))
        + fact.log_det_random
        + rss / sigma**2
        - products.log_weights
    )
    gradients = score(fact, 1.0 / sigma**2, restricted=False, beta_working=working)
    d_working = -(fact.fixed_chol @ gap) / sigma**2
    p = products.n_fixed
    d_beta = solve_triangular(products.basis.fixed, d_working, trans="T") if p else d_working
    d_sigma = (rss / sigma**2 - n) / sigma
    return value, [-0.5 * g for g in to_user_gradient(plan, gradients)], d_sigma, d_beta


def score(
    fact: Factorisation,
    inverse_variance: float,
    *,
    restricted: bool = True,
    beta_working: Array | None = None,
) -> list[Array]:
    """Derivatives of the criterion by the working relative factors.

    The criterion is ``log|L_ZZ|^2 + log|L_XX|^2 + inverse_variance * r^2``; its derivative by T_f
    is ``2 (sum_j [Z'PZ]_jj - inverse_variance sum_j q_j q_j') T_f`` with ``q = Z'P y``, finite
    where T_f is singular.

    Parameters
    ----------
    fact : Factorisation
        The factorisation.
    inverse_variance : float
        1 / sigma^2, or (n - p) / r^2 where sigma is profiled out.
    restricted : bool
        Whether log|L_XX|^2 belongs to the criterion.
    beta_working : ndarray (p,), optional
        Fixed effects at which r^2 is meant; by default its minimum.

    Returns
    -------
    list of ndarray (k, k)
    """
    blocks = precision_blocks(fact, restricted=restricted)
    _, residuals = conditional_modes(fact, beta_working)
    return [
        2.0 * (block - inverse_variance * q.T @ q) @ factor
        for block, q, factor in zip(blocks, residuals, fact.factors, strict=True)
    ]


def rss_gradient(fact: Factorisation) -> list[Array]:
    """Derivatives of r^2 by the working relative factors."""
    _, residuals = conditional_modes(fact)
    return [-2.0 * q.T @ q @ t for q, t in zip(residuals, fact.factors, strict=True)]


def to_user_gradient(plan: Plan, gradients: Sequence[Array]) -> list[Array]:
    """Gradients by the entries of user factors from those by working ones."""
    basis = plan.products.basis.random
    return [np.linalg.solve(a.T, g) for g, a in zip(gradients, basis, strict=True)]


def _log_density(fact: Factorisation, sigma: float, prior: GaussianBeta | None) -> float:
    products = fact.plan.products
    n, p = products.n_obs, products.n_fixed
    constants = (n - p) * (LOG_2PI + 2.0 * np.log(sigma)) - products.log_weights
    if prior is not None:
        constants += p * LOG_2PI - prior.log_det
    return -0.5 * (constants + fact.log_det_random + fact.log_det_fixed + fact.rss / sigma**2)
