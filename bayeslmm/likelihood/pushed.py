"""Cross-products of data in an engine, made of sums that a GROUP BY has computed there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.batches import Reader
from bayeslmm.data.building import fixed_space
from bayeslmm.data.design import Spec
from bayeslmm.data.engines import Engine, UnpushedError, open_engine
from bayeslmm.data.grouping import grouping_factor, lookup_levels
from bayeslmm.data.inputs import (
    check_extremes,
    check_fixed_factors,
    check_not_own_predictor,
    check_weights_scale,
)
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
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.random_terms import amalgamated, check_batch, spec_of_levels
from bayeslmm.data.sources import Source
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import sample_columns, sample_encodings
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.formula.matrices import Columns
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import independent_columns
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import (
    Basis,
    Coupling,
    WorkingProducts,
    add_couplings,
    basis_of_columns,
)

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
Indices = NDArray[np.intp]


def pushed_design(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    known: Mapping[str, Any],
) -> SummarisedDesign | None:
    """Have an engine sum where the data are; what it does not give is said in the log.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    known : mapping of str to number or matrix
        Covariance parameters that are held.

    Returns
    -------
    SummarisedDesign or None
        To rounding that of batches; None where rows must be read, or have something of which a
        reading speaks.

    Raises
    ------
    FormulaError, DataError
        As for data in memory.
    """
    if source.engine is None:
        return None
    Reader(source=source, formula=formula, weights=weights)  # checks names
    check_not_own_predictor(formula)
    try:
        engine = open_engine(source, formula, functions, weights)
        pushed = _Pushed.of(engine, functions)
    except UnpushedError as reason:
        _log.info("%s: rows are read in batches, as %s.", source.words, reason)
        return None
    design = pushed.design(known)
    if pushed.look.n_dropped:
        total = pushed.look.n + pushed.look.n_dropped
        _log.info("%d of %d rows are incomplete and dropped.", pushed.look.n_dropped, total)
    _log.info(
        "%s: sums of %d rows by GROUP BY in the engine, in %d queries.",
        source.words,
        pushed.look.n,
        1 + len(pushed.sums),
    )
    return design


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
    moments : mapping of (Side, bool) to Moments
        Of each side, without weights and with them.
    """

    look: FirstLook
    functions: UserFunctions
    columns: Mapping[Side, Columns]
    sides: Mapping[Side, SideProducts]
    sums: Mapping[Wanted, Sums]
    moments: Mapping[tuple[Side, bool], Moments]

    @classmethod
    def of(cls, engine: Engine, functions: UserFunctions) -> _Pushed:
        """Ask for everything."""
        look = first_look(engine)
        formula, weighted = engine.formula, engine.weights is not None
        columns = sample_columns(formula, look.sample, functions, {})
        check_fixed_factors(formula, look.sample, look.n)
        sides = side_products(look, columns)
        groups = list(amalgamated(formula).values())
        wanted = [*_moments_wanted(look, sides), *_levels_wanted(look, sides, groups)]
        sums = {one: read_sums(look, one) for one in planned(wanted)}
        moments = {}
        for (side, own), flag in _with_flags(sides, weighted=weighted):
            response = side == formula.right
            table = _covering(sums, _side_wanted(look, own, response=response, weighted=flag))
            moments[side, flag] = side_moments(look, own, table, response=response, weighted=flag)
        return cls(
            look=look,
            functions=functions,
            columns=columns,
            sides=sides,
            sums=sums,
            moments=moments,
        )

    @property
    def formula(self) -> Formula:
        """That of the model."""
        return self.look.engine.formula

    @property
    def weighted(self) -> bool:
        """Whether rows have precision weights."""
        return self.look.engine.weights is not None

    def design(self, known: Mapping[str, Any]) -> SummarisedDesign:
        """Check what is checked of all rows, and put everything together."""
        formula, look = self.formula, self.look
        y = "y" if formula.shifts else "response"
        ranges = [look.range_of(name) for name in (y, "response")]
        offset = look.range_of("offset") if formula.shifts else (0.0, 0.0)
        low, high = np.array([ranges[0], offset, ranges[1]]).T
        check_extremes(formula.response, look.n, low, high)
        if self.weighted:
            weights = np.array([look.weight("low").min(), look.weight("high").max()])
            check_weights_scale(f"The weights `{look.engine.weights}`", weights)
        summary = self._summary()
        spec = self._spec(known)
        return SummarisedDesign(spec, summary, _products(self, spec, summary))

    def _summary(self) -> Summary:
        look, formula = self.look, self.formula
        used = sorted(formula.predictors(effects=False, groups=False))
        numeric = [name for name in used if look.engine.is_number(name)]
        inverse = float(look.weight("inverse").sum()) / look.n if self.weighted else 1.0
        roots = {side: self.moments[side, self.weighted].columns for side in self.sides}
        return Summary(
            words=look.engine.words,
            n=look.n,
            n_dropped=look.n_dropped,
            sides={side: self.moments[side, False] for side in self.sides},
            heads={side: columns[:0] for side, columns in roots.items()},
            tails=roots,
            log_weights=float(look.weight("log").sum()) if self.weighted else 0.0,
            mean_inverse_weight=inverse,
            mean_offset=look.mean_of("offset") if formula.shifts else 0.0,
            means={name: look.mean_of(look.variable(name)) for name in numeric},
            ranges={name: look.range_of(look.variable(name)) for name in numeric},
            sample=look.sample,
            states={},
        )

    def _spec(self, known: Mapping[str, Any]) -> Spec:
        formula, functions = self.formula, self.functions
        names = self.columns[formula.right].names
        whole = self.moments[formula.right, False].take(range(len(names)))
        saturated = "sigma" in {str(key).strip() for key in known}
        return Spec(
            formula=formula,
            functions=functions,
            weights=self.look.engine.weights,
            fixed=fixed_space(names, whole, lambda: independent_columns(whole), self.look.n),
            random=self._random(saturated=saturated),
            residual=None,
            encodings=sample_encodings(formula, self.columns, self.look.sample, functions, {}),
            known=known,
        )

    def _random(self, *, saturated: bool) -> tuple[FactorSpec, ...]:
        moments = {}
        for side, columns in self.columns.items():
            own = self.moments[side, False].take(range(len(columns.names)))
            moments[side] = columns.names, own
        result = []
        for key, terms in amalgamated(self.formula).items():
            check_batch(self.formula.source, terms, self.look.sample, self.columns)
            sums = self.level_sums([terms])
            grouping = grouping_factor(sums.keys, terms[0].factors)[1]
            result.append(
                spec_of_levels(
                    self.formula.source, terms, key, grouping, moments, saturated=saturated
                )
            )
        return tuple(result)

    def level_sums(self, groups: Sequence[Sequence[RandomTerm]]) -> Sums:
        """The sums for one grouping factor, or for two that meet."""
        return _covering(self.sums, _wanted(self.look, self.sides, groups))


