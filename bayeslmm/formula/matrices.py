"""Model matrices: the columns of a right-hand side, on the data of a model and on other data.

Plain sides, of columns and of expressions of each row by itself, are built here, all others by
formulaic; both give the same columns where both can.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula.evaluation import (
    NO_FUNCTIONS,
    Known,
    UserFunctions,
    Variables,
    check_columns,
    check_finite,
    check_levels,
    evaluate_expression,
    holds_levels,
    is_marked,
    not_evaluated,
    undefined,
)
from bayeslmm.formula.rank import independent_columns
from bayeslmm.formula.syntax import Operand, read_operand
from bayeslmm.formula.terms import Side, Term, read_side

if TYPE_CHECKING:
    from bayeslmm.formula.formulaic_seam import FormulaicBuilder

Array = NDArray[np.float64]
type Rows = pd.DataFrame | Variables
type Builder = PlainBuilder | FormulaicBuilder
"""How the columns of a side are built on other data."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encoding:
    """How the columns of a side are built on other data.

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
    encoding: Encoding

    @cached_property
    def kept(self) -> NDArray[np.bool_]:
        """Which columns (k,) are no linear combinations of earlier ones."""
        return independent_columns(self.values)


def evaluate(
    side: Side | str,
    frame: Rows,
    functions: UserFunctions = NO_FUNCTIONS,
    state: dict[str, Any] | None = None,
) -> Columns:
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
    state : dict, optional
        What transforms remember, where they are not to be fitted to these rows, as in
        `evaluate_expression`.

    Returns
    -------
    Columns
        `values` has shape (n, k); `encoding` re-evaluates the same columns on new data.

    Raises
    ------
    DataError
        If a variable is absent, an expression fails, or a value is missing or infinite.
    """
    side = read_side(side) if isinstance(side, str) else side
    columns = as_variables(frame)
    columns.require(side.variables)
    columns.check_kinds(side.names)
    if side.occasions:
        columns = columns.with_occasions(sorted(side.names))
    values, builder = _built(side, columns, functions, state)
    categories = columns.categories(sorted(side.variables))
    encoding = Encoding(builder=builder, variables=side.variables, categories=categories)
    return Columns(values=values, names=builder.names, encoding=encoding)


def _built(
    side: Side, columns: Variables, functions: UserFunctions, state: dict[str, Any] | None
) -> tuple[Array, Builder]:
    plain = plain_columns(side, columns) if side.is_plain(functions) else None
    if plain is not None:
        return plain
    from bayeslmm.formula.formulaic_seam import formulaic_columns

    readings = {part.label: part.reading for part in side.operands}
    return formulaic_columns(side.terms, readings, columns, functions, state)


def as_variables(frame: Rows) -> Variables:
    """Columns of a frame as formulas read them."""
    return frame if isinstance(frame, Variables) else Variables(frame)


