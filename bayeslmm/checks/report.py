"""Printed and HTML forms of results made of tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import fill

import pandas as pd

from bayeslmm.summaries.text import number

WIDTH = 88


class Report:
    """A result made of tables and findings in words: prints both, also in notebooks."""

    __slots__ = ()

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        raise NotImplementedError

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice, a sentence or two each."""
        raise NotImplementedError

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        raise NotImplementedError

    def __str__(self) -> str:
        return report_text(self.heading, self._tables(), self.messages)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return report_html(self.heading, self._tables(), self.messages)


def report_text(heading: str, tables: Mapping[str, pd.DataFrame], messages: Sequence[str]) -> str:
    """Heading, tables at four significant digits and messages as wrapped paragraphs."""
    parts = [heading]
    for title, table in tables.items():
        if len(table):
            parts += ["", title, _frame_text(table)]
    if messages:
        parts.append("")
    parts += [fill(line, WIDTH, initial_indent="- ", subsequent_indent="  ") for line in messages]
    return "\n".join(parts)


def report_html(heading: str, tables: Mapping[str, pd.DataFrame], messages: Sequence[str]) -> str:
    """HTML fragment of the same."""
    body = "".join(
        f"<p>{escape(title)}</p>{table.to_html(float_format=number, na_rep='', border=0)}"
        for title, table in tables.items()
        if len(table)
    )
    items = "".join(f"<li>{escape(line)}</li>" for line in messages)
    return f"<p>{escape(heading)}</p>{body}" + (f"<ul>{items}</ul>" if items else "")


def _frame_text(table: pd.DataFrame) -> str:
    return table.to_string(float_format=number, na_rep="", index_names=table.index.nlevels > 1)
