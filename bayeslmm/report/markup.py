"""Tables of text as HTML, LaTeX and Markdown, with everything escaped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Format = Literal["markdown", "html", "latex"]

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


def render(table: TextTable, format: Format) -> Markup:
    """Table in a language."""
    return Markup(_RENDERERS[format](table), format)


def latex_text(text: str) -> str:
    """Text with every character escaped that LaTeX would take for a command."""
    return "".join(LATEX.get(character, character) for character in text)


def markdown_text(text: str) -> str:
    """Text with every character escaped that Markdown would take for markup."""
    text = "".join(f"\\{c}" if c in MARKDOWN else c for c in text)
    return " ".join(text.split("\n"))


def html_table(table: TextTable) -> str:
    """HTML table with a caption, scoped headings and its notes below it."""
    kind = ' class="numeric"' if table.numeric else ""
    heads = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    bodies = "\n".join(_html_group(t, rows, len(table.header)) for t, rows in table.groups)
    lines = [
        f"<table{kind}>",
        f"<caption>{escape(table.caption)}</caption>",
        f"<thead><tr>{heads}</tr></thead>",
        bodies,
    ]
    if table.notes:
        notes = "<br>".join(escape(note) for note in table.notes)
        lines.append(
            f'<tfoot><tr><td colspan="{len(table.header)}"><small>{notes}</small></td></tr></tfoot>'
        )
    return "\n".join([*lines, "</table>"])


def _html_group(title: str, rows: Sequence[Sequence[str]], width: int) -> str:
    lines = ["<tbody>"]
    if title:
        lines.append(f'<tr><th scope="rowgroup" colspan="{width}">{escape(title)}</th></tr>')
    for label, *cells in rows:
        row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{row}</tr>')
    return "\n".join([*lines, "</tbody>"])


def _latex_table(table: TextTable) -> str:
    width = len(table.header)
    align = "r" if table.numeric else "l"
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering",
        rf"\caption{{{latex_text(table.caption)}}}",
        rf"\begin{{tabular}}{{l{align * (width - 1)}}}",
        r"\toprule",
        _latex_row(table.header),
    ]
    for title, rows in table.groups:
        lines.append(r"\midrule")
        if title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{latex_text(title)}}}}} \\")
        lines += [_latex_row(row) for row in rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        lines += [
            "",
            r"\smallskip",
            r"\begin{minipage}{\linewidth}\footnotesize",
            *(rf"{latex_text(note)}\par" for note in table.notes),
            r"\end{minipage}",
        ]
    return "\n".join([*lines, r"\end{table}"])


def _latex_row(cells: Sequence[str]) -> str:
    # braces keep an interval that begins a row from being read as the optional argument of \\
    texts = [latex_text(cell) for cell in cells]
    return " & ".join(f"{{{t}}}" if t.startswith("[") else t for t in texts) + r" \\"


def _markdown_table(table: TextTable) -> str:
    align = "---:" if table.numeric else "---"
    lines = [
        f"**{markdown_text(table.caption)}**",
        "",
        _markdown_row(table.header),
        _markdown_row_of(["---"] + [align] * (len(table.header) - 1)),
    ]
    for title, rows in table.groups:
        if title:
            blank = [""] * (len(table.header) - 1)
            lines.append(_markdown_row_of([f"**{markdown_text(title)}**", *blank]))
        lines += [_markdown_row(row) for row in rows]
    for note in table.notes:
        lines += ["", markdown_text(note)]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return _markdown_row_of([markdown_text(cell) for cell in cells])


def _markdown_row_of(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_RENDERERS: dict[str, Callable[[TextTable], str]] = {
    "html": html_table,
    "latex": _latex_table,
    "markdown": _markdown_table,
}
