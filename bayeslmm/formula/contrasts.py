"""Contrasts of factors given beside a formula, put into it: ``f`` becomes ``C(f, contr.sum)``."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.column_types import kind_of
from bayeslmm.exceptions import DataError, FormulaError, listed
from bayeslmm.formula.expressions import read
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.syntax import Token, has_bar, is_operator, nest, tokens

NAMED = {
    "treatment": "contr.treatment",
    "sum": "contr.sum",
    "helmert": "contr.helmert",
    "poly": "contr.poly",
    "diff": "contr.diff",
    "sdif": "contr.diff",
    "SAS": "contr.SAS",
}
"""What contrasts are called, by themselves and in formulas."""

_MAKERS = ("C", "factor")


def coded_formula(formula: Formula, contrasts: Mapping[str, Any]) -> str:
    """A formula whose fixed part has factors with contrasts, as ``C()`` gives them.

    Parameters
    ----------
    formula : Formula
        The formula as it is.
    contrasts : mapping of str to contrasts
        By variable: a name of `NAMED`, a pair of name and base level ``("treatment", "b")``, a
        matrix (levels, columns) or a data frame whose rows are levels; None for the default.

    Returns
    -------
    str

    Raises
    ------
    TypeError
        If `contrasts` is no mapping.
    ValueError
        If contrasts are unknown or no numbers.
    FormulaError
        If a variable is no term of the fixed part, by itself or in an interaction.

    References
    ----------
    ``contrasts=`` of R's ``lmer``, which is about the fixed part too.

    Examples
    --------
    >>> from bayeslmm.formula.grammar import parse
    >>> coded_formula(parse("y ~ x * f + (1 | g)"), {"f": "sum"})
    'y ~ x * C(f, contr.sum) + (1 | g)'
    """
    if not isinstance(contrasts, Mapping):
        raise TypeError(
            f"contrasts must be a mapping such as {{'f': 'sum'}}, got {type(contrasts).__name__}."
        )
    written = {name: _written(name, value) for name, value in contrasts.items()}
    found = list(_factors(formula.source))
    if absent := sorted(set(written) - {name for _, name, _ in found}):
        raise FormulaError(
            f"contrasts= names {listed(absent)}, not in the fixed part; a factor there stands by "
            "itself or in an interaction. In a random-effects term write (C(f, contr.sum) | g).",
            formula.source,
            0,
            len(formula.source),
        )
    return _replaced(formula.source, found, written)


def coded_change(old: Formula, new: str) -> str:
    """A change of a formula, its factors with the contrasts that they have in the old one.

    Only where a dot keeps the old terms, beside which other contrasts of a factor make no sense.
    """
    if not any(token.kind == "value" and token.text == "." for token in tokens(new)):
        return new
    found, own = list(_factors(new)), list(_factors(old.source))
    plain = {name for _, name, coded in own if not coded}
    texts = {name: token.text for token, name, coded in own if coded and name not in plain}
    bare = [(token, name, coded) for token, name, coded in found if not coded]
    return _replaced(new, bare, texts)


def check_coded(frame: pd.DataFrame, contrasts: Mapping[str, Any]) -> None:
    """Refuse contrasts of columns of numbers, and levels that there are not.

    Raises
    ------
    DataError
        If a variable in the frame is no factor, or a base level is none of its levels.
    """
    numbers = [name for name in contrasts if name in frame and kind_of(frame[name]) == "numbers"]
    if numbers:
        raise DataError(
            f"contrasts= are of factors, and {listed(numbers)} has numbers: make it text or "
            f"categorical, or write C({numbers[0]}, ...) in the formula."
        )
    for name, value in contrasts.items():
        if not isinstance(value, tuple) or name not in frame:
            continue
        levels = frame[name].dropna().astype("category").cat.categories.tolist()
        if value[1] not in levels:
            raise DataError(
                f"The base level {value[1]!r} of `{name}` is none of its levels, {listed(levels)}."
            )


# --- where factors stand ---------------------------------------------------------------


def _factors(source: str) -> Iterator[tuple[Token, str, bool]]:
    """Operands of the fixed part that are a column, or a factor of one with contrasts.

    The token, the column, and whether it has contrasts.
    """
    found = tokens(source)
    start = next((token.start for token in found if is_operator(token, "~")), -1)
    right = [token for token in found if token.start > start]
    spans = [(item.start, item.end) for item in _bars(nest(source, right))]
    for token in right:
        if any(low <= token.start < high for low, high in spans):
            continue
        if token.kind == "name":
            yield token, token.value, False
        elif token.kind == "python" and (name := _coded(token.text)):
            yield token, name, True


def _bars(items: Any) -> Iterator[Any]:
    for item in items:
        if has_bar(item):
            yield item
        elif hasattr(item, "items"):
            yield from _bars(item.items)


def _coded(text: str) -> str:
    """The column of which an expression is a factor with contrasts; nothing for any other."""
    if not text.startswith(_MAKERS):
        return ""
    tree = read(text).tree
    if not (isinstance(tree, ast.Call) and ast.unparse(tree.func) in _MAKERS):
        return ""
    given = len(tree.args) > 1 or any(part.arg == "contrasts" for part in tree.keywords)
    first = tree.args[0]
    return first.id.strip("`") if given and isinstance(first, ast.Name) else ""


def _replaced(
    source: str, found: Sequence[tuple[Token, str, bool]], texts: Mapping[str, str | None]
) -> str:
    pieces, end = [], 0
    for token, name, _ in found:
        if name in texts:
            bare = token.text if token.kind == "name" else _column(token.text)
            text = texts[name]
            new = bare if text is None else text.replace("\0", bare)
            pieces += [source[end : token.start], new]
            end = token.end
    return "".join([*pieces, source[end:]])


def _column(text: str) -> str:
    """The column of a factor as it is written."""
    tree = read(text).tree
    assert isinstance(tree, ast.Call) and isinstance(tree.args[0], ast.Name)
    return tree.args[0].id


# --- contrasts as text -----------------------------------------------------------------


def _written(name: str, value: Any) -> str | None:
    """A factor with contrasts, NUL standing for the column; None for the default ones."""
    if value is None:
        return None
    if isinstance(value, str):
        return f"C(\0, {_named(name, value)})"
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        if _named(name, value[0]) != NAMED["treatment"]:
            raise ValueError(
                f"contrasts of {name!r}: a base level goes with 'treatment', as in "
                f"('treatment', {value[1]!r}); got {value!r}."
            )
        return f"C(\0, contr.treatment({_literal(value[1])}))"
    if isinstance(value, pd.DataFrame):
        columns = [str(column) for column in value.columns]
        levels = ", ".join(_literal(level) for level in value.index)
        matrix = _matrix(name, value.to_numpy())
        return f"C(\0, contr.custom({matrix}, names={columns!r}), levels=[{levels}])"
    return f"C(\0, contr.custom({_matrix(name, value)}))"


def _named(name: str, given: str) -> str:
    short = given.removeprefix("contr.")
    if short not in NAMED:
        allowed = ", ".join(map(repr, NAMED))
        raise ValueError(
            f"contrasts of {name!r} are {given!r}; one of {allowed}, ('treatment', base level), a "
            "matrix or a data frame is expected."
        )
    return NAMED[short]


def _matrix(name: str, value: Any) -> str:
    try:
        matrix = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(
            f"contrasts of {name!r} must be a matrix of numbers with a row for each level, such as "
            "[[1, 0], [0, 1], [-1, -1]]."
        )
    rows = (", ".join(_number(number) for number in row) for row in matrix.tolist())
    return "[" + ", ".join(f"[{row}]" for row in rows) + "]"


def _number(value: float) -> str:
    return repr(value) if value % 1.0 else f"{value:.0f}"


def _literal(level: Any) -> str:
    """A level as a formula writes it."""
    plain = level.item() if isinstance(level, np.generic) else level
    if not isinstance(plain, str | int | float | bool):
        raise ValueError(f"The level {level!r} cannot be written in a formula.")
    return repr(plain)
