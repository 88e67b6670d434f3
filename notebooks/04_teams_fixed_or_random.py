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
# how much? Whether teams, and the interaction of teams and procedures, are fixed or random hardly
# moves the estimate. It decides for whom the answer holds, and so how uncertain it is.
#
# **You will learn** why the interaction of a fixed with a random factor is random, what the wrong
# choice claims, and how to ask for the population, for these five teams and for a sixth. **You
# need** the notation of [the lecture on seedlings](01_lecture_seedlings.py).
#
# The data are simulated, so the truth is known.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

import bayeslmm as blm

plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

surgery = blm.load_dataset("lecture_surgery")
true = blm.describe_dataset("lecture_surgery").true_values
surgery.pivot_table(
    index="team", columns="procedure", values="y", aggfunc=["size", "mean"], observed=True
).round(1)

# %% [markdown]
# The picture has the patients, and the means of teams by procedures with intervals from least
# squares:

# %%
cell_means = blm.LMM("y ~ procedure * team", surgery).reml()
cell_means.plot.means("team", by="procedure")
plt.show()

# %% [markdown]
# The difference between the procedures is not the same in every team. Is that chance within teams,
# or are some teams truly better at one procedure?
#
# ## Team j, drawn from a population
#
# Take teams as a sample from all teams. Each team $j$ has two expected outcomes, $m_{1j}$ and
# $m_{2j}$, one per procedure. Drawing a team draws the pair, from a population with means
# $\mu_1, \mu_2$. Write the pair as
#
# $$
# m_{ij} = \mu + \alpha_i + b_j + (\alpha b)_{ij},
# $$
#
# where $\mu + \alpha_i = \mu_i$ is a constant, $b_j$ is what is common to the pair, and
# $(\alpha b)_{ij}$ is what is left. Both come with the drawn pair. If the pair is random, so are
# both: **the interaction of a fixed with a random factor is random**. To make it fixed while $b_j$
# is random would be to draw new teams in every repetition and give them all the same interactions
# as T1 to T5 have.
#
# With independent normal parts (some books let the interactions of a team sum to zero instead; the
# covariances below have the same form) the model is
#
# $$
# \begin{gathered}
# y_{ijk} = \mu + \alpha_i + b_j + (\alpha b)_{ij} + e_{ijk}, \\
# b_j \sim N(0, \sigma_b^2), \quad (\alpha b)_{ij} \sim N(0, \sigma_{ab}^2), \quad
# e_{ijk} \sim N(0, \sigma_e^2),
# \end{gathered}
# $$
#
# and from $\text{Var}(y) = ZGZ' + R$ two patients have the covariance
#
# | two patients | covariance |
# |---|---|
# | of one team and one procedure | $\sigma_b^2 + \sigma_{ab}^2$ |
# | of one team, different procedures | $\sigma_b^2$ |
# | of different teams | 0 |
#
# with $\sigma_b^2 + \sigma_{ab}^2 + \sigma_e^2$ on the diagonal.

# %%
model = blm.LMM("y ~ procedure + (1 | team) + (1 | team:procedure)", surgery)
full = model.reml()
full.plot.covariance("V", levels=["T1", "T2"])
plt.show()

# %%
variances = full.varcorr().set_index("group")["vcov"]
b2, ab2, e2 = variances[["team", "team:procedure", "Residual"]]
team = surgery.groupby("team", observed=True).ngroup().to_numpy()
cell = surgery.groupby(["team", "procedure"], observed=True).ngroup().to_numpy()
same_team, same_cell = np.equal.outer(team, team), np.equal.outer(cell, cell)
by_hand = b2 * same_team + ab2 * same_cell + e2 * np.eye(len(surgery))
gap = np.abs(full.V().to_numpy() - by_hand).max()
print(f"V() and the table above differ by at most {gap:.0e}")
assert gap < 1e-10

# %% [markdown]
# The same covariances come from `(1 | team / procedure)`, which is a short form of the two terms,
# and from `cs(0 + procedure | team)`, compound symmetry of the pair. `(procedure | team)` also lets
# the two procedures have different variances between teams.
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
# Models 1 and 4 have no random effects. `contrasts` gives the difference of the procedures in each,
# where a fixed interaction is averaged over the teams with equal weights.

