"""Sums over rows by the standard deviation of their residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.residual import ResidualRows, distinct_rows
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowKinds:
    """Rows by the coefficients of their log standard deviations.

    Attributes
    ----------
    log_sd : ndarray (V, m + q)
        Those of each kind of rows.
    inverse_weights : ndarray (V,)
        Sums over the rows of one over their precision weights.
    """

    log_sd: Array
    inverse_weights: Array

    @classmethod
    def of(cls, rows: ResidualRows, weights: Array | None) -> Self:
        """Kinds of rows with precision weights (n,)."""
        log_sd, (kind,) = distinct_rows([rows.log_sd])
        inverse = np.ones(rows.n) if weights is None else 1.0 / weights
        return cls(log_sd=log_sd, inverse_weights=np.bincount(kind, inverse, len(log_sd)))

    def __add__(self, other: RowKinds) -> RowKinds:
        """Those of both sets of rows."""
        log_sd, places = distinct_rows([self.log_sd, other.log_sd])
        inverse = np.zeros(len(log_sd))
        for own, at in zip((self, other), places, strict=True):
            inverse[at] += own.inverse_weights
        return RowKinds(log_sd=log_sd, inverse_weights=inverse)

    def of_scale(self, place: int) -> RowKinds:
        """Those that have one of the standard deviations."""
        own = self.log_sd[:, place] == 1.0
        return RowKinds(log_sd=self.log_sd[own], inverse_weights=self.inverse_weights[own])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScaledRows:
    """What is kept of rows by their standard deviation.

    Attributes
    ----------
    kinds : RowKinds
    sides : mapping of int to mapping of Side to Moments
        Moments of the columns in the rows of each stratum or occasion that has a standard
        deviation of its own, by its place among them; empty where all rows have one.
    """

    kinds: RowKinds
    sides: Mapping[int, Mapping[Side, Moments]]

    @classmethod
    def of(
        cls,
        rows: ResidualRows,
        weights: Array | None,
        columns: Mapping[Side, Array],
        n_scales: int,
    ) -> Self:
        """Of rows with columns (n, k)."""
        scale = np.argmax(rows.log_sd[:, :n_scales], axis=1)
        found = np.unique(scale)[: n_scales if n_scales > 1 else 0]
        sides = {
            int(place): {side: Moments.of(own[scale == place]) for side, own in columns.items()}
            for place in found
        }
        return cls(kinds=RowKinds.of(rows, weights), sides=sides)

    def __add__(self, other: ScaledRows) -> ScaledRows:
        """Those of both sets of rows."""
        sides = dict(self.sides)
        for place, theirs in other.sides.items():
            mine = sides.get(place)
            sides[place] = (
                theirs if mine is None else {side: mine[side] + theirs[side] for side in theirs}
            )
        return ScaledRows(kinds=self.kinds + other.kinds, sides=dict(sorted(sides.items())))
