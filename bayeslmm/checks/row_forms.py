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
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.memberships import Slot
from bayeslmm.data.summarised import SummarisedDesign
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


class Link(NamedTuple):
    """How a grouping factor is nested in a later one that is eliminated level by level too.

    Attributes
    ----------
    level : ndarray of int (J,)
        The level of the later one that each level belongs to.
    blocks : ndarray (J, k, l) or (J, C, k, l)
        Cross-products of the two, or what is left of them.
    """

    level: Indices
    blocks: Array


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
    own : tuple of ndarray (J, k, k)
        Those of each grouping factor that is eliminated level by level with itself.
    links : tuple of tuple of Link
        With the later ones of these, in their order.
    mixed : tuple of ndarray (J, k, q + p + 1)
        With the q columns of the tail, X and y.
    """

    plan: Plan
    prior: GaussianBeta | None
    given_beta: bool
    weights: Array
    slots: tuple[tuple[Slot, ...], ...]
    X: Array
    y: Array
    gram: Array
    own: tuple[Array, ...]
    links: tuple[tuple[Link, ...], ...]
    mixed: tuple[Array, ...]

    def with_rows(self, design: Design) -> RowSystem:
        """The same with other rows: equations are those of all rows of the model."""
        return replace(self, **_columns(design, self.plan))

    def take(self, rows: Indices) -> RowSystem:
        """The same with some of the rows."""
        return replace(
            self,
            weights=self.weights[rows],
            slots=tuple(tuple(slot.take(rows) for slot in own) for own in self.slots),
            X=self.X[rows],
            y=self.y[rows],
        )

    def at_own_levels(self) -> RowSystem:
        """The same with those levels of the first stage only that its rows have."""
        if not self.plan.stages:
            return self
        first = self.plan.stages[0].factor
        slots = list(self.slots)
        (slot,) = slots[first]
        levels = np.unique(slot.codes)
        slots[first] = (slot._replace(codes=np.searchsorted(levels, slot.codes)),)
        links = tuple(Link(link.level[levels], link.blocks[levels]) for link in self.links[0])
        return replace(
            self,
            slots=tuple(slots),
            own=(self.own[0][levels], *self.own[1:]),
            links=(links, *self.links[1:]),
            mixed=(self.mixed[0][levels], *self.mixed[1:]),
        )

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
    """Arrange a design for :func:`row_forms`; a prior on beta that is given does not count.

    A design of sums gives a system without rows, for :meth:`RowSystem.with_rows`.
    """
    plan = row_plan(design, plan)
    products = plan.products
    mixed = []
    for stage in plan.stages:
        own = products.mixed[stage.factor]
        coupling = stage.cells.matrix(stage.block.cells) if plan.nested else plan.coupling
        with_tail = coupling.toarray().T.reshape(*own.shape[:2], plan.n_tail)
        mixed.append(np.concatenate([with_tail, own], axis=2))
    system = RowSystem(
        plan=plan,
        prior=None if given_beta else prior,
        given_beta=given_beta,
        weights=np.empty(0),
        slots=(),
        X=np.empty((0, products.n_fixed)),
        y=np.empty(0),
        gram=np.block([[plan.tail_gram, plan.tail_mixed], [plan.tail_mixed.T, products.fixed]]),
        own=tuple(products.random[stage.factor] for stage in plan.stages),
        links=tuple(
            tuple(
                Link(parent.level, blocks)
                for parent, blocks in zip(stage.parents, stage.block.links, strict=True)
            )
            for stage in plan.stages
        ),
        mixed=tuple(mixed),
    )
    return system if isinstance(design, SummarisedDesign) else system.with_rows(design)


def _columns(design: Design, plan: Plan) -> dict[str, Any]:
    """Rows in the working basis, as `RowSystem` has them."""
    basis = plan.products.basis
    return {
        "weights": design.row_weights,
        "slots": tuple(
            tuple(slot._replace(Z=slot.Z @ columns) for slot in factor.slots)
            for factor, columns in zip(design.random, basis.random, strict=True)
        ),
        "X": design.X @ basis.fixed,
        "y": design.y - design.offset - design.X @ basis.shift,
    }


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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solved:
    """The equations at C covariance parameters, solved: all that rows need but their covariates.

    Attributes
    ----------
    relative : tuple of ndarray (C, k, k)
        Relative roots per grouping factor.
    known : ndarray (C, p) or None
        Fixed effects in the working basis where they are given.
    stages : tuple of LevelForms
        The grouping factors that are eliminated level by level.
    turn : ndarray (C, m, m)
        As of :class:`RowForms`.
    solution : ndarray (C, m)
        Conditional means of the random effects of the tail, spherical, and of the fixed effects.
    """

    relative: tuple[Array, ...]
    known: Array | None
    stages: tuple[LevelForms, ...]
    turn: Array
    solution: Array

    def take(self, draws: slice) -> Solved:
        """Some of the C."""
        return Solved(
            relative=tuple(root[draws] for root in self.relative),
            known=None if self.known is None else self.known[draws],
            stages=tuple(stage.take(draws) for stage in self.stages),
            turn=self.turn[draws],
            solution=self.solution[draws],
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelForms:
    """The levels of a grouping factor in spherical coordinates, after their elimination.

    Attributes
    ----------
    inverse : ndarray (J, C, k, k)
        Inverse Cholesky factors of their equations.
    links : tuple of Link
        What they take from later ones.
    half : ndarray (C, J, k, m + 1)
        What they take from the border and the response.
    """

    inverse: Array
    links: tuple[Link, ...]
    half: Array

    def take(self, draws: slice) -> LevelForms:
        """Some of the C."""
        links = tuple(Link(link.level, link.blocks[:, draws]) for link in self.links)
        return LevelForms(inverse=self.inverse[:, draws], links=links, half=self.half[draws])


def solve(system: RowSystem, joint: JointDraws, draws: slice) -> Solved:
    """Solve the equations at some of the draws, C of them."""
    points = joint.points.take(draws)
    relative = to_working(system.plan, points.factors)
    known = _working(system, joint.beta[draws]) if system.given_beta else None
    gram = _border_equations(system, relative, points.sigma, known)
    stages = [_stage(system, place, relative, known) for place in range(len(system.plan.stages))]
    solved = []
    for place, stage in enumerate(stages):
        levels = _eliminated(stage)
        _reduce(levels, stages[place + 1 :], gram)
        solved.append(levels)
    lower = np.linalg.cholesky(gram[:, :-1, :-1])
    turn = np.linalg.inv(lower).transpose(0, 2, 1)
    return Solved(
        relative=tuple(relative),
        known=known,
        stages=tuple(solved),
        turn=np.ascontiguousarray(turn),
        solution=(turn @ np.linalg.solve(lower, gram[:, :-1, -1:]))[:, :, 0],
    )


def solve_border(system: RowSystem, joint: JointDraws) -> Solved:
    """Solve the equations at all draws; of the levels of the first stage nothing is kept."""
    parts = []
    for draws in system.batches(joint.size):
        part = solve(system, joint, draws)
        parts.append(replace(part, stages=part.stages[1:]))
    return _joined(parts)


def solve_levels(system: RowSystem, border: Solved) -> Solved:
    """The levels of the first stage that a system has, from what :func:`solve_border` keeps."""
    if not system.plan.stages:
        return border
    first = _eliminated(_stage(system, 0, border.relative, border.known))
    return replace(border, stages=(first, *border.stages))


def _joined(parts: Sequence[Solved]) -> Solved:
    """All draws of several parts."""
    first = parts[0]
    if len(parts) == 1:
        return first
    stages = []
    for levels in zip(*(part.stages for part in parts), strict=True):
        links = tuple(
            Link(own[0].level, np.concatenate([link.blocks for link in own], axis=1))
            for own in zip(*(level.links for level in levels), strict=True)
        )
        inverse = np.concatenate([level.inverse for level in levels], axis=1)
        half = np.concatenate([level.half for level in levels])
        stages.append(LevelForms(inverse=inverse, links=links, half=half))
    roots = zip(*(part.relative for part in parts), strict=True)
    known = [part.known for part in parts if part.known is not None]
    return Solved(
        relative=tuple(np.concatenate(own) for own in roots),
        known=np.concatenate(known) if known else None,
        stages=tuple(stages),
        turn=np.concatenate([part.turn for part in parts]),
        solution=np.concatenate([part.solution for part in parts]),
    )


def row_forms(system: RowSystem, joint: JointDraws, draws: slice) -> RowForms:
    """Rows of U and residuals at some of the draws, C of them."""
    return forms_of_rows(system, solve(system, joint, draws))


def forms_of_rows(system: RowSystem, solved: Solved) -> RowForms:
    """Rows of U and residuals of a system at the draws of solved equations."""
    codes, columns = _level_columns(system, solved)
    own = tuple(_own(system, solved.relative))
    X = system.X[:, :0] if system.given_beta else system.X
    solution = solved.solution
    residual = system.y[:, None] - X @ solution[:, system.plan.n_tail :].T
    if solved.known is not None:
        residual = residual - system.X @ solved.known.T
    for places, values in own:
        residual -= values * solution[:, places].T
    for at, level, stage in zip(codes, columns, solved.stages, strict=True):
        half = stage.half
        explained = half[:, :, :, -1] - np.einsum("cjkm,cm->cjk", half[:, :, :, :-1], solution)
        residual -= np.einsum("nck,cnk->nc", level, explained[:, at])
    return RowForms(
        codes=codes,
        levels=columns,
        residual=residual,
        shared=tuple(_turned(stage.half[:, :, :, :-1], solved.turn) for stage in solved.stages),
        own=own,
        X=X,
        turn=solved.turn,
    )


def leverages(
    system: RowSystem, joint: JointDraws, draws: slice
) -> Iterator[tuple[Indices, Array, Array]]:
    """Rows, their leverages over weights and their residuals (r, C), some rows at a time."""
    yield from leverages_at(system, solve(system, joint, draws))


def leverages_at(system: RowSystem, solved: Solved) -> Iterator[tuple[Indices, Array, Array]]:
    """The same at the draws of solved equations."""
    if system.by_level:
        yield from _leverages_by_level(system, solved)
        return
    forms = forms_of_rows(system, solved)
    for rows in forms.parts(ROW_ENTRIES):
        yield rows, forms.leverage(rows), forms.residual[rows]


def _leverages_by_level(
    system: RowSystem, solved: Solved
) -> Iterator[tuple[Indices, Array, Array]]:
    ((slot,),), p = system.slots, system.X.shape[1]
    codes, Z = slot.codes, slot.Z
    levels, k = system.mixed[0].shape[:2]
    units = forms_of_rows(_units(system), solved)
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
    gram : ndarray (J, C, k, k)
        Its equations less what earlier factors explain; changed in place.
    links : tuple of Link
        Its equations with later ones less the same; changed in place.
    border : ndarray (J, C, k, m + 1)
        Its equations with the border and the response; changed in place.
    """

    gram: Array
    links: tuple[Link, ...]
    border: Array


