"""What cross-products tell of fitted values and levels where rows are not kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError
from bayeslmm.formula.moments import Moments
from bayeslmm.likelihood.crossprod import WorkingProducts

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

SPANNED = 1e-9
"""Share of the constant's length that may lie outside the columns that are to give it."""

DETERMINED = 1e-12
"""Smallest eigenvalue of the correlations of a level's covariates that sums can tell from zero."""

NO_PLAIN_SUMS = (
    "This needs sums without weights over fitted values, and the model, which was built from "
    "{words}, has none, as {reason}. Build it from a data frame in memory."
)


def gram_times(
    products: WorkingProducts, beta: Array, effects: Sequence[Array]
) -> tuple[Array, list[Array]]:
    """Products [X Z]'[X Z] c of the working columns, with weights.

    Parameters
    ----------
    products : WorkingProducts
        Cross-products.
    beta : ndarray (S, p)
        Coefficients of X, in the working basis.
    effects : sequence of ndarray (S, J, k)
        Those of Z of each grouping factor.

    Returns
    -------
    fixed : ndarray (S, p)
    random : list of ndarray (S, J, k)
    """
    p = products.n_fixed
    fixed = beta @ products.fixed[:p, :p]
    random = []
    for u, own, mixed in zip(effects, products.random, products.mixed, strict=True):
        random.append(
            np.einsum("sjk,jkl->sjl", u, own) + np.einsum("sp,jkp->sjk", beta, mixed[:, :, :p])
        )
        fixed = fixed + np.einsum("sjk,jkp->sp", u, mixed[:, :, :p])
    for part in products.couplings:
        i, j = part.factors
        for a, b in np.ndindex(*part.blocks.shape[1:]):
            shape = random[i].shape[1], random[j].shape[1]
            cells = sp.csr_array((part.blocks[:, a, b], (part.first, part.second)), shape=shape)
            random[i][:, :, a] += (cells @ effects[j][:, :, b].T).T
            random[j][:, :, b] += (cells.T @ effects[i][:, :, a].T).T
    return fixed, random


def working_effects(products: WorkingProducts, effects: Sequence[Array]) -> list[Array]:
    """Random effects (S, J, k) of the user's columns as those of the working ones."""
    pairs = zip(effects, products.basis.random, strict=True)
    return [np.asarray(u @ np.linalg.inv(basis).T) for u, basis in pairs]


def constant_of(design: SummarisedDesign) -> Array:
    """Coefficients (p,) of the working columns of X that give a one in each row.

    Raises
    ------
    DataError
        If sums have weights, or no combination of X is constant.
    """
    words = design.summary.words
    if design.weighted or design.spec.structured:
        why = "its rows have precision weights or residuals of a structure"
        raise DataError(NO_PLAIN_SUMS.format(words=words, reason=why))
    found = _constant(design.moments.take(np.arange(design.p)))
    if found is None:
        why = "the fixed effects have no intercept"
        raise DataError(NO_PLAIN_SUMS.format(words=words, reason=why))
    return np.linalg.solve(design.products.basis.fixed, found)


def _constant(moments: Moments) -> Array | None:
    """Combination (k,) of columns that is one in each row, if there is one."""
    columns, ones = moments.columns, moments.ones
    sizes = np.linalg.norm(columns, axis=0)
    scale = np.where(sizes > 0, sizes, 1.0)
    found = np.linalg.lstsq(columns / scale, ones)[0]
    if np.linalg.norm(columns / scale @ found - ones) > SPANNED * np.linalg.norm(ones):
        return None
    return np.asarray(found / scale)


