"""Cross-validation: densities against dense algebra, scores against refits and ArviZ."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import partial

import arviz_stats
import numpy as np
import pandas as pd
import pytest
from arviz_stats.base import array_stats
from dense import case_of
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal, norm
from slow_cases import one_in, slow

from bayeslmm import LMM, DataError, SamplingError, load_dataset
from bayeslmm.checks.integrated import leave_out
from bayeslmm.checks.loo import group_codes, integrated_loo, thin
from bayeslmm.checks.resampled import Resampler
from bayeslmm.checks.row_forms import leverages, row_forms, row_system
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.residual import PLAIN
from bayeslmm.estimation.model import Model
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.elimination import make_plan
from bayeslmm.likelihood.log_posterior import beta_prior, log_posterior_batch, reduce_at
from bayeslmm.priors import Flat, HalfStudentT, Normal
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import smooth_columns

ALGEBRA = 1e-8
"""Two ways of the same sums in double precision, with sds of up to 30 residual ones."""

ROWS = 36


def small_data(seed=0):
    """Unbalanced rows with crossed and nested grouping factors."""
    rng = np.random.default_rng(seed)
    a = rng.permutation(np.r_[np.arange(5), rng.integers(0, 5, ROWS - 5)])
    b = rng.permutation(np.r_[np.arange(4), rng.integers(0, 4, ROWS - 4)])
    return pd.DataFrame(
        {
            "y": rng.normal(size=ROWS) * 3.0 + 50.0,
            "x": rng.normal(size=ROWS) + 4.0,
            "z": rng.normal(size=ROWS),
            "a": [f"a{i}" for i in a],
            "b": [f"b{i}" for i in b],
            "school": [f"s{i}" for i in a],
            "kind": [f"c{i}" for i in rng.integers(0, 2, ROWS)],
            "half": [f"h{i}" for i in rng.integers(0, 2, ROWS)],
            "w": rng.uniform(0.3, 3.0, ROWS),
            "shift": rng.normal(size=ROWS) * 5.0,
        }
    )


def random_draws(design, size=3, seed=1):
    """Draws that no sampler made: standard deviations from 0 to 30 times sigma."""
    rng = np.random.default_rng(seed)
    sds, chols = [], []
    sigma = rng.uniform(0.5, 3.0, size)
    for f, structure in zip(design.random, products_of(design).structures, strict=True):
        scale = sigma[:, None] * 10.0 ** rng.uniform(-2.0, 1.5, (size, f.n_coefs))
        scale[0, 0] = 0.0
        sds.append(scale)
        pairs = structure.n_theta - structure.n_coefs
        chols.append(structure.cholesky(rng.normal(size=(size, pairs))))
    points = Points(
        sds=tuple(sds),
        chols=tuple(chols),
        sigma=sigma,
        shapes=np.empty((size, 0)),
        residual=PLAIN,
        beta=np.empty((size, 0)),
    )
    beta = rng.normal(size=(size, design.p)) * 3.0
    return JointDraws(shape=(1, size), beta=beta, points=points, effects=lambda wanted: [])


def products_of(design):
    return cross_products(design.y - design.offset, design.X, design.random, weights=design.weights)


class Dense:
    """Normal distributions of a model at one draw, by inverting what has to be inverted."""

    def __init__(self, design, priors, joint, draw):
        case = case_of(design)
        self.y, self.offset = design.y, design.offset
        factors = [root[draw] / joint.sigma[draw] for root in joint.roots]
        noise = np.ones(design.n) if design.weights is None else 1.0 / design.weights
        self.noise = joint.sigma[draw] ** 2 * np.diag(noise)
        self.effects = joint.sigma[draw] ** 2 * case.covariance(factors) - self.noise
        self.X, self.mean = design.X, np.zeros(design.n)
        if priors.beta_sampled:
            self.mean = design.X @ joint.beta[draw]
            self.X = np.zeros((design.n, 0))
        elif priors.beta_precision is not None:
            prior = np.linalg.inv(priors.beta_precision)
            self.effects = self.effects + design.X @ prior @ design.X.T
            self.mean = design.X @ priors.beta_mean
            self.X = np.zeros((design.n, 0))
        self.mean = self.mean + self.offset

    def conditional(self, rows, given, extra):
        """Mean and covariance of eta[rows] + noise `extra`, given y[given]; flat X beta."""
        V = (self.effects + self.noise)[np.ix_(given, given)]
        gain = np.linalg.solve(V, self.effects[np.ix_(given, rows)]).T
        gap = self.y[given] - self.mean[given]
        mean = self.mean[rows] + gain @ gap
        cov = self.effects[np.ix_(rows, rows)] - gain @ self.effects[np.ix_(given, rows)]
        if self.X.shape[1]:
            known = self.X[given]
            spread = np.linalg.inv(known.T @ np.linalg.solve(V, known))
            beta = spread @ known.T @ np.linalg.solve(V, gap)
            left = self.X[rows] - gain @ known
            mean = mean + left @ beta
            cov = cov + left @ spread @ left.T
        return mean, cov + extra

    def score(self, rows, *, left_out):
        """Log density of y[rows], its mean and covariance matrix."""
        everything = np.arange(len(self.y))
        given = np.setdiff1d(everything, rows) if left_out else everything
        mean, cov = self.conditional(rows, given, self.noise[np.ix_(rows, rows)])
        return multivariate_normal(mean, cov).logpdf(self.y[rows]), mean, cov


FORMULAS = {
    "one": "y ~ x + (1 | a)",
    "slopes": "y ~ x + (x | a)",
    "uncorrelated": "y ~ x + (x || a)",
    "three": "y ~ z + (x + z | a)",
    "crossed": "y ~ x + (1 | a) + (x | b)",
    "crossed twice": "y ~ x + (1 | a) + (1 | b) + (1 | kind)",
    "nested": "y ~ x + (1 | a / kind)",
    "nested inner first": "y ~ x + (x | a:kind) + (1 | a)",
    "nested deep": "y ~ x + (x | a / kind / half)",
    "nested deep inner first": "y ~ z + (1 | a:kind:half) + (x | a:kind) + (1 | a)",
    "nested middle first": "y ~ z + (x | a:kind) + (1 | a) + (1 | a:kind:half)",
    "nested and crossed": "y ~ x + (1 | a / kind) + (1 | b)",
    "the same levels twice": "y ~ x + (1 | a) + (1 | school)",
    "no intercept": "y ~ 0 + x + (1 | a)",
    "no fixed effects": "y ~ 0 + (x | a)",
    "offset": "y ~ x + offset(shift) + (1 | a)",
    "cells": "y ~ 0 + kind + (0 + kind | a)",
}
PRIORS = {
    "normal": None,
    "flat": "flat",
    "sampled": {"x": Flat()},
    "tight": {"x": Normal(1.0, 0.1)},
}


def dense_scores(design, priors, joint, groups):
    """Log densities left out and in sample, means and sds, (S, m) each, by dense algebra."""
    tables = [[], [], [], []]
    for draw in range(joint.size):
        dense = Dense(design, priors, joint, draw)
        out = [dense.score(rows, left_out=True) for rows in groups]
        tables[0].append([value for value, _, _ in out])
        tables[1].append([dense.score(rows, left_out=False)[0] for rows in groups])
        tables[2].append([mean[0] for _, mean, _ in out])
        tables[3].append([np.sqrt(cov[0, 0]) for _, _, cov in out])
    return [np.array(table) for table in tables]


def assert_scores(model, by=None, nested=None):
    """Scores of rows, or of the levels of a variable, are those of dense algebra."""
    design = model.design
    joint = random_draws(design)
    planned = Model(design, model.priors)
    planned.__dict__["system"] = make_plan(products_of(design), nested=nested)
    codes = None if by is None else pd.factorize(small_data()[by])[0]
    groups = [np.array([i]) for i in range(design.n)]
    if codes is not None:
        groups = [np.flatnonzero(codes == g) for g in range(codes.max() + 1)]
    found = leave_out(planned, joint, codes, moments=True)
    wanted = dense_scores(design, model.priors, joint, groups)
    assert_allclose(found.log_density, wanted[0], rtol=ALGEBRA, atol=ALGEBRA)
    assert_allclose(found.in_sample, wanted[1], rtol=ALGEBRA, atol=ALGEBRA)
    if by is None:
        assert_allclose(found.mean, wanted[2], rtol=ALGEBRA)
        assert_allclose(found.sd, wanted[3], rtol=ALGEBRA)
    else:
        assert found.mean is None
        assert found.sd is None


CASES = [
    *((formula, priors) for formula in FORMULAS for priors in ("normal", "flat")),
    *((formula, "sampled") for formula in FORMULAS if "x" in FORMULAS[formula].split("(")[0]),
    ("crossed", "tight"),
    ("nested deep", "tight"),
]


@pytest.mark.parametrize(("name", "priors"), one_in(6, CASES))
def test_densities_equal_dense_algebra(name, priors):
    weights = "w" if priors == "normal" else None
    model = LMM(FORMULAS[name], small_data(), priors=PRIORS[priors], weights=weights)
    nested = True if "nested" in name else None
    assert_scores(model, nested=nested)
    for by in ("a", "half"):  # groups of fewer and of more rows than columns of U
        assert_scores(model, by, nested)


def test_nested_cases_are_eliminated_in_stages():
    for name, stages in (("nested", 2), ("nested deep", 3), ("nested middle first", 3)):
        design = LMM(FORMULAS[name], small_data()).design
        assert len(make_plan(products_of(design), nested=True).stages) == stages


@pytest.mark.parametrize("name", ["crossed", "nested and crossed"])
def test_parts_of_any_size_give_the_same(name, monkeypatch):
    model = LMM(FORMULAS[name], small_data())
    monkeypatch.setattr("bayeslmm.checks.row_forms.ENTRIES", 1)
    monkeypatch.setattr("bayeslmm.checks.integrated.ENTRIES", 1)
    monkeypatch.setattr("bayeslmm.checks.integrated.ROW_ENTRIES", 1)
    monkeypatch.setattr("bayeslmm.checks.row_forms.ROW_ENTRIES", 1)
    assert_scores(model)
    assert_scores(model, "half")


def test_all_rows_in_one_group():
    """Nothing is left to learn from: the density under the priors of the effects."""
    model = LMM(FORMULAS["crossed"], small_data())
    joint = random_draws(model.design)
    codes = np.zeros(ROWS, dtype=np.intp)
    found = leave_out(model.model, joint, codes).log_density[:, 0]
    for draw in range(joint.size):
        dense = Dense(model.design, model.priors, joint, draw)
        wanted = multivariate_normal(dense.mean, dense.effects + dense.noise).logpdf(dense.y)
        assert found[draw] == pytest.approx(wanted, rel=ALGEBRA)


# --- what flat priors do not determine ------------------------------------------------------


def with_lonely_columns(seed):
    """`t` is seen in one level of a, `r` in one row."""
    data = small_data(seed)
    data["t"] = (data["a"] == "a2") * 1.7
    data["r"] = 0.0
    data.loc[5, "r"] = 3.1
    return data


@pytest.mark.parametrize("seed", one_in(4, range(4)))
def test_flat_priors_that_leave_beta_undetermined(seed):
    data = with_lonely_columns(seed)
    rows = LMM("y ~ x + r + (1 | a)", data, priors="flat").fit(draws=20, random_seed=1)
    with pytest.raises(SamplingError, match=r"Without 1 row .* priors are flat"):
        rows.loo()
    with pytest.raises(SamplingError, match="Without 1 row"):
        rows.check.loo_pit()
    levels = LMM("y ~ x + t + (1 | a)", data, priors="flat").fit(draws=20, random_seed=1)
    assert np.isfinite(levels.loo().elpd)
    with pytest.raises(SamplingError, match=r"Without 1 group .*proper priors"):
        levels.loo("a")


def test_flat_priors_of_sampled_fixed_effects():
    """A flat prior beside a normal one: beta is sampled, and nothing breaks down by itself."""
    data = with_lonely_columns(0)
    priors = {"r": Flat()}
    post = LMM("y ~ 0 + x + r + (1 | a)", data, priors=priors).fit(draws=100, random_seed=1)
    assert post.priors.beta_sampled
    with pytest.raises(SamplingError, match="Without 1 row"):
        post.loo()


def test_proper_priors_determine_what_the_rest_does_not():
    data = with_lonely_columns(0)
    post = LMM("y ~ x + t + (1 | a)", data).fit(random_seed=1)
    out = Resampler(post.model, post._joint, np.random.default_rng(1))
    rows = np.flatnonzero(data["a"] == "a2")
    level = sorted(data["a"].unique()).index("a2")
    found = post.loo("a")
    assert float(found.elpd_i[level]) == pytest.approx(out.score(rows), abs=CARLO)


# --- scores against quadrature --------------------------------------------------------------

CARLO = 0.05
"""Error of a score from 4,000 draws, 4 of the standard deviations measured over seeds."""

EVIDENCE = 0.02
"""Error of the ratio of two evidences from 8,000 importance ratios each, 4 standard errors."""

DYESTUFF = "Yield ~ 1 + (1 | Batch)"


def subset(design, kept):
    """The design of some rows, with all levels."""
    return replace(
        design,
        y=design.y[kept],
        offset=design.offset[kept],
        weights=None if design.weights is None else design.weights[kept],
        X=design.X[kept],
        random=tuple(f.take(kept) for f in design.random),
    )


def log_integral(design, priors):
    """Log evidence of a model of two covariance parameters on a grid, which is exact to 1e-6."""
    axes = np.linspace(-4.0, 10.0, 281), np.linspace(2.0, 7.0, 141)
    x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=2).reshape(-1, 2)
    plan = make_plan(products_of(design))
    values = log_posterior_batch(plan, priors, partial(reduce_at, plan, priors.coordinates), x)
    return logsumexp(values) + np.log((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))


def exact_scores(model, groups):
    """log p(y_g | y without g) for every group of rows."""
    whole = log_integral(model.design, model.priors)
    everything = np.arange(model.design.n)
    rests = [subset(model.design, np.setdiff1d(everything, rows)) for rows in groups]
    return np.array([whole - log_integral(rest, model.priors) for rest in rests])


@pytest.fixture(scope="module")
def laplace(dyestuff_model):
    return dyestuff_model.fit(method="laplace", random_seed=1)


@pytest.fixture(scope="module")
def laplace_loo(laplace):
    return laplace.loo()


@pytest.fixture(scope="module")
def dyestuff_loo(dyestuff_fit):
    """Scores of rows and of batches."""
    return {by: dyestuff_fit.loo(by) for by in (None, "Batch")}


@pytest.fixture(scope="module")
def exact(dyestuff_model):
    """Scores of rows and of batches by quadrature."""
    batches = np.arange(30).reshape(6, 5)
    return {
        None: exact_scores(dyestuff_model, np.arange(30)[:, None]),
        "Batch": exact_scores(dyestuff_model, batches),
    }


@pytest.mark.parametrize("by", [None, "Batch"])
@pytest.mark.parametrize("method", ["collapsed", "laplace"])
def test_scores_equal_quadrature(laplace, laplace_loo, dyestuff_loo, exact, method, by):
    """The Laplace approximation is poor here: its draws are weighted to the posterior."""
    of_laplace = laplace_loo if by is None else laplace.loo(by)
    found = of_laplace if method == "laplace" else dyestuff_loo[by]
    assert_allclose(found.elpd_i, exact[by], atol=CARLO)
    assert found.elpd == pytest.approx(exact[by].sum(), abs=CARLO * np.sqrt(len(exact[by])))
    assert not found.warning


def test_laplace_draws_need_their_weights(laplace, laplace_loo, exact):
    plain = integrated_loo(laplace.model, laplace._joint)
    errors = [np.sqrt(np.mean((loo.elpd_i - exact[None]) ** 2)) for loo in (plain, laplace_loo)]
    assert errors[1] < 0.5 * errors[0]


def test_laplace_draws_give_the_density_in_the_sample_of_the_posterior(laplace_loo, dyestuff_loo):
    """Without weights it is 0.5 off; with them the weights' own Pareto k of 0.6 leaves 0.15."""
    one, other = laplace_loo, dyestuff_loo[None]
    assert one.elpd + one.p == pytest.approx(other.elpd + other.p, abs=0.25)


