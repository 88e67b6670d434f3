"""Marginal means, contrasts, slopes and hypotheses beside plain computation from the draws."""

import itertools

import numpy as np
import pandas as pd
import pytest
from arviz_base import rc_context
from reference_data import load_reference_data
from scipy import stats

import bayeslmm as blm
from bayeslmm.effects.contrasts import contrast_weights
from bayeslmm.effects.expressions import evaluate_node, parse_hypothesis
from bayeslmm.effects.hypothesis import conditional_moments
from bayeslmm.effects.multiplicity import Comparisons, simultaneous_interval
from bayeslmm.exceptions import DataError, FormulaError

EXACT = 1e-9
"""Relative error of sums in another order."""

DIFFERENCE = 1e-7
"""Relative error of second-order differences with a step of 1e-4 of the range."""


@pytest.fixture(scope="module")
def orthodont():
    return blm.load_dataset("Orthodont")


@pytest.fixture(scope="module")
def growth(orthodont):
    model = blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont)
    return model.fit(method="laplace", draws=300, chains=2, random_seed=1)


@pytest.fixture(scope="module")
def growth_reml(orthodont):
    return blm.LMM("distance ~ age * Sex + (age | Subject)", orthodont).reml()


@pytest.fixture(scope="module")
def sleep():
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    return model.fit(draws=1000, chains=4, random_seed=1)


def draws_of(post, name):
    values = post.data["posterior"][name].to_numpy()
    return values.reshape(-1, *values.shape[2:])


# --- means on draws --------------------------------------------------------------------


def test_means_are_computed_on_draws(growth):
    beta = draws_of(growth, "beta")  # Intercept, age, Sex[T.Female], age:Sex[T.Female]
    male = beta[:, 0] + 11.0 * beta[:, 1]  # 11 is the mean age
    female = male + beta[:, 2] + 11.0 * beta[:, 3]
    means = growth.means("Sex")
    np.testing.assert_allclose(
        means.draws.to_numpy().reshape(-1, 2), np.column_stack([male, female]), rtol=EXACT
    )
    table = means.table(prob=0.8)
    assert table.index.tolist() == ["Male", "Female"]
    np.testing.assert_allclose(table["mean"], [male.mean(), female.mean()], rtol=EXACT)
    np.testing.assert_allclose(table.iloc[1, 3:], np.quantile(female, [0.1, 0.9]), rtol=EXACT)
    difference = growth.contrasts("Sex").table()
    np.testing.assert_allclose(difference["sd"], np.std(male - female, ddof=1), rtol=EXACT)
    assert difference.index.tolist() == ["Male - Female"]


def test_intervals_follow_arviz(growth):
    with rc_context({"stats.ci_prob": 0.5, "stats.ci_kind": "hdi"}):
        assert growth.means("Sex").table().columns[-2:].tolist() == ["hdi50_lb", "hdi50_ub"]


def test_draws_are_for_arviz(growth):
    draws = growth.means("Sex", by="age", at={"age": [8, 14]}).draws
    assert draws.dims == ("chain", "draw", "quantity")
    assert draws.shape == (2, 300, 4)
    assert draws["quantity"].to_numpy().tolist() == ["Male 8", "Female 8", "Male 14", "Female 14"]


def test_the_plain_average_is_over_draws_not_bounds(sleep):
    rows = draws_of(sleep, "beta") @ sleep.design.X.T
    table = sleep.average_predictions().table()
    np.testing.assert_allclose(table["mean"], rows.mean(), rtol=EXACT)
    np.testing.assert_allclose(
        table.iloc[0, 3:5], np.quantile(rows.mean(axis=1), [0.055, 0.945]), rtol=EXACT
    )


@pytest.mark.parametrize("store_u", [True, False])
def test_conditional_averages_have_the_random_effects(store_u):
    pastes = blm.load_dataset("Pastes")
    model = blm.LMM("strength ~ 1 + (1 | batch / cask)", pastes)
    post = model.fit(draws=200, chains=2, random_seed=3, store_u=store_u)
    table = post.average_predictions("batch", target="conditional")
    batch, cask = post._joint.effects([np.arange(f.n_levels) for f in post.design.random])
    by_name = {f.name: f for f in post.design.random}
    factor, nested = by_name["batch"], by_name["batch:cask"]
    rows = post._joint.beta[:, :1] + batch[:, factor.codes, 0] + cask[:, nested.codes, 0]
    expected = np.column_stack(
        [rows[:, (pastes["batch"] == level).to_numpy()].mean(axis=1) for level in factor.levels]
    )
    got = table.draws.to_numpy().reshape(400, -1)
    assert table.table().index.tolist() == factor.levels.tolist()
    np.testing.assert_allclose(got, expected, rtol=EXACT)


def test_conditional_slopes_are_those_of_the_levels(sleep):
    slopes = sleep.slopes("Days", by="Subject", target="conditional").table()
    np.testing.assert_allclose(slopes["mean"], sleep.coef()["Subject"]["Days"], rtol=DIFFERENCE)
    population = sleep.slopes("Days").table()["mean"].iloc[0]
    assert population == pytest.approx(sleep.beta["Days"], rel=DIFFERENCE)
    changed = sleep.comparisons("Days", (0, 9), by="Subject", target="conditional").table()
    np.testing.assert_allclose(changed["mean"], 9.0 * slopes["mean"], rtol=DIFFERENCE)


