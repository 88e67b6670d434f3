"""What stands behind linear combinations of the fixed effects: an estimate, or draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.back_transform import BackTransform
from bayeslmm.effects.multiplicity import Adjust, Comparisons, Side, simultaneous_interval
from bayeslmm.estimation.inference import Inference
from bayeslmm.formula.rank import RowSpace
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Combinations:
    """m quantities that are linear in the fixed effects: ``weights @ beta + constant``.

    Attributes
    ----------
    labels : pandas.DataFrame
        m rows: what each quantity is.
    weights : ndarray (m, p_full)
        Weights of all columns of X, dropped ones included.
    constant : ndarray (m,) or (S, m)
        What is added: the offset and, on draws, random effects.
    by : tuple of str
        Columns of `labels` within whose values contrasts are taken.
    """

    labels: pd.DataFrame
    weights: Array
    constant: Array
    by: tuple[str, ...] = ()

    def combine(self, matrix: Array, labels: pd.DataFrame, by: tuple[str, ...]) -> Combinations:
        """Linear combinations (k, m) of these quantities."""
        return replace(
            self,
            labels=labels,
            weights=_product(matrix, self.weights),
            constant=_product(matrix, self.constant.T).T,
            by=by,
        )


def _product(matrix: Array, rows: Array) -> Array:
    """``matrix @ rows`` where rows that are not defined count only with a weight."""
    lost = np.isnan(rows.reshape(len(rows), -1)).any(axis=1)
    if not lost.any():
        return matrix @ rows
    result = matrix[:, ~lost] @ rows[~lost]
    result[(matrix[:, lost] != 0).any(axis=1)] = np.nan
    return result


# --- where the uncertainty of linear combinations comes from ------------------------

Family = tuple[NDArray[np.intp], int]
"""Places of contrasts that are adjusted together, and the number of means they compare."""

JOINT: tuple[Adjust, ...] = ("mvt", "dunnett", "scheffe")
"""Adjustments by the covariance matrix of the quantities."""

LEVEL = 0.95
"""Coverage of the intervals of estimates where none is given."""


MAP_NOTE = (
    "A MAP estimate: std_error is the posterior standard deviation given the covariance parameters "
    "at the mode; tests and intervals are normal (no t tests), the intervals credible ones."
)


def fit_notes(inference: Inference) -> tuple[str, ...]:
    """What a reader of tests of an estimate should know."""
    if inference.fit.method == "MAP":
        return (MAP_NOTE,)
    return (inference.note,) if inference.note else ()


def one_level(prob: float | None, level: float | None, default: float = LEVEL) -> float:
    """Coverage of the intervals of an estimate, which may be called `prob` or `level`.

    Raises
    ------
    ValueError
        If both are given, or the one given is not between 0 and 1.
    """
    if prob is not None and level is not None:
        raise ValueError("prob= and level= are the same for an estimate; give one of them.")
    if level is not None:
        return probability(level, "level")
    return default if prob is None else probability(prob, "prob")


def refuse_level(level: float | None) -> None:
    """Raise ValueError where a posterior is given the level of an estimate's intervals."""
    if level is not None:
        raise ValueError(
            f"level={level!r} is for confidence intervals of estimates. A posterior takes prob=."
        )


