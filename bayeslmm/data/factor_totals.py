"""What is kept of rows for grouping factors with ``by=``, ``mm()`` or known relationships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import Codes
from bayeslmm.data.grouping import canonical, column_levels
from bayeslmm.data.level_sets import GroupingSets, SeenLevels, united
from bayeslmm.data.memberships import Member
from bayeslmm.data.relationships import LARGEST_DENSE, Relationship
from bayeslmm.data.strata import divided_levels
from bayeslmm.formula.grammar import RandomTerm
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]

_SEVERAL = -2
"""Stratum of a level whose rows are in several."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StratumTotals:
    """The strata of a term with ``by=``, and moments of its columns in each.

    Attributes
    ----------
    seen : SeenLevels
        The F strata.
    of_level : ndarray of int (J,)
        Stratum of each level of the grouping factor.
    sides, weighted : tuple of Moments
        In each stratum; with precision weights, and without.
    """

    seen: SeenLevels
    of_level: Codes
    sides: tuple[Moments, ...]
    weighted: tuple[Moments, ...]

    def merged(self, other: StratumTotals, places: tuple[Codes, Codes], size: int) -> StratumTotals:
        """Those of both sets of rows, whose levels are at places among `size`."""
        seen, mine, theirs = united(self.seen, other.seen)
        of_level = np.full(size, -1, dtype=np.intp)
        of_level[places[0]] = _moved(self.of_level, mine)
        found = _moved(other.of_level, theirs)
        known = of_level[places[1]]
        of_level[places[1]] = np.where((known == -1) | (known == found), found, _SEVERAL)
        count = len(seen)
        return StratumTotals(
            seen=seen,
            of_level=of_level,
            sides=_merged(self.sides, other.sides, mine, theirs, count),
            weighted=_merged(self.weighted, other.weighted, mine, theirs, count),
        )

    def check(self, term: RandomTerm, name: str, levels: NDArray[np.object_]) -> None:
        """Raise DataError where rows of a level are in several strata."""
        assert term.by is not None
        several = self.of_level == _SEVERAL
        if several.any():
            raise divided_levels(name, term.by, levels[several].tolist())


def _moved(values: Codes, places: Codes) -> Codes:
    return np.where(values < 0, values, places[np.maximum(values, 0)])


def _merged(
    first: Sequence[Moments],
    second: Sequence[Moments],
    mine: Codes,
    theirs: Codes,
    count: int,
) -> tuple[Moments, ...]:
    result: list[Moments | None] = [None] * count
    for own, places in ((first, mine), (second, theirs)):
        for moments, place in zip(own, places.tolist(), strict=True):
            known = result[place]
            result[place] = moments if known is None else known + moments
    return tuple(moments for moments in result if moments is not None)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FactorTotals:
    """What is kept of rows for one grouping factor.

    Attributes
    ----------
    slots : Moments or None
        Weighted covariates of all members of the rows, one below the other, with ``mm()``.
    effects : Moments or None
        Covariates of rows times the relative standard deviation of their effects, where this is not
        one: with ``mm()`` or a relationship.
    strata : tuple of StratumTotals or None
        Of each term, where it has ``by=``.
    """

    slots: Moments | None
    effects: Moments | None
    strata: tuple[StratumTotals | None, ...]

    def merged(self, other: FactorTotals, places: tuple[Codes, Codes], size: int) -> FactorTotals:
        """Those of both sets of rows, whose levels are at places among `size`."""
        pairs = zip(self.strata, other.strata, strict=True)
        return FactorTotals(
            slots=_sum(self.slots, other.slots),
            effects=_sum(self.effects, other.effects),
            strata=tuple(
                None if a is None or b is None else a.merged(b, places, size) for a, b in pairs
            ),
        )

    def placed(self, places: Codes) -> FactorTotals:
        """With the levels of strata in another order."""
        strata = []
        for own in self.strata:
            moved = own
            if own is not None:
                of_level = np.full(len(places), -1, dtype=np.intp)
                of_level[places] = own.of_level
                moved = replace(own, of_level=of_level)
            strata.append(moved)
        return replace(self, strata=tuple(strata))


def _sum(one: Moments | None, two: Moments | None) -> Moments | None:
    if one is None or two is None:
        return two if one is None else one
    return one + two


