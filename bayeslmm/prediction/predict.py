"""Predictions as draws and as tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.row_space import row_space
from bayeslmm.prediction.linear import (
    effects_of_rows,
    linear_draws,
    require_memory,
    response_noise,
)
from bayeslmm.prediction.new_group import check_observed, observe, replaced_effects, reweight
from bayeslmm.prediction.rows import Rows, Target, Terms, prediction_rows
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.tree import RESPONSE, SAMPLE_DIMS, assemble, creation_attrs
from bayeslmm.schema import COEF_DIM

if TYPE_CHECKING:
    import xarray as xr

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Kind = Literal["linpred", "epred", "response"]

PREDICTION_DIM = "pred_id"
MEAN = "mu"
BLOCK = 1 << 24
"""Entries of draws that are summarised at once: 128 MB."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prediction:
    """Draws at rows to predict, made as they are needed.

    Attributes
    ----------
    rows : Rows
        The rows.
    joint : JointDraws
        The draws of the parameters, resampled where observed rows reweighted them.
    blocks : callable
        Returns an iterator over slices of the rows and draws (S, m) there.
    pareto_k : float or None
        Of the reweighting by observed rows.
    """

    rows: Rows
    joint: JointDraws
    blocks: Callable[[], Iterator[tuple[slice, Array]]]
    pareto_k: float | None

    def draws(self) -> Array:
        """Draws (S, n) at all rows.

        Raises
        ------
        DataError
            If they would not fit into memory.
        """
        n = self.rows.design.n
        require_memory(self.joint.size * n, "predictions")
        result = np.empty((self.joint.size, n))
        for part, values in self.blocks():
            result[:, part] = values
        return result


