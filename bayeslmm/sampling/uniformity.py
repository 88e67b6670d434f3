"""Exact simultaneous test of whether ranks are uniform on 0, ..., L.

Among n ranks the number at most k has a binomial distribution for each k alone. A band for all k at
once takes from each the counts whose pointwise two-sided tail probability exceeds one and the same
value gamma; the probability that uniform ranks leave it is computed exactly, not simulated.

References
----------
Säilynoja, Bürkner, Vehtari (2022), doi:10.1007/s11222-022-10090-6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, poisson

Array = NDArray[np.float64]
Counts = NDArray[np.intp]

ROUNDING = 1e-9
"""Relative difference below which two tail probabilities are the same number."""

UNION_BOUND = 1e-8
"""P-values known to be smaller are replaced by their upper bound."""

NEGLIGIBLE = 1e-20
"""Probability of increments of the empirical distribution function that are left out."""


def counts_below(ranks: ArrayLike, out_of: int) -> Counts:
    """Number of ranks that are at most k.

    Parameters
    ----------
    ranks : array-like of int (n,)
        Ranks among `out_of` draws, 0 to `out_of`.
    out_of : int
        Largest possible rank.

    Returns
    -------
    ndarray of int (out_of,)
        For k = 0, ..., out_of - 1.
    """
    frequency = np.bincount(np.asarray(ranks, dtype=np.intp), minlength=out_of + 1)
    return np.cumsum(frequency)[:-1]


def uniformity(ranks: ArrayLike, out_of: int) -> tuple[float, float]:
    """Test that ranks are independent and uniform.

    Parameters
    ----------
    ranks : array-like of int (n,)
        Ranks among `out_of` draws.
    out_of : int
        Largest possible rank.

    Returns
    -------
    statistic : float
        Smallest pointwise two-sided tail probability of the empirical distribution function.
    p_value : float
        Probability of so small a value under uniform ranks. It is exact above 1e-8 and an upper
        bound below.

    Examples
    --------
    >>> uniformity([0, 1, 2, 3], 3)[1]
    1.0
    >>> uniformity([0] * 10, 3)[1] < 1e-5
    True
    """
    below = counts_below(ranks, out_of)
    tails = tail_probabilities(len(np.asarray(ranks)), out_of)
    statistic = float(np.min(tails[np.arange(out_of), below]))
    return statistic, exit_probability(tails, statistic)


def band(n: int, out_of: int, level: float) -> tuple[Array, Array]:
    """Simultaneous band for the empirical distribution function of uniform ranks.

    Parameters
    ----------
    n : int
        Number of ranks.
    out_of : int
        Largest possible rank.
    level : float
        Largest probability with which uniform ranks may leave the band.

    Returns
    -------
    lower, upper : ndarray (out_of,)
        Bounds, both inside, at (k + 1) / (out_of + 1) for k = 0, ..., out_of - 1. A sample leaves
        them exactly where its p-value by :func:`uniformity` is at most `level`.
    """
    tails = tail_probabilities(n, out_of)
    candidates = np.unique(tails)
    low, high = 0, len(candidates)  # exit probability at most `level` below `low`, more from `high`
    while low < high:
        middle = (low + high) // 2
        if exit_probability(tails, candidates[middle]) <= level:
            low = middle + 1
        else:
            high = middle
    lower, upper = _limits(tails, candidates[low - 1] if low else 0.0)
    return lower / n, upper / n


def tail_probabilities(n: int, out_of: int) -> Array:
    """Two-sided tail probability (out_of, n + 1) of each count, for each k alone."""
    points = np.arange(1, out_of + 1)[:, None] / (out_of + 1)
    counts = np.arange(n + 1)
    one_sided = np.minimum(binom.cdf(counts, n, points), binom.sf(counts - 1, n, points))
    return np.asarray(np.minimum(2.0 * one_sided, 1.0))


def exit_probability(tails: Array, gamma: float) -> float:
    """Probability that some count of uniform ranks has a tail probability of at most gamma."""
    if (bound := len(tails) * gamma) < UNION_BOUND:
        return float(bound)
    stays = stay_probability(*_limits(tails, gamma), tails.shape[1] - 1)
    return float(np.clip(1.0 - stays, 0.0, 1.0))


def stay_probability(lower: Counts, upper: Counts, n: int) -> float:
    """Probability that the counts of n uniform ranks stay between inclusive limits.

    Parameters
    ----------
    lower, upper : ndarray of int (L,)
        Limits of the number of ranks at most k.
    n : int
        Number of ranks.

    Returns
    -------
    float

    Notes
    -----
    The frequencies of the L + 1 ranks are independent Poisson variables given their sum, so the
    path of the counts is a sum of independent increments that ends at n.
    """
    mean = n / (len(lower) + 1)
    increment = poisson.pmf(np.arange(n + 1), mean)
    short = increment[: np.flatnonzero(increment >= NEGLIGIBLE)[-1] + 1]
    counts = np.arange(n + 1)
    weight = np.zeros(n + 1)
    weight[0] = 1.0
    for low, high in zip(lower, upper, strict=True):
        weight = np.convolve(weight, short)[: n + 1]
        weight[(counts < low) | (counts > high)] = 0.0
    return float(weight @ increment[::-1] / poisson.pmf(n, n))


def _limits(tails: Array, gamma: float) -> tuple[Counts, Counts]:
    """Smallest and largest count with a tail probability above gamma; none where they cross."""
    inside = tails > gamma * (1.0 + ROUNDING)
    lower = np.argmax(inside, axis=1)
    upper = inside.shape[1] - 1 - np.argmax(inside[:, ::-1], axis=1)
    return lower, np.where(inside.any(axis=1), upper, -1)
