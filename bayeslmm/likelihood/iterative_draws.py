"""Exact draws of the random effects where the dense tail is too large to factorise for each draw.

A draw of the tail solves ``S v = right + noise``, with the noise a draw of covariance S, which
needs no factor of S (perturb, then optimise). The systems of neighbouring covariance parameters are
solved together by conjugate gradients, preconditioned with the Cholesky factor at one of them: a
few iterations reach a relative residual of 1e-5.

References
----------
Papandreou, Yuille (2010), Gaussian sampling by local perturbations, NIPS 23.
Gilavert, Moussaoui, Idier (2015), doi:10.1109/TSP.2014.2367457.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cholesky

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.data.sparse_cholesky import sparse_cholesky
from bayeslmm.likelihood.batch import run_parallel, to_working
from bayeslmm.likelihood.blocks import (
    TailBlock,
    eliminate_levels,
    precision_draws,
    small_cholesky,
    times_precisions,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise_working
from bayeslmm.likelihood.tail import Root

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

RESIDUAL = 1e-5
"""Norm of the residual over that of the right-hand side at which a system counts as solved."""

MAX_ITERATIONS = 200

PER_NODE = 250
"""Draws per factorised node, on average; as many as are solved at once where that is cheap."""

WELL_CONDITIONED = 1e4
"""Condition number up to which relative factors are inverted for the preconditioner."""

COLUMNS = 64
"""Systems solved at once."""

RANK = 1e-12
"""Relative eigenvalue of a level's block of Z'Z that counts as zero."""

RIDGE = 1e-12
"""Added to the cross-products, relative to their diagonal, to take their Cholesky factor."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
    """Z'Z and roots of it, the same for all covariance parameters.

    Attributes
    ----------
    lead : ndarray (J, k, k)
        B_j with ``B_j B_j' = A_j``, the blocks of Z'Z of the leading factor.
    spread : scipy.sparse.csr_array (q, J * k)
        G with ``G blockdiag(B)' = coupling``.
    tail : ndarray (q, q) or scipy.sparse.csc_array
        R with ``R R' = tail_gram - G G'``.
    gram : scipy.sparse.csr_array (q, q)
        Z'Z of the tail.
    transposed : scipy.sparse.csr_array (J * k, q)
        The coupling transposed.
    """

    lead: Array
    spread: sp.csr_array
    tail: Array | sp.csc_array
    gram: sp.csr_array
    transposed: sp.csr_array


def make_parts(plan: Plan) -> Parts:
    """Parts of a plan without nested stages."""
    gram = plan.lead_gram
    levels, k = gram.shape[:2]
    values, vectors = np.linalg.eigh(gram)
    size = np.maximum(values, 0.0)
    kept = size > RANK * np.max(size, axis=1, keepdims=True)
    inverse = np.where(kept, 1.0 / np.sqrt(np.where(kept, size, 1.0)), 0.0)
    blocks = (vectors * inverse[:, None, :], np.arange(levels), np.arange(levels + 1))
    spread = plan.coupling
    if levels:
        spread = spread @ sp.bsr_array(blocks, shape=(levels * k, levels * k))
    if plan.sparse is not None:
        tail = _sparse_root(plan.tail_gram)
    else:
        rest = plan.tail_gram - (spread @ spread.T).toarray()
        tail = _semidefinite_root(rest, np.diag(plan.tail_gram))
    return Parts(
        lead=vectors * np.sqrt(np.where(kept, size, 0.0))[:, None, :],
        spread=sp.csr_array(spread),
        tail=tail,
        gram=sp.csr_array(plan.tail_gram),
        transposed=sp.csr_array(plan.coupling.T),
    )


def _semidefinite_root(matrix: Array, diagonal: Array) -> Array:
    """R with R R' = matrix, up to rounding where it is singular."""
    try:
        return np.asarray(cholesky(matrix + np.diag(RIDGE * diagonal), lower=True))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(matrix)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


def _sparse_root(matrix: sp.csc_array) -> sp.csc_array:
    """The same of a sparse matrix."""
    matrix = sp.csc_array(matrix, copy=True)
    matrix.eliminate_zeros()
    diagonal = sp.eye_array(matrix.shape[0]) * matrix.diagonal().max()
    for ridge in (RIDGE, 1e2 * RIDGE):
        with suppress(np.linalg.LinAlgError):
            return sparse_cholesky(sp.csc_array(matrix + ridge * diagonal)).root
    return sparse_cholesky(sp.csc_array(matrix + 1e4 * RIDGE * diagonal)).root


