"""Model matrices: the columns of a right-hand side, on the data of a model and on other data.

Plain sides are built in `plain.py`, all others by formulaic; both give the same columns where both
can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.columns import (
    Known,
    Variables,
    check_finite,
    holds_levels,
    is_marked,
    listed,
    outside,
)
from bayeslmm.formula.evaluation import NO_FUNCTIONS, UserFunctions, evaluate_expression
from bayeslmm.formula.plain import plain_columns
from bayeslmm.formula.syntax import Operand, read_operand
from bayeslmm.formula.terms import Side, read_side

Array = NDArray[np.float64]
type Rows = pd.DataFrame | Variables


class Builder(Protocol):
    """How the columns of a side are built on other data."""

    @property
    def names(self) -> tuple[str, ...]:
        """Labels of the columns."""

    def matrix(self, columns: Variables) -> Array:
        """The model matrix of other data."""

    def factors(self, columns: Variables) -> Iterator[Known]:
        """Each operand, what it was, and its values on other data."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spec:
    """What is needed to build the columns of a side on other data.

    Attributes
    ----------
    builder : Builder
        Levels, contrasts, knots, centres and scales.
    variables : frozenset of str
        The columns of a data frame that it reads.
    categories : mapping of str to pandas.Index
        The categories of those that are categorical.
    """

    builder: Builder
    variables: frozenset[str]
    categories: Mapping[str, pd.Index]


@dataclass(frozen=True, eq=False, kw_only=True)
class Columns:
    """A model matrix: `values` (n, k) float64, its k column `names`, and how it was built."""

    values: Array
    names: tuple[str, ...]
    spec: Spec

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Which columns (k,) are no linear combinations of earlier ones."""
        return independent_columns(self.values)


def evaluate(side: Side | str, frame: Rows, functions: UserFunctions = NO_FUNCTIONS) -> Columns:
    """Build the model matrix of a right-hand side.

    Parameters
    ----------
    side : Side or str
        For example ``"1 + x * f"``; ``"1"`` gives a column of ones, ``"0"`` no column.
    frame : pandas.DataFrame or Variables
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
    side = read_side(side) if isinstance(side, str) else side
    columns = as_variables(frame)
    columns.require(side.variables)
    columns.check_kinds(side.names)
    values, builder = _built(side, columns, functions)
    categories = columns.categories(sorted(side.variables))
    spec = Spec(builder=builder, variables=side.variables, categories=categories)
    return Columns(values=values, names=builder.names, spec=spec)


def _built(side: Side, columns: Variables, functions: UserFunctions) -> tuple[Array, Builder]:
    plain = plain_columns(side, columns) if side.is_plain(functions) else None
    if plain is not None:
        return plain
    from bayeslmm.formula.formulaic_seam import formulaic_columns

    readings = {part.label: part.reading for part in side.operands}
    return formulaic_columns(side.terms, readings, columns, functions)


def as_variables(frame: Rows) -> Variables:
    """Columns of a frame as formulas read them."""
    return frame if isinstance(frame, Variables) else Variables(frame)


