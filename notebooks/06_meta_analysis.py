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
# # Three meta-analyses
#
# A meta-analysis is a mixed model whose residual variances are known: one row per reported
# estimate, with its standard error. Three published ones are worked through, by REML, as metafor
# has it, and by the posterior:
#
# 1. thirteen trials of the BCG vaccine, which differ by more than chance;
# 2. schools within districts, estimates at two levels;
# 3. two outcomes of the same patients, whose sampling errors are correlated with known covariances.
#
# On the way: what a new trial is to be expected to show, how much the prior of the heterogeneity
# matters where studies are few, and what the data say of no heterogeneity at all.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pymc as pm
from scipy.linalg import block_diag

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The BCG vaccine against tuberculosis
#
# Thirteen trials over thirty years (Colditz and others, 1994,
# doi:10.1001/jama.1994.03510330076038), reported as log risk ratios: below zero the vaccine
# protects.

# %%
bcg = blm.load_dataset("bcg")
bcg[["trial", "latitude", "allocation", "log_rr", "se"]].round(2)

# %%
model = blm.LMM("log_rr ~ 1 + (1 | trial)", bcg, residual="se(se)")
reml = model.reml()
reml

# %% [markdown]
# These are the figures of metafor's `rma(yi, vi)`: a mean of -0.715 with standard error 0.180, and
# a standard deviation between trials, tau, of 0.560. Sampling error alone would make the estimates
# differ far less:

# %%
reml.heterogeneity()

# %% [markdown]
# `Q` is the sum of squared differences from the common mean in units of the standard errors; twelve
# were to be expected. `I2` says that nine tenths of the variance of a typical estimate are true
# differences between trials. The mean risk ratio is exp(-0.715), about one half, but the effect
# in a new trial may well be nil: its interval is some three times as wide as that of the mean.
#
# The posterior has the same density, with tau's uncertainty carried into everything else.

# %%
post = model.fit(random_seed=1, **DRAWS)
post.heterogeneity(random_seed=1)

# %%
blm.compare_reml(post, reml)

# %% [markdown]
# The posterior means of tau and of the standard deviation of the mean are a little larger than
# REML's values: the density of tau is skewed, and REML reports where its peak is. The forest:
# squares are reports, points what is known of each trial in view of the others.

# %%
post.plot.forest(exp=True, backend="matplotlib")
plt.show()

# %% [markdown]
# ### Why do they differ?
#
# Latitude is the well-known moderator: far from the equator the vaccine protected better.

# %%
moderated = blm.LMM("log_rr ~ latitude + (1 | trial)", bcg, residual="se(se)")
by_latitude = moderated.fit(random_seed=1, **DRAWS)
pd.concat(
    {
        "REML": moderated.reml().fixef()[["estimate", "std_error"]],
        "posterior": by_latitude.fixef()[["mean", "sd"]],
    },
    axis=1,
).round(3)

# %%
by_latitude.heterogeneity(at={"latitude": [13, 33, 55]}, random_seed=1)

# %% [markdown]
# Tau is halved, and some heterogeneity is left. At 13 degrees a new trial may go either way, at 55
# it will hardly harm.
#
# ## Few studies, and the prior of tau
#
# With thirteen trials the prior of tau hardly matters. Take four.

# %%
few = bcg.iloc[[0, 2, 8, 11]]
small = blm.LMM("log_rr ~ 1 + (1 | trial)", few, residual="se(se)")
small.reml().heterogeneity()

# %% [markdown]
# REML puts tau at zero, where the likelihood is highest, and the interval says that this is no
# knowledge: values up to 1.7 are not excluded. So the prior must speak, and one should see what it
# says. The default, HalfStudentT(3, s) with the standard deviation s of the reports, is wide; for
# log risk ratios one may well say that tau is hardly above one.

