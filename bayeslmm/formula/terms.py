"""The terms that a right-hand side stands for, and how many they may be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.expressions import TRANSFORMS
from bayeslmm.formula.syntax import (
    Group,
    Item,
    Operand,
    Sum,
    Token,
    fail,
    flat,
    has_bar,
    is_operator,
    nest,
    operand,
    read_sum,
    tokens,
)

type Term = tuple[str, ...]
"""Labels of the operands of a product; none for the intercept."""

MOST_TERMS = 500
"""Terms of a sum; also random-effects terms of a formula, `MOST_RANDOM`."""

MOST_RANDOM = 100

MOST_FACTORS = 6
"""Factors of one interaction."""

MOST_WRITTEN = 50
"""Factors written in one interaction, equal ones counted each time."""

MOST_PRODUCTS = 5000
"""Products that a power is expanded to before equal ones are taken together."""

MOST_GROUPING = 10
"""Names in one grouping factor."""

MOST_STARS = 5
"""``*`` in one grouping factor; each doubles its terms."""

_LEVELS = (("+", "-"), ("*", "/", "%in%"), (":",))


@dataclass(frozen=True, slots=True)
class Side:
    """A right-hand side that has been read: a sum of products of operands.

    Attributes
    ----------
    text : str
        The terms as written, after an explicit intercept.
    operands : tuple of Operand
        In the order of first appearance.
    terms : tuple of tuple of str
        Labels of the operands of each term, lower orders first; none for the intercept.
    occasions : bool
        Whether a column of whole numbers is a factor, with a level for each from the smallest to
        the largest.
    """

    text: str
    operands: tuple[Operand, ...]
    terms: tuple[Term, ...]
    occasions: bool = False

    @property
    def variables(self) -> frozenset[str]:
        """Columns that it reads."""
        return frozenset[str]().union(*(part.variables for part in self.operands))

    @property
    def functions(self) -> frozenset[str]:
        """Functions that it calls by bare name."""
        return frozenset[str]().union(*(part.functions for part in self.operands))

    @property
    def names(self) -> frozenset[str]:
        """Columns that stand by themselves, outside Python."""
        return frozenset(part.label for part in self.operands if part.reading is None)

    @property
    def keys(self) -> frozenset[str]:
        """The terms as text, the same for equal terms: ``"1"``, ``"x"``, ``"f:x"``."""
        return frozenset(":".join(sorted(term)) or "1" for term in self.terms)

    def is_plain(self, functions: Iterable[str] = ()) -> bool:
        """Whether each operand is a column or an expression of each row by itself.

        `functions` are the user's, which may be of whole columns.
        """
        labels = {part.label for part in self.operands}
        return (
            len(labels) == len(self.operands)
            and labels.issuperset(itertools.chain.from_iterable(self.terms))
            and self.functions.isdisjoint(TRANSFORMS.union(functions))
        )

    def product(self, term: Term) -> Side:
        """A term by itself, without an intercept, its operands in the order of the formula."""
        operands = tuple(part for part in self.operands if part.label in term)
        return product_of(operands)


def product_of(operands: tuple[Operand, ...]) -> Side:
    """The product of operands by itself; without operands, the intercept."""
    text = f"0 + {':'.join(part.text for part in operands)}" if operands else "1"
    return Side(text, operands, (tuple(part.label for part in operands),))


@lru_cache(maxsize=64)
def read_side(source: str) -> Side:
    """Read the right-hand side of a formula from text.

    Parameters
    ----------
    source : str
        A sum of terms; it has an intercept unless it removes it.

    Returns
    -------
    Side

    Raises
    ------
    FormulaError
        If it cannot be read.

    Examples
    --------
    >>> read_side("x * f - x").terms
    ((), ('f',), ('x', 'f'))
    """
    items = nest(source, tokens(source))
    if not items:
        return Side("1", (), ((),))
    return side(source, items, read_sum(source, items))


def side(source: str, items: Sequence[Item], sum_: Sum) -> Side:
    """The terms of a sum; formulaic is asked where operands are missing or are numbers."""
    written = [part for term in sum_.terms for part in flat(term.items)]
    operands = tuple(
        dict.fromkeys(operand(source, part) for part in written if part.kind in ("name", "python"))
    )
    expanded = _expanded(source, sum_, operands)
    terms = _terms_of_formulaic(source, sum_) if expanded is None else expanded
    labels = {part.label for part in operands}
    ordered = sorted(terms, key=lambda term: len(labels.intersection(term)))
    return Side(sum_.text, operands, tuple(ordered))


# --- expansion -------------------------------------------------------------------------

type _Terms = dict[frozenset[str], Term]
"""Distinct terms in order; the order of operands is that of the first one."""


class _UnexpandedError(Exception):
    """A sum has numbers in it, or something is missing: formulaic knows what it means."""


def _expanded(source: str, sum_: Sum, operands: Sequence[Operand]) -> tuple[Term, ...] | None:
    labels = [part.label for part in operands]
    if len(set(labels)) < len(labels):  # a column is called like an expression
        return None
    terms: _Terms = {} if sum_.intercept is False else {frozenset(): ()}
    try:
        for part in sum_.terms:
            terms = _added(terms, _products(source, part.items, 1), part.negative)
    except _UnexpandedError:
        return None
    return tuple(terms.values())


def _added(terms: _Terms, more: _Terms, negative: bool = False) -> _Terms:
    if negative:
        return {key: term for key, term in terms.items() if key not in more}
    return {**terms, **{key: term for key, term in more.items() if key not in terms}}


def _products(source: str, items: Sequence[Item], level: int) -> _Terms:
    """Terms of items that are joined by the operators of a level and those that bind closer."""
    if level == len(_LEVELS):
        return _factor_terms(source, items)
    total: _Terms | None = None
    for symbol, part in _split(items, _LEVELS[level]):
        if not part and total is None and symbol == "+":
            total = {}  # a sign before the first term
            continue
        if not part:
            raise _UnexpandedError
        terms = _products(source, part, level + 1)
        if total is None:
            total = terms
        elif symbol in "+-":
            total = _added(total, terms, symbol == "-")
        else:
            total = _joined_terms(symbol, total, terms)
    return total or {}


def _joined_terms(symbol: str, one: _Terms, two: _Terms) -> _Terms:
    if symbol == ":":
        return _crossed(one, two)
    if symbol == "*":
        return _added(_added(one, two), _crossed(one, two))
    parents, nested = (two, one) if symbol == "%in%" else (one, two)
    common = tuple(dict.fromkeys(itertools.chain.from_iterable(parents.values())))
    return _added(parents, _crossed({frozenset(common): common}, nested))


def _crossed(one: _Terms, two: _Terms) -> _Terms:
    pairs = itertools.product(one.values(), two.values())
    found = (tuple(dict.fromkeys(first + second)) for first, second in pairs)
    result: _Terms = {}
    for term in found:
        result.setdefault(frozenset(term), term)
    return result


def _factor_terms(source: str, items: Sequence[Item]) -> _Terms:
    """A name or a group, to a power or not."""
    only = items[0]
    if isinstance(only, Group):
        base = _products(source, only.items, 0)
    elif only.kind in ("name", "python") and only.value != "1":
        label = operand(source, only).label
        base = {frozenset({label}): (label,)}
    else:
        raise _UnexpandedError
    if len(items) == 1:
        return base
    power = items[2] if len(items) == 3 and is_operator(items[1], "^", "**") else None
    if not (isinstance(power, Token) and power.text.isdigit() and int(power.text) > 0):
        raise _UnexpandedError
    return reduce(_crossed, [base] * int(power.text))


def _terms_of_formulaic(source: str, sum_: Sum) -> tuple[Term, ...]:
    """The terms as formulaic reads them in their original place."""
    from bayeslmm.formula.formulaic_seam import parsed_terms

    canvas = [" "] * len(source)
    for part in sum_.terms:
        start, end = part.items[0].start, part.items[-1].end
        canvas[start:end] = source[start:end]
        if part.sign_at is not None:
            canvas[part.sign_at] = "-" if part.negative else "+"
    text = "".join(canvas).rstrip()
    shift = len(text) - len(text.lstrip())
    try:
        if sum_.terms:
            parsed_terms(text[shift:])
    except FormulaError as error:
        start, end = (shift + (place or 0) for place in (error.start, error.end))
        raise FormulaError(error.message, source, start, end) from error
    return parsed_terms(sum_.text)


# --- limits ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Size:
    """At most how many terms, and factors in one of them; names that occur."""

    terms: int
    order: int
    names: frozenset[str]


def check_expansion(source: str, items: Sequence[Item]) -> None:
    """Raise FormulaError for a sum that expands to too many terms, or too large ones."""
    _size(source, items, 0)


def check_grouping(source: str, items: Sequence[Item]) -> None:
    """Raise FormulaError for a grouping factor of too many names or terms."""
    found = list(flat(items))
    names = [token for token in found if not is_operator(token, "/", "*", ":")]
    stars = sum(is_operator(token, "*") for token in found)
    if len(names) > MOST_GROUPING or stars > MOST_STARS:
        fail(
            f"A grouping factor has at most {MOST_GROUPING} names, and `*` at most {MOST_STARS} "
            "times; write the terms out.",
            source,
            items,
        )


def _size(source: str, items: Sequence[Item], level: int) -> _Size:
    if level == len(_LEVELS):
        return _power(source, items)
    total: _Size | None = None
    parts = list(_split(items, _LEVELS[level]))
    if len(parts) > MOST_WRITTEN and _LEVELS[level] == (":",):
        fail(f"At most {MOST_WRITTEN} factors may be written in an interaction.", source, items)
    for symbol, part in parts:
        if part:
            size = _size(source, part, level + 1)
            total = size if total is None else _joined(symbol, total, size)
            _check(source, items, total)
    return total or _Size(0, 0, frozenset())


def _split(items: Sequence[Item], symbols: tuple[str, ...]) -> Iterator[tuple[str, list[Item]]]:
    symbol, part = symbols[0], list[Item]()
    for item in items:
        if is_operator(item, *symbols):
            yield symbol, part
            symbol, part = str(getattr(item, "text", "")), []
        else:
            part.append(item)
    yield symbol, part


def _joined(symbol: str, one: _Size, two: _Size) -> _Size:
    product = one.terms * two.terms
    terms = {
        "*": one.terms + two.terms + product,
        ":": product,
    }.get(symbol, one.terms + two.terms)
    names = one.names | two.names
    largest = max(one.order, two.order)
    if symbol == "/":
        largest = len(one.names) + two.order
    elif symbol == "%in%":
        largest = len(two.names) + one.order
    elif symbol in "*:":
        largest = one.order + two.order
    return _Size(terms, min(largest, len(names)), names)


def _power(source: str, items: Sequence[Item]) -> _Size:
    """A name or a group, to a power or not."""
    only = items[0]
    if has_bar(only):
        return _Size(0, 0, frozenset())  # its sides are checked by themselves
    base = _size(source, only.items, 0) if isinstance(only, Group) else _one(only)
    if len(items) < 3 or not is_operator(items[1], "^", "**"):
        return base
    if len(items) > 4:
        fail("A power of a power has no meaning here; write one power.", source, items[2:])
    if isinstance(items[2], Group):
        return base  # refused by formulaic, at its place
    text = items[2].text
    if not (text.isascii() and text.isdigit()):
        message = "The right-hand argument of `**` must be a positive integer."
        fail(message, source, items[2:3])
    exponent, useful = int(text[:9]), max(1, len(base.names))
    if exponent > MOST_FACTORS or base.terms**exponent > MOST_PRODUCTS:
        hint = f"; {useful} is the largest that changes anything" if exponent > useful else ""
        fail(
            f"This power is too large to be expanded{hint}. The largest is {MOST_FACTORS}, and at "
            f"most {MOST_PRODUCTS} products are expanded.",
            source,
            items,
        )
    terms = base.terms**exponent
    if base.terms == len(base.names) and base.order == 1:  # a sum of names
        terms = sum(math.comb(base.terms, order) for order in range(1, exponent + 1))
    return _Size(terms, min(base.order * exponent, useful), base.names)


def _one(item: Item) -> _Size:
    text = str(getattr(item, "text", ""))
    named = getattr(item, "kind", "") in ("name", "python")
    return _Size(1, int(named), frozenset({text} if named else ()))


def _check(source: str, items: Sequence[Item], size: _Size) -> None:
    if size.order > MOST_FACTORS:
        fail(
            f"These interactions have up to {size.order} factors; at most {MOST_FACTORS} are "
            "allowed. A power, as in (a + b + c)**2, limits them.",
            source,
            items,
        )
    if size.terms > MOST_TERMS:
        fail(
            f"This expands to more than {MOST_TERMS} terms, which is the most that is allowed.",
            source,
            items,
        )
