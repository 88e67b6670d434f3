"""Adaptive importance sampling and the chains made of its draws.

A mixture of t distributions is refitted to weighted draws until it is close to the target. All
draws of all rounds are kept, with the mixture of all proposals as their density (adaptive multiple
importance sampling). Fresh draws of the last proposal then feed independence Metropolis-Hastings
chains, so that R-hat, effective sample size and Monte Carlo error mean what they always mean.

References
----------
Cornuet, Marin, Mira, Robert (2012), doi:10.1111/j.1467-9469.2011.00756.x.
Tierney (1994), doi:10.1214/aos/1176325750, section 2.3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayeslmm.inference.mixture import (
    StudentMixture,
    combine,
    fit_mixture,
    student,
    weighted_root,
)
from bayeslmm.inference.warp import Warp, fit_warp, identity_warp

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]
"""Log density, up to a constant, at points (S, d)."""

MAX_ROUNDS = 10
FEWEST_COMPONENTS = 3
"""Components of the first refit; every further one has two more."""

FIT_POINTS = 4000
"""Most draws that a refit looks at."""
GOOD_EFFICIENCY = 0.8
"""Effective fraction of a round at which the proposal is not refitted any more."""

ENOUGH_EFFICIENCY = 0.5
"""Effective fraction that will do where refits no longer help."""

ENOUGH_GAIN = 1.03
"""Ratio of effective fractions below which another refit is not worth its draws."""

DEFENSIVE_SHARE = 0.1
DEFENSIVE_SCALE = 2.0
DEFENSIVE_DF = 3.0

REMAINING_CORRELATION = 0.05
"""Correlation of successive kept states that thinning aims at."""

LONGEST_STAY = 8.0
"""Kept states for which a chain may stay at the draw of largest weight."""

MAX_THIN = 40


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Importance:
    """Mixture of t distributions of transformed coordinates.

    Attributes
    ----------
    warp : Warp
        The transformation.
    mixture : StudentMixture
        Distribution of the transformed coordinates.
    """

    warp: Warp
    mixture: StudentMixture

    def logpdf(self, x: Array) -> Array:
        """Log density (S,) at points (S, d)."""
        y, log_jacobian = self.warp.forward(x)
        return self.mixture.logpdf(y) + log_jacobian

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Independent draws (size, d)."""
        return self.warp.inverse(self.mixture.sample(rng, size))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Proposal:
    """An importance density and how well it fits.

    Attributes
    ----------
    density : Importance
        The density.
    efficiency : float
        Effective sample size over the number of draws in its round.
    largest_weight : float
        Largest importance ratio in its round over their mean.
    evaluations : int
        Evaluations of the target so far.
    """

    density: Importance
    efficiency: float
    largest_weight: float
    evaluations: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chains:
    """Independence Metropolis-Hastings chains.

    Attributes
    ----------
    x : ndarray (chain, draw, d)
        States.
    log_density : ndarray (chain, draw)
        Log target density at them.
    acceptance : ndarray (chain, draw)
        Share of the proposals behind each state that were accepted.
    log_ratios : ndarray (n,)
        Log target over proposal density of all proposals: independent importance ratios.
    thin : int
        Proposals per kept state.
    """

    x: Array
    log_density: Array
    acceptance: Array
    log_ratios: Array
    thin: int


def adapt(target: LogDensity, mode: Array, root: Array, rng: np.random.Generator) -> Proposal:
    """Fit an importance density, starting from a Gaussian approximation.

    Parameters
    ----------
    target : callable
        Log density.
    mode : ndarray (d,)
        A point in the middle.
    root : ndarray (d, d)
        Lower Cholesky factor of the approximate covariance matrix.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Proposal
    """
    d = len(mode)
    size, df = 1000 + 250 * d, 5.0 + d / 2
    first = combine([(0.6, student(mode, root, df)), (0.4, student(mode, 2.0 * root, 3.0))])
    density = Importance(warp=identity_warp(d), mixture=first)
    best = Proposal(density=density, efficiency=0.0, largest_weight=np.inf, evaluations=0)
    points: list[Array] = []
    values: list[Array] = []
    used: list[Importance] = []
    for _ in range(MAX_ROUNDS):
        x = density.sample(rng, size)
        points.append(x)
        values.append(target(x))
        used.append(density)
        ratios = values[-1] - density.logpdf(x)
        efficiency = effective_fraction(ratios)
        gained = efficiency > ENOUGH_GAIN * best.efficiency
        if efficiency > best.efficiency:
            largest = float(np.exp(np.max(ratios) - log_mean(ratios)[0]))
            best = replace(best, density=density, efficiency=efficiency, largest_weight=largest)
        if efficiency > GOOD_EFFICIENCY or (not gained and best.efficiency > ENOUGH_EFFICIENCY):
            break
        density = _refit(points, values, used, df, rng)
    return replace(best, evaluations=size * len(used))


