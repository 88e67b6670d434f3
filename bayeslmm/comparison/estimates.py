"""Estimates made here, by statsmodels or by R, read into one table by parameter label.

statsmodels maximises the likelihood profiled over the residual variance s, in the ratios
psi = (covariances of the random effects) / s. Its ``bse_re`` is the standard error of psi times the
square root of s, on no scale at all; here the standard errors of standard deviations and
correlations come from the covariance matrix of (psi, log s) by the delta method.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.comparison.names import (
    NO_NAMES,
    Names,
    from_r,
    group_from_r,
    pair_from_r,
    unmatched_message,
)
from bayeslmm.data.design import Design
from bayeslmm.data.frames import to_frame
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import Inference, default_inference
from bayeslmm.exceptions import DataError
from bayeslmm.summaries import is_estimate
from bayeslmm.summaries.estimate_tables import summary_table, tidy_table
from bayeslmm.summaries.parameters import Kind, Parameter, natural, parameters, slope, unconstrained

Array = NDArray[np.float64]

TABLE_LEVEL = 0.95
"""Coverage of the limits in tables from elsewhere: broom.mixed's default."""

COLUMNS = ["estimate", "std_error", "conf_low", "conf_high"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reported:
    """An estimate as its maker reports it.

    Attributes
    ----------
    table : DataFrame
        Columns estimate, std_error, conf_low, conf_high by our parameter labels.
    source : str
        Where it comes from.
    method : {"REML", "ML"} or None
        What was maximised; None where that is not known.
    nobs : int or None
        Number of rows used, where that is known.
    """

    table: pd.DataFrame
    source: str
    method: str | None = None
    nobs: int | None = None


def read_estimate(reml: Any, design: Design, prob: float, names: Names | None = None) -> Reported:
    """Read an estimate of the model of a design.

    Parameters
    ----------
    reml : Estimate, Fit, statsmodels MixedLMResults, DataFrame, str or path
        An estimate, its fit if it is of this design, or a tidy table (or a CSV file of one) with
        broom.mixed's columns.
    design : Design
        The model that gives the labels.
    prob : float
        Coverage of the confidence intervals.
    names : mapping of str to str, optional
        Names of coefficients and grouping factors in the estimate, to ours.

    Returns
    -------
    Reported

    Raises
    ------
    DataError
        If a table lacks columns, or its parameters are not those of the model.
    TypeError
        If `reml` is none of these.
    ValueError
        If `names` points to nothing in the model, or `reml` is a posterior mode.
    """
    model = _Model(design, _checked_names(names or NO_NAMES, design))
    if isinstance(reml, Fit):
        return _from_fit(default_inference(reml), design, model, prob)
    if is_estimate(reml):
        return _from_fit(reml.inference, reml.design, model, prob)
    if is_mixedlm(reml):
        table = _from_table(_with_factors(tidy_mixedlm(reml), model), model, prob)
        method, nobs = ("REML" if reml.model.reml else "ML"), int(reml.model.n_totobs)
        return Reported(table=table, source=f"statsmodels {method}", method=method, nobs=nobs)
    if isinstance(reml, str | os.PathLike):
        frame = pd.read_csv(reml)
        return Reported(table=_from_table(frame, model, prob), source=Path(reml).name)
    if hasattr(reml, "columns"):
        return Reported(table=_from_table(to_frame(reml), model, prob), source="table")
    raise TypeError(
        f"An estimate is expected, got {type(reml).__name__}: pass model.reml(), the results of "
        "statsmodels' MixedLM, or a table with broom.mixed's columns (a data frame or the path of "
        "a CSV file)."
    )


def _checked_names(names: Names, design: Design) -> Names:
    allowed = set(design.coefs)
    for factor in design.random:
        allowed |= {factor.name, *factor.coefs}
    if unknown := sorted(set(names.values()) - allowed):
        raise ValueError(
            f"names= points to {', '.join(map(repr, unknown))}, which the model does not have. "
            f"Its coefficients and grouping factors are: {', '.join(sorted(allowed))}."
        )
    return names


@dataclass(frozen=True, eq=False)
class _Model:
    """The parameters of our model by the names that others give them."""

    design: Design
    names: Names

    @cached_property
    def known(self) -> dict[str, Parameter]:
        return {p.label: p for p in parameters(self.design)}

    @cached_property
    def by_terms(self) -> dict[tuple[str, str | None, frozenset[str]], str]:
        """Labels by kind, grouping factor and coefficients."""
        return {(p.kind, p.group, frozenset(p.terms)): p.label for p in self.known.values()}

    @cached_property
    def coefs(self) -> dict[str, tuple[str, ...]]:
        """Coefficients by grouping factor."""
        return {factor.name: factor.coefs for factor in self.design.random}

    def fixed(self, name: str) -> str | None:
        coef = from_r(name, self.design.coefs, self.names)
        return None if coef is None else f"beta[{coef}]"

    def group(self, name: str) -> str | None:
        return group_from_r(name, list(self.coefs), self.names)

    def random(self, kind: str, group: str | None, name: str) -> str | None:
        """The label of an sd or, from two names joined by a dot, of a correlation."""
        if group is None:
            return None
        if kind == "sd":
            coef = from_r(name, self.coefs[group], self.names)
            return None if coef is None else self.by_terms.get(("sd", group, frozenset({coef})))
        pair = pair_from_r(name, self.coefs[group], self.names)
        return self.by_terms.get(("cor", group, frozenset(pair))) if pair else None


def own_fit(reml: Any, design: Design) -> Fit | None:
    """The arrays of an estimate where it is one of this very design."""
    if isinstance(reml, Fit):
        return reml
    return reml.fit if is_estimate(reml) and reml.design is design else None


def _from_fit(judged: Inference, design: Design, model: _Model, prob: float) -> Reported:
    fit = judged.fit
    if fit.method == "MAP":
        raise ValueError(
            "A posterior mode is no estimate to compare with: pass model.reml() or model.ml()."
        )
    table = summary_table(judged, design, prob)[COLUMNS]
    if list(table.index) != list(model.known):
        tidy = tidy_table(judged, design, ("fixed", "ran_pars"), prob)
        table = _from_table(tidy, model, prob, level=prob)
    source = f"bayeslmm {fit.method}"
    return Reported(table=table, source=source, method=fit.method, nobs=design.n)


def _with_factors(table: pd.DataFrame, model: _Model) -> pd.DataFrame:
    """The table of statsmodels with our grouping factors, which it may not know."""
    table = table.copy()
    component = table["effect"] == VARIANCE_COMPONENT
    claimed = {model.group(name) for name in table.loc[component, "group"]}
    free = [group for group in model.coefs if group not in claimed]
    main = free[0] if len(free) == 1 else None
    for row, name in table.loc[table["effect"] != "fixed", "group"].items():
        if name == "Residual" or model.group(name) is not None or main is None:
            continue
        if component[row] and from_r(name, model.coefs[main], model.names) is not None:
            table.loc[row, "term"] = f"sd__{name}"
        if not component[row] or table.loc[row, "term"] == f"sd__{name}":
            table.loc[row, "group"] = main
    return table.replace({"effect": {VARIANCE_COMPONENT: "ran_pars"}})


# --- tidy tables -----------------------------------------------------------------------


def _from_table(
    frame: pd.DataFrame, model: _Model, prob: float, level: float = TABLE_LEVEL
) -> pd.DataFrame:
    frame = frame.rename(columns=lambda name: str(name).replace(".", "_"))
    if absent := sorted({"effect", "term", "estimate"} - set(frame.columns)):
        raise DataError(
            f"The table has no column {' and no column '.join(absent)}; broom.mixed's columns are "
            "expected: effect, group, term, estimate, std.error, conf.low, conf.high."
        )
    frame = frame.reindex(columns=["effect", "group", "term", "df", *COLUMNS])
    fixed, random = (frame[frame["effect"] == effect] for effect in ("fixed", "ran_pars"))
    rows: dict[str, Array] = {}
    unmatched = []
    for name, label, values in [*_fixed_rows(fixed, model), *_random_rows(random, model)]:
        if label is None:
            unmatched.append(name)
        elif label in rows:
            raise DataError(f"The table has {label} twice, the second time as {name!r}.")
        else:
            rows[label] = _with_interval(model.known[label].kind, values, prob, level)
    wanted = [label for label, p in model.known.items() if len(random) or p.kind == "beta"]
    missing = [label for label in wanted if label not in rows]
    if unmatched or missing:
        raise DataError(unmatched_message(unmatched, missing))
    index = pd.Index(wanted, name="parameter")
    return pd.DataFrame([rows[label] for label in wanted], index=index, columns=COLUMNS)


Row = tuple[str, str | None, Array]
"""Their name, our label, and df with the values of `COLUMNS`."""


def _fixed_rows(fixed: pd.DataFrame, model: _Model) -> Iterator[Row]:
    for term, values in zip(fixed["term"].astype(str), _numbers(fixed), strict=True):
        yield term, model.fixed(term), values


def _random_rows(random: pd.DataFrame, model: _Model) -> Iterator[Row]:
    rows: list[tuple[str, str, str | None, Array]] = []
    for group, term, values in zip(
        random["group"].astype(str), random["term"].astype(str), _numbers(random), strict=True
    ):
        kind, _, name = term.partition("_")
        name = name.removeprefix("_")
        known = model.group(group)
        if kind == "var":
            kind, values = "sd", _root(values)
        if kind == "sd" and known is None and name == "Observation":
            label: str | None = "sigma"
        else:
            label = model.random(kind, known, name) if kind in ("sd", "cor", "cov") else None
        rows.append((kind, f"{group} {term}", label, values))
    sds = {label: values[1] for kind, _, label, values in rows if kind == "sd" and label}
    for kind, shown, label, values in rows:
        if kind == "cov" and label is not None:
            values = _scaled(values, model.known[label], sds)
        yield shown, label, values


def _numbers(frame: pd.DataFrame) -> Array:
    return frame[["df", *COLUMNS]].to_numpy(dtype=float, na_value=np.nan)


def _root(values: Array) -> Array:
    """A standard deviation from a variance."""
    root = np.sqrt(np.maximum(values, 0.0))
    error = values[2] / (2.0 * root[1]) if root[1] > 0 else np.nan
    return np.array([np.nan, root[1], error, root[3], root[4]])


def _scaled(values: Array, parameter: Parameter, sds: Mapping[str, float]) -> Array:
    """A correlation from a covariance."""
    scale = np.prod([sds.get(f"sd[{parameter.group}, {t}]", np.nan) for t in parameter.terms])
    correlation = values[1] / scale if scale > 0 else np.nan
    return np.array([np.nan, correlation, np.nan, np.nan, np.nan])


def _with_interval(kind: Kind, values: Array, prob: float, level: float) -> Array:
    """Estimate, standard error and limits of coverage `prob`: given with that level, or Wald's."""
    df, estimate, error, *limits = values
    if not np.isclose(prob, level) or not np.all(np.isfinite(limits)):
        limits = wald(kind, estimate, error, prob, df)
    return np.array([estimate, error, *limits])


def wald(kind: Kind, estimate: float, error: float, prob: float, df: float = np.nan) -> list[float]:
    """Wald limits, symmetric on the scale of :func:`unconstrained`.

    Parameters
    ----------
    kind : {"beta", "sd", "cor", "sigma"}
        Kind of the parameter.
    estimate, error : float
        Estimate and standard error.
    prob : float
        Coverage.
    df : float
        Degrees of freedom; the normal distribution where NaN.

    Returns
    -------
    list of float
        Lower and upper limit; NaN where there is no standard error.
    """
    quantile = 0.5 + prob / 2.0
    z = stats.norm.ppf(quantile) if np.isnan(df) else stats.t.ppf(quantile, df)
    center = float(unconstrained(kind, np.array(estimate)))
    margin = z * error * slope(kind, estimate)
    if not np.isfinite([center, margin]).all():
        return [np.nan, np.nan]
    return [natural(kind, center - margin), natural(kind, center + margin)]


# --- everything bayeslmm reads from statsmodels' mixed-model results, as a tidy table ---

GROUP = "Group"
"""What statsmodels calls the grouping factor where it does not know the name."""

VARIANCE_COMPONENT = "ran_vc"
"""Effect of the rows of variance components: their names may be factors or coefficients."""

NEGLIGIBLE = 1e-8
"""Variance ratio, or distance of a correlation from one, at which the estimate is at a boundary."""

COMPLEX_STEP = 1e-30
"""Imaginary step of the other derivatives, which are exact."""

STEP = 1e-4
"""Relative step of the numerical derivatives of the residual variance."""


def is_mixedlm(result: Any) -> bool:
    """Tell whether an object is the result of statsmodels' ``MixedLM.fit``."""
    return all(hasattr(result, name) for name in ("fe_params", "cov_re", "vcomp", "scale"))


def tidy_mixedlm(result: Any) -> pd.DataFrame:
    """Put the results of statsmodels' ``MixedLM.fit`` into broom.mixed's columns.

    Parameters
    ----------
    result : statsmodels MixedLMResults
        The results.

    Returns
    -------
    pandas.DataFrame
        Columns effect, group, term, estimate and std_error, which is NaN at a boundary.
        Correlations that were fixed at zero are left out.

    Raises
    ------
    DataError
        If the data of the model have been removed.
    """
    if result.model.exog is None:
        raise DataError(
            "The data of these statsmodels results were removed, and the standard errors need "
            "them: fit again, without remove_data()."
        )
    fixed = zip(result.model.exog_names, result.fe_params, result.bse_fe, strict=False)
    rows: list[dict[str, Any]] = [
        {"effect": "fixed", "term": name, "estimate": value, "std_error": error}
        for name, value, error in fixed
    ]
    group, names = _random_names(result)
    values, errors = _parameters(result)
    terms = [("ran_pars", group, f"sd__{name}") for name in names]
    terms += [("ran_pars", group, f"cor__{names[j]}.{names[i]}") for i, j in _pairs(len(names))]
    terms += [
        (VARIANCE_COMPONENT, str(name), "sd__(Intercept)") for name in result.model.exog_vc.names
    ]
    terms.append(("ran_pars", "Residual", "sd__Observation"))
    for (effect, factor, term), value, error in zip(terms, values, errors, strict=True):
        fixed_at_zero = term.startswith("cor__") and value == 0.0 and not error > 0.0
        if not fixed_at_zero:
            row = {"effect": effect, "group": factor, "term": term}
            rows.append({**row, "estimate": value, "std_error": error})
    return pd.DataFrame(rows, columns=["effect", "group", "term", "estimate", "std_error"])


def _random_names(result: Any) -> tuple[str, list[str]]:
    """The grouping factor and the coefficients, the intercept among them named after the factor."""
    parameters = [str(name) for name in result.model.data.param_names[result.k_fe :]]
    names = [str(name) for name in result.model.data.exog_re_names]
    if not names:
        return GROUP, []
    group = parameters[0].removesuffix(" Var")
    intercept = np.allclose(np.asarray(result.model.exog_re)[:, 0], 1.0)
    return (group, ["(Intercept)", *names[1:]]) if intercept else (GROUP, names)


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _parameters(result: Any) -> tuple[Array, Array]:
    """Sds, correlations, sds of components and sigma, with standard errors."""
    random = np.asarray(result.cov_re_unscaled)[np.tril_indices(result.k_re)]
    components = np.atleast_1d(np.asarray(result.vcomp, dtype=float)) / result.scale
    ratios = np.concatenate([random, components])
    covariance = _covariance(result, ratios)
    values, gradients = _values_and_gradients(result, ratios)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.einsum("ij,jk,ik->i", gradients, covariance, gradients))
    inside = np.isfinite(gradients).all(axis=1)
    return values, np.where(inside, errors, np.nan)


