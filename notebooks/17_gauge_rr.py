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
# # A gauge study: repeatability, reproducibility and three operators
#
# Ten parts are measured by three operators, three times each. How much of what the numbers differ
# by is the parts, and how much is the measuring? Here nobody asks for a mean. The variances are the
# answer, and all three factors are random.
#
# **You will learn** to write a gauge R&R study as a mixed model, to get the published variance
# components from REML, and to say how sure the verdict "%GRR below 30 %" is. **You need** the
# notation of [the lecture on seedlings](01_lecture_seedlings.py).
#
# The data are the example of the reference manual of the automotive industry (AIAG, *Measurement
# Systems Analysis*, 4th edition, 2010), which many textbooks and programs use. Values are
# deviations from a nominal dimension.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pymc as pm
from scipy import stats

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 300, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

measured = {  # trials 1, 2, 3 of ten parts
    "A": [
        [0.29, -0.56, 1.34, 0.47, -0.80, 0.02, 0.59, -0.31, 2.26, -1.36],
        [0.41, -0.68, 1.17, 0.50, -0.92, -0.11, 0.75, -0.20, 1.99, -1.25],
        [0.64, -0.58, 1.27, 0.64, -0.84, -0.21, 0.66, -0.17, 2.01, -1.31],
    ],
    "B": [
        [0.08, -0.47, 1.19, 0.01, -0.56, -0.20, 0.47, -0.63, 1.80, -1.68],
        [0.25, -1.22, 0.94, 1.03, -1.20, 0.22, 0.55, 0.08, 2.12, -1.62],
        [0.07, -0.68, 1.34, 0.20, -1.28, 0.06, 0.83, -0.34, 2.19, -1.50],
    ],
    "C": [
        [0.04, -1.38, 0.88, 0.14, -1.46, -0.29, 0.02, -0.46, 1.77, -1.49],
        [-0.11, -1.13, 1.09, 0.20, -1.07, -0.67, 0.01, -0.56, 1.45, -1.77],
        [-0.15, -0.96, 0.67, 0.11, -1.45, -0.49, 0.21, -0.49, 1.87, -2.16],
    ],
}
parts = pd.Categorical([str(part) for part in range(1, 11)] * 9, map(str, range(1, 11)))
gauge = pd.DataFrame(
    {
        "y": np.ravel(list(measured.values())),
        "part": parts,
        "operator": pd.Categorical(np.repeat(list(measured), 30)),
    }
)
gauge.groupby("operator", observed=True)["y"].agg(["size", "mean"]).round(3)

# %%
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for place, operator in enumerate("ABC"):
    rows = gauge[gauge["operator"] == operator]
    x = rows["part"].cat.codes + 1 + 0.2 * (place - 1)
    axis.plot(x, rows["y"], "o", markersize=3.5, label=operator)
