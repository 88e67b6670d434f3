"""Rows of a design by the levels of a grouping factor, a variable or the cells of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.grouping import grouping_factor
from bayeslmm.schema import sanitise


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowGroups:
    """Groups of rows.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Group of each row, from 0 without gaps.
    labels : ndarray of str (m,), object
        Labels of the groups, those of the levels of a grouping factor.
    values : pandas.Index
        The same, but the values of a variable where it is one.
    key : str
        Name made of letters, digits and ``_``.
    """

    codes: NDArray[np.intp]
    labels: NDArray[np.object_]
    values: pd.Index
    key: str


def row_groups(design: Design, by: str) -> RowGroups | None:
    """Group the rows; None where `by` is no grouping factor, variable or cells such as ``"a:b"``.

    The levels of a variable are in the order that they have as levels of a grouping factor.
    """
    for factor in design.random:
        if factor.name == by:
            values = pd.Index(factor.levels)
            return RowGroups(
                codes=factor.codes, labels=factor.levels, values=values, key=factor.key
            )
    names = [by] if by in design.data.columns else by.split(":")
    if not set(names) <= set(design.data.columns):
        return None
    found = grouping_factor(design.data, names)
    values = pd.Index(found.levels) if len(names) > 1 else found.parts[0]
    return RowGroups(codes=found.codes, labels=found.levels, values=values, key=sanitise(by))


def group_names(design: Design) -> list[str]:
    """Grouping factors and variables that rows can be grouped by."""
    names = [*(factor.name for factor in design.random), *map(str, design.data.columns)]
    return list(dict.fromkeys(names))
