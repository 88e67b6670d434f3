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
# # Correlated and unequal residuals
#
# A mixed model says how responses vary together: $\operatorname{Var}(y) = ZGZ' + R$. Random effects
# are the first part. In most models the second is $\sigma^2 I$: what is left has one variance and
# no memory. This notebook is about models in which it has neither: groups with variances of their
# own, a spread that grows with a covariate, and measurements that remember the one before.
#
# What you will learn:
#
# - to see that residuals are unequal or correlated, and to write it;
# - to read $R$ and $V$ as pictures;
# - to choose among structures, by likelihood, AIC and leave-one-out;
# - what happens to standard errors and predictions if it is ignored;
# - that random slopes and residual correlation are two ways to make $\operatorname{Var}(y)$, how
#   one is mistaken for the other, and where they differ.
#
# You need to know random intercepts and slopes.
# {doc}`Structuring the residuals <../../how_to/residual_structures>` lists all structures, and has
# the spelling of nlme, mmrm and SAS beside them.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS, SETS = ({"draws": 150, "chains": 2}, 2) if SMOKE else ({}, 60)
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

growth = blm.load_dataset("Orthodont")
sleep = blm.load_dataset("sleepstudy")

# %% [markdown]
# ## Groups with variances of their own
#
# The children of Potthoff and Roy (1964, doi:10.1093/biomet/51.3-4.313): a distance in the jaw, at
# four ages. Do boys grow faster, and is one variance enough for boys and girls? First the usual
# model and its residuals:

# %%
formula = "distance ~ age * Sex + (1 | Subject)"
equal = blm.LMM(formula, growth).reml()
left = equal.residuals()
left.groupby(growth["Sex"], observed=True).std().round(2)

# %%
equal.plot.residuals(backend="matplotlib")
plt.show()

# %% [markdown]
# Boys' residuals are about twice as large. `residual="strata(Sex)"` gives each its own standard
# deviation; in nlme that is `weights = varIdent(form = ~ 1 | Sex)`.

# %%
strata = blm.LMM(formula, growth, residual="strata(Sex)")
unequal = strata.reml()
print(unequal)

# %%
print(unequal.varcorr(style="nlme").iloc[:, :4].round(4))
post = strata.fit(random_seed=1, **DRAWS)
ratio = post.draws({"ratio": "sigma[Male] / sigma[Female]"})["ratio"]
low, high = ratio.quantile([0.05, 0.95])
print(f"ratio of the standard deviations: {ratio.mean():.2f}", end=", ")
print(f"90 % interval {low:.2f} to {high:.2f}")

# %% [markdown]
# Pinheiro and Bates (2000, section 4.3, doi:10.1007/b98882) found the same, with random slopes. Is
# it worth a parameter? By the likelihood, and by how well each model predicts a measurement that it
# has not seen:

# %%
test = blm.lrt(equal, unequal).set_axis(["one sigma", "strata(Sex)"])
print(test[["n_parameters", "aic", "loglik", "chisq", "p_value"]].round(5))
usual = blm.LMM(formula, growth).fit(random_seed=1, **DRAWS)
both = {"one sigma": usual, "strata(Sex)": post}
blm.compare(both, progressbar=False)[["elpd", "elpd_diff", "dse", "worst_k"]].round(2)

# %% [markdown]
# What changes? Not the estimates, in these balanced data. The standard errors do. The slope of the
# girls was made uncertain by the boys' residuals:

# %%
slopes = {"one sigma": equal, "strata(Sex)": unequal}
slopes = {
    name: fit.slopes("age", by="Sex", new="grid").table().iloc[:, :3]
    for name, fit in slopes.items()
}
pd.concat(slopes, axis=1).astype(float).round(3)

# %% [markdown]
# Much of the boys' residual variance is two of them, M09 and M13, whom the checks name. Variances
# are no robust summary; look at such children before a variance is given to a whole sex.

# %%
print(equal.check.residuals(random_seed=1).largest.iloc[0].to_string())

