"""Hypotheses about parameters: probabilities, odds and evidence ratios, or t tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.design.design import Design
from bayeslmm.exceptions import FormulaError
from bayeslmm.inference.estimate import Fit
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.means.densities import conditional_moments, mixture_density
from bayeslmm.means.expressions import Comparison, labels_in, parse_comparison
from bayeslmm.means.linear import Combinations, RowSpace, row_space
from bayeslmm.means.sources import LEVEL, EstimateSource
from bayeslmm.means.symbols import (
    LinearForm,
    NotLinearError,
    Symbols,
    covariance_draws,
    symbols_of,
)
from bayeslmm.priors.record import Priors
from bayeslmm.results.parameters import probability
from bayeslmm.results.posterior_tables import summarise
from bayeslmm.results.text import frame_text

Array = NDArray[np.float64]
Rope = tuple[float, float]

PRIOR_DRAWS = 20_000
"""Draws from the prior for the prior odds of what is not linear in the fixed effects."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Hypotheses:
    """Hypotheses with what the data say about them; prints as a table.

    Attributes
    ----------
    columns : pandas.DataFrame
        One row per hypothesis, without the summaries of draws.
    draws : ndarray (S, m) or None
        Posterior draws of left side less right side.
    """

    columns: pd.DataFrame
    draws: Array | None = None

    def table(self, prob: float | None = None) -> pd.DataFrame:
        """One row per hypothesis, about its left side less its right side.

        Parameters
        ----------
        prob : float, optional
            For a posterior, the probability of the intervals; ArviZ's rcParams by default.

        Returns
        -------
        pandas.DataFrame
            As ``fit.hypothesis()`` explains.
        """
        if self.draws is None:
            return self.columns.copy()
        known = np.isfinite(self.draws).all(axis=0)
        summary = summarise(self.draws[:, known], self.columns.index[known], prob)
        places = pd.RangeIndex(len(known))
        summary = summary.set_axis(places[known]).reindex(places).set_axis(self.columns.index)
        return pd.concat([summary, self.columns], axis=1)

    def __repr__(self) -> str:
        return "\n".join(["Hypotheses (left side less right side)", frame_text(self._shown())])

    def _repr_html_(self) -> str:
        table = self._shown().to_html(float_format="{:.4g}".format, border=0)
        return f"<p>{escape('Hypotheses (left side less right side)')}</p>{table}"

    def _shown(self) -> pd.DataFrame:
        """The table with bounds written before the odds they belong to."""
        table = self.table()
        if "bound" not in table:
            return table
        for name in ("posterior_odds", "evidence_ratio"):
            table[name] = [
                f"{bound} {value:.4g}".strip() if np.isfinite(value) else ""
                for bound, value in zip(table["bound"], table[name], strict=True)
            ]
        return table.drop(columns="bound")


def read_hypotheses(expressions: str | Sequence[str], symbols: Symbols) -> list[Comparison]:
    """Read one hypothesis or several."""
    sources = [expressions] if isinstance(expressions, str) else list(expressions)
    if not sources:
        raise ValueError("At least one hypothesis is expected.")
    return [parse_comparison(source, symbols.labels) for source in sources]


# --- estimates -------------------------------------------------------------------------


def estimate_hypotheses(
    design: Design, fit: Fit, expressions: str | Sequence[str], level: float = LEVEL
) -> Hypotheses:
    """Test hypotheses that are linear in the fixed effects.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate.
    expressions : str or sequence of str
        Hypotheses.
    level : float
        Coverage of the (two-sided) intervals.

    Returns
    -------
    Hypotheses
    """
    level = probability(level, "level")
    symbols = symbols_of(design)
    comparisons = read_hypotheses(expressions, symbols)
    forms = [_linear_form(symbols, comparison) for comparison in comparisons]
    quantities = Combinations(
        labels=pd.DataFrame(index=range(len(forms))),
        weights=np.array([form.weights for form in forms]),
        constant=np.array([form.constant for form in forms]),
    )
    value, error, df = EstimateSource(row_space(design), fit).moments(quantities)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(error > 0, value / error, np.nan)
    tails = {"=": lambda t, v: 2.0 * stats.t.sf(abs(t), v), ">": stats.t.sf, "<": stats.t.cdf}
    relations = [comparison.relation for comparison in comparisons]
    margin = stats.t.ppf(0.5 + level / 2.0, df) * error
    columns = pd.DataFrame(
        {
            "estimate": value,
            "std_error": error,
            "df": df,
            "statistic": statistic,
            "p_value": [
                float(tails[relation](t, v))
                for relation, t, v in zip(relations, statistic, df, strict=True)
            ],
            "conf_low": value - margin,
            "conf_high": value + margin,
        },
        index=_index(comparisons),
    )
    return Hypotheses(columns=columns)


def _linear_form(symbols: Symbols, comparison: Comparison) -> LinearForm:
    try:
        return symbols.form(comparison.difference)
    except NotLinearError as error:
        bad = [n for n in labels_in(comparison.difference) if n.value in symbols.parameters]
        node = bad[0] if bad else comparison.difference
        raise FormulaError(
            "An estimate tests linear combinations of the fixed effects only. Ask a posterior "
            "(model.fit()) about anything else, or see confint(method='profile').",
            comparison.source,
            node.start,
            node.end,
        ) from error