def test_weights_of_laplace_draws_are_thinned_with_them(laplace):
    post = laplace
    log_weight = post.data["sample_stats"]["log_weight"].to_numpy().ravel()
    joint, log_ratio = thin(post._joint, log_weight, 300)
    everything = list(post._joint.sigma)
    assert_array_equal(log_ratio, log_weight[[everything.index(sigma) for sigma in joint.sigma]])


@pytest.mark.parametrize("by", [None, "Batch"])
def test_resampled_scores_equal_quadrature(dyestuff_fit, dyestuff_loo, exact, by, monkeypatch):
    weighted = dyestuff_loo[by]
    monkeypatch.setattr("bayeslmm.checks.loo.RESAMPLE_K", -np.inf)
    resampled = dyestuff_fit.loo(by)
    assert_allclose(resampled.elpd_i, exact[by], atol=EVIDENCE)
    assert not resampled.pareto_k.any()
    assert resampled.elpd == pytest.approx(float(resampled.elpd_i.sum()))
    assert resampled.elpd == pytest.approx(weighted.elpd, abs=CARLO * np.sqrt(len(exact[by])))
    assert resampled.elpd + resampled.p == pytest.approx(weighted.elpd + weighted.p)
    spread = np.sqrt(len(exact[by]) * np.var(resampled.elpd_i.to_numpy()))
    assert resampled.se == pytest.approx(spread)
    assert resampled.log_weights is None


