"""Values of the expressions of a formula: a walk over a tree that was read, no ``eval``."""

from __future__ import annotations

import ast
import keyword
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula import expressions
from bayeslmm.formula.columns import Variables, is_marked, unwrapped
from bayeslmm.formula.expressions import Reading

UserFunctions = Mapping[str, Callable[..., Any]]
NO_FUNCTIONS: UserFunctions = {}

_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: np.floor_divide,
    ast.Mod: np.mod,
    ast.Pow: np.power,
}
_BITS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.BitAnd: np.bitwise_and,
    ast.BitOr: np.bitwise_or,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_RENAMED: Mapping[str, Callable[..., Any]] = {
    "I": lambda x: x,
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "exp10": lambda x: np.power(10.0, x),
    "pmax": np.maximum,
    "pmin": np.minimum,
}

ROW_WISE: Mapping[str, Callable[..., Any]] = {
    **{
        name: _RENAMED.get(name) or getattr(np, name)
        for name, signature in expressions.FUNCTIONS.items()
        if signature.values and name not in expressions.TRANSFORMS
    },
    **{f"np.{name}": getattr(np, name) for name in expressions.NUMPY},
}
"""Functions of each row by itself."""

AS_GIVEN = frozenset({"C", "I", "factor", "hashed", "lag", "np.where"})
"""Functions that take columns as they are; the others get numbers in double precision."""

CONSTANTS: Mapping[str, Any] = {
    "FALSE": False,
    "TRUE": True,
    "np.e": np.e,
    "np.pi": np.pi,
    "pi": np.pi,
}


def evaluate_expression(
    reading: Reading, columns: Variables, functions: UserFunctions, state: dict[str, Any]
) -> Any:
    """Evaluate an expression of a formula on the columns of a data frame.

    Parameters
    ----------
    reading : Reading
        The expression, read and so checked.
    columns : Variables
        n rows.
    functions : mapping of str to callable
        The user's.
    state : dict
        What transforms remember, by the text of their calls; filled at the first evaluation.

    Returns
    -------
    Series, ndarray (n,) or (n, k), or FactorValues
        Arithmetic is done in double precision, whatever the types of the columns.

    Raises
    ------
    TypeError, ValueError
        If it does not fit the data; whatever the user's functions raise.
    """
    value = _Evaluation(columns, functions, state).value(reading.tree)
    return value if is_marked(value) or np.ndim(value) else np.full(columns.n, value)


