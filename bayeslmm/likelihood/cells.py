"""How many rows sums are of, cell by cell: all counts that can be worked out from sums.

Sums over the columns of factors are numbers of rows, or combinations of them. So are, where there
are no precision weights, products of the columns of factors with the constant of a grouping factor,
and those of the constants of two grouping factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.coding import covariate_levels, factor_operands
from bayeslmm.exceptions import DataError
from bayeslmm.formula.matrices import evaluate
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.parts import Part

Array = NDArray[np.float64]

CONSTANT = "Intercept"

WHOLE = 0.1
"""Distance from a whole number that rounding may make of a number of rows."""

MOST_CELLS = 100_000
"""Combinations of levels of factors among the covariates that are looked at."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cells:
    """Numbers of rows by level, or by combination of levels.

    Attributes
    ----------
    factors : tuple of str
        What has the levels: a grouping factor, columns that are factors, or both.
    counts : ndarray of int (m,)
    labels : tuple of str
        The levels, where it is one factor.
    grouping : bool
        Whether it is a grouping factor by itself.
    """

    factors: tuple[str, ...]
    counts: NDArray[np.intp]
    labels: tuple[str, ...] = ()
    grouping: bool = False

    @property
    def name(self) -> str:
        """The factors, joined."""
        return ":".join(self.factors)

    @property
    def smallest(self) -> int:
        """Rows of the smallest cell that has some."""
        return int(np.min(self.counts[self.counts > 0], initial=np.iinfo(np.intp).max))

    def smaller(self, m: int) -> int:
        """Number of cells that have rows, but fewer than m."""
        return int(np.sum((self.counts > 0) & (self.counts < m)))


def cells_of(part: Part) -> list[Cells]:
    """All counts of rows that sums tell: by level first, then by pairs and combinations."""
    grouping = list(_grouping(part))
    side_cells = {
        side: dict(_covariates(part, side)) for side in part.layout.names if side.operands
    }
    covariates: dict[tuple[str, ...], tuple[_Table, Array]] = {}
    for found in side_cells.values():
        for factors, (table, _, counts) in found.items():
            covariates.setdefault(factors, (table, counts))
    singles = dict(_margins(covariates))
    combined = [
        Cells(factors=factors, counts=_whole(counts))
        for factors, (_, counts) in covariates.items()
        if len(factors) > 1
    ]
    pairs = (
        []
        if part.weights is not None
        else [
            *_crossed(part),
            *_met(part, side_cells.get(part.layout.right, {})),
        ]
    )
    return [*grouping, *singles.values(), *combined, *pairs]


def _grouping(part: Part) -> Iterator[Cells]:
    for seen, counts in zip(part.levels, part.summary.counts.values(), strict=True):
        factor = seen.factor
        labels = tuple(factor.levels.tolist())
        yield Cells(factors=(factor.name,), labels=labels, counts=counts, grouping=True)


# --- factors among the covariates ------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Table:
    """All combinations of levels of columns."""

    frame: pd.DataFrame
    sizes: tuple[int, ...]


Found = tuple[_Table, Array, Array]
"""Combinations of levels (m), their indicators by the columns of a side (k, m), and counts (m,)."""


def _covariates(part: Part, side: Side) -> Iterator[tuple[tuple[str, ...], Found]]:
    """Combinations of factors whose counts the columns of a side tell."""
    sample, functions = part.summary.sample, part.functions
    levels = covariate_levels(part.formula, sample, functions)
    operands = factor_operands(side, sample, functions)
    inside = [
        (term, {name for label in term for name in operands[label]})
        for term in side.terms
        if all(label in operands for label in term)
    ]
    sets = {tuple(sorted(own)) for _, own in inside if own and own <= set(levels)}
    sets |= {(name,) for own in sets for name in own}
    for factors in sorted(sets, key=lambda own: (len(own), own)):
        terms = tuple(term for term, own in inside if own <= set(factors))
        labels = {label for term in terms for label in term}
        own = replace(
            side, terms=terms, operands=tuple(p for p in side.operands if p.label in labels)
        )
        table = _table(sample, {name: levels[name] for name in factors})
        found = None if table is None else _indicators(part, side, own, table)
        if table is not None and found is not None:
            sums = part.summary.n * part.summary.sides[side].means[: len(found)]
            counts = sums @ found
            if np.all(np.abs(counts - np.rint(counts)) < WHOLE):
                yield factors, (table, found, counts)


