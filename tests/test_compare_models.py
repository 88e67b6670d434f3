"""Several models side by side: posteriors by cross-validation, estimates by likelihood."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from reference_data import FOLDER
from scipy.optimize import minimize
from slow_cases import slow

import bayeslmm as blm
from bayeslmm import LMM, Posterior, bayes_factor, compare, load_dataset, lrt

FORMULAS = {
    "intercepts": "Reaction ~ Days + (1 | Subject)",
    "slopes": "Reaction ~ Days + (Days | Subject)",
    "uncorrelated": "Reaction ~ Days + (Days || Subject)",
}

LME4 = 1e-6
"""Relative difference of two maximisations of the same likelihood."""

WEIGHT = 0.02
"""What is lost of a stacking weight where the objective is flat at its maximum."""


@pytest.fixture(scope="module", autouse=True)
def scored_once():
    """Scores are made once for each posterior, whoever asks for them: they are always the same."""
    kept, loo = {}, Posterior.loo

    def once(self, by=None, *, executor=None, progressbar=True, **options):
        key = (id(self), by, *options.items())
        if key not in kept:
            scores = loo(self, by, executor=executor, progressbar=progressbar, **options)
            kept[key] = self, scores
        return kept[key][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Posterior, "loo", once)
        yield


@pytest.fixture(scope="module")
def models(sleepstudy):
    return {name: LMM(formula, sleepstudy) for name, formula in FORMULAS.items()}


@pytest.fixture(scope="module")
def posts(models):
    return {name: model.fit(draws=250, random_seed=1) for name, model in models.items()}


@pytest.fixture(scope="module")
def table(posts):
    return compare(posts)


# --- posteriors ---------------------------------------------------------------------------


def test_columns_and_order(table):
    assert table.index.name == "model"
    assert table["rank"].tolist() == [0, 1, 2]
    assert table["elpd"].is_monotonic_decreasing
    assert table.index[-1] == "intercepts"
    needed = {"elpd", "p", "elpd_diff", "dse", "se", "weight", "worst_k", "log_evidence"}
    assert needed | {"evidence_error", "model_prob"} <= set(table.columns)
    assert table.attrs == {"by": None}


@pytest.mark.parametrize("by", ["Subject", slow(None)])
def test_differences_are_those_of_pointwise_scores(posts, by):
    table = compare(posts, by=by)
    scores = {name: post.loo(by) for name, post in posts.items()}
    best = scores[table.index[0]].elpd_i.to_numpy()
    for name in table.index:
        score = scores[name]
        difference = score.elpd_i.to_numpy() - best
        row = table.loc[name]
        assert row["elpd"] == pytest.approx(score.elpd)
        assert row["p"] == pytest.approx(score.p)
        assert row["se"] == pytest.approx(score.se)
        assert row["elpd_diff"] == pytest.approx(difference.sum(), abs=1e-9)
        spread = np.sqrt(len(difference) * np.var(difference))
        assert row["dse"] == pytest.approx(spread, abs=1e-9)
        assert row["worst_k"] == pytest.approx(float(score.pareto_k.max()))
    assert table.attrs == {"by": by}


def test_stacking_weights_maximise_the_log_score(posts, table):
    density = np.exp(np.column_stack([posts[name].loo().elpd_i for name in table.index]))

    def loss(weights):
        return -np.sum(np.log(density @ weights))

    found = minimize(
        loss,
        np.full(3, 1 / 3),
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0},
    )
    assert table["weight"].sum() == pytest.approx(1.0)
    assert loss(table["weight"].to_numpy()) <= found.fun + 1e-3
    assert_allclose(table["weight"], found.x, atol=WEIGHT)


@pytest.mark.parametrize("weights", ["BB-pseudo-BMA", "pseudo-BMA"])
def test_other_weights(posts, weights):
    table = compare(posts, weights=weights)
    assert table["weight"].sum() == pytest.approx(1.0)
    if weights == "pseudo-BMA":
        expected = np.exp(table["elpd_diff"])
        assert_allclose(table["weight"], expected / expected.sum())


def test_model_probabilities_are_those_of_bayes_factors(posts, table):
    odds = np.array([np.exp(bayes_factor(posts[n], posts["slopes"]).log) for n in table.index])
    assert_allclose(table["model_prob"], odds / odds.sum())
    for name in table.index:
        evidence = posts[name].log_evidence
        assert table.loc[name, "log_evidence"] == evidence.value
        assert table.loc[name, "evidence_error"] == evidence.error


@pytest.mark.slow
def test_models_without_evidence(sleepstudy, posts):
    flat = LMM(FORMULAS["slopes"], sleepstudy, priors="flat").fit(draws=250, random_seed=1)
    laplace = LMM(FORMULAS["slopes"], sleepstudy).fit(method="laplace", draws=250, random_seed=1)
    for other in (flat, laplace):
        table = compare({"other": other, "intercepts": posts["intercepts"]})
        assert np.isnan(table.loc["other", ["log_evidence", "evidence_error"]].astype(float)).all()
        assert np.isfinite(table.loc["intercepts", "log_evidence"])
        assert table["model_prob"].isna().all()
        assert table.index[0] == "other"


def test_levels_match_where_one_model_has_no_such_factor():
    """In the order of the categories, not of the rows."""
    pastes = load_dataset("Pastes")
    order = list(pastes["batch"].cat.categories)[::-1]
    pastes = pastes.assign(batch=pd.Categorical(pastes["batch"], categories=order))
    with_factor = LMM("strength ~ 1 + (1 | batch / cask)", pastes).fit(draws=100, random_seed=1)
    without = LMM("strength ~ batch + (1 | sample)", pastes).fit(draws=100, random_seed=1)
    scores = [fit.loo("batch") for fit in (with_factor, without)]
    assert [list(score.elpd_i["batch"].to_numpy()) for score in scores] == [order, order]
    table = compare({"factor": with_factor, "fixed": without}, by="batch")
    difference = scores[1].elpd_i.to_numpy() - scores[0].elpd_i.to_numpy()
    assert table.loc["fixed", "elpd_diff"] == pytest.approx(difference.sum())


# --- estimates ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anova():
    return pd.read_csv(FOLDER / "loo" / "anova.csv").set_index(["method", "model"])


@pytest.mark.reference
@pytest.mark.parametrize("method", ["ML", "REML"])
def test_estimates_equal_lme4(models, anova, method):
    fits = {name: getattr(model, method.lower())() for name, model in models.items()}
    table = compare(fits)
    wanted = anova.loc[method]
    assert list(table.index) == ["intercepts", "uncorrelated", "slopes"] == list(wanted.index)
    assert list(table["n_parameters"]) == list(wanted["npar"])
    assert list(table["formula"]) == [FORMULAS[name] for name in table.index]
    for column in ("loglik", "aic", "bic"):
        assert_allclose(table[column], wanted[column], rtol=LME4)
    assert_allclose(table["chisq"], wanted["chisq"], atol=1e-4)
    assert_allclose(table["p_value"], wanted["p_value"], rtol=1e-3)
    assert table["df"].tolist()[1:] == [1, 1]
    relative = np.exp(-0.5 * (wanted["aic"] - wanted["aic"].min()))
    assert_allclose(table["aic_weight"], relative / relative.sum(), rtol=1e-4)
    assert table.attrs == {"method": method, "lrt": "Each row is tested against the row above."}


def test_estimates_have_the_tests_of_lrt(models):
    fits = [models[name].ml() for name in ("slopes", "intercepts")]
    table, tests = compare(dict(zip("ab", fits, strict=True))), lrt(*fits)
    assert list(table.index) == ["b", "a"]
    assert_allclose(table["chisq"], tests["chisq"])
    assert_allclose(table["p_value"], tests["p_value"])


def test_estimates_that_are_not_nested(sleepstudy):
    data = sleepstudy.assign(late=(sleepstudy["Days"] > 4).astype(float))
    fits = {
        "late": LMM("Reaction ~ late + (1 | Subject)", data).ml(),
        "days": LMM("Reaction ~ Days + (1 | Subject)", data).ml(),
    }
    table = compare(fits)
    assert list(table.index) == ["late", "days"]
    assert table[["chisq", "p_value"]].isna().all(axis=None)
    assert table["df"].dtype == "Int64"
    assert table["df"].isna().all()
    assert "same number of parameters" in table.attrs["lrt"]
    fits["more"] = LMM("Reaction ~ late + (Days | Subject)", data).ml()
    fits.pop("late")
    assert "not nested" in compare(fits).attrs["lrt"]
    assert compare(fits)["aic_weight"].sum() == pytest.approx(1.0)


# --- what cannot be compared --------------------------------------------------------------


def test_wrong_fits(models, posts):
    with pytest.raises(ValueError, match="Two or more fits by name"):
        compare({"a": posts["slopes"]})
    with pytest.raises(ValueError, match="Two or more fits by name"):
        compare([posts["slopes"], posts["intercepts"]])
    with pytest.raises(TypeError, match="'b' is LMM; posteriors"):
        compare({"a": posts["slopes"], "b": models["slopes"]})
    with pytest.raises(TypeError, match="no criterion in common"):
        compare({"a": posts["slopes"], "b": models["intercepts"].ml()})
    with pytest.raises(ValueError, match="one of 'stacking', 'BB-pseudo-BMA', 'pseudo-BMA'"):
        compare(posts, weights="waic")


def test_wrong_estimates(models, sleepstudy):
    ml, reml = models["slopes"].ml(), models["slopes"].reml()
    with pytest.raises(ValueError, match=r"ML and REML cannot be compared: refit all with ml\(\)"):
        compare({"a": ml, "b": reml})
    with pytest.raises(ValueError, match="MAP cannot be compared"):
        compare({"a": models["slopes"].map(), "b": models["intercepts"].map()})
    constant = LMM("Reaction ~ 1 + (Days | Subject)", sleepstudy).reml()
    with pytest.raises(ValueError, match="different fixed effects"):
        compare({"a": reml, "b": constant})
    with pytest.raises(ValueError, match="by='Subject' needs posteriors"):
        compare({"a": ml, "b": models["intercepts"].ml()}, by="Subject")


def test_different_data(models, posts, sleepstudy):
    fewer = LMM(FORMULAS["slopes"], sleepstudy[sleepstudy["Days"] > 0]).fit(draws=50, random_seed=1)
    with pytest.raises(ValueError, match="different data"):
        compare({"a": posts["slopes"], "b": fewer})
    log = LMM("log(Reaction) ~ Days + (1 | Subject)", sleepstudy)
    with pytest.raises(ValueError, match="different responses"):
        compare({"a": posts["slopes"], "b": log.fit(draws=50, random_seed=1)})
    weighted = LMM(FORMULAS["slopes"], sleepstudy, weights=sleepstudy["Days"] + 1.0).ml()
    with pytest.raises(ValueError, match="different weights"):
        compare({"a": weighted, "b": models["slopes"].ml()})


def test_levels_that_a_model_does_not_know(posts):
    with pytest.raises(blm.DataError, match="by='Batch' is neither a grouping factor nor"):
        compare(posts, by="Batch")


def test_it_takes_posteriors_of_any_kind(posts):
    thin = Posterior(posts["slopes"].model, posts["slopes"].data)
    assert compare({"a": thin, "b": posts["intercepts"]}, by="Subject").index[0] == "a"
