"""Multiplicity: adjusted p-values and simultaneous intervals of a family of contrasts."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

Array = NDArray[np.float64]
Adjust = Literal["none", "tukey", "bonferroni", "holm", "sidak"]
QUANTILE = 1e-8
"""Relative accuracy of quantiles of the studentised range."""

ADJUSTMENTS: tuple[Adjust, ...] = get_args(Adjust)


def check_adjust(adjust: str | None) -> Adjust:
    """Return the name of an adjustment, None being "none"; refuse anything else."""
    for name in ADJUSTMENTS:
        if adjust == name or (adjust is None and name == "none"):
            return name
    allowed = ", ".join(map(repr, ("default", *ADJUSTMENTS)))
    raise ValueError(f"adjust={adjust!r}: one of {allowed} is expected.")


def adjusted_p(statistic: Array, df: Array, adjust: Adjust, means: int) -> Array:
    """Two-sided p-values of t statistics (m,), adjusted for their number.

    Parameters
    ----------
    statistic, df : ndarray (m,)
        t statistics with their degrees of freedom; NaN where a quantity is not estimable.
    adjust : str
        The adjustment.
    means : int
        Number of means whose pairwise differences are compared ("tukey" only).

    Returns
    -------
    ndarray (m,)
    """
    size = np.abs(statistic)
    raw = 2.0 * stats.t.sf(size, df)
    count = int(np.sum(np.isfinite(raw)))
    if adjust == "tukey" and means > 2:
        return _tukey_tail(size, df, means)
    if adjust == "bonferroni":
        return np.minimum(1.0, raw * count)
    if adjust == "sidak":
        return -np.expm1(count * np.log1p(-raw))
    if adjust == "holm":
        return _holm(raw)
    return raw


def critical_values(level: float, df: Array, adjust: Adjust, means: int, count: int) -> Array:
    """Multiples of the standard error of intervals that cover simultaneously; Holm has none."""
    if adjust == "tukey" and means > 2:
        return _tukey_quantiles(level, df, means)
    if adjust == "sidak":
        level = level ** (1.0 / max(1, count))
    elif adjust in ("bonferroni", "holm"):
        level = 1.0 - (1.0 - level) / max(1, count)
    return np.asarray(stats.t.ppf(0.5 + level / 2.0, df))


def _tukey_tail(size: Array, df: Array, means: int) -> Array:
    result = np.full(len(size), np.nan)
    for i in np.flatnonzero(np.isfinite(size)):
        result[i] = stats.studentized_range.sf(np.sqrt(2.0) * size[i], means, df[i])
    return np.clip(result, 0.0, 1.0)


def _tukey_quantiles(level: float, df: Array, means: int) -> Array:
    """Quantiles of the studentised range over sqrt(2), once per number of degrees of freedom.

    They lie between the quantiles of one t statistic and Bonferroni's; scipy's own inversion,
    which does not know that, takes ten times as long.
    """
    root, pairs = np.sqrt(2.0), means * (means - 1) // 2
    result = np.full(len(df), np.nan)
    keys = np.array([float(f"{value:.7g}") for value in df])
    for value in np.unique(keys[~np.isnan(keys)]):
        low, high = stats.t.isf([(1.0 - level) / 2.0, (1.0 - level) / (2.0 * pairs)], value)
        result[keys == value] = brentq(
            lambda t, nu=value: stats.studentized_range.sf(root * t, means, nu) - (1.0 - level),
            low,
            high * (1.0 + 1e-6),
            xtol=QUANTILE * high,
        )
    return result


def _holm(raw: Array) -> Array:
    result = np.full(len(raw), np.nan)
    known = np.flatnonzero(np.isfinite(raw))
    order = known[np.argsort(raw[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    result[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return result


def simultaneous_interval(draws: Array, prob: float) -> tuple[Array, Array]:
    """Bounds (m,) between which all m quantities lie at once with a posterior probability.

    Parameters
    ----------
    draws : ndarray (S, m)
        Draws of the quantities.
    prob : float
        Joint probability.

    Returns
    -------
    lower, upper : ndarray (m,)

    References
    ----------
    Besag, Green, Higdon, Mengersen (1995), section 6.3, doi:10.1214/ss/1177010123.
    """
    ordered = np.sort(draws, axis=0)
    ranks = stats.rankdata(draws, method="ordinal", axis=0)
    size = len(draws)
    extreme = np.sort(np.maximum(ranks, size + 1 - ranks).max(axis=1))
    reach = int(extreme[min(size - 1, int(np.ceil(prob * size)) - 1)])
    return ordered[size - reach], ordered[reach - 1]
