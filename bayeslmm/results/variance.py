"""Intraclass correlation and variance components as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.inference.effects import random_variances

Array = NDArray[np.float64]


def intraclass_correlation(
    design: Design, covariances: Sequence[Array], sigma_squared: Array | float
) -> Array:
    """Share of each grouping factor in the variance of the response given the fixed effects.

    Parameters
    ----------
    design : Design
        The design.
    covariances : sequence of ndarray (..., k, k)
        Covariance matrix of each grouping factor's coefficients.
    sigma_squared : float or ndarray (...)
        Residual variance (at weight one).

    Returns
    -------
    ndarray (..., n_factors)

    Notes
    -----
    With random slopes a factor's variance depends on the covariates; its mean over the rows
    counts (Johnson 2014, doi:10.1111/2041-210X.12225). Likewise the residual variance with
    precision weights.
    """
    random = random_variances(design, covariances)
    inverse = 1.0 if design.weights is None else float(np.mean(1.0 / design.weights))
    total = random.sum(axis=-1) + np.asarray(sigma_squared) * inverse
    return random / total[..., None]


def variance_frame(design: Design, covariances: Sequence[Array], sigma: float) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations (lme4's ``VarCorr``).

    Returns
    -------
    pandas.DataFrame
        Columns group, term, term_2 (of a covariance), vcov, sdcor.
    """
    rows: list[tuple[str, str | None, str | None, float, float]] = []
    for factor, cov in zip(design.random, covariances, strict=True):
        sds = np.sqrt(np.diag(cov))
        for coef, variance, sd in zip(factor.coefs, np.diag(cov), sds, strict=True):
            rows.append((factor.name, coef, None, variance, sd))
        for block in factor.blocks:
            for position, i in enumerate(block):
                for j in block[:position]:
                    product = sds[i] * sds[j]
                    corr = cov[i, j] / product if product > 0 else np.nan
                    rows.append((factor.name, factor.coefs[j], factor.coefs[i], cov[i, j], corr))
    rows.append(("Residual", None, None, sigma**2, sigma))
    return pd.DataFrame(rows, columns=["group", "term", "term_2", "vcov", "sdcor"])
