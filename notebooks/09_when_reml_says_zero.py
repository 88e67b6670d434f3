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
# # When REML says zero
#
# "The fit is singular": REML estimates that batches do not differ at all, or that a slope and an
# intercept are perfectly correlated. Nobody believes that. This notebook shows what such an
# estimate is, why it is common, what goes wrong if it is taken at its word, and what to do and to
# write.
#
# You will learn
#
# - to see a singular fit as a likelihood whose peak lies at the boundary, and to compute how often
#   that happens though the truth is not there;
# - why the mode of a posterior can be zero while most of the posterior is not;
# - three causes (few levels, negative correlation, too many parameters) and how to tell them
#   apart;
# - four cures, what each costs, and how to report.
#
# You need: REML, the idea of a variance component, and that a posterior is a distribution.

# %%
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## A zero
#
# Six batches with five yields each, simulated by Box and Tiao (1973) for this purpose: the classic
# of lme4's manual.

# %%
dyes = blm.load_dataset("Dyestuff2")
formula = "Yield ~ 1 + (1 | Batch)"
model = blm.LMM(formula, dyes)
reml = model.reml()
reml

# %% [markdown]
# ## Where the zero comes from
#
# With equal numbers $n$ of rows in each of $k$ batches, REML is a formula of two mean squares.
# That between batches has the expectation $\sigma^2 + n \tau^2$, that within has $\sigma^2$. Their
# difference over $n$ estimates $\tau^2$, and nothing keeps it from being negative. REML returns
# the difference where it is positive, and zero where it is not.


# %%
def mean_squares(data):
    """Mean squares between and within batches, and the number of rows of each."""
    batches = data.groupby("Batch", observed=True)["Yield"]
    n, k = len(data) // batches.ngroups, batches.ngroups
    within = batches.var().mean()
    return n * batches.mean().var(), within, n, k


rows = {}
for name in ("Dyestuff", "Dyestuff2"):
    data = blm.load_dataset(name)
    between, within, n, _ = mean_squares(data)
    rows[name] = {
        "between": between,
        "within": within,
        "(between - within) / n": (between - within) / n,
        "REML variance": blm.LMM(formula, data).reml().sds["Batch"]["Intercept"] ** 2,
    }
rows = pd.DataFrame(rows).T
print(rows.round(3).to_string())
worst = (rows["(between - within) / n"].clip(lower=0) - rows["REML variance"]).abs()
assert (worst <= 1e-6 * rows["within"]).all()
print(
    "\nREML is the larger of that and zero; "
    f"largest relative difference {(worst / rows['within']).max():.0e}"
)

# %% [markdown]
# So zero means: batch means differ *less* than their rows would make them differ by chance alone.
#
# ## The likelihood at the boundary
#
# Hold the standard deviation between batches at a value, maximise over everything else, and note
# the restricted likelihood: the profile. `fixed=` holds a parameter.


# %%
def profile(data, grid):
    """Restricted log likelihood at each standard deviation between batches."""
    held = [blm.LMM(formula, data, fixed={"sd[Batch]": float(sd)}).reml().loglik for sd in grid]
    return np.array(held)


grid = np.linspace(0.005, 2, 8 if SMOKE else 40)
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained", sharey=True)
for axis, name in zip(axes, ("Dyestuff", "Dyestuff2"), strict=True):
    data = blm.load_dataset(name)
    fit = blm.LMM(formula, data).reml()
    axis.plot(grid, profile(data, grid * fit.sigma) - fit.loglik)
    axis.axhline(-1.92, color="grey", linestyle="--", linewidth=1)
    axis.axvline(fit.sds["Batch"]["Intercept"] / fit.sigma, color="C1", linestyle=":")
    axis.set(title=name, xlabel="sd between batches / residual sd", ylim=(-4, 0.2))
axes[0].set_ylabel("log likelihood less its maximum")
plt.show()

# %% [markdown]
# Left an estimate inside, right one at the boundary (dotted). The curve on the right falls from
# zero on, and slowly: everything above the dashed line, a drop of 1.92, is in the 95 % profile
# interval. **Zero is where the peak is, not where the likelihood is.**

# %%
intervals = reml.confint("profile")
intervals.loc[["sd[Batch, Intercept]"], ["conf_low", "conf_high", "lower_at_bound"]].round(2)

