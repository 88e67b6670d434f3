"""What derivatives of V by its parameters do to the fixed effects, for V = ZGZ' + sigma^2 / W.

Everything is found from cross-products, of which the sizes do not depend on the number of rows.
V is linear in the entries of the covariance matrices of the random effects and in sigma^2, so that
these directions and V itself span all its derivatives. With ``L L' = (X'V^-1 X)^-1``, a direction
D_i has

* ``P_i = L'X'V^-1 D_i V^-1 X L`` (p, p),
* ``Q_ij = L'X'V^-1 D_i V^-1 D_j V^-1 X L`` (p, p),
* ``K_ij = tr(V^-1 D_i V^-1 D_j)``.

V falls into blocks of levels that no row, and no relationship, ties to others: the sums are over
these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf

from bayeslmm.covariance.structure import Structure
from bayeslmm.data.connected import connected
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import WorkingProducts
from bayeslmm.likelihood.factorise import Factorisation
from bayeslmm.likelihood.moments import whitened_sensitivities

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MOST_TIED = 4000
"""Random effects that may be tied to each other: their matrices take 0.13 GB each."""

LARGE = 200
"""Size from which a pivoted Cholesky factor is taken in place of eigenvalues."""

AT_ONCE = 1 << 23
"""Entries of the blocks that are held at once: 64 MB."""

TIED = (
    "{what} needs a dense matrix of all random effects that rows tie to each other, here {count:,} "
    "of them; it is done for up to {most:,}. Take df='satterthwaite'."
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Forms:
    """P, Q and K of m directions.

    Attributes
    ----------
    root : ndarray (p, p)
        L.
    first : ndarray (m, p, p)
        P.
    pairs : ndarray (m, m, p, p)
        Q.
    traces : ndarray (m, m)
        K.
    """

    root: Array
    first: Array
    pairs: Array
    traces: Array

    def combined(self, weights: Array) -> Forms:
        """Of linear combinations (f, m) of the directions."""
        return Forms(
            root=self.root,
            first=np.tensordot(weights, self.first, 1),
            pairs=np.einsum("ai,ijpq,bj->abpq", weights, self.pairs, weights, optimize=True),
            traces=weights @ self.traces @ weights.T,
        )

    @property
    def information(self) -> Array:
        """Twice the expected information (m, m) of the restricted likelihood."""
        mixed = np.einsum("ipq,jqp->ij", self.first, self.first)
        return np.asarray(self.traces - 2.0 * np.einsum("ijpp->ij", self.pairs) + mixed)


type Entry = tuple[int, int, int]
"""Grouping factor, row and column, row <= column."""


def free_entries(structures: Sequence[Structure]) -> list[Entry]:
    """Entries of the covariance matrices of the random effects that are not zero by design."""
    return [
        (f, block[a], block[b])
        for f, structure in enumerate(structures)
        for block in map(sorted, structure.blocks)
        for b in range(len(block))
        for a in range(b + 1)
    ]


def entry_forms(fact: Factorisation) -> tuple[Forms, list[Entry]]:
    """Forms of the entries of the covariance matrices in the working basis; last those of V.

    V and the covariance matrices are relative: over sigma^2.

    Raises
    ------
    DataError
        If too many random effects are tied to each other.
    """
    products = fact.plan.products
    entries = free_entries(products.structures)
    m, p = len(entries), products.n_fixed
    first, pairs = np.zeros((m, p, p)), np.zeros((m, p, m, p))
    traces, by_v = np.zeros((m, m)), np.zeros(m)
    sensitivities = whitened_sensitivities(fact)
    for levels in tied_levels(products, 1 + m):
        gram, seen, places = _block(products, fact.factors, sensitivities, levels)
        moved = np.stack([_turned(seen, entry, places) for entry in entries])  # (m, C, q, p)
        first += np.einsum("cqp,icqr->ipr", seen, moved, optimize=True)
        flat = moved.transpose(1, 2, 0, 3).reshape(-1, m * p)
        again = (gram @ moved).transpose(1, 2, 0, 3).reshape(-1, m * p)
        pairs += (flat.T @ again).reshape(m, p, m, p)
        both = np.stack([_turned(gram, entry, places) for entry in entries])  # (m, C, q, q): D Z'Z
        by_v += np.einsum("icqq->i", both)
        traces += np.einsum("icqr,jcrq->ij", both, both, optimize=True)
    return _with_v(fact, first, pairs.transpose(0, 2, 1, 3), traces, by_v), entries


def _with_v(fact: Factorisation, first: Array, pairs: Array, traces: Array, by_v: Array) -> Forms:
    """The same with V as the last direction."""
    m, p = len(first), first.shape[1]
    every = np.concatenate([first, np.eye(p)[None]])
    wide = np.empty((m + 1, m + 1, p, p))
    wide[:m, :m] = pairs
    wide[m], wide[:, m] = every, every
    square = np.empty((m + 1, m + 1))
    square[:m, :m] = traces
    square[m], square[:, m] = (np.append(by_v, float(fact.plan.products.n_obs)) for _ in range(2))
    return Forms(root=fact.beta_root, first=every, pairs=wide, traces=square)


type Places = list[Indices]
"""Per grouping factor, the rows (J, k) of a block that its effects have."""


def _block(
    products: WorkingProducts,
    factors: Sequence[Array],
    sensitivities: Sequence[Array],
    levels: list[Indices],
) -> tuple[Array, Array, Places]:
    """Z'V^-1 Z (C, q, q) and Z'V^-1 X L (C, q, p) of C alike blocks, levels (C, J) per factor.

    Of independent combinations where levels are related.
    """
    gram, places = _gram(products, levels)
    parts = zip(sensitivities, levels, strict=True)
    seen = np.concatenate([s[own].reshape(len(own), -1, s.shape[-1]) for s, own in parts], axis=1)
    for f, (own, at) in enumerate(zip(levels, places, strict=True)):
        related = products.relationships[f]
        if related is not None:
            lower = np.linalg.cholesky(related.covariance[own[:, :, None], own[:, None, :]])
            for rows in at.T:  # of one coefficient
                gram[:, rows] = lower.swapaxes(1, 2) @ gram[:, rows]
                gram[:, :, rows] = gram[:, :, rows] @ lower
                seen[:, rows] = lower.swapaxes(1, 2) @ seen[:, rows]
    half = _roots(gram)
    scaled = np.empty_like(half)  # T'Z' of every level
    for t, at in zip(factors, places, strict=True):
        scaled[:, at] = t.T @ half[:, at]
    lower = np.linalg.cholesky(np.eye(half.shape[-1]) + scaled.swapaxes(1, 2) @ scaled)
    if len(lower) == 1:
        left = solve_triangular(lower[0], half[0].T, lower=True, check_finite=False)[None]
    else:
        left = np.linalg.solve(lower, half.swapaxes(1, 2))
    return left.swapaxes(1, 2) @ left, seen, places


def _roots(gram: Array) -> Array:
    """Roots H (C, q, r) of positive semidefinite matrices, H H' = gram."""
    if len(gram) > 1 or gram.shape[1] < LARGE:
        sizes, vectors = np.linalg.eigh(gram)
        return np.asarray(vectors * np.sqrt(np.maximum(sizes, 0.0))[:, None, :])
    factor, pivots, rank, _ = dpstrf(gram[0], lower=1)
    half = np.empty((len(factor), rank))
    half[pivots - 1] = np.tril(factor)[:, :rank]
    return half[None]


