"""Time of power by simulation, its answer checked against the closed form first.

    python benchmarks/power.py [--n 1000] [--workers 2]

A study of 500 rows, 50 subjects in two arms at 10 times with random intercepts and slopes, is
simulated and refitted with Satterthwaite's tests: in this process, and in two others.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import stats

import bayeslmm as blm

CLAIM = 20.0
"""Seconds for 1,000 refits."""


def study() -> blm.Study:
    """The planned study."""
    rows = blm.simulate_design(
        {"subject": 50, "time": np.arange(10.0)}, between={"subject": {"arm": ["a", "b"]}}
    )
    truth = {
        "arm[T.b]:time": 0.35,
        "sd[subject, Intercept]": 1.0,
        "sd[subject, time]": 0.4,
        "sigma": 1.0,
    }
    return blm.LMM.planned("y ~ arm * time + (time | subject)", rows, truth)


def closed_form() -> float:
    """Power of the t test of the subjects' slopes."""
    error = np.sqrt(2.0 / 25.0 * (0.4**2 + 1.0 / 82.5))
    limit = stats.t.ppf(0.975, 48)
    return float(stats.nct.sf(limit, 48, 0.35 / error) + stats.nct.cdf(-limit, 48, 0.35 / error))


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    planned, expected = study(), closed_form()
    planned.power("arm[T.b]:time", 5, random_seed=0, progressbar=False)
    shown = {"n": options.n, "random_seed": 1, "progressbar": False}
    began = time.perf_counter()
    here = planned.power("arm[T.b]:time", **shown)
    alone = time.perf_counter() - began
    with ProcessPoolExecutor(options.workers) as pool:
        began = time.perf_counter()
        there = planned.power("arm[T.b]:time", executor=pool, **shown)
        shared = time.perf_counter() - began
    found = float(here.power.iloc[0])
    error = np.sqrt(expected * (1.0 - expected) / options.n)
    if abs(found - expected) > 4.0 * error or not here.runs().equals(there.runs()):
        raise SystemExit(f"power {found:.3f}, closed form {expected:.3f}: no times are shown")
    print(f"bayeslmm {blm.__version__}, power {found:.3f}, closed form {expected:.3f}")
    print(f"{options.n} refits of 500 rows: {alone:.1f} s in one process, {shared:.1f} s in two")
    verdict = "met" if shared * 1000.0 / options.n < CLAIM else "not met"
    print(f"claim: < {CLAIM:.0f} s per 1,000 refits, {verdict}")


if __name__ == "__main__":
    main()
