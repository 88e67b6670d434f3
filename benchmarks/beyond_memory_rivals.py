"""The largest data that lme4, glmm, statsmodels and Bambi can hold, beside data beyond memory.

    python benchmarks/beyond_memory_rivals.py [--rows 1e5 1e6] [--python PYTHON] [--only glmm lme4]

y ~ x + (x | g) as in `beyond_memory.py`, with a level for ten rows and at most 100,000 levels.
Every fit has its own fresh process, one at a time, with a limit on its resident memory and on its
time; what passes one is stopped, and is not tried with more rows.
The other packages of Python are those of the interpreter --python; lme4 is that of Rscript, with
data.table, which reads the same rows from CSV. Bambi has no correlations of random effects, so
it is compared on (x || g), with our priors. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from _common import check_agreement, measure, peak_memory, print_environment, summarise
from beyond_memory import FORMULA, file_of, simulate
from pyarrow import csv

import bayeslmm as blm

LEVELS = 100_000
SAME = 1e-2
"""Largest difference of a REML criterion: estimates then differ by a tenth of a standard error."""

CLOSE = 1e-4
"""Largest difference of an estimate; all are of order one, their standard errors 1e-3 or more."""

POLL = 0.02
"""Seconds between looks at the memory of a process."""

MATCH = {
    "Intercept": "Intercept",
    "x": "x",
    "1|g_sigma": "sd[g, Intercept]",
    "x|g_sigma": "sd[g, x]",
    "sigma": "sigma",
}
"""Bambi's names of parameters and ours."""

INDEPENDENT = FORMULA.replace("|", "||")

R_SCRIPT = """
suppressMessages({library(lme4); library(data.table); library(jsonlite)})
file <- commandArgs(TRUE)[1]
read <- system.time(d <- fread(file, data.table = FALSE))[["elapsed"]]
fit <- system.time(m <- lmer(y ~ x + (x | g), d))[["elapsed"]]
v <- as.data.frame(VarCorr(m))$sdcor
cat(toJSON(list(version = as.character(packageVersion("lme4")), read = read, fit = fit,
  criterion = as.numeric(REMLcrit(m)), estimates = c(unname(fixef(m)), v),
  blas = extSoftVersion()[["BLAS"]]), auto_unbox = TRUE, digits = 15))
"""


@dataclass(frozen=True)
class Outcome:
    """What a process printed, or why it printed nothing, and its peak memory in MB."""

    result: dict | None
    why: str
    memory: float


def resident(process):
    """Peak resident memory of a running process in MB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0.0
    rows = [row for row in status.splitlines() if row.startswith("VmHWM")]
    return float(rows[0].split()[1]) / 1024.0 if rows else 0.0


def limited(command, gib, seconds):
    """Run a command to its end or to a limit."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start, memory, why = time.perf_counter(), 0.0, ""
        process = subprocess.Popen(command, stdout=out, stderr=err)
        try:
            while process.poll() is None and not why:
                memory = max(memory, resident(process))
                if memory > gib * 1024.0:
                    why = f"more than {gib:g} GiB after {time.perf_counter() - start:.0f} s"
                elif time.perf_counter() - start > seconds:
                    why = f"more than {seconds:g} s"
                time.sleep(POLL)
        finally:
            process.kill()
            process.wait()
        out.seek(0), err.seek(0)
        printed, errors = out.read().strip().splitlines(), err.read().strip().splitlines()
    if not why and process.returncode:
        why = f"exit status {process.returncode}: {' '.join(errors[-1:])[-300:]}"
    return Outcome(None if why else json.loads(printed[-1]), why, memory)


# --- ours ------------------------------------------------------------------------------


def ours(formula, file, draws):
    """Model, REML and posterior of a file."""
    reading, model = measure(lambda: blm.LMM(formula, file))
    reml_timing, reml = measure(model.reml)
    memory = peak_memory()
    timing, post = measure(lambda: model.fit(method="collapsed", random_seed=1))
    posterior = post.data["posterior"].dataset
    beta, sds = posterior["beta"].to_numpy(), posterior["sd_g"].to_numpy()
    values = [beta[..., 0], beta[..., 1], sds[..., 0], sds[..., 1], posterior["sigma"].to_numpy()]
    np.savez(draws, **dict(zip(MATCH, values, strict=True)))
    records = model.priors.records()
    priors = {bambi: prior_of(records[name]) for bambi, name in MATCH.items()}
    correlation = [reml.corrs["g"].iloc[0, 1]] if formula == FORMULA else []
    return {
        "read": reading.wall,
        "fit": reml_timing.wall,
        "memory": memory,
        "posterior": timing.wall,
        "peak": peak_memory(),
        "criterion": reml.criterion,
        "estimates": [*reml.beta, *reml.sds["g"], *correlation, reml.sigma],
        "priors": priors,
    }


def prior_of(prior):
    """Family and parameters, as text can carry them."""
    return type(prior).__name__, {k: float(v) for k, v in prior.parameters().items()}


def draws_in(path):
    """Summary of draws that a worker wrote."""
    with np.load(path) as stored:
        return summarise({name: stored[name] for name in stored.files})


# --- one size --------------------------------------------------------------------------


def say(name, outcome, what):
    """One line: time and memory, or why there are none."""
    result = outcome.result
    if result is None:
        print(f"  {name}: no answer: {outcome.why}; peak memory {outcome.memory:,.0f} MB")
        return
    tool = " ".join(filter(None, (name, result.get("version"), result.get("blas"))))
    print(f"  {tool}: reading {result['read']:.2f} s,", end=" ")
    print(f"{what} {result['fit']:.2f} s, peak memory {outcome.memory:,.0f} MB")


