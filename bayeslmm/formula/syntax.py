"""Tokens, brackets and sums of terms of a formula, and what no formula may contain."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NoReturn

from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.expressions import FUNCTIONS, Reading, read
from bayeslmm.formula.structures import STRUCTURES, Call, read_call

# --- tokens ------------------------------------------------------------------------------


EXAMPLE = "y ~ x + (x | group)"

LONGEST = 20_000
"""Characters of a formula."""

_CLOSING = {"(": ")", "[": "]", "{": "}", "`": "`", "%": "%"}
_QUOTED = {"`": "name", "{": "python", "%": "operator"}
_WORD = re.compile(r"[._\w]")
_SINGLE = re.compile(r"\|\||\*\*|\S")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a formula; ``source[start:end] == text``.

    `kind` is "name", "value", "python", "structure", "operator" or "context" (brackets); `value`
    is `text` without backticks or braces.
    """

    kind: str
    text: str
    start: int
    end: int

    @property
    def value(self) -> str:
        """The text without the backticks or braces that quote it."""
        return self.text[1:-1] if self.text[0] in "`{" else self.text


def check_text(source: str) -> None:
    """Reject what is no text, too long to be read, or cannot be written to any file."""
    if not isinstance(source, str):
        raise FormulaError(
            f"A formula is a string such as {EXAMPLE!r}, got {type(source).__name__}."
        )
    if len(source) > LONGEST:
        raise FormulaError(
            f"The formula has {len(source)} characters; at most {LONGEST} are allowed. It starts "
            f"with `{source[:60]}`."
        )
    surrogate = re.search("[\ud800-\udfff]", source)
    if surrogate:
        raise FormulaError(
            "This is half of a character (a surrogate), which is no text.",
            source,
            *surrogate.span(),
        )


@lru_cache(maxsize=16)
def tokens(source: str) -> tuple[Token, ...]:
    """Split a formula into tokens with their positions.

    Parameters
    ----------
    source : str
        A formula or a part of one.

    Returns
    -------
    tuple of Token
        A Python call such as ``I(x | 1)`` is one token; operators are one token each,
        with ``||``, ``**`` and ``%in%`` kept whole.

    Raises
    ------
    FormulaError
        If a quote, a backtick or the parenthesis of a call is never closed.

    Examples
    --------
    >>> [token.text for token in tokens("log(x + 1)||g")]
    ['log(x + 1)', '||', 'g']
    """
    return tuple(token for piece in _pieces(source) for token in _single(source, *piece))


def _single(source: str, kind: str, start: int, last: int) -> Iterator[Token]:
    """The tokens of a piece, with its closing quote; operators may stand side by side."""
    end = last + 1
    if source[start] in _QUOTED:
        end += source[end : end + 1] == _CLOSING[source[start]]
    text = source[start:end]
    if kind == "python" and read_call(text, start) is not None:
        kind = "structure"
    if kind != "operator" or text.startswith("%"):
        yield Token("value" if text == "." else kind, text, start, end)
        return
    for match in _SINGLE.finditer(text):
        yield Token("operator", match.group(), start + match.start(), start + match.end())


def opened(source: str, token: Token) -> tuple[Call, tuple[Token, ...]]:
    """What a structure's call says, and the tokens of the random-effects term inside."""
    call = read_call(token.text, token.start)
    assert call is not None
    start, end = call.inside
    try:
        return call, tokens(" " * start + source[start:end])
    except FormulaError as error:
        raise FormulaError(error.message, source, error.start, error.end) from error


def plainly(source: str, found: Sequence[Token]) -> Iterator[Token]:
    """Tokens with those of the terms inside structures in place of these."""
    for token in found:
        if token.kind == "structure":
            yield from opened(source, token)[1]
        else:
            yield token


class _Piece:
    """What has been read of a token: its kind, and its first and last characters."""

    def __init__(self, kind: str = "", start: int = -1) -> None:
        self.kind = kind
        self.start = start
        self.last = start
        self.filled = False

    def take(self, i: int, kind: str = "") -> None:
        """Add the character at `i`."""
        self.start = i if self.start < 0 else self.start
        self.last = i
        self.kind = kind or self.kind
        self.filled = True

    @property
    def place(self) -> tuple[str, int, int]:
        return self.kind, self.start, self.last


