"""Means and contrasts on the scale of a transformed response."""

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.effects.back_transform import back_transform
from bayeslmm.formula.grammar import parse

Y = np.array([0.2, 0.5, 0.7])
NAMES = {"np": np, "y": Y, "I": lambda x: x, "asin": np.arcsin} | {
    name: getattr(np, name) for name in ("log", "log2", "log10", "log1p", "sqrt", "exp")
}

STEP = 1e-4
NUMERIC = 1e-5
"""Error of central differences with that step, relative to one plus the derivative."""

INVERTIBLE = [
    "log(y)",
    "np.log10(y)",
    "log2(y + 1)",
    "log1p(y)",
    "sqrt(y)",
    "exp(y)",
    "I(y**2)",
    "I(1/y)",
    "log(y/(1-y))",
    "I(y**(1/3))",
    "I(y**-0.5)",
    "I(2**y)",
    "asin(sqrt(y))",
    "I(-log(3*y - 0.1))",
    "np.reciprocal(y)",
]


@pytest.mark.parametrize("response", INVERTIBLE)
def test_the_way_back_is_the_inverse(response):
    back = back_transform(parse(f"{response} ~ 1").left)
    eta = eval(response, dict(NAMES))
    jet = back.jet(eta)
    np.testing.assert_allclose(jet[0], Y, rtol=1e-12)
    for order in range(3):
        up, down = back.jet(eta + STEP)[order], back.jet(eta - STEP)[order]
        gap = np.abs((up - down) / (2.0 * STEP) - jet[order + 1])
        assert (gap <= NUMERIC * (1.0 + np.abs(jet[order + 1]))).all()


@pytest.mark.parametrize("response", ["y", "I(y * y)", "I(log(y) + log(x))", "np.sin(y)"])
def test_others_have_no_way_back(response):
    assert back_transform(parse(f"{response} ~ 1").left) is None


@pytest.fixture(scope="module")
def logs():
    return blm.LMM("log(score) ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))


@pytest.fixture(scope="module")
def reml(logs):
    return logs.reml()


def test_logs_are_shown_as_the_response(reml):
    link = reml.means("Machine").table()
    shown = reml.means("Machine", type="response").table()
    np.testing.assert_allclose(shown["estimate"], np.exp(link["estimate"]))
    np.testing.assert_allclose(shown["std_error"], np.exp(link["estimate"]) * link["std_error"])
    np.testing.assert_allclose(shown["conf_low"], np.exp(link["conf_low"]))
    pd.testing.assert_series_equal(shown["p_value"], link["p_value"])
    ratios = reml.contrasts("Machine", type="response").table()
    differences = reml.contrasts("Machine").table()
    assert ratios.index.tolist() == ["A / B", "A / C", "B / C"]
    np.testing.assert_allclose(ratios["conf_high"], np.exp(differences["conf_high"]))
    np.testing.assert_allclose(
        ratios["std_error"], np.exp(differences["estimate"]) * differences["std_error"]
    )


def test_bias_correction_is_that_of_emmeans(reml):
    """inv(eta) + sigma^2 / 2 inv''(eta), its standard error by its derivative."""
    link = reml.means("Machine").table()
    shown = reml.means("Machine", type="response", bias_correct=0.2).table()
    factor = np.exp(link["estimate"]) * (1.0 + 0.2**2 / 2.0)
    np.testing.assert_allclose(shown["estimate"], factor)
    np.testing.assert_allclose(shown["std_error"], factor * link["std_error"])
    total = np.sqrt(reml.sigma**2 + reml.sds["Worker"].iloc[0] ** 2)
    by_total = reml.means("Machine", type="response", bias_correct=True).table()
    same = reml.means("Machine", type="response", bias_correct=float(total)).table()
    pd.testing.assert_frame_equal(by_total, same, rtol=1e-9)
    with pytest.raises(ValueError, match="type='response'"):
        reml.means("Machine", bias_correct=True)


def test_draws_are_exact(logs):
    post = logs.fit(method="laplace", draws=200, chains=2, random_seed=1)
    eta = post.means("Machine").draws.to_numpy()
    np.testing.assert_allclose(
        post.means("Machine", type="response").draws.to_numpy(), np.exp(eta), rtol=1e-12
    )
    joint = post._joint
    variance = joint.points.sigma**2 + joint.covariances[0][:, 0, 0]
    means = np.exp(eta.reshape(-1, 3) + variance[:, None] / 2.0)  # of a lognormal distribution
    got = post.means("Machine", type="response", bias_correct=True).draws.to_numpy()
    np.testing.assert_allclose(got.reshape(-1, 3), means, rtol=1e-9)
    differences = post.means("Machine").regrid().contrasts().draws.to_numpy().reshape(-1, 3)
    first = np.exp(eta.reshape(-1, 3))
    np.testing.assert_allclose(differences[:, 0], first[:, 0] - first[:, 1], rtol=1e-9)


def test_regrid_is_the_delta_method():
    data = blm.load_dataset("Machines")
    reml = blm.LMM("I(1 / score) ~ Machine + (1 | Worker)", data).reml()
    means = reml.means("Machine")
    link = means.table()["estimate"].to_numpy()
    slopes = -1.0 / link**2
    covariance = means.weights.to_numpy() @ reml.vcov.to_numpy() @ means.weights.to_numpy().T
    table = means.regrid().contrasts(adjust=None).table()
    gradient = np.array([slopes[0], -slopes[1], 0.0])
    assert table["estimate"].iloc[0] == pytest.approx(1.0 / link[0] - 1.0 / link[1])
    assert table["std_error"].iloc[0] == pytest.approx(np.sqrt(gradient @ covariance @ gradient))
    shown = reml.means("Machine", type="response").table()
    assert (shown["conf_low"] < shown["estimate"]).all()
    assert (shown["estimate"] < shown["conf_high"]).all()  # the way back falls
    assert "see regrid()" in repr(reml.contrasts("Machine", type="response"))


def test_odds_ratios():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"f": np.tile(["a", "b"], 40), "g": np.repeat(np.arange(8), 10)})
    frame["p"] = 1.0 / (1.0 + np.exp(-rng.normal(size=80) - (frame["f"] == "b")))
    reml = blm.LMM("log(p / (1 - p)) ~ f + (1 | g)", frame).reml()
    link = reml.means("f").table()["estimate"]
    shown = reml.means("f", type="response").table()["estimate"]
    np.testing.assert_allclose(shown, 1.0 / (1.0 + np.exp(-link)))
    ratio = reml.contrasts("f", type="response").table()["estimate"].iloc[0]
    assert ratio == pytest.approx(np.exp(link.iloc[0] - link.iloc[1]))


