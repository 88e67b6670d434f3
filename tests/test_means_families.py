"""Families of contrasts, adjustments, letters, effect sizes, equivalence and joint tests."""

import arviz_base as az
import marginaleffects as me
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import bayeslmm as blm
from bayeslmm.effects.contrasts import contrast_weights
from bayeslmm.effects.letters import compact_letters
from bayeslmm.effects.multiplicity import Comparisons
from bayeslmm.effects.spherical import largest_t
from bayeslmm.exceptions import DataError

EXACT = 1e-9
"""Relative error of sums in another order."""

NUMERIC = 0.01
"""marginaleffects differentiates numerically, slopes by what are differences themselves."""

PMVT = 5e-5
"""R's mvtnorm was asked for an absolute error of 1e-5 with at most 1e6 points; ours is 2e-5."""

# R: mvtnorm::pmvt with 2e7 points, correlations of S = 0.4 I + 0.3 / (1 + |i - j|), 4 statistics:
# df (0 is infinite), bound, 1 - P(all |T| < bound), 1 - P(all T < bound)
PMVT_TAILS = """
5 1.5 0.5004173491 0.2875725383
5 2.5 0.1650479665 0.08903318003
5 4 0.03359788325 0.01768404168
17 1.5 0.4528651124 0.2449974046
17 2.5 0.08326575879 0.04228433004
17 4 0.003599736999 0.001804809875
0 1.5 0.4266177545 0.224563313
0 2.5 0.04804433828 0.02407171607
0 4 0.0002531583401 0.0001265908093
"""


@pytest.fixture(scope="module")
def machines():
    return blm.LMM("score ~ Machine + (1 | Worker)", blm.load_dataset("Machines"))


@pytest.fixture(scope="module")
def reml(machines):
    return machines.reml()


@pytest.fixture(scope="module")
def post(machines):
    return machines.fit(method="laplace", draws=400, chains=2, random_seed=1)


@pytest.fixture(scope="module")
def oats():
    data = blm.load_dataset("Oats")
    return blm.LMM("Q('yield') ~ Variety * C(nitro) + (1 | Block / Variety)", data).reml()


# --- the multivariate t distribution ---------------------------------------------------


def test_tails_are_those_of_mvtnorm():
    places = np.arange(4)
    covariance = 0.4 * np.eye(4) + 0.3 / (1 + np.abs(places[:, None] - places))
    correlation = covariance / covariance[0, 0]
    two, one = largest_t(correlation), largest_t(correlation, two_sided=False)
    for line in PMVT_TAILS.strip().splitlines():
        df, bound, both, upper = map(float, line.split())
        df = df or np.inf
        assert two.tail(bound, df) == pytest.approx(both, abs=PMVT)
        assert one.tail(bound, df) == pytest.approx(upper, abs=PMVT)


@pytest.mark.parametrize("means", [3, 5])
def test_pairwise_differences_have_the_studentised_range(means):
    """A singular correlation matrix, of which the answer is known."""
    weights, _ = contrast_weights("pairwise", list("abcde")[:means], list("abcde")[:means])
    t = np.linspace(0.5, 6.0, len(weights))
    df = np.full(len(t), 12.3)
    tests = Comparisons(statistic=t, df=df, means=means, covariance=weights @ weights.T)
    np.testing.assert_allclose(tests.p_values("mvt"), tests.p_values("tukey"), atol=5e-5, rtol=2e-3)
    got, wanted = (tests.critical_values(0.95, adjust) for adjust in ("mvt", "tukey"))
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_one_sided_tails_below_zero():
    one = largest_t(np.eye(2), two_sided=False)
    assert one.tail(-1.0, np.inf) == pytest.approx(1.0 - stats.norm.cdf(-1.0) ** 2, abs=1e-6)


