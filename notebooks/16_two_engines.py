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
# # Two engines, one posterior
#
# `fit()` does not use Hamiltonian Monte Carlo. It samples the few covariance parameters alone, with
# an importance sampler, and draws the effects exactly. Why should you believe it? Because the same
# model can be sampled by NUTS, which you know, and the answers can be compared. This notebook does
# that:
#
# 1. one density: the PyMC model has the log density of the package, to rounding;
# 2. one distribution: draws of the two engines differ by Monte Carlo error and no more;
# 3. their prices, and the diagnostics of each;
# 4. where each of them fails, and what `method="auto"` then does;
# 5. a check that needs no second engine: simulation-based calibration.
#
# You need to know what R-hat and an effective sample size are. How the sampler works is in [The
# collapsed sampler](../../explanation/collapsed_sampler.md).

# %%
import os
import time

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pymc as pm
import pytensor.tensor as pt

import bayeslmm as blm
from bayeslmm.likelihood.log_posterior import log_posterior_batch, reduce_at

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
SIZE = {"draws": 200, "chains": 2} if SMOKE else {"draws": 1000, "chains": 4}
SECOND = "another seed" if SMOKE else "NUTS"
plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## One density
#
# `model.pymc()` writes the model as a PyMC model, in three forms. In "centered" and "noncentered"
# the random effects are variables. In "marginal" they are integrated out, and the fixed effects
# too; its log density is what the collapsed sampler evaluates. At random points of the
# unconstrained parameters, the two must be the same number:

# %%
sleep = blm.load_dataset("sleepstudy")
model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
marginal = model.pymc("marginal")
order = ["_sd_Subject_working_log__", "_chol_Subject__0_correlation__", "sigma_log__"]
logp = marginal.compile_logp(mode="FAST_COMPILE")

rng = np.random.default_rng(16)
start = marginal.initial_point()
points = [
    {name: value + rng.normal(0, 0.5, np.shape(value)) for name, value in start.items()}
    for _ in range(20)
]
by_pymc = np.array([float(logp(point)) for point in points])
x = np.array([np.concatenate([np.ravel(point[name]) for name in order]) for point in points])


def reduce(at):
    return reduce_at(model.system, model.priors.coordinates, at)


by_package = log_posterior_batch(model.system, model.priors, reduce, x)
apart = np.abs(by_package / by_pymc - 1).max()
print(f"log densities from {by_pymc.min():.1f} to {by_pymc.max():.1f} at 20 points")
print(f"largest relative difference: {apart:.0e}")
assert apart < 1e-8

# %% [markdown]
# The names that begin with an underscore are the working coordinates about which the priors speak:
# the standard deviations of the intercept at the mean day and of the slope ([Default
# priors](../../explanation/default_priors.md)).
#
# ## One distribution
#
# The default engine, NUTS by nutpie on the noncentred form, and the Laplace approximation of the
# same density. (A short run has no time for NUTS, and takes a second seed of the default engine in
# its place.)

# %%
clock = {}


def timed(name, random_seed=1, **options):
    began = time.perf_counter()
    fit = model.fit(random_seed=random_seed, progressbar=False, **SIZE, **options)
    clock[name] = time.perf_counter() - began
    return fit


fits = {
    "collapsed": timed("collapsed", method="collapsed"),
    SECOND: timed(SECOND, **({"random_seed": 2} if SMOKE else {"method": "nuts"})),
    "Laplace": timed("Laplace", method="laplace"),
}
pd.concat({name: fit.summary()[["mean", "sd"]] for name, fit in fits.items()}, axis=1).round(3)

# %% [markdown]
# Equal up to what? Each mean and each standard deviation has a Monte Carlo error, which ArviZ
# computes. The difference over its standard error is `z`; of two samplers of one distribution it is
# about standard normal. All parameters and random effects are compared, not only those in the
# table.


