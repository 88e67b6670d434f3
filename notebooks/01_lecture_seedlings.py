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
# # The linear mixed model, on ten seedlings in four pots
#
# Ten seedlings grow in four pots. Two pots are kept at one soil moisture, two at another. How
# much does moisture matter for height?
#
# A first lecture on mixed models is often held on an example of this size, because every matrix
# can be written down. This notebook is that lecture: the model, its matrices, the mean and the
# variance of $y$, the joint distribution of everything that is random, and the question of when an
# effect is fixed and when random. Each formula stands beside its numbers, and the numbers are
# compared with what the package holds.
#
# **You will learn** to write a mixed model in scalars and in matrices, to derive $E(y)$ and
# $\text{Var}(y)$ line by line, to read $G$, $R$ and $V$ of a fit, and to say why a factor is
# random. **You need** the linear model $y = X\beta + e$ and the variance of a sum.
#
# The [slide-by-slide table](../lecture.md) lists all topics of such a lecture and where each is
# worked out.
#
# ## The letters
#
# Lectures and software name the same things differently. In this notebook the letters are the
# lecture's; the labels in code are the package's.
#
# | lecture | package | what it is |
# |---|---|---|
# | $y_{ijk}$ | `height`, row `"ijk"` | height of seedling $k$ in pot $j$ at moisture $i$ |
# | $\mu$, $\alpha_i$; together $\beta$ | `beta[Intercept]`, `beta[moisture[T.2]]` | fixed effects |
# | $p_{ij}$; together $u$ | `u[pot, ij, Intercept]`, `fit.ranef()` | random effects of pots |
# | $e_{ijk}$ | `fit.residuals()` | residuals |
# | $\sigma_p$, also $\sigma_u$ | `sd[pot, Intercept]` | standard deviation of pots |
# | $\sigma_e$ | `sigma` | standard deviation of residuals |
# | $X$, $Z$ | `model.X`, `model.Z` | what multiplies $\beta$ and $u$ |
# | $G$, $R$ | `fit.G()`, `fit.R()` | $\text{Var}(u)$, $\text{Var}(e)$ |
# | $\Sigma$ | `fit.V()`; many books write $V$ too | $\text{Var}(y)$ |
# | pots 11, 12, 21, 22 | `A`, `B`, `C`, `D` in the data set | renamed in the next cell |

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import bayeslmm as blm

plt.rcParams.update({"figure.dpi": 110})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

plants = blm.load_dataset("lecture_plants")
pots = {"A": "11", "B": "12", "C": "21", "D": "22"}
plants["pot"] = plants["pot"].cat.rename_categories(pots)
number = plants.groupby("pot", observed=True).cumcount() + 1
plants.index = pd.Index(plants["pot"].astype(str) + number.astype(str), name="ijk")
plants.T

# %% [markdown]
# The data are simulated, so the true values are known. The values of the pots were drawn once,
# from a normal distribution with standard deviation $\sigma_p$.

# %%
true = blm.describe_dataset("lecture_plants").true_values
mu, alpha = true["Intercept"], np.array([0.0, true["moisture[T.2]"]])
sigma_p, sigma_e = true["sd[pot]"], true["sigma"]
p = pd.Series({new: true[f"u[pot, {old}]"] for old, new in pots.items()}, name="p")
print(f"μ = {mu}, α = {alpha}, σ_p = {sigma_p}, σ_e = {sigma_e}")
p.to_frame().T.round(3)

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
# ## The model in matrices
#
# $$
# \begin{gathered}
# y = X\beta + Zu + e, \\
# u \sim N(0, G), \qquad e \sim N(0, R), \qquad u \perp e,
# \end{gathered}
# $$
#
# the last of which says that $u$ and $e$ are independent.
#
# With $n$ rows, $p$ fixed effects and $q$ random effects:
#
# | | size | here | what it is | |
# |---|---|---|---|---|
# | $y$ | $n \times 1$ | $10 \times 1$ | response | observed |
# | $X$ | $n \times p$ | $10 \times 3$ | design of the fixed effects | known |
# | $\beta$ | $p \times 1$ | $3 \times 1$ | fixed effects: constants | **estimated** |
# | $Z$ | $n \times q$ | $10 \times 4$ | design of the random effects | known |
# | $u$ | $q \times 1$ | $4 \times 1$ | random effects: random variables | **predicted** |
# | $e$ | $n \times 1$ | $10 \times 1$ | residuals: random variables | not seen |
# | $G$ | $q \times q$ | $4 \times 4$ | variance of $u$ | form known, $\sigma_p$ **estimated** |
# | $R$ | $n \times n$ | $10 \times 10$ | variance of $e$ | form known, $\sigma_e$ **estimated** |
#
# ($X$ has three columns as the lecture writes it, and two of them are enough, as is shown below.)
# One estimates what is constant and predicts what is random. The posterior makes no such
# distinction: it is a distribution of everything that is not known, given $y$.
#
# In the package, a formula and a data frame make the model. Nothing is fitted yet, and the
# matrices can be looked at:

# %%
model = blm.LMM("height ~ moisture + (1 | pot)", plants)
Z = pd.DataFrame(model.Z.toarray(), index=model.X.index, columns=list(p.index))
print("y", model.y.shape, " X", model.X.shape, " Z", model.Z.shape)

# %% [markdown]
# ## The model, element by element
#
# $$
# \begin{gathered}
# y_{ijk} = \mu + \alpha_i + p_{ij} + e_{ijk}, \\
# p_{ij} \sim N(0, \sigma_p^2), \qquad e_{ijk} \sim N(0, \sigma_e^2),
# \end{gathered}
# $$
#
# all independent. Written out, these are ten equations, one per seedling. The residuals are what
# is left of the heights: $e = y - X\beta - Zu$.


# %%
class Formula(str):
    """A formula in LaTeX, which notebooks show as one."""

    def _repr_latex_(self):
        return f"$$\n{self}\n$$"


def letters(name):
    """The labels of ten seedlings: `letters("y")` gives y_111, y_112, ..."""
    return [f"{name}_{{{ijk}}}" for ijk in plants.index]


moisture = plants["moisture"].astype(int)
equation = r"y_{{{0}}} &= \mu + \alpha_{i} + p_{{{0[0]}{0[1]}}} + e_{{{0}}}"
lines = [equation.format(ijk, i=ijk[0]) for ijk in plants.index]
Formula(r"\begin{aligned}" + r" \\ ".join(lines) + r"\end{aligned}")

# %%
equations = pd.DataFrame(
    {
        "y": plants["height"],
        "= μ": mu,
        "+ α_i": alpha[moisture - 1],
        "+ p_ij": p[plants["pot"]].to_numpy(),
    },
    index=plants.index,
)
e = equations["y"] - equations[["= μ", "+ α_i", "+ p_ij"]].sum(axis=1)
equations["+ e_ijk"] = e
equations.round(3)

# %% [markdown]
# The three seedlings of pot 11 have the same $p_{11}$, to the last digit, and three residuals. That
# is the whole idea: a value drawn once per pot and shared by its seedlings makes them alike.
#
# ## The same ten equations as one
#
# Stack the equations. Each of $\mu$, $\alpha_1$, $\alpha_2$ gets a column of $X$, each pot a
# column of $Z$, with a one where the equation has it and a zero elsewhere.


# %%
def matrix(values, form="{:.0f}"):
    """A matrix in LaTeX: of labels, or of numbers in some format."""
    rows = [[v] if np.ndim(v) == 0 else v for v in np.asarray(values)]
    cells = [[v if isinstance(v, str) else form.format(v) for v in row] for row in rows]
    inside = r" \\ ".join(" & ".join(row) for row in cells)
    return rf"\begin{{bmatrix}} {inside} \end{{bmatrix}}"


X_over = model.design.overparameterised()
beta_over = np.r_[mu, alpha]
Formula(
    matrix(letters("y"))
    + "="
    + matrix(X_over)
    + matrix([r"\mu", r"\alpha_1", r"\alpha_2"])
    + "+"
    + matrix(Z)
    + matrix([f"p_{{{pot}}}" for pot in Z])
    + "+"
    + matrix(letters("e"))
)

# %% [markdown]
# And with the true values in it:

# %%
two = "{:.2f}"
Formula(
    matrix(plants["height"], two)
    + "="
    + matrix(X_over)
    + matrix(beta_over)
    + "+"
    + matrix(Z)
    + matrix(p, two)
    + "+"
    + matrix(e, two)
)

