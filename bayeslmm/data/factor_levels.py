"""Levels of the grouping factors of terms, batch by batch, also of rows that belong to several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from bayeslmm.data.frames import Codes
from bayeslmm.data.level_sets import GroupingSets, LevelSet, SeenLevels, of_cells
from bayeslmm.data.memberships import Member, members_of, pooled_members
from bayeslmm.exceptions import DataError
from bayeslmm.formula.grammar import RandomTerm


class FactorLevels:
    """Levels of all grouping factors of a formula, numbered as they come.

    Parameters
    ----------
    groups : sequence of sequence of RandomTerm
        The terms of each grouping factor.
    """

    def __init__(self, groups: Sequence[Sequence[RandomTerm]]) -> None:
        self.terms = [terms[0] for terms in groups]
        self._pools = {
            f: LevelSet(term.group) for f, term in enumerate(self.terms) if term.members is not None
        }
        plain = [term.factors for term in self.terms if term.members is None]
        self._sets = GroupingSets(plain)

    @property
    def sizes(self) -> list[int]:
        """Number of levels of each so far."""
        plain = iter(self._sets.sizes)
        return [
            len(self._pools[f]) if f in self._pools else next(plain) for f in range(len(self.terms))
        ]

    def add(self, frame: pd.DataFrame) -> list[tuple[Member, ...]]:
        """Take in the complete rows of a batch; levels of each row by grouping factor."""
        plain = iter(self._sets.add(frame))
        return [
            self._pooled(f, frame) if f in self._pools else (_member(next(plain)),)
            for f in range(len(self.terms))
        ]

    def _pooled(self, f: int, frame: pd.DataFrame) -> tuple[Member, ...]:
        term = self.terms[f]
        assert term.members is not None
        long, pool = pooled_members(frame, term.factors, term.members)
        codes = np.zeros(0, dtype=np.intp)
        if len(long):
            codes = self._pools[f].add(long[term.factors[0]].rename(term.group))
        return members_of(codes, codes, *pool)

    def finish(self) -> list[tuple[SeenLevels, Codes]]:
        """The factors, and the place (J,) of each number among the levels.

        Raises
        ------
        DataError
            If no row has a member with a weight.
        """
        plain = iter(self._sets.finish())
        result = []
        for f, term in enumerate(self.terms):
            if f not in self._pools:
                result.append(next(plain))
                continue
            if not len(self._pools[f]):
                raise DataError(f"{term.source}: the weights of all members are 0.")
            part, place = self._pools[f].finish()
            cells = place[:, None]
            result.append(of_cells((term.group,), [part], cells, (self._pools[f].categories,)))
        return result


def _member(codes: Codes) -> Member:
    return Member(codes, codes)


def member_counts(members: Sequence[Member], size: int) -> Codes:
    """Rows (J,) that belong to each level."""
    if len(members) == 1:
        return np.bincount(members[0].codes, minlength=size)
    rows, codes = [], []
    for member in members:
        used = np.flatnonzero(
            np.ones(len(member.codes)) if member.weights is None else member.weights
        )
        rows.append(used)
        codes.append(member.codes[used])
    pairs = np.unique(np.column_stack([np.concatenate(rows), np.concatenate(codes)]), axis=0)
    return np.bincount(pairs[:, 1], minlength=size)
