"""The marginal density of a linear mixed model, with u and the fixed effects integrated out.

Every function works on relative factors ``T_f = D_f chol(Omega_f) / sigma`` in the user's
coordinates, one (k, k) array per grouping factor in the order of ``design.random``. One
factorisation of the mixed-model equations gives the REML and ML criteria, the Bayesian marginal
density under a Gaussian prior on beta, and their gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.covariance.coordinates import Coordinates
from bayeslmm.covariance.residual import BoundResidual
from bayeslmm.data.design import Spec
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.batch import lead_equations
from bayeslmm.likelihood.blocks import batched_cholesky, eliminate_levels, lower_pairs
from bayeslmm.likelihood.crossprod import RandomColumns, WorkingProducts, cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan, plan_of_stack
from bayeslmm.likelihood.factorise import (
    Factorisation,
    GaussianBeta,
    factorise,
    single_threaded,
    to_working_beta,
)
from bayeslmm.likelihood.moments import conditional_modes, precision_blocks, product_slopes
from bayeslmm.likelihood.split_rows import EXACT, is_saturated, is_suspect, split_where_small
from bayeslmm.likelihood.stack import stack_of_sums, stack_products
from bayeslmm.likelihood.tied import TiedProducts
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.fixed import held_by

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

    @property
    def residual(self) -> BoundResidual | None:
        """Relative precision matrix of the rows; None where it is that of the weights."""
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
    spec = getattr(design, "spec", None)  # columns by themselves know of no parameters
    held = held_by(labels_of(spec), spec) if isinstance(spec, Spec) else None
    if held is None:
        return _free_system(design)
    known_scale = held.sigma in held.held_places
    with single_threaded():
        plan = _known_scale_system(design, held) if known_scale else _free_system(design)
    return replace(plan, held=held)


LARGEST_RATIO = 1e14
"""Variance of the response over a known residual variance: sums lose a hundredth beyond this."""


def _known_scale_system(design: Columns, held: Coordinates) -> Plan:
    """Where sigma is known nothing is wrong with a response that the effects reproduce."""
    law = design.residual
    if isinstance(design, SummarisedDesign):
        plan = _plan_of_sums(design)
    else:
        y, weights = design.y - design.offset, design.weights
        if law is not None:
            plan = plan_of_stack(stack_products(y, design.X, design.random, law, weights=weights))
        else:
            plan = make_plan(cross_products(y, design.X, design.random, weights=weights))
    sigma = float(np.exp(dict(held.held)[held.sigma]))
    if plan.products.fixed[-1, -1] > LARGEST_RATIO * plan.products.n_obs * sigma**2:
        raise DataError(
            "The known residual standard deviations are less than a ten-millionth of the spread of "
            "the response, so that the likelihood cannot be computed in double precision: check "
            "their units."
        )
    return plan


def _free_system(design: Columns) -> Plan:
    if isinstance(design, SummarisedDesign):
        return _summarised_system(design)
    y, X, factors, weights = design.y - design.offset, design.X, design.random, design.weights
    with single_threaded():
        if design.residual is not None:
            return _structured(design, design.residual)
        products = cross_products(y, X, factors, weights=weights)
        plan = make_plan(products)
        if products.fixed[-1, -1] >= EXACT * _sum_of_squares(y, weights):
            return split_where_small(plan, y, X, factors, weights)
        if not _is_learnable(plan) or not is_saturated(plan, X, factors, weights):
            raise DataError(EXACT_RESPONSE)
        return make_plan(_without_rounding(products))


def _summarised_system(design: SummarisedDesign) -> Plan:
    """From cross-products alone; rows could be split no more."""
    with single_threaded():
        plan = _plan_of_sums(design)
        y = design.summary.columns(design.formula.right)[:, -1]
        spread = design.moments.variances[-1] / design.moments.root_mean_squares[-1] ** 2
        if plan.products.fixed[-1, -1] < EXACT * spread * float(y @ y):
            raise DataError(EXACT_RESPONSE)
        related = any(factor.relationship is not None for factor in design.random)
        if plan.stack is None and not related and is_suspect(plan):
            raise DataError(
                "The fixed and random effects leave less than a ten-thousandth of the variation of "
                "the response, too little for sums over rows: give the data in memory, or look for "
                "a predictor that is nearly a copy of the response."
            )
        return plan


def _plan_of_sums(design: SummarisedDesign) -> Plan:
    products = design.products
    if not isinstance(products, TiedProducts):
        return make_plan(products)
    return plan_of_stack(stack_of_sums(products, design.random))


def _structured(design: Columns, law: BoundResidual) -> Plan:
    y, weights = design.y - design.offset, design.weights
    stack = stack_products(y, design.X, design.random, law, weights=weights)
    plan = plan_of_stack(stack)
    if plan.products.fixed[-1, -1] < EXACT * _sum_of_squares(y, weights):
        raise DataError(EXACT_RESPONSE)
    return plan


def _sum_of_squares(y: Array, weights: Array | None) -> float:
    w = np.ones_like(y) if weights is None else weights
    return float(w @ (y - np.average(y, weights=w)) ** 2)


def _is_learnable(plan: Plan) -> bool:
    """Whether the density of a response without residuals can be integrated near zero.

    It is of the order of all standard deviations together to the power p - n.
    """
    products = plan.products
    n_sds = sum(s.n_sds for s in products.structures)
    return products.n_obs - products.n_fixed <= n_sds


def _without_rounding(products: WorkingProducts) -> WorkingProducts:
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


class DensitySlopes(NamedTuple):
    """A log density and its derivatives.

    Attributes
    ----------
    value : float
    factors : list of ndarray (k, k)
        By the entries of each relative factor, in the user's coordinates.
    shape : ndarray (r,)
        By the parameters of the residuals beside sigma.
    sigma : float
        By sigma at fixed relative factors.
    beta : ndarray (p,)
        By the fixed effects; empty where these are integrated out.
    """

    value: float
    factors: list[Array]
    shape: Array
    sigma: float
    beta: Array


def log_density_grad(
    plan: Plan, factors: Sequence[Array], sigma: float, prior: GaussianBeta | None = None
) -> DensitySlopes:
    """Log marginal density log p(y | T, sigma) and its derivatives."""
    fact = factorise(plan, factors, prior, sigma)
    slopes = score(fact, 1.0 / sigma**2)
    dof = plan.products.n_obs - plan.products.n_fixed
    d_sigma = (dof - fact.rss / sigma**2) / sigma
    if prior is not None:
        gap = prior.root @ (fact.beta - prior.mean)
        d_sigma += sigma * float(np.sum((prior.root @ fact.beta_root) ** 2))
        d_sigma += float(gap @ gap) / sigma
    value = _log_density(fact, sigma, prior)
    return DensitySlopes(value, *_halved(plan, slopes), -d_sigma, np.zeros(0))


def log_likelihood_grad(plan: Plan, factors: Sequence[Array], sigma: float) -> DensitySlopes:
    """Log likelihood at its maximum over beta, log p(y | beta, T, sigma), and its derivatives."""
    fact = factorise(plan, factors)
    n, variance = plan.products.n_obs, sigma**2
    value = n * (LOG_2PI + np.log(variance)) + fact.log_det_random + fact.rss / variance
    slopes = score(fact, 1.0 / variance, restricted=False)
    d_sigma = (fact.rss / variance - n) / sigma
    value = -0.5 * float(value - plan.products.log_weights)
    return DensitySlopes(value, *_halved(plan, slopes), d_sigma, np.zeros(0))


def log_density_given_beta_grad(
    plan: Plan, factors: Sequence[Array], sigma: float, beta: Array
) -> DensitySlopes:
    """Log density log p(y | beta, T, sigma), u integrated out, and its derivatives."""
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
    slopes = score(fact, 1.0 / sigma**2, restricted=False, beta_working=working)
    d_working = -(fact.fixed_chol @ gap) / sigma**2
    p = products.n_fixed
    d_beta = solve_triangular(products.basis.fixed, d_working, trans="T") if p else d_working
    d_sigma = (rss / sigma**2 - n) / sigma
    return DensitySlopes(value, *_halved(plan, slopes), d_sigma, d_beta)


def _halved(plan: Plan, slopes: Score) -> tuple[list[Array], Array]:
    """Derivatives of a log density by user factors and shape from those of a criterion."""
    return [-0.5 * g for g in to_user_gradient(plan, slopes.factors)], -0.5 * slopes.shape


class Score(NamedTuple):
    """Derivatives of a criterion.

    Attributes
    ----------
    factors : list of ndarray (k, k)
        By the entries of each relative factor.
    shape : ndarray (r,)
        By the parameters of the residuals beside sigma.
    """

    factors: list[Array]
    shape: Array


def score(
    fact: Factorisation,
    inverse_variance: float,
    *,
    restricted: bool = True,
    beta_working: Array | None = None,
) -> Score:
    """Derivatives of the criterion by the working relative factors and the residuals' shape.

    The criterion is ``log|L_ZZ|^2 + log|L_XX|^2 + log|R| + inverse_variance * r^2``, with R
    relative to sigma^2; its derivative by T_f is
    ``2 (sum_j [Z'PZ]_jj - inverse_variance sum_j q_j q_j') T_f`` with ``q = Z'P y``, finite where
    T_f is singular. Related levels have sums over pairs, weighted by their relationships.

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
    Score
    """
    blocks = precision_blocks(fact, restricted=restricted)
    _, residuals = conditional_modes(fact, beta_working)
    parts = zip(blocks, _squares(fact.plan, residuals), fact.factors, strict=True)
    return Score(
        [2.0 * (block - inverse_variance * square) @ factor for block, square, factor in parts],
        _shape_score(
            fact,
            determinants=True,
            inverse_variance=inverse_variance,
            restricted=restricted,
            beta_working=beta_working,
        ),
    )


def _shape_score(
    fact: Factorisation,
    *,
    determinants: bool,
    inverse_variance: float,
    restricted: bool = False,
    beta_working: Array | None = None,
) -> Array:
    """Derivatives (r,) by the shape of the residuals; see :func:`score`."""
    stack, shape = fact.plan.stack, fact.plan.shape
    if stack is None or not len(shape):
        return shape
    slopes = product_slopes(
        fact,
        determinants=determinants,
        inverse_variance=inverse_variance,
        restricted=restricted,
        beta_working=beta_working,
    )
    return stack.pull_back(shape, slopes, -float(determinants))


def rss_gradient(fact: Factorisation) -> Score:
    """Derivatives of r^2 by the working relative factors and the residuals' shape."""
    _, residuals = conditional_modes(fact)
    squares = zip(_squares(fact.plan, residuals), fact.factors, strict=True)
    return Score(
        [-2.0 * square @ t for square, t in squares],
        _shape_score(fact, determinants=False, inverse_variance=1.0),
    )


def _squares(plan: Plan, residuals: Sequence[Array]) -> list[Array]:
    """Squares q'Aq (k, k) of each grouping factor with relationships A, q'q without."""
    return [q.T @ plan.products.related(f, q) for f, q in enumerate(residuals)]


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


# --- criteria of one grouping factor at many relative factors at once ---
#
# With A_j = Z_j'Z_j and M_j = Z_j'[X y] of level j, S = TT' and W_j = (A_j + S^-1)^-1,
#
#     [X y]'V^-1[X y] sigma^2 = [X y]'[X y] - sum_j M_j' W_j M_j,
#     log |L_ZZ|^2 = sum_j log |I + A_j S|,    dW_j = (I - W_j A_j) dS (I - A_j W_j),
#
# so the derivative of a criterion whose derivative by the fixed effects' equations is Q is
#
#     sum_j (A_j - A_j W_j A_j) - (I - A_j W_j) M_j Q M_j' (I - W_j A_j)
#
# by S, and twice that times T by T. Levels with equal A_j share everything but M_j.


LARGEST = 512
"""Distinct blocks of Z'Z up to which a batch takes less time than its members one by one."""


def has_criteria(plan: Plan) -> bool:
    """Whether :func:`profiled_criteria` serves a plan, and pays."""
    return not plan.n_tail and len(plan.classes.counts) <= LARGEST and plan.sums is not None


def profiled_criteria(plan: Plan, theta: Array, reml: bool) -> tuple[Array, Array]:
    """Criteria, -2 log likelihood with beta and sigma profiled out, and their gradients.

    Parameters
    ----------
    plan : Plan
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
    products = plan.products
    p, factor = products.n_fixed, plan.theta.factors(theta)[0]
    with np.errstate(all="ignore"):
        _, kernel, log_dets = eliminate_levels(plan.classes.gram, factor)
        lower = batched_cholesky(lead_equations(plan, kernel))
        dof = products.n_obs - (p if reml else 0)
        diagonal = np.diagonal(lower, axis1=1, axis2=2)
        value = log_dets @ plan.classes.counts
        value = value + dof * (1.0 + LOG_2PI + 2.0 * np.log(diagonal[:, p]) - np.log(dof))
        if reml:
            value += 2.0 * np.log(diagonal[:, :p]).sum(axis=1) - 2.0 * products.basis.log_det_fixed
        by_square = _by_square(plan, kernel, _by_equations(lower, float(reml), dof))
        gradients = plan.theta.gradient(
            theta, [2.0 * by_square @ factor], np.zeros((len(theta), 0))
        )
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


def _by_square(plan: Plan, kernel: Array, by_equations: Array) -> Array:
    """Derivative (S, k, k) by S = TT' at blocks W (n_pairs, S, C) and Q (S, p + 1, p + 1)."""
    assert plan.sums is not None
    classes, size = plan.classes, len(by_equations)
    k = classes.gram.shape[0]
    rows, cols = lower_pairs(k)
    gram = classes.gram.transpose(2, 0, 1)
    flat = by_equations.reshape(size, -1)
    blocks = np.empty((2, size, len(classes.counts), k, k))
    for pair, (a, b) in enumerate(zip(rows, cols, strict=True)):
        seen = flat @ plan.sums.fixed[pair].T  # the map has both halves of a symmetric pair
        blocks[0, :, :, a, b] = blocks[0, :, :, b, a] = kernel[pair]
        blocks[1, :, :, a, b] = blocks[1, :, :, b, a] = seen if a == b else 0.5 * seen
    rest = np.eye(k) - gram @ blocks[0]
    determinants = np.einsum("c,scab->sab", classes.counts, rest @ gram)
    return determinants - (rest @ blocks[1] @ rest.swapaxes(2, 3)).sum(axis=1)
