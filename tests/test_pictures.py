"""Pictures of fits: what is drawn equals the numbers of the fit, on the backend that draws nothing.

A few are drawn by matplotlib too, for what only a drawing can have wrong.
"""

from itertools import pairwise

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pytest
from arviz_plots import PlotCollection
from slow_cases import one_in

from bayeslmm import LMM, load_dataset
from bayeslmm.exceptions import DataError, PriorError
from bayeslmm.plots.common import drawing, outer, segments, thinned
from bayeslmm.plots.parameters import plot_uniformity
from bayeslmm.plots.residuals import trend

EXACT = 1e-10
"""Relative to the scale of the response: the same numbers by another route."""

SLOPE = "Reaction ~ Days + (Days | Subject)"
SLASH = "\N{DIVISION SLASH}"


def model_of(formula, data, **kwargs):
    return LMM(formula, load_dataset(data) if isinstance(data, str) else data, **kwargs)


def posterior_of(model, **kwargs):
    return model.fit(draws=250, random_seed=1, **kwargs)


@pytest.fixture(scope="module")
def sleep():
    model = model_of(SLOPE, "sleepstudy")
    return posterior_of(model).with_posterior_predictive(random_seed=2), model.reml()


@pytest.fixture(scope="module")
def penicillin():
    model = model_of("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin")
    return posterior_of(model), model.reml()


def unbalanced_oats():
    """Oats without three of four plots of a variety in a block."""
    data = load_dataset("Oats")
    return data.query("not (Block == 'III' and Variety == 'Victory' and nitro > 0.1)")


@pytest.fixture(scope="module")
def oats():
    model = model_of("yield ~ nitro * Variety + (1 | Block / Variety)", unbalanced_oats())
    return posterior_of(model), model.reml()


@pytest.fixture(scope="module")
def many():
    """300 levels with random slopes, draws of the random effects not stored."""
    rng = np.random.default_rng(4)
    codes, x = np.repeat(np.arange(300), 4), np.tile(np.arange(4.0), 300)
    u = rng.normal(size=(300, 2))
    y = u[codes, 0] + (1 + 0.5 * u[codes, 1]) * x + rng.normal(size=1200)
    labels = [f"level {i}" for i in codes]
    model = model_of("y ~ x + (x | g)", pd.DataFrame({"y": y, "x": x, "g": labels}))
    return model.fit(draws=100, random_seed=1, store_u=False)


@pytest.fixture
def canvas():
    matplotlib.use("Agg")
    yield
    matplotlib.pyplot.close("all")


def drawn(collection, visual, panel=None):
    """What a visual was drawn with in a panel, or in the only one."""
    data = collection.viz[visual].dataset
    return data[panel].item() if panel else next(iter(data.data_vars.values())).item()


def texts(collection, function, panel=None):
    """What a function of the backend was given in a panel: labels, titles."""
    plots = collection.viz["plot"].dataset
    plot = plots[panel].item() if panel else next(iter(plots.data_vars.values())).item()
    return [e.get("labels", e.get("string")) for e in plot if e["function"] == function]


def ends(element):
    """Starting and end points of line pieces."""
    return (np.reshape(element[axis], (-1, 3)) for axis in "xy")


def effects(post, group="Subject"):
    values = post.data["posterior"][f"u_{group}"].to_numpy()
    return values.reshape(-1, *values.shape[2:]).swapaxes(-2, -1)


# --- caterpillars ----------------------------------------------------------------------


def test_caterpillar_of_a_posterior(sleep):
    post, _ = sleep
    u = effects(post)
    with az.rc_context({"stats.ci_prob": 0.8, "stats.ci_kind": "eti"}):
        collection = post.plot.caterpillar(backend="none")
    assert isinstance(collection, PlotCollection)
    assert list(collection.viz["point"].data_vars) == ["Intercept", "Days"]
    order = np.argsort(u[..., 0].mean(axis=0))
    assert texts(collection, "yticks", "Days") == [[post.design.random[0].levels[i] for i in order]]
    for c, coef in enumerate(["Intercept", "Days"]):
        mark = drawn(collection, "point", coef)
        np.testing.assert_allclose(mark["x"], u[:, order, c].mean(axis=0), rtol=EXACT)
        np.testing.assert_array_equal(mark["y"], np.arange(18))
        x, y = ends(drawn(collection, "interval", coef))
        np.testing.assert_allclose(x[:, 0], np.quantile(u[:, order, c], 0.1, axis=0), rtol=EXACT)
        np.testing.assert_allclose(x[:, 1], np.quantile(u[:, order, c], 0.9, axis=0), rtol=EXACT)
        np.testing.assert_array_equal(y[:, :2], np.arange(18)[:, None].repeat(2, axis=1))
        x, _ = ends(drawn(collection, "inner_interval", coef))
        np.testing.assert_allclose(x[:, 0], np.quantile(u[:, order, c], 0.25, axis=0), rtol=EXACT)
    assert "80" in collection.viz["figure_title"].item()["string"]


def test_caterpillar_of_an_estimate(sleep):
    _, reml = sleep
    collection = reml.plot.caterpillar(order="label", coefs="Days", level=0.9, backend="none")
    modes, sds = reml.ranef()["Subject"]["Days"], reml.ranef_sd()["Subject"]["Days"]
    np.testing.assert_allclose(drawn(collection, "point")["x"], modes[::-1], rtol=EXACT)
    x, _ = ends(drawn(collection, "interval"))
    np.testing.assert_allclose(x[:, 1] - x[:, 0], 2 * 1.6448536 * sds[::-1], rtol=1e-6)
    x, _ = ends(drawn(collection, "inner_interval"))
    np.testing.assert_allclose(x[:, 1] - x[:, 0], 2 * 0.6744898 * sds[::-1], rtol=1e-6)
    assert texts(collection, "yticks") == [list(modes.index[::-1])]


