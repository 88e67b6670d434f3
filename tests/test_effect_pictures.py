"""Pictures of means, contrasts, slopes, comparisons, predictions and forests: what is drawn equals
the tables of the fit."""

from itertools import pairwise

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pytest
from slow_cases import one_in
from test_beyond_memory import batches

from bayeslmm import LMM, load_dataset
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import _legend_columns
from bayeslmm.plots.forest import _even_ticks, _ratio_ticks

EXACT = 1e-10
"""The same numbers by another route."""

ONLY = " "
"""The panel of a picture of one."""


@pytest.fixture(scope="module")
def orthodont():
    model = LMM("distance ~ age * Sex + (age | Subject)", load_dataset("Orthodont"))
    return {"post": model.fit(draws=250, random_seed=1), "reml": model.reml()}


@pytest.fixture(scope="module")
def machines():
    model = LMM("score ~ Machine + (1 | Worker)", load_dataset("Machines"))
    return {"post": model.fit(draws=250, random_seed=1), "reml": model.reml()}


def hostile():
    """Three crossed factors without one of their cells, weights and an offset."""
    rng = np.random.default_rng(1)
    n = 240
    frame = pd.DataFrame(
        {
            "a": np.tile(["no", "yes"], n // 2),
            "b": rng.choice(["u", "v", "w"], n),
            "c": pd.Categorical(rng.choice(["low", "mid", "top"], n), ["low", "mid", "top"]),
            "x": rng.normal(10, 2, n),
            "o": rng.normal(size=n),
            "w": rng.uniform(0.5, 2, n),
            "g": np.repeat(np.arange(24), 10),
        }
    )
    frame["c"] = frame["c"].cat.as_ordered()
    frame["y"] = np.exp(0.1 * frame["x"] + 0.3 * rng.normal(size=n))
    lost = (frame["a"] == "no") & (frame["b"] == "v") & (frame["c"] == "mid")
    return frame[~lost]


@pytest.fixture(scope="module")
def crossed():
    model = LMM("log(y) ~ a * b * c + x + offset(o) + (1 | g)", hostile(), weights="w")
    return {"post": model.fit(draws=100, random_seed=1), "reml": model.reml()}


RATIOS = """-0.8893 -1.5854 -1.3481 -1.4416 -0.2175 -0.7861 -1.6209
    0.0120 -0.4694 -1.3713 -0.3394 0.4459 -0.0173"""
VARIANCES = """0.3256 0.1946 0.4154 0.0200 0.0512 0.0069 0.2230
    0.0040 0.0564 0.0730 0.0124 0.5325 0.0714"""


def bcg():
    """Trials of a vaccine: see docs/how_to/meta_analysis.md."""
    frame = pd.DataFrame(
        {
            "trial": [f"T{i}" for i in range(1, 14)],
            "latitude": [44, 55, 42, 52, 13, 44, 19, 13, 27, 42, 18, 33, 33],
            "y": [float(y) for y in RATIOS.split()],
            "v": [float(v) for v in VARIANCES.split()],
        }
    )
    return frame.assign(se=np.sqrt(frame["v"]))


@pytest.fixture(scope="module")
def trials():
    model = LMM("y ~ 1 + (1 | trial)", bcg(), residual="se(se)")
    return {"post": model.fit(draws=250, random_seed=1), "reml": model.reml()}


@pytest.fixture
def canvas():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def drawn(collection, visual, panel=ONLY, **place):
    """What a visual was drawn with in a panel, of the first series where none is given."""
    data = collection.viz[visual].dataset[panel]
    where = {name: place.get(name, 0) for name in data.dims}
    return data.isel(where).item()


def pieces(element, axis):
    """Both ends (m, 2) of line pieces on an axis."""
    values = np.reshape(element[axis], (-1, 3))[:, :2]
    return values[np.isfinite(values).all(axis=1)]


def bounds(table):
    low, high = (
        next(c for c in table if str(c).endswith(end))
        for end in (("conf_low", "_lb"), ("conf_high", "_ub"))
    )
    return table[[low, high]].to_numpy()


def centre(table):
    return table["estimate" if "estimate" in table else "mean"].to_numpy()


def legend(collection):
    return [text.replace("\xa0", " ") for text in collection.viz["legend/entries"].item()["labels"]]


def title(collection):
    return collection.viz["figure_title"].item()["string"]


def check_points(collection, table, narrow, value, panel=ONLY, **place):
    """Points and both intervals are those of two tables."""
    point = drawn(collection, "point", panel, **place)[value]
    np.testing.assert_allclose(point[np.isfinite(point)], centre(table), rtol=EXACT)
    for visual, rows in (("interval", table), ("inner_interval", narrow)):
        ends = pieces(drawn(collection, visual, panel, **place), value)
        np.testing.assert_allclose(ends, bounds(rows), rtol=EXACT)


# --- means -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["post", "reml"])
def test_means_are_those_of_the_table(machines, which):
    fit = machines[which]
    coverage = {"prob": 0.8} if which == "post" else {"level": 0.8}
    collection = fit.plot.means("Machine", backend="none", **coverage)
    means = fit.means("Machine")
    check_points(collection, means.table(0.8), means.table(0.5), "y")
    np.testing.assert_array_equal(drawn(collection, "point")["x"], [0.0, 1.0, 2.0])
    assert "joined" not in collection.viz.children
    said = {"post": "posterior mean, 50 % and 80 % ETI, density"}
    expected = said.get(which, "REML estimate, 50 % and 80 % confidence intervals")
    assert legend(collection) == [expected, "data"]
    assert title(collection) == "Marginal means of Machine"


def test_the_level_is_that_of_arviz(machines):
    with az.rc_context({"stats.ci_prob": 0.7}):
        for fit in machines.values():
            assert "70 %" in legend(fit.plot.means("Machine", backend="none"))[0]


def test_data_are_beside_the_means_of_their_levels(machines):
    reml = machines["reml"]
    dots = drawn(reml.plot.means("Machine", backend="none"), "data")
    frame = load_dataset("Machines")
    place = np.ceil(dots["x"] - 0.001)
    for i, machine in enumerate("ABC"):
        own = np.sort(frame.loc[frame["Machine"] == machine, "score"])
        np.testing.assert_allclose(np.sort(dots["y"][place == i]), own)
    assert (place - dots["x"] < 0.45).all()
    collection = reml.plot.means("Machine", data=False, backend="none")
    assert "data" not in collection.viz.children
    assert legend(collection)[-1] != "data"


def test_densities_of_draws_rise_from_their_means(machines):
    post = machines["post"]
    collection = post.plot.means("Machine", backend="none")
    draws = post.means("Machine").draws.to_numpy().reshape(-1, 3)
    for k in range(3):
        region = drawn(collection, "density", place=k)
        assert k < np.min(region["x"]) < np.max(region["x"]) < k + 0.5
        low, high = region["y_bottom"][0], region["y_top"][0]
        assert np.mean((draws[:, k] > low) & (draws[:, k] < high)) > 0.98
        assert (np.diff(region["y_bottom"]) >= 0).all() and (np.diff(region["y_top"]) <= 0).all()
    points = drawn(post.plot.means("Machine", draws="points", backend="none"), "draw_points")
    assert set(points["y"]) <= set(draws.ravel())
    assert len(points["x"]) == 150


def test_interaction_plots_dodge_and_join(orthodont):
    fit, at = orthodont["post"], {"age": [8, 10, 12, 14]}
    collection = fit.plot.means("age", by="Sex", at=at, backend="none")
    means = fit.means("age", by="Sex", at=at)
    table = means.table().reset_index()
    ages = []
    for s, sex in enumerate(["Male", "Female"]):
        own, narrow = (t.reset_index() for t in (table, means.table(0.5)))
        check_points(
            collection, own[own["Sex"] == sex], narrow[narrow["Sex"] == sex], "y", series=s
        )
        ages.append(drawn(collection, "point", series=s)["x"])
        np.testing.assert_array_equal(drawn(collection, "joined", series=s)["x"], ages[-1])
    np.testing.assert_allclose(np.mean(ages, axis=0), at["age"])
    assert (ages[0] < ages[1]).all() and np.ptp(ages[1] - ages[0]) < 1e-12
    assert legend(collection)[:2] == ["Sex: Male", "Sex: Female"]
    lines = drawn(collection, "draws", series=1)
    values = means.draws.to_numpy().reshape(-1, 8)[:, 4:]
    shown = np.reshape(lines["y"], (50, 5))[:, :4]
    assert np.isclose(shown[:, None], values).all(axis=2).any(axis=1).all()
    markers = [drawn(collection, "point", series=s)["marker"] for s in (0, 1)]
    assert markers[0] != markers[1]


def test_lines_join_where_asked(machines):
    joined = machines["reml"].plot.means("Machine", lines=True, backend="none")
    np.testing.assert_array_equal(drawn(joined, "joined")["x"], [0.0, 1.0, 2.0])


@pytest.mark.parametrize("which", ["post", "reml"])
def test_three_factors_with_an_empty_cell(crossed, which):
    fit = crossed[which]
    collection = fit.plot.means("c", by=["a", "b"], backend="none")
    means = fit.means("c", by=["a", "b"])
    assert list(collection.viz["plot"].dataset.data_vars) == ["b: u", "b: v", "b: w"]
    table, narrow = (means.table(p).reset_index() for p in (az.rcParams["stats.ci_prob"], 0.5))
    for b in "uvw":
        for s, a in enumerate(["no", "yes"]):
            own = (table["a"] == a) & (table["b"] == b) & table.iloc[:, 3].notna()
            check_points(collection, table[own], narrow[own], "y", f"b: {b}", series=s)
    assert title(collection) == "Marginal means of c x a x b; 1 of 18 cannot be estimated"
    assert "joined" in collection.viz.children  # c is in an order
    plot = collection.viz["plot"].dataset["b: u"].item()
    assert next(e["labels"] for e in plot if e["function"] == "xticks") == ["low", "mid", "top"]


def test_the_response_is_that_of_the_model(crossed):
    collection = crossed["reml"].plot.means("c", at={"a": "no"}, backend="none")
    plot = collection.viz["plot"].dataset[ONLY].item()
    assert any(e.get("string") == "log(y)" for e in plot)
    frame = hostile()
    own = np.sort(np.log(frame.loc[frame["a"] == "no", "y"]))
    np.testing.assert_allclose(np.sort(drawn(collection, "data")["y"]), own)


def test_means_on_the_scale_of_the_response():
    frame = load_dataset("Machines")
    reml = LMM("log(score) ~ Machine + (1 | Worker)", frame).reml()
    collection = reml.plot.means("Machine", type="response", level=0.9, backend="none")
    means = reml.means("Machine", type="response")
    check_points(collection, means.table(0.9), means.table(0.5), "y")
    np.testing.assert_allclose(np.sort(drawn(collection, "data")["y"]), np.sort(frame["score"]))
    ratios = reml.plot.contrasts("Machine", type="response", backend="none")
    table = reml.contrasts("Machine", type="response").table()
    np.testing.assert_allclose(drawn(ratios, "point")["x"], table["estimate"], rtol=EXACT)
    assert drawn(ratios, "zero")["x"] == 1.0
    plot = ratios.viz["plot"].dataset[ONLY].item()
    assert any(e.get("string") == "ratio of score" for e in plot)


def test_nothing_to_estimate(crossed):
    collection = crossed["reml"].plot.means("b", at={"a": "no", "c": "mid"}, backend="none")
    assert "1 of 3 cannot be estimated" in title(collection)
    assert np.isfinite(drawn(collection, "point")["y"]).tolist() == [True, False, True]


def many_levels():
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"f": [f"s{i}" for i in np.tile(np.arange(60), 5)]})
    frame["h"], frame["g"] = np.tile(list("ab"), 150), np.repeat(np.arange(15), 20)
    return frame.assign(y=rng.normal(size=300))