# %% [markdown]
# These are the matrices of the package, not only of this page:

# %%
y = model.y.to_numpy()
right = X_over.to_numpy() @ beta_over + Z.to_numpy() @ p.to_numpy() + e.to_numpy()
print(f"largest difference of y and Xβ + Zu + e: {np.abs(y - right).max():.1e}")
assert np.abs(y - right).max() < 1e-12
model.effect_labels.to_frame(index=False)  # what the columns of Z are

# %% [markdown]
# ## X has a column too many
#
# The first column of $X$ is the sum of the other two, so it has three columns but rank two. Adding
# a constant to $\mu$ and taking it from $\alpha_1$ and $\alpha_2$ changes no mean of $y$, so no
# data can tell such values apart.

# %%
print("columns:", X_over.shape[1], " rank:", np.linalg.matrix_rank(X_over))

# %% [markdown]
# What can be told apart is called **estimable**: a combination $\lambda'\beta$ is estimable if and
# only if $\lambda'$ is a combination of rows of $X$, because then it is a combination of means of
# $y$. In numbers: if adding the row $\lambda'$ does not raise the rank.

# %%
combinations = {
    "μ": [1, 0, 0],
    "α₁": [0, 1, 0],
    "μ + α₁": [1, 1, 0],
    "α₂ - α₁": [0, -1, 1],
    "μ + (α₁ + α₂) / 2": [1, 0.5, 0.5],
}
rank = np.linalg.matrix_rank(X_over)
estimable = {
    name: np.linalg.matrix_rank(np.vstack([X_over, row])) == rank
    for name, row in combinations.items()
}
pd.Series(estimable, name="estimable").to_frame().T

# %% [markdown]
# So software uses a version of full rank. Here $\alpha_1 = 0$ (treatment contrasts, as in R): the
# intercept is the mean at moisture 1 and the second coefficient is the difference
# $\alpha_2 - \alpha_1$.

# %%
X = model.X.astype(int)
beta = pd.Series([mu, alpha[1] - alpha[0]], index=X.columns, name="β")
X.T

# %%
gap = X.to_numpy() @ beta.to_numpy() - X_over.to_numpy() @ beta_over
assert np.linalg.matrix_rank(np.hstack([X, X_over])) == 2  # both span the same space
print("largest difference of the two Xβ:", np.abs(gap).max())

# %% [markdown]
# Both matrices span the same space, so every estimable quantity is the same in both.
#
# ## The mean and the variance of y
#
# $X$, $Z$ and $\beta$ are constants; $u$ and $e$ are random, with means zero, and independent of
# each other. That is all that is needed. The mean:
#
# $$
# \begin{aligned}
# E(y) &= E(X\beta + Zu + e) && \text{the model} \\
# &= X\beta + Z\,E(u) + E(e) && \text{the mean of a sum; constants come out} \\
# &= X\beta && E(u) = 0 \text{ and } E(e) = 0
# \end{aligned}
# $$
#
# The variance:
#
# $$
# \begin{aligned}
# \text{Var}(y) &= \text{Var}(X\beta + Zu + e) && \text{the model} \\
# &= \text{Var}(Zu + e) && \text{constants added change no variance} \\
# &= \text{Var}(Zu) + \text{Var}(e) + C + C' && \text{the variance of a sum} \\
# &= \text{Var}(Zu) + \text{Var}(e) && C = \text{Cov}(Zu, e) = Z\,\text{Cov}(u, e) = 0 \\
# &= Z\,\text{Var}(u)\,Z' + \text{Var}(e) && \text{Var}(Au) = A\,\text{Var}(u)\,A' \\
# &= ZGZ' + R =: \Sigma && \text{the names } G \text{ and } R
# \end{aligned}
# $$
#
# Given the pots, $u$ is a constant too, and the same rules give the conditional moments:
#
# | | mean of $y$ | variance of $y$ |
# |---|---|---|
# | over all pots | $E(y) = X\beta$ | $\text{Var}(y) = ZGZ' + R$ |
# | given these pots | $E(y \mid u) = X\beta + Zu$ | $\text{Var}(y \mid u) = R$ |