def refuse_df(df: str | None) -> None:
    """Raise ValueError where a posterior is given degrees of freedom of an estimate's tests."""
    if df is not None:
        raise ValueError(
            f"df={df!r} is for t tests of estimates. A posterior has draws, whose intervals need "
            "no degrees of freedom: leave df= out, or take model.reml()."
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ResponseScale:
    """How quantities of a transformed response are shown on its own scale.

    Attributes
    ----------
    transform : BackTransform
        The way back.
    sd : float or ndarray (S,) or None
        Standard deviation of single responses about the quantities, on the transformed scale, that
        the mean of the response is corrected for; None for no correction.
    """

    transform: BackTransform
    sd: float | Array | None = None

    def linear(self, value: Array) -> tuple[Array, Array]:
        """Values (m,) on the response's scale, and their derivatives."""
        if self.sd is None:
            back, slope, *_ = self.transform.jet(value)
            return back, slope
        return self.transform.corrected(value, float(self.sd))

    def of_estimates(self, value: Array, error: Array) -> tuple[Array, Array]:
        """Values and standard errors (m,), by the delta method."""
        back, slope = self.linear(value)
        return back, np.abs(slope) * error

    def of_bounds(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Ends of intervals (m,), in increasing order."""
        ends = [self.linear(end)[0] for end in (low, high)]
        return np.minimum(*ends), np.maximum(*ends)

    def of_draws(self, draws: Array) -> Array:
        """Draws (S, m), each exactly."""
        if self.sd is None:
            return self.transform.values(draws)
        return self.transform.means(draws, np.broadcast_to(self.sd, (len(draws),)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Question:
    """What is asked about quantities of an estimate.

    Attributes
    ----------
    null : float or ndarray (m,)
        Values of the null hypotheses.
    side : str
        The alternative; intervals are one-sided too.
    scale : ResponseScale or None
        Where values and intervals are shown; tests are on the scale of the model.
    """

    null: float | Array = 0.0
    side: Side = "two-sided"
    scale: ResponseScale | None = None


ZERO = Question()
"""Two-sided tests against zero."""


@dataclass(frozen=True, slots=True, eq=False)
class EstimateSource:
    """An estimate: t statistics of linear combinations."""

    space: RowSpace
    inference: Inference
    design: Design | None = None

    def table(
        self,
        quantities: Combinations,
        index: pd.Index,
        level: float,
        adjust: Adjust,
        families: Sequence[Family],
        question: Question = ZERO,
    ) -> pd.DataFrame:
        """Estimates with tests and intervals, NaN where not estimable."""
        value, error, df = self.moments(quantities)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.where(error > 0, (value - question.null) / error, np.nan)
        covariance = self.covariance(quantities) if adjust in JOINT else None
        p_value, margin = np.full_like(value, np.nan), np.full_like(value, np.nan)
        for rows, means in families:
            tests = Comparisons(
                statistic=statistic[rows],
                df=df[rows],
                means=means,
                covariance=None if covariance is None else covariance[np.ix_(rows, rows)],
                side=question.side,
            )
            p_value[rows] = tests.p_values(adjust)
            margin[rows] = tests.critical_values(level, adjust) * error[rows]
        low, high = value - margin, value + margin
        if question.side == "less":
            low = np.where(np.isnan(margin), np.nan, -np.inf)
        elif question.side == "greater":
            high = np.where(np.isnan(margin), np.nan, np.inf)
        if question.scale is not None:
            low, high = question.scale.of_bounds(low, high)
            value, error = question.scale.of_estimates(value, error)
        columns = {
            "estimate": value,
            "std_error": error,
            "df": df,
            "statistic": statistic,
            "p_value": p_value,
            "conf_low": low,
            "conf_high": high,
        }
        return pd.DataFrame(columns, index=index)

    def covariance(self, quantities: Combinations) -> Array:
        """Covariance matrix (m, m) of the quantities."""
        weights = self.space.reduce(quantities.weights)
        return np.asarray(weights @ self.inference.vcov @ weights.T)

    def moments(self, quantities: Combinations) -> tuple[Array, Array, Array]:
        """Estimates, standard errors and degrees of freedom (m,)."""
        weights = self.space.reduce(quantities.weights)
        value = weights @ self.inference.fit.beta + quantities.constant
        variance = np.einsum("mi,ij,mj->m", weights, self.inference.vcov, weights)
        error = np.sqrt(np.maximum(variance, 0.0))
        df, known = np.full(len(value), np.nan), error > 0
        df[known] = self.inference.df(weights[known])
        return value, error, df


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorSource:
    """Posterior draws of the fixed effects (S, p), S = chains x draws."""

    space: RowSpace
    beta: Array
    shape: tuple[int, int]
    design: Design | None = None
    joint: JointDraws | None = None

    def values(self, quantities: Combinations) -> Array:
        """Draws (S, m) of the quantities, NaN where not estimable."""
        weights = self.space.reduce(quantities.weights)
        return np.asarray(self.beta @ weights.T + quantities.constant)

    def table(
        self, quantities: Combinations, index: pd.Index, prob: float | None, *, joint: bool
    ) -> pd.DataFrame:
        """Summaries of the draws; with `joint`, intervals that hold all quantities at once."""
        return summarise_known(self.values(quantities), index, prob, joint=joint)


def summarise_known(
    draws: Array, index: pd.Index, prob: float | None, *, joint: bool = False
) -> pd.DataFrame:
    """Summaries of draws (S, m), NaN where some are not finite; `joint` as in `PosteriorSource`."""
    known = np.isfinite(draws).all(axis=0)
    places = pd.RangeIndex(len(known))
    table = summarise(draws[:, known], places[known], prob)
    if joint and known.any():
        chosen, _ = interval_defaults(prob)
        lower, upper = simultaneous_interval(draws[:, known], chosen)
        names = [f"joint{100 * chosen:g}_lb", f"joint{100 * chosen:g}_ub"]
        table = table.iloc[:, :-2].assign(**dict(zip(names, (lower, upper), strict=True)))
    return table.reindex(places).set_axis(index)


Source = EstimateSource | PosteriorSource


def source_of_estimate(design: Design, inference: Inference) -> EstimateSource:
    """What stands behind the combinations of an estimate."""
    return EstimateSource(design.spec.fixed, inference, design)


def source_of_draws(design: Design, joint: JointDraws) -> PosteriorSource:
    """What stands behind the combinations of a posterior."""
    return PosteriorSource(design.spec.fixed, joint.beta, joint.shape, design, joint)
