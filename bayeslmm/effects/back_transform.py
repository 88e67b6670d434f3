"""From the scale of a transformed response, such as ``log(y)``, back to that of the response."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from bayeslmm.formula.syntax import Operand

Array = NDArray[np.float64]
Jet = tuple[Array, Array, Array, Array]
"""Values of a function with its first three derivatives."""

WHOLE = 1e-12
"""Distance from a whole number that is rounding."""

Step = Callable[[Array], Jet]

NODES = 64
"""Nodes of the quadrature for means of back-transformed normal variables."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BackTransform:
    """The inverse of a transformation of the response.

    Attributes
    ----------
    label : str
        The response as the formula has it.
    variable : str
        The column that it is a function of.
    steps : tuple of callable
        Inverses of the functions in it, the outermost first.
    ratio : str
        What differences on the transformed scale are there: "ratio" of logarithms, "odds ratio" of
        logits; empty for others.
    of : str
        What the ratios are of, such as ``"y + 1"``.
    base : float
        Base of the logarithm.
    tree : ast.expr or None
        The response as an expression; None for ratios.
    """

    label: str
    variable: str
    steps: tuple[Step, ...]
    ratio: str = ""
    of: str = ""
    base: float = np.e
    tree: ast.expr | None = None

    def forward(self, values: Array, what: str) -> Array:
        """Values on the transformed scale; ValueError, naming `what`, outside of the range."""
        with np.errstate(all="ignore"):
            if self.tree is None:
                found = np.log(values) / np.log(self.base)
            else:
                found = np.asarray(_evaluated(self.tree, values), dtype=np.float64)
            back = self.values(found)
        if not (np.isfinite(found).all() and np.allclose(back, values)):
            kind = f"{self.ratio}s" if self.tree is None else "the response"
            raise ValueError(
                f"{what}: on the scale shown, that of {kind}, it must be in the range of the way "
                f"back from {self.label}."
            )
        return found

    def jet(self, eta: Array) -> Jet:
        """Values on the response's scale with derivatives by those on the transformed scale."""
        jet: Jet = (eta, np.ones_like(eta), np.zeros_like(eta), np.zeros_like(eta))
        with np.errstate(all="ignore"):
            for step in self.steps:
                jet = _chained(step(jet[0]), jet)
        return jet

    def values(self, eta: Array) -> Array:
        """Values on the response's scale."""
        return self.jet(eta)[0]

    def corrected(self, eta: Array, sd: float) -> tuple[Array, Array]:
        """Values and first derivatives with the second-order correction for variation of sd `sd`.

        References
        ----------
        R's ``emmeans::summary(bias.adjust = TRUE)``.
        """
        value, first, second, third = self.jet(eta)
        half = 0.5 * sd**2
        return value + half * second, first + half * third

    def means(self, eta: Array, sd: Array) -> Array:
        """Means (S, m) of the response where it varies about `eta` (S, m) by sds (S,)."""
        nodes, weights = special.roots_hermitenorm(NODES)
        weights = weights / weights.sum()
        total = np.zeros_like(eta)
        for node, weight in zip(nodes, weights, strict=True):
            total += weight * self.values(eta + node * sd[:, None])
        return total

    @property
    def ratios(self) -> BackTransform:
        """The inverse for differences, as ratios."""
        return BackTransform(
            label=self.label,
            variable=self.variable,
            steps=(_exp(self.base),),
            ratio=self.ratio,
            of=self.of,
            base=self.base,
        )


def _chained(outer: Jet, inner: Jet) -> Jet:
    """Derivatives of ``outer(inner)`` (Faà di Bruno)."""
    f, f1, f2, f3 = outer
    _, g1, g2, g3 = inner
    return f, f1 * g1, f2 * g1**2 + f1 * g2, f3 * g1**3 + 3.0 * f2 * g1 * g2 + f1 * g3


# --- inverses of single functions -------------------------------------------------------


