"""Predictions and tables from draws are those of the commit in tests/pins/README.md."""

import pytest
from pin_posteriors import read
from pin_uses import USES, differences, record
from slow_cases import one_in

SEED = 101


@pytest.mark.parametrize("name", one_in(2, USES))
def test_tables_from_draws(name):
    case, old = USES[name], read("uses", name)
    assert case.pin.description() == {key: old[key] for key in case.pin.description()}
    off = differences(record(case, SEED), old["tables"], old["seeds"])
    assert not off, "\n".join(off)
