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
# # A Bayesian workflow, from question to report
#
# A fit is one step of many. This notebook takes one data set through all of them: the question, a
# first model, its priors before any fit, diagnostics, checks of the model, three expansions,
# comparison, sensitivity, influence, the answer and the report. Two checks fail on the way, and
# what they ask for is done.
#
# You will learn
#
# - which check answers which question, and which checks pass although the model is wrong;
# - why cross-validation and Bayes factors may disagree, and which one to ask;
# - how to tell what the answer depends on: priors, single animals, the choice of the model.
#
# You need the notation `y ~ x + (x | g)` and an idea of what a posterior is. The steps are those
# of Gelman and others (2020, arXiv:2011.01808); the pictures before and after a fit follow Gabry
# and others (2019, doi:10.1111/rssa.12378).

# %%
import os
import tempfile
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## The question
#
# Ten dogs were given a contrast agent. Computed tomography then measured, on several days, the
# mean pixel intensity of the lymph nodes on their left and right side.
#
# - When is the intensity highest?
# - Do the two sides differ?
# - How much do dogs differ?
#
# The first question decides on which day to scan, so the answer has to be a day with its
# uncertainty.

# %%
pixel = blm.load_dataset("Pixel")
print(blm.describe_dataset("Pixel").source)
pixel.groupby("Dog", observed=True).agg(
    rows=("pixel", "size"), first=("day", "min"), last=("day", "max"), mean=("pixel", "mean")
).round(1)

# %% [markdown]
# The plan is unbalanced: some dogs were followed for three weeks, some have four rows. Sides are
# nested in dogs: left of dog 1 and left of dog 2 have nothing in common but the name.
#
# ## A first model
#
# Start with the smallest model that has the structure of the design: a line over days, a random
# intercept for each dog and one for each side of a dog.

# %%
line = blm.LMM("pixel ~ day + (1 | Dog / Side)", pixel)
print(line)
line.priors

# %% [markdown]
# ## Priors, before any fit
#
# Nobody told the model what an intensity is. The default priors take their scale from the spread
# of the response, so they are weak on any scale. The table says what each parameter may be. Few
# people can read from it what that means for data. So look at what the priors imply together.

# %%
line.plot.priors()
plt.show()

# %%
implied = line.implied_priors(random_seed=1)
implied

# %% [markdown]
# The share of variance that lies between dogs may be anything. The spread of the response may be
# several times the observed one: the priors are too wide rather than too narrow. Responses drawn
# from them should cover the data, and should not be absurd:

# %%
line.plot.prior_predictive(by="Side")
plt.show()

# %%
line.plot.prior_predictions("day")
plt.show()

# %% [markdown]
# Lines go up and down and are far steeper than anything in the data. No line is ruled out that one
# would want to see. Such priors are fit for estimating. They are not fit for Bayes factors without
# further thought; that comes back below.
#
# ## Fit, and did the sampler work?
#
# These diagnostics say whether the draws represent the posterior. They say nothing of the model.

# %%
post_line = line.fit(random_seed=1, **DRAWS)
post_line.diagnostics

# %%
post_line.fixef()

# %% [markdown]
# A slope near zero. A reader who stops here reports that intensity does not change over time.
#
# ## Does the model describe the data?
#
# Draw new data sets from the posterior and compare them with the one there is. First the
# distribution of all responses:

# %%
post_line.plot.predictive(random_seed=1)
plt.show()

# %% [markdown]
# The data have a bump on the left that replicates lack: a hint, which does not say where to look.
# Now the mean of each dog:

# %%
post_line.plot.predictive("tstat", by="Dog", random_seed=1)
plt.show()

# %% [markdown]
# Nothing is wrong here, and that was to be expected: the model has an intercept for each dog, so
# these means are fitted. **A check of what the model was fitted to passes whatever is wrong
# elsewhere.** A check has to look where the model was not told to look. Here that is time: by day,
# the model has one slope for nine means (the picture orders days by the observed mean, the table
# below by time).

# %%
post_line.plot.predictive("tstat", by="day", random_seed=1)
plt.show()

# %%
by_day = post_line.check.predictive("mean", by="day", prob=0.89, random_seed=1)
print(by_day.round(2).to_string())
out = by_day.index[(by_day["p_value"] < 0.025) | (by_day["p_value"] > 0.975)]
print(f"\nOutside the central 95 %: day {', '.join(map(str, out))}")

