"""Influence of the rows or levels of any data on an estimate; of many rows the extremes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bayeslmm.checks.influence import (
    CHANCE_OF_FAR,
    FAR,
    HIGH_LEVERAGE,
    LARGE_ROW_COOK,
    NO_FIXED,
    GroupInfluence,
    RowInfluence,
    group_influence,
    more_than_chance,
    row_influence,
)
from bayeslmm.checks.integrated import packed_cases
from bayeslmm.data.design import Design
from bayeslmm.data.row_tables import streams
from bayeslmm.data.second_pass import SOME_GROUPS, gathered, row_parts
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.executor import Executor, require_executor
from bayeslmm.summaries.text import Report, counted, listed

NAMED = 5
"""Rows of a kind that are named."""

EXTREME = 100
"""Rows with the largest value of each kind that are kept."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class RowExtremes(Report):
    """The most influential of many rows, at the covariance parameters of an estimate.

    Attributes
    ----------
    table : pandas.DataFrame
        The hundred rows with the largest leverage, standardised residual or Cook's distance, with
        the columns of :class:`~bayeslmm.checks.influence.RowInfluence`, by their number in the
        source. ``augment(influence=True, out=...)`` writes those of all rows.
    n : int
        Number of all rows.
    counts : mapping of str to int
        How many of these have a Cook's distance above one ("cooks_distance"), a leverage above
        twice the mean ("leverage") and a standardised residual beyond three ("standardised").
    """

    table: pd.DataFrame
    n: int
    counts: Mapping[str, int]

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        return f"Influence of {self.n} rows on the fitted values"

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice."""
        found, counts = [], self.counts
        if counts["cooks_distance"]:
            found.append(
                f"{counted(counts['cooks_distance'], 'row')} with a Cook's distance above "
                f"{LARGE_ROW_COOK:g}, the largest: {self._largest('cooks_distance')}. Rows of one "
                "level act together: look at check.influence(by=...) too."
            )
        if counts["leverage"]:
            found.append(
                f"{counted(counts['leverage'], 'row')} with a leverage above twice the mean, the "
                f"largest: {self._largest('leverage')}. Their covariates are unusual, whatever "
                "their response."
            )
        far = float(self.table["standardised"].abs().max())
        if counts["standardised"] and more_than_chance(counts["standardised"], far, self.n):
            found.append(
                f"{counted(counts['standardised'], 'row')} more than three standard deviations "
                f"from the fitted value ({self.n * CHANCE_OF_FAR:.1f} expected), the largest: "
                f"{self._largest('standardised')}."
            )
        none = [NO_FIXED] if self.table["cooks_distance"].isna().all() else []
        return (*none, *(found or ["No row stands out."]))

    def _largest(self, name: str) -> str:
        return listed(_top(self.table, name, NAMED).index, NAMED)

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        name = "cooks_distance"
        if self.table[name].isna().all():
            largest = _top(self.table, "standardised", NAMED)
            return {"The five largest standardised residuals": largest}
        return {"The five largest Cook's distances": _top(self.table, name, NAMED)}


def influence(
    design: Design,
    fit: Fit,
    by: str | None = None,
    *,
    executor: Executor | None = None,
    progressbar: bool = True,
) -> RowInfluence | RowExtremes | GroupInfluence:
    """Influence of single rows, or of the levels of `by`, on an estimate."""
    require_executor(executor)
    if streams(design):
        if by is None:
            return row_extremes(design, fit)
        pack = packed_cases(design, by)
        return group_influence(
            pack.design, fit, by, pack=pack, executor=executor, progressbar=progressbar
        )
    design = gathered(design, "Influence", SOME_GROUPS)
    if by is None:
        return row_influence(design, fit)
    return group_influence(design, fit, by, executor=executor, progressbar=progressbar)


def row_extremes(design: Design, fit: Fit) -> RowExtremes:
    """The most influential rows, in two readings: that of the mean leverage comes first."""
    total, n = 0.0, 0
    for part in row_parts(design):
        leverage = row_influence(part, fit).table["leverage"]
        total, n = total + float(leverage.sum()), n + part.n
    counts = dict.fromkeys(("cooks_distance", "leverage", "standardised"), 0)
    kept: list[pd.DataFrame] = []
    for part in row_parts(design):
        table = row_influence(part, fit).table
        counts["cooks_distance"] += int((table["cooks_distance"] > LARGE_ROW_COOK).sum())
        counts["leverage"] += int((table["leverage"] > HIGH_LEVERAGE * total / n).sum())
        counts["standardised"] += int((table["standardised"].abs() > FAR).sum())
        kept = [_extremes(pd.concat([*kept, table]))]
    return RowExtremes(table=kept[0], n=n, counts=counts)


def _extremes(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with the largest value of each kind, in their order."""
    names = ("cooks_distance", "leverage", "standardised")
    places = [_top(table.reset_index(drop=True), name, EXTREME).index for name in names]
    return table.iloc[np.unique(np.concatenate(places))]


def _top(table: pd.DataFrame, name: str, count: int) -> pd.DataFrame:
    size = table[name].abs().fillna(-np.inf)
    return table.iloc[np.argsort(-size.to_numpy(), kind="stable")[:count]]
