"""Random-effects terms and data to grouping factors with their covariates."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.factor_totals import FactorTotals, StratumTotals
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
from bayeslmm.data.memberships import Member, Pool, members_of, pooled_members
from bayeslmm.data.random_factors import FactorSpec, RandomFactor
from bayeslmm.data.relationships import Relationship, missing_levels
from bayeslmm.data.strata import (
    Strata,
    check_by,
    check_size,
    check_strata,
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


def amalgamated(formula: Formula | ScaleFormula) -> dict[str, list[RandomTerm]]:
    """The random-effects terms of each grouping factor, by key, in the order of first appearance.

    Terms on the same variables, in whatever order (``a:b`` and ``b:a``), share a factor.
    """
    groups: dict[Hashable, list[RandomTerm]] = {}
    for term in formula.random:
        groups.setdefault(term.identity, []).append(term)
    keys = group_keys([terms[0].group for terms in groups.values()])
    return dict(zip(keys, groups.values(), strict=True))


def keeps_totals(formula: Formula, relationships: Mapping[str, Relationship] | None) -> bool:
    """Whether more is kept of rows than moments: with ``by=``, ``mm()`` or relationships."""
    terms = formula.random
    return bool(relationships) or any(t.by is not None or t.members is not None for t in terms)


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
    check_relationships(relationships, [terms[0].group for terms in groups.values()])
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
    codes, grouping, pool = grouped_rows(terms[0], frame)
    independent = not saturated and pool is None
    if relationship is None:
        _check_levels(terms[0], grouping, len(frame), independent=independent)
    else:
        found = grouping
        codes, grouping, relationship = related_levels(codes, grouping, relationship)
        apart = relationship.sets_apart(np.unique(codes))
        independent = independent and not apart
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
    factor = known_rows(spec, members_of_rows(codes, pool), z)
    if pool is not None and relationship is None and not saturated:
        _check_shared(terms[0], factor.name, factor.counts())
    for block in spec.blocks:
        check_column_scales(
            [spec.coefs[b] for b in block],
            factor.covariates(block),
            f"the random effects of `{grouping.name}`",
        )
    _report_deficient(factor, terms, columns)
    return factor


def grouped_rows(
    term: RandomTerm, frame: pd.DataFrame
) -> tuple[Indices, GroupingFactor, Pool | None]:
    """Level of each row, or of each member that counts, the levels, and the members."""
    if term.members is None:
        return *grouping_factor(frame, term.factors), None
    long, pool = pooled_members(frame, term.factors, term.members)
    if not pool.counted.any():
        raise DataError(f"{term.source}: the weights of all members are 0.")
    codes, grouping = grouping_factor(long, long.columns)
    return codes, replace(grouping, name=term.group, factors=term.factors), pool


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
    check_size(term, size, width)
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
        members=terms[0].members,
    )


def known_rows(
    spec: FactorSpec, members: tuple[Member, ...], z: NDArray[np.float64]
) -> RandomFactor:
    """Rows in which no level is new."""
    fresh = read_only(np.empty(0, dtype=object))
    return RandomFactor(spec=spec, Z=z, members=members, new_levels=fresh)


def members_of_rows(codes: Indices, pool: Pool | None) -> tuple[Member, ...]:
    """Members of rows without new levels; of several, `codes` are those that count."""
    return (Member(codes, codes),) if pool is None else members_of(codes, codes, *pool)


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


def check_relationships(names: Iterable[str], groups: Sequence[str]) -> None:
    """Raise DataError for relationships of what is no grouping factor of one variable."""
    unknown = [name for name in names if name not in groups]
    if unknown:
        raise DataError(
            f"relationships: the model has no grouping factor {listed(unknown)}; it has "
            f"{listed(groups) or 'none'}."
        )
    if joint := [name for name in names if ":" in name and not name.startswith("mm(")]:
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


def _check_shared(term: RandomTerm, name: str, counts: Indices) -> None:
    """Refuse members of which each is in one row only."""
    if counts.max() == 1:
        raise DataError(
            f"Every level of `{name}` is a member of one row, so the effects of "
            f"{term.source} cannot be told from the residuals. Name columns whose levels occur in "
            "several rows."
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
    members, labels = _other_members(spec, frame, groups=groups)
    parts = []
    for side, strata in zip(spec.sides, spec.strata, strict=True):
        values = columns[side].values
        if strata is not None:
            names, (own, *_) = [*spec.levels, *labels], members
            rows = strata.rows(frame, own.extended_codes if groups else own.codes, spec.name, names)
            values = spread_columns(values, rows, len(strata.places))
        parts.append(values)
    return RandomFactor(spec=spec, Z=_joined(parts), members=members, new_levels=read_only(labels))


def numbered_members(spec: FactorSpec, frame: pd.DataFrame) -> tuple[Member, ...]:
    """Levels of complete rows, numbered from 0, whether the model knows them or not."""
    if spec.members is None:
        return members_of_rows(grouping_factor(frame, spec.factors)[0], None)
    long, pool = pooled_members(frame, spec.factors, spec.members)
    return members_of_rows(grouping_factor(long, long.columns)[0], pool)


def _other_members(
    spec: FactorSpec, frame: pd.DataFrame, *, groups: bool
) -> tuple[tuple[Member, ...], NDArray[np.object_]]:
    """Levels of other rows, and labels of the new ones."""
    if not groups:
        codes = read_only(np.full(len(frame), -1, dtype=np.intp))
        extended = read_only(np.full_like(codes, len(spec.levels)))
        return (Member(codes, extended),), np.array(["new"], dtype=object)
    if spec.members is None:
        codes = lookup_levels(spec, frame)
        extended, labels = new_levels(spec, frame, codes)
        return (Member(read_only(codes), read_only(extended)),), labels
    long, pool = pooled_members(frame, spec.factors, spec.members)
    alone = replace(spec, factors=tuple(long.columns))
    codes = lookup_levels(alone, long)
    extended, labels = new_levels(alone, long, codes)
    return members_of(codes, extended, *pool), labels


# --- data beyond memory ----------------------------------------------------------------


def check_batch(
    source: str, terms: Sequence[RandomTerm], frame: pd.DataFrame, columns: Mapping[Side, Columns]
) -> None:
    """Raise what :func:`random_factors` raises about some of the rows, before levels are known."""
    _check_discrete(source, terms[0], frame)
    for term in terms:
        check_by(source, term, frame)
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
    counts: Indices,
    relationship: Relationship | None = None,
    totals: FactorTotals | None = None,
) -> FactorSpec:
    """A grouping factor from its levels and from labels and moments of what varies over them.

    Parameters
    ----------
    source, terms, key, grouping
        The formula, its terms on the factor, the key of this, and the levels that have rows.
    moments : mapping of Side to (sequence of str, Moments)
        Labels and moments of the columns of each side.
    saturated : bool
        Whether there may be as many random effects as rows.
    counts : ndarray of int (J,)
        Rows of each level.
    relationship : Relationship, optional
        Known covariance of levels.
    totals : FactorTotals, optional
        What is kept of the rows of a factor with ``by=``, ``mm()`` or a relationship.

    Raises
    ------
    FormulaError, DataError
        As :func:`random_factors`.
    """
    term, n = terms[0], next(found.n for _, found in moments.values())
    pooled = term.members is not None
    grouping = replace(grouping, name=term.group, factors=term.factors) if pooled else grouping
    independent, found = not saturated and not pooled, grouping
    if relationship is not None:
        codes = np.arange(len(grouping.levels))
        codes, grouping, relationship = related_levels(codes, grouping, relationship)
        independent = independent and not relationship.sets_apart(codes)
    _check_levels(term, found, n, independent=independent)
    parts: list[_LevelsPart] = []
    for t, term in enumerate(terms):
        names, own = moments[term.left]
        earlier = [coef for part in parts for coef in part.coefs]
        _check_coefs(source, term, names, earlier)
        _check_strata(term, relationship)
        strata = None if totals is None else totals.strata[t]
        if strata is None:
            blocks = _blocks(term, len(earlier), len(names), 1)
            part = _LevelsPart(names, blocks, [(names, own)], [(len(found.levels), n)])
        else:
            part = _part_of_strata(source, term, names, len(earlier), strata, found)
            _check_coefs(source, term, part.coefs, earlier)
        if independent and term.structure in ("us", "homdiag"):
            for n_levels, n_rows in part.counts:
                _check_count(term, n_levels, len(part.blocks[0]), n_rows)
        parts.append(part)
    if pooled and relationship is None and not saturated:
        _check_shared(terms[0], grouping.name, counts)
    _report_parts(grouping.name, terms, parts)
    return factor_spec(
        grouping,
        key,
        terms,
        [coef for part in parts for coef in part.coefs],
        [block for part in parts for block in part.blocks],
        [term.structure for term, part in zip(terms, parts, strict=True) for _ in part.blocks],
        relationship,
        [part.strata for part in parts],
    )


class _LevelsPart(NamedTuple):
    """What one term adds to a grouping factor.

    `pieces` are labels and moments of the columns of each stratum, `counts` its levels and rows.
    """

    coefs: Sequence[str]
    blocks: list[tuple[int, ...]]
    pieces: list[tuple[Sequence[str], Moments]]
    counts: list[tuple[int, int]]
    strata: Strata | None = None


def _part_of_strata(
    source: str,
    term: RandomTerm,
    names: Sequence[str],
    start: int,
    found: StratumTotals,
    grouping: GroupingFactor,
) -> _LevelsPart:
    found.check(term, grouping.name, grouping.levels)
    of, width = found.seen.factor, len(names)
    check_strata(term, grouping.name, of, found.of_level)
    check_size(term, len(of.levels), width)
    coefs = stratum_coefs(names, of)
    pieces: list[tuple[Sequence[str], Moments]] = [
        (coefs[place : place + width], own)
        for place, own in zip(range(0, len(coefs), width), found.sides, strict=True)
    ]
    levels = np.bincount(found.of_level, minlength=len(of.levels)).tolist()
    return _LevelsPart(
        coefs=coefs,
        blocks=_blocks(term, start, width, len(of.levels)),
        pieces=pieces,
        counts=[(count, own.n) for count, own in zip(levels, found.sides, strict=True)],
        strata=term_strata(of, found.of_level, names, start),
    )


def _report_parts(name: str, terms: Sequence[RandomTerm], parts: Sequence[_LevelsPart]) -> None:
    redundant: list[str] = []
    for term, part in zip(terms, parts, strict=True):
        for names, own in part.pieces:
            check_column_scales(names, own, f"the random effects of `{name}`")
            if term.structure in HOMOGENEOUS:
                continue
            several = term.correlated and len(names) > 1
            kept = independent_columns(own) if several else own.largest > 0
            redundant += [coef for coef, keep in zip(names, kept, strict=True) if not keep]
    _warn_redundant(name, redundant)


def coefs_of_terms(
    terms: Sequence[RandomTerm], names: Mapping[Side, Sequence[str]]
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Coefficients of terms on one grouping factor, their blocks and the kind of each."""
    coefs: list[str] = []
    blocks: list[tuple[int, ...]] = []
    kinds: list[str] = []
    for term in terms:
        new = _blocks(term, len(coefs), len(names[term.left]), 1)
        blocks += new
        kinds += [term.structure] * len(new)
        coefs += names[term.left]
    return tuple(coefs), tuple(blocks), tuple(kinds)
