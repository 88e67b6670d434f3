"""Models of data beyond memory, read once in batches, or summed in an engine.

    python benchmarks/beyond_memory.py [--rows 1e6 1e7] [--levels 100000] [--folder FOLDER]

y ~ x + (x | g), simulated to a Parquet file of each size in a temporary folder, or in FOLDER, where
it stays. Each size is fitted in its own process. Beside the time from file to model stands that of
DuckDB's bare GROUP BY of the six sums over the same columns, in the same run. For the file as a
relation of DuckDB and as a LazyFrame of Polars, the model is made of sums in the engine and of
batches of the same relation, in turn. The criterion of the smallest size is checked against that of
its data frame in memory, and that of sums in an engine against that of batches at every size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from _common import best, claim, measure, peak_memory, print_environment, run_worker

import bayeslmm as blm

FORMULA = "y ~ x + (x | g)"
SUMS = "g, count(*), sum(x), sum(y), sum(x * x), sum(x * y), sum(y * y)"
BATCH = 1_000_000
ROUNDS = 2

SCANS = 4.0
"""Most scans that making the model may take."""

PUSHED = 3.0
"""Most scans that making the model of sums in an engine may take."""

MEMORY_MB = 2048.0
LEVEL = 1.2
"""Most times that a fit may take longer with the most rows than with the fewest."""

SAME = 1e-8
"""Largest relative difference of the criterion from that of the rows in memory."""

PUSHED_SAME = 1e-10
"""The same of sums in an engine from batches."""


def file_of(folder, rows, levels):
    return Path(folder) / f"rows_{rows}_levels_{levels}.parquet"


def simulate(file, rows, levels, seed=1):
    """Write the rows in row groups of a million."""
    rng = np.random.default_rng(seed)
    u = rng.standard_normal((levels, 2)) * [1.0, 0.5]
    schema = pa.schema([("g", pa.int64()), ("x", pa.float64()), ("y", pa.float64())])
    building = file.with_suffix(".building")
    with pq.ParquetWriter(building, schema) as writer:
        for start in range(0, rows, BATCH):
            n = min(BATCH, rows - start)
            g, x = rng.integers(0, levels, n), rng.standard_normal(n)
            y = 1.0 + u[g, 0] + (0.5 + u[g, 1]) * x + rng.standard_normal(n)
            writer.write_table(pa.table([g, x, y], schema=schema), row_group_size=BATCH)
    building.rename(file)


def scan(file):
    """Sums of DuckDB."""
    import duckdb

    query = f"SELECT {SUMS} FROM read_parquet('{file}') GROUP BY g"
    return len(duckdb.connect().sql(query).fetchnumpy()["g"])


def relations(file):
    """The file in each engine that is there."""
    found = {}
    try:
        import duckdb

        found["DuckDB"] = duckdb.connect().read_parquet(file)
    except ImportError:
        pass
    try:
        import polars

        found["Polars"] = polars.scan_parquet(file)
    except ImportError:
        pass
    return found


def in_engine(relation):
    """Times of the model by sums in an engine and by batches of the same relation, in turn."""
    ways = {"pushed": relation, "batches": lambda: relation}
    times, criteria = {way: [] for way in ways}, {}
    for _ in range(ROUNDS):
        for way, data in ways.items():
            timing, model = measure(lambda data=data: blm.LMM(FORMULA, data))
            times[way].append(timing)
            criteria[way] = model.reml().criterion
    least = {way: best(found) for way, found in times.items()}
    wall = {way: timing.wall for way, timing in least.items()}
    core = {f"{way} core": timing.core for way, timing in least.items()}
    gap = abs(criteria["pushed"] - criteria["batches"]) / abs(criteria["batches"])
    return {**wall, **core, "gap": gap}


def work(file, rows):
    """Model, REML and posterior of a file, and DuckDB's scan in turn with the model."""
    blm.LMM("Reaction ~ Days + (Days | Subject)", [blm.load_dataset("sleepstudy")]).reml()
    ingests, scans, memory = [], [], 0.0
    for _ in range(ROUNDS):
        timing, model = measure(lambda: blm.LMM(FORMULA, file))
        ingests.append(timing)
        memory = memory or peak_memory()  # before DuckDB takes its own
        try:
            scans.append(measure(lambda: scan(file))[0])
        except ImportError:
            continue
    reml_timing, reml = measure(model.reml)
    fit_timing, post = measure(lambda: model.fit(method="collapsed", random_seed=1))
    assert model.nobs == rows
    engines = {name: in_engine(relation) for name, relation in relations(file).items()}
    return {
        "engines": engines,
        "ingest": best(ingests).wall,
        "ingest core": best(ingests).core,
        "scan": best(scans).wall if scans else None,
        "scan core": best(scans).core if scans else None,
        "memory": memory,
        "reml": reml_timing.wall,
        "fit": fit_timing.wall,
        "fit core": fit_timing.core + reml_timing.core,
        "criterion": reml.criterion,
        "table": post.summary()[["mean", "sd", "ess_bulk", "r_hat"]].to_string(),
    }


