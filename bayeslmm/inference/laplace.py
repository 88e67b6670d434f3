"""Laplace approximation: a Gaussian at the marginal mode, with exact draws of (beta, u) given it.

The Gaussian is on the unconstrained coordinates of the covariance parameters (log standard
deviations, correlation coordinates, log sigma), at the mode of their density with the Jacobian.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.exceptions import SamplingError
from bayeslmm.inference.map_estimate import fit_map
from bayeslmm.inference.optimise import Optimum, minimise
from bayeslmm.inference.tree import posterior_tree
from bayeslmm.likelihood.covariance import Structure, unconstrained
from bayeslmm.likelihood.draws import draw, draw_given_beta
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import (
    beta_prior,
    log_posterior_unconstrained,
    point_from_unconstrained,
)
from bayeslmm.priors.record import Priors
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name, u_name

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

START_LOG_RATIO = -3.0
"""Smallest log standard deviation to start from, relative to sigma over the covariate's length."""

START_Z = 2.0
"""Largest correlation coordinate to start from."""

LARGEST_SPREAD = 20.0
"""Standard deviation of a log scale or correlation coordinate beyond which there is no mode."""


def fit_laplace(
    design: Design,
    plan: Plan,
    priors: Priors,
    *,
    draws: int = 1000,
    chains: int = 4,
    random_seed: int | np.random.Generator | None = None,
) -> xr.DataTree:
    """Draw from the Laplace approximation of the posterior.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    priors : Priors
        Its priors.
    draws, chains : int
        Independent draws, arranged as so many chains.
    random_seed : int or numpy.random.Generator, optional
        Source of randomness.

    Returns
    -------
    xarray.DataTree
        ArviZ schema; ``sample_stats`` has `lp`, the log density at each draw, and
        `log_weight`, its log ratio to the approximation, up to a constant.

    Raises
    ------
    SamplingError
        If the density has no mode with negative curvature, as where it is improper.
    """
    began = time.perf_counter()
    rng = np.random.default_rng(random_seed)
    with single_threaded():
        mode = find_mode(plan, priors)
        size = draws * chains
        root = np.linalg.inv(np.linalg.cholesky(mode.hessian / 2.0)).T
        noise = rng.standard_normal((size, len(mode.x)))
        coordinates = mode.x + noise @ root.T
        density = np.array([log_posterior_unconstrained(plan, priors, x)[0] for x in coordinates])
        variables = draws_at(design, plan, priors, coordinates, rng)
    shaped = {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in variables.items()}
    weights = density + 0.5 * np.sum(noise**2, axis=1)
    stats = {"lp": density, "log_weight": weights - np.max(weights)}
    attrs = {
        "method": "laplace",
        "inference_library": "bayeslmm",
        "sampling_time": time.perf_counter() - began,
    }
    shaped_stats = {k: v.reshape(chains, draws) for k, v in stats.items()}
    return posterior_tree(design, priors, shaped, shaped_stats, attrs)


def find_mode(plan: Plan, priors: Priors) -> Optimum:
    """Mode of the log posterior density on the unconstrained coordinates, in -2 log density.

    Raises
    ------
    SamplingError
        If the search ends anywhere else.
    """

    def objective(x: Array) -> tuple[float, Array]:
        value, gradient = log_posterior_unconstrained(plan, priors, x)
        return -2.0 * value, -2.0 * gradient

    optimum = minimise(objective, _start(plan, priors), plan.products.n_obs)
    if not optimum.converged or not _is_regular(
        optimum, sum(s.n_theta for s in plan.products.structures) + 1
    ):
        cause = "Give the standard deviations proper priors"
        if priors.beta_sampled:
            cause += ", or beta priors without a kink near the estimate"
        raise SamplingError(
            "The posterior density of the covariance parameters has no regular mode "
            f"({optimum.message}), so there is no Laplace approximation. {cause}, or use "
            "method='nuts'."
        )
    return optimum


def _is_regular(optimum: Optimum, n_covariance: int) -> bool:
    """Whether the curvature is positive, and no log scale has an absurd standard deviation."""
    if np.linalg.eigvalsh(optimum.hessian)[0] <= 0:
        return False
    variances = np.diag(np.linalg.inv(optimum.hessian / 2.0))
    return bool(np.all(variances[:n_covariance] < LARGEST_SPREAD**2))


def draws_at(
    design: Design, plan: Plan, priors: Priors, coordinates: Array, rng: np.random.Generator
) -> dict[str, Array]:
    """Public variables at unconstrained coordinates (size, d), one exact draw of (beta, u) each."""
    structures = plan.products.structures
    points = [point_from_unconstrained(structures, x) for x in coordinates]
    prior = beta_prior(priors)
    betas, effects = [], []
    for point in points:
        if priors.beta_sampled:
            beta = point.beta
            u = draw_given_beta(plan, point.factors, point.sigma, beta, rng)
        else:
            drawn, u = draw(plan, point.factors, point.sigma, rng, prior)
            beta, u = drawn[0], [part[0] for part in u]
        betas.append(beta)
        effects.append(u)
    result = {BETA: np.array(betas), SIGMA: np.array([point.sigma for point in points])}
    for f, factor in enumerate(design.random):
        result[sd_name(factor.key)] = np.array([point.sds[f] for point in points])
        if factor.n_coefs > 1:
            chols = np.array([point.chols[f] for point in points])
            result[cor_name(factor.key)] = chols @ chols.transpose(0, 2, 1)
        result[u_name(factor.key)] = np.array([u[f] for u in effects])
    return result


def _start(plan: Plan, priors: Priors) -> Array:
    """Coordinates of the mode without the Jacobian, kept away from the boundary."""
    fit = fit_map(plan, priors)
    pieces = [
        _inside(s, unconstrained(s, t, fit.sigma), np.log(fit.sigma) + np.log(np.abs(np.diag(a))))
        for s, t, a in zip(
            plan.products.structures, fit.factors, plan.products.basis.random, strict=True
        )
    ]
    beta = fit.beta if priors.beta_sampled else np.zeros(0)
    return np.concatenate([*pieces, [np.log(fit.sigma)], beta])


def _inside(structure: Structure, eta: Array, log_unit: Array) -> Array:
    k = structure.n_coefs
    log_sds = np.maximum(eta[:k], log_unit + START_LOG_RATIO)
    return np.concatenate([log_sds, np.clip(np.nan_to_num(eta[k:]), -START_Z, START_Z)])
