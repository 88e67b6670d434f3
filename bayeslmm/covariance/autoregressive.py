"""First-order autoregression: correlations fall off as powers of the lag."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bayeslmm.covariance.ante_dependence import chain
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Indices


@dataclass(frozen=True)
class Autoregressive(Pattern):
    """AR(1): the correlation of two coefficients is rho to the power of their distance.

    The parameter is rho, in (-1, 1).

    Examples
    --------
    >>> import numpy as np
    >>> lower = Autoregressive(3).cholesky(np.arctanh([0.5]))
    >>> print((lower @ lower.T).round(2)[2])
    [0.25 0.5  1.  ]
    """

    words: ClassVar[str] = "first-order autoregressive"
    names: ClassVar[tuple[str, str]] = ("hetar1", "ar1")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The first neighbours."""
        return ((1, 0),)

    def alike(self, number: int) -> tuple[Indices, Indices]:
        """All neighbours."""
        rows = np.arange(1, self.n_coefs)
        return rows, rows - 1

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor."""
        steps = self.n_coefs - 1
        return chain(list(sines) * steps, list(cosines) * steps, units)
