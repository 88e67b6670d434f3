"""What pictures show of a fit: points and intervals, from draws or from modes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.plots.common import Intervals
from bayeslmm.plots.fitted import LevelGrid, Lines
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import mode_arrays, mode_sds
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.text import coverage

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def effects_of_draws(
    design: Design, joint: JointDraws, place: int, positions: Indices, prob: float | None
) -> Intervals:
    """Posterior means and intervals (m, k) of random effects of a grouping factor."""
    prob, kind = interval_defaults(prob)
    wanted = [np.empty(0, dtype=np.intp)] * len(design.random)
    wanted[place] = positions
    draws = joint.effects(wanted)[place]
    lower, upper = interval(draws, prob, kind)
    label = f"posterior mean and {coverage(prob)} {kind.upper()}"
    return Intervals(draws.mean(axis=0), lower, upper, label)


def level_of_picture(level: float | None) -> float:
    """Coverage of the intervals of an estimate in a picture: ArviZ's rcParams where not given."""
    return interval_defaults()[0] if level is None else probability(level, "level")


def effects_of_fit(fit: Fit, place: int, positions: Indices, level: float | None) -> Intervals:
    """Conditional modes and normal intervals (m, k) of random effects of a grouping factor."""
    level = level_of_picture(level)
    z = stats.norm.ppf(0.5 + level / 2.0)
    centre, sd = mode_arrays(fit)[place][positions], mode_sds(fit)[place][positions]
    label = f"{fit.method} conditional mode and {coverage(level)} prediction interval"
    return Intervals(centre, centre - z * sd, centre + z * sd, label)


def lines_of_draws(
    joint: JointDraws, grids: Sequence[LevelGrid], prob: float | None
) -> tuple[Lines, str]:
    """Mean and interval of X beta + Z u, and mean of X beta, on the grid of each level."""
    prob, kind = interval_defaults(prob)
    lines = []
    for grid in grids:
        draws = grid.conditional(joint.beta, joint.effects)
        lower, upper = interval(draws, prob, kind)
        lines.append((draws.mean(axis=0), lower, upper, grid.average(joint.beta.mean(axis=0))))
    return lines, f"conditional mean: posterior mean and {coverage(prob)} {kind.upper()}"


def lines_of_fit(
    fit: Fit, joint: JointDraws, grids: Sequence[LevelGrid], level: float | None
) -> tuple[Lines, str]:
    """Estimate of X beta + Z u with the interval of its draws, and X beta, for each level."""
    level, modes = level_of_picture(level), mode_arrays(fit)
    lines = []
    for grid in grids:
        draws = grid.conditional(joint.beta, joint.effects)
        lower, upper = interval(draws, level, "eti")
        centre = grid.conditional(
            fit.beta, lambda wanted: [u[w] for u, w in zip(modes, wanted, strict=True)]
        )
        lines.append((centre, lower, upper, grid.average(fit.beta)))
    return lines, f"conditional mean: {fit.method} and {coverage(level)} interval"
