"""Tables of predictions, simulations and bootstrap refits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from bayeslmm.data.design import Design
from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.estimation.estimate import Fit
from bayeslmm.prediction.linear import linear_draws
from bayeslmm.prediction.new_group import replaced_effects
from bayeslmm.prediction.predict import (
    Kind,
    observed_rows,
    predict,
    prediction_table,
    prediction_tree,
    report_undetermined,
)
from bayeslmm.prediction.rows import Rows, Target, prediction_rows
from bayeslmm.prediction.updated_point import updated_point
from bayeslmm.sampling.estimate_draws import Uncertainty, estimate_draws, point_draws
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import (
    covariances,
    percentile_table,
    profile_table,
    satterthwaite,
    summary_table,
)
from bayeslmm.summaries.parameters import Kind as ParameterKind
from bayeslmm.summaries.parameters import check_kinds, parameters, probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Options = Mapping[str, Any]


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


def options_of(target: Target, kind: Kind, terms: Any, observed: Any, weights: Any) -> Options:
    """Options that predictions of estimates and posteriors share, by name."""
    return {
        "target": target,
        "kind": kind,
        "terms": terms,
        "observed": observed,
        "weights": weights,
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
        joint = joint.thin(count(draws, "draws", least=2 if summary else 1))
    prediction = predict(design, joint, new, rng=rng, **options)
    if not summary:
        return prediction_tree(prediction, options["kind"])
    prob, kind = interval_defaults(prob)
    return prediction_table(prediction, partial(summarise, prob=prob, kind=kind))


def sampled(joint: JointDraws, n: Any, rng: np.random.Generator) -> JointDraws:
    """So many of the draws, with replacement where there are fewer."""
    return joint.take(rng.choice(joint.size, count(n), replace=n > joint.size))


def estimate_predictions(
    design: Design,
    fit: Fit,
    modes: Sequence[Array],
    new: Any,
    options: Options,
    uncertainty: Uncertainty,
    draws: int,
    level: float,
    rng: np.random.Generator,
    *,
    progressbar: bool,
) -> pd.DataFrame:
    """Exact point predictions of an estimate with standard errors and intervals.

    These are exact too where a closed form has them, and from draws elsewhere.
    """
    size = count(draws, "draws", least=2)
    tail = (1.0 - probability(level, "level")) / 2.0
    estimate = point_predictions(design, fit, modes, new, options)
    rows = prediction_rows(design, new, options["target"], options["terms"], options["weights"])
    if options["kind"] in get_args(Kind) and has_closed_form(rows, options, uncertainty):
        report_undetermined(design, rows)
        return _exact_predictions(fit, rows, estimate, options["kind"], uncertainty, tail)
    joint = estimate_draws(design, fit, uncertainty, size, rng, progressbar=progressbar)
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


def has_closed_form(rows: Rows, options: Options, uncertainty: Uncertainty) -> bool:
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
    new: Any,
    options: Options,
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


def confidence_intervals(
    design: Design,
    fit: Fit,
    method: str,
    level: float,
    kinds: Sequence[ParameterKind],
    draws: int,
    random_seed: int | np.random.Generator | None,
    *,
    progressbar: bool,
) -> pd.DataFrame:
    """Wald, profile or bootstrap intervals: see :meth:`bayeslmm.Estimate.confint`."""
    probability(level, "level")
    kinds = check_kinds(kinds)
    labels = [p.label for p in parameters(design) if p.kind in kinds]
    if method == "wald":
        return summary_table(fit, design, level).loc[labels, ["conf_low", "conf_high"]]
    if method == "bootstrap":
        frame = bootstrap_table(design, fit, draws, random_seed, progressbar=progressbar)
        return percentile_table(frame[labels], level)
    if method != "profile":
        raise ValueError(f"method={method!r}: 'wald', 'profile' or 'bootstrap' is expected")
    return profile_table(fit, design, level, kinds).loc[labels]


def bootstrap_table(
    design: Design,
    fit: Fit,
    n: int,
    random_seed: int | np.random.Generator | None,
    *,
    progressbar: bool,
) -> pd.DataFrame:
    """Parameters of refits to simulated responses: one row per refit, one column per parameter."""
    fits = bootstrap_fits(design, fit, count(n), random_seed, progressbar=progressbar)
    kinds = [parameter.kind for parameter in parameters(design)]
    is_cor = np.array([kind == "cor" for kind in kinds if kind != "beta"])
    rows = []
    for fit in fits:
        scale = np.where(is_cor, np.tanh(fit.parameters), np.exp(fit.parameters))
        rows.append(np.concatenate([fit.beta, scale]))
    return pd.DataFrame(rows, columns=[p.label for p in parameters(design)])
