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
# # Crossed, nested, and something in between
#
# Two grouping factors can be related in three ways. Every sample may be tested on every plate;
# every cask may belong to one batch; and every student may rate some instructors, who are rated by
# some students. The formula has to say which, and the data can be asked.
#
# What you will learn:
#
# - to see from a table of counts which of the three you have;
# - to write it, and what goes wrong where labels of nested levels are used again;
# - to read the design in $Z'Z$ and in $\operatorname{Var}(y)$;
# - which standard errors and which predictions are wrong if a factor is left out;
# - how a model of four thousand crossed effects is computed.
#
# You need to know what a random intercept is. The data are the examples of Bates (2010, *lme4:
# Mixed-effects modeling with R*, chapter 2), and a simulated set of the size of his largest.

# %%
import os
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

penicillin, pastes = blm.load_dataset("Penicillin"), blm.load_dataset("Pastes")

# %% [markdown]
# ## Count first
#
# How many rows does each pair of levels have? That table is the design. Six samples of penicillin
# were tested on 24 plates:

# %%
print(pd.crosstab(penicillin["sample"], penicillin["plate"]).to_string())

# %% [markdown]
# Every cell is filled: samples and plates are **crossed**, and balanced. Pastes came in ten batches
# of three casks each. First by the label of the cask, then by the label of batch and cask together:

# %%
pd.crosstab(pastes["batch"], pastes["cask"]).T

# %%
pd.crosstab(pastes["batch"], pastes["sample"]).iloc[:4, :12]

# %% [markdown]
# The two tables are of the same casks. The first looks crossed, but cask `a` of batch A and cask
# `a` of batch B are different casks that happen to have the same name. The second shows what is
# true: each cask has rows in one batch only, so casks are **nested** in batches. No table of counts
# can tell the two apart where labels are used again. That is knowledge of how the data were
# collected, and the formula is where it goes.
#
# In words:


# %%
def relation(data, inner, outer):
    """How the levels of one factor lie in those of another, from counts."""
    filled = pd.crosstab(data[inner], data[outer]) > 0
    homes, share = filled.sum(axis=1), filled.to_numpy().mean()
    if (homes == 1).all():
        found = f"nested: each {inner} has rows in one {outer}"
    elif share == 1:
        found = f"fully crossed: each {inner} with each {outer}"
    else:
        found = f"partially crossed: {share:.1%} of the pairs occur"
    return f"{inner} and {outer}: {found}"


print(relation(penicillin, "sample", "plate"))
print(relation(pastes, "sample", "batch"))
print(relation(pastes, "cask", "batch"), "(but only by name)")

# %% [markdown]
# ## Crossed: Penicillin
#
# How different are the samples, and how well can a method that uses different plates tell them
# apart? The response is the diameter of the zone in which no bacteria grow.

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
means = penicillin.groupby("plate", observed=True)["diameter"].mean()
order = means.sort_values().index
for k, (sample, part) in enumerate(penicillin.groupby("sample", observed=True)):
    line = part.set_index("plate").loc[order, "diameter"]
    axis.plot(range(24), line, "o-", color=f"C{k}", label=sample, markersize=4)