def test_conditional_needs_known_levels(sleep):
    rows = pd.DataFrame({"Days": [1.0], "Subject": ["new"]})
    with pytest.raises(DataError, match="needs known levels of `Subject`"):
        sleep.average_predictions(new=rows, target="conditional")
    with pytest.raises(ValueError, match="reference grid"):
        sleep.slopes("Days", at={"Days": [1]}, target="conditional")


# --- slopes and comparisons ------------------------------------------------------------


@pytest.mark.parametrize(
    ("term", "derivative"),
    [
        ("log(x + 1)", lambda x, b: b["log(x + 1)"] / (x + 1.0)),
        ("x + I(x ** 2)", lambda x, b: b["x"] + 2.0 * x * b["I(x ** 2)"]),
        ("scale(x)", lambda x, b: b["scale(x)"] / x.std(ddof=1) * np.ones_like(x)),
    ],
)
def test_slopes_are_derivatives(term, derivative):
    data = load_reference_data("sim_design")
    reml = blm.LMM(f"y ~ {term} + f1 + (1 | g)", data).reml()
    each = derivative(data["x"].to_numpy(), reml.beta)
    got = reml.slopes("x").table()["estimate"].iloc[0]
    assert got == pytest.approx(each.mean(), rel=DIFFERENCE)
    by = reml.slopes("x", by="f1").table()["estimate"]
    expected = pd.Series(each).groupby(data["f1"], observed=True).mean()
    np.testing.assert_allclose(by, expected, rtol=DIFFERENCE)


@pytest.mark.parametrize("term", ["bs(x, df=5)", "ns(x, 3)", "poly(x, 2)"])
def test_slopes_of_splines_stay_within_the_knots(term):
    data = load_reference_data("sim_design")
    reml = blm.LMM(f"y ~ {term} + (1 | g)", data).reml()
    at = np.array([data["x"].min(), 3.1, data["x"].max()])
    got = reml.slopes("x", at={"x": at}, by="x").table()["estimate"]
    step = 1e-5
    inner = np.clip(at, at[0] + step, at[2] - step)
    ends = [reml.design.spec.rows({"x": inner + s * step}, random="none").X for s in (1, -1)]
    expected = (ends[0] - ends[1]) @ reml.beta.to_numpy() / (2.0 * step)
    # the differences at the ends are taken 1e-5 away from them
    np.testing.assert_allclose(got, expected, rtol=2e-4)


def test_slopes_include_the_offset():
    data = load_reference_data("sim_offset")
    reml = blm.LMM("y ~ x + offset(2 * x) + (1 | g)", data).reml()
    got = reml.slopes("x").table()["estimate"].iloc[0]
    assert got == pytest.approx(reml.beta["x"] + 2.0, rel=DIFFERENCE)
    means = reml.means("x", at={"x": [0, 1]}).contrasts([[-1, 1]]).table()["estimate"].iloc[0]
    assert means == pytest.approx(reml.beta["x"] + 2.0, rel=EXACT)


def test_means_hold_the_offset_at_its_mean():
    data = load_reference_data("sim_offset")
    reml = blm.LMM("y ~ x + offset(o) + (1 | g)", data).reml()
    plain = reml.beta["Intercept"] + reml.beta["x"] * data["x"].mean()
    got = reml.means().table()["estimate"].iloc[0]
    assert got == pytest.approx(plain + data["o"].mean(), rel=EXACT)
    at = reml.means("o", at={"o": [0, 5]}).table()["estimate"]
    np.testing.assert_allclose(at, [plain, plain + 5.0], rtol=EXACT)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        (None, 1.0),
        (3, 3.0),
        ((2, 7), 5.0),
        ("sd", np.sqrt(8.25 * 180 / 179)),
        ("2sd", 2 * np.sqrt(8.25 * 180 / 179)),
        ("iqr", 5.0),
        ("minmax", 9.0),
    ],
)
def test_comparisons_of_a_covariate(sleep, change, factor):
    # Days are 0 to 9 for each of 18 subjects: variance 8.25 with ddof 0, quartiles 2 and 7
    draws = sleep.comparisons("Days", change).draws.to_numpy().ravel()
    np.testing.assert_allclose(draws, factor * draws_of(sleep, "beta")[:, 1], rtol=1e-6)


def test_comparisons_of_a_factor_average_over_rows(growth_reml, orthodont):
    b = growth_reml.beta
    expected = b["Sex[T.Female]"] + b["age:Sex[T.Female]"] * orthodont["age"].mean()
    table = growth_reml.comparisons("Sex").table()
    assert table.index.tolist() == ["Sex: Female - Male"]
    assert table["estimate"].iloc[0] == pytest.approx(expected, rel=EXACT)
    turned = growth_reml.comparisons("Sex", ("Female", "Male")).table()["estimate"].iloc[0]
    assert turned == pytest.approx(-expected, rel=EXACT)
    young = growth_reml.comparisons("Sex", new=orthodont[orthodont["age"] == 8]).table()
    expected = b["Sex[T.Female]"] + b["age:Sex[T.Female]"] * 8.0
    assert young["estimate"].iloc[0] == pytest.approx(expected, rel=EXACT)


def test_average_predictions_of_balanced_data_are_the_means_of_the_response(growth_reml, orthodont):
    # every child is measured at all ages, so GLS fits the means of the sexes exactly
    expected = orthodont.groupby("Sex", observed=True)["distance"].mean()
    got = growth_reml.average_predictions("Sex").table()["estimate"]
    np.testing.assert_allclose(got, expected, rtol=1e-7)


