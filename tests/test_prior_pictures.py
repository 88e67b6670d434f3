"""Pictures of priors, of what they imply and of hypotheses: what is drawn equals the priors and the
tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slow_cases import one_in
from test_beyond_memory import batches
from test_effect_pictures import assert_legible, canvas, drawn, legend  # noqa: F401

from bayeslmm import LMM, load_dataset
from bayeslmm.exceptions import DataError, PriorError
from bayeslmm.plots.densities import curve_of_draws, marginal_prior
from bayeslmm.summaries.parameters import free_parameters, joint_parameter

EXACT = 1e-10
SLOPE = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def model():
    return LMM(SLOPE, load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def post(model):
    return model.fit(draws=250, random_seed=1)


def oats(formula, **options):
    return LMM(formula, load_dataset("Oats"), **options)


MODELS = {
    "slope": lambda: LMM(SLOPE, load_dataset("sleepstudy")),
    "uncorrelated": lambda: LMM("Reaction ~ Days + (Days || Subject)", load_dataset("sleepstudy")),
    "own": lambda: LMM(
        SLOPE,
        load_dataset("sleepstudy"),
        priors={
            "sd[Subject]": "exponential(0.1)",
            "cor[Subject]": "lkj(2)",
            "Days": "normal(5, 3)",
        },
    ),
    "sampled": lambda: LMM(
        SLOPE, load_dataset("sleepstudy"), priors={"Days": "student_t(4, 0, 10)"}
    ),
    "three": lambda: oats(
        "yield ~ factor(nitro) + (0 + Variety | Block)", priors={"sd[Block]": "normal(0, 20)"}
    ),
    "structure": lambda: LMM(
        "distance ~ age + (1 | Subject)", load_dataset("Orthodont"), residual="ar1(age | Subject)"
    ),
}


@pytest.mark.parametrize("name", one_in(2, MODELS))
def test_densities_of_priors_are_those_of_their_draws(name):
    """Kolmogorov's distance of 20,000 draws: 0.014 is its 99.9 % point."""
    model = MODELS[name]()
    draws = model.priors.sample(np.random.default_rng(4), 20_000)
    known = 0
    for row in free_parameters(model.design):
        logpdf, values = marginal_prior(model.priors, row), joint_parameter(draws, row)
        if logpdf is None:
            continue
        known += 1
        low, high = np.quantile(values, [0.001, 0.995])
        grid = np.linspace(low, high, 20_001)
        height = np.exp(logpdf(grid))
        middle = np.cumsum((height[1:] + height[:-1]) / 2 * np.diff(grid))
        found = np.searchsorted(np.sort(values), grid[1:]) / len(values)
        assert np.abs(found - found[0] - middle + middle[0]).max() < 0.014, row.label
    assert known >= 2


def test_densities_of_draws_have_their_bounds():
    draws = np.abs(np.random.default_rng(1).normal(size=20_000))
    curve = curve_of_draws(draws)
    assert 0 <= curve.x[0] < 0.01
    near = np.interp([0.02, 1.0, 2.0], curve.x, curve.height)
    np.testing.assert_allclose(near, 2 * stats.norm.pdf([0.02, 1.0, 2.0]), rtol=0.12)
    assert curve_of_draws(np.ones(10)).height.tolist() == [0.0, 0.0]


def test_prior_and_posterior_are_on_one_scale(model, post):
    collection = post.plot.prior_posterior(backend="none")
    assert list(collection.viz["prior"].data_vars) == list(post.summary().index)
    for label, kind in (("beta[Days]", "prior"), ("sigma", "prior"), ("sigma", "posterior")):
        line = drawn(collection, kind, label)
        width = np.diff(line["x"])
        area = np.sum(width * (np.array(line["y"])[1:] + np.array(line["y"])[:-1]) / 2)
        assert 0.88 < area < 1.01
    line = drawn(collection, "prior", "sigma")
    sd = load_dataset("sleepstudy")["Reaction"].std()
    expected = 2 * stats.t.pdf(np.array(line["x"]) / sd, 3) / sd
    np.testing.assert_allclose(line["y"], expected, rtol=1e-6)
    values = post.data["posterior"]["sigma"].to_numpy()
    after = drawn(collection, "posterior", "sigma")
    assert values.min() <= after["x"][0] and after["x"][-1] <= values.max()
    assert legend(collection) == ["prior", "posterior"]


