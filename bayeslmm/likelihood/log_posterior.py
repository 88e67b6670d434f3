"""Log posterior density of the covariance parameters, with u (and usually beta) integrated out.

The density is meant with respect to standard deviations, correlation matrix entries and sigma of
the working columns: its mode under flat priors is the REML estimate. On the unconstrained
coordinates of :class:`~bayeslmm.covariance.coordinates.Coordinates` the Jacobian can be added.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points, Slopes, WorkingPoints
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import sd_leaders
from bayeslmm.likelihood.batch import Reduced, reduce_equations
from bayeslmm.likelihood.blocks import batched_cholesky, small_cholesky
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.marginal import (
    LOG_2PI,
    DensitySlopes,
    log_density_given_beta_grad,
    log_density_grad,
)
from bayeslmm.priors.families import LKJ
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]

ENTRIES = 1 << 22
"""Entries of the fixed effects' equations held at once: 32 MB."""

SMALL = 12
"""Number of fixed effects from which LAPACK factorises their equations one by one."""

Reduce = Callable[[Array], Reduced]
"""Eliminates the random effects at unconstrained coordinates (S, d), exactly or nearly so."""


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
    plan = plan.at(point.shapes[0])
    if priors.beta_sampled:
        slopes = log_density_given_beta_grad(plan, factors, sigma, point.beta[0])
        rows = zip(priors.beta, point.gamma[0], strict=True)
        d_gamma = np.array([float(prior.dlogpdf(gamma)) for prior, gamma in rows])
        d_gamma += np.linalg.solve(priors.fixed_map.T, slopes.beta)
    else:
        slopes = log_density_grad(plan, factors, sigma, beta_prior(priors))
        d_gamma = np.zeros(0)
    value = slopes.value + float(log_prior_batch(priors, point)[0])
    by_data = parameter_slopes(point, slopes)
    moments = zip(point.sds, point.chols, strict=True)
    own = [_log_prior_slopes(priors, f, s[0], c[0]) for f, (s, c) in enumerate(moments)]
    d_sds, d_chols, d_cors = zip(*own, strict=True) if own else ((), (), ())
    by_sigma, by_shape = priors.residuals.slopes(sigma, point.shapes[0])
    return value, Slopes(
        sds=tuple(a + b for a, b in zip(by_data.sds, d_sds, strict=True)),
        chols=tuple(a + b for a, b in zip(by_data.chols, d_chols, strict=True)),
        cors=tuple(d_cors),
        sigma=by_data.sigma + by_sigma,
        shapes=by_data.shapes + by_shape,
        gamma=d_gamma,
    )


def parameter_slopes(point: WorkingPoints, slopes: DensitySlopes) -> Slopes:
    """Derivatives of a density of the data by the parameters from those by relative factors.

    None by the parameters of patterns but through `chols`.
    """
    sigma, d_sigma = float(point.sigma[0]), slopes.sigma
    d_sds, d_chols = [], []
    for f, (d_t, t) in enumerate(zip(slopes.factors, point.factors, strict=True)):
        sds, chol = point.sds[f][0], point.chols[f][0]
        d_sigma -= float(np.sum(d_t * t[0])) / sigma
        d_root = point.mixing[f].T @ d_t / sigma
        d_sds.append(np.sum(d_root * chol, axis=1))
        d_chols.append(d_root * sds[:, None])
    return Slopes(
        sds=tuple(d_sds),
        chols=tuple(d_chols),
        cors=(np.zeros(1),) * len(d_sds),
        sigma=d_sigma,
        shapes=slopes.shape,
        gamma=slopes.beta,
    )


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


def _log_prior_slopes(
    priors: Priors, factor: int, sds: Array, chol: Array
) -> tuple[Array, Array, Array]:
    """Derivatives of one factor's log prior.

    By sds (k,), where coefficients share one by that of the first; by the Cholesky factor (k, k);
    by the parameters of patterns (n_cors,).
    """
    structure = priors.coordinates.structures[factor]
    d_sd, d_chol, d_cor = np.zeros_like(sds), np.zeros_like(chol), np.zeros(structure.n_cors)
    leaders = sd_leaders(structure)
    rows = zip(priors.sd[factor], np.abs(sds[leaders]), strict=True)
    d_sd[leaders] = np.sign(sds[leaders]) * [float(prior.dlogpdf(sd)) for prior, sd in rows]
    start = 0
    parts = zip(structure.blocks, structure.parts, priors.cor[factor], strict=True)
    for block, part, prior in parts:
        index = np.ix_(block, block)
        if isinstance(prior, LKJ):
            d_chol[index] = prior.dlogpdf(chol[index])
        elif isinstance(part, Pattern) and prior is not None:
            d_cor[start : start + part.n_cors] = prior.dlogpdf(part.parameters(chol[index]))
        start += part.n_cors
    return d_sd, d_chol, d_cor


# --- many points at once, and the fixed effects given each of them ---


def reduce_at(plan: Plan, coordinates: Coordinates, x: Array) -> Reduced:
    """Eliminate the random effects at unconstrained coordinates (S, d).

    Where the arithmetic breaks down the result is not finite.
    """
    with np.errstate(all="ignore"):
        return reduce_equations(plan, coordinates.points(x))