def test_intervals_of_an_estimate_are_at_the_level_of_posteriors(sleep):
    """Pictures on one page have one level: ArviZ's, unless another is given."""
    post, reml = sleep
    for fit in (post, reml):
        with az.rc_context({"stats.ci_prob": 0.7}):
            pictures = [fit.plot.caterpillar(backend="none")]
            pictures.append(fit.plot.fitted(levels=["308"], backend="none"))
        assert "70" in pictures[0].viz["figure_title"].item()["string"]
        assert any("70" in label for label in drawn(pictures[1], "legend")["labels"])


def test_caterpillar_ordered_by_another_coefficient(sleep):
    post, _ = sleep
    collection = post.plot.caterpillar(order="Days", backend="none")
    assert (np.diff(drawn(collection, "point", "Days")["x"]) > 0).all()
    assert (np.diff(drawn(collection, "point", "Intercept")["x"]) < 0).any()


def test_caterpillar_of_chosen_levels_and_a_crossed_factor(penicillin):
    post, reml = penicillin
    with pytest.raises(DataError, match="give group=, one of plate, sample"):
        post.plot.caterpillar(backend="none")
    collection = reml.plot.caterpillar("sample", levels=["B", "F"], backend="none")
    expected = reml.ranef()["sample"].loc[["F", "B"], "Intercept"]
    np.testing.assert_allclose(drawn(collection, "point")["x"], expected, rtol=EXACT)


def test_caterpillar_of_random_effects_that_are_not_stored(many):
    collection = many.plot.caterpillar(backend="none")
    means = many.ranef()["g"].to_numpy()
    error = many.ranef_sd()["g"].to_numpy() / np.sqrt(400)
    order = [list(many.design.random[0].levels).index(label) for label in _all_labels(many)]
    five_errors = 5 * error[order, 0]
    assert (
        np.abs(drawn(collection, "point", "Intercept")["x"] - means[order, 0]) < five_errors
    ).all()
    assert len(texts(collection, "yticks", "x")[0]) <= 45


def _all_labels(post):
    """Levels from the bottom to the top of the picture: one label at a time."""
    u = post._joint.effects([np.arange(300)])[0].mean(axis=0)[:, 0]
    return [post.design.random[0].levels[i] for i in np.argsort(u, kind="stable")]


def test_caterpillar_refuses(sleep):
    post, _ = sleep
    with pytest.raises(ValueError, match="order='size': one of 'estimate', 'label', 'Intercept'"):
        post.plot.caterpillar(order="size", backend="none")
    with pytest.raises(ValueError, match="coefs names 'Hours'; the coefficients are: Intercept"):
        post.plot.caterpillar(coefs=["Hours"], backend="none")
    with pytest.raises(ValueError, match="visuals has 'dots'; this picture has"):
        post.plot.caterpillar(visuals={"dots": False}, backend="none")
    with pytest.raises(DataError, match="Subject has no level 999"):
        post.plot.caterpillar(levels=["999"], backend="none")


def test_visuals_can_be_changed_and_left_out(sleep):
    post, _ = sleep
    visuals = {"point": {"color": "red"}, "interval": False, "figure_title": False}
    collection = post.plot.caterpillar(visuals=visuals, backend="none")
    assert drawn(collection, "point", "Days")["facecolor"] == "red"
    assert "interval" not in collection.viz.children
    assert "figure_title" not in collection.viz


# --- shrinkage -------------------------------------------------------------------------


def test_shrinkage_of_two_coefficients(sleep):
    post, reml = sleep
    collection = post.plot.shrinkage(backend="none")
    data = load_dataset("sleepstudy")
    alone = np.array(
        [np.polyfit(part["Days"], part["Reaction"], 1)[::-1] for _, part in data.groupby("Subject")]
    )
    pairs = {
        "no_pooling": alone,
        "partial_pooling": post.coef()["Subject"].to_numpy(),
        "reml": reml.coef()["Subject"].to_numpy(),
        "population": post.beta.to_numpy()[None],
    }
    for visual, expected in pairs.items():
        mark = drawn(collection, visual)
        np.testing.assert_allclose(np.column_stack([mark["x"], mark["y"]]), expected, rtol=1e-8)
    x, y = ends(drawn(collection, "arrow"))
    np.testing.assert_allclose(np.column_stack([x[:, 0], y[:, 0]]), alone, rtol=1e-8)
    np.testing.assert_allclose(x[:, 1], drawn(collection, "partial_pooling")["x"])
    assert drawn(collection, "legend")["labels"][:2] == ["no pooling", "posterior mean"]


def test_ellipses_hold_their_share(sleep):
    post, _ = sleep
    curve = drawn(post.plot.shrinkage(backend="none"), "ellipse")
    centred = np.column_stack([curve["x"], curve["y"]]) - post.beta.to_numpy()
    inverse = np.linalg.inv(post.G().iloc[:2, :2].to_numpy())
    distances = np.einsum("ni,ij,nj->n", centred, inverse, centred)
    inner, outer_ = np.unique(distances[np.isfinite(distances)].round(6))
    assert (inner, outer_) == pytest.approx((-2 * np.log(0.5), -2 * np.log(0.1)), abs=1e-6)


def test_shrinkage_of_one_coefficient_beside_a_crossed_factor(penicillin):
    post, reml = penicillin
    collection = post.plot.shrinkage("plate", backend="none")
    data = load_dataset("Penicillin")
    rest = data["diameter"] - post.ranef()["sample"]["Intercept"].loc[data["sample"]].to_numpy()
    alone = rest.groupby(data["plate"], observed=True).mean()
    partial = post.coef()["plate"]["Intercept"].sort_values()
    np.testing.assert_allclose(drawn(collection, "partial_pooling")["x"], partial, rtol=EXACT)
    np.testing.assert_allclose(
        drawn(collection, "no_pooling")["x"], alone.loc[partial.index], rtol=EXACT
    )
    by_reml = reml.coef()["plate"]["Intercept"].loc[partial.index]
    np.testing.assert_allclose(drawn(collection, "reml")["x"], by_reml, rtol=EXACT)
    assert texts(collection, "yticks") == [list(partial.index)]
    assert drawn(collection, "population")["x"] == pytest.approx(post.beta.iloc[0])


