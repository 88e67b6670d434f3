"""The examples in docstrings run and give what they show."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest
from slow_cases import slow

PACKAGE = Path(__file__).parent.parent / "bayeslmm"
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
# by their text, so that nothing is imported before its test
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>>" in path.read_text(encoding="utf-8")
)


LONG = {
    "checks.accessors",
    "comparison.models",
    "fits.draws",
    "fits.effects",
    "fits.posterior",
    "plots.accessors",
    "plots.check_accessors",
    "plots.effect_accessors",
}


def test_examples_are_found():
    assert {"fits.base", "fits.lmm", "fits.posterior", "datasets", "formula.grammar"} <= set(
        MODULES
    )


@pytest.mark.parametrize("name", [slow(n) if n in LONG else n for n in MODULES])
def test_examples_run(name):
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for example in doctest.DocTestFinder().find(import_module(f"bayeslmm.{name}")):
        runner.run(example, out=report.append)
    assert runner.tries
    assert not runner.failures, "\n" + "".join(report)
