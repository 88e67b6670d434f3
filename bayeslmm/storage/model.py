"""A model as plain values and back: priors and design, nothing evaluated or taken for granted."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.scale import Family
from bayeslmm.data.building import build_design, with_scale
from bayeslmm.data.design import Design, Encodings, Spec
from bayeslmm.data.known_covariance import KnownCovariance, covariance_of
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec, residual_spec
from bayeslmm.data.unobserved import Unobserved
from bayeslmm.exceptions import BayesLMMError, PriorError, SamplingError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import Formula, absent_functions, parse, parse_scale
from bayeslmm.formula.rank import row_space
from bayeslmm.formula.residual import parse_residual
from bayeslmm.priors import families
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.families import LKJ, Record
from bayeslmm.priors.fixed import fixed_by_slot, held_by
from bayeslmm.priors.keys import slot_names
from bayeslmm.priors.pymc_priors import PymcPrior
from bayeslmm.priors.record import Priors
from bayeslmm.priors.scale import fits
from bayeslmm.sampling.tree import (
    SAMPLE_DIMS,
    all_factors,
    level_first,
    parameter_dataset,
    parameter_dims,
)
from bayeslmm.schema import u_name
from bayeslmm.storage.checked import (
    check_fit,
    checked_array,
    checked_numbers,
    checked_positions,
    checked_texts,
    checked_weights,
)
from bayeslmm.storage.frames import (
    Arrays,
    Description,
    Stored,
    pack_frame,
    same_frame,
    unpack_frame,
)
from bayeslmm.storage.known_covariance import pack_covariance, unpack_covariance
from bayeslmm.storage.priors import pack_priors, unpack_priors
from bayeslmm.storage.random_factors import (
    pack_relationship,
    stored_factors,
    text_hash,
    unpack_relationship,
)

UNOBSERVED = "unobserved "
"""Before the names of the arrays of rows without a response."""

_log = logging.getLogger(__name__)

ROUNDING = 1e-9
"""Difference, relative to the largest entry of a column, that another processor may cause.

