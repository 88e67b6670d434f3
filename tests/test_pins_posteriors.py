"""Posteriors are those of the commit in tests/pins/README.md, up to Monte Carlo error."""

import pytest
from pin_models import DEFAULTS, POSTERIORS, STATED
from pin_posteriors import read, record, scores
from slow_cases import slow

import bayeslmm as blm

# Combined Monte Carlo standard errors. Some 850 figures are compared, so that a right
# program exceeds this with a probability of 5e-4 over all of them, and the seed is fixed.
DEVIATIONS = 5.0
SIZE = {"draws": 1000, "chains": 4, "random_seed": 101}


def check(pin, group, name):
    """Fit, and compare every figure with the stored one."""
    old = read(group, name)
    assert pin.description() == {key: old[key] for key in ("data", "formula", "weights", "priors")}
    new = record(pin.model().fit(**SIZE))
    assert new["parameters"].keys() == old["parameters"].keys()
    assert (new["log_evidence"] is None) == (old["log_evidence"] is None)
    found = scores(new, old)
    off = {name: round(z, 1) for name, z in found.items() if not abs(z) <= DEVIATIONS}
    assert not off, f"{len(off)} of {len(found)} figures are off by so many errors: {off}"


QUICK = {
    "sleepstudy_slopes",
    "sleepstudy_slopes_only",
    "Dyestuff",
    "Rail",
    "Penicillin_crossed",
    "Oats_split",
    "Ovary",
    "weights",
    "offset",
    "splines_two_terms",
    "redundant_column",
    "sleepstudy_slopes_flat",
    "no_intercept_flat",
}
"""Those of the default run: one of each kind of model, and no long ones."""


@pytest.mark.parametrize("name", [name if name in QUICK else slow(name) for name in POSTERIORS])
def test_posterior(name):
    check(POSTERIORS[name], "posteriors", name)


@pytest.mark.parametrize(
    "name", [slow(name) if name.startswith("Machines") else name for name in DEFAULTS]
)
def test_posterior_under_default_priors(name):
    check(DEFAULTS[name], "defaults", name)


@pytest.mark.parametrize("name", STATED)
def test_no_stated_prior_is_left_to_the_package(name):
    sources = STATED[name].model().priors.table()["source"]
    assert set(sources) == {"user"}


def test_improper_priors_have_no_evidence():
    post = POSTERIORS["ergoStool_sum_flat"].model().fit(draws=10, chains=1, random_seed=1)
    with pytest.raises(blm.PriorError):
        _ = post.log_evidence
