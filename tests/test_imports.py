"""Importing the package, and everything that does not sample, stays cheap."""

import subprocess
import sys

import pytest

HEAVY = ["arviz", "arviz_base", "matplotlib", "nutpie", "pymc", "pytensor"]


@pytest.mark.parametrize(
    "statement",
    [
        "import bayeslmm",
        "import bayeslmm; dir(bayeslmm)",
        "import bayeslmm.datasets",
        "import bayeslmm; bayeslmm.load_dataset('sleepstudy')",
        "import bayeslmm; bayeslmm.parse_formula('y ~ x + (x | g)')",
        "import bayeslmm; bayeslmm.LMM",
        "import bayeslmm.__main__",
    ],
)
def test_nothing_heavy_is_loaded(statement):
    code = f"{statement}\nimport sys\nassert not (set({HEAVY}) & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    loaded = f"a package of {HEAVY} was imported by: {statement}"
    assert result.returncode == 0, f"{loaded}\n{result.stderr}"


def test_importing_the_package_loads_no_data_frame_library():
    code = "import bayeslmm, sys; assert not ({'numpy', 'pandas', 'scipy'} & set(sys.modules))"
    subprocess.run([sys.executable, "-c", code], check=True)
