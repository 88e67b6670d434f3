"""A small language for hypotheses, and what its labels stand for."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.inputs import nearest
from bayeslmm.effects.grid import mean_combinations
from bayeslmm.effects.random_labels import BEGIN, LevelEffect, label_end, level_effect
from bayeslmm.effects.variables import variables_of
from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.summaries.parameters import Parameter, covariance_labels

Array = NDArray[np.float64]

LONGEST = 10_000
"""Characters of a hypothesis."""

MOST_TOKENS = 500
"""Labels, numbers and signs of a hypothesis."""

DEEPEST = 30
"""Parentheses, signs and powers inside each other."""

RELATIONS = {"<": "<", "<=": "<", ">": ">", ">=": ">", "=": "=", "==": "="}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "max": lambda *values: reduce(np.maximum, values),
    "min": lambda *values: reduce(np.minimum, values),
}
OF_SEVERAL = ("max", "min")
"""Functions of two values or more."""

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
_OPERATOR = re.compile(r"\*\*|<=|>=|==|!=|[-+*/^()<>=,&]")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Node:
    """Part of an expression: a number, a label, or an operation on other parts."""

    kind: str
    value: Any
    parts: tuple[Node, ...]
    start: int
    end: int

    def renamed(self, names: Mapping[str, str]) -> Node:
        """The same with other labels."""
        value = names.get(self.value, self.value) if self.kind == "label" else self.value
        parts = tuple(part.renamed(names) for part in self.parts)
        return Node(self.kind, value, parts, self.start, self.end)


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

    @property
    def parts(self) -> tuple[Comparison, ...]:
        """Itself, as an order constraint of one comparison."""
        return (self,)

    def renamed(self, names: Mapping[str, str], source: str) -> Comparison:
        """The same about other parameters, by the labels of these."""
        return Comparison(source, self.relation, self.difference.renamed(names))


@dataclass(frozen=True, slots=True)
class OrderConstraint:
    """Several inequalities that hold together: ``a < b < c`` or ``a < b & c > 0``.

    Attributes
    ----------
    source : str
        As written.
    parts : tuple of Comparison
        The inequalities.
    """

    source: str
    parts: tuple[Comparison, ...]

    def renamed(self, names: Mapping[str, str], source: str) -> OrderConstraint:
        """The same about other parameters, by the labels of these."""
        return OrderConstraint(source, tuple(part.renamed(names, source) for part in self.parts))


Hypothesis = Comparison | OrderConstraint
EffectReader = Callable[[str], str]
"""From a label such as ``u[g, level, coef]`` to its canonical form; raises DataError."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int
    end: int


def parse_hypothesis(
    source: str, labels: Iterable[str], effects: EffectReader | None = None
) -> Hypothesis:
    """Read a hypothesis such as ``"f[b] - f[a] > 0.5 * sigma"`` or ``"f[a] < f[b] < f[c]"``.

    Parameters
    ----------
    source : str
        Numbers, labels, ``+ - * / **``, parentheses, abs, exp, log, sqrt, max and min, compared by
        ``< > =``; chains of inequalities, and several joined by ``&``. A label that looks like an
        operation may stand in backticks.
    labels : iterable of str
        Known labels of parameters.
    effects : callable, optional
        Reads labels of random effects and coefficients of levels.

    Returns
    -------
    Comparison or OrderConstraint

    Raises
    ------
    FormulaError
        Showing the place.
    """
    return _parser(source, labels, effects).hypothesis()


def parse_expression(
    source: str, labels: Iterable[str], effects: EffectReader | None = None
) -> Node:
    """Read arithmetic on labels, without a comparison; as :func:`parse_hypothesis`."""
    return _parser(source, labels, effects).expression()


def _parser(source: str, labels: Iterable[str], effects: EffectReader | None) -> _Parser:
    if not isinstance(source, str):
        raise FormulaError(f"A hypothesis is text such as 'x > 0', got {source!r}.")
    if len(source) > LONGEST:
        raise FormulaError(
            f"The hypothesis has {len(source)} characters; at most {LONGEST} are allowed."
        )
    return _Parser(source, _tokens(source, sorted(labels, key=len, reverse=True), effects))