def test_scheffe_covers_the_sphere():
    covariance = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 2.0]])  # rank 2
    tests = Comparisons(statistic=np.full(3, 2.5), df=np.full(3, 9.0), covariance=covariance)
    wanted = stats.f.sf(2.5**2 / 2.0, 2, 9.0)
    np.testing.assert_allclose(tests.p_values("scheffe"), wanted)
    size = tests.critical_values(0.95, "scheffe")[0]
    assert stats.f.cdf(size**2 / 2.0, 2, 9.0) == pytest.approx(0.95)


# R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.2), m)
P_ADJUST = {
    "holm": [0.04, 0.09, 0.09, 0.025, 0.2],
    "hochberg": [0.04, 0.08, 0.08, 0.025, 0.2],
    "hommel": [0.04, 0.08, 0.06, 0.025, 0.2],
    "fdr": [0.025, 0.05, 0.05, 0.025, 0.2],
    "by": [0.0570833333333, 0.1141666666667, 0.1141666666667, 0.0570833333333, 0.4566666666667],
    "bonferroni": [0.05, 0.2, 0.15, 0.025, 1.0],
}


@pytest.mark.parametrize("adjust", P_ADJUST)
def test_adjustments_are_those_of_r(adjust):
    raw = np.array([0.01, 0.04, 0.03, 0.005, 0.2, np.nan])
    tests = Comparisons(statistic=stats.t.isf(raw / 2.0, 10.0), df=np.full(6, 10.0))
    np.testing.assert_allclose(tests.p_values(adjust)[:5], P_ADJUST[adjust], rtol=1e-9)


def test_sides_of_adjustments(reml):
    contrasts = reml.contrasts("Machine", "reference", ref="B", adjust="dunnett")
    up, down = (contrasts.table(side=side)["p_value"] for side in ("greater", "less"))
    both = contrasts.table()["p_value"]
    assert up["C - B"] < both["C - B"] < 2.1 * up["C - B"]
    assert down["C - B"] == pytest.approx(1.0)
    one = contrasts.table(side="greater")
    assert np.isinf(one["conf_high"]).all()
    shifted = contrasts.table(null=[0.0, 5.95])["statistic"]
    assert shifted["C - B"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match="two-sided tests"):
        contrasts.table(adjust="scheffe", side="less")
    with pytest.raises(ValueError, match="one for each"):
        contrasts.table(null=[1.0, 2.0, 3.0])


# --- families ---------------------------------------------------------------------------


# emmeans: the matrices of del.eff.emmc, mean_chg.emmc, helmert.emmc and trt.vs.ctrl.emmc
FAMILIES = {
    "others": [[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1]],
    "mean-change": [[-1, 0.5, 0.5], [-0.5, -0.5, 1]],
    "helmert": [[-1, 1, 0], [-1, -1, 2]],
    "identity": np.eye(3),
}


@pytest.mark.parametrize("method", FAMILIES)
def test_families_are_those_of_emmeans(method):
    weights, labels = contrast_weights(method, list("abc"), list("abc"))
    np.testing.assert_allclose(weights, FAMILIES[method])
    assert len(labels) == len(weights)


def test_references_and_directions():
    names = list("abcd")
    weights, labels = contrast_weights("reference", names, names, ref="b")
    np.testing.assert_allclose(weights[0], [1, -1, 0, 0])
    assert labels == ["a - b", "c - b", "d - b"]
    weights, labels = contrast_weights("reference", names, names, ref=["a", "b"], reverse=True)
    np.testing.assert_allclose(weights[1], [0.5, 0.5, 0, -1])
    assert labels == ["avg(a, b) - c", "avg(a, b) - d"]
    assert contrast_weights("pairwise", names, names, reverse=True)[1][0] == "b - a"
    for options in ({"method": "pairwise", "ref": "a"}, {"method": "helmert", "reverse": True}):
        with pytest.raises(ValueError, match=r"reference|differences"):
            contrast_weights(options.pop("method"), names, names, **options)


