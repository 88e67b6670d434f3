"""Models with residual structures, against nlme, SAS and Stan, and with hostile data."""

from __future__ import annotations

import json
from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
from reference_data import FOLDER, load_reference_data
from scipy.stats import kstest
from slow_cases import one_in, slow

import bayeslmm as blm
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained
from bayeslmm.sampling.collapsed import starting_approximation
from bayeslmm.sampling.joint_draws import draw_effects, points_of

FIGURES = FOLDER / "structures"
NLME = json.loads((FIGURES / "nlme.json").read_text())
SAS = json.loads((FIGURES / "sas.json").read_text())

CRITERION = 1e-5
PARAMETER = 1e-3
"""What nlme's optimiser leaves of the parameters, relative."""

PRINTED = 0.06
"""-2 log likelihoods with one decimal digit."""

DIGITS = 4e-4
"""Of estimates with four decimals from searches that stop 1e-5 above the minimum, relative."""

DF = 0.01
"""Of degrees of freedom printed as whole numbers of a hundred or more, relative."""

SAMPLER = 4.0
"""Monte Carlo standard errors; the largest of a dozen means counts."""


@cache
def fev():
    data = pd.read_csv(FIGURES / "fev_data.csv")
    levels = {"RACE": ["Asian", "Black or African American", "White"], "SEX": ["Male", "Female"]}
    levels["ARMCD"] = ["PBO", "TRT"]
    return data.assign(**{name: pd.Categorical(data[name], own) for name, own in levels.items()})


TRIAL = "FEV1 ~ ARMCD + AVISIT + ARMCD:AVISIT + RACE + SEX"


@cache
def trial():
    return blm.LMM(TRIAL, fev(), residual="us(AVISIT | USUBJID)").reml()


# --- nlme ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NLME)
def test_estimates_are_those_of_nlme(name):
    expected = NLME[name]
    data = load_reference_data(expected["data"])
    model = blm.LMM(expected["formula"], data, residual=expected["residual"])
    fit = model.reml() if expected["REML"] else model.ml()
    assert fit.converged
    assert fit.criterion == pytest.approx(expected["criterion"], abs=CRITERION)
    assert fit.beta.to_numpy() == pytest.approx(expected["beta"], rel=PARAMETER, abs=1e-6)
    if expected["REML"]:  # those of nlme's ML fits are scaled by n / (n - p)
        errors = fit.summary().loc[lambda t: t.index.str.startswith("beta"), "std_error"]
        assert errors.to_numpy() == pytest.approx(expected["se"], rel=PARAMETER)
    sds = [sd for part in fit.sds.values() for sd in part]
    assert sds == pytest.approx(expected["sds"], rel=PARAMETER, abs=1e-6)
    rows = np.array(expected["rows"]) - 1
    here = fit.R().to_numpy()[np.ix_(rows, rows)]
    assert here == pytest.approx(np.array(expected["R"]), rel=PARAMETER, abs=1e-6)


@pytest.mark.parametrize(
    "residual", ["us(age | Subject)", "us(age | Sex / Subject)", "csh(age | Subject)"]
)
def test_search_starts_near_the_mode(residual):
    """REML and its covariance matrix, on the coordinates of the sampler: 12 and 103 elsewhere."""
    model = blm.LMM("distance ~ age * Sex", blm.load_dataset("Orthodont"), residual=residual).model
    centre, root = starting_approximation(model)
    slope = log_posterior_unconstrained(model.system, model.priors, centre)[1]
    assert np.linalg.norm(root.T @ slope) < 3.0


# --- SAS -----------------------------------------------------------------------------------


def test_trial_is_that_of_sas():
    expected, fit = SAS["us_reml"], trial()
    assert fit.criterion == pytest.approx(expected["minus_two_log"], abs=PRINTED)
    table = fit.summary()
    for name, (estimate, error, df) in expected["fixed"].items():
        row = table.loc[f"beta[{name}]"]
        # a search that ends 7e-6 above ours moves an estimate by sqrt(7e-6) standard errors
        assert row["estimate"] == pytest.approx(estimate, abs=0.003 * error)
        assert row["std_error"] == pytest.approx(error, rel=DIGITS)
        assert row["df"] == pytest.approx(df, rel=DF)


