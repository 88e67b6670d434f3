"""Posteriors beside estimates from here, statsmodels and R; likelihood-ratio tests."""

import json
import logging
import warnings
from functools import cache

import arviz as az
import numpy as np
import pandas as pd
import polars as pl
import pymc as pm
import pytest
import statsmodels.formula.api as smf
import xarray as xr
from numpy.testing import assert_allclose
from reference_data import FOLDER, load_fit, load_reference_data
from slow_cases import slow

from bayeslmm import LMM, DataError, Posterior, compare_reml, load_dataset, lrt
from bayeslmm.comparison.reml import (
    AGREES,
    BOUNDARY,
    DIFFERS,
    FAR,
    NARROWED,
    POORLY_SAMPLED,
    PRIOR,
    PULLED_DOWN,
    PULLED_UP,
)
from bayeslmm.exceptions import SamplingError
from bayeslmm.priors.defaults import Normal
from bayeslmm.priors.families import LKJ

TIDY = FOLDER / "tidy"
SLOPE = "Reaction ~ Days + (Days | Subject)"
LABELS = [
    "beta[Intercept]",
    "beta[Days]",
    "sd[Subject, Intercept]",
    "sd[Subject, Days]",
    "cor[Subject, Intercept, Days]",
    "sigma",
]
CASES = {  # table: formula, data
    "sleepstudy_profile": (SLOPE, "sleepstudy"),
    "sleepstudy_vcov": (SLOPE, "sleepstudy"),
    "sleepstudy_uncor": ("Reaction ~ Days + (Days || Subject)", "sleepstudy"),
    "Orthodont": ("distance ~ age * Sex + (age | Subject)", "Orthodont"),
    "Machines": ("score ~ Machine + (0 + Machine | Worker)", "Machines"),
    "Pastes": ("strength ~ 1 + (1 | batch/cask)", "Pastes"),
    "Pixel": ("pixel ~ day + I(day ** 2) + (day | Dog) + (1 | Dog:Side)", "Pixel"),
    "sim_design": ("y ~ poly(x, 2) + f1 * f2 + (f2 | g)", "sim_design"),
    "Dyestuff2": ("Yield ~ 1 + (1 | Batch)", "Dyestuff2"),
}


def laplace(model, draws=250):
    return model.fit(method="laplace", draws=draws, random_seed=1)


def with_draws(post, **changes):
    """The posterior with some of its variables changed."""
    dataset = post.data["posterior"].to_dataset().copy(deep=True)
    for name, change in changes.items():
        dataset[name] = change(dataset[name])
    tree = xr.DataTree.from_dict({"posterior": dataset})
    tree.attrs.update(post.data.attrs)
    return Posterior(post.model, tree)


def sticky(draws, seed=2):
    """The draws in an order in which they mix slowly."""
    order = np.argsort(draws.values, axis=1)
    return draws.copy(data=np.take_along_axis(draws.values, order, axis=1))


@pytest.fixture(scope="module")
def post(sleepstudy_model):
    return laplace(sleepstudy_model, draws=1000)


# --- the table -------------------------------------------------------------------------


def test_rows_and_columns(post, sleepstudy_reml):
    table = compare_reml(post, sleepstudy_reml)
    assert list(table.index) == LABELS
    assert list(table.columns) == [
        "estimate",
        "std_error",
        "conf_low",
        "conf_high",
        "mean",
        "sd",
        "median",
        "eti89_lb",
        "eti89_ub",
        "shift",
        "prior_shift",
        "flag",
    ]
    assert type(table) is pd.DataFrame
    assert table.attrs == {
        "formula": SLOPE,
        "posterior": "laplace",
        "estimate": "bayeslmm REML",
        "prob": 0.89,
        "ci_kind": "eti",
        "nobs": 180,
    }
    assert json.dumps(table.attrs)


def test_both_sides_are_those_of_their_makers(post, sleepstudy_reml):
    table = compare_reml(post, sleepstudy_reml, prob=0.5)
    columns = ["estimate", "std_error", "conf_low", "conf_high"]
    assert_allclose(table[columns], sleepstudy_reml.summary(0.5)[columns])
    summary = post.summary()
    assert_allclose(table[["mean", "sd"]], summary[["mean", "sd"]])
    assert_allclose(table.loc["beta[Days]", "eti50_lb"], post.fixef(0.5).loc["Days", "eti50_lb"])


