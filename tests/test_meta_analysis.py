"""Meta-analyses: known covariance matrices of residuals, heterogeneity, new units."""

import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from scipy import stats
from scipy.linalg import block_diag

import bayeslmm as blm
from bayeslmm.checks.singularity import working_points
from bayeslmm.covariance.known import KnownCorrelation
from bayeslmm.exceptions import DataError, FormulaError, PriorError
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.log_posterior import log_likelihood_batch
from bayeslmm.report.page import parameters_section
from bayeslmm.summaries.posterior_tables import parameter_table

HERE = Path(__file__).parent / "reference" / "meta"
REFERENCE = json.loads((HERE / "meta.json").read_text(encoding="utf-8"))

OUTCOMES = "difference ~ 0 + outcome + (0 + outcome | trial)"


def known_matrix(frame):
    """V of the periodontal trials, in the order of the rows."""
    blocks = frame.groupby("trial", observed=True, sort=False)[["cov_pd", "cov_al"]]
    return block_diag(*[block.to_numpy() for _, block in blocks])


@pytest.fixture(scope="module")
def bcg():
    return blm.load_dataset("bcg")


@pytest.fixture(scope="module")
def gums():
    frame = blm.load_dataset("periodontal")
    return frame.assign(since=frame["year"] - 1983)


@pytest.fixture(scope="module")
def V(gums):
    return known_matrix(gums)


@pytest.fixture(scope="module")
def labelled(gums, V):
    """The trials with labels, and V by label in another order."""
    names = [f"{t}{o}" for t, o in zip(gums["trial"], gums["outcome"], strict=True)]
    order = np.random.default_rng(1).permutation(len(names))
    matrix = pd.DataFrame(V, index=names, columns=names).iloc[order, order[::-1]]
    return gums.assign(row=names), matrix


def shares(found, quantity="I2"):
    return found.table.filter(like=f"{quantity}[", axis=0)


def two_outcomes(frame, matrix, formula=OUTCOMES, **options):
    return blm.LMM(
        formula, frame, residual="known(V | trial)", covariances={"V": matrix}, **options
    )


@pytest.fixture
def no_limits(monkeypatch):
    """For tests that compare no profile limits of standard deviations, which take most time."""
    monkeypatch.setattr("bayeslmm.effects.heterogeneity._tau_limits", lambda *_: {})


@pytest.fixture(scope="module")
def reml(gums, V):
    return two_outcomes(gums, V).reml()


@pytest.fixture(scope="module")
def heterogeneity(reml):
    return reml.heterogeneity(df="asymptotic")


@pytest.fixture(scope="module")
def post(reml):
    return blm.LMM.from_fit(reml).fit(random_seed=1)


# --- software that we did not write ------------------------------------------------------


def models(gums, V):
    bcg = blm.load_dataset("bcg")
    lung = pd.read_csv(HERE / "lung_cancer.csv").assign(se=lambda d: np.sqrt(d["vi"]))
    schools = blm.load_dataset("school_calendar")
    known = {"residual": "se(se)"}
    nested = "(1 | district / school)"
    return {
        "bcg": blm.LMM("log_rr ~ 1 + (1 | trial)", bcg, **known),
        "bcg_moderated": blm.LMM("log_rr ~ latitude + allocation + (1 | trial)", bcg, **known),
        "lung": blm.LMM("yi ~ design + (1 | study)", lung, **known),
        "schools": blm.LMM(f"d ~ 1 + {nested}", schools, **known),
        "schools_year": blm.LMM(f"d ~ year + {nested}", schools, **known),
        "gums": two_outcomes(gums, V),
        "gums_year": two_outcomes(
            gums, V, "difference ~ 0 + outcome + outcome:since + (0 + outcome | trial)"
        ),
        "gums_cs": two_outcomes(
            gums, V, "difference ~ 0 + outcome + cs(0 + outcome | trial, hom=True)"
        ),
    }


