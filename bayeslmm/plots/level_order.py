"""The order in which pictures show levels: text naturally, s2 before s10."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.grouping import GroupingFactor, grouping_factor
from bayeslmm.summaries.posterior_tables import locate_levels

Indices = NDArray[np.intp]


def shown_levels(
    design: Design, group: str | None, levels: Sequence[Any] | None
) -> tuple[int, Indices]:
    """Places of a grouping factor and of the levels to show: those given, or all, in order.

    Raises
    ------
    DataError
        If one of them does not exist.
    """
    place, positions = locate_levels(design, group, levels)
    if levels is None:
        positions = level_order(design, design.random[place].grouping)
    return place, positions


def level_order(design: Design, grouping: GroupingFactor) -> Indices:
    """Places (J,) of the levels in the order of pictures.

    Text is ordered naturally, variable by variable; numbers and categories stay as they are.

    Parameters
    ----------
    design : Design
        The design whose data have the variables.
    grouping : GroupingFactor
        The levels.
    """
    ranks = []
    for i, (name, part) in enumerate(zip(grouping.factors, grouping.parts, strict=True)):
        order = value_order(list(part), design.data[name])
        rank = np.empty(len(order), dtype=np.intp)
        rank[order] = np.arange(len(order))
        ranks.append(rank[grouping.cells[:, i]])
    return np.lexsort(ranks[::-1])


def value_order(values: Sequence[Any], column: pd.Series) -> Indices:
    """Places of the values of a column: text in natural order, everything else as it comes."""
    kept = isinstance(column.dtype, pd.CategoricalDtype)
    if kept or not all(isinstance(value, str) for value in values):
        return np.arange(len(values))
    keys = [natural_key(value) for value in values]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)


def group_order(design: Design, by: Any, labels: Sequence[Any]) -> Indices:
    """Places of the groups of rows that `by` makes, with their labels, in the order of pictures.

    Parameters
    ----------
    design : Design
        The design.
    by : str or array-like
        A grouping factor, a variable, cells such as ``"a:b"``, or a value per row.
    labels : sequence
        Values or labels of the groups.
    """
    if not isinstance(by, str):
        return value_order(labels, pd.Series(by))
    known = {factor.name: factor.grouping for factor in design.random}
    names = [by] if by in design.data.columns else by.split(":")
    grouping = known[by] if by in known else grouping_factor(design.data, names)
    order = level_order(design, grouping)
    rank = {str(grouping.levels[place]): position for position, place in enumerate(order)}
    return np.argsort([rank[str(label)] for label in labels])


def natural_key(text: str) -> tuple[list[tuple[str, int, str]], str]:
    """Key that sorts digits by the number they write: its length, then its digits."""
    pieces = re.split("([0-9]+)", text)
    digits = [piece.lstrip("0") for piece in pieces[1::2]] + [""]
    return [(word, len(d), d) for word, d in zip(pieces[::2], digits, strict=True)], text