def _pieces(source: str) -> Iterator[tuple[str, int, int]]:
    """Kind, first and last character of each token; closing quotes are left out."""
    piece, closers, escaped = _Piece(), list[str](), False
    for i, char in enumerate(source):
        if closers:
            finished = not escaped and char == closers[-1]
            if finished and char in "}`%" and len(closers) == 1:
                if not piece.filled:
                    message = "There is nothing between these quotes."
                    raise FormulaError(message, source, piece.start, i + 1)
                yield piece.place
                piece = _Piece()
            else:
                piece.take(i)
            if finished:
                closers.pop()
            elif not escaped and char in "`([" and closers[-1] in "})]":
                closers.append(_CLOSING[char])
            escaped = not escaped and char == "\\"
            continue
        kind = _kind(source, i, piece)
        if piece.filled and not _continues(piece.kind, kind):
            yield piece.place
            piece = _Piece()
        if kind == "space":
            continue
        if kind == "context":
            yield kind, i, i
        elif char in _QUOTED:
            piece = _Piece(_QUOTED[char], i)
            closers.append(_CLOSING[char])
        else:
            piece.take(i, kind)
            if kind in ("python", "string"):
                closers.append(_CLOSING.get(char, char))
                piece.kind = "python" if kind == "python" else "value"
    if closers:
        message = f"This is never closed; add {closers[-1]!r}."
        raise FormulaError(message, source, piece.start, piece.last + 1)
    if piece.filled:
        yield piece.place


def _kind(source: str, i: int, piece: _Piece) -> str:
    """What the character at `i`, which stands in no quotes, belongs to."""
    char = source[i]
    if char in _QUOTED:
        return "quoted"
    if char in "([":
        return "python" if piece.kind in ("name", "python") else "context"
    if char in ")]":
        return "context"
    if char.isspace():
        return "space"
    if char in "\"'":
        if piece.filled and piece.kind != "operator":
            text = source[piece.start : piece.last + 1]
            message = f"Unexpected character {char!r} following token `{text}`."
            raise FormulaError(message, source, i, i + 1)
        return "string"
    if not _WORD.match(char):
        return "operator"
    numeric = char in "0123456789." and piece.kind != "name"
    return "value" if numeric else "name"


def _continues(before: str, kind: str) -> bool:
    """Whether a character of a kind goes on with a token of another."""
    if kind == "space":
        return before == "operator"
    if kind == "python":
        return before in ("name", "python")
    if before == "operator":
        return kind == "operator"
    return kind in ("name", "value") and before in ("name", "value")


DEEPEST = 20
"""Parentheses inside parentheses."""

MOST_BASIS_COLUMNS = 1000
"""Columns that all polynomials and splines of a formula make."""

_OPERATORS = frozenset({"~", "|", "||", "+", "-", "*", "/", ":", "^", "**", "%in%"})

# --- tokens and brackets ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """A bracketed part of a formula; of a random-effects term, with the structure around it."""

    items: tuple[Item, ...]
    start: int
    end: int
    call: Call | None = None


type Item = Token | Group


def fail(message: str, source: str, items: Sequence[Item]) -> NoReturn:
    """Raise with carets under `items`."""
    raise FormulaError(message, source, items[0].start, items[-1].end)


def is_operator(item: Item, *symbols: str) -> bool:
    """Tell whether an item is one of these operators."""
    return isinstance(item, Token) and item.kind == "operator" and item.text in symbols


def check_tokens(source: str, found: Sequence[Token], functions: Collection[str] = ()) -> None:
    """Reject what no side of a formula may contain; `functions` are the user's."""
    size = 0
    free, plain = _arguments(found), list(plainly(source, found))
    for before, token in zip([None, *plain], plain, strict=False):
        if token.start in free or is_membership(before, token):
            continue  # read with the term
        if token.kind == "operator" and token.text.replace(" ", "") not in _OPERATORS:
            fail(
                f"`{token.text}` is not a formula operator; the operators are "
                f"{' '.join(sorted(_OPERATORS))}. Python expressions go inside I( ).",
                source,
                [token],
            )
        if token.text == ".":
            fail(
                "`.` for all other columns is not supported; write the columns out.",
                source,
                [token],
            )
        if token.text == "[":
            fail("Square brackets have no meaning here; use parentheses.", source, [token])
        if token.kind == "python":
            size += _checked_size(source, token, functions)
            if size > MOST_BASIS_COLUMNS:
                message = "The polynomials and splines up to here have more than "
                fail(f"{message}{MOST_BASIS_COLUMNS} columns.", source, [token])


