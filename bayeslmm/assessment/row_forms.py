"""Uncertainty of the linear predictor at every row of the data, given covariance parameters.

With the random effects (and the fixed effects, where they are integrated out) normal given the
covariance parameters, the covariance matrix of the linear predictor over sigma^2 is U U' with one
row of U per row of the data. Grouping factors that are eliminated level by level contribute k
columns per level, which vanish outside it; the others and the fixed effects are the border, whose
columns every row shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowForms:
    """Rows of U, and conditional residuals, for a batch of C covariance parameters.

    Attributes
    ----------
    codes : tuple of ndarray of int (n,)
        Level of each row, per grouping factor that is eliminated level by level.
    levels : tuple of ndarray (n, C, k)
        Columns of U that belong to this level.
    border : ndarray (n, C, m)
        Columns of U that all rows share.
    residual : ndarray (n, C)
        Response less conditional mean of the linear predictor.
    """

    codes: tuple[Indices, ...]
    levels: tuple[Array, ...]
    border: Array
    residual: Array

    @property
    def leverage(self) -> Array:
        """Conditional variance of the linear predictor over sigma^2: (n, C)."""
        parts = [np.sum(part**2, axis=2) for part in (*self.levels, self.border)]
        return np.asarray(sum(parts))


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """A grouping factor that is eliminated level by level, in spherical coordinates.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Level of each row.
    total : scipy.sparse.csr_array (J, n)
        Weighted sums by level.
    original : ndarray (n, C, k)
        Its columns.
    rows : ndarray (n, C, k)
        The same less what earlier factors explain; changed in place.
    gram : ndarray (J, C, k, k)
        Its equations less what earlier factors explain; changed in place.
    """

    codes: Indices
    total: sp.csr_array
    original: Array
    rows: Array
    gram: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowSystem:
    """A design arranged for :func:`row_forms`.

    Attributes
    ----------
    design : Design
        The design.
    plan : Plan
        Its cross-products, whose working basis and order of elimination are used.
    prior : GaussianBeta or None
        Normal prior on beta; None for a flat one or where beta is given.
    weights : ndarray (n,)
        Precision weights.
    """

    design: Design
    plan: Plan
    prior: GaussianBeta | None
    weights: Array

    @property
    def width(self) -> int:
        """Number of columns that the forms take per row."""
        stages = sum(self.design.random[stage.factor].n_coefs for stage in self.plan.stages)
        return self.plan.n_tail + self.design.p + 1 + stages


def row_system(design: Design, plan: Plan, prior: GaussianBeta | None) -> RowSystem:
    """Arrange a design for :func:`row_forms`."""
    weights = np.ones(design.n) if design.weights is None else design.weights
    return RowSystem(design=design, plan=plan, prior=prior, weights=np.asarray(weights))


def row_forms(
    system: RowSystem, relative: Sequence[Array], sigma: Array, beta: Array | None
) -> RowForms:
    """Rows of U and residuals at C covariance parameters.

    Parameters
    ----------
    system : RowSystem
        The data.
    relative : sequence of ndarray (C, k, k)
        Relative roots of the covariance matrices, D chol(Omega) / sigma, per grouping factor.
    sigma : ndarray (C,)
        Residual standard deviations.
    beta : ndarray (C, p) or None
        Fixed effects where they are given rather than integrated out.
    """
    size = len(sigma)
    border = _border(system, relative, size, beta)
    width = border.shape[2] - 1
    gram = np.einsum("n,nca,ncb->cab", system.weights, border, border, optimize=True)
    gram[:, range(width), range(width)] += _ridge(system, width, with_beta=beta is None)
    if beta is None and system.prior is not None:
        _add_prior(system, gram, sigma)
    stages = [_stage(system, s.factor, relative[s.factor]) for s in system.plan.stages]
    levels = []
    for place, stage in enumerate(stages):
        levels.append(_eliminate(stage, stages[place + 1 :], border, gram))
    lower = np.linalg.cholesky(gram[:, :width, :width])
    solved = np.linalg.solve(lower, border[:, :, :width].transpose(1, 2, 0))
    right = np.linalg.solve(lower, gram[:, :width, width:])[:, :, 0]
    return RowForms(
        codes=tuple(stage.codes for stage in stages),
        levels=tuple(levels),
        border=np.ascontiguousarray(solved.transpose(2, 0, 1)),
        residual=border[:, :, width] - np.einsum("cmn,cm->nc", solved, right),
    )


def _border(system: RowSystem, relative: Sequence[Array], size: int, beta: Array | None) -> Array:
    """Columns of the tail, of X and of y, in this order: (n, C, m + 1)."""
    design, plan = system.design, system.plan
    basis, start = plan.products.basis, plan.n_tail
    p = design.p if beta is None else 0
    result = np.zeros((design.n, size, start + p + 1))
    rows = np.arange(design.n)[:, None]
    for block in plan.tail:
        factor = design.random[block.factor]
        scaled = np.einsum("nk,ckl->ncl", factor.Z, relative[block.factor])
        columns = block.start + factor.codes[:, None] * factor.n_coefs + np.arange(factor.n_coefs)
        result[rows, :, columns] = scaled.transpose(0, 2, 1)
    response = design.y - design.offset
    if beta is None:
        result[:, :, start : start + p] = (design.X @ basis.fixed)[:, None, :]
        result[:, :, -1] = (response - design.X @ basis.shift)[:, None]
    else:
        result[:, :, -1] = response[:, None] - design.X @ beta.T
    return result


def _ridge(system: RowSystem, width: int, *, with_beta: bool) -> Array:
    ridge = np.ones(width)
    if with_beta:
        ridge[system.plan.n_tail :] = 0.0
    return ridge


def _add_prior(system: RowSystem, gram: Array, sigma: Array) -> None:
    """Add the prior on beta, in the working basis, to the equations of the border."""
    basis, prior, start = system.plan.products.basis, system.prior, system.plan.n_tail
    assert prior is not None
    columns = np.column_stack([basis.fixed, prior.mean - basis.shift])
    product = columns.T @ prior.precision @ columns
    gram[:, start:, start:] += sigma[:, None, None] ** 2 * product


def _stage(system: RowSystem, place: int, relative: Array) -> _Stage:
    factor = system.design.random[place]
    n, k = factor.Z.shape
    total = sp.csr_array((system.weights, (factor.codes, np.arange(n))), shape=(factor.n_levels, n))
    rows = np.einsum("nk,ckl->ncl", factor.Z, relative)
    gram = _sums(total, rows[:, :, :, None] * rows[:, :, None, :]) + np.eye(k)
    return _Stage(factor.codes, total, rows, rows.copy(), gram)


def _sums(total: sp.csr_array, values: Array) -> Array:
    """Weighted sums of rows (n, ...) by level: (J, ...)."""
    flat = total @ values.reshape(len(values), -1)
    return np.asarray(flat).reshape(total.shape[0], *values.shape[1:])


def _eliminate(stage: _Stage, later: Sequence[_Stage], border: Array, gram: Array) -> Array:
    """Eliminate one grouping factor; rows and equations of what is left change in place.

    Returns
    -------
    ndarray (n, C, k)
        Columns of U of the rows' levels.
    """
    inverse = np.linalg.inv(np.linalg.cholesky(stage.gram))
    columns = np.einsum("ncij,ncj->nci", inverse[stage.codes], stage.rows)
    # Rows of later factors have lost what this one explains, so its own rows must not have.
    white = np.einsum("ncij,ncj->nci", inverse[stage.codes], stage.original)
    halves = [_half(stage, white, other.rows) for other in later]
    half = _half(stage, white, border)
    for other, h in zip(later, halves, strict=True):
        other.gram[:] -= _by_level(stage, other, h)
        _subtract(other.rows, columns, h[stage.codes])
    gram -= np.einsum("jcka,jckb->cab", half, half, optimize=True)
    _subtract(border, columns, half[stage.codes])
    return columns


def _half(stage: _Stage, white: Array, other: Array) -> Array:
    """L^-1 times the equations between a grouping factor and others: (J, C, k, m)."""
    parts = [_sums(stage.total, white[:, :, i, None] * other) for i in range(white.shape[2])]
    return np.stack(parts, axis=2)


def _by_level(stage: _Stage, other: _Stage, half: Array) -> Array:
    """Sums of half' half over the levels nested in each level of another factor."""
    parents = np.zeros(stage.total.shape[0], dtype=np.intp)
    parents[stage.codes] = other.codes
    size = other.total.shape[0]
    total = sp.csr_array(
        (np.ones(len(parents)), (parents, np.arange(len(parents)))), shape=(size, len(parents))
    )
    return _sums(total, np.einsum("jcka,jckb->jcab", half, half))


def _subtract(rows: Array, columns: Array, half: Array) -> None:
    for i in range(columns.shape[2]):
        rows -= columns[:, :, i, None] * half[:, :, i]
