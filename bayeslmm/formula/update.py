"""Changes to a formula: R's ``update``, where a dot stands for what there was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.syntax import (
    Item,
    blank_strings,
    check_text,
    expression,
    fail,
    flat,
    has_bar,
    is_offset,
    is_operator,
    nest,
    python_tokens,
    split_sum,
    tokens,
)
from bayeslmm.formula.terms import check_expansion, read_side

_DOT = re.compile(r"(?<![\w.)\]])\.(?![\w.])")
_ROLES = ("fixed", "offset", "random")


@dataclass(frozen=True, slots=True)
class _Part:
    """A signed term as written; `role` is one of `_ROLES` or "intercept"."""

    negative: bool
    text: str
    role: str
    items: tuple[Item, ...]


def update_formula(old: Formula, new: str) -> str:
    """Change a formula.

    Parameters
    ----------
    old : Formula
        The formula as it is.
    new : str
        ``"~ . - Days"``, ``". ~ . + (1 | g)"``, ``"log(.) ~ ."`` or a whole formula. A dot on the
        left stands for the old response; as a term on the right, for the old fixed effects,
        offsets and random-effects terms. Terms are taken out with ``-``; random-effects terms in
        parentheses too. Without a left side the response stays.

    Returns
    -------
    str

    Raises
    ------
    FormulaError
        If there is no ``~``, a dot is part of a larger term, or a term to be taken out is not
        there.

    References
    ----------
    R's ``update.formula``; a term that is not there is ignored by R and an error here.

    Examples
    --------
    >>> update_formula(parse("y ~ x + (x | g)"), "~ . - (x | g) + (1 | g)")
    'y ~ x + (1 | g)'
    """
    check_text(new)
    found = tokens(new)
    tildes = [token for token in found if is_operator(token, "~")]
    if len(tildes) != 1:
        raise FormulaError(
            "A change of a formula has one `~`, as in '~ . - x' or '. ~ . + (1 | g)'; a dot stands "
            "for what there was.",
            new,
            0,
            max(1, len(new)),
        )
    split = tildes[0].start
    response = _response(old.response, new[:split])
    items = nest(new, [token for token in found if token.start > split])
    if not items:
        fail("There is nothing on the right of `~`; a dot keeps what there was.", new, tildes)
    check_expansion(new, items)
    parts: list[_Part] = []
    for part in _parts(new, items):
        if _is_dot(part):
            parts += _old_parts(old)
        elif part.negative and part.role != "intercept":
            parts = _without(parts, part, new)
        elif part.role != "fixed" or not _terms(part) <= _fixed_terms(parts):
            parts.append(part)
    return f"{response} ~ {_joined(parts)}"


def _response(old: str, left: str) -> str:
    if not left.strip():
        return old
    pieces, start = [], 0
    for match in _DOT.finditer(blank_strings(left)):
        pieces += [left[start : match.start()], old]
        start = match.end()
    return "".join([*pieces, left[start:]]).strip()


# --- terms -----------------------------------------------------------------------------


def _parts(source: str, items: Sequence[Item]) -> Iterator[_Part]:
    """The top-level terms of a sum."""
    for part in split_sum(source, items):
        yield _part(source, part.negative, part.items)


def _part(source: str, negative: bool, items: Sequence[Item]) -> _Part:
    only = items[0]
    text = source[only.start : items[-1].end]
    role = "fixed"
    if len(items) == 1 and text in ("0", "1"):
        role = "intercept"
    elif len(items) == 1 and has_bar(only):
        role = "random"
    elif len(items) == 1 and any(is_offset(token) for token in flat(items)):
        role = "offset"
    part = _Part(negative, text, role, tuple(items))
    dots = [token for token in flat(items) if token.text == "."]
    if dots and (negative or not _is_dot(part)):
        fail(
            "Here `.` stands for all of the old right-hand side, so it must be a term of its own; "
            "write the terms out.",
            source,
            dots[:1],
        )
    return part


def _is_dot(part: _Part) -> bool:
    return part.text == "."


def _old_parts(old: Formula) -> list[_Part]:
    """The right-hand side that there was, its parenthesised sums opened where they can be."""
    found = tokens(old.source)
    tilde = next(token for token in found if is_operator(token, "~"))
    items = nest(old.source, [token for token in found if token.start > tilde.start])
    return list(_opened(old.source, items))


def _opened(source: str, items: Sequence[Item]) -> Iterator[_Part]:
    for part in _parts(source, items):
        only = part.items[0]
        group = len(part.items) == 1 and part.text.startswith("(") and part.role == "fixed"
        inner = list(_opened(source, only.items)) if group and hasattr(only, "items") else []
        if inner and not part.negative and not any(p.negative for p in inner):
            yield from inner
        else:
            yield part


def _without(parts: list[_Part], unwanted: _Part, source: str) -> list[_Part]:
    """The parts without one, or with it subtracted where it is a piece of a larger one."""
    same = [part for part in parts if not part.negative and _same(part, unwanted)]
    if same:
        return [part for part in parts if part not in same]
    if unwanted.role == "fixed" and _terms(unwanted) <= _fixed_terms(parts):
        return [*parts, unwanted]
    kinds = {"random": "random-effects term", "offset": "offset", "fixed": "fixed-effects term"}
    present = [part.text for part in parts if part.role == unwanted.role and not part.negative]
    fail(
        f"There is no {kinds[unwanted.role]} `{unwanted.text}` to take out; the formula has "
        f"{', '.join(f'`{text}`' for text in present) or 'none'}.",
        source,
        unwanted.items,
    )


def _same(one: _Part, two: _Part) -> bool:
    if one.role != two.role:
        return False
    if one.role == "random":
        return _random_key(one) == _random_key(two)
    if one.role == "fixed":
        return _terms(one) == _terms(two)
    return "".join(one.text.split()) == "".join(two.text.split())


def _terms(part: _Part) -> frozenset[str]:
    return read_side(f"0 + {part.text}").keys


def _fixed_terms(parts: Sequence[_Part]) -> frozenset[str]:
    fixed = [part for part in parts if part.role == "fixed"]
    text = "".join(f" {'-' if part.negative else '+'} {part.text}" for part in fixed)
    return read_side(f"0{text}").keys


def _random_key(part: _Part) -> tuple[object, ...]:
    python = python_tokens(flat(part.items))
    called = {name for token in python for name in expression(part.text, token).functions}
    terms = parse(f"y ~ 1 + {part.text}", called).random
    return tuple(
        (t.left.keys, t.factors, t.members, t.correlated, t.structure, t.by) for t in terms
    )


def _joined(parts: Sequence[_Part]) -> str:
    mentioned = [part for part in parts if part.role == "intercept"]
    kept = [part for part in parts if part.role != "intercept"]
    fixed = [part for part in kept if part.role == "fixed" and not part.negative]
    pieces = []
    if mentioned and (mentioned[-1].text == "1") == mentioned[-1].negative:
        pieces.append("0")
    elif mentioned or not fixed:
        pieces.append("1")
    text = " + ".join(pieces)
    for part in sorted(kept, key=lambda part: _ROLES.index(part.role)):
        sign = "-" if part.negative else "+"
        text = f"{text} {sign} {part.text}" if text else part.text
    return text
