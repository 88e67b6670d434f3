"""Covariance parameters that are known: fixed=, and known standard errors, se(column)."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from slow_cases import whole

import bayeslmm as blm
from bayeslmm.estimation.held import search_of
from bayeslmm.exceptions import DataError, FormulaError, PriorError, SamplingError
from bayeslmm.likelihood.log_posterior import (
    log_posterior_batch,
    log_posterior_unconstrained,
    reduce_at,
)

REFERENCE = json.loads(
    (Path(__file__).parent / "reference" / "structures" / "fixed.json").read_text(encoding="utf-8")
)
SCHOOLS = pd.DataFrame(
    {
        "y": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
        "s": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0],
        "school": list("ABCDEFGH"),
    }
)
"""Rubin (1981): effects of coaching in eight schools and their standard errors."""


@pytest.fixture(scope="module")
def bcg():
    """Log risk ratios of 13 trials of the BCG vaccine, Colditz and others (1994)."""
    known = REFERENCE["bcg"]
    return pd.DataFrame(
        {
            "y": known["yi"],
            "s": np.sqrt(known["vi"]),
            "ablat": known["ablat"],
            "trial": [f"t{i:02}" for i in range(13)],
        }
    )


@pytest.fixture(scope="module")
def orthodont():
    data = blm.load_dataset("Orthodont")
    data["root"] = np.sqrt(data["age"])
    return data


# --- software that we did not write ------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "right", "method"),
    [("reml", "1", "reml"), ("ml", "1", "ml"), ("reml_ablat", "ablat", "reml")],
)
def test_meta_analyses_are_metafors(bcg, known, right, method):
    known = REFERENCE[known]
    fit = getattr(blm.LMM(f"y ~ {right} + (1 | trial)", bcg, residual="se(s)"), method)()
    assert fit.sigma == 1.0
    assert fit.converged
    # metafor stops at a change of tau^2 of 1e-13 or after a few Fisher scoring steps
    assert fit.sds["trial"].iloc[0] == pytest.approx(known["tau"], rel=1e-5)
    np.testing.assert_allclose(fit.beta, known["beta"], rtol=1e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov)), known["se"], rtol=1e-5)
    assert fit.loglik == pytest.approx(known["loglik"], abs=1e-6)
    assert fit.n_parameters == len(known["beta"]) + 1 if len(fit.beta) > 1 else 2
    assert fit.aic == pytest.approx(-2 * fit.loglik + 2 * fit.n_parameters)


def test_profile_of_tau_is_metafors(bcg):
    fit = blm.LMM("y ~ 1 + (1 | trial)", bcg, residual="se(s)").reml()
    limits = fit.confint("profile").loc["sd[trial, Intercept]", ["conf_low", "conf_high"]]
    np.testing.assert_allclose(limits.to_list(), REFERENCE["profile_tau"], rtol=2e-4)  # its own


def test_without_heterogeneity_tests_are_normal(bcg):
    known = REFERENCE["common"]
    fit = blm.LMM("y ~ 1", bcg, residual="se(s)").ml()
    row = fit.fixef().iloc[0]
    assert row["df"] == np.inf
    assert row["estimate"] == pytest.approx(known["beta"], rel=1e-9)
    assert row["std_error"] == pytest.approx(known["se"], rel=1e-9)
    assert row["p_value"] == pytest.approx(known["p_value"], rel=1e-6)
    assert fit.loglik == pytest.approx(known["loglik"], abs=1e-8)
    assert fit.n_parameters == 1


def test_known_parameters_are_nlmes(orthodont):
    known = REFERENCE["orthodont"]
    model = blm.LMM("distance ~ age + (age | Subject)", orthodont, fixed={"sigma": 1.2})
    fit, own = model.ml(), known["ml_sigma"]
    np.testing.assert_allclose(fit.beta, own["beta"], rtol=1e-6)
    np.testing.assert_allclose(fit.sds["Subject"], own["sds"], rtol=1e-5)
    assert fit.corrs["Subject"].iloc[0, 1] == pytest.approx(own["cor"], abs=1e-3)  # printed
    model = blm.LMM("distance ~ age + (1 | Subject)", orthodont, fixed={"sigma": 1.2})
    assert model.reml().sds["Subject"].iloc[0] == pytest.approx(known["reml_sigma"]["sd"], rel=1e-5)
    model = blm.LMM("distance ~ age + (1 | Subject)", orthodont, residual="se(root, sigma=True)")
    fit, own = model.reml(), known["multiplier"]
    assert [fit.sigma, fit.sds["Subject"].iloc[0]] == pytest.approx(
        [own["sigma"], own["sd"]], rel=1e-5
    )
    assert fit.loglik == pytest.approx(own["loglik"], abs=1e-6)
    text = {"residual": "ar1(1 | Subject)"}
    fit = blm.LMM("distance ~ age", orthodont, **text, fixed={"cor_residual": 0.5}).reml()
    own = known["ar1"]
    np.testing.assert_allclose(fit.beta, own["beta"], rtol=1e-8)
    assert fit.sigma == pytest.approx(own["sigma"], rel=1e-8)
    assert fit.loglik == pytest.approx(own["loglik"], abs=1e-7)
    np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov)), own["se"], rtol=1e-8)
    assert fit.n_parameters == 3
    fit = blm.LMM("distance ~ age", orthodont, **text, fixed={"sigma": 2.5}).reml()
    own = known["scale"]
    assert fit.summary().loc["cor_residual", "estimate"] == pytest.approx(own["cor"], abs=1e-5)
    assert fit.loglik == pytest.approx(own["loglik"], abs=1e-7)


# --- dense algebra -----------------------------------------------------------------------


CASES = {
    "sigma": ("y ~ x + (x | g)", None, {"sigma": 0.8}),
    "sd": ("y ~ x + (x | g) + (1 | h)", None, {"sd[h]": 0.4, "sd[g, x]": 0.3}),
    "cor": ("y ~ x + (x | g)", None, {"cor[g]": -0.4}),
    "errors": ("y ~ x + (1 | id)", "se(s)", {}),
    "errors and sd": ("y ~ x + (1 | g) + (1 | id)", "se(s)", {"sd[g]": 0.3}),
    "multiplier": ("y ~ x + (1 | g)", "se(s, sigma=True)", {"sd[g]": 0.3}),
    "correlated errors": ("y ~ x + (1 | h)", "ar1(1 | g) * se(s)", {}),
    "stratum": ("y ~ x + (1 | g)", "strata(f)", {"sigma[b]": 0.5}),
    "matrix": ("y ~ x + (x + z | g)", None, {"cor": np.eye(3) + 0.2 * (1 - np.eye(3))}),
    "strata multiplier": ("y ~ x", "strata(f) * se(s, sigma=True)", {"sigma[a]": 1.5}),
    "all": ("y ~ x + (1 | g)", "se(s)", {"sd": 0.7}),
}


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(3)
    n = 40
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "z": rng.normal(size=n),
            "g": np.repeat(list("abcdefgh"), 5),
            "h": np.tile(list("vwxyz"), 8),
            "f": rng.choice(list("ab"), n),
            "id": [f"i{i}" for i in range(n)],
            "s": np.exp(rng.normal(-0.5, 0.5, n)),
            "y": rng.normal(size=n) + np.repeat(rng.normal(size=8), 5),
        }
    )


def dense_covariance(design, points):
    """Var(y) (n, n) from the parameters themselves."""
    Z = design.Z_matrix().toarray()
    G = np.zeros((Z.shape[1], Z.shape[1]))
    start = 0
    for factor, sds, chol in zip(design.random, points.sds, points.chols, strict=True):
        root = sds[0][:, None] * chol[0]
        size = factor.n_levels * factor.n_coefs
        G[start : start + size, start : start + size] = np.kron(
            np.eye(factor.n_levels), root @ root.T
        )
        start += size
    spec, scale = design.spec, np.ones(design.n)
    if spec.has_errors:
        scale = design.data["s"].to_numpy()
    R = np.diag(points.sigma[0] ** 2 * scale**2)
    if spec.structured:
        own = spec.residual_structure.covariance(design.residual_rows, points.sigma, points.shapes)
        R = own.toarray() * scale[:, None] * scale
    return Z @ G @ Z.T + R


def dense_deviance(design, points, reml):
    """-2 log likelihood or restricted likelihood at its maximum over beta."""
    V, X, y = dense_covariance(design, points), design.X, design.y
    inverse = np.linalg.inv(V)
    information = X.T @ inverse @ X
    beta = np.linalg.solve(information, X.T @ inverse @ y)
    rest = y - X @ beta
    n, p = X.shape
    value = (n - p * reml) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + rest @ inverse @ rest
    return value + reml * np.linalg.slogdet(information)[1]


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_likelihoods_are_those_of_dense_algebra(small, case, reml):
    formula, residual, fixed = CASES[case]
    model = blm.LMM(formula, small, residual=residual, fixed=fixed)
    search = search_of(model.system, reml)
    rng = np.random.default_rng(1)
    z = search.signed.start + rng.uniform(-0.3, 0.3, len(search.signed.start))
    value, gradient = search.signed.objective(z)
    assert value == pytest.approx(
        dense_deviance(model.design, search.points(z[None]), reml), abs=1e-8
    )
    for i in range(len(z)):
        shift = np.zeros(len(z))
        shift[i] = 1e-4
        far = [search.signed.objective(z + k * shift)[0] for k in (2, 1, -1, -2)]
        slope = (-far[0] + 8 * far[1] - 8 * far[2] + far[3]) / 1.2e-3  # error of order 1e-16 / step
        assert gradient[i] == pytest.approx(slope, abs=1e-7, rel=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_posterior_densities_are_those_of_dense_algebra(small, case):
    formula, residual, fixed = CASES[case]
    model = blm.LMM(formula, small, residual=residual, fixed=fixed)
    priors, coordinates = model.priors, model.priors.coordinates
    rng = np.random.default_rng(2)
    z = rng.uniform(-0.5, 0.5, len(coordinates.free))
    x = coordinates.complete(z)
    points = coordinates.points(x[None])
    V, X = dense_covariance(model.design, coordinates.to_user(points)), model.design.X
    prior_cov = np.linalg.inv(priors.beta_precision)
    law = stats.multivariate_normal(X @ priors.beta_mean, V + X @ prior_cov @ X.T)
    known = law.logpdf(model.y) + sum(free_log_prior(priors, x))
    value, gradient = log_posterior_unconstrained(model.system, priors, x)
    assert value == pytest.approx(known, abs=1e-8)
    reduce = lambda rows: reduce_at(model.system, coordinates, rows)  # noqa: E731
    assert log_posterior_batch(model.system, priors, reduce, x[None])[0] == pytest.approx(
        known, abs=1e-8
    )
    for i, place in enumerate(coordinates.free):
        shift = 1e-5 * np.eye(len(z))[i]
        ahead, behind = (
            log_posterior_unconstrained(model.system, priors, coordinates.complete(z + s))[0]
            for s in (shift, -shift)
        )
        assert gradient[place] == pytest.approx((ahead - behind) / 2e-5, abs=1e-5)


def free_log_prior(priors, x):
    """Log prior densities of the free parameters on the coordinates, term by term."""
    coordinates, held = priors.coordinates, set(priors.coordinates.held_places.tolist())
    for f, row in enumerate(priors.sd):
        for i, prior in enumerate(row):
            place = coordinates.sds(f).start + i
            if place not in held:
                yield prior.logpdf(np.exp(x[place])) + x[place]
        structure, z = coordinates.structures[f], x[coordinates.cors(f)]
        if structure.n_cors and coordinates.cors(f).start not in held:
            chol = structure.cholesky(z[None])
            yield priors.cor[f][0].logpdf(chol)[0] + structure.log_jacobian(z[None])[0]
    for i, prior in enumerate(priors.residuals.sd):
        place = coordinates.sigma + i
        if place not in held:
            yield prior.logpdf(np.exp(x[place])) + x[place]
    law = priors.residual.correlation
    if law is not None:
        z = x[coordinates.shape][-1:]
        prior = priors.residuals.cor[0]
        yield prior.logpdf(law.parameters(z[None]))[0, 0] + law.log_jacobian(z[None])[0]


# --- posteriors --------------------------------------------------------------------------


def test_eight_schools_are_those_of_quadrature():
    model = blm.LMM("y ~ 1 + (1 | school)", SCHOOLS, residual="se(s)")
    y, s = SCHOOLS["y"].to_numpy(), SCHOOLS["s"].to_numpy()
    mean, scale = y.mean(), y.std(ddof=1)
    tau = np.exp(np.linspace(-12.0, 12.0, 20001))  # the density falls as tau and as tau^-11
    precision = 1.0 / (s[:, None] ** 2 + tau**2)
    total = precision.sum(axis=0) + (2.5 * scale) ** -2
    gap = (precision * (y - mean)[:, None]).sum(axis=0)
    square = ((y - mean)[:, None] ** 2 * precision).sum(axis=0) - gap**2 / total
    log_det = np.log(total) + 2.0 * np.log(2.5 * scale) - np.log(precision).sum(axis=0)
    log_joint = -0.5 * (8 * np.log(2 * np.pi) + log_det + square) + np.log(tau)
    log_joint += np.log(2.0) + stats.t(3, scale=scale).logpdf(tau)
    weights = np.exp(log_joint) * (24.0 / 20000)  # trapezoids: the ends vanish
    integral = weights.sum()
    known = {"sd_school": weights @ tau, "beta": weights @ (mean + gap / total)}
    post = model.fit(draws=4000, random_seed=2)
    draws = post.data["posterior"]
    for name, value in known.items():
        found = draws[name].to_numpy().ravel()
        error = found.std() / np.sqrt(len(found) / 2)  # half as many independent draws at least
        assert found.mean() == pytest.approx(value / integral, abs=4 * error)
    assert post.log_evidence.value == pytest.approx(
        np.log(integral), abs=5 * post.log_evidence.error
    )
    assert np.all(draws["sigma"] == 1.0)
    assert post.diagnostics.ok
    table = post.summary()
    assert table.loc["sigma", "fixed"]
    assert np.isnan(table.loc["sigma", "r_hat"])


def test_posteriors_without_free_parameters_are_exact():
    model = blm.LMM("y ~ 1 + (1 | school)", SCHOOLS, residual="se(s)", fixed={"sd": 5.0})
    y, s = SCHOOLS["y"].to_numpy(), SCHOOLS["s"].to_numpy()
    width = 2.5 * y.std(ddof=1)
    V = np.diag(s**2 + 25.0)
    known = stats.multivariate_normal(np.full(8, y.mean()), V + width**2).logpdf(y)
    precision = np.sum(1 / np.diag(V)) + width**-2
    mean = (np.sum(y / np.diag(V)) + y.mean() / width**2) / precision
    for method in ("laplace", "collapsed"):
        post = model.fit(method=method, draws=1000, random_seed=1)
        beta = post.data["posterior"]["beta"].to_numpy().ravel()
        assert beta.mean() == pytest.approx(mean, abs=4 * precision**-0.5 / np.sqrt(len(beta)))
        assert beta.std() == pytest.approx(precision**-0.5, rel=0.05)
        assert post.diagnostics.ok
    assert post.log_evidence.value == pytest.approx(known, abs=1e-10)
    assert post.log_evidence.error == 0.0
    with pytest.raises(SamplingError, match="has nothing to sample: use method='collapsed'"):
        model.fit(method="nuts", form="marginal", progressbar=False)


@whole
@pytest.mark.slow
def test_nuts_and_collapsed_agree(bcg):
    model = blm.LMM("y ~ ablat + (1 | trial)", bcg, residual="se(s)")
    exact = model.fit(draws=2000, random_seed=1).summary()
    nuts = model.fit(method="nuts", draws=600, tune=400, chains=2, random_seed=1, progressbar=False)
    table = nuts.summary()
    gap = np.abs(table["mean"] - exact["mean"]) / np.hypot(table["mcse_mean"], exact["mcse_mean"])
    assert np.all(gap[~exact["fixed"]] < 4.5)
    assert table.loc["sigma", ["mean", "sd"]].to_list() == [1.0, 0.0]
    assert not [m for m in nuts.diagnostics.messages() if "sigma" in m]


# --- what must not depend on units, and what is the same in two ways ----------------------


@pytest.mark.parametrize(("a", "b"), [(1e4, 3e4), (1e-4, -2.0)])
def test_units_do_not_matter(bcg, a, b):
    moved = bcg.assign(y=a * bcg["y"] + b, s=a * bcg["s"])
    plain, other = (
        blm.LMM("y ~ ablat + (1 | trial)", data, residual="se(s)") for data in (bcg, moved)
    )
    for method in ("reml", "ml", "map"):
        one, two = getattr(plain, method)(), getattr(other, method)()
        assert two.sds["trial"].iloc[0] == pytest.approx(a * one.sds["trial"].iloc[0], rel=1e-4)
        assert two.beta["ablat"] == pytest.approx(a * one.beta["ablat"], rel=1e-4)
    first, second = (model.fit(draws=300, random_seed=1).log_evidence for model in (plain, other))
    assert second.value == pytest.approx(
        first.value - 13 * np.log(a), abs=5 * (first.error + second.error)
    )


def test_known_errors_are_weights_with_sigma_one(small):
    weights = 1.0 / small["s"] ** 2
    one = blm.LMM("y ~ x + (1 | g)", small, residual="se(s)").reml()
    two = blm.LMM("y ~ x + (1 | g)", small, weights=weights, fixed={"sigma": 1}).reml()
    free = blm.LMM("y ~ x + (1 | g)", small, weights=weights).reml()
    multiplier = blm.LMM("y ~ x + (1 | g)", small, residual="se(s, sigma=True)").reml()
    assert one.criterion == pytest.approx(two.criterion, abs=1e-10)
    assert multiplier.criterion == pytest.approx(free.criterion, abs=1e-10)
    held = blm.LMM("y ~ x + (1 | g)", small, weights=weights, fixed={"sigma": free.sigma}).reml()
    assert held.criterion == pytest.approx(free.criterion, abs=1e-6)
    assert held.n_parameters == free.n_parameters - 1


def test_a_held_estimate_is_the_estimate(small):
    free = blm.LMM("y ~ x + (x | g)", small).reml()
    for label, value in (("sd[g, x]", free.sds["g"]["x"]), ("sigma", free.sigma)):
        held = blm.LMM("y ~ x + (x | g)", small, fixed={label: value}).reml()
        assert held.criterion == pytest.approx(free.criterion, abs=1e-5)
        assert held.n_parameters == free.n_parameters - 1


def test_no_heterogeneity_is_a_boundary():
    data = pd.DataFrame({"y": [0.1, 0.12, 0.08, 0.11], "s": 0.5, "g": list("abcd")})
    model = blm.LMM("y ~ 1 + (1 | g)", data, residual="se(s)")
    fit = model.reml()
    assert fit.singular
    assert fit.converged
    assert fit.sds["g"].iloc[0] == 0.0
    assert fit.fixef()["df"].iloc[0] == np.inf
    assert fit.fixef()["std_error"].iloc[0] == pytest.approx(0.25)
    limits = fit.confint("profile").loc["sd[g, Intercept]"]
    assert limits["conf_low"] == 0.0
    assert 0.0 < limits["conf_high"] < 2.0
    assert len(fit.predict(data, uncertainty="laplace", draws=20, random_seed=1)) == 4


# --- what is said, refused and kept ------------------------------------------------------


def test_known_parameters_are_marked(bcg):
    model = blm.LMM("y ~ 1 + (1 | trial)", bcg, residual="se(s)", fixed={"sd[trial]": 0.5})
    fit, post = model.reml(), model.fit(draws=500, random_seed=1)
    note = "Known, not estimated: sd[trial, Intercept] fixed at 0.5, sigma fixed at 1."
    for text in (repr(model), repr(fit), repr(post)):
        assert note in text
    assert np.isnan(fit.summary().loc["sigma", ["std_error", "conf_low"]].to_list()).all()
    assert fit.confint("profile").loc["sigma", ["conf_low", "conf_high"]].isna().all()
    assert set(blm.compare_reml(post, fit)["flag"]) == {"agrees", "fixed"}
    assert "Known, and held: sd[trial, Intercept] fixed at 0.5; sigma fixed at 1." in (
        post.methods_paragraph()
    )
    assert "with the known standard errors s" in fit.methods_paragraph()
    assert list(model.priors.table()["source"]) == ["default", "fixed", "fixed"]


def test_checks_and_refits_know_what_is_held(bcg):
    model = blm.LMM("y ~ ablat + (1 | trial)", bcg, residual="se(s)")
    post, fit = model.fit(draws=200, random_seed=1), model.reml()
    assert "sigma" not in post.check.sensitivity().table.index
    assert "sigma" not in post.check.contraction(random_seed=1).table.index
    assert post.loo(progressbar=False).elpd < 0
    assert fit.bootstrap(3, random_seed=1, progressbar=False)["sigma"].eq(1.0).all()
    check = model.check_calibration(4, draws=100, random_seed=1, progressbar=False)
    assert "sigma" not in check.table().index
    wide = post.predict(bcg.assign(s=5.0), kind="response", target="new", random_seed=1)
    narrow = post.predict(bcg.assign(s=0.01), kind="response", target="new", random_seed=1)
    assert np.all(wide["sd"] > 4.5)
    assert np.all(narrow["sd"] < 3.0)
    with pytest.raises(DataError, match="no column `s`"):
        post.predict(bcg.drop(columns="s"), kind="response")


def test_new_rows_have_their_own_errors(bcg):
    model = blm.LMM("y ~ 1 + (1 | trial)", bcg, residual="se(s)")
    fit = model.reml()
    variance = fit.sds["trial"].iloc[0] ** 2
    at = {"s": [0.1, 1.0]}
    expected = variance / (variance + np.square(at["s"]))
    np.testing.assert_allclose(fit.icc(at=at)["estimate"], expected, rtol=1e-8)
    with pytest.raises(DataError, match="no column `s`"):
        fit.icc(at={"trial": ["t01"]})
    observed = pd.DataFrame({"trial": ["new"], "s": [1e-3], "y": [2.0]})
    seen = fit.predict(observed[["trial", "s"]], target="new", observed=observed)
    assert seen["estimate"].iloc[0] == pytest.approx(2.0, abs=1e-3)  # its own report, nearly exact
    vague = observed.assign(s=100.0)
    seen = fit.predict(observed[["trial", "s"]], target="new", observed=vague)
    assert seen["estimate"].iloc[0] == pytest.approx(fit.beta.iloc[0], abs=1e-3)


def test_models_are_nested_where_what_is_known_is(orthodont):
    right = "distance ~ age + (1 | Subject)"
    free, held, other = (
        blm.LMM(right, orthodont, fixed=known).ml()
        for known in ({}, {"sigma": 1.4}, {"sd[Subject]": 2.0})
    )
    assert blm.lrt(held, free).loc[:, "df"].dropna().iloc[-1] == 1
    with pytest.raises(ValueError, match="is no special case of"):
        blm.lrt(
            blm.LMM("distance ~ 1 + (1 | Subject)", orthodont, fixed={"sigma": 1.4}).ml(), other
        )


def test_files_and_updates_keep_what_is_known(bcg, orthodont, tmp_path):
    omega = pd.DataFrame(
        [[1, -0.3], [-0.3, 1]], index=["age", "Intercept"], columns=["age", "Intercept"]
    )
    models = [
        blm.LMM("y ~ 1 + (1 | trial)", bcg, residual="se(s)"),
        blm.LMM("distance ~ age + (age | Subject)", orthodont, fixed={"cor": omega, "sigma": 1.2}),
        blm.LMM(
            "distance ~ age", orthodont, residual="ar1(1 | Subject)", fixed={"cor_residual": 0.4}
        ),
    ]
    for i, model in enumerate(models):
        post = model.fit(draws=40, chains=2, random_seed=1)
        post.save(tmp_path / f"{i}.nc")
        loaded = blm.load(tmp_path / f"{i}.nc")
        pd.testing.assert_frame_equal(loaded.summary(), post.summary())
        assert loaded.priors.held == model.priors.held
        again = blm.LMM.from_fit(loaded)
        assert again.reml().criterion == pytest.approx(model.reml().criterion, abs=1e-8)
        new = model.design.data.head(3)
        pd.testing.assert_frame_equal(
            loaded.predict(new, kind="response", random_seed=1),
            post.predict(new, kind="response", random_seed=1),
        )
    meta = models[0]
    held = meta.update(fixed={"sd[trial]": 0.4})
    assert held.reml().sds["trial"].iloc[0] == pytest.approx(0.4)
    assert held.reml().sigma == 1.0
    assert held.update(fixed={"sd[trial]": None}).reml().sds["trial"].iloc[0] == pytest.approx(
        meta.reml().sds["trial"].iloc[0]
    )
    fewer = meta.update(data=bcg.head(9)).reml()
    assert fewer.sigma == 1.0
    plain = models[2].update(residual=False, fixed={"cor_residual": None})
    assert not plain.design.spec.structured


def test_missing_standard_errors_drop_rows(bcg):
    gaps = bcg.assign(s=bcg["s"].where(bcg.index != 3))
    assert blm.LMM("y ~ 1 + (1 | trial)", gaps, residual="se(s)").dropped == 1


REFUSED = [
    (
        {"sigm": 1.0},
        "There is no parameter 'sigm' to hold. Did you mean 'sigma'? Valid keys: 'cor'",
    ),
    ({"sigma": 0.0}, "'sigma' is a standard deviation, which must be positive; got 0.0"),
    ({"sigma": np.inf}, "'sigma' must be a finite number"),
    ({"sigma": "1"}, "'sigma' must be a finite number; got '1'"),
    ({"sd[Subject]": 0}, "take their term out of the formula"),
    ({"age": 1.0}, "hold a coefficient with an offset"),
    ({"cor": 1.0}, "must lie between -1 and 1"),
    ({"cor": [[1.0, 2.0], [2.0, 1.0]]}, "is not positive definite"),
    ({"cor": np.eye(3)}, "must be a 2 x 2 correlation matrix"),
    ({"sigma": 1.0, " sigma": 2.0}, "'sigma' is given twice"),
]


@pytest.mark.parametrize(("fixed", "message"), REFUSED, ids=range(len(REFUSED)))
def test_values_are_checked(orthodont, fixed, message):
    with pytest.raises(PriorError) as caught:
        blm.LMM("distance ~ age + (age | Subject)", orthodont, fixed=fixed)
    assert message in str(caught.value)


def test_contradictions_are_refused(orthodont):
    right = "distance ~ age + (1 | Subject)"
    with pytest.raises(PriorError, match="'sigma' is held by fixed= and has no prior"):
        blm.LMM(right, orthodont, fixed={"sigma": 1}, priors={"sigma": blm.priors.HalfNormal(1.0)})
    with pytest.raises(PriorError, match=r"write se\(root, sigma=True\)"):
        blm.LMM(right, orthodont, residual="se(root)", fixed={"sigma": 2})
    with pytest.raises(DataError, match="both say how variances of rows differ"):
        blm.LMM(right, orthodont, residual="se(root)", weights="age")
    with pytest.raises(DataError, match="must be positive, and 4 of 108 are not, such as -1"):
        blm.LMM(
            right,
            orthodont.assign(root=-1.0).assign(root=lambda d: d["root"].where(d.index < 4, 1.0)),
            residual="se(root)",
        )
    with pytest.raises(TypeError, match="fixed must be a mapping"):
        blm.LMM(right, orthodont, fixed=1.0)
    with pytest.raises(PriorError, match="The name of a parameter is text; got 1"):
        blm.LMM(right, orthodont, fixed={1: 1.0})
    with pytest.raises(PriorError, match="must be between 1e-100 and 1e"):
        blm.LMM(right, orthodont, fixed={"sigma": 1e-200})
    with pytest.raises(DataError, match="less than a ten-millionth of the spread of the response"):
        blm.LMM(right, orthodont, fixed={"sigma": 1e-9}).reml()


BAD = [
    (
        "se(root) * strata(Sex)",
        "has variances to be estimated, and se(root) says that all are known",
    ),
    ("se(root, tau=True)", "se() takes a column of standard errors and sigma=True or sigma=False"),
    ("se(root, sigma=1)", "sigma is True (estimated) or False (held at 1)"),
    ("se(root | Subject)", "is of the variance alone and takes no `|`"),
    ("se(root) * se(age)", "There are two columns of known standard errors"),
    ("se(none)", "`none` is not a column of the data"),
]


@pytest.mark.parametrize(("residual", "message"), BAD)
def test_what_is_written_is_checked(orthodont, residual, message):
    with pytest.raises(FormulaError) as caught:
        blm.LMM("distance ~ age + (1 | Subject)", orthodont, residual=residual)
    assert message in str(caught.value)
    assert "^" in str(caught.value)
