"""Everything bayeslmm asks of formulaic; only `_functions.py` imports it too."""

import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec
from formulaic.errors import FormulaicError, FormulaParsingError
from formulaic.materializers import FactorValues, PandasMaterializer
from formulaic.materializers.pandas import override
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Factor
from formulaic.transforms import TRANSFORMS
from formulaic.utils.layered_mapping import LayeredMapping
from formulaic.utils.stateful_transforms import stateful_eval

from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula import _expressions
from bayeslmm.formula._columns import (
    categories_of,
    check_finite,
    check_kinds,
    conform,
    holds_levels,
    listed,
    outside,
    prepare,
)
from bayeslmm.formula._expressions import PythonNames
from bayeslmm.formula._functions import CONTEXT, FUNCTIONS, KNOWN

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a formula; ``source[start:end] == text``.

    `kind` is "name", "value", "python", "operator" or "context" (brackets); `value` is
    `text` without backticks or braces.
    """

    kind: str
    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        """The text without the backticks or braces that quote it."""
        return self.text[1:-1] if self.text[0] in "`{" else self.text


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """A model matrix: `values` (n, k) float64, its k column `names`, and how it was built."""

    values: np.ndarray
    names: tuple[str, ...]
    spec: object


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Spec:
    """A formulaic spec, the variables it reads and the levels of its categorical columns."""

    model: ModelSpec
    variables: frozenset[str]
    categories: dict[str, pd.Index]


class _Materializer(PandasMaterializer):
    """Formulaic's pandas materializer with boolean columns as factors."""

    REGISTER_NAME = "bayeslmm"

    @override
    def _is_categorical(self, values: Any) -> bool:
        return _is_factor(values)


# --- reading formulas ------------------------------------------------------------------


def tokens(source: str) -> list[Token]:
    """Split a formula into tokens with their positions.

    Parameters
    ----------
    source : str
        A formula or a part of one.

    Returns
    -------
    list of Token
        A Python call such as ``I(x | 1)`` is one token; operators are one token each,
        with ``||``, ``**`` and ``%in%`` kept whole.

    Raises
    ------
    FormulaError
        If a quote, a backtick or the parenthesis of a call is never closed.
    """
    try:
        return [token for raw in tokenize(source) for token in _positioned(raw, source)]
    except FormulaParsingError as error:
        raise _located(error, source) from error


def _positioned(raw: Any, source: str) -> Iterator[Token]:
    start, end = raw.source_start, raw.source_end + 1
    if source[start] in "`{%" and raw.kind is not None:
        end += source[end : end + 1] == {"`": "`", "{": "}", "%": "%"}[source[start]]
    text = source[start:end]
    if raw.kind.value != "operator" or text.startswith("%"):
        yield Token("value" if text == "." else raw.kind.value, text, start, end)
        return
    for match in re.finditer(r"\|\||\*\*|\S", text):
        yield Token("operator", match.group(), start + match.start(), start + match.end())


def _located(error: Exception, source: str) -> FormulaError:
    """Turn formulaic's error, which marks the place with ⧛...⧚, into ours."""
    message, _, context = re.sub(_COLOURS, "", str(error)).partition("\n\n")
    message = message.replace("insuffient", "insufficient")
    if message.startswith("Formula ended before quote context was closed"):
        message = f"This is never closed; add {message[-1]!r}."
    first, last = context.find("⧛"), context.find("⧚")
    if first < 0:
        return FormulaError(message, source, 0, len(source))
    return FormulaError(message, source, first, max(first + 1, last - 1))


def check_terms(rhs: str) -> tuple[str, ...]:
    """List the terms of a right-hand side as formulaic reads it, ``"1"`` for the intercept.

    Parameters
    ----------
    rhs : str
        A right-hand side; it has an intercept unless it removes it.

    Returns
    -------
    tuple of str
        The factors of an interaction are sorted, so that equal terms are equal strings.

    Raises
    ------
    FormulaError
        With positions in `rhs`, if formulaic does not accept it.
    """
    for token in tokens(rhs):
        if token.kind == "name" and token.value == "1":
            raise FormulaError(
                "`1` cannot be told from the intercept; rename the column, or write I(`1`).",
                rhs,
                token.start,
                token.end,
            )
    try:
        terms = DefaultFormulaParser().get_terms(rhs)
        return tuple(":".join(sorted(str(f.expr) for f in term.factors)) for term in terms)
    except FormulaParsingError as error:
        raise _located(error, rhs) from error
    except Exception as error:
        start = len(rhs) - len(rhs.lstrip())
        message = "This is not a valid sum of terms."
        raise FormulaError(message, rhs, start, len(rhs.rstrip())) from error