def test_sixty_levels_lie_above_each_other_in_natural_order(canvas, tmp_path):
    reml = LMM("y ~ f + (1 | g)", many_levels()).reml()
    collection = reml.plot.means("f", backend="none")
    table = reml.means("f").table()
    order = [f"s{i}" for i in range(60)]
    point = drawn(collection, "point")
    np.testing.assert_allclose(point["x"], table.loc[order, "estimate"], rtol=EXACT)
    np.testing.assert_array_equal(point["y"], np.arange(60)[::-1])
    with pytest.raises(DataError, match="f has 60 values; a picture has at most 24 panels"):
        LMM("y ~ h * f + (1 | g)", many_levels()).reml().plot.means("h", by="f", backend="none")
    picture = reml.plot.means("f", backend="matplotlib")
    assert_legible(picture, tmp_path)


# --- contrasts, comparisons and slopes -------------------------------------------------


@pytest.mark.parametrize("which", ["post", "reml"])
def test_contrasts_are_those_of_the_table(machines, which):
    fit = machines[which]
    collection = fit.plot.contrasts("Machine", backend="none")
    found = fit.contrasts("Machine")
    prob = az.rcParams["stats.ci_prob"]
    check_points(collection, found.table(prob), found.table(0.5), "x")
    np.testing.assert_array_equal(drawn(collection, "point")["y"], [2.0, 1.0, 0.0])
    assert drawn(collection, "zero")["x"] == 0.0
    assert ("tukey" in legend(collection)[0]) == (which == "reml")
    plain = machines["reml"].plot.contrasts("Machine", "reference", adjust=None, backend="none")
    ends = pieces(drawn(plain, "interval"), "x")
    table = machines["reml"].contrasts("Machine", "reference", adjust=None).table(prob)
    np.testing.assert_allclose(ends, bounds(table), rtol=EXACT)


