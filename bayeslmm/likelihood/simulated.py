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
from bayeslmm.likelihood.elimination import block_diagonal, tail_blocks, tail_coupling, tail_gram
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
    reasons = {
        "rows belong to several levels, mm()": any(factor.pooled for factor in design.random),
        "its residuals have a structure": design.spec.structured,
        "it has relationships=": bool(design.spec.relationships),
        "it has by=": any(factor.divided for factor in design.spec.random),
    }
    for why, there in reasons.items():
        if there:
            raise DataError(
                f"Responses of {design.formula.source!r} cannot be simulated from sums over rows: "
                f"{why}. Build the model from a data frame in memory."
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
    across = sp.csr_array(block_diagonal(whiten) @ columns)
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


def _tail(products: WorkingProducts, lead: int) -> tuple[sp.csr_array, Array]:
    """Products of all columns but those of one factor, with these and with each other."""
    p, tail = products.n_fixed, tuple(tail_blocks(products, (lead,)))
    q = sum(block.n_levels * block.n_coefs for block in tail)
    own = [products.mixed[block.factor][:, :, :p].reshape(-1, p) for block in tail]
    mixed = np.vstack([np.zeros((0, p)), *own])
    gram = np.block([[tail_gram(products, tail, q), mixed], [mixed.T, products.fixed[:p, :p]]])
    if lead < 0:
        return sp.csr_array((0, q + p)), gram
    right = sp.csr_array(products.mixed[lead][:, :, :p].reshape(-1, p))
    return sp.hstack([tail_coupling(products, lead, tail, q).T, right], format="csr"), gram


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