def check(name, result, own):
    """Whether a REML fit is ours; says by how much it differs."""
    gap = result["criterion"] - own["criterion"]
    far = np.max(np.abs(np.subtract(result["estimates"], own["estimates"])))
    print(f"  {name}: criterion {gap:+.1e} (limit {SAME:g}), estimates {far:.1e} (limit {CLOSE:g})")
    if abs(gap) > SAME or far > CLOSE:
        print(f"  {name}: the answers disagree; times are not printed")
        return False
    return True


def command_of(name, file, options, folder):
    """How a REML fit of a rival is run."""
    if name == "lme4":
        table = Path(folder) / "rows.csv"
        write_csv(file, table)
        return ["Rscript", "-e", R_SCRIPT, str(table)]
    return [options.python, str(Path(__file__).parent / "_rival.py"), name, str(file)]


def write_csv(file, table):
    """The rows as CSV; numbers as text lose no digits."""
    source = pq.ParquetFile(file)
    with csv.CSVWriter(table, source.schema_arrow) as writer:
        for batch in source.iter_batches():
            writer.write_batch(batch)


def run_ours(formula, file, options, draws):
    worker = [sys.executable, __file__, "--worker", str(file), "--formula", formula]
    outcome = limited([*worker, "--draws", str(draws)], options.memory, options.seconds)
    if outcome.result is None:
        raise SystemExit(f"bayeslmm failed: {outcome.why}")
    return outcome


def compare_reml(file, options, rivals, folder):
    """REML of all that are left; which of them failed. Nothing is said of time before answers."""
    outcome = run_ours(FORMULA, file, options, Path(folder) / "ours.npz")
    own, theirs, agree = outcome.result, {}, []
    for name in rivals:
        command = command_of(name, file, options, folder)
        theirs[name] = limited(command, options.memory, options.seconds)
        if theirs[name].result and check(name, theirs[name].result, own):
            agree.append(name)
    say("bayeslmm", replace(outcome, memory=own["memory"]), "REML")
    print(f"    posterior {own['posterior']:.2f} s more, peak memory {own['peak']:,.0f} MB")
    failed = [name for name in rivals if not theirs[name].result]
    for name in agree + failed:
        say(name, theirs[name], "REML")
    for name in agree:
        say_ratios(name, theirs[name], own)
    return failed


def say_ratios(name, theirs, own):
    """A rival's figures over ours: above one, ours is less."""
    fit, reading = (theirs.result[key] / own[key] for key in ("fit", "read"))
    both = (theirs.result["read"] + theirs.result["fit"]) / (own["read"] + own["fit"])
    memory = theirs.memory / own["memory"]
    print(f"  {name} over ours: reading {reading:.2f}, REML {fit:.2f}, both {both:.2f},", end=" ")
    print(f"memory {memory:.2f}")


def compare_bambi(file, options, folder):
    """Posterior of independent random effects with equal priors; whether it fits."""
    files = [Path(folder) / f"{name}.npz" for name in ("independent", "bambi")]
    own = run_ours(INDEPENDENT, file, options, files[0]).result
    rival = [options.python, str(Path(__file__).parent / "_rival.py"), "bambi", str(file)]
    given = ["--priors", json.dumps(own["priors"]), "--draws", str(files[1])]
    theirs = limited([*rival, *given], options.memory, options.seconds)
    if theirs.result is None:
        say("bambi", theirs, "posterior")
        return False
    one, other = map(draws_in, files)
    check_agreement(one, other, f"bambi, {INDEPENDENT}")
    say("bambi", theirs, "posterior")
    total = [own["fit"] + own["posterior"], theirs.result["fit"]]
    rates = [s.worst[0] / seconds for s, seconds in zip((one, other), total, strict=True)]
    print(f"    ours {total[0]:.2f} s, peak memory {own['peak']:,.0f} MB,", end=" ")
    print(f"min ESS {one.worst[0]:,.0f}; theirs {other.worst[0]:,.0f}")
    print(f"    time over ours {total[1] / total[0]:.0f};", end=" ")
    print(f"our ESS a second over theirs {rates[0] / rates[1]:.0f}")
    return True


def run(options, folder):
    """All sizes, from the smallest."""
    left = list(options.only)
    if "lme4" in left and shutil.which("Rscript") is None:
        left.remove("lme4")
        print("lme4: not run, there is no Rscript")
    for rows in sorted(options.rows):
        levels = min(LEVELS, rows // 10)
        file = file_of(options.folder or folder, rows, levels)
        if not file.exists():
            simulate(file, rows, levels)
        size = file.stat().st_size / 1e6
        load = os.getloadavg()[0]
        print(f"\n{rows:,} rows, {levels:,} levels, {size:,.0f} MB; load of the machine {load:.1f}")
        failed = compare_reml(file, options, [n for n in left if n != "bambi"], folder)
        if "bambi" in left and not compare_bambi(file, options, folder):
            failed.append("bambi")
        left = [name for name in left if name not in failed]


def main():
    """Run all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=lambda text: int(float(text)), nargs="+")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the rivals")
    rivals = ["glmm", "lme4", "statsmodels", "bambi"]
    parser.add_argument("--only", nargs="+", choices=rivals, default=rivals)
    parser.add_argument("--memory", type=float, default=18.0, help="limit of a process in GiB")
    parser.add_argument("--seconds", type=float, default=900.0, help="limit of a process")
    parser.add_argument("--folder", help="where files are written and found again")
    for name in ("--worker", "--formula", "--draws"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or [10**5, 10**6]
    if options.worker:
        print(json.dumps(ours(options.formula, options.worker, options.draws), default=float))
        return
    print_environment()
    print(f"limits of a process: {options.memory:g} GiB, {options.seconds:g} s")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run(options, folder)


if __name__ == "__main__":
    main()