# %% [markdown]
# **The first failure.** The column `p_value` is the share of replicated data sets with a larger
# mean. The observed means lie below the replicated ones at the start, above them in the middle and
# below them again at the end: intensity rises and falls. The slope of the line is near zero
# because it averages over both.
#
# ## First expansion: a curve
#
# `update` changes a part of a model and keeps the rest.

# %%
curve = line.update(formula="pixel ~ day + I(day ** 2) + (1 | Dog / Side)")
post_curve = curve.fit(random_seed=1, **DRAWS)
post_curve.fixef()

# %%
post_curve.plot.predictive("tstat", by="day", random_seed=1)
plt.show()

# %% [markdown]
# A common curve is better, though the first days are still off. The model has one curve for all
# dogs. Does each dog follow it?

# %%
post_curve.plot.fitted(group="Dog")
plt.show()

# %% [markdown]
# No. Dog 4 starts far below its curve and ends above it; dog 7 begins above and ends below. The
# model moves the whole curve up or down for a dog, and cannot tilt it.
#
# ## Second expansion: each dog has its own slope

# %%
slopes = curve.update(formula="pixel ~ day + I(day ** 2) + (day | Dog) + (1 | Dog:Side)")
post_slopes = slopes.fit(random_seed=1, **DRAWS)
post_slopes.plot.fitted(group="Dog")
plt.show()

# %%
so_far = {"line": post_line, "curve": post_curve, "slopes": post_slopes}
pd.DataFrame({name: {"sigma": fit.sigma} for name, fit in so_far.items()}).round(1)

# %% [markdown]
# The residual standard deviation falls with each step: what was called noise had structure. All
# checks that the package has, at once:

# %%
found = post_slopes.findings(["residuals", "convergence"] if SMOKE else None)
for topic in found.table.index[found.table["run"]]:
    print(textwrap.fill(f"{topic} ({found[topic].severity}): {found[topic].verdict}", 88))

# %% [markdown]
# An alarm asks to be looked at, and a note is what a right model shows now and then. Influence
# comes back below. Of the residuals:

# %%
print(*(textwrap.fill(detail, 88) for detail in found["residuals"].details), sep="\n")

# %% [markdown]
# Some of this is about a thing that the pictures did not show: the spread of the residuals across
# dogs. Look in the direction it names.

# %%
post_slopes.plot.predictive("tstat", by="Dog", statistic="sd", random_seed=1)
plt.show()

# %%
spread = post_slopes.check.predictive("sd", by="Dog", random_seed=1)
spread[["n", "observed", "mean", "p_value"]].round(2)

# %% [markdown]
# **The second failure.** Dogs 1 and 2 vary less than the model's replicates of them, dog 4 more.
# The model has one `sigma` for all of them: too small for some, too large for others.
#
# The leave-one-out probability integral transform asks the same of single rows. Each row is
# predicted from all others; its transform is the probability of a lower value. Where predictions
# are calibrated these are uniform.

# %%
post_slopes.plot.predictive("loo_pit")
plt.show()

# %% [markdown]
# Read it beside the picture before: predictions that are too wide for some dogs and too narrow for
# others can be right on average, so this line may well stay within its band.
#
# ## Third expansion: each dog has its own noise
#
# `residual="strata(Dog)"` gives each dog a residual standard deviation.

# %%
noise = slopes.update(residual="strata(Dog)")
post_noise = noise.fit(random_seed=1, **DRAWS)
post_noise.summary().filter(like="sigma", axis=0)[["mean", "sd"]].round(1)

# %%
spread = post_noise.check.predictive("sd", by="Dog", random_seed=1)
spread[["n", "observed", "mean", "p_value"]].round(2)

# %% [markdown]
# The check is mended. It had to be, for now the model is fitted to it. What does it cost? Dogs
# with few rows have a `sigma` that is hardly known.
#
# ## Compare
#
# Models of the same rows: how well does each predict a row that it has not seen, from the
# others (leave-one-out)?

