"""Numbers at the width of a table."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

MOST_DECIMALS = 6
MINUS = "\N{MINUS SIGN}"
SMALLEST_P = 0.001


def decimals_of(errors: Iterable[float], values: Iterable[float], digits: int) -> int | None:
    """Decimals at which the smallest error has `digits` significant digits.

    Without a usable error, the smallest value counts in its place.

    Returns
    -------
    int or None
        None where fixed point would need more than six decimals.
    """
    for numbers in (errors, values):
        sizes = np.abs(np.asarray(list(numbers), dtype=float))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        if sizes.size:
            rounded = float(f"{sizes.min():.{digits - 1}e}")
            decimals = max(0, digits - 1 - int(np.floor(np.log10(rounded))))
            return decimals if decimals <= MOST_DECIMALS else None
    return digits - 1


def number(value: float, decimals: int | None, digits: int) -> str:
    """A number in fixed point, or in exponential form where `decimals` is None; "" for NaN."""
    if not np.isfinite(value):
        return "" if np.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    text = f"{value:.{digits - 1}e}" if decimals is None else f"{value:.{decimals}f}"
    if float(text) == 0.0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def significant(value: float, digits: int) -> str:
    """A number at so many significant digits."""
    return number(value, decimals_of((), [value], digits), digits)


def p_value(value: float) -> str:
    """A p-value at three decimals."""
    if np.isnan(value):
        return ""
    return f"p < {SMALLEST_P}" if value < SMALLEST_P else f"p = {value:.3f}"
