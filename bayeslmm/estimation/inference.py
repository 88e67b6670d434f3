"""How fixed effects of an estimate are judged: covariance matrix, degrees of freedom, F tests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, override

import numpy as np
from numpy.typing import NDArray

from bayeslmm.estimation.estimate import Fit

Array = NDArray[np.float64]

DfMethod = Literal[
    "satterthwaite", "kenward-roger", "kenward-roger-linear", "residual", "asymptotic"
]

CERTAIN = 1e-12
"""Squared relative error of a variance up to which the variance is known, but for rounding."""

RANK = float(np.sqrt(np.finfo(np.float64).eps))
"""Eigenvalue of the correlations over the largest one below which a row counts as repeated."""

EQUAL_DF = 1e-8
"""Degrees of freedom that differ by less are one number."""


class FTest(NamedTuple):
    """An F statistic with its degrees of freedom; NaN where the hypothesis is empty.

    Attributes
    ----------
    statistic : float
        F.
    num_df : int
        Independent rows of the hypothesis.
    den_df : float
        Denominator degrees of freedom.
    factor : float
        What F was multiplied by, so that its distribution is one of F.
    """

    statistic: float
    num_df: int
    den_df: float
    factor: float = 1.0


EMPTY = FTest(np.nan, 0, np.nan)
"""The test of a hypothesis without rows."""


@dataclass(frozen=True, eq=False)
class Inference(ABC):
    """Standard errors and tests of linear combinations of the fixed effects of an estimate.

    Everything that an estimate says about them goes through one such value.

    Attributes
    ----------
    fit : Fit
        The estimate.
    """

    fit: Fit

    name: ClassVar[str]
    """Name of the method, as ``df=`` has it."""

    words: ClassVar[str]
    """What tests and intervals use, in words."""

    brief: ClassVar[str]
    """The same in a few words, for footnotes."""

    citation: ClassVar[str] = ""
    """Key of its reference, if any."""

    @property
    def note(self) -> str:
        """What prints should say; nothing for Satterthwaite's method, the default."""
        return f"Tests and intervals of fixed effects use {self.words}."

    @property
    def vcov(self) -> Array:
        """Covariance matrix (p, p) of beta."""
        return self.fit.vcov

    @abstractmethod
    def df(self, weights: Array) -> Array:
        """Degrees of freedom (m,) of the t statistics of combinations with weights (m, p)."""

    def f_test(self, matrix: Array, value: Array) -> FTest:
        """Test that ``matrix @ beta == value``, matrix (q, p) of any rank.

        References
        ----------
        Fai, Cornelius (1996), doi:10.1080/00949659608811740; Kuznetsova, Brockhoff, Christensen
        (2017), doi:10.18637/jss.v082.i13 (``lmerTest::contestMD``).
        """
        rows, gap, sizes = independent_rows(self.vcov, matrix, matrix @ self.fit.beta - value)
        if not len(rows):
            return EMPTY
        return FTest(float(np.mean(gap**2 / sizes)), len(rows), combined_df(self.df(rows)))


def independent_rows(vcov: Array, matrix: Array, gap: Array) -> tuple[Array, Array, Array]:
    """Uncorrelated combinations (r, p) that span a hypothesis, their gap (r,) and variances (r,).

    Parameters
    ----------
    vcov : ndarray (p, p)
        Covariance matrix of beta.
    matrix : ndarray (q, p)
        Weights; repeated rows count once, whatever the units of the rows.
    gap : ndarray (q,)
        ``matrix @ beta`` less its value under the hypothesis.
    """
    covariance = matrix @ vcov @ matrix.T
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    count = _rank(covariance, scale)
    sizes, vectors = np.linalg.eigh(covariance)
    kept = slice(len(sizes) - count, None)
    directions = vectors[:, kept].T
    return directions @ matrix, directions @ gap, sizes[kept]


def _rank(covariance: Array, scale: Array) -> int:
    """Number of independent rows of a hypothesis, whatever their units."""
    used = scale > 0
    if not used.any():
        return 0
    correlation = covariance[np.ix_(used, used)] / np.outer(scale[used], scale[used])
    sizes = np.linalg.eigvalsh(correlation)
    return int(np.sum(sizes > RANK * sizes.max()))


def combined_df(each: Array) -> float:
    """Degrees of freedom of an F statistic from those of its independent t statistics (q,)."""
    if np.isinf(each).all():
        return float("inf")
    if len(each) == 1 or np.all(np.abs(np.diff(each)) < EQUAL_DF):
        return float(each.mean())
    if np.any(each <= 2.0):
        return 2.0
    finite = each[np.isfinite(each)]
    mean = float(np.sum(finite / (finite - 2.0))) + len(each) - len(finite)
    return 2.0 * mean / (mean - len(each))


@dataclass(frozen=True, eq=False)
class Satterthwaite(Inference):
    """Model-based standard errors with Satterthwaite's degrees of freedom."""

    name = "satterthwaite"
    words = "t distributions with Satterthwaite's degrees of freedom"
    brief = "Satterthwaite t"
    citation = "satterthwaite"

    @property
    @override
    def note(self) -> str:
        return ""

    @override
    def df(self, weights: Array) -> Array:
        return np.array([satterthwaite(self.fit, row) for row in weights])


@dataclass(frozen=True, eq=False)
class Residual(Inference):
    """Model-based standard errors with the degrees of freedom of least squares, n - p."""

    name = "residual"
    words = "t distributions with residual degrees of freedom (rows less fixed effects)"
    brief = "t with residual degrees of freedom"

    @override
    def df(self, weights: Array) -> Array:
        products = self.fit.plan.products
        return np.full(len(weights), float(products.n_obs - products.n_fixed))


@dataclass(frozen=True, eq=False)
class Asymptotic(Inference):
    """Model-based standard errors with normal and chi-square tests."""

    name = "asymptotic"
    words = "normal distributions (infinite degrees of freedom)"
    brief = "normal"

    @override
    def df(self, weights: Array) -> Array:
        return np.full(len(weights), np.inf)


@dataclass(frozen=True, eq=False)
class Mode(Asymptotic):
    """Posterior standard deviations at a posterior mode; notes of a "MAP" estimate tell of them."""

    @property
    @override
    def note(self) -> str:
        return ""


def satterthwaite(fit: Fit, contrast: Array) -> float:
    """Satterthwaite's denominator degrees of freedom of a linear combination of beta.

    Infinite where the variance is known: all variances are fixed, or those that are not are
    estimated at zero.

    Parameters
    ----------
    fit : Fit
        A REML or ML fit.
    contrast : ndarray (p,)
        Weights of the coefficients.

    References
    ----------
    Kuznetsova, Brockhoff, Christensen (2017), doi:10.18637/jss.v082.i13.
    """
    variance = contrast @ fit.vcov @ contrast
    slopes = np.einsum("i,mij,j->m", contrast, fit.vcov_gradient, contrast)
    relative = slopes / variance  # variances may be too small or large to be squared
    spread = float(relative @ fit.internal_cov @ relative)
    return 2.0 / spread if spread > CERTAIN else float("inf")


def default_inference(fit: Fit) -> Inference:
    """What an estimate is judged by where nothing was chosen."""
    return Mode(fit) if fit.method == "MAP" else Satterthwaite(fit)
