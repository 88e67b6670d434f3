"""Random effects and coefficients by level, each with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import JointDraws, all_levels
from bayeslmm.summaries.posterior_tables import interval, interval_defaults

Array = NDArray[np.float64]

LARGEST = 1 << 27
"""Most draws of effects that are held at once: 1 GB."""


def level_index(factor: RandomFactor, terms: Sequence[str]) -> pd.MultiIndex:
    """Levels, and the coefficients of each."""
    levels = pd.Index(factor.levels)
    return pd.MultiIndex.from_product([levels, terms], names=[factor.name, "term"])


def coefficients(design: Design, factor: RandomFactor) -> list[str]:
    """Labels of the coefficients of a level: every fixed effect, then those without one."""
    return [*design.coefs, *(c for c in factor.own_coefs if c not in design.coefs)]


def posterior_level_tables(
    design: Design, joint: JointDraws, prob: float | None, *, with_fixed: bool
) -> dict[str, pd.DataFrame]:
    """Mean, sd, median and interval per level and coefficient, by grouping factor.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        Posterior draws; random effects that are not stored are drawn.
    prob : float, optional
        Probability of the intervals.
    with_fixed : bool
        Whether the fixed effects are added.

    Raises
    ------
    DataError
        If the draws would not fit into memory.
    """
    prob, kind = interval_defaults(prob)
    entries = joint.size * sum(f.n_levels * f.n_coefs for f in design.random)
    if entries > LARGEST:
        raise DataError(
            f"Draws of all random effects would take {8 * entries / 2**30:.1f} GB. Draw those of "
            "chosen levels with draw_u(levels) or draws(), or fit fewer draws; ranef_sd() has "
            "standard deviations of all."
        )
    tables = {}
    for factor, u in zip(design.random, joint.effects(all_levels(design)), strict=True):
        own, terms = factor.own(u), list(factor.own_coefs)
        if with_fixed:
            terms, own = _with_fixed(design, factor, own, joint.beta)
        tables[factor.name] = _summary(own, level_index(factor, terms), prob, kind)
    return tables


def _with_fixed(
    design: Design, factor: RandomFactor, own: Array, beta: Array
) -> tuple[list[str], Array]:
    """Labels (m,) and draws (S, J, m) of fixed plus random effects."""
    terms = coefficients(design, factor)
    total = np.zeros((*own.shape[:2], len(terms)))
    total[:, :, : len(design.coefs)] = beta[:, None, :]
    for place, coef in enumerate(factor.own_coefs):
        total[:, :, terms.index(coef)] += own[:, :, place]
    return terms, total


def _summary(draws: Array, index: pd.MultiIndex, prob: float, kind: str) -> pd.DataFrame:
    """Statistics of draws (S, J, m), level by level so that no copy of all is made."""
    J, m = draws.shape[1:]
    columns = np.empty((5, J, m))
    step = max(1, (1 << 22) // max(1, len(draws) * m))
    for start in range(0, J, step):
        part = draws[:, start : start + step]
        at = slice(start, start + step)
        columns[0, at], columns[1, at] = part.mean(axis=0), part.std(axis=0, ddof=1)
        columns[2, at] = np.median(part, axis=0)
        columns[3, at], columns[4, at] = interval(part, prob, kind)
    names = ("mean", "sd", "median", f"{kind}{100 * prob:g}_lb", f"{kind}{100 * prob:g}_ub")
    values = dict(zip(names, columns.reshape(5, -1), strict=True))
    return pd.DataFrame(values, index=index)


def estimate_level_table(
    factor: RandomFactor, terms: Sequence[str], values: Array, errors: Array, margin: float
) -> pd.DataFrame:
    """Estimates with standard errors and normal intervals, from arrays (J, m)."""
    numbers = {
        "estimate": values,
        "std_error": errors,
        "conf_low": values - margin * errors,
        "conf_high": values + margin * errors,
    }
    flat = {name: np.ravel(value) for name, value in numbers.items()}
    return pd.DataFrame(flat, index=level_index(factor, terms))
