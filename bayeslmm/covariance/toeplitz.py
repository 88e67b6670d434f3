"""Toeplitz correlations: one for each lag, of any stationary sequence."""

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
class Toeplitz(Pattern):
    """The correlation of two coefficients depends on their distance only.

    The parameters are the partial autocorrelations, each in (-1, 1): every choice of them is a
    positive definite matrix, and every such matrix is one choice.

    References
    ----------
    Durbin (1960), doi:10.2307/1401322; Barndorff-Nielsen, Schou (1973),
    doi:10.1016/0047-259X(73)90030-4.

    Examples
    --------
    >>> import numpy as np
    >>> structure = Toeplitz(3)
    >>> lower = structure.cholesky(structure.from_correlations(np.array([0.5, 0.4])))
    >>> print((lower @ lower.T).round(2)[2])
    [0.4 0.5 1. ]
    """

    words: ClassVar[str] = "Toeplitz"
    names: ClassVar[tuple[str, str]] = ("toep", "homtoep")

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The first coefficient with each of the others: one pair for each lag."""
        return tuple((i, 0) for i in range(1, self.n_coefs))

    @property
    def direct(self) -> bool:
        """Partial autocorrelations of a lag above one are not correlations."""
        return self.n_coefs <= 2

    def alike(self, number: int) -> tuple[Indices, Indices]:
        """Those of the same lag."""
        rows = np.arange(number + 1, self.n_coefs)
        return rows, rows - number - 1

    def rows(self, sines: Sequence[Any], cosines: Sequence[Any], units: Sequence[Any]) -> list[Any]:
        """Rows of the Cholesky factor, by a lattice of rotations.

        Row t starts as its innovation, the error of its prediction from all earlier rows. Each
        rotation with the error of an earlier row predicted backwards shortens that prediction by
        one row.
        """
        rows, backward = [units[0]], [units[0]]  # backward errors by the length of the prediction
        for t in range(1, self.n_coefs):
            forward, turned = units[t], []
            for lag in range(t, 0, -1):
                behind, sine, cosine = backward[lag - 1], sines[lag - 1], cosines[lag - 1]
                turned.append(cosine * behind - sine * forward)
                forward = cosine * forward + sine * behind
            rows.append(forward)
            backward = [forward, *reversed(turned)]
        return rows

    def sines_of(self, correlations: Array) -> Array:
        """Partial autocorrelations (..., k - 1) from the correlations by lag: Durbin-Levinson."""
        partial = np.empty_like(correlations)
        weights, rest = correlations[..., :0], np.ones(correlations.shape[:-1])
        for lag in range(correlations.shape[-1]):
            known = np.sum(weights * correlations[..., :lag][..., ::-1], axis=-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                own = np.where(rest > 0.0, (correlations[..., lag] - known) / rest, 0.0)
            own = np.clip(own, -1.0, 1.0)
            partial[..., lag] = own
            weights = weights - own[..., None] * weights[..., ::-1]
            weights = np.concatenate([weights, own[..., None]], axis=-1)
            rest = rest * (1.0 - own**2)
        return partial
