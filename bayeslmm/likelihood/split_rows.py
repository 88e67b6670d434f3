"""Splitting the rows of data of which fixed and random effects leave little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.crossprod import Basis, RandomColumns, Split, cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import eliminate_random
from bayeslmm.likelihood.shrinkage import spherical_modes

Array = NDArray[np.float64]

SMALL_RESIDUAL = 1e-6
"""Share of the sum of squares below which a difference of cross-products has lost too many digits.

Above it, ten are left.
"""

ROUNDING = 1e-20
"""Share of the sum of squares that is nothing but rounding."""

FAR = 1e4
"""Relative standard deviations at which random effects are nearly least squares coefficients."""

ROUNDS = 3
"""Solutions for the coefficients: each leaves about FAR^-2 of the error of the one before."""

DEPENDENT = 1e-10
"""Relative length below which what Z leaves of the columns of X counts as nothing."""


def split_where_small(
    plan: Plan, y: Array, X: Array, factors: Sequence[RandomColumns], weights: Array | None
) -> Plan:
    """The plan, with a split of the rows if fixed and random effects leave little of them.

    Parameters
    ----------
    plan : Plan
        The cross-products of the rows.
    y, X, factors, weights
        The rows, as in ``crossprod.cross_products``.

    Returns
    -------
    Plan
    """
    far = [FAR * np.eye(s.n_coefs) for s in plan.products.structures]
    fixed = eliminate_random(plan, far, overwrite=True).fixed
    if _last_pivot(fixed) >= SMALL_RESIDUAL * plan.products.fixed[-1, -1]:
        return plan
    basis = plan.products.basis
    rest = np.column_stack([X @ basis.fixed, y - X @ basis.shift])
    coefs, rest = _regress(rest, factors, weights, basis.random, far)
    root = 1.0 if weights is None else np.sqrt(weights)[:, None]
    scaled = rest * root
    shift = _regression(scaled[:, :-1], scaled[:, -1], DEPENDENT * np.sqrt(len(y)))
    scaled[:, -1] -= scaled[:, :-1] @ shift
    for c in coefs:
        c[:, :, -1] -= c[:, :, :-1] @ shift
    products = scaled.T @ scaled
    units = [_units(c[:, :, -1], products[-1, -1] / len(y), plan) for c in coefs]
    moved = Basis(
        fixed=basis.fixed,
        shift=basis.shift + basis.fixed @ shift,
        random=tuple(a * unit for a, unit in zip(basis.random, units, strict=True)),
    )
    coefs = [c / unit[:, None] for c, unit in zip(coefs, units, strict=True)]
    moved_products = cross_products(y, X, factors, weights=weights, basis=moved)
    return replace(make_plan(moved_products), split=Split(products, tuple(coefs)))


def _units(coefs: Array, variance: float, plan: Plan) -> Array:
    """Sizes (k,) of the coefficients of the response (J, k) relative to the residual sd.

    Relative factors are of order one in these units, as searches expect. Where nothing is left of
    the response there is no natural size, and the units are one.
    """
    if variance <= ROUNDING * plan.products.fixed[-1, -1] / plan.products.n_obs:
        return np.ones(coefs.shape[1])
    return np.asarray(np.maximum(1.0, np.sqrt(np.mean(coefs**2, axis=0) / variance)))


def _last_pivot(fixed: Array) -> float:
    """What is left of the last column's square after the others, some of which may be zero."""
    shift = _regression(fixed[:-1, :-1], fixed[:-1, -1], 0.0)
    return float(fixed[-1, -1] - fixed[-1, :-1] @ shift)


def _regression(columns: Array, target: Array, smallest: float) -> Array:
    """Least squares coefficients in the directions of singular values above `smallest`."""
    left, sizes, right = np.linalg.svd(columns, full_matrices=False)
    large = sizes > smallest
    return np.asarray((right[large].T / sizes[large]) @ (left[:, large].T @ target))


def _regress(
    columns: Array,
    factors: Sequence[RandomColumns],
    weights: Array | None,
    basis: tuple[Array, ...],
    far: Sequence[Array],
) -> tuple[list[Array], Array]:
    """Least squares coefficients of columns (n, m) on Z, per factor (J, k, m); the residuals."""
    p = columns.shape[1] - 1
    as_they_are = Basis(np.eye(p), np.zeros(p), basis)
    covariates = [f.Z @ a for f, a in zip(factors, basis, strict=True)]
    coefs = [np.zeros((f.n_levels, f.Z.shape[1], p + 1)) for f in factors]
    rest = columns
    for _ in range(ROUNDS):
        products = cross_products(
            rest[:, -1], rest[:, :-1], factors, weights=weights, basis=as_they_are
        )
        plan = make_plan(products)
        found = eliminate_random(plan, far)
        _, effects = spherical_modes(plan, far, found.pivots, found.chol, found.half)
        for f, z, c, u in zip(factors, covariates, coefs, effects, strict=True):
            c += u
            rest = rest - np.einsum("nk,nkm->nm", z, u[f.codes])
    return coefs, rest
