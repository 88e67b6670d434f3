"""A design out of stored arrays: nothing is evaluated, and nothing is taken for granted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design, Recipe
from bayeslmm.data.frames import read_only
from bayeslmm.data.grouping import grouping_factor
from bayeslmm.data.inputs import Expression
from bayeslmm.data.random_factors import RandomFactor, random_factor
from bayeslmm.exceptions import SamplingError, StorageError
from bayeslmm.formula.functions import UserFunctions
from bayeslmm.formula.grammar import Formula
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.tree import SAMPLE_DIMS, parameter_dataset
from bayeslmm.sampling.variables import level_first, parameter_dims
from bayeslmm.schema import group_keys, u_name
from bayeslmm.storage.frames import unpack_frame

Arrays = Mapping[str, NDArray[Any]]
Description = Mapping[str, Any]


def stored_design(
    formula: Formula, description: Description, arrays: Arrays, functions: UserFunctions
) -> Design:
    """The design of a file; its recipe is complete but for what evaluating the formula gives.

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
    _check(tuple(np.array(full, dtype=object)[kept]) == coefs, "fixed effects")
    X = _numbers(arrays, "X", (n, len(coefs)))
    return Design(
        formula=formula,
        response=formula.response,
        y=_numbers(arrays, "y", (n,)),
        offset=_numbers(arrays, "offset", (n,)),
        weights=_weights(arrays, n),
        X=X,
        coefs=coefs,
        X_full=X if kept.all() else _numbers(arrays, "X_full", (n, len(full))),
        coefs_full=full,
        aliased=_texts(labels["aliased"]),
        random=_random(formula, labels["factors"], data, arrays),
        index=data.index,
        dropped=_dropped(arrays),
        data=data,
        recipe=Recipe(
            fixed=None,
            kept=kept,
            response=Expression(formula.response, None, functions),
            offsets=(),
            weights=None if description["weights"] is None else str(description["weights"]),
            seen=data,
            functions=functions,
        ),
    )


def _random(
    formula: Formula, labels: Sequence[Description], data: pd.DataFrame, arrays: Arrays
) -> tuple[RandomFactor, ...]:
    groups = {frozenset(term.factors): term for term in reversed(formula.random)}
    terms = [term for term in formula.random if groups[frozenset(term.factors)] is term]
    _check(len(terms) == len(labels), "grouping factors")
    keys = group_keys([term.group for term in terms])
    return tuple(
        _factor(i, terms[i].factors, keys[i], labels[i], data, arrays) for i in range(len(terms))
    )


def _factor(
    i: int,
    factors: Sequence[str],
    key: str,
    labels: Description,
    data: pd.DataFrame,
    arrays: Arrays,
) -> RandomFactor:
    grouping = grouping_factor(data, factors)
    coefs, n = _texts(labels["coefs"]), len(data)
    codes = _array(arrays, f"codes {i}", (n,), "i")
    blocks = tuple(tuple(block) for block in labels["blocks"])
    _check(sorted(place for block in blocks for place in block) == [*range(len(coefs))], "blocks")
    _check((labels["name"], labels["key"]) == (grouping.name, key), "grouping factors")
    _check(
        labels["levels"] == text_hash(grouping.levels.tolist())
        and np.array_equal(codes, grouping.codes),
        f"levels of {grouping.name}",
    )
    z = _numbers(arrays, f"Z {i}", (n, len(coefs)))
    return random_factor(grouping, key, coefs, blocks, z)


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


def _array(arrays: Arrays, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    array = arrays[name]
    _check(array.shape == shape and array.dtype.kind == kind, f"numbers {name}")
    return read_only(array)


def _numbers(arrays: Arrays, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    array = _array(arrays, name, shape, "f")
    _check(array.dtype == np.float64 and bool(np.isfinite(array).all()), f"numbers {name}")
    return array


def _weights(arrays: Arrays, n: int) -> NDArray[np.float64] | None:
    if "weights" not in arrays:
        return None
    weights = _numbers(arrays, "weights", (n,))
    _check(bool((weights > 0.0).all()), "weights")
    return weights


def _dropped(arrays: Arrays) -> NDArray[np.intp]:
    dropped = arrays["dropped"]
    rising = np.all(np.diff(dropped) > 0) and np.all(dropped[:1] >= 0)
    _check(dropped.ndim == 1 and dropped.dtype.kind == "i" and bool(rising), "dropped rows")
    return read_only(dropped.astype(np.intp))


def check_priors(priors: Priors, design: Design) -> None:
    """Raise StorageError for priors of another model."""
    p = design.p
    names = tuple(factor.name for factor in design.random)
    coefs = tuple(factor.coefs for factor in design.random)
    blocks = tuple(factor.blocks for factor in design.random)
    labels = (priors.coefs, priors.factors, priors.factor_coefs, priors.blocks)
    _check(
        labels == (design.coefs, names, coefs, blocks)
        and priors.fixed_map.shape == (p, p)
        and len(priors.beta) == len(priors.alone) == p
        and priors.beta_mean.shape == (p,)
        and (priors.beta_root is None or priors.beta_root.shape == (p, p))
        and [w.shape for w in priors.mixing] == [2 * (len(labels),) for labels in coefs]
        and [len(row) for row in priors.sd] == [len(labels) for labels in coefs]
        and [len(row) for row in priors.cor] == [len(row) for row in blocks]
        and set(priors.sources) >= set(priors.records()),
        "priors",
    )


def check_draws(posterior: xr.Dataset, design: Design) -> None:
    """Raise StorageError for draws of other parameters than those of the model."""
    effects = {u_name(factor.key): factor for factor in design.random}
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
