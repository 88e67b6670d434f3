"""Compound symmetry: one correlation of all coefficients with each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Indices


@dataclass(frozen=True)
class CompoundSymmetry(Pattern):
    """All coefficients have the same correlation rho with each other.

    The parameter is rho, in (-1 / (k - 1), 1).

    Examples
    --------
    >>> import numpy as np
    >>> structure = CompoundSymmetry(3)
    >>> lower = structure.cholesky(structure.from_correlations(np.array([-0.4])))
    >>> print((lower @ lower.T).round(2)[2])
    [-0.4 -0.4  1. ]
    """

    words: ClassVar[str] = "compound symmetric"
    names: ClassVar[tuple[str, str]] = ("cs", "homcs")

    @property
    def lowest(self) -> float:
        """Below it the correlation matrix is not positive definite."""
        return -1.0 / (self.n_coefs - 1)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The first two coefficients."""
        return ((1, 0),)

    def alike(self, number: int) -> tuple[Indices, Indices]:
        """All pairs."""
        return np.tril_indices(self.n_coefs, -1)

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor: column j has one value below the diagonal."""
        k = self.n_coefs
        lower, upper = half_angles(sines[0], cosines[0])
        rho = 1.0 + (1.0 - self.lowest) * 0.5 * (sines[0] - 1.0)
        rest, total = (
            (k / (k - 1)) ** 0.5 * lower,
            k**0.5 * upper,
        )  # roots of 1 - rho, 1 + (k-1) rho
        sizes = [(1.0 + j * rho) ** 0.5 for j in range(k - 1)] + [total]
        rows, common = [units[0]], rho * units[0]
        for j in range(1, k):
            rows.append(common + rest * sizes[j] / sizes[j - 1] * units[j])
            if j < k - 1:
                common = common + rho * rest / (sizes[j - 1] * sizes[j]) * units[j]
        return rows


def half_angles(sine: Any, cosine: Any) -> tuple[Any, Any]:
    """Sine and cosine of half the distance to a right angle: roots of (1 - sine) / 2 and its rest.

    Each is taken from the larger of the two, so that none cancels; signs go on across the ends.
    """
    positive = np.real(sine) > 0.0 if isinstance(sine, np.ndarray) else sine > 0.0
    sign = 2.0 * positive - 1.0
    larger = ((1.0 + sign * sine) / 2.0) ** 0.5
    smaller = cosine / (2.0 * larger)
    share = (1.0 + sign) / 2.0
    return share * smaller + (1.0 - share) * larger, share * larger + (1.0 - share) * smaller