def test_contrasts_within_groups(crossed):
    found = crossed["reml"].contrasts("c", by=["a", "b"], adjust=None)
    collection = crossed["reml"].plot.contrasts("c", by=["a", "b"], adjust=None, backend="none")
    table = found.table().reset_index()
    own = table[(table["a"] == "yes") & (table["b"] == "w")]
    point = drawn(collection, "point", "b: w", series=1)
    np.testing.assert_allclose(point["x"], own["estimate"], rtol=EXACT)
    assert "2 of 18 cannot be estimated" in title(collection)


@pytest.mark.parametrize("which", ["post", "reml"])
def test_comparisons_and_slopes_are_those_of_the_tables(orthodont, which):
    fit, prob = orthodont[which], az.rcParams["stats.ci_prob"]
    collection = fit.plot.slopes("age", by="Sex", backend="none")
    found = fit.slopes("age", by="Sex")
    check_points(collection, found.table(prob), found.table(0.5), "x")
    collection = fit.plot.comparisons("age", (8, 14), by="Sex", backend="none")
    found = fit.comparisons("age", (8, 14), by="Sex").table(prob)
    for s in (0, 1):
        point = drawn(collection, "point", series=s)["x"]
        np.testing.assert_allclose(point, centre(found)[[s]], rtol=EXACT)