def _stage(system: RowSystem, place: int, relative: Sequence[Array], known: Array | None) -> _Stage:
    index = system.plan.stages[place].factor
    root, mixed = relative[index], system.mixed[place]
    turned = root.transpose(0, 2, 1)
    gram = turned @ system.own[place][:, None] @ root + np.eye(root.shape[2])
    flat = mixed.reshape(-1, mixed.shape[2])
    flat = _scaled(system, np.broadcast_to(flat, (len(root), *flat.shape)), relative, known)
    by_level = flat.reshape(len(root), *mixed.shape[:2], -1)
    later = [relative[stage.factor] for stage in system.plan.stages[place + 1 :]]
    links = tuple(
        Link(link.level, turned @ link.blocks[:, None] @ other)
        for link, other in zip(system.links[place], later, strict=True)
    )
    border = np.einsum("ckl,cjkm->jclm", root, by_level)
    return _Stage(gram, links, border)


def _eliminated(stage: _Stage) -> LevelForms:
    """The levels of a stage, earlier ones being eliminated."""
    inverse = np.linalg.inv(np.linalg.cholesky(stage.gram))
    half = (inverse @ stage.border).transpose(1, 0, 2, 3)
    links = tuple(Link(link.level, inverse @ link.blocks) for link in stage.links)
    return LevelForms(inverse=inverse, links=links, half=np.ascontiguousarray(half))