class _Evaluation:
    def __init__(self, columns: Variables, functions: UserFunctions, state: dict[str, Any]) -> None:
        self.columns = columns
        self.functions = functions
        self.state = state

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=constant):
                return constant
            case ast.Name(id=name):
                return self.name(name)
            case ast.Attribute(attr=attribute):
                return CONSTANTS[f"np.{attribute}"]
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return np.invert(np.asarray(self.value(operand)))
            case ast.UnaryOp(op=op, operand=operand):
                number = numbers(self.value(operand), operand)
                return -number if isinstance(op, ast.USub) else number
            case ast.BinOp():
                return self.binary(node)
            case ast.Compare():
                return self.comparison(node)
            case ast.Call():
                return self.call(node)
        raise TypeError(f"{type(node).__name__} has no value")  # read() lets none through

    def name(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        return self.columns[name[1:-1] if name[0] == "`" else name]

    def binary(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if type(node.op) in _BITS:
            return _BITS[type(node.op)](*_aligned(np.asarray(left), np.asarray(right)))
        pair = _aligned(numbers(left, node.left), numbers(right, node.right))
        return _ARITHMETIC[type(node.op)](*pair)

    def comparison(self, node: ast.Compare) -> Any:
        parts = (node.left, *node.comparators)
        operands = _aligned(*(unwrapped(self.value(part)) for part in parts))
        pairs = zip(node.ops, operands[:-1], operands[1:], strict=True)
        return reduce(
            operator.and_, [np.asarray(_COMPARISONS[type(op)](a, b)) for op, a, b in pairs]
        )

    def call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if name == "Q":
            return self.columns[self.literal(node.args[0])]
        signature = expressions.NUMPY.get(name[3:]) if name.startswith("np.") else None
        signature = signature or expressions.FUNCTIONS.get(name)
        if signature is None:
            return self.own(name, node)
        function, values = _function(name), signature.values
        arguments = tuple(self.value(part) for part in node.args[:values])
        if name not in AS_GIVEN:
            parts = zip(arguments, node.args[:values], strict=True)
            arguments = tuple(numbers(argument, part) for argument, part in parts)
        arguments = _aligned(*arguments)
        options = [self.literal(part) for part in node.args[values:]]
        named = {part.arg: self.literal(part.value) for part in node.keywords if part.arg}
        return function(*arguments, *options, **named, **self.memory(function, node))

    def own(self, name: str, node: ast.Call) -> Any:
        """Value of a function of the user's, which gets copies of columns."""
        if name not in self.functions:
            raise TypeError(
                f"the function {name} is not known here; give functions={{'{name}': {name}}}"
            )
        function = self.functions[name]
        arguments = [_copied(self.anything(part)) for part in node.args]
        named = {part.arg: _copied(self.anything(part.value)) for part in node.keywords if part.arg}
        result = function(*arguments, **named, **self.memory(function, node))
        if not (is_marked(result) or isinstance(result, pd.Series | pd.Categorical)):
            result = np.asarray(result)
        if not np.ndim(unwrapped(result)) or len(result) != self.columns.n:
            raise ValueError(
                f"{name}() must return one value for each of the {self.columns.n} rows, got "
                f"shape {np.shape(unwrapped(result))}"
            )
        return result

    def anything(self, node: ast.expr) -> Any:
        literal = isinstance(node, ast.Constant | ast.List | ast.Tuple | ast.Dict)
        return self.literal(node) if literal else self.value(node)

    def memory(self, function: Callable[..., Any], node: ast.Call) -> dict[str, Any]:
        """The argument with the state of a stateful transform."""
        if not getattr(function, "__is_stateful_transform__", False):
            return {}
        return {"_state": self.state.setdefault(ast.unparse(node), {})}

    def literal(self, node: ast.expr) -> Any:
        match node:
            case ast.List(elts=items):
                return [self.literal(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.literal(item) for item in items)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self.literal(k): self.literal(v) for k, v in pairs if k is not None}
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=number)):
                return -number  # type: ignore[operator]
            case ast.Call(func=called, args=arguments, keywords=keywords):
                named = {part.arg: self.literal(part.value) for part in keywords if part.arg}
                return _contrasts()[ast.unparse(called)](*map(self.literal, arguments), **named)
        text = ast.unparse(node)
        return _contrasts()[text] if text in expressions.CONTRASTS else self.value(node)


def _function(name: str) -> Callable[..., Any]:
    if name in ROW_WISE:
        return ROW_WISE[name]
    from bayeslmm.formula.transforms import TRANSFORMS

    return TRANSFORMS[name]


def _contrasts() -> Mapping[str, Callable[..., Any]]:
    from bayeslmm.formula.transforms import CONTRASTS

    return CONTRASTS


# --- values ----------------------------------------------------------------------------


def numbers(value: Any, node: ast.expr) -> Any:
    """A value as double precision numbers: a scalar or an array (n,) or (n, k)."""
    raw = unwrapped(value)
    array = np.asarray(None if isinstance(raw, dict) else raw)
    factor = isinstance(getattr(raw, "dtype", None), pd.CategoricalDtype)
    if factor or array.dtype.kind not in "biuf":
        kind = "a factor" if factor else f"{array.dtype} values"
        raise TypeError(f"`{ast.unparse(node)}` must be numbers here, got {kind}")
    return array.astype(np.float64)[()]


def _aligned(*values: Any) -> tuple[Any, ...]:
    """Vectors beside matrices as single columns, so that rows meet rows."""
    if all(np.ndim(value) != 2 for value in values):
        return values
    return tuple(np.asarray(v)[:, None] if np.ndim(v) == 1 else v for v in values)


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, pd.Series | np.ndarray) else value


# --- the user's functions ----------------------------------------------------------------


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
    taken = {*expressions.FUNCTIONS, *CONSTANTS, *expressions.CONTRASTS, "contr", "np", "offset"}
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
