"""A model as plain values and back: its formula is evaluated anew and checked column by column."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.design.design import Design, build_design
from bayeslmm.exceptions import BayesLMMError, StorageError
from bayeslmm.formula._functions import UserFunctions, own_functions
from bayeslmm.formula.grammar import absent_functions
from bayeslmm.priors.record import Priors
from bayeslmm.storage._frames import pack_frame, same_frame, unpack_frame
from bayeslmm.storage._priors import pack_priors, unpack_priors

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
    if design.weights is not None:
        arrays["weights"] = design.weights
    description = {
        "formula": design.formula.source,
        "weights": design.recipe.weights,
        "data": data,
        "labels": _labels(design),
        "priors": pack_priors(priors, arrays),
    }
    return description, arrays | _evaluated(design)


def unpack_model(
    description: Description,
    arrays: Mapping[str, NDArray[Any]],
    functions: UserFunctions | None = None,
) -> tuple[Design, Priors]:
    """The model that :func:`pack_model` described, with the user's functions.

    Raises
    ------
    StorageError
        If the installed libraries make other columns of the stored formula and data, or other
        priors.
    """
    functions = own_functions(functions)
    data = unpack_frame(description["data"], arrays)
    weights = arrays.get("weights")
    try:
        _check_functions(absent_functions(description["formula"], functions))
        design = build_design(description["formula"], data, weights=weights, functions=functions)
    except BayesLMMError as error:
        raise StorageError(
            f"The formula of the saved model cannot be evaluated on its data any more: {error}"
        ) from error
    design = replace(
        design,
        dropped=_read_only(arrays["dropped"].astype(np.intp)),
        recipe=replace(design.recipe, weights=description["weights"]),
    )
    _check_labels(description["labels"], _labels(design))
    return _with_arrays(design, arrays), unpack_priors(description["priors"], arrays)


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
            "levels": _text_hash(factor.levels.tolist()),
        }
        for factor in design.random
    ]
    return {"coefs": list(design.coefs), "aliased": list(design.aliased), "factors": factors}


def _text_hash(texts: Sequence[str]) -> str:
    parts = (f"{len(text)}:{text}".encode("utf-8", "surrogatepass") for text in texts)
    return hashlib.sha256(b"".join(parts)).hexdigest()


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


def _evaluated(design: Design) -> Arrays:
    """Arrays that come out of the formula and the data."""
    result: Arrays = {"y": design.y, "offset": design.offset, "X": design.X}
    for i, factor in enumerate(design.random):
        result |= {f"Z {i}": factor.Z, f"codes {i}": factor.codes}
    return result


def _with_arrays(design: Design, arrays: Mapping[str, NDArray[Any]]) -> Design:
    """The design itself where it has the stored arrays, else with them; they must be close."""
    found = _evaluated(design)
    differing = [name for name in found if not _equal(found[name], arrays[name])]
    if not differing:
        return design
    for name in differing:
        _check_close(design, name, found[name], arrays[name])
    _log.info(
        "the formula gives %s with other last digits on this computer: the saved ones are used",
        ", ".join(differing),
    )
    kept = {name: _read_only(np.ascontiguousarray(arrays[name])) for name in differing}
    random = tuple(
        replace(factor, Z=kept.get(f"Z {i}", factor.Z)) for i, factor in enumerate(design.random)
    )
    x = kept.get("X", design.X)
    return replace(
        design,
        y=kept.get("y", design.y),
        offset=kept.get("offset", design.offset),
        X=x,
        X_full=design.X_full if design.aliased else x,
        random=random,
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


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