def test_arviz_chooses_the_interval(post, sleepstudy_reml):
    with az.rc_context({"stats.ci_prob": 0.9, "stats.ci_kind": "hdi"}):
        table = compare_reml(post, sleepstudy_reml)
    assert {"hdi90_lb", "hdi90_ub"} <= set(table.columns)
    assert_allclose(table["conf_low"], sleepstudy_reml.summary(0.9)["conf_low"])


def test_a_vague_prior_agrees_on_every_parameter(post, sleepstudy_reml):
    assert set(compare_reml(post, sleepstudy_reml)["flag"]) == {AGREES}


def test_methods_of_the_posterior(post, sleepstudy_reml):
    pd.testing.assert_frame_equal(
        post.compare_reml(sleepstudy_reml), compare_reml(post, sleepstudy_reml)
    )


def test_shift_of_a_fixed_effect(post, sleepstudy_reml):
    row = compare_reml(post, sleepstudy_reml).loc["beta[Days]"]
    assert row["shift"] == pytest.approx((row["mean"] - row["estimate"]) / row["std_error"])


def test_shift_of_a_standard_deviation_is_on_the_log_scale(post, sleepstudy_reml):
    row = compare_reml(post, sleepstudy_reml).loc["sd[Subject, Days]"]
    draws = post.data["posterior"]["sd_Subject"].sel(Subject_coef="Days")
    change = float(np.log(draws).mean()) - np.log(row["estimate"])
    assert row["shift"] == pytest.approx(change * row["estimate"] / row["std_error"])


def test_prior_shift_is_the_mode_less_the_estimate(sleepstudy_model, post, sleepstudy_reml):
    table, mode = compare_reml(post, sleepstudy_reml), sleepstudy_model.map()
    expected = (mode.beta["Days"] - sleepstudy_reml.beta["Days"]) / table.loc[
        "beta[Days]", "std_error"
    ]
    assert table.loc["beta[Days]", "prior_shift"] == pytest.approx(expected)
    change = np.arctanh(mode.corrs["Subject"].iloc[1, 0]) - np.arctanh(
        sleepstudy_reml.corrs["Subject"].iloc[1, 0]
    )
    row = table.loc["cor[Subject, Intercept, Days]"]
    error = row["std_error"] / (1.0 - row["estimate"] ** 2)
    assert row["prior_shift"] == pytest.approx(change / error)


# --- flags -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["Dyestuff", "Machines", "Penicillin"])
def test_flat_priors_shrink_nothing(data):
    formula = {
        "Dyestuff": "Yield ~ 1 + (1 | Batch)",
        "Machines": "score ~ Machine + (1 | Worker/Machine)",
        "Penicillin": "diameter ~ 1 + (1 | plate) + (1 | sample)",
    }[data]
    model = LMM(formula, load_dataset(data), priors="flat")
    table = compare_reml(laplace(model), model.reml())
    assert set(table["flag"]) == {AGREES}
    assert_allclose(table["prior_shift"], 0.0)


def test_a_prior_away_from_the_estimate(sleepstudy_reml):
    model = LMM(SLOPE, load_dataset("sleepstudy"), priors={"Days": Normal(0.0, 2.0)})
    table = compare_reml(laplace(model), sleepstudy_reml)
    assert table.loc["beta[Days]", "flag"] == PULLED_DOWN
    assert table.loc["sd[Subject, Days]", "flag"] == PULLED_UP
    assert table.loc["beta[Days]", "shift"] < table.loc["beta[Days]", "prior_shift"] / 2 < -0.5
    assert table.loc["sigma", "flag"] == AGREES


def test_a_narrow_prior_at_the_estimate(sleepstudy_reml):
    prior = Normal(float(sleepstudy_reml.beta["Days"]), 0.5)
    model = LMM(SLOPE, load_dataset("sleepstudy"), priors={"Days": prior})
    row = compare_reml(laplace(model), sleepstudy_reml).loc["beta[Days]"]
    assert abs(row["shift"]) < 0.1
    assert row["flag"] == NARROWED


