"""What a covariance structure of the random effects is, and matrices that all of them share.

One level of a grouping factor with k coefficients has the covariance matrix ``D Omega D``, with
standard deviations D and a correlation matrix Omega. Its relative factor is
``T = D chol(Omega) / sigma``. A structure says which Omega there are, in two coordinate systems:

* correlation coordinates, unconstrained, beside the log standard deviations: for samplers;
* theta, which with the sds gives T smoothly across singular fits: for the maxima of likelihoods.

Coefficients may share a standard deviation. A structure is made of parts: on each block of
coefficients one structure of its own, independent of the others.

Arrays have points first: ``(..., k, k)`` is one matrix per point.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Blocks = tuple[tuple[int, ...], ...]

DEPENDENT = 1e-12
"""Length of a column's residual, relative to the column, below which it counts as dependent.

A square of years in units of a day away from their origin leaves 2e-11; rounding in long columns of
dependent ones about 1e-14.
"""


class Structure(Protocol):
    """Covariance structure of one grouping factor: to add one, write a class with these members.

    Structures are values: equal ones compare equal.
    """

    @property
    def n_coefs(self) -> int:
        """Number of coefficients k."""
        ...

    @property
    def blocks(self) -> Blocks:
        """A partition of ``range(k)``: coefficients are correlated within a block only."""
        ...

    @property
    def parts(self) -> tuple[Structure, ...]:
        """The structure of each block by itself."""
        ...

    @property
    def name(self) -> str:
        """Of a structure of one part, as in a formula."""
        ...

    @property
    def words(self) -> str:
        """Of a structure of one part, in a sentence."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether the columns of a block may be exchanged for any basis of their span."""
        ...

    @property
    def homogeneous(self) -> bool:
        """Whether all coefficients have one standard deviation, though they are several."""
        ...

    @property
    def n_sds(self) -> int:
        """Number of standard deviations."""
        ...

    @property
    def sd_places(self) -> Indices:
        """Which standard deviation each coefficient has (k,)."""
        ...

    @property
    def even(self) -> NDArray[np.bool_]:
        """Which sds may change sign without a change of the covariance matrices that are possible.

        (n_sds,): turning such an sd turns correlations with it to others of the structure.
        """
        ...

    @property
    def n_cors(self) -> int:
        """Number of correlation coordinates."""
        ...

    @property
    def n_theta(self) -> int:
        """Number of entries of theta, sds included."""
        ...

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs (row, column), row > column, whose correlations determine all: (n_cors,)."""
        ...

    @property
    def direct(self) -> bool:
        """Whether coordinates are inverse hyperbolic tangents of the correlations at `pairs`."""
        ...

    def from_correlations(self, correlations: Array) -> Array:
        """Coordinates (..., n_cors) from the correlations at `pairs`."""
        ...

    def cholesky(self, z: Array) -> Array:
        """Cholesky factor (..., k, k) of Omega at correlation coordinates (..., n_cors)."""
        ...

    def coordinates(self, lower: Array) -> Array:
        """Inverse of :meth:`cholesky`; infinite at a correlation of plus or minus one."""
        ...

    def pull_back(self, z: Array, slope: Array) -> Array:
        """Derivatives (..., n_cors) from those by the entries of :meth:`cholesky` (..., k, k)."""
        ...

    def log_jacobian(self, z: Array) -> Array:
        """Log Jacobian (...,) of what has the prior by the coordinates.

        That is the entries of an unstructured Omega, or the parameters of a pattern.
        """
        ...

    def parameter_slopes(self, z: Array) -> Array:
        """Derivative (..., n_cors) of each parameter of a pattern by its coordinate, else zero."""
        ...

    def log_jacobian_slope(self, z: Array) -> Array:
        """Derivatives (..., n_cors) of :meth:`log_jacobian`."""
        ...

    def factor(self, theta: Array) -> Array:
        """Relative factor T (..., k, k) at theta (..., n_theta)."""
        ...

    def theta(self, factor: Array) -> Array:
        """Inverse of :meth:`factor` for lower triangular T."""
        ...

    def theta_slopes(self, theta: Array) -> Array:
        """Derivatives (n_theta, k, k) of :meth:`factor` at one theta (n_theta,)."""
        ...

    def theta_gradient(self, theta: Array, slope: Array) -> Array:
        """Derivatives (..., n_theta) from those by the entries of T (..., k, k)."""
        ...

    @property
    def theta_sds(self) -> NDArray[np.bool_]:
        """Which entries of theta are zero at a singular T and positive elsewhere: (n_theta,)."""
        ...

    def negligible(self, theta: Array, tolerance: float) -> Iterator[tuple[Indices, Array]]:
        """Sets of entries of theta so near to values of a singular T, with these values."""
        ...


def sd_leaders(structure: Structure) -> Indices:
    """The first coefficient (n_sds,) of each standard deviation."""
    return np.unique(structure.sd_places, return_index=True)[1]


def log_cosh(x: Array) -> Array:
    """Logarithm of the hyperbolic cosine."""
    return np.abs(x) + np.log1p(np.exp(-2.0 * np.abs(x))) - np.log(2.0)


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


def is_singular(working: Array, tolerance: float) -> bool:
    """Whether a relative factor has lost rank: lme4's ``isSingular``, free of units and origins.

    Parameters
    ----------
    working : ndarray (k, k)
        The factor in the working basis, where covariates are orthogonal and have unit length. A row
        of length below `tolerance` is a standard deviation of zero; one that the rows before it
        explain up to `tolerance` times its length, a correlation of one.
    tolerance : float
        lme4 has 1e-4.
    """
    return bool(np.any(zero_sds(working, tolerance)) or np.any(explained(working, tolerance)))


def zero_sds(working: Array, tolerance: float) -> NDArray[np.bool_]:
    """Which coefficients (k,) of a factor in the working basis have no standard deviation."""
    return np.linalg.norm(working, axis=1) < tolerance


def explained(working: Array, tolerance: float) -> NDArray[np.bool_]:
    """Which coefficients (k,) of a factor in the working basis those before them determine."""
    own = np.abs(np.diag(np.linalg.qr(working.T, mode="r")))
    return own < tolerance * np.linalg.norm(working, axis=1)
