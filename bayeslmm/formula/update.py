"""Changes to a formula: R's ``update``, where a dot stands for what there was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
_NAME = re.compile(r"[^\W\d][\w.]*")
_ROLES = ("fixed", "offset", "random")


@dataclass(frozen=True, slots=True)
class Part:
    """A signed term as written; `role` is "fixed", "offset", "random" or "intercept"."""

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
    parts: list[Part] = []
    for part in _parts(new, items):
        if _is_dot(part):
            parts += old_parts(old)
        elif part.negative and part.role != "intercept":
            parts = _without(parts, part, new)
        elif part.role != "fixed" or not _terms(part) <= _fixed_terms(parts):
            parts.append(part)
    return f"{response} ~ {joined(parts)}"


def _response(old: str, left: str) -> str:
    if not left.strip():
        return old
    pieces, start = [], 0
    for match in _DOT.finditer(blank_strings(left)):
        pieces += [left[start : match.start()], old]
        start = match.end()
    return "".join([*pieces, left[start:]]).strip()


# --- terms -----------------------------------------------------------------------------


def _parts(source: str, items: Sequence[Item]) -> Iterator[Part]:
    """The top-level terms of a sum."""
    for part in split_sum(source, items):
        yield _part(source, part.negative, part.items)


def _part(source: str, negative: bool, items: Sequence[Item]) -> Part:
    only = items[0]
    text = source[only.start : items[-1].end]
    role = "fixed"
    if len(items) == 1 and text in ("0", "1"):
        role = "intercept"
    elif len(items) == 1 and has_bar(only):
        role = "random"
    elif len(items) == 1 and any(is_offset(token) for token in flat(items)):
        role = "offset"
    part = Part(negative, text, role, tuple(items))
    dots = [token for token in flat(items) if token.text == "."]
    if dots and (negative or not _is_dot(part)):
        fail(
            "Here `.` stands for all of the old right-hand side, so it must be a term of its own; "
            "write the terms out.",
            source,
            dots[:1],
        )
    return part


def _is_dot(part: Part) -> bool:
    return part.text == "."


def old_parts(old: Formula) -> list[Part]:
    """The right-hand side that there was, its parenthesised sums opened where they can be."""
    found = tokens(old.source)
    tilde = next(token for token in found if is_operator(token, "~"))
    items = nest(old.source, [token for token in found if token.start > tilde.start])
    return list(_opened(old.source, items))


def _opened(source: str, items: Sequence[Item]) -> Iterator[Part]:
    for part in _parts(source, items):
        only = part.items[0]
        group = len(part.items) == 1 and part.text.startswith("(") and part.role == "fixed"
        inner = list(_opened(source, only.items)) if group and hasattr(only, "items") else []
        if inner and not part.negative and not any(p.negative for p in inner):
            yield from inner
        else:
            yield part


def _without(parts: list[Part], unwanted: Part, source: str) -> list[Part]:
    """The parts without one; what it is a piece of is written out."""
    if unwanted.role == "fixed":
        there = _fixed_terms(parts)
        if _terms(unwanted) <= there:
            return _written_out(parts, there - _terms(unwanted))
    same = [part for part in parts if not part.negative and _same(part, unwanted)]
    if same and unwanted.role != "fixed":
        return [part for part in parts if part not in same]
    if unwanted.role == "random" and (opened := _reduced(parts, unwanted)):
        return opened
    kinds = {"random": "random-effects term", "offset": "offset", "fixed": "fixed-effects term"}
    present = [part.text for part in parts if part.role == unwanted.role and not part.negative]
    fail(
        f"There is no {kinds[unwanted.role]} `{unwanted.text}` to take out; the formula has "
        f"{', '.join(f'`{text}`' for text in present) or 'none'}.",
        source,
        unwanted.items,
    )


def _written_out(parts: Sequence[Part], kept: frozenset[str]) -> list[Part]:
    """Parts of the terms `kept` alone: those that stand for others too as sums of their terms."""
    found, given = [], frozenset[str]()
    for part in parts:
        if part.role != "fixed":
            found.append(part)
        elif not part.negative and _terms(part) <= kept:
            found.append(part)
            given |= _terms(part)
        elif not part.negative:
            for text, key in _products(part):
                if key in kept and key not in given:
                    found.append(part_of(text))
                    given |= {key}
    return found


def _products(part: Part) -> Iterator[tuple[str, str]]:
    """Each term of a part as text, ``"a:b"``, and its key."""
    read = read_side(f"0 + {part.text}")
    texts = {operand.label: operand.text for operand in read.operands}
    for term in read.terms:
        yield ":".join(texts[label] for label in term), ":".join(sorted(term))


def part_of(text: str) -> Part:
    """A term from text."""
    return _part(text, False, nest(text, tokens(text)))


def _reduced(parts: Sequence[Part], unwanted: Part) -> list[Part]:
    """The parts without one of several that ``/``, ``*`` or ``||`` stands for; none if it is none.

    ``(1 | a/b)`` is ``(1 | a) + (1 | a:b)``, ``(x || g)`` is ``(1 | g) + (0 + x || g)``.
    """
    gone = bar_terms(unwanted.text)
    if len(gone) != 1:
        return []
    for place, part in enumerate(parts):
        own = bar_terms(part.text) if part.role == "random" and not part.negative else []
        left = [term for one in own for term in one.without(gone[0])]
        if left and left != own:
            found = [part_of(term.text) for term in left]
            return [*parts[:place], *found, *parts[place + 1 :]]
    return []


@dataclass(frozen=True, slots=True)
class BarTerm:
    """A plain random-effects term on one grouping factor, as text.

    Attributes
    ----------
    lefts : tuple of str
        The terms on the left, ``"1"`` for the intercept.
    bar : str
        ``"|"`` or ``"||"``.
    factors : tuple of str
        Variables of the grouping factor, in backticks where they need them.
    """

    lefts: tuple[str, ...]
    bar: str
    factors: tuple[str, ...]

    @property
    def text(self) -> str:
        """The term as a formula has it."""
        if self.lefts == ("1",):
            return f"(1 | {':'.join(self.factors)})"
        lefts = [left for left in self.lefts if left != "1"]
        left = " + ".join(lefts if "1" in self.lefts else ["0", *lefts])
        return f"({left} {self.bar} {':'.join(self.factors)})"

    def without(self, other: BarTerm) -> list[BarTerm]:
        """What is left without another term: itself where it does not have that."""
        if set(self.factors) != set(other.factors):
            return [self]
        if set(self.lefts) == set(other.lefts) and (self.bar == other.bar or len(self.lefts) == 1):
            return []
        if self.bar == "|" or len(other.lefts) > 1 or other.lefts[0] not in self.lefts:
            return [self]
        return [replace(self, lefts=tuple(one for one in self.lefts if one != other.lefts[0]))]


def bar_terms(text: str) -> list[BarTerm]:
    """The plain terms of one grouping factor each that a random-effects term stands for.

    Parameters
    ----------
    text : str
        A term in parentheses.

    Returns
    -------
    list of BarTerm
        None for a structure by name, for ``by=`` and for ``mm()``.

    Examples
    --------
    >>> [term.text for term in bar_terms("(x | a/b)")]
    ['(x | a)', '(x | a:b)']
    """
    outer = nest(text, tokens(text))[0]
    bar = next((i for i in getattr(outer, "items", ()) if is_operator(i, "|", "||")), None)
    if bar is None or not text.startswith("("):
        return []
    called = {n for t in python_tokens(flat([outer])) for n in expression(text, t).functions}
    found = parse(f"y ~ 1 + {text}", called).random
    if any(term.by is not None or term.members is not None for term in found):
        return []
    read = read_side(text[1 : bar.start])
    texts = {operand.label: operand.text for operand in read.operands}
    lefts = tuple(":".join(texts[label] for label in term) or "1" for term in read.terms)
    sign = "||" if is_operator(bar, "||") else "|"
    return [BarTerm(lefts, sign, tuple(map(quoted, term.factors))) for term in found]


def quoted(name: str) -> str:
    """A column as a formula writes it, in backticks where it is no name by itself."""
    return name if _NAME.fullmatch(name) else f"`{name}`"


def _same(one: Part, two: Part) -> bool:
    if one.role != two.role:
        return False
    if one.role == "random":
        return random_key(one) == random_key(two)
    return "".join(one.text.split()) == "".join(two.text.split())


def _terms(part: Part) -> frozenset[str]:
    return read_side(f"0 + {part.text}").keys


def _fixed_terms(parts: Sequence[Part]) -> frozenset[str]:
    fixed = [part for part in parts if part.role == "fixed"]
    text = "".join(f" {'-' if part.negative else '+'} {part.text}" for part in fixed)
    return read_side(f"0{text}").keys


def random_key(part: Part) -> tuple[object, ...]:
    """What random-effects terms share that are the same."""
    python = python_tokens(flat(part.items))
    called = {name for token in python for name in expression(part.text, token).functions}
    terms = parse(f"y ~ 1 + {part.text}", called).random
    return tuple(
        (t.left.keys, t.factors, t.members, t.correlated, t.structure, t.by) for t in terms
    )


def joined(parts: Sequence[Part]) -> str:
    """A right-hand side of parts: fixed effects, offsets, random-effects terms."""
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