@pytest.mark.parametrize("method", ["REML", "ML"])
def test_estimates_are_metafors(gums, V, method):
    for name, model in models(gums, V).items():
        fit, known = getattr(model, method.lower())(), REFERENCE[f"{name}.{method}"]
        beta, se = np.ravel(known["beta"]), np.ravel(known["se"])
        np.testing.assert_allclose(fit.beta, beta, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov)), se, rtol=1e-5, err_msg=name)
        taus = np.concatenate([sd.to_numpy() ** 2 for sd in fit.sds.values()])
        theirs = np.ravel(known["sigma2" if name.startswith("schools") else "tau2"])
        np.testing.assert_allclose(taus, np.resize(theirs, taus.shape), rtol=1e-5, err_msg=name)
        if known.get("rho"):
            rho = fit.corrs["trial"].iloc[0, 1]
            assert rho == pytest.approx(known["rho"], abs=1e-5), name
        # metafor's restricted likelihood has half the log determinant of X'X added
        shift = 0.5 * np.linalg.slogdet(model.X.T @ model.X)[1] if method == "REML" else 0.0
        assert fit.loglik + shift == pytest.approx(known["loglik"], abs=1e-8), name


def test_estimates_are_published_ones(gums, V):
    """Those of metafor's pages on Konstantopoulos (2011) and Berkey and others (1998)."""
    schools, two = (models(gums, V)[name].reml() for name in ("schools", "gums"))
    found = [*schools.beta, *(sd.iloc[0] ** 2 for sd in schools.sds.values())]
    np.testing.assert_allclose(found, [0.1847, 0.0651, 0.0327], atol=5e-5)
    found = [*two.beta, *two.sds["trial"] ** 2]
    np.testing.assert_allclose(found, [-0.3392, 0.3534, 0.0327, 0.0117], atol=5e-5)
    known = json.loads((HERE.parent / "structures" / "fixed.json").read_text(encoding="utf-8"))
    bcg = blm.load_dataset("bcg")
    np.testing.assert_allclose(bcg["log_rr"], known["bcg"]["yi"], rtol=1e-12)
    np.testing.assert_allclose(bcg["se"] ** 2, known["bcg"]["vi"], rtol=1e-12)


def test_tests_of_moderators_are_metafors(gums, V):
    for name, columns in (("bcg_moderated", slice(1, None)), ("lung", slice(1, None))):
        fit, known = models(gums, V)[name].reml(), REFERENCE[f"{name}.REML"]
        beta, cov = fit.beta.to_numpy()[columns], fit.vcov.to_numpy()[columns, columns]
        assert beta @ np.linalg.solve(cov, beta) == pytest.approx(known["QM"], rel=1e-5)
        weights = np.eye(len(fit.beta))[columns]
        found = fit.contest(weights).iloc[0]
        assert found["statistic"] * len(weights) == pytest.approx(known["QM"], rel=1e-5)


def test_held_parameters_and_common_effects_are_metafors(gums, V):
    held = {
        "sd[trial, outcome[AL]]": np.sqrt(0.03),
        "sd[trial, outcome[PD]]": np.sqrt(0.01),
        "cor[trial]": 0.5,
    }
    fits = {
        "gums_held": two_outcomes(gums, V, fixed=held).reml(),
        "gums_common": two_outcomes(gums, V, "difference ~ 0 + outcome").reml(),
    }
    for name, fit in fits.items():
        known = REFERENCE[name]
        np.testing.assert_allclose(fit.beta, known["beta"], rtol=1e-8, err_msg=name)
        np.testing.assert_allclose(np.sqrt(np.diag(fit.vcov)), known["se"], rtol=1e-8)
        assert fit.heterogeneity().test.loc["Q", "statistic"] == pytest.approx(known["QE"])


