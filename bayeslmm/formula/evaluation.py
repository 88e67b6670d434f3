"""Values of the columns and expressions of a formula: a walk over a tree, no ``eval``."""

from __future__ import annotations

import ast
import keyword
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of, level_order, plain, refused, to_floats
from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula import expressions
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


def call_parts(
    node: ast.Call, columns: Variables, functions: UserFunctions, state: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The first argument, as numbers, and the options by name of a call of a listed function."""
    evaluation = _Evaluation(columns, functions, state)
    names = expressions.FUNCTIONS[ast.unparse(node.func)].options
    options = {
        name: evaluation.literal(part) for name, part in zip(names, node.args[1:], strict=False)
    }
    options |= {part.arg: evaluation.literal(part.value) for part in node.keywords if part.arg}
    return numbers(evaluation.value(node.args[0]), node.args[0]), options


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


# --- columns of a data frame --------------------------------------------------------------


MOST_COLUMNS = 10_000
"""Columns of one model matrix."""

MOST_OCCASIONS = 200
"""Levels that whole numbers stand for, from the smallest to the largest."""

MOST_LEVELS = 5_000
"""Levels of a factor of a model matrix; grouping factors have as many as they like."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """An operand of a model matrix on other data.

    Attributes
    ----------
    label : str
    kind : str
        "categorical" or "numerical", when the model was built.
    levels : sequence or None
        The levels that it had.
    values : array-like (n,) or (n, k)
        Its values on the other data.
    is_factor : bool
        Whether these are levels.
    """

    label: str
    kind: str
    levels: Sequence[Any] | None
    values: Any
    is_factor: bool


class Variables(Mapping[str, pd.Series]):
    """The columns of a data frame as formulas read them, each normalised once, when it is read.

    Numbers of any type become float64, truth values bool, strings objects; unused categories are
    dropped. Every column has a range index.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows, any index.
    known : mapping of str to Series, optional
        Columns that are normalised already.
    """

    def __init__(self, frame: pd.DataFrame, known: Mapping[str, pd.Series] | None = None) -> None:
        self.frame = frame
        self.n = len(frame)
        self._read = dict(known or {})

    def __getitem__(self, name: str) -> pd.Series:
        """One column; DataError for whole numbers that floats cannot tell apart."""
        if name not in self._read:
            column = self.frame[name]
            self._read[name] = _normalised(pd.Series(column.array, name=name, copy=False))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self.frame.columns))

    def __len__(self) -> int:
        return self.frame.shape[1]

    def require(self, names: Iterable[str]) -> None:
        """Raise DataError for names that are no columns, or columns that cannot be normalised."""
        names = sorted(names)
        absent = [name for name in names if name not in self.frame.columns]
        if absent:
            raise DataError(
                f"{listed(absent)} not found in the data; the columns are "
                f"{listed(sorted(map(str, self.frame.columns)))}."
            )
        for name in names:
            self[name]

    def check_kinds(self, names: Iterable[str]) -> None:
        """Raise DataError for a column among `names` that is neither numeric nor a factor."""
        for name in names:
            kind = kind_of(self[name])
            if kind in ("dates or times", "intervals"):
                raise DataError(
                    f"`{name}` must be converted from {kind} to numbers. To make it a factor, "
                    f"write C({name})."
                )

    def categories(self, names: Iterable[str]) -> dict[str, pd.Index]:
        """Return the categories of each categorical column among `names`."""
        return {
            name: self[name].cat.categories
            for name in names
            if isinstance(self[name].dtype, pd.CategoricalDtype)
        }

    def with_occasions(self, names: Iterable[str]) -> Variables:
        """Whole numbers among `names` as factors, with every number between the extremes a level.

        Raises
        ------
        DataError
            For other numbers, and for a wider range than makes sense as occasions.
        """
        known = dict(self._read)
        for name in names:
            column = self[name]
            if kind_of(column) == "numbers":
                known[name] = _occasions(name, column.to_numpy(dtype=np.float64))
        return Variables(self.frame, known)

    def conform(self, categories: Mapping[str, pd.Index]) -> Variables:
        """Give columns the categories of earlier data; values outside them become missing."""
        if not categories:
            return self
        known = dict(self._read)
        for name, levels in categories.items():
            values = pd.Index(self[name].to_numpy(dtype=object), dtype=object, tupleize_cols=False)
            codes = levels.get_indexer(values)
            known[name] = pd.Series(pd.Categorical.from_codes(codes, categories=levels))
        return Variables(self.frame, known)

    def to_frame(self, names: Iterable[str]) -> pd.DataFrame:
        """Some columns as a data frame with a range index."""
        return pd.DataFrame({name: self[name] for name in names}, index=pd.RangeIndex(self.n))


def _occasions(name: str, values: NDArray[np.float64]) -> pd.Series:
    if not np.all(values == np.floor(values)):
        raise DataError(
            f"`{name}` has values such as {values[values != np.floor(values)][0]:g}: the occasions "
            "of ar1() and toep() are whole numbers or the levels of a factor, one after the other "
            "at equal distances."
        )
    low, high = int(values.min()), int(values.max())
    if high - low >= MOST_OCCASIONS:
        raise DataError(
            f"`{name}` goes from {low} to {high}, and every whole number between is an occasion of "
            f"ar1() or toep(); at most {MOST_OCCASIONS} are allowed. Count in larger units, or "
            "make a factor of it if the values that occur are at equal distances."
        )
    levels = pd.Index(np.arange(low, high + 1).astype(object))
    return pd.Series(pd.Categorical.from_codes((values - low).astype(int), categories=levels))


def _normalised(column: pd.Series) -> pd.Series:
    if column.dtype == np.float64:
        return column
    column = plain(column)
    kind = kind_of(column)
    if kind == "numbers" and not refused(column):
        return to_floats(column)  # whole numbers wrap around: 3 - 5 is 254 in eight bits
    if kind == "categories":
        return column.cat.remove_unused_categories()
    if kind == "truth values":
        return column.astype(object if column.isna().any() else bool)
    if kind == "mixed values":
        return _categorical(column)
    return column.astype(object) if kind == "text" else column


def _categorical(column: pd.Series) -> pd.Series:
    """Levels of mixed kinds, in an order that pandas does not have."""
    codes, found = pd.factorize(column)
    order = level_order(found)
    place = np.append(np.argsort(order), -1)
    categories = pd.Index(found.to_numpy()[order], dtype=object, tupleize_cols=False)
    return pd.Series(pd.Categorical.from_codes(place[codes], categories))


def is_marked(values: Any) -> bool:
    """Tell whether values come with formulaic's notes about them."""
    return hasattr(values, "__formulaic_metadata__")


def unwrapped(values: Any) -> Any:
    """Values without formulaic's notes about them."""
    return values.__wrapped__ if is_marked(values) else values


def holds_levels(values: Any) -> bool:
    """Tell whether values are levels (strings, booleans, categories) and not numbers."""
    dtype = getattr(values, "dtype", None)
    if not isinstance(values, pd.Series | pd.Categorical | np.ndarray):
        return False
    if isinstance(dtype, np.dtype):
        return dtype.kind in "bOSU"
    return (
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(dtype)
        or pd.api.types.is_bool_dtype(dtype)
    )


# --- what a model matrix may be -----------------------------------------------------------


def check_levels(label: str, count: int) -> None:
    """Raise ValueError for a factor with too many levels."""
    if count > MOST_LEVELS:
        raise ValueError(
            f"the factor `{label}` has {count} levels, and one of a model matrix may have "
            f"{MOST_LEVELS}; a grouping factor, (1 | group), may have more"
        )


def check_columns(before: int, sizes: Iterable[int]) -> int:
    """Add the columns of a product to a count; raise ValueError for too many."""
    count = before + math.prod(sizes)
    if count > MOST_COLUMNS:
        raise ValueError(
            f"these terms have more than {MOST_COLUMNS} columns; a combination of factors with "
            "many levels is a grouping factor, (1 | f1:f2)"
        )
    return count


def as_numbers(values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Columns (n, k) in double precision; DataError if they are no numbers, or not finite."""
    if values.dtype.kind not in "biufO":
        raise DataError(f"{listed(names)} must be numeric or a factor, got {values.dtype} values.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{listed(names)} cannot be made numeric: {error}") from error
    check_finite(values, names)
    return values


def undefined(label: str) -> str:
    """Say that an operand is missing in some rows."""
    return f"`{label}` is missing or undefined (NaN) in some rows."


def not_evaluated(reason: str, columns: Variables, variables: Iterable[str]) -> str:
    """Say why a model matrix cannot be built."""
    used = columns.to_frame(sorted(variables))
    times = list(used.select_dtypes(["datetime", "datetimetz", "timedelta"]).columns)
    hint = f" {listed(times)} must be converted from dates or times to numbers." if times else ""
    return f"The columns of the model cannot be evaluated on these data: {reason}{hint}"


def check_finite(values: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise DataError for the first column of `values` (n, k) that is not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        rows = np.flatnonzero(bad[:, column])
        raise DataError(
            f"`{names[column]}` is missing, undefined or infinite in {rows.size} of "
            f"{len(values)} rows (first at position {rows[0]})."
        )
