"""One fit as data frames: its column of a table of models, one row, the data with fitted values."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.checks.influence import row_influence
from bayeslmm.comparison.models import log_evidence
from bayeslmm.data.design import Design
from bayeslmm.data.frames import plain_frame, to_frame
from bayeslmm.data.row_tables import Out, row_table
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.inference import Inference
from bayeslmm.estimation.residuals import residual_sds
from bayeslmm.exceptions import DataError, PriorError, SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.report.methods import wald_scales
from bayeslmm.sampling.diagnostics import Diagnostics
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import information_criteria, parameter_table
from bayeslmm.summaries.parameters import parameters
from bayeslmm.summaries.posterior_tables import (
    as_estimates,
    interval,
    interval_defaults,
)
from bayeslmm.summaries.posterior_tables import parameter_table as draws_table
from bayeslmm.summaries.variance_explained import (
    Quantity,
    Uncertainty,
    estimate_table,
    mean_icc,
    posterior_table,
    r2_quantity,
)

Array = NDArray[np.float64]

NUMBERS = ["estimate", "std_error", "conf_low", "conf_high", "df", "statistic", "p_value"]

Key = tuple[str, str, str]
"""Part, group and term of a row."""

GOODNESS = ("nobs", "levels", "icc", "r2", "loglik", "aic", "bic", "log_evidence")
"""Measures of fit that a table can show."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Column:
    """One fit of a table of models.

    Attributes
    ----------
    method : str
        "REML", "ML", "MAP" or, for a posterior, its engine.
    bayesian : bool
        Whether it is a posterior.
    parameters : pandas.DataFrame
        Columns estimate, std_error, conf_low, conf_high, df, statistic and p_value, NaN where they
        do not apply; rows by part ("fixed", "random" or "residual"), group and term.
    goodness : pandas.DataFrame
        Columns estimate, std_error, conf_low and conf_high; rows by measure and group.
    estimand, interval : str
        What the numbers are, for the footnote.
    design : Design
        The design of the model: whether fits can be compared depends on its data.
    terms : mapping
        Coefficients that each row of `parameters` is about.
    """

    method: str
    bayesian: bool
    parameters: pd.DataFrame
    goodness: pd.DataFrame
    estimand: str
    interval: str
    design: Design
    terms: Mapping[Key, tuple[str, ...]]

    @property
    def label(self) -> str:
        """How the fit was made."""
        return f"Posterior ({self.method})" if self.bayesian else self.method

    @property
    def at_boundary(self) -> bool:
        """Whether an estimate lacks an interval."""
        return bool(self.parameters["conf_low"].isna().any())


def estimate_column(
    inference: Inference, design: Design, modes: Sequence[Array], level: float
) -> Column:
    """Column of a REML, ML or MAP fit with random effects `modes`."""
    fit, table = inference.fit, parameter_table(inference, design, level)
    _, aic, bic = information_criteria(fit)
    rows = _sizes(design)
    uncertainty = Uncertainty(method=None, level=level, draws=2, random_seed=None)
    for measure, quantity in _shares(design).items():
        shares = estimate_table(quantity, design, fit, modes, uncertainty)["estimate"]
        rows |= {(measure, str(name)): [value] for name, value in shares.items()}
    if fit.method == "MAP":
        table[["df", "statistic", "p_value"]] = np.nan  # tests are not of posteriors
    else:
        rows |= {("loglik", ""): [fit.log_likelihood], ("aic", ""): [aic], ("bic", ""): [bic]}
    return Column(
        method=fit.method,
        bayesian=False,
        parameters=_keyed(table),
        goodness=_goodness(rows),
        estimand=_estimand(fit, design),
        interval=f"{100 * level:g} % {_interval(inference, design)}",
        design=design,
        terms=_terms(design),
    )


def posterior_column(
    data: xr.DataTree,
    design: Design,
    priors: Priors,
    joint: JointDraws,
    prob: float | None,
) -> Column:
    """Column of a posterior with draws `joint`."""
    prob, kind = interval_defaults(prob)
    table = draws_table(data["posterior"].to_dataset(), design, prob, kind)
    measures = _sizes(design)
    for measure, quantity in _shares(design).items():
        shares = as_estimates(posterior_table(quantity, joint, prob))
        for name, row in shares[NUMBERS[:4]].iterrows():
            measures[measure, str(name)] = row.tolist()
    if (evidence := evidence_of(data.attrs, priors)) is not None:
        measures["log_evidence", ""] = list(evidence)
    names = {"eti": "equal-tailed", "hdi": "highest-density"}
    return Column(
        method=str(data.attrs["method"]),
        bayesian=True,
        parameters=_keyed(as_estimates(table)),
        goodness=_goodness(measures),
        estimand="posterior means",
        interval=f"{100 * prob:g} % {names.get(kind, kind)} credible intervals",
        design=design,
        terms=_terms(design),
    )


