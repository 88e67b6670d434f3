"""First-order ante-dependence: each coefficient depends on the one before it only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bayeslmm.covariance.pattern import Pattern


@dataclass(frozen=True)
class AnteDependence(Pattern):
    """Correlations of a lag above one are products of those between neighbours.

    The correlation of each coefficient with the next is a parameter, in (-1, 1).

    References
    ----------
    Gabriel (1962), doi:10.1214/aoms/1177704724.

    Examples
    --------
    >>> import numpy as np
    >>> lower = AnteDependence(3).cholesky(np.arctanh([0.5, 0.2]))
    >>> print((lower @ lower.T).round(2)[2])
    [0.1 0.2 1. ]
    """

    words: ClassVar[str] = "first-order ante-dependence"
    names: ClassVar[tuple[str, str]] = ("ante", "homante")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Neighbours."""
        return tuple((i, i - 1) for i in range(1, self.n_coefs))

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor."""
        return chain(sines, cosines, units)


def chain(sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
    """Rows in which each is the one before it, times a sine, and a part of its own."""
    rows = [units[0]]
    for sine, cosine, unit in zip(sines, cosines, units[1:], strict=True):
        rows.append(sine * rows[-1] + cosine * unit)
    return rows
