"""REML time of bayeslmm against lme4 (where R has it) and statsmodels, agreement checked first.

    python benchmarks/reml.py [--repeat 3]

Every time is the best of `--repeat` fits from formula and data frame to estimate, in one process
per language, both with one BLAS thread. Ratios above one mean that bayeslmm is faster. R uses
whatever BLAS it is linked to; the last line says which.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from reference_data import load_reference_data  # noqa: E402

import bayeslmm as blm  # noqa: E402

CASES = {
    "sleepstudy": ("Reaction ~ Days + (Days | Subject)", "sleepstudy__slope_reml"),
    "InstEval": (
        "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)",
        "InstEval__service_reml",
    ),
}

# lme4's default optimiser stops within this much of the optimum on these two models.
AGREEMENT = 1e-2

R_SCRIPT = """
suppressMessages(library(lme4)); suppressMessages(library(jsonlite))
args <- commandArgs(TRUE)
d <- read.csv(args[2], colClasses = "character")
for (n in strsplit(args[3], ",")[[1]]) d[[n]] <- as.numeric(d[[n]])
best <- Inf
for (i in seq_len(as.integer(args[4]))) {
  t <- system.time(m <- lmer(as.formula(args[1]), d))[["elapsed"]]; best <- min(best, t)
}
cat(toJSON(list(seconds = best, criterion = as.numeric(REMLcrit(m)),
  version = as.character(packageVersion("lme4")), blas = extSoftVersion()[["BLAS"]]),
  auto_unbox = TRUE, digits = 12))
"""


def best_of(repeat, function):
    """Shortest time of several calls, and the last result."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def run_lme4(formula, frame, numeric, repeat, folder):
    """Time and criterion by lme4, or None without R, lme4 or jsonlite."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return None
    path = Path(folder) / "data.csv"
    frame.to_csv(path, index=False)
    arguments = [rscript, "-e", R_SCRIPT, formula, str(path), ",".join(numeric), str(repeat)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"lme4 could not run: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_statsmodels(frame, repeat):
    """Time and REML criterion of statsmodels on the random-slopes model, or None without it."""
    try:
        import statsmodels.formula.api as smf
    except ImportError:
        return None

    def fit():
        model = smf.mixedlm("Reaction ~ Days", frame, groups="Subject", re_formula="~Days")
        return model.fit(reml=True)

    seconds, result = best_of(repeat, fit)
    return seconds, -2.0 * result.llf


def line(name, what, seconds, ours, criterion, expected):
    """One line of the table; refuses to print a ratio where the answers differ."""
    agrees = abs(criterion - expected) < AGREEMENT
    ratio = f"{seconds / ours:8.1f}" if agrees else "disagree"
    print(f"{name:12s} {what:14s} {seconds:10.4f} s {ratio}   criterion {criterion:.6f}")


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    blas = None
    print(f"{'data':12s} {'software':14s} {'time':>12s} {'ratio':>8s}")
    for name, (formula, slug) in CASES.items():
        frame = load_reference_data(name)
        ours, estimate = best_of(repeat, lambda f=formula, d=frame: blm.LMM(f, d).reml())
        expected = json.loads((ROOT / f"tests/reference/fits/{slug}.json").read_text())
        reference = expected["criterion"]["value"]
        if abs(estimate.criterion - reference) > 1e-6:
            raise SystemExit(f"{name}: criterion {estimate.criterion}, reference {reference}")
        print(f"{name:12s} {'bayeslmm':14s} {ours:10.4f} s {'':8s}   criterion {reference:.6f}")
        numeric = [c for c in frame.columns if frame[c].dtype.kind in "if"]
        with tempfile.TemporaryDirectory() as folder:
            lme4 = run_lme4(formula, frame, numeric, repeat, folder)
        if lme4 is not None:
            what = f"lme4 {lme4['version']}"
            line(name, what, lme4["seconds"], ours, lme4["criterion"], reference)
            blas = lme4["blas"]
        if name == "sleepstudy":
            theirs = run_statsmodels(frame, repeat)
            if theirs is not None:
                line(name, "statsmodels", theirs[0], ours, theirs[1], reference)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0
    print(f"peak memory of the Python process (with statsmodels and the data): {peak:.0f} MB")
    if blas:
        print(f"R's BLAS: {blas}")


if __name__ == "__main__":
    main()
