"""Variance explained: intraclass correlations, R2, partition of the variance."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from reference_data import FOLDER, load_reference_data
from slow_cases import one_in

import bayeslmm as blm
from bayeslmm.exceptions import DataError
from bayeslmm.sampling.joint_draws import all_levels
from bayeslmm.summaries import variance_explained

# Two optimisers at one optimum: variances differ by the square root of the criterion's precision.
OPTIMUM = 1e-5
# At a boundary lme4 stops short of it.
BOUNDARY = 1e-3
# The same numbers by another order of floating-point operations.
EXACT = 1e-9
# Standard deviations of quantities of 4000 draws are good to 1 %, their 2.5 % quantiles to 4 % of
# a standard deviation; three times that.
QUANTILE = 0.12

FITS = {
    fit["id"]: fit
    for fit in json.loads(
        (FOLDER / "variance_explained" / "variance_explained.json").read_text(encoding="utf-8")
    )["fits"]
}
# insight 0.19 takes only the first term of `||`, and drops random coefficients that are no fixed
# effects by name
INSIGHT_LOSES = {
    "sleepstudy uncorrelated": 0,
    "sleepstudy slope not fixed": 0,
    "Machines cells": None,
}
INSIGHT_IGNORES_WEIGHTS = {"weights", "weights slope"}
SINGULAR = {"Dyestuff2", "weights slope"}


def lmm(id_):
    fit = FITS[id_]
    return blm.LMM(fit["formula"], load_reference_data(fit["data"]), weights=fit["weights"])


@pytest.fixture(scope="module")
def estimates():
    """REML and ML estimates of the reference fits."""
    return {id_: (lmm(id_).reml if fit["REML"] else lmm(id_).ml)() for id_, fit in FITS.items()}


def variances(table):
    """Variance of the fixed effects, of all random effects and of the residual."""
    column = "variance" if "variance" in table else "variance_mean"
    return table.groupby("component")[column].sum()[["fixed", "random", "residual"]].to_numpy()


# --- lme4, insight and performance -----------------------------------------------------


@pytest.mark.parametrize("id_", FITS)
def test_parts_are_those_of_lme4(estimates, id_):
    table = estimates[id_].variance_partition()
    expected = FITS[id_]["lme4"]
    tolerance = BOUNDARY if id_ in SINGULAR else OPTIMUM
    by_group = table[table["component"] == "random"].groupby("group")["variance"].sum()
    theirs = {":".join(sorted(k.split(":"))): v for k, v in expected["random"].items()}
    ours = {":".join(sorted(k.split(":"))): v for k, v in by_group.items()}
    small = tolerance * expected["residual"]
    assert ours == pytest.approx(theirs, rel=tolerance, abs=small)
    fixed, _, residual = variances(table)
    assert fixed == pytest.approx(expected["fixed"], rel=tolerance, abs=EXACT)
    assert residual == pytest.approx(expected["residual"], rel=tolerance)


@pytest.mark.parametrize(
    "id_", sorted(FITS.keys() - INSIGHT_LOSES - INSIGHT_IGNORES_WEIGHTS - SINGULAR)
)
def test_r2_and_icc_are_those_of_performance(estimates, id_):
    expected = FITS[id_]["performance"]
    r2 = estimates[id_].r2()["estimate"]
    assert r2["marginal"] == pytest.approx(expected["r2_marginal"], rel=OPTIMUM, abs=EXACT)
    assert r2["conditional"] == pytest.approx(expected["r2_conditional"], rel=OPTIMUM)
    adjusted = estimates[id_].icc()["estimate"].sum()
    assert adjusted == pytest.approx(expected["icc_adjusted"], rel=OPTIMUM)
    unadjusted = r2["conditional"] - r2["marginal"]
    assert unadjusted == pytest.approx(expected["icc_unadjusted"], rel=OPTIMUM)


@pytest.mark.parametrize("id_", sorted(INSIGHT_LOSES))
def test_insight_loses_random_coefficients(estimates, id_):
    """The known difference: without the lost coefficients the variance is insight's."""
    reml = estimates[id_]
    _, random, residual = variances(reml.variance_partition())
    expected = FITS[id_]["insight"]
    assert expected["random"] < (1 - OPTIMUM) * random
    assert residual == pytest.approx(expected["residual"], rel=OPTIMUM)
    first = INSIGHT_LOSES[id_]
    if first is not None:
        assert reml._covariances[0][first, first] == pytest.approx(expected["random"], rel=OPTIMUM)


