"""A small language for hypotheses, and what its labels stand for."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.inputs import nearest
from bayeslmm.effects.grid import mean_combinations
from bayeslmm.effects.variables import variables_of
from bayeslmm.exceptions import FormulaError
from bayeslmm.summaries.parameters import Parameter, covariance_parameters

Array = NDArray[np.float64]

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
BINDING = {"+": 0, "-": 0, "*": 1, "/": 1}
"""How strongly operators bind that are read from the left; powers bind most of all."""

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

    def sum(self, least: int = 0) -> Node:
        """Terms joined by operators that bind at least so strongly."""
        node = self.signed()
        while (token := self.peek()) is not None and BINDING.get(token.text, -1) >= least:
            self.at += 1
            node = self.operation(token, node, self.sum(BINDING[token.text] + 1))
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


# --- what the labels in hypotheses stand for ----------------------------------------


class NotLinearError(Exception):
    """An expression that is not linear in the fixed effects."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearForm:
    """``weights @ beta + constant``, with the arithmetic that keeps it so."""

    weights: Array
    constant: float

    __array_ufunc__ = None

    def __add__(self, other: Any) -> LinearForm:
        if isinstance(other, LinearForm):
            return LinearForm(self.weights + other.weights, self.constant + other.constant)
        return LinearForm(self.weights, self.constant + _scalar(other))

    def __sub__(self, other: Any) -> LinearForm:
        return self + (-1.0 * other)

    def __mul__(self, other: Any) -> LinearForm:
        factor = _scalar(other)
        return LinearForm(factor * self.weights, factor * self.constant)

    def __truediv__(self, other: Any) -> LinearForm:
        return self * (1.0 / _scalar(other))

    def __rsub__(self, other: Any) -> LinearForm:
        return -1.0 * self + _scalar(other)

    def __rtruediv__(self, other: Any) -> LinearForm:
        raise NotLinearError

    def __pow__(self, other: Any) -> LinearForm:
        if _scalar(other) == 1.0:
            return self
        raise NotLinearError

    def __rpow__(self, other: Any) -> LinearForm:
        raise NotLinearError

    __radd__ = __add__
    __rmul__ = __mul__


def _scalar(value: Any) -> float:
    if isinstance(value, LinearForm):
        raise NotLinearError
    return float(value)


@dataclass(frozen=True, slots=True, eq=False)
class Symbols:
    """Labels that hypotheses may use.

    Attributes
    ----------
    linear : mapping of str to callable
        For coefficients and marginal means, returns the linear form.
    parameters : mapping of str to Parameter
        Standard deviations, correlations and sigma.
    """

    linear: Mapping[str, Callable[[], LinearForm]]
    parameters: Mapping[str, Parameter]

    @property
    def labels(self) -> list[str]:
        """All labels."""
        return [*self.linear, *self.parameters]

    def check(self, comparison: Comparison) -> None:
        """Raise FormulaError for a label that stands for two things."""
        for node in labels_in(comparison.difference):
            name = node.value
            if name in self.linear and name in self.parameters:
                advice = (
                    f"Write `beta[{name}]` for the coefficient; to ask about the other, rename"
                    if f"beta[{name}]" in self.linear
                    else "Rename"
                )
                of_residual = self.parameters[name].kind in ("sigma", "nu")
                what = "residual" if of_residual else "random effects'"
                raise FormulaError(
                    f"`{name}` is both a variable of the fixed effects and a {what} parameter of "
                    f"the model. {advice} the variable in the data.",
                    comparison.source,
                    node.start,
                    node.end,
                )

    def form(self, node: Node) -> LinearForm:
        """An expression as a linear form.

        Raises
        ------
        NotLinearError
            If it is none.
        """

        def lookup(label: Node) -> LinearForm:
            if label.value in self.linear:
                return self.linear[label.value]()
            raise NotLinearError

        try:
            value = evaluate_node(node, lookup)
        except TypeError as error:  # a function of a linear form
            raise NotLinearError from error
        if not isinstance(value, LinearForm):
            raise NotLinearError
        return value

    def values(
        self,
        comparison: Comparison,
        linear: Callable[[LinearForm], Array],
        parameter: Callable[[Parameter], Array],
    ) -> Array:
        """Values (S,) of a difference at draws of the coefficients and parameters."""

        def lookup(label: Node) -> Array:
            if label.value in self.linear:
                return linear(self.linear[label.value]())
            return parameter(self.parameters[label.value])

        with np.errstate(all="ignore"):
            return np.asarray(evaluate_node(comparison.difference, lookup))


def symbols_of(design: Design) -> Symbols:
    """Labels of a model's parameters.

    A coefficient is named by its label or ``beta[label]``, the marginal mean of level b of a
    factor f of the fixed part by ``f[b]``. A coefficient's label comes first where both agree.
    """
    size = len(design.coefs_full)
    linear: dict[str, Callable[[], LinearForm]] = {}
    for name, levels in variables_of(design).levels.items():
        mean = _mean_form(design, name)
        for i, level in enumerate(levels):
            linear[f"{name}[{level}]"] = partial(mean, i)
    for name in design.coefs:
        form = partial(LinearForm, np.eye(size)[design.coefs_full.index(name)], 0.0)
        linear |= {name: form, f"beta[{name}]": form}
    return Symbols(linear=linear, parameters=_covariance_labels(design))


def _mean_form(design: Design, name: str) -> Callable[[int], LinearForm]:
    """Marginal mean of a level of a factor; those of all levels are computed when first needed."""
    found = cache(partial(mean_combinations, design, name, at=None, weights="equal", by=None))
    levels = variables_of(design).levels[name]

    def form(i: int) -> LinearForm:
        means, _ = found()
        place = means.labels[name].tolist().index(levels[i])
        return LinearForm(means.weights[place], float(means.constant[place]))

    return form


def _covariance_labels(design: Design) -> dict[str, Parameter]:
    """Labels of summary tables, correlations in either order; ``sd[g]``, ``cor[g]`` of but one."""
    found = covariance_parameters(design)
    labels = {parameter.label: parameter for parameter in found}
    for parameter in found:
        named = parameter.terms and parameter.group is not None
        for terms in (parameter.terms, parameter.terms[::-1]) if named else ():
            labels.setdefault(f"{parameter.kind}[{parameter.group}, {', '.join(terms)}]", parameter)
    for kind in ("sd", "cor"):
        for f, factor in enumerate(design.random):
            own = [p for p in found if p.kind == kind and p.factor == f]
            if len(own) == 1:
                labels.setdefault(f"{kind}[{factor.name}]", own[0])
    return labels
