"""What goes into a design: which variables, numeric expressions, weights, and their checks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of, plain, refused, to_floats
from bayeslmm.data.frames import missing, to_column
from bayeslmm.data.grouping import column_levels
from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula, ScaleFormula, locate
from bayeslmm.formula.matrices import conform, evaluate_response
from bayeslmm.formula.moments import Moments, moments_of
from bayeslmm.formula.residual import ResidualFormula
from bayeslmm.formula.syntax import Operand

Array = NDArray[np.float64]

MOST_LISTED = 20
"""Unknown variables that a message names."""

NUMBERS_AS_TEXT = 10
"""Distinct values from which a text column of numbers is taken for a mistake, not a factor."""


@dataclass(frozen=True, slots=True, eq=False)
class Expression:
    """A numeric expression as it was first evaluated: a response or an offset.

    Attributes
    ----------
    operand : Operand
    functions : mapping of str to callable
        The user's.
    categories : mapping of str to pandas.Index
        Those of the columns that the user's functions read.
    state : dict
        What transforms remember.
    """

    operand: Operand
    functions: UserFunctions
    categories: Mapping[str, pd.Index]
    state: dict[str, Any]

    def value(self, columns: Variables) -> Array:
        """Evaluate the expression on other data, shape (n,)."""
        known = conform(columns, self.categories)
        return evaluate_response(self.operand, known, self.functions, self.state)


def first_value(
    operand: Operand, columns: Variables, functions: UserFunctions
) -> tuple[Array, Expression]:
    """Evaluate a response or an offset, shape (n,), and keep how it is done on other data."""
    state: dict[str, Any] = {}
    values = evaluate_response(operand, columns, functions, state)
    own = not operand.functions.isdisjoint(functions)
    categories = columns.categories(sorted(operand.variables)) if own else {}
    return values, Expression(operand, functions, categories, state)


# --- variables and checks --------------------------------------------------------------


def check_variables(
    formula: Formula | ResidualFormula | ScaleFormula, names: Sequence[str]
) -> None:
    """Raise FormulaError for the first variable that is not among the columns `names`."""
    present = set(names)
    unknown = sorted(formula.variables - present)
    absent = sorted((locate(formula.source, name), name) for name in unknown[:MOST_LISTED])
    if not absent:
        return
    (start, end), name = absent[0]
    role = "The grouping factor " if name in formula.grouping else ""
    if isinstance(formula, Formula) and name in formula.weights:
        role = "The weight "
    others = listed([other for _, other in absent[1:]])
    more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
    also = f" Neither {'is' if len(absent) == 2 else 'are'} {others}{more}." if others else ""
    raise FormulaError(
        f"{role}`{name}` is not a column of the data.{nearest(name, names)}{also} The columns are "
        f"{listed(sorted(names))}.",
        formula.source,
        start,
        end,
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """Suggest the most similar of `names`, as a sentence; empty if none is similar."""
    close = _closest(name, names)
    return f" Did you mean `{close}`?" if close else ""


def _closest(name: str, names: Sequence[str]) -> str:
    """The most similar of `names`; empty if none is similar."""
    by_key = {candidate.casefold(): candidate for candidate in names}
    close = difflib.get_close_matches(name.casefold(), by_key, n=1)
    return by_key[close[0]] if close else ""


def check_varies(label: str, y: Array, offset: Array) -> None:
    """Raise DataError for a constant response, or one that is far too large or small."""
    columns = np.column_stack([y, offset, y - offset])
    check_extremes(label, len(y), columns.min(axis=0), columns.max(axis=0))


def check_extremes(label: str, n: int, low: Array, high: Array) -> None:
    """The same from extremes (3,) of the response, the offset and their difference."""
    largest = np.maximum(np.abs(low), np.abs(high))
    for what, size in ((f"The response `{label}`", largest[0]), ("The offset", largest[1])):
        if size:
            _check_size(what, size)
    if n == 1:
        raise DataError("There is only 1 complete row; a model needs more.")
    if low[0] == high[0]:
        raise DataError(
            f"The response `{label}` has the same value, {low[0]:g}, in all {n} complete rows."
        )
    if low[2] == high[2]:
        raise DataError(f"The response `{label}` minus the offset has one value in all rows.")


def check_fixed_factors(
    formula: Formula | ScaleFormula, frame: pd.DataFrame, n: int | None = None
) -> None:
    """Raise DataError for a factor of the fixed effects that has one level.

    The frame may have fewer rows than there are, n, if it has every level.
    """
    for name in sorted(formula.right.names):
        if kind_of(frame[name]) == "numbers":
            continue
        levels = column_levels(frame[name])[1]
        if len(levels) >= NUMBERS_AS_TEXT and _look_like_numbers(frame[name], levels):
            raise DataError(
                f"`{name}` is text, and its {len(levels)} distinct values all look like numbers. "
                "Convert it with pandas.to_numeric, or make it categorical if it is a factor."
            )
        if len(levels) == 1:
            raise DataError(
                f"The factor `{name}` has one level, {levels[0]!r}, in the {n or len(frame)} "
                "complete rows, so that it has no effect; take it out of the fixed effects."
            )


def _look_like_numbers(column: pd.Series, levels: pd.Index) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return False
    numbers = pd.to_numeric(pd.Series([str(level) for level in levels]), errors="coerce")
    return bool(numbers.notna().all())


def check_not_own_predictor(formula: Formula) -> None:
    """Raise FormulaError if the response is a term of the fixed effects."""
    response = formula.response.strip("`")
    if response in formula.right.names:
        right = formula.source.index("~") + 1
        start, end = locate(formula.source[right:], response)
        raise FormulaError(
            f"The response `{response}` cannot be one of its own predictors; take it out.",
            formula.source,
            right + start,
            right + end,
        )


def check_labels(names: Sequence[str]) -> None:
    """Raise DataError if two columns of X have one name, as with a covariate called Intercept."""
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise DataError(
            f"Two columns of the fixed effects are called {listed(repeated)}; rename the variable."
        )


def check_rows(n: int, p: int) -> None:
    """Raise DataError if there are not more rows than fixed effects."""
    if p >= n:
        raise DataError(
            f"There are {p} fixed effects but only {n} complete rows; at least {p + 1} rows are "
            "needed."
        )


def precision_weights(
    weights: Any, frame: pd.DataFrame, data: Any, names: Sequence[str]
) -> NDArray[np.float64] | None:
    """Read precision weights: a column name or values, positive, NaN where missing."""
    if weights is None:
        return None
    if isinstance(weights, str):
        if weights not in names:
            raise DataError(
                f"The weights `{weights}` are not a column of the data.{nearest(weights, names)} "
                f"The columns are {listed(sorted(names))}."
            )
        column = frame[weights]
    else:
        column = _weights_column(weights, frame, data)
    label = f"The weights `{weights}`" if isinstance(weights, str) else "The weights"
    given = column.dtype
    column = plain(column)
    if column.isna().all():
        raise DataError(f"{label} are all missing.")
    if refused(column) or kind_of(column) != "numbers":
        raise DataError(f"{label} must be numbers, got {given} values.")
    values = to_floats(column).to_numpy().copy()
    bad = ~np.isnan(values) & ~((values > 0) & (values < np.inf))
    if bad.any():
        first = int(bad.argmax())
        raise DataError(
            f"{label} must be positive and finite, but {bad.sum()} of {len(values)} are not (first "
            f"{values[first]:g} at position {first}). A row that should not count must be taken "
            "out of the data."
        )
    check_weights_scale(label, values)
    return values


def _weights_column(weights: Any, frame: pd.DataFrame, data: Any) -> pd.Series:
    if isinstance(weights, pd.Series):
        column = weights
        if isinstance(data, pd.DataFrame) and not weights.index.equals(frame.index):
            raise DataError(
                "The weights are a pandas Series whose index differs from that of the data; add "
                "them to the data and give the name of the column."
            )
    else:
        weights = np.asarray(weights) if np.ndim(weights) != 1 else to_column(weights, "weights")
        column = pd.Series(weights) if np.ndim(weights) == 1 else pd.Series([0.0])
    if np.ndim(weights) != 1 or len(column) != len(frame):
        raise DataError(
            f"The weights must be one value per row of the data, {len(frame)} values, got shape "
            f"{np.shape(weights)}."
        )
    return column


# --- new data --------------------------------------------------------------------------


def check_present(variables: frozenset[str], names: Sequence[str]) -> None:
    """Raise DataError if new data lack a variable."""
    absent = sorted(variables - set(names))
    if absent:
        close = _closest(absent[0], names)
        hint = f" Their column `{close}` is similar: rename it." if close else ""
        raise DataError(
            f"The new data have no column {listed(absent)}.{hint} Needed are "
            f"{listed(sorted(variables))}; the columns are {listed(sorted(names))}."
        )


def check_complete(frame: pd.DataFrame, variables: frozenset[str]) -> None:
    """Raise DataError if a variable of new data has a missing value."""
    gaps = {name: missing(frame[name]) for name in sorted(variables)}
    counts = [
        f"`{n}` {g.sum()} (first at position {g.argmax()})" for n, g in gaps.items() if g.any()
    ]
    if counts:
        raise DataError(
            f"The new data have missing values in variables that are needed: {', '.join(counts)}. "
            "Fill them in or drop the rows."
        )


# --- numbers that double precision has no room for ---------------------------------------


SMALLEST = 1e-50
LARGEST = 1e50
"""Range of the largest absolute value of a column."""

NEARLY_CONSTANT = 1e-10
"""Range over largest absolute value below which too few digits of a column's effect are left."""

ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""The same ratio up to which a column counts as constant, its variation being rounding."""

LARGEST_RATIO = 1e15
"""Largest weight over smallest: rows with less weight are lost in the rounding of the others."""


def check_column_scales(names: Sequence[str], columns: Array | Moments, where: str) -> None:
    """Raise DataError for a column (n, k) far too large or small, or nearly constant.

    Parameters
    ----------
    names : sequence of str
        Labels of the columns.
    columns : ndarray (n, k) or Moments
        Their values.
    where : str
        What they belong to, for the message.
    """
    if isinstance(columns, Moments):
        low, high = columns.low, columns.high
    else:
        low, high = columns.min(axis=0), columns.max(axis=0)
    sizes, spreads = np.maximum(np.abs(low), np.abs(high)), high - low
    for name, size in zip(names, sizes, strict=True):
        if size:
            _check_size(f"The column `{name}` of {where}", size)
    for j, (name, size, spread) in enumerate(zip(names, sizes, spreads, strict=True)):
        nearly_constant = ROUNDING * size < spread < NEARLY_CONSTANT * size
        if nearly_constant and _has_constant(moments_of(columns), j):
            centre = _middle(columns, j)
            raise DataError(
                f"The column `{name}` of {where} varies by {spread:.2g} about "
                f"{centre:.6g}: double precision has too few digits for its effect beside a "
                f"constant. Subtract the constant in the data, {name} - {centre:.17g}, or leave "
                "the column out."
            )


def _middle(columns: Array | Moments, j: int) -> float:
    return float(columns.means[j] if isinstance(columns, Moments) else np.median(columns[:, j]))


def check_weights_scale(label: str, weights: Array) -> None:
    """Raise DataError for weights that are far too large or small, or too different."""
    known = weights[~np.isnan(weights)]
    smallest, largest = float(known.min()), float(known.max())
    _check_size(label, largest)
    if smallest * LARGEST_RATIO < largest:
        raise DataError(
            f"{label} go from {smallest:.3g} to {largest:.3g}: double precision cannot hold what "
            "rows of the smallest weight say beside those of the largest. Take the rows of "
            f"negligible weight out; the ratio may be at most {LARGEST_RATIO:g}."
        )


def _check_size(what: str, size: float) -> None:
    if not SMALLEST <= size <= LARGEST:
        verb = "reach" if what.startswith("The weights") else "reaches"
        extreme = "large" if size > LARGEST else "small"
        power = int(np.floor(np.log10(size)))
        raise DataError(
            f"{what} {verb} {size:.3g} at most, which is too {extreme} for double precision, as "
            f"variances are squares: the largest absolute value must lie between {SMALLEST:g} and "
            f"{LARGEST:g}. Change the units, for example divide by 1e{power}."
        )


def _has_constant(moments: Moments, column: int) -> bool:
    """Whether the constant is a combination of the other columns."""
    others, sizes = np.delete(moments.columns, column, axis=1), np.delete(moments.largest, column)
    scaled = others[:, sizes > 0] / sizes[sizes > 0]
    weights = np.linalg.lstsq(scaled, moments.ones)[0]
    rest = np.linalg.norm(scaled @ weights - moments.ones)
    return bool(rest < 1e-8 * np.sqrt(moments.n))


def fixed_mapping(fixed: Any) -> dict[str, Any]:
    """Known parameters by name.

    Raises
    ------
    TypeError
        If it is no mapping.
    """
    if fixed is None:
        return {}
    if not isinstance(fixed, Mapping):
        raise TypeError(
            'fixed must be a mapping from names of covariance parameters to values, as {"sigma": '
            f"1.0}}; got {type(fixed).__name__}."
        )
    return dict(fixed)
