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
# # Seedlings in pots: every matrix of a small mixed model
#
# Ten seedlings grow in four pots. Two pots are kept at one soil moisture, two at another. How
# much does moisture matter for height? The data are simulated, so the true parameters are known,
# and they are few enough to write every matrix down.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

plants = blm.load_dataset("lecture_plants")
number = plants.groupby("pot", observed=True).cumcount() + 1
plants.index = pd.Index(plants["pot"].astype(str) + number.astype(str))
plants.T

# %%
true = blm.describe_dataset("lecture_plants").true_values
pd.Series(true, name="true value").to_frame().T.round(2)

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for (pot, moisture), part in plants.groupby(["pot", "moisture"], observed=True):
    colour = "C0" if moisture == "1" else "C1"
    axis.plot([pot] * len(part), part["height"], "o", color=colour, alpha=0.8)
    axis.plot(pot, part["height"].mean(), "_", color=colour, markersize=24)
axis.set(xlabel="pot", ylabel="height")
axis.plot([], [], "o", color="C0", label="moisture 1")
axis.plot([], [], "o", color="C1", label="moisture 2")
axis.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# Seedlings of one pot share soil, light and neighbours. They are ten plants, but they are not ten
# independent answers to the question about moisture, because moisture was given to pots.
#
# ## Fixed or random?
#
# Moisture is a **fixed** effect. Its two levels are the ones that the question is about; a second
# experiment would use the same two, and what is wanted is their difference.
#
# Pots are a **random** effect. Nobody cares about pot A. A second experiment would use other
# pots, and the four that were used stand for all pots that might have been. What is wanted is how
# much pots differ, a variance, both because it is of interest and because it decides how
# precisely the difference between moistures is known.
#
# Taking pots as fixed would even be impossible here: each pot has one moisture, so with a free
# mean for every pot, nothing is left to tell moistures apart.
#
# ## The model, element by element
#
# Seedling $k$ in pot $j$ at moisture $i$ has height
#
# $$
# y_{ijk} = \mu + \alpha_i + u_{ij} + e_{ijk}, \qquad
# u_{ij} \sim N(0, \sigma_u^2), \qquad e_{ijk} \sim N(0, \sigma^2),
# $$
#
# all $u$ and $e$ independent. In matrices,
#
# $$
# y = X\beta + Zu + e, \qquad u \sim N(0, G), \qquad e \sim N(0, R).
# $$

# %%
model = blm.LMM("height ~ moisture + (1 | pot)", plants)
model

# %% [markdown]
# ## y and X
#
# With $\beta = (\mu, \alpha_1, \alpha_2)'$ there is a column for each parameter. That matrix is
# over-parameterised: the first column is the sum of the others, so it has three columns but rank
# two, and adding a constant to $\mu$ while taking it from $\alpha_1$ and $\alpha_2$ changes
# nothing that can be seen.

# %%
over = model.design.overparameterised().astype(int)
over.columns = ["μ", "α₁", "α₂"]
pd.concat({"y": model.y.to_frame(), "X": over}, axis=1)

# %%
print("columns:", over.shape[1], " rank:", np.linalg.matrix_rank(over))

# %% [markdown]
# The model needs a version of full rank. By default it sets $\alpha_1 = 0$ (treatment contrasts,
# as in R), so the intercept is the mean at moisture 1 and the second coefficient is the
# difference:

# %%
X = model.X.astype(int)
X.T

# %%
beta = pd.Series([true["Intercept"], true["moisture[T.2]"]], index=X.columns, name="β")
beta.to_frame().T

# %% [markdown]
# Both matrices span the same space, so every statement about means is the same in both: here the
# difference of the moistures is $\alpha_2 - \alpha_1$ in the one and the second coefficient in
# the other.
#
# ## Z and u
#
# $Z$ has a column for each pot, with a one in the rows of its seedlings. `effect_labels` names
# the columns; $u$ has one entry for each.

# %%
pots = pd.Index(model.effect_labels.get_level_values("level"), name=None)
Z = pd.DataFrame(model.Z.toarray().astype(int), index=X.index, columns=pots)
Z.T

# %%
u = pd.Series([true[f"u[pot, {pot}]"] for pot in pots], index=pots, name="u")
u.to_frame().T.round(3)