def separate_coefficients(
    design: SummarisedDesign, factor: int, beta: Array, effects: Sequence[Array]
) -> Array:
    """Least squares in each level of a grouping factor by itself.

    Parameters
    ----------
    design : SummarisedDesign
    factor : int
        The grouping factor.
    beta : ndarray (p,)
        Fixed effects.
    effects : sequence of ndarray (J, k)
        Random effects; those of this factor do not matter.

    Returns
    -------
    ndarray (J, k)
        Coefficients of Z in the response less offset, X beta and the other random effects; NaN
        where the rows of a level do not determine them.

    Raises
    ------
    DataError
        If residuals have a structure.
    """
    if design.spec.structured:
        design.summary.refuse()
    products = design.products
    basis, own = products.basis, products.random[factor]
    working = np.linalg.solve(basis.fixed, beta - basis.shift)
    u = working_effects(products, [u[None] * (f != factor) for f, u in enumerate(effects)])
    _, random = gram_times(products, working[None], u)
    right = products.mixed[factor][:, :, -1] - random[factor][0]
    sizes = np.sqrt(np.einsum("jkk->jk", own))
    scale = np.where(sizes > 0, sizes, 1.0)
    correlations = own / scale[:, :, None] / scale[:, None, :]
    determined = np.linalg.eigvalsh(correlations)[:, 0] > DETERMINED
    found = np.full(right.shape, np.nan)
    scaled = (right / scale)[determined, :, None]
    found[determined] = np.linalg.solve(correlations[determined], scaled)[:, :, 0]
    return np.asarray(found / scale @ basis.random[factor].T)


def fitted_sums(
    design: SummarisedDesign,
    beta: Array,
    effects: Callable[[Sequence[Indices]], Sequence[Array]],
    at_once: int,
) -> tuple[Array, Array]:
    """Means (S,) of X beta + Zu over the rows, and sums of squares (S,) about them.

    Parameters
    ----------
    design : SummarisedDesign
    beta : ndarray (S, p)
    effects : callable
        Given places of levels (one array per grouping factor), returns their random effects
        (S, m, k) per grouping factor, on the scale of the response.
    at_once : int
        Most random effects that are held at once where there is one grouping factor.

    Raises
    ------
    DataError
        If sums have weights, or no combination of X is constant.
    """
    products, ones = design.products, constant_of(design)
    centre = float(design.moments.means[-1])  # so that no digits are lost
    working = np.linalg.solve(products.basis.fixed, beta.T).T - centre * ones
    sums, squares = np.zeros(len(beta)), np.zeros(len(beta))
    for part, levels in _parts(products, at_once // max(len(beta), 1)):
        u = working_effects(part, effects(levels) if levels else [])
        fixed, random = gram_times(part, working, u)
        sums += fixed @ ones
        squares += np.sum(working * fixed, axis=1)
        for mine, other in zip(u, random, strict=True):
            squares += np.einsum("sjk,sjk->s", mine, other)
    return centre + sums / design.n, np.maximum(squares - sums**2 / design.n, 0.0)


def residual_squares(design: SummarisedDesign, beta: Array, effects: Sequence[Array]) -> Array:
    """Weighted sum of squares (S,) of the response less offset, X beta (S, p) and Zu (S, J, k)."""
    products = design.products
    basis, p = products.basis, products.n_fixed
    working = np.linalg.solve(basis.fixed, (beta - basis.shift).T).T
    u = working_effects(products, effects)
    fixed, random = gram_times(products, working, u)
    squares = products.fixed[p, p] + np.sum(working * (fixed - 2 * products.fixed[p, :p]), axis=1)
    for own, gram, mixed in zip(u, random, products.mixed, strict=True):
        squares = squares + np.einsum("sjk,sjk->s", own, gram - 2 * mixed[:, :, p])
    return np.asarray(squares)


def _parts(products: WorkingProducts, most: int) -> Iterator[tuple[WorkingProducts, list[Indices]]]:
    """Cross-products of levels whose random effects are held together, and these levels."""
    sizes = [len(own) for own in products.random]
    if len(sizes) != 1:
        yield products, [np.arange(size) for size in sizes]
        return
    (own,), (mixed,) = products.random, products.mixed
    step = max(1, most // own.shape[1])
    fixed = products.fixed
    for first in range(0, sizes[0], step):
        levels = np.arange(first, min(first + step, sizes[0]))
        yield (
            replace(products, fixed=fixed, random=(own[levels],), mixed=(mixed[levels],)),
            [levels],
        )
        fixed = np.zeros_like(fixed)
