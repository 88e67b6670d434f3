"""Values of the expressions of a formula: a walk over a tree that was read, no ``eval``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.formula.expressions import read
from bayeslmm.formula.functions import (
    AS_GIVEN,
    CALLS,
    CONSTANTS,
    CONTRASTS,
    FactorValues,
    UserFunctions,
)

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


def evaluate_expression(
    code: str, columns: pd.DataFrame, functions: UserFunctions, state: dict[str, Any]
) -> Any:
    """Evaluate an expression of a formula on the columns of a data frame.

    Parameters
    ----------
    code : str
        The expression; it is read, and so checked, here.
    columns : pandas.DataFrame
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
    FormulaError
        If the expression is not allowed.
    TypeError, ValueError
        If it does not fit the data; whatever the user's functions raise.
    """
    value = _Evaluation(columns, functions, state).value(read(code).tree)
    if isinstance(value, FactorValues) or np.ndim(value):
        return value
    return np.full(len(columns), value)


class _Evaluation:
    def __init__(
        self, columns: pd.DataFrame, functions: UserFunctions, state: dict[str, Any]
    ) -> None:
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
        operands = _aligned(*(_unwrapped(self.value(part)) for part in parts))
        pairs = zip(node.ops, operands[:-1], operands[1:], strict=True)
        return reduce(
            operator.and_, [np.asarray(_COMPARISONS[type(op)](a, b)) for op, a, b in pairs]
        )

    def call(self, node: ast.Call) -> Any:
        name = ast.unparse(node.func)
        if name == "Q":
            return self.columns[self.literal(node.args[0])]
        if name not in CALLS:
            return self.own(name, node)
        function, values = CALLS[name]
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
        if not isinstance(result, FactorValues | pd.Series | pd.Categorical):
            result = np.asarray(result)
        if not np.ndim(_unwrapped(result)) or len(result) != len(self.columns):
            raise ValueError(
                f"{name}() must return one value for each of the {len(self.columns)} rows, got "
                f"shape {np.shape(_unwrapped(result))}"
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
                return CONTRASTS[ast.unparse(called)](*map(self.literal, arguments), **named)
        text = ast.unparse(node)
        return CONTRASTS[text] if text in CONTRASTS else self.value(node)


# --- values ----------------------------------------------------------------------------


def numbers(value: Any, node: ast.expr) -> Any:
    """A value as double precision numbers: a scalar or an array (n,) or (n, k)."""
    raw = _unwrapped(value)
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


def _unwrapped(values: Any) -> Any:
    return values.__wrapped__ if isinstance(values, FactorValues) else values


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, pd.Series | np.ndarray) else value
