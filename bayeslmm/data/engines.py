"""Sums where the data are: expressions of a formula, and GROUP BY, in an engine.

DuckDB, Polars and, through Ibis, others are asked in one language, that of narwhals. What is not
certain to mean in an engine what it means here is not asked for; then rows are read in batches.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import plain_frame
from bayeslmm.data.sources import Source, reading_errors
from bayeslmm.formula.evaluation import UserFunctions
from bayeslmm.formula.expressions import CONSTANTS
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.structures import OCCASIONS
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side

if TYPE_CHECKING:
    import narwhals.stable.v2 as nw

Array = NDArray[np.float64]

WHOLE = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32")
FLOATS = ("Float32", "Float64")
LEVELS = ("String", "Boolean", "Categorical", "Enum")
"""Types that mean the same in all engines and here."""

IBIS = ("duckdb", "polars", "datafusion")
"""Engines behind Ibis in which texts are equal only where all their characters are."""

HIGHEST_POWER = 4

MOST_FIGURES = 1 << 27
"""Numbers that the result of one query may have: 1 GB."""


class UnpushedError(Exception):
    """The engine cannot be asked; the message says why, to stand after "as"."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Table:
    """The result of a GROUP BY.

    Attributes
    ----------
    keys : pandas.DataFrame
        The variables by which was grouped, one row for each of the groups.
    figures : mapping of str to ndarray
        What was computed for each.
    """

    keys: pd.DataFrame
    figures: Mapping[str, Array]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Engine:
    """The variables of a formula in an engine.

    Attributes
    ----------
    frame : narwhals LazyFrame
        For each variable i a column ``v{i}`` in double precision, if it holds numbers, and one
        ``c{i}`` as it is; ``complete``, and ``infinite`` where any variable is.
    variables : tuple of str
        By their number i.
    types : mapping of str to str
        Types of the variables, by the names of narwhals.
    formula : Formula
    weights : str or None
        Column of the precision weights.
    words : str
        What the source is, for messages.
    """

    frame: nw.LazyFrame[Any]
    variables: tuple[str, ...]
    types: Mapping[str, str]
    formula: Formula
    weights: str | None
    words: str

    def is_number(self, name: str) -> bool:
        """Whether a variable holds numbers."""
        return self.types[name] in WHOLE + FLOATS

    def factors(self, side: Side) -> tuple[str, ...]:
        """The factors among the variables of a side."""
        return tuple(sorted(name for name in side.names if not self.is_number(name)))

    @property
    def fractional(self) -> tuple[str, ...]:
        """Variables of grouping factors that hold floating-point numbers."""
        groups = sorted(self.formula.grouping)
        return tuple(name for name in groups if self.types[name] in FLOATS)

    def number(self, name: str) -> nw.Expr:
        """A variable as numbers."""
        import narwhals.stable.v2 as nw

        if not self.is_number(name):
            raise UnpushedError(f"`{name}` does not hold numbers")
        return nw.col(f"v{self.variables.index(name)}")

    def value(self, part: Operand) -> nw.Expr:
        """Values of an operand that is a number."""
        if part.reading is None:
            return self.number(part.label)
        if not part.variables:
            raise UnpushedError(f"`{part.text}` has no variable")
        return _Expressions(self, part.text).value(part.reading.tree)

    def key(self, name: str) -> nw.Expr:
        """A variable by which complete rows are grouped."""
        import narwhals.stable.v2 as nw

        number = self.variables.index(name)
        if self.types[name] in FLOATS:
            return nw.when(nw.col("complete")).then(nw.col(f"v{number}")).cast(nw.Int64)
        return nw.col(f"c{number}")

    def grouped(
        self,
        keys: Sequence[str],
        figures: Mapping[str, nw.Expr],
        columns: Mapping[str, nw.Expr] | None = None,
    ) -> Table | None:
        """Figures of each combination of the values of variables; None where there are no rows.

        Parameters
        ----------
        keys : sequence of str
            The variables; also `COMPLETE`.
        figures : mapping of str to Expr
            What is computed of each combination.
        columns : mapping of str to Expr, optional
            Columns of complete rows, which alone are used then, of which figures are computed.

        Raises
        ------
        UnpushedError
            If the engine fails, or finds too many combinations.
        """
        import narwhals.stable.v2 as nw

        places = {f"k{i}": name for i, name in enumerate(keys)}
        most = MOST_FIGURES // len(figures)
        with _asked():
            frame = self.frame if columns is None else self.frame.filter(nw.col("complete"))
            named = {place: self._key(name) for place, name in places.items()}
            if named or columns:
                frame = frame.with_columns(**named, **(columns or {}))
            if keys:
                lazy = frame.group_by(*places).agg(**figures).head(most + 1)
            else:
                lazy = frame.select(**figures)
            found = _collected(lazy)
        if len(found) > most:
            raise UnpushedError(f"{', '.join(keys)} have more than {most} combinations")
        if not len(found):
            return None
        own = pd.DataFrame(index=pd.RangeIndex(len(found)))
        if keys:
            own = plain_frame(found.select(*places).to_native(), list(places))
            own = own.rename(columns=places)
        numbers = {name: _floats(found[name]) for name in figures}
        return Table(keys=own, figures=numbers)

    def _key(self, name: str) -> nw.Expr:
        import narwhals.stable.v2 as nw

        return nw.col("complete") if name == COMPLETE else self.key(name)

    def first_row(self) -> pd.DataFrame:
        """A complete row of the variables of the formula."""
        import narwhals.stable.v2 as nw

        used = self.formula.variables
        names = {f"c{i}": name for i, name in enumerate(self.variables) if name in used}
        with _asked():
            rows = self.frame.filter(nw.col("complete")).select(*names)
            found = _collected(rows.head(1))
        return plain_frame(found.to_native(), list(names)).rename(columns=names)


