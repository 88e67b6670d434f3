"""The equations of the fixed effects without cancellation, where little of the response is left.

If fixed and random effects together leave little of the response, the residual sum of squares is
a small difference of large cross-products. With ``[X y] = Z C + E``, ``Z'E = 0`` (the ``Split`` of
a plan), it is a sum of small squares instead: for ``V = I + Z Lambda Lambda' Z'`` and the spherical
modes ``v = (I + Lambda'Z'Z Lambda)^-1 Lambda'Z'[X y]``,

    [X y]'V^-1[X y] = E'E + D'Z'Z D + v'v    with    D = C - Lambda v,

where an error of v counts by its square only. In the same way ``Z'V^-1[X y] = Z'Z D``, which is
``T^-T v`` in the directions in which a relative factor T is invertible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import Basis, CrossProducts, RandomColumns, Split, cross_products
from bayeslmm.likelihood.elimination import Plan, TailBlock, make_plan
from bayeslmm.likelihood.factorise import eliminate_random
from bayeslmm.likelihood.nested import Pivot, without_later

Array = NDArray[np.float64]

WELL_CONDITIONED = 1e-4
"""Smallest singular value of a relative factor for which its inverse is used."""


class Shrinkage(NamedTuple):
    """What shrinkage makes of the coefficients C at some relative factors.

    Attributes
    ----------
    equations : list of ndarray (J, k, p + 1)
        Z'V^-1[X y] of each grouping factor.
    fixed : ndarray (p + 1, p + 1)
        [X y]'V^-1[X y].
    """

    equations: list[Array]
    fixed: Array


def shrink(
    plan: Plan,
    factors: Sequence[Array],
    pivots: Sequence[Pivot],
    tail_chol: Array,
    tail_half: Array,
) -> Shrinkage:
    """Shrink the coefficients of a plan's split; arguments as in ``factorise.Factorisation``."""
    assert plan.split is not None
    spherical, effects = spherical_modes(plan, factors, pivots, tail_chol, tail_half)
    gaps = [c - u for c, u in zip(plan.split.coefs, effects, strict=True)]
    products = _times_gram(plan.products, gaps)
    fixed = plan.split.rest.copy()
    for parts in ((gaps, products), (spherical, spherical)):
        for a, b in zip(*parts, strict=True):
            fixed += np.einsum("jka,jkb->ab", a, b)
    equations = [_invert(t, v, z) for t, v, z in zip(factors, spherical, products, strict=True)]
    return Shrinkage(equations, 0.5 * (fixed + fixed.T))


def spherical_modes(
    plan: Plan,
    factors: Sequence[Array],
    pivots: Sequence[Pivot],
    tail_chol: Array,
    tail_half: Array,
) -> tuple[list[Array], list[Array]]:
    """Spherical modes v of the columns [X y] and Lambda v, per grouping factor (J, k, p + 1)."""
    width = plan.products.n_fixed + 1
    modes: list[Array] = [np.zeros(0)] * len(plan.products.random)
    effects = list(modes)
    tail = np.zeros((plan.n_tail, width))
    if plan.n_tail:
        white = solve_triangular(tail_chol, tail_half, lower=True, trans="T", check_finite=False)
        tail = apply_tail(white, plan.tail, factors)
        for block in plan.tail:
            shape = (block.n_levels, block.n_coefs, width)
            modes[block.factor] = white[block.columns].reshape(shape)
            effects[block.factor] = tail[block.columns].reshape(shape)
    for stage, pivot in reversed(list(zip(plan.stages, pivots, strict=True))):
        t = factors[stage.factor]
        right = without_later(stage, pivot, pivot.block.mixed, tail, effects)
        system = np.eye(len(t)) + t.T @ pivot.block.gram @ t
        modes[stage.factor] = np.linalg.solve(system, t.T @ right)
        effects[stage.factor] = t @ modes[stage.factor]
    return modes, effects


def invertible_part(factor: Array) -> tuple[Array, Array]:
    """Inverse (k, r)' restricted to well-conditioned directions, and the projection (k, k) on them.

    The first is ``V s^-1 U'`` for the large singular values of ``factor = U s V'``, the second
    ``U U'``.
    """
    left, sizes, right = np.linalg.svd(factor)
    large = sizes > WELL_CONDITIONED
    return (right[large].T / sizes[large]) @ left[:, large].T, left[:, large] @ left[:, large].T


def _invert(factor: Array, spherical: Array, equations: Array) -> Array:
    """T^-T v where T is invertible, the equations as they are elsewhere."""
    inverse, projection = invertible_part(factor)
    return inverse.T @ spherical + equations - projection @ equations


def _times_gram(products: CrossProducts, columns: Sequence[Array]) -> list[Array]:
    """Z'Z times columns given per grouping factor (J, k, m)."""
    result = [gram @ own for gram, own in zip(products.random, columns, strict=True)]
    for c in products.couplings:
        f, g = c.factors
        np.add.at(result[f], c.first, c.blocks @ columns[g][c.second])
        np.add.at(result[g], c.second, c.blocks.transpose(0, 2, 1) @ columns[f][c.first])
    return result


def apply_tail(spherical: Array, tail: tuple[TailBlock, ...], factors: Sequence[Array]) -> Array:
    """Lambda v for the tail; `spherical` is (q,) or (q, m)."""
    result = np.empty_like(spherical)
    for block in tail:
        part = spherical[block.columns].reshape(block.n_levels, block.n_coefs, -1)
        scaled = factors[block.factor] @ part
        result[block.columns] = scaled.reshape(result[block.columns].shape)
    return result


# --- splitting the rows of data of which fixed and random effects leave little ---


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
    fixed = eliminate_random(plan, _far(plan), overwrite=True).fixed
    total = plan.products.fixed[-1, -1]
    if _last_pivot(fixed) >= SUSPECT * total or is_saturated(plan, X, factors, weights):
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
    covariates = [f.Z @ a for f, a in zip(factors, basis.random, strict=True)]
    coefs = [np.zeros((f.n_levels, f.Z.shape[1], X.shape[1] + 1)) for f in factors]
    rest = np.column_stack([X @ basis.fixed, y])
    for _ in range(ROUNDS):
        products = cross_products(
            rest[:, -1], rest[:, :-1], factors, weights=weights, basis=as_they_are
        )
        part = make_plan(products)
        found = eliminate_random(part, far)
        _, effects = spherical_modes(part, far, found.pivots, found.chol, found.half)
        for f, z, c, u in zip(factors, covariates, coefs, effects, strict=True):
            c += u
            rest = rest - np.einsum("nk,nkm->nm", z, u[f.codes])
    if weights is not None:
        rest *= np.sqrt(weights)[:, None]
    shift = _regression(rest[:, :-1], rest[:, -1], DEPENDENT * np.sqrt(len(y)))
    rest[:, -1] -= rest[:, :-1] @ shift
    for c in coefs:
        c[:, :, -1] -= c[:, :, :-1] @ shift
    return coefs, rest, shift