# %%
def moments(fit):
    """Means, standard deviations and their Monte Carlo errors, of every parameter."""
    draws = fit.data["posterior"].to_dataset()
    names = ["beta", "u_Subject", "sd_Subject", "sigma"]
    labels = ["Subject_coef", "Subject_coef_bis"]
    cor = draws["cor_Subject"][..., 1, 0].drop_vars(labels, errors="ignore")
    draws = draws[names].assign(cor=cor)
    found = {}
    for name in draws.data_vars:
        flat = draws[name].to_numpy().reshape(*draws[name].shape[:2], -1)
        for j in range(flat.shape[2]):
            one = flat[:, :, j]
            found[name, j] = {
                "mean": one.mean(),
                "sd": one.std(),
                "error of mean": float(az.mcse(one, method="mean")),
                "error of sd": float(az.mcse(one, method="sd")),
            }
    return pd.DataFrame(found).T


def z_scores(one, other):
    """Differences of means and of standard deviations over their Monte Carlo errors."""
    return pd.DataFrame(
        {
            s: (one[s] - other[s]) / np.hypot(one[f"error of {s}"], other[f"error of {s}"])
            for s in ("mean", "sd")
        }
    )


tables = {name: moments(fit) for name, fit in fits.items()}
z = z_scores(tables["collapsed"], tables[SECOND])
print(f"{z.size} comparisons: sd of z {z.to_numpy().std():.2f}, largest {z.abs().max().max():.2f}")
assert z.abs().max().max() < 5
z[z.index.get_level_values(0) != "u_Subject"].round(2)

# %% [markdown]
# The largest of so many standard normal numbers is between two and four in most cases. That `z`
# spreads by less than one has a reason: the exact draws of effects use noise that fills its space
# evenly, and vary less than ArviZ assumes. The Laplace approximation is another matter:

# %%
z = z_scores(tables["collapsed"], tables["Laplace"])
z = z[z.index.get_level_values(0) != "u_Subject"]
z.abs().max(axis=1).round(1).to_frame("largest |z|")

# %% [markdown]
# Quantiles say more than moments. Each point is a quantile of NUTS against the same quantile of
# another engine, for the two parameters that are hardest:

# %%
levels = np.linspace(0.005, 0.995, 100)


def quantiles(fit, name):
    draws = fit.data["posterior"]
    values = draws["sd_Subject"][..., 0] if name == "sd" else draws["cor_Subject"][..., 1, 0]
    return np.quantile(values.to_numpy().ravel(), levels)


figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
titles = {"sd": "sd of intercepts", "cor": "correlation"}
for axis, (name, title) in zip(axes, titles.items(), strict=True):
    known = quantiles(fits[SECOND], name)
    for engine, colour in (("Laplace", "C1"), ("collapsed", "C0")):
        axis.plot(known, quantiles(fits[engine], name), ".", color=colour, label=engine)
    axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
    axis.set(xlabel=SECOND, title=title)
axes[0].set_ylabel("another engine")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Prices
#
# Seconds from the model to the draws, compiling included, and the smallest bulk effective sample
# size over everything, the random effects among it. Seconds are of this machine at this moment;
# look at orders of magnitude.


# %%
def smallest_ess(fit):
    draws = fit.data["posterior"].to_dataset().drop_vars("cor_Subject")
    return min(float(v.min()) for v in az.ess(draws, method="bulk").data_vars.values())


prices = pd.DataFrame(
    {
        name: {"seconds": clock[name], "smallest ESS": smallest_ess(fits[name])}
        for name in ("collapsed", SECOND)
    }
).T
prices["ESS per second"] = prices["smallest ESS"] / prices["seconds"]
prices.round(1)

# %% [markdown]
# `benchmarks/sleepstudy_posterior.py` measures this in fresh and warm processes against Bambi and
# PyMC, after checking that answers agree.
#
# ## Diagnostics of each

# %%
for name in ("collapsed", SECOND):
    print(name, fits[name].diagnostics, sep="\n", end="\n\n")

# %% [markdown]
# R-hat and effective sample sizes mean the same for both. Beside them, each engine has signs of its
# own. NUTS reports divergences, places where its steps do not follow the density. The collapsed
# sampler reports the Pareto k of its importance ratios: below 0.7, no part of the posterior that
# its proposals reached is represented by a few draws.
#
# Divergences come with the form of the model. Six batches that hardly differ leave the standard
# deviation between them near zero; in the centred form the random effects must then be near zero
# too, and the posterior is a funnel.

