"""Influence of rows and of levels on estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks.influence_words import group_messages, row_messages
from bayeslmm.checks.report import Report
from bayeslmm.checks.whitening import row_residuals
from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.design import Design
from bayeslmm.data.row_groups import group_names, row_groups
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.progress import tracked
from bayeslmm.exceptions import DataError
from bayeslmm.formula.matrices import independent_columns
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.sampling.joint_draws import point_draws
from bayeslmm.summaries.parameters import covariance_parameters, parameters

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class RowInfluence(Report):
    """Influence of single rows on an estimate, at its covariance parameters.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per row of the data: `leverage` (lme4's ``hatvalues``), `residual` (over its standard
        deviation; lme4's scaled Pearson residual), `standardised` (that over the root of one less
        the leverage; lme4's ``rstudent``) and `cooks_distance` (lme4's ``cooks.distance``; NaN
        without fixed effects, which it is about).
    """

    table: pd.DataFrame

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Influence of {len(self.table)} rows on the fitted values"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return row_messages(self.table)

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        if self.table["cooks_distance"].isna().all():
            order = self.table["standardised"].abs().sort_values(ascending=False).index[:5]
            return {"The five largest standardised residuals": self.table.loc[order]}
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
        sigma included) and `singular`, whether the refit is. The first three but `rows` are NaN
        without fixed effects.
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
        return group_messages(
            self.table, self.dfbetas, self.estimates, self.change, self.relative_change
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        if not self.dfbetas.shape[1]:
            top = self.table.sort_values("max_sd_change", ascending=False).head(5)
            return {"The five largest changes of a standard deviation": top}
        top = self.table.sort_values("cooks_distance", ascending=False).head(5)
        return {
            "The five largest Cook's distances": top,
            "Their dfbetas": self.dfbetas.loc[top.index],
        }


# --- estimates -------------------------------------------------------------------------


def influence(
    design: Design, fit: Fit, by: str | None = None, *, progressbar: bool = True
) -> RowInfluence | GroupInfluence:
    """Influence of single rows, or of the levels of `by`, on an estimate."""
    if by is None:
        return row_influence(design, fit)
    return group_influence(design, fit, by, progressbar=progressbar)


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
        cook = standardised**2 * h / ((1.0 - h) * (design.p or np.nan))
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
    DataError
        If there is no such variable, it has one level, or a refit would have one level of a
        grouping factor left.
    ValueError
        If the estimate is a "MAP" one.

    References
    ----------
    Nieuwenhuis, te Grotenhuis, Pelzer (2012), influence.ME, doi:10.32614/RJ-2012-011.
    Belsley, Kuh, Welsch (1980), Regression diagnostics, doi:10.1002/0471725153.
    """
    if fit.method == "MAP":
        raise ValueError(
            'Influence by refits is for REML and ML; for "MAP", use post.check.influence().'
        )
    codes, levels = case_groups(design, by)
    if len(levels) < 2:
        raise DataError(f"by={by!r} has one level; without it no row is left to refit.")
    method: Literal["REML", "ML"] = "REML" if fit.method == "REML" else "ML"
    labels = [row.label for row in parameters(design)]
    whole = _all_parameters(design, fit)
    estimates = np.full((len(levels), len(labels)), np.nan)
    dfbetas = np.full((len(levels), design.p), np.nan)
    records = []
    for g in tracked(range(len(levels)), f"Refits without each {by}", progressbar):
        kept = np.flatnonzero(codes != g)
        refit, columns = _refit_rows(design, kept, method)
        estimates[g] = _all_parameters(design, refit, columns)
        gap = estimates[g, : design.p] - whole[: design.p]
        dfbetas[g, columns] = gap[columns] / np.sqrt(np.diag(refit.vcov))
        cook, ratio = _on_fixed_effects(fit, refit, gap)
        records.append(
            {
                "rows": design.n - len(kept),
                "cooks_distance": cook,
                "covratio": ratio,
                "singular": refit.singular,
            }
        )
    return _group_result(design, by, levels, whole, estimates, dfbetas, records)


def _on_fixed_effects(fit: Fit, refit: Fit, gap: Array) -> tuple[float, float]:
    """Cook's distance and covratio; NaN unless both fits have the same fixed effects, and some."""
    if not len(gap) or len(refit.beta) < len(gap):
        return np.nan, np.nan
    cook = float(gap @ np.linalg.solve(fit.vcov, gap)) / len(gap)
    ratio = np.linalg.slogdet(refit.vcov)[1] - np.linalg.slogdet(fit.vcov)[1]
    return cook, float(np.exp(ratio))


def case_groups(design: Design, by: str) -> tuple[Indices, pd.Index]:
    """Codes (n,) from 0 without gaps, and labels, of the levels that rows are grouped by.

    Raises
    ------
    DataError
        If `by` names no grouping factor and no variable of the formula.
    """
    allowed = f"one of {', '.join(group_names(design))}, or None for single rows"
    if not isinstance(by, str):
        raise DataError(
            f"by= takes the name of a grouping factor or of a variable of the formula, got "
            f"{type(by).__name__}: {allowed}."
        )
    groups = row_groups(design, by)
    if groups is None:
        raise DataError(
            f"by={by!r} is neither a grouping factor nor a variable of the formula: {allowed}."
        )
    return groups.codes, groups.values.rename(by)


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
        if len(levels) < 2:
            raise DataError(
                f"A refit would have one level of {factor.name} left, {levels[0]!r}; a variance "
                "between levels needs at least two. post.check.influence() needs no refits."
            )
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