# --- kinds of variables ----------------------------------------------------------------


def test_factors_of_every_kind():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {
            "flag": rng.random(120) < 0.4,
            "text": rng.choice(["u", "v", "w"], 120),
            "day": rng.choice([1, 2, 4], 120),
            "my x": rng.normal(size=120),
            "g": np.repeat(np.arange(12), 10),
        }
    )
    frame["y"] = frame["flag"] + frame["my x"] + frame["day"] + rng.normal(size=120)
    reml = blm.LMM("y ~ flag * text + C(day) + `my x` + (1 | g)", frame).reml()
    assert reml.means("flag").table().index.tolist() == [False, True]
    assert reml.means("text").table().index.tolist() == ["u", "v", "w"]
    days = reml.means("day").table()
    assert days.index.tolist() == [1, 2, 4]
    difference = reml.contrasts("day", {"4 - 1": {4: 1, 1: -1}}).table()["estimate"].iloc[0]
    assert difference == pytest.approx(reml.beta["C(day)[T.4]"], rel=EXACT)
    slope = reml.slopes("my x").table()["estimate"].iloc[0]
    assert slope == pytest.approx(reml.beta["my x"], rel=DIFFERENCE)
    flagged = reml.comparisons("flag", by="text").table()["estimate"]
    b = reml.beta
    expected = b["flag[T.True]"] + np.array(
        [0.0, b["flag[T.True]:text[T.v]"], b["flag[T.True]:text[T.w]"]]
    )
    np.testing.assert_allclose(flagged, expected, rtol=EXACT)
    assert reml.hypothesis("flag[True] - flag[False] > 0").table()["p_value"].iloc[0] < 0.05
    assert set(reml.anova().index) == {"flag", "text", "C(day)", "`my x`", "flag:text"}


def test_without_an_intercept():
    machines = blm.load_dataset("Machines")
    cells = blm.LMM("score ~ 0 + Machine + (1 | Worker)", machines).reml()
    usual = blm.LMM("score ~ Machine + (1 | Worker)", machines).reml()
    pd.testing.assert_frame_equal(
        cells.means("Machine").table(), usual.means("Machine").table(), rtol=1e-5
    )
    np.testing.assert_allclose(cells.means("Machine").table()["estimate"], cells.beta)


def test_rows_with_missing_values_do_not_count():
    data = load_reference_data("sim_missing")
    reml = blm.LMM("y ~ x1 + x2 + f + (1 | g)", data).reml()
    used = data.dropna(subset=["y", "x1", "x2", "f", "g"])
    assert len(used) < len(data)
    b = reml.beta
    overall = b["Intercept"] + b["x1"] * used["x1"].mean() + b["x2"] * used["x2"].mean()
    first = reml.means("f").table()["estimate"].iloc[0]
    assert first == pytest.approx(overall, rel=EXACT)


def test_singular_fits_have_means():
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    assert reml.singular
    table = reml.means().table()
    assert table["estimate"].iloc[0] == pytest.approx(reml.beta["Intercept"])
    assert table["std_error"].iloc[0] == pytest.approx(reml.fixef()["std_error"].iloc[0])


def test_crossed_factors_leave_population_means_alone():
    model = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", blm.load_dataset("Penicillin"))
    post = model.fit(method="laplace", draws=100, chains=1, random_seed=1)
    got = post.means(target="population").draws.to_numpy().ravel()
    np.testing.assert_allclose(got, draws_of(post, "beta")[:, 0], rtol=EXACT)


def test_what_cannot_be_estimated_is_nan_on_draws_too():
    data = load_reference_data("sim_rankdef")
    model = blm.LMM("y ~ a * b + (1 | g)", data)
    post = model.fit(method="laplace", draws=100, chains=1, random_seed=1)
    means = post.means(["a", "b"])
    assert means.estimable.tolist() == [True] * 5 + [False]
    table = means.table(simultaneous=True)
    assert table.isna().all(axis=1).tolist() == [False] * 5 + [True]
    assert "1 of 6 cannot be estimated" in repr(means)
    # the difference of two such cells can be, where the unknown part cancels
    same = means.contrasts({"zero": [0, 0, 0, 0, 0, 0], "a3": [0, 0, -1, 0, 0, 1]}).table()
    assert same["mean"].iloc[0] == 0.0
    assert np.isnan(same["mean"].iloc[1])
    row = post.hypothesis(["b[b2] > 0", "b[b1] > 0"]).table()
    assert row["probability"].isna().tolist() == [True, False]


def test_map_estimates_have_normal_tests(orthodont):
    mode = blm.LMM("distance ~ age * Sex + (1 | Subject)", orthodont).map()
    table = mode.means("Sex").table()
    assert np.isinf(table["df"]).all()
    np.testing.assert_allclose(
        table["conf_high"], table["estimate"] + stats.norm.ppf(0.975) * table["std_error"]
    )
    row = mode.contest([[0, 0, 1, 0], [0, 0, 0, 1]]).iloc[0]
    assert row["p_value"] == pytest.approx(stats.chi2.sf(2 * row["statistic"], 2))


