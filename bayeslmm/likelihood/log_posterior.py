"""Log posterior density of the covariance parameters, with u (and usually beta) integrated out.

The density is meant with respect to standard deviations, correlation matrix entries and sigma:
its mode under flat priors is the REML estimate. On the unconstrained coordinates (log standard
deviations, correlation coordinates, log sigma, and beta where its prior is neither normal nor
flat) the Jacobian can be added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import (
    Structure,
    correlation_cholesky,
    correlation_cholesky_jacobian,
    correlation_log_jacobian,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.marginal import log_density_given_beta_grad, log_density_grad
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]

LARGEST_LOG = 300.0
"""Logarithms beyond this are as good as infinite; their squares must not overflow."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Point:
    """Covariance parameters of a model, or derivatives by them.

    Attributes
    ----------
    sds : tuple of ndarray (k,)
        Standard deviations of the random effects per grouping factor. A negative one stands for
        its absolute value with the signs of its correlations turned.
    chols : tuple of ndarray (k, k)
        Cholesky factors of their correlation matrices.
    sigma : float
        Residual standard deviation.
    beta : ndarray (p,)
        Fixed effects where they are not integrated out, else empty.
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    sigma: float
    beta: Array

    @property
    def factors(self) -> list[Array]:
        """Relative factors T = D chol(Omega) / sigma."""
        return [
            sd[:, None] * chol / self.sigma for sd, chol in zip(self.sds, self.chols, strict=True)
        ]


def beta_prior(priors: Priors) -> GaussianBeta | None:
    """Normal prior on beta under which it is integrated out; None where it is flat."""
    return None if priors.beta_root is None else GaussianBeta(priors.beta_mean, priors.beta_root)


def point_from_unconstrained(structures: Sequence[Structure], x: Array) -> Point:
    """Covariance parameters at coordinates (log sds and z per factor, log sigma, beta)."""
    sds, chols = [], []
    start = 0
    for s in structures:
        piece = x[start : start + s.n_theta]
        sds.append(np.exp(np.clip(piece[: s.n_coefs], -LARGEST_LOG, LARGEST_LOG)))
        chols.append(correlation_cholesky(s, piece[s.n_coefs :]))
        start += s.n_theta
    sigma = float(np.exp(np.clip(x[start], -LARGEST_LOG, LARGEST_LOG)))
    return Point(sds=tuple(sds), chols=tuple(chols), sigma=sigma, beta=x[start + 1 :])


def log_posterior(plan: Plan, priors: Priors, point: Point) -> tuple[float, Point]:
    """Log posterior density, up to p(y), and its derivatives.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    point : Point
        Where.

    Returns
    -------
    value : float
        log p(y, parameters).
    derivatives : Point
        Derivatives by the standard deviations, the entries of the Cholesky factors, sigma and
        beta.
    """
    factors = point.factors
    d_beta = np.zeros(0)
    if priors.beta_sampled:
        value, d_factors, d_sigma, d_beta = log_density_given_beta_grad(
            plan, factors, point.sigma, point.beta
        )
        prior_value, prior_slope = _beta_log_prior(priors, point.beta)
        value, d_beta = value + prior_value, d_beta + prior_slope
    else:
        value, d_factors, d_sigma = log_density_grad(plan, factors, point.sigma, beta_prior(priors))
    d_sds, d_chols = [], []
    for f, (d_t, t) in enumerate(zip(d_factors, factors, strict=True)):
        sds, chol = point.sds[f], point.chols[f]
        prior_value, d_sd, d_chol = _factor_log_prior(priors, f, sds, chol)
        value += prior_value
        d_sigma -= float(np.sum(d_t * t)) / point.sigma
        d_sds.append(np.sum(d_t * chol, axis=1) / point.sigma + d_sd)
        d_chols.append(d_t * sds[:, None] / point.sigma + d_chol)
    value += float(priors.sigma.logpdf(point.sigma))
    d_sigma += float(priors.sigma.dlogpdf(point.sigma))
    return value, Point(sds=tuple(d_sds), chols=tuple(d_chols), sigma=d_sigma, beta=d_beta)


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
        Per grouping factor log standard deviations and correlation coordinates; log sigma; beta
        where it is not integrated out.
    jacobian : bool
        Whether the density is with respect to these coordinates (the default) or, evaluated at
        them, with respect to the parameters themselves.

    Returns
    -------
    value : float
    gradient : ndarray (d,)
    """
    structures = plan.products.structures
    point = point_from_unconstrained(structures, x)
    value, slope = log_posterior(plan, priors, point)
    pieces = []
    start = 0
    for f, s in enumerate(structures):
        z = x[start + s.n_coefs : start + s.n_theta]
        d_log_sd = slope.sds[f] * point.sds[f]
        d_z = np.sum(slope.chols[f] * correlation_cholesky_jacobian(s, z), axis=(1, 2))
        if jacobian:
            value += float(np.sum(x[start : start + s.n_coefs]))
            value += float(correlation_log_jacobian(s, z))
            d_log_sd = d_log_sd + 1.0
            d_z = d_z + _log_jacobian_slope(s, z)
        pieces += [d_log_sd, d_z]
        start += s.n_theta
    d_log_sigma = slope.sigma * point.sigma + float(jacobian)
    value += x[start] if jacobian else 0.0
    return value, np.concatenate([*pieces, [d_log_sigma], slope.beta])


def _log_jacobian_slope(structure: Structure, z: Array) -> Array:
    weights = [
        0.5 * (len(block) - col - 2) + 1.0
        for block in structure.blocks
        for row in range(1, len(block))
        for col in range(row)
    ]
    return -2.0 * np.array(weights) * np.tanh(z)


def _beta_log_prior(priors: Priors, beta: Array) -> tuple[float, Array]:
    gamma = priors.centering @ beta
    value = sum(float(p.logpdf(g)) for p, g in zip(priors.beta, gamma, strict=True))
    slope = np.array([float(p.dlogpdf(g)) for p, g in zip(priors.beta, gamma, strict=True)])
    return value, priors.centering.T @ slope


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
