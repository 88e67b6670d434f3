"""Posteriors by NUTS agree with long Stan runs under the same priors."""

import numpy as np
import pytest
from reference_data import load_posterior, load_posterior_data
from slow_cases import some

from bayeslmm.data.building import build_design
from bayeslmm.priors.defaults import default_priors
from bayeslmm.sampling.diagnostics import check
from bayeslmm.sampling.nuts import sample_nuts
from bayeslmm.schema import cor_name, sd_name, u_name

pytestmark = [pytest.mark.slow, pytest.mark.reference]

FORMS = ("noncentered", "marginal")
MAX_Z = 4.0  # combined Monte Carlo standard errors; the largest of up to 100 values counts
RUNS = [
    ("Pastes__nested", "noncentered"),
    ("Penicillin__crossed", "marginal"),
    ("Penicillin__crossed", "noncentered"),
    ("Pastes__nested", "marginal"),
    *((name, form) for name in ("sleepstudy__slope", "Machines__cells") for form in FORMS),
]


def draws_by_reference_name(posterior, design, reference) -> dict[str, np.ndarray]:
    """Draws (chain, draw) under Stan's names: coefficients match by position, levels by label."""
    found = {"sigma": posterior["sigma"]}
    for position, column in enumerate(reference["X_columns"]):
        found[f"beta[{column}]"] = posterior["beta"][..., position]
    names = list(reference["parameters"])
    for factor in design.random:
        start = f"sd[{factor.name},"
        coefs = [name[len(start) : -1] for name in names if name.startswith(start)]
        assert len(coefs) == factor.n_coefs
        for i, coef in enumerate(coefs):
            found[f"{start}{coef}]"] = posterior[sd_name(factor.key)][..., i]
            for j in range(i):
                name = f"cor[{factor.name},{coefs[j]},{coef}]"
                found[name] = posterior[cor_name(factor.key)][..., i, j]
            for level, label in enumerate(factor.levels):
                name = f"u[{factor.name},{label},{coef}]"
                found[name] = posterior[u_name(factor.key)][..., i, level]
    return {name: values.to_numpy() for name, values in found.items()}


def scores(draws: dict[str, np.ndarray], reference) -> dict[str, float]:
    """Differences of means and sds in combined Monte Carlo standard errors."""
    import arviz as az

    values = {}
    for name, expected in reference["parameters"].items():
        for statistic in ("mean", "sd"):
            error = float(az.mcse(draws[name], method=statistic))
            ours = draws[name].mean() if statistic == "mean" else draws[name].std(ddof=1)
            both = np.hypot(error, expected[f"mcse_{statistic}"])
            values[f"{statistic} of {name}"] = (ours - expected[statistic]) / both
    return values


@pytest.mark.parametrize(("name", "form"), some(1, RUNS))
def test_posterior_is_that_of_stan(name, form, record_property):
    reference = load_posterior(name)
    design = build_design(reference["formula"], load_posterior_data(name))
    dt = sample_nuts(
        design,
        default_priors(design),
        form,
        draws=2000,
        random_seed=20,
        progressbar=False,
        target_accept=0.99 if form == "noncentered" else None,
    )
    found = check(dt)
    draws = draws_by_reference_name(dt["posterior"].dataset, design, reference)
    values = scores(draws, reference)
    worst = max(values, key=lambda key: abs(values[key]))
    record = (
        f"{name} {form}: worst z {values[worst]:.2f} ({worst}), {found.divergences} divergences"
    )
    record_property("worst", record)
    assert abs(values[worst]) < MAX_Z, record
    assert found.divergences <= 5, record
