"""Trials with repeated measures: fall-back structures, site effects, baseline as a response."""

from __future__ import annotations

import functools
import logging
from functools import cache

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, SamplingError

US, TOEPH, CS = (f"{kind}(AVISIT | USUBJID)" for kind in ("us", "toeph", "cs"))


@cache
def fev():
    return blm.load_dataset("fev")


@cache
def few(patients):
    """The first patients: too few for an unstructured matrix to have an estimate."""
    data = fev()
    return data[data["USUBJID"].isin(data["USUBJID"].cat.categories[:patients])]


# --- fall-back structures --------------------------------------------------------------


def test_first_structure_is_kept_where_it_converges():
    model = blm.LMM("FEV1 ~ ARMCD * AVISIT", fev(), residual=US)
    fit = model.reml(fallback=[TOEPH, CS])
    assert fit.model is model.model
    assert fit.tried == () == fit.notes


def test_next_structure_is_kept_and_that_is_said(caplog):
    model = blm.LMM("FEV1 ~ AVISIT", few(7), residual=US)
    assert not model.reml().converged
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        fit = model.reml(fallback=[TOEPH, CS])
    assert fit.converged
    assert fit.design.spec.residual_source == TOEPH
    expected = blm.LMM("FEV1 ~ AVISIT", few(7), residual=TOEPH).reml()
    assert fit.criterion == expected.criterion
    (note,) = fit.notes
    assert note.startswith(f"Fallen back to {TOEPH}. Tried before and not kept: {US}: the optim")
    assert note in repr(fit)
    assert any(f"{US} was not kept" in record.getMessage() for record in caplog.records)
    assert fit.with_df("residual").tried == fit.tried
    assert blm.LMM.from_fit(fit).design is fit.design


def test_chain_goes_on_over_what_is_not_determined():
    model = blm.LMM("FEV1 ~ AVISIT", few(4), residual=US)
    fit = model.ml(fallback=[TOEPH, CS])
    assert fit.method == "ML"
    assert fit.design.spec.residual_source == CS
    (note,) = fit.notes
    assert f"{US}: " in note
    assert f"{TOEPH}: " in note


def test_singular_fits_are_passed_over_for_other_models():
    yields = blm.load_dataset("Dyestuff2")
    singular = blm.LMM("Yield ~ 1 + (1 | Batch)", yields)
    fit = singular.reml(fallback=[singular.update("Yield ~ 1")])
    assert fit.design.formula.source == "Yield ~ 1"
    assert fit.notes == (
        "Fallen back to Yield ~ 1. Tried before and not kept: Yield ~ 1 + (1 | Batch): the fit is "
        "singular.",
    )


def test_a_chain_without_an_end_says_why():
    model = blm.LMM("FEV1 ~ AVISIT", few(5), residual=US)
    with pytest.raises(SamplingError, match="None of 2 models has converged") as error:
        model.reml(fallback=[TOEPH])
    assert US in str(error.value)
    assert TOEPH in str(error.value)


def test_wrong_structures_are_refused_before_any_fit(monkeypatch):
    model = blm.LMM("FEV1 ~ AVISIT", fev(), residual=US)
    monkeypatch.setattr("bayeslmm.fits.lmm.first_converging", None)
    with pytest.raises(FormulaError, match="toplitz"):
        model.reml(fallback=["toplitz(AVISIT | USUBJID)"])
    with pytest.raises(TypeError, match="a sequence of structures"):
        model.reml(fallback=CS)
    with pytest.raises(TypeError, match="neither a structure nor a model"):
        model.reml(fallback=[None])


# --- random effects beside R -----------------------------------------------------------


