"""Names inside the Python expressions of a formula."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PythonNames:
    """Names that a Python expression uses: data variables, and functions called by name."""

    variables: frozenset[str]
    functions: frozenset[str]


def python_names(code: str, may_be_column: Callable[[str], bool]) -> PythonNames:
    """List the names that a Python expression uses.

    Parameters
    ----------
    code : str
        A Python expression; names in backticks are data variables.
    may_be_column : callable
        Whether a name that is not called can be a data variable.

    Returns
    -------
    PythonNames
        Names bound inside the expression (by a lambda or a comprehension) are left out.

    Raises
    ------
    SyntaxError
        If `code` is not a valid expression.
    """
    quoted: dict[str, str] = {}
    tree = ast.parse(_without_backticks(code, quoted), mode="eval")
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and _callee(node) is not None
    ]
    callees = {id(call.func) for call in calls}
    functions = {name for call in calls if (name := _callee(call)) is not None}
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    used = {node.id for node in names if id(node) not in callees} - bound
    variables = {quoted.get(name, name) for name in used if name in quoted or may_be_column(name)}
    variables |= {text for call in calls for text in _patsy_quoted(call)}
    return PythonNames(frozenset(variables), frozenset(functions - bound))


def _without_backticks(code: str, quoted: dict[str, str]) -> str:
    """Replace names in backticks by identifiers, recorded in `quoted`."""

    def replace(match: re.Match[str]) -> str:
        alias = f"_quoted_{len(quoted)}"
        quoted[alias] = match[1]
        return f" {alias} "

    return re.sub(r"`([^`]+)`", replace, code).strip()


def _callee(call: ast.Call) -> str | None:
    return call.func.id if isinstance(call.func, ast.Name) else None


def _patsy_quoted(call: ast.Call) -> list[str]:
    """Return the variable named by patsy's ``Q("a b")``."""
    first = call.args[0] if call.args else None
    if _callee(call) == "Q" and isinstance(first, ast.Constant) and isinstance(first.value, str):
        return [first.value]
    return []
