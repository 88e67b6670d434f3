"""An estimate beside one of the same model from lme4, statsmodels or elsewhere."""

import json
import logging
import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from numpy.testing import assert_allclose
from reference_data import FOLDER, list_fits, load_fit, load_reference_data
from reference_formulas import STANDS_FOR, translated
from slow_cases import one_in

from bayeslmm import LMM, DataError, compare_estimates, load_dataset
from bayeslmm.comparison.reml import AGREES, BOUNDARY, DIFFERS
from bayeslmm.comparison.two_estimates import ERRORS_DIFFER

TIDY = FOLDER / "tidy"
SLOPE = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def reml(sleepstudy_model):
    return sleepstudy_model.reml()


@pytest.fixture
def sleep_table():
    return pd.read_csv(TIDY / "sleepstudy_profile.csv")


def model_of(fit):
    """The model of a reference fit."""
    return LMM(translated(fit), load_reference_data(fit["dataset"]), weights=fit["weights"])


def broom(fit):
    """A reference fit by lme4 as broom.mixed's tidy() has it."""
    fixed = fit["fixed"]
    rows = [
        ("fixed", None, *values)
        for values in zip(fixed["names"], fixed["estimate"], fixed["se"], strict=True)
    ]
    for term in fit["random"]:
        group, names = term["grouping"], term["names"]
        corr = np.array(term["corr"], dtype=float)
        for i, name in enumerate(names):
            rows.append(("ran_pars", group, f"sd__{name}", term["sd"][i], np.nan))
            for j, other in enumerate(names[:i]):
                rows.append(("ran_pars", group, f"cor__{other}.{name}", corr[i, j], np.nan))
    rows.append(("ran_pars", "Residual", "sd__Observation", fit["sigma"], np.nan))
    return pd.DataFrame(rows, columns=["effect", "group", "term", "estimate", "std.error"])


@pytest.mark.reference
@pytest.mark.parametrize(
    "name", one_in(4, [n for n in list_fits(big=False) if n not in STANDS_FOR])
)
def test_every_reference_fit_agrees(name):
    fit = load_fit(name)
    model = model_of(fit)
    table = compare_estimates(model.reml() if fit["REML"] else model.ml(), broom(fit))
    assert set(table["flag"]) <= {AGREES, BOUNDARY}
    assert np.nanmax(np.abs(table["in_std_errors"])) < 1e-3
    assert (table["flag"] == AGREES).any()


@pytest.mark.parametrize(
    "term, label, to",
    [
        ("Days", "beta[Days]", 10.467286 + 0.11 * 1.5458),
        ("sd__Days", "sd[Subject, Days]", 5.922133 - 0.11 * 1.2481),
        ("cor__(Intercept).Days", "cor[Subject, Intercept, Days]", 0.0656 + 0.11 * 0.325),
        ("sd__Observation", "sigma", np.nan),
    ],
)
def test_a_value_that_differs(reml, sleep_table, term, label, to):
    sleep_table.loc[sleep_table["term"] == term, "estimate"] = to
    flags = compare_estimates(reml, sleep_table)["flag"]
    assert list(flags[flags != AGREES].index) == [label]
    assert flags[label] == DIFFERS


def test_a_value_that_hardly_differs(reml, sleep_table):
    sleep_table.loc[sleep_table["term"] == "Days", "estimate"] += 0.09 * 1.5458
    table = compare_estimates(reml, sleep_table)
    assert set(table["flag"]) == {AGREES}
    assert table.loc["beta[Days]", "difference"] == pytest.approx(0.09 * 1.5458, abs=1e-4)
    assert table.loc["beta[Days]", "in_std_errors"] == pytest.approx(0.09, abs=1e-4)