def test_a_correlation_that_the_data_hardly_know():
    formula, priors = "distance ~ age * Sex + (age | Subject)", {"cor[Subject]": LKJ(2.0)}
    model = LMM(formula, load_dataset("Orthodont"), priors=priors)
    table = compare_reml(model.fit(draws=500, random_seed=1), model.reml())
    row = table.loc["cor[Subject, Intercept, age]"]
    assert row["flag"] == PULLED_UP
    assert row["mean"] > row["estimate"]
    slope = table.loc["sd[Subject, age]"]
    assert slope["flag"] == PULLED_DOWN
    assert slope["mean"] < slope["estimate"]


@pytest.mark.parametrize("formula", ["y ~ x + (1 | g)", "y ~ x + (x | g)"])
def test_two_levels_leave_it_to_the_prior(formula):
    """Whatever its estimate, at zero or not: all three verdicts on the priors say it."""
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"g": np.repeat(["a", "b"], 20), "x": np.tile(np.linspace(0, 1, 20), 2)})
    frame["y"] = 1.0 + frame["x"] + rng.standard_normal(40)
    model = LMM(formula, frame)
    post = laplace(model)
    table = compare_reml(post, model.reml())
    own = [label for label in table.index if label.startswith(("sd[", "cor["))]
    assert set(table.loc[own, "flag"]) == {PRIOR}
    assert PRIOR not in set(table["flag"].drop(own))
    for report in (post.check.sensitivity(), post.check.contraction(random_seed=1)):
        assert list(report.unbounded) == own
        text = " ".join(report.messages)
        assert all(f"{label}: beside the fixed effects the 2 levels" in text for label in own)
        assert "No parameter is sensitive" not in text
        assert "The data narrow every parameter" not in text


@pytest.mark.parametrize(
    ("key", "prior", "labels", "at_the_limit"),
    [
        slow(
            "sigma",
            pm.Uniform.dist(45, 60),
            ["sd[Subject, Days]", "sigma"],
            "cor[Subject, Intercept, Days]",
        ),
        ("Days", pm.Uniform.dist(0, 5), ["beta[Days]", "sd[Subject, Days]"], "beta[Intercept]"),
    ],
)
def test_priors_that_end_before_the_estimate(sleepstudy_reml, key, prior, labels, at_the_limit):
    """There is no mode that could say what the prior does, but the mean is far away."""
    model = LMM(SLOPE, load_dataset("sleepstudy"), priors={key: prior})
    with pytest.raises(SamplingError, match=f"still rises where the prior of `{key}` ends"):
        model.map()
    table = compare_reml(model.fit(method="collapsed", draws=500, random_seed=1), sleepstudy_reml)
    assert table["prior_shift"].isna().all()
    assert set(table.loc[labels, "flag"]) == {FAR}
    assert set(table["flag"].drop([*labels, at_the_limit])) == {AGREES}
    assert table.loc[at_the_limit, "flag"] in {AGREES, FAR}


def test_boundary(dyestuff2_model):
    table = compare_reml(laplace(dyestuff2_model), dyestuff2_model.reml())
    row = table.loc["sd[Batch, Intercept]"]
    assert row["flag"] == BOUNDARY
    assert row[["std_error", "conf_low", "conf_high", "shift", "prior_shift"]].isna().all()
    assert table.loc["sigma", "flag"] == AGREES


def test_a_correlation_at_one():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"g": np.repeat(list("abcdefgh"), 5), "x": np.tile(np.arange(5.0), 8)})
    effects = np.repeat(rng.normal(size=8), 5) * (1.0 + frame["x"])
    frame["y"] = 2.0 * effects + 0.5 * rng.normal(size=40)
    model = LMM("y ~ x + (x | g)", frame)
    table = compare_reml(laplace(model), model.reml())
    row = table.loc["cor[g, Intercept, x]"]
    assert row["flag"] == BOUNDARY
    assert row[["std_error", "shift", "prior_shift"]].isna().all()
    assert set(table["flag"].drop("cor[g, Intercept, x]")) == {AGREES}


def test_poor_sampling_is_said_of_the_parameter(post, sleepstudy_reml):
    table = compare_reml(with_draws(post, sigma=sticky), sleepstudy_reml)
    assert table.loc["sigma", "flag"] == POORLY_SAMPLED
    assert set(table["flag"].drop("sigma")) == {AGREES}