def test_only_so_many_are_resampled_the_worst_first(dyestuff_fit, dyestuff_loo, monkeypatch):
    weighted = dyestuff_loo[None]
    monkeypatch.setattr("bayeslmm.checks.loo.RESAMPLE_K", -np.inf)
    monkeypatch.setattr("bayeslmm.checks.loo.MOST_RESAMPLED", 3)
    changed = np.flatnonzero(dyestuff_fit.loo().elpd_i.to_numpy() != weighted.elpd_i.to_numpy())
    assert set(changed) == set(np.argsort(weighted.pareto_k.to_numpy())[-3:])


def test_no_score_where_the_rest_has_an_improper_posterior():
    """Flat priors on standard deviations need three levels."""
    rng = np.random.default_rng(3)
    levels = np.repeat(["a", "b", "c"], 6)
    y = rng.normal(size=18) + 3.0 * np.repeat([0.0, 1.0, -1.0], 6)
    post = LMM("y ~ 1 + (1 | g)", {"y": y, "g": levels}, priors="flat").fit(random_seed=1)
    out = Resampler(post.model, post._joint, rng)
    assert out.score(np.arange(6)) is None
    assert out.score(np.arange(2)) is not None


@pytest.mark.slow
@pytest.mark.parametrize("formula", ["y ~ x + (1 | a / kind)", "y ~ x + (1 | a) + (1 | b)"])
def test_resampled_scores_equal_weighted_ones(formula):
    """Left-out levels have no rows at all in the rest."""
    post = LMM(formula, small_data(), weights="w").fit(random_seed=1)
    weighted = post.loo("a")
    out = Resampler(post.model, post._joint, np.random.default_rng(1))
    codes = post.design.random[0].codes
    found = [out.score(np.flatnonzero(codes == g)) for g in range(5)]
    assert_allclose(found, weighted.elpd_i, atol=3 * CARLO)


