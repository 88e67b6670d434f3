"""Integrated cross-validation equals refits, with reliable weights where conditional has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from slow_cases import some, whole

from bayeslmm import LMM, load_dataset
from bayeslmm.estimation.model import Model
from bayeslmm.sampling.engine import sample_posterior

pytestmark = pytest.mark.slow

SLEEP = ("sleepstudy", "Reaction ~ Days + (Days | Subject)")
PENICILLIN = ("Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)")

WEIGHTED = 0.05
"""Pointwise error of weighted scores: over 8 seeds their sd is 0.025 at most (one subject)."""

TOTAL = 0.1
"""Standard deviation over seeds of the total, whose terms share their draws."""

REFIT = 0.01
"""Monte Carlo error of the difference of two log evidences: 0.003 each."""

GOOD_K = 0.7

EVERY = 3
"""Rows are left out one in so many; levels all."""


def subset(design, kept):
    """The design of some rows, with all levels."""
    return replace(
        design,
        y=design.y[kept],
        offset=design.offset[kept],
        X=design.X[kept],
        index=design.index[kept],
        data=design.data[kept],
        random=tuple(f.take(kept) for f in design.random),
    )


def log_evidence(design, priors, seed, draws=1000):
    """Of a fit of the same priors to a design."""
    options = {"store_u": False, "progressbar": False}
    size = {"draws": draws, "chains": 4, "random_seed": seed}
    tree = sample_posterior(
        Model(design, priors),
        method="collapsed",
        options=options,
        **size,
    )
    return tree.attrs["log_evidence"]


def model_of(which):
    return LMM(which[1], load_dataset(which[0]))


def codes_of(design, by):
    if by is None:
        return np.arange(design.n)
    return next(factor.codes for factor in design.random if factor.name == by)


CASES = [(SLEEP, "Subject"), (PENICILLIN, "sample"), (SLEEP, None), (PENICILLIN, None)]


@pytest.mark.parametrize(("which", "by"), some(1, CASES))
def test_scores_equal_refits(which, by):
    """log p(y_g | y without g) = log p(y) - log p(y without g), each from a fit of its own."""
    model = model_of(which)
    codes = codes_of(model.design, by)
    whole = np.mean([log_evidence(model.design, model.priors, seed, 4000) for seed in range(4)])
    groups = np.arange(0, codes.max() + 1, EVERY if by is None else 1)
    rests = [
        log_evidence(subset(model.design, codes != group), model.priors, 1) for group in groups
    ]
    wanted = whole - np.array(rests)
    for seed in (1, 2):
        found = model.fit(random_seed=seed).loo(by)
        error = found.elpd_i.to_numpy()[groups] - wanted
        assert np.max(np.abs(error)) < 2 * (WEIGHTED + REFIT)
        assert np.sqrt(np.mean(error**2)) < 0.5 * WEIGHTED
        bias = 3 * REFIT * len(error) / np.sqrt(4)  # that of `whole`, shared by all
        assert abs(error.sum()) < 3 * TOTAL + bias


@pytest.mark.parametrize("which", some(1, [PENICILLIN, SLEEP]))
def test_weights_are_reliable(which):
    """For rows and levels, at every seed, also before any posterior is sampled anew."""
    model = model_of(which)
    factors = [factor.name for factor in model.design.random]
    unreliable = 0
    for seed in range(8):
        post = model.fit(random_seed=seed)
        for by in (None, *factors):
            assert float(post.loo(by).pareto_k.max()) < GOOD_K
        unreliable += int((post.loo(conditional=True).pareto_k > GOOD_K).sum())
    assert unreliable > 0


def test_weights_are_reliable_before_anything_is_sampled_anew(monkeypatch):
    monkeypatch.setattr("bayeslmm.checks.loo.RESAMPLE_K", np.inf)
    model = model_of(PENICILLIN)
    for seed in range(4):
        post = model.fit(random_seed=seed)
        for by in (None, "plate", "sample"):
            assert float(post.loo(by).pareto_k.max()) < GOOD_K


@pytest.mark.parametrize("form", ["noncentered", pytest.param("marginal", marks=whole)])
def test_nuts_draws_give_the_same(form):
    model = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    nuts = model.fit(method="nuts", form=form, random_seed=1, progressbar=False)
    collapsed = model.fit(random_seed=1)
    for by in (None, "Batch"):
        found, wanted = nuts.loo(by), collapsed.loo(by)
        assert np.max(np.abs(found.elpd_i - wanted.elpd_i)) < 2 * WEIGHTED
    assert np.max(np.abs(nuts.check.loo_pit() - collapsed.check.loo_pit())) < 0.02


def test_sampled_fixed_effects():
    """A prior that is not normal: fixed effects are weighted too, their scores little different."""
    import pymc as pm

    data = load_dataset("sleepstudy")
    prior = {"Days": pm.StudentT.dist(nu=30, mu=0, sigma=40)}
    normal = {"Days": pm.Normal.dist(0, 41)}
    scores = [LMM(SLEEP[1], data, priors=priors).fit(random_seed=1) for priors in (prior, normal)]
    assert scores[0].priors.beta_sampled
    assert not scores[1].priors.beta_sampled
    for by in (None, "Subject"):
        one, other = (post.loo(by).elpd_i.to_numpy() for post in scores)
        assert np.max(np.abs(one - other)) < 3 * WEIGHTED
