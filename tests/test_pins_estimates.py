"""Estimates and what is made of them are those of the commit in tests/pins/README.md."""

import pytest
from pin_estimates import ESTIMATES, record
from pin_posteriors import read
from pin_tables import CLOSE, differences
from slow_cases import one_in


@pytest.mark.parametrize("name", one_in(3, ESTIMATES))
def test_estimate(name):
    case, old = ESTIMATES[name], read("estimates", name)
    description = case.description()
    assert description == {key: old[key] for key in description}
    off = differences(record(case), old["tables"], case.close or CLOSE)
    assert not off, "\n".join(off)
