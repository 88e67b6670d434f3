"""Columns and levels of grouping factors in a model, from those that rows were summed over."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.frames import Codes
from bayeslmm.data.level_sets import SeenLevels
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.summarised import Summary, side_width

Array = NDArray[np.float64]


def factor_covariates(factor: FactorSpec, summary: Summary) -> Array:
    """Columns (m, k) with the lengths of Z, weighted, and the angles within each block."""
    totals = summary.factors.get(factor.key)
    if totals is not None and totals.slots is not None:
        return totals.slots.columns
    parts = []
    for t, side in enumerate(factor.sides):
        strata = None if totals is None else totals.strata[t]
        if strata is not None:
            parts += [own.columns for own in strata.weighted]
        else:
            width = side_width(side, summary.sides)
            parts.append(summary.weighted[side].columns[:, :width])
    return _side_by_side(parts)


def _side_by_side(parts: Sequence[Array]) -> Array:
    """Columns with the lengths of Z, and the angles of those of each term."""
    height = max(sum(part.shape[1] for part in parts), *(len(part) for part in parts))
    return np.hstack([np.pad(part, ((0, height - len(part)), (0, 0))) for part in parts])


def own_columns(factor: FactorSpec, summary: Summary) -> Array | None:
    """Which of the k coefficients each summed column of each level is: (J, m, k).

    None where they are the same of all levels.
    """
    if not factor.divided:
        return None
    widths = [side_width(side, summary.sides) for side in factor.sides]
    chosen = np.zeros((len(factor.levels), sum(widths), len(factor.coefs)))
    levels, column, place = np.arange(len(chosen))[:, None], 0, 0
    for strata, width in zip(factor.strata, widths, strict=True):
        columns = column + np.arange(width)
        if strata is None:
            chosen[:, columns, place + np.arange(width)] = 1.0
            place += width
        else:
            chosen[levels, columns, strata.places[strata.of_level]] = 1.0
            place += strata.places.size
        column += width
    return chosen


def level_places(factor: FactorSpec, seen: SeenLevels) -> Codes:
    """Place (J,) among the levels of a model of each level that has rows."""
    if factor.relationship is None:
        return np.arange(len(seen))
    return factor.parts[0].get_indexer(seen.parts[0])
