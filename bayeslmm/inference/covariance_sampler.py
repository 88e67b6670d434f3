"""Sampling the covariance parameters, on the exact density or on a verified surrogate of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import SamplingError
from bayeslmm.inference.importance import (
    Adapter,
    Chains,
    LogDensity,
    largest_share,
    log_mean,
    run_chains,
)
from bayeslmm.inference.pareto import smooth_weights
from bayeslmm.inference.surrogate import fit_surrogate, make_axes
from bayeslmm.likelihood.batch import BatchSystem, Reduced
from bayeslmm.likelihood.batch_posterior import Reduce, log_posterior_batch, reduce_at
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

MAX_PARETO_K = 0.7
"""Pareto k of the importance ratios above which the draws are not to be trusted."""

NEGLIGIBLE_SHARE = 0.001
"""Largest importance ratio over their sum at which Pareto k does not matter."""

ATTEMPTS = 3
"""Refits after chains with heavy-tailed ratios."""

MIN_EFFICIENCY = 0.02
"""Effective fraction of the proposals below which the chains would hardly move."""

CHEAP = 100_000.0
"""Operations of one evaluation up to which a surrogate would not pay."""

CHECKS = 24
"""Draws of each round at which the surrogate is compared with the exact density."""

TYPICAL_ERROR = 0.005
LARGEST_ERROR = 0.05
"""Standard deviation and largest size of the error in log density that is accepted.

