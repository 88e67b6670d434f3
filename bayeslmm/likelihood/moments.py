"""Exact conditional moments of the random effects, given the covariance parameters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.linalg.blas import dsymm, dsymv

from bayeslmm.likelihood.blocks import (
    TailBlock,
    contracted,
    scaled,
    scaled_both,
    symmetric,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import Factorisation, eliminate_random
from bayeslmm.likelihood.nested import Pivot, Stage, batches, is_filled, without_later
from bayeslmm.likelihood.shrinkage import WELL_CONDITIONED, invertible_part
from bayeslmm.likelihood.stack import ProductSlopes
from bayeslmm.likelihood.tail import DenseInverse, Inverse

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def conditional_modes(
    fact: Factorisation, beta_working: Array | None = None
) -> tuple[list[Array], list[Array]]:
    """Conditional means of u, and q = Z'V^-1 (y - X beta), per factor (J, k), working basis.

    Of independent combinations of the levels where the basis has them.
    """
    plan, products = fact.plan, fact.plan.products
    beta = fact.beta_working if beta_working is None else beta_working
    contrast = np.append(-beta, 1.0)
    tail_u = np.zeros(plan.n_tail)
    tail_q = tail_u
    if plan.n_tail:
        spherical = fact.tail_root.back(fact.tail_half @ contrast)
        tail_u = scaled(spherical[:, None], plan.tail, fact.factors)[:, 0]
        tail_q = fact.tail_mixed @ contrast - _symmetric_product(fact.tail_schur, tail_u)
    modes: list[Array] = [np.zeros(0)] * len(products.random)
    residuals: list[Array] = [np.zeros(0)] * len(products.random)
    for stage, pivot in reversed(list(zip(plan.stages, fact.pivots, strict=True))):
        rest = without_later(stage, pivot, pivot.block.mixed @ contrast, tail_u, modes)
        u = _apply_kernel(pivot.whiten, rest)
        modes[stage.factor] = u
        residuals[stage.factor] = rest - np.einsum("jkl,jl->jk", pivot.block.gram, u)
    for block in plan.tail:
        shape = (block.n_levels, block.n_coefs)
        modes[block.factor] = tail_u[block.columns].reshape(shape)
        residuals[block.factor] = tail_q[block.columns].reshape(shape)
    if fact.shrinkage is not None:
        residuals = [part @ contrast for part in fact.shrinkage.equations]
    return modes, residuals


def fixed_sensitivities(fact: Factorisation) -> list[Array]:
    """Z_j'V^-1 X C per factor (J, k, p), with C = (X'V^-1 X)^-1, Z in the working basis."""
    return [part @ fact.beta_root.T for part in whitened_sensitivities(fact)]


def whitened_sensitivities(fact: Factorisation) -> list[Array]:
    """Z_j'V^-1 X L per factor (J, k, p), with L L' = (X'V^-1 X)^-1, Z in the working basis."""
    plan, products = fact.plan, fact.plan.products
    if fact.shrinkage is not None:
        return _split_sensitivities(fact)
    result: list[Array] = [np.zeros(0)] * len(products.random)
    for stage, pivot, cross in zip(plan.stages, fact.pivots, _stage_crosses(fact), strict=True):
        result[stage.factor] = _kept(pivot) @ cross
    rest = _tail_fixed(fact) if plan.n_tail else np.zeros((0, products.n_fixed))
    for block in plan.tail:
        shape = (block.n_levels, block.n_coefs, products.n_fixed)
        result[block.factor] = rest[block.columns].reshape(shape)
    return result


def conditional_covariances(fact: Factorisation, *, given_beta: bool = False) -> list[Array]:
    """Conditional covariance of each level's u over sigma^2, per factor (J, k, k).

    In the working basis of the columns, but of the user's levels.

    Parameters
    ----------
    fact : Factorisation
        The factorisation.
    given_beta : bool
        Whether beta is known (lme4's ``condVar``); by default it is integrated out.
    """
    plan, products = fact.plan, fact.plan.products
    result: list[Array] = [np.zeros(0)] * len(products.random)
    if products.basis.levels is not None:
        return [_of_related(fact, products.basis.levels, given_beta=given_beta)]
    inverse = fact.tail_root.inverse
    inners = _stage_inners(fact, inverse, with_beta=not given_beta)
    for stage, pivot, inner in zip(plan.stages, fact.pivots, inners, strict=True):
        result[stage.factor] = pivot.kernel + pivot.kernel @ inner @ pivot.kernel
    if plan.n_tail:
        spread = _tail_spread(fact)
        for block in plan.tail:
            t = fact.factors[block.factor]
            cov = t @ _diagonal_blocks(inverse, block) @ t.T
            if not given_beta:
                part = spread[block.columns].reshape(block.n_levels, block.n_coefs, -1)
                cov = cov + part @ part.transpose(0, 2, 1)
            result[block.factor] = cov
    return result


def _of_related(fact: Factorisation, levels: Array, *, given_beta: bool) -> Array:
    """Conditional variances (J, 1, 1) of levels that are combinations of independent ones."""
    (pivot,) = fact.pivots
    variance = levels**2 @ pivot.kernel[:, 0, 0]
    if not given_beta:
        (cross,) = _stage_crosses(fact)
        variance = variance + np.sum((levels @ (pivot.kernel @ cross)[:, 0]) ** 2, axis=1)
    return np.asarray(variance[:, None, None])


def precision_blocks(fact: Factorisation, *, restricted: bool = True) -> list[Array]:
    """Sums over levels of the diagonal blocks of Z'PZ (or Z'V^-1 Z), per factor (k, k).

    Over pairs of levels, weighted by their relationships, where they are related.
    """
    if fact.shrinkage is None:
        return _precision_blocks(fact, restricted=restricted)
    blocks = _split_precision(fact)
    if restricted:
        parts = _split_sensitivities(fact)
        blocks = [a - np.einsum("jkp,jlp->kl", b, b) for a, b in zip(blocks, parts, strict=True)]
    return blocks


def _split_precision(fact: Factorisation) -> list[Array]:
    """Sums of the diagonal blocks of Z'V^-1 Z = T^-T (I - C_ZZ^-1) T^-1, where T has an inverse."""
    blocks = _precision_blocks(fact, restricted=False)
    covariances = conditional_covariances(fact, given_beta=True)
    for f, (t, cov) in enumerate(zip(fact.factors, covariances, strict=True)):
        inverse, projection = invertible_part(t)
        root = inverse.T @ inverse
        exact = len(cov) * root - root @ cov.sum(axis=0) @ root
        blocks[f] = blocks[f] - projection @ blocks[f] @ projection + exact
    return blocks


def _split_sensitivities(fact: Factorisation) -> list[Array]:
    """Z'V^-1 X L_XX^-T per factor (J, k, p)."""
    assert fact.shrinkage is not None
    result = []
    for part in fact.shrinkage.equations:
        rows = part[:, :, :-1].reshape(-1, part.shape[2] - 1)
        result.append(_right_solve(rows, fact.fixed_chol).reshape(*part.shape[:2], -1))
    return result


def _precision_blocks(fact: Factorisation, *, restricted: bool) -> list[Array]:
    plan, products = fact.plan, fact.plan.products
    result: list[Array] = [np.zeros((0, 0))] * len(products.random)
    inverse = fact.tail_root.inverse
    inners = _stage_inners(fact, inverse, with_beta=restricted)
    for stage, pivot, inner in zip(plan.stages, fact.pivots, inners, strict=True):
        keep = _kept(pivot)
        blocks = keep @ pivot.block.gram - keep @ inner @ keep.transpose(0, 2, 1)
        result[stage.factor] = blocks.sum(axis=0)
    if plan.n_tail:
        rest = _tail_fixed(fact) if restricted else None
        near = list(fact.factors)
        if plan.sparse is not None and not all(map(_is_regular, near)):
            near = [_regular(t) for t in near]
            inverse = eliminate_random(plan, near).root.inverse
        for block in plan.tail:
            t = near[block.factor]
            if _is_regular(t):
                total = _tail_precision(t, block, inverse)
            else:
                total = _tail_precision_singular(fact, block)
            if rest is not None:
                part = rest[block.columns].reshape(block.n_levels, block.n_coefs, -1)
                total = total - np.einsum("jkp,jlp->kl", part, products.related(block.factor, part))
            result[block.factor] = total
    return result


def _apply_kernel(whiten: Array, right: Array) -> Array:
    """W_j right_j with W = H'H: (J, k)."""
    return np.einsum("jlk,jl->jk", whiten, np.einsum("jkl,jl->jk", whiten, right))


def _kept(pivot: Pivot) -> Array:
    """I - A_j W_j: what shrinkage keeps of the equations of each level (J, k, k)."""
    return np.eye(pivot.kernel.shape[1]) - pivot.block.gram @ pivot.kernel


def _symmetric_product(lower: Array | sp.csc_array, columns: Array) -> Array:
    """Symmetric matrix times (q,) or (q, m); if dense, by its lower triangle in Fortran order."""
    if sp.issparse(lower):
        return lower @ columns
    if not columns.size:
        return np.zeros_like(columns)
    if columns.ndim == 1:
        return dsymv(1.0, lower, columns, lower=1)
    return dsymm(1.0, lower, columns, lower=1)


def _tail_fixed(fact: Factorisation) -> Array:
    """(X-part of the tail's equations after the tail itself) L_XX^-T: (q, p)."""
    p = fact.plan.products.n_fixed
    solved = _tail_solution(fact)
    product = _symmetric_product(fact.tail_schur, solved)
    return _right_solve(fact.tail_mixed[:, :p] - product, fact.fixed_chol)


def _tail_solution(fact: Factorisation) -> Array:
    """G = Lambda C_tt^-1 Lambda' tail_mixed_X: (q, p)."""
    p = fact.plan.products.n_fixed
    return scaled(fact.tail_root.back(fact.tail_half[:, :p]), fact.plan.tail, fact.factors)


def _tail_spread(fact: Factorisation) -> Array:
    """Root (q, p) of the part of the tail's conditional covariance that beta contributes."""
    return _right_solve(_tail_solution(fact), fact.fixed_chol)


def _right_solve(matrix: Array, lower: Array) -> Array:
    """Matrix times lower^-T."""
    if not lower.size:
        return np.zeros((matrix.shape[0], 0))
    return solve_triangular(lower, matrix.T, lower=True, check_finite=False).T


def _stage_inners(fact: Factorisation, inverse: Inverse, *, with_beta: bool) -> list[Array]:
    """Blocks A_jt Q A_tj (J, k, k) of each stage, Q the covariance of all that comes later."""
    plan = fact.plan
    if not plan.stages:
        return []
    assert isinstance(inverse, DenseInverse)
    cov = scaled_both(inverse.lower, plan.tail, fact.factors) if plan.n_tail else inverse.lower
    if plan.nested:
        inners = later_covariances(plan, fact.pivots, symmetric(cov))
    elif plan.n_tail and plan.stages:
        inners = [plan.diagonal_of_congruence(cov)]
    else:
        inners = [np.zeros_like(stage.block.gram) for stage in plan.stages]
    if not with_beta:
        return inners
    crosses = _stage_crosses(fact)
    return [a + b @ b.transpose(0, 2, 1) for a, b in zip(inners, crosses, strict=True)]


def _stage_crosses(fact: Factorisation) -> list[Array]:
    """(A_jX - A_jt G) L_XX^-T of each stage, G the solution of all that comes later: (J, k, p)."""
    plan, p = fact.plan, fact.plan.products.n_fixed
    tail = _tail_solution(fact) if plan.n_tail else np.zeros((0, p))
    known: list[Array] = [np.zeros(0)] * len(plan.products.random)
    crosses: list[Array] = []
    for stage, pivot in reversed(list(zip(plan.stages, fact.pivots, strict=True))):
        cross = without_later(stage, pivot, pivot.block.mixed[:, :, :p], tail, known)
        if stage.factor != plan.lead:
            known[stage.factor] = pivot.kernel @ cross
        rows = cross.reshape(cross.shape[0] * cross.shape[1], p)
        crosses.append(_right_solve(rows, fact.fixed_chol).reshape(cross.shape))
    return crosses[::-1]


def _is_regular(factor: Array) -> bool:
    return bool(np.linalg.svd(factor, compute_uv=False)[-1] > WELL_CONDITIONED)


def _regular(factor: Array) -> Array:
    """The nearest relative factor that is regular: V changes by 1e-8 of itself."""
    left, sizes, right = np.linalg.svd(factor)
    return (left * np.maximum(sizes, 1.01 * WELL_CONDITIONED)) @ right


def _tail_precision(factor: Array, block: TailBlock, inverse: Inverse) -> Array:
    """Sum of the diagonal blocks of Z'V^-1 Z of one tail factor (k, k), or of pairs of levels."""
    total = block.n_levels * np.eye(block.n_coefs)
    if block.relationship is None:
        total = total - _diagonal_blocks(inverse, block).sum(axis=0)
    else:
        total = total - contracted(inverse.at, block, block.relationship.precision)
    return np.linalg.solve(factor.T, np.linalg.solve(factor.T, total.T).T)


def _tail_precision_singular(fact: Factorisation, block: TailBlock) -> Array:
    """The same for a dense tail where the relative factor has no inverse."""
    schur, own = symmetric(fact.tail_schur), (block.columns, block.columns)
    columns = scaled(schur[:, block.columns], fact.plan.tail, fact.factors, transposed=True)
    half = fact.tail_root.half(columns)
    if block.relationship is not None:
        left = schur[own] - half.T @ half
        start = block.start
        return contracted(
            lambda rows, cols: left[rows - start, cols - start],
            block,
            block.relationship.covariance,
        )
    half = half.reshape(len(half), block.n_levels, block.n_coefs)
    diagonal = _diagonal_blocks(DenseInverse(schur), block)
    return diagonal.sum(axis=0) - np.einsum("qjk,qjl->kl", half, half)


def _diagonal_blocks(inverse: Inverse, block: TailBlock) -> Array:
    """Diagonal blocks (J, k, k) of one factor."""
    places = block.places(np.arange(block.n_levels))
    return inverse.at(places[:, :, None], places[:, None, :])


# --- derivatives by cross-products ---
#
# The matrix C of the equations, bordered by the response, has the cross-products as entries. The
# derivative of ``log |C|`` by an entry is the entry of C^-1 there, a conditional covariance over
# sigma^2, and that of r^2 the product of two entries of w = (u, beta, -1) at their means.


def product_slopes(
    fact: Factorisation,
    *,
    determinants: bool,
    inverse_variance: float,
    restricted: bool,
    beta_working: Array | None = None,
) -> ProductSlopes:
    """Derivatives of a criterion by cross-products, for a plan without nested stages.

    Parameters
    ----------
    fact : Factorisation
        The factorisation.
    determinants : bool
        Whether log determinants belong to the criterion: of the random effects and, where
        `restricted`, of the fixed effects.
    inverse_variance : float
        The factor of r^2.
    restricted : bool
        Whether the fixed effects are integrated out.
    beta_working : ndarray (p,), optional
        Fixed effects at which r^2 is meant; by default its minimum.

    Returns
    -------
    ProductSlopes
    """
    products, p = fact.plan.products, fact.plan.products.n_fixed
    beta = fact.beta_working if beta_working is None else beta_working
    modes, _ = conditional_modes(fact, beta)
    right = np.append(beta, -1.0)
    fixed = inverse_variance * np.outer(right, right)
    random = [inverse_variance * u[:, :, None] * u[:, None, :] for u in modes]
    mixed = [2.0 * inverse_variance * u[:, :, None] * right for u in modes]
    couplings = [
        2.0 * inverse_variance * modes[f][c.first, :, None] * modes[g][c.second, None, :]
        for c in products.couplings
        for f, g in [c.factors]
    ]
    if determinants:
        with_beta = restricted and p > 0
        spread = conditional_covariances(fact, given_beta=not with_beta)
        random = [a + b for a, b in zip(random, spread, strict=True)]
        met = _covariances_between(fact, with_beta=with_beta)
        couplings = [a + 2.0 * b for a, b in zip(couplings, met, strict=True)]
    if determinants and restricted and p:
        inverse = solve_triangular(fact.fixed_chol, np.eye(p), lower=True)
        fixed[:p, :p] += inverse.T @ inverse
        for part, cov in zip(mixed, _covariances_with_beta(fact, inverse), strict=True):
            part[:, :, :p] += 2.0 * cov
    return ProductSlopes(fixed, tuple(random), tuple(mixed), tuple(couplings))


def _covariances_with_beta(fact: Factorisation, inverse: Array) -> list[Array]:
    """Conditional covariances over sigma^2 of u with the working beta per factor (J, k, p)."""
    plan = fact.plan
    result: list[Array] = [np.zeros(0)] * len(plan.products.random)
    for stage, pivot, cross in zip(plan.stages, fact.pivots, _stage_crosses(fact), strict=True):
        result[stage.factor] = -pivot.kernel @ cross @ inverse
    rest = -_tail_spread(fact) @ inverse if plan.n_tail else np.zeros((0, len(inverse)))
    for block in plan.tail:
        result[block.factor] = rest[block.columns].reshape(*block.shape, -1)
    return result


def _covariances_between(fact: Factorisation, *, with_beta: bool) -> list[Array]:
    """Conditional covariances over sigma^2 at the cells of each coupling (n_cells, k, l)."""
    plan, place = fact.plan, {block.factor: block for block in fact.plan.tail}
    if not plan.n_tail:
        return []
    if plan.sparse is not None:
        return _covariances_in_tail(fact, with_beta=with_beta)
    inverse = fact.tail_root.inverse
    assert isinstance(inverse, DenseInverse)
    tail = symmetric(scaled_both(inverse.lower, plan.tail, fact.factors))
    if with_beta:
        spread = _tail_spread(fact)
        tail = tail + spread @ spread.T
    lead = _lead_with_tail(fact, tail, with_beta=with_beta) if plan.stages else tail
    result = []
    for coupling in plan.products.couplings:
        rows, cols = (
            _effect_places(plan, place.get(factor), factor, levels)
            for factor, levels in zip(
                coupling.factors, (coupling.first, coupling.second), strict=True
            )
        )
        if coupling.factors[0] not in place:
            block = lead[rows[:, :, None], cols[:, None, :]]
        elif coupling.factors[1] not in place:
            block = lead[cols[:, None, :], rows[:, :, None]]
        else:
            block = tail[rows[:, :, None], cols[:, None, :]]
        result.append(block)
    return result


def _covariances_in_tail(fact: Factorisation, *, with_beta: bool) -> list[Array]:
    """The same where all random effects are in the tail, from entries of its inverse alone."""
    place = {block.factor: block for block in fact.plan.tail}
    inverse, result = fact.tail_root.inverse, []
    spread = _tail_spread(fact) if with_beta else np.zeros((fact.plan.n_tail, 0))
    for coupling in fact.plan.products.couplings:
        f, g = coupling.factors
        rows, cols = place[f].places(coupling.first), place[g].places(coupling.second)
        block = inverse.at(rows[:, :, None], cols[:, None, :])
        cov = fact.factors[f] @ block @ fact.factors[g].T
        result.append(cov + spread[rows] @ spread[cols].transpose(0, 2, 1))
    return result


def _effect_places(plan: Plan, block: TailBlock | None, factor: int, levels: Indices) -> Indices:
    """Places (m, k) of the effects of some levels, among those of the tail or the lead."""
    k = plan.products.random[factor].shape[1]
    start = 0 if block is None else block.start
    return start + levels[:, None] * k + np.arange(k)


def _lead_with_tail(fact: Factorisation, tail: Array, *, with_beta: bool) -> Array:
    """Conditional covariance over sigma^2 of the leading effects with the tail: (J * k, q)."""
    pivot = fact.pivots[0]
    levels, k = pivot.kernel.shape[:2]
    met = pivot.coupling.T @ tail
    if with_beta:
        inverse = solve_triangular(fact.fixed_chol, _tail_spread(fact).T, lower=True, trans="T")
        mixed = pivot.block.mixed[:, :, :-1].reshape(levels * k, -1)
        met = met - mixed @ inverse
    return -(pivot.kernel @ met.reshape(levels, k, -1)).reshape(levels * k, -1)


# --- nested stages: the inverse of the equations on the pattern of their factor ---
#
# A level of a stage and everything later that it meets are coupled with each other after its
# elimination, so the inverse on the pattern of the factor follows backwards from the tail, one
# stage after the other, without the rest of the inverse (Takahashi, Fagan, Chin, 1973, 8th PICA
# Conference Proceedings, 63-69).


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
