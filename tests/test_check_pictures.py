"""Pictures of variances, new levels and checks: what is drawn equals the tables."""

import copy

import numpy as np
import pytest
from scipy.stats import norm
from slow_cases import slow

from bayeslmm import LMM, load_dataset
from bayeslmm.checks.row_extremes import RowExtremes
from bayeslmm.exceptions import DataError

SLOPE = "Reaction ~ Days + (Days | Subject)"
NONE = {"backend": "none"}


@pytest.fixture(scope="module")
def sleep():
    model = LMM(SLOPE, load_dataset("sleepstudy"))
    return model.fit(draws=250, random_seed=1), model.reml()


@pytest.fixture(scope="module")
def dyes():
    model = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    return model.fit(draws=250, random_seed=1), model.reml()


def drawn(collection, visual, panel=None):
    """What a visual was drawn with in a panel, or in the only one, along the series."""
    data = collection.viz[visual].dataset
    value = data[panel] if panel else next(iter(data.data_vars.values()))
    return (
        value.item() if not value.ndim else [one.item() for one in value if one.item() is not None]
    )


def texts(collection, function, panel):
    plot = collection.viz["plot"].dataset[panel].item()
    return [e.get("labels", e.get("string")) for e in plot if e["function"] == function]


def bounds(element, axis="x"):
    return np.reshape(element[axis], (-1, 3))[:, :2]


# --- variance --------------------------------------------------------------------------


def test_parts_of_the_variance_are_those_of_the_table(sleep):
    post, reml = sleep
    collection = post.plot.variance(prob=0.8, **NONE)
    table = post.variance_partition(0.8)
    np.testing.assert_allclose(drawn(collection, "point")[0]["x"], table["share_mean"])
    low = table[[c for c in table if c.startswith("share_") and c.endswith(("_lb", "_ub"))]]
    np.testing.assert_allclose(bounds(drawn(collection, "interval")[0]), low)
    assert texts(collection, "yticks", " ") == [["residual", "Subject", "fixed effects"]]
    collection = reml.plot.variance(fixed=False, **NONE)
    icc = reml.icc()["estimate"].iloc[0]
    np.testing.assert_allclose(drawn(collection, "point")[0]["x"], [icc, 1.0 - icc])
    assert "density" not in collection.viz.children  # of posteriors only


def test_parts_of_one_factor_are_told_apart():
    reml = LMM("Reaction ~ Days + (Days || Subject)", load_dataset("sleepstudy")).reml()
    labels = texts(reml.plot.variance(**NONE), "yticks", " ")[0]
    assert labels == ["residual", "Subject: Days", "Subject: Intercept", "fixed effects"]


# --- new levels ------------------------------------------------------------------------


def test_a_new_level_lies_where_heterogeneity_says(sleep):
    """Means and spread of the new level against moments of the posterior."""
    post, _ = sleep
    collection = post.plot.new_level(**NONE)
    labels = texts(collection, "yticks", "Days")[0]
    assert labels[0] == "new Subject"
    known, new = drawn(collection, "point", "Days")
    coefs = post.coef()["Subject"]["Days"]
    np.testing.assert_allclose(known["x"][::-1], coefs.loc[labels[1:]], rtol=1e-9)
    draws = post.data["posterior"]
    beta = draws["beta"].sel(coef="Days").to_numpy().ravel()
    sds = draws["sd_Subject"].sel(Subject_coef="Days").to_numpy().ravel()
    variance = beta.var() + np.mean(sds**2)
    assert new["x"][0] == pytest.approx(beta.mean(), abs=5 * np.sqrt(variance / len(beta)))
    inner = bounds(drawn(collection, "inner_interval", "Days")[1])[0]
    assert np.ptp(inner) == pytest.approx(2 * 0.6745 * np.sqrt(variance), rel=0.12)


