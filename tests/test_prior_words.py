"""Priors written in Stan's words against PyMC's distributions, and the table in brms's words."""

from __future__ import annotations

from itertools import product

import numpy as np
import pymc as pm
import pytest
from numpy.testing import assert_allclose
from slow_cases import slow

import bayeslmm as blm
from bayeslmm import LMM, PriorError, load_dataset
from bayeslmm.priors import LKJ, HalfNormal, HalfStudentT, Normal
from bayeslmm.priors.words import WORDS

POINTS = np.concatenate([-np.logspace(2, -3, 20), np.logspace(-3, 2, 20)])

SAME = 1e-12
"""Densities that are computed by the same formulas."""

SLOPE = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def sleep():
    return load_dataset("sleepstudy")


def priors(sleep, formula=SLOPE, **given):
    options = given.pop("options", {})
    return LMM(formula, sleep, priors=given, **options).priors.records()


ON_A_COEFFICIENT = {
    "normal(-1, 10)": lambda: pm.Normal.dist(-1, 10),
    "std_normal()": lambda: pm.Normal.dist(0, 1),
    "student_t(3, 1, 2.5)": lambda: pm.StudentT.dist(nu=3, mu=1, sigma=2.5),
    "cauchy(1, 2)": lambda: pm.Cauchy.dist(1, 2),
    "double_exponential(1, 2)": lambda: pm.Laplace.dist(1, 2),
    "logistic(1, 2)": lambda: pm.Logistic.dist(1, 2),
    "skew_normal(1, 2, 3)": lambda: pm.SkewNormal.dist(mu=1, sigma=2, alpha=3),
    "gumbel(1, 2)": lambda: pm.Gumbel.dist(1, 2),
    "exponential(0.5)": lambda: pm.Exponential.dist(0.5),
    "gamma(2, 0.1)": lambda: pm.Gamma.dist(2, 0.1),
    "inv_gamma(2, 3)": lambda: pm.InverseGamma.dist(2, 3),
    "lognormal(0, 1)": lambda: pm.LogNormal.dist(0, 1),
    "weibull(2, 3)": lambda: pm.Weibull.dist(2, 3),
    "chi_square(3)": lambda: pm.ChiSquared.dist(3),
    "beta(2, 3)": lambda: pm.Beta.dist(2, 3),
    "uniform(-3, 4.5e1)": lambda: pm.Uniform.dist(-3, 45),
}


@pytest.mark.parametrize("text", ON_A_COEFFICIENT)
def test_a_text_is_the_distribution_of_pymc(text, sleep):
    found = priors(sleep, Days=text)["Days"]
    expected = priors(sleep, Days=ON_A_COEFFICIENT[text]())["Days"]
    assert_allclose(found.logpdf(POINTS), expected.logpdf(POINTS), rtol=SAME)
    assert str(found) == str(expected)
    assert found.positive == expected.positive


def test_every_distribution_is_tested():
    assert {text.partition("(")[0] for text in ON_A_COEFFICIENT} == {
        name for name in WORDS if not name.startswith("lkj")
    }


ON_A_SCALE = {
    "normal(0, 10)": lambda: pm.HalfNormal.dist(10),
    "std_normal()": lambda: pm.HalfNormal.dist(1),
    "student_t(3, 0, 2.5)": lambda: pm.HalfStudentT.dist(nu=3, sigma=2.5),
    "cauchy(0, 2)": lambda: pm.HalfCauchy.dist(2),
    "double_exponential(0, 2)": lambda: pm.Exponential.dist(0.5),
    "normal(5, 2)": lambda: pm.TruncatedNormal.dist(5, 2, lower=0),
    "student_t(3, 1, 2)": lambda: pm.Truncated.dist(pm.StudentT.dist(nu=3, mu=1, sigma=2), lower=0),
    "exponential(0.5)": lambda: pm.Exponential.dist(0.5),
    "gamma(2, 0.1)": lambda: pm.Gamma.dist(2, 0.1),
    "uniform(0, 100)": lambda: pm.Uniform.dist(0, 100),
}


HEAVY = ("student_t(3, 1, 2)", "sigma")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        slow(*case) if case == HEAVY else case
        for case in product(ON_A_SCALE, ["sd[Subject]", "sigma"])
    ],
)
def test_on_a_standard_deviation_it_is_the_half_above_zero(text, key, sleep):
    name = "sd[Subject, Days]" if key != "sigma" else key
    found = priors(sleep, **{key: text})[name]
    expected = priors(sleep, **{key: ON_A_SCALE[text]()})[name]
    inside = POINTS[POINTS > 0]
    assert_allclose(found.logpdf(inside), expected.logpdf(inside), rtol=1e-8, atol=1e-10)
    assert np.all(found.logpdf(POINTS[POINTS < 0]) == -np.inf)


def test_the_halves_are_records_with_closed_forms(sleep):
    found = priors(sleep, sd="student_t(3, 0, 2.5)", sigma=" normal( 0 ,10 ) ", cor="lkj(2)")
    assert found["sd[Subject, Days]"] == HalfStudentT(3.0, 2.5)
    assert found["sigma"] == HalfNormal(10.0)
    assert found["cor[Subject]"] == LKJ(2.0)
    assert priors(sleep, Days="normal(0, 10)")["Days"] == Normal(0.0, 10.0)
    assert priors(sleep, cor="lkj_corr_cholesky(3)")["cor[Subject]"] == LKJ(3.0)