def test_heterogeneity_is_metafors(gums, V, no_limits):
    several = models(gums, V)
    for name in ("bcg", "bcg_moderated", "lung"):
        known = REFERENCE[f"{name}.REML"]
        found = several[name].reml().heterogeneity()
        group = "study" if name == "lung" else "trial"
        values = found.table["estimate"]
        assert values[f"tau[{group}, Intercept]"] ** 2 == pytest.approx(known["tau2"], rel=1e-5)
        assert values[f"I2[{group}, Intercept]"] == pytest.approx(known["I2"], rel=1e-5)
        assert values[f"H[{group}, Intercept]"] ** 2 == pytest.approx(known["H2"], rel=1e-5)
        expected = [known["QE"], known["k"] - known["p"], known["QEp"]]
        np.testing.assert_allclose(found.test.loc["Q"].to_numpy(float), expected, rtol=1e-6)
    known, schools = REFERENCE["schools.REML"], several["schools"].reml()
    found = schools.heterogeneity(df="asymptotic")
    np.testing.assert_allclose(shares(found)["estimate"], known["I2"], rtol=1e-5)
    assert found.table["estimate"]["I2 total"] == pytest.approx(sum(known["I2"]), rel=1e-6)
    np.testing.assert_allclose(found.sampling, known["typical"], rtol=1e-9)
    limits = found.prediction[["pred_low", "pred_high"]].iloc[0]
    np.testing.assert_allclose(limits, known["pi"], rtol=1e-5)


def test_heterogeneity_of_outcomes_is_metafors(heterogeneity):
    known, found = REFERENCE["gums.REML"], heterogeneity
    np.testing.assert_allclose(shares(found)["estimate"], known["I2"], rtol=1e-5)
    np.testing.assert_allclose(found.sampling, known["typical"], rtol=1e-9)
    limits = found.prediction.loc[["AL", "PD"], ["pred_low", "pred_high"]]
    np.testing.assert_allclose(limits, known["pi"], rtol=1e-4)  # one limit is near zero
    assert "I2 total" not in found.table.index


def test_intervals_are_metafors(bcg):
    fit = blm.LMM("log_rr ~ 1 + (1 | trial)", bcg, residual="se(se)").reml()
    found = fit.heterogeneity()
    tau2, tau = REFERENCE["bcg_profile"]
    limits = found.table.loc["tau[trial, Intercept]", ["conf_low", "conf_high"]]
    np.testing.assert_allclose(limits.to_numpy(float), tau[1:], rtol=2e-4)  # its own root search
    s2 = found.sampling.iloc[0]
    share = found.table.loc["I2[trial, Intercept]", ["conf_low", "conf_high"]]
    expected = 100.0 * np.array(tau2[1:]) / (np.array(tau2[1:]) + s2)
    np.testing.assert_allclose(share.to_numpy(float), expected, rtol=4e-4)
    columns = ["pred_low", "pred_high"]
    for df, name in (("asymptotic", "bcg.REML"), ("residual", "bcg_t")):
        limits = fit.heterogeneity(df=df).prediction[columns].iloc[0]
        np.testing.assert_allclose(limits, REFERENCE[name]["pi"], rtol=1e-5)
    # Higgins, Thompson, Spiegelhalter (2009), equation 12: t with k - 2 degrees of freedom
    error = np.sqrt(fit.vcov.iloc[0, 0] + fit.sds["trial"].iloc[0] ** 2)
    expected = fit.beta.iloc[0] + np.array([-1.0, 1.0]) * stats.t.ppf(0.975, 11) * error
    np.testing.assert_allclose(fit.heterogeneity(df=11).prediction[columns].iloc[0], expected)


def test_a_common_effect_has_the_shares_of_q(bcg):
    found = blm.LMM("log_rr ~ 1", bcg, residual="se(se)").reml().heterogeneity()
    known = REFERENCE["bcg_common"]
    assert found.table.loc["I2", "estimate"] == pytest.approx(known["I2"])
    assert found.table.loc["H", "estimate"] ** 2 == pytest.approx(known["H2"])


# --- known covariance matrices -----------------------------------------------------------