def test_conditional_slopes(crossed):
    frame = hostile().assign(z=lambda d: d["x"] ** 2 / 20 - 3)
    reml = LMM("y ~ x * z + a + (1 | g)", frame).reml()
    collection = reml.plot.slopes("x", along="z", level=0.9, backend="none")
    curve = drawn(collection, "curve")
    at = {"z": list(curve["x"])}
    table = reml.slopes("x", by="z", at=at).table(0.9)
    np.testing.assert_allclose(curve["y"], table["estimate"], rtol=EXACT)
    band = drawn(collection, "band")
    ends = np.column_stack([band["y_bottom"], band["y_top"]])
    np.testing.assert_allclose(ends, bounds(table), rtol=EXACT)
    assert (min(at["z"]), max(at["z"])) == (frame["z"].min(), frame["z"].max())
    factors = crossed["reml"].plot.slopes("x", along="c", by="a", backend="none")
    assert factors.viz["point"].sizes["series"] == 2


# --- predictions -----------------------------------------------------------------------


@pytest.mark.parametrize("which", ["post", "reml"])
def test_predictions_are_means_along_a_grid(orthodont, which):
    fit, prob = orthodont[which], az.rcParams["stats.ci_prob"]
    collection = fit.plot.predictions("age", by="Sex", backend="none")
    ages = drawn(collection, "curve")["x"]
    assert (len(ages), min(ages), max(ages)) == (40, 8.0, 14.0)
    means = fit.means("age", by="Sex", at={"age": list(ages)})
    wide, narrow = (means.table(p).reset_index() for p in (prob, 0.5))
    for s, sex in enumerate(["Male", "Female"]):
        rows = wide["Sex"] == sex
        curve = drawn(collection, "curve", series=s)
        np.testing.assert_allclose(curve["y"], centre(wide[rows]), rtol=EXACT)
        for visual, table in (("band", wide), ("inner_band", narrow)):
            band = drawn(collection, visual, series=s)
            ends = np.column_stack([band["y_bottom"], band["y_top"]])
            np.testing.assert_allclose(ends, bounds(table[rows]), rtol=EXACT)
        dots = drawn(collection, "data", series=s)
        frame = load_dataset("Orthodont").query("Sex == @sex")
        assert sorted(zip(*(dots[c][np.isfinite(dots["x"])] for c in "xy"), strict=True)) == sorted(
            zip(frame["age"].astype(float), frame["distance"], strict=True)
        )


