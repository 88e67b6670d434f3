"""Coefficients of single levels without pooling, and with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor

Array = NDArray[np.float64]

RANK_TOLERANCE = 1e-10
"""Smallest ratio of singular values at which a level's own coefficients are estimable."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shrinkage:
    """Coefficients of the levels of a grouping factor, by how much they are pooled.

    Attributes
    ----------
    population : ndarray (k,)
        Fixed effects that belong to the coefficients; zero for a coefficient without one.
    no_pooling : ndarray (J, k)
        Least squares in each level by itself; NaN where its rows do not determine them.
    partial : ndarray (J, k)
        Population plus random effects.
    reml : ndarray (J, k) or None
        The same by REML.
    covariance : ndarray (k, k)
        Of the random effects.
    """

    population: Array
    no_pooling: Array
    partial: Array
    reml: Array | None
    covariance: Array


def shrinkage(
    design: Design,
    place: int,
    beta: Array,
    u: Sequence[Array],
    covariance: Array,
    reml: tuple[Array, Array] | None = None,
) -> Shrinkage:
    """Coefficients by level without pooling and with it.

    Parameters
    ----------
    design : Design
        The design.
    place : int
        Place of the grouping factor.
    beta : ndarray (p,)
        Fixed effects.
    u : sequence of ndarray (J, k)
        Random effects of every grouping factor.
    covariance : ndarray (k, k)
        Covariance matrix of the random effects of the one drawn.
    reml : tuple of ndarray (p,) and (J, k), optional
        Fixed effects and random effects of this factor by REML.

    Returns
    -------
    Shrinkage
        Without pooling, the response less everything that is no coefficient of this factor (other
        fixed effects, other grouping factors, offset) is regressed on the factor's covariates in
        each level by itself.
    """
    factor = design.random[place]
    population = _matched(design, place, beta)
    kept = [np.zeros_like(v) if f == place else v for f, v in enumerate(u)]
    rest = linear_predictor(design, beta, kept) - factor.Z @ population
    no_pooling = _separate(design, place, design.y - rest)
    by_reml = None if reml is None else _matched(design, place, reml[0]) + reml[1]
    return Shrinkage(
        population=population,
        no_pooling=no_pooling,
        partial=population + u[place],
        reml=by_reml,
        covariance=covariance,
    )


def _matched(design: Design, place: int, beta: Array) -> Array:
    """Fixed effects of the factor's coefficients, by label; zero where there is none."""
    fixed = dict(zip(design.coefs, beta, strict=True))
    return np.array([fixed.get(coef, 0.0) for coef in design.random[place].coefs])


def _separate(design: Design, place: int, response: Array) -> Array:
    """Weighted least squares of the response on the covariates, level by level."""
    factor = design.random[place]
    root = np.ones(design.n) if design.weights is None else np.sqrt(design.weights)
    z, y = factor.Z * root[:, None], response * root
    result = np.full((factor.n_levels, factor.n_coefs), np.nan)
    by_level = np.argsort(factor.codes, kind="stable")
    bounds = np.searchsorted(factor.codes[by_level], np.arange(factor.n_levels + 1))
    for level, (start, stop) in enumerate(pairwise(bounds)):
        rows = by_level[start:stop]
        scale = np.linalg.norm(z[rows], axis=0)
        if len(rows) < factor.n_coefs or not scale.all():
            continue
        solution, _, rank, _ = np.linalg.lstsq(z[rows] / scale, y[rows], rcond=RANK_TOLERANCE)
        if rank == factor.n_coefs:
            result[level] = solution / scale
    return result