def test_shrinkage_weights_the_rows_and_reports_levels_that_are_too_small():
    rng = np.random.default_rng(7)
    codes = np.repeat(np.arange(8), 5)[:-4]
    x, w = rng.normal(size=len(codes)), rng.uniform(0.5, 4.0, size=len(codes))
    frame = pd.DataFrame({"y": rng.normal(size=len(x)) + codes, "x": x, "g": codes, "w": w})
    post = posterior_of(model_of("y ~ x + (x | g)", frame, weights="w"))
    collection = post.plot.shrinkage(backend="none")
    points = drawn(collection, "no_pooling")
    for level in range(7):
        part = frame[frame["g"] == level]
        slope, intercept = np.polyfit(part["x"], part["y"], 1, w=np.sqrt(part["w"]))
        assert (points["x"][level], points["y"][level]) == pytest.approx((intercept, slope))
    assert np.isnan(points["x"][7])
    assert "1 levels have too few rows" in collection.viz["figure_title"].item()["string"]


def test_shrinkage_needs_levels_that_stand_alone():
    rng = np.random.default_rng(8)
    codes = np.repeat(np.arange(10), 3)
    frame = pd.DataFrame({"y": rng.normal(size=30), "x": rng.normal(size=10)[codes], "g": codes})
    post = posterior_of(model_of("y ~ x + (x || g)", frame))
    with pytest.raises(DataError, match="nothing to shrink from"):
        post.plot.shrinkage(backend="none")


def test_shrinkage_refuses(sleep):
    post, _ = sleep
    with pytest.raises(ValueError, match="one or two different coefficients are expected"):
        post.plot.shrinkage(coefs=["Days", "Days"], backend="none")
    with pytest.raises(ValueError, match="one or two different coefficients are expected"):
        post.plot.shrinkage(coefs="Hours", backend="none")


def test_shrinkage_at_a_boundary():
    model = model_of("Yield ~ 1 + (1 | Batch)", "Dyestuff2")
    collection = posterior_of(model).plot.shrinkage(backend="none")
    by_reml = drawn(collection, "reml")["x"]
    np.testing.assert_allclose(by_reml, model.reml().beta.iloc[0], rtol=1e-6)


# --- fitted lines ----------------------------------------------------------------------


def test_fitted_lines_of_a_posterior(sleep):
    post, _ = sleep
    with az.rc_context({"stats.ci_prob": 0.9, "stats.ci_kind": "eti"}):
        collection = post.plot.fitted(levels=["309", "372"], backend="none")
    assert list(collection.viz["fitted"].data_vars) == ["309", "372"]
    beta = post.data["posterior"]["beta"].to_numpy().reshape(-1, 2)
    place = list(post.design.random[0].levels).index("372")
    days = drawn(collection, "fitted", "372")["x"]
    assert (days[0], days[-1]) == (0.0, 9.0)
    grid = np.column_stack([np.ones_like(days), days])
    values = (beta + effects(post)[:, place]) @ grid.T
    line, band = (drawn(collection, name, "372") for name in ("fitted", "interval"))
    np.testing.assert_allclose(line["y"], values.mean(axis=0), rtol=EXACT)
    np.testing.assert_allclose(band["y_bottom"], np.quantile(values, 0.05, axis=0), rtol=EXACT)
    np.testing.assert_allclose(band["y_top"], np.quantile(values, 0.95, axis=0), rtol=EXACT)
    population = drawn(collection, "population", "372")["y"]
    np.testing.assert_allclose(population, grid @ beta.mean(axis=0), rtol=EXACT)
    rows = load_dataset("sleepstudy").query("Subject == '372'")
    np.testing.assert_array_equal(drawn(collection, "data", "372")["y"], rows["Reaction"])
    assert texts(collection, "xlabel", "309") == ["Days"]
    assert texts(collection, "ylabel", "309") == ["Reaction"]
    assert texts(collection, "ylabel", "372") == []


def test_fitted_lines_of_an_estimate(sleep):
    _, reml = sleep
    collection = reml.plot.fitted(levels=["309"], uncertainty="plugin", draws=4000, backend="none")
    days = drawn(collection, "fitted")["x"]
    intercept, slope = reml.coef()["Subject"].loc["309"]
    np.testing.assert_allclose(drawn(collection, "fitted")["y"], intercept + slope * days)
    band = drawn(collection, "interval")
    width = band["y_top"][0] - band["y_bottom"][0]
    expected = 2 * 1.598193 * _conditional_sd(reml, "309")
    assert width == pytest.approx(expected, rel=0.08)  # 2.5 errors of a width from 4,000 draws


def _conditional_sd(reml, label):
    """Standard error of X beta + Z u at Days = 0, by the dense formulas."""
    x, z, v = reml.design.X, reml.design.Z_matrix().toarray(), reml.V().to_numpy()
    g, inverse = reml.G().to_numpy(), np.linalg.inv(v)
    place = 2 * list(reml.design.random[0].levels).index(label)
    c = g @ z.T @ inverse
    a = np.array([1.0, 0.0]) - (c @ x)[place]
    own = (g - c @ z @ g)[place, place]
    return np.sqrt(own + a @ np.linalg.inv(x.T @ inverse @ x) @ a)


def test_fitted_lines_average_over_what_they_do_not_show(oats):
    post, _ = oats
    collection = post.plot.fitted(group="Block", backend="none")
    data, beta = unbalanced_oats(), post.beta.to_numpy()
    u = post.ranef()
    rows = data[data["Block"] == "III"]
    nitro = drawn(collection, "fitted", "III")["x"]
    for place in (0, 17, len(nitro) - 1):
        changed = post.design.spec.rows(rows.assign(nitro=nitro[place]))
        average = (changed.X @ beta).mean()
        both = u["Block"].loc["III"].item() + np.mean(
            [u["Block:Variety"].loc[f"III:{v}"].item() for v in rows["Variety"]]
        )
        assert drawn(collection, "population", "III")["y"][place] == pytest.approx(average)
        assert drawn(collection, "fitted", "III")["y"][place] == pytest.approx(average + both)