def log_posterior_batch(plan: Plan, priors: Priors, reduce: Reduce, x: Array) -> Array:
    """Log density (S,) of the data and the unconstrained coordinates, Jacobian included.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    reduce : callable
        Eliminates the random effects at coordinates (S, d).
    x : ndarray (S, d)
        Coordinates, of ``priors.coordinates``.

    Returns
    -------
    ndarray (S,)
        Minus infinity where the arithmetic breaks down.
    """
    step = max(1, ENTRIES // (plan.products.n_fixed + 1) ** 2)
    parts = [x[start : start + step] for start in range(0, len(x), step)]
    with np.errstate(all="ignore"):
        values = [log_posterior_of(plan, priors, reduce(part), part) for part in parts]
    return np.concatenate(values) if values else np.zeros(0)


def log_posterior_of(plan: Plan, priors: Priors, reduced: Reduced, x: Array) -> Array:
    """The density of :func:`log_posterior_batch` where the random effects are eliminated."""
    points = priors.coordinates.points(x)
    with np.errstate(all="ignore"):
        value = log_likelihood_batch(plan, priors, reduced, points)
        value = value + log_prior_batch(priors, points) + priors.coordinates.log_jacobian(x)
    return np.where(np.isfinite(value), value, -np.inf)


def log_likelihood_batch(
    plan: Plan, priors: Priors, reduced: Reduced, points: Points | WorkingPoints
) -> Array:
    """Log p(y | covariance parameters), or log p(y | these, beta) where beta is sampled: (S,)."""
    products = plan.products
    n, p = products.n_obs, products.n_fixed
    sigma = points.sigma
    if priors.beta_sampled:
        rss = _rss_at(plan, reduced.fixed, points.beta)
        log_det, dof = reduced.log_det, n
    else:
        prior = beta_prior(priors)
        lower, log_det_fixed = fixed_cholesky(plan, reduced.fixed, sigma, prior)
        rss = lower[p, p] ** 2
        log_det = reduced.log_det + log_det_fixed - 2.0 * products.basis.log_det_fixed
        if prior is not None:
            log_det = log_det + p * LOG_2PI - prior.log_det
        dof = n - p
    constants = dof * (LOG_2PI + 2.0 * np.log(sigma))
    return np.asarray(-0.5 * (constants + log_det + rss / sigma**2))


def fixed_cholesky(
    plan: Plan, fixed: Array, sigma: Array, prior: GaussianBeta | None
) -> tuple[Array, Array]:
    """Cholesky factor of the fixed effects' equations bordered by y.

    Returns
    -------
    lower : ndarray (p + 1, p + 1, S)
        Its last pivot is r.
    log_det : ndarray (S,)
        Log of the product of the squares of the first p diagonal entries.
    """
    p = plan.products.n_fixed
    if prior is not None:
        own = prior.cross_products(plan.products.basis)
        fixed = fixed + sigma[:, None, None] ** 2 * own
    if p >= SMALL:
        lower = np.moveaxis(batched_cholesky(fixed), 0, 2)
    else:
        entries = {(i, j): fixed[:, i, j] for i in range(p + 1) for j in range(i + 1)}
        small_cholesky(entries, p + 1)
        lower = np.zeros((p + 1, p + 1, len(fixed)))
        for place, entry in entries.items():
            lower[place] = entry
    return lower, 2.0 * np.sum(np.log(np.diagonal(lower)[:, :p]), axis=1)


def log_prior_batch(priors: Priors, points: WorkingPoints) -> Array:
    """Log prior density of sds, correlation entries, sigma, and beta where it is sampled: (S,)."""
    value = priors.residuals.logpdf(points.sigma, points.shapes)
    for f, (sds, chols) in enumerate(zip(points.sds, points.chols, strict=True)):
        structure = priors.coordinates.structures[f]
        for i, scale_prior in zip(sd_leaders(structure), priors.sd[f], strict=True):
            value = value + scale_prior.logpdf(np.abs(sds[:, i]))
        parts = zip(structure.blocks, structure.parts, priors.cor[f], strict=True)
        for block, part, prior in parts:
            rows = np.array(block)
            if isinstance(prior, LKJ):
                value = value + prior.logpdf(chols[:, rows[:, None], rows])
            elif isinstance(part, Pattern) and prior is not None:
                own = part.parameters(chols[:, rows[:, None], rows])
                value = value + np.sum(prior.logpdf(own), axis=1)
    if priors.beta_sampled:
        for j, prior in enumerate(priors.beta):
            value = value + prior.logpdf(points.gamma[:, j])
    return value


def fixed_effects_at(
    plan: Plan, prior: GaussianBeta | None, reduced: Reduced, sigma: Array, noise: Array
) -> Array:
    """Fixed effects (S, p) where they are integrated out, drawn with normal noise (S, p).

    With noise of zero they are the conditional means.
    """
    p = plan.products.n_fixed
    lower, _ = fixed_cholesky(plan, reduced.fixed, sigma, prior)
    working = np.empty((p, len(sigma)))
    noise = sigma * noise.T
    for i in reversed(range(p)):
        right = lower[p, i] + noise[i]
        for m in range(i + 1, p):
            right = right - lower[m, i] * working[m]
        working[i] = right / lower[i, i]
    basis = plan.products.basis
    return (basis.fixed @ working).T + basis.shift


def _rss_at(plan: Plan, fixed: Array, beta: Array) -> Array:
    """Penalised residual sum of squares at given fixed effects (S, p)."""
    basis = plan.products.basis
    working = np.linalg.solve(basis.fixed, (beta - basis.shift).T).T
    contrast = np.concatenate([-working, np.ones((len(beta), 1))], axis=1)
    return np.einsum("sa,sab,sb->s", contrast, fixed, contrast)