axis.set(xlabel="part", ylabel="measured", xticks=range(1, 11))
axis.legend(frameon=False, title="operator", loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Parts differ much, operators a little: C reads low. Repeated measurements of one part by one
# operator differ too.
#
# ## The model and its words
#
# Trial $k$ of operator $j$ on part $i$:
#
# $$
# \begin{gathered}
# y_{ijk} = \mu + p_i + o_j + (po)_{ij} + e_{ijk}, \\
# p_i \sim N(0, \sigma_p^2), \quad o_j \sim N(0, \sigma_o^2), \quad
# (po)_{ij} \sim N(0, \sigma_{po}^2), \quad e_{ijk} \sim N(0, \sigma_e^2) .
# \end{gathered}
# $$
#
# All are random. Other parts will be measured, and other operators will measure them. The
# interaction has two random factors, so it is random as well. The trade's words for it:
#
# | | variance | what it is |
# |---|---|---|
# | part-to-part (PV) | $\sigma_p^2$ | what is to be measured |
# | repeatability, equipment (EV) | $\sigma_e^2$ | same operator, same part, again |
# | reproducibility, appraiser (AV) | $\sigma_o^2 + \sigma_{po}^2$ | another operator |
# | gauge R&R (GRR) | $\sigma_o^2 + \sigma_{po}^2 + \sigma_e^2$ | the measurement system |
# | total (TV) | GRR + PV | one measurement of one part |
#
# A gauge is judged by $\%GRR = 100\,\sigma_{GRR} / \sigma_{total}$, a ratio of standard deviations.
# The manual's rule: below 10 % is good, above 30 % is not acceptable, between them it depends on
# the use. It also wants $ndc = 1.41\,\sigma_p / \sigma_{GRR}$, the number of distinct categories
# that the gauge tells apart, to be 5 or more.
#
# In the seedlings' notation, $y = X\beta + Zu + e$ with $X$ a column of ones and $Z$ three blocks:

# %%
model = blm.LMM("y ~ 1 + (1 | part) + (1 | operator) + (1 | part:operator)", gauge)
print("X", model.X.shape, " Z", model.Z.shape)
model.effect_labels.to_frame()["group"].value_counts(sort=False).to_frame("columns of Z").T

# %% [markdown]
# ## By analysis of variance
#
# The design is balanced, so the sums of squares have closed forms, and so have the estimates: set
# each mean square equal to its expectation and solve.
#
# | mean square | its expectation |
# |---|---|
# | parts | $\sigma_e^2 + 3\sigma_{po}^2 + 9\sigma_p^2$ |
# | operators | $\sigma_e^2 + 3\sigma_{po}^2 + 30\sigma_o^2$ |
# | part by operator | $\sigma_e^2 + 3\sigma_{po}^2$ |
# | repeated measurements | $\sigma_e^2$ |

# %%
cells = gauge.groupby(["part", "operator"], observed=True)["y"].mean().unstack()
by_part, by_operator, mean = cells.mean(axis=1), cells.mean(axis=0), gauge["y"].mean()
interaction = cells.sub(by_part, axis=0).sub(by_operator, axis=1) + mean
within = gauge.groupby(["part", "operator"], observed=True)["y"].transform("mean")
anova = pd.DataFrame(
    {
        "sum of squares": [
            9 * ((by_part - mean) ** 2).sum(),
            30 * ((by_operator - mean) ** 2).sum(),
            3 * (interaction**2).to_numpy().sum(),
            ((gauge["y"] - within) ** 2).sum(),
        ],
        "df": [9, 2, 18, 60],
    },
    index=["parts", "operators", "part by operator", "repeated"],
)
anova["mean square"] = anova["sum of squares"] / anova["df"]
published = [88.3619, 3.1673, 0.3590, 2.7589]  # sums of squares in the manual
assert np.allclose(anova["sum of squares"], published, atol=5e-5)
anova.round(4)

# %%
ms = anova["mean square"]
negative = (ms["part by operator"] - ms["repeated"]) / 3
print(f"estimated variance of the interaction: {negative:.4f}")

# %% [markdown]
# The estimate of a variance is negative. The custom is to test the interaction, to call it zero
# when it is not significant, and to pool its sum of squares with that of the repeats. The
# components that the manual prints come from the pooled table:

# %%
pooled = anova.loc[["part by operator", "repeated"], ["sum of squares", "df"]].sum()
error = pooled["sum of squares"] / pooled["df"]
components = pd.Series(
    {
        "part": (ms["parts"] - error) / 9,
        "operator": (ms["operators"] - error) / 30,
        "part:operator": 0.0,
        "Residual": error,
    },
    name="variance",
)
components.round(6).to_frame().T

# %% [markdown]
# ## By REML
#
# REML needs no table and no pooling by a test. It looks for the most likely variances that are not
# negative. Here that is the pooled answer:

# %%
reml = model.reml()
reml

# %%
by_reml = reml.varcorr().set_index("group")["vcov"]
print(f"largest difference of the variances: {np.abs(by_reml - components).max():.1e}")
assert np.allclose(by_reml, components, atol=1e-8)
by_reml[components.index].round(6).to_frame().T


# %%
def words(part, operator, both, residual):
    """The quantities of a gauge study from four standard deviations, or draws of them."""
    repeat, reproduce = residual, np.sqrt(operator**2 + both**2)
    grr = np.sqrt(repeat**2 + reproduce**2)
    return {
        "repeatability (EV)": repeat,
        "reproducibility (AV)": reproduce,
        "gauge R&R (GRR)": grr,
        "part-to-part (PV)": part,
        "%GRR": 100 * grr / np.sqrt(grr**2 + part**2),
        "ndc": 1.41 * part / grr,
    }


sds = np.sqrt(by_reml[["part", "operator", "part:operator", "Residual"]])
table = pd.DataFrame(
    {
        "REML": pd.Series(words(*sds)),
        "published": [0.199933, 0.226838, 0.302373, 1.042327, 27.9, 4.861],
    }
)
assert np.allclose(table["REML"], table["published"], rtol=2e-3)
table.round(4)

# %% [markdown]
# These are the published figures. With 27.9 %, just below 30, the gauge may do.
#
# ## How sure is that?
#
# The verdict rests on this one number. But `sd[operator]` is a standard deviation estimated from
# three operators, two degrees of freedom. Its profile interval, from the likelihood
# alone:

# %%
profile = reml.confint(method="profile").loc[lambda t: t.index != "beta[Intercept]"]
profile[["conf_low", "conf_high"]].round(3)

# %% [markdown]
# For operators the upper end is many times the lower one. A standard deviation from $J$ draws of a
# normal distribution is never known better than that. The 95 % interval around an estimate of 1:

# %%
df = np.array([2, 3, 4, 5, 9, 19, 49])
limits = {
    "lower": np.sqrt(df / stats.chi2.ppf(0.975, df)),
    "upper": np.sqrt(df / stats.chi2.ppf(0.025, df)),
}
pd.DataFrame(limits, index=pd.Index(df + 1, name="operators")).T.round(2)

# %% [markdown]
# An interval for %GRR is harder: it is a ratio of sums of variances, one of them on the boundary.
# With draws from a posterior it is no work at all. Every draw holds four standard deviations, and
# the formula is applied to each.

# %%
posterior = model.fit(random_seed=1, **DRAWS)
print(posterior.diagnostics)

# %%
names = [f"sd[{group}, Intercept]" for group in ("part", "operator", "part:operator")]
names.append("sigma")


def of_draws(fit):
    """Draws of the quantities of a gauge study."""
    draws = fit.draws(names)
    return pd.DataFrame(words(*(draws[name] for name in names)))


study = of_draws(posterior)
summary = study.quantile([0.055, 0.5, 0.945]).T
summary.columns = ["5.5 %", "median", "94.5 %"]
summary.insert(0, "REML", table["REML"])
summary.round(2)

# %%
above = (study["%GRR"] > 30).mean()
below = (study["%GRR"] < 10).mean()
print(f"P(%GRR > 30 | data) = {above:.2f}, P(%GRR < 10 | data) = {below:.3f}")

# %% [markdown]
# The published 27.9 % is one value in a wide interval. Whether this gauge is acceptable is not
# known after 90 measurements, because only three people made them.
#
# ## Which prior?
#
# With three operators the prior has a say. First what the default says: every standard deviation
# has a half-t prior with the scale of the response. Here the response varies mostly by parts, so
# that this is much for operators and repeats. What it implies for %GRR before any data:

# %%
rng = np.random.default_rng(1)
scale = gauge["y"].std()
before = words(*(scale * np.abs(rng.standard_t(3, 100_000)) for _ in names))["%GRR"]
print(f"prior: median {np.median(before):.0f} %, P(%GRR > 30) = {(before > 30).mean():.2f}")
model.priors.table()

# %% [markdown]
# A useless gauge is more probable than a good one under that prior. Someone who has used gauges of
# this kind knows better and should say so, for operators above all: their differences have been
# seen before, and are far below those of parts. A half-normal prior puts 95 % below twice its
# scale:

# %%
narrow, measuring = pm.HalfNormal.dist(0.25), ["sd[operator]", "sd[part:operator]", "sigma"]
priors = {
    "operators below 1": {"sd[operator]": pm.HalfNormal.dist(0.5)},
    "operators below 0.5": {"sd[operator]": narrow},
    "all measuring below 0.5": dict.fromkeys(measuring, narrow),
}
grr = {"default": study["%GRR"]}
for name, prior in priors.items():
    grr[name] = of_draws(model.update(priors=prior).fit(random_seed=1, **DRAWS))["%GRR"]

# %% [markdown]
# For comparison, an interval without any prior. In the pooled table the mean squares are
# independent and chi-squared, so that each variance can be drawn from its pivot (a
# generalised confidence interval: Hamada and Weerahandi, 2000, *Journal of Quality Technology* 32,
# 241-253).

# %%
chi2 = {name: rng.chisquare(n, 20_000) for name, n in (("p", 9), ("o", 2), ("e", 78))}
error = pooled["sum of squares"] / chi2["e"]
squares = anova["sum of squares"]
of_operators = np.maximum(squares["operators"] / chi2["o"] - error, 0) / 30
of_parts = np.maximum(squares["parts"] / chi2["p"] - error, 0) / 9
pivot = words(np.sqrt(of_parts), np.sqrt(of_operators), 0.0, np.sqrt(error))["%GRR"]
rows = {**grr, "no prior (pivots)": pd.Series(pivot)}
ends = [0.055, 0.5, 0.945]
comparison = pd.DataFrame({name: x.quantile(ends) for name, x in rows.items()}).T
comparison.columns = ["5.5 %", "median", "94.5 %"]
comparison["P(above 30 %)"] = [(x > 30).mean() for x in rows.values()]
comparison.round(2)

# %%
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
grid = np.linspace(5, 100, 300)
for name in ("default", "operators below 1", "operators below 0.5"):
    axis.plot(grid, stats.gaussian_kde(grr[name])(grid), label=name)
axis.axvspan(10, 30, color="0.9", zorder=0)
axis.axvline(table.loc["%GRR", "REML"], color="black", linewidth=1, label="REML")
axis.set(xlabel="%GRR (grey: depends on the use)", yticks=[], xlim=(5, 100))
axis.set_ylim(0)
axis.spines["left"].set_visible(False)
axis.legend(frameon=False, title="prior of sd[operator]")
plt.show()

# %% [markdown]
# The lower end hardly moves: that the gauge is not good (below 10 %) is what the data say. The
# upper end is the prior's as much as the data's. Which prior is right is a question about
# operators, not about statistics, and it can be argued before the data are seen. What cannot be
# argued is that one number settles it. On half-t and other priors for few groups see Gelman (2006,
# doi:10.1214/06-BA117A).
#
# Prior and posterior of the three variances of measuring, under the default:

# %%
posterior.plot.prior_posterior(names[1:], col_wrap=3, figure_kwargs={"figsize": (9, 2.8)})
plt.show()

# %% [markdown]
# The last two are the data's alone; in the first the prior has its part. The interaction is a case
# for not testing and pooling: its posterior lies close to zero, and there is no need to decide
# whether it is zero. `check.singularity` says so in words:

# %%
print(posterior.check.singularity())

# %% [markdown]
# ## The operators themselves
#
# They are a sample, but one may look at them. Their effects are shrunk, and the interval is about
# the deviation from all operators, whose mean is not known well either:

# %%
posterior.plot.caterpillar("operator", order="label")
plt.show()

# %% [markdown]
# ## What will the next person read?
#
# Part 9 measured once more by operator A, or by somebody new: `target="new"` draws the effect of a
# level that the model has not seen, with all that is uncertain about its variance.

# %%
next_time = pd.DataFrame({"part": ["9", "9"], "operator": ["A", "new"]})
reading = posterior.predict(next_time, target="new", kind="response", random_seed=1)
reading.index = ["part 9, operator A", "part 9, a new operator"]
reading.round(2)

# %% [markdown]
# That is the measurement system in the units of the part: what another person may read off, beyond
# repeating oneself.
#
# ## If the operators were fixed
#
# Where the three are all who ever use the gauge, `operator` is fixed and its interaction with the
# random parts stays random: `y ~ operator + (1 | part) + (1 | part:operator)`. Then there is a
# difference of means to estimate and to correct, and no variance of operators to know:

# %%
only_these = blm.LMM("y ~ operator + (1 | part) + (1 | part:operator)", gauge)
own = only_these.fit(random_seed=1, **DRAWS)
own.contrasts("operator").table()[["mean", "sd", "eti89_lb", "eti89_ub"]].round(3)

# %% [markdown]
# Three operators tell the differences between these three well, and the differences between all
# operators badly. That is the whole of fixed against random.
#
# ## Where each part is destroyed
#
# If measuring destroys the part, each operator gets parts of their own: parts are nested in
# operators, and the effect of a part within an operator is random because parts are. The formula is
# `y ~ 1 + (1 | operator / part)`, and part by operator can no longer be told from parts.
#
# ## Next
#
# - [Two procedures, five teams](04_teams_fixed_or_random.py): when the interaction with a random
#   factor is forgotten.
# - [Default priors](../../explanation/default_priors.md): what they are and how to change them.
# - [Power](../../how_to/power.md): planning the next study, with more operators.
