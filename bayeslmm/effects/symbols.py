"""What the labels in hypotheses stand for: coefficients, marginal means, covariance parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.expressions import Comparison, Node, evaluate_node, labels_in
from bayeslmm.effects.grid import variables_of
from bayeslmm.effects.marginal_means import mean_combinations
from bayeslmm.exceptions import FormulaError
from bayeslmm.summaries.parameters import Parameter, covariance_parameters

Array = NDArray[np.float64]


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
                what = "residual" if self.parameters[name].kind == "sigma" else "random effects'"
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
        forms = _mean_forms(design, name)
        for i, level in enumerate(levels):
            linear[f"{name}[{level}]"] = _item(forms, i)
    for name in design.coefs:
        form = LinearForm(np.eye(size)[design.coefs_full.index(name)], 0.0)
        for label in (name, f"beta[{name}]"):
            linear[label] = _constant(form)
    return Symbols(linear=linear, parameters=_covariance_labels(design))


def _mean_forms(design: Design, name: str) -> Callable[[], Sequence[LinearForm]]:
    """Marginal means of a factor, computed when first needed."""

    @cache
    def forms() -> list[LinearForm]:
        means = mean_combinations(design, name, at=None, weights="equal", by=None)
        pairs = zip(means.weights, means.constant, strict=True)
        return [LinearForm(weights, float(constant)) for weights, constant in pairs]

    return forms


def _item(forms: Callable[[], Sequence[LinearForm]], i: int) -> Callable[[], LinearForm]:
    return lambda: forms()[i]


def _constant(form: LinearForm) -> Callable[[], LinearForm]:
    return lambda: form


def _covariance_labels(design: Design) -> dict[str, Parameter]:
    """Labels of summary tables, correlations in either order; ``sd[g]``, ``cor[g]`` of but one."""
    found = covariance_parameters(design)
    labels = {parameter.label: parameter for parameter in found}
    for parameter in found:
        if parameter.kind == "cor":
            first, second = parameter.terms
            labels.setdefault(f"cor[{parameter.group}, {second}, {first}]", parameter)
    for kind in ("sd", "cor"):
        for f, factor in enumerate(design.random):
            own = [p for p in found if p.kind == kind and p.factor == f]
            if len(own) == 1:
                labels.setdefault(f"{kind}[{factor.name}]", own[0])
    return labels
