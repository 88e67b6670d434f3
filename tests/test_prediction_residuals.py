"""Predictions given the correlated residuals of observed rows of the same group."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from slow_cases import one_in

import bayeslmm as blm
from bayeslmm.estimation.estimate import points_of_fits
from bayeslmm.estimation.residuals import residual_blocks, residual_sds
from bayeslmm.exceptions import DataError
from bayeslmm.prediction.past import conditional_residuals, past_rows
from bayeslmm.prediction.rows import prediction_rows

# Two orders of the same arithmetic on matrices of condition below 1e4.
EXACT = 1e-8


@pytest.fixture(scope="module")
def sleep():
    data = blm.load_dataset("sleepstudy").assign(w=lambda d: 1.0 + d["Days"] % 3)
    data["half"] = np.where(data["Days"] % 2 == 1, "odd", "even")
    data["sex"] = np.where(data["Subject"].astype(int) % 2 == 0, "f", "m")
    return data


@pytest.fixture(scope="module")
def parts(sleep):
    """Observed rows, and rows to predict: the last days of two subjects and a gap of a third."""
    late = (sleep["Days"] > 6) & sleep["Subject"].isin(["308", "309"])
    gap = sleep["Days"].isin([3, 4]) & (sleep["Subject"] == "310")
    order = np.random.default_rng(3).permutation(len(sleep))
    held = (late | gap).to_numpy()
    return sleep.iloc[order[~held[order]]], sleep.iloc[order[held[order]]]


def dense(design, parts, fit):
    """R of observed rows and those to predict, Z G Z', X, at the parameters of a fit."""
    both = design.spec.rows(pd.concat(parts), residual=True)
    R = residual_blocks(both, points_of_fits([fit]), np.arange(both.n))[0]
    G = np.zeros_like(R)
    for factor, T in zip(both.random, fit.factors, strict=True):
        u = factor.Z @ (fit.sigma * T)
        G += (u @ u.T) * (factor.codes[:, None] == factor.codes)
    return R, G, both.X


CASES = [
    ("Reaction ~ Days", "us(Days | Subject)", None),
    ("Reaction ~ Days", "car1(Days | sex / Subject)", "w"),
    ("Reaction ~ Days", "cs(1 | Subject) * strata(half)", None),
    ("Reaction ~ Days", "gau(Days | Subject) * power(w)", None),
    ("Reaction ~ Days + (1 | Subject)", "ar1(Days | Subject)", "w"),
]


@pytest.mark.parametrize(("formula", "residual", "weights"), CASES)
def test_estimates_are_those_of_dense_algebra(parts, formula, residual, weights):
    old, new = parts
    if residual.startswith("us"):
        old, new = (part[part["Days"] > 4] for part in parts)
    reml = blm.LMM(formula, old, residual=residual, weights=weights).reml()
    R, G, X = dense(reml.design, (old, new), reml.fit)
    n, V = len(old), R + G
    y = old["Reaction"].to_numpy()
    inverse = np.linalg.inv(V[:n, :n])
    C = np.linalg.inv(X[:n].T @ inverse @ X[:n])
    beta = C @ X[:n].T @ inverse @ y
    gain = V[n:, :n] @ inverse
    found = reml.predict(new, kind="response", uncertainty="plugin", draws=50, random_seed=1)
    np.testing.assert_allclose(found["estimate"], X[n:] @ beta + gain @ (y - X[:n] @ beta), EXACT)
    if "|" in formula:  # standard errors are from draws
        return
    left = X[n:] - gain @ X[:n]
    fixed = left @ C @ left.T
    error = np.sqrt(np.diag(V[n:, n:] - gain @ V[:n, n:] + fixed))
    np.testing.assert_allclose(found["std_error"], error, EXACT)
    mean = reml.predict(new, kind="epred", residuals="conditional", uncertainty="plugin")
    np.testing.assert_allclose(mean["estimate"], found["estimate"], EXACT)
    np.testing.assert_allclose(mean["std_error"], np.sqrt(np.diag(fixed)), EXACT)


