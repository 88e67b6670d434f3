"""Uncertainty of the linear predictor at every row of the data, given covariance parameters.

With the random effects (and the fixed effects, where they are integrated out) normal given the
covariance parameters, the covariance matrix of the linear predictor over sigma^2 is U U' with one
row of U per row of the data. Grouping factors that are eliminated level by level contribute k
columns per level, which vanish outside it; the others and the fixed effects are the border, whose
columns every row shares.

A row of the border is its own covariates (few of them not zero) less a combination of k vectors of
its level per eliminated factor. So what is dense and costly is done per level, not per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.likelihood.batch import lower_pairs, to_working
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta, to_working_beta

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ENTRIES = 1 << 22
"""Entries of the largest array: 32 MB, or what a single draw takes."""


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
    border : ndarray (J, C, k, m + 1)
        Its equations with the border and the response; changed in place.
    """

    codes: Indices
    total: sp.csr_array
    original: Array
    rows: Array
    gram: Array
    border: Array


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
    X : ndarray (n, p)
        Fixed-effects covariates in the working basis.
    y : ndarray (n,)
        Response in the working basis.
    gram : ndarray (q + p + 1, q + p + 1)
        Weighted cross-products of the q columns of the tail, of X and of y.
    mixed : tuple of ndarray (J, k, q + p + 1)
        The same between each grouping factor that is eliminated level by level and these.
    """

    design: Design
    plan: Plan
    prior: GaussianBeta | None
    weights: Array
    X: Array
    y: Array
    gram: Array
    mixed: tuple[Array, ...]

    @property
    def width(self) -> int:
        """Number of columns that the forms take per row."""
        return len(self.gram) + sum(part.shape[1] for part in self.mixed)

    def batches(self, draws: int) -> Iterator[slice]:
        """Parts of so many draws that can be worked on at once."""
        width = len(self.gram)
        by_level = sum(part.shape[0] * part.shape[1] for part in self.mixed)
        by_row = self.design.n * sum(f.n_coefs for f in self.design.random)
        step = max(1, ENTRIES // max(by_row, by_level * width, width**2))
        for start in range(0, draws, step):
            yield slice(start, min(start + step, draws))


def row_system(design: Design, plan: Plan, prior: GaussianBeta | None) -> RowSystem:
    """Arrange a design for :func:`row_forms`."""
    weights = np.ones(design.n) if design.weights is None else np.asarray(design.weights)
    basis = plan.products.basis
    X, y = design.X @ basis.fixed, design.y - design.offset - design.X @ basis.shift
    columns = sp.hstack([_tail(design, plan), X, y[:, None]], format="csr")
    weighted = sp.csr_array(columns * weights[:, None])
    mixed = []
    for stage in plan.stages:
        factor = design.random[stage.factor]
        index = factor.codes[:, None] * factor.n_coefs + np.arange(factor.n_coefs)
        own = _sparse(index, factor.Z, factor.n_levels * factor.n_coefs)
        product = (own.T @ weighted).toarray()
        mixed.append(product.reshape(factor.n_levels, factor.n_coefs, -1))
    gram = (columns.T @ weighted).toarray()
    return RowSystem(
        design=design,
        plan=plan,
        prior=prior,
        weights=weights,
        X=X,
        y=y,
        gram=gram,
        mixed=tuple(mixed),
    )


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
    known = None if beta is None else _working(system, beta)
    gram = _border_equations(system, relative, sigma, known)
    stages = [_stage(system, place, relative, known) for place in range(len(system.plan.stages))]
    levels, halves = [], []
    for place, stage in enumerate(stages):
        columns, half = _eliminate(stage, stages[place + 1 :], gram)
        levels.append(columns)
        halves.append(half)
    lower = np.linalg.cholesky(gram[:, :-1, :-1])
    turn = np.linalg.inv(lower).transpose(0, 2, 1)
    solution = (turn @ np.linalg.solve(lower, gram[:, :-1, -1:]))[:, :, 0]
    own = tuple(_own(system, relative))
    X = system.X if beta is None else system.X[:, :0]
    residual = system.y[:, None] - X @ solution[:, system.plan.n_tail :].T
    if known is not None:
        residual = residual - system.X @ known.T
    for places, values in own:
        residual -= values * solution[:, places].T
    for stage, columns, half in zip(stages, levels, halves, strict=True):
        explained = half[:, :, :, -1] - np.einsum("cjkm,cm->cjk", half[:, :, :, :-1], solution)
        residual -= np.einsum("nck,cnk->nc", columns, explained[:, stage.codes])
    return RowForms(
        codes=tuple(stage.codes for stage in stages),
        levels=tuple(levels),
        residual=residual,
        shared=tuple(_turned(half[:, :, :, :-1], turn) for half in halves),
        own=own,
        X=X,
        turn=np.ascontiguousarray(turn),
    )


# --- the border: the columns of the tail, of X and of y, in this order ------------------


def _tail(design: Design, plan: Plan) -> sp.csr_array:
    """Columns of the tail (n, q), not scaled."""
    parts = [sp.csr_array((design.n, 0))]
    for block in plan.tail:
        factor = design.random[block.factor]
        index = factor.codes[:, None] * factor.n_coefs + np.arange(factor.n_coefs)
        parts.append(_sparse(index, factor.Z, factor.n_levels * factor.n_coefs))
    return sp.csr_array(sp.hstack(parts, format="csr"))


def _sparse(index: Indices, values: Array, width: int) -> sp.csr_array:
    n, k = values.shape
    pointer = np.arange(n + 1) * k
    return sp.csr_array((values.ravel(), index.ravel(), pointer), shape=(n, width))


def _own(system: RowSystem, relative: Sequence[Array]) -> Iterator[tuple[Indices, Array]]:
    """Places in the tail, and coefficients there, of each row."""
    for block in system.plan.tail:
        factor = system.design.random[block.factor]
        scaled = np.einsum("nk,ckl->lnc", factor.Z, relative[block.factor])
        for i in range(factor.n_coefs):
            yield block.start + factor.codes * factor.n_coefs + i, scaled[i]


def _working(system: RowSystem, beta: Array) -> Array:
    """Fixed effects (C, p) in the working basis."""
    basis = system.plan.products.basis
    return np.linalg.solve(basis.fixed, (beta - basis.shift).T).T


def _border_equations(
    system: RowSystem, relative: Sequence[Array], sigma: Array, known: Array | None
) -> Array:
    """Equations (C, m + 1, m + 1) of the border before the elimination of any factor."""
    half = _scaled(system, system.gram[None], relative, known)
    gram = _scaled(system, half.transpose(0, 2, 1), relative, known)
    tail = np.arange(system.plan.n_tail)
    gram[:, tail, tail] += 1.0
    if known is None and system.prior is not None:
        product = system.prior.cross_products(system.plan.products.basis)
        start = system.plan.n_tail
        gram[:, start:, start:] += sigma[:, None, None] ** 2 * product
    return gram


def _scaled(
    system: RowSystem, values: Array, relative: Sequence[Array], known: Array | None
) -> Array:
    """Last axis of (C or 1, a, q + p + 1) scaled by C relative roots; X taken off y if known."""
    size = len(relative[0])
    shape = (size, *values.shape[1:])
    result = np.array(np.broadcast_to(values, shape))
    for block in system.plan.tail:
        part = result[:, :, block.columns].reshape(size, -1, block.n_coefs)
        result[:, :, block.columns] = (part @ relative[block.factor]).reshape(*shape[:2], -1)
    if known is None:
        return result
    start = system.plan.n_tail
    fixed = result[:, :, start:-1] @ known[:, :, None]
    return np.concatenate([result[:, :, :start], result[:, :, -1:] - fixed], axis=2)


# --- elimination level by level -----------------------------------------------------------


def _stage(system: RowSystem, place: int, relative: Sequence[Array], known: Array | None) -> _Stage:
    index = system.plan.stages[place].factor
    factor, root, mixed = system.design.random[index], relative[index], system.mixed[place]
    n, k = factor.Z.shape
    total = sp.csr_array((system.weights, (factor.codes, np.arange(n))), shape=(factor.n_levels, n))
    rows = np.einsum("nk,ckl->ncl", factor.Z, root)
    gram = _sums(total, rows[:, :, :, None] * rows[:, :, None, :]) + np.eye(k)
    flat = _scaled(system, mixed.reshape(1, -1, mixed.shape[2]), relative, known)
    by_level = flat.reshape(len(root), *mixed.shape[:2], -1)
    border = np.einsum("ckl,cjkm->jclm", root, by_level)
    return _Stage(factor.codes, total, rows, rows.copy(), gram, border)


def _sums(total: sp.csr_array, values: Array) -> Array:
    """Weighted sums of rows (n, ...) by level: (J, ...)."""
    flat = total @ values.reshape(len(values), -1)
    return np.asarray(flat).reshape(total.shape[0], *values.shape[1:])


def _eliminate(stage: _Stage, later: Sequence[_Stage], gram: Array) -> tuple[Array, Array]:
    """Eliminate one grouping factor; what is left of the later ones and `gram` changes in place.

    Returns
    -------
    columns : ndarray (n, C, k)
        Columns of U of the rows' levels.
    half : ndarray (C, J, k, m + 1)
        What the levels take from the border.
    """
    inverse = np.linalg.inv(np.linalg.cholesky(stage.gram))
    columns = np.einsum("ncij,ncj->nci", inverse[stage.codes], stage.rows)
    half = inverse @ stage.border
    if later:
        # Rows of later factors have lost what this one explains, so its own rows must not have.
        white = np.einsum("ncij,ncj->nci", inverse[stage.codes], stage.original)
    for other in later:
        link = _link(stage, white, other.rows)
        other.gram[:] -= _by_level(stage, other, link, link)
        other.border[:] -= _by_level(stage, other, link, half)
        _subtract(other.rows, columns, link[stage.codes])
    half = np.ascontiguousarray(half.transpose(1, 0, 2, 3))
    flat = half.reshape(len(half), -1, half.shape[3])
    gram -= flat.transpose(0, 2, 1) @ flat
    return columns, half


def _link(stage: _Stage, white: Array, other: Array) -> Array:
    """L^-1 times the equations between a grouping factor and rows of another: (J, C, k, l)."""
    parts = [_sums(stage.total, white[:, :, i, None] * other) for i in range(white.shape[2])]
    return np.stack(parts, axis=2)


def _by_level(stage: _Stage, other: _Stage, left: Array, right: Array) -> Array:
    """Sums of left' right over the levels nested in each level of another factor."""
    parents = np.zeros(stage.total.shape[0], dtype=np.intp)
    parents[stage.codes] = other.codes
    size = other.total.shape[0]
    total = sp.csr_array(
        (np.ones(len(parents)), (parents, np.arange(len(parents)))), shape=(size, len(parents))
    )
    return _sums(total, left.transpose(0, 1, 3, 2) @ right)


