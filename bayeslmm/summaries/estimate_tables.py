"""Tables of a point estimate: fixed effects, covariance parameters, random effects, intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

from bayeslmm.covariance.structure import sds_and_correlation
from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import coefficient_frames
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.executor import Executor
from bayeslmm.estimation.inference import Inference
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.summaries.parameters import (
    KINDS,
    TIDY,
    Effects,
    Kind,
    broom,
    check_effects,
    correlations_by_group,
    covariance_parameters,
    kinds_of,
    known_labels,
    label_index,
    labelled,
    level_rows,
    marked,
    natural,
    parameters,
    probability,
    sds_by_group,
    slope,
    variance_frame,
)

Array = NDArray[np.float64]

NUMBERS = ("estimate", "std_error", "df", "statistic", "p_value", "conf_low", "conf_high")

BOUNDARY_SLOPE = 1e-12
"""A correlation this close to one is at its boundary."""


def covariances(fit: Fit) -> list[Array]:
    """Covariance matrices (k, k) of the random effects per grouping factor, response scale."""
    return [fit.sigma**2 * t @ t.T for t in fit.factors]


def parameter_table(
    inference: Inference, design: Design, level: float, kinds: Sequence[Kind] = KINDS
) -> pd.DataFrame:
    """Estimates with standard errors and intervals, and tests of fixed effects.

    Parameters
    ----------
    inference : Inference
        The estimate, and how its fixed effects are judged.
    design : Design
        Its design.
    level : float
        Coverage of the intervals: t intervals of fixed effects, else Wald intervals, symmetric for
        the log of an sd and the inverse hyperbolic tangent of a correlation.
    kinds : sequence of {"beta", "sd", "cor", "sigma"}
        Which parameters.

    Returns
    -------
    pandas.DataFrame
        As :func:`~bayeslmm.summaries.parameters.labelled`, with estimate, std_error, df, statistic,
        p_value, conf_low and conf_high; NaN at a boundary.
    """
    level = probability(level, "level")
    rows = [p for p in parameters(design) if p.kind in kinds]
    parts = [_fixed_numbers(inference, level)] if "beta" in kinds else []
    if set(kinds) != {"beta"}:
        of_fit = [p.kind in kinds for p in covariance_parameters(design)]
        parts.append(_covariance_numbers(inference.fit, design, level)[of_fit])
    return labelled(rows, pd.concat(parts))


def fixed_table(inference: Inference, design: Design, level: float) -> pd.DataFrame:
    """Fixed effects with standard errors, t tests and intervals, by coefficient."""
    table = parameter_table(inference, design, level, ("beta",))
    return table.set_index(pd.Index(design.coefs, name="term"))[list(NUMBERS)]


def covariance_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """Standard deviations, correlations and sigma with standard errors and Wald intervals."""
    numbers = _covariance_numbers(fit, design, level)
    rows = [p for p in parameters(design) if p.kind != "beta"]
    return labelled(rows, numbers)


def variance_table(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    """Variances, covariances, sds and correlations, with intervals of the latter."""
    residuals = np.concatenate(points_of_fits([fit]).natural, axis=1)[0]
    frame = variance_frame(design, covariances(fit), residuals)
    table = covariance_table(fit, design, level)
    numbers = table[["std_error", "conf_low", "conf_high"]].reset_index(drop=True)
    return pd.concat([frame, numbers], axis=1)


def summary_table(inference: Inference, design: Design, level: float) -> pd.DataFrame:
    """All parameters by label: estimate, standard error, interval, and t tests where they apply."""
    columns = ["estimate", "std_error", "conf_low", "conf_high", "df", "statistic", "p_value"]
    return marked(parameter_table(inference, design, level)[columns], design)


def _fixed_numbers(inference: Inference, level: float) -> pd.DataFrame:
    beta = inference.fit.beta
    errors = np.sqrt(np.diag(inference.vcov))
    df = inference.df(np.eye(len(beta)))
    statistic = beta / errors
    margin = stdtrit(df, 0.5 + level / 2.0) * errors
    p_value = 2.0 * stdtr(df, -np.abs(statistic))
    columns = (beta, errors, df, statistic, p_value, beta - margin, beta + margin)
    return pd.DataFrame(dict(zip(NUMBERS, columns, strict=True)))


def _covariance_numbers(fit: Fit, design: Design, level: float) -> pd.DataFrame:
    z = ndtri(0.5 + level / 2.0)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.diag(fit.parameter_cov))
    known, shown = known_labels(design), covariance_parameters(design)
    errors = np.where([row.label in known for row in shown], np.nan, errors)
    rows = [
        _back_transformed(row.kind, value, error, z)
        for row, value, error in zip(shown, fit.parameters, errors, strict=True)
    ]
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    return pd.DataFrame(rows, columns=columns, dtype=float).reindex(columns=list(NUMBERS))


def profile_table(
    fit: Fit,
    design: Design,
    level: float,
    kinds: Sequence[Kind],
    executor: Executor | None = None,
) -> pd.DataFrame:
    """Profile likelihood intervals, covariance parameters first."""
    from bayeslmm.estimation.profile import KINDS as PROFILED
    from bayeslmm.estimation.profile import profile_intervals

    wanted = [kind for kind in PROFILED if kind in kinds]
    intervals = profile_intervals(fit, level=level, kinds=wanted, executor=executor)
    chosen = [p for p in parameters(design) if p.kind in kinds]
    rows = [(i.lower, i.upper, i.lower_at_bound, i.upper_at_bound, i.criterion) for i in intervals]
    columns = ["conf_low", "conf_high", "lower_at_bound", "upper_at_bound", "criterion"]
    index = label_index(sorted(chosen, key=lambda p: p.kind == "beta"))
    return pd.DataFrame(rows, columns=columns, index=index)


def percentile_table(replicates: pd.DataFrame, level: float) -> pd.DataFrame:
    """Percentile intervals of bootstrap replicates, one per column."""
    tail = (1.0 - probability(level, "level")) / 2.0
    bounds = np.nanquantile(replicates.to_numpy(), [tail, 1.0 - tail], axis=0)
    return pd.DataFrame(
        {"conf_low": bounds[0], "conf_high": bounds[1]},
        index=pd.Index(replicates.columns, name="parameter"),
    )


def tidy_table(
    inference: Inference, design: Design, effects: Effects | Sequence[Effects], level: float
) -> pd.DataFrame:
    """Tidy table of a point estimate; fixed effects also have df, statistic and p_value."""
    fit, chosen = inference.fit, check_effects(effects)
    parts = []
    if kinds := kinds_of(chosen):
        parts.append(broom(parameter_table(inference, design, level, kinds)))
    if {"ran_vals", "ran_coefs"} & set(chosen):
        modes = mode_arrays(fit)
    if "ran_vals" in chosen:
        margin = ndtri(0.5 + level / 2.0)
        for factor, *moments in zip(design.random, modes, mode_sds(fit), strict=True):
            mode, sd = map(factor.own, moments)
            numbers = {
                "estimate": mode,
                "std_error": sd,
                "conf_low": mode - margin * sd,
                "conf_high": mode + margin * sd,
            }
            parts.append(level_rows(factor, "ran_vals", factor.own_coefs, numbers))
    if "ran_coefs" in chosen:
        frames = coefficient_frames(design, fit.beta, modes)
        for factor in design.random:
            frame = frames[factor.name]
            numbers = {"estimate": frame.to_numpy()}
            parts.append(level_rows(factor, "ran_coefs", list(frame), numbers))
    extra = ["df", "statistic", "p_value"] if "fixed" in chosen else []
    parts = parts or [pd.DataFrame(columns=TIDY)]
    return pd.concat(parts, ignore_index=True).reindex(columns=TIDY + extra)


def mode_arrays(fit: Fit) -> list[Array]:
    """Conditional modes of the random effects (J, k) per grouping factor, response scale."""
    beta = _given_beta(fit)
    modes, _ = conditional_modes(fit.factorisation, beta)
    basis = fit.plan.products.basis
    return [basis.effects(f, mode) for f, mode in enumerate(modes)]


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
    held = 0 if fit.plan.held is None else len(fit.plan.held.held)
    count = products.n_fixed + fit.plan.theta.size + 1 - held
    deviance = -2.0 * fit.log_likelihood
    return count, deviance + 2.0 * count, deviance + float(np.log(products.n_obs)) * count


def sds_table(fit: Fit, design: Design) -> dict[str, pd.Series]:
    """Standard deviations of the random effects per grouping factor."""
    return sds_by_group(design, [fit.sigma * sds_and_correlation(t)[0] for t in fit.factors])


def correlation_table(fit: Fit, design: Design) -> dict[str, pd.DataFrame]:
    """Correlation matrices of the random effects per grouping factor."""
    return correlations_by_group(design, [sds_and_correlation(t)[1] for t in fit.factors])


def _given_beta(fit: Fit) -> Array | None:
    if not fit.given_beta:
        return None
    basis = fit.plan.products.basis
    return np.linalg.solve(basis.fixed, fit.beta - basis.shift)


def _back_transformed(kind: Kind, value: float, error: float, z: float) -> tuple[float, ...]:
    """Estimate, error and limits from the unconstrained scale; no error or limits at a boundary."""
    estimate = natural(kind, value)
    inverse = slope(kind, estimate)
    if not np.isfinite(value) or not inverse * BOUNDARY_SLOPE * max(1.0, abs(estimate)) < 1.0:
        return estimate, np.nan, np.nan, np.nan
    with np.errstate(over="ignore"):  # an upper limit may be infinite
        lower, upper = natural(kind, value - z * error), natural(kind, value + z * error)
    return estimate, error / inverse, lower, upper
