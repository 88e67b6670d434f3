"""Simulation-based calibration: ranks of true values among posterior draws.

Parameters drawn from the prior and a response simulated from them are one draw of their joint
distribution, and so is that response with a draw from its posterior. If a sampler is right, the
true value of any quantity is therefore as likely to have one rank among independent draws as
another.

References
----------
Talts, Betancourt, Simpson, Vehtari, Gelman (2018), arXiv:1804.06788.
Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari (2023), doi:10.1214/23-BA1404.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, poisson

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.executor import Executor, Tasks, results, streams
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.simulated import noise_of, simulated_design
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.groups import draw_prior, prior_dataset, prior_predictive
from bayeslmm.sampling.tree import RESPONSE

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
Refit = Callable[[Design, np.random.Generator], xr.DataTree]
"""Posterior draws for a design with another response; its priors are those of the model."""
Quantities = Callable[[xr.Dataset, Design], Mapping[str, Array]]
"""Scalars by name, each (chain, draw), from draws of the public variables."""

_log = logging.getLogger(__name__)

OUT_OF = 99
"""Draws among which a true value is ranked: 100 ranks, each of probability 1 %."""

TAIL_PROB = (0.1, 0.9)
"""Quantiles whose effective sample size thins the draws, beside that of the bulk."""


class Simulated(NamedTuple):
    """A draw from the joint distribution of parameters and response.

    Attributes
    ----------
    design : Design
        The design with the simulated response.
    truth : Dataset
        The public variables, one chain of one draw.
    """

    design: Design
    truth: xr.Dataset


class Ranking(NamedTuple):
    """Ranks of the true values in one simulation.

    Attributes
    ----------
    ranks : ndarray of int (m,)
        Ranks among `OUT_OF` draws.
    kept : ndarray of int (m,)
        Nearly independent draws behind each, at most `OUT_OF`.
    """

    ranks: Counts
    kept: Counts


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Simulations:
    """Ranks of all simulations.

    Attributes
    ----------
    names : tuple of str, length m
        What was ranked.
    completed : ndarray of int (s,)
        Numbers of the simulations whose fit succeeded.
    ranks, kept : ndarray of int (s, m)
        As in :class:`Ranking`.
    failures : mapping of int to str
        What the fit said, by the number of the simulation.
    """

    names: tuple[str, ...]
    completed: Counts
    ranks: Counts
    kept: Counts
    failures: Mapping[int, str]


def run_simulations(
    design: Design,
    priors: Priors,
    engine: Callable[[], Refit],
    quantities: Quantities,
    *,
    n: int,
    random_seed: int | np.random.Generator | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> Simulations:
    """Simulate from the prior, refit and rank, `n` times.

    Parameters
    ----------
    design : Design
        The design; its response is not used.
    priors : Priors
        Its priors, all proper.
    engine : callable
        Called once in every process, returns the function that refits: it takes a design and a
        Generator and returns draws with the group posterior.
    quantities : callable
        Takes a dataset of public variables and a design, returns what is ranked by name, each
        (chain, draw).
    n : int
        Number of simulations.
    random_seed : int or numpy.random.Generator, optional
        Seed. Every simulation has its own stream, so that it does not depend on the others.
    executor : Executor, optional
        Where the simulations run.
    progressbar : bool
        Whether to show a progress bar.

    Returns
    -------
    Simulations

    Raises
    ------
    PriorError
        If a prior is flat.
    SamplingError
        If every fit failed.
    """
    names: tuple[str, ...] = ()
    done: dict[int, Ranking] = {}
    failures: dict[int, str] = {}
    tasks = Tasks(
        make=_simulator,
        parts=(design.without_data(), priors, engine, quantities),
        items=streams(random_seed, n),
        size=n,
        title="Calibration",
        label=lambda number: f"Simulation {number}",
    )
    with results(tasks, executor, progressbar) as outcomes:
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, str):
                failures[number] = outcome
                _log.warning("The fit of simulation %d failed: %s", number, outcome)
            else:
                names, done[number] = outcome
    if not done:
        raise SamplingError(f"The fits of all {n} simulations failed; the last: {failures[n - 1]}")
    return Simulations(
        names=names,
        completed=np.array(list(done), dtype=np.int64),
        ranks=np.array([ranking.ranks for ranking in done.values()]),
        kept=np.array([ranking.kept for ranking in done.values()]),
        failures=failures,
    )


def _simulator(
    design: Design, priors: Priors, engine: Callable[[], Refit], quantities: Quantities
) -> Callable[[np.random.SeedSequence], tuple[tuple[str, ...], Ranking] | str]:
    """Work of a calibration: names and ranks of one simulation, or why its fit failed."""
    refit, draw = engine(), _joint_draw(design, priors)

    def run(seed: np.random.SeedSequence) -> tuple[tuple[str, ...], Ranking] | str:
        for_data, for_fit, for_ranks = (np.random.default_rng(child) for child in seed.spawn(3))
        simulated = draw(for_data)
        try:
            draws = refit(simulated.design, for_fit)["posterior"].to_dataset()
            values = quantities(draws, simulated.design)
            truth = quantities(simulated.truth, simulated.design)
            ranking = rank(_scalars(truth), np.stack(list(values.values())), for_ranks)
        except (SamplingError, DataError) as error:
            return f"{type(error).__name__}: {error}"
        return tuple(values), ranking

    return run


def _joint_draw(design: Design, priors: Priors) -> Callable[[np.random.Generator], Simulated]:
    """Function that draws from the joint distribution of parameters and response."""
    if not isinstance(design, SummarisedDesign):
        return partial(simulate, design, priors)
    noise = noise_of(design)

    def draw(rng: np.random.Generator) -> Simulated:
        prior, random = draw_prior(design, priors, 1, rng)
        effects, sigma = [u[0] for u in random], float(prior.sigma[0])
        changed = simulated_design(noise, design, prior.beta[0], effects, sigma, rng)
        return Simulated(changed, prior_dataset(design, prior, random))

    return draw


def simulate(design: Design, priors: Priors, rng: np.random.Generator) -> Simulated:
    """Draw parameters from the prior and a response at the rows of the design."""
    tree = prior_predictive(design, priors, 1, rng)
    y = tree["prior_predictive"][RESPONSE].to_numpy()[0, 0].copy()
    y.setflags(write=False)
    return Simulated(replace(design, y=y), tree["prior"].to_dataset())


def rank(truth: Array, draws: Array, rng: np.random.Generator) -> Ranking:
    """Rank true values among draws thinned to near independence.

    Parameters
    ----------
    truth : ndarray (m,)
        True values.
    draws : ndarray (m, chain, draw)
        Posterior draws.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Ranking
        The rank is the number of kept draws below the true value. Where fewer than `OUT_OF` are
        kept, it is brought to the common scale with a uniform random part, which keeps uniform
        ranks uniform.

    Raises
    ------
    SamplingError
        If draws are not finite.
    """
    if not np.isfinite(draws).all():
        raise SamplingError("Some draws are not finite.")
    kept = np.minimum(OUT_OF, effective_draws(draws))
    flat = draws.reshape(len(draws), -1)
    below = np.array(
        [
            np.sum(row[_spread(row.size, size)] < value)
            for row, size, value in zip(flat, kept, truth, strict=True)
        ]
    )
    position = (below + rng.random(len(below))) / (kept + 1)
    scaled = np.minimum((position * (OUT_OF + 1)).astype(np.int64), OUT_OF)
    return Ranking(np.where(kept == OUT_OF, below, scaled), kept)


def effective_draws(draws: Array) -> Counts:
    """Effective sample size, the smaller of bulk and tails, of draws (m, chain, draw).

    Where it is not defined, as for a constant or chains of three draws, all draws count.
    """
    from arviz_stats.base import array_stats

    total = draws.shape[1] * draws.shape[2]
    bulk = array_stats.ess(draws, method="bulk")
    tail = array_stats.ess(draws, method="tail", prob=TAIL_PROB)
    smallest = np.nan_to_num(np.minimum(bulk, tail), nan=total)
    return np.clip(smallest, 1, total).astype(np.int64)


def _spread(size: int, count: int) -> NDArray[np.intp]:
    """Positions of `count` draws spread evenly over `size` ones."""
    return ((np.arange(count) + 0.5) * size / count).astype(np.intp)


def _scalars(values: Mapping[str, Array]) -> Array:
    return np.array([value.item() for value in values.values()])


# --- exact simultaneous test of whether ranks are uniform on 0, ..., L ---


ROUNDING = 1e-9
"""Relative difference below which two tail probabilities are the same number."""

UNION_BOUND = 1e-8
"""P-values known to be smaller are replaced by their upper bound."""

NEGLIGIBLE = 1e-20
"""Probability of increments of the empirical distribution function that are left out."""


def counts_below(ranks: ArrayLike, out_of: int) -> Counts:
    """Number of ranks that are at most k.

    Parameters
    ----------
    ranks : array-like of int (n,)
        Ranks among `out_of` draws, 0 to `out_of`.
    out_of : int
        Largest possible rank.

    Returns
    -------
    ndarray of int (out_of,)
        For k = 0, ..., out_of - 1.
    """
    frequency = np.bincount(np.asarray(ranks, dtype=np.intp), minlength=out_of + 1)
    return np.cumsum(frequency)[:-1]


def uniformity(ranks: ArrayLike, out_of: int) -> tuple[float, float]:
    """Test that ranks are independent and uniform.

    Parameters
    ----------
    ranks : array-like of int (n,)
        Ranks among `out_of` draws.
    out_of : int
        Largest possible rank.

    Returns
    -------
    statistic : float
        Smallest pointwise two-sided tail probability of the empirical distribution function.
    p_value : float
        Probability of so small a value under uniform ranks. It is exact above 1e-8 and an upper
        bound below.

    Examples
    --------
    >>> uniformity([0, 1, 2, 3], 3)[1]
    1.0
    >>> uniformity([0] * 10, 3)[1] < 1e-5
    True
    """
    below = counts_below(ranks, out_of)
    tails = tail_probabilities(len(np.asarray(ranks)), out_of)
    statistic = float(np.min(tails[np.arange(out_of), below]))
    return statistic, exit_probability(tails, statistic)


def band(n: int, out_of: int, level: float) -> tuple[Array, Array]:
    """Simultaneous band for the empirical distribution function of uniform ranks.

    Parameters
    ----------
    n : int
        Number of ranks.
    out_of : int
        Largest possible rank.
    level : float
        Largest probability with which uniform ranks may leave the band.

    Returns
    -------
    lower, upper : ndarray (out_of,)
        Bounds, both inside, at (k + 1) / (out_of + 1) for k = 0, ..., out_of - 1. A sample leaves
        them exactly where its p-value by :func:`uniformity` is at most `level`.
    """
    tails = tail_probabilities(n, out_of)
    candidates = np.unique(tails)
    low, high = 0, len(candidates)  # exit probability at most `level` below `low`, more from `high`
    while low < high:
        middle = (low + high) // 2
        if exit_probability(tails, candidates[middle]) <= level:
            low = middle + 1
        else:
            high = middle
    lower, upper = _limits(tails, candidates[low - 1] if low else 0.0)
    return lower / n, upper / n


def tail_probabilities(n: int, out_of: int) -> Array:
    """Two-sided tail probability (out_of, n + 1) of each count, for each k alone."""
    points = np.arange(1, out_of + 1)[:, None] / (out_of + 1)
    counts = np.arange(n + 1)
    one_sided = np.minimum(binom.cdf(counts, n, points), binom.sf(counts - 1, n, points))
    return np.asarray(np.minimum(2.0 * one_sided, 1.0))


def exit_probability(tails: Array, gamma: float) -> float:
    """Probability that some count of uniform ranks has a tail probability of at most gamma."""
    if (bound := len(tails) * gamma) < UNION_BOUND:
        return float(bound)
    stays = stay_probability(*_limits(tails, gamma), tails.shape[1] - 1)
    return float(np.clip(1.0 - stays, 0.0, 1.0))


def stay_probability(lower: Counts, upper: Counts, n: int) -> float:
    """Probability that the counts of n uniform ranks stay between inclusive limits.

    Parameters
    ----------
    lower, upper : ndarray of int (L,)
        Limits of the number of ranks at most k.
    n : int
        Number of ranks.

    Returns
    -------
    float

    Notes
    -----
    The frequencies of the L + 1 ranks are independent Poisson variables given their sum, so the
    path of the counts is a sum of independent increments that ends at n.
    """
    mean = n / (len(lower) + 1)
    increment = poisson.pmf(np.arange(n + 1), mean)
    short = increment[: np.flatnonzero(increment >= NEGLIGIBLE)[-1] + 1]
    counts = np.arange(n + 1)
    weight = np.zeros(n + 1)
    weight[0] = 1.0
    for low, high in zip(lower, upper, strict=True):
        weight = np.convolve(weight, short)[: n + 1]
        weight[(counts < low) | (counts > high)] = 0.0
    return float(weight @ increment[::-1] / poisson.pmf(n, n))


def _limits(tails: Array, gamma: float) -> tuple[Counts, Counts]:
    """Smallest and largest count with a tail probability above gamma; none where they cross."""
    inside = tails > gamma * (1.0 + ROUNDING)
    lower = np.argmax(inside, axis=1)
    upper = inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
    return lower, np.where(inside.any(axis=1), upper, -1)
