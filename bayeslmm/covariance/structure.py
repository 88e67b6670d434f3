"""Covariance structures of the random effects: parameters, factors and their derivatives.

A grouping factor with k coefficients has ``Sigma = D Omega D``, with standard deviations D and a
correlation matrix Omega that is zero between blocks. Its relative factor is
``T = D chol(Omega) / sigma``. Two coordinate systems describe it:

* theta, the free entries of T (lme4's parameters): smooth across singular fits;
* eta, the log standard deviations followed by the correlation coordinates, which are the inverse
  hyperbolic tangents of canonical partial correlations: unconstrained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Structure:
    """Shape of the covariance matrix of one grouping factor.

    Attributes
    ----------
    n_coefs : int
        Number of coefficients k.
    blocks : tuple of tuple of int
        A partition of ``range(k)``: coefficients are correlated within a block and independent
        across blocks.

    Examples
    --------
    >>> Structure(3, ((0, 1), (2,))).n_theta
    4
    """

    n_coefs: int
    blocks: tuple[tuple[int, ...], ...]

    @property
    def theta_index(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Rows and columns of the free entries of T, block by block, each by columns (lme4)."""
        return _theta_index(self.blocks)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (row, column) of correlated coefficients, row > column, block by block."""
        return _pairs(self.blocks)

    @property
    def n_theta(self) -> int:
        """Number of covariance parameters, the same in both coordinate systems."""
        return sum(len(block) * (len(block) + 1) // 2 for block in self.blocks)


Blocks = tuple[tuple[int, ...], ...]


@cache
def _theta_index(blocks: Blocks) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    cells = [
        (block[row], block[col])
        for block in blocks
        for col in range(len(block))
        for row in range(col, len(block))
    ]
    rows, cols = np.array(cells, dtype=np.intp).T
    rows.flags.writeable = cols.flags.writeable = False
    return rows, cols


@cache
def _pairs(blocks: Blocks) -> tuple[tuple[int, int], ...]:
    return tuple(
        (block[row], block[col])
        for block in blocks
        for row in range(1, len(block))
        for col in range(row)
    )


def factor_from_theta(structure: Structure, theta: Array) -> Array:
    """Lower-triangular factor (k, k) with the free entries `theta` (n_theta,)."""
    factor = np.zeros((structure.n_coefs, structure.n_coefs))
    factor[structure.theta_index] = theta
    return factor


def theta_from_factor(structure: Structure, factor: Array) -> Array:
    """Free entries (n_theta,) of a (k, k) factor or of a gradient with respect to it."""
    return factor[structure.theta_index]


def lower_factor(structure: Structure, root: Array) -> Array:
    """Lower triangular T (..., k, k) with T T' = root root', block by block."""
    lower = np.zeros_like(root)
    for block in structure.blocks:
        rows = np.array(block)
        lower[..., rows[:, None], rows] = lower_root(root[..., rows[:, None], rows])
    return lower


def lower_root(root: Array) -> Array:
    """Lower triangle L (..., k, k), of nonnegative diagonal, with L L' = root root'.

    A QR decomposition rather than a Cholesky factorisation, so that a singular covariance matrix
    keeps its exact rank.
    """
    triangle = np.linalg.qr(root.swapaxes(-2, -1), mode="r").swapaxes(-2, -1)
    signs = np.where(np.diagonal(triangle, axis1=-2, axis2=-1) < 0, -1.0, 1.0)
    return np.asarray(triangle * signs[..., None, :])


def sds_and_correlation(factor: Array) -> tuple[Array, Array]:
    """Standard deviations (k,) and correlation matrix (k, k) of ``factor @ factor.T``.

    Correlations with a coefficient of zero standard deviation are undefined: NaN, with ones on the
    diagonal.
    """
    sds = np.sqrt(np.sum(factor**2, axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        rows = factor / sds[:, None]
    corr = np.clip(rows @ rows.T, -1.0, 1.0)
    np.fill_diagonal(corr, 1.0)
    return sds, corr


def correlation_cholesky(structure: Structure, coordinates: Array) -> Array:
    """Cholesky factor (..., k, k) of the correlations at coordinates (..., n_pairs)."""
    k = structure.n_coefs
    lower = np.zeros((*coordinates.shape[:-1], k, k))
    lower[..., range(k), range(k)] = 1.0
    partial = np.tanh(coordinates)
    position = 0
    for block in structure.blocks:
        for row in range(1, len(block)):
            left = np.ones(coordinates.shape[:-1])
            for col in range(row):
                lower[..., block[row], block[col]] = partial[..., position] * left
                left = left * np.sqrt(1.0 - partial[..., position] ** 2)
                position += 1
            lower[..., block[row], block[row]] = left
    return lower


def correlation_coordinates(structure: Structure, lower: Array) -> Array:
    """Inverse (..., n_pairs) of :func:`correlation_cholesky` at factors (..., k, k).

    Infinite at a correlation of plus or minus one.
    """
    coordinates = np.zeros((*lower.shape[:-2], len(structure.pairs)))
    position = 0
    for block in structure.blocks:
        for row in range(1, len(block)):
            left = np.ones(lower.shape[:-2])
            for col in range(row):
                entry = lower[..., block[row], block[col]]
                safe = np.where(left > 0, left, 1.0)
                partial = np.where(left > 0, np.clip(entry / safe, -1.0, 1.0), 0.0)
                with np.errstate(divide="ignore"):
                    coordinates[..., position] = np.arctanh(partial)
                left = left * np.sqrt(1.0 - partial**2)
                position += 1
    return coordinates


def correlation_cholesky_jacobian(structure: Structure, coordinates: Array) -> Array:
    """Derivative (n_pairs, k, k) of :func:`correlation_cholesky` by its coordinates."""
    lower = correlation_cholesky(structure, coordinates)
    partial = np.tanh(coordinates)
    jacobian = np.zeros((len(coordinates), structure.n_coefs, structure.n_coefs))
    start = 0
    for block in structure.blocks:
        for row in range(1, len(block)):
            for col in range(row):
                here = jacobian[start + col, block[row]]
                left = np.prod(np.sqrt(1.0 - partial[start : start + col] ** 2))
                here[block[col]] = (1.0 - partial[start + col] ** 2) * left
                later = list(block[col + 1 : row + 1])
                here[later] = -partial[start + col] * lower[block[row], later]
            start += row
    return jacobian


def correlation_log_jacobian(structure: Structure, coordinates: Array) -> Array:
    """Log absolute Jacobian (...,) of the correlation matrix entries by coordinates (..., n_pairs).

    References
    ----------
    Lewandowski, Kurowicka, Joe (2009), doi:10.1016/j.jmva.2009.04.008, equations (2) and (3).
    """
    return np.asarray(-2.0 * _log_cosh(coordinates) @ _jacobian_powers(structure))


def correlation_log_jacobian_slope(structure: Structure, coordinates: Array) -> Array:
    """Derivative (n_pairs,) of :func:`correlation_log_jacobian` by its coordinates."""
    return -2.0 * _jacobian_powers(structure) * np.tanh(coordinates)


def _jacobian_powers(structure: Structure) -> Array:
    """Powers (n_pairs,) of one minus the squared partial correlations in the Jacobian."""
    return np.array(
        [
            0.5 * (len(block) - col - 2) + 1.0
            for block in structure.blocks
            for row in range(1, len(block))
            for col in range(row)
        ]
    )


def is_singular(working: Array, factor: Array, tolerance: float) -> bool:
    """Whether a relative factor has lost rank: lme4's ``isSingular``, made free of units.

    Parameters
    ----------
    working : ndarray (k, k)
        The factor in the working basis, where every covariate has unit length: a row of length
        below `tolerance` is a standard deviation of zero.
    factor : ndarray (k, k)
        The factor in the user's coordinates: a diagonal entry below `tolerance` times the length
        of its row is a correlation of one.
    tolerance : float
        lme4 has 1e-4.
    """
    sds = np.sqrt(np.sum(factor**2, axis=1))
    small = np.sqrt(np.sum(working**2, axis=1)) < tolerance
    return bool(np.any(small) or np.any(np.abs(np.diag(factor)) < tolerance * sds))


def split(structures: Iterable[Structure], vector: Array) -> list[Array]:
    """Cut a concatenated parameter vector into one piece per grouping factor."""
    sizes = [structure.n_theta for structure in structures]
    return np.split(vector[: sum(sizes)], np.cumsum(sizes)[:-1])


def _log_cosh(x: Array) -> Array:
    return np.abs(x) + np.log1p(np.exp(-2.0 * np.abs(x))) - np.log(2.0)
