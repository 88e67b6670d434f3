"""Simulation-based calibration: right samplers pass, wrong ones do not, the test is exact."""

import itertools
import logging

import matplotlib
import numpy as np
import pytest
import xarray as xr
from arviz_plots import PlotCollection
from slow_cases import slow

from bayeslmm import LMM, DataError, PriorError, SamplingError, load_dataset
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.residual import PLAIN
from bayeslmm.data.building import build_design
from bayeslmm.priors.defaults import default_priors, flat_priors
from bayeslmm.report.calibration import check_calibration, ranked
from bayeslmm.sampling import calibration
from bayeslmm.sampling.calibration import (
    OUT_OF,
    band,
    counts_below,
    rank,
    run_simulations,
    uniformity,
)
from bayeslmm.sampling.nuts import compile_nuts
from bayeslmm.sampling.tree import parameter_dataset

CHAINS, DRAWS = 4, 50

SIMULATIONS = 50
"""Of an exact sampler, which passes at any number of them; power is that of the wrong ones."""


class Conjugate:
    """Normal-inverse-gamma model: standard deviations are known multiples of sigma.

    The prior of beta is N(0, sigma^2 5^2) and that of 1 / sigma^2 is Gamma(4, 4), so that the
    posterior has a closed form.
    """

    ratio, beta_scale, shape, rate, held = 0.8, 5.0, 4.0, 4.0, ()

    def __init__(self, design):
        self.design, self.table = design, default_priors(design).table
        self.columns = np.column_stack([design.X, design.Z_matrix().toarray()])
        levels = design.random[0].n_levels
        self.precision = np.diag([self.beta_scale**-2] * design.p + [self.ratio**-2] * levels)

    def sample(self, rng, size):
        sigma = rng.gamma(self.shape, 1 / self.rate, size) ** -0.5
        beta = sigma[:, None] * self.beta_scale * rng.standard_normal((size, self.design.p))
        sds, chols = (self.ratio * sigma[:, None],), (np.ones((size, 1, 1)),)
        shapes = np.empty((size, 0))
        return Points(sds=sds, chols=chols, sigma=sigma, shapes=shapes, residual=PLAIN, beta=beta)

    def posterior(self, design, rng, size):
        """Exact draws of sigma and of (beta, u), and the mean of the latter."""
        w = np.ones(design.n) if design.weights is None else design.weights
        y, x = design.y - design.offset, self.columns
        precision = x.T @ (w[:, None] * x) + self.precision
        mean = np.linalg.solve(precision, x.T @ (w * y))
        rate = self.rate + 0.5 * (y @ (w * y) - mean @ precision @ mean)
        sigma = rng.gamma(self.shape + 0.5 * design.n, 1 / rate, size) ** -0.5
        root = np.linalg.inv(np.linalg.cholesky(precision)).T
        noise = rng.standard_normal((size, len(mean))) @ root.T
        return sigma, mean + sigma[:, None] * noise, mean

    def tree(self, design, sigma, effects, chains=CHAINS):
        p, key = self.design.p, self.design.random[0].key
        values = {
            "sigma": sigma,
            "beta": effects[:, :p],
            f"sd_{key}": self.ratio * sigma[:, None],
            f"u_{key}": effects[:, p:, None],
        }
        shaped = {k: v.reshape(chains, -1, *v.shape[1:]) for k, v in values.items()}
        return xr.DataTree.from_dict({"posterior": parameter_dataset(design, shaped)})

    def refit(self, design, rng):
        sigma, effects, _ = self.posterior(design, rng, CHAINS * DRAWS)
        return self.tree(design, sigma, effects)


def unbalanced(formula="y ~ x + offset(o) + (1 | g)"):
    rng = np.random.default_rng(4)
    codes = np.repeat(range(8), [2, 3, 4, 5, 6, 7, 3, 2])
    data = {"y": rng.normal(size=32), "x": rng.normal(size=32), "o": rng.normal(size=32)}
    data |= {"g": [f"level {c}" for c in codes], "w": rng.uniform(0.5, 2, 32)}
    return build_design(formula, data, weights="w")


@pytest.fixture(scope="module")
def conjugate():
    return Conjugate(unbalanced())


def checked(conjugate, refit, n=100, seed=1):
    return check_calibration(
        conjugate.design, conjugate, lambda: refit, n=n, method="test", random_seed=seed
    )


@pytest.fixture(scope="module")
def exact(conjugate):
    return checked(conjugate, conjugate.refit, n=SIMULATIONS)


@pytest.fixture
def independent(monkeypatch):
    """Draws are known to be independent, so that their effective sizes need not be estimated."""
    monkeypatch.setattr(calibration, "effective_draws", lambda draws: np.full(len(draws), OUT_OF))


# --- verdicts --------------------------------------------------------------------------


