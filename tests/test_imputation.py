"""Reference-based imputation: strategies, brute-force algebra, rbmi's figures, hostile data."""

from __future__ import annotations

import json
import pickle
from functools import cache

import numpy as np
import pandas as pd
import polars as pl
import pytest
from reference_data import FOLDER

import bayeslmm as blm
from bayeslmm.effects.imputed import Analyses, pooled_df
from bayeslmm.exceptions import DataError
from bayeslmm.prediction.reference_based import (
    STRATEGIES,
    _covariance,
    _mean,
    expected_responses,
    imputed_values,
    strategies_of,
)
from bayeslmm.prediction.trajectories import laws_of, trial_of
from bayeslmm.sampling.joint_draws import point_draws

RBMI = json.loads((FOLDER / "trials" / "rbmi.json").read_text())
OF_FEV = {"arm": "ARMCD", "reference": "PBO"}
US = "us(AVISIT | USUBJID)"

PRINTED = 6e-4
"""Estimates printed with three decimals."""

SAMPLER = 4.0
"""Monte Carlo standard errors; the largest of a dozen counts."""


@cache
def fev():
    return blm.load_dataset("fev")


@cache
def fitted(formula="FEV1 ~ ARMCD * AVISIT + FEV1_BL", residual=US, draws=1000, method="laplace"):
    model = blm.LMM(formula, fev(), residual=residual, missing="keep", priors="flat")
    return model.fit(method=method, draws=draws, random_seed=1)


@cache
def antidepressant():
    data = pd.read_csv(FOLDER / "trials" / "antidepressant.csv")
    data["THERAPY"] = pd.Categorical(data["THERAPY"], categories=["PLACEBO", "DRUG"])
    data["VISIT"] = pd.Categorical(data["VISIT"].astype(str))
    data = blm.expand_visits(data, subject="PATIENT", visit="VISIT")
    formula = "CHANGE ~ BASVAL * VISIT + THERAPY * VISIT"
    return blm.LMM(formula, data, residual="us(VISIT | PATIENT)", missing="keep", priors="flat")


# --- strategies ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "late", "expected"),
    [
        # rbmi's tests/testthat/test-strategies.R
        ("CIR", [0, 1, 1], [1, 5, 9]),
        ("CIR", [1, 1, 1], [2, 6, 10]),
        ("LMCF", [0, 1, 1], [1, 1, 1]),
        ("J2R", [0, 1, 1], [1, 6, 10]),
        ("J2R", [1, 1, 1], [2, 6, 10]),
        ("CR", [0, 1, 1], [2, 6, 10]),
        ("MAR", [0, 1, 1], [1, 3, 5]),
    ],
)
def test_means_are_those_of_rbmi(strategy, late, expected):
    own, reference = np.array([[[1.0, 3.0, 5.0]]]), np.array([[[2.0, 6.0, 10.0]]])
    assert _mean(strategy, own, reference, np.array(late, dtype=bool))[0, 0].tolist() == expected


def test_covariances_are_those_of_carpenter_roger_and_kenward():
    """Written out as in their section 4.2, for two arms with covariances of their own."""
    rng = np.random.default_rng(1)
    root = rng.standard_normal((2, 4, 6))
    own, reference = root @ root.transpose(0, 2, 1)
    late = np.array([False, False, True, True])
    e, o = slice(0, 2), slice(2, 4)
    inverse = np.linalg.inv(reference[e, e])
    across = reference[o, e] @ inverse @ own[e, e]
    less = inverse @ (reference[e, e] - own[e, e]) @ inverse
    corner = reference[o, o] - reference[o, e] @ less @ reference[e, o]
    expected = np.block([[own[e, e], across.T], [across, corner]])
    for strategy in ("J2R", "CIR"):
        found = _covariance(strategy, own[None], reference[None], late)[0]
        assert found == pytest.approx(expected, rel=1e-12)
        every = _covariance(strategy, own[None], reference[None], np.ones(4, dtype=bool))[0]
        assert (every == reference).all()
    assert (_covariance("CR", own[None], reference[None], late)[0] == reference).all()
    assert (_covariance("LMCF", own[None], reference[None], late)[0] == own).all()