# %% [markdown]
# ## G and R
#
# Pots are independent with equal variance, so $G = \sigma_u^2 I_4$; the same holds for the
# residuals, $R = \sigma^2 I_{10}$. At the true values:

# %%
G = pd.DataFrame(true["sd[pot]"] ** 2 * np.eye(4), index=pots, columns=pots)
R = pd.DataFrame(true["sigma"] ** 2 * np.eye(10), index=X.index, columns=X.index)
G

# %%
R.iloc[:4, :4]  # and so on along the diagonal

# %% [markdown]
# ## ZZ′ and V = ZGZ′ + R
#
# $ZZ'$ has a one wherever two seedlings share a pot. It turns the variance of pots into
# covariances of seedlings.

# %%
Z @ Z.T

# %%
V = Z @ G @ Z.T + R
V.round(2)


# %%
def picture(matrix, title):
    """Draw a covariance matrix of seedlings with lines between the pots."""
    figure, axis = plt.subplots(figsize=(5.2, 4.4), layout="constrained")
    image = axis.imshow(matrix, cmap="Blues", vmin=0)
    for i, j in np.ndindex(matrix.shape):
        value = matrix.iloc[i, j]
        if value:
            dark = value > 0.6 * matrix.to_numpy().max()
            colour = "white" if dark else "black"
            text = f"{value:.2f}"
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
    ends = np.cumsum(plants["pot"].value_counts(sort=False))[:-1] - 0.5
    for end in ends:
        axis.axhline(end, color="0.7", linewidth=0.8)
        axis.axvline(end, color="0.7", linewidth=0.8)
    axis.set_xticks(range(len(matrix)), matrix.columns)
    axis.set_yticks(range(len(matrix)), matrix.index)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    axis.set_title(title)
    figure.colorbar(image, ax=axis, shrink=0.8)
    plt.show()


picture(V, "V at the true values")

# %% [markdown]
# $V$ is block-diagonal, one block per pot, of sizes 3, 2, 3 and 2. Within a block every pair of
# seedlings has covariance $\sigma_u^2$, on the diagonal stands $\sigma_u^2 + \sigma^2$, and
# between pots all is zero, also between two pots of one moisture.
#
# ## Two means, two variances
#
# Before the pots are known, and once they are:
#
# | | mean of $y$ | variance of $y$ |
# |---|---|---|
# | over all pots | $X\beta$ | $V = ZGZ' + R$ |
# | given these pots, $u$ | $X\beta + Zu$ | $R$ |

# %%
means = pd.DataFrame({"E(y) = Xβ": X @ beta, "E(y | u) = Xβ + Zu": X @ beta + Z @ u})
means.T.round(2)

# %% [markdown]
# Both can be checked by simulation: draw new pots each time, or keep the pots and draw new
# residuals only.

# %%
rng = np.random.default_rng(20101)
repeats = 50_000
residuals = rng.normal(0, true["sigma"], (repeats, 10))
new_pots = rng.normal(0, true["sd[pot]"], (repeats, 4)) @ Z.to_numpy().T
fixed_part = (X @ beta).to_numpy()
over_pots = fixed_part + new_pots + residuals
given_pots = fixed_part + (Z @ u).to_numpy() + residuals
pd.DataFrame(
    {
        "mean of y": [np.abs(over_pots.mean(0) - X @ beta).max()],
        "variance of y": [np.abs(np.cov(over_pots.T) - V).to_numpy().max()],
        "mean of y given u": [np.abs(given_pots.mean(0) - X @ beta - Z @ u).max()],
        "variance of y given u": [np.abs(np.cov(given_pots.T) - R).to_numpy().max()],
    },
    index=["largest deviation from the formula"],
).T.round(3)

# %% [markdown]
# ## Intraclass correlation
#
# The share of the pots in the variance is also the correlation of two seedlings of one pot, the
# ratio of the off-diagonal to the diagonal elements of $V$:
#
# $$
# \rho = \frac{\sigma_u^2}{\sigma_u^2 + \sigma^2} .
# $$