def evaluate_node(node: Node, lookup: Callable[[Node], Any]) -> Any:
    """Value of an expression, given those of its labels."""
    if node.kind == "number":
        return node.value
    if node.kind == "label":
        return lookup(node)
    values = [evaluate_node(part, lookup) for part in node.parts]
    if node.kind == "call":
        return FUNCTIONS[node.value](*values)
    return OPERATORS[node.value](values[0], values[1])


def labels_in(node: Node) -> list[Node]:
    """The labels of an expression, in order."""
    if node.kind == "label":
        return [node]
    return [label for part in node.parts for label in labels_in(part)]


# --- tokens ----------------------------------------------------------------------------


def _tokens(source: str, labels: list[str], effects: EffectReader | None) -> list[_Token]:
    patterns = [(label, _pattern(label)) for label in labels]
    found, at = [], 0
    while at < len(source):
        if source[at].isspace():
            at += 1
            continue
        token = _token_at(source, at, patterns, effects)
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


def _token_at(
    source: str,
    at: int,
    patterns: list[tuple[str, re.Pattern[str]]],
    effects: EffectReader | None,
) -> _Token:
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
    if effects is not None and BEGIN.match(source, at):
        return _effect_token(source, at, effects)
    for kind, expression in (("number", _NUMBER), ("operator", _OPERATOR)):
        match = expression.match(source, at)
        if match:
            return _Token(kind, match.group(), at, match.end())
    word = _WORD.match(source, at)
    if word and word.group() in FUNCTIONS and source[word.end() :].lstrip().startswith("("):
        return _Token("function", word.group(), at, word.end())
    end = _end_of_name(source, at)
    raise _unknown(source[at:end], source, at, end, [label for label, _ in patterns])


