"""The random effects eliminated from the mixed-model equations at many points at once.

What is left is one small system for the fixed effects per point. Levels of the leading factor that
share their block of Z'Z (all of them in a balanced design) are eliminated once. Where a plan has no
``sums`` and no small tail alone, its points are factorised one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.blocks import (
    bordered_cholesky,
    eliminate_levels,
    log_det_of,
    rest_of,
)
from bayeslmm.likelihood.elimination import Border, Plan
from bayeslmm.likelihood.factorise import eliminate_random
from bayeslmm.likelihood.panels import (
    ENTRIES,
    NODES,
    bordered,
    eliminate_rest,
    interpolated,
    log_sds,
    make_panel,
    panel_nodes,
    panel_of,
)

Array = NDArray[np.float64]

CHUNK = 1 << 16
"""Points times classes of levels that are worked on at once: temporaries stay in the cache."""

THREADED_CELLS = 1 << 20
"""Points times classes of levels from which chunks run on several cores."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reduced:
    """The equations of the fixed effects and the response after eliminating the random effects.

    Attributes
    ----------
    log_det : ndarray (S,)
        ``log |V / sigma^2|``; NaN where the arithmetic broke down.
    fixed : ndarray (S, p + 1, p + 1)
        [X y]'V^-1 [X y] times sigma^2 in the working basis.
    """

    log_det: Array
    fixed: Array


class RelativePoints(Protocol):
    """S points as the equations see them, free of scale (``coordinates.Points`` has it)."""

    @property
    def factors(self) -> Sequence[Array]:
        """Relative factors (S, k, k) of the user's columns per grouping factor."""
        ...

    @property
    def sigma(self) -> Array:
        """Residual standard deviations (S,)."""
        ...

    @property
    def shapes(self) -> Array:
        """Parameters (S, r) of the residuals beside sigma."""
        ...


def reduce_equations(plan: Plan, points: RelativePoints) -> Reduced:
    """Eliminate the random effects for a batch of points.

    Parameters
    ----------
    plan : Plan
        The data.
    points : RelativePoints
        The covariance parameters.

    Returns
    -------
    Reduced
    """
    size = len(points.sigma)
    if plan.stack is not None:
        return _reduce_stack(plan, points)
    log_weights = plan.products.log_weights
    if not plan.products.random:
        fixed = np.broadcast_to(plan.products.fixed, (size, *plan.products.fixed.shape))
        return Reduced(log_det=np.full(size, -log_weights), fixed=fixed)
    working = to_working(plan, points.factors)
    if plan.border is not None:
        log_det, fixed = _reduce_by_panels(plan.border, working)
        return Reduced(log_det=log_det - log_weights, fixed=fixed)
    reduce = _reduce_tail if plan.tail_alone else _reduce_singly
    reduce = reduce if plan.sums is None else _reduce_chunk
    chunks = list(chunks_of(plan, size))
    parts = run_chunks(plan, lambda rows: reduce(plan, [t[rows] for t in working]), chunks)
    return Reduced(
        log_det=np.concatenate([log_det for log_det, _ in parts]) - log_weights,
        fixed=np.concatenate([fixed for _, fixed in parts]),
    )


def _reduce_stack(plan: Plan, points: RelativePoints) -> Reduced:
    """The equations where cross-products change from point to point."""
    assert plan.stack is not None
    if not plan.products.random:
        fixed, log_weights = plan.stack.fixed_at(points.shapes)
        return Reduced(log_det=-log_weights, fixed=fixed)
    working, size = to_working(plan, points.factors), len(points.sigma)
    if plan.leads_alone:
        chunks = stack_chunks(plan, size)
        lead = working[plan.lead]
        parts = [_reduce_lead(plan, points.shapes[rows], lead[rows]) for rows in chunks]
        log_dets, fixed = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Reduced(log_det=log_dets, fixed=fixed)
    width = plan.products.fixed.shape[0]
    log_dets, fixed = np.full(size, np.nan), np.full((size, width, width), np.nan)
    if plan.whole is not None:
        for rows in plan.whole.chunks(size):
            here = [t[rows] for t in working]
            lower, log_dets[rows] = plan.whole.cholesky(points.shapes[rows], here)
            fixed[rows] = rest_of(lower, plan.whole.blocks)
        return Reduced(log_det=log_dets, fixed=fixed)

    def reduce(i: int) -> None:
        with suppress(np.linalg.LinAlgError):
            here = plan.at(points.shapes[i])
            rest = eliminate_random(here, [t[i] for t in working], overwrite=True)
            log_dets[i], fixed[i] = rest.log_det - here.products.log_weights, rest.fixed

    run_parallel(reduce, range(size))
    return Reduced(log_det=log_dets, fixed=fixed)


