"""Tables of models whose residuals have a structure: nlme's numbers, ICC, F tests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference_data import load_reference_data

import bayeslmm as blm

NLME = json.loads((Path(__file__).parent / "reference" / "structures" / "nlme.json").read_text())
# nlme's optimum is where its relative tolerance of 1e-6 of the criterion ends its search.
OPTIMUM = 1e-3


@pytest.mark.parametrize(
    "id_",
    [
        "BodyWeight__lme_slope_car1_reml",
        "BodyWeight__lme_slope_varident_diet_reml",
        "BodyWeight__lme_slope_varpower_time_reml",
        "Orthodont__gls_ar1_varident_reml",
        "Orthodont__gls_compsymm_reml",
        "Orthodont__gls_unstructured_reml",
        "Ovary__lme_int_ar1_reml",
    ],
)
def test_nlme_reports_these_numbers(id_):
    case = NLME[id_]
    data = load_reference_data(case["data"])
    reml = blm.LMM(case["formula"], data, residual=case["residual"]).reml()
    table = reml.varcorr(style="nlme")["estimate"]
    variance, correlation = case["variance"] or {}, case["correlation"] or {}
    expected = [*case["sds"], case["sigma"]]
    found = [*table[table.index.str.startswith("sd[")], table["sigma"]]
    if "power" in variance:
        expected.append(variance["power"])
    else:
        expected += list(variance.values())[1:]
    found += list(table[table.index.str.startswith("var")])
    names = ("Phi", "Rho", "cor[8", "cor[1")
    expected += sorted(correlation.values())  # nlme goes by columns, we by rows
    found += sorted(table[table.index.str.startswith(names)])
    # the power of nearly constant spread is flat in the criterion
    np.testing.assert_allclose(found, expected, rtol=OPTIMUM, atol=OPTIMUM * 0.1)


def test_ranges_and_exponents_are_those_of_the_covariance():
    data = blm.load_dataset("sleepstudy").assign(x=lambda d: 3.0 * d["Days"] + 7.0)
    for kind, power in (("exp", 1.0), ("gau", 2.0)):
        residual = f"{kind}(x | Subject) * exp(Days)"
        reml = blm.LMM("Reaction ~ Days", data, residual=residual).reml()
        table = reml.varcorr(style="nlme")["estimate"]
        R = reml.R().to_numpy()[:5, :5]
        days = np.arange(5.0)
        sds = table["sigma"] * np.exp(table["varExp[Days]"] * days)
        gaps = 3.0 * np.abs(days[:, None] - days) / table["range"]
        np.testing.assert_allclose(R, np.outer(sds, sds) * np.exp(-(gaps**power)), rtol=1e-8)


def test_posteriors_have_them_draw_by_draw():
    data = blm.load_dataset("sleepstudy").query("Days < 4")
    data["half"] = np.where(data["Days"] < 2, "early", "late")
    model = blm.LMM("Reaction ~ Days + (1 | Subject)", data, residual="strata(half)")
    post = model.fit(draws=100, chains=2, random_seed=1)
    table = post.varcorr(style="nlme")
    sigma = post.data["posterior"]["sigma"]
    ratio = (sigma.sel(stratum="late") / sigma.sel(stratum="early")).to_numpy()
    assert list(table.index) == ["sd[Subject, Intercept]", "sigma", "varIdent[late]"]
    assert table.loc["varIdent[late]", "mean"] == pytest.approx(ratio.mean(), rel=1e-10)
    icc = post.icc()
    assert icc.index.to_list() == [("Subject", "early"), ("Subject", "late")]
    assert icc.index.names == ["group", "stratum"]
    sd = post.data["posterior"]["sd_Subject"].to_numpy()[..., 0]
    late = sigma.sel(stratum="late").to_numpy()
    share = np.mean(sd**2 / (sd**2 + late**2))
    assert icc.loc[("Subject", "late"), "mean"] == pytest.approx(share, rel=1e-10)
    with pytest.raises(ValueError, match="style"):
        post.varcorr(style="SAS")


def test_intraclass_correlations_are_by_stratum_or_occasion():
    data = blm.load_dataset("sleepstudy").query("Days < 4").assign(w=lambda d: 1.0 + d["Days"] % 2)
    formula = "Reaction ~ Days + (0 + Days | Subject)"
    reml = blm.LMM(formula, data, residual="ar1h(Days | Subject)", weights="w").reml()
    table = reml.icc()
    assert table.index.names == ["group", "occasion"]
    V, R = reml.V(), reml.R()
    at = data["Days"].to_numpy() == 3
    share = 1.0 - R.to_numpy().diagonal()[at][0] / V.to_numpy().diagonal()[at][0]
    labels = table.index.get_level_values("occasion")
    assert table["estimate"].to_numpy()[labels.astype(float) == 3.0] == pytest.approx(share)
    assert len(blm.LMM(formula, data, residual="ar1(Days | Subject)").reml().icc()) == 1


def test_f_tests_leave_sums_of_squares_out():
    data = blm.load_dataset("Orthodont")
    formula = "distance ~ age * Sex"
    reml = blm.LMM(formula, data, residual="strata(Sex)").reml()
    table = reml.anova()
    assert list(table) == ["num_df", "den_df", "statistic", "p_value"]
    assert "Sums of squares are left out" in table.attrs["note"]
    assert "mean_sq" not in reml.contest(np.eye(4)[1:])
    assert "mean_sq" in blm.LMM(formula, data).reml().anova()


@pytest.mark.slow
def test_unstructured_correlations_have_profiles_whatever_the_order_of_occasions():
    data = blm.load_dataset("Orthodont").assign(visit=lambda d: "v" + d["age"].round().astype(str))
    data["turned"] = data["visit"].astype("category")
    data["turned"] = data["turned"].cat.reorder_categories(data["visit"].unique()[[3, 1, 0, 2]])

    def limits(occasion):
        reml = blm.LMM("distance ~ age * Sex", data, residual=f"us({occasion} | Subject)").reml()
        table = reml.confint(method="profile", kinds=("cor_residual",))
        ends = table[["conf_low", "conf_high"]].to_numpy(dtype=float)
        return dict(zip(table.index.str.findall("v[0-9]+").map(frozenset), ends, strict=True))

    found, expected = limits("turned"), limits("visit")
    assert len(found) == 6
    assert set(found) == set(expected)
    for pair, ends in expected.items():
        assert np.isfinite(ends).all()
        np.testing.assert_allclose(found[pair], ends, rtol=1e-4)  # ends of two searches
