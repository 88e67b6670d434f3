"""Slopes of the linear predictor by a covariate, averaged over rows or over a reference grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.inputs import nearest
from bayeslmm.effects.grid import (
    Variables,
    average_over,
    cell_weights,
    check_known,
    grid_frame,
    grid_values,
    variables_of,
)
from bayeslmm.effects.linear import Combinations, names_of
from bayeslmm.effects.marginal_means import TARGETS, check_target
from bayeslmm.effects.quantities import LinearQuantities, scale_notes
from bayeslmm.effects.rows import Evaluation, Groups, average_rows, row_groups, rows_frame
from bayeslmm.effects.sources import Source
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]

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
        result = result if groups else _labelled(result, overall)
        title = f"Slopes by {variable}, averaged over the reference grid"
    else:
        frame = rows_frame(design, new)
        check_columns([variable], frame)
        parts = _differences(design, frame, variable)
        result = average_rows(design, parts, row_groups(frame, groups, overall), joint)
        title = f"Slopes by {variable}, averaged over {len(frame)} rows"
    return LinearQuantities(
        title=title, quantities=result, source=source, notes=scale_notes(design)
    )


def row_draws(joint: JointDraws, target: str) -> JointDraws | None:
    """Draws whose random effects count in averages over rows: under "conditional" all."""
    check_target(target, ROW_TARGETS)
    return joint if target == "conditional" else None


def check_estimate_target(target: str) -> None:
    """Raise ValueError where the random effects of an estimate are to count in averages over rows.

    Their uncertainty is not that of the fixed effects, which is all that its tests know of.
    """
    if target == "conditional":
        raise ValueError(
            "target='conditional' needs draws of the random effects, which an estimate has not: "
            "fit a posterior with model.fit(), or leave target= out."
        )
    check_target(target, TARGETS)


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


def _labelled(quantities: Combinations, labels: pd.DataFrame) -> Combinations:
    return quantities.combine(np.eye(len(labels)), labels, ())


def _grid_slopes(
    design: Design,
    known: Variables,
    variable: str,
    at: Mapping[str, Any] | None,
    by: Sequence[str],
) -> Combinations:
    check_known(by, known.names, "by")
    values = grid_values(known, by, at)
    frame = grid_frame(values, design.data)
    each = Groups(labels=frame, matrix=_identity(len(frame)))
    cells = average_rows(design, _differences(design, frame, variable), each, None)
    share = cell_weights(design, frame, list(known.levels), by, "equal")
    return average_over(cells, values, by, (), share)


def _identity(size: int) -> Any:
    import scipy.sparse as sp

    return sp.csr_array(sp.eye_array(size))


def _differences(design: Design, frame: pd.DataFrame, variable: str) -> list[Evaluation]:
    """Second-order differences in each row, one-sided at the ends of the observed range.

    Splines are not defined beyond their boundary knots, so no row within the range is moved out.
    """
    observed = design.data[variable].to_numpy(dtype=np.float64)
    low, high = float(observed.min()), float(observed.max())
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
