"""The methods paragraph states what was done, and nothing else."""

from __future__ import annotations

import platform
import re
from importlib.metadata import version

import numpy as np
import pytest

import bayeslmm as blm
from bayeslmm.report.methods import CITATIONS

FORMULA = "Reaction ~ Days + (Days | Subject)"


@pytest.fixture(scope="module")
def flat():
    return blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors="flat")


def test_model_in_words(sleepstudy_model, sleepstudy_fit):
    shared = [
        "A linear mixed model of Reaction was fitted to 180 observations",
        f"(formula: {FORMULA})",
        "Fixed effects were the intercept and Days.",
        "intercepts and coefficients of Days by Subject (18 levels), correlated with each other",
        "Residuals were independent and normal with one standard deviation.",
        f"bayeslmm {version('bayeslmm')}",
        f"Python {platform.python_version()}",
        f"NumPy {np.__version__}",
    ]
    for text in (sleepstudy_fit.methods_paragraph(), sleepstudy_model.reml().methods_paragraph()):
        for phrase in shared:
            assert phrase in text
        assert "left out" not in text
        assert "offset" not in text
        assert "weight" not in text


@pytest.mark.parametrize(
    ("method", "done", "not_done"),
    [
        ("reml", "restricted maximum likelihood (REML)", ["(ML)", "(MAP)", "prior"]),
        ("ml", "maximum likelihood (ML)", ["REML", "restricted", "prior"]),
        ("map", "mode of their posterior density", ["Satterthwaite", "REML"]),
    ],
)
def test_estimates(sleepstudy_model, method, done, not_done):
    text = getattr(sleepstudy_model, method)().methods_paragraph()
    assert done in text
    assert "The optimiser converged." in text
    for word in ["draws", "R-hat", "ArviZ", "PyMC", *not_done]:
        assert word not in text


def test_priors_of_map_are_named(sleepstudy_model):
    named = f"Days ~ {sleepstudy_model.priors.records()['Days']}"
    assert named in sleepstudy_model.map().methods_paragraph()
    assert named not in sleepstudy_model.reml().methods_paragraph()


def test_a_singular_fit_is_said():
    fit = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2")).reml()
    assert "sd[Batch, Intercept] is estimated at zero." in fit.methods_paragraph()


def test_priors_with_their_values(sleepstudy_model, sleepstudy_fit):
    text = sleepstudy_fit.methods_paragraph()
    assert "weakly informative defaults" in text
    for key, record in sleepstudy_model.priors.records().items():
        place = sleepstudy_model.priors.where.get(key, "") if key != "Intercept" else ""
        assert f"{key} {place} ~ {record}".replace("  ", " ") in text
    assert "sd[Subject, Intercept] at Days = 4.5 ~" in text
    assert "joint normal prior" in text
    assert "at the means of the covariates" in text


def test_flat_priors(flat):
    text = flat.fit(method="laplace", random_seed=1).methods_paragraph()
    assert "Priors were flat (improper)" in text
    assert "LKJ(1)" in text
    assert "default" not in text
    single = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"), priors="flat")
    assert "LKJ" not in single.fit(random_seed=1).methods_paragraph()


def test_given_priors_are_told_from_defaults():
    import pymc as pm

    given = {"sigma": pm.HalfNormal.dist(30.0), "Days": pm.Normal.dist(0.0, 5.0)}
    model = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors=given)
    text = model.fit(method="laplace", random_seed=1).methods_paragraph()
    chosen = re.search(r"Priors chosen for this analysis: (.*?)\. Other", text)
    assert chosen is not None
    assert set(chosen[1].split("; ")) == {"Days ~ Normal(0, 5)", "sigma ~ HalfNormal(30)"}
    assert "Other priors were the weakly informative defaults" in text


def test_collapsed(sleepstudy_fit):
    text, found = sleepstudy_fit.methods_paragraph(), sleepstudy_fit.diagnostics
    assert "independence Metropolis-Hastings" in text
    assert "(4 chains of 1,000 draws)" in text
    assert f"largest R-hat was {found.max_rhat:.3f}" in text
    assert f"bulk effective sample size {found.min_ess_bulk:,.0f}" in text
    assert f"tail effective sample size {found.min_ess_tail:,.0f}" in text
    assert f"Pareto k of the proposals was {found.proposal_k:.2f}" in text
    assert "No check gave reason for concern" in text
    for word in ("diverged", "NUTS", "Laplace", "PyMC", "nutpie", "interpolation"):
        assert word not in text


