"""Average predictions, and average differences of predictions at two values of a variable."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.contrast_weights import contrast_weights
from bayeslmm.effects.grid import check_known, is_factor, variables_of
from bayeslmm.effects.linear import Combinations, names_of
from bayeslmm.effects.quantities import LinearQuantities, scale_notes, text_of
from bayeslmm.effects.rows import average_rows, row_groups, rows_frame, stacked
from bayeslmm.effects.slopes import check_columns
from bayeslmm.effects.sources import Source
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
SPREADS = ("sd", "2sd", "iqr", "minmax")
"""Changes of a covariate that its own distribution sets."""


def average_predictions(
    design: Design,
    source: Source,
    *,
    by: str | Sequence[str] | None = None,
    new: Any = None,
    joint: JointDraws | None = None,
) -> LinearQuantities:
    """Predictions averaged over rows; arguments as in ``fit.average_predictions()``."""
    frame = rows_frame(design, new)
    groups = row_groups(frame, names_of(by), pd.DataFrame({"average": ["overall"]}))
    result = average_rows(design, [(frame, np.ones(len(frame)))], groups, joint)
    title = f"Predictions averaged over {len(frame)} rows"
    return LinearQuantities(
        title=title, quantities=result, source=source, notes=scale_notes(design)
    )


def comparisons(
    design: Design,
    source: Source,
    variable: str,
    change: Any = None,
    *,
    by: str | Sequence[str] | None = None,
    new: Any = None,
    joint: JointDraws | None = None,
) -> LinearQuantities:
    """Average differences of predictions; arguments as in ``fit.comparisons()``."""
    known = variables_of(design)
    check_known([variable], known.names, "The comparison")
    frame = rows_frame(design, new)
    check_columns([variable], frame)
    if variable in known.levels:
        points, method = _factor_points(frame, variable, known.levels[variable], change)
    else:
        points, method = _numeric_points(design, frame, variable, change)
    overall = pd.DataFrame({"average": ["overall"]})
    groups = row_groups(frame, names_of(by), overall)
    ones = np.ones(len(frame))
    parts = [
        average_rows(design, [(frame.assign(**{variable: column}), ones)], groups, joint)
        for _, column in points
    ]
    weights, texts = contrast_weights(
        method, [text_of(level) for level, _ in points], [level for level, _ in points], "change"
    )
    result = _compared(parts, weights, [f"{variable}: {text}" for text in texts], names_of(by))
    title = f"Differences by {variable}, averaged over {len(frame)} rows"
    return LinearQuantities(
        title=title, quantities=result, source=source, notes=scale_notes(design)
    )


def _compared(
    parts: Sequence[Combinations], weights: Array, texts: Sequence[str], by: Sequence[str]
) -> Combinations:
    """Contrasts of averages at several values of a variable, in each group of rows."""
    groups = parts[0].labels
    count = len(groups)
    both = stacked(parts, pd.concat([groups] * len(parts), ignore_index=True))
    matrix = np.vstack([np.kron(weights, np.eye(count)[g]) for g in range(count)])
    labels = pd.DataFrame(
        [
            {**{name: groups.loc[g, name] for name in by}, "contrast": text}
            for g in range(count)
            for text in texts
        ]
    )
    return both.combine(matrix, labels, ())


def _factor_points(
    frame: pd.DataFrame, variable: str, levels: list[Any], change: Any
) -> tuple[list[tuple[Any, pd.Series]], Any]:
    """Every row at each level in turn, and the contrasts of these."""
    column = frame[variable]
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        dtype = pd.CategoricalDtype(levels)

    def at(level: Any) -> pd.Series:
        values: Any = [level] * len(frame)
        return pd.Series(values, index=frame.index, dtype=dtype if is_factor(column) else None)

    if isinstance(change, tuple):
        first, second = (_known_level(variable, value, levels) for value in _pair(change))
        return [(first, at(first)), (second, at(second))], "sequential"
    method = "reference" if change is None else change
    if isinstance(method, Real):
        raise ValueError(
            f"change={change!r}: `{variable}` is a factor; a method of contrasts, a pair of levels "
            "(a, b) or a mapping of labels to weights is expected."
        )
    return [(level, at(level)) for level in levels], method


def _numeric_points(
    design: Design, frame: pd.DataFrame, variable: str, change: Any
) -> tuple[list[tuple[Any, Any]], Any]:
    x = frame[variable].to_numpy(dtype=np.float64)
    observed = design.data[variable].to_numpy(dtype=np.float64)
    change = 1 if change is None else change
    if isinstance(change, tuple):
        low, high = (_number(variable, value) for value in _pair(change))
        return [(low, np.full_like(x, low)), (high, np.full_like(x, high))], "sequential"
    if isinstance(change, str):
        low, high = _spread(observed, variable, change)
        points = [("low", np.full_like(x, low)), ("high", np.full_like(x, high))]
        return points, {f"{change} ({low:.4g} to {high:.4g})": [-1.0, 1.0]}
    by = _number(variable, change)
    return [("observed", x), ("changed", x + by)], {f"{by:+g}": [-1.0, 1.0]}


def _spread(observed: Array, variable: str, change: str) -> tuple[float, float]:
    if change in ("sd", "2sd"):
        half = observed.std(ddof=1) * (1.0 if change == "2sd" else 0.5)
        return float(observed.mean() - half), float(observed.mean() + half)
    if change == "iqr":
        low, high = np.quantile(observed, [0.25, 0.75])
        return float(low), float(high)
    if change == "minmax":
        return float(observed.min()), float(observed.max())
    allowed = ", ".join(map(repr, SPREADS))
    raise ValueError(
        f"change={change!r}: a number, a pair (a, b) or one of {allowed} is expected for the "
        f"covariate `{variable}`."
    )


def _pair(change: tuple[Any, ...]) -> tuple[Any, Any]:
    if len(change) != 2:
        raise ValueError(f"change={change!r}: a pair (from, to) is expected.")
    return change[0], change[1]


def _number(variable: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
        raise ValueError(f"change of `{variable}`: a finite number is expected, got {value!r}.")
    return float(value)


def _known_level(variable: str, value: Any, levels: list[Any]) -> Any:
    for level in levels:
        if value == level or str(value) == str(level):
            return level
    raise ValueError(f"`{variable}` has no level {value!r}; its levels are {levels}.")
