"""Weights of contrasts of k means: pairwise, against a reference, polynomial and others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

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
