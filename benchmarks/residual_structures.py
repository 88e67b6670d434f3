"""Residual structures: time against nlme, and the cost of one evaluation by the number of rows.

    python benchmarks/residual_structures.py [--patients N] [--rows N ...] [--quick]

Orthodont, Ovary and a simulated trial of 1,000 patients at 10 visits with dropout, by nlme's `gls`
or `lme` in the same run, where R has nlme: REML and the whole posterior (4 x 1,000 draws), in core
seconds, the best of five runs of the two small ones. Checked first: the REML criteria. Then seconds
per evaluation of the density, value and gradient, of AR(1) residuals and of a variance per stratum
with 10^3 to 10^6 rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from _common import best, claim, measure, print_environment
from reference_data import load_reference_data

import bayeslmm as blm
from bayeslmm.likelihood.log_posterior import log_posterior_unconstrained

AGREEMENT = 1e-3
"""Difference of REML criteria that optimisers may leave."""

VISITS = 10
DROPOUT = 0.04
LEVELS = {"gls": 5.0, "posterior": 1.0}
"""REML at least so many times faster than nlme; the posterior in at most so many times its time."""

R_SCRIPT = """
suppressMessages(library(nlme))
a <- commandArgs(trailingOnly = TRUE)
d <- read.csv(a[1], stringsAsFactors = TRUE)
for (f in strsplit(a[3], ",")[[1]]) d[[f]] <- factor(d[[f]])
times <- replicate(as.integer(a[4]), sum(system.time(fit <<- eval(parse(text = a[2])))[1:2]))
cat(sprintf("[%.6f, %.10f]", min(times), -2 * as.numeric(logLik(fit))))
"""


@dataclass(frozen=True)
class Case:
    """A model in our words and in nlme's."""

    name: str
    formula: str
    residual: str
    frame: pd.DataFrame
    nlme: str
    factors: str
    repeat: int = 5


def simulate_trial(patients, seed=1):
    """Change from baseline at ten visits in two arms; a patient who leaves does not come back."""
    rng = np.random.default_rng(seed)
    lags = np.abs(np.subtract.outer(np.arange(VISITS), np.arange(VISITS)))
    sds = np.linspace(4.0, 7.0, VISITS)
    root = np.linalg.cholesky((0.3 + 0.7 * 0.8**lags) * np.outer(sds, sds))
    base, arm = rng.normal(50.0, 10.0, patients), rng.integers(0, 2, patients)
    effect = np.outer(arm, np.linspace(0.0, 3.0, VISITS))
    y = 0.2 * base[:, None] + effect + rng.standard_normal((patients, VISITS)) @ root.T
    stay = np.cumprod(rng.random((patients, VISITS - 1)) > DROPOUT, axis=1).astype(bool)
    kept = np.column_stack([np.ones(patients, dtype=bool), stay])
    patient, visit = np.nonzero(kept)
    return pd.DataFrame(
        {
            "y": y[patient, visit],
            "base": base[patient],
            "arm": np.where(arm[patient] == 1, "new", "old"),
            "visit": pd.Categorical([f"v{i:02d}" for i in visit]),
            "id": patient,
        }
    )


def cases(patients):
    """The models, smallest first."""
    symmetric = (
        "correlation = corSymm(form = ~ as.integer({0}) | {1}), "
        "weights = varIdent(form = ~ 1 | {0})"
    )
    ovary = load_reference_data("Ovary").assign(
        s=lambda t: np.sin(2 * np.pi * t.Time), c=lambda t: np.cos(2 * np.pi * t.Time)
    )
    ovary["step"] = ovary.groupby("Mare", observed=True).cumcount()
    return [
        Case(
            "Orthodont, us",
            "distance ~ age * Sex",
            "us(age | Subject)",
            load_reference_data("Orthodont"),
            f"gls(distance ~ age * Sex, d, {symmetric.format('factor(age)', 'Subject')})",
            "",
        ),
        Case(
            "Ovary, ar1 and random intercepts",
            "follicles ~ s + c + (1 | Mare)",
            "ar1(step | Mare)",
            ovary,
            "lme(follicles ~ s + c, d, ~ 1 | Mare, correlation = corAR1(form = ~ step | Mare))",
            "Mare",
        ),
        Case(
            f"trial of {patients} patients, us",
            "y ~ base + visit * arm",
            "us(visit | id)",
            simulate_trial(patients),
            f"gls(y ~ base + visit * arm, d, {symmetric.format('visit', 'id')})",
            "visit,id",
            repeat=1,
        ),
    ]


