"""Numbers at the edge of double precision: fitted well, or refused in words."""

import json
import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from reference_data import FOLDER

import bayeslmm as blm
from bayeslmm.estimation.optimise import minimise
from bayeslmm.exceptions import DataError, NoEstimateError
from bayeslmm.likelihood import split_rows
from bayeslmm.likelihood.factorise import factorise_working
from bayeslmm.likelihood.marginal import marginal_system, reml_criterion, score
from bayeslmm.likelihood.moments import fixed_sensitivities

SMALL = FOLDER / "small_residuals"
FITS = json.loads((SMALL / "fits.json").read_text())["fits"]

# lme4's determinants are differences that lose the square of (sd over sigma): 1e10 times 1e-16 per
# level at residuals of 1e-5, 1e12 times 1e-16 at 1e-6.
LME4_CRITERION = {"5": 1e-3, "6": 1e-2}
# What that criterion says of standard deviations: a criterion 0.01 off is 0.05 standard errors.
LME4_SDS = {"5": 2e-3, "6": 5e-3}
LME4_BETA = 0.03  # standard errors

# Closed forms: the rounding of the data over the residuals is 1e-7 at worst.
CLOSED_FORM = 1e-6
# Two formulas for one number, each good to ten digits.
SAME = 1e-8
# The same seed and shape of the density: draws differ by the residuals' share alone.
SEED = 0.01
# Two searches for one optimum.
MODE = 1e-5


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return pd.read_csv(SMALL / "data.csv")


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(10), 6)
    x, k = rng.normal(size=60), rng.integers(0, 10, 60)
    y = 1 + 2 * x + rng.normal(size=10)[g] + rng.normal(size=60)
    data = pd.DataFrame({"y": y, "x": x, "w": k.astype(float), "z": rng.normal(size=60)})
    return data.assign(g=[f"g{i}" for i in g], h=[f"h{i % 4}" for i in range(60)])


# --- small residuals -------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(
    "lme4", FITS, ids=[f"{f['response']}-{'REML' if f['REML'] else 'ML'}" for f in FITS]
)
def test_small_residuals_are_fitted_as_by_lme4(small, lme4):
    model = blm.LMM(lme4["formula"], small)
    fit = model.reml() if lme4["REML"] else model.ml()
    size = lme4["response"][-1]
    assert fit.converged
    assert fit.criterion == pytest.approx(lme4["criterion"], abs=LME4_CRITERION[size])
    assert fit.sigma == pytest.approx(lme4["sigma"], rel=LME4_SDS[size])
    for factor, sds in lme4["sds"].items():
        assert fit.sds[factor].to_numpy() == pytest.approx(np.atleast_1d(sds), rel=LME4_SDS[size])
    gap = (fit.beta.to_numpy() - lme4["beta"]) / lme4["se"]
    assert gap == pytest.approx(0.0, abs=LME4_BETA)


def one_way(size: float) -> tuple[pd.DataFrame, dict[str, float]]:
    """A balanced one-way layout and its REML estimates in closed form."""
    rng = np.random.default_rng(8)
    levels, per_level = 9, 5
    y = rng.normal(size=levels)[:, None] + size * rng.normal(size=(levels, per_level))
    n, means = y.size, y.mean(axis=1)
    within = float(np.sum((y - means[:, None]) ** 2)) / (n - levels)
    between = per_level * float(np.var(means, ddof=1))
    criterion = (n - 1) * (1 + np.log(2 * np.pi)) + np.log(n)
    criterion += (n - levels) * np.log(within) + (levels - 1) * np.log(between)
    data = pd.DataFrame({"y": y.ravel(), "g": np.repeat([f"g{i}" for i in range(levels)], 5)})
    sd = np.sqrt((between - within) / per_level)
    se = np.sqrt(between / n)
    return data, {"sigma": np.sqrt(within), "sd": sd, "criterion": criterion, "se": se}


