"""Hypotheses on random effects and coefficients of levels, and order constraints."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal

import bayeslmm as blm
from bayeslmm import LMM, DataError, FormulaError, load_dataset
from bayeslmm.effects.random_labels import level_effect, prior_values

SAME = 1e-12
"""The same sums of the same draws."""

NORMAL = 4.0
"""Monte Carlo standard errors: a figure beyond them is one in 16,000."""


@pytest.fixture(scope="module")
def model():
    return LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))


@pytest.fixture(scope="module")
def post(model):
    return model.fit(draws=500, random_seed=1)


def level_draws(post, subject, coef):
    return (
        post.data["posterior"]["u_Subject"].sel(Subject=subject, Subject_coef=coef).values.ravel()
    )


def test_a_level_s_effect_is_that_of_the_draws(post):
    u = level_draws(post, "308", "Days")
    beta = post.data["posterior"]["beta"].sel(coef="Days").values.ravel()
    table = post.hypothesis(
        [
            "u[Subject, 308, Days] > 1",
            "coef[ Subject,308 , Days ] < 15",
            "exp(u[Subject, 308, Days] / 9) > 1",
        ]
    ).table()
    assert_allclose(table["mean"], [u.mean() - 1, (beta + u).mean() - 15, np.exp(u / 9).mean() - 1])
    assert table["probability"].tolist()[:2] == [np.mean(u > 1), np.mean(beta + u < 15)]


def test_effects_that_are_not_stored_are_drawn(model):
    post = model.fit(draws=500, random_seed=1, store_u=False)
    row = post.hypothesis("u[Subject, 335, Days] < 0").table().iloc[0]
    mean, sd = (
        post.ranef()["Subject"].loc["335", "Days"],
        post.ranef_sd()["Subject"].loc["335", "Days"],
    )
    assert abs(row["mean"] - mean) < NORMAL * sd / np.sqrt(1000)
    assert row["sd"] == pytest.approx(sd, rel=0.1)
    pair = post.hypothesis("u[Subject, 335, Days] - u[Subject, 335, Days] + 1 > 0").table()
    assert pair["sd"].iloc[0] == pytest.approx(0.0, abs=1e-12)


def test_priors_of_effects_are_symmetric(post):
    table = post.hypothesis(["u[Subject, 308, Days] > 0", "coef[Subject, 308, Days] > 0"]).table()
    assert_allclose(np.log(table["prior_odds"]), 0.0, atol=NORMAL * 2.0 / np.sqrt(20_000))
    ratio = table["posterior_odds"] / table["prior_odds"]
    assert_allclose(table["evidence_ratio"], ratio)


@pytest.mark.parametrize(("scope", "kind"), [("coef", "coef"), ("ranef", "u")])
def test_a_scope_has_a_row_per_level(post, scope, kind):
    table = post.hypothesis("Days - Intercept / 100 > 8", scope=scope, group="Subject").table()
    assert table.index.names == ["hypothesis", "Subject"]
    assert table.index.get_level_values(1).tolist() == list(post.ranef()["Subject"].index)
    one = post.hypothesis(f"{kind}[Subject, 335, Days] - {kind}[Subject, 335, Intercept] / 100 > 8")
    row = table.xs("335", level="Subject").iloc[0]
    columns = ["mean", "sd", "median", "probability"]
    assert_allclose(row[columns].astype(float), one.table()[columns].iloc[0].astype(float))
    assert table["prior_odds"].nunique() == 1


def test_fixed_effects_that_do_not_vary_are_of_every_level():
    post = LMM("distance ~ age + Sex + (1 | Subject)", load_dataset("Orthodont")).fit(random_seed=1)
    table = post.hypothesis("age > 0.5", scope="coef").table()
    assert len(table) == 27
    assert table["mean"].nunique() == 1
    assert table["mean"].iloc[0] == pytest.approx(
        post.hypothesis("age > 0.5").table()["mean"].iloc[0]
    )
    with pytest.raises(FormulaError, match="`age` is no parameter"):
        post.hypothesis("age > 0.5", scope="ranef")


def test_levels_have_any_name():
    frame = load_dataset("Pastes").assign(batch=lambda d: d["batch"].astype(str) + ", [1]")
    post = LMM("strength ~ 1 + (1 | batch/cask)", frame).fit(
        method="laplace", draws=50, random_seed=1
    )
    names = post.ranef()
    one, other = (
        names["batch"].index[2],
        names["cask:batch" if "cask:batch" in names else "batch:cask"].index[4],
    )
    group = next(name for name in names if ":" in name)
    table = post.hypothesis(
        [f"u[batch, {one}, Intercept] > 0", f"u[{group}, {other}, Intercept] > 0"]
    ).table()
    expected = [names["batch"].loc[one, "Intercept"], names[group].loc[other, "Intercept"]]
    assert_allclose(table["mean"], expected, rtol=1e-10)


def test_levels_have_the_coefficients_of_their_stratum():
    frame = load_dataset("Orthodont")
    post = LMM("distance ~ age + (age | Subject, by=Sex)", frame).fit(
        method="laplace", draws=50, random_seed=1
    )
    table = post.hypothesis("age > 0", scope="ranef").table()
    assert_allclose(table["mean"], post.ranef()["Subject"]["age"], rtol=1e-10)


def test_prior_effects_have_the_covariance_of_related_levels():
    rng = np.random.default_rng(1)
    labels = ["a", "b", "c"]
    A = pd.DataFrame([[1.0, 0.5, 0.2], [0.5, 1.0, 0.0], [0.2, 0.0, 1.0]], labels, labels)
    frame = pd.DataFrame({"g": np.repeat(labels, 6), "y": rng.normal(size=18)})
    model = LMM("y ~ 1 + (1 | g)", frame, relationships={"g": A}).model
    points = model.priors.sample(np.random.default_rng(1), 40_000)
    effects = [level_effect(model.design, f"u[g, {name}, Intercept]") for name in labels]
    values = prior_values(model.design, points, effects, np.random.default_rng(2))
    scaled = np.stack([values[f"u[g, {name}, Intercept]"] for name in labels]) / points.sds[0].T
    assert_allclose(np.cov(scaled), A, atol=NORMAL * 1.5 / np.sqrt(40_000))


# --- order constraints -----------------------------------------------------------------


@pytest.fixture(scope="module")
def machines():
    return LMM("score ~ Machine + (1 | Worker)", load_dataset("Machines")).fit(random_seed=1)


def test_orders_share_all_probability(machines):
    orders = [" < ".join(f"Machine[{m}]" for m in order) for order in permutations("ABC")]
    table = machines.hypothesis(orders).table()
    assert table["probability"].sum() == pytest.approx(1.0)
    assert table["prior_probability"].sum() == pytest.approx(1.0)
    # the default priors do not change with the order of a factor's levels
    assert_allclose(table["prior_probability"], 1 / 6, atol=NORMAL * 0.373 / np.sqrt(200_000))
    assert_allclose(table["bayes_factor"], table["probability"] / table["prior_probability"])
    draws = [machines.hypothesis(f"Machine[{m}] > 0").draws[:, 0] for m in "ABC"]
    holds = (draws[0] < draws[1]) & (draws[1] < draws[2])
    assert table["probability"].iloc[0] == holds.mean()
    margin = np.minimum(draws[1] - draws[0], draws[2] - draws[1])
    assert table["mean"].iloc[0] == pytest.approx(margin.mean(), rel=SAME)


def test_prior_probabilities_are_those_of_the_normal_distribution():
    frame = load_dataset("Orthodont")
    given = {"age": blm.priors.Normal(0.3, 0.5), "Sex[T.Female]": blm.priors.Normal(-1.0, 2.0)}
    post = LMM("distance ~ age + Sex + (1 | Subject)", frame, priors=given).fit(random_seed=1)
    row = post.hypothesis("0 < age < 1 & `Sex[T.Female]` < age").table().iloc[0]
    # P(age > 0, age < 1, Sex < age): that below 1 less that below 0, with Sex - age < 0
    cov = np.array([[0.25, -0.25], [-0.25, 4.25]])
    cdf = [multivariate_normal.cdf([edge, 0.0], [0.3, -1.3], cov) for edge in (0.0, 1.0)]
    expected = cdf[1] - cdf[0]
    error = np.sqrt(expected * (1 - expected) / 200_000)
    assert abs(row["prior_probability"] - expected) < NORMAL * error
    below = row["prior_probability"]
    assert row["prior_odds"] == pytest.approx(below / (1 - below))
    assert row["evidence_ratio"] == pytest.approx(row["posterior_odds"] / row["prior_odds"])


def test_errors_are_those_of_repeated_fits():
    """Bayes factors of a constraint from ten runs scatter as their errors say."""
    model = LMM("distance ~ age + Sex + (1 | Subject)", load_dataset("Orthodont"))
    constraint = "0.6 < age < 0.7 & sigma < 1.45"
    rows = [
        model.fit(draws=250, random_seed=seed).hypothesis(constraint).table().iloc[0]
        for seed in range(8)
    ]
    logs = np.log([row["bayes_factor"] for row in rows])
    own = [np.sqrt((1 - r["probability"]) / (r["probability"] * 1000)) for r in rows]
    # the prior draws are the same in each, so only the posterior's part of the error scatters
    assert 0.4 < np.std(logs, ddof=1) / np.mean(own) < 2.0
    assert all(row["log_bayes_factor_error"] > o for row, o in zip(rows, own, strict=True))


def test_other_hypotheses_have_no_columns_of_constraints(post):
    assert "bayes_factor" not in post.hypothesis("Days > 0").table()
    both = post.hypothesis(["Days > 0", "0 < Days < 20"]).table()
    assert both["bayes_factor"].iloc[0] == pytest.approx(2.0 * both["probability"].iloc[0])
    assert (
        post.hypothesis("(Days > 0) & (Days < 20)").table()["probability"].iloc[0]
        == (both["probability"].iloc[1])
    )


def test_a_constraint_without_prior_draws_is_a_note(post):
    found = post.hypothesis("10 < Days < 10.0000001")
    assert "holds at none of 200000 prior draws" in found.notes[0]
    assert np.isnan(found.table()["bayes_factor"].iloc[0])


# --- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u[Subject, 999, Days] > 0", "Subject has no level `999`"),
        ("u[Subj, 308, Days] > 0", "grouping factors are Subject"),
        ("u[Subject, 308, Dais] > 0", "Did you mean `Days`"),
        ("u[Subject, 308, Days > 0", "bracket is never closed"),
        ("u[Subject, 308, Days] = 0 & Days > 0", "are inequalities"),
        ("Days > 0 & Days", "compares"),
    ],
)
def test_what_cannot_be_read_is_shown(post, text, message):
    with pytest.raises(FormulaError, match=message) as error:
        post.hypothesis(text)
    assert "^" in str(error.value)


def test_estimates_refuse_in_words(model):
    reml = model.reml()
    with pytest.raises(FormulaError, match=r"Ask a posterior \(model.fit\(\)\)"):
        reml.hypothesis("u[Subject, 308, Days] > 0")
    with pytest.raises(FormulaError, match="one comparison at a time"):
        reml.hypothesis("0 < Days < 20")
    with pytest.raises(FormulaError, match="one comparison at a time"):
        reml.hypothesis("Days > 0 & Days < 20")


def test_bad_scopes_are_refused(post):
    with pytest.raises(ValueError, match="scope='levels': one of"):
        post.hypothesis("Days > 0", scope="levels")
    with pytest.raises(ValueError, match="is for scope="):
        post.hypothesis("Days > 0", group="Subject")
    with pytest.raises(DataError, match="no grouping factor"):
        post.hypothesis("Days > 0", scope="coef", group="Subj")
