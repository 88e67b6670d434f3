"""Equivalence: two one-sided tests of estimates, regions of practical equivalence of draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.effects.multiplicity import Side

Array = NDArray[np.float64]
Bounds = tuple[float, float]


def checked_region(bounds: float | Sequence[float], name: str = "rope") -> Bounds:
    """Region of equivalence (low, high), its bounds included, from a half-width or a pair.

    Parameters
    ----------
    bounds : float or pair of float
        A number stands for that far on either side of zero.
    name : str
        What the argument is called.

    Raises
    ------
    ValueError
        If they are not finite and increasing.
    """
    try:
        ends = np.asarray(bounds, dtype=np.float64)
    except (TypeError, ValueError):
        ends = np.empty(0)
    if ends.ndim == 0:
        ends = np.array([-ends, ends])
    if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] >= ends[1]:
        raise ValueError(f"{name}={bounds!r}: a positive number or a pair (low, high) is expected.")
    return float(ends[0]), float(ends[1])


def one_sided_tests(
    value: Array, error: Array, df: Array, bounds: Bounds, side: Side, alpha: float
) -> dict[str, Array]:
    """Columns of tests of equivalence (m,) of estimates.

    Parameters
    ----------
    value, error, df : ndarray (m,)
        Estimates with standard errors and degrees of freedom.
    bounds : tuple of float
        Of the region of equivalence.
    side : str
        "two-sided": within the bounds; "greater": above the lower one (non-inferiority); "less":
        below the upper one.
    alpha : float
        Level of each one-sided test.

    References
    ----------
    Schuirmann (1987), doi:10.1007/BF01068419; R's ``emmeans::test(delta=, side=)``.
    """
    above = stats.t.sf((value - bounds[0]) / error, df)
    below = stats.t.cdf((value - bounds[1]) / error, df)
    p_value = {"two-sided": np.maximum(above, below), "greater": above, "less": below}[side]
    margin = stats.t.isf(alpha, df) * error
    columns = {"estimate": value, "std_error": error, "df": df}
    if side != "less":
        columns["p_above"] = above
    if side != "greater":
        columns["p_below"] = below
    low = value - margin if side != "less" else np.full_like(value, -np.inf)
    high = value + margin if side != "greater" else np.full_like(value, np.inf)
    decision = np.where(p_value < alpha, DECISIONS[side], "not shown")
    decision = np.where(np.isfinite(p_value), decision, "")
    return columns | {
        "p_value": p_value,
        "conf_low": low,
        "conf_high": high,
        "decision": decision.astype(object),
    }


DECISIONS = {"two-sided": "equivalent", "greater": "non-inferior", "less": "non-superior"}
"""What is shown where the test is significant, by side."""


def rope_columns(draws: Array, bounds: Bounds, side: Side, prob: float) -> dict[str, Array]:
    """Columns of draws (S, m) beside a region of practical equivalence.

    Parameters
    ----------
    draws : ndarray (S, m)
        Draws.
    bounds : tuple of float
        Of the region; one-sided as in `one_sided_tests`.
    side : str
        As in `one_sided_tests`.
    prob : float
        Probability of the highest density interval.

    Returns
    -------
    dict of str to ndarray
        Probabilities below, in and above the region; the highest density interval, the share of
        its draws that are in the region; and the decision by whether the interval is within the
        region, outside or neither.

    References
    ----------
    Kruschke (2018), doi:10.1177/2515245918771304; R's ``bayestestR::equivalence_test``.
    """
    low = -np.inf if side == "less" else bounds[0]
    high = np.inf if side == "greater" else bounds[1]
    ends = np.array([_hdi(column, prob) for column in draws.T]).reshape(-1, 2)
    inside = (draws >= low) & (draws <= high)
    within = (draws >= ends[:, 0]) & (draws <= ends[:, 1])
    with np.errstate(invalid="ignore"):
        share = (inside & within).sum(axis=0) / within.sum(axis=0)
    accepted = (ends[:, 0] >= low) & (ends[:, 1] <= high)
    rejected = (ends[:, 0] > high) | (ends[:, 1] < low)
    known = np.isfinite(draws).all(axis=0)
    decision = np.where(accepted, DECISIONS[side], np.where(rejected, "different", "undecided"))
    columns: dict[str, Array] = {
        "p_below": np.where(known, (draws < low).mean(axis=0), np.nan),
        "rope_probability": np.where(known, inside.mean(axis=0), np.nan),
        "p_above": np.where(known, (draws > high).mean(axis=0), np.nan),
        f"hdi{100 * prob:g}_lb": ends[:, 0],
        f"hdi{100 * prob:g}_ub": ends[:, 1],
        "hdi_in_rope": np.where(known, share, np.nan),
    }
    return columns | {"decision": np.where(known, decision, "").astype(object)}


def _hdi(draws: Array, prob: float) -> tuple[float, float]:
    """The shortest interval with a share of the draws (S,)."""
    if not np.isfinite(draws).all():
        return float("nan"), float("nan")
    ordered = np.sort(draws)
    count = min(len(ordered) - 1, int(np.floor(prob * len(ordered))))
    widths = ordered[count:] - ordered[: len(ordered) - count]
    start = int(np.argmin(widths))
    return float(ordered[start]), float(ordered[start + count])
