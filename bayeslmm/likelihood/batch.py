"""The mixed-model equations at many covariance parameters at once.

Random effects are eliminated from the equations for a batch of relative factors, which leaves one
small system for the fixed effects per batch member. Levels of the leading factor that share their
block of Z'Z (all of them in a balanced design) are eliminated once. Arrays have their small
dimensions first and the batch and the levels last, so that every operation is a long loop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.likelihood.elimination import Plan, level_classes
from bayeslmm.likelihood.factorise import Factorisation, factorise_working
from bayeslmm.likelihood.tail import scaled, scaled_both

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

CHUNK = 1 << 16
"""Batch members times levels that are worked on at once: temporaries stay in the cache."""

LARGEST_TAIL = 128
"""Largest dense tail that is factorised in batches; larger ones are factorised one by one."""

LARGEST_MAP = 50_000_000
"""Most entries of the products of Z'[X y] that are held in memory: 0.4 GB."""

THREADED_CELLS = 1 << 20
"""Batch members times levels from which chunks run on several cores."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reduced:
    """The equations of the fixed effects and the response after eliminating the random effects.

    Attributes
    ----------
    log_det_random : ndarray (S,)
        ``log |L_ZZ|^2``; NaN where the arithmetic broke down.
    fixed : ndarray (S, p + 1, p + 1)
        [X y]'V^-1 [X y] times sigma^2 in the working basis.
    """

    log_det_random: Array
    fixed: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BatchSystem:
    """A plan arranged for batches.

    Attributes
    ----------
    plan : Plan
        The data.
    gram : ndarray (k, k, C)
        Distinct blocks of Z'Z of the leading factor.
    level_class : ndarray (J,)
        Which of them each level has.
    counts : ndarray (C,)
        How many levels have each.
    fixed_map : ndarray (n_pairs, C, (p + 1)^2) or None
        Sums over the levels of a class of products of Z'[X y]; None where they would not fit, or
        would cancel (``plan.split``).
    schur_map : scipy.sparse.csr_array (n_filled, n_pairs * C) or None
        Map from the blocks W of the classes to what they take from the tail's Z'Z, at the places
        ``plan.filled``.
    mixed_map : scipy.sparse.csr_array (q * (p + 1), n_pairs * C) or None
        The same for the tail's Z'[X y].
    """

    plan: Plan
    gram: Array
    level_class: Indices
    counts: Array
    fixed_map: Array | None
    schur_map: sp.csr_array | None
    mixed_map: sp.csr_array | None

    @property
    def batched(self) -> bool:
        """Whether evaluations are vectorised over the batch."""
        return self.fixed_map is not None and (self.plan.n_tail == 0 or self.schur_map is not None)


def batch_system(plan: Plan, classes: Indices | None = None) -> BatchSystem:
    """Arrange a plan for batches; `classes` are those of the leading factor's levels, if known."""
    products, lead = plan.products, plan.lead
    blocks, mixed = products.random[lead], products.mixed[lead]
    classes = level_classes(blocks) if classes is None else classes
    representative = np.unique(classes, return_index=True)[1]
    counts = np.bincount(classes).astype(float)
    k, width, size = blocks.shape[1], mixed.shape[2], len(counts)
    pairs = k * (k + 1) // 2
    fits = pairs * size * width**2 <= LARGEST_MAP and not plan.nested and plan.split is None
    small = fits and 0 < plan.n_tail <= LARGEST_TAIL and plan.products_map is not None
    expand = _class_expansion(classes, k, size) if small else None
    return BatchSystem(
        plan=plan,
        gram=np.ascontiguousarray(blocks[representative].transpose(1, 2, 0)),
        level_class=classes,
        counts=counts,
        fixed_map=_fixed_map(mixed, classes, size) if fits else None,
        schur_map=None if expand is None else plan.products_map @ expand,
        mixed_map=None if expand is None else _mixed_map(plan) @ expand,
    )


def reduce_equations(system: BatchSystem, factors: Sequence[Array]) -> Reduced:
    """Eliminate the random effects for a batch of relative factors.

    Parameters
    ----------
    system : BatchSystem
        The data.
    factors : sequence of ndarray (S, k, k)
        Relative factors in the user's coordinates, one batch per grouping factor.

    Returns
    -------
    Reduced
    """
    working = to_working(system.plan, factors)
    reduce = _reduce_chunk if system.batched else _reduce_singly
    chunks = list(chunks_of(system, len(working[0])))
    parts = run_chunks(system, lambda rows: reduce(system, [t[rows] for t in working]), chunks)
    return Reduced(
        log_det_random=np.concatenate([part.log_det_random for part in parts]),
        fixed=np.concatenate([part.fixed for part in parts]),
    )


def to_working(plan: Plan, factors: Sequence[Array]) -> list[Array]:
    """Relative factors (S, k, k) in the working basis."""
    basis = plan.products.basis.random
    return [np.linalg.inv(a) @ t for a, t in zip(basis, factors, strict=True)]


