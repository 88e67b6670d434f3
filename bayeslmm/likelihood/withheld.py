"""Sums without what is of single rows: small cells refused, values of rows made up or bounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of
from bayeslmm.data.coding import covariate_levels, made_up
from bayeslmm.data.inputs import ROUNDING
from bayeslmm.data.survey import Extremes, sample_columns, sample_encodings
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.moments import Moments
from bayeslmm.likelihood.cells import Cells
from bayeslmm.likelihood.parts import Part, equal_columns

Array = NDArray[np.float64]

WITHHELD = (
    "the values of the rows that stand for each level of factors, which are made up of means, and "
    "the smallest and largest values of the response, variables, columns, offsets and weights"
)
"""What :func:`withheld` takes out, in words."""


def check_cells(part: Part, cells: list[Cells], m: int) -> None:
    """Raise DataError if some count that the sums tell is 1 to m - 1.

    Parameters
    ----------
    part : Part
    cells : list of Cells
        Those of the part.
    m : int
        Rows that a cell must have, unless it has none.
    """
    found = [f"{_words(own)}: {own.smaller(m)}" for own in cells if own.smaller(m)]
    found += [
        f"values of `{name}` other than zero: {count} rows"
        for name, count in _filled(part).items()
        if 0 < count < m
    ]
    if found:
        raise DataError(
            f"Some cells have fewer than {m} rows, which smallest_cell={m} does not let out; "
            f"cells by kind: {'; '.join(found)}. Join levels or take rows of small ones out of "
            "the data, leave terms out of the formula, or ask for a smaller smallest_cell."
        )


def _words(cells: Cells) -> str:
    if len(cells.factors) == 1:
        return f"levels of `{cells.name}`"
    return f"combinations of levels of {listed(cells.factors)}"


def _filled(part: Part) -> dict[str, int]:
    """Rows in which columns of the model are not zero."""
    found: dict[str, int] = {}
    for side, names in part.layout.names.items():
        counts = part.summary.sides[side].filled[: len(names)]
        found |= dict(zip(names, counts.tolist(), strict=True))
    return found


def withheld(part: Part, *, borrowed: bool) -> Part:
    """The sums without what is of single rows.

    Parameters
    ----------
    part : Part
    borrowed : bool
        Whether what transforms remember is not of these rows.

    Returns
    -------
    Part
        Its sums and counts are the same. Bounds stand for extremes: of a column, those that its
        mean and standard deviation set [1]_; of the offset and the weights, powers of ten. What is
        constant stays so.

    Raises
    ------
    DataError
        If columns cannot be built without values of single rows.

    References
    ----------
    .. [1] Samuelson, P. A. (1968). How deviant can you be? Journal of the American Statistical
       Association, 63(324), 1522-1525. https://doi.org/10.1080/01621459.1968.10480944
    """
    _check_memory(part, borrowed=borrowed)
    summary = part.summary
    sides = {side: bounded(recentred(own)) for side, own in summary.sides.items()}
    weighted = sides
    if part.weights is not None:
        # extremes are of the columns without their weights
        weighted = {
            side: replace(recentred(own), low=sides[side].low, high=sides[side].high)
            for side, own in summary.weighted.items()
        }
    hidden = replace(
        summary, sides=sides, weighted=weighted, ranges={}, sample=_made_up_sample(part)
    )
    given = (hidden.sample, part.functions, summary.states)
    columns = sample_columns(part.formula, *given)
    return replace(
        part,
        summary=hidden,
        extremes=_bounds(part, sides[part.layout.right]),
        encodings=sample_encodings(part.formula, columns, *given),
    )


# --- what transforms remember ----------------------------------------------------------


def _check_memory(part: Part, *, borrowed: bool) -> None:
    """Raise DataError if splines remember the smallest and the largest value."""
    states = part.summary.states
    found = [text for text, state in states.items() if _ends(text, state)]
    if found and not borrowed:
        raise DataError(
            f"{listed(found)} has its boundary at the smallest and the largest value in these "
            "data, which smallest_cell= does not let out. Name the boundaries, as in "
            "ns(x, knots=[3, 5], boundary_knots=[0, 9]) or bs(x, ..., lower_bound=0, "
            "upper_bound=9), or take them from others with like=."
        )


def _ends(text: str, state: Any) -> bool:
    if not isinstance(state, Mapping):
        return False
    if any(hasattr(value, "boundary") for value in state.values()):  # a natural spline
        return "boundary_knots" not in text
    own = [name for name in ("lower_bound", "upper_bound") if name in state]
    return any(f"{name}=" not in text for name in own)


# --- rows that stand for all -----------------------------------------------------------


def _made_up_sample(part: Part) -> pd.DataFrame:
    summary, functions = part.summary, part.functions
    levels = covariate_levels(part.formula, summary.sample, functions)
    numbers = dict(summary.means)
    response = summary.sides[part.layout.right].means[-1] + summary.mean_offset
    if part.formula.left.reading is None:
        numbers[part.formula.left.label] = float(response)
    for side, names in part.layout.names.items():
        means = summary.sides[side].means
        own = {name: float(mean) for name, mean in zip(names, means, strict=False)}
        numbers |= {name: own[name] for name in side.names if name in own}
    sample = summary.sample.copy()
    for seen in part.levels:
        for name, values in zip(seen.names, seen.parts, strict=True):
            if name not in levels:
                sample[name] = _first_level(sample[name], values)
    _check_others(part, sample, set(levels))
    made = made_up(sample, levels, numbers)
    try:
        columns = sample_columns(part.formula, made, functions, summary.states)
        same = {side: own.names for side, own in columns.items()} == dict(part.layout.names)
        built = sample_encodings(part.formula, columns, made, functions, summary.states)
        other = replace(part, encodings=built)
        same = same and all(equal_columns(other, part, rows) for rows in (summary.sample, made))
    except DataError:
        same = False
    if not same:
        raise DataError(
            "The columns of the model depend on values of single rows, which smallest_cell= does "
            "not let out: an expression makes a factor of numbers. Make the factor a column of "
            "the data, and use that in the formula."
        )
    return made


def _first_level(column: pd.Series, values: pd.Index) -> pd.Series:
    """One level in all rows, with the type of the column."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        code = column.cat.categories.get_indexer(values[:1])[0]
        codes = np.full(len(column), max(code, 0))
        return pd.Series(pd.Categorical.from_codes(codes, dtype=column.dtype), column.index)
    return pd.Series([values[0]] * len(column), column.index).astype(column.dtype)


