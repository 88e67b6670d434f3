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
# # A trial with repeated measures (MMRM)
#
# Two hundred patients, two arms, four visits after baseline, and a third of the responses missing.
# The usual analysis has a mean for every arm and visit and an unstructured covariance matrix of the
# four responses of a patient: a mixed model for repeated measures, MMRM. This notebook fits it,
# puts the posterior beside it, and asks how far the answer depends on what is assumed of the
# patients who left.
#
# The data are artificial; they come with the R package mmrm.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS, IMPUTATIONS = (100, 20) if SMOKE else (1000, 500)
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

fev = blm.load_dataset("fev")
print(blm.describe_dataset("fev"))

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
for k, (arm, part) in enumerate(fev.groupby("ARMCD", observed=True)):
    for _, patient in part.groupby("USUBJID", observed=True):
        axes[0].plot(patient["VISITN"], patient["FEV1"], color=f"C{k}", alpha=0.12, linewidth=0.8)
    means = part.groupby("VISITN")["FEV1"].mean()
    axes[0].plot(means.index, means, "o-", color=f"C{k}", label=arm)
    missing = part.groupby("VISITN")["FEV1"].apply(lambda y: y.isna().mean())
    axes[1].bar(missing.index + 0.36 * (k - 0.5), missing, 0.34, color=f"C{k}")
axes[0].set(xlabel="visit", ylabel="FEV1, %", xticks=[1, 2, 3, 4])
axes[0].legend(frameon=False)
axes[1].set(xlabel="visit", ylabel="share missing", xticks=[1, 2, 3, 4])
plt.show()

# %% [markdown]
# ## The whole MMRM in ten lines
#
# Means by arm and visit, adjusted for baseline, race and sex; an unstructured residual matrix
# within patients; Kenward-Roger standard errors and degrees of freedom; differences from placebo
# at each visit; and the posterior.

# %%
formula = "FEV1 ~ ARMCD * AVISIT + FEV1_BL + RACE + SEX"
model = blm.LMM(formula, fev, residual="us(AVISIT | USUBJID)", missing="keep")
mmrm = model.reml().with_df("kenward-roger")
post = model.fit(draws=DRAWS, random_seed=1)
means = mmrm.means(["ARMCD", "AVISIT"])
differences = mmrm.contrasts("ARMCD", "reference", by="AVISIT", adjust=None)
believed = post.contrasts("ARMCD", "reference", by="AVISIT")
print(means)
print(differences)
print(believed)

# %% [markdown]
# `model` could have had separate matrices for the arms, `us(AVISIT | ARMCD / USUBJID)`, another
# structure (`toeph`, `csh`, `ar1h`, `adh`), or known weights. Nothing else would change.
#
# The two tables of differences answer two questions. The first has the estimate and how it would
# vary over repeated trials; the second what is to be believed given this one, such as the
# probability that the treatment is better by at least three points at the last visit:

# %%
last = believed.draws.sel(quantity="VIS4 TRT - PBO")
print(f"P(difference > 3) = {float((last > 3).mean()):.2f}")

# %%
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
table, drawn = differences.table(), believed.table(prob=0.95)
place = np.arange(4)
reach = [table["estimate"] - table["conf_low"], table["conf_high"] - table["estimate"]]
axis.errorbar(place - 0.08, table["estimate"], reach, fmt="o", color="0.4", label="REML, KR")
reach = [drawn["mean"] - drawn.iloc[:, -2], drawn.iloc[:, -1] - drawn["mean"]]
axis.errorbar(place + 0.08, drawn["mean"], reach, fmt="o", color="C0", label="posterior")
axis.axhline(0, color="0.7", linewidth=0.8)
axis.set_xticks(place, table.index.get_level_values("AVISIT"))
axis.set_ylabel("treatment less placebo, FEV1 %")
axis.legend(frameon=False, loc="upper center")
plt.show()

# %% [markdown]
# Standard errors that hold whatever the covariances within patients are: `robust`, here with
# structures that are as wrong as they get, independence, and as rich as they get.

# %%
plain = blm.LMM(formula, fev).reml()
rich = model.reml()
fits = {"independent": plain, "independent, robust": plain.robust(fev["USUBJID"])}
fits |= {"unstructured": rich, "unstructured, robust": rich.robust("USUBJID")}
pd.DataFrame(
    {
        name: fit.contrasts("ARMCD", "reference", by="AVISIT", adjust=None).table()["std_error"]
        for name, fit in fits.items()
    }
).droplevel(1).round(3)

# %% [markdown]
# ## When the structure is too rich
#
# With few patients an unstructured matrix may have no estimate. A statistical analysis plan then
# names structures to fall back to. They are tried in order, the first to converge is kept, and the
# estimate says so.

# %%
few = fev[fev["USUBJID"].isin(fev["USUBJID"].cat.categories[:12])].dropna(subset="FEV1")
small = blm.LMM("FEV1 ~ ARMCD + AVISIT", few, residual="us(AVISIT | USUBJID)")
kept = small.reml(fallback=["toeph(AVISIT | USUBJID)", "cs(AVISIT | USUBJID)"])
print("\n".join(kept.notes))

