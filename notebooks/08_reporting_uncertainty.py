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
# # Reporting uncertainty
#
# Six rails, three measurements of each. How well is the mean known, how well the spread between
# rails? There are at least eight intervals to choose from, and they do not agree. This notebook
# puts them side by side, says why they differ, counts by simulation which ones cover, and writes
# the sentences for a paper.
#
# You will learn
#
# - what Wald, profile, bootstrap and posterior intervals assume, and where that fails;
# - which degrees of freedom to take with few groups;
# - to check coverage in your own design, with a Monte Carlo error beside it;
# - the difference between not knowing a mean and not knowing the next measurement;
# - what to write, what not to write, and how many digits.
#
# You need: REML, a confidence interval and a credible interval as ideas.

# %%
import os
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The data and two fits
#
# Travel times of ultrasound in railway rails, in nanoseconds above a common value. Rails are a
# sample of all rails, so they are a random effect.

# %%
rail = blm.load_dataset("Rail")
formula = "travel ~ 1 + (1 | Rail)"
model = blm.LMM(formula, rail)
reml = model.reml()
post = model.fit(random_seed=1, **DRAWS)
reml

# %%
reml.plot.caterpillar()
plt.show()

# %% [markdown]
# ## Four ways to an interval
#
# All at 95 %.

# %%
N_BOOT = 40 if SMOKE else 1000
ends = ["conf_low", "conf_high"]
intervals = {
    "Wald": reml.confint("wald"),
    "profile": reml.confint("profile")[ends],
    "bootstrap": reml.confint("bootstrap", draws=N_BOOT, random_seed=1, progressbar=False),
}
summary = post.summary(prob=0.95)
intervals["posterior"] = summary.filter(like="eti95").set_axis(ends, axis=1)
side = pd.concat(intervals).swaplevel().astype(float)
side = side.sort_index(level=0, sort_remaining=False)
side["width"] = side["conf_high"] - side["conf_low"]
side.round(2)

# %%
parameters = side.index.get_level_values(0).unique()
figure, axes = plt.subplots(1, 3, figsize=(9, 2.4), layout="constrained", sharey=True)
for axis, parameter in zip(axes, parameters, strict=True):
    part = side.loc[parameter].loc[list(intervals)]
    axis.hlines(range(len(part)), part["conf_low"], part["conf_high"], linewidth=2)
    axis.axvline(reml.summary().loc[parameter, "estimate"], color="grey", linestyle=":")
    axis.set(title=parameter, yticks=range(len(part)), yticklabels=part.index)
axes[0].invert_yaxis()
plt.show()

# %% [markdown]
# The dotted line is the REML estimate. The picture of the posterior with the REML estimate and its
# Wald interval is a verb:

# %%
post.plot.reml(reml, labels="sd[Rail, Intercept]", prob=0.95)
plt.show()

# %% [markdown]
# ### Why they differ
#
# | interval | takes as true | fails |
# |---|---|---|
# | Wald, fixed effects | the standard error, t distributed | few groups, singular fits |
# | Wald, sd | the logarithm is normal | estimates near zero |
# | profile | likelihood ratios are chi-squared | few groups; of ML for fixed effects |
# | bootstrap percentiles | the estimate | bias, estimates at the boundary |
# | posterior | the prior | a prior that you would not defend |
#
# Read the table with these in mind. The bootstrap of the standard deviation between rails lies
# lower than the others: it simulates from the estimate, and the estimates of these data sets are
# skewed, with a long way down. Percentiles copy the skew where they should mirror it. The profile
# of the mean is narrower than Wald's: it does not know that six rails leave five degrees of
# freedom. The posterior of a standard deviation has its long tail upwards, where the likelihood
# has it.
#
# ## Fixed effects: which standard error, which degrees of freedom

# %%
columns = ["estimate", "std_error", "df", *ends]
ways = {
    "Satterthwaite": reml.fixef(),
    "Kenward-Roger": reml.fixef(df="kenward-roger"),
    "rows less coefficients": reml.fixef(df="residual"),
    "normal (asymptotic)": reml.fixef(df="asymptotic"),
    "cluster-robust CR2": reml.robust("Rail").fixef(),
    "cluster-robust CR0, normal": reml.robust("Rail", "CR0", df="asymptotic").fixef(),
}
pd.DataFrame({name: table.iloc[0][columns] for name, table in ways.items()}).T.astype(float).round(
    2
)