def test_draws_are_conditional_and_joint(parts):
    old, new = parts
    formula, residual = "Reaction ~ Days + (1 | Subject)", "ar1(Days | Subject) * strata(half)"
    model = blm.LMM(formula, old, residual=residual)
    design, fit = model.design, model.reml().fit
    R, _, _ = dense(design, parts, fit)
    n, size = len(old), 40_000
    gain = R[n:, :n] @ np.linalg.inv(R[:n, :n])
    past = past_rows(design, prediction_rows(design, new, "conditional", residual=True))
    assert past is not None
    known = np.flatnonzero(old["Subject"].isin(["308", "309", "310"]))
    residuals = np.random.default_rng(2).normal(scale=20.0, size=n)
    points = points_of_fits([fit])
    mean = conditional_residuals(past, points, residuals[None, known])[0]
    np.testing.assert_allclose(mean, gain @ residuals, rtol=EXACT, atol=EXACT)
    each = points.take(np.zeros(size, dtype=np.intp))
    rng = np.random.default_rng(1)
    draws = conditional_residuals(past, each, np.tile(residuals[known], (size, 1)), rng)
    cov = R[n:, n:] - gain @ R[:n, n:]
    scale = np.sqrt(np.diag(cov))
    # five standard errors of a mean, and of a correlation at most
    assert np.max(np.abs((draws.mean(axis=0) - mean) / scale)) < 5.0 / np.sqrt(size)
    assert np.max(np.abs(np.cov(draws.T) - cov) / np.outer(scale, scale)) < 7.5 / np.sqrt(size)


def test_an_autoregression_forgets_all_but_its_neighbours(sleep):
    data = sleep.drop(sleep.index[(sleep["Subject"] == "308") & sleep["Days"].isin([4, 5, 8, 9])])
    reml = blm.LMM("Reaction ~ Days", data, residual="ar1(Days | Subject)").reml()
    rho = np.tanh(reml.fit.parameters[-1])
    subject = data[data["Subject"] == "308"].set_index("Days")
    beta = reml.beta
    e = subject["Reaction"] - beta["Intercept"] - beta["Days"] * subject.index
    new = {"Subject": ["308"] * 3, "Days": [9, 12, 4]}
    found = reml.predict(new, residuals="conditional", uncertainty="plugin")["estimate"]
    linear = beta["Intercept"] + beta["Days"] * np.array(new["Days"])
    # 4 lies a step after 3 and two steps before 6
    bridge = np.linalg.solve([[1.0, rho**3], [rho**3, 1.0]], [rho, rho**2]) @ e[[3, 6]]
    shifts = np.array([rho**2 * e[7], rho**5 * e[7], bridge])
    np.testing.assert_allclose(found, linear + shifts, EXACT)


@pytest.mark.parametrize("store_u", [True, False])
def test_posterior_predictions_condition_draw_by_draw(parts, store_u):
    old, new = parts
    model = blm.LMM("Reaction ~ Days + (1 | Subject)", old, residual="ar1(Days | Subject)")
    post = model.fit(draws=50, chains=2, random_seed=1, store_u=store_u)
    tree = post.predict(new, residuals="conditional", summary=False)
    mu = tree["predictions"]["mu"].to_numpy().reshape(100, -1)
    if store_u:
        p = post.data["posterior"].to_dataset().stack(s=("chain", "draw"))
        rho = p["cor_residual"].to_numpy()
        u = p["u_Subject"].isel(Subject_coef=0)
        for i in range(len(new)):
            row, own = new.iloc[i], old[old["Subject"] == new["Subject"].iloc[i]]
            effect = u.sel(Subject=row["Subject"]).to_numpy()

            def line(days, effect=effect):
                return p["beta"][0].to_numpy() + p["beta"][1].to_numpy() * days + effect

            times = own["Days"].to_numpy()
            e = np.array([y - line(d) for y, d in zip(own["Reaction"], times, strict=True)])
            gaps = np.abs(times[:, None] - times)
            for s in range(0, 100, 17):
                gain = np.linalg.solve(rho[s] ** gaps, rho[s] ** np.abs(times - row["Days"]))
                np.testing.assert_allclose(mu[s, i], line(row["Days"])[s] + gain @ e[:, s], EXACT)
    response = post.predict(new, kind="response", random_seed=2)
    anew = post.predict(new, kind="response", residuals="new", random_seed=2)
    assert (response["sd"] < anew["sd"]).all()
    # a mean of 100 draws of a residual of sd 30
    np.testing.assert_allclose(response["mean"], mu.mean(axis=0), atol=15.0)


