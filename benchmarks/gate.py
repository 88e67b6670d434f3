"""Whether this checkout is as fast as another one, and gives the same answers.

    python benchmarks/gate.py --against PATH [--rounds 5] [--parts small,large,cold]
        [--limit 1.1] [--clock core] [--glmm-python PYTHON]

Both checkouts run in fresh processes that take turns, ABBA, by this interpreter and its installed
dependencies. Checked first: REML criteria and log densities, and posterior means in their Monte
Carlo errors. Then, for each task, best and median seconds and the ratio of this checkout to the
other, below one where this one is faster; "rounds" are the smallest and the largest ratio of two
neighbouring processes, which shows the noise. Exit status 1 where best and median ratio of a task
are both above --limit. With --clock core seconds are those of the processor, all threads of a
process together: on a machine that others use too, they vary less than those on the clock.

small: sleepstudy, REML (formula and frame to estimate), REML with its table of tests, posterior of
4 x 1,000 draws, after warming up. large: InstEval, REML, posterior of 4 x 450 draws, one value of
the density and one with its gradient. cold: from a fresh interpreter with pandas loaded to the
printed REML estimate of sleepstudy.

With --glmm-python, an interpreter that has the package glmm (a Rust kernel) takes turns too: its
fit without degrees of freedom is compared with our REML, its default fit with REML and tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SMALL = "Reaction ~ Days + (Days | Subject)"
LARGE = "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)"

CRITERION = 1e-6
"""Absolute difference of REML criteria."""

DENSITY = 1e-9
"""Relative difference of two computations of one log density: rounding."""

DEVIATIONS = 5.0
"""Combined Monte Carlo errors of posterior means."""

CLOCKS = {"wall": time.perf_counter, "core": time.process_time}
CLOCK = "BAYESLMM_GATE_CLOCK"
"""Environment variable by which a process learns its clock."""

WARM_UP = 3
TIMES = {
    "sleepstudy REML": 40,
    "sleepstudy REML and tests": 20,
    "sleepstudy posterior": 5,
    "InstEval REML": 2,
    "InstEval posterior": 1,
    "InstEval value": 7,
    "InstEval value and gradient": 7,
}

COLD = """
import os, sys, time
import pandas as pd
clock = {"wall": time.perf_counter, "core": time.process_time}[os.environ["BAYESLMM_GATE_CLOCK"]]
start = clock()
import bayeslmm as blm
frame = pd.read_csv(sys.argv[1], dtype={"Subject": str})
reml = blm.LMM(sys.argv[2], frame).reml()
print(reml)
seconds = clock() - start
import json
print(json.dumps({"file": blm.__file__, "times": {"cold REML summary": [seconds]},
                  "answers": {"criterion, cold": float(reml.criterion)}}))
"""

GLMM = """
import json, os, sys, time
import glmm
import pandas as pd
clock = {"wall": time.perf_counter, "core": time.process_time}[os.environ["BAYESLMM_GATE_CLOCK"]]
data = pd.read_csv(sys.argv[1], dtype={"Subject": str})
def seconds(**options):
    found = []
    for i in range(203):
        start = clock()
        fit = glmm.fit(data, sys.argv[2], **options)
        found.append(clock() - start)
    return found[3:], -2.0 * fit.loglik
alone, criterion = seconds(satterthwaite=False)
tests, _ = seconds()
print(json.dumps({"times": {"sleepstudy REML": alone, "sleepstudy REML and tests": tests},
                  "answers": {"criterion, sleepstudy": criterion}}))
