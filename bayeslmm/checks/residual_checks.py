"""Checks of the residuals and the random effects against the distributions a model gives them.

A statistic of the residuals, or of the random effects, is compared with the same of responses that
are simulated from the model and go through the same equations, at the same covariance parameters.
So shrinkage, leverage and estimated fixed effects are in both, and need no correction. For a
posterior that is done at each of its draws of the covariance parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.resampled import RESAMPLE_K, Resampler
from bayeslmm.checks.residuals import (
    Standardised,
    StandardUnits,
    residual_table,
    simulated,
    standard_units,
    thinned,
    whiten,
    whitening_draws,
)
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import SOME_GROUPS, gathered
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.estimation.inference import satterthwaite
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.residuals import require_normal_residuals
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.sampling.pareto import smooth_weights
from bayeslmm.summaries.parameters import whole_number
from bayeslmm.summaries.text import Report, listed

Array = NDArray[np.float64]
Statistic = Callable[[Array, Array], Array]
Pair = tuple[Array, Array]
"""A statistic of the data (1,) and of replicates (R,)."""

CHECKED = "Checks of residuals"

FEWEST_CASES = 3
"""Residuals, or random effects, from which on their distribution has a shape."""

OUTLYING = 3.0
"""Scaled residuals beyond this are counted as outliers."""

LARGEST_RESIDUAL = "largest residual"

CASES = ["case", "deviation", "also_far_out"]
"""Columns of the table of the largest deviations."""

LARGEST_EFFECT = "largest random effect"

FEWEST_DRAWS = 20

MOST_POINTS = 100
"""Draws of covariance parameters at which responses are simulated, some at each."""

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
        A row per check: `observed`, its statistic; `expected`, the mean of that of responses
        simulated from the model (for the largest residual, its median); `p_value`,
        the probability under the model of one at least as extreme.
    largest : pandas.DataFrame
        The largest residual, and the largest random effect of each coefficient: which `case` it is,
        its `deviation` in standard deviations (of a residual, of what all other rows say of it),
        and what is `also_far_out`.
    residuals : pandas.DataFrame
        A row per row of the data: `fitted`; `response`, the response less that; `pearson`, over its
        residual standard deviation; `standardised`, that over the root of one less the leverage;
        `marginal`, y - X beta whitened by the Cholesky root of its covariance matrix (NaN where
        that is too large). For posteriors means over draws.
    draws : int
        Number of simulated responses.
    failures : tuple of str
        Tests that could not be made, and why.
    rows : int or None
        Number of rows that were checked, where `residuals` has a random sample of them: those of
        data beyond memory, of which ``fit.residuals(out=...)`` writes all.
    """

    table: pd.DataFrame
    largest: pd.DataFrame
    residuals: pd.DataFrame
    draws: int
    failures: tuple[str, ...] = ()
    rows: int | None = None

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Residual checks ({self.n} rows, {self.draws} simulated responses)"

    @property
    def n(self) -> int:
        """Number of rows that were checked."""
        return len(self.residuals) if self.rows is None else self.rows

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        return tuple(_messages(self))

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {
            "Statistics beside what the model expects": self.table,
            "The largest deviations": self.largest[["case", "deviation"]],
        }


def check_estimate(
    design: Design, fit: Fit, draws: int, random_seed: int | np.random.Generator | None
) -> ResidualChecks:
    """Check an estimate at its covariance parameters."""
    whole_number(draws, "draws", FEWEST_DRAWS, why=", for p-values")
    rng = seeded(random_seed)
    design = gathered(design, CHECKED, SOME_GROUPS)
    joint = point_draws(fit, ())
    units = standard_units(design, fit.plan, fit.prior, joint, given_beta=fit.given_beta)
    compared = _compare(design, units, draws, rng)
    whitened = _whitened(design, fit.plan, joint, draws, rng)
    row, failure, test = extreme(compared.residuals), "", None
    if row is not None:
        try:
            test = shift_test(design, row)
        except DataError as error:
            failure = f"The {LARGEST_RESIDUAL} was not tested: {error}"
    residuals = residual_table(design, fit.plan, fit.prior, joint, given_beta=fit.given_beta)
    return _result(design, compared, whitened, test, residuals, draws, failure)


