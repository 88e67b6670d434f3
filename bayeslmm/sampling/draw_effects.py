"""Draws of chosen random effects for draws of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from zlib import crc32

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.likelihood.batch import batch_system, batched_cholesky
from bayeslmm.likelihood.batch_draws import draw_random
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.schema import SIGMA, cor_name, sd_name

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

AT_ONCE = 1 << 24
"""Random effects drawn at once where those of all levels are needed to draw some: 128 MB."""


def draw_effects(
    plan: Plan,
    points: Points,
    beta: Array,
    wanted: Sequence[Indices],
    rng: np.random.Generator,
) -> list[Array]:
    """Draw random effects of chosen levels, jointly, given draws of everything else.

    Parameters
    ----------
    plan : Plan
        Cross-products of the data.
    points : Points
        S covariance parameters.
    beta : ndarray (S, p)
        Fixed effects.
    wanted : sequence of ndarray (m,)
        Places of the levels, one array per grouping factor; empty where none is wanted.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of ndarray (S, m, k)
        One array per grouping factor.
    """
    # Calls for different levels must not share their noise, although they share the seed.
    key = b"|".join(np.asarray(levels).tobytes() for levels in wanted)
    rng = np.random.default_rng([int(rng.integers(2**63)), crc32(key)])
    coefs = [block.shape[1] for block in plan.products.random]
    if not any(len(levels) for levels in wanted):
        return [np.empty((len(beta), 0, k)) for k in coefs]
    with single_threaded():
        if len(wanted) == 1:
            return draw_random(batch_system(restrict(plan, wanted[0])), points, beta, rng)
        system = batch_system(plan)
        total = sum(block.shape[0] * block.shape[1] for block in plan.products.random)
        step = max(1, AT_ONCE // total)
        result = [np.empty((len(beta), len(at), k)) for at, k in zip(wanted, coefs, strict=True)]
        for start in range(0, len(beta), step):
            rows = slice(start, start + step)
            drawn = draw_random(system, points.take(rows), beta[rows], rng)
            for array, u, levels in zip(result, drawn, wanted, strict=True):
                array[rows] = u[:, levels]
        return result


def restrict(plan: Plan, levels: Indices) -> Plan:
    """Plan of a single grouping factor with some of its levels: enough to draw them given beta."""
    products = plan.products
    kept = replace(
        products,
        random=(products.random[0][levels],),
        mixed=(products.mixed[0][levels],),
    )
    return make_plan(kept)


def points_of(design: Design, posterior: xr.Dataset) -> Points:
    """Covariance parameters of all draws."""
    sizes = {factor.key: factor.n_coefs for factor in design.random}
    return points_of_variables(sizes, posterior)


def points_of_variables(sizes: Mapping[str, int], posterior: xr.Dataset) -> Points:
    """Covariance parameters of all draws.

    Parameters
    ----------
    sizes : mapping of str to int
        Number of coefficients of each grouping factor, by its key in names of variables.
    posterior : xarray.Dataset
        Draws of the public variables.
    """
    sds, chols = [], []
    for key, k in sizes.items():
        values = _flat(posterior[sd_name(key)].to_numpy())
        sds.append(values)
        chol = np.broadcast_to(np.eye(k), (len(values), k, k))
        if k > 1:
            chol = _correlation_roots(_flat(posterior[cor_name(key)].to_numpy()))
        chols.append(chol)
    sigma = posterior[SIGMA].to_numpy().ravel()
    empty = np.empty((len(sigma), 0))
    return Points(sds=tuple(sds), chols=tuple(chols), sigma=sigma, beta=empty)


def _correlation_roots(correlations: Array) -> Array:
    """Roots (S, k, k) of correlation matrices, also of those that have lost rank."""
    roots = batched_cholesky(correlations)
    lost = ~np.isfinite(roots).all(axis=(1, 2))
    if np.any(lost):
        values, vectors = np.linalg.eigh(correlations[lost])
        roots[lost] = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    return roots


def _flat(draws: Array) -> Array:
    return draws.reshape(-1, *draws.shape[2:])
