"""Multi-membership grouping factors by name, as in ``(1 | mm(s1, s2, weights=(w1, w2)))``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.syntax import (
    Group,
    Item,
    Token,
    fail,
    is_operator,
    nest,
    tokens,
)

_ARGUMENTS = (
    "columns of members, weights=(w1, w2) with a column or a number for each, and scale=False for "
    "weights that are taken as they are"
)

type Weight = str | float


@dataclass(frozen=True, slots=True)
class Members:
    """What ``mm()`` says beside its columns: a row belongs to the levels in all of them.

    Attributes
    ----------
    weights : tuple of str or float, or None
        A column or a number for each column of members; None where all count the same.
    scale : bool
        Whether the weights of each row are divided by their sum.
    """

    weights: tuple[Weight, ...] | None = None
    scale: bool = True

    @property
    def columns(self) -> frozenset[str]:
        """Columns of weights."""
        return frozenset(weight for weight in self.weights or () if isinstance(weight, str))

    def weight(self, member: int, n_members: int) -> Weight:
        """The column or number of one of the columns of members."""
        if self.weights is not None:
            return self.weights[member]
        return 1.0 / n_members if self.scale else 1.0


def read_members(source: str, token: Token) -> tuple[tuple[str, ...], Members]:
    """Columns of the members of a call of ``mm``, and its arguments.

    Raises
    ------
    FormulaError
        If it has fewer than two columns, one twice, or an argument that there is not.
    """
    start = token.start + len("mm(")
    try:
        found = tokens(" " * start + source[start : token.end - 1])
    except FormulaError as error:
        raise FormulaError(error.message, source, error.start, error.end) from error
    names: list[str] = []
    options: dict[str, tuple[Weight, ...] | bool] = {}
    for part in _split(source, nest(source, found), token):
        only = part[0]
        if len(part) == 1 and isinstance(only, Token) and only.kind == "name":
            _check_name(source, only, names, options)
            names.append(only.value)
        else:
            name, value = _option(source, part)
            if name in options:
                fail(f"{name}= is written twice.", source, part)
            options[name] = value
    if len(names) < 2:
        fail("mm() needs two columns of members or more, as in mm(s1, s2).", source, [token])
    weights, scale = options.get("weights"), options.get("scale", True)
    assert not isinstance(weights, bool)
    if weights is not None and len(weights) != len(names):
        message = f"weights= has {len(weights)} entries for {len(names)} columns of members."
        fail(message, source, [token])
    return tuple(names), Members(weights, bool(scale))


def _split(source: str, items: Sequence[Item], whole: Item) -> list[list[Item]]:
    """What stands between commas in `whole`."""
    parts: list[list[Item]] = [[]]
    for item in items:
        if not is_operator(item, ","):
            parts[-1].append(item)
            continue
        if not parts[-1]:
            fail("There is nothing before this comma.", source, [item])
        parts.append([])
    if not parts[-1]:
        fail("There is nothing at the end of these parentheses.", source, [whole])
    return parts


def _check_name(source: str, token: Token, names: Sequence[str], options: object) -> None:
    if token.value in names:
        fail(f"`{token.value}` occurs twice among the members.", source, [token])
    if options:
        fail(
            "The columns of members come first in mm(), then weights= and scale=.", source, [token]
        )


def _option(source: str, part: Sequence[Item]) -> tuple[str, tuple[Weight, ...] | bool]:
    """Name and value of ``weights=(...)`` or ``scale=...``."""
    if len(part) == 3 and is_operator(part[1], "="):
        name, _, value = part
        text = name.text if isinstance(name, Token) else ""
        if text == "weights" and isinstance(value, Group):
            return text, tuple(_weight(source, one) for one in _split(source, value.items, value))
        if text == "scale" and isinstance(value, Token) and value.text in ("True", "False"):
            return text, value.text == "True"
    written = source[part[0].start : part[-1].end]
    fail(f"`{written}` is no argument of mm(); what may be: {_ARGUMENTS}.", source, part)


def _weight(source: str, part: Sequence[Item]) -> Weight:
    """A column, or a number with its sign."""
    only, signed = part[-1], len(part) == 2 and is_operator(part[0], "-", "+")
    if isinstance(only, Token) and len(part) == 1 + signed:
        if only.kind == "name" and not signed:
            return only.value
        if only.kind == "value":
            try:
                return -float(only.text) if is_operator(part[0], "-") else float(only.text)
            except ValueError:
                pass
    written = source[part[0].start : part[-1].end]
    fail(f"`{written}` is no weight: name a column, or write a number.", source, part)