COMPLETE = "\0complete"
"""Key by which complete rows are told from others; no column is called like it."""


def open_engine(
    source: Source, formula: Formula, functions: UserFunctions, weights: str | None
) -> Engine:
    """The variables of a formula in the engine of a source.

    Raises
    ------
    UnpushedError
        If there is a term or a type that is not certain to mean the same there.
    """
    _check_terms(formula, functions)
    variables = tuple(sorted({*formula.variables, *({weights} if weights else ())}))
    with _asked():
        frame = _lazy(source.engine)
        schema = frame.collect_schema()
        types = {name: type(schema[name]).__name__ for name in variables}
        for name, kind in types.items():
            if kind not in WHOLE + FLOATS + LEVELS:
                raise UnpushedError(f"`{name}` has the type {schema[name]}")
        prepared = _prepared(frame, types)
    engine = Engine(
        frame=prepared,
        variables=variables,
        types=types,
        formula=formula,
        weights=weights,
        words=source.words,
    )
    for part in (formula.left, *formula.shifts):
        engine.value(part)
    if weights is not None:
        engine.number(weights)
    return engine


def _check_terms(formula: Formula, functions: UserFunctions) -> None:
    """Refuse what only rows, or whole columns, can give."""
    for part in (formula.left, *formula.shifts):
        if not part.functions.isdisjoint(functions):
            raise UnpushedError(f"`{part.text}` calls a function of the user's")
    for term in formula.random:
        if term.by is not None or term.members is not None or term.structure in OCCASIONS:
            raise UnpushedError(f"{term.source} needs rows")
    for side in (formula.right, *(term.left for term in formula.random)):
        if side.occasions or not side.is_plain(functions):
            raise UnpushedError(f"`{side.text}` has transforms of whole columns or own functions")


def _lazy(native: Any) -> nw.LazyFrame[Any]:
    """A lazy frame of narwhals."""
    import narwhals.stable.v2 as nw

    if type(native).__module__.partition(".")[0] == "ibis":
        backend = native.get_backend().name
        if backend not in IBIS:
            raise UnpushedError(f"GROUP BY of {backend} may take different texts for equal")
    frame = nw.from_native(native)
    return frame.lazy() if isinstance(frame, nw.DataFrame) else frame


