"""What transforms of whole columns remember, found out batch by batch.

A transform inside another is known before the other can be, so that each depth takes one pass.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables, call_parts
from bayeslmm.formula.expressions import STATEFUL, Reading
from bayeslmm.formula.moments import Moments

Array = NDArray[np.float64]
Options = Mapping[str, Any]

QUANTILES = (
    "`{call}` puts knots at quantiles of the whole column, which data beyond memory do not give. "
    "Name the knots, as in {name}({argument}, knots=[...])."
)


type Found = Mapping[str, tuple[dict[str, Any], Moments | None]]
"""Options and moments of transforms in some rows, by the text of their calls."""


def both_found(one: Found, two: Found) -> Found:
    """What two sets of rows have together."""
    found = dict(one)
    for text, (options, more) in two.items():
        known = found.get(text, (options, None))[1]
        found[text] = options, more if known is None or more is None else known + more
    return found


class Memory:
    """States of the transforms of a formula, by the text of their calls.

    Parameters
    ----------
    readings : iterable of Reading
        The expressions of the formula.
    functions : mapping of str to callable
        The user's.
    known : mapping of str to object, optional
        States that are known before.

    Attributes
    ----------
    states : dict
        Those that are known.
    units : dict
        Centre and spread of the columns of poly() by which its powers are about one, from the first
        rows where they are not given.

    Raises
    ------
    DataError
        If a function needs more than moments of whole columns.
    """

    def __init__(
        self,
        readings: Iterable[Reading],
        functions: UserFunctions,
        known: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.states: dict[str, Any] = dict(known)
        self._functions = functions
        self._open: dict[str, ast.Call] = {}
        self._found: dict[str, Moments] = {}
        self._options: dict[str, dict[str, Any]] = {}
        self.units: dict[str, tuple[float, float]] = {}
        for reading in readings:
            _refuse(reading, functions)
            self._open |= {ast.unparse(call): call for call in _calls(reading.tree)}
        self._open = {text: call for text, call in self._open.items() if text not in known}

    @property
    def complete(self) -> bool:
        """Whether all states are known."""
        return not self._open

    @property
    def found(self) -> Found:
        """What the rows of this pass have so far."""
        return {text: (options, self._found.get(text)) for text, options in self._options.items()}

    def take(self, found: Found) -> None:
        """Take in what other rows have, whose units must be these."""
        both = both_found(self.found, found)
        self._options = {text: options for text, (options, _) in both.items()}
        self._found = {text: own for text, (_, own) in both.items() if own is not None}

    def add(self, columns: Variables) -> None:
        """Take in the rows of a batch."""
        for text in self._next():
            x, options = call_parts(self._open[text], columns, self._functions, self.states)
            self._options[text] = options
            values = np.asarray(x, dtype=np.float64)
            if _name(self._open[text]) == "poly":
                if options.get("raw"):
                    continue
                values = self._powers(text, values, options)
            values = values if values.ndim == 2 else values[:, None]
            known = self._found.get(text)
            more = Moments.of(values, centre=None if known is None else known.centre)
            self._found[text] = more if known is None else known + more

    def close(self) -> None:
        """End a pass over all rows."""
        for text in self._next():
            call = self._open.pop(text)
            found, options = self._found.pop(text, None), self._options.pop(text)
            if found is None:
                self.states[text] = {}
                continue
            if _name(call) == "poly":
                self.states[text] = _poly(found, *self.units.pop(text))
            else:
                self.states[text] = _STATES[_name(call)](found, options, call)

    def _next(self) -> list[str]:
        """Calls without an unknown one inside."""
        return [
            text
            for text, call in self._open.items()
            if not any(ast.unparse(inner) in self._open for inner in _calls(call.args[0]))
        ]

    def _powers(self, text: str, x: Array, options: Options) -> Array:
        """Powers of x in units in which it is about one."""
        if text not in self.units:
            spread = float(np.ptp(x)) / 2.0
            self.units[text] = float(x.min()) + spread, spread or 1.0
        centre, spread = self.units[text]
        degrees = np.arange(1, int(options.get("degree", 1)) + 1)
        return np.asarray(((x - centre) / spread)[:, None] ** degrees)


def _refuse(reading: Reading, functions: UserFunctions) -> None:
    for name in reading.functions:
        if name in ("cc", "cr", "cs"):
            raise DataError(
                f"{name}() puts knots at quantiles of the whole column, which data beyond memory "
                "do not give. Use ns(x, knots=[...]) or bs(x, knots=[...])."
            )
        if name == "lag":
            raise DataError(
                "lag() takes the value of another row, which may be in another batch of data "
                "beyond memory. Make a column of it in the data."
            )
        if getattr(functions.get(name), "__is_stateful_transform__", False):
            raise DataError(
                f"{name}() remembers whole columns, which data beyond memory do not give. Use a "
                "function of each row by itself."
            )


def _calls(tree: ast.expr) -> list[ast.Call]:
    """Calls of functions that remember the rows they were fitted to."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    return [node for node in found if ast.unparse(node.func) in STATEFUL]


