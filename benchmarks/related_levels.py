"""Pedigrees, and the animal model by the number of related levels.

    python benchmarks/related_levels.py [--animals N] [--levels N ...]

Inbreeding coefficients and the inverse relationship matrix of a simulated pedigree of 100,000
animals; then y ~ 1 + (1 | animal) with two records per animal: seconds with related levels, and
as multiples of those with independent levels. Checked first: inbreeding and inverse against the
tabular method, the fit with an identity matrix against that of independent levels.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from _common import measure, print_environment

import bayeslmm as blm

GENERATIONS = 10
SMALL = 300

EXACT = 1e-10
"""Difference of entries of relationship matrices, and of REML criteria, that is rounding."""

HERITABILITY = 0.5


def simulate(size, seed=1):
    """Pedigree of `size` animals in ten generations, a tenth of the males in use as sires."""
    rng = np.random.default_rng(seed)
    each = size // GENERATIONS
    sire, dam = np.full((2, each * GENERATIONS), np.nan)
    for start in range(each, each * GENERATIONS, each):
        born = slice(start, start + each)
        half = each // 2
        sire[born] = start - each + rng.integers(0, max(1, half // 10), each)
        dam[born] = start - each + half + rng.integers(0, each - half, each)
    return pd.DataFrame({"id": np.arange(len(sire)), "sire": sire, "dam": dam})


def tabular(frame):
    """Relationship matrix by the tabular method, parents before offspring."""
    matrix = np.eye(len(frame))
    for i, (sire, dam) in enumerate(frame[["sire", "dam"]].to_numpy()):
        if not np.isnan(sire):
            s, d = int(sire), int(dam)
            matrix[i, :i] = matrix[:i, i] = 0.5 * (matrix[s, :i] + matrix[d, :i])
            matrix[i, i] += 0.5 * matrix[s, d]
    return matrix


def check_pedigree():
    """Compare a small pedigree with the tabular method; exit where they differ."""
    frame = simulate(SMALL)
    ped, matrix = blm.pedigree(frame), tabular(frame)
    gaps = (
        np.abs(ped.inbreeding.to_numpy() - (np.diag(matrix) - 1.0)).max(),
        np.abs(ped.A_inverse @ matrix - np.eye(len(frame))).max(),
    )
    print(f"agreement, {SMALL} animals and the tabular method: inbreeding {gaps[0]:.1e},", end=" ")
    print(f"inverse {gaps[1]:.1e} (limit {EXACT})")
    if max(gaps) > EXACT:
        raise SystemExit("  the answers disagree; times are not printed")


def records(ped, seed=2):
    """Two records of each animal, with its breeding value."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((3, len(ped)))
    value = np.sqrt(HERITABILITY) * (ped.factor() @ noise[0])
    y = value + np.sqrt(1.0 - HERITABILITY) * noise[1:]
    return pd.DataFrame({"y": y.ravel(), "animal": np.tile(ped.labels, 2)})


def check_identity():
    """Compare unrelated levels, said to be so by a matrix, with levels of no matrix."""
    ped = blm.pedigree(simulate(SMALL))
    frame = records(ped)
    eye = pd.DataFrame(np.eye(len(ped)), ped.labels, ped.labels)
    fits = [
        blm.LMM("y ~ 1 + (1 | animal)", frame, relationships=known).reml()
        for known in ({"animal": eye}, None)
    ]
    gap = abs(fits[0].criterion - fits[1].criterion)
    print(f"agreement, identity matrix and independent levels: REML criteria differ by {gap:.1e}")
    if gap > EXACT * abs(fits[1].criterion):
        raise SystemExit("  the answers disagree; times are not printed")


def time_model(size):
    """Seconds of the model with related and with independent levels."""
    ped = blm.pedigree(simulate(size))
    frame = records(ped)
    times = {}
    for name, known in (("independent", None), ("related", {"animal": ped})):
        made, model = measure(
            lambda known=known: blm.LMM("y ~ 1 + (1 | animal)", frame, relationships=known)
        )
        fitted, _ = measure(model.reml)
        sampled, _ = measure(lambda model=model: model.fit(method="collapsed", random_seed=1))
        times[name] = made.wall, fitted.wall, sampled.wall
    print(f"\n{size} animals with two records each, seconds (related / independent)")
    for i, what in enumerate(("model", "REML", "posterior")):
        related, independent = times["related"][i], times["independent"][i]
        print(f"  {what:<10}{related:8.2f}  {related / independent:6.1f} x")


def main():
    """Check, then time the pedigree and the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--animals", type=int, default=100_000)
    parser.add_argument("--levels", type=int, nargs="*", default=[1_000, 2_000, 4_000])
    options = parser.parse_args()
    print_environment()
    check_pedigree()
    check_identity()
    frame = simulate(options.animals)
    reading, ped = measure(lambda: blm.pedigree(frame))
    inbreeding, values = measure(lambda: ped.inbreeding)
    inverse, matrix = measure(lambda: ped.A_inverse)
    print(f"\n{len(ped)} animals in {GENERATIONS} generations, mean inbreeding {values.mean():.4f}")
    print(f"  read {reading.wall:.2f} s, inbreeding {inbreeding.wall:.2f} s,", end=" ")
    print(f"inverse with {matrix.nnz} entries {inverse.wall:.2f} s")
    for size in options.levels:
        time_model(size)


if __name__ == "__main__":
    main()