axis.set_xticks(range(24), order)
axis.set(xlabel="plate, by mean", ylabel="diameter, mm")
axis.legend(title="sample", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# The lines are far apart (samples differ), they rise together (plates differ), and they hardly
# cross each other (what is left is small). So a diameter is a mean, an effect of the plate, an
# effect of the sample and a rest:
#
# $$ y_{ps} = \mu + u_p + v_s + e_{ps}, \quad u_p \sim N(0, \tau_u^2), \quad
# v_s \sim N(0, \tau_v^2), \quad e_{ps} \sim N(0, \sigma^2). $$
#
# Two terms, one for each factor:

# %%
crossed = blm.LMM("diameter ~ 1 + (1 | plate) + (1 | sample)", penicillin)
reml = crossed.reml()
print(reml)

# %%
post = crossed.fit(random_seed=1, **DRAWS)
blm.compare_reml(post, reml).iloc[:, :7].round(2)

# %% [markdown]
# REML's variances are those that Bates published. The posterior mean of the standard deviation of
# samples is larger: there are six samples, the density is skewed, and REML reports where it is
# highest.

# %%
# Bates (2010), section 2.1
published = {"plate": 0.71691, "sample": 3.73030, "Residual": 0.30242}
variances = reml.varcorr().set_index("group")["vcov"]
difference = max(abs(variances[name] / v - 1) for name, v in published.items())
assert difference < 2e-4
print(f"largest relative difference from the published variances: {difference:.1e}")

# %% [markdown]
# ### What the design looks like
#
# $Z$ has a column for each plate and each sample, and $Z'Z$ counts rows: on the diagonal those of a
# level, elsewhere those that two levels share. The picture of where it is not zero is the table of
# counts again, with the two factors beside each other. Here it is, for this model and for three
# ways to write the casks of the pastes.

# %%
written = {
    "plates and samples": crossed,
}
for terms in (
    "(1 | batch/cask)",
    "(1 | batch) + (1 | sample)",
    "(1 | batch) + (1 | cask)",
):
    written[terms] = blm.LMM(f"strength ~ 1 + {terms}", pastes)
figure, axes = plt.subplots(2, 2, figsize=(6.2, 6.6), layout="constrained")
for axis, (title, model) in zip(axes.flat, written.items(), strict=True):
    products = (model.Z.T @ model.Z).toarray()
    axis.imshow(products > 0, cmap="Greys", vmin=0, vmax=1.6)
    groups = model.effect_labels.get_level_values("group")
    first = (groups == groups[0]).sum()
    axis.axhline(first - 0.5, color="C3", linewidth=0.8)
    axis.axvline(first - 0.5, color="C3", linewidth=0.8)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"{products.shape[0]} random effects")
plt.show()

# %% [markdown]
# Crossed factors fill the blocks off the diagonal. Nested ones have one entry in each column there:
# a cask meets its batch and no other. The fourth picture is the mistake. It has 13 effects where
# there are 40 things that vary, and it looks crossed.
#
# ### What is correlated with what
#
# The variance matrix of the responses, $V = ZGZ' + R$, says what the model takes to be alike: rows
# of a plate, and rows of a sample. Four plates:

# %%
reml.plot.covariance("V", group="plate", levels=list("abcd"), backend="matplotlib")
plt.show()

# %% [markdown]
# The blocks are plates. The lines parallel to the diagonal are samples, which come back on every
# plate. No ordering of the rows makes this matrix block-diagonal. That is what crossed means for a
# computation: there are no independent pieces, and software that needs them cannot fit the model.
#
# ### Parts of the variance

# %%
print(post.icc(prob=0.9).round(2))
parts = reml.icc()["estimate"]
print(
    f"Two rows of one sample correlate by {parts['sample']:.2f}, of one plate by"
    f" {parts['plate']:.2f}; {1 - parts.sum():.0%} of the variance is neither."
)

# %% [markdown]
# ### What the naive analyses say
#
# How well is the mean known, and how large is the error of a test, if a factor is ignored?

# %%
fits = {
    "(1 | plate) + (1 | sample)": reml,
    "(1 | sample)": blm.LMM("diameter ~ 1 + (1 | sample)", penicillin).reml(),
    "(1 | plate)": blm.LMM("diameter ~ 1 + (1 | plate)", penicillin).reml(),
}
rows = {
    name: {
        "sigma": fit.sigma,
        "SE of the mean": fit.fixef().loc["Intercept", "std_error"],
    }
    for name, fit in fits.items()
}
rows["independent rows"] = {
    "sigma": penicillin["diameter"].std(),
    "SE of the mean": penicillin["diameter"].std() / np.sqrt(len(penicillin)),
}
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# With independent rows, or with plates alone, the mean seems to be known several times too well:
# 144 diameters of six samples are six samples. Without plates that standard error happens to be
# fair, but sigma has swallowed the plates, so that differences between samples, which were measured
# on the same plates, look less certain than they are:

# %%
alone = blm.LMM("diameter ~ 1 + (1 | sample)", penicillin)
without = alone.fit(random_seed=1, **DRAWS)
difference = {"B - A": "u[sample, B, Intercept] - u[sample, A, Intercept]"}
known = {
    name: fit.draws(difference)["B - A"].agg(["mean", "std"])
    for name, fit in {"with plates": post, "without plates": without}.items()
}
print(pd.DataFrame(known).T.round(3))

# %% [markdown]
# The predicted effects. The intervals of the samples are wide, although differences between them
# are known well: what is not known is the mean of all samples, from six of them, and it would move
# them all together. Whoever wants a difference should ask for a difference. Of plates there are 24:

# %%
post.plot.caterpillar("sample", backend="matplotlib")
plt.show()

# %%
post.plot.caterpillar("plate", backend="matplotlib")
plt.show()

# %% [markdown]
# ## Nested: Pastes
#
# Ten batches, three casks of each, two tests of each cask. Does the strength vary between batches,
# between the casks of a batch, or is it the test? That decides what to sample more of.

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
for k, (cask, part) in enumerate(pastes.groupby("cask", observed=True)):
    place = part["batch"].cat.codes + 0.2 * (k - 1)
    axis.plot(place, part["strength"], "o", color=f"C{k}", label=cask, markersize=5)
    for at, two in part["strength"].groupby(place):
        axis.plot([at, at], two, color=f"C{k}", linewidth=1.2)