@pytest.mark.parametrize("kind", ["response", "epred"])
def test_bounds_of_new_levels(orthodont, kind):
    """As exact as quantiles of a thousand draws: 0.2 is five errors of a tail of 5.5 %."""
    model = orthodont["reml"].model
    reml = orthodont["reml"]
    collection = reml.plot.predictions(
        "age", by="Sex", kind=kind, target="population", level=0.89, backend="none"
    )
    line = drawn(collection, "wider_band", series=1)
    low, high = line["y"][:40], line["y"][41:]
    new = pd.DataFrame({"age": line["x"][:40], "Sex": "Female"})
    table = reml.predict(
        new, target="population", kind=kind, uncertainty="plugin", draws=8000, level=0.89,
        random_seed=1,
    )  # fmt: skip
    spread = (table["conf_high"] - table["conf_low"]).to_numpy()
    assert np.all(np.abs(low - table["conf_low"]) < 0.2 * spread)
    assert np.all(np.abs(high - low - spread) < 0.2 * spread)
    assert np.all(np.abs(np.diff(low, 2)) < 0.04 * spread[1:-1])  # smooth: one level along x
    words = {"response": "responses", "epred": "means"}[kind]
    assert legend(collection)[-1] == f"{words} of new levels: 89 % interval"
    assert model.design.random


def test_bounds_are_pooled_over_factors_and_have_the_offset_of_means(crossed):
    """Of a posterior, where pooled quantiles are those of the same draws at each cell."""
    frame = hostile()
    model = LMM("y ~ x + b + offset(log(w)) + (1 | g)", frame)
    post = model.fit(draws=250, random_seed=1)
    collection = post.plot.predictions("x", kind="response", prob=0.8, backend="none")
    line, curve = drawn(collection, "wider_band"), drawn(collection, "curve")
    low, high = line["y"][:40], line["y"][41:]
    middle = (low + high) / 2 - curve["y"]
    sd = np.sqrt(post.sigma**2 + post.sds["g"]["Intercept"] ** 2)
    assert np.all(np.abs(middle) < 0.3 * sd)
    assert np.all((high - low > 2 * sd) & (high - low < 3.4 * sd))  # 2.56 sd and what b adds


def test_numbers_told_apart_have_three_values(crossed):
    fit = LMM("y ~ a * x + (1 | g)", hostile()).reml()
    collection = fit.plot.predictions("a", by="x", backend="none")
    x = hostile()["x"]
    shown = [float(text.removeprefix("x: ")) for text in legend(collection)[:3]]
    np.testing.assert_allclose(shown, x.mean() + x.std() * np.array([-1, 0, 1]), atol=0.01)
    near = np.abs(x.to_numpy()[:, None] - shown).argmin(axis=1)
    for s in range(3):
        own = drawn(collection, "data", series=s)["y"]
        np.testing.assert_allclose(
            np.sort(own[np.isfinite(own)]), np.sort(hostile()["y"][near == s])
        )


def test_a_panel_per_term(crossed):
    collection = (
        LMM("y ~ a * x + b + c + (1 | g)", hostile()).reml().plot.predictions(backend="none")
    )
    panels = list(collection.viz["plot"].dataset.data_vars)
    assert [name.strip() for name in panels] == ["x x a", "b", "c"]
    assert legend(collection)[:2] == ["a: no", "a: yes"]
    axes = [
        next(e["string"] for e in plot.item() if e["function"] == "xlabel")
        for plot in collection.viz["plot"].dataset.data_vars.values()
    ]
    assert axes == ["x", "b", "c"]


