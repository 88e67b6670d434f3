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
# # Split plots, growth curves and machines
#
# Three designs that every course has, because each shows one thing that goes wrong with one error
# term only:
#
# 1. **Oats**: varieties were sown on large plots and nitrogen given to small ones, so that the two
#    have errors of different size.
# 2. **Orthodont**: children grow along lines of their own.
# 3. **Machines**: workers differ, and they differ differently on each machine.
#
# What you will learn: to find the unit to which each treatment was applied; that REML with
# Satterthwaite's or Kenward and Roger's degrees of freedom *is* the classical analysis where there
# is one; to centre a covariate, and what changes and what does not; to predict a child that was
# measured once; and to choose between a random interaction and random slopes.
#
# You need to know random intercepts and slopes, and what an F test is. The data are those of
# Pinheiro and Bates (2000, doi:10.1007/b98882), and so are the published figures.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 100, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

oats = blm.load_dataset("Oats")
growth = blm.load_dataset("Orthodont")
machines = blm.load_dataset("Machines")

# %% [markdown]
# ## A split plot: Oats
#
# Yates (1935, doi:10.2307/2983638) had six blocks of land, each divided into three plots. Each plot
# of a block got one of three varieties. Each plot was divided into four subplots, which got four
# amounts of nitrogen. Which variety yields most, and how much does nitrogen add?

# %%
options = {"sharex": True, "sharey": True, "layout": "constrained"}
figure, axes = plt.subplots(2, 3, figsize=(6.8, 4.6), **options)
blocks = oats.groupby("Block", observed=True)
for axis, (block, part) in zip(axes.flat, blocks, strict=True):
    for k, (variety, plot) in enumerate(part.groupby("Variety", observed=True)):
        plot = plot.sort_values("nitro")
        axis.plot(
            plot["nitro"],
            plot["yield"],
            "o-",
            color=f"C{k}",
            label=variety,
            markersize=4,
        )
    axis.set_title(f"block {block}", fontsize=10)
    axis.set_xticks([0, 0.3, 0.6])
figure.supxlabel("nitrogen, cwt per acre", fontsize=10)
figure.supylabel("yield", fontsize=10)
figure.legend(
    *axes[0, 0].get_legend_handles_labels(),
    loc="outside upper center",
    ncols=3,
    frameon=False,
)
plt.show()

# %% [markdown]
# Each line is a plot. Within a block a line often lies above another over its whole length: plots
# have a level of their own. So there are three sizes of units, and three sources of variation:
#
# | unit | number | what was applied to it | its effect |
# |---|---|---|---|
# | block | 6 | nothing | $u_b \sim N(0, \tau_b^2)$ |
# | plot, a variety in a block | 18 | variety | $u_{bv} \sim N(0, \tau_p^2)$ |
# | subplot | 72 | nitrogen | $e_{bvn} \sim N(0, \sigma^2)$ |
#
# A treatment is compared by the units to which it was applied. There are 18 plots for varieties,
# not 72. The formula has a term for each unit but the smallest; `Block/Variety` stands for both:

# %%
split = blm.LMM("Q('yield') ~ Variety * C(nitro) + (1 | Block/Variety)", oats)
oats_reml = split.reml()
columns = ["group", "vcov", "sdcor", "conf_low", "conf_high"]
oats_reml.varcorr()[columns].round(1)

# %%
oats_reml.plot.covariance("V", group="Block", levels=["I", "II"], correlation=True)
plt.show()

# %% [markdown]
# Two subplots of a plot correlate most, two plots of a block less, two blocks not at all.
#
# ### The classical analysis of variance
#
# Yates computed sums of squares, from means of means, in two strata. Here they are, in NumPy:

