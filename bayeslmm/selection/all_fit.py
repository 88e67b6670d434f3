"""What several optimisers make of one model, with a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.searches import OPTIMISERS, OWN, Outcome, compare_searches
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.summaries.parameters import natural, parameters
from bayeslmm.summaries.text import frame_text

SAME = 1e-3
"""Deviance units within which two searches found the same minimum.

A shift of 0.03 standard errors of one parameter costs as much.
"""

APART = 0.1
"""Standard errors by which estimates of one minimum may differ before they are called apart."""


@dataclass(frozen=True, eq=False, repr=False)
class AllFit:
    """One model fitted by several optimisers; prints as a table with a verdict.

    Made by :meth:`bayeslmm.LMM.all_fit`.

    Attributes
    ----------
    method : {"REML", "ML"}
        The criterion.
    table : DataFrame
        By optimiser: criterion, above_best (its excess over the lowest one), converged (as the
        optimiser says), evaluations, seconds and message.
    parameters : DataFrame
        Estimates, optimisers by parameters such as ``"sd[Subject, Days]"``; NaN where one failed.
    std_errors : Series
        Standard errors of the estimate on the scale of `parameters`, of fixed effects only.
    """

    method: str
    table: pd.DataFrame
    parameters: pd.DataFrame
    std_errors: pd.Series

    @property
    def agree(self) -> bool:
        """Whether no optimiser found a lower criterion than the estimate of the package."""
        return bool(self.table.loc[OWN, "above_best"] <= SAME)

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        others = self.table.drop(index=OWN)
        same = others["above_best"] <= SAME
        best = self.table["criterion"].idxmin()
        if not self.agree:
            gap = self.table.loc[OWN, "above_best"]
            return (
                f"{best} found a criterion {gap:.3g} below that of the estimate, which then is "
                "not the best there is: do not use it, and please report this model."
            )
        words = (
            f"No search found a lower criterion than the estimate; {int(same.sum())} of "
            f"{len(others)} others end within {SAME:g} of it."
        )
        if len(worse := others.index[~same]):
            words += f" {', '.join(worse)} stopped early, or at another minimum."
        if far := self._apart(others.index[same]):
            words += (
                f" Yet {', '.join(far)} differ by more than {APART:g} standard errors between "
                "them: the data hardly determine these."
            )
        return words

    def _apart(self, names: pd.Index) -> list[str]:
        """Fixed effects in which searches of the same criterion differ."""
        shift = (self.parameters.loc[names] - self.parameters.loc[OWN]).abs().max()
        shift = shift.reindex(self.std_errors.index)
        return list(self.std_errors.index[shift > APART * self.std_errors])

    def __repr__(self) -> str:
        shown = self.table.drop(columns="message")
        head = f"{self.method} criterion minimised by {len(shown)} searches"
        parts = [head, frame_text(shown), "", frame_text(self.parameters), "", self.verdict]
        return "\n".join(parts)


def all_fit(
    design: Design,
    plan: Plan,
    fit: Fit,
    method: Literal["REML", "ML"],
    optimisers: Sequence[str] | None,
) -> AllFit:
    """Fit a model by several optimisers; arguments as of ``model.all_fit()``."""
    chosen = OPTIMISERS if optimisers is None else tuple(optimisers)
    if isinstance(optimisers, str) or (unknown := set(chosen) - set(OPTIMISERS)):
        what = optimisers if isinstance(optimisers, str) else ", ".join(sorted(unknown))
        raise ValueError(
            f"optimisers={what!r}: a list of some of {', '.join(map(repr, OPTIMISERS))} is "
            "expected."
        )
    outcomes = compare_searches(plan, fit, method, tuple(dict.fromkeys((OWN, *chosen))))
    rows = parameters(design)
    values = pd.DataFrame(
        [_natural(design, outcome) for outcome in outcomes],
        index=pd.Index([outcome.name for outcome in outcomes], name="optimiser"),
        columns=[row.label for row in rows],
    )
    errors = pd.Series(
        np.sqrt(np.diag(fit.vcov)), index=[row.label for row in rows[: len(fit.beta)]]
    )
    return AllFit(method, _table(outcomes), values, errors)


def _natural(design: Design, outcome: Outcome) -> list[float]:
    rows = parameters(design)
    if outcome.fit is None:
        return [np.nan] * len(rows)
    found = np.concatenate([outcome.fit.beta, outcome.fit.parameters])
    return [float(natural(row.kind, value)) for row, value in zip(rows, found, strict=True)]


def _table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    criterion = [np.nan if one.fit is None else one.fit.criterion for one in outcomes]
    table = pd.DataFrame(
        {
            "criterion": criterion,
            "above_best": np.array(criterion) - np.nanmin(criterion),
            "converged": [one.converged for one in outcomes],
            "evaluations": [one.evaluations for one in outcomes],
            "seconds": [one.seconds for one in outcomes],
            "message": [one.message for one in outcomes],
        },
        index=pd.Index([one.name for one in outcomes], name="optimiser"),
    )
    return table
