"""p-values and intervals of several tests at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from bayeslmm.effects.spherical import QUANTILE, LargestT, largest_t
from bayeslmm.exceptions import check_choice

Array = NDArray[np.float64]
Side = Literal["two-sided", "greater", "less"]
SIDES: tuple[Side, ...] = get_args(Side)

SIDE_OF: dict[str, Side] = {"=": "two-sided", ">": "greater", "<": "less"}
"""Side of the test of a hypothesis, by its relation."""

Adjust = Literal[
    "none",
    "tukey",
    "mvt",
    "dunnett",
    "scheffe",
    "bonferroni",
    "sidak",
    "holm",
    "hochberg",
    "hommel",
    "fdr",
    "by",
]
ADJUSTMENTS: tuple[Adjust, ...] = get_args(Adjust)

ALIASES: dict[str, Adjust] = {"bh": "fdr", "BH": "fdr", "BY": "by"}
"""R's names of the two that control the rate of false discoveries."""

TWO_SIDED: tuple[Adjust, ...] = ("tukey", "scheffe")
"""Adjustments that are for two-sided tests only."""

STEPWISE: tuple[Adjust, ...] = ("holm", "hochberg", "hommel", "fdr", "by")
"""Adjustments of p-values that have no intervals of their own; Bonferroni's go with them."""


def check_adjust(adjust: str | None) -> Adjust:
    """Return the name of an adjustment, None being "none"; refuse anything else."""
    if adjust is None:
        return "none"
    if isinstance(adjust, str):
        for name in ADJUSTMENTS:
            if ALIASES.get(adjust, adjust) == name:
                return name
    allowed = ", ".join(map(repr, ("default", *ADJUSTMENTS)))
    raise ValueError(f"adjust={adjust!r}: one of {allowed} is expected.")


def check_side(side: str, adjust: Adjust = "none") -> Side:
    """Return the side of a test; refuse an unknown one, and what `adjust` is not for."""
    check_choice(side, SIDES, "side")
    if side != "two-sided" and adjust in TWO_SIDED:
        raise ValueError(
            f"adjust={adjust!r} is for two-sided tests. With side={side!r} take 'mvt', which is "
            "exact, 'holm' or another."
        )
    return cast(Side, side)


def tail_of(statistic: Array | float, df: Array | float, side: Side) -> Array:
    """Unadjusted p-values of t statistics."""
    if side == "two-sided":
        return np.asarray(2.0 * stats.t.sf(np.abs(statistic), df))
    return np.asarray(stats.t.sf(statistic if side == "greater" else -statistic, df))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Comparisons:
    """t tests that are adjusted together.

    Attributes
    ----------
    statistic, df : ndarray (m,)
        t statistics with their degrees of freedom; NaN where a quantity is not estimable.
    means : int
        Number of means whose pairwise differences are compared ("tukey" only).
    covariance : ndarray (m, m), optional
        Of the quantities, up to a factor ("mvt", "dunnett" and "scheffe" only).
    side : str
        The alternative.
    """

    statistic: Array
    df: Array
    means: int = 0
    covariance: Array | None = None
    side: Side = "two-sided"

    def p_values(self, adjust: Adjust) -> Array:
        """p-values (m,), adjusted for the number of tests that can be done."""
        raw = tail_of(self.statistic, self.df, self.side)
        known = np.flatnonzero(np.isfinite(raw))
        if adjust == "scheffe" and len(known):
            rank = self._rank(known)
            return np.asarray(stats.f.sf(self.statistic**2 / rank, rank, self.df))
        if adjust == "none" or len(known) < 2 or (adjust == "tukey" and self.means <= 2):
            return raw
        if adjust == "tukey":
            return _tukey_tail(np.abs(self.statistic), self.df, self.means, raw)
        result = np.full(len(raw), np.nan)
        if adjust in ("mvt", "dunnett"):
            result[known] = self._largest_tails(known, raw[known])
        else:
            result[known] = ADJUSTERS[adjust](raw[known])
        return result

    def critical_values(self, level: float, adjust: Adjust) -> Array:
        """Multiples (m,) of the standard errors of intervals that cover simultaneously."""
        known = np.flatnonzero(~np.isnan(self.df) & ~np.isnan(self.statistic))
        count = max(1, len(known))
        if adjust == "scheffe" and len(known):
            rank = self._rank(known)
            return np.asarray(np.sqrt(rank * stats.f.ppf(level, rank, self.df)))
        if adjust == "tukey" and self.means > 2:
            return _tukey_quantiles(level, self.df, self.means)
        if adjust in ("mvt", "dunnett") and len(known) > 1:
            return self._largest_quantiles(level, known)
        if adjust == "sidak":
            level = level ** (1.0 / count)
        elif adjust == "bonferroni" or adjust in STEPWISE:
            level = 1.0 - (1.0 - level) / count
        return self._quantile(level, self.df)

    def _quantile(self, level: float, df: Array) -> Array:
        both = self.side == "two-sided"
        return np.asarray(stats.t.isf((1.0 - level) / (2.0 if both else 1.0), df))

    def _largest(self, known: NDArray[np.intp]) -> LargestT:
        assert self.covariance is not None
        covariance = self.covariance[np.ix_(known, known)]
        scale = np.sqrt(np.diag(covariance))
        return largest_t(covariance / np.outer(scale, scale), self.side == "two-sided")

    def _largest_tails(self, known: NDArray[np.intp], raw: Array) -> Array:
        largest, sizes = self._largest(known), self.statistic[known]
        if self.side == "two-sided":
            sizes = np.abs(sizes)
        elif self.side == "less":
            sizes = -sizes
        tails = [largest.tail(t, df) for t, df in zip(sizes, self.df[known], strict=True)]
        return np.clip(tails, raw, np.minimum(1.0, len(known) * raw))

    def _largest_quantiles(self, level: float, known: NDArray[np.intp]) -> Array:
        largest = self._largest(known)
        bonferroni = 1.0 - (1.0 - level) / len(known)

        def find(df: float) -> float:
            low, high = (float(self._quantile(p, np.array(df))) for p in (level, bonferroni))
            return largest.quantile(level, df, low, high)

        return _once_each(self.df, find)

    def _rank(self, known: NDArray[np.intp]) -> int:
        assert self.covariance is not None
        covariance = self.covariance[np.ix_(known, known)]
        scale = np.sqrt(np.diag(covariance))
        return int(np.linalg.matrix_rank(covariance / np.outer(scale, scale), hermitian=True))


