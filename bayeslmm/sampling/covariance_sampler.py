"""Sampling the covariance parameters, on the exact density or on a verified surrogate of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.batch import BatchSystem, Reduced
from bayeslmm.likelihood.batch_posterior import (
    Reduce,
    log_posterior_batch,
    reduce_at,
)
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.density_sampler import sample_density
from bayeslmm.sampling.importance import Chains, log_mean
from bayeslmm.sampling.surrogate import POINTS_PER_TERM, SurrogateRun, SurrogateSampler, design_size

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

CHEAP = 100_000.0
"""Operations of one evaluation up to which a surrogate would not pay."""

OVERHEAD = 100.0
"""Operations per term and coordinate of a surrogate evaluation, refits included."""


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
        return per_class * len(system.counts) + (plan.n_tail + p) ** 3 / 3.0
    blocks = sum(gram.size * gram.shape[1] for gram in plan.products.random)
    return 100.0 * blocks + plan.n_tail**3 / 3.0 + 20.0 * plan.coupling.nnz


def is_dear(system: BatchSystem) -> bool:
    """Whether a surrogate takes much less time than the exact density."""
    m = sum(s.n_theta for s in system.plan.products.structures)
    terms = design_size(m) / POINTS_PER_TERM
    return operations(system) > max(CHEAP, OVERHEAD * terms * m)


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
    exact = _Counted(partial(reduce_at, system, priors.coordinates))
    density = partial(log_posterior_batch, system.plan, priors)
    if is_dear(system):
        sampler = SurrogateSampler(exact, system.plan, priors, centre, root, rng)
        found = sampler.run(chains, draws)
        if found is not None:
            return _on_surrogate(found, exact.count)
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


def _on_surrogate(found: SurrogateRun, count: int) -> CovarianceDraws:
    value, error = log_mean(found.chains.log_ratios)
    correction, its_error = log_mean(found.errors)
    return CovarianceDraws(
        chains=found.chains,
        reduce=found.surrogate,
        n_evaluations=count,
        surrogate_error=found.spread,
        log_evidence=value + correction,
        log_evidence_error=float(np.hypot(error, its_error)),
    )


class _Counted:
    """The exact elimination, which counts its evaluations."""

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.count = 0

    def __call__(self, x: Array) -> Reduced:
        self.count += len(x)
        return self.reduce(x)