def test_fitted_values_of_a_factor(oats):
    post, _ = oats
    collection = post.plot.fitted("Variety", "Block", levels=["II"], backend="none")
    fitted = drawn(collection, "fitted")
    np.testing.assert_array_equal(fitted["x"], [0, 1, 2])
    assert texts(collection, "xticks") == [sorted(load_dataset("Oats")["Variety"].unique())]
    rows = load_dataset("Oats").query("Block == 'II'")
    for place, variety in enumerate(sorted(rows["Variety"].unique())):
        changed = post.design.spec.rows(rows.assign(Variety=variety))
        expected = (changed.X @ post.beta.to_numpy()).mean() + post.ranef()["Block"].loc[
            "II"
        ].item()
        expected += post.ranef()["Block:Variety"].loc[f"II:{variety}"].item()
        assert fitted["y"][place] == pytest.approx(expected)


def test_fitted_lines_have_the_offset_and_the_transformation():
    sleep = load_dataset("sleepstudy").assign(shift=lambda d: 10.0 * (d["Subject"] == "308"))
    formula = "Reaction ~ np.log1p(Days) + offset(shift) + (1 | Subject)"
    post = posterior_of(model_of(formula, sleep))
    collection = post.plot.fitted(levels=["308"], backend="none")
    line = drawn(collection, "population")
    expected = post.beta.iloc[0] + post.beta.iloc[1] * np.log1p(line["x"]) + 10.0
    np.testing.assert_allclose(line["y"], expected, rtol=EXACT)


def test_fitted_lines_go_along_no_variable_that_makes_the_levels():
    reml = model_of("angle ~ recipe + temperature + (1 | recipe:replicate)", "cake").reml()
    collection = reml.plot.fitted(levels=["A:1"], uncertainty="plugin", draws=50, backend="none")
    assert texts(collection, "xlabel") == ["temperature"]


def test_fitted_lines_of_many_levels(many):
    without = dict.fromkeys(("interval", "inner_interval", "population"), False)
    collection = many.plot.fitted(backend="none", visuals=without)
    assert len(collection.viz["fitted"].data_vars) == 30
    assert "30 of 300 levels" in collection.viz["figure_title"].item()["string"]


@pytest.mark.parametrize(
    "formula", ["yield ~ C(nitro) + (1 | Block)", "yield ~ 1 + (factor(nitro) | Block)"]
)
def test_numbers_that_the_formula_makes_a_factor_are_drawn_as_one(formula):
    data = unbalanced_oats()
    post = posterior_of(model_of(formula, data), method="laplace")
    collection = post.plot.fitted(levels=["I"], backend="none")
    values = sorted(data["nitro"].unique())
    assert texts(collection, "xticks") == [[str(value) for value in values]]
    fitted = drawn(collection, "fitted", "I")
    rows = (data["Block"] == "I").to_numpy()
    conditional = post.predict(data[rows])["mean"].to_numpy()
    for place, value in enumerate(values):
        expected = conditional[(data["nitro"] == value).to_numpy()[rows]].mean()
        assert fitted["y"][place] == pytest.approx(expected, rel=1e-9)


def test_fitted_lines_go_along_a_number_beside_a_factor_made_of_one():
    data = load_dataset("sleepstudy").assign(k=lambda d: d["Days"] % 2)
    reml = model_of("Reaction ~ C(k) * Days + (1 | Subject)", data).reml()
    for x, expected in ((None, "Days"), ("k", "k")):
        collection = reml.plot.fitted(x, levels=["308"], backend="none")
        assert texts(collection, "xlabel") == [expected]


def test_fitted_refuses(sleep, oats, penicillin):
    post, reml = sleep
    with pytest.raises(DataError, match=r"x='Hours' is no covariate of the formula; its .* Days"):
        post.plot.fitted("Hours", backend="none")
    with pytest.raises(DataError, match="has no covariate to draw lines along"):
        penicillin[1].plot.fitted(group="plate", backend="none")
    with pytest.raises(DataError, match="x='Variety' is part of the grouping factor Block:Variety"):
        oats[0].plot.fitted("Variety", "Block:Variety", backend="none")
    with pytest.raises(ValueError, match="uncertainty='none'"):
        reml.plot.fitted(uncertainty="none", backend="none")


def test_fitted_refuses_levels_that_were_not_seen():
    data = load_dataset("Oats")
    data = data[~((data["Block"] == "II") & (data["Variety"] == "Victory"))]
    post = posterior_of(model_of("yield ~ nitro + Variety + (1 | Block / Variety)", data))
    with pytest.raises(DataError, match="Some levels of Block:Variety do not occur"):
        post.plot.fitted("Variety", "Block", levels=["II"], backend="none")


# --- prior and posterior ---------------------------------------------------------------


def test_prior_and_posterior_draw_all_parameters(oats):
    names = list(oats[0].plot.prior_posterior(backend="none").viz["prior"].data_vars)
    assert names == [label.replace("/", SLASH) for label in oats[0].summary().index]


def test_flat_priors_have_no_density():
    model = model_of("Yield ~ 1 + (1 | Batch)", "Dyestuff", priors="flat")
    post = model.fit(method="laplace", draws=50, random_seed=1)
    with pytest.raises(PriorError, match="Flat priors cannot be drawn from"):
        post.plot.prior_posterior(backend="none")


def test_prior_posterior_refuses(sleep):
    with pytest.raises(ValueError, match=r"no 'Days'. Its parameters are: beta\[Intercept\]"):
        sleep[0].plot.prior_posterior("Days", backend="none")


# --- covariance matrices ---------------------------------------------------------------


def test_covariance_matrices(sleep):
    post, reml = sleep
    rows = load_dataset("sleepstudy")["Subject"].isin(["310", "335"]).to_numpy()
    for fit in (post, reml):
        collection = fit.plot.covariance(["G", "R", "V"], levels=["310", "335"], backend="none")
        for name in "RV":
            expected = getattr(fit, name)().to_numpy()[np.ix_(rows, rows)]
            shown = drawn(collection, "heatmap", name)["values"]
            np.testing.assert_allclose(shown, expected, rtol=EXACT)
        expected = fit.G().to_numpy()[:4, :4]  # all blocks of G are the same
        np.testing.assert_allclose(
            drawn(collection, "heatmap", "G")["values"], expected, rtol=EXACT
        )
    assert texts(collection, "yticks", "V") == [["310", "335"]]
    assert texts(collection, "yticks", "G")[0][1] == "310: Days"
    corners = drawn(collection, "blocks", "V")["x"].reshape(-1, 6)
    np.testing.assert_array_equal(corners[:, :2], [[-0.5, 9.5], [9.5, 19.5]])
    crowded = fit.plot.covariance("G", backend="none")
    assert texts(crowded, "yticks")[0] == [str(v) for v in fit.ranef()["Subject"].index]