def reevaluate(spec: Spec, frame: Rows) -> Columns:
    """Build the same columns on new data, keeping knots, centres, scales and levels.

    Parameters
    ----------
    spec : Spec
        The `spec` of an earlier `Columns`.
    frame : pandas.DataFrame or Variables
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
    columns = as_variables(frame)
    conformed, factors = _factors(spec, columns)
    unseen = _unseen(spec, columns, factors)
    if unseen:
        found = "; ".join(f"`{name}`: {listed(values)}" for name, values in unseen.items())
        raise DataError(f"The new data hold levels that the model has not seen ({found}).")
    for factor in factors:
        if (factor.kind == "categorical") != factor.is_factor:
            now = "numerical" if factor.kind == "categorical" else "categorical"
            raise DataError(
                f"`{factor.label}` was {factor.kind} when the model was built and is {now} here."
            )
    return Columns(values=spec.builder.matrix(conformed), names=spec.builder.names, spec=spec)


def unseen_categories(spec: Spec, frame: Rows) -> dict[str, list[Any]]:
    """List the levels of fixed-effect factors that were absent when a spec was built.

    Parameters
    ----------
    spec : Spec
        The `spec` of an earlier `Columns`.
    frame : pandas.DataFrame or Variables
        New rows.

    Returns
    -------
    dict
        From a factor (a column or an expression such as ``"C(f)"``) to its unseen levels
        in order of appearance; empty if there are none.
    """
    columns = as_variables(frame)
    return _unseen(spec, columns, _factors(spec, columns)[1])


def _factors(spec: Spec, columns: Variables) -> tuple[Variables, list[Known]]:
    if not isinstance(spec, Spec):
        raise TypeError(f"spec must come from evaluate(), got {type(spec).__name__}")
    columns.require(spec.variables)
    conformed = columns.conform(spec.categories)
    return conformed, list(spec.builder.factors(conformed))


def _unseen(spec: Spec, columns: Variables, factors: Iterable[Known]) -> dict[str, list[Any]]:
    unseen = {name: outside(columns[name], known) for name, known in spec.categories.items()}
    for factor in factors:
        if factor.levels is not None and factor.label not in unseen:
            unseen[factor.label] = outside(factor.values, factor.levels)
    return {name: values for name, values in unseen.items() if values}


def evaluate_response(
    response: Operand | str, frame: Rows, functions: UserFunctions = NO_FUNCTIONS
) -> Array:
    """Evaluate one numeric expression: a response, an offset or weights.

    Parameters
    ----------
    response : Operand or str
        A column or a Python expression such as ``"log(y + 10)"``.
    frame : pandas.DataFrame or Variables
        n complete rows.
    functions : mapping of str to callable, optional
        The user's.

    Returns
    -------
    ndarray (n,), float64

    Raises
    ------
    DataError
        If the result is not one finite numeric column.
    """
    part = read_operand(response) if isinstance(response, str) else response
    columns = as_variables(frame)
    columns.require(part.variables)
    values = _response_values(part, columns, functions)
    if _is_factor(values):
        raise DataError(
            f"`{part.text}` must be one numeric column, but it is categorical or boolean; "
            "convert it to numbers first."
        )
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise DataError(f"`{part.text}` must be one numeric column, got {array.dtype} values.")
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim > 1:
        raise DataError(f"`{part.text}` must be one numeric column, got {array.shape[1]} columns.")
    array = np.broadcast_to(array, (columns.n,)).astype(np.float64)
    check_finite(array[:, None], (part.text,))
    return array


def _response_values(part: Operand, columns: Variables, functions: UserFunctions) -> Any:
    if part.reading is None:
        return columns[part.label]
    try:
        with np.errstate(all="ignore"):
            return evaluate_expression(part.reading, columns, functions, {})
    except FormulaError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"`{part.text}` cannot be evaluated on these data: {reason}") from error


def _is_factor(values: Any) -> bool:
    if not is_marked(values):
        return holds_levels(values)
    from bayeslmm.formula.formulaic_seam import is_factor

    return is_factor(values)


# --- which columns to keep ---------------------------------------------------------------


TOLERANCE = 1e-7
"""Relative length below which what is left of a column counts as nothing, as in R's ``qr``."""

_ROUNDING = 16 * float(np.finfo(np.float64).eps)
_CHUNK = 1 << 15


