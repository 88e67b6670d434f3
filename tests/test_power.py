"""Planned studies: power against closed forms, designs, sizes, assurance, and refusals."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation.estimate import fit_likelihood
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.likelihood.responses import systems_of

QUIET = {"random_seed": 1, "progressbar": False}

ERRORS = 3.5
"""Standard errors of a simulated share that it may be off: a chance of 1 in 2,000."""


def assert_share(found, expected, n):
    assert abs(found - expected) < ERRORS * np.sqrt(expected * (1.0 - expected) / n) + 1.0 / n


def t_power(effect, error, df, alpha=0.05, relation="="):
    """Power of a t test with a noncentral t distribution."""
    ratio = effect / error
    if relation == ">":
        return stats.nct.sf(stats.t.ppf(1.0 - alpha, df), df, ratio)
    limit = stats.t.ppf(1.0 - alpha / 2.0, df)
    return stats.nct.sf(limit, df, ratio) + stats.nct.cdf(-limit, df, ratio)


@pytest.fixture(scope="module")
def clusters():
    """Two arms of 10 clusters of 10 rows."""
    design = blm.simulate_design(
        {"class": 20, "class/pupil": 10}, between={"class": {"arm": ["a", "b"]}}
    )
    truth = {"arm[T.b]": 0.8, "sd[class]": 0.6, "sigma": 1.0}
    return blm.LMM.planned("score ~ arm + (1 | class)", design, truth)


# --- closed forms ----------------------------------------------------------------------


@pytest.mark.parametrize("n", [100, slow(1000)])
def test_cluster_randomised_design_has_its_closed_form(clusters, n):
    # Donner, Klar (2000): t test of cluster means, 2 (k - 1) df, variance with the design effect
    k, m = 10, 10
    effects = ["arm[T.b]", "arm[b] > arm[a]", "arm"]
    found = clusters.power(effects, n, **QUIET).power
    total = 0.6**2 + 1.0
    design_effect = 1.0 + (m - 1) * 0.6**2 / total
    error = np.sqrt(2.0 * total * design_effect / (k * m))
    two, one = (t_power(0.8, error, 2 * (k - 1), relation=relation) for relation in "=>")
    assert_share(found["arm[T.b]"], two, n)
    assert_share(found["arm[b] > arm[a]"], one, n)
    assert found["arm"] == found["arm[T.b]"]  # an F test of one degree of freedom is the t test


@pytest.mark.slow
@pytest.mark.parametrize("n", [1000])
def test_paired_design_has_its_closed_form(n):
    design = blm.simulate_design({"s": 15, "x": ["before", "after"]})
    truth = {"x[T.before]": 0.7, "sd[s]": 2.0, "sigma": 0.8}
    study = blm.LMM.planned("y ~ x + (1 | s)", design, truth)
    found = study.power("x[T.before]", n, **QUIET).power.iloc[0]
    assert_share(found, t_power(0.7, np.sqrt(2.0 / 15.0) * 0.8, 14), n)


@pytest.mark.parametrize("n", [75, slow(1000)])
def test_slopes_of_repeated_measures_have_their_closed_form(n):
    # longpower's formula (Diggle et al.): the variance of a subject's slope is sd^2 + sigma^2 / Sxx
    design = blm.simulate_design({"s": 30, "t": np.arange(5.0)}, between={"s": {"arm": ["a", "b"]}})
    truth = {"arm[T.b]:t": 0.8, "sd[s, Intercept]": 1, "sd[s, t]": 0.7, "cor[s]": 0.3, "sigma": 1}
    study = blm.LMM.planned("y ~ arm * t + (t | s)", design, truth)
    found = study.power("arm[T.b]:t", n, **QUIET).power.iloc[0]
    error = np.sqrt(2.0 / 15.0 * (0.7**2 + 1.0 / 10.0))
    assert_share(found, t_power(0.8, error, 28), n)


@pytest.mark.parametrize("n", [100, slow(1000)])
def test_one_way_random_design_has_its_f_test(n):
    # means of groups: F with 2 and 12 - 3 degrees of freedom, noncentral
    design = blm.simulate_design({"g": 12, "row": 4}, between={"g": {"f": ["a", "b", "c"]}})
    truth = {"f[T.b]": 1.0, "f[T.c]": 2.0, "sd[g]": 0.8, "sigma": 1.0}
    study = blm.LMM.planned("y ~ f + (1 | g)", design, truth)
    found = study.power("f", n, **QUIET).power.iloc[0]
    centre = 4 * 2.0 / (0.8**2 + 1.0 / 4.0)
    assert_share(found, stats.ncf.sf(stats.f.ppf(0.95, 2, 9), 2, 9, centre), n)


@pytest.mark.parametrize("n", [100, slow(1000)])
def test_no_effect_gives_alpha_and_coverage_its_level(clusters, n):
    found = clusters.with_effects({"arm[T.b]": 0.0}).power("arm[T.b]", n, alpha=0.1, **QUIET)
    row = found.table().loc["arm[T.b]"]
    assert_share(row["power"], 0.1, n)
    assert_share(row["coverage"], 0.9, n)
    assert np.isnan(row["type_s"])  # no sign is wrong where there is none


@pytest.mark.parametrize("n", [60, slow(300)])
def test_structured_residuals_have_the_closed_form_of_their_contrast(n):
    # compound symmetry by residuals: the difference of arms as that of clusters
    design = blm.simulate_design({"s": 16, "visit": ["1", "2", "3"]}, between={"s": {"a": [0, 1]}})
    truth = {"a": 1.2, "sigma": 1.0, "cor_residual": 0.5}
    study = blm.LMM.planned("y ~ a + visit", design, truth, residual="cs(visit | s)")
    found = study.power("a", n, **QUIET)
    assert_share(found.power["a"], t_power(1.2, np.sqrt(2 / 8 * (1 + 2 * 0.5) / 3), 14), n)
    assert not found.plans.outcomes[0].failures


@pytest.mark.parametrize("n", [150, slow(1000)])
def test_weights_are_those_of_the_design(n):
    design = blm.simulate_design({"x": [0, 1], "row": 15}).assign(w=4.0)
    study = blm.LMM.planned("y ~ x", design, {"x": 0.4, "sigma": 1.0}, weights="w")
    found = study.power("x", n, **QUIET).power["x"]
    assert_share(found, t_power(0.4, np.sqrt(2 / 15) / 2.0, 28), n)


# --- how it is computed ----------------------------------------------------------------


def test_responses_one_after_another_have_the_systems_of_their_rows():
    rng = np.random.default_rng(1)
    data = blm.load_dataset("Oats").assign(w=rng.uniform(0.5, 2.0, 72))
    for formula in ("yield ~ nitro + (nitro | Block / Variety)", "yield ~ nitro"):
        design = blm.LMM(formula, data, weights="w").design
        system = systems_of(design)
        for _ in range(2):
            y = design.y + rng.normal(0.0, 20.0, design.n)
            fast = fit_likelihood(system(y), "REML")
            slow = fit_likelihood(marginal_system(replace(design, y=y)), "REML")
            assert fast.criterion == pytest.approx(slow.criterion, rel=1e-10)
            np.testing.assert_allclose(fast.beta, slow.beta, rtol=1e-5)
            np.testing.assert_allclose(fast.vcov, slow.vcov, rtol=1e-4)


def test_data_sets_depend_on_neither_executor_nor_number(clusters):
    here = clusters.power("arm[T.b]", 12, **QUIET).runs()
    with ThreadPoolExecutor(2) as pool:
        there = clusters.power("arm[T.b]", 12, executor=pool, **QUIET).runs()
    pd.testing.assert_frame_equal(here, there)
    pd.testing.assert_frame_equal(clusters.power("arm[T.b]", 6, **QUIET).runs(), here.iloc[:6])


def test_methods_of_degrees_of_freedom_are_those_of_estimates(clusters):
    runs = {
        df: clusters.power("arm[T.b]", 3, df=df, **QUIET).runs()
        for df in ("satterthwaite", "kenward-roger", "asymptotic")
    }
    np.testing.assert_allclose(runs["satterthwaite"]["df"], 18.0, rtol=1e-4)  # balanced
    np.testing.assert_allclose(runs["kenward-roger"]["df"], 18.0, rtol=1e-4)
    assert np.isinf(runs["asymptotic"]["df"]).all()


def test_a_simulated_response_has_the_moments_of_the_truth(clusters):
    y = clusters.simulate(400, random_seed=1).to_numpy()
    arm = clusters.data["arm"].to_numpy() == "b"
    assert y[arm].mean() - y[~arm].mean() == pytest.approx(0.8, abs=0.06)
    assert y.var(axis=1).mean() == pytest.approx(1.36, rel=0.05)
    means = y.reshape(20, 10, 400).mean(axis=1)
    assert means.var(axis=1).mean() == pytest.approx(0.36 + 0.1, rel=0.1)


# --- sizes -----------------------------------------------------------------------------


def test_levels_are_taken_in_turn_from_arms_and_copied_under_new_names():
    frame = pd.DataFrame({"s": np.repeat(list("abcd"), 2), "arm": np.repeat(["x", "y"], 4)})
    frame["item"] = ["i", "j"] * 4
    frame["tooth"] = frame["s"] + frame["item"]
    formula = "y ~ arm + (1 | s) + (1 | item) + (1 | tooth)"
    study = blm.LMM.planned(formula, pd.concat([frame] * 2), {"sd": 1.0, "sigma": 1.0})
    assert study.extend(along="s", size=2).data["s"].unique().tolist() == ["a", "c"]
    more = study.extend(along="s", size=6)
    assert more.data["s"].unique().tolist() == ["a", "c", "b", "d", "a.2", "c.2"]
    assert more.data["tooth"].nunique() == 12
    assert more.data["item"].nunique() == 2
    fewer = study.extend(within="s", size=3).data
    assert (fewer["s"].value_counts() == 3).all()


@pytest.mark.slow
def test_curve_rises_and_tells_the_size_of_its_closed_form(clusters):
    found = clusters.sample_size("arm[T.b]", 0.8, along="class", n=100, **QUIET)
    error = np.sqrt((0.36 + 0.1) * 4.0)  # over the square root of the number of classes
    exact = next(k for k in range(4, 99, 2) if t_power(0.8, error / np.sqrt(k), k - 2) >= 0.8)
    assert found.conf_low - 3 < exact < found.conf_high + 3
    powers = found.curve.power.to_numpy()
    assert powers[0] < powers[-1]
    assert found.curve.plot(backend="none") is not None


def test_no_size_is_above_the_largest(clusters):
    found = clusters.sample_size("arm[T.b]", 0.4, along="class", largest=14, n=30, **QUIET)
    assert max(found.curve.plans.sizes) == 14
    with pytest.raises(ValueError, match="largest=2"):
        clusters.sample_size("arm[T.b]", along="class", largest=2, **QUIET)


def test_columns_that_depend_on_all_rows_are_refused_in_other_sizes():
    design = blm.simulate_design({"g": 6, "x": range(4)})
    truth = {"sd": 1.0, "sigma": 1.0}
    study = blm.LMM.planned("y ~ scale(x) + (1 | g)", design, truth)
    with pytest.raises(DataError, match="depend on all rows"):
        study.extend(within="g", size=3)


# --- truths ----------------------------------------------------------------------------


def test_truths_of_pilots_and_priors():
    model = blm.LMM("travel ~ 1 + (1 | Rail)", blm.load_dataset("Rail"))
    reml = model.reml()
    study = reml.study()
    assert study.truth.loc["sigma", "value"] == pytest.approx(reml.sigma)
    assert study.truth.loc["sd[Rail, Intercept]", "value"] == pytest.approx(24.8, abs=0.1)
    post = model.fit(method="laplace", random_seed=1, draws=100)
    changed = post.study({"Intercept": 5.0}).truth
    assert changed.loc["beta[Intercept]"].tolist() == [5.0, 0.0]
    assert changed.loc["sigma", "sd"] > 0.0
    assert model.study().truth.loc["sigma", "sd"] > 0.0


def test_truths_are_read_in_the_words_of_priors():
    design = blm.simulate_design({"g": 6, "x": range(3)})
    given = {"x": "normal(0.5, 0.1)", "sd": "exponential(2)", "sigma": 1.0}
    table = blm.LMM.planned("y ~ x + (1 | g)", design, given).truth
    assert table.loc["beta[x]"].tolist() == pytest.approx([0.5, 0.1], rel=0.05)
    assert table.loc["sd[g, Intercept]"].tolist() == pytest.approx([0.5, 0.5], rel=0.1)
    assert table.loc["sigma"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n", [200, slow(1000)])
def test_power_under_an_uncertain_truth_is_its_average(n):
    import pymc as pm

    design = blm.simulate_design({"x": [0, 1], "row": 20})
    truth = {"x": pm.Normal.dist(0.6, 0.4), "sigma": 1.0}
    found = blm.LMM.planned("y ~ x", design, truth).power("x", n, **QUIET)
    at = np.linspace(-0.6, 1.8, 300)
    weights = stats.norm.pdf(at, 0.6, 0.4)
    powers = t_power(at, np.sqrt(2 / 20), 38)
    assert_share(found.power["x"], weights @ powers / weights.sum(), n)
    assert found.runs()["truth"].std() == pytest.approx(0.4, abs=0.05)


def test_assurance_agrees_with_the_normal_posterior_under_flat_priors():
    # with a flat prior the interval of a mean difference is the t interval
    design = blm.simulate_design({"x": [0, 1], "row": 15})
    study = blm.LMM.planned("y ~ x", design, {"x": 0.8, "sigma": 1.0})
    found = study.assurance(["x", "x > 0"], 60, priors="flat", rope=(-0.1, 0.1), **QUIET)
    table = found.table()
    assert_share(table.loc["x", "assurance"], t_power(0.8, np.sqrt(2 / 15), 28), 60)
    one = t_power(0.8, np.sqrt(2 / 15), 28, relation=">")
    assert_share(table.loc["x > 0", "assurance"], one, 60)
    mean_s = np.sqrt(2 / 28) * np.exp(  # the mean of the residual standard deviation
        np.log(stats.chi(28).mean()) - np.log(np.sqrt(2))
    )
    width = 2 * stats.t.ppf(0.975, 28) * np.sqrt(2 / 15) * mean_s
    assert table.loc["x", "width"] == pytest.approx(width, rel=0.05)
    assert 0.0 <= table.loc["x", "rope_outside"] <= table.loc["x", "assurance"]


# --- designs ---------------------------------------------------------------------------


def test_design_crosses_nests_and_allots():
    design = blm.simulate_design(
        {"school": 4, "school/class": 2, "pupil": 3},
        between={"school": {"arm": ["a", "b"], "town": ["u", "v"]}, "class": {"size": range(8)}},
        rows=2,
    )
    assert design.shape == (48, 6)
    assert design["class"].nunique() == 8
    each = design.drop_duplicates("school")
    assert each["arm"].tolist() == ["a", "b", "a", "b"]
    assert each["town"].tolist() == ["u", "u", "v", "v"]
    assert (design.groupby("class")["size"].nunique() == 1).all()


@pytest.mark.parametrize(
    ("factors", "between", "match"),
    [
        ({}, None, "mapping"),
        ({"g": "abc"}, None, "list of values"),
        ({"g": []}, None, "no values"),
        ({"g": [1, 1]}, None, "twice"),
        ({"s/c": 3}, None, "come before"),
        ({"g": 10**5, "h": 10**5}, None, "the most"),
        ({"g": 3}, {"h": {"a": [1]}}, "a column of g"),
        ({"g": 3}, {"g": {"a": [1, 2, 3, 4]}}, "at most 3"),
        ({"g": 3}, {"g": {"g": [1]}}, "twice"),
    ],
)
def test_bad_designs_are_refused(factors, between, match):
    with pytest.raises(DataError, match=match):
        blm.simulate_design(factors, between=between)


@pytest.mark.parametrize(
    ("truth", "match"),
    [
        ({"sd": -1.0, "sigma": 1.0}, "truth: 'sd'.*positive"),
        ({"sd": 1.0, "sigma": 1.0, "cor": 2.0}, "between"),
        ({"sd": 1.0}, "lacks `sigma`"),
        ({"sigma": 1.0}, "lacks `sd"),
        ({"sd": 1.0, "sigma": 1.0, "z": 1.0}, "'z'"),
        ({"sd": 1.0, "sigma": 1.0, "x": np.inf}, "finite"),
        ({"sd": 1.0, "sigma": 1.0, "x": "normal(0.5"}, "comma or a closing parenthesis"),
        ({"sd": 1.0, "sigma": 1.0, "x": "nromal(0.5, 1)"}, "`nromal` is no distribution"),
        ({"sd": 1.0, "sigma": 1.0, "x": "flat"}, "x.*cannot be drawn from"),
        (3, "mapping"),
    ],
)
def test_bad_truths_are_refused(truth, match):
    design = blm.simulate_design({"g": 6, "x": range(3)})
    with pytest.raises(PriorError, match=match):
        blm.LMM.planned("y ~ x + (x | g)", design, truth)


def test_bad_requests_are_refused(clusters):
    for arguments, error, match in [
        ({"n": 0}, ValueError, "n=0"),
        ({"alpha": 1.0}, ValueError, "alpha"),
        ({"df": "best"}, ValueError, "df"),
        ({"effects": "z"}, DataError, "no effect"),
        ({"effects": "sigma > 0"}, FormulaError, "linear"),
        ({"effects": []}, DataError, "names of effects"),
    ]:
        with pytest.raises(error, match=match):
            clusters.power(**{"effects": "arm[T.b]", "n": 5} | arguments, **QUIET)
    with pytest.raises(DataError, match="whose levels can be counted"):
        clusters.power_curve("arm[T.b]", [10], along="arm", **QUIET)
    with pytest.raises(DataError, match="not both"):
        clusters.power_curve("arm[T.b]", [10], **QUIET)
    with pytest.raises(DataError, match="one size only"):
        clusters.power("arm[T.b]", 2, **QUIET).plot()
    with pytest.raises(PriorError, match="only coefficients"):
        clusters.with_effects({"sigma": 1.0})


def test_one_level_and_lost_rank_are_refused(clusters):
    with pytest.raises(DataError):
        clusters.extend(along="class", size=1)
    design = blm.simulate_design({"g": 6, "x": [0, 1]}).assign(z=lambda d: 2 * d["x"])
    with pytest.raises(PriorError, match="combination of the others"):
        blm.LMM.planned("y ~ x + z + (1 | g)", design, {"z": 1.0, "sd": 1.0, "sigma": 1.0})
    study = blm.LMM.planned("y ~ x + z + (1 | g)", design, {"x": 1.0, "sd": 1.0, "sigma": 1.0})
    with pytest.raises(DataError, match="combination"):
        study.power("z", 5, **QUIET)


def test_prints_tell_what_was_simulated(clusters):
    found = clusters.power("arm[T.b]", 5, **QUIET)
    assert "5 simulated data sets of 200 rows" in repr(found)
    assert "Planned study of 200 rows" in repr(clusters)
    assert "<table" in found._repr_html_()


def test_studies_of_estimates_are_tested_as_the_estimate_is():
    pilot = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy")).reml()
    for df in ("kenward-roger", "asymptotic"):
        followed = pilot.with_df(df).study({"Days": 4.0}).power("Days", 10, **QUIET)
        asked = pilot.study({"Days": 4.0}).power("Days", 10, df=df, **QUIET)
        pd.testing.assert_frame_equal(followed.table(), asked.table())
    with pytest.raises(DataError, match="not of robust"):
        pilot.robust("Subject").study()
