"""Intervals of random effects and coefficients by level, and of every verb that has some."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

import bayeslmm as blm
from bayeslmm import LMM, DataError, load_dataset
from bayeslmm.likelihood import related
from bayeslmm.summaries.level_tables import coefficients

ALGEBRA = 1e-8
"""Dense inverses of 180 rows against eliminations."""


def henderson(fit):
    """Standard errors by group, level and coefficient, from dense mixed model equations."""
    design = fit.design
    X, Z, G = design.X, design.Z_matrix().toarray(), fit.G().to_numpy()
    inverse = np.linalg.inv(Z @ G @ Z.T + fit.R().to_numpy())
    C = np.linalg.inv(X.T @ inverse @ X)
    P = inverse - inverse @ X @ C @ X.T @ inverse
    of_u, with_beta = G - G @ Z.T @ P @ Z @ G, -C @ X.T @ inverse @ Z @ G
    places = {(g, str(lv), c): k for k, (g, lv, c) in enumerate(design.Z_labels())}
    found = {}
    for factor in design.random:
        for level in map(str, factor.levels):
            for coef in coefficients(design, factor):
                k = places.get((factor.name, level, coef))
                b = design.coefs.index(coef) if coef in design.coefs else None
                variance = (0.0 if b is None else C[b, b]) + (0.0 if k is None else of_u[k, k])
                if b is not None and k is not None:
                    variance += 2.0 * with_beta[b, k]
                found[factor.name, level, coef] = np.sqrt(variance)
    return found


def relationship(labels):
    rng = np.random.default_rng(1)
    half = rng.normal(size=(len(labels), 40))
    return pd.DataFrame(half @ half.T / 40, labels, labels)


MODELS = {
    "slopes": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", {}),
    "no fixed slope": ("Reaction ~ 1 + (Days | Subject)", "sleepstudy", {}),
    "crossed": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin", {}),
    "ar1": (
        "Reaction ~ Days + (Days | Subject)",
        "sleepstudy",
        {"residual": "ar1(Days | Subject)"},
    ),
    "strata": ("distance ~ age + (age | Subject, by=Sex)", "Orthodont", {}),
    "related": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", {"relationships": True}),
    "related intercepts": (
        "Reaction ~ Days + (1 | Subject)",
        "sleepstudy",
        {"relationships": True},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_standard_errors_of_coefficients_are_henderson_s(name):
    formula, data, options = MODELS[name]
    frame = load_dataset(data)
    if "relationships" in options:
        labels = [str(label) for label in frame["Subject"].unique()]
        options = {"relationships": {"Subject": relationship(labels)}}
    fit = LMM(formula, frame, **options).reml()
    check_against(fit, henderson(fit))


def check_against(fit, expected):
    for group, table in fit.coef(interval=True).items():
        errors = [expected[group, str(level), coef] for level, coef in table.index]
        assert_allclose(table["std_error"], errors, rtol=ALGEBRA)
        values = fit.coef()[group].to_numpy().ravel()
        assert_allclose(table["estimate"], values)
        assert_allclose(table["conf_high"] - values, norm.ppf(0.975) * np.array(errors))


def test_standard_errors_of_individuals_in_a_pedigree(monkeypatch):
    monkeypatch.setattr(related, "FEW", 0)  # so that matrices are sparse
    rng = np.random.default_rng(2)
    ids = [f"i{k}" for k in range(24)]
    parents = [(ids[rng.integers(0, 4)], ids[rng.integers(4, 8)]) for _ in range(16)]
    sire, dam = ([None] * 8 + [pair[i] for pair in parents] for i in (0, 1))
    tree = blm.pedigree(pd.DataFrame({"id": ids, "sire": sire, "dam": dam}))
    frame = pd.DataFrame({"animal": np.repeat(ids[8:], 4), "x": rng.normal(size=64)})
    frame["y"] = rng.normal(size=64) + np.repeat(rng.normal(size=16), 4)
    fit = LMM("y ~ x + (x | animal)", frame, relationships={"animal": tree}).reml()
    assert fit.fit.plan.sparse is not None
    check_against(fit, henderson(fit))


def test_random_effects_of_an_estimate_have_errors_of_prediction():
    fit = LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).reml()
    table = fit.ranef(level=0.9)["Subject"]
    assert_allclose(table["estimate"], fit.ranef()["Subject"].to_numpy().ravel())
    assert_allclose(table["std_error"], fit.ranef_sd()["Subject"].to_numpy().ravel())
    tidy = fit.tidy("ran_vals", level=0.9)
    assert_allclose(table["conf_low"], tidy["conf_low"])
    assert table.index.names == ["Subject", "term"]


@pytest.fixture(scope="module")
def post():
    return LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy")).fit(random_seed=1)


def test_intervals_of_a_posterior_are_those_of_its_draws(post):
    draws = post.data["posterior"]
    u = draws["u_Subject"].sel(Subject="308", Subject_coef="Days").values.ravel()
    total = u + draws["beta"].sel(coef="Days").values.ravel()
    for verb, values in ((post.ranef, u), (post.coef, total)):
        row = verb(prob=0.8)["Subject"].loc[("308", "Days")]
        assert list(row.index) == ["mean", "sd", "median", "eti80_lb", "eti80_ub"]
        expected = [values.mean(), values.std(ddof=1), *np.quantile(values, [0.5, 0.1, 0.9])]
        assert_allclose(row, expected)
    assert "eti89_lb" in post.ranef(interval=True)["Subject"]
    assert_allclose(
        post.ranef(interval=True)["Subject"]["mean"].unstack(sort=False), post.ranef()["Subject"]
    )


def test_effects_that_are_not_stored_are_drawn():
    post = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff")).fit(
        random_seed=1, store_u=False
    )
    table = post.coef(prob=0.9)["Batch"]
    assert_allclose(table["mean"], post.coef()["Batch"]["Intercept"], atol=4 * 25 / np.sqrt(2000))
    assert (table["eti90_lb"] < table["median"]).all()


def test_too_many_are_refused(post, monkeypatch):
    monkeypatch.setattr("bayeslmm.summaries.level_tables.LARGEST", 10)
    with pytest.raises(DataError, match="draw_u"):
        post.ranef(interval=True)


def test_the_other_fit_s_word_is_refused(post):
    reml = LMM("Reaction ~ Days + (1 | Subject)", load_dataset("sleepstudy")).reml()
    for verb in (post.ranef, post.coef):
        with pytest.raises(ValueError, match="a posterior's intervals have prob="):
            verb(level=0.9)
        with pytest.raises(ValueError, match="between 0 and 1"):
            verb(prob=1.5)
    for verb in (reml.ranef, reml.coef):
        with pytest.raises(ValueError, match="an estimate's intervals have level="):
            verb(prob=0.9)
        with pytest.raises(ValueError, match="between 0 and 1"):
            verb(level=1.5)


def test_summaries_have_the_probability_asked_for(post):
    half, usual = post.summary(0.5), post.summary()
    days = post.data["posterior"]["beta"].sel(coef="Days").values.ravel()
    bounds = half.loc["beta[Days]", ["eti50_lb", "eti50_ub"]].astype(float)
    assert_allclose(bounds, np.quantile(days, [0.25, 0.75]), rtol=1e-3)
    assert "eti89_lb" in usual and "pd" not in usual
    with pytest.raises(ValueError, match="prob=2"):
        post.summary(2)


def test_the_probability_of_direction_is_of_what_has_a_sign(post):
    pd_ = post.summary(direction=True)["pd"]
    cor = post.data["posterior"]["cor_Subject"].values[..., 0, 1].ravel()
    assert pd_["cor[Subject, Intercept, Days]"] == max(np.mean(cor > 0), np.mean(cor < 0))
    assert pd_["beta[Days]"] == 1.0
    assert pd_[["sd[Subject, Days]", "sigma"]].isna().all()


WITHOUT = {
    "plot",
    "check",
    "hypothesis",  # whose table() takes prob or level
    "means",
    "slopes",
    "contrasts",
    "comparisons",
    "average_predictions",
}


@pytest.mark.parametrize(("kind", "word"), [(blm.Posterior, "prob"), (blm.Estimate, "level")])
def test_every_verb_with_intervals_takes_their_coverage(kind, word):
    found = set()
    for name in dir(kind):
        verb = getattr(kind, name)
        if name.startswith("_") or not inspect.isfunction(verb) or name in WITHOUT:
            continue
        returned = (inspect.getdoc(verb) or "").partition("Returns\n")[2].partition("Notes\n")[0]
        returned = returned.partition("Examples\n")[0]
        if re.search(r"\binterval|conf_low", returned):
            found.add(name)
            # augment() has none of an estimate, bootstrap() the replicates themselves
            if (kind, name) not in {(blm.Estimate, "augment"), (blm.Estimate, "bootstrap")}:
                assert word in inspect.signature(verb).parameters, name
    assert {"summary", "fixef", "ranef", "coef", "varcorr", "tidy", "icc", "predict"} <= found
