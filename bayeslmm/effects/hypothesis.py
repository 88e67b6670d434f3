"""Hypotheses about parameters: probabilities, odds and evidence ratios, or t tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.data.row_space import row_space
from bayeslmm.effects.evidence import PosteriorEvidence, Rope
from bayeslmm.effects.expressions import (
    Comparison,
    LinearForm,
    NotLinearError,
    Symbols,
    labels_in,
    parse_comparison,
    symbols_of,
)
from bayeslmm.effects.quantities import (
    LEVEL,
    Combinations,
    EstimateSource,
    fit_notes,
    one_level,
    refuse_level,
)
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import FormulaError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import summarise
from bayeslmm.summaries.text import frame_text, html_page

Array = NDArray[np.float64]

HEADING = "Hypotheses (left side less right side)"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class Hypotheses:
    """Hypotheses with what the data say about them; prints as a table.

    Attributes
    ----------
    columns : pandas.DataFrame
        One row per hypothesis, without intervals and summaries of draws.
    draws : ndarray (S, m) or None
        Posterior draws of left side less right side.
    level : float
        Coverage of the intervals of an estimate where `table` is given none.
    notes : tuple of str
        What a reader should know, such as why a figure is missing.
    """

    columns: pd.DataFrame
    draws: Array | None = None
    level: float = LEVEL
    notes: tuple[str, ...] = ()

    def table(self, prob: float | None = None, *, level: float | None = None) -> pd.DataFrame:
        """One row per hypothesis, about its left side less its right side.

        Parameters
        ----------
        prob : float, optional
            Coverage of the intervals; ArviZ's rcParams for a posterior by default, and what
            ``hypothesis()`` was given (0.95) for an estimate.
        level : float, optional
            For an estimate, another name of `prob`, as in its other methods.

        Returns
        -------
        pandas.DataFrame
            As ``fit.hypothesis()`` explains.

        Raises
        ------
        ValueError
            If the coverage is not between 0 and 1.
        """
        if self.draws is None:
            return self._tests(one_level(prob, level, self.level))
        refuse_level(level)
        known = np.isfinite(self.draws).all(axis=0)
        summary = summarise(self.draws[:, known], self.columns.index[known], prob)
        places = pd.RangeIndex(len(known))
        summary = summary.set_axis(places[known]).reindex(places).set_axis(self.columns.index)
        return pd.concat([summary, self.columns], axis=1)

    def _tests(self, level: float) -> pd.DataFrame:
        value, error, df = (self.columns[name] for name in ("estimate", "std_error", "df"))
        margin = stats.t.ppf(0.5 + level / 2.0, df) * error
        return self.columns.assign(conf_low=value - margin, conf_high=value + margin)

    def __repr__(self) -> str:
        return "\n".join([HEADING, frame_text(self._shown()), *self.notes])

    def _repr_html_(self) -> str:
        return html_page(HEADING, self._shown(), self.notes)

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
    if isinstance(expressions, Mapping):
        raise TypeError(
            "Hypotheses are a text or a list of texts, such as ['Days > 0', 'Days > 5']."
        )
    sources = [expressions] if isinstance(expressions, str) else list(expressions)
    if not sources:
        raise ValueError("At least one hypothesis is expected.")
    comparisons = [parse_comparison(source, symbols.labels) for source in sources]
    for comparison in comparisons:
        symbols.check(comparison)
    return comparisons


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
        },
        index=_index(comparisons),
    )
    return Hypotheses(columns=columns, level=level, notes=fit_notes(fit))


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


def posterior_hypotheses(
    design: Design,
    priors: Priors,
    joint: JointDraws,
    plan: Callable[[], Plan],
    expressions: str | Sequence[str],
    rope: float | Sequence[float] | None,
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
    rope : float or pair of float or None
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
    judged = [evidence.judge(c, column) for c, column in zip(comparisons, draws.T, strict=True)]
    notes = [f"{c.source}: {j.note}" for c, j in zip(comparisons, judged, strict=True) if j.note]
    columns = pd.DataFrame([j.row for j in judged], index=_index(comparisons))
    return Hypotheses(columns=columns, draws=draws, notes=tuple(notes))


def _checked_rope(rope: float | Sequence[float] | None) -> Rope | None:
    if rope is None:
        return None
    try:
        bounds = np.asarray(rope, dtype=np.float64)
    except (TypeError, ValueError):
        bounds = np.empty(0)
    if bounds.ndim == 0:
        bounds = np.array([-bounds, bounds])
    if bounds.shape != (2,) or not np.isfinite(bounds).all() or bounds[0] >= bounds[1]:
        raise ValueError(f"rope={rope!r}: a positive number or a pair (low, high) is expected.")
    return float(bounds[0]), float(bounds[1])


def _index(comparisons: Sequence[Comparison]) -> pd.Index:
    return pd.Index([comparison.source for comparison in comparisons], name="hypothesis")
