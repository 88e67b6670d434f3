"""Models without random effects: least squares in closed form, and every public verb."""

from __future__ import annotations

import pickle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import integrate, optimize, stats
from statsmodels.stats.anova import anova_lm

import bayeslmm as blm
from bayeslmm.__main__ import main

EXACT = 1e-9
# The slope of the criterion at the optimum is zero to about 1e-8 of its curvature.
OPTIMUM = 1e-6
FORMULA = "Reaction ~ Days"


@pytest.fixture(scope="module")
def sleep():
    return blm.load_dataset("sleepstudy")


@pytest.fixture(scope="module")
def model(sleep):
    return blm.LMM(FORMULA, sleep)


@pytest.fixture(scope="module")
def reml(model):
    return model.reml()


@pytest.fixture(scope="module")
def post(model):
    return model.fit(draws=1000, chains=4, random_seed=1)


@pytest.fixture(scope="module")
def few(model):
    """Of few draws, for what is asked of draws whatever their number."""
    return model.fit(draws=100, chains=2, random_seed=1)


@pytest.fixture(scope="module")
def laplace(model):
    return model.fit(method="laplace", draws=200, chains=2, random_seed=1)


@pytest.fixture(params=["reml", "map", "post", "laplace"])
def fit(request, model):
    return model.map() if request.param == "map" else request.getfixturevalue(request.param)


# --- least squares --------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_reml_is_least_squares(sleep, weighted):
    frame = sleep.assign(w=np.linspace(0.5, 3.0, len(sleep)))
    fit = blm.LMM("Reaction ~ Days + Subject", frame, weights="w" if weighted else None).reml()
    weights = frame["w"] if weighted else np.ones(len(frame))
    known = smf.wls("Reaction ~ Days + Subject", frame, weights=weights).fit()
    order = list(fit.beta.index)
    assert fit.beta.to_numpy() == pytest.approx(known.params[order].to_numpy(), rel=EXACT)
    vcov = known.cov_params().loc[order, order].to_numpy()
    assert fit.vcov.to_numpy() == pytest.approx(vcov, rel=OPTIMUM, abs=OPTIMUM)
    assert fit.sigma == pytest.approx(np.sqrt(known.scale), rel=OPTIMUM)
    table = fit.fixef()
    assert table["df"].to_numpy() == pytest.approx(known.df_resid, rel=OPTIMUM)
    assert table["statistic"].to_numpy() == pytest.approx(
        known.tvalues[order].to_numpy(), rel=OPTIMUM
    )
    limits = table[["conf_low", "conf_high"]].to_numpy()
    assert limits == pytest.approx(known.conf_int().loc[order].to_numpy(), rel=OPTIMUM)


def test_criteria_in_closed_form(model, reml, sleep):
    X, y = np.column_stack([np.ones(len(sleep)), sleep["Days"]]), sleep["Reaction"].to_numpy()
    n, p = X.shape
    rss = float(np.linalg.lstsq(X, y)[1][0])
    restricted = (n - p) * (np.log(2 * np.pi * rss / (n - p)) + 1) + np.linalg.slogdet(X.T @ X)[1]
    assert reml.criterion == pytest.approx(restricted, rel=EXACT)
    ml = model.ml()
    assert ml.sigma == pytest.approx(np.sqrt(rss / n), rel=OPTIMUM)
    known = smf.ols(FORMULA, sleep).fit()
    assert ml.loglik == pytest.approx(known.llf, rel=EXACT)
    assert ml.aic == pytest.approx(known.aic + 2, rel=EXACT)  # statsmodels does not count sigma
    assert ml.n_parameters == 3


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_anova_is_that_of_least_squares(sleep, kind):
    names = {"Days": "Days", "C(Subject, contr.sum)": "C(Subject, Sum)"}
    ours, theirs = (f"Reaction ~ {' + '.join(terms)}" for terms in (names, names.values()))
    table = blm.LMM(ours, sleep).reml().anova(kind)
    if kind == 1:  # statsmodels puts factors first, whatever the formula says
        theirs = "Reaction ~ Days"
        table = blm.LMM("Reaction ~ Days", sleep).reml().anova(kind)
    fitted = smf.ols(theirs, sleep).fit()
    known = anova_lm(fitted, typ=kind).loc[[names[term] for term in table.index]]
    assert table["statistic"].to_numpy() == pytest.approx(known["F"].to_numpy(), rel=OPTIMUM)
    assert table["den_df"].to_numpy() == pytest.approx(fitted.df_resid, rel=OPTIMUM)


