"""Residuals of rows: scales, standard deviations, draws, densities, whitening by R.

The scale of a row is its standard deviation where residuals are normal; that of a Student-t
residual is smaller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import AnyPoints, Points
from bayeslmm.covariance.residual import LARGEST_LOG, ResidualRows
from bayeslmm.data.design import Design
from bayeslmm.data.scale_model import ScaleRows
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.blocks import batched_cholesky

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ResidualKind = Literal["response", "pearson", "normalised"]

AT_ONCE = 1 << 24
"""Entries of the correlation matrices of a group that are held at once: 128 MB."""


def require_normal_residuals(design: Design, what: str) -> None:
    """Refuse what is there for normal residuals of one variance, or of a structure, only.

    Raises
    ------
    DataError
        If the model has Student-t residuals or predictors of their scale.
    """
    if (reason := design.spec.conditional) is not None:
        raise DataError(
            f"{what} is not there for a model with {reason}: it is for normal residuals of one "
            "variance."
        )


def residual_sds(design: Design, points: AnyPoints, part: slice | Indices = slice(None)) -> Array:
    """Standard deviations (S, m) of the residuals of some rows, their weights included.

    Raises
    ------
    DataError
        If Student-t residuals have no variance at some points.
    """
    require_variance(points)
    return np.sqrt(residual_variances(design, points, part))


def mean_scales(design: Design, points: Points) -> Array:
    """Mean over the points of the scale (n,) of each row, as of weight one."""
    total = np.zeros(design.n)
    for part in _parts(len(points.sigma), design.n):
        total += residual_scales(design, points.take(part)).sum(axis=0)
    return np.asarray(total * np.sqrt(design.row_weights) / len(points.sigma))


def residual_variances(
    design: Design, points: AnyPoints, part: slice | Indices = slice(None)
) -> Array:
    """Variances (S, m) of the residuals of some rows; infinite for a t with nu <= 2."""
    scales = residual_scales(design, points, part)
    if points.scale is None:
        return scales**2
    return np.asarray((scales * np.reshape(points.scale.stretch, (-1, 1))) ** 2)


def require_variance(points: AnyPoints) -> None:
    """Refuse what needs the variance of residuals that have none.

    Raises
    ------
    DataError
        If Student-t residuals have two degrees of freedom or fewer at some points.
    """
    if points.scale is None or points.scale.nu is None:
        return
    if (none := int(np.sum(points.scale.nu <= 2.0))) > 0:
        raise DataError(
            "Student-t residuals have no finite variance where nu <= 2, as in "
            f"{none:,} of {len(points.scale.nu):,} draws, so what needs it is not there. Use "
            "sigma, their scale, or give nu a prior above 2, such as priors={'nu': "
            "pm.Truncated.dist(pm.Gamma.dist(2, 0.1), lower=2)}."
        )


def residual_scales(
    design: Design, points: AnyPoints, part: slice | Indices = slice(None)
) -> Array:
    """Scales (S, m) of the residuals of some rows, their weights included.

    Rows of levels that the model has not seen, where random effects of levels have a part in the
    scale, need :func:`with_new_levels` first.
    """
    root = np.sqrt(design.row_weights[part])
    scale = points.scale
    if scale is not None and not scale.one_scale:
        own = _scale_rows(design)
        log_scales = scale.gamma @ own.W[part].T
        for factor, effects in zip(own.random, scale.effects, strict=True):
            codes, Z = factor.extended_codes[part], factor.Z[part]
            if np.any(codes >= effects.shape[1]):
                raise DataError(
                    f"`{factor.name}` in sigma= has levels that the model has not seen."
                )
            for c in range(factor.n_coefs):
                log_scales += effects[:, codes, c] * Z[:, c]
        return np.exp(np.clip(log_scales, -LARGEST_LOG, LARGEST_LOG)) / root
    if points.residual.plain:
        return points.sigma[:, None] / root
    rows = _rows(design).take(part)
    return points.residual.row_sds(rows.log_sd, points.sigma, points.shapes) / root


def with_new_levels(design: Design, points: Points, rng: np.random.Generator) -> Points:
    """Points with a draw of the random effects in the scale for levels that are new in these rows.

    Rows of one new level share it. Points that have the effects of the new levels keep them.
    """
    if points.scale is None or design.scale_rows is None:
        return points
    effects = []
    pairs = zip(design.scale_rows.random, points.scale.effects, points.scale.roots, strict=True)
    for factor, known, root in pairs:
        lacking = factor.n_levels + len(factor.new_levels) - known.shape[1]
        size = (len(root), max(lacking, 0), factor.n_coefs)
        fresh = rng.standard_normal(size) @ root.transpose(0, 2, 1)
        effects.append(np.concatenate([known, fresh], axis=1))
    return replace(points, scale=points.scale.with_effects(effects))


def with_scale_effects(design: Design, points: Points, rng: np.random.Generator) -> Points:
    """Points with a new draw of all random effects in the scale, as of other levels."""
    if points.scale is None or design.scale_rows is None:
        return points
    pairs = zip(design.scale_rows.random, points.scale.roots, strict=True)
    effects = [
        rng.standard_normal((len(root), factor.n_levels, factor.n_coefs)) @ root.transpose(0, 2, 1)
        for factor, root in pairs
    ]
    return replace(points, scale=points.scale.with_effects(effects))


def mean_variance(design: Design, points: AnyPoints) -> Array:
    """Mean over the rows of the variance of their residuals (S,)."""
    if isinstance(points, Points) and points.scale is not None and not points.scale.one_scale:
        parts = _parts(len(points.sigma), design.n)
        means = [residual_variances(design, points.take(part)).mean(axis=1) for part in parts]
        return np.concatenate(means)
    if points.residual.plain:
        stretch = 1.0 if points.scale is None else points.scale.stretch
        return np.asarray((points.sigma * stretch) ** 2 * design.mean_inverse_weight)
    kinds = design.row_kinds
    sds = points.residual.row_sds(kinds.log_sd, points.sigma, points.shapes)
    return np.asarray(sds**2 @ (kinds.inverse_weights / design.n))


def draw_residuals(design: Design, points: AnyPoints, rng: np.random.Generator) -> Array:
    """Draws (S, n) of the residuals of rows, correlated as the model says, one for each point."""
    if isinstance(points, Points) and points.scale is not None:
        points = with_new_levels(design, points, rng)
        assert points.scale is not None
        return residual_scales(design, points) * points.scale.noise(rng, design.n)
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
    """Log density (S,) of residuals (S, n), up to a constant."""
    if points.scale is not None:
        return np.asarray(row_log_density(design, points, residuals).sum(axis=1))
    white, log_det = _whitened(design, points, residuals)
    return np.asarray(-log_det - 0.5 * np.sum(white**2, axis=1))


def row_log_density(design: Design, points: AnyPoints, residuals: Array) -> Array:
    """Log density (S, n) of the residuals of each row, which must be independent."""
    if points.residual.correlation is not None:
        raise DataError(
            "Observations with correlated residuals have no log density of their own: "
            "post.loo() gives that of each row given all others."
        )
    scales = residual_scales(design, points)
    if points.scale is not None:
        return points.scale.log_density(residuals / scales) - np.log(scales)
    return -0.5 * (np.log(2 * np.pi) + (residuals / scales) ** 2) - np.log(scales)


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


def _parts(size: int, n: int) -> list[slice]:
    """Draws whose values at all rows are held at once."""
    step = max(1, AT_ONCE // max(n, 1))
    return [slice(start, start + step) for start in range(0, size, step)]


def _scale_rows(design: Design) -> ScaleRows:
    if design.scale_rows is None:
        raise DataError("The rows lack the variables of the predictors of sigma (sigma=).")
    return design.scale_rows


def _rows(design: Design) -> ResidualRows:
    if design.residual_rows is None:
        raise DataError(
            "The rows lack the variables of the residual structure "
            f"{design.spec.residual.formula.source if design.spec.residual else ''}."
        )
    return design.residual_rows