def independent_columns(matrix: Array) -> NDArray[np.bool_]:
    """Find the columns that are not linear combinations of earlier ones.

    Parameters
    ----------
    matrix : ndarray, shape (n, p)
        Finite values.

    Returns
    -------
    ndarray of bool, shape (p,)
        In exact arithmetic, the columns that R's ``lm`` and lme4 keep.

    Notes
    -----
    R drops a column if what is left of it after projection on the earlier ones is shorter than
    1e-7 of its length, so that after an intercept it drops a covariate of 1e8 give or take 1. Here
    the constant is put first and columns are measured from their means, so that neither scale nor
    origin of a covariate matters; the first column that a constant would make redundant, if
    any, is the one that carries the constant and is kept.
    """
    centred, means = _centred_coordinates(matrix)
    lengths = np.linalg.norm(centred, axis=0)
    full_lengths = np.hypot(lengths, means)
    kept = np.zeros(matrix.shape[1], dtype=bool)
    carrier = None
    basis = np.zeros((len(centred), 0))
    for j, column in enumerate(centred.T):
        left = _residual(_residual(column, basis), basis)
        length = np.linalg.norm(left)
        if length > max(TOLERANCE * lengths[j], _ROUNDING * full_lengths[j]):
            kept[j] = True
            basis = np.column_stack([basis, left / length])
        elif carrier is None:
            constant = means[j] - means[kept] @ _solve(centred[:, kept], column)
            carrier = j if abs(constant) > TOLERANCE * full_lengths[j] else None
    if carrier is not None:
        kept[carrier] = True
    return kept


def _residual(vector: Array, basis: Array) -> Array:
    return vector - basis @ (basis.T @ vector)


def _solve(columns: Array, target: Array) -> Array:
    """Least squares coefficients, with the columns brought to one scale."""
    scale = np.linalg.norm(columns, axis=0)
    return np.asarray(np.linalg.lstsq(columns / scale, target)[0]) / scale


def _centred_coordinates(matrix: Array) -> tuple[Array, Array]:
    """Columns in at most p + 1 dimensions, lengths and angles kept.

    Returns the part orthogonal to the constant, (<= p, p), and the part along it, (p,). Means are
    subtracted before the factorisation, so that large ones cost no digits.
    """
    means = matrix.mean(axis=0)
    triangle = np.zeros((0, matrix.shape[1] + 1))
    for start in range(0, len(matrix), _CHUNK):
        block = matrix[start : start + _CHUNK] - means
        block = np.column_stack([np.ones(len(block)), block])
        triangle = np.linalg.qr(np.vstack([triangle, block]), mode="r")
    return triangle[1:, 1:], triangle[0, 1:] + means * triangle[0, 0]


# --- an indicator for every level of every factor ----------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UnreducedTerm:
    """A term without contrasts.

    Attributes
    ----------
    pieces : tuple of str
        Its factors and covariates as written; none for the intercept.
    values : ndarray (n, k)
        An indicator of every combination of levels, times the covariates.
    names : tuple of str
        Of the k columns.
    """

    pieces: tuple[str, ...]
    values: NDArray[np.float64]
    names: tuple[str, ...]


def unreduced_terms(
    side: Side, frame: Rows, functions: UserFunctions = NO_FUNCTIONS
) -> list[UnreducedTerm]:
    """Evaluate a right-hand side term by term, lower orders first, without contrasts.

    Arguments as in :func:`unreduced_columns`.
    """
    variables = as_variables(frame)
    found = []
    for single in sorted(map(side.product, side.terms), key=lambda single: len(single.operands)):
        columns = evaluate(single, variables, functions)
        pieces = tuple(part.text for part in single.operands)
        found.append(UnreducedTerm(pieces=pieces, values=columns.values, names=columns.names))
    return found


def unreduced_columns(
    side: Side | str, frame: Rows, functions: UserFunctions = NO_FUNCTIONS
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Evaluate a right-hand side term by term, so that no contrasts are applied.

    Parameters
    ----------
    side : Side or str
        Fixed effects with an explicit intercept: ``"1 + x * f"``.
    frame : pandas.DataFrame or Variables
        n complete rows.
    functions : mapping of str to callable, optional
        The user's own functions.

    Returns
    -------
    values : ndarray, shape (n, k)
        Mostly not of full rank.
    names : tuple of str, length k

    Examples
    --------
    >>> unreduced_columns("1 + f", pd.DataFrame({"f": ["a", "b"]}))[1]
    ('Intercept', 'f[a]', 'f[b]')
    """
    side = read_side(side) if isinstance(side, str) else side
    found = unreduced_terms(side, frame, functions)
    if not found:
        return np.empty((len(frame), 0)), ()
    values = np.hstack([term.values for term in found])
    return values, tuple(name for term in found for name in term.names)