def is_membership(before: Item | None, item: Item) -> bool:
    """Tell whether an item is a call of ``mm`` right behind a bar."""
    if before is None or not is_operator(before, "|", "||") or not isinstance(item, Token):
        return False
    return item.kind == "python" and item.text.startswith("mm(") and item.text.endswith(")")


def python_tokens(found: Iterable[Token]) -> Iterator[Token]:
    """The Python among tokens, without calls of ``mm`` right behind a bar."""
    plain = list(found)
    for before, token in zip([None, *plain], plain, strict=False):
        if token.kind == "python" and not is_membership(before, token):
            yield token


def _arguments(found: Sequence[Token]) -> frozenset[int]:
    """Starts of the tokens from the first comma behind a bar to the end of its parentheses."""
    starts, brackets = set[int](), list[str]()
    for token in found:
        if token.kind == "context" and token.text == "(":
            brackets.append("")
        elif token.kind == "context" and brackets:
            brackets.pop()
        elif brackets and is_operator(token, "|", "||"):
            brackets[-1] = "bar"
        elif brackets and brackets[-1] == "bar" and token.text == ",":
            brackets[-1] = "arguments"
        if brackets and brackets[-1] == "arguments":
            starts.add(token.start)
    return frozenset(starts)


def blank_strings(text: str, kept: str = "") -> str:
    """Blank quoted strings, keeping positions, except a string equal to `kept`."""

    def blank(match: re.Match[str]) -> str:
        return match[0] if kept and match[2] == kept else " " * len(match[0])

    return re.sub(r"(\"|')((?:\\.|(?!\1).)*)\1", blank, text)


def _checked_size(source: str, token: Token, functions: Collection[str]) -> int:
    """Reject Python that cannot be evaluated, before any data are seen; the columns it makes."""
    reading = expression(source, token)
    called = reading.functions
    if "offset" in called and not is_offset(token):
        fail("offset() must be a term of its own.", source, [token])
    for name in sorted(set(called) - {"offset", *FUNCTIONS, *functions}):
        shift = token.start + (token.text[0] == "{")
        start, end = (shift + place for place in called[name])
        raise FormulaError(unknown_function(name, functions, token.text), source, start, end)
    return reading.size


_ELSEWHERE = {
    "gr": "brms's (x | gr(g, by = f)) is (x | g, by=f), and its cov = A is relationships={'g': A}",
    "mm": "mm(s1, s2) names the members of a row right behind a bar, as in (1 | mm(s1, s2))",
    "mmc": "covariates that differ between the members of a row are not available; brms has them",
}
"""What brms's functions around grouping factors are here."""


def unknown_function(name: str, functions: Collection[str], text: str = "") -> str:
    """Say that a function is not known, and which are."""
    bar = ""
    if "|" in text:
        bar = (
            " A random-effects term needs `+` before its parenthesis; the covariance structures "
            f"around one are {', '.join(sorted(STRUCTURES))}."
        )
    if name in _ELSEWHERE and name not in functions:
        return f"There is no `{name}()` here: {_ELSEWHERE[name]}."
    own = f", yours {', '.join(sorted(functions))}" if functions else ""
    return (
        f"Unknown function `{name}`.{bar} The functions are {', '.join(sorted(FUNCTIONS))}{own}; "
        f"NumPy's are np.<name>. Your own: LMM(..., functions={{'{name}': {name}}})."
    )


def expression(source: str, token: Token) -> Reading:
    """Read the Python of a token; FormulaError has positions in `source`."""
    try:
        return read(token.value)
    except FormulaError as error:
        shift = token.start + (token.text[0] == "{")
        start, end = error.start or 0, error.end or 0
        raise FormulaError(error.message, source, shift + start, shift + end) from error