def test_map_estimates_say_what_their_tests_are(orthodont, growth_reml):
    mode = blm.LMM("distance ~ age * Sex + (1 | Subject)", orthodont).map()
    for made in (mode.means("Sex"), mode.contrasts("Sex"), mode.hypothesis("age > 0")):
        assert "normal (no t tests)" in repr(made)
        assert "normal (no t tests)" in made._repr_html_()
    for table in (mode.anova(), mode.contest([[0, 1, 0, 0]]), mode.means("Sex").joint_test()):
        assert "chi-square" in table.attrs["note"]
    assert "MAP" not in repr(growth_reml.means("Sex")) + repr(growth_reml.hypothesis("age > 0"))
    assert growth_reml.anova().attrs == {}


def test_a_transformed_response_is_named(orthodont, growth_reml):
    data = orthodont.assign(**{"my y": orthodont["distance"]})
    reml = blm.LMM("log(distance) ~ age * Sex + (1 | Subject)", data).reml()
    quantities = [
        reml.means("Sex"),
        reml.contrasts("Sex"),
        reml.slopes("age"),
        reml.slopes("age", new="grid"),
        reml.comparisons("age"),
        reml.average_predictions("Sex"),
    ]
    for made in quantities:
        assert made.notes[0] == "On the scale of log(distance), the response of the model."
        assert made.notes[0] in repr(made)
    assert not any(note.startswith("On the scale") for note in growth_reml.means("Sex").notes)
    assert blm.LMM("`my y` ~ age + (1 | Subject)", data).reml().means().notes == ()
    assert blm.LMM("Q('my y') ~ age + (1 | Subject)", data).reml().means().notes == ()


# --- contrasts and their adjustment ----------------------------------------------------


def test_contrast_methods():
    names = ["a", "b", "c"]
    weights, labels = contrast_weights("sequential", names, names)
    assert labels == ["b - a", "c - b"]
    assert weights.tolist() == [[-1, 1, 0], [0, -1, 1]]
    weights, labels = contrast_weights("polynomial", list("abcd"), list("abcd"))
    assert weights.tolist() == [[-3, -1, 1, 3], [1, -1, -1, 1], [-1, 3, -3, 1]]
    assert labels == ["linear", "quadratic", "cubic"]
    weights, labels = contrast_weights([[0.5, 0.5, -1]], names, names)
    assert labels == ["0.5 a + 0.5 b - c"]
    frame = pd.DataFrame([[1, 0, -1]], index=["a - c"])
    assert contrast_weights(frame, names, names)[1] == ["a - c"]


def test_contrasts_of_contrasts(growth_reml):
    means = growth_reml.means("Sex", by="age", at={"age": [8, 14]})
    interaction = means.contrasts().contrasts([[1, -1]]).table()["estimate"].iloc[0]
    assert interaction == pytest.approx(6.0 * growth_reml.beta["age:Sex[T.Female]"], rel=1e-7)


def test_two_weights_of_one_family(growth_reml):
    test = growth_reml.means("Sex", by="age", at={"age": [8, 14]}).contrasts().joint_test()
    direct = growth_reml.contest([[0, 0, -1, -8], [0, 0, -1, -14]])
    np.testing.assert_allclose(test, direct, rtol=1e-7)


def test_joint_test_holds_offsets():
    data = load_reference_data("sim_offset")
    reml = blm.LMM("y ~ x + offset(o) + (1 | g)", data).reml()
    t = reml.means().table()["statistic"].iloc[0]
    assert reml.means().joint_test()["statistic"].iloc[0] == pytest.approx(t**2)


def test_holm_is_the_step_down_of_bonferroni():
    raw = np.array([0.01, 0.04, 0.03, np.nan])
    t = stats.t.isf(raw / 2.0, 10.0)
    got = Comparisons(statistic=t, df=np.full(4, 10.0)).p_values("holm")
    np.testing.assert_allclose(got[:3], [0.03, 0.06, 0.06])
    assert np.isnan(got[3])


def test_tukey_is_never_below_the_unadjusted():
    """Far out, where the integral of the studentised range has no digits left."""
    t, df = np.array([3.0, 60.0, 500.0]), np.full(3, 10.0)
    raw, got = 2.0 * stats.t.sf(t, df), Comparisons(statistic=t, df=df, means=3).p_values("tukey")
    assert (got >= raw).all()
    assert (got <= 3.0 * raw).all()
    assert got[0] == pytest.approx(stats.studentized_range.sf(np.sqrt(2.0) * 3.0, 3, 10.0))


def test_tukey_of_two_means_is_the_t_test(growth_reml):
    contrast = growth_reml.contrasts("Sex")
    assert contrast.adjust == "tukey"
    pd.testing.assert_frame_equal(contrast.table(), contrast.table(adjust="none"))


def test_no_adjustment_adjusts_nothing():
    model = blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))
    reml = model.reml()
    adjusted = reml.contrasts("Machine")
    plain = adjusted.table(adjust="none")
    assert (plain["p_value"] < adjusted.table()["p_value"]).all()
    pd.testing.assert_frame_equal(adjusted.table(adjust=None), plain)
    for made in (
        reml.contrasts("Machine", adjust=None),
        reml.means("Machine").contrasts(adjust=None),
        reml.means("Machine").contrasts("reference", adjust=None),
    ):
        assert "multiplicity" not in repr(made)
        pd.testing.assert_frame_equal(made.table(), made.table(adjust="none"))
    post = model.fit(method="laplace", draws=50, random_seed=1)
    pd.testing.assert_frame_equal(
        post.means("Machine").contrasts(adjust=None).table(adjust=None),
        post.contrasts("Machine").table(),
    )