def test_every_table_has_the_residual_degrees_of_freedom(reml, sleep):
    days = {"Days": [0, 5]}
    tables = [
        reml.means("Days", at=days),
        reml.contrasts("Days", at=days),
        reml.slopes("Days"),
        reml.slopes("Days", target="conditional"),
        reml.comparisons("Days"),
        reml.average_predictions(),
        reml.hypothesis("Days > 10"),
    ]
    for table in tables:
        assert table.table()["df"].to_numpy() == pytest.approx(len(sleep) - 2, rel=OPTIMUM)
    for test in (reml.contest([[0, 1]]), reml.anova()):
        assert test["den_df"].to_numpy() == pytest.approx(len(sleep) - 2, rel=OPTIMUM)


def test_profile_of_sigma_in_closed_form(reml, sleep):
    left, best = len(sleep) - 2, reml.sigma
    bound = stats.chi2.ppf(0.95, 1)

    def excess(log_ratio):
        return left * (2 * log_ratio + np.exp(-2 * log_ratio) - 1) - bound

    ends = [best * np.exp(optimize.brentq(excess, *ends)) for ends in ((-1, 0), (0, 1))]
    table = reml.confint(method="profile")
    assert table.loc["sigma", ["conf_low", "conf_high"]].to_numpy(dtype=float) == pytest.approx(
        ends, rel=1e-4
    )


def test_influence_is_that_of_least_squares(reml, sleep):
    known = smf.ols(FORMULA, sleep).fit().get_influence()
    table = reml.check.influence().table
    assert table["leverage"].to_numpy() == pytest.approx(known.hat_matrix_diag, rel=OPTIMUM)
    assert table["cooks_distance"].to_numpy() == pytest.approx(known.cooks_distance[0], rel=1e-5)


# --- the posterior --------------------------------------------------------------------


def log_evidence(frame, centre, scale, everything):
    """Log evidence by quadrature over sigma; the priors are those of all the data."""
    Xc = np.column_stack([np.ones(len(frame)), frame["Days"] - everything["Days"].mean()])
    prior = np.diag([scale, scale / everything["Days"].std()]) ** 2 * 2.5**2
    fixed = Xc @ prior @ Xc.T
    values, vectors = np.linalg.eigh(fixed)
    rest = (vectors.T @ (frame["Reaction"].to_numpy() - centre)) ** 2

    def log_density(sigma):
        total = sigma**2 + np.maximum(values, 0.0)
        normal = -0.5 * np.sum(np.log(2 * np.pi * total) + rest / total)
        return normal + np.log(2) + stats.t.logpdf(sigma / scale, 3) - np.log(scale)

    top = log_density(47.7)
    area, _ = integrate.quad(lambda s: np.exp(log_density(s) - top), 30, 80, epsabs=0, limit=200)
    return top + np.log(area)


def test_evidence_and_cross_validation_by_quadrature(post, sleep):
    centre, scale = sleep["Reaction"].mean(), sleep["Reaction"].std()
    whole = log_evidence(sleep, centre, scale, sleep)
    found = post.log_evidence
    assert found.value == pytest.approx(whole, abs=max(0.02, 4 * found.error))
    scores = post.loo(progressbar=False).elpd_i.to_numpy()
    for row in (0, 9, 56, 99):
        without = log_evidence(sleep.drop(index=sleep.index[row]), centre, scale, sleep)
        assert scores[row] == pytest.approx(whole - without, abs=0.01)


def test_leaving_groups_out_by_quadrature(post, sleep):
    centre, scale = sleep["Reaction"].mean(), sleep["Reaction"].std()
    scores = post.loo(by="Days", progressbar=False).elpd_i.to_numpy()
    without = log_evidence(sleep[sleep["Days"] != 9], centre, scale, sleep)
    whole = log_evidence(sleep, centre, scale, sleep)
    assert scores[9] == pytest.approx(whole - without, abs=0.05)


