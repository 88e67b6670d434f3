"""Rows by the levels of a grouping factor, a variable or cells of several."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.frames import missing
from bayeslmm.data.grouping import GroupingFactor, grouping_factor
from bayeslmm.exceptions import DataError, listed
from bayeslmm.schema import sanitise


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowGroups:
    """Groups of rows.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Group of each row, from 0 without gaps.
    factor : GroupingFactor
        The groups (m,) as levels.
    values : pandas.Index
        Their labels, but the values of a variable where it is one.
    key : str
        Name made of letters, digits and ``_``.
    """

    codes: NDArray[np.intp]
    factor: GroupingFactor
    values: pd.Index
    key: str


def row_groups(design: Design, by: str) -> RowGroups | None:
    """Group the rows; None where `by` is no grouping factor, variable or cells such as ``"a:b"``.

    The levels of a variable are in the order that they have as levels of a grouping factor.
    """
    for factor in design.random:
        if factor.name == by:
            codes, spec = factor.codes, factor.spec
            if factor.relationship is not None:  # which has levels without rows
                present, codes = np.unique(codes, return_inverse=True)
                spec = spec.with_levels(present)
            values = pd.Index(spec.levels)
            return RowGroups(codes=codes, factor=spec, values=values, key=factor.key)
    names = [by] if by in design.data.columns else by.split(":")
    if not set(names) <= set(design.data.columns):
        return None
    if lacking := [name for name in names if missing(design.data[name]).any()]:
        raise DataError(f"by={by!r}: {listed(lacking)} is missing in some rows.")
    codes, found = grouping_factor(design.data, names)
    values = pd.Index(found.levels) if len(names) > 1 else found.parts[0]
    return RowGroups(codes=codes, factor=found, values=values, key=sanitise(by))


def group_names(design: Design) -> list[str]:
    """Grouping factors and variables that rows can be grouped by."""
    factors = [factor.name for factor in design.random if not factor.pooled]
    names = [*factors, *map(str, design.data.columns)]
    return list(dict.fromkeys(names))