def test_means_and_differences_are_those_of_sas():
    expected = SAS["us_reml"]
    # SAS weights the levels of RACE and SEX equally
    means = trial().means(["AVISIT", "ARMCD"], weights="equal")
    table = means.table()
    for visit, arm, estimate, error, df in expected["means"]:
        row = table.loc[(visit, arm)]
        assert row["estimate"] == pytest.approx(estimate, abs=0.003 * error)
        assert row["std_error"] == pytest.approx(error, rel=DIGITS)
        assert row["df"] == pytest.approx(df, rel=DF)
    table = means.contrasts("pairwise", adjust=None).table()
    for *cells, estimate, error, df in expected["differences"]:
        first, second = " ".join(cells[:2]), " ".join(cells[2:])
        turned = f"{first} - {second}" not in table.index
        row = table.loc[f"{second} - {first}" if turned else f"{first} - {second}"]
        sign = -1.0 if turned else 1.0
        assert sign * row["estimate"] == pytest.approx(estimate, abs=0.003 * error)
        assert row["std_error"] == pytest.approx(error, rel=DIGITS)
        assert row["df"] == pytest.approx(df, rel=DF)


@pytest.mark.parametrize("case", SAS["intercept"], ids=lambda c: f"{c['residual']} {c['method']}")
def test_structures_are_those_of_sas(case):
    model = blm.LMM("FEV1 ~ 1", fev(), residual=case["residual"])
    fit = getattr(model, case["method"])()
    assert fit.criterion == pytest.approx(case["minus_two_log"], abs=PRINTED)
    table = fit.summary()
    estimate, error, df = case["intercept"]
    assert table["estimate"].iloc[0] == pytest.approx(estimate, abs=0.003 * error)
    assert table["std_error"].iloc[0] == pytest.approx(error, rel=DIGITS)
    assert table["df"].iloc[0] == pytest.approx(df, rel=DF)
    names = table.index
    variances = table.loc[names.str.startswith("sigma"), "estimate"] ** 2
    assert variances.to_numpy() == pytest.approx(case["sds"], rel=1e-3)
    cors = table.loc[names.str.startswith("cor_residual"), "estimate"]
    assert cors.to_numpy() == pytest.approx(case["cors"], abs=5e-4)


def test_weights_beside_a_structure_are_those_of_sas():
    expected = SAS["weighted"]
    model = blm.LMM(
        expected["intercept_of"], fev(), residual="us(AVISIT | USUBJID)", weights="WEIGHT"
    )
    fit = model.reml()
    assert fit.criterion == pytest.approx(expected["minus_two_log"], abs=PRINTED)
    table = fit.summary()["estimate"]
    names = [f"sigma[VIS{i}]" for i in range(1, 5)]
    variances = dict(zip(names, expected["variances"], strict=True))
    for name, variance in variances.items():
        assert table[name] ** 2 == pytest.approx(variance, rel=1e-3)
    for pair, covariance in expected["covariances"].items():
        first, second = pair.split(", ")
        product = table[f"sigma[{first}]"] * table[f"sigma[{second}]"]
        assert table[f"cor_residual[{pair}]"] * product == pytest.approx(covariance, abs=0.02)


# --- Stan ----------------------------------------------------------------------------------

POSTERIORS = {
    "Orthodont__int_varident": "strata(Sex)",
    "Orthodont__compsymm": "cs(1 | Subject)",
    "Orthodont__unstructured": "us(age | Subject)",
    "Ovary__int_ar1": "ar1(1 | Mare)",
}


@cache
def posterior(name):
    reference = json.loads((FIGURES / f"{name}.json").read_text())
    formula = reference["formula"]
    for function in ("sin", "cos"):
        formula = formula.replace(f"{function}(2*pi*Time)", f"np.{function}(2*np.pi*Time)")
    data = load_reference_data(reference["dataset"])
    model = blm.LMM(formula, data, residual=POSTERIORS[name])
    return reference, model.fit(draws=2000, random_seed=3, progressbar=False)


