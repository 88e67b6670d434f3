"""Log posterior density of the covariance parameters, with u (and usually beta) integrated out.

The density is meant with respect to standard deviations, correlation matrix entries and sigma of
the working columns: its mode under flat priors is the REML estimate. On the unconstrained
coordinates of :class:`~bayeslmm.covariance.coordinates.Coordinates` the Jacobian can be added.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Slopes, WorkingPoints
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.marginal import log_density_given_beta_grad, log_density_grad
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]


def beta_prior(priors: Priors) -> GaussianBeta | None:
    """Normal prior on beta under which it is integrated out; None where it is flat."""
    return None if priors.beta_root is None else GaussianBeta(priors.beta_mean, priors.beta_root)


def log_posterior(plan: Plan, priors: Priors, point: WorkingPoints) -> tuple[float, Slopes]:
    """Log posterior density, up to p(y), and its derivatives.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    point : WorkingPoints
        A single point.

    Returns
    -------
    value : float
        log p(y, parameters).
    derivatives : Slopes
    """
    factors, sigma = [t[0] for t in point.factors], float(point.sigma[0])
    d_gamma = np.zeros(0)
    if priors.beta_sampled:
        value, d_factors, d_sigma, d_beta = log_density_given_beta_grad(
            plan, factors, sigma, point.beta[0]
        )
        prior_value, d_gamma = _gamma_log_prior(priors, point.gamma[0])
        value, d_gamma = (
            value + prior_value,
            d_gamma + np.linalg.solve(priors.fixed_map.T, d_beta),
        )
    else:
        value, d_factors, d_sigma = log_density_grad(plan, factors, sigma, beta_prior(priors))
    d_sds, d_chols = [], []
    for f, (d_t, t) in enumerate(zip(d_factors, factors, strict=True)):
        sds, chol = point.sds[f][0], point.chols[f][0]
        prior_value, d_sd, d_chol = _factor_log_prior(priors, f, sds, chol)
        value += prior_value
        d_sigma -= float(np.sum(d_t * t)) / sigma
        d_root = priors.mixing[f].T @ d_t / sigma
        d_sds.append(np.sum(d_root * chol, axis=1) + d_sd)
        d_chols.append(d_root * sds[:, None] + d_chol)
    value += float(priors.sigma.logpdf(sigma))
    d_sigma += float(priors.sigma.dlogpdf(sigma))
    return value, Slopes(sds=tuple(d_sds), chols=tuple(d_chols), sigma=d_sigma, gamma=d_gamma)


def log_posterior_unconstrained(
    plan: Plan, priors: Priors, x: Array, *, jacobian: bool = True
) -> tuple[float, Array]:
    """Log posterior density on the unconstrained coordinates and its gradient (d,).

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    x : ndarray (d,)
        Coordinates, of ``priors.coordinates``.
    jacobian : bool
        Whether the density is with respect to these coordinates (the default) or, evaluated at
        them, with respect to the parameters themselves.

    Returns
    -------
    value : float
    gradient : ndarray (d,)
    """
    coordinates = priors.coordinates
    value, slope = log_posterior(plan, priors, coordinates.points(x[None]))
    if jacobian:
        value += float(coordinates.log_jacobian(x[None])[0])
    return value, coordinates.pull_back(x, slope, jacobian=jacobian)


def _gamma_log_prior(priors: Priors, gamma: Array) -> tuple[float, Array]:
    pairs = list(zip(priors.beta, gamma, strict=True))
    value = sum(float(p.logpdf(g)) for p, g in pairs)
    return value, np.array([float(p.dlogpdf(g)) for p, g in pairs])


def _factor_log_prior(
    priors: Priors, factor: int, sds: Array, chol: Array
) -> tuple[float, Array, Array]:
    """Log prior of one factor's parameters and derivatives by sds (k,) and Cholesky (k, k)."""
    rows = list(zip(priors.sd[factor], np.abs(sds), strict=True))
    value = sum(float(prior.logpdf(sd)) for prior, sd in rows)
    d_sd = np.sign(sds) * [float(prior.dlogpdf(sd)) for prior, sd in rows]
    d_chol = np.zeros_like(chol)
    for block, lkj in zip(priors.blocks[factor], priors.cor[factor], strict=True):
        if lkj is not None:
            index = np.ix_(block, block)
            value += float(lkj.logpdf(chol[index]))
            d_chol[index] = lkj.dlogpdf(chol[index])
    return value, d_sd, d_chol