def dense_loglik(frame, V, fit, restricted=True):
    """Log likelihood by the whole covariance matrix."""
    X = np.column_stack([frame["outcome"] == "AL", frame["outcome"] == "PD"]).astype(float)
    sds, cor = fit.sds["trial"].to_numpy(), fit.corrs["trial"].to_numpy()
    same = frame["trial"].to_numpy()[:, None] == frame["trial"].to_numpy()
    total = V + same * (X @ (sds[:, None] * cor * sds) @ X.T)
    y, W = frame["difference"].to_numpy(), np.linalg.inv(total)
    beta = np.linalg.solve(X.T @ W @ X, X.T @ W @ y)
    left = y - X @ beta
    value = len(y) * np.log(2 * np.pi) + np.linalg.slogdet(total)[1] + left @ W @ left
    if restricted:
        value += np.linalg.slogdet(X.T @ W @ X)[1] - 2 * np.log(2 * np.pi)
    return -0.5 * value


def test_the_likelihood_is_that_of_the_whole_matrix(gums, V, reml):
    assert reml.loglik == pytest.approx(dense_loglik(gums, V, reml), abs=1e-10)
    ml = blm.LMM.from_fit(reml).ml()
    assert ml.loglik == pytest.approx(dense_loglik(gums, V, ml, restricted=False), abs=1e-10)


def test_rows_are_matched_by_label_or_by_place(gums, V, labelled, reml):
    frame, matrix = labelled
    by_label = two_outcomes(frame.assign(V=frame["row"]), matrix)
    shuffled = frame.assign(V=frame["row"]).sample(frac=1.0, random_state=3)
    several = [
        by_label,
        two_outcomes(shuffled, matrix),
        two_outcomes(gums, sp.csr_array(V)),
        two_outcomes(gums.set_index("author"), V),
        two_outcomes(pl.from_pandas(gums), V),
        blm.LMM(OUTCOMES, frame, residual="known(row | trial)", covariances={"row": matrix}),
    ]
    for model in several:
        np.testing.assert_allclose(model.reml().loglik, reml.loglik, rtol=1e-9)
    # a sorted frame with the matrix in the old order is another model, or none
    with pytest.raises(DataError, match="of different groups"):
        two_outcomes(gums.sort_values("outcome"), V)


def test_dropped_rows_take_theirs_of_the_matrix_along(gums, V, labelled):
    known, frame = REFERENCE["gums_dropped"], gums.copy()
    frame.loc[2, "difference"] = np.nan
    without = labelled[0].drop(index=2).assign(V=lambda d: d["row"])
    for model in (two_outcomes(frame, V), two_outcomes(without, labelled[1])):
        fit = model.reml()
        np.testing.assert_allclose(fit.beta, known["beta"], rtol=1e-5)
        np.testing.assert_allclose(np.diag(fit.vcov), np.square(known["se"]), rtol=1e-5)
        np.testing.assert_allclose(fit.sds["trial"] ** 2, known["tau2"], rtol=1e-5)
        assert fit.corrs["trial"].iloc[0, 1] == pytest.approx(known["rho"], abs=1e-5)
    kept = two_outcomes(frame, V, missing="keep").reml()
    assert kept.loglik == pytest.approx(fit.loglik)
    # what the row would have said, given its trial: dense algebra
    found = kept.predict_missing(uncertainty="plugin")
    y = _conditional_mean(frame, V, kept, 2)
    assert found["estimate"].iloc[0] == pytest.approx(y, rel=1e-8)


def _conditional_mean(frame, V, fit, row):
    X = np.column_stack([frame["outcome"] == "AL", frame["outcome"] == "PD"]).astype(float)
    sds, cor = fit.sds["trial"].to_numpy(), fit.corrs["trial"].to_numpy()
    same = frame["trial"].to_numpy()[:, None] == frame["trial"].to_numpy()
    total = V + same * (X @ (sds[:, None] * cor * sds) @ X.T)
    seen, mean = np.arange(len(frame)) != row, X @ fit.beta.to_numpy()
    left = (frame["difference"].to_numpy() - mean)[seen]
    return mean[row] + total[row, seen] @ np.linalg.solve(total[np.ix_(seen, seen)], left)


