# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A hundred million rows
#
# A mixed model needs of the rows only sums of products, level by level. So the rows can stay on
# disk: they are read once, in batches, and what is kept has the size of the levels and not of the
# rows. This notebook writes a data set that need not fit into memory, fits it by REML and by the
# posterior, compares with the truth, and shows what the sums can do that rows cannot: they add up,
# over months, machines and hospitals.
#
# You need to know what `y ~ x + (x | g)` means. Everything is made here, in a temporary folder, and
# removed at the end.
#
# The number of rows is ten million; set `BAYESLMM_ROWS=1e8` for the number in the title (about 1.2
# GB on disk and some minutes).

# %%
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
ROWS = 100_000 if SMOKE else int(float(os.environ.get("BAYESLMM_ROWS", "1e7")))
LEVELS = 1_000 if SMOKE else 10_000
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}


def peak():
    """Largest memory of this process so far, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


start = peak()
print(f"{ROWS:,} rows, {LEVELS:,} shops; memory before anything is read: {start:.0f} MB")

# %% [markdown]
# ## Data on disk
#
# Sales in many shops: they depend on price, by a slope that differs between shops, and on the
# season. The truth is known.

# %%
TRUTH = pd.Series(
    {
        "beta[Intercept]": 20.0,
        "beta[price]": -1.2,
        "beta[season[T.winter]]": 0.8,
        "sd[shop, Intercept]": 2.0,
        "sd[shop, price]": 0.3,
        "cor[shop, Intercept, price]": -0.5,
        "sigma": 3.0,
    }
)
rng = np.random.default_rng(14)
z = rng.standard_normal((LEVELS, 2))
intercepts = 2.0 * z[:, 0]
slopes = 0.3 * (-0.5 * z[:, 0] + np.sqrt(1 - 0.5**2) * z[:, 1])


def batch(size):
    """Some rows, as they might come from the tills."""
    shop = rng.integers(LEVELS, size=size).astype(np.int32)
    price = rng.uniform(1, 9, size).round(2)
    winter = rng.integers(2, size=size)
    mean = 20 + intercepts[shop] + (slopes[shop] - 1.2) * price + 0.8 * winter
    return pa.table(
        {
            "sold": mean + 3 * rng.standard_normal(size),
            "price": price,
            "season": np.where(winter == 1, "winter", "summer"),
            "shop": shop,
        }
    )


folder = tempfile.TemporaryDirectory()
BATCH, FILES = 1_000_000, 4
for number in range(FILES):
    path = Path(folder.name, f"part{number}.parquet")
    left = ROWS // FILES
    with pq.ParquetWriter(path, batch(1).schema) as writer:
        while left:
            size = min(BATCH, left)
            writer.write_table(batch(size))
            left -= size
on_disk = sum(file.stat().st_size for file in Path(folder.name).iterdir())
print(f"{on_disk / 1e6:,.0f} MB in {FILES} files; in memory the columns would take more:")
print(f"{ROWS * (8 + 8 + 8 + 4) / 1e6:,.0f} MB, before any design matrix")

# %% [markdown]
# ## The fit
#
# In place of a data frame the model gets the path of a folder. A Polars LazyFrame, a DuckDB query,
# a dataset in a bucket or a function that returns an iterator would do as well ([Data beyond
# memory](../../how_to/beyond_memory.md)).

# %%
formula = "sold ~ price + season + (price | shop)"
clock = time.perf_counter()
model = blm.LMM(formula, folder.name, progressbar=False)
reading = time.perf_counter() - clock
model

# %%
clock = time.perf_counter()
reml = model.reml()
fitting = time.perf_counter() - clock
clock = time.perf_counter()
post = model.fit(random_seed=1, progressbar=False, **DRAWS)
sampling = time.perf_counter() - clock
pd.Series(
    {
        "reading the rows once": reading,
        "REML": fitting,
        "posterior": sampling,
    }
).round(2).to_frame("seconds")

# %%
print(f"memory: {start:.0f} MB before, {peak():.0f} MB at most so far")

# %% [markdown]
# Reading takes time in proportion to the rows, the fit does not: it never sees a row. The time of
# the fit depends on the number of levels and their coefficients, so ten times the rows of the same
# shops cost the same fit. `benchmarks/beyond_memory.py` measures this for $10^6$ and $10^8$ rows
# with 100,000 levels; on two cores the model of $10^8$ rows took 10.3 s to read, with a peak of 489
# MB, and REML 1.5 s and the posterior 6.6 s, 1.04 times what they took with $10^6$
# (`benchmarks/README.md`).
#
# ## Is it right?

# %%
summary = post.summary().loc[TRUTH.index]
table = pd.DataFrame(
    {
        "truth": TRUTH,
        "REML": reml.summary()["estimate"][TRUTH.index],
        "mean": summary["mean"],
        "sd": summary["sd"],
    }
)
table["z"] = (table["mean"] - table["truth"]) / table["sd"]
assert table["z"].abs().max() < 4.5
table.round(4)

# %% [markdown]
# `z` is the distance from the truth in posterior standard deviations: numbers of about one are
# right. With so many rows the posterior and REML agree to all digits shown, since no prior matters,
# and what limits the standard deviations of shops is the number of shops.
#
# A part of the rows in memory gives the same as the same rows on disk:

# %%
few = pd.read_parquet(Path(folder.name, "part0.parquet")).head(50_000)
in_memory = blm.LMM(formula, few).reml()
in_batches = blm.LMM(formula, [few.iloc[:20_000], few.iloc[20_000:]], progressbar=False).reml()
difference = abs(in_memory.criterion / in_batches.criterion - 1)
print(f"relative difference of the REML criteria: {difference:.0e}")
assert difference < 1e-10

# %% [markdown]
# ## What remains: sums
#
# `blm.CrossProducts` is what was kept of the rows. For the formula above there are, for each shop,
# the sums of 1, price and season, of their products with each other, and with the sales. Two halves
# of the data have two such tables, and the table of all data is their sum.

# %%
levels = {"season": ["summer", "winter"]}
halves = [
    blm.CrossProducts.of(formula, f"{folder.name}/{pattern}", levels=levels, name=name)
    for pattern, name in (("part[01].parquet", "first"), ("part[23].parquet", "second"))
]
total = halves[0] + halves[1]
total

# %%
added = blm.LMM.from_products(total).reml()
apart = {
    "criterion": abs(added.criterion / reml.criterion - 1),
    "fixed effects": np.abs(added.beta / reml.beta - 1).max(),
    "sd of slopes": abs(added.sds["shop"]["price"] / reml.sds["shop"]["price"] - 1),
}
assert apart["criterion"] < 1e-10
pd.Series(apart).map("{:.0e}".format).to_frame("relative difference")

# %% [markdown]
# That the criterion is the same to $10^{-10}$ says that the sums are; estimates come from a search
# and agree to what the search resolves.
#
# Three uses follow. **Months**: keep the sums of last year in a file,
# `total.save("2025.products")`, and add those of January; nobody reads last year again.
# **Machines**: `LMM(..., executor=)` lets workers sum pieces, and adds in a fixed order. **Sites**:
# hospitals that may not pool patients can each make the sums, and one adds them. The fit is that of
# the pooled rows and not an approximation by a meta-analysis of estimates (Luo and others, 2022,
# doi:10.1038/s41467-022-29160-4). What a file of sums discloses, and what `smallest_cell=`
# withholds, has a page: [Federated fits](../../how_to/federated.md).
#
# ## What can be done without rows
#
# Means, contrasts, tests, random effects, intervals, predictions for new rows: nearly everything.

# %%
post.means("season")

# %%
new = pd.DataFrame({"price": [2.0, 5.0, 8.0], "season": "winter", "shop": [7, 7, 7]})
post.predict(new, random_seed=1)

# %%
reml.anova()

# %% [markdown]
# Even `bootstrap()` and `check_calibration()` are there: they simulate sums in place of responses,
# which have the distribution that sums of simulated rows have.
#
# ## A second reading
#
# Fitted values, cross-validation and averages over the rows need the rows again. The model knows
# where they are, and reads them once more in batches; the result goes to a Parquet file where there
# would be a number for each row. Here the scores of leaving out each row in turn, of all shops:

# %%
if ROWS <= 1_000_000:
    clock = time.perf_counter()
    print(post.loo(draws=100, progressbar=False))
    print(f"{time.perf_counter() - clock:.1f} s")
else:
    print("Left out of this run: the time is in proportion to rows times draws.")

# %% [markdown]
# How an average sale depends on price, over all rows of each season:

# %%
clock = time.perf_counter()
averages = reml.slopes("price", by="season")
print(f"{time.perf_counter() - clock:.1f} s")
averages

# %% [markdown]
# ## What cannot be done
#
# - Anything that needs all rows at once: `R()`, `V()`, simulated responses of the data, the exact
#   test of a variance, missing responses. The errors say so.
# - Student-t residuals and a modelled residual scale: their likelihood is no function of sums.
# - Crossed factors with many levels each. Sums of pairs of levels that meet are kept, and one of
#   the factors needs a dense matrix ([Many levels](../../how_to/large_data.md)).
# - More digits than sums have: where the effects leave less than a ten-thousandth of the variation,
#   the fit is refused ([Precision](../../explanation/precision.md)).

# %%
try:
    post.simulate(2)
except blm.DataError as error:
    print(error)

# %% [markdown]
# Last, the files are removed.

# %%
folder.cleanup()
print(f"memory: {peak():.0f} MB at most")

# %% [markdown]
# ## Next
#
# - [Data beyond memory](../../how_to/beyond_memory.md): sources, engines, workers, going on after a
#   stop.
# - [Federated fits](../../how_to/federated.md): sums of sites, and what they disclose.
# - [Precision, and what is trusted](../../explanation/precision.md): why sums of products keep
#   their digits.
# - `benchmarks/beyond_memory_rivals.py` fits one model from the same files by lme4, glmm,
#   statsmodels and Bambi, up to the sizes that they can hold.