def test_an_exact_sampler_passes(exact):
    assert exact.passed
    assert (exact.table()["verdict"] == "ok").all()
    assert exact.ranks.shape == (SIMULATIONS, 8)
    assert exact.ranks.to_numpy().min() == 0
    assert exact.ranks.to_numpy().max() == exact.draws == OUT_OF


@pytest.mark.parametrize(
    ("scale", "shift", "sign"),
    [slow(1.0, 0.7, "low ranks"), slow(2.0, 0.0, "narrow ranks"), slow(0.6, 0.0, "wide ranks")],
)
def test_wrong_spread_or_location_is_found(conjugate, scale, shift, sign):
    def refit(design, rng):
        sigma, effects, mean = conjugate.posterior(design, rng, CHAINS * DRAWS)
        spread = effects.std(axis=0)
        return conjugate.tree(design, sigma, mean + scale * (effects - mean) + shift * spread)

    check = checked(conjugate, refit)
    table = check.table()
    bad = table.index[table["verdict"] == "miscalibrated"]
    assert not check.passed
    assert set(bad) >= {"beta[Intercept]", "beta[x]", "u[g, level 0, Intercept]"}
    assert table.loc[["sigma", "sd[g, Intercept]"], "inside"].all()  # these were left as they are
    row = table.loc["beta[x]"]
    expected = {
        "narrow ranks": row["rank_sd"] < 0.25,
        "wide ranks": row["rank_sd"] > 0.32,
        "low ranks": row["rank_mean"] < 0.42,
    }
    assert expected[sign]


@pytest.mark.parametrize("factor", [0.77, slow(1.3)])
@pytest.mark.usefixtures("independent")
def test_wrong_standard_deviations_are_found(conjugate, factor):
    def refit(design, rng):
        sigma, effects, _ = conjugate.posterior(design, rng, CHAINS * DRAWS)
        return conjugate.tree(design, factor * sigma, effects)

    table = checked(conjugate, refit, n=60).table()
    assert not table.loc[["sigma", "sd[g, Intercept]", "log_likelihood"], "inside"].any()


@pytest.mark.usefixtures("independent")
def test_a_sampler_that_ignores_the_data_is_found_by_the_likelihood(conjugate):
    """Draws from the prior have uniform ranks in every parameter (Modrák et al. 2023)."""

    def refit(design, rng):
        prior = conjugate.sample(rng, CHAINS * DRAWS)
        u = prior.sds[0] * rng.standard_normal((CHAINS * DRAWS, 8))
        return conjugate.tree(design, prior.sigma, np.column_stack([prior.beta, u]))

    table = checked(conjugate, refit, n=60).table()
    assert list(table.index[table["verdict"] == "miscalibrated"]) == ["log_likelihood"]


@pytest.mark.slow
def test_dependent_draws_are_thinned(conjugate, monkeypatch):
    def refit(design, rng):
        sigma, effects, _ = conjugate.posterior(design, rng, CHAINS * 4)
        return conjugate.tree(design, sigma.repeat(25), effects.repeat(25, axis=0))

    check = checked(conjugate, refit)
    assert check.passed
    assert (check.kept < OUT_OF).to_numpy().all()
    assert "raise draws" in check.notes[-1]
    monkeypatch.setattr(calibration, "effective_draws", lambda draws: np.full(len(draws), OUT_OF))
    assert not checked(conjugate, refit).passed


# --- the test of uniformity --------------------------------------------------------------


@pytest.mark.parametrize(("n", "out_of"), [(1, 3), (4, 3), (5, 2), (3, 6)])
def test_p_values_are_those_of_an_enumeration(n, out_of):
    results = [uniformity(r, out_of) for r in itertools.product(range(out_of + 1), repeat=n)]
    statistic, p_value = np.array(results).T
    enumerated = [np.mean(statistic <= s * (1 + 1e-9)) for s in statistic]
    np.testing.assert_allclose(p_value, enumerated, atol=1e-12)


@pytest.mark.parametrize("level", [0.1, 0.01])
def test_coverage_of_the_band(level):
    n, repeats = 150, 4000
    lower, upper = band(n, OUT_OF, level)
    ranks = np.random.default_rng(6).integers(0, OUT_OF + 1, size=(repeats, n))
    shares = np.array([counts_below(row, OUT_OF) for row in ranks]) / n
    outside = np.mean(((shares < lower) | (shares > upper)).any(axis=1))
    error = np.sqrt(level * (1 - level) / repeats)
    assert outside == pytest.approx(level, abs=4 * error)  # it is discrete, but finely so


def test_leaving_the_band_is_a_small_p_value():
    rng = np.random.default_rng(2)
    lower, upper = band(60, OUT_OF, 0.05)
    left = []
    for power in np.linspace(1, 1.8, 60):
        ranks = (rng.random(60) ** power * (OUT_OF + 1)).astype(int)
        share = counts_below(ranks, OUT_OF) / 60
        left.append(bool(((share < lower) | (share > upper)).any()))
        assert left[-1] == (uniformity(ranks, OUT_OF)[1] <= 0.05)
    assert 5 < sum(left) < 55