def _reduce(levels: LevelForms, later: Sequence[_Stage], gram: Array) -> None:
    """Take what eliminated levels explain off later stages and the border, in place."""
    by_level = levels.half.transpose(1, 0, 2, 3)
    for place, (link, other) in enumerate(zip(levels.links, later, strict=True)):
        n = len(link.level)
        total = sp.csr_array((np.ones(n), (link.level, np.arange(n))), shape=(len(other.gram), n))
        turned = link.blocks.transpose(0, 1, 3, 2)
        other.gram[:] -= _sums(total, turned @ link.blocks)
        other.border[:] -= _sums(total, turned @ by_level)
        for mine, theirs in zip(levels.links[place + 1 :], other.links, strict=True):
            theirs.blocks[:] -= _sums(total, turned @ mine.blocks)
    flat = levels.half.reshape(len(gram), -1, levels.half.shape[3])
    gram -= flat.transpose(0, 2, 1) @ flat


def _level_columns(
    system: RowSystem, solved: Solved
) -> tuple[tuple[Indices, ...], tuple[Array, ...]]:
    """Level (n,) and columns of U (n, C, k) of each row, per stage."""
    codes, rows, columns = [], [], []
    for stage in system.plan.stages:
        (slot,) = system.slots[stage.factor]
        codes.append(slot.codes)
        rows.append(np.einsum("nk,ckl->ncl", slot.Z, solved.relative[stage.factor]))
    for place, levels in enumerate(solved.stages):
        own = np.einsum("ncij,ncj->nci", levels.inverse[codes[place]], rows[place])
        columns.append(own)
        for link, other in zip(levels.links, rows[place + 1 :], strict=True):
            by_row = link.blocks[codes[place]]
            for i in range(own.shape[2]):
                other -= own[:, :, i, None] * by_row[:, :, i]
    return tuple(codes), tuple(columns)


def _sums(total: sp.csr_array, values: Array) -> Array:
    """Sums of the blocks (J, ...) of levels that belong together."""
    flat = total @ values.reshape(len(values), -1)
    return np.asarray(flat).reshape(total.shape[0], *values.shape[1:])


def _turned(half: Array, turn: Array) -> Array:
    """Rows (C, J, k, m) in terms of columns of U."""
    size, levels, k, m = half.shape
    return (half.reshape(size, levels * k, m) @ turn).reshape(size, levels, k, m)
