"""Student-t residuals and predictors of sigma: what is read, the density, every verb on draws."""

import numpy as np
import pandas as pd
import pymc as pm
import pytest
from monte_carlo import assert_mean
from pytensor.compile.mode import Mode
from scale_fits import made_up
from scipy import stats

import bayeslmm as blm
from bayeslmm.estimation.residuals import residual_scales, residual_sds
from bayeslmm.exceptions import BayesLMMError, DataError, FormulaError, PriorError, SamplingError
from bayeslmm.sampling.groups import log_likelihood, log_prior
from bayeslmm.sampling.joint_draws import points_of

PLAIN = Mode(linker="py", optimizer=None)  # nothing to compile
EXACT = 1e-9
BOTH = {"family": "student", "sigma": "~ x + (x | g)"}
KINDS = [{"family": "student"}, {"sigma": "~ x + (1 | g)"}, BOTH]


def frame(n=60):
    rng = np.random.default_rng(5)
    x = rng.normal(10.0, 3.0, size=n)
    g = np.repeat([f"g{i}" for i in range(6)], n // 6)
    y = 1.0 + 0.5 * x + rng.normal(size=n)
    return pd.DataFrame(
        {"y": y, "x": x, "g": g, "w": rng.uniform(0.5, 2.0, n), "f": list("ab") * (n // 2)}
    )


@pytest.fixture(scope="module")
def data():
    return frame()


@pytest.fixture(scope="module", params=KINDS, ids=["student", "sigma", "both"])
def post(request, data):
    return made_up(blm.LMM("y ~ x + (1 | g)", data, weights="w", **request.param))


@pytest.fixture(scope="module")
def both(data):
    return made_up(blm.LMM("y ~ x + (1 | g)", data, **BOTH))


def flat(post, name):
    values = post.data["posterior"][name].to_numpy()
    return values.reshape(-1, *values.shape[2:])


def scales_by_hand(post, data):
    """Scales (S, n) from the variables of the posterior."""
    names = set(map(str, post.data["posterior"].data_vars))
    weights = data["w"].to_numpy() if post.design.weights is not None else 1.0
    if "sigma" in names:
        return flat(post, "sigma")[:, None] / np.sqrt(weights) * np.ones(len(data))
    Z = np.column_stack([np.ones(len(data)), data["x"]])
    log_scale = flat(post, "beta_sigma") @ Z.T
    u = flat(post, "u_sigma_g")  # (S, k, J)
    codes = pd.factorize(data["g"])[0]
    for c in range(u.shape[1]):
        log_scale += u[:, c][:, codes] * Z[:, c]
    return np.exp(log_scale) / np.sqrt(weights)


# --- what is read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sigma", "words", "marked"),
    [
        ("x", "without a left side", "x"),
        ("y ~ x", "without a left side", "y ~ x"),
        ("~ z", "`z` is not a column", "z"),
        ("~ x + (1 | h)", "grouping factor `h` is not a column", "h"),
        ("~ 0 + x", "needs its intercept", "~ 0 + x"),
        ("~ x + (1 | g", "never closed", "("),
        ("~ eval(x)", "Unknown function `eval`", "eval"),
        ("~ offset(x)", "no offset", "offset(x)"),
        ("~ cs(0 + f | g)", "(x | g) or (x || g)", "cs(0 + f | g)"),
        ("~ (1 | g) + (1 | g)", "written twice", "(1 | g)"),
    ],
)
def test_a_wrong_formula_of_sigma_shows_the_place(data, sigma, words, marked):
    with pytest.raises(FormulaError) as error:
        blm.LMM("y ~ x + (1 | g)", data, sigma=sigma)
    assert words in error.value.message
    assert error.value.source == sigma
    start, end = error.value.start, error.value.end
    assert sigma[start:end].startswith(marked)


def test_what_does_not_go_together_is_refused(data):
    with pytest.raises(ValueError, match="'gaussian' or 'student'"):
        blm.LMM("y ~ x", data, family="t")
    with pytest.raises(DataError, match="both describe the variance"):
        blm.LMM("y ~ x", data, residual="strata(f)", sigma="~ f")
    with pytest.raises(DataError, match="for independent residuals"):
        blm.LMM("y ~ x", data, residual="ar1(x | g)", family="student")
    with pytest.raises(TypeError, match="sigma must be text"):
        blm.LMM("y ~ x", data, sigma=["~ x"])


def test_rows_that_lack_a_variable_of_sigma_are_dropped(data):
    holes = data.assign(k=np.where(np.arange(60) < 3, np.nan, data["x"]))
    model = blm.LMM("y ~ x + (1 | g)", holes, sigma="~ k")
    assert model.dropped == 3
    assert model.design.scale_rows.W[:, 1] == pytest.approx(data["x"].to_numpy()[3:])


def test_functions_of_the_user_and_transformations_are_kept_for_new_rows(data):
    model = blm.LMM(
        "y ~ x", data, sigma="~ center(x) + half(x)", functions={"half": lambda v: v**2 / 2}
    )
    rows = model.design.spec.rows({"x": [10.0]}, residual=True).scale_rows
    assert rows.W[0] == pytest.approx([1.0, 10.0 - data["x"].mean(), 50.0])


# --- priors ------------------------------------------------------------------------------


def test_default_priors_do_not_depend_on_units_and_origin_of_covariates(data):
    moved = data.assign(x=32.0 + 1.8 * data["x"])
    one, two = (blm.LMM("y ~ 1", d, **BOTH).priors for d in (data, moved))
    draws = [p.sample(np.random.default_rng(1), 50) for p in (one, two)]
    for (scale, frame_), sigma in zip(
        [(draws[0].scale, data), (draws[1].scale, moved)], [d.sigma for d in draws], strict=True
    ):
        at_mean = scale.gamma @ [1.0, frame_["x"].mean()]
        assert np.exp(at_mean) == pytest.approx(sigma)
    curves = [
        d.scale.gamma @ np.column_stack([np.ones(60), f["x"]]).T
        for d, f in zip(draws, (data, moved), strict=True)
    ]
    assert curves[0] == pytest.approx(curves[1])
    spreads = [
        np.einsum("nk,skl,nl->sn", z, root @ root.swapaxes(1, 2), z)
        for root, z in (
            (d.scale.roots[0], np.column_stack([np.ones(60), f["x"]]))
            for d, f in zip(draws, (data, moved), strict=True)
        )
    ]
    assert spreads[0] == pytest.approx(spreads[1])


def test_defaults_are_those_of_the_documentation(data):
    table = blm.LMM("y ~ x + (1 | g)", data, **BOTH).priors.table().set_index("parameter")
    s_x, s_y = data["x"].std(), data["y"].std()
    assert table.loc["nu", "prior"] == "Gamma(2, 0.1)"
    assert table.loc["sigma", "prior"] == f"HalfStudentT(3, {s_y:.3g})"
    assert table.loc["sigma", "where"] == "at the column means of ~ x + (x | g)"
    assert table.loc["beta_sigma[x]", "prior"] == f"Normal(0, {1 / s_x:.3g})"
    assert table.loc["sd_sigma[g, Intercept]", "prior"] == "HalfStudentT(3, 1)"
    assert table.loc["cor_sigma[g]", "prior"] == "LKJ(1)"
    flat_ = blm.LMM("y ~ x", data, priors="flat", **BOTH).priors.table().set_index("parameter")
    assert flat_.loc["nu", "source"] == "default" and flat_.loc["beta_sigma[x]", "source"] == "flat"


def test_priors_of_the_user(data):
    given = {
        "nu": pm.Gamma.dist(3, 1),
        "beta_sigma[x]": pm.Normal.dist(1, 2),
        "sd_sigma": pm.HalfNormal.dist(3),
    }
    priors = blm.LMM("y ~ x", data, priors=given, **BOTH).priors.records()
    assert str(priors["nu"]) == "Gamma(3, 1)"
    assert str(priors["beta_sigma[x]"]) == "Normal(1, 2)"
    assert str(priors["sd_sigma[g, x]"]) == "HalfNormal(3)"
    with pytest.raises(PriorError, match="positive half line"):
        blm.LMM("y ~ x", data, family="student", priors={"nu": pm.Normal.dist(0, 1)})
    with pytest.raises(PriorError, match="no parameter 'nu'"):
        blm.LMM("y ~ x", data, priors={"nu": pm.Gamma.dist(2, 1)})


# --- the density -------------------------------------------------------------------------


def test_scales_and_densities_of_rows_are_those_of_the_formula(post, data):
    points = points_of(post.design, post.data["posterior"].to_dataset())
    scales = scales_by_hand(post, data)
    assert residual_scales(post.design, points) == pytest.approx(scales, rel=EXACT)
    mean = flat(post, "beta") @ np.column_stack([np.ones(60), data["x"]]).T
    mean += flat(post, "u_g")[:, 0][:, pd.factorize(data["g"])[0]]
    law = stats.norm(mean, scales)
    if "nu" in post.data["posterior"]:
        law = stats.t(flat(post, "nu")[:, None], mean, scales)
    found = log_likelihood(post.data, post.design)["y"].to_numpy().reshape(-1, 60)
    assert found == pytest.approx(law.logpdf(data["y"].to_numpy()), rel=1e-8)
    sds = residual_sds(post.design, points)
    assert sds == pytest.approx(law.std(), rel=1e-8)


def test_the_pymc_model_has_the_density_of_the_formula(both, data):
    """Log density of the model, Jacobians left out: priors and likelihood add up by hand."""
    post = both
    model = blm.LMM.from_fit(post).pymc()
    one = post.data.isel(draw=slice(0, 1), chain=slice(0, 1))
    values = _free_values(post, model)
    likelihood = float(log_likelihood(one, post.design)["y"].sum())
    found = model.compile_logp(vars=model["y"], mode=PLAIN)(values)
    assert found == pytest.approx(likelihood, rel=1e-8)
    free = [v for v in model.free_RVs if not v.name.startswith("_z") and "chol" not in v.name]
    prior = model.compile_logp(vars=free, jacobian=False, mode=PLAIN)(values)
    group = log_prior(one, post.priors)
    by_hand = sum(float(group[name].sum()) for name in group.data_vars if "cor" not in str(name))
    assert prior == pytest.approx(by_hand, rel=1e-8)


def _free_values(post, model):
    """Point of the model's value variables at the first draw."""
    draw = post.data["posterior"].isel(chain=0, draw=0)
    points = points_of(post.design, post.data["posterior"].to_dataset()).take(slice(0, 1))
    priors = post.priors
    working = priors.coordinates.to_working(points)
    scale, own = points.scale, priors.scale
    root = np.linalg.solve(own.mixing[0], scale.roots[0][0])
    root = np.linalg.cholesky(root @ root.T)
    sd = np.linalg.norm(root, axis=1)
    chol = root / sd[:, None]
    gamma = own.fixed_map @ scale.gamma[0]
    natural = {
        "sd_g": working.sds[0][0],
        "_sigma": np.exp(gamma[0]),
        "_beta_sigma_0": gamma[1],
        "_sd_sigma_g_working": sd,
        "nu": scale.nu[0],
        "_beta_gamma": priors.fixed_map @ draw["beta"].to_numpy(),
        "_z_g": draw["u_g"].to_numpy() / working.sds[0][0],
        "_z_sigma_g": np.linalg.solve(own.mixing[0] @ root, draw["u_sigma_g"].to_numpy()),
        "_chol_sigma_g__0": chol,
    }
    values = {}
    for variable in model.free_RVs:
        value, transform = model.rvs_to_values[variable], model.rvs_to_transforms[variable]
        here = natural[variable.name]
        if transform is not None:
            inputs = variable.owner.inputs
            here = transform.forward(pm.math.constant(np.asarray(here)), *inputs).eval(mode=PLAIN)
        values[value.name] = np.asarray(here, dtype=float)
    return values


# --- verbs -------------------------------------------------------------------------------


def test_names_in_the_posterior(both):
    dims = {str(k): v.dims[2:] for k, v in both.data["posterior"].data_vars.items()}
    assert "sigma" not in dims
    assert dims["nu"] == () and dims["beta_sigma"] == ("coef_sigma",)
    assert dims["sd_sigma_g"] == ("sigma_g_coef",)
    assert dims["u_sigma_g"] == ("sigma_g_coef", "sigma_g")
    rows = ["nu", "beta_sigma[x]", "sd_sigma[g, x]", "cor_sigma[g, Intercept, x]"]
    summary = both.summary()
    assert set(rows) <= set(summary.index)
    assert summary.loc["nu", "mean"] == pytest.approx(flat(both, "nu").mean())
    assert {"nu__Observation", "beta_sigma__x", "sd_sigma__x"} <= set(both.tidy()["term"])


def test_variances_follow_from_scales_and_degrees_of_freedom(post, data):
    variance = scales_by_hand(post, data) ** 2
    if "nu" in post.data["posterior"]:
        nu = flat(post, "nu")
        variance = variance * (nu / (nu - 2.0))[:, None]
    assert np.diag(post.R()) == pytest.approx(variance.mean(axis=0))
    tau = flat(post, "sd_g")[:, 0] ** 2
    share = tau / (tau + variance.mean(axis=1))
    assert post.icc().loc["g", "mean"] == pytest.approx(share.mean())
    expected = post.residuals() / np.sqrt(variance.mean(axis=0))
    assert post.residuals("pearson").to_numpy() == pytest.approx(expected.to_numpy())
    sigma = post.sigma
    if "sigma" in post.data["posterior"]:
        assert sigma == pytest.approx(flat(post, "sigma").mean())
    else:
        by_row = scales_by_hand(post, data).mean(axis=0) * np.sqrt(data["w"])
        assert sigma.to_numpy() == pytest.approx(by_row.to_numpy())


def test_variance_that_is_infinite_is_refused_and_shares_are_zero(data):
    post = made_up(blm.LMM("y ~ x + (1 | g)", data, family="student"))
    post.data["posterior"]["nu"].values[:] = 1.5
    for verb in (post.R, post.V, post.variance_partition, lambda: post.residuals("pearson")):
        with pytest.raises(DataError, match="no finite variance where nu <= 2, as in 200 of 200"):
            verb()
    assert post.icc()["mean"].tolist() == [0.0]
    assert post.r2()["mean"].tolist() == [0.0, 0.0]
    assert np.isfinite(post.predict(kind="response", random_seed=1)).all(axis=None)


def test_predicted_responses_have_the_scale_of_their_rows(both):
    new = pd.DataFrame({"x": [4.0, 16.0, 4.0], "g": ["g0", "g0", "new"]})
    tree = both.predict(new, target="new", kind="response", summary=False, random_seed=3)
    epred = both.predict(new, target="new", kind="epred", summary=False, random_seed=3)
    noise = (tree["predictions"]["y"] - epred["predictions"]["mu"]).to_numpy().reshape(-1, 3)
    Z = np.column_stack([np.ones(2), [4.0, 16.0]])
    u = flat(both, "u_sigma_g")[:, :, 0]
    scale = np.exp((flat(both, "beta_sigma") + u) @ Z.T)
    nu = flat(both, "nu")[:, None]
    uniform = stats.t.cdf(noise[:, :2] / scale, nu)
    assert_mean(uniform, 0.5)
    assert_mean((uniform - 0.5) ** 2, 1.0 / 12.0)
    assert np.isfinite(noise).all()
    with pytest.raises(DataError, match="levels that the model has not seen"):
        both.predict(new, kind="response")
    assert len(both.predict({"x": [4.0]}, target="population", kind="response")) == 1
    assert len(both.predict({"x": [4.0]}, target="average", kind="response")) == 1
    with pytest.raises(DataError, match="`x`"):
        both.predict({"g": ["g0"]}, kind="response")


def test_predictions_at_average_effects_leave_those_of_the_scale_at_zero(both):
    tree = both.predict(
        {"x": [4.0]}, target="average", kind="response", summary=False, random_seed=3
    )
    mean = flat(both, "beta") @ [1.0, 4.0]
    noise = tree["predictions"]["y"].to_numpy().ravel() - mean
    scale = np.exp(flat(both, "beta_sigma") @ [1.0, 4.0])
    uniform = stats.t.cdf(noise / scale, flat(both, "nu"))
    assert_mean((uniform - 0.5) ** 2, 1.0 / 12.0)


def test_prior_predictive_draws_the_effects_in_the_scale(data):
    model = blm.LMM("y ~ x + (1 | g)", data, **BOTH)
    prior = model.prior_predictive(400, random_seed=1)
    values = prior["prior"].dataset
    sd = values["sd_sigma_g"].to_numpy()[0]
    u = values["u_sigma_g"].to_numpy()[0]  # (S, k, J)
    assert_mean(((u / sd[:, :, None]) ** 2).mean(axis=2), 1.0)
    assert model.implied_priors(50, random_seed=1).table.loc["sd_y", "q50"] > 0


def test_conditional_scores_and_refusals_of_what_integrates(post, data, caplog):
    n = int(post.loo(conditional=True).n_data_points)
    assert n == 60 and "loo() integrates" not in caplog.text
    reml = blm.LMM("y ~ x + (1 | g)", data).reml()
    refused = {
        "loo": post.loo,
        "loo by": lambda: post.loo(by="g"),
        "evidence": lambda: post.log_evidence,
        "influence": post.check.influence,
        "residuals": post.check.residuals,
        "sensitivity": post.check.sensitivity,
        "singularity": post.check.singularity,
        "point hypothesis": lambda: post.hypothesis("x = 0"),
        "compare_reml": lambda: post.compare_reml(reml),
        "observed": lambda: post.predict(
            {"x": [1.0], "g": ["n"]}, target="new", observed={"x": [1.0], "g": ["n"], "y": [1.0]}
        ),
    }
    for name, verb in refused.items():
        with pytest.raises((DataError, SamplingError), match=r"family='student'|sigma=|predictors"):
            verb()
            pytest.fail(name)


def test_estimates_and_the_other_engines_are_refused(data):
    model = blm.LMM("y ~ x + (1 | g)", data, **BOTH)
    for verb in (model.reml, model.ml, model.map, lambda: model.pymc("marginal")):
        with pytest.raises(DataError, match=r"integrates the random effects out.*Use fit\(\)"):
            verb()
    for method in ("collapsed", "laplace"):
        with pytest.raises(DataError, match=f"method='{method}' integrates"):
            model.fit(method=method)
    with pytest.raises(DataError, match="The marginal density integrates"):
        model.fit(method="nuts", form="marginal")


def test_without_random_effects_rows_are_scored_given_the_parameters(data):
    post = made_up(blm.LMM("y ~ x", data, family="student"))
    assert int(post.loo().n_data_points) == 60


def test_hypotheses_know_the_parameters(both):
    for text in ("nu > 4", "beta_sigma[x] > 0", "sd_sigma[g, x] > 0.1", "x > 0"):
        assert len(both.hypothesis(text).table()) == 1
    with pytest.raises(BayesLMMError, match="no parameter"):
        both.hypothesis("sigma > 1")


def test_words(both, post):
    assert "Residuals: Student t, log(sigma) ~ x + (x | g)" in repr(both)
    assert "Residuals: " in repr(blm.LMM.from_fit(post))
    text = both.methods_paragraph()
    assert "Student-t distributed with nu degrees of freedom" in text
    assert "logarithm of sigma was modelled as ~ x + (x | g)" in text
    assert "nu ~ Gamma(2, 0.1)" in text
    assert "nu" in both.to_markdown()
    assert np.isnan(both.glance()["sigma"].iloc[0])
    assert "loo" in both.findings("loo").not_run


def test_a_file_gives_the_model_back(tmp_path, data):
    post = made_up(blm.LMM("y ~ x + (1 | g)", data, weights="w", **BOTH))
    post.save(tmp_path / "fit.nc")
    again = blm.load(tmp_path / "fit.nc")
    assert again.design.spec.conditional == post.design.spec.conditional
    pd.testing.assert_frame_equal(again.priors.table(), post.priors.table())
    new = {"x": [4.0, 5.0], "g": ["g0", "new"], "w": [1.0, 2.0]}
    options = {"target": "new", "kind": "response", "random_seed": 1}
    pd.testing.assert_frame_equal(again.predict(new, **options), post.predict(new, **options))
    assert again.R().to_numpy() == pytest.approx(post.R().to_numpy())


def test_update_keeps_adds_and_takes_away(data):
    model = blm.LMM("y ~ x + (1 | g)", data, **BOTH, priors={"nu": pm.Gamma.dist(3, 1)})
    assert model.update("~ . - x").design.spec.conditional == model.design.spec.conditional
    assert str(model.update(data=data[:40]).priors.records()["nu"]) == "Gamma(3, 1)"
    plain = model.update(family="gaussian", sigma=False, priors="default")
    assert plain.design.spec.conditional is None and plain.reml().converged
    assert plain.update(sigma="~ x").design.spec.scale.coefs == ("Intercept", "x")
    with pytest.raises(DataError, match="`q` is not among them"):
        plain.update(sigma="~ q")


def test_names_of_groups_do_not_clash(data):
    model = blm.LMM("y ~ x + (1 | sigma_g)", data.assign(sigma_g=data["f"]), sigma="~ (1 | g)")
    post = made_up(model)
    assert {"u_sigma_g", "u_sigma_g_2"} <= set(post.data["posterior"].data_vars)
    assert post.predict(kind="response", random_seed=1).shape[0] == 60