def test_site_beside_unstructured_residuals_is_that_of_dense_algebra():
    """mmrm and SAS's REPEATED alone have no random effects; V = Z G Z' + R block by block."""
    data = fev().dropna(subset="FEV1")
    number = data["USUBJID"].cat.codes.to_numpy()
    data = data.assign(site=[f"S{i % 9}" for i in number])
    data["FEV1"] += np.random.default_rng(1).normal(0, 4, 9)[number % 9]
    fit = blm.LMM("FEV1 ~ ARMCD * AVISIT + (1 | site)", data, residual=US).reml()
    assert fit.converged
    assert fit.sds["site"].iloc[0] > 1.0
    same_site = np.equal.outer(number % 9, number % 9)
    same_patient = np.equal.outer(number, number)
    visit = data["AVISIT"].cat.codes.to_numpy()
    sds = fit.sigma.to_numpy()
    names = list(fit.sigma.index)
    table = fit.summary()["estimate"]
    corr = np.eye(4)
    for i in range(4):
        for j in range(i):
            corr[i, j] = corr[j, i] = table[f"cor_residual[{names[j]}, {names[i]}]"]
    covariance = sds[:, None] * corr * sds
    dense = same_patient * covariance[np.ix_(visit, visit)]
    dense = dense + same_site * fit.sds["site"].iloc[0] ** 2
    X, y = fit.design.X, fit.design.y
    solved = np.linalg.solve(dense, np.column_stack([X, y]))
    information = X.T @ solved[:, :-1]
    beta = np.linalg.solve(information, X.T @ solved[:, -1])
    # both are exact at the same variances: rounding, at a condition number of some thousands
    assert fit.beta.to_numpy() == pytest.approx(beta, rel=1e-8)
    residual = y - X @ beta
    minus_two_log = (
        (len(y) - X.shape[1]) * np.log(2 * np.pi)
        + np.linalg.slogdet(dense)[1]
        + np.linalg.slogdet(information)[1]
        + residual @ np.linalg.solve(dense, residual)
    )
    assert fit.criterion == pytest.approx(minus_two_log, abs=1e-6)


# --- means and differences by visit ----------------------------------------------------

TRIAL = "FEV1 ~ ARMCD + AVISIT + ARMCD:AVISIT + RACE + SEX"


@cache
def trial(weights=None):
    return blm.LMM(TRIAL, fev(), residual=US, weights=weights).reml()


@pytest.mark.parametrize(
    ("weights", "visit", "df", "statistic", "p_value"),
    [  # "Tests of Effect Slices" of SAS PROC MIXED in mmrm's repository: sas_log_reml, sas_weighted
        (None, "VIS1", 146, 12.35, 0.0006),
        (None, "VIS2", 145, 18.89, 0.0000),
        (None, "VIS3", 131, 19.96, 0.0000),
        (None, "VIS4", 133, 6.85, 0.0099),
        ("WEIGHT", "VIS1", None, 9.66, None),  # SAS has 345 df here, more than there are patients
        ("WEIGHT", "VIS2", None, 16.14, None),
        ("WEIGHT", "VIS3", None, 22.26, None),
        ("WEIGHT", "VIS4", None, 6.36, None),
    ],
)
def test_slices_are_those_of_sas(weights, visit, df, statistic, p_value):
    difference = trial(weights).contrasts("ARMCD", by="AVISIT", at={"AVISIT": [visit]})
    row = difference.joint_test().iloc[0]
    assert row["num_df"] == 1
    assert row["statistic"] == pytest.approx(statistic, abs=0.006)
    if df is not None:
        assert row["den_df"] == pytest.approx(df, abs=0.6)
        # printed to four decimals; those below 0.0001 as <.0001
        assert row["p_value"] == pytest.approx(p_value, abs=6e-5 if p_value else 1e-4)
    single = difference.table().iloc[0]
    assert single["statistic"] ** 2 == pytest.approx(row["statistic"], rel=1e-10)
    assert single["p_value"] == pytest.approx(row["p_value"], rel=1e-6)


def test_weighted_means_are_those_of_sas_with_the_df_of_mmrm():
    """mmrm's tests/testthat/test-emmeans.R: means and errors from SAS, df from nlme's fit."""
    table = trial("WEIGHT").means(["AVISIT", "ARMCD"]).table()
    expected = {
        ("VIS1", "PBO"): (33.37, 0.772, 147),
        ("VIS1", "TRT"): (36.77, 0.776, 142),
        ("VIS2", "PBO"): (38.24, 0.617, 144),
        ("VIS2", "TRT"): (41.66, 0.585, 143),
        ("VIS3", "PBO"): (43.42, 0.468, 128),
        ("VIS3", "TRT"): (46.82, 0.543, 128),
        ("VIS4", "PBO"): (48.17, 1.163, 134),
        ("VIS4", "TRT"): (52.43, 1.226, 132),
    }
    for cell, (estimate, error, df) in expected.items():
        assert table.loc[cell, "estimate"] == pytest.approx(estimate, abs=0.006)
        assert table.loc[cell, "std_error"] == pytest.approx(error, abs=6e-4)
        assert table.loc[cell, "df"] == pytest.approx(df, rel=0.01)