# --- what is asked for -----------------------------------------------------------------


def _with_flags(
    sides: Mapping[Side, SideProducts], *, weighted: bool
) -> list[tuple[tuple[Side, SideProducts], bool]]:
    """Each side without weights, and with them where there are any."""
    flags = (False, True) if weighted else (False,)
    return [(item, flag) for item in sides.items() for flag in flags]


def _side_wanted(look: FirstLook, side: SideProducts, *, response: bool, weighted: bool) -> Wanted:
    places = [*side.places, *([look.response] if response else [])]
    return Wanted(frozenset(side.factors), pairs_of(places, places, weighted=weighted))


def _moments_wanted(look: FirstLook, sides: Mapping[Side, SideProducts]) -> list[Wanted]:
    right = look.engine.formula.right
    pairs = _with_flags(sides, weighted=look.engine.weights is not None)
    return [
        _side_wanted(look, own, response=side == right, weighted=flag)
        for (side, own), flag in pairs
    ]


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
    weighted = look.engine.weights is not None
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


def _products(pushed: _Pushed, spec: Spec, summary: Summary) -> WorkingProducts:
    """Cross-products in the working basis."""
    whole = summary.columns(spec.formula.right)
    X, y = whole[:, :-1][:, spec.fixed.kept], whole[:, -1]
    structures = tuple(structure_of(factor) for factor in spec.random)
    covariates = [_covariates(factor, summary) for factor in spec.random]
    basis = basis_of_columns(y, X, covariates, structures, summary.n)
    working = np.column_stack([X @ basis.fixed, y - X @ basis.shift])
    groups = list(amalgamated(spec.formula).values())
    blocks = [_level_blocks(pushed, spec, basis, groups, f) for f in range(len(groups))]
    return WorkingProducts(
        n_obs=summary.n,
        log_weights=summary.log_weights,
        fixed=working.T @ working,
        random=tuple(random for random, _ in blocks),
        mixed=tuple(mixed for _, mixed in blocks),
        couplings=tuple(
            _coupling(pushed, spec, basis, groups, pair)
            for pair in combinations(range(len(groups)), 2)
        ),
        structures=structures,
        relationships=(None,) * len(blocks),
        basis=basis,
    )


