"""Posterior of a random-slopes model with very many groups of 5 rows.

    python benchmarks/many_groups.py [--million] [--groups N] [--lme4]

y ~ x + (x | g), simulated: 10,000 groups by default, 1,000,000 with --million. The fit runs in its
own process and is timed from formula and data frame to the posterior. With so much data the
posterior is close to normal around the REML estimate, and that is what is checked first. Random
effects may be summarised instead of stored; only summaries are read.
"""

from __future__ import annotations

import argparse
import json
import tempfile

import numpy as np
import pandas as pd
from _common import claim, measure, peak_memory, print_environment, run_worker
from reml import run_lme4

import bayeslmm as blm

FORMULA = "y ~ x + (x | g)"
ROWS = 5
BETA, SDS, CORRELATION, SIGMA = (1.0, 0.5), (1.0, 0.5), 0.3, 1.0
SECONDS = {10_000: 5.0, 1_000_000: 120.0}
MEMORY_MB = {1_000_000: 6 * 1024}

CLOSE = 0.25
"""Posterior sds that a posterior mean may be from the REML estimate: prior, skewness, noise."""

PLAUSIBLE = 5.0
"""Posterior sds that a posterior mean may be from the simulated truth."""


def simulate(groups, seed=1):
    """Data frame of `groups` times 5 rows."""
    rng = np.random.default_rng(seed)
    correlation = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
    factor = np.array(SDS)[:, None] * np.linalg.cholesky(correlation)
    u = rng.standard_normal((groups, 2)) @ factor.T
    g, x = np.repeat(np.arange(groups), ROWS), rng.standard_normal(groups * ROWS)
    noise = rng.normal(0.0, SIGMA, groups * ROWS)
    y = BETA[0] + u[g, 0] + (BETA[1] + u[g, 1]) * x + noise
    return pd.DataFrame({"y": y, "x": x, "g": g})


def estimates(fit):
    """Point estimates of a fit in the order of the rows of the posterior's summary."""
    correlation = fit.corrs["g"].to_numpy()[1, 0]
    return np.array([*fit.beta, *fit.sds["g"], correlation, fit.sigma])


def work(groups):
    """Fit, and compare the posterior with REML and with the truth."""
    frame = simulate(groups)
    timing, post = measure(lambda: blm.LMM(FORMULA, frame).fit(method="collapsed", random_seed=1))
    memory = peak_memory()
    reading, table = measure(post.summary)
    reml_timing, reml = measure(lambda: blm.LMM(FORMULA, frame).reml())
    truth = np.array([*BETA, *SDS, CORRELATION, SIGMA])
    mean, sd = table["mean"].to_numpy(), table["sd"].to_numpy()
    return {
        "wall": timing.wall,
        "core": timing.core,
        "memory": memory,
        "summary": reading.wall,
        "reml": reml_timing.wall,
        "criterion": reml.criterion,
        "from_reml": float(np.max(np.abs(mean - estimates(reml)) / sd)),
        "from_truth": float(np.max(np.abs(mean - truth) / sd)),
        "ess": float(table["ess_bulk"].min()),
        "table": table[["mean", "sd", "ess_bulk", "r_hat"]]
        .assign(reml=estimates(reml))
        .to_string(),
    }


def print_lme4(groups, result):
    """REML time of lme4 on the same data, where R has it."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = run_lme4(FORMULA, simulate(groups), ["y", "x"], 1, folder)
    if theirs is None:
        print("lme4: not run (R with lme4 and jsonlite is needed)")
    elif theirs["criterion"] < result["criterion"] - 0.01:
        print(f"lme4: REML criterion {theirs['criterion']} is smaller than ours; no ratio")
    else:
        gap = theirs["criterion"] - result["criterion"]
        print(f"lme4 {theirs['version']}, REML: {theirs['seconds']:.1f} s, criterion {gap:+.4f};")
        print(f"  lme4's REML / our posterior: {theirs['seconds'] / result['wall']:.1f} x")


def report(groups, result):
    """Agreement, times and claims."""
    print(f"\n{groups} groups of {ROWS} rows\n{result['table']}")
    print(f"largest distance of a posterior mean: from REML {result['from_reml']:.2f} posterior")
    print(f"  sds (limit {CLOSE}), from the truth {result['from_truth']:.2f} (limit {PLAUSIBLE})")
    if result["from_reml"] > CLOSE or result["from_truth"] > PLAUSIBLE:
        raise SystemExit("the answers disagree; times are not printed")
    print(f"posterior {result['wall']:.2f} s ({result['core']:.2f} core s), its summary", end=" ")
    print(f"{result['summary']:.2f} s, peak memory {result['memory']:.0f} MB, min ESS of", end=" ")
    print(f"the parameters {result['ess']:.0f}; REML {result['reml']:.2f} s")
    if groups in SECONDS:
        claim("seconds for the posterior", result["wall"], SECONDS[groups], at_least=False)
    if groups in MEMORY_MB:
        claim("peak memory in MB", result["memory"], MEMORY_MB[groups], at_least=False)


def main():
    """Run the simulation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--million", action="store_true", help="1,000,000 groups")
    parser.add_argument("--lme4", action="store_true", help="time lme4's REML beside")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    groups = 1_000_000 if options.million else options.groups
    if options.worker:
        print(json.dumps(work(groups)))
        return
    print_environment()
    result = run_worker(__file__, ["--worker", "--groups", str(groups)])
    report(groups, result)
    if options.lme4:
        print_lme4(groups, result)


if __name__ == "__main__":
    main()