def test_rows_are_ordered_by_level():
    data = load_dataset("Pastes").sample(frac=1.0, random_state=5)
    reml = model_of("strength ~ 1 + (1 | batch / cask)", data).reml()
    collection = reml.plot.covariance(group="batch", correlation=True, backend="none")
    shown = drawn(collection, "heatmap")["values"]
    sds = reml.varcorr().set_index("group")["vcov"]
    residual = reml.sigma**2
    total = sds["batch"] + sds["batch:cask"] + residual
    block = np.full((6, 6), sds["batch"] / total)
    for start in (0, 2, 4):
        block[start : start + 2, start : start + 2] += sds["batch:cask"] / total
    np.fill_diagonal(block, 1.0)
    np.testing.assert_allclose(shown, np.kron(np.eye(10), block), atol=1e-12)
    assert texts(collection, "xticks") == [list("ABCDEFGHIJ")]


def test_chosen_rows_and_weights():
    data = load_dataset("Dyestuff").assign(w=np.arange(1.0, 31.0))
    data.index = data.index + 100
    reml = model_of("Yield ~ 1 + (1 | Batch)", data, weights="w").reml()
    collection = reml.plot.covariance(["V", "R"], rows=[100, 103, 129], backend="none")
    expected = reml.V().loc[[100, 103, 129], [100, 103, 129]]
    np.testing.assert_allclose(drawn(collection, "heatmap", "V")["values"], expected, rtol=EXACT)
    expected = reml.R().loc[[100, 103, 129], [100, 103, 129]]
    np.testing.assert_allclose(drawn(collection, "heatmap", "R")["values"], expected, rtol=EXACT)
    assert collection.viz["numbers"]["R"].item()["string"] == f"{reml.sigma**2 / 30:.0f}"


def test_covariance_matrices_of_no_variance_between_levels():
    reml = model_of("Yield ~ 1 + (1 | Batch)", "Dyestuff2").reml()
    shown = drawn(reml.plot.covariance("G", correlation=True, backend="none"), "heatmap")
    assert not shown["values"].any()


def test_covariance_refuses(sleep, many):
    post, _ = sleep
    with pytest.raises(ValueError, match="which='S': 'V', 'G' or 'R', or several"):
        post.plot.covariance("S", backend="none")
    with pytest.raises(ValueError, match="backend='plotly' draws no heat maps"):
        post.plot.covariance(backend="plotly")
    with pytest.raises(ValueError, match="Give rows= or levels=, not both"):
        post.plot.covariance(rows=[0], levels=["308"], backend="none")
    with pytest.raises(DataError, match="rows names rows that the model has not used"):
        post.plot.covariance(rows=[999], backend="none")
    with pytest.raises(DataError, match=r"V has 1,200 rows; .* at most 1,000. Choose some with"):
        many.plot.covariance(backend="none")


# --- residuals -------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1])
def test_residuals(sleep, which):
    fit = sleep[which]
    collection = fit.plot.residuals(backend="none")
    names = [
        "residuals and fitted values",
        "residuals by Subject",
        "Q-Q of residuals",
        "Q-Q of Subject: Intercept",
        "Q-Q of Subject: Days",
    ]
    assert list(collection.viz["points"].data_vars) == names
    mark = drawn(collection, "points", names[0])
    np.testing.assert_allclose(mark["x"], fit.fitted(), rtol=1e-9)
    standardised = fit.residuals("pearson")
    np.testing.assert_allclose(mark["y"], standardised, rtol=1e-6, atol=1e-9)
    assert texts(collection, "ylabel", names[0]) == ["standardised residual"]
    assert "over their standard deviation" in collection.viz["figure_title"].item()["string"]
    np.testing.assert_allclose(
        drawn(collection, "points", names[4])["y"], np.sort(fit.ranef()["Subject"]["Days"])
    )
    groups = load_dataset("sleepstudy")["Subject"]
    means = standardised.groupby(groups, observed=True).mean()
    _, y = ends(drawn(collection, "level_mean"))
    np.testing.assert_allclose(y[:, 0], means, rtol=1e-6, atol=1e-9)
    raw = drawn(fit.plot.residuals(kind="response", backend="none"), "points", names[0])
    np.testing.assert_allclose(raw["y"], fit.residuals(), rtol=1e-6, atol=1e-9)


def test_residuals_have_a_smooth_trend_with_bands(sleep):
    collection = sleep[1].plot.residuals(backend="none")
    line, band = drawn(collection, "trend"), drawn(collection, "trend_band")
    inner = drawn(collection, "inner_trend_band")
    assert (band["y_bottom"] < inner["y_bottom"]).all()
    assert (inner["y_bottom"] < line["y"]).all()
    assert (line["y"] < inner["y_top"]).all()
    with pytest.raises(ValueError, match="kind='raw'"):
        sleep[1].plot.residuals(kind="raw", backend="none")


def test_the_trend_is_a_local_line():
    """Exact on a line; on a curve against weighted least squares at one place; none of few."""
    x = np.linspace(0.0, 4.0, 41)
    straight = trend(x, 2.0 - 3.0 * x)
    np.testing.assert_allclose(straight.mean, 2.0 - 3.0 * straight.x, atol=1e-9)
    y = np.sin(x)
    found = trend(x, y)
    gap = np.abs(x - found.x[20])
    reach = np.sort(gap)[int(np.ceil(0.75 * 41))]
    root = np.sqrt(np.clip(1 - (gap / reach) ** 3, 0, None) ** 3)
    columns = np.column_stack([np.ones(41), x - found.x[20]])
    fit = np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]
    assert found.mean[20] == pytest.approx(fit[0], rel=1e-9)
    noise = np.random.default_rng(1).normal(size=(400, 41))
    lines = [trend(x, e) for e in noise]
    spread = np.std([line.mean[20] for line in lines])
    assert np.mean([line.error[20] for line in lines]) == pytest.approx(spread, rel=0.12)
    assert trend(np.repeat([1.0, 2.0, 3.0], 20), np.ones(60)) is None