axis.set_xticks(range(10), pastes["batch"].cat.categories)
axis.set(xlabel="batch", ylabel="strength")
axis.legend(title="cask", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Two tests of a cask agree; casks of a batch do not. The model:
#
# $$ y_{bct} = \mu + u_b + v_{bc} + e_{bct}. $$
#
# `(1 | batch/cask)` is short for `(1 | batch) + (1 | batch:cask)`, in which `batch:cask` makes a
# level of each pair that occurs. With `sample`, which has a name of its own for each cask,
# `(1 | batch) + (1 | sample)` is the same model. `(1 | batch) + (1 | cask)` is another one:

# %%
estimates = {name: model.reml() for name, model in written.items() if "|" in name}
sds = {name: fit.varcorr()["sdcor"].to_list() for name, fit in estimates.items()}
table = pd.DataFrame(sds, index=["batch", "cask", "sigma"]).T
table["criterion"] = [fit.criterion for fit in estimates.values()]
right, same, wrong = estimates.values()
assert abs(right.criterion - same.criterion) < 1e-8
table.round(3)

# %% [markdown]
# The first two rows are one model. (Bates has variances of 8.434 for casks, 1.657 for batches and
# 0.678 for tests.) The third takes the three casks `a`, `b` and `c` to be three things that come
# back in every batch. Nothing comes back, so its "cask" is nearly nothing, and what truly differs
# between casks went into sigma. The criterion, minus two restricted log-likelihoods, is larger by
# the number below, with the same number of parameters. Nothing else would tell you: this model
# converges, without a warning.

# %%
print(f"{wrong.criterion - right.criterion:.1f}")
published = np.array([1.657, 8.434, 0.678])  # Bates (2010), section 2.2
assert np.allclose(table.iloc[0, :3] ** 2, published, atol=6e-4)

# %%
right.plot.covariance("V", group="batch", levels=["A", "B", "C"], correlation=True)
plt.show()

# %% [markdown]
# That is how it should be: squares of two tests of a cask, within squares of a batch, and zero
# between batches. And the mistake, on the same rows. Casks of one name are correlated across
# batches, and two tests of one cask little more than two of a batch:

# %%
wrong.plot.covariance("V", group="batch", levels=["A", "B", "C"], correlation=True)
plt.show()

# %% [markdown]
# It also matters for what is concluded of a new cask. Take the two tests of a cask, with strengths
# of 65, in a new batch: what will a third one be, and what a test of the next cask?

# %%
tested = {"batch": ["new"] * 2, "cask": ["a"] * 2, "strength": [65.0, 65.0]}
ask = pd.DataFrame({"batch": ["new"] * 2, "cask": ["a", "b"]})
options = {
    "target": "new",
    "observed": tested,
    "kind": "response",
    "random_seed": 1,
}
predicted = {}
for name, fit in {
    "(1 | batch/cask)": right,
    "(1 | batch) + (1 | cask)": wrong,
}.items():
    found = fit.predict(ask, **options).set_axis(["same cask", "next cask"])
    predicted[name] = found[["estimate", "std_error"]]
pd.concat(predicted, axis=1).round(2)

# %% [markdown]
# ### Do batches vary at all?
#
# REML has a standard deviation of batches, but its profile interval begins at zero, and the
# likelihood-ratio test would drop the term:

# %%
print(right.confint("profile", kinds=["sd", "sigma"]).iloc[:, :2].round(2))
print(right.ranova()[["chisq", "df", "p_value", "p_boundary"]].round(3))

# %% [markdown]
# Ten batches of three casks cannot tell much. Dropping the term would be a decision that casks of
# one batch are as different as casks of two, which nobody believes. The posterior keeps the term
# and says how little is known, also of the shares:

# %%
nested = written["(1 | batch/cask)"].fit(random_seed=1, **DRAWS)
print(nested.icc(prob=0.9).round(2))
share = nested.draws({"cask > batch": "sd[batch:cask] - sd[batch]"})["cask > batch"]
print(f"P(casks of a batch differ more than batches) = {(share > 0).mean():.2f}")

# %%
labels = ["sd[batch, Intercept]", "sd[batch:cask, Intercept]", "sigma"]
nested.plot.prior_posterior(labels, backend="matplotlib")
plt.show()

# %% [markdown]
# So one should test more casks, not the same cask again. How much that helps follows from the
# variances: the mean of $b$ batches, $c$ casks each and $t$ tests each has the variance
# $\tau_b^2/b + \tau_c^2/(bc) + \sigma^2/(bct)$.

# %%
variances = nested.draws(["sd[batch]", "sd[batch:cask]", "sigma"]).iloc[:, 3:] ** 2
errors = {}
for b, c, t in [(10, 3, 2), (10, 3, 4), (10, 6, 1)]:
    known = np.sqrt(variances.to_numpy() @ [1 / b, 1 / (b * c), 1 / (b * c * t)])
    plan = f"{b} batches, {c} casks of each, {t} tests of each"
    errors[plan] = {"rows": b * c * t, "standard error of the mean": known.mean()}
pd.DataFrame(errors).T.round(3)

# %% [markdown]
# Twice the tests of the same casks (the second row) gain almost nothing; the third plan has no more
# tests than the first, and is the best.
#
# ## Partially crossed, and large
#
# Students rate instructors. At ETH Zurich 2,972 students gave 73,421 ratings to 1,128 instructors
# (`InstEval` of lme4). Nobody hears everybody: students hear mostly instructors of their own
# department. The data here are simulated in that size, with the standard deviations that lme4 has
# for the real ones, 0.33 for students, 0.52 for instructors and 1.18 for the rest, so that the
# truth is known. One more thing is added that real data may have: students of some departments are
# more generous than those of others.

# %%
rng = np.random.default_rng(2)
n_students, n_instructors, n = (500, 150, 8000) if SMOKE else (2972, 1128, 73_421)
departments = 14
home = rng.integers(departments, size=n_students)  # of each student
works = np.sort(rng.integers(departments, size=n_instructors))  # of each instructor
generous = rng.normal(0, 0.25, departments)[home] + rng.normal(0, 0.21, n_students)
quality = rng.normal(0, 0.52, n_instructors)

student = np.sort(rng.integers(n_students, size=n))
instructor = rng.integers(n_instructors, size=n)
local = rng.random(n) < 0.85
for k in range(departments):
    chosen = np.flatnonzero(local & (home[student] == k))
    instructor[chosen] = rng.choice(np.flatnonzero(works == k), size=len(chosen))
rating = 3.25 + generous[student] + quality[instructor] + rng.normal(0, 1.18, n)
ratings = pd.DataFrame(
    {
        "rating": rating,
        "student": student,
        "home": home[student],
        "instructor": instructor,
    }
)
print(relation(ratings, "student", "instructor"))
print(relation(ratings, "student", "home"))

# %%
start = time.perf_counter()
large = blm.LMM("rating ~ 1 + (1 | student) + (1 | instructor)", ratings)
built = time.perf_counter()
large_reml = large.reml()
print(large_reml)
print(f"model {built - start:.1f} s, REML {time.perf_counter() - built:.1f} s")

# %% [markdown]
# ### How that is computed
#
# The equations have a row for each random effect. Students are not connected with each other except
# through instructors, so that their part of $Z'Z$ is diagonal, and they are eliminated one by one,
# at hardly any cost. What is left is a matrix of instructors, with an entry for each two that have
# a student in common; its Cholesky factor has more, since elimination goes on. Its size is what
# counts, not the number of rows, which went into $Z'Z$ once.
# {doc}`Many levels <../../how_to/large_data>` has the limits and the memory.

# %%
Z = large.Z.tocsc()
by_home = np.argsort(home, kind="stable")
order = np.concatenate([by_home, n_students + np.arange(n_instructors)])
products = (Z.T @ Z).tocsr()[order][:, order]
students, meeting = (
    products[:n_students, :n_students],
    products[:n_students, n_students:],
)
assert students.count_nonzero() == n_students
sds = {name: sd.iloc[0] for name, sd in large_reml.sds.items()}
ratio = {name: (large_reml.sigma / sd) ** 2 for name, sd in sds.items()}
pivots = students.diagonal() + ratio["student"]
left = products[n_students:, n_students:]
left = left - meeting.T @ meeting.multiply(1 / pivots[:, None])
left = left.toarray() + ratio["instructor"] * np.eye(n_instructors)
factor = np.abs(np.linalg.cholesky(left)) > 1e-12
lower = n_instructors * (n_instructors + 1) / 2
print(f"{Z.shape[1]} random effects")
print(f"entries of Z'Z that are not zero: {products.count_nonzero():,}")
print(f"those of the students: {students.count_nonzero():,}, a diagonal")
print(f"left for the instructors: {n_instructors} x {n_instructors}")
print(f"not zero: {np.tril(left != 0).sum() / lower:.0%} of it", end=", ")
print(f"{factor.sum() / lower:.0%} of its Cholesky factor")

# %%
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.9), layout="constrained")
pictures = {
    "Z'Z: students, then instructors": products.toarray(),
    "left for the instructors": left,
}
for axis, (title, matrix) in zip(axes, pictures.items(), strict=True):
    axis.imshow(matrix != 0, cmap="Greys", interpolation="antialiased")
    axis.set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# (Students and instructors are ordered by department, which makes the strips and the squares.)
