"""Cross-products of data in an engine, made of sums that a GROUP BY has computed there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.engines import Engine, UnpushedError, open_engine
from bayeslmm.data.frames import Codes
from bayeslmm.data.grouping import lookup_levels
from bayeslmm.data.inputs import check_fixed_factors
from bayeslmm.data.level_sets import GroupingSets, SeenLevels
from bayeslmm.data.pushdown import (
    FirstLook,
    SideProducts,
    Sums,
    Wanted,
    first_look,
    pairs_of,
    planned,
    read_sums,
    side_moments,
    side_products,
)
from bayeslmm.data.random_terms import amalgamated, check_batch
from bayeslmm.data.sources import Source
from bayeslmm.data.summarised import Summary
from bayeslmm.data.survey import Extremes, Layout, layout_of, sample_columns, sample_encodings
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.formula.matrices import Columns
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import Basis, Coupling, WorkingProducts, add_couplings
from bayeslmm.likelihood.rebasing import basis_of_part

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def pushed_sums(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    needs_rows: str | None = None,
) -> dict[str, Any] | None:
    """Have an engine sum where the data are; what it does not give is said in the log.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    needs_rows : str, optional
        What of the model needs rows.

    Returns
    -------
    dict or None
        What a part of the data knows of its rows, by the names of its fields, to rounding that of
        batches. None where rows must be read, or have something of which a reading speaks.

    Raises
    ------
    FormulaError, DataError
        As for data in memory.
    """
    if source.engine is None:
        return None
    try:
        if needs_rows is not None:
            raise UnpushedError(f"{needs_rows} needs rows")
        pushed = _Pushed.of(open_engine(source, formula, functions, weights), functions)
    except UnpushedError as reason:
        _log.info("%s: rows are read in batches, as %s.", source.words, reason)
        return None
    look = pushed.look
    log_dropped(look.n, look.n_dropped)
    queries = 1 + len(pushed.sums)
    words = "%s: sums of %d rows by GROUP BY in the engine, in %d queries."
    _log.info(words, source.words, look.n, queries)
    return pushed.fields()


def log_dropped(n: int, n_dropped: int) -> None:
    """Log how many rows beside the n that are used were dropped as incomplete, if any."""
    if n_dropped:
        _log.info("%d of %d rows are incomplete and dropped.", n_dropped, n + n_dropped)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Pushed:
    """What the engine has computed.

    Attributes
    ----------
    look : FirstLook
    functions : mapping of str to callable
        The user's.
    columns : mapping of Side to Columns
        Of the sample.
    sides : mapping of Side to SideProducts
    sums : mapping of Wanted to Sums
        By what was asked for.
    moments, weighted : mapping of Side to Moments
        Of each side, without weights and with them.
    """

    look: FirstLook
    functions: UserFunctions
    columns: Mapping[Side, Columns]
    sides: Mapping[Side, SideProducts]
    sums: Mapping[Wanted, Sums]
    moments: Mapping[Side, Moments]
    weighted: Mapping[Side, Moments]

    @classmethod
    def of(cls, engine: Engine, functions: UserFunctions) -> _Pushed:
        """Ask for everything."""
        look = first_look(engine)
        formula = engine.formula
        check_fixed_factors(formula, look.sample, look.n)
        columns = sample_columns(formula, look.sample, functions, {})
        groups = list(amalgamated(formula).values())
        for terms in groups:
            check_batch(formula.source, terms, look.sample, columns)
        sides = side_products(look, columns)
        wanted = [*_moments_wanted(look, sides), *_levels_wanted(look, sides, groups)]
        sums = {one: read_sums(look, one) for one in planned(wanted)}
        moments = _moments(look, sides, sums, weighted=False)
        return cls(
            look=look,
            functions=functions,
            columns=columns,
            sides=sides,
            sums=sums,
            moments=moments,
            weighted=_moments(look, sides, sums, weighted=True) if look.weighted else moments,
        )

    @property
    def formula(self) -> Formula:
        """That of the model."""
        return self.look.engine.formula

    @cached_property
    def groups(self) -> dict[str, list[RandomTerm]]:
        """Terms of each grouping factor, by key."""
        return amalgamated(self.formula)

    @property
    def layout(self) -> Layout:
        """The columns of the model."""
        names = {side: columns.names for side, columns in self.columns.items()}
        return layout_of(self.formula, names)

    def fields(self) -> dict[str, Any]:
        """Everything, by the names of the fields of a part."""
        found = [self._levels(terms) for terms in self.groups.values()]
        levels = tuple(seen for seen, _, _ in found)
        counts = {key: own for key, (_, _, own) in zip(self.groups, found, strict=True)}
        return {
            "layout": self.layout,
            "encodings": sample_encodings(
                self.formula, self.columns, self.look.sample, self.functions, {}
            ),
            "summary": self._summary(counts, levels),
            "extremes": self._extremes(),
            "levels": levels,
            "products": _products(self, found),
        }

    def _levels(self, terms: Sequence[RandomTerm]) -> tuple[SeenLevels, Codes, Codes]:
        """Levels of a grouping factor, that of each cell of its sums, and rows of each level."""
        sums = self.level_sums([terms])
        sets = GroupingSets([terms[0].factors])
        numbers = sets.add(sums.keys)[0]
        seen, places = sets.finish()[0]
        levels = places[numbers]
        counts = np.bincount(levels, sums.figures["rows"], len(seen))
        return seen, levels, counts.astype(np.intp)

    def _extremes(self) -> Extremes:
        look = self.look
        shifted = bool(self.formula.shifts)
        y = look.range_of("y" if shifted else "response")
        offset = look.range_of("offset") if shifted else (0.0, 0.0)
        low, high = np.array([y, offset, look.range_of("response")]).T
        weights = np.array([np.inf, -np.inf])
        if look.weighted:
            weights = np.array([look.weight("low").min(), look.weight("high").max()])
        return Extremes(low=low, high=high, weights=weights)

    def _sample(self, levels: Sequence[SeenLevels]) -> pd.DataFrame:
        """The sample, with all categories of the grouping factors, of which it has one level."""
        sample = self.look.sample.copy()
        for seen in levels:
            for name, categories in zip(seen.names, seen.categories, strict=True):
                if categories is not None:
                    sample[name] = sample[name].cat.set_categories(categories)
        return sample

    def _summary(self, counts: Mapping[str, Codes], levels: Sequence[SeenLevels]) -> Summary:
        look, formula = self.look, self.formula
        used = sorted(formula.predictors(effects=False, groups=False))
        names = {name: look.variable(name) for name in used if look.engine.is_number(name)}
        return Summary(
            words=look.engine.words,
            n=look.n,
            n_dropped=look.n_dropped,
            sides=self.moments,
            weighted=self.weighted,
            counts=counts,
            log_weights=float(look.weight("log").sum()) if look.weighted else 0.0,
            mean_inverse_weight=(
                float(look.weight("inverse").sum()) / look.n if look.weighted else 1.0
            ),
            mean_offset=look.mean_of("offset") if formula.shifts else 0.0,
            means={name: look.mean_of(place) for name, place in names.items()},
            ranges={name: look.range_of(place) for name, place in names.items()},
            sample=self._sample(levels),
            states={},
        )

    def level_sums(self, groups: Sequence[Sequence[RandomTerm]]) -> Sums:
        """The sums for one grouping factor, or for two that meet."""
        return _covering(self.sums, _wanted(self.look, self.sides, groups))


# --- what is asked for -----------------------------------------------------------------


def _side_wanted(look: FirstLook, side: SideProducts, *, response: bool, weighted: bool) -> Wanted:
    places = [*side.places, *([look.response] if response else [])]
    return Wanted(frozenset(side.factors), pairs_of(places, places, weighted=weighted))


def _moments_wanted(look: FirstLook, sides: Mapping[Side, SideProducts]) -> list[Wanted]:
    right = look.engine.formula.right
    return [
        _side_wanted(look, own, response=side == right, weighted=flag)
        for side, own in sides.items()
        for flag in ((False, True) if look.weighted else (False,))
    ]


def _moments(
    look: FirstLook,
    sides: Mapping[Side, SideProducts],
    sums: Mapping[Wanted, Sums],
    *,
    weighted: bool,
) -> dict[Side, Moments]:
    """Moments of each side."""
    right, result = look.engine.formula.right, {}
    for side, own in sides.items():
        response = side == right
        table = _covering(sums, _side_wanted(look, own, response=response, weighted=weighted))
        result[side] = side_moments(look, own, table, response=response, weighted=weighted)
    return result


def _levels_wanted(
    look: FirstLook,
    sides: Mapping[Side, SideProducts],
    groups: Sequence[Sequence[RandomTerm]],
) -> list[Wanted]:
    several = [[one] for one in groups] + [list(pair) for pair in combinations(groups, 2)]
    return [_wanted(look, sides, one) for one in several]


def _wanted(
    look: FirstLook,
    sides: Mapping[Side, SideProducts],
    groups: Sequence[Sequence[RandomTerm]],
) -> Wanted:
    """Z'Z and Z'[X y] of a grouping factor, or Z'Z between two."""
    weighted = look.weighted
    variables = {name for terms in groups for name in terms[0].factors}
    own = [[sides[term.left] for term in terms] for terms in groups]
    used = [part for parts in own for part in parts]
    places = [{i for part in parts for i in part.places} for parts in own]
    if len(groups) == 1:
        right = sides[look.engine.formula.right]
        used.append(right)
        places.append({*places[0], *right.places, look.response})
    factors = {name for part in used for name in part.factors}
    return Wanted(frozenset(variables | factors), pairs_of(places[0], places[1], weighted=weighted))


