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
# # Sleep study: the posterior beside REML
#
# Eighteen people slept little, and their reaction time was measured on ten days in a row (Belenky
# and others, 2003, doi:10.1046/j.1365-2869.2003.00337.x). This notebook fits the model that
# everybody fits to these data in six ways, and looks at where they differ.
#
# **You will learn** what REML, ML, MAP, the default sampler, NUTS and the Laplace approximation
# have in common, how to set a posterior beside REML, and what shrinkage does to a line. **You
# need** random intercepts, as in [the lecture on seedlings](01_lecture_seedlings.py).

# %%
import os
import tempfile
from pathlib import Path

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
SECOND = "another seed" if SMOKE else "NUTS"  # NUTS is compiled first, which takes longer
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

sleep = blm.load_dataset("sleepstudy")
sleep.describe().round(1)

# %% [markdown]
# First each person alone: a least squares line through ten points, eighteen times. `lm_list` is
# R's `lmList`.

# %%
alone = blm.lm_list("Reaction ~ Days | Subject", sleep)
alone.plot()
plt.show()

# %% [markdown]
# Most people get slower, by very different amounts, and they start from different values.
#
# ## Model and priors
#
# $$
# \begin{gathered}
# \text{Reaction}_{ij} = (\beta_0 + u_{0i}) + (\beta_1 + u_{1i})\,\text{Days}_{ij} + e_{ij}, \\
# \begin{pmatrix} u_{0i} \\ u_{1i} \end{pmatrix} \sim N(0, \Sigma), \qquad
# e_{ij} \sim N(0, \sigma^2).
# \end{gathered}
# $$

# %%
model = blm.LMM("Reaction ~ Days + (Days | Subject)", sleep)
model.priors.table()

# %% [markdown]
# ## Point estimates: REML, ML, MAP
#
# All three come from one function, the density of the data with the subjects' effects integrated
# out. REML integrates out the fixed effects too; ML maximises over them; MAP integrates them out
# under their prior and adds the priors of the covariance parameters.

# %%
reml, ml, mode = model.reml(), model.ml(), model.map()
print(reml)

# %%
pd.DataFrame({fit.method: fit.summary()["estimate"] for fit in (reml, ml, mode)}).round(3)

# %% [markdown]
# ML's standard deviations of the subjects are smaller than REML's, because ML does not count what
# estimating the fixed effects uses up. MAP is close to REML: with 180 rows and 18 subjects, wide
# priors have little to say.
#
# Standard errors of standard deviations are rough with 18 subjects. Profile intervals follow the
# shape of the likelihood instead and need not be symmetric:

# %%
reml.confint(method="profile")[["conf_low", "conf_high"]].round(2)

# %% [markdown]
# The fitted lines, with the data. The dashed line is that of the fixed effects, the same for all:

# %%
reml.plot.fitted(figure_kwargs={"figsize": (9, 5.4)})
plt.show()

# %% [markdown]
# ## The posterior, in three ways
#
# By default, the fixed and random effects are integrated out, the covariance parameters are
# sampled, and one draw of the effects is made for each of theirs.

# %%
posterior = model.fit(random_seed=1)
columns = ["mean", "sd", "eti89_lb", "eti89_ub"]
posterior.summary()[columns].round(2)

# %% [markdown]
# Two other ways check it. NUTS samples everything, fixed and random effects included, from the
# model written in PyMC; it shares no code with the default beyond the design matrices and the
# priors. A short run of this notebook, as tests make it, has the default with another seed in its
# place. The Laplace approximation is normal for the logarithms of the standard deviations and
# the transformed correlation, and exact for the effects given these.

# %%
second = {"random_seed": 2} if SMOKE else {"method": "nuts", "random_seed": 1}
checked = model.fit(progressbar=False, **second)
laplace = model.fit(method="laplace", random_seed=1)
fits = {"default": posterior, SECOND: checked, "Laplace": laplace}
columns = ["mean", "eti89_ub"]
pd.concat({name: fit.summary()[columns] for name, fit in fits.items()}, axis=1).round(2)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.6), layout="constrained")
for name, fit in fits.items():
    draws = fit.data["posterior"]
    sds = draws["sd_Subject"].to_numpy().reshape(-1, 2)
    shown = [sds[:, 0], sds[:, 1], draws["cor_Subject"].to_numpy()[:, :, 1, 0].ravel()]
    line = ":" if name == "Laplace" else "-"
    for axis, values, limits in zip(axes, shown, [(0, 60), (0, 15), (-1, 1)], strict=True):
        heights, edges = np.histogram(values, 25, range=limits, density=True)
        axis.plot(0.5 * (edges[1:] + edges[:-1]), heights, line, label=name)
