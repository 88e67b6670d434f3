"""Simulated responses, the parametric bootstrap and predictive checks."""

from __future__ import annotations

import json
import logging

import arviz_plots
import arviz_stats
import numpy as np
import pandas as pd
import pytest
from monte_carlo import DEVIATIONS, EXACT, assert_mean, assert_second_moments
from reference_data import FOLDER, load_reference_data
from slow_cases import slow

import bayeslmm as blm
from bayeslmm.estimation import bootstrap as bootstrap_module
from bayeslmm.exceptions import DataError, SamplingError

BOOTSTRAP = json.loads((FOLDER / "prediction" / "prediction.json").read_text(encoding="utf-8"))[
    "bootstrap"
]


@pytest.fixture(scope="module")
def crossed():
    return blm.LMM(
        "diameter ~ 1 + (1 | plate) + (1 | sample)", blm.load_dataset("Penicillin")
    ).reml()


@pytest.fixture(scope="module")
def weighted():
    return blm.LMM("y ~ x + (x | g)", load_reference_data("sim_weights"), weights="w")


@pytest.fixture(scope="module")
def checked(sleepstudy_fit):
    return sleepstudy_fit.with_posterior_predictive(random_seed=2)


# --- simulate --------------------------------------------------------------------------


CHOSEN = [0, 1, 5, 10, 12, 30]
"""Rows of the same and of other levels."""


@pytest.mark.parametrize("name", ["sleepstudy_reml", "crossed"])
def test_simulations_of_an_estimate_have_the_covariance_v(name, request):
    fit = request.getfixturevalue(name)
    y = fit.simulate(4000, random_seed=1).to_numpy().T
    mean = fit.fitted(random_effects=False).to_numpy()
    assert_mean(y[:, CHOSEN], mean[CHOSEN])
    assert_second_moments((y - mean)[:, CHOSEN], fit.V().to_numpy()[np.ix_(CHOSEN, CHOSEN)])


@pytest.mark.parametrize("name", ["sleepstudy_reml", "crossed"])
def test_conditional_simulations_hold_the_modes(name, request):
    fit = request.getfixturevalue(name)
    y = fit.simulate(4000, target="conditional", random_seed=1).to_numpy().T
    mean = fit.fitted().to_numpy()
    assert_mean(y[:, CHOSEN], mean[CHOSEN])
    assert_second_moments((y - mean)[:, CHOSEN], fit.sigma**2 * np.eye(len(CHOSEN)))


def test_simulations_know_weights(weighted):
    fit = weighted.reml()
    y = (
        fit.simulate(4000, target="conditional", random_seed=1).to_numpy().T
        - fit.fitted().to_numpy()
    )
    assert_second_moments(y[:, CHOSEN], fit.sigma**2 * np.diag(1 / fit.design.weights[CHOSEN]))
    new = pd.DataFrame({"x": [0.0], "g": ["new"], "w": [100.0]})
    y = fit.simulate(4000, new, random_seed=1).to_numpy().T - fit.beta["Intercept"]
    expected = fit._covariances[0][0, 0] + fit.sigma**2 / 100
    assert_second_moments(y, np.array([[expected]]))


def test_simulations_of_a_posterior(sleepstudy_fit):
    y = sleepstudy_fit.simulate(4000, random_seed=1).to_numpy().T
    design = sleepstudy_fit.design
    v = np.cov(sleepstudy_fit._joint.beta.T)
    mean = design.X @ sleepstudy_fit.beta.to_numpy()
    expected = design.X @ v @ design.X.T + sleepstudy_fit.V().to_numpy()
    # draws without replacement, so their mean is that of the posterior
    assert_mean(y[:, CHOSEN], mean[CHOSEN])
    assert_second_moments((y - mean)[:, CHOSEN], expected[np.ix_(CHOSEN, CHOSEN)])