def _covering(sums: Mapping[Wanted, Sums], wanted: Wanted) -> Sums:
    """The smallest of the tables that have some sums."""
    found = [table for have, table in sums.items() if have.covers(wanted)]
    return min(found, key=lambda table: len(table.keys))


# --- products --------------------------------------------------------------------------


def _products(
    pushed: _Pushed, levels: Sequence[tuple[SeenLevels, Codes, Codes]]
) -> WorkingProducts:
    """Cross-products in the basis of the rows."""
    layout, look = pushed.layout, pushed.look
    basis = basis_of_part(pushed.weighted, layout.factors)
    whole = pushed.weighted[layout.right].columns
    X, y = whole[:, :-1], whole[:, -1]
    working = np.column_stack([X @ basis.fixed, y - X @ basis.shift])
    groups = list(pushed.groups.values())
    blocks = [
        _level_blocks(pushed, terms, basis, f, codes, len(seen))
        for f, (terms, (seen, codes, _)) in enumerate(zip(groups, levels, strict=True))
    ]
    seen_levels = [seen for seen, _, _ in levels]
    return WorkingProducts(
        n_obs=look.n,
        log_weights=float(look.weight("log").sum()) if look.weighted else 0.0,
        fixed=working.T @ working,
        random=tuple(random for random, _ in blocks),
        mixed=tuple(mixed for _, mixed in blocks),
        couplings=tuple(
            _coupling(pushed, groups, seen_levels, basis, pair)
            for pair in combinations(range(len(groups)), 2)
        ),
        structures=layout.structures,
        relationships=(None,) * len(blocks),
        basis=basis,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Working:
    """Working columns by products of numbers: numbers of these, and maps (H, q, k)."""

    places: list[int]
    maps: Array


def _working_random(
    pushed: _Pushed, terms: Sequence[RandomTerm], own: Array, rows: pd.DataFrame
) -> _Working:
    sides = [pushed.sides[term.left] for term in terms]
    places = sorted({i for side in sides for i in side.places})
    centres = pushed.look.centres
    maps = np.concatenate([side.maps(rows, centres, places) for side in sides], axis=2)
    return _Working(places, maps @ own)


def _working_fixed(pushed: _Pushed, basis: Basis, rows: pd.DataFrame) -> _Working:
    """Columns of X and of the response, which comes last."""
    side, centres = pushed.sides[pushed.formula.right], pushed.look.centres
    places = [*side.places, pushed.look.response]
    X = side.maps(rows, centres, places)
    y = -(X @ basis.shift)
    y[:, 0] += centres[-1]
    y[:, -1] += 1.0
    return _Working(places, np.concatenate([X @ basis.fixed, y[:, :, None]], axis=2))


def _level_blocks(
    pushed: _Pushed, terms: Sequence[RandomTerm], basis: Basis, f: int, levels: Codes, size: int
) -> tuple[Array, Array]:
    """Z'Z (J, k, k) and Z'[X y] (J, k, p + 1) of a grouping factor."""
    sums = pushed.level_sums([terms])
    sides = [pushed.formula.right, *(term.left for term in terms)]
    combined, rows = sums.combinations(_factors(pushed, sides))
    z = _working_random(pushed, terms, basis.random[f], rows)
    columns = _working_fixed(pushed, basis, rows)
    return (
        _contracted(sums, z, z, combined, levels, size, weighted=pushed.look.weighted),
        _contracted(sums, z, columns, combined, levels, size, weighted=pushed.look.weighted),
    )


def _coupling(
    pushed: _Pushed,
    groups: Sequence[Sequence[RandomTerm]],
    levels: Sequence[SeenLevels],
    basis: Basis,
    pair: tuple[int, int],
) -> Coupling:
    """Z'Z between two grouping factors."""
    own = [groups[f] for f in pair]
    sums = pushed.level_sums(own)
    sides = [term.left for terms in own for term in terms]
    combined, rows = sums.combinations(_factors(pushed, sides))
    first, second = (lookup_levels(levels[f].factor, sums.keys) for f in pair)
    left, right = (_working_random(pushed, groups[f], basis.random[f], rows) for f in pair)
    cells = np.arange(len(first))
    weighted = pushed.look.weighted
    blocks = _contracted(sums, left, right, combined, cells, len(cells), weighted=weighted)
    return add_couplings([Coupling(pair, first, second, blocks)])


def _factors(pushed: _Pushed, sides: Sequence[Side]) -> list[str]:
    return sorted({name for side in sides for name in pushed.sides[side].factors})


def _contracted(
    sums: Sums,
    left: _Working,
    right: _Working,
    combined: Indices,
    places: Indices,
    size: int,
    *,
    weighted: bool,
) -> Array:
    """Products (size, k, l) of working columns of the cells of sums.

    Each cell has the maps of its combination of levels, and its place among what is returned.
    """
    values = sums.products(left.places, right.places, weighted=weighted)
    result = np.zeros((size, left.maps.shape[2], right.maps.shape[2]))
    for h in range(len(left.maps)):
        cells: Any = slice(None) if len(left.maps) == 1 else np.flatnonzero(combined == h)
        order = np.argsort(places[cells], kind="stable")
        own = places[cells][order]
        first = np.flatnonzero(np.diff(own, prepend=-1))
        found = left.maps[h].T @ values[cells][order] @ right.maps[h]
        if len(first):
            result[own[first]] += np.add.reduceat(found, first, axis=0)
    return result