# %%
marginal = X @ beta
conditional = marginal + Z @ p
pd.DataFrame({"E(y) = Xβ": marginal, "E(y | u) = Xβ + Zu": conditional}).T.round(2)

# %% [markdown]
# Random effects move nobody's mean over all pots. They say who varies together.
#
# ## The joint distribution
#
# Pots are alike and independent, and so are residuals:
#
# $$
# G = \sigma_p^2 I_4, \qquad R = \sigma_e^2 I_{10}, \qquad
# \begin{bmatrix} u \\ e \end{bmatrix} \sim
# N\left( \begin{bmatrix} 0 \\ 0 \end{bmatrix},
# \begin{bmatrix} G & 0 \\ 0 & R \end{bmatrix} \right).
# $$
#
# The zero blocks are $\text{Cov}(u, e) = 0$ and $\text{Cov}(e, u) = 0$. All else follows, because
# $y$ and $u$ are a linear function of $u$ and $e$, and linear functions of normals are normal:
#
# $$
# \begin{bmatrix} y \\ u \end{bmatrix} =
# \begin{bmatrix} X\beta \\ 0 \end{bmatrix} +
# \underbrace{\begin{bmatrix} Z & I_{10} \\ I_4 & 0 \end{bmatrix}}_{A}
# \begin{bmatrix} u \\ e \end{bmatrix}, \qquad
# \text{Var}\begin{bmatrix} y \\ u \end{bmatrix} =
# A \begin{bmatrix} G & 0 \\ 0 & R \end{bmatrix} A' =
# \begin{bmatrix} ZGZ' + R & ZG \\ GZ' & G \end{bmatrix}.
# $$

# %%
G = pd.DataFrame(sigma_p**2 * np.eye(4), index=Z.columns, columns=Z.columns)
R = pd.DataFrame(sigma_e**2 * np.eye(10), index=Z.index, columns=Z.index)
Sigma = Z @ G @ Z.T + R

A = np.block([[Z.to_numpy(), np.eye(10)], [np.eye(4), np.zeros((4, 10))]])
zeros = np.zeros((4, 10))
of_both = np.block([[G.to_numpy(), zeros], [zeros.T, R.to_numpy()]])
joint = A @ of_both @ A.T
blocks = np.block([[Sigma.to_numpy(), Z @ G], [(Z @ G).T, G.to_numpy()]])
print(f"14 x 14, largest difference of the two sides: {np.abs(joint - blocks).max():.1e}")
assert np.abs(joint - blocks).max() < 1e-12

# %% [markdown]
# $\text{Cov}(y, u) = ZG$ says what a seedling knows of a pot: $\sigma_p^2$ if it grows there,
# nothing otherwise.

# %%
Formula(
    r"\text{Cov}(y, u) = ZG ="
    + matrix([[r"\sigma_p^2" if z else "0" for z in row] for row in Z.to_numpy()])
    + "="
    + matrix(Z @ G)
)

# %% [markdown]
# From the joint distribution everything else is read: leave out $u$ and it is the marginal
# distribution $y \sim N(X\beta, \Sigma)$, the likelihood; condition on $y$ and the mean of $u$ is
#
# $$
# E(u \mid y) = \text{Cov}(u, y)\,\text{Var}(y)^{-1}(y - E(y)) = GZ'\Sigma^{-1}(y - X\beta),
# $$
#
# the prediction of the pots. [Where the estimates come from](02_where_estimates_come_from.py)
# takes it from here.
#
# ## Var(y), written out
#
# With $G = \sigma_p^2 I$ and $R = \sigma_e^2 I$ the variance is
# $\Sigma = \sigma_p^2 ZZ' + \sigma_e^2 I$. The matrix $ZZ'$ has a one wherever two seedlings share
# a pot: it turns one variance of pots into covariances of seedlings.

# %%
Formula(r"ZZ' =" + matrix(Z @ Z.T))

# %% [markdown]
# So every element of $\Sigma$ is one of three things: $\sigma_y^2 = \sigma_p^2 + \sigma_e^2$ on the
# diagonal, $\sigma_p^2$ for two seedlings of a pot, and zero, a dot here, for all others.