def test_absurd_ranks_have_the_bound_as_p_value():
    statistic, p_value = uniformity(np.zeros(100, dtype=int), OUT_OF)
    assert p_value == pytest.approx(OUT_OF * statistic)
    assert p_value < 1e-100


def test_ranks_among_few_draws_are_brought_to_the_common_scale():
    rng = np.random.default_rng(8)
    found = rank(rng.standard_normal(2000), rng.standard_normal((2000, 1, 3)), rng)
    assert set(found.kept) == {3}  # too few for an effective sample size
    assert uniformity(found.ranks, OUT_OF)[1] > 0.01


def test_a_rank_is_the_number_of_draws_below():
    draws = np.random.default_rng(1).standard_normal((1, 4, 500))
    rng = np.random.default_rng(2)
    assert [int(rank(np.array([t]), draws, rng).ranks[0]) for t in (-9.0, 9.0)] == [0, OUT_OF]
    middle = int(rank(np.array([0.0]), draws, rng).ranks[0])
    assert abs(middle - OUT_OF / 2) < 20
    assert rank(np.array([0.0]), draws, rng).kept == OUT_OF


# --- failures ----------------------------------------------------------------------------


def failing(conjugate, numbers, error):
    """A sampler that fails in the simulations of these numbers."""
    calls = itertools.count()

    def refit(design, rng):
        if next(calls) in numbers:
            raise error
        return conjugate.refit(design, rng)

    return refit


@pytest.mark.parametrize("error", [SamplingError("no mode"), DataError("no mode")])
def test_failed_fits_are_counted_and_reported(conjugate, exact, error, caplog):
    with caplog.at_level(logging.WARNING, logger="bayeslmm"):
        check = checked(conjugate, failing(conjugate, {0, 3}, error), n=6)
    assert check.n == 6
    assert list(check.failures.index) == [0, 3]
    assert list(check.ranks.index) == [1, 2, 4, 5]
    assert check.ranks.equals(exact.ranks.loc[[1, 2, 4, 5]])  # the others are as without failures
    assert (check.table()["verdict"] == "ok").all()
    assert not check.passed
    assert "2 of 6 fits failed" in repr(check)
    assert f"{type(error).__name__}: no mode" in repr(check)
    assert len(caplog.records) == 2


def test_no_fit_at_all_is_an_error(conjugate):
    with pytest.raises(SamplingError, match="all 3 simulations failed; the last: SamplingError: x"):
        checked(conjugate, failing(conjugate, {0, 1, 2}, SamplingError("x")), n=3)


def test_other_errors_are_not_swallowed(conjugate):
    with pytest.raises(ZeroDivisionError):
        checked(conjugate, failing(conjugate, {1}, ZeroDivisionError()), n=3)


def test_draws_that_are_not_finite_are_a_failure(conjugate):
    def refit(design, rng):
        sigma, effects, _ = conjugate.posterior(design, rng, CHAINS * DRAWS)
        effects[0, 0] = np.nan if refit.calls == 1 else effects[0, 0]
        refit.calls += 1
        return conjugate.tree(design, sigma, effects)

    refit.calls = 0
    assert list(checked(conjugate, refit, n=3).failures.index) == [1]


# --- what is simulated --------------------------------------------------------------------


def test_only_the_response_changes(conjugate):
    seen = []

    def refit(design, rng):
        seen.append(design)
        return conjugate.refit(design, rng)

    before = conjugate.design.y.copy()
    checked(conjugate, refit, n=2)
    first, second = seen
    for design in seen:
        for name in ("X", "weights", "offset", "random"):
            assert getattr(design, name) is getattr(conjugate.design, name)
        assert not design.y.flags.writeable
    assert np.abs(first.y - second.y).max() > 0.1
    assert np.array_equal(conjugate.design.y, before)


def test_simulations_depend_on_their_own_seed_only(conjugate, exact):
    few = checked(conjugate, conjugate.refit, n=4)
    assert few.ranks.equals(exact.ranks.iloc[:4])
    assert not checked(conjugate, conjugate.refit, n=4, seed=2).ranks.equals(few.ranks)
    one, two = (checked(conjugate, conjugate.refit, 4, np.random.default_rng(5)) for _ in "12")
    assert one.ranks.equals(two.ranks)


def test_flat_priors_are_refused_by_name(conjugate):
    priors = flat_priors(conjugate.design)
    with pytest.raises(PriorError, match=r"Intercept, x, sd\[g, Intercept\], sigma"):
        run_simulations(conjugate.design, priors, lambda: conjugate.refit, ranked, n=2)