def test_a_diagonal_matrix_is_standard_errors(gums, bcg):
    formula = "log_rr ~ latitude + (1 | trial)"
    plain = blm.LMM(formula, bcg, residual="se(se)")
    V = np.diag(bcg["se"] ** 2)
    known = blm.LMM(formula, bcg, residual="known(V | trial)", covariances={"V": V})
    pd.testing.assert_frame_equal(known.reml().fixef(), plain.reml().fixef(), rtol=1e-6)
    free = [
        blm.LMM(
            "log_rr ~ latitude",
            bcg,
            residual=f"{law}, sigma=True)",
            covariances={"V": V} if "V" in law else None,
        ).reml()
        for law in ("se(se", "known(V | trial")
    ]
    assert free[0].sigma == pytest.approx(free[1].sigma, rel=1e-8)
    assert free[0].sigma > 1.5


def test_an_assumed_correlation_is_the_same_either_way(gums, no_limits):
    rho = np.where(np.equal.outer(gums["trial"].to_numpy(), gums["trial"].to_numpy()), 0.6, 0.0)
    np.fill_diagonal(rho, 1.0)
    V = rho * np.outer(gums["se"], gums["se"])
    known = two_outcomes(gums, V).reml()
    assumed = blm.LMM(
        OUTCOMES, gums, residual="cs(outcome | trial) * se(se)", fixed={"cor_residual": 0.6}
    ).reml()
    np.testing.assert_allclose(known.beta, assumed.beta, rtol=1e-6)
    assert known.loglik == pytest.approx(assumed.loglik, abs=1e-8)
    W, X = np.linalg.inv(V), assumed.model.design.X
    P = W - W @ X @ np.linalg.solve(X.T @ W @ X, X.T @ W)
    y, found = gums["difference"].to_numpy(), assumed.heterogeneity()
    assert found.test.loc["Q", "statistic"] == pytest.approx(y @ P @ y, rel=1e-9)
    rows = X.T == 1.0
    expected = [np.diag(P @ V)[own].sum() / np.diag(P)[own].sum() for own in rows]
    np.testing.assert_allclose(found.sampling, expected, rtol=1e-9)


def test_the_posterior_moves_over_the_dense_density(gums, V):
    model = two_outcomes(gums, V, priors="flat")
    post = model.fit(method="laplace", draws=10, chains=1, random_seed=1)
    points = working_points(post.priors, post._joint)
    reduced = reduce_equations(model.system, points)
    found = log_likelihood_batch(model.system, post.priors, reduced, points)
    expected = [dense_loglik(gums, V, _at(root)) for root in post._joint.roots[0]]
    # flat densities of beta differ by a constant
    np.testing.assert_allclose(found - found[0], np.array(expected) - expected[0], atol=1e-9)
    assert np.ptp(expected) > 0.5


def _at(root):
    """A fit with the roots (k, k) of a covariance matrix."""
    covariance = root @ root.T
    sds = np.sqrt(np.diag(covariance))
    cor = pd.DataFrame(covariance / np.outer(sds, sds))
    return SimpleNamespace(sds={"trial": pd.Series(sds)}, corrs={"trial": cor})


def test_a_bayes_factor_is_that_of_the_evidence(bcg):
    model = blm.LMM("log_rr ~ 1 + (1 | trial)", bcg.iloc[[2, 4, 6, 8, 9, 11]], residual="se(se)")
    post = model.fit(random_seed=1)
    common = model.update(". ~ 1").fit(random_seed=1)
    found = post.heterogeneity(random_seed=1)
    against = blm.bayes_factor(post, common)
    factor = found.evidence.loc["tau[trial, Intercept]", "bayes_factor"]
    # draws of the slices' other coordinates: none here, so that quadrature alone is between them
    assert np.log(factor) == pytest.approx(-against.log, abs=0.03)


# --- posteriors, files, updates ----------------------------------------------------------


