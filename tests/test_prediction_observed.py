"""Predictions of new levels of which some rows have been observed."""

from __future__ import annotations

import numpy as np
import pytest
from monte_carlo import DEVIATIONS, EXACT, assert_mean, assert_second_moments, draws_of
from scipy.stats import multivariate_normal
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError
from bayeslmm.prediction.observed import observe
from bayeslmm.prediction.rows import prediction_rows
from bayeslmm.sampling.engine import sample_posterior


def dense_update(post, joint, seen, s):
    """Mean and covariance of all new levels' effects given observed rows, and the log density."""
    rows = prediction_rows(post.design, seen, "new")
    n = rows.design.n
    residual = rows.design.y - rows.design.offset - rows.design.X @ joint.beta[s]
    columns, blocks = [], []
    known = joint.effects([m.wanted for m in rows.members])
    for member, u, sigma in zip(rows.members, known, joint.covariances, strict=True):
        place = {level: i for i, level in enumerate(member.wanted)}
        k = member.n_coefs
        z = np.zeros((n, member.n_fresh * k))
        for level in member.levels:
            for i in range(n):
                if level.known[i] >= 0:
                    residual[i] -= level.Z[i] @ u[s, place[level.known[i]]]
                if level.fresh[i] >= 0:
                    z[i, level.fresh[i] * k : (level.fresh[i] + 1) * k] += level.Z[i]
        columns.append(z)
        blocks += [sigma[s]] * member.n_fresh
    z = np.hstack(columns)
    g = np.zeros((z.shape[1], z.shape[1]))
    at = 0
    for block in blocks:
        g[at : at + len(block), at : at + len(block)] = block
        at += len(block)
    weights = np.ones(n) if rows.design.weights is None else rows.design.weights
    v = z @ g @ z.T + np.diag(joint.sigma[s] ** 2 / weights)
    gain = g @ z.T @ np.linalg.inv(v)
    return gain @ residual, g - gain @ z @ g, multivariate_normal(cov=v).logpdf(residual)


OBSERVED = {
    "sleepstudy_fit": {
        "Days": [0, 1, 4, 2, 9, 3],
        "Subject": ["new", "new", "new", "other", "other", "308"],
        "Reaction": [300.0, 310.0, 380.0, 250.0, 200.0, 260.0],
    },
    "pastes_fit": {
        "batch": ["A", "A", "K", "K", "L"],
        "cask": ["d", "d", "a", "b", "a"],
        "strength": [61.0, 62.0, 58.0, 59.0, 60.0],
    },
    "penicillin_fit": {
        "plate": ["y", "y", "a", "z", "a"],
        "sample": ["A", "G", "G", "B", "B"],
        "diameter": [24.0, 25.0, 26.0, 22.0, 21.0],
    },
    "weighted_fit": {
        "x": [0.0, 1.0, 2.0],
        "g": ["new", "new", "other"],
        "y": [1.0, 2.0, 0.0],
        "w": [0.5, 2.0, 4.0],
    },
}


@pytest.mark.parametrize("name", OBSERVED)
def test_log_density_of_observed_rows(name, request):
    post = request.getfixturevalue(name)
    joint = post._joint.thin(20)
    update = observe(prediction_rows(post.design, OBSERVED[name], "new"), joint)
    expected = [dense_update(post, joint, OBSERVED[name], s)[2] for s in range(20)]
    assert update.log_density == pytest.approx(expected, rel=EXACT)


@pytest.mark.parametrize("name", OBSERVED)
def test_effects_given_observed_rows(name, request):
    """At one set of parameters, drawn often, against dense conditioning."""
    post = request.getfixturevalue(name)
    size = 6000
    joint = post._joint.take(np.full(size, 11))
    update = observe(prediction_rows(post.design, OBSERVED[name], "new"), joint)
    drawn = update.effects(np.arange(size), np.random.default_rng(1))
    drawn = np.concatenate([u.reshape(size, -1) for u in drawn], axis=1)
    mean, cov, _ = dense_update(post, joint, OBSERVED[name], 0)
    assert_mean(drawn, mean)
    assert_second_moments(drawn - mean, cov)


def refit(model, design):
    """Posterior of more rows under the priors of a model."""
    model = Model(design, model.priors)
    return blm.Posterior(model=model, data=sample_posterior(model, random_seed=5, options={}))


def assert_same_posterior(found, expected, efficiency):
    """Draws by reweighting and by refitting agree, weighing costing some of their precision."""
    share = 1.0 / (efficiency * len(found)) + 1.0 / len(expected)
    sds = expected.std(axis=0, ddof=1)
    gap = np.abs(found.mean(axis=0) - expected.mean(axis=0)) / sds
    assert gap.max() < DEVIATIONS * np.sqrt(share), gap
    ratio = np.log(found.std(axis=0, ddof=1) / sds)
    assert np.abs(ratio).max() < DEVIATIONS * np.sqrt(share / 2.0) * HEAVY, ratio