@pytest.mark.parametrize("name", POSTERIORS)
def test_posteriors_are_those_of_stan(name):
    import arviz as az

    reference, fit = posterior(name)
    exact = reference.get("quadrature") or {}
    data = fit.data["posterior"].dataset
    others = [key for key in reference["parameters"] if not key.startswith("u[")]
    ours = [
        *(data["beta"].to_numpy()[..., i] for i in range(data.sizes["coef"])),
        *(data[f"sd_{factor.key}"].to_numpy()[..., 0] for factor in fit.design.random),
        *np.moveaxis(np.atleast_3d(data["sigma"].to_numpy()), 2, 0),
    ]
    if "cor_residual" in data:
        ours += [*np.moveaxis(np.atleast_3d(data["cor_residual"].to_numpy()), 2, 0)]
    assert len(ours) == len(others)
    for key, draws in zip(others, ours, strict=True):
        error = float(az.mcse(draws))
        stan = reference["parameters"][key]
        mean = exact.get("means", {}).get(key, stan["mean"])
        error = error if key in exact.get("means", {}) else np.hypot(error, stan["mcse_mean"])
        assert abs(draws.mean() - mean) < SAMPLER * error
        assert draws.std() == pytest.approx(stan["sd"], rel=0.08)
    evidence = exact.get("log_marginal_likelihood")
    check = reference["crosscheck"]
    expected = check["log_marginal_likelihood"] if evidence is None else evidence
    error = check["log_marginal_likelihood_se"] if evidence is None else 0.0
    found = fit.log_evidence
    assert abs(float(found) - expected) < SAMPLER * np.hypot(float(found.error), error)


# --- what follows the fit ------------------------------------------------------------------


def test_a_structure_prints_with_its_model():
    text = repr(trial())
    assert "VIS1" in text and "cor_residual[VIS1, VIS2]" in text


def test_the_methods_paragraph_names_the_structure():
    _, fit = posterior("Ovary__int_ar1")
    words = fit.methods_paragraph()
    assert "covariance structure ar1(1 | Mare)" in words
    assert "independent and normal" not in words


def test_files_keep_structures(tmp_path):
    _, fit = posterior("Ovary__int_ar1")
    fit.save(tmp_path / "fit.nc")
    again = blm.load(tmp_path / "fit.nc")
    pd.testing.assert_frame_equal(again.summary(), fit.summary())
    assert again.design.spec.residual.formula.source == "ar1(1 | Mare)"
    assert again.R().equals(fit.R())


def test_simulated_responses_have_the_covariance_of_the_model():
    data = load_reference_data("Orthodont")
    fit = blm.LMM(
        "distance ~ age * Sex + (1 | Subject)", data, residual="ar1(1 | Subject) * strata(Sex)"
    ).reml()
    values = fit.simulate(n=20_000, random_seed=1).to_numpy().T
    found, expected = np.cov(values[:, :8].T), fit.V().to_numpy()[:8, :8]
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.max(np.abs(found - expected) / scale) < 5.0 * np.sqrt(2.0 / 20_000)


def test_profiles_of_a_structure_lose_the_quantile():
    data = load_reference_data("Orthodont")
    model = blm.LMM("distance ~ age * Sex", data, residual="ar1(1 | Subject) * strata(Sex)")
    fit = model.reml()
    table = fit.confint("profile", kinds=("sigma", "cor_residual"))
    wald = fit.confint(kinds=("sigma", "cor_residual"))
    assert list(table.index) == ["sigma[Male]", "sigma[Female]", "cor_residual"]
    # both are first-order right: they differ by less than half their length
    length = wald["conf_high"] - wald["conf_low"]
    assert ((table["conf_low"] - wald["conf_low"]).abs() < 0.5 * length).all()
    assert ((table["conf_high"] - wald["conf_high"]).abs() < 0.5 * length).all()


