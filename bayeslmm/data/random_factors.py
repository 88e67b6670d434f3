"""Random-effects terms and data to grouping factors with their covariates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import read_only
from bayeslmm.data.grouping import (
    GroupingFactor,
    grouping_factor,
    is_continuous,
    lookup_levels,
    new_levels,
    with_levels,
)
from bayeslmm.data.inputs import check_column_scales
from bayeslmm.data.relationships import Relationship, missing_levels
from bayeslmm.data.strata import (
    MOST,
    Strata,
    find_strata,
    spread_columns,
    stratum_coefs,
    term_strata,
)
from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula.grammar import Formula, RandomTerm, ScaleFormula, locate
from bayeslmm.formula.matrices import Columns
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import independent_columns
from bayeslmm.formula.structures import HOMOGENEOUS, OCCASIONS
from bayeslmm.formula.terms import Side
from bayeslmm.schema import group_keys

_log = logging.getLogger(__name__)

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FactorSpec(GroupingFactor):
    """A grouping factor of a model, and what varies over its levels, without rows.

    All random-effects terms on one grouping factor are amalgamated, as in lme4.

    Attributes
    ----------
    key : str
        The name made of letters, digits and ``_``, unique in the model.
    coefs : tuple of str, length k
        Labels of the coefficients that vary by level.
    blocks : tuple of tuple of int
        A partition of the k coefficients: they are correlated within a block and independent
        between blocks. A term with ``|`` is one block. A term with ``||`` has one block per
        column, so the columns of a factor are independent too, as in brms: ``(f || g)`` has an
        intercept and treatment-coded columns of `f`, all independent.
    kinds : tuple of str
        Name of the covariance structure of each block, such as "us" or "homcs".
    sides : tuple of Side
        What varies in each term; their columns side by side are the covariates.
    relationship : Relationship or None
        Known covariance of the levels, in their order; the levels are then those that it has, with
        rows or without.
    strata : tuple of Strata or None
        Of each side, where its term has ``by=``: its columns then are once for each stratum.
    """

    key: str
    coefs: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    sides: tuple[Side, ...]
    relationship: Relationship | None = None
    strata: tuple[Strata | None, ...] = ()

    @property
    def divided(self) -> bool:
        """Whether a term has ``by=``."""
        return any(strata is not None for strata in self.strata)

    @property
    def own_coefs(self) -> tuple[str, ...]:
        """Labels (m,) of the coefficients of one level, those of its own strata only."""
        return tuple(name for name, _ in self._own())

    @property
    def own_places(self) -> Indices:
        """Their places (J, m) among all coefficients."""
        return np.column_stack([places for _, places in self._own()])

    def _own(self) -> Iterator[tuple[str, Indices]]:
        found = [strata for strata in self.strata if strata is not None]
        first = {int(place): (s, i) for s in found for i, place in enumerate(s.places[0])}
        others = {int(place) for s in found for place in s.places[1:].ravel()}
        for place, coef in enumerate(self.coefs):
            if place in first:
                strata, i = first[place]
                yield strata.coefs[i], strata.places[strata.of_level, i]
            elif place not in others:
                yield coef, np.full(len(self.levels), place)

    @property
    def plain_coefs(self) -> tuple[str, ...]:
        """Labels (k,) of all coefficients, without their strata."""
        labels = list(self.coefs)
        for strata in self.strata:
            for place, coef in () if strata is None else strata.labelled():
                labels[place] = coef
        return tuple(labels)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """Stratum (k,) of each coefficient; "" where it is of all levels."""
        names = [""] * len(self.coefs)
        for strata in self.strata:
            for name, places in (
                () if strata is None else zip(strata.names, strata.places, strict=True)
            ):
                for place in places.tolist():
                    names[place] = name
        return tuple(names)

    @property
    def kinds_of_level(self) -> list[tuple[str, Indices]]:
        """Levels that have the same coefficients: in words, and the places (m,) of these.

        All levels, without a word, where no term has ``by=``.
        """
        if not self.divided:
            return [("", np.arange(len(self.coefs)))]
        places, first = np.unique(self.own_places, axis=0, return_index=True)
        found = [strata for strata in self.strata if strata is not None]
        names = [
            ", ".join(dict.fromkeys(s.names[s.of_level[level]] for s in found)) for level in first
        ]
        return list(zip(names, places, strict=True))

    def stratum(self, columns: Sequence[int]) -> tuple[Strata, int] | None:
        """The strata and the one of them that coefficients are of; None where of all levels."""
        for strata in self.strata:
            number = None if strata is None else strata.number(columns)
            if strata is not None and number is not None:
                return strata, number
        return None

    def with_levels(self, chosen: Indices) -> FactorSpec:
        """Some of the levels, independent ones."""
        return replace(
            self,
            levels=self.levels[chosen],
            cells=self.cells[chosen],
            strata=tuple(s and replace(s, of_level=s.of_level[chosen]) for s in self.strata),
            relationship=None,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RandomFactor:
    """Rows by the levels of one grouping factor, and their covariates.

    Attributes
    ----------
    spec : FactorSpec
        The levels and coefficients of the model.
    codes : ndarray of int, shape (n,)
        Level of each row; -1 for a level that the model has not seen.
    Z : ndarray, shape (n, k)
        Covariate of each coefficient in each row.
    extended_codes : ndarray of int, shape (n,)
        As `codes`, with J, J + 1, ... for the new levels: rows of one new level share a number.
    new_levels : ndarray of str, object
        Labels of the new levels; empty for the data of the model.
    """

    spec: FactorSpec
    codes: Indices
    Z: NDArray[np.float64]
    extended_codes: Indices
    new_levels: NDArray[np.object_]

    @property
    def name(self) -> str:
        """The grouping factor as first written: ``"Subject"``, ``"batch:cask"``."""
        return self.spec.name

    @property
    def key(self) -> str:
        """The name as variables of the posterior have it."""
        return self.spec.key

    @property
    def factors(self) -> tuple[str, ...]:
        """Variables of the grouping factor."""
        return self.spec.factors

    @property
    def levels(self) -> NDArray[np.object_]:
        """Labels (J,) of the levels that the model knows."""
        return self.spec.levels

    @property
    def n_levels(self) -> int:
        """Number of levels J that the model knows."""
        return len(self.spec.levels)

    @property
    def coefs(self) -> tuple[str, ...]:
        """Labels (k,) of the coefficients."""
        return self.spec.coefs

    @property
    def n_coefs(self) -> int:
        """Number of coefficients k per level."""
        return len(self.spec.coefs)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Places of the coefficients that are correlated with each other."""
        return self.spec.blocks

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name of the covariance structure of each block."""
        return self.spec.kinds

    @property
    def relationship(self) -> Relationship | None:
        """Known covariance of the levels; None where they are independent."""
        return self.spec.relationship

    @property
    def own_coefs(self) -> tuple[str, ...]:
        """Labels (m,) of the coefficients that one level has: all k but with ``by=``."""
        return self.spec.own_coefs

    def take(self, rows: Indices) -> RandomFactor:
        """Some of the rows, with all levels."""
        return replace(
            self,
            codes=self.codes[rows],
            Z=self.Z[rows],
            extended_codes=self.extended_codes[rows],
        )

    def own(self, u: NDArray[np.float64], levels: Indices | None = None) -> NDArray[np.float64]:
        """The coefficients (..., J, m) that each level has, of values u (..., J, k).

        `levels` are those in u, by default all.
        """
        if not self.spec.divided:
            return u
        places = self.spec.own_places
        places = places if levels is None else places[levels]
        return u[..., np.arange(len(places))[:, None], places]

    def spread(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Random effects (..., J, k), zero for coefficients of other strata, from :meth:`own`."""
        if not self.spec.divided:
            return own
        places = self.spec.own_places
        result = np.zeros((*own.shape[:-1], self.n_coefs), dtype=own.dtype)
        result[..., np.arange(len(places))[:, None], places] = own
        return result

    def levels_of(self, column: int) -> Indices:
        """Places of the levels that have a coefficient."""
        found = self.spec.stratum([column])
        return (
            np.arange(self.n_levels)
            if found is None
            else np.flatnonzero(found[0].of_level == found[1])
        )

    def covariates(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """Some columns of Z in the rows of those levels that have these coefficients."""
        found, values = self.spec.stratum(columns), self.Z[:, list(columns)]
        if found is None:
            return values
        strata, number = found
        return values[(self.codes >= 0) & (strata.of_level[self.codes] == number)]

    def moments(self, columns: Sequence[int]) -> Moments:
        """Moments of :meth:`covariates`."""
        return Moments.of(self.covariates(columns))

    def effects(self, independent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Random effects (..., J, k) from those of independent levels of the same Sigma."""
        known = self.relationship
        return independent if known is None else known.effects(independent)

    def similarity(self, first: Indices, second: Indices) -> NDArray[np.float64]:
        """Relationship of levels: one of a level with itself and zero else where there is none."""
        if self.relationship is None:
            return np.asarray(first == second, dtype=float)
        return self.relationship.between(*np.broadcast_arrays(first, second))

    def __repr__(self) -> str:
        new = f", {len(self.new_levels)} new" if len(self.new_levels) else ""
        return f"RandomFactor({self.name}: {self.n_levels} levels{new} x {shortened(self.coefs)})"


def shortened(names: Sequence[str], limit: int = 8) -> str:
    """Join the first few names."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f", ... ({more} more)" if more > 0 else "")


# --- the data of a model ---------------------------------------------------------------


def amalgamated(formula: Formula | ScaleFormula) -> dict[str, list[RandomTerm]]:
    """The random-effects terms of each grouping factor, by key, in the order of first appearance.

    Terms on the same variables, in whatever order (``a:b`` and ``b:a``), share a factor.
    """
    groups: dict[frozenset[str], list[RandomTerm]] = {}
    for term in formula.random:
        groups.setdefault(frozenset(term.factors), []).append(term)
    keys = group_keys([terms[0].group for terms in groups.values()])
    return dict(zip(keys, groups.values(), strict=True))


def random_factors(
    formula: Formula | ScaleFormula,
    frame: pd.DataFrame,
    columns: Mapping[Side, Columns],
    relationships: Mapping[str, Relationship],
    *,
    saturated: bool = False,
) -> tuple[RandomFactor, ...]:
    """Find the grouping factors of a formula and what varies over their levels.

    Parameters
    ----------
    formula : Formula
    frame : pandas.DataFrame
        n complete rows.
    columns : mapping of Side to Columns
        The left-hand side of each term, evaluated there.
    relationships : mapping of str to Relationship
        Known covariances of levels by grouping factor.
    saturated : bool
        Whether there may be as many random effects as rows: where sigma is known.

    Returns
    -------
    tuple of RandomFactor
        In the order of first appearance.

    Raises
    ------
    FormulaError
        If a grouping factor is continuous, or two terms give it the same coefficient.
    DataError
        If a grouping factor has one level, or a term has as many random effects as rows or more,
        or a relationship is for no grouping factor of one variable or lacks levels.
    """
    groups = amalgamated(formula)
    _check_relationships(relationships, [terms[0].group for terms in groups.values()])
    return tuple(
        _random_factor(
            formula.source,
            terms,
            key,
            frame,
            columns,
            relationships.get(terms[0].group),
            saturated=saturated,
        )
        for key, terms in groups.items()
    )


def _random_factor(
    source: str,
    terms: Sequence[RandomTerm],
    key: str,
    frame: pd.DataFrame,
    columns: Mapping[Side, Columns],
    relationship: Relationship | None,
    *,
    saturated: bool,
) -> RandomFactor:
    _check_discrete(source, terms[0], frame)
    codes, grouping = grouping_factor(frame, terms[0].factors)
    independent = not saturated
    if relationship is None:
        _check_levels(terms[0], grouping, len(frame), independent=independent)
    else:
        found = grouping
        codes, grouping, relationship = related_levels(codes, grouping, relationship)
        apart = relationship.sets_apart(np.unique(codes))
        independent = not saturated and not apart
        _check_levels(terms[0], found, len(frame), independent=independent)
    parts: list[_Part] = []
    for term in terms:
        earlier = [coef for part in parts for coef in part.coefs]
        _check_coefs(source, term, columns[term.left].names, earlier)
        _check_structure(source, term, columns[term.left])
        _check_strata(term, relationship)
        part = _part(source, term, columns[term.left], len(earlier), frame, codes, grouping)
        _check_coefs(source, term, part.coefs, earlier)
        if independent and term.structure in ("us", "homdiag"):
            # correlations of a pattern tell it from residuals
            for n_levels, n_rows in part.counts:
                _check_count(term, n_levels, len(part.blocks[0]), n_rows)
        parts.append(part)
    spec = factor_spec(
        grouping,
        key,
        terms,
        [coef for part in parts for coef in part.coefs],
        [block for part in parts for block in part.blocks],
        [term.structure for term, part in zip(terms, parts, strict=True) for _ in part.blocks],
        relationship,
        [part.strata for part in parts],
    )
    z = _joined([part.values for part in parts])
    factor = known_rows(spec, codes, z)
    for block in spec.blocks:
        check_column_scales(
            [spec.coefs[b] for b in block],
            factor.covariates(block),
            f"the random effects of `{grouping.name}`",
        )
    _report_deficient(factor, terms, columns)
    return factor


class _Part(NamedTuple):
    """What one term adds to a grouping factor; `counts` are levels and rows of each stratum."""

    coefs: Sequence[str]
    blocks: list[tuple[int, ...]]
    values: NDArray[np.float64]
    counts: list[tuple[int, int]]
    strata: Strata | None = None


def _part(
    source: str,
    term: RandomTerm,
    found: Columns,
    start: int,
    frame: pd.DataFrame,
    codes: Indices,
    grouping: GroupingFactor,
) -> _Part:
    width, used = len(found.names), np.unique(codes)
    if term.by is None:
        counts = [(len(used), len(frame))]
        return _Part(found.names, _blocks(term, start, width, 1), found.values, counts)
    rows, of, of_level = find_strata(source, term, frame, codes, grouping)
    size = len(of.levels)
    if size * width > MOST:
        raise DataError(
            f"{term.source} has {size * width} coefficients in {size} levels of `{term.by}`; at "
            f"most {MOST} are supported. Join levels of `{term.by}`, or take by= out."
        )
    levels, n_rows = (np.bincount(part, minlength=size).tolist() for part in (of_level, rows))
    return _Part(
        coefs=stratum_coefs(found.names, of),
        blocks=_blocks(term, start, width, size),
        values=spread_columns(found.values, rows, size),
        counts=list(zip(levels, n_rows, strict=True)),
        strata=term_strata(of, of_level, found.names, start),
    )


def _blocks(term: RandomTerm, start: int, width: int, repeats: int) -> list[tuple[int, ...]]:
    """Blocks of the coefficients of a term, one after the other in each stratum."""
    places = np.arange(start, start + width * repeats)
    blocks = places.reshape(-1, width if term.correlated else 1)
    return [tuple(block) for block in blocks.tolist()]


def factor_spec(
    grouping: GroupingFactor,
    key: str,
    terms: Sequence[RandomTerm],
    coefs: Sequence[str],
    blocks: Sequence[tuple[int, ...]],
    kinds: Sequence[str],
    relationship: Relationship | None = None,
    strata: Sequence[Strata | None] = (),
) -> FactorSpec:
    """A grouping factor with the coefficients of its terms."""
    return FactorSpec(
        name=grouping.name,
        factors=grouping.factors,
        levels=grouping.levels,
        parts=grouping.parts,
        cells=grouping.cells,
        key=key,
        coefs=tuple(coefs),
        blocks=tuple(blocks),
        kinds=tuple(kinds),
        sides=tuple(term.left for term in terms),
        relationship=relationship,
        strata=tuple(strata),
    )


def known_rows(spec: FactorSpec, codes: Indices, z: NDArray[np.float64]) -> RandomFactor:
    """Rows in which no level is new."""
    fresh = read_only(np.empty(0, dtype=object))
    return RandomFactor(spec=spec, codes=codes, Z=z, extended_codes=codes, new_levels=fresh)


def _joined(values: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return read_only(values[0] if len(values) == 1 else np.hstack(values))


# --- known relationships ---------------------------------------------------------------


def related_levels(
    codes: Indices, grouping: GroupingFactor, relationship: Relationship
) -> tuple[Indices, GroupingFactor, Relationship]:
    """Rows by the levels of a relationship, these levels, and it in their order.

    Raises
    ------
    DataError
        If the data have levels that the relationship has not.
    """
    places, more, order = with_levels(codes, grouping, relationship.labels)
    absent = np.unique(codes[places < 0])
    if len(absent):
        raise missing_levels(grouping.name, grouping.levels[absent].tolist())
    return places, more, relationship.reordered(order)


def _check_relationships(names: Iterable[str], groups: Sequence[str]) -> None:
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise DataError(
            f"relationships: the model has no grouping factor {listed(unknown)}; it has "
            f"{listed(groups) or 'none'}."
        )
    if joint := [name for name in names if ":" in name]:
        raise DataError(
            f"relationships: {listed(joint)} groups by several variables; make one variable of "
            "them whose values are the labels of the relationship."
        )


# --- checks ----------------------------------------------------------------------------


def _check_discrete(source: str, term: RandomTerm, frame: pd.DataFrame) -> None:
    for name in term.factors:
        if is_continuous(frame[name]):
            first, last = term.factor_span
            start, end = (first + at for at in locate(source[first:last], name))
            raise FormulaError(
                f"The grouping factor `{name}` holds numbers that are not whole, so it cannot name "
                f"groups. A covariate goes on the left of the bar; to group by `{name}` all the "
                "same, make it categorical or text.",
                source,
                start,
                end,
            )


def _check_levels(
    term: RandomTerm, grouping: GroupingFactor, n: int, *, independent: bool = True
) -> None:
    """Refuse one level, or as many independent levels as n rows."""
    n_levels = len(grouping.levels)
    if n_levels == 1:
        raise DataError(
            f"The grouping factor `{grouping.name}` has one level, {grouping.levels[0]!r}, in the "
            f"{n} complete rows; a variance between levels needs at least two. Take "
            f"{term.source} out of the formula."
        )
    if independent and n_levels >= n:
        raise DataError(
            f"The grouping factor `{grouping.name}` has as many levels as there are complete rows "
            f"({n}), so the effects of {term.source} cannot be told from the residuals. Group by "
            "a variable with fewer levels, or say what is known of the residuals: "
            'residual="se(column)" takes known standard errors.'
        )


def _check_count(term: RandomTerm, n_levels: int, n_coefs: int, n: int) -> None:
    if n_levels * n_coefs >= n:
        where = "" if term.by is None else f" in one level of `{term.by}`"
        raise DataError(
            f"{term.source} has {n_levels} levels of `{term.group}` times {n_coefs} coefficients, "
            f"so {n_levels * n_coefs} random effects{where}, but there are only {n} complete rows: "
            "they cannot be told from the residuals. Take coefficients out of the term."
        )


def _check_coefs(
    source: str, term: RandomTerm, names: Sequence[str], earlier: Sequence[str]
) -> None:
    if not names:
        message = f"{term.source} has no coefficient; write e.g. (1 | {term.group})."
        raise FormulaError(message, source, *term.span)
    repeated = [name for name in names if name in earlier]
    if repeated:
        raise FormulaError(
            f"An earlier term on the grouping factor `{term.group}` already has {listed(repeated)};"
            " write the terms so that each coefficient occurs once.",
            source,
            *term.span,
        )


def _check_structure(source: str, term: RandomTerm, found: Columns) -> None:
    """Refuse a structure that needs several coefficients, or one for each occasion."""
    if term.structure == "us":
        return
    if term.structure in OCCASIONS and not _are_indicators(found):
        raise FormulaError(
            f"`{term.source}` needs a coefficient for each occasion, in their order, and has "
            f"{listed(list(found.names))}: write `0 +` and one factor, or one column of whole "
            f"numbers, as in {term.structure}(0 + visit | {term.group}).",
            source,
            *term.span,
        )
    if len(found.names) < 2:
        raise FormulaError(
            f"`{term.source}` has one coefficient, {found.names[0]}, so there is nothing that a "
            f"structure could say of several; write ({term.effects} | {term.group}), or `0 +` and "
            "a factor with two levels or more.",
            source,
            *term.span,
        )


def _are_indicators(found: Columns) -> bool:
    """Whether every row is on one occasion, or on none."""
    values = found.values
    whole = np.all((values == 0.0) | (values == 1.0)) and np.all(values.sum(axis=1) <= 1.0)
    return bool(whole) and "Intercept" not in found.names


def _check_strata(term: RandomTerm, relationship: Relationship | None) -> None:
    if term.by is not None and relationship is not None:
        raise DataError(
            f"{term.source} has by= and `{term.group}` has a relationship: what relates levels "
            "with different covariance matrices is not defined. Take one of them out."
        )


def _report_deficient(
    factor: RandomFactor, terms: Sequence[RandomTerm], columns: Mapping[Side, Columns]
) -> None:
    redundant: list[str] = []
    for term, strata in zip(terms, factor.spec.strata, strict=True):
        if term.structure in HOMOGENEOUS:
            continue
        found = columns[term.left]
        several = term.correlated and len(found.names) > 1
        if strata is None:
            kept = found.kept if several else found.values.any(axis=0)
            redundant += [coef for coef, keep in zip(found.names, kept, strict=True) if not keep]
            continue
        for places in strata.places.tolist():
            own = factor.covariates(places)
            kept = independent_columns(own) if several else own.any(axis=0)
            redundant += [
                factor.coefs[place] for place, keep in zip(places, kept, strict=True) if not keep
            ]
    _warn_redundant(factor.name, redundant)


def _warn_redundant(name: str, redundant: Sequence[str]) -> None:
    if redundant:
        _log.warning(
            "Grouping factor %s: the columns of %s are zero or linear combinations of other "
            "columns of their term, so the data say nothing about their variances by themselves.",
            name,
            ", ".join(redundant),
        )


# --- other rows ------------------------------------------------------------------------


def other_rows(
    spec: FactorSpec, frame: pd.DataFrame, columns: Mapping[Side, Columns], *, groups: bool
) -> RandomFactor:
    """Find the levels and covariates of other rows.

    Parameters
    ----------
    spec : FactorSpec
        Of the model.
    frame : pandas.DataFrame
        n complete rows.
    columns : mapping of Side to Columns
        The sides of the factor, evaluated there.
    groups : bool
        Whether the frame has the variables of the grouping factor; if not, every row is of one
        unnamed new level.

    Returns
    -------
    RandomFactor
    """
    if groups:
        codes = lookup_levels(spec, frame)
        extended, labels = new_levels(spec, frame, codes)
    else:
        codes = np.full(len(frame), -1, dtype=np.intp)
        extended = np.full_like(codes, len(spec.levels))
        labels = np.array(["new"], dtype=object)
    parts = []
    for side, strata in zip(spec.sides, spec.strata, strict=True):
        values = columns[side].values
        if strata is not None:
            names = [*spec.levels, *labels]
            rows = strata.rows(frame, extended if groups else codes, spec.name, names)
            values = spread_columns(values, rows, len(strata.places))
        parts.append(values)
    return RandomFactor(
        spec=spec,
        codes=read_only(codes),
        Z=_joined(parts),
        extended_codes=read_only(extended),
        new_levels=read_only(labels),
    )


# --- data beyond memory ----------------------------------------------------------------


def check_batch(
    source: str, terms: Sequence[RandomTerm], frame: pd.DataFrame, columns: Mapping[Side, Columns]
) -> None:
    """Raise what :func:`random_factors` raises about some of the rows, before levels are known."""
    _check_discrete(source, terms[0], frame)
    for term in terms:
        if term.left in columns:
            _check_structure(source, term, columns[term.left])


def spec_of_levels(
    source: str,
    terms: Sequence[RandomTerm],
    key: str,
    grouping: GroupingFactor,
    moments: Mapping[Side, tuple[Sequence[str], Moments]],
    *,
    saturated: bool,
) -> FactorSpec:
    """A grouping factor from its levels and from labels and moments of what varies over them.

    Raises
    ------
    FormulaError, DataError
        As :func:`random_factors`.
    """
    n = next(found.n for _, found in moments.values())
    _check_levels(terms[0], grouping, n, independent=not saturated)
    coefs: list[str] = []
    blocks: list[tuple[int, ...]] = []
    kinds: list[str] = []
    redundant: list[str] = []
    for term in terms:
        names, found = moments[term.left]
        _check_coefs(source, term, names, coefs)
        if not saturated and term.structure in ("us", "homdiag"):
            own = _blocks(term, 0, len(names), 1)
            _check_count(term, len(grouping.levels), len(own[0]), n)
        new = _blocks(term, len(coefs), len(names), 1)
        blocks += new
        kinds += [term.structure] * len(new)
        coefs += names
        where = f"the random effects of `{grouping.name}`"
        check_column_scales(names, found, where)
        if term.structure not in HOMOGENEOUS:
            several = term.correlated and len(names) > 1
            kept = independent_columns(found) if several else found.largest > 0
            redundant += [name for name, keep in zip(names, kept, strict=True) if not keep]
    _warn_redundant(grouping.name, redundant)
    none = [None] * len(terms)
    return factor_spec(grouping, key, terms, coefs, blocks, kinds, strata=none)
