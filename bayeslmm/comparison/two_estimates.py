"""An estimate of this package beside one of the same model from elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.comparison.estimates import Reported, read_estimate
from bayeslmm.comparison.reml import (
    AGREES,
    BOUNDARY,
    DIFFERS,
    MAX_DIFFERENCE,
    at_boundary,
    on_scale,
)
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.priors.defaults import covariate_scales
from bayeslmm.summaries import is_estimate, is_posterior
from bayeslmm.summaries.parameters import Parameter, natural, parameters

Array = NDArray[np.float64]

ERRORS_DIFFER = "standard errors differ"

MAX_RATIO = 0.005
"""Relative difference of two standard errors of a fixed effect from which on they "differ"."""

NEAR_BOUNDARY = 0.01
"""What counts as nothing at a boundary: an sd in residual sds, a correlation's distance from one.

An sd counts in units of its covariate: times the covariate's standard deviation.
"""

EXACT = 1e-6
"""Relative difference up to which two values that are held count as the same."""

LEVEL = 0.95

_log = logging.getLogger(__name__)


def compare_estimates(
    estimate: Any, other: Any, *, names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Put an estimate beside one of the same model from another program, parameter by parameter.

    Parameters
    ----------
    estimate : Estimate
        ``model.reml()`` or ``model.ml()``.
    other : Estimate, statsmodels MixedLMResults, DataFrame, str or path
        The other one, as :func:`bayeslmm.compare_reml` takes it: a table, or the path of a CSV
        file, with broom.mixed's columns, as R's ``broom.mixed::tidy(fit)`` makes it from lme4,
        nlme or glmmTMB fits; the results of statsmodels' ``MixedLM``; an estimate made here.
    names : mapping of str to str, optional
        Coefficients and grouping factors as the other names them, to our names. R's own spelling,
        such as ``SexFemale`` for ``Sex[T.Female]``, is understood without.

    Returns
    -------
    pandas.DataFrame
        One row per parameter (``beta[Days]``, ``sd[Subject, Days]``, ``sigma``), those of the
        fixed effects alone if the other has no others. Columns:

        - estimate, other: the two values.
        - difference: the other less ours.
        - in_std_errors: the difference in our standard errors; NaN where there is none.
        - std_error, other_std_error: NaN where there is none.
        - flag: see the notes.

        Its ``attrs`` say what was compared: formula, estimate, other, nobs, and closest, which is
        "ML" where this is an estimate by REML and the other has the values of ML, or the reverse.

    Raises
    ------
    DataError
        If the parameters are not the same; both lists are shown.
    TypeError
        If `estimate` or `other` is no estimate.
    ValueError
        If one of them is a posterior mode.

    Notes
    -----
    The first of these that applies is the flag of a parameter.

    - "differs": the values are 0.1 standard errors or more apart. This is much more than two
      optimisers differ by at their default tolerances, and less than changes a conclusion: the
      other fit is one of other data or of another model, or one of the two did not converge.
      Where we have no standard error, at a boundary, an sd differs by a hundredth of the residual
      sd in units of its covariate, and a correlation that is not within a hundredth of ours.
    - "standard errors differ": those of a fixed effect are half a percent or more apart, although
      the estimate is the same. Where the standard deviations differ, that is why. Else they were
      made in another way: by Kenward and Roger's correction, robust to clusters, or multiplied by
      sqrt(n / (n - p)), as nlme has it for ML.
    - "at the boundary": both have an sd of zero, or a correlation of one or of such an sd.
    - "agrees": none of these.

    Where the values are those of the other criterion, ML in place of REML or the reverse, the log
    says so.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    >>> from_r = model.reml().tidy().replace({"Intercept": "(Intercept)"})
    >>> table = blm.compare_estimates(model.reml(), from_r)
    >>> table["flag"].unique().tolist()
    ['agrees']
    """
    if is_posterior(estimate):
        raise TypeError(
            "Two estimates are expected; compare_reml() puts a posterior beside an estimate."
        )
    if not is_estimate(estimate):
        raise TypeError(
            "An estimate from model.reml() or model.ml() is expected first, got "
            f"{type(estimate).__name__}."
        )
    design: Design = estimate.design
    theirs = read_estimate(other, design, LEVEL, names)
    ours = read_estimate(estimate, design, LEVEL).table.loc[theirs.table.index]
    rows = [p for p in parameters(design) if p.label in theirs.table.index]
    table = pd.DataFrame(
        {
            "estimate": ours["estimate"],
            "other": theirs.table["estimate"],
            "difference": theirs.table["estimate"] - ours["estimate"],
            "in_std_errors": np.nan,
            "std_error": ours["std_error"],
            "other_std_error": theirs.table["std_error"],
        }
    )
    table["in_std_errors"] = table["difference"] / table["std_error"]
    table["flag"] = _flags(table, rows, estimate.fit, design)
    table.attrs = {
        "formula": design.formula.source,
        "estimate": f"bayeslmm {estimate.method}",
        "other": theirs.source,
        "nobs": design.n,
        "closest": estimate.method,
    }
    if theirs.nobs not in (None, design.n):
        _log.warning("The other estimate uses %d rows and this one %d.", theirs.nobs, design.n)
    if {DIFFERS, ERRORS_DIFFER} & set(table["flag"]):
        table.attrs["closest"] = _closest(estimate.fit, theirs, rows, table)
    return table


