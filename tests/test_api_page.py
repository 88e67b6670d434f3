"""The page "API" lists what there is, and links to other projects are well formed."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import bayeslmm as blm
from bayeslmm.checks.accessors import EstimateChecks, PosteriorChecks
from bayeslmm.plots.accessors import EstimatePlots, PosteriorPlots
from bayeslmm.plots.model_accessor import ModelPlots

DOCS = Path(__file__).parent.parent / "docs"
if not DOCS.exists():
    pytest.skip("the documentation is not part of this copy", allow_module_level=True)
TASKS = tomllib.loads((DOCS / "reference" / "api.toml").read_text(encoding="utf-8"))["task"]
LISTED = [verb for task in TASKS for verb in task["verbs"].split()]
PAGE = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
OWNERS = {
    "": (blm.Estimate, blm.Posterior),
    "LMM.": (blm.LMM,),
    "plot.": (EstimatePlots, PosteriorPlots),
    "check.": (EstimateChecks, PosteriorChecks),
    "LMM.plot.": (ModelPlots,),
}


def public(cls):
    """Public attributes of a class, its fields among them."""
    names = {*dir(cls), *getattr(cls, "__dataclass_fields__", ())}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("head", OWNERS)
def test_every_verb_is_in_one_table(head):
    names = [verb.rpartition(".")[2] for verb in LISTED if verb.rpartition(".")[0] + "." == head]
    if not head:
        names = [verb for verb in LISTED if "." not in verb]
    assert len(names) == len(set(names))
    assert set(names) == set().union(*map(public, OWNERS[head]))


def test_every_public_name_has_a_page():
    listed = set(re.findall(r"^   (?:\w+\.)*(\w+)$", PAGE, re.MULTILINE))
    assert set(blm.__all__) - {"__version__"} <= listed
    assert "bayeslmm.__version__" in PAGE
    functions = {verb.removeprefix("blm.") for verb in LISTED if verb.startswith("blm.")}
    assert functions <= set(blm.__all__)
    errors = {name for name in blm.__all__ if name.endswith("Error")}
    assert set(blm.__all__) - functions - errors - {"__version__"} == {"Estimate", "Posterior"}


def test_every_table_is_shown():
    shown = re.findall(r"^\.\. verbs:: (\w+)$", PAGE, re.MULTILINE)
    assert shown == [task["key"] for task in TASKS]


def test_what_verbs_return_has_a_page():
    listed = set(re.findall(r"^   ([\w.]+)$", PAGE, re.MULTILINE))
    returned = {name for task in TASKS for name in task.get("returned", "").split()}
    assert returned <= listed


def test_links_outside_are_read_as_written(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(DOCS))
    sys.modules.pop("outside_names", None)
    import outside_names

    said = outside_names.projects()
    assert {"arviz_plots", "numpy", "pandas", "pymc", "python", "scipy", "xarray"} <= set(said)
    for name, project in said.items():
        (tmp_path / f"{name}.toml").write_bytes((outside_names.HERE / f"{name}.toml").read_bytes())
        assert re.fullmatch(r"https://\S+/", project["url"])
        assert not any(page.startswith(("/", "http")) for page in project["names"].values())
    monkeypatch.setattr(outside_names, "HERE", tmp_path)
    outside_names.write_inventories()
    for name, project in said.items():
        content = (tmp_path / f"{name}.inv").read_bytes()
        assert outside_names.read_inventory(content) == project["names"]
