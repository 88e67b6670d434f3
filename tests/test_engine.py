"""The choice of the engine, the evidence, and what is said about both."""

import logging

import numpy as np
import pytest

import bayeslmm as blm
from bayeslmm.comparison.models import BayesFactor, LogEvidence, log_evidence
from bayeslmm.exceptions import DataError, PriorError, SamplingError
from bayeslmm.sampling import engine
from bayeslmm.sampling.collapsed import fit_laplace

FORMULA = "Yield ~ 1 + (1 | Batch)"


def refuse(*args, **kwargs):
    raise SamplingError("The importance ratios have heavy tails. Use method='nuts'.")


def test_auto_is_the_collapsed_sampler_and_says_so(dyestuff_fit):
    assert dyestuff_fit.method == dyestuff_fit.data.attrs["method"] == "collapsed"
    assert "fallback" not in dyestuff_fit.data.attrs
    assert "posterior by collapsed" in repr(dyestuff_fit)


def test_auto_falls_back_to_nuts_and_says_why(dyestuff_model, monkeypatch, caplog):
    asked = {}

    def nuts(model, size, options):
        asked.update(options)
        tree = fit_laplace(model, **size)
        tree.attrs["method"] = "nuts"
        return tree

    monkeypatch.setattr(engine, "fit_collapsed", refuse)
    monkeypatch.setattr(engine, "_sample_nuts", nuts)
    with caplog.at_level(logging.WARNING):
        post = dyestuff_model.fit(random_seed=1, tune=100, progressbar=False)
    assert post.method == "nuts"
    assert post.data.attrs["fallback"] == "The importance ratios have heavy tails."
    assert any("collapsed sampler refused: The importance ratios" in note for note in post.notes)
    assert asked == {"tune": 100, "progressbar": False, "form": "marginal"}
    assert (
        "Sampling the marginal model with NUTS instead: The importance ratios have heavy tails."
        in caplog.messages
    )


def test_collapsed_itself_does_not_fall_back(dyestuff_model, monkeypatch):
    monkeypatch.setattr(engine, "fit_collapsed", refuse)
    with pytest.raises(SamplingError, match="heavy tails"):
        dyestuff_model.fit(method="collapsed")


def test_options_of_nuts_are_reported_as_unused(dyestuff_model, caplog):
    with caplog.at_level(logging.WARNING):
        dyestuff_model.fit(draws=50, random_seed=1, tune=100)
    assert "Not used by the collapsed sampler, only by NUTS: tune" in caplog.messages


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("auto", {"drwas": 3}, "fit has no option drwas"),
        ("auto", {"form": "centered"}, "form= is an option of method='nuts'"),
        ("collapsed", {"tune": 3}, "method='collapsed' has no option tune; it has progressbar"),
        ("laplace", {"store_u": False}, "method='laplace' has no option store_u"),
    ],
)
def test_unknown_options_are_refused(dyestuff_model, method, option, message):
    with pytest.raises(TypeError, match=message):
        dyestuff_model.fit(method=method, **option)


def test_log_evidence_is_that_of_the_attributes(dyestuff_fit):
    evidence = dyestuff_fit.log_evidence
    assert evidence.value == float(evidence) == dyestuff_fit.data.attrs["log_evidence"]
    assert 0 < evidence.error < 0.02
    assert str(LogEvidence(-10.0, 0.0012)) == "-10.000 (Monte Carlo error 0.0012)"


def test_there_is_no_evidence_under_improper_priors():
    data = blm.load_dataset("Dyestuff")
    flat = blm.LMM(FORMULA, data, priors="flat").fit(draws=50, random_seed=1)
    with pytest.raises(PriorError, match=r"Intercept, sd\[Batch, Intercept\], sigma are flat"):
        _ = flat.log_evidence


def test_other_methods_have_no_evidence(dyestuff_model):
    with pytest.raises(SamplingError, match="'laplace' does not estimate the evidence"):
        log_evidence({"method": "laplace"}, dyestuff_model.priors)


def test_bayes_factor_is_the_ratio_of_evidence(dyestuff_model, dyestuff_fit):
    other = blm.LMM("Yield ~ 0 + (1 | Batch)", blm.load_dataset("Dyestuff")).fit(random_seed=1)
    factor = blm.bayes_factor(dyestuff_fit, other)
    assert factor.log == pytest.approx(dyestuff_fit.log_evidence.value - other.log_evidence.value)
    assert factor.value == pytest.approx(np.exp(factor.log))
    assert factor.error == pytest.approx(
        np.hypot(dyestuff_fit.log_evidence.error, other.log_evidence.error)
    )
    assert str(BayesFactor(np.log(2.0), 0.01)) == "2 (log 0.693, Monte Carlo error 0.01)"


def test_bayes_factors_need_the_same_response(dyestuff_fit):
    data = blm.load_dataset("Dyestuff")
    fewer = blm.LMM(FORMULA, data.iloc[:-1]).fit(draws=50, random_seed=1)
    with pytest.raises(DataError, match=r"these have 30 and 29 rows"):
        blm.bayes_factor(dyestuff_fit, fewer)
    logged = blm.LMM("np.log(Yield) ~ 1 + (1 | Batch)", data).fit(draws=50, random_seed=1)
    with pytest.raises(DataError, match="same rows and response"):
        blm.bayes_factor(dyestuff_fit, logged)


def test_same_seed_same_posterior_whatever_the_engine_ran_before(dyestuff_model):
    first = dyestuff_model.fit(draws=100, random_seed=5).data["posterior"]
    second = blm.LMM(FORMULA, blm.load_dataset("Dyestuff")).fit(draws=100, random_seed=5)
    assert first.to_dataset().identical(
        second.data["posterior"].to_dataset().assign_attrs(first.attrs)
    )
