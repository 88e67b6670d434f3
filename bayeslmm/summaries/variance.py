"""Variance components as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design

Array = NDArray[np.float64]


def variance_frame(design: Design, covariances: Sequence[Array], sigma: float) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations (lme4's ``VarCorr``).

    Returns
    -------
    pandas.DataFrame
        Columns group, term, term_2 (of a covariance, else missing), vcov, sdcor.
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
    frame = pd.DataFrame(rows, columns=["group", "term", "term_2", "vcov", "sdcor"])
    text = frame["group"].dtype  # what pandas makes of text, whether or not a column has any
    return frame.astype({"term": text, "term_2": text})
