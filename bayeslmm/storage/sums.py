"""A model of data beyond memory as plain values and back: sums over the rows, and no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.random_terms import amalgamated
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import sample_columns, sample_encodings, sides_of
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.rank import row_space
from bayeslmm.formula.transforms import NaturalSpline
from bayeslmm.likelihood.crossprod import Basis, Coupling, WorkingProducts
from bayeslmm.likelihood.tied import TiedProducts
from bayeslmm.priors.record import Priors
from bayeslmm.storage.checked import check_fit, checked_numbers
from bayeslmm.storage.factor_sums import pack_factor, stored_factors_of_sums
from bayeslmm.storage.frames import (
    Arrays,
    Description,
    Stored,
    pack_frame,
    same_frame,
    unpack_frame,
)
from bayeslmm.storage.layout import from_plain, to_plain
from bayeslmm.storage.model import fixed_value, fixed_values, stored_formula, stored_priors
from bayeslmm.storage.priors import pack_priors
from bayeslmm.storage.random_factors import (
    moment_arrays,
    stored_moments,
)
from bayeslmm.storage.structured_sums import (
    pack_scaled,
    pack_structure,
    pack_tied,
    unpack_scaled,
    unpack_structure,
    unpack_tied,
)

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
        arrays |= moment_arrays(f"side {i}", summary.sides[side])
        if design.weighted:
            arrays |= moment_arrays(f"weighted {i}", summary.weighted[side])
    _pack_products(design.products, arrays)
    facts = ("words", "n", "n_dropped", "log_weights", "mean_inverse_weight", "mean_offset")
    return {
        SUMS: {name: getattr(summary, name) for name in facts},
        "means": dict(summary.means),
        "ranges": {name: list(ends) for name, ends in summary.ranges.items()},
        "states": _pack_states(summary.states),
        "formula": spec.formula.source,
        "weights": spec.weights,
        "residual": pack_structure(spec.residual, arrays),
        "scaled": pack_scaled(summary.scaled, arrays),
        "fixed": {key: fixed_value(value) for key, value in spec.known.items()},
        "sample": sample,
        "coefs": list(spec.fixed.coefs_full),
        "factors": [
            pack_factor(i, factor, summary, arrays) for i, factor in enumerate(spec.random)
        ],
        "priors": pack_priors(priors, arrays),
    }, arrays


def _pack_products(products: WorkingProducts | TiedProducts, arrays: Arrays) -> None:
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
    residual = unpack_structure(description["residual"], arrays)
    factors, totals = stored_factors_of_sums(formula, description["factors"], arrays)
    summary = replace(_summary(formula, description, residual, arrays), factors=totals)
    kept, names = arrays["kept"], description["coefs"]
    whole = summary.sides[formula.right]
    check_fit(kept.dtype == bool and kept.shape == (len(names),), "fixed effects")
    check_fit(len(whole.centre) == len(names) + 1, "fixed effects")
    spec = Spec(
        formula=formula,
        functions=functions,
        weights=description["weights"],
        fixed=row_space(whole.take(np.append(np.ones(len(names), bool), False)), names, kept),
        random=factors,
        residual=residual,
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


def _summary(
    formula: Formula, description: Description, residual: ResidualSpec | None, arrays: Stored
) -> Summary:
    facts = description[SUMS]
    every = list(enumerate(sides_of(formula)))
    sides = {side: stored_moments(f"side {i}", facts["n"], arrays) for i, side in every}
    weighted = sides
    errors = residual is not None and residual.formula.errors is not None
    if errors or description["weights"] is not None:
        weighted = {side: stored_moments(f"weighted {i}", facts["n"], arrays) for i, side in every}
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
        scaled=unpack_scaled(description["scaled"], sides_of(formula), residual, arrays),
    )


def _products(
    spec: Spec, n: int, log_weights: float, arrays: Stored
) -> WorkingProducts | TiedProducts:
    p, count = len(spec.fixed.coefs), len(spec.random)
    sizes = [(len(factor.levels), len(factor.coefs)) for factor in spec.random]
    basis = Basis(
        fixed=checked_numbers(arrays, "basis", (p, p)),
        shift=checked_numbers(arrays, "shift", (p,)),
        random=tuple(
            checked_numbers(arrays, f"working {i}", (k, k)) for i, (_, k) in enumerate(sizes)
        ),
    )
    if spec.structured:
        return unpack_tied(spec.residual_structure, sizes, n, log_weights, basis, arrays)
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs += [(i, i) for i, factor in enumerate(spec.random) if factor.members is not None]
    couplings = []
    for place, (i, j) in enumerate(pairs):
        name = f"coupling {place}"
        first, second = (arrays[f"{name} {part}"] for part in ("first", "second"))
        blocks = checked_numbers(arrays, f"{name} blocks", (len(first), sizes[i][1], sizes[j][1]))
        inside = (_within(first, sizes[i][0]), _within(second, sizes[j][0]))
        check_fit(all(inside) and len(first) == len(second), "sums")
        couplings.append(Coupling((i, j), first.astype(np.intp), second.astype(np.intp), blocks))
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
        relationships=tuple(factor.relationship for factor in spec.random),
        basis=basis,
    )


def _within(places: NDArray[Any], size: int) -> bool:
    whole = places.ndim == 1 and places.dtype.kind == "i"
    return bool(whole and np.all((places >= 0) & (places < size)))