def test_only_adjustments_that_adjust_are_announced():
    machines = blm.load_dataset("Machines")
    reml = blm.LMM("score ~ Machine + (1 | Worker)", machines).reml()
    two = machines[machines["Machine"] != "C"].astype({"Machine": str})
    pair = blm.LMM("score ~ Machine + (1 | Worker)", two).reml()
    for adjust in ("tukey", "holm", "bonferroni", "sidak"):
        assert f"multiplicity: {adjust}" in repr(reml.contrasts("Machine", adjust=adjust))
        contrasts = pair.contrasts("Machine", adjust=adjust)
        assert "multiplicity" not in repr(contrasts)
        pd.testing.assert_frame_equal(contrasts.table(), contrasts.table(adjust="none"))
    assert "multiplicity" not in repr(reml.contrasts("Machine", adjust="none"))


def test_tukey_covers_simultaneously():
    rng = np.random.default_rng(5)
    df, means = 7.0, 4
    z = rng.normal(size=(100_000, means)) / np.sqrt(rng.chisquare(df, (100_000, 1)) / df)
    pairs = list(itertools.combinations(range(means), 2))
    largest = np.max([np.abs(z[:, i] - z[:, j]) / np.sqrt(2.0) for i, j in pairs], axis=0)
    tests = Comparisons(statistic=np.full(2, 2.5), df=np.full(2, df), means=means)
    got = tests.p_values("tukey")[0]
    # standard error of the simulated probability: 0.0011
    assert got == pytest.approx(np.mean(largest > 2.5), abs=0.005)


def test_simultaneous_intervals_hold_all_at_once():
    rng = np.random.default_rng(2)
    draws = rng.multivariate_normal([0, 1, 2], [[1, 0.8, 0], [0.8, 1, 0], [0, 0, 4]], 4000)
    lower, upper = simultaneous_interval(draws, 0.9)
    inside = np.mean(((draws >= lower) & (draws <= upper)).all(axis=1))
    assert inside == pytest.approx(0.9, abs=0.002)
    single = np.quantile(draws, [0.05, 0.95], axis=0)
    assert np.all(lower < single[0])
    assert np.all(upper > single[1])


# --- hypotheses ------------------------------------------------------------------------


def test_probabilities_and_odds_come_from_draws(sleep):
    sd, sigma = draws_of(sleep, "sd_Subject"), draws_of(sleep, "sigma")
    beta, cor = draws_of(sleep, "beta"), draws_of(sleep, "cor_Subject")[:, 0, 1]
    share = sd[:, 0] ** 2 / (sd[:, 0] ** 2 + sigma**2)
    expected = {
        "Days > 10": beta[:, 1] > 10,
        "beta[Intercept] - 20 * Days < 40": beta[:, 0] - 20 * beta[:, 1] < 40,
        "cor[Subject, Intercept, Days] > 0": cor > 0,
        "sd[Subject,Intercept]**2 / (sd[Subject, Intercept]^2 + sigma**2) > 0.5": share > 0.5,
        "sqrt(sigma) < 5": np.sqrt(sigma) < 5,
    }
    table = sleep.hypothesis(list(expected)).table()
    for name, holds in expected.items():
        assert table.loc[name, "probability"] == holds.mean()
        odds = holds.mean() / (1.0 - holds.mean())
        assert table.loc[name, "posterior_odds"] == pytest.approx(odds)
    assert table.loc["Days > 10", "mean"] == pytest.approx(beta[:, 1].mean() - 10.0)


def test_odds_have_a_bound_where_all_draws_agree(sleep):
    result = sleep.hypothesis(["Days > 0", "Days < 0", "Days > 10"])
    table = result.table()
    assert table["bound"].tolist() == [">", "<", ""]
    assert table["posterior_odds"].iloc[:2].tolist() == [4000.0, 1 / 4000]
    assert "> 4000" in repr(result)
    assert "inf" not in repr(result)


def test_prior_odds_are_those_of_prior_draws(sleep):
    hypotheses = ["Days > 20", "Intercept + 9 * Days < 100", "sd[Subject, Days] > sigma"]
    table = sleep.hypothesis(hypotheses).table()
    prior = sleep.priors.sample(np.random.default_rng(3), 100_000)
    holds = [
        prior.beta[:, 1] > 20,
        prior.beta @ [1, 9] < 100,
        prior.sds[0][:, 1] > prior.sigma,
    ]
    odds = [h.mean() / (1.0 - h.mean()) for h in holds]
    # two Monte Carlo estimates of odds near one from 20,000 and 100,000 draws
    np.testing.assert_allclose(table["prior_odds"], odds, rtol=0.06)
    np.testing.assert_allclose(
        table["evidence_ratio"], table["posterior_odds"] / table["prior_odds"]
    )


def test_savage_dickey_is_the_ratio_of_evidences():
    # two models whose priors agree on everything but Days, which the second lacks
    data = blm.load_dataset("sleepstudy")
    data["late"] = np.where(data["Days"] > 4, 0.5, -0.5)
    full = blm.LMM("Reaction ~ late + (1 | Subject)", data[data["Days"].isin([3, 4, 5, 6])])
    null = blm.LMM("Reaction ~ 1 + (1 | Subject)", data[data["Days"].isin([3, 4, 5, 6])])
    post = full.fit(draws=2000, random_seed=1)
    expected = null.fit(random_seed=1).log_evidence.value - post.log_evidence.value
    got = np.log(post.hypothesis("late = 0").table()["evidence_ratio"].iloc[0])
    # Monte Carlo errors of two evidences (about 0.01 each) and of a mean of 8,000 densities
    assert got == pytest.approx(expected, abs=0.05)