# %%
same = (Z @ Z.T).to_numpy() > 0
symbols = np.where(same, r"\sigma_p^2", r"\cdot").astype(object)
np.fill_diagonal(symbols, r"\sigma_y^2")
Formula(r"\Sigma =" + matrix(symbols))

# %%
written = np.where(Sigma != 0, Sigma.map(two.format), r"\cdot")
Formula(r"\Sigma =" + matrix(written))

# %% [markdown]
# One block per pot, of sizes 3, 2, 3 and 2. Between pots all is zero, also between two pots of one
# moisture: that they share a moisture is in the mean, $X\beta$, and not in the variance.
#
# ## One block
#
# Pot 11 has three seedlings. With $J$ the matrix of ones, its block is
#
# $$
# \Sigma_{11} =
# \begin{bmatrix}
# \sigma_p^2 + \sigma_e^2 & \sigma_p^2 & \sigma_p^2 \\
# \sigma_p^2 & \sigma_p^2 + \sigma_e^2 & \sigma_p^2 \\
# \sigma_p^2 & \sigma_p^2 & \sigma_p^2 + \sigma_e^2
# \end{bmatrix}
# = \sigma_e^2 \left( \frac{\sigma_p^2}{\sigma_e^2} J + I \right)
# = \sigma_e^2
# \begin{bmatrix} r + 1 & r & r \\ r & r + 1 & r \\ r & r & r + 1 \end{bmatrix},
# \qquad r = \frac{\sigma_p^2}{\sigma_e^2} .
# $$
#
# On the diagonal stands $\sigma_e^2 (\sigma_p^2 / \sigma_e^2 + 1)$, off it
# $\sigma_e^2 \cdot \sigma_p^2 / \sigma_e^2 = \sigma_p^2$. Inside the brackets
# is only the ratio $r$. That is why software searches over relative variances and gets
# $\sigma_e^2$ by a formula, and why
# $\log\det\Sigma$ and $\Sigma^{-1}$ cost nothing here. For a pot of $m$ seedlings, $J$ has the
# eigenvalue $m$ once and zero $m - 1$ times, so that
#
# $$
# \det \Sigma_{ij} = \sigma_e^{2m} (1 + m r), \qquad
# \Sigma_{ij}^{-1} = \frac{1}{\sigma_e^2} \left( I - \frac{r}{1 + m r} J \right).
# $$

# %%
r = sigma_p**2 / sigma_e**2
checks, errors = {}, []
for pot, rows in Z.groupby(plants["pot"], observed=True).groups.items():
    block, m = Sigma.loc[rows, rows].to_numpy(), len(rows)
    inverse = (np.eye(m) - r / (1 + m * r) * np.ones((m, m))) / sigma_e**2
    checks[pot] = {
        "determinant": np.linalg.det(block),
        "by the formula": sigma_e ** (2 * m) * (1 + m * r),
    }
    errors.append(np.abs(block @ inverse - np.eye(m)).max())
checks = pd.DataFrame(checks).T
assert np.allclose(checks["determinant"], checks["by the formula"], rtol=1e-12)
assert max(errors) < 1e-12
print(f"block times inverse less I, largest element: {max(errors):.0e}")
checks.round(3)

# %% [markdown]
# ### The correlation within a pot
#
# Off-diagonal over diagonal is the correlation of two seedlings of a pot. It is also the share of
# the pots in the variance, and is called the intraclass correlation:
#
# $$
# \rho = \frac{\sigma_p^2}{\sigma_p^2 + \sigma_e^2} = \frac{r}{1 + r} .
# $$

# %%
rho = sigma_p**2 / (sigma_p**2 + sigma_e**2)
print(f"from σ_p and σ_e: {rho:.3f}, from Σ: {Sigma.iloc[0, 1] / Sigma.iloc[0, 0]:.3f}")

# %% [markdown]
# The mean of a pot with $m$ seedlings has variance $\sigma_p^2 + \sigma_e^2 / m$. More seedlings
# make only the second term smaller. Only more pots help with the first.

# %%
seedlings = [1, 2, 3, 10, 1000]
pd.DataFrame(
    {"variance of the mean of a pot": [sigma_p**2 + sigma_e**2 / m for m in seedlings]},
    index=pd.Index(seedlings, name="seedlings"),
).T.round(2)

