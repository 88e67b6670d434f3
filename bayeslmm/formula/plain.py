"""Model matrices of columns and of expressions of each row by itself, with treatment contrasts.

Which levels of a factor have a column follows from the terms before it, as in R and formulaic:
every combination of levels that no earlier term spans gets one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.formula.columns import (
    Known,
    Variables,
    check_columns,
    check_finite,
    check_levels,
    holds_levels,
    listed,
    not_evaluated,
    undefined,
)
from bayeslmm.formula.evaluation import NO_FUNCTIONS, evaluate_expression
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side, Term

type Product = tuple[tuple[str, bool], ...]
"""Labels of operands, and whether the first level of each is left out; none: the intercept."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlainBuilder:
    """How columns and expressions make a model matrix; members as of `Builder`.

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
    levels = {label: _levels(found) for label, found in values.items() if holds_levels(found)}
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


def _is_usable(values: Any) -> bool:
    numeric = np.ndim(values) == 1 and np.asarray(values).dtype.kind in "biuf"
    return numeric or holds_levels(values)


def _levels(values: Any) -> pd.Index:
    return pd.Series(values).astype("category").cat.categories


def _codes(values: Any, levels: pd.Index) -> NDArray[np.intp]:
    coded = pd.Series(values).astype(pd.CategoricalDtype(levels))
    return coded.cat.codes.to_numpy().astype(np.intp)


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
    codes = {label: _codes(values[label], levels[label]) for label in levels}
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
