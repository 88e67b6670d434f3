"""Trials with repeated measures: fall-back structures, site effects, baseline as a response."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import pytest

import bayeslmm as blm
from bayeslmm.exceptions import FormulaError, SamplingError

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
    model = blm.LMM("FEV1 ~ AVISIT", few(8), residual=US)
    assert not model.reml().converged
    with caplog.at_level(logging.WARNING, "bayeslmm"):
        fit = model.reml(fallback=[TOEPH, CS])
    assert fit.converged
    assert fit.design.spec.residual_source == TOEPH
    expected = blm.LMM("FEV1 ~ AVISIT", few(8), residual=TOEPH).reml()
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
    model = blm.LMM("FEV1 ~ AVISIT", few(6), residual=US)
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
