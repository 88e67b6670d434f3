"""Subpopulations of the levels of a grouping factor, with covariance matrices of their own.

In ``(x | g, by=f)`` every level of g belongs to one level of f, its *stratum*, whose covariance
matrix it has. A coefficient is kept once for each stratum, its covariates being zero in the rows of
others: a level's coefficients of other strata touch no data, have no part in any answer and are
not shown. The coefficients of the own stratum of each level are its *own* ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import read_only
from bayeslmm.data.grouping import (
    GroupingFactor,
    grouping_factor,
    is_continuous,
    lookup_levels,
)
from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula.grammar import RandomTerm

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MOST = 30
"""Coefficients of a term, all strata together: the work grows with their cube."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Strata:
    """The strata of the levels of a grouping factor, and the coefficients of one term in each.

    Attributes
    ----------
    of : GroupingFactor
        The column, with its F levels.
    of_level : ndarray of int (J,)
        Stratum of each level of the grouping factor.
    coefs : tuple of str
        Labels (w,) of the coefficients of the term.
    places : ndarray of int (F, w)
        Their places among all coefficients of the grouping factor.
    """

    of: GroupingFactor
    of_level: Indices
    coefs: tuple[str, ...]
    places: Indices

    @property
    def names(self) -> tuple[str, ...]:
        """Strata as coefficients are labelled: ``"arm[A]"``."""
        return stratum_names(self.of)

    def labelled(self) -> Iterator[tuple[int, str]]:
        """Place and label of each coefficient, its stratum left out."""
        for row in self.places.tolist():
            yield from zip(row, self.coefs, strict=True)

    def number(self, columns: Sequence[int]) -> int | None:
        """The stratum that has these coefficients; None where they are of another term."""
        found = np.flatnonzero(np.any(np.isin(self.places, columns), axis=1))
        return int(found[0]) if len(found) else None

    def rows(
        self, frame: pd.DataFrame, codes: Indices, name: str, labels: Sequence[str]
    ) -> Indices:
        """Stratum of each of n new rows.

        Parameters
        ----------
        frame : pandas.DataFrame
        codes : ndarray of int (n,)
            Level of each row: from J on for levels that are new, -1 where there are none.
        name : str
            The grouping factor.
        labels : sequence of str
            All levels, known and new.

        Raises
        ------
        DataError
            If a stratum is new, or a level is in another stratum than before, or in two.
        """
        variable = self.of.name
        found = lookup_levels(self.of, frame)
        if np.any(found < 0):
            values = list(dict.fromkeys(map(str, frame[variable][found < 0])))
            raise DataError(
                f"`{name}` has a covariance matrix for each of {listed(list(self.names))}; none is "
                f"known for {variable} = {listed(values)}. Take these rows out."
            )
        known = (codes >= 0) & (codes < len(self.of_level))
        moved = np.flatnonzero(known & (self.of_level[np.where(known, codes, 0)] != found))
        if len(moved):
            level = int(codes[moved[0]])
            raise DataError(
                f"Level {labels[level]!r} of `{name}` was in {self.names[self.of_level[level]]} "
                f"when the model was built and is in {self.names[found[moved[0]]]} here; give the "
                f"rows the same {variable}, or the level another name."
            )
        new = np.flatnonzero(codes >= len(self.of_level))
        first = pd.Series(found[new]).groupby(codes[new]).transform("first").to_numpy()
        if len(split := new[first != found[new]]):
            raise divided_levels(name, variable, [labels[int(codes[split[0]])]])
        return found


def stratum_names(of: GroupingFactor) -> tuple[str, ...]:
    """Levels of a column as coefficients are labelled: ``"arm[A]"``."""
    return tuple(f"{of.name}[{label}]" for label in of.levels)