def test_an_estimate_without_values(reml, sleep_table):
    """Each differs, without a warning of NumPy and without a word on the criterion."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = compare_estimates(reml, sleep_table.assign(estimate=np.nan))
    assert set(table["flag"]) == {DIFFERS}
    assert table.attrs["closest"] == "REML"


def test_no_standard_errors(reml, sleep_table):
    table = compare_estimates(reml, sleep_table.assign(**{"std.error": np.nan}))
    assert set(table["flag"]) == {AGREES}


def test_columns_and_attributes(reml):
    table = compare_estimates(reml, TIDY / "sleepstudy_profile.csv")
    assert list(table.columns) == [
        "estimate",
        "other",
        "difference",
        "in_std_errors",
        "std_error",
        "other_std_error",
        "flag",
    ]
    assert table.index.name == "parameter"
    assert table.attrs == {
        "formula": SLOPE,
        "estimate": "bayeslmm REML",
        "other": "sleepstudy_profile.csv",
        "nobs": 180,
        "closest": "REML",
    }
    assert json.dumps(table.attrs)
    assert_allclose(table["difference"], table["other"] - table["estimate"])


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_reml_beside_ml(sleepstudy_model, caplog, method):
    one, other = sleepstudy_model.reml(), sleepstudy_model.ml()
    if method == "REML":
        one, other = other, one
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        table = compare_estimates(one, other)
    assert table.loc["sd[Subject, Intercept]", "flag"] == DIFFERS
    assert table.attrs["closest"] == method
    assert f"has the values of {method}" in caplog.text
    assert f"compare with model.{method.lower()}()" in caplog.text


def test_a_table_of_ml_from_r(reml, sleepstudy_model, caplog):
    path = TIDY / "sleepstudy_ml.csv"
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        assert compare_estimates(reml, path).attrs["closest"] == "ML"
        assert "compare with model.ml()" in caplog.text
        caplog.clear()
        table = compare_estimates(sleepstudy_model.ml(), path)
    assert set(table["flag"]) == {AGREES}
    assert not caplog.text


def test_ml_of_many_levels_is_told_by_standard_errors():
    """Where sds hardly differ between the two, the standard errors of fixed effects do."""
    chem = model_of(load_fit("Chem97__null_reml"))
    table = compare_estimates(chem.reml(), chem.ml())
    assert DIFFERS not in set(table["flag"])
    assert table.loc["beta[Intercept]", "flag"] == ERRORS_DIFFER
    assert table.attrs["closest"] == "ML"


def test_standard_errors_of_another_kind(sleepstudy_model, sleep_table, caplog):
    factor = np.sqrt(180 / 178)  # nlme's, for ML
    ml = sleepstudy_model.ml()
    tidy = pd.read_csv(TIDY / "sleepstudy_ml.csv")
    tidy["std.error"] *= factor
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        table = compare_estimates(ml, tidy)
    assert list(table["flag"]) == [ERRORS_DIFFER] * 2 + [AGREES] * 4
    assert table.attrs["closest"] == "ML"
    assert not caplog.text
    assert_allclose(table["other_std_error"].iloc[:2] / table["std_error"].iloc[:2], factor, 1e-5)


def test_the_standard_errors_are_those_of_the_estimate():
    growth = load_dataset("Orthodont")
    model = LMM("distance ~ age * Sex + (age | Subject)", growth)
    robust = model.reml().robust("Subject", "CR0")
    table = compare_estimates(robust, TIDY / "Orthodont.csv")
    assert set(table["flag"].iloc[:4]) == {ERRORS_DIFFER}
    assert_allclose(table["std_error"].iloc[:4], robust.fixef()["std_error"])
    turned = compare_estimates(model.reml(), robust)
    assert_allclose(turned["other_std_error"].iloc[:4], robust.fixef()["std_error"])


# --- boundaries ------------------------------------------------------------------------


@pytest.mark.parametrize("sd, flag", [(0.0, BOUNDARY), (1e-4, BOUNDARY), (0.1, DIFFERS)])
def test_a_zero_beside_a_small_sd(dyestuff2_model, sd, flag):
    tidy = pd.read_csv(TIDY / "Dyestuff2.csv")
    tidy.loc[tidy["term"] == "sd__(Intercept)", "estimate"] = sd
    table = compare_estimates(dyestuff2_model.reml(), tidy)
    assert table.loc["sd[Batch, Intercept]", "flag"] == flag
    assert table.loc["sigma", "flag"] == AGREES


@pytest.mark.parametrize("unit", [1.0, 1e6, 1e-6])
def test_a_zero_slope_is_judged_in_the_units_of_its_covariate(unit):
    rng = np.random.default_rng(3)
    x, group = np.tile(np.arange(6.0), 12), np.repeat(np.arange(12), 6)
    y = x + rng.normal(0, 1, 12)[group] + rng.normal(0, 1, len(x))
    rows = pd.DataFrame({"y": y, "x": x * unit, "g": group})
    reml = LMM("y ~ x + (1 | g) + (0 + x | g)", rows).reml()
    assert reml.sds["g"]["x"] == 0.0
    tidy = reml.tidy()
    slope = tidy["term"] == "sd__x"
    for sd, flag in [(1e-3 / unit, BOUNDARY), (0.05 / unit, DIFFERS)]:
        other = tidy.assign(estimate=tidy["estimate"].where(~slope, sd))
        assert compare_estimates(reml, other).loc["sd[g, x]", "flag"] == flag


def test_a_correlation_of_one():
    fit = load_fit("sim_corr_pos__slope_reml")
    reml = model_of(fit).reml()
    table = compare_estimates(reml, broom(fit))
    cor = table.index[table.index.str.startswith("cor[")][0]
    assert table.loc[cor, "estimate"] == pytest.approx(1.0)
    assert table.loc[cor, "flag"] == BOUNDARY
    moved = broom(fit)
    moved.loc[moved["term"].str.startswith("cor__"), "estimate"] = 0.9
    assert compare_estimates(reml, moved).loc[cor, "flag"] == DIFFERS


def test_a_correlation_of_one_by_a_far_origin_is_at_no_boundary():
    data = load_dataset("sleepstudy").assign(Days=lambda d: d["Days"] + 1e6)
    reml = LMM(SLOPE, data).reml()
    assert reml.corrs["Subject"].iloc[0, 1] < -1 + 1e-9
    assert set(compare_estimates(reml, reml.tidy())["flag"]) == {AGREES}


def test_held_values():
    sleep = load_dataset("sleepstudy")
    reml = LMM("Reaction ~ Days + (1 | Subject)", sleep, fixed={"sigma": 30.0}).reml()
    tidy = reml.tidy()
    assert compare_estimates(reml, tidy).loc["sigma", "flag"] == AGREES
    other = tidy.assign(estimate=tidy["estimate"].where(tidy["group"] != "Residual", 30.1))
    assert compare_estimates(reml, other).loc["sigma", "flag"] == DIFFERS


# --- what is taken and what is refused -------------------------------------------------


def test_names(reml, sleep_table):
    renamed = sleep_table.replace({"Days": "t", "sd__Days": "sd__t", "Subject": "id"})
    renamed = renamed.replace({"cor__(Intercept).Days": "cor__t.(Intercept)"})
    table = compare_estimates(reml, renamed, names={"t": "Days", "id": "Subject"})
    assert set(table["flag"]) == {AGREES}


def test_fixed_effects_alone(reml, sleep_table):
    table = compare_estimates(reml, sleep_table[sleep_table["effect"] == "fixed"])
    assert list(table.index) == ["beta[Intercept]", "beta[Days]"]
    assert set(table["flag"]) == {AGREES}


def test_statsmodels(reml):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = smf.mixedlm(
            "Reaction ~ Days", load_dataset("sleepstudy"), groups="Subject", re_formula="~Days"
        ).fit()
    table = compare_estimates(reml, fit)
    assert table.attrs["other"] == "statsmodels REML"
    assert set(table["flag"]) == {AGREES}
    assert table["other_std_error"].notna().all()


def test_other_rows(reml, caplog):
    sleep = load_dataset("sleepstudy")
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        table = compare_estimates(reml, LMM(SLOPE, sleep[sleep["Days"] > 2]).reml())
    assert "The other estimate uses 126 rows and this one 180." in caplog.text
    assert DIFFERS in set(table["flag"])
    assert table.attrs["closest"] == "REML"


def test_another_model(reml, sleep_table):
    with pytest.raises(DataError) as error:
        compare_estimates(reml, sleep_table[sleep_table["term"] != "sd__Days"])
    assert "only in the estimate: none" in str(error.value)
    assert "only in the model: sd[Subject, Days]" in str(error.value)


def test_what_is_no_estimate(sleepstudy_model, reml, sleep_table):
    post = sleepstudy_model.fit(method="laplace", draws=50, random_seed=1)
    with pytest.raises(TypeError, match=r"compare_reml\(\) puts a posterior beside"):
        compare_estimates(post, reml)
    with pytest.raises(TypeError, match="is expected first, got DataFrame"):
        compare_estimates(sleep_table, reml)
    with pytest.raises(TypeError, match="An estimate is expected, got Posterior"):
        compare_estimates(reml, post)
    with pytest.raises(ValueError, match="A posterior mode is no estimate"):
        compare_estimates(sleepstudy_model.map(), reml)
    with pytest.raises(FileNotFoundError):
        compare_estimates(reml, "absent.csv")
