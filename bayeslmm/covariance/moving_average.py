"""First-order moving average: only neighbours are correlated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Indices

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MovingAverage(Pattern):
    """MA(1), a Toeplitz matrix of two bands: rho for neighbours, zero beyond.

    The parameter is rho as a share of the largest that k coefficients can have,
    ``1 / (2 cos(pi / (k + 1)))``, in (-1, 1).

    References
    ----------
    SAS's TOEP(2), nlme's corARMA(q = 1). Kulkarni, Schmidt, Tsui (1999),
    doi:10.1016/S0024-3795(99)00114-7: eigenvalues of tridiagonal Toeplitz matrices.

    Examples
    --------
    >>> import numpy as np
    >>> structure = MovingAverage(3)
    >>> lower = structure.cholesky(structure.from_correlations(np.array([0.4])))
    >>> print((lower @ lower.T).round(2)[2])
    [0.  0.4 1. ]
    """

    words: ClassVar[str] = "first-order moving average"
    names: ClassVar[tuple[str, str]] = ("hetma1", "ma1")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The first neighbours."""
        return ((1, 0),)

    @property
    def direct(self) -> bool:
        """A share is a correlation where there are two coefficients."""
        return self.n_coefs == 2

    def alike(self, number: int) -> tuple[Indices, Indices]:
        """All neighbours."""
        rows = np.arange(1, self.n_coefs)
        return rows, rows - 1

    @property
    def _largest(self) -> float:
        return float(0.5 / self._halves[0])

    @property
    def _halves(self) -> Array:
        """Half the positive eigenvalues that neighbours of correlation one would add."""
        count = self.n_coefs // 2
        return np.cos(np.arange(1, count + 1) * np.pi / (self.n_coefs + 1))

    def sines_of(self, correlations: Array) -> Array:
        """Shares from the correlations of neighbours."""
        return correlations / self._largest

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor.

        The determinant is the product of ``1 - (2 rho h)^2`` over the halves h. That of the first,
        which vanishes at the ends of the range, is the squared cosine.
        """
        rho = self._largest * sines[0]
        rows, pivot, before = [units[0]], 1.0, 1.0  # before: determinant of the rows so far
        rest = 1.0
        for half in self._halves[1:]:
            rest = rest * (1.0 - (2.0 * rho * half) ** 2)
        for i in range(1, self.n_coefs):
            below = rho / pivot
            last = i == self.n_coefs - 1
            pivot = cosines[0] * (rest / before) ** 0.5 if last else (1.0 - below**2) ** 0.5
            before = before * pivot**2
            rows.append(below * units[i - 1] + pivot * units[i])
        return rows
