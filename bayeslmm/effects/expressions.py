"""A small language for hypotheses: arithmetic on labels of parameters, with one comparison."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayeslmm.data.inputs import nearest
from bayeslmm.exceptions import FormulaError

LONGEST = 10_000
"""Characters of a hypothesis."""

MOST_TOKENS = 500
"""Labels, numbers and signs of a hypothesis."""

DEEPEST = 30
"""Parentheses, signs and powers inside each other."""

RELATIONS = {"<": "<", "<=": "<", ">": ">", ">=": ">", "=": "=", "==": "="}
FUNCTIONS: Mapping[str, Callable[[Any], Any]] = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
}
OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "^": operator.pow,
}
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_OPERATOR = re.compile(r"\*\*|<=|>=|==|!=|[-+*/^()<>=]")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Node:
    """Part of an expression: a number, a label, or an operation on other parts."""

    kind: str
    value: Any
    parts: tuple[Node, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A hypothesis read: ``difference relation 0``.

    Attributes
    ----------
    source : str
        As written.
    relation : {"<", ">", "="}
        The relation.
    difference : Node
        Left side less right side.
    """

    source: str
    relation: str
    difference: Node


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def parse_comparison(source: str, labels: Iterable[str]) -> Comparison:
    """Read a hypothesis such as ``"f[b] - f[a] > 0.5 * sigma"``.

    Parameters
    ----------
    source : str
        Numbers, labels, ``+ - * / **``, parentheses, abs, exp, log and sqrt, and one of
        ``< > =``. A label that looks like an operation may stand in backticks.
    labels : iterable of str
        Known labels of parameters.

    Returns
    -------
    Comparison

    Raises
    ------
    FormulaError
        Showing the place.
    """
    if not isinstance(source, str):
        raise FormulaError(f"A hypothesis is text such as 'x > 0', got {source!r}.")
    if len(source) > LONGEST:
        raise FormulaError(
            f"The hypothesis has {len(source)} characters; at most {LONGEST} are allowed."
        )
    tokens = _tokens(source, sorted(labels, key=len, reverse=True))
    return _Parser(source, tokens).comparison()


def evaluate_node(node: Node, lookup: Callable[[Node], Any]) -> Any:
    """Value of an expression, given those of its labels."""
    if node.kind == "number":
        return node.value
    if node.kind == "label":
        return lookup(node)
    values = [evaluate_node(part, lookup) for part in node.parts]
    if node.kind == "call":
        return FUNCTIONS[node.value](values[0])
    return OPERATORS[node.value](values[0], values[1])


def labels_in(node: Node) -> list[Node]:
    """The labels of an expression, in order."""
    if node.kind == "label":
        return [node]
    return [label for part in node.parts for label in labels_in(part)]


# --- tokens ----------------------------------------------------------------------------


def _tokens(source: str, labels: list[str]) -> list[_Token]:
    patterns = [(label, _pattern(label)) for label in labels]
    found, at = [], 0
    while at < len(source):
        if source[at].isspace():
            at += 1
            continue
        token = _token_at(source, at, patterns)
        found.append(token)
        at = token.end
        if len(found) > MOST_TOKENS:
            raise FormulaError(
                f"A hypothesis has at most {MOST_TOKENS} labels, numbers and signs.",
                source,
                token.start,
                token.end,
            )
    return found


def _token_at(source: str, at: int, patterns: list[tuple[str, re.Pattern[str]]]) -> _Token:
    if source[at] == "`":
        end = source.find("`", at + 1)
        if end < 0:
            raise FormulaError("This backtick is never closed.", source, at, len(source))
        name = source[at + 1 : end]
        if name not in (label for label, _ in patterns):
            raise _unknown(name, source, at, end + 1, [label for label, _ in patterns])
        return _Token("label", name, at, end + 1)
    for label, pattern in patterns:
        match = pattern.match(source, at)
        if match:
            return _Token("label", label, at, match.end())
    for kind, expression in (("number", _NUMBER), ("operator", _OPERATOR)):
        match = expression.match(source, at)
        if match:
            return _Token(kind, match.group(), at, match.end())
    word = _WORD.match(source, at)
    if word and word.group() in FUNCTIONS and source[word.end() :].lstrip().startswith("("):
        return _Token("function", word.group(), at, word.end())
    end = _end_of_name(source, at)
    raise _unknown(source[at:end], source, at, end, [label for label, _ in patterns])


def _pattern(label: str) -> re.Pattern[str]:
    """A label as it may be written: spaces beside punctuation do not count."""
    pieces = re.findall(r"\w+|[^\w\s]", label)
    if " ".join(pieces).replace(" ", "") == label.replace(" ", ""):
        text = r"\s*".join(map(re.escape, pieces))
    else:
        text = re.escape(label)
    text = text.replace(r"\*\s*\*", r"(?:\*\s*\*|\^)")  # R's I(x^2) is I(x ** 2)
    # a label is not the beginning of a longer name, interaction or index
    return re.compile(rf"{text}(?![\w\[(]|\s*:)" if label[-1:].isalnum() else rf"{text}(?!\s*:)")