"""

PARTS = ("small", "large", "cold")

Times = dict[str, dict[str, list[list[float]]]]
Answers = dict[str, dict[str, list[Any]]]


def timed(name: str, function: Callable[[], Any], warm_up: int) -> tuple[list[float], Any]:
    """Seconds of repeated calls, and the last result."""
    clock = CLOCKS[os.environ[CLOCK]]
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(TIMES[name]):
        start = clock()
        result = function()
        seconds.append(clock() - start)
    return seconds, result


def means(post: Any) -> dict[str, list[float]]:
    """Posterior means with their Monte Carlo errors."""
    table = post.summary()
    pairs = zip(table["mean"], table["mcse_mean"], strict=True)
    return {
        str(name): [float(m), float(e)] for name, (m, e) in zip(table.index, pairs, strict=True)
    }


def stated_priors() -> dict[str, Any]:
    """A prior for every parameter of sleepstudy: defaults may differ between checkouts."""
    from bayeslmm.priors import LKJ, HalfStudentT, Normal

    scale = HalfStudentT(3.0, 50.0)
    fixed = {"Intercept": Normal(300.0, 140.0), "Days": Normal(0.0, 50.0)}
    return fixed | {"sd": scale, "cor": LKJ(1.0), "sigma": scale}


def work_small() -> dict[str, Any]:
    """The sleepstudy model."""
    from reference_data import load_reference_data

    import bayeslmm as blm

    frame = load_reference_data("sleepstudy")
    times: dict[str, list[float]] = {}
    name = "sleepstudy REML"
    times[name], reml = timed(name, lambda: blm.LMM(SMALL, frame).reml(), WARM_UP)
    name = "sleepstudy REML and tests"
    times[name], _ = timed(name, lambda: blm.LMM(SMALL, frame).reml().fixef(), WARM_UP)
    name = "sleepstudy posterior"
    priors = stated_priors()
    times[name], post = timed(
        name, lambda: blm.LMM(SMALL, frame, priors=priors).fit(random_seed=1), 1
    )
    answers = {"criterion, sleepstudy": float(reml.criterion), "means, sleepstudy": means(post)}
    return {"file": blm.__file__, "times": times, "answers": answers}


def work_large() -> dict[str, Any]:
    """The crossed model of 73,421 ratings."""
    from _kernel import densities
    from reference_data import load_reference_data

    import bayeslmm as blm

    frame = load_reference_data("InstEval")
    times: dict[str, list[float]] = {}
    name = "InstEval REML"
    times[name], reml = timed(name, lambda: blm.LMM(LARGE, frame).reml(), 1)
    model = blm.LMM(LARGE, frame)
    value, with_gradient = densities(model, reml)
    answers: dict[str, Any] = {"criterion, InstEval": float(reml.criterion)}
    for name, function in (
        ("InstEval value", value),
        ("InstEval value and gradient", with_gradient),
    ):
        times[name], answers[f"density, {name}"] = timed(name, function, 1)
    name = "InstEval posterior"
    options: dict[str, Any] = {"draws": 450, "random_seed": 1, "store_u": True}
    times[name], post = timed(name, lambda: blm.LMM(LARGE, frame).fit(**options), 0)
    answers["means, InstEval"] = means(post)
    return {"file": blm.__file__, "times": times, "answers": answers}


def run(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run a process of which the last line that it prints is JSON."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_checkout(root: Path, part: str) -> dict[str, Any]:
    """One fresh process with a checkout's package and kernel."""
    kernels = root if (root / "benchmarks" / "_kernel.py").exists() else ROOT
    folders = (root, kernels / "benchmarks", ROOT / "tests")
    threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    path = os.pathsep.join(str(folder) for folder in folders)
    # -P: the folder of this script must not come before those of the checkout.
    command = [sys.executable, "-P"]
    if part == "cold":
        command += ["-c", COLD, str(ROOT / "tests/reference/data/sleepstudy.csv"), SMALL]
    else:
        command += [__file__, "--worker", part]
    found = run(command, os.environ | threads | {"PYTHONPATH": path})
    if root not in Path(found["file"]).resolve().parents:
        raise SystemExit(f"{root}: the package of {found['file']} was imported")
    return found


def run_glmm(python: str) -> dict[str, Any]:
    """One fresh process of the package glmm."""
    data = str(ROOT / "tests/reference/data/sleepstudy.csv")
    return run([python, "-c", GLMM, data, SMALL], os.environ | {"PYTHONPATH": ""})


def check(answers: Answers) -> None:
    """Exit where the answers of two sides, or of two processes of one, differ."""
    for name, values in answers["new"].items():
        for side, found in answers.items():
            for value in found.get(name, []):
                gap, limit = difference(name, values[0], value)
                if not gap <= limit:
                    raise SystemExit(
                        f"{name}: {side} is off by {gap:.3g} (limit {limit:g}); no ratio is printed"
                    )
        print(f"agreement, {name}: {', '.join(side for side in answers if name in answers[side])}")


