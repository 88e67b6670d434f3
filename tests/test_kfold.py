"""K-fold cross-validation against quadrature and dense algebra, and its folds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, t

import bayeslmm as blm
from bayeslmm import LMM, DataError, SamplingError
from bayeslmm.checks.integrated import predicted_densities, structured_predictions
from bayeslmm.checks.kfold import posterior_kfold
from bayeslmm.checks.resampled import Resampler
from bayeslmm.estimation.model import Model
from bayeslmm.sampling.joint_draws import posterior_draws
from bayeslmm.summaries.parameters import random_covariance, residual_covariance

QUIET = {"random_seed": 1, "progressbar": False}

MONTE_CARLO = 0.04
"""Of a log score: rows have relative sds of 0.4 over 1,000 draws, levels of one over 4,000."""

ALGEBRA = 1e-8
"""Two ways of the same sums in double precision."""


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(7), [2, 3, 4, 4, 4, 5, 6])
    x = rng.normal(size=len(g))
    y = 2.0 + x + rng.normal(size=7)[g] + 0.7 * rng.normal(size=len(g))
    half = np.where(np.arange(len(g)) % 2, "a", "b")
    return pd.DataFrame({"y": y, "x": x, "g": [f"g{i}" for i in g], "half": half})


@pytest.fixture(scope="module")
def post(data):
    return LMM("y ~ x + (1 | g)", data).fit(random_seed=1)


def quadrature(post, folds, together):
    """Scores from dense normal densities on a grid of the two standard deviations.

    The priors are read from the table; everything else is written here anew.
    """
    design, priors = post.design, post.priors
    sds = np.exp(np.linspace(np.log(0.02), np.log(8.0), 24))
    sigmas = np.exp(np.linspace(np.log(0.3), np.log(2.0), 16))
    sd, sigma = (grid.ravel() for grid in np.meshgrid(sds, sigmas))
    log_prior = np.log(sd) + np.log(sigma)  # of the grid, equal steps of the logs
    for prior, values in ((priors.sd[0][0], sd), (priors.sigma, sigma)):
        log_prior += t.logpdf(values / prior.sigma, prior.nu)
    spread = np.linalg.inv(priors.beta_precision)
    mean = design.X @ priors.beta_mean
    fixed = design.X @ spread @ design.X.T
    same = design.data["g"].to_numpy()[:, None] == design.data["g"].to_numpy()
    found = {}
    for fold in np.unique(folds):
        out, kept = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        groups = [[i] for i in out] if together is None else _groups(out, together[out])
        logs, scores = np.empty(len(sd)), np.empty((len(sd), len(groups)))
        for k in range(len(sd)):
            V = fixed + sd[k] ** 2 * same + sigma[k] ** 2 * np.eye(design.n)
            logs[k] = log_prior[k] + log_normal((design.y - mean)[kept], V[np.ix_(kept, kept)])
            turn = np.linalg.solve(V[np.ix_(kept, kept)], V[np.ix_(kept, out)]).T
            centre = mean[out] + turn @ (design.y - mean)[kept]
            cov = V[np.ix_(out, out)] - turn @ V[np.ix_(kept, out)]
            for j, rows in enumerate(groups):
                at = np.searchsorted(out, rows)
                scores[k, j] = log_normal(design.y[rows] - centre[at], cov[np.ix_(at, at)])
        elpd = logsumexp(logs[:, None] + scores, axis=0) - logsumexp(logs)
        found |= {rows[0]: value for rows, value in zip(groups, elpd, strict=True)}
    return np.array([found[place] for place in sorted(found)])


def log_normal(deviation, cov):
    """Log density of a normal vector."""
    square = deviation @ np.linalg.solve(cov, deviation)
    return -0.5 * (len(deviation) * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + square)


def _groups(out, labels):
    return [out[labels == label] for label in np.unique(labels)]


@pytest.mark.parametrize(
    ("options", "together"),
    [({"K": 4}, None), ({"K": 3, "by": "g"}, None), ({"K": 3, "by": "g", "joint": "group"}, "g")],
    ids=["rows", "levels", "levels together"],
)
def test_scores_are_those_of_quadrature(post, options, together):
    scores = post.kfold(**options, **QUIET)
    by = None if together is None else post.design.data[together].to_numpy()
    expected = quadrature(post, scores.folds.to_numpy(), by)
    assert_allclose(scores.elpd_i, expected, atol=MONTE_CARLO)
    assert scores.elpd == pytest.approx(expected.sum(), abs=2 * MONTE_CARLO)
    assert scores.se == pytest.approx(np.sqrt(len(expected)) * np.std(scores.elpd_i.to_numpy()))


def test_levels_left_out_one_by_one_are_those_of_loo(post):
    folds = post.kfold(None, "g", joint="group", **QUIET)
    loo = post.loo("g")
    assert_allclose(folds.elpd_i, loo.elpd_i, atol=2 * MONTE_CARLO)
    assert folds.elpd_i.dims == loo.elpd_i.dims
    together = post.kfold(None, "g", joint="fold", **QUIET)
    order = folds.folds.groupby(post.design.data["g"].to_numpy()).first().to_numpy()
    assert_allclose(together.elpd_i.to_numpy()[order - 1], folds.elpd_i, rtol=1e-12)


def dense(design, joint, priors):
    """Mean (n,) and covariance (n, n) of the response at one draw, beta integrated out."""
    X, z = design.X, sp.csr_array(design.Z_matrix()).toarray()
    G = random_covariance(design, [c[0] for c in joint.covariances], sparse=True).toarray()
    V = z @ G @ z.T + residual_covariance(design, joint.points).toarray()
    if priors.beta_sampled:
        return X @ joint.beta[0] + design.offset, V
    return X @ priors.beta_mean + design.offset, V + X @ np.linalg.inv(priors.beta_precision) @ X.T


def given(mean, V, y, out):
    kept = np.setdiff1d(np.arange(len(y)), out)
    turn = np.linalg.solve(V[np.ix_(kept, kept)], V[np.ix_(kept, out)]).T
    return (
        mean[out] + turn @ (y - mean)[kept],
        V[np.ix_(out, out)] - turn @ V[np.ix_(kept, out)],
    )


MODELS = {
    "crossed, weights": ("y ~ x + (x | g) + (1 | half)", {"weights": "w"}, "plain"),
    "beta sampled": ("y ~ x + (1 | g)", {"priors": {"x": "gamma"}}, "plain"),
    "ar1": ("y ~ x + (1 | half)", {"residual": "ar1(time | g)"}, "structured"),
}


@pytest.mark.parametrize("name", MODELS)
def test_densities_of_rows_left_out_are_those_of_dense_algebra(name, data):
    formula, options, kind = MODELS[name]
    frame = data.assign(w=np.linspace(0.5, 2.0, len(data)), time=data.groupby("g").cumcount())
    if "priors" in options:
        import pymc as pm

        options = {"priors": {"x": pm.Gamma.dist(2, 1)}}
    post = LMM(formula, frame, **options).fit(draws=4, chains=1, random_seed=1)
    design, model = post.design, post.model
    joint = posterior_draws(design, lambda: model.system, post.data["posterior"].to_dataset())
    joint = joint.take(np.array([2]))
    out = np.array([1, 4, 5, 6, 11, 20])
    pair = [np.array([0, 2]), np.array([1, 3, 4, 5])]
    mean, cov = given(*dense(design, joint, model.priors), design.y, out)
    rest = Model(design.take(np.setdiff1d(np.arange(design.n), out)), model.priors)

    def score(members):
        if kind == "structured":
            return structured_predictions(model, joint, out, members)
        return predicted_densities(rest, design.take(out), joint, members)

    single = norm.logpdf(design.y[out], mean, np.sqrt(np.diag(cov)))
    assert_allclose(score(None)[0], single, rtol=ALGEBRA, atol=ALGEBRA)
    groups = [
        multivariate_normal.logpdf(design.y[out][at], mean[at], cov[np.ix_(at, at)]) for at in pair
    ]
    assert_allclose(score(pair)[0], groups, rtol=ALGEBRA, atol=ALGEBRA)


def test_structured_residuals_are_scored_given_their_group(data):
    frame = data.assign(time=data.groupby("g").cumcount())
    post = LMM("y ~ x", frame, residual="ar1(time | g)").fit(draws=250, random_seed=1)
    folds = post.kfold(None, "g", joint="group", draws=100, **QUIET)
    assert folds.elpd == pytest.approx(post.loo("g", draws=400).elpd, abs=0.5)


def test_folds_are_balanced(post, data):
    rows = post.kfold(4, draws=10, **QUIET).folds
    assert rows.value_counts().tolist() == [7, 7, 7, 7]
    levels = post.kfold(3, "g", draws=10, **QUIET).folds
    assert (levels.groupby(data["g"].to_numpy()).nunique() == 1).all()
    model = LMM("y ~ half + (1 | g)", data)
    some = model.fit(draws=50, random_seed=1)
    divided = some.kfold(2, stratify="half", draws=10, **QUIET).folds
    assert pd.crosstab(divided, data["half"].to_numpy()).eq(7).all(axis=None)
    own = post.kfold(folds=np.arange(28) % 2, draws=10, **QUIET)
    assert own.folds.tolist() == [1, 2] * 14
    assert own.n_data_points == 28


def test_executors_change_nothing(post):
    with ThreadPoolExecutor(2) as threads:
        there = post.kfold(3, draws=50, executor=threads, **QUIET)
    assert_allclose(post.kfold(3, draws=50, **QUIET).elpd_i, there.elpd_i, rtol=1e-12)


def test_where_importance_weights_are_dear_chains_are_run(post, monkeypatch):
    weighted = post.kfold(2, **QUIET)
    monkeypatch.setattr(Resampler, "affordable", False)
    assert_allclose(post.kfold(2, **QUIET).elpd_i, weighted.elpd_i, atol=2 * MONTE_CARLO)


def test_compare_takes_scores(post, data):
    other, few = LMM("y ~ 1 + (1 | g)", data).fit(draws=250, random_seed=1), {"draws": 100}
    scores = {"x": post.kfold(3, **few, **QUIET), "1": other.kfold(3, **few, **QUIET)}
    table = blm.compare(scores)
    assert table.index.tolist() == ["x", "1"]
    difference = scores["1"].elpd_i - scores["x"].elpd_i
    assert table["elpd_diff"].tolist() == pytest.approx([0.0, float(difference.sum())])
    assert table["dse"].iloc[1] == pytest.approx(np.sqrt(28 * np.var(difference.to_numpy())))
    with pytest.raises(ValueError, match="different folds: give kfold"):
        blm.compare(scores | {"1": other.kfold(3, **few, random_seed=2, progressbar=False)})
    with pytest.raises(ValueError, match="in different ways"):
        blm.compare(scores | {"1": other.loo()})
    with pytest.raises(ValueError, match="different rows or levels"):
        blm.compare(scores | {"1": other.kfold(3, "g", joint="group", **few, **QUIET)})


def test_what_cannot_be_is_refused(post, data):
    for options, message in [
        ({"K": 1}, "at least 2"),
        ({"K": 99}, "there are only 28 rows"),
        ({"K": 8, "by": "g"}, "only 7 levels of g"),
        ({"by": "g", "stratify": "half"}, "give one of them"),
        ({"joint": "group"}, "give by="),
        ({"joint": "rows"}, "joint='rows': one of"),
        ({"folds": [1, 2]}, "2 values, but the model has 28"),
        ({"folds": np.ones(28)}, "at least two"),
        ({"folds": np.arange(28) % 2, "by": "g"}, "divides levels of g"),
    ]:
        with pytest.raises(ValueError, match=message):
            post.kfold(**options, **QUIET)
    with pytest.raises(DataError, match="by='z' is neither a grouping factor nor a variable"):
        post.kfold(by="z", **QUIET)
    with pytest.raises(DataError, match="stratify='half' is neither"):
        post.kfold(stratify="half", **QUIET)
    student = LMM("y ~ x + (1 | g)", data, family="student").model
    with pytest.raises(DataError, match="kfold\\(\\) integrates the random effects out"):
        posterior_kfold(student, post.data, post._joint)
    flat = LMM("y ~ half + (1 | g)", data, priors="flat").fit(random_seed=1)
    with pytest.raises(SamplingError, match="flat"):
        flat.kfold(by="half", K=None, **QUIET)
