"""The data with fitted values and residuals beside them: broom.mixed's ``augment``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks.influence import row_influence
from bayeslmm.data.design import Design
from bayeslmm.data.frames import plain_frame, to_frame
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.posterior_tables import interval

Array = NDArray[np.float64]
Incomplete = Literal["omit", "keep"]

_log = logging.getLogger(__name__)

AT_ONCE = 1 << 24
"""Numbers held at once where draws of fitted values are made: 128 MB."""


def augment(
    design: Design,
    data: Any,
    incomplete: Incomplete,
    columns: Callable[[], Mapping[str, Array]],
) -> pd.DataFrame:
    """Put columns by row beside the data.

    Parameters
    ----------
    design : Design
        The design of the model.
    data : data frame or None
        The data that the model was built from; None for the variables of the model alone.
    incomplete : {"omit", "keep"}
        Whether rows of `data` that were dropped for missing values are left out, or kept with NaN
        in the new columns.
    columns : callable
        Returns the new columns (n,) by name; called once everything is checked.

    Returns
    -------
    pandas.DataFrame
        A copy; ``attrs["rows_dropped"]`` is the number of rows without a fitted value.

    Raises
    ------
    ValueError
        If an option is unknown.
    DataError
        If `data` are not those of the model, or have a column of the name of a new one.
    """
    if incomplete not in get_args(Incomplete):
        raise ValueError(f"incomplete={incomplete!r}: 'omit' or 'keep' is expected.")
    if data is None and incomplete == "keep" and len(design.dropped):
        raise DataError(
            "The rows dropped for missing values are not in the model: give the data it was built "
            "from, augment(data, incomplete='keep')."
        )
    kept = slice(None) if data is None else _kept_rows(design, data)
    frame = design.data.copy() if data is None else to_frame(data)
    new = pd.DataFrame(dict(columns()), index=frame.index[kept])
    if clash := [name for name in new if name in frame]:
        raise DataError(f"The data already have columns {', '.join(clash)}: rename them.")
    if incomplete == "keep" and len(design.dropped):
        whole = pd.DataFrame(np.nan, index=frame.index, columns=new.columns)
        whole.iloc[kept] = new.to_numpy()
        new = whole
    else:
        frame = frame.iloc[kept]
    # by place, not by label: the index may have repeated labels
    result = frame.assign(**{str(name): new[name].to_numpy() for name in new})
    result.columns = pd.Index([str(name) for name in result.columns])
    if len(design.dropped) and incomplete == "omit":
        _log.info("%d rows with missing values have no fitted value.", len(design.dropped))
    result.attrs["rows_dropped"] = len(design.dropped)
    return result


def estimate_values(
    design: Design, fit: Fit, u: Sequence[Array], *, influence: bool
) -> dict[str, Array]:
    """Fitted values and residuals of an estimate, with leverages and Cook's distances if asked."""
    fitted, fixed = (linear_predictor(design, fit.beta, effects) for effects in (u, None))
    residual = design.y - fitted
    values = {
        ".fitted": fitted,
        ".fixed": fixed,
        ".resid": residual,
        ".pearson_resid": residual * _root_weights(design) / fit.sigma,
    }
    if influence:
        table = row_influence(design, fit).table
        values[".hat"] = table["leverage"].to_numpy()
        values[".cooksd"] = table["cooks_distance"].to_numpy()
    return values | _given(design)


def posterior_values(
    design: Design, beta: Array, u: Sequence[Array], joint: JointDraws, prob: float, kind: str
) -> dict[str, Array]:
    """Fitted values and residuals of a posterior: means, and an interval of the fitted values.

    Parameters
    ----------
    design : Design
        The design.
    beta : ndarray (p,)
        Posterior mean of the fixed effects.
    u : sequence of ndarray (J, k)
        Posterior means of the random effects.
    joint : JointDraws
        Joint draws.
    prob : float
        Probability of the intervals.
    kind : {"eti", "hdi"}
        Their kind.
    """
    fitted, fixed = (linear_predictor(design, beta, effects) for effects in (u, None))
    n = design.n
    lower, upper, standard = np.empty(n), np.empty(n), np.empty(n)
    roots = _root_weights(design)
    step = max(1, AT_ONCE // joint.size)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        draws = _draws_of(design, joint, rows)
        lower[rows], upper[rows] = interval(draws, prob, kind)
        residuals = (design.y[rows] - draws) * roots[rows]
        standard[rows] = np.mean(residuals / joint.sigma[:, None], axis=0)
    return {
        ".fitted": fitted,
        ".fitted_low": lower,
        ".fitted_high": upper,
        ".fixed": fixed,
        ".resid": design.y - fitted,
        ".pearson_resid": standard,
        **_given(design),
    }


def _draws_of(design: Design, joint: JointDraws, rows: slice) -> Array:
    """Draws (S, m) of offset + X beta + Z u at some rows."""
    wanted = [np.unique(factor.codes[rows]) for factor in design.random]
    result = joint.beta @ design.X[rows].T + design.offset[rows]
    for factor, levels, u in zip(design.random, wanted, joint.effects(wanted), strict=True):
        places = np.searchsorted(levels, factor.codes[rows])
        for c in range(factor.n_coefs):
            result += u[:, places, c] * factor.Z[rows, c]
    return np.asarray(result)


def _root_weights(design: Design) -> Array:
    return np.ones(design.n) if design.weights is None else np.sqrt(design.weights)


def _given(design: Design) -> dict[str, Array]:
    """Offset and weights where the model has them."""
    given = {".offset": design.offset} if np.any(design.offset) else {}
    return given if design.weights is None else given | {".weights": design.weights}


def _kept_rows(design: Design, data: Any) -> NDArray[np.intp]:
    """Places in the data of the rows used; raises where these are other data."""
    frame = plain_frame(data, design.data.columns)
    expected = design.n + len(design.dropped)
    if len(frame) != expected:
        raise DataError(
            f"These data have {len(frame)} rows and those of the model {expected}: give the data "
            "frame that the model was built from."
        )
    kept = np.delete(np.arange(expected), design.dropped)
    for name, own in design.data.items():
        if name not in frame:
            raise DataError(f"These data lack the variable `{name}` of the model.")
        values = frame[name].iloc[kept]
        if not (values.to_numpy() == own.to_numpy()).all():
            raise DataError(
                f"`{name}` has other values than in the data of the model: give the data frame "
                "that the model was built from."
            )
    return kept