# %% [markdown]
# ## A check by simulation
#
# Five claims about means and variances can be tried out: draw new pots each time, or keep the pots
# and draw new residuals only, and compare with the formulas.

# %%
rng = np.random.default_rng(20101)
repeats = 50_000
residuals = rng.normal(0, sigma_e, (repeats, 10))
new_pots = rng.normal(0, sigma_p, (repeats, 4))
over_pots = marginal.to_numpy() + new_pots @ Z.to_numpy().T + residuals
given_pots = conditional.to_numpy() + residuals
both = np.cov(np.hstack([over_pots, new_pots]).T)
deviations = pd.Series(
    {
        "E(y)": np.abs(over_pots.mean(0) - marginal).max(),
        "Var(y)": np.abs(both[:10, :10] - Sigma).to_numpy().max(),
        "Cov(y, u)": np.abs(both[:10, 10:] - Z @ G).to_numpy().max(),
        "E(y | u)": np.abs(given_pots.mean(0) - conditional).max(),
        "Var(y | u)": np.abs(np.cov(given_pots.T) - R).to_numpy().max(),
    },
    name="largest deviation from the formula",
)
assert deviations.max() < 0.2
deviations.round(3).to_frame().T

# %% [markdown]
# ## What a fit does with it
#
# So far the parameters were known. A fit knows $y$, $X$ and $Z$ only. REML finds the
# $\sigma_p$ and $\sigma_e$ that make $y$ most likely with $\beta$ averaged out, and then takes them
# for true: $\beta$ is generalised least squares with that $\Sigma$, and $u$ its prediction.

# %%
reml = model.reml()
reml

# %%
estimates = reml.summary()[["estimate", "std_error", "conf_low", "conf_high"]]
estimates.insert(0, "true", [*beta, sigma_p, sigma_e])
inside = estimates["true"].between(estimates["conf_low"], estimates["conf_high"])
print(f"{inside.sum()} of {len(inside)} intervals cover the truth")
estimates.round(2)

# %% [markdown]
# The interval of $\sigma_p$ is very wide: it rests on two differences between two pots each. The
# degrees of freedom of the fixed effects, about two in the table above, say the same. The
# comparison of moistures has the precision of four pots. Ordinary least squares takes the ten
# seedlings for independent and claims more:

# %%
alone = blm.LMM("height ~ moisture", plants).reml()
rows = {"pots ignored": alone, "pots random": reml}
pd.DataFrame({name: fit.fixef().loc["moisture[T.2]"] for name, fit in rows.items()}).T[
    ["estimate", "std_error", "df", "p_value", "conf_low", "conf_high"]
].round(3)

# %% [markdown]
# The estimated matrices are methods of the fit, `G()`, `R()` and `V()`, and a picture:

# %%
reml.plot.covariance("V")
plt.show()

# %%
sd = reml.sds["pot"].iloc[0]
by_hand = sd**2 * (Z @ Z.T).to_numpy() + reml.sigma**2 * np.eye(10)
gap = np.abs(reml.V().to_numpy() - by_hand).max()
print(f"V() and the formula above differ by at most {gap:.0e}")
assert gap < 1e-12

# %% [markdown]
# ### Predicted pots
#
# The prediction $GZ'\Sigma^{-1}(y - X\hat\beta)$ is simple when a pot has only an intercept. The
# mean deviation of the pot's $m$ seedlings is multiplied by
#
# $$
# \lambda_m = \frac{m \sigma_p^2}{m \sigma_p^2 + \sigma_e^2} = \frac{m r}{1 + m r} < 1,
# $$
#
# which is called shrinkage: a mean of few seedlings is believed only in part.

# %%
deviation = reml.residuals(random_effects=False).groupby(plants["pot"], observed=True)
m = deviation.size()
shrinkage = m * sd**2 / (m * sd**2 + reml.sigma**2)
predicted = reml.ranef()["pot"]["Intercept"]
matrices = reml.G().to_numpy() @ Z.to_numpy().T @ np.linalg.inv(reml.V().to_numpy())
blup = matrices @ (y - X.to_numpy() @ reml.beta.to_numpy())
assert np.allclose(predicted, blup, atol=1e-8)
assert np.allclose(predicted, shrinkage * deviation.mean(), atol=1e-8)
pd.DataFrame(
    {
        "seedlings": m,
        "mean deviation": deviation.mean(),
        "times": shrinkage,
        "predicted": predicted,
        "standard error": reml.ranef_sd()["pot"]["Intercept"],
        "true": p,
    }
).round(2)