# %% [markdown]
# ## A spread that grows
#
# Assays often have errors in proportion to what is measured. Twelve laboratories measure known
# concentrations. These data are simulated, with a standard deviation that goes with the
# concentration to the power of 0.8.

# %%
rng = np.random.default_rng(4)
levels = np.array([1.0, 2, 5, 10, 20, 50])
assay = blm.simulate_design({"lab": 12, "conc": levels}, rows=2)
bias = pd.Series(rng.normal(0, 0.1, 12), assay["lab"].unique())
spread = 0.08 * assay["conc"] ** 0.8
assay["found"] = (1 + bias[assay["lab"]].to_numpy()) * assay["conc"] + 0.2
assay["found"] += spread * rng.normal(size=len(assay))
formula = "found ~ conc + (0 + conc | lab)"
constant = blm.LMM(formula, assay).reml()
constant.plot.residuals(backend="matplotlib")
plt.show()

# %% [markdown]
# A fan, as in the panel of residuals against fitted values; the check says it in numbers:

# %%
constant.check.residuals(random_seed=1).table.loc[["spread against fitted"]].round(4)

# %%
power = blm.LMM(formula, assay, residual="power(conc)")
fan = power.reml()
fan_post = power.fit(random_seed=1, **DRAWS)
print(fan.varcorr()[["group", "term", "sdcor", "conf_low", "conf_high"]].round(3))
test = blm.lrt(constant, fan).set_axis(["constant", "power"])
print(test[["aic", "chisq", "p_value"]].round(2))
exponent = fan_post.draws("power_residual[conc]").iloc[:, -1]
print(f"exponent, posterior mean: {exponent.mean():.2f}; true: 0.8")

# %% [markdown]
# `sigma` is the standard deviation at the geometric mean of the concentrations. The fixed part, and
# what would be said of the next measurement of a known laboratory at a low and a high
# concentration:

# %%
ends = pd.DataFrame({"lab": [assay["lab"].iloc[0]] * 2, "conc": [1.0, 50.0]})
options = {"kind": "response", "random_seed": 1}
rows = {}
for name, fit in {"constant": constant, "power": fan}.items():
    found = fit.predict(ends, **options)
    effects = fit.fixef()
    rows[name] = {
        "intercept": effects["estimate"].iloc[0],
        "its SE": effects["std_error"].iloc[0],
        "SD of a response at 1": found["std_error"].iloc[0],
        "at 50": found["std_error"].iloc[1],
    }
