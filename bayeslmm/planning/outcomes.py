"""What results of simulated studies have in common: sizes, proportions with errors, notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.exceptions import DataError
from bayeslmm.planning.simulations import Outcome
from bayeslmm.planning.targets import Target

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

    from bayeslmm.plots.common import Drawing

Array = NDArray[np.float64]

SIZE = "size"
"""Name of the level of the index that counts levels or rows."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plans:
    """Studies of one or several sizes whose data sets were simulated.

    Attributes
    ----------
    formula : str
        The model of analysis.
    targets : tuple of Target
        What was asked of each data set.
    outcomes : tuple of Outcome
        Analyses, by size.
    sizes : tuple of int
        Numbers of levels or rows; nothing where there is one study as it is.
    counted : str
        What they count, in words.
    rows : tuple of int
        Numbers of rows of the studies.
    """

    formula: str
    targets: tuple[Target, ...]
    outcomes: tuple[Outcome, ...]
    sizes: tuple[int, ...] = ()
    counted: str = ""
    rows: tuple[int, ...] = ()

    def index(self) -> pd.Index:
        """Effects, or sizes and effects."""
        labels = [target.label for target in self.targets]
        if not self.sizes:
            return pd.Index(labels, name="effect")
        return pd.MultiIndex.from_product([self.sizes, labels], names=[SIZE, "effect"])

    def pairs(self) -> Iterator[tuple[Outcome, int]]:
        """Outcome and place of the target of each row of the index."""
        for outcome in self.outcomes:
            for place in range(len(self.targets)):
                yield outcome, place

    def runs(self, figures: Sequence[str]) -> pd.DataFrame:
        """One row per data set and effect, with the true value and figures."""
        parts = []
        for k, outcome in enumerate(self.outcomes):
            for place, target in enumerate(self.targets):
                part: dict[str, Any] = {SIZE: self.sizes[k]} if self.sizes else {}
                part |= {"effect": target.label, "simulation": outcome.completed}
                part |= {"truth": outcome.truth[:, place]}
                part |= dict(zip(figures, outcome.values[:, place].T, strict=True))
                parts.append(pd.DataFrame(part))
        return pd.concat(parts, ignore_index=True)

    def curve(
        self,
        table: pd.DataFrame,
        share: str,
        how: Drawing,
        target: float | None,
        alpha: float | None = None,
    ) -> PlotCollection:
        """Draw a share of the data sets by size; `table` has it under its name."""
        from bayeslmm.plots.power import plot_curve

        if not self.sizes:
            raise DataError(
                "There is one size only: power_curve() and assurance(sizes=) of a study make a "
                "curve."
            )
        shares = table.rename(columns={share: "share"})
        return plot_curve(shares, self.counted, share, how, target, alpha)

    @property
    def heading(self) -> str:
        """What was simulated."""
        per = self.outcomes[0].size
        rows = f"{self.rows[0]} rows" if not self.sizes else f"each number of {self.counted}"
        return f"{per} simulated data sets of {rows}\nFormula: {self.formula}"

    def notes(self) -> Iterator[str]:
        """Failed, singular and unconverged fits, in words."""
        total = sum(outcome.size for outcome in self.outcomes)
        failed = [message for o in self.outcomes for message in o.failures.values()]
        if failed:
            yield (
                f"{len(failed)} of {total} analyses failed and count as showing nothing. The "
                f"first: {failed[0]}"
            )
        for name, words in (("singular", "are singular"), ("converged", "did not converge")):
            found = [getattr(outcome, name) for outcome in self.outcomes]
            count = sum(int(np.sum(own if name == "singular" else ~own)) for own in found)
            if count:
                yield f"{count} of {total} fits {words}; their tests are counted."


def proportion(count: int, size: int, level: float) -> dict[str, float]:
    """A proportion with its exact (Clopper-Pearson) interval."""
    tail = 0.5 * (1.0 - level)
    low = stats.beta.ppf(tail, count, size - count + 1) if count else 0.0
    high = stats.beta.ppf(1.0 - tail, count + 1, size - count) if count < size else 1.0
    return {"share": count / size, "conf_low": float(low), "conf_high": float(high)}
