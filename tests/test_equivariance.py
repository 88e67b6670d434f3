"""Inferences do not depend on units and origins: modes and posteriors move with the data."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from slow_cases import one_in, slow

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


@pytest.fixture(scope="module")
def unchanged(sleep):
    model = blm.LMM(FORMULA, sleep)
    return {method: getattr(model, method)() for method in ("reml", "ml", "map")}


@pytest.fixture(scope="module")
def unchanged_draws(sleep):
    return blm.LMM(FORMULA, sleep).fit(method="laplace", draws=200, random_seed=9)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("method", ["reml", "ml", "map"])
def test_estimates_move_with_the_data(sleep, unchanged, change, method):
    changed = CHANGES[change](sleep)
    before = unchanged[method]
    after = getattr(blm.LMM(FORMULA, changed), method)()
    assert after.converged
    assert shares(after, changed) == pytest.approx(shares(before, sleep), rel=MODE, abs=MODE)


@pytest.mark.parametrize("change", CHANGES)
def test_posteriors_move_with_the_data(sleep, unchanged_draws, change):
    moved = blm.LMM(FORMULA, CHANGES[change](sleep))
    fits = [unchanged_draws, moved.fit(method="laplace", draws=200, random_seed=9)]
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


# --- default priors speak about the linear predictor ---------------------------------------------

# Modes: two searches polished by Newton steps, compared through the covariance matrix of the data.
SAME_MODE = 1e-6
# G of coefficients at an origin 2000 units away has entries of 1e12, which cancel in V = ZGZ' + R.
CANCELLED = 1e-4
# Four standard errors of the mean of 4 x 500 draws whose spread is half their size. Mostly the
# draws are the same to many digits; rounding in the columns can change which proposals are taken.
SAME_DRAWS = 0.05
EVIDENCE = 0.01

QUADRATIC = "Reaction ~ Days + I(Days**2) + (Days + I(Days**2) | Subject)"
INTERACTION = "distance ~ age * Sex + (age | Subject)"


def moved(name, column, change):
    def data():
        frame = blm.load_dataset(name)
        return frame.assign(**{column: change(frame[column])})

    return data


@cache
def plain(name):
    """The same function each time, so that fits of it are known again."""
    return lambda: blm.load_dataset(name)


SHIFTS = {
    "+ 2000": lambda x: x + 2000.0,
    "- 7e5": lambda x: x - 7e5,
    "* 1e-4": lambda x: 1e-4 * x,
    "* 1e4": lambda x: 1e4 * x,
}
SAME_MODELS = {
    **{
        f"sleepstudy {words}": (
            ("Reaction ~ Days + (Days | Subject)", plain("sleepstudy")),
            ("Reaction ~ Days + (Days | Subject)", moved("sleepstudy", "Days", change)),
        )
        for words, change in SHIFTS.items()
    },
    **{
        f"Orthodont {words}": (
            (INTERACTION, plain("Orthodont")),
            (INTERACTION, moved("Orthodont", "age", change)),
        )
        for words, change in SHIFTS.items()
    },
    **{
        f"quadratic {words}": (
            (QUADRATIC, plain("sleepstudy")),
            (QUADRATIC, moved("sleepstudy", "Days", SHIFTS[words])),
        )
        for words in ("+ 2000", "* 1e-4", "* 1e4")
    },
    "orthogonal polynomials": (
        (QUADRATIC, plain("sleepstudy")),
        ("Reaction ~ poly(Days, 2) + (poly(Days, 2) | Subject)", plain("sleepstudy")),
    ),
    **{
        f"Machines {words}": (
            ("score ~ Machine + (0 + Machine | Worker)", plain("Machines")),
            (f"score ~ {fixed} + (0 + Machine | Worker)", plain("Machines")),
        )
        for words, fixed in {
            "sum": "C(Machine, contr.sum)",
            "Helmert": "C(Machine, contr.helmert)",
            "cell means": "0 + Machine",
        }.items()
    },
    "response in other units": (
        (INTERACTION, plain("Orthodont")),
        (INTERACTION, moved("Orthodont", "distance", lambda y: 7.0 + y)),
    ),
}


@cache
def mode(formula, data):
    return blm.LMM(formula, data()).map()


@cache
def drawn(formula, data):
    return blm.LMM(formula, data()).fit(draws=500, random_seed=4)


SLOW_MODELS = [name for name in SAME_MODELS if name.startswith(("quadratic", "orthogonal", "Mach"))]


@pytest.mark.parametrize("name", one_in(2, SAME_MODELS))
def test_modes_under_default_priors_are_the_same(name):
    one, other = (mode(formula, data) for formula, data in SAME_MODELS[name])
    scale = one.V().to_numpy().max()
    same = CANCELLED if name == "quadratic + 2000" else SAME_MODE
    np.testing.assert_allclose(
        other.V().to_numpy(), one.V().to_numpy(), rtol=same, atol=same * scale
    )
    assert other.sigma == pytest.approx(one.sigma, rel=SAME_MODE)
    fitted = [fit.residuals().to_numpy() for fit in (one, other)]
    np.testing.assert_allclose(fitted[1], fitted[0], atol=SAME_MODE * np.sqrt(scale))


@pytest.mark.parametrize(
    "name",
    [
        *one_in(2, (name for name in SAME_MODELS if name not in SLOW_MODELS)),
        *map(slow, SLOW_MODELS),
    ],
)
def test_posteriors_under_default_priors_are_the_same(name):
    one, other = (drawn(formula, data) for formula, data in SAME_MODELS[name])
    scale = one.V().to_numpy().max()
    np.testing.assert_allclose(
        other.V().to_numpy(), one.V().to_numpy(), rtol=SAME_DRAWS, atol=SAME_DRAWS * scale
    )
    fitted = [post.residuals().to_numpy() for post in (one, other)]
    np.testing.assert_allclose(fitted[1], fitted[0], atol=SAME_DRAWS * np.sqrt(scale))
    assert other.log_evidence.value == pytest.approx(one.log_evidence.value, abs=EVIDENCE)


# Days and their square 7e5 days away from the origin have a condition number of 3e11: in double
# precision the columns of the working basis are off by up to 6e-5.
FAR = 1e-4


@pytest.mark.slow
def test_a_square_far_from_its_origin(caplog):
    """The columns of Z are nearly dependent, but not counted as such."""
    one, other = (
        blm.LMM(QUADRATIC, data())
        for data in (plain("sleepstudy"), moved("sleepstudy", "Days", SHIFTS["- 7e5"]))
    )
    assert other.reml().criterion == pytest.approx(one.reml().criterion, abs=FAR)
    assert "REML did not converge" not in caplog.text
    for method in ("reml", "map"):
        a, b = (getattr(model, method)() for model in (one, other))
        assert b.sigma == pytest.approx(a.sigma, rel=FAR)
        np.testing.assert_allclose(b.residuals(), a.residuals(), atol=FAR * a.sigma)
    a, b = (model.fit(draws=500, random_seed=4) for model in (one, other))
    assert b.log_evidence.value == pytest.approx(a.log_evidence.value, abs=EVIDENCE)


def test_an_origin_far_away_leaves_the_interaction_to_the_data():
    data = blm.load_dataset("Orthodont")
    year = blm.LMM(INTERACTION, data.assign(age=data["age"] + 2000))
    interaction = "age:Sex[T.Female]"
    reml, mode = year.reml(), year.map()
    error = reml.summary().loc[f"beta[{interaction}]", "std_error"]
    assert mode.beta[interaction] == pytest.approx(reml.beta[interaction], abs=0.05 * error)