def _reduce_lead(plan: Plan, shapes: Array, factor: Array) -> tuple[Array, Array]:
    """The fields of :class:`Reduced` where one grouping factor is all there is."""
    assert plan.stack is not None
    gram, mixed, fixed, log_weights = plan.stack.factor_at(plan.lead, shapes)
    whiten, _, log_dets = eliminate_levels(gram, factor)
    log_det = log_dets @ plan.classes.counts
    k = len(whiten)
    for i in range(k):
        half = np.zeros_like(mixed[:, :, 0])
        for b in range(k):
            half += whiten[i, b][:, plan.classes.level, None] * mixed[:, :, b]
        fixed = fixed - half.swapaxes(1, 2) @ half
    return log_det - log_weights, fixed


def stack_chunks(plan: Plan, size: int) -> list[slice]:
    """Slices of points whose cross-products are held at once."""
    levels, k, width = plan.products.mixed[plan.lead].shape
    step = max(1, CHUNK // (levels * k * width))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def to_working(plan: Plan, factors: Sequence[Array]) -> list[Array]:
    """Relative factors (S, k, k) in the working basis."""
    basis = plan.products.basis.random
    return [np.linalg.inv(a) @ t for a, t in zip(basis, factors, strict=True)]


def run_chunks[T](plan: Plan, work: Callable[[slice], T], chunks: Sequence[slice]) -> list[T]:
    """Results of `work` for every chunk, on several cores where the chunks are large."""
    cells = chunks[-1].stop * (plan.n_tail**2 if plan.tail_alone else len(plan.classes.counts))
    if len(chunks) == 1 or (_together(plan) and cells < THREADED_CELLS):
        return [work(chunk) for chunk in chunks]
    return run_parallel(work, chunks)


def run_parallel[I, T](work: Callable[[I], T], items: Sequence[I]) -> list[T]:
    """Results of `work` for every item, on all cores available.

    Threads take over the caller's context: NumPy's handling of floating-point errors is in it.
    """
    context = copy_context()
    with ThreadPoolExecutor(available_cores()) as pool:
        return list(pool.map(lambda item: context.copy().run(work, item), items))


def tail_cholesky(plan: Plan, working: Sequence[Array], kernel: Array) -> Array:
    """Cholesky factor (S, q + p + 1, q + p + 1) of the scaled tail bordered by [X y].

    NaN where the matrix is not positive definite.
    """
    assert plan.sums is not None and plan.sums.mixed is not None
    q, width = plan.n_tail, plan.products.fixed.shape[0]
    batch = kernel.shape[1]
    flat = kernel.transpose(0, 2, 1).reshape(-1, batch)
    mixed = plan.tail_mixed - (plan.sums.mixed @ flat).T.reshape(batch, q, width)
    system = np.empty((batch, q + width, q + width))
    system[:, :q, :q] = plan.without_congruence(kernel)
    system[:, q:, :q] = mixed.transpose(0, 2, 1)
    system[:, q:, q:] = lead_equations(plan, kernel)
    return bordered_cholesky(system, plan.tail, working)


def _reduce_chunk(plan: Plan, working: Sequence[Array]) -> tuple[Array, Array]:
    """Log determinants (S,) and equations (S, p + 1, p + 1)."""
    _, kernel, log_dets = eliminate_levels(plan.classes.gram, working[plan.lead])
    log_det = log_dets @ plan.classes.counts
    if not plan.n_tail:
        return log_det, lead_equations(plan, kernel)
    lower = tail_cholesky(plan, working, kernel)
    return log_det + log_det_of(lower, plan.tail), rest_of(lower, plan.tail)


def tail_alone_cholesky(plan: Plan, working: Sequence[Array]) -> Array:
    """As :func:`tail_cholesky`, where no level is eliminated before: (S, q + p + 1, q + p + 1)."""
    q, width = plan.n_tail, plan.products.fixed.shape[0]
    system = np.empty((q + width, q + width))
    system[:q, :q], system[q:, :q] = plan.tail_gram, plan.tail_mixed.T
    system[q:, q:] = plan.products.fixed
    system = np.repeat(system[None], len(working[0]), axis=0)
    return bordered_cholesky(system, plan.tail, working)


def _reduce_tail(plan: Plan, working: Sequence[Array]) -> tuple[Array, Array]:
    """The same where all random effects are in the tail."""
    lower = tail_alone_cholesky(plan, working)
    return log_det_of(lower, plan.tail), rest_of(lower, plan.tail)


def lead_equations(plan: Plan, kernel: Array) -> Array:
    """[X y]'[X y] less what the leading factor takes: (S, p + 1, p + 1)."""
    assert plan.sums is not None
    taken = sum(w @ m for w, m in zip(kernel, plan.sums.fixed, strict=True))
    fixed = plan.products.fixed
    return np.asarray(fixed - np.reshape(taken, (-1, *fixed.shape)))


def _reduce_singly(plan: Plan, working: Sequence[Array]) -> tuple[Array, Array]:
    """The same for a plan without sums, one point after the other."""
    width = plan.products.fixed.shape[0]
    log_dets = np.full(len(working[0]), np.nan)
    fixed = np.full((len(working[0]), width, width), np.nan)
    for i, factors in enumerate(zip(*working, strict=True)):
        with suppress(np.linalg.LinAlgError):
            rest = eliminate_random(plan, factors, overwrite=True)
            log_dets[i], fixed[i] = rest.log_det, rest.fixed
    return log_dets, fixed


def _reduce_by_panels(border: Border, working: Sequence[Array]) -> tuple[Array, Array]:
    """The same where one related factor is bordered by few other columns."""
    numbers, counts = np.unique(panel_of(border, working), return_counts=True)
    for number in numbers[counts > NODES].tolist():
        if number not in border.panels:
            found = run_parallel(lambda t: _single(border, t), panel_nodes(number).tolist())
            border.panels[number] = make_panel(border, np.array(found))
    size, width = len(working[0]), len(border.plan.products.fixed)
    step = max(1, ENTRIES // width**2)
    parts = []
    for start in range(0, size, step):
        here = [t[start : start + step] for t in working]
        parts.append(eliminate_rest(border, here, _related_alone(border, here)))
    log_dets, fixed = zip(*parts, strict=True)
    return np.concatenate(log_dets), np.concatenate(fixed)


def _related_alone(border: Border, working: Sequence[Array]) -> Array:
    """Log determinants and equations, laid flat (S, 1 + m^2), without the related factor."""
    numbers = panel_of(border, working)
    values = np.empty((len(numbers), 1 + border.plan.products.fixed.size))
    for number in np.unique(numbers).tolist():
        rows = np.flatnonzero(numbers == number)
        here = [t[rows] for t in working]
        if border.panels.get(number) is not None:
            values[rows] = interpolated(border, here, number)
        else:
            points = log_sds(border, here).tolist()
            values[rows] = run_parallel(lambda t: _single(border, t), points)
    return values


def _single(border: Border, log_sd: float) -> Array:
    with suppress(np.linalg.LinAlgError):
        return bordered(border, log_sd)
    return np.full(1 + border.plan.products.fixed.size, np.nan)


def available_cores() -> int:
    """Number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _together(plan: Plan) -> bool:
    return plan.sums is not None or plan.tail_alone


def chunks_of(plan: Plan, batch: int) -> Iterator[slice]:
    """Slices of a batch that are worked on at once."""
    width = plan.n_tail + plan.products.fixed.shape[0]
    cells = max(len(plan.classes.counts), width**2 if plan.n_tail else 1)
    step = max(1, CHUNK // cells) if _together(plan) else 1
    for start in range(0, batch, step):
        yield slice(start, min(start + step, batch))
