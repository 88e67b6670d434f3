"""The reference grid, combinations of values to predict at, and marginal means over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.inputs import nearest
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.back_transform import back_transform
from bayeslmm.effects.quantities import LinearQuantities, names_of, scale_notes
from bayeslmm.effects.reference_grid import (
    ReferenceGrid,
    containers,
    existing,
    existing_labels,
    nesting,
    reference_grid,
)
from bayeslmm.effects.sources import Combinations, Source
from bayeslmm.effects.variables import Variables, cell_counts, is_factor, variables_of
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]
Weights = Literal["equal", "proportional", "outer", "cells"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

LARGEST = 1_000_000
"""Rows of a reference grid."""

# --- grids -----------------------------------------------------------------------------


def check_known(names: Sequence[str], known: Sequence[str], what: str) -> None:
    """Raise DataError for a variable that the fixed part does not have."""
    for name in names:
        if name not in known:
            raise DataError(
                f"{what} names `{name}`, which is no variable of the fixed effects."
                f"{nearest(name, list(known))} They have {', '.join(known) or 'none'}."
            )


def grid_values(
    variables: Variables,
    wanted: Sequence[str],
    at: Mapping[str, Any] | None,
    design: Design | None = None,
) -> dict[str, list[Any]]:
    """Values of every variable in the reference grid.

    Parameters
    ----------
    variables : Variables
        Of the model.
    wanted : sequence of str
        Variables whose values are told apart, in the order in which they vary, slowest last.
    at : mapping, optional
        Values of variables: those of covariates, or some of a factor's levels; or functions of the
        column, such as ``np.median``, which need `design`.
    design : Design, optional
        The design of the model.

    Returns
    -------
    dict of str to list
        Wanted variables first.

    Raises
    ------
    DataError
        If a variable is unknown, a level is, or the grid is too large.
    """
    check_known([*wanted, *(at or {})], variables.names, "The reference grid")
    at = {name: _called(name, value, design) for name, value in (at or {}).items()}
    values: dict[str, list[Any]] = {}
    for name in (*wanted, *(n for n in variables.names if n not in wanted)):
        if name in variables.levels:
            values[name] = _some_levels(name, variables.levels[name], at.get(name))
        else:
            values[name] = _numbers(name, at.get(name, variables.centres[name]))
    size = int(np.prod([len(value) for value in values.values()], dtype=float))
    if size > LARGEST:
        raise DataError(
            f"The reference grid has {size} rows, more than {LARGEST}. Fix variables with at=."
        )
    return values


def _called(name: str, value: Any, design: Design | None) -> Any:
    """A value of `at`, that of a function if it is one."""
    if not callable(value):
        return value
    if design is None or isinstance(design, SummarisedDesign):
        raise DataError(
            f"at={{{name!r}: ...}} is a function of the column, whose rows are not kept: give "
            "numbers instead."
        )
    return value(design.data[name])


def _some_levels(name: str, levels: list[Any], chosen: Any) -> list[Any]:
    if chosen is None:
        return levels
    chosen = [chosen] if isinstance(chosen, str) or np.ndim(chosen) == 0 else list(chosen)
    by_text = {str(level): level for level in levels}
    unknown = [level for level in chosen if level not in levels and str(level) not in by_text]
    if unknown or not chosen:
        raise DataError(f"at={{{name!r}: ...}} has {unknown}; the levels are {levels}.")
    return [level if level in levels else by_text[str(level)] for level in chosen]


def _numbers(name: str, value: Any) -> list[float]:
    try:
        found = np.atleast_1d(np.asarray(value, dtype=np.float64)).tolist()
    except (TypeError, ValueError):
        found = []
    if not found or not np.isfinite(found).all():
        raise DataError(f"at={{{name!r}: {value!r}}}: finite numbers are expected.")
    return list(found)


def grid_frame(values: Mapping[str, list[Any]], like: pd.DataFrame) -> pd.DataFrame:
    """All combinations of values, the first variable varying fastest, typed as the model's data."""
    rows = [row[::-1] for row in product(*reversed(list(values.values())))]
    columns = {}
    for i, name in enumerate(values):
        dtype = like[name].dtype
        column = [row[i] for row in rows]
        if isinstance(dtype, pd.CategoricalDtype):
            columns[name] = pd.Series(pd.Categorical(column, dtype=dtype))
        elif is_factor(like[name]):
            columns[name] = pd.Series(column, dtype=dtype)
        else:
            columns[name] = pd.Series(column, dtype=np.float64)
    return pd.DataFrame(columns, index=pd.RangeIndex(len(rows)))


def encode_grid(
    design: Design, variables: Variables, frame: pd.DataFrame, explicit: Sequence[str]
) -> Combinations:
    """Linear predictor at the rows of a grid.

    The offset is the mean offset of the data unless one of its variables is set (`explicit`).
    """
    encoded = design.spec.rows(frame, random="none")
    if variables.offsets & set(explicit):
        constant = encoded.offset
    else:
        constant = np.full(len(frame), design.mean_offset)
    return Combinations(labels=frame, weights=encoded.X_full, constant=constant)


# --- averages over a grid --------------------------------------------------------------


