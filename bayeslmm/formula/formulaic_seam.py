"""Everything bayeslmm asks of formulaic; only `_functions.py` imports it too."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec
from formulaic.errors import DataMismatchWarning, FormulaicError, FormulaParsingError
from formulaic.materializers import FactorValues, PandasMaterializer
from formulaic.materializers.pandas import override
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.algos.tokenize import tokenize
from formulaic.parser.types import Factor
from formulaic.parser.types import Token as RawToken

from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.columns import (
    categories_of,
    check_finite,
    check_kinds,
    conform,
    holds_levels,
    listed,
    outside,
    prepare,
)
from bayeslmm.formula.evaluation import evaluate_expression
from bayeslmm.formula.expressions import Reading, read
from bayeslmm.formula.functions import FUNCTIONS, STATEFUL, UserFunctions, own_functions

__all__ = ["FUNCTIONS", "STATEFUL", "UserFunctions", "own_functions"]

NO_FUNCTIONS: UserFunctions = {}

MOST_COLUMNS = 10_000
"""Columns of one model matrix."""

MOST_LEVELS = 5_000
"""Levels of a factor of a model matrix; grouping factors have as many as they like."""

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
    """A formulaic spec, the variables it reads, the levels of its factors, the user's functions."""

    model: ModelSpec
    variables: frozenset[str]
    categories: dict[str, pd.Index]
    functions: UserFunctions


class _Parser(DefaultFormulaParser):
    """Formulaic's parser, which here never sees the Python of a formula, only that it is there."""

    def get_tokens_from_formula(
        self, formula: str, *, context: MutableMapping[str, Any]
    ) -> Iterable[RawToken]:
        python = {token.start: token for token in tokens(formula) if token.kind == "python"}
        masked = list(formula)
        for token in python.values():
            masked[token.start : token.end] = f"`{'_' * (len(token.text) - 2)}`"
        for raw in super().get_tokens_from_formula("".join(masked), context=context):
            if raw.source is not None:
                raw.source = formula
            found = python.get(-1 if raw.source_start is None else raw.source_start)
            if found is not None:
                raw.token = expression(formula, found).text
                raw.kind = RawToken.Kind.PYTHON
                raw.source_end = found.end - 1
            yield raw


class _Materializer(PandasMaterializer):
    """Formulaic's pandas materializer with boolean columns as factors, limits and no ``eval``."""

    REGISTER_NAME = "bayeslmm"

    def __init__(self, data: pd.DataFrame, functions: UserFunctions) -> None:
        super().__init__(data)
        self._functions = functions
        self._count = 0

    @override
    def _is_categorical(self, values: Any) -> bool:
        return _is_factor(values)

    @override
    def _evaluate(self, expr: str, metadata: Any, spec: ModelSpec) -> tuple[Any, set[Any]]:
        value = evaluate_expression(expr, self.data, self._functions, spec.transform_state)
        return value, set()

    @override
    def _encode_evaled_factor(
        self, factor: Any, spec: ModelSpec, drop_rows: Any, reduced_rank: bool = False
    ) -> dict[str, Any]:
        if _is_factor(factor.values):
            levels = pd.Series(_unwrapped(factor.values)).nunique()
            if levels > MOST_LEVELS:
                raise ValueError(
                    f"the factor `{factor.expr}` has {levels} levels, and one of a model matrix "
                    f"may have {MOST_LEVELS}; a grouping factor, (1 | group), may have more"
                )
        return super()._encode_evaled_factor(factor, spec, drop_rows, reduced_rank)

    @override
    def _get_columns_for_term(
        self, factors: list[dict[str, Any]], spec: ModelSpec, scale: float = 1
    ) -> dict[str, Any]:
        self._count += math.prod(map(len, factors))
        if self._count > MOST_COLUMNS:
            raise ValueError(
                f"these terms have more than {MOST_COLUMNS} columns; a combination of factors with "
                "many levels is a grouping factor, (1 | f1:f2)"
            )
        return super()._get_columns_for_term(factors, spec, scale)


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
    return list(_tokens(source))


@lru_cache(maxsize=16)
def _tokens(source: str) -> tuple[Token, ...]:
    try:
        return tuple(token for raw in tokenize(source) for token in _positioned(raw, source))
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


@lru_cache(maxsize=1024)
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
        terms = _Parser().get_terms(rhs)
        return tuple(":".join(sorted(str(f.expr) for f in term.factors)) for term in terms)
    except FormulaParsingError as error:
        raise _located(error, rhs) from error
    except FormulaError:
        raise
    except Exception as error:
        start = len(rhs) - len(rhs.lstrip())
        message = "This is not a valid sum of terms."
        raise FormulaError(message, rhs, start, len(rhs.rstrip())) from error