def check_posterior(
    model: Model,
    joint: JointDraws,
    draws: int,
    random_seed: int | np.random.Generator | None,
) -> ResidualChecks:
    """Check a posterior on some of its draws."""
    whole_number(draws, "draws", FEWEST_DRAWS, why=", for p-values")
    rng = seeded(random_seed)
    model = model.gathered(CHECKED, SOME_GROUPS)
    design, plan, given = model.design, model.system, model.priors.beta_sampled
    prior = None if given else beta_prior(model.priors)
    few = thinned(design, plan, joint.thin(min(draws, MOST_POINTS)))
    each = -(-min(draws, joint.size) // few.size)
    units = standard_units(design, plan, prior, few, given_beta=given)
    compared = _compare(design, units, each, rng)
    whitened = _whitened(design, plan, few, each, rng)
    row, test = extreme(compared.residuals), None
    if row is not None:
        log_sd = compared.log_sd[:, row.at]
        test = left_out_test(model, joint, row, log_sd, rng)
    residuals = residual_table(design, plan, prior, joint.thin(draws), given_beta=given)
    return _result(design, compared, whitened, test, residuals, each * few.size)


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


def largest_share(values: Array) -> Array:
    """Largest size of values (..., n) over their root mean square."""
    return np.asarray(np.max(np.abs(values), axis=-1) / np.sqrt(np.mean(values**2, axis=-1)))


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


EFFECT_CHECKS: dict[str, Callable[[Array], Array]] = {
    "normality of random effects": normal_misfit,
    LARGEST_EFFECT: largest_share,
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Compared:
    """The data and replicates at T draws of the covariance parameters.

    Attributes
    ----------
    pairs : dict of str to list of Pair
        Statistics by check.
    residuals, log_sd : ndarray (T, n)
        Residuals in standard units, and log standard deviations of the rows given all others.
    effects : tuple of ndarray (T, J, k)
        Random effects in standard units.
    """

    pairs: dict[str, list[Pair]]
    residuals: Array
    log_sd: Array
    effects: tuple[Array, ...]


def _compare(
    design: Design,
    units: Iterable[tuple[JointDraws, StandardUnits]],
    replicates: int,
    rng: np.random.Generator,
) -> _Compared:
    """Statistics of the data and of replicates, draw by draw."""
    pairs: dict[str, list[Pair]] = {}
    seen, log_sd = [], []
    for draw, unit in units:
        checks = _checks(design, unit)
        seen.append(unit.observed())
        log_sd.append(np.log(unit.sigma) - 0.5 * np.log(unit.left))
        observed = {name: statistic(seen[-1]) for name, statistic in checks.items()}
        for responses in simulated(design, draw, replicates, rng):
            replicated = unit.replicated(responses)
            for name, statistic in checks.items():
                pairs.setdefault(name, []).append((observed[name], statistic(replicated)))
    return _Compared(
        pairs=pairs,
        residuals=np.concatenate([one.residuals for one in seen]),
        log_sd=np.stack(log_sd),
        effects=tuple(
            np.concatenate(each) for each in zip(*(s.effects for s in seen), strict=True)
        ),
    )


def _whitened(
    design: Design, plan: Plan, joint: JointDraws, replicates: int, rng: np.random.Generator
) -> dict[str, list[Pair]]:
    """Misfit of y - X beta, whitened, less its projection on X.

    Nothing where that is too dear, or the same as the misfit of the residuals.
    """
    tied = design.random or design.residual is not None
    some = whitening_draws(design, joint) if tied else None
    if some is None or design.n - design.p < FEWEST_CASES:
        return {}
    basis = plan.products.basis
    response = design.y - design.offset - design.X @ basis.shift
    white = whiten(design, some, np.column_stack([design.X @ basis.fixed, response])[None])
    each = -(-replicates * joint.size // some.size)
    pairs = []
    for q, y in zip(np.linalg.qr(white[:, :, :-1])[0], white[:, None, :, -1], strict=True):
        noise = rng.standard_normal((each, design.n))
        rest = [values - (values @ q) @ q.T for values in (y, noise)]
        pairs.append((normal_misfit(rest[0]), normal_misfit(rest[1])))
    return {"normality of whitened y - X beta": pairs}


def _checks(design: Design, units: StandardUnits) -> dict[str, Callable[[Standardised], Array]]:
    """Statistics (R,) of standard units by check, at one draw of the covariance parameters."""
    checks: dict[str, Callable[[Standardised], Array]] = {}
    rows = np.flatnonzero(np.isfinite(units.left))
    if len(rows) >= FEWEST_CASES:
        statistics: dict[str, Statistic] = {
            "normality of residuals": normal_misfit,
            "outliers": outlier_count,
            "spread against fitted": spread_against_fitted,
        }
        for factor in (factor for factor in design.random if not factor.pooled):
            codes = np.unique(factor.codes[rows], return_inverse=True)[1]
            if 0 < codes.max() < len(rows) - 1:
                name = f"spread across {factor.name}"
                statistics[name] = spread_across(codes, int(codes.max()) + 1)
        for name, statistic in statistics.items():
            checks[name] = partial(_of_rows, statistic, rows)
    for f, factor in enumerate(design.random):
        for c, coef in enumerate(factor.coefs):
            levels = np.flatnonzero(np.isfinite(units.effects_left[f][:, c]))
            if len(levels) >= FEWEST_CASES:
                for name, of_effects in EFFECT_CHECKS.items():
                    label = f"{name}[{factor.name}, {coef}]"
                    checks[label] = partial(_of_effects, of_effects, f, levels, c)
    return checks


def _of_rows(statistic: Statistic, rows: NDArray[np.intp], seen: Standardised) -> Array:
    """A statistic of the residuals, over their root mean square as sigma is estimated."""
    scaled = seen.residuals[:, rows]
    size = np.sqrt(np.mean(scaled**2, axis=1, keepdims=True))
    return statistic(scaled / size, seen.fitted[:, rows])


def _of_effects(
    statistic: Callable[[Array], Array],
    f: int,
    levels: NDArray[np.intp],
    c: int,
    seen: Standardised,
) -> Array:
    return statistic(seen.effects[f][:, levels, c])


def _result(
    design: Design,
    compared: _Compared,
    whitened: dict[str, list[Pair]],
    test: Outlier | None,
    residuals: pd.DataFrame,
    draws: int,
    failure: str = "",
) -> ResidualChecks:
    records = {name: record_of(pairs) for name, pairs in (compared.pairs | whitened).items()}
    if test is not None:
        records[LARGEST_RESIDUAL] = {
            "observed": abs(test.deviation),
            "expected": test.typical,
            "p_value": test.p_value,
        }
    return ResidualChecks(
        table=checks_frame(records, ["observed", "expected", "p_value"]),
        largest=checks_frame(_largest(design, compared, test), CASES),
        residuals=residuals,
        draws=draws,
        failures=(failure,) if failure else (),
    )


def _largest(
    design: Design, compared: _Compared, test: Outlier | None
) -> dict[str, dict[str, object]]:
    """Which row, and which level by random effect, deviates most, and which are far out too."""
    found = {}
    row = extreme(compared.residuals)
    if row is not None and test is not None:
        labels = [row_label(design, i) for i in (row.at, *row.far)]
        found[LARGEST_RESIDUAL] = case_of(labels, test.deviation)
    for factor, values in zip(design.random, compared.effects, strict=True):
        for c, coef in enumerate(factor.coefs):
            level = extreme(values[:, :, c])
            if level is not None and level.count >= FEWEST_CASES:
                labels = [f"{factor.name} {factor.levels[i]}" for i in (level.at, *level.far)]
                name = f"{LARGEST_EFFECT}[{factor.name}, {coef}]"
                found[name] = case_of(labels, float(level.values.mean()))
    return found


def case_of(labels: Sequence[str], deviation: float) -> dict[str, object]:
    """The row of a case in the table of the largest deviations; other labels are far out too."""
    return {"case": labels[0], "deviation": deviation, "also_far_out": tuple(labels[1:])}


def row_label(design: Design, at: int) -> str:
    """A row and its levels in words."""
    levels = [
        f"{factor.name} {' and '.join(map(str, factor.levels[factor.levels_at(at)]))}"
        for factor in design.random
    ]
    return f"row {design.index[at]}" + (f" ({', '.join(levels)})" if levels else "")


def checks_frame(records: Mapping[str, Mapping[str, object]], columns: list[str]) -> pd.DataFrame:
    """A table of checks from their rows."""
    index = pd.Index(list(records), name="check", dtype=object)
    return pd.DataFrame(list(records.values()), index=index, columns=columns)


def record_of(pairs: Sequence[Pair]) -> dict[str, float]:
    """Means of a statistic, and the share of all, data included, that are as extreme as these."""
    above = sum(int(np.sum(rep >= seen)) for seen, rep in pairs)
    total = sum(len(rep) for _, rep in pairs)
    return {
        "observed": float(sum(float(seen[0]) * len(rep) for seen, rep in pairs) / total),
        "expected": float(np.mean(np.concatenate([rep for _, rep in pairs]))),
        "p_value": (above + 1.0) / (total + 1.0),
    }


def _messages(checks: ResidualChecks) -> list[str]:
    table, n = checks.table, checks.n
    failed = table.index[table["p_value"] < SUSPECT]
    messages = []
    for name in failed:
        p_value = float(table.loc[name, "p_value"])
        counted = name != LARGEST_RESIDUAL and p_value < 1.0 / checks.draws
        text = f"p below {1.0 / checks.draws:.2g}" if counted else f"p = {p_value:.2g}"
        messages.append(f"{name} ({text}): {_advice(checks, str(name))}")
    messages += checks.failures
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
    if not failed.isin(checks.largest.index).all() and n > MANY_ROWS:
        messages.append(
            f"With {n} rows the checks find departures that are too small to matter: judge by "
            "the statistics beside what the model expects, and by plots."
        )
    if checks.rows is not None:
        messages.append(
            f"The table of residuals has a random sample of {len(checks.residuals)} rows; "
            "fit.residuals(out=...) writes those of all."
        )
    messages.append(
        "Random effects are shrunken where levels have few rows, and then look as normal as the "
        "model assumes: a check that passes proves little there."
    )
    return messages


def _advice(checks: ResidualChecks, name: str) -> str:
    """What a failed check says, and what to do."""
    if name not in checks.largest.index:
        return next(text for start, text in ADVICE.items() if name.startswith(start))
    row = checks.largest.loc[name]
    rest = "what the other rows say of it" if name == LARGEST_RESIDUAL else "zero"
    text = f"{row['case']} is {row['deviation']:.1f} standard deviations from {rest}. "
    if others := row["also_far_out"]:
        text += f"Far out are also {listed(others, 5)}. "
    return text + "Look for a slip, or a reason, before anything else; refit without it to compare."


# --- the largest residual, tested as an outlier, and which rows and levels deviate most ---
#
# The row that deviates most gets a shift of its own in the mean. That takes it out of what the rest
# of the data say, and the test of the shift asks whether it belongs there. Bonferroni's inequality
# pays for having looked for the largest; so far out it is nearly an equality.


NAMED = 0.05
"""Chance that the largest of all deviations passes the limit beyond which others are named."""

RESAMPLED = 200
"""Draws from the posterior without an outlier."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Extreme:
    """What deviates most, among rows or levels.

    Attributes
    ----------
    at : int
        Its number among them.
    count : int
        How many they are.
    far : tuple of int
        Numbers of others that are far out too.
    values : ndarray (T,)
        Its deviation in standard units, by draw of the covariance parameters.
    """

    at: int
    count: int
    far: tuple[int, ...]
    values: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlier:
    """Test of the largest residual.

    Attributes
    ----------
    deviation : float
        In standard deviations of what the other data say of the row.
    typical : float
        Median of the size of the largest such deviation under the model.
    p_value : float
        Bonferroni's.
    """

    deviation: float
    typical: float
    p_value: float


def extreme(values: Array) -> Extreme | None:
    """The largest of deviations (T, m) in mean over draws; None where there is none."""
    known = np.isfinite(values).all(axis=0)
    if not known.any():
        return None
    size = np.where(known, np.abs(values.mean(axis=0)), 0.0)
    order = np.argsort(-size, kind="stable")
    limit = stats.norm.isf(0.5 * NAMED / known.sum())
    return Extreme(
        at=int(order[0]),
        count=int(known.sum()),
        far=tuple(int(i) for i in order[1 : np.sum(size > limit)]),
        values=values[:, order[0]],
    )


def shift_test(design: Design, row: Extreme) -> Outlier:
    """Test a row by REML with its shift among the fixed effects: Satterthwaite's t test.

    Given the ratios of the variances the t test is exact; the degrees of freedom are for these
    being estimated.

    Raises
    ------
    DataError
        If the likelihood has no maximum.

    References
    ----------
    Cook, Weisberg (1982), Residuals and influence in regression, section 2.2, for the shift.
    Haslett, Hayes (1998), doi:10.1111/1467-9868.00120, for correlated responses.
    """
    require_normal_residuals(design, "A test of a shifted row")
    shift = (np.arange(design.n) == row.at).astype(float)
    wider = replace(design, X=np.column_stack([design.X, shift]))
    return shift_of(marginal_system(wider), row.count)


def shift_of(plan: Plan, count: int) -> Outlier:
    """Test the last fixed effect as the shift of the largest of so many residuals."""
    fit = fit_likelihood(plan, "REML")
    deviation = float(fit.beta[-1] / np.sqrt(fit.vcov[-1, -1]))
    df = satterthwaite(fit, np.eye(len(fit.beta))[-1])
    return Outlier(
        deviation=deviation,
        typical=float(stats.t.isf(typical_tail(count), df)),
        p_value=min(1.0, 2.0 * count * float(stats.t.sf(abs(deviation), df))),
    )


def left_out_test(
    model: Model, joint: JointDraws, row: Extreme, log_sd: Array, rng: np.random.Generator
) -> Outlier:
    """Test a row by its predictive distribution given all others.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Its posterior draws.
    row : Extreme
        The row, at T draws of the covariance parameters. These are weighted as if they had not seen
        it. Where it moves them too much for that, they are sampled anew without it if that is
        cheap; where not, the p-value is too large if anything.
    log_sd : ndarray (T,)
        Log standard deviations of its predictive distributions.
    rng : numpy.random.Generator
        Source of randomness.
    """
    return left_out(row, log_sd, lambda: _without(model, joint, row.at, rng))


def left_out(row: Extreme, log_sd: Array, sample: Callable[[], Array | None]) -> Outlier:
    """The same; `sample` gives deviations at draws from the posterior without the row."""
    values = row.values
    log_weights, k = smooth_weights(0.5 * values**2 + log_sd)
    if k > RESAMPLE_K:
        fresh = sample()
        if fresh is not None:
            values, log_weights = fresh, np.full(len(fresh), -np.log(len(fresh)))
    weights = np.exp(log_weights)
    tail = min(float(weights @ stats.norm.sf(values)), float(weights @ stats.norm.cdf(values)))
    return Outlier(
        deviation=float(weights @ values),
        typical=float(stats.norm.isf(typical_tail(row.count))),
        p_value=min(1.0, 2.0 * row.count * tail),
    )


def _without(model: Model, joint: JointDraws, at: int, rng: np.random.Generator) -> Array | None:
    """Deviations of a row at draws from the posterior without it."""
    resampler = Resampler(model, joint, rng)
    points = resampler.draws(np.array([at]), RESAMPLED) if resampler.affordable else None
    if points is None:
        return None
    given = model.priors.beta_sampled
    beta = points.beta if given else np.zeros((RESAMPLED, model.design.p))
    fresh = replace(joint, shape=(1, RESAMPLED), beta=beta, points=points)
    prior = None if given else beta_prior(model.priors)
    units = standard_units(model.design, model.system, prior, fresh, given_beta=given)
    return np.array([unit.residuals()[at] for _, unit in units])


def typical_tail(count: int) -> float:
    """Tail probability of the median of the largest of so many independent deviations."""
    return float(-0.5 * np.expm1(np.log(0.5) / count))