def reevaluate(encoding: Encoding, frame: Rows) -> Columns:
    """Build the same columns on new data, keeping knots, centres, scales and levels.

    Parameters
    ----------
    encoding : Encoding
        That of earlier `Columns`.
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
    columns.require(encoding.variables)
    conformed, builder = conform(columns, encoding.categories), encoding.builder
    factors = list(builder.factors(conformed))
    for factor in factors:
        if factor.levels is not None and factor.label not in encoding.categories:
            _check_seen(factor.label, factor.values, factor.levels)
    for factor in factors:
        if (factor.kind == "categorical") != factor.is_factor:
            now = "numerical" if factor.kind == "categorical" else "categorical"
            raise DataError(
                f"`{factor.label}` was {factor.kind} when the model was built and is {now} here."
            )
    return Columns(values=builder.matrix(conformed), names=builder.names, encoding=encoding)


def conform(columns: Variables, categories: Mapping[str, pd.Index]) -> Variables:
    """Give columns the categories of earlier data; DataError for a value outside them."""
    for name, known in categories.items():
        _check_seen(name, columns[name], known)
    return columns.conform(categories)


class UnseenLevelError(DataError):
    """Levels of a factor that columns were not built for."""


def _check_seen(label: str, values: Any, known: Sequence[Any] | pd.Index) -> None:
    """Raise DataError for levels of a factor, a column or ``"C(f)"``, that are not known."""
    allowed = set(known)
    unseen = [v for v in pd.Series(values).dropna().unique().tolist() if v not in allowed]
    if unseen:
        raise UnseenLevelError(
            f"The factor `{label}` has levels that the model has not seen: {listed(unseen)}. The "
            f"known ones are {listed(list(known))}. A coefficient of a new level cannot be known; "
            "a grouping factor of a random-effects term can have new levels."
        )


def evaluate_response(
    response: Operand | str,
    frame: Rows,
    functions: UserFunctions = NO_FUNCTIONS,
    state: dict[str, Any] | None = None,
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
    state : dict, optional
        What transforms remember, as in `evaluate_expression`.

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
    values = _response_values(part, columns, functions, {} if state is None else state)
    if is_factor(values):
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


def _response_values(
    part: Operand, columns: Variables, functions: UserFunctions, state: dict[str, Any]
) -> Any:
    if part.reading is None:
        return columns[part.label]
    try:
        with np.errstate(all="ignore"):
            return evaluate_expression(part.reading, columns, functions, state)
    except FormulaError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"`{part.text}` cannot be evaluated on these data: {reason}") from error


def is_factor(values: Any) -> bool:
    """Tell whether values of an expression are levels."""
    if not is_marked(values):
        return holds_levels(values)
    from bayeslmm.formula.formulaic_seam import is_factor as is_marked_factor

    return is_marked_factor(values)


# --- an indicator for every level of every factor ----------------------------------------


def unreduced_terms(
    side: Side,
    frame: Rows,
    functions: UserFunctions = NO_FUNCTIONS,
    state: dict[str, Any] | None = None,
) -> list[tuple[tuple[str, ...], Columns]]:
    """Evaluate a right-hand side term by term, lower orders first, without contrasts.

    Arguments as in :func:`evaluate`. With each term come its factors and covariates as
    written, none for the intercept; its columns are an indicator of every combination of levels,
    times the covariates.
    """
    variables = as_variables(frame)
    singles = sorted(map(side.product, side.terms), key=lambda single: len(single.operands))
    return [
        (
            tuple(part.text for part in single.operands),
            evaluate(single, variables, functions, None if state is None else dict(state)),
        )
        for single in singles
    ]


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
    found = [columns for _, columns in unreduced_terms(side, frame, functions)]
    values = np.hstack([np.empty((len(frame), 0)), *(columns.values for columns in found)])
    return values, tuple(name for columns in found for name in columns.names)


# --- plain sides: columns and expressions of each row by itself ---------------------------


type Product = tuple[tuple[str, bool], ...]
"""Labels of operands, and whether the first level of each is left out; none: the intercept."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlainBuilder:
    """How columns and expressions make a model matrix.

    Attributes
    ----------
    operands : tuple of Operand
        Those that the terms need.
    levels : mapping of str to pandas.Index
        The levels of each operand that is a factor.
    products : tuple
        What is multiplied for each group of columns.
    names : tuple of str
        Labels of the columns.
    """

    operands: tuple[Operand, ...]
    levels: Mapping[str, pd.Index]
    products: tuple[Product, ...]
    names: tuple[str, ...]

    def matrix(self, columns: Variables) -> NDArray[np.float64]:
        """The model matrix of other data."""
        values = _values(self.operands, columns)
        odd = [label for label in values if not _is_usable(values[label])]
        if odd:
            raise DataError(f"{listed(odd)} must be numeric or a factor.")
        return _matrix(self, values, columns.n)

    def factors(self, columns: Variables) -> Iterator[Known]:
        """Each operand, what it was, and its values on other data."""
        values = _values(self.operands, columns, lenient=True)
        for label in dict.fromkeys(label for product in self.products for label, _ in product):
            levels = self.levels.get(label)
            kind = "numerical" if levels is None else "categorical"
            yield Known(label, kind, levels, values[label], holds_levels(values[label]))

    @property
    def numbers(self) -> tuple[tuple[str, ...], ...]:
        """Labels of the numbers that are multiplied in each of the k columns."""
        return tuple(
            tuple(label for label, _ in product if label not in self.levels)
            for product in self.products
            for _ in range(math.prod(_sizes(product, self.levels)))
        )

    def with_numbers(
        self, columns: Variables, numbers: Mapping[tuple[str, ...], Array]
    ) -> NDArray[np.float64]:
        """The model matrix where products of numbers, and what stands for 1, are given.

        Parameters
        ----------
        columns : Variables
            The factors in n rows.
        numbers : mapping of tuple to ndarray (n,)
            Values by what `numbers` has.
        """
        merged = []
        for product in self.products:
            labels = tuple(label for label, _ in product if label not in self.levels)
            factors = tuple(part for part in product if part[0] in self.levels)
            merged.append((*factors, (_joined(labels), False)))
        values: dict[str, Any] = {label: columns[label] for label in self.levels}
        values |= {_joined(labels): found for labels, found in numbers.items()}
        return _matrix(replace(self, products=tuple(merged)), values, columns.n)