def _prepared(frame: nw.LazyFrame[Any], types: Mapping[str, str]) -> nw.LazyFrame[Any]:
    """The columns that an engine has."""
    import narwhals.stable.v2 as nw

    raw = frame.select(*(nw.col(name).alias(f"c{i}") for i, name in enumerate(types)))
    floats, gaps, infinite = [], [], [nw.lit(False)]
    for i, kind in enumerate(types.values()):
        column = nw.col(f"c{i}")
        gaps.append(column.is_null())
        if kind in WHOLE + FLOATS:
            floats.append(column.cast(nw.Float64).alias(f"v{i}"))
        if kind in FLOATS:
            gaps.append(column.is_nan().fill_null(False))
            infinite.append((column == math.inf) | (column == -math.inf))
    return raw.with_columns(
        *floats,
        complete=~reduce(lambda a, b: a | b, gaps),
        infinite=reduce(lambda a, b: a | b, infinite),
    )


@contextmanager
def _asked() -> Iterator[None]:
    """Whatever an engine cannot do, rows are read for."""
    try:
        yield
    except reading_errors() as error:  # NotImplementedError is a RuntimeError
        words = " ".join(str(error).split())[:200]
        raise UnpushedError(f"the engine fails with {type(error).__name__}: {words}") from error


def _collected(lazy: nw.LazyFrame[Any]) -> nw.DataFrame[Any]:
    """The result of a query; Polars need not hold the rows."""
    if lazy.implementation.is_polars():
        return lazy.collect("polars", engine="streaming")
    return lazy.collect()


def _floats(column: nw.Series[Any]) -> Array:
    """Figures, NaN where there are none."""
    return np.asarray(pd.Series(column.to_list() if not len(column) else column.to_numpy()), float)


# --- expressions -----------------------------------------------------------------------


_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}

_FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "I": lambda x: x,
    "exp": lambda x: x.exp(),
    "log": lambda x: x.log(),
    "sqrt": lambda x: x.sqrt(),
}
"""Functions that engines have with the meaning of NumPy's, by bare name or after ``np.``."""


class _Expressions:
    """Expressions of numbers in the language of narwhals."""

    def __init__(self, engine: Engine, text: str) -> None:
        self.engine, self.text = engine, text

    def value(self, node: ast.expr) -> nw.Expr:
        import narwhals.stable.v2 as nw

        match node:
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return nw.lit(float(number), dtype=nw.Float64)
            case ast.Name(id=name):
                return self.name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return nw.lit(0.0, dtype=nw.Float64) - self.value(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.value(operand)
            case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=power)):
                return self.power(self.value(left), power)
            case ast.BinOp(op=op, left=left, right=right) if type(op) in _ARITHMETIC:
                return _ARITHMETIC[type(op)](self.value(left), self.value(right))
            case ast.Call(args=arguments, keywords=[]):
                return self.call(ast.unparse(node.func), arguments)
        raise self.unknown(node)

    def name(self, name: str) -> nw.Expr:
        if name[0] == "`":
            return self.engine.number(name[1:-1])
        if name in CONSTANTS:
            raise UnpushedError(f"`{self.text}` has the constant {name}")
        return self.engine.number(name)

    def power(self, base: nw.Expr, power: Any) -> nw.Expr:
        if isinstance(power, bool) or power not in range(1, HIGHEST_POWER + 1):
            raise UnpushedError(f"`{self.text}` has the power {power}")
        return reduce(lambda a, b: a * b, [base] * int(power))

    def call(self, name: str, arguments: Sequence[ast.expr]) -> nw.Expr:
        if name == "Q" and len(arguments) == 1 and isinstance(arguments[0], ast.Constant):
            return self.engine.number(str(arguments[0].value))
        function = _FUNCTIONS.get(name.removeprefix("np."))
        if function is None or len(arguments) != 1:
            raise UnpushedError(f"`{self.text}` calls {name}")
        return function(self.value(arguments[0]))

    def unknown(self, node: ast.expr) -> UnpushedError:
        return UnpushedError(f"`{self.text}` has {ast.unparse(node)}")