def test_a_posterior_has_what_an_estimate_has(heterogeneity, post):
    found, estimate = post.heterogeneity(random_seed=1), heterogeneity
    assert found.table.index.equals(estimate.table.index)
    pd.testing.assert_frame_equal(found.test, estimate.test)
    pd.testing.assert_series_equal(found.sampling, estimate.sampling)
    # of draws, summarised last
    tau = post.data["posterior"]["sd_trial"].to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(shares(found, "tau")["mean"], tau.mean(axis=0), rtol=1e-9)
    share = 100 * tau**2 / (tau**2 + found.sampling.to_numpy())
    np.testing.assert_allclose(shares(found)["mean"], share.mean(axis=0), rtol=1e-9)
    # a new trial's effects: the same by predict() of a new level
    new = pd.DataFrame({"outcome": ["PD", "AL"], "trial": ["98", "99"]})
    other = post.predict(new, target="new", random_seed=2)
    error = 4.0 * found.prediction["sd"].max() / np.sqrt(4000)  # of two means of 4,000 draws
    np.testing.assert_allclose(found.prediction["mean"], other["mean"], atol=error)
    np.testing.assert_allclose(found.prediction["sd"], other["sd"], rtol=0.15)
    assert found.evidence.loc["tau[trial, outcome[AL]]", "support"] < 1e-6
    assert "tau[trial, outcome[AL]] = 0 is not compatible" in str(found)
    assert "against it" in str(found)
    at = post.heterogeneity(at={"outcome": ["AL"]}, random_seed=1).prediction
    assert at.index.tolist() == ["AL"]


def test_files_and_pickles_keep_the_matrix(post, tmp_path, V):
    post.save(tmp_path / "fit.nc")
    loaded = blm.load(tmp_path / "fit.nc")
    for fit in (loaded, pickle.loads(pickle.dumps(post))):
        np.testing.assert_allclose(fit.R().to_numpy(), V, atol=1e-12)
        pd.testing.assert_frame_equal(fit.summary(), post.summary())
    again = blm.LMM.from_fit(loaded).update(". ~ 1 + (1 | trial)").reml()
    assert again.nobs == 10
    other = loaded.predict(pd.DataFrame({"outcome": ["AL"], "trial": ["9"]}), target="new")
    assert len(other) == 1


def test_parameters_that_are_known_are_reported_and_not_drawn(reml, post):
    own = post.data["posterior"].to_dataset()
    table = parameters_section(post, parameter_table(own, post.design), 0.9, "eti")["table"]
    assert "–" in str(table)  # no R-hat of sigma
    drawn = str(post.plot.reml(reml, backend="none").viz["dist"])
    assert "sd[trial, outcome[AL]]" in drawn
    assert "sigma" not in drawn


def test_a_damaged_matrix_is_refused(post, tmp_path):
    from bayeslmm.storage.known_covariance import pack_covariance, unpack_covariance

    arrays = {}
    saved = pack_covariance(post.design.spec.residual, arrays)
    arrays["known covariance data"] = -arrays["known covariance data"]
    with pytest.raises(blm.exceptions.StorageError, match=r"damaged: .*positive variances"):
        unpack_covariance(saved, arrays)


def test_updates_keep_replace_and_leave_the_matrix(gums, V, labelled):
    model = two_outcomes(gums, V)
    frame, matrix = labelled
    bound = two_outcomes(frame.assign(V=frame["row"]), matrix)
    doubled = model.update(data=gums, covariances={"V": 2.0 * V})
    np.testing.assert_allclose(doubled.reml().R().to_numpy(), 2.0 * V, atol=1e-12)
    assert model.update(". ~ outcome", residual=False).design.spec.residual is None
    half = bound.update(data=frame.assign(V=frame["row"]).iloc[:6])
    np.testing.assert_allclose(half.reml().R().to_numpy(), V[:6, :6], atol=1e-12)
    plain = blm.LMM(OUTCOMES, gums, residual="se(se)")
    changed = plain.update(residual="known(V | trial)", data=gums, covariances={"V": V})
    assert changed.reml().loglik == pytest.approx(model.reml().loglik)
    with pytest.raises(DataError, match="no column `V`"):
        model.update(data=gums)


def test_other_rows_are_those_of_the_matrix(gums, V, post):
    new = pd.DataFrame({"outcome": ["AL", "PD"], "trial": ["98", "98"]})
    assert len(post.predict(new, target="new", random_seed=1)) == 2
    with pytest.raises(DataError, match="Their effects can: kind='epred'"):
        post.predict(new, target="new", kind="response")
    with pytest.raises(
        DataError, match="`10`, `11` of `V` is not a row of the known covariance matrix"
    ):
        post.predict(new.assign(V=[10, 11]), target="new", kind="response", residuals="new")
    drawn = post.simulate(2000, random_seed=1)
    assert drawn.shape[-1] == 10 or drawn.shape[0] == 10


