"""The Laplace approximation against numerical integration."""

from __future__ import annotations

import numpy as np
import pytest
from reference_data import load_posterior

import bayeslmm as blm
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained


@pytest.fixture(scope="module")
def dyestuff():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    return model, model.fit(method="laplace", draws=2000, chains=4, random_seed=3)


def test_schema(dyestuff):
    _, post = dyestuff
    assert post.method == "laplace"
    assert set(post.data.children) == {
        "posterior",
        "sample_stats",
        "observed_data",
        "constant_data",
    }
    assert post.data["posterior"]["u_Batch"].dims == ("chain", "draw", "Batch_coef", "Batch")


def test_reweighted_draws_have_the_exact_moments(dyestuff):
    """The log weights correct the approximation: compare with the quadrature of the posterior."""
    _, post = dyestuff
    weights = np.exp(post.data["sample_stats"]["log_weight"].to_numpy().ravel())
    weights /= weights.sum()
    exact = load_posterior("Dyestuff__int")["quadrature"]
    for name, draws in (
        ("sd[Batch,Intercept]", post.data["posterior"]["sd_Batch"]),
        ("sigma", post.data["posterior"]["sigma"]),
        ("beta[Intercept]", post.data["posterior"]["beta"]),
    ):
        values = draws.to_numpy().ravel()
        mean = float(weights @ values)
        expected, sd = exact["means"][name], exact["sds"][name]
        # 8,000 weighted draws: four standard errors at an effective size of 2,000.
        assert abs(mean - expected) < 4 * sd / np.sqrt(2000)


def test_lp_is_the_log_density(dyestuff):
    model, post = dyestuff
    draw = post.data["posterior"].to_dataset().isel(chain=1, draw=7)
    x = np.log([draw["sd_Batch"].item(), draw["sigma"].item()])
    expected = log_posterior_unconstrained(model.system, model.priors, x)[0]
    assert post.data["sample_stats"]["lp"][1, 7].item() == pytest.approx(expected, abs=1e-8)


def test_same_seed_same_draws():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    first, second = (model.fit(method="laplace", draws=20, random_seed=5) for _ in range(2))
    assert first.data["posterior"].to_dataset().equals(second.data["posterior"].to_dataset())


def test_an_improper_posterior_is_refused():
    model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"), priors="flat")
    # A flat sd with its mode at zero still has a proper mode on the log scale; two levels do not.
    data = blm.load_dataset("Dyestuff2")
    few = data[data["Batch"].isin(["A", "B"])].assign(Batch=lambda d: d["Batch"].astype(str))
    with pytest.raises(SamplingError, match="no regular mode"):
        blm.LMM("Yield ~ 1 + (1 | Batch)", few, priors="flat").fit(method="laplace")
    assert model.fit(method="laplace", draws=10, random_seed=1).nobs == 30