@pytest.mark.parametrize("exponent", range(2, 10))
def test_small_residuals_agree_with_the_analysis_of_variance(exponent):
    data, truth = one_way(10.0**-exponent)
    fit = blm.LMM("y ~ 1 + (1 | g)", data).reml()
    assert fit.converged
    assert fit.sigma == pytest.approx(truth["sigma"], rel=CLOSED_FORM)
    assert fit.sds["g"].iloc[0] == pytest.approx(truth["sd"], rel=CLOSED_FORM)
    assert fit.criterion == pytest.approx(truth["criterion"], rel=CLOSED_FORM)
    table = fit.summary()
    assert table.loc["beta[Intercept]", "std_error"] == pytest.approx(truth["se"], rel=CLOSED_FORM)
    assert table.loc["beta[Intercept]", "df"] == pytest.approx(8.0, rel=1e-3)


@pytest.mark.parametrize("method", ["laplace", pytest.param("collapsed", marks=pytest.mark.slow)])
def test_posterior_of_small_residuals(method):
    """Between levels nothing depends on residuals as small as these; sigma goes with them."""
    means = []
    for size in (1e-5, 1e-7):
        data, truth = one_way(size)
        model = blm.LMM("y ~ 1 + (1 | g)", data)
        post = model.fit(method=method, draws=100, chains=2, random_seed=1)
        draws = post.data["posterior"]
        means.append([float(draws["sd_g"].mean()), float(draws["sigma"].mean()) / truth["sigma"]])
        residual = data["y"] - post.fitted().to_numpy().ravel()
        assert np.std(residual) == pytest.approx(truth["sigma"], rel=0.2)
    assert means[0] == pytest.approx(means[1], rel=SEED)


@pytest.mark.parametrize(
    ("formula", "weighted"),
    [
        ("y ~ x + (1 | g)", False),
        ("y ~ x + (x | g)", False),
        ("y ~ 0 + x + (x || g)", True),
        ("y ~ x + (x | g) + (1 | h)", True),
        ("y ~ x + (1 | g) + (1 | h)", False),
    ],
)
def test_the_split_changes_no_number(frame, formula, weighted, monkeypatch):
    """Ordinary data, with and without the split of the rows: densities, gradients, moments."""
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 60) if weighted else None
    design = blm.LMM(formula, frame, weights=weights).design
    plain = marginal_system(design)
    for bound in ("SUSPECT", "SMALL_RESIDUAL"):
        monkeypatch.setattr(split_rows, bound, np.inf)
    split = marginal_system(design)
    assert plain.split is None and split.split is not None
    rng = np.random.default_rng(2)
    for scale in (0.0, 1e-3, 1.0, 30.0):
        facts, user = [], []
        for s in plain.products.structures:
            t = scale * np.tril(rng.normal(size=(s.n_coefs, s.n_coefs)))
            user.append(t if len(s.blocks) == 1 else np.diag(np.diag(t)))
        for plan in (plain, split):
            bases = plan.products.basis.random
            working = [np.linalg.solve(a, t) for a, t in zip(bases, user, strict=True)]
            facts.append(factorise_working(plan, working))
        a, b = facts
        assert b.rss == pytest.approx(a.rss, rel=SAME)
        assert b.beta == pytest.approx(a.beta, rel=SAME, abs=SAME)
        assert reml_criterion(b) == pytest.approx(reml_criterion(a), abs=1e-7)
        for restricted in (True, False):
            slopes = [
                [np.linalg.solve(m.T, g) for m, g in zip(bases, found, strict=True)]
                for found, bases in (
                    (score(f, 1.3, restricted=restricted).factors, f.plan.products.basis.random)
                    for f in facts
                )
            ]
            for first, second in zip(*slopes, strict=True):
                assert second == pytest.approx(first, rel=1e-6, abs=1e-6 * np.abs(first).max())
        moved = [
            [
                np.linalg.solve(m.T, z)
                for m, z in zip(f.plan.products.basis.random, parts, strict=True)
            ]
            for f, parts in zip(facts, map(fixed_sensitivities, facts), strict=True)
        ]
        for first, second in zip(*moved, strict=True):
            assert second == pytest.approx(first, rel=1e-6, abs=1e-6 * np.abs(first).max())


def test_ordinary_data_are_not_split(frame):
    assert blm.LMM("y ~ x + (1 | g)", frame).system.split is None


