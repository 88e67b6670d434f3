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
from scipy.special import gammaln, logsumexp

from bayeslmm.exceptions import SamplingError
from bayeslmm.sampling.mixture import (
    StudentMixture,
    Warp,
    combine,
    fit_mixture,
    fit_warp,
    identity_warp,
    student,
    weighted_root,
)
from bayeslmm.sampling.pareto import (
    MAX_PARETO_K,
    effective_fraction,
    largest_share,
    log_mean,
    pareto_k,
)

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]
"""Log density, up to a constant, at points (S, d)."""

MAX_ROUNDS = 10
FEWEST_COMPONENTS = 3
"""Components of the first refit; every further one has two more."""

FIT_POINTS = 4000
"""Most draws that a refit looks at, unless eight per parameter of a component are more."""

POINTS_PER_PARAMETER = 8
"""Fewest effective draws per parameter of a component: noise in scale matrices costs efficiency."""

HIGH = 10
"""Dimensions above which tails are lighter and wide starts rarer: radii vary too much in many."""

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

LEAST_SIZE = 20
"""Effective draws per coordinate, and as many again, that a refit needs: weights are tempered."""

LEAST_POWER = 1e-15
"""Power at which weights whose logarithms differ by up to 1e14 are as good as equal."""


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
    log_mean : float
        Log of the mean ratio in its round: what its draws say of the target's integral.
    """

    density: Importance
    efficiency: float
    largest_weight: float
    log_mean: float


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

    Notes
    -----
    A density that shrinks to a part of the target looks perfect from within: all its ratios are
    equal. Two things prevent that. Before each refit the weights of all draws are raised to the
    largest power at which they leave an effective size of 20 (d + 1), so that no few draws decide;
    and a round counts only by the share of the target's integral, as all rounds estimate it, that
    its own draws found.
    """

    def __init__(
        self, target: LogDensity, centre: Array, root: Array, rng: np.random.Generator
    ) -> None:
        self.target = target
        self.rng = rng
        self.df = max(5.0 + len(centre) / 2, 2.0 * (len(centre) - HIGH))
        self.size = 1000 + 250 * len(centre)
        self.points = np.empty((0, len(centre)))
        self.values = np.empty(0)
        self.used: list[Importance] = []
        self.sizes: list[int] = []
        self.log_used: list[Array] = []
        wide = 0.4 * min(1.0, HIGH / max(len(centre), 1))
        start = [
            (1.0 - wide, student(centre, root, self.df)),
            (wide, student(centre, 2.0 * root, 3.0)),
        ]
        self.density = Importance(
            warp=identity_warp(len(centre)),
            mixture=combine(start),
            centre=centre,
            scale=np.linalg.norm(root, axis=1),
        )

    def adapt(self) -> Proposal:
        """Sample and refit until the density fits or refits no longer help.

        Raises
        ------
        SamplingError
            If the target vanishes at all draws.
        """
        rounds: list[Proposal] = []
        reached = 0.0
        for number in range(MAX_ROUNDS):
            if number:
                self.density = self._refit()
            rounds.append(self._round())
            scored = self._scored(rounds)
            best = max(scored, key=lambda proposal: proposal.efficiency)
            gained = scored[-1].efficiency > ENOUGH_GAIN * reached
            reached = best.efficiency
            if scored[-1].efficiency > GOOD_EFFICIENCY or (
                not gained and reached > ENOUGH_EFFICIENCY
            ):
                break
        return best

    def learn(self, x: Array, value: Array) -> None:
        """Refit the density with draws of it (S, d) and the target's log density at them (S,)."""
        self._record(x, value)
        self.density = self._refit()

    @property
    def log_weights(self) -> Array:
        """Log ratios (S,) of the target to the mixture of all densities, at all their draws."""
        shares = np.array(self.sizes) / len(self.points)
        parts = [np.log(share) + q for share, q in zip(shares, self.log_used, strict=True)]
        return self.values - logsumexp(parts, axis=0)

    def _round(self) -> Proposal:
        """Draw from the density and measure its fit."""
        x = self.density.sample(self.rng, self.size)
        ratios = self._record(x, self.target(x))
        mean = log_mean(ratios)[0]
        return Proposal(
            density=self.density,
            efficiency=effective_fraction(ratios),
            largest_weight=float(np.exp(np.max(ratios) - mean)) if np.isfinite(mean) else np.inf,
            log_mean=mean,
        )

    def _scored(self, rounds: list[Proposal]) -> list[Proposal]:
        """The rounds, their efficiencies times the share of the target that each has found."""
        pooled = log_mean(self.log_weights)[0]
        shares = [np.exp(min(r.log_mean - pooled, 0.0)) if r.efficiency else 0.0 for r in rounds]
        return [
            replace(r, efficiency=r.efficiency * float(share))
            for r, share in zip(rounds, shares, strict=True)
        ]

    def _record(self, x: Array, value: Array) -> Array:
        """Keep draws of the density; their log ratios (S,) to it."""
        for number, density in enumerate(self.used):
            self.log_used[number] = np.append(self.log_used[number], density.logpdf(x))
        self.points = np.concatenate([self.points, x])
        self.values = np.append(self.values, value)
        self.used.append(self.density)
        self.sizes.append(len(x))
        self.log_used.append(self.density.logpdf(self.points))
        return value - self.log_used[-1][-len(x) :]

    def _refit(self) -> Importance:
        """Density fitted to the draws of all rounds."""
        x, weights, effective = self._equally_weighted()
        warp = fit_warp(x, weights)
        y, _ = warp.forward(x)
        mean, root = weighted_root(y, weights)
        most = max(1, int(effective / (POINTS_PER_PARAMETER * _n_parameters(x.shape[1]))))
        components = min(FEWEST_COMPONENTS + 2 * len(self.used) - 2, most)
        return Importance(
            warp=warp,
            mixture=fit_mixture(y, weights, components, self.df, self.rng),
            centre=mean,
            scale=SAFEGUARD_SCALE * np.linalg.norm(root, axis=1),
        )

    def _equally_weighted(self) -> tuple[Array, Array, float]:
        """Resample the draws of all rounds by their tempered weights, of which effective size."""
        x, log_weights = self.points, self.log_weights
        if not np.any(np.isfinite(log_weights)):
            raise SamplingError(
                f"The posterior density vanishes at all {len(x)} points that were tried, so the "
                "importance density has nothing to fit. Use method='nuts'."
            )
        weights = tempered_weights(log_weights, LEAST_SIZE * (x.shape[1] + 1))
        # No single draw may dominate a fit: truncation as in Ionides (2008), section 2.
        weights = np.minimum(weights, len(x) ** -0.5)
        weights /= weights.sum()
        effective = float(1.0 / np.sum(weights**2))
        size = min(max(FIT_POINTS, 8 * _n_parameters(x.shape[1])), len(x))
        places = (self.rng.random() + np.arange(size)) / size
        chosen = np.searchsorted(np.cumsum(weights), places).clip(max=len(x) - 1)
        return x[chosen], np.full(size, 1.0 / size), effective