def test_new_groups_have_nothing_to_condition_on(parts):
    old, new = parts
    reml = blm.LMM("Reaction ~ Days", old, residual="toeph(Days | Subject)").reml()
    strange = new.assign(Subject="new " + new["Subject"].astype(str))
    given, anew = (
        reml.predict(strange, kind="response", residuals=how, uncertainty="plugin")
        for how in ("conditional", "new")
    )
    pd.testing.assert_frame_equal(given, anew)
    sds = residual_sds(
        prediction_rows(reml.design, strange, "conditional", residual=True).design,
        points_of_fits([reml.fit]),
    )[0]
    assert (anew["std_error"] > sds).all()


def test_independent_residuals_are_not_changed(sleep):
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", sleep, residual="strata(half)").reml()
    new = sleep.head(3)
    tables = [
        reml.predict(new, kind="response", residuals=how, draws=20, random_seed=1)
        for how in ("conditional", "new", None)
    ]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    pd.testing.assert_frame_equal(tables[0], tables[2])


def test_rows_without_times_follow_those_of_the_data(sleep):
    data = sleep[sleep["Days"] < 8]
    new = sleep[sleep["Days"] >= 8].head(2)
    for residual in ("ar1(1 | Subject)", "cs(1 | Subject)"):
        named = residual.replace("1 |", "Days |")
        one, two = (blm.LMM("Reaction ~ 1", data, residual=r).reml() for r in (residual, named))
        found = one.predict(new, residuals="conditional", uncertainty="plugin")["estimate"]
        if residual.startswith("ar1"):
            told = two.predict(new, residuals="conditional", uncertainty="plugin")["estimate"]
        else:  # exchangeable, and a row more than any group of the data has
            rho, y = np.tanh(one.fit.parameters[-1]), data.query("Subject == '308'")["Reaction"]
            share = rho / (1.0 + (len(y) - 1) * rho)
            told = one.beta["Intercept"] + share * (y - one.beta["Intercept"]).sum()
        np.testing.assert_allclose(found, told, 1e-6)  # two searches for one optimum


def test_what_has_no_meaning_is_refused(sleep, parts):
    old, new = parts
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", old, residual="ad(Days | Subject)").reml()
    with pytest.raises(DataError, match=r"row of `308` of Subject at `Days` 0, as 1 of 1 rows"):
        reml.predict(old.query("Subject == '308' and Days == 0"), kind="response")
    assert len(reml.predict(old.head(2), kind="response", residuals="new", draws=9)) == 2
    with pytest.raises(DataError, match="`12` of `Days` is not an occasion of the residuals"):
        reml.predict(new.head(1).assign(Days=12), kind="response")
    arms = blm.LMM("Reaction ~ Days", old, residual="ar1(Days | sex / Subject)").reml()
    with pytest.raises(DataError, match="`309` of Subject has another value of `sex`"):
        arms.predict(new.query("Subject == '309'").assign(sex="f"), kind="response")
    for match, options in {
        "linear predictor": {"kind": "linpred"},
        "target=": {"target": "population"},
        "terms=": {"terms": ["Subject"]},
        "one of": {},
    }.items():
        how = "conditional" if options else "past"
        with pytest.raises(ValueError, match=match):
            reml.predict(new, residuals=how, **options)
    with pytest.raises(ValueError, match="own residuals"):
        reml.predict(residuals="conditional")


