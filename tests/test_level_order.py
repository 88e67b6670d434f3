"""Pictures show text levels in natural order, and everything else as the model has it."""

import numpy as np
import pandas as pd
import pytest

from bayeslmm import LMM
from bayeslmm.plots.common import level_order, natural_key

NATURAL = ["s1", "s2", "s10", "s11"]


@pytest.mark.parametrize(
    "ordered",
    [
        ["s1", "s2", "s10"],
        ["s1a", "s1b", "s02", "s2", "s10"],
        ["a", "a1", "a1b2", "a1b10", "b"],
        ["", "1", "9", "10", "x"],
        ["1" * 5000, "2" * 5000, "1" + "0" * 5000],
        ["v1.2.9", "v1.2.10", "v1.10.1"],
        ["2", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT TWO}"][:1],
    ],
)
def test_natural_keys(ordered):
    assert sorted(ordered[::-1], key=natural_key) == ordered


def test_natural_keys_compare_whatever_the_text():
    texts = ["1", "a", "\N{SUPERSCRIPT TWO}", "a\N{ARABIC-INDIC DIGIT TWO}", "1a1", "-2", " 3"]
    assert len(sorted(texts, key=natural_key)) == len(texts)


def model(levels, dtype=None):
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(np.array(levels, dtype=object), 4)})
    data["x"] = np.tile(np.arange(4.0), len(levels))
    data["f"] = np.tile(["d10", "d2"], 2 * len(levels))
    data["y"] = rng.standard_normal(len(data)) + 3 * np.repeat(np.arange(len(levels)), 4)
    return LMM(
        "y ~ x + f + (1 | g)", data.assign(g=data["g"].astype(dtype) if dtype else data["g"])
    )


def shown(built):
    factor = built.design.random[0]
    return [str(factor.levels[i]) for i in level_order(built.design, factor.spec)]


def test_text_numbers_and_categories():
    assert shown(model(NATURAL)) == NATURAL
    assert list(model(NATURAL).design.random[0].levels) == sorted(NATURAL)
    assert shown(model([-2, -10, 3, 20])) == ["-10", "-2", "3", "20"]
    given = ["s10", "s1", "s11", "s2"]
    assert shown(model(NATURAL, pd.CategoricalDtype(given))) == given


def test_cells_are_ordered_by_each_of_their_variables():
    data = pd.DataFrame({"a": ["a10", "a2"] * 6, "b": np.repeat(["b9", "b10", "b1"], 4)})
    data["y"] = np.random.default_rng(1).standard_normal(12)
    built = LMM("y ~ 1 + (1 | a:b)", data)
    assert shown(built) == ["a2:b1", "a2:b9", "a2:b10", "a10:b1", "a10:b9", "a10:b10"]


@pytest.fixture(scope="module")
def fits():
    built = model(NATURAL)
    post = built.fit(method="laplace", draws=50, random_seed=1)
    return post.with_posterior_predictive(random_seed=1), built.reml()


def ticks(collection, axis="y"):
    """Labels of the ticks of all panels, of those that have any."""
    plots = [plot.item() for plot in collection.viz["plot"].dataset.data_vars.values()]
    found = [e["labels"] for plot in plots for e in plot if e["function"] == f"{axis}ticks"]
    return next(labels for labels in found if labels)


def panels(collection):
    return list(collection.viz["plot"].dataset.data_vars)


@pytest.mark.slow
def test_every_picture_that_orders_levels_by_name(fits):
    post, _ = fits
    for fit in fits:
        assert ticks(fit.plot.caterpillar(order="label", backend="none")) == NATURAL[::-1]
        assert ticks(fit.plot.residuals(backend="none"), "x") == NATURAL
        assert panels(fit.plot.fitted("x", backend="none")) == NATURAL
        assert ticks(fit.plot.fitted("f", backend="none"), "x") == ["d2", "d10"]
        for which in ("G", "V", "R"):
            assert ticks(fit.plot.covariance(which, backend="none")) == NATURAL
    densities = post.plot.predictive("dist", by="g", backend="none")
    assert panels(densities) == NATURAL
    given = post.plot.predictive("dist", by=list(post.design.data["g"]), backend="none")
    assert panels(given) == NATURAL


def test_points_move_with_their_levels(fits):
    """The levels are three apart in the data: means by level rise from left to right."""
    _, reml = fits
    found = reml.plot.residuals(kind="response", backend="none").viz["level_mean"].dataset
    element = next(iter(found.data_vars.values())).item()
    residuals = (reml.design.y - reml.fitted()).groupby(reml.design.data["g"].to_numpy()).mean()
    np.testing.assert_allclose(np.reshape(element["y"], (-1, 3))[:, 0], residuals[NATURAL])
    grids = reml.plot.fitted("x", backend="none").viz["data"].dataset
    means = [np.mean(grids[name].item()["y"]) for name in NATURAL]
    np.testing.assert_allclose(means, reml.design.data.groupby("g")["y"].mean()[NATURAL])