def run_nlme(case):
    """Seconds and REML criterion by nlme, or None without R and nlme."""
    rscript = shutil.which("Rscript")
    if rscript is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.csv"
        case.frame.to_csv(path, index=False)
        arguments = [rscript, "-e", R_SCRIPT, str(path), case.nlme, case.factors, str(case.repeat)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"nlme could not run: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare(case):
    """Time one model, formula to result, and print ratios where the criteria agree."""

    def model():
        return blm.LMM(case.formula, case.frame, residual=case.residual)

    def sample():
        return model().fit(method="collapsed", random_seed=1, progressbar=False)

    fits = [measure(lambda: model().reml()) for _ in range(case.repeat)]
    samples = [measure(sample) for _ in range(case.repeat)]
    fitted, sampled = (best([timing for timing, _ in runs]) for runs in (fits, samples))
    reml, post = fits[0][1], samples[0][1]
    ess = float(post.summary()["ess_bulk"].astype(float).min())
    print(f"\n{case.name}: {len(case.frame)} rows, {post.model.priors.coordinates.size} parameters")
    print(
        f"  core seconds: REML {fitted.core:.3f}, posterior {sampled.core:.2f}, min ESS {ess:.0f}"
    )
    peer = run_nlme(case)
    if peer is None:
        print("  nlme is not here")
        return
    seconds, criterion = peer
    gap = abs(criterion - reml.criterion)
    print(f"  nlme {seconds:.3f}; criteria differ by {gap:.1e} (limit {AGREEMENT})")
    if gap > AGREEMENT:
        print("  the answers disagree; ratios are not printed")
        return
    claim("nlme over our REML", seconds / fitted.core, LEVELS["gls"], at_least=True)
    claim("posterior over nlme", sampled.core / seconds, LEVELS["posterior"], at_least=False)


def simulate_rows(rows, seed=2):
    """Groups of ten rows in order of time, two strata, residuals AR(1)."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((rows // 10, 10))
    for t in range(1, 10):
        noise[:, t] = 0.6 * noise[:, t - 1] + 0.8 * noise[:, t]
    x = rng.standard_normal(noise.size)
    group, time_ = np.divmod(np.arange(noise.size), 10)
    stratum = np.where(group % 2 == 0, "a", "b")
    y = 1.0 + x + noise.ravel() * np.where(stratum == "a", 1.0, 2.0)
    return pd.DataFrame({"y": y, "x": x, "t": time_, "g": group, "f": stratum})


def cost(frame, residual, repeat=200):
    """Seconds of the one pass over the rows, and of one value with its gradient."""
    model = blm.LMM("y ~ x", frame, residual=residual).model
    passed, plan = measure(lambda: model.system)
    x = np.full(model.priors.coordinates.size, 0.1)
    log_posterior_unconstrained(plan, model.priors, x)
    start = time.perf_counter()
    for _ in range(repeat):
        log_posterior_unconstrained(plan, model.priors, x)
    return passed.wall, (time.perf_counter() - start) / repeat


def main():
    """Compare with nlme, then vary the number of rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=1_000)
    parser.add_argument("--rows", type=int, nargs="*", default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--quick", action="store_true", help="without the trial")
    options = parser.parse_args()
    print_environment()
    found = cases(options.patients)
    for case in found[:-1] if options.quick else found:
        compare(case)
    for residual in ("ar1(t | g)", "strata(f)"):
        print(f"\n{residual}: seconds of the pass over the rows, milliseconds of one evaluation")
        for rows in options.rows:
            passed, each = cost(simulate_rows(rows), residual)
            print(f"  {rows:>9,} rows {passed:8.2f} s {1e3 * each:8.3f} ms")


if __name__ == "__main__":
    main()