rows["true"] = {
    "intercept": 0.2,
    "SD of a response at 1": 0.08,
    "at 50": 0.08 * 50**0.8,
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# With one variance the intercept, which low concentrations know best, is nearly lost, and the
# interval of a low measurement is many times too wide, while that of a high one is too narrow.
#
# ## Measurements that remember
#
# Eighteen people slept three hours a night for ten days; their reaction time was measured every day
# (Belenky and others 2003, doi:10.1046/j.1365-2869.2003.00337.x). How much slower do they get in a
# day? Start with residuals from one line for all, and correlate the days:

# %%
line = blm.LMM("Reaction ~ Days", sleep).reml()
cells = sleep.assign(left=line.residuals())
wide = cells.pivot(index="Subject", columns="Days", values="left")
print(wide.corr().round(2).to_string())

# %%
lags = {lag: np.diag(wide.corr(), lag).mean() for lag in range(1, 10)}
print(
    "mean correlation by days apart:",
    *(f"{lag}: {r:.2f}" for lag, r in lags.items()),
    sep="\n  ",
)
print("standard deviation by day:", wide.std().round(0).astype(int).to_list())

# %% [markdown]
# Two things stand out. Days of one person correlate, neighbours more than days far apart. And the
# spread grows from the first day to the last. Structures for the first, with no random effects at
# all:

# %%
structures = {
    "independent": None,
    "cs": "cs(Days | Subject)",
    "ar1": "ar1(Days | Subject)",
    "toep": "toep(Days | Subject)",
    "ar1h": "ar1h(Days | Subject)",
    "us": "us(Days | Subject)",
}
fits = {
    name: blm.LMM("Reaction ~ Days", sleep, residual=residual).reml()
    for name, residual in structures.items()
}


def beside(fits):
    """Criteria, and the slope with its uncertainty, of several fits."""
    rows = {}
    for name, fit in fits.items():
        slope = fit.fixef().loc["Days"]
        rows[name] = {
            "parameters": fit.n_parameters,
            "REML criterion": fit.criterion,
            "AIC": fit.aic,
            "BIC": fit.bic,
            "slope": slope["estimate"],
            "SE": slope["std_error"],
            "df": slope["df"],
        }
    return pd.DataFrame(rows).T.round(2)


beside(fits)

# %% [markdown]
# - The slope is much the same in all. Its standard error is not.
# - `cs`, one correlation, is the random intercept in other words. It makes the slope *more* certain
#   than independence: what is common to all days of a person cancels in a slope.
# - `ar1`, a correlation that falls with distance, has no more parameters and fits better by far. It
#   makes the slope less certain: slow drifts look like slopes.
# - `ar1h` has a standard deviation for each day beside that, and is better again.
# - `us`, any matrix, has 55 parameters for 18 people. AIC does not prefer it to `ar1h`, and BIC,
#   which charges more, likes it least of all. It is the structure for few occasions and many
#   subjects, as in [a trial](05_trial_mmrm.py).

# %%
intercept = blm.LMM("Reaction ~ Days + (1 | Subject)", sleep).reml()
assert abs(intercept.criterion - fits["cs"].criterion) < 1e-6
assert np.allclose(intercept.V(), fits["cs"].R(), rtol=1e-5)
print("cs(Days | Subject) without, and (1 | Subject) with random effects: one model")

# %%
one = {"rows": sleep.index[sleep["Subject"] == "308"], "correlation": True}
fits["ar1"].plot.covariance("R", **one, backend="matplotlib")
plt.show()

# %%
fits["us"].plot.covariance("R", **one, backend="matplotlib")
plt.show()

# %% [markdown]
# ### Times that are not evenly spaced
#
# `ar1(Days | Subject)` counts days, not rows: a day without a measurement counts.
# `ar1(1 | Subject)` counts rows, which is wrong where some are missing. `car1` takes any times; for
# whole numbers it is `ar1` with a positive correlation.

# %%
holes = sleep.drop(index=rng.choice(len(sleep), 60, replace=False))
some = {
    name: blm.LMM("Reaction ~ Days", holes, residual=residual).reml()
    for name, residual in {
        "ar1(Days | Subject)": "ar1(Days | Subject)",
        "car1(Days | Subject)": "car1(Days | Subject)",
        "ar1(1 | Subject)": "ar1(1 | Subject)",
    }.items()
}
by_day, by_time, by_row = some.values()
assert abs(by_day.criterion - by_time.criterion) < 1e-6
criteria = {name: fit.criterion for name, fit in some.items()}
pd.Series(criteria, name="criterion").round(2).to_frame()

# %% [markdown]
# ## Random slopes or correlated residuals?
#
# The model that everyone knows for these data has neither `ar1` nor days with variances of their
# own. It has a line for each person, `(Days | Subject)`. Its residuals are independent, and yet its
# responses are correlated, more so where the lines are far apart:
#
# $$ \operatorname{Var}(y_i) = Z_i \Sigma Z_i' + \sigma^2 I \qquad \text{against} \qquad
# \operatorname{Var}(y_i) = \sigma^2 \, (\rho^{|j - k|})_{jk}. $$
#
# Both have neighbours that correlate more than days far apart. Both may be in one model:

# %%
candidates = {
    "(1 | Subject)": ("Reaction ~ Days + (1 | Subject)", None),
    "ar1": ("Reaction ~ Days", "ar1(Days | Subject)"),
    "(Days | Subject)": ("Reaction ~ Days + (Days | Subject)", None),
    "(Days | Subject), ar1": (
        "Reaction ~ Days + (Days | Subject)",
        "ar1(Days | Subject)",
    ),
}
models = {
    name: blm.LMM(formula, sleep, residual=residual)
    for name, (formula, residual) in candidates.items()
}
ways = {name: model.reml() for name, model in models.items()}
beside(ways)

# %%
spreads = {"observed": wide.std().to_numpy()}
lagged = {"observed": list(lags.values())}
for name, fit in ways.items():
    V = fit.V().loc[one["rows"], one["rows"]].to_numpy()
    spreads[name] = np.sqrt(np.diag(V))
    correlations = V / np.outer(spreads[name], spreads[name])
    lagged[name] = [np.diag(correlations, lag).mean() for lag in range(1, 10)]
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.3), layout="constrained")
for name in spreads:
    look = {"color": "k", "linestyle": ":"} if name == "observed" else {}
    axes[0].plot(range(10), spreads[name], label=name, **look)
    axes[1].plot(range(1, 10), lagged[name], **look)
