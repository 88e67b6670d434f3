"""Probabilities that the largest of several correlated t statistics stays below a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats
from scipy.optimize import brentq

Array = NDArray[np.float64]

DIRECTIONS = 2**17
"""Points on the sphere that an average is over."""

BLOCK = 2**14
"""Those of them that are taken at once."""

REACHES = 2**11
"""Values that stand for those of all directions: means of equally many neighbours."""

RANK = 1e-10
"""Eigenvalue of a correlation matrix over the largest one that counts as zero."""

QUANTILE = 1e-8
"""Relative accuracy of quantiles."""

SLACK = 1e-2
"""By how much the bounds between which a quantile lies are widened, for the error of averages."""

SMALLEST = 1e-16
"""Distance of a coordinate of a point in the unit cube from its ends, at least."""


@dataclass(frozen=True, slots=True, eq=False)
class LargestT:
    """The largest of m statistics that are jointly t distributed, of any correlation.

    A vector of rank r is a direction on the sphere in r dimensions times a radius of known
    distribution. Given the direction, the tail of the largest statistic is one of F, so that the
    average over quasi-random directions is smooth, and accurate in relative terms far out.

    Attributes
    ----------
    reach : ndarray (K,)
        The largest statistic at the directions, for a radius of one, in increasing order.
    rank : int
        Dimension r.

    References
    ----------
    Deák (1980), doi:10.1007/BF01399431; Genz, Bretz (2009), doi:10.1007/978-3-642-01689-9, section
    4.1.
    """

    reach: Array
    rank: int

    def tail(self, bound: float, df: float) -> float:
        """Probability that the largest statistic is beyond a bound.

        Parameters
        ----------
        bound : float
            A t statistic; for one-sided tests it may be negative.
        df : float
            Degrees of freedom; infinite for normal statistics.
        """
        if np.isnan(bound) or np.isnan(df):
            return float("nan")
        up = self.reach > 0
        if bound >= 0:
            return float(self._beyond(bound, up, df).sum() / len(self.reach))
        down = self.reach < 0
        inside = self._beyond(bound, down, df).sum()
        return float(1.0 - inside / len(self.reach))

    def _beyond(self, bound: float, used: NDArray[np.bool_], df: float) -> Array:
        """Probability of a radius beyond ``bound / reach``, per direction."""
        squares = (bound / self.reach[used]) ** 2
        if np.isinf(df):
            return np.asarray(special.gammaincc(self.rank / 2.0, squares / 2.0))
        return np.asarray(special.betainc(df / 2.0, self.rank / 2.0, df / (df + squares)))

    def quantile(self, level: float, df: float, low: float, high: float) -> float:
        """The bound that the largest statistic keeps with probability `level`.

        It lies between `low` and `high`, the quantiles of one statistic and Bonferroni's.
        """
        if np.isnan(df):
            return float("nan")
        slack = SLACK * abs(high)
        return float(
            brentq(
                lambda t: self.tail(t, df) - (1.0 - level),
                low - slack,
                high + slack,
                xtol=QUANTILE * abs(high),
            )
        )


def largest_t(correlation: Array, two_sided: bool = True) -> LargestT:
    """Prepare probabilities of the largest of m statistics.

    Parameters
    ----------
    correlation : ndarray (m, m)
        Positive semi-definite, of any rank.
    two_sided : bool
        Of the sizes of the statistics, or of the statistics themselves.
    """
    sizes, vectors = np.linalg.eigh(correlation)
    kept = sizes > RANK * sizes[-1]
    root = vectors[:, kept] * np.sqrt(sizes[kept])
    largest = [_largest(block @ root.T, two_sided) for block in _directions(root.shape[1])]
    reach = np.sort(np.concatenate(largest))
    if len(reach) > REACHES:
        reach = reach.reshape(REACHES, -1).mean(axis=1)
    return LargestT(reach, root.shape[1])


def _largest(values: Array, two_sided: bool) -> Array:
    return np.asarray((np.abs(values) if two_sided else values).max(axis=1))


def _directions(rank: int) -> Iterator[Array]:
    """Evenly spread unit vectors (b, r), block by block, the same in each call."""
    if rank == 1:
        yield np.array([[-1.0], [1.0]])
        return
    if rank == 2:
        angles = 2.0 * np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
        yield np.column_stack([np.cos(angles), np.sin(angles)])
        return
    sequence = stats.qmc.Sobol(rank, rng=np.random.default_rng(0))
    for _ in range(DIRECTIONS // (2 * BLOCK)):
        points = np.clip(sequence.random(BLOCK), SMALLEST, 1.0 - SMALLEST)
        normal = special.ndtri(points)
        unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
        yield unit
        yield -unit