# %% [markdown]
# The first two agree, as they do in balanced designs: five degrees of freedom, one less than
# rails. Counting rows gives seventeen. CR2 with its degrees of freedom equals them here too: in a
# balanced design with one mean, whole-cluster residuals carry the same information. CR0 with a
# normal distribution is what "robust standard errors" often means in software, and is for many
# clusters.
#
# ## Does 95 % mean 95 %?
#
# Theory says where these methods are exact for many groups. With six, count. Simulate data sets of
# this design from a known truth, make every interval in each, and see how often it holds the
# truth. The truth has equal standard deviations between and within rails, a harder case than these
# rails.

# %%
TRUTH = {"mean": 66.0, "sd": 4.0, "sigma": 4.0}
N = 12 if SMOKE else 400
GROUPS, ROWS = 6, 3
Z95 = 1.959964


def balanced_bootstrap(fit, draws, rng):
    """REML standard deviations between groups of data sets simulated from a fit.

    With equal rows per group they follow from two mean squares, whose distributions are known,
    so that no data set has to be simulated or refitted.
    """
    sd, sigma = fit.sds["Rail"]["Intercept"], fit.sigma
    of_groups, of_rows = GROUPS - 1, GROUPS * (ROWS - 1)
    between = (sigma**2 + ROWS * sd**2) * rng.chisquare(of_groups, draws) / of_groups
    within = sigma**2 * rng.chisquare(of_rows, draws) / of_rows
    return np.sqrt(np.maximum(between - within, 0) / ROWS)


# %% [markdown]
# The bootstrap of four hundred data sets would take hundreds of thousands of refits. In this
# balanced design it has a closed form, and refits by the package have to agree with it:

# %%
closed = np.quantile(balanced_bootstrap(reml, 200_000, np.random.default_rng(1)), [0.25, 0.75])
refits = reml.bootstrap(N_BOOT, random_seed=2, progressbar=False)["sd[Rail, Intercept]"]
print(f"quartiles by the closed form {closed.round(1)}")
print(f"quartiles of {N_BOOT} refits   {refits.quantile([0.25, 0.75]).to_numpy().round(1)}")
below = (refits.to_numpy()[:, None] < closed).mean(axis=0)
assert (np.abs(below - [0.25, 0.75]) < 4 * np.sqrt(0.1875 / N_BOOT)).all()

# %% [markdown]
# For the mean of such a design, the percentile bootstrap is estimate ± 1.96 standard errors, so it
# is the row "normal".


# %%
def intervals_of(data, seed):
    """All intervals of the mean and of the standard deviation between rails."""
    now = model.update(data=data)
    fit = now.reml()
    profiles = fit.confint("profile", kinds=("beta", "sd"))[ends].astype(float)
    drawn = now.fit(draws=250, chains=2, random_seed=seed).data["posterior"]
    estimate, error = fit.fixef().iloc[0][["estimate", "std_error"]]
    boot = balanced_bootstrap(fit, 2000, np.random.default_rng(seed))
    quantiles = [0.025, 0.975]
    found = {
        ("mean", "Satterthwaite"): fit.fixef().iloc[0][ends],
        ("mean", "Kenward-Roger"): fit.fixef(df="kenward-roger").iloc[0][ends],
        ("mean", "rows less coefficients"): fit.fixef(df="residual").iloc[0][ends],
        ("mean", "normal, bootstrap"): (estimate - Z95 * error, estimate + Z95 * error),
        ("mean", "cluster-robust CR2"): fit.robust("Rail").fixef().iloc[0][ends],
        ("mean", "profile (ML)"): profiles.iloc[0],
        ("mean", "posterior"): np.quantile(drawn["beta"], quantiles),
        ("sd", "Wald, logarithm"): fit.confint("wald").loc["sd[Rail, Intercept]"],
        ("sd", "profile (REML)"): profiles.iloc[1],
        ("sd", "bootstrap percentiles"): np.quantile(boot, quantiles),
        ("sd", "posterior"): np.quantile(drawn["sd_Rail"], quantiles),
    }
    return {key: np.asarray(ends_of, dtype=float) for key, ends_of in found.items()}


rng = np.random.default_rng(20101)
place = rail["Rail"].cat.codes.to_numpy()
all_intervals = []
for i in range(N):
    travel = TRUTH["mean"] + TRUTH["sd"] * rng.standard_normal(GROUPS)[place]
    travel += TRUTH["sigma"] * rng.standard_normal(len(rail))
    all_intervals.append(intervals_of(rail.assign(travel=travel), seed=i))

# %%
rows = {}
for key in all_intervals[0]:
    limits = np.array([found[key] for found in all_intervals])
    low, high = limits.T
    truth = TRUTH[key[0]]
    exists = np.isfinite(limits).all(axis=1)
    share = float(((low <= truth) & (truth <= high)).mean())
    rows[key] = {
        "coverage": share,
        "Monte Carlo error": np.sqrt(max(share * (1 - share), 0.05 * 0.95) / N),
        "truth below": float((truth < low).mean()),
        "truth above": float((truth > high).mean()),
        "median width": np.median((high - low)[exists]),
        "no interval": int((~exists).sum()),
    }