def test_tables_of_simulations(sleepstudy_fit, sleepstudy_reml):
    for fit in (sleepstudy_fit, sleepstudy_reml):
        table = fit.simulate(3, random_seed=1)
        assert table.columns.tolist() == ["sim_1", "sim_2", "sim_3"]
        assert table.index.equals(fit.design.index)
        pd.testing.assert_frame_equal(table, fit.simulate(3, random_seed=1))
        assert not np.any(table == fit.simulate(3, random_seed=2))
        assert not np.any(table["sim_1"] == table["sim_2"])
        new = pd.DataFrame({"Days": [0.0, 1.0]}, index=["a", "a"])
        assert fit.simulate(2, new, random_seed=1).index.tolist() == ["a", "a"]
        for n in (0, -1, 1.5, True, "3"):
            with pytest.raises(ValueError, match="whole number of at least 1"):
                fit.simulate(n)
        with pytest.raises(ValueError, match="target='old'"):
            fit.simulate(target="old")
    assert sleepstudy_fit.simulate(5000, {"Days": [0.0]}, random_seed=1).shape == (1, 5000)


def test_a_single_row_of_a_new_level_is_simulated(sleepstudy_reml):
    with pytest.raises(DataError, match="has not seen: 'x'"):
        sleepstudy_reml.simulate(1, {"Days": [1], "Subject": ["x"]}, target="conditional")
    y = sleepstudy_reml.simulate(2, {"Days": [1], "Subject": ["x"]}, target="new", random_seed=1)
    assert y.shape == (1, 2)


# --- bootstrap -------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.slow
def test_bootstrap_is_that_of_lme4(sleepstudy_reml):
    """Against 4000 refits of bootMer: means, and shares below its quantiles."""
    size = 150
    table = sleepstudy_reml.bootstrap(size, random_seed=1, progressbar=False).dropna()
    assert list(table.columns) == list(sleepstudy_reml.summary().index)
    for name, column in table.items():
        error = BOOTSTRAP["sd"][name] * np.sqrt(1 / len(column) + 1 / BOOTSTRAP["nsim"])
        assert abs(column.mean() - BOOTSTRAP["mean"][name]) < DEVIATIONS * error
        for p, bound in zip(
            BOOTSTRAP["quantiles"]["probs"], BOOTSTRAP["quantiles"]["values"][name], strict=True
        ):
            error = np.sqrt(p * (1 - p) * (1 / len(column) + 1 / BOOTSTRAP["nsim"]))
            assert abs(np.mean(column < bound) - p) < DEVIATIONS * error
    # the standard error of beta, by the algebra of REML
    ratio = table[["beta[Intercept]", "beta[Days]"]].std() / np.sqrt(
        np.diag(sleepstudy_reml.fit.vcov)
    )
    assert ratio.to_numpy() == pytest.approx(np.ones(2), abs=DEVIATIONS / np.sqrt(2 * size))
    low, high = table.quantile([0.025, 0.975]).to_numpy()
    points = sleepstudy_reml.summary()["estimate"].to_numpy()
    assert np.all((low < points) & (points < high))