# --- what is returned -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def penicillin():
    formula = "diameter ~ 1 + (1 | plate) + (1 | sample)"
    return LMM(formula, load_dataset("Penicillin")).fit(draws=250, random_seed=1)


@pytest.fixture(scope="module")
def penicillin_loo(penicillin):
    """Scores of rows and of samples."""
    return {by: penicillin.loo(by) for by in (None, "sample")}


def test_summaries_and_labels(penicillin, penicillin_loo):
    found = penicillin_loo["sample"]
    values = found.elpd_i.to_numpy()
    assert found.elpd_i.dims == ("sample_level",)  # stacked draws have the dimension `sample`
    assert list(found.elpd_i["sample_level"].to_numpy()) == list("ABCDEF")
    assert found.elpd == pytest.approx(values.sum())
    assert found.se == pytest.approx(np.sqrt(6 * np.var(values)))
    codes = penicillin.design.random[1].codes
    scores = leave_out(penicillin.model, penicillin._joint, codes)
    in_sample = logsumexp(scores.in_sample, axis=0) - np.log(1000)
    assert found.p == pytest.approx(np.sum(in_sample - values))
    assert (found.n_samples, found.n_data_points, found.scale) == (1000, 6, "log")
    rows = penicillin_loo[None]
    assert rows.elpd_i.dims == ("obs_id",)
    assert_array_equal(rows.elpd_i["obs_id"], penicillin.data["observed_data"]["obs_id"])


