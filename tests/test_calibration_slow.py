"""Every exact method is calibrated on every kind of design, of which most runs take a part."""

import numpy as np
import pytest
from slow_cases import some, whole

from bayeslmm import LMM, load_dataset

pytestmark = pytest.mark.slow

REFUSED = 0.02
"""Share of simulations that a method may refuse: the priors reach far into degenerate data."""


def four_levels():
    """The smallest factor with something to say of its standard deviation."""
    group = np.repeat(["a", "b", "c", "d"], [3, 5, 6, 4])
    rng = np.random.default_rng(7)
    return {"y": rng.normal(size=18), "x": rng.normal(size=18), "g": group}


def crossed():
    """Two crossed factors and an unbalanced covariate."""
    rng = np.random.default_rng(8)
    a, b = (values.ravel() for values in np.meshgrid(np.arange(8), np.arange(6)))
    kept = rng.random(48) < 0.8
    data = {"a": a, "b": b, "x": rng.normal(size=48), "y": rng.normal(size=48)}
    return {name: values[kept] for name, values in data.items()}


DESIGNS = {  # the quicker first
    "four levels": lambda: LMM("y ~ x + (1 | g)", four_levels()),
    "one factor": lambda: LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")),
    "correlated slopes": lambda: LMM(
        "Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")
    ),
    "nested": lambda: LMM("strength ~ 1 + (1 | batch / cask)", load_dataset("Pastes")),
    "crossed": lambda: LMM("y ~ x + (1 | a) + (x || b)", crossed()),
}


def assert_calibrated(check):
    assert (check.table()["verdict"] == "ok").all(), repr(check)
    assert len(check.failures) <= REFUSED * check.n, repr(check)


@pytest.mark.parametrize("name", some(2, DESIGNS))
def test_collapsed_is_calibrated(name):
    check = DESIGNS[name]().check_calibration(
        200, method="collapsed", random_seed=1, progressbar=False
    )
    assert_calibrated(check)


@whole
@pytest.mark.parametrize("name", some(1, DESIGNS))
def test_nuts_is_calibrated(name):
    check = DESIGNS[name]().check_calibration(
        80, method="nuts", draws=400, tune=500, random_seed=1, progressbar=False
    )
    assert_calibrated(check)


@whole
def test_laplace_is_not_calibrated_with_few_groups():
    """The check can fail: the approximation misses small standard deviations."""
    check = DESIGNS["four levels"]().check_calibration(
        400, method="laplace", random_seed=1, progressbar=False
    )
    verdicts = check.table()["verdict"]
    assert verdicts["sd[g, Intercept]"] == "miscalibrated", repr(check)
