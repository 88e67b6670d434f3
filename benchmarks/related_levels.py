"""Pedigrees, and the animal model by the number of related levels.

    python benchmarks/related_levels.py [--animals N] [--levels N ...]

Inbreeding coefficients and the inverse relationship matrix of a simulated pedigree of 100,000
animals; then y ~ 1 + (1 | animal) with two records per animal: seconds with related levels, and
as multiples of those with independent levels; last, repeated records of 10,000 animals in herds,
with permanent effects and without: seconds, memory, and estimates beside what was simulated.
Checked first: inbreeding and inverse against the tabular method, the fit with an identity matrix
against that of independent levels, the sparse elimination against the dense one.
"""

from __future__ import annotations

import argparse
import resource

import numpy as np
import pandas as pd
from _common import measure, print_environment

import bayeslmm as blm

GENERATIONS = 10
SMALL = 300

EXACT = 1e-10
"""Difference of entries of relationship matrices, and of REML criteria, that is rounding."""

HERITABILITY = 0.5

SDS = {"animal": 1.0, "pe": 0.5, "herd": 0.7}
"""Simulated standard deviations of repeated records; that of residuals is one."""


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


def repeated_records(ped, generation, herds=100, seed=3):
    """Up to two records per animal, four fifths of them there, with herds and permanent effects."""
    rng = np.random.default_rng(seed)
    animal = np.tile(np.arange(len(ped)), 2)[rng.random(2 * len(ped)) < 0.8]
    herd = rng.integers(0, herds, len(animal))
    value = SDS["animal"] * (ped.factor() @ rng.standard_normal(len(ped)))
    permanent = SDS["pe"] * rng.standard_normal(len(ped))
    effect = SDS["herd"] * rng.standard_normal(herds)
    sex = rng.choice(["f", "m"], len(animal))
    y = 10.0 + 0.3 * generation[animal] + value[animal] + permanent[animal] + effect[herd]
    y += rng.standard_normal(len(animal))
    columns = {"y": y, "animal": animal, "pe": animal, "herd": herd, "sex": sex}
    return pd.DataFrame(columns | {"generation": generation[animal]})


def check_sparse(size=1_500):
    """Compare the sparse elimination with the dense one; exit where they differ."""
    from bayeslmm.estimation.estimate import fit_likelihood
    from bayeslmm.likelihood.elimination import make_plan

    ped = blm.pedigree(simulate(size))
    frame = repeated_records(ped, np.arange(size) // (size // GENERATIONS))
    formula = "y ~ generation + sex + (1 | animal) + (1 | herd)"
    products = blm.LMM(formula, frame, relationships={"animal": ped}).system.products
    fits = [fit_likelihood(make_plan(products, sparse=sparse), "REML") for sparse in (True, False)]
    gap = abs(fits[0].criterion - fits[1].criterion)
    print(f"agreement, sparse and dense elimination: REML criteria differ by {gap:.1e}")
    if gap > 1e-8 * abs(fits[1].criterion):
        raise SystemExit("  the answers disagree; times are not printed")


def time_repeated(size):
    """Seconds and memory of models for repeated records of many animals."""
    ped = blm.pedigree(simulate(size))
    frame = repeated_records(ped, np.arange(size) // (size // GENERATIONS))
    print(f"\n{size} animals with {len(frame)} records in 100 herds, simulated: {SDS}, sigma 1")
    fixed = "y ~ generation + sex"
    for terms in ("(1 | animal) + (1 | herd)", "(1 | animal) + (1 | pe) + (1 | herd)"):
        made, model = measure(
            lambda terms=terms: blm.LMM(f"{fixed} + {terms}", frame, relationships={"animal": ped})
        )
        fitted, fit = measure(model.reml)
        sampled, _ = measure(lambda model=model: model.fit(method="collapsed", random_seed=1))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        sds = {name: round(float(sd.iloc[0]), 2) for name, sd in fit.sds.items()}
        print(f"  {terms}: {sds}, sigma {fit.sigma:.2f}")
        print(f"    model {made.wall:.1f} s, REML {fitted.wall:.1f} s,", end=" ")
        print(f"posterior {sampled.wall:.1f} s, at most {peak:.2f} GB so far")


def main():
    """Check, then time the pedigree and the models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--animals", type=int, default=100_000)
    parser.add_argument("--levels", type=int, nargs="*", default=[1_000, 2_000, 4_000])
    parser.add_argument("--repeated", type=int, default=10_000)
    options = parser.parse_args()
    print_environment()
    check_pedigree()
    check_identity()
    check_sparse()
    frame = simulate(options.animals)
    reading, ped = measure(lambda: blm.pedigree(frame))
    inbreeding, values = measure(lambda: ped.inbreeding)
    inverse, matrix = measure(lambda: ped.A_inverse)
    print(f"\n{len(ped)} animals in {GENERATIONS} generations, mean inbreeding {values.mean():.4f}")
    print(f"  read {reading.wall:.2f} s, inbreeding {inbreeding.wall:.2f} s,", end=" ")
    print(f"inverse with {matrix.nnz} entries {inverse.wall:.2f} s")
    for size in options.levels:
        time_model(size)
    time_repeated(options.repeated)


if __name__ == "__main__":
    main()
