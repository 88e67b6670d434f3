"""Weights of contrasts of means, by family or as given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
ContrastMethod = Literal[
    "pairwise",
    "reference",
    "sequential",
    "polynomial",
    "effects",
    "others",
    "mean-change",
    "helmert",
    "identity",
]
METHODS: tuple[ContrastMethod, ...] = get_args(ContrastMethod)

_DEGREES = ("linear", "quadratic", "cubic", "quartic")


def contrast_weights(
    method: str | Mapping[str, Any] | ArrayLike,
    names: Sequence[str],
    levels: Sequence[Any],
    argument: str = "method",
    *,
    ref: Any = None,
    reverse: bool = False,
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
    ref : optional
        A level, or several whose average counts, that "reference" compares with.
    reverse : bool
        Differences in the other direction; for families of differences of two means.

    Returns
    -------
    weights : ndarray (c, k)
    labels : list of str

    Raises
    ------
    ValueError
        If the method is unknown or weights do not fit.
    """
    if ref is not None and not (isinstance(method, str) and method == "reference"):
        raise ValueError("ref= is for method='reference' only.")
    if isinstance(method, str):
        return _named(method, list(names), levels, argument, ref, reverse)
    if reverse:
        raise ValueError("reverse=True is for contrasts by name; change the signs of your weights.")
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


def _named(
    method: str, names: list[str], levels: Sequence[Any], argument: str, ref: Any, reverse: bool
) -> tuple[Array, list[str]]:
    if method not in METHODS:
        allowed = ", ".join(map(repr, METHODS))
        raise ValueError(
            f"{argument}={method!r}: one of {allowed}, a mapping of labels to weights or an array "
            "of weights is expected."
        )
    if method in UNORDERED and reverse:
        raise ValueError(f"reverse=True is for differences of two means, not for {method!r}.")
    if method in UNORDERED:
        return UNORDERED[method](names)
    if method == "reference":
        return _against(names, levels, ref, reverse)
    k, eye = len(names), np.eye(len(names))
    if method == "pairwise":
        pairs = list(combinations(range(k), 2))
    else:
        pairs = [(i + 1, i) for i in range(k - 1)]
    if reverse:
        pairs = [(j, i) for i, j in pairs]
    weights = np.array([eye[i] - eye[j] for i, j in pairs]).reshape(len(pairs), k)
    return weights, [f"{names[i]} - {names[j]}" for i, j in pairs]


def _against(
    names: list[str], levels: Sequence[Any], ref: Any, reverse: bool
) -> tuple[Array, list[str]]:
    """Each mean less that of a reference level, or less the average of several."""
    several = isinstance(ref, list | tuple) and ref not in list(levels)
    places = [0] if ref is None else [_place(r, names, levels) for r in (ref if several else [ref])]
    if len(set(places)) == len(names):
        raise ValueError("ref= names all levels, so that there is nothing to compare with them.")
    k, base = len(names), np.zeros(len(names))
    base[places] = 1.0 / len(places)
    text = names[places[0]] if len(places) == 1 else f"avg({', '.join(names[i] for i in places)})"
    rows = [i for i in range(k) if i not in places]
    weights = (np.eye(k)[rows] - base) * (-1.0 if reverse else 1.0)
    pairs = [(text, names[i]) if reverse else (names[i], text) for i in rows]
    return weights, [f"{one} - {other}" for one, other in pairs]


def _effects(names: list[str]) -> tuple[Array, list[str]]:
    k = len(names)
    return np.eye(k) - 1.0 / k, [f"{name} effect" for name in names]


def _others(names: list[str]) -> tuple[Array, list[str]]:
    """Each mean less the average of the others."""
    k = len(names)
    return (np.eye(k) * k - 1.0) / (k - 1), [f"{name} - others" for name in names]


def _mean_change(names: list[str]) -> tuple[Array, list[str]]:
    """The average of the means after a place less the average of those before it."""
    k = len(names)
    cuts = range(1, k)
    rows = [np.repeat([-1.0 / i, 1.0 / (k - i)], [i, k - i]) for i in cuts]
    return np.array(rows).reshape(k - 1, k), [f"{names[i - 1]} | {names[i]}" for i in cuts]


def _helmert(names: list[str]) -> tuple[Array, list[str]]:
    """Each mean less the average of the earlier ones, times their number."""
    k = len(names)
    rows = [np.repeat([-1.0, float(i), 0.0], [i, 1, k - i - 1]) for i in range(1, k)]
    return np.array(rows).reshape(k - 1, k), [f"{name} vs earlier" for name in names[1:]]


def _identity(names: list[str]) -> tuple[Array, list[str]]:
    return np.eye(len(names)), list(names)


def _polynomial(names: list[str]) -> tuple[Array, list[str]]:
    """Orthogonal polynomials of equally spaced levels in emmeans' units: whole numbers."""
    k = len(names)
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


UNORDERED: dict[str, Callable[[list[str]], tuple[Array, list[str]]]] = {
    "polynomial": _polynomial,
    "effects": _effects,
    "others": _others,
    "mean-change": _mean_change,
    "helmert": _helmert,
    "identity": _identity,
}
"""Families that are no differences of two means each."""


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
