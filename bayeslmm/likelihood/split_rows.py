"""Splitting the rows of data of which fixed and random effects leave little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import Basis, RandomColumns, Split, cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import eliminate_random
from bayeslmm.likelihood.shrinkage import spherical_modes

Array = NDArray[np.float64]

SMALL_RESIDUAL = 1e-6
"""Share of the sum of squares below which a difference of cross-products has lost too many digits.

Above it, ten are left.
"""

EXACT = 1e-20
"""Share of the sum of squares that is nothing but rounding."""

REPRODUCED = 1e-6
"""Relative length of what is left of a vector that counts as reproduced."""

FAR = 1e3
"""Relative standard deviations at which random effects are nearly least squares coefficients.

Where levels have fewer rows than coefficients, rounding reaches the share FAR^4 of the equations.
"""

SUSPECT = 1e-4
"""Share of the sum of squares beyond which shrinkage at FAR leaves no doubt of what is left."""

ROUNDS = 3
"""Solutions for the coefficients: each leaves about FAR^-2 of the error of the one before."""

DEPENDENT = 1e-10
"""Relative length below which what Z leaves of the columns of X counts as nothing."""

EXACT_EFFECTS = (
    "the fixed and random effects reproduce the response exactly: the residual variance is zero. "
    "Remove a random-effects term or check for duplicated rows."
)


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

    Raises
    ------
    DataError
        If they leave nothing but rounding, though there are rows enough: the density then grows
        without bound as sigma goes to zero, whatever the priors.
    """
    if any(f.relationship is not None for f in factors):
        return plan  # with a row per related level nothing is left of any response
    total = plan.products.fixed[-1, -1]
    if not is_suspect(plan) or is_saturated(plan, X, factors, weights):
        return plan
    basis = plan.products.basis
    coefs, rest, shift = _regress(plan, y - X @ basis.shift, X, factors, weights)
    products = rest.T @ rest
    if products[-1, -1] >= SMALL_RESIDUAL * total:
        return plan
    if products[-1, -1] < EXACT * total:
        raise DataError(EXACT_EFFECTS)
    units = [_units(c[:, :, -1], products[-1, -1] / len(y)) for c in coefs]
    moved = Basis(
        fixed=basis.fixed,
        shift=basis.shift + basis.fixed @ shift,
        random=tuple(a * unit for a, unit in zip(basis.random, units, strict=True)),
    )
    coefs = [c / unit[:, None] for c, unit in zip(coefs, units, strict=True)]
    moved_products = cross_products(y, X, factors, weights=weights, basis=moved)
    return replace(make_plan(moved_products), split=Split(products, tuple(coefs)))


def is_suspect(plan: Plan) -> bool:
    """Whether fixed and random effects may leave so little that digits are lost."""
    fixed = eliminate_random(plan, _far(plan), overwrite=True).fixed
    return _last_pivot(fixed) < SUSPECT * float(plan.products.fixed[-1, -1])


def is_saturated(
    plan: Plan, X: Array, factors: Sequence[RandomColumns], weights: Array | None
) -> bool:
    """Whether fixed and random effects can reproduce any response; the columns span all rows."""
    probe = np.random.default_rng(0).standard_normal(len(X))
    rest = _regress(plan, probe, X, factors, weights)[1][:, -1]
    root = 1.0 if weights is None else np.sqrt(weights)
    return bool(np.linalg.norm(rest) < REPRODUCED * np.linalg.norm(root * probe))


def _units(coefs: Array, variance: float) -> Array:
    """Sizes (k,) of the coefficients of the response (J, k) relative to the residual sd.

    Relative factors are of order one in these units, as searches expect.
    """
    return np.asarray(np.maximum(1.0, np.sqrt(np.mean(coefs**2, axis=0) / variance)))


def _far(plan: Plan) -> list[Array]:
    return [FAR * np.eye(s.n_coefs) for s in plan.products.structures]


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
    plan: Plan,
    y: Array,
    X: Array,
    factors: Sequence[RandomColumns],
    weights: Array | None,
) -> tuple[list[Array], Array, Array]:
    """Least squares regression of [X y] on Z, then of y on what is left of X.

    Returns
    -------
    coefs : list of ndarray (J, k, p + 1)
        Coefficients of Z per factor.
    rest : ndarray (n, p + 1)
        Residuals, times the roots of the weights.
    shift : ndarray (p,)
        Coefficients of X, in the working basis, that are taken off y.
    """
    basis, far = plan.products.basis, _far(plan)
    as_they_are = Basis(np.eye(X.shape[1]), np.zeros(X.shape[1]), basis.random)
    sizes = [(f.n_levels, len(a)) for f, a in zip(factors, basis.random, strict=True)]
    coefs = [np.zeros((*size, X.shape[1] + 1)) for size in sizes]
    rest = np.column_stack([X @ basis.fixed, y])
    for _ in range(ROUNDS):
        products = cross_products(
            rest[:, -1], rest[:, :-1], factors, weights=weights, basis=as_they_are
        )
        part = make_plan(products)
        found = eliminate_random(part, far)
        _, effects = spherical_modes(part, far, found.pivots, found.root, found.half)
        for f, a, c, u in zip(factors, basis.random, coefs, effects, strict=True):
            c += u
            for codes, z, _ in f.slots:
                rest = rest - np.einsum("nk,nkm->nm", z @ a, u[codes])
    if weights is not None:
        rest *= np.sqrt(weights)[:, None]
    shift = _regression(rest[:, :-1], rest[:, -1], DEPENDENT * np.sqrt(len(y)))
    rest[:, -1] -= rest[:, :-1] @ shift
    for c in coefs:
        c[:, :, -1] -= c[:, :, :-1] @ shift
    return coefs, rest, shift
