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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.progress import tracked
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.prior_predictive import prior_predictive
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
    refit: Refit,
    quantities: Quantities,
    *,
    n: int,
    random_seed: int | np.random.Generator | None = None,
    progressbar: bool = False,
) -> Simulations:
    """Simulate from the prior, refit and rank, `n` times.

    Parameters
    ----------
    design : Design
        The design; its response is not used.
    priors : Priors
        Its priors, all proper.
    refit : callable
        Takes a design and a Generator, returns draws with the group posterior.
    quantities : callable
        Takes a dataset of public variables and a design, returns what is ranked by name, each
        (chain, draw).
    n : int
        Number of simulations.
    random_seed : int or numpy.random.Generator, optional
        Seed. Every simulation has its own stream, so that it does not depend on the others.
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
    for number, seed in enumerate(tracked(_seeds(random_seed, n), "Calibration", progressbar)):
        for_data, for_fit, for_ranks = (np.random.default_rng(child) for child in seed.spawn(3))
        simulated = simulate(design, priors, for_data)
        try:
            draws = refit(simulated.design, for_fit)["posterior"].to_dataset()
            values = quantities(draws, simulated.design)
            names = tuple(values)
            truth = quantities(simulated.truth, simulated.design)
            done[number] = rank(_scalars(truth), np.stack(list(values.values())), for_ranks)
        except (SamplingError, DataError) as error:
            failures[number] = f"{type(error).__name__}: {error}"
            _log.warning("The fit of simulation %d failed: %s", number, error)
    if not done:
        raise SamplingError(f"The fits of all {n} simulations failed; the last: {failures[n - 1]}")
    return Simulations(
        names=names,
        completed=np.array(list(done), dtype=np.int64),
        ranks=np.array([ranking.ranks for ranking in done.values()]),
        kept=np.array([ranking.kept for ranking in done.values()]),
        failures=failures,
    )


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


def _seeds(
    random_seed: int | np.random.Generator | None, n: int
) -> Sequence[np.random.SeedSequence]:
    if isinstance(random_seed, np.random.Generator):
        entropy = [int(word) for word in random_seed.integers(2**32, size=4)]
        return np.random.SeedSequence(entropy).spawn(n)
    return np.random.SeedSequence(random_seed).spawn(n)