def test_a_new_level_of_an_estimate_is_centred_at_the_fixed_effects(sleep):
    _, reml = sleep
    collection = reml.plot.new_level(coefs="Days", levels=["308", "309"], order="label", **NONE)
    known, new = drawn(collection, "point", "Days")
    assert new["x"][0] == pytest.approx(reml.fixef()["estimate"]["Days"])
    expected = reml.coef()["Subject"]["Days"].loc[["308", "309"]]
    np.testing.assert_allclose(known["x"], expected)
    with pytest.raises(ValueError, match="order='Days'"):
        reml.plot.new_level(order="Days", **NONE)
    with pytest.raises(DataError, match="Subject has no level 999"):
        reml.plot.new_level(levels=["999"], **NONE)


# --- influence -------------------------------------------------------------------------


def test_influence_of_levels(sleep):
    post, reml = sleep
    found = reml.check.influence("Subject", progressbar=False)
    collection = reml.plot.influence(found, **NONE)
    order = found.table["cooks_distance"].sort_values(ascending=False).index
    panel = "Cook's distance"
    assert texts(collection, "yticks", panel) == [[str(v) for v in order[::-1]]]
    marks = drawn(collection, "point", panel)
    np.testing.assert_allclose(marks[0]["x"], found.table["cooks_distance"].loc[order])
    marks = drawn(collection, "point", "dfbetas (standard errors)")
    np.testing.assert_allclose(marks[0]["x"], found.dfbetas["Intercept"].loc[order])
    found = post.check.influence("Subject", progressbar=False)
    collection = post.plot.influence("Subject", **NONE)
    marks = drawn(collection, "point")
    np.testing.assert_allclose(marks[0]["x"], found.table["kl"].sort_values(ascending=False))


def test_influence_of_rows(sleep):
    post, reml = sleep
    collection = reml.plot.influence(**NONE)
    table = reml.check.influence().table
    mark = drawn(collection, "points", "Cook's distance by row")
    np.testing.assert_allclose(mark["y"], table["cooks_distance"])
    mark = drawn(collection, "points", "residual and leverage")
    np.testing.assert_allclose(mark["x"], table["leverage"])
    largest = [str(v) for v in table["cooks_distance"].nlargest(3).index]
    written = texts(collection, "text", "Cook's distance by row")
    assert [text.strip() for text in written] == largest
    kl = post.check.influence().table["kl"]
    np.testing.assert_allclose(
        drawn(post.plot.influence(**NONE), "points", "divergence by row")["y"], kl
    )


def test_influence_refuses_what_is_none(dyes):
    _, reml = dyes
    extremes = RowExtremes(table=reml.check.influence().table, n=30, counts={})
    with pytest.raises(DataError, match="only the most extreme ones are known"):
        reml.plot.influence(extremes, **NONE)
    for by in (["Batch"], reml.fixef()):
        with pytest.raises(TypeError, match=f"returned; got {type(by).__name__}"):
            reml.plot.influence(by, **NONE)


# --- sensitivity and Pareto k ----------------------------------------------------------


def test_powers_of_prior_and_likelihood(dyes):
    post, _ = dyes
    found = post.check.sensitivity()
    collection = post.plot.sensitivity(found, **NONE)
    panel = "shift of the mean (sd)"
    likelihood, prior = drawn(collection, "point", panel)
    scaled = found.scaled["mean_shift"]
    np.testing.assert_allclose(likelihood["x"], scaled.loc[("likelihood", 1.25)])
    np.testing.assert_allclose(prior["x"], scaled.loc[("prior", 1.25)])
    lines = bounds(drawn(collection, "interval", panel)[0])
    np.testing.assert_allclose(lines[:, 0], scaled.loc[("likelihood", 0.8)])


def test_a_power_of_the_likelihood_does_what_more_data_would(sleep):
    """Of beta at n rows: the posterior variance falls by about the power."""
    scaled = sleep[0].check.sensitivity().scaled
    change = scaled.loc[("likelihood", 1.25), "sd_change"].loc["sigma"]
    assert change == pytest.approx(1.25**-0.5 - 1.0, abs=0.05)


