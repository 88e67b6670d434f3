"""Tables of a point estimate: fixed effects, covariance parameters, random effects, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.summaries.parameters import (
    Kind,
    Parameter,
    covariance_parameters,
    fixed_parameters,
    parameters,
    probability,
)
from bayeslmm.summaries.variance import variance_frame

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Wald:
    """An estimate, its standard error and a Wald interval.

    Attributes
    ----------
    estimate, std_error, lower, upper : float
        On the scale that tables show. The interval is symmetric on the log scale for standard
        deviations and on the inverse hyperbolic tangent scale for correlations.
    """

    estimate: float
    std_error: float
    lower: float
    upper: float


def covariances(fit: Fit) -> list[Array]:
    """Covariance matrices (k, k) of the random effects per grouping factor, response scale."""
    return [fit.sigma**2 * t @ t.T for t in fit.factors]


def satterthwaite(fit: Fit, contrast: Array) -> float:
    """Satterthwaite's denominator degrees of freedom of a linear combination of beta.

    Infinite for "MAP", whose covariance matrix is a posterior one.

    Parameters
    ----------
    fit : Fit
        A REML or ML fit.
    contrast : ndarray (p,)
        Weights of the coefficients.

    References
    ----------
    Kuznetsova, Brockhoff, Christensen (2017), doi:10.18637/jss.v082.i13.
    """
    if fit.method == "MAP":
        return float("inf")
    variance = contrast @ fit.vcov @ contrast
    slopes = np.einsum("i,mij,j->m", contrast, fit.vcov_gradient, contrast)
    relative = slopes / variance  # variances may be too small or large to be squared
    return float(2.0 / (relative @ fit.internal_cov @ relative))


def fixed_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """Fixed effects with standard errors, Satterthwaite t tests and intervals, by coefficient."""
    level = probability(level, "level")
    errors = np.sqrt(np.diag(fit.vcov))
    df = np.array([satterthwaite(fit, row) for row in np.eye(len(fit.beta))])
    statistic = fit.beta / errors
    margin = stdtrit(df, 0.5 + level / 2.0) * errors
    return pd.DataFrame(
        {
            "estimate": fit.beta,
            "std_error": errors,
            "df": df,
            "statistic": statistic,
            "p_value": 2.0 * stdtr(df, -np.abs(statistic)),
            "conf_low": fit.beta - margin,
            "conf_high": fit.beta + margin,
        },
        index=pd.Index(design.coefs, name="term"),
    )


def covariance_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """Standard deviations, correlations and sigma with standard errors and Wald intervals."""
    rows = [
        {
            "kind": parameter.kind,
            "group": parameter.group,
            "terms": parameter.terms,
            "estimate": wald.estimate,
            "std_error": wald.std_error,
            "conf_low": wald.lower,
            "conf_high": wald.upper,
        }
        for parameter, wald in _covariance_walds(fit, design, level)
    ]
    labels = [parameter.label for parameter in covariance_parameters(design)]
    return pd.DataFrame(rows, index=pd.Index(labels, name="parameter"))


def variance_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """Variances, covariances, sds and correlations, with intervals of the latter."""
    frame = variance_frame(design, covariances(fit), fit.sigma)
    table = covariance_table(fit, design, level)
    numbers = table[["std_error", "conf_low", "conf_high"]].reset_index(drop=True)
    return pd.concat([frame, numbers], axis=1)


def summary_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """All parameters by label: estimate, standard error, interval, and t tests where they apply."""
    fixed = fixed_table(fit, design, level)
    fixed.index = pd.Index([p.label for p in fixed_parameters(design)], name="parameter")
    random = covariance_table(fit, design, level).drop(columns=["kind", "group", "terms"])
    columns = ["estimate", "std_error", "conf_low", "conf_high", "df", "statistic", "p_value"]
    return pd.concat([fixed, random]).reindex(columns=columns)


def profile_table(fit: Fit, design: Design, level: float, kinds: Sequence[Kind]) -> pd.DataFrame:
    """Profile likelihood intervals, covariance parameters first."""
    from bayeslmm.estimation.profile import profile_intervals

    intervals = profile_intervals(fit, level=level, kinds=kinds)
    chosen = [p for p in parameters(design) if p.kind in kinds]
    labels = [p.label for p in chosen if p.kind != "beta"]
    labels += [p.label for p in chosen if p.kind == "beta"]
    return pd.DataFrame(
        {
            "conf_low": [i.lower for i in intervals],
            "conf_high": [i.upper for i in intervals],
            "lower_at_bound": [i.lower_at_bound for i in intervals],
            "upper_at_bound": [i.upper_at_bound for i in intervals],
            "criterion": [i.criterion for i in intervals],
        },
        index=pd.Index(labels, name="parameter"),
    )


def percentile_table(replicates: pd.DataFrame, level: float) -> pd.DataFrame:
    """Percentile intervals of bootstrap replicates, one per column."""
    tail = (1.0 - probability(level, "level")) / 2.0
    bounds = np.nanquantile(replicates.to_numpy(), [tail, 1.0 - tail], axis=0)
    return pd.DataFrame(
        {"conf_low": bounds[0], "conf_high": bounds[1]},
        index=pd.Index(replicates.columns, name="parameter"),
    )


def mode_arrays(fit: Fit) -> list[Array]:
    """Conditional modes of the random effects (J, k) per grouping factor, response scale."""
    beta = _given_beta(fit)
    modes, _ = conditional_modes(fit.factorisation, beta)
    basis = fit.plan.products.basis.random
    return [mode @ a.T for mode, a in zip(modes, basis, strict=True)]


def mode_sds(fit: Fit, *, given_beta: bool = False) -> list[Array]:
    """Conditional standard deviations (J, k) of the random effects per grouping factor.

    Parameters
    ----------
    fit : Fit
        The fit.
    given_beta : bool
        Take beta as known, as lme4's ``ranef(condVar = TRUE)`` does. By default its uncertainty
        counts: the standard error of prediction.
    """
    given_beta = given_beta or fit.given_beta
    blocks = conditional_covariances(fit.factorisation, given_beta=given_beta)
    basis = fit.plan.products.basis.random
    return [
        fit.sigma * np.sqrt(np.einsum("ki,jil,kl->jk", a, block, a))
        for block, a in zip(blocks, basis, strict=True)
    ]


def information_criteria(fit: Fit) -> tuple[int, float, float]:
    """Number of parameters, AIC and BIC as lme4 counts them (BIC with log n); NaN for "MAP"."""
    products = fit.plan.products
    count = products.n_fixed + sum(s.n_theta for s in products.structures) + 1
    deviance = -2.0 * fit.log_likelihood
    return count, deviance + 2.0 * count, deviance + float(np.log(products.n_obs)) * count


def sds_table(fit: Fit, design: Design) -> dict[str, pd.Series]:
    """Standard deviations of the random effects per grouping factor."""
    return {
        factor.name: pd.Series(
            fit.sigma * sds_and_correlation(t)[0], index=list(factor.coefs), name="sd"
        )
        for factor, t in zip(design.random, fit.factors, strict=True)
    }


def correlation_table(fit: Fit, design: Design) -> dict[str, pd.DataFrame]:
    """Correlation matrices of the random effects per grouping factor."""
    return {
        factor.name: pd.DataFrame(
            sds_and_correlation(t)[1], index=list(factor.coefs), columns=list(factor.coefs)
        )
        for factor, t in zip(design.random, fit.factors, strict=True)
    }


def _given_beta(fit: Fit) -> Array | None:
    if not fit.given_beta:
        return None
    basis = fit.plan.products.basis
    return np.linalg.solve(basis.fixed, fit.beta - basis.shift)


def _covariance_walds(fit: Fit, design: Design, level: float) -> list[tuple[Parameter, Wald]]:
    z = ndtri(0.5 + probability(level, "level") / 2.0)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.diag(fit.parameter_cov))
    return [
        (parameter, _back_transformed(parameter.kind, value, error, z))
        for parameter, value, error in zip(
            covariance_parameters(design), fit.parameters, errors, strict=True
        )
    ]


def _back_transformed(kind: str, value: float, error: float, z: float) -> Wald:
    """From the unconstrained scale; no standard error or interval at a boundary."""
    transform = np.tanh if kind == "cor" else np.exp
    estimate = float(transform(value))
    slope = 1.0 - estimate**2 if kind == "cor" else estimate
    if not np.isfinite(value) or slope <= BOUNDARY_SLOPE * max(1.0, abs(estimate)):
        return Wald(estimate=estimate, std_error=np.nan, lower=np.nan, upper=np.nan)
    with np.errstate(over="ignore"):  # an upper limit may be infinite
        lower, upper = transform(value - z * error), transform(value + z * error)
    return Wald(estimate=estimate, std_error=slope * error, lower=float(lower), upper=float(upper))


BOUNDARY_SLOPE = 1e-12
"""A correlation this close to one is at its boundary."""