def _closest(fit: Fit, theirs: Reported, rows: Sequence[Parameter], table: pd.DataFrame) -> str:
    """The criterion whose maximum the other estimate is; that of our fit where it is neither."""
    method: Literal["REML", "ML"] = "ML" if fit.method == "REML" else "REML"
    swapped = fit_likelihood(fit.plan, method)
    free = np.concatenate([swapped.beta, swapped.parameters])[: len(rows)]
    values = np.array([natural(p.kind, v) for p, v in zip(rows, free, strict=True)])
    errors = table["std_error"].to_numpy()
    others = theirs.table["estimate"].to_numpy()
    here = np.abs(others - table["estimate"].to_numpy()) / errors
    there = np.abs(others - values) / errors
    measured = np.isfinite(here) & np.isfinite(there)
    if not measured.any() or not there[measured].max() < min(here[measured].max(), MAX_DIFFERENCE):
        return fit.method
    _log.warning(
        "The other estimate has the values of %s, this one is by %s: compare with model.%s().",
        method,
        fit.method,
        method.lower(),
    )
    return method


def _flags(table: pd.DataFrame, rows: Sequence[Parameter], fit: Fit, design: Design) -> Array:
    estimates = table["estimate"].to_numpy()
    apart = np.abs(table["difference"].to_numpy())
    errors = table["std_error"].to_numpy()
    measured = np.isfinite(errors)
    boundary = at_boundary(on_scale(estimates, rows), rows) & ~measured
    unit = [_size(p, estimates[i], fit, design, boundary[i]) for i, p in enumerate(rows)]
    limit = np.where(measured, MAX_DIFFERENCE * errors, unit)
    undefined = np.array([_undefined(p, table["estimate"]) for p in rows], dtype=bool)
    fixed = np.array([p.kind == "beta" for p in rows])
    with np.errstate(invalid="ignore"):
        ratio = np.abs(table["other_std_error"].to_numpy() / errors - 1.0)
        conditions = {
            DIFFERS: ~undefined & ~(apart < limit),  # also where the other has no value
            ERRORS_DIFFER: fixed & (ratio >= MAX_RATIO),
            BOUNDARY: undefined | boundary,
        }
    return np.select(list(conditions.values()), list(conditions), AGREES)


def _size(parameter: Parameter, estimate: float, fit: Fit, design: Design, boundary: bool) -> float:
    """The difference from which on a parameter without a standard error differs."""
    if not boundary:  # held at a known value
        return EXACT * max(abs(estimate), EXACT)
    if parameter.kind != "sd":
        return NEAR_BOUNDARY
    scales = covariate_scales(design.random[parameter.factor])
    return NEAR_BOUNDARY * fit.sigma / float(scales[parameter.index[0]])


def _undefined(parameter: Parameter, estimates: pd.Series) -> bool:
    """Whether a parameter is the correlation of a coefficient that does not vary."""
    if parameter.kind != "cor":
        return False
    labels = [f"sd[{parameter.group}, {term}]" for term in parameter.terms]
    return any(estimates.get(label, np.nan) == 0.0 for label in labels)
