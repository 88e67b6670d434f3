"""Responses simulated as sums over the rows, exactly and without rows.

Given the fixed and random effects, what a response adds to the sums is the noise e in [X Z]'e and
e'e. With W = [X Z]'[X Z] and rank r of W, [X Z]'e is normal with covariance sigma^2 W: it is
sigma B z with B B' = W and r standard normal z. And e'e is sigma^2 times z'z plus a chi-square of
n - r degrees of freedom, for the directions in which the columns of X and Z have no part. So
sums of a simulated response have the distribution that sums of simulated rows have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.exceptions import DataError
from bayeslmm.formula.moments import Moments
from bayeslmm.likelihood.crossprod import WorkingProducts
from bayeslmm.likelihood.sums import gram_times, working_effects

Array = NDArray[np.float64]

DEPENDENT = 1e-10
"""Share of a column's variance below which what earlier columns leave of it counts as nothing."""

LARGEST = 10_000
"""Columns beside those of the largest grouping factor: 0.8 GB."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Noise:
    """Root B of W = [X Z]'[X Z] of the working columns: of one grouping factor level by level.

    Attributes
    ----------
    products : WorkingProducts
        The sums.
    lead : int
        The grouping factor with the most random effects; -1 without any.
    blocks : ndarray (J, k, k)
        Roots of its Z'Z.
    used : ndarray of bool (J, k)
        Directions of them that rows have.
    across : scipy.sparse.csr_array (J k, q)
        Products of all other columns, those of X last, with its orthonormal directions.
    root : ndarray (q, m)
        Root of what these leave of the products of the other columns.
    """

    products: WorkingProducts
    lead: int
    blocks: Array
    used: NDArray[np.bool_]
    across: sp.csr_array
    root: Array

    @property
    def rank(self) -> int:
        """Rank of W."""
        return int(self.used.sum()) + self.root.shape[1]

    def draw(self, rng: np.random.Generator) -> tuple[Array, list[Array], float]:
        """Sums X'e (p,), Z'e (J, k) of each grouping factor and e'e of noise of variance one."""
        products = self.products
        lead = rng.standard_normal(self.used.shape) * self.used
        others = rng.standard_normal(self.root.shape[1])
        free = products.n_obs - self.rank
        squares = np.sum(lead**2) + np.sum(others**2)
        squares += rng.chisquare(free) if free > 0 else 0.0
        tail = self.across.T @ lead.ravel() + self.root @ others
        random = []
        start = 0
        for place, own in enumerate(products.random):
            if place == self.lead:
                random.append(np.einsum("jkl,jl->jk", self.blocks, lead))
                continue
            shape = own.shape[:2]
            random.append(tail[start : start + shape[0] * shape[1]].reshape(shape))
            start += shape[0] * shape[1]
        return tail[start:], random, float(squares)


def noise_of(design: SummarisedDesign) -> Noise:
    """What noise adds to the sums of a design.

    Raises
    ------
    DataError
        If residuals have a structure, rows belong to several levels, or crossed grouping factors
        have too many levels.
    """
    pooled = any(factor.members is not None for factor in design.spec.random)
    if design.spec.structured or pooled:
        why = "rows belong to several levels, mm()" if pooled else "its residuals have a structure"
        raise DataError(
            f"Responses of {design.formula.source!r} cannot be simulated from sums over rows: "
            f"{why}. Build the model from a data frame in memory."
        )
    if design.spec.relationships or any(f.pooled or f.spec.divided for f in design.random):
        raise DataError(
            f"Responses of {design.formula.source!r} cannot be simulated from sums over rows: it "
            "has relationships=, by= or mm(). Build the model from a data frame in memory."
        )
    products: WorkingProducts = design.products
    sizes = [own.shape[0] * own.shape[1] for own in products.random]
    lead = int(np.argmax(sizes)) if sizes else -1
    others = sum(sizes) - max(sizes, default=0) + products.n_fixed
    if others > LARGEST:
        raise DataError(
            f"Simulating responses from sums over rows takes a matrix of {others} rows and columns "
            f"for the coefficients beside those of the largest grouping factor; {LARGEST} is the "
            "most. Build the model from a data frame in memory, or of some of the groups."
        )
    columns, gram = _tail(products, lead)
    if lead < 0:
        empty = np.zeros((0, 0), dtype=bool)
        across = sp.csr_array((0, len(gram)))
        root = _semidefinite_root(gram)
        return Noise(
            products=products,
            lead=-1,
            blocks=np.zeros((0, 0, 0)),
            used=empty,
            across=across,
            root=root,
        )
    blocks, whiten, used = _level_roots(products.random[lead])
    across = sp.csr_array(_block_diagonal(whiten) @ columns)
    return Noise(
        products=products,
        lead=lead,
        blocks=blocks,
        used=used,
        across=across,
        root=_semidefinite_root(gram - (across.T @ across).toarray(), np.diag(gram)),
    )