def _refit(
    points: list[Array],
    values: list[Array],
    used: list[Importance],
    df: float,
    rng: np.random.Generator,
) -> Importance:
    """Density fitted to the draws of all rounds, with a wide component for the tails."""
    x, value = np.concatenate(points), np.concatenate(values)
    density = logsumexp([m.logpdf(x) for m in used], axis=0, b=1.0 / len(used))
    log_weights = value - density
    weights = np.exp(log_weights - logsumexp(log_weights))
    # No single draw may dominate a fit: truncation as in Ionides (2008), section 2.
    weights = np.minimum(weights, np.sqrt(np.mean(weights) / len(weights)) + np.mean(weights))
    weights /= weights.sum()
    # Systematic resampling: equal weights, and a bounded number of points to fit.
    size = min(FIT_POINTS, len(x))
    places = (rng.random() + np.arange(size)) / size
    x = x[np.searchsorted(np.cumsum(weights), places).clip(max=len(x) - 1)]
    weights = np.full(size, 1.0 / size)
    warp = fit_warp(x, weights)
    y, _ = warp.forward(x)
    narrow = fit_mixture(y, weights, FEWEST_COMPONENTS + 2 * len(used) - 2, df, rng)
    mean, root = weighted_root(y, weights)
    wide = student(mean, DEFENSIVE_SCALE * root, DEFENSIVE_DF)
    mixture = combine([(1.0 - DEFENSIVE_SHARE, narrow), (DEFENSIVE_SHARE, wide)])
    return Importance(warp=warp, mixture=mixture)


def run_chains(
    target: LogDensity, proposal: Proposal, chains: int, draws: int, rng: np.random.Generator
) -> Chains:
    """Run independence Metropolis-Hastings chains over fresh draws of a proposal.

    Parameters
    ----------
    target : callable
        Log density.
    proposal : Proposal
        The importance density.
    chains, draws : int
        Size of the result.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Chains
    """
    thin = thinning(proposal)
    per_chain = draws * thin + START
    x = proposal.density.sample(rng, chains * per_chain)
    value = target(x)
    log_ratios = value - proposal.density.logpdf(x)
    shape = (chains, per_chain)
    log_uniform = np.log(rng.random(shape))
    states = np.array(
        [
            _independence_chain(ratios, uniforms, rng)
            for ratios, uniforms in zip(log_ratios.reshape(shape), log_uniform, strict=True)
        ]
    )
    moved = np.diff(states, axis=1, prepend=-1) != 0
    kept = states[:, START + thin - 1 :: thin]
    acceptance = moved[:, START:].reshape(chains, draws, thin).mean(axis=2)
    index = kept + per_chain * np.arange(chains)[:, None]
    return Chains(
        x=x[index],
        log_density=value[index],
        acceptance=acceptance,
        log_ratios=log_ratios,
        thin=thin,
    )


START = 100
"""Proposals of each chain from which its first state is resampled by weight."""


def thinning(proposal: Proposal) -> int:
    """Proposals per kept state that leave successive states nearly uncorrelated.

    Two things make a chain stay: rejections at the average rate, and states of large weight, which
    stay for about as many proposals as their weight is times the mean.
    """
    rejection = min(max(1.0 - proposal.efficiency, 0.02), 0.98)
    typical = np.log(REMAINING_CORRELATION) / np.log(rejection)
    return int(np.clip(np.ceil(max(typical, proposal.largest_weight / LONGEST_STAY)), 1, MAX_THIN))


def _independence_chain(
    log_ratios: Array, log_uniform: Array, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Positions of the states of one chain among its proposals."""
    weights = np.exp(log_ratios[:START] - np.max(log_ratios[:START]))
    current = int(rng.choice(START, p=weights / weights.sum()))
    ratios, uniforms = log_ratios.tolist(), log_uniform.tolist()
    states = np.empty(len(ratios), dtype=np.intp)
    states[:START] = current
    at = ratios[current]
    for i in range(START, len(ratios)):
        if uniforms[i] < ratios[i] - at:
            current, at = i, ratios[i]
        states[i] = current
    return states


def effective_fraction(log_ratios: Array) -> float:
    """Effective sample size of importance ratios over their number."""
    if not np.any(np.isfinite(log_ratios)):
        return 0.0
    weights = np.exp(log_ratios - np.max(log_ratios))
    return float(weights.sum() ** 2 / np.sum(weights**2) / len(weights))


def log_mean(log_ratios: Array) -> tuple[float, float]:
    """Log of the mean ratio and its Monte Carlo standard error."""
    top = np.max(log_ratios)
    weights = np.exp(log_ratios - top)
    mean = weights.mean()
    error = weights.std(ddof=1) / np.sqrt(len(weights)) / mean
    return float(top + np.log(mean)), float(error)