# %%
y = (
    oats.set_index(["Block", "Variety", "nitro"])["yield"]
    .unstack(["Variety", "nitro"])
    .sort_index(axis=1)
    .to_numpy()
    .reshape(6, 3, 4)
)
grand = y.mean()
b, v, n = (y.mean(axis=axes) for axes in [(1, 2), (0, 2), (0, 1)])
bv, vn = y.mean(axis=2), y.mean(axis=0)
squares = {
    "Block": 12 * ((b - grand) ** 2).sum(),
    "Variety": 24 * ((v - grand) ** 2).sum(),
    "plots": 4 * ((bv - b[:, None] - v + grand) ** 2).sum(),
    "nitro": 18 * ((n - grand) ** 2).sum(),
    "Variety:nitro": 6 * ((vn - v[:, None] - n + grand) ** 2).sum(),
}
squares["subplots"] = ((y - grand) ** 2).sum() - sum(squares.values())
df = {
    "Block": 5,
    "Variety": 2,
    "plots": 10,
    "nitro": 3,
    "Variety:nitro": 6,
    "subplots": 45,
}
anova = pd.DataFrame({"sum_sq": squares, "df": df})
anova["mean_sq"] = anova["sum_sq"] / anova["df"]
error = {"Variety": "plots", "nitro": "subplots", "Variety:nitro": "subplots"}
anova["error"] = pd.Series(error)
anova["F"] = anova["mean_sq"] / anova["error"].map(anova["mean_sq"])
anova["den_df"] = anova["error"].map(anova["df"])
anova.round(2)

# %% [markdown]
# Variety is tested against the variation of plots, the rest against that of subplots. The mixed
# model gives the same tests without being told which error belongs to which treatment:

# %%
tests = {df: oats_reml.anova(df=df) for df in ("satterthwaite", "kenward-roger")}
tests["kenward-roger"].round(4)

# %%
classical = anova.loc[list(error), ["F", "den_df"]].to_numpy()
largest = max(
    np.abs(table[["statistic", "den_df"]].to_numpy() / classical - 1).max()
    for table in tests.values()
)
strata = anova["mean_sq"]
variances = [
    (strata["Block"] - strata["plots"]) / 12,
    (strata["plots"] - strata["subplots"]) / 4,
    strata["subplots"],
]
apart = np.abs(oats_reml.varcorr()["vcov"].to_numpy() / variances - 1).max()
assert largest < 1e-6
assert apart < 1e-6
print(f"largest relative difference of F and denominator df: {largest:.0e}")
print(f"largest relative difference of the variances:        {apart:.0e}")

# %% [markdown]
# The variances are those of the method of moments, too: what the mean squares expect,
# $\operatorname{E} MS_{plots} = \sigma^2 + 4 \tau_p^2$ and so on, solved for the variances. In
# balanced data, as long as none of them comes out negative, REML, Satterthwaite, Kenward and Roger
# and the classical table are one analysis. The mixed model goes on where the classical one ends.
# Without seven of the subplots there are no such sums of squares any more:

# %%
holes = oats.drop(index=[3, 10, 24, 25, 41, 58, 59])
part = split.update(data=holes).reml()
pd.concat(
    {df: part.anova(df=df)[["den_df", "statistic", "p_value"]] for df in tests},
    axis=1,
).round(3)

# %% [markdown]
# ### What the naive analysis says
#
# With blocks only, the 72 subplots count as replicates of varieties. It is the commonest mistake
# with such designs:

# %%
naive = blm.LMM("Q('yield') ~ Variety * C(nitro) + (1 | Block)", oats).reml()
both = {"(1 | Block/Variety)": oats_reml, "(1 | Block)": naive}
pd.concat(
    {name: fit.anova().iloc[:, 3:] for name, fit in both.items()},
    axis=1,
).round(3)

# %%
found = {name: fit.anova()["p_value"] for name, fit in both.items()}
print("p-value of varieties:")
print(f"  {found['(1 | Block)']['Variety']:.3f} with subplots as replicates,")
print(f"  {found['(1 | Block/Variety)']['Variety']:.3f} with plots.")
print(
    "Nitrogen: F = {:.1f} becomes {:.1f}.".format(
        *(f.anova().iloc[1, 4] for f in (naive, oats_reml))
    )
)

# %% [markdown]
# It errs both ways. Varieties seem to differ, since plots count as if they were four independent
# ones; and the error of nitrogen, which was compared within plots, has the variance of plots in it.
#
# ### Means and comparisons
#
# Nothing speaks for an interaction, so nitrogen may be a number and the interaction left out. Four
# amounts then are a slope:

