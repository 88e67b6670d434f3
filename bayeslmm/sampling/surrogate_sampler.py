"""Sampling the covariance parameters on a surrogate that is fitted, checked and refined."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import comb

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import Reduced
from bayeslmm.likelihood.batch_posterior import Reduce, log_posterior_batch, log_posterior_of
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.density_sampler import sample_density
from bayeslmm.sampling.importance import Chains, log_mean
from bayeslmm.sampling.surrogate import POINTS_PER_TERM, Surrogate, fit_surrogate, make_axes

Array = NDArray[np.float64]

CHECKS = 20
"""Draws of each round at which the surrogate is compared with the exact density."""

TYPICAL_ERROR = 0.005
LARGEST_ERROR = 0.05
"""Standard deviation and largest size of the error in log density that is accepted.

An error of standard deviation s moves no posterior mean by more than about s posterior sds: a small
part of the Monte Carlo error of some thousand draws.
"""

OUTSIDE = 8
"""Proposals beyond the reach of the surrogate at which the exact density is evaluated."""

MOST_OUTSIDE = 0.002
"""Share of the posterior that may lie out there."""

NEGLIGIBLE = 15.0
"""Log density below the largest at which a point does not matter."""

ROUNDS = 7
LARGEST_DESIGN = 1500

HOPELESS = 1.0
"""Spread of the errors of the first surrogate beyond which no better one is tried."""

SLOWEST_GAIN = 0.5
"""Factor by which a round must reduce a spread that is not yet small."""

PROBED = 5
"""Number of relative coordinates from which the first surrogate is tried out before sampling."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SurrogateRun:
    """Chains on a surrogate, and how far it is from the exact density.

    Attributes
    ----------
    chains : Chains
        The chains.
    surrogate : Surrogate
        The surrogate.
    errors : ndarray (n,)
        Exact less surrogate log density at some of the draws.
    outside : float
        Share of the posterior, at most, beyond the reach of the surrogate.
    beyond : ndarray (n, d)
        Points there whose density is not negligible.
    """

    chains: Chains
    surrogate: Surrogate
    errors: Array
    outside: float
    beyond: Array

    @property
    def accurate(self) -> bool:
        """Whether the errors are negligible."""
        largest = float(np.max(np.abs(self.errors)))
        close = self.spread < TYPICAL_ERROR and largest < LARGEST_ERROR
        return close and self.outside < MOST_OUTSIDE

    @property
    def spread(self) -> float:
        """Standard deviation of the errors."""
        return float(np.std(self.errors))