def run_chunks[T](
    system: BatchSystem, work: Callable[[slice], T], chunks: Sequence[slice]
) -> list[T]:
    """Results of `work` for every chunk, on several cores where the chunks are large."""
    cells = chunks[-1].stop * len(system.counts)
    if len(chunks) == 1 or (system.batched and cells < THREADED_CELLS):
        return [work(chunk) for chunk in chunks]
    return run_parallel(work, chunks)


def run_parallel[I, T](work: Callable[[I], T], items: Sequence[I]) -> list[T]:
    """Results of `work` for every item, on all cores available.

    Threads take over the caller's context: NumPy's handling of floating-point errors is in it.
    """
    context = copy_context()
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(lambda item: context.copy().run(work, item), items))


def eliminate_lead(system: BatchSystem, factor: Array) -> tuple[Array, Array, Array]:
    """Eliminate the leading factor for working relative factors (S, k, k).

    Returns
    -------
    whiten : ndarray (k, k, S, C)
        H with ``H'H = T (T'AT + I)^-1 T'``.
    kernel : ndarray (n_pairs, S, C)
        The lower triangle of H'H.
    log_det : ndarray (S,)
    """
    k, size = factor.shape[1], len(system.counts)
    rows, cols = lower_pairs(k)
    weights = np.einsum("sap,sbp->psab", factor[:, :, rows], factor[:, :, cols])
    flat = weights.reshape(len(rows), -1, k * k) @ system.gram.reshape(k * k, size)
    lower = dict(zip(zip(rows.tolist(), cols.tolist(), strict=True), flat, strict=True))
    for i in range(k):
        lower[i, i] = lower[i, i] + 1.0
    small_cholesky(lower, k)
    whiten = np.empty((k, k, *flat.shape[1:]))
    for i in range(k):
        for b in range(k):
            entry = factor[:, b, i, None]
            for m in range(i):
                entry = entry - lower[i, m] * whiten[m, b]
            whiten[i, b] = entry / lower[i, i]
    kernel = np.stack(
        [np.sum(whiten[:, a] * whiten[:, b], axis=0) for a, b in zip(rows, cols, strict=True)]
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        pivots = np.prod([lower[i, i] for i in range(k)], axis=0)
        return whiten, kernel, 2.0 * np.log(pivots) @ system.counts


@cache
def lower_pairs(k: int) -> tuple[Indices, Indices]:
    """Rows and columns of the lower triangle of a (k, k) matrix."""
    return np.tril_indices(k)


def small_cholesky(lower: dict[tuple[int, int], Array], size: int) -> None:
    """Factorise, in place, matrices given entry by entry.

    A matrix that is not positive definite gets NaN or infinite entries.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(size):
            for m in range(j):
                lower[j, j] = lower[j, j] - lower[j, m] ** 2
            lower[j, j] = np.sqrt(lower[j, j])
            for i in range(j + 1, size):
                for m in range(j):
                    lower[i, j] = lower[i, j] - lower[i, m] * lower[j, m]
                lower[i, j] = lower[i, j] / lower[j, j]


def bordered_cholesky(system: BatchSystem, working: Sequence[Array], kernel: Array) -> Array:
    """Cholesky factor (S, q + p + 1, q + p + 1) of the scaled tail bordered by [X y].

    NaN where the matrix is not positive definite.
    """
    plan = system.plan
    q, width = plan.n_tail, plan.products.fixed.shape[0]
    batch = kernel.shape[1]
    flat = kernel.transpose(0, 2, 1).reshape(-1, batch)
    assert system.schur_map is not None and system.mixed_map is not None
    schur = np.repeat(plan.tail_gram.reshape(1, q * q), batch, axis=0)
    columns, rows = np.divmod(plan.filled, q)
    schur[:, rows * q + columns] -= (system.schur_map @ flat).T
    schur = schur.reshape(batch, q, q)
    mixed = plan.tail_mixed - (system.mixed_map @ flat).T.reshape(batch, q, width)
    matrix = np.empty((batch, q + width, q + width))
    matrix[:, :q, :q] = scaled_both(schur, plan.tail, working, transposed=True)
    matrix[:, range(q), range(q)] += 1.0
    matrix[:, q:, :q] = scaled(mixed, plan.tail, working, transposed=True).transpose(0, 2, 1)
    matrix[:, q:, q:] = lead_equations(system, kernel)
    return batched_cholesky(matrix)


def batched_cholesky(matrices: Array) -> Array:
    """Cholesky factors (S, m, m) from lower triangles; NaN where there is none."""
    try:
        return np.linalg.cholesky(matrices)
    except np.linalg.LinAlgError:
        result = np.full_like(matrices, np.nan)
        for i, matrix in enumerate(matrices):
            try:
                result[i] = np.linalg.cholesky(matrix)
            except np.linalg.LinAlgError:
                continue
        return result


def _reduce_chunk(system: BatchSystem, working: Sequence[Array]) -> Reduced:
    plan = system.plan
    _, kernel, log_det = eliminate_lead(system, working[plan.lead])
    if not plan.n_tail:
        return Reduced(log_det_random=log_det, fixed=lead_equations(system, kernel))
    lower = bordered_cholesky(system, working, kernel)
    q = plan.n_tail
    diagonal = np.diagonal(lower[:, :q, :q], axis1=1, axis2=2)
    rest = lower[:, q:, q:]
    return Reduced(
        log_det_random=log_det + 2.0 * np.sum(np.log(diagonal), axis=1),
        fixed=rest @ rest.transpose(0, 2, 1),
    )


def lead_equations(system: BatchSystem, kernel: Array) -> Array:
    """[X y]'[X y] less what the leading factor takes: (S, p + 1, p + 1)."""
    assert system.fixed_map is not None
    taken = sum(w @ m for w, m in zip(kernel, system.fixed_map, strict=True))
    fixed = system.plan.products.fixed
    return np.asarray(fixed - np.reshape(taken, (-1, *fixed.shape)))


def _reduce_singly(system: BatchSystem, working: Sequence[Array]) -> Reduced:
    log_dets, fixed = [], []
    for factors in zip(*working, strict=True):
        try:
            fact = factorise_working(system.plan, factors, value_only=True)
        except np.linalg.LinAlgError:
            width = system.plan.products.fixed.shape[0]
            log_dets.append(np.nan)
            fixed.append(np.full((width, width), np.nan))
            continue
        log_dets.append(fact.log_det_random)
        fixed.append(fixed_equations(fact))
    return Reduced(log_det_random=np.array(log_dets), fixed=np.array(fixed))


def fixed_equations(fact: Factorisation) -> Array:
    """[X y]'V^-1[X y] times sigma^2 (p + 1, p + 1) from a factorisation without a prior."""
    p = len(fact.fixed_half)
    lower = np.zeros((p + 1, p + 1))
    lower[:p, :p] = fact.fixed_chol
    lower[p, :p] = fact.fixed_half
    result: Array = lower @ lower.T
    result[p, p] += fact.rss
    return result


def available_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def chunks_of(system: BatchSystem, batch: int) -> Iterator[slice]:
    """Slices of a batch that are worked on at once."""
    width = system.plan.n_tail + system.plan.products.fixed.shape[0]
    cells = max(len(system.counts), width**2 if system.plan.n_tail else 1)
    step = max(1, CHUNK // cells) if system.batched else 1
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))