def test_insight_ignores_weights(estimates):
    reml, expected = estimates["weights"], FITS["weights"]
    fixed, random, residual = variances(reml.variance_partition())
    mean_inverse = np.mean(1.0 / load_reference_data("sim_weights")["w"])
    unweighted = residual / mean_inverse
    assert unweighted == pytest.approx(expected["insight"]["residual"], rel=OPTIMUM)
    total = fixed + random + unweighted
    theirs = expected["performance"]
    assert fixed / total == pytest.approx(theirs["r2_marginal"], rel=OPTIMUM)
    assert (fixed + random) / total == pytest.approx(theirs["r2_conditional"], rel=OPTIMUM)
    assert mean_inverse < 0.9


def test_singular_fits_have_values_where_performance_has_none(estimates):
    for id_ in SINGULAR:
        assert FITS[id_]["performance"]["r2_conditional"] is None
        assert np.isfinite(estimates[id_].r2()["estimate"]).all()
    assert estimates["Dyestuff2"].icc()["estimate"].to_list() == [0.0]
    assert estimates["Dyestuff2"].variance_partition()["share"].to_list() == [0.0, 0.0, 1.0]
    assert estimates["weights slope"].icc()["estimate"].iloc[0] > 0.1


# --- brute force -----------------------------------------------------------------------

MODELS = {
    "slopes": ("Reaction ~ Days + (Days | Subject)", "sleepstudy", None),
    "independent": ("Reaction ~ Days + (Days || Subject)", "sleepstudy", None),
    "crossed": ("diameter ~ 1 + (1 | plate) + (1 | sample)", "Penicillin", None),
    "independent and crossed": (
        "yield ~ nitro + (nitro || Block) + (1 | Variety)",
        "Oats",
        None,
    ),
    "nested": ("strength ~ 1 + (1 | batch/cask)", "Pastes", None),
    "cells": ("score ~ 0 + Machine + (0 + Machine | Worker)", "Machines", None),
    "weighted": ("y ~ x + (x | g)", "sim_weights", "w"),
    "offset": ("y ~ x + offset(o) + (1 | g)", "sim_offset", None),
    "no fixed effects": ("Reaction ~ 0 + (1 | Subject)", "sleepstudy", None),
}


@pytest.fixture(scope="module")
def models():
    return {
        name: blm.LMM(formula, load_reference_data(data), weights=weights)
        for name, (formula, data, weights) in MODELS.items()
    }


@pytest.fixture(scope="module")
def posts(models):
    return {
        name: model.fit(method="laplace", draws=40, chains=2, random_seed=3)
        for name, model in models.items()
    }


def flat(post, name):
    values = post.data["posterior"][name].to_numpy()
    return values.reshape(80, *values.shape[2:])


def by_hand(post):
    """Per draw: var(X beta), mean diagonals of Z_f G_f Z_f' and of R, var(X beta + Z u)."""
    design = post.design
    inverse = np.ones(design.n) if design.weights is None else 1.0 / design.weights
    rows = []
    for s in range(80):
        mean = design.X @ flat(post, "beta")[s]
        fitted, random = mean.copy(), []
        for factor in design.random:
            sds = flat(post, f"sd_{factor.key}")[s]
            corr = flat(post, f"cor_{factor.key}")[s] if len(sds) > 1 else np.eye(1)
            block = sds[:, None] * corr * sds
            z = np.zeros((design.n, factor.n_levels * len(sds)))
            for i, code in enumerate(factor.codes):
                z[i, code * len(sds) : (code + 1) * len(sds)] = factor.Z[i]
            random.append(np.mean(np.diag(z @ np.kron(np.eye(factor.n_levels), block) @ z.T)))
            fitted += z @ flat(post, f"u_{factor.key}")[s].T.ravel()
        residual = np.mean(flat(post, "sigma")[s] ** 2 * inverse)
        rows.append([np.var(mean, ddof=1), *random, residual, np.var(fitted, ddof=1)])
    return np.array(rows)


