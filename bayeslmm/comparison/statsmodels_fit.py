"""Everything bayeslmm reads from statsmodels' mixed-model results, as a tidy table.

statsmodels maximises the likelihood profiled over the residual variance s, in the ratios
psi = (covariances of the random effects) / s. Its ``bse_re`` is the standard error of psi times the
square root of s, on no scale at all; here the standard errors of standard deviations and
correlations come from the covariance matrix of (psi, log s) by the delta method.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

GROUP = "Group"
"""What statsmodels calls the grouping factor where it does not know the name."""

VARIANCE_COMPONENT = "ran_vc"
"""Effect of the rows of variance components: their names may be factors or coefficients."""

NEGLIGIBLE = 1e-8
"""Variance ratio, or distance of a correlation from one, at which the estimate is at a boundary."""

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
    terms += [(VARIANCE_COMPONENT, name, "sd__(Intercept)") for name in _component_names(result)]
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


def _component_names(result: Any) -> list[str]:
    return [str(name) for name in result.model.exog_vc.names]


def _pairs(size: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(size) for j in range(i)]


def _parameters(result: Any) -> tuple[Array, Array]:
    """Sds, correlations, sds of components and sigma, with standard errors."""
    ratios = np.concatenate(
        [np.asarray(result.cov_re_unscaled)[np.tril_indices(result.k_re)], _vcomp(result)]
    )
    covariance = _covariance(result, ratios)
    values, gradients = _values_and_gradients(result, ratios)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.einsum("ij,jk,ik->i", gradients, covariance, gradients))
    inside = np.isfinite(gradients).all(axis=1)
    return values, np.where(inside, errors, np.nan)


def _vcomp(result: Any) -> Array:
    return np.atleast_1d(np.asarray(result.vcomp, dtype=float)) / result.scale


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
    k, m, scale = result.k_re, len(ratios), result.scale
    at = {(i, j): i * (i + 1) // 2 + j for i in range(k) for j in range(i + 1)}
    values, rows = [], []

    def add_sd(position: int) -> None:
        ratio = max(float(ratios[position]), 0.0)
        values.append(np.sqrt(ratio * scale))
        row = np.zeros(m + 1)
        inside = ratio > NEGLIGIBLE
        row[position] = 0.5 * values[-1] / ratio if inside else np.nan
        row[m] = 0.5 * values[-1]
        rows.append(row)

    for i in range(k):
        add_sd(at[i, i])
    for i, j in _pairs(k):
        product = np.sqrt(max(ratios[at[i, i]] * ratios[at[j, j]], 0.0))
        rho = ratios[at[i, j]] / product if product > NEGLIGIBLE else np.nan
        values.append(rho)
        row = np.zeros(m + 1)
        if abs(rho) < 1.0 - NEGLIGIBLE:
            row[at[i, j]] = 1.0 / product
            row[at[i, i]] = -0.5 * rho / ratios[at[i, i]]
            row[at[j, j]] = -0.5 * rho / ratios[at[j, j]]
        else:
            row[:] = np.nan
        rows.append(row)
    for position in range(len(at), m):
        add_sd(position)
    values.append(np.sqrt(scale))
    rows.append(np.append(np.zeros(m), 0.5 * values[-1]))
    return np.array(values), np.array(rows)