# %%
fits = {"line": post_line, "curve": post_curve, "slopes": post_slopes, "noise": post_noise}
scored = {name: fits[name] for name in ("line", "curve")} if SMOKE else fits
table = blm.compare(scored)
table[["elpd", "elpd_diff", "dse", "p", "weight", "worst_k"]].astype(float).round(2)

# %% [markdown]
# `elpd_diff` is the difference to the best model and `dse` its standard error: read the two
# together. The curve and the slopes are beyond doubt. A noise of each dog is better than a common
# one, by less beside its standard error. The evidence, a by-product of every fit, agrees:

# %%
print(blm.bayes_factor(post_noise, post_slopes))

# %% [markdown]
#
# A row of a dog that has been seen is one thing to predict, a new dog another. Leave out whole
# dogs:

# %%
by_dog = blm.compare({name: fits[name] for name in scored if name != "noise"}, by="Dog")
by_dog[["elpd", "elpd_diff", "dse", "weight"]].astype(float).round(2)

# %% [markdown]
# The order of these models is the same, so the choice among them does not depend on the use. The
# model with a noise of each dog is left out of this table on purpose: it has nothing to say of the
# noise of a dog that it has not seen. Only the prior has. It describes these ten dogs. Whoever
# wants to predict a new dog needs a distribution of the noise between dogs, `sigma="~ (1 | Dog)"`
# ([how to](../../how_to/outliers_and_scale.md)), or stays with the common `sigma`.
#
# ## Do the sides differ? Two answers
#
# Give the right side a level of its own, beside the random differences that any two sides of a dog
# have:

# %%
sides = slopes.update(formula="pixel ~ day + I(day ** 2) + Side + (day | Dog) + (1 | Dog:Side)")
post_sides = sides.fit(random_seed=1, **DRAWS)
factor = blm.bayes_factor(post_slopes, post_sides)
if not SMOKE:  # rows left out one by one are what takes time here
    both = blm.compare({"slopes": post_slopes, "sides": post_sides})
    gap, error = -both["elpd_diff"].min(), both["dse"].max()
    print(f"elpd: difference {gap:.1f}, standard error {error:.1f}")
print(f"Bayes factor in favour of no difference between sides: {factor.value:.1f}")
post_sides.fixef().loc[["Side[T.R]"]]

# %% [markdown]
# Cross-validation calls it a tie. The Bayes factor favours the model without sides. Neither is
# wrong, for they ask different things. Cross-validation predicts a row from the *posterior*, which
# has learned from a hundred rows that the extra coefficient is small; carrying it along costs
# little. The evidence predicts all rows from the *prior*, and the default prior allowed
# differences between sides larger than the whole spread of the data. Such differences are not
# there. The evidence charges for the mass that the prior spent on them.
#
# So the Bayes factor has to move with the prior of what differs, and it does:

# %%
scan = {}
default = sides.priors.table().set_index("parameter").loc["Side[T.R]", "prior"]
for scale in (default, 30) if SMOKE else (default, 30, 10, 3):
    own = {} if isinstance(scale, str) else {"Side[T.R]": f"normal(0, {scale})"}
    name = scale if isinstance(scale, str) else f"Normal(0, {scale})"
    fit = post_sides if not own else sides.update(priors=own).fit(random_seed=1, **DRAWS)
    row = fit.fixef().loc["Side[T.R]"]
    scan[name] = {
        "posterior mean": row["mean"],
        "posterior sd": row["sd"],
        "Bayes factor for no difference": blm.bayes_factor(post_slopes, fit).value,
    }
scan = pd.DataFrame(scan).T.round(2)
scan

# %% [markdown]
# Between the default and a prior of thirty units, about the spread of the response, the posterior
# hardly changes, and the Bayes factor falls from an argument to nearly nothing. With narrower
# priors it goes to one: the two models then say the same. Taken together: these data exclude a
# large difference, and do not tell whether there is a small one. The interval says the same,
# without a prior that one would have to defend.
#
# ## What does the answer depend on?
#
# ### On the priors?
#
# `check.sensitivity` asks how the posterior would move if the priors, or the data, counted a
# little more or less. It needs no refit.

# %%
print(post_noise.check.sensitivity())

# %% [markdown]
# What is flagged, if anything, are standard deviations: those of dogs with few rows, and that
# between ten dogs. The fixed effects, of which the answer is made, are not. To be sure, refit
# under priors that are several times as narrow, and under others that are several times as wide.

