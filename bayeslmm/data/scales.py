"""Numbers that double precision has no room for: too large, too small, too nearly constant.

Variances are squares of the numbers of a model, and their standard errors squares of these, so that
only part of the range of double precision can be used. A covariate that hardly varies beside its
mean keeps only the digits of its variation, and so do the intercept and every prediction.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

SMALLEST = 1e-50
LARGEST = 1e50
"""Range of the largest absolute value of a column."""

NEARLY_CONSTANT = 1e-10
"""Range over largest absolute value below which too few digits of a column's effect are left."""

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""The same ratio up to which a column counts as constant, its variation being rounding."""

LARGEST_RATIO = 1e15
"""Largest weight over smallest: rows with less weight are lost in the rounding of the others."""


def check_response_scale(label: str, y: Array, offset: Array) -> None:
    """Raise DataError for a response (less offset) that is far too large or small."""
    for what, values in ((f"The response `{label}`", y), ("The offset", offset)):
        if np.any(values):
            _check_size(what, values)


def check_column_scales(names: Sequence[str], columns: Array, where: str) -> None:
    """Raise DataError for a column (n, k) far too large or small, or nearly constant.

    Parameters
    ----------
    names : sequence of str
        Labels of the columns.
    columns : ndarray (n, k)
        Their values.
    where : str
        What they belong to, for the message.
    """
    for name, values in zip(names, columns.T, strict=True):
        if np.any(values):
            _check_size(f"The column `{name}` of {where}", values)
    for j, (name, values) in enumerate(zip(names, columns.T, strict=True)):
        if _is_nearly_constant(values) and _has_constant(np.delete(columns, j, axis=1)):
            centre = float(np.median(values))
            raise DataError(
                f"The column `{name}` of {where} varies by {np.ptp(values):.2g} about "
                f"{centre:.6g}: double precision has too few digits for its effect beside a "
                f"constant. Subtract the constant in the data, {name} - {centre:.17g}, or leave "
                "the column out."
            )


def check_weights_scale(label: str, weights: Array) -> None:
    """Raise DataError for weights that are far too large or small, or too different."""
    known = weights[~np.isnan(weights)]
    _check_size(label, known)
    smallest, largest = float(known.min()), float(known.max())
    if smallest * LARGEST_RATIO < largest:
        raise DataError(
            f"{label} go from {smallest:.3g} to {largest:.3g}: double precision cannot hold what "
            "rows of the smallest weight say beside those of the largest. Take the rows of "
            f"negligible weight out; the ratio may be at most {LARGEST_RATIO:g}."
        )


def _check_size(what: str, values: Array) -> None:
    size = float(np.max(np.abs(values)))
    if not SMALLEST <= size <= LARGEST:
        verb = "reach" if what.startswith("The weights") else "reaches"
        extreme = "large" if size > LARGEST else "small"
        raise DataError(
            f"{what} {verb} {size:.3g} at most, which is too {extreme} for double precision, as "
            f"variances are squares: the largest absolute value must lie between {SMALLEST:g} and "
            f"{LARGEST:g}. Change the units, for example divide by {_power(size)}."
        )


def _power(size: float) -> str:
    return f"1e{int(np.floor(np.log10(size)))}"


def _is_nearly_constant(values: Array) -> bool:
    size = float(np.max(np.abs(values)))
    return bool(ROUNDING * size < np.ptp(values) < NEARLY_CONSTANT * size)


def _has_constant(columns: Array) -> bool:
    """Whether the constant is a combination of columns (n, k)."""
    sizes = np.max(np.abs(columns), axis=0, initial=0.0)
    scaled = columns[:, sizes > 0] / sizes[sizes > 0]
    ones = np.ones(len(columns))
    weights = np.linalg.lstsq(scaled, ones)[0]
    return bool(np.max(np.abs(scaled @ weights - ones)) < 1e-8)
