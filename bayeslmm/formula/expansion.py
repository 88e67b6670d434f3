"""How large a right-hand side becomes, counted before anything is expanded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bayeslmm.formula.syntax import Group, Item, fail, flat, has_bar, is_operator

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
