"""Models with many random effects: surrogate, draws by conjugate gradients, stored summaries."""

import numpy as np
import pandas as pd
import pytest
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.covariance.coordinates import plain_coordinates
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood import elimination, iterative_draws
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.iterative_draws import draw_iteratively
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.sampling import collapsed, surrogate
from bayeslmm.sampling.groups import PROBABILITIES
from bayeslmm.sampling.surrogate import polynomial_degrees

# Largest of many standard normal scores: exceeded once in about 3,000 runs per hundred scores.
MAX_SCORE = 5.0

# Two estimates of a posterior mean from 4,000 nearly independent draws each, in posterior sds:
# 5 / sqrt(2000).
MEAN_GAP = 0.11


def crossed(rows: int = 900, seed: int = 0) -> pd.DataFrame:
    """Two crossed grouping factors, the smaller with a random slope."""
    rng = np.random.default_rng(seed)
    g, h = rng.integers(0, 60, rows), rng.integers(0, 25, rows)
    x = rng.normal(size=rows)
    u, v, w = rng.normal(0, 0.8, 60), rng.normal(0, 1.0, 25), rng.normal(0, 0.5, 25)
    y = 1 + 0.5 * x + u[g] + v[h] + w[h] * x + rng.normal(size=rows)
    return pd.DataFrame({"y": y, "x": x, "g": g, "h": h})