# %% [markdown]
# A Wald interval does not exist here: the likelihood has no curvature of the right kind at a
# boundary. The profile interval does, and it is wide: its upper end is not small beside the
# residual standard deviation.
#
# ## How often does that happen?
#
# For balanced data the answer is exact. The ratio of mean squares over its expectation has an F
# distribution, so
#
# $$
# P(\text{REML} = 0) = P\!\left(F_{k-1,\,k(n-1)} < \frac{1}{1 + n \tau^2 / \sigma^2}\right).
# $$


# %%
def p_zero(k, n, icc):
    """Probability that REML estimates zero, for an intraclass correlation."""
    return f_distribution.cdf((1 - icc) / (1 - icc + n * icc), k - 1, k * (n - 1))


table = pd.DataFrame(
    {icc: [p_zero(k, 5, icc) for k in (4, 6, 10, 20, 50)] for icc in (0, 0.05, 0.1, 0.2, 0.4)},
    index=pd.Index([4, 6, 10, 20, 50], name="batches of 5"),
)
table.columns.name = "intraclass correlation"
table.map("{:.0%}".format)

# %% [markdown]
# With six batches and a true intraclass correlation of 0.1, one experiment in three has a zero.
# Check the formula by simulation, with a planned study (the design of Dyestuff2, a truth, many
# data sets, one refit each):

# %%
TRUTH = {"Intercept": 5.0, "sd[Batch]": 1.2, "sigma": 3.6}
study = blm.LMM.planned(formula, dyes, TRUTH)
N = 100 if SMOKE else 1500
simulated = study.power("Intercept", N, random_seed=1, progressbar=False)
share = simulated.table()["singular"].iloc[0] / N
icc = TRUTH["sd[Batch]"] ** 2 / (TRUTH["sd[Batch]"] ** 2 + TRUTH["sigma"] ** 2)
error = np.sqrt(share * (1 - share) / N)
exact = p_zero(6, 5, icc)
print(f"True intraclass correlation {icc:.2f}, six batches of five.")
print(
    f"Singular: {share:.3f} of {N} data sets (Monte Carlo error {error:.3f}); exactly {exact:.3f}."
)
assert abs(share - exact) < 4 * error

# %% [markdown]
# Zeros are not rare accidents. With few batches they are what an honest estimator does half of the
# time when little is there. The median of the estimator is then too low, though the uncensored
# difference of mean squares is unbiased.
#
# ## The mode is at zero, the posterior is not
#
# The posterior has the same likelihood times a prior. Under the default prior, half-t with its
# peak at zero, its mode is zero as well:

# %%
post = model.fit(random_seed=1, **DRAWS)
post.plot.prior_posterior("sd[Batch, Intercept]")
plt.show()

# %%
sd = post.draws({"sd": "sd[Batch]", "ratio": "sd[Batch] / sigma"})
low, high = sd["sd"].quantile([0.025, 0.975])
print(f"mode (MAP)                {model.map().sds['Batch']['Intercept']:.2f}")
print(f"median                    {sd['sd'].median():.2f}")
print(f"mean                      {sd['sd'].mean():.2f}")
print(f"95 % interval             {low:.2f} to {high:.2f}")
for bound in (0.05, 0.1, 0.25):
    print(f"P(sd > {bound:.2f} residual sd)  {(sd['ratio'] > bound).mean():.2f}")

# %% [markdown]
# The picture is highest at zero and most of its area is elsewhere. A mode is a point of highest
# density, and says nothing of how much mass is near it. It also depends on the scale: the mode of
# the logarithm of the same posterior is far from zero, while the median and the interval are the
# same statement on each scale. That is why this package reports no mode of a standard deviation
# unless you ask for it.
#
# `check.singularity` has the numbers that matter:

# %%
print(post.check.singularity())

# %% [markdown]
# `support` is the likelihood at zero over its maximum, everything else integrated out; it depends
# on no prior of the standard deviation.
#
# ## What goes wrong downstream
#
# If zero is put into all that follows, the fit is that of a model without batches: thirty
# independent rows.

# %%
pooled = blm.LMM("Yield ~ 1", dyes)
columns = ["estimate", "std_error", "df", "conf_low", "conf_high"]
mean = {
    "REML, Satterthwaite": reml.fixef()[columns].iloc[0],
    "no batches at all": pooled.reml().fixef()[columns].iloc[0],
    "REML, Kenward-Roger": reml.with_df("kenward-roger").fixef()[columns].iloc[0],
    "cluster-robust": reml.robust("Batch").fixef()[columns].iloc[0],
}
summary = post.fixef(prob=0.95).iloc[0]
mean["posterior"] = pd.Series(
    [summary["mean"], summary["sd"], np.nan, *summary.filter(like="95")], index=columns
)
pd.DataFrame(mean).T.astype(float).round(3)