def _level_roots(own: Array) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Roots B (J, k, k) of blocks, H with H B = I, and in which directions; else zero."""
    sizes = np.sqrt(np.einsum("jkk->jk", own))
    scale = np.where(sizes > 0, sizes, 1.0)
    values, vectors = np.linalg.eigh(own / scale[:, :, None] / scale[:, None, :])
    used = values > DEPENDENT
    lengths = np.sqrt(np.where(used, values, 1.0)) * used
    inverse = np.where(used, 1.0 / np.where(used, lengths, 1.0), 0.0)
    roots = scale[:, :, None] * vectors * lengths[:, None, :]
    whiten = (vectors * inverse[:, None, :]).swapaxes(1, 2) / scale[:, None, :]
    return roots, whiten, used


def _block_diagonal(blocks: Array) -> sp.csr_array:
    levels, k, _ = blocks.shape
    rows = np.repeat(np.arange(levels * k), k)
    columns = (np.arange(levels)[:, None, None] * k + np.arange(k)).repeat(k, axis=1)
    return sp.csr_array((blocks.ravel(), (rows, columns.ravel())), shape=(levels * k, levels * k))


def _tail(products: WorkingProducts, lead: int) -> tuple[sp.csr_array, Array]:
    """Products of all columns but those of one factor, with these and with each other."""
    p, places, start = products.n_fixed, {}, 0
    for place, own in enumerate(products.random):
        if place != lead:
            places[place] = start
            start += own.shape[0] * own.shape[1]
    gram = np.zeros((start + p, start + p))
    gram[start:, start:] = products.fixed[:p, :p]
    for place, first in places.items():
        own, size = products.random[place], products.random[place].shape[0]
        span = slice(first, first + size * own.shape[1])
        gram[span, span] = _block_diagonal(own).toarray()
        mixed = products.mixed[place][:, :, :p].reshape(-1, p)
        gram[span, start:], gram[start:, span] = mixed, mixed.T
    height = 0 if lead < 0 else products.random[lead].shape[0] * products.random[lead].shape[1]
    columns = sp.lil_array((height, start + p))
    parts = [sp.csr_array(columns)]
    if lead >= 0:
        mixed = products.mixed[lead][:, :, :p].reshape(-1, p)
        parts.append(sp.hstack([sp.csr_array((height, start)), sp.csr_array(mixed)], format="csr"))
    for coupling in products.couplings:
        i, j = coupling.factors
        k, l = coupling.blocks.shape[1:]  # noqa: E741
        rows = coupling.first[:, None, None] * k + np.arange(k)[:, None]
        cols = coupling.second[:, None, None] * l + np.arange(l)
        rows, cols = np.broadcast_arrays(rows, cols)
        values = coupling.blocks
        if lead not in (i, j):
            gram[places[i] + rows, places[j] + cols] = values
            gram[places[j] + cols, places[i] + rows] = values
            continue
        if lead == j:
            rows, cols, i, j = cols, rows, j, i
        flat = (rows.ravel(), places[j] + cols.ravel())
        parts.append(sp.csr_array((values.ravel(), flat), shape=(height, start + p)))
    return sum(parts[1:], parts[0]), gram


def _semidefinite_root(gram: Array, sizes: Array | None = None) -> Array:
    """Root (q, m) of a positive semidefinite matrix, by Cholesky with pivots.

    `sizes` are the squared lengths of the columns that have `gram` left.
    """
    lengths = np.sqrt(np.maximum(np.diag(gram) if sizes is None else sizes, 0.0))
    scale = np.where(lengths > 0, lengths, 1.0)
    scaled = gram / np.outer(scale, scale)
    if np.max(np.diag(scaled), initial=0.0) <= DEPENDENT:
        return np.zeros((len(gram), 0))
    lower, pivots, rank, _ = dpstrf(scaled, tol=DEPENDENT, lower=1)
    root = np.zeros((len(gram), int(rank)))
    root[pivots - 1] = np.tril(lower)[:, :rank]
    return scale[:, None] * root


# --- a response ------------------------------------------------------------------------


def simulated_design(
    noise: Noise,
    design: SummarisedDesign,
    beta: Array,
    effects: Sequence[Array],
    sigma: float,
    rng: np.random.Generator,
) -> SummarisedDesign:
    """The design with sums of a simulated response.

    Parameters
    ----------
    noise : Noise
        Of the design.
    design : SummarisedDesign
    beta : ndarray (p,)
        Fixed effects.
    effects : sequence of ndarray (J, k)
        Random effects of each grouping factor, on the scale of the response.
    sigma : float
        Residual standard deviation of a row of weight one.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    SummarisedDesign
        Without the source. Moments of the response are those of rows times the roots of their
        weights, and its extremes are unknown.
    """
    products, p = noise.products, noise.products.n_fixed
    u = working_effects(products, [own[None] for own in effects])
    fixed, random = (part for part in gram_times(products, np.zeros((1, p)), u))
    noise_x, noise_z, squares = noise.draw(rng)
    along = fixed[0] + sigma * noise_x
    total = sigma**2 * squares
    own = []
    for mine, gram, drawn in zip(u, random, noise_z, strict=True):
        own.append(gram[0] + sigma * drawn)
        total += float(np.sum(mine[0] * (gram[0] + 2.0 * sigma * drawn)))
    grams = products.fixed[:p, :p]
    shift = np.linalg.solve(grams, along)
    left = along - grams @ shift
    new = np.empty_like(products.fixed)
    new[:p, :p], new[:p, p], new[p, :p] = grams, left, left
    new[p, p] = max(total - float((along + left) @ shift), 0.0)
    mixed = [
        np.concatenate([part[:, :, :p], (z - part[:, :, :p] @ shift)[:, :, None]], axis=2)
        for part, z in zip(products.mixed, own, strict=True)
    ]
    user = beta + products.basis.fixed @ shift
    changed = replace(
        products,
        fixed=new,
        mixed=tuple(mixed),
        basis=replace(products.basis, shift=user),
    )
    summary = _with_response(design, user, float(new[p, p]))
    return SummarisedDesign(design.spec, summary, changed)


def _with_response(design: SummarisedDesign, coefs: Array, squares: float) -> Summary:
    """Moments with a response of given least squares coefficients and residual sum of squares."""
    summary, right = design.summary, design.formula.right
    full = np.zeros(len(design.spec.fixed.kept))
    full[design.spec.fixed.kept] = coefs
    inverse = 1.0 if not design.weighted else design.mean_inverse_weight
    sides = {**summary.sides, right: _replaced(summary.sides[right], full, squares * inverse)}
    weighted = {**summary.weighted, right: _replaced(summary.weighted[right], full, squares)}
    return replace(summary, sides=sides, weighted=weighted)


def _replaced(moments: Moments, coefs: Array, squares: float) -> Moments:
    """Moments whose last column is a combination of the others and something beside them."""
    centre = moments.centre.copy()
    centre[-1] = moments.centre[:-1] @ coefs
    triangle = np.vstack([moments.triangle, np.zeros((1, moments.triangle.shape[1]))])
    triangle[:, -1] = triangle[:, 1:-1] @ coefs
    triangle[-1, -1] = np.sqrt(squares)
    low, high, filled = moments.low.copy(), moments.high.copy(), moments.filled.copy()
    low[-1], high[-1], filled[-1] = -np.inf, np.inf, moments.n
    return replace(
        moments,
        centre=centre,
        triangle=np.linalg.qr(triangle, mode="r"),
        low=low,
        high=high,
        filled=filled,
    )