def test_priors_before_a_fit(model):
    collection = model.plot.priors(["sigma", "beta[Days]"], backend="none")
    assert list(collection.viz["prior"].data_vars) == ["sigma", "beta[Days]"]
    assert "posterior" not in collection.viz.children
    with pytest.raises(ValueError, match="The model has no 'Days'"):
        model.plot.priors("Days", backend="none")
    flat = LMM(SLOPE, load_dataset("sleepstudy"), priors="flat")
    for picture in (flat.plot.priors, flat.plot.implied_priors, flat.plot.prior_predictive):
        with pytest.raises(PriorError, match="Flat priors cannot be drawn from"):
            picture(backend="none")
    assert repr(model.plot).startswith("model.plot: implied_priors, prior_predictions, ")


def test_implied_priors_are_those_of_the_table(model):
    collection = model.plot.implied_priors(random_seed=3, backend="none")
    table = model.implied_priors(random_seed=3).table
    assert list(collection.viz["prior"].data_vars) == list(table.index[:-1])
    row = table.loc["icc[Subject]"]
    plot = collection.viz["plot"].dataset["icc[Subject]"].item()
    (text,) = (e["string"] for e in plot if e["function"] == "xlabel")
    expected = f"median {row['q50']:.3g} 90 %: {row['q5']:.3g} to {row['q95']:.3g}"
    assert text.replace("\xa0", " ").replace("\n", " ") == expected
    assert drawn(collection, "line", "sd_y")["x"] == pytest.approx(table.loc["sd_y", "observed"])


def test_prior_predictive(model):
    data = model.prior_predictive(20, random_seed=2)
    collection = model.plot.prior_predictive(draws=20, random_seed=2, backend="none")
    assert collection.viz["predictive_dist"].sizes["sample"] == 20
    values = data["prior_predictive"]["y"].to_numpy()
    first = drawn(collection, "predictive_dist", "y", sample=0)["x"]
    assert any(abs(np.min(first) - draw.min()) < 0.2 * draw.std() for draw in values[0])
    by = model.plot.prior_predictive(by="Subject", draws=5, backend="none")
    assert len(by.viz["observed_dist"].data_vars) == 18
    assert legend(by) == ["observed", "drawn from the prior"]
    streamed = LMM(SLOPE, batches(load_dataset("sleepstudy")))
    with pytest.raises(DataError, match="data frame in memory"):
        streamed.plot.prior_predictive(backend="none")
    assert streamed.plot.prior_predictions("Days", backend="none").viz["curve"] is not None


def test_prior_predictions(model):
    collection = model.plot.prior_predictions(
        "Days", kind="response", prob=0.8, random_seed=1, backend="none"
    )
    curve, band = drawn(collection, "curve"), drawn(collection, "band")
    beta, root = model.priors.beta_mean, model.priors.beta_root
    X = np.column_stack([np.ones(40), curve["x"]])
    sd = np.linalg.norm(np.linalg.solve(root.T, X.T), axis=0)
    error = 5 * sd / np.sqrt(4000)  # five standard errors of 4,000 draws
    assert np.all(np.abs(curve["y"] - X @ beta) < error)
    assert np.all(np.abs(np.subtract(band["y_top"], X @ beta + 1.2816 * sd)) < 2 * error)
    line = drawn(collection, "wider_band")
    assert np.all(np.array(line["y"][:40]) < band["y_bottom"])
    assert len(drawn(collection, "draws")["x"]) == 50 * 41
    assert legend(collection)[0] == "prior mean, 50 % and 80 % ETI, draws"


# --- hypotheses ------------------------------------------------------------------------


