"""A model as plain values and back; its formula is evaluated when there are new data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design, build_design
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula.evaluation import UserFunctions, own_functions
from bayeslmm.formula.grammar import absent_functions, parse
from bayeslmm.priors.record import Priors
from bayeslmm.storage.design import check_draws, check_priors, stored_design, text_hash
from bayeslmm.storage.frames import pack_frame, same_frame, unpack_frame
from bayeslmm.storage.priors import pack_priors, unpack_priors

_log = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]
Description = dict[str, Any]

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
    arrays["kept"] = np.asarray(design.recipe.kept)
    if design.weights is not None:
        arrays["weights"] = design.weights
    description = {
        "formula": design.formula.source,
        "weights": design.recipe.weights,
        "data": data,
        "labels": _labels(design),
        "priors": pack_priors(priors, arrays),
    }
    return description, arrays | _evaluated_arrays(design)


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
    priors = unpack_priors(description["priors"], arrays)
    check_priors(priors, design)
    check_draws(posterior, design)
    return replace(design, evaluated=_Evaluation(design)), priors


class _Evaluation:
    """The design of a file with what the formula gives on its data, evaluated once."""

    def __init__(self, design: Design) -> None:
        self._stored = design

    def __call__(self) -> Design:
        return self._design

    @cached_property
    def _design(self) -> Design:
        stored = self._stored
        try:
            found = build_design(
                stored.formula,
                stored.data,
                weights=stored.weights,
                functions=stored.recipe.functions,
            )
        except BayesLMMError as error:
            raise StorageError(
                f"The formula of the saved model cannot be evaluated on its data any more: {error}"
            ) from error
        _check_labels(_labels(stored), _labels(found))
        _check_arrays(stored, found)
        recipe = replace(found.recipe, weights=stored.recipe.weights)
        pairs = zip(stored.random, found.random, strict=True)
        random = tuple(replace(factor, specs=other.specs) for factor, other in pairs)
        return replace(stored, recipe=recipe, random=random)


def _check_functions(absent: list[str]) -> None:
    if absent:
        given = ", ".join(f"'{name}': {name}" for name in absent)
        raise StorageError(
            f"it calls functions that were given with functions=, of which a file holds the names "
            f"only. Load it with load(path, functions={{{given}}})."
        )


def _labels(design: Design) -> Description:
    """Names that draws are tied to."""
    factors = [
        {
            "name": factor.name,
            "key": factor.key,
            "coefs": list(factor.coefs),
            "blocks": [list(block) for block in factor.blocks],
            "levels": text_hash(factor.levels.tolist()),
        }
        for factor in design.random
    ]
    return {
        "response": design.response,
        "coefs": list(design.coefs),
        "coefs_full": list(design.coefs_full),
        "aliased": list(design.aliased),
        "factors": factors,
    }


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


def _check_arrays(stored: Design, found: Design) -> None:
    """Raise StorageError where the formula gives other numbers than those that were fitted."""
    fitted, evaluated = _evaluated_arrays(stored), _evaluated_arrays(found)
    differing = [name for name in fitted if not _equal(evaluated[name], fitted[name])]
    for name in differing:
        _check_close(stored, name, evaluated[name], fitted[name])
    if differing:
        _log.info(
            "the formula gives %s with other last digits on this computer: the model keeps its own",
            ", ".join(differing),
        )


def _equal(one: NDArray[Any], two: NDArray[Any]) -> bool:
    return one.shape == two.shape and bool(np.array_equal(one, two))


def _check_close(design: Design, name: str, found: NDArray[Any], saved: NDArray[Any]) -> None:
    if not name.startswith("codes") and found.shape == saved.shape:
        scale = np.max(np.abs(saved), axis=0, initial=0.0)
        if np.all(np.abs(found - saved) <= ROUNDING * scale):
            return
    what = {"y": f"the response {design.response}", "X": "the fixed-effects columns"}.get(name)
    what = what or ("the offset" if name == "offset" else "the random-effects columns or levels")
    raise StorageError(
        f"The installed libraries evaluate {what} of the saved formula to other values than when "
        "the model was saved. Load it with the versions it was saved with."
    )
