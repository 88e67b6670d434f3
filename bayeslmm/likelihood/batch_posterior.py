"""Log posterior density at many points at once, and the fixed effects given each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points, WorkingPoints
from bayeslmm.likelihood.batch import (
    BatchSystem,
    Reduced,
    batched_cholesky,
    reduce_equations,
    small_cholesky,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
LOG_2PI = float(np.log(2.0 * np.pi))

ENTRIES = 1 << 22
"""Entries of the fixed effects' equations held at once: 32 MB."""

SMALL = 12
"""Number of fixed effects from which LAPACK factorises their equations one by one."""

Reduce = Callable[[Array], Reduced]
"""Eliminates the random effects at unconstrained coordinates (S, d), exactly or nearly so."""


def reduce_at(system: BatchSystem, coordinates: Coordinates, x: Array) -> Reduced:
    """Eliminate the random effects at unconstrained coordinates (S, d).

    Where the arithmetic breaks down the result is not finite.
    """
    with np.errstate(all="ignore"):
        return reduce_equations(system, coordinates.points(x).factors)


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
        log_det, dof = reduced.log_det_random, n
    else:
        prior = beta_prior(priors)
        lower, log_det_fixed = fixed_cholesky(plan, reduced.fixed, sigma, prior)
        rss = lower[p, p] ** 2
        log_det = reduced.log_det_random + log_det_fixed - 2.0 * products.basis.log_det_fixed
        if prior is not None:
            log_det = log_det + p * LOG_2PI - prior.log_det
        dof = n - p
    constants = dof * (LOG_2PI + 2.0 * np.log(sigma)) - products.log_weights
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
    value = np.asarray(priors.sigma.logpdf(points.sigma))
    for f, (sds, chols) in enumerate(zip(points.sds, points.chols, strict=True)):
        for i, prior in enumerate(priors.sd[f]):
            value = value + prior.logpdf(sds[:, i])
        for block, lkj in zip(priors.blocks[f], priors.cor[f], strict=True):
            if lkj is not None:
                rows = np.array(block)
                value = value + lkj.logpdf(chols[:, rows[:, None], rows])
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