# --- the method of the model ------------------------------------------------------------


def test_names_are_those_of_the_summary():
    model = LMM("Reaction ~ Days + (Days | Subject)", load_dataset("sleepstudy"))
    check = model.check_calibration(2, method="laplace", draws=30, random_seed=1, progressbar=False)
    post = model.fit(method="laplace", draws=30, random_seed=1)
    names = list(check.ranks.columns)
    summary = list(post.summary().index)
    assert names[: len(summary)] == summary
    assert names[len(summary) :] == [
        *(f"u[Subject, {s}, {c}]" for s in (308, 335, 372) for c in ("Intercept", "Days")),
        "log_likelihood",
    ]
    assert list(check.table().index) == names


@pytest.mark.slow
def test_every_quantity_is_calibrated_where_laplace_is_nearly_exact():
    """Many groups and priors away from zero, where the approximation is good."""
    import pymc as pm

    groups = np.repeat(np.arange(40), 8)
    x = np.tile(np.linspace(-1, 1, 8), 40)
    y = np.random.default_rng(1).normal(size=320)
    scale = pm.LogNormal.dist(0.0, 0.2)
    model = LMM("y ~ x + (1 | g)", {"y": y, "x": x, "g": groups}, priors={"sd": scale})
    check = model.check_calibration(
        50, method="laplace", draws=50, random_seed=3, progressbar=False
    )
    assert check.passed, repr(check)


def test_arguments_are_checked():
    model = LMM("Yield ~ 1 + (1 | Batch)", load_dataset("Dyestuff"))
    for wrong in ({"n": 0}, {"draws": 0}, {"alpha": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            model.check_calibration(**wrong, method="laplace", progressbar=False)
    with pytest.raises(ValueError, match="method='gibbs'"):
        model.check_calibration(2, method="gibbs", progressbar=False)
    with pytest.raises(PriorError, match="Flat priors cannot be drawn from: Intercept"):
        LMM(model.formula, model.design.data, priors="flat").check_calibration(
            2, method="laplace", progressbar=False
        )


def test_the_marginal_form_is_not_compiled_for_many_responses(conjugate):
    with pytest.raises(ValueError, match="marginal"):
        compile_nuts(conjugate.design, default_priors(conjugate.design), "marginal")


def test_progress_is_shown_on_a_terminal_on_request(conjugate, capsys, monkeypatch):
    options = {"n": 2, "method": "test", "progressbar": True}
    check_calibration(conjugate.design, conjugate, lambda: conjugate.refit, **options)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the stream for a terminal
    checked(conjugate, conjugate.refit, n=2)
    assert capsys.readouterr() == ("", "")
    check_calibration(conjugate.design, conjugate, lambda: conjugate.refit, **options)
    shown = capsys.readouterr()
    assert not shown.out
    assert "Calibration" in shown.err


# --- how it is shown ----------------------------------------------------------------------


def test_texts(exact):
    text = repr(exact)
    assert f"{SIMULATIONS} simulations, ranks among 99 draws" in text
    assert "No miscalibration found in 8 parameters" in text
    assert "<table" in exact._repr_html_()
    table = exact.table()
    table["verdict"] = "changed"
    assert (exact.table()["verdict"] == "ok").all()


def test_the_plot_shows_ranks_and_band(exact):
    collection = exact.plot(backend="none", labels=["sigma", "log_likelihood"])
    assert isinstance(collection, PlotCollection)
    line = collection.viz["ecdf"]["sigma"].item()
    share = np.concatenate([[0], counts_below(exact.ranks["sigma"], OUT_OF) / SIMULATIONS, [1]])
    np.testing.assert_allclose(line["y"], share - line["x"])
    region = collection.viz["band"]["sigma"].item()
    lower, upper = band(SIMULATIONS, OUT_OF, exact.level)
    np.testing.assert_allclose(region["y_bottom"][1:-1], lower - region["x"][1:-1])
    np.testing.assert_allclose(region["y_top"][1:-1], upper - region["x"][1:-1])
    assert np.all((line["y"] >= region["y_bottom"]) & (line["y"] <= region["y_top"]))


def test_parts_of_the_plot_can_be_changed_and_left_out(exact):
    visuals = {"ecdf": {"color": "red"}, "band": False}
    collection = exact.plot(backend="none", labels="sigma", visuals=visuals)
    assert collection.viz["ecdf"]["sigma"].item()["color"] == "red"
    assert "band" not in collection.viz.children
    with pytest.raises(ValueError, match=r"No ranks of 'x'. There are ranks of: beta\[Intercept\]"):
        exact.plot(backend="none", labels="x")


def test_matplotlib_draws_it(exact):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    collection = exact.plot()
    figure = collection.viz["figure"].item()
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == list(exact.ranks)
    figure.canvas.draw()
    plt.close("all")