# Standard deviations of draws with the tails of a t distribution of about 10 degrees of freedom,
# which effects of few levels have, vary more than those of normal ones.
HEAVY = 1.4
# Effective sample size over the number of draws: Kish's is 0.54 for the weights by the rows of
# subject 309, the most extreme one, and 0.74 for subject 330.
EFFICIENCY = 0.5


@pytest.mark.parametrize("subject", ["309", slow("330")])
def test_observed_rows_are_as_good_as_a_refit(sleepstudy, subject):
    old = sleepstudy[sleepstudy["Subject"] != subject]
    seen = sleepstudy[(sleepstudy["Subject"] == subject) & (sleepstudy["Days"] < 5)]
    model = blm.LMM("Reaction ~ Days + (Days | Subject)", old)
    post = model.fit(random_seed=1, draws=2000)
    full = refit(
        model,
        blm.LMM(
            "Reaction ~ Days + (Days | Subject)",
            sleepstudy.drop(
                sleepstudy.index[(sleepstudy["Subject"] == subject) & (sleepstudy["Days"] >= 5)]
            ),
        ).design,
    )
    new = {"Days": [5.0, 9.0, 9.0, 9.0], "Subject": [subject, subject, "308", "unseen"]}
    options = {"target": "new", "random_seed": 3}
    found = draws_of(post, new, observed=seen, **options)
    expected = draws_of(full, new, **options)
    assert_same_posterior(found, expected, EFFICIENCY)
    before = draws_of(post, new, **options)
    assert found[:, 1].std() < 0.7 * before[:, 1].std()
    # fixed effects, and through responses the residuals, are those of all data too
    lines = draws_of(post, new, observed=seen, terms=[], **options)
    assert_same_posterior(lines, draws_of(full, new, terms=[], **options), EFFICIENCY)
    told = post.predict(new, observed=seen, **options)
    assert told.attrs["pareto_k"] < 0.7
    tree = post.predict(new, observed=seen, summary=False, **options)
    assert tree.attrs["pareto_k"] == told.attrs["pareto_k"]
    assert dict(tree["predictions"].sizes) == {"chain": 4, "draw": 2000, "pred_id": 4}


@pytest.mark.parametrize("store_u", [slow(True), False])
def test_observed_rows_update_the_known_levels_in_them(store_u):
    """Rows of a new plate tell of the samples, in which the model has only two plates."""
    data = blm.load_dataset("Penicillin")
    old = data[data["plate"].isin(["a", "b", "c"])].copy()
    old["plate"] = old["plate"].astype(str)
    full = data[data["plate"].isin(["a", "b", "c"]) | (data["plate"] == "x")]
    full = full[(full["plate"] != "x") | full["sample"].isin(["A", "B", "C"])]
    seen = full[full["plate"] == "x"]
    formula = "diameter ~ 1 + (1 | plate) + (1 | sample)"
    model = blm.LMM(formula, old)
    post = model.fit(random_seed=1, draws=1000, store_u=store_u)
    expected = refit(model, blm.LMM(formula, full).design)
    new = {"plate": ["x", "x", "a", "a", "z"], "sample": ["A", "E", "A", "E", "B"]}
    options = {"target": "new", "random_seed": 3}
    found = draws_of(post, new, observed=seen, **options)
    assert_same_posterior(found, draws_of(expected, new, **options), EFFICIENCY)


def test_observed_rows_that_surprise(sleepstudy_fit, caplog):
    seen = {"Days": [0.0, 9.0], "Subject": ["x", "x"], "Reaction": [250.0, 1500.0]}
    table = sleepstudy_fit.predict({"Days": [1], "Subject": ["x"]}, target="new", observed=seen)
    assert table.attrs["pareto_k"] > 0.7
    assert "Refit the model" in caplog.text


def test_observed_needs_new_levels_and_responses(sleepstudy_fit, sleepstudy_reml, sleepstudy):
    new = {"Days": [1], "Subject": ["x"]}
    seen = {"Days": [0.0, 9.0], "Subject": ["x", "x"], "Reaction": [250.0, np.nan]}
    for fit in (sleepstudy_fit, sleepstudy_reml):
        with pytest.raises(DataError, match="response Reaction in every row"):
            fit.predict(new, target="new", observed=seen)
        without = {k: v for k, v in seen.items() if k != "Reaction"}
        with pytest.raises(DataError, match="response Reaction in every row"):
            fit.predict(new, target="new", observed=without)
        with pytest.raises(DataError, match="known levels only"):
            fit.predict(new, target="new", observed=sleepstudy.head(3))
        for target in ("conditional", "population", "average"):
            with pytest.raises(ValueError, match="target='new'"):
                fit.predict(new, target=target, observed=seen)
