"""The LKJ prior of a correlation matrix, with respect to the entries of that matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln

from bayeslmm.priors.families import Record

Array = NDArray[np.float64]

_LOG_2 = float(np.log(2.0))


@dataclass(frozen=True, slots=True)
class LKJ(Record):
    """LKJ distribution of a correlation matrix, a density proportional to ``det(Omega)**(eta-1)``.

    Attributes
    ----------
    eta : float
        Shape; 1 is uniform over correlation matrices, larger values favour weak correlations.

    Notes
    -----
    Densities are with respect to Lebesgue measure on the entries of the correlation matrix, not
    of its Cholesky factor, although the factor is the argument.

    References
    ----------
    Lewandowski, Kurowicka, Joe (2009), doi:10.1016/j.jmva.2009.04.008.

    Examples
    --------
    >>> round(float(LKJ(1.0).logpdf([[1.0, 0.0], [0.6, 0.8]])), 4)   # uniform on (-1, 1)
    -0.6931
    """

    eta: float

    def __post_init__(self) -> None:
        self.require_positive("eta")

    def logpdf(self, x: ArrayLike) -> Array:
        """Return the log density at Cholesky factors `x` of shape (..., k, k)."""
        chol = np.asarray(x, dtype=float)
        with np.errstate(divide="ignore"):
            log_diag = np.log(np.diagonal(chol, axis1=-2, axis2=-1)).sum(axis=-1)
        constant = self.log_constant(chol.shape[-1])
        power = np.zeros_like(log_diag) if self.eta == 1 else 2 * (self.eta - 1) * log_diag
        return np.asarray(constant + power, dtype=float)

    def logpdf_correlation(self, omega: ArrayLike) -> Array:
        """Return the log density at correlation matrices `omega` of shape (..., k, k)."""
        matrix = np.asarray(omega, dtype=float)
        constant = self.log_constant(matrix.shape[-1])
        if self.eta == 1:
            return np.full(matrix.shape[:-2], constant)
        with np.errstate(divide="ignore"):
            log_det: Array = np.linalg.slogdet(matrix)[1]
        return constant + (self.eta - 1) * log_det

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return the derivative of the log density by the entries of the factor, same shape."""
        chol = np.asarray(x, dtype=float)
        return 2 * (self.eta - 1) * np.eye(chol.shape[-1]) / np.where(chol == 0, 1.0, chol)

    def log_constant(self, size: int) -> float:
        """Return the log normalising constant of ``size x size`` matrices."""
        shape = self._beta_shapes(size)
        terms = betaln(shape, shape) + (2 * shape - 1) * _LOG_2
        return float(-np.sum(np.arange(size - 1, 0, -1) * terms))

    def sample_cholesky(self, rng: np.random.Generator, draws: int, size: int) -> Array:
        """Draw Cholesky factors (draws, size, size) through canonical partial correlations."""
        lower = np.zeros((draws, size, size))
        lower[:, 0, 0] = 1.0
        shape = self._beta_shapes(size)
        for row in range(1, size):
            left = np.ones(draws)
            for col in range(row):
                partial = 2 * rng.beta(shape[col], shape[col], draws) - 1
                lower[:, row, col] = partial * left
                left = left * np.sqrt(1 - partial**2)
            lower[:, row, row] = left
        return lower

    def _beta_shapes(self, size: int) -> Array:
        """Beta shape of the partial correlations in each column, (size - 1,)."""
        return np.asarray(self.eta + 0.5 * np.arange(size - 2, -1, -1), dtype=float)