def test_predictions_of_a_model_without_random_effects():
    fit = LMM("y ~ x", hostile()).reml()
    collection = fit.plot.predictions(kind="response", backend="none")
    assert legend(collection)[-1].startswith("new responses: ")


def test_draws_behind_curves(orthodont):
    collection = orthodont["post"].plot.predictions("age", draws=True, backend="none")
    assert len(drawn(collection, "draws")["x"]) == 50 * 41
    assert legend(collection)[0].endswith("ETI, draws")


@pytest.mark.parametrize(
    ("ages", "solid", "dotted"),
    [
        (np.linspace(4, 20, 9), (8.0, 14.0), (4.0, 20.0)),
        (np.linspace(9.5, 20, 4), (9.5, 14.0), (14.0, 20.0)),
        ([0.0, 30.0], (8.0, 14.0), (0.0, 30.0)),
        ([20.0, 25.0, 30.0], None, (20.0, 30.0)),
    ],
)
def test_curves_are_dotted_beyond_the_data(orthodont, ages, solid, dotted):
    reml = orthodont["reml"]
    collection = reml.plot.predictions("age", by="Sex", at={"age": list(ages)}, backend="none")
    assert "beyond the data" in legend(collection)
    table = reml.means("age", by="Sex", at={"age": [0.0, 30.0]}).table().reset_index()
    for s, sex in enumerate(["Male", "Female"]):
        line = table[table["Sex"] == sex]
        for visual, ends in (("curve", solid), ("beyond", dotted)):
            if ends is None:
                assert visual not in collection.viz
                continue
            xy = drawn(collection, visual, series=s)
            shown = np.isfinite(xy["y"])
            x, y = xy["x"][shown], xy["y"][shown]
            assert (x.min(), x.max()) == ends
            np.testing.assert_allclose(y, np.interp(x, line["age"], centre(line)), rtol=EXACT)
            inside = (x > 8.0) & (x < 14.0)
            assert not inside.any() or visual == "curve"


def test_curves_within_the_data_are_whole(orthodont):
    collection = orthodont["reml"].plot.predictions("age", by="Sex", backend="none")
    assert "beyond" not in collection.viz
    assert "beyond the data" not in legend(collection)


# --- forests ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["post", "reml"])
def test_forest(trials, which):
    fit, frame = trials[which], bcg()
    collection = fit.plot.forest(backend="none", **{"prob" if which == "post" else "level": 0.9})
    panel = "studies "
    np.testing.assert_allclose(drawn(collection, "observed", panel)["x"], frame["y"], rtol=EXACT)
    ends = pieces(drawn(collection, "observed_interval", panel), "x")
    half = 1.6448536 * frame["se"]
    expected = np.column_stack([frame["y"] - half, frame["y"] + half])
    np.testing.assert_allclose(ends, expected, rtol=1e-6)
    options = {"level": 0.9, "random_seed": 0} if which == "reml" else {"prob": 0.9}
    table = fit.predict(kind="epred", **options)
    np.testing.assert_allclose(drawn(collection, "point", panel)["x"], centre(table), rtol=EXACT)
    ends = pieces(drawn(collection, "interval", panel), "x")
    np.testing.assert_allclose(ends, bounds(table), rtol=EXACT)
    corners = drawn(collection, "mean", panel)["x"]
    mean = fit.means().table(0.9)
    np.testing.assert_allclose(corners[[0, 2]], bounds(mean)[0], rtol=EXACT)
    assert corners[1] == pytest.approx(centre(mean)[0])
    new = pieces(drawn(collection, "new", panel), "x")
    options = {"random_seed": 0} if which == "post" else {}
    table = fit.heterogeneity(0.9, **options).prediction.rename(
        columns={"pred_low": "conf_low", "pred_high": "conf_high"}
    )
    np.testing.assert_allclose(new, bounds(table), rtol=EXACT)
    sizes = drawn(collection, "observed", panel)["size"]
    assert np.argmax(sizes) == frame["se"].argmin()