axes[0].set(xlabel="day", ylabel="standard deviation", ylim=(0, None))
axes[1].set(xlabel="days apart", ylabel="mean correlation", ylim=(0, 1))
figure.legend(loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# The pictures show what each model can do. AR(1) has the right correlation of neighbours and goes
# to zero too fast; its spread is constant. Random slopes have the growing spread, but neighbours
# that correlate too little. AR(1) has the smaller criterion with two parameters less, and still few
# would believe that after a month a person has forgotten who it is. With both, the criterion falls
# once more.
#
# ### Where they differ: what is to come
#
# Both describe ten days. Ask for the next ten:

# %%
person = "308"
ahead = pd.DataFrame({"Subject": person, "Days": np.arange(10, 20)})
figure, axis = plt.subplots(figsize=(6, 3.5), layout="constrained")
seen = sleep[sleep["Subject"] == person]
axis.plot(seen["Days"], seen["Reaction"], "ko", label=f"subject {person}")
for name in ("ar1", "(Days | Subject)", "(Days | Subject), ar1"):
    options = {"residuals": "conditional"} if "ar1" in name else {}
    found = ways[name].predict(ahead, **options)["estimate"]
    axis.plot(ahead["Days"], found, label=name)
average = ways["ar1"].predict(ahead, target="average")["estimate"]
axis.plot(ahead["Days"], average, "k:", label="mean of all")
axis.set(xlabel="day", ylabel="reaction time, ms")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# For AR(1) a slow person is slow today, and will be average in a week. For random slopes the person
# keeps the own line for ever. That difference is a matter of fact, which data over longer times
# would show; ten days do not. The posterior of the model with both, and how well each predicts a
# day that is left out, and a person who is:

# %%
posteriors = {
    name: model.fit(random_seed=1, **DRAWS) for name, model in models.items()
}  # fmt: skip
columns = ["elpd", "elpd_diff", "dse", "worst_k"]
left_out = {"a person": "Subject"} if SMOKE else {"a day": None, "a person": "Subject"}
scored = dict(list(posteriors.items())[:: 2 if SMOKE else 1])
scores = {
    name: blm.compare(scored, by=by, progressbar=False)[columns] for name, by in left_out.items()
}
pd.concat(scores).astype(float).round(1)

# %%
both = posteriors["(Days | Subject), ar1"]
table = blm.compare_reml(both, ways["(Days | Subject), ar1"])
table[["estimate", "std_error", "mean", "sd", "flag"]].round(2)

# %% [markdown]
# REML has the correlation of intercepts and slopes at the end of its range, where it has no
# standard error: this is much to ask of 18 people. The posterior averages over what the data leave
# open. They can be explained by slopes with a little memory, or by memory with smaller slopes; so
# the standard deviation of the slopes and the correlation are negatively correlated in the
# posterior:

# %%
draws = both.draws(["sd[Subject, Days]", "cor_residual"])
print(f"correlation: {draws['sd[Subject, Days]'].corr(draws['cor_residual']):.2f}")

# %% [markdown]
# ### How often is one mistaken for the other?
#
# Take each of the two fits as the truth, simulate data of this size from it, and fit all four
# models. How often does AIC choose the right one of the two? And how often does the 95 % interval
# of the slope contain the true slope?

# %%
chosen = {}
for truth in ("ar1", "(Days | Subject)"):
    responses = ways[truth].simulate(SETS, random_seed=1)
    target, aic, inside = ways[truth].beta["Days"], {}, {}
    for name, model in models.items():
        refits = [
            model.update(data=sleep.assign(Reaction=responses[column])).reml()
            for column in responses
        ]
        slopes = pd.DataFrame([fit.fixef().loc["Days"] for fit in refits])
        covered = (slopes["conf_low"] < target) & (target < slopes["conf_high"])
        inside[f"coverage: {name}"] = covered.astype(float).mean()
        aic[name] = np.array([fit.aic for fit in refits])
    right = aic[truth] <= np.minimum(aic["ar1"], aic["(Days | Subject)"])
    chosen[truth] = {"AIC chooses it": right.mean(), **inside}
pd.DataFrame(chosen).rename_axis("truth:", axis=1).round(2)

# %% [markdown]
# Where one of the two is the truth, AIC finds it in data of this size. The confusion is another
# one: the four criteria above are not those of either. AIC prefers AR(1) alone to random slopes
# alone, as it has the right memory, and whoever stops there concludes that people do not differ in
# their slopes; the model with both says that they do. A structure that wins is the better of the
# two, not the right one.
#
# For the mean slope the choice is less critical than for a person's future. Each of the three
# models that let days far apart differ gives intervals of about the right width under either truth.
# The random intercept does not: it takes days as exchangeable, and drift as evidence.

# %%
short = {truth: shares["coverage: (1 | Subject)"] for truth, shares in chosen.items()}
print(f"95 % intervals contain the slope, in {SETS} data sets, in")
for truth, share in short.items():
    print(f"  {share:.0%}, with a random intercept where the truth is {truth}")

# %% [markdown]
# ## What to do
#
# 1. Correlate the residuals of a plain fit by occasion, and look at their spread by group and by
#    fitted value.
# 2. Start from what is known: subjects that differ in their course have random slopes, whatever AIC
#    says of AR(1) alone.
# 3. Add a residual structure to it where what is left still remembers, or spreads: `lrt`, `loo`.
# 4. With few occasions and many subjects, `us()` and no random effects: nothing to choose.
# 5. If only the fixed effects matter, `fit.robust("Subject")` holds whatever the structure is
#    ({doc}`small samples <../../how_to/small_samples>`).
#
# | `residual=` | nlme | mmrm |
# |---|---|---|
# | `strata(Sex)` | `varIdent(form = ~ 1 \| Sex)` | |
# | `power(conc)` | `varPower(form = ~ conc)` | |
# | `ar1(Days \| Subject)` | `corAR1(form = ~ Days \| Subject)` | `ar1(Days \| Subject)` |
# | `car1(Days \| Subject)` | `corCAR1(form = ~ Days \| Subject)` | `sp_exp(Days \| Subject)` |
# | `us(Days \| Subject)` | `corSymm` with `varIdent` | `us(Days \| Subject)` |
#
# ## Next
#
# - {doc}`Structuring the residuals <../../how_to/residual_structures>`: all structures,
#   predictions, how they are computed.
# - [A trial with repeated measures](05_trial_mmrm.py): the unstructured matrix, and missing visits.
# - {doc}`Structured covariances <../../how_to/covariance_structures>`: the same patterns for random
#   effects.
# - {doc}`Coming from other software <../../how_to/coming_from>`.