# %%
priors = {
    "default": {},
    "HalfNormal(0.5)": {"sd[trial]": pm.HalfNormal.dist(0.5)},
    "HalfNormal(1)": {"sd[trial]": pm.HalfNormal.dist(1.0)},
    "HalfCauchy(0.3)": {"sd[trial]": pm.HalfCauchy.dist(0.3)},
}
fits = {name: small.update(priors=own).fit(random_seed=1, **DRAWS) for name, own in priors.items()}
rows = {}
for name, fit in fits.items():
    found = fit.heterogeneity(random_seed=1)
    tau, mean, new = found.table.iloc[0], fit.fixef().iloc[0], found.prediction.iloc[0]
    rows[name] = {
        "tau": tau["median"],
        "mean": mean["mean"],
        "its sd": mean["sd"],
        "sd of a new effect": new["sd"],
        "Bayes factor of tau = 0": found.evidence["bayes_factor"].iloc[0],
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# The mean stays where it is. Its uncertainty, and still more that of a new trial, follows the
# prior: such an analysis reports which prior it took and shows another. The Bayes factor compares
# with no heterogeneity; it favours tau = 0 the more, the wider the prior of tau is, since a wide
# prior wastes its mass on values that the data exclude. Here it decides nothing, and Q says the
# same. For all thirteen trials it is beyond doubt:

# %%
common = blm.LMM("log_rr ~ 1", bcg, residual="se(se)").fit(random_seed=1, **DRAWS)
print(blm.bayes_factor(post, common))

# %% [markdown]
# ## Schools within districts
#
# Fifty-six comparisons of schools with a modified calendar and schools with the usual one, in
# eleven districts (Konstantopoulos, 2011, doi:10.1002/jrsm.35). Schools of one district have
# something in common, so that there are two taus.

# %%
schools = blm.load_dataset("school_calendar")
nested = blm.LMM("d ~ 1 + (1 | district / school)", schools, residual="se(se)")
print(nested.reml())
nested.reml().heterogeneity()

# %% [markdown]
# metafor's `rma.mv(yi, vi, random = ~ 1 | district/school)` has variances of 0.065 and 0.033 and a
# mean of 0.185 with standard error 0.085. Two thirds of the variance of a typical estimate lie
# between districts. Taking the schools as independent would make the mean far too certain:

# %%
flat = blm.LMM("d ~ 1 + (1 | school)", schools, residual="se(se)")
pd.concat(
    {
        "schools in districts": nested.reml().fixef().iloc[0],
        "schools alone": flat.reml().fixef().iloc[0],
    },
    axis=1,
).T[["estimate", "std_error", "df"]].astype(float).round(3)

# %%
of_schools = nested.fit(random_seed=1, **DRAWS)
of_schools.heterogeneity(random_seed=1)

# %% [markdown]
# ## Two outcomes of the same patients
#
# Five trials of surgery for periodontitis report attachment level (AL) and probing depth (PD) of
# the same patients (Berkey and others, 1998). The sampling errors of a trial's two estimates are
# correlated, and the covariances were reported: V is known, block diagonal by trial.

# %%
gums = blm.load_dataset("periodontal")
blocks = gums.groupby("trial", observed=True)[["cov_pd", "cov_al"]]
V = block_diag(*[block for _, block in blocks])
outcomes = blm.LMM(
    "difference ~ 0 + outcome + (0 + outcome | trial)",
    gums,
    residual="known(V | trial)",
    covariances={"V": V},
)
outcomes.reml()

# %% [markdown]
# metafor's `rma.mv(yi, V, mods = ~ outcome - 1, random = ~ outcome | trial, struct = "UN")` has the
# same: -0.339 and 0.353, variances 0.033 and 0.012, a correlation of 0.609. What does a posterior
# add with five trials?

# %%
of_outcomes = outcomes.fit(random_seed=1, **DRAWS)
blm.compare_reml(of_outcomes, outcomes.reml())

# %%
of_outcomes.heterogeneity(random_seed=1)

# %% [markdown]
# The correlation of the effects is not known at all, though REML reports 0.61; and whether PD
# varies between trials is open, for the Bayes factor of tau = 0 is near one. Surgery gains probing
# depth and loses attachment, on average:

# %%
of_outcomes.hypothesis(["outcome[PD] > 0", "outcome[AL] < 0"])

# %%
draws = of_outcomes.data["posterior"]["cor_trial"].to_numpy()[..., 0, 1].ravel()
figure, axis = plt.subplots(figsize=(5, 2.6), layout="constrained")
axis.hist(draws, bins=np.linspace(-1, 1, 41), density=True, color="C0", alpha=0.6)
axis.axvline(outcomes.reml().corrs["trial"].iloc[0, 1], color="black", linestyle="--")
axis.set(xlabel="correlation of the effects on the two outcomes", yticks=[])
axis.spines["left"].set_visible(False)
plt.show()