def test_untransformed_responses_have_no_other_scale():
    reml = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines")).reml()
    with pytest.raises(ValueError, match="known inverse"):
        reml.means("Machine", type="response")


def test_bounds_and_nulls_are_on_the_scale_shown():
    reml = blm.LMM("log(score) ~ Machine + (1 | Worker)", blm.load_dataset("Machines")).reml()
    plain, ratios = reml.contrasts("Machine"), reml.contrasts("Machine", type="response")
    expected = plain.equivalence((np.log(0.8), np.log(1.25)))
    found = ratios.equivalence((0.8, 1.25))
    np.testing.assert_allclose(found["p_value"], expected["p_value"])
    np.testing.assert_allclose(found["conf_low"], np.exp(expected["conf_low"]))
    np.testing.assert_allclose(ratios.table(null=1)["p_value"], plain.table()["p_value"])
    means = reml.means("Machine", type="response").table(null=50)["statistic"]
    np.testing.assert_allclose(means, reml.means("Machine").table(null=np.log(50))["statistic"])
    with pytest.raises(ValueError, match="range"):
        ratios.table(null=-1)
    with pytest.raises(ValueError, match="range"):
        ratios.equivalence(0.2)


def test_contrasts_within_an_interacting_variable_have_no_note_of_it():
    data = blm.load_dataset("Machines").assign(x=lambda d: np.arange(len(d)) % 5.0)
    data["g"] = np.where(np.arange(len(data)) % 2, "a", "b")
    reml = blm.LMM("score ~ g + x * Machine + (1 | Worker)", data).reml()
    assert not any("mislead" in n for n in reml.contrasts("g", by="Machine").notes)
    assert any("mislead" in n for n in reml.contrasts("Machine", by="g").notes)


def test_effect_sizes_refuse_known_sampling_errors():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"s": np.arange(12), "g": ["a", "b"] * 6, "y": rng.normal(size=12)})
    data["se"] = 0.5
    reml = blm.LMM("y ~ g + (1 | s)", data, residual="se(se)").reml()
    with pytest.raises(ValueError, match="give a number"):
        reml.means("g").effect_sizes("total", edf=10)
    assert len(reml.means("g").effect_sizes(1.0, edf=10)) == 1