def test_interaction_contrasts_are_products(oats):
    means = oats.means(["Variety", "nitro"])
    table = oats.contrasts(["Variety", "nitro"], interaction=("pairwise", "sequential")).table()
    assert len(table) == 9
    cells = means.table()["estimate"].unstack()
    got = table.loc[("Golden Rain - Victory", "0.4 - 0.2"), "estimate"]
    first, second = cells.loc["Golden Rain"], cells.loc["Victory"]
    assert got == pytest.approx(first[0.4] - first[0.2] - second[0.4] + second[0.2])
    with pytest.raises(ValueError, match="one for each"):
        means.contrasts(interaction=("pairwise",))


# --- judgements -------------------------------------------------------------------------


def test_letters_are_shared_by_what_does_not_differ():
    rng = np.random.default_rng(3)
    for _ in range(40):
        k = int(rng.integers(2, 8))
        upper = np.triu(rng.random((k, k)) < 0.5, 1)
        different = upper | upper.T
        letters = compact_letters(different)
        for i in range(k):
            for j in range(k):
                assert bool(set(letters[i]) & set(letters[j])) == (not different[i, j])


def test_letters_of_neighbours():
    """Means 1 and 4 differ, and 1 and 3: the display of a textbook."""
    different = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 2), (0, 3)):
        different[i, j] = different[j, i] = True
    assert compact_letters(different) == ["a", "ab", "b", "b"]


def test_letters_of_fits(reml, post):
    for fit in (reml, post):
        table = fit.means("Machine").letters()
        assert table["letters"].tolist() == ["a", "b", "c"]
        assert "does not make them equal" in table.attrs["note"]


def test_effect_sizes_have_the_errors_of_emmeans(reml, post):
    table = reml.means("Machine").effect_sizes(2.0, edf=10.0)
    raw = reml.contrasts("Machine", adjust=None).table()
    np.testing.assert_allclose(table["effect_size"], raw["estimate"] / 2.0)
    wanted = np.sqrt((raw["std_error"] / 2.0) ** 2 + (raw["estimate"] / 2.0) ** 2 / 20.0)
    np.testing.assert_allclose(table["std_error"], wanted)
    with pytest.raises(ValueError, match="edf="):
        reml.means("Machine").effect_sizes("total")
    joint = post._joint
    draws = post.contrasts("Machine").draws.to_numpy().reshape(joint.size, -1)
    total = np.sqrt(joint.points.sigma**2 + joint.covariances[0][:, 0, 0])
    got = post.means("Machine").effect_sizes("total")["mean"]
    np.testing.assert_allclose(got, (draws / total[:, None]).mean(axis=0), rtol=EXACT)


def test_degrees_of_freedom_of_sigma_are_those_of_least_squares():
    data = blm.load_dataset("Machines")
    reml = blm.LMM("score ~ Machine", data).reml()
    means = reml.means("Machine")
    pd.testing.assert_frame_equal(
        means.effect_sizes(), means.effect_sizes(reml.sigma, edf=len(data) - 3.0), rtol=1e-5
    )


def test_equivalence_is_two_one_sided_tests(reml, post):
    contrasts = reml.contrasts("Machine")
    table, raw = contrasts.equivalence((-10.0, 10.0)), contrasts.table()
    above = stats.t.sf((raw["estimate"] + 10.0) / raw["std_error"], raw["df"])
    below = stats.t.cdf((raw["estimate"] - 10.0) / raw["std_error"], raw["df"])
    np.testing.assert_allclose(table["p_value"], np.maximum(above, below))
    inside = (table["conf_low"] > -10.0) & (table["conf_high"] < 10.0)
    assert ((table["decision"] == "equivalent") == inside).all()
    better = contrasts.equivalence(10.0, side="greater")
    assert better.loc["A - C", "decision"] == "not shown"
    np.testing.assert_allclose(better["p_value"], above)
    draws = post.contrasts("Machine").draws.to_numpy().reshape(-1, 3)
    rope = post.contrasts("Machine").equivalence(10.0, prob=0.95)
    np.testing.assert_allclose(rope["rope_probability"], (np.abs(draws) <= 10.0).mean(axis=0))
    assert rope["decision"].tolist() == ["undecided", "different", "equivalent"]
    with pytest.raises(ValueError, match="bounds="):
        contrasts.equivalence((1.0, -1.0))


