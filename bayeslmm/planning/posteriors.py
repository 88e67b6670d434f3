"""Posterior answers to simulated data sets: probabilities and intervals of effects."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from bayeslmm.data.design import Design
from bayeslmm.effects.hypothesis import conditional_moments
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import log_posterior_batch, reduce_at
from bayeslmm.planning.simulations import Analysis, Answer, Setup
from bayeslmm.priors.defaults import resolve_priors
from bayeslmm.sampling.collapsed import find_mode, gaussian_root
from bayeslmm.sampling.pareto import smooth_weights

Array = NDArray[np.float64]

POINTS = 256
"""Covariance parameters that a posterior is averaged over."""

FIGURES = ("mean", "sd", "probability", "interval_low", "interval_high")

FAR = 12.0
"""Standard deviations from the mean within which quantiles are sought."""


def posteriors_of(
    setup: Setup, priors: Literal["default", "flat"] | Mapping[str, Any] | None, prob: float
) -> Analysis:
    """Analysis that gives the posterior of each target: :data:`FIGURES`.

    The covariance parameters are drawn from the Laplace approximation of their posterior and
    weighted by smoothed importance ratios; given them, effects are normal, exactly.

    Parameters
    ----------
    setup : Setup
        The study.
    priors : None, str or mapping
        Priors of the analysis, resolved for each data set.
    prob : float
        Coverage of the intervals, equal-tailed.
    """

    def analyse(design: Design, plan: Plan, rng: np.random.Generator) -> Answer:
        model = Model(design, resolve_priors(design, priors))
        model.__dict__["system"] = plan
        if model.priors.beta_sampled:
            raise SamplingError(
                "Assurance is there for normal or flat priors of the fixed effects: others cannot "
                "be integrated out."
            )
        with single_threaded():
            mode = find_mode(model)
            coordinates = model.priors.coordinates
            noise = rng.standard_normal((POINTS, len(mode.x)))
            x = coordinates.complete(mode.x + noise @ gaussian_root(mode).T)
            reduce = partial(reduce_at, plan, coordinates)
            density = log_posterior_batch(plan, model.priors, reduce, x)
        weights = np.exp(smooth_weights(density + 0.5 * np.sum(noise**2, axis=1))[0])
        points = coordinates.to_user(coordinates.points(x))
        values = []
        for target in setup.targets:
            mean, sd = conditional_moments(model, points, target.weights[0])
            values.append(_mixture(mean + target.constant, sd, weights, prob, target.relation))
        return Answer(np.array(values))

    return analyse


def _mixture(
    mean: Array, sd: Array, weights: Array, prob: float, relation: str
) -> tuple[float, ...]:
    """Mean, sd, probability of more (or less) than zero, and interval of a normal mixture."""
    centre = float(weights @ mean)
    spread = float(np.sqrt(weights @ (sd**2 + (mean - centre) ** 2)))
    above = float(weights @ ndtr(mean / sd))

    def quantile(q: float) -> float:
        low, high = centre - FAR * spread, centre + FAR * spread
        return float(brentq(lambda v: float(weights @ ndtr((v - mean) / sd)) - q, low, high))

    tail = 0.5 * (1.0 - prob)
    shown = 1.0 - above if relation == "<" else above
    return centre, spread, shown, quantile(tail), quantile(1.0 - tail)
