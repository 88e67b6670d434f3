"""Posterior means, sds and quantiles of random effects without drawing them.

Given the covariance parameters, a random effect is normal with known moments, so its posterior is a
mixture of normal distributions over draws of these parameters (Rao-Blackwell). A few dozen draws
suffice where there are many levels, because the components then hardly differ; with fewer levels
more are affordable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.likelihood.batch import run_parallel
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise, to_working_beta
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
Short = NDArray[np.float32]

PROBABILITIES = (0.025, 0.055, 0.5, 0.945, 0.975)
"""Probabilities of the stored quantiles."""

WORK = 1 << 21
"""Random effects times draws of the covariance parameters that are mixed, where that is enough."""

STATES = (64, 1000)
"""Fewest and most draws that are mixed."""

LARGEST_TABLE = 1 << 27
"""Most moments held in memory at once, 0.5 GB in single precision, at the cost of fewer draws."""

CHUNK = 1 << 14
"""Random effects whose quantiles are worked out at once."""

NEWTON_STEPS = 3


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EffectSummary:
    """Posterior of the random effects of one grouping factor.

    Attributes
    ----------
    mean, sd : ndarray (J, k)
        Posterior means and standard deviations.
    quantiles : ndarray (n, J, k)
        Posterior quantiles at :data:`PROBABILITIES`.
    """

    mean: Array
    sd: Array
    quantiles: Array


def summarise_effects(plan: Plan, priors: Priors, points: AnyPoints) -> list[EffectSummary]:
    """Posterior summaries of all random effects.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    points : AnyPoints
        Draws of the covariance parameters; some dozens, spread evenly over them, are used.

    Returns
    -------
    list of EffectSummary
        One per grouping factor, on the scale of the response.
    """
    total = sum(gram.shape[0] * gram.shape[1] for gram in plan.products.random)
    count = min(int(np.clip(WORK // total, *STATES)), max(LARGEST_TABLE // (2 * total), 24))
    states = np.linspace(0, len(points.sigma) - 1, min(count, len(points.sigma))).astype(int)
    reference = _moments(plan, priors, points, int(states[0]))
    shape = (len(states),)
    shifts = [np.empty(shape + mean.shape, dtype=np.float32) for mean, _ in reference]
    scales = [np.empty(shape + mean.shape, dtype=np.float32) for mean, _ in reference]

    def fill(place: int) -> None:
        moments = _moments(plan, priors, points, int(states[place]))
        for f, ((mean, sd), (mean0, sd0)) in enumerate(zip(moments, reference, strict=True)):
            shifts[f][place] = (mean - mean0) / sd0
            scales[f][place] = sd / sd0

    run_parallel(fill, range(len(states)))
    parts = zip(reference, shifts, scales, strict=True)
    return [_mixture(mean, sd, shift, scale) for (mean, sd), shift, scale in parts]


def _moments(
    plan: Plan, priors: Priors, points: AnyPoints, state: int
) -> list[tuple[Array, Array]]:
    """Means and standard deviations (J, k) of the random effects given one draw."""
    sigma = float(points.sigma[state])
    factors = [t[state] for t in points.factors]
    beta = None
    if priors.beta_sampled:
        beta = to_working_beta(plan.products, points.beta[state])
    fact = factorise(plan, factors, beta_prior(priors), sigma)
    modes, _ = conditional_modes(fact, beta)
    covariances = conditional_covariances(fact, given_beta=priors.beta_sampled)
    result = []
    for mode, cov, basis in zip(modes, covariances, plan.products.basis.random, strict=True):
        variance = np.einsum("ka,jab,kb->jk", basis, cov, basis)
        sd = sigma * np.sqrt(np.maximum(variance, 0.0))
        result.append((mode @ basis.T, np.maximum(sd, np.finfo(float).tiny)))
    return result


def _mixture(mean: Array, sd: Array, shift: Short, scale: Short) -> EffectSummary:
    """Summaries of equal mixtures; `shift` and `scale` (M, J, k) are relative to `mean`, `sd`."""
    flat_shift = shift.reshape(len(shift), -1)
    flat_scale = scale.reshape(len(scale), -1)
    size = flat_shift.shape[1]
    moments = np.empty((2, size))
    quantiles = np.empty((len(PROBABILITIES), size))

    def fill(start: int) -> None:
        rows = slice(start, start + CHUNK)
        m, s = flat_shift[:, rows].astype(float), flat_scale[:, rows].astype(float)
        centre = m.mean(axis=0)
        spread = np.sqrt(np.mean(s**2, axis=0) + np.var(m, axis=0))
        moments[:, rows] = centre, spread
        for i, probability in enumerate(PROBABILITIES):
            start_at = centre + spread * ndtri(probability)
            quantiles[i, rows] = _mixture_quantile(m, s, probability, start_at)

    run_parallel(fill, range(0, size, CHUNK))
    centre, spread = moments.reshape(2, *mean.shape)
    return EffectSummary(
        mean=mean + sd * centre,
        sd=sd * spread,
        quantiles=mean + sd * quantiles.reshape(-1, *mean.shape),
    )


def _mixture_quantile(means: Array, sds: Array, probability: float, start: Array) -> Array:
    """Quantiles of equal mixtures of M normal distributions (M, n), by Newton's method."""
    quantile = start
    for _ in range(NEWTON_STEPS):
        z = (quantile - means) / sds
        excess = ndtr(z).mean(axis=0) - probability
        density = np.mean(np.exp(-0.5 * z**2) / sds, axis=0) / np.sqrt(2.0 * np.pi)
        quantile = quantile - excess / np.maximum(density, 1e-12)
    return quantile