def test_equivalence_has_one_sided_levels_and_one_coverage(reml, post):
    contrasts, draws = reml.contrasts("Machine"), post.contrasts("Machine")
    for alpha in (0.7, 0.5, 0.0):
        with pytest.raises(ValueError, match=f"alpha={alpha}: .* between 0 and 0.5"):
            contrasts.equivalence(10.0, alpha=alpha)
    at = contrasts.equivalence(10.0, alpha=0.1)
    pd.testing.assert_frame_equal(contrasts.equivalence(10.0, level=0.8), at)
    with pytest.raises(ValueError, match="give one of alpha=, prob= and level="):
        contrasts.equivalence(10.0, alpha=0.1, level=0.8)
    with pytest.raises(ValueError, match="A posterior takes prob="):
        draws.equivalence(10.0, alpha=0.1)
    for verb in (lambda **o: draws.equivalence(10.0, **o), draws.effect_sizes):
        with pytest.raises(ValueError, match="A posterior takes prob="):
            verb(level=0.9)
        with az.rc_context({"stats.ci_prob": 0.5}):
            pd.testing.assert_frame_equal(verb(), verb(prob=0.5))
    sizes = contrasts.effect_sizes(level=0.8)
    pd.testing.assert_frame_equal(sizes, contrasts.effect_sizes(prob=0.8))
    assert (sizes["conf_low"] > contrasts.effect_sizes()["conf_low"]).all()


def test_joint_tests_are_type_three_tests(oats):
    got, wanted = oats.joint_tests(), oats.anova()
    assert got.index.tolist() == ["Variety", "nitro", "Variety:nitro"]
    for column in ("num_df", "den_df", "statistic", "p_value"):
        np.testing.assert_allclose(got[column], wanted[column], rtol=1e-6)


def test_joint_tests_of_many_covariates():
    names = [f"x{k:02d}" for k in range(24)]  # 2 ** 24 sets of variables, and rows of all at once
    fit = model_of(names, f"y ~ {' + '.join(names)} + x00:x02:x05").reml()
    table = fit.joint_tests(by="x03")
    singles = [name for name in names if name != "x03"]
    higher = ["x00:x02", "x00:x05", "x02:x05", "x00:x02:x05"]
    assert table.index.get_level_values("term").tolist() == [*singles, *higher]
    wanted = fit.anova()["statistic"]
    np.testing.assert_allclose(table.loc["x07", "statistic"], wanted["x07"])
    np.testing.assert_allclose(table.loc["x00:x02:x05", "statistic"], wanted["x00:x02:x05"])


def model_of(names, formula):
    rng = np.random.default_rng(5)
    columns = {name: rng.uniform(0.1, 0.9, 80) for name in names}
    return blm.LMM(formula, pd.DataFrame(columns).assign(y=rng.standard_normal(80)))


def test_joint_tests_stay_in_the_range_of_a_covariate():
    fit = model_of(["u"], "y ~ log(u)").reml()  # the mean of u is below 1
    found, wanted = fit.joint_tests(), fit.anova()
    assert found.loc["u", "statistic"] == pytest.approx(wanted.loc["log(u)", "statistic"])


def test_adjustments_that_are_no_names_are_refused(reml):
    with pytest.raises(ValueError, match=r"adjust=\['holm'\]: one of"):
        reml.contrasts("Machine", adjust=["holm"]).table()


def test_joint_tests_within_levels(oats):
    table = oats.joint_tests(by="Variety")
    contrasts = oats.contrasts("nitro", "sequential", by="Variety")
    one = contrasts.quantities.labels["Variety"] == "Victory"
    rows = np.flatnonzero(one)
    test = oats.contest(contrasts.weights.to_numpy()[rows])
    got = table.loc[("nitro", "Victory"), "statistic"]
    assert got == pytest.approx(test["statistic"].iloc[0])