def test_nothing_is_searched_where_the_correlation_is_known(V):
    known = KnownCorrelation(sp.csr_array(np.eye(2)))
    assert known == KnownCorrelation(sp.csr_array(np.eye(2)))
    assert known != KnownCorrelation(sp.csr_array(np.array([[1.0, 0.5], [0.5, 1.0]])))
    assert len({known, KnownCorrelation(sp.csr_array(np.eye(2)))}) == 1


# --- what is refused ---------------------------------------------------------------------


def _with(V, changes):
    changed = V.copy()
    for place, value in changes.items():
        changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (lambda V: V[:, :9], "must be square"),
        (lambda V: V[:9, :9], "has 9 rows and the data have 10"),
        (lambda V: _with(V, {(0, 1): 0.001}), "must be symmetric, and has 0.001 in row 0"),
        (lambda V: _with(V, {(3, 3): 0.0}), "positive variances, and that of row 3"),
        (lambda V: _with(V, {(3, 3): np.nan}), "not finite, first in its row 3"),
        (lambda V: _with(V, {(0, 1): 0.01, (1, 0): 0.01}), "`1` of trial is not positive definite"),
        (lambda V: _with(V, {(0, 9): 1e-4, (9, 0): 1e-4}), "of different groups, `1` and `5`"),
        (lambda V: [["a"]], "a matrix of numbers"),
        (lambda V: pd.DataFrame(V), "no column `V`"),
        (lambda V: pd.DataFrame(V, index=list("abcdefghij")), "the same labels, each once"),
    ],
)
def test_matrices_that_are_none(gums, V, matrix, words):
    with pytest.raises(DataError, match=words):
        two_outcomes(gums, matrix(V))


def test_labels_that_do_not_fit(gums, V, labelled):
    frame, matrix = labelled
    with pytest.raises(DataError, match="has no labels to match it"):
        two_outcomes(frame.assign(V=frame["row"]), V)
    twice = frame.assign(V=["1PD", *frame["row"][:-1]])
    with pytest.raises(DataError, match="`1` of trial has two rows at `V` 1PD"):
        two_outcomes(twice, matrix)
    twice = frame.assign(V=[*frame["row"][:-1], "1PD"])
    with pytest.raises(DataError, match="`1PD` of `V` is the label of two rows"):
        two_outcomes(twice, matrix)
    with pytest.raises(DataError, match="`x` of `V` is not a row of the known covariance matrix"):
        two_outcomes(frame.assign(V=["x", *frame["row"][1:]]), matrix)
    with pytest.raises(DataError, match="text"):
        two_outcomes(frame.assign(V=np.arange(10)), matrix)


@pytest.mark.parametrize(
    ("residual", "words"),
    [
        ("known(V)", "the name of a matrix and the groups"),
        ("known(V + W | trial)", "the name of a matrix and the groups"),
        ("known(V | outcome / trial)", "the name of a matrix and the groups"),
        ("known(V | trial) * se(se)", "known twice"),
        ("known(V | trial) * cs(1 | trial)", "two correlation structures"),
        ("known(V | trial) * strata(outcome)", r"known\(V \| trial, sigma=True\) multiplies"),
        ("known(V | trial, x=True)", "sigma=True or sigma=False"),
        ("known(V | nothing)", "nothing"),
    ],
)
def test_structures_that_are_none(gums, V, residual, words):
    with pytest.raises((FormulaError, DataError), match=words):
        blm.LMM("difference ~ outcome", gums, residual=residual, covariances={"V": V})


