"""The notebooks run from beginning to end, and hold nothing but their source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from slow_cases import some

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.py"))
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="not part of a source distribution")


def test_notebooks_are_scripts():
    assert NOTEBOOKS
    assert not list(FOLDER.glob("*.ipynb"))


@pytest.mark.slow  # the first: the documentation runs them too
@pytest.mark.parametrize("path", some(1, NOTEBOOKS), ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    short = {"BAYESLMM_SMOKE": "1", "MPLBACKEND": "agg", "OPENBLAS_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, **short},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not list(tmp_path.iterdir()), "a notebook leaves files behind"
