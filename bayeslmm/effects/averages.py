"""Slopes, differences and predictions, averaged over the rows of a data frame or a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Real
from operator import add
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.frames import missing, plain_frame, to_frame
from bayeslmm.data.inputs import nearest
from bayeslmm.data.second_pass import concatenated, gathered, row_parts
from bayeslmm.data.sources import open_source
from bayeslmm.effects.contrasts import contrast_weights
from bayeslmm.effects.grid import (
    TARGETS,
    Variables,
    average_over,
    cell_weights,
    check_known,
    check_target,
    grid_frame,
    grid_values,
)
from bayeslmm.effects.groups import text_of
from bayeslmm.effects.quantities import LinearQuantities, names_of, scale_notes
from bayeslmm.effects.sources import Combinations, Source
from bayeslmm.effects.variables import is_factor, levels_of, variables_of
from bayeslmm.exceptions import DataError
from bayeslmm.formula.moments import Moments
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Evaluation = tuple[pd.DataFrame, Array]
"""Rows at which the linear predictor is evaluated, and its weight (n,) in the result."""


SHOWN = 10
"""Positions of rows that a message lists."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Groups:
    """Groups of rows to average over.

    Attributes
    ----------
    labels : pandas.DataFrame
        One row per group.
    matrix : scipy.sparse.csr_array (groups, n)
        Weights of the rows in each average.
    first : ndarray of int (groups,)
        A row of each.
    """

    labels: pd.DataFrame
    matrix: sp.csr_array
    first: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class RowFrames:
    """Rows to average over, as data frames one after the other.

    Attributes
    ----------
    design : Design
        Of the model.
    new : data frame, source or None
        New rows; None for those of the model.
    by : tuple of str
        Variables of groups.
    """

    design: Design
    new: Any
    by: tuple[str, ...]

    def __iter__(self) -> Iterator[pd.DataFrame]:
        if self.new is None:
            for part in row_parts(self.design):
                yield part.data.reset_index(drop=True)
            return
        source = open_source(self.new)
        if source is None:
            yield to_frame(self.new).reset_index(drop=True)
            return
        known = self.design.formula.variables | set(self.by)
        columns = [name for name in source.columns() if name in known]
        for _, frame in source.frames(columns):
            yield plain_frame(frame, columns).reset_index(drop=True)


def row_groups(frame: pd.DataFrame, by: Sequence[str], overall: pd.DataFrame) -> Groups:
    """Group rows by the values of variables, which vary fastest first.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows.
    by : sequence of str
        Variables; none for one group of all rows.
    overall : pandas.DataFrame
        The label of that group, one row.

    Raises
    ------
    DataError
        If a variable is not in the frame, or missing in some rows.
    """
    for name in by:
        if name not in frame:
            raise DataError(
                f"by names `{name}`, which the rows do not have.{nearest(name, list(frame))} They "
                f"have {', '.join(map(str, frame.columns))}."
            )
        gaps = np.flatnonzero(missing(frame[name]))
        if len(gaps):
            more = f" and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else ""
            raise DataError(
                f"by names `{name}`, which has missing values in {len(gaps)} of {len(frame)} rows, "
                f"at positions {', '.join(map(str, gaps[:SHOWN]))}{more}. Fill them in or drop the "
                "rows."
            )
    if not by:
        share = np.full((1, len(frame)), 1.0 / len(frame))
        return Groups(labels=overall, matrix=sp.csr_array(share), first=np.zeros(1, dtype=np.intp))
    codes = np.zeros(len(frame), dtype=np.intp)
    for name in reversed(by):
        order = {value: i for i, value in enumerate(levels_of(frame[name]))}
        codes = codes * len(order) + np.array([order[key] for key in frame[name]], dtype=np.intp)
    _, first, places, counts = np.unique(
        codes, return_index=True, return_inverse=True, return_counts=True
    )
    labels = frame.loc[first, list(by)].reset_index(drop=True)
    labels = labels.astype({n: object for n in labels if is_factor(labels[n])})
    entries = (1.0 / counts[places], (places, np.arange(len(frame))))
    matrix = sp.csr_array(entries, shape=(len(labels), len(frame)))
    return Groups(labels=labels, matrix=matrix, first=first)