def average_over(
    cells: Combinations,
    values: Mapping[str, list[Any]],
    wanted: Sequence[str],
    by: Sequence[str],
    share: Array,
) -> Combinations:
    """Average the cells of a grid over the variables that are not wanted.

    Parameters
    ----------
    cells : Combinations
        One quantity per row of the grid.
    values : mapping of str to list
        Values of the grid, wanted variables first.
    wanted, by : sequence of str
        Variables to keep, and those of them within which contrasts are taken.
    share : ndarray (cells,)
        Weight of each cell; scaled here to a sum of one in each mean.
    """
    count = int(np.prod([len(values[name]) for name in wanted], dtype=int))
    matrix = np.zeros((count, len(share)))
    matrix[np.arange(len(share)) % count, np.arange(len(share))] = share
    totals = matrix.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        matrix = np.where(totals > 0, matrix / totals, np.nan)
    labels = cells.labels.loc[: count - 1, list(wanted)].reset_index(drop=True)
    labels = labels.astype({n: object for n in labels if is_factor(labels[n])})
    if not wanted:
        labels = pd.DataFrame({"average": ["overall"]})
    return cells.combine(matrix, labels, tuple(by))


def cell_weights(
    design: Design,
    frame: pd.DataFrame,
    factors: Sequence[str],
    wanted: Sequence[str],
    weights: Any,
) -> Array:
    """Weights of the cells of a grid in the averages over the factors that are not wanted.

    Parameters
    ----------
    design : Design
        Its data are counted, each row once whatever its precision weight, as emmeans does with
        fits of lme4.
    frame : pandas.DataFrame
        The grid.
    factors : sequence of str
        All factors.
    wanted : sequence of str
        Variables that are told apart.
    weights : str
        "equal", "proportional" (to the rows in each combination of the factors averaged over),
        "outer" (products of their marginal frequencies) or "cells" (rows in each cell).
    """
    if weights not in WEIGHTS:
        allowed = ", ".join(map(repr, WEIGHTS))
        raise ValueError(f"weights={weights!r}: one of {allowed} is expected.")
    averaged = [name for name in factors if name not in wanted]
    if weights == "equal" or not averaged:
        return np.ones(len(frame))
    if weights == "outer":
        shares = [_frequencies(design, frame, [name]) for name in averaged]
        return np.asarray(np.prod(shares, axis=0))
    counted = averaged if weights == "proportional" else list(factors)
    return _frequencies(design, frame, counted)


def _frequencies(design: Design, frame: pd.DataFrame, names: Sequence[str]) -> Array:
    table = cell_counts(design, names)
    keys = frame[list(names)].astype(object).itertuples(index=False, name=None)
    return np.array([table.get(key, 0.0) for key in keys])


# --- estimated marginal means -------------------------------------------------------

TARGETS = ("average", "population")
"""With u = 0 and with u averaged over: one thing in a linear model."""


def marginal_means(
    design: Design,
    source: Source,
    variables: str | Sequence[str],
    *,
    at: Mapping[str, Any] | None = None,
    weights: Weights = "equal",
    by: str | Sequence[str] | None = None,
    target: str = "average",
) -> LinearQuantities:
    """Marginal means of the levels of variables.

    Parameters
    ----------
    design : Design
        The design of the model.
    source : EstimateSource or PosteriorSource
        The uncertainty of the coefficients.
    variables, at, weights, by, target
        As in ``fit.means()``.

    Returns
    -------
    LinearQuantities
    """
    check_target(target, TARGETS)
    means, grid = mean_combinations(design, variables, at=at, weights=weights, by=by)
    return LinearQuantities(
        title=_title(means),
        quantities=means,
        source=source,
        notes=(*scale_notes(design), *grid.notes),
        transform=back_transform(design.formula.left),
        grid=grid,
    )


def check_target(target: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for an unknown target."""
    if target not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"target={target!r}: one of {names} is expected here.")


def mean_combinations(
    design: Design,
    variables: str | Sequence[str],
    *,
    at: Mapping[str, Any] | None,
    weights: Weights,
    by: str | Sequence[str] | None,
) -> tuple[Combinations, ReferenceGrid]:
    """Weights of the coefficients in marginal means, and the grid that they are averages over."""
    known = variables_of(design)
    groups = names_of(by)
    wanted = [n for n in names_of(variables) if n not in groups] + list(groups)
    check_known(wanted, known.names, "means()")
    nests = nesting(design, known)
    groups = (*groups, *(n for n in containers(nests, wanted) if n not in groups))
    wanted = [n for n in wanted if n not in groups] + list(groups)
    values = grid_values(known, wanted, at, design)
    frame = grid_frame(values, design.sample)
    cells = encode_grid(design, known, frame, [*wanted, *(at or {})])
    share = cell_weights(design, frame, list(known.levels), wanted, weights)
    share = share * existing(design, nests, frame)
    means = average_over(cells, values, wanted, groups, share)
    if nests:
        means = _without_cells(means, existing_labels(design, nests, means.labels))
    grid = reference_grid(design, known, values, wanted, frame.assign(weight=share), weights, nests)
    return means, grid


def _without_cells(means: Combinations, kept: NDArray[np.bool_]) -> Combinations:
    """The means of combinations of levels that are there."""
    return Combinations(
        labels=means.labels[kept].reset_index(drop=True),
        weights=means.weights[kept],
        constant=means.constant[..., kept],
        by=means.by,
    )


def _title(means: Combinations) -> str:
    names = " x ".join(means.labels.columns)
    return "Marginal mean" if names == "average" else f"Marginal means of {names}"