def test_hypotheses_of_a_posterior(post):
    expressions = ["Days > 5", "Days = 10", "sd[Subject, Intercept] > 4 * sd[Subject, Days]"]
    collection = post.plot.hypothesis(expressions, rope=1, backend="none")
    table = post.hypothesis(expressions, rope=1).table()
    assert list(collection.viz["posterior"].data_vars) == expressions
    for text, row in table.iterrows():
        line = drawn(collection, "posterior", text)
        height = np.array(line["y"])
        assert np.average(line["x"], weights=height) == pytest.approx(
            row["mean"], abs=0.05 * row["sd"]
        )
        assert drawn(collection, "line", text)["x"] == 0.0
        region = drawn(collection, "region", text)
        assert (region["xmin"], region["xmax"]) == (-1.0, 1.0)
        plot = collection.viz["plot"].dataset[text].item()
        below = next(e["string"] for e in plot if e["function"] == "xlabel")
        assert f"evidence ratio {row['bound']}{row['evidence_ratio']:.3g}" in below
        assert f"in the region {row['rope_probability']:.3g}" in below
    prior, after = (drawn(collection, kind, "Days = 10") for kind in ("prior", "posterior"))
    ratio = np.interp(0.0, after["x"], after["y"]) / np.interp(0.0, prior["x"], prior["y"])
    assert ratio == pytest.approx(table.loc["Days = 10", "evidence_ratio"], rel=0.15)
    assert legend(collection)[-1] == "region of practical equivalence"


def test_hypotheses_under_flat_priors_and_too_many(model):
    flat = model.update(priors="flat").fit(method="laplace", draws=100, random_seed=1)
    collection = flat.plot.hypothesis("Days > 5", backend="none")
    assert "prior" not in collection.viz.children
    with pytest.raises(DataError, match="There are 25 hypotheses; a picture has at most 24"):
        flat.plot.hypothesis([f"Days > {i}" for i in range(25)], backend="none")


def test_hypotheses_of_an_estimate(model):
    reml, expressions = model.reml(), ["Days > 5", "Days = 10"]
    collection = reml.plot.hypothesis(expressions, level=0.9, backend="none")
    table = reml.hypothesis(expressions).table(0.9)
    ends = np.reshape(drawn(collection, "interval")["x"], (-1, 3))[:, :2]
    np.testing.assert_allclose(ends, table[["conf_low", "conf_high"]], rtol=EXACT)
    np.testing.assert_array_equal(drawn(collection, "point")["y"], [1.0, 0.0])


PICTURES = {
    "hypothesis": lambda post: post.plot.hypothesis(
        ["Days > 5", "sd[Subject, Intercept] > 4 * sd[Subject, Days]"], rope=1
    ),
    "implied": lambda post: LMM.from_fit(post).plot.implied_priors(),
    "prior_posterior": lambda post: post.plot.prior_posterior(),
}


@pytest.mark.parametrize("name", one_in(3, PICTURES))
def test_pictures_are_legible(name, post, canvas, tmp_path):  # noqa: F811
    assert_legible(PICTURES[name](post), tmp_path)


def test_frames_are_left_alone(model):
    before = load_dataset("sleepstudy")
    frame = before.copy()
    LMM(SLOPE, frame).plot.prior_predictions("Days", backend="none")
    pd.testing.assert_frame_equal(frame, before)


def test_pictures_of_parameters_take_the_short_names_of_hypotheses():
    model = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    post, reml = model.fit(draws=100, chains=2, random_seed=1), model.reml()
    label = "sd[Batch, Intercept]"
    before = post.plot.prior_posterior(label, backend="none").viz["prior"]
    after = post.plot.prior_posterior(["sd[Batch]", label], backend="none").viz["prior"]
    assert list(after.data_vars) == list(before.data_vars)
    one = reml.plot.profile("sd[Batch]", backend="none").viz["profile"]
    assert list(one.data_vars) == list(before.data_vars)
    assert len(post.plot.reml(reml, labels="sd[Batch]", backend="none").viz["title"].data_vars) == 1
    with pytest.raises(ValueError, match=r"no 'sd\[Cask\]'"):
        post.plot.prior_posterior("sd[Cask]", backend="none")


def test_a_short_name_of_several_parameters_is_refused():
    model = LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    with pytest.raises(ValueError, match=r"no 'sd\[Subject\]'"):
        model.reml().plot.profile("sd[Subject]", backend="none")
    turned = model.reml().plot.profile("cor[Subject, Days, Intercept]", backend="none")
    assert len(turned.viz["profile"].data_vars) == 1
