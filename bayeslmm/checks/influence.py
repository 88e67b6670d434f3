"""Influence of rows and of levels on estimates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.integrated import affordable, case_groups, leave_out, packed_cases
from bayeslmm.checks.residuals import row_residuals
from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.design import Design, FactorSpec
from bayeslmm.data.packed import Packed
from bayeslmm.data.row_tables import streams
from bayeslmm.data.second_pass import SOME_GROUPS
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.executor import Executor, Tasks, results
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.progress import tracked
from bayeslmm.estimation.residuals import require_normal_residuals
from bayeslmm.exceptions import DataError
from bayeslmm.formula.rank import independent_columns
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.sampling.diagnostics import MAX_PARETO_K
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.sampling.pareto import smooth_weights
from bayeslmm.summaries.parameters import (
    joint_parameter,
    known_labels,
    natural,
    parameters,
    random_parameters,
)
from bayeslmm.summaries.text import Report, counted, listed

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
    design: Design,
    fit: Fit,
    by: str,
    *,
    pack: Packed | None = None,
    executor: Executor | None = None,
    progressbar: bool = False,
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
    pack : Packed, optional
        What the rows stand for, where they are packed.
    executor : Executor, optional
        Where the refits run.
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
    groups = case_groups(design, by)
    codes, levels = groups.codes, groups.values.rename(by)
    if len(levels) < 2:
        raise DataError(f"by={by!r} has one level; without it no row is left to refit.")
    method: Literal["REML", "ML"] = "REML" if fit.method == "REML" else "ML"
    labels = [row.label for row in parameters(design)]
    whole = _all_parameters(design, fit)
    estimates = np.full((len(levels), len(labels)), np.nan)
    dfbetas = np.full((len(levels), design.p), np.nan)
    records = []
    stands_for = None if pack is None else (pack.counts, pack.log_weights)
    sizes = np.bincount(codes, None if pack is None else pack.counts)
    tasks = Tasks(
        make=_refitter_without,
        parts=(design.without_data(), codes, method, stands_for),
        items=range(len(levels)),
        size=len(levels),
        title=f"Refits without each {by}",
        label=lambda g: f"Refit without {levels[g]}",
    )
    with results(tasks, executor, progressbar) as refits:
        for g, (refit, columns) in enumerate(refits):
            estimates[g] = _all_parameters(design, refit, columns)
            gap = estimates[g, : design.p] - whole[: design.p]
            dfbetas[g, columns] = gap[columns] / np.sqrt(np.diag(refit.vcov))
            cook, ratio = _on_fixed_effects(fit, refit, gap)
            records.append(
                {
                    "rows": int(sizes[g]),
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


def _refitter_without(
    design: Design,
    codes: Indices,
    method: Literal["REML", "ML"],
    stands_for: tuple[Array, Array] | None,
) -> Callable[[int], tuple[Fit, NDArray[np.bool_]]]:
    """Work of the influence of levels: a refit to the rows that do not have one."""
    return lambda g: _refit_rows(design, np.flatnonzero(codes != g), method, stands_for)


def _refit_rows(
    design: Design,
    kept: Indices,
    method: Literal["REML", "ML"],
    stands_for: tuple[Array, Array] | None = None,
) -> tuple[Fit, NDArray[np.bool_]]:
    """Fit to some of the rows; also the columns of X that these determine.

    `stands_for` are numbers of rows, and sums of log weights, that packed rows stand for.
    """
    require_normal_residuals(design, "A refit without some rows")
    part = design.take(kept)
    _check_scales(part)
    X = part.X
    columns = np.asarray(independent_columns(X), dtype=bool) if design.p else np.zeros(0, bool)
    factors = []
    for factor in part.random:
        present = np.flatnonzero(factor.counts())
        levels = factor.levels[present]
        if len(levels) < 2:
            raise DataError(
                f"A refit would have one level of {factor.name} left, {levels[0]!r}; a variance "
                "between levels needs at least two. post.check.influence() needs no refits."
            )
        if factor.relationship is None:  # else its levels stay, with rows or without
            factor = factor.with_levels(present)
            _check_strata(factor.spec)
        factors.append(factor)
    part = replace(part, X=np.ascontiguousarray(X[:, columns]), random=tuple(factors))
    plan = marginal_system(part)
    if stands_for is not None:
        counts, logs = (float(values[kept].sum()) for values in stands_for)
        products = replace(plan.products, n_obs=int(counts), log_weights=logs)
        plan = replace(plan, products=products)
    return fit_likelihood(plan, method), columns


def _check_scales(part: Design) -> None:
    """Refuse rows among which a residual standard deviation has none."""
    if part.residual_rows is None:
        return
    spec, law = part.spec.residual, part.spec.residual_structure
    present = part.residual_rows.log_sd.any(axis=0)
    absent = [name for name, there in zip(law.sd_names, present, strict=False) if not there]
    if spec is not None and spec.occasions is not None and law.n_cors > len(law.arms):
        places = np.arange(len(spec.occasions.levels))
        lost = spec.occasions.levels[~np.isin(places, np.asarray(part.residual_rows.place))]
        absent += [f"the correlations of {level}" for level in lost]
    if absent:
        raise DataError(
            f"A refit would have no row that tells {listed(absent, 5)}: leave out something else. "
            "post.check.influence() needs no refits."
        )


def _check_strata(spec: FactorSpec) -> None:
    """Refuse strata with one level or none left."""
    for strata in spec.strata:
        counts = () if strata is None else np.bincount(strata.of_level, minlength=len(strata.names))
        for name, count in zip(() if strata is None else strata.names, counts, strict=True):
            if count < 2:
                raise DataError(
                    f"A refit would have {count} levels of {spec.name} left in {name}; a variance "
                    "between levels needs at least two. post.check.influence() needs no refits."
                )


def _all_parameters(design: Design, fit: Fit, columns: NDArray[np.bool_] | None = None) -> Array:
    """Parameters (m,) in the order of tables; NaN for coefficients that were not fitted."""
    beta = np.full(design.p, np.nan)
    beta[slice(None) if columns is None else columns] = fit.beta
    moments = [sds_and_correlation(t) for t in fit.factors]
    values: list[float] = []
    rows = parameters(design)
    for row in random_parameters(design):
        sds, corr = moments[row.factor]
        values.append(fit.sigma * sds[row.index[0]] if row.kind == "sd" else corr[row.index])
    law = fit.plan.residual
    size = 1 + law.n_shape
    last = zip(rows[-size:], fit.parameters[-size:], strict=True)
    return np.concatenate([beta, values, [natural(row.kind, value) for row, value in last]])


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


# --- what the influence of rows and levels on an estimate is, in words ---


FAR = 3.0
"""Size from which on standardised residuals are counted."""

CHANCE_OF_FAR = float(2.0 * stats.norm.sf(FAR))

SUSPECT = 0.05
"""Share of right models of which a row is named for its residual."""

LARGE_ROW_COOK = 1.0
"""Cook's distance of a row above which it is named."""