@pytest.mark.slow
def test_samplers_agree(model, post):
    nuts = model.fit(
        method="nuts", form="marginal", draws=500, chains=2, random_seed=1, progressbar=False
    )
    for name in post.summary().index:
        ours, theirs = post.summary().loc[name], nuts.summary().loc[name]
        error = np.hypot(ours["mcse_mean"], theirs["mcse_mean"])
        assert abs(ours["mean"] - theirs["mean"]) < 5 * error
    assert set(nuts.data["posterior"].data_vars) == {"beta", "sigma"}


@pytest.mark.parametrize("form", ["noncentered", "centered", "marginal"])
def test_every_form_has_the_same_variables(model, form):
    names = {variable.name for variable in model.pymc(form).free_RVs}
    assert "sigma" in names
    assert not any("u_" in name or "sd_" in name for name in names)


# --- tests of a random effect ---------------------------------------------------------


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_random_intercept_is_tested_on_the_boundary(sleep, method):
    fits = [
        getattr(blm.LMM(formula, sleep), method)()
        for formula in (FORMULA, f"{FORMULA}+(1|Subject)")
    ]
    table = blm.lrt(*fits[::-1])
    gain = 2 * (fits[1].loglik - fits[0].loglik)
    assert table["chisq"].iloc[1] == pytest.approx(gain)
    assert table["df"].iloc[1] == 1
    assert table["p_value"].iloc[1] == pytest.approx(stats.chi2.sf(gain, 1))
    compared = blm.compare({"without": fits[0], "with": fits[1]})
    assert list(compared.index) == ["without", "with"]
    assert compared["p_value"].iloc[1] == table["p_value"].iloc[1]


@pytest.mark.parametrize("method", ["ml", "reml"])
def test_a_variance_of_zero_is_the_model_without_it(method):
    data = blm.load_dataset("Dyestuff2")
    small, large = (
        getattr(blm.LMM(formula, data), method)()
        for formula in ("Yield ~ 1", "Yield ~ 1+(1|Batch)")
    )
    assert large.singular
    assert large.criterion == pytest.approx(small.criterion, abs=1e-6)
    assert blm.lrt(small, large)["p_value"].iloc[1] == pytest.approx(1.0, abs=1e-3)


# --- every verb -----------------------------------------------------------------------

ANSWERS = [
    *("summary", "fixef", "varcorr", "R", "V", "G", "fitted", "residuals", "r2", "tidy", "glance"),
    *("augment", "variance_partition", "methods_paragraph", "to_html", "to_latex", "to_markdown"),
    *("simulate", "average_predictions", "__repr__", "_repr_html_"),
]


@pytest.mark.parametrize("verb", ANSWERS)
def test_verbs_of_both_fits_answer(fit, verb):
    answer = getattr(fit, verb)()
    text = answer if isinstance(answer, str) else str(answer)
    for loose in ("groups:", "()", "mixed model", "Random effects"):
        assert loose not in text


REFUSED = {
    "ranef": lambda fit: fit.ranef(),
    "ranef_sd": lambda fit: fit.ranef_sd(),
    "coef": lambda fit: fit.coef(),
    "icc": lambda fit: fit.icc(),
    "icc at": lambda fit: fit.icc(at={"Days": 1}),
    "singularity": lambda fit: fit.check.singularity(),
    "caterpillar": lambda fit: fit.plot.caterpillar(backend="none"),
    "G": lambda fit: fit.plot.covariance("G", rows=[0, 1], backend="none"),
    "covariance levels": lambda fit: fit.plot.covariance(levels=["308"], backend="none"),
    "fitted group": lambda fit: fit.plot.fitted(group="Subject", backend="none"),
    "residuals group": lambda fit: fit.plot.residuals(group="Subject", backend="none"),
}


@pytest.mark.parametrize("verb", REFUSED)
def test_verbs_about_random_effects_refuse_in_words(fit, verb):
    with pytest.raises(blm.DataError, match="`Reaction ~ Days` has no random effects, so"):
        REFUSED[verb](fit)


@pytest.mark.parametrize("verb", ["shrinkage", "draw_u"])
def test_verbs_of_a_posterior_refuse_in_words(post, verb):
    call = post.plot.shrinkage if verb == "shrinkage" else post.draw_u
    with pytest.raises(blm.DataError, match="has no random effects, so there is no grouping"):
        call()


