"""Posterior of a crossed model of 73,421 ratings (InstEval) against Bambi with nutpie.

    python benchmarks/insteval_posterior.py [--tools reml,bayeslmm,bambi] [--full] [--centered]

Every tool runs in its own process; times are from formula and data frame to draws, so that
compilation counts. The smallest bulk effective sample size is over sds, fixed effects, sigma and
all 4,128 random effects. Bambi gets our priors and, by default, 2 chains of 400 + 400 draws, from
which its core seconds for 1,000 effective draws are extrapolated: what is spent once, on building,
compiling and tuning, plus the draws in proportion; a longer tuning would come on top. With --full
it gets 4 chains of 1,000 + 1,000, extrapolated where they are still too few. Results are kept in
--results, so that a tool can be run alone; ratios are then of different runs, with their dates.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import datetime
from pathlib import Path
from unittest.mock import patch

import nutpie
from _bambi import INSTEVAL, build_bambi, draws_of_bambi, fit_bambi, require_bambi
from _common import (
    Summary,
    check_agreement,
    claim,
    draws_of_posterior,
    measure,
    peak_memory,
    print_environment,
    run_worker,
    summarise,
)
from reference_data import load_fit, load_reference_data

import bayeslmm as blm

FORMULA = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"
TOOLS = ("reml", "bayeslmm", "bambi")
WANTED = 1000
SHORT = {"chains": 2, "draws": 400, "tune": 400}
SHARE_OF_BAMBI = 1 / 20
MEMORY_MB = 1024
TIMES_REML = 3

DRAWS = 450
"""Draws of each of our four chains: nearly independent ones, enough for min ESS 1,000."""


def work_reml(frame, options):
    """Best of three REML fits, the criterion checked against lme4's."""
    fits = [measure(lambda: blm.LMM(FORMULA, frame).reml()) for _ in range(3)]
    reference = load_fit("InstEval__service_reml")["criterion"]["value"]
    if abs(fits[0][1].criterion - reference) > 1e-6:
        raise SystemExit(f"criterion {fits[0][1].criterion}, lme4 {reference}")
    wall, core = (min(getattr(t, c) for t, _ in fits) for c in ("wall", "core"))
    return {"wall": wall, "core": core, "memory": peak_memory()}


def work_bayeslmm(frame, options):
    """Our posterior."""
    timing, post = measure(
        lambda: blm.LMM(FORMULA, frame).fit(
            method="collapsed", draws=DRAWS, random_seed=1, store_u=True
        )
    )
    result = {"wall": timing.wall, "core": timing.core, "memory": peak_memory()}
    return finish(result, draws_of_posterior(post), options)


def work_bambi(frame, options):
    """Bambi's posterior; its tuning steps are kept to count them."""
    priors = blm.LMM(FORMULA, frame).priors
    size = {"chains": 4, "draws": 1000, "tune": 1000} if options.full else SHORT

    def fit():
        model = build_bambi(INSTEVAL, frame, priors, noncentered=not options.centered)
        return fit_bambi(model, 1, discard_tuned_samples=False, **size)

    result = {"size": size}
    with patch("nutpie.sample", counted(nutpie.sample, result)):
        timing, tree = measure(fit)
    result |= {"wall": timing.wall, "core": timing.core, "memory": peak_memory()}
    groups = ("warmup_sample_stats", "sample_stats")
    result["steps"] = [int(tree[group]["n_steps"].sum()) for group in groups]
    result["divergences"] = int(tree["sample_stats"]["diverging"].sum())
    return finish(result, draws_of_bambi(tree, INSTEVAL), options)


def counted(sample, result):
    """The sampler, its core seconds added to `result`: the rest is building and compiling."""

    def wrapped(*args, **kwargs):
        timing, trace = measure(lambda: sample(*args, **kwargs))
        result["sampling"] = timing.core
        return trace

    return wrapped


def finish(result, draws, options):
    """Save the moments of the draws and add what the table shows of them."""
    summary = summarise(draws)
    summary.save(Path(options.results) / f"{options.worker}.npz")
    ess, parameter = summary.worst
    return result | {"ess": ess, "worst": parameter, "r_hat": float(summary.r_hat.max())}