#
# ### Crossed and nested at once
#
# Students are nested in departments, and crossed with instructors. If departments differ, the model
# should know:

# %%
full = blm.LMM("rating ~ 1 + (1 | home/student) + (1 | instructor)", ratings)
full_reml = full.reml()
blm.lrt(large_reml, full_reml)[["n_parameters", "loglik", "chisq", "df"]].round(2)

# %% [markdown]
# The posterior takes a few dozen factorisations such as that above; a surrogate of the density that
# is checked against the exact one does the rest ([how it
# works](../../explanation/collapsed_sampler.md)).

# %%
start = time.perf_counter()
large_post = full.fit(random_seed=1, draws=100 if SMOKE else 500, progressbar=False)
print(f"{time.perf_counter() - start:.0f} s")
table = blm.compare_reml(large_post, full_reml)
table = table[["estimate", "std_error", "mean", "sd"]].round(3)
simulated = {"home": 0.25, "home:student": 0.21, "instructor": 0.52}
table["simulated with"] = [3.25, *(simulated[name] for name in full_reml.sds), 1.18]
table

# %% [markdown]
# ### Who are the best instructors?
#
# The naive league table is the mean rating of each instructor. It has two faults. Instructors with
# few ratings are at both its ends, by chance; and instructors of a generous department look better
# than they are. Shrinkage mends the first only. As the data are simulated, all can be compared with
# the truth:

# %%
raw = ratings.groupby("instructor")["rating"].mean()
predicted = {
    name: fit.ranef()["instructor"]["Intercept"]
    for name, fit in {
        "(1 | instructor)": blm.LMM("rating ~ 1 + (1 | instructor)", ratings).reml(),
        "(1 | student) + ...": large_reml,
        "(1 | home/student) + ...": large_post,
    }.items()
}
levels = predicted["(1 | instructor)"].index
seen = [int(level) for level in levels]
truth = quality[seen] - quality[seen].mean()
scores = {"mean rating": raw.loc[seen].to_numpy()}
scores |= {name: found.loc[levels].to_numpy() for name, found in predicted.items()}
top = set(np.argsort(-truth)[:50])
rows = {}
for name, score in scores.items():
    rows[name] = {
        "correlation": np.corrcoef(score, truth)[0, 1],
        "RMSE": np.sqrt(np.mean((score - score.mean() - truth) ** 2)),
        "true top 50 in its top 50": len(top & set(np.argsort(-score)[:50])),
    }
pd.DataFrame(rows).T.round(3)

# %% [markdown]
# The second model has the best of both: it takes the generosity of a student from the other ratings
# of that student, and what these leave open from the department.
#
# Even the best ranking is far from sure. Ranks are a function of all effects together, so they are
# taken draw by draw, from joint draws of all instructors:

# %%
drawn = large_post.draw_u(levels, group="instructor", random_seed=1)
drawn = drawn.stack(sample=("chain", "draw")).squeeze().transpose("sample", ...)
ranks = (-drawn.to_numpy()).argsort(axis=1).argsort(axis=1) + 1
table = pd.DataFrame(ranks, columns=levels).quantile([0.05, 0.5, 0.95]).T
table.columns = ["5 %", "median rank", "95 %"]
table["true rank"] = (-truth).argsort().argsort() + 1
table["ratings"] = ratings.groupby("instructor").size().loc[seen].to_numpy()
best = table.sort_values("median rank").head(8).astype(int)
best

# %%
most = best.iloc[0]
inside = table["true rank"].between(table["5 %"], table["95 %"]).mean()
print("The instructor with the best median rank is in truth number")
print(f"{most['true rank']} of {len(table)};", end=" ")
print(f"the 90 % interval is {most['5 %']} to {most['95 %']}.")
print(f"Of all the 90 % intervals {inside:.0%} contain the true rank.")

# %% [markdown]
# ## In one table
#
# | the counts | the design | the formula |
# |---|---|---|
# | all cells filled | crossed | `(1 \| a) + (1 \| b)` |
# | each `b` in one `a` | nested, names of their own | `(1 \| a/b)` or `(1 \| a) + (1 \| b)` |
# | all cells filled, by name only | nested, names used again | `(1 \| a/b)` |
# | some cells filled | partially crossed | `(1 \| a) + (1 \| b)` |
#
# In a crossed design a factor may also vary in its effect from level to level of the other:
# `(1 | a:b)` is added where pairs of levels have several rows. Machines and workers are an example,
# in the next notebook.
#
# ## Next
#
# - [Split plots, growth curves and machines](11_split_plots_growth_machines.py): designs with fixed
#   effects at several levels.
# - {doc}`Many levels <../../how_to/large_data>`: more effects than here.
# - {doc}`Formulas <../../reference/formulas>`: every way to write a random-effects term.
# - {doc}`Variance explained <../../how_to/variance_explained>`: ICC and R² in these models.
