"""What the benchmark scripts share: timing, agreement of posteriors, claims, versions.

Importing this limits BLAS to one thread, here and in processes started later.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
for variable in THREADS:
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402, F401  (loads its BLAS before the limit is set)
from arviz_stats.base import array_stats  # noqa: E402
from scipy.stats import norm  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

threadpool_limits(1)

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

FALSE_ALARM = 1e-3
"""Chance that two samplers of the same posterior are said to disagree, over all comparisons."""

WORST_R_HAT = 1.05
"""Rank-normalised R-hat of a single parameter above which draws are not compared."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

PACKAGES = ("bayeslmm", "numpy", "scipy", "pymc", "nutpie", "numba", "arviz", "bambi")


@dataclass(frozen=True)
class Timing:
    """Seconds on the clock and core seconds: processor time of all threads and children."""

    wall: float
    core: float


@dataclass(frozen=True)
class Summary:
    """Posterior moments by parameter, their Monte Carlo errors and bulk effective sample sizes."""

    names: list[str]
    mean: np.ndarray
    sd: np.ndarray
    mean_error: np.ndarray
    sd_error: np.ndarray
    ess: np.ndarray
    r_hat: np.ndarray

    @property
    def worst(self) -> tuple[float, str]:
        """Smallest effective sample size and whose it is."""
        position = int(np.argmin(self.ess))
        return float(self.ess[position]), self.names[position]

    def save(self, path: Path) -> None:
        """Write to a compressed file."""
        np.savez_compressed(path, **asdict(self))

    @classmethod
    def load(cls, path: Path) -> Summary:
        """Read what `save` wrote."""
        with np.load(path) as stored:
            return cls(**{name: stored[name] for name in stored.files})


def core_seconds() -> float:
    """Processor time so far of this process, its threads and its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def peak_memory() -> float:
    """Peak resident memory of this process in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would start from the memory of the process that forked this one
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return float(line.split()[1]) / 1024.0
    unit = 1024.0**2 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measure[T](function: Callable[[], T]) -> tuple[Timing, T]:
    """Time of one call and its result."""
    wall, core = time.perf_counter(), core_seconds()
    result = function()
    return Timing(time.perf_counter() - wall, core_seconds() - core), result


def best(timings: Sequence[Timing]) -> Timing:
    """Shortest of several, each clock by itself."""
    return Timing(min(t.wall for t in timings), min(t.core for t in timings))


def interleave(
    tools: dict[str, Callable[[int], Any]], repeat: int
) -> tuple[dict[str, Timing], dict[str, list[tuple[Timing, Any]]]]:
    """Time of each tool's first call, and times and results of `repeat` more, in turn.

    Tools take the number of the round.
    """
    first = {name: measure(lambda tool=tool: tool(0))[0] for name, tool in tools.items()}
    runs: dict[str, list[tuple[Timing, Any]]] = {name: [] for name in tools}
    for number in range(1, repeat + 1):
        for name, tool in tools.items():
            runs[name].append(measure(lambda tool=tool, number=number: tool(number)))
    return first, runs


def summarise(draws: dict[str, np.ndarray]) -> Summary:
    """Moments and effective sample sizes of draws (chain, draw) by parameter."""
    values = np.stack(list(draws.values()), axis=-1)
    axes = {"chain_axis": 0, "draw_axis": 1}
    return Summary(
        names=list(draws),
        mean=values.mean(axis=(0, 1)),
        sd=values.std(axis=(0, 1), ddof=1),
        mean_error=array_stats.mcse(values, method="mean", **axes),
        sd_error=array_stats.mcse(values, method="sd", **axes),
        ess=array_stats.ess(values, method="bulk", **axes),
        r_hat=array_stats.rhat(values, method="rank", **axes),
    )


def check_agreement(one: Summary, other: Summary, what: str) -> None:
    """Compare posterior means and sds with their Monte Carlo errors; exit where they differ."""
    position = {name: i for i, name in enumerate(other.names)}
    if set(one.names) != set(position):
        raise SystemExit(f"{what}: not the same parameters")
    order = np.array([position[name] for name in one.names])
    limit = float(norm.isf(FALSE_ALARM / (4 * len(order))))
    print(f"agreement, {what}: {len(order)} parameters, limit {limit:.1f} Monte Carlo errors")
    for s, name in ((one, "first"), (other, "second")):
        if np.max(s.r_hat) > WORST_R_HAT:
            raise SystemExit(f"  {name}: R-hat {np.max(s.r_hat):.3f}; ratios are not printed")
    disagree = False
    for moment in ("mean", "sd"):
        gap = getattr(one, moment) - getattr(other, moment)[order]
        error = np.hypot(getattr(one, f"{moment}_error"), getattr(other, f"{moment}_error")[order])
        z = np.abs(gap / error)
        worst = int(np.argmax(z))
        print(
            f"  posterior {moment}: largest difference {z[worst]:.1f} Monte Carlo errors "
            f"({np.abs(gap / one.sd)[worst]:.3f} posterior sds, {one.names[worst]})"
        )
        disagree |= bool(z[worst] > limit)
    if disagree:
        raise SystemExit("  the answers disagree; ratios are not printed")


def draws_of_posterior(post: Any) -> dict[str, np.ndarray]:
    """Draws (chain, draw) of all parameters and random effects of a `Posterior`."""
    posterior = post.data["posterior"].dataset
    values = {str(name): posterior[name].to_numpy() for name in posterior.variables}
    draws = {f"beta[{c}]": values["beta"][..., j] for j, c in enumerate(post.design.coefs)}
    for f in post.design.random:
        for c, coef in enumerate(f.coefs):
            draws[f"sd[{f.name}, {coef}]"] = values[f"sd_{f.key}"][..., c]
        for block in f.blocks:
            for i, j in ((i, j) for i in block for j in block if i < j):
                name = f"cor[{f.name}, {f.coefs[i]}, {f.coefs[j]}]"
                draws[name] = values[f"cor_{f.key}"][..., i, j]
    draws["sigma"] = values["sigma"]
    for f in post.design.random:
        for c, coef in enumerate(f.coefs):
            for j, level in enumerate(f.levels):
                draws[f"u[{f.name}, {level}, {coef}]"] = values[f"u_{f.key}"][..., c, j]
    return draws


def run_worker(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a benchmark script in its own process; the last line that it prints is JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def claim(text: str, measured: float, limit: float, *, at_least: bool) -> None:
    """Print a claim, what was measured and whether it is met."""
    met = measured >= limit if at_least else measured <= limit
    sign = ">=" if at_least else "<="
    print(
        f"claim: {text} {sign} {limit:.4g}; measured {measured:.4g}: {'met' if met else 'NOT MET'}"
    )


def print_environment() -> None:
    """Print date, machine and versions."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} not installed")
    print(f"{date.today()}, {_processor()}, {CORES} cores, Python {platform.python_version()}")
    print(", ".join(found))


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    names = path.read_text().splitlines() if path.exists() else []
    model = next((row.split(":")[1].strip() for row in names if row.startswith("model name")), "")
    return model or platform.processor() or platform.machine()