def test_forest_in_order(trials):
    def labels(**options):
        collection = trials["reml"].plot.forest(backend="none", **options)
        plot = collection.viz["plot"].dataset["studies "].item()
        return next(e["labels"] for e in plot if e["function"] == "yticks")

    natural = [f"T{i}" for i in range(1, 14)]
    assert labels() == labels(order="label") == [*natural, "mean", "new trial"]
    by_effect = bcg().sort_values("y")["trial"].tolist()
    assert labels(order="estimate")[:13] == by_effect
    with pytest.raises(ValueError, match="order='size': one of 'data', 'label', 'estimate'"):
        labels(order="size")


def test_forest_of_ratios_and_of_a_common_effect(trials):
    collection = trials["reml"].plot.forest(exp=True, backend="none")
    plot = collection.viz["plot"].dataset["studies "].item()
    texts = [e["string"] for e in plot if e["function"] == "text"]
    assert texts[0] == "0.41 [0.17, 1.02]"
    ticks = next(e for e in plot if e["function"] == "xticks")
    np.testing.assert_allclose(np.exp(ticks["ticks"]), [float(t) for t in ticks["labels"]])
    common = LMM("y ~ 1", bcg(), residual="se(se)").reml().plot.forest(backend="none")
    assert not {"point", "new"} & set(common.viz.children)


def test_forest_of_several_estimates_per_study():
    frame = bcg().assign(lab=np.repeat(list("abcd"), [4, 3, 3, 3]))
    frame.index = pd.Index(np.arange(13) + 100)
    reml = LMM("y ~ latitude + (1 | lab)", frame, residual="se(se)").reml()
    collection = reml.plot.forest(order="label", backend="none")
    plot = collection.viz["plot"].dataset["studies "].item()
    labels = next(e["labels"] for e in plot if e["function"] == "yticks")
    assert labels[:2] == ["a (100)", "a (101)"] and labels[-1] == "new lab"
    mean = drawn(collection, "mean", "studies ")["x"][1]
    assert mean == pytest.approx(reml.means().table()["estimate"].iloc[0])
    new = pieces(drawn(collection, "new", "studies "), "x")[0]
    at = {"latitude": [frame["latitude"].mean()]}
    table = reml.heterogeneity(az.rcParams["stats.ci_prob"], at=at).prediction
    np.testing.assert_allclose(new, table[["pred_low", "pred_high"]].iloc[0], rtol=EXACT)
    frame["f"] = np.tile(["x", "y"], 7)[:13]
    factor = LMM("y ~ f + (1 | trial)", frame, residual="se(se)").reml()
    assert np.ptp(pieces(drawn(factor.plot.forest(backend="none"), "new", "studies "), "x")) > 1


def test_ticks():
    assert _ratio_ticks((np.log(0.09), np.log(5.2))).tolist() == [0.1, 0.2, 0.5, 1, 2, 5]
    assert len(_ratio_ticks((np.log(0.9), np.log(1.3)))) >= 3
    assert _even_ticks((-1.1, 2.3)).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]
    assert _legend_columns(["a" * 20, "b" * 20, "c" * 20], 60) == 2


# --- what is refused, and data beyond memory -------------------------------------------