def test_too_few_draws(sleepstudy_model, sleepstudy_reml):
    few = sleepstudy_model.fit(method="laplace", draws=20, random_seed=1)
    assert set(compare_reml(few, sleepstudy_reml)["flag"]) == {POORLY_SAMPLED}


def test_one_chain(sleepstudy_model, sleepstudy_reml):
    single = sleepstudy_model.fit(method="laplace", draws=2000, chains=1, random_seed=1)
    assert set(compare_reml(single, sleepstudy_reml)["flag"]) == {AGREES}


def test_an_estimate_from_other_data(post, caplog):
    sleep = load_dataset("sleepstudy")
    other = LMM(SLOPE, sleep[sleep["Days"] > 2]).reml()
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        table = compare_reml(post, other)
    assert DIFFERS in set(table["flag"])
    assert "The estimate uses 126 rows and the posterior 180." in caplog.text


def test_ml(sleepstudy_model, post):
    table = compare_reml(post, sleepstudy_model.ml())
    assert table.attrs["estimate"] == "bayeslmm ML"
    assert set(table["flag"]) == {AGREES}


def test_equal_models_built_twice(post):
    again = LMM(SLOPE, load_dataset("sleepstudy")).reml()
    assert set(compare_reml(post, again)["flag"]) == {AGREES}


def test_equal_models_written_differently():
    machines = load_dataset("Machines")
    post = laplace(LMM("score ~ Machine + (1 | Worker:Machine)", machines))
    other = LMM("score ~ C(Machine) + (1 | Machine:Worker)", machines).reml()
    table = compare_reml(post, other)
    assert_allclose(table["estimate"], other.summary()["estimate"])
    assert_allclose(table["conf_low"], other.summary(0.89)["conf_low"])


def test_standard_errors_as_the_estimate_has_them():
    growth = load_dataset("Orthodont")
    model = LMM("distance ~ age * Sex + (age | Subject)", growth)
    robust = model.reml().robust("Subject", "CR0")
    table = compare_reml(laplace(model), robust, prob=0.9)
    assert_allclose(table["std_error"].iloc[:4], robust.fixef()["std_error"])
    assert_allclose(table["conf_low"].iloc[:4], robust.fixef(0.9)["conf_low"])


def test_what_cannot_be_compared(sleepstudy_model, post, sleepstudy_reml):
    with pytest.raises(TypeError, match="The posterior comes first"):
        compare_reml(sleepstudy_reml, post)
    with pytest.raises(TypeError, match=r"posterior from model.fit\(\) is expected, got DataTree"):
        compare_reml(post.data, sleepstudy_reml)
    with pytest.raises(TypeError, match="estimate is expected, got dict"):
        compare_reml(post, {})
    with pytest.raises(ValueError, match="A posterior mode is no estimate"):
        compare_reml(post, sleepstudy_model.map())
    with pytest.raises(ValueError, match=r"names= points to 'beta'.*Days, Intercept, Subject"):
        compare_reml(post, sleepstudy_reml, names={"b": "beta"})


def test_another_model(post):
    other = LMM("Reaction ~ 1 + (1 | Subject)", load_dataset("sleepstudy")).reml()
    with pytest.raises(DataError) as error:
        compare_reml(post, other)
    assert "only in the estimate: none" in str(error.value)
    assert "only in the model: beta[Days], sd[Subject, Days], cor[" in str(error.value)


# --- tables from R ---------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    "name", [slow(n) if n == "Pixel" or i % 2 else n for i, n in enumerate(CASES)]
)
def test_tables_of_r(name):
    formula, data = CASES[name]
    model = LMM(formula, load_reference_data(data))
    table = compare_reml(laplace(model), TIDY / f"{name}.csv")
    reml = model.reml().summary()
    tolerance = 3e-3 if data == "sim_design" else 2e-4
    assert_allclose(table["estimate"], reml["estimate"], rtol=tolerance, atol=1e-6)
    fixed = table.index.str.startswith("beta[")
    assert_allclose(table.loc[fixed, "std_error"], reml.loc[fixed, "std_error"], rtol=1e-3)
    assert table.loc[~fixed, "std_error"].isna().all()
    assert table.attrs["estimate"] == f"{name}.csv"
    assert not set(table["flag"]) & {DIFFERS, POORLY_SAMPLED}
    boundary = table["estimate"] == 0.0
    assert table.loc[~boundary, "shift"].notna().all()
    assert set(table.loc[boundary, "flag"]) <= {BOUNDARY}


