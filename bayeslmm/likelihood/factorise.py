"""Blocked Cholesky factorisation of the mixed-model equations.

The leading grouping factor, and those that it is nested in, are eliminated level by level, the
rest as one dense Schur complement, the fixed effects last. Nothing needs the inverse of a relative
factor, so singular covariance matrices are ordinary.

References
----------
Bates, Maechler, Bolker, Walker (2015), doi:10.18637/jss.v067.i01, section 3.
Bates, Alday, Kokandakar (2025), arXiv:2505.11674, for the blocked Cholesky factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from threadpoolctl import ThreadpoolController

from bayeslmm.likelihood.blocks import eliminate_levels, scaled
from bayeslmm.likelihood.crossprod import Basis, WorkingProducts
from bayeslmm.likelihood.elimination import Classes, Plan
from bayeslmm.likelihood.nested import Block, Pivot, reduced, tail_products
from bayeslmm.likelihood.shrinkage import Shrinkage, shrink
from bayeslmm.likelihood.tail import DenseRoot, Root, dense_root

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class GaussianBeta:
    """Gaussian prior on the fixed effects.

    Attributes
    ----------
    mean : ndarray (p,)
        Prior mean of beta.
    root : ndarray (p, p)
        A matrix R with ``R'R`` equal to the precision, which itself is nearly singular where
        covariates are far from zero.
    """

    mean: Array
    root: Array

    @property
    def log_det(self) -> float:
        """Log determinant of the precision."""
        return 2.0 * float(np.linalg.slogdet(self.root)[1])

    def cross_products(self, basis: Basis) -> Array:
        """[I m]'S^-1[I m] in a working basis: (p + 1, p + 1)."""
        columns = self.root @ np.column_stack([basis.fixed, self.mean - basis.shift])
        return columns.T @ columns


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Factorisation:
    """Blocked Cholesky factor of the mixed-model equations at given relative factors.

    Attributes
    ----------
    plan : Plan
        The data.
    factors : tuple of ndarray (k, k)
        Relative factors in the working basis.
    pivots : tuple of Pivot
        The eliminated stages of the plan, the leading factor first.
    tail_schur : ndarray (q, q) or scipy.sparse.csc_array
        Schur complement of the tail before scaling by its relative factors; if dense, lower
        triangle, in Fortran order.
    tail_root : Root
        Its Cholesky factor after scaling and adding the precision of spherical effects.
    tail_half : ndarray (q, p + 1)
        The tail's rows of L_ZX and l_Zy.
    tail_mixed : ndarray (q, p + 1)
        Z'[X y] of the tail after eliminating the stages, unscaled.
    fixed_chol : ndarray (p, p)
        L_XX in the working basis.
    fixed_half : ndarray (p,)
        l_Xy in the working basis.
    log_det_random : float
        log |L_ZZ|^2, plus log determinants of the relationships of the tail's levels.
    log_det_fixed : float
        log |L_XX|^2 in the user's coordinates.
    rss : float
        Penalised residual sum of squares r^2 (with the prior's part, if any).
    shrinkage : Shrinkage or None
        What shrinkage makes of the coefficients of the plan's split, if it has one.
    """

    plan: Plan
    factors: tuple[Array, ...]
    pivots: tuple[Pivot, ...]
    tail_schur: Array | sp.csc_array
    tail_root: Root
    tail_half: Array
    tail_mixed: Array
    fixed_chol: Array
    fixed_half: Array
    log_det_random: float
    log_det_fixed: float
    rss: float
    shrinkage: Shrinkage | None = None

    @property
    def beta_working(self) -> Array:
        """Conditional mean of the fixed effects (p,) in the working basis."""
        if not len(self.fixed_half):
            return self.fixed_half
        return solve_triangular(self.fixed_chol, self.fixed_half, lower=True, trans="T")

    @property
    def beta(self) -> Array:
        """Conditional mean of the fixed effects (p,)."""
        basis = self.plan.products.basis
        return basis.fixed @ self.beta_working + basis.shift

    @property
    def beta_root(self) -> Array:
        """Root C (p, p) with C C' the conditional covariance of beta over sigma^2."""
        p = len(self.fixed_half)
        inverse = solve_triangular(self.fixed_chol, np.eye(p), lower=True) if p else np.eye(0)
        return self.plan.products.basis.fixed @ inverse.T


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


def single_threaded() -> AbstractContextManager[object]:
    """Context in which BLAS uses one thread: two are never faster at these sizes."""
    return _threads().limit(limits=1, user_api="blas")


def factorise(
    plan: Plan,
    factors: Sequence[Array],
    prior: GaussianBeta | None = None,
    sigma: float = 1.0,
    *,
    value_only: bool = False,
) -> Factorisation:
    """Factorise the mixed-model equations.

    Parameters
    ----------
    plan : Plan
        From :func:`marginal_system`.
    factors : sequence of ndarray (k, k)
        Relative factors in the user's coordinates.
    prior : GaussianBeta, optional
        Prior on beta; flat by default.
    sigma : float
        Residual standard deviation: matters only with a `prior`.
    value_only : bool
        Whether the Schur complement of the tail may be overwritten, which spares memory: the result
        then serves for determinants, beta and draws, but not for moments and gradients.

    Returns
    -------
    Factorisation
    """
    basis = plan.products.basis
    working = tuple(np.linalg.solve(a, t) for a, t in zip(basis.random, factors, strict=True))
    return factorise_working(plan, working, prior, sigma, value_only=value_only)