LARGE_COOK = 4.0
"""Cook's distances above this over the number of cases deserve a look (as in influence.ME)."""

LARGE_DFBETAS = 2.0
"""The same for absolute dfbetas, over the root of the number of cases."""

HIGH_LEVERAGE = 2.0
"""Leverages above this times their mean are called high."""

LARGE_COVRATIO = 3.0
"""Distance of covratio from one, over the number of fixed effects per case, from which a change of
precision is named (Belsley, Kuh, Welsch 1980)."""

LARGE_SD_CHANGE = 0.1
"""Relative change of a standard deviation that is named."""

FEW_LEVELS_SD_CHANGE = float(np.sqrt(2.0))
"""The same over the number of levels, where these are few: two over the root of the number of
levels, as for dfbetas, times the relative standard error of their standard deviation, about one
over the root of twice their number."""

NO_SD = 1e-3
"""Standard deviation over sigma that counts as zero."""

NO_FIXED = (
    "The model has no fixed effects, so that Cook's distances and what else is about them are not "
    "defined."
)


def row_messages(table: pd.DataFrame) -> tuple[str, ...]:
    """Findings in a table of :class:`~bayeslmm.checks.influence.RowInfluence`."""
    n = len(table)
    messages = []
    cook = table["cooks_distance"]
    if cook.isna().all():
        messages.append(NO_FIXED)
    large = cook[cook > LARGE_ROW_COOK].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"{counted(len(large), 'row')} with a Cook's distance above {LARGE_ROW_COOK:g}: "
            f"{listed(large.index, 5)}. Rows of one level act together: look at "
            "check.influence(by=...) too."
        )
    high = table.index[table["leverage"] > HIGH_LEVERAGE * table["leverage"].mean()]
    if len(high):
        messages.append(
            f"{counted(len(high), 'row')} with a leverage above twice the mean: {listed(high, 5)}. "
            "Their covariates are unusual, whatever their response."
        )
    size = table["standardised"].abs()
    extreme = size[size > FAR].sort_values(ascending=False)
    if len(extreme) and more_than_chance(len(extreme), float(extreme.iloc[0]), n):
        messages.append(
            f"{counted(len(extreme), 'row')} more than three standard deviations from the fitted "
            f"value ({n * CHANCE_OF_FAR:.1f} expected): {listed(extreme.index, 5)}."
        )
    found = [message for message in messages if message != NO_FIXED]
    return tuple(messages) if found else (*messages, "No row stands out.")


