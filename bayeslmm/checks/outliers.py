"""The largest residual, tested as an outlier, and which rows and levels deviate most.

The row that deviates most gets a shift of its own in the mean. That takes it out of what the rest
of the data say, and the test of the shift asks whether it belongs there. Bonferroni's inequality
pays for having looked for the largest; so far out it is nearly an equality.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.loo import RESAMPLE_K
from bayeslmm.checks.resampled import Resampler
from bayeslmm.checks.standardised import standard_units
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import smooth_weights
from bayeslmm.summaries.estimate_tables import satterthwaite

Array = NDArray[np.float64]

NAMED = 0.05
"""Chance that the largest of all deviations passes the limit beyond which others are named."""

RESAMPLED = 200
"""Draws from the posterior without an outlier."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Extreme:
    """What deviates most, among rows or levels.

    Attributes
    ----------
    at : int
        Its number among them.
    count : int
        How many they are.
    far : tuple of int
        Numbers of others that are far out too.
    values : ndarray (T,)
        Its deviation in standard units, by draw of the covariance parameters.
    """

    at: int
    count: int
    far: tuple[int, ...]
    values: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """Test of the largest residual.

    Attributes
    ----------
    deviation : float
        In standard deviations of what the other data say of the row.
    typical : float
        Median of the size of the largest such deviation under the model.
    p_value : float
        Bonferroni's.
    """

    deviation: float
    typical: float
    p_value: float


def extreme(values: Array) -> Extreme | None:
    """The largest of deviations (T, m) in mean over draws; None where there is none."""
    known = np.isfinite(values).all(axis=0)
    if not known.any():
        return None
    size = np.where(known, np.abs(values.mean(axis=0)), 0.0)
    order = np.argsort(-size, kind="stable")
    limit = stats.norm.isf(0.5 * NAMED / known.sum())
    return Extreme(
        at=int(order[0]),
        count=int(known.sum()),
        far=tuple(int(i) for i in order[1 : np.sum(size > limit)]),
        values=values[:, order[0]],
    )


def shift_test(design: Design, row: Extreme) -> Outlier:
    """Test a row by REML with its shift among the fixed effects: Satterthwaite's t test.

    Given the ratios of the variances the t test is exact; the degrees of freedom are for these
    being estimated.

    Raises
    ------
    DataError
        If the likelihood has no maximum.

    References
    ----------
    Cook, Weisberg (1982), Residuals and influence in regression, section 2.2, for the shift.
    Haslett, Hayes (1998), doi:10.1111/1467-9868.00120, for correlated responses.
    """
    shift = (np.arange(design.n) == row.at).astype(float)
    wider = replace(design, X=np.column_stack([design.X, shift]))
    fit = fit_likelihood(marginal_system(wider), "REML")
    deviation = float(fit.beta[-1] / np.sqrt(fit.vcov[-1, -1]))
    df = satterthwaite(fit, np.eye(len(fit.beta))[-1])
    return Outlier(
        deviation=deviation,
        typical=float(stats.t.isf(_typical_tail(row.count), df)),
        p_value=min(1.0, 2.0 * row.count * float(stats.t.sf(abs(deviation), df))),
    )


def left_out_test(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    row: Extreme,
    log_sd: Array,
    rng: np.random.Generator,
) -> Outlier:
    """Test a row by its predictive distribution given all others.

    Parameters
    ----------
    design, plan, priors : Design, Plan, Priors
        The model.
    joint : JointDraws
        Its posterior draws.
    row : Extreme
        The row, at T draws of the covariance parameters. These are weighted as if they had not seen
        it. Where it moves them too much for that, they are sampled anew without it if that is
        cheap; where not, the p-value is too large if anything.
    log_sd : ndarray (T,)
        Log standard deviations of its predictive distributions.
    rng : numpy.random.Generator
        Source of randomness.
    """
    values = row.values
    log_weights, k = smooth_weights(0.5 * values**2 + log_sd)
    if k > RESAMPLE_K:
        fresh = _without(design, plan, priors, joint, row.at, rng)
        if fresh is not None:
            values, log_weights = fresh, np.full(len(fresh), -np.log(len(fresh)))
    weights = np.exp(log_weights)
    tail = min(float(weights @ stats.norm.sf(values)), float(weights @ stats.norm.cdf(values)))
    return Outlier(
        deviation=float(weights @ values),
        typical=float(stats.norm.isf(_typical_tail(row.count))),
        p_value=min(1.0, 2.0 * row.count * tail),
    )


def _without(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    at: int,
    rng: np.random.Generator,
) -> Array | None:
    """Deviations of a row at draws from the posterior without it."""
    resampler = Resampler(design, plan, priors, joint, rng)
    points = resampler.draws(np.array([at]), RESAMPLED) if resampler.affordable else None
    if points is None:
        return None
    beta = points.beta if priors.beta_sampled else np.zeros((RESAMPLED, design.p))
    fresh = replace(joint, shape=(1, RESAMPLED), beta=beta, points=points)
    prior = None if priors.beta_sampled else beta_prior(priors)
    units = standard_units(design, plan, prior, fresh, given_beta=priors.beta_sampled)
    return np.array([unit.observed().residuals[0, at] for _, unit in units])


def _typical_tail(count: int) -> float:
    """Tail probability of the median of the largest of so many independent deviations."""
    return float(-0.5 * np.expm1(np.log(0.5) / count))