def test_map_under_flat_priors_is_reml():
    data = load_reference_data("Orthodont")
    for residual in ("us(age | Subject)", "ar1(1 | Subject) * strata(Sex)"):
        model = blm.LMM("distance ~ age", data, residual=residual, priors="flat")
        assert model.map().beta.to_numpy() == pytest.approx(model.reml().beta.to_numpy(), rel=1e-6)


@pytest.mark.parametrize("formula", ["y ~ 1 + (1 | g)", slow("y ~ 1 + (1 | g) + (1 | h)")])
def test_random_effects_that_are_not_stored_are_those_of_the_draws(formula):
    """A stratum ten times as precise as the other decides what the effects are."""
    rng = np.random.default_rng(1)
    n = 90
    data = pd.DataFrame({"g": np.repeat(np.arange(15), 6), "h": np.tile(np.arange(6), 15)})
    data["f"] = np.where(np.arange(n) % 3 == 0, "p", "q")
    noise = rng.normal(size=n) * np.where(data["f"] == "p", 0.3, 3.0)
    data["y"] = 1.0 + rng.normal(size=15)[data["g"]] + noise
    model = blm.LMM(formula, data, residual="strata(f)")
    post = model.fit(draws=100, random_seed=1)
    stored = post.data["posterior"]["u_g"]
    mean, sd = stored.mean(("chain", "draw")).to_numpy(), stored.std(("chain", "draw")).to_numpy()
    summary = model.fit(draws=100, random_seed=2, store_u=False).data["random_effects"]
    assert summary["u_g_mean"].to_numpy() == pytest.approx(mean, abs=0.2 * sd.max())
    assert summary["u_g_sd"].to_numpy() == pytest.approx(sd, rel=0.25)
    beta = post.data["posterior"]["beta"].to_numpy().reshape(400, 1)
    points = points_of(model.design, post.data["posterior"].dataset)
    wanted = [np.arange(15), np.zeros(0, dtype=np.intp)][: len(model.design.random)]
    u = draw_effects(model.model.system, points, beta, wanted, rng)[0]
    assert u.mean(axis=0) == pytest.approx(mean.T, abs=0.2 * sd.max())


# --- hostile input -------------------------------------------------------------------------


def rows():
    frame = pd.DataFrame({"id": np.repeat(list("abcdef"), 4), "visit": np.tile([1, 2, 3, 4], 6)})
    rng = np.random.default_rng(0)
    return frame.assign(
        y=rng.normal(size=24),
        time=frame["visit"] + 0.5 * (frame["id"] == "a"),
        arm=np.where(frame["id"] < "d", "x", "z"),
        one="same",
        w=rng.normal(size=24),
    )


@pytest.mark.parametrize(
    ("residual", "message"),
    [
        ("us(visit)", "needs the groups"),
        ("uss(visit | id)", "Did you mean us"),
        ("us(visit | id) * cs(visit | id)", "two correlation structures"),
        ("us(visit | id) * strata(arm)", "variances of its own"),
        ("strata(arm) * strata(visit)", "strata by several|Strata by several"),
        ("ar1(time | id) +", "joined by"),
        ("us(visit | idd)", "`idd` is not a column"),
        ("power(w, w)", "expected"),
        ("", "expected"),
        ("car1(visit + w | id)", "one variable of time"),
        ("exec('x') | id", "no meaning|no residual structure"),
    ],
)
def test_misspelt_structures(residual, message):
    with pytest.raises(FormulaError, match=message):
        blm.LMM("y ~ 1", rows(), residual=residual)


@pytest.mark.parametrize(
    ("residual", "change", "message"),
    [
        ("us(visit | id)", {"visit": 1}, "one level"),
        ("us(visit | id)", {"id": "a"}, "has two rows at `visit`"),
        ("us(time | id)", {}, "holds fractions"),
        ("ar1(time | id)", {}, "has fractions"),
        ("car1(arm | id)", {}, "must hold numbers"),
        ("power(w)", {}, "needs positive values"),
        ("power(visit)", {"visit": 2}, "same value"),
        ("strata(one)", {}, "one level"),
        ("cs(visit | arm / id)", {"arm": list("xz") * 12}, "two values of `arm`"),
        ("ar1(visit | id:visit)", {}, "more than one row|stands twice"),
    ],
)
def test_hostile_data(residual, change, message):
    with pytest.raises((DataError, FormulaError), match=message):
        blm.LMM("y ~ 1", rows().assign(**change), residual=residual)