def test_matrices_and_structures_go_together(gums, V):
    with pytest.raises(DataError, match=r"needs the matrix: give covariances=\{'V': V\}"):
        blm.LMM(OUTCOMES, gums, residual="known(V | trial)")
    with pytest.raises(DataError, match="`W` is named by no structure"):
        blm.LMM(OUTCOMES, gums, residual="known(V | trial)", covariances={"V": V, "W": V})
    with pytest.raises(DataError, match="named by no structure"):
        blm.LMM(OUTCOMES, gums, covariances={"V": V})
    with pytest.raises(DataError, match="covariances must be a mapping"):
        blm.LMM(OUTCOMES, gums, residual="known(V | trial)", covariances=V)
    with pytest.raises(DataError, match="both say how variances"):
        two_outcomes(gums, V, weights="patients")
    with pytest.raises(PriorError, match=r"write known\(V \| trial, sigma=True\)"):
        two_outcomes(gums, V, fixed={"sigma": 2.0})


def test_rows_beyond_memory_have_no_matrix(gums, V):
    batches = [gums.iloc[:6], gums.iloc[6:]]
    with pytest.raises(DataError, match=r"Read the data into a data frame, or give standard"):
        two_outcomes(batches, V)
    with pytest.raises(DataError, match="needs the matrix"):
        blm.LMM(OUTCOMES, batches, residual="known(V | trial)")
    streamed = blm.LMM(OUTCOMES, batches, residual="cs(outcome | trial) * se(se)")
    with pytest.raises(DataError, match="covariances"):
        streamed.update(covariances={"V": V})
    with pytest.raises(DataError, match="data frame in memory"):
        streamed.reml().heterogeneity()


def test_heterogeneity_needs_known_errors(gums):
    with pytest.raises(DataError, match="whose sampling errors are known"):
        blm.LMM("difference ~ outcome + (1 | trial)", gums).reml().heterogeneity()
    fit = blm.LMM("difference ~ outcome + (1 | trial)", gums, residual="se(se)").reml()
    for df in ("kenward", 0.0, True):
        with pytest.raises(
            ValueError, match=r"'residual', 'asymptotic' or a positive number is expected\."
        ):
            fit.heterogeneity(df=df)
    with pytest.raises(ValueError, match="level"):
        fit.heterogeneity(level=95)


def test_totals_of_terms_in_different_rows_do_not_depend_on_their_order(gums, no_limits):
    frame = gums.assign(lab=pd.Series(["a", "b", "c"])[np.arange(len(gums)) // 2 % 3].to_numpy())
    terms = "(0 + outcome | trial)", "(1 | lab)"
    forms = [f"difference ~ 0 + outcome + {' + '.join(t)}" for t in (terms, terms[::-1])]
    both = [blm.LMM(form, frame, residual="se(se)").reml().heterogeneity().table for form in forms]
    totals = [t["estimate"].filter(regex="^(I2 total|H)").sort_index() for t in both]
    assert len(totals[0]) == 6
    pd.testing.assert_series_equal(*totals, rtol=1e-5)
    assert {"I2 total[all rows]", "H[all rows]"} < set(totals[0].index)


def test_new_units_of_many_moderators_are_named(bcg):
    fit = blm.LMM("log_rr ~ latitude + (1 | trial)", bcg, residual="se(se)").reml()
    found = fit.heterogeneity()
    assert found.prediction.empty
    assert "heterogeneity(at={...})" in str(found)
    at = fit.heterogeneity(at={"latitude": [13, 55]}, df="asymptotic").prediction
    other = fit.predict(
        pd.DataFrame({"latitude": [13, 55], "trial": ["a", "b"]}),
        target="new",
        uncertainty="plugin",
    )
    np.testing.assert_allclose(at["pred_low"], other["conf_low"], rtol=1e-9)
    np.testing.assert_allclose(at["pred_high"], other["conf_high"], rtol=1e-9)


def test_effects_that_are_no_indicators_are_taken_together(bcg):
    frame = bcg.assign(z=(bcg["latitude"] - 33) / 10)
    found = blm.LMM("log_rr ~ z + (z | trial)", frame, residual="se(se)").fit(random_seed=1)
    table = found.heterogeneity(random_seed=1).table
    assert "tau[trial, mean of Intercept + z]" in table.index