@pytest.mark.parametrize("name", one_in(2, MODELS))
def test_posterior_tables_summarise_what_each_draw_gives(posts, name):
    post = posts[name]
    hand = by_hand(post)
    fixed, random, residual, fitted = hand[:, 0], hand[:, 1:-2], hand[:, -2], hand[:, -1]
    total = fixed + random.sum(axis=1) + residual
    icc = random / (random.sum(axis=1) + residual)[:, None]
    expected = {
        "icc": icc,
        "marginal": fixed / total,
        "conditional": (total - residual) / total,
        "gelman": fitted / (fitted + residual),
    }
    table = post.icc(0.8)
    assert table["mean"].to_numpy() == pytest.approx(icc.mean(axis=0), rel=EXACT)
    assert table["sd"].to_numpy() == pytest.approx(icc.std(axis=0, ddof=1), rel=EXACT)
    assert table["eti80_lb"].to_numpy() == pytest.approx(np.quantile(icc, 0.1, axis=0), rel=EXACT)
    for method, row, key in (
        ("nakagawa", "marginal", "marginal"),
        ("nakagawa", "conditional", "conditional"),
        ("gelman", "marginal", "marginal"),
        ("gelman", "conditional", "gelman"),
    ):
        line = post.r2(method, 0.8).loc[row]
        values = expected[key]
        assert line["mean"] == pytest.approx(values.mean(), rel=EXACT, abs=EXACT)
        assert line["median"] == pytest.approx(np.median(values), rel=EXACT, abs=EXACT)
        assert line["eti80_ub"] == pytest.approx(np.quantile(values, 0.9), rel=EXACT, abs=EXACT)


@pytest.mark.parametrize("name", one_in(2, MODELS))
def test_partition_summarises_variances_and_shares_of_each_draw(posts, name):
    post = posts[name]
    parts = by_hand(post)[:, :-1]
    shares = parts / parts.sum(axis=1, keepdims=True)
    table = post.variance_partition()
    assert table["share_mean"].sum() == pytest.approx(1.0, rel=EXACT)
    groups = table["group"].where(table["component"] == "random", table["component"])
    summed = table.groupby(groups, sort=False)[["variance_mean", "share_mean"]].sum()
    assert summed["variance_mean"].to_numpy() == pytest.approx(parts.mean(axis=0), rel=EXACT)
    assert summed["share_mean"].to_numpy() == pytest.approx(shares.mean(axis=0), rel=EXACT)
    assert table["share_sd"].iloc[-1] == pytest.approx(shares[:, -1].std(ddof=1), rel=EXACT)
    assert table["variance_sd"].iloc[0] == pytest.approx(parts[:, 0].std(ddof=1), abs=EXACT)


@pytest.mark.parametrize("name", MODELS)
def test_shares_of_an_estimate_are_those_of_the_diagonal_of_v(models, name):
    reml = models[name].reml()
    design = reml.design
    z = design.Z_matrix().toarray()
    groups = design.Z_labels().get_level_values("group")
    g = reml.G().to_numpy()
    total = np.mean(np.diag(reml.V().to_numpy()))
    for factor in design.random:
        own = np.flatnonzero(groups == factor.name)
        part = np.mean(np.diag(z[:, own] @ g[np.ix_(own, own)] @ z[:, own].T))
        assert reml.icc().loc[factor.name, "estimate"] == pytest.approx(part / total, rel=EXACT)


def test_independent_coefficients_of_a_factor_have_rows_of_their_own(posts, models):
    table = models["independent"].reml().variance_partition()
    assert table["component"].to_list() == ["fixed", "random", "random", "residual"]
    assert table["term"].to_list()[1:3] == ["Intercept", "Days"]
    days = load_reference_data("sleepstudy")["Days"].to_numpy()
    sds = models["independent"].reml().sds["Subject"].to_numpy()
    expected = sds**2 * [1.0, np.mean(days**2)]
    assert table["variance"].to_numpy()[1:3] == pytest.approx(expected, rel=EXACT)
    assert posts["slopes"].variance_partition()["term"].to_list()[1] == "Intercept, Days"


def test_conditional_r2_of_fitted_values_is_arviz_bayesian_r2(posts):
    import arviz_stats as az

    post = posts["crossed"]
    design = post.design
    mu = np.einsum("cdp,np->cdn", post.data["posterior"]["beta"].to_numpy(), design.X)
    for factor in design.random:
        u = post.data["posterior"][f"u_{factor.key}"].to_numpy()
        mu += u[:, :, 0, factor.codes]
    draws = xr.Dataset(
        {"mu": (("chain", "draw", "obs"), mu), "sigma": post.data["posterior"]["sigma"]}
    )
    theirs = az.bayesian_r2(
        xr.DataTree.from_dict({"posterior": draws}), pred_mean="mu", scale="sigma", summary=False
    )
    ours = post.r2("gelman").loc["conditional"]
    assert ours["sd"] == pytest.approx(np.std(theirs, ddof=1), rel=EXACT)
    assert ours["mean"] == pytest.approx(np.mean(theirs), rel=EXACT)


