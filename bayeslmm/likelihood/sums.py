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
    if design.weighted:
        why = "its rows have precision weights"
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


def level_counts(design: SummarisedDesign, factor: int) -> Indices | None:
    """Number of rows (J,) of each level; None where it does not follow from the sums."""
    products, own = design.products, design.random[factor]
    if design.weighted:
        return None
    for block in own.blocks:
        found = _constant(own.moments(block))
        if found is not None:
            user = np.zeros(own.n_coefs)
            user[list(block)] = found
            ones = np.linalg.solve(products.basis.random[factor], user)
            counts = np.einsum("k,jkl,l->j", ones, products.random[factor], ones)
            return np.round(counts).astype(np.intp)
    return None


def fitted_sums(
    design: SummarisedDesign,
    beta: Array,
    effects: Callable[[Sequence[Indices]], Sequence[Array]],
    at_once: int,
) -> Array:
    """Sums of squares (S,) of X beta + Zu, less its mean, over the rows.

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
    return np.asarray(np.maximum(squares - sums**2 / design.n, 0.0))


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