def plain_columns(
    side: Side, columns: Variables
) -> tuple[NDArray[np.float64], PlainBuilder] | None:
    """Build the model matrix of a plain side.

    Parameters
    ----------
    side : Side
        With `is_plain`.
    columns : Variables
        n complete rows.

    Returns
    -------
    values : ndarray (n, k)
    builder : PlainBuilder
        None in place of both where formulaic must build it: dates, labels that occur twice.

    Raises
    ------
    DataError
        If an expression fails, a value is missing or infinite, or there are too many columns.
    """
    needed = set(itertools.chain.from_iterable(side.terms))
    operands = tuple(part for part in side.operands if part.label in needed)
    values = _values(operands, columns)
    if not all(map(_is_usable, values.values())):
        return None
    levels = {
        label: pd.Series(found).astype("category").cat.categories
        for label, found in values.items()
        if holds_levels(found)
    }
    products = tuple(_products(side.terms, levels))
    try:
        _check_size(products, levels)
    except ValueError as error:
        raise DataError(not_evaluated(str(error), columns, side.variables)) from error
    names = tuple(name for product in products for name in _names(product, levels))
    if len(set(names)) < len(names):
        return None
    builder = PlainBuilder(operands=operands, levels=levels, products=products, names=names)
    return _matrix(builder, values, columns.n), builder


# --- values ----------------------------------------------------------------------------


def _values(
    operands: Sequence[Operand], columns: Variables, *, lenient: bool = False
) -> dict[str, Any]:
    """Values of operands by label, none of them missing unless `lenient`."""
    found = {}
    for part in operands:
        found[part.label] = _value(part, columns)
        if not lenient and pd.isna(found[part.label]).any():
            raise DataError(undefined(part.label))
    return found


def _value(part: Operand, columns: Variables) -> Any:
    if part.reading is None:
        return columns[part.label]
    try:
        with np.errstate(all="ignore"):
            return evaluate_expression(part.reading, columns, NO_FUNCTIONS, {})
    except Exception as error:
        reason = f"Unable to evaluate factor `{part.label}`. [{type(error).__name__}: {error}]"
        raise DataError(not_evaluated(reason, columns, part.variables)) from error


def _joined(labels: tuple[str, ...]) -> str:
    """What products of numbers are called; no column is."""
    return "\0".join(("", *labels))


def _is_usable(values: Any) -> bool:
    numeric = np.ndim(values) == 1 and np.asarray(values).dtype.kind in "biuf"
    return numeric or holds_levels(values)


# --- which columns there are ----------------------------------------------------------------