# --- covariates ------------------------------------------------------------------------


def test_icc_at_covariates_by_hand(posts, models):
    days = np.array([0.0, 5.0, 9.0, -2.5])
    post, reml = posts["slopes"], models["slopes"].reml()

    def shares(cov, sigma):
        z = np.column_stack([np.ones(4), days])
        between = np.array([row @ cov @ row for row in z])
        return between / (between + sigma**2)

    table = reml.icc(at={"Days": days})
    assert table.index.names == ["group", "Days"]
    assert table.index.to_list() == [("Subject", day) for day in days]
    expected = shares(reml._covariances[0], reml.sigma)
    assert table["estimate"].to_numpy() == pytest.approx(expected, rel=EXACT)
    draws = []
    for sd, corr, sigma in zip(
        flat(post, "sd_Subject"), flat(post, "cor_Subject"), flat(post, "sigma"), strict=True
    ):
        draws.append(shares(sd[:, None] * corr * sd, sigma))
    table = post.icc(0.5, at=pd.DataFrame({"Days": days}))
    assert table["mean"].to_numpy() == pytest.approx(np.mean(draws, axis=0), rel=EXACT)
    quarter = np.quantile(draws, 0.25, axis=0)
    assert table["eti50_lb"].to_numpy() == pytest.approx(quarter, rel=EXACT)


def test_icc_at_covariates_is_a_correlation_in_v():
    """Of two observations of one worker on one machine."""
    data = load_reference_data("Machines")
    reml = blm.LMM("score ~ Machine + (Machine | Worker)", data).reml()
    v = reml.V().to_numpy()
    table = reml.icc(at={"Machine": ["A", "B", "C"]})["estimate"]
    for machine in "ABC":
        i, j, *_ = np.flatnonzero((data["Machine"] == machine) & (data["Worker"] == "3"))
        expected = v[i, j] / np.sqrt(v[i, i] * v[j, j])
        assert table["Worker", machine] == pytest.approx(expected, rel=EXACT)


def test_icc_at_covariates_with_several_factors_and_transforms():
    data = load_reference_data("sleepstudy").assign(
        half=lambda d: (d["Days"] > 4).map({True: "b", False: "a"})
    )
    data["lab"] = [f"l{i % 4}" for i in range(len(data))]
    formula = "Reaction ~ center(Days) + half + (center(Days) | Subject) + (1 | lab)"
    reml = blm.LMM(formula, data).reml()
    # half is of no consequence and need not be there
    table = reml.icc(at={"Days": [0.0, 9.0]})
    assert table.index.names == ["group", "Days"]
    z = np.array([[1.0, -4.5], [1.0, 4.5]])
    subject = np.einsum("ri,ij,rj->r", z, reml._covariances[0], z)
    lab = np.full(2, reml._covariances[1][0, 0])
    total = subject + lab + reml.sigma**2
    expected = np.concatenate([subject / total, lab / total])
    assert table.index.to_list() == [(g, day) for g in ("Subject", "lab") for day in (0.0, 9.0)]
    assert table["estimate"].to_numpy() == pytest.approx(expected, rel=EXACT)
    same = reml.icc(at={"Days": [0.0, 9.0], "half": "b", "other": 1})
    assert same.index.names == ["group", "Days", "half"]
    assert same["estimate"].to_numpy() == pytest.approx(expected, rel=EXACT)


def test_icc_of_random_intercepts_is_the_same_at_all_covariates():
    reml = blm.LMM("Reaction ~ Days + (1 | Subject)", load_reference_data("sleepstudy")).reml()
    table = reml.icc(at={"Days": [0, 5]})
    assert table["estimate"].to_numpy() == pytest.approx(
        np.repeat(reml.icc()["estimate"].to_numpy(), 2), rel=EXACT
    )


def test_icc_at_covariates_has_weight_one_unless_given(models):
    reml = models["weighted"].reml()
    between = np.array([1.0, 2.0]) @ reml._covariances[0] @ [1.0, 2.0]
    one = reml.icc(at={"x": 2.0})["estimate"].iloc[0]
    four = reml.icc(at={"x": 2.0, "w": 4.0})["estimate"].iloc[0]
    assert one == pytest.approx(between / (between + reml.sigma**2), rel=EXACT)
    assert four == pytest.approx(between / (between + reml.sigma**2 / 4.0), rel=EXACT)


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ({"days": [1]}, "no column `Days`.* Their column `days` is similar: rename it"),
        ({"Days": [np.nan, 1.0]}, "missing values"),
        ({"Days": [np.inf]}, "infinite"),
        ({"Days": ["a"]}, "numerical"),
        ({"Days": []}, "no rows"),
        (5, "data frame"),
    ],
)
def test_covariates_that_cannot_be_used(models, posts, at, message):
    for fit in (models["slopes"].reml(), posts["slopes"]):
        with pytest.raises(DataError, match=message):
            fit.icc(at=at)


