"""Exact draws of the random effects, one for each of many covariance parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dtrtrs

from bayeslmm.likelihood.batch import (
    BatchSystem,
    bordered_cholesky,
    chunks_of,
    eliminate_lead,
    run_chunks,
    to_working,
)
from bayeslmm.likelihood.batch_posterior import Points
from bayeslmm.likelihood.draws import draw_given_beta
from bayeslmm.likelihood.elimination import TailBlock

Array = NDArray[np.float64]


def draw_random(
    system: BatchSystem, points: Points, beta: Array, rng: np.random.Generator
) -> list[Array]:
    """Draw u from p(u | y, beta, covariance parameters), one for each point.

    Parameters
    ----------
    system : BatchSystem
        The data.
    points : Points
        S covariance parameters.
    beta : ndarray (S, p)
        Fixed effects.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of ndarray (S, J, k)
        One array per grouping factor, on the scale of the response.
    """
    sizes = [(len(beta), s.shape[0], s.shape[1]) for s in system.plan.products.random]
    result = [np.empty(size) for size in sizes]
    chunks = list(chunks_of(system, len(beta)))
    seeds = dict(zip([c.start for c in chunks], rng.spawn(len(chunks)), strict=True))
    job = _Job(system, points, beta, to_working(system.plan, points.factors), result)
    work = job.together if system.batched else job.singly
    run_chunks(system, lambda rows: work(rows, seeds[rows.start]), chunks)
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Inputs and outputs of the draws, of which each chunk fills its rows."""

    system: BatchSystem
    points: Points
    beta: Array
    working: Sequence[Array]
    result: Sequence[Array]

    def singly(self, rows: slice, rng: np.random.Generator) -> None:
        plan, factors = self.system.plan, self.points.factors
        for i in range(rows.start, rows.stop):
            here = [t[i] for t in factors]
            effects = draw_given_beta(plan, here, float(self.points.sigma[i]), self.beta[i], rng)
            for array, u in zip(self.result, effects, strict=True):
                array[i] = u

    def together(self, rows: slice, rng: np.random.Generator) -> None:
        system, plan = self.system, self.system.plan
        basis, working = plan.products.basis, [t[rows] for t in self.working]
        sigma = self.points.sigma[rows]
        centred = np.linalg.solve(basis.fixed, (self.beta[rows] - basis.shift).T).T
        contrast = np.column_stack([-centred, np.ones(len(sigma))])
        whiten, kernel, _ = eliminate_lead(system, working[plan.lead])
        mixed = plan.products.mixed[plan.lead]
        rest = contrast @ mixed.reshape(-1, mixed.shape[2]).T
        if plan.n_tail:
            lower = bordered_cholesky(system, working, kernel)
            tail = scale_up(_draw_spherical(lower, contrast, sigma, rng), plan.tail, working)
            rest = rest - (plan.coupling.T @ tail.T).T
            for block in plan.tail:
                part = tail[:, block.columns].reshape(len(tail), block.n_levels, block.n_coefs)
                self.result[block.factor][rows] = part @ basis.random[block.factor].T
        effects = self._draw_lead(whiten, rest.reshape(len(sigma), *mixed.shape[:2]), sigma, rng)
        self.result[plan.lead][rows] = effects @ basis.random[plan.lead].T

    def _draw_lead(
        self, whiten: Array, rest: Array, sigma: Array, rng: np.random.Generator
    ) -> Array:
        """H'(H rest + sigma noise) level by level: (S, J, k)."""
        k = len(whiten)
        spread = whiten[..., self.system.level_class]
        white = sigma[:, None] * rng.standard_normal((k, *rest.shape[:2]))
        for i in range(k):
            white[i] += sum(spread[i, b] * rest[:, :, b] for b in range(k))
        effects = np.empty_like(rest)
        for a in range(k):
            effects[:, :, a] = sum(spread[i, a] * white[i] for i in range(k))
        return effects


def scale_up(spherical: Array, tail: tuple[TailBlock, ...], working: Sequence[Array]) -> Array:
    """Lambda v for the tail: (S, q)."""
    result = np.empty_like(spherical)
    for block in tail:
        part = spherical[:, block.columns].reshape(-1, block.n_levels, block.n_coefs)
        scaled = part @ working[block.factor].transpose(0, 2, 1)
        result[:, block.columns] = scaled.reshape(len(spherical), -1)
    return result


def _draw_spherical(lower: Array, contrast: Array, sigma: Array, rng: np.random.Generator) -> Array:
    """Spherical random effects (S, q) of the tail from the bordered factors."""
    q = lower.shape[1] - contrast.shape[1]
    right = np.einsum("sm,smq->sq", contrast, lower[:, q:, :q])
    right += sigma[:, None] * rng.standard_normal(right.shape)
    for i in range(len(right)):
        right[i] = dtrtrs(lower[i, :q, :q].T, right[i], lower=0)[0]
    return right