def _products(terms: Sequence[Term], levels: Mapping[str, Any]) -> Iterator[Product]:
    """What is multiplied for each term, so that no earlier term spans any of it."""
    spanned: set[frozenset[tuple[str, bool]]] = set()
    for term in terms:
        choices = [[((v, True),), ()] if v in levels else [((v, False),)] for v in term]
        parts = [sum(chosen, ()) for chosen in itertools.product(*choices)]
        fresh = [part for part in parts if frozenset(part) not in spanned]
        spanned.update(map(frozenset, fresh))
        yield from _merged(fresh)


def _merged(products: Sequence[Product]) -> list[Product]:
    """Fewer products of the same span: anything, and it times a factor less its first level."""
    kept: list[Product] = []
    for product in sorted(products, key=len):
        for other in kept:
            extra = set(product).difference(other)
            if len(product) == len(other) + 1 and len(extra) == 1 and min(extra)[1]:
                full = tuple((v, reduced and (v, reduced) not in extra) for v, reduced in product)
                kept = _merged([*(part for part in kept if part is not other), full])
                break
        else:
            kept.append(product)
    return kept


def _sizes(product: Product, levels: Mapping[str, Sequence[Any]]) -> list[int]:
    """How many columns each operand of a product has."""
    return [len(levels[v]) - reduced if v in levels else 1 for v, reduced in product]


def _check_size(products: Sequence[Product], levels: Mapping[str, Sequence[Any]]) -> None:
    for label in levels:
        check_levels(label, len(levels[label]))
    count = 0
    for product in products:
        count = check_columns(count, _sizes(product, levels))


def _names(product: Product, levels: Mapping[str, pd.Index]) -> Iterator[str]:
    """Labels of the columns of a product, the levels of its first factor changing fastest."""
    parts = [
        [f"{v}[{'T.' * reduced}{level}]" for level in list(levels[v])[reduced:]]
        if v in levels
        else [v]
        for v, reduced in product
    ]
    for names in itertools.product(*reversed(parts)):
        yield ":".join(reversed(names)) or "Intercept"


# --- their values ---------------------------------------------------------------------------


def _matrix(builder: PlainBuilder, values: Mapping[str, Any], n: int) -> NDArray[np.float64]:
    levels = builder.levels
    codes = {}
    for label, known in levels.items():
        coded = pd.Series(values[label]).astype(pd.CategoricalDtype(known))
        codes[label] = coded.cat.codes.to_numpy().astype(np.intp)
    result = np.zeros((n, len(builder.names)))
    start = 0
    for product in builder.products:
        end = start + math.prod(_sizes(product, levels))
        _fill(result[:, start:end], product, values, codes, levels)
        start = end
    check_finite(result, builder.names)
    return result


def _fill(
    block: NDArray[np.float64],
    product: Product,
    values: Mapping[str, Any],
    codes: Mapping[str, NDArray[np.intp]],
    levels: Mapping[str, pd.Index],
) -> None:
    """Put the product of the numbers into the column of each row's levels; block is (n, k)."""
    if not any(label in codes for label, _ in product):
        block[:, 0] = 1.0 if not product else values[product[0][0]]
        for label, _ in product[1:]:
            block[:, 0] *= np.asarray(values[label], dtype=np.float64)
        return
    number = np.ones(len(block))
    cell, inside, stride = np.zeros(len(block), dtype=np.intp), np.ones(len(block), bool), 1
    for (label, reduced), size in zip(product, _sizes(product, levels), strict=True):
        if label in codes:
            code = codes[label] - reduced
            inside &= code >= 0
            cell += stride * code
            stride *= size
        else:
            number = number * np.asarray(values[label], dtype=np.float64)
    rows = np.flatnonzero(inside)
    block[rows, cell[rows]] = number[rows]
    if not np.isfinite(number).all():
        with np.errstate(invalid="ignore"):
            block += 0.0 * number[:, None]  # infinite times the zeros of other levels