def test_covariates_of_another_model(models):
    with pytest.raises(DataError, match=r"no covariate of the model \(it has none\).*`Days`"):
        models["crossed"].reml().icc(at={"Days": [1]})


# --- uncertainty of estimates ----------------------------------------------------------


def test_laplace_interval_of_a_share_is_the_delta_method_on_the_logit():
    """Logit ICC = 2 log(sd / sigma) is exactly normal among the draws."""
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", load_reference_data("Dyestuff")).reml()
    table = reml.icc(0.95, uncertainty="laplace", draws=4000, random_seed=1).loc["Batch"]
    contrast = np.array([2.0, -2.0])
    sd = np.sqrt(contrast @ reml.fit.parameter_cov @ contrast)
    logit = np.log(table / (1.0 - table))
    assert logit["estimate"] == pytest.approx(contrast @ reml.fit.parameters, rel=EXACT)
    for bound, sign in (("conf_low", -1), ("conf_high", 1)):
        expected = logit["estimate"] + sign * 1.959964 * sd
        assert logit[bound] == pytest.approx(expected, abs=QUANTILE * sd)


def test_uncertainty_covers_all_tables(models):
    reml = models["independent"].reml()
    options = {"uncertainty": "laplace", "draws": 200, "random_seed": 1}
    for call in (reml.icc, reml.r2):
        table = call(**options)
        assert list(table) == ["estimate", "std_error", "conf_low", "conf_high"]
        assert (table["conf_low"] < table["estimate"]).all()
        assert (table["estimate"] < table["conf_high"]).all()
        pd.testing.assert_frame_equal(table, call(**options))
        pd.testing.assert_frame_equal(table[["estimate"]], call())
        narrow = call(0.5, **options) if call == reml.icc else call(level=0.5, **options)
        assert (narrow["conf_high"] < table["conf_high"]).all()
    gelman = reml.r2("gelman", **options).loc["conditional"]
    assert gelman["estimate"] < gelman["conf_high"]
    table = reml.variance_partition(**options)
    expected = ["estimate", "std_error", "conf_low", "conf_high"]
    named = [f"{v}_{c}" for v in ("variance", "share") for c in expected]
    names = [name.removesuffix("_estimate") for name in named]
    assert list(table) == ["component", "group", "term", *names]
    assert (table["variance_conf_low"] < table["variance"]).all()
    assert (table["share"] < table["share_conf_high"]).all()


def test_bootstrap_serves_singular_estimates():
    reml = blm.LMM("Yield ~ 1 + (1 | Batch)", load_reference_data("Dyestuff2")).reml()
    table = reml.icc(uncertainty="bootstrap", draws=20, random_seed=1).loc["Batch"]
    assert table["conf_low"] == table["estimate"] == 0.0
    assert 0.0 < table["conf_high"] < 1.0
    folded = reml.icc(uncertainty="laplace", draws=400, random_seed=1).loc["Batch"]
    assert 0.0 <= folded["conf_low"] < 0.01
    assert 0.0 < folded["conf_high"] < 1.0


def test_map_estimates_have_shares(models):
    table = models["slopes"].map().r2(uncertainty="laplace", draws=50, random_seed=1)
    assert table["estimate"].between(0.0, 1.0).all()
    assert (table["std_error"] > 0.0).all()


# --- random effects that are not stored ------------------------------------------------


def test_fitted_variance_does_not_depend_on_how_it_is_split(posts, monkeypatch):
    for name in ("slopes", "crossed"):
        post = posts[name]
        whole = variance_explained.fitted_variance(post.design, post._joint)
        monkeypatch.setattr(variance_explained, "AT_ONCE", 80 * 7)
        split = variance_explained.fitted_variance(post.design, post._joint)
        monkeypatch.undo()
        assert split == pytest.approx(whole, rel=EXACT)