def average_rows(
    design: Design,
    frames: Iterable[pd.DataFrame],
    evaluate: Callable[[pd.DataFrame], Sequence[Sequence[Evaluation]]],
    by: Sequence[str],
    overall: pd.DataFrame,
    joint: JointDraws | None,
) -> tuple[list[Combinations], int]:
    """Averages over groups of rows of weighted sums of linear predictors.

    Parameters
    ----------
    design : Design
        The design of the model.
    frames : iterable of pandas.DataFrame
        The rows.
    evaluate : callable
        From rows to what to sum in each of them, for each of several results.
    by : sequence of str
        Variables of the groups.
    overall : pandas.DataFrame
        The label of a group of all rows.
    joint : JointDraws or None
        Draws, to add the random effects of the levels in the rows; None leaves them out.

    Returns
    -------
    results : list of Combinations
    n : int
        Number of rows.

    Raises
    ------
    DataError
        If random effects are wanted of a level that the model has not seen, or there are no rows.
    """
    keys, counts, sums, n = [], [], [], 0
    for frame in frames:
        groups = row_groups(frame, by, overall)
        keys.append(frame.loc[groups.first, list(by)])
        counts.append(1.0 / groups.matrix.max(axis=1).toarray().ravel())
        sums.append([_averages(design, found, groups.matrix, joint) for found in evaluate(frame)])
        n += len(frame)
    if not keys:
        raise DataError("There are no rows to average over.")
    every = concatenated(keys).reset_index(drop=True)
    together = row_groups(every, by, overall) if by else None
    labels = overall if together is None else together.labels
    count = np.concatenate(counts)
    share = np.ones((1, len(count))) if together is None else together.matrix.astype(bool)
    weighted = sp.csr_array(share).astype(np.float64) @ sp.diags_array(count)
    matrix = sp.diags_array(1.0 / weighted.sum(axis=1)) @ weighted
    results = []
    for parts in zip(*sums, strict=True):
        rows = [matrix @ sp.vstack(column) for column in zip(*parts, strict=True)]
        weights, constant = rows[0].toarray(), rows[1].toarray()[:, 0]
        if joint is not None:
            constant = constant + _effect_draws(design, sp.csr_array(rows[2]), joint)
        results.append(Combinations(labels=labels, weights=weights, constant=constant))
    return results, n


def _averages(
    design: Design,
    evaluations: Sequence[Evaluation],
    matrix: sp.csr_array,
    joint: JointDraws | None,
) -> tuple[sp.csr_array, sp.csr_array, sp.csr_array]:
    """Weights of the fixed effects, offset and weights of the random effects, (groups, ...)."""
    count = matrix.shape[0]
    total, constant = np.zeros((count, len(design.coefs_full))), np.zeros(count)
    effects = sp.csr_array((count, sum(f.n_levels * f.n_coefs for f in design.random)))
    for frame, weights in evaluations:
        encoded = design.spec.rows(frame, random="none" if joint is None else "levels")
        share = matrix * weights
        total = total + share @ encoded.X_full
        constant = constant + share @ encoded.offset
        if joint is not None:
            _check_known_levels(encoded)
            effects = effects + share @ encoded.full_Z_matrix()
    return sp.csr_array(total), sp.csr_array(constant[:, None]), sp.csr_array(effects)


def _check_known_levels(encoded: Design) -> None:
    for factor in encoded.random:
        if np.any(factor.codes < 0):
            raise DataError(
                f"target='conditional' needs known levels of `{factor.name}`; the rows have "
                f"new ones ({', '.join(map(str, factor.new_levels[:5]))}). Take "
                "target='average'."
            )