def _table(sample: pd.DataFrame, levels: Mapping[str, pd.Series]) -> _Table | None:
    sizes = tuple(len(own) for own in levels.values())
    count = int(np.prod(sizes))
    if count > MOST_CELLS:
        return None
    places = np.indices(sizes).reshape(len(sizes), -1)
    frame = sample.iloc[[0] * count].reset_index(drop=True)
    for (name, own), place in zip(levels.items(), places, strict=True):
        frame[name] = own.iloc[place].reset_index(drop=True)
    return _Table(frame=frame, sizes=sizes)


def _indicators(part: Part, side: Side, own: Side, table: _Table) -> Array | None:
    """Combinations (k, m) of columns of a side that are the indicators of m cells; None if none."""
    names = part.layout.names[side]
    try:
        columns = evaluate(own, table.frame, part.functions, dict(part.summary.states))
    except DataError:
        return None
    places = [names.index(name) if name in names else -1 for name in columns.names]
    known = np.flatnonzero(np.array(places) >= 0)
    if not len(known):
        return None
    values = columns.values[:, known]
    weights = np.linalg.lstsq(values, np.eye(len(values)))[0]
    if np.max(np.abs(values @ weights - np.eye(len(values)))) > 1e-8:
        return None
    result = np.zeros((len(names), len(values)))
    result[np.array(places)[known]] = weights
    return result


def _margins(
    covariates: Mapping[tuple[str, ...], tuple[_Table, Array]],
) -> Iterator[tuple[str, Cells]]:
    """Counts by the levels of each factor."""
    for factors, (table, counts) in covariates.items():
        cells = np.rint(counts).reshape(table.sizes)
        for axis, name in enumerate(factors):
            others = tuple(i for i in range(len(factors)) if i != axis)
            labels = tuple(dict.fromkeys(str(value) for value in table.frame[name]))
            yield (
                name,
                Cells(factors=(name,), labels=labels, counts=_whole(cells.sum(axis=others))),
            )


def _whole(counts: Array) -> NDArray[np.intp]:
    return np.maximum(np.rint(counts), 0).astype(np.intp)


# --- pairs of levels -------------------------------------------------------------------


def _constant(part: Part, f: int) -> int | None:
    """Place of the constant among the coefficients of a grouping factor."""
    names = [name for side in part.layout.factors[f] for name in part.layout.names[side]]
    return names.index(CONSTANT) if CONSTANT in names else None


def _row(part: Part, f: int) -> Array | None:
    """What makes the constant (k,) of working columns of a grouping factor."""
    place = _constant(part, f)
    return None if place is None else np.linalg.inv(part.products.basis.random[f])[:, place]


def _crossed(part: Part) -> Iterator[Cells]:
    for coupling in part.products.couplings:
        i, j = coupling.factors
        first, second = _row(part, i), _row(part, j)
        if first is None or second is None:
            continue
        counts = np.einsum("k,nkl,l->n", first, coupling.blocks, second)
        one, two = part.levels[i].factor, part.levels[j].factor
        yield Cells(factors=(one.name, two.name), counts=_whole(counts))


def _met(part: Part, found: Mapping[tuple[str, ...], Found]) -> Iterator[Cells]:
    """Levels of grouping factors with those of factors among the covariates."""
    back = np.linalg.inv(part.products.basis.fixed)
    for f, seen in enumerate(part.levels):
        row = _row(part, f)
        if row is None:
            continue
        sums = np.einsum("k,jkp->jp", row, part.products.mixed[f][:, :, :-1]) @ back
        for factors, (_, indicators, _) in found.items():
            counts = sums @ indicators
            if np.any(np.abs(counts - np.rint(counts)) >= WHOLE):
                continue
            yield Cells(factors=(":".join(seen.names), *factors), counts=_whole(counts.ravel()))