def test_posteriors_without_stored_random_effects(models):
    """Other draws of the random effects given the same draws of everything else."""
    stored, bare = (
        models["slopes"].fit(method="collapsed", draws=100, random_seed=4, store_u=u)
        for u in (True, False)
    )
    assert "u_Subject" not in bare.data["posterior"]
    size = bare._joint.size
    for method in ("nakagawa", "gelman"):
        first, second = stored.r2(method), bare.r2(method)
        error = 5.0 * first["sd"] / np.sqrt(size)
        assert ((first["mean"] - second["mean"]).abs() < error).all()
    assert bare.icc()["mean"].iloc[0] == pytest.approx(stored.icc()["mean"].iloc[0], abs=0.01)


def test_too_many_random_effects_are_refused(posts, monkeypatch):
    monkeypatch.setattr(variance_explained, "MOST_EFFECTS", 80 * 29)
    assert sum(len(levels) for levels in all_levels(posts["crossed"].design)) == 30
    with pytest.raises(DataError, match="'gelman' needs 80 draws of 30 random effects"):
        posts["crossed"].r2("gelman")
    posts["slopes"].r2("gelman")


# --- invariance ------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_shares_do_not_depend_on_units_and_origin(models, scale):
    data = load_reference_data("sleepstudy")
    moved = data.assign(Reaction=scale * (data["Reaction"] - 1000.0), Days=data["Days"] / scale)
    reml, other = models["slopes"].reml(), blm.LMM(models["slopes"].formula, moved).reml()
    for call in ("icc", "r2"):
        ours, theirs = getattr(reml, call)(), getattr(other, call)()
        assert theirs["estimate"].to_numpy() == pytest.approx(ours["estimate"], rel=OPTIMUM)
    gelman = other.r2("gelman")["estimate"].to_numpy()
    assert gelman == pytest.approx(reml.r2("gelman")["estimate"], rel=OPTIMUM)
    at = other.icc(at={"Days": [5.0 / scale]})["estimate"].iloc[0]
    assert at == pytest.approx(reml.icc(at={"Days": 5.0})["estimate"].iloc[0], rel=OPTIMUM)
    ratio = other.variance_partition()["variance"] / reml.variance_partition()["variance"]
    assert ratio.to_numpy() == pytest.approx(scale**2, rel=OPTIMUM)


def test_covariates_far_from_zero_do_not_cancel(models):
    """Intercepts at a far origin have huge variances; those of the response are as before."""
    far = load_reference_data("sleepstudy").assign(Days=lambda d: d["Days"] + 1e5)
    reml = blm.LMM(models["slopes"].formula, far).reml()
    expected = models["slopes"].reml().variance_partition()["variance"].to_numpy()
    assert reml.variance_partition()["variance"].to_numpy() == pytest.approx(expected, rel=1e-4)


def test_dropped_rows_do_not_count():
    data = load_reference_data("sleepstudy")
    gaps = data.assign(Days=data["Days"].astype(float).where(data.index % 7 > 0))
    formula = "Reaction ~ Days + (Days | Subject)"
    first = blm.LMM(formula, gaps).reml()
    second = blm.LMM(formula, gaps.dropna()).reml()
    assert len(first.design.dropped) > 0
    for call in ("icc", "r2", "variance_partition"):
        pd.testing.assert_frame_equal(getattr(first, call)(), getattr(second, call)())


# --- options ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uncertainty": "plugin"}, "'laplace', 'bootstrap'"),
        ({"uncertainty": "wald"}, "'laplace', 'bootstrap'"),
        ({"draws": 1}, "draws=1"),
        ({"draws": 10.5}, r"draws=10\.5"),
        ({"draws": True}, "draws=True"),
        ({"level": 95}, "level=95"),
    ],
)
def test_options_are_checked(models, options, message):
    reml = models["slopes"].reml()
    for call in (reml.icc, reml.r2, reml.variance_partition):
        with pytest.raises(ValueError, match=message):
            call(**options)


def test_methods_and_probabilities_are_checked(models, posts):
    for fit in (models["slopes"].reml(), posts["slopes"]):
        with pytest.raises(ValueError, match="'nakagawa' or 'gelman'"):
            fit.r2("bayes")
    for call in (posts["slopes"].icc, posts["slopes"].r2, posts["slopes"].variance_partition):
        with pytest.raises(ValueError, match="prob=95"):
            call(prob=95)


def test_intervals_follow_arviz(posts):
    from arviz_base import rc_context

    with rc_context({"stats.ci_prob": 0.5, "stats.ci_kind": "hdi"}):
        table = posts["slopes"].variance_partition()
        assert "hdi50_lb" in posts["slopes"].r2()
    assert {"variance_hdi50_lb", "share_hdi50_ub"} <= set(table)