def expression(source: str, token: Token) -> Reading:
    """Read the Python of a token.

    Parameters
    ----------
    source : str
        The formula.
    token : Token
        Of kind "python".

    Returns
    -------
    Reading

    Raises
    ------
    FormulaError
        With positions in `source`, if it is not valid or not allowed.
    """
    try:
        return read(token.value)
    except FormulaError as error:
        shift = token.start + (token.text[0] == "{")
        start, end = error.start or 0, error.end or 0
        raise FormulaError(error.message, source, shift + start, shift + end) from error


def required_variables(expression_text: str) -> frozenset[str]:
    """List the data variables that an expression reads.

    Parameters
    ----------
    expression_text : str
        The right-hand side of a formula or a single expression.

    Returns
    -------
    frozenset of str
        Column names without backticks; functions and constants are left out.

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
    for token in tokens(expression_text):
        if token.kind == "name":
            names.add(token.value)
        elif token.kind == "python":
            names |= expression(expression_text, token).variables
    return frozenset(names)


def called_functions(expression_text: str) -> frozenset[str]:
    """List the functions that an expression calls by bare name."""
    found = tokens(expression_text)
    readings = [expression(expression_text, token) for token in found if token.kind == "python"]
    return frozenset[str]().union(*(reading.functions for reading in readings))


# --- evaluating them on data -----------------------------------------------------------


def evaluate(rhs: str, frame: pd.DataFrame, functions: UserFunctions = NO_FUNCTIONS) -> Columns:
    """Build the model matrix of a right-hand side.

    Parameters
    ----------
    rhs : str
        For example ``"1 + x * f"``; ``"1"`` gives a column of ones, ``"0"`` no column.
    frame : pandas.DataFrame
        n complete rows. String, boolean and categorical columns are factors; the order of
        the categories is the order of the levels, the first being the reference; unused
        categories are dropped.
    functions : mapping of str to callable, optional
        The user's.

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
    values, model = _materialize(_model_spec(rhs), prepared, functions)
    spec = _Spec(
        model=model,
        variables=variables,
        categories=categories_of(prepared),
        functions=functions,
    )
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
    values, _ = _materialize(spec.model, prepared, spec.functions)
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


def evaluate_response(
    expression: str, frame: pd.DataFrame, functions: UserFunctions = NO_FUNCTIONS
) -> tuple[np.ndarray, str]:
    """Evaluate one numeric expression: a response, an offset or weights.

    Parameters
    ----------
    expression : str
        A column or a Python expression such as ``"log(y + 10)"``.
    frame : pandas.DataFrame
        n complete rows.
    functions : mapping of str to callable, optional
        The user's.

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
    values = _single_value(expression, prepared, functions)
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


def _single_value(text: str, prepared: pd.DataFrame, functions: UserFunctions) -> Any:
    found = tokens(text)
    code = found[0].value if len(found) == 1 else text
    if len(found) == 1 and found[0].kind == "name":
        return prepared[code]
    try:
        with np.errstate(all="ignore"):
            return evaluate_expression(code, prepared, functions, {})
    except FormulaError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"`{text}` cannot be evaluated on these data: {reason}") from error


def _model_spec(rhs: str) -> ModelSpec:
    check_terms(rhs)
    return ModelSpec.from_spec(Formula(rhs, _parser=_Parser()))


def _materialize(
    spec: ModelSpec, prepared: pd.DataFrame, functions: UserFunctions
) -> tuple[np.ndarray, ModelSpec]:
    materializer = _Materializer(prepared, functions)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)
            matrix = materializer.get_model_matrix(spec, output="numpy", na_action="raise")
    except DataMismatchWarning as error:  # formulaic would take them for the reference level
        raise DataError(
            "The levels= of a factor leave out levels that the data have. Name all of them."
        ) from error
    except (FormulaicError, ValueError, TypeError, LookupError, ArithmeticError) as error:
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
    materializer = _Materializer(prepared, spec.functions)
    lenient = spec.model.update(na_action="ignore", encoder_state={})
    factors = {factor.expr: factor for term in spec.model.formula for factor in term.factors}
    for expr, (kind, _) in spec.model.encoder_state.items():
        try:
            with np.errstate(all="ignore"):
                found = materializer._evaluate_factor(factors[expr], lenient, set())
        except FormulaicError as error:
            raise DataError(_reason(error, prepared)) from error
        yield expr, kind.value, found.values