def _exp(base: float) -> Step:
    rate = float(np.log(base))

    def step(x: Array) -> Jet:
        y = np.exp(rate * x)
        return y, rate * y, rate**2 * y, rate**3 * y

    return step


def _log(base: float) -> Step:
    rate = float(np.log(base))
    return lambda x: (
        np.log(x) / rate,
        1.0 / (rate * x),
        -1.0 / (rate * x**2),
        2.0 / (rate * x**3),
    )


def _shift(intercept: float, slope: float) -> Step:
    return lambda x: (
        intercept + slope * x,
        np.full_like(x, slope),
        np.zeros_like(x),
        np.zeros_like(x),
    )


def _over(numerator: float) -> Step:
    return lambda x: (
        numerator / x,
        -numerator / x**2,
        2.0 * numerator / x**3,
        -6.0 * numerator / x**4,
    )


def _power(p: float) -> Step:
    """Raise to a power; of negative x where its inverse is an odd power."""
    odd = abs(1.0 / p - round(1.0 / p)) < WHOLE and round(1.0 / p) % 2 == 1
    whole = float(p).is_integer()

    def step(x: Array) -> Jet:
        if whole:
            values = [np.power(x, p - i) for i in range(4)]
        else:
            size = np.abs(x) if odd else x
            sign = np.sign(x) if odd else np.ones_like(x)
            values = [np.power(size, p - i) * sign ** (i + 1) for i in range(4)]
        factors = [1.0, p, p * (p - 1), p * (p - 1) * (p - 2)]
        jet = [f * v if f else np.zeros_like(x) for f, v in zip(factors, values, strict=True)]
        return jet[0], jet[1], jet[2], jet[3]

    return step


def _expit(x: Array) -> Jet:
    p = special.expit(x)
    q = p * (1.0 - p)
    return p, q, q * (1.0 - 2.0 * p), q * (1.0 - 6.0 * q)


def _sin(x: Array) -> Jet:
    return np.sin(x), np.cos(x), -np.sin(x), -np.cos(x)


def _sinh(x: Array) -> Jet:
    return np.sinh(x), np.cosh(x), np.sinh(x), np.cosh(x)


INVERSES: dict[str, tuple[Step, ...]] = {
    "I": (),
    "exp": (_log(np.e),),
    "exp2": (_log(2.0),),
    "exp10": (_log(10.0),),
    "expm1": (_shift(1.0, 1.0), _log(np.e)),
    "log": (_exp(np.e),),
    "log2": (_exp(2.0),),
    "log10": (_exp(10.0),),
    "log1p": (_exp(np.e), _shift(-1.0, 1.0)),
    "sqrt": (_power(2.0),),
    "cbrt": (_power(3.0),),
    "reciprocal": (_over(1.0),),
    "negative": (_shift(0.0, -1.0),),
    "asin": (_sin,),
    "arcsin": (_sin,),
    "arcsinh": (_sinh,),
}
"""Inverse steps by function; `square` has none, as signs are lost."""

BASES = {"log": np.e, "log2": 2.0, "log10": 10.0, "log1p": np.e}
"""Bases of the logarithms."""


# --- reading a response -----------------------------------------------------------------


class _NotInvertible(Exception):
    """A response that is no invertible function of one column."""


def back_transform(response: Operand) -> BackTransform | None:
    """The inverse of the function that a response is of one column; None where there is none.

    Known are logarithms of any base, also of ``y + c``, roots, powers, reciprocals, logits written
    ``log(y / (1 - y))``, the arcsine of the square root, and their compositions with each other and
    with sums and products with numbers.
    """
    if response.reading is None or len(response.reading.variables) != 1:
        return None
    (variable,) = response.reading.variables
    try:
        steps = tuple(_steps(response.reading.tree))
    except _NotInvertible:
        return None
    ratio, of, base = _ratio(response.reading.tree)
    return BackTransform(
        label=response.label,
        variable=variable,
        steps=steps,
        ratio=ratio,
        of=of,
        base=base,
        tree=response.reading.tree,
    )


OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.float_power,
}


