"""A self-contained, accessible HTML page: structure and style, no scripts and no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

from bayeslmm.report.markup import TextTable, html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A section of the page.

    Attributes
    ----------
    key : str
        Its anchor.
    title : str
        Its heading.
    parts : tuple of str
        HTML of its contents.
    """

    key: str
    title: str
    parts: tuple[str, ...]


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def absent(what: str, why: str) -> str:
    """A paragraph that says why a part is not there."""
    return f'<p class="absent"><strong>{escape(what)}: not shown.</strong> {escape(why)}</p>'


def bullets(items: Sequence[str], kind: str = "") -> str:
    """A list."""
    name = f' class="{kind}"' if kind else ""
    return f"<ul{name}>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def scrolling_table(table: TextTable) -> str:
    """A table that scrolls inside the page where it is wider; its notes stay in view."""
    label = escape(table.caption, quote=True)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">\n'
        f"{html_table(replace(table, notes=()))}\n</div>{notes}"
    )


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def html_document(title: str, lead: str, sections: Sequence[Section], footer: str) -> str:
    """The page.

    Parameters
    ----------
    title, lead : str
        Heading and what stands below it, as plain text.
    sections : sequence of Section
        In order; the table of contents lists them.
    footer : str
        Plain text at the end.
    """
    links = "".join(f'<li><a href="#{s.key}">{escape(s.title)}</a></li>' for s in sections)
    body = "\n".join(_section(section) for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="generator" content="bayeslmm">
<title>{escape(title)}</title>
<style>
{STYLE}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{escape(title)}</h1>
<p class="lead">{escape(lead)}</p>
</header>
<nav aria-label="Contents"><ol>{links}</ol></nav>
<main id="main" tabindex="-1">
{body}
</main>
<footer><p>{escape(footer)}</p></footer>
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = "\n".join(section.parts)
    heading = f'<h2 id="{section.key}-heading">{escape(section.title)}</h2>'
    return (
        f'<section id="{section.key}" aria-labelledby="{section.key}-heading">\n'
        f"{heading}\n{parts}\n</section>"
    )


POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded from anywhere and no script runs."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1b1f24; --quiet: #515a66; --line: #c4cad2; --soft: #f3f5f7;
  --link: #0b4fb3; --mark: #8a4b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --text: #e9ebee; --quiet: #b3bac4; --line: #464d57; --soft: #1f242a;
    --link: #9cc2ff; --mark: #f0b567;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 1rem clamp(1rem, 4vw, 2.5rem) 3rem; max-width: 62rem;
  background: var(--page); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: clamp(1.4rem, 4vw, 2rem); line-height: 1.2; margin: 1rem 0 .5rem; }
h2 {
  font-size: 1.35rem; line-height: 1.25; margin: 2.75rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line);
}
h3 { font-size: 1.08rem; margin: 1.75rem 0 .5rem; }
p { margin: .6rem 0; max-width: 46rem; }
.lead, .absent, .note, footer, caption, figcaption { color: var(--quiet); }
a { color: var(--link); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: .5rem; background: var(--page); padding: .5rem 1rem; z-index: 1; }
nav ol { columns: 2 16rem; padding-left: 1.5rem; margin: 1rem 0 0; }
.warnings { border-left: .3rem solid var(--mark); padding: .25rem 0 .25rem 1.6rem; margin: 1rem 0; }
.warnings li { margin: .4rem 0; max-width: 46rem; }
.absent { border-left: .3rem solid var(--line); padding-left: .9rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  overflow-wrap: normal; }
th:last-child, td:last-child { padding-right: 0; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody tr { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 500; }
th[scope="rowgroup"] { font-weight: 700; padding-top: .8rem; }
.numeric td { white-space: nowrap; }
.numeric td, .numeric thead th:not(:first-child) { text-align: right; padding-left: .8rem; }
.note { font-size: .88rem; margin: .2rem 0; }
figure { margin: 1.25rem 0; }
figure .scroll { margin: 0; }
figure img {
  display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px;
}
.wide img { min-width: 40rem; }
figcaption { margin-top: .5rem; max-width: 46rem; font-size: .92rem; }
blockquote { margin: 1rem 0; max-width: 49rem; padding: .25rem 1.1rem; background: var(--soft); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); font-size: .9rem; }
@media print {
  :root { --page: #ffffff; --text: #000000; --quiet: #333333; --line: #999999;
    --soft: #ffffff; --link: #000000; --mark: #000000; }
  nav, .skip { display: none; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3, caption { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .wide img { min-width: 0; }
  details::details-content { content-visibility: visible; }
}
""".strip()