def factorise_working(
    plan: Plan,
    factors: Sequence[Array],
    prior: GaussianBeta | None = None,
    sigma: float = 1.0,
    *,
    value_only: bool = False,
) -> Factorisation:
    """Factorise as :func:`factorise`, with relative factors in the working basis."""
    rest = eliminate_random(plan, factors, overwrite=value_only)
    fixed_chol, fixed_half, rss = _fixed_cholesky(plan, rest.fixed, prior, sigma)
    log_det_fixed = 2.0 * float(np.sum(np.log(np.diag(fixed_chol))))
    return Factorisation(
        plan=plan,
        factors=tuple(factors),
        pivots=rest.pivots,
        tail_schur=rest.schur,
        tail_root=rest.root,
        tail_half=rest.half,
        tail_mixed=rest.mixed,
        fixed_chol=fixed_chol,
        fixed_half=fixed_half,
        log_det_random=rest.log_det,
        log_det_fixed=log_det_fixed - 2.0 * plan.products.basis.log_det_fixed,
        rss=rss,
        shrinkage=rest.shrinkage,
    )


class Eliminated(NamedTuple):
    """The equations after eliminating the random effects; see :class:`Factorisation`."""

    pivots: tuple[Pivot, ...]
    schur: Array | sp.csc_array
    root: Root
    half: Array
    mixed: Array
    fixed: Array
    log_det: float
    shrinkage: Shrinkage | None


def eliminate_random(
    plan: Plan, factors: Sequence[Array], *, overwrite: bool = False
) -> Eliminated:
    """Eliminate the random effects for relative factors in the working basis."""
    products = plan.products
    fixed, schur, mixed = products.fixed, plan.tail_gram, plan.tail_mixed
    blocks = [stage.block for stage in plan.stages]
    pivots, log_det = [], 0.0
    for i, stage in enumerate(plan.stages):
        pivot, own_log_det, pairs = _eliminate_stage(plan, i, blocks[i], factors[stage.factor])
        for position, later in enumerate(blocks[i + 1 :]):
            blocks[i + 1 + position] = reduced(stage, pivot, later, position)
        white = (pivot.whiten @ pivot.block.mixed).reshape(-1, products.n_fixed + 1)
        fixed = fixed - white.T @ white
        if plan.n_tail:
            schur = schur - tail_products(pivot) if i else plan.without_congruence(pairs)[0]
            weighted = (pivot.kernel @ pivot.block.mixed).reshape(-1, mixed.shape[1])
            mixed = mixed - pivot.coupling @ weighted
        pivots.append(pivot)
        log_det += own_log_det
    root: Root
    half, shrinkage = mixed, None
    if plan.sparse is not None:
        root = plan.sparse.root(schur, factors)
    else:
        if not plan.stages:
            schur = np.array(schur, order="F")
        root = DenseRoot(schur)
        if plan.n_tail:
            root = dense_root(schur, plan.tail, factors, overwrite=overwrite)
    if plan.n_tail:
        half = root.half(scaled(mixed, plan.tail, factors, transposed=True))
        fixed = fixed - half.T @ half
        log_det += root.log_det + sum(block.log_det for block in plan.tail)
    if plan.split is not None:
        shrinkage = shrink(plan, factors, pivots, root, half)
        fixed = shrinkage.fixed
    return Eliminated(tuple(pivots), schur, root, half, mixed, fixed, log_det, shrinkage)


def _eliminate_stage(
    plan: Plan, number: int, block: Block, factor: Array
) -> tuple[Pivot, float, Array]:
    """A stage at its elimination, its log determinant, and its kernel as ``Levels`` has it."""
    classes = Classes.each(block.gram) if number else plan.classes
    levels = eliminate_levels(classes.gram, factor[None])
    log_det = float(levels.log_det[0] @ classes.counts)
    if not np.isfinite(log_det):
        raise np.linalg.LinAlgError("the equations of a grouping factor break down")
    whiten = levels.of_each(classes.level)
    coupling = plan.stages[number].cells.matrix(block.cells) if number else plan.coupling
    pivot = Pivot(block, coupling, whiten, whiten.transpose(0, 2, 1) @ whiten)
    return pivot, log_det, levels.kernel


def _fixed_cholesky(
    plan: Plan, fixed: Array, prior: GaussianBeta | None, sigma: float
) -> tuple[Array, Array, float]:
    """L_XX, l_Xy and r^2 in the working basis."""
    p = plan.products.n_fixed
    if prior is not None:
        fixed = fixed + sigma**2 * prior.cross_products(plan.products.basis)
    if p == 0:
        return np.zeros((0, 0)), np.zeros(0), _pivot(fixed[0, 0])
    lower = cholesky(fixed[:p, :p], lower=True, check_finite=False)
    half = solve_triangular(lower, fixed[:p, p], lower=True, check_finite=False)
    return lower, half, _pivot(fixed[p, p] - half @ half)


def _pivot(rss: float) -> float:
    if not 0.0 < rss < np.inf:
        raise np.linalg.LinAlgError("the equations bordered by the response break down")
    return float(rss)


def to_working_beta(products: WorkingProducts, beta: Array) -> Array:
    """Fixed effects (p,) in the working basis."""
    if not products.n_fixed:
        return beta
    return solve_triangular(products.basis.fixed, beta - products.basis.shift)
