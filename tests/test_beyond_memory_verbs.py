"""What sums over rows suffice for: equal to the answer of rows in memory, or in distribution."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from slow_cases import one_in, slow
from test_beyond_memory import batches

import bayeslmm as blm
from bayeslmm.checks.accessors import EstimateChecks, PosteriorChecks
from bayeslmm.estimation.bootstrap import simulate_responses
from bayeslmm.exceptions import BayesLMMError, DataError
from bayeslmm.likelihood.crossprod import cross_products
from bayeslmm.likelihood.simulated import noise_of, simulated_design
from bayeslmm.plots.accessors import EstimatePlots, PosteriorPlots
from bayeslmm.plots.effects import shrinkage
from bayeslmm.plots.model_accessor import ModelPlots
from bayeslmm.sampling.joint_draws import points_of_fits

RELATIVE = 1e-8
"""Of answers of one estimate: sums in another order differ by rounding, searches end within it."""

NORMAL = 4.5
"""Standard errors by which two averages may differ: about 1 in 150,000 for each of some hundred."""


def both(formula, frame, **options):
    """The model of data in memory and that of their batches."""
    return blm.LMM(formula, frame, **options), blm.LMM(formula, batches(frame), **options)


def assert_same(found, expected, relative=RELATIVE):
    pd.testing.assert_frame_equal(found, expected, rtol=relative, atol=relative)


def weighted(name):
    """A data set with weights, an offset and a covariate, and some rows left out."""
    frame, rng = blm.load_dataset(name), np.random.default_rng(1)
    n = len(frame)
    extra = {"w": rng.uniform(0.5, 2, n), "base": rng.normal(size=n), "x": rng.normal(5, 2, n)}
    return frame.assign(**extra, f=np.where(np.arange(n) % 3, "a", "b")).drop(index=[3, 7, 8, 20])


# --- every verb ------------------------------------------------------------------------

MODELS = {
    "one factor": ("distance ~ x * f + offset(base) + (x | Subject)", "Orthodont", "Subject"),
    "crossed": ("diameter ~ x * f + (1 | plate) + (1 | sample)", "Penicillin", "plate"),
}

ROW = {"x": [4.0], "f": ["a"], "base": [0.1], "Subject": ["M01"], "plate": ["a"], "sample": ["A"]}

QUICK = {"random_seed": 1, "progressbar": False}

ARGUMENTS = {
    "LMM": {
        "fit": {"method": "laplace", "draws": 4, "chains": 1, "random_seed": 1},
        "with_source": {"source": "frame"},
        "prior_predictive": {"draws": 3},
        "implied_priors": {"draws": 40},
        "check_calibration": {"n": 1, "draws": 20, **QUICK},
        "update": {"formula": "~ . - x:f"},
        "all_fit": {"optimisers": ["L-BFGS-B"]},
    },
    "fits": {
        "contest": {"L": [[0.0, 1.0, 0.0, 0.0]]},
        "with_df": {"df": "kenward-roger"},
        "hypothesis": {"expressions": "x = 0"},
        "means": {"variables": "f", "weights": "proportional"},
        "contrasts": {"variables": "f"},
        "slopes": {"variable": "x"},
        "comparisons": {"variable": "f"},
        "bootstrap": {"n": 2, **QUICK},
        "simulate": {"n": 2},
        "findings": {"random_seed": 1},
        "kfold": {"K": 2, "draws": 20, **QUICK},
        "save": {"path": "fit.nc"},
        "extend": {"draws": 4},
        "draw_u": {"group": "group"},
        "impute": {"arm": "f", "reference": "a"},
        "reference_based_effect": {"arm": "f", "reference": "a"},
        "with_groups": {},
        "compare_reml": {"reml": "reml"},
        "with_source": {"source": "frame"},
        "predict": {"new": ROW},
        "predict_draws": {"new": ROW},
    },
    "plots": {
        "fitted": {"group": "group", "backend": "none"},
        "caterpillar": {"group": "group", "backend": "none"},
        "new_level": {"group": "group", "backend": "none"},
        "shrinkage": {"group": "group", "backend": "none"},
        "reml": {"reml": "reml", "backend": "none"},
        "contrasts": {"variables": "f", "backend": "none"},
        "comparisons": {"variable": "f", "backend": "none"},
        "slopes": {"variable": "x", "along": "f", "backend": "none"},
        "hypothesis": {"expressions": "x = 0", "backend": "none"},
        "profile": {"labels": ["beta[x]", "sigma"], "backend": "none"},
    },
    "checks": {},
}
"""What verbs need to be told; a name of what the test has stands for it."""


@pytest.fixture(scope="module", params=one_in(2, MODELS))
def case(request):
    formula, name, group = MODELS[request.param]
    frame = weighted(name)
    if group == "Subject":
        frame = frame[frame["Subject"].str[1:].astype(int) <= 6]
    model = blm.LMM(formula, batches(frame), weights="w")
    post = model.fit(draws=60, chains=2, random_seed=1)
    return {"model": model, "reml": model.reml(), "post": post, "frame": frame, "group": group}


WAYS_OUT = ("data frame in memory", "missing=", "form='marginal' needs no rows")
"""What an error tells to do: one of these."""

OWNERS = {
    "LMM": (blm.LMM, lambda case: case["model"], "LMM"),
    "Estimate": (blm.Estimate, lambda case: case["reml"], "fits"),
    "Posterior": (blm.Posterior, lambda case: case["post"], "fits"),
    "LMM.plot": (ModelPlots, lambda case: case["model"].plot, "plots"),
    "Estimate.check": (EstimateChecks, lambda case: case["reml"].check, "checks"),
    "Posterior.check": (PosteriorChecks, lambda case: case["post"].check, "checks"),
    "Estimate.plot": (EstimatePlots, lambda case: case["reml"].plot, "plots"),
    "Posterior.plot": (PosteriorPlots, lambda case: case["post"].plot, "plots"),
}


ROWS = {"R", "V", "heterogeneity", "predict_missing", "simulate", "study", "to_marginaleffects"}
DRAWN = {"covariance", "fitted", "forest", "residuals"}
REFUSED = {
    "LMM": {"X", "Z", "pymc", "study", "y"},
    "Estimate": ROWS,
    "Posterior": ROWS
    | {"impute", "reference_based_effect"}
    | {"with_log_likelihood", "with_posterior_predictive"},
    "LMM.plot": {"prior_predictive"},
    "Estimate.check": set(),
    "Posterior.check": {"predictive"},
    "Estimate.plot": DRAWN,
    "Posterior.plot": DRAWN | {"predictive"},
}
"""What needs all rows in memory."""


BY_ITSELF = {"report", "robust"}
"""What is long, below, and what crossed grouping factors do not have: tested where it is there."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("owner", OWNERS)
def test_every_verb_answers_or_says_why_not(owner, case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kind, of, table = OWNERS[owner]
    refused = set()
    for name in [name for name in dir(kind) if not name.startswith("_") and name not in BY_ITSELF]:
        options = ARGUMENTS[table].get(name, {"backend": "none"} if table == "plots" else {})
        options = {k: case.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
        try:
            verb = getattr(of(case), name)
            if inspect.ismethod(verb) and verb.__self__ is not kind:
                verb(**options)
        except BayesLMMError as error:
            assert any(words in str(error) for words in WAYS_OUT), (name, error)
            refused.add(name)
    assert refused == REFUSED[owner]


# --- tests, means and shares -----------------------------------------------------------

FIXED = {
    "cake": "angle ~ recipe * temperature + (1 | recipe:replicate)",
    "Machines": "score ~ Machine + (0 + Machine | Worker)",
    "Oats": "yield ~ nitro * C(Variety, Sum) + (1 | Block / Variety)",
    "Orthodont": "distance ~ age * Sex + I(age**2) + (age | Subject)",
    "Penicillin": "diameter ~ f * poly(x, 2) + log(x + 9) + (1 | plate) + (1 | sample)",
    "Pixel": "pixel ~ 0 + Side + day:Side + (day | Dog)",
    "sleepstudy": "Reaction ~ bs(Days, knots=[4]) + I(Days > 3):f + (1 | Subject)",
}


@pytest.mark.parametrize(
    "name", [slow(name) if name in ("Machines", "Orthodont") else name for name in FIXED]
)
def test_terms_are_tested_as_with_rows(name):
    frame = weighted(name)
    memory, streamed = (model.reml() for model in both(FIXED[name], frame, weights="w"))
    for kind in (1, 2, 3):
        found, expected = streamed.anova(kind), memory.anova(kind)
        assert_same(found, expected, 1e-6)  # degrees of freedom have slopes by differences
        assert found.attrs == expected.attrs


def test_empty_cells_are_found_in_sums():
    frame = weighted("Penicillin").assign(g=lambda d: np.where(np.arange(len(d)) % 2, "u", "v"))
    frame = frame[(frame["f"] != "b") | (frame["g"] != "u")]
    memory, streamed = (m.reml() for m in both("diameter ~ f * g + (1 | plate)", frame))
    found, expected = streamed.anova(), memory.anova()
    assert found.attrs == expected.attrs
    assert "Empty cells: no row has" in found.attrs["note"]
    assert_same(found, expected, 1e-6)


def test_columns_that_do_not_follow_from_sums_are_refused():
    frame = blm.load_dataset("sleepstudy")
    memory, streamed = both("Reaction ~ I(abs(Days - 3.0) < 1e-9) + (1 | Subject)", frame)
    assert len(memory.reml().anova()) == 1
    streamed = blm.LMM(streamed.formula, batches(frame.astype({"Days": float})))
    with pytest.raises(DataError, match=r"do not follow from sums over rows.*contest\(\)"):
        streamed.reml().anova()


@pytest.mark.parametrize("weights", ["proportional", "outer", "cells"])
def test_means_are_weighted_by_rows(weights):
    frame = weighted("cake").astype({"temperature": float})
    pair = both("angle ~ recipe * x + f + (1 | recipe:replicate)", frame, weights="w")
    for variables in ("recipe", "x", ["recipe", "f"]):
        memory, streamed = (m.reml().means(variables, weights=weights).table() for m in pair)
        assert_same(streamed, memory)


def test_counts_of_three_factors_need_their_interaction():
    frame = weighted("Penicillin").assign(
        g=lambda d: np.where(np.arange(len(d)) % 2, "u", "v"),
        h=lambda d: np.random.default_rng(2).choice(["r", "s"], len(d)),
    )
    memory, streamed = both("diameter ~ f * g * h + x + (1 | plate)", frame)
    means = [m.reml().means("x", weights="proportional").table() for m in (memory, streamed)]
    assert_same(means[1], means[0])
    streamed = streamed.update("~ f + g + h + x + (1 | plate)")
    with pytest.raises(DataError, match=r"`f \* g \* h` among the fixed effects"):
        streamed.reml().means("x", weights="proportional")


@pytest.mark.parametrize("name", ["Orthodont", slow("Pastes"), "Penicillin"])
def test_r2_of_the_levels_in_the_data(name):
    formula = {
        "Orthodont": "distance ~ age + offset(x) + (age | Subject)",
        "Pastes": "strength ~ 1 + (1 | batch / cask)",
        "Penicillin": "diameter ~ x + (x | plate) + (1 | sample)",
    }[name]
    memory, streamed = both(formula, weighted(name))
    fits = [(m.reml(), m.fit(draws=50, chains=1, random_seed=1)) for m in (memory, streamed)]
    for one, two in zip(*fits, strict=True):
        assert_same(two.r2("gelman"), one.r2("gelman"), 1e-6)
    for place, factor in enumerate(memory.design.random):
        own = [
            shrinkage(
                fit.design,
                place,
                fit.fit.beta,
                fit._u,
                (fit.fit.beta, fit._u[place]),
                points_of_fits([fit.fit]),
            ).no_pooling
            for fit in (fits[0][0], fits[1][0])
        ]
        assert own[0].shape == (factor.n_levels, factor.n_coefs)
        np.testing.assert_allclose(own[1], own[0], rtol=1e-6)


def test_sums_with_weights_have_no_variance_of_fitted_values():
    model = blm.LMM("distance ~ age + (1 | Subject)", batches(weighted("Orthodont")), weights="w")
    with pytest.raises(DataError, match="sums without weights"):
        model.reml().r2("gelman")
    implied = model.implied_priors(100, random_seed=1)
    assert "sd_y" not in implied.table.index
    assert "sd_y is left out" in str(implied)


# --- several models, and changed ones --------------------------------------------------

NESTED = {
    "sleepstudy": [
        "Reaction ~ Days + (1 | Subject)",
        "Reaction ~ Days + (Days || Subject)",
        "Reaction ~ Days + (Days | Subject)",
        "Reaction ~ poly(Days, 2) + (Days | Subject)",
        "Reaction ~ 1 + (Days | Subject)",
        "log(Reaction) ~ Days + (1 | Subject)",
    ],
    "Machines": [
        "score ~ Machine + (1 | Worker)",
        "score ~ Machine + (1 | Worker) + (1 | Worker:Machine)",
        "score ~ Machine + (0 + Machine | Worker)",
        "score ~ 1 + (1 | Worker)",
    ],
    "Oats": [
        "yield ~ nitro + (1 | Block)",
        "yield ~ factor(nitro) + Variety + (1 | Block / Variety)",
    ],
}


def outcome(first, second):
    """The test of two models, or the first words of why there is none."""
    try:
        return (
            blm.lrt(first, second)
            .drop(columns=["aic", "bic", "loglik", "deviance"])
            .round(4)
            .to_string()
        )
    except ValueError as error:
        return "different data" if "different" in str(error) else str(error)


@pytest.mark.parametrize("name", ["sleepstudy", slow("Machines"), "Oats"])
def test_nested_models_are_found_without_rows(name):
    frame = blm.load_dataset(name)
    fits = [[model.ml() for model in both(formula, frame)] for formula in NESTED[name]]
    for first, one in enumerate(fits):
        for two in fits[:first]:
            expected = outcome(one[0], two[0])
            assert [outcome(one[i], two[j]) for i, j in ((1, 1), (0, 1), (1, 0))] == [expected] * 3


def test_models_of_other_rows_are_told_apart():
    frame = weighted("Orthodont")
    model = blm.LMM("distance ~ x + (1 | Subject)", batches(frame))
    larger = blm.LMM("distance ~ x + (x | Subject)", batches(frame[::-1], seed=3))
    assert np.isfinite(blm.lrt(model.ml(), larger.ml())["chisq"].iloc[1])  # rows in another order
    swapped = frame.assign(x=np.roll(frame["x"], 1))
    scaled = frame.assign(distance=frame["distance"] + 1e-6 * frame["x"])
    for other in (swapped, scaled, frame.assign(Subject=frame["Subject"].astype(str) + "'")):
        with pytest.raises(ValueError, match="use different data"):
            blm.lrt(model.ml(), blm.LMM(larger.formula, batches(other)).ml())
    posts = [m.fit(draws=50, chains=1, random_seed=1) for m in (model, larger)]
    assert blm.bayes_factor(*posts).log < 5
    text = str(blm.model_table([fit.reml() for fit in (model, larger)]))
    assert "not all of the same rows" not in text


def test_changed_models_read_again(tmp_path):
    frame = weighted("Orthodont")
    frame.to_parquet(tmp_path / "all.parquet")
    memory = blm.LMM("distance ~ x + f + (x | Subject)", frame, weights="w")
    streamed = blm.LMM(memory.formula, tmp_path / "all.parquet", weights="w")
    for change in (
        {"formula": "~ . - f + age"},
        {"weights": False},
        {"fixed": {"sigma": 1.5}},
        {"data": frame.iloc[:60]},
    ):
        data = {"data": frame} if "formula" in change else {}
        expected = memory.update(**(data | change)).reml().criterion
        assert streamed.update(**change).reml().criterion == pytest.approx(expected, abs=1e-8)
    again = memory.update(data=tmp_path / "all.parquet")
    assert again.reml().criterion == pytest.approx(memory.reml().criterion, abs=1e-8)
    post = streamed.fit(draws=20, chains=1, random_seed=1)
    post.save(tmp_path / "post.nc")
    loaded = blm.LMM.from_fit(blm.load(tmp_path / "post.nc"))
    assert loaded.update(fixed={"sigma": 1.5}).reml().criterion > 0
    with pytest.raises(DataError, match=r"does not know where they are.*Give data="):
        loaded.update("~ . - f")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_reports_leave_out_what_needs_rows(case, tmp_path, monkeypatch):
    monkeypatch.setattr("bayeslmm.report.page.lay_out", lambda *_: None)
    text = case["post"].report(tmp_path / "page.html", random_seed=1).read_text()
    assert "The list of 7 data frames, were read in batches" in text
    assert "Data and fitted lines: not shown." in text
    assert f"Shrinkage of {case['group']}: not shown." not in text
    assert "Responses were simulated from the posterior" not in text


@pytest.mark.slow
def test_nuts_on_the_marginal_density_needs_no_rows():
    memory, streamed = both("diameter ~ 1 + (1 | plate) + (1 | sample)", weighted("Penicillin"))
    options = {"method": "nuts", "draws": 30, "tune": 60, "chains": 1, **QUICK}
    first = memory.fit(form="marginal", **options)
    second = streamed.fit(**options)
    assert second.data.attrs["form"] == "marginal"
    assert_same(second.fixef(), first.fixef(), 1e-4)  # trajectories part by rounding
    with pytest.raises(DataError, match=r"form='marginal' needs no rows"):
        streamed.pymc()


# --- simulated sums --------------------------------------------------------------------

SIMULATED = {
    "one factor": ("distance ~ age * Sex + (age | Subject)", "Orthodont", "w"),
    "nested": ("strength ~ 1 + (1 | batch / cask)", "Pastes", None),
    "crossed": ("diameter ~ x + (x | plate) + (1 | sample)", "Penicillin", "w"),
    "three factors": (
        "diameter ~ f + (1 | plate) + (1 | sample) + (1 | f:sample)",
        "Penicillin",
        None,
    ),
    "fixed alone": ("Reaction ~ Days", "sleepstudy", None),
}


class Unit:
    """A generator whose normal numbers are a given vector, and chi-squares zero."""

    def __init__(self, values):
        self.values = list(values)

    def standard_normal(self, shape):
        size = int(np.prod(shape))
        taken, self.values = self.values[:size], self.values[size:]
        return np.array(taken).reshape(shape)

    def chisquare(self, df):
        return 0.0


@pytest.mark.parametrize("name", SIMULATED)
def test_noise_has_the_covariance_of_the_columns(name):
    formula, data, weights = SIMULATED[name]
    memory, streamed = both(formula, weighted(data), weights=weights)
    noise, basis = noise_of(streamed.design), streamed.design.products.basis
    root = np.sqrt(memory.design.row_weights)[:, None]
    columns = []
    for factor, back in zip(memory.design.random, basis.random, strict=True):
        z = np.zeros((memory.nobs, factor.n_levels, factor.n_coefs))
        z[np.arange(memory.nobs), factor.codes] = factor.Z @ back
        columns.append(z.reshape(memory.nobs, -1))
    dense = np.hstack([*columns, memory.design.X @ basis.fixed]) * root
    size = noise.used.size + noise.root.shape[1]
    rows = [noise.draw(Unit(unit)) for unit in np.eye(size)]
    found = np.array([np.concatenate([*(z.ravel() for z in zs), x]) for x, zs, _ in rows])
    expected = dense.T @ dense
    np.testing.assert_allclose(found.T @ found, expected, atol=1e-11 * np.abs(expected).max())
    assert noise.rank == np.linalg.matrix_rank(dense)


@pytest.mark.parametrize("name", ["one factor", "crossed"])
def test_simulated_sums_are_those_of_simulated_rows(name):
    formula, data, weights = SIMULATED[name]
    memory, streamed = both(formula, weighted(data), weights=weights)
    fit, size, design = memory.reml().fit, 500, memory.design
    noise, rng = noise_of(streamed.design), np.random.default_rng(2)
    found, expected = [], []
    for y in simulate_responses(design, fit, size, np.random.default_rng(1)):
        effects = [
            rng.standard_normal((f.n_levels, f.n_coefs)) @ (fit.sigma * t).T
            for f, t in zip(design.random, fit.factors, strict=True)
        ]
        sums = simulated_design(noise, streamed.design, fit.beta, effects, fit.sigma, rng).products
        own = cross_products(
            y - design.offset,
            design.X,
            design.random,
            weights=design.weights,
            basis=replace(sums.basis, shift=least_squares(design, y)),
        )
        found.append(figures(sums))
        expected.append(figures(own))
    found, expected = np.array(found), np.array(expected)
    for one, two in ((found, expected), (found**2, expected**2)):
        error = np.sqrt((one.var(axis=0) + two.var(axis=0)) / size)
        assert np.all(np.abs(one.mean(axis=0) - two.mean(axis=0)) <= NORMAL * error + 1e-12)


def least_squares(design, y):
    """Coefficients (p,) of the weighted regression of a response on X."""
    root = np.sqrt(design.row_weights)
    return np.linalg.lstsq(design.X * root[:, None], (y - design.offset) * root)[0]


def figures(products):
    """Coefficients, residual sum of squares, and products with some random effects' columns."""
    parts = [mixed[:3, :, -1].ravel() for mixed in products.mixed]
    own = np.concatenate([products.basis.shift, [products.fixed[-1, -1]], *parts])
    return np.concatenate([own, own[:1] * own, own[-1:] * own])


def test_bootstraps_need_no_rows():
    streamed = blm.LMM(SIMULATED["one factor"][0], batches(weighted("Orthodont"))).reml()
    here = streamed.bootstrap(6, **QUICK)
    with ThreadPoolExecutor(2) as pool:
        pd.testing.assert_frame_equal(streamed.bootstrap(6, executor=pool, **QUICK), here)
    assert len(np.unique(here["sigma"])) == 6
    assert streamed.icc(uncertainty="bootstrap", draws=4, random_seed=1)["std_error"].iloc[0] > 0


@pytest.mark.slow
def test_calibration_from_sums_ranks_uniformly():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", batches(blm.load_dataset("Dyestuff")))
    check = model.check_calibration(60, method="laplace", draws=100, **QUICK)
    assert list(check.ranks.columns[:3]) == ["beta[Intercept]", "sd[Batch, Intercept]", "sigma"]
    assert (check.table()["p_adjusted"] > 1e-4).all()
    assert len(check.failures) < 6  # of responses with too little noise for sums


def test_priors_imply_what_they_imply_with_rows():
    for formula, name, _ in (SIMULATED["one factor"], SIMULATED["crossed"]):
        memory, streamed = both(formula, weighted(name))
        tables = [m.implied_priors(2000, random_seed=1).table for m in (memory, streamed)]
        shares = tables[0].index[:-2]
        assert_same(tables[1].loc[shares], tables[0].loc[shares], 1e-6)
        spread = [table.loc["sd_y", ["q25", "q50", "q75"]] for table in tables]
        np.testing.assert_allclose(spread[1], spread[0], rtol=0.05)  # of 2000 draws


def test_too_many_crossed_levels_are_refused(monkeypatch):
    model = blm.LMM(SIMULATED["crossed"][0], batches(weighted("Penicillin")))
    monkeypatch.setattr("bayeslmm.likelihood.simulated.LARGEST", 5)
    with pytest.raises(DataError, match="a matrix of 8 rows and columns"):
        model.reml().bootstrap(2)


@pytest.mark.parametrize("criterion", [slow("ml"), "reml"])
def test_profiles_do_not_depend_on_the_executor(criterion):
    fit = getattr(
        blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy")), criterion
    )()
    here = fit.confint("profile")
    with ThreadPoolExecutor(2) as pool:
        pd.testing.assert_frame_equal(fit.confint("profile", executor=pool), here, check_exact=True)