@dataclass(frozen=True, slots=True)
class Operand:
    """A column or an expression: a factor of a term, a response or an offset.

    Attributes
    ----------
    text : str
        As written.
    label : str
        As columns of the model are labelled: without backticks, Python in its canonical form.
    reading : Reading or None
        The Python, read; None for a column.
    """

    text: str
    label: str
    reading: Reading | None = field(default=None, compare=False, repr=False)

    @property
    def variables(self) -> frozenset[str]:
        """Columns that it reads."""
        return frozenset({self.label}) if self.reading is None else self.reading.variables

    @property
    def functions(self) -> frozenset[str]:
        """Functions that it calls by bare name."""
        return frozenset() if self.reading is None else frozenset(self.reading.functions)


def operand(source: str, token: Token) -> Operand:
    """Read a token that is a name or Python."""
    if token.kind == "name":
        return Operand(token.text, token.value)
    reading = expression(source, token)
    return Operand(token.text, reading.text, reading)


def read_operand(text: str) -> Operand:
    """Read a column or an expression from text; FormulaError if it is neither."""
    found = tokens(text)
    if len(found) == 1 and found[0].kind in ("name", "python"):
        return operand(text, found[0])
    reading = read(text)
    return Operand(text, reading.text, reading)


def nest(source: str, found: Sequence[Token]) -> tuple[Item, ...]:
    """Match brackets: every ``( ... )`` becomes one group."""
    stack: list[tuple[Token | None, list[Item]]] = [(None, [])]
    for token in found:
        if token.kind == "context" and token.text in _CLOSING:
            stack.append((token, []))
            if len(stack) > DEEPEST + 1:
                fail(f"Parentheses are nested more than {DEEPEST} deep here.", source, [token])
        elif token.kind == "context":
            opening, items = stack.pop()
            if opening is None or _CLOSING[opening.text] != token.text:
                fail(f"This `{token.text}` closes nothing; remove it.", source, [token])
            if not items:
                fail("There is nothing inside these parentheses.", source, [opening, token])
            stack[-1][1].append(Group(tuple(items), opening.start, token.end))
        elif token.kind == "structure":
            call, inside = opened(source, token)
            if not inside:
                fail("There is nothing inside these parentheses.", source, [token])
            items = list(nest(source, inside))
            stack[-1][1].append(Group(tuple(items), token.start, token.end, call))
        else:
            stack[-1][1].append(token)
    opening, items = stack[-1]
    if opening is not None:
        closing = _CLOSING[opening.text]
        fail(f"This `{opening.text}` is never closed; add `{closing}`.", source, [opening])
    return tuple(items)


def flat(items: Sequence[Item]) -> Iterator[Token]:
    """Yield the tokens of nested items, without their brackets."""
    for item in items:
        if isinstance(item, Group):
            yield from flat(item.items)
        else:
            yield item


