"""Levels, columns and moments of data in an engine, by GROUP BY: what the survey finds in rows.

A column of a model is an indicator of levels times a product of numbers. So sums over the rows of a
combination of levels of such products, each from its mean, hold all that sums over rows of the
columns do. The first query finds levels, means and extremes; the others sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import EXACT
from bayeslmm.data.engines import COMPLETE, Engine, Table, UnpushedError
from bayeslmm.data.grouping import column_levels
from bayeslmm.data.inputs import LARGEST, SMALLEST
from bayeslmm.data.survey import CHANGED, sides_of
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import Variables
from bayeslmm.formula.matrices import Columns, PlainBuilder
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side

if TYPE_CHECKING:
    import narwhals.stable.v2 as nw

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

type Product = tuple[Operand, ...]
"""Numbers that are multiplied; none: the constant 1."""

type Pair = tuple[int, int, bool]
"""Two products by their numbers, in order, and whether rows are weighted."""

ONE: Product = ()

LOST = 1e-5
"""Share of the squares of a column beyond earlier ones below which sums have too few digits."""

EXACTLY = 1e-24
"""The same up to which levels alone make a column a combination of others, to rounding."""

LOST_RESPONSE = 1e-3
"""Share of the squares of the response beyond the fixed effects below which they have too few."""

MOST_ENTRIES = 1 << 26
"""Entries of the columns in all combinations of levels of the covariates."""


# --- what is asked for -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """Sums of products over the rows of each combination of the values of variables."""

    keys: frozenset[str]
    pairs: frozenset[Pair]

    def covers(self, other: Wanted) -> bool:
        """Whether the sums of another can be made of these."""
        return self.keys >= other.keys and self.pairs >= other.pairs


def planned(wanted: Iterable[Wanted]) -> list[Wanted]:
    """Queries for sums, few of them; one takes in another that costs it no more than double."""
    plan: list[Wanted] = []
    for one in sorted(wanted, key=lambda w: (len(w.keys), len(w.pairs)), reverse=True):
        for place, known in enumerate(plan):
            extra = one.pairs - known.pairs
            if known.keys == one.keys or (known.keys > one.keys and len(extra) <= len(known.pairs)):
                plan[place] = Wanted(known.keys, known.pairs | one.pairs)
                break
        else:
            plan.append(one)
    return plan


# --- the first query -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NumberRange:
    """Of a number, in each combination of levels of the covariates or in all rows."""

    low: Array
    high: Array
    total: Array
    filled: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class FirstLook:
    """What the first query finds.

    Attributes
    ----------
    engine : Engine
    products : tuple of tuple of Operand
        All products of numbers in columns, by number; the constant is the first.
    cells : Table
        Combinations of levels of the factors among the covariates in the complete rows.
    n, n_dropped : int
        Rows.
    """

    engine: Engine
    products: tuple[Product, ...]
    cells: Table
    n: int
    n_dropped: int

    @property
    def response(self) -> int:
        """The number of the response less the offset, as a product."""
        return len(self.products)

    @property
    def weighted(self) -> bool:
        """Whether rows have precision weights."""
        return self.engine.weights is not None

    def of(self, name: str) -> NumberRange:
        """Of a product "p3", a variable "v3", the "response"; "y", "offset" if there is one."""
        parts = (self.cells.figures[f"{part} {name}"] for part in _PARTS)
        low, high, total, filled = parts
        return NumberRange(low=low, high=high, total=total, filled=filled)

    def variable(self, name: str) -> str:
        """What a variable is called that is read as numbers."""
        place = _plain_product(self.products, name)
        return f"v{self.engine.variables.index(name)}" if place is None else f"p{place}"

    def range_of(self, name: str) -> tuple[float, float]:
        """Smallest and largest value in all rows."""
        found = self.of(name)
        return float(found.low.min()), float(found.high.max())

    def mean_of(self, name: str) -> float:
        """Mean of all rows; the value where they have one."""
        low, high = self.range_of(name)
        return low if low == high else float(self.of(name).total.sum()) / self.n

    @cached_property
    def centres(self) -> Array:
        """What is subtracted from each product, and from the response."""
        names = [f"p{i}" for i in range(1, self.response)]
        return np.array([0.0, *map(self.mean_of, names), self.mean_of("response")])

    def weight(self, name: str) -> Array:
        """A figure of the weights in each combination."""
        return self.cells.figures[f"{name} weight"]

    @cached_property
    def sample(self) -> pd.DataFrame:
        """A complete row for each level of each factor of the covariates, otherwise the same."""
        keys = self.cells.keys.drop(columns=COMPLETE)
        firsts = [np.zeros(1, dtype=np.intp)]
        for name in keys.columns:
            codes = column_levels(keys[name])[0]
            firsts.append(np.unique(codes, return_index=True)[1])
        rows = np.unique(np.concatenate(firsts))
        first = self.engine.first_row()
        sample = first.iloc[np.zeros(len(rows), dtype=np.intp)].reset_index(drop=True)
        for name in keys.columns:
            sample[name] = keys[name].iloc[rows].reset_index(drop=True)
        return sample


_PARTS = ("low", "high", "total", "filled")


def first_look(engine: Engine) -> FirstLook:
    """Levels, means and extremes.

    Raises
    ------
    UnpushedError
        If there is anything in the data of which a reading in batches speaks.
    """
    formula = engine.formula
    sides = sides_of(formula)
    products = tuple(dict.fromkeys([ONE, *(p for s in sides for p in _products(engine, s))]))
    factors = sorted({name for side in sides for name in engine.factors(side)})
    numbers = _numbers(engine, products)
    found = engine.grouped([COMPLETE, *factors], _figures(engine, numbers))
    if found is None:
        raise UnpushedError("there are no rows")
    complete = found.keys[COMPLETE].to_numpy(dtype=bool)
    rows = found.figures["rows"]
    n = int(rows[complete].sum())
    if not n:
        raise UnpushedError("no row is complete")
    cells = Table(
        keys=found.keys[complete].reset_index(drop=True),
        figures={name: values[complete] for name, values in found.figures.items()},
    )
    look = FirstLook(
        engine=engine,
        products=products,
        cells=cells,
        n=n,
        n_dropped=int(rows.sum()) - n,
    )
    _check_numbers(look, numbers, found)
    return look


def _products(engine: Engine, side: Side) -> list[Product]:
    """Products of numbers that the terms of a side have."""
    factors = set(engine.factors(side))
    parts = {part.label: part for part in side.operands}
    return [tuple(parts[label] for label in term if label not in factors) for term in side.terms]


@dataclass(frozen=True, slots=True, eq=False)
class _Number:
    """Something of which extremes are wanted; computed, it may be undefined in some rows."""

    value: nw.Expr
    computed: bool


def _numbers(engine: Engine, products: Sequence[Product]) -> dict[str, _Number]:
    """All of these: products, variables that are none, the response."""
    numbers = {}
    for i, own in enumerate(products[1:], start=1):
        computed = len(own) > 1 or own[0].reading is not None
        numbers[f"p{i}"] = _Number(_product(engine, own), computed)
    for name in sorted(_read_as_numbers(engine, products).union(engine.fractional)):
        if _plain_product(products, name) is None:
            own_name = f"v{engine.variables.index(name)}"
            numbers[own_name] = _Number(engine.number(name), computed=False)
    left, shifted = engine.formula.left, bool(engine.formula.shifts)
    y = _Number(engine.value(left), computed=left.reading is not None)
    if not shifted:
        return numbers | {"response": y}
    offset = _offset(engine)
    numbers |= {"y": y, "offset": _Number(offset, computed=True)}
    return numbers | {"response": _Number(y.value - offset, computed=True)}


def _read_as_numbers(engine: Engine, products: Iterable[Product]) -> frozenset[str]:
    """Variables whose values count as numbers."""
    formula = engine.formula
    parts = {formula.left, *formula.shifts, *(part for own in products for part in own)}
    used = formula.predictors(effects=False, groups=False)
    found = frozenset[str]().union(*(part.variables for part in parts))
    return found | {name for name in used if engine.is_number(name)}


def _plain_product(products: Sequence[Product], name: str) -> int | None:
    """The number of the product that is a variable."""
    plain = [own[0].label if len(own) == 1 and own[0].reading is None else None for own in products]
    return plain.index(name) if name in plain else None


def _product(engine: Engine, own: Product) -> nw.Expr:
    first, *others = own
    value = engine.value(first)
    for other in others:
        value = value * engine.value(other)
    return value


def _offset(engine: Engine) -> nw.Expr:
    import narwhals.stable.v2 as nw

    value = nw.lit(0.0, dtype=nw.Float64)
    for shift in engine.formula.shifts:
        value = value + engine.value(shift)
    return value


def _figures(engine: Engine, numbers: Mapping[str, _Number]) -> dict[str, nw.Expr]:
    import narwhals.stable.v2 as nw

    def count(condition: Any) -> Any:
        return condition.cast(nw.Float64).sum()

    figures = {"rows": nw.len(), "infinite": count(nw.col("infinite"))}
    for name, number in numbers.items():
        value = number.value
        figures |= {
            f"low {name}": value.min(),
            f"high {name}": value.max(),
            f"total {name}": value.sum(),
            f"filled {name}": count(value != 0.0),
        }
        if number.computed:
            figures[f"finite {name}"] = count(value.is_finite())
    for name in engine.fractional:
        value = engine.number(name)
        figures[f"broken {name}"] = count(value != value.floor())
    if engine.weights is not None:
        weight = engine.number(engine.weights)
        figures |= {
            "bad weight": count(~((weight > 0.0) & weight.is_finite()) & ~weight.is_nan()),
            "low weight": weight.min(),
            "high weight": weight.max(),
            "log weight": weight.log().sum(),
            "inverse weight": (1.0 / weight).sum(),
        }
    return figures


def _check_numbers(look: FirstLook, numbers: Mapping[str, _Number], all_rows: Table) -> None:
    """Leave to batches whatever they have words for."""
    if all_rows.figures["infinite"].sum():
        raise UnpushedError("there are infinite values")
    if look.engine.weights is not None and all_rows.figures["bad weight"].sum():
        raise UnpushedError("there are weights that are not positive and finite")
    figures = look.cells.figures
    for name in look.engine.fractional:
        if figures[f"broken {name}"].sum():
            raise UnpushedError(f"`{name}` holds numbers that are not whole")
    for name, number in numbers.items():
        if number.computed and figures[f"finite {name}"].sum() < look.n:
            raise UnpushedError("there are undefined values")
        largest = max(map(abs, look.range_of(name)))
        if largest and not SMALLEST <= largest <= LARGEST:
            raise UnpushedError("there are numbers that are too large or too small")
    engine = look.engine
    for name in _read_as_numbers(engine, look.products).union(engine.fractional):
        whole = engine.types[name] == "Int64" or name in engine.fractional
        if whole and max(map(abs, look.range_of(look.variable(name)))) >= EXACT:
            raise UnpushedError(f"`{name}` holds whole numbers beyond 2^53")


# --- sums ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class Sums:
    """Sums of products, less their centres, in combinations of the values of variables."""

    keys: pd.DataFrame
    figures: Mapping[str, Array]

    def products(self, left: Sequence[int], right: Sequence[int], *, weighted: bool) -> Array:
        """Sums (cells, l, r) of products by their numbers."""
        result = np.empty((len(self.keys), len(left), len(right)))
        for (i, one), (j, two) in product(enumerate(left), enumerate(right)):
            result[:, i, j] = self.figures[_label(pair_of(one, two, weighted=weighted))]
        return result

    def combinations(self, names: Sequence[str]) -> tuple[Indices, pd.DataFrame]:
        """Combinations of some keys: that of each cell, and each once as a row of a frame."""
        codes = np.zeros(len(self.keys), dtype=np.int64)
        for name in names:
            own, levels = column_levels(self.keys[name])
            codes = np.unique(codes * len(levels) + own, return_inverse=True)[1]
        first = np.unique(codes, return_index=True)[1] if names else np.zeros(1, dtype=np.intp)
        return codes.astype(np.intp), self.keys[list(names)].iloc[first].reset_index(drop=True)


def pair_of(one: int, two: int, *, weighted: bool) -> Pair:
    """Two products in order."""
    return min(one, two), max(one, two), weighted


def pairs_of(left: Iterable[int], right: Iterable[int], *, weighted: bool) -> frozenset[Pair]:
    """All pairs of one of some products and one of others."""
    return frozenset(pair_of(i, j, weighted=weighted) for i, j in product(left, right))


def _label(pair: Pair) -> str:
    return f"{pair[0]} {pair[1]} {'w' * pair[2]}"


def read_sums(look: FirstLook, wanted: Wanted) -> Sums:
    """Ask the engine for sums.

    Raises
    ------
    UnpushedError
        If it fails.
    DataError
        If there are other rows than at the first look.
    """
    import narwhals.stable.v2 as nw

    engine = look.engine
    used = sorted({i for pair in wanted.pairs for i in pair[:2]} - {0})
    columns = {f"m{i}": _centred(look, i) for i in used}
    weight = None if engine.weights is None else engine.number(engine.weights)
    sums = {}
    for pair in sorted(wanted.pairs):
        factors = [nw.col(f"m{i}") for i in pair[:2] if i]
        factors += [weight] if pair[2] and weight is not None else []
        value = factors[0] if factors else None
        for factor in factors[1:]:
            value = value * factor
        sums[_label(pair)] = nw.len() if value is None else value.sum()
    found = engine.grouped(sorted(wanted.keys), {"rows": nw.len(), **sums}, columns)
    if found is None or int(found.figures["rows"].sum()) != look.n:
        raise DataError(CHANGED.format(words=engine.words))
    return Sums(keys=found.keys, figures=found.figures)


def _centred(look: FirstLook, i: int) -> nw.Expr:
    engine = look.engine
    if i < look.response:
        value = _product(engine, look.products[i])
    else:
        value = engine.value(engine.formula.left)
        if engine.formula.shifts:
            value = value - _offset(engine)
    centre = float(look.centres[i])
    return value - centre if centre else value


# --- columns of sides ------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class SideProducts:
    """The columns of a side by products of numbers.

    Attributes
    ----------
    builder : PlainBuilder
    factors : tuple of str
        Variables of which it has indicators.
    places : tuple of int
        Numbers of its products, the constant first.
    own : tuple of int
        Number of that of each column.
    """

    builder: PlainBuilder
    factors: tuple[str, ...]
    places: tuple[int, ...]
    own: tuple[int, ...]

    def indicators(self, rows: pd.DataFrame) -> Array:
        """Which combinations of levels, rows of a frame, are in each column: (H, k) of 0 or 1."""
        ones = np.ones(len(rows))
        numbers = dict.fromkeys(self.builder.numbers, ones)
        return self.builder.with_numbers(Variables(rows), numbers)

    def maps(self, rows: pd.DataFrame, centres: Array, places: Sequence[int]) -> Array:
        """The columns by centred products, of which `places` are numbers: (H, q, k)."""
        indicators = self.indicators(rows)
        result = np.zeros((len(rows), len(places), len(self.own)))
        columns = np.arange(len(self.own))
        result[:, [places.index(i) for i in self.own], columns] = indicators
        result[:, 0] += indicators * centres[list(self.own)]
        return result


def side_products(look: FirstLook, columns: Mapping[Side, Columns]) -> dict[Side, SideProducts]:
    """The same of each side.

    Raises
    ------
    UnpushedError
        If formulaic builds one, or there are too many combinations of levels.
    """
    result = {}
    for side, found in columns.items():
        builder = found.encoding.builder
        if not isinstance(builder, PlainBuilder):
            raise UnpushedError(f"`{side.text}` is not a plain sum of products")
        parts = {part.label: part for part in side.operands}
        number = {own: i for i, own in enumerate(look.products)}
        own = tuple(number[tuple(parts[label] for label in labels)] for labels in builder.numbers)
        places = tuple(sorted({0, *own}))
        if len(look.cells.keys) * len(own) * len(places) > MOST_ENTRIES:
            raise UnpushedError("factors of the covariates have many combinations of levels")
        factors = look.engine.factors(side)
        result[side] = SideProducts(builder=builder, factors=factors, places=places, own=own)
    return result


def side_moments(
    look: FirstLook, side: SideProducts, sums: Sums, *, response: bool, weighted: bool
) -> Moments:
    """Moments of the columns of a side, and of the response behind them.

    Raises
    ------
    UnpushedError
        If sums have too few digits for them.
    """
    places = [*side.places, *([look.response] if response else [])]
    codes, rows = sums.combinations(side.factors)
    cells = _totals(sums.products(places, places, weighted=weighted), codes, len(rows))
    maps = side.maps(rows, look.centres, places)
    if response:
        last = np.zeros((len(rows), len(places), 1))
        last[:, -1], last[:, 0] = 1.0, look.centres[-1]
        maps = np.concatenate([maps, last], axis=2)
    centre = np.einsum("hq,hqk->k", cells[:, 0], maps) / cells[:, 0, 0].sum()
    moved = np.concatenate([np.zeros((*maps.shape[:2], 1)), maps], axis=2)
    moved[:, 0, 0] = 1.0
    moved[:, 0, 1:] -= centre
    triangle = np.linalg.qr(np.vstack([*(_roots(cells) @ moved)]), mode="r")
    own = [*side.own, *([look.response] if response else [])]
    inside = side.indicators(rows)
    inside = np.column_stack([inside, np.ones(len(rows))]) if response else inside
    squares = cells[:, range(len(places)), range(len(places))]
    lengths = np.sum(inside * squares[:, [places.index(i) for i in own]], axis=0)
    _check_digits(triangle, lengths, response=response)
    low, high, filled = _extremes(look, side, response=response)
    return Moments(n=look.n, centre=centre, triangle=triangle, low=low, high=high, filled=filled)


def _totals(values: Array, codes: Indices, size: int) -> Array:
    """Sums (size, a, b) of values (cells, a, b)."""
    if size == 1:
        return np.asarray(values.sum(axis=0, keepdims=True))
    flat = values.reshape(len(values), -1)
    sums = [np.bincount(codes, column, size) for column in flat.T]
    return np.column_stack(sums).reshape(size, *values.shape[1:])


def _roots(cells: Array) -> Array:
    """Matrices (H, q, q) whose products with themselves are those (H, q, q) of some columns."""
    scale = np.sqrt(np.diagonal(cells, axis1=1, axis2=2))
    safe = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(cells / (safe[:, :, None] * safe[:, None, :]))
    roots = np.sqrt(np.maximum(values, 0.0))[:, :, None] * np.swapaxes(vectors, 1, 2)
    return np.asarray(roots * scale[:, None, :])


def _check_digits(triangle: Array, lengths: Array, *, response: bool) -> None:
    """Refuse columns of which little is left beyond earlier ones: it is known from squares."""
    share = _left(triangle, lengths)
    if response and share[-1] < LOST_RESPONSE:
        raise UnpushedError(
            "the fixed effects leave little of the response, so that sums lack digits"
        )
    columns = share[: len(share) - response]
    if np.any((columns < LOST) & (columns > EXACTLY)):
        raise UnpushedError("columns nearly depend on each other, so that sums lack digits")


def _left(triangle: Array, lengths: Array) -> Array:
    """What is left (k,) of the squares of each column beyond the constant and earlier ones."""
    left = np.zeros(len(lengths))
    basis = np.empty((len(triangle), len(lengths) + 1))
    basis[:, 0] = np.eye(len(triangle))[0]
    size = 1
    for j, column in enumerate(triangle.T[1:]):
        known = basis[:, :size]
        for _ in range(2):
            column = column - known @ (known.T @ column)
        squares = float(column @ column)
        left[j] = squares / lengths[j] if lengths[j] > 0 else 0.0
        if left[j] > EXACTLY:
            basis[:, size] = column / np.sqrt(squares)
            size += 1
    return left


def _extremes(
    look: FirstLook, side: SideProducts, *, response: bool
) -> tuple[Array, Array, NDArray[np.intp]]:
    """Extremes of columns, and rows in which they are not zero."""
    inside = side.indicators(look.cells.keys)
    low, high = np.zeros(len(side.own)), np.zeros(len(side.own))
    filled = np.zeros(len(side.own))
    rows = look.cells.figures["rows"]
    for j, own in enumerate(side.own):
        cells = inside[:, j] > 0
        if not cells.any():
            continue
        if own:
            found = look.of(f"p{own}")
            low[j], high[j] = found.low[cells].min(), found.high[cells].max()
            filled[j] = found.filled[cells].sum()
        else:
            low[j], high[j], filled[j] = 1.0, 1.0, rows[cells].sum()
        if not cells.all():
            low[j], high[j] = min(low[j], 0.0), max(high[j], 0.0)
    if response:
        least, most = look.range_of("response")
        low, high = np.append(low, least), np.append(high, most)
        filled = np.append(filled, look.of("response").filled.sum())
    return low, high, filled.astype(np.intp)