def _end_of_name(source: str, at: int) -> int:
    match = re.compile(r"[\w.]+(\[[^\]]*\])?(:[\w.]+(\[[^\]]*\])?)*").match(source, at)
    return match.end() if match else at + 1


def _unknown(name: str, source: str, start: int, end: int, labels: list[str]) -> FormulaError:
    known = sorted(labels)
    shown = ", ".join(f"`{label}`" for label in known[:20])
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return FormulaError(
        f"`{name}` is no parameter of the model.{nearest(name, known)} Known are {shown}{more}.",
        source,
        start,
        end,
    )


# --- grammar ---------------------------------------------------------------------------


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, source: str, tokens: list[_Token]) -> None:
        self.source = source
        self.tokens = tokens
        self.at = 0
        self.depth = 0

    def comparison(self) -> Comparison:
        left = self.sum()
        token = self.peek()
        if token is None:
            raise FormulaError(
                "A hypothesis compares: add '> 0', '< 0' or '= 0'.",
                self.source,
                0,
                len(self.source),
            )
        if token.text not in RELATIONS:
            raise self.fault(f"One of < > = is expected here, not '{token.text}'.", token)
        self.at += 1
        right = self.sum()
        extra = self.peek()
        if extra is not None:
            what = "second comparison" if extra.text in RELATIONS else f"'{extra.text}'"
            raise self.fault(f"The hypothesis should end here, before the {what}.", extra)
        node = Node("operation", "-", (left, right), left.start, right.end)
        return Comparison(self.source, RELATIONS[token.text], node)

    def sum(self) -> Node:
        return self.chain(("+", "-"), self.product)

    def product(self) -> Node:
        return self.chain(("*", "/"), self.signed)

    def chain(self, signs: tuple[str, ...], part: Callable[[], Node]) -> Node:
        node = part()
        while (token := self.peek()) is not None and token.text in signs:
            self.at += 1
            node = self.operation(token, node, part())
        return node

    def signed(self) -> Node:
        token = self.peek()
        if token is not None and self.depth == DEEPEST:
            raise self.fault(f"The hypothesis is nested more than {DEEPEST} levels deep.", token)
        self.depth += 1
        node = self.with_sign(token)
        self.depth -= 1
        return node

    def with_sign(self, token: _Token | None) -> Node:
        if token is not None and token.text in ("+", "-") and token.kind == "operator":
            self.at += 1
            inner = self.signed()
            zero = Node("number", np.float64(0.0), (), token.start, token.end)
            return self.operation(token, zero, inner)
        return self.power()

    def power(self) -> Node:
        base = self.atom()
        token = self.peek()
        if token is None or token.text not in ("**", "^"):
            return base
        self.at += 1
        return self.operation(token, base, self.signed())

    def atom(self) -> Node:
        token = self.peek()
        if token is None:
            end = len(self.source)
            raise FormulaError("Something is missing at the end.", self.source, end, end + 1)
        self.at += 1
        if token.kind == "number":
            return self.number(np.float64(token.text), token.start, token.end)
        if token.kind == "label":
            return Node("label", token.text, (), token.start, token.end)
        if token.kind == "function":
            inner = self.atom()
            if inner.kind == "number":
                with np.errstate(all="ignore"):
                    value = FUNCTIONS[token.text](inner.value)
                return self.number(value, token.start, inner.end)
            return Node("call", token.text, (inner,), token.start, inner.end)
        if token.text == "(":
            inner = self.sum()
            closing = self.peek()
            if closing is None or closing.text != ")":
                raise self.fault("This parenthesis is never closed.", token)
            self.at += 1
            return inner
        raise self.fault(f"A number or a parameter is expected here, not '{token.text}'.", token)

    def operation(self, sign: _Token, left: Node, right: Node) -> Node:
        """Two parts joined; numbers are computed here."""
        if sign.text == "/" and right.kind == "number" and right.value == 0.0:
            raise self.fault("This divides by zero.", sign)
        if left.kind == right.kind == "number":
            with np.errstate(all="ignore"):
                value = OPERATORS[sign.text](left.value, right.value)
            return self.number(value, left.start, right.end)
        return Node("operation", sign.text, (left, right), left.start, right.end)

    def number(self, value: np.float64, start: int, end: int) -> Node:
        if not np.isfinite(value):
            shown = self.source[start:end]
            raise FormulaError(f"`{shown}` is no finite number.", self.source, start, end)
        return Node("number", value, (), start, end)

    def peek(self) -> _Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def fault(self, message: str, token: _Token) -> FormulaError:
        return FormulaError(message, self.source, token.start, token.end)