def test_duplicates_are_named():
    data = pd.concat([rows(), rows().iloc[[5]]])
    with pytest.raises(DataError, match=r"`b` of id has two rows at `visit` 2 \(1 such rows"):
        blm.LMM("y ~ 1", data, residual="us(visit | id)")


def test_missing_occasions_and_incomplete_rows():
    data = rows()
    data.loc[[3, 10], "y"] = np.nan
    data.loc[7, "visit"] = np.nan
    model = blm.LMM("y ~ 1", data, residual="ar1(visit | id)")
    assert model.nobs == 21
    assert model.reml().converged


def test_new_rows_need_the_variables_of_the_structure():
    model = blm.LMM("y ~ 1", rows(), residual="us(visit | id)")
    fit = model.reml()
    new = pd.DataFrame({"id": ["a", "new"], "visit": [1, 2]})
    assert len(fit.predict(new, target="average", kind="response", random_seed=1)) == 2
    with pytest.raises(DataError, match="is not an occasion"):
        fit.predict(new.assign(visit=9), target="average", kind="response", random_seed=1)
    with pytest.raises(DataError, match="visit"):
        fit.predict(new[["id"]], target="average", kind="response", random_seed=1)


def test_priors_of_residuals_by_key():
    import pymc as pm

    keys = {"sigma[1]": pm.HalfNormal.dist(2), "cor_residual": pm.Uniform.dist(0, 1)}
    model = blm.LMM("y ~ 1", rows(), residual="ar1h(visit | id)", priors=keys)
    table = model.priors.table().set_index("parameter")
    assert table.loc["sigma[1]", "source"] == "user"
    assert table.loc["sigma[2]", "source"] == "default"
    assert table.loc["cor_residual", "source"] == "user"
    with pytest.raises(PriorError, match=r"sigma\[9\]"):
        blm.LMM("y ~ 1", rows(), residual="ar1h(visit | id)", priors={"sigma[9]": keys["sigma[1]"]})
    lkj = pm.LKJCorr.dist(n=4, eta=2)
    with pytest.raises(PriorError, match="between -1 and 1"):
        blm.LMM("y ~ 1", rows(), residual="ar1(visit | id)", priors={"cor_residual": lkj})
    blm.LMM("y ~ 1", rows(), residual="us(visit | id)", priors={"cor_residual": lkj})


def test_a_right_model_raises_no_alarm():
    rng = np.random.default_rng(4)
    n, m = 60, 5
    errors = np.zeros((n, m))
    errors[:, 0] = rng.normal(size=n)
    for t in range(1, m):
        errors[:, t] = 0.6 * errors[:, t - 1] + 0.8 * rng.normal(size=n)
    data = pd.DataFrame(
        {"y": 3.0 + errors.ravel(), "t": np.tile(range(m), n), "id": np.repeat(range(n), m)}
    )
    fit = blm.LMM("y ~ t", data, residual="ar1(t | id)").fit(random_seed=2, progressbar=False)
    assert fit.diagnostics.ok
    interval = fit.summary().loc["cor_residual"]
    assert abs(interval["mean"] - 0.6) < 3 * interval["sd"]


# --- leaving rows and groups out, against dense algebra --------------------------------------

EXACT = 1e-8
LEFT_OUT = {
    "no random effects": ("distance ~ age * Sex", "us(age | Subject)"),
    "lead": ("distance ~ age * Sex + (age | Subject)", "ar1(age | Subject) * strata(Sex)"),
    "tail": ("distance ~ age + (1 | Subject) + (1 | age)", "cs(age | Subject)"),
    "crossing": ("distance ~ age + (1 | age)", "car1(age | Subject)"),
    "variances": ("distance ~ age + (1 | Subject)", "power(age) * strata(Sex)"),
}


