"""Contrasts of means: their weights, and adjustments for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import brentq

Array = NDArray[np.float64]
ContrastMethod = Literal["pairwise", "reference", "sequential", "polynomial", "effects"]
METHODS: tuple[ContrastMethod, ...] = get_args(ContrastMethod)

_DEGREES = ("linear", "quadratic", "cubic", "quartic")


def contrast_weights(
    method: str | Mapping[str, Any] | ArrayLike,
    names: Sequence[str],
    levels: Sequence[Any],
    argument: str = "method",
) -> tuple[Array, list[str]]:
    """Weights and labels of the contrasts of k means.

    Parameters
    ----------
    method : str, mapping or array-like (c, k)
        A name, weights by label (a sequence of k, or a mapping from levels to weights), or the
        weights themselves.
    names : sequence of str
        Labels of the means, for the labels of contrasts.
    levels : sequence
        Their levels, as a mapping may name them; a tuple for several variables.
    argument : str
        What the user calls `method`, for errors.

    Returns
    -------
    weights : ndarray (c, k)
    labels : list of str

    Raises
    ------
    ValueError
        If the method is unknown or weights do not fit.
    """
    if isinstance(method, str):
        return _named(method, list(names), argument)
    if isinstance(method, Mapping):
        rows = [_row(label, row, names, levels) for label, row in method.items()]
        if not rows:
            raise ValueError(f"{argument}={{}}: at least one contrast is expected.")
        return np.array(rows), [str(label) for label in method]
    if isinstance(method, pd.DataFrame):
        labels = [str(label) for label in method.index]
        return _checked(method.to_numpy(dtype=float), len(names)), labels
    weights = _checked(np.atleast_2d(np.asarray(method, dtype=float)), len(names))
    return weights, [_text(row, names) for row in weights]


def _named(method: str, names: list[str], argument: str) -> tuple[Array, list[str]]:
    if method not in METHODS:
        allowed = ", ".join(map(repr, METHODS))
        raise ValueError(
            f"{argument}={method!r}: one of {allowed}, a mapping of labels to weights or an array "
            "of weights is expected."
        )
    k, eye = len(names), np.eye(len(names))
    if method == "pairwise":
        pairs = list(combinations(range(k), 2))
    elif method == "reference":
        pairs = [(i, 0) for i in range(1, k)]
    elif method == "sequential":
        pairs = [(i + 1, i) for i in range(k - 1)]
    elif method == "effects":
        return eye - 1.0 / k, [f"{name} effect" for name in names]
    else:
        return _polynomial(k)
    weights = np.array([eye[i] - eye[j] for i, j in pairs]).reshape(len(pairs), k)
    return weights, [f"{names[i]} - {names[j]}" for i, j in pairs]


def _polynomial(k: int) -> tuple[Array, list[str]]:
    """Orthogonal polynomials of equally spaced levels in emmeans' units: whole numbers."""
    degree = min(6, k - 1)
    basis = np.linalg.qr(np.vander(np.arange(k) - (k - 1) / 2.0, degree + 1, increasing=True))[0]
    rows = []
    for column in basis[:, 1:].T:
        column = column * np.sign(column[-1])
        column = column / column[column > 0.01].min()
        gap = np.abs(column - np.round(column)).max()
        while gap > 0.05:
            column = column / gap
            gap = np.abs(column - np.round(column)).max()
        rows.append(np.round(column))
    labels = [*_DEGREES, *(f"degree {i}" for i in range(5, 7))][:degree]
    return np.array(rows).reshape(degree, k), labels


def _row(label: str, row: Any, names: Sequence[str], levels: Sequence[Any]) -> Array:
    if isinstance(row, Mapping):
        weights = np.zeros(len(names))
        for level, weight in row.items():
            weights[_place(level, names, levels)] = weight
        return weights
    weights = np.asarray(row, dtype=float)
    if weights.shape != (len(names),):
        raise ValueError(
            f"Contrast {label!r} has weights of shape {weights.shape}; {len(names)} are expected, "
            f"one for each of {', '.join(names)}."
        )
    return weights


def _place(level: Any, names: Sequence[str], levels: Sequence[Any]) -> int:
    for i, known in enumerate(levels):
        if level == known or str(level) == names[i]:
            return i
    raise ValueError(f"There is no mean of level {level!r}; there are {', '.join(names)}.")


def _checked(weights: Array, count: int) -> Array:
    if weights.ndim != 2 or weights.shape[1] != count or not np.isfinite(weights).all():
        raise ValueError(
            f"method has weights of shape {weights.shape}: finite weights, one column for each of "
            f"the {count} means, are expected."
        )
    return weights


def _text(row: Array, names: Sequence[str]) -> str:
    """A contrast written out, such as "C - 0.5 A - 0.5 B"."""
    parts: list[str] = []
    for weight, name in sorted(zip(row, names, strict=True), key=lambda pair: -pair[0]):
        if weight:
            sign = "-" if weight < 0 else "+"
            size = "" if abs(weight) == 1 else f"{abs(weight):.4g} "
            parts.append(f"{sign} {size}{name}")
    text = " ".join(parts) or "0"
    return text.removeprefix("+ ")


# --- multiplicity -------------------------------------------------------------------

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
        return _tukey_tail(size, df, means, raw)
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
