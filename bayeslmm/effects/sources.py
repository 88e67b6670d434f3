"""Where the uncertainty of linear combinations comes from: an estimate or posterior draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.row_space import RowSpace, row_space
from bayeslmm.effects.adjust import (
    Adjust,
    adjusted_p,
    critical_values,
    simultaneous_interval,
)
from bayeslmm.effects.linear import Combinations
from bayeslmm.estimation.estimate import Fit
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import satterthwaite
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults, summarise

Array = NDArray[np.float64]
Family = tuple[NDArray[np.intp], int]
"""Places of contrasts that are adjusted together, and the number of means they compare."""

LEVEL = 0.95
"""Coverage of the intervals of estimates where none is given."""


MAP_NOTE = (
    "A MAP estimate: std_error is the posterior standard deviation given the covariance parameters "
    "at the mode; tests and intervals are normal (no t tests), the intervals credible ones."
)


def fit_notes(fit: Fit) -> tuple[str, ...]:
    """What a reader of tests of an estimate should know."""
    return (MAP_NOTE,) if fit.method == "MAP" else ()


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


@dataclass(frozen=True, slots=True, eq=False)
class EstimateSource:
    """An estimate: t statistics with Satterthwaite's degrees of freedom."""

    space: RowSpace
    fit: Fit

    def table(
        self,
        quantities: Combinations,
        index: pd.Index,
        level: float,
        adjust: Adjust,
        families: Sequence[Family],
    ) -> pd.DataFrame:
        """Estimates with tests and intervals, NaN where not estimable."""
        value, error, df = self.moments(quantities)
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic = np.where(error > 0, value / error, np.nan)
        p_value, margin = np.full_like(value, np.nan), np.full_like(value, np.nan)
        for rows, means in families:
            count = int(np.isfinite(statistic[rows]).sum())
            p_value[rows] = adjusted_p(statistic[rows], df[rows], adjust, means)
            margin[rows] = critical_values(level, df[rows], adjust, means, count) * error[rows]
        columns = {
            "estimate": value,
            "std_error": error,
            "df": df,
            "statistic": statistic,
            "p_value": p_value,
            "conf_low": value - margin,
            "conf_high": value + margin,
        }
        return pd.DataFrame(columns, index=index)

    def moments(self, quantities: Combinations) -> tuple[Array, Array, Array]:
        """Estimates, standard errors and degrees of freedom (m,)."""
        weights = self.space.reduce(quantities.weights)
        value = weights @ self.fit.beta + quantities.constant
        variance = np.einsum("mi,ij,mj->m", weights, self.fit.vcov, weights)
        error = np.sqrt(np.maximum(variance, 0.0))
        df = np.full(len(value), np.nan)
        for i in np.flatnonzero(error > 0):
            df[i] = satterthwaite(self.fit, weights[i])
        return value, error, df


@dataclass(frozen=True, slots=True, eq=False)
class PosteriorSource:
    """Posterior draws of the fixed effects (S, p), S = chains x draws."""

    space: RowSpace
    beta: Array
    shape: tuple[int, int]

    def values(self, quantities: Combinations) -> Array:
        """Draws (S, m) of the quantities, NaN where not estimable."""
        weights = self.space.reduce(quantities.weights)
        return np.asarray(self.beta @ weights.T + quantities.constant)

    def table(
        self, quantities: Combinations, index: pd.Index, prob: float | None, *, joint: bool
    ) -> pd.DataFrame:
        """Summaries of the draws; with `joint`, intervals that hold all quantities at once."""
        draws = self.values(quantities)
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


def source_of_fit(design: Design, fit: Fit) -> EstimateSource:
    """What stands behind the combinations of an estimate."""
    return EstimateSource(row_space(design), fit)


def source_of_draws(design: Design, joint: JointDraws) -> PosteriorSource:
    """What stands behind the combinations of a posterior."""
    return PosteriorSource(row_space(design), joint.beta, joint.shape)