def test_joint_tests_of_draws_are_contours(post):
    table = post.joint_tests()
    draws = post.contrasts("Machine").draws.to_numpy().reshape(-1, 3)[:, :2]
    gap = draws - draws.mean(axis=0)
    inverse = np.linalg.inv(np.cov(draws, rowvar=False))
    zero = draws.mean(axis=0) @ inverse @ draws.mean(axis=0)
    share = np.mean(np.einsum("si,ij,sj->s", gap, inverse, gap) >= zero)
    assert table.loc["Machine", "rank"] == 2
    assert table.loc["Machine", "distance"] == pytest.approx(np.sqrt(zero))
    assert table.loc["Machine", "contour_probability"] == share


# --- reference grids --------------------------------------------------------------------


def test_grids_say_what_is_averaged_over():
    growth = blm.load_dataset("Orthodont")
    reml = blm.LMM("distance ~ age * Sex + (age | Subject)", growth).reml()
    means = reml.means("Sex", at={"age": np.median})
    assert "age (held at 11)" in repr(means)
    assert means.grid.variables["use"].to_dict() == {"Sex": "told apart", "age": "held"}
    assert "interacts" not in repr(reml.means("Sex", by="age"))
    assert reml.reference_grid().variables.loc["Sex", "use"] == "averaged over"
    averaged = reml.means("Sex", at={"age": [8, 14]})
    assert averaged.grid.variables.loc["age", "use"] == "averaged over"
    np.testing.assert_allclose(averaged.table()["estimate"], means.table()["estimate"])


def test_nested_factors_keep_to_their_levels():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"field": np.repeat(list("abcde"), 12), "g": np.tile(np.arange(6), 10)})
    frame["farm"] = frame["field"].map(dict(zip("abcde", "XXYYY", strict=True)))
    frame["y"] = rng.normal(size=60) + frame["field"].map(dict(zip("abcde", range(5), strict=True)))
    reml = blm.LMM("y ~ farm + farm:field + (1 | g)", frame).reml()
    means = reml.means("field")
    assert means.labels["farm"].tolist() == ["X", "X", "Y", "Y", "Y"]
    cells = frame.groupby("field")["y"].mean()
    np.testing.assert_allclose(means.table()["estimate"], cells, rtol=1e-6)
    farms = reml.means("farm")
    wanted = [cells[["a", "b"]].mean(), cells[["c", "d", "e"]].mean()]
    np.testing.assert_allclose(farms.table()["estimate"], wanted, rtol=1e-6)
    assert "field is nested in farm" in repr(farms)
    assert len(means.contrasts().table()) == 1 + 3  # within farms


# --- marginaleffects ---------------------------------------------------------------------


def test_marginaleffects_takes_fits(post):
    growth = blm.load_dataset("Orthodont")
    reml = blm.LMM("distance ~ age * Sex + (age | Subject)", growth).reml()
    model = reml.to_marginaleffects()
    pairs = [
        (me.avg_slopes(model, variables="age", by="Sex"), reml.slopes("age", by="Sex")),
        (me.avg_predictions(model, by="Sex"), reml.average_predictions("Sex")),
        (me.avg_comparisons(model, variables={"age": [8, 14]}), reml.comparisons("age", (8, 14))),
    ]
    for theirs, ours in pairs:
        table = ours.table()
        np.testing.assert_allclose(theirs["estimate"], table["estimate"], rtol=1e-6)
        np.testing.assert_allclose(theirs["std_error"], table["std_error"], rtol=NUMERIC)
    theirs = me.avg_predictions(post.to_marginaleffects(), by="Machine")
    ours = post.average_predictions("Machine").table()
    np.testing.assert_allclose(theirs["estimate"], ours["mean"], rtol=1e-6)
    np.testing.assert_allclose(theirs["std_error"], ours["sd"], rtol=NUMERIC)


def test_at_takes_no_functions_without_rows():
    data = blm.load_dataset("sleepstudy")
    batches = [data.iloc[:90], data.iloc[90:]]
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", lambda: iter(batches)).reml()
    with pytest.raises(DataError, match="rows are not kept"):
        reml.means("Days", at={"Days": np.median})
