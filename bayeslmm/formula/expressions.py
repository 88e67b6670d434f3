"""Python expressions in formulas: the few that are allowed. Nothing is evaluated here."""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NoReturn

from bayeslmm.exceptions import FormulaError

# --- functions that a formula may call ---------------------------------------------------


MOST_BASIS = 100
"""Degree, degrees of freedom or number of knots of one polynomial or spline."""

MOST_HASHED = 1000
"""Levels that hashed() makes."""


@dataclass(frozen=True, slots=True)
class Signature:
    """Arguments of a function.

    Attributes
    ----------
    values : int
        How many arguments, the first ones and by position, are computed from columns.
    options : tuple of str
        The arguments after those, by position or by name; they are written out.
    named : tuple of str
        Further options, by name only.
    """

    values: int
    options: tuple[str, ...] = ()
    named: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """All options."""
        return self.options + self.named


def _of(values: int, names: str) -> dict[str, Signature]:
    return dict.fromkeys(names.split(), Signature(values))


_CUBIC = Signature(1, ("df", "knots", "lower_bound", "upper_bound", "constraints", "extrapolation"))
_BS = (
    *("df", "knots", "degree", "include_intercept", "lower_bound", "upper_bound"),
    "extrapolation",
)
_FACTOR = Signature(1, ("contrasts",), ("levels", "spans_intercept"))

FUNCTIONS: Mapping[str, Signature] = MappingProxyType(
    {
        **_of(1, "abs acos asin atan ceil cos cosh exp exp10 exp2 expm1 floor log log10 log1p"),
        **_of(1, "log2 sign sin sinh sqrt tan tanh I center"),
        **_of(2, "pmax pmin"),
        "C": _FACTOR,
        "factor": _FACTOR,
        "Q": Signature(0, ("name",)),
        "bs": Signature(1, _BS),
        "cc": _CUBIC,
        "cr": _CUBIC,
        "cs": _CUBIC,
        "hashed": Signature(1, ("levels", "contrasts"), ("spans_intercept",)),
        "lag": Signature(1, ("k",)),
        "ns": Signature(1, ("df", "knots", "intercept", "boundary_knots")),
        "poly": Signature(1, ("degree", "raw")),
        "round": Signature(1, ("decimals",)),
        "scale": Signature(1, ("center", "scale", "ddof")),
        "standardize": Signature(1, ("center", "rescale", "ddof")),
    }
)
"""By bare name."""

NUMPY: Mapping[str, Signature] = MappingProxyType(
    {
        **_of(1, "abs absolute arccos arccosh arcsin arcsinh arctan arctanh cbrt ceil cos cosh"),
        **_of(1, "deg2rad degrees exp exp2 expm1 fabs floor isfinite isnan log log10 log1p log2"),
        **_of(1, "logical_not negative rad2deg radians reciprocal rint sign sin sinc sinh sqrt"),
        **_of(1, "square tan tanh trunc"),
        **_of(2, "add arctan2 divide floor_divide fmax fmin fmod hypot logaddexp logical_and"),
        **_of(2, "logical_or logical_xor maximum minimum mod multiply power remainder subtract"),
        **_of(3, "clip where"),
        "round": Signature(1, ("decimals",)),
    }
)
"""After ``np.``: functions of each row by itself, so that new data change no other row."""

STATEFUL = frozenset({"bs", "cc", "center", "cr", "cs", "ns", "poly", "scale", "standardize"})
"""Functions that remember the rows they were fitted to."""

TRANSFORMS = STATEFUL | {"C", "factor", "hashed", "lag"}
"""Functions of whole columns or of factors; every other one is of each row by itself."""

CONSTANTS = ("FALSE", "TRUE", "np.e", "np.pi", "pi")

CONTRASTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Diff": ("backward",),
        "Helmert": ("reverse", "scale"),
        "Poly": ("scores",),
        "Sum": (),
        "Treatment": ("reference",),
        "contr.SAS": ("base",),
        "contr.custom": ("contrasts", "names"),
        "contr.diff": ("backward",),
        "contr.helmert": ("reverse", "scale"),
        "contr.poly": ("scores",),
        "contr.sum": (),
        "contr.treatment": ("base",),
    }
)
"""Second argument of ``C``, with or without options in parentheses."""

SIZES: Mapping[str, int] = MappingProxyType({"degree": MOST_BASIS, "df": MOST_BASIS})
"""Options that say how many columns a function makes, and the most."""

