"""The text of a Python expression in a formula, made into a syntax tree within limits."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from bayeslmm.exceptions import FormulaError

LONGEST = 4000
"""Characters of one expression."""

DEEPEST = 100
"""Levels of nesting of one expression; a sum of m terms has m."""

DEEPEST_BRACKETS = 30
"""Brackets inside brackets."""

_PIECE = re.compile(
    r"`(?P<name>[^`]+)`|(?P<quoted>\"[^\"]*\"|'[^']*')|(?P<power>\^)|(?P<space>\s)|.", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Plain:
    """Python without backticks and ``^``: `text`, where it came from, and quoted names by place."""

    text: str
    places: tuple[int, ...]
    quoted: Mapping[int, str]


def plain_python(code: str) -> Plain:
    """Rewrite an expression as Python; raise FormulaError for what no expression may contain."""
    if len(code) > LONGEST:
        raise FormulaError(
            f"This expression has {len(code)} characters; at most {LONGEST} are allowed. Compute a "
            "column first.",
            code,
            0,
            len(code),
        )
    pieces: list[str] = []
    places: list[int] = []
    quoted: dict[int, str] = {}
    depth = 0
    for match in _PIECE.finditer(code):
        start, end = match.span()
        text, kind = match.group(), match.lastgroup
        if kind == "name":
            quoted[len(places) + 1] = match["name"]
            text = f" {'_' * (end - start - 2)} "
        elif kind == "quoted":
            _check_text(code, match)
        elif kind == "power":
            text = "**"
        elif kind == "space":
            text = " "
        else:
            depth += (text in "([{") - (text in ")]}")
        if text == "#":
            raise FormulaError("A formula has no comments.", code, start, end)
        if depth > DEEPEST_BRACKETS:
            raise FormulaError(
                f"Brackets are nested more than {DEEPEST_BRACKETS} deep here.", code, start, end
            )
        pieces.append(text)
        places += range(start, end) if len(text) == end - start else [start] * len(text)
    return Plain("".join(pieces), (*places, len(code)), quoted)


def _check_text(code: str, match: re.Match[str]) -> None:
    if any(character in "\\\r\n\0" for character in match.group()):
        raise FormulaError(
            "Text in a formula holds no backslashes, line breaks or NUL.", code, *match.span()
        )


def parse_python(code: str, plain: Plain) -> ast.expr:
    """The tree of an expression; columns of its nodes are characters of `plain.text`."""
    text = plain.text
    lead = len(text) - len(text.lstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # what Python warns of is not meant as it is written
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, Warning) as error:
        hint = " R's as.factor(x) is C(x) here." if code.startswith("as.") else ""
        message = f"`{shortened(code)}` is not a valid Python expression.{hint}"
        raise FormulaError(message, code, 0, len(code)) from error
    except (RecursionError, MemoryError) as error:
        raise _too_deep(code) from error
    for node in ast.walk(tree):
        if isinstance(node, ast.expr | ast.keyword):
            node.col_offset = lead + _characters(text[lead:], node.col_offset)
            node.end_col_offset = lead + _characters(text[lead:], node.end_col_offset or 0)
    _check_depth(code, tree)
    return tree


def _characters(text: str, count: int) -> int:
    """Number of characters in the first `count` bytes."""
    return count if text.isascii() else len(text.encode()[:count].decode())


def _check_depth(code: str, tree: ast.expr) -> None:
    level: list[ast.AST] = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return
    raise _too_deep(code)


def _too_deep(code: str) -> FormulaError:
    message = (
        f"This expression is nested more than {DEEPEST} levels deep; a sum of m terms has m. "
        "Compute a column first."
    )
    return FormulaError(message, code, 0, len(code))


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."
