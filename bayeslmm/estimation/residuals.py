"""Residuals of rows under their covariance matrix R: standard deviations, draws, whitening."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.covariance.residual import ResidualRows
from bayeslmm.data.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.blocks import batched_cholesky

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ResidualKind = Literal["response", "pearson", "normalised"]

AT_ONCE = 1 << 24
"""Entries of the correlation matrices of a group that are held at once: 128 MB."""


def residual_sds(design: Design, points: AnyPoints, part: slice | Indices = slice(None)) -> Array:
    """Standard deviations (S, m) of the residuals of some rows, their weights included."""
    root = np.sqrt(design.row_weights[part])
    if points.residual.plain:
        return points.sigma[:, None] / root
    rows = _rows(design).take(part)
    return points.residual.row_sds(rows, points.sigma, points.shapes) / root


def mean_variance(design: Design, points: AnyPoints) -> Array:
    """Mean over the rows of the variance of their residuals (S,)."""
    inverse = 1.0 / design.row_weights
    if points.residual.plain:
        return np.asarray(points.sigma**2 * inverse.mean())
    rows = _rows(design)
    _, first, kind = np.unique(rows.log_sd, axis=0, return_index=True, return_inverse=True)
    sds = points.residual.row_sds(rows.take(first), points.sigma, points.shapes)
    return np.asarray(sds**2 @ (np.bincount(kind.ravel(), inverse) / design.n))


def draw_residuals(design: Design, points: AnyPoints, rng: np.random.Generator) -> Array:
    """Draws (S, n) of the residuals of rows, correlated as the model says, one for each point."""
    noise = rng.standard_normal((len(points.sigma), design.n))
    for draws, rows, root in correlation_roots(design, points):
        own = np.ix_(draws, rows)
        noise[own] = np.einsum("sij,sj->si", root, noise[own])
    return residual_sds(design, points) * noise


def whiten_residuals(design: Design, points: AnyPoints, residuals: Array) -> Array:
    """Residuals (S, n) in units in which they are independent with variance one.

    They are multiplied by the inverse Cholesky factor of R, rows of a group in the order of their
    occasions or times: nlme's "normalized" residuals.
    """
    return _whitened(design, points, residuals)[0]


def scaled_residuals(
    design: Design, residuals: Array, covariance: sp.csr_array, kind: ResidualKind
) -> Array:
    """Residuals (n,) as they are, over their standard deviations, or whitened by R (n, n)."""
    if kind == "response":
        return residuals
    if kind == "pearson" or design.residual_rows is None or design.residual_rows.group is None:
        return np.asarray(residuals / np.sqrt(covariance.diagonal()))
    white = np.empty(design.n)
    for own in design.residual_rows.groups():
        block = covariance[own][:, own].toarray()
        white[own] = np.linalg.solve(np.linalg.cholesky(block), residuals[own])
    return white


def residual_log_density(design: Design, points: AnyPoints, residuals: Array) -> Array:
    """Log density (S,) of residuals (S, n), up to the constant ``n log(2 pi) / 2``."""
    white, log_det = _whitened(design, points, residuals)
    return np.asarray(-log_det - 0.5 * np.sum(white**2, axis=1))


def _whitened(design: Design, points: AnyPoints, residuals: Array) -> tuple[Array, Array]:
    """Residuals (S, n) in units of the Cholesky factor of R, and its log determinants (S,)."""
    sds = residual_sds(design, points)
    white, log_det = residuals / sds, np.sum(np.log(sds), axis=1)
    for draws, rows, root in correlation_roots(design, points):
        own = np.ix_(draws, rows)
        white[own] = np.linalg.solve(root, white[own][..., None])[..., 0]
        log_det[draws] += np.sum(np.log(np.diagonal(root, axis1=1, axis2=2)), axis=1)
    return white, log_det


def residual_blocks(design: Design, points: AnyPoints, rows: Indices) -> Array:
    """Covariance matrices (S, o, o) of the residuals of some rows."""
    sds = residual_sds(design, points, rows)
    result = sds[:, :, None] * sds[:, None, :] * np.eye(len(rows))
    law = points.residual.correlation
    if law is None:
        return result
    known, z = _rows(design), points.residual.cors_of(points.shapes)
    assert known.group is not None
    group = known.group[rows]
    for level in np.unique(group):
        own = np.flatnonzero(group == level)
        scale = sds[:, own, None] * sds[:, None, own]
        result[:, own[:, None], own] = scale * law.matrix(z, known.take(rows[own]))
    return result


def correlation_roots(
    design: Design, points: AnyPoints
) -> Iterator[tuple[Indices, Indices, Array]]:
    """Cholesky factors of the correlations within groups, some draws at a time.

    Yields
    ------
    draws : ndarray of int (s,)
    rows : ndarray of int (o,)
        The rows of one group, in the order of their places.
    root : ndarray (s, o, o)
    """
    law = points.residual.correlation
    if law is None:
        return
    known, z = _rows(design), points.residual.cors_of(points.shapes)
    for rows in known.groups():
        if len(rows) == 1:
            continue
        step = max(1, AT_ONCE // len(rows) ** 2)
        for start in range(0, len(z), step):
            draws = np.arange(start, min(start + step, len(z)))
            yield draws, rows, batched_cholesky(law.matrix(z[draws], known.take(rows)))


def _rows(design: Design) -> ResidualRows:
    if design.residual_rows is None:
        raise DataError(
            "The rows lack the variables of the residual structure "
            f"{design.spec.residual.formula.source if design.spec.residual else ''}."
        )
    return design.residual_rows