def test_limits_of_a_table_at_its_level(post):
    path = TIDY / "sleepstudy_profile.csv"
    table = compare_reml(post, path, prob=0.95)
    limits = pd.read_csv(path)[["conf.low", "conf.high"]].to_numpy()
    assert_allclose(table[["conf_low", "conf_high"]], limits)


def test_limits_of_a_table_at_another_level(post):
    table = compare_reml(post, TIDY / "sleepstudy_profile.csv")
    row = table.loc["beta[Days]"]
    assert row["conf_high"] == pytest.approx(row["estimate"] + 1.59819314 * row["std_error"])
    assert table.loc["sigma", ["conf_low", "conf_high"]].isna().all()


def test_degrees_of_freedom_of_a_table(post, sleepstudy_reml):
    table = compare_reml(post, sleepstudy_reml.tidy().drop(columns=["conf_low", "conf_high"]))
    assert_allclose(table["conf_low"], sleepstudy_reml.summary(0.89)["conf_low"])


def test_a_table_of_an_ml_fit(post):
    assert set(compare_reml(post, TIDY / "sleepstudy_ml.csv")["flag"]) == {AGREES}


@pytest.mark.parametrize("convert", [lambda f: f, pl.from_pandas], ids=["pandas", "polars"])
def test_data_frames(post, convert):
    frame = convert(pd.read_csv(TIDY / "sleepstudy_profile.csv"))
    table = compare_reml(post, frame)
    assert table.attrs["estimate"] == "table"
    assert list(table.index) == LABELS


def test_fixed_effects_alone(post):
    frame = pd.read_csv(TIDY / "sleepstudy_profile.csv")
    table = compare_reml(post, frame[frame["effect"] == "fixed"])
    assert list(table.index) == LABELS[:2]
    assert set(table["flag"]) == {AGREES}


def test_other_rows_of_a_table_do_not_matter(post, sleepstudy_reml):
    frame = sleepstudy_reml.tidy(effects=("ran_vals", "ran_pars", "fixed"))
    assert_allclose(compare_reml(post, frame)["estimate"], sleepstudy_reml.summary()["estimate"])


def test_an_estimate_that_differs(post):
    frame = pd.read_csv(TIDY / "sleepstudy_profile.csv")
    frame.loc[frame["term"] == "Days", "estimate"] += 1.0
    frame.loc[frame["term"] == "sd__Observation", "estimate"] = 24.0
    flags = compare_reml(post, frame)["flag"]
    assert set(flags[flags == DIFFERS].index) == {"beta[Days]", "sigma"}


def test_names(post):
    frame = pd.read_csv(TIDY / "sleepstudy_profile.csv")
    renamed = frame.replace({"Days": "t", "sd__Days": "sd__t", "Subject": "id"})
    renamed = renamed.replace({"cor__(Intercept).Days": "cor__t.(Intercept)"})
    table = compare_reml(post, renamed, names={"t": "Days", "id": "Subject"})
    assert_allclose(table["estimate"], frame["estimate"])
    with pytest.raises(DataError) as error:
        compare_reml(post, renamed, names={"t": "Days"})
    assert "only in the estimate: id sd__(Intercept), id sd__t, id cor__" in str(error.value)
    assert "only in the model: sd[Subject, Intercept], sd[Subject, Days]" in str(error.value)
    assert "names={" in str(error.value)


def test_faulty_tables(post):
    frame = pd.read_csv(TIDY / "sleepstudy_profile.csv")
    with pytest.raises(DataError, match="no column effect and no column term"):
        compare_reml(post, frame.drop(columns=["effect", "term"]))
    with pytest.raises(DataError, match=r"beta\[Days\] twice"):
        compare_reml(post, pd.concat([frame, frame.iloc[[1]]]))
    unknown = frame.replace({"sd__Days": "phi__Days"})
    with pytest.raises(DataError, match="only in the estimate: Subject phi__Days"):
        compare_reml(post, unknown)
    with pytest.raises(FileNotFoundError):
        compare_reml(post, "absent.csv")


# --- statsmodels -----------------------------------------------------------------------


