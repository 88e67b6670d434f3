"""Residual structures of data beyond memory, and sums over their tied rows, as arrays and back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.distance import BoundChain, BoundField, Field, OverDistance
from bayeslmm.covariance.occasions import BoundOccasions, OverOccasions, Subsets
from bayeslmm.covariance.residual import BoundCorrelation, BoundResidual, Entries, Residual
from bayeslmm.data.residual_rows import (
    Covariate,
    ResidualFacts,
    ResidualSpec,
    plain_covariate,
    spec_of_facts,
)
from bayeslmm.data.row_kinds import RowKinds, ScaledRows
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.residual import parse_residual
from bayeslmm.formula.terms import Side
from bayeslmm.likelihood.crossprod import Basis
from bayeslmm.likelihood.tied import TiedProducts, TiedSums
from bayeslmm.storage.checked import check_fit, checked_array, checked_numbers
from bayeslmm.storage.frames import Arrays, Description, Stored
from bayeslmm.storage.random_factors import (
    moment_arrays,
    pack_grouping,
    stored_moments,
    unpack_grouping,
)

Indices = NDArray[np.intp]

ROLES = ("arms", "strata", "group", "occasions")


def pack_structure(spec: ResidualSpec | None, arrays: Arrays) -> Description | None:
    """A residual structure in JSON, the levels among the arrays."""
    if spec is None:
        return None
    known = {role: getattr(spec, role) for role in ROLES}
    law = spec.structure.correlation
    return {
        "source": spec.formula.source,
        "levels": {
            role: pack_grouping(factor, arrays, f"residual {role}")
            for role, factor in known.items()
            if factor is not None
        },
        "covariates": [[one.centre, one.scale] for one in spec.covariates],
        "largest": law.structure.n_coefs if isinstance(law, OverOccasions) else 2,
        "unit": law.unit if isinstance(law, OverDistance) else 1.0,
    }


def unpack_structure(stored: Description | None, arrays: Stored) -> ResidualSpec | None:
    """The structure that :func:`pack_structure` described."""
    if stored is None:
        return None
    try:
        formula = parse_residual(stored["source"])
    except BayesLMMError as error:
        raise StorageError(f"The residual structure of the saved model: {error}") from error
    term, strata, found = formula.correlation, formula.strata, {}
    names: dict[str, tuple[str, ...]] = {} if strata is None else {"strata": strata.place}
    if term is not None:
        names |= {"group": term.group, "occasions": term.place}
        names |= {} if term.arm is None else {"arms": (term.arm,)}
    for role, saved in stored["levels"].items():
        check_fit(role in names, "residual structure")
        found[role] = unpack_grouping(names[role], saved, arrays, f"residual {role}")
    needed = set(names) - {"occasions"}
    check_fit(needed <= set(found), "residual structure")
    pairs = stored["covariates"]
    check_fit(len(pairs) == len(formula.powers), "residual structure")
    facts = ResidualFacts(
        levels=found,
        covariates=tuple(
            _covariate(plain_covariate(one), *pair)
            for one, pair in zip(formula.powers, pairs, strict=True)
        ),
        largest=int(stored["largest"]),
        unit=float(stored["unit"]),
    )
    check_fit(np.isfinite(facts.unit) and facts.unit > 0.0, "residual structure")
    try:
        return spec_of_facts(formula, facts)
    except BayesLMMError as error:
        raise StorageError(f"The residual structure of the saved model: {error}") from error


def _covariate(plain: Covariate, centre: float, scale: float) -> Covariate:
    check_fit(bool(np.isfinite([centre, scale]).all()) and scale > 0.0, "residual structure")
    return Covariate(column=plain.column, log=plain.log, centre=centre, scale=scale)


# --- rows by their standard deviation --------------------------------------------------


def pack_scaled(scaled: ScaledRows | None, arrays: Arrays) -> Description | None:
    """Sums over rows by their standard deviation."""
    if scaled is None:
        return None
    arrays |= {
        "kinds of rows": scaled.kinds.log_sd,
        "inverse weights": scaled.kinds.inverse_weights,
    }
    numbers = {}
    for place, sides in scaled.sides.items():
        for i, moments in enumerate(sides.values()):
            arrays |= moment_arrays(f"scale {place} {i}", moments)
            numbers[str(place)] = moments.n
    return {"rows": numbers}


def unpack_scaled(
    stored: Description | None, sides: Sequence[Side], spec: ResidualSpec | None, arrays: Stored
) -> ScaledRows | None:
    """The sums that :func:`pack_scaled` described, of the sides of a formula."""
    if stored is None or spec is None:
        check_fit(spec is None or spec.structure.plain, "residual structure")
        return None
    log_sd = arrays["kinds of rows"]
    width = len(spec.structure.scales) + len(spec.structure.powers)
    kinds = RowKinds(
        log_sd=checked_numbers(arrays, "kinds of rows", (len(log_sd), width)),
        inverse_weights=checked_numbers(arrays, "inverse weights", (len(log_sd),)),
    )
    places = {int(place): int(n) for place, n in stored["rows"].items()}
    check_fit(all(0 <= at < len(spec.structure.scales) for at in places), "residual structure")
    names = {place: [f"scale {place} {i}" for i in range(len(sides))] for place in places}
    found = {
        place: {
            side: stored_moments(name, n, arrays)
            for side, name in zip(sides, names[place], strict=True)
        }
        for place, n in places.items()
    }
    return ScaledRows(kinds=kinds, sides=found)


# --- sums over tied rows -----------------------------------------------------------------


def pack_tied(products: TiedProducts, arrays: Arrays) -> None:
    """Put sums over tied rows, and their law, among the arrays."""
    law = products.law
    arrays |= {
        "law log_sds": law.log_sds,
        "law counts": law.counts,
        "law parts": np.column_stack(law.parts),
    }
    arrays |= {f"law {name}": values for name, values in _correlation_arrays(law.correlation)}
    for i, part in enumerate(products.parts):
        arrays |= {f"tied {i} {name}": np.asarray(getattr(part, name)) for name in TiedSums._fields}


def _correlation_arrays(bound: BoundCorrelation | None) -> list[tuple[str, NDArray[Any]]]:
    if isinstance(bound, BoundChain):
        names = ("gaps", "gap_arm", "gap_count", "before", "after")
        return [(name, getattr(bound, name)) for name in names]
    if isinstance(bound, BoundOccasions):
        return [
            (f"{part.occasions.shape[1]} {name}", getattr(part, name))
            for part in bound.subsets
            for name in ("arms", "occasions", "counts", "values")
        ]
    if isinstance(bound, BoundField):
        fields = bound.fields
        return [
            ("arms", np.array([field.arm for field in fields], dtype=np.intp)),
            ("sizes", np.array([len(field.power) for field in fields], dtype=np.intp)),
            ("counts of fields", np.array([f.count for f in fields], dtype=np.intp)),
            ("powers", np.concatenate([field.power.ravel() for field in fields])),
        ]
    return []


def unpack_tied(
    structure: Residual,
    sizes: Sequence[tuple[int, int]],
    n: int,
    log_weights: float,
    basis: Basis,
    arrays: Stored,
) -> TiedProducts:
    """The sums that :func:`pack_tied` put there.

    Parameters
    ----------
    structure : Residual
    sizes : sequence of (int, int)
        Levels and coefficients of each grouping factor.
    n : int
        Number of rows.
    log_weights : float
        Sum of their log precision weights.
    basis : Basis
    arrays : mapping of str to ndarray
    """
    law, count, width = _law(structure, arrays), len(sizes), len(basis.shift) + 1
    pairs = [*combinations(range(count), 2), *((f, f) for f in range(count))]
    shapes = [(1, 1, width, width)]
    shapes += [(levels, 1, k, k) for levels, k in sizes]
    shapes += [(levels, 1, k, width) for levels, k in sizes]
    shapes += [(sizes[i][0], sizes[j][0], sizes[i][1], sizes[j][1]) for i, j in pairs]
    parts = [_tied(i, shape, law.entries.size, arrays) for i, shape in enumerate(shapes)]
    return TiedProducts(
        n_obs=n,
        log_weights=log_weights,
        law=law,
        basis=basis,
        fixed=parts[0],
        random=tuple(parts[1 : 1 + count]),
        mixed=tuple(parts[1 + count : 1 + 2 * count]),
        couplings=dict(zip(pairs, parts[1 + 2 * count :], strict=True)),
    )


def _tied(i: int, shape: tuple[int, int, int, int], kinds: int, arrays: Stored) -> TiedSums:
    first, second, a, b = shape
    size = len(arrays[f"tied {i} kind"])
    return TiedSums(
        first=checked_places(arrays, f"tied {i} first", (size,), first),
        second=checked_places(arrays, f"tied {i} second", (size,), second),
        kind=checked_places(arrays, f"tied {i} kind", (size,), kinds),
        sums=checked_numbers(arrays, f"tied {i} sums", (size, a, b)),
    )


def checked_places(arrays: Stored, name: str, shape: tuple[int, ...], size: int) -> Indices:
    """Whole numbers below `size`."""
    found = checked_array(arrays, name, shape, "i")
    check_fit(bool(np.all((found >= 0) & (found < size))), f"numbers {name}")
    return found.astype(np.intp)


def _law(structure: Residual, arrays: Stored) -> BoundResidual:
    n_kinds = len(arrays["law counts"])
    width = len(structure.scales) + len(structure.powers)
    bound = None
    if structure.correlation is not None:
        bound = _bound(structure.correlation, arrays)
    parts = arrays["law parts"]
    size = 1 if bound is None else bound.entries.size
    check_fit(parts.ndim == 2 and parts.shape[1] == 3, "sums")
    place = [
        checked_places({"law parts": column}, "law parts", (len(parts),), most)
        for column, most in zip(parts.T, (size, n_kinds, n_kinds), strict=True)
    ]
    return BoundResidual(
        log_sds=checked_numbers(arrays, "law log_sds", (n_kinds, width)),
        counts=checked_numbers(arrays, "law counts", (n_kinds,)),
        entries=Entries.nowhere(len(parts)),
        parts=(place[0], place[1], place[2]),
        correlation=bound,
        structure=structure,
    )


def _bound(law: Any, arrays: Stored) -> BoundCorrelation:
    if isinstance(law, OverOccasions):
        return _occasions(law, arrays)
    return _chain(law, arrays) if law.decay in ("ar1", "car1") else _field(law, arrays)


def _chain(law: OverDistance, arrays: Stored) -> BoundChain:
    m, size = len(arrays["law gaps"]), len(arrays["law before"])
    return BoundChain(
        correlation=law,
        gaps=checked_numbers(arrays, "law gaps", (m,)),
        gap_arm=checked_places(arrays, "law gap_arm", (m,), law.n_arms),
        gap_count=checked_numbers(arrays, "law gap_count", (m,)),
        before=checked_places(arrays, "law before", (size,), m),
        after=checked_places(arrays, "law after", (size,), m),
        entries=Entries.nowhere(size + m - 1),
    )


def _occasions(law: OverOccasions, arrays: Stored) -> BoundOccasions:
    n_occasions, subsets, total = law.structure.n_coefs, [], 0
    for o in range(1, n_occasions + 1):
        if f"law {o} arms" not in arrays:
            continue
        count, width = len(arrays[f"law {o} arms"]), o * (o + 1) // 2
        own = Subsets(
            arms=checked_places(arrays, f"law {o} arms", (count,), law.n_arms),
            occasions=checked_places(arrays, f"law {o} occasions", (count, o), n_occasions),
            counts=checked_numbers(arrays, f"law {o} counts", (count,)),
            values=checked_array(arrays, f"law {o} values", (count, width), "i").astype(np.intp),
        )
        subsets.append(own)
        total += own.values.size
    values = np.concatenate([own.values.ravel() for own in subsets] or [np.zeros(0, np.intp)])
    check_fit(np.array_equal(np.sort(values), np.arange(total)), "sums")
    return BoundOccasions(law, tuple(subsets), Entries.nowhere(total))


def _field(law: OverDistance, arrays: Stored) -> BoundField:
    count = len(arrays["law arms"])
    arms = checked_places(arrays, "law arms", (count,), law.n_arms)
    sizes = checked_array(arrays, "law sizes", (count,), "i")
    counts = checked_array(arrays, "law counts of fields", (count,), "i")
    powers = checked_numbers(arrays, "law powers", (int(np.sum(sizes**2)),))
    fields, start, at = [], 0, 0
    for arm, o, number in zip(arms, sizes.tolist(), counts, strict=True):
        width = o * (o + 1) // 2
        power = powers[at : at + o * o].reshape(o, o)
        fields.append(Field(int(arm), power, int(number), slice(start, start + width)))
        start, at = start + width, at + o * o
    return BoundField(law, tuple(fields), Entries.nowhere(start))
