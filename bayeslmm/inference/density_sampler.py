"""Sampling a density of few dimensions, with checks of its importance ratios."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import SamplingError
from bayeslmm.inference.importance import (
    Adapter,
    Chains,
    LogDensity,
    effective_fraction,
    largest_share,
    run_chains,
)
from bayeslmm.inference.pareto import smooth_weights

Array = NDArray[np.float64]

MAX_PARETO_K = 0.7
"""Pareto k of the importance ratios above which the draws are not to be trusted."""

NEGLIGIBLE_SHARE = 0.001
"""Largest importance ratio over their sum at which Pareto k does not matter."""

SURPRISE = 0.5
"""Effective fraction in the chains, over that of the fit, that hints at a missed mode."""

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
    for _ in range(ATTEMPTS):
        proposal = adapter.adapt()
        if proposal.efficiency < MIN_EFFICIENCY:
            raise SamplingError(
                f"The importance density fits the {len(centre)} covariance parameters too poorly "
                f"(effective fraction {proposal.efficiency:.1%}). Use method='nuts'."
            )
        run = run_chains(target, proposal, chains, draws, rng)
        k = smooth_weights(run.log_ratios)[1]
        light = k <= MAX_PARETO_K or largest_share(run.log_ratios) < NEGLIGIBLE_SHARE
        expected = effective_fraction(run.log_ratios) > SURPRISE * proposal.efficiency
        if light and expected:
            return run
        adapter.density = proposal.density
        adapter.learn(run.proposals, run.values)
    raise SamplingError(
        f"The importance ratios of the covariance parameters have heavy tails (Pareto k {k:.2f}, "
        f"where {MAX_PARETO_K} is the limit), or change from run to run. Use method='nuts'."
    )
