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
# # The animal model
#
# A breeder wants to know how much of the difference between animals is inherited, and which animals
# to breed from. Nobody observes a breeding value. What is observed are weights, and a pedigree that
# says how related the animals are. A mixed model whose random effects are correlated as the
# pedigree says has breeding values as its random effects: the animal model of Henderson (1975,
# doi:10.2307/2529430).
#
# What you will learn:
#
# - what a pedigree says of covariances, and why the inverse of that matrix is sparse;
# - to estimate heritability, with an interval, and what is taken for heritability by mistake;
# - to predict breeding values, also of animals without a record, and to know how good they are;
# - to tell genetic progress from better feed;
# - that the sire model is a special case.
#
# You need to know random intercepts. No genetics: half of what a child inherits comes from each
# parent, at random, and that is all that is used. The data are simulated, so that every answer can
# be compared with the truth. {doc}`Related levels <../../how_to/related_levels>` is the short
# version, for those who know.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS, LAPLACE = ({"draws": 100}, 50) if SMOKE else ({"draws": 250}, 300)
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## What a pedigree says
#
# Seven animals: two founders, their two children, a stranger, a child of one of these with the
# stranger, and a child of brother and sister.

# %%
family = pd.DataFrame(
    {
        "animal": [
            "father",
            "mother",
            "son",
            "daughter",
            "stranger",
            "cousin",
            "inbred",
        ],
        "sire": [None, None, "father", "father", None, "son", "son"],
        "dam": [None, None, "mother", "mother", None, "stranger", "daughter"],
    }
)
small = blm.pedigree(family, id="animal")
small.A

# %% [markdown]
# A breeding value is half the father's plus half the mother's plus a rest, the Mendelian sampling,
# which is independent of everything before:
#
# $$ a_i = \tfrac12 a_{father} + \tfrac12 a_{mother} + m_i. $$
#
# So a parent and a child have the covariance 1/2, two full sibs 1/2, half sibs 1/4, in units of the
# genetic variance of an animal that is not inbred. The child of brother and sister has the variance
# 1.25: one and its coefficient of inbreeding. The equation also gives the inverse. Solved for $m$,
# it is $m = (I - P) a$ with two entries of one half in each row of $P$, so that
# $A^{-1} = (I - P)' D^{-1} (I - P)$ with a diagonal $D$. That inverse is zero wherever two animals
# are neither parent and child nor mates (Henderson 1976, doi:10.2307/2529339):

# %%
parents = np.zeros((7, 7))
for row, places in enumerate(zip(small.sire, small.dam, strict=True)):
    parents[row, [place for place in places if place >= 0]] = 0.5
step = np.eye(7) - parents
inverse = step.T @ np.diag(1 / small.mendelian) @ step
assert np.allclose(inverse, np.linalg.inv(small.A), atol=1e-12)
assert np.allclose(inverse, small.A_inverse.toarray(), atol=1e-12)
pd.DataFrame(inverse, small.labels, small.labels).round(2)

# %% [markdown]
# ## A herd
#
# Six generations. In each, the heaviest animals become parents, few males and more females. Animals
# of all generations but the last, who are young, have been weighed twice. A weight is made of
#
# - the mean of the year, which rises since the feed gets better;
# - the breeding value, with variance 0.4 in the first generation;
# - what is the animal's own but not inherited, its **permanent environment**, with variance 0.2;
# - a rest, with variance 0.4.
#
# The heritability is 0.4, the share of the first variance in the sum. Two weights of one animal
# correlate by more than that, by 0.6, which is called repeatability.

# %%
rng = np.random.default_rng(8)
size, generations = 110, 6
genetic, permanent, rest = 0.4, 0.2, 0.4
feed = 0.15  # what a better year adds