def _once_each(df: Array, find: Callable[[float], float]) -> Array:
    """A function of the degrees of freedom (m,), taken once where they are equal."""
    result = np.full(len(df), np.nan)
    keys = np.array([float(f"{value:.7g}") for value in df])
    for value in np.unique(keys[~np.isnan(keys)]):
        result[keys == value] = find(float(value))
    return result


# --- the studentised range ------------------------------------------------------------


def _tukey_tail(size: Array, df: Array, means: int, raw: Array) -> Array:
    """Tail of the studentised range; Bonferroni's bound, its limit, where scipy loses all digits.

    `raw` are the unadjusted p-values (m,), which no adjusted one can be below.
    """
    result = np.full(len(size), np.nan)
    for i in np.flatnonzero(np.isfinite(size)):
        result[i] = stats.studentized_range.sf(np.sqrt(2.0) * size[i], means, df[i])
    bound = np.minimum(1.0, raw * (means * (means - 1) // 2))
    return np.clip(np.where(result < raw, bound, result), 0.0, 1.0)


def _tukey_quantiles(level: float, df: Array, means: int) -> Array:
    """Quantiles of the studentised range over sqrt(2), once per number of degrees of freedom.

    They lie between the quantiles of one t statistic and Bonferroni's; scipy's own inversion,
    which does not know that, takes longer.
    """
    root, pairs = np.sqrt(2.0), means * (means - 1) // 2

    def find(value: float) -> float:
        low, high = stats.t.isf([(1.0 - level) / 2.0, (1.0 - level) / (2.0 * pairs)], value)
        return float(
            brentq(
                lambda t: stats.studentized_range.sf(root * t, means, value) - (1.0 - level),
                low,
                high * (1.0 + 1e-6),
                xtol=QUANTILE * high,
            )
        )

    return _once_each(df, find)


# --- from p-values alone: each function takes and returns m known ones ------------------


def _bonferroni(raw: Array) -> Array:
    return np.minimum(1.0, raw * len(raw))


def _sidak(raw: Array) -> Array:
    return np.asarray(-np.expm1(len(raw) * np.log1p(-raw)))


def _holm(raw: Array) -> Array:
    """Step down: the smallest times m, the next times m - 1, never below the one before."""
    order = np.argsort(raw, kind="stable")
    result = np.empty(len(raw))
    factors = np.arange(len(raw), 0, -1)
    result[order] = np.minimum(1.0, np.maximum.accumulate(raw[order] * factors))
    return result


def _step_up(raw: Array, factors: Array) -> Array:
    """Step up from the largest p-value; `factors` are those of the p-values in falling order."""
    order = np.argsort(-raw, kind="stable")
    result = np.empty(len(raw))
    result[order] = np.minimum(1.0, np.minimum.accumulate(raw[order] * factors))
    return result


def _hochberg(raw: Array) -> Array:
    return _step_up(raw, np.arange(1.0, len(raw) + 1))


def _fdr(raw: Array) -> Array:
    """Benjamini and Hochberg (1995)."""
    m = len(raw)
    return _step_up(raw, m / np.arange(m, 0, -1.0))


def _by(raw: Array) -> Array:
    """Benjamini and Yekutieli (2001): under any dependence."""
    m = len(raw)
    return _step_up(raw, np.sum(1.0 / np.arange(1, m + 1)) * m / np.arange(m, 0, -1.0))


def _hommel(raw: Array) -> Array:
    """Hommel (1988) in the algorithm of Wright (1992), doi:10.2307/2532694."""
    m, order = len(raw), np.argsort(raw, kind="stable")
    p = raw[order]
    smallest = float(np.min(m * p / np.arange(1, m + 1)))
    closed, result = np.full(m, smallest), np.full(m, smallest)
    for j in range(m - 1, 1, -1):
        head, tail = np.arange(m - j + 1), np.arange(m - j + 1, m)
        least = float(np.min(j * p[tail] / np.arange(2, j + 1)))
        closed[head] = np.minimum(j * p[head], least)
        closed[tail] = closed[m - j]
        result = np.maximum(result, closed)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1.0, np.maximum(result, p))
    return adjusted


ADJUSTERS: dict[str, Callable[[Array], Array]] = {
    "bonferroni": _bonferroni,
    "sidak": _sidak,
    "holm": _holm,
    "hochberg": _hochberg,
    "hommel": _hommel,
    "fdr": _fdr,
    "by": _by,
}


# --- posteriors ------------------------------------------------------------------------


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