def evidence_of(attrs: Mapping[Any, Any], priors: Priors) -> tuple[float, float] | None:
    """Log evidence and its Monte Carlo error; None where there is none."""
    try:
        evidence = log_evidence(attrs, priors)
    except (PriorError, SamplingError):
        return None
    return evidence.value, evidence.error


def _estimand(fit: Fit, design: Design) -> str:
    if fit.method == "MAP":
        if fit.given_beta or not design.p:
            return "posterior modes"
        return "posterior modes of the covariance parameters, means of the fixed effects given them"
    restricted = "restricted " if fit.method == "REML" else ""
    return f"{restricted}maximum likelihood estimates"


def _interval(inference: Inference, design: Design) -> str:
    """Kind of the intervals."""
    scales = wald_scales(design)
    if inference.fit.method == "MAP":
        return f"intervals of a normal approximation to the posterior at its mode ({scales})"
    fixed = f"{inference.brief} for fixed effects, else " if design.p else ""
    return f"confidence intervals ({fixed}Wald: {scales})"


def _keyed(table: pd.DataFrame) -> pd.DataFrame:
    """A table of parameters by part, group and term."""
    columns = (table[name] for name in ("kind", "group", "coef", "coef_2"))
    keys = [_key(*row) for row in zip(*columns, strict=True)]
    index = pd.MultiIndex.from_tuples(keys, names=["part", "group", "term"])
    return table.set_axis(index, axis=0).reindex(columns=NUMBERS)


def _key(kind: str, group: str | None, *coefs: str | None) -> Key:
    if kind == "sigma":
        return "residual", "", "sigma"
    if kind == "beta":
        return "fixed", "", str(coefs[0])
    if kind in ("nu", "beta_sigma"):
        inside = ", ".join(filter(None, coefs))
        return "residual", "", f"{kind}({inside})" if inside else kind
    return "random", group or "", f"{kind}({', '.join(filter(None, coefs))})"


def _terms(design: Design) -> dict[Key, tuple[str, ...]]:
    """Coefficients that the row of each parameter is about."""
    return {_key(p.kind, p.group, *p.terms): p.terms for p in parameters(design)}


def _sizes(design: Design) -> dict[tuple[str, str], list[float]]:
    rows: dict[tuple[str, str], list[float]] = {("nobs", ""): [design.n]}
    return rows | {("levels", factor.name): [factor.n_levels] for factor in design.random}


def _shares(design: Design) -> dict[str, Quantity]:
    """Shares of the variance by measure."""
    if not design.random:
        return {}
    return {"icc": mean_icc(design), "r2": r2_quantity(design, "nakagawa")}


def _goodness(rows: Mapping[tuple[str, str], Sequence[float]]) -> pd.DataFrame:
    order = sorted(rows, key=lambda key: GOODNESS.index(key[0]))
    padded = [[*rows[key], *[np.nan] * (4 - len(rows[key]))] for key in order]
    index = pd.MultiIndex.from_tuples(order, names=["measure", "group"])
    return pd.DataFrame(padded, index=index, columns=NUMBERS[:4], dtype=float)


# --- one row per fit ----------------------------------------------------------------


def glance_estimate(fit: Fit, design: Design) -> pd.DataFrame:
    """One row about a REML, ML or MAP fit."""
    count, aic, bic = information_criteria(fit)
    return _glance(
        fit.method,
        design,
        float(np.mean(points_of_fits([fit]).natural[0])),
        loglik=fit.log_likelihood,
        aic=aic,
        bic=bic,
        criterion=fit.criterion,
        n_parameters=count,
        df_residual=design.n - count,
        singular=fit.singular,
        converged=fit.optimum.converged,
    )