def test_pictures_refuse(orthodont, machines, trials):
    reml, post = orthodont["reml"], orthodont["post"]
    with pytest.raises(ValueError, match="draws='lines': an estimate has no draws"):
        reml.plot.means("Sex", draws="lines", backend="none")
    with pytest.raises(ValueError, match="draws='dots': one of 'density', 'points', 'lines'"):
        post.plot.means("Sex", draws="dots", backend="none")
    with pytest.raises(ValueError, match="draws='density' is for points; along age"):
        post.plot.predictions("age", draws="density", backend="none")
    with pytest.raises(DataError, match="means\\(\\) names `sex`"):
        reml.plot.means("sex", backend="none")
    with pytest.raises(DataError, match="predictions\\(\\) names `Age`"):
        reml.plot.predictions("Age", backend="none")
    with pytest.raises(DataError, match="needs the variable of the axis, x="):
        reml.plot.predictions(by="Sex", backend="none")
    with pytest.raises(ValueError, match="target='conditional': one of 'average', 'population'"):
        reml.plot.predictions("age", target="conditional", backend="none")
    with pytest.raises(ValueError, match="kind='linpred': one of 'epred', 'response'"):
        reml.plot.predictions("age", kind="linpred", backend="none")
    with pytest.raises(ValueError, match="average over factors with weights='equal'"):
        reml.plot.predictions("age", kind="response", weights="cells", backend="none")
    with pytest.raises(ValueError, match="give one of them"):
        reml.plot.means("Sex", prob=0.5, level=0.5, backend="none")
    with pytest.raises(ValueError, match="for confidence intervals of estimates"):
        post.plot.means("Sex", level=0.5, backend="none")
    with pytest.raises(ValueError, match="visuals has 'dots'"):
        post.plot.means("Sex", visuals={"dots": False}, backend="none")
    with pytest.raises(DataError, match="standard errors are known"):
        machines["reml"].plot.forest(backend="none")
    with pytest.raises(DataError, match="has no variable among its fixed effects"):
        trials["reml"].plot.predictions(backend="none")
    with pytest.raises(DataError, match="`s` is a factor among the random effects alone"):
        frame = hostile().rename(columns={"a": "s"})
        LMM("y ~ x + (s | g)", frame).reml().plot.predictions("x", kind="response", backend="none")


@pytest.mark.slow
def test_pictures_of_sums_have_the_numbers_of_rows(orthodont):
    model = LMM("distance ~ age * Sex + (age | Subject)", batches(load_dataset("Orthodont")))
    here, sums = orthodont["reml"], model.reml()
    for draw in (
        lambda fit: fit.plot.predictions("age", by="Sex", backend="none"),
        lambda fit: fit.plot.predictions(
            "age", by="Sex", kind="response", random_seed=1, backend="none"
        ),
    ):
        one, two = (drawn(draw(fit), "curve", series=1) for fit in (here, sums))
        np.testing.assert_allclose(one["y"], two["y"], rtol=1e-6)  # ends of two searches
    assert "data" not in draw(sums).viz.children
    told = sums.plot.means("Sex", data=True, backend="none")
    assert len(drawn(told, "data")["x"]) == 108
    with pytest.raises(DataError, match="data frame in memory"):
        LMM("y ~ 1 + (1 | trial)", batches(bcg()), residual="se(se)").reml().plot.forest()


# --- drawn -----------------------------------------------------------------------------


def assert_legible(collection, tmp_path):
    """All text is inside the figure, and no label lies on another."""
    collection.savefig(tmp_path / "plot.png")
    figure = collection.viz["figure"].item()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    boxes = [figure._suptitle.get_window_extent(renderer)]
    boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            own = [label.get_window_extent(renderer) for label in labels]
            own = [box for box in own if box.width and box.height]
            assert not any(a.overlaps(b) for a, b in pairwise(own))
            boxes += [axis.label.get_window_extent(renderer)] if axis.label.get_text() else []
    for box in boxes:
        assert box.x0 >= -1 and box.x1 <= frame.x1 + 1
        assert box.y0 >= -1 and box.y1 <= frame.y1 + 1
    assert figure.get_size_inches()[0] <= 7.5


PICTURES = {
    "means": lambda fits: fits["orthodont"].plot.means("Sex"),
    "interaction": lambda fits: fits["orthodont"].plot.means("Sex", by="age", at={"age": [8, 14]}),
    "three factors": lambda fits: fits["crossed"].plot.means("c", by=["a", "b"]),
    "contrasts": lambda fits: fits["crossed"].plot.contrasts("c", by=["a", "b"]),
    "slopes": lambda fits: fits["orthodont"].plot.slopes("age", by="Sex"),
    "predictions": lambda fits: fits["crossed"].plot.predictions(kind="response", draws=True),
    "forest": lambda fits: fits["trials"].plot.forest(exp=True),
    "curves": lambda fits: fits["orthodont"].plot.predictions("age", by="Sex", kind="response"),
}


@pytest.mark.parametrize("name", one_in(4, PICTURES))
def test_pictures_are_legible(name, orthodont, crossed, trials, canvas, tmp_path):
    fits = {"orthodont": orthodont["post"], "crossed": crossed["post"], "trials": trials["post"]}
    assert_legible(PICTURES[name](fits), tmp_path)