class SurrogateSampler:
    """Fits a surrogate to exact evaluations, samples it, and adds evaluations where it is wrong.

    Parameters
    ----------
    exact : callable
        Eliminates the random effects exactly.
    plan : Plan
        The data.
    priors : Priors
        The priors.
    centre : ndarray (d,)
        A point in the middle of the posterior.
    root : ndarray (d, d)
        Lower Cholesky factor of its approximate covariance matrix.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(
        self,
        exact: Reduce,
        plan: Plan,
        priors: Priors,
        centre: Array,
        root: Array,
        rng: np.random.Generator,
    ) -> None:
        self.exact, self.axes = exact, make_axes(plan.products, priors.mixing)
        self.assemble = partial(log_posterior_of, plan, priors)
        self.density = partial(log_posterior_batch, plan, priors)
        self.centre, self.root, self.rng = centre, root, rng
        self.x = design_points(centre, root, design_size(len(self.axes.kinds)), rng)
        self.reduced = exact(self.x)

    def run(self, chains: int, draws: int) -> SurrogateRun | None:
        """Sample until the surrogate is accurate; None where it does not get there."""
        try:
            return self._refine(chains, draws)
        except (SamplingError, np.linalg.LinAlgError):
            return None

    def _refine(self, chains: int, draws: int) -> SurrogateRun | None:
        if len(self.axes.kinds) >= PROBED and self._probe() > HOPELESS:
            return None
        spread = HOPELESS / SLOWEST_GAIN
        for _ in range(ROUNDS):
            found = self._round(chains, draws)
            if found.accurate:
                return found
            stuck = found.spread > max(SLOWEST_GAIN * spread, 10.0 * TYPICAL_ERROR)
            if stuck or len(self.x) > LARGEST_DESIGN:
                return None
            spread = found.spread
            self._add(self._widened(found.chains))
            if found.outside > MOST_OUTSIDE:
                self._add(found.beyond)
        return None

    def _fit(self) -> Surrogate:
        values = self.assemble(self.reduced, self.x)
        return fit_surrogate(self.axes, self.x, self.reduced, values)

    def _probe(self) -> float:
        """Spread of the errors at draws of the Gaussian approximation, which are kept."""
        surrogate = self._fit()
        points = self.centre + self.rng.standard_normal((CHECKS, len(self.centre))) @ self.root.T
        return float(np.std(self._errors(surrogate, points)))

    def _round(self, chains: int, draws: int) -> SurrogateRun:
        surrogate = self._fit()
        target = partial(self.density, surrogate)
        run = sample_density(target, self.centre, self.root, chains, draws, self.rng)
        states = run.x.reshape(chains * draws, -1)
        checked = states[self.rng.choice(len(states), min(CHECKS, len(states)), replace=False)]
        errors = self._errors(surrogate, checked)
        outside, beyond = self._outside(surrogate, run)
        return SurrogateRun(
            chains=run, surrogate=surrogate, errors=errors, outside=outside, beyond=beyond
        )

    def _outside(self, surrogate: Surrogate, run: Chains) -> tuple[float, Array]:
        """Estimated share of the posterior beyond the reach of the surrogate, and points there.

        The proposals go further than the surrogate; those just outside, where the density should
        be largest, and some others are evaluated exactly.
        """
        radius = surrogate.relative_radius(run.proposals)
        places = np.flatnonzero(radius > 1.0)
        if not len(places):
            return 0.0, run.proposals[places]
        nearest = places[np.argsort(radius[places])[: OUTSIDE // 2]]
        others = self.rng.choice(places, min(OUTSIDE // 2, len(places)), replace=False)
        chosen = np.unique(np.concatenate([nearest, others]))
        points = run.proposals[chosen]
        log_density = self.assemble(self.exact(points), points)
        largest = float(np.max(log_density - run.log_proposal[chosen]))
        largest -= log_mean(run.log_ratios)[0]
        share = float(len(places) / len(radius) * np.exp(min(largest, 50.0)))
        return share, points[log_density > np.max(run.values) - NEGLIGIBLE]

    def _errors(self, surrogate: Surrogate, points: Array) -> Array:
        """Exact less surrogate log density at points, which join the design."""
        reduced = self._add(points)
        with np.errstate(invalid="ignore"):
            return self.assemble(reduced, points) - self.density(surrogate, points)

    def _add(self, points: Array) -> Reduced:
        reduced = self.exact(points)
        self.x = np.concatenate([self.x, points])
        self.reduced = Reduced(
            log_det_random=np.concatenate([self.reduced.log_det_random, reduced.log_det_random]),
            fixed=np.concatenate([self.reduced.fixed, reduced.fixed]),
        )
        return reduced

    def _widened(self, chains: Chains) -> Array:
        """States pushed away from their mean by up to one half."""
        states = chains.x.reshape(-1, chains.x.shape[2])
        chosen = states[self.rng.choice(len(states), max(CHECKS, 3 * len(self.x) // 4))]
        mean = states.mean(axis=0)
        stretch = self.rng.uniform(1.0, 1.5, (len(chosen), 1))
        return np.asarray(mean + (chosen - mean) * stretch)


def design_size(m: int) -> int:
    """Number of first evaluations in m dimensions: for polynomials of third or fourth degree."""
    degree = 4 if m <= 3 else 3
    return 8 + int(np.ceil(POINTS_PER_TERM * comb(m + degree, degree)))


def design_points(centre: Array, root: Array, count: int, rng: np.random.Generator) -> Array:
    """Points spread over what a Gaussian approximation suggests, and some way beyond."""
    noise = rng.standard_normal((count, len(centre)))
    radius = np.linalg.norm(noise, axis=1, keepdims=True)
    stretched = np.minimum(1.5 * radius, np.sqrt(len(centre)) + 4.0)
    return np.asarray(centre + (noise / radius * stretched) @ root.T)
