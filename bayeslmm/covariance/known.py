"""Correlations of residuals that are known, such as those of estimates from one study."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.residual import Entries, ResidualRows, blocks_of_groups, inverses

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class KnownCorrelation:
    """A known correlation matrix, without parameters.

    Attributes
    ----------
    known : scipy.sparse.csr_array (m, m)
        Of all labels. The place of a row is that of its label.
    """

    known: sp.csr_array

    n_cors = 0
    n_arms = 1
    separable = True
    on_matrix = False
    lowest = -1.0
    nlme_name = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KnownCorrelation):
            return NotImplemented
        mine, theirs = self.known, other.known
        return mine.shape == theirs.shape and (mine != theirs).nnz == 0

    def __hash__(self) -> int:
        return hash((self.known.shape, float(self.known.sum())))

    def bind(self, rows: ResidualRows) -> BoundKnown:
        """The inverse correlation matrix of some rows."""
        assert rows.place is not None
        place = rows.place.astype(np.intp)

        def kind_of(group: Indices) -> tuple[int, Array]:
            return 0, self._block(place[group])

        kinds, entries = blocks_of_groups(rows.groups(), kind_of)
        values, diagonal, log_det = np.empty(entries.size), np.empty(entries.size, dtype=bool), 0.0
        for _, block, count, own in kinds:
            lower, upper = np.tril_indices(len(block))
            inverse, log_omega = inverses(block)
            values[own], diagonal[own] = inverse[lower, upper], lower == upper
            log_det -= count * float(log_omega)
        return BoundKnown(entries, values, diagonal, log_det)

    def _block(self, places: Indices) -> Array:
        return np.asarray(self.known[places][:, places].toarray())

    def matrix(self, z: Array, rows: ResidualRows) -> Array:
        """Correlation matrices (S, n, n) of rows of one group."""
        assert rows.place is not None
        block = self._block(rows.place.astype(np.intp))
        return np.broadcast_to(block, (len(z), *block.shape)).copy()

    def isolated(self, place: int, z: Array) -> None:
        """There is no correlation to be a coordinate."""

    def parameters(self, z: Array) -> Array:
        """None (S, 0)."""
        return z

    def parameter_slopes(self, z: Array) -> Array:
        """None (0,)."""
        return z

    def from_parameters(self, parameters: Array) -> Array:
        """None (S, 0)."""
        return parameters

    def correlations(self, z: Array) -> Array:
        """None (S, 0)."""
        return z

    def from_correlations(self, correlations: Array) -> Array:
        """None (S, 0)."""
        return correlations

    def nlme(self, correlations: Array) -> Array:
        """None (S, 0)."""
        return correlations

    def from_nlme(self, parameters: Array) -> Array:
        """None (S, 0)."""
        return parameters

    def log_jacobian(self, z: Array) -> Array:
        """Zero (S,)."""
        return np.zeros(z.shape[:-1])

    def log_jacobian_slope(self, z: Array) -> Array:
        """None (0,)."""
        return np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False)
class BoundKnown:
    """The inverse of a known correlation matrix of rows.

    Attributes
    ----------
    entries : Entries
        Where it is not zero.
    values : ndarray (K,)
        Its entries.
    diagonal : ndarray of bool (K,)
        Which of them are on the diagonal.
    log_det : float
        Log determinant of the inverse.
    """

    entries: Entries
    values: Array
    diagonal: NDArray[np.bool_]
    log_det: float

    def under(self, correlation: KnownCorrelation) -> BoundKnown:
        """The same: there are no coordinates."""
        return self

    def joined(self, other: BoundKnown) -> tuple[BoundKnown, Indices, Indices]:
        """Both sets of rows, and the kinds of entries there of one and the other."""
        first, second = len(self.values), len(other.values)
        both = replace(
            self,
            entries=Entries.nowhere(first + second),
            values=np.concatenate([self.values, other.values]),
            diagonal=np.concatenate([self.diagonal, other.diagonal]),
            log_det=self.log_det + other.log_det,
        )
        return both, np.arange(first), first + np.arange(second)

    def precision(self, z: Array) -> tuple[Array, Array]:
        """Values (S, K) of C^-1 and ``log |C^-1|`` (S,)."""
        return np.tile(self.values, (len(z), 1)), np.full(len(z), self.log_det)

    def pull_back(self, z: Array, by_value: Array, by_log_det: float) -> Array:
        """Derivatives (0,) by no coordinates."""
        return np.zeros(0)