coverage = pd.DataFrame(rows).T
if not SMOKE:
    assert (coverage.loc["mean", "coverage"][["Satterthwaite", "Kenward-Roger"]] > 0.92).all()
    assert coverage.loc[("mean", "normal, bootstrap"), "coverage"] < 0.93
    assert coverage.loc[("sd", "bootstrap percentiles"), "truth above"] > 0.08
print(f"{N} data sets of {GROUPS} groups of {ROWS} rows")
coverage.round(3)

# %% [markdown]
# Read the column of errors first: two methods that differ by less than twice that are not told
# apart. In a full run of this notebook, of 400 data sets, the pattern is this.
#
# - *Mean.* Intervals that count rows, or take the normal distribution, hold the truth too seldom;
#   so does the profile, which is of ML. Methods with the degrees of freedom of the groups are near
#   95 %.
# - *Standard deviation.* Misses are not equal on both sides. Where the bootstrap misses, the truth
#   is above: its intervals lie too low. Where REML is zero the Wald interval does not exist ("no
#   interval" counts as a miss).
# - *Posterior.* Nothing obliges a credible interval to have this coverage for one given truth.
#   With default priors it comes near, which is a property worth having. For truths drawn from the
#   prior its coverage is exact; `model.check_calibration()` tests that.
#
# ## What a posterior can say beside an interval
#
# A confidence interval has no probability of holding the truth once it is computed. A posterior
# does, and for any statement:

# %%
statements = post.hypothesis(
    ["Intercept > 50", "sd[Rail] > 20", "sd[Rail] > 5 * sigma", "sd[Rail] / sigma > 3"]
)
statements.table()[["probability", "prior_odds", "posterior_odds"]].astype(float).round(3)

# %% [markdown]
# A probability of 1 means that all draws agree, not certainty. Report it as greater than the
# largest value that the number of draws can tell:

# %%
draws = post.data["posterior"].sizes["chain"] * post.data["posterior"].sizes["draw"]
print(
    f"{draws} draws: write 'greater than {1 - 1 / draws:.4f}', or more soberly 'greater than 0.99'"
)

# %% [markdown]
# ## The mean is not the next measurement
#
# Four questions with one estimate and four uncertainties:

# %%
new = pd.DataFrame({"Rail": ["another"]})
first = pd.DataFrame({"Rail": [rail["Rail"].cat.categories[0]]})
questions = {
    "the mean of all rails": post.predict(new, target="average", prob=0.95, random_seed=1),
    "the mean of another rail": post.predict(new, target="new", prob=0.95, random_seed=1),
    "a measurement of another rail": post.predict(
        new, target="new", kind="response", prob=0.95, random_seed=1
    ),
    "a measurement of rail " + str(first.iloc[0, 0]): post.predict(
        first, kind="response", prob=0.95, random_seed=1
    ),
}
table = pd.concat({name: part.iloc[0] for name, part in questions.items()}, axis=1).T.astype(float)
table.round(1)

# %% [markdown]
# The first row is uncertainty of a *parameter*: more rails make it smaller. The second and third
# are mostly *variation*: more rails make them better known, not narrower. Error bars in a figure
# have to say which they are. The usual mistake is to show the first and let readers take it for
# the third.
#
# ## How many digits
#
# Digits beyond the uncertainty are noise. `model_table` keeps `digits=` significant digits of the
# standard error, and gives all numbers of a row the same decimals. Do not round before you
# compute. A posterior has also Monte Carlo error, the column `mcse_mean`, and a last digit that it
# does not support should go. Decimals for two digits of the sd, and decimals that the draws
# support:

# %%
check = summary[["mean", "sd", "mcse_mean"]].copy()
check["of the sd"] = [max(0, 1 - int(np.floor(np.log10(s)))) for s in check["sd"]]
check["supported"] = [max(0, -int(np.ceil(np.log10(2 * error)))) for error in check["mcse_mean"]]
check.round(3)

# %% [markdown]
# Where the draws support fewer decimals than one wants to print, `post.extend(draws)` adds draws.
#
# ## The table

# %%
kr = reml.with_df("kenward-roger")
blm.model_table(
    {"REML": reml, "Posterior": post},
    level=0.95,
    format="html",
    labels={"Intercept": "Mean travel time"},
    caption="Travel time of ultrasound in rails (ns)",
)

