"""Everything bayeslmm asks of formulaic; only `transforms.py` imports it too."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec, SimpleFormula
from formulaic.errors import DataMismatchWarning, FormulaicError, FormulaParsingError
from formulaic.materializers import FactorValues, PandasMaterializer
from formulaic.materializers.pandas import override
from formulaic.parser import DefaultFormulaParser
from formulaic.parser.types import Factor, Term
from formulaic.parser.types import Token as RawToken

from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.evaluation import (
    Known,
    UserFunctions,
    Variables,
    as_numbers,
    check_columns,
    check_levels,
    evaluate_expression,
    holds_levels,
    not_evaluated,
    undefined,
    unwrapped,
)
from bayeslmm.formula.expressions import Reading, read
from bayeslmm.formula.syntax import tokens

type Readings = Mapping[str, Reading | None]

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# --- reading formulas ------------------------------------------------------------------


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
                raw.token = read(found.value).text
                raw.kind = RawToken.Kind.PYTHON
                raw.source_end = found.end - 1
            yield raw


@lru_cache(maxsize=1024)
def parsed_terms(rhs: str) -> tuple[tuple[str, ...], ...]:
    """List the terms of a right-hand side as formulaic reads it.

    Parameters
    ----------
    rhs : str
        A right-hand side; it has an intercept unless it removes it.

    Returns
    -------
    tuple of tuple of str
        Columns, Python in its canonical form and numbers that each term multiplies; nothing for
        the intercept.

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
        found = tuple(tuple(str(factor.expr) for factor in term.factors) for term in terms)
        return tuple(() if term == ("1",) else term for term in found)
    except FormulaParsingError as error:
        raise _located(error, rhs) from error
    except FormulaError:
        raise
    except Exception as error:
        start = len(rhs) - len(rhs.lstrip())
        message = "This is not a valid sum of terms."
        raise FormulaError(message, rhs, start, len(rhs.rstrip())) from error


def _located(error: Exception, source: str) -> FormulaError:
    """Turn formulaic's error, which marks the place with ⧛...⧚, into ours."""
    message, _, context = re.sub(_COLOURS, "", str(error)).partition("\n\n")
    message = message.replace("insuffient", "insufficient")
    first, last = context.find("⧛"), context.find("⧚")
    if first < 0:
        return FormulaError(message, source, 0, len(source))
    return FormulaError(message, source, first, max(first + 1, last - 1))


# --- evaluating them on data -----------------------------------------------------------


class _Materializer(PandasMaterializer):
    """Formulaic's pandas materializer with boolean columns as factors, limits and no ``eval``."""

    REGISTER_NAME = "bayeslmm"

    def __init__(self, columns: Variables, readings: Readings, functions: UserFunctions) -> None:
        super().__init__(columns.to_frame(name for name in readings if readings[name] is None))
        self._columns = columns
        self._readings = readings
        self._functions = functions
        self._count = 0

    @override
    def _is_categorical(self, values: Any) -> bool:
        return is_factor(values)

    @override
    def _evaluate(self, expr: str, metadata: Any, spec: ModelSpec) -> tuple[Any, set[Any]]:
        reading, state = self._readings[expr], spec.transform_state
        assert reading is not None
        return evaluate_expression(reading, self._columns, self._functions, state), set()

    @override
    def _encode_evaled_factor(
        self, factor: Any, spec: ModelSpec, drop_rows: Any, reduced_rank: bool = False
    ) -> dict[str, Any]:
        if is_factor(factor.values):
            check_levels(factor.expr, pd.Series(unwrapped(factor.values)).nunique())
        return super()._encode_evaled_factor(factor, spec, drop_rows, reduced_rank)

    @override
    def _get_columns_for_term(
        self, factors: list[dict[str, Any]], spec: ModelSpec, scale: float = 1
    ) -> dict[str, Any]:
        self._count = check_columns(self._count, map(len, factors))
        return super()._get_columns_for_term(factors, spec, scale)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FormulaicBuilder:
    """How formulaic builds a model matrix on other data."""

    model: ModelSpec
    readings: Readings
    functions: UserFunctions

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return tuple(str(name) for name in self.model.column_names)

    def matrix(self, columns: Variables) -> np.ndarray:
        """The model matrix of other data."""
        return _materialize(self.model, columns, self.readings, self.functions)[0]

    def factors(self, columns: Variables) -> Iterator[Known]:
        """Each operand, what it was, and its values on other data."""
        materializer = _Materializer(columns, self.readings, self.functions)
        lenient = self.model.update(na_action="ignore", encoder_state={})
        factors = {factor.expr: factor for term in self.model.formula for factor in term.factors}
        for expr, (kind, state) in self.model.encoder_state.items():
            try:
                with np.errstate(all="ignore"):
                    found = materializer._evaluate_factor(factors[expr], lenient, set())
            except FormulaicError as error:
                raise DataError(_reason(error, columns, self.readings)) from error
            values = unwrapped(found.values)
            levels = state.get("categories") if kind is Factor.Kind.CATEGORICAL else None
            yield Known(expr, kind.value, levels, values, is_factor(found.values))