# %%
formulas = {
    "1  team fixed": "y ~ procedure + team",
    "2  team random": "y ~ procedure + (1 | team)",
    "3  team x procedure random": "y ~ procedure + (1 | team) + (1 | team:procedure)",
    "4  team x procedure fixed": "y ~ procedure * team",
}
models = {name: blm.LMM(formula, surgery) for name, formula in formulas.items()}
fits = {name: model.reml() for name, model in models.items()}
rows = {
    name: fit.contrasts("procedure", {"P2 - P1": {"P2": 1, "P1": -1}}).table().iloc[0]
    for name, fit in fits.items()
}
table = pd.DataFrame(rows).T[["estimate", "std_error", "df", "conf_low", "conf_high"]]
print(f"true difference in the population of teams: {true['procedure[T.P2]']}")
table.astype(float).round(2)

# %% [markdown]
# The estimates agree. The standard errors do not, and that is the point.
#
# - **1 and 2 are nearly the same.** Both compare the procedures within teams, so it matters little
#   whether the level of a team is fixed or random: it cancels.
# - **3 has about twice the standard error, and four degrees of freedom instead of about forty.** If
#   teams differ in how much better one procedure is, then the five differences are the data, and
#   patients only make each of them more precise. More patients of the same teams do not help beyond
#   that; more teams do.
# - **4 has a small standard error again**, smaller than that of 1, though it lets every team have
#   its own difference. It is about the average of these five teams and no others. To apply it to a
#   sixth team is to leave out the largest source of uncertainty.
#
# lme4 (1.1-31, with lmerTest's and pbkrtest's degrees of freedom) has the same figures for 2 and 3:

# %%
lme4 = pd.DataFrame(
    {
        "2  team random": [-7.467219854, 1.809327012, 43.45452310, 43.39726955],
        "3  team x procedure random": [-7.626764834, 3.545140189, 3.871766755, 3.992929837],
    },
    index=["estimate", "std_error", "df, Satterthwaite", "df, Kenward-Roger"],
)
ours = {}
for name in lme4:
    by_kr = fits[name].with_df("kenward-roger").contrasts("procedure", [[-1, 1]])
    ours[name] = [*rows[name][["estimate", "std_error", "df"]], by_kr.table()["df"].iloc[0]]
ours = pd.DataFrame(ours, index=lme4.index)
difference = (ours / lme4 - 1).abs().to_numpy().max()
print(f"largest relative difference from lme4: {difference:.0e}")
assert difference < 1e-4
ours.T.round(3)

# %% [markdown]
# ## The standard error in formulas
#
# With $J$ teams and $m$ patients in every cell, the difference of the means of the procedures has
# variance
#
# $$
# \text{Var}(\bar y_{2} - \bar y_{1}) = \frac{2\,\sigma_{ab}^2}{J} + \frac{2\,\sigma_e^2}{J m} .
# $$
#
# The variance of teams is in neither term: $b_j$ is in both means and cancels. The first term is
# there only if the interaction is random, and it does not go down with $m$.

# %%
m = len(surgery) / 10
sd_ab, sigma_e = true["sd[team:procedure]"], true["sigma"]


def standard_error(teams, patients):
    """Of the difference, with the interaction random and with it left out or fixed."""
    within = 2 * sigma_e**2 / (teams * patients)
    return np.sqrt([2 * sd_ab**2 / teams + within, within])


designs = {
    "5 teams, as here": (5, m),
    "5 teams, 100 times the patients": (5, 100 * m),
    "25 teams, as many patients each": (25, m),
}
pd.DataFrame(
    {name: standard_error(*design) for name, design in designs.items()},
    index=["interaction random", "left out or fixed"],
).T.round(2)

# %% [markdown]
# ## What the wrong analysis claims
#
# Teams are drawn anew, the truth is a difference in the population of teams, and model 4 reports a
# 95 % interval from its own standard error. How often is the truth in it? In the design of these
# data that has an answer in closed form. The average of the five differences has both variances,
# model 4 knows only the second, and its estimate of $\sigma_e^2$ is independent of the average:

# %%
sizes = surgery.groupby(["team", "procedure"], observed=True).size().unstack()
second = sigma_e**2 * (1 / sizes).to_numpy().sum() / 25
both = 2 * sd_ab**2 / 5 + second
df = len(surgery) - 10
limit = stats.t.ppf(0.975, df)
covered = 1 - 2 * stats.t.sf(limit * np.sqrt(second / both), df)
print(f"model 4: its 95 % intervals cover the population's difference in {covered:.0%}")

# %%
rng = np.random.default_rng(20107)
cells, hits = sizes.stack(), []
for _ in range(4000):
    means = rng.normal(0, sd_ab, 10) + rng.normal(0, sigma_e / np.sqrt(cells))
    estimate = (means[1::2] - means[::2]).mean()
    error = np.sqrt(second) * np.sqrt(rng.chisquare(df) / df)
    hits.append(abs(estimate) < limit * error)
