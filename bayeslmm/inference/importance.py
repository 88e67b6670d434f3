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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

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

SAFEGUARD_SHARE = 0.1
SAFEGUARD_SCALE = 1.3
SAFEGUARD_DF = 3.0

REMAINING_CORRELATION = 0.01
"""Correlation of successive kept states that thinning aims at."""

START = 100
"""Proposals of each chain from which its first state is resampled by weight."""

LONGEST_STAY = 8.0
"""Kept states for which a chain may stay at the draw of largest weight."""

TOO_LONG = 20
"""Same kept states in a row at which the chains are run again with more proposals."""

MAX_THIN = 100


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Importance:
    """Importance density: a mixture of t distributions of transformed coordinates, and a safeguard.

    The safeguard is a product of univariate t distributions. Where a standard deviation can be
    zero the target has a long arm along one axis, which a product covers and an elliptical
    density does not.

    Attributes
    ----------
    warp : Warp
        The transformation.
    mixture : StudentMixture
        Distribution of the transformed coordinates.
    centre, scale : ndarray (d,)
        Location and scale of the safeguard.
    """

    warp: Warp
    mixture: StudentMixture
    centre: Array
    scale: Array

    def logpdf(self, x: Array) -> Array:
        """Log density (S,) at points (S, d)."""
        y, log_jacobian = self.warp.forward(x)
        nu = SAFEGUARD_DF
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi)
        z = (y - self.centre) / self.scale
        parts = constant - np.log(self.scale) - 0.5 * (nu + 1) * np.log1p(z**2 / nu)
        safe = np.sum(parts, axis=1) + np.log(SAFEGUARD_SHARE)
        main = self.mixture.logpdf(y) + np.log1p(-SAFEGUARD_SHARE)
        return np.logaddexp(main, safe) + log_jacobian

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Independent draws (size, d)."""
        y = self.mixture.sample(rng, size)
        safe = self.centre + self.scale * rng.standard_t(SAFEGUARD_DF, y.shape)
        chosen = rng.random(size) < SAFEGUARD_SHARE
        return self.warp.inverse(np.where(chosen[:, None], safe, y))


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
    """

    density: Importance
    efficiency: float
    largest_weight: float


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
    proposals : ndarray (n, d)
        All proposals.
    values : ndarray (n,)
        Log target density at them.
    log_proposal : ndarray (n,)
        Log proposal density at them.
    thin : int
        Proposals per kept state.
    """

    x: Array
    log_density: Array
    acceptance: Array
    proposals: Array
    values: Array
    log_proposal: Array
    thin: int

    @property
    def log_ratios(self) -> Array:
        """Log target over proposal density (n,): independent importance ratios."""
        return self.values - self.log_proposal


class Adapter:
    """Fits an importance density to a target, round by round.

    Parameters
    ----------
    target : callable
        Log density.
    centre : ndarray (d,)
        A point in the middle.
    root : ndarray (d, d)
        Lower Cholesky factor of the approximate covariance matrix.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(
        self, target: LogDensity, centre: Array, root: Array, rng: np.random.Generator
    ) -> None:
        self.target = target
        self.rng = rng
        self.df = 5.0 + len(centre) / 2
        self.size = 1000 + 250 * len(centre)
        self.points: list[Array] = []
        self.values: list[Array] = []
        self.used: list[Importance] = []
        start = [(0.6, student(centre, root, self.df)), (0.4, student(centre, 2.0 * root, 3.0))]
        self.density = Importance(
            warp=identity_warp(len(centre)),
            mixture=combine(start),
            centre=centre,
            scale=np.linalg.norm(root, axis=1),
        )

    def adapt(self) -> Proposal:
        """Sample and refit until the density fits or refits no longer help."""
        best = Proposal(density=self.density, efficiency=0.0, largest_weight=np.inf)
        for number in range(MAX_ROUNDS):
            if number:
                self.density = self._refit()
            x = self.density.sample(self.rng, self.size)
            value = self.target(x)
            ratios = value - self.density.logpdf(x)
            efficiency = effective_fraction(ratios)
            gained = efficiency > ENOUGH_GAIN * best.efficiency
            if efficiency > best.efficiency:
                largest = float(np.exp(np.max(ratios) - log_mean(ratios)[0]))
                best = Proposal(density=self.density, efficiency=efficiency, largest_weight=largest)
            self._record(x, value)
            if efficiency > GOOD_EFFICIENCY or (not gained and best.efficiency > ENOUGH_EFFICIENCY):
                break
        return best

    def learn(self, x: Array, value: Array) -> None:
        """Refit the density with draws of it (S, d) and the target's log density at them (S,)."""
        self._record(x, value)
        self.density = self._refit()

    def _record(self, x: Array, value: Array) -> None:
        self.points.append(x)
        self.values.append(value)
        self.used.append(self.density)

    def _refit(self) -> Importance:
        """Density fitted to the draws of all rounds."""
        x, weights = self._equally_weighted()
        warp = fit_warp(x, weights)
        y, _ = warp.forward(x)
        mean, root = weighted_root(y, weights)
        components = FEWEST_COMPONENTS + 2 * len(self.used) - 2
        return Importance(
            warp=warp,
            mixture=fit_mixture(y, weights, components, self.df, self.rng),
            centre=mean,
            scale=SAFEGUARD_SCALE * np.linalg.norm(root, axis=1),
        )

    def _equally_weighted(self) -> tuple[Array, Array]:
        """Resample the draws of all rounds by their weight under the mixture of all proposals."""
        x, value = np.concatenate(self.points), np.concatenate(self.values)
        shares = np.array([len(points) for points in self.points]) / len(x)
        parts = [np.log(share) + q.logpdf(x) for share, q in zip(shares, self.used, strict=True)]
        log_weights = value - logsumexp(parts, axis=0)
        weights = np.exp(log_weights - logsumexp(log_weights))
        # No single draw may dominate a fit: truncation as in Ionides (2008), section 2.
        weights = np.minimum(weights, len(x) ** -0.5)
        weights /= weights.sum()
        size = min(FIT_POINTS, len(x))
        places = (self.rng.random() + np.arange(size)) / size
        chosen = np.searchsorted(np.cumsum(weights), places).clip(max=len(x) - 1)
        return x[chosen], np.full(size, 1.0 / size)


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
    run = _run(target, proposal, chains, draws, thin, rng)
    while longest_stay(run) > TOO_LONG and thin < MAX_THIN:
        thin = min(4 * thin, MAX_THIN)
        run = _run(target, proposal, chains, draws, thin, rng)
    return run


def _run(
    target: LogDensity,
    proposal: Proposal,
    chains: int,
    draws: int,
    thin: int,
    rng: np.random.Generator,
) -> Chains:
    per_chain = draws * thin + START
    x = proposal.density.sample(rng, chains * per_chain)
    value = target(x)
    log_proposal = proposal.density.logpdf(x)
    log_ratios = value - log_proposal
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
        proposals=x,
        values=value,
        log_proposal=log_proposal,
        thin=thin,
    )


def longest_stay(run: Chains) -> int:
    """Largest number of successive kept states that are the same."""
    longest = 1
    for chain in run.log_density:
        changes = np.flatnonzero(np.diff(chain, prepend=np.nan, append=np.nan))
        longest = max(longest, int(np.max(np.diff(changes))))
    return longest


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


def largest_share(log_ratios: Array) -> float:
    """Largest importance ratio over their sum."""
    return float(np.exp(np.max(log_ratios) - logsumexp(log_ratios)))


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
