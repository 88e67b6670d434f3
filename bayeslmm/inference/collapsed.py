"""The collapsed sampler: covariance parameters by importance, beta and u by exact draws.

u and beta are integrated out in closed form, which leaves the few covariance parameters. Their
posterior density is sampled from a fitted importance density by independence
Metropolis-Hastings chains, and every kept state gets one exact draw of (beta, u).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.exceptions import SamplingError
from bayeslmm.inference.completion import complete
from bayeslmm.inference.importance import (
    Adapter,
    Chains,
    LogDensity,
    largest_share,
    log_mean,
    run_chains,
)
from bayeslmm.inference.laplace import gaussian_root, is_regular, search_mode
from bayeslmm.inference.pareto import smooth_weights
from bayeslmm.inference.propriety import require_proper
from bayeslmm.inference.tree import posterior_tree
from bayeslmm.likelihood.batch import batch_system, reduce_equations
from bayeslmm.likelihood.batch_posterior import log_posterior_batch
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
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


def fit_collapsed(
    design: Design,
    plan: Plan,
    priors: Priors,
    *,
    draws: int = 1000,
    chains: int = 4,
    random_seed: int | np.random.Generator | None = None,
) -> xr.DataTree:
    """Draw from the exact posterior by sampling the covariance parameters alone.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    priors : Priors
        Its priors.
    draws, chains : int
        Size of the result.
    random_seed : int or numpy.random.Generator, optional
        Source of randomness.

    Returns
    -------
    xarray.DataTree
        ArviZ schema. ``sample_stats`` has `lp`, the log density of the covariance parameters,
        `acceptance_rate` and, per chain, `pareto_k` of the importance ratios and `n_evaluations`,
        the number of density evaluations. The root's attributes have the log evidence where the
        priors are proper.

    Raises
    ------
    PriorError
        If the posterior is improper.
    SamplingError
        If the importance density does not fit: use ``method="nuts"``.
    """
    began = time.perf_counter()
    rng = np.random.default_rng(random_seed)
    with single_threaded():
        system = batch_system(plan)
        reduce = partial(reduce_equations, system)
        target = partial(log_posterior_batch, plan, priors, reduce)
        centre, root = starting_approximation(target, plan, priors)
        run, evaluations = sample_covariance(target, centre, root, chains, draws, rng)
        x = run.x.reshape(chains * draws, -1)
        variables = complete(design, priors, system, reduce, x, rng)
    shaped = {k: v.reshape(chains, draws, *v.shape[1:]) for k, v in variables.items()}
    attrs = {
        "method": "collapsed",
        "inference_library": "bayeslmm",
        "sampling_time": time.perf_counter() - began,
        **_evidence(run, priors),
    }
    return posterior_tree(design, priors, shaped, _statistics(run, evaluations), attrs)


def starting_approximation(target: LogDensity, plan: Plan, priors: Priors) -> tuple[Array, Array]:
    """Mode (d,) of the log density and root (d, d) of its inverse curvature there.

    Where the search does not end at a regular mode, the point it reached and unit scales.

    Raises
    ------
    PriorError
        If the posterior is improper.
    """
    mode = search_mode(plan, priors)
    require_proper(target, plan, priors, mode.x)
    if is_regular(plan, mode):
        return mode.x, gaussian_root(mode)
    return mode.x, np.eye(len(mode.x))


def sample_covariance(
    target: LogDensity,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> tuple[Chains, int]:
    """Sample a density of few dimensions; returns the chains and the number of evaluations.

    Raises
    ------
    SamplingError
        If the importance density does not fit.
    """
    counted = _Counter(target)
    adapter = Adapter(counted, centre, root, rng)
    for _ in range(ATTEMPTS):
        proposal = adapter.adapt()
        if proposal.efficiency < MIN_EFFICIENCY:
            break
        run = run_chains(counted, proposal, chains, draws, rng)
        k = smooth_weights(run.log_ratios)[1]
        if k <= MAX_PARETO_K or largest_share(run.log_ratios) < NEGLIGIBLE_SHARE:
            return run, counted.count
        adapter.density = proposal.density
        adapter.learn(run.proposals, run.values)
    else:
        raise SamplingError(
            "The importance ratios of the covariance parameters have heavy tails (Pareto k "
            f"{k:.2f}, above {MAX_PARETO_K}). Use method='nuts'."
        )
    raise SamplingError(
        f"The importance density fits the {len(centre)} covariance parameters too poorly "
        f"(effective fraction {proposal.efficiency:.1%}). Use method='nuts'."
    )


class _Counter:
    """A log density that counts its evaluations."""

    def __init__(self, target: LogDensity) -> None:
        self.target = target
        self.count = 0

    def __call__(self, x: Array) -> Array:
        self.count += len(x)
        return self.target(x)


def _statistics(run: Chains, evaluations: int) -> dict[str, Array]:
    chains = len(run.x)
    by_chain = run.log_ratios.reshape(chains, -1)
    return {
        "lp": run.log_density,
        "acceptance_rate": run.acceptance,
        "pareto_k": np.array([smooth_weights(ratios)[1] for ratios in by_chain]),
        "n_evaluations": np.full(chains, evaluations / chains),
    }


def _evidence(run: Chains, priors: Priors) -> dict[str, Any]:
    if not priors.proper:
        return {}
    value, error = log_mean(run.log_ratios)
    return {"log_evidence": value, "log_evidence_error": error}
