"""Tables of predictions, simulations and bootstrap refits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.prediction.linear import linear_draws
from bayeslmm.prediction.new_group import replaced_effects
from bayeslmm.prediction.predict import (
    Kind,
    Prediction,
    observed_rows,
    predict,
    prediction_table,
    report_undetermined,
)
from bayeslmm.prediction.rows import Rows, Target, prediction_rows
from bayeslmm.prediction.updated_point import updated_point
from bayeslmm.sampling.estimate_draws import Uncertainty
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.point_draws import point_draws
from bayeslmm.summaries.estimate_tables import covariances, satterthwaite
from bayeslmm.summaries.parameters import parameters, probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

Array = NDArray[np.float64]


def count(n: Any, name: str = "n", least: int = 1) -> int:
    """Check a number of draws.

    Raises
    ------
    ValueError
        If it is not a whole number of at least `least`.
    """
    if isinstance(n, bool) or not isinstance(n, Integral) or n < least:
        raise ValueError(f"{name}={n!r}: a whole number of at least {least} is expected.")
    return int(n)


def posterior_predictions(prediction: Prediction, prob: float | None) -> pd.DataFrame:
    """Mean, sd, median and interval of each predicted row."""
    prob, kind = interval_defaults(prob)
    return prediction_table(prediction, partial(summarise, prob=prob, kind=kind))


def estimate_predictions(
    design: Design,
    draws: Callable[[np.random.Generator], JointDraws],
    fit: Fit,
    modes: Sequence[Array],
    new: Any,
    options: Mapping[str, Any],
    uncertainty: Uncertainty,
    level: float,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Exact point predictions of an estimate with standard errors and intervals.

    These are exact too where a closed form has them, and from draws elsewhere.
    """
    tail = (1.0 - probability(level, "level")) / 2.0
    estimate = point_predictions(design, fit, modes, new, options)
    rows = prediction_rows(design, new, options["target"], options["terms"], options["weights"])
    if options["kind"] in get_args(Kind) and has_closed_form(rows, options, uncertainty):
        report_undetermined(design, rows)
        return _exact_predictions(fit, rows, estimate, options["kind"], uncertainty, tail)
    prediction = predict(design, draws(rng), new, rng=rng, **options)

    def errors(values: Array, index: pd.Index) -> pd.DataFrame:
        lower, upper = np.quantile(values, [tail, 1.0 - tail], axis=0)
        columns = {
            "std_error": values.std(axis=0, ddof=1),
            "conf_low": lower,
            "conf_high": upper,
        }
        return pd.DataFrame(columns, index=index)

    table = prediction_table(prediction, errors)
    table.insert(0, "estimate", estimate)
    return table


def has_closed_form(rows: Rows, options: Mapping[str, Any], uncertainty: Uncertainty) -> bool:
    """Whether predictions are normal given the covariance parameters, in closed form.

    They are where no level of the data counts and these parameters are held; the fixed part has
    Satterthwaite's t for their being estimated.
    """
    if options["observed"] is not None or any((m.known >= 0).any() for m in rows.members):
        return False
    fixed_part = not rows.members and options["kind"] != "response"
    return uncertainty == "plugin" or (uncertainty == "laplace" and fixed_part)


def _exact_predictions(
    fit: Fit, rows: Rows, estimate: Array, kind: Kind, uncertainty: Uncertainty, tail: float
) -> pd.DataFrame:
    design = rows.design
    variance = np.einsum("ni,ij,nj->n", design.X, fit.vcov, design.X)
    pairs = zip(rows.members, covariances(fit), strict=True) if rows.members else ()
    for member, covariance in pairs:
        variance = variance + np.einsum("ni,ij,nj->n", member.Z, covariance, member.Z)
    if kind == "response":
        weights = np.ones(design.n) if design.weights is None else design.weights
        variance = variance + fit.sigma**2 / weights
    error = np.sqrt(np.maximum(variance, 0.0))
    df = np.full(design.n, np.inf)
    if uncertainty == "laplace":
        known = error > 0.0
        df[known] = [satterthwaite(fit, row) for row in design.X[known]]
    margin = stats.t.isf(tail, df) * error
    columns = {
        "estimate": estimate,
        "std_error": error,
        "conf_low": estimate - margin,
        "conf_high": estimate + margin,
    }
    return pd.DataFrame(columns, index=design.index)


def point_predictions(
    design: Design,
    fit: Fit,
    modes: Sequence[Array],
    new: Any,
    options: Mapping[str, Any],
) -> Array:
    """Linear predictor (n,) at an estimate; random effects of new levels at their means."""
    target: Target = options["target"]
    observed = options["observed"]
    seen = None if observed is None else observed_rows(design, observed, target)
    rows = prediction_rows(design, new, target, options["terms"], options["weights"])
    if seen is None:
        point = point_draws(fit, modes)
    else:
        point, fresh = updated_point(design, fit, seen)
    if not rows.members:
        return linear_draws(rows, point, [], slice(None))[0]
    known = point.effects([member.wanted for member in rows.members])
    zero = [np.zeros((1, m.n_fresh, m.Z.shape[1])) for m in rows.members]
    effects = list(zip(known, zero, strict=True))
    if seen is not None:
        effects = replaced_effects(rows, effects, seen, fresh)
    return linear_draws(rows, point, effects, slice(None))[0]


def simulations(
    design: Design,
    joint: JointDraws,
    new: Any,
    target: Target,
    weights: Any,
    rng: np.random.Generator,
) -> pd.DataFrame:
    """Responses simulated from each draw: rows by draws."""
    prediction = predict(
        design, joint, new, target=target, kind="response", weights=weights, rng=rng
    )
    columns = [f"sim_{i + 1}" for i in range(joint.size)]
    index = prediction.rows.design.index
    return pd.DataFrame(prediction.draws().T, index=index, columns=columns)


def bootstrap_frame(design: Design, fits: Sequence[Fit]) -> pd.DataFrame:
    """Parameters of refits: one row per refit, one column per parameter."""
    kinds = [parameter.kind for parameter in parameters(design)]
    is_cor = np.array([kind == "cor" for kind in kinds if kind != "beta"])
    rows = []
    for fit in fits:
        scale = np.where(is_cor, np.tanh(fit.parameters), np.exp(fit.parameters))
        rows.append(np.concatenate([fit.beta, scale]))
    return pd.DataFrame(rows, columns=[p.label for p in parameters(design)])