def test_arviz_compares_it(penicillin_loo):
    model = LMM("diameter ~ 1 + (1 | sample)", load_dataset("Penicillin"))
    other = model.fit(draws=250, random_seed=1).loo()
    both = penicillin_loo[None]
    table = arviz_stats.compare({"both": both, "sample": other}, round_to="none")
    assert list(table.index) == ["both", "sample"]
    assert table.loc["sample", "elpd_diff"] == pytest.approx(other.elpd - both.elpd)


def test_groups_by_name(monkeypatch):
    monkeypatch.setattr("bayeslmm.checks.loo.RESAMPLE_K", np.inf)
    data = small_data().assign(chain=lambda d: d["half"], year=np.arange(ROWS) % 3 + 2000.0)
    model = LMM("y ~ x + chain + year + kind + (1 | a) + (1 | a:kind)", data)
    codes, labels, dim = group_codes(model.design, "a:kind")
    assert codes is model.design.random[1].codes
    assert dim == "a_kind"
    cells = group_codes(model.design, "kind:a")
    assert len(cells[1]) == len(labels)
    assert "c0:a0" in cells[1]
    assert group_codes(model.design, "year")[1].tolist() == ["2000", "2001", "2002"]
    post = model.fit(random_seed=1, draws=50)
    found = post.loo("chain")
    assert found.elpd_i.dims == ("chain_level",)
    assert post.loo("x").n_data_points == ROWS


