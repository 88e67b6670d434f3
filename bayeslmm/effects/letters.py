"""Compact letter displays: means that share a letter do not differ significantly."""

from __future__ import annotations

import string

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]

NOTE = (
    "Means that share a letter were not shown to differ; that does not make them equal. Letters "
    "hide how large differences are and how surely they are known: report contrasts as well."
)

LETTERS = string.ascii_lowercase + string.ascii_uppercase


def compact_letters(different: Flags) -> list[str]:
    """Letters of k means, such that two share one if and only if they do not differ.

    Parameters
    ----------
    different : ndarray of bool (k, k)
        Which pairs differ, symmetric. Letters are given in the order of the means.

    Returns
    -------
    list of str

    Raises
    ------
    ValueError
        If there are more groups than letters.

    References
    ----------
    Piepho (2004), doi:10.1198/1061860043515: insert, absorb and sweep.
    """
    columns = [np.ones(len(different), dtype=bool)]
    for i, j in np.argwhere(np.triu(different, 1)):
        columns = _absorbed(_inserted(columns, int(i), int(j)))
    columns = [column for column in _swept(columns) if column.any()]
    if len(columns) > len(LETTERS):
        raise ValueError(
            f"{len(columns)} groups are needed, more than there are letters ({len(LETTERS)})."
        )
    columns.sort(key=lambda column: tuple(np.flatnonzero(column)))
    return [
        "".join(LETTERS[c] if column[i] else "" for c, column in enumerate(columns))
        for i in range(len(different))
    ]


def _inserted(columns: list[Flags], i: int, j: int) -> list[Flags]:
    """Each group with both of a pair that differs becomes two, without the one and the other."""
    found = []
    for column in columns:
        if column[i] and column[j]:
            for place in (i, j):
                part = column.copy()
                part[place] = False
                found.append(part)
        else:
            found.append(column)
    return found


def _absorbed(columns: list[Flags]) -> list[Flags]:
    """Groups that are not within another."""
    kept: list[Flags] = []
    for column in sorted(columns, key=lambda c: -int(c.sum())):
        if not any(np.all(wider[column]) for wider in kept):
            kept.append(column)
    return kept


def _swept(columns: list[Flags]) -> list[Flags]:
    """Take a letter from a mean where all that it joins there are joined by other letters too."""
    columns = [column.copy() for column in columns]
    for column in columns:
        for i in np.flatnonzero(column):
            others = [other for other in columns if other is not column and other[i]]
            partners = np.flatnonzero(column)
            partners = partners[partners != i]
            if others and all(any(other[j] for other in others) for j in partners):
                column[i] = False
    return columns