@cache
def small_posterior(name):
    formula, residual = LEFT_OUT[name]
    data = load_reference_data("Orthodont").iloc[np.r_[0:3, 4:24, 64:66, 67:84]]
    model = blm.LMM(formula, data, residual=residual)
    return model.fit(method="laplace", draws=40, random_seed=1, progressbar=False)


def marginal_moments(fit, draw):
    """Mean and covariance of the response, effects integrated out, at one draw."""
    design, priors = fit.design, fit.priors
    joint = fit._joint
    point = joint.points.take(slice(draw, draw + 1))
    z = design.Z_matrix().toarray()
    blocks = [
        np.kron(np.eye(factor.n_levels), root[draw] @ root[draw].T)
        for factor, root in zip(design.random, joint.roots, strict=True)
    ]
    g = np.zeros((z.shape[1],) * 2)
    start = 0
    for block in blocks:
        g[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    r = point.residual.covariance(design.residual_rows, point.sigma, point.shapes).toarray()
    spread = np.linalg.inv(priors.beta_root.T @ priors.beta_root)
    v = z @ g @ z.T + r + design.X @ spread @ design.X.T
    return design.X @ priors.beta_mean, v, r


@pytest.mark.parametrize(("by", "name"), one_in(3, product([None, "Subject", "Sex"], LEFT_OUT)))
def test_leaving_out_is_dense_algebra(name, by):
    from scipy.stats import multivariate_normal

    from bayeslmm.checks.integrated import case_groups, leave_out

    fit = small_posterior(name)
    if by == "Sex" and name in ("tail", "crossing"):
        by = "age"
    groups = None if by is None else case_groups(fit.design, by).codes
    found = leave_out(fit.model, fit._joint, groups)
    y = fit.design.y
    members = np.arange(len(y)) if groups is None else groups
    for draw in (0, 17):
        mean, v, r = marginal_moments(fit, draw)
        linear = v - r
        inverse = np.linalg.inv(v)
        fitted = mean + linear @ inverse @ (y - mean)
        spread = linear - linear @ inverse @ linear
        for group in range(int(members.max()) + 1):
            out = members == group
            rest = ~out
            solved = np.linalg.solve(v[np.ix_(rest, rest)], v[np.ix_(rest, out)])
            centre = mean[out] + solved.T @ (y[rest] - mean[rest])
            cov = v[np.ix_(out, out)] - v[np.ix_(out, rest)] @ solved
            expected = multivariate_normal(centre, cov).logpdf(y[out])
            assert found.log_density[draw, group] == pytest.approx(expected, abs=1e-6, rel=EXACT)
            if by is None:
                assert found.mean[draw, group] == pytest.approx(centre[0], rel=EXACT)
                assert found.sd[draw, group] == pytest.approx(np.sqrt(cov[0, 0]), rel=EXACT)
            cov = (spread + r)[np.ix_(out, out)]
            expected = multivariate_normal(fitted[out], cov).logpdf(y[out])
            assert found.in_sample[draw, group] == pytest.approx(expected, abs=1e-6, rel=EXACT)


def test_residuals_of_each_kind():
    reml = blm.LMM(
        "distance ~ age * Sex + (1 | Subject)",
        load_reference_data("Orthodont"),
        residual="ar1(age | Subject) * strata(Sex)",
    ).reml()
    r, v = reml.R().to_numpy(), reml.V().to_numpy()
    design = reml.design
    marginal = design.y - design.X @ reml.beta.to_numpy()
    response = r @ np.linalg.solve(v, marginal)
    assert reml.residuals().to_numpy() == pytest.approx(response, rel=1e-6, abs=1e-8)
    pearson = response / np.sqrt(np.diag(r))
    assert reml.residuals("pearson").to_numpy() == pytest.approx(pearson, rel=1e-6, abs=1e-8)
    white = np.linalg.solve(np.linalg.cholesky(r), response)
    assert reml.residuals("normalised").to_numpy() == pytest.approx(white, rel=1e-6, abs=1e-8)


@cache
def by_sex():
    return blm.LMM(
        "distance ~ age + (1 | Subject)", load_reference_data("Orthodont"), residual="strata(Sex)"
    )


@cache
def posterior_by_sex():
    return by_sex().fit(random_seed=1)


def test_singularity_is_relative_to_the_residuals_of_all_rows():
    reml, post = by_sex().reml(), posterior_by_sex()
    typical = np.sqrt(np.mean(np.diag(reml.R().to_numpy())))
    found = reml.check.singularity().table.loc["sd[Subject, Intercept]", "relative"]
    assert found == pytest.approx(reml.sds["Subject"].iloc[0] / typical, rel=EXACT)
    table = post.check.singularity().table.loc["sd[Subject, Intercept]"]
    typical = np.sqrt(np.mean(np.diag(post.R().to_numpy())))
    # ratio of means for mean of ratios
    assert table["relative"] == pytest.approx(
        post.data["posterior"]["sd_Subject"].mean().item() / typical, rel=0.05
    )
    assert 0.0 <= table["support"] < 1e-3  # between children is most of the variance


def test_rows_with_fitted_values_have_residuals_in_their_own_units():
    post = posterior_by_sex()
    draws, design = post.data["posterior"], post.design
    beta = draws["beta"].to_numpy().reshape(-1, design.p)
    u = draws["u_Subject"].to_numpy().reshape(len(beta), -1)
    sigma = draws["sigma"].to_numpy().reshape(len(beta), 2)
    fitted = beta @ design.X.T + u[:, design.random[0].codes]
    labels = draws["stratum"].to_numpy().tolist()
    stratum = [labels.index(sex) for sex in design.data["Sex"]]
    expected = np.mean((design.y - fitted) / sigma[:, stratum], axis=0)
    assert post.augment()[".pearson_resid"].to_numpy() == pytest.approx(expected, abs=EXACT)


def test_pictures_of_residuals_are_of_normalised_ones():
    reml = by_sex().reml()
    drawn = reml.plot.residuals(backend="none").viz["points"]["Q-Q of residuals"].item()
    expected = np.sort(reml.residuals("normalised").to_numpy())
    assert drawn["y"] == pytest.approx(expected)


# --- a structure that is one file and one row of a table ---------------------------------------


class TestMovingAverage:
    """Neighbours only; the range of their correlation is wider than that of a stationary MA(1)."""

    def test_beyond_the_largest_of_an_infinite_sequence(self):
        rng = np.random.default_rng(8)
        omega = np.eye(4) + 0.57 * (np.abs(np.subtract.outer(range(4), range(4))) == 1)
        y = rng.multivariate_normal(np.zeros(4), omega, 400)
        data = pd.DataFrame({"y": y.ravel(), "t": np.tile(np.arange(4), 400)})
        data["g"] = np.repeat(np.arange(400), 4)
        model = blm.LMM("y ~ 1", data, residual="ma1(t | g)")
        estimate = model.reml()
        residual = estimate.R().to_numpy()
        assert residual[1, 0] / residual[0, 0] == pytest.approx(0.57, abs=0.02)
        draws = model.fit(random_seed=1).data["posterior"]["cor_residual"].to_numpy()
        assert draws.max() < 0.5 / np.cos(np.pi / 5)
        assert draws.mean() == pytest.approx(0.57, abs=0.02)

    def test_prior_is_uniform_on_what_is_positive_definite(self):
        data = blm.load_dataset("Orthodont")
        model = blm.LMM("distance ~ 1", data, residual="ma1(age | Subject)").model
        z = model.priors.residuals.sample(np.random.default_rng(1), 2000)[1]
        rho = model.design.residual.structure.correlation.correlations(z)[:, 0]
        share = (rho * 2.0 * np.cos(np.pi / 5) + 1.0) / 2.0
        assert kstest(share, "uniform").pvalue > 1e-3
