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
# # Two procedures, five teams: fixed or random?
#
# Five surgical teams each do two procedures on a few patients. Which procedure is better, and by
# how much? Whether teams are fixed or random hardly moves the estimate. It decides for whom the
# answer holds, and so how uncertain it is. The data are simulated, so the truth is known.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

surgery = blm.load_dataset("lecture_surgery")
true = blm.describe_dataset("lecture_surgery").true_values
surgery.pivot_table(
    index="team", columns="procedure", values="y", aggfunc=["size", "mean"], observed=True
).round(1)

# %%
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
cells = surgery.groupby(["team", "procedure"], observed=True)["y"].mean().unstack()
for place, team in enumerate(cells.index):
    for shift, procedure in enumerate(cells.columns):
        part = surgery[(surgery["team"] == team) & (surgery["procedure"] == procedure)]
        x = place + 0.24 * (shift - 0.5)
        axis.plot([x] * len(part), part["y"], "o", color=f"C{shift}", alpha=0.5, markersize=4)
        axis.plot(x, part["y"].mean(), "_", color=f"C{shift}", markersize=16)
axis.set_xticks(range(len(cells)), cells.index)
axis.set(xlabel="team", ylabel="outcome")
for shift, procedure in enumerate(cells.columns):
    axis.plot([], [], "o", color=f"C{shift}", label=procedure)
axis.legend(frameon=False, ncols=2)
plt.show()

# %% [markdown]
# The difference between the procedures is not the same in every team. Is that chance within teams,
# or are some teams truly better at one procedure?
#
# ## Four models
#
# | | teams | team by procedure | the answer is about |
# |---|---|---|---|
# | 1 | fixed | none | these five teams, if all have the same difference |
# | 2 | random | none | all teams, if all have the same difference |
# | 3 | random | random | all teams, whose differences vary |
# | 4 | fixed | fixed | these five teams, each with its own difference |
#
# Models 1 and 4 have no random effects: they are ordinary least squares.


# %%
def least_squares(columns):
    """Difference of the procedures and its standard error by least squares."""
    y = surgery["y"].to_numpy()
    X = np.column_stack(columns)
    inverse = np.linalg.inv(X.T @ X)
    b = inverse @ X.T @ y
    df = len(y) - X.shape[1]
    variance = np.sum((y - X @ b) ** 2) / df
    return b, variance * inverse, df


second = (surgery["procedure"] == "P2").to_numpy(dtype=float)
team = pd.get_dummies(surgery["team"]).to_numpy(dtype=float)
rows = {}

b, vcov, df = least_squares([second, team])
rows["1  team fixed"] = (b[0], np.sqrt(vcov[0, 0]), df)

b, vcov, df = least_squares([team, team * second[:, None]])
average = np.r_[np.zeros(5), np.full(5, 0.2)]
rows["4  team x procedure fixed"] = (average @ b, np.sqrt(average @ vcov @ average), df)

# %% [markdown]
# Models 2 and 3 are mixed models. `contrasts` gives the same difference of the procedures in each.

# %%
formulas = {
    "2  team random": "y ~ procedure + (1 | team)",
    "3  team x procedure random": "y ~ procedure + (1 | team) + (1 | team:procedure)",
}
models = {name: blm.LMM(formula, surgery) for name, formula in formulas.items()}
fits = {name: model.reml() for name, model in models.items()}
for name, fit in fits.items():
    row = fit.contrasts("procedure", {"P2 - P1": {"P2": 1, "P1": -1}}).table().iloc[0]
    rows[name] = (row["estimate"], row["std_error"], row["df"])

table = pd.DataFrame(rows, index=["P2 - P1", "standard error", "df"]).T.sort_index()
table.round(2)

# %% [markdown]
# The estimates agree; the true difference is

# %%
print(true["procedure[T.P2]"])

# %% [markdown]
# The standard errors do not agree, and that is the point.
#
# - **1 and 2 are nearly the same.** Both compare the procedures within teams, so it matters little
#   whether the level of a team is fixed or random: it cancels.
# - **3 has twice the standard error, and four degrees of freedom instead of forty.** If teams
#   differ in how much better one procedure is, then the five differences are the data, and patients
#   only make each of them more precise. More patients of the same teams do not help beyond that;
#   more teams do.
# - **4 has the small standard error of 1 again**, though it lets every team have its own
#   difference. It is about the average of these five teams and no others. To apply it to a sixth
#   team is to leave out the largest source of uncertainty.
#
# ## The same in formulas
#
# With $J$ teams and $m$ patients in every cell, the difference of the means of the procedures has
# variance
#
# $$
# \frac{2\,\sigma_{tp}^2}{J} + \frac{2\,\sigma^2}{J m} .
# $$
#
# The variance of teams is in neither term. The first term is there only if the interaction is
# random; it does not go down with $m$.

# %%
m = len(surgery) / 10
sd_cell, sigma = true["sd[team:procedure]"], true["sigma"]
pd.Series(
    {
        "interaction left out, or fixed": np.sqrt(2 * sigma**2 / (5 * m)),
        "interaction random": np.sqrt(2 * sd_cell**2 / 5 + 2 * sigma**2 / (5 * m)),
        "interaction random, 100 times the patients": np.sqrt(
            2 * sd_cell**2 / 5 + 2 * sigma**2 / (500 * m)
        ),
        "interaction random, 5 times the teams": np.sqrt(
            2 * sd_cell**2 / 25 + 2 * sigma**2 / (25 * m)
        ),
    },
    name="standard error at the true values",
).round(2).to_frame()

# %% [markdown]
# ## Is the interaction there?
#
# The variance of the interaction can be tested, or its posterior be looked at. (Zero is at the edge
# of what a variance can be, so the p-value is about twice too large.)

# %%
blm.lrt(models["2  team random"].ml(), models["3  team x procedure random"].ml())

# %%
posteriors = {name: model.fit(random_seed=1) for name, model in models.items()}
full = posteriors["3  team x procedure random"]
full.varcorr().round(2)

# %%
full.hypothesis(["sd[team:procedure] > 2", "sd[team:procedure] > sd[team]"])

# %% [markdown]
# ## The posterior of the difference

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for name, post in posteriors.items():
    draws = post.contrasts("procedure", [[-1, 1]]).draws.to_numpy().ravel()
    axis.hist(draws, bins=np.linspace(-25, 10, 71), density=True, alpha=0.4, label=name[3:])
axis.axvline(true["procedure[T.P2]"], color="black", linestyle="--", label="true")
axis.set(xlabel="P2 less P1", yticks=[])
axis.spines["left"].set_visible(False)
axis.legend(frameon=False)
plt.show()

# %%
pd.concat(
    {
        name: post.hypothesis("procedure[P2] - procedure[P1] < 0").table()
        for name, post in posteriors.items()
    }
).droplevel(1)[["mean", "sd", "probability", "posterior_odds", "bound"]].round(3)

# %% [markdown]
# Under the model that has one difference for all teams, all draws agree that the second procedure
# lowers the outcome. Once teams may differ, the same data leave some doubt: five teams are a small
# sample of teams.
#
# ## What each team may expect
#
# With random slopes every team has its own difference, between its own data and the average of all.
# `target="conditional"` adds the random effects of the teams to the comparison.

# %%
own = full.comparisons("procedure", by="team", target="conditional").table(prob=0.9)
raw = (cells["P2"] - cells["P1"]).rename("difference of raw means")
own = own.droplevel("contrast")
pd.concat([raw, own], axis=1).round(1)

# %% [markdown]
# The teams are shrunk towards their common mean. A sixth team would get that mean and, beyond its
# uncertainty, the whole variance between teams.