# %%
ALTERNATIVES = {
    "narrow": {"sigma": "exponential(0.1)", "sd": "exponential(0.05)"},
    "wide": {"sigma": "student_t(3, 0, 150)", "sd": "student_t(3, 0, 150)"},
}
others = {
    name: noise.update(priors=own).fit(random_seed=1, draws=500, chains=2)
    for name, own in ({} if SMOKE else ALTERNATIVES).items()
}

# %% [markdown]
# The peak of a curve $b_0 + b_1 t + b_2 t^2$ is at $-b_1 / (2 b_2)$. A hypothesis may contain such
# an expression, and its columns are those of the left side less the right side: with zero on the
# right, the day of the peak.


# %%
def peak(fit):
    """Day of the highest mean intensity: mean, sd and interval of the posterior."""
    table = fit.hypothesis("-day / (2 * I(day ** 2)) > 0").table()
    return table.iloc[0][["mean", "sd", *[c for c in table.columns if c.startswith("eti")]]]


answers = {
    "curve": post_curve,
    "slopes": post_slopes,
    "noise": post_noise,
    **{f"noise, {name} priors": fit for name, fit in others.items()},
}
pd.DataFrame({name: peak(fit) for name, fit in answers.items()}).T.astype(float).round(2)

# %% [markdown]
# The priors move the peak by a fraction of its standard deviation. The step from one slope for all
# dogs to one for each moves it further, and makes its interval wider: with a common slope, ten
# dogs count as if they were one.
#
# ### On a single dog?
#
# With ten dogs, one may carry the result. `check.influence` reweights the draws, and says by
# Pareto's k where that is not enough.

# %%
influence = post_slopes.check.influence("Dog", progressbar=False)
influence.table.round(2)

# %% [markdown]
# Where `pareto_k` is above 0.7, the weights cannot be trusted, and one refits without the dog. For
# the day of the peak:

# %%
DOGS = ["4"] if SMOKE else pixel["Dog"].cat.categories
without = {
    f"without dog {dog}": peak(
        slopes.update(data=pixel[pixel["Dog"] != dog]).fit(random_seed=1, **DRAWS)
    )
    for dog in DOGS
}
shifts = pd.DataFrame({"all dogs": peak(post_slopes), **without}).T.astype(float)
shifts["shift in sd"] = (shifts["mean"] - shifts["mean"].iloc[0]) / shifts["sd"].iloc[0]
shifts.round(2)

# %% [markdown]
# Taking out any one dog shifts the peak by less than its standard deviation, and that is what the
# interval is for: other dogs would have been other dogs. Dog 4, which is noisy and has many rows,
# moves it most. No dog was removed from the analysis: influence alone is no reason to.
#
# ## The answer
#
# The model with a slope and a noise of each dog is the one to report, and the one with a common
# noise stands beside it.

# %%
post_noise.plot.predictions("day", draws="lines")
plt.show()

# %%
post_noise.slopes("day", by="day", at={"day": [0, 4, 8, 12, 16]})

# %%
claims = post_noise.hypothesis(
    [
        "-day / (2 * I(day ** 2)) > 6",
        "-day / (2 * I(day ** 2)) < 10",
        "sd[Dog, Intercept] > sd[Dog:Side, Intercept]",
    ]
)
claims.table()[["mean", "probability"]].astype(float).round(2)

# %%
day = peak(post_noise)
low, high = day.iloc[2:]
other = peak(post_slopes)
print(
    f"On average over dogs the intensity is highest {day['mean']:.1f} days after the injection\n"
    f"(89 % interval {low:.1f} to {high:.1f}; with a common residual variance {other['mean']:.1f}, "
    f"{other.iloc[2]:.1f} to {other.iloc[3]:.1f}).\n"
    f"The probability that it is after day 6 is {claims.table()['probability'].iloc[0]:.2f}, "
    f"before day 10 {claims.table()['probability'].iloc[1]:.2f}."
)
side = post_sides.fixef().loc["Side[T.R]"]
print(
    f"The right side is {abs(side['mean']):.0f} units {'lower' if side['mean'] < 0 else 'higher'} "
    f"than the left (89 % interval {side['eti89_lb']:.0f} to {side['eti89_ub']:.0f})."
)