def _evaluated(node: ast.expr, values: Array) -> Any:
    """An invertible response at values of its column."""
    if isinstance(node, ast.Name):
        return values
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp):
        return -_evaluated(node.operand, values)
    if isinstance(node, ast.BinOp):
        left, right = _evaluated(node.left, values), _evaluated(node.right, values)
        return OPERATORS[type(node.op)](left, right)
    name, argument = _called(node)
    assert name is not None and argument is not None
    inner = _evaluated(argument, values)
    if name == "I":
        return inner
    return getattr(np, {"asin": "arcsin"}.get(name, name))(inner)


def _steps(node: ast.expr) -> Sequence[Step]:
    """Inverse steps of an expression, the outermost first."""
    if isinstance(node, ast.Name):
        return ()
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return (_shift(0.0, -1.0), *_steps(node.operand))
    if isinstance(node, ast.BinOp):
        return _binary(node)
    name, argument = _called(node)
    if name is None or argument is None or name not in INVERSES:
        raise _NotInvertible
    inner = _of_odds(argument) if name == "log" else None
    if inner is not None:
        return (_expit, *_steps(inner))
    return (*INVERSES[name], *_steps(argument))


def _binary(node: ast.BinOp) -> Sequence[Step]:
    """Inverse steps of an operation with one number."""
    left, right = _number(node.left), _number(node.right)
    if (left is None) == (right is None):
        raise _NotInvertible
    if right is not None:
        step, inner = _right_number(node.op, right), node.left
    else:
        assert left is not None
        step, inner = _left_number(node.op, left), node.right
    return (step, *_steps(inner))


def _right_number(op: ast.operator, c: float) -> Step:
    if isinstance(op, ast.Add | ast.Sub):
        return _shift(-c if isinstance(op, ast.Add) else c, 1.0)
    if isinstance(op, ast.Mult | ast.Div) and c != 0:
        return _shift(0.0, 1.0 / c if isinstance(op, ast.Mult) else c)
    if isinstance(op, ast.Pow) and c != 0:
        return _power(1.0 / c)
    raise _NotInvertible


def _left_number(op: ast.operator, c: float) -> Step:
    if isinstance(op, ast.Add):
        return _shift(-c, 1.0)
    if isinstance(op, ast.Sub):
        return _shift(c, -1.0)
    if isinstance(op, ast.Mult) and c != 0:
        return _shift(0.0, 1.0 / c)
    if isinstance(op, ast.Div) and c != 0:
        return _over(c)
    if isinstance(op, ast.Pow) and c > 0 and c != 1:
        return _log(c)
    raise _NotInvertible


def _number(node: ast.expr) -> float | None:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _number(node.operand)
        return None if inner is None else -inner
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        top, bottom = _number(node.left), _number(node.right)
        return top / bottom if top is not None and bottom else None
    return None


def _called(node: ast.expr) -> tuple[str | None, ast.expr | None]:
    """Name, without ``np.``, and argument of a call of one argument."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return None, None
    function = node.func
    if isinstance(function, ast.Attribute):
        return function.attr, node.args[0]
    return (function.id if isinstance(function, ast.Name) else None), node.args[0]


def _of_odds(node: ast.expr) -> ast.expr | None:
    """The probability p in ``p / (1 - p)``."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Div):
        return None
    below = node.right
    if not isinstance(below, ast.BinOp) or not isinstance(below.op, ast.Sub):
        return None
    same = ast.dump(below.right) == ast.dump(node.left)
    return node.left if _number(below.left) == 1.0 and same else None


def _ratio(node: ast.expr) -> tuple[str, str, float]:
    """What differences of a response are on its own scale: a ratio, of what, in which base."""
    name, argument = _called(node)
    if name not in BASES or argument is None:
        return "", "", np.e
    odds = _of_odds(argument) if name == "log" else None
    if odds is not None:
        return "odds ratio", ast.unparse(odds), np.e
    of = f"1 + {ast.unparse(argument)}" if name == "log1p" else ast.unparse(argument)
    return "ratio", of, BASES[name]