def test_the_trend_passes_a_value_that_most_rows_share():
    x = np.concatenate([np.zeros(80), np.linspace(1.0, 2.0, 20)])
    straight = trend(x, 2.0 - 3.0 * x)
    np.testing.assert_allclose(straight.mean, 2.0 - 3.0 * straight.x, atol=1e-9)
    assert np.isfinite(straight.error).all()


def test_quantiles_of_the_normal_distribution(sleep):
    """Against R: ppoints(18) and qqline's line through the quartiles."""
    collection = sleep[1].plot.residuals(backend="none")
    name = "Q-Q of Subject: Days"
    x = drawn(collection, "points", name)["x"]
    assert x[0] == pytest.approx(-1.914506, abs=1e-6)  # qnorm((1 - 0.5) / 18)
    line = drawn(collection, "qq_line", name)
    slope = (line["y"][1] - line["y"][0]) / (line["x"][1] - line["x"][0])
    low, high = np.quantile(sleep[1].ranef()["Subject"]["Days"], [0.25, 0.75])
    assert slope == pytest.approx((high - low) / 1.3489795, rel=1e-6)
    middle = line["y"][0] - slope * line["x"][0]
    assert middle == pytest.approx((low + high) / 2)


def test_weighted_residuals_of_a_chosen_factor():
    data = load_dataset("Penicillin").assign(w=np.linspace(0.5, 2.0, 144))
    formula = "diameter ~ 1 + (1 | plate) + (1 | sample)"
    reml = model_of(formula, data, weights="w").reml()
    collection = reml.plot.residuals("sample", backend="none")
    expected = reml.residuals() * np.sqrt(data["w"]) / reml.sigma
    panel = "residuals by sample"
    np.testing.assert_allclose(drawn(collection, "points", panel)["y"], expected, rtol=1e-6)
    assert texts(collection, "xticks", panel) == [list("ABCDEF")]
    assert texts(collection, "ylabel", panel) == ["standardised residual"]
    with pytest.raises(DataError, match="group='dish' is no grouping factor"):
        reml.plot.residuals("dish", backend="none")


# --- predictive checks -----------------------------------------------------------------


def replicates(post):
    values = post.data["posterior_predictive"]["y"].to_numpy()
    return values.reshape(-1, values.shape[-1])


def test_a_statistic_by_level(sleep):
    post, _ = sleep
    collection = post.plot.predictive(
        "tstat", by="Subject", statistic="sd", prob=0.8, backend="none"
    )
    data = load_dataset("sleepstudy")
    observed = data.groupby("Subject", observed=True)["Reaction"].std().sort_values()
    np.testing.assert_allclose(drawn(collection, "observed")["x"], observed, rtol=EXACT)
    assert texts(collection, "yticks") == [list(observed.index)]
    x, _ = ends(drawn(collection, "interval"))
    for place, label in enumerate(observed.index):
        rows = (data["Subject"] == label).to_numpy()
        values = replicates(post)[:, rows].std(axis=1, ddof=1)
        assert drawn(collection, "replicated")["x"][place] == pytest.approx(values.mean())
        assert x[place, :2] == pytest.approx(np.quantile(values, [0.1, 0.9]))
        inner, _ = ends(drawn(collection, "inner_interval"))
        assert inner[place, :2] == pytest.approx(np.quantile(values, [0.25, 0.75]))
    assert texts(collection, "xlabel") == ["standard deviation of Reaction"]


def test_a_statistic_by_a_number_is_in_the_order_of_its_values():
    data = load_dataset("sleepstudy").assign(Days=lambda d: 10.0 - d["Days"])
    post = LMM("Reaction ~ Days + (1 | Subject)", data).fit(draws=50, chains=2, random_seed=1)
    collection = post.plot.predictive("tstat", by="Days", random_seed=2, backend="none")
    observed = data.groupby("Days")["Reaction"].mean()
    assert not observed.is_monotonic_increasing
    np.testing.assert_allclose(drawn(collection, "observed")["x"], observed, rtol=EXACT)
    assert texts(collection, "yticks") == [[f"{value:g}" for value in observed.index]]


def test_a_statistic_of_all_rows(sleep):
    post, _ = sleep
    collection = post.plot.predictive("tstat", statistic="max", backend="none")
    assert drawn(collection, "observed_tstat")["x"] == load_dataset("sleepstudy")["Reaction"].max()
    assert texts(collection, "xlabel") == ["maximum of Reaction"]


def test_statistics_of_all_rows_are_those_of_the_predictive_check(sleep):
    post, _ = sleep
    seen = {name: post.check.predictive(name).iloc[0] for name in ("mean", "sd", "median", "min")}
    for name, row in seen.items():
        collection = post.plot.predictive("tstat", statistic=name, backend="none")
        assert drawn(collection, "observed_tstat")["x"] == pytest.approx(row["observed"], rel=EXACT)

    def spread(y):
        return np.ptp(y)

    for statistic, values in (
        ("sd", replicates(post).std(axis=1, ddof=1)),
        (spread, np.ptp(replicates(post), axis=1)),
    ):
        with az.rc_context({"plot.density_kind": "ecdf"}):
            collection = post.plot.predictive("tstat", statistic=statistic, backend="none")
        found = drawn(collection, "dist")["x"]
        assert (min(found), max(found)) == pytest.approx((values.min(), values.max()), rel=EXACT)
    with pytest.raises(ValueError, match="statistic='iqr': one of"):
        post.plot.predictive("tstat", statistic="iqr", backend="none")