def test_conditional_moments_by_dense_algebra(sleep):
    design, points = sleep.design, sleep._joint.thin(5).points
    weights = np.array([1.0, 4.0])
    mean, sd = conditional_moments(sleep.model, points, weights)
    z = design.Z_matrix().toarray()
    for s in range(5):
        root = points.sds[0][s][:, None] * points.chols[0][s]
        v = z @ np.kron(np.eye(18), root @ root.T) @ z.T + points.sigma[s] ** 2 * np.eye(180)
        half = np.linalg.solve(v, design.X)
        precision = design.X.T @ half + sleep.priors.beta_precision
        right = half.T @ design.y + sleep.priors.beta_precision @ sleep.priors.beta_mean
        assert mean[s] == pytest.approx(weights @ np.linalg.solve(precision, right), rel=1e-8)
        variance = weights @ np.linalg.solve(precision, weights)
        assert sd[s] == pytest.approx(np.sqrt(variance), rel=1e-8)


def test_savage_dickey_at_any_value(sleep):
    mean, sd = conditional_moments(sleep.model, sleep._joint.points, np.array([0.0, 2.0]))
    width = 2.0 * sleep.priors.records()["Days"].sigma
    expected = stats.norm.pdf(17.0, mean, sd).mean() / stats.norm.pdf(17.0, 0.0, width)
    got = sleep.hypothesis("2 * Days - 1 = 16").table()["evidence_ratio"].iloc[0]
    assert got == pytest.approx(expected)


def test_flat_priors_give_no_evidence(orthodont):
    model = blm.LMM("distance ~ age + (1 | Subject)", orthodont, priors="flat")
    post = model.fit(method="laplace", draws=100, random_seed=1)
    table = post.hypothesis(["age > 0.6", "age = 0.6"], rope=0.1).table()
    assert table["prior_odds"].isna().all()
    assert table["evidence_ratio"].isna().all()
    assert np.isfinite(table["posterior_odds"].iloc[0])
    inside = np.abs(draws_of(post, "beta")[:, 1] - 0.6) < 0.1
    np.testing.assert_allclose(table["rope_probability"], inside.mean())


def test_cells_in_hypotheses_are_marginal_means(growth, growth_reml):
    difference = growth.contrasts("Sex", [[-1, 1]]).draws.to_numpy().ravel()
    table = growth.hypothesis("Sex[Female] - Sex[Male] < -2").table()
    assert table["probability"].iloc[0] == np.mean(difference < -2)
    mean = growth_reml.means("Sex").table()["estimate"]
    got = growth_reml.hypothesis("Sex[Male] = 0").table()["estimate"].iloc[0]
    assert got == pytest.approx(mean["Male"])


def test_estimates_test_one_and_two_sides(growth_reml):
    names = ["age:Sex[T.Female] = 0", "age:Sex[T.Female] < 0", "0 < age:Sex[T.Female]"]
    table = growth_reml.hypothesis(names).table()
    row = growth_reml.fixef().loc["age:Sex[T.Female]"]
    assert table["p_value"].iloc[0] == pytest.approx(row["p_value"])
    assert table["p_value"].iloc[1] == pytest.approx(row["p_value"] / 2.0)
    # 0 < b is the difference 0 - b below zero
    assert table["p_value"].iloc[2] == pytest.approx(1.0 - row["p_value"] / 2.0)
    assert table["conf_low"].iloc[0] == pytest.approx(row["conf_low"])
    combined = growth_reml.hypothesis("(2 * age - age) / 2 + 1 = 1.25").table().iloc[0]
    age = growth_reml.fixef().loc["age"]
    assert combined["estimate"] == pytest.approx(age["estimate"] / 2.0 - 0.25)
    assert combined["std_error"] == pytest.approx(age["std_error"] / 2.0)
    doubled = growth_reml.hypothesis("2 * (age + 1) - -(1 - age) = 0").table().iloc[0]
    assert doubled["estimate"] == pytest.approx(age["estimate"] + 3.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3 - 4 / 2 > 0", 5.0),
        ("-2 ** 2 = 0", -4.0),
        ("2 ^ 3 ^ 2 / 2 > 6", 250.0),
        ("-(a - 2) * 2 < 1.5e1", -17.0),
        ("a:b[T.x] - `I(x > 2)` > a", 4.0),
        ("abs(a - 5) + exp(0) > .5", 2.5),
        ("max(a, 5, 2) - min(a + 1, 9) > 0", 1.0),
        ("(a > 1)", 2.0),
    ],
)
def test_expressions(text, value):
    names = {"a": 3.0, "a:b[T.x]": 17.0, "I(x > 2)": 10.0}
    comparison = parse_hypothesis(text, names)
    assert evaluate_node(comparison.difference, lambda n: names[n.value]) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("Dayz > 0", "Dayz", "Did you mean `Days`"),
        ("Days + sd[Subject, Dais] > 0", "sd[Subject, Dais]", "is no parameter"),
        ("Days", "Days", "A hypothesis compares"),
        ("0 < Days = 1", "=", "are inequalities"),
        ("(Days > 0) & (Days < 9", "(", "never closed"),
        ("max(Days) > 0", "max", "two values or more"),
        ("(Days > 0", "(", "never closed"),
        ("Days != 0", "!=", "not '!='"),
        ("Days > * 2", "*", "A number or a parameter"),
        ("`Days > 0", "`Days > 0", "never closed"),
        ("Days % 2 > 0", "%", "is no parameter"),
        ("DaysX > 0", "DaysX", "is no parameter"),
    ],
)
def test_bad_expressions_are_shown(sleep, text, place, message):
    with pytest.raises(FormulaError, match=message) as caught:
        sleep.hypothesis(text)
    error = caught.value
    assert text[error.start : error.end] == place
    assert "^" in str(error)