def test_simulations_of_new_rows_are_of_groups_observed_anew(parts):
    old, new = parts
    reml = blm.LMM("Reaction ~ Days", old, residual="ar1(Days | Subject)").reml()
    draws = reml.simulate(3000, new, target="conditional", random_seed=1)
    # three standard errors of a standard deviation
    np.testing.assert_allclose(draws.std(axis=1), reml.sigma, rtol=3.0 / np.sqrt(6000.0) + 0.02)


OBSERVED = [
    ("Reaction ~ Days", "toeph(Days | Subject)", None),
    ("Reaction ~ Days", "car1(Days | Subject) * strata(half)", "w"),
    ("Reaction ~ Days + (Days | Subject)", "ar1(Days | Subject)", "w"),
    ("Reaction ~ Days + (1 | Subject)", "strata(half)", None),
]


@pytest.mark.parametrize(("formula", "residual", "weights"), one_in(2, OBSERVED))
def test_new_groups_are_told_by_their_observed_rows(sleep, formula, residual, weights):
    new = sleep["Subject"].isin(["371", "372"])
    late = new & (sleep["Days"] > 6)
    gone = (sleep["Subject"] == "308") & (sleep["Days"] > 7)
    old, seen, wanted = sleep[~new & ~gone], sleep[new & ~late], sleep[late | gone]
    reml = blm.LMM(formula, old, residual=residual, weights=weights).reml()
    told = pd.concat([old, seen])
    # at the same covariance parameters, as if all had been in the data
    every = blm.LMM(formula, sleep, residual=residual, weights=weights)
    both = pd.concat([told, wanted])
    R = residual_blocks(
        reml.design.spec.rows(both, residual=True), points_of_fits([reml.fit]), np.arange(len(both))
    )[0]
    design = every.design.spec.rows(both)
    V = R.copy()
    for factor, T in zip(design.random, reml.fit.factors, strict=True):
        u = factor.Z @ (reml.fit.sigma * T)
        V += (u @ u.T) * (factor.codes[:, None] == factor.codes)
    n, X, y = len(told), design.X, told["Reaction"].to_numpy()
    inverse = np.linalg.inv(V[:n, :n])
    C = np.linalg.inv(X[:n].T @ inverse @ X[:n])
    gain = V[n:, :n] @ inverse
    left = X[n:] - gain @ X[:n]
    mean = gain @ y + left @ (C @ X[:n].T @ inverse @ y)
    error = np.sqrt(np.diag(V[n:, n:] - gain @ V[:n, n:] + left @ C @ left.T))
    found = reml.predict(
        wanted,
        target="new",
        kind="response",
        observed=seen,
        uncertainty="plugin",
        draws=4000,
        random_seed=1,
    )
    np.testing.assert_allclose(found["estimate"], mean, 1e-7)  # an optimum with variances near zero
    # four standard errors of an sd and of quantiles from 4000 draws, fewer where reweighted
    np.testing.assert_allclose(found["std_error"], error, rtol=0.06)
    middle = (found["conf_low"] + found["conf_high"]) / 2.0
    assert np.max(np.abs(middle - mean) / error) < 0.15


def test_observed_rows_of_known_groups_are_refused(parts):
    old, new = parts
    reml = blm.LMM("Reaction ~ Days", old, residual="ar1(Days | Subject)").reml()
    with pytest.raises(DataError, match="8 rows of groups of Subject that the model has seen"):
        reml.predict(new, target="new", observed=new)
    seen = new.assign(Subject="new")[:1]
    with pytest.raises(DataError, match="has two rows at `Days`"):
        reml.predict(seen, target="new", kind="response", observed=seen)