# %% [markdown]
# ### The posterior
#
# The posterior takes nothing for true that is estimated. It needs priors, and they are there
# before any fit:

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

# %%
posterior.plot.reml(reml, col_wrap=2, figure_kwargs={"figsize": (8, 4.6)})
plt.show()

# %% [markdown]
# The posterior of $\beta$ is wider than the standard errors of REML, which take the estimated
# standard deviations for true; the posterior averages over all that are plausible. (The intervals
# of REML make up for it with a t distribution of about two degrees of freedom.) The posterior of
# $\sigma_p$ is skewed, with a long right tail: REML reports the highest point of a curve, the
# posterior the whole curve.
#
# How much of that curve is the data's? With four pots, not all of it. Prior and posterior in one
# picture:

# %%
posterior.plot.prior_posterior(["sd[pot, Intercept]", "sigma"])
plt.show()

# %% [markdown]
# Shrinkage in a picture: each pot by itself, its posterior mean and its REML prediction. The effect
# of moisture is taken out, so that all four stand around one line.

# %%
posterior.plot.shrinkage()
plt.show()

# %% [markdown]
# The intraclass correlation is computed on every draw and summarised last. Ten seedlings in four
# pots leave it almost anywhere between zero and one, which a single number would have hidden:

# %%
posterior.icc().round(2)

# %% [markdown]
# Asked directly: how probable is it that seedlings grow taller at moisture 2?

# %%
taller = posterior.hypothesis("moisture[T.2] > 0")
taller.table()[["mean", "sd", "probability", "prior_odds", "posterior_odds"]].round(2)

# %% [markdown]
# ## When is an effect fixed, when random?
#
# Moisture is a **fixed** effect here, pots are **random**. The questions that decide it:
#
# | question | fixed | random |
# |---|---|---|
# | Which levels matter? | these, by name | the population they are a sample of |
# | Who is in a repetition of the study? | the same levels | others, from that population |
# | What is wanted? | differences of levels | their variance; answers for new ones |
# | Before the data, are levels told apart? | yes | no: labels could be exchanged |
# | How many levels? | few will do | many, or their variance is hardly known |
# | Does a level learn from the others? | no | yes: small groups borrow strength |
#
# They need not agree. Four pots are few, but they are exchangeable, nobody asks about pot 11, and
# a repetition would use others. Exchangeability is the deepest of these reasons: if, knowing only
# the labels, you would bet the same on pot 11 as on pot 12, a common distribution is what you
# believe.
#
# | factor | usually | because | unless |
# |---|---|---|---|
# | treatment, dose, moisture | fixed | chosen for itself | a screen of many compounds |
# | school, hospital | random | results are for others too | these ten are to be ranked |
# | surgical team | random | a patient meets some team | this team's record is the question |
# | batch of raw material | random | the next batch is a new one | |
# | day, week | random | a sample of days | a trend over days: a covariate |
# | operator in a gauge study | random | others will use the gauge | these are all there ever are |
# | subject, animal, pot, plot | random | a sample, several rows each | |
# | sex; two countries of a trial | fixed | all levels are there | |
#
# ### It is not always a choice
#
# Taking pots as fixed is impossible here. Each pot has one moisture, so with a free mean for every
# pot nothing is left to tell moistures apart. The package drops a column and says so. The number
# under the name of moisture is then a difference of two pots:

# %%
impossible = blm.LMM("height ~ moisture + pot", plants).reml()
print("\n".join(impossible.notes))
means = plants.groupby("pot", observed=True)["height"].mean()
coefficient = impossible.beta["moisture[T.2]"]
print(f"'moisture[T.2]' is now {coefficient:.2f}, and pot 22 less pot 11 is")
print(f"{means['22']:.2f} - {means['11']:.2f} = {means['22'] - means['11']:.2f}")
assert np.isclose(coefficient, means["22"] - means["11"])