def slopes(groups: int, rows: int = 5, seed: int = 0) -> pd.DataFrame:
    """One grouping factor with correlated slopes."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    x = rng.normal(size=len(g))
    u = rng.normal(size=(groups, 2)) @ np.array([[1.0, 0.3], [0.0, 0.5]])
    return pd.DataFrame(
        {"y": 1 + 0.5 * x + u[g, 0] + u[g, 1] * x + rng.normal(size=len(g)), "x": x, "g": g}
    )


CROSSED = "y ~ x + (1 | g) + (x | h)"
SLOPES = "y ~ x + (x | g)"
GROUPS = 80


@pytest.fixture(scope="module")
def model() -> blm.LMM:
    return blm.LMM(SLOPES, slopes(GROUPS))


@pytest.fixture(scope="module")
def stored(model) -> blm.Posterior:
    return model.fit(random_seed=1)


@pytest.fixture(scope="module")
def summarised(model) -> blm.Posterior:
    return model.fit(random_seed=1, store_u=False)


def gaps(first: blm.Posterior, second: blm.Posterior) -> pd.Series:
    """Differences of means of all parameters in posterior standard deviations."""
    a, b = first.summary(), second.summary()
    return (a["mean"] - b["mean"]).abs() / a["sd"]


@pytest.mark.parametrize("formula", [SLOPES, slow(CROSSED)])
def test_a_surrogate_gives_the_exact_posterior(formula, model, stored, monkeypatch):
    exact = stored
    if formula == CROSSED:
        monkeypatch.setattr(surrogate, "is_dear", lambda system: False)
        model = blm.LMM(formula, crossed())
        exact = model.fit(random_seed=1)
    monkeypatch.setattr(surrogate, "is_dear", lambda system: True)
    fast = model.fit(random_seed=2)
    assert exact.data.attrs["surrogate_error"] == 0.0
    assert 0 < fast.data.attrs["surrogate_error"] < 0.005
    assert fast.diagnostics.evaluations < 0.1 * exact.diagnostics.evaluations
    assert gaps(exact, fast).max() < MEAN_GAP
    sds = fast.summary()["sd"] / exact.summary()["sd"]
    assert np.abs(np.log(sds)).max() < MEAN_GAP
    difference = exact.log_evidence.value - fast.log_evidence.value
    assert abs(difference) < 5 * np.hypot(exact.log_evidence.error, fast.log_evidence.error)


def test_a_surrogate_that_does_not_fit_gives_way_to_the_exact_density(monkeypatch, caplog):
    monkeypatch.setattr(surrogate, "is_dear", lambda system: True)
    monkeypatch.setattr("bayeslmm.sampling.surrogate.TYPICAL_ERROR", 0.0)
    with caplog.at_level("INFO"):
        post = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit(random_seed=1)
    assert post.data.attrs["surrogate_error"] == 0.0
    assert "no polynomial surrogate is accurate enough: evaluating exactly" in caplog.messages


def test_polynomial_terms_are_the_cheapest_and_distinct():
    ratio = np.array([0.5, 5.0])
    cost = np.log(ratio + np.sqrt(ratio**2 + 1))
    degrees = polynomial_degrees(ratio, 30)
    assert len(np.unique(degrees, axis=0)) == 30
    every = np.array([(i, j) for i in range(15) for j in range(15)])
    assert np.sort(degrees @ cost) == pytest.approx(np.sort(every @ cost)[:30])
    assert degrees[:, 0].max() > degrees[:, 1].max()


@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_conjugate_gradients_draw_from_the_conditional_distribution(spread, monkeypatch):
    """With spread, every point has its own covariance matrix: scores use each point's moments."""
    size = 1500
    plan = blm.LMM(CROSSED, crossed()).system
    rng = np.random.default_rng(3)
    x = np.array([-0.2, 0.0, -0.7, 0.2, 0.0]) + spread * rng.uniform(-1, 1, (size, 5))
    x = np.repeat(x[:: size // 15], size // 15, axis=0)
    points = plain_coordinates(plan.products.structures).points(x)
    beta = np.tile([1.0, 0.5], (size, 1))
    monkeypatch.setattr(iterative_draws, "PER_NODE", 400)
    drawn = draw_iteratively(plan, points, beta, rng)
    scores = [np.empty_like(u) for u in drawn]
    for i in range(0, size, size // 15):
        rows = slice(i, i + size // 15)
        fact = factorise(plan, [t[i] for t in points.factors])
        basis = plan.products.basis
        working = np.linalg.solve(basis.fixed, beta[i] - basis.shift)
        modes, _ = conditional_modes(fact, working)
        covs = conditional_covariances(fact, given_beta=True)
        for f, (mode, cov, a) in enumerate(zip(modes, covs, basis.random, strict=True)):
            sd = points.sigma[i] * np.sqrt(np.einsum("ka,jab,kb->jk", a, cov, a))
            scores[f][rows] = (drawn[f][rows] - mode @ a.T) / sd
    z = np.concatenate([s.reshape(size, -1) for s in scores], axis=1)
    assert np.abs(z.mean(axis=0)).max() * np.sqrt(size) < MAX_SCORE
    assert np.abs((z**2).mean(axis=0) - 1).max() * np.sqrt(size / 2) < MAX_SCORE


def test_conjugate_gradients_keep_the_correlations_of_the_random_effects():
    plan = blm.LMM(CROSSED, crossed()).system
    size = 2000
    x = np.tile([-0.2, 0.0, -0.7, 0.2, 0.0], (size, 1))
    points = plain_coordinates(plan.products.structures).points(x)
    beta = np.tile([1.0, 0.5], (size, 1))
    samples = []
    for seed, draw in enumerate((draw_iteratively, _draw_directly)):
        effects = draw(plan, points, beta, np.random.default_rng(seed))
        samples.append(np.concatenate([u.reshape(size, -1) for u in effects], axis=1))
    gap = np.corrcoef(samples[0].T) - np.corrcoef(samples[1].T)
    assert np.abs(gap).max() * np.sqrt(size / 2) < MAX_SCORE + 0.5  # 6,000 correlations


def _draw_directly(plan, points, beta, rng):
    from bayeslmm.likelihood.draws import draw_random

    assert plan.sums is not None
    return draw_random(plan, points, beta, rng)


def test_conjugate_gradients_start_at_a_singular_node():
    plan = blm.LMM(CROSSED, crossed()).system
    x = np.tile([-0.2, -60.0, -60.0, 0.2, 0.0], (40, 1))
    points = plain_coordinates(plan.products.structures).points(x)
    beta = np.tile([1.0, 0.5], (40, 1))
    effects = draw_iteratively(plan, points, beta, np.random.default_rng(0))
    assert all(np.all(np.isfinite(u)) for u in effects)
    assert np.abs(effects[1]).max() < 1e-20


@pytest.mark.slow
def test_a_large_dense_tail_gives_the_same_posterior(monkeypatch):
    data = crossed(500)
    small = blm.LMM(CROSSED, data).fit(random_seed=1)
    monkeypatch.setattr(elimination, "LARGEST_TAIL", 0)
    monkeypatch.setattr(surrogate, "is_dear", lambda system: True)
    large = blm.LMM(CROSSED, data).fit(random_seed=2)
    assert gaps(small, large).max() < MEAN_GAP
    for group, sds in small.ranef_sd().items():
        shift = (small.ranef()[group] - large.ranef()[group]).abs() / sds
        assert shift.to_numpy().max() < MEAN_GAP


def test_draws_are_stored_where_they_fit(model, monkeypatch):
    assert collapsed.effects_fit(model.design, 4000)
    monkeypatch.setattr(collapsed, "LARGEST_U", 8 * 4000 * 2 * GROUPS - 1)
    assert not collapsed.effects_fit(model.design, 4000)
    monkeypatch.setattr(collapsed, "LARGEST_U", 8 * 400 * 2 * GROUPS - 1)
    post = model.fit(random_seed=1, draws=100)
    assert "u_g" not in post.data["posterior"] and "random_effects" in post.data
    assert any("draw_u() draws those of chosen levels" in note for note in post.notes)


def test_summaries_are_those_of_the_draws(stored, summarised):
    sds = stored.ranef_sd()["g"]
    gap = (stored.ranef()["g"] - summarised.ranef()["g"]).abs() / sds
    assert gap.to_numpy().max() < MEAN_GAP / 1.4
    ratio = summarised.ranef_sd()["g"] / sds
    assert np.abs(np.log(ratio.to_numpy())).max() < MEAN_GAP / 1.4
    draws = stored.data["posterior"]["u_g"].to_numpy().reshape(4000, -1)
    quantiles = summarised.data["random_effects"]["u_g_quantile"].to_numpy()
    for probability, values in zip(PROBABILITIES, quantiles, strict=True):
        below = (draws < values.reshape(-1)).mean(axis=0)
        error = np.sqrt(probability * (1 - probability) / 4000)
        assert np.abs(below - probability).max() / error < MAX_SCORE


def test_summaries_serve_the_results(stored, summarised):
    assert list(summarised.summary().index) == list(stored.summary().index)
    assert summarised.fitted().corr(stored.fitted()) > 0.999
    assert summarised.coef()["g"].shape == (GROUPS, 2)
    rows = summarised.tidy("ran_vals", prob=0.95)
    assert len(rows) == 2 * GROUPS
    assert (rows["conf_low"] < rows["estimate"]).all() and (
        rows["estimate"] < rows["conf_high"]
    ).all()


def test_what_needs_draws_says_so(summarised):
    with pytest.raises(SamplingError, match=r"known only for prob 0\.95, 0\.89 and kind 'eti'"):
        summarised.tidy("ran_vals", prob=0.5)
    with pytest.raises(SamplingError, match=r"draw_u\(levels\), or fit with store_u=True"):
        summarised.tidy("ran_coefs")
    with pytest.raises(SamplingError, match="are not stored because there are too many"):
        summarised.with_log_likelihood()


def test_chosen_levels_can_be_drawn(summarised):
    drawn = summarised.draw_u([3, "7"], random_seed=1)
    assert drawn.dims == ("chain", "draw", "g_coef", "g")
    assert drawn.sizes == {"chain": 4, "draw": 1000, "g": 2, "g_coef": 2}
    assert list(drawn["g"].to_numpy()) == ["3", "7"]
    mean, sd = summarised.ranef()["g"].iloc[[3, 7]], summarised.ranef_sd()["g"].iloc[[3, 7]]
    gap = (drawn.mean(("chain", "draw")).to_numpy().T - mean.to_numpy()) / sd.to_numpy()
    assert np.abs(gap).max() < MEAN_GAP / 1.4


@pytest.mark.slow
def test_crossed_effects_can_be_drawn():
    post = blm.LMM(CROSSED, crossed(400)).fit(random_seed=1, store_u=False)
    drawn = post.draw_u(group="h", random_seed=1)
    gap = drawn.mean(("chain", "draw")).to_numpy().T - post.ranef()["h"].to_numpy()
    assert np.abs(gap / post.ranef_sd()["h"].to_numpy()).max() < MEAN_GAP / 1.4


def test_drawing_unknown_levels_is_refused(summarised):
    with pytest.raises(DataError, match="g has no level 999"):
        summarised.draw_u([999])
    with pytest.raises(DataError, match="'k' is no grouping factor: they are g"):
        summarised.draw_u(group="k")
    post = blm.LMM(CROSSED, crossed(300)).fit(draws=20, random_seed=1)
    with pytest.raises(DataError, match="Several grouping factors: give group=, one of g, h"):
        post.draw_u()


@pytest.mark.slow
def test_the_million_groups_path_in_small(monkeypatch):
    """Every shortcut for many levels at once, against the plain computation."""
    model = blm.LMM(SLOPES, slopes(400, seed=4))
    plain = model.fit(random_seed=1)
    monkeypatch.setattr(surrogate, "is_dear", lambda system: True)
    monkeypatch.setattr(collapsed, "is_dear", lambda system: True)
    quick = model.fit(random_seed=2, store_u=False)
    assert quick.diagnostics.evaluations < 200
    assert gaps(plain, quick).max() < MEAN_GAP
    gap = (plain.ranef()["g"] - quick.ranef()["g"]) / plain.ranef_sd()["g"]
    assert np.abs(gap.to_numpy()).max() < MEAN_GAP / 1.4