ROW_BY_ROW = {
    "max": "pmax",
    "mean": "center",
    "median": "center",
    "min": "pmin",
    "std": "scale",
}
"""Functions of whole columns that people reach for, and what does the like and remembers it."""


# --- expressions -------------------------------------------------------------------------


LONGEST = 4000
"""Characters of one expression."""

DEEPEST = 100
"""Levels of nesting of one expression; a sum of m terms has m."""

DEEPEST_BRACKETS = 30
"""Brackets inside brackets."""

_PIECE = re.compile(
    r"`(?P<name>[^`]+)`|(?P<quoted>\"[^\"]*\"|'[^']*')|(?P<power>\^)|(?P<space>\s)|.", re.DOTALL
)

LARGEST_INTEGER = 2**63 - 1

ALLOWED = (
    "Allowed are columns, numbers, + - * / // % **, comparisons, & | ~ and listed functions, "
    "by name or as np.<name>."
)
_NP = f"NumPy's are {', '.join(f'np.{name}' for name in sorted(NUMPY))}."
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
_BINARY = (*_ARITHMETIC, ast.BitAnd, ast.BitOr)
_UNARY = (ast.UAdd, ast.USub, ast.Invert)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_HINTS: Mapping[type[ast.AST], str] = {
    ast.BoolOp: "`and` and `or` are & and | here, with parentheses: (x > 1) & (z < 2).",
    ast.Not: "`not` is ~ here.",
    ast.IfExp: "A choice by row is np.where(condition, a, b).",
    ast.Set: "A list is written [1, 2].",
    ast.List: "Lists are options of functions, such as knots=[1, 2].",
    ast.Tuple: "Lists are options of functions, such as knots=[1, 2].",
    ast.In: "Compare with each value: (f == 'a') | (f == 'b').",
}


@dataclass(frozen=True, slots=True)
class Reading:
    """An expression that is allowed.

    Attributes
    ----------
    tree : ast.expr
        Names of columns that are no identifiers keep their backticks as `id`.
    text : str
        The expression in its canonical form, which reads as itself: ``I(x^2)`` is ``I(x ** 2)``.
    variables : frozenset of str
        Columns, without backticks.
    functions : mapping of str to tuple
        Functions called by bare name, each with the place of its first call in the expression.
    size : int
        Columns that polynomials and splines make.
    """

    tree: ast.expr
    text: str
    variables: frozenset[str]
    functions: Mapping[str, tuple[int, int]]
    size: int


@lru_cache(maxsize=4096)
def read(code: str) -> Reading:
    """Read a Python expression of a formula.

    Parameters
    ----------
    code : str
        A Python expression; names in backticks are columns, and ``^`` is a power that binds as
        Python's ``**`` and R's ``^`` do.

    Returns
    -------
    Reading

    Raises
    ------
    FormulaError
        If it is no valid expression or holds what is not allowed; places are those in `code`.
    """
    plain = plain_python(code)
    tree = parse_python(code, plain)
    checker = _Checker(code, plain)
    checker.value(tree)
    return Reading(
        tree=tree,
        text=ast.unparse(tree),
        variables=frozenset(checker.variables),
        functions=checker.functions,
        size=checker.size,
    )


# --- what is allowed -------------------------------------------------------------------


