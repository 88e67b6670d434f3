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


def smooth_weights(log_ratios: Array) -> tuple[Array, float]:
    """Pareto-smoothed normalised log weights (S,) and the Pareto k of log ratios (S,).

    Ratios that hardly differ have no tail to fit: their k is minus infinity.
    """
    finite = log_ratios[np.isfinite(log_ratios)]
    if len(finite) < 25 or np.ptp(finite) < 1e-8:
        return log_ratios - logsumexp(log_ratios), -np.inf
    from arviz_stats.base import array_stats

    # psislw takes log likelihoods, the negative of log ratios.
    smoothed, k = array_stats.psislw(-np.where(np.isfinite(log_ratios), log_ratios, finite.min()))
    return np.asarray(smoothed), float(k)
