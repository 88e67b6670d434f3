"""Assurance: what posteriors of a planned study's data sets are expected to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.planning.outcomes import Plans, proportion
from bayeslmm.planning.posteriors import FIGURES
from bayeslmm.summaries import text
from bayeslmm.summaries.parameters import probability

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Assurance:
    """Chances that the posterior of a planned study shows something; prints as a table.

    Made by :meth:`bayeslmm.Study.assurance`.

    Attributes
    ----------
    plans : Plans
        The simulations.
    threshold : float
        Posterior probability from which on a hypothesis counts as shown.
    prob : float
        Coverage of the posterior intervals.
    rope : tuple of float or None
        Region of practical equivalence.

    References
    ----------
    O'Hagan, Stevens, Campbell (2005), doi:10.1002/pst.175 for assurance; Joseph, Bélisle (1997),
    doi:10.1111/1467-9884.00077 for the expected width of intervals; Kruschke (2018),
    doi:10.1177/2515245918771304 for decisions by a region of practical equivalence.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> design = blm.simulate_design({"g": 8, "x": range(4)})
    >>> truth = {"x": 0.5, "sd[g]": 1.0, "sigma": 1.0}
    >>> study = blm.LMM.planned("y ~ x + (1 | g)", design, truth)
    >>> found = study.assurance("x > 0", n=5, random_seed=1, progressbar=False)
    >>> found.table().columns.tolist()[:4]
    ['assurance', 'conf_low', 'conf_high', 'probability']
    """

    plans: Plans
    threshold: float
    prob: float
    rope: tuple[float, float] | None = None

    def table(self, level: float = 0.95) -> pd.DataFrame:
        """Assurance and its Monte Carlo error, and the intervals that are to be expected.

        Parameters
        ----------
        level : float
            Coverage of the interval of the assurance.

        Returns
        -------
        pandas.DataFrame
            One row per effect, or per size and effect. Columns: assurance, the share of data sets
            whose posterior probability of the hypothesis exceeds the threshold (of a coefficient or
            a hypothesis with ``=``: whose interval excludes zero), with conf_low and conf_high;
            probability, its mean; width and width_sd, mean and standard deviation of the width of
            the intervals; coverage, the share of intervals that hold the true value; with a region
            of practical equivalence, rope_inside and rope_outside, the shares of intervals that lie
            within it and beside it; n and failed, the numbers of data sets and of analyses that
            failed, which show nothing.
        """
        level = probability(level, "level")
        rows = []
        for outcome, place in self.plans.pairs():
            relation = self.plans.targets[place].relation
            values, truth = outcome.values[:, place], outcome.truth[:, place]
            shown = int(np.sum(self._shown_by(values, relation)))
            found = proportion(shown, outcome.size, level)
            row: dict[str, Any] = {"assurance": found.pop("share"), **found}
            row |= self._intervals(values, truth, outcome.size)
            rows.append(row | {"n": outcome.size, "failed": len(outcome.failures)})
        return pd.DataFrame(rows, index=self.plans.index())

    def _shown_by(self, values: Array, relation: str) -> NDArray[np.bool_]:
        if relation == "=":
            return np.asarray((values[:, 3] > 0.0) | (values[:, 4] < 0.0))
        return np.asarray(values[:, 2] > self.threshold)

    def _intervals(self, values: Array, truth: Array, size: int) -> dict[str, float]:
        low, high = values[:, 3], values[:, 4]
        width = high - low
        found = {
            "probability": float(values[:, 2].mean()),
            "width": float(width.mean()),
            "width_sd": float(width.std()),
            "coverage": float(np.mean((low <= truth) & (truth <= high))),
        }
        if self.rope is not None:
            inside = (low >= self.rope[0]) & (high <= self.rope[1])
            outside = (low > self.rope[1]) | (high < self.rope[0])
            found |= {"rope_inside": inside.sum() / size, "rope_outside": outside.sum() / size}
        return found

    def runs(self) -> pd.DataFrame:
        """Each data set: truth and the posterior's mean, sd, probability and interval."""
        return self.plans.runs(FIGURES)

    def plot(
        self,
        *,
        level: float = 0.95,
        target: float | None = 0.8,
        backend: Any = None,
        visuals: Mapping[str, Any] | None = None,
        **pc_kwargs: Any,
    ) -> PlotCollection:
        """Draw assurance by size, a panel per effect.

        Arguments are those of :meth:`bayeslmm.planning.power.Power.plot`.

        Raises
        ------
        DataError
            If there is one size only.
        """
        from bayeslmm.plots.common import drawing

        how = drawing(backend, visuals, pc_kwargs)
        return self.plans.curve(self.table(level), "assurance", how, target)

    @property
    def notes(self) -> tuple[str, ...]:
        """What counts as shown, and failed analyses, in words."""
        shown = (
            f"A hypothesis is shown by a posterior probability above {self.threshold:g}, a "
            f"difference by a {self.prob:.0%} interval without zero."
        )
        return (shown, *self.plans.notes())

    def __repr__(self) -> str:
        return "\n".join([self._heading(), text.frame_text(self.table()), *self.notes])

    def _repr_html_(self) -> str:
        return text.html_page(self._heading(), self.table(), self.notes)

    def _heading(self) -> str:
        return f"Assurance, {self.plans.heading}"