def _effect_token(source: str, at: int, effects: EffectReader) -> _Token:
    """The label of a level's random effect or coefficient."""
    end = label_end(source, at)
    if end < 0:
        raise FormulaError("This bracket is never closed.", source, at, len(source))
    try:
        return _Token("label", effects(source[at:end]), at, end)
    except DataError as error:
        raise FormulaError(str(error), source, at, end) from error


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

    def expression(self) -> Node:
        """Arithmetic alone."""
        node = self.sum()
        if (token := self.peek()) is not None:
            raise self.fault(f"The expression should end here, before '{token.text}'.", token)
        return node

    def hypothesis(self) -> Hypothesis:
        """A comparison, a chain of them, or several of these joined by ``&``."""
        parts = self.chain()
        while (token := self.peek()) is not None and token.text == "&":
            self.at += 1
            parts += self.chain()
        if token is not None:
            raise self.fault(f"The hypothesis should end here, before '{token.text}'.", token)
        return parts[0] if len(parts) == 1 else OrderConstraint(self.source, tuple(parts))

    def chain(self) -> list[Comparison]:
        """Sums with relations between them, perhaps in parentheses."""
        if self._encloses_comparison():
            opening = self.tokens[self.at]
            self.at += 1
            parts = self.chain()
            closing = self.peek()
            if closing is None or closing.text != ")":
                raise self.fault("This parenthesis is never closed.", opening)
            self.at += 1
            return parts
        sides, relations = [self.sum()], []
        while (token := self.peek()) is not None and token.text in RELATIONS:
            relations.append(token)
            self.at += 1
            sides.append(self.sum())
        if not relations:
            if token is not None and token.text not in ("&", ")"):
                raise self.fault(f"One of < > = is expected here, not '{token.text}'.", token)
            raise FormulaError(
                "A hypothesis compares: add '> 0', '< 0' or '= 0'.",
                self.source,
                sides[0].start,
                max(sides[0].end, sides[0].start + 1),
            )
        self._check_order(relations)
        pairs = zip(sides, relations, sides[1:], strict=False)
        return [self._compared(left, token, right) for left, token, right in pairs]

    def _compared(self, left: Node, token: _Token, right: Node) -> Comparison:
        node = Node("operation", "-", (left, right), left.start, right.end)
        return Comparison(self.source, RELATIONS[token.text], node)

    def _check_order(self, relations: list[_Token]) -> None:
        """Refuse equalities among several comparisons."""
        several = len(relations) > 1 or any(token.text == "&" for token in self.tokens)
        for token in relations:
            if several and RELATIONS[token.text] == "=":
                raise self.fault(
                    "Several comparisons that hold together are inequalities, < or >: give an "
                    "equality as a hypothesis of its own.",
                    token,
                )

    def _encloses_comparison(self) -> bool:
        """Whether a parenthesis begins here that has a relation inside."""
        token = self.peek()
        if token is None or token.text != "(" or token.kind != "operator":
            return False
        depth = 0
        for later in self.tokens[self.at :]:
            if later.kind != "operator":
                continue
            depth += {"(": 1, ")": -1}.get(later.text, 0)
            if later.text in RELATIONS and depth:
                return True
            if depth == 0:
                return False
        return False

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
        if token.kind == "function" and token.text in OF_SEVERAL:
            return self.of_several(token)
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

    def of_several(self, token: _Token) -> Node:
        """A function of values between commas."""
        self.at += 1  # the parenthesis, which the token was told from labels by
        inner = [self.sum()]
        while (sign := self.peek()) is not None and sign.text == ",":
            self.at += 1
            inner.append(self.sum())
        if sign is None or sign.text != ")":
            raise self.fault("This function's parenthesis is never closed.", token)
        if len(inner) < 2:
            raise self.fault(f"{token.text} compares two values or more.", token)
        self.at += 1
        if all(node.kind == "number" for node in inner):
            value = FUNCTIONS[token.text](*(node.value for node in inner))
            return self.number(np.float64(value), token.start, sign.end)
        return Node("call", token.text, tuple(inner), token.start, sign.end)

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
    effect : callable
        From a label such as ``u[g, level, coef]`` to what it stands for; raises DataError.
    """

    linear: Mapping[str, Callable[[], LinearForm]]
    parameters: Mapping[str, Parameter]
    effect: Callable[[str], LevelEffect]

    @property
    def labels(self) -> list[str]:
        """All labels."""
        return [*self.linear, *self.parameters]

    def is_effect(self, name: str) -> bool:
        """Whether a label is of a level's random effect or coefficient."""
        return name not in self.linear and name not in self.parameters

    def effects_in(self, hypotheses: Iterable[Hypothesis]) -> dict[str, LevelEffect]:
        """Random effects and coefficients of levels that hypotheses name, by label."""
        return self.effects_of(part.difference for h in hypotheses for part in h.parts)

    def effects_of(self, nodes: Iterable[Node]) -> dict[str, LevelEffect]:
        """The same of expressions."""
        names = dict.fromkeys(label.value for node in nodes for label in labels_in(node))
        return {name: self.effect(name) for name in names if self.is_effect(name)}

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
        effects: Mapping[str, Array],
    ) -> Array:
        """Values (S,) of a difference at draws of the coefficients, parameters and effects."""
        return self.node_values(comparison.difference, linear, parameter, effects)

    def node_values(
        self,
        expression: Node,
        linear: Callable[[LinearForm], Array],
        parameter: Callable[[Parameter], Array],
        effects: Mapping[str, Array],
    ) -> Array:
        """The same of an expression."""

        def lookup(label: Node) -> Array:
            if label.value in self.linear:
                return linear(self.linear[label.value]())
            if label.value in self.parameters:
                return parameter(self.parameters[label.value])
            return effects[label.value]

        with np.errstate(all="ignore"):
            return np.asarray(evaluate_node(expression, lookup))


def symbols_of(design: Design) -> Symbols:
    """Labels of a model's parameters.

    A coefficient is named by its label or ``beta[label]``, the marginal mean of level b of a
    factor f of the fixed part by ``f[b]``, a level's random effect by ``u[g, level, coef]`` and
    with the fixed effect by ``coef[g, level, coef]``. A coefficient's label comes first where two
    agree.
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
    return Symbols(
        linear=linear,
        parameters=covariance_labels(design),
        effect=cache(partial(level_effect, design)),
    )


def _mean_form(design: Design, name: str) -> Callable[[int], LinearForm]:
    """Marginal mean of a level of a factor; those of all levels are computed when first needed."""
    found = cache(partial(mean_combinations, design, name, at=None, weights="equal", by=None))
    levels = variables_of(design).levels[name]

    def form(i: int) -> LinearForm:
        means, _ = found()
        place = means.labels[name].tolist().index(levels[i])
        return LinearForm(means.weights[place], float(means.constant[place]))

    return form