def python_names(code: str) -> PythonNames:
    """List the data variables and the functions that a Python expression names.

    Parameters
    ----------
    code : str
        A Python expression; names in backticks are data variables.

    Returns
    -------
    PythonNames
        A name is a function where it is called. Elsewhere it is a data variable, unless it
        is a constant, a module, a class or a contrast that formulas know.

    Raises
    ------
    SyntaxError
        If `code` is not a valid expression.
    """
    return _expressions.python_names(code, _may_be_column)


def _may_be_column(name: str) -> bool:
    if name in ("bool", "float", "int", "str", "Treatment"):
        return False
    known = KNOWN.get(name)
    return known is None or (callable(known) and not isinstance(known, type))


def is_function(name: str) -> bool:
    """Tell whether a formula may call `name`."""
    return name in FUNCTIONS or callable(getattr(builtins, name, None))


def required_variables(expression: str) -> frozenset[str]:
    """List the data variables that an expression reads.

    Parameters
    ----------
    expression : str
        The right-hand side of a formula or a single expression.

    Returns
    -------
    frozenset of str
        Column names without backticks; functions and builtins are left out.

    Raises
    ------
    FormulaError
        If the expression cannot be read.

    Examples
    --------
    >>> sorted(required_variables("1 + log(x) + sin(2 * pi * t):`my group`"))
    ['my group', 't', 'x']
    """
    names: set[str] = set()
    for token in tokens(expression):
        if token.kind == "name":
            names.add(token.value)
        elif token.kind == "python":
            try:
                names |= python_names(token.value).variables
            except SyntaxError as error:
                message = "This is not a valid Python expression."
                raise FormulaError(message, expression, token.start, token.end) from error
    return frozenset(names)


# --- evaluating them on data -----------------------------------------------------------


def evaluate(rhs: str, frame: pd.DataFrame) -> Columns:
    """Build the model matrix of a right-hand side.

    Parameters
    ----------
    rhs : str
        For example ``"1 + x * f"``; ``"1"`` gives a column of ones, ``"0"`` no column.
    frame : pandas.DataFrame
        n complete rows. String, boolean and categorical columns are factors; the order of
        the categories is the order of the levels, the first being the reference; unused
        categories are dropped.

    Returns
    -------
    Columns
        `values` has shape (n, k); `spec` re-evaluates the same columns on new data.

    Raises
    ------
    DataError
        If a variable is absent, an expression fails, or a value is missing or infinite.
    """
    variables = required_variables(rhs)
    prepared = prepare(frame, variables)
    check_kinds(prepared, [token.value for token in tokens(rhs) if token.kind == "name"])
    values, model = _materialize(rhs, prepared)
    spec = _Spec(model=model, variables=variables, categories=categories_of(prepared))
    return Columns(values=values, names=_names(model), spec=spec)


def reevaluate(spec: object, frame: pd.DataFrame) -> Columns:
    """Build the same columns on new data, keeping knots, centres, scales and levels.

    Parameters
    ----------
    spec : object
        The `spec` of an earlier `Columns`.
    frame : pandas.DataFrame
        New complete rows.

    Returns
    -------
    Columns
        With the names and the order of the earlier columns.

    Raises
    ------
    DataError
        As `evaluate`; also for a level that was absent when the columns were first built,
        and for a factor that has become numeric or the reverse.
    """
    spec = _as_spec(spec)
    unseen = unseen_categories(spec, frame)
    if unseen:
        found = "; ".join(f"`{name}`: {listed(values)}" for name, values in unseen.items())
        raise DataError(f"The new data hold levels that the model has not seen ({found}).")
    prepared = conform(prepare(frame, spec.variables), spec.categories)
    for expr, kind, values in _factors(spec, prepared):
        if (kind == "categorical") != _is_factor(values):
            now = "numerical" if kind == "categorical" else "categorical"
            raise DataError(f"`{expr}` was {kind} when the model was built and is {now} here.")
    values, _ = _materialize(spec.model, prepared)
    return Columns(values=values, names=_names(spec.model), spec=spec)


def unseen_categories(spec: object, frame: pd.DataFrame) -> dict[str, list[Any]]:
    """List the levels of fixed-effect factors that were absent when a spec was built.

    Parameters
    ----------
    spec : object
        The `spec` of an earlier `Columns`.
    frame : pandas.DataFrame
        New rows.

    Returns
    -------
    dict
        From a factor (a column or an expression such as ``"C(f)"``) to its unseen levels
        in order of appearance; empty if there are none.
    """
    spec = _as_spec(spec)
    prepared = prepare(frame, spec.variables)
    unseen = {name: outside(prepared[name], known) for name, known in spec.categories.items()}
    for expr, kind, values in _factors(spec, conform(prepared, spec.categories)):
        known = spec.model.encoder_state[expr][1].get("categories")
        if kind == "categorical" and known is not None and expr not in unseen:
            unseen[expr] = outside(_unwrapped(values), known)
    return {name: values for name, values in unseen.items() if values}