def test_a_factor_and_a_variable_have_their_levels_in_one_order():
    """Else a comparison of a model that has the factor with one that has not would mix them."""
    order = ["b", "c", "a"]
    data = small_data().assign(
        g=pd.Categorical(np.array(order)[np.arange(ROWS) % 3], categories=order),
        number=(np.arange(ROWS) * 7 % 12).astype(float),
    )
    for name in ("g", "number"):
        factor = LMM(f"y ~ x + (1 | {name})", data).design
        variable = LMM(f"y ~ x + {name} + (1 | a)", data).design
        one, other = group_codes(factor, name), group_codes(variable, name)
        assert_array_equal(one[0], other[0])
        assert one[1].tolist() == other[1].tolist()


def test_wrong_arguments(penicillin):
    with pytest.raises(
        DataError, match=r"by='batch' is neither .*: one of plate, sample, diameter"
    ):
        penicillin.loo("batch")
    with pytest.raises(ValueError, match="single rows"):
        penicillin.loo("plate", conditional=True)
    with pytest.raises(ValueError, match="all draws"):
        penicillin.loo(draws=100, conditional=True)
    for draws in (0, -3, 1.5, True):
        with pytest.raises(ValueError, match="draws="):
            penicillin.loo(draws=draws)
        with pytest.raises(ValueError, match="draws="):
            penicillin.check.loo_pit(draws=draws)


def test_no_draws_of_the_effects_are_needed(dyestuff_model, dyestuff_loo):
    without = dyestuff_model.fit(random_seed=1, store_u=False)
    assert_allclose(without.loo().elpd_i, dyestuff_loo[None].elpd_i, atol=CARLO)
    with pytest.raises(SamplingError):
        without.loo(conditional=True)


def test_fewer_draws(penicillin, penicillin_loo):
    found = penicillin.loo(draws=500)
    assert found.n_samples == 500
    assert found.elpd == pytest.approx(penicillin_loo[None].elpd, abs=1.0)