def _name(call: ast.Call) -> str:
    return ast.unparse(call.func)


# --- states by function --------------------------------------------------------------------


def _scale(found: Moments, options: Options, call: ast.Call) -> dict[str, Any]:
    """Of center(), scale() and standardize()."""
    name, plain = _name(call), len(found.centre) == 1
    centre = options.get("center", True)
    scale = name != "center" and options.get("rescale" if name == "standardize" else "scale", True)
    ddof = options.get("ddof", 0 if name == "standardize" else 1)
    shift: Any = None
    if isinstance(centre, bool):
        shift = found.means if centre else None
    else:
        shift = np.broadcast_to(np.asarray(centre, dtype=float), found.means.shape)
    away = 0.0 if shift is None else shift
    squares = np.sum(found.centred**2, axis=0) + found.n * (found.means - away) ** 2
    spread: Any = None
    if isinstance(scale, bool):
        spread = np.sqrt(squares / (found.n - ddof)) if scale else None
    else:
        spread = np.array(scale)
    if plain:
        shift = None if shift is None else shift[0]
        spread = spread[0] if np.ndim(spread) else spread
    return {"ddof": ddof, "center": shift, "scale": spread}


def _poly(found: Moments, centre: float, spread: float) -> dict[str, Any]:
    """Three-term recurrence of orthogonal polynomials, from the triangle of the powers."""
    k = len(found.centre)
    back = np.eye(k + 1)
    back[0, 1:] = found.centre
    triangle = np.zeros((k + 1, k + 1))
    triangle[: len(found.triangle)] = found.triangle @ back
    if np.any(np.diag(triangle) == 0.0):
        raise DataError(f"poly() of degree {k} needs more than {k} different values of its column.")
    ratios = np.diag(triangle, 1) / np.diag(triangle)[:-1]
    alpha = centre + spread * np.diff(ratios, prepend=0.0)
    norms = np.diag(triangle) ** 2 * spread ** (2 * np.arange(k + 1))
    return {"alpha": dict(enumerate(alpha)), "norms2": dict(enumerate(norms))}


def _bs(found: Moments, options: Options, call: ast.Call) -> dict[str, Any]:
    from bayeslmm.formula.transforms import TRANSFORMS

    options = dict(options)
    df, degree = options.pop("df", None), options.get("degree", 3)
    if df is not None and options.get("knots") is not None:
        raise DataError(f"`{ast.unparse(call)}`: give df or knots, not both.")
    if df is not None and df != degree + bool(options.get("include_intercept", False)):
        raise _quantiles(call)
    state: dict[str, Any] = {}
    ends = np.array([found.low[0], found.high[0]])
    try:
        TRANSFORMS["bs"](ends, **options, _state=state)
    except ValueError as error:
        raise DataError(f"`{ast.unparse(call)}` cannot be evaluated: {error}") from error
    return state


def _ns(found: Moments, options: Options, call: ast.Call) -> dict[str, Any]:
    from bayeslmm.formula.transforms import place_knots

    df, intercept = options.get("df"), bool(options.get("intercept", False))
    if options.get("knots") is None and df is not None and df > 1 + intercept:
        raise _quantiles(call)
    ends = np.array([found.low[0], found.high[0]])
    try:
        return {"spline": place_knots(ends, **options)}
    except ValueError as error:
        raise DataError(f"`{ast.unparse(call)}` cannot be evaluated: {error}") from error


def _quantiles(call: ast.Call) -> DataError:
    argument = ast.unparse(call.args[0])
    text = QUANTILES.format(call=ast.unparse(call), name=_name(call), argument=argument)
    return DataError(text)


_STATES: Mapping[str, Callable[[Moments, Options, ast.Call], dict[str, Any]]] = {
    "bs": _bs,
    "center": _scale,
    "ns": _ns,
    "scale": _scale,
    "standardize": _scale,
}
