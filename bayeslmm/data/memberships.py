"""Rows that belong to several levels of a grouping factor, each with a weight.

Browne, W. J., Goldstein, H., & Rasbash, J. (2001). Multiple membership multiple classification
(MMMC) models. Statistical Modelling, 1(2), 103-124. doi:10.1177/1471082X0100100202
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import missing, read_only
from bayeslmm.data.grouping import column_levels, value_kind
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.members import Members

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


class Slot(NamedTuple):
    """One level of each row, and its covariates; effects in a row are sums over slots.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Level of each row; -1 for a level that the model has not seen.
    Z : ndarray (n, k)
        Covariate of each coefficient in each row, times the weight of the level in the row.
    extended_codes : ndarray of int (n,)
        As `codes`, with J, J + 1, ... for the new levels: rows of one new level share a number.
    """

    codes: Indices
    Z: Array
    extended_codes: Indices

    def take(self, rows: Indices | NDArray[np.bool_] | slice) -> Slot:
        """Some of the rows."""
        return Slot(self.codes[rows], self.Z[rows], self.extended_codes[rows])


class Member(NamedTuple):
    """One level of each row, and its weight there.

    Attributes
    ----------
    codes, extended_codes : ndarray of int (n,)
        As of :class:`Slot`.
    weights : ndarray (n,) or None
        None where all are one: rows belong to one level.
    """

    codes: Indices
    extended_codes: Indices
    weights: Array | None = None

    def take(self, rows: Indices) -> Member:
        """Some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        return Member(self.codes[rows], self.extended_codes[rows], weights)

    def followed_by(self, other: Member) -> Member:
        """These rows and others, by their extended codes."""
        codes = np.concatenate([self.codes, other.extended_codes])
        if self.weights is None or other.weights is None:
            return Member(codes, codes)
        return Member(codes, codes, np.concatenate([self.weights, other.weights]))

    def slot(self, z: Array) -> Slot:
        """With covariates (n, k)."""
        weighted = z if self.weights is None else z * self.weights[:, None]
        return Slot(self.codes, weighted, self.extended_codes)


class Pool(NamedTuple):
    """Which members count (m, n), and the weights (n, m) of all."""

    counted: NDArray[np.bool_]
    weights: Array


def pooled_members(
    frame: pd.DataFrame, factors: Sequence[str], members: Members
) -> tuple[pd.DataFrame, Pool]:
    """The members whose weight is not zero, as one column under the name of the first variable.

    Also where they are: the column goes through them in this order.

    Raises
    ------
    DataError
        If one is missing, members are of different kinds, or weights cannot be used.
    """
    weights = member_weights(frame, factors, members)
    counted = weights.T != 0.0
    absent = counted & np.array([missing(frame[name]) for name in factors])
    name = f"mm({', '.join(factors)})"
    if absent.any():
        rows = np.flatnonzero(absent.any(axis=0))
        names = [one for one, lacks in zip(factors, absent.any(axis=1), strict=True) if lacks]
        raise DataError(
            f"{name}: {listed(names)} is missing in {len(rows)} rows, in which its weight is not "
            f"0; the first is row {frame.index[rows[0]]!r}. Give weights=(...) with columns that "
            "are 0 where there is no member, or take these rows out."
        )
    parts = [frame[one][rows] for one, rows in zip(factors, counted, strict=True)]
    _check_kinds(name, factors, parts)
    long = pd.concat(parts, ignore_index=True).rename(factors[0]).to_frame()
    return long, Pool(counted, weights)


def _check_kinds(name: str, factors: Sequence[str], parts: Sequence[pd.Series]) -> None:
    """Refuse numbers in one column and text in another: no level would be in both."""
    kinds = {
        value_kind(column_levels(part)[1]): one
        for one, part in zip(reversed(factors), reversed(parts), strict=True)
        if len(part)
    }
    if {"numbers", "text"} <= kinds.keys():
        raise DataError(
            f"{name}: `{kinds['numbers']}` holds numbers and `{kinds['text']}` holds text, so that "
            "no level would be in both; convert one of them."
        )


def member_weights(frame: pd.DataFrame, factors: Sequence[str], members: Members) -> Array:
    """Weights (n, m) of the members of each row.

    Raises
    ------
    DataError
        If weights are no finite numbers, or cannot be divided by their sum.
    """
    found = np.empty((len(frame), len(factors)))
    for i in range(len(factors)):
        weight = members.weight(i, len(factors))
        found[:, i] = weight if isinstance(weight, float) else _column(frame, weight)
    if members.weights is None or not members.scale:
        return found
    if np.any(found < 0.0):
        raise DataError(
            f"mm({', '.join(factors)}): weights are divided by their sum and may not be negative; "
            "scale=False takes them as they are."
        )
    total = found.sum(axis=1, keepdims=True)
    if not np.all(total > 0.0):
        row = frame.index[int(np.flatnonzero(total[:, 0] <= 0.0)[0])]
        raise DataError(
            f"mm({', '.join(factors)}): the weights of row {row!r} sum to 0, so that it belongs to "
            "no level. Take such rows out, or write scale=False, which gives them no random effect."
        )
    return found / total


def _column(frame: pd.DataFrame, name: str) -> Array:
    try:
        values = frame[name].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"The weights `{name}` of members must be numbers.") from error
    if not np.all(np.isfinite(values)):
        raise DataError(f"The weights `{name}` of members must be finite numbers.")
    return values


def members_of(
    codes: Indices, extended: Indices, counted: NDArray[np.bool_], weights: Array
) -> tuple[Member, ...]:
    """Each column of members, from the codes of those that count.

    A member without weight stands for the first one of its row that has some, or for the first
    level: it adds nothing either way.

    Parameters
    ----------
    codes, extended : ndarray of int (n_counted,)
    counted : ndarray of bool (m, n)
    weights : ndarray (n, m)
    """
    first, rows = np.argmax(counted, axis=0), np.arange(counted.shape[1])

    def filled(found: Indices) -> Indices:
        whole = np.zeros(counted.shape, dtype=np.intp)
        whole[counted] = found
        return read_only(np.where(counted, whole, whole[first, rows]))

    parts = zip(filled(codes), filled(extended), np.ascontiguousarray(weights.T), strict=True)
    return tuple(Member(c, e, read_only(w)) for c, e, w in parts)
