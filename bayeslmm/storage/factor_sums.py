"""Grouping factors of data beyond memory, and what is kept of rows for them, as arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bayeslmm.data.factor_totals import FactorTotals, StratumTotals
from bayeslmm.data.grouping import GroupingFactor, canonical
from bayeslmm.data.level_sets import SeenLevels
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.random_terms import amalgamated, factor_spec
from bayeslmm.data.strata import Strata, plain_labels, stratum_coefs, term_strata
from bayeslmm.data.summarised import Summary
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.storage.checked import check_fit, checked_array
from bayeslmm.storage.frames import Arrays, Description, Stored
from bayeslmm.storage.random_factors import (
    moment_arrays,
    pack_grouping,
    pack_relationship,
    stored_moments,
    unpack_grouping,
    unpack_relationship,
)
from bayeslmm.storage.summaries import unpack_levels


def pack_factor(i: int, factor: FactorSpec, summary: Summary, arrays: Arrays) -> Description:
    """A grouping factor in JSON, its levels and sums among the arrays."""
    name, totals = f"factor {i}", summary.factors.get(factor.key)
    effects = None if totals is None else totals.effects
    if effects is not None:
        arrays |= moment_arrays(f"{name} effects", effects)
    strata: list[Description | None] = [None] * len(factor.sides)
    for t, own in enumerate(factor.strata):
        found = None if totals is None else totals.strata[t]
        if own is not None and found is not None:
            strata[t] = _pack_strata(f"{name} strata {t}", own, found, arrays)
    return pack_grouping(factor, arrays, name) | {
        "coefs": list(factor.coefs),
        "blocks": [list(block) for block in factor.blocks],
        "kinds": list(factor.kinds),
        "relationship": pack_relationship(factor.relationship, f"{name} relationship", arrays),
        "effects": None if effects is None else effects.n,
        "strata": strata,
    }


def _pack_strata(name: str, own: Strata, found: StratumTotals, arrays: Arrays) -> Description:
    arrays[f"{name} levels"] = own.of_level
    for number, moments in enumerate(found.sides):
        arrays |= moment_arrays(f"{name} {number}", moments)
    return {
        "of": pack_grouping(own.of, arrays, name),
        "rows": [moments.n for moments in found.sides],
        "start": int(own.places[0, 0]),
        "width": len(own.coefs),
    }


# --- back ------------------------------------------------------------------------------


def stored_factors_of_sums(
    formula: Formula, stored: Sequence[Description], arrays: Stored
) -> tuple[tuple[FactorSpec, ...], dict[str, FactorTotals]]:
    """Grouping factors of the formula, and what is kept of rows for some, by their keys."""
    groups = amalgamated(formula)
    check_fit(len(groups) == len(stored), "grouping factors")
    factors, totals = [], {}
    for i, ((key, terms), one) in enumerate(zip(groups.items(), stored, strict=True)):
        factor, own = _factor(i, key, terms, one, arrays)
        factors.append(factor)
        if own is not None:
            totals[key] = own
    return tuple(factors), totals


def _factor(
    i: int, key: str, terms: Sequence[RandomTerm], stored: Description, arrays: Stored
) -> tuple[FactorSpec, FactorTotals | None]:
    term, name = terms[0], f"factor {i}"
    pooled = term.members is not None
    names = (term.group,) if pooled else term.factors
    grouping = unpack_levels(i, names, stored, arrays)
    grouping = replace(grouping, name=term.group, factors=term.factors) if pooled else grouping
    blocks = [tuple(block) for block in stored["blocks"]]
    coefs = [str(coef) for coef in stored["coefs"]]
    places = sorted(place for block in blocks for place in block)
    check_fit(places == [*range(len(coefs))] and len(blocks) == len(stored["kinds"]), "blocks")
    relationship = unpack_relationship(stored["relationship"], arrays)
    if relationship is not None:
        labels = canonical(relationship.labels)
        right = len(grouping.parts) == 1 and grouping.parts[0].equals(labels)
        check_fit(right, f"relationships of {grouping.name}")
    check_fit(len(stored["strata"]) == len(terms), f"strata of {grouping.name}")
    strata: list[Strata | None] = []
    found: list[StratumTotals | None] = []
    for t, (own, saved) in enumerate(zip(terms, stored["strata"], strict=True)):
        check_fit((own.by is None) == (saved is None), f"strata of {grouping.name}")
        one = None
        if saved is not None:
            one = _strata(f"{name} strata {t}", own, saved, coefs, grouping, arrays)
        strata.append(None if one is None else one[0])
        found.append(None if one is None else one[1])
    spec = factor_spec(grouping, key, terms, coefs, blocks, stored["kinds"], relationship, strata)
    rows = stored["effects"]
    effects = None if rows is None else stored_moments(f"{name} effects", int(rows), arrays)
    if effects is None and not spec.divided and not pooled and relationship is None:
        return spec, None
    return spec, FactorTotals(slots=None, effects=effects, strata=tuple(found))


def _strata(
    name: str,
    term: RandomTerm,
    saved: Description,
    coefs: Sequence[str],
    grouping: GroupingFactor,
    arrays: Stored,
) -> tuple[Strata, StratumTotals]:
    assert term.by is not None
    what = f"strata of {grouping.name}"
    of = unpack_grouping((term.by,), saved["of"], arrays, name)
    start, width, size = int(saved["start"]), int(saved["width"]), len(of.levels)
    stop = start + width * size
    check_fit(start >= 0 and width > 0 and stop <= len(coefs), what)
    names = plain_labels(coefs[start : start + width], of)
    check_fit(list(coefs[start:stop]) == stratum_coefs(names, of), what)
    of_level = checked_array(arrays, f"{name} levels", grouping.levels.shape, "i")
    check_fit(bool(np.all((of_level >= 0) & (of_level < size))), what)
    rows = [int(n) for n in saved["rows"]]
    check_fit(len(rows) == size, what)
    sides = tuple(stored_moments(f"{name} {number}", n, arrays) for number, n in enumerate(rows))
    check_fit(all(len(own.centre) == width for own in sides), what)
    seen = SeenLevels.of(of, (None,))
    own = term_strata(of, of_level.astype(np.intp), names, start)
    return own, StratumTotals(seen=seen, of_level=own.of_level, sides=sides, weighted=sides)
