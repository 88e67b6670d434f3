"""The verbs by task, from ``reference/api.toml``: tables of the page "API", pages of classes."""

import inspect
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent / "reference"
TASKS = tomllib.loads((HERE / "api.toml").read_text(encoding="utf-8"))["task"]
FITS = ("bayeslmm.Estimate", "bayeslmm.Posterior")
OWNERS = {
    "plot.": ("bayeslmm.plots.accessors.EstimatePlots", "bayeslmm.plots.accessors.PosteriorPlots"),
    "check.": (
        "bayeslmm.checks.accessors.EstimateChecks",
        "bayeslmm.checks.accessors.PosteriorChecks",
    ),
    "LMM.plot.": ("bayeslmm.plots.model_accessor.ModelPlots",),
}
"""Classes that names which begin so belong to: of an estimate and of a posterior."""


def loaded(path: str) -> Any:
    """An object by its path, or the package."""
    if "." not in path:
        return import_module(path)
    module, name = path.rsplit(".", 1)
    if module.startswith("bayeslmm") and not module.rsplit(".", 1)[-1][0].isupper():
        return getattr(import_module(module), name)
    return inspect.getattr_static(loaded(module), name)


def owners(verb: str) -> tuple[tuple[str, ...], str]:
    """Classes, or the package, that a verb may belong to, and its name in them."""
    head, dot, name = verb.rpartition(".")
    if verb.startswith("blm."):
        return ("bayeslmm",), name
    if head + dot in OWNERS:
        return OWNERS[head + dot], name
    return ((f"bayeslmm.{head}",) if head else FITS), name


def has(owner: str, name: str) -> bool:
    """Whether a class, with the fields of a dataclass, or the package has a name."""
    found = loaded(owner)
    return hasattr(found, name) or name in getattr(found, "__dataclass_fields__", ())


def is_method(owner: str, name: str) -> bool:
    """Whether it is called."""
    return callable(getattr(loaded(owner), name, None))


def words(owner: str, name: str) -> str:
    """First paragraph of the docstring in one line, without links."""
    found = loaded(owner)
    value = getattr(found, name, None)
    text = inspect.getdoc(value) if value is not None else None
    if owner != "bayeslmm" and (value is None or name in getattr(found, "__annotations__", ())):
        text = field_words(found, name)
    first = (text or "").split("\n\n")[0].replace("\n", " ")
    return re.sub(r":\w+:`~?([^`]*)`", r"``\1``", first)


def field_words(cls: type, name: str) -> str:
    """What the section Attributes of a class, or of one that it is made of, says of a field."""
    for base in cls.__mro__:
        doc = inspect.getdoc(base) or ""
        if found := re.search(rf"^{name} : [^\n]*\n((?:    [^\n]*\n?)+)", doc, re.MULTILINE):
            return " ".join(found[1].split())
    return ""


class Verbs(SphinxDirective):
    """``.. verbs:: TASK``, a table with a line per verb."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Make the table."""
        (task,) = [task for task in TASKS if task["key"] == self.arguments[0]]
        rows = [(verb, *owners(verb)) for verb in task["verbs"].split()]
        fits = any(len(places) == 2 for _, places, _ in rows)
        lines = [".. list-table::", "   :class: verbs"]
        if fits:
            lines += ["   :header-rows: 1", "   :widths: 27 53 10 10", ""]
            lines += ["   * -", "     -", "     - estimate", "     - posterior"]
        else:
            lines += ["   :widths: 27 73", ""]
        for verb, places, name in rows:
            known = [place for place in places if has(place, name)]
            if not known:
                raise self.error(f"nothing has {verb}")
            ends = "()" if is_method(known[0], name) and not name[0].isupper() else ""
            lines += [f"   * - :obj:`{verb}{ends} <{known[0]}.{name}>`"]
            lines += [f"     - {words(known[0], name)}"]
            if fits:
                marks = places if len(places) == 2 else ("", "")
                lines += [
                    f"     - :obj:`✓ <{place}.{name}>`" if place in known else "     -"
                    for place in marks
                ]
        if returned := task.get("returned", "").split():
            links = ", ".join(f":class:`~bayeslmm.{path}`" for path in returned)
            lines += ["", f"Classes: {links}."]
        parent = nodes.container()
        self.state.nested_parse(StringList(lines, source="api.toml"), self.content_offset, parent)
        return parent.children


def page_groups() -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """For pages of classes with many verbs: by task the directive and the name of each verb."""
    pages: dict[str, list[tuple[str, list[tuple[str, str]]]]] = {}
    for page in (*FITS, "bayeslmm.LMM"):
        groups = []
        for task in TASKS:
            members = []
            for verb in task["verbs"].split():
                places, name = owners(verb)
                if page in places and has(page, name):
                    members.append((directive(page, name), name))
            if members:
                groups.append((task["title"], members))
        pages[page] = groups
    return pages


def directive(owner: str, name: str) -> str:
    """The directive of autodoc for a member."""
    value = inspect.getattr_static(loaded(owner), name, None)
    if isinstance(value, property) or type(value).__name__ == "cached_property":
        return "autoproperty"
    return "automethod" if is_method(owner, name) else "autoattribute"


def listed_classes() -> dict[str, str]:
    """Full paths of the classes on the page "API", by their names."""
    module, found = "bayeslmm", {}
    for line in (HERE / "api.md").read_text(encoding="utf-8").splitlines():
        if start := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = start[1]
        elif entry := re.fullmatch(r"   ([A-Za-z][\w.]*)", line):
            path = f"{module}.{entry[1]}"
            if path.rsplit(".", 1)[-1][0].isupper():
                found[path.rsplit(".", 1)[-1]] = path
    return found
