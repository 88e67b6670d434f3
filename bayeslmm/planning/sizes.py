"""The rows of a study with more or fewer levels, or rows of each level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.summaries.parameters import whole_number

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

STRATA = 0.5
"""Share of the levels up to which the values of a variable between them make strata."""


class Resized(NamedTuple):
    """Rows of a study of another size.

    Attributes
    ----------
    frame : pandas.DataFrame
        The rows.
    rows : ndarray of int (m,)
        Which row of the study each is a copy of.
    """

    frame: pd.DataFrame
    rows: Indices


def resized(
    design: Design, frame: pd.DataFrame, along: str | None, within: str | None, size: Any
) -> Resized:
    """Rows of a study with `size` levels of `along`, or `size` rows in each level of `within`.

    Parameters
    ----------
    design : Design
        The design of the study.
    frame : pandas.DataFrame
        Its rows.
    along : str or None
        A grouping variable. Its levels are taken in turn, those that differ in variables between
        levels alternating, and copied under new names where there are too few; levels nested in
        them by their names get new names with them.
    within : str or None
        A variable. The rows of each of its levels are taken in turn, and copied where there are
        too few.
    size : int
        Number of levels or rows.

    Raises
    ------
    DataError
        If both or none are given, or the variable is no grouping variable of the model.
    ValueError
        If `size` is not a whole number of at least 1.
    """
    if (along is None) == (within is None):
        raise DataError("Give along=, a variable whose levels are counted, or within=, not both.")
    size = whole_number(size, "size")
    numeric = design.formula.predictors(groups=False)
    name = along if within is None else within
    groups = [v for v in frame.columns if v not in numeric | design.formula.left.variables]
    if name not in (groups if within is None else frame.columns):
        raise DataError(
            f"{name!r} is no variable whose levels can be counted; there are "
            f"{', '.join(map(repr, groups)) or 'none'}. For other values of predictors, plan the "
            "study on another data frame."
        )
    assert name is not None
    if within is not None:
        rows = _within(frame, name, size)
        return Resized(frame.iloc[rows].reset_index(drop=True), rows)
    others = [v for v in groups if v != name]
    return _along(frame, name, size, others, sorted(numeric & set(frame.columns)))


def _within(frame: pd.DataFrame, name: str, size: int) -> Indices:
    places = frame.groupby(name, sort=False, observed=True).indices.values()
    return np.concatenate([own[np.arange(size) % len(own)] for own in map(np.sort, places)])


def _along(
    frame: pd.DataFrame, name: str, size: int, groups: Sequence[str], predictors: Sequence[str]
) -> Resized:
    codes, levels = pd.factorize(frame[name])
    order = _alternating(frame, codes, len(levels), predictors)
    own = [np.flatnonzero(codes == level) for level in range(len(levels))]
    parts = [own[order[j % len(order)]] for j in range(size)]
    rows = np.concatenate(parts)
    copy = np.repeat(np.arange(size) // len(order), [len(part) for part in parts])
    changed = frame.iloc[rows].reset_index(drop=True)
    nested = [v for v in groups if _is_nested(frame[v], codes)]
    for variable in [name, *nested] if size > len(order) else ():
        labels = changed[variable].astype(str)
        changed[variable] = labels.where(copy == 0, labels + "." + (copy + 1).astype(str))
    return Resized(changed, rows)


def _is_nested(column: pd.Series, codes: Indices) -> bool:
    """Whether each level of a column has rows of one level alone, of several of its own."""
    own = pd.factorize(column)[0]
    pairs = len(set(zip(own, codes, strict=True)))
    return bool(pairs == len(set(own)) >= len(set(codes)))


def _alternating(
    frame: pd.DataFrame, codes: Indices, count: int, predictors: Sequence[str]
) -> Indices:
    """Order of the levels in which those of different strata alternate."""
    stratum = np.zeros(count, dtype=np.intp)
    for variable in predictors:
        values = pd.factorize(frame[variable])[0]
        first = np.zeros(count, dtype=np.intp)
        first[codes[::-1]] = values[::-1]
        if np.array_equal(first[codes], values) and len(set(first)) <= STRATA * count:
            stratum = np.unique(stratum * (values.max() + 1) + first, return_inverse=True)[1]
    rank = pd.Series(stratum).groupby(stratum).cumcount().to_numpy()
    return np.lexsort((stratum, rank))


def check_same_columns(before: Design, after: Design, rows: Indices) -> None:
    """Refuse designs whose columns at copied rows are not those of the rows.

    Raises
    ------
    DataError
        If coefficients are lost or added, or columns depend on all rows together.
    """
    pairs = zip(before.random, after.random, strict=True)
    same = before.coefs == after.coefs and all(f.coefs == g.coefs for f, g in pairs)
    if not same:
        lost = sorted(set(before.coefs) ^ set(after.coefs)) or ["random effects"]
        raise DataError(
            f"A study of {after.n} rows does not have the coefficients of that of {before.n} rows "
            f"({', '.join(lost)}): choose larger sizes."
        )
    blocks = [(before.X[rows], after.X)]
    for f, g in zip(before.random, after.random, strict=True):
        blocks += [(a.Z[rows], b.Z) for a, b in zip(f.slots, g.slots, strict=True)]
    for mine, other in blocks:
        if not np.allclose(mine, other, rtol=1e-8, atol=1e-10):
            raise DataError(
                "Columns of the formula depend on all rows together, as those of scale(x), "
                "poly(x, 2) and splines do, so that coefficients would mean something else in a "
                "study of another size: compute these variables in the data frame beforehand."
            )
