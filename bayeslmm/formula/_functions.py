"""The functions that a formula may call: formulaic's transforms, numpy's and R's by bare name."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from formulaic.materializers import FactorValues
from formulaic.transforms import TRANSFORMS, C
from formulaic.utils.stateful_transforms import stateful_transform

from bayeslmm.formula._columns import whole_numbers
from bayeslmm.formula._splines import natural_spline_basis, place_knots


@stateful_transform
def _ns(
    x: Any,
    df: int | None = None,
    knots: Any = None,
    intercept: bool = False,
    boundary_knots: Any = None,
    _state: dict[str, Any] | None = None,
) -> FactorValues:
    """R's ``ns``: a natural cubic spline basis that remembers its knots."""
    values = np.asarray(x, dtype=float)
    state = {} if _state is None else _state
    if "spline" not in state:
        state["spline"] = place_knots(values, df, knots, boundary_knots, intercept)
    basis = natural_spline_basis(values, state["spline"])
    names = tuple(str(i + 1) for i in range(basis.shape[1]))
    return FactorValues(basis, column_names=names)


def _factor(data: Any, *args: Any, **kwargs: Any) -> FactorValues:
    """R's ``factor``."""
    return C(whole_numbers(data), *args, **kwargs)


CONTEXT: Mapping[str, Any] = {
    **{
        name: getattr(np, name)
        for name in (
            *("abs", "ceil", "cos", "cosh", "exp", "expm1", "floor", "log", "log10", "log1p"),
            *("log2", "pi", "sign", "sin", "sinh", "sqrt", "tan", "tanh"),
        )
    },
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "pmax": np.maximum,
    "pmin": np.minimum,
    "C": _factor,
    "factor": _factor,
    "ns": _ns,
    "TRUE": True,
    "FALSE": False,
}
"""Evaluated before formulaic's own transforms; nothing else is visible to a formula."""

KNOWN: Mapping[str, Any] = {**TRANSFORMS, **CONTEXT}
"""All of them, with names that are no functions."""

FUNCTIONS: tuple[str, ...] = tuple(
    sorted(name for name, value in KNOWN.items() if callable(value) and name != "contr")
)
"""Functions that a formula may call by bare name."""
