"""From unconstrained coordinates to the public variables of the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points, WorkingPoints
from bayeslmm.data.design import Design
from bayeslmm.likelihood.batch import BatchSystem, Reduced
from bayeslmm.likelihood.batch_posterior import Reduce, fixed_effects_at
from bayeslmm.likelihood.draws import draw_random, normal_draws
from bayeslmm.likelihood.log_posterior import beta_prior
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
    points = priors.coordinates.points(x)
    reduced = None if priors.beta_sampled else reduce(x)
    beta = draw_beta(priors, system, reduced, points, rng)
    result = covariance_variables(design, priors.coordinates.to_user(points)) | {BETA: beta}
    if random_effects:
        result |= effect_variables(design, draw_random(system, points, beta, rng))
    return result


def draw_beta(
    priors: Priors,
    system: BatchSystem,
    reduced: Reduced | None,
    points: WorkingPoints,
    rng: np.random.Generator,
) -> Array:
    """Fixed effects (S, p) at each point: those sampled, or one exact draw where it is reduced."""
    if reduced is None:
        return points.beta
    noise = normal_draws(rng, system.plan.products.n_fixed, len(points.sigma))
    return fixed_effects_at(system.plan, beta_prior(priors), reduced, points.sigma, noise)


def effect_variables(design: Design, effects: Sequence[Array]) -> dict[str, Array]:
    """Public variables of the random effects, one array per grouping factor."""
    names = (u_name(factor.key) for factor in design.random)
    return dict(zip(names, effects, strict=True))


def as_chains(variables: Mapping[str, Array], chains: int, draws: int) -> dict[str, Array]:
    """Arrays (chain * draw, ...) as (chain, draw, ...)."""
    return {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in variables.items()}


def covariance_variables(design: Design, points: Points) -> dict[str, Array]:
    """Public variables that are functions of the covariance parameters."""
    result = {SIGMA: points.sigma}
    for factor, sds, chols in zip(design.random, points.sds, points.chols, strict=True):
        result[sd_name(factor.key)] = sds
        if factor.n_coefs > 1:
            result[cor_name(factor.key)] = chols @ chols.transpose(0, 2, 1)
    return result
