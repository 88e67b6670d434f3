"""Cluster-robust tests against clubSandwich, SAS and a dense computation."""

import json

import numpy as np
import pandas as pd
import pytest
from reference_data import FOLDER, load_reference_data

import bayeslmm as blm
from bayeslmm.exceptions import DataError

R = json.loads((FOLDER / "small_samples" / "small_samples.json").read_text())
SAS = pd.read_csv(FOLDER / "small_samples" / "empirical_sas.csv")


def sleepstudy():
    data = blm.load_dataset("sleepstudy").iloc[np.array(R["sleepstudy"]["rows"]) - 1]
    return blm.LMM("Reaction ~ Days + (Days | Subject)", data).reml(), "Subject", [0, 1]


def pastes():
    data = load_reference_data("Pastes")
    model = blm.LMM("strength ~ cask + (1 | batch) + (1 | sample)", data)
    return model.reml(), "batch", [1, 2]


def orthodont():
    data = load_reference_data("Orthodont").iloc[np.array(R["ar1"]["rows"]) - 1]
    return data.assign(place=data.groupby("Subject", observed=True).cumcount() + 1)


def ar1():
    model = blm.LMM(
        "distance ~ age * Sex + (1 | Subject)", orthodont(), residual="ar1(place | Subject)"
    )
    return model.reml(), "Subject", [1, 2, 3]


def hetero():
    model = blm.LMM("distance ~ age * Sex", orthodont(), residual="cs(1 | Subject) * strata(Sex)")
    return model.reml(), "Subject", [2, 3]


CASES = {"sleepstudy": sleepstudy, "pastes": pastes, "ar1": ar1, "hetero": hetero}


@pytest.mark.parametrize("name", CASES)
def test_standard_errors_and_tests_are_those_of_clubsandwich(name):
    reml, cluster, joint = CASES[name]()
    assert set(R[name]["tests"]) >= {"CR0", "CR1", "CR2"}
    for kind, expected in R[name]["tests"].items():
        judged = reml.robust(cluster, kind)
        table, L = judged.fixef(), np.eye(len(reml.beta))[joint]
        np.testing.assert_allclose(table["std_error"], expected["se"], rtol=1e-6)
        np.testing.assert_allclose(table["df"], expected["df"], rtol=1e-6)
        test = judged.contest(L).loc["contest"]
        assert test["num_df"] == expected["num_df"]
        np.testing.assert_allclose(
            test[["statistic", "den_df"]].astype(float),
            [expected["F"], expected["den_df"]],
            rtol=1e-6,
        )


@pytest.mark.parametrize("row", SAS.to_dict("records"), ids=lambda r: r["structure"])
def test_no_correction_is_sas_empirical(row):
    data = pd.read_csv(FOLDER / "structures" / "fev_data.csv")
    model = blm.LMM("FEV1 ~ ARMCD", data, residual=f"{row['structure']}(AVISIT | USUBJID)")
    vcov = model.reml().robust("USUBJID", "CR0").vcov.to_numpy()
    expected = [row["intercept_variance"], row["covariance"], row["arm_variance"]]
    # SAS' search ends at a relative criterion of 1e-8
    np.testing.assert_allclose([vcov[0, 0], vcov[0, 1], vcov[1, 1]], expected, rtol=5e-5)


def test_singletons_and_clusters_that_determine_a_coefficient():
    data = pd.DataFrame(R["singletons"]["data"])
    g = data["g"].to_numpy()
    data["g"] = data["g"].astype(str)
    reml = blm.LMM("y ~ x + only + (1 | g)", data).reml()
    table = reml.robust("g").fixef()
    expected = R["singletons"]["tests"]["CR2"]
    np.testing.assert_allclose(table["std_error"], expected["se"], rtol=1e-6)
    np.testing.assert_allclose(table["df"], expected["df"], rtol=1e-6)
    with pytest.raises(DataError, match="without some cluster a coefficient cannot be estimated"):
        reml.robust("g", "CR3")
    # the cluster with the coefficient of its own has residual zero, and no say: dense computation
    V, X = reml.V().to_numpy(), reml.design.X
    M = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    residual = data["y"].to_numpy() - X @ reml.beta.to_numpy()
    total = np.zeros_like(M)
    for level in np.unique(g):
        own = g == level
        v, x = V[np.ix_(own, own)], X[own]
        root = np.linalg.cholesky(v).T
        values, vectors = np.linalg.eigh(root @ (v - x @ M @ x.T) @ root.T)
        power = np.array([value**-0.5 if value > 1e-12 else 0.0 for value in values])
        correction = root.T @ (vectors * power) @ vectors.T @ root
        score = M @ x.T @ np.linalg.solve(v, correction @ residual[own])
        total += np.outer(score, score)
    np.testing.assert_allclose(reml.robust("g").vcov, total, rtol=1e-6, atol=1e-9)


def test_degrees_of_freedom_are_those_of_the_definition():
    """Of Bell and McCaffrey, from the covariance matrix of the scores under the model."""
    reml, _, _ = sleepstudy()
    V, X, codes = reml.V().to_numpy(), reml.design.X, reml.design.data["Subject"].to_numpy()
    M = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    spread = V - X @ M @ X.T
    rows = []
    for level in pd.unique(codes):
        own = codes == level
        row = np.zeros((2, len(codes)))
        row[:, own] = M @ X[own].T @ np.linalg.inv(V[np.ix_(own, own)])
        rows.append(row)
    for i in range(2):
        E = np.array([row[i] for row in rows])
        P = E @ spread @ E.T
        expected = np.trace(P) ** 2 / np.sum(P**2)
        df = reml.robust("Subject", "CR0").fixef()["df"].iloc[i]
        assert df == pytest.approx(expected, rel=1e-8)