# %% [markdown]
# - The first two rows are equal. The standard error has no variance between batches in it, and the
#   degrees of freedom count rows, though six batches is what there is.
# - Kenward and Roger's method keeps the degrees of freedom of six batches, as its expected
#   information does not know that the estimate is zero. Its standard error is still that of the
#   pooled fit.
# - The robust standard error is even smaller here: batch means *do* lie closer than by chance.
# - The posterior averages over standard deviations that are possible.
#
# Batches are pooled completely, and known without error as it were:

# %%
print(reml.ranef(interval=True)["Batch"].head(2).round(2).to_string())
print(post.ranef(prob=0.95)["Batch"].head(2).round(2).to_string())

# %% [markdown]
# How bad is it? Of the simulated experiments above, count how often the 95 % interval of the mean
# covers the truth, separately for singular and other fits. In singular ones Satterthwaite's
# degrees of freedom are those of the rows.

# %%
runs = simulated.runs()
zero = np.isclose(runs["df"], len(dyes) - 1)
assert zero.sum() == round(share * N)
half = t_distribution.ppf(0.975, runs["df"]) * runs["std_error"]
covered = (runs["estimate"] - TRUTH["Intercept"]).abs() < half
coverage = covered.groupby(np.where(zero, "singular", "not singular")).agg(["size", "mean"])
coverage.columns = ["data sets", "coverage"]
coverage["Monte Carlo error"] = np.sqrt(
    coverage["coverage"] * (1 - coverage["coverage"]) / coverage["data sets"]
)
coverage["sd of estimates"] = (
    runs["estimate"].groupby(np.where(zero, "singular", "not singular")).std()
)
coverage["mean std_error"] = (
    runs["std_error"].groupby(np.where(zero, "singular", "not singular")).mean()
)
coverage.round(3)

# %% [markdown]
# In singular data sets the estimate of the mean varies as much as in others, for the mean of a
# balanced design does not depend on the spread between batches. Its standard error is smaller than
# that variation. Intervals of the others are somewhat too wide, and averaged over all it looks
# fine. Nobody who holds one data set has the average.
#
# ## Three causes
#
# ### Too few levels
#
# That was the table above: six batches of five cannot tell a small variance from none. More rows
# of each batch help, and so do more batches:

# %%
pd.DataFrame(
    {
        "6 batches of 5": [p_zero(6, 5, 0.1)],
        "6 batches of 10": [p_zero(6, 10, 0.1)],
        "6 batches of 20": [p_zero(6, 20, 0.1)],
        "12 batches of 5": [p_zero(12, 5, 0.1)],
        "24 batches of 5": [p_zero(24, 5, 0.1)],
    },
    index=["P(REML = 0) at intraclass correlation 0.1"],
).map("{:.0%}".format)

# %% [markdown]
# Against a zero, twice as many rows of each do as much as twice as many batches. The degrees of
# freedom of the mean are those of the batches, so if both cost the same, take batches.
#
# ### Rows of a group that are less alike than strangers
#
# Where members of a group compete (litters for milk, plants for light, questions of one test for
# time), rows of a group may be correlated *negatively*. A variance cannot express that, as a
# random effect only adds to the covariance; so it is estimated at zero. Compound symmetry of the
# residuals can: `residual="cs(1 | Batch)"` has a correlation from -1 / (n - 1) on, and is the
# random intercept where the correlation is positive.

# %%
symmetric = blm.LMM("Yield ~ 1", dyes, residual="cs(1 | Batch)")
cs = symmetric.reml()
interval = cs.confint("profile").loc["cor_residual", ["conf_low", "conf_high"]].astype(float)
correlation = cs.varcorr().set_index("term").loc["cor_residual", "sdcor"]
print(
    f"correlation within batches {correlation:.3f}, 95 % profile interval "
    f"{interval.iloc[0]:.2f} to {interval.iloc[1]:.2f}"
)
print(f"restricted log likelihood {cs.loglik:.3f}; with a variance held at zero {reml.loglik:.3f}")
within_batches = symmetric.fit(random_seed=1, **DRAWS).hypothesis("cor_residual < 0")
print(
    "posterior probability of a negative correlation "
    f"{within_batches.table()['probability'].iloc[0]:.2f}"
)

