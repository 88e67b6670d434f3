"""Checks of the residuals of data beyond memory, in two readings of all rows.

The first reading simulates responses and sums them by level, from which each replicate's fixed and
random effects follow. The second one simulates the same responses again, takes the fitted values
off, and keeps counts: of residuals in bins, of residuals and fitted values in cells, and sums by
level. Bins of a 64th of a standard deviation hold counts, sums and sums of squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.checks.row_forms import (
    RowForms,
    RowSystem,
    Solved,
    forms_of_rows,
    solve,
)
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import row_parts
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

UNKNOWN = 1e-11
"""Share of a variance that is left to a residual below which rounding leaves nothing of it."""

WIDTH, FARTHEST = 1 / 64, 8.0
"""Width of a bin, and the largest size of a residual that is not in one of the last two bins."""

CELLS = 64
"""Cells along residuals, and along fitted values, whose ranks are told apart."""

SAMPLE = 10_000
"""Rows of which residuals are kept."""

NAMED = 100
"""Most rows of which it is kept how far out they are."""

AT_ONCE = 1 << 22
"""Entries of U that are held at once: 32 MB."""

EXACT_SCORES = 1 << 20
"""Rows up to which normal scores are summed one by one; their integral is as good beyond."""

OTHER_ORDER = (
    "The rows come in another order, or in other batches, each time that they are read, so that "
    "simulated responses cannot be made twice. Sort the query, or write it to Parquet files."
)


@dataclass(slots=True, eq=False)
class Counts:
    """Residuals in standard units, and fitted values, of one response.

    Attributes
    ----------
    bins : ndarray (3, B)
        Counts, sums and sums of squares of residuals.
    cells : ndarray (CELLS * CELLS,)
        Counts by size of the residual and by fitted value.
    levels : list of ndarray (J,)
        Sums of sizes of residuals, per grouping factor.
    """

    bins: Array
    cells: Array
    levels: list[Array]

    @classmethod
    def of(cls, sizes: Sequence[int]) -> Counts:
        """No rows, for grouping factors of so many levels."""
        count = int(2 * FARTHEST / WIDTH) + 2
        levels = [np.zeros(size) for size in sizes]
        return cls(np.zeros((3, count)), np.zeros(CELLS * CELLS), levels)

    def add(self, values: Array, fitted: Array, edges: Array, codes: Sequence[Indices]) -> None:
        """Take in rows."""
        count, size = self.bins.shape[1], np.abs(values)
        place = np.clip(np.floor((values + FARTHEST) / WIDTH) + 1, 0, count - 1).astype(np.intp)
        for row, power in zip(self.bins, (None, values, values**2), strict=True):
            row += np.bincount(place, power, count)
        cell = np.searchsorted(_SIZES, size) * CELLS + np.searchsorted(edges, fitted)
        self.cells += np.bincount(cell, minlength=len(self.cells))
        for sums, own in zip(self.levels, codes, strict=True):
            sums += np.bincount(own, size, len(sums))

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.bins[0].sum())

    def misfit(self) -> float:
        """One less the squared correlation of ordered residuals with normal scores."""
        count, total, squares = self.bins[:, self.bins[0] > 0]
        mean = total / count
        spread = np.maximum(squares / count - mean**2, 0.0)
        scores, score_squares = _scores(count)
        own = scores / count
        score_spread = np.maximum(score_squares / count - own**2, 0.0)
        together = np.sum(count * (mean * own + np.sqrt(spread * score_spread)))
        whole = np.sum(squares) - np.sum(total) ** 2 / np.sum(count)
        return float(1.0 - together**2 / (whole * np.sum(score_squares)))

    def outliers(self, limit: float) -> float:
        """Number of residuals beyond a limit times their root mean square."""
        edge = limit * np.sqrt(self.bins[2].sum() / self.n)
        count = self.bins.shape[1]
        low = -FARTHEST + WIDTH * (np.arange(count) - 1)
        above = np.clip((low + WIDTH - edge) / WIDTH, 0.0, 1.0)
        below = np.clip((-edge - low) / WIDTH, 0.0, 1.0)
        return float(self.bins[0] @ (above + below))

    def spread_against_fitted(self) -> float:
        """Absolute rank correlation of sizes of residuals and fitted values."""
        table = self.cells.reshape(CELLS, CELLS)
        ranks = []
        for counts in (table.sum(axis=1), table.sum(axis=0)):
            middle = np.cumsum(counts) - 0.5 * counts
            ranks.append((middle - 0.5 * counts.sum(), counts))
        (first, rows), (second, columns) = ranks
        norm = np.sqrt((first**2 @ rows) * (second**2 @ columns))
        return float(abs(first @ table @ second) / norm) if norm > 0 else 0.0

    def spread_across(self, f: int, counts: Array) -> float:
        """F statistic of sizes of residuals by level; `counts` (J,) are the rows of levels."""
        present = counts > 0
        n, sums = counts[present], self.levels[f][present]
        grand = sums.sum() / n.sum()
        between = float(np.sum(n * (sums / n - grand) ** 2))
        within = float(self.bins[2].sum() - n.sum() * grand**2) - between
        return (between / (len(n) - 1)) / (within / (n.sum() - len(n)))


_SIZES = stats.halfnorm.ppf(np.arange(1, CELLS) / CELLS)


def _scores(counts: Array) -> tuple[Array, Array]:
    """Sums of normal scores, and of their squares, over so many ranks one after the other."""
    ends = np.concatenate([[0], np.cumsum(counts)])
    n = int(ends[-1])
    if n <= EXACT_SCORES:
        scores = stats.norm.ppf((np.arange(1, n + 1) - 0.375) / (n + 0.25))
        places = ends.astype(np.intp)
        whole = np.concatenate([[0.0], np.cumsum(scores)])
        squares = np.concatenate([[0.0], np.cumsum(scores**2)])
        return np.diff(whole[places]), np.diff(squares[places])
    z = stats.norm.ppf((ends + 0.125) / (n + 0.25))
    density = stats.norm.pdf(z)
    return -(n + 0.25) * np.diff(density), (n + 0.25) * np.diff(stats.norm.cdf(z) - z * density)


@dataclass(slots=True, eq=False)
class Point:
    """One draw of the covariance parameters, at which R responses are simulated.

    Attributes
    ----------
    draw : JointDraws
        The draw, alone.
    solved : Solved
        The equations of the data at it.
    replicates : int
        R.
    fixed : ndarray (p, R)
        First X'W v of the changes v of the response, then what they add to the fixed effects.
    random : list of ndarray (J, k, R)
        First Z'W v, then what they add to the random effects. Both in the working basis.
    along : list of ndarray (J, k, 1 + R)
        Sums of weighted residuals along each random effect, of the data first.
    taken : list of ndarray (J, k, m)
        Sums of the columns of U that all rows share along each random effect, weighted.
    shared : dict of sparse (J, J')
        The same of columns of levels, by grouping factor, coefficient, stage and column.
    counts : list of Counts
        Of the data, then of the replicates.
    present : list of ndarray (J,)
        Rows of each level that have residuals.
    """

    draw: JointDraws
    solved: Solved
    replicates: int
    fixed: Array
    random: list[Array]
    along: list[Array]
    taken: list[Array]
    shared: dict[tuple[int, int, int, int], sp.csr_array]
    counts: list[Counts]
    present: list[Array]

    @property
    def sigma(self) -> float:
        """Residual standard deviation."""
        return float(self.draw.sigma[0])


@dataclass(slots=True, eq=False)
class Farthest:
    """The rows that are farthest out, and a sample of all rows.

    Attributes
    ----------
    number : int
        Rows that have residuals.
    rows : list of (float, ndarray (T,), ndarray (T,), Design)
        Size of the mean residual, residuals and log sds by draw, and the row.
    sample : list of (ndarray, pandas.DataFrame)
        Random keys, and residuals of rows.
    """

    number: int = 0
    rows: list[tuple[float, Array, Array, Design]] = field(default_factory=list)
    sample: list[tuple[Array, pd.DataFrame]] = field(default_factory=list)

    def add(self, part: Design, residuals: Array, log_sd: Array) -> None:
        """Take in residuals and log sds (T, n) of rows."""
        size = np.abs(residuals.mean(axis=0))
        known = np.flatnonzero(np.isfinite(size))
        self.number += len(known)
        chosen = known[np.argsort(-size[known], kind="stable")][:NAMED]
        own = [
            (
                float(size[i]),
                residuals[:, i],
                log_sd[:, i],
                part.take(np.array([i])),
            )
            for i in chosen
            if len(self.rows) < NAMED or size[i] > self.rows[-1][0]
        ]
        both = [*self.rows, *own]
        order = np.argsort([-row[0] for row in both], kind="stable")[:NAMED]
        self.rows = [both[place] for place in order]

    def keep(self, table: pd.DataFrame, keys: Array) -> None:
        """Take in residuals of rows with random keys, and keep those with the smallest."""
        self.sample.append((keys, table))
        if sum(len(own) for own, _ in self.sample) > 4 * SAMPLE:
            self.sample = [self.sampled()]

    def sampled(self) -> tuple[Array, pd.DataFrame]:
        """The rows with the smallest keys, in their order."""
        keys = np.concatenate([own for own, _ in self.sample])
        table = pd.concat([rows for _, rows in self.sample])
        chosen = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
        return keys[chosen], table.iloc[chosen]


def compared_points(
    design: Design,
    system: RowSystem,
    joint: JointDraws,
    replicates: int,
    seed: int,
) -> tuple[list[Point], Farthest]:
    """Read all rows twice: counts of the data and of replicates at each draw.

    Parameters
    ----------
    design : Design
        Of the model.
    system : RowSystem
        Its equations, without rows.
    joint : JointDraws
        T draws of the covariance parameters.
    replicates : int
        Responses that are simulated at each.
    seed : int
        Of these.

    Raises
    ------
    DataError
        If the rows are not those of the model, or come in another order the second time.
    """
    points = [_point(design, system, joint, t, replicates) for t in range(joint.size)]
    fitted, marks = [], []
    for number, part in enumerate(row_parts(design)):
        marks.append(_mark(part))
        own = system.with_rows(part)
        for t, point in enumerate(points):
            with single_threaded():
                forms = forms_of_rows(own, point.solved)
            _add_changes(own, part, point, (seed, t, number))
            _add_taken(part, forms, point)
            if not t:
                step = max(1, part.n // SAMPLE)
                fitted.append((part.y - forms.residual[:, 0])[::step])
    for point in points:
        _solve_changes(system, point)
    edges = np.quantile(np.concatenate(fitted), np.arange(1, CELLS) / CELLS)
    farthest = Farthest()
    rng = np.random.default_rng(seed)
    for number, part in enumerate(row_parts(design)):
        if number >= len(marks) or marks[number] != _mark(part):
            raise DataError(OTHER_ORDER)
        own = system.with_rows(part)
        rows = [
            _count(own, part, point, edges, (seed, t, number)) for t, point in enumerate(points)
        ]
        _keep_rows(part, rows, farthest, rng)
    return points, farthest


def _mark(part: Design) -> tuple[int, float]:
    """What tells two batches apart, also by the order of their rows."""
    return part.n, float(part.y @ np.linspace(1.0, 2.0, part.n))


def _point(design: Design, system: RowSystem, joint: JointDraws, t: int, replicates: int) -> Point:
    draw = replace(
        joint,
        shape=(1, 1),
        beta=joint.beta[t : t + 1],
        points=joint.points.take(slice(t, t + 1)),
    )
    with single_threaded():
        solved = solve(system, joint, slice(t, t + 1))
    shapes = [(factor.n_levels, factor.n_coefs) for factor in design.random]
    sizes = [levels for levels, _ in shapes]
    return Point(
        draw=draw,
        solved=solved,
        replicates=replicates,
        fixed=np.zeros((design.p, replicates)),
        random=[np.zeros((*shape, replicates)) for shape in shapes],
        along=[np.zeros((*shape, 1 + replicates)) for shape in shapes],
        taken=[np.zeros((*shape, solved.turn.shape[2])) for shape in shapes],
        shared={},
        counts=[Counts.of(sizes) for _ in range(1 + replicates)],
        present=[np.zeros(size) for size in sizes],
    )


def _changes(part: Design, point: Point, key: tuple[int, int, int]) -> Iterator[Array]:
    """Simulated less observed responses (n,) of some rows, replicate by replicate."""
    seed, t, number = key
    scale = point.sigma / np.sqrt(part.row_weights)
    for r in range(point.replicates):
        levels = np.random.default_rng([seed, t, r])
        effects = [
            levels.standard_normal((factor.n_levels, factor.n_coefs)) @ root[0].T
            for factor, root in zip(part.random, point.draw.roots, strict=True)
        ]
        noise = np.random.default_rng([seed, t, r, number]).standard_normal(part.n)
        yield linear_predictor(part, point.draw.beta[0], effects) + scale * noise - part.y


def _level_sums(part: Design) -> list[sp.csr_array]:
    """Sums over the rows of each level (J, n), per grouping factor."""
    n = part.n
    return [
        sp.csr_array((np.ones(n), (factor.codes, np.arange(n))), shape=(factor.n_levels, n))
        for factor in part.random
    ]


def _add_changes(system: RowSystem, part: Design, point: Point, key: tuple[int, int, int]) -> None:
    """Take in X'W v and Z'W v of some rows."""
    sums = _level_sums(part)
    for r, change in enumerate(_changes(part, point, key)):
        weighted = system.weights * change
        point.fixed[:, r] += system.X.T @ weighted
        for f, ((slot,), total) in enumerate(zip(system.slots, sums, strict=True)):
            point.random[f][:, :, r] += total @ (slot.Z * weighted[:, None])


def _add_taken(part: Design, forms: RowForms, point: Point) -> None:
    """Take in sums of U along each random effect."""
    weights = part.row_weights
    for rows in forms.parts(AT_ONCE):
        border = forms.border(rows)[0] * weights[rows, None]
        for f, factor in enumerate(part.random):
            for c in range(factor.n_coefs):
                index = (factor.codes[rows], np.arange(len(rows)))
                shape = (factor.n_levels, len(rows))
                total = sp.csr_array((factor.Z[rows, c], index), shape=shape)
                point.taken[f][:, c] += total @ border
    for f, factor in enumerate(part.random):
        for c in range(factor.n_coefs):
            own = factor.Z[:, c] * weights
            for stage, (codes, level) in enumerate(zip(forms.codes, forms.levels, strict=True)):
                shape = (factor.n_levels, len(point.solved.stages[stage].inverse))
                for i in range(level.shape[2]):
                    values = (own * level[:, 0, i], (factor.codes, codes))
                    met, key = sp.csr_array(values, shape=shape), (f, c, stage, i)
                    point.shared[key] = point.shared[key] + met if key in point.shared else met


def _effects_left(system: RowSystem, point: Point, f: int) -> Array:
    """Variances (J, k) of sums of weighted residuals along random effects, over sigma^2."""
    products = system.plan.products
    back = np.linalg.inv(products.basis.random[f])
    whole = np.einsum("kc,jkl,lc->jc", back, products.random[f], back)
    lost = np.sum(point.taken[f] ** 2, axis=2)
    for (own, c, *_), met in point.shared.items():
        if own == f:
            lost[:, c] += np.asarray(met.power(2).sum(axis=1)).ravel()
    return np.where(whole - lost > UNKNOWN * whole, whole - lost, np.nan)


def random_effects(system: RowSystem, point: Point, f: int) -> Array:
    """Random effects (1 + R, J, k) in standard units, of the data first."""
    left = _effects_left(system, point, f)
    return np.moveaxis(point.along[f], 2, 0) / (point.sigma * np.sqrt(left))


def _solve_changes(system: RowSystem, point: Point) -> None:
    """Make sums of changes into what they add to fixed and random effects, in place."""
    solved, plan = point.solved, system.plan
    q, given = plan.n_tail, system.given_beta
    roots = [root[0] for root in solved.relative]
    spherical = [
        np.einsum("kl,jkr->jlr", root, sums) for root, sums in zip(roots, point.random, strict=True)
    ]
    tail = [spherical[block.factor].reshape(-1, point.replicates) for block in plan.tail]
    empty = np.zeros((0, point.replicates))
    border = np.vstack([empty, *tail, empty if given else point.fixed])
    rights = [spherical[stage.factor] for stage in plan.stages]
    halves = []
    for place, levels in enumerate(solved.stages):
        half = levels.inverse[:, 0] @ rights[place]
        halves.append(half)
        for link, right in zip(levels.links, rights[place + 1 :], strict=True):
            np.subtract.at(right, link.level, link.blocks[:, 0].transpose(0, 2, 1) @ half)
        border = border - np.einsum("jkm,jkr->mr", levels.half[0][:, :, :-1], half)
    border = solved.turn[0] @ (solved.turn[0].T @ border)
    found: list[Array] = []
    for place in reversed(range(len(solved.stages))):
        levels = solved.stages[place]
        rest = halves[place] - levels.half[0][:, :, :-1] @ border
        for link, other in zip(levels.links, found, strict=True):
            rest = rest - link.blocks[:, 0] @ other[link.level]
        found.insert(0, levels.inverse[:, 0].transpose(0, 2, 1) @ rest)
    for stage, values in zip(plan.stages, found, strict=True):
        spherical[stage.factor] = values
    for block in plan.tail:
        shape = (block.n_levels, block.n_coefs, point.replicates)
        spherical[block.factor] = border[block.columns].reshape(shape)
    point.fixed = np.zeros_like(point.fixed) if given else border[q:]
    point.random = [
        np.einsum("kl,jlr->jkr", root, values)
        for root, values in zip(roots, spherical, strict=True)
    ]


def _count(
    system: RowSystem, part: Design, point: Point, edges: Array, key: tuple[int, int, int]
) -> tuple[Array, Array, Array, Array]:
    """Count residuals of the data and of replicates in some rows.

    Returns
    -------
    standardised, log_sd, pearson, residual : ndarray (n,)
        Of the data; NaN where nothing is left to a residual.
    """
    with single_threaded():
        forms = forms_of_rows(system, point.solved)
        share = np.concatenate([forms.leverage(rows)[:, 0] for rows in forms.parts(AT_ONCE)])
    weights, residual = system.weights, forms.residual[:, 0]
    left = weights * (1.0 - weights * share)
    left = np.where(left > UNKNOWN * weights, left, np.nan)
    known = np.isfinite(left)
    scale = weights / (point.sigma * np.sqrt(left))
    codes = [factor.codes[known] for factor in part.random]
    for present, own in zip(point.present, codes, strict=True):
        present += np.bincount(own, minlength=len(present))
    sums = _level_sums(part)

    def take(r: int, rest: Array, fitted: Array) -> None:
        point.counts[r].add((scale * rest)[known], fitted[known], edges, codes)
        for along, total, factor in zip(point.along, sums, part.random, strict=True):
            along[:, :, r] += total @ (factor.Z * (weights * rest)[:, None])

    take(0, residual, part.y - residual)
    for r, change in enumerate(_changes(part, point, key)):
        smooth = system.X @ point.fixed[:, r]
        for (slot,), effects in zip(system.slots, point.random, strict=True):
            smooth += np.sum(slot.Z * effects[slot.codes, :, r], axis=1)
        take(1 + r, residual + change - smooth, part.y - residual + smooth)
    log_sd = np.log(point.sigma) - 0.5 * np.log(left)
    return scale * residual, log_sd, np.sqrt(weights) * residual / point.sigma, residual


def _keep_rows(
    part: Design,
    rows: Sequence[tuple[Array, Array, Array, Array]],
    farthest: Farthest,
    rng: np.random.Generator,
) -> None:
    standardised, log_sd, pearson, residual = (np.stack(own) for own in zip(*rows, strict=True))
    farthest.add(part, standardised, log_sd)
    keys = rng.random(part.n)
    chosen = np.sort(np.argsort(keys)[:SAMPLE])
    response = residual.mean(axis=0)
    table = pd.DataFrame(
        {
            "fitted": part.y - response,
            "response": response,
            "pearson": pearson.mean(axis=0),
            "standardised": standardised.mean(axis=0),
            "marginal": np.nan,
        },
        index=part.index,
    )
    farthest.keep(table.iloc[chosen], keys[chosen])