def evaluate_response(expression: str, frame: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Evaluate one numeric expression: a response, an offset or weights.

    Parameters
    ----------
    expression : str
        A column or a Python expression such as ``"log(y + 10)"``.
    frame : pandas.DataFrame
        n complete rows.

    Returns
    -------
    values : array, shape (n,), float64
    label : str

    Raises
    ------
    DataError
        If the result is not one finite numeric column.
    """
    prepared = prepare(frame, required_variables(expression))
    values = _single_value(expression, prepared)
    if _is_factor(values):
        raise DataError(
            f"`{expression}` must be one numeric column, but it is categorical or boolean; "
            "convert it to numbers first."
        )
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{expression}` must be one numeric column, got {array.dtype} values.")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim > 1:
        raise DataError(f"`{expression}` must be one numeric column, got {array.shape[1]} columns.")
    array = np.broadcast_to(array, (len(prepared),)).astype(np.float64)
    check_finite(array[:, None], (expression,))
    return array, expression


def _single_value(expression: str, prepared: pd.DataFrame) -> Any:
    found = tokens(expression)
    code = found[0].value if len(found) == 1 else expression
    if len(found) == 1 and found[0].kind == "name":
        return prepared[code]
    environment = LayeredMapping(
        LayeredMapping(prepared, name="data"), LayeredMapping(CONTEXT), LayeredMapping(TRANSFORMS)
    )
    try:
        with np.errstate(all="ignore"):
            return stateful_eval(code, environment, None, {}, None)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"`{expression}` cannot be evaluated on these data: {reason}") from error


def _materialize(spec: str | ModelSpec, prepared: pd.DataFrame) -> tuple[np.ndarray, ModelSpec]:
    materializer = _Materializer(prepared, context=CONTEXT)
    try:
        with np.errstate(all="ignore"):
            matrix = materializer.get_model_matrix(spec, output="numpy", na_action="raise")
    except (FormulaicError, ValueError, TypeError) as error:
        raise DataError(_reason(error, prepared)) from error
    values = np.asarray(matrix)
    names = _names(matrix.model_spec)
    if values.dtype.kind not in "biufO":
        raise DataError(f"{listed(names)} must be numeric or a factor, got {values.dtype} values.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{listed(names)} cannot be made numeric: {error}") from error
    check_finite(values, names)
    return values, matrix.model_spec


def _reason(error: Exception, prepared: pd.DataFrame) -> str:
    text = re.sub(_COLOURS, "", str(error))
    nulls = re.search(r"checking for nulls in `(.*)`: `.* contains null values", text)
    if nulls:
        return f"`{nulls[1]}` is missing or undefined (NaN) in some rows."
    times = list(prepared.select_dtypes(["datetime", "datetimetz", "timedelta"]).columns)
    hint = f" {listed(times)} must be converted from dates or times to numbers." if times else ""
    return f"The columns of the model cannot be evaluated on these data: {text}{hint}"


def _names(model: ModelSpec) -> tuple[str, ...]:
    return tuple(str(name) for name in model.column_names)


def _is_factor(values: Any) -> bool:
    if isinstance(values, FactorValues):
        kind = values.__formulaic_metadata__.kind
        if kind is not Factor.Kind.UNKNOWN:
            return kind is Factor.Kind.CATEGORICAL
    return holds_levels(_unwrapped(values))


def _unwrapped(values: Any) -> Any:
    return values.__wrapped__ if isinstance(values, FactorValues) else values


def _as_spec(spec: object) -> _Spec:
    if not isinstance(spec, _Spec):
        raise TypeError(f"spec must come from evaluate(), got {type(spec).__name__}")
    return spec


def _factors(spec: _Spec, prepared: pd.DataFrame) -> Iterator[tuple[str, str, Any]]:
    """Yield each factor of the spec, the kind it had, and its values on these data."""
    materializer = _Materializer(prepared, context=CONTEXT)
    lenient = spec.model.update(na_action="ignore", encoder_state={})
    factors = {factor.expr: factor for term in spec.model.formula for factor in term.factors}
    for expr, (kind, _) in spec.model.encoder_state.items():
        try:
            with np.errstate(all="ignore"):
                found = materializer._evaluate_factor(factors[expr], lenient, set())
        except FormulaicError as error:
            raise DataError(_reason(error, prepared)) from error
        yield expr, kind.value, found.values
