"""The vocabulary that estimates and posteriors share."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import bayeslmm as blm
from bayeslmm.exceptions import DataError

FORMULA = "Reaction ~ Days + (Days | Subject)"
SHARED = ["summary", "fixef", "ranef", "ranef_sd", "coef", "varcorr", "icc", "tidy"]
SHARED += ["G", "R", "V", "fitted", "residuals"]


@pytest.fixture(scope="module")
def post(sleepstudy_model):
    return sleepstudy_model.fit(method="laplace", draws=500, random_seed=2)


@pytest.fixture(params=["sleepstudy_reml", "post"])
def fit(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("name", SHARED)
def test_both_answer_to_every_name(fit, name):
    assert getattr(fit, name)() is not None


def test_labels_are_the_same(sleepstudy_reml, post):
    expected = [
        "beta[Intercept]",
        "beta[Days]",
        "sd[Subject, Intercept]",
        "sd[Subject, Days]",
        "cor[Subject, Intercept, Days]",
        "sigma",
    ]
    assert list(sleepstudy_reml.summary().index) == expected
    assert list(post.summary().index) == expected


def test_coef_is_beta_plus_u(fit):
    coef, u = fit.coef()["Subject"], fit.ranef()["Subject"]
    assert (coef - u).to_numpy() == pytest.approx(np.tile(fit.beta.to_numpy(), (18, 1)))


def test_coef_of_a_term_without_a_random_counterpart():
    data = blm.load_dataset("sleepstudy")
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", data).reml()
    coef = reml.coef()["Subject"]
    assert coef["Days"].to_numpy() == pytest.approx(np.full(18, reml.beta["Days"]))
    slopes = blm.LMM("Reaction ~ 1 + (Days | Subject)", data).reml()
    frame = slopes.coef()["Subject"]
    assert frame["Days"].to_numpy() == pytest.approx(slopes.ranef()["Subject"]["Days"].to_numpy())


def test_fitted_plus_residual_is_the_response(fit, sleepstudy_model):
    assert (fit.fitted() + fit.residuals()).to_numpy() == pytest.approx(
        sleepstudy_model.y.to_numpy()
    )
    fixed = fit.fitted(random_effects=False)
    assert fixed.to_numpy() == pytest.approx((sleepstudy_model.X @ fit.beta).to_numpy())
    u = np.concatenate([frame.to_numpy().ravel() for frame in fit.ranef().values()])
    assert fit.fitted().to_numpy() == pytest.approx(fixed.to_numpy() + sleepstudy_model.Z @ u)


def test_v_is_zgz_plus_r(fit, sleepstudy_model):
    z = sleepstudy_model.Z.toarray()
    expected = z @ fit.G().to_numpy() @ z.T + fit.R().to_numpy()
    assert fit.V().to_numpy() == pytest.approx(expected)
    assert fit.V(sparse=True).toarray() == pytest.approx(expected)
    assert fit.G().index.names == ["group", "level", "term"]
    assert list(fit.G().index) == list(sleepstudy_model.effect_labels)


def test_posterior_mean_of_g_is_the_mean_over_draws(post):
    draws = post.data["posterior"].to_dataset()
    sd, cor = draws["sd_Subject"].to_numpy(), draws["cor_Subject"].to_numpy()
    covariance = np.mean(sd[..., 0] * sd[..., 1] * cor[..., 0, 1])
    assert post.G().iloc[0, 1] == pytest.approx(covariance)


def test_icc_of_a_random_intercept_is_its_share():
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    between, within = reml.sds["Batch"].iloc[0] ** 2, reml.sigma**2
    assert reml.icc().loc["Batch", "estimate"] == pytest.approx(between / (between + within))


def test_varcorr_is_lme4s_table(sleepstudy_reml):
    table = sleepstudy_reml.varcorr()
    assert table["group"].tolist() == ["Subject"] * 3 + ["Residual"]
    assert table["sdcor"].round(2).tolist() == [24.74, 5.92, 0.07, 25.59]
    assert table.loc[2, ["term", "term_2"]].tolist() == ["Intercept", "Days"]


def test_what_is_missing_in_varcorr_is_missing_alike(sleepstudy_reml, post):
    """Also where no covariance is modelled, so that no row has a second term."""
    alone = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff")).reml()
    for table in (sleepstudy_reml.varcorr(), post.varcorr(), alone.varcorr()):
        text = table["group"].dtype
        assert table["term"].dtype == table["term_2"].dtype == text
        assert table["term_2"].isna().tolist() == [True] * len(table) or len(table) == 4
        missing = {repr(value) for value in [*table["term"], *table["term_2"]] if pd.isna(value)}
        assert len(missing) == 1


def test_tidy_has_broom_mixeds_columns(sleepstudy_reml, post):
    columns = ["effect", "group", "level", "term", "estimate", "std_error"]
    columns += ["conf_low", "conf_high"]
    every = ("fixed", "ran_pars", "ran_vals", "ran_coefs")
    for table in (sleepstudy_reml.tidy(every), post.tidy(every)):
        assert list(table.columns[:8]) == columns
        assert table["effect"].value_counts().to_dict() == {
            "fixed": 2,
            "ran_pars": 4,
            "ran_vals": 36,
            "ran_coefs": 36,
        }
    terms = sleepstudy_reml.tidy(("ran_pars",))["term"].tolist()
    assert terms == ["sd__Intercept", "sd__Days", "cor__Intercept.Days", "sd__Observation"]


def test_tidy_takes_one_effect_or_several_and_lists_them(fit):
    assert fit.tidy("fixed").equals(fit.tidy(("fixed",)))
    with pytest.raises(ValueError, match="'fixed', 'ran_pars', 'ran_vals', 'ran_coefs'"):
        fit.tidy(("fixed", "random"))


def test_ran_coefs_of_a_posterior_are_summed_on_draws(post):
    table = post.tidy(("ran_coefs",)).set_index(["level", "term"])
    draws = post.data["posterior"].to_dataset()
    sums = (
        draws["beta"].sel(coef="Days").to_numpy()
        + draws["u_Subject"].sel(Subject="308", Subject_coef="Days").to_numpy()
    )
    row = table.loc[("308", "Days")]
    assert row["estimate"] == pytest.approx(sums.mean())
    assert row["std_error"] == pytest.approx(sums.std(ddof=1))


def test_reml_counts_as_lme4_does(sleepstudy_reml):
    assert sleepstudy_reml.n_parameters == 6
    assert sleepstudy_reml.loglik == pytest.approx(-871.8141, abs=1e-4)
    assert sleepstudy_reml.aic == pytest.approx(1755.6283, abs=1e-4)
    assert sleepstudy_reml.bic == pytest.approx(1774.7861, abs=1e-4)


def test_repr_is_lme4s_print(sleepstudy_reml):
    assert repr(sleepstudy_reml).splitlines()[:10] == [
        "Linear mixed model fit by REML",
        "Formula: Reaction ~ Days + (Days | Subject)",
        "REML criterion at convergence: 1743.6283",
        "Random effects:",
        " Groups   Name      Std.Dev. Corr",
        " Subject  Intercept    24.74",
        "          Days         5.922  0.07",
        " Residual              25.59",
        "Number of obs: 180, groups: Subject, 18",
        "Fixed effects:",
    ]


def test_reprs_exist_in_html(fit, sleepstudy_model):
    assert "<table" in fit._repr_html_()
    assert "Subject, 18" in repr(sleepstudy_model)
    assert "HalfStudentT" in repr(sleepstudy_model.priors)
    assert "<table" in sleepstudy_model.priors._repr_html_()


def test_intervals_follow_arvizs_rcparams(post):
    import arviz as az

    with az.rc_context({"stats.ci_prob": 0.5, "stats.ci_kind": "hdi"}):
        frame = post.fixef()
    assert list(frame.columns) == ["mean", "sd", "median", "hdi50_lb", "hdi50_ub"]
    assert "eti90_lb" in post.fixef(prob=0.9)


def test_hdi_is_the_shortest_interval():
    from bayeslmm.summaries.posterior_tables import interval

    draws = np.random.default_rng(0).exponential(size=4000)[:, None]
    lower, upper = interval(draws, 0.8, "hdi")
    assert lower[0] == pytest.approx(0.0, abs=0.01)
    assert upper[0] == pytest.approx(-np.log(0.2), abs=0.15)


def test_a_singular_fit_is_reported_in_words():
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    assert reml.singular
    assert reml.converged
    assert reml.sds["Batch"].iloc[0] == 0.0
    assert reml.notes[0] == "sd[Batch, Intercept] is estimated at zero."
    assert "boundary" in repr(reml)
    table = reml.summary()
    assert np.isnan(table.loc["sd[Batch, Intercept]", "conf_low"])
    assert np.isfinite(table.loc["sigma", "std_error"])
    profile = reml.confint("profile")
    assert profile.loc["sd[Batch, Intercept]", "conf_low"] == 0.0
    assert profile.loc["sd[Batch, Intercept]", "lower_at_bound"]


def test_correlation_of_one_is_reported_in_words():
    from reference_data import load_reference_data

    reml = blm.LMM("y ~ x + (x | g)", load_reference_data("sim_corr_neg")).reml()
    assert reml.singular
    assert reml.notes[0] == "cor[g, Intercept, x] is estimated at -1."


def test_unknown_methods_list_the_known_ones(sleepstudy_model, sleepstudy_reml):
    with pytest.raises(ValueError, match="'auto', 'collapsed', 'nuts', 'laplace'"):
        sleepstudy_model.fit(method="gibbs")
    with pytest.raises(ValueError, match="'wald', 'profile' or 'bootstrap'"):
        sleepstudy_reml.confint("boot")


def test_a_model_that_reproduces_the_data_is_refused():
    data = pd.DataFrame({"g": np.repeat(list("abcd"), 5)})
    data["y"] = data["g"].map({"a": 1.0, "b": 2.5, "c": 0.3, "d": 7.0})
    with pytest.raises(DataError, match="reproduce the response exactly"):
        blm.LMM("y ~ 1 + (1 | g)", data).reml()


def test_huge_matrices_are_offered_sparse(sleepstudy_reml, monkeypatch):
    monkeypatch.setattr("bayeslmm.summaries.parameters.MAX_DENSE", 10)
    with pytest.raises(DataError, match=r"V\(sparse=True\)"):
        sleepstudy_reml.V()
    assert sleepstudy_reml.V(sparse=True).shape == (180, 180)


def test_log_likelihood_and_log_prior_on_request(post):
    extended = post.with_log_likelihood().with_log_prior().with_prior(50, random_seed=1)
    assert {"log_likelihood", "log_prior", "prior", "prior_predictive"} <= set(
        extended.data.children
    )
    draws = post.data["posterior"].to_dataset().isel(chain=0, draw=3)
    u = draws["u_Subject"].to_numpy().T
    mean = post.design.X @ draws["beta"].to_numpy()
    factor = post.design.random[0]
    mean = mean + np.sum(factor.Z * u[factor.codes], axis=1)
    from scipy.stats import norm

    expected = norm(mean, draws["sigma"].item()).logpdf(post.design.y)
    found = extended.data["log_likelihood"]["y"][0, 3].to_numpy()
    assert found == pytest.approx(expected)


def test_rows_dropped_are_counted_and_logged(caplog):
    data = blm.load_dataset("sleepstudy")
    data.loc[[3, 7], "Reaction"] = np.nan
    with caplog.at_level("INFO", logger="bayeslmm"):
        model = blm.LMM(FORMULA, data)
    assert (model.nobs, model.dropped) == (178, 2)
    assert sum("2" in record.message for record in caplog.records) == 1
    assert "2 incomplete rows dropped" in repr(model)


def test_results_are_frozen(sleepstudy_reml, post, sleepstudy_model):
    for value in (sleepstudy_reml, post, sleepstudy_model):
        with pytest.raises(AttributeError):
            value.design = None


@pytest.mark.parametrize("value", [95, 0, 1.0, "x", True])
def test_coverage_lies_between_0_and_1(sleepstudy_reml, post, value):
    message = "a number between 0 and 1 is expected, such as 0.95"
    for call in (
        sleepstudy_reml.confint,
        sleepstudy_reml.summary,
        sleepstudy_reml.tidy,
        sleepstudy_reml.fixef,
    ):
        with pytest.raises(ValueError, match=message):
            call(level=value)
    for call in (post.fixef, post.tidy, post.icc, post.varcorr):
        with pytest.raises(ValueError, match=message):
            call(prob=value)


def test_intervals_of_some_kinds(sleepstudy_reml):
    some = sleepstudy_reml.confint("profile", kinds=("sd", "sigma"))
    everything = sleepstudy_reml.confint("profile")
    assert list(some.index) == ["sd[Subject, Intercept]", "sd[Subject, Days]", "sigma"]
    assert some["conf_low"].to_numpy() == pytest.approx(
        everything.loc[some.index, "conf_low"].to_numpy()
    )


@pytest.fixture(scope="module")
def small():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"x": rng.normal(size=60), "g": np.repeat([f"g{i}" for i in range(6)], 10)})
    data["y"] = rng.normal(size=60) + np.repeat(rng.normal(size=6), 10)
    return data.assign(h=data["g"] + "!")


@pytest.mark.parametrize(
    ("formula", "names"),
    [
        ("y ~ g + (1 | g)", ["sd[g, Intercept]"]),
        ("y ~ x + (1 | g) + (1 | h)", ["sd[g, Intercept]", "sd[h, Intercept]"]),
    ],
)
def test_what_the_data_do_not_determine_has_no_standard_error(small, formula, names):
    reml = blm.LMM(formula, small).reml()
    table = reml.summary()
    assert table.loc[names, "std_error"].isna().all()
    assert np.isfinite(table.loc["sigma", "std_error"])
    assert f"do not determine {', '.join(names)}" in reml.notes[0]


def test_without_fixed_effects(small):
    model = blm.LMM("y ~ 0 + (1 | g)", small)
    post = model.fit(method="laplace", draws=50, random_seed=1)
    assert "none" in repr(model.reml())
    assert "none" in repr(post)
    assert post.fixef().empty
    assert post.with_log_likelihood().data["log_likelihood"]["y"].shape == (4, 50, 60)


@pytest.mark.parametrize("argument", ["draws", "chains"])
@pytest.mark.parametrize("value", [0, "10", 2.5, True])
def test_counts_are_checked_before_anything_runs(sleepstudy_model, argument, value):
    with pytest.raises(ValueError, match="a whole number of at least 1"):
        sleepstudy_model.fit(method="laplace", **{argument: value})


def test_target_accept_is_checked(sleepstudy_model):
    with pytest.raises(ValueError, match="target_accept=2"):
        sleepstudy_model.fit(method="nuts", target_accept=2)


def test_a_copy_of_the_response_is_refused(small):
    with pytest.raises(blm.FormulaError, match="cannot be one of its own predictors"):
        blm.LMM("y ~ x + y + (1 | g)", small)
    with pytest.raises(DataError, match="the fixed effects reproduce the response exactly"):
        blm.LMM("y ~ z + (1 | g)", small.assign(z=small["y"])).reml()
    with pytest.raises(DataError, match="Two columns of the fixed effects are called `Intercept`"):
        blm.LMM("y ~ Intercept + (1 | g)", small.rename(columns={"x": "Intercept"}))


def test_a_poor_approximation_says_so():
    poor = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
    post = poor.fit(method="laplace", random_seed=1)
    assert post.diagnostics.approximate
    assert "the Laplace approximation misses part of the posterior" in post.notes[0]
    good = blm.LMM("Reaction ~ Days + (Days | Subject)", blm.load_dataset("sleepstudy"))
    found = good.fit(method="laplace", random_seed=1)
    assert found.notes == ()
    assert "Pareto k" in str(found.diagnostics)


def test_a_mode_joint_in_beta_says_so(sleepstudy_model):
    import pymc as pm

    priors = {"Days": pm.StudentT.dist(nu=5, mu=0, sigma=50)}
    mode = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors=priors).map()
    assert "maximised together with the covariance parameters" in mode.notes[0]


def test_a_correlated_term_without_any_variance_is_exactly_zero():
    """Intercepts and slopes by group are taken out of the response, so that both sds are zero."""
    rng = np.random.default_rng(4)
    group, x = np.repeat(np.arange(8), 6), np.tile(np.arange(6.0), 8)
    noise = rng.normal(size=(8, 6))
    columns = np.column_stack([np.ones(6), np.arange(6.0)])
    fitted = columns @ np.linalg.lstsq(columns, noise.T)[0]
    data = pd.DataFrame({"g": group, "x": x, "y": 1.0 + x + (noise - fitted.T).ravel()})
    reml = blm.LMM("y ~ x + (x | g)", data).reml()
    assert reml.singular
    assert reml.sds["g"].tolist() == [0.0, 0.0]
    assert reml.notes[:2] == (
        "sd[g, Intercept] is estimated at zero.",
        "sd[g, x] is estimated at zero.",
    )


def test_kinds_of_intervals(sleepstudy_reml):
    assert list(sleepstudy_reml.confint(kinds="beta").index) == ["beta[Intercept]", "beta[Days]"]
    with pytest.raises(ValueError, match=r"kinds=\('fixed',\): any of 'beta', 'sd'"):
        sleepstudy_reml.confint(kinds=("fixed",))


def test_evidence_is_of_posteriors(sleepstudy_model, sleepstudy_reml):
    with pytest.raises(TypeError, match="Estimate has no evidence"):
        blm.bayes_factor(
            sleepstudy_model.fit(method="laplace", draws=10, random_seed=1), sleepstudy_reml
        )


# --- ordered categories ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        ("y ~ o + (1 | g)", True),
        ("y ~ C(o, contr.poly) + (1 | g)", False),
        ("y ~ u + (1 | g)", False),
    ],
)
def test_a_model_says_which_contrasts_ordered_categories_have(formula, said):
    data = pd.DataFrame({"g": np.repeat(list("abcd"), 6), "y": np.sin(np.arange(24.0) ** 2)})
    data["o"] = pd.cut(np.tile(np.arange(6), 4), [-1, 1, 3, 5], labels=["low", "mid", "high"])
    data["u"] = pd.Categorical(data["o"], ["low", "mid", "high"], ordered=False)
    model = blm.LMM(formula, data)
    line = "Ordered categories with treatment contrasts: o (R's are C(o, contr.poly))."
    assert (line in repr(model)) == said
    assert (line in " ".join(model.reml().notes)) is False