@pytest.mark.parametrize("method", ["reml", "map", "laplace", "collapsed"])
def test_effects_that_reproduce_the_response_are_refused(frame, method):
    levels = pd.factorize(frame["g"])[0].astype(float)
    model = blm.LMM("y ~ x + (1 | g)", frame.assign(y=levels**2))
    with pytest.raises(DataError, match="fixed and random effects reproduce the response exactly"):
        run(model, method)


# --- no estimate, but a posterior ------------------------------------------------------


@pytest.fixture(scope="module")
def saturated() -> blm.LMM:
    """Six rows, five fixed effects that reproduce the response, and three levels."""
    rng = np.random.default_rng(11)
    data = pd.DataFrame(rng.normal(size=(6, 4)), columns=list("abcd")).assign(g=list("uuvvww"))
    return blm.LMM("y ~ a + b + c + d + (1 | g)", data.assign(y=1 + data["a"] - 2 * data["c"]))


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_saturated_data_have_no_estimate(saturated, method):
    with pytest.raises(NoEstimateError, match="fixed effects reproduce the response exactly"):
        getattr(saturated, method)()


def test_a_proper_posterior_needs_no_estimate(saturated, caplog):
    with caplog.at_level(logging.WARNING):
        post = saturated.fit(draws=200, chains=2, random_seed=1)
    said = "REML has no estimate (the fixed effects reproduce the response exactly"
    assert any(message.startswith(said) for message in caplog.messages)
    assert any("searching the mode under the priors instead" in m for m in caplog.messages)
    beta = post.fixef()["mean"]
    assert beta["a"] == pytest.approx(1.0, abs=0.5)
    assert beta["c"] == pytest.approx(-2.0, abs=0.5)
    assert np.isfinite(post.summary()["mean"]).all()


def test_mode_and_evidence_without_an_estimate(saturated):
    """The evidence against a grid over the two standard deviations, by dense algebra."""
    post = saturated.fit(method="collapsed", draws=1000, random_seed=2)
    design, priors = saturated.design, saturated.priors
    gap = design.y - design.X @ priors.beta_mean
    spread = design.X @ np.linalg.solve(priors.beta_precision, design.X.T)
    same = (design.random[0].codes[:, None] == design.random[0].codes).astype(float)
    scale = np.std(design.y, ddof=1)
    nodes = scale * np.exp(np.linspace(-14.0, 8.0, 61))
    step = np.log(nodes[1] / nodes[0])
    total = []
    for sigma in nodes:
        for sd in nodes:
            v = spread + sd**2 * same + sigma**2 * np.eye(6)
            chol = np.linalg.cholesky(v)
            white = np.linalg.solve(chol, gap)
            value = -0.5 * white @ white - np.sum(np.log(np.diag(chol))) - 3 * np.log(2 * np.pi)
            value += float(priors.sigma.logpdf(sigma)) + float(priors.sd[0][0].logpdf(sd))
            total.append(value + np.log(sigma * sd))
    evidence = np.log(np.sum(np.exp(total))) + 2 * np.log(step)
    assert post.log_evidence.value == pytest.approx(evidence, abs=0.1)


def test_more_rows_than_the_effects_reproduce_are_refused(saturated):
    """With a spare row the density has no finite integral near zero, whatever the priors."""
    data = saturated.design.data
    model = blm.LMM("y ~ a + (1 | g)", data.assign(y=1 + data["a"]))
    with pytest.raises(DataError, match="fixed effects reproduce the response exactly"):
        model.fit(draws=50)


# --- scales ----------------------------------------------------------------------------

SIZE = "for double precision, as variances are squares: the largest absolute value must lie between"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.assign(w=d["z"] * 1e-100), r"The column `w` of the fixed effects reaches"),
        (lambda d: d.assign(w=d["z"] * 1e200), r"too large " + SIZE),
        (lambda d: d.assign(w=d["z"] * 1e-170), r"too small " + SIZE),
        (lambda d: d.assign(w=d["z"] * 1e-320), r"too small " + SIZE),
        (lambda d: d.assign(y=d["y"] * 1e-170), r"The response `y` reaches .*e-170 at most"),
        (lambda d: d.assign(y=d["y"] * 1e200), r"The response `y` reaches .*e\+200 at most"),
        (
            lambda d: d.assign(w=1e8 + 1e-6 * d["z"]),
            r"`w` of the fixed effects varies by .*e-06 about 1e\+08: double precision has too few",
        ),
        (lambda d: d.assign(w=1e15 + d["w"]), r"varies by 9 about 1e\+15.*Subtract the constant"),
        (lambda d: d.assign(w=1e12 + d["z"]), r"varies by .* about 1e\+12"),
    ],
)
@pytest.mark.parametrize("formula", ["y ~ x + w + (1 | g)", "y ~ x + w + (w | g)"])
def test_numbers_without_room_are_refused_in_words(frame, change, message, formula):
    for rows in (slice(None), slice(None, None, -1)):
        with pytest.raises(DataError, match=message):
            blm.LMM(formula, change(frame).iloc[rows])


