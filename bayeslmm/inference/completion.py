"""From unconstrained coordinates to the public variables of the posterior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.likelihood.batch import BatchSystem
from bayeslmm.likelihood.batch_draws import draw_random, normal_draws
from bayeslmm.likelihood.batch_posterior import (
    Points,
    Reduce,
    fixed_effects_at,
    points_from_unconstrained,
)
from bayeslmm.priors.record import Priors
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name, u_name

Array = NDArray[np.float64]


def complete(
    design: Design,
    priors: Priors,
    system: BatchSystem,
    reduce: Reduce,
    x: Array,
    rng: np.random.Generator,
    *,
    random_effects: bool = True,
) -> dict[str, Array]:
    """Public variables at unconstrained coordinates, with one exact draw of (beta, u) each.

    Parameters
    ----------
    design, priors : Design, Priors
        The model.
    system : BatchSystem
        Its cross-products.
    reduce : callable
        Eliminates the random effects.
    x : ndarray (S, d)
        Unconstrained coordinates.
    rng : numpy.random.Generator
        Source of randomness.
    random_effects : bool
        Whether u is drawn.

    Returns
    -------
    dict of str to ndarray (S, ...)
    """
    points = points_from_unconstrained(system.plan.products.structures, x)
    beta = points.beta
    if not priors.beta_sampled:
        noise = normal_draws(rng, design.p, len(x))
        beta = fixed_effects_at(system.plan, priors, reduce(x), points, noise)
    result = covariance_variables(design, points) | {BETA: beta}
    if not random_effects:
        return result
    effects = draw_random(system, points, beta, rng)
    for factor, u in zip(design.random, effects, strict=True):
        result[u_name(factor.key)] = u
    return result


def covariance_variables(design: Design, points: Points) -> dict[str, Array]:
    """Public variables that are functions of the covariance parameters."""
    result = {SIGMA: points.sigma}
    for factor, sds, chols in zip(design.random, points.sds, points.chols, strict=True):
        result[sd_name(factor.key)] = sds
        if factor.n_coefs > 1:
            result[cor_name(factor.key)] = chols @ chols.transpose(0, 2, 1)
    return result