class _Checker:
    """Walks a tree, collects names, and refuses what is not on the list."""

    def __init__(self, code: str, plain: Plain) -> None:
        self.code = code
        self.plain = plain
        self.variables: set[str] = set()
        self.functions: dict[str, tuple[int, int]] = {}
        self.size = 0

    def value(self, node: ast.expr) -> None:
        """An expression that is computed for each row."""
        match node:
            case ast.Constant(value=bool() | int() | float()):
                self.number(node)
            case ast.Name():
                self.name(node)
            case ast.UnaryOp(op=op, operand=operand) if isinstance(op, _UNARY):
                self.value(operand)
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _BINARY):
                self.value(left)
                self.value(right)
            case ast.Compare(left=left, ops=ops, comparators=others):
                self.comparison(node, ops)
                for operand in (left, *others):
                    self.operand(operand)
            case ast.Call():
                self.call(node)
            case ast.Attribute() if self.dotted(node) in CONSTANTS:
                pass
            case _:
                self.refuse(node)

    def number(self, node: ast.Constant) -> None:
        if isinstance(node.value, int) and node.value > LARGEST_INTEGER:
            self.fail(node, f"The number is larger than {LARGEST_INTEGER}; write it as 1e20.")

    def name(self, node: ast.Name) -> None:
        quoted = self.plain.quoted.get(node.col_offset)
        name = self.source(node) if quoted is None else quoted
        if quoted is None and name in CONSTANTS:
            return
        if quoted is None and _is_dunder(name):
            self.fail(node, f"A column called {name} goes in backticks.")
        self.variables.add(name)
        node.id = name if _is_plain(name) else f"`{name}`"

    def comparison(self, node: ast.Compare, ops: list[ast.cmpop]) -> None:
        for op in ops:
            if not isinstance(op, _COMPARISONS):
                self.refuse(node, _HINTS[ast.In] if isinstance(op, ast.In | ast.NotIn) else "")

    def operand(self, node: ast.expr) -> None:
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            self.value(node)

    # --- calls

    def call(self, node: ast.Call) -> None:
        name = self.callee(node.func)
        for argument in node.keywords:
            if argument.arg is None or argument.arg.startswith("_"):
                self.refuse(node)
        if name == "offset":
            signature: Signature | None = Signature(len(node.args))
        else:
            signature = NUMPY.get(name[3:]) if name.startswith("np.") else FUNCTIONS.get(name)
        if signature is None:
            for value in (*node.args, *(argument.value for argument in node.keywords)):
                self.anything(value)
        else:
            self.arguments(node, name, signature)

    def callee(self, node: ast.expr) -> str:
        """Name of a function, as written; only those of NumPy have a dot."""
        if isinstance(node, ast.Name) and node.col_offset not in self.plain.quoted:
            name = self.source(node)
            if _is_dunder(name):
                self.fail(node, f"`{name}` is not a function of formulas.")
            self.functions.setdefault(name, self.span(node))
            node.id = name
            return name
        dotted = self.dotted(node)
        if dotted.startswith("np.") and dotted[3:] in NUMPY:
            return dotted
        if dotted.startswith("np."):
            similar = ROW_BY_ROW.get(dotted[3:])
            hint = (
                f" Over whole columns it would change with new data; see {similar}()."
                if similar
                else ""
            )
            self.fail(node, f"`{dotted}` is not a function of formulas.{hint} {_NP}")
        self.refuse(node, "Functions are called by their names.")

    def arguments(self, node: ast.Call, name: str, signature: Signature) -> None:
        most = signature.values + len(signature.options)
        written = [argument.arg for argument in node.keywords]
        extra = [key for key in written if key not in signature.parameters]
        given = dict(zip(signature.options, node.args[signature.values :], strict=False))
        twice = [key for key in written if key in given]
        few = len(node.args) < signature.values or (name == "Q" and not node.args)
        if few or len(node.args) > most or extra or twice:
            self.fail(node, f"The arguments of {name} are {_shown(name, signature)}.")
        for value in node.args[: signature.values]:
            self.operand(value) if name == "np.where" else self.value(value)
        given |= {argument.arg: argument.value for argument in node.keywords if argument.arg}
        for key, value in given.items():
            self.option(name, key, value)

    def option(self, name: str, key: str, value: ast.expr) -> None:
        if name == "Q":
            if not (isinstance(value, ast.Constant) and isinstance(value.value, str)):
                self.fail(value, 'Q("a b") takes the name of a column as text.')
            self.variables.add(value.value)
        elif key == "contrasts" and name in ("C", "factor", "hashed"):
            self.contrasts(value)
        elif key in SIZES or (name == "hashed" and key == "levels"):
            self.whole(key, value, MOST_HASHED if key == "levels" else SIZES[key])
        else:
            self.literal(key, value)

    def contrasts(self, node: ast.expr) -> None:
        called = node.func if isinstance(node, ast.Call) else node
        name = self.source(called) if isinstance(called, ast.Name) else self.dotted(called)
        if name not in CONTRASTS:
            if isinstance(called, ast.Name | ast.Attribute):
                self.fail(
                    called, f"Contrasts are {', '.join(sorted(CONTRASTS))}, a list or a dict."
                )
            self.literal("contrasts", node)
            return
        if isinstance(node, ast.Call):
            given = [*CONTRASTS[name][: len(node.args)], *(k.arg for k in node.keywords)]
            wrong = len(node.args) > len(CONTRASTS[name]) or len(set(given)) < len(given)
            if wrong or not set(given) <= set(CONTRASTS[name]):
                options = ", ".join(CONTRASTS[name]) or "none"
                self.fail(node, f"The options of {name} are {options}.")
            for value in (*node.args, *(k.value for k in node.keywords)):
                self.literal(name, value)

    def whole(self, key: str, node: ast.expr, most: int) -> None:
        if isinstance(node, ast.Constant) and node.value is None:
            return
        if not (isinstance(node, ast.Constant) and type(node.value) is int):
            self.fail(node, f"{key} is a whole number, written out.")
        if node.value > most:
            self.fail(node, f"{key} is at most {most}.")
        self.size += node.value

    def literal(self, key: str, node: ast.expr) -> None:
        """An option: numbers, text, TRUE, FALSE, None, and lists or dicts of them."""
        match node:
            case ast.Constant(value=bool() | int() | float()):
                self.number(node)
            case ast.Constant(value=str() | None):
                pass
            case ast.Name() if self.source(node) in CONSTANTS:
                pass
            case ast.Attribute() if self.dotted(node) in CONSTANTS:
                pass
            case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
                self.literal(key, operand)
            case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
                self.literal(key, left)
                self.literal(key, right)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                self.items(key, node, items)
            case ast.Dict(keys=keys, values=values) if None not in keys:
                self.items(key, node, [*(k for k in keys if k is not None), *values])
            case _:
                self.fail(
                    node,
                    f"`{key}` is written out: a number, text, TRUE, FALSE, None or a list such as "
                    "[1, 2].",
                )

    def items(self, key: str, node: ast.expr, items: list[ast.expr]) -> None:
        if key in ("knots", "boundary_knots"):
            if len(items) > MOST_BASIS:
                self.fail(node, f"There are {len(items)} knots; at most {MOST_BASIS} are allowed.")
            self.size += len(items)
        for item in items:
            self.literal(key, item)

    def anything(self, node: ast.expr) -> None:
        """An argument of a function of the user's."""
        containers = ast.List | ast.Tuple | ast.Dict
        if isinstance(node, containers) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str | None)
        ):
            self.literal("argument", node)
        else:
            self.value(node)

    # --- places and messages

    def source(self, node: ast.expr) -> str:
        """The text of a node: names are compared as written, not as Python normalises them."""
        return self.plain.text[node.col_offset : node.end_col_offset]

    def dotted(self, node: ast.expr) -> str:
        """``np.log`` or ``contr.sum``; empty for any other node."""
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            return ""
        text = "".join(self.source(node).split())
        return text if text.split(".")[0] in ("np", "contr") else ""

    def span(self, node: ast.expr) -> tuple[int, int]:
        places = self.plain.places
        last = (node.end_col_offset or node.col_offset + 1) - 1
        return places[node.col_offset], places[last] + 1

    def fail(self, node: ast.expr, message: str) -> NoReturn:
        raise FormulaError(message, self.code, *self.span(node))

    def refuse(self, node: ast.expr, hint: str = "") -> NoReturn:
        start, end = self.span(node)
        if isinstance(node, ast.Attribute):
            hint = hint or f"A column called {self.source(node)} goes in backticks."
        if isinstance(node, ast.UnaryOp):
            hint = hint or _HINTS.get(type(node.op), "")
        hint = hint or _HINTS.get(type(node), "")
        message = (
            f"`{shortened(self.code[start:end])}` is not allowed in a formula. {hint}".rstrip()
        )
        raise FormulaError(f"{message} {ALLOWED}", self.code, start, end)


def _shown(name: str, signature: Signature) -> str:
    values = {0: (), 1: ("x",), 2: ("x", "y"), 3: ("x", "y", "z")}[signature.values]
    if name == "np.where":
        values = ("condition", "x", "y")
    return f"{name}({', '.join([*values, *(f'{key}=' for key in signature.parameters)])})"


def _is_dunder(name: str) -> bool:
    return name.startswith("__")


def _is_plain(name: str) -> bool:
    """Whether a column can stand in Python without backticks."""
    reserved = name in CONSTANTS or keyword.iskeyword(name) or _is_dunder(name)
    return name.isidentifier() and not reserved


# --- text to tree ------------------------------------------------------------------------


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
