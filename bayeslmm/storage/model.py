"""A model as plain values and back: priors and design, nothing evaluated or taken for granted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.scale import Family
from bayeslmm.data.design import Design, Encodings, Spec, build_design, with_scale
from bayeslmm.data.frames import read_only
from bayeslmm.data.grouping import GroupingFactor, grouping_factor
from bayeslmm.data.random_factors import (
    FactorSpec,
    RandomFactor,
    amalgamated,
    factor_spec,
    known_rows,
    related_levels,
)
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec, residual_spec
from bayeslmm.data.strata import (
    Strata,
    find_strata,
    plain_labels,
    stratum_coefs,
    term_strata,
)
from bayeslmm.data.unobserved import Unobserved
from bayeslmm.exceptions import BayesLMMError, DataError, PriorError, SamplingError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import (
    Formula,
    RandomTerm,
    absent_functions,
    parse,
    parse_scale,
)
from bayeslmm.formula.rank import row_space
from bayeslmm.formula.residual import parse_residual
from bayeslmm.priors import families
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.families import LKJ, Prior, Record
from bayeslmm.priors.fixed import fixed_by_slot, held_by
from bayeslmm.priors.keys import slot_names
from bayeslmm.priors.pymc_priors import PymcPrior, from_pymc_recipe, pymc_recipe
from bayeslmm.priors.record import Labels, Priors
from bayeslmm.priors.residual import ResidualPriors
from bayeslmm.priors.scale import ScalePriors, fits
from bayeslmm.sampling.tree import (
    SAMPLE_DIMS,
    all_factors,
    level_first,
    parameter_dataset,
    parameter_dims,
)
from bayeslmm.schema import u_name
from bayeslmm.storage.frames import (
    pack_frame,
    pack_index,
    same_frame,
    unpack_frame,
    unpack_index,
)
from bayeslmm.storage.layout import from_plain, to_plain

Arrays = dict[str, NDArray[Any]]
Stored = Mapping[str, NDArray[Any]]
Description = dict[str, Any]

_FAMILIES: dict[str, Any] = {
    "LKJ": LKJ,
    **{name: getattr(families, name) for name in ("Flat", "HalfFlat", "Normal", "HalfNormal")},
    **{name: getattr(families, name) for name in ("HalfStudentT", "HalfCauchy", "Exponential")},
    **{name: getattr(families, name) for name in ("Gamma", "InverseGamma", "LogNormal", "Uniform")},
}

RESIDUAL_PRIORS = ("sd", "power", "cor")

UNOBSERVED = "unobserved "
"""Before the names of the arrays of rows without a response."""

DERIVED = ("residual", "scale_labels", "held")
"""Fields of priors that follow from the model."""

PROBES = np.concatenate([-np.logspace(4, -4, 9), np.logspace(-4, 4, 9)])
"""Points at which the density of a prior remade by PyMC must be what it was."""

DENSITY_TOLERANCE = 1e-9
"""Relative difference of log densities that other versions of the libraries may cause."""

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
            _pack_relationship(factor.relationship, f"relationship {i}", arrays)
            for i, factor in enumerate(design.random)
        ],
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
    frame, rows = unpack_frame(data, own), _positions(own, "rows")
    _check(len(rows) == len(frame), "rows without a response")
    _check(bool(np.isin(rows, arrays["dropped"]).all()), "rows without a response")
    return Unobserved(data=frame, weights=_weights(own, len(frame)), rows=rows)


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
    try:
        _check_functions(absent_functions(description["formula"], functions))
        formula = parse(description["formula"], functions)
    except BayesLMMError as error:
        raise StorageError(f"The formula of the saved model cannot be read: {error}") from error
    design = stored_design(formula, description, arrays, functions)
    labels = labels_of(design.spec)
    held = held_by(labels, design.spec) if _known_of(design) else None
    priors = unpack_priors(description["priors"], arrays, labels, held.held if held else ())
    check_priors(priors, design)
    check_draws(posterior, design)
    return design, priors


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
        result |= {f"Z {i}": factor.Z, f"codes {i}": factor.codes}
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
    coefs, full = _texts(labels["coefs"]), _texts(labels["coefs_full"])
    _check(labels["response"] == formula.response, "response")
    kept = _array(arrays, "kept", (len(full),), "b")
    X = _numbers(arrays, "X", (n, len(coefs)))
    X_full = X if kept.all() else _numbers(arrays, "X_full", (n, len(full)))
    fixed = row_space(X_full, full, kept)
    _check((fixed.coefs, fixed.aliased) == (coefs, _texts(labels["aliased"])), "fixed effects")
    weights = _weights(arrays, n)
    column, source = description["weights"], description["residual"]
    residual = _residual(source, data)
    held = fixed_values(description.get("fixed", {}))
    errors = residual is not None and residual.formula.errors is not None
    known = [_relationship(saved, arrays) for saved in description["relationships"]]
    random = _random(formula, labels["factors"], data, arrays, known)
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
        y=_numbers(arrays, "y", (n,)),
        offset=_numbers(arrays, "offset", (n,)),
        weights=weights,
        X=X,
        X_full=X_full,
        random=random,
        residual_rows=None if residual is None else residual.rows(data),
        index=data.index,
        dropped=_positions(arrays, "dropped"),
        data=data,
        unobserved=_unpack_unobserved(description.get("unobserved"), arrays),
    )
    return _with_scale(design, description.get("family", "gaussian"), description.get("sigma"))


def _with_scale(design: Design, family: str, source: str | None) -> Design:
    """The design with the family and the predictors of the residual scale that a file names."""
    _check(family in get_args(Family), "family")
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
        labels = _texts(value["labels"])
        return pd.DataFrame(value["values"], index=list(labels), columns=list(labels))

    _check(isinstance(stored, dict), "known parameters")
    try:
        return {str(key): remade(value) for key, value in stored.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError("The file is damaged: known parameters.") from error


def _residual(source: str | None, data: pd.DataFrame) -> ResidualSpec | None:
    if source is None:
        return None
    try:
        return residual_spec(parse_residual(source), data)
    except BayesLMMError as error:
        raise StorageError(
            f"The residual structure of the saved model cannot be had on its data: {error}"
        ) from error


def _random(
    formula: Formula,
    labels: Sequence[Description],
    data: pd.DataFrame,
    arrays: Stored,
    known: Sequence[Relationship | None],
) -> tuple[RandomFactor, ...]:
    groups = amalgamated(formula)
    _check(len(groups) == len(labels) == len(known), "grouping factors")
    return tuple(
        _factor(i, key, formula, groups[key], labels[i], data, arrays, known[i])
        for i, key in enumerate(groups)
    )


def _factor(
    i: int,
    key: str,
    formula: Formula,
    terms: Sequence[RandomTerm],
    labels: Description,
    data: pd.DataFrame,
    arrays: Stored,
    known: Relationship | None,
) -> RandomFactor:
    found, grouping = grouping_factor(data, terms[0].factors)
    if known is not None:
        _check(len(grouping.factors) == 1, "relationships")
        try:
            found, grouping, known = related_levels(found, grouping, known)
        except DataError as error:
            raise StorageError(f"The saved model cannot be used: {error}") from error
    coefs, n = _texts(labels["coefs"]), len(data)
    codes = _array(arrays, f"codes {i}", (n,), "i")
    blocks = tuple(tuple(block) for block in labels["blocks"])
    _check(sorted(place for block in blocks for place in block) == [*range(len(coefs))], "blocks")
    _check((labels["name"], labels["key"]) == (grouping.name, key), "grouping factors")
    _check(
        labels["levels"] == text_hash(grouping.levels.tolist()) and np.array_equal(codes, found),
        f"levels of {grouping.name}",
    )
    kinds = [str(kind) for kind in labels["kinds"]]
    _check(
        len(kinds) == len(blocks)
        and all(kind == "us" or len(b) > 1 for kind, b in zip(kinds, blocks, strict=True))
        and list(dict.fromkeys(kinds)) == list(dict.fromkeys(t.structure for t in terms)),
        "covariance structures",
    )
    z = _numbers(arrays, f"Z {i}", (n, len(coefs)))
    strata = _strata(formula, terms, labels, coefs, data, found, grouping)
    spec = factor_spec(grouping, key, terms, coefs, blocks, kinds, known, strata)
    return known_rows(spec, found, z)


def _strata(
    formula: Formula,
    terms: Sequence[RandomTerm],
    labels: Description,
    coefs: tuple[str, ...],
    data: pd.DataFrame,
    codes: NDArray[np.intp],
    grouping: GroupingFactor,
) -> list[Strata | None]:
    """Strata of the terms with ``by=``, found again in the data."""
    saved = labels.get("strata", [None] * len(terms))
    same = len(saved) == len(terms)
    what = f"strata of {grouping.name}"
    _check(
        same and all((s is None) == (t.by is None) for s, t in zip(saved, terms, strict=True)),
        what,
    )
    result: list[Strata | None] = []
    for place, term in zip(saved, terms, strict=True):
        strata = None
        if place is not None:
            start, width = (int(value) for value in place)
            _check(start >= 0 and width > 0, what)
            try:
                _, of, of_level = find_strata(formula.source, term, data, codes, grouping)
            except BayesLMMError as error:
                raise StorageError(f"The saved model cannot be used: {error}") from error
            names = plain_labels(coefs[start : start + width], of)
            strata = term_strata(of, of_level, names, start)
            stop = start + strata.places.size
            _check(list(coefs[start:stop]) == stratum_coefs(names, of), what)
        result.append(strata)
    return result


def _pack_relationship(known: Relationship | None, name: str, arrays: Arrays) -> Description | None:
    if known is None:
        return None
    labels = pack_index(known.labels, arrays, f"{name} labels")
    if sp.issparse(known.matrix):
        parts = {part: getattr(known.matrix, part) for part in ("data", "indices", "indptr")}
        arrays |= {f"{name} {part}": np.asarray(values) for part, values in parts.items()}
    else:
        arrays[name] = known.matrix
    return {"name": name, "kind": known.kind, "labels": labels, "sparse": sp.issparse(known.matrix)}


def _relationship(saved: Description | None, arrays: Stored) -> Relationship | None:
    if saved is None:
        return None
    name, labels = saved["name"], unpack_index(saved["labels"], arrays)
    try:
        if saved["sparse"]:
            parts = tuple(arrays[f"{name} {part}"] for part in ("data", "indices", "indptr"))
            matrix: Any = sp.csc_array(parts, shape=(len(labels), len(labels)))
            matrix.check_format(full_check=True)
        else:
            matrix = arrays[name]
        return Relationship(matrix, labels, saved["kind"])
    except (ValueError, TypeError, IndexError) as error:
        raise StorageError(f"The relationships of the saved model are damaged: {error}") from error


def text_hash(texts: Sequence[str]) -> str:
    """SHA-256 of labels."""
    parts = (f"{len(text)}:{text}".encode("utf-8", "surrogatepass") for text in texts)
    return hashlib.sha256(b"".join(parts)).hexdigest()


# --- checks ----------------------------------------------------------------------------


def _check(right: bool, what: str) -> None:
    if not right:
        raise StorageError(
            f"The {what} of the saved model do not fit its formula and data: the file was not "
            "written by Posterior.save, or the installed libraries read it otherwise. Load it "
            "with the versions it was saved with."
        )


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    _check(len(set(values)) == len(values) and all(isinstance(v, str) for v in values), "labels")
    return tuple(values)


def _array(arrays: Stored, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    array = arrays[name]
    _check(array.shape == shape and array.dtype.kind == kind, f"numbers {name}")
    return read_only(array)


def _numbers(arrays: Stored, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _array(arrays, name, shape, "f")
    _check(array.dtype == np.float64 and bool(np.isfinite(array).all()), f"numbers {name}")
    return array


def _weights(arrays: Stored, n: int) -> NDArray[np.float64] | None:
    if "weights" not in arrays:
        return None
    weights = _numbers(arrays, "weights", (n,))
    _check(bool((weights > 0.0).all()), "weights")
    return weights


def _positions(arrays: Stored, name: str) -> NDArray[np.intp]:
    rows = arrays[name]
    rising = np.all(np.diff(rows) > 0) and np.all(rows[:1] >= 0)
    _check(rows.ndim == 1 and rows.dtype.kind == "i" and bool(rising), "dropped rows")
    return read_only(rows.astype(np.intp))


def check_priors(priors: Priors, design: Design) -> None:
    """Raise StorageError for priors of another model."""
    p, labels = design.p, labels_of(design.spec)
    _check(
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


def check_draws(posterior: xr.Dataset, design: Design) -> None:
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
        _check(posterior[name].dims == variable.dims, f"draws of {name}")
        if name not in SAMPLE_DIMS and name in expected.coords:
            _check(np.array_equal(posterior[name], variable), f"labels of {name}")
    _check(min(posterior.sizes[dim] for dim in SAMPLE_DIMS) > 0, "draws")


# --- priors ----------------------------------------------------------------------------


def pack_priors(priors: Priors, arrays: Arrays) -> Description:
    """Describe the priors of a model.

    Parameters
    ----------
    priors : Priors
        The priors.
    arrays : dict
        Where the matrices go.

    Returns
    -------
    dict
        What :func:`unpack_priors` needs besides the arrays; fit for JSON.

    Raises
    ------
    StorageError
        If a prior is more than a family with numbers for parameters.
    """
    names = iter(priors.records())

    def packed(value: Any, name: str) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, np.ndarray):
            arrays[f"prior {name}"] = value
            return {"array": name}
        if isinstance(value, tuple):
            return [packed(item, f"{name} {i}") for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {"mapping": dict(value)}
        if isinstance(value, ScalePriors):
            return {"scale": [packed(part, f"{name} {i}") for i, part in enumerate(_parts(value))]}
        if isinstance(value, ResidualPriors):
            return [packed(getattr(value, kind), f"{name} {kind}") for kind in RESIDUAL_PRIORS]
        return _record(value, next(names))

    stored = [field.name for field in fields(Priors) if field.name not in DERIVED]
    return {name: packed(getattr(priors, name), name) for name in stored}


def unpack_priors(
    description: Description,
    arrays: Mapping[str, NDArray[Any]],
    labels: Labels,
    held: tuple[tuple[int, float], ...] = (),
) -> Priors:
    """The priors that :func:`pack_priors` described, of a model with these names.

    `held` are the known coordinates of the model.

    Raises
    ------
    StorageError
        If a family is unknown, or PyMC no longer makes the prior that was stored.
    """

    def unpacked(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(map(unpacked, value))
        if not isinstance(value, dict):
            return value
        if "array" in value:
            return arrays[f"prior {value['array']}"]
        if "scale" in value:
            names = (field.name for field in fields(ScalePriors))
            return ScalePriors(**dict(zip(names, unpacked(value["scale"]), strict=True)))
        return value["mapping"] if "mapping" in value else _remade(value)

    names = [field.name for field in fields(Priors) if field.name not in DERIVED]
    older = {"strata"} - description.keys()  # files of models without by=
    values = {name: unpacked(description[name]) for name in names if name not in older}
    own = dict(zip(RESIDUAL_PRIORS, values.pop("residuals"), strict=True))
    residuals = ResidualPriors(structure=labels.residual, **own)
    return Priors(
        **values,
        residual=labels.residual,
        scale_labels=labels.scale_labels,
        residuals=residuals,
        held=held,
    )


def _parts(priors: ScalePriors) -> list[Any]:
    return [getattr(priors, field.name) for field in fields(ScalePriors)]


def _record(prior: Prior | LKJ, name: str) -> Description:
    if isinstance(prior, PymcPrior):
        return _pymc_record(prior, name)
    if isinstance(prior, families.Fixed):
        known = {key: value for key, value in prior.parameters().items() if np.isfinite(value)}
        return {"name": name, "family": "Fixed", "parameters": known}
    family = type(prior).__name__
    if not isinstance(prior, Record) or type(prior) is not _FAMILIES.get(family):
        raise StorageError(
            f"The prior for {name!r} is of type {family}, which is not one of this package or of "
            "PyMC, so it cannot be stored. Give a PyMC distribution with numbers for parameters, "
            "such as pm.Gamma.dist(2, 0.1), or save post.data, the draws, alone."
        )
    parameters = {key: float(value) for key, value in prior.parameters().items()}
    return {"name": name, "family": family, "parameters": parameters}


def _pymc_record(prior: PymcPrior, name: str) -> Description:
    recipe = pymc_recipe(prior)
    if recipe is None:
        raise StorageError(
            f"The prior for {name!r}, {prior}, cannot be stored: a file has the families of PyMC "
            "with numbers for parameters, not code, mixtures or truncations in general. Give such "
            "a family, or save post.data, the draws, alone."
        )
    family, values = recipe
    typed = [to_plain(value, f"The prior for {name!r}") for value in values]
    density = [float(value) for value in prior.logpdf(PROBES)]
    return {"name": name, "pymc": family, "values": typed, "density": density}


def _remade(item: Description) -> Any:
    name = item["name"]
    if "pymc" in item:
        return _remade_by_pymc(item, name)
    if item["family"] == "Fixed":
        return families.Fixed.of(item["parameters"])
    if item["family"] not in _FAMILIES:
        raise StorageError(f"The prior for {name!r} is of the unknown family {item['family']!r}.")
    return _FAMILIES[item["family"]](**item["parameters"])


def _remade_by_pymc(item: Description, name: str) -> Any:
    values = [from_plain(value) for value in item["values"]]
    try:
        prior = from_pymc_recipe(item["pymc"], values, name)
    except PriorError as error:
        raise StorageError(str(error)) from error
    density = np.array(item["density"])
    found = prior.logpdf(PROBES)
    if not np.allclose(found, density, rtol=DENSITY_TOLERANCE, atol=0.0, equal_nan=True):
        raise StorageError(
            f"The prior for {name!r}, {prior}, has another density than when it was saved: the "
            f"installed PyMC takes the parameters of {item['pymc']} otherwise."
        )
    return prior