# %%
linear = blm.LMM("Q('yield') ~ nitro + (1 | Block/Variety)", oats)
linear_reml = linear.reml()
print(linear_reml)
published = {
    "Block": 14.506,
    "Block:Variety": 11.005,
    "Residual": 12.867,
}  # section 1.6
sds = linear_reml.varcorr().set_index("group")["sdcor"]
assert max(abs(sds[name] - value) for name, value in published.items()) < 1e-3

# %% [markdown]
# These are the figures of Pinheiro and Bates. Is a line enough? The polynomial contrasts of the
# full model say so: one of three is far from zero.

# %%
oats_reml.contrasts("nitro", "polynomial").table().round(3)

# %% [markdown]
# Now the standard errors. A difference of nitrogen is free of plots; one of varieties is not; and
# one of varieties at the same nitrogen is a mixture of both, for which there is no exact
# distribution and Satterthwaite's degrees of freedom lie between those of the two strata:

# %%
shown = {
    "nitrogen": oats_reml.contrasts("nitro"),
    "variety": oats_reml.contrasts("Variety"),
    "variety at one nitrogen": oats_reml.contrasts("Variety", by="nitro"),
    "nitrogen in one variety": oats_reml.contrasts("nitro", by="Variety"),
}
first = {name: found.table().iloc[0] for name, found in shown.items()}
print(pd.DataFrame(first).T[["std_error", "df"]].astype(float).round(2))

by_strata = {
    "nitrogen": 2 * strata["subplots"] / 18,
    "variety": 2 * strata["plots"] / 24,
    "variety at one nitrogen": 2 * (strata["plots"] + 3 * strata["subplots"]) / 24,
    "nitrogen in one variety": 2 * strata["subplots"] / 6,
}
for name, variance in by_strata.items():
    assert abs(first[name]["std_error"] ** 2 / variance - 1) < 1e-6

# %%
oats_post = split.fit(random_seed=1, **DRAWS)
oats_post.plot.means("nitro", by="Variety", backend="matplotlib")
plt.show()

# %%
varieties = oats_post.contrasts("Variety")
print(varieties)
best = float((varieties.draws.sel(quantity="Marvellous - Victory") > 0).mean())
step = linear_reml.slopes("nitro").table().iloc[0]
low, middle, high = step[["conf_low", "estimate", "conf_high"]] / 10
print(f"Each 0.1 cwt of nitrogen adds {middle:.1f}", end=", ")
print(f"95 % interval {low:.1f} to {high:.1f}.")
print(f"Marvellous yields more than Victory with probability {best:.2f};")
print("with 18 plots the experiment is too small to say more.")

# %% [markdown]
# ## Growth curves: Orthodont
#
# Potthoff and Roy (1964, doi:10.1093/biomet/51.3-4.313) have a distance in the jaw of 27 children
# at ages 8, 10, 12 and 14. Do boys grow faster than girls? How different are children?

# %%
lines = blm.lm_list("distance ~ age | Subject", growth)
lines.plot(backend="matplotlib")
plt.show()

# %% [markdown]
# A line for each child, by least squares, with intervals. The intercepts are at age zero, far from
# the data, and are hardly known; the slopes differ little compared with their uncertainty. The
# mixed model has a line for each child too, but takes the lines to be from one population:
#
# $$ y_{it} = \beta_0 + \beta_2 s_i + u_{0i} + (\beta_1 + \beta_3 s_i + u_{1i}) \, a_{it} + e_{it},
# \qquad (u_{0i}, u_{1i}) \sim N(0, \Sigma), $$
#
# with $s_i = 1$ for girls.
#
# ### Centring
#
# With $a$ the age, $u_{0i}$ is a child's deviation at birth. With $a$ the age less 11, it is the
# deviation in the middle of the study. The criterion, the fitted values, the slopes and the
# predictions are the same; the intercept, its standard deviation and the correlation are about
# another age:

# %%
model = blm.LMM("distance ~ age * Sex + (age | Subject)", growth)
reml = model.reml()
centred = blm.LMM("distance ~ center(age) * Sex + (center(age) | Subject)", growth)
at_middle = centred.reml()
compared = {}
for name, fit in {"age": reml, "center(age)": at_middle}.items():
    compared[name] = {
        "criterion": fit.criterion,
        "sd of intercepts": fit.sds["Subject"].iloc[0],
        "sd of slopes": fit.sds["Subject"].iloc[1],
        "correlation": fit.corrs["Subject"].iloc[0, 1],
        "sigma": fit.sigma,
        "effect of Sex": fit.beta.iloc[2],
        "age by Sex": fit.beta.iloc[3],
    }
assert abs(reml.criterion - at_middle.criterion) < 1e-6
assert np.allclose(reml.fitted(), at_middle.fitted(), atol=1e-5)
pd.DataFrame(compared).round(3)

# %% [markdown]
# The strong negative correlation is not about growth. It says that lines which cross at some age
# are far apart, in opposite order, at birth. At eleven years the correlation is small and positive.
# The effect of Sex changes its sign: at birth, where no one was measured, the girls' line lies
# above the boys'. Centre, and the numbers answer questions that someone asked. (The sampler and the
# default priors do not need it: they are about centred columns anyway.) What the two fits agree
# about is how children differ at each age:

# %%
age = np.array([0, 8, 11, 14])
for fit, shift in ((reml, 0), (at_middle, 11)):
    sd = fit.sds["Subject"].to_numpy()
    covariance = fit.corrs["Subject"].to_numpy() * np.outer(sd, sd)
    design = np.column_stack([np.ones(len(age)), age - shift])
    print(np.sqrt(np.einsum("ij,jk,ik->i", design, covariance, design)).round(3))

# %% [markdown]
# ### Do boys grow faster?

# %%
post = model.fit(random_seed=1, **DRAWS)
print(reml.slopes("age", by="Sex", new="grid").contrasts())
print(post.slopes("age", by="Sex").contrasts())

# %%
post.plot.predictions("age", by="Sex", backend="matplotlib")
plt.show()

# %%
slope = post.slopes("age", by="Sex").contrasts().draws
answer = reml.slopes("age", by="Sex", new="grid").contrasts().table().iloc[0]
print(f"Boys grow {answer['estimate']:.2f} mm a year faster: standard error", end=" ")
print(f"{answer['std_error']:.2f}, {answer['df']:.0f} degrees of freedom,", end=" ")
print(f"p = {answer['p_value']:.3f}.")
print(f"Posterior probability that they grow faster: {float((slope > 0).mean()):.3f}")

# %% [markdown]
# 25 degrees of freedom are 27 children less two slopes. The standard error is that of 27 numbers,
# one slope each, which in balanced data can be checked by a t test of the children's own slopes:

# %%
own = lines.coef["age"]
sex = growth.drop_duplicates("Subject").set_index("Subject")["Sex"]
groups = [own[sex.loc[own.index].to_numpy() == name] for name in ("Male", "Female")]
pooled = sum(((g - g.mean()) ** 2).sum() for g in groups) / 25
by_hand = np.sqrt(pooled * sum(1 / len(g) for g in groups))
print(f"{by_hand:.5f} by hand, {answer['std_error']:.5f} by the mixed model")
assert abs(by_hand / answer["std_error"] - 1) < 1e-6

# %% [markdown]
# ### What the naive analyses say
#
# Least squares on 108 rows takes them as independent. A random intercept alone takes them as
# equally correlated. Compare the standard errors:

# %%
intercepts = blm.LMM("distance ~ center(age) * Sex + (1 | Subject)", growth).reml()
independent = blm.LMM("distance ~ center(age) * Sex", growth).reml()
naive = {
    "independent rows": independent,
    "(1 | Subject)": intercepts,
    "(age | Subject)": at_middle,
}
table = pd.DataFrame({name: fit.fixef()["std_error"] for name, fit in naive.items()})
table.loc["df of age by Sex"] = [fit.fixef()["df"].iloc[3] for fit in naive.values()]
table.round(3)

