"""Predictions, simulations and bootstrap refits, as draws and as tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from bayeslmm.data.design import Design
from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.executor import Executor, require_executor
from bayeslmm.estimation.inference import Asymptotic, Inference
from bayeslmm.estimation.residuals import residual_sds
from bayeslmm.exceptions import check_choice
from bayeslmm.prediction.observed import (
    check_observed,
    observe,
    replaced_effects,
    reweight,
    updated_point,
)
from bayeslmm.prediction.past import (
    Past,
    ResidualsOf,
    conditional_residuals,
    conditional_variances,
    conditions,
    past_rows,
    residuals_given,
    told_rows,
)
from bayeslmm.prediction.rows import (
    Rows,
    Target,
    Terms,
    effects_of_rows,
    linear_draws,
    prediction_rows,
    require_memory,
    response_noise,
    scales_at,
)
from bayeslmm.sampling.joint_draws import JointDraws, Uncertainty, estimate_draws, point_draws
from bayeslmm.sampling.tree import RESPONSE, assemble, creation_attrs, row_draws
from bayeslmm.schema import COEF_DIM
from bayeslmm.summaries.estimate_tables import (
    covariances,
    percentile_table,
    profile_table,
    summary_table,
)
from bayeslmm.summaries.parameters import Kind as ParameterKind
from bayeslmm.summaries.parameters import (
    check_kinds,
    natural,
    parameters,
    probability,
    whole_number,
)
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

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
    residuals: ResidualsOf | None = None,
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
    residuals : {"conditional", "new"}, optional
        Whether residuals are conditional on those of observed rows of their group.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    Prediction
    """
    check_choice(kind, get_args(Kind), "kind")
    given = conditions(new, target, kind, terms, residuals)
    seen = None if observed is None else observed_rows(design, observed, target)
    structured = given or kind == "response"
    rows = prediction_rows(design, new, target, terms, weights, residual=structured)
    report_undetermined(design, rows)
    past = past_rows(design, rows) if given else None
    pasts: list[tuple[Past, Sequence[Array] | None]] = [] if past is None else [(past, None)]
    joint = hold_known(joint, rows, *(known for known in (past and past.seen, seen) if known))
    pareto_k = None
    if seen is None:
        effects = effects_of_rows(rows, joint, rng)
    else:
        update = observe(seen, joint)
        places, pareto_k = reweight(update.log_density, rng)
        joint = joint.take(places, joint.shape)
        effects = effects_of_rows(rows, joint, rng)
        fresh = update.effects(places, rng)
        if rows.members:
            effects = replaced_effects(rows, effects, seen, fresh)
        told = told_rows(design, rows, seen) if given else None
        pasts += [] if told is None else [(told, fresh)]
    if kind == "response":
        joint = scales_at(rows, joint, target, rng)
    noise_seed = int(rng.integers(2**63))

    def blocks() -> Iterator[tuple[slice, Array]]:
        noise = np.random.default_rng(noise_seed)
        step = max(1, BLOCK // joint.size)
        together = pasts or (kind == "response" and not joint.points.plain)
        if together:
            require_memory(joint.size * rows.design.n, "residuals")
            step = rows.design.n
        for start in range(0, rows.design.n, step):
            part = slice(start, min(start + step, rows.design.n))
            values = linear_draws(rows, joint, effects, part)
            if pasts:
                drawn = noise if kind == "response" else None
                values += residuals_given(rows, joint, pasts, drawn)
            elif kind == "response":
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
    seen = prediction_rows(design, observed, "new", residual=True)
    check_observed(seen)
    return seen


def hold_known(joint: JointDraws, rows: Rows, *others: Rows) -> JointDraws:
    """Draw the random effects of the known levels of all once: what weighs them has to be them."""
    if not others:
        return joint
    wanted = [member.wanted for member in others[0].members]
    for part in (rows, *others[1:]):
        for i, member in enumerate(part.members):
            wanted[i] = np.union1d(wanted[i], member.wanted)
    entries = sum(len(at) * m.n_coefs for at, m in zip(wanted, others[0].members, strict=True))
    require_memory(joint.size * entries, "random effects")
    return joint.hold(wanted)


def report_undetermined(design: Design, rows: Rows) -> None:
    """Say which rows are combinations of the fixed effects that the data do not determine."""
    if not design.aliased:
        return
    lost = np.flatnonzero(~design.spec.fixed.estimable(rows.design.X_full))
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
    draws = prediction.draws().reshape(*shape, design.n)
    name = RESPONSE if kind == "response" else MEAN
    predictions = row_draws(name, draws, rows, design)
    constant = xr.Dataset(
        {"X": ((PREDICTION_DIM, COEF_DIM), np.array(design.X))},
        {**rows, COEF_DIM: np.asarray(design.coefs, dtype=str)},
        {**creation_attrs(), "sample_dims": []},
    )
    root = {} if prediction.pareto_k is None else {"pareto_k": prediction.pareto_k}
    return assemble({"predictions": predictions, "predictions_constant_data": constant}, root)


# --- tables of predictions, simulations and bootstrap refits ------------------------

Options = Mapping[str, Any]


def options_of(
    target: Target,
    kind: Kind,
    terms: Any,
    observed: Any,
    weights: Any,
    residuals: ResidualsOf | None,
) -> Options:
    """Options that predictions of estimates and posteriors share, by name."""
    return {
        "target": target,
        "kind": kind,
        "terms": terms,
        "observed": observed,
        "weights": weights,
        "residuals": residuals,
    }


def posterior_predictions(
    design: Design,
    joint: JointDraws,
    new: Any,
    options: Options,
    draws: int | None,
    prob: float | None,
    rng: np.random.Generator,
    *,
    summary: bool,
) -> pd.DataFrame | xr.DataTree:
    """Mean, sd, median and interval of each predicted row, or the draws themselves."""
    if draws is not None:
        joint = joint.thin(whole_number(draws, "draws", least=2 if summary else 1))
    prediction = predict(design, joint, new, rng=rng, **options)
    if not summary:
        return prediction_tree(prediction, options["kind"])
    prob, kind = interval_defaults(prob)
    return prediction_table(prediction, partial(summarise, prob=prob, kind=kind))


def sampled(joint: JointDraws, n: Any, rng: np.random.Generator) -> JointDraws:
    """So many of the draws, with replacement where there are fewer."""
    return joint.take(rng.choice(joint.size, whole_number(n, "n"), replace=n > joint.size))


def estimate_predictions(
    design: Design,
    inference: Inference,
    modes: Sequence[Array],
    new: Any,
    options: Options,
    uncertainty: Uncertainty,
    draws: int,
    level: float,
    rng: np.random.Generator,
    *,
    executor: Executor | None,
    progressbar: bool,
) -> pd.DataFrame:
    """Exact point predictions of an estimate with standard errors and intervals.

    These are exact too where a closed form has them, and from draws elsewhere.
    """
    require_executor(executor)
    fit, size = inference.fit, whole_number(draws, "draws", least=2)
    tail = (1.0 - probability(level, "level")) / 2.0
    check_choice(options["kind"], get_args(Kind), "kind")
    given = conditions(
        new, options["target"], options["kind"], options["terms"], options["residuals"]
    )
    rows = prediction_rows(
        design,
        new,
        options["target"],
        options["terms"],
        options["weights"],
        residual=given or options["kind"] == "response",
    )
    past = past_rows(design, rows) if given else None
    estimate = point_predictions(design, fit, modes, rows, past, options, given=given)
    if has_closed_form(rows, past, options, uncertainty):
        report_undetermined(design, rows)
        judged = inference if uncertainty == "laplace" else Asymptotic(fit)
        return _exact_predictions(judged, rows, past, estimate, options["kind"], tail)
    joint = estimate_draws(
        design, fit, uncertainty, size, rng, executor=executor, progressbar=progressbar
    )
    prediction = predict(design, joint, new, rng=rng, **options)

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


def has_closed_form(
    rows: Rows, past: Past | None, options: Options, uncertainty: Uncertainty
) -> bool:
    """Whether predictions are normal given the covariance parameters, in closed form.

    They are where no level of the data counts and these parameters are held; the fixed part has
    t intervals for their being estimated.
    """
    if past is not None and options["observed"] is None:
        return uncertainty == "plugin" and not past.seen.members
    if options["observed"] is not None or not all(m.all_new for m in rows.members):
        return False
    fixed_part = not rows.members and options["kind"] != "response"
    return uncertainty == "plugin" or (uncertainty == "laplace" and fixed_part)


def _exact_predictions(
    inference: Inference,
    rows: Rows,
    past: Past | None,
    estimate: Array,
    kind: Kind,
    tail: float,
) -> pd.DataFrame:
    fit = inference.fit
    design, points = rows.design, points_of_fits([fit])
    X = design.X
    if past is not None:  # the observed residuals have their part of X beta too
        each = points_of_fits([fit] * design.p)
        X = X - conditional_residuals(past, each, past.seen.design.X.T).T
    variance = np.einsum("ni,ij,nj->n", X, inference.vcov, X)
    pairs = zip(rows.members, covariances(fit), strict=True) if rows.members else ()
    for member, covariance in pairs:
        variance = variance + member.variance(covariance)
    if kind == "response" and past is not None:
        variance = variance + conditional_variances(past, points)[0]
    elif kind == "response":
        variance = variance + residual_sds(design, points)[0] ** 2
    error = np.sqrt(np.maximum(variance, 0.0))
    df, known = np.full(design.n, np.inf), error > 0.0
    df[known] = inference.df(design.X[known])
    margin = -stdtrit(df, tail) * error
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
    rows: Rows,
    past: Past | None,
    options: Options,
    *,
    given: bool,
) -> Array:
    """Expected response (n,) at an estimate; random effects of new levels at their means."""
    observed = options["observed"]
    seen = None if observed is None else observed_rows(design, observed, options["target"])
    pasts: list[tuple[Past, Sequence[Array] | None]] = [] if past is None else [(past, None)]
    if seen is None:
        point = point_draws(fit, modes)
    else:
        point, fresh = updated_point(design, fit, seen)
        told = told_rows(design, rows, seen) if given else None
        pasts += [] if told is None else [(told, fresh)]
    shift = residuals_given(rows, point, pasts)[0]
    if not rows.members:
        return np.asarray(linear_draws(rows, point, [], slice(None))[0] + shift)
    known = point.effects([member.wanted for member in rows.members])
    zero = [np.zeros((1, m.n_fresh, m.n_coefs)) for m in rows.members]
    effects = list(zip(known, zero, strict=True))
    if seen is not None:
        effects = replaced_effects(rows, effects, seen, fresh)
    return np.asarray(linear_draws(rows, point, effects, slice(None))[0] + shift)


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
        design,
        joint,
        new,
        target=target,
        kind="response",
        weights=weights,
        residuals="new",
        rng=rng,
    )
    columns = [f"sim_{i + 1}" for i in range(joint.size)]
    index = prediction.rows.design.index
    return pd.DataFrame(prediction.draws().T, index=index, columns=columns)


