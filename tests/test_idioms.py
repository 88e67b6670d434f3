"""The page of idioms: whole, and refused where an entry lacks a word."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
FOLDER = DOCS / "reference" / "idioms"
FEWEST = 90
PACKAGES = {
    "brms",
    "emmeans",
    "lme4",
    "lmerTest",
    "marginaleffects",
    "metafor",
    "mmrm",
    "nlme",
    "statsmodels",
    "tidybayes",
}


@pytest.fixture(scope="module")
def table():
    spec = importlib.util.spec_from_file_location("idiom_table", DOCS / "idiom_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_idioms_of_every_package(table):
    idioms = [entry for area in table.read_idioms(FOLDER) for entry in area["idiom"]]
    assert len(idioms) >= FEWEST
    assert {name for entry in idioms for name in entry["from"].split(", ")} >= PACKAGES
    theirs = [(entry["from"], entry["theirs"]) for entry in idioms]
    assert len(set(theirs)) == len(theirs)


def test_every_idiom_is_code(table):
    for area in table.read_idioms(FOLDER):
        for entry in area["idiom"]:
            compile(entry["ours"], entry["theirs"], "exec")


def test_the_page_executes_every_idiom(table):
    page = table.idioms_page(FOLDER)
    for area in table.read_idioms(FOLDER):
        for entry in area["idiom"]:
            assert f"\n{entry['ours'].strip()}\n" in page
            for line in entry["theirs"].splitlines():
                assert line.replace("|", "\\|") in page


def test_every_file_is_on_the_page(table):
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(table.TITLES)


def test_an_entry_without_ours_is_refused(table, tmp_path):
    (tmp_path / "core.toml").write_text('[[idiom]]\nfrom = "lme4"\ntheirs = "lmer()"\n')
    with pytest.raises(ValueError, match=r"core\.toml: \[\[idiom\]\] needs from, theirs and ours"):
        table.idioms_page(tmp_path)