# %% [markdown]
# With independent rows the difference at eleven years, which is between children, is too certain,
# and the slopes, which are within them, are not certain enough: the variation between children
# counts as error of the slopes. The random intercept mends both for the most part, but makes slopes
# as certain as if all children of a sex grew at one speed, with degrees of freedom to match.
#
# ### Predicting a child
#
# A boy of the study at 16, and a new boy: with nothing known of him, and after one visit at age 8
# with 28 mm, which is far above the mean.

# %%
ahead = {"age": [16.0], "Sex": ["Male"]}
visit = {"Subject": ["new"], "age": [8.0], "Sex": ["Male"], "distance": [28.0]}
options = {"kind": "response", "random_seed": 1}
known = growth.query("Subject == 'M10'")["distance"].to_list()
measured = ahead | {"Subject": ["M10"]}
rows = {
    f"M10, measured as {known}": post.predict(measured, **options),
    "a new boy": post.predict(ahead | {"Subject": ["new"]}, target="new", **options),
    "a new boy, 28 mm at age 8": post.predict(
        ahead | {"Subject": ["new"]}, target="new", observed=visit, **options
    ),
}
pd.concat(rows).droplevel(1).round(2)

# %% [markdown]
# The visit moves the prediction by part of what it was above the mean, since some of it was chance,
# and takes little off its spread: most of what is unknown is his slope and the error of the new
# measurement. Fitted lines of some children, with their data:

# %%
some = ["M10", "M13", "M09", "F10", "F11", "F01"]
post.plot.fitted(levels=some, backend="matplotlib")
plt.show()

# %% [markdown]
# M09's measurements jump up and down, M13 grows steeply: the residuals of boys are larger than
# those of girls. That is a matter for
# {doc}`structured residuals <../../how_to/residual_structures>` and for the [notebook on
# them](13_correlated_residuals.py).
#
# ## Machines
#
# Six workers, three machines, three scores of each pair. Which machine is best, for any worker?

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
cells = machines.groupby(["Worker", "Machine"], observed=True)["score"]
cells = cells.mean().unstack()
for k, worker in enumerate(sorted(cells.index)):
    axis.plot(cells.columns, cells.loc[worker], "o-", color=f"C{k}", label=worker)
