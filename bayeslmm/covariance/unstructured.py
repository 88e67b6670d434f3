"""Correlations without structure within blocks of coefficients, none across them.

Correlation coordinates are the inverse hyperbolic tangents of canonical partial correlations; theta
holds the free entries of T, block by block, each by columns (lme4's order). All of this keeps its
form when the columns of a block are exchanged for another basis.

References
----------
Lewandowski, Kurowicka, Joe (2009), doi:10.1016/j.jmva.2009.04.008.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Blocks, log_cosh

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Unstructured:
    """Any covariance matrix that is zero between blocks.

    Attributes
    ----------
    n_coefs : int
        Number of coefficients k.
    blocks : tuple of tuple of int
        A partition of ``range(k)``: coefficients are correlated within a block and independent
        across blocks.

    Examples
    --------
    >>> Unstructured(3, ((0, 1), (2,))).n_theta
    4
    """

    n_coefs: int
    blocks: Blocks

    mixes: ClassVar[bool] = True
    homogeneous: ClassVar[bool] = False
    name: ClassVar[str] = "us"
    words: ClassVar[str] = "correlated with each other"

    @property
    def parts(self) -> tuple[Unstructured, ...]:
        """The structure of each block by itself."""
        return tuple(Unstructured(len(b), (tuple(range(len(b))),)) for b in self.blocks)

    @property
    def n_sds(self) -> int:
        """Number of standard deviations."""
        return self.n_coefs

    @property
    def sd_places(self) -> Indices:
        """Each coefficient has its own (k,)."""
        return np.arange(self.n_coefs)

    @property
    def even(self) -> NDArray[np.bool_]:
        """All of them."""
        return np.ones(self.n_coefs, dtype=bool)

    @property
    def direct(self) -> bool:
        """Where no three coefficients are correlated, partial correlations are correlations."""
        return all(len(block) <= 2 for block in self.blocks)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (row, column) of correlated coefficients, row > column, block by block."""
        return _index(self.blocks).pairs

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates."""
        return len(self.pairs)

    @property
    def n_theta(self) -> int:
        """Number of free entries of T."""
        return self.n_coefs + self.n_cors

    @property
    def theta_index(self) -> tuple[Indices, Indices]:
        """Rows and columns of the free entries of T."""
        return _index(self.blocks).entries

    def cholesky(self, z: Array) -> Array:
        """Cholesky factor (..., k, k) of the correlations at coordinates (..., n_cors)."""
        k = self.n_coefs
        lower = np.zeros((*z.shape[:-1], k, k))
        lower[..., range(k), range(k)] = 1.0
        partial = np.tanh(z)
        for row in _index(self.blocks).rows:
            left = np.ones(z.shape[:-1])
            for place, col in row.partials:
                lower[..., row.row, col] = partial[..., place] * left
                left = left * np.sqrt(1.0 - partial[..., place] ** 2)
            lower[..., row.row, row.row] = left
        return lower

    def coordinates(self, lower: Array) -> Array:
        """Inverse (..., n_cors) of :meth:`cholesky`, infinite at a correlation of one."""
        z = np.zeros((*lower.shape[:-2], self.n_cors))
        for row in _index(self.blocks).rows:
            left = np.ones(lower.shape[:-2])
            for place, col in row.partials:
                safe = np.where(left > 0, left, 1.0)
                ratio = np.clip(lower[..., row.row, col] / safe, -1.0, 1.0)
                partial = np.where(left > 0, ratio, 0.0)
                with np.errstate(divide="ignore"):
                    z[..., place] = np.arctanh(partial)
                left = left * np.sqrt(1.0 - partial**2)
        return z

    def from_correlations(self, correlations: Array) -> Array:
        """Coordinates (..., n_cors) from the correlations at `pairs`."""
        omega = np.zeros((*correlations.shape[:-1], self.n_coefs, self.n_coefs))
        omega[..., range(self.n_coefs), range(self.n_coefs)] = 1.0
        for place, (i, j) in enumerate(self.pairs):
            omega[..., i, j] = omega[..., j, i] = correlations[..., place]
        return self.coordinates(np.linalg.cholesky(omega))

    def pull_back(self, z: Array, slope: Array) -> Array:
        """Derivatives (..., n_cors) from those by the entries of the Cholesky factor."""
        lower, partial = self.cholesky(z), np.tanh(z)
        result = np.empty_like(z)
        for row in _index(self.blocks).rows:
            left = np.ones(z.shape[:-1])
            along = slope[..., row.row, :] * lower[..., row.row, :]
            cols = [col for _, col in row.partials]
            for i, (place, col) in enumerate(row.partials):
                p = partial[..., place]
                own = (1.0 - p**2) * left * slope[..., row.row, col]
                result[..., place] = own - p * along[..., [*cols[i + 1 :], row.row]].sum(axis=-1)
                left = left * np.sqrt(1.0 - p**2)
        return result

    def log_jacobian(self, z: Array) -> Array:
        """Log absolute Jacobian (...,) of the entries of Omega: equations (2) and (3)."""
        return np.asarray(-2.0 * log_cosh(z) @ _index(self.blocks).powers)

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (..., n_cors) of :meth:`log_jacobian`."""
        return np.asarray(-2.0 * _index(self.blocks).powers * np.tanh(z))

    def parameter_slopes(self, z: Array) -> Array:
        """Zero: the prior is that of the matrix."""
        return np.zeros_like(z)

    def factor(self, theta: Array) -> Array:
        """Lower triangular T (..., k, k) with free entries theta (..., n_theta)."""
        lower = np.zeros((*theta.shape[:-1], self.n_coefs, self.n_coefs))
        rows, cols = self.theta_index
        lower[..., rows, cols] = theta
        return lower

    def theta(self, factor: Array) -> Array:
        """Free entries (..., n_theta) of T (..., k, k)."""
        rows, cols = self.theta_index
        return np.asarray(factor[..., rows, cols])

    def theta_slopes(self, theta: Array) -> Array:
        """Derivatives (n_theta, k, k) of T by its free entries."""
        return self.factor(np.eye(len(theta)))

    def theta_gradient(self, theta: Array, slope: Array) -> Array:
        """Free entries (..., n_theta) of the derivatives by T."""
        return self.theta(slope)

    @property
    def theta_sds(self) -> NDArray[np.bool_]:
        """Which free entries are on the diagonal."""
        rows, cols = self.theta_index
        return np.equal(rows, cols)

    def negligible(self, theta: Array, tolerance: float) -> Iterator[tuple[Indices, Array]]:
        """Small entries of the diagonal, then rows of small length."""
        rows, cols = self.theta_index
        lengths = np.sqrt(np.bincount(rows, weights=theta**2, minlength=self.n_coefs))
        for row in range(self.n_coefs):
            own = np.flatnonzero((rows == row) & (cols == row))
            if abs(theta[own[0]]) < tolerance * max(lengths[row], 1.0):
                yield own, np.zeros(1)
        for short in np.flatnonzero(lengths < tolerance):
            entries = np.flatnonzero(rows == short)
            yield entries, np.zeros(len(entries))


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the Cholesky factor: places among the coordinates, and columns, of its partials."""

    row: int
    partials: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Index:
    """Places that follow from the blocks.

    `powers` (n_cors,) are those of one minus the squared partial correlations in the Jacobian.
    """

    entries: tuple[Indices, Indices]
    pairs: tuple[tuple[int, int], ...]
    rows: tuple[_Row, ...]
    powers: Array


@cache
def _index(blocks: Blocks) -> _Index:
    cells = [(row, col) for block in blocks for j, col in enumerate(block) for row in block[j:]]
    entries = np.array(cells, dtype=np.intp).reshape(-1, 2).T
    entries.flags.writeable = False
    pairs: list[tuple[int, int]] = []
    rows, powers = [], []
    for block in blocks:
        for i, row in enumerate(block):
            partials = tuple((len(pairs) + j, col) for j, col in enumerate(block[:i]))
            rows.append(_Row(row, partials))
            pairs += [(row, col) for col in block[:i]]
            powers += [0.5 * (len(block) - j - 2) + 1.0 for j in range(i)]
    return _Index((entries[0], entries[1]), tuple(pairs), tuple(rows), np.array(powers))