def test_draws_are_thinned_where_each_is_dear(penicillin, monkeypatch, caplog):
    monkeypatch.setattr("bayeslmm.checks.integrated.LARGEST_WORK", 1.0)
    with caplog.at_level("INFO", logger="bayeslmm"):
        assert penicillin.loo().n_samples == 200
    assert "use 200 of 1000 draws" in caplog.text
    monkeypatch.undo()
    monkeypatch.setattr("bayeslmm.checks.integrated.LARGEST_SCORES", 144 * 500)
    assert penicillin.loo().n_samples == 500
    assert penicillin.loo("plate").n_samples == 1000


def test_dropped_rows_and_row_labels():
    data = load_dataset("sleepstudy")
    data.index = [f"row{i}" for i in range(180)]
    data.loc["row7", "Reaction"] = np.nan
    post = LMM("Reaction ~ Days + (Days | Subject)", data).fit(draws=100, random_seed=1)
    found = post.loo()
    assert found.n_data_points == 179
    assert "row7" not in found.elpd_i["obs_id"]
    assert list(post.check.loo_pit().index) == list(post.design.index)


def test_bad_weights_are_reported(penicillin, caplog, monkeypatch):
    monkeypatch.setattr("bayeslmm.checks.loo.Resampler.affordable", False)
    monkeypatch.setattr("bayeslmm.checks.loo.MAX_PARETO_K", -1.0)
    with caplog.at_level("WARNING", logger="bayeslmm"):
        penicillin.check.loo_pit()
    assert "144 of 144 rows have a Pareto k above -1.00" in caplog.text


# --- conditional scores -----------------------------------------------------------------------


def test_conditional_scores_are_those_of_arviz(sleepstudy_fit, caplog):
    post = sleepstudy_fit
    with caplog.at_level("WARNING", logger="bayeslmm"):
        found = post.loo(conditional=True)
    with pytest.warns(UserWarning, match="Pareto"):
        wanted = arviz_stats.loo(post.with_log_likelihood().data, pointwise=True)
    assert_allclose(found.elpd_i, wanted.elpd_i)
    assert_allclose(found.pareto_k, wanted.pareto_k)
    assert found.p == pytest.approx(wanted.p)
    bad = int((wanted.pareto_k > wanted.good_k).sum())
    assert bad > 0
    assert f"{bad} of 180 rows" in caplog.text
    integrated = post.loo()
    assert float(integrated.pareto_k.max()) < 0.7


# --- probability integral transforms ----------------------------------------------------------


@pytest.mark.parametrize("method", [slow("collapsed"), "laplace"])
def test_pit_equals_a_weighted_sum(dyestuff_model, method):
    post = dyestuff_model.fit(method=method, draws=25, random_seed=1)
    joint = post._joint
    rows = [0, 14, 29]
    wanted = []
    for row in rows:
        scores = [
            Dense(post.design, post.priors, joint, draw).score(np.array([row]), left_out=True)
            for draw in range(joint.size)
        ]
        ratios = -np.array([value for value, _, _ in scores])
        if method == "laplace":
            ratios = ratios + post.data["sample_stats"]["log_weight"].to_numpy().ravel()
        weights = np.exp(array_stats.psislw(-ratios)[0])
        below = [norm(m[0], np.sqrt(c[0, 0])).cdf(post.design.y[row]) for _, m, c in scores]
        wanted.append(weights @ below)
    assert_allclose(post.check.loo_pit().iloc[rows], wanted, rtol=1e-6)


def simulated(rng, errors):
    group = np.repeat(np.arange(40), 15)
    x = rng.normal(size=600)
    slopes = rng.normal(size=(40, 2)) * [2.0, 1.0]
    y = 3.0 + x + slopes[group, 0] + slopes[group, 1] * x + errors
    return LMM("y ~ x + (x | g)", {"y": y, "x": x, "g": group}).fit(draws=100, random_seed=1)


def test_pit_is_uniform_where_the_model_is_right():
    rng = np.random.default_rng(5)
    right = simulated(rng, rng.normal(size=600)).check.loo_pit()
    assert kstest(right, "uniform").pvalue > 0.05
    skewed = simulated(rng, rng.exponential(size=600) * 2.0).check.loo_pit()
    assert kstest(skewed, "uniform").pvalue < 1e-4