# --- sums of terms ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """One signed term of a sum; `sign_at` is the position of its sign, if written."""

    negative: bool
    sign_at: int | None
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum read: its intercept (None if not mentioned), terms, bar groups and offsets."""

    intercept: bool | None
    terms: tuple[Part, ...]
    bars: tuple[Group, ...]
    offsets: tuple[Token, ...]

    @property
    def text(self) -> str:
        """The terms in canonical form after an explicit intercept."""
        pieces = ["0" if self.intercept is False else "1"]
        for part in self.terms:
            pieces += ["-" if part.negative else "+", _render(part.items)]
        return " ".join(pieces)


def split_sum(source: str, items: Sequence[Item]) -> Iterator[Part]:
    """Split at the top-level ``+`` and ``-``; signs in a row multiply."""
    negative, sign_at, current = False, None, list[Item]()
    for item in items:
        if not is_operator(item, "+", "-"):
            current.append(item)
            continue
        if current:
            yield Part(negative, sign_at, tuple(current))
            negative, current = False, []
        negative ^= is_operator(item, "-")
        sign_at = item.start
    if not current:
        last = source[items[-1].start : items[-1].end]
        fail(f"There is nothing after this `{last}`.", source, items[-1:])
    yield Part(negative, sign_at, tuple(current))


def read_sum(source: str, items: Sequence[Item]) -> Sum:
    """Sort the terms of a sum into intercept, fixed terms, bar groups and offsets."""
    for item in items:
        if is_operator(item, "|", "||"):
            fail(
                "A random-effects term must be in parentheses, as in (x | group).",
                source,
                [item],
            )
    intercept: bool | None = None
    terms: list[Part] = []
    bars: list[Group] = []
    offsets: list[Token] = []
    for part in split_sum(source, items):
        only = part.items[0] if len(part.items) == 1 else None
        inner = _inside(source, part)
        opened = None if inner is None else _opened(part, inner)
        if isinstance(only, Token) and only.kind == "value" and only.text in ("0", "1"):
            intercept = (only.text == "1") != part.negative
        elif isinstance(only, Token) and is_offset(only):
            _check_added("offset() cannot be subtracted; write offset(-x).", source, part)
            offsets.append(only)
        elif isinstance(only, Group) and has_bar(only):
            _check_added("A random-effects term cannot be subtracted; leave it out.", source, part)
            bars.append(only)
        elif opened is not None:
            intercept = intercept if opened.intercept is None else opened.intercept
            terms += opened.terms
            bars += opened.bars
            offsets += opened.offsets
        else:
            _check_plain(source, part, inner)
            terms.append(part)
    return Sum(intercept, tuple(terms), tuple(bars), tuple(offsets))


def _inside(source: str, part: Part) -> Sum | None:
    """The sum inside a part that is one parenthesised sum and no random-effects term."""
    only = part.items[0]
    if len(part.items) > 1 or not isinstance(only, Group) or has_bar(only):
        return None
    return read_sum(source, only.items)


def _opened(part: Part, inner: Sum) -> Sum | None:
    """The terms of a parenthesised sum without its parentheses; None where they must stay."""
    if part.negative or any(term.negative for term in inner.terms):
        return None
    terms = list(inner.terms)
    if terms and terms[0].sign_at is None:
        terms[0] = Part(False, part.sign_at, terms[0].items)
    return Sum(inner.intercept, tuple(terms), inner.bars, inner.offsets)


def has_bar(item: Item) -> bool:
    """Tell whether an item is a parenthesised random-effects term."""
    return isinstance(item, Group) and any(is_operator(i, "|", "||") for i in item.items)


def is_offset(token: Token) -> bool:
    """Tell whether a token is a call of ``offset``."""
    return token.kind == "python" and token.text.startswith("offset(")


def _check_added(message: str, source: str, part: Part) -> None:
    if part.negative:
        fail(message, source, part.items)


def _check_plain(source: str, part: Part, inner: Sum | None) -> None:
    """Reject bars and offsets inside products, and operators without an operand."""
    operator_before = True
    for i, item in enumerate(part.items):
        operator = is_operator(item, *_OPERATORS)
        if operator and (operator_before or i == len(part.items) - 1):
            fail(f"A term is missing next to this `{_render([item])}`.", source, [item])
        operator_before = operator
        if isinstance(item, Token) and is_offset(item):
            fail("offset() must be a term of its own.", source, [item])
        if has_bar(item):
            touching = any(is_operator(i, *_OPERATORS) for i in part.items)
            fail(
                "A random-effects term is added with `+`; it cannot be part of an interaction."
                if touching
                else "A `+` is missing next to this random-effects term.",
                source,
                [item],
            )
        if isinstance(item, Group):
            inside = inner or read_sum(source, item.items)
            if inside.bars or inside.offsets:
                fail(
                    "Random-effects terms and offsets must stand outside these parentheses.",
                    source,
                    [item],
                )


def _render(items: Sequence[Item]) -> str:
    pieces: list[str] = []
    for i, item in enumerate(items):
        if isinstance(item, Group):
            pieces.append(f"({_render(item.items)})")
        elif item.kind != "operator" or item.text in (":", "^", "**") or i == 0:
            pieces.append(item.text)
        else:
            pieces.append(f" {item.text} ")
    return "".join(pieces)
