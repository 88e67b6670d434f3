"""From a formula to a printed summary in a fresh interpreter, imports included.

    python benchmarks/cold_start.py [--repeat 3]

sleepstudy, Reaction ~ Days + (Days || Subject), ours against Bambi with nutpie and the same priors,
and our REML fit. The clock runs from starting the interpreter to the summary on its standard
output; what follows, the comparison of the draws, does not count. PyTensor and numba keep compiled
code on disk. Bambi is timed with that cache full, as when a model is fitted again, and, once, with
an empty one, as when a model is fitted for the first time. The claim is about the former.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _bambi import SLEEPSTUDY, require_bambi
from _common import ROOT, Summary, Timing, best, check_agreement, claim, print_environment
from reference_data import load_fit

import bayeslmm as blm

FORMULA = "Reaction ~ Days + (Days || Subject)"
DATA = ROOT / "bayeslmm" / "_datasets" / "sleepstudy.csv"
SHARE_OF_BAMBI = 1 / 3
DONE = "summary printed; core seconds "

OURS = f"""
import sys, pandas as pd
import bayeslmm as blm
frame = pd.read_csv({str(DATA)!r}, dtype={{"Subject": str}})
fit = blm.LMM({FORMULA!r}, frame).fit(method="collapsed", random_seed=1)
print(fit.summary())
"""

REML = f"""
import sys, pandas as pd
import bayeslmm as blm
frame = pd.read_csv({str(DATA)!r}, dtype={{"Subject": str}})
fit = blm.LMM({FORMULA!r}, frame).reml()
print(fit)
"""

BAMBI = f"""
import json, sys, pandas as pd
import arviz as az, bambi as bmb
frame = pd.read_csv({str(DATA)!r}, dtype={{"Subject": str}})
def prior(name, args):
    args = {{k: prior(*v) if isinstance(v, list) else v for k, v in args.items()}}
    return bmb.Prior(name, auto_scale=False, **args)
priors = {{k: prior(*v) for k, v in json.loads(sys.argv[2]).items()}}
model = bmb.Model({SLEEPSTUDY.formula!r}, frame, priors=priors)
fit = model.fit(inference_method="nutpie", random_seed=1, chains=4, progressbar=False)
print(az.summary(fit, var_names=["Intercept", "Days", "1|Subject_sigma", "Days|Subject_sigma",
                                 "sigma"]))
"""

MARK = f"""
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
print({DONE!r} + str(used.ru_utime + used.ru_stime), flush=True)
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
from pathlib import Path
import _bambi, _common
"""

SAVE = {
    "bayeslmm": "_common.summarise(_common.draws_of_posterior(fit)).save(Path(sys.argv[1]))",
    "bambi": "_common.summarise(_bambi.draws_of_bambi(fit, _bambi.SLEEPSTUDY)).save("
    "Path(sys.argv[1]))",
    "reml": "Path(sys.argv[1]).write_text(repr(float(fit.criterion)))",
}
CODE = {"bayeslmm": OURS, "bambi": BAMBI, "reml": REML}


def run_cold(tool, path, priors, environment=None):
    """Time of one fresh interpreter, up to the summary."""
    command = [sys.executable, "-c", CODE[tool] + MARK + SAVE[tool], str(path), priors]
    environment = {**os.environ, **(environment or {})}
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        timing = None
        for row in process.stdout:
            if row.startswith(DONE):
                timing = Timing(time.perf_counter() - start, float(row.removeprefix(DONE)))
        error = process.stderr.read()
    if process.returncode or timing is None:
        raise SystemExit(f"{tool} failed:\n{error[-2000:]}")
    return timing


def empty_cache(folder):
    """Environment in which nothing is compiled yet."""
    cache = Path(folder) / "cache"
    flags = f"base_compiledir={cache / 'pytensor'}"
    return {"PYTENSOR_FLAGS": flags, "NUMBA_CACHE_DIR": str(cache / "numba")}


def priors_as_json(priors):
    """Our priors for Bambi, so that the timed process need not import bayeslmm."""
    records = priors.records()

    def spec(key):
        return [type(records[key]).__name__, records[key].parameters()]

    result = {term: spec(coef) for term, coef in SLEEPSTUDY.common.items()}
    for term, (group, coef) in SLEEPSTUDY.groups.items():
        result[term] = ["Normal", {"mu": 0, "sigma": spec(f"sd[{group}, {coef}]")}]
    return json.dumps(result | {"sigma": spec("sigma")})


def check_answers(paths):
    """Exit where the posteriors differ, or REML from lme4's."""
    pair = [Summary.load(paths[tool]) for tool in ("bayeslmm", "bambi")]
    check_agreement(*pair, "bayeslmm and Bambi")
    criterion = float(paths["reml"].read_text())
    reference = load_fit("sleepstudy__uncor_reml")["criterion"]["value"]
    if abs(criterion - reference) > 1e-6:
        raise SystemExit(f"REML criterion {criterion}, lme4 {reference}")
    print(f"REML criterion {criterion:.6f}, lme4 {reference:.6f}")


def report(runs, first):
    """Table and claim."""
    print(f"\n{'':26s} {'best wall s':>12s} {'median':>8s} {'best core s':>12s}")
    for tool, timings in (*runs.items(), ("bambi, empty cache", [first])):
        middle = statistics.median(t.wall for t in timings)
        least = best(timings)
        print(f"{tool:26s} {least.wall:12.2f} {middle:8.2f} {least.core:12.2f}")
    times = {tool: best(timings) for tool, timings in runs.items()}
    share = times["bayeslmm"].wall / times["bambi"].wall
    print(f"\nBambi / bayeslmm: {1 / share:.1f} x wall seconds,", end=" ")
    print(f"{times['bambi'].core / times['bayeslmm'].core:.1f} x core seconds;", end=" ")
    print(f"empty cache {first.wall / times['bayeslmm'].wall:.1f} x wall seconds")
    claim("share of Bambi's wall seconds", share, SHARE_OF_BAMBI, at_least=False)


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    require_bambi()
    print_environment()
    model = blm.LMM(FORMULA, blm.load_dataset("sleepstudy"))
    print(f"\npriors of both:\n{model.priors}\n")
    priors = priors_as_json(model.priors)
    with tempfile.TemporaryDirectory() as folder:
        paths = {tool: Path(folder) / f"{tool}.npz" for tool in CODE}
        first = run_cold("bambi", paths["bambi"], priors, empty_cache(folder))
        for tool in CODE:
            run_cold(tool, paths[tool], priors)
        runs = {tool: [] for tool in CODE}
        for _ in range(repeat):
            for tool in CODE:
                runs[tool].append(run_cold(tool, paths[tool], priors))
        check_answers(paths)
    report(runs, first)


if __name__ == "__main__":
    main()