# --- brute force -----------------------------------------------------------------------


def dense_law(draws, subject, strategy, draw):
    """Mean and covariance of a patient, written out from the draws by name (R by arm)."""
    draws = {name: draws[name] if name == "coef" else draws[name][0, draw] for name in draws}
    rows = fev()[fev()["USUBJID"] == subject]
    beta = dict(zip(draws["coef"], draws["beta"], strict=True))
    law = {}
    for arm in ("PBO", "TRT"):
        mean = []
        for visit, baseline in zip(rows["AVISIT"], rows["FEV1_BL"], strict=True):
            value = beta["Intercept"] + beta["FEV1_BL"] * baseline
            value += beta.get(f"AVISIT[T.{visit}]", 0.0)
            if arm == "TRT":
                value += beta["ARMCD[T.TRT]"] + beta.get(f"ARMCD[T.TRT]:AVISIT[T.{visit}]", 0.0)
            mean.append(value)
        place = 4 * (arm == "TRT")
        sds = draws["sigma"][place : place + 4]
        cor = draws["cor_residual"][6 * (arm == "TRT") :][:6]
        matrix = np.eye(4)
        for k, (i, j) in enumerate([(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]):
            matrix[i, j] = matrix[j, i] = cor[k]
        law[arm] = (np.array(mean), sds[:, None] * matrix * sds)
    y = rows["FEV1"].to_numpy()
    seen = np.flatnonzero(~np.isnan(y))
    k = seen[-1] + 1 if len(seen) else 0
    (mean, cov), (ref_mean, ref_cov) = law[rows["ARMCD"].iloc[0]], law["PBO"]
    mean = mean.copy()
    if strategy == "MAR":
        return y, mean, cov
    if strategy == "CR" or k == 0:
        return y, ref_mean, ref_cov
    last = mean[k - 1]
    mean[k:] = ref_mean[k:] if strategy == "J2R" else last + ref_mean[k:] - ref_mean[k - 1]
    A, B = cov[:k, :k], ref_cov[k:, :k] @ np.linalg.inv(ref_cov[:k, :k])
    corner = ref_cov[k:, k:] - B @ ref_cov[:k, k:] + B @ A @ B.T
    return y, mean, np.block([[A, A @ B.T], [B @ A, corner]])


@pytest.mark.parametrize("strategy", ["MAR", "J2R", "CR", "CIR"])
def test_imputation_is_brute_force_conditional_normal(strategy):
    post = fitted(residual="us(AVISIT | ARMCD / USUBJID)", draws=5)
    trial = trial_of(post.design, ("ARMCD",), "PBO", None, None)
    joint = post._joint.take(np.arange(3))
    strategies = strategies_of(trial, strategy)
    expected = imputed_values(trial, joint, strategies, None)
    many = joint.take(np.zeros(4000, dtype=np.intp))
    drawn = imputed_values(trial, many, strategies, np.random.default_rng(3))
    treated = trial.arms == "TRT"
    patterns = pd.DataFrame(trial.missing).astype(int).astype(str).agg("".join, axis=1)
    wanted = patterns[treated & trial.missing.any(axis=1)].drop_duplicates().index
    assert {"0011", "0110", "1111"} & set(patterns[wanted]), "late, intermittent and no responses"
    of_posterior = post.data["posterior"].to_dataset()
    draws = {n: of_posterior[n].to_numpy() for n in ("coef", "beta", "sigma", "cor_residual")}
    for i in wanted:
        for draw in range(3):
            law = strategy if trial.late[i].any() else "MAR"
            y, mean, cov = dense_law(draws, trial.subjects[i], law, draw)
            m, o = np.isnan(y), ~np.isnan(y)
            gain = cov[np.ix_(m, o)] @ np.linalg.inv(cov[np.ix_(o, o)])
            told = mean[m] + gain @ (y[o] - mean[o])
            assert expected[draw, i, m] == pytest.approx(told, rel=1e-9)
            assert (expected[draw, i, o] == y[o]).all()
            if draw == 0:
                left = cov[np.ix_(m, m)] - gain @ cov[np.ix_(o, m)]
                z = np.linalg.solve(np.linalg.cholesky(left), (drawn[:, i, m] - told).T)
                # 4000 draws: means within 1/63, second moments within 1.41/63
                assert np.abs(z.mean(axis=1)).max() < 4.5 / np.sqrt(4000)
                assert np.abs(z @ z.T / 4000 - np.eye(len(z))).max() < 4.5 * np.sqrt(2 / 4000)


def test_missing_at_random_is_what_predict_missing_says():
    """Another road to the same numbers, draw by draw, site effects and all."""
    data = fev()
    number = data["USUBJID"].cat.codes.to_numpy()
    data = data.assign(site=[f"S{i % 8}" for i in number])
    data["FEV1"] = data["FEV1"] + np.random.default_rng(1).normal(0, 4, 8)[number % 8]
    formula = "FEV1 ~ ARMCD * AVISIT + (1 | site)"
    post = blm.LMM(formula, data, residual=US, missing="keep").fit(
        method="laplace", draws=25, random_seed=1
    )
    trial = trial_of(post.design, ("ARMCD",), "PBO", None, None)
    strategies = strategies_of(trial, "MAR")
    values = imputed_values(trial, post._joint, strategies, None)
    tree = post.predict_missing(kind="epred", summary=False)
    expected = tree["predictions"]["mu"].to_numpy().reshape(100, -1)
    where = np.flatnonzero(trial.missing.ravel()[np.argsort(trial.positions)])
    found = values.reshape(100, -1)[:, np.argsort(trial.positions)][:, where]
    assert found == pytest.approx(expected, rel=1e-8)


def test_random_effects_within_patients_are_part_of_the_law():
    """V = Z Sigma Z' + sigma^2 I of a patient, from the draws."""
    formula = "FEV1 ~ ARMCD * AVISIT + (VISITN | USUBJID)"
    post = blm.LMM(formula, fev(), missing="keep").fit(method="laplace", draws=5, random_seed=1)
    trial = trial_of(post.design, ("ARMCD",), "PBO", "AVISIT", "USUBJID")
    laws = laws_of(trial, post._joint, None)
    Z = np.column_stack([np.ones(4), np.arange(1.0, 5.0)])
    sds = post.data["posterior"]["sd_USUBJID"].to_numpy().reshape(-1, 2)
    rho = post.data["posterior"]["corr_USUBJID"].to_numpy().ravel()
    sigma = post.data["posterior"]["sigma"].to_numpy().ravel()
    for s in (0, 11):
        cov = np.outer(sds[s], sds[s]) * np.array([[1, rho[s]], [rho[s], 1]])
        V = Z @ cov @ Z.T + sigma[s] ** 2 * np.eye(4)
        assert laws.covariances(0, 7)[s] == pytest.approx(V, rel=1e-9)
    frames = list(post.impute("J2R", n=2, visit="AVISIT", subject="USUBJID", **OF_FEV).frames())
    assert not frames[0].isna().any().any()


# --- rbmi and Rubin's rules ------------------------------------------------------------


def test_conditional_means_are_those_of_rbmi():
    """Jump to reference at the REML estimate, least squares at each visit: no randomness."""
    reml = antidepressant().reml()
    trial = trial_of(reml.design, ("THERAPY",), "PLACEBO", None, None)
    joint = point_draws(reml.fit, reml._u)
    values = imputed_values(trial, joint, strategies_of(trial, "JR"), None)[0]
    baseline = trial.frame["BASVAL"].to_numpy().reshape(values.shape)[:, 0]
    drug = (trial.arms == "DRUG").astype(float)
    X = np.column_stack([np.ones(len(drug)), baseline, drug])
    for t, expected in enumerate(RBMI["condmean"]["estimates"].values()):
        b = np.linalg.lstsq(X, values[:, t], rcond=None)[0]
        placebo = b[0] + b[1] * baseline.mean()
        # rbmi's differences are placebo less drug
        assert [placebo, placebo + b[2], -b[2]] == pytest.approx(expected, abs=PRINTED)


@cache
def antidepressant_posterior():
    return antidepressant().fit(random_seed=1)


def test_bayesian_imputation_is_that_of_rbmi():
    completed = antidepressant_posterior().impute(
        "J2R", arm="THERAPY", reference="PLACEBO", n=1000, random_seed=2
    )
    pooled = completed.analyse("CHANGE ~ THERAPY + BASVAL").pool()
    names = {"PLACEBO": "PLACEBO", "DRUG": "DRUG", "difference": "DRUG - PLACEBO"}
    columns = ["estimate", "std_error", "conf_low", "conf_high", "p_value"]
    for name, expected in RBMI["bayes"]["4"].items():  # all were observed then: no randomness
        found = pooled.loc[("4", names[name]), columns].to_numpy(copy=True)
        if name == "difference":
            found[[0, 2, 3]] = -found[[0, 3, 2]]
        assert found[1:] == pytest.approx(expected[1:], rel=1e-6)
        assert found[0] == pytest.approx(expected[0], abs=1e-8)
    for name, (estimate, error, *_) in RBMI["bayes"]["7"].items():
        row = pooled.loc[("7", names[name])]
        value = -row["estimate"] if name == "difference" else row["estimate"]
        # between data sets the sd is the root of fmi times the error; rbmi has 150 of them
        noise = np.sqrt(row["fmi"]) * error * np.sqrt(1 / 150 + 1 / 1000)
        assert abs(value - estimate) < SAMPLER * noise
        assert row["std_error"] == pytest.approx(error, rel=0.03)


def test_direct_posterior_has_the_spread_of_the_jackknife():
    effect = antidepressant_posterior().reference_based_effect(
        "J2R", arm="THERAPY", reference="PLACEBO", random_seed=3
    )
    table = effect.table().droplevel("quantity")
    for visit, error in RBMI["condmean"]["jackknife_se"].items():
        estimate = -RBMI["condmean"]["estimates"][visit][2]
        assert table.loc[visit, "mean"] == pytest.approx(estimate, abs=SAMPLER * error / 60)
        assert table.loc[visit, "sd"] == pytest.approx(error, rel=0.04)
    assert effect.draws.sizes == {"chain": 4, "draw": 1000, "quantity": 4}


def test_rubins_rules_are_those_of_mice():
    case = RBMI["rubin"]
    complete = np.array(case["complete_df"], dtype=float)
    made = Analyses(
        index=pd.RangeIndex(len(complete)),
        estimates=np.repeat(np.array(case["estimates"])[:, None], len(complete), axis=1),
        std_errors=np.repeat(np.array(case["std_errors"])[:, None], len(complete), axis=1),
        df=complete,
    )
    table = made.pool()
    assert table["estimate"].to_numpy() == pytest.approx(case["estimate"], rel=1e-10)
    assert table["std_error"].to_numpy() ** 2 == pytest.approx(case["variance"], rel=1e-10)
    assert table["df"].to_numpy() == pytest.approx(case["df"], rel=1e-10)
    assert pooled_df(np.array([np.inf]), np.array([0.5]), 11)[0] == pytest.approx(40.0)
    assert pooled_df(np.array([np.inf]), np.array([0.0]), 11)[0] == np.inf


# --- what must follow ------------------------------------------------------------------


def test_missing_at_random_gives_the_mmrm():
    formula = "FEV1 ~ ARMCD * AVISIT + AVISIT:FEV1_BL"
    post = fitted(formula=formula, method="collapsed")
    completed = post.impute("MAR", n=400, random_seed=2, **OF_FEV)
    pooled = completed.analyse("FEV1 ~ ARMCD + FEV1_BL").pool()
    pooled = pooled.xs("TRT - PBO", level="quantity")
    reml = blm.LMM(formula, fev(), residual=US).reml()
    mmrm = reml.contrasts("ARMCD", {"difference": {"TRT": 1, "PBO": -1}}, by="AVISIT").table()
    for visit in pooled.index:
        row, expected = pooled.loc[visit], mmrm.loc[visit].iloc[0]
        noise = np.sqrt(row["fmi"] / 400) * row["std_error"]
        # besides, the posterior mean of the gains of regressions is not the REML estimate's
        assert abs(row["estimate"] - expected["estimate"]) < SAMPLER * noise + 0.02
        assert row["std_error"] == pytest.approx(expected["std_error"], rel=0.06)


def test_effect_under_missing_at_random_is_the_contrast_draw_by_draw():
    post = fitted()
    effect = post.reference_based_effect("MAR", random_seed=1, **OF_FEV)
    contrast = post.contrasts("ARMCD", {"difference": {"TRT": 1, "PBO": -1}}, by="AVISIT")
    assert effect.values == pytest.approx(contrast.draws.to_numpy().reshape(-1, 4), abs=1e-9)


def test_effect_of_jumping_is_the_contrast_times_the_share_still_there():
    post = fitted()
    effect = post.reference_based_effect("J2R", at="VIS4", random_seed=1, **OF_FEV)
    contrast = post.contrasts("ARMCD", {"difference": {"TRT": 1, "PBO": -1}}, by="AVISIT")
    share = effect.values[:, 0] / contrast.draws.to_numpy().reshape(-1, 4)[:, 3]
    trial = trial_of(post.design, ("ARMCD",), "PBO", None, None)
    there = ~trial.late[trial.arms == "TRT"][:, 3]
    # Dirichlet(1, ..., 1): the share is Beta(there, not there)
    a, b = there.sum(), (~there).sum()
    assert ((share > 0) & (share < 1)).all()
    assert share.mean() == pytest.approx(a / (a + b), abs=SAMPLER * share.std() / 60)
    assert share.std() == pytest.approx(np.sqrt(a * b / (a + b + 1)) / (a + b), rel=0.1)


@pytest.mark.parametrize("strategy", ["CR", "CIR", "LMCF"])
def test_effect_is_the_mean_difference_of_expectations(strategy):
    """With equal weights: the same sums by hand from conditional means of data without noise."""
    post = fitted()
    trial = trial_of(post.design, ("ARMCD",), "PBO", None, None)
    chosen = {s: strategy for s, row in zip(trial.subjects, trial.y, strict=True)
              if not np.isnan(row).all()}  # fmt: skip
    strategies = strategies_of(trial, chosen)
    joint = post._joint.take(np.arange(2))
    expected, reference = expected_responses(trial, joint, strategies)
    laws = laws_of(trial, joint, None)
    own = laws.means[0]
    i = int(np.flatnonzero((trial.arms == "TRT") & (trial.late.sum(axis=1) == 2))[0])
    seen = np.flatnonzero(~trial.missing[i])
    last = seen[-1]
    if strategy == "LMCF":
        by_hand = own[:, i, last]
    elif strategy == "CIR":
        by_hand = own[:, i, last] + reference[:, i, 3] - reference[:, i, last]
    else:
        V = laws.covariances(1, i)
        by_hand = [
            reference[s, i, 3]
            + V[s, 3, seen]
            @ np.linalg.solve(V[s][np.ix_(seen, seen)], (own - reference)[s, i, seen])
            for s in range(2)
        ]
    assert expected[:, i, 3] == pytest.approx(np.asarray(by_hand), rel=1e-10)


def test_reference_arm_is_missing_at_random_whatever_jumps():
    post = fitted()
    same = [post.impute(s, n=5, random_seed=1, **OF_FEV) for s in ("J2R", "CR", "CIR")]
    placebo = same[0].trial.arms == "PBO"
    for other in same[1:]:
        assert other.values[:, placebo] == pytest.approx(same[0].values[:, placebo], rel=1e-9)


# --- frames, shifts, analyses ----------------------------------------------------------


def test_frames_are_the_data_with_nothing_missing_in_their_order():
    shuffled = fev().sample(frac=1.0, random_state=3).set_index(np.arange(800) + 7)
    model = blm.LMM("FEV1 ~ ARMCD * AVISIT + FEV1_BL", shuffled, residual=US, missing="keep")
    post = model.fit(method="laplace", draws=10, random_seed=1)
    completed = post.impute("J2R", n=3, random_seed=1, **OF_FEV)
    frames = list(completed.frames())
    assert len(frames) == completed.n == 3
    for frame in frames:
        assert frame.index.equals(shuffled.index)
        seen = shuffled["FEV1"].notna()
        assert (frame["FEV1"][seen] == shuffled["FEV1"][seen]).all()
        assert not frame.isna().any().any()
        for name in ("USUBJID", "AVISIT", "ARMCD", "FEV1_BL"):
            assert frame[name].tolist() == shuffled[name].tolist()
    assert (frames[0]["FEV1"] != frames[1]["FEV1"]).sum() == 263
    again = post.impute("J2R", n=3, random_seed=1, **OF_FEV)
    assert (again.values == completed.values).all()
    assert len(completed.rows) == 263
    assert completed.rows["late"].sum() == 100
    assert "263 of 800 responses imputed, 100 of them after" in str(completed)


def test_shift_moves_what_was_imputed_after_the_last_response():
    completed = fitted().impute("MAR", n=4, random_seed=1, **OF_FEV)
    trial = completed.trial
    moved = completed.shift({"TRT": -2.0}).values - completed.values
    treated = (trial.arms == "TRT")[:, None]
    assert np.allclose(moved, np.where(trial.late & treated, -2.0, 0.0))
    every = completed.shift([0, 1, 2, 3], intermittent=True).values - completed.values
    assert np.allclose(every, np.where(trial.missing, np.arange(4.0), 0.0))
    differences = [
        completed.shift({"TRT": delta})
        .analyse("FEV1 ~ ARMCD", at="VIS4")
        .pool()["estimate"]
        .iloc[2]
        for delta in (0.0, -5.0)
    ]
    share = trial.late[trial.arms == "TRT"][:, 3].mean()
    assert differences[0] - differences[1] == pytest.approx(5.0 * share)
    with pytest.raises(DataError, match="`DRUG` is no arm"):
        completed.shift({"DRUG": 1.0})
    with pytest.raises(ValueError, match="4 of them, one for each visit"):
        completed.shift({"TRT": [1.0, 2.0]})
    with pytest.raises(ValueError, match="finite"):
        completed.shift(np.nan)


def test_formula_and_function_say_the_same():
    completed = fitted().impute("J2R", n=3, random_seed=1, **OF_FEV)

    def ancova(frame):
        last = frame[frame["AVISIT"] == "VIS4"]
        return blm.LMM("FEV1 ~ ARMCD * FEV1_BL + SEX2", last.assign(SEX2=1.0)).reml().means(
            "ARMCD", at={"FEV1_BL": last["FEV1_BL"].mean()}
        )  # fmt: skip

    fast = completed.analyse("FEV1 ~ ARMCD * FEV1_BL", at=["VIS4"])
    slow = completed.analyse(ancova)
    assert fast.estimates[:, :2] == pytest.approx(slow.estimates, rel=1e-8)
    assert fast.std_errors[:, :2] == pytest.approx(slow.std_errors, rel=1e-6)
    assert slow.df == pytest.approx([196.0, 196.0], rel=1e-6)
    assert slow.pool()["estimate"].index.tolist() == ["PBO", "TRT"]


def test_wrong_analyses_are_refused():
    completed = fitted().impute("J2R", n=2, random_seed=1, **OF_FEV)
    for formula, words in {
        "FEV1 ~ ARMCD + (1 | USUBJID)": "has random effects",
        "FEV1_BL ~ ARMCD": "The response that was imputed is FEV1",
        "FEV1 ~ FEV1_BL": "does not have the arm",
    }.items():
        with pytest.raises(DataError, match=words):
            completed.analyse(formula)
    with pytest.raises(DataError, match="`VIS9` is no visit"):
        completed.analyse("FEV1 ~ ARMCD", at="VIS9")
    with pytest.raises(TypeError, match="returned float"):
        completed.analyse(lambda frame: 1.0)
    with pytest.raises(ValueError, match="at= is for a formula"):
        completed.analyse(lambda frame: frame, at="VIS4")


def test_arm_by_weighted_rows():
    weighted = blm.LMM(
        "FEV1 ~ ARMCD * AVISIT", fev(), residual=US, weights="WEIGHT", missing="keep"
    ).fit(method="laplace", draws=10, random_seed=1)
    completed = weighted.impute("J2R", n=2, random_seed=1, **OF_FEV)
    found = completed.analyse("FEV1 ~ ARMCD", at="VIS4")
    frame = next(completed.frames()).assign(w=fev()["WEIGHT"])
    expected = blm.LMM("FEV1 ~ ARMCD", frame[frame["AVISIT"] == "VIS4"], weights="w").reml()
    assert found.estimates[0, 2] == pytest.approx(expected.beta.iloc[1])
    assert found.std_errors[0, 2] == pytest.approx(expected.summary()["std_error"].iloc[1])


# --- hostile data ----------------------------------------------------------------------


def quick(data, formula="FEV1 ~ ARMCD * AVISIT + FEV1_BL", **options):
    options = {"residual": US, "missing": "keep"} | options
    return blm.LMM(formula, data, **options).fit(method="laplace", draws=5, random_seed=1)


def refused(words, data=None, of=OF_FEV, formula="FEV1 ~ ARMCD * AVISIT + FEV1_BL", **options):
    options = {"residual": US, "missing": "keep"} | options
    design = blm.LMM(formula, fev() if data is None else data, **options).design
    with pytest.raises(DataError, match=words):
        trial_of(design, (of["arm"],), of["reference"], None, None)


def test_data_that_cannot_be_completed_are_refused():
    gaps = fev().assign(FEV1_BL=fev()["FEV1_BL"].where(fev()["USUBJID"] != "PT2"))
    refused("4 rows lack more than the response, such as a baseline", gaps)
    refused("1 visits have no row, the first `VIS1` of `PT1`", fev().iloc[1:])
    refused('needs missing="keep"', missing="drop")
    refused("none is missing", fev().assign(FEV1=fev()["FEV1"].fillna(40.0)))
    refused("text, which has no order", fev().assign(AVISIT=fev()["AVISIT"].astype(str)))
    third = fev()["ARMCD"].astype(str).where((np.arange(800) != 2) & (np.arange(800) < 700), "NEW")
    refused("`PT1` of USUBJID is in several arms", fev().assign(ARMCD=third))
    refused("`CTL` is none of the arms|'CTL' is none", of={"arm": "ARMCD", "reference": "CTL"})
    refused("`SITE`: no variable of the model", of={"arm": "SITE", "reference": "PBO"})
    refused("give subject= and visit=", residual=None)
    sites = fev().assign(site=fev()["USUBJID"].cat.codes % 5)
    post = quick(sites, formula="FEV1 ~ ARMCD * AVISIT + (1 | site:ARMCD)")
    with pytest.raises(DataError, match="what its effects would be"):
        post.impute("J2R", n=2, **OF_FEV)


def test_patients_without_a_response():
    data = fev()
    empty = data.groupby("USUBJID", observed=True)["FEV1"].count()
    names = empty.index[empty == 0]
    assert len(names) == 3
    post = quick(data)
    with pytest.raises(DataError, match="LMCF carries the mean"):
        post.impute("LMCF", n=2, **OF_FEV)
    given = dict.fromkeys(data["USUBJID"].cat.categories.difference(names), "LMCF")
    assert post.impute(given, n=2, **OF_FEV).n == 2
    with pytest.raises(DataError, match="`PT999` of USUBJID are not in the data"):
        post.impute({"PT999": "J2R"}, n=2, **OF_FEV)
    with pytest.raises(ValueError, match="one of MAR, J2R, CR, CIR, LMCF"):
        post.impute("LOCF", n=2, **OF_FEV)
    with pytest.raises(ValueError, match="n=21: the posterior has 20 draws"):
        post.impute(n=21, **OF_FEV)
    with pytest.raises(ValueError, match="n=1"):
        post.impute(n=1, **OF_FEV)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: pl.from_pandas(data),
        lambda data: data.assign(
            USUBJID=data["USUBJID"].astype(str), ARMCD=data["ARMCD"].astype(str)
        ),
        lambda data: data.assign(ARMCD=pd.Categorical(data["ARMCD"], ordered=True)),
        lambda data: data.assign(USUBJID=data["USUBJID"].cat.codes),
    ],
    ids=["polars", "text", "ordered", "numbers"],
)
def test_types_of_columns_do_not_matter(change):
    # expectations at the REML estimate: what draws are depends on the order of patients
    expected, other = expectations_of_fev(), expectations(change(fev()))
    assert other == pytest.approx(expected, rel=1e-5)


