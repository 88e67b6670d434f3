"""Checks of the residuals and the random effects against the distributions a model gives them.

Given a joint draw of beta, u and the covariance parameters, the scaled residuals are independent
standard normal under the model, and so are the random effects in the coordinates of the root of
their covariance matrix. Statistics of such draws are compared with those of standard normal
numbers, which needs no correction for shrinkage or for what was estimated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.design.design import Design
from bayeslmm.diagnosis.report import Report
from bayeslmm.diagnosis.whitening import marginal_residuals, residual_table
from bayeslmm.inference.draw_effects import draw_effects, take_points
from bayeslmm.inference.effects import linear_predictor
from bayeslmm.inference.estimate import Fit
from bayeslmm.inference.estimate_draws import estimate_draws
from bayeslmm.inference.joint_draws import JointDraws, all_levels
from bayeslmm.inference.point_draws import point_draws
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]

AT_ONCE = 1 << 22
"""Residuals and random effects held at once: 32 MB."""

OUTLYING = 3.0
"""Scaled residuals beyond this are counted as outliers."""

FEWEST_DRAWS = 20

MANY_ROWS = 5000
"""Rows from which a failed check says little about the size of the fault."""

SUSPECT = 0.05
"""p-value below which a check is called failed."""

ADVICE = {
    "normality of residuals": (
        "the residuals are not normal (see a Q-Q plot). Intervals of fixed effects bear that well "
        "in large data; predictions of single rows do not. Consider a transformation of the "
        "response."
    ),
    "outliers": (
        "more scaled residuals beyond 3 than a normal distribution has. Look at those rows, and at "
        "their influence, before anything else."
    ),
    "spread against fitted": (
        "the spread of the residuals changes with the fitted values. A transformation of the "
        "response (often the logarithm) or precision weights may cure it."
    ),
    "spread across": (
        "the residual spread differs between levels, which the model takes as equal. Standard "
        "errors of single levels are off; weights may help."
    ),
    "normality of random effects": (
        "the random effects are not normal. Look for outlying levels, or for a covariate that "
        "divides the levels into kinds."
    ),
    "normality of whitened": (
        "y - X beta, whitened by the model's covariance matrix, is not normal: residuals, random "
        "effects or the covariance structure do not fit."
    ),
}


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class ResidualChecks(Report):
    """Checks of residuals and random effects, and the residuals themselves.

    Attributes
    ----------
    table : pandas.DataFrame
        A row per check: `observed`, the mean of its statistic over draws; `expected`, the same for
        residuals that follow the model; `p_value`, the probability that one that follows the model
        is at least as extreme.
    residuals : pandas.DataFrame
        A row per row of the data: `fitted`; `response`, the response less that; `pearson`, over its
        residual standard deviation; `standardised`, that over the root of one less the leverage;
        `marginal`, y - X beta whitened by the Cholesky root of its covariance matrix (NaN where
        that is too large). For posteriors means over draws.
    draws : int
        Number of draws the checks are computed on.
    """

    table: pd.DataFrame
    residuals: pd.DataFrame
    draws: int

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Residual checks ({len(self.residuals)} rows, {self.draws} draws)"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_messages(self.table, self.draws, len(self.residuals)))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {"Statistics beside what the model expects": self.table}


def check_residuals(
    design: Design,
    plan: Plan,
    joint: JointDraws,
    residuals: pd.DataFrame,
    random_seed: int | np.random.Generator | None = None,
) -> ResidualChecks:
    """Check residuals and random effects on joint draws.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    joint : JointDraws
        S draws; random effects are drawn anew given everything else.
    residuals : pandas.DataFrame
        Residuals to report beside the checks.
    random_seed : int or numpy.random.Generator, optional
        Seed.

    Returns
    -------
    ResidualChecks

    References
    ----------
    Johnson (2007), Bayesian model assessment using pivotal quantities,
    doi:10.1214/07-BA229; Yuan, Johnson (2012), doi:10.1111/j.1541-0420.2011.01668.x, for mixed
    models. p-values averaged over draws are conservative: they are too rarely small.
    """
    rng = np.random.default_rng(random_seed)
    found: dict[str, list[tuple[Array, Array]]] = {}
    for scaled, fitted, effects in _standard_draws(design, plan, joint, rng):
        for name, statistic in _row_checks(design).items():
            pair = (statistic(scaled, fitted), statistic(rng.standard_normal(scaled.shape), fitted))
            found.setdefault(name, []).append(pair)
        for label, values in effects.items():
            pair = (normal_misfit(values), normal_misfit(rng.standard_normal(values.shape)))
            found.setdefault(f"normality of random effects[{label}]", []).append(pair)
    marginal = marginal_residuals(design, joint)
    if marginal is not None:
        replicated = rng.standard_normal(marginal.shape)
        pair = (normal_misfit(marginal), normal_misfit(replicated))
        found["normality of whitened y - X beta"] = [pair]
    records = [_record(*map(np.concatenate, zip(*pairs, strict=True))) for pairs in found.values()]
    table = pd.DataFrame(records, index=pd.Index(list(found), name="check"))
    return ResidualChecks(table=table, residuals=residuals, draws=joint.size)


def check_estimate(
    design: Design, fit: Fit, draws: int, random_seed: int | np.random.Generator | None
) -> ResidualChecks:
    """Check an estimate on draws of the effects at its covariance parameters."""
    _check_draws(draws)
    rng = np.random.default_rng(random_seed)
    joint = estimate_draws(design, fit, "plugin", draws, rng)
    point = point_draws(fit, ())
    table = residual_table(design, fit.plan, fit.prior, point, given_beta=fit.given_beta)
    return check_residuals(design, fit.plan, joint, table, rng)


def check_posterior(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    draws: int,
    random_seed: int | np.random.Generator | None,
) -> ResidualChecks:
    """Check a posterior on some of its draws."""
    _check_draws(draws)
    joint = joint.thin(draws)
    prior = None if priors.beta_sampled else beta_prior(priors)
    table = residual_table(design, plan, prior, joint, given_beta=priors.beta_sampled)
    return check_residuals(design, plan, joint, table, random_seed)


def normal_misfit(values: Array, _: Array | None = None) -> Array:
    """One less the squared correlation of ordered rows (..., n) with normal scores.

    References
    ----------
    Shapiro, Francia (1972), doi:10.1080/01621459.1972.10481232.
    """
    n = values.shape[-1]
    scores = stats.norm.ppf((np.arange(1, n + 1) - 0.375) / (n + 0.25))
    ordered = np.sort(values, axis=-1)
    ordered = ordered - ordered.mean(axis=-1, keepdims=True)
    squares = np.sum(ordered**2, axis=-1) * np.sum(scores**2)
    return np.asarray(1.0 - (ordered @ scores) ** 2 / squares)


def outlier_count(scaled: Array, _: Array) -> Array:
    """Number of scaled residuals (..., n) beyond three."""
    return np.sum(np.abs(scaled) > OUTLYING, axis=-1).astype(float)


def spread_against_fitted(scaled: Array, fitted: Array) -> Array:
    """Absolute rank correlation of absolute residuals and fitted values, row by row of (S, n)."""
    ranks = [stats.rankdata(x, axis=-1) for x in (np.abs(scaled), fitted)]
    first, second = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    norms = np.sqrt(np.sum(first**2, axis=-1) * np.sum(second**2, axis=-1))
    product = np.sum(first * second, axis=-1)
    return np.abs(np.divide(product, norms, out=np.zeros_like(product), where=norms > 0))


def spread_across(codes: NDArray[np.intp], n_levels: int) -> Statistic:
    """F statistic of absolute residuals by level: Levene's, the residual mean being known.

    References
    ----------
    Levene (1960), Robust tests for equality of variances.
    """
    counts = np.bincount(codes, minlength=n_levels).astype(float)
    total = sp.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    present = counts > 0

    def statistic(scaled: Array, _: Array) -> Array:
        size = np.abs(scaled)
        means = (total @ size.T).T[:, present] / counts[present]
        grand = size.mean(axis=1, keepdims=True)
        between = np.sum(counts[present] * (means - grand) ** 2, axis=1)
        within = np.sum((size - grand) ** 2, axis=1) - between
        groups = int(present.sum())
        return np.asarray((between / (groups - 1)) / (within / (len(codes) - groups)))

    return statistic


def _check_draws(draws: object) -> None:
    if isinstance(draws, bool) or not isinstance(draws, Integral) or draws < FEWEST_DRAWS:
        raise ValueError(
            f"draws={draws!r}: a whole number of at least {FEWEST_DRAWS} is expected, for p-values."
        )


def _row_checks(design: Design) -> dict[str, Statistic]:
    checks: dict[str, Statistic] = {
        "normality of residuals": normal_misfit,
        "outliers": outlier_count,
        "spread against fitted": spread_against_fitted,
    }
    for factor in design.random:
        checks[f"spread across {factor.name}"] = spread_across(factor.codes, factor.n_levels)
    return checks


def _standard_draws(
    design: Design, plan: Plan, joint: JointDraws, rng: np.random.Generator
) -> Iterator[tuple[Array, Array, dict[str, Array]]]:
    """Scaled residuals (B, n), fitted values (B, n) and standardised effects (B, J) by label."""
    root_weights = 1.0 if design.weights is None else np.sqrt(design.weights)
    total = design.n + sum(factor.n_levels * factor.n_coefs for factor in design.random)
    step = max(1, AT_ONCE // total)
    for start in range(0, joint.size, step):
        rows = slice(start, min(start + step, joint.size))
        points, beta = take_points(joint.points, rows), joint.beta[rows]
        u = draw_effects(plan, points, beta, all_levels(design), rng)
        fitted = linear_predictor(design, beta, u)
        scaled = (design.y - fitted) * root_weights / points.sigma[:, None]
        effects = {}
        for factor, values, root in zip(design.random, u, joint.roots, strict=True):
            standard = values @ np.linalg.pinv(root[rows]).transpose(0, 2, 1)
            for i, coef in enumerate(factor.coefs):
                if np.ptp(standard[:, :, i]) > 0:
                    effects[f"{factor.name}, {coef}"] = standard[:, :, i]
        yield scaled, fitted, effects


def _record(observed: Array, expected: Array) -> dict[str, float]:
    ties = float(np.mean(observed == expected))
    return {
        "observed": float(np.mean(observed)),
        "expected": float(np.mean(expected)),
        "p_value": float(np.mean(expected > observed)) + 0.5 * ties,
    }


def _messages(table: pd.DataFrame, draws: int, n: int) -> list[str]:
    failed = table.index[table["p_value"] < SUSPECT]
    messages = []
    for name in failed:
        advice = next(text for start, text in ADVICE.items() if str(name).startswith(start))
        p_value = float(table.loc[name, "p_value"])
        text = f"p = {p_value:.2g}" if p_value > 0.0 else f"p below {1.0 / draws:.2g}"
        messages.append(f"{name} ({text}): {advice}")
    if not len(failed):
        messages.append(
            "No check finds fault with the residuals or the random effects (no p-value below "
            f"{SUSPECT:g})."
        )
    elif len(table) > 1:
        messages.append(
            f"{len(table)} checks were made; of a right model's, up to one in "
            f"{round(1 / SUSPECT)} fails by chance."
        )
    if len(failed) and n > MANY_ROWS:
        messages.append(
            f"With {n} rows the checks find departures that are too small to matter: judge by "
            "the statistics beside what the model expects, and by plots."
        )
    messages.append(
        "Random effects are checked on draws, which are as spread as the model says. Point "
        "estimates of them are shrunken and look more normal than they are; where levels have few "
        "rows the draws follow the model's assumption too, and a check that passes proves little."
    )
    return messages
