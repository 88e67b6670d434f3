"""Pareto-smoothed importance weights, of one set of ratios or of many at once.

References
----------
Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from bayeslmm.likelihood.batch import run_parallel

Array = NDArray[np.float64]

TOGETHER = 1 << 18
"""Ratios that are smoothed together."""

FACTORS = 8
"""Numbers whose product is taken before its logarithm."""

FEWEST = 25
"""Draws of positive weight from which the tail can be fitted."""


def pareto_k(log_ratios: Array) -> float:
    """Pareto k of log ratios (S,); minus infinity where they hardly differ or are too few."""
    return smooth_weights(log_ratios)[1]


def smooth_weights(log_ratios: Array) -> tuple[Array, float]:
    """Pareto-smoothed normalised log weights (S,) and the Pareto k of log ratios (S,).

    Ratios that hardly differ, and few of them, have no tail to fit: their k is minus infinity.
    Draws of weight zero keep it.
    """
    positive = np.isfinite(log_ratios)
    finite = log_ratios[positive]
    if len(finite) < FEWEST or np.ptp(finite) < 1e-8:
        return log_ratios - logsumexp(log_ratios), -np.inf
    from arviz_stats.base import array_stats

    # psislw takes log likelihoods, the negative of log ratios, and no infinite ones.
    smoothed, k = array_stats.psislw(-np.where(positive, log_ratios, finite.min()))
    if not np.all(positive):
        smoothed = np.where(positive, smoothed, -np.inf)
        smoothed -= logsumexp(smoothed)
    return np.asarray(smoothed), float(k)


def log_sums(values: Array, more: Array) -> Array:
    """Log of the sums (m,) of the exponentials of values + more, (S, m) and (S, m or 1)."""
    more = np.broadcast_to(more, values.shape)
    sums = np.zeros(values.shape[1])

    def work(part: slice) -> None:
        rows = values[:, part] + more[:, part]
        largest = rows.max(axis=0)
        sums[part] = largest + np.log(np.exp(rows - largest).sum(axis=0))

    run_parallel(work, _parts(values))
    return sums


# --- many sets of ratios at once, as ArviZ's psislw does one by one ----------------------


def smooth_columns(log_ratios: Array, r_eff: float = 1.0) -> tuple[Array, Array]:
    """Pareto-smoothed normalised log weights and Pareto k of many sets of log ratios.

    Parameters
    ----------
    log_ratios : ndarray (S, m)
        Finite log ratios, one set per column.
    r_eff : float
        Effective over actual number of draws.

    Returns
    -------
    log_weights : ndarray (S, m)
    k : ndarray (m,)
        Minus infinity for a set whose largest ratios are all the same; infinite or NaN where no
        generalised Pareto distribution fits.

    Notes
    -----
    The same numbers as ``arviz_stats``' ``psislw``, which takes some milliseconds per set.
    """
    size, sets = log_ratios.shape
    tail = int(3 * np.sqrt(size / r_eff)) if size * r_eff > 225 else size // 5
    result, k = np.empty((sets, size)), np.empty(sets)

    def work(part: slice) -> None:
        rows = log_ratios[:, part].T
        rows = rows - rows.max(axis=1, keepdims=True)
        k[part] = _smooth_tails(rows, tail)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        result[part] = rows

    run_parallel(work, _parts(log_ratios))
    return result.T, k


def _parts(values: Array) -> list[slice]:
    """Columns of (S, m) that are worked on together."""
    step = max(1, TOGETHER // len(values))
    return [slice(start, start + step) for start in range(0, values.shape[1], step)]


def _smooth_tails(rows: Array, size: int) -> Array:
    """Replace the `size` largest entries of each row (m, S), whose maxima are zero, in place."""
    places = np.argpartition(rows, rows.shape[1] - size - 1, axis=1)[:, -size - 1 :]
    values = np.take_along_axis(rows, places, axis=1)
    order = np.argsort(values, axis=1)
    places, values = np.take_along_axis(places, order, 1), np.take_along_axis(values, order, 1)
    cutoff = np.exp(values[:, :1])
    k, scale = _fit_pareto(np.exp(values[:, 1:]) - cutoff)
    constant = values[:, -1] - values[:, 1] < np.finfo(float).tiny
    levels = np.log1p(-np.arange(0.5, size) / size)
    with np.errstate(all="ignore"):
        smooth = np.where(
            k[:, None] == 0.0,
            cutoff - scale[:, None] * levels,
            cutoff + scale[:, None] * np.expm1(-k[:, None] * levels) / k[:, None],
        )
        smooth = np.minimum(np.log(smooth), 0.0)
    fits = np.isfinite(smooth).all(axis=1) & ~constant
    kept = np.where(fits[:, None], smooth, values[:, 1:])
    np.put_along_axis(rows, places[:, 1:], kept, axis=1)
    return np.where(constant, -np.inf, k)


def _fit_pareto(tails: Array) -> tuple[Array, Array]:
    """Shape and scale (m,) of generalised Pareto distributions of increasing tails (m, n).

    Empirical Bayes (Zhang, Stephens 2009, doi:10.1198/tech.2009.08017) with a weak prior at a half
    on the shape.
    """
    n = tails.shape[1]
    grid = 30 + int(np.sqrt(n))
    quartile = tails[:, int(n / 4 + 0.5) - 1]
    with np.errstate(all="ignore"):
        b = (1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (3.0 * quartile[:, None])
        b = b + 1.0 / tails[:, -1:]
        shape = _mean_logs(b, tails)
        support = n * (np.log(-b / shape) - shape - 1.0)
        weight = np.exp(support - logsumexp(support, axis=1, keepdims=True))
        weight[weight < 10.0 * np.finfo(float).eps] = 0.0
        b = np.sum(b * weight, axis=1) / np.sum(weight, axis=1)
        k = np.mean(np.log1p(-b[:, None] * tails), axis=1)
        scale = -k / b
        k = (n * k + 10.0 * 0.5) / (n + 10.0)
    k = np.where(np.isnan(k), np.inf, k)
    return np.where(quartile <= tails[:, 0], np.nan, k), scale


def largest_share(log_ratios: Array) -> float:
    """Largest importance ratio over their sum."""
    return float(np.exp(np.max(log_ratios) - logsumexp(log_ratios)))


def effective_fraction(log_ratios: Array) -> float:
    """Effective sample size of importance ratios over their number."""
    if not np.any(np.isfinite(log_ratios)):
        return 0.0
    weights = np.exp(log_ratios - np.max(log_ratios))
    return float(weights.sum() ** 2 / np.sum(weights**2) / len(weights))


def log_mean(log_ratios: Array) -> tuple[float, float]:
    """Log of the mean ratio and its Monte Carlo standard error."""
    top = np.max(log_ratios)
    if not np.isfinite(top):
        return -np.inf, np.inf
    weights = np.exp(log_ratios - top)
    mean = weights.mean()
    error = weights.std(ddof=1) / np.sqrt(len(weights)) / mean
    return float(top + np.log(mean)), float(error)


def _mean_logs(b: Array, tails: Array) -> Array:
    """Means (m, g) of log(1 - b x) over tails x (m, n): logs of products of a few, which are dear.

    One by one where products leave the range of numbers.
    """
    n = tails.shape[1]
    products = np.ones((*b.shape, -(-n // FACTORS)))
    for start in range(0, n, products.shape[2]):
        part = tails[:, None, start : start + products.shape[2]]
        products[:, :, : part.shape[2]] *= 1.0 - b[:, :, None] * part
    means = np.sum(np.log(products), axis=2) / n
    lost = ~np.isfinite(means).all(axis=1)
    means[lost] = np.mean(np.log1p(-b[lost][:, :, None] * tails[lost][:, None, :]), axis=2)
    return means
