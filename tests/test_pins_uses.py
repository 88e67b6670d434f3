"""Predictions and tables from draws are those of the commit in tests/pins/README.md."""

import pytest
from pin_posteriors import read
from pin_uses import USES, differences, record
from slow_cases import slow

SEED = 101
EARLY = {"Machines_cells", "Orthodont_student"}
"""Those of the default run."""


@pytest.mark.parametrize("name", [n if n in EARLY else slow(n) for n in USES])
def test_tables_from_draws(name):
    case, old = USES[name], read("uses", name)
    assert case.pin.description() == {key: old[key] for key in case.pin.description()}
    off = differences(record(case, SEED), old["tables"], old["seeds"])
    assert not off, "\n".join(off)