def draw_iteratively(
    plan: Plan, points: AnyPoints, beta: Array, rng: np.random.Generator
) -> list[Array]:
    """Draw u from p(u | y, beta, covariance parameters), one for each point.

    Parameters
    ----------
    plan : Plan
        The data, without nested stages.
    points : AnyPoints
        S covariance parameters.
    beta : ndarray (S, p)
        Fixed effects.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of ndarray (S, J, k)
    """
    working = to_working(plan, points.factors)
    result = [np.empty((len(beta), *gram.shape[:2])) for gram in plan.products.random]
    per_node = PER_NODE if plan.sparse is None else COLUMNS
    nodes, nearest = _choose_nodes(working, rng, per_node)
    parts = make_parts(plan)
    groups = [np.flatnonzero(nearest == n) for n in range(len(nodes))]
    seeds = rng.spawn(len(nodes))

    def work(n: int) -> None:
        node = [t[nodes[n]] for t in working]
        root = factorise_working(plan, node, value_only=True).tail_root
        for rows in _pieces(groups[n]):
            here = [t[rows] for t in working]
            near = Preconditioner(root, [_ratios(t, t0) for t, t0 in zip(here, node, strict=True)])
            batch = _Batch(plan, parts, here, points.sigma[rows], near)
            for array, effects in zip(result, batch.draw(beta[rows], seeds[n]), strict=True):
                array[rows] = effects

    run_parallel(work, range(len(nodes)))
    return result