def _check_others(part: Part, sample: pd.DataFrame, levels: set[str]) -> None:
    groups = {name for seen in part.levels for name in seen.names}
    rest = [str(name) for name in sample if str(name) not in levels | groups]
    odd = [name for name in rest if kind_of(sample[name]) != "numbers"]
    if odd:
        raise DataError(
            f"{listed(odd)} holds {kind_of(sample[odd[0]])}, of which the value of a single row "
            "would be let out. Make it a number in the data."
        )


# --- bounds ----------------------------------------------------------------------------


def recentred(moments: Moments) -> Moments:
    """The same moments about the means: the point they were about may be a row."""
    means = moments.means
    move = np.eye(1 + len(means))
    move[0, 1:] = moments.centre - means
    return replace(moments, centre=means, triangle=moments.triangle @ move)


def bounded(moments: Moments) -> Moments:
    """Moments with bounds in place of extremes, where a column is not constant to rounding."""
    low, high = moments.low, moments.high
    away = np.linalg.norm(moments.centred, axis=0) * np.sqrt((moments.n - 1.0) / moments.n)
    away *= 1.0 + 1e-9  # bounds hold after rounding
    varies = high - low > ROUNDING * moments.largest
    means = moments.means
    return replace(
        moments,
        low=np.where(varies, np.minimum(means - away, means), low),
        high=np.where(varies, np.maximum(means + away, means), high),
    )


def _bounds(part: Part, right: Moments) -> Extremes:
    own = part.extremes
    low, high = own.low.copy(), own.high.copy()
    low[2], high[2] = right.low[-1], right.high[-1]
    shifted = bool(part.formula.shifts)
    low[1], high[1] = _power_of_ten(low[1], high[1])
    if own.low[0] < own.high[0]:
        low[0] = low[2] + (low[1] if shifted else 0.0)
        high[0] = high[2] + (high[1] if shifted else 0.0)
    weights = own.weights.copy()
    if part.weights is not None and weights[0] < weights[1]:
        weights[0] = 10.0 ** np.floor(np.log10(weights[0]))
        weights[1] = 10.0 ** np.ceil(np.log10(weights[1]))
    return Extremes(low=low, high=high, weights=weights)


def _power_of_ten(low: float, high: float) -> tuple[float, float]:
    """Bounds of values that are not constant: plus and minus a power of ten."""
    if low == high:
        return low, high
    largest = max(abs(low), abs(high))
    bound = float(10.0 ** np.ceil(np.log10(largest)))
    return -bound, bound
