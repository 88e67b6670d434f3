"""The exact conditional distribution of a linear combination of the fixed effects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm

from bayeslmm.covariance.coordinates import Points
from bayeslmm.likelihood.batch import batch_system, reduce_equations
from bayeslmm.likelihood.batch_posterior import fixed_cholesky, fixed_effects_at
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.density_sampler import MAX_PARETO_K
from bayeslmm.sampling.pareto import smooth_weights

Array = NDArray[np.float64]


def conditional_moments(
    plan: Plan, priors: Priors, points: Points, weights: Array
) -> tuple[Array, Array]:
    """Mean and sd (S,) of ``weights @ beta`` given the data and covariance parameters.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        Normal or flat on beta.
    points : Points
        S covariance parameters.
    weights : ndarray (p,)
        Weights of the coefficients.

    Returns
    -------
    mean, sd : ndarray (S,)
        Of a normal distribution.
    """
    p, prior = len(weights), beta_prior(priors)
    with single_threaded():
        reduced = reduce_equations(batch_system(plan), points.factors)
        lower, _ = fixed_cholesky(plan, reduced.fixed, points.sigma, prior)
        noise = np.zeros((len(points.sigma), p))
        beta = fixed_effects_at(plan, prior, reduced, points.sigma, noise)
    root = np.moveaxis(lower[:p, :p], 2, 0)
    right = np.broadcast_to(plan.products.basis.fixed.T @ weights, (len(root), p))
    half = np.linalg.solve(root, right[..., None])[..., 0]
    return beta @ weights, points.sigma * np.linalg.norm(half, axis=1)


def mixture_density(
    value: float, mean: Array, sd: Array, shape: tuple[int, int]
) -> tuple[float, float]:
    """Log density at a value of an equal mixture of S normal distributions, and its error.

    Parameters
    ----------
    value : float
        Where.
    mean, sd : ndarray (S,)
        Of the distributions, at the draws of a Markov chain.
    shape : tuple of int
        Chains and draws of each, S in all.

    Returns
    -------
    density, error : float
        The error is the Monte Carlo standard error of the log; infinite where the densities have
        too heavy a tail over the draws for it to be known.
    """
    logs = norm.logpdf(value, mean, sd)
    density = float(logsumexp(logs) - np.log(len(mean)))
    ratios = np.exp(logs - density)
    if smooth_weights(logs)[1] > MAX_PARETO_K:
        return density, np.inf
    return density, float(ratios.std(ddof=1) / np.sqrt(effective_size(ratios, shape)))


def effective_size(values: Array, shape: tuple[int, int]) -> float:
    """Effective number of draws for the mean of values (S,); their number where all are equal."""
    from arviz_stats.base import array_stats

    if np.ptp(values) == 0.0:
        return float(len(values))
    return float(array_stats.ess(values.reshape(shape), method="mean"))
