"""Importing the package, and everything that does not sample, stays cheap."""

import subprocess
import sys

import pytest
from slow_cases import slow

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


def test_nothing_heavy_is_loaded():
    """By all of them in one process, so by none alone."""
    code = f"""
import sys
for statement in {STATEMENTS}:
    exec(statement)
    loaded = sorted(set({HEAVY}) & set(sys.modules))
    assert not loaded, f"imported by {{statement}}: {{loaded}}"
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_planning_loads_no_pictures():
    code = "import bayeslmm.planning.studies, sys; assert 'bayeslmm.plots' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_package_loads_no_data_frame_library():
    code = "import bayeslmm, sys; assert not ({'numpy', 'pandas', 'scipy'} & set(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)


REML = """
import bayeslmm as blm
frame = blm.load_dataset('sleepstudy').assign(half=lambda d: d['Days'] > 4)
fit = blm.LMM('{formula}', frame).reml()
print(fit)
print(fit.summary(), fit.fixef(), fit.varcorr(), fit.ranef()['Subject'])
"""
ON_THE_WAY = [*HEAVY, "formulaic", "narwhals", "scipy.interpolate", "scipy.stats", "xarray"]


def loaded_by(code):
    """Names among `ON_THE_WAY` of what a fresh process loads to run some code."""
    code = f"{code}\nimport sys\nprint(sorted(set({ON_THE_WAY}) & set(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return result.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "formula",
    [
        slow("Reaction ~ Days + (Days | Subject)"),
        "log(Reaction) ~ half * I(Days^2) + offset(np.sqrt(Days)) + (0 + half || Subject)",
    ],
)
def test_the_way_to_a_printed_reml_fit_is_short(formula):
    assert loaded_by(REML.format(formula=formula)) == "[]"


def test_only_the_rest_of_formulas_needs_formulaic():
    code = REML.format(formula="Reaction ~ poly(Days, 2) + (1 | Subject)")
    assert "formulaic" in loaded_by(code)
