"""Blocks of the inverse of the mixed-model equations that a gradient needs, for nested stages.

A level of a stage and everything later that it meets are coupled with each other after its
elimination, so the inverse on the pattern of the factor follows backwards from the tail, one
stage after the other, without the rest of the inverse.

References
----------
Takahashi, Fagan, Chin (1973), 8th PICA Conference Proceedings, 63-69.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.nested import Pivot, Stage, batches, is_filled

Array = NDArray[np.float64]


def later_covariances(plan: Plan, pivots: Sequence[Pivot], tail_cov: Array) -> list[Array]:
    """Covariance over sigma^2, beta given, of what later effects add to each level of a stage.

    Parameters
    ----------
    plan : Plan
        The data.
    pivots : sequence of Pivot
        The eliminated stages.
    tail_cov : ndarray (q, q)
        Conditional covariance of the tail over sigma^2, symmetric.

    Returns
    -------
    list of ndarray (J, k, k)
        Blocks ``C_j Q C_j'`` of each stage, C_j its couplings with all later random effects and Q
        their conditional covariance.
    """
    pairs: dict[tuple[int, int], Array] = {}
    with_tail: dict[int, Array] = {}
    result = []
    for stage, pivot in reversed(list(zip(plan.stages, pivots, strict=True))):
        cross = _later_products(stage, pivot, pairs, with_tail)
        if stage.factor == plan.lead:
            inner = _from_tail(plan, pivot, tail_cov)
        else:
            own = _tail_rows(stage, pivot, tail_cov)
            inner = _by_level(stage, own[:, :, None] * pivot.block.cells[:, None, :])
            own = own + _tail_from_later(stage, pivot, with_tail)
            with_tail[stage.factor] = -_times(pivot.kernel[stage.cells.level], own)
        for parent, link, part in zip(stage.parents, pivot.block.links, cross, strict=True):
            back = _tail_by_level(stage, pivot, with_tail[parent.factor][parent.cell])
            inner = inner + (part + back) @ link.transpose(0, 2, 1)
            inner = inner + link @ back.transpose(0, 2, 1)
            pairs[stage.factor, parent.factor] = -pivot.kernel @ (part + back)
        pairs[stage.factor, stage.factor] = pivot.kernel + pivot.kernel @ inner @ pivot.kernel
        result.append(inner)
    return result[::-1]


def _later_products(
    stage: Stage, pivot: Pivot, pairs: dict[tuple[int, int], Array], with_tail: dict[int, Array]
) -> list[Array]:
    """Couplings with later stages times the covariance of these with each later stage."""
    result = []
    for column, target in enumerate(stage.parents):
        total = np.zeros_like(pivot.block.links[column])
        for row, source in enumerate(stage.parents):
            inner, outer = (source, target) if row <= column else (target, source)
            cov = pairs[inner.factor, outer.factor][inner.level]
            if row > column:
                cov = cov.transpose(0, 2, 1)
            total = total + pivot.block.links[row] @ cov
        result.append(total)
    return result


def _from_tail(plan: Plan, pivot: Pivot, tail_cov: Array) -> Array:
    """What the tail alone adds to each level of the leading factor: (J, k, k)."""
    return plan.diagonal_of_congruence(tail_cov) if plan.n_tail else np.zeros_like(pivot.kernel)


def _tail_rows(stage: Stage, pivot: Pivot, tail_cov: Array) -> Array:
    """Coupling with the tail times the tail's covariance, at the cells: (n_cells, k)."""
    levels, k = pivot.kernel.shape[:2]
    rows = pivot.coupling.T.tocsr()
    result = np.empty_like(pivot.block.cells)
    for batch in batches(levels, k * len(tail_cov)):
        part = rows[batch.start * k : batch.stop * k]
        product = part.toarray() @ tail_cov if is_filled(part) else part @ tail_cov
        cells = slice(*np.searchsorted(stage.cells.level, (batch.start, batch.stop)))
        index = (stage.cells.level[cells, None] - batch.start) * k + np.arange(k)
        result[cells] = product[index, stage.cells.column[cells, None]]
    return result


def _tail_from_later(stage: Stage, pivot: Pivot, with_tail: dict[int, Array]) -> Array:
    """Couplings with later stages times the covariance of these with the tail: (n_cells, k)."""
    total = np.zeros_like(pivot.block.cells)
    for parent, link in zip(stage.parents, pivot.block.links, strict=True):
        total = total + _times(link[stage.cells.level], with_tail[parent.factor][parent.cell])
    return total


def _tail_by_level(stage: Stage, pivot: Pivot, covariances: Array) -> Array:
    """Coupling with the tail times its covariances (n_cells, l) with a later stage: (J, k, l)."""
    return _by_level(stage, pivot.block.cells[:, :, None] * covariances[:, None, :])


def _by_level(stage: Stage, blocks: Array) -> Array:
    """Sums (J, k, l) of the blocks (n_cells, k, l) of the cells of each level."""
    flat = stage.cells.by_level @ blocks.reshape(len(blocks), blocks.shape[1] * blocks.shape[2])
    return flat.reshape(-1, *blocks.shape[1:])


def _times(blocks: Array, vectors: Array) -> Array:
    """Products (n, k) of blocks (n, k, l) and vectors (n, l)."""
    return np.einsum("nkl,nl->nk", blocks, vectors)
