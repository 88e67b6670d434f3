"""Pareto k of importance ratios.

References
----------
Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Array = NDArray[np.float64]

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
