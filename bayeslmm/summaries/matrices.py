"""The matrices of the textbook, labelled: G, R and V = ZGZ' + R, and VarCorr, a table of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.summaries.parameters import covariance_parameters

Array = NDArray[np.float64]

MAX_DENSE = 10_000
"""Largest order returned as a dense labelled matrix: 800 MB."""


def random_covariance(
    design: Design, covariances: Sequence[Array], *, sparse: bool = False
) -> pd.DataFrame | sp.csr_array:
    """G, the covariance matrix of all random effects.

    Parameters
    ----------
    design : Design
        The design.
    covariances : sequence of ndarray (k, k)
        Covariance matrix of each grouping factor's coefficients, on the response scale.
    sparse : bool
        Return a scipy sparse array instead of a labelled data frame.

    Returns
    -------
    pandas.DataFrame or scipy.sparse.csr_array (q, q)
        Rows and columns in the order of the columns of Z: factor, level, coefficient.
    """
    blocks = [
        sp.kron(sp.eye_array(factor.n_levels), sp.csr_array(sigma))
        for factor, sigma in zip(design.random, covariances, strict=True)
    ]
    return _labelled(sp.csr_array(sp.block_diag(blocks)), design.Z_labels(), "G", sparse)


def residual_covariance(
    design: Design, sigma_squared: float, *, sparse: bool = False
) -> pd.DataFrame | sp.csr_array:
    """R, the covariance matrix of the residuals: sigma^2 / weights on the diagonal."""
    diagonal = np.full(design.n, sigma_squared)
    if design.weights is not None:
        diagonal = diagonal / design.weights
    return _labelled(sp.csr_array(sp.diags_array(diagonal)), design.index, "R", sparse)


def response_covariance(
    design: Design,
    covariances: Sequence[Array],
    sigma_squared: float,
    *,
    sparse: bool = False,
) -> pd.DataFrame | sp.csr_array:
    """V = ZGZ' + R, the marginal covariance matrix of the response."""
    z = design.Z_matrix()
    g = random_covariance(design, covariances, sparse=True)
    r = residual_covariance(design, sigma_squared, sparse=True)
    return _labelled(sp.csr_array(z @ g @ z.T + r), design.index, "V", sparse)


def _labelled(
    matrix: sp.csr_array, labels: pd.Index, name: str, sparse: bool
) -> pd.DataFrame | sp.csr_array:
    if sparse:
        return matrix
    if matrix.shape[0] > MAX_DENSE:
        raise DataError(
            f"{name} has {matrix.shape[0]:,} rows; as a dense table at most {MAX_DENSE:,} are "
            f"possible. Ask for it as a sparse array: {name}(sparse=True)."
        )
    return pd.DataFrame(matrix.toarray(), index=labels, columns=labels)


def variance_frame(design: Design, covariances: Sequence[Array], sigma: float) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations (lme4's ``VarCorr``).

    Returns
    -------
    pandas.DataFrame
        Columns group, term, term_2 (of a covariance, else missing), vcov, sdcor.
    """
    *random, _ = covariance_parameters(design)
    sds = [np.sqrt(np.diag(cov)) for cov in covariances]  # (k,) per grouping factor
    rows: list[tuple[str | None, str | None, str | None, float, float]] = []
    for p in random:
        i, j = p.index[0], p.index[-1]
        value, product = covariances[p.factor][i, j], sds[p.factor][i] * sds[p.factor][j]
        if p.kind == "sd":
            rows.append((p.group, p.terms[0], None, value, sds[p.factor][i]))
        else:
            rows.append((p.group, *p.terms, value, value / product if product > 0 else np.nan))
    rows.append(("Residual", None, None, sigma**2, sigma))
    frame = pd.DataFrame(rows, columns=["group", "term", "term_2", "vcov", "sdcor"])
    text = frame["group"].dtype  # what pandas makes of text, whether or not a column has any
    return frame.astype({"term": text, "term_2": text})