@cache
def expectations_of_fev():
    return expectations(fev())


def expectations(data):
    """Means of what is missing, jumping to reference, in the order of the data."""
    model = blm.LMM("FEV1 ~ ARMCD * AVISIT + FEV1_BL", data, residual=US, missing="keep")
    reml = model.reml()
    trial = trial_of(model.design, ("ARMCD",), "PBO", None, None)
    joint = point_draws(reml.fit, reml._u)
    values = imputed_values(trial, joint, strategies_of(trial, "J2R"), None)[0]
    return values.ravel()[np.argsort(trial.positions)]


def test_arms_that_are_numbers_and_times_that_are_continuous():
    data = fev().assign(trt=(fev()["ARMCD"] == "TRT").astype(int))
    formula = "FEV1 ~ trt * factor(VISITN) + FEV1_BL"
    post = quick(data, formula=formula, residual="car1(VISITN | USUBJID)")
    completed = post.impute("CIR", arm="trt", reference=0, n=2, random_seed=1)
    assert completed.trial.visits.tolist() == [1, 2, 3, 4]
    pooled = completed.analyse("FEV1 ~ trt", at=4).pool()
    assert pooled.index.tolist() == [(4, 0), (4, 1), (4, "1 - 0")]
    with pytest.raises(DataError, match="`99` is no visit"):
        completed.analyse("FEV1 ~ trt", at=99)