def report(rows, file, result):
    """Times of one size."""
    print(f"\n{rows:,} rows, {file.stat().st_size / 1e6:,.0f} MB\n{result['table']}")
    print(f"model {result['ingest']:.2f} s ({result['ingest core']:.2f} core s),", end=" ")
    print(f"peak memory {result['memory']:.0f} MB, REML {result['reml']:.2f} s,", end=" ")
    print(f"posterior {result['fit']:.2f} s more")
    claim("peak memory of making the model, MB", result["memory"], MEMORY_MB, at_least=False)
    if result["scan"] is None:
        print("DuckDB: not run (pip install duckdb)")
        return
    print(f"DuckDB's scan {result['scan']:.2f} s ({result['scan core']:.2f} core s)")
    ratio = result["ingest"] / result["scan"]
    claim("time of the model / DuckDB's scan", ratio, SCANS, at_least=False)
    report_engines(result)


def report_engines(result):
    """Times of the model in each engine, beside batches of it and DuckDB's scan."""
    print("engine   sums in it      batches of it   DuckDB's scan   (seconds, core seconds)")
    for name, found in result["engines"].items():
        times = [(found[way], found[f"{way} core"]) for way in ("pushed", "batches")]
        times.append((result["scan"], result["scan core"]))
        print(f"{name:8} " + "   ".join(f"{wall:5.2f}  {core:5.2f}" for wall, core in times))
        ratio = found["pushed"] / result["scan"]
        claim(f"time of sums in {name} / DuckDB's scan", ratio, PUSHED, at_least=False)
    if "Polars" not in result["engines"]:
        print("Polars: not run (pip install polars)")


def check(file, result):
    """The criterion of the rows in memory."""
    expected = blm.LMM(FORMULA, pd.read_parquet(file)).reml().criterion
    gap = abs(result["criterion"] - expected) / abs(expected)
    print(f"criterion, against the rows in memory: {gap:.1e} of it (limit {SAME:g})")
    if gap > SAME:
        raise SystemExit("the answers disagree; times are not printed")


def check_engines(result):
    """The criterion of sums in an engine and of batches of it."""
    for name, found in result["engines"].items():
        print(f"criterion, sums in {name} against batches: {found['gap']:.1e} of it", end=" ")
        print(f"(limit {PUSHED_SAME:g})")
        if found["gap"] > PUSHED_SAME:
            raise SystemExit("the answers disagree; times are not printed")


def run(options, folder):
    results = {}
    for rows in options.rows:
        file = file_of(folder, rows, options.levels)
        if not file.exists():
            simulate(file, rows, options.levels)
        results[rows] = run_worker(__file__, ["--worker", str(file), "--rows", str(rows)])
        if rows == min(options.rows):
            check(file, results[rows])
        check_engines(results[rows])
        report(rows, file, results[rows])
    fewest, most = min(results), max(results)
    if most > fewest:
        ratio = results[most]["fit core"] / results[fewest]["fit core"]
        what = f"core seconds of REML and posterior, {most:,} rows / {fewest:,}"
        claim(what, ratio, LEVEL, at_least=False)


def main():
    """Run all sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=lambda text: int(float(text)), nargs="+")
    parser.add_argument("--levels", type=int, default=100_000)
    parser.add_argument("--folder", help="where files are written and found again")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rows = options.rows or [10**6, 10**7]
    if options.worker:
        print(json.dumps(work(options.worker, options.rows[0])))
        return
    print_environment()
    if options.folder:
        run(options, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        run(options, folder)


if __name__ == "__main__":
    main()
