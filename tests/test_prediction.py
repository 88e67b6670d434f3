"""Predictions of a posterior: known and new levels, populations, responses, new data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from dense import case_of, random_moments
from monte_carlo import (
    DEVIATIONS,
    EXACT,
    assert_mean,
    assert_sds,
    assert_second_moments,
    draws_of,
    stored,
)
from reference_data import load_reference_data

import bayeslmm as blm
from bayeslmm.exceptions import DataError
from bayeslmm.prediction import rows as row_draws
from bayeslmm.prediction.rows import prediction_rows
from bayeslmm.sampling.joint_draws import all_levels, posterior_draws

# --- known levels ----------------------------------------------------------------------


def test_conditional_is_the_linear_predictor_of_every_draw(sleepstudy_fit):
    new = {"Days": [0.0, 4.5, 12.0], "Subject": ["308", "372", "308"]}
    u = stored(sleepstudy_fit, "Subject")[:, [0, 17, 0]]
    beta = sleepstudy_fit._joint.beta
    days = np.array(new["Days"])
    expected = beta[:, [0]] + beta[:, [1]] * days + u[:, :, 0] + u[:, :, 1] * days
    for target in ("conditional", "new"):
        for kind in ("epred", "linpred"):
            found = draws_of(sleepstudy_fit, new, target=target, kind=kind, random_seed=1)
            assert found == pytest.approx(expected, rel=EXACT)
    table = sleepstudy_fit.predict(new, prob=0.8)
    assert table["mean"].to_numpy() == pytest.approx(expected.mean(axis=0), rel=EXACT)
    assert table["sd"].to_numpy() == pytest.approx(expected.std(axis=0, ddof=1), rel=EXACT)
    assert table["median"].to_numpy() == pytest.approx(np.median(expected, axis=0), rel=EXACT)
    assert table["eti80_lb"].to_numpy() == pytest.approx(
        np.quantile(expected, 0.1, axis=0), rel=EXACT
    )


def test_rows_of_the_model(sleepstudy_fit):
    assert sleepstudy_fit.predict()["mean"].to_numpy() == pytest.approx(
        sleepstudy_fit.fitted().to_numpy(), rel=EXACT
    )
    assert sleepstudy_fit.predict().index.equals(sleepstudy_fit.design.index)


def test_known_levels_keep_their_effects_to_the_bit(sleepstudy_fit):
    rows = prediction_rows(
        sleepstudy_fit.design, {"Days": [1, 1, 1], "Subject": ["x", "335", "308"]}, "new"
    )
    ((known, fresh),) = row_draws.effects_of_rows(
        rows, sleepstudy_fit._joint, np.random.default_rng(1)
    )
    assert np.array_equal(known, stored(sleepstudy_fit, "Subject")[:, [0, 8]])
    assert fresh.shape == (4000, 1, 2)


def test_average_is_x_beta_of_every_draw(sleepstudy_fit):
    new = {"Days": [0.0, 4.5]}
    expected = sleepstudy_fit._joint.beta @ np.array([[1.0, 1.0], [0.0, 4.5]])
    assert draws_of(sleepstudy_fit, new, target="average") == pytest.approx(expected, rel=EXACT)
    assert draws_of(sleepstudy_fit, new | {"Subject": ["308", "x"]}, terms=[]) == pytest.approx(
        expected, rel=EXACT
    )


@pytest.mark.parametrize(
    ("terms", "kept"),
    [
        ("Subject", [1.0, 1.0]),
        (["Subject"], [1.0, 1.0]),
        ({"Subject": ["Intercept"]}, [1.0, 0.0]),
        ({"Subject": "Days"}, [0.0, 1.0]),
        ({"Subject": []}, [0.0, 0.0]),
    ],
)
def test_terms_choose_random_effects(sleepstudy_fit, terms, kept):
    u = stored(sleepstudy_fit, "Subject")[:, 1] * kept
    expected = sleepstudy_fit._joint.beta @ [1.0, 3.0] + u @ [1.0, 3.0]
    found = draws_of(sleepstudy_fit, {"Days": [3.0], "Subject": ["309"]}, terms=terms)
    assert found[:, 0] == pytest.approx(expected, rel=EXACT)


def test_terms_need_only_their_own_grouping_factors(penicillin_fit):
    expected = penicillin_fit._joint.beta[:, 0] + stored(penicillin_fit, "sample")[:, 2, 0]
    for target in ("conditional", "new"):
        found = draws_of(penicillin_fit, {"sample": ["C"]}, terms=["sample"], target=target)
        assert found[:, 0] == pytest.approx(expected, rel=EXACT)
    # a level that does not count may be unknown
    found = draws_of(penicillin_fit, {"sample": ["C"], "plate": ["?"]}, terms=["sample"])
    assert found[:, 0] == pytest.approx(expected, rel=EXACT)


def test_terms_of_a_population(penicillin_fit):
    new = {"plate": ["a", "a", "b"], "sample": ["A", "A", "A"]}
    found = draws_of(penicillin_fit, new, target="population", terms=["plate"], random_seed=1)
    assert np.array_equal(found[:, 0], found[:, 1])
    plate, sample = penicillin_fit._joint.covariances
    u = found - penicillin_fit._joint.beta
    assert_second_moments(u[:, [0, 2]], plate * np.eye(2))
    assert sample.mean() > 2 * plate.mean()  # what would show if samples counted


# --- new levels ------------------------------------------------------------------------


def new_effects(post, labels, **options):
    """Random effects (S, labels, 2) of levels, from predictions at Days 0, 1 and 2."""
    days = np.tile([0.0, 1.0, 2.0], len(labels))
    new = pd.DataFrame({"Days": days, "Subject": np.repeat(labels, 3)})
    draws = draws_of(post, new, target="new", random_seed=2, **options)
    deviations = draws - draws_of(post, new, target="average")
    parts = deviations.reshape(len(draws), len(labels), 3)
    # rows of a level share its effects: the third row is on the line of the first two
    assert parts[..., 2] == pytest.approx(2 * parts[..., 1] - parts[..., 0], abs=1e-9)
    return np.stack([parts[..., 0], parts[..., 1] - parts[..., 0]], axis=-1)


def test_new_levels_are_independent_and_have_the_covariance_of_each_draw(sleepstudy_fit):
    u = new_effects(sleepstudy_fit, ["x", "y", "z"])
    (roots,) = sleepstudy_fit._joint.roots
    white = np.linalg.solve(roots[:, None], u[..., None])[..., 0].reshape(len(u), 6)
    assert_mean(white, 0.0)
    assert_second_moments(white, np.eye(6))
    # not only uncorrelated: neither are their sizes
    sizes = white**2 - 1.0
    away = ~np.kron(np.eye(3), np.ones((2, 2))).astype(bool)
    products = (sizes[:, :, None] * sizes[:, None, :])[:, away]
    assert_mean(products, 0.0)


def test_covariance_of_a_new_level_is_the_mean_of_the_draws(sleepstudy_fit):
    u = new_effects(sleepstudy_fit, ["x"])[:, 0]
    (covariances,) = sleepstudy_fit._joint.covariances
    assert_second_moments(u, covariances)
    assert_second_moments(u, np.broadcast_to(sleepstudy_fit._covariances[0], (len(u), 2, 2)))


def test_correlated_slopes_follow_each_draw():
    """Draws whose correlations are opposite give new levels opposite correlations."""
    post = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy")).fit(
        method="laplace", random_seed=1
    )
    tree = post.data.copy(deep=True)
    cor = tree["posterior"]["cor_Subject"].to_numpy().copy()
    cor[:2, :, 0, 1] = cor[:2, :, 1, 0] = 0.9
    cor[2:, :, 0, 1] = cor[2:, :, 1, 0] = -0.9
    changed = post.with_groups(
        posterior=post._draws.assign(cor_Subject=(post._draws["cor_Subject"].dims, cor))
    )
    u = new_effects(changed, ["x"])[:, 0]
    sds = changed._joint.points.sds[0]
    half = len(u) // 2
    for rows, rho in ((slice(None, half), 0.9), (slice(half, None), -0.9)):
        assert_mean(np.prod(u[rows] / sds[rows], axis=1), rho)


def test_nested_factors(pastes_fit):
    names = [factor.name for factor in pastes_fit.design.random]
    u = dict(zip(names, pastes_fit._joint.effects(all_levels(pastes_fit.design)), strict=True))
    variances = dict(zip(names, (c[:, 0, 0] for c in pastes_fit._joint.covariances), strict=True))
    batch, cask = sorted(names, key=len)
    new = {"batch": ["A", "A", "A", "K", "K", "K"], "cask": ["a", "d", "d", "a", "b", "a"]}
    found = draws_of(pastes_fit, new, target="new", random_seed=1) - pastes_fit._joint.beta
    assert found[:, 0] == pytest.approx(u[batch][:, 0, 0] + u[cask][:, 0, 0], abs=EXACT)
    assert np.array_equal(found[:, 1], found[:, 2]) and np.array_equal(found[:, 3], found[:, 5])
    fresh_cask = found[:, 1] - u[batch][:, 0, 0]
    effects = np.column_stack([fresh_cask, found[:, 3], found[:, 4]])
    both, one = variances[batch] + variances[cask], variances[batch]
    zero = np.zeros_like(one)
    expected = np.array([[variances[cask], zero, zero], [zero, both, one], [zero, one, both]])
    assert_second_moments(effects, np.moveaxis(expected, 2, 0))


def test_crossed_factors(penicillin_fit):
    plate, sample = penicillin_fit._joint.covariances
    u_plate, u_sample = stored(penicillin_fit, "plate"), stored(penicillin_fit, "sample")
    new = {"plate": ["a", "z", "z", "a", "z"], "sample": ["A", "A", "G", "G", "H"]}
    found = draws_of(penicillin_fit, new, target="new", random_seed=1) - penicillin_fit._joint.beta
    assert found[:, 0] == pytest.approx(u_plate[:, 0, 0] + u_sample[:, 0, 0], abs=EXACT)
    z = found[:, 1] - u_sample[:, 0, 0]
    g = found[:, 3] - u_plate[:, 0, 0]
    assert found[:, 2] == pytest.approx(z + g, abs=1e-9)
    h = found[:, 4] - z
    zero = np.zeros(len(z))
    variances = np.array([plate[:, 0, 0], sample[:, 0, 0], sample[:, 0, 0]])
    expected = np.array([[variances[i] if i == j else zero for i in range(3)] for j in range(3)])
    assert_second_moments(np.column_stack([z, g, h]), np.moveaxis(expected, 2, 0))


def test_new_levels_of_uncorrelated_and_cell_terms():
    model = blm.LMM("score ~ 0 + Machine + (0 + Machine || Worker)", blm.load_dataset("Machines"))
    post = model.fit(method="laplace", random_seed=1)
    new = {"Machine": ["A", "B", "C"], "Worker": ["x"] * 3}
    found = draws_of(post, new, target="new", random_seed=1) - post._joint.beta
    assert_second_moments(found, post._joint.covariances[0])
    assert np.abs(post._covariances[0] - np.diag(np.diag(post._covariances[0]))).max() == 0.0


# --- random effects that are not stored ------------------------------------------------


def repeated(post, index, size):
    """Posterior draws made of one draw, `size` times, without its random effects."""
    one = post._draws.drop_vars([name for name in post._draws if str(name).startswith("u_")])
    many = one.isel(chain=[0], draw=np.full(size, index))
    return posterior_draws(post.design, lambda: post.model.system, many)


@pytest.mark.parametrize("name", ["sleepstudy_fit", "pastes_fit", "penicillin_fit", "weighted_fit"])
def test_effects_that_are_not_stored_are_joint(name, request):
    post = request.getfixturevalue(name)
    size = 6000
    joint = repeated(post, 7, size)
    wanted = [np.array([0, 3, 5])[:: 1 + i] for i in range(len(post.design.random))]
    drawn = np.concatenate([u.reshape(size, -1) for u in joint.effects(wanted)], axis=1)
    case = case_of(post.design)
    factors = [root[0] / joint.sigma[0] for root in joint.roots]
    mean, cov = random_moments(case, factors, joint.sigma[0], joint.beta[0])
    places, start = [], 0
    for factor, at in zip(post.design.random, wanted, strict=True):
        k = factor.n_coefs
        places += [start + k * level + c for level in at for c in range(k)]
        start += k * factor.n_levels
    mean, cov = mean[places], cov[np.ix_(places, places)]
    assert_mean(drawn, mean)
    assert_second_moments(drawn - mean, cov)


@pytest.mark.slow
def test_without_stored_effects_predictions_are_the_same(sleepstudy_model, sleepstudy_fit):
    lean = sleepstudy_model.fit(random_seed=1, store_u=False)
    assert "u_Subject" not in lean.data["posterior"]
    new = {"Days": [0.0, 9.0, 9.0], "Subject": ["308", "372", "new"]}
    first = draws_of(lean, new, target="new", random_seed=1)
    second = draws_of(sleepstudy_fit, new, target="new", random_seed=1)
    assert_mean(
        first - draws_of(sleepstudy_fit, new, target="new", random_seed=9).mean(axis=0), 0.0
    )
    ratio = first.std(axis=0) / second.std(axis=0)
    assert ratio == pytest.approx(np.ones(3), abs=DEVIATIONS / np.sqrt(len(first)))
    assert np.array_equal(first, draws_of(lean, new, target="new", random_seed=1))


# --- populations -----------------------------------------------------------------------


def test_population_without_units_is_independent(sleepstudy_fit):
    days = np.array([0.0, 5.0, 9.0])
    new = pd.DataFrame({"Days": days})
    found = draws_of(sleepstudy_fit, new, target="population", random_seed=1)
    deviations = found - draws_of(sleepstudy_fit, new, target="average")
    z = np.column_stack([np.ones(3), days])
    variances = np.einsum("ri,sij,rj->sr", z, sleepstudy_fit._joint.covariances[0], z)
    assert_mean(deviations, 0.0)
    assert_second_moments(deviations, variances[:, :, None] * np.eye(3))
    table = sleepstudy_fit.predict(new, target="population", random_seed=1)
    average = sleepstudy_fit.predict(new, target="average")
    assert np.all(table["sd"] > 2 * average["sd"])
    v = np.cov(sleepstudy_fit._joint.beta.T)
    total = np.einsum("ri,ij,rj->r", z, v, z) + variances.mean(axis=0)
    assert_sds(found, np.sqrt(total))


def test_rows_of_a_population_share_their_unit(sleepstudy_fit):
    """Known labels name units, and nothing else: these are drawn anew."""
    days = np.array([0.0, 5.0, 9.0, 9.0])
    new = pd.DataFrame({"Days": days, "Subject": ["308", "308", "308", "z"]})
    found = draws_of(sleepstudy_fit, new, target="population", random_seed=1)
    deviations = found - draws_of(sleepstudy_fit, new, target="average")
    z = np.column_stack([np.ones(4), days])
    expected = np.einsum("ri,sij,tj->srt", z, sleepstudy_fit._joint.covariances[0], z)
    expected[:, 3, :3] = expected[:, :3, 3] = 0.0
    assert_second_moments(deviations, expected)
    u = stored(sleepstudy_fit, "Subject")[:, 0, 0]
    assert_mean(deviations[:, 0] * (u - u.mean()), 0.0)


def test_responses_of_a_population_have_the_variance_of_v(sleepstudy_fit):
    found = draws_of(sleepstudy_fit, None, target="population", kind="response", random_seed=1)
    deviations = found - draws_of(sleepstudy_fit, None, target="average")
    chosen = [0, 9, 10, 179]
    v = sleepstudy_fit.V().to_numpy()[np.ix_(chosen, chosen)]
    assert_second_moments(deviations[:, chosen], v)


def test_nested_population(pastes_fit):
    names = [factor.name for factor in pastes_fit.design.random]
    variances = dict(zip(names, (c[:, 0, 0] for c in pastes_fit._joint.covariances), strict=True))
    batch, cask = sorted(names, key=len)
    new = {"batch": ["A", "A", "B"], "cask": ["a", "b", "a"]}
    both, one = variances[batch] + variances[cask], variances[batch]
    zero = np.zeros_like(one)
    expected = np.array([[both, one, zero], [one, both, zero], [zero, zero, both]])
    found = draws_of(pastes_fit, new, target="population", random_seed=1) - pastes_fit._joint.beta
    assert_second_moments(found, np.moveaxis(expected, 2, 0))
    # with the batch alone, every row is of a cask of its own
    new = {"batch": ["A", "A", "B"]}
    found = draws_of(pastes_fit, new, target="population", random_seed=1) - pastes_fit._joint.beta
    assert_second_moments(found, np.moveaxis(expected, 2, 0))


# --- responses -------------------------------------------------------------------------


def noise_of(post, new, **options):
    """Residual draws over sigma of each draw."""
    response = draws_of(post, new, kind="response", random_seed=3, **options)
    mean = draws_of(post, new, kind="epred", random_seed=3, **options)
    return (response - mean) / post._joint.sigma[:, None]


@pytest.mark.parametrize("target", ["conditional", "new", "population", "average"])
def test_responses_add_residuals_of_each_draw(sleepstudy_fit, target):
    new = {"Days": [0.0, 1.0, 2.0], "Subject": ["308"] * 3}
    noise = noise_of(sleepstudy_fit, new, target=target)
    assert_mean(noise, 0.0)
    assert_second_moments(noise, np.eye(3))
    assert_mean(noise**4, 3.0)
    # the residuals are those of each draw's sigma, not of an average
    sigma = sleepstudy_fit._joint.sigma
    size = (noise**2 - 1.0).mean(axis=1)
    assert_mean(size * (sigma - sigma.mean()) / sigma.std(), 0.0)


def test_weights_of_new_rows(weighted_fit):
    new = pd.DataFrame({"x": [0.0, 1.0], "g": ["g26", "g14"]})
    w = np.array([0.25, 4.0])
    plain = noise_of(weighted_fit, new)
    assert_second_moments(plain, np.eye(2))
    for data, weights in ((new.assign(w=w), None), (new, w), (new.assign(v=w), "v")):
        noise = noise_of(weighted_fit, data, weights=weights)
        assert noise == pytest.approx(plain / np.sqrt(w), abs=1e-7)
    rows = noise_of(weighted_fit, None)
    assert_sds(rows[:, :5], weighted_fit.design.weights[:5] ** -0.5)
    with pytest.raises(ValueError, match="weights= is for new rows"):
        weighted_fit.predict(weights=np.ones(weighted_fit.nobs))


# --- data and options ------------------------------------------------------------------


def test_kinds_of_frames(sleepstudy_fit):
    new = {"Days": [0.0, 9.0], "Subject": ["308", "x"]}
    expected = sleepstudy_fit.predict(new, target="new", random_seed=1)
    for frame in (pd.DataFrame(new), pl.DataFrame(new), pa.table(new)):
        table = sleepstudy_fit.predict(frame, target="new", random_seed=1)
        pd.testing.assert_frame_equal(table, expected)
    for frame in (pd.DataFrame(new), pl.DataFrame(new), pa.table(new)):
        bare = frame.select(["Days"]) if not isinstance(frame, pd.DataFrame) else frame[["Days"]]
        pd.testing.assert_frame_equal(
            sleepstudy_fit.predict(bare, target="population", random_seed=1),
            sleepstudy_fit.predict({"Days": [0.0, 9.0]}, target="population", random_seed=1),
        )


@pytest.mark.parametrize(
    "index",
    [
        ["b", "a", "b"],
        pd.MultiIndex.from_tuples([(1, "a"), (1, "b"), (2, "a")]),
        pd.date_range("2020-01-01", periods=3),
        [7, 3, 5],
    ],
)
def test_index_is_kept(sleepstudy_fit, sleepstudy_reml, index):
    new = pd.DataFrame({"Days": [0.0, 1.0, 2.0], "Subject": ["308", "309", "308"]}, index=index)
    for fit in (sleepstudy_fit, sleepstudy_reml):
        assert fit.predict(new).index.equals(new.index)
        assert fit.simulate(2, new, target="conditional", random_seed=1).index.equals(new.index)
    tree = sleepstudy_fit.predict(new, summary=False)
    labels = tree["predictions"]["pred_id"].to_numpy()
    plain = [7, 3, 5] if isinstance(index, list) and index[0] == 7 else None
    if plain is not None or isinstance(index, pd.DatetimeIndex):
        assert list(labels) == list(new.index.to_numpy())
    else:
        assert labels.tolist() == [0, 1, 2]


def test_tree_of_draws(sleepstudy_fit):
    new = pd.DataFrame({"Days": [1.0, 2.0], "Subject": ["308", "x"]}, index=["one", "two"])
    tree = sleepstudy_fit.predict(new, target="new", summary=False, draws=100, random_seed=1)
    assert dict(tree["predictions"]["mu"].sizes) == {"chain": 1, "draw": 100, "pred_id": 2}
    assert tree["predictions"]["pred_id"].values.tolist() == ["one", "two"]
    constant = tree["predictions_constant_data"]
    assert constant["X"].sel(pred_id="two", coef="Days") == 2.0
    assert (
        "y"
        in sleepstudy_fit.predict(new, target="new", kind="response", summary=False)["predictions"]
    )


def test_offsets_and_transformations():
    data = load_reference_data("sim_offset")
    post = blm.LMM("y ~ x + offset(o) + (1 | g)", data).fit(method="laplace", random_seed=1)
    new = {"x": [1.0, 1.0], "o": [0.0, 100.0], "g": ["g01", "g01"]}
    for target in ("conditional", "population", "average"):
        found = draws_of(post, new, target=target, random_seed=1)
        assert found[:, 1] - found[:, 0] == pytest.approx(np.full(4000, 100.0), rel=EXACT)


def test_splines_are_those_of_the_model(sleepstudy):
    model = blm.LMM("Reaction ~ bs(Days, df=4) + center(Days):Days + (1 | Subject)", sleepstudy)
    post = model.fit(method="laplace", random_seed=1)
    rows = sleepstudy.iloc[[3, 7]]
    whole = draws_of(post, None, target="average")
    assert draws_of(post, rows, target="average") == pytest.approx(whole[:, [3, 7]], rel=EXACT)


def test_rows_dropped_for_missing_values(sleepstudy):
    data = sleepstudy.copy()
    data.loc[[1, 5], "Reaction"] = np.nan
    post = blm.LMM("Reaction ~ Days + (1 | Subject)", data).fit(method="laplace", random_seed=1)
    assert len(post.predict()) == 178
    assert len(post.predict(data)) == 180  # the response is not needed
    assert post.predict().index.equals(data.dropna().index)


def test_thinning_seeds_and_memory(sleepstudy_fit, monkeypatch):
    new = {"Days": [1.0, 2.0], "Subject": ["308", "x"]}
    options = {"target": "new", "kind": "response", "random_seed": 4}
    table = sleepstudy_fit.predict(new, **options)
    pd.testing.assert_frame_equal(table, sleepstudy_fit.predict(new, **options))
    other = sleepstudy_fit.predict(new, target="new", kind="response", random_seed=5)
    assert not np.any(table["mean"] == other["mean"])
    rng = np.random.default_rng(4)
    pd.testing.assert_frame_equal(
        table, sleepstudy_fit.predict(new, **{**options, "random_seed": rng})
    )
    thin = draws_of(sleepstudy_fit, {"Days": [1.0]}, target="average", draws=5)
    places = [0, 1000, 2000, 2999, 3999]
    expected = (sleepstudy_fit._joint.beta @ [1.0, 1.0])[places]
    assert thin[:, 0] == pytest.approx(expected, rel=EXACT)
    many = draws_of(sleepstudy_fit, {"Days": [1.0]}, target="average", draws=10**6)
    assert len(many) == 4000
    monkeypatch.setattr(row_draws, "LARGEST", 8 * 4000 * 3)
    wide = {"Days": np.arange(5.0), "Subject": ["308"] * 5}
    with pytest.raises(DataError, match=r"Ask for fewer draws \(draws=\)"):
        sleepstudy_fit.predict(wide, summary=False)
    assert len(sleepstudy_fit.predict(wide)) == 5  # summaries are made in blocks
    wide["Subject"] = list("abcde")
    with pytest.raises(DataError, match="random effects would take"):
        sleepstudy_fit.predict(wide, target="new")
    assert len(sleepstudy_fit.predict(wide, target="new", draws=100)) == 5


def test_summaries_in_blocks_are_those_of_all(sleepstudy_fit, monkeypatch):
    from bayeslmm.prediction import predict

    options = {"target": "population", "kind": "response", "random_seed": 1}
    whole = sleepstudy_fit.predict(**options)
    monkeypatch.setattr(predict, "BLOCK", 4000 * 180)
    pd.testing.assert_frame_equal(sleepstudy_fit.predict(**options), whole)
    monkeypatch.setattr(predict, "BLOCK", 4000 * 7)
    parts = sleepstudy_fit.predict(**options)
    assert parts.index.equals(whole.index)
    # another order of the residuals, so that only their moments are the same
    assert parts["mean"].to_numpy() == pytest.approx(whole["mean"].to_numpy(), rel=0.05)
    tree = draws_of(sleepstudy_fit, None, **options)
    assert tree.mean(axis=0) == pytest.approx(parts["mean"].to_numpy(), rel=EXACT)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "marginal"}, ValueError, "target='marginal'"),
        ({"kind": "mean"}, ValueError, "kind='mean'"),
        ({"prob": 2}, ValueError, "prob=2"),
        ({"draws": 0}, ValueError, "draws=0"),
        ({"draws": 1}, ValueError, "at least 2"),
        ({"draws": 2.5}, ValueError, "draws=2.5"),
        ({"terms": ["Item"]}, ValueError, "no grouping factor 'Item'; it has 'Subject'"),
        ({"terms": {"Subject": ["Nights"]}}, ValueError, "'Nights'; it has 'Intercept', 'Days'"),
        ({"weights": "w"}, DataError, "`w` are not a column"),
        ({"weights": [1.0, -1.0]}, DataError, "weight"),
    ],
)
def test_bad_options(sleepstudy_fit, options, error, message):
    with pytest.raises(error, match=message):
        sleepstudy_fit.predict({"Days": [1.0, 2.0], "Subject": ["308", "309"]}, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertainty": "wald"}, "uncertainty='wald'"),
        ({"level": 95}, "level=95"),
        ({"draws": 1}, "draws=1"),
        ({"kind": "mean"}, "kind='mean'"),
        ({"target": "marginal"}, "target='marginal'"),
    ],
)
def test_bad_options_of_estimates(sleepstudy_reml, options, message):
    with pytest.raises(ValueError, match=message):
        sleepstudy_reml.predict(**options)


def test_bad_rows(sleepstudy_fit, sleepstudy_reml):
    for fit in (sleepstudy_fit, sleepstudy_reml):
        with pytest.raises(DataError, match=r"Subject has levels .* not seen: 'x', 'y'\."):
            fit.predict({"Days": [1, 2, 3], "Subject": ["x", "308", "y"]})
        with pytest.raises(DataError, match="no rows"):
            fit.predict({"Days": [], "Subject": []})
        with pytest.raises(DataError, match="no column `Subject`"):
            fit.predict({"Days": [1]})
        with pytest.raises(DataError, match=r"missing values .* `Days` 1"):
            fit.predict({"Days": [1, np.nan], "Subject": ["308", "308"]})
        with pytest.raises(DataError, match="`Subject`"):
            fit.predict({"Days": [1, 1], "Subject": ["308", None]}, target="new")
        with pytest.raises(DataError, match="`Subject` is missing"):
            fit.predict({"Days": [1, 1], "Subject": ["308", None]}, target="population")
        with pytest.raises(DataError, match="infinite"):
            fit.predict({"Days": [np.inf]}, target="average")
    labels = [f"n{i}" for i in range(9)]
    with pytest.raises(DataError, match="and 4 more"):
        sleepstudy_fit.predict({"Days": np.zeros(9), "Subject": labels})


@pytest.mark.slow
def test_draws_of_nuts(sleepstudy_model):
    post = sleepstudy_model.fit(
        method="nuts", random_seed=1, draws=300, chains=2, progressbar=False
    )
    new = {"Days": [0.0, 9.0], "Subject": ["308", "x"]}
    table = post.predict(new, target="new", random_seed=1)
    exact = sleepstudy_model.fit(random_seed=1).predict(new, target="new", random_seed=1)
    assert np.all(np.abs(table["mean"] - exact["mean"]) < 0.4 * exact["sd"])
    seen = {"Days": [0, 1], "Subject": ["x", "x"], "Reaction": [300.0, 310.0]}
    told = post.predict(new, target="new", observed=seen, random_seed=1)
    assert told["sd"].iloc[1] < table["sd"].iloc[1]


def test_points_of_draws_are_taken_together(sleepstudy_fit):
    """Thinning keeps the draws of different parameters together."""
    joint = sleepstudy_fit._joint.thin(7)
    rows = np.linspace(0, 3999, 7).round().astype(int)
    assert np.array_equal(joint.sigma, sleepstudy_fit._joint.points.take(rows).sigma)
    (u,) = joint.effects([np.array([2])])
    assert np.array_equal(u[:, 0], stored(sleepstudy_fit, "Subject")[rows, 2])


def test_rows_that_the_data_do_not_determine_are_named(caplog):
    """The cell (b, y) is empty, so that its coefficient is dropped."""
    cells = [("a", "x"), ("a", "y"), ("b", "x")] * 12
    rng = np.random.default_rng(2)
    data = pd.DataFrame(cells, columns=["p", "q"]).assign(
        g=np.repeat(np.arange(6), 6), y=rng.normal(size=36)
    )
    post = blm.LMM("y ~ p * q + (1 | g)", data).fit(method="laplace", random_seed=1)
    new = pd.DataFrame({"p": ["a", "b", "b"], "q": ["y", "x", "y"]}, index=["u", "v", "w"])
    caplog.clear()
    with caplog.at_level("WARNING", logger="bayeslmm.prediction"):
        post.predict(new.iloc[:2], target="average")
        assert not caplog.records
        post.predict(new, target="average")
    assert "1 of 3 rows to predict (w) are not determined by the data" in caplog.text