# --- the baseline as a response --------------------------------------------------------

COLUMNS = {"subject": "USUBJID", "visit": "AVISIT", "arm": "ARMCD", "reference": "PBO"}
CLDA = "FEV1 ~ AVISIT + AVISIT:ARMCD_cLDA"


def constrained(data, **options):
    return blm.clda(data, response="FEV1", baseline="FEV1_BL", **(COLUMNS | options))


def test_constrained_frame_has_the_baseline_first():
    frame = constrained(fev())
    assert len(frame) == 1000
    assert frame["AVISIT"].cat.categories.tolist() == ["baseline", "VIS1", "VIS2", "VIS3", "VIS4"]
    assert frame["USUBJID"].tolist() == np.repeat([f"PT{i}" for i in range(1, 201)], 5).tolist()
    first = frame[frame["AVISIT"] == "baseline"]
    assert first["FEV1"].tolist() == fev()["FEV1_BL"].iloc[::4].tolist()
    assert (first["ARMCD_cLDA"] == "PBO").all()
    assert first["ARMCD"].tolist() == fev()["ARMCD"].iloc[::4].tolist()
    assert first["VISITN"].isna().all()
    rest = frame[frame["AVISIT"] != "baseline"]
    assert (rest["ARMCD_cLDA"] == rest["ARMCD"]).all()
    assert rest["FEV1"].fillna(0).tolist() == fev()["FEV1"].fillna(0).tolist()
    assert "FEV1_BL" not in frame
    mixed = constrained(fev().sample(frac=1.0, random_state=1))
    assert mixed.groupby("USUBJID", observed=True)["AVISIT"].first().eq("baseline").all()


def test_differences_by_ml_are_those_with_the_baseline_as_covariate():
    """The likelihood factors into that of baselines and that of later visits given them."""
    frame = constrained(fev())
    together = blm.LMM(CLDA, frame, residual=US)
    formula = "FEV1 ~ 0 + AVISIT + AVISIT:ARMCD + AVISIT:FEV1_BL"
    given = blm.LMM(formula, fev(), residual=US).ml()
    found, expected = together.ml().beta, given.beta
    for visit in ("VIS1", "VIS2", "VIS3", "VIS4"):
        difference = found[f"AVISIT[{visit}]:ARMCD_cLDA[T.TRT]"]
        # two searches, each within 1e-4 standard errors of its maximum
        assert difference == pytest.approx(expected[f"AVISIT[{visit}]:ARMCD[T.TRT]"], abs=1e-3)
    assert found["Intercept"] == pytest.approx(fev()["FEV1_BL"].iloc[::4].mean(), abs=1e-3)
    means = together.reml().means(["AVISIT", "ARMCD_cLDA"]).table()["estimate"]
    assert np.isnan(means[("baseline", "TRT")]), "there is one mean at baseline"


def test_constrained_estimate_is_generalised_least_squares():
    """At the estimated R, by hand: a mean at baseline, then arms, patient by patient."""
    frame = constrained(fev()).dropna(subset="FEV1")
    fit = blm.LMM(CLDA, frame, residual=US).reml()
    visit = frame["AVISIT"].cat.codes.to_numpy()
    treated = (frame["ARMCD"] == "TRT").to_numpy()
    X = np.zeros((len(frame), 9))
    X[np.arange(len(frame)), visit] = 1.0
    later = treated & (visit > 0)
    X[np.flatnonzero(later), 4 + visit[later]] = 1.0
    R = fit.R().to_numpy()
    y = frame["FEV1"].to_numpy()
    information = X.T @ np.linalg.solve(R, X)
    beta = np.linalg.solve(information, X.T @ np.linalg.solve(R, y))
    assert fit.beta.to_numpy()[5:] == pytest.approx(beta[5:], rel=1e-8)
    errors = np.sqrt(np.diag(np.linalg.inv(information)))[5:]
    assert np.sqrt(np.diag(fit.vcov))[5:] == pytest.approx(errors, rel=1e-8)


