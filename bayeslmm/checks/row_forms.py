"""Uncertainty of the linear predictor at every row of the data, given covariance parameters.

With the random effects (and the fixed effects, where they are integrated out) normal given the
covariance parameters, the covariance matrix of the linear predictor over sigma^2 is U U' with one
row of U per row of the data. Grouping factors that are eliminated level by level contribute k
columns per level, which vanish outside it; the others and the fixed effects are the border, whose
columns every row shares.

A row of the border is its own covariates (few of them not zero) less a combination of k vectors of
its level per eliminated factor. So what is dense and costly is done per level, not per row. With
one grouping factor even the rest is: a row of U is linear in the row's covariates (z, x), so that
leverages are quadratic and residuals linear forms in them, whose coefficients are those of unit
covariates in each level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.memberships import Slot
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.batch import to_working
from bayeslmm.likelihood.blocks import add_precisions, lower_pairs
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ENTRIES = 1 << 22
"""Entries of the largest array: 32 MB, or what a single draw takes."""

LARGEST_DENSE = 4_000
"""Random effects eliminated by a sparse matrix that are taken as dense here: 0.13 GB a draw."""

ROW_ENTRIES = 1 << 17
"""Entries of the rows of U that are worked on at once, so that they stay in the cache."""

FORM_ENTRIES = 1 << 16
"""The same of leverages and residuals, which take several arrays each."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowSystem:
    """A design arranged for :func:`row_forms`, in the working basis of its plan.

    Attributes
    ----------
    plan : Plan
        Cross-products of the design, whose order of elimination is used.
    prior : GaussianBeta or None
        Normal prior on beta; None for a flat one or where beta is given.
    given_beta : bool
        Whether beta is not integrated out.
    weights : ndarray (n,)
        Precision weights.
    slots : tuple of tuple of Slot
        Level and covariates of each row, per grouping factor; one slot where it is eliminated level
        by level.
    X : ndarray (n, p)
        Fixed-effects covariates.
    y : ndarray (n,)
        Response.
    gram : ndarray (q + p + 1, q + p + 1)
        Weighted cross-products of the q columns of the tail, of X and of y.
    mixed : tuple of ndarray (J, k, q + p + 1)
        The same between each grouping factor that is eliminated level by level and these.
    """

    plan: Plan
    prior: GaussianBeta | None
    given_beta: bool
    weights: Array
    slots: tuple[tuple[Slot, ...], ...]
    X: Array
    y: Array
    gram: Array
    mixed: tuple[Array, ...]

    @property
    def by_level(self) -> bool:
        """Whether there is a single grouping factor, and nothing that needs more care."""
        alone = len(self.plan.stages) == 1 and not self.plan.n_tail
        return alone and not self.plan.nested and self.plan.split is None

    def batches(self, draws: int) -> list[slice]:
        """Parts of so many draws that can be worked on at once."""
        width = len(self.gram)
        by_level = sum(part.shape[0] * part.shape[1] for part in self.mixed)
        widths = sum(slot.Z.shape[1] for own in self.slots for slot in own)
        by_row = len(self.y) * max(1, widths)
        step = max(1, ENTRIES // max(by_row, by_level * width, width**2))
        return [slice(start, min(start + step, draws)) for start in range(0, draws, step)]


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

    def parts(self, entries: int) -> Iterator[Indices]:
        """Rows whose shared columns of U have so many entries, some at a time."""
        n, size = self.residual.shape
        step = max(1, entries // (size * max(1, self.width)))
        for start in range(0, n, step):
            yield np.arange(start, min(start + step, n))

    def leverage(self, rows: Indices) -> Array:
        """Conditional variance of the linear predictor over sigma^2 at some rows: (r, C)."""
        border = self.border(rows)
        own = sum(np.sum(level[rows] ** 2, axis=2) for level in self.levels)
        return np.asarray(own + np.einsum("cnm,cnm->nc", border, border))

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


def row_system(
    design: Design, plan: Plan, prior: GaussianBeta | None, *, given_beta: bool = False
) -> RowSystem:
    """Arrange a design for :func:`row_forms`; a prior on beta that is given does not count."""
    plan = row_plan(design, plan)
    products = plan.products
    basis = products.basis
    mixed = []
    for stage in plan.stages:
        own = products.mixed[stage.factor]
        coupling = stage.cells.matrix(stage.block.cells) if plan.nested else plan.coupling
        with_tail = coupling.toarray().T.reshape(*own.shape[:2], plan.n_tail)
        mixed.append(np.concatenate([with_tail, own], axis=2))
    pairs = zip(design.random, basis.random, strict=True)
    return RowSystem(
        plan=plan,
        prior=None if given_beta else prior,
        given_beta=given_beta,
        weights=design.row_weights,
        slots=tuple(
            tuple(slot._replace(Z=slot.Z @ columns) for slot in factor.slots)
            for factor, columns in pairs
        ),
        X=design.X @ basis.fixed,
        y=design.y - design.offset - design.X @ basis.shift,
        gram=np.block([[plan.tail_gram, plan.tail_mixed], [plan.tail_mixed.T, products.fixed]]),
        mixed=tuple(mixed),
    )


def row_plan(design: Design, plan: Plan) -> Plan:
    """The plan itself, or one in which related levels are as rows meet them, in a dense tail.

    Raises
    ------
    DataError
        If that would be too large.
    """
    if plan.sparse is not None:
        if plan.n_tail > LARGEST_DENSE:
            raise DataError(
                f"Leverages, and with them loo() and the checks of residuals and influence, are "
                f"there for up to {LARGEST_DENSE:,} random effects beside related levels; this "
                f"model has {plan.n_tail:,}. Fit the model to fewer individuals for them."
            )
        stack, shape = plan.stack, plan.shape
        return make_plan(plan.products, stack=stack, shape=shape, diagonal=False, sparse=False)
    if plan.products.basis.levels is None:
        return plan
    products = cross_products(
        design.y - design.offset,
        design.X,
        design.random,
        weights=design.weights,
        basis=plan.products.basis,
    )
    return make_plan(products, diagonal=False)


def row_forms(system: RowSystem, joint: JointDraws, draws: slice) -> RowForms:
    """Rows of U and residuals at some of the draws, C of them."""
    points = joint.points.take(draws)
    relative = to_working(system.plan, points.factors)
    known = _working(system, joint.beta[draws]) if system.given_beta else None
    gram = _border_equations(system, relative, points.sigma, known)
    stages = [_stage(system, place, relative, known) for place in range(len(system.plan.stages))]
    levels, halves = [], []
    for place, stage in enumerate(stages):
        columns, half = _eliminate(system, stage, stages[place + 1 :], gram)
        levels.append(columns)
        halves.append(half)
    lower = np.linalg.cholesky(gram[:, :-1, :-1])
    turn = np.linalg.inv(lower).transpose(0, 2, 1)
    solution = (turn @ np.linalg.solve(lower, gram[:, :-1, -1:]))[:, :, 0]
    own = tuple(_own(system, relative))
    X = system.X[:, :0] if system.given_beta else system.X
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


def leverages(
    system: RowSystem, joint: JointDraws, draws: slice
) -> Iterator[tuple[Indices, Array, Array]]:
    """Rows, their leverages over weights and their residuals (r, C), some rows at a time."""
    if system.by_level:
        yield from _leverages_by_level(system, joint, draws)
        return
    forms = row_forms(system, joint, draws)
    for rows in forms.parts(ROW_ENTRIES):
        yield rows, forms.leverage(rows), forms.residual[rows]


def _leverages_by_level(
    system: RowSystem, joint: JointDraws, draws: slice
) -> Iterator[tuple[Indices, Array, Array]]:
    ((slot,),), p = system.slots, system.X.shape[1]
    codes, Z = slot.codes, slot.Z
    levels, k = system.mixed[0].shape[:2]
    units = row_forms(_units(system), joint, draws)
    border = units.border(np.arange(len(units.residual))).transpose(1, 2, 0)
    columns = np.concatenate([units.levels[0].transpose(0, 2, 1), border], axis=1)
    of_z = np.arange(levels * k).reshape(levels, k)
    of_x = np.broadcast_to(levels * k + np.arange(p), (levels, p))
    places = np.hstack([of_z, of_x])  # of the unit covariates of each level
    first, second = lower_pairs(k + p)
    twice = np.where(first == second, 1.0, 2.0)
    order = np.argsort(codes, kind="stable")
    size = border.shape[2]
    step = max(1, FORM_ENTRIES // size)
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        covariates = np.hstack([Z[rows], system.X[rows]])
        monomials = twice * covariates[:, first] * covariates[:, second]
        found, begin = np.unique(codes[rows], return_index=True)
        mine = columns[places[found]]  # (levels here, k + p, k + m, C)
        quadratic = np.empty((len(found), len(first), size))
        for a in range(k + p):
            pairs = first == a
            quadratic[:, pairs] = np.einsum("jmc,jbmc->jbc", mine[:, a], mine[:, : a + 1])
        linear = units.residual[places[found]]
        leverage, fitted = np.empty((2, len(rows), size))
        for j, (low, high) in enumerate(zip(begin, [*begin[1:], len(rows)], strict=True)):
            np.matmul(monomials[low:high], quadratic[j], out=leverage[low:high])
            np.matmul(covariates[low:high], linear[j], out=fitted[low:high])
        yield rows, leverage, system.y[rows, None] + fitted


def _units(system: RowSystem) -> RowSystem:
    """Rows of unit covariates: of each coefficient in each level, then of each fixed effect."""
    (levels, k), p = system.mixed[0].shape[:2], system.X.shape[1]
    codes = np.append(np.repeat(np.arange(levels), k), np.zeros(p, dtype=np.intp))
    z = np.vstack([np.tile(np.eye(k), (levels, 1)), np.zeros((p, k))])
    return replace(
        system,
        slots=((Slot(codes, z, codes),),),
        X=np.vstack([np.zeros((levels * k, p)), np.eye(p)]),
        y=np.zeros(levels * k + p),
    )


# --- the border: the columns of the tail, of X and of y, in this order ------------------


def _own(system: RowSystem, relative: Sequence[Array]) -> Iterator[tuple[Indices, Array]]:
    """Places in the tail, and coefficients there, of each row."""
    for block in system.plan.tail:
        for codes, z, _ in system.slots[block.factor]:
            scaled = np.einsum("nk,ckl->lnc", z, relative[block.factor])
            for i in range(block.n_coefs):
                yield block.start + codes * block.n_coefs + i, scaled[i]


def _working(system: RowSystem, beta: Array) -> Array:
    """Fixed effects (C, p) in the working basis."""
    basis = system.plan.products.basis
    return np.linalg.solve(basis.fixed, (beta - basis.shift).T).T


def _border_equations(
    system: RowSystem, relative: Sequence[Array], sigma: Array, known: Array | None
) -> Array:
    """Equations (C, m + 1, m + 1) of the border before the elimination of any factor."""
    whole = np.broadcast_to(system.gram, (len(sigma), *system.gram.shape))
    half = _scaled(system, whole, relative, known)
    gram = _scaled(system, half.transpose(0, 2, 1), relative, known)
    q = system.plan.n_tail
    add_precisions(gram[:, :q, :q], system.plan.tail)
    if known is None and system.prior is not None:
        product = system.prior.cross_products(system.plan.products.basis)
        start = system.plan.n_tail
        gram[:, start:, start:] += sigma[:, None, None] ** 2 * product
    return gram


def _scaled(
    system: RowSystem, values: Array, relative: Sequence[Array], known: Array | None
) -> Array:
    """Last axis of (C, a, q + p + 1) scaled by C relative roots; X taken off y if known."""
    size, shape = len(values), values.shape
    result = np.array(values)
    for block in system.plan.tail:
        part = result[:, :, block.columns].reshape(size, -1, block.n_coefs)
        result[:, :, block.columns] = (part @ relative[block.factor]).reshape(*shape[:2], -1)
    if known is None:
        return result
    start = system.plan.n_tail
    fixed = result[:, :, start:-1] @ known[:, :, None]
    return np.concatenate([result[:, :, :start], result[:, :, -1:] - fixed], axis=2)


# --- elimination level by level -----------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Stage:
    """A grouping factor that is eliminated level by level, in spherical coordinates.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Level of each row.
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
    original: Array
    rows: Array
    gram: Array
    border: Array


def _stage(system: RowSystem, place: int, relative: Sequence[Array], known: Array | None) -> _Stage:
    index = system.plan.stages[place].factor
    root, mixed = relative[index], system.mixed[place]
    (slot,) = system.slots[index]
    rows = np.einsum("nk,ckl->ncl", slot.Z, root)
    own = system.plan.products.random[index][:, None]
    gram = root.transpose(0, 2, 1) @ own @ root + np.eye(root.shape[2])
    flat = mixed.reshape(-1, mixed.shape[2])
    flat = _scaled(system, np.broadcast_to(flat, (len(root), *flat.shape)), relative, known)
    by_level = flat.reshape(len(root), *mixed.shape[:2], -1)
    border = np.einsum("ckl,cjkm->jclm", root, by_level)
    return _Stage(slot.codes, rows, rows.copy(), gram, border)


def _sums(total: sp.csr_array, values: Array) -> Array:
    """Weighted sums of rows (n, ...) by level: (J, ...)."""
    flat = total @ values.reshape(len(values), -1)
    return np.asarray(flat).reshape(total.shape[0], *values.shape[1:])


def _eliminate(
    system: RowSystem, stage: _Stage, later: Sequence[_Stage], gram: Array
) -> tuple[Array, Array]:
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
        total = _total(stage.codes, len(inverse), system.weights)
        parents = np.zeros(len(inverse), dtype=np.intp)
    for other in later:
        link = np.stack(
            [_sums(total, white[:, :, i, None] * other.rows) for i in range(white.shape[2])], axis=2
        )  # (J, C, k, l)
        parents[stage.codes] = other.codes
        within = _total(parents, len(other.gram), np.ones(len(parents)))
        turned = link.transpose(0, 1, 3, 2)
        other.gram[:] -= _sums(within, turned @ link)
        other.border[:] -= _sums(within, turned @ half)
        by_row = link[stage.codes]
        for i in range(columns.shape[2]):
            other.rows[:] -= columns[:, :, i, None] * by_row[:, :, i]
    half = np.ascontiguousarray(half.transpose(1, 0, 2, 3))
    flat = half.reshape(len(half), -1, half.shape[3])
    gram -= flat.transpose(0, 2, 1) @ flat
    return columns, half


def _total(codes: Indices, size: int, weights: Array) -> sp.csr_array:
    """Matrix (size, n) of weighted sums by level."""
    n = len(codes)
    return sp.csr_array((weights, (codes, np.arange(n))), shape=(size, n))


def _turned(half: Array, turn: Array) -> Array:
    """Rows (C, J, k, m) in terms of columns of U."""
    size, levels, k, m = half.shape
    return (half.reshape(size, levels * k, m) @ turn).reshape(size, levels, k, m)