def test_matrices(fit, sleep):
    variance = fit.varcorr()["vcov"].iloc[0]
    assert fit.G().shape == (0, 0)
    assert fit.R().to_numpy() == pytest.approx(variance * np.eye(len(sleep)))
    pd.testing.assert_frame_equal(fit.V(), fit.R())
    assert fit.G(sparse=True).shape == (0, 0)


def test_tables_of_levels_are_empty(fit):
    table = fit.tidy("ran_vals")
    assert len(table) == 0
    assert list(table)[:4] == ["effect", "group", "level", "term"]
    both = fit.tidy(["fixed", "ran_vals", "ran_coefs"])
    assert list(both["effect"]) == ["fixed", "fixed"]
    assert both["estimate"].dtype == float
    assert fit.sds == {}
    assert fit.corrs == {}


@pytest.mark.parametrize("kind", ["linpred", "epred", "response"])
@pytest.mark.parametrize("target", ["conditional", "new", "population", "average"])
def test_every_target_is_the_same_prediction(fit, target, kind):
    new = pd.DataFrame({"Days": [0.0, 20.0]})
    table = fit.predict(new, target=target, kind=kind, random_seed=1)
    centre = table.iloc[:, 0].to_numpy()
    spread = 1e-9 if "estimate" in table and kind != "response" else 5.0
    assert centre == pytest.approx(fit.beta.to_numpy() @ np.array([[1, 1], [0, 20]]), abs=spread)


def test_pictures(fit):
    pictures = [
        fit.plot.fitted(backend="none"),
        fit.plot.fitted("Days", backend="none"),
        fit.plot.residuals(backend="none"),
        fit.plot.covariance(rows=[0, 1, 2], backend="none"),
        fit.plot.covariance("R", backend="none"),
    ]
    assert list(pictures[0].viz["fitted"].data_vars) == ["all rows"]
    assert list(pictures[2].viz["qq_line"].data_vars) == ["Q-Q of residuals"]
    assert pictures[3].get_viz("heatmap")["values"].shape == (3, 3)


def test_pictures_are_drawn(few, reml):
    few.plot.fitted(), few.plot.residuals(), few.plot.covariance(rows=[0, 1])
    few.plot.prior_posterior(), few.plot.predictive(), few.plot.reml(reml)
    plt.close("all")


def test_lines_are_averages_over_the_other_covariates(sleep):
    fit = blm.LMM("Reaction ~ Days + Subject", sleep).reml()
    line = fit.plot.fitted("Days", backend="none").viz["fitted"]["all rows"].item()
    expected = fit.average_predictions("Days").table()["estimate"].iloc[[0, -1]]
    assert np.asarray(line["y"])[[0, -1]] == pytest.approx(expected.to_numpy())


def test_checks(fit):
    fit.check.residuals(20, random_seed=1)
    if fit.method not in ("MAP",):
        fit.check.influence(by="Days")
    assert " ()" not in repr(fit.check.influence())
    with pytest.raises((blm.DataError, ValueError), match=r"by='Subject'|REML and ML"):
        fit.check.influence(by="Subject")


def test_checks_of_a_posterior(post):
    post.check.sensitivity(), post.check.contraction(random_seed=1), post.check.predictive()
    pit = post.check.loo_pit(progressbar=False)
    assert pit.between(0, 1).all()
    found = post.findings()
    assert "no random effects" in found["singularity"].verdict
    assert [item.topic for item in found if not item.run] == ["singularity"]


def test_groups_of_a_posterior(few, tmp_path):
    again = few.with_log_likelihood().with_log_prior().with_prior(20).with_posterior_predictive()
    assert {"log_likelihood", "log_prior", "prior", "posterior_predictive"} <= set(again.data)
    for name in ("fit.nc", "fit.zarr"):
        few.save(tmp_path / name)
        loaded = blm.load(tmp_path / name)
        assert repr(loaded) == repr(few)
        assert loaded.extend(10, random_seed=2).data["posterior"].sizes["draw"] == 110


@pytest.mark.slow
def test_report(post, tmp_path):
    text = post.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Linear model of Reaction" in text
    assert "The model has no random effects." in text
    for loose in ("None", "levels of", "()", "Linear mixed model"):
        assert loose not in text.split("<style")[0] + text.split("</style>")[1].split("<script")[0]


