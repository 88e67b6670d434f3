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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.blocks import scaled
from bayeslmm.likelihood.crossprod import WorkingProducts
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.nested import Pivot, without_later
from bayeslmm.likelihood.tail import Root

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
    tail_root: Root,
    tail_half: Array,
) -> Shrinkage:
    """Shrink the coefficients of a plan's split; arguments as in ``factorise.Factorisation``."""
    assert plan.split is not None
    spherical, effects = spherical_modes(plan, factors, pivots, tail_root, tail_half)
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
    tail_root: Root,
    tail_half: Array,
) -> tuple[list[Array], list[Array]]:
    """Spherical modes v of the columns [X y] and Lambda v, per grouping factor (J, k, p + 1)."""
    width = plan.products.n_fixed + 1
    modes: list[Array] = [np.zeros(0)] * len(plan.products.random)
    effects = list(modes)
    tail = np.zeros((plan.n_tail, width))
    if plan.n_tail:
        white = tail_root.back(tail_half)
        tail = scaled(white, plan.tail, factors)
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


def _times_gram(products: WorkingProducts, columns: Sequence[Array]) -> list[Array]:
    """Z'Z times columns given per grouping factor (J, k, m)."""
    result = [gram @ own for gram, own in zip(products.random, columns, strict=True)]
    for c in products.couplings:
        f, g = c.factors
        np.add.at(result[f], c.first, c.blocks @ columns[g][c.second])
        np.add.at(result[g], c.second, c.blocks.transpose(0, 2, 1) @ columns[f][c.first])
    return result
