"""Importing the package, and everything that does not sample, stays cheap."""

import json
import subprocess
import sys

import pytest

HEAVY = ["arviz", "arviz_base", "matplotlib", "nutpie", "pymc", "pytensor"]


STATEMENTS = [
    "import bayeslmm",
    "dir(bayeslmm)",
    "import bayeslmm.datasets",
    "bayeslmm.load_dataset('sleepstudy')",
    "bayeslmm.parse_formula('y ~ x + (x | g)')",
    "bayeslmm.LMM",
    "import bayeslmm.__main__",
]

FRAMES = ["numpy", "pandas", "scipy"]

REML = """
import bayeslmm as blm
frame = blm.load_dataset('sleepstudy').assign(half=lambda d: d['Days'] > 4)
fit = blm.LMM('{formula}', frame).reml()
print(fit)
print(fit.summary(), fit.fixef(), fit.varcorr(), fit.ranef()['Subject'])
"""
FORMULAS = [
    "Reaction ~ Days + (Days | Subject)",
    "log(Reaction) ~ half * I(Days^2) + offset(np.sqrt(Days)) + (0 + half || Subject)",
]
OTHER = "Reaction ~ poly(Days, 2) + (1 | Subject)"
ON_THE_WAY = [*HEAVY, "formulaic", "narwhals", "scipy.interpolate", "scipy.stats", "xarray"]


@pytest.fixture(scope="module")
def loaded():
    """Modules that a fresh process has loaded after each of the statements, in this order.

    What is not there after one is not loaded by any of those before it either.
    """
    fits = [REML.format(formula=formula) for formula in (*FORMULAS, OTHER)]
    code = f"""
import json, sys
found = {{}}
for statement in {[*STATEMENTS, *fits]}:
    exec(statement)
    found[statement] = sorted(sys.modules)
print(json.dumps(found))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("statement", STATEMENTS)
def test_nothing_heavy_is_loaded(loaded, statement):
    assert not set(HEAVY) & set(loaded[statement])


def test_planning_loads_no_pictures():
    code = "import bayeslmm.planning.studies, sys; assert 'bayeslmm.plots' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_no_data_frame_library(loaded):
    assert not set(FRAMES) & set(loaded["import bayeslmm"])


@pytest.mark.parametrize("formula", FORMULAS)
def test_the_way_to_a_printed_reml_fit_is_short(loaded, formula):
    assert not set(ON_THE_WAY) & set(loaded[REML.format(formula=formula)])


def test_only_the_rest_of_formulas_needs_formulaic(loaded):
    assert "formulaic" in loaded[REML.format(formula=OTHER)]
