"""Sums over some rows as plain values and back, so that they can be kept, sent and added later."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayeslmm.data.level_sets import SeenLevels
from bayeslmm.data.random_terms import amalgamated
from bayeslmm.data.summarised import Summary
from bayeslmm.data.survey import (
    Extremes,
    layout_of,
    sample_columns,
    sample_encodings,
    sides_of,
)
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import Columns
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.parts import Part
from bayeslmm.likelihood.tied import TiedProducts
from bayeslmm.storage.checked import check_fit, checked_numbers
from bayeslmm.storage.frames import Arrays, Description, Stored, pack_index, unpack_index
from bayeslmm.storage.model import ROUNDING, stored_formula
from bayeslmm.storage.random_factors import pack_grouping
from bayeslmm.storage.summaries import (
    pack_products,
    pack_summary,
    unpack_levels,
    unpack_products,
    unpack_summary,
)

_EXTREMES = ("low", "high", "weights")

AGREEMENT = 1e-6
"""Difference of two sums of the same products, relative to their sizes, that rounding may make."""


def pack_part(part: Part) -> tuple[Description, Arrays]:
    """Describe the sums over some rows completely.

    Parameters
    ----------
    part : Part

    Returns
    -------
    description : dict
        Fit for JSON.
    arrays : dict of str to ndarray
        The sums.

    Raises
    ------
    StorageError
        If levels have types that cannot be stored.
    """
    arrays: Arrays = {}
    described = pack_summary(part.formula, part.weights, part.residual, part.summary, arrays)
    pack_products(part.products, arrays)
    for name in _EXTREMES[: 2 if part.weights is None else 3]:
        arrays[f"extremes {name}"] = getattr(part.extremes, name)
    given = (part.summary.sample, part.functions, part.summary.states)
    columns = sample_columns(part.formula, *given)
    for i, side in enumerate(sides_of(part.formula)):
        arrays[f"sample {i}"] = columns[side].values
    return {
        **described,
        "columns": [list(part.layout.names[side]) for side in sides_of(part.formula)],
        "factors": [_pack_levels(i, seen, arrays) for i, seen in enumerate(part.levels)],
    }, arrays


def _pack_levels(i: int, seen: SeenLevels, arrays: Arrays) -> Description:
    categories = [
        None if own is None else pack_index(own, arrays, f"factor {i} categories {j}")
        for j, own in enumerate(seen.categories)
    ]
    return {**pack_grouping(seen.factor, arrays, f"factor {i}"), "categories": categories}


# --- back ------------------------------------------------------------------------------


def unpack_part(
    description: Description, arrays: Stored, functions: UserFunctions | None = None
) -> Part:
    """The sums that :func:`pack_part` described.

    Parameters
    ----------
    description, arrays : dict, mapping of str to ndarray
        The sums.
    functions : mapping of str to callable, optional
        The user's functions that the formula calls.

    Returns
    -------
    Part

    Raises
    ------
    StorageError
        If the parts do not fit each other, functions are absent, or the installed libraries make
        other columns.
    """
    functions = own_functions(functions)
    formula = stored_formula(description["formula"], functions)
    summary, residual = unpack_summary(formula, description, arrays)
    columns = _columns(formula, functions, summary, description, arrays)
    layout = layout_of(formula, {side: found.names for side, found in columns.items()})
    levels = _levels(formula, description, arrays)
    p = len(layout.names[layout.right])
    widths = [sum(len(layout.names[side]) for side in own) for own in layout.factors]
    sizes = [(len(seen), k) for seen, k in zip(levels, widths, strict=True)]
    part = Part(
        formula=formula,
        functions=functions,
        weights=description["weights"],
        layout=layout,
        encodings=sample_encodings(formula, columns, summary.sample, functions, summary.states),
        summary=summary,
        extremes=_extremes(description["weights"], arrays),
        levels=levels,
        products=unpack_products((p, sizes), layout.structures, summary, residual, arrays),
        residual=residual,
    )
    _check_sums(part)
    return part


def _columns(
    formula: Formula,
    functions: UserFunctions,
    summary: Summary,
    description: Description,
    arrays: Stored,
) -> dict[Side, Columns]:
    """Columns of the rows that stand for all, which must be as they were."""
    try:
        columns = sample_columns(formula, summary.sample, functions, summary.states)
    except BayesLMMError as error:
        raise StorageError(
            f"The formula of the saved sums cannot be evaluated any more: {error}"
        ) from error
    check_fit(len(columns) == len(description["columns"]), "columns")
    for i, (found, names) in enumerate(zip(columns.values(), description["columns"], strict=True)):
        stored = checked_numbers(arrays, f"sample {i}", (len(summary.sample), len(names)))
        same = list(found.names) == names
        if not same or not np.allclose(found.values, stored, rtol=ROUNDING, atol=ROUNDING):
            raise StorageError(
                "The installed libraries, or the functions that are given, make other columns of "
                f"the saved formula: {', '.join(found.names)}, which were {', '.join(names)}, or "
                "other values of them. Load it with those it was saved with."
            )
    return columns


def _levels(formula: Formula, description: Description, arrays: Stored) -> tuple[SeenLevels, ...]:
    groups = [terms[0].factors for terms in amalgamated(formula).values()]
    check_fit(len(groups) == len(description["factors"]), "grouping factors")
    result = []
    for i, (names, stored) in enumerate(zip(groups, description["factors"], strict=True)):
        check_fit(len(stored["categories"]) == len(names), "categories")
        categories = tuple(
            None if own is None else unpack_index(own, arrays) for own in stored["categories"]
        )
        factor = unpack_levels(i, names, stored, arrays)
        for part, own in zip(factor.parts, categories, strict=True):
            check_fit(own is None or bool(part.isin(own).all()), "categories")
        result.append(SeenLevels.of(factor, categories))
    return tuple(result)


def _extremes(weights: str | None, arrays: Stored) -> Extremes:
    low, high = (checked_numbers(arrays, f"extremes {name}", (3,)) for name in _EXTREMES[:2])
    ends = np.array([np.inf, -np.inf])  # of no weights
    if weights is not None:
        ends = checked_numbers(arrays, "extremes weights", (2,))
        check_fit(bool(0.0 < ends[0] <= ends[1]), "weights")
    check_fit(bool(np.all(low <= high)), "extremes")
    return Extremes(low=low, high=high, weights=ends)


def _check_sums(part: Part) -> None:
    """Raise StorageError unless sums that can be had in two ways agree."""
    summary, products, basis = part.summary, part.products, part.products.basis
    n, right = summary.n, part.layout.right
    check_fit(type(n) is int and n > 0 and type(summary.n_dropped) is int, "numbers of rows")
    check_fit(
        all(np.sum(own) == n and np.all(own > 0) for own in summary.counts.values()), "counts"
    )
    for side, names in part.layout.names.items():
        for moments in (summary.sides[side], summary.weighted[side]):
            check_fit(len(moments.centre) == len(names) + (side == right), "moments")
            finite = (moments.centre, moments.triangle, moments.low, moments.high)
            check_fit(all(bool(np.isfinite(own).all()) for own in finite), "moments")
            check_fit(bool(np.all(moments.low <= moments.high)), "extremes")
            check_fit(bool(np.all((moments.filled >= 0) & (moments.filled <= n))), "counts")
    _check_basis(part)
    if isinstance(products, TiedProducts):  # whose sums are of other products
        return
    whole = summary.weighted[right].columns
    X, y = whole[:, :-1], whole[:, -1]
    _check_same(products.fixed, np.column_stack([X @ basis.fixed, y - X @ basis.shift]))
    for own, sides, sums in zip(basis.random, part.layout.factors, products.random, strict=True):
        start, total = 0, np.sum(sums, axis=0)
        for side in sides:
            width = len(part.layout.names[side])
            block = slice(start, start + width)
            columns = summary.weighted[side].columns[:, :width]
            _check_same(total[block, block], columns @ own[block, block])
            start += width


def _check_basis(part: Part) -> None:
    for own in (part.products.basis.fixed, *part.products.basis.random):
        triangular = bool(np.all(np.tril(own, -1) == 0.0) and np.all(np.diag(own) > 0.0))
        check_fit(triangular, "basis")


def _check_same(sums: Any, columns: Any) -> None:
    """Sums of products (k, k) of columns (m, k) in few dimensions."""
    other = columns.T @ columns
    sizes = np.sqrt(np.diag(other))
    largest = np.outer(sizes, sizes) + np.max(np.abs(other), initial=0.0) * AGREEMENT
    check_fit(bool(np.all(np.abs(sums - other) <= AGREEMENT * largest)), "sums")
