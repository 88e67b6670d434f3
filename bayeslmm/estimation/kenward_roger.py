"""Kenward and Roger's standard errors, degrees of freedom and F tests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import override

import numpy as np
from numpy.typing import NDArray

from bayeslmm.estimation.inference import EMPTY, FTest, Inference, independent_rows

Array = NDArray[np.float64]

UNKNOWN = 1e-10
"""Eigenvalue of the information, over the largest one, of a direction that the data do not see."""

CERTAIN = 1e-12
"""A2 up to which the covariance matrix of beta is known, but for rounding."""

NEAR_TWO = 1e-2
"""Distance of the degrees of freedom from two within which F is not scaled, as in pbkrtest."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Adjustment:
    """What the estimation of the covariance parameters does to the precision of beta.

    Attributes
    ----------
    root : ndarray (p, p)
        L with L L' the covariance matrix of beta at the estimated parameters.
    first : ndarray (m, p, p)
        P_i = L'X'V^-1 V_i V^-1 X L, V_i the derivative of V by the i-th covariance parameter.
    spread : ndarray (m, m)
        W, the asymptotic covariance matrix of these parameters.
    bias : ndarray (p, p)
        ``sum W_ij (Q_ij - P_i P_j - R_ij / 4)``, with Q_ij = L'X'V^-1 V_i V^-1 V_j V^-1 X L and
        R_ij = L'X'V^-1 V_ij V^-1 X L.
    """

    root: Array
    first: Array
    spread: Array
    bias: Array

    @property
    def vcov(self) -> Array:
        """Adjusted covariance matrix (p, p) of beta."""
        inner = np.eye(len(self.root)) + self.bias + self.bias.T
        return np.asarray(self.root @ inner @ self.root.T)

    def moments(self, rows: Array) -> tuple[float, float]:
        """Kenward and Roger's A1 and A2 of independent combinations (q, p) of beta."""
        basis = np.linalg.qr((rows @ self.root).T)[0]  # (p, q), orthonormal
        seen = basis.T @ self.first @ basis  # (m, q, q)
        traces = np.einsum("iqq->i", seen)
        first = float(traces @ self.spread @ traces)
        return first, float(np.einsum("ij,iqr,jrq->", self.spread, seen, seen))

    def single_moment(self, weights: Array) -> Array:
        """A1 = A2 (m,) of single combinations with weights (m, p)."""
        rows = weights @ self.root
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        traces = np.einsum("ap,ipq,aq->ai", rows, self.first, rows, optimize=True)
        return np.einsum("ai,ij,aj->a", traces, self.spread, traces)


def weighted_bias(first: Array, pairs: Array, spread: Array) -> Array:
    """``sum W_ij (Q_ij - P_i P_j)`` (p, p)."""
    turned = np.tensordot(spread, first, 1)
    return np.einsum("ij,ijpq->pq", spread, pairs) - np.einsum("ipq,iqr->pr", first, turned)


def inverse_information(information: Array) -> Array:
    """Twice the inverse of a matrix as :attr:`Forms.information`, without what data do not see."""
    scale = 1.0 / np.sqrt(np.maximum(np.diag(information), np.finfo(np.float64).tiny))
    values, vectors = np.linalg.eigh(information * np.outer(scale, scale))
    good = values > UNKNOWN * np.max(values, initial=0.0)
    inverse = (vectors[:, good] / values[good]) @ vectors[:, good].T
    return np.asarray(2.0 * inverse * np.outer(scale, scale))


def scaled_f(count: int, first: float, second: float) -> tuple[float, float]:
    """Denominator degrees of freedom and the factor of F, from A1 and A2 of `count` rows.

    References
    ----------
    Kenward, Roger (1997), doi:10.2307/2533558; ``pbkrtest::KRmodcomp`` for the cases in which a
    quotient is 0 / 0.
    """
    if second <= CERTAIN:
        return float("inf"), 1.0
    b = (first + 6.0 * second) / (2.0 * count)
    g = ((count + 1) * first - (count + 4) * second) / ((count + 2) * second)
    c = np.array([g, count - g, count + 2 - g]) / (3.0 * count + 2.0 * (1.0 - g))
    v0, v1, v2 = 1.0 + c[0] * b, 1.0 - c[1] * b, 1.0 - c[2] * b
    left = 1.0 - second / count
    ratio = 1.0 if abs(left) < 1e-14 and abs(v1) < 1e-14 else left / v1
    with np.errstate(divide="ignore"):
        rho = ratio**2 * (0.0 if abs(v0) < 1e-10 else v0 / v2) / count
    df = 4.0 + (count + 2) / (count * rho - 1.0)
    return df, 1.0 if abs(df - 2.0) < NEAR_TWO else df * left / (df - 2.0)


@dataclass(frozen=True, eq=False)
class KenwardRoger(Inference):
    """Adjusted standard errors, and degrees of freedom that match the moments of F."""

    adjustment: Adjustment

    name = "kenward-roger"
    words = "Kenward and Roger's standard errors and degrees of freedom"
    brief = "Kenward-Roger t"
    citation = "kenward_roger"

    @cached_property
    def _vcov(self) -> Array:
        return self.adjustment.vcov

    @property
    @override
    def vcov(self) -> Array:
        return self._vcov

    @override
    def df(self, weights: Array) -> Array:
        moments = self.adjustment.single_moment(weights)
        return np.array([scaled_f(1, moment, moment)[0] for moment in moments])

    @override
    def f_test(self, matrix: Array, value: Array) -> FTest:
        """Scaled F test, of which the statistic has the factor that Kenward and Roger give it.

        References
        ----------
        Kenward, Roger (1997), doi:10.2307/2533558; Halekoh, Hojsgaard (2014),
        doi:10.18637/jss.v059.i09 (``pbkrtest::KRmodcomp``).
        """
        rows, gap, sizes = independent_rows(self.vcov, matrix, matrix @ self.fit.beta - value)
        if not len(rows):
            return EMPTY
        den_df, factor = scaled_f(len(rows), *self.adjustment.moments(rows))
        return FTest(factor * float(np.mean(gap**2 / sizes)), len(rows), den_df, factor)


@dataclass(frozen=True, eq=False)
class KenwardRogerLinear(KenwardRoger):
    """The same without the second derivatives of V."""

    name = "kenward-roger-linear"
    words = "Kenward and Roger's standard errors (linear form) and degrees of freedom"
    brief = "Kenward-Roger t (linear form)"
