"""F tests of fixed effects with Satterthwaite's degrees of freedom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from bayeslmm.estimation.estimate import Fit
from bayeslmm.summaries.estimate_tables import satterthwaite

Array = NDArray[np.float64]

RANK = float(np.sqrt(np.finfo(np.float64).eps))
"""Eigenvalue of the correlations over the largest one below which a row counts as repeated."""

MAP_NOTE = (
    "A MAP estimate: the covariance matrix of the fixed effects is a posterior one, and the tests "
    "are chi-square tests (F with infinite den_df)."
)

EQUAL_DF = 1e-8
"""Degrees of freedom that differ by less are one number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FTest:
    """An F test.

    Attributes
    ----------
    sum_sq, mean_sq : float
        Sum of squares of the hypothesis on the scale of the residuals, and over `num_df`.
    num_df, den_df : float
        Degrees of freedom.
    statistic, p_value : float
        F and the probability of a larger one.
    """

    sum_sq: float
    mean_sq: float
    num_df: int
    den_df: float
    statistic: float
    p_value: float

    def row(self) -> dict[str, float]:
        """As a row of a table."""
        names = ("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")
        return {name: getattr(self, name) for name in names}


def f_test(fit: Fit, matrix: Array, value: Array | None = None) -> FTest:
    """Test the hypothesis ``matrix @ beta == value``.

    Parameters
    ----------
    fit : Fit
        A REML or ML fit. For "MAP", whose covariance matrix is a posterior one, the denominator
        has infinite degrees of freedom.
    matrix : ndarray (q, p)
        Weights of the coefficients; repeated rows count once.
    value : ndarray (q,), optional
        Zeros by default.

    Returns
    -------
    FTest
        NaN where the hypothesis is empty.

    References
    ----------
    Fai, Cornelius (1996), doi:10.1080/00949659608811740; Kuznetsova, Brockhoff, Christensen
    (2017), doi:10.18637/jss.v082.i13 (``lmerTest::contestMD``).
    """
    value = np.zeros(len(matrix)) if value is None else value
    covariance = matrix @ fit.vcov @ matrix.T
    scale = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    count = _rank(covariance, scale)
    if count == 0:
        return FTest(
            sum_sq=np.nan, mean_sq=np.nan, num_df=0, den_df=np.nan, statistic=np.nan, p_value=np.nan
        )
    sizes, vectors = np.linalg.eigh(covariance)
    sizes, vectors = sizes[-count:], vectors[:, -count:]
    directions = vectors.T
    squares = (directions @ (matrix @ fit.beta - value)) ** 2 / sizes
    statistic = float(squares.mean())
    each = np.array([satterthwaite(fit, row) for row in directions @ matrix])
    den_df = combined_df(each)
    return FTest(
        sum_sq=statistic * count * fit.sigma**2,
        mean_sq=statistic * fit.sigma**2,
        num_df=count,
        den_df=den_df,
        statistic=statistic,
        p_value=f_tail(statistic, count, den_df),
    )


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
    mean = float(np.sum(each / (each - 2.0)))
    return 2.0 * mean / (mean - len(each))


def f_tail(statistic: float, num_df: int, den_df: float) -> float:
    """Probability of a larger F."""
    if np.isinf(den_df):
        return float(stats.chi2.sf(num_df * statistic, num_df))
    return float(stats.f.sf(statistic, num_df, den_df))


def noted(fit: Fit, table: pd.DataFrame, note: str = "") -> pd.DataFrame:
    """Put into ``attrs["note"]`` what a reader should know, and that of a MAP estimate's tests."""
    notes = [MAP_NOTE] * (fit.method == "MAP") + [note] * bool(note)
    if notes:
        table.attrs["note"] = " ".join(notes)
    return table


def contest_table(
    fit: Fit, coefs: Sequence[str], weights: ArrayLike, value: ArrayLike | None
) -> pd.DataFrame:
    """Joint F test of given weights; arguments as in ``estimate.contest()``."""
    if isinstance(weights, Mapping):
        raise TypeError(
            "L is a mapping; rows of weights are expected: an array, or a data frame whose columns "
            "are coefficients, such as pd.DataFrame({'x': [1], 'z': [-1]})."
        )
    if isinstance(weights, pd.DataFrame):
        unknown = [str(name) for name in weights.columns if name not in coefs]
        if unknown:
            raise ValueError(
                f"L names {', '.join(unknown)}; the coefficients are {', '.join(coefs)}."
            )
        weights = weights.reindex(columns=list(coefs), fill_value=0.0).to_numpy()
    matrix = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != len(coefs) or not np.isfinite(matrix).all():
        raise ValueError(
            f"L has shape {np.shape(weights)}: finite weights, one column for each of the "
            f"{len(coefs)} coefficients {', '.join(coefs)}, are expected."
        )
    if not matrix.any(axis=1).all():
        raise ValueError("L has a row of zeros, which is no hypothesis about the coefficients.")
    right = None if value is None else np.atleast_1d(np.asarray(value, dtype=np.float64))
    if right is not None and right.shape != (len(matrix),):
        raise ValueError(f"rhs has shape {right.shape}; L has {len(matrix)} rows.")
    test = f_test(fit, matrix, right)
    table = pd.DataFrame([test.row()], index=pd.Index(["contest"], name="test"))
    return noted(fit, table)
