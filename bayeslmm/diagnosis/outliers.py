"""The largest residual and the largest random effects, tested as outliers.

What deviates most gets a shift of its own in the mean. That takes it out of what the rest of the
data say, and the test of the shift asks whether it belongs there. Bonferroni's inequality pays for
having looked for the largest; so far out it is nearly an equality.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.assessment.loo import RESAMPLE_K
from bayeslmm.assessment.resampled import Resampler
from bayeslmm.design.design import Design
from bayeslmm.diagnosis.standardised import StandardUnits, standard_units
from bayeslmm.inference.estimate import fit_likelihood
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.inference.pareto import smooth_weights
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors
from bayeslmm.results.estimate_tables import satterthwaite

Array = NDArray[np.float64]
Place = tuple[int, int] | None
"""A grouping factor and one of its coefficients; None for the rows."""

FEWEST = 3
"""Rows, or levels, from which on one can be out of line with the others."""

NAMED = 0.05
"""Chance that the largest of all deviations passes the limit beyond which cases are named."""

RESAMPLED = 200
"""Draws from the posterior without the rows of an outlier."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Candidate:
    """The row, or the level of a grouping factor, that deviates most.

    Attributes
    ----------
    place : tuple of int or None
        What it is one of.
    at : int
        Its number among them.
    count : int
        How many they are.
    far : ndarray of int
        Numbers of others that are far out too.
    values : ndarray (T,)
        Its deviation in standard units, by draw of the covariance parameters.
    log_sd : ndarray (T,)
        Log standard error of its shift in the mean, by draw, up to a constant.
    """

    place: Place
    at: int
    count: int
    far: NDArray[np.intp]
    values: Array
    log_sd: Array

    def check(self, design: Design) -> str:
        """Name of the check that it is tested by."""
        if self.place is None:
            return "largest residual"
        factor = design.random[self.place[0]]
        return f"largest random effect[{factor.name}, {factor.coefs[self.place[1]]}]"

    def label(self, design: Design, at: int) -> str:
        """Which row, with the levels it belongs to, or which level."""
        if self.place is not None:
            factor = design.random[self.place[0]]
            return f"{factor.name} {factor.levels[at]}"
        levels = ", ".join(f"{f.name} {f.levels[f.codes[at]]}" for f in design.random)
        return f"row {design.index[at]} ({levels})"

    def direction(self, design: Design) -> Array:
        """What its shift does to the rows (n,): a column that is zero outside it."""
        if self.place is None:
            return (np.arange(design.n) == self.at).astype(float)
        factor = design.random[self.place[0]]
        return np.where(factor.codes == self.at, factor.Z[:, self.place[1]], 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """Test of the largest deviation.

    Attributes
    ----------
    deviation : float
        In standard deviations of what the other data say of it.
    typical : float
        Median of the size of the largest such deviation under the model.
    p_value : float
        Bonferroni's.
    """

    deviation: float
    typical: float
    p_value: float


def deviations(units: StandardUnits) -> dict[Place, Array]:
    """Deviations (m,) and log standard errors of shifts (m,), stacked: (2, m), of each kind."""
    seen, log_sigma = units.observed(), np.log(units.sigma)
    found: dict[Place, Array] = {
        None: np.stack([seen.residuals[0], log_sigma - 0.5 * np.log(units.left)])
    }
    for f, (values, left) in enumerate(zip(seen.effects, units.effects_left, strict=True)):
        for c in range(left.shape[1]):
            found[f, c] = np.stack([values[0, :, c], log_sigma - 0.5 * np.log(left[:, c])])
    return found


def candidates(found: Sequence[Mapping[Place, Array]]) -> Iterator[Candidate]:
    """The largest of each kind, from the deviations at T draws."""
    for place in found[0]:
        values, log_sd = np.stack([draw[place] for draw in found], axis=1)
        known = np.isfinite(values).all(axis=0)
        count = int(known.sum())
        if count < FEWEST:
            continue
        size = np.where(known, np.abs(values.mean(axis=0)), 0.0)
        at = int(np.argmax(size))
        limit = stats.norm.isf(0.5 * NAMED / count)
        order = np.argsort(-size, kind="stable")
        yield Candidate(
            place=place,
            at=at,
            count=count,
            far=order[1 : max(1, int(np.sum(size > limit)))],
            values=values[:, at],
            log_sd=log_sd[:, at],
        )


def shift_test(design: Design, candidate: Candidate) -> Outlier:
    """Test a candidate by REML with its shift among the fixed effects: Satterthwaite's t test.

    Given the ratios of the variances the t test is exact; the degrees of freedom are for these
    being estimated.

    Raises
    ------
    DataError
        If the likelihood has no maximum.

    References
    ----------
    Cook, Weisberg (1982), Residuals and influence in regression, section 2.2, for the shift; Haslett
    and Hayes (1998), doi:10.1111/1467-9868.00120, with correlated responses.
    """
    columns = np.column_stack([design.X, candidate.direction(design)])
    fit = fit_likelihood(marginal_system(replace(design, X=columns)), "REML")
    deviation = float(fit.beta[-1] / np.sqrt(fit.vcov[-1, -1]))
    df = satterthwaite(fit, np.eye(len(fit.beta))[-1])
    tail = float(stats.t.sf(abs(deviation), df))
    return Outlier(
        deviation=deviation,
        typical=float(stats.t.isf(_typical_tail(candidate.count), df)),
        p_value=min(1.0, 2.0 * candidate.count * tail),
    )


def left_out_test(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    candidate: Candidate,
    rng: np.random.Generator,
) -> Outlier:
    """Test a candidate by its predictive distribution given all other data.

    Draws of the covariance parameters are weighted as if they had not seen the candidate. Where
    it moves them too much for that, they are sampled anew without its rows if that is cheap.
    """
    values = candidate.values
    log_weights, k = smooth_weights(0.5 * values**2 + candidate.log_sd)
    if k > RESAMPLE_K:
        fresh = _without(design, plan, priors, joint, candidate, rng)
        if fresh is not None:
            values, log_weights = fresh, np.full(len(fresh), -np.log(len(fresh)))
    weights = np.exp(log_weights)
    tail = min(float(weights @ stats.norm.sf(values)), float(weights @ stats.norm.cdf(values)))
    return Outlier(
        deviation=float(weights @ values),
        typical=float(stats.norm.isf(_typical_tail(candidate.count))),
        p_value=min(1.0, 2.0 * candidate.count * tail),
    )


def _without(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    candidate: Candidate,
    rng: np.random.Generator,
) -> Array | None:
    """Deviations at draws from the posterior without the rows of a candidate."""
    resampler = Resampler(design, plan, priors, joint, rng)
    rows = np.flatnonzero(candidate.direction(design))
    points = resampler.draws(rows, RESAMPLED) if resampler.affordable else None
    if points is None:
        return None
    beta = points.beta if priors.beta_sampled else np.zeros((RESAMPLED, design.p))
    fresh = replace(joint, shape=(1, RESAMPLED), beta=beta, points=points)
    prior = None if priors.beta_sampled else beta_prior(priors)
    values = [
        deviations(units)[candidate.place][0, candidate.at]
        for _, units in standard_units(design, plan, prior, fresh, given_beta=priors.beta_sampled)
    ]
    return np.array(values)


def _typical_tail(count: int) -> float:
    """Tail probability of the median of the largest of so many independent deviations."""
    return float(-0.5 * np.expm1(np.log(0.5) / count))