# %% [markdown]
# Its footnotes are the caption: which interval, at which level, by which method. They come with
# the table, so they cannot be forgotten.
#
# ## The words
#
# For the **text**, made from the fits. Copy the form, not the figures:

# %%
fixed = kr.fixef().iloc[0]
profile = intervals["profile"].loc["sd[Rail, Intercept]"].astype(float)
row = summary.loc["beta[Intercept]"]
spread = summary.loc["sd[Rail, Intercept]"]
wide = questions["a measurement of another rail"].iloc[0].filter(like="95")

print(
    textwrap.fill(
        f"Likelihood: The mean travel time was {fixed['estimate']:.0f} ns (95 % confidence "
        f"interval {fixed['conf_low']:.0f} to {fixed['conf_high']:.0f}; REML, Kenward-Roger, "
        f"{fixed['df']:.0f} degrees of freedom). Rails differed with a standard deviation of "
        f"{reml.sds['Rail']['Intercept']:.0f} ns (95 % profile interval {profile.iloc[0]:.0f} to "
        f"{profile.iloc[1]:.0f}), measurements of one rail with {reml.sigma:.1f} ns.",
        88,
    )
)
print()
print(
    textwrap.fill(
        f"Bayesian: The mean travel time was {row['mean']:.0f} ns (posterior mean; 95 % credible "
        f"interval {row['eti95_lb']:.0f} to {row['eti95_ub']:.0f}). Rails differed with a standard "
        f"deviation of {spread['mean']:.0f} ns ({spread['eti95_lb']:.0f} to "
        f"{spread['eti95_ub']:.0f}). A single measurement of another rail is expected between "
        f"{wide.iloc[0]:.0f} and {wide.iloc[1]:.0f} ns with probability 95 %.",
        88,
    )
)

# %% [markdown]
# For the **methods section**, or the supplement where that is too long: what was done, written by
# the fit itself, with versions, priors and diagnostics.

# %%
print(textwrap.fill(post.methods_paragraph(), 88))

# %%
print(textwrap.fill(kr.methods_paragraph(), 88))

# %% [markdown]
# For the **supplement**, besides: the priors (`model.priors`), the diagnostics
# (`post.diagnostics`), the sensitivity (`post.check.sensitivity()`), the table of intervals above
# if they disagree, and `post.report("rail.html")`, which has all of it.

# %%
post.diagnostics

# %% [markdown]
# ### What not to write
#
# | not | because |
# |---|---|
# | "is in the interval with probability 95 %", of a confidence interval | that is the procedure |
# | "no effect (p = 0.3)" | not rejected is not absent: give the interval |
# | "66.5 ± 10.2" | standard deviation, standard error, half an interval? |
# | "the random effect was significant" | the design has it: give its size |
# | "the posterior probability was 1" | draws are finitely many: "above 0.99" |
# | "uninformative priors" | there are none: name them |
# | p = 0.000 | p < 0.001 |
#
# ## What to keep
#
# - With few groups take Kenward-Roger or Satterthwaite for fixed effects, and the profile or the
#   posterior for standard deviations.
# - Bootstrap percentiles of a variance with few groups lie too low.
# - If intervals disagree, the data are few. Say so.
# - Say what an interval is of: a mean, a new group, a new measurement.
#
# ## Next
#
# - [When REML says zero](09_when_reml_says_zero.py): where Wald intervals do not exist.
# - [Small samples](../../how_to/small_samples.md): degrees of freedom and robust standard errors.
# - [Tables and reports](../../how_to/tables_and_reports.md);
#   [predicting](../../how_to/predict.md).
# - [Planning a study](../../how_to/power.md): coverage and power of your own design in one call.
#
# ## References
#
# - M. G. Kenward, J. H. Roger (1997). Small sample inference for fixed effects from restricted
#   maximum likelihood. *Biometrics* 53, 983–997.
#   [doi:10.2307/2533558](https://doi.org/10.2307/2533558)
# - J. E. Pustejovsky, E. Tipton (2018). Small-sample methods for cluster-robust variance
#   estimation. *Journal of Business & Economic Statistics* 36, 672–683.
#   [doi:10.1080/07350015.2016.1247004](https://doi.org/10.1080/07350015.2016.1247004)
# - A. C. Davison, D. V. Hinkley (1997). *Bootstrap Methods and their Application*. Cambridge.
#   [doi:10.1017/CBO9780511802843](https://doi.org/10.1017/CBO9780511802843)
# - T. P. Morris, I. R. White, M. J. Crowther (2019). Using simulation studies to evaluate
#   statistical methods. *Statistics in Medicine* 38, 2074–2102.
#   [doi:10.1002/sim.8086](https://doi.org/10.1002/sim.8086)