rows, last = [], None
for year in range(generations):
    for k in range(size):
        row = {"animal": f"y{year}n{k:02}", "sire": None, "dam": None, "year": year}
        row["sex"] = "male" if k < size // 2 else "female"
        if last is None:
            row["truth"] = rng.normal(0, np.sqrt(genetic))
        else:
            father, mother = (
                last[rng.integers(8)],
                last[size // 2 + rng.integers(size // 4)],
            )
            row |= {"sire": father["animal"], "dam": mother["animal"]}
            loss = (father["inbreeding"] + mother["inbreeding"]) / 2
            row["truth"] = (father["truth"] + mother["truth"]) / 2
            row["truth"] += rng.normal(0, np.sqrt(genetic * (1 - loss) / 2))
        level = 20 + feed * year + (0.8 if row["sex"] == "male" else 0.0)
        own = level + row["truth"] + rng.normal(0, np.sqrt(permanent))
        row["first"], row["second"] = own + rng.normal(0, np.sqrt(rest), 2)
        rows.append(row)
    table = pd.DataFrame(rows)
    inbreeding = blm.pedigree(table, id="animal").inbreeding
    for row in rows[-size:]:
        row["inbreeding"] = inbreeding[row["animal"]]
    last = sorted(rows[-size:], key=lambda row: -row["first"])
    last = sorted(last, key=lambda row: row["sex"] == "female")
animals = pd.DataFrame(rows).set_index("animal", drop=False)
ped = blm.pedigree(animals, id="animal")
print(ped)
youngest = animals.iloc[-size:]
print(f"mean inbreeding of the last generation: {youngest['inbreeding'].mean():.3f}")

weighed = animals[animals["year"] < generations - 1]
data = weighed.melt(
    ["animal", "sire", "dam", "year", "sex"],
    ["first", "second"],
    "weighing",
    "weight",
)
data = data.assign(own=data["animal"])  # a copy, for what is not inherited
data.sort_values("animal").head(4)

# %%
A, inverse = ped.A.to_numpy(), ped.A_inverse
figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
image = axes[0].imshow(A, cmap="Blues", vmin=0, vmax=1, interpolation="antialiased")
axes[0].set_title("A: how related two animals are", fontsize=10)
figure.colorbar(image, ax=axes[0], shrink=0.8)
axes[1].spy(inverse, markersize=0.3, color="0.2")
axes[1].set_title("where its inverse is not zero", fontsize=10)
for axis in axes:
    axis.set_xticks(np.arange(generations) * size, range(generations))
    axis.set_yticks(np.arange(generations) * size, range(generations))
    axis.xaxis.tick_bottom()
    axis.set(xlabel="generation", ylabel="generation")
plt.show()
print(f"not zero: {(A > 0).mean():.0%} of A", end=", ")
print(f"{inverse.nnz / A.size:.1%} of its inverse")

# %% [markdown]
# By the last generation everyone is related to everyone. The inverse stays sparse, and it is the
# inverse that the equations need.
#
# ## The model
#
# $$ y = X\beta + Z a + Z p + e, \qquad a \sim N(0, \sigma_a^2 A), \quad p \sim N(0, \sigma_p^2 I),
# \quad e \sim N(0, \sigma^2 I). $$
#
# `relationships=` says that the levels of `animal` are related. The copy, `own`, has the same
# levels, independent of each other: the permanent environment.

# %%
model = blm.LMM(
    "weight ~ C(year) + sex + (1 | animal) + (1 | own)",
    data,
    relationships={"animal": ped},
)
reml = model.reml()
print(reml)

# %% [markdown]
# The animals without a weight are among the levels. Their rows of $Z$ are empty, but their
# relatives have been weighed.
#
# ## Heritability
#
# It is a function of three variances, so of the draws of the posterior; for REML it is computed at
# the estimate, with an interval from the asymptotic distribution of the estimates.

# %%
post = model.fit(random_seed=1, progressbar=False, **DRAWS)
share = "sd[animal]**2 / (sd[animal]**2 + sd[own]**2 + sigma**2)"
h2 = post.draws({"h2": share})["h2"]
estimate = reml.icc(level=0.9, uncertainty="laplace", draws=LAPLACE, random_seed=1)
low, high = estimate.loc["animal", ["conf_low", "conf_high"]]
value = estimate.loc["animal", "estimate"]
print(f"REML:      {value:.2f}, 90 %: {low:.2f} to {high:.2f}")
low, high = h2.quantile([0.05, 0.95])
print(f"posterior: {h2.mean():.2f}, 90 %: {low:.2f} to {high:.2f}")
print(f"true:      {genetic / (genetic + permanent + rest):.2f}")

# %% [markdown]
# (`icc` counts the variance of the animals in the rows, with their inbreeding, and so is a little
# higher than the formula.)

# %%
labels = ["sd[animal, Intercept]", "sd[own, Intercept]", "sigma"]
post.plot.reml(reml, labels=labels, figure_kwargs={"figsize": (8, 2.6)})
plt.show()

# %% [markdown]
# Genetic variance and permanent environment compete: both make two weights of an animal alike, and
# only the weights of relatives tell them apart. So each alone is known less well than their sum.

# %%
draws = post.draws({"a": "sd[animal]**2", "p": "sd[own]**2"})
draws["both"] = draws["a"] + draws["p"]
print(draws[["a", "p", "both"]].agg(["mean", "std"]).round(3))
print(f"correlation of the two variances: {draws['a'].corr(draws['p']):.2f}")

# %% [markdown]
# ### What is taken for heritability by mistake
#
# Three models that look reasonable:

# %%
common, known = "weight ~ C(year) + sex", data.dropna(subset="sire")
others = {
    "relatives and own": reml,
    "relatives only": model.update(common + " + (1 | animal)").reml(),
    "own only": blm.LMM(common + " + (1 | own)", data).reml(),
    "sires": blm.LMM(common + " + (1 | sire) + (1 | own)", known).reml(),
}
table = {}
for name, fit in others.items():
    variances = fit.varcorr().set_index("group")["vcov"]
    total = variances.sum()
    table[name] = variances / total
table = pd.DataFrame(table).T
table["called heritability"] = table["animal"].fillna(table["own"])
table.loc["sires", "called heritability"] = 4 * table.loc["sires", "sire"]
table.round(2)

# %% [markdown]
# Without the permanent environment the model gives all that is the animal's own to its genes. "Own
# only" knows of no relatives: its share is the repeatability, an upper bound of heritability. The
# sire model is explained below; here its sires are selected and related, which it does not know.
#
# ## Breeding values
#
# `ranef` has the predictions of all animals, `ranef_sd` their standard errors. Here the truth is
# known.

# %%
young = animals["year"] == generations - 1
animals["predicted"] = post.ranef()["animal"]["Intercept"].loc[animals.index]
animals["std_error"] = post.ranef_sd()["animal"]["Intercept"].loc[animals.index]
animals["phenotype"] = animals[["first", "second"]].mean(axis=1)

figure, axis = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
for k, label in enumerate(["weighed twice", "young, not weighed"]):
    part = animals[young == bool(k)]
    axis.plot(
        part["predicted"],
        part["truth"],
        "o",
        color=f"C{k}",
        markersize=3,
        label=label,
    )
ends = [animals["predicted"].min(), animals["predicted"].max()]
axis.plot(ends, ends, color="0.5", linewidth=1)
axis.set(xlabel="predicted breeding value", ylabel="true breeding value")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# How good are they? The **accuracy** is the correlation of predictions with the truth, here within
# years, since the trend alone would make any prediction look good. In real data there is no truth
# to correlate with. But the draws of the posterior are what the truth may be, so the model's own
# opinion of the accuracy is the correlation with a draw, averaged over draws:

# %%
drawn = post.draw_u(group="animal", random_seed=1)
drawn = drawn.stack(sample=("chain", "draw")).squeeze().transpose("sample", ...)
names = drawn["animal"].to_numpy()
drawn = pd.DataFrame(drawn.to_numpy(), columns=names)[animals.index]


def accuracy(score, truth):
    """Correlation of deviations from the mean of year and sex."""
    pair = pd.DataFrame({"score": score, "truth": truth})
    centred = pair - pair.groupby([animals["year"], animals["sex"]]).transform("mean")
    return centred.corr().iloc[0, 1]


rows = {}
for name, part in {"weighed": animals[~young], "young": animals[young]}.items():
    believed = drawn[part.index].iloc[:: len(drawn) // 100].T
    rows[name] = {
        "predictions": accuracy(part["predicted"], part["truth"]),
        "expected by the model": np.mean(
            [accuracy(part["predicted"], believed[k]) for k in believed]
        ),
        "own weights": accuracy(part["phenotype"], part["truth"]),
    }
pd.DataFrame(rows).T.round(2)

# %% [markdown]
# - The predictions of weighed animals are better than their own weights, since relatives add to
#   what is known.
# - Young animals are predicted with no weight at all, from their parents. What that leaves open is
#   the Mendelian sampling: full sibs are all predicted to be equal.
# - The model's expectation is near to what is found.
# - The last number is for comparison: had the young been weighed twice, their own weights would say
#   more than their parents do.
#
# For a single animal the same is called its **reliability**: one less the error variance of the
# prediction over the variance of the breeding value, $(1 + F_i) \sigma_a^2$. Its root is the
# accuracy over animals like this one, drawn at random from a population like the first generation.
# By REML, with variances taken as known:

# %%
error = reml.ranef_sd(given_beta=True)["animal"]["Intercept"].loc[animals.index] ** 2
variance = reml.sds["animal"].iloc[0] ** 2 * (1 + animals["inbreeding"])
reliability = 1 - error / variance
sons = animals["sire"].value_counts()
fathers = reliability.loc[sons.index]
summary = {
    "young": reliability[young].mean(),
    "weighed": reliability[~young].mean(),
}
summary["fathers, by their offspring too"] = fathers.mean()
pd.Series(summary, name="mean reliability").to_frame().round(2)

# %% [markdown]
# And the intervals of the posterior, for every single animal. They should hold the truth nine times
# out of ten:

# %%
inside = animals["truth"].between(drawn.quantile(0.05), drawn.quantile(0.95))
inside.groupby(young.map({True: "young", False: "weighed"})).mean().round(2)

# %% [markdown]
# ## Genes or feed?
#
# Animals get heavier from year to year. How much of that is breeding? The mean weight cannot say.
# The pedigree can: an animal of year 3 and its parents of year 2 share genes, not years.

# %%
means = drawn.T.groupby(animals["year"]).mean().T
progress = pd.DataFrame(
    {
        "true": animals.groupby("year")["truth"].mean(),
        "predicted": means.mean(),
        "5 %": means.quantile(0.05),
        "95 %": means.quantile(0.95),
        "mean weight": animals.groupby("year")["phenotype"].mean(),
    }
)
first = progress.loc[0, ["true", "predicted", "mean weight"]]
progress = progress - first.reindex(progress.columns).fillna(0)
progress.round(2)

# %%
figure, axis = plt.subplots(figsize=(5.5, 3.4), layout="constrained")
low, high = progress["5 %"], progress["95 %"]
axis.fill_between(progress.index, low, high, color="C0", alpha=0.2)
axis.plot(progress["predicted"], "o-", color="C0", label="breeding values, predicted")
axis.plot(progress["true"], "s--", color="C1", label="breeding values, true")
axis.plot(progress["mean weight"], "^:", color="0.5", label="weights")
axis.set(xlabel="year", ylabel="gain since the first year")
axis.legend(frameon=False)
plt.show()

# %%
last = generations - 2
gain = (means[last] - means[0]).agg(["mean", "std"])
rise = progress.loc[last, "mean weight"]
print(f"Weights rose by {rise:.2f} to year {last}. Of that", end=" ")
print(f"{gain['mean']:.2f} (posterior sd {gain['std']:.2f}) is breeding;")
print(f"in truth it was {progress.loc[last, 'true']:.2f}.", end=" ")
print(f"The feed gave {feed * last:.2f}.")

# %% [markdown]
# The breeding values of a generation are correlated in the posterior, so their mean is far less
# certain than a mean of as many independent ones would be. The draws of all animals are joint, and
# so any function of them has its interval.
#
# ## Choosing parents
#
# Which ten of the young animals should be parents next year? There are three ways to choose, and
# the truth says what each would have gained:

# %%
candidates = animals[young]
parent = animals.loc[candidates["sire"], "phenotype"].to_numpy()
parent = parent + animals.loc[candidates["dam"], "phenotype"].to_numpy()
ways = {
    "predicted breeding value": candidates["predicted"],
    "weights of the parents": pd.Series(parent, candidates.index),
    "at random": None,
    "the truth, if it were known": candidates["truth"],
}
gains = {}
for name, score in ways.items():
    chosen = candidates.index if score is None else score.nlargest(10).index
    gains[name] = candidates.loc[chosen, "truth"].mean() - candidates["truth"].mean()
pd.Series(gains, name="true mean over that of all").to_frame().round(2)

# %% [markdown]
# ## Mothers
#
# A mother gives more than genes: milk, a nest. `(1 | dam)` in the formula makes sisters and
# brothers of one mother alike, beyond what they inherit; with
# `relationships={"animal": ped, "dam": ped}` that effect is inherited too. None was simulated here.
# Is one found?

# %%
relations = {"relationships": {"animal": ped}}
base = blm.LMM(common + " + (1 | animal) + (1 | own)", known, **relations).reml()
terms = " + (1 | animal) + (1 | own) + (1 | dam)"
maternal = blm.LMM(common + terms, known, **relations).reml()
print(maternal.varcorr()[["group", "vcov", "sdcor"]].round(3))
blm.lrt(base, maternal)[["n_parameters", "loglik", "chisq", "p_value"]].set_axis(
    ["without", "with dam"]
).round(3)

# %% [markdown]
# Where there is one and it is left out, it is taken for genes, as full sibs share a mother.
#
# ## The sire model is a special case
#
# With dairy bulls one often has daughters with one record each, of mothers that are not known and
# not related. Then half sibs are the only relatives, with covariance $\sigma_a^2 / 4$, and a random
# intercept for the sire says the same:
#
# $$ \sigma_s^2 = \tfrac14 \sigma_a^2, \qquad
# \sigma_{within}^2 = \sigma^2 + \tfrac34 \sigma_a^2, \qquad
# h^2 = \frac{4 \sigma_s^2}{\sigma_s^2 + \sigma_{within}^2}. $$

# %%
bulls, daughters = 40, 12
sire = np.repeat([f"bull{k:02}" for k in range(bulls)], daughters)
value = 0.5 * np.repeat(rng.normal(0, np.sqrt(0.4), bulls), daughters)
value += rng.normal(0, np.sqrt(0.75 * 0.4), bulls * daughters)
milk = pd.DataFrame({"sire": sire, "cow": [f"cow{k}" for k in range(len(sire))]})
milk["milk"] = 10 + value + rng.normal(0, np.sqrt(0.6), len(milk))
of_cows = blm.pedigree(milk.assign(dam=None), id="cow")
by_cow = blm.LMM("milk ~ 1 + (1 | cow)", milk, relationships={"cow": of_cows}).reml()
by_sire = blm.LMM("milk ~ 1 + (1 | sire)", milk).reml()

genes, between = by_cow.sds["cow"].iloc[0] ** 2, by_sire.sds["sire"].iloc[0] ** 2
print(f"criterion of the animal model {by_cow.criterion:.6f}", end=", ")
print(f"of the sire model {by_sire.criterion:.6f}")
print(f"heritability: {genes / (genes + by_cow.sigma**2):.4f} and", end=" ")
print(f"{4 * between / (between + by_sire.sigma**2):.4f}")
bulls_of_cows = by_cow.ranef()["cow"].loc[by_sire.ranef()["sire"].index, "Intercept"]
assert abs(by_cow.criterion - by_sire.criterion) < 1e-5
assert np.allclose(bulls_of_cows / 2, by_sire.ranef()["sire"]["Intercept"], atol=1e-4)

# %% [markdown]
# The same likelihood, and a bull's effect in the sire model is half his breeding value, which is
# what his daughters get. The sire model cannot say anything of the daughters themselves, and what
# it assumes was not true of the herd above: there, parents were chosen, related and known on both
# sides.
#
# ## In short
#
# | question | answer |
# |---|---|
# | how alike are relatives? | $A$, from the pedigree; its inverse is sparse |
# | what is inherited? | `sd[animal]**2` over the sum of the variances, draw by draw |
# | repeated records? | a copy of the animal's column for what is its own |
# | which animals are good? | `ranef()`, also of those without records |
# | how sure is that? | reliability, one less the error variance over the variance |
# | any function of breeding values? | `draw_u()`, joint draws of all animals |
#
# ## Next
#
# - {doc}`Related levels <../../how_to/related_levels>`: markers, phylogenies and distances in place
#   of pedigrees, limits and times for ten thousand animals.
# - {doc}`Posterior tools <../../how_to/posterior_tools>`: more functions of draws.
# - [When REML says zero](09_when_reml_says_zero.py): what to do with a heritability of exactly
#   zero.