# %% [markdown]
# That is the mean curve. The peak of one dog is another matter, since slopes differ:

# %%
dogs = post_noise.draws({"slope": "sd[Dog, day]", "curvature": "I(day ** 2)", "mean": "day"})
new = dogs["mean"] + dogs["slope"] * np.random.default_rng(1).standard_normal(len(dogs))
low, middle, high = (-new / (2 * dogs["curvature"])).quantile([0.055, 0.5, 0.945])
print(f"A new dog's peak: day {middle:.1f}, with 89 % probability between {low:.1f} and {high:.1f}")

# %% [markdown]
# The interval of a new dog is wider than that of the mean: what one dog will do is known less well
# than what dogs do on average. This one assumes that curvature is the same for all dogs. Whoever
# plans a scan of one animal needs this line, not the one before.
#
# ## The report
#
# `report` writes one page with everything above that applies. It needs a file:

# %%
if not SMOKE:  # its pictures take some seconds
    with tempfile.TemporaryDirectory() as folder:
        written = post_slopes.report(
            Path(folder) / "pixel.html",
            title="Pixel intensity after contrast",
            findings=post_slopes.findings(["convergence", "singularity"]),
            reml=False,
        )
        print(f"{written.name}: {written.stat().st_size / 1e6:.1f} MB")

# %%
print(textwrap.fill(post_noise.methods_paragraph(), 88))

# %% [markdown]
# The paragraph says what was fitted. It cannot say what was tried before. Say it yourself:

# %%
print(
    textwrap.fill(
        f"{len(fits)} models were fitted in turn: "
        + "; ".join(f"{name}, {fit.design.formula.source}" for name, fit in list(fits.items())[:3])
        + "; and the last with a residual standard deviation for each dog. The first expansion "
        "followed a predictive check of means by day, the third one of standard deviations by dog.",
        88,
    )
)

# %% [markdown]
# ## What to keep
#
# - Look at what priors imply for data, not at priors.
# - A check passes where the model was fitted to what it looks at. Look elsewhere: by time, by
#   group, at spread as well as at means.
# - Expand in the direction of the failure, one step at a time, and keep all fits to show.
# - Expanding until checks pass is fitting to the data too. The same data chose the model and
#   judged it, so probabilities after the choice are somewhat too sure. What protects is a question
#   fixed beforehand, few steps, and the table of answers under all of them.
# - Cross-validation asks about predictions, and of whom: of rows or of groups. The Bayes factor
#   asks about priors.
#
# ## Next
#
# - [Reporting uncertainty](08_reporting_uncertainty.py): which interval, and how to write it down.
# - [When REML says zero](09_when_reml_says_zero.py): variances at the boundary.
# - [Diagnosing a fit](../../how_to/diagnose.md) and
#   [cross-validation](../../how_to/cross_validate.md): every check with its options.
#
# ## References
#
# - J. Gabry, D. Simpson, A. Vehtari, M. Betancourt, A. Gelman (2019). Visualization in Bayesian
#   workflow. *Journal of the Royal Statistical Society A* 182, 389–402.
#   [doi:10.1111/rssa.12378](https://doi.org/10.1111/rssa.12378)
# - A. Gelman and others (2020). Bayesian workflow.
#   [arXiv:2011.01808](https://arxiv.org/abs/2011.01808)
# - M. Kallioinen, T. Paananen, P.-C. Bürkner, A. Vehtari (2024). Detecting and diagnosing prior
#   and likelihood sensitivity with power-scaling. *Statistics and Computing* 34, 57.
#   [doi:10.1007/s11222-023-10366-5](https://doi.org/10.1007/s11222-023-10366-5)
# - J. C. Pinheiro, D. M. Bates (2000). *Mixed-Effects Models in S and S-PLUS*. Springer.
#   [doi:10.1007/b98882](https://doi.org/10.1007/b98882)
# - A. Vehtari, A. Gelman, J. Gabry (2017). Practical Bayesian model evaluation using leave-one-out
#   cross-validation and WAIC. *Statistics and Computing* 27, 1413–1432.
#   [doi:10.1007/s11222-016-9696-4](https://doi.org/10.1007/s11222-016-9696-4)
