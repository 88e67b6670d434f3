"""The residual structure of data beyond memory: levels, times and covariates, in one reading."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.batches import Batch, located
from bayeslmm.data.frames import Codes
from bayeslmm.data.level_sets import GroupingSets
from bayeslmm.data.residual_rows import (
    ResidualFacts,
    ResidualSpec,
    check_columns,
    covariate,
    has_unit,
    level_columns,
    plain_covariate,
    spec_of_facts,
    typical_distances,
)
from bayeslmm.data.whole_groups import run_starts, whole_groups
from bayeslmm.exceptions import DataError
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.residual import ResidualFormula, ResidualTerm

Array = NDArray[np.float64]

MOST_DISTANCES = 1 << 22
"""Different distances of which the median is found."""


def surveyed_residual(formula: ResidualFormula, batches: Iterable[Batch]) -> ResidualSpec:
    """Find the levels, times and covariates of a residual structure, batch by batch.

    Parameters
    ----------
    formula : ResidualFormula
    batches : iterable of Batch
        All rows; those of a group of correlated residuals one after the other.

    Raises
    ------
    DataError
        If the structure cannot be had on these data, or rows of a group are apart.
    """
    found = _Survey(formula)
    if not formula.correlation and not formula.strata and not formula.powers:
        return found.finish()
    for batch in whole_batches(formula, batches):
        located(batch, partial(found.add, batch.frame))
    return found.finish()


def whole_batches(formula: ResidualFormula, batches: Iterable[Batch]) -> Iterable[Batch]:
    """Batches of whole groups, where residuals of a group are correlated."""
    term = formula.correlation
    return batches if term is None else whole_groups(batches, term.group, term.text)


class _Survey:
    def __init__(self, formula: ResidualFormula) -> None:
        self.formula = formula
        self.roles: dict[str, tuple[str, ...]] = {}
        self.sets: GroupingSets | None = None
        self.moments: list[Moments] = []
        self.largest = 0
        self.distances = _Counts()

    def add(self, frame: pd.DataFrame) -> None:
        """Take in the rows of some groups, all rows of each."""
        check_columns(self.formula, frame)
        if self.sets is None:
            self.roles = level_columns(self.formula, frame)
            self.sets = GroupingSets(list(self.roles.values()))
        before = dict(zip(self.roles, self.sets.sizes, strict=True))
        codes = dict(zip(self.roles, self.sets.add(frame), strict=True))
        if (term := self.formula.correlation) is not None:
            self._add_groups(term, frame, codes["group"], before["group"])
        values = [plain_covariate(one).values(frame) for one in self.formula.powers]
        more = [Moments.of(own[:, None]) for own in values]
        known = self.moments
        self.moments = [a + b for a, b in zip(known, more, strict=True)] if known else more

    def _add_groups(
        self, term: ResidualTerm, frame: pd.DataFrame, codes: Codes, before: int
    ) -> None:
        starts = run_starts(frame, term.group)
        runs = codes[starts]
        again = runs < before
        again[np.setdiff1d(np.arange(len(runs)), np.unique(runs, return_index=True)[1])] = True
        if again.any():
            row = frame.iloc[starts[int(again.argmax())]]
            shown = ":".join(str(row[name]) for name in term.group)
            raise DataError(
                f"{term.text}: rows of `{shown}` of {':'.join(term.group)} are in two places with "
                "other rows between them. Data that are read in batches need the rows of a group "
                f"one after the other: sort the source by {', '.join(term.group)}, or read it into "
                "a data frame."
            )
        self.largest = max(self.largest, int(np.diff(np.append(starts, len(frame))).max()))
        if has_unit(term):
            number = np.unique(codes, return_inverse=True)[1]
            self.distances.add(typical_distances(term, frame, number), term)

    def finish(self) -> ResidualSpec:
        """The structure of all rows."""
        covariates = []
        for term, found in zip(self.formula.powers, self.moments, strict=True):
            mean, sd = float(found.means[0]), float(np.sqrt(found.variances[0]))
            covariates.append(covariate(term, mean, sd, constant=bool(found.constant[0])))
        levels = [] if self.sets is None else [seen.factor for seen, _ in self.sets.finish()]
        facts = ResidualFacts(
            levels=dict(zip(self.roles, levels, strict=True)),
            covariates=tuple(covariates),
            largest=self.largest,
            unit=self.distances.median(),
        )
        return spec_of_facts(self.formula, facts)


class _Counts:
    """Different values and how often each occurred, for their median."""

    def __init__(self) -> None:
        self.values: Array = np.zeros(0)
        self.counts: Codes = np.zeros(0, dtype=np.intp)

    def add(self, values: Array, term: ResidualTerm) -> None:
        both, place = np.unique(np.concatenate([self.values, values]), return_inverse=True)
        weights = np.concatenate([self.counts, np.ones(len(values), dtype=np.intp)])
        self.values = both
        self.counts = np.bincount(place.ravel(), weights, len(both)).astype(np.intp)
        if len(both) > MOST_DISTANCES:
            raise DataError(
                f"{term.text}: rows of a group are at more than {MOST_DISTANCES:,} different "
                "distances, too many for sums over rows. Round the times or coordinates, or read "
                "the data into a data frame."
            )

    def median(self) -> float:
        """That of all values, as numpy's; 1 where there are none."""
        if not len(self.values):
            return 1.0
        ends = np.cumsum(self.counts)
        middle = np.searchsorted(ends, [(ends[-1] - 1) // 2, ends[-1] // 2], side="right")
        return float(np.mean(self.values[middle]))
