"""What follows a fit of 7,185 pupils in 160 schools with random slopes, beside the fit itself.

    python benchmarks/schools.py

The size of the data of Raudenbush and Bryk's High School and Beyond, simulated. `loo()` leaves out
each row, `plot.fitted()` draws 30 schools with matplotlib, `report()` writes the whole page. ArviZ
and matplotlib are imported before anything is timed. Checked first: scores of some rows left out
are those of ArviZ's own smoothing, one row at a time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import arviz_plots  # noqa: F401
import matplotlib
import numpy as np
import pandas as pd
from _common import claim, measure, print_environment
from arviz_stats.base import array_stats
from scipy.special import logsumexp

import bayeslmm as blm
from bayeslmm.checks.integrated import leave_out

FORMULA = "mathach ~ ses + sex + (ses | school)"
SCHOOLS, ROWS, SMALLEST = 160, 7185, 14
SECONDS = {"loo": 5.0, "plot.fitted": 5.0, "report": 15.0}

CHECKED = 200
"""Rows whose scores are compared."""

AGREEMENT = 1e-2
"""Of log scores: ArviZ smooths tails of another length where draws are not independent."""


def simulate(seed=1):
    """Data frame of pupils."""
    rng = np.random.default_rng(seed)
    rest = rng.integers(0, SCHOOLS, ROWS - SMALLEST * SCHOOLS)
    school = np.sort(np.concatenate([np.arange(SCHOOLS).repeat(SMALLEST), rest]))
    u = rng.multivariate_normal([0, 0], [[8.0, 0.5], [0.5, 0.5]], SCHOOLS)[school]
    ses, female = rng.normal(0, 0.78, ROWS), rng.integers(0, 2, ROWS)
    score = 12 + 2.2 * ses - 1.2 * female + u[:, 0] + u[:, 1] * ses + rng.normal(0, 6, ROWS)
    sex = np.where(female, "F", "M")
    return pd.DataFrame({"mathach": score, "ses": ses, "sex": sex, "school": school.astype(str)})


def check_scores(post, scores):
    """Refuse to go on where scores are not those of ArviZ's psislw."""
    density = leave_out(post.model, post._joint).log_density
    for row in np.linspace(0, ROWS - 1, CHECKED).astype(int):
        weights, _ = array_stats.psislw(density[:, row])
        gap = abs(logsumexp(weights + density[:, row]) - float(scores[row]))
        if gap > AGREEMENT:
            raise SystemExit(f"row {row}: {gap:.2g} from the score by ArviZ")
    print(f"scores of {CHECKED} rows are within {AGREEMENT:g} of those by ArviZ's psislw")


def main():
    matplotlib.use("Agg")
    print_environment()
    frame = simulate()
    blm.LMM(FORMULA, frame).fit(draws=100, random_seed=1)
    fit, post = measure(lambda: blm.LMM(FORMULA, frame).fit(random_seed=1))
    print(f"fit: {fit.wall:.2f} s ({fit.core:.2f} core s)")
    with tempfile.TemporaryDirectory() as folder:
        tasks = {
            "loo": post.loo,
            "plot.fitted": post.plot.fitted,
            "report": lambda: post.report(Path(folder) / "report.html"),
        }
        for name, task in tasks.items():
            time, result = measure(task)
            if name == "loo":
                check_scores(post, result.elpd_i.to_numpy())
            print(f"{name}: {time.wall:.2f} s, {time.wall / fit.wall:.1f} fits")
            claim(f"{name} within {SECONDS[name]:g} s", time.wall, SECONDS[name], at_least=False)


if __name__ == "__main__":
    main()