def _effect_draws(design: Design, weights: sp.csr_array, joint: JointDraws) -> Array:
    """Draws (S, groups) of weighted sums of random effects; weights by all columns of Z."""
    sizes = [factor.n_levels * factor.n_coefs for factor in design.random]
    ends = zip(sizes, np.cumsum(sizes), strict=True)
    blocks = [weights[:, end - size : end] for size, end in ends]
    used = [
        np.unique(block.indices // factor.n_coefs)
        for block, factor in zip(blocks, design.random, strict=True)
    ]
    total = np.zeros((joint.size, weights.shape[0]))
    for factor, block, levels, u in zip(
        design.random, blocks, used, joint.effects(used), strict=True
    ):
        columns = (levels[:, None] * factor.n_coefs + np.arange(factor.n_coefs)).ravel()
        total += (block[:, columns] @ u.reshape(joint.size, -1).T).T
    return total


def stacked(parts: Sequence[Combinations], labels: pd.DataFrame) -> Combinations:
    """Several combinations below each other under new labels."""
    return Combinations(
        labels=labels,
        weights=np.vstack([part.weights for part in parts]),
        constant=np.concatenate([part.constant for part in parts], axis=-1),
    )


# --- slopes of the linear predictor by a covariate, averaged over rows or over a reference grid ---

STEP = 1e-4
"""Step of the differences over the range of the covariate, as in marginaleffects."""

GRID = "grid"
"""The reference grid instead of rows."""

ROW_TARGETS = ("average", "population", "conditional")
"""With u = 0, with u averaged over (the same), or with the random effects of known levels."""


def slopes(
    design: Design,
    source: Source,
    variable: str,
    *,
    at: Mapping[str, Any] | None = None,
    by: str | Sequence[str] | None = None,
    new: Any = None,
    joint: JointDraws | None = None,
) -> LinearQuantities:
    """Average slopes by a covariate.

    Parameters
    ----------
    design : Design
        The design of the model.
    source : EstimateSource or PosteriorSource
        The uncertainty of the coefficients.
    variable, at, by, new
        As in ``fit.slopes()``.
    joint : JointDraws, optional
        Draws, to add the random slopes of the levels in the rows.

    Returns
    -------
    LinearQuantities
    """
    known = variables_of(design)
    check_numeric(variable, known)
    overall = pd.DataFrame({"slope": [variable]})
    groups = names_of(by)
    if at is not None or isinstance(new, str):
        _check_grid(at, new, joint)
        result = _grid_slopes(design, known, variable, at, groups)
        result = result if groups else replace(result, labels=overall)
        title = f"Slopes by {variable}, averaged over the reference grid"
    else:

        def differences(frame: pd.DataFrame) -> list[list[Evaluation]]:
            check_columns([variable], frame)
            return [_differences(design, frame, variable)]

        frames = RowFrames(design, new, groups)
        (result,), n = average_rows(design, frames, differences, groups, overall, joint)
        title = f"Slopes by {variable}, averaged over {n} rows"
    return LinearQuantities(
        title=title, quantities=result, source=source, notes=scale_notes(design)
    )


def row_draws(joint: JointDraws, target: str) -> JointDraws | None:
    """Draws whose random effects count in averages over rows: under "conditional" all."""
    check_target(target, ROW_TARGETS)
    return joint if target == "conditional" else None


def check_estimate_target(design: Design, target: str) -> None:
    """Raise ValueError where the random effects of an estimate are to count in averages over rows.

    Their uncertainty is not that of the fixed effects, which is all that its tests know of.
    """
    if target == "conditional" and design.random:
        raise ValueError(
            "target='conditional' needs draws of the random effects, which an estimate has not: "
            "fit a posterior with model.fit(), or leave target= out."
        )
    check_target(target, TARGETS if design.random else ROW_TARGETS)


def check_numeric(variable: str, known: Variables) -> None:
    """Raise DataError unless a variable is a numeric covariate of the fixed part."""
    if variable in known.levels:
        raise DataError(
            f"`{variable}` is a factor and has no slope; see contrasts() and comparisons()."
        )
    check_known([variable], list(known.centres), "The slope")


def check_columns(names: Sequence[str], frame: pd.DataFrame) -> None:
    """Raise DataError for variables that rows do not have."""
    for name in names:
        if name not in frame:
            columns = ", ".join(map(str, frame.columns))
            raise DataError(
                f"The rows have no column `{name}`.{nearest(name, list(frame))} They have "
                f"{columns}."
            )


def _check_grid(at: Mapping[str, Any] | None, new: Any, joint: JointDraws | None) -> None:
    if isinstance(new, str) and new != GRID:
        raise ValueError(f"new={new!r}: a data frame or 'grid' is expected.")
    if at is not None and new is not None and not isinstance(new, str):
        raise ValueError("at= is for the reference grid and cannot be combined with new=.")
    if joint is not None:
        raise ValueError(
            "target='conditional' needs rows with known levels; the reference grid has none. "
            "Leave at= out, or pass rows as new=."
        )


def _grid_slopes(
    design: Design,
    known: Variables,
    variable: str,
    at: Mapping[str, Any] | None,
    by: Sequence[str],
) -> Combinations:
    check_known(by, known.names, "by")
    values = grid_values(known, by, at, design)
    frame = grid_frame(values, design.sample)
    each = sp.csr_array(sp.eye_array(len(frame)))
    sums, constant, _ = _averages(design, _differences(design, frame, variable), each, None)
    cells = Combinations(labels=frame, weights=sums.toarray(), constant=constant.toarray()[:, 0])
    share = cell_weights(design, frame, list(known.levels), by, "equal")
    return average_over(cells, values, by, (), share)


def _differences(design: Design, frame: pd.DataFrame, variable: str) -> list[Evaluation]:
    """Second-order differences in each row, one-sided at the ends of the observed range.

    Splines are not defined beyond their boundary knots, so no row within the range is moved out.
    """
    low, high = design.range_of(variable)
    step = STEP * ((high - low) or max(abs(high), 1.0))
    x = frame[variable].to_numpy(dtype=np.float64)
    inside = (x >= low) & (x <= high)
    direction = np.where(inside & (x + step > high), -1, np.where(inside & (x - step < low), 1, 0))
    offsets = np.where(direction[:, None] == 0, [-1, 0, 1], direction[:, None] * [0, 1, 2])
    one_sided = direction[:, None] * np.array([-1.5, 2.0, -0.5])
    weights = np.where(direction[:, None] == 0, [-0.5, 0.0, 0.5], one_sided)
    return [
        (frame.assign(**{variable: x + step * offsets[:, e]}), weights[:, e] / step)
        for e in range(3)
    ]


# --- average predictions, and average differences of predictions at two values of a variable ---

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
    groups, overall = names_of(by), pd.DataFrame({"average": ["overall"]})
    frames = RowFrames(design, new, groups)
    (result,), n = average_rows(
        design, frames, lambda frame: [[(frame, np.ones(len(frame)))]], groups, overall, joint
    )
    title = f"Predictions averaged over {n} rows"
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
    if variable in known.levels:
        points, method = _factor_points(variable, known.levels[variable], change)
    else:
        points, method = _numeric_points(design, variable, change)

    def evaluate(frame: pd.DataFrame) -> list[list[Evaluation]]:
        check_columns([variable], frame)
        ones = np.ones(len(frame))
        return [[(frame.assign(**{variable: at(frame)}), ones)] for _, at in points]

    overall, groups = pd.DataFrame({"average": ["overall"]}), names_of(by)
    frames = RowFrames(design, new, groups)
    parts, n = average_rows(design, frames, evaluate, groups, overall, joint)
    weights, texts = contrast_weights(
        method, [text_of(level) for level, _ in points], [level for level, _ in points], "change"
    )
    result = _compared(parts, weights, [f"{variable}: {text}" for text in texts], names_of(by))
    title = f"Differences by {variable}, averaged over {n} rows"
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


Column = Callable[[pd.DataFrame], Any]
"""From rows to the values that a variable takes in them."""


def _factor_points(
    variable: str, levels: list[Any], change: Any
) -> tuple[list[tuple[Any, Column]], Any]:
    """Every row at each level in turn, and the contrasts of these."""

    def at(level: Any) -> Column:
        def column(frame: pd.DataFrame) -> pd.Series:
            dtype, values = frame[variable].dtype, [level] * len(frame)
            if isinstance(dtype, pd.CategoricalDtype):
                dtype = pd.CategoricalDtype(levels)
            factor = is_factor(frame[variable])
            return pd.Series(values, index=frame.index, dtype=dtype if factor else None)

        return column

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
    design: Design, variable: str, change: Any
) -> tuple[list[tuple[Any, Column]], Any]:
    change = 1 if change is None else change

    def at(value: float) -> Column:
        return lambda frame: np.full(len(frame), value)

    def moved(by: float) -> Column:
        return lambda frame: frame[variable].to_numpy(dtype=np.float64) + by

    if isinstance(change, tuple):
        low, high = (_number(variable, value) for value in _pair(change))
        return [(low, at(low)), (high, at(high))], "sequential"
    if isinstance(change, str):
        low, high = _spread(design, variable, change)
        points = [("low", at(low)), ("high", at(high))]
        return points, {f"{change} ({low:.4g} to {high:.4g})": [-1.0, 1.0]}
    by = _number(variable, change)
    return [("observed", moved(0.0)), ("changed", moved(by))], {f"{by:+g}": [-1.0, 1.0]}


