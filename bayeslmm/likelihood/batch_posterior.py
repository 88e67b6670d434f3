"""Log posterior density at many points at once, and the fixed effects given each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import (
    Structure,
    correlation_cholesky,
    correlation_coordinates,
    correlation_log_jacobian,
)
from bayeslmm.likelihood.batch import (
    BatchSystem,
    Reduced,
    batched_cholesky,
    reduce_equations,
    small_cholesky,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.log_posterior import LARGEST_LOG, beta_prior
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
LOG_2PI = float(np.log(2.0 * np.pi))

ENTRIES = 1 << 22
"""Entries of the fixed effects' equations held at once: 32 MB."""

SMALL = 12
"""Number of fixed effects from which LAPACK factorises their equations one by one."""

Reduce = Callable[[Array], Reduced]
"""Eliminates the random effects at unconstrained coordinates (S, d), exactly or nearly so."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Points:
    """A batch of covariance parameters.

    Attributes
    ----------
    sds : tuple of ndarray (S, k)
        Standard deviations per grouping factor.
    chols : tuple of ndarray (S, k, k)
        Cholesky factors of the correlations per grouping factor.
    sigma : ndarray (S,)
        Residual standard deviations.
    beta : ndarray (S, p)
        Fixed effects where they are not integrated out, else (S, 0).
    """

    sds: tuple[Array, ...]
    chols: tuple[Array, ...]
    sigma: Array
    beta: Array

    @property
    def factors(self) -> list[Array]:
        """Relative factors T = D chol(Omega) / sigma (S, k, k)."""
        return [
            sd[:, :, None] * chol / self.sigma[:, None, None]
            for sd, chol in zip(self.sds, self.chols, strict=True)
        ]


def points_from_unconstrained(structures: Sequence[Structure], x: Array) -> Points:
    """Covariance parameters at unconstrained coordinates (S, d)."""
    sds, chols = [], []
    start = 0
    for s in structures:
        logs = x[:, start : start + s.n_coefs]
        sds.append(np.exp(np.clip(logs, -LARGEST_LOG, LARGEST_LOG)))
        chols.append(correlation_cholesky(s, x[:, start + s.n_coefs : start + s.n_theta]))
        start += s.n_theta
    sigma = np.exp(np.clip(x[:, start], -LARGEST_LOG, LARGEST_LOG))
    return Points(sds=tuple(sds), chols=tuple(chols), sigma=sigma, beta=x[:, start + 1 :])


def unconstrained_from_points(
    structures: Sequence[Structure], points: Points, beta: Array
) -> Array:
    """Inverse of :func:`points_from_unconstrained`, with fixed effects (S, p or 0) at the end."""
    pieces = []
    for s, sds, chols in zip(structures, points.sds, points.chols, strict=True):
        pieces += [np.log(sds), np.array([correlation_coordinates(s, c) for c in chols])]
    return np.concatenate([*pieces, np.log(points.sigma)[:, None], beta], axis=1)


def reduce_at(system: BatchSystem, x: Array) -> Reduced:
    """Eliminate the random effects at unconstrained coordinates (S, d).

    Where the arithmetic breaks down the result is not finite.
    """
    points = points_from_unconstrained(system.plan.products.structures, x)
    with np.errstate(all="ignore"):
        return reduce_equations(system, points.factors)


def log_posterior_batch(plan: Plan, priors: Priors, reduce: Reduce, x: Array) -> Array:
    """Log density (S,) of the data and the unconstrained coordinates, Jacobian included.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    reduce : callable
        Eliminates the random effects.
    x : ndarray (S, d)
        Coordinates as in :func:`log_posterior_unconstrained`.

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
    structures = plan.products.structures
    points = points_from_unconstrained(structures, x)
    with np.errstate(all="ignore"):
        value = log_likelihood_batch(plan, priors, reduced, points)
        value = value + log_prior_batch(priors, points) + log_jacobian(structures, x)
    return np.where(np.isfinite(value), value, -np.inf)


def log_likelihood_batch(plan: Plan, priors: Priors, reduced: Reduced, points: Points) -> Array:
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


def log_prior_batch(priors: Priors, points: Points) -> Array:
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
        gamma = points.beta @ priors.centering.T
        for j, prior in enumerate(priors.beta):
            value = value + prior.logpdf(gamma[:, j])
    return value


def log_jacobian(structures: Sequence[Structure], x: Array) -> Array:
    """Log Jacobian (S,) of the parameters by the unconstrained coordinates."""
    total: Array = np.zeros(len(x))
    start = 0
    for s in structures:
        total = total + x[:, start : start + s.n_coefs].sum(axis=1)
        if s.pairs:
            z = x[:, start + s.n_coefs : start + s.n_theta]
            total = total + correlation_log_jacobian(s, z)
        start += s.n_theta
    return total + x[:, start]


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