def _choose_nodes(
    working: Sequence[Array], rng: np.random.Generator, per_node: int
) -> tuple[Indices, Indices]:
    """Points to factorise at, and for every point the nearest of them."""
    flat = np.concatenate([np.log(np.abs(_row_lengths(t)) + 1e-12) for t in working], axis=1)
    size = len(flat)
    count = max(1, min(size, -(-size // per_node)))
    nodes = rng.choice(size, count, replace=False)
    distance = np.sum((flat[:, None, :] - flat[nodes][None]) ** 2, axis=2)
    return nodes, np.argmin(distance, axis=1)


def _row_lengths(factors: Array) -> Array:
    return np.asarray(np.sqrt(np.sum(factors**2, axis=2)))


def _ratios(factors: Array, node: Array) -> Array:
    """T_b^-1 T_node (B, k, k), or the identity where that is ill-conditioned."""
    identity = np.broadcast_to(np.eye(len(node)), factors.shape)
    regular = np.linalg.cond(factors) < WELL_CONDITIONED
    safe = np.where(regular[:, None, None], factors, identity)
    ratios = np.linalg.solve(safe, np.broadcast_to(node, factors.shape))
    usable = regular & (np.linalg.cond(ratios) < WELL_CONDITIONED)
    return np.where(usable[:, None, None], ratios, identity)


@dataclass(frozen=True, slots=True, eq=False)
class Preconditioner:
    """Cholesky factor at a node, rescaled to each of B neighbouring points.

    The system of a point is T'MT + I with M hardly different from that at the node, so it is close
    to E'(system of the node)E with E = T_node^-1 T.

    Attributes
    ----------
    root : Root
        Cholesky factor of the tail's system at the node.
    ratios : sequence of ndarray (B, k, k)
        E^-1 per grouping factor.
    """

    root: Root
    ratios: Sequence[Array]

    def __call__(self, columns: Array, tail: Sequence[TailBlock]) -> Array:
        """Approximate solution (q, B) of the systems."""
        right = scale_columns(columns, tail, self.ratios, transposed=True)
        return scale_columns(np.ascontiguousarray(self.root.solve(right)), tail, self.ratios)


def scale_columns(
    columns: Array,
    tail: Sequence[TailBlock],
    factors: Sequence[Array],
    *,
    transposed: bool = False,
) -> Array:
    """Block-diagonal factors (B, k, k), or their transposes, times columns (q, B) of the tail."""
    result = np.empty_like(columns)
    for block in tail:
        factor = factors[block.factor]
        if block.n_coefs == 1:
            result[block.columns] = columns[block.columns] * factor[:, 0, 0]
            continue
        part = columns[block.columns].reshape(block.n_levels, block.n_coefs, -1)
        product = np.einsum("blk,nlb->nkb" if transposed else "bkl,nlb->nkb", factor, part)
        result[block.columns] = product.reshape(result[block.columns].shape)
    return result


def _pieces(rows: Indices) -> Iterator[Indices]:
    for start in range(0, len(rows), COLUMNS):
        yield rows[start : start + COLUMNS]


class _Batch:
    """The equations at B neighbouring points; vectors are columns, (q, B) or (J * k, B)."""

    def __init__(
        self,
        plan: Plan,
        parts: Parts,
        working: Sequence[Array],
        sigma: Array,
        preconditioner: Preconditioner,
    ) -> None:
        self.plan = plan
        self.parts, self.working, self.sigma = parts, working, sigma
        self.preconditioner = preconditioner
        self.lead = working[plan.lead] if plan.stages else np.ones((len(sigma), 1, 1))
        whiten, _, _ = eliminate_levels(plan.classes.gram, self.lead)
        columns = whiten.transpose(0, 1, 3, 2)
        self.whiten = np.ascontiguousarray(columns[:, :, plan.classes.level])

    def draw(self, beta: Array, rng: np.random.Generator) -> list[Array]:
        """Random effects (B, J, k) per grouping factor."""
        plan, basis = self.plan, self.plan.products.basis
        centred = np.linalg.solve(basis.fixed, (beta - basis.shift).T)
        contrast = np.vstack([-centred, np.ones((1, len(beta)))])
        mixed = plan.lead_mixed
        rest = mixed.reshape(-1, mixed.shape[2]) @ contrast
        right = plan.tail_mixed @ contrast - self.plan.coupling @ self.kernel(rest)
        right = self.scaled(right + self.sigma * self.tail_noise(rng), transposed=True)
        right += self.sigma * precision_draws(rng.standard_normal(right.shape), plan.tail)
        tail = self.scaled(self.solve(right))
        rest -= self.parts.transposed @ tail
        lead = self.lead_effects(rest, rng)
        result = [np.empty(0)] * len(plan.products.random)
        if plan.stages:
            result[plan.lead] = basis.effects(plan.lead, lead)
        for block in plan.tail:
            part = tail[block.columns].reshape(block.n_levels, block.n_coefs, -1)
            result[block.factor] = part.transpose(2, 0, 1) @ basis.random[block.factor].T
        return result

    def tail_noise(self, rng: np.random.Generator) -> Array:
        """Draws (q, B) with the covariance of the tail's Schur complement, unscaled."""
        levels, k = self.parts.lead.shape[:2]
        batch = len(self.sigma)
        inner = rng.standard_normal((k, levels, batch))
        half = np.einsum("jai,bam->imjb", self.parts.lead, self.lead)
        lower = {
            (i, j): np.sum(half[i] * half[j], axis=0) + float(i == j)
            for i in range(k)
            for j in range(i + 1)
        }
        small_cholesky(lower, k)
        for i in reversed(range(k)):
            for m in range(i + 1, k):
                inner[i] -= lower[m, i] * inner[m]
            inner[i] /= lower[i, i]
        flat = inner.transpose(1, 0, 2).reshape(levels * k, batch)
        outer = self.parts.tail @ rng.standard_normal((self.parts.tail.shape[1], batch))
        return outer + self.parts.spread @ flat

    def lead_effects(self, rest: Array, rng: np.random.Generator) -> Array:
        """Random effects (B, J, k) of the leading factor given the rest of its equations."""
        k, levels, batch = len(self.whiten), self.whiten.shape[2], len(self.sigma)
        rows = rest.reshape(levels, k, batch)
        white = self.sigma * rng.standard_normal((k, levels, batch))
        for i in range(k):
            white[i] += sum(self.whiten[i, b] * rows[:, b] for b in range(k))
        parts = [sum(self.whiten[i, a] * white[i] for i in range(k)) for a in range(k)]
        return np.stack(parts, axis=2).transpose(1, 0, 2)

    def kernel(self, rest: Array) -> Array:
        """H'H times columns (J * k, B)."""
        k, levels, batch = len(self.whiten), self.whiten.shape[2], rest.shape[1]
        rows = rest.reshape(levels, k, batch)
        white = [sum(self.whiten[i, b] * rows[:, b] for b in range(k)) for i in range(k)]
        parts = [sum(self.whiten[i, a] * white[i] for i in range(k)) for a in range(k)]
        return np.stack(parts, axis=1).reshape(levels * k, batch)

    def scaled(self, columns: Array, *, transposed: bool = False) -> Array:
        """Lambda (or Lambda') times columns (q, B) of the tail."""
        return scale_columns(columns, self.plan.tail, self.working, transposed=transposed)

    def multiply(self, spherical: Array) -> Array:
        """The tail's system times columns (q, B)."""
        effects = self.scaled(spherical)
        image = self.parts.gram @ effects
        image -= self.plan.coupling @ self.kernel(self.parts.transposed @ effects)
        return self.scaled(image, transposed=True) + times_precisions(spherical, self.plan.tail)

    def solve(self, right: Array) -> Array:
        """Solve the tail's systems (q, B) by preconditioned conjugate gradients."""
        tail = self.plan.tail
        x = self.preconditioner(right, tail)
        residual = right - self.multiply(x)
        z = self.preconditioner(residual, tail)
        direction = z.copy()
        inner = np.sum(residual * z, axis=0)
        goal = RESIDUAL * np.linalg.norm(right, axis=0)
        for _ in range(MAX_ITERATIONS):
            if np.all(np.linalg.norm(residual, axis=0) <= goal):
                return x
            image = self.multiply(direction)
            curvature = np.sum(direction * image, axis=0)
            step = inner / np.where(curvature > 0, curvature, 1.0)
            x += step * direction
            residual -= step * image
            z = self.preconditioner(residual, tail)
            updated = np.sum(residual * z, axis=0)
            direction = z + updated / np.where(inner > 0, inner, 1.0) * direction
            inner = updated
        raise np.linalg.LinAlgError("conjugate gradients did not converge")