def test_covariates_of_random_effects_are_checked_too(frame):
    with pytest.raises(DataError, match=r"`w` of the random effects of `g` varies by"):
        blm.LMM("y ~ x + (w | g)", frame.assign(w=1e12 + frame["z"]))
    with pytest.raises(DataError, match=r"`w` of the random effects of `g` reaches"):
        blm.LMM("y ~ x + (w | g)", frame.assign(w=1e200 * frame["z"]))


def test_a_covariate_far_from_zero_may_stand_for_the_constant(frame):
    far = frame.assign(w=1e15 + frame["w"])
    constant = blm.LMM("y ~ 1 + (1 | g)", frame).reml()
    fit = blm.LMM("y ~ 0 + w + (1 | g)", far).reml()
    assert fit.sigma == pytest.approx(constant.sigma, rel=MODE)


def test_a_constant_up_to_rounding_is_dropped_and_named(frame, caplog):
    almost = np.where(np.arange(60) == 7, 1.0 + 2.0**-50, 1.0)
    model = blm.LMM("y ~ x + w + (1 | g)", frame.assign(w=almost))
    assert model.design.aliased == ("w",)
    assert "Fixed effects dropped as linear combinations of earlier ones: w." in caplog.messages


@pytest.mark.parametrize("origin", [1e6, 1e8, 1e9])
@pytest.mark.parametrize("method", ["reml", "map"])
def test_the_origin_of_a_covariate_does_not_matter(frame, origin, method):
    """Before, the prior's precision matrix lost the square of the origin: 2.7 deviance units."""
    before = run(blm.LMM("y ~ x + w + (1 | g)", frame), method)
    after = run(blm.LMM("y ~ x + w + (1 | g)", frame.assign(w=origin + frame["w"])), method)
    assert after.criterion == pytest.approx(before.criterion, abs=1e-6)
    assert after.beta[["x", "w"]].to_numpy() == pytest.approx(
        before.beta[["x", "w"]].to_numpy(), rel=MODE
    )
    assert after.sigma == pytest.approx(before.sigma, rel=MODE)


def test_the_order_of_rows_does_not_matter(frame):
    far = frame.assign(w=1e8 + frame["w"], y=1e6 + frame["y"])
    fits = [
        blm.LMM("y ~ x + w + (1 | g)", far.sample(frac=1.0, random_state=seed)).reml()
        for seed in range(5)
    ]
    for fit in fits[1:]:
        assert fit.criterion == pytest.approx(fits[0].criterion, abs=1e-6)
        assert fit.beta[["x", "w"]].to_numpy() == pytest.approx(
            fits[0].beta[["x", "w"]].to_numpy(), rel=MODE
        )


@pytest.mark.parametrize(("y_unit", "w_unit"), [(1e45, 1e-45), (1e-45, 1e45), (1e45, 1e45)])
def test_units_within_the_range_do_not_matter(frame, y_unit, w_unit):
    formula = "y ~ x + w + (1 | g)"
    changed = frame.assign(y=frame["y"] * y_unit, w=frame["w"] * w_unit)
    models = [blm.LMM(formula, data) for data in (frame, changed)]
    for method in ("reml", "map"):
        tables = [run(model, method).summary() for model in models]
        columns = ["df", "statistic", "p_value"]
        assert tables[1].loc[:"beta[w]", columns].to_numpy() == pytest.approx(
            tables[0].loc[:"beta[w]", columns].to_numpy(), rel=1e-4
        )
    fits = [m.fit(method="collapsed", draws=200, chains=2, random_seed=1) for m in models]
    sds = [float(fit.data["posterior"]["sigma"].mean()) for fit in fits]
    assert sds[1] / y_unit == pytest.approx(sds[0], rel=0.05)