def test_pareto_k_of_rows_and_levels(sleep):
    post, _ = sleep
    scores = post.loo(by="Subject", progressbar=False)
    collection = post.plot.pareto_k("Subject", scores=scores, **NONE)
    k = np.asarray(scores.pareto_k)
    shown = np.concatenate(
        [drawn(collection, name)["y"] for name in ("points", "again") if name in collection.viz]
    )
    np.testing.assert_allclose(np.sort(shown), np.sort(k))
    assert (drawn(collection, "again")["y"] == 0.0).all()
    assert texts(collection, "xlabel", "k ") == ["level of Subject"]
    assert texts(collection, "xticks", "k ")[0][0] == "308"
    given = post.plot.pareto_k(scores=scores, **NONE)  # the scores say what was left out
    assert texts(given, "xlabel", "k ") == ["level of Subject"]
    assert "level of Subject" in given.viz["figure_title"].item()["string"]
    rows = post.plot.pareto_k(conditional=True, **NONE)
    assert "again_limit" not in rows.viz  # nothing is sampled anew
    assert "sampled anew" not in str(drawn(rows, "legend")["labels"])
    assert texts(rows, "xlabel", "k ") == ["row"]
    assert "given the random effects" in rows.viz["figure_title"].item()["string"]


def test_an_infinite_pareto_k_is_unreliable(dyes):
    scores = copy.deepcopy(dyes[0].loo())
    scores.pareto_k[[3, 8]] = [np.inf, np.nan]
    collection = dyes[0].plot.pareto_k(scores=scores, **NONE)
    np.testing.assert_array_equal(drawn(collection, "poor")["x"], [4, 9])
    np.testing.assert_array_equal(drawn(collection, "poor")["y"], [1, 1])
    assert "unreliable: 2" in drawn(collection, "legend")["labels"]


# --- profiles --------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.3, slow(0.8), 0.999])
def test_profiles_pass_through_the_limits(dyes, level):
    _, reml = dyes
    collection = reml.plot.profile(level=level, **NONE)
    limits = reml.confint("profile", level=level)
    tail = 0.5 - level / 2
    for label in ("sigma", "sd[Batch, Intercept]", "beta[Intercept]"):
        places = bounds(drawn(collection, "limits", label))[2:, 0]
        expected = limits.loc[label, ["conf_low", "conf_high"]].to_numpy(dtype=float)
        if label.startswith("sd") and level == 0.999:  # the lower limit is the bound
            assert expected[0] == 0.0
            assert np.isnan(places[0])
            places, expected = places[1:], expected[1:]
        np.testing.assert_allclose(places, expected, rtol=1e-6)
        line = drawn(collection, "profile", label)
        assert (np.diff(line["x"]) > 0).all()
        at = np.interp(expected, line["x"], line["y"])
        np.testing.assert_allclose(at, norm.ppf([tail, 1 - tail])[-len(at) :], atol=5e-3)


def test_the_title_says_which_criterion_is_profiled(dyes):
    _, reml = dyes
    for labels, criteria in (
        (None, "(REML, fixed effects ML)"),
        ("sigma", "(REML)"),
        ("beta[Intercept]", "(ML)"),
    ):
        title = reml.plot.profile(labels, **NONE).viz["figure_title"].item()["string"]
        assert criteria in title


def test_a_parameter_without_a_profile_is_named():
    data = load_dataset("Dyestuff")
    reml = LMM("Yield ~ 1 + (1 | Batch)", data, fixed={"sigma": 50.0}).reml()
    assert "sigma" not in reml.plot.profile(**NONE).viz["profile"].dataset
    for labels in ("sigma", ["sigma", "sd[Batch, Intercept]"]):
        with pytest.raises(DataError, match="No profile can be drawn of sigma: the value is known"):
            reml.plot.profile(labels, **NONE)


def test_a_profile_ends_at_a_bound():
    reml = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff2")).reml()
    collection = reml.plot.profile("sd[Batch, Intercept]", **NONE)
    line = drawn(collection, "profile")
    assert line["y"].min() > 0.0  # the estimate is the bound
    with pytest.raises(ValueError, match="The model has no 'Batch'"):
        reml.plot.profile("Batch", **NONE)