@pytest.mark.parametrize("text", ["sigma > 20", "age * age > 0", "exp(age) > 1", "1 / age > 1"])
def test_estimates_refuse_what_is_not_linear(growth_reml, text):
    with pytest.raises(FormulaError, match="linear combinations"):
        growth_reml.hypothesis(text)


@pytest.mark.parametrize("gap", [np.nan, None, pd.NaT])
def test_missing_values_in_by_are_named(growth, growth_reml, orthodont, gap):
    rows = orthodont.assign(school=["a"] * len(orthodont)).astype({"school": object})
    rows.loc[rows.index[[2, 5]], "school"] = gap
    for fit in (growth, growth_reml):
        with pytest.raises(DataError, match=r"`school`.*2 of 108 rows, at positions 2, 5"):
            fit.average_predictions(by="school", new=rows)
        with pytest.raises(DataError, match=r"`school`.*2 of 108 rows, at positions 2, 5"):
            fit.comparisons("age", by=["Sex", "school"], new=rows)


# --- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: f.means("Sexx"), DataError, "Did you mean `Sex`"),
        (lambda f: f.means("Subject"), DataError, "no variable of the fixed effects"),
        (lambda f: f.means("Sex", at={"Sex": ["M"]}), DataError, "the levels are"),
        (lambda f: f.means("Sex", at={"age": "old"}), DataError, "finite numbers"),
        (lambda f: f.means("Sex", weights="some"), ValueError, "'proportional'"),
        (lambda f: f.means("Sex", target="new"), ValueError, "'population'"),
        (lambda f: f.means(["Sex", "age"], at={"age": range(600_000)}), DataError, "rows, more"),
        (lambda f: f.contrasts("Sex", "dunnet"), ValueError, "'reference'"),
        (lambda f: f.contrasts("Sex", {"x": [1, 2, 3]}), ValueError, "2 are expected"),
        (lambda f: f.contrasts("Sex", {"x": {"Boy": 1}}), ValueError, "no mean of level 'Boy'"),
        (lambda f: f.contrasts("Sex", [[1, 2, 3]]), ValueError, "the 2 means"),
        (lambda f: f.contrasts("age"), ValueError, "one mean only"),
        (lambda f: f.means("Sex").contrasts(by="age"), ValueError, "columns among Sex"),
        (lambda f: f.means("Sex").table(prob=1.5), ValueError, "between 0 and 1"),
        (lambda f: f.slopes("Sex"), DataError, "has no slope"),
        (lambda f: f.slopes("aeg"), DataError, "Did you mean `age`"),
        (lambda f: f.slopes("age", by="Subjet"), DataError, "Did you mean `Subject`"),
        (lambda f: f.slopes("age", new="rows"), ValueError, "'grid'"),
        (lambda f: f.comparisons("age", "3sd"), ValueError, "'iqr'"),
        (lambda f: f.comparisons("age", (1, 2, 3)), ValueError, "a pair"),
        (lambda f: f.comparisons("Sex", 1), ValueError, "is a factor"),
        (lambda f: f.comparisons("Sex", ("Male", "Boy")), ValueError, "no level 'Boy'"),
        (lambda f: f.hypothesis([]), ValueError, "At least one"),
    ],
)
def test_bad_input_is_refused_by_both(growth, growth_reml, call, error, message):
    for fit in (growth, growth_reml):
        with pytest.raises(error, match=message):
            call(fit)


def test_options_of_the_other_kind_are_refused(growth, growth_reml):
    with pytest.raises(ValueError, match="is for estimates"):
        growth.means("Sex").contrasts(adjust="holm")
    with pytest.raises(ValueError, match="is for estimates"):
        growth.contrasts("Sex").table(adjust="holm")
    with pytest.raises(TypeError, match="is for estimates"):
        growth.means("Sex").joint_test()
    with pytest.raises(ValueError, match="for posteriors"):
        growth_reml.means("Sex").table(simultaneous=True)
    for made in (growth.means("Sex"), growth.hypothesis("age > 0")):
        with pytest.raises(ValueError, match="takes prob="):
            made.table(level=0.9)
    for made in (growth_reml.means("Sex"), growth_reml.hypothesis("age > 0")):
        with pytest.raises(ValueError, match="give one of them"):
            made.table(0.9, level=0.9)
        with pytest.raises(ValueError, match="level=95"):
            made.table(level=95)
    with pytest.raises(TypeError, match="has no draws"):
        _ = growth_reml.means("Sex").draws
    with pytest.raises(ValueError, match="'sidak'"):
        growth_reml.contrasts("Sex", adjust="duncan")
    with pytest.raises(ValueError, match="pairwise contrasts"):
        growth_reml.contrasts("Sex", "reference", adjust="tukey")
    with pytest.raises(ValueError, match="pairwise contrasts"):
        growth_reml.means("Sex").table(adjust="tukey")
    with pytest.raises(ValueError, match="rope"):
        growth.hypothesis("age = 0", rope=(1.0, 0.0))
    with pytest.raises(ValueError, match="1, 2 or 3"):
        growth_reml.anova(4)
    with pytest.raises(ValueError, match="4 coefficients"):
        growth_reml.contest([[1, 2]])
    with pytest.raises(ValueError, match="the coefficients are"):
        growth_reml.contest(pd.DataFrame({"aeg": [1.0]}))
    with pytest.raises(ValueError, match="rhs has shape"):
        growth_reml.contest([[0, 1, 0, 0]], rhs=[1, 2])