def difference(name: str, one: Any, two: Any) -> tuple[float, float]:
    """How far two answers are apart, and how far they may be."""
    if name.startswith("means"):
        if one.keys() != two.keys():
            raise SystemExit(f"{name}: not the same parameters")
        pairs = [(one[key], two[key]) for key in one]
        errors = [abs(a[0] - b[0]) / (a[1] ** 2 + b[1] ** 2) ** 0.5 for a, b in pairs]
        return max(errors), DEVIATIONS
    if name.startswith("density"):
        return abs(one / two - 1.0), DENSITY
    return abs(one - two), CRITERION


def compare(label: str, new: list[list[float]], old: list[list[float]]) -> tuple[float, float]:
    """Print a line; ratios of best and median seconds. Each list is of one process."""
    bests = [min(min(times) for times in side) for side in (new, old)]
    medians = [median(median(times) for times in side) for side in (new, old)]
    rounds = [median(a) / median(b) for a, b in zip(new, old, strict=True)]
    best, middle = bests[0] / bests[1], medians[0] / medians[1]
    print(
        f"{label:40s} {1e3 * bests[0]:10.3f} {1e3 * bests[1]:10.3f} {best:6.2f} "
        f"{1e3 * medians[0]:10.3f} {1e3 * medians[1]:10.3f} {middle:6.2f} "
        f"  {min(rounds):.2f} to {max(rounds):.2f}"
    )
    return best, middle


def gather(
    sides: dict[str, Path], parts: list[str], options: argparse.Namespace
) -> tuple[Times, Answers]:
    """Times and answers by side and name, process by process."""
    times: Times = {}
    answers: Answers = {}

    def keep(side: str, found: dict[str, Any]) -> None:
        for kind, into in (("times", times), ("answers", answers)):
            for name, value in found[kind].items():
                into.setdefault(side, {}).setdefault(name, []).append(value)

    for part in parts:
        if part == "cold":  # once for nothing: bytecode, and the cache of the file system
            for root in sides.values():
                run_checkout(root, part)
        for number in range(options.rounds):
            for side in list(sides) if number % 2 == 0 else list(reversed(sides)):
                keep(side, run_checkout(sides[side], part))
            if part == "small" and options.glmm_python:
                keep("glmm", run_glmm(options.glmm_python))
    return times, answers


def report(times: Times, limit: float) -> bool:
    """Print the table; whether no task is slower than the limit."""
    unit = f"{os.environ[CLOCK]} milliseconds"
    print(f"\n{'':40s} {'best, ' + unit:^28s} {'median, ' + unit:^28s}")
    print(f"{'':40s} {'new':>10s} {'old':>10s} {'ratio':>6s}", end=" ")
    print(f"{'new':>10s} {'old':>10s} {'ratio':>6s}   rounds")
    slower = []
    for task, new in times["new"].items():
        if min(compare(task, new, times["old"][task])) > limit:
            slower.append(task)
    for task, theirs in times.get("glmm", {}).items():
        for side in ("new", "old"):
            compare(f"{task}: {side} / glmm", times[side][task], theirs)
    print(f"\nlimit {limit:g}: " + (f"SLOWER: {', '.join(slower)}" if slower else "passed"))
    return not slower


def main() -> None:
    """Compare two checkouts, or run one part of one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5, help="fresh processes per checkout")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of small, large, cold")
    parser.add_argument("--limit", type=float, default=1.1, help="ratio that is called slower")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="whose seconds")
    parser.add_argument("--glmm-python", help="an interpreter that has the package glmm")
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({"small": work_small, "large": work_large}[options.worker]()))
        return
    os.environ[CLOCK] = options.clock
    if options.against is None:
        parser.error("--against PATH is needed")
    sides = {"new": ROOT, "old": options.against.resolve()}
    if not (sides["old"] / "bayeslmm" / "__init__.py").exists():
        parser.error(f"no package in {sides['old']}")
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts: give some of {', '.join(PARTS)}")
    times, answers = gather(sides, parts, options)
    check(answers)
    if not report(times, options.limit):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
