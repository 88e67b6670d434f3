"""Covariance structures by name, as in ``cs(0 + f | g, hom=True)``: what a call says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from bayeslmm.exceptions import FormulaError

STRUCTURES: dict[str, tuple[str, str]] = {
    "us": ("us", "us"),
    "diag": ("diag", "homdiag"),
    "homdiag": ("homdiag", "homdiag"),
    "cs": ("cs", "homcs"),
    "homcs": ("homcs", "homcs"),
    "ar1": ("hetar1", "ar1"),
    "hetar1": ("hetar1", "hetar1"),
    "toep": ("toep", "homtoep"),
    "homtoep": ("homtoep", "homtoep"),
}
"""Names with a variance for each coefficient, and with one; the same where the name says it."""

HOMOGENEOUS = frozenset({"homdiag", "homcs", "ar1", "homtoep"})
"""Names that mean one variance unless ``hom=False`` is written."""

OCCASIONS = frozenset({"ar1", "hetar1", "toep", "homtoep"})
"""Names whose coefficients have an order: one for each occasion."""

_CALL = re.compile(rf"({'|'.join(sorted(STRUCTURES, key=len, reverse=True))})\(")
_OPTION = re.compile(r"\s*(\w+)\s*=\s*(\w+)\s*")
BY = "by=f, for a covariance matrix of its own in each level of a column f"
"""Argument of every random-effects term, in words."""

_BY = re.compile(r"\s*by\s*=\s*(?:`([^`]+)`|([^\W\d][\w.]*))\s*")
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Call:
    """A structure around a random-effects term, by places in the formula.

    Attributes
    ----------
    name : str
        As written.
    inside : tuple of int
        Start and end of the term, without arguments.
    arguments : tuple of tuple of int
        Start and end of each argument after it.
    """

    name: str
    inside: tuple[int, int]
    arguments: tuple[tuple[int, int], ...]


def read_call(text: str, start: int) -> Call | None:
    """Read the text of a token at `start` of a formula; None where it is another function's call.

    A bar outside of inner parentheses and quotes tells.
    """
    match = _CALL.match(text)
    if match is None or not text.endswith(")"):
        return None
    marks = list(_outside(text, match.end(), len(text) - 1))
    if not any(text[i] == "|" for i in marks):
        return None
    commas = [i for i in marks if text[i] == ","]
    ends = [*commas, len(text) - 1]
    arguments = tuple((start + a + 1, start + b) for a, b in zip(commas, ends[1:], strict=True))
    return Call(match[1], (start + match.end(), start + ends[0]), arguments)


def _outside(text: str, start: int, stop: int) -> Iterator[int]:
    """Places outside of inner parentheses and quotes."""
    closers: list[str] = []
    i = start
    while i < stop:
        char = text[i]
        quoted = closers and closers[-1] in "\"'`"
        if quoted and char == "\\":
            i += 1
        elif closers and char == closers[-1]:
            closers.pop()
        elif not quoted and char in "\"'`([{":
            closers.append(_CLOSING.get(char, char))
        elif not closers:
            yield i
        i += 1


def take_by(
    source: str, arguments: Sequence[tuple[int, int]]
) -> tuple[str | None, tuple[tuple[int, int], ...]]:
    """The column of ``by=`` among the arguments of a term, and its other arguments.

    Raises
    ------
    FormulaError
        If it is written twice, or is not one column.
    """
    by, others = None, []
    for start, end in arguments:
        text = source[start:end]
        if not re.match(r"\s*by\s*=", text):
            others.append((start, end))
            continue
        match = _BY.fullmatch(text)
        if match is None or by is not None:
            what = "is written twice" if match else "names one column, as in (x | g, by=f)"
            first = start + len(text) - len(text.lstrip())
            raise FormulaError(f"by= {what}.", source, first, max(end, first + 1))
        by = match[1] or match[2]
    return by, tuple(others)


def kind_of(call: Call, source: str) -> str:
    """Name of the structure with its arguments taken in: "cs", "homcs", "ar1", "hetar1", ...

    Raises
    ------
    FormulaError
        For an argument that the structure does not have.
    """
    homogeneous = call.name in HOMOGENEOUS
    for number, (start, end) in enumerate(call.arguments):
        match = _OPTION.fullmatch(source[start:end])
        if match is None or match[1] != "hom" or number:
            _refuse(call, source, start, end)
        fixed = len(set(STRUCTURES[call.name])) == 1
        if fixed or match[2] not in ("True", "False"):
            _refuse(call, source, start, end)
        homogeneous = match[2] == "True"
    return STRUCTURES[call.name][homogeneous]


def _refuse(call: Call, source: str, start: int, end: int) -> NoReturn:
    if not source[start:end].strip():
        raise FormulaError("There is nothing after this comma.", source, start - 1, start)
    first = start + len(source[start:end]) - len(source[start:end].lstrip())
    last = start + len(source[start:end].rstrip())
    allowed = "hom=True, for one variance of all coefficients, or hom=False, for one each"
    if len(set(STRUCTURES[call.name])) == 1:
        allowed = "none: its name says how many variances there are"
    if call.name == "us":
        allowed = "none: every coefficient has a variance"
    raise FormulaError(
        f"`{source[first:last]}` is no argument of {call.name}(). What may stand after the "
        f"grouping factor: {allowed}; {BY}.",
        source,
        first,
        last,
    )