# %% [markdown]
# The posterior needs no such chain: with a proper prior on the matrix it exists for any number of
# patients.
#
# ## Sites
#
# The residual matrix is about a patient. Patients of a site may be alike too, which is a random
# effect beside the matrix: `(1 | site)` in the formula. The sites here are made up.

# %%
site = fev["USUBJID"].cat.codes % 12
with_sites = blm.LMM(
    f"{formula} + (1 | site)",
    fev.assign(site=site, FEV1=fev["FEV1"] + 2.0 * np.sin(5.0 * site)),
    residual="us(AVISIT | USUBJID)",
)
with_sites.reml().varcorr()[["group", "term", "sdcor", "conf_low", "conf_high"]].head(2).round(2)

# %% [markdown]
# ## The baseline as a response
#
# Patients were randomised, so the arms have one mean at baseline. Constrained longitudinal data
# analysis (cLDA; Liang and Zeger, 2000) takes the baseline as a response at visit zero with a mean
# in common. `blm.clda` makes the frame; `ARMCD_cLDA` is the arm, but placebo for everyone at
# baseline, so that each coefficient of `AVISIT:ARMCD_cLDA` is the difference at one visit.

# %%
columns = {"subject": "USUBJID", "visit": "AVISIT", "arm": "ARMCD", "reference": "PBO"}
long = blm.clda(fev, response="FEV1", baseline="FEV1_BL", **columns)
clda = blm.LMM("FEV1 ~ AVISIT + AVISIT:ARMCD_cLDA", long, residual="us(AVISIT | USUBJID)")
ancova = blm.LMM(
    "FEV1 ~ 0 + AVISIT + AVISIT:ARMCD + AVISIT:FEV1_BL", fev, residual="us(AVISIT | USUBJID)"
)
fits = {"baseline as response": clda.reml(), "baseline as covariate": ancova.reml()}
pd.concat(
    {
        name: fit.fixef().filter(like="[T.TRT]", axis=0)[["estimate", "std_error", "df"]]
        .set_axis(["VIS1", "VIS2", "VIS3", "VIS4"])
        for name, fit in fits.items()
    },
    axis=1,
).round(2)  # fmt: skip

# %% [markdown]
# The two agree. Where every baseline is observed the estimates by maximum likelihood are the same
# to the last digit; those by REML differ a little. Where baselines are missing, cLDA keeps these
# patients and the other model loses them.
#
# ## What if those who left did worse?
#
# The MMRM takes what is missing to be missing at random: patients who left would have gone on like
# those of their arm with the same history. Reference-based assumptions (Carpenter, Roger and
# Kenward, 2013) say otherwise of those in the treatment arm:
#
# | | after the last visit |
# |---|---|
# | MAR | as the own arm |
# | CIR | copy increments in reference: what was gained is kept, then changes are those of placebo |
# | CR | copy reference: as placebo all along, given what was observed |
# | J2R | jump to reference: as placebo from then on |
#
# `impute` draws the missing responses, one data set for each of some posterior draws. Each is
# analysed by least squares at the last visit, and Rubin's rules combine them.

# %%
arms = {"arm": "ARMCD", "reference": "PBO"}
strategies = ("MAR", "CIR", "CR", "J2R")
completed = {name: post.impute(name, n=IMPUTATIONS, random_seed=2, **arms) for name in strategies}
print(completed["J2R"])

# %%
ancova = "FEV1 ~ ARMCD + FEV1_BL + RACE + SEX"
pooled = pd.concat(
    {name: made.analyse(ancova, at="VIS4").pool().iloc[[-1]] for name, made in completed.items()}
).droplevel([1, 2])
pooled.round(3)

# %% [markdown]
# The more pessimistic the assumption, the smaller the difference. (Under MAR it is not quite that
# of the MMRM: least squares at one visit adjust for the covariates as they matter there, the MMRM
# by one coefficient for all visits.) The standard errors hardly shrink: Rubin's rules keep the
# information lost at what it would be under MAR. The posterior of the same effects has no such
# convention. Under jump to reference it multiplies the difference by the share of patients who
# stayed, which is known well; its spread is that of the estimate over repeated trials.

# %%
direct = pd.concat(
    {
        name: post.reference_based_effect(name, at="VIS4", random_seed=3, **arms).table(prob=0.95)
        for name in strategies
    }
).droplevel([1, 2])
direct.round(3)

# %% [markdown]
# ## The tipping point
#
# How much worse would patients of the treatment arm have to be after they left, compared with those
# who stayed, before the difference is not significant any more? `shift` adds that much to what was
# imputed.

# %%
deltas = np.arange(0.0, -12.1, -2.0)
curve = pd.concat(
    {
        delta: completed["MAR"].shift({"TRT": delta}).analyse(ancova, at="VIS4").pool().iloc[[-1]]
        for delta in deltas
    }
).droplevel([1, 2])
figure, axis = plt.subplots(figsize=(5.5, 3.2), layout="constrained")
axis.fill_between(curve.index, curve["conf_low"], curve["conf_high"], color="C0", alpha=0.2)
axis.plot(curve.index, curve["estimate"], color="C0")
axis.axhline(0, color="0.7", linewidth=0.8)
axis.set(xlabel="shift of those who left the treatment, FEV1 %", ylabel="difference at visit 4")
plt.show()
curve[["estimate", "std_error", "p_value"]].round(3)