def confidence_intervals(
    design: Design,
    inference: Inference,
    method: str,
    level: float,
    kinds: Sequence[ParameterKind],
    draws: int,
    random_seed: int | np.random.Generator | None,
    *,
    executor: Executor | None,
    progressbar: bool,
) -> pd.DataFrame:
    """Wald, profile or bootstrap intervals: see :meth:`bayeslmm.Estimate.confint`."""
    require_executor(executor)
    probability(level, "level")
    fit, kinds = inference.fit, check_kinds(kinds)
    labels = [p.label for p in parameters(design) if p.kind in kinds]
    if method == "wald":
        return summary_table(inference, design, level).loc[labels, ["conf_low", "conf_high"]]
    if method == "bootstrap":
        frame = bootstrap_table(
            design, fit, draws, random_seed, executor=executor, progressbar=progressbar
        )
        return percentile_table(frame[labels], level)
    if method != "profile":
        raise ValueError(f"method={method!r}: 'wald', 'profile' or 'bootstrap' is expected")
    return profile_table(fit, design, level, kinds, executor).loc[labels]


def bootstrap_table(
    design: Design,
    fit: Fit,
    n: int,
    random_seed: int | np.random.Generator | None,
    *,
    executor: Executor | None,
    progressbar: bool,
) -> pd.DataFrame:
    """Parameters of refits to simulated responses: one row per refit, one column per parameter."""
    size = whole_number(n, "n")
    fits = bootstrap_fits(
        design, fit, size, random_seed, executor=executor, progressbar=progressbar
    )
    rows = parameters(design)
    table = np.array([np.concatenate([fit.beta, fit.parameters]) for fit in fits])  # (fits, m)
    columns = [natural(p.kind, values) for p, values in zip(rows, table.T, strict=True)]
    return pd.DataFrame(np.column_stack(columns), columns=[p.label for p in rows])