def _covariates(factor: FactorSpec, summary: Summary) -> Array:
    """Columns with the lengths of Z, and the angles of those of each term."""
    right = next(iter(summary.sides))
    parts = []
    for side in factor.sides:
        columns = summary.columns(side)
        parts.append(columns[:, :-1] if side == right else columns)
    height = max(len(part) for part in parts)
    return np.hstack([np.pad(part, ((0, height - len(part)), (0, 0))) for part in parts])


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


def _working_fixed(pushed: _Pushed, spec: Spec, basis: Basis, rows: pd.DataFrame) -> _Working:
    """Columns of X and of the response, which comes last."""
    side, centres = pushed.sides[spec.formula.right], pushed.look.centres
    places = [*side.places, pushed.look.response]
    X = side.maps(rows, centres, places)[:, :, spec.fixed.kept]
    y = -(X @ basis.shift)
    y[:, 0] += centres[-1]
    y[:, -1] += 1.0
    return _Working(places, np.concatenate([X @ basis.fixed, y[:, :, None]], axis=2))


def _level_blocks(
    pushed: _Pushed, spec: Spec, basis: Basis, groups: Sequence[Sequence[RandomTerm]], f: int
) -> tuple[Array, Array]:
    """Z'Z (J, k, k) and Z'[X y] (J, k, p + 1) of a grouping factor."""
    factor = spec.random[f]
    sums = pushed.level_sums([groups[f]])
    sides = [spec.formula.right, *factor.sides]
    combined, rows = sums.combinations(_factors(pushed, sides))
    levels = lookup_levels(factor, sums.keys)
    z = _working_random(pushed, groups[f], basis.random[f], rows)
    columns = _working_fixed(pushed, spec, basis, rows)
    size = len(factor.levels)
    return tuple(  # type: ignore[return-value]
        _contracted(
            sums.products(z.places, right.places, weighted=pushed.weighted),
            combined,
            (z.maps, right.maps),
            levels,
            size,
        )
        for right in (z, columns)
    )


def _coupling(
    pushed: _Pushed,
    spec: Spec,
    basis: Basis,
    groups: Sequence[Sequence[RandomTerm]],
    pair: tuple[int, int],
) -> Coupling:
    """Z'Z between two grouping factors."""
    factors = [spec.random[f] for f in pair]
    sums = pushed.level_sums([groups[f] for f in pair])
    sides = [side for factor in factors for side in factor.sides]
    combined, rows = sums.combinations(_factors(pushed, sides))
    first, second = (lookup_levels(factor, sums.keys) for factor in factors)
    left, right = (_working_random(pushed, groups[f], basis.random[f], rows) for f in pair)
    cells = np.arange(len(first))
    values = sums.products(left.places, right.places, weighted=pushed.weighted)
    blocks = _contracted(values, combined, (left.maps, right.maps), cells, len(cells))
    return add_couplings([Coupling(pair, first, second, blocks)])


def _factors(pushed: _Pushed, sides: Sequence[Side]) -> list[str]:
    return sorted({name for side in sides for name in pushed.sides[side].factors})


def _contracted(
    values: Array,
    combined: Indices,
    maps: tuple[Array, Array],
    places: Indices,
    size: int,
) -> Array:
    """Products (size, k, l) of working columns, of those (cells, q, r) of numbers.

    Each cell has the maps of its combination of levels, and its place among what is returned.
    """
    left, right = maps
    result = np.zeros((size, left.shape[2], right.shape[2]))
    for h in range(len(left)):
        cells: Any = slice(None) if len(left) == 1 else np.flatnonzero(combined == h)
        found = left[h].T @ values[cells] @ right[h]
        own = places[cells]
        for i in range(found.shape[1]):
            for j in range(found.shape[2]):
                result[:, i, j] += np.bincount(own, found[:, i, j], size)
    return result
