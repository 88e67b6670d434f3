"""Inferences do not depend on units and origins: modes and posteriors move with the data."""

from __future__ import annotations

import numpy as np
import pytest

import bayeslmm as blm

# Two optimisations of one function in different units, both polished by Newton steps.
MODE = 1e-4
# The same seed gives the same standard normal draws, so Laplace draws agree to the modes' error.
DRAWS = 1e-3

FORMULA = "Reaction ~ Days + age + (Days | Subject)"


@pytest.fixture(scope="module")
def sleep():
    data = blm.load_dataset("sleepstudy")
    rng = np.random.default_rng(4)
    return data.assign(age=rng.uniform(20, 60, len(data)))


def shares(estimate, data, formula=FORMULA):
    """Quantities that units cannot touch: shares of variance, correlation, t statistics."""
    frame = estimate.summary()
    t = (frame["estimate"] / frame["std_error"]).loc[["beta[Days]", "beta[age]"]].to_numpy()
    icc = estimate.icc()["estimate"].to_numpy()
    corr = estimate.corrs["Subject"].to_numpy()[0, 1]
    return np.array([*t, *icc, corr])


CHANGES = {
    "response times 1000": lambda d: d.assign(Reaction=1000 * d["Reaction"]),
    "response plus 1e6": lambda d: d.assign(Reaction=1e6 + d["Reaction"]),
    "slope covariate in other units": lambda d: d.assign(Days=1e-6 * d["Days"]),
    "slope covariate times 1e6": lambda d: d.assign(Days=1e6 * d["Days"]),
    "covariate times 1e-6": lambda d: d.assign(age=1e-6 * d["age"]),
    "covariate plus 1e6": lambda d: d.assign(age=1e6 + d["age"]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["reml", "ml", "map"])
def test_estimates_move_with_the_data(sleep, change, method):
    changed = CHANGES[change](sleep)
    before = getattr(blm.LMM(FORMULA, sleep), method)()
    after = getattr(blm.LMM(FORMULA, changed), method)()
    assert after.converged
    assert shares(after, changed) == pytest.approx(shares(before, sleep), rel=MODE, abs=MODE)


@pytest.mark.parametrize("change", CHANGES)
def test_posteriors_move_with_the_data(sleep, change):
    changed = CHANGES[change](sleep)
    fits = [
        blm.LMM(FORMULA, data).fit(method="laplace", draws=200, random_seed=9)
        for data in (sleep, changed)
    ]
    iccs = [fit.icc()["mean"].to_numpy() for fit in fits]
    corrs = [fit.corrs["Subject"].to_numpy() for fit in fits]
    linear = [
        (fit.fitted() - fit.fitted().mean()) / fit.data["observed_data"]["y"].to_numpy().std()
        for fit in fits
    ]
    assert iccs[1] == pytest.approx(iccs[0], rel=DRAWS)
    assert corrs[1] == pytest.approx(corrs[0], abs=DRAWS)
    assert linear[1].to_numpy() == pytest.approx(linear[0].to_numpy(), abs=DRAWS)


def test_reml_does_not_mind_the_origin_of_a_random_slope(sleep):
    """The covariance of (intercept, slope) moves, the likelihood and V do not."""
    moved = sleep.assign(Days=sleep["Days"] + 1e6)
    before, after = (blm.LMM(FORMULA, data).reml() for data in (sleep, moved))
    assert after.criterion == pytest.approx(before.criterion, abs=1e-4)
    assert after.sigma == pytest.approx(before.sigma, rel=1e-6)
    assert after.fitted().to_numpy() == pytest.approx(before.fitted().to_numpy(), rel=1e-6)


def test_order_of_rows_and_names_of_levels_do_not_matter(sleep):
    rng = np.random.default_rng(1)
    shuffled = sleep.sample(frac=1.0, random_state=rng)
    renamed = shuffled.assign(Subject=shuffled["Subject"].astype(str).map(lambda s: f"s:{s}|é"))
    before, after = (blm.LMM(FORMULA, data).reml() for data in (sleep, renamed))
    assert after.criterion == pytest.approx(before.criterion, abs=1e-8)
    modes = after.ranef()["Subject"]
    original = before.ranef()["Subject"]
    expected = original.rename(index=lambda s: f"s:{s}|é").loc[modes.index]
    assert modes.to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5, abs=1e-5)