def core_seconds_to(wanted, result):
    """Core seconds for `wanted` effective draws of the worst parameter, and how that was found."""
    if result["ess"] >= wanted:
        return result["core"], "the whole run"
    if "steps" not in result:
        return result["core"] * wanted / result["ess"], "extrapolated from the whole run"
    drawing = result["sampling"] * result["steps"][1] / sum(result["steps"])
    once, times = result["core"] - drawing, wanted / result["ess"]
    return once + drawing * times, f"extrapolated: {once:.1f} once + {drawing:.1f} x {times:.1f}"


def run_tool(tool, options):
    """Run one tool in its own process and keep the result."""
    arguments = ["--worker", tool, "--results", options.results]
    arguments += [f"--{flag}" for flag in ("full", "centered") if getattr(options, flag)]
    result = run_worker(__file__, arguments) | {"date": f"{datetime.now():%Y-%m-%d %H:%M}"}
    (Path(options.results) / f"{tool}.json").write_text(json.dumps(result))


def print_table(results):
    """One row per tool."""
    print(f"\n{'':10s} {'wall s':>9s} {'core s':>9s} {'peak MB':>8s} {'min ESS':>8s} R-hat   of")
    for tool, r in results.items():
        print(f"{tool:10s} {r['wall']:9.2f} {r['core']:9.2f} {r['memory']:8.0f}", end=" ")
        size = f", {r['size']}" if "size" in r else ""
        ess = f"{r['ess']:8.0f} {r['r_hat']:.3f}   {r['worst']}" if "ess" in r else " " * 8
        print(f"{ess}{size} ({r['date']})")


def print_claims(results):
    """What is claimed, as far as the tools ran."""
    ours, theirs, reml = (results.get(t) for t in ("bayeslmm", "bambi", "reml"))
    if theirs:
        needed, how = core_seconds_to(WANTED, theirs)
        print(f"\nBambi, core seconds for min ESS {WANTED}: {needed:.0f} ({how})")
    if ours:
        own, how = core_seconds_to(WANTED, ours)
        print(f"bayeslmm, core seconds for min ESS {WANTED}: {own:.1f} ({how})")
        claim("peak memory of bayeslmm in MB", ours["memory"], MEMORY_MB, at_least=False)
    if ours and theirs:
        print(f"Bambi / bayeslmm: {needed / own:.1f} x core seconds")
        claim("share of Bambi's core seconds", own / needed, SHARE_OF_BAMBI, at_least=False)
    if ours and reml:
        ratio = ours["wall"] / reml["wall"]
        claim("whole posterior in REML fits (stretch)", ratio, TIMES_REML, at_least=False)


def compare(options):
    """Run the tools asked for and compare all that have a result."""
    for tool in options.tools.split(","):
        run_tool(tool, options)
    folder = Path(options.results)
    found = [tool for tool in TOOLS if (folder / f"{tool}.json").exists()]
    results = {tool: json.loads((folder / f"{tool}.json").read_text()) for tool in found}
    if {"bayeslmm", "bambi"} <= results.keys():
        pair = [Summary.load(folder / f"{tool}.npz") for tool in ("bayeslmm", "bambi")]
        check_agreement(*pair, "bayeslmm and Bambi")
    print_table(results)
    print_claims(results)


def main():
    """Run the comparison, or one tool of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", default=",".join(TOOLS))
    parser.add_argument("--full", action="store_true", help="4 x (1,000 + 1,000) by Bambi")
    parser.add_argument("--centered", action="store_true", help="Bambi's centered form")
    parser.add_argument("--results", help="folder to keep results in; a temporary one by default")
    parser.add_argument("--worker", choices=TOOLS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work = {"reml": work_reml, "bayeslmm": work_bayeslmm, "bambi": work_bambi}[options.worker]
        print(json.dumps(work(load_reference_data("InstEval"), options)))
        return
    if "bambi" in options.tools:
        require_bambi()
    print_environment()
    print(f"\npriors of all:\n{blm.LMM(FORMULA, load_reference_data('InstEval')).priors}\n")
    with tempfile.TemporaryDirectory() as folder:
        options.results = options.results or folder
        Path(options.results).mkdir(parents=True, exist_ok=True)
        compare(options)


if __name__ == "__main__":
    main()
