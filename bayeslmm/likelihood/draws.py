"""Exact draws of the fixed and random effects, given the covariance parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dtrtrs
from scipy.special import ndtri

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.likelihood.batch import (
    chunks_of,
    run_chunks,
    stack_chunks,
    tail_alone_cholesky,
    tail_cholesky,
    to_working,
)
from bayeslmm.likelihood.blocks import TailBlock, eliminate_levels, scaled
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import (
    Factorisation,
    GaussianBeta,
    factorise,
    to_working_beta,
)
from bayeslmm.likelihood.iterative_draws import draw_iteratively
from bayeslmm.likelihood.nested import without_later
from bayeslmm.likelihood.whole import Whole

Array = NDArray[np.float64]


def draw(
    plan: Plan,
    factors: Sequence[Array],
    sigma: float,
    rng: np.random.Generator,
    prior: GaussianBeta | None = None,
    size: int = 1,
) -> tuple[Array, list[Array]]:
    """Draw (beta, u) from p(beta, u | y, T, sigma).

    Parameters
    ----------
    plan : Plan
        The data.
    factors : sequence of ndarray (k, k)
        Relative factors in the user's coordinates.
    sigma : float
        Residual standard deviation.
    rng : numpy.random.Generator
        Source of randomness.
    prior : GaussianBeta, optional
        Prior on beta; flat by default.
    size : int
        Number of independent draws.

    Returns
    -------
    beta : ndarray (size, p)
    u : list of ndarray (size, J, k)
        Random effects per grouping factor, on the scale of the response.
    """
    fact = factorise(plan, factors, prior, sigma)
    noise = rng.standard_normal((plan.products.n_fixed, size))
    working = fact.fixed_half[:, None] + sigma * noise
    if plan.products.n_fixed:
        working = solve_triangular(fact.fixed_chol, working, lower=True, trans="T")
    basis = plan.products.basis
    beta = (basis.fixed @ working).T + basis.shift
    return beta, _draw_random(fact, working, sigma, rng)


def draw_given_beta(
    plan: Plan, factors: Sequence[Array], sigma: float, beta: Array, rng: np.random.Generator
) -> list[Array]:
    """Draw u from p(u | y, beta, T, sigma): one (J, k) array per grouping factor."""
    fact = factorise(plan, factors)
    working = to_working_beta(plan.products, beta)[:, None]
    return [u[0] for u in _draw_random(fact, working, sigma, rng)]


def _draw_random(
    fact: Factorisation, beta: Array, sigma: float, rng: np.random.Generator
) -> list[Array]:
    """Random effects (size, J, k) per factor for working fixed effects (p, size)."""
    plan, size = fact.plan, beta.shape[1]
    contrast = np.vstack([-beta, np.ones((1, size))])
    working: list[Array] = [np.zeros(0)] * len(plan.products.random)
    tail_u = np.zeros((0, size))
    if plan.n_tail:
        right = fact.tail_half @ contrast + sigma * rng.standard_normal((plan.n_tail, size))
        tail_u = scaled(fact.tail_root.back(right), plan.tail, fact.factors)
    for block in plan.tail:
        shape = (block.n_levels, block.n_coefs, size)
        working[block.factor] = tail_u[block.columns].reshape(shape)
    for stage, pivot in reversed(list(zip(plan.stages, fact.pivots, strict=True))):
        mixed = pivot.block.mixed
        rest = (mixed.reshape(-1, mixed.shape[2]) @ contrast).reshape(*mixed.shape[:2], size)
        white = pivot.whiten @ without_later(stage, pivot, rest, tail_u, working)
        white += sigma * rng.standard_normal(white.shape)
        working[stage.factor] = pivot.whiten.transpose(0, 2, 1) @ white
    basis = plan.products.basis
    return [basis.effects(f, u.transpose(2, 0, 1)) for f, u in enumerate(working)]


# --- exact draws of the random effects, one for each of many covariance parameters ---


FEW = 8
"""Draws up to which each gets a factorisation of its own."""

LARGEST_HYPERCUBE = 4_000_000
"""Most normal draws that are stratified: with more of them averages are precise anyway."""


def draw_random(
    plan: Plan, points: AnyPoints, beta: Array, rng: np.random.Generator
) -> list[Array]:
    """Draw u from p(u | y, beta, covariance parameters), one for each point.

    Parameters
    ----------
    plan : Plan
        The data.
    points : AnyPoints
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
    if not plan.products.random:
        return []
    alike = plan.stack is None and not plan.nested and not plan.tail_alone
    if plan.sums is None and alike and plan.split is None and len(beta) > FEW:
        return draw_iteratively(plan, points, beta, rng)
    sizes = [(len(beta), s.shape[0], s.shape[1]) for s in plan.products.random]
    result = [np.empty(size) for size in sizes]
    chunks = list(chunks_of(plan, len(beta)))
    seeds = dict(zip([c.start for c in chunks], rng.spawn(len(chunks)), strict=True))
    job = _Job(plan, points, beta, to_working(plan, points.factors), result)
    alone, whole = plan.stack is not None and plan.leads_alone, plan.whole
    if plan.sums is None and not alone and whole is None and not plan.tail_alone:
        run_chunks(plan, lambda rows: job.singly(rows, seeds[rows.start]), chunks)
        return result
    for array in result:
        array[:] = normal_draws(rng, array.size // len(beta), len(beta)).reshape(array.shape)
    if alone:
        for rows in stack_chunks(plan, len(beta)):
            job.lead(rows)
    elif whole is not None:
        for rows in whole.chunks(len(beta)):
            job.whole(rows, whole)
    else:
        run_chunks(plan, job.tail if plan.tail_alone else job.together, chunks)
    return result


def normal_draws(rng: np.random.Generator, coordinates: int, size: int) -> Array:
    """Standard normal vectors (size, coordinates), a Latin hypercube sample where it is small.

    Every vector has independent standard normal coordinates; across the vectors, each coordinate
    visits every interval of probability 1 / size once. The vectors depend on each other a little,
    and negatively: averages over them vary less than over independent ones (at worst by a factor
    size / (size - 1) more, for functions without any additive part), so that Monte Carlo errors
    computed as for independent draws are on the safe side.

    References
    ----------
    McKay, Beckman, Conover (1979), doi:10.2307/1268522.
    """
    if coordinates * size > LARGEST_HYPERCUBE:
        return rng.standard_normal((size, coordinates))
    strata = np.broadcast_to(np.arange(size, dtype=float), (coordinates, size))
    places = rng.permuted(strata, axis=1) + rng.random((coordinates, size))
    return np.asarray(ndtri(places / size)).T


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Inputs and outputs of the draws, of which each chunk fills its rows."""

    plan: Plan
    points: AnyPoints
    beta: Array
    working: Sequence[Array]
    result: Sequence[Array]

    def singly(self, rows: slice, rng: np.random.Generator) -> None:
        plan, factors = self.plan, self.points.factors
        for i in range(rows.start, rows.stop):
            here = [t[i] for t in factors]
            at = plan.at(self.points.shapes[i])
            effects = draw_given_beta(at, here, float(self.points.sigma[i]), self.beta[i], rng)
            for array, u in zip(self.result, effects, strict=True):
                array[i] = u

    def together(self, rows: slice) -> None:
        """Turn the noise in the rows of the result into random effects."""
        plan = self.plan
        basis, working = plan.products.basis, [t[rows] for t in self.working]
        sigma = self.points.sigma[rows]
        contrast = self._contrast(rows)
        whiten, kernel, _ = eliminate_levels(plan.classes.gram, working[plan.lead])
        mixed = plan.products.mixed[plan.lead]
        rest = contrast @ mixed.reshape(-1, mixed.shape[2]).T
        if plan.n_tail:
            lower = tail_cholesky(plan, working, kernel)
            tail = self._tail(rows, lower, contrast, plan.tail)
            rest = rest - (plan.coupling.T @ tail.T).T
        rest = rest.reshape(len(sigma), *mixed.shape[:2])
        noise = sigma[:, None, None] * self.result[plan.lead][rows]
        effects = _draw_lead(whiten[..., plan.classes.level], rest, noise)
        self.result[plan.lead][rows] = basis.effects(plan.lead, effects)

    def tail(self, rows: slice) -> None:
        """The same where all random effects are in a small tail."""
        lower = tail_alone_cholesky(self.plan, [t[rows] for t in self.working])
        self._tail(rows, lower, self._contrast(rows), self.plan.tail)

    def lead(self, rows: slice) -> None:
        """The same for a stack with one grouping factor."""
        plan, lead = self.plan, self.plan.lead
        basis, sigma = plan.products.basis, self.points.sigma[rows]
        assert plan.stack is not None
        gram, mixed, _, _ = plan.stack.factor_at(lead, self.points.shapes[rows])
        whiten, _, _ = eliminate_levels(gram, self.working[lead][rows])
        rest = np.einsum("sjka,sa->sjk", mixed, self._contrast(rows))
        noise = sigma[:, None, None] * self.result[lead][rows]
        effects = _draw_lead(whiten[..., plan.classes.level], rest, noise)
        self.result[lead][rows] = effects @ basis.random[lead].T

    def _contrast(self, rows: slice) -> Array:
        """Coefficients (S, p + 1) of the working columns in the response less X beta."""
        basis = self.plan.products.basis
        centred = np.linalg.solve(basis.fixed, (self.beta[rows] - basis.shift).T).T
        return np.column_stack([-centred, np.ones(len(centred))])

    def whole(self, rows: slice, whole: Whole) -> None:
        """The same for a small stack with several grouping factors."""
        working = [t[rows] for t in self.working]
        lower, _ = whole.cholesky(self.points.shapes[rows], working)
        self._tail(rows, lower, self._contrast(rows), whole.blocks)

    def _tail(
        self, rows: slice, lower: Array, contrast: Array, blocks: Sequence[TailBlock]
    ) -> Array:
        """Draw the random effects that are eliminated together: (S, q) in the working basis."""
        plan, q = self.plan, lower.shape[1] - contrast.shape[1]
        working = [t[rows] for t in self.working]
        noise = np.concatenate(
            [self.result[b.factor][rows].reshape(len(contrast), -1) for b in blocks], axis=1
        )
        right = np.einsum("sm,smq->sq", contrast, lower[:, q:, :q])
        right += self.points.sigma[rows, None] * noise
        for i in range(len(right)):
            right[i] = dtrtrs(lower[i, :q, :q].T, right[i], lower=0)[0]
        tail = scaled(right[:, :, None], blocks, working)[:, :, 0]
        for block in blocks:
            part = tail[:, block.columns].reshape(len(tail), block.n_levels, block.n_coefs)
            basis = plan.products.basis.random[block.factor]
            self.result[block.factor][rows] = part @ basis.T
        return tail


def _draw_lead(whiten: Array, rest: Array, noise: Array) -> Array:
    """H'(H rest + noise) level by level: (S, J, k)."""
    k = len(whiten)
    white = [noise[:, :, i] + sum(whiten[i, b] * rest[:, :, b] for b in range(k)) for i in range(k)]
    return np.stack([sum(whiten[i, a] * white[i] for i in range(k)) for a in range(k)], axis=2)