def _n_parameters(d: int) -> int:
    """Number of parameters of a component's location and scale matrix."""
    return d * (d + 3) // 2


def tempered_weights(log_weights: Array, least: float) -> Array:
    """Weights (S,), which sum to one, to the largest power that leaves an effective size.

    Parameters
    ----------
    log_weights : ndarray (S,)
        Logarithms of the weights, of which some are finite.
    least : float
        The effective size; where fewer weights are not zero they become equal.

    Returns
    -------
    ndarray (S,)
    """
    below = log_weights - np.max(log_weights)

    def enough(power: float) -> bool:
        return len(below) * effective_fraction(power * below) >= least

    power = 1.0
    if not enough(power):
        lowest, highest = np.log(LEAST_POWER), 0.0
        for _ in range(40):
            middle = 0.5 * (lowest + highest)
            lowest, highest = (middle, highest) if enough(np.exp(middle)) else (lowest, middle)
        power = float(np.exp(lowest))
    weights = np.exp(power * below)
    return np.asarray(weights / weights.sum())


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


# --- sampling a density of few dimensions, with checks of its importance ratios ---


NEGLIGIBLE_SHARE = 0.001
"""Largest importance ratio over their sum at which Pareto k does not matter."""

SURPRISE = 0.5
"""Effective fraction in the chains, over that of the fit, that hints at a missed mode."""