def find_strata(
    source: str,
    term: RandomTerm,
    frame: pd.DataFrame,
    codes: Indices,
    grouping: GroupingFactor,
) -> tuple[Indices, GroupingFactor, Indices]:
    """Find the strata of a term with ``by=``.

    Parameters
    ----------
    source : str
        The formula.
    term : RandomTerm
    frame : pandas.DataFrame
        n complete rows.
    codes : ndarray of int (n,)
        Level of the grouping factor of each row.
    grouping : GroupingFactor

    Returns
    -------
    rows : ndarray of int (n,)
        Stratum of each row.
    of : GroupingFactor
        The F strata as levels of the column.
    of_level : ndarray of int (J,)
        Stratum of each level of the grouping factor.

    Raises
    ------
    FormulaError
        If the column is continuous.
    DataError
        If it has one level, or several within a level of the grouping factor, or one level of the
        grouping factor in one of its own.
    """
    assert term.by is not None
    check_by(source, term, frame)
    rows, of = grouping_factor(frame, (term.by,))
    first = np.zeros(len(grouping.levels), dtype=np.intp)
    first[codes[::-1]] = rows[::-1]
    divided = np.unique(codes[first[codes] != rows])
    if len(divided):
        raise divided_levels(grouping.name, term.by, grouping.levels[divided].tolist())
    check_strata(term, grouping.name, of, first)
    return rows, of, first


def check_by(source: str, term: RandomTerm, frame: pd.DataFrame) -> None:
    """Raise FormulaError where the column of strata is continuous."""
    if term.by is not None and is_continuous(frame[term.by]):
        raise FormulaError(
            f"by={term.by} holds numbers that are not whole, so it cannot name strata of "
            f"`{term.group}`; it needs a factor.",
            source,
            *term.span,
        )


def check_strata(term: RandomTerm, name: str, of: GroupingFactor, of_level: Indices) -> None:
    """Raise DataError where there is one stratum, or one of one level."""
    if len(of.levels) == 1:
        raise DataError(
            f"by={term.by} has one level, {of.levels[0]!r}, in the complete rows: take it out of "
            f"{term.source}."
        )
    counts = np.bincount(of_level, minlength=len(of.levels))
    if len(alone := np.flatnonzero(counts < 2)):
        names = [stratum_names(of)[at] for at in alone]
        raise DataError(
            f"by={term.by}: there is one level of `{name}` in {listed(names)}; a variance "
            "between levels needs at least two. Join strata, or take by= out."
        )


def check_size(term: RandomTerm, size: int, width: int) -> None:
    """Raise DataError for too many coefficients of all strata together."""
    if size * width > MOST:
        raise DataError(
            f"{term.source} has {size * width} coefficients in {size} levels of `{term.by}`; at "
            f"most {MOST} are supported. Join levels of `{term.by}`, or take by= out."
        )


def divided_levels(name: str, variable: str, levels: Sequence[str]) -> DataError:
    """What to say of levels with several values of the column."""
    return DataError(
        f"by={variable} needs one value of `{variable}` in each level of `{name}`; there are "
        f"several in {listed(list(levels))}."
    )


def spread_columns(values: Array, rows: Indices, size: int) -> Array:
    """Columns (n, F w) that are those of `values` (n, w) in the stratum of a row, else zero."""
    n, width = values.shape
    result = np.zeros((n, size, width))
    result[np.arange(n), rows] = values
    return result.reshape(n, size * width)


def term_strata(of: GroupingFactor, of_level: Indices, coefs: Sequence[str], start: int) -> Strata:
    """The strata of a term whose first coefficient is the one at `start`."""
    places = start + np.arange(len(of.levels) * len(coefs)).reshape(len(of.levels), len(coefs))
    return Strata(of=of, of_level=of_level, coefs=tuple(coefs), places=read_only(places))


def plain_labels(first: Sequence[str], of: GroupingFactor) -> list[str]:
    """Labels of coefficients from those of the first stratum."""
    return [label.removesuffix(f":{stratum_names(of)[0]}") for label in first]


def stratum_coefs(coefs: Sequence[str], of: GroupingFactor) -> list[str]:
    """Labels (F w,) of the coefficients of all strata: ``"Days:arm[A]"``."""
    return [f"{coef}:{name}" for name in stratum_names(of) for coef in coefs]