def test_missing_baselines_are_imputed_as_responses():
    frame = constrained(fev().assign(FEV1_BL=fev()["FEV1_BL"].where(fev()["USUBJID"] != "PT2")))
    model = blm.LMM(CLDA, frame, residual=US, missing="keep")
    post = model.fit(method="laplace", draws=5, random_seed=1)
    arms = {"arm": ["ARMCD_cLDA"], "reference": "PBO"}
    completed = post.impute("J2R", n=3, random_seed=1, **arms)
    assert not any(made.isna()["FEV1"].any() for made in completed.frames())
    pooled = completed.analyse("FEV1 ~ ARMCD_cLDA").pool()
    assert pooled.index.get_level_values("AVISIT").unique().tolist() == [
        "VIS1",
        "VIS2",
        "VIS3",
        "VIS4",
    ]
    effect = post.reference_based_effect("MAR", random_seed=1, **arms)
    by_visit = post.contrasts(
        "ARMCD_cLDA", {"d": {"TRT": 1, "PBO": -1}}, by="AVISIT", at={"AVISIT": ["VIS3", "VIS4"]}
    )
    expected = by_visit.draws.to_numpy().reshape(20, -1)
    assert effect.values[:, 2:] == pytest.approx(expected, abs=1e-9)


def test_wrong_frames_are_refused():
    for words, options in {
        "`ARM`: no column of the data": {"arm": "ARM"},
        "none of the arms": {"reference": "CTL"},
        "have a visit `VIS1`": {"baseline_visit": "VIS1"},
    }.items():
        with pytest.raises(DataError, match=words):
            constrained(fev(), **options)
    moved = fev().assign(FEV1_BL=np.arange(800.0))
    with pytest.raises(DataError, match="`FEV1_BL` must be constant within a subject"):
        constrained(moved)
    expanded = functools.partial(blm.expand_visits, subject="USUBJID", visit="AVISIT")
    for function in (constrained, expanded):
        with pytest.raises(DataError, match="`PT1` of USUBJID has several rows at `VIS1`"):
            function(pd.concat([fev(), fev().iloc[:1]]))
        with pytest.raises(DataError, match="`AVISIT` is missing in 1 rows"):
            function(fev().assign(AVISIT=fev()["AVISIT"].where(fev().index != 3)))


# --- a row at every visit --------------------------------------------------------------


def test_rows_are_added_with_what_is_constant():
    kept = fev().drop(index=[1, 2, 799])
    full = blm.expand_visits(kept, subject="USUBJID", visit="AVISIT")
    assert list(full.columns) == list(fev().columns)
    for name in ("USUBJID", "AVISIT", "ARMCD", "RACE", "SEX", "FEV1_BL"):
        assert full[name].tolist() == fev()[name].tolist()
        assert full[name].dtype == fev()[name].dtype
    assert full.loc[[1, 2, 799], ["FEV1", "WEIGHT", "VISITN"]].isna().all().all()
    there = np.setdiff1d(np.arange(800), [1, 2, 799])
    assert full["FEV1"][there].equals(fev()["FEV1"][there])
    codes = pd.DataFrame({"id": [3, 3, 1], "time": [0, 2, 2], "y": [1.0, 2.0, 3.0], "a": "u"})
    small = blm.expand_visits(codes, subject="id", visit="time")
    assert small["id"].tolist() == [3, 3, 1, 1]
    assert small["time"].tolist() == [0, 2, 0, 2]
    assert small["a"].tolist() == ["u"] * 4
    assert np.isnan(small["y"][2])


def test_visits_may_be_dates():
    visits = pd.Timestamp("2020-01-01") + pd.to_timedelta([7, 28], unit="D")
    frame = pd.DataFrame(
        {
            "id": [1, 1, 2, 2],
            "arm": ["a", "a", "b", "b"],
            "day": [*visits, *visits],
            "y": [1.0, 2.0, 3.0, 4.0],
            "y0": [0.5, 0.5, 0.7, 0.7],
        }
    )
    columns = {"response": "y", "baseline": "y0", "visit": "day", "subject": "id", "arm": "arm"}
    made = blm.clda(frame, **columns, reference="a")
    assert made["day"].notna().all()
    assert made["y"].tolist() == [0.5, 1.0, 2.0, 0.7, 3.0, 4.0]