def test_laplace(sleepstudy_model):
    post = sleepstudy_model.fit(method="laplace", draws=500, chains=2, random_seed=1)
    text = post.methods_paragraph()
    assert "1,000 independent draws" in text
    assert f"Pareto k {post.diagnostics.pareto_k:.2f}" in text
    assert f"effective sample size {post.diagnostics.importance_ess:,.0f} of 1,000" in text
    for word in ("R-hat", "Metropolis", "NUTS"):
        assert word not in text


@pytest.mark.slow
def test_nuts_and_poor_convergence(sleepstudy_model):
    post = sleepstudy_model.fit(
        method="nuts", draws=20, tune=30, chains=2, cores=1, random_seed=1, progressbar=False
    )
    text, found = post.methods_paragraph(references=True), post.diagnostics
    assert "No-U-Turn sampler (NUTS) of PyMC and nutpie" in text
    assert "standardised (noncentred) random effects" in text
    assert "2 chains of 20 draws" in text
    assert f"{found.divergences} transition" in text
    assert f"PyMC {version('pymc')}" in text
    assert f"nutpie {version('nutpie')}" in text
    assert CITATIONS["nuts"] in text
    assert CITATIONS["independence"] not in text
    assert not found.ok
    assert "did not pass all checks" in text
    for message in found.messages():
        assert message in text
    assert "No check gave reason" not in text


def test_divergences_are_said(sleepstudy_fit):
    """A tree as NUTS makes it, without its compilation."""
    data = sleepstudy_fit.data.copy()
    data.attrs |= {"method": "nuts", "form": "centered", "inference_library": "nutpie"}
    data.attrs["inference_library_version"] = "0.0.test"
    diverging = np.zeros((4, 1000), dtype=bool)
    diverging[1, :3] = True
    stats = (
        data["sample_stats"].to_dataset()[["lp"]].assign(diverging=(("chain", "draw"), diverging))
    )
    post = blm.Posterior(sleepstudy_fit.model, data).with_groups(sample_stats=stats)
    text = post.methods_paragraph()
    assert "and 3 transitions diverged." in text
    assert "3 of 4000 transitions diverged, so the draws may miss part" in text
    assert "did not pass all checks" in text
    assert "nutpie 0.0.test" in text
    assert f"PyMC {version('pymc')}" in text
    assert "Metropolis" not in text


def test_the_fallback_is_named(sleepstudy_fit):
    data = sleepstudy_fit.data.copy()
    data.attrs |= {"method": "nuts", "form": "marginal", "fallback": "Its proposals do not fit."}
    data.attrs["inference_library"] = "pymc"
    text = blm.Posterior(sleepstudy_fit.model, data).methods_paragraph()
    assert "refused this posterior (Its proposals do not fit), so NUTS was used instead." in text
    assert "random effects integrated out and drawn exactly afterwards" in text
    assert "refused" not in sleepstudy_fit.methods_paragraph()


def test_a_surrogate_is_named(sleepstudy_fit):
    data = sleepstudy_fit.data.copy()
    data.attrs["surrogate_error"] = 0.004
    text = blm.Posterior(sleepstudy_fit.model, data).methods_paragraph()
    assert "standard deviation of 0.004" in text


def test_everything_odd_about_a_model_is_said():
    data = blm.load_dataset("sleepstudy").copy()
    data["dup"], data["w"], data["o"] = 2.0 * data["Days"], 1.0, 1.0 * data["Days"]
    data.iloc[[2, 5], data.columns.get_loc("Reaction")] = np.nan
    formula = "Reaction ~ 0 + Days + dup + offset(o) + (1 | Subject) + (0 + Days | Subject)"
    text = blm.LMM(formula, data, weights="w").reml().methods_paragraph()
    assert "2 rows of 180 were left out" in text
    assert "fitted to 178 observations" in text
    assert "column dup was left out" in text
    assert "The fixed effect was Days, without an intercept" in text
    assert "the offset o entered with coefficient one" in text
    assert "independent of each other" in text
    assert "the precision weight w of the row" in text
    assert "columns dropped, linear combinations" not in text


