"""The covariance parameters on the scale on which they are reported, and their derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.elimination import Plan

Array = NDArray[np.float64]


def report(
    plan: Plan, bases: Sequence[Array], working: Sequence[Array], sigma: float
) -> tuple[Array, Array]:
    """Reported covariance parameters and their Jacobian by (theta, log sigma).

    Parameters
    ----------
    plan : Plan
        The data.
    bases : sequence of ndarray (k, k)
        Maps from the working basis to the columns that the parameters are about.
    working : sequence of ndarray (k, k)
        Relative factors in the working basis.
    sigma : float
        Residual standard deviation.
    """
    values, blocks = [], []
    products = plan.products
    width = sum(s.n_theta for s in products.structures) + 1
    start = 0
    for structure, a, t in zip(products.structures, bases, working, strict=True):
        value, jacobian = _report_factor(structure.pairs, structure.theta_index, a, t)
        value[: structure.n_coefs] += np.log(sigma)
        block = np.zeros((len(value), width))
        block[:, start : start + structure.n_theta] = jacobian
        block[: structure.n_coefs, -1] = 1.0
        values.append(value)
        blocks.append(block)
        start += structure.n_theta
    last = np.zeros((1, width))
    last[0, -1] = 1.0
    return np.append(np.concatenate(values), np.log(sigma)), np.vstack([*blocks, last])


def _report_factor(
    pairs: Sequence[tuple[int, int]],
    index: tuple[NDArray[np.intp], NDArray[np.intp]],
    basis: Array,
    working: Array,
) -> tuple[Array, Array]:
    """Log relative sds and atanh correlations of one factor, and derivatives by its theta."""
    root = basis @ working
    n_theta = len(index[0])
    derivative = np.zeros((n_theta, *root.shape))
    derivative[np.arange(n_theta), :, index[1]] = basis[:, index[0]].T
    gram = root @ root.T
    d_gram = derivative @ root.T
    d_gram = d_gram + d_gram.transpose(0, 2, 1)
    variances = np.diag(gram)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sds = 0.5 * np.log(variances)
        d_log_sds = 0.5 * np.diagonal(d_gram, axis1=1, axis2=2) / variances
        values, rows = list(log_sds), list(d_log_sds.T)
        for i, j in pairs:
            scale = np.sqrt(variances[i] * variances[j])
            rho = np.clip(gram[i, j] / scale, -1.0, 1.0)
            d_rho = d_gram[:, i, j] / scale - rho * (d_log_sds[:, i] + d_log_sds[:, j])
            values.append(np.arctanh(rho))
            rows.append(d_rho / (1.0 - rho**2))
    jacobian = np.array(rows)
    at_boundary = ~np.all(np.isfinite(jacobian), axis=1) | ~np.isfinite(values)
    jacobian[at_boundary] = np.nan
    return np.array(values), jacobian