def test_densities(sleep):
    post, _ = sleep
    collection = post.plot.predictive("dist", num_samples=7, backend="none")
    assert collection.viz["predictive_dist"]["y"].size == 7
    assert texts(collection, "xlabel") == ["Reaction"]
    collection = post.plot.predictive("dist", by="Subject", num_samples=5, backend="none")
    assert list(collection.viz["observed_dist"].data_vars) == list(post.design.random[0].levels)
    ecdf = drawn(collection, "observed_dist", "309")
    rows = load_dataset("sleepstudy").query("Subject == '309'")["Reaction"]
    assert (min(ecdf["x"]), max(ecdf["x"])) == pytest.approx((rows.min(), rows.max()))


def test_intervals(sleep):
    post, _ = sleep
    with az.rc_context({"stats.ci_kind": "eti"}):
        collection = post.plot.predictive("interval", prob=0.6, backend="none")
    order = np.argsort(replicates(post).mean(axis=0), kind="stable")
    for visual, tails in (("interval", [0.2, 0.8]), ("inner_interval", [0.25, 0.75])):
        band = drawn(collection, visual)
        low, high = np.quantile(replicates(post), tails, axis=0)[:, order]
        np.testing.assert_allclose(band["y_bottom"], low, rtol=1e-9)
        np.testing.assert_allclose(band["y_top"], high, rtol=1e-9)
    y = load_dataset("sleepstudy")["Reaction"].to_numpy()
    low, high = np.quantile(replicates(post), [0.2, 0.8], axis=0)
    beyond = (y < low) | (y > high)
    assert sorted(drawn(collection, "outside")["y"]) == pytest.approx(sorted(y[beyond]))
    assert any(f"{beyond.sum()} of 180" in e for e in drawn(collection, "legend")["labels"])
    assert texts(collection, "ylabel") == ["Reaction"]


def test_intervals_by_level_run_along_a_covariate(sleep):
    post, _ = sleep
    collection = post.plot.predictive("interval", by="Subject", prob=0.6, backend="none")
    rows = (load_dataset("sleepstudy")["Subject"] == "309").to_numpy()
    x, y = ends(drawn(collection, "interval", "309"))
    np.testing.assert_array_equal(x[:, 0], np.arange(10))
    low, high = np.quantile(replicates(post)[:, rows], [0.2, 0.8], axis=0)
    np.testing.assert_allclose(y[:, :2], np.column_stack([low, high]), rtol=1e-9)
    assert texts(collection, "xlabel", "372") == ["Days"]
    with pytest.raises(ValueError, match="x='Days' goes with kind 'interval' and by="):
        post.plot.predictive("interval", x="Days", backend="none")


def test_intervals_of_few_rows_are_bars():
    post = model_of("Yield ~ 1 + (1 | Batch)", "Dyestuff").fit(draws=100, random_seed=1)
    collection = post.plot.predictive("interval", by="Batch", random_seed=1, backend="none")
    assert texts(collection, "xlabel", "F") == ["row of the level"]
    x, _ = ends(drawn(collection, "interval", "F"))
    np.testing.assert_array_equal(x[:, 0], np.arange(1, 6))
    collection = post.plot.predictive("interval", random_seed=1, backend="none")
    x, _ = ends(drawn(collection, "interval"))
    assert sorted(x[:, 0]) == list(range(1, 31))


def test_integral_transforms(sleep):
    post, _ = sleep
    collection = post.plot.predictive("loo_pit", backend="none")
    values = np.asarray(post.check.loo_pit())
    line = drawn(collection, "ecdf")
    below = (values[:, None] < line["x"][1:-1]).mean(axis=0) - line["x"][1:-1]
    np.testing.assert_allclose(line["y"][1:-1], below, atol=1e-12)
    assert texts(collection, "xlabel") == ["LOO-PIT"]
    written = [texts(collection, name) for name in ("text", "xlabel", "ylabel", "title")]
    assert not any("p=" in str(text) for text in written)
    assert texts(post.plot.predictive("pit", backend="none"), "xlabel") == ["PIT"]


def test_the_band_of_integral_transforms_has_its_probability():
    """Of uniform values; beyond 1,000 of them the band narrows as the root of their number."""
    rng, n, inside, none = np.random.default_rng(5), 2000, 0, drawing("none", {}, {})
    for number in range(100):
        values, kept = rng.uniform(size=n), slice(1, -1)
        if number < 3:  # the band is that of n values, whichever they are
            collection = plot_uniformity(values, "u", "U", 0.8, none)
            line, band = drawn(collection, "ecdf"), drawn(collection, "band")
        x = line["x"][kept]
        share = np.searchsorted(np.sort(values), x) / n - x
        if number < 3:
            np.testing.assert_allclose(line["y"][kept], share, atol=1e-12)
        above = share >= band["y_bottom"][kept] - 1e-12
        inside += bool((above & (share <= band["y_top"][kept] + 1e-12)).all())
    assert 68 <= inside <= 92  # three standard errors about 80


def test_replicates_are_made_where_there_are_none(penicillin):
    post = penicillin[0]
    assert "posterior_predictive" not in post.data.children
    options = {"by": "sample", "backend": "none"}
    made = post.plot.predictive("tstat", random_seed=3, **options)
    stored = post.with_posterior_predictive(random_seed=3).plot.predictive("tstat", **options)
    for visual in ("observed", "replicated"):
        np.testing.assert_array_equal(drawn(made, visual)["x"], drawn(stored, visual)["x"])


def test_predictive_refuses(sleep, penicillin, many):
    post, _ = sleep
    with pytest.raises(ValueError, match="kind='hist': one of 'dist', 'interval'"):
        post.plot.predictive("hist", backend="none")
    with pytest.raises(ValueError, match="by='Subject' goes with kind 'dist', 'interval' or"):
        post.plot.predictive("pit", by="Subject", backend="none")
    with pytest.raises(ValueError, match="statistic='mode': one of"):
        post.plot.predictive("tstat", by="Subject", statistic="mode", backend="none")
    crowd = many.with_posterior_predictive(random_seed=1)
    with pytest.raises(DataError, match="g has 300 levels; a picture shows at most 24 panels"):
        crowd.plot.predictive("dist", by="g", backend="none")


# --- pieces and drawings ---------------------------------------------------------------