def _subtract(rows: Array, columns: Array, half: Array) -> None:
    for i in range(columns.shape[2]):
        rows -= columns[:, :, i, None] * half[:, :, i]


def _turned(half: Array, turn: Array) -> Array:
    """Rows (C, J, k, m) in terms of columns of U."""
    size, levels, k, m = half.shape
    return (half.reshape(size, levels * k, m) @ turn).reshape(size, levels, k, m)


# --- rows of U, made when they are needed ---


ROW_ENTRIES = 1 << 17
"""Entries of the rows of U that are worked on at once, so that they stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowForms:
    """Rows of U, and conditional residuals, for a batch of C covariance parameters.

    Attributes
    ----------
    codes : tuple of ndarray of int (n,)
        Level of each row, per grouping factor that is eliminated level by level.
    levels : tuple of ndarray (n, C, k)
        Columns of U that belong to this level.
    residual : ndarray (n, C)
        Response less conditional mean of the linear predictor.
    shared : tuple of ndarray (C, J, k, m)
        What the levels take from the columns of U that all rows share.
    own : tuple of (ndarray of int (n,), ndarray (n, C))
        Pairs of places among the m shared columns, and coefficients there, of each row.
    X : ndarray (n, p)
        Fixed-effects covariates, which take the last places; p is 0 where beta is given.
    turn : ndarray (C, m, m)
        Map from these places to columns of U.
    """

    codes: tuple[Indices, ...]
    levels: tuple[Array, ...]
    residual: Array
    shared: tuple[Array, ...]
    own: tuple[tuple[Indices, Array], ...]
    X: Array
    turn: Array

    @property
    def width(self) -> int:
        """Number m of the columns that all rows share."""
        return self.turn.shape[2]

    def take(self, draws: slice) -> RowForms:
        """Some of the C."""
        return replace(
            self,
            levels=tuple(level[:, draws] for level in self.levels),
            residual=self.residual[:, draws],
            shared=tuple(shared[draws] for shared in self.shared),
            own=tuple((places, values[:, draws]) for places, values in self.own),
            turn=self.turn[draws],
        )

    @property
    def leverage(self) -> Array:
        """Conditional variance of the linear predictor over sigma^2: (n, C)."""
        result = np.asarray(sum(np.sum(part**2, axis=2) for part in self.levels))
        n, size = self.residual.shape
        step = max(1, ROW_ENTRIES // (size * max(1, self.width)))
        for start in range(0, n, step):
            rows = np.arange(start, min(start + step, n))
            border = self.border(rows)
            result[rows] += np.einsum("cnm,cnm->cn", border, border).T
        return result

    def border(self, rows: Indices) -> Array:
        """Columns of U that all rows share, at some rows: (C, len(rows), m)."""
        turned = self.turn[:, self.width - self.X.shape[1] :]
        result = np.matmul(self.X[rows], turned)
        for places, values in self.own:
            part = np.take(self.turn, places[rows], axis=1)
            part *= values[rows].T[:, :, None]
            result += part
        for codes, level, shared in zip(self.codes, self.levels, self.shared, strict=True):
            for i in range(level.shape[2]):
                part = np.take(shared[:, :, i], codes[rows], axis=1)
                part *= level[rows, :, i].T[:, :, None]
                result -= part
        return result


# --- leverages and residuals of every row, with one grouping factor ---
#
# Both are quadratic and linear forms in the row's own covariates (z, x), whose matrices depend on
# the level and the draw alone:
#
#     leverage = z'Ez + (x - B'z)'C(x - B'z),    residual = y - x'beta - z'(b - B beta),
#
# E the covariance matrix over sigma^2 of the level's random effects given beta, B = E Z'X,
# b = E Z'y, C that of beta. So every level takes one product of its rows' monomials with the
# coefficients of all draws, in place of work per row and draw.


LEVEL_ENTRIES = 1 << 21
"""Entries (rows or levels' coefficients times draws) of the arrays that are worked on at once."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelSystem:
    """A design with one grouping factor, its rows in the order of their levels.

    Attributes
    ----------
    plan : Plan
        Its cross-products, whose working basis is used.
    prior : GaussianBeta or None
        Normal prior on beta; None for a flat one or where beta is given.
    order : ndarray of int (n,)
        Rows of the design in this order.
    ends : ndarray of int (J + 1,)
        Where each level begins and ends.
    z, x, y : ndarray (n, k), (n, p), (n,)
        Rows in the working basis.
    """

    plan: Plan
    prior: GaussianBeta | None
    order: Indices
    ends: Indices
    z: Array
    x: Array
    y: Array

    def batches(self, draws: int) -> Iterator[slice]:
        """Parts of so many draws that can be worked on at once."""
        k, p = self.z.shape[1], self.x.shape[1]
        step = max(1, LEVEL_ENTRIES // max(len(self.y), (len(self.ends) - 1) * k * (k + p)))
        for start in range(0, draws, step):
            yield slice(start, min(start + step, draws))


def has_level_forms(plan: Plan) -> bool:
    """Whether a plan has a single grouping factor, and nothing that needs more care."""
    return plan.n_tail == 0 and not plan.nested and plan.split is None


def level_system(design: Design, plan: Plan, prior: GaussianBeta | None) -> LevelSystem:
    """Arrange a design for :func:`level_forms`."""
    factor, basis = design.random[0], plan.products.basis
    order = np.argsort(factor.codes, kind="stable")
    counts = np.bincount(factor.codes, minlength=factor.n_levels)
    response = design.y - design.offset - design.X @ basis.shift
    return LevelSystem(
        plan=plan,
        prior=prior,
        order=order,
        ends=np.concatenate([[0], np.cumsum(counts)]),
        z=(factor.Z @ basis.random[0])[order],
        x=(design.X @ basis.fixed)[order],
        y=response[order],
    )


def level_forms(
    system: LevelSystem, relative: Array, sigma: Array, beta: Array | None
) -> tuple[Array, Array]:
    """Leverages over sigma^2 (n, C) and residuals (n, C), in the order of the design.

    Parameters
    ----------
    system : LevelSystem
        The data.
    relative : ndarray (C, k, k)
        Relative roots of the covariance matrices in the user's columns.
    sigma : ndarray (C,)
        Residual standard deviations.
    beta : ndarray (C, p) or None
        Fixed effects where they are given rather than integrated out.
    """
    products, p = system.plan.products, system.x.shape[1]
    (root,) = to_working(system.plan, [relative])
    gram = root.swapaxes(1, 2)[:, None] @ products.random[0] @ root[:, None]
    inner = np.linalg.inv(gram + np.eye(gram.shape[2]))
    own = root[:, None] @ inner @ root.swapaxes(1, 2)[:, None]  # E (C, J, k, k)
    taken = own @ products.mixed[0]  # [B b] (C, J, k, p + 1)
    covariance, known = _fixed_effects(system, taken, sigma, beta)
    slopes = taken[..., :p]
    turned = slopes @ covariance[:, None]  # B C (C, J, k, p)
    quadratic = own + turned @ slopes.swapaxes(2, 3)
    modes = taken[..., p] - (slopes @ known[:, None, :, None])[..., 0]  # (C, J, k)
    leverage = _monomials(system.x) @ _coefficients(covariance).T
    residual = system.y[:, None] - system.x @ known.T
    _subtract_by_level(system, quadratic, turned, modes, leverage, residual)
    back = np.empty_like(system.order)
    back[system.order] = np.arange(len(back))
    return leverage[back], residual[back]


def _fixed_effects(
    system: LevelSystem, taken: Array, sigma: Array, beta: Array | None
) -> tuple[Array, Array]:
    """Covariance matrices over sigma^2 (C, p, p) and means (C, p) of working fixed effects."""
    products, p = system.plan.products, system.x.shape[1]
    if beta is not None:
        known = np.array([to_working_beta(products, row) for row in beta])
        return np.zeros((len(sigma), p, p)), known.reshape(len(sigma), p)
    mixed = products.mixed[0]
    flat = taken.reshape(len(taken), -1, p + 1)
    equations = products.fixed - mixed.reshape(-1, p + 1).T @ flat
    if system.prior is not None:
        own = system.prior.cross_products(products.basis)
        equations = equations + sigma[:, None, None] ** 2 * own
    covariance = np.linalg.inv(equations[:, :p, :p])
    return covariance, (covariance @ equations[:, :p, p:])[:, :, 0]


def _subtract_by_level(
    system: LevelSystem,
    quadratic: Array,
    turned: Array,
    modes: Array,
    leverage: Array,
    residual: Array,
) -> None:
    """Add what depends on the level to leverages and residuals (n, C), in place."""
    k, p = system.z.shape[1], system.x.shape[1]
    crossed = (system.z[:, :, None] * system.x[:, None, :]).reshape(len(system.y), k * p)
    monomials = np.hstack([_monomials(system.z), crossed])  # (n, K)
    coefficients = np.concatenate(
        [_coefficients(quadratic), -2.0 * turned.reshape(*turned.shape[:2], k * p)], axis=2
    )  # (C, J, K)
    by_level = np.ascontiguousarray(coefficients.transpose(1, 2, 0))
    modes = np.ascontiguousarray(modes.transpose(1, 2, 0))
    for level, (start, end) in enumerate(zip(system.ends[:-1], system.ends[1:], strict=True)):
        leverage[start:end] += monomials[start:end] @ by_level[level]
        residual[start:end] -= system.z[start:end] @ modes[level]


def _monomials(columns: Array) -> Array:
    """Products (n, k (k + 1) / 2) of pairs of columns (n, k)."""
    rows, cols = lower_pairs(columns.shape[1])
    return columns[:, rows] * columns[:, cols]


def _coefficients(matrices: Array) -> Array:
    """Coefficients (..., k (k + 1) / 2) of these products in quadratic forms (..., k, k)."""
    rows, cols = lower_pairs(matrices.shape[-1])
    return matrices[..., rows, cols] * np.where(rows == cols, 1.0, 2.0)