def _covariance(result: Any, ratios: Array) -> Array:
    """Covariance matrix of (psi, log s); ratios of zero are taken as known."""
    p, m = result.k_fe, len(ratios)
    profiled = np.zeros((m, m))
    inside = np.ix_(*[_positive(result, ratios)] * 2)
    information = np.linalg.pinv(np.asarray(result.cov_params())[p:, p:])
    profiled[inside] = np.linalg.pinv(information[inside])
    slope = _log_scale_slope(result, ratios)
    n = result.model.n_totobs - (p if result.model.reml else 0)
    full = np.empty((m + 1, m + 1))
    full[:m, :m] = profiled
    full[m, :m] = full[:m, m] = profiled @ slope
    full[m, m] = 2.0 / n + slope @ profiled @ slope
    return full


def _positive(result: Any, ratios: Array) -> NDArray[np.bool_]:
    """Variances that are not negligible, and covariances of such."""
    rows, cols = np.tril_indices(result.k_re)
    variances = np.zeros(result.k_re, dtype=bool)
    variances[rows[rows == cols]] = ratios[: len(rows)][rows == cols] > NEGLIGIBLE
    return np.append(variances[rows] & variances[cols], ratios[len(rows) :] > NEGLIGIBLE)


def _log_scale_slope(result: Any, ratios: Array) -> Array:
    """Derivatives by psi of the log residual variance that maximises the likelihood."""
    slope = np.zeros(len(ratios))
    for i in np.flatnonzero(_positive(result, ratios)):
        step = np.zeros(len(ratios))
        step[i] = STEP * max(abs(ratios[i]), STEP)
        upper, lower = (_log_scale(result, ratios + sign * step) for sign in (1.0, -1.0))
        slope[i] = (upper - lower) / (2.0 * step[i])
    return slope