def test_no_prior_in_brms_s_words_is_a_flat_one(sleep):
    for text in ("", "flat", "(flat)"):
        assert str(priors(sleep, Days=text)["Days"]) == "flat"
        assert str(priors(sleep, sigma=text)["sigma"]) == "flat"


def test_correlations_of_residuals_are_truncated_to_their_range(sleep):
    options = {"options": {"residual": "ar1(Days | Subject)"}, "formula": "Reaction ~ Days"}
    found = priors(sleep, cor_residual="normal(0, 0.5)", **options)["cor_residual"]
    expected = pm.TruncatedNormal.dist(0, 0.5, lower=-1, upper=1)
    at = np.array([-0.99, -0.3, 0.4, 0.99])
    assert_allclose(found.logpdf(at), pm.logp(expected, at).eval(), rtol=1e-10)
    assert np.all(found.logpdf([-1.01, 1.01]) == -np.inf)
    assert str(priors(sleep, cor_residual="uniform(0, 1)", **options)["cor_residual"]) == (
        "Uniform(0, 1)"
    )


REFUSED = {
    "norm(0, 1)": "`norm` is no distribution known here, for the prior of 'Days'. Known are normal",
    "normal": r"Numbers in parentheses are missing: normal\(mu, sigma\)",
    "normal(0)": "1 numbers where 2 are expected",
    "normal()": "0 numbers where 2 are expected",
    "normal(0, 1": "comma or a closing parenthesis",
    "normal(0, x)": "A number is expected here",
    "normal(0, 1) + 1": "should end here",
    "normal(0, 1e999)": "too large",
    "normal(0, -1)": "positive, finite sigma",
    "student_t(3, 0, -1)": "invalid parameters",
    "lkj(2)": "a prior for correlations; 'Days' is a coefficient",
    "5": "begins with the name of a distribution",
    "__import__('os')": "no distribution known here",
    "normal(" + "0" * 300 + ", 1)": "at most 200",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_read_is_shown(text, sleep):
    with pytest.raises(PriorError, match=REFUSED[text]) as error:
        priors(sleep, Days=text)
    if "at most" not in REFUSED[text] and "lkj" not in text and "student" not in text:
        assert text in str(error.value)
        assert "^" in str(error.value)


def test_files_keep_them(sleep, tmp_path):
    given = {
        "Days": "student_t(3, 0, 10)",
        "sd[Subject]": "normal(20, 10)",
        "sigma": "cauchy(0, 5)",
    }
    model = LMM(SLOPE, sleep, priors=given)
    post = model.fit(method="laplace", draws=10, chains=1, random_seed=1)
    post.save(tmp_path / "post.nc")
    again = blm.load(tmp_path / "post.nc").priors
    assert again.table().equals(model.priors.table())
    assert again.table("brms").equals(model.priors.table("brms"))


def test_the_table_in_brms_s_words(sleep):
    given = {"Days": "student_t(3, 0, 10)", "sd[Subject, Days]": "normal(5, 2)", "cor": "lkj(2)"}
    table = LMM(SLOPE, sleep, priors=given).priors.table(style="brms")
    assert table["class"].tolist() == ["Intercept", "b", "sd", "sd", "cor", "sigma"]
    assert table["coef"].tolist() == ["", "Days", "Intercept", "Days", "", ""]
    assert table["group"].tolist() == ["", "", "Subject", "Subject", "Subject", ""]
    assert table["prior"].tolist()[1:] == [
        "student_t(3, 0, 10)",
        "student_t(3, 0, 56.3288)",
        "normal(5, 2)",
        "lkj(2)",
        "student_t(3, 0, 56.3288)",
    ]
    assert table["lb"].fillna(-1).tolist() == [-1, -1, 0, 0, -1, 0]
    assert table["ub"].isna().all()
    assert table["source"].tolist() == ["default", "user", "default", "user", "user", "default"]
    flat = LMM(SLOPE, sleep, priors="flat", fixed={"sigma": 30}).priors.table("brms")
    assert flat["prior"].tolist()[1] == "(flat)"
    assert flat["prior"].tolist()[-1] == "constant(30)"
    with pytest.raises(ValueError, match="style='stan'"):
        LMM(SLOPE, sleep).priors.table("stan")


def test_the_table_of_predictors_of_the_scale(sleep):
    model = LMM("Reaction ~ Days + (1 | Subject)", sleep, family="student", sigma="~ Days")
    table = model.priors.table("brms").set_index(["class", "dpar"])
    assert table.loc[("b", "sigma"), "coef"] == "Days"
    assert table.loc[("nu", ""), "prior"] == "gamma(2, 0.1)"


def test_texts_round_trip_through_the_table(sleep):
    for text in ("normal(0, 10)", "logistic(1, 2)", "gamma(2, 0.1)", "uniform(-3, 45)"):
        model = LMM(SLOPE, sleep, priors={"Days": text})
        assert model.priors.table("brms")["prior"].iloc[1] == text