def test_by_is_a_name(penicillin):
    with pytest.raises(DataError, match=r"by= takes the name of a grouping factor"):
        penicillin.loo(by=["plate"])


def test_scores_of_levels_print_as_levels(penicillin_loo):
    """And stay what ArviZ takes, also after pickling."""
    levels, rows = penicillin_loo["sample"], penicillin_loo[None]
    assert str(levels) == repr(levels)
    assert "6 levels of sample log-likelihood matrix" in str(levels)
    assert "observations" not in str(levels)
    assert "144 observations" in str(rows)
    again = pickle.loads(pickle.dumps(levels))
    assert str(again) == str(levels)
    assert isinstance(levels, arviz_stats.ELPDData)
    assert set(arviz_stats.compare({"a": levels, "b": again})["elpd_diff"]) == {0.0}


# --- many sets of ratios at once -----------------------------------------------------------------


@pytest.mark.parametrize(("draws", "r_eff"), [(4000, 1.0), (400, 0.7), (100, 1.0)])
def test_smoothing_together_is_that_of_arviz_one_by_one(draws, r_eff):
    from arviz_stats.base import array_stats

    rng = np.random.default_rng(1)
    ratios = np.hstack(
        [rng.normal(size=(draws, 8)) * np.arange(1, 9) / 2, rng.standard_t(3, size=(draws, 4))]
    )
    found, k = smooth_columns(ratios, r_eff)
    for column, weights, shape in zip(ratios.T, found.T, k, strict=True):
        expected, expected_k = array_stats.psislw(-column, r_eff=r_eff)
        assert shape == pytest.approx(float(expected_k), abs=ALGEBRA)
        np.testing.assert_allclose(weights, expected, atol=ALGEBRA)


def test_ratios_that_are_all_the_same_have_no_tail():
    weights, k = smooth_columns(np.zeros((400, 2)))
    np.testing.assert_allclose(weights, -np.log(400))
    assert np.all(k == -np.inf)


@pytest.mark.parametrize("sampled", [False, True])
def test_forms_by_level_are_those_by_row(sampled):
    data = load_dataset("Orthodont").assign(w=lambda d: np.linspace(0.5, 2.0, len(d)))
    priors = {"Sex[T.Female]": HalfStudentT(4.0, 2.0)} if sampled else None
    model = LMM("distance ~ age * Sex + (age | Subject)", data, priors=priors, weights="w")
    joint = model.fit(draws=20, random_seed=1)._joint
    prior = None if sampled else beta_prior(model.priors)
    system = row_system(model.design, model.system, prior, given_beta=sampled)
    draws = slice(5, 60)
    by_row = row_forms(system, joint, draws)
    assert system.by_level
    seen = []
    for rows, leverage, residual in leverages(system, joint, draws):
        np.testing.assert_allclose(leverage, by_row.leverage(rows), rtol=ALGEBRA, atol=ALGEBRA)
        np.testing.assert_allclose(residual, by_row.residual[rows], rtol=ALGEBRA, atol=ALGEBRA)
        seen += rows.tolist()
    assert sorted(seen) == list(range(model.design.n))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("beyond_memory", [False, slow(True)])
def test_no_pareto_k_from_few_draws(beyond_memory, caplog):
    data = load_dataset("sleepstudy").iloc[:90]
    rows = [data.iloc[:50], data.iloc[50:]] if beyond_memory else data
    post = LMM("Reaction ~ Days + (Days | Subject)", rows).fit(draws=100, chains=2, random_seed=1)
    words = "Pareto k cannot be estimated from so few draws (20)"
    texts = [str(post.loo(draws=20)), str(post.loo(by="Subject", draws=20))]
    for text in texts:
        assert "elpd_loo" in text
        assert words in text
        assert "nan" not in text
        assert text.count("Pareto k") == 1
    assert caplog.text.count(words) == 2
    enough = str(post.loo(draws=100))
    assert words not in enough
    assert "(good)" in enough