def _gram(products: WorkingProducts, levels: list[Indices]) -> tuple[Array, Places]:
    """Z'Z (C, q, q) of C blocks of levels (C, J) per factor, and the rows of each level."""
    places, start, count = [], 0, len(levels[0])
    for own, gram in zip(levels, products.random, strict=True):
        size = own.shape[1] * gram.shape[1]
        places.append(start + np.arange(size).reshape(own.shape[1], gram.shape[1]))
        start += size
    result = np.zeros((count, start, start))
    where = [_inverse(own, len(gram)) for own, gram in zip(levels, products.random, strict=True)]
    for own, at, gram in zip(levels, places, products.random, strict=True):
        result[:, at[:, :, None], at[:, None, :]] = gram[own]
    for coupling in products.couplings:
        f, g = coupling.factors
        block, one = where[f][:, coupling.first]
        _, two = where[g][:, coupling.second]
        here = block >= 0
        rows, cols = places[f][one[here]], places[g][two[here]]
        at = block[here][:, None, None]
        np.add.at(result, (at, rows[:, :, None], cols[:, None, :]), coupling.blocks[here])
        turned = coupling.blocks[here].transpose(0, 2, 1)
        np.add.at(result, (at, cols[:, :, None], rows[:, None, :]), turned)
    return result, places


def _inverse(levels: Indices, n_levels: int) -> Indices:
    """Block and place (2, J) of each level of a factor; -1 where it is in none of these blocks."""
    result = np.full((2, n_levels), -1, dtype=np.intp)
    block, place = np.indices(levels.shape)
    result[0, levels], result[1, levels] = block, place
    return result


def _turned(rows: Array, entry: Entry, places: Places) -> Array:
    """The derivative of G by an entry of a covariance matrix, times rows (C, q, ...)."""
    factor, row, col = entry
    at = places[factor]
    result = np.zeros_like(rows)
    result[:, at[:, row]] = rows[:, at[:, col]]
    result[:, at[:, col]] = rows[:, at[:, row]]
    return result


def tied_levels(products: WorkingProducts, copies: int) -> Iterator[list[Indices]]:
    """Levels (C, J) per factor of C blocks of as many levels each, tied to no others.

    Parameters
    ----------
    products : WorkingProducts
        The cross-products.
    copies : int
        Matrices of each block that are held at once.
    """
    sizes = [len(gram) for gram in products.random]
    if not sizes:
        return
    starts = np.concatenate([[0], np.cumsum(sizes)])
    block = _components(products, starts)
    counts = np.stack(
        [np.bincount(block[a:b], minlength=block.max() + 1) for a, b in pairwise(starts)]
    )
    widths = np.array([gram.shape[1] for gram in products.random])
    largest = int((widths @ counts).max())
    if largest > MOST_TIED:
        raise DataError(
            TIED.format(what="Kenward and Roger's method", count=largest, most=MOST_TIED)
        )
    order = [np.argsort(block[a:b], kind="stable") for a, b in pairwise(starts)]
    first = [np.concatenate([[0], np.cumsum(count)[:-1]]) for count in counts]
    alike, members = np.unique(counts, axis=1, return_inverse=True)
    for i, signature in enumerate(alike.T):
        own = np.flatnonzero(members.ravel() == i)
        step = max(1, AT_ONCE // max(1, copies * int(widths @ signature) ** 2))
        for at in range(0, len(own), step):
            chosen = own[at : at + step]
            yield [
                order[f][first[f][chosen][:, None] + np.arange(size)]
                for f, size in enumerate(signature)
            ]


def _components(products: WorkingProducts, starts: Array) -> Indices:
    """Block of every level of all factors."""
    edges = [
        (starts[c.factors[0]] + c.first, starts[c.factors[1]] + c.second)
        for c in products.couplings
    ]
    size = int(starts[-1])
    for f, related in enumerate(products.relationships):
        if related is not None:
            edges.append((starts[f] + np.arange(len(related)), size + related.families))
            size += len(related)
    return connected(edges, size)[: starts[-1]]
