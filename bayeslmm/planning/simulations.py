"""Many data sets of planned studies, each simulated and analysed with a stream of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.executor import Executor, Tasks, results, streams
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.responses import systems_of
from bayeslmm.planning.targets import Target
from bayeslmm.planning.truth import Truth, simulate_response

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A study of one size.

    Attributes
    ----------
    design : Design
        Its design; the response is not used.
    truth : Truth
        What data are simulated from.
    targets : tuple of Target
        What is asked of each data set.
    """

    design: Design
    truth: Truth
    targets: tuple[Target, ...]


class Answer(NamedTuple):
    """What the analysis of one data set says.

    Attributes
    ----------
    values : ndarray (m, c)
        Figures of each target.
    singular : bool
        Whether a covariance matrix of random effects was estimated at a boundary.
    converged : bool
        Whether the search ended at a minimum.
    """

    values: Array
    singular: bool = False
    converged: bool = True


Analysis = Callable[[Design, Plan, np.random.Generator], Answer]
"""Answer to a data set, from its design and cross-products."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Outcome:
    """Analyses of the data sets of one setup.

    Attributes
    ----------
    completed : ndarray of int (s,)
        Numbers of the simulations whose analysis succeeded.
    values : ndarray (s, m, c)
        Their figures.
    truth : ndarray (s, m)
        True values of the targets.
    singular, converged : ndarray of bool (s,)
        As in :class:`Answer`.
    failures : mapping of int to str
        What the analysis said where it failed, by the number of the simulation.
    """

    completed: NDArray[np.int64]
    values: Array
    truth: Array
    singular: NDArray[np.bool_]
    converged: NDArray[np.bool_]
    failures: Mapping[int, str]

    @property
    def size(self) -> int:
        """Number of simulations, failed ones included."""
        return len(self.completed) + len(self.failures)


def simulate_studies(
    setups: Sequence[Setup],
    analysis: Callable[[Setup], Analysis],
    n: int,
    *,
    random_seed: int | np.random.Generator | None,
    executor: Executor | None,
    progressbar: bool,
) -> list[Outcome]:
    """Simulate and analyse `n` data sets of each setup.

    Parameters
    ----------
    setups : sequence of Setup
        Studies.
    analysis : callable
        A function of a module, or a partial of one; makes the analysis of a setup.
    n : int
        Number of simulations of each.
    random_seed : int or numpy.random.Generator, optional
        Seed. Each simulation has its own stream.
    executor : Executor, optional
        Where they run; they are the same everywhere.
    progressbar : bool
        Whether to show one.

    Raises
    ------
    SamplingError
        If all analyses of a study failed, or a worker of the executor died.
    """
    bare = tuple(replace(setup, design=setup.design.without_data()) for setup in setups)
    seeds = streams(random_seed, n * len(setups))
    tasks = Tasks(
        make=_worker,
        parts=(bare, analysis),
        items=[(place // n, seed) for place, seed in enumerate(seeds)],
        size=len(seeds),
        title="Simulated studies",
        label=lambda number: f"Simulation {number % n}",
    )
    with results(tasks, executor, progressbar) as found:
        each = iter(found)
        return [_outcome(each, n, len(setup.targets)) for setup in setups]


def _worker(
    setups: Sequence[Setup], analysis: Callable[[Setup], Analysis]
) -> Callable[[tuple[int, np.random.SeedSequence]], tuple[Array, Answer | str]]:
    """Work: true values and answer of one simulated data set, or why its analysis failed."""
    made: dict[int, tuple[Callable[[Array], Plan], Analysis]] = {}

    def run(item: tuple[int, np.random.SeedSequence]) -> tuple[Array, Answer | str]:
        place, seed = item
        setup = setups[place]
        if place not in made:
            made[place] = systems_of(setup.design), analysis(setup)
        system, analyse = made[place]
        rng = np.random.default_rng(seed)
        points = setup.truth.draw(rng)
        truth = np.array([target.value(points.beta[0]) for target in setup.targets])
        y = simulate_response(setup.design, points, rng)
        try:
            return truth, analyse(replace(setup.design, y=y), system(y), rng)
        except (DataError, SamplingError, np.linalg.LinAlgError) as error:
            return truth, f"{type(error).__name__}: {error}"

    return run


def _outcome(each: Iterator[tuple[Array, Answer | str]], n: int, targets: int) -> Outcome:
    done: dict[int, tuple[Array, Answer]] = {}
    failures: dict[int, str] = {}
    for number in range(n):
        truth, answer = next(each)
        if isinstance(answer, str):
            failures[number] = answer
            _log.info("The analysis of simulation %d failed: %s", number, answer)
        else:
            done[number] = truth, answer
    if not done:
        raise SamplingError(
            f"The analyses of all {n} simulated data sets failed; the last: {failures[n - 1]}"
        )
    answers = [answer for _, answer in done.values()]
    return Outcome(
        completed=np.array(list(done), dtype=np.int64),
        values=np.array([answer.values for answer in answers]),
        truth=np.array([truth for truth, _ in done.values()]).reshape(len(done), targets),
        singular=np.array([answer.singular for answer in answers]),
        converged=np.array([answer.converged for answer in answers]),
        failures=failures,
    )
