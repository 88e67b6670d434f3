"""Checks, influence and shrinkage of models whose residuals have a structure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.checks.residual_checks import Extreme, shift_test
from bayeslmm.checks.residuals import standard_units
from bayeslmm.estimation.estimate import points_of_fits
from bayeslmm.estimation.residuals import residual_blocks
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import point_draws

# Two orders of the same arithmetic on matrices of condition below 1e4.
EXACT = 1e-8


@pytest.fixture(scope="module")
def sleep():
    data = blm.load_dataset("sleepstudy").query("Days < 6").iloc[::-1]
    return data.assign(half=np.where(data["Days"] < 3, "early", "late"), w=1.0 + data["Days"] % 2)


CASES = [
    ("Reaction ~ Days + (1 | Subject)", "ar1(Days | Subject) * strata(half)"),
    ("Reaction ~ Days", "toeph(Days | Subject)"),
    ("Reaction ~ Days + (0 + Days | Subject)", "strata(half)"),
    ("Reaction ~ 1 + (1 | Subject) + (1 | Days)", "car1(Days | Subject)"),
]


@pytest.mark.parametrize(("formula", "residual"), CASES)
def test_standard_units_are_those_of_dense_algebra(sleep, formula, residual):
    model = blm.LMM(formula, sleep, residual=residual, weights="w")
    design, fit = model.design, model.reml().fit
    ((_, units),) = standard_units(design, fit.plan, fit.prior, point_draws(fit, ()))
    R = residual_blocks(design, points_of_fits([fit]), np.arange(design.n))[0]
    V = np.array(R)
    for factor, T in zip(design.random, fit.factors, strict=True):
        u = factor.Z @ (fit.sigma * T)
        V += (u @ u.T) * (factor.codes[:, None] == factor.codes)
    X, inverse = design.X, np.linalg.inv(V)
    S = inverse - inverse @ X @ np.linalg.solve(X.T @ inverse @ X, X.T @ inverse)
    for y, seen in (
        (design.y, units.observed()),
        (other := design.y[::-1].copy(), units.replicated(other[None])),
    ):
        q = S @ y  # the residual of a row from what all others say is q_i / S_ii
        np.testing.assert_allclose(seen.residuals[0], q / np.sqrt(np.diag(S)), EXACT, EXACT)
        np.testing.assert_allclose(seen.fitted[0], y - R @ q, EXACT)
        for factor, effects in zip(design.random, seen.effects, strict=True):
            for c in range(factor.n_coefs):
                A = factor.Z[:, [c]] * (factor.codes[:, None] == np.arange(factor.n_levels))
                known = np.isfinite(effects[0, :, c])
                expected = (A.T @ q / np.sqrt(np.diag(A.T @ S @ A)))[known]
                np.testing.assert_allclose(effects[0, known, c], expected, 1e-6, 1e-6)


def test_checks_accept_the_model_and_find_a_shifted_row(sleep):
    formula, residual = "Reaction ~ Days + (1 | Subject)", "ar1(Days | Subject)"
    model = blm.LMM(formula, sleep, residual=residual)
    y = model.reml().simulate(1, random_seed=3)["sim_1"]
    y.iloc[40] += 400.0
    shifted = model.update(data=sleep.assign(Reaction=y))
    post = shifted.fit(draws=100, chains=2, random_seed=1)
    for fit in (shifted.reml(), post):
        found = fit.check.residuals(draws=40, random_seed=1)
        assert found.table.loc["largest residual", "p_value"] < 0.01
        assert f"row {sleep.index[40]}" in found.largest.loc["largest residual", "case"]
    # the shift's own t statistic is the residual from all other rows, at one estimate
    wide = sleep.assign(Reaction=y, at=(np.arange(len(sleep)) == 40) * 1.0)
    reml = blm.LMM("Reaction ~ Days + at + (1 | Subject)", wide, residual=residual).reml()
    row = Extreme(at=40, count=len(sleep), far=(), values=np.zeros(1))
    t = reml.summary().loc["beta[at]", "statistic"]
    assert shift_test(shifted.design, row).deviation == pytest.approx(t, rel=1e-4)


def test_influence_refits_are_fits_to_the_other_rows(sleep):
    data = sleep[sleep["Subject"].isin(sleep["Subject"].unique()[:7])]
    formula, residual = "Reaction ~ Days", "ar1(Days | Subject) * strata(half)"
    reml = blm.LMM(formula, data, residual=residual).reml()
    found = reml.check.influence(by="Subject", progressbar=False)
    without = data["Subject"].unique()[2]
    refit = blm.LMM(formula, data[data["Subject"] != without], residual=residual).reml()
    expected = refit.summary()["estimate"]
    # where searches for one optimum end
    pd.testing.assert_series_equal(
        found.estimates.loc[without], expected, check_names=False, rtol=1e-3
    )
    assert list(found.relative_change) == ["sigma[early]", "sigma[late]"]
    assert "Influence of the 7 levels" in str(found)
    with pytest.raises(DataError, match=r"no row that tells sigma\[early\]"):
        reml.check.influence(by="half", progressbar=False)
    toep = blm.LMM(formula, data, residual="toep(Days | Subject)").reml()
    with pytest.raises(DataError, match=r"the correlations of 0"):
        toep.check.influence(by="Days", progressbar=False)


def test_levels_without_pooling_are_generalised_least_squares(sleep):
    pytest.importorskip("arviz_plots")
    from bayeslmm.plots.effects import shrinkage

    residual = "ar1(Days | Subject) * strata(half)"
    reml = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep, residual=residual).reml()
    design, points = reml.design, points_of_fits([reml.fit])
    u = [np.zeros((18, 2))]
    found = shrinkage(design, 0, reml.fit.beta, u, (reml.fit.beta, u[0]), points)
    rows = np.flatnonzero(design.random[0].codes == 4)
    R, X = residual_blocks(design, points, rows)[0], design.X[rows]
    weighted = np.linalg.solve(R, X)
    expected = np.linalg.solve(weighted.T @ X, weighted.T @ design.y[rows])
    np.testing.assert_allclose(found.no_pooling[4], expected, EXACT)
