"""What is kept of rows beyond memory as plain values and back: sums, levels, what columns need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from bayeslmm.covariance.structure import Structure
from bayeslmm.data.grouping import GroupingFactor
from bayeslmm.data.random_terms import amalgamated
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.summarised import Summary
from bayeslmm.data.survey import sides_of
from bayeslmm.exceptions import StorageError
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.transforms import NaturalSpline
from bayeslmm.likelihood.crossprod import Basis, Coupling, WorkingProducts
from bayeslmm.likelihood.tied import TiedProducts
from bayeslmm.storage.checked import check_fit, checked_numbers
from bayeslmm.storage.frames import (
    Arrays,
    Description,
    Stored,
    pack_frame,
    same_frame,
    unpack_frame,
)
from bayeslmm.storage.layout import from_plain, to_plain
from bayeslmm.storage.random_factors import moment_arrays, stored_moments, unpack_grouping
from bayeslmm.storage.structured_sums import (
    checked_places,
    pack_scaled,
    pack_structure,
    pack_tied,
    unpack_scaled,
    unpack_structure,
    unpack_tied,
)

SUMS = "sums"
"""Key of the facts about the rows; a model that has it is one of data beyond memory."""

SPLINE = "natural spline"

_FACTS = ("words", "n", "n_dropped", "log_weights", "mean_inverse_weight", "mean_offset")


def pack_summary(
    formula: Formula,
    weights: str | None,
    residual: ResidualSpec | None,
    summary: Summary,
    arrays: Arrays,
) -> Description:
    """Describe what is kept of rows beside their cross-products.

    Parameters
    ----------
    formula : Formula
    weights : str or None
        Column of the precision weights.
    residual : ResidualSpec or None
        Structure of the residuals.
    summary : Summary
    arrays : dict
        Where the numbers go.

    Returns
    -------
    dict
        Fit for JSON.

    Raises
    ------
    StorageError
        If the rows that stand for all have values of types that cannot be stored.
    """
    sample = pack_frame(summary.sample, arrays)
    if not same_frame(unpack_frame(sample, arrays), summary.sample):
        raise StorageError(
            "The data have values of types that cannot be stored exactly: convert them to numbers, "
            "text or categories and build the model again."
        )
    for i, side in enumerate(sides_of(formula)):
        arrays |= moment_arrays(f"side {i}", summary.sides[side])
        if _weighted(weights, residual):
            arrays |= moment_arrays(f"weighted {i}", summary.weighted[side])
    for i, key in enumerate(amalgamated(formula)):
        arrays[f"counts {i}"] = summary.counts[key]
    return {
        SUMS: {name: getattr(summary, name) for name in _FACTS},
        "means": dict(summary.means),
        "ranges": {name: list(ends) for name, ends in summary.ranges.items()},
        "states": _pack_states(summary.states),
        "formula": formula.source,
        "weights": weights,
        "residual": pack_structure(residual, arrays),
        "scaled": pack_scaled(summary.scaled, arrays),
        "sample": sample,
    }


def _weighted(weights: str | None, residual: ResidualSpec | None) -> bool:
    return weights is not None or (residual is not None and residual.formula.errors is not None)


def pack_products(products: WorkingProducts | TiedProducts, arrays: Arrays) -> None:
    """Put cross-products and their basis among the arrays."""
    basis = products.basis
    arrays |= {"basis": basis.fixed, "shift": basis.shift}
    arrays |= {f"working {i}": own for i, own in enumerate(basis.random)}
    if isinstance(products, TiedProducts):
        return pack_tied(products, arrays)
    arrays["products"] = products.fixed
    for i, (random, mixed) in enumerate(zip(products.random, products.mixed, strict=True)):
        arrays |= {f"random {i}": random, f"mixed {i}": mixed}
    for i, found in enumerate(products.couplings):
        for name in ("first", "second", "blocks"):
            arrays[f"coupling {i} {name}"] = getattr(found, name)
    return None


def _pack_states(states: Mapping[str, Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, NaturalSpline):
            return {SPLINE: (value.interior, value.boundary, value.intercept)}
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return value

    return to_plain(plain(dict(states)), "What a transform remembers")


# --- back ------------------------------------------------------------------------------


def unpack_summary(
    formula: Formula, description: Description, arrays: Stored
) -> tuple[Summary, ResidualSpec | None]:
    """What :func:`pack_summary` described; raises StorageError if its parts do not fit."""
    facts, residual = description[SUMS], unpack_structure(description["residual"], arrays)
    every = list(enumerate(sides_of(formula)))
    sides = {side: stored_moments(f"side {i}", facts["n"], arrays) for i, side in every}
    weighted = sides
    if _weighted(description["weights"], residual):
        weighted = {side: stored_moments(f"weighted {i}", facts["n"], arrays) for i, side in every}
    counts = {key: arrays[f"counts {i}"] for i, key in enumerate(amalgamated(formula))}
    summary = Summary(
        **facts,
        sides=sides,
        weighted=weighted,
        counts=counts,
        means={str(name): float(mean) for name, mean in description["means"].items()},
        ranges={
            str(k): (float(low), float(high)) for k, (low, high) in description["ranges"].items()
        },
        sample=unpack_frame(description["sample"], arrays),
        states=_unpack_states(description["states"]),
        scaled=unpack_scaled(description["scaled"], sides_of(formula), residual, arrays),
    )
    return summary, residual


def _unpack_states(stored: Any) -> dict[str, Any]:
    def remade(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {SPLINE}:
            interior, boundary, intercept = value[SPLINE]
            return NaturalSpline(interior=interior, boundary=boundary, intercept=intercept)
        if isinstance(value, dict):
            return {key: remade(inner) for key, inner in value.items()}
        return value

    states = remade(from_plain(stored))
    check_fit(isinstance(states, dict), "transforms")
    return dict(states)


def unpack_levels(
    i: int, names: Sequence[str], stored: Description, arrays: Stored
) -> GroupingFactor:
    """The levels of the grouping factor of number i, whose rows are counted."""
    grouping = unpack_grouping(names, stored, arrays, f"factor {i}")
    counts = arrays[f"counts {i}"]
    check_fit(counts.dtype.kind == "i" and counts.shape == grouping.levels.shape, "counts")
    return grouping


def unpack_products(
    sizes: tuple[int, Sequence[tuple[int, int]]],
    structures: Sequence[Structure],
    summary: Summary,
    residual: ResidualSpec | None,
    arrays: Stored,
    pooled: Sequence[int] = (),
    relationships: Sequence[Relationship | None] | None = None,
) -> WorkingProducts | TiedProducts:
    """The cross-products that :func:`pack_products` put among the arrays.

    Parameters
    ----------
    sizes : tuple of int and sequence of tuple of int
        Number p of columns of the fixed effects; number J of levels and k of coefficients of each
        grouping factor.
    structures : sequence of Structure
        Covariance structure of each.
    summary : Summary
        Of the same rows.
    residual : ResidualSpec or None
        Structure of the residuals.
    arrays : mapping of str to ndarray
    pooled : sequence of int
        Grouping factors of which rows belong to several levels.
    relationships : sequence of Relationship or None, optional
        Known covariances of the levels of each.
    """
    p, own = sizes
    every = list(enumerate(own))
    basis = Basis(
        fixed=checked_numbers(arrays, "basis", (p, p)),
        shift=checked_numbers(arrays, "shift", (p,)),
        random=tuple(checked_numbers(arrays, f"working {i}", (k, k)) for i, (_, k) in every),
    )
    if residual is not None and not residual.structure.plain:
        n, log_weights = summary.n, summary.log_weights
        return unpack_tied(residual.structure, own, n, log_weights, basis, arrays)
    couplings = []
    pairs = [*combinations(range(len(own)), 2), *((f, f) for f in pooled)]
    for place, (i, j) in enumerate(pairs):
        name = f"coupling {place}"
        size = len(arrays[f"{name} first"])
        first = checked_places(arrays, f"{name} first", (size,), own[i][0])
        second = checked_places(arrays, f"{name} second", (size,), own[j][0])
        blocks = checked_numbers(arrays, f"{name} blocks", (size, own[i][1], own[j][1]))
        couplings.append(Coupling((i, j), first, second, blocks))
    return WorkingProducts(
        n_obs=summary.n,
        log_weights=summary.log_weights,
        fixed=checked_numbers(arrays, "products", (p + 1, p + 1)),
        random=tuple(checked_numbers(arrays, f"random {i}", (j, k, k)) for i, (j, k) in every),
        mixed=tuple(checked_numbers(arrays, f"mixed {i}", (j, k, p + 1)) for i, (j, k) in every),
        couplings=tuple(couplings),
        structures=tuple(structures),
        relationships=tuple(relationships or (None,) * len(own)),
        basis=basis,
    )
