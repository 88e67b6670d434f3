"""How columns are built, fixed before rows are read: declared levels, and rows that are made up.

Columns are made of rows that have each level of each factor among the covariates. Where levels are
declared, or the rows of the data are to stay where they are, such rows are made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.column_types import kind_of, level_order
from bayeslmm.data.frames import missing, plain_frame
from bayeslmm.data.inputs import nearest
from bayeslmm.data.sources import Source
from bayeslmm.data.survey import Coding, sides_of
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import UserFunctions, Variables, evaluate_expression, unwrapped
from bayeslmm.formula.expressions import STATEFUL
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import is_factor
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side

ORDERED = ("numbers", "truth values")
"""Kinds of columns whose levels have an order of their own."""


def factor_operands(
    side: Side, frame: pd.DataFrame, functions: UserFunctions
) -> dict[str, tuple[str, ...]]:
    """Operands of a side that are factors, by their labels, and the columns that they read.

    Parameters
    ----------
    side : Side
    frame : pandas.DataFrame
        Some complete rows.
    functions : mapping of str to callable
        The user's.
    """
    rows = Variables(frame)
    found = {}
    for part in side.operands:
        values = _values(part, rows, functions)
        numbers = part.reading is None and kind_of(frame[part.label]) == "numbers"
        occasion = side.occasions and part.label in side.names
        if occasion or (values is not None and not numbers and is_factor(values)):
            found[part.label] = tuple(sorted(part.variables))
    return found


def _values(part: Operand, rows: Variables, functions: UserFunctions) -> Any:
    """Values of an operand; None where it fails or needs whole columns."""
    if part.reading is None:
        return rows[part.label]
    if not part.functions.isdisjoint(STATEFUL):
        return None
    try:
        with np.errstate(all="ignore"):
            return evaluate_expression(part.reading, rows, functions, {})
    except Exception:
        return None


def covariate_levels(
    formula: Formula, sample: pd.DataFrame, functions: UserFunctions
) -> dict[str, pd.Series]:
    """Columns that are factors among the covariates, by name, and the levels of each, in order.

    A column of numbers is one where an expression has its values as levels, such as ``C(visit)``.
    """
    rows, found = Variables(sample), {}
    for side in sides_of(formula):
        operands = {part.label: part for part in side.operands}
        for label, variables in factor_operands(side, sample, functions).items():
            if len(variables) != 1 or variables[0] in found:
                continue
            (name,) = variables
            column = sample[name]
            values = pd.Series(unwrapped(_values(operands[label], rows, functions)))
            own = values.astype(object).tolist() == column.astype(object).tolist()
            if kind_of(column) != "numbers" or own or operands[label].reading is None:
                found[name] = _in_order(column.drop_duplicates())
    return found


def _in_order(levels: pd.Series) -> pd.Series:
    if isinstance(levels.dtype, pd.CategoricalDtype):
        return levels.sort_values().reset_index(drop=True)
    return levels.iloc[level_order(pd.Index(levels))].reset_index(drop=True)


# --- rows that are made up -------------------------------------------------------------


def made_up(
    sample: pd.DataFrame, levels: Mapping[str, pd.Series], numbers: Mapping[str, float]
) -> pd.DataFrame:
    """Rows that have each level of each factor, and else one value in each column.

    Parameters
    ----------
    sample : pandas.DataFrame
        Rows with the columns.
    levels : mapping of str to pandas.Series
        Those of each column that is a factor among the covariates.
    numbers : mapping of str to float
        The value of columns of numbers; 1 where there is none. Other columns keep their first one.
    """
    size = max(map(len, levels.values()), default=1)
    columns = {}
    for name, column in sample.items():
        known = levels.get(str(name))
        if known is not None:
            columns[name] = known.iloc[np.arange(size) % len(known)].reset_index(drop=True)
        elif kind_of(column) == "numbers":
            columns[name] = pd.Series(np.full(size, float(numbers.get(str(name), 1.0))))
        else:
            columns[name] = column.iloc[[0] * size].reset_index(drop=True)
    return pd.DataFrame(columns)


# --- declared levels -------------------------------------------------------------------


def declared_coding(
    formula: Formula,
    functions: UserFunctions,
    source: Source,
    weights: str | None,
    levels: Mapping[str, Sequence[Any]],
) -> tuple[Coding | None, Source]:
    """How columns are built from declared levels, and the source with none of its rows lost.

    Where no row is complete nothing is known of the columns, and reading the source says so.

    Parameters
    ----------
    formula : Formula
    functions : mapping of str to callable
        The user's.
    source : Source
        Its first rows are read for the types of its columns.
    weights : str or None
        Column of the precision weights.
    levels : mapping of str to sequence
        Levels, in order, of each factor among the covariates.

    Raises
    ------
    DataError
        If a factor is absent, or the levels cannot be those of its column.
    """
    wanted = sorted({*formula.variables, *([weights] if weights else [])})
    first, source = _begun(source, wanted, sorted(formula.variables))
    if first is None:
        return None, source
    needed = {
        name: first[name]
        for side in sides_of(formula)
        for variables in factor_operands(side, first, functions).values()
        for name in variables
    }
    _check_names(levels, needed, formula)
    typed = {name: _typed(name, column, levels[name]) for name, column in needed.items()}
    numbers = {
        str(name): float(column.iloc[0])
        for name, column in first.items()
        if kind_of(column) == "numbers"
    }
    return Coding(sample=made_up(first, typed, numbers), states={}), source


def _begun(
    source: Source, wanted: Sequence[str], variables: Sequence[str]
) -> tuple[pd.DataFrame | None, Source]:
    """The first complete row, if any, and the source, of which that costs no reading."""
    names = source.columns()
    frames = (raw for _, raw in source.frames(wanted))
    held: list[Any] = []
    found = None
    for raw in frames:
        held.append(raw)
        frame = plain_frame(raw, wanted) if len(raw) else pd.DataFrame()
        if set(wanted) <= set(frame.columns):
            gaps = np.any([missing(frame[name]) for name in wanted], axis=0)
            if not gaps.all():
                found = frame[list(variables)].iloc[[int(np.argmin(gaps))]].reset_index(drop=True)
                break
        else:
            break
    rest: list[Iterator[Any]] = [chain(held, frames)]

    def read(columns: Sequence[str]) -> Iterable[Any]:
        return rest.pop() if rest else source.read(columns)

    source = replace(source, names=lambda: names, read=read)
    return found, source


def _check_names(
    levels: Mapping[str, Sequence[Any]], needed: Mapping[str, pd.Series], formula: Formula
) -> None:
    if absent := sorted(set(needed) - set(levels)):
        raise DataError(
            f"levels= lacks {listed(absent)}: give the levels of each factor among the covariates, "
            f"in order, the reference first, as in levels={{{absent[0]!r}: [...]}}."
        )
    for name in sorted(set(levels) - set(needed)):
        if name in formula.variables:
            raise DataError(
                f"levels= has `{name}`, which is no factor among the covariates of "
                f"`{formula.source}`. Levels of grouping factors need not be declared."
            )
        raise DataError(
            f"levels= has `{name}`, which is not in `{formula.source}`."
            f"{nearest(name, sorted(needed))}"
        )


def _typed(name: str, column: pd.Series, levels: Sequence[Any]) -> pd.Series:
    """Declared levels in the type of a column."""
    given = list(levels) if not isinstance(levels, str) else [levels]
    if len(given) < 2 or len(set(given)) < len(given) or any(map(pd.isna, given)):
        raise DataError(
            f"levels= of `{name}` must be at least two values, each once; got {given!r:.80}."
        )
    kind, found = kind_of(column), pd.Series(given)
    same = kind_of(found) == kind if kind in ORDERED else kind_of(found) not in ORDERED
    if kind == "categories":
        same = kind_of(found) == kind_of(pd.Series(column.cat.categories))
    if not same:
        raise DataError(
            f"levels= of `{name}` are {kind_of(found)}, and the column holds {kind}: {given!r:.80}."
        )
    if kind not in ORDERED:
        return pd.Series(pd.Categorical(given, categories=given))
    if given != sorted(given):
        raise DataError(
            f"levels= of `{name}` are {kind}, whose order is their own: give {sorted(given)!r:.80}."
        )
    return found.astype(column.dtype)