# --- weights ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda w: w * 1e300, r"The weights reach .*e\+300 at most, which is too large"),
        (lambda w: w * 1e-300, r"The weights reach .*e-300 at most, which is too small"),
        (lambda w: np.where(np.arange(60) % 2, 1e8, 1e-8), r"The weights go from 1e-08 to 1e\+08"),
        (lambda w: w + 0j, "The weights must be numbers, got complex128 values"),
        (lambda w: w + 1j, "The weights must be numbers, got complex128 values"),
        (lambda w: (w + 1j).astype(object), "The weights must be numbers, got object values"),
        (lambda w: pd.date_range("2000", periods=60), "The weights must be numbers, got datetime"),
        (lambda w: -w, "The weights must be positive and finite"),
        (lambda w: w * np.inf, "The weights must be positive and finite"),
    ],
)
def test_weights_are_refused_in_words(frame, weights, message):
    w = np.random.default_rng(2).uniform(0.5, 2.0, 60)
    with pytest.raises(DataError, match=message):
        blm.LMM("y ~ x + (1 | g)", frame, weights=weights(w))


@pytest.mark.parametrize("unit", [1e-45, 1e-25, 1e30])
def test_units_of_weights_do_not_matter(frame, unit):
    """The residual sum of squares was compared with the unweighted one of the response."""
    w = np.random.default_rng(2).uniform(0.5, 2.0, 60)
    before, after = (blm.LMM("y ~ x + (1 | g)", frame, weights=v).reml() for v in (w, w * unit))
    assert after.sigma / np.sqrt(unit) == pytest.approx(before.sigma, rel=MODE)
    assert after.sds["g"].iloc[0] == pytest.approx(before.sds["g"].iloc[0], rel=MODE)


# --- arithmetic that breaks down -------------------------------------------------------


def broken(x):
    """A criterion that cannot be computed next to where it is smallest."""
    if x[0] > 1.0:
        raise np.linalg.LinAlgError("not positive definite")
    return -float(x[0]), np.array([-1.0])


def nowhere(x):
    return float(np.log(np.float64(-1.0))), np.array([np.nan])


@pytest.mark.parametrize("objective", [broken, nowhere])
def test_a_search_ends_in_words_where_the_arithmetic_breaks_down(objective):
    optimum = minimise(objective, np.array([1.0 - 1e-6]), 1.0)
    assert not optimum.converged
    assert optimum.message.startswith("stopped")


def test_flat_priors_keep_the_error(saturated):
    model = blm.LMM(saturated.formula, saturated.design.data, priors="flat")
    with pytest.raises(NoEstimateError, match="reproduce the response exactly"):
        model.fit(draws=50)


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 40), marks=pytest.mark.slow)])
def test_random_small_designs_end_in_a_result_or_an_error_of_ours(seeds):
    """Seven rows or fewer: saturated, exactly reproduced, rounded responses."""
    methods = ("reml", "ml", "map", "laplace", "collapsed")
    for seed in seeds:
        rng = np.random.default_rng(seed)
        n = int(rng.integers(5, 8))
        p, levels = int(rng.integers(0, n - 1)), int(rng.integers(2, n))
        data = pd.DataFrame({f"x{i}": rng.normal(size=n) for i in range(p)})
        codes = np.r_[np.arange(levels), rng.integers(0, levels, n - levels)]
        sums = data.sum(axis=1).to_numpy() if p else rng.normal(size=n)
        y = [rng.normal(size=n), 1.0 + sums, np.round(rng.normal(size=n), 1), 1.0 * codes][seed % 4]
        formula = " + ".join(["y ~ 1", *data.columns, "(1 | g)"])
        model = blm.LMM(formula, data.assign(y=y, g=[f"g{i}" for i in codes]))
        for method in methods:
            try:
                run(model, method).summary()
            except blm.BayesLMMError:
                continue


def run(model, method):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if method in ("reml", "ml", "map"):
            return getattr(model, method)()
        return model.fit(method=method, draws=50, chains=2, random_seed=1)