An error of standard deviation s moves no posterior mean by more than s posterior sds: a small
part of the Monte Carlo error of some thousand draws.
"""

SURROGATE_ROUNDS = 7
LARGEST_DESIGN = 4000


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CovarianceDraws:
    """Chains of the covariance parameters and what made them.

    Attributes
    ----------
    chains : Chains
        The chains.
    reduce : callable
        What eliminated the random effects: exactly, or a surrogate.
    n_evaluations : int
        Exact evaluations of the density.
    surrogate_error : float
        Standard deviation of the surrogate's error in log density over the posterior; 0 without.
    log_evidence, log_evidence_error : float
        Log of the integral of the density, and its Monte Carlo standard error.
    """

    chains: Chains
    reduce: Reduce
    n_evaluations: int
    surrogate_error: float
    log_evidence: float
    log_evidence_error: float


def operations(system: BatchSystem) -> float:
    """Rough number of operations of one evaluation."""
    plan = system.plan
    p = plan.products.n_fixed
    if system.batched:
        k = len(system.gram)
        per_class = 10.0 * k**3 + k * (k + 1) * (p + 1) ** 2
        return per_class * len(system.counts) + (plan.n_tail + p) ** 3
    blocks = sum(gram.size * gram.shape[1] for gram in plan.products.random)
    return 100.0 * blocks + plan.n_tail**3 / 3.0 + 20.0 * plan.coupling.nnz


def sample_covariance(
    system: BatchSystem,
    priors: Priors,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> CovarianceDraws:
    """Sample the covariance parameters.

    Parameters
    ----------
    system : BatchSystem
        The data.
    priors : Priors
        The priors.
    centre : ndarray (d,)
        A point in the middle.
    root : ndarray (d, d)
        Lower Cholesky factor of the approximate covariance matrix.
    chains, draws : int
        Size of the result.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    CovarianceDraws

    Raises
    ------
    SamplingError
        If the importance density does not fit.
    """
    exact = _Counted(partial(reduce_at, system))
    density = partial(log_posterior_batch, system.plan, priors)
    if operations(system) > CHEAP:
        found = _sample_surrogate(exact, density, system, centre, root, chains, draws, rng)
        if found is not None:
            return found
        _log.info("no polynomial surrogate is accurate enough: evaluating exactly")
    run = sample_density(partial(density, exact), centre, root, chains, draws, rng)
    value, error = log_mean(run.log_ratios)
    return CovarianceDraws(
        chains=run,
        reduce=exact,
        n_evaluations=exact.count,
        surrogate_error=0.0,
        log_evidence=value,
        log_evidence_error=error,
    )


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
    for _ in range(ATTEMPTS):
        proposal = adapter.adapt()
        if proposal.efficiency < MIN_EFFICIENCY:
            raise SamplingError(
                f"The importance density fits the {len(centre)} covariance parameters too poorly "
                f"(effective fraction {proposal.efficiency:.1%}). Use method='nuts'."
            )
        run = run_chains(target, proposal, chains, draws, rng)
        k = smooth_weights(run.log_ratios)[1]
        if k <= MAX_PARETO_K or largest_share(run.log_ratios) < NEGLIGIBLE_SHARE:
            return run
        adapter.density = proposal.density
        adapter.learn(run.proposals, run.values)
    raise SamplingError(
        "The importance ratios of the covariance parameters have heavy tails (Pareto k "
        f"{k:.2f}, above {MAX_PARETO_K}). Use method='nuts'."
    )


def _sample_surrogate(
    exact: _Counted,
    density: Callable[[Reduce, Array], Array],
    system: BatchSystem,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> CovarianceDraws | None:
    """Fit a surrogate, sample it, check it at draws, and add those until it is accurate.

    None where it does not get there.
    """
    axes = make_axes(system.plan.products)
    m = len(axes.kinds)
    x = design_points(centre, root, 12 + 3 * m * (m + 1), rng)
    reduced = exact(x)
    for _ in range(SURROGATE_ROUNDS):
        surrogate = fit_surrogate(axes, x, reduced, density(_known(reduced), x))
        try:
            run = sample_density(partial(density, surrogate), centre, root, chains, draws, rng)
        except (SamplingError, np.linalg.LinAlgError):
            return None
        states = run.x.reshape(chains * draws, -1)
        checked = states[rng.choice(len(states), CHECKS, replace=False)]
        truth = exact(checked)
        errors = density(_known(truth), checked) - density(surrogate, checked)
        spread = float(np.std(errors))
        if spread < TYPICAL_ERROR and np.max(np.abs(errors)) < LARGEST_ERROR:
            break
        if len(x) > LARGEST_DESIGN:
            return None
        wider = _widened(states, max(CHECKS, len(x) // 2), rng)
        x = np.concatenate([x, checked, wider])
        reduced = join([reduced, truth, exact(wider)])
    else:
        return None
    value, error = log_mean(run.log_ratios)
    return CovarianceDraws(
        chains=run,
        reduce=surrogate,
        n_evaluations=exact.count,
        surrogate_error=spread,
        log_evidence=value + log_mean(errors)[0],
        log_evidence_error=float(np.hypot(error, log_mean(errors)[1])),
    )


def design_points(centre: Array, root: Array, count: int, rng: np.random.Generator) -> Array:
    """Points spread over what a Gaussian approximation suggests, and some way beyond."""
    noise = rng.standard_normal((count, len(centre)))
    radius = np.linalg.norm(noise, axis=1, keepdims=True)
    stretched = np.minimum(1.5 * radius, np.sqrt(len(centre)) + 4.0)
    return np.asarray(centre + (noise / radius * stretched) @ root.T)


def _widened(states: Array, count: int, rng: np.random.Generator) -> Array:
    """States pushed away from their mean by up to one half."""
    chosen = states[rng.choice(len(states), count)]
    mean = states.mean(axis=0)
    return np.asarray(mean + (chosen - mean) * rng.uniform(1.0, 1.5, (count, 1)))


def _known(reduced: Reduced) -> Reduce:
    """An elimination whose result is at hand."""
    return lambda _: reduced


def join(parts: list[Reduced]) -> Reduced:
    """Batches of equations put after one another."""
    return Reduced(
        log_det_random=np.concatenate([part.log_det_random for part in parts]),
        fixed=np.concatenate([part.fixed for part in parts]),
    )


class _Counted:
    """The exact elimination, which counts its evaluations."""

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.count = 0

    def __call__(self, x: Array) -> Reduced:
        self.count += len(x)
        return self.reduce(x)