def test_weights_given_as_values_have_no_name():
    data = blm.load_dataset("Dyestuff")
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", data, weights=np.ones(len(data)))
    assert "the precision weight of the row" in model.reml().methods_paragraph()


def test_several_grouping_factors_and_blocks():
    data = blm.load_dataset("Penicillin")
    text = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", data).reml().methods_paragraph()
    assert "intercepts by plate (24 levels); and intercepts by sample (6 levels)." in text
    sleep = blm.load_dataset("sleepstudy").assign(z=lambda d: np.sin(np.arange(len(d))))
    formula = "Reaction ~ Days + (Days | Subject) + (0 + z | Subject)"
    text = blm.LMM(formula, sleep).reml().methods_paragraph()
    assert "correlated within {Intercept, Days} and independent otherwise" in text


def test_references_follow_only_on_demand(sleepstudy_model, sleepstudy_fit):
    assert "References" not in sleepstudy_fit.methods_paragraph()
    text = sleepstudy_fit.methods_paragraph(references=True)
    paragraph, heading, *references = text.split("\n\n")
    assert paragraph == sleepstudy_fit.methods_paragraph()
    assert heading == "References"
    assert references == sorted(references)
    assert set(references) == {
        CITATIONS[key] for key in ("independence", "lmm", "lkj", "half_t", "psis", "rhat")
    }
    reml = sleepstudy_model.reml().methods_paragraph(references=True)
    assert CITATIONS["satterthwaite"] in reml
    assert CITATIONS["rhat"] not in reml


@pytest.fixture(scope="module")
def no_fixed():
    return blm.LMM("I(Reaction - 300) ~ 0 + (1 | Subject)", blm.load_dataset("sleepstudy"))


def test_no_fixed_effects_no_tests_of_them(no_fixed, sleepstudy_model):
    for fit in (no_fixed.reml(), no_fixed.ml()):
        text = fit.methods_paragraph(references=True)
        assert "There were no fixed effects." in text
        assert "Confidence intervals are Wald intervals (standard deviations" in text
        for word in ("Satterthwaite", "Tests", CITATIONS["satterthwaite"], "correlations"):
            assert word not in text
        assert "Satterthwaite" not in fit.to_markdown()
    text = sleepstudy_model.reml().methods_paragraph()
    assert "other confidence intervals are Wald intervals (standard" in text
    assert "correlations on the inverse hyperbolic tangent scale" in text
    for text in (
        no_fixed.map().methods_paragraph(),
        no_fixed.fit(method="laplace", random_seed=1).methods_paragraph(),
    ):
        assert "fixed and random" not in text
        assert "fixed effects are" not in text


def test_a_mode_has_a_normal_approximation(sleepstudy_model):
    text = sleepstudy_model.map().methods_paragraph()
    assert "with the fixed and random effects integrated out (MAP); fixed effects are their" in text
    assert "those of a normal approximation to the posterior at the mode" in text
    assert "onfidence" not in text


def test_a_mode_of_fixed_effects_too():
    import pymc as pm

    priors = {"Days": pm.Laplace.dist(10.0, 5.0)}
    fit = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"), priors=priors).map()
    text = fit.methods_paragraph()
    assert "Fixed effects and covariance parameters were estimated by the mode of their" in text
    assert "with the random effects integrated out (MAP). Standard" in text
    assert "posterior modes, 95 % intervals of a normal approximation" in fit.to_markdown()


def test_versions_are_those_that_made_the_draws(sleepstudy_fit):
    assert sleepstudy_fit.data.attrs["python_version"] == platform.python_version()
    assert sleepstudy_fit.data.attrs["numpy_version"] == np.__version__
    data = sleepstudy_fit.data.copy()
    recorded = {"modeling_interface_version": "0.0.7", "python_version": "3.0.1"}
    data.attrs |= recorded | {"numpy_version": "1.0.5"}
    text = blm.Posterior(sleepstudy_fit.model, data).methods_paragraph()
    assert "Software: bayeslmm 0.0.7, Python 3.0.1, NumPy 1.0.5, ArviZ" in text
    for name in ("python_version", "numpy_version"):
        del data.attrs[name]
    text = blm.Posterior(sleepstudy_fit.model, data).methods_paragraph()
    assert "Software: bayeslmm 0.0.7, ArviZ" in text