class RunningTotals:
    """The same of the rows of a reading, batch by batch.

    Parameters
    ----------
    terms : sequence of RandomTerm
        Of the grouping factor.
    relationship : Relationship or None
    """

    def __init__(self, terms: Sequence[RandomTerm], relationship: Relationship | None) -> None:
        self.terms, self.relationship = terms, relationship
        self._labels = None if relationship is None else canonical(relationship.labels)
        self._slots: Moments | None = None
        self._effects: Moments | None = None
        self._sets = [None if t.by is None else GroupingSets([(t.by,)]) for t in terms]
        self._of_level = [np.zeros(0, dtype=np.intp) for _ in terms]
        self._sides: list[tuple[dict[int, Moments], dict[int, Moments]]] = [({}, {}) for _ in terms]

    @classmethod
    def where_needed(
        cls, terms: Sequence[RandomTerm], relationship: Relationship | None
    ) -> RunningTotals | None:
        """None where moments of the columns tell everything."""
        plain = all(term.by is None and term.members is None for term in terms)
        return None if plain and relationship is None else cls(terms, relationship)

    def add(
        self,
        frame: pd.DataFrame,
        sides: Mapping[Side, Array],
        members: Sequence[Member],
        weights: Array | None,
        size: int,
    ) -> None:
        """Take in rows, of a number of levels so far."""
        covariates = np.hstack([sides[term.left] for term in self.terms])
        if self.terms[0].members is not None:
            parts = [member.slot(covariates).Z for member in members]
            several = None if weights is None else np.tile(weights, len(parts))
            self._slots = _sum(self._slots, Moments.of(np.vstack(parts), several))
        if self._has_effects:
            similar = self._similarity(frame, members)
            self._effects = _sum(self._effects, Moments.of(covariates, similar))
        for t, term in enumerate(self.terms):
            if term.by is not None:
                self._add_strata(t, frame, sides[term.left], members[0].codes, weights, size)

    @property
    def _has_effects(self) -> bool:
        """Whether effects have other relative deviations than one that can be had row by row."""
        known, pooled = self.relationship, self.terms[0].members is not None
        if known is not None and known.is_sparse and pooled:
            return len(known) <= LARGEST_DENSE
        return pooled or known is not None

    def _similarity(self, frame: pd.DataFrame, members: Sequence[Member]) -> Array:
        """Relative variance (n,) of the effects of rows."""
        places = [member.codes for member in members]
        if self.relationship is not None:
            places = self._places(frame, members)
        total = np.zeros(len(frame))
        for (one, a), (two, b) in product(zip(members, places, strict=True), repeat=2):
            known = self.relationship
            if known is None:
                same = np.asarray(a == b, dtype=float)
            else:
                same = known.variances[a] if a is b else known.between(a, b)
            if one.weights is not None and two.weights is not None:
                same = same * one.weights * two.weights
            total += same
        return total

    def _places(self, frame: pd.DataFrame, members: Sequence[Member]) -> list[Codes]:
        """Places of the levels of rows among those of the relationship; 0 where there is none."""
        assert self._labels is not None
        result = []
        for name, member in zip(self.terms[0].factors, members, strict=True):
            used = np.ones(len(frame), bool) if member.weights is None else member.weights != 0.0
            places = np.zeros(len(frame), dtype=np.intp)
            if used.any():
                codes, levels = column_levels(frame[name][used])
                places[used] = np.maximum(self._labels.get_indexer(levels), 0)[codes]
            result.append(places)
        return result

    def _add_strata(
        self,
        t: int,
        frame: pd.DataFrame,
        values: Array,
        codes: Codes,
        weights: Array | None,
        size: int,
    ) -> None:
        sets = self._sets[t]
        assert sets is not None
        rows = sets.add(frame)[0]
        known = np.full(size, -1, dtype=np.intp)
        known[: len(self._of_level[t])] = self._of_level[t]
        first = np.full(size, -1, dtype=np.intp)
        first[codes[::-1]] = rows[::-1]
        known = np.where(known == -1, first, known)
        known[codes[(known[codes] != rows)]] = _SEVERAL
        self._of_level[t] = known
        sides, weighted = self._sides[t]
        for stratum in np.unique(rows).tolist():
            own = values[rows == stratum]
            sides[stratum] = _added(sides.get(stratum), Moments.of(own))
            if weights is None:
                weighted[stratum] = sides[stratum]
            else:
                more = Moments.of(own, weights[rows == stratum])
                weighted[stratum] = _added(weighted.get(stratum), more)

    def finish(self, places: Codes) -> FactorTotals:
        """Those of all rows, with the levels in their order."""
        strata: list[StratumTotals | None] = []
        for sets, of_level, found in zip(self._sets, self._of_level, self._sides, strict=True):
            if sets is None:
                strata.append(None)
                continue
            seen, order = sets.finish()[0]
            numbers = np.argsort(order).tolist()
            strata.append(
                StratumTotals(
                    seen=seen,
                    of_level=_moved(of_level, order),
                    sides=tuple(found[0][number] for number in numbers),
                    weighted=tuple(found[1][number] for number in numbers),
                )
            )
        totals = FactorTotals(slots=self._slots, effects=self._effects, strata=tuple(strata))
        return totals.placed(places)


def _added(known: Moments | None, more: Moments) -> Moments:
    return more if known is None else known + more