def test_responses_of_the_bootstrap_have_the_covariance_v():
    """With strong correlations of random effects, of rows with weights."""
    data = blm.load_dataset("Machines")
    data["w"] = np.tile([0.5, 1.0, 4.0], len(data) // 3)
    fit = blm.LMM("score ~ Machine + (Machine | Worker)", data, weights="w").reml()
    y = bootstrap_module.simulate_responses(fit.design, fit.fit, 4000, np.random.default_rng(1))
    mean = fit.fitted(random_effects=False).to_numpy()
    chosen = np.arange(0, fit.nobs, 5)
    assert_mean(y[:, chosen], mean[chosen])
    assert_second_moments((y - mean)[:, chosen], fit.V().to_numpy()[np.ix_(chosen, chosen)])


@pytest.mark.slow
def test_bootstrap_of_a_singular_estimate():
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    table = reml.bootstrap(40, random_seed=1, progressbar=False)
    zero = table["sd[Batch, Intercept]"] == 0.0
    assert 0.3 < zero.mean() < 0.95  # about 0.6: a variance of zero is estimated as that or more
    assert np.isfinite(table.to_numpy()).all()
    pd.testing.assert_frame_equal(table, reml.bootstrap(40, random_seed=1, progressbar=False))


def test_bootstrap_of_weights_offsets_and_ml():
    data = load_reference_data("sim_offset")
    fit = blm.LMM("y ~ x + offset(o) + (1 | g)", data).ml()
    table = fit.bootstrap(60, random_seed=1, progressbar=False)
    error = np.sqrt(np.diag(fit.fit.vcov) / 60)
    gap = table[["beta[Intercept]", "beta[x]"]].mean() - fit.beta.to_numpy()
    assert np.all(np.abs(gap) < DEVIATIONS * error)
    n, p = fit.design.X.shape
    # ML's sigma is too small by little, never by a degree of freedom of the random effects
    assert table["sigma"].mean() == pytest.approx(fit.sigma, rel=DEVIATIONS / np.sqrt(120 * n))
    assert p == 2


def test_bootstrap_refuses_map(sleepstudy_model):
    with pytest.raises(SamplingError, match="this one is MAP"):
        sleepstudy_model.map().bootstrap(2, progressbar=False)


def fails_at(monkeypatch, numbers):
    """Let the refits of these numbers fail."""
    count = iter(range(10**6))
    fit = bootstrap_module.fit_likelihood

    def sometimes(*args):
        if next(count) in numbers:
            raise DataError("on purpose")
        return fit(*args)

    monkeypatch.setattr(bootstrap_module, "fit_likelihood", sometimes)


def test_a_failing_refit_is_replaced(monkeypatch):
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    whole = reml.bootstrap(4, random_seed=1, progressbar=False)
    fails_at(monkeypatch, {1})
    table = reml.bootstrap(3, random_seed=1, progressbar=False)
    assert table.to_numpy() == pytest.approx(whole.iloc[[0, 2, 3]].to_numpy(), rel=EXACT)


def test_too_many_failures_are_an_error(monkeypatch):
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    fails_at(monkeypatch, {1, 2, 4})
    with pytest.raises(SamplingError, match=r"2 refits failed beside 1 that .* on purpose"):
        reml.bootstrap(10, random_seed=1, progressbar=False)


def test_bootstrap_is_quiet_about_singular_refits(caplog):
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    with caplog.at_level(logging.WARNING):
        reml.bootstrap(5, random_seed=1, progressbar=False)
    assert not caplog.records


# --- posterior predictive group and ArviZ ----------------------------------------------


def test_replicates_have_the_moments_of_the_model(sleepstudy_fit, checked, sleepstudy):
    group = checked.data["posterior_predictive"]
    assert dict(group["y"].sizes) == {"chain": 4, "draw": 1000, "obs_id": 180}
    assert group["obs_id"].equals(sleepstudy_fit.data["observed_data"]["obs_id"])
    assert group["y"].attrs["label"] == "Reaction"
    y = group["y"].to_numpy().reshape(-1, 180)
    u = sleepstudy_fit._draws["u_Subject"].transpose(..., "Subject", "Subject_coef").to_numpy()
    u = u.reshape(-1, 18, 2)[:, sleepstudy_fit.design.random[0].codes]
    mean = (
        sleepstudy_fit._joint.beta @ sleepstudy_fit.design.X.T
        + u[..., 0]
        + u[..., 1] * sleepstudy_fit.design.X[:, 1]
    )
    noise = ((y - mean) / sleepstudy_fit._joint.sigma[:, None])[:, CHOSEN]
    assert_mean(noise, 0.0)
    assert_second_moments(noise, np.eye(len(CHOSEN)))
    assert "posterior_predictive" not in sleepstudy_fit.data
    assert set(checked.data.children) == set(sleepstudy_fit.data.children) | {
        "posterior_predictive"
    }


def test_the_target_of_replicates(sleepstudy_model):
    post = sleepstudy_model.fit(method="laplace", draws=500, random_seed=1)
    new = post.with_posterior_predictive(target="population", random_seed=1)
    old = post.with_posterior_predictive(random_seed=1)
    means = [
        fit.data["posterior_predictive"]["y"][..., :10].mean("obs_id").std().item()
        for fit in (new, old)
    ]
    assert means[0] > 2 * means[1]  # subjects vary more than what is known of one of them


DRAWN = {
    "plot_ppc_dist": ["predictive_dist", "observed_dist"],
    "plot_ppc_pit": ["ecdf_lines"],
    "plot_ppc_tstat": ["dist", "observed_tstat"],
    "plot_ppc_interval": ["prediction_markers", "observed_markers"],
}


@pytest.mark.parametrize("plot", DRAWN)
def test_arviz_takes_the_group_as_it_is(checked, plot):
    collection = getattr(arviz_plots, plot)(checked.data, backend="none")
    assert all("y" in collection.viz[part] for part in DRAWN[plot])


@pytest.mark.parametrize("plot", ["plot_ppc_dist", "plot_ppc_tstat"])
def test_arviz_takes_the_prior_predictive_group(sleepstudy_model, plot):
    tree = sleepstudy_model.prior_predictive(50, random_seed=1)
    collection = getattr(arviz_plots, plot)(tree, group="prior_predictive", backend="none")
    assert "y" in collection.viz[DRAWN[plot][0]]


def test_arviz_takes_them_with_the_log_likelihood(checked):
    tree = checked.with_log_likelihood().data
    assert "y" in arviz_plots.plot_loo_pit(tree, backend="none").viz["ecdf_lines"]
    pit = arviz_stats.loo_pit(tree)
    values = pit["y"].to_numpy()
    assert values.shape == (180,)
    assert np.all((values >= 0) & (values <= 1 + 1e-12))  # sums of ArviZ's weights, rounded


def test_prior_predictive_of_a_posterior(sleepstudy_fit):
    tree = sleepstudy_fit.with_prior(50, random_seed=1).data
    collection = arviz_plots.plot_ppc_dist(tree, group="prior_predictive", backend="none")
    assert "y" in collection.viz["predictive_dist"]


# --- checks ----------------------------------------------------------------------------


FUNCTIONS = {
    "mean": lambda y: np.mean(y, axis=-1),
    "sd": lambda y: np.std(y, axis=-1, ddof=1),
    "min": lambda y: np.min(y, axis=-1),
    "max": lambda y: np.max(y, axis=-1),
    "median": lambda y: np.median(y, axis=-1),
}


@pytest.mark.parametrize("statistic", ["mean", "max", slow("sd"), slow("min"), slow("median")])
@pytest.mark.parametrize("by", [None, "Subject", "Days"])
def test_tables_of_checks(sleepstudy_fit, checked, sleepstudy, statistic, by):
    function = FUNCTIONS[statistic]
    table = sleepstudy_fit.check.predictive(statistic, by=by, prob=0.5, random_seed=2)
    y = checked.data["posterior_predictive"]["y"].to_numpy().reshape(-1, 180)
    labels = pd.Series("all", sleepstudy.index) if by is None else sleepstudy[by]
    levels = sorted(set(labels))
    assert table.index.tolist() == ([statistic] if by is None else levels)
    for level, (_, row) in zip(levels, table.iterrows(), strict=True):
        rows = np.flatnonzero(labels == level)
        draws = function(y[:, rows])
        observed = function(sleepstudy["Reaction"].to_numpy()[rows])
        expected = {
            "n": len(rows),
            "observed": observed,
            "mean": draws.mean(),
            "sd": draws.std(ddof=1),
            "median": np.median(draws),
            "eti50_lb": np.quantile(draws, 0.25),
            "eti50_ub": np.quantile(draws, 0.75),
            "p_value": np.mean(draws > observed),
        }
        assert row.to_dict() == pytest.approx(expected, rel=EXACT)


def test_checks_by_a_function_of_the_response(sleepstudy_fit, checked, sleepstudy):
    def spread(y):
        return y.max() - y.min()

    table = sleepstudy_fit.check.predictive(spread, by="Subject", random_seed=2)
    y = checked.data["posterior_predictive"]["y"].to_numpy().reshape(-1, 180)
    assert table["mean"].iloc[0] == pytest.approx(np.ptp(y[:, :10], axis=1).mean(), rel=EXACT)
    assert sleepstudy_fit.check.predictive(spread, random_seed=2).index.tolist() == ["spread"]


def test_several_checks_are_of_the_same_responses(sleepstudy_fit):
    both = sleepstudy_fit.check.predictive(["max", "sd"], random_seed=2)
    assert both.index.tolist() == ["max", "sd"]
    for name in both.index:
        pd.testing.assert_frame_equal(
            both.loc[[name]], sleepstudy_fit.check.predictive(name, random_seed=2)
        )
    by_subject = sleepstudy_fit.check.predictive(["max", "sd"], by="Subject", random_seed=2)
    assert by_subject.index.names == ["check", "Subject"] and len(by_subject) == 36


def test_ties_count_half(sleepstudy_fit):
    table = sleepstudy_fit.check.predictive(lambda y: 1.0, random_seed=2)
    assert table["p_value"].item() == 0.5


def test_checks_of_levels_with_a_single_row(sleepstudy):
    data = pd.concat(
        [sleepstudy.astype({"Subject": str}), sleepstudy.head(1).assign(Subject="single")]
    )
    post = blm.LMM("Reaction ~ Days + (1 | Subject)", data).fit(method="laplace", random_seed=1)
    table = post.check.predictive("sd", by="Subject", random_seed=2)
    assert table.loc["single"].drop("n").isna().all()
    assert table.drop(index="single").notna().all(axis=None)
    assert table.loc["single", "n"] == 1


def test_checks_by_nested_levels_and_without_stored_effects():
    data = blm.load_dataset("Pastes")
    model = blm.LMM("strength ~ 1 + (1 | batch / cask)", data)
    post = model.fit(draws=100, random_seed=1, store_u=False)
    name = next(f.name for f in post.design.random if ":" in f.name)
    table = post.check.predictive("mean", by=name, random_seed=2)
    assert len(table) == 30 and (table["n"] == 2).all()
    assert table["observed"].loc["A:a"] == pytest.approx(data["strength"].iloc[:2].mean())
    assert post.check.predictive("mean", by="batch", random_seed=2).shape[0] == 10


def test_a_misfit_shows(sleepstudy):
    """A covariate that the model lacks: its values are given, rows that were dropped included."""
    data = sleepstudy.assign(Reaction=sleepstudy["Reaction"].where(sleepstudy.index != 4))
    post = blm.LMM("Reaction ~ 1 + (1 | Subject)", data).fit(method="laplace", random_seed=1)
    table = post.check.predictive("mean", by=data["Days"], random_seed=2)
    assert table.index.name == "Days" and table["n"].tolist() == [18] * 4 + [17] + [18] * 5
    observed = data.groupby("Days")["Reaction"].mean()
    assert table["observed"].to_numpy() == pytest.approx(observed.to_numpy())
    kept = data["Days"].drop(4).tolist()
    other = post.check.predictive("mean", by=kept, random_seed=2)
    assert other.to_numpy() == pytest.approx(table.to_numpy())
    with pytest.raises(DataError, match="by= has 3 values, but the model has 179 rows"):
        post.check.predictive(by=[1, 2, 3])
    with pytest.raises(DataError, match="by= is missing in 1 rows"):
        post.check.predictive(by=data["Days"].replace(9.0, np.nan).where(data.index > 170, 0.0))
    assert table["p_value"].iloc[0] > 0.99 and table["p_value"].iloc[-1] < 0.01


def test_bad_checks(sleepstudy_fit):
    with pytest.raises(ValueError, match="statistic='variance': one of 'mean', 'sd'"):
        sleepstudy_fit.check.predictive("variance")
    with pytest.raises(DataError, match="by='Item' is no variable of the model; it has Subject"):
        sleepstudy_fit.check.predictive(by="Item")
    with pytest.raises(ValueError, match="target='old'"):
        sleepstudy_fit.check.predictive(target="old")
