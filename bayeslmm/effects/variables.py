"""The variables of the fixed effects: their levels and means, and how many rows levels share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.grouping import column_levels
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import holds_levels
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]

LARGEST = 100_000
"""Made-up rows that are held."""

PRODUCTS = 20_000_000
"""Numbers in the equations for counts of rows."""

WHOLE = 0.1
"""Distance from whole numbers up to which sums have enough digits to count rows."""

_FACTOR_CALLS = {"C", "factor"}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Variables:
    """The variables of the fixed part of a model.

    Attributes
    ----------
    levels : dict of str to list
        Values of each factor, in order.
    centres : dict of str to float
        Mean of each numeric covariate.
    offsets : frozenset of str
        Variables of the offsets.
    """

    levels: dict[str, list[Any]]
    centres: dict[str, float]
    offsets: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """Factors, then covariates."""
        return (*self.levels, *self.centres)


def variables_of(design: Design, right: Side | None = None) -> Variables:
    """Find the factors and the covariates of the fixed part, or of another side, and offsets."""
    formula = design.formula if right is None else replace(design.formula, right=right)
    as_factors = made_factors(formula.right)
    levels: dict[str, list[Any]] = {}
    centres: dict[str, float] = {}
    for name in sorted(formula.predictors(effects=False, groups=False), key=formula.source.find):
        column = design.sample[name]
        if is_factor(column) or name in as_factors:
            levels[name] = levels_of(column)
        else:
            centres[name] = design.mean_of(name)
    offsets = frozenset[str]().union(*(shift.variables for shift in formula.shifts))
    return Variables(levels=levels, centres=centres, offsets=offsets)


def made_factors(right: Side) -> frozenset[str]:
    """Variables of numbers that are made into factors."""
    makers = (part for part in right.operands if _FACTOR_CALLS & part.functions)
    return frozenset[str]().union(*(part.variables for part in makers))


def is_factor(column: pd.Series) -> bool:
    """Whether a column holds levels and not numbers."""
    return holds_levels(column) or not pd.api.types.is_numeric_dtype(column.dtype)


def levels_of(column: pd.Series) -> list[Any]:
    """Levels of a column in the order of the model."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.remove_unused_categories().cat.categories.tolist()
    if pd.api.types.is_bool_dtype(column.dtype):
        return [value for value in (False, True) if (column == value).any()]
    if pd.api.types.is_numeric_dtype(column.dtype):
        return sorted(column.unique().tolist())
    return column_levels(column)[1].tolist()


# --- without rows ----------------------------------------------------------------------


def varied_rows(
    design: SummarisedDesign, times: int, cells_of: Sequence[Sequence[str]] | None = None
) -> pd.DataFrame:
    """Make up rows of the variables of the fixed effects, with all levels of each factor.

    Parameters
    ----------
    design : SummarisedDesign
        The design of a model.
    times : int
        Rows of each combination.
    cells_of : sequence of sequence of str, optional
        Factors whose combinations of levels all are there; those of each term by default.

    Returns
    -------
    pandas.DataFrame
        What is not said varies: other factors, and numbers within the range of the data.

    Raises
    ------
    DataError
        If there are too many combinations.
    """
    known, right = variables_of(design), design.formula.right
    if cells_of is None:
        cells_of = [sorted(side.variables) for side in map(right.product, right.terms)]
    rng = np.random.default_rng(1)
    others, makers = [*known.levels, *known.centres], made_factors(right)
    parts, total = [], 0
    for names in dict.fromkeys(tuple(n for n in known.levels if n in one) for one in cells_of):
        size = times * int(np.prod([len(known.levels[name]) for name in names], dtype=float))
        total += size
        if total > LARGEST:
            raise DataError(
                f"{design.formula.source!r} has too many combinations of levels for what sums over "
                "rows tell: build the model from a data frame in memory."
            )
        cells = list(product(*(known.levels[name] for name in names))) * times
        columns = {name: [cell[i] for cell in cells] for i, name in enumerate(names)}
        columns = made_up_values(design, others, size, rng, makers) | columns
        parts.append(pd.DataFrame(columns, index=range(size)))
    frame = pd.concat(parts, ignore_index=True)
    return frame.astype({name: design.sample[name].dtype for name in known.levels})


