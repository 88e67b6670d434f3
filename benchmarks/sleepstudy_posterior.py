"""Posterior of the sleepstudy model against Bambi and against PyMC's LKJ model, both by nutpie.

    python benchmarks/sleepstudy_posterior.py [--repeat 3]

4 chains of 1,000 draws in a warm process, every time from formula and data frame to draws of all
parameters and random effects, so building and compiling the model count. Bambi has no correlations
of random effects, so it is compared on (Days || Subject), with exactly our priors. PyMC's
noncentered LKJ model is compared on (Days | Subject), twice: as PyMC's documentation writes it,
with LKJCholeskyCov, and as `model.pymc("noncentered")` has it. The claim is about the better one.
The first call of each tool in the process is shown beside the best of the later ones, in which
PyTensor finds what it compiled before on disk.
"""

from __future__ import annotations

import argparse

from _bambi import SLEEPSTUDY, build_bambi, draws_of_bambi, fit_bambi, require_bambi
from _common import (
    CORES,
    Timing,
    best,
    check_agreement,
    claim,
    draws_of_posterior,
    interleave,
    print_environment,
    summarise,
)
from _pymc import draws_of_textbook, sample_textbook

import bayeslmm as blm

CORRELATED = "Reaction ~ Days + (Days | Subject)"
UNCORRELATED = "Reaction ~ Days + (Days || Subject)"
FASTER_THAN_BAMBI = 30
MORE_ESS_THAN_PYMC = 100

COLLAPSED, BAMBI = "bayeslmm, ||", "Bambi + nutpie, ||"
COLLAPSED_LKJ, TEXTBOOK, NUTS = "bayeslmm, |", "PyMC textbook, |", "model.pymc(), |"


def make_tools(frame, target_accept):
    """Function of a seed for each tool and model."""
    priors = blm.LMM(UNCORRELATED, frame).priors
    lkj = blm.LMM(CORRELATED, frame)

    def collapsed(formula, seed):
        return blm.LMM(formula, frame).fit(method="collapsed", random_seed=seed)

    def nuts(seed):
        model = blm.LMM(CORRELATED, frame)
        options = {"nuts_sampler": "nutpie", "cores": CORES, "progressbar": False}
        return model.fit(method="nuts", random_seed=seed, target_accept=target_accept, **options)

    def textbook(seed):
        return sample_textbook(lkj.design, lkj.priors, seed, target_accept)

    return {
        COLLAPSED: lambda seed: collapsed(UNCORRELATED, seed),
        BAMBI: lambda seed: fit_bambi(build_bambi(SLEEPSTUDY, frame, priors), seed, chains=4),
        COLLAPSED_LKJ: lambda seed: collapsed(CORRELATED, seed),
        TEXTBOOK: textbook,
        NUTS: nuts,
    }


def draws_of(name, result, frame):
    """Draws by our names."""
    if isinstance(result, blm.Posterior):
        return draws_of_posterior(result)
    if name == TEXTBOOK:
        return draws_of_textbook(result, blm.LMM(CORRELATED, frame).design)
    return draws_of_bambi(result, SLEEPSTUDY)


def sampling_time(result):
    """Seconds of sampling alone, as the sampler reports them."""
    tree = result.data if isinstance(result, blm.Posterior) else result
    return float(tree["posterior"].attrs.get("sampling_time", float("nan")))


def rates(runs, summaries):
    """Best smallest effective sample size per second and per core second."""
    pairs = [(s.worst[0], t) for (t, _), s in zip(runs, summaries, strict=True)]
    return Timing(max(e / t.wall for e, t in pairs), max(e / t.core for e, t in pairs))


def print_table(first, runs, summaries, times, rate):
    """One row per tool."""
    print(f"\n{'':18s} {'first s':>8s} {'wall s':>8s} {'core s':>8s} {'sampling':>9s}", end="")
    print(f" {'min ESS':>8s} {'ESS/s':>9s} {'ESS/core s':>11s}   worst parameter")
    for name in runs:
        alone = min(sampling_time(result) for _, result in runs[name])
        ess, worst = max(s.worst for s in summaries[name])
        print(f"{name:18s} {first[name].wall:8.2f} {times[name].wall:8.3f}", end=" ")
        print(f"{times[name].core:8.3f} {alone:9.3f} {ess:8.0f} {rate[name].wall:9.0f}", end=" ")
        print(f"{rate[name].core:11.0f}   {worst}")


def print_claims(times, rate):
    """Ratios, and the claims, which are about seconds on the clock."""
    ours, theirs = times[COLLAPSED], times[BAMBI]
    print(f"\nBambi / bayeslmm: {theirs.wall / ours.wall:.1f} x wall seconds,", end=" ")
    print(f"{theirs.core / ours.core:.1f} x core seconds")
    more = rate[COLLAPSED_LKJ]
    for name in (TEXTBOOK, NUTS):
        less = rate[name]
        print(f"bayeslmm / {name}: {more.wall / less.wall:.1f} x min ESS per second,", end=" ")
        print(f"{more.core / less.core:.1f} x per core second")
    text = "times faster than Bambi, end to end"
    claim(text, theirs.wall / ours.wall, FASTER_THAN_BAMBI, at_least=True)
    text = "times the min ESS per second of PyMC's noncentered LKJ model"
    rival = max(rate[TEXTBOOK].wall, rate[NUTS].wall)
    claim(text, more.wall / rival, MORE_ESS_THAN_PYMC, at_least=True)


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--target-accept", type=float, default=0.8, help="of PyMC's model")
    options = parser.parse_args()
    require_bambi()
    print_environment()
    frame = blm.load_dataset("sleepstudy")
    print(f"\npriors of both models of {UNCORRELATED}:\n{blm.LMM(UNCORRELATED, frame).priors}")
    print(f"cor[Subject] in {CORRELATED}: {blm.LMM(CORRELATED, frame).priors.cor[0][0]}\n")
    first, runs = interleave(make_tools(frame, options.target_accept), options.repeat)
    summaries = {n: [summarise(draws_of(n, r, frame)) for _, r in runs[n]] for n in runs}
    check_agreement(summaries[COLLAPSED][-1], summaries[BAMBI][-1], "bayeslmm and Bambi")
    for name in (TEXTBOOK, NUTS):
        check_agreement(summaries[COLLAPSED_LKJ][-1], summaries[name][-1], f"bayeslmm and {name}")
    times = {name: best([timing for timing, _ in runs[name]]) for name in runs}
    rate = {name: rates(runs[name], summaries[name]) for name in runs}
    print_table(first, runs, summaries, times, rate)
    print_claims(times, rate)


if __name__ == "__main__":
    main()