def more_than_chance(count: int, largest: float, n: int) -> bool:
    """Whether residuals beyond three are more, or larger, than those of a right model mostly are.

    Each of the two happens to one right model in forty at most.
    """
    larger = float(stats.norm.sf(largest)) < 0.25 * SUSPECT / n
    return larger or bool(stats.binom.sf(count - 1, n, CHANCE_OF_FAR) < 0.5 * SUSPECT)


def group_messages(
    table: pd.DataFrame,
    dfbetas: pd.DataFrame,
    estimates: pd.DataFrame,
    change: pd.DataFrame,
    relative_change: pd.DataFrame,
) -> tuple[str, ...]:
    """Findings in the tables of a :class:`~bayeslmm.checks.influence.GroupInfluence`."""
    messages = [
        *_fixed_messages(table, dfbetas, estimates),
        *_precision_messages(table["covratio"], dfbetas.shape[1]),
        *_spread_messages(estimates, change, relative_change),
    ]
    new = table.index[table["singular"].astype(bool)]
    if len(new):
        messages.append(f"The refit without {listed(new, 5)} is singular.")
    messages = messages or ["No level stands out."]
    return (*messages, NO_FIXED) if not dfbetas.shape[1] else tuple(messages)


def _fixed_messages(
    table: pd.DataFrame, dfbetas: pd.DataFrame, estimates: pd.DataFrame
) -> list[str]:
    """How levels move the fixed effects."""
    messages, m = [], len(table)
    cook = table["cooks_distance"]
    large = cook[cook > LARGE_COOK / m].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"Without {listed(large.index, 5)} the fixed effects move most (Cook's distance above "
            f"{LARGE_COOK:g}/{m})."
        )
    limit = LARGE_DFBETAS / np.sqrt(m)
    for coef in dfbetas:
        moved = dfbetas[coef].abs()
        names = moved[moved > limit].sort_values(ascending=False).index
        if len(names):
            worst = names[0]
            messages.append(
                f"{coef}: absolute dfbetas above {limit:.2f} without {listed(names, 5)}; without "
                f"{worst} the estimate is {estimates.loc[worst, f'beta[{coef}]']:.4g}."
            )
    lost = table.index[dfbetas.isna().any(axis=1)]
    if len(lost):
        messages.append(
            f"Without {listed(lost, 5)} the rest of the data does not determine every fixed effect."
        )
    return messages


def _precision_messages(covratio: pd.Series, p: int) -> list[str]:
    """How levels change the covariance matrix of the fixed effects."""
    limit = LARGE_COVRATIO * p / len(covratio)
    messages = []
    for found, word in (
        (covratio[covratio > 1.0 + limit].sort_values(ascending=False), "less"),
        (covratio[covratio < 1.0 - limit].sort_values(), "more"),
    ):
        if len(found):
            messages.append(
                f"Without {listed(found.index, 5)} the fixed effects are estimated {word} "
                f"precisely (covratio more than {limit:.2g} from one; it is {found.iloc[0]:.3g} "
                f"without {found.index[0]})."
            )
    return messages


def _spread_messages(
    estimates: pd.DataFrame, change: pd.DataFrame, relative_change: pd.DataFrame
) -> list[str]:
    """How levels change the standard deviations."""
    limit = max(LARGE_SD_CHANGE, FEW_LEVELS_SD_CHANGE / len(estimates))
    messages = []
    for label in relative_change:
        whole = (estimates[label] - change[label]).max()
        sigma = (estimates - change).filter(regex=r"^sigma").max(axis=None)
        without = estimates[label]
        if whole > NO_SD * sigma:
            moved = relative_change[label].abs()
            found = moved[moved > limit].sort_values(ascending=False).index
            what = f"changes by more than {100.0 * limit:.0f} %"
        else:
            found = without[without > NO_SD * sigma].sort_values(ascending=False).index
            what = "is no longer zero"
        if len(found):
            messages.append(
                f"{label} {what} without {listed(found, 5)}; without {found[0]} the estimate is "
                f"{without[found[0]]:.4g}, and {whole:.4g} with all levels."
            )
    return messages


# --- influence of rows and of levels on a posterior, by importance sampling ---