axis.set(xlabel="machine", ylabel="mean score of three")
axis.legend(title="worker", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The lines are not parallel; worker 6 is even worse on machine B than on A. Three scores of a pair
# hardly differ. So workers differ by more than a level. There are two ways to say that:
#
# - **an interaction**: `(1 | Worker) + (1 | Worker:Machine)`, a level of the worker and an
#   independent deviation for each machine, of one variance;
# - **random effects of the machines**: `(0 + Machine | Worker)`, three effects of each worker with
#   any covariance matrix. `(Machine | Worker)` is the same model in other coordinates.
#
# The first is a special case of the second: the matrix with one variance and one correlation,
# compound symmetry.

# %%
formulas = {
    "level only": "score ~ Machine + (1 | Worker)",
    "interaction": "score ~ Machine + (1 | Worker) + (1 | Worker:Machine)",
    "homcs": "score ~ Machine + homcs(0 + Machine | Worker)",
    "cs": "score ~ Machine + cs(0 + Machine | Worker)",
    "any matrix": "score ~ Machine + (0 + Machine | Worker)",
    "any, differences": "score ~ Machine + (Machine | Worker)",
}
models = {name: blm.LMM(formula, machines) for name, formula in formulas.items()}
fits = {name: model.reml() for name, model in models.items()}
assert abs(fits["interaction"].criterion - fits["homcs"].criterion) < 1e-6
assert abs(fits["any matrix"].criterion - fits["any, differences"].criterion) < 1e-6
pd.DataFrame(
    {
        name: {
            "parameters": fit.n_parameters,
            "criterion": fit.criterion,
            "sigma": fit.sigma,
        }
        for name, fit in fits.items()
    }
).T.round(3)

# %% [markdown]
# What they say of the effects of the machines on one worker is a matrix of three by three, in all
# of them. `cs()` has one correlation, and a standard deviation for each machine; `homcs()` has one
# for all, and is the interaction in other words. (It reaches further: its correlation may be
# negative, which no sum of variances can be.) As covariances:

# %%
rows = [0, 18, 36]  # one of a worker on each machine
for name in ("interaction", "cs", "any matrix"):
    block = fits[name].V().iloc[rows, rows] - fits[name].sigma ** 2 * np.eye(3)
    print(name, block.round(1).to_numpy(), sep="\n")

# %% [markdown]
# Pinheiro and Bates (section 1.3) have 4.781, 3.730 and 0.9616 for the interaction, 4.079, 5.878,
# 3.690 and 0.9616 for `(Machine | Worker)`, and test one against the other:

# %%
nested = fits["interaction"].varcorr()["sdcor"].to_numpy()
assert np.allclose(np.sort(nested), [0.96158, 3.7295, 4.7811], atol=1e-3)
free = fits["any, differences"].varcorr().query("term_2.isna()")["sdcor"].to_numpy()
assert np.allclose(free, [4.0793, 5.8776, 3.6899, 0.96158], atol=1e-3)
names = ["level only", "homcs", "cs", "any matrix"]
test = blm.lrt(*(fits[name] for name in names)).set_axis(names)
test[["n_parameters", "aic", "loglik", "chisq", "df", "p_value"]].round(3)

# %% [markdown]
# The interaction is needed beyond doubt. More than one standard deviation is worth a little, more
# than one correlation nothing. REML likelihoods may be compared here, since the fixed effects are
# the same. Predictive comparison depends on what is predicted: another score of a pair that has
# been seen, or a worker who has not.

# %%
chosen = ["interaction", "cs"]
if not SMOKE:  # a worker left out of the model with any matrix takes the most time here
    chosen = ["level only", *chosen, "any matrix"]
posteriors = {name: models[name].fit(random_seed=1, **DRAWS) for name in chosen}
columns = ["elpd", "elpd_diff", "dse", "weight", "worst_k"]
pd.concat(
    {
        "a score": blm.compare(posteriors, progressbar=False)[columns],
        "a worker": blm.compare(posteriors, by="Worker", progressbar=False)[columns],
    }
).astype(float).round(2)

# %% [markdown]
# ### Which machine is best?

# %%
print(fits["cs"].contrasts("Machine"))
letters = fits["cs"].means("Machine").letters()
print(letters[["estimate", "std_error", "df", "letters"]])

# %%
posteriors["cs"].plot.contrasts("Machine", backend="matplotlib")
plt.show()

# %% [markdown]
# And what the model without an interaction says: it takes the three scores of a pair as independent
# evidence about machines, so that standard errors are too small, and there are many degrees of
# freedom from six workers.

# %%
rows = {name: fits[name].contrasts("Machine", adjust=None).table() for name in chosen}
pd.concat(rows)[["estimate", "std_error", "df", "p_value"]].round(3)

# %%
most = posteriors["cs"].contrasts("Machine").draws
over_a, over_b = (most.sel(quantity=f"{m} - C") < 0 for m in "AB")
c_best = float((over_a & over_b).mean())
worker = posteriors["cs"].predict(
    pd.DataFrame({"Machine": ["B", "C"], "Worker": "new"}),
    target="new",
    summary=False,
    random_seed=1,
)["predictions"]["mu"]
own = float((worker.isel(pred_id=1) > worker.isel(pred_id=0)).mean())
print(f"Machine C is best on average over workers with probability {c_best:.2f}.")
print(f"For one worker who is not in the data, C beats B with probability {own:.2f}.")
print("These are different questions.")

# %% [markdown]
# ## Next
#
# - [Crossed and nested factors](10_crossed_and_nested.py), if `Block/Variety` was new.
# - [Correlated and unequal residuals](13_correlated_residuals.py): other ways to make the variance
#   matrix of repeated measurements.
# - {doc}`Structured covariances <../../how_to/covariance_structures>`: `cs`, `ar1`, `toep` and
#   `by=`.
# - {doc}`Means and contrasts <../../how_to/means_and_contrasts>` and
#   {doc}`small samples <../../how_to/small_samples>`: all verbs of the tables above.