def _class_expansion(classes: Indices, k: int, size: int) -> sp.csr_array:
    """Map (J * k * k, n_pairs * C) from the lower triangles of the classes to full level blocks."""
    rows, cols = lower_pairs(k)
    pair = np.empty((k, k), dtype=np.intp)
    pair[rows, cols] = pair[cols, rows] = np.arange(len(rows))
    column = pair.ravel()[None, :] * size + classes[:, None]
    n = column.size
    index = (np.arange(n), column.ravel())
    return sp.csr_array((np.ones(n), index), shape=(n, len(rows) * size))


def _fixed_map(mixed: Array, classes: Indices, size: int) -> Array:
    """Symmetrised sums over a class of mixed_a' mixed_b: (n_pairs, C, (p + 1)^2)."""
    k, width = mixed.shape[1:]
    levels = len(mixed)
    gather = sp.csr_array((np.ones(levels), (classes, np.arange(levels))), shape=(size, levels))
    result = np.empty((k * (k + 1) // 2, size, width**2))
    for number, (a, b) in enumerate(zip(*lower_pairs(k), strict=True)):
        products = mixed[:, a, :, None] * mixed[:, b, None, :]
        if a != b:
            products = products + products.transpose(0, 2, 1)
        result[number] = gather @ products.reshape(levels, width**2)
    return result


def _mixed_map(plan: Plan) -> sp.csr_array:
    """Map (q * (p + 1), J * k * k) from leading blocks to their part of the tail's mixed."""
    mixed = plan.products.mixed[plan.lead]
    levels, k, width = mixed.shape
    coupling = plan.coupling.tocoo()
    tail, (level, a) = coupling.row, np.divmod(coupling.col, k)
    shape = (len(tail), k, width)
    row = np.broadcast_to(tail[:, None, None] * width + np.arange(width), shape)
    column = np.broadcast_to((level * k * k + a * k)[:, None, None] + np.arange(k)[:, None], shape)
    values = coupling.data[:, None, None] * mixed[level]
    return sp.csr_array(
        (values.ravel(), (row.ravel(), column.ravel())),
        shape=(plan.n_tail * width, levels * k * k),
    )