def glance_posterior(
    data: xr.DataTree, design: Design, priors: Priors, found: Diagnostics
) -> pd.DataFrame:
    """One row about a posterior."""
    evidence, error = evidence_of(data.attrs, priors) or (np.nan, np.nan)
    method = str(data.attrs["method"])
    return _glance(
        method,
        design,
        float(data["posterior"]["sigma"].mean()) if "sigma" in data["posterior"] else np.nan,
        log_evidence=evidence,
        log_evidence_error=error,
        chains=found.chains,
        draws=found.chains * found.draws,
        max_rhat=found.max_rhat,
        min_ess_bulk=found.min_ess_bulk,
        min_ess_tail=found.min_ess_tail,
        pareto_k=found.pareto_k if found.approximate else found.proposal_k,
        divergences=found.divergences if method == "nuts" else np.nan,
        ok=found.ok,
    )


def _glance(method: str, design: Design, sigma: float, **measures: Any) -> pd.DataFrame:
    """A row of method, data, measures and numbers of levels."""
    first = {"nobs": design.n, "rows_dropped": design.n_dropped, "sigma": sigma}
    levels = {f"ngrps_{factor.key}": factor.n_levels for factor in design.random}
    return pd.DataFrame([{"method": method, **first, **measures, **levels}])


# --- the data with fitted values beside them: augment of broom.mixed ---------------------

Incomplete = Literal["omit", "keep"]

_log = logging.getLogger(__name__)

AT_ONCE = 1 << 24
"""Numbers held at once where draws of fitted values are made: 128 MB."""


def augment(
    design: Design,
    data: Any,
    incomplete: Incomplete,
    columns: Callable[[Design], Mapping[str, Array]],
    out: Out | None = None,
) -> pd.DataFrame | None:
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
        From rows to the new columns (n,) by name; called once everything is checked.
    out : path or None
        A Parquet file to write to, in place of a result.

    Returns
    -------
    pandas.DataFrame or None
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
    if out is not None or isinstance(design, SummarisedDesign):
        return _augment_again(design, data, incomplete, columns, out)
    if data is None and incomplete == "keep" and len(design.dropped):
        raise DataError(
            "The rows dropped for missing values are not in the model: give the data it was built "
            "from, augment(data, incomplete='keep')."
        )
    kept = slice(None) if data is None else _kept_rows(design, data)
    frame = design.data.copy() if data is None else to_frame(data)
    new = pd.DataFrame(dict(columns(design)), index=frame.index[kept])
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


def _augment_again(
    design: Design,
    data: Any,
    incomplete: Incomplete,
    columns: Callable[[Design], Mapping[str, Array]],
    out: Out | None,
) -> pd.DataFrame | None:
    """Put columns beside the variables of rows that are read again, or written to a file."""
    if data is not None or incomplete == "keep":
        raise DataError(
            "data= and incomplete='keep' are for a data frame in memory that comes back whole: "
            "without them the variables of the model are given, in the rows used, with the number "
            "of each row."
        )

    def table(rows: Design) -> pd.DataFrame:
        return pd.DataFrame(dict(columns(rows)), index=rows.index)

    if out is not None:
        return row_table(design, table, out)
    result = row_table(design, lambda rows: pd.concat([rows.data, table(rows)], axis=1), None)
    assert result is not None
    result.attrs["rows_dropped"] = design.n_dropped
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
        ".pearson_resid": residual / residual_sds(design, points_of_fits([fit]))[0],
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
    step = max(1, AT_ONCE // joint.size)
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        draws = _draws_of(design, joint, rows)
        lower[rows], upper[rows] = interval(draws, prob, kind)
        sds = residual_sds(design, joint.points, rows)
        standard[rows] = np.mean((design.y[rows] - draws) / sds, axis=0)
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
    here = [[slot.take(rows) for slot in factor.slots] for factor in design.random]
    wanted = [np.unique([slot.codes for slot in slots]) for slots in here]
    result = joint.beta @ design.X[rows].T + design.offset[rows]
    for slots, levels, u in zip(here, wanted, joint.effects(wanted), strict=True):
        for slot in slots:
            places = np.searchsorted(levels, slot.codes)
            for c in range(u.shape[2]):
                result += u[:, places, c] * slot.Z[:, c]
    return np.asarray(result)


def _given(design: Design) -> dict[str, Array]:
    """Offset and weights where the model has them."""
    given = {".offset": design.offset} if design.formula.shifts else {}
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