labels = ["sd of intercepts", "sd of slopes", "correlation"]
for axis, label in zip(axes, labels, strict=True):
    axis.set(xlabel=label, yticks=[], ylim=(0, None))
axes[0].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The first two differ by no more than their Monte Carlo errors explain (`mcse_mean` in the full
# `summary()`). Laplace is close, because 18 subjects tell the standard deviations apart from
# zero, but its right tails are too short.
#
# ### Can the draws be trusted?

# %%
print(posterior.diagnostics)

# %%
az.plot_rank_dist(
    posterior.data,
    var_names=["sd_Subject", "sigma"],
    compact=False,
    figure_kwargs={"figsize": (8, 5), "layout": "constrained"},
)
plt.show()

# %% [markdown]
# On the left the densities of the chains lie on top of each other. On the right, the ranks of
# each chain's draws among all draws are compared with those of equal chains; a small p-value
# would say that the chains differ.
#
# ## Beside REML

# %%
table = blm.compare_reml(posterior, reml)
table[["estimate", "std_error", "mean", "sd", "shift", "prior_shift", "flag"]].round(2)

# %%
posterior.plot.reml(reml, col_wrap=3, figure_kwargs={"figsize": (8, 4.6)})
plt.show()

# %% [markdown]
# The fixed effects agree in estimate and width. The standard deviations of the subjects have
# posterior means above their REML estimates: the posterior is skewed to the right, and the mean
# of a skewed distribution lies above its mode. That is no effect of the priors, as `prior_shift`
# shows: they pull the other way, and hardly at all.
#
# ## What shrinkage does to each subject
#
# Two estimates of each subject's line: from their own ten points alone (no pooling, the lines of
# `alone`), and from the model, which also knows the other subjects.

# %%
posterior.plot.shrinkage()
plt.show()

# %%
parts = {
    "own points": alone.coef,
    "posterior mean": posterior.coef()["Subject"],
    "sd of the random effect": posterior.ranef_sd()["Subject"],
}
lines = pd.concat(parts, axis=1)
lines.loc[["309", "310", "335", "337"]].round(1)

# %% [markdown]
# The model moves every line towards the average one, the farther out the more, but not coordinate
# by coordinate. The low intercepts of subjects 309 and 310 are raised, and because the line still
# has to fit the same points, their slopes go down, away from the average. Subject 335 is the only
# one who seems to get faster; ten points against a population that gets slower leave a slope near
# zero.
#
# ## Questions in the words of the question
#
# Whose reaction time rises by more than 15 ms a day, and how sure is that? How probable is it
# that a random subject's slope is negative? Both are averages over draws.

# %%
steep = posterior.hypothesis("Days > 15", scope="coef", group="Subject").table()
steep["probability"].sort_values(ascending=False).head(6).round(2).to_frame().T

# %%
rng = np.random.default_rng(1)
draws = posterior.draws(["beta[Days]", "sd[Subject, Days]"])
new = draws["beta[Days]"] + draws["sd[Subject, Days]"] * rng.standard_normal(len(draws))
print(f"P(slope of a new subject < 0) = {(new < 0).mean():.3f}")

# %% [markdown]
# ## Tables for elsewhere
#
# `tidy` gives one long table in the format of R's broom.mixed, for estimates and posteriors
# alike.

# %%
tidy = posterior.tidy(["fixed", "ran_pars"])
tidy.round(2)

# %%
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "sleepstudy.csv"
    both = pd.concat({"posterior": tidy, "REML": reml.tidy()}, names=["fit"])
    both.reset_index("fit").to_csv(path, index=False)
    print(pd.read_csv(path)[["fit", "group", "term", "estimate", "std_error"]].round(3))

# %% [markdown]
# ## Next
#
# - [Two procedures, five teams](04_teams_fixed_or_random.py): fixed or random, and what it does to
#   standard errors.
# - [The marginal likelihood](../../explanation/marginal_likelihood.md): the one function behind all
#   six.
# - [The collapsed sampler](../../explanation/collapsed_sampler.md): how the default draws are made.
# - [Coming from lme4, brms, statsmodels or Bambi](../../how_to/coming_from.md).