def test_pieces():
    line = segments(([0.0, 1.0], [2.0, 3.0]), (0.5, [4.0, 5.0]))
    np.testing.assert_array_equal(line.sel(plot_axis="x"), [0, 2, np.nan, 1, 3, np.nan])
    np.testing.assert_array_equal(line.sel(plot_axis="y"), [0.5, 4, np.nan, 0.5, 5, np.nan])
    places, labels = thinned(list("abcdefg"), 3)
    assert (places.tolist(), labels) == ([0.0, 3.0, 6.0], ["a", "d", "g"])


def test_outer_panels(sleep):
    collection = sleep[0].plot.residuals(backend="none")
    below, left = outer(collection, collection.data)
    assert [str(name) for name in below] == ["Q-Q of Subject: Intercept", "Q-Q of Subject: Days"]
    assert [str(name) for name in left] == [
        "residuals and fitted values",
        "Q-Q of residuals",
        "Q-Q of Subject: Days",
    ]


PICTURES = {
    "caterpillar": lambda post: post.plot.caterpillar(backend="matplotlib"),
    "shrinkage": lambda post: post.plot.shrinkage(backend="matplotlib"),
    "fitted": lambda post: post.plot.fitted(levels=["308", "309"], backend="matplotlib"),
    "prior": lambda post: post.plot.prior_posterior(["sigma"], backend="matplotlib"),
    "covariance": lambda post: post.plot.covariance(levels=["308"], backend="matplotlib"),
    "residuals": lambda post: post.plot.residuals(backend="matplotlib"),
    "interval": lambda post: post.plot.predictive("interval", backend="matplotlib"),
    "level": lambda post: post.plot.predictive("tstat", by="Subject", backend="matplotlib"),
}


@pytest.mark.parametrize("picture", one_in(4, PICTURES))
def test_matplotlib_draws_all_text_inside_the_figure(sleep, canvas, tmp_path, picture):
    collection = PICTURES[picture](sleep[0])
    collection.savefig(tmp_path / "plot.png")
    figure = collection.viz["figure"].item()
    renderer, frame = figure.canvas.get_renderer(), figure.bbox
    shown = [figure._suptitle, *figure.legends]
    shown += [
        text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)
    ]
    for text in shown:
        if getattr(text, "get_text", lambda: "legend")() == "":
            continue
        box = text.get_window_extent(renderer)
        assert box.x0 >= -1 and box.x1 <= frame.x1 + 1, text
        assert box.y0 >= -1 and box.y1 <= frame.y1 + 1, text
    heading = figure._suptitle.get_window_extent(renderer)
    assert not any(heading.overlaps(axes.title.get_window_extent(renderer)) for axes in figure.axes)
    if figure.legends:
        legend = figure.legends[0].get_window_extent(renderer)
        assert not any(legend.overlaps(axes.get_window_extent(renderer)) for axes in figure.axes)


@pytest.mark.slow
def test_long_labels_leave_room_for_a_heat_map(oats, canvas, tmp_path):
    collection = oats[0].plot.covariance(["G", "V", "R"], backend="matplotlib")
    collection.savefig(tmp_path / "plot.png")
    figure = collection.viz["figure"].item()
    renderer = figure.canvas.get_renderer()
    heading = figure._suptitle.get_window_extent(renderer)
    for axes in figure.axes:
        assert not heading.overlaps(axes.title.get_window_extent(renderer))


@pytest.mark.slow
def test_numbers_of_ten_rows_stand_within_their_cells(canvas, tmp_path):
    reml = model_of("height ~ moisture + (1 | pot)", load_dataset("lecture_plants")).reml()
    collection = reml.plot.covariance("V", backend="matplotlib")
    collection.savefig(tmp_path / "plot.png")
    figure = collection.viz["figure"].item()
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    width = axes.get_window_extent(renderer).width / 10
    assert len(axes.texts) == 100
    assert max(text.get_window_extent(renderer).width for text in axes.texts) < 0.9 * width


def test_labels_of_many_levels_do_not_overlap(many, canvas, tmp_path):
    collection = many.plot.caterpillar(backend="matplotlib")
    collection.savefig(tmp_path / "plot.png")
    figure = collection.viz["figure"].item()
    labels = [t for t in figure.axes[0].get_yticklabels() if t.get_text()]
    boxes = [label.get_window_extent(figure.canvas.get_renderer()) for label in labels]
    assert len(boxes) > 20
    assert all(low.y1 <= high.y0 for low, high in pairwise(boxes))


def test_heat_maps_have_a_colour_bar_and_white_at_zero(sleep, canvas):
    figure = sleep[0].plot.covariance(levels=["308", "309"]).viz["figure"].item()
    main, bar = figure.axes
    image = main.images[0]
    assert bar.get_ylabel() == "covariance"
    assert image.get_array().shape == (20, 20)
    assert (image.norm.vmin, image.norm.vmax) == (0.0, image.get_array().max())
    assert min(image.cmap(image.norm(0.0))[:3]) > 0.95


@pytest.mark.slow
def test_no_backticks_in_pictures():
    data = load_dataset("sleepstudy").rename(columns={"Reaction": "my y", "Days": "my x"})
    reml = model_of("`my y` ~ `my x` + (`my x` | Subject)", data).reml()
    post = model_of("`my y` ~ `my x` + (`my x` | Subject)", data).fit(
        method="laplace", draws=50, random_seed=1
    )
    pictures = [
        reml.plot.caterpillar(backend="none"),
        reml.plot.fitted(levels=["308", "309"], uncertainty="plugin", draws=50, backend="none"),
        reml.plot.residuals(backend="none"),
        post.with_posterior_predictive(random_seed=1).plot.predictive(backend="none"),
        post.plot.shrinkage(backend="none"),
        post.plot.covariance("G", backend="none"),
    ]
    for picture in pictures:
        plots = [plot.item() for plot in picture.viz["plot"].dataset.data_vars.values()]
        elements = [e for plot in plots for e in plot] + [picture.viz["figure_title"].item()]
        shown = [str(e[k]) for e in elements for k in ("string", "labels", "label") if k in e]
        assert any("my" in text for text in shown)
        assert not any("`" in text for text in shown)