def test_transformed_responses_keep_their_scale():
    post = quick(fev(), formula="log(FEV1) ~ ARMCD * AVISIT")
    completed = post.impute("J2R", n=2, random_seed=1, **OF_FEV)
    frame = next(completed.frames())
    assert "FEV1" not in frame
    seen = fev()["FEV1"].notna()
    assert frame["log(FEV1)"][seen].to_numpy() == pytest.approx(np.log(fev()["FEV1"][seen]))
    pooled = completed.analyse("log(FEV1) ~ ARMCD", at="VIS4").pool()
    assert 3.0 < pooled["estimate"].iloc[0] < 4.5


def test_files_and_pickles_complete_the_same(tmp_path):
    post = quick(fev())
    completed = post.impute("J2R", n=3, random_seed=1, **OF_FEV)
    post.save(tmp_path / "fit.nc")
    loaded = blm.load(tmp_path / "fit.nc").impute("J2R", n=3, random_seed=1, **OF_FEV)
    assert (loaded.values == completed.values).all()
    assert (pickle.loads(pickle.dumps(completed)).values == completed.values).all()


def test_strategies_by_patient():
    post = fitted()
    trial = trial_of(post.design, ("ARMCD",), "PBO", None, None)
    found = strategies_of(trial, {"PT1": "J2R", "PT2": "CIR"})
    left = trial.late.any(axis=1)
    assert found[trial.subjects.get_loc("PT1")] == ("J2R" if left[0] else "MAR")
    assert set(found) <= {"J2R", "CIR", "MAR"}
    assert (strategies_of(trial, "CR")[~left] == "MAR").all(), "completers have not deviated"
    assert set(STRATEGIES) == {"MAR", "J2R", "CR", "CIR", "LMCF"}