def test_anova_of_another_model_points_to_lrt(growth_reml):
    for other in (growth_reml, growth_reml.model):
        with pytest.raises(TypeError) as caught:
            growth_reml.anova(other)
        assert "blm.lrt(fit, other)" in str(caught.value)
        assert len(str(caught.value)) < 200
    with pytest.raises(TypeError, match="a DataFrame: 1, 2 or 3"):
        growth_reml.anova(growth_reml.fixef())
    with pytest.raises(ValueError, match="'III'"):
        growth_reml.anova("III")


def test_contest_takes_names_and_values(growth_reml):
    named = growth_reml.contest(pd.DataFrame({"age": [1.0]}), rhs=[0.5]).iloc[0]
    row = growth_reml.hypothesis("age = 0.5").table().iloc[0]
    assert named["statistic"] == pytest.approx(row["statistic"] ** 2)
    assert named["den_df"] == pytest.approx(row["df"])
    assert named["p_value"] == pytest.approx(row["p_value"])


def test_results_print_as_tables(growth, growth_reml):
    assert repr(growth_reml.contrasts("Sex")).startswith("Contrasts of marginal means of Sex\n")
    assert "<table" in growth.means("Sex")._repr_html_()
    assert "<table" in growth.hypothesis("age > 0")._repr_html_()
    weights = growth_reml.means("Sex").weights
    assert weights.to_numpy().tolist() == [[1.0, 11.0, 0.0, 0.0], [1.0, 11.0, 1.0, 11.0]]
    assert weights.columns.tolist() == list(growth_reml.beta.index)
    contrast = growth_reml.contrasts("Sex")
    direct = growth_reml.contest(contrast.weights)["statistic"].iloc[0]
    assert contrast.table()["statistic"].iloc[0] ** 2 == pytest.approx(direct)


def test_arguments_of_the_wrong_kind(growth_reml):
    with pytest.raises(TypeError, match="L is a mapping; rows of weights are expected"):
        growth_reml.contest({"age": [1.0]})
    with pytest.raises(ValueError, match="L has a row of zeros"):
        growth_reml.contest(np.zeros((1, len(growth_reml.beta))))
    with pytest.raises(ValueError, match="change='Male': one of 'pairwise'"):
        growth_reml.comparisons("Sex", "Male")
    with pytest.raises(TypeError, match="Hypotheses are a text or a list of texts"):
        growth_reml.hypothesis({"h": "age > 0"})


def test_variables_may_have_the_backticks_of_the_formula(growth_reml):
    plain, quoted = growth_reml.means("Sex"), growth_reml.means("`Sex`")
    pd.testing.assert_frame_equal(plain.table(), quoted.table())


# --- empty cells -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def crossed_factors():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (120, 2))
    data = pd.DataFrame(
        {
            "a": np.array(list("xyz"))[codes[:, 0]],
            "b": np.array(list("uvw"))[codes[:, 1]],
            "z": rng.normal(size=120),
            "g": rng.integers(0, 10, 120).astype(str),
        }
    )
    effects = rng.normal(size=10)
    return data.assign(y=rng.normal(size=120) + effects[data["g"].astype(int)])


def _without_a_cell(data):
    return data[(data["a"] != "z") | (data["b"] != "w")]


@pytest.mark.parametrize(
    ("formula", "touched"),
    [("a * b + z", "a, b and a:b"), ("z * a + a:b + b", "a, b and a:b")],
)
def test_type_three_with_empty_cells_warns(crossed_factors, caplog, formula, touched):
    reml = blm.LMM(f"y ~ {formula} + (1 | g)", _without_a_cell(crossed_factors)).reml()
    caplog.clear()
    note = reml.anova().attrs["note"]
    assert note.startswith("Empty cells: no row has a[z]:b[w].")
    assert f"The type III tests of {touched} are then about the cells that have rows" in note
    assert [record.message for record in caplog.records] == [note]


@pytest.mark.parametrize(
    ("formula", "kind", "complete"),
    [
        ("a * b", 3, True),
        ("a * b", 2, False),
        ("a * b", 1, False),
        ("a + b", 3, False),
        ("a * z", 3, False),
        ("0 + a:b", 3, False),
    ],
)
def test_tests_that_empty_cells_do_not_touch_say_nothing(
    crossed_factors, caplog, formula, kind, complete
):
    data = crossed_factors if complete else _without_a_cell(crossed_factors)
    reml = blm.LMM(f"y ~ {formula} + (1 | g)", data).reml()
    caplog.clear()
    assert "note" not in reml.anova(kind).attrs
    assert not caplog.records


def test_notes_of_empty_cells_and_of_a_mode_stand_together(crossed_factors):
    model = blm.LMM("y ~ a * b + (1 | g)", _without_a_cell(crossed_factors))
    note = model.map().anova().attrs["note"]
    assert "A MAP estimate" in note
    assert "a[z]:b[w]" in note
