"""Convergence checks on made-up draws."""

import logging

import numpy as np
import pytest
import xarray as xr

from bayeslmm.sampling.diagnostics import MAX_ENTRIES, Diagnostics, check

CHAINS, DRAWS = 4, 250


def tree(seed: int = 0, *, levels: int = 3, **changes) -> xr.DataTree:
    """Draws without problems, with some variables or statistics replaced."""
    rng = np.random.default_rng(seed)
    dims = ("chain", "draw")
    correlation = np.tanh(rng.normal(size=(CHAINS, DRAWS)))
    factor = {"grouping_factor": "a:b"}
    variables = {
        "beta": ((*dims, "coef"), rng.normal(size=(CHAINS, DRAWS, 2))),
        "sigma": (dims, np.exp(rng.normal(size=(CHAINS, DRAWS)))),
        "corr_a_b": ((*dims, "a_b_pair"), correlation[..., None], factor),
        "u_a_b": (
            (*dims, "a_b_coef", "a_b"),
            rng.normal(size=(CHAINS, DRAWS, 2, levels)),
            factor,
        ),
    }
    stats = {
        "diverging": np.zeros((CHAINS, DRAWS), dtype=bool),
        "reached_max_treedepth": np.zeros((CHAINS, DRAWS), dtype=bool),
        "energy": rng.normal(size=(CHAINS, DRAWS)),
    }
    stats |= {name: value for name, value in changes.items() if name != "sigma"}
    stats = {name: value for name, value in stats.items() if value is not None}
    coords = {
        "chain": range(CHAINS),
        "draw": range(DRAWS),
        "coef": ["Intercept", "Days"],
        "a_b": [f"l{i}" for i in range(levels)],
        "a_b_coef": ["Intercept", "Days"],
        "a_b_pair": ["Intercept, Days"],
    }
    posterior = xr.Dataset(variables, coords=coords)
    if "sigma" in changes:
        posterior["sigma"] = (dims, changes["sigma"])
    sample_stats = xr.Dataset({name: (dims, value) for name, value in stats.items()})
    return xr.DataTree.from_dict({"posterior": posterior, "sample_stats": sample_stats})


def test_good_draws_raise_no_question(caplog):
    found = check(tree())
    assert found.ok and found.messages() == ()
    assert (found.chains, found.draws, found.divergences) == (CHAINS, DRAWS, 0)
    assert found.max_rhat < 1.01
    assert found.min_ess_bulk > 400
    assert found.min_ebfmi > 1.0
    assert "No problems found." in str(found)
    assert not caplog.records


def test_chains_apart(caplog):
    rng = np.random.default_rng(1)
    apart = np.arange(CHAINS)[:, None] + rng.normal(size=(CHAINS, DRAWS)) / 10
    with caplog.at_level(logging.WARNING, logger="bayeslmm.sampling.diagnostics"):
        found = check(tree(sigma=apart))
    assert found.max_rhat > 1.5 and found.max_rhat_parameter == "sigma"
    assert found.min_ess_bulk < 20 and found.min_ess_bulk_parameter == "sigma"
    rhat, ess = found.messages()
    assert "for sigma" in rhat and "have not mixed" in rhat
    assert "effective sample size" in ess
    assert [record.message for record in caplog.records] == [rhat, ess]


def test_divergences_and_tree_depth():
    hits = np.zeros((CHAINS, DRAWS), dtype=bool)
    hits[1, :7] = True
    found = check(tree(diverging=hits, reached_max_treedepth=hits))
    assert (found.divergences, found.treedepth_hits) == (7, 7)
    diverged, depth = found.messages()
    assert diverged.startswith("7 of 1000 transitions diverged")
    assert "target_accept" in diverged
    assert "max_treedepth" in depth


def test_slow_energy():
    rng = np.random.default_rng(2)
    found = check(tree(energy=np.cumsum(rng.normal(size=(CHAINS, DRAWS)), axis=1)))
    assert found.min_ebfmi < 0.3
    assert "E-BFMI" in found.messages()[0]


def test_methods_without_sampler_statistics():
    draws = tree()
    found = check(xr.DataTree.from_dict({"posterior": draws["posterior"].dataset}))
    assert found.ok and found.divergences == 0 and np.isnan(found.min_ebfmi)
    assert np.isnan(check(tree(energy=None)).min_ebfmi)


def test_one_chain_has_no_rhat():
    draws = tree()
    one = xr.DataTree.from_dict({"posterior": draws["posterior"].dataset.isel(chain=[0])})
    found = check(one)
    assert np.isnan(found.max_rhat)
    assert found.ok


@pytest.mark.parametrize("levels", [3, MAX_ENTRIES + 50])
def test_parameters_are_named_as_in_tables(levels):
    draws = tree(levels=levels)
    posterior = draws["posterior"].dataset.copy(deep=True)
    posterior["u_a_b"][:, :, 0, 0] += 5.0 * posterior.chain
    found = check(xr.DataTree.from_dict({"posterior": posterior}))
    assert found.max_rhat_parameter == "u[a:b, l0, Intercept]"
    posterior["corr_a_b"][:, :, 0] += 50.0 * posterior.chain
    found = check(xr.DataTree.from_dict({"posterior": posterior}))
    assert found.min_ess_bulk_parameter in ("u[a:b, l0, Intercept]", "cor[a:b, Intercept, Days]")


def test_text():
    found = Diagnostics(
        chains=2,
        draws=10,
        divergences=0,
        treedepth_hits=0,
        max_rhat=1.2,
        max_rhat_parameter="sigma",
        min_ess_bulk=500.0,
        min_ess_bulk_parameter="sigma",
        min_ess_tail=100.0,
        min_ess_tail_parameter="beta[Days]",
        min_ebfmi=float("nan"),
    )
    assert "E-BFMI" not in str(found)
    assert "tail effective sample size is 100 for beta[Days]" in found.messages()[1]


def test_advice_is_about_options_that_the_engine_has():
    """NUTS has `tune`; the collapsed sampler has nothing to tune."""
    rng = np.random.default_rng(1)
    apart = np.arange(CHAINS)[:, None] + rng.normal(size=(CHAINS, DRAWS)) / 10
    assert any("raise tune and draws" in message for message in check(tree(sigma=apart)).messages())
    stats = dict.fromkeys(("acceptance_rate", "pareto_k", "n_evaluations"), np.ones_like(apart))
    messages = check(tree(sigma=apart, energy=None, **stats)).messages()
    assert any("raise draws" in message for message in messages)
    assert not any("tune" in message for message in messages)