error = np.std(hits) / np.sqrt(len(hits))
print(f"by simulation: {np.mean(hits):.1%}, give or take {2 * error:.1%}")
assert abs(np.mean(hits) - covered) < 4 * error

# %% [markdown]
# The interval is right for the average of the five teams that were drawn, and wrong for teams.
#
# ## Is the interaction there?
#
# The variance of the interaction can be tested, or its posterior be looked at. Zero is at the edge
# of what a variance can be, so the p-value of an ordinary likelihood-ratio test is about twice too
# large. `blm.exact_lrt` simulates the distribution of the statistic instead:

# %%
null, alternative = list(fits.values())[1:3]
blm.exact_lrt(null, alternative, random_seed=1)[["chisq", "p_value", "p_boundary"]].round(4)

# %%
posteriors = {name: models[name].fit(random_seed=1) for name in list(models)[1:3]}
posterior = posteriors["3  team x procedure random"]
random_sds = ["sd[team, Intercept]", "sd[team:procedure, Intercept]"]
posterior.plot.prior_posterior(random_sds, figure_kwargs={"figsize": (8, 2.8)})
plt.show()

# %%
questions = ["sd[team:procedure] > 2", "sd[team:procedure] > sd[team]"]
larger = posterior.hypothesis(questions)
larger.table()[["mean", "sd", "probability", "prior_odds", "posterior_odds"]].round(2)

# %% [markdown]
# Both say that the interaction is there. Had the test been silent, that would be no reason to go
# back to model 2: five teams can hide a large interaction. The posterior needs no such choice. It
# averages over interactions from none to large, as far as each is plausible.
#
# ## The posterior of the difference

# %%
lower = "procedure[P2] - procedure[P1] < 0"
answers = {name: post.hypothesis(lower).table() for name, post in posteriors.items()}
columns = ["mean", "sd", "probability", "posterior_odds", "bound"]
pd.concat(answers).droplevel(1)[columns].round(3)

# %%
posterior.plot.hypothesis(lower)
plt.show()

# %% [markdown]
# Under the model that has one difference for all teams, (nearly) all draws agree that the second
# procedure lowers the outcome; `bound` says where the odds are only a bound. Once teams may differ,
# the same data leave some doubt: five teams are a small sample of teams.
#
# ## What each team may expect, and a sixth
#
# With random interactions every team has its own difference, between its own data and the average
# of all. `target="conditional"` adds the random effects of the teams to the comparison.

# %%
means = surgery.groupby(["team", "procedure"], observed=True)["y"].mean().unstack()
raw = (means["P2"] - means["P1"]).rename("raw means")
own = posterior.comparisons("procedure", by="team", target="conditional").table()
pd.concat([raw, own.droplevel("contrast")], axis=1).round(1)

# %%
posterior.plot.comparisons("procedure", by="team", target="conditional")
plt.show()

# %% [markdown]
# The teams are shrunk towards their common mean. A sixth team has that mean and, beyond its
# uncertainty, the whole variance between teams: its difference is
# $\alpha_2 - \alpha_1 + (\alpha b)_{26} - (\alpha b)_{16}$ with two new interactions.

# %%
difference = "procedure[P2] - procedure[P1]"
draws = posterior.draws({"all teams": difference, "sd": "sd[team:procedure]"})
new = np.sqrt(2) * draws["sd"] * rng.standard_normal(len(draws))
draws["a sixth team"] = draws["all teams"] + new
sixth = draws[["all teams", "a sixth team"]]
pd.DataFrame(
    {
        "mean": sixth.mean(),
        "sd": sixth.std(),
        "P(P2 lower)": (sixth < 0).mean(),
    }
).round(2)

# %% [markdown]
# ## Teams nested in procedures
#
# If each team did one procedure only, teams would be nested in procedures. $b_j$ and
# $(\alpha b)_{ij}$ could not be told apart; one random effect $b_{ij}$ per team is left, **random
# because teams are**, as pots within moistures are in
# [the seedlings](01_lecture_seedlings.py). The model is then `y ~ procedure + (1 | team)` with
# five labels that differ, and the difference of the procedures is one between teams.
#
# ## Next
#
# - [A gauge study](17_gauge_rr.py): two random factors and their interaction, where the variances
#   are the question.
# - [Sleep study](03_sleepstudy_beside_reml.py): a covariate in place of the procedures, so that the
#   interaction with subjects is a random slope.
# - [Means and contrasts](../../how_to/means_and_contrasts.md): all that `contrasts` and
#   `comparisons` can do.
