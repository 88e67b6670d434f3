"""No Python warning reaches users on the main paths."""

import subprocess
import sys
from pathlib import Path

import pytest
from slow_cases import some

SCRIPT = Path(__file__).with_name("main_paths.py")
SHORT = (
    "import bayeslmm as blm; "
    "fit = blm.LMM('Yield ~ 1 + (1 | Batch)', blm.load_dataset('Dyestuff')).reml(); "
    "print(fit); fit.predict(); fit.confint()"
)


def run(*arguments):
    line = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_reml_gives_no_warning():
    result = run("-c", SHORT)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["estimates", "collapsed", *some(0, ["laplace"])])
def test_main_paths_give_no_warning(part, tmp_path):
    result = run(SCRIPT, tmp_path, part)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_nuts_gives_no_warning(tmp_path):
    result = run(SCRIPT, tmp_path, "nuts")  # PyMC logs that the draws are few
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