# --- posteriors ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PosteriorEvidence:
    """What hypotheses about a posterior are judged by."""

    design: Design
    priors: Priors
    joint: JointDraws
    plan: Callable[[], Plan]
    space: RowSpace
    symbols: Symbols
    rope: Rope | None

    def differences(self, comparison: Comparison) -> Array:
        """Draws (S,) of the left side less the right side."""

        def linear(form: LinearForm) -> Array:
            weights = self.space.reduce(form.weights[None])[0]
            return np.asarray(self.joint.beta @ weights + form.constant)

        points = self.joint.points
        parameter = covariance_draws(points.sds, points.chols, points.sigma)
        values = self.symbols.values(comparison, linear, parameter)
        return np.broadcast_to(values, (self.joint.size,)).astype(np.float64)

    def row(self, comparison: Comparison, draws: Array) -> dict[str, Any]:
        """Probabilities, odds and evidence ratio of a hypothesis."""
        form = self.form(comparison)
        relation = comparison.relation
        row: dict[str, Any] = dict.fromkeys(
            ("probability", "posterior_odds", "prior_odds", "evidence_ratio"), np.nan
        )
        row["bound"] = ""
        if not np.isfinite(draws).all():
            pass
        elif relation == "=":
            row["evidence_ratio"] = np.nan if form is None else self.density_ratio(form)
        else:
            row |= _odds(draws if relation == ">" else -draws)
            row["prior_odds"] = self.prior_odds(comparison, form)
            row["evidence_ratio"] = row["posterior_odds"] / row["prior_odds"]
        if self.rope is not None:
            inside = (draws > self.rope[0]) & (draws < self.rope[1])
            row["rope_probability"] = inside.mean() if np.isfinite(draws).all() else np.nan
        return row

    def form(self, comparison: Comparison) -> LinearForm | None:
        """The difference as a linear form with weights (p,), or None."""
        try:
            full = self.symbols.form(comparison.difference)
        except NotLinearError:
            return None
        return LinearForm(self.space.reduce(full.weights[None])[0], full.constant)

    def prior_odds(self, comparison: Comparison, form: LinearForm | None) -> float:
        """Prior odds of an inequality; NaN under improper priors."""
        if form is not None and self.priors.beta_precision is not None:
            mean, sd = self._prior_moments(form)
            above = stats.norm.cdf(mean / sd)
        elif self.priors.proper:
            above = float((self._prior_differences(comparison) > 0).mean())
        else:
            return float("nan")
        odds = above / (1.0 - above) if above < 1.0 else np.nan
        return float(odds if comparison.relation == ">" else (1.0 / odds if odds else np.nan))

    def _prior_differences(self, comparison: Comparison) -> Array:
        draws = self.priors.sample(np.random.default_rng(0), PRIOR_DRAWS)
        parameter = covariance_draws(draws.sds, draws.chols, draws.sigma)

        def linear(form: LinearForm) -> Array:
            weights = self.space.reduce(form.weights[None])[0]
            return np.asarray(draws.beta @ weights + form.constant)

        return self.symbols.values(comparison, linear, parameter)

    def density_ratio(self, form: LinearForm) -> float:
        """Posterior over prior density of a linear form at zero; NaN where beta is not normal."""
        if self.priors.beta_precision is None or not np.any(form.weights):
            return float("nan")
        mean, sd = conditional_moments(self.plan(), self.priors, self.joint.points, form.weights)
        posterior = mixture_density(-form.constant, mean, sd)
        prior_mean, prior_sd = self._prior_moments(form)
        return float(np.exp(posterior - stats.norm.logpdf(0.0, prior_mean, prior_sd)))

    def _prior_moments(self, form: LinearForm) -> tuple[float, float]:
        mean = form.weights @ self.priors.beta_mean + form.constant
        precision = self.priors.beta_precision
        assert precision is not None
        variance = form.weights @ np.linalg.solve(precision, form.weights)
        return float(mean), float(np.sqrt(variance))


def posterior_hypotheses(
    design: Design,
    priors: Priors,
    joint: JointDraws,
    plan: Callable[[], Plan],
    expressions: str | Sequence[str],
    rope: float | Rope | None,
) -> Hypotheses:
    """Judge hypotheses by posterior draws; see ``posterior.hypothesis()``.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    joint : JointDraws
        Draws.
    plan : callable
        Returns the cross-products.
    expressions : str or sequence of str
        Hypotheses.
    rope : float or (float, float) or None
        Region of practical equivalence of left side less right side.

    Returns
    -------
    Hypotheses
    """
    evidence = PosteriorEvidence(
        design=design,
        priors=priors,
        joint=joint,
        plan=plan,
        space=row_space(design),
        symbols=symbols_of(design),
        rope=_checked_rope(rope),
    )
    comparisons = read_hypotheses(expressions, evidence.symbols)
    draws = np.column_stack([evidence.differences(comparison) for comparison in comparisons])
    rows = [evidence.row(c, column) for c, column in zip(comparisons, draws.T, strict=True)]
    return Hypotheses(columns=pd.DataFrame(rows, index=_index(comparisons)), draws=draws)


def _odds(draws: Array) -> dict[str, Any]:
    """Probability and odds of a positive value; a bound where all draws agree."""
    size, above = len(draws), int((draws > 0).sum())
    found = {"probability": above / size, "bound": ""}
    if above == size:
        return found | {"posterior_odds": float(size), "bound": ">"}
    if above == 0:
        return found | {"posterior_odds": 1.0 / size, "bound": "<"}
    return found | {"posterior_odds": above / (size - above)}


def _checked_rope(rope: float | Rope | None) -> Rope | None:
    if rope is None:
        return None
    low, high = rope if isinstance(rope, tuple) else (-rope, rope)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"rope={rope!r}: a positive number or a pair (low, high) is expected.")
    return float(low), float(high)


def _index(comparisons: Sequence[Comparison]) -> pd.Index:
    return pd.Index([comparison.source for comparison in comparisons], name="hypothesis")