def made_up_values(
    design: Design,
    names: Sequence[str],
    size: int,
    rng: np.random.Generator,
    as_factors: frozenset[str],
) -> dict[str, Any]:
    """Random levels of factors, and random numbers of about the size of those in the data.

    Numbers of the variables `as_factors` are taken from those that there are.
    """
    found: dict[str, Any] = {}
    for name in names:
        column = design.sample[name]
        if is_factor(column) or name in as_factors:
            levels = levels_of(column)
            chosen = [levels[place] for place in rng.integers(len(levels), size=size)]
            found[name] = pd.Series(chosen, dtype=column.dtype)
        else:
            found[name] = _numbers(design, name, size, rng)
    return found


def _numbers(design: Design, name: str, size: int, rng: np.random.Generator) -> Any:
    """Numbers within the range of a covariate, whole ones where it has these."""
    column = design.sample[name]
    if isinstance(design, SummarisedDesign) and design.withholds(name):
        return rng.uniform(*_near_mean(design, name), size)
    try:
        low, high = design.range_of(name)
    except (KeyError, DataError):  # of a slope alone, or withheld
        low, high = sorted(factor * float(column.iloc[0]) for factor in (0.5, 2.0))
    if pd.api.types.is_integer_dtype(column.dtype):
        return rng.integers(int(low), int(high) + 1, size)
    return rng.uniform(low, high, size)


def _near_mean(design: SummarisedDesign, name: str) -> tuple[float, float]:
    """Ends of numbers about the mean of a covariate, on its side of zero."""
    mean = design.mean_of(name)
    away = 0.1 * abs(mean) or 0.1
    if name in design.coefs:
        sd = float(np.sqrt(design.moments.variances[design.coefs.index(name)]))
        away = min(0.25 * sd, 0.5 * abs(mean) or sd)
    return mean - away, mean + away


def cell_counts(design: Design, names: Sequence[str]) -> dict[tuple[Any, ...], float]:
    """Number of rows of each combination of levels of some factors that has rows.

    Raises
    ------
    DataError
        If only sums over rows are kept, from which the numbers do not follow.
    """
    if not isinstance(design, SummarisedDesign):
        counts = design.data[list(names)].astype(object).value_counts()
        return {key: float(count) for key, count in counts.items()}
    levels = variables_of(design).levels
    cells = list(product(*(levels[name] for name in names)))
    columns = _columns_of_cells(design, names, len(cells))
    found = _solved(design, columns)
    if found is None:
        interaction = " * ".join(names)
        raise DataError(
            f"How many rows the combinations of {listed(names)} have does not follow from the sums "
            f"over rows that the model keeps. It does with `{interaction}` among the fixed effects "
            "and of a data frame in memory; weights='outer' needs the rows of each level alone."
        )
    return {cell: count for cell, count in zip(cells, found, strict=True) if count > 0}


def _columns_of_cells(
    design: SummarisedDesign, names: Sequence[str], cells: int
) -> tuple[Array, NDArray[np.bool_]]:
    """Columns (cells, k) of X in each combination of levels, and which depend on nothing else."""
    rows = varied_rows(design, 3, [names])
    columns = design.spec.rows(rows, random="none").X_full.reshape(3, cells, -1)
    return columns[0], np.all(columns == columns[0], axis=(0, 1))


def _solved(design: SummarisedDesign, found: tuple[Array, NDArray[np.bool_]]) -> Array | None:
    """Rows of each cell from sums of columns, or of their products; None if several numbers fit."""
    moments = design.summary.sides[design.formula.right]
    columns, own = found
    own = np.append(own, False)  # the response
    known = np.column_stack([moments.ones, moments.columns[:, own]])
    sums = known.T @ known
    columns = np.column_stack([np.ones(len(columns)), columns[:, own[:-1]]])
    k = columns.shape[1]
    first, second = np.tril_indices(k)
    for left, right in ((np.zeros(k, dtype=int), np.arange(k)), (first, second)):
        if len(left) * len(columns) > PRODUCTS:
            return None
        equations = (columns[:, left] * columns[:, right]).T
        scale = np.maximum(np.abs(equations).max(axis=1), np.finfo(float).tiny)
        counts, _, rank, _ = np.linalg.lstsq(equations / scale[:, None], sums[left, right] / scale)
        whole = np.round(counts)
        if rank == len(columns) and np.abs(counts - whole).max() < WHOLE:
            return np.maximum(whole, 0.0)
    return None
