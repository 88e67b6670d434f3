"""Whether random effects are negligible, dependent or at a boundary: tables and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.checks.boundary import BoundarySupport, boundary_support
from bayeslmm.checks.joint_parameters import joint_parameter
from bayeslmm.checks.report import Report
from bayeslmm.checks.singularity_words import SMALL_SHARE, posterior_messages
from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import SINGULAR, Fit
from bayeslmm.estimation.model import Model
from bayeslmm.priors.working import column_scales
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import Parameter, covariance_parameters, probability
from bayeslmm.summaries.posterior_tables import summarise
from bayeslmm.summaries.text import singular_notes

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class PosteriorSingularity(Report):
    """How near the covariance matrices of the random effects are to losing rank.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per standard deviation and correlation: `median` (posterior), `relative` (median of
        the standard deviation per unit of spread of its covariate over the residual one: free of
        units; NaN for correlations), `probability` (posterior probability that the sd is
        negligible, or the correlation beyond `rho`), `support` (integrated likelihood at the
        boundary over its maximum), `bayes_factor` (of the boundary against the model; NaN where the
        prior is improper) and `reml` (the REML estimate).
    pca : pandas.DataFrame
        A row per grouping factor and principal component: summaries of the cumulative share of the
        variance, computed on draws.
    rank : pandas.DataFrame
        A row per grouping factor: number of coefficients, summaries of the effective rank,
        `p_deficient`, the posterior probability that the smallest component has less than 1 % of
        the variance, and `p_negligible`, that its standard deviation (of coefficients per spread
        of their covariate) is below `eps` residual standard deviations. The first compares
        components with each other: a small share of a large variance may be far from negligible.
    eps, rho : float
        The limits asked for.
    reml_singular : bool or None
        Whether the REML fit is singular; None where there is none.
    """

    table: pd.DataFrame
    pca: pd.DataFrame
    rank: pd.DataFrame
    eps: float
    rho: float
    reml_singular: bool | None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Singularity of the random effects' covariance matrices (posterior)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings in words, one per parameter that calls for it, and on REML."""
        return posterior_messages(
            self.table, self.rank, eps=self.eps, rho=self.rho, reml_singular=self.reml_singular
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        several = self.rank["n_coefs"].max() > 1
        tables = {"Standard deviations and correlations": self.table}
        if several:
            tables["Cumulative share of the principal components"] = self.pca
            tables["Effective rank"] = self.rank
        return tables


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class EstimateSingularity(Report):
    """Which covariance parameters an estimate puts at a boundary.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per standard deviation and correlation: `estimate`, `relative` (free of units, as for
        posteriors), `at_boundary`.
    pca : pandas.DataFrame
        A row per grouping factor and principal component: `sd` (relative to sigma), `proportion`
        and `cumulative` share of the variance.
    singular : bool
        Whether a covariance matrix has lost rank.
    notes : tuple of str
    """

    table: pd.DataFrame
    pca: pd.DataFrame
    singular: bool
    notes: tuple[str, ...]

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return "Singularity of the random effects' covariance matrices (estimate)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Which parameters are at a boundary, and what that means."""
        return self.notes or (
            "The fit is not singular: no standard deviation is estimated at zero and no "
            "covariance matrix has lost rank.",
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {
            "Standard deviations and correlations": self.table,
            "Principal components of the random effects": self.pca,
        }


def posterior_singularity(
    model: Model,
    joint: JointDraws,
    *,
    eps: float = 0.05,
    rho: float = 0.95,
    standardise: bool = True,
    prob: float | None = None,
) -> PosteriorSingularity:
    """Singularity of the covariance matrices of posterior draws.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Its posterior draws.
    eps, rho : float
        Limits below which a relative sd is negligible and beyond which a correlation is extreme.
    standardise : bool
        Whether principal components are of coefficients per spread of their covariate.
    prob : float, optional
        Probability of the intervals.

    Returns
    -------
    PosteriorSingularity
    """
    if isinstance(eps, bool) or not np.isfinite(eps) or eps <= 0:
        raise ValueError(f"eps={eps!r}: a positive number is expected, such as 0.05.")
    rho = probability(rho, "rho")
    design, reml = model.design, model.reml_or_none()
    scales = [column_scales(factor.Z) for factor in design.random]
    residual = joint.sigma * _mean_inverse_weight(design) ** 0.5
    rows = covariance_parameters(design)[:-1]
    estimates = [np.nan] * len(rows) if reml is None else _point_values(design, reml)
    supports = [
        boundary_support(model.system, model.priors, joint, row)
        if _has_boundary(design, row)
        else None
        for row in rows
    ]
    table = pd.DataFrame(
        [
            _row(joint, row, scales, residual, eps, rho, support) | {"reml": estimate}
            for row, support, estimate in zip(rows, supports, estimates, strict=True)
        ],
        index=pd.Index([row.label for row in rows], name="parameter"),
    )
    shares = [
        _component_shares(root, scale if standardise else np.ones_like(scale))
        for root, scale in zip(joint.roots, scales, strict=True)
    ]
    return PosteriorSingularity(
        table=table,
        pca=_pca_table(design, shares, prob),
        rank=_rank_table(design, shares, _smallest_sds(joint, scales, residual), eps, prob),
        eps=float(eps),
        rho=rho,
        reml_singular=None if reml is None else reml.singular,
    )


def estimate_singularity(
    design: Design, fit: Fit, *, standardise: bool = True
) -> EstimateSingularity:
    """Singularity of an estimate: parameters at a boundary and principal components.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate.
    standardise : bool
        Whether principal components are of coefficients per spread of their covariate.

    Returns
    -------
    EstimateSingularity
    """
    rows = covariance_parameters(design)[:-1]
    values = _point_values(design, fit)
    residual = fit.sigma * _mean_inverse_weight(design) ** 0.5
    records = []
    for row, value in zip(rows, values, strict=True):
        scale = column_scales(design.random[row.factor].Z)[row.index[0]]
        relative = value * scale / residual if row.kind == "sd" else np.nan
        boundary = _at_boundary(fit, row, value)
        records.append({"estimate": value, "relative": relative, "at_boundary": boundary})
    index = pd.Index([row.label for row in rows], name="parameter")
    return EstimateSingularity(
        table=pd.DataFrame(records, index=index),
        pca=_point_pca(design, fit, standardise),
        singular=fit.singular,
        notes=tuple(singular_notes(fit, design)),
    )


def effective_rank(shares: Array) -> Array:
    """Effective rank (...,) of shares of variance (..., k): exp of their entropy.

    References
    ----------
    Roy, Vetterli (2007), The effective rank: a measure of effective dimensionality, EUSIPCO,
    606-610.
    """
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.asarray(np.exp(-np.sum(shares * logs, axis=-1)))


def _mean_inverse_weight(design: Design) -> float:
    return 1.0 if design.weights is None else float(np.mean(1.0 / design.weights))


def _point_values(design: Design, fit: Fit) -> list[float]:
    """Standard deviations and correlations, in the order of the parameters, without sigma."""
    moments = [sds_and_correlation(t) for t in fit.factors]
    return [
        float(fit.sigma * moments[row.factor][0][row.index[0]])
        if row.kind == "sd"
        else float(moments[row.factor][1][row.index])
        for row in covariance_parameters(design)[:-1]
    ]


def _at_boundary(fit: Fit, row: Parameter, value: float) -> bool:
    """Whether an sd is zero or a correlation one, to lme4's tolerance."""
    if row.kind == "cor":
        return bool(1.0 - value**2 < SINGULAR**2)
    basis, factor = fit.plan.products.basis.random[row.factor], fit.factors[row.factor]
    return bool(np.linalg.norm(np.linalg.solve(basis, factor)[row.index[0]]) < SINGULAR)


def _has_boundary(design: Design, row: Parameter) -> bool:
    """Whether the parameter's boundary does not depend on other parameters."""
    blocks = design.random[row.factor].blocks
    return row.kind == "sd" or any(len(b) == 2 and row.index[0] in b for b in blocks)


def _row(
    joint: JointDraws,
    row: Parameter,
    scales: Sequence[Array],
    residual: Array,
    eps: float,
    rho: float,
    support: BoundarySupport | None,
) -> dict[str, float]:
    draws = joint_parameter(joint, row)
    if row.kind == "sd":
        relative = draws * scales[row.factor][row.index[0]] / residual
        middle, probability = float(np.median(relative)), float(np.mean(relative < eps))
    else:
        middle, probability = np.nan, float(np.mean(np.abs(draws) > rho))
    return {
        "median": float(np.median(draws)),
        "relative": middle,
        "probability": probability,
        "support": np.nan if support is None else support.relative,
        "bayes_factor": np.nan if support is None else support.bayes_factor,
    }


def _component_shares(root: Array, scale: Array) -> Array:
    """Shares (S, k) of the principal components in the variance, largest first."""
    squares = np.linalg.svd(root * scale[:, None], compute_uv=False) ** 2
    return squares / np.sum(squares, axis=-1, keepdims=True)


def _pca_table(design: Design, shares: Sequence[Array], prob: float | None) -> pd.DataFrame:
    labels = [
        (factor.name, component + 1)
        for factor in design.random
        for component in range(factor.n_coefs)
    ]
    index = pd.MultiIndex.from_tuples(labels, names=["group", "component"])
    draws = np.concatenate([np.cumsum(share, axis=1) for share in shares], axis=1)
    return summarise(draws, index, prob)


def _smallest_sds(joint: JointDraws, scales: Sequence[Array], residual: Array) -> list[Array]:
    """Standard deviations (S,) of the smallest components, over the residual one."""
    return [
        np.linalg.svd(root * scale[:, None], compute_uv=False)[:, -1] / residual
        for root, scale in zip(joint.roots, scales, strict=True)
    ]


def _rank_table(
    design: Design,
    shares: Sequence[Array],
    smallest: Sequence[Array],
    eps: float,
    prob: float | None,
) -> pd.DataFrame:
    names = pd.Index([factor.name for factor in design.random], name="group")
    ranks = np.column_stack([effective_rank(share) for share in shares])
    table = summarise(ranks, names, prob)
    table.insert(0, "n_coefs", [factor.n_coefs for factor in design.random])
    table["p_deficient"] = [float(np.mean(share[:, -1] < SMALL_SHARE)) for share in shares]
    table["p_negligible"] = [float(np.mean(sd < eps)) for sd in smallest]
    return table


def _point_pca(design: Design, fit: Fit, standardise: bool) -> pd.DataFrame:
    records = []
    for factor, t in zip(design.random, fit.factors, strict=True):
        scale = column_scales(factor.Z) if standardise else np.ones(factor.n_coefs)
        sds = np.linalg.svd(t * scale[:, None], compute_uv=False)
        total = float(np.sum(sds**2))
        shares = sds**2 / total if total > 0 else np.full(len(sds), np.nan)
        for component, (sd, share, sum_) in enumerate(
            zip(sds, shares, np.cumsum(shares), strict=True), start=1
        ):
            records.append((factor.name, component, sd, share, sum_))
    columns = ["group", "component", "sd", "proportion", "cumulative"]
    return pd.DataFrame(records, columns=columns).set_index(["group", "component"])