# %% [markdown]
# ### One mechanism
#
# To Bayes, fixed and random effects are not two kinds of things. Both are unknown and both have a
# normal prior. What differs is where its standard deviation comes from:
#
# - the prior of a **fixed** effect has a standard deviation that is set, wide or infinite. With an
#   infinite one (a flat prior) each level is estimated from its own data alone: nothing is
#   borrowed, and nothing can be said of a new level;
# - the standard deviation of **random** effects is a parameter with a prior of its own, and is
#   learned from how much the levels differ.
#
# `model.priors.table()` above shows both: a number for `beta`, a distribution for `sd[pot]`.
# So a fixed effect is the limit of a random one. The predictions of the pots, at standard
# deviations of pots from zero to very large:

# %%
limits, x, z = {}, X.to_numpy(), Z.to_numpy()
for value in [0.0, 0.5, sd, 5.0, 1000.0]:
    W = np.linalg.inv(value**2 * z @ z.T + reml.sigma**2 * np.eye(10))
    b = np.linalg.solve(x.T @ W @ x, x.T @ W @ y)
    pots_mean = x @ b + z @ (value**2 * z.T @ W @ (y - x @ b))
    name = f"σ_p = {round(value, 2):g}" + (" (REML)" if value == sd else "")
    limits[name] = pd.Series(pots_mean, plants["pot"]).groupby(level=0, observed=True).mean()
limits["means of the pots"] = means
assert np.allclose(limits["σ_p = 1000"], means, atol=1e-4)
pd.DataFrame(limits).T.round(2)

# %% [markdown]
# With $\sigma_p = 0$ all pots of a moisture are the same (complete pooling), with a very large one
# each pot is its own mean (no pooling), as if it were fixed. REML and the posterior choose in
# between, and the data choose for them.
#
# ## Nested in a random factor: random
#
# Pots are nested in moistures: pot 1 of moisture 1 and pot 1 of moisture 2 are different pots. That
# is why the effect is written $p_{ij}$ and not $p_j$. Seedlings are nested in pots, and because
# pots are a sample, their seedlings cannot be the same in a repetition: **a factor nested in a
# random one is random**. Here the innermost factor is the seedling, and its effect is $e_{ijk}$.
#
# If the data number the pots anew in each moisture, the formula has to say what a pot is. Labels
# that are reused without it make strangers share an effect:

# %%
plants["number"] = plants["pot"].astype(str).str[1]  # 1, 2 at moisture 1 and again at 2
formulas = ["(1 | pot)", "(1 | moisture:number)", "(1 | number)"]
nested = {f: blm.LMM(f"height ~ moisture + {f}", plants).reml() for f in formulas}
pd.DataFrame(
    {
        "random effects": {f: len(fit.design.Z_labels()) for f, fit in nested.items()},
        "log-likelihood (REML)": {f: fit.loglik for f, fit in nested.items()},
        "sd": {f: next(iter(fit.sds.values())).iloc[0] for f, fit in nested.items()},
    }
).round(3)

# %% [markdown]
# The first two are one model. The third has two effects for four pots, shared by pots that have
# nothing to do with each other.
#
# ## Interactions with a random factor: random
#
# If each pot were divided and both moistures given to it, the effect of moisture might differ from
# pot to pot: $y_{ijk} = \mu + \alpha_i + b_j + (\alpha b)_{ij} + e_{ijk}$. Pot $j$ is drawn from a
# population, and it brings its whole row with it, $b_j$ and $(\alpha b)_{1j}, (\alpha b)_{2j}$. A
# repetition draws other pots and gets other interactions. So **the interaction of a fixed with a
# random factor is random**. What happens to the standard error of $\alpha_2 - \alpha_1$ when that
# is forgotten is shown on five surgical teams in
# [Two procedures, five teams](04_teams_fixed_or_random.py).
#
# ## Next
#
# - [Where the estimates come from](02_where_estimates_come_from.py): from this joint distribution
#   to the likelihood, REML, the predictions and the posterior, each step in numbers.
# - [Two procedures, five teams](04_teams_fixed_or_random.py): fixed or random, and what it does to
#   standard errors.
# - [A gauge study](17_gauge_rr.py): three operators measure ten parts; the variances are the
#   question.
# - [The lecture, slide by slide](../lecture.md): every topic and where it is.
