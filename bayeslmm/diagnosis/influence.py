"""Influence of rows and of levels on estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.design._rank import independent_columns
from bayeslmm.design.design import Design
from bayeslmm.diagnosis.report import Report, counted, listed
from bayeslmm.diagnosis.whitening import row_residuals
from bayeslmm.inference.estimate import Fit, fit_likelihood
from bayeslmm.inference.point_draws import point_draws
from bayeslmm.inference.progress import tracked
from bayeslmm.likelihood.covariance import sds_and_correlation
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.results.parameters import covariance_parameters, parameters

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGE_ROW_COOK = 1.0
"""Cook's distance of a row above which it is named."""

LARGE_COOK = 4.0
"""Cook's distances above this over the number of cases deserve a look (as in influence.ME)."""

LARGE_DFBETAS = 2.0
"""The same for absolute dfbetas, over the root of the number of cases."""

HIGH_LEVERAGE = 2.0
"""Leverages above this times their mean are called high."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class RowInfluence(Report):
    """Influence of single rows on an estimate, at its covariance parameters.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per row of the data: `leverage` (lme4's ``hatvalues``), `residual` (over its standard
        deviation; lme4's scaled Pearson residual), `standardised` (that over the root of one less
        the leverage; lme4's ``rstudent``) and `cooks_distance` (lme4's ``cooks.distance``).
    """

    table: pd.DataFrame

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Influence of {len(self.table)} rows on the fitted values"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_row_messages(self.table))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        top = self.table.sort_values("cooks_distance", ascending=False).head(5)
        return {"The five largest Cook's distances": top}


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class GroupInfluence(Report):
    """What leaving out each level does to an estimate: a refit per level.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per level: `rows` it has, `cooks_distance` of beta, `covratio` (determinant of the
        covariance matrix of beta without the level over that with it), `max_dfbetas` (largest
        absolute one), `max_sd_change` (largest absolute relative change of a standard deviation,
        sigma included) and `singular`, whether the refit is.
    dfbetas : pandas.DataFrame
        Levels by coefficients: estimate without the level less that with it, over its standard
        error without it.
    estimates : pandas.DataFrame
        Levels by parameters: estimates without the level; NaN where the rest of the data does not
        determine a coefficient.
    change : pandas.DataFrame
        Levels by parameters: these less the estimate from all data.
    relative_change : pandas.DataFrame
        Levels by standard deviations: change over the estimate from all data.
    by : str
        Grouping variable.
    """

    table: pd.DataFrame
    dfbetas: pd.DataFrame
    estimates: pd.DataFrame
    change: pd.DataFrame
    relative_change: pd.DataFrame
    by: str

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Influence of the {len(self.table)} levels of {self.by} on the estimate"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_group_messages(self))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        top = self.table.sort_values("cooks_distance", ascending=False).head(5)
        return {
            "The five largest Cook's distances": top,
            "Their dfbetas": self.dfbetas.loc[top.index],
        }


# --- estimates -------------------------------------------------------------------------


def row_influence(design: Design, fit: Fit) -> RowInfluence:
    """Leverages, residuals and Cook's distances at an estimate, without refits.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate.

    Returns
    -------
    RowInfluence

    References
    ----------
    lme4's ``hatvalues``, ``rstudent`` and ``cooks.distance`` for its fits.
    """
    joint = point_draws(fit, ())
    pearson, leverage = row_residuals(design, fit.plan, fit.prior, joint, given_beta=fit.given_beta)
    residual, h = pearson[0], leverage[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        standardised = residual / np.sqrt(1.0 - h)
        cook = standardised**2 * h / ((1.0 - h) * design.p)
    table = pd.DataFrame(
        {
            "leverage": h,
            "residual": residual,
            "standardised": standardised,
            "cooks_distance": cook,
        },
        index=design.index,
    )
    return RowInfluence(table=table)


def group_influence(
    design: Design, fit: Fit, by: str, *, progressbar: bool = False
) -> GroupInfluence:
    """Refit without each level of a grouping variable.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its REML or ML estimate.
    by : str
        A grouping factor of the model or a variable of its formula.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    GroupInfluence

    Raises
    ------
    ValueError
        If there is no such variable, or the estimate is a "MAP" one.

    References
    ----------
    Nieuwenhuis, te Grotenhuis, Pelzer (2012), influence.ME, doi:10.32614/RJ-2012-011.
    Belsley, Kuh, Welsch (1980), Regression diagnostics, doi:10.1002/0471725153.
    """
    if fit.method == "MAP":
        raise ValueError(
            'Influence by refits is for REML and ML; for "MAP", use influence() of the posterior.'
        )
    codes, levels = case_groups(design, by)
    method: Literal["REML", "ML"] = "REML" if fit.method == "REML" else "ML"
    labels = [row.label for row in parameters(design)]
    whole = _all_parameters(design, fit)
    estimates = np.full((len(levels), len(labels)), np.nan)
    dfbetas = np.full((len(levels), design.p), np.nan)
    records = []
    inverse = np.linalg.inv(fit.vcov) if design.p else np.zeros((0, 0))
    for g in tracked(range(len(levels)), f"Refits without each {by}", progressbar):
        kept = np.flatnonzero(codes != g)
        refit, columns = _refit_rows(design, kept, method)
        estimates[g] = _all_parameters(design, refit, columns)
        gap = estimates[g, : design.p] - whole[: design.p]
        dfbetas[g, columns] = gap[columns] / np.sqrt(np.diag(refit.vcov))
        complete = bool(columns.all())
        ratio = np.linalg.slogdet(refit.vcov)[1] - np.linalg.slogdet(fit.vcov)[1]
        records.append(
            {
                "rows": design.n - len(kept),
                "cooks_distance": float(gap @ inverse @ gap) / design.p if complete else np.nan,
                "covratio": float(np.exp(ratio)) if complete else np.nan,
                "singular": refit.singular,
            }
        )
    return _group_result(design, by, levels, whole, estimates, dfbetas, records)


def case_groups(design: Design, by: str) -> tuple[Indices, pd.Index]:
    """Codes (n,) from 0 without gaps, and labels, of the levels that rows are grouped by."""
    for factor in design.random:
        if factor.name == by:
            present, codes = np.unique(factor.codes, return_inverse=True)
            return codes, pd.Index(factor.levels[present], name=by)
    if by in design.data.columns:
        codes, labels = pd.factorize(design.data[by], sort=True)
        return np.asarray(codes, dtype=np.intp), pd.Index(labels, name=by)
    allowed = sorted({factor.name for factor in design.random} | set(design.data.columns))
    raise ValueError(
        f"by={by!r}: a grouping factor or a variable of the formula is expected: "
        f"{', '.join(allowed)}; or None for single rows."
    )


def _refit_rows(
    design: Design, kept: Indices, method: Literal["REML", "ML"]
) -> tuple[Fit, NDArray[np.bool_]]:
    """Fit to some of the rows; also the columns of X that these determine."""
    X = design.X[kept]
    columns = np.asarray(independent_columns(X), dtype=bool) if design.p else np.zeros(0, bool)
    factors = []
    for factor in design.random:
        present, codes = np.unique(factor.codes[kept], return_inverse=True)
        levels = factor.levels[present]
        factors.append(replace(factor, codes=codes, Z=factor.Z[kept], levels=levels))
    part = replace(
        design,
        y=design.y[kept],
        offset=design.offset[kept],
        weights=None if design.weights is None else design.weights[kept],
        X=np.ascontiguousarray(X[:, columns]),
        random=tuple(factors),
    )
    return fit_likelihood(marginal_system(part), method), columns


def _all_parameters(design: Design, fit: Fit, columns: NDArray[np.bool_] | None = None) -> Array:
    """Parameters (m,) in the order of tables; NaN for coefficients that were not fitted."""
    beta = np.full(design.p, np.nan)
    beta[slice(None) if columns is None else columns] = fit.beta
    moments = [sds_and_correlation(t) for t in fit.factors]
    values = []
    for row in covariance_parameters(design)[:-1]:
        sds, corr = moments[row.factor]
        values.append(fit.sigma * sds[row.index[0]] if row.kind == "sd" else corr[row.index])
    return np.concatenate([beta, values, [fit.sigma]])


def _group_result(
    design: Design,
    by: str,
    levels: pd.Index,
    whole: Array,
    estimates: Array,
    dfbetas: Array,
    records: Sequence[Mapping[str, object]],
) -> GroupInfluence:
    rows = parameters(design)
    labels = [row.label for row in rows]
    spread = [i for i, row in enumerate(rows) if row.kind in ("sd", "sigma")]
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = estimates[:, spread] / whole[spread] - 1.0
    table = pd.DataFrame(records, index=levels)
    table.insert(3, "max_dfbetas", _largest(dfbetas))
    table.insert(4, "max_sd_change", _largest(np.where(np.isfinite(relative), relative, np.nan)))
    return GroupInfluence(
        table=table,
        dfbetas=pd.DataFrame(dfbetas, index=levels, columns=list(design.coefs)),
        estimates=pd.DataFrame(estimates, index=levels, columns=labels),
        change=pd.DataFrame(estimates - whole, index=levels, columns=labels),
        relative_change=pd.DataFrame(relative, index=levels, columns=[labels[i] for i in spread]),
        by=by,
    )


def _largest(values: Array) -> Array:
    """Largest absolute entry of each row; NaN where there is none."""
    known = np.where(np.isnan(values), -np.inf, np.abs(values))
    largest = np.max(known, axis=1, initial=-np.inf)
    return np.where(np.isfinite(largest), largest, np.nan)


# --- words -----------------------------------------------------------------------------


def _row_messages(table: pd.DataFrame) -> list[str]:
    n = len(table)
    messages = []
    cook = table["cooks_distance"]
    large = cook[cook > LARGE_ROW_COOK].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"{counted(len(large), 'row')} with a Cook's distance above {LARGE_ROW_COOK:g}: "
            f"{listed(large.index, 5)}. Rows of one level act together: look at influence(by=...) "
            "too."
        )
    high = table.index[table["leverage"] > HIGH_LEVERAGE * table["leverage"].mean()]
    if len(high):
        messages.append(
            f"{counted(len(high), 'row')} with a leverage above twice the mean: {listed(high, 5)}. "
            "Their covariates are unusual, whatever their response."
        )
    extreme = table.index[table["standardised"].abs() > 3.0]
    if len(extreme):
        messages.append(
            f"{counted(len(extreme), 'row')} more than three standard deviations from the fitted "
            f"value ({n * 0.0027:.1f} expected): {listed(extreme, 5)}."
        )
    return messages or ["No row stands out."]


def _group_messages(result: GroupInfluence) -> list[str]:
    table, m = result.table, len(result.table)
    messages = []
    cook = table["cooks_distance"]
    large = cook[cook > LARGE_COOK / m].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"Without {listed(large.index, 5)} the fixed effects move most (Cook's distance above "
            f"{LARGE_COOK:g}/{m})."
        )
    limit = LARGE_DFBETAS / np.sqrt(m)
    for coef in result.dfbetas:
        moved = result.dfbetas[coef].abs()
        names = moved[moved > limit].sort_values(ascending=False).index
        if len(names):
            worst = names[0]
            messages.append(
                f"{coef}: absolute dfbetas above {limit:.2f} without {listed(names, 5)}; without "
                f"{worst} the estimate is {result.estimates.loc[worst, f'beta[{coef}]']:.4g}."
            )
    new = table.index[table["singular"].astype(bool)]
    if len(new):
        messages.append(f"The refit without {listed(new, 5)} is singular.")
    lost = table.index[cook.isna()]
    if len(lost):
        messages.append(
            f"Without {listed(lost, 5)} the rest of the data does not determine every fixed effect."
        )
    return messages or ["No level stands out."]
