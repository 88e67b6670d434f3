"""First and second moments of columns: what scales, ranks and bases need of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHUNK = 1 << 15
"""Rows that are triangularised at once."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Moments:
    """Moments of k columns over n rows, by a triangle, so that nothing is squared.

    Attributes
    ----------
    n : int
        Number of rows.
    centre : ndarray (k,)
        Any point near the values of the columns.
    triangle : ndarray (m, k + 1)
        Upper triangular R with R'R the products of the columns ``[1, columns - centre]``, each row
        times the root of its weight where there are weights.
    low, high : ndarray (k,)
        Extremes of each column.
    filled : ndarray (k,)
        Rows in which it is not zero.
    """

    n: int
    centre: Array
    triangle: Array
    low: Array
    high: Array
    filled: NDArray[np.intp]

    @classmethod
    def of(cls, columns: Array, weights: Array | None = None, centre: Array | None = None) -> Self:
        """Moments of columns (n, k), of at least one row."""
        if centre is None:
            centre = columns.mean(axis=0)
        root = None if weights is None else np.sqrt(weights)
        return cls(
            n=len(columns),
            centre=centre,
            triangle=_triangle(columns, centre, root),
            # column by column: along the first axis of a few columns is ten times slower
            low=np.array([column.min() for column in columns.T]),
            high=np.array([column.max() for column in columns.T]),
            filled=np.array([np.count_nonzero(column) for column in columns.T], dtype=np.intp),
        )

    def __add__(self, other: Moments) -> Moments:
        """Moments of both sets of rows."""
        move = np.eye(1 + len(self.centre))
        move[0, 1:] = other.centre - self.centre
        both = np.vstack([self.triangle, other.triangle @ move])
        return Moments(
            n=self.n + other.n,
            centre=self.centre,
            triangle=np.linalg.qr(both, mode="r"),
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            filled=self.filled + other.filled,
        )

    def take(self, columns: Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Moments:
        """Moments of some of the columns."""
        asked = np.asarray(columns)
        places = np.arange(len(self.centre))[asked if asked.size else asked.astype(np.intp)]
        chosen = np.concatenate([[0], 1 + places])
        return Moments(
            n=self.n,
            centre=self.centre[places],
            triangle=np.linalg.qr(self.triangle[:, chosen], mode="r"),
            low=self.low[places],
            high=self.high[places],
            filled=self.filled[places],
        )

    @property
    def means(self) -> Array:
        """Mean (k,) of each column."""
        return np.asarray(self.centre + self.triangle[0, 1:] / self.triangle[0, 0])

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which columns (k,) have one value."""
        return self.low == self.high

    @property
    def largest(self) -> Array:
        """Largest absolute value (k,) of each column."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def centred(self) -> Array:
        """Columns less their means in few dimensions (m - 1, k): lengths and angles are theirs."""
        return self.triangle[1:, 1:]

    @property
    def along(self) -> Array:
        """The part (k,) of the columns along the constant, in the units of `centred`."""
        return np.asarray(self.triangle[0, 1:] + self.centre * self.triangle[0, 0])

    @property
    def columns(self) -> Array:
        """The columns in few dimensions (m, k): lengths and angles are theirs."""
        return np.vstack([self.along, self.centred])

    @property
    def ones(self) -> Array:
        """The constant in these dimensions (m,)."""
        first = np.zeros(len(self.triangle))
        first[0] = self.triangle[0, 0]
        return first

    @property
    def variances(self) -> Array:
        """Variance (k,) of each column, with divisor n - 1."""
        return np.asarray(np.sum(self.centred**2, axis=0) / (self.n - 1.0))

    @property
    def root_mean_squares(self) -> Array:
        """Root mean square (k,) of each column."""
        return np.asarray(np.linalg.norm(self.columns, axis=0) / np.sqrt(self.n))


def moments_of(columns: Array | Moments) -> Moments:
    """Moments of columns (n, k), themselves where they are moments."""
    return columns if isinstance(columns, Moments) else Moments.of(columns)


def _triangle(columns: Array, centre: Array, root: Array | None) -> Array:
    triangle = np.zeros((0, columns.shape[1] + 1))
    for first in range(0, len(columns), CHUNK):
        part = slice(first, first + CHUNK)
        rows = columns[part].T
        start = len(triangle)
        block = np.empty((columns.shape[1] + 1, start + rows.shape[1]))  # as LAPACK reads it
        block[:, :start] = triangle.T
        block[0, start:] = 1.0
        np.subtract(rows, centre[:, None], out=block[1:, start:])
        if root is not None:
            block[:, start:] *= root[part]
        triangle = np.linalg.qr(block.T, mode="r")
    return triangle