def test_methods_in_words(model, reml, post):
    said = reml.methods_paragraph(references=True)
    assert "t distributions with 178 degrees of freedom" in said
    assert "lme4" not in said
    assert "with the fixed effects integrated out" in model.map().methods_paragraph()
    said = post.methods_paragraph()
    assert "sampled with the fixed effects integrated out" in said
    assert "random" not in said


def test_models_change_between_with_and_without(model, sleep):
    with_them = model.update("~ . + (1 | Subject)", data=sleep)
    assert len(with_them.design.random) == 1
    without = with_them.update("~ . - (1 | Subject)")
    assert without.reml().criterion == pytest.approx(model.reml().criterion)
    assert blm.LMM.from_fit(without.reml()).formula == without.formula
    assert model.Z.shape == (len(sleep), 0)
    assert len(model.effect_labels) == 0
    assert repr(model).splitlines() == [
        "Linear model",
        "Formula: Reaction ~ Days",
        "Number of obs: 180",
    ]


def test_functions_of_the_package(sleep, post, reml):
    other = blm.LMM(f"{FORMULA} + (1 | Subject)", sleep).fit(draws=200, random_seed=1)
    assert blm.compare({"a": post, "b": other}, progressbar=False).index[0] == "b"
    assert blm.bayes_factor(other, post).log > 0
    assert list(blm.compare_reml(post, reml)["flag"]) == ["agrees"] * 3
    for form in ("html", "latex", "markdown"):
        assert "Days" in blm.model_table({"a": post, "b": reml, "c": other}, format=form)


def test_fits_are_pickled(fit):
    assert repr(pickle.loads(pickle.dumps(fit))) == repr(fit)


def test_priors_and_calibration(model, sleep):
    assert "r2[marginal]" in model.implied_priors(200, random_seed=1).table.index
    assert "prior" in model.prior_predictive(10, random_seed=1)
    check = model.check_calibration(
        3, method="laplace", draws=100, random_seed=1, progressbar=False
    )
    assert "sigma" in check.table().index
    with pytest.raises(blm.PriorError, match=r"no parameter 'sd\[Subject\]'"):
        blm.LMM(FORMULA, sleep, priors={"sd[Subject]": None})
    flat = blm.LMM(FORMULA, sleep, priors="flat")
    assert flat.map().sigma == pytest.approx(flat.reml().sigma, rel=1e-6)


def test_resampling(reml):
    assert len(reml.bootstrap(20, random_seed=1, progressbar=False)) == 20
    limits = reml.confint(method="bootstrap", draws=20, random_seed=1, progressbar=False)
    assert list(limits.index) == list(reml.summary().index)


def test_command_line(capsys):
    arguments = [FORMULA, "sleepstudy", "--draws", "50", "--chains", "2", "--seed", "1", "--quiet"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("Linear model\n")
    assert "groups" not in out


# --- small and odd models -------------------------------------------------------------


@pytest.mark.parametrize("formula", ["y ~ 1", "y ~ 0 + x", "y ~ x + offset(z)", "y ~ f", "y ~ 0"])
def test_small_models(formula):
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"x": rng.normal(size=12), "z": rng.normal(size=12), "f": list("abcd") * 3})
    data["y"] = data["x"] + data["z"] + rng.normal(size=12)
    model = blm.LMM(formula, data)
    post = model.fit(draws=100, chains=2, random_seed=1)
    reml = model.reml()
    left = 12 - model.design.p
    assert reml.sigma == pytest.approx(np.sqrt(np.sum(reml.residuals() ** 2) / left), rel=OPTIMUM)
    for fit in (post, reml):
        repr(fit), fit.summary(), fit.methods_paragraph(), fit.check.influence(), fit.r2()
    assert np.isfinite(post.loo(progressbar=False).elpd)


def test_fixed_effects_with_priors_of_their_own(sleep):
    import pymc as pm

    model = blm.LMM(FORMULA, sleep, priors={"Days": pm.StudentT.dist(nu=4, mu=0, sigma=20)})
    post = model.fit(draws=200, chains=2, random_seed=1)
    assert "sampled: fixed effects and covariance parameters by" in post.methods_paragraph()
    assert np.isfinite(post.loo(progressbar=False).elpd)
