"""A model of data beyond memory as plain values and back: sums over the rows, and no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.grouping import factor_of_cells
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.random_terms import amalgamated, factor_spec
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import sample_columns, sample_encodings, sides_of
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, RandomTerm
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import row_space
from bayeslmm.formula.transforms import NaturalSpline
from bayeslmm.likelihood.crossprod import Basis, Coupling, WorkingProducts
from bayeslmm.priors.record import Priors
from bayeslmm.storage.checked import check_fit, checked_numbers
from bayeslmm.storage.frames import (
    Arrays,
    Description,
    Stored,
    pack_frame,
    pack_index,
    same_frame,
    unpack_frame,
    unpack_index,
)
from bayeslmm.storage.layout import from_plain, to_plain
from bayeslmm.storage.model import fixed_value, fixed_values, stored_formula, stored_priors
from bayeslmm.storage.priors import pack_priors
from bayeslmm.storage.random_factors import text_hash

SUMS = "sums"
"""Key by which the description of such a model is known."""

SPLINE = "natural spline"


def pack_sums(design: SummarisedDesign, priors: Priors) -> tuple[Description, Arrays]:
    """Describe a model completely.

    Parameters
    ----------
    design : SummarisedDesign
    priors : Priors

    Returns
    -------
    description : dict
        Fit for JSON.
    arrays : dict of str to ndarray
        The sums.

    Raises
    ------
    StorageError
        If levels or priors have types that cannot be stored.
    """
    spec, summary = design.spec, design.summary
    arrays: Arrays = {"kept": np.asarray(spec.fixed.kept)}
    sample = pack_frame(summary.sample, arrays)
    if not same_frame(unpack_frame(sample, arrays), summary.sample):
        raise StorageError(
            "The data have values of types that cannot be stored exactly: convert them to numbers, "
            "text or categories and build the model again."
        )
    for i, side in enumerate(sides_of(spec.formula)):
        arrays |= _moment_arrays(f"side {i}", summary.sides[side])
        if spec.weights is not None:
            arrays |= _moment_arrays(f"weighted {i}", summary.weighted[side])
    for i, factor in enumerate(spec.random):
        arrays[f"counts {i}"] = summary.counts[factor.key]
    _pack_products(design.products, arrays)
    facts = ("words", "n", "n_dropped", "log_weights", "mean_inverse_weight", "mean_offset")
    return {
        SUMS: {name: getattr(summary, name) for name in facts},
        "means": dict(summary.means),
        "ranges": {name: list(ends) for name, ends in summary.ranges.items()},
        "states": _pack_states(summary.states),
        "formula": spec.formula.source,
        "weights": spec.weights,
        "fixed": {key: fixed_value(value) for key, value in spec.known.items()},
        "sample": sample,
        "coefs": list(spec.fixed.coefs_full),
        "factors": [_pack_factor(i, factor, arrays) for i, factor in enumerate(spec.random)],
        "priors": pack_priors(priors, arrays),
    }, arrays


def _moment_arrays(name: str, moments: Moments) -> Arrays:
    return {f"{name} {f.name}": getattr(moments, f.name) for f in fields(Moments)[1:]}


def _pack_factor(i: int, factor: FactorSpec, arrays: Arrays) -> Description:
    arrays[f"cells {i}"] = np.asarray(factor.cells)
    return {
        "parts": [
            pack_index(part, arrays, f"factor {i} part {j}") for j, part in enumerate(factor.parts)
        ],
        "coefs": list(factor.coefs),
        "blocks": [list(block) for block in factor.blocks],
        "kinds": list(factor.kinds),
        "levels": text_hash(factor.levels.tolist()),
    }


def _pack_products(products: WorkingProducts, arrays: Arrays) -> None:
    basis = products.basis
    arrays |= {"products": products.fixed, "basis": basis.fixed, "shift": basis.shift}
    for i, own in enumerate(zip(products.random, products.mixed, basis.random, strict=True)):
        arrays |= {f"{name} {i}": part for name, part in zip(_PARTS, own, strict=True)}
    for i, found in enumerate(products.couplings):
        for name in ("first", "second", "blocks"):
            arrays[f"coupling {i} {name}"] = getattr(found, name)


_PARTS = ("random", "mixed", "working")


def _pack_states(states: Mapping[str, Any]) -> Any:
    def plain(value: Any) -> Any:
        if isinstance(value, NaturalSpline):
            return {SPLINE: (value.interior, value.boundary, value.intercept)}
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return value

    return to_plain(plain(dict(states)), "What a transform remembers")


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


# --- back ------------------------------------------------------------------------------


def unpack_sums(
    description: Description,
    arrays: Stored,
    posterior: xr.Dataset,
    functions: UserFunctions | None = None,
) -> tuple[SummarisedDesign, Priors]:
    """The model that :func:`pack_sums` described, without evaluating its formula.

    Parameters
    ----------
    description, arrays : dict, mapping of str to ndarray
        The model.
    posterior : xarray.Dataset
        Its draws, which must have its parameters.
    functions : mapping of str to callable, optional
        The user's functions that the formula calls.

    Returns
    -------
    design : SummarisedDesign
    priors : Priors

    Raises
    ------
    StorageError
        If the parts do not fit each other.
    """
    functions = own_functions(functions)
    formula = stored_formula(description["formula"], functions)
    summary = _summary(formula, description, arrays)
    kept, names = arrays["kept"], description["coefs"]
    whole = summary.sides[formula.right]
    check_fit(kept.dtype == bool and kept.shape == (len(names),), "fixed effects")
    check_fit(len(whole.centre) == len(names) + 1, "fixed effects")
    spec = Spec(
        formula=formula,
        functions=functions,
        weights=description["weights"],
        fixed=row_space(whole.take(np.append(np.ones(len(names), bool), False)), names, kept),
        random=_factors(formula, description["factors"], arrays),
        residual=None,
        encodings=_Evaluation(formula, functions, summary, tuple(names)),
        known=fixed_values(description["fixed"]),
    )
    design = SummarisedDesign(
        spec, summary, _products(spec, summary.n, summary.log_weights, arrays)
    )
    return design, stored_priors(description["priors"], arrays, design, posterior)


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """How columns are built in new rows, evaluated on the stored sample when there are some."""

    formula: Formula
    functions: UserFunctions
    summary: Summary
    names: tuple[str, ...]

    def __call__(self) -> Encodings:
        return self._encodings

    @cached_property
    def _encodings(self) -> Encodings:
        given = (self.summary.sample, self.functions, self.summary.states)
        try:
            columns = sample_columns(self.formula, *given)
            found = sample_encodings(self.formula, columns, *given)
        except BayesLMMError as error:
            raise StorageError(
                f"The formula of the saved model cannot be evaluated any more: {error}"
            ) from error
        if columns[self.formula.right].names != self.names:
            raise StorageError(
                "The installed libraries make other columns of the saved formula: "
                f"{', '.join(columns[self.formula.right].names)}, which were "
                f"{', '.join(self.names)}. Load it with the versions it was saved with."
            )
        return found


def _summary(formula: Formula, description: Description, arrays: Stored) -> Summary:
    facts = description[SUMS]
    every = list(enumerate(sides_of(formula)))
    sides = {side: _moments(f"side {i}", facts["n"], arrays) for i, side in every}
    weighted = sides
    if description["weights"] is not None:
        weighted = {side: _moments(f"weighted {i}", facts["n"], arrays) for i, side in every}
    counts = {key: arrays[f"counts {i}"] for i, key in enumerate(amalgamated(formula))}
    return Summary(
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
    )


def _moments(name: str, n: int, arrays: Stored) -> Moments:
    own = {field.name: arrays[f"{name} {field.name}"] for field in fields(Moments)[1:]}
    k = len(own["centre"])
    lengths = [len(own[part]) for part in ("low", "high", "filled")]
    check_fit(own["triangle"].shape[1:] == (k + 1,) and lengths == [k] * 3, "moments")
    return Moments(n=n, **own)


def _factors(
    formula: Formula, stored: Sequence[Description], arrays: Stored
) -> tuple[FactorSpec, ...]:
    groups = amalgamated(formula)
    check_fit(len(groups) == len(stored), "grouping factors")
    pairs = enumerate(zip(groups.items(), stored, strict=True))
    return tuple(_factor(i, key, terms, one, arrays) for i, ((key, terms), one) in pairs)


def _factor(
    i: int, key: str, terms: Sequence[RandomTerm], stored: Description, arrays: Stored
) -> FactorSpec:
    parts = [unpack_index(part, arrays) for part in stored["parts"]]
    cells, names = arrays[f"cells {i}"], terms[0].factors
    right = cells.dtype.kind == "i" and cells.ndim == 2 and cells.shape[1] == len(parts)
    right = right and len(parts) == len(names) and len(cells) > 0 and int(cells.min()) >= 0
    right = right and all(np.max(cells[:, j]) < len(part) for j, part in enumerate(parts))
    check_fit(right, f"levels of {terms[0].group}")
    grouping = factor_of_cells(names, parts, cells.astype(np.intp))
    check_fit(stored["levels"] == text_hash(grouping.levels.tolist()), f"levels of {grouping.name}")
    counts = arrays[f"counts {i}"]
    check_fit(counts.dtype.kind == "i" and counts.shape == grouping.levels.shape, "counts")
    blocks = [tuple(block) for block in stored["blocks"]]
    coefs = [str(coef) for coef in stored["coefs"]]
    places = sorted(place for block in blocks for place in block)
    check_fit(places == [*range(len(coefs))] and len(blocks) == len(stored["kinds"]), "blocks")
    none = [None] * len(terms)
    return factor_spec(grouping, key, terms, coefs, blocks, stored["kinds"], strata=none)


def _products(spec: Spec, n: int, log_weights: float, arrays: Stored) -> WorkingProducts:
    p, count = len(spec.fixed.coefs), len(spec.random)
    sizes = [(len(factor.levels), len(factor.coefs)) for factor in spec.random]
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    couplings = []
    for place, (i, j) in enumerate(pairs):
        name = f"coupling {place}"
        first, second = (arrays[f"{name} {part}"] for part in ("first", "second"))
        blocks = checked_numbers(arrays, f"{name} blocks", (len(first), sizes[i][1], sizes[j][1]))
        inside = (_within(first, sizes[i][0]), _within(second, sizes[j][0]))
        check_fit(all(inside) and len(first) == len(second), "sums")
        couplings.append(Coupling((i, j), first.astype(np.intp), second.astype(np.intp), blocks))
    basis = Basis(
        fixed=checked_numbers(arrays, "basis", (p, p)),
        shift=checked_numbers(arrays, "shift", (p,)),
        random=tuple(
            checked_numbers(arrays, f"working {i}", (k, k)) for i, (_, k) in enumerate(sizes)
        ),
    )
    return WorkingProducts(
        n_obs=n,
        log_weights=log_weights,
        fixed=checked_numbers(arrays, "products", (p + 1, p + 1)),
        random=tuple(
            checked_numbers(arrays, f"random {i}", (j, k, k)) for i, (j, k) in enumerate(sizes)
        ),
        mixed=tuple(
            checked_numbers(arrays, f"mixed {i}", (j, k, p + 1)) for i, (j, k) in enumerate(sizes)
        ),
        couplings=tuple(couplings),
        structures=tuple(structure_of(factor) for factor in spec.random),
        relationships=(None,) * count,
        basis=basis,
    )


def _within(places: NDArray[Any], size: int) -> bool:
    whole = places.ndim == 1 and places.dtype.kind == "i"
    return bool(whole and np.all((places >= 0) & (places < size)))