def predict(
    design: Design,
    joint: JointDraws,
    new: Any,
    *,
    target: Target = "conditional",
    kind: Kind = "epred",
    terms: Terms | None = None,
    observed: Any = None,
    weights: Any = None,
    rng: np.random.Generator,
) -> Prediction:
    """Predict rows for every draw of the parameters.

    Parameters
    ----------
    design : Design
        The design of the model.
    joint : JointDraws
        S draws of the parameters.
    new : data frame, mapping or None
        Rows to predict; None for those of the model.
    target : {"conditional", "new", "population", "average"}
        What the random effects are.
    kind : {"linpred", "epred", "response"}
        Linear predictor, which is also the expected response, or responses with residuals.
    terms : sequence of str or mapping, optional
        Grouping factors, or coefficients per grouping factor, whose random effects count.
    observed : data frame, optional
        Rows of new levels whose response is known; only for the target "new".
    weights : str or array-like, optional
        Precision weights of the rows to predict.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Prediction
    """
    if kind not in get_args(Kind):
        allowed = ", ".join(map(repr, get_args(Kind)))
        raise ValueError(f"kind={kind!r}: one of {allowed} is expected.")
    seen = None if observed is None else observed_rows(design, observed, target)
    rows = prediction_rows(design, new, target, terms, weights)
    report_undetermined(design, rows)
    pareto_k = None
    if seen is None:
        effects = effects_of_rows(rows, joint, rng)
    else:
        joint = hold_known(joint, rows, seen)
        update = observe(seen, joint)
        places, pareto_k = reweight(update.log_density, rng)
        joint = joint.take(places, joint.shape)
        effects = effects_of_rows(rows, joint, rng)
        if rows.members:
            effects = replaced_effects(rows, effects, seen, update.effects(places, rng))
    noise_seed = int(rng.integers(2**63))

    def blocks() -> Iterator[tuple[slice, Array]]:
        noise = np.random.default_rng(noise_seed)
        step = max(1, BLOCK // joint.size)
        for start in range(0, rows.design.n, step):
            part = slice(start, min(start + step, rows.design.n))
            values = linear_draws(rows, joint, effects, part)
            if kind == "response":
                values += response_noise(rows, joint, part, noise)
            yield part, values

    return Prediction(rows=rows, joint=joint, blocks=blocks, pareto_k=pareto_k)


def observed_rows(design: Design, observed: Any, target: Target) -> Rows:
    """Evaluate a model on observed rows of new levels.

    Raises
    ------
    DataError
        If there is no new level, or a response is missing.
    ValueError
        If the target is not "new".
    """
    if target != "new":
        raise ValueError(
            f"observed= is for predictions of new levels: target='new', not {target!r}."
        )
    seen = prediction_rows(design, observed, "new")
    check_observed(seen)
    return seen


def hold_known(joint: JointDraws, rows: Rows, seen: Rows) -> JointDraws:
    """Draw the random effects of the known levels of both once: what weighs them has to be them."""
    wanted = [member.wanted for member in seen.members]
    for i, member in enumerate(rows.members):
        wanted[i] = np.union1d(wanted[i], member.wanted)
    entries = sum(len(at) * m.Z.shape[1] for at, m in zip(wanted, seen.members, strict=True))
    require_memory(joint.size * entries, "random effects")
    return joint.hold(wanted)


def report_undetermined(design: Design, rows: Rows) -> None:
    """Say which rows are combinations of the fixed effects that the data do not determine."""
    if not design.aliased:
        return
    lost = np.flatnonzero(~row_space(design).estimable(rows.design.X_full))
    if len(lost):
        shown = ", ".join(str(label) for label in rows.design.index[lost[:5]])
        _log.warning(
            "%d of %d rows to predict (%s%s) are not determined by the data, because fixed effects "
            "were dropped as linear combinations of others: %s. Their predictions take these "
            "effects to be zero.",
            len(lost),
            rows.design.n,
            shown,
            ", ..." if len(lost) > 5 else "",
            ", ".join(design.aliased),
        )


def prediction_table(
    prediction: Prediction, summarise: Callable[[Array, pd.Index], pd.DataFrame]
) -> pd.DataFrame:
    """Summaries of predictions, a row for each row predicted.

    Parameters
    ----------
    prediction : Prediction
        The draws.
    summarise : callable
        Takes draws (S, m) and an index, returns a frame of m rows.
    """
    index = prediction.rows.design.index
    parts = [summarise(values, index[part]) for part, values in prediction.blocks()]
    table = pd.concat(parts)
    if prediction.pareto_k is not None:
        table.attrs["pareto_k"] = prediction.pareto_k
    return table


def prediction_tree(prediction: Prediction, kind: Kind) -> xr.DataTree:
    """Draws in ArviZ's groups predictions and predictions_constant_data.

    The variable is ``y`` for responses and ``mu`` otherwise, with dimensions chain, draw and
    ``pred_id``.
    """
    import xarray as xr

    design, shape = prediction.rows.design, prediction.joint.shape
    labels = design.index if design.index.nlevels == 1 else np.arange(design.n)
    if getattr(labels, "is_unique", True) is False:
        labels = np.arange(design.n)
    values = np.asarray(labels)
    rows = {PREDICTION_DIM: values.astype(str) if values.dtype == object else values}
    coords = {SAMPLE_DIMS[0]: np.arange(shape[0]), SAMPLE_DIMS[1]: np.arange(shape[1]), **rows}
    draws = prediction.draws().reshape(*shape, design.n)
    name = RESPONSE if kind == "response" else MEAN
    attrs = {**creation_attrs(), "sample_dims": list(SAMPLE_DIMS)}
    predictions = xr.Dataset({name: ((*SAMPLE_DIMS, PREDICTION_DIM), draws)}, coords, attrs)
    predictions[name].attrs["label"] = design.response
    constant = xr.Dataset(
        {"X": ((PREDICTION_DIM, COEF_DIM), np.array(design.X))},
        {**rows, COEF_DIM: np.asarray(design.coefs, dtype=str)},
        {**creation_attrs(), "sample_dims": []},
    )
    root = {} if prediction.pareto_k is None else {"pareto_k": prediction.pareto_k}
    return assemble({"predictions": predictions, "predictions_constant_data": constant}, root)
