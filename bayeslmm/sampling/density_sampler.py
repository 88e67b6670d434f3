"""Sampling a density of few dimensions, with checks of its importance ratios."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import SamplingError
from bayeslmm.sampling.importance import (
    TOO_LONG,
    Adapter,
    Chains,
    LogDensity,
    Proposal,
    effective_fraction,
    largest_share,
    longest_stay,
    run_chains,
)
from bayeslmm.sampling.pareto import pareto_k

Array = NDArray[np.float64]

MAX_PARETO_K = 0.7
"""Pareto k of the importance ratios above which the draws are not to be trusted."""

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