def test_clusters_may_be_wider_than_the_groups_and_given_by_labels():
    data = load_reference_data("Pastes")
    model = blm.LMM("strength ~ 1 + (1 | sample)", data)
    reml = model.reml()
    by_label = reml.robust(data["batch"])
    assert "10 clusters: labels given" in by_label.notes[-1]
    wider = blm.LMM("strength ~ 1 + (1 | batch) + (1 | sample)", data).reml()
    assert len(wider.robust(["batch"]).inference.sandwich.scores) == 10
    with pytest.raises(DataError, match="no variable 'batch' in the model"):
        reml.robust("batch")
    with pytest.raises(DataError, match=r"levels of `batch` are in several clusters"):
        wider.robust("sample")
    with pytest.raises(DataError, match="have shape"):
        reml.robust(np.arange(7))
    with pytest.raises(DataError, match="labels of clusters are missing"):
        reml.robust(data["batch"].where(data["batch"] != "A"))
    with pytest.raises(DataError, match="all rows are in one cluster"):
        reml.robust(np.ones(len(data)))
    with pytest.raises(ValueError, match="one of 'CR0', 'CR1'"):
        reml.robust("sample", "CR4")


def test_other_degrees_of_freedom_prints_and_map():
    reml, _, _ = sleepstudy()
    robust = reml.robust("Subject", df="residual")
    np.testing.assert_array_equal(robust.fixef()["df"], reml.nobs - 2)
    assert robust.anova()["den_df"].tolist() == [reml.nobs - 2]
    assert np.isinf(robust.fixef(df="asymptotic")["df"]).all()
    assert robust.fixef(df="satterthwaite")["df"].max() < 18
    with pytest.raises(ValueError, match="about model-based standard errors"):
        robust.fixef(df="kenward-roger")
    assert "cluster-robust standard errors (CR2, 18 clusters: Subject)" in repr(robust)
    assert "cluster-robust standard errors" in robust.methods_paragraph(references=True)
    assert "Pustejovsky" in robust.methods_paragraph(references=True)
    data = blm.load_dataset("sleepstudy")
    with pytest.raises(ValueError, match=r"robust\(\) is for REML and ML"):
        blm.LMM("Reaction ~ Days + (1 | Subject)", data).map().robust("Subject")
    ml = blm.LMM("Reaction ~ Days", data).ml().robust(data["Subject"], "CR1")
    assert ml.fixef()["std_error"].notna().all()


def test_more_coefficients_than_clusters_give_no_joint_test():
    data = blm.load_dataset("sleepstudy").query("Subject in ['308', '309', '310']")
    reml = blm.LMM("Reaction ~ C(Days) + (1 | Subject)", data).reml()
    test = reml.robust("Subject").anova().iloc[0]
    assert np.isnan(test["statistic"]) and np.isnan(test["p_value"])


def test_rows_beyond_memory_are_read_again_if_they_are_few(monkeypatch):
    from bayeslmm.data import second_pass

    data = blm.load_dataset("sleepstudy").astype({"Subject": str})
    formula, parts = "Reaction ~ Days + (Days | Subject)", [data.iloc[:77], data.iloc[77:]]
    memory, batches = (blm.LMM(formula, rows).reml() for rows in (data, parts))
    found, expected = (fit.robust("Subject").fixef() for fit in (batches, memory))
    pd.testing.assert_frame_equal(found, expected, rtol=1e-6)
    monkeypatch.setattr(second_pass, "BATCH", 50)
    with pytest.raises(DataError, match=r"robust\(\)"):
        batches.robust("Subject")
    structured = blm.LMM("Reaction ~ Days", parts, residual="ar1(Days | Subject)").reml()
    with pytest.raises(DataError, match="with a residual structure"):
        structured.fixef(df="kenward-roger")


def test_joint_tests_do_not_depend_on_units():
    sleep = blm.load_dataset("sleepstudy")
    found = []
    for unit in (1.0, 1e9):
        rows = sleep.assign(Days=sleep["Days"] * unit)
        fit = blm.LMM("Reaction ~ Days + (Days | Subject)", rows).reml().robust("Subject")
        found.append(fit.contest([[1, 0], [0, 1]])[["statistic", "den_df"]].to_numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)  # of two searches


def test_missing_labels_are_refused():
    labels = pd.array(["a", pd.NA] * 90, dtype="string")
    with pytest.raises(DataError, match="labels of clusters are missing"):
        blm.LMM("Reaction ~ Days", blm.load_dataset("sleepstudy")).reml().robust(labels)


def test_series_of_labels_are_taken_by_index():
    data = load_reference_data("Orthodont").reset_index(drop=True)
    fit = blm.LMM("distance ~ age * Sex", data).reml()
    expected = fit.robust(data["Subject"]).fixef()
    shuffled = data["Subject"].sample(frac=1.0, random_state=1)
    pd.testing.assert_frame_equal(fit.robust(shuffled).fixef(), expected)
    pd.testing.assert_frame_equal(fit.robust(data["Subject"].to_numpy()).fixef(), expected)
    with pytest.raises(DataError, match="index of the labels"):
        fit.robust(data["Subject"].set_axis(range(5, 113)))