def _log_scale(result: Any, ratios: Array) -> float:
    cov_re = np.zeros((result.k_re, result.k_re))
    rows, cols = np.tril_indices(result.k_re)
    cov_re[rows, cols] = cov_re[cols, rows] = ratios[: len(rows)]
    vcomp = ratios[len(rows) :]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        beta, _ = result.model.get_fe_params(cov_re, vcomp)
        return float(np.log(result.model.get_scale(beta, cov_re, vcomp)))


def _values_and_gradients(result: Any, ratios: Array) -> tuple[Array, Array]:
    """Reported parameters and their gradients by (psi, log s); NaN at a boundary."""
    k, m = result.k_re, len(ratios)
    rows, cols = np.tril_indices(k)
    at = {
        (i, j): place for place, (i, j) in enumerate(zip(rows.tolist(), cols.tolist(), strict=True))
    }
    variances = [*(at[i, i] for i in range(k)), *range(len(rows), m)]  # places in psi
    psi = ratios.copy()
    psi[variances] = np.maximum(psi[variances], 0.0)

    def reported(psi: NDArray[Any], scale: Any) -> NDArray[Any]:
        sds, sigma = np.sqrt(psi[variances]), np.sqrt(scale)
        correlations = [psi[at[i, j]] / (sds[i] * sds[j]) for i, j in _pairs(k)]
        return np.concatenate([sigma * sds[:k], correlations, sigma * sds[k:], [sigma]])

    with np.errstate(all="ignore"):
        values = np.asarray(reported(psi, result.scale), dtype=float)
        steps = 1j * COMPLEX_STEP * np.eye(m + 1)
        moved = [reported(psi + step[:m], result.scale * np.exp(step[m])) for step in steps]
    products = [np.sqrt(psi[at[i, i]] * psi[at[j, j]]) for i, j in _pairs(k)]
    correlations = slice(k, k + len(products))
    rho = np.where(np.array(products) > NEGLIGIBLE, values[correlations], np.nan)
    values[correlations] = rho
    inside = psi[variances] > NEGLIGIBLE
    known = np.concatenate([inside[:k], np.abs(rho) < 1.0 - NEGLIGIBLE, inside[k:], [True]])
    gradients = np.stack(moved, axis=1).imag / COMPLEX_STEP  # (values, m + 1)
    return values, np.where(known[:, None], gradients, np.nan)