UNSEEN = 5.0
"""Largest ratio in the chains, over that of the fit, that hints at a part the fit has not seen."""

ATTEMPTS = 3
"""Runs of the chains, with a refit to all draws after each that failed."""

MIN_EFFICIENCY = 0.02
"""Effective fraction of the proposals below which the chains would hardly move."""


def sample_density(
    target: LogDensity,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> Chains:
    """Sample a density of few dimensions.

    Raises
    ------
    SamplingError
        If the importance density does not fit.
    """
    adapter = Adapter(target, centre, root, rng)
    for left in reversed(range(ATTEMPTS)):
        proposal = adapter.adapt()
        if proposal.efficiency < MIN_EFFICIENCY:
            raise SamplingError(
                f"The importance density fits the {len(centre)} covariance parameters too poorly "
                f"(effective fraction {proposal.efficiency:.1%}). Use method='nuts'."
            )
        run = run_chains(target, proposal, chains, draws, rng)
        problem = find_problem(run, proposal)
        if not problem and not (left and is_surprising(run, proposal)):
            return run
        adapter.density = proposal.density
        adapter.learn(run.proposals, run.values)
    raise SamplingError(f"{problem} Use method='nuts'.")


def repeated_point(log_density: float, chains: int, draws: int) -> Chains:
    """Chains of a density that has no coordinates, so that every state is the same."""
    return Chains(
        x=np.empty((chains, draws, 0)),
        log_density=np.full((chains, draws), log_density),
        acceptance=np.ones((chains, draws)),
        proposals=np.empty((chains * draws, 0)),
        values=np.full(chains * draws, log_density),
        log_proposal=np.zeros(chains * draws),
        thin=1,
    )


def find_problem(run: Chains, proposal: Proposal) -> str:
    """What speaks against chains, in a sentence; empty where nothing does."""
    ratios = run.log_ratios
    if not is_reliable(ratios):
        return (
            "The importance ratios of the covariance parameters have heavy tails or do not vary "
            f"at all (Pareto k {pareto_k(ratios):.2f}, where {MAX_PARETO_K} is the limit)."
        )
    efficiency = effective_fraction(ratios)
    if not efficiency > SURPRISE * proposal.efficiency:
        return (
            "The importance ratios of the covariance parameters change from run to run "
            f"(effective fraction {efficiency:.1%} after {proposal.efficiency:.1%})."
        )
    stay, draws = longest_stay(run), run.log_density.shape[1]
    if stay == draws > TOO_LONG:
        return (
            f"A chain of the covariance parameters stayed at one point for all its {draws} draws."
        )
    return ""


def is_surprising(run: Chains, proposal: Proposal) -> bool:
    """Whether another fit, with the chains' proposals, may find more of the target."""
    largest = largest_share(run.log_ratios) * len(run.log_ratios)
    return largest > UNSEEN * proposal.largest_weight


def is_reliable(log_ratios: Array) -> bool:
    """Whether the mean of importance ratios can be trusted.

    Draws whose ratios are all the same have come from a part of the target that is too small to
    vary, so they say nothing of the rest.
    """
    k = pareto_k(log_ratios)
    if k == -np.inf:
        return False
    return k <= MAX_PARETO_K or largest_share(log_ratios) < NEGLIGIBLE_SHARE