def mixedlm(formula, data, reml=True, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return smf.mixedlm(formula, data, **kwargs).fit(reml=reml)


@cache
def sleepstudy_slopes(method, by_name):
    sleep = load_dataset("sleepstudy")
    groups = "Subject" if by_name else sleep["Subject"]
    return mixedlm(
        "Reaction ~ Days", sleep, reml=method == "REML", groups=groups, re_formula="~Days"
    )


@pytest.mark.parametrize(
    ("by_name", "method"),
    [(True, "REML"), slow(True, "ML"), slow(False, "REML"), (False, "ML")],
)
def test_statsmodels_standard_errors(sleepstudy_model, post, by_name, method):
    result = sleepstudy_slopes(method, by_name)
    table = compare_reml(post, result)
    own = (sleepstudy_model.reml() if method == "REML" else sleepstudy_model.ml()).summary()
    assert_allclose(table["estimate"], own["estimate"], rtol=1e-4)
    assert_allclose(table["std_error"], own["std_error"], rtol=1e-3)
    assert table.attrs["estimate"] == f"statsmodels {method}"
    assert set(table["flag"]) == {AGREES}


@pytest.mark.reference
def test_statsmodels_beside_lme4(post):
    table = compare_reml(post, sleepstudy_slopes("REML", True))
    errors = table.loc[LABELS[2:], "std_error"]
    assert_allclose(errors, lme4_standard_errors("sleepstudy__slope_reml"), rtol=1e-3)


def lme4_standard_errors(fit):
    """Of (sd_1, sd_2, cor, sigma), by the delta method from the covariance of (theta, sigma)."""
    record = load_fit(fit)
    point = np.array([*record["theta"], record["sigma"]])

    def reported(x):
        root = x[3] * np.array([[x[0], 0.0], [x[1], x[2]]])
        cov = root @ root.T
        sds = np.sqrt(np.diag(cov))
        return np.array([*sds, cov[0, 1] / sds.prod(), x[3]])

    steps = 1e-6 * np.eye(4)
    jacobian = np.array([(reported(point + s) - reported(point - s)) / 2e-6 for s in steps]).T
    cov = jacobian @ np.array(record["vcov_varpar"]["vcov"]) @ jacobian.T
    return np.sqrt(np.diag(cov))


def test_statsmodels_random_intercept_only():
    sleep = load_dataset("sleepstudy")
    model = LMM("Reaction ~ Days + (1 | Subject)", sleep)
    table = compare_reml(laplace(model), mixedlm("Reaction ~ Days", sleep, groups=sleep["Subject"]))
    assert_allclose(table["std_error"], model.reml().summary()["std_error"], rtol=1e-3)


def test_statsmodels_slope_without_intercept():
    sleep = load_dataset("sleepstudy")
    model = LMM("Reaction ~ Days + (0 + Days | Subject)", sleep)
    result = mixedlm("Reaction ~ Days", sleep, groups="Subject", re_formula="0 + Days")
    table = compare_reml(laplace(model), result)
    assert_allclose(table["std_error"], model.reml().summary()["std_error"], rtol=1e-3)


def test_statsmodels_nested_variance_components():
    pastes = load_dataset("Pastes")
    model = LMM("strength ~ 1 + (1 | batch/cask)", pastes)
    components = {"cask": "0 + C(cask)"}
    result = mixedlm("strength ~ 1", pastes, groups="batch", re_formula="1", vc_formula=components)
    table = compare_reml(laplace(model), result)
    own = model.reml().summary()
    assert_allclose(table["estimate"], own["estimate"], rtol=1e-3)
    assert_allclose(table["std_error"], own["std_error"], rtol=3e-3)


def test_statsmodels_independent_slopes():
    sleep = load_dataset("sleepstudy")
    model = LMM("Reaction ~ Days + (Days || Subject)", sleep)
    components = {"Days": "0 + Days"}
    result = mixedlm(
        "Reaction ~ Days", sleep, groups="Subject", re_formula="1", vc_formula=components
    )
    table = compare_reml(laplace(model), result)
    assert_allclose(table["estimate"], model.reml().summary()["estimate"], rtol=1e-4)
    assert_allclose(table["std_error"], model.reml().summary()["std_error"], rtol=1e-3)


def test_statsmodels_crossed_factors():
    penicillin = load_dataset("Penicillin").assign(one=1)
    model = LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", penicillin)
    components = {"p": "0 + C(plate)", "sample": "0 + C(sample)"}
    result = mixedlm("diameter ~ 1", penicillin, groups="one", vc_formula=components)
    post = laplace(model)
    with pytest.raises(DataError, match="only in the estimate: p sd__"):
        compare_reml(post, result)
    table = compare_reml(post, result, names={"p": "plate"})
    assert_allclose(table["estimate"], model.reml().summary()["estimate"], rtol=1e-3)
    assert_allclose(table["std_error"], model.reml().summary()["std_error"], rtol=5e-3)


def test_statsmodels_boundary(dyestuff2_model):
    result = mixedlm("Yield ~ 1", load_dataset("Dyestuff2"), groups="Batch")
    table = compare_reml(laplace(dyestuff2_model), result)
    assert table.loc["sd[Batch, Intercept]", "flag"] == BOUNDARY
    own = dyestuff2_model.reml().summary()
    assert table.loc["sigma", "std_error"] == pytest.approx(own.loc["sigma", "std_error"], rel=0.01)


def test_statsmodels_without_data(dyestuff2_model):
    result = mixedlm("Yield ~ 1", load_dataset("Dyestuff2"), groups="Batch")
    assert result.bse_fe.all()  # remove_data() fails where nothing was computed yet
    result.remove_data()
    with pytest.raises(DataError, match="without remove_data"):
        compare_reml(laplace(dyestuff2_model), result)


# --- likelihood-ratio tests ------------------------------------------------------------


def sleep_fits(*formulas, method="ml"):
    sleep = load_dataset("sleepstudy")
    return [getattr(LMM(f"Reaction ~ {formula}", sleep), method)() for formula in formulas]


def test_lrt():
    large, small, middle = sleep_fits(
        "Days + (Days | Subject)", "Days + (1 | Subject)", "Days + (Days || Subject)"
    )
    table = lrt(large, small, middle)
    assert list(table["n_parameters"]) == [4, 5, 6]
    assert list(table.index) == [fit.design.formula.source for fit in (small, middle, large)]
    assert list(table.columns) == [
        "n_parameters",
        "aic",
        "bic",
        "loglik",
        "deviance",
        "chisq",
        "df",
        "p_value",
        "p_boundary",
    ]
    assert_allclose(table["aic"], [small.aic, middle.aic, large.aic])
    assert_allclose(table["chisq"].iloc[1:], [42.0754, 0.0639], atol=1e-3)
    assert list(table["df"].iloc[1:]) == [1, 1]
    assert_allclose(table["p_value"].iloc[1:], [8.782e-11, 0.8004], rtol=1e-3)
    assert table.iloc[0][["chisq", "df", "p_value"]].isna().all()
    assert table.attrs == {"method": "ML", "nobs": 180}


def test_lrt_of_fixed_effects():
    small, large = sleep_fits("1 + (Days | Subject)", "Days + (Days | Subject)")
    table = lrt(small, large)
    assert table["chisq"].iloc[1] == pytest.approx(23.5365, abs=1e-3)


def test_lrt_of_reml_fits():
    formulas = ["Days + (1 | Subject)", "Days + (Days | Subject)"]
    table = lrt(*sleep_fits(*formulas, method="reml"))
    assert table["chisq"].iloc[1] == pytest.approx(1786.4651 - 1743.6283, abs=1e-3)
    assert table.attrs["method"] == "REML"
    fits = sleep_fits("1 + (1 | Subject)", "Days + (1 | Subject)", method="reml")
    with pytest.raises(ValueError, match=r"different fixed effects.*Refit both with ml\(\)"):
        lrt(*fits)


def test_lrt_accepts_the_same_columns_in_another_order():
    machines = load_dataset("Machines").assign(x=np.arange(54.0))
    small = LMM("score ~ x + Machine + (1 | Worker)", machines).reml()
    large = LMM("score ~ Machine + x + (1 | Worker/Machine)", machines).reml()
    assert lrt(small, large)["df"].iloc[1] == 1


def test_lrt_of_what_it_cannot_compare(sleepstudy_model, post):
    small, large = sleep_fits("Days + (1 | Subject)", "Days + (Days | Subject)")
    with pytest.raises(ValueError, match="Two or more"):
        lrt(small)
    with pytest.raises(TypeError, match="Estimates are expected, got Posterior"):
        lrt(small, post)
    with pytest.raises(ValueError, match="Posterior modes"):
        lrt(small, sleepstudy_model.map())
    with pytest.raises(ValueError, match="REML and ML"):
        lrt(small, sleepstudy_model.reml())
    with pytest.raises(ValueError, match="same number of parameters"):
        lrt(large, large)


def test_lrt_of_different_data():
    sleep = load_dataset("sleepstudy")
    fewer = sleep.assign(x=sleep["Days"].astype(float).where(sleep["Days"] > 0))
    small = LMM("Reaction ~ 1 + (1 | Subject)", fewer).ml()
    large = LMM("Reaction ~ x + (1 | Subject)", fewer).ml()
    with pytest.raises(ValueError, match=r"different data.*18 incomplete rows dropped"):
        lrt(small, large)
    log = LMM("log(Reaction) ~ Days + (1 | Subject)", sleep).ml()
    with pytest.raises(ValueError, match="different responses"):
        lrt(small, log)
    weighted = LMM("Reaction ~ Days + (1 | Subject)", fewer, weights=fewer["Days"] + 1.0).ml()
    with pytest.raises(ValueError, match="different weights"):
        lrt(small, weighted)


NESTED = [
    ("1 + (1 | g)", "f + (1 | g)"),
    ("x + (1 | g)", "x + (x | g)"),
    ("x + (1 | g) + (0 + x | g)", "x + (x | g)"),
    ("x + (1 | g) + (1 | g:f)", "f + x + (0 + f | g)"),
    ("x + (1 | g)", "x + (1 | g/f)"),
    ("x + (1 | g:f)", "x + (1 | g/f)"),
    ("offset(x) + (1 | g)", "x + (1 | g)"),
    ("x + (1 | h)", "x + (0 + f | h) + (1 | g)"),
]
NOT_NESTED = [
    ("x + (1 | g)", "f + (1 | g)", "fixed"),
    ("x + (1 | h)", "x + (x | g)", "random"),
    ("x + (0 + x | g)", "x + (1 | g/f)", "random"),
    ("offset(z) + (1 | g)", "x + (1 | g)", "fixed"),
    ("x + (1 | g) + (1 | h)", "x + (0 + f | g)", "random"),
]


@pytest.fixture(scope="module", params=[120, 2400])
def crossed(request):
    rng = np.random.default_rng(1)
    n = request.param
    frame = pd.DataFrame({"x": rng.normal(size=n), "z": rng.normal(size=n)})
    frame["f"] = rng.choice(list("abc"), size=n)
    frame["g"] = rng.integers(0, n // 12, size=n).astype(str)
    frame["h"] = rng.integers(0, 10, size=n).astype(str)
    effects = rng.normal(size=(3, n))
    level, inner = frame["g"].astype(int), frame["g"] + frame["f"]
    frame["y"] = (
        effects[0][level]
        + effects[1][level] * frame["x"]
        + effects[2][pd.factorize(inner)[0]]
        + rng.normal(size=n)
    )
    return frame


@pytest.mark.parametrize(("small", "large"), NESTED)
def test_nested_models(crossed, small, large):
    table = lrt(*(LMM(f"y ~ {part}", crossed).ml() for part in (small, large)))
    assert table["chisq"].iloc[1] >= 0.0


@pytest.mark.parametrize(("small", "large", "part"), NOT_NESTED)
def test_models_that_are_not_nested(crossed, small, large, part):
    with pytest.raises(ValueError, match=f"not nested: the {part} effects"):
        lrt(*(LMM(f"y ~ {formula}", crossed).ml() for formula in (small, large)))


def test_a_correlation_is_not_at_the_boundary_for_the_origin_of_a_covariate():
    data = load_dataset("sleepstudy").assign(Days=lambda d: d["Days"] + 1e6)
    model = LMM("Reaction ~ Days + (Days | Subject)", data)
    table = compare_reml(model.fit(draws=250, random_seed=1), model.reml())
    assert not table["flag"].str.contains("boundary").any()
    assert np.isfinite(table.loc["cor[Subject, Intercept, Days]", "std_error"])