# %% [markdown]
# Negative, and compatible with zero and with positive values. So these batches do not compete
# beyond what chance does. If the interval lay below zero, the random intercept would be the wrong
# model, and its zero the symptom. Then keep `cs`, and ask how the design makes rows repel each
# other.
#
# ### More parameters than the groups can tell
#
# Six blocks of oats, and a slope of nitrogen for each. Two standard deviations and a correlation,
# from six points:

# %%
oats = blm.load_dataset("Oats")
slopes = blm.LMM("Q('yield') ~ Variety + nitro + (nitro | Block)", oats)
reml_slopes = slopes.reml()
print(reml_slopes.check.singularity())

# %% [markdown]
# A correlation of one is a zero in disguise: the smaller principal component of the covariance
# matrix has none of the variance (lme4's `rePCA`). The blocks' lines fan out from one point, says
# the fit. What does the posterior say?

# %%
post_slopes = slopes.fit(random_seed=1, **DRAWS)
post_slopes.plot.prior_posterior(["sd[Block, nitro]", "cor[Block, Intercept, nitro]"])
plt.show()

# %%
found = post_slopes.check.singularity()
print(found.table.round(2).to_string())
print()
print(*(textwrap.fill(message, 88) for message in found.messages), sep="\n")

# %% [markdown]
# Any correlation is possible, because the slopes hardly differ, and what hardly differs has no
# correlation to speak of. A correlation of one was not found; it is what maximisation returns
# where there is nothing to find.
#
# ## Four cures
#
# ### 1. Keep it, and say so
#
# Nothing has failed. Fixed effects are still unbiased. The design has batches, so the model has.
# Take degrees of freedom that respect the design (`with_df("kenward-roger")`), profile intervals
# for the variance, and report that the estimate is at the boundary.
#
# ### 2. Simplify, where the term is not part of the design
#
# A random slope that one tried may go. Compare with the model without it:

# %%
reml_slopes.ranova()[["n_parameters", "loglik", "chisq", "p_value", "p_boundary"]].round(3)

# %% [markdown]
# For a single variance the distribution of the test under zero is known exactly; `exact_lrt`
# simulates it.

# %%
blm.exact_lrt(pooled.reml(), reml, random_seed=1).round(3)

# %%
print(f"exactly: P(statistic = 0 | no variance) = {p_zero(6, 5, 0.0):.3f}")

# %% [markdown]
# `p_zero` is the share of data sets without any variance in which the statistic is zero: the
# formula above at a correlation of zero. That a test cannot reject is no evidence that there is no
# variance. With six batches it would hardly ever reject. Removing `(1 | Batch)` because of it
# makes thirty independent rows of six batches, and is the error of the section before.
#
# ### 3. A prior that avoids the boundary
#
# Chung and others (2013) multiply the likelihood by a gamma(2) density with a rate next to zero,
# that is by the standard deviation itself. The product vanishes at zero, so its mode is positive.
# It is the default of R's blme. Here it is a prior and `map()`; the other priors are flat, so that
# the rest is REML.

# %%
avoid = blm.LMM(formula, dyes, priors="flat").update(priors={"sd[Batch]": "gamma(2, 0.0001)"})
avoided = avoid.map()
avoided

# %% [markdown]
# It gives a point away from zero (about one standard error, as Chung and others show), and a
# standard error of the mean with something of the batches in it. It costs nothing. The number
# itself is a convention: the peak of $\tau$ times the likelihood. With a covariance matrix of
# slopes, the same with an LKJ prior that keeps correlations from one:

# %%
gentle = slopes.update(priors={"sd[Block]": "gamma(2, 0.0001)", "cor[Block]": "lkj(2)"})
print(gentle.map().varcorr()[["group", "term", "term_2", "sdcor"]].round(2).to_string())

# %% [markdown]
# ### 4. The whole posterior
#
# It needs no point. But with six batches the prior speaks, so show how much:

# %%
PRIORS = {
    "HalfStudentT(3, 3.7), default": None,
    "Exponential, mean 3.7": "exponential(0.27)",
    "HalfNormal(1)": "normal(0, 1)",
    "HalfNormal(10)": "normal(0, 10)",
    "gamma(2, 0.1), avoids zero": "gamma(2, 0.1)",
}
none = pooled.fit(random_seed=1, **DRAWS)
rows = {}
for name, prior in PRIORS.items():
    own = {} if prior is None else {"sd[Batch]": prior}
    fit = post if prior is None else model.update(priors=own).fit(random_seed=1, **DRAWS)
    of_sd = fit.draws({"sd": "sd[Batch]"})["sd"]
    of_mean = fit.fixef(prob=0.95).iloc[0]
    rows[name] = {
        "sd: median": of_sd.median(),
        "sd: 97.5 %": of_sd.quantile(0.975),
        "mean: sd": of_mean["sd"],
        "mean: low": of_mean.filter(like="lb").iloc[0],
        "mean: high": of_mean.filter(like="ub").iloc[0],
        "Bayes factor for no batches": blm.bayes_factor(none, fit).value,
    }
sensitivity = pd.DataFrame(rows).T
sensitivity.round(2)

# %%
print(post.check.sensitivity())

# %% [markdown]
# The median of the standard deviation moves with the prior, by a factor. The interval of the mean
# moves less. The Bayes factor for no batches moves most: nearly one under a narrow prior, and the
# larger the more mass a prior has on large values, which the data exclude. It says what these data
# make of each prior, not whether batches differ.
#
# ## What to report
#
# Not: "the variance between batches was zero". Not: "batch was dropped because the model did not
# converge" (it did). Rather:

# %%
upper = intervals.loc["sd[Batch, Intercept]", "conf_high"]
kr = reml.with_df("kenward-roger").fixef().iloc[0]
print(
    textwrap.fill(
        f"The REML estimate of the standard deviation between the {len(reml.ranef()['Batch'])} "
        f"batches is zero (singular fit; 95 % profile interval 0 to {upper:.1f}), against a "
        f"residual standard deviation of {reml.sigma:.1f}. "
        f"The mean yield is {kr['estimate']:.1f} (95 % CI "
        f"{kr['conf_low']:.1f} to {kr['conf_high']:.1f}, Kenward-Roger, {kr['df']:.0f} df).",
        88,
    )
)
print()
wide, narrow = sensitivity["sd: median"].max(), sensitivity["sd: median"].min()
print(
    textwrap.fill(
        "Bayesian: the posterior median of the standard deviation between batches is "
        f"{sd['sd'].median():.1f} (95 % interval {low:.2f} to {high:.1f}); under "
        f"{len(PRIORS) - 1} other priors the median was between {narrow:.1f} and {wide:.1f}. "
        f"The mean yield is {summary['mean']:.1f} ({summary.filter(like='lb').iloc[0]:.1f} to "
        f"{summary.filter(like='ub').iloc[0]:.1f}).",
        88,
    )
)

# %% [markdown]
# ## What to keep
#
# - Zero is the place of a peak. Look at the interval.
# - It happens often with few levels; the formula above, or `LMM.planned(...).power()`, says how
#   often in your design.
# - Standard errors and degrees of freedom after a zero are those of a model without groups.
# - Try `cs` once, to see whether groups repel.
# - What is in the design stays in the model. What was tried may go.
#
# ## Next
#
# - [Reporting uncertainty](08_reporting_uncertainty.py): all intervals side by side, and their
#   coverage.
# - [Crossed and nested factors](10_crossed_and_nested.py).
# - [Diagnosing a fit](../../how_to/diagnose.md) and
#   [small samples](../../how_to/small_samples.md).
#
# ## References
#
# - G. E. P. Box, G. C. Tiao (1973). *Bayesian Inference in Statistical Analysis*. Addison-Wesley.
#   [doi:10.1002/9781118033197](https://doi.org/10.1002/9781118033197)
# - Y. Chung, S. Rabe-Hesketh, V. Dorie, A. Gelman, J. Liu (2013). A nondegenerate penalized
#   likelihood estimator for variance parameters in multilevel models. *Psychometrika* 78, 685–709.
#   [doi:10.1007/s11336-013-9328-2](https://doi.org/10.1007/s11336-013-9328-2)
# - C. M. Crainiceanu, D. Ruppert (2004). Likelihood ratio tests in linear mixed models with one
#   variance component. *Journal of the Royal Statistical Society B* 66, 165–185.
#   [doi:10.1111/j.1467-9868.2004.00438.x](https://doi.org/10.1111/j.1467-9868.2004.00438.x)
