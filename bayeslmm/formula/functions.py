"""The functions that a formula may call, behind the names in `_signatures.py`."""

import keyword
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from formulaic.materializers import FactorValues
from formulaic.transforms import TRANSFORMS, C, ContrastsRegistry
from formulaic.utils.stateful_transforms import stateful_transform

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula import signatures as _signatures
from bayeslmm.formula.columns import whole_numbers
from bayeslmm.formula.splines import natural_spline_basis, place_knots

__all__ = ["FactorValues", "own_functions"]

UserFunctions = Mapping[str, Callable[..., Any]]


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


def _exp10(x: Any) -> Any:
    return np.power(10.0, x)


_RENAMED: Mapping[str, Callable[..., Any]] = {
    "C": _factor,
    "I": lambda x: x,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "exp10": _exp10,  # formulaic's is the tenth power
    "factor": _factor,
    "ns": _ns,
    "pmax": np.maximum,
    "pmin": np.minimum,
}


def _found(name: str) -> Callable[..., Any]:
    function = _RENAMED.get(name) or TRANSFORMS.get(name) or getattr(np, name)
    return function


CALLS: Mapping[str, tuple[Callable[..., Any], int]] = {
    **{name: (_found(name), s.values) for name, s in _signatures.FUNCTIONS.items() if s.values},
    **{f"np.{name}": (getattr(np, name), s.values) for name, s in _signatures.NUMPY.items()},
}
"""Each function with the number of its arguments that are computed from columns."""

AS_GIVEN = frozenset({"C", "I", "factor", "hashed", "lag", "np.where"})
"""Functions that take columns as they are; the others get numbers in double precision."""

CONSTANTS: Mapping[str, Any] = {
    "FALSE": False,
    "TRUE": True,
    "np.e": np.e,
    "np.pi": np.pi,
    "pi": np.pi,
}

CONTRASTS: Mapping[str, Callable[..., Any]] = {
    name: TRANSFORMS[name] if "." not in name else getattr(ContrastsRegistry, name[6:])
    for name in _signatures.CONTRASTS
}

FUNCTIONS: tuple[str, ...] = tuple(sorted(_signatures.FUNCTIONS))
"""Functions that a formula may call by bare name."""

STATEFUL = frozenset(
    name
    for name, (function, _) in CALLS.items()
    if getattr(function, "__is_stateful_transform__", False)
)
"""Those that remember the rows they were fitted to."""


def own_functions(functions: Any) -> dict[str, Callable[..., Any]]:
    """Check the functions that a user gives, and copy them.

    Parameters
    ----------
    functions : mapping of str to callable, or None
        By the names that the formula calls them.

    Returns
    -------
    dict

    Raises
    ------
    FormulaError
        If a name is no identifier or has a meaning in formulas, or a value cannot be called.
    """
    if functions is None:
        return {}
    if not isinstance(functions, Mapping):
        raise FormulaError(
            "functions= is a dict from names to functions, such as {'f': f}, got "
            f"{type(functions).__name__}."
        )
    taken = {*FUNCTIONS, *CONSTANTS, *CONTRASTS, "contr", "np", "offset"}
    for name, function in functions.items():
        if not (isinstance(name, str) and name.isidentifier()) or keyword.iskeyword(name):
            raise FormulaError(f"functions={{{name!r}: ...}}: a name such as 'f' is expected.")
        if name in taken or name.startswith("__"):
            raise FormulaError(
                f"functions={{{name!r}: ...}}: `{name}` has a meaning in formulas already; choose "
                "another name."
            )
        if not callable(function):
            raise FormulaError(
                f"functions={{{name!r}: ...}}: a function is expected, got "
                f"{type(function).__name__}."
            )
    return dict(functions)
