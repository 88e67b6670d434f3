"""Tables of text, their numbers at the width of a table, in HTML, LaTeX and Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

Format = Literal["markdown", "html", "latex"]
TEMPLATES: Mapping[Format, str] = {
    "html": "alone.html",
    "latex": "table.tex",
    "markdown": "table.md",
}

LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "∞": r"$\infty$",
    "σ": r"$\sigma$",
    "²": r"\textsuperscript{2}",
    "\n": " ",
}

MARKDOWN = "\\`*_|<>~$&"

DIGITS = 3
"""Significant digits of errors, and of numbers that have none."""

MOST_DECIMALS = 6
MINUS = "\N{MINUS SIGN}"
SMALLEST_P = 0.001


class Markup(str):
    """Text of a table that a notebook shows as the table.

    Attributes
    ----------
    language : {"markdown", "html", "latex"}
        Its language.
    """

    language: Format

    def __new__(cls, text: str, language: Format) -> Markup:
        """Text in a language."""
        made = super().__new__(cls, text)
        made.language = language
        return made

    def __getnewargs__(self) -> tuple[str, Format]:  # type: ignore[override]
        """Arguments by which it is copied and pickled."""
        return str(self), self.language

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        rich = {"html": "text/html", "markdown": "text/markdown"}
        shown = {"text/plain": str(self)}
        if self.language in rich:
            shown[rich[self.language]] = str(self)
        return shown


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """A table of text with row groups.

    Attributes
    ----------
    caption : str
        What the table shows.
    header : tuple of str
        Headings of the columns; the first is that of the row labels.
    groups : tuple of (title, rows)
        Row groups in order; a title may be empty. A row is a label and its cells.
    notes : tuple of str
        Footnotes.
    numeric : bool
        Whether cells are numbers, which are aligned to the right.
    """

    caption: str
    header: tuple[str, ...]
    groups: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]
    notes: tuple[str, ...] = ()
    numeric: bool = True


# --- languages -------------------------------------------------------------------------


def render(table: TextTable, format: Format) -> Markup:
    """Table in a language, with everything escaped."""
    return Markup(templates().get_template(TEMPLATES[format]).render(t=table), format)


@cache
def templates() -> Environment:
    """The templates of tables and of the page; those of HTML escape everything."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: str(name).endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters |= {
        "latex": latex_text,
        "latex_row": _latex_row,
        "markdown": markdown_text,
        "markdown_row": lambda cells: f"| {' | '.join(map(markdown_text, cells))} |",
    }
    return found


def latex_text(text: str) -> str:
    """Text with every character escaped that LaTeX would take for a command."""
    return "".join(LATEX.get(character, character) for character in text)


def _latex_row(cells: Sequence[str]) -> str:
    # braces keep an interval that begins a row from being read as the optional argument of \\
    texts = [latex_text(cell) for cell in cells]
    return " & ".join(f"{{{t}}}" if t.startswith("[") else t for t in texts) + r" \\"


def markdown_text(text: str) -> str:
    """Text with every character escaped that Markdown would take for markup."""
    text = "".join(f"\\{c}" if c in MARKDOWN else c for c in text)
    return " ".join(text.split("\n"))


# --- data frames as tables -------------------------------------------------------------


def estimates_table(
    frame: pd.DataFrame,
    caption: str,
    *,
    first: str = "Parameter",
    columns: Mapping[str, tuple[str, ...]],
    scale: str,
    others: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
    digits: int = DIGITS,
) -> TextTable:
    """A table of estimates and intervals, each row at the decimals of its own error.

    Parameters
    ----------
    frame : pandas.DataFrame
        Rows by label.
    caption, first : str
        Caption, and heading of the row labels.
    columns : mapping of str to tuple of str
        Columns of the frame by heading; two of them are an interval.
    scale : str
        Column with the error that sets the decimals of a row.
    others : mapping of str to str, optional
        Further columns by heading: numbers at three significant digits, or text.
    notes : sequence of str
        Footnotes.
    digits : int
        Significant digits of the error.
    """
    others = others or {}
    rows = []
    for label, row in frame.iterrows():
        values = [row[name] for names in columns.values() for name in names]
        decimals = decimals_of([row[scale]], values, digits)
        cells = [
            " to ".join(number(row[name], decimals, digits) for name in names).strip()
            if all(np.isfinite(row[name]) for name in names)
            else "–"
            for names in columns.values()
        ]
        rows.append((str(label), *cells, *(cell(row[name]) for name in others.values())))
    return TextTable(
        caption=caption,
        header=(first, *columns, *others),
        groups=(("", tuple(rows)),),
        notes=tuple(notes),
    )


def text_table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, numeric: bool = False
) -> TextTable:
    """A table of text and numbers."""
    body = tuple(tuple(cell(value) for value in row) for row in rows)
    return TextTable(caption=caption, header=tuple(header), groups=(("", body),), numeric=numeric)


def cell(value: object) -> str:
    """A value as text: counts in full, other numbers at three significant digits."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else significant(float(value), DIGITS)
    return "–" if value is None else str(value)


# --- numbers ---------------------------------------------------------------------------


def decimals_of(errors: Iterable[float], values: Iterable[float], digits: int) -> int | None:
    """Decimals at which the smallest error has `digits` significant digits.

    Without a usable error, the smallest value counts in its place.

    Returns
    -------
    int or None
        None where fixed point would need more than six decimals.
    """
    for numbers in (errors, values):
        sizes = np.abs(np.asarray(list(numbers), dtype=float))
        sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
        if sizes.size:
            rounded = float(f"{sizes.min():.{digits - 1}e}")
            decimals = max(0, digits - 1 - int(np.floor(np.log10(rounded))))
            return decimals if decimals <= MOST_DECIMALS else None
    return digits - 1


def number(value: float, decimals: int | None, digits: int) -> str:
    """A number in fixed point, or in exponential form where `decimals` is None; "" for NaN."""
    if not np.isfinite(value):
        return "" if np.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    text = f"{value:.{digits - 1}e}" if decimals is None else f"{value:.{decimals}f}"
    if float(text) == 0.0:
        text = text.removeprefix("-")
    return text.replace("-", MINUS)


def significant(value: float, digits: int) -> str:
    """A number at so many significant digits."""
    return number(value, decimals_of((), [value], digits), digits)


def p_value(value: float) -> str:
    """A p-value at three decimals."""
    if np.isnan(value):
        return ""
    return f"p < {SMALLEST_P}" if value < SMALLEST_P else f"p = {value:.3f}"