LARGE_SHIFT = 0.5
"""Shift of a posterior mean, in posterior standard deviations, that deserves a look."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PosteriorInfluence(Report):
    """What leaving out each row or level would do to a posterior, by importance weights.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per case: `rows` it has, `max_shift` (largest absolute shift of a posterior mean, in
        posterior standard deviations), `parameter` that shifts most, `kl` (Kullback-Leibler
        divergence of the posterior without the case from that with it, in nats), `ess` (effective
        number of draws under the weights) and `pareto_k`.
    shift : pandas.DataFrame
        Cases by parameters: posterior mean without the case less that with it, over the posterior
        standard deviation with it.
    by : str or None
        Grouping variable; None for rows.
    """

    table: pd.DataFrame
    shift: pd.DataFrame
    by: str | None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        what = "rows" if self.by is None else f"levels of {self.by}"
        return f"Influence of the {len(self.table)} {what} on the posterior"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_posterior_messages(self))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        top = self.table.sort_values("kl", ascending=False).head(5)
        return {
            "The five largest divergences": top,
            "Shifts of posterior means, in sds": self.shift.loc[top.index],
        }


def posterior_influence(
    model: Model,
    joint: JointDraws,
    by: str | None,
    *,
    progressbar: bool = False,
) -> PosteriorInfluence:
    """Shift of a posterior where a row or a level is left out, by importance sampling.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Posterior draws; fewer are used where memory or time demand it.
    by : str or None
        A grouping factor of the model or a variable of its formula; None for single rows.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    PosteriorInfluence

    Raises
    ------
    DataError
        If there is no such variable.

    Notes
    -----
    The draws of beta and the covariance parameters are weighted by one over
    ``p(y_g | y without g, beta, covariance parameters)``, random effects integrated out, smoothed
    by Pareto smoothing. So a whole level can be left out, its random effects with it.

    References
    ----------
    Bradlow, Zaslavsky (1997), doi:10.1080/10618600.1997.10474746, for case influence by
    importance sampling. Vehtari, Simpson, Gelman, Yao, Gabry (2024), arXiv:1507.02646.
    """
    pack = None
    if by is not None and streams(model.design):
        pack = packed_cases(model.design, by)
        model = model.with_rows(pack.design)
    model = model.gathered("Influence on a posterior", SOME_GROUPS)
    design = model.design
    groups, labels = None, design.index
    if by is not None:
        cases = case_groups(design, by)
        groups, labels = cases.codes, cases.values.rename(by)
    joint = joint.thin(affordable(design, model.system, joint.size, len(labels)))
    points = replace(joint.points, beta=joint.beta)
    given = model.with_priors(replace(model.priors, beta_sampled=True))
    joint = replace(joint, points=points)
    scores = leave_out(given, joint, groups, pack=pack, progressbar=progressbar)
    rows = parameters(design)
    draws = np.column_stack([joint_parameter(joint, row) for row in rows])
    spread = draws.std(axis=0, ddof=1)
    held = known_labels(design)
    known = np.array([row.label in held for row in rows], dtype=bool)
    centred = (draws - draws.mean(axis=0)) / np.where(known, 1.0, spread)
    centred[:, known] = 0.0
    shifts = np.empty((len(labels), len(rows)))
    records = []
    for g in tracked(range(len(labels)), "Weights", progressbar):
        log_weights, k = smooth_weights(-scores.log_density[:, g])
        shifts[g] = np.exp(log_weights) @ centred
        records.append(
            {
                "kl": max(0.0, -float(np.mean(log_weights)) - np.log(joint.size)),
                "ess": float(1.0 / np.sum(np.exp(2.0 * log_weights))),
                "pareto_k": k,
            }
        )
    names = [row.label for row in rows]
    table = pd.DataFrame(records, index=labels)
    sizes = np.ones(design.n, int)
    if groups is not None:
        sizes = np.bincount(groups, None if pack is None else pack.counts).astype(int)
    table.insert(0, "rows", sizes)
    table.insert(1, "max_shift", np.max(np.abs(shifts), axis=1))
    table.insert(2, "parameter", [names[i] for i in np.argmax(np.abs(shifts), axis=1)])
    return PosteriorInfluence(
        table=table, shift=pd.DataFrame(shifts, index=labels, columns=names), by=by
    )


def _posterior_messages(result: PosteriorInfluence) -> list[str]:
    table, unit = result.table, result.by or "row"
    messages = []
    poor = table["pareto_k"] > MAX_PARETO_K
    large = table[(table["max_shift"] > LARGE_SHIFT) & ~poor]
    for case, row in large.sort_values("max_shift", ascending=False).head(5).iterrows():
        label = row["parameter"]
        size = float(result.shift.loc[case, label])
        messages.append(
            f"Without {unit} {case} the posterior mean of {label} would be {abs(size):.2f} "
            f"posterior standard deviations {'higher' if size > 0 else 'lower'}."
        )
    if len(large) > 5:
        more = len(large) - 5
        words = "rows" if result.by is None else f"levels of {result.by}"
        messages.append(f"{more} more {words} shift a mean by over {LARGE_SHIFT:g}.")
    if poor.any():
        messages.append(
            f"Without {unit} {listed(table.index[poor], 5)} the posterior would be so different "
            f"that importance weights do not reach it (Pareto k above {MAX_PARETO_K:g}): the "
            "influence is large, and the figures for them are not reliable. Refit without them."
        )
    return messages or [
        f"None of them, left out, would shift a posterior mean by more than {LARGE_SHIFT:g} "
        "posterior standard deviations."
    ]
