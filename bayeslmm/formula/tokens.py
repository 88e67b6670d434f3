"""A formula's text split into tokens, by the rules of formulaic's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from bayeslmm.exceptions import FormulaError

EXAMPLE = "y ~ x + (x | group)"

LONGEST = 20_000
"""Characters of a formula."""

_CLOSING = {"(": ")", "[": "]", "{": "}", "`": "`", "%": "%"}
_QUOTED = {"`": "name", "{": "python", "%": "operator"}
_WORD = re.compile(r"[._\w]")
_OPERATORS = re.compile(r"\|\||\*\*|\S")


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a formula; ``source[start:end] == text``.

    `kind` is "name", "value", "python", "operator" or "context" (brackets); `value` is
    `text` without backticks or braces.
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
    if kind != "operator" or text.startswith("%"):
        yield Token("value" if text == "." else kind, text, start, end)
        return
    for match in _OPERATORS.finditer(text):
        yield Token("operator", match.group(), start + match.start(), start + match.end())


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
