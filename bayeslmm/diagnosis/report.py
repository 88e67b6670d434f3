"""Printed and HTML forms of results made of tables and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from textwrap import fill

import numpy as np
import pandas as pd

from bayeslmm.results.text import number

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


def listed(names: Iterable[object], limit: int = 8) -> str:
    """Names in a sentence: "a, b and c"; the first few of many."""
    words = [str(name) for name in names]
    if len(words) > limit:
        return f"{', '.join(words[:limit])} and {len(words) - limit} more"
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:]))) or "none"


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(share: float) -> str:
    """A share in words that never rounds a possible event to 0 % or 100 %."""
    if not np.isfinite(share):
        return "unknown"
    if 0.0 < share < 0.001:
        return "below 0.1 %"
    if 0.999 < share < 1.0:
        return "above 99.9 %"
    decimals = 1 if 0.0 < min(share, 1.0 - share) < 0.1 else 0
    return f"{100.0 * share:.{decimals}f} %"


def _frame_text(table: pd.DataFrame) -> str:
    return table.to_string(float_format=number, na_rep="", index_names=table.index.nlevels > 1)