# %%
icc = true["sd[pot]"] ** 2 / (true["sd[pot]"] ** 2 + true["sigma"] ** 2)
print(f"{icc:.3f}", f"{V.loc['A1', 'A2'] / V.loc['A1', 'A1']:.3f}")

# %% [markdown]
# ## The REML fit
#
# So far the parameters were known. Now they are estimated from the ten heights.

# %%
reml = model.reml()
reml

# %%
names = {
    "beta[Intercept]": "Intercept",
    "beta[moisture[T.2]]": "moisture[T.2]",
    "sd[pot, Intercept]": "sd[pot]",
    "sigma": "sigma",
}
estimates = reml.summary()[["estimate", "std_error", "conf_low", "conf_high"]]
estimates.insert(0, "true", [true[names[row]] for row in estimates.index])
estimates.round(2)

# %% [markdown]
# Every interval covers the truth, and every interval is wide, that of the standard deviation of
# the pots most of all: it rests on two differences between two pots each. The degrees of freedom
# of the fixed effects, close to two in the table above, say the same: the comparison of moistures
# has the precision of four pots, not of ten plants.
#
# The estimated $V$ is a method of every fit, as are $G$ and $R$:

# %%
picture(reml.V(), "V at the REML estimates")

# %% [markdown]
# The predicted pot effects are shrunk towards zero: a pot's mean deviation counts only as far as
# its few seedlings make it credible. Beside them the true effects, which in practice nobody
# knows, and the mean deviations from the fixed part.

# %%
deviation = reml.residuals(random_effects=False).groupby(plants["pot"], observed=True)
pd.DataFrame(
    {
        "seedlings": deviation.size(),
        "mean deviation": deviation.mean(),
        "predicted": reml.ranef()["pot"]["Intercept"],
        "standard error": reml.ranef_sd()["pot"]["Intercept"],
        "true": u,
    }
).round(2)

# %% [markdown]
# ## The posterior
#
# The same model with priors. They are there before any fit:

# %%
model.priors.table()

# %%
posterior = model.fit(random_seed=1)
print(posterior.diagnostics)

# %%
table = posterior.summary()[["mean", "sd", "eti89_lb", "eti89_ub"]]
table.insert(0, "REML", estimates["estimate"])
table.insert(0, "true", estimates["true"])
table.round(2)

# %% [markdown]
# The centres of the fixed effects hardly differ from REML, but the posterior is wider than the
# standard errors, which take the estimated standard deviations for true; the posterior averages
# over all that are plausible. (The t distribution with two degrees of freedom makes up for it in
# the intervals of REML.) The standard deviation of the pots differs in its centre too. Its
# posterior is skewed, with a long right tail, so its mean lies above its mode. REML reports the
# highest point of a curve, the posterior the whole curve.

# %%
draws = posterior.data["posterior"]
sd_pot = draws["sd_pot"].to_numpy().ravel()
sigma = draws["sigma"].to_numpy().ravel()
share = sd_pot**2 / (sd_pot**2 + sigma**2)

figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
in_reml = {"sd": reml.sds["pot"].iloc[0], "icc": reml.icc().loc["pot", "estimate"]}
panels = [
    (axes[0], sd_pot, in_reml["sd"], true["sd[pot]"], "sd of pots", (0, 10)),
    (axes[1], share, in_reml["icc"], icc, "intraclass correlation", (0, 1)),
]
for axis, values, estimate, truth, label, limits in panels:
    axis.hist(values, bins=40, range=limits, density=True, color="C0", alpha=0.35)
    axis.axvline(estimate, color="black", label="REML")
    axis.axvline(truth, color="C1", linestyle="--", label="true")
    axis.set(xlabel=label, yticks=[], xlim=limits)
    axis.spines["left"].set_visible(False)
axes[0].legend(frameon=False)
plt.show()

# %%
posterior.icc().round(2)

# %% [markdown]
# The intraclass correlation is computed for every draw and summarised last. Ten seedlings in four
# pots leave it almost anywhere between zero and one. A single number would have hidden that.
#
# Asked directly: how probable is it that seedlings grow taller at moisture 2?

# %%
difference = draws["beta"].sel(coef="moisture[T.2]")
print(f"P(difference > 0 | data) = {float((difference > 0).mean()):.2f}")