It is far above what elementary functions differ by, and far below any change of knots or coding.
"""


def pack_model(design: Design, priors: Priors) -> tuple[Description, Arrays]:
    """Describe a model completely.

    Parameters
    ----------
    design, priors : Design, Priors
        The model.

    Returns
    -------
    description : dict
        Fit for JSON.
    arrays : dict of str to ndarray
        What is too large for that, among it the arrays that the formula must give again.

    Raises
    ------
    StorageError
        If data or priors have types that cannot be stored.
    """
    arrays: Arrays = {}
    data = pack_frame(design.data, arrays)
    if not same_frame(unpack_frame(data, arrays), design.data):
        raise StorageError(
            "The data have values or an index of types that cannot be stored exactly: convert them "
            "to numbers, text or categories and build the model again."
        )
    arrays["dropped"] = np.asarray(design.dropped)
    arrays["kept"] = np.asarray(design.spec.fixed.kept)
    if design.weights is not None:
        arrays["weights"] = design.weights
    description = {
        "formula": design.formula.source,
        "weights": design.spec.weights,
        "residual": design.spec.residual_source,
        "fixed": {key: fixed_value(value) for key, value in design.spec.known.items()},
        "family": design.spec.family,
        "sigma": None if design.spec.scale is None else design.spec.scale.formula.source,
        "data": data,
        "labels": _labels(design.spec),
        "priors": pack_priors(priors, arrays),
        "relationships": [
            pack_relationship(factor.relationship, f"relationship {i}", arrays)
            for i, factor in enumerate(design.random)
        ],
        "covariance": pack_covariance(design.spec.residual, arrays),
        "unobserved": _pack_unobserved(design.unobserved, arrays),
    }
    return description, arrays | _evaluated_arrays(design)


def _pack_unobserved(kept: Unobserved | None, arrays: Arrays) -> Description | None:
    """Rows to predict, whose arrays have names of their own."""
    if kept is None:
        return None
    own: Arrays = {}
    data = pack_frame(kept.data, own)
    own["rows"] = np.asarray(kept.rows)
    if kept.weights is not None:
        own["weights"] = kept.weights
    arrays |= {f"{UNOBSERVED}{name}": values for name, values in own.items()}
    return data


def _unpack_unobserved(data: Description | None, arrays: Stored) -> Unobserved | None:
    if data is None:
        return None
    own = {
        name.removeprefix(UNOBSERVED): values
        for name, values in arrays.items()
        if name.startswith(UNOBSERVED)
    }
    frame, rows = unpack_frame(data, own), checked_positions(own, "rows")
    check_fit(len(rows) == len(frame), "rows without a response")
    check_fit(bool(np.isin(rows, arrays["dropped"]).all()), "rows without a response")
    return Unobserved(data=frame, weights=checked_weights(own, len(frame)), rows=rows)


def unpack_model(
    description: Description,
    arrays: Mapping[str, NDArray[Any]],
    posterior: xr.Dataset,
    functions: UserFunctions | None = None,
) -> tuple[Design, Priors]:
    """The model that :func:`pack_model` described, without evaluating its formula.

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
    design, priors : Design, Priors

    Raises
    ------
    StorageError
        If the parts do not fit each other, the installed libraries read the formula or find the
        levels otherwise than when it was saved, or make other priors.
    """
    functions = own_functions(functions)
    formula = stored_formula(description["formula"], functions)
    design = stored_design(formula, description, arrays, functions)
    return design, stored_priors(description["priors"], arrays, design, posterior)


def stored_formula(source: str, functions: UserFunctions) -> Formula:
    """The formula of a file, read; raises StorageError if it cannot be or functions are absent."""
    try:
        _check_functions(absent_functions(source, functions))
        return parse(source, functions)
    except BayesLMMError as error:
        raise StorageError(f"The formula of the saved model cannot be read: {error}") from error


def stored_priors(
    description: Description, arrays: Stored, design: Design, posterior: xr.Dataset
) -> Priors:
    """The priors of a file; raises StorageError if they, or the draws, are of another design."""
    labels = labels_of(design.spec)
    held = held_by(labels, design.spec) if _known_of(design) else None
    priors = unpack_priors(description, arrays, labels, held.held if held else ())
    _check_priors(priors, design)
    _check_draws(posterior, design)
    return priors


@dataclass(frozen=True, eq=False, kw_only=True)
class _Evaluation:
    """What the formula of a file gives on its data, evaluated when there are new data."""

    formula: Formula
    functions: UserFunctions
    data: pd.DataFrame
    weights: NDArray[np.float64] | None
    relationships: Mapping[str, Relationship]
    labels: Description
    arrays: Stored
    residual: str | None
    covariances: Mapping[str, KnownCovariance]
    fixed: Mapping[str, Any]

    def __call__(self) -> Encodings:
        return self._encodings

    @cached_property
    def _encodings(self) -> Encodings:
        try:
            found = build_design(
                self.formula,
                self.data,
                weights=self.weights,
                functions=self.functions,
                relationships=self.relationships,
                residual=self.residual,
                covariances=self.covariances,
                fixed=self.fixed,
            )
        except BayesLMMError as error:
            raise StorageError(
                f"The formula of the saved model cannot be evaluated on its data any more: {error}"
            ) from error
        _check_labels(self.labels, _labels(found.spec))
        _check_arrays(self.formula.response, self.arrays, _evaluated_arrays(found))
        assert isinstance(found.spec.encodings, Encodings)
        return found.spec.encodings


def _check_functions(absent: list[str]) -> None:
    if absent:
        given = ", ".join(f"'{name}': {name}" for name in absent)
        raise StorageError(
            f"it calls functions that were given with functions=, of which a file holds the names "
            f"only. Load it with load(path, functions={{{given}}})."
        )


def _labels(spec: Spec) -> Description:
    """Names that draws are tied to."""
    factors = [
        {
            "name": factor.name,
            "key": factor.key,
            "coefs": list(factor.coefs),
            "blocks": [list(block) for block in factor.blocks],
            "kinds": list(factor.kinds),
            "levels": text_hash(factor.levels.tolist()),
            **_strata_labels(factor),
        }
        for factor in spec.random
    ]
    return {
        "response": spec.formula.response,
        "coefs": list(spec.fixed.coefs),
        "coefs_full": list(spec.fixed.coefs_full),
        "aliased": list(spec.fixed.aliased),
        "factors": factors,
    }


def _strata_labels(factor: FactorSpec) -> Description:
    """First coefficient and width of each term with ``by=``; nothing where there is none."""
    if not factor.divided:
        return {}
    found = [
        None if strata is None else [int(strata.places[0, 0]), len(strata.coefs)]
        for strata in factor.strata
    ]
    return {"strata": found}


def _check_labels(saved: Description, found: Description) -> None:
    if saved == found:
        return
    raise StorageError(
        "The installed libraries make other columns or levels of the saved formula and data: the "
        f"fixed effects are {', '.join(found['coefs'])}, and were {', '.join(saved['coefs'])}; "
        f"the random effects are {_shown(found)}, and were {_shown(saved)}. Load it with the "
        "versions it was saved with."
    )


def _shown(labels: Description) -> str:
    return "; ".join(f"{f['name']}: {', '.join(f['coefs'])}" for f in labels["factors"])


# --- arrays ----------------------------------------------------------------------------


def _evaluated_arrays(design: Design) -> Arrays:
    """Arrays that come out of the formula and the data."""
    result: Arrays = {"y": design.y, "offset": design.offset, "X": design.X}
    if design.aliased:
        result["X_full"] = design.X_full
    for i, factor in enumerate(design.random):
        codes = np.concatenate([member.codes for member in factor.members])
        result |= {f"Z {i}": factor.Z, f"codes {i}": codes}
    return result


def _check_arrays(response: str, fitted: Stored, evaluated: Arrays) -> None:
    """Raise StorageError where the formula gives other numbers than those that were fitted."""
    differing = [name for name in evaluated if not np.array_equal(evaluated[name], fitted[name])]
    for name in differing:
        _check_close(response, name, evaluated[name], fitted[name])
    if differing:
        _log.info(
            "the formula gives %s with other last digits on this computer: the model keeps its own",
            ", ".join(differing),
        )


def _check_close(response: str, name: str, found: NDArray[Any], saved: NDArray[Any]) -> None:
    if not name.startswith("codes") and found.shape == saved.shape:
        scale = np.max(np.abs(saved), axis=0, initial=0.0)
        if np.all(np.abs(found - saved) <= ROUNDING * scale):
            return
    what = {"y": f"the response {response}", "X": "the fixed-effects columns"}.get(name)
    what = what or ("the offset" if name == "offset" else "the random-effects columns or levels")
    raise StorageError(
        f"The installed libraries evaluate {what} of the saved formula to other values than when "
        "the model was saved. Load it with the versions it was saved with."
    )


# --- a design out of stored arrays --------------------------------------------------


def stored_design(
    formula: Formula, description: Description, arrays: Stored, functions: UserFunctions
) -> Design:
    """The design of a file; its formula is not evaluated until there are new data.

    Parameters
    ----------
    formula : Formula
        The formula, read.
    description : mapping
        The model.
    arrays : mapping of str to ndarray
        Its arrays.
    functions : mapping of str to callable
        The user's functions that the formula calls.

    Returns
    -------
    Design

    Raises
    ------
    StorageError
        If arrays, labels, data and formula do not fit each other.
    """
    labels, data = description["labels"], unpack_frame(description["data"], arrays)
    n = len(data)
    coefs, full = checked_texts(labels["coefs"]), checked_texts(labels["coefs_full"])
    check_fit(labels["response"] == formula.response, "response")
    kept = checked_array(arrays, "kept", (len(full),), "b")
    X = checked_numbers(arrays, "X", (n, len(coefs)))
    X_full = X if kept.all() else checked_numbers(arrays, "X_full", (n, len(full)))
    fixed = row_space(X_full, full, kept)
    check_fit(
        (fixed.coefs, fixed.aliased) == (coefs, checked_texts(labels["aliased"])), "fixed effects"
    )
    weights = checked_weights(arrays, n)
    column, source = description["weights"], description["residual"]
    matrices = unpack_covariance(description.get("covariance"), arrays)
    residual = _residual(source, data, matrices)
    held = fixed_values(description.get("fixed", {}))
    errors = residual is not None and residual.formula.errors is not None
    known = [unpack_relationship(saved, arrays) for saved in description["relationships"]]
    random = stored_factors(formula, labels["factors"], data, arrays, known)
    evaluation = _Evaluation(
        formula=formula,
        functions=functions,
        data=data,
        weights=None if errors else weights,
        relationships={
            factor.name: factor.relationship for factor in random if factor.relationship is not None
        },
        labels=labels,
        arrays=arrays,
        residual=source,
        covariances=matrices,
        fixed=held,
    )
    design = Design(
        spec=Spec(
            formula=formula,
            functions=functions,
            weights=None if column is None else str(column),
            fixed=fixed,
            random=tuple(factor.spec for factor in random),
            residual=residual,
            known=held,
            encodings=evaluation,
        ),
        y=checked_numbers(arrays, "y", (n,)),
        offset=checked_numbers(arrays, "offset", (n,)),
        weights=weights,
        X=X,
        X_full=X_full,
        random=random,
        residual_rows=None if residual is None else residual.rows(data),
        index=data.index,
        dropped=checked_positions(arrays, "dropped"),
        data=data,
        unobserved=_unpack_unobserved(description.get("unobserved"), arrays),
    )
    return _with_scale(design, description.get("family", "gaussian"), description.get("sigma"))


def _with_scale(design: Design, family: str, source: str | None) -> Design:
    """The design with the family and the predictors of the residual scale that a file names."""
    check_fit(family in get_args(Family), "family")
    functions = design.spec.functions
    try:
        scale = None
        if source is not None:
            _check_functions(absent_functions(source, functions))
            scale = parse_scale(source, functions)
        return with_scale(design, "student" if family == "student" else "gaussian", scale)
    except StorageError:
        raise
    except BayesLMMError as error:
        raise StorageError(
            f"The predictors of sigma of the saved model cannot be had on its data: {error}"
        ) from error


def fixed_value(value: Any) -> Any:
    """A known parameter in JSON; a matrix with labels keeps them."""
    if isinstance(value, pd.DataFrame):
        labels = [str(label) for label in value.columns]
        return {"labels": labels, "values": value.to_numpy(dtype=np.float64).tolist()}
    return np.asarray(value, dtype=np.float64).tolist()


def fixed_values(stored: Any) -> dict[str, Any]:
    """Known parameters from what :func:`fixed_value` made of each."""

    def remade(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        labels = checked_texts(value["labels"])
        return pd.DataFrame(value["values"], index=list(labels), columns=list(labels))

    check_fit(isinstance(stored, dict), "known parameters")
    try:
        return {str(key): remade(value) for key, value in stored.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("The file is damaged: known parameters.") from error


def _residual(
    source: str | None, data: pd.DataFrame, known: Mapping[str, KnownCovariance]
) -> ResidualSpec | None:
    if source is None:
        return None
    try:
        formula = parse_residual(source)
        return residual_spec(formula, data, covariance_of(formula, known))
    except BayesLMMError as error:
        raise StorageError(
            f"The residual structure of the saved model cannot be had on its data: {error}"
        ) from error


# --- checks ----------------------------------------------------------------------------


def _check_priors(priors: Priors, design: Design) -> None:
    """Raise StorageError for priors of another model."""
    p, labels = design.p, labels_of(design.spec)
    check_fit(
        all(getattr(priors, name) == known for name, known in vars(labels).items())
        and priors.fixed_map.shape == (p, p)
        and len(priors.beta) == len(priors.alone) == p
        and priors.beta_mean.shape == (p,)
        and (priors.beta_root is None or priors.beta_root.shape == (p, p))
        and [w.shape for w in priors.mixing] == [2 * (len(coefs),) for coefs in labels.factor_coefs]
        and [len(row) for row in priors.sd] == [s.n_sds for s in labels.structures]
        and [len(row) for row in priors.cor] == [len(row) for row in labels.blocks]
        and len(priors.residuals.sd) == len(labels.residual.scales)
        and len(priors.residuals.power) == len(labels.residual.powers)
        and len(priors.residuals.cor) == len(labels.residual.arms) * (labels.residual.n_cors > 0)
        and _same_known(priors, _known_of(design))
        and fits(priors.scale, labels.scale_labels)
        and set(priors.sources) >= set(priors.records())
        and all(isinstance(r, Record | PymcPrior | LKJ) for r in priors.records().values()),
        "priors",
    )


def _known_of(design: Design) -> dict[str, families.Fixed]:
    """Known parameters by name."""
    labels = labels_of(design.spec)
    try:
        found = fixed_by_slot(labels, design.spec)
    except PriorError as error:
        raise StorageError(f"The known parameters do not fit the model: {error}") from error
    return {slot_names(labels)[slot]: record for slot, record in found.items()}


def _same_known(priors: Priors, known: Mapping[str, families.Fixed]) -> bool:
    """Whether the same parameters are known under the priors, at the same values."""
    own = {n: r for n, r in priors.records().items() if isinstance(r, families.Fixed)}
    return set(own) == set(known) and all(
        len(own[n].z) == len(r.z) and np.allclose(own[n].z, r.z, rtol=1e-9, atol=1e-9)
        for n, r in known.items()
    )


def _check_draws(posterior: xr.Dataset, design: Design) -> None:
    """Raise StorageError for draws of other parameters than those of the model."""
    effects = {u_name(factor.key): factor for factor in all_factors(design)}
    draws = {
        name: (level_first(effects[name], posterior[name]) if name in effects else posterior[name])
        for name in parameter_dims(design)
        if name in posterior.variables
    }
    try:
        arrays = {name: array.to_numpy() for name, array in draws.items()}
        expected = parameter_dataset(design, arrays)
    except SamplingError as error:
        raise StorageError(f"The draws do not fit the model: {error}") from error
    for name, variable in expected.variables.items():
        check_fit(posterior[name].dims == variable.dims, f"draws of {name}")
        if name not in SAMPLE_DIMS and name in expected.coords:
            check_fit(np.array_equal(posterior[name], variable), f"labels of {name}")
    check_fit(min(posterior.sizes[dim] for dim in SAMPLE_DIMS) > 0, "draws")