def _spread(design: Design, variable: str, change: str) -> tuple[float, float]:
    """Ends of a change that the values of a variable in the data set."""
    if change not in SPREADS:
        allowed = ", ".join(map(repr, SPREADS))
        raise ValueError(
            f"change={change!r}: a number, a pair (a, b) or one of {allowed} is expected for the "
            f"covariate `{variable}`."
        )
    if change == "minmax":
        return design.range_of(variable)
    if change == "iqr":
        pair = f"Give its quartiles as a pair, comparisons({variable!r}, (low, high))."
        whole = gathered(design, f"The quartiles of `{variable}`", pair)
        low, high = np.quantile(whole.data[variable].to_numpy(dtype=np.float64), [0.25, 0.75])
        return float(low), float(high)
    mean, sd = mean_and_sd(design, variable)
    half = sd * (1.0 if change == "2sd" else 0.5)
    return mean - half, mean + half


def mean_and_sd(design: Design, variable: str) -> tuple[float, float]:
    """Mean and standard deviation of a numeric variable over the rows of a model."""
    columns = (part.data[[variable]].to_numpy(dtype=np.float64) for part in row_parts(design))
    moments = reduce(add, map(Moments.of, columns))
    return float(moments.means[0]), float(np.linalg.norm(moments.centred)) / np.sqrt(moments.n - 1)


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