def formulaic_columns(
    terms: Sequence[tuple[str, ...]],
    readings: Readings,
    columns: Variables,
    functions: UserFunctions,
    state: dict[str, Any] | None = None,
) -> tuple[np.ndarray, FormulaicBuilder]:
    """Build the model matrix of terms.

    Parameters
    ----------
    terms : sequence of tuple of str
        Labels of the operands of each term; those without a reading are numbers.
    readings : mapping of str to Reading or None
        The Python of each operand; None for a column.
    columns : Variables
        n complete rows.
    functions : mapping of str to callable
        The user's.
    state : dict, optional
        What transforms remember; by default they are fitted to these rows.

    Returns
    -------
    values : ndarray (n, k)
    builder : FormulaicBuilder

    Raises
    ------
    DataError
        If an expression fails, or a value is missing or infinite.
    """
    methods = {label: "python" if reading else "lookup" for label, reading in readings.items()}
    formula = SimpleFormula(
        Term([Factor(label, eval_method=methods.get(label, "literal")) for label in term or ("1",)])
        for term in terms
    )
    spec = ModelSpec.from_spec(formula).update(transform_state=dict(state or {}))
    values, model = _materialize(spec, columns, readings, functions)
    return values, FormulaicBuilder(model=model, readings=readings, functions=functions)


def _materialize(
    spec: ModelSpec, columns: Variables, readings: Readings, functions: UserFunctions
) -> tuple[np.ndarray, ModelSpec]:
    materializer = _Materializer(columns, readings, functions)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", DataMismatchWarning)
            matrix = materializer.get_model_matrix(spec, output="numpy", na_action="raise")
    except DataMismatchWarning as error:  # formulaic would take them for the reference level
        raise DataError(
            "The levels= of a factor leave out levels that the data have. Name all of them."
        ) from error
    except (FormulaicError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise DataError(_reason(error, columns, readings)) from error
    names = tuple(str(name) for name in matrix.model_spec.column_names)
    return as_numbers(np.asarray(matrix), names), matrix.model_spec


def _reason(error: Exception, columns: Variables, readings: Readings) -> str:
    text = re.sub(_COLOURS, "", str(error))
    nulls = re.search(r"checking for nulls in `(.*)`: `.* contains null values", text)
    python = (reading.variables for reading in readings.values() if reading is not None)
    used = {label for label in readings if readings[label] is None}.union(*python)
    return undefined(nulls[1]) if nulls else not_evaluated(text, columns, used)


def is_factor(values: Any) -> bool:
    """Tell whether values, with or without formulaic's notes, are levels."""
    if isinstance(values, FactorValues):
        kind = values.__formulaic_metadata__.kind
        if kind is not Factor.Kind.UNKNOWN:
            return kind is Factor.Kind.CATEGORICAL
    return holds_levels(unwrapped(values))
