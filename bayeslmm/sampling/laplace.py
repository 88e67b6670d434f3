"""Laplace approximation: a Gaussian at the marginal mode, with exact draws of (beta, u) given it.

The Gaussian is on the unconstrained coordinates of the covariance parameters (log standard
deviations, correlation coordinates, log sigma), at the mode of their density with the Jacobian.
It is the first step of the collapsed sampler.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit, search_tolerance
from bayeslmm.estimation.optimise import Optimum, minimise
from bayeslmm.estimation.start import Start, likelihood_start, starting_point
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import batch_system
from bayeslmm.likelihood.batch_posterior import log_posterior_batch, reduce_at
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.completion import as_chains, complete
from bayeslmm.sampling.tree import posterior_tree

Array = NDArray[np.float64]

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
        reduce = partial(reduce_at, batch_system(plan), priors.coordinates)
        noise = rng.standard_normal((draws * chains, len(mode.x)))
        coordinates = mode.x + noise @ gaussian_root(mode).T
        density = log_posterior_batch(plan, priors, reduce, coordinates)
        variables = complete(design, priors, batch_system(plan), reduce, coordinates, rng)
    weights = density + 0.5 * np.sum(noise**2, axis=1)
    stats = {"lp": density, "log_weight": weights - np.max(weights)}
    attrs = {
        "method": "laplace",
        "inference_library": "bayeslmm",
        "sampling_time": time.perf_counter() - began,
    }
    shaped = as_chains(variables, chains, draws)
    shaped_stats = as_chains(stats, chains, draws)
    return posterior_tree(design, priors, shaped, shaped_stats, attrs)


def gaussian_root(mode: Optimum) -> Array:
    """Lower Cholesky factor (d, d) of the covariance matrix of the approximation."""
    return np.asarray(np.linalg.cholesky(np.linalg.inv(mode.hessian / 2.0)))


def find_mode(plan: Plan, priors: Priors) -> Optimum:
    """Mode of the log posterior density on the unconstrained coordinates, in -2 log density.

    Raises
    ------
    SamplingError
        If the search ends anywhere else.
    """
    optimum = search_mode(plan, priors, likelihood_start(plan, priors))
    if not is_regular(priors, optimum):
        cause = "Give the standard deviations proper priors"
        if priors.beta_sampled:
            cause += ", or beta priors without a kink near the estimate"
        raise SamplingError(
            "The posterior density of the covariance parameters has no regular mode "
            f"({optimum.message}), so there is no Laplace approximation. {cause}, or use "
            "method='collapsed' or method='nuts'."
        )
    return optimum


def search_mode(plan: Plan, priors: Priors, start: Fit | Start) -> Optimum:
    """Where the search for the mode ends that starts at an estimate, whether or not that is one."""

    def objective(x: Array) -> tuple[float, Array]:
        value, gradient = log_posterior_unconstrained(plan, priors, x)
        return -2.0 * value, -2.0 * gradient

    return minimise(
        objective,
        starting_point(plan, priors, start),
        plan.products.n_obs,
        tolerance=search_tolerance(plan),
    )


def is_regular(priors: Priors, optimum: Optimum) -> bool:
    """Whether it is a mode, and no log scale has an absurd standard deviation there."""
    if not optimum.converged or np.linalg.eigvalsh(optimum.hessian)[0] <= 0:
        return False
    n_covariance = priors.coordinates.n_covariance
    variances = np.diag(np.linalg.inv(optimum.hessian / 2.0))
    return bool(np.all(variances[:n_covariance] < LARGEST_SPREAD**2))