# %%
dye = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff2"))
runs = {"collapsed": dye.fit(random_seed=1, progressbar=False, **SIZE)}
for form in [] if SMOKE else ["centered", "noncentered"]:
    runs[f"NUTS, {form}"] = dye.fit(
        method="nuts", form=form, random_seed=1, progressbar=False, **SIZE
    )
rows = {}
for name, fit in runs.items():
    sd = fit.data["posterior"]["sd_Batch"].squeeze().to_numpy()
    stats = fit.data["sample_stats"]
    rows[name] = {
        "divergences": int(stats["diverging"].sum()) if "diverging" in stats else np.nan,
        "ESS of the sd": float(az.ess(sd)),
        "5 % quantile": np.quantile(sd, 0.05),
        "median": np.median(sd),
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# (A short run shows the collapsed sampler alone.) The centred form is the one to look at: its
# effective draws are fewest, and its 5 % quantile stays away from zero where the others reach it.
# Divergences are the sign of that, and there may be very few of them while a good part of the
# posterior is missing. Without the effects among the coordinates there is no funnel, so the
# collapsed sampler never sees it.
#
# ## Where NUTS is needed
#
# The collapsed sampler needs random effects that can be integrated out in closed form, and few
# parameters that are left. Student-t residuals and predictors of the residual scale take away the
# first. Asked for, the collapsed sampler refuses:

# %%
robust = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep, family="student")
try:
    robust.fit(method="collapsed")
except blm.BayesLMMError as error:
    print(error)

# %% [markdown]
# `fit()` without a method samples such models by NUTS at once ([Outliers and unequal
# scale](../../how_to/outliers_and_scale.md)).
#
# In other models `fit()` tries the collapsed sampler and falls back to NUTS if its own checks
# refuse the draws. It then says so three times: in a line of the log, in `post.notes`, and in
# `post.data.attrs["fallback"]`, each with the reason. You are unlikely to see it.
# `tests/sampler_search.py` fits random small designs and compares with an independent sampler:
# under default priors none may be refused, under priors that contradict the data at most a few in a
# hundred. Here is a prior that no point satisfies but a needle between 777 and 777 plus a
# billionth, which neither engine can find:


# %%
def needle(value, at):
    return pt.switch(pt.lt(pt.abs(value - at), 1e-9), 0.0, -np.inf)


nowhere = blm.LMM(
    "Yield ~ 1 + (1 | Batch)",
    blm.load_dataset("Dyestuff2"),
    priors={"sigma": pm.CustomDist.dist(777.0, logp=needle)},
)
try:
    nowhere.fit(method="collapsed", random_seed=1, progressbar=False)
except blm.SamplingError as error:
    print(error)

# %% [markdown]
# What makes it refuse, check by check, is listed in [The collapsed
# sampler](../../explanation/collapsed_sampler.md#what-it-refuses).
#
# ## A check without a second engine
#
# If two engines agree they may share a mistake: both use this package's density. Simulation-based
# calibration does not need either to be right. Draw parameters from the prior, simulate a response,
# fit, and see where the true value ranks among the draws; if density and sampler are right, all
# ranks are equally likely (Talts and others, 2018, arXiv:1804.06788).

# %%
check = dye.check_calibration(10 if SMOKE else 100, random_seed=1, progressbar=False)
check

# %%
check.plot(backend="matplotlib")
plt.show()

# %% [markdown]
# A parameter is miscalibrated where its line leaves the band. [Checking that a sampler is
# right](../../how_to/calibration.md) shows one that fails, the Laplace approximation, and
# `tests/test_calibration_slow.py` asserts both: that the collapsed sampler passes for five designs,
# and that the check can fail.
#
# ## Next
#
# - [The collapsed sampler](../../explanation/collapsed_sampler.md): target, proposal, guards and
#   limits.
# - [Checking that a sampler is right](../../how_to/calibration.md).
# - [Continue in ArviZ](../../how_to/continue_in_arviz.md): draws of either engine have the same
#   names.
# - [Outliers and unequal scale](../../how_to/outliers_and_scale.md): models that need NUTS.
