"""The page of idioms, theirs and ours, from the files in ``reference/idioms``.

A file has code that prepares its idioms (``setup``), tables ``[[idiom]]`` with ``from``,
``theirs`` and ``ours``, and tables ``[[missing]]`` with ``from``, ``theirs`` and ``why``. The page
that is made of them executes every ``ours``.
"""

import tomllib
from pathlib import Path
from typing import Any

TITLES = {
    "core": "Fits, parameters, predictions and comparisons",
    "models": "Building models",
    "kr": "Small samples and robust standard errors",
    "emm": "Means, contrasts, slopes and tests",
    "pics": "Pictures",
    "trials": "Trials",
    "meta": "Meta-analyses",
    "power": "Power and design",
    "posttools": "Draws, hypotheses and priors",
}
"""Files, by their stems, and headings in the order of the page."""

HEAD = """---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  name: python3
---

# Idioms, theirs and ours

{count} idioms of {packages}. What stands in the column "here" was executed when this page was
made, after the code that stands above its table and this:

```{{code-cell}} python
{common}
```
"""

COMMON = """import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import bayeslmm as blm

sleep = blm.load_dataset("sleepstudy")
model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
reml, ml = model.reml(), model.ml()
post = model.fit(random_seed=1)"""

RUN = """```{{code-cell}} python
:tags: [remove-cell]

{code}
plt.close("all")
```
"""


def read_idioms(folder: Path) -> list[dict[str, Any]]:
    """The files of a folder in the order of the page.

    Raises
    ------
    ValueError
        If an entry lacks one of its words.
    """
    areas = []
    for stem, title in TITLES.items():
        area = tomllib.loads((folder / f"{stem}.toml").read_text(encoding="utf-8"))
        for kind, last in (("idiom", "ours"), ("missing", "why")):
            for entry in area.get(kind, ()):
                if set(entry) != {"from", "theirs", last}:
                    needs = f"[[{kind}]] needs from, theirs and {last}"
                    raise ValueError(f"{stem}.toml: {needs}: {entry}")
        areas.append({"title": title, **area})
    return areas


def idioms_page(folder: Path) -> str:
    """The page in MyST's Markdown."""
    areas = read_idioms(folder)
    idioms = [entry for area in areas for entry in area["idiom"]]
    named = sorted({name for e in idioms for name in e["from"].split(", ")}, key=str.lower)
    packages = f"{', '.join(named[:-1])} and {named[-1]}"
    parts = [HEAD.format(count=len(idioms), packages=packages, common=COMMON)]
    for area in areas:
        parts.append(f"## {area['title']}\n")
        if setup := area.get("setup", "").strip():
            parts.append(f"```{{code-cell}} python\n:tags: [remove-output]\n\n{setup}\n```\n")
        parts.append(_table(area["idiom"], "ours", "here"))
        parts.append(RUN.format(code="\n".join(entry["ours"].strip() for entry in area["idiom"])))
    missing = [entry for area in areas for entry in area.get("missing", ())]
    if missing:
        parts.append("## Out of scope\n")
        parts.append(_table(missing, "why", "why"))
        parts.append("More in [what is not here](not_here.md).\n")
    return "\n".join(parts)


def _table(entries: list[dict[str, str]], key: str, title: str) -> str:
    rows = ["| from | there | " + title + " |", "|---|---|---|"]
    for entry in entries:
        last = _code(entry[key]) if key == "ours" else entry[key].replace("|", "\\|")
        rows.append(f"| {entry['from']} | {_code(entry['theirs'])} | {last} |")
    return "\n".join(rows) + "\n"


def _code(text: str) -> str:
    """Lines of code in a cell of a table."""
    lines = [line.rstrip().replace("|", "\\|") for line in text.strip().splitlines()]
    return "<br>".join(_span(line) for line in lines)


def _span(line: str) -> str:
    return f"`` {line} ``" if "`" in line else f"`{line}`"
