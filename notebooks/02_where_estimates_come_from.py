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
# # Where the estimates come from
#
# A mixed model is fitted with one line, and the line returns numbers. This notebook computes
# every one of these numbers again, for ten seedlings in four pots: with matrices that fit on a
# sheet of paper, in plain NumPy. Each step has three parts. The formula is derived line by line,
# with a reason for each line. A few lines of code compute it. A check compares the result with
# the package, to eight decimals, and stops if they differ.
#
# **What you will know at the end:** what BLUP, GLS, ML and REML are and how they hang together;
# why nobody inverts an $n \times n$ matrix; what it means that a likelihood is *profiled*; and
# how the same function of two standard deviations gives a posterior distribution.
#
# **What you need:** products, inverses and determinants of matrices, the normal distribution, and
# the idea of maximum likelihood. [The seedlings' first notebook](01_lecture_seedlings) shows what
# the matrices mean; it helps, but everything used here is repeated. The last step is the only one
# with a prior.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
plt.rcParams.update({"figure.dpi": 110, "figure.constrained_layout.use": True})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})

plants = blm.load_dataset("lecture_plants")
number = plants.groupby("pot", observed=True).cumcount() + 1
plants.index = pd.Index(plants["pot"].astype(str) + number.astype(str))
plants.T

# %% [markdown]
# Two pots stand at moisture 1, two at moisture 2. Seedlings of one pot share its soil and its
# light, so they are alike. The model has a mean for each moisture and a random effect for each
# pot:

# %%
formula = "height ~ moisture + (1 | pot)"
model = blm.LMM(formula, plants)
seedlings, pots = plants.index, ["A", "B", "C", "D"]
y = model.y.to_numpy()
X = model.X.to_numpy()
Z = model.Z.toarray()
n, p = X.shape
q = Z.shape[1]
columns = pd.MultiIndex.from_tuples(
    [("y", "height"), ("X", "β₁"), ("X", "β₂"), *(("Z", pot) for pot in pots)]
)
matrices = pd.DataFrame(np.column_stack([y, X, Z]), index=seedlings, columns=columns)
matrices.astype(dict.fromkeys(columns[1:], int))

# %% [markdown]
# | symbol | size | what it is |
# |---|---|---|
# | $y$ | $n = 10$ | the heights |
# | $X$ | $10 \times 2$ | fixed part: a column of ones, and one for the seedlings at moisture 2 |
# | $\beta$ | $p = 2$ | the mean at moisture 1, and how much larger the mean at moisture 2 is |
# | $Z$ | $10 \times 4$ | a column for each pot, with a one in the rows of its seedlings |
# | $u$ | $q = 4$ | how much each pot differs from the mean of its moisture |
# | $e$ | $10$ | how much each seedling differs from its pot |
# | $\sigma_p$ | a number | standard deviation of the pots, `sd[pot]` in the package |
# | $\sigma_e$ | a number | standard deviation of seedlings within a pot, `sigma` in the package |
# | $\theta = \sigma_p / \sigma_e$ | a number | how different pots are, in units of the seedlings |
#
# Together, $y = X\beta + Zu + e$, where $u$ and $e$ are independent of each other,
# $u \sim N(0, \sigma_p^2 I_4)$ and $e \sim N(0, \sigma_e^2 I_{10})$. A prime is a transpose,
# $I_k$ is the unit matrix with $k$ rows, $|A|$ is a determinant, and $a'a$ is the sum of the
# squares of $a$.
#
# ## Five facts that every step uses
#
# The letters in them stand for anything of the right size.
#
# 1. **The normal density.** If $a \sim N(m, C)$ has $k$ entries, its density is
#    $(2\pi)^{-k/2}\,|C|^{-1/2} \exp\{-\tfrac12 (a-m)'C^{-1}(a-m)\}$. Minus twice its logarithm is
#    easier to handle: $k \log 2\pi + \log|C| + (a-m)'C^{-1}(a-m)$. All criteria here are minus
#    twice a log density, so *small is good*.
# 2. **Linear combinations of normal variables are normal.** If $a \sim N(m, C)$, then
#    $Ta \sim N(Tm, TCT')$. For independent $a$ and $b$, means and covariance matrices of $a + b$
#    add up.
# 3. **Parts of a normal vector that are uncorrelated are independent.**
# 4. **The gradient of a sum of squares.** The derivatives of $(y - Tb)'W(y - Tb)$ by the entries
#    of $b$ are $-2T'W(y - Tb)$, for a symmetric matrix $W$. Where they are zero is the minimum,
#    if $W$ is positive definite and no column of $T$ is a combination of the others.
# 5. **An integral.** $\int \exp\{-\tfrac12 (b-m)'Q(b-m)\}\,db = (2\pi)^{k/2}\,|Q|^{-1/2}$, over
#    all $b$ with $k$ entries: this is fact 1 with $C = Q^{-1}$, since a density has integral one.
#
# ## Steps 1 to 5: the two standard deviations are known
#
# To begin with, somebody tells us $\sigma_p = 2$ and $\sigma_e = 1.2$. (The data are simulated,
# and these are the true values.) The package can be told too, and is then left with less to do:

# %%
sigma_p, sigma_e = 2.0, 1.2
theta = sigma_p / sigma_e
known = blm.LMM(formula, plants, fixed={"sd[pot]": sigma_p, "sigma": sigma_e})
known_ml, known_reml = known.ml(), known.reml()
print(known_reml)


# %% [markdown]
# One small function does all the checking. It prints the largest difference between what was
# computed by hand and what the package has.


# %%
def same(what, by_hand, package, within=1e-8):
    """Compare two results, print the largest difference, stop if it is large."""
    by_hand, package = np.asarray(by_hand, float), np.asarray(package, float)
    assert by_hand.shape == package.shape, f"{what}: {by_hand.shape}, {package.shape}"
    difference = float(np.max(np.abs(by_hand - package)))
    assert difference < within, f"{what}: {by_hand} against {package}"
    print(f"{what}: largest difference {difference:.0e}")


# %% [markdown]
# ## 1. The joint density of heights and pot effects
#
# Suppose for a moment that the pot effects $u$ could be seen. Their joint density with the
# heights is a product, by the definition of a conditional density:
#
# $$
# p(y, u) = p(y \mid u)\; p(u).
# $$
#
# Both factors are in the model, for any given $\beta$. Given $u$, only $e$ is random, so
# $y \mid u \sim N(X\beta + Zu,\ \sigma_e^2 I_{10})$; and $u \sim N(0, \sigma_p^2 I_4)$. By fact
# 1, with $|\sigma^2 I_k| = \sigma^{2k}$,
#
# $$
# \begin{aligned}
# -2\log p(y, u) ={}& n\log 2\pi\sigma_e^2 + q\log 2\pi\sigma_p^2 \\
# &+ \frac{(y - X\beta - Zu)'(y - X\beta - Zu)}{\sigma_e^2} + \frac{u'u}{\sigma_p^2} .
# \end{aligned}
# $$


# %%
def joint(beta, u, sigma_p, sigma_e):
    """Minus twice the log of the joint density of the heights and the pot effects."""
    rest = y - X @ beta - Z @ u
    constants = n * np.log(2 * np.pi * sigma_e**2) + q * np.log(2 * np.pi * sigma_p**2)
    return constants + rest @ rest / sigma_e**2 + u @ u / sigma_p**2


# %% [markdown]
# The last two terms pull in different directions. The first is the **fit**: it is small when
# $X\beta + Zu$ is close to the heights. The second is the **size of u**: it is small when the
# pots hardly differ. Take $\beta$ as the two means of the moistures, and three proposals for $u$:
# no differences at all, the full differences between the means of pots and of moistures, and 85 %
# of these.

# %%
at_moisture_1, at_moisture_2 = y[:5].mean(), y[5:].mean()
beta_means = np.array([at_moisture_1, at_moisture_2 - at_moisture_1])
pot_means = Z.T @ y / Z.sum(axis=0)
differences = pot_means - np.repeat([at_moisture_1, at_moisture_2], 2)
rows = {}
for name, share in [("none", 0.0), ("full", 1.0), ("85 %", 0.85)]:
    u = share * differences
    rest = y - X @ beta_means - Z @ u
    fit, size = rest @ rest / sigma_e**2, u @ u / sigma_p**2
    total = joint(beta_means, u, sigma_p, sigma_e)
    rows[name] = {"fit": fit, "size of u": size, "sum": fit + size}
    rows[name]["-2 log p(y, u)"] = total
pd.DataFrame(rows).T.rename_axis("differences of pots").round(2)

# %% [markdown]
# Full differences fit best, but of the three a little less than full has the smallest sum: this
# is where shrinkage comes from. Multiply the sum by $\sigma_e^2$ and it reads
#
# $$
# (y - X\beta - Zu)'(y - X\beta - Zu) + \frac{1}{\theta^2}\, u'u ,
# $$
#
# least squares with a penalty on the size of $u$ (ridge regression, for who knows it). The
# penalty is $\sigma_e^2 / \sigma_p^2 = 1/\theta^2$: the more alike the pots are, compared with
# the seedlings in them, the dearer it is to call a pot different.
#
# ## 2. The smallest value over β and u together: Henderson's equations
#
# The sum has both unknowns in squares, so it has one minimum, where all derivatives are zero:
#
# - By $\beta$ (fact 4 with $T = X$): $\ -2X'(y - X\beta - Zu) = 0$. There is no $\beta$ in the
#   penalty.
# - By $u$ (fact 4 with $T = Z$, and the derivative $2u$ of $u'u$):
#   $\ -2Z'(y - X\beta - Zu) + \tfrac{2}{\theta^2} u = 0$.
# - Divide both by $-2$, multiply out, and bring what contains $y$ to the right. The first becomes
#   $X'X\beta + X'Zu = X'y$, the second $Z'X\beta + (Z'Z + \tfrac{1}{\theta^2}I_4)u = Z'y$. As one
#   matrix equation:
#
# $$
# \begin{bmatrix} X'X & X'Z \\ Z'X & Z'Z + \tfrac{1}{\theta^2} I_4 \end{bmatrix}
# \begin{bmatrix} \hat\beta \\ \tilde u \end{bmatrix}
# = \begin{bmatrix} X'y \\ Z'y \end{bmatrix} .
# $$
#
# These are the **mixed-model equations** of Henderson (1950, 1975). Without
# $\frac{1}{\theta^2} I_4$ they would be the normal equations of ordinary least squares with a
# column for each pot, and they would have no unique solution, because the columns of pots C and D
# add up to that of moisture 2. The penalty makes the solution unique. With numbers:

# %%
penalty = np.eye(q) / theta**2
left = np.block([[X.T @ X, X.T @ Z], [Z.T @ X, Z.T @ Z + penalty]])
right = np.concatenate([X.T @ y, Z.T @ y])
names = ["β₁", "β₂", *pots]
equations = pd.DataFrame(left, index=names, columns=names)
equations["right-hand side"] = right
equations.round(2)

# %% [markdown]
# Read the row of pot A: it has three seedlings, all at moisture 1, whose heights add up to the
# right-hand side; and $0.36 = 1.2^2 / 2^2$ is the penalty.

# %%
solution = np.linalg.solve(left, right)
beta_hat, u_tilde = solution[:p], solution[p:]
package_u = known_reml.ranef()["pot"]["Intercept"]
print("β:", beta_hat.round(4), " u:", u_tilde.round(4))
same("fixed effects", beta_hat, known_reml.beta)
same("effects of pots", u_tilde, package_u)

# %% [markdown]
# So one linear system of six equations gives what the package calls `beta` and `ranef`. The next
# two steps say what the two halves of its solution are. (As long as the standard deviations are
# known, ML and REML have the same estimates. Their criteria differ; step 7 says why.)
#
# ## 3. The effects of pots are a conditional expectation (BLUP)
#
# Having seen the heights, what do we expect of the pots? This is $E(u \mid y)$. It follows from
# the covariances. Write $G = \sigma_p^2 I_4$ for the covariance matrix of $u$. Then
#
# - $V := \operatorname{var}(y) = ZGZ' + \sigma_e^2 I_{10}$, by fact 2 and since $Zu$ and $e$ are
#   independent;
# - $\operatorname{cov}(u, y) = \operatorname{cov}(u, Zu + e) = GZ'$, since $u$ and $e$ are
#   independent.
#
# Now split $u$ into a linear function of $y$ and a rest $w$ that has nothing to do with $y$:
#
# - Let $w = u - Hy$ with some $4 \times 10$ matrix $H$. Then
#   $\operatorname{cov}(w, y) = \operatorname{cov}(u, y) - H\operatorname{var}(y) = GZ' - HV$.
# - Choose $H = GZ'V^{-1}$, so that this is zero. By fact 3, $w$ is independent of $y$.
# - So $E(u \mid y) = E(w \mid y) + Hy = E(w) + Hy$, and $E(w) = E(u) - H\,E(y) = -HX\beta$.
#   Together
#
# $$
# E(u \mid y) = GZ'V^{-1}(y - X\beta).
# $$
#
# What is not yet known of the pots once the heights are seen is their conditional covariance
# matrix:
#
# $$
# \begin{aligned}
# \operatorname{var}(u \mid y) &= \operatorname{var}(w) && w \text{ is independent of } y \\
# &= G - HZG - GZ'H' + HVH' && \text{variance of } u - Hy \\
# &= G - GZ'V^{-1}ZG && \text{each of the three is } \pm GZ'V^{-1}ZG .
# \end{aligned}
# $$

# %%
G = sigma_p**2 * np.eye(q)
V = Z @ G @ Z.T + sigma_e**2 * np.eye(n)
pd.DataFrame(V, index=seedlings, columns=seedlings).round(2)

# %%
V_inverse = np.linalg.inv(V)
blup = G @ Z.T @ V_inverse @ (y - X @ beta_hat)
conditional = G - G @ Z.T @ V_inverse @ Z @ G
same("V", V, known_reml.V())
same("conditional expectation against Henderson", blup, u_tilde)
same("conditional expectation against the package", blup, package_u)
sd_given_beta = known_reml.ranef_sd(given_beta=True)["pot"]["Intercept"]
same("conditional sd of u", np.sqrt(np.diag(conditional)), sd_given_beta)

# %% [markdown]
# **Why both are the same.** The second of Henderson's equations says
# $\tilde u = (Z'Z + \tfrac{1}{\theta^2}I)^{-1} Z'(y - X\beta)$. So it must be shown that
# $(Z'Z + \tfrac{1}{\theta^2}I)^{-1}Z' = GZ'V^{-1}$. Here $G = \sigma_p^2 I$:
#
# $$
# \begin{aligned}
# (Z'Z + \tfrac{1}{\theta^2}I)\,GZ'
# &= Z'ZGZ' + \tfrac{1}{\theta^2}\sigma_p^2 Z' && \text{multiplied out} \\
# &= Z'ZGZ' + \sigma_e^2 Z' && \text{since } \theta^2 = \sigma_p^2/\sigma_e^2 \\
# &= Z'(ZGZ' + \sigma_e^2 I) && Z' \text{ taken out on the left} \\
# &= Z'V && \text{what } V \text{ is.}
# \end{aligned}
# $$
#
# Multiply by $(Z'Z + \frac{1}{\theta^2}I)^{-1}$ from the left and by $V^{-1}$ from the right, and
# that is it. This identity is used once more in step 4.
#
# **By hand, pot by pot.** $Z'Z$ is diagonal: it holds the numbers of seedlings $n_j$. So the
# second equation falls apart into four, one for each pot,
#
# $$
# \tilde u_j = \frac{1}{n_j + 1/\theta^2} \sum_{k} (y_{jk} - x_{jk}'\hat\beta)
# = \underbrace{\frac{n_j\sigma_p^2}{n_j\sigma_p^2 + \sigma_e^2}}_{\text{shrinkage factor}}
# \times \underbrace{\frac{1}{n_j}\sum_k (y_{jk} - x_{jk}'\hat\beta)}_{\text{mean deviation}} ,
# $$
#
# where the sums go over the seedlings $k$ of pot $j$, and $x_{jk}'$ is the row of $X$ of such a
# seedling. (The second form is the first, with numerator and denominator multiplied by
# $n_j\sigma_p^2$, since $\sigma_p^2/\theta^2 = \sigma_e^2$.)

# %%
n_j = Z.sum(axis=0)
factor = n_j * sigma_p**2 / (n_j * sigma_p**2 + sigma_e**2)
deviation = Z.T @ (y - X @ beta_hat) / n_j
by_pot = pd.DataFrame(
    {
        "seedlings": n_j.astype(int),
        "shrinkage factor": factor,
        "mean deviation": deviation,
        "product": factor * deviation,
        "package": package_u.to_numpy(),
    },
    index=pd.Index(pots, name="pot"),
)
same("shrinkage by hand", factor * deviation, package_u)
by_pot.round(4)

# %% [markdown]
# Three seedlings say more about their pot than two, so their pot is shrunk less. With
# $\sigma_p^2 = 0$ the factor is zero, and all pots are the same; with very large $\sigma_p^2$ it
# is one, and each pot is taken at its own mean. `ranef` is called BLUP, *best linear unbiased
# prediction*: among all linear combinations of the heights that are right on average, this one
# has the smallest expected squared error (Robinson 1991).

# %% tags=["hide-input"]
figure, axis = plt.subplots(figsize=(6.4, 3.6))
fixed_part = X @ beta_hat
for j, colour in enumerate(["C0", "C0", "C1", "C1"]):
    own = Z[:, j] == 1
    spread = np.linspace(j - 0.12, j + 0.12, int(n_j[j]))
    label = "seedling" if j == 0 else None
    axis.plot(spread, y[own], "o", color=colour, alpha=0.5, label=label)
    for value, style, label in [
        (fixed_part[own][0], ":", "mean of the moisture"),
        (pot_means[j], "--", "mean of the pot"),
        (fixed_part[own][0] + u_tilde[j], "-", "prediction for the pot"),
    ]:
        label = label if j == 0 else None
        axis.hlines(value, j - 0.32, j + 0.32, colour, style, label=label)
axis.set(xticks=range(q), xlabel="pot", ylabel="height", ylim=(19, 28))
axis.set_xticklabels(pots)
axis.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# ## 4. The fixed effects are generalised least squares (GLS)
#
# Averaged over the pots, the heights have mean $X\beta$ and covariance matrix $V$, so by fact 1
# the density of $y$ is highest where $(y - X\beta)'V^{-1}(y - X\beta)$ is smallest.
#
# - Derivative by $\beta$ (fact 4 with $W = V^{-1}$): $\ -2X'V^{-1}(y - X\beta) = 0$.
# - Solved for $\beta$: $\ \hat\beta = (X'V^{-1}X)^{-1}X'V^{-1}y$.
# - It is right on average: $E(\hat\beta) = (X'V^{-1}X)^{-1}X'V^{-1}X\beta = \beta$.
# - Its covariance matrix, by fact 2 with $T = (X'V^{-1}X)^{-1}X'V^{-1}$:
#   $\ TVT' = (X'V^{-1}X)^{-1}\,X'V^{-1}V\,V^{-1}X\,(X'V^{-1}X)^{-1} = (X'V^{-1}X)^{-1}$.

# %%
information = X.T @ V_inverse @ X
covariance = np.linalg.inv(information)
beta_gls = covariance @ X.T @ V_inverse @ y
same("GLS against Henderson", beta_gls, beta_hat)
same("GLS against the package", beta_gls, known_reml.beta)
same("covariance matrix of the fixed effects", covariance, known_reml.vcov)
same("standard errors", np.sqrt(np.diag(covariance)), known_reml.fixef()["std_error"])

# %% [markdown]
# **Why Henderson's first equation has the same solution.** Put $\tilde u$ of the second equation
# into the first:
#
# - $0 = X'(y - X\beta) - X'Z\tilde u = X'F\,(y - X\beta)$ with the matrix
#   $F = I - Z(Z'Z + \tfrac{1}{\theta^2}I)^{-1}Z'$.
# - By the identity of step 3, $FV = V - ZGZ'V^{-1}V = V - ZGZ' = \sigma_e^2 I$.
# - So $F = \sigma_e^2 V^{-1}$, and the equation is $\sigma_e^2 X'V^{-1}(y - X\beta) = 0$: the one
#   of GLS.
#
# **By hand.** The mean of pot $j$ has variance $\sigma_p^2 + \sigma_e^2/n_j$. The best mean of
# two independent measurements weights each by one over its variance. So GLS must make of each
# moisture a weighted mean of its two pots; and the variance of a difference is the sum of the
# variances:

# %%
weight = 1 / (sigma_p**2 + sigma_e**2 / n_j)
mean_1 = weight[:2] @ pot_means[:2] / weight[:2].sum()
mean_2 = weight[2:] @ pot_means[2:] / weight[2:].sum()
variance_1, variance_2 = 1 / weight[:2].sum(), 1 / weight[2:].sum()
same("weighted means of pots", [mean_1, mean_2 - mean_1], known_reml.beta)
same(
    "their standard errors",
    np.sqrt([variance_1, variance_1 + variance_2]),
    known_reml.fixef()["std_error"],
)
as_independent = np.sqrt(np.diag(np.linalg.inv(X.T @ X)) * (sigma_p**2 + sigma_e**2))
by_pots = np.sqrt(variance_1 + variance_2)
print(f"standard error of the difference of moistures: {by_pots:.2f}")
print(f"if the ten seedlings were independent, it would be {as_independent[1]:.2f}")

# %% [markdown]
# The comparison of moistures rests on four pots. More seedlings in the same pots would lower
# $\sigma_e^2/n_j$, but $\sigma_p^2$ would stay.
#
# ## 5. Integrating out u, and why no n × n matrix is needed
#
# The pot effects are not seen, and what is seen must have a density without them. It is the
# *marginal* density, the joint one averaged over everything that $u$ might be,
#
# $$
# p(y) = \int p(y, u)\, du .
# $$
#
# There are two ways to it. Their results must be equal, and that is why nobody needs $V^{-1}$.
#
# **The first way: no integral at all.** $y = X\beta + Zu + e$ is a sum of independent normal
# vectors, so by fact 2 it is normal, $y \sim N(X\beta, V)$. Write $V = \sigma_e^2 V_0$ with
# $V_0 = I_{10} + \theta^2 ZZ'$, so that $|V| = \sigma_e^{2n}|V_0|$. By fact 1
#
# $$
# \begin{aligned}
# -2\log p(y) ={}& n \log 2\pi\sigma_e^2 + \log|V_0| \\
# &+ \frac{1}{\sigma_e^2}(y - X\beta)'V_0^{-1}(y - X\beta).
# \end{aligned}
# $$
#
# **The second way: complete the square.** For fixed $\beta$, call the penalised sum of squares of
# step 1 $\operatorname{PSS}(u)$, and let $M = Z'Z + \frac{1}{\theta^2}I_4$. A quadratic function
# is its minimum plus its quadratic part, measured from where the minimum is:
#
# $$
# \operatorname{PSS}(u) = \operatorname{PSS}(\tilde u) + (u - \tilde u)'M(u - \tilde u) .
# $$
#
# The exponent of the joint density is $-\frac{1}{2\sigma_e^2}\operatorname{PSS}(u)$. By fact 5
# with $Q = M/\sigma_e^2$,
#
# $$
# \begin{aligned}
# \int \exp\left\{-\frac{\operatorname{PSS}(u)}{2\sigma_e^2}\right\}du
# ={}& \exp\left\{-\frac{\operatorname{PSS}(\tilde u)}{2\sigma_e^2}\right\} \\
# &\times (2\pi\sigma_e^2)^{q/2}\,|M|^{-1/2} .
# \end{aligned}
# $$
#
# Take minus twice the logarithm, and add the constants of step 1:
#
# $$
# \begin{aligned}
# -2\log p(y) ={}& n\log 2\pi\sigma_e^2 + q\log 2\pi\sigma_p^2 \\
# &+ \frac{\operatorname{PSS}(\tilde u)}{\sigma_e^2} - q\log 2\pi\sigma_e^2 + \log|M| .
# \end{aligned}
# $$
#
# The two terms with $q$ are together $q\log\theta^2 = \log|\theta^2 I_4|$, and
# $|\theta^2 I_4|\,|M| = |I_4 + \theta^2 Z'Z|$. So
#
# $$
# \begin{aligned}
# -2\log p(y) ={}& n\log 2\pi\sigma_e^2 + \log|I_4 + \theta^2 Z'Z| \\
# &+ \frac{1}{\sigma_e^2}\operatorname{PSS}(\tilde u).
# \end{aligned}
# $$
#
# Both formulas hold for every $y$. At $y = X\beta$ the last terms are zero (then $\tilde u = 0$),
# so the determinants must be equal, and then the last terms too:
#
# $$
# \begin{aligned}
# |I_{10} + \theta^2 ZZ'| &= |I_4 + \theta^2 Z'Z| , \\
# (y - X\beta)'V_0^{-1}(y - X\beta) &= \operatorname{PSS}(\tilde u).
# \end{aligned}
# $$
#
# The left sides need a $10 \times 10$ matrix, the right sides a $4 \times 4$ one, here even a
# diagonal one. Both identities hold for any matrix in place of $\theta Z$. They have names, and
# can be proved without integrals.
#
# **Determinant lemma.** With $B = \theta Z$, compute the determinant of one matrix in two ways.
# Adding multiples of rows to other rows does not change a determinant; so clear the lower left
# block by the first rows, or the upper right block by the last rows:
#
# $$
# \begin{aligned}
# \begin{vmatrix} I_{10} & B \\ -B' & I_4 \end{vmatrix}
# &= \begin{vmatrix} I_{10} & B \\ 0 & I_4 + B'B \end{vmatrix} = |I_4 + B'B| , \\[1ex]
# \begin{vmatrix} I_{10} & B \\ -B' & I_4 \end{vmatrix}
# &= \begin{vmatrix} I_{10} + BB' & 0 \\ -B' & I_4 \end{vmatrix} = |I_{10} + BB'| .
# \end{aligned}
# $$
#
# **Woodbury's formula.** $V_0^{-1} = I_{10} - B(I_4 + B'B)^{-1}B'$. To see it, multiply by
# $V_0 = I_{10} + BB'$:
#
# $$
# \begin{aligned}
# &\left[I_{10} - B(I_4 + B'B)^{-1}B'\right](I_{10} + BB') \\
# &\quad= I_{10} + BB' - B(I_4 + B'B)^{-1}(B' + B'BB') && \text{multiplied out} \\
# &\quad= I_{10} + BB' - B(I_4 + B'B)^{-1}(I_4 + B'B)B' && B' \text{ taken out} \\
# &\quad= I_{10} && \text{the last two cancel.}
# \end{aligned}
# $$

# %%
V0 = np.eye(n) + theta**2 * Z @ Z.T
B = theta * Z
inner = np.eye(q) + B.T @ B
woodbury = np.eye(n) - B @ np.linalg.inv(inner) @ B.T
pd.DataFrame(inner, index=pots, columns=pots).round(3)

# %%
log_det = np.linalg.slogdet(V0)[1]
print(f"|V0| as the product of four numbers: {np.prod(np.diag(inner)):.4f}")
same("determinant lemma", np.log(np.diag(inner)).sum(), log_det)
same("Woodbury's formula", woodbury, np.linalg.inv(V0))

# %% [markdown]
# $1 + n_j\theta^2$ for each pot, that is all that is left of a $10 \times 10$ determinant. For
# the 73,421 ratings of teachers in lme4's InstEval, $V$ would have more than five thousand
# million entries.
#
# The log likelihood at the known standard deviations, and three ways to it:
#
# - the density of $N(X\hat\beta, V)$ with the $10 \times 10$ matrix;
# - the $4 \times 4$ matrix and the penalised sum of squares $\operatorname{PSS}(\tilde u)$;
# - the integral over $u$ done numerically. The pots are independent, so it is the product of four
#   integrals over one variable each, done here by adding up values on a fine grid.

# %%
rest = y - X @ beta_hat
minimum = np.sum((rest - Z @ u_tilde) ** 2) + u_tilde @ u_tilde / theta**2
constant = n * np.log(2 * np.pi * sigma_e**2)
with_V = constant + log_det + rest @ np.linalg.inv(V0) @ rest / sigma_e**2
without_V = constant + np.log(np.diag(inner)).sum() + minimum / sigma_e**2

grid = np.linspace(-20, 20, 4001)


def normal(value, sd):
    """Density of a normal variable with mean zero."""
    return np.exp(-0.5 * (value / sd) ** 2) / (sd * np.sqrt(2 * np.pi))


numerically = 0.0
for j in range(q):
    heights = rest[Z[:, j] == 1]
    values = normal(heights[:, None] - grid, sigma_e).prod(axis=0)
    values *= normal(grid, sigma_p)
    numerically -= 2 * np.log(values.sum() * (grid[1] - grid[0]))

same("with V against the package", with_V, -2 * known_ml.loglik)
same("without V against the package", without_V, -2 * known_ml.loglik)
same("integral against the package", numerically, -2 * known_ml.loglik)

# %% [markdown]
# One more check ties step 1 to the package. For any $u$ whatever, $p(y) = p(y, u) / p(u \mid y)$,
# by the definition of a conditional density. Step 3 has $p(u \mid y)$, a normal density. So the
# joint density of step 1, taken at a $u$ that is plainly wrong, still gives the package's
# likelihood:

# %%
u_wrong = np.array([1.0, -2.0, 3.0, 0.5])
gap = u_wrong - blup
given_y = q * np.log(2 * np.pi) + np.linalg.slogdet(conditional)[1]
given_y += gap @ np.linalg.inv(conditional) @ gap
from_joint = joint(beta_hat, u_wrong, sigma_p, sigma_e) - given_y
same("joint over conditional density", from_joint, -2 * known_ml.loglik)

# %% [markdown]
# ## 6. Profiling: from four unknowns to one
#
# Now nobody tells us the standard deviations. The criterion of maximum likelihood (ML) is step
# 5's,
#
# $$
# \begin{aligned}
# D(\beta, \sigma_e, \theta) ={}& n\log 2\pi\sigma_e^2 + \log|I_4 + \theta^2 Z'Z| \\
# &+ \frac{1}{\sigma_e^2}(y - X\beta)'V_0(\theta)^{-1}(y - X\beta) ,
# \end{aligned}
# $$
#
# to be made as small as possible over $\beta$ (two numbers), $\sigma_e$ and $\theta$. One could
# search in four dimensions. But for most of the unknowns the best value can be written down,
# *given the others*. To **profile** a parameter out means: put in its place the value that is
# best given the others. The smallest value of what is left is the smallest value of all, because
# $\min_{a, b} f(a, b) = \min_b\,[\min_a f(a, b)]$: look for the best $a$ for each $b$ first, then
# for the best $b$.
#
# **β out.** Only the last term has $\beta$, and step 4 says where it is smallest. $\sigma_e^2$
# cancels in $\hat\beta = (X'V_0^{-1}X)^{-1}X'V_0^{-1}y$, so this is a function of $\theta$ alone.
# Write $r^2(\theta) = (y - X\hat\beta)'V_0^{-1}(y - X\hat\beta)$ for what the term comes to.
#
# **σ out.** What is left is $n\log 2\pi\sigma_e^2 + r^2/\sigma_e^2$ plus something without
# $\sigma_e$.
#
# - Its derivative by $\sigma_e^2$ is $\frac{n}{\sigma_e^2} - \frac{r^2}{\sigma_e^4}$.
# - It is zero at $\hat\sigma_e^2(\theta) = r^2(\theta)/n$, negative before and positive after; so
#   this is the minimum.
# - Put it in: $r^2/\hat\sigma_e^2 = n$, and
#
# $$
# d(\theta) = n\left[1 + \log\frac{2\pi\, r^2(\theta)}{n}\right] + \log|I_4 + \theta^2 Z'Z| .
# $$
#
# One function of one unknown. The larger $\theta$, the better the pots can follow the data and
# the smaller is $r^2$; the determinant grows and holds against it.


# %%
def at(theta):
    """The best beta for a theta, r squared, and the two log determinants."""
    B = theta * Z
    inner = np.eye(q) + B.T @ B
    V0_inverse = np.eye(n) - B @ np.linalg.inv(inner) @ B.T
    information = X.T @ V0_inverse @ X
    beta = np.linalg.solve(information, X.T @ V0_inverse @ y)
    rest = y - X @ beta
    r2 = rest @ V0_inverse @ rest
    return beta, r2, np.linalg.slogdet(inner)[1], np.linalg.slogdet(information)[1]


def full_ml(theta, sigma_e):
    """The ML criterion with only beta profiled out."""
    _, r2, log_det, _ = at(theta)
    return n * np.log(2 * np.pi * sigma_e**2) + log_det + r2 / sigma_e**2


def profiled_ml(theta):
    """The ML criterion with beta and sigma profiled out."""
    _, r2, log_det, _ = at(theta)
    return n * (1 + np.log(2 * np.pi * r2 / n)) + log_det


search = {"bounds": (0, 5), "method": "bounded", "options": {"xatol": 1e-10}}
best = minimize_scalar(profiled_ml, **search)
theta_ml = best.x
beta_ml, r2_ml, *_ = at(theta_ml)
sigma_e_ml = np.sqrt(r2_ml / n)
sigma_p_ml = theta_ml * sigma_e_ml
print(f"θ = {theta_ml:.4f}, σ_e = {sigma_e_ml:.4f}, σ_p = θ σ_e = {sigma_p_ml:.4f}")

# %% [markdown]
# In the picture to the left, the criterion before $\sigma_e$ is profiled out, as a map: lines of
# equal height over $\theta$ and $\sigma_e$, with the height above the lowest point written on
# them. The thick line is $\hat\sigma_e(\theta)$, the lowest point above each $\theta$. Walk along
# it from left to right and write down the height: this is the profile, to the right.

# %% tags=["hide-input"]
thetas, sigmas = np.linspace(0, 3, 121), np.linspace(0.9, 3.2, 121)
surface = np.array([[full_ml(t, s) for t in thetas] for s in sigmas])
profile = np.array([profiled_ml(t) for t in thetas])
ridge = np.array([np.sqrt(at(t)[1] / n) for t in thetas])

figure, axes = plt.subplots(1, 2, figsize=(7, 3.4))
depths = [0.1, 0.5, 1, 2, 4, 8, 16]
lines = axes[0].contour(thetas, sigmas, surface - best.fun, depths, colors="C0", linewidths=1)
axes[0].clabel(lines, depths[2:], fontsize=9, fmt="%g")
axes[0].plot(thetas, ridge, color="C1", linewidth=2)
axes[0].plot(theta_ml, sigma_e_ml, "o", color="C1")
axes[0].set(xlabel="θ", ylabel="σ_e", title="criterion − its minimum", ylim=(0.9, 3.2))
axes[1].plot(thetas, profile, color="C1", linewidth=2)
axes[1].plot(theta_ml, best.fun, "o", color="C1")
near = {"textcoords": "offset points", "color": "C1"}
axes[1].annotate("ML", (theta_ml, best.fun), (6, -16), **near)
axes[1].set(xlabel="θ", ylabel="ML criterion", title="along the line")
axes[1].set_ylim(best.fun - 1, None)
plt.show()

# %% [markdown]
# The package does the same search, and so does lme4:

# %%
ml = model.ml()
package_theta = ml.sds["pot"].iloc[0] / ml.sigma
same("ML criterion", best.fun, ml.criterion)
same("β", beta_ml, ml.beta, within=1e-6)
same("σ_e", sigma_e_ml, ml.sigma, within=1e-6)
same("θ", theta_ml, package_theta, within=1e-6)

# %% [markdown]
# The criterion agrees to eight decimals and more; $\theta$ is only asked for six. This is no
# carelessness. Near a minimum a function is flat: an error of $10^{-7}$ in $\theta$ changes the
# criterion by something like $10^{-14}$, and that is as fine as the computer's numbers are. No
# search that compares values of the criterion can find the place much better. At the *same*
# $\theta$ all agrees to eight decimals again:

# %%
estimates = {"sd[pot]": ml.sds["pot"].iloc[0], "sigma": ml.sigma}
there = blm.LMM(formula, plants, fixed=estimates).ml()
beta_there, r2_there, *_ = at(package_theta)
same("criterion at the package's θ", full_ml(package_theta, ml.sigma), there.criterion)
same("β at the package's θ", beta_there, ml.beta)
same("σ_e at the package's θ", np.sqrt(r2_there / n), ml.sigma)

# %% [markdown]
# Look at the profile once more: at $\theta = 0$, no differences between pots at all, it is hardly
# higher than at its minimum. With four pots the data cannot tell. A single number, the estimate,
# does not show this. Step 10 does.
#
# ## 7. ML against REML
#
# **The simplest case.** A sample $y_1, \dots, y_n$ of $N(\mu, \sigma^2)$ has the ML estimates
# $\hat\mu = \bar y$ and $\hat\sigma^2 = \frac1n\sum(y_i - \bar y)^2$. The second is too small on
# average:
#
# - $\sum(y_i - \mu)^2 = \sum(y_i - \bar y)^2 + n(\bar y - \mu)^2$: multiply out
#   $(y_i - \bar y) + (\bar y - \mu)$, and the mixed term vanishes since $\sum(y_i - \bar y) = 0$.
# - Expectations: $n\sigma^2 = E\sum(y_i - \bar y)^2 + n\,\frac{\sigma^2}{n}$.
# - So $E\sum(y_i - \bar y)^2 = (n-1)\sigma^2$.
#
# $\bar y$ lies closer to the sample than $\mu$ does, because it was computed from it. One number
# was estimated, one *degree of freedom* is used up, and everybody divides by $n - 1$. A mixed
# model has the same trouble, only worse: moistures were estimated from four pots, and two of four
# degrees of freedom are gone. There are two ways to REML (*restricted*, or *residual*, maximum
# likelihood). They lead to the same place.
#
# ### First way: look only at what β cannot change
#
# Take combinations $K'y$ of the heights with $K'X = 0$, such as differences between seedlings of
# one pot, or between the pots of one moisture. They are called *error contrasts*. Since
# $K'y = K'X\beta + K'(Zu + e) = K'(Zu + e)$, their distribution does not depend on $\beta$: by
# fact 2, $K'y \sim N(0, K'VK)$. There are $n - p = 8$ of them that do not repeat each other. In
# the simplest case, with $V = \sigma^2 I$ and the columns of $K$ orthogonal and of length one,
# the $n - 1$ contrasts are independent with variance $\sigma^2$ and mean zero, and the sum of
# their squares is $\sum(y_i - \bar y)^2$. ML applied to them divides this by their number,
# $n - 1$.
#
# The last eight columns of an orthogonal matrix whose first two span the columns of $X$ will do:

# %%
K = np.linalg.qr(X, mode="complete")[0][:, p:]
assert np.abs(K.T @ X).max() < 1e-12


def of_contrasts(K, V):
    """Minus twice the log density of the error contrasts."""
    contrasts, C = K.T @ y, K.T @ V @ K
    quadratic = contrasts @ np.linalg.inv(C) @ contrasts
    return len(contrasts) * np.log(2 * np.pi) + np.linalg.slogdet(C)[1] + quadratic


# %% [markdown]
# ### Second way: average over β
#
# ML puts in the best $\beta$. Instead, integrate $\beta$ out, as $u$ was in step 5, with every
# value of $\beta$ counting the same (a *flat prior*).
#
# - Let $f(\beta) = (y - X\beta)'V^{-1}(y - X\beta)$. Again it is its minimum, plus the quadratic
#   part measured from there:
#   $f(\beta) = f(\hat\beta) + (\beta - \hat\beta)'X'V^{-1}X(\beta - \hat\beta)$.
# - $\int p(y \mid \beta)\,d\beta = p(y \mid \hat\beta) \times (2\pi)^{p/2}\,|X'V^{-1}X|^{-1/2}$,
#   by fact 5 with $Q = X'V^{-1}X$.
# - Minus twice the logarithm:
#
# $$
# \begin{aligned}
# -2\log p(y \mid \theta, \sigma_e) ={}& (n - p)\log 2\pi + \log|V| + \log|X'V^{-1}X| \\
# &+ (y - X\hat\beta)'V^{-1}(y - X\hat\beta) .
# \end{aligned}
# $$
#
# The new term is the price for not knowing $\beta$. By numerical integration over a grid of
# values of $\beta$, by the formula, and by the package:

# %%
by_formula = (n - p) * np.log(2 * np.pi) + np.linalg.slogdet(V)[1]
by_formula += np.linalg.slogdet(X.T @ V_inverse @ X)[1]
by_formula += (y - X @ beta_hat) @ V_inverse @ (y - X @ beta_hat)

reach = 10 * np.sqrt(np.diag(covariance))
steps = np.linspace(-1, 1, 201)
first, second = np.meshgrid(*(beta_hat[:, None] + reach[:, None] * steps))
rests = y - first[..., None] * X[:, 0] - second[..., None] * X[:, 1]
exponents = np.einsum("...i,ij,...j", rests, V_inverse, rests)
densities = np.exp(-0.5 * exponents) / np.sqrt((2 * np.pi) ** n * np.linalg.det(V))
volume = densities.sum() * np.prod(reach * (steps[1] - steps[0]))

same("formula against the package", by_formula, known_reml.criterion)
same("integral against the package", -2 * np.log(volume), known_reml.criterion)

# %% [markdown]
# ### Why both ways agree
#
# They differ by $\log|X'X|$, which has no parameter in it (for an orthogonal $K$ as above):

# %%
constant_term = np.linalg.slogdet(X.T @ X)[1]
differences = []
for sd_p, sd_e in [(2.0, 1.2), (0.5, 1.0), (4.0, 2.5)]:
    there = blm.LMM(formula, plants, fixed={"sd[pot]": sd_p, "sigma": sd_e}).reml()
    differences.append(there.criterion - of_contrasts(K, there.V().to_numpy()))
same("difference of the two, at three places", differences, np.full(3, constant_term))

# %% [markdown]
# **The quadratic terms.** Let $F = V^{1/2}K$ and $H = V^{-1/2}X$, with the symmetric root of $V$.
#
# - $F'H = K'X = 0$, so the $n - p$ columns of $F$ are orthogonal to the $p$ columns of $H$, and
#   together they span the whole space.
# - So every vector is the sum of its projections onto the two:
#   $\ I = F(F'F)^{-1}F' + H(H'H)^{-1}H'$.
# - With $V^{-1/2}$ on both sides: $\ V^{-1} = K(K'VK)^{-1}K' + V^{-1}X(X'V^{-1}X)^{-1}X'V^{-1}$.
# - With $y'$ and $y$ on both sides, and the last term brought to the left:
#   $\ (y - X\hat\beta)'V^{-1}(y - X\hat\beta) = y'K(K'VK)^{-1}K'y$.
#
# **The determinants.** Let $X_1 = X(X'X)^{-1/2}$. Its columns are orthogonal and of length one,
# so $W = [K, X_1]$ is an orthogonal matrix, $W'W = I$.
#
# - $|V| = |W'VW|$, since $|W|^2 = 1$. The upper left block of $W'VW$ is $K'VK$. Clear what stands
#   below it, as in step 5, and call what is then in the lower right $\Delta$:
#   $|W'VW| = |K'VK|\,|\Delta|$.
# - $\Delta^{-1}$ is the lower right block of the inverse of $W'VW$, and this inverse is
#   $W'V^{-1}W$. So $\Delta^{-1} = X_1'V^{-1}X_1$.
# - So $\log|K'VK| = \log|V| + \log|X_1'V^{-1}X_1|$, and the last term is
#   $\log|X'V^{-1}X| - \log|X'X|$.
#
# With other contrasts in $K$ another constant appears, and no estimate changes. But the constant
# depends on $X$. This is why restricted likelihoods of models with different fixed effects cannot
# be compared: they are densities of different things. Even the same model with moisture in other
# units has another one:

# %%
wet = plants.assign(wet=10.0 * (plants["moisture"] == "2"))
rescaled = blm.LMM("height ~ wet + (1 | pot)", wet)
reml = model.reml()
other_reml, other_ml = rescaled.reml().criterion, rescaled.ml().criterion
print(f"REML criterion: {reml.criterion:.4f}, in other units: {other_reml:.4f}")
print(f"ML criterion:   {ml.criterion:.4f}, in other units: {other_ml:.4f}")
change = other_reml - reml.criterion
same("change, against log 10²", change, np.log(10.0**2))

# %% [markdown]
# ### The profile of REML
#
# With $|V| = \sigma_e^{2n}|V_0|$ and $|X'V^{-1}X| = \sigma_e^{-2p}|X'V_0^{-1}X|$, the terms with
# $\sigma_e$ are $(n - p)\log\sigma_e^2 + r^2/\sigma_e^2$. By the same derivative as in step 6
# they are smallest at $\hat\sigma_e^2 = r^2/(n - p)$, and
#
# $$
# \begin{aligned}
# d_R(\theta) ={}& (n - p)\left[1 + \log\frac{2\pi\, r^2(\theta)}{n - p}\right] \\
# &+ \log|I_4 + \theta^2 Z'Z| + \log|X'V_0^{-1}X| .
# \end{aligned}
# $$


# %%
def profiled_reml(theta):
    """The REML criterion with sigma profiled out."""
    _, r2, log_det, log_det_fixed = at(theta)
    return (n - p) * (1 + np.log(2 * np.pi * r2 / (n - p))) + log_det + log_det_fixed


best_reml = minimize_scalar(profiled_reml, **search)
theta_reml = best_reml.x
beta_reml, r2_reml, *_ = at(theta_reml)
sigma_e_reml = np.sqrt(r2_reml / (n - p))
same("REML criterion", best_reml.fun, reml.criterion)
same("β", beta_reml, reml.beta, within=1e-6)
same("σ_e", sigma_e_reml, reml.sigma, within=1e-6)
same("θ", theta_reml, reml.sds["pot"].iloc[0] / reml.sigma, within=1e-6)

# %% [markdown]
# lme4 (version 1.1-31) reports for `lmer(height ~ moisture + (1 | pot), plants)`, with
# `REML = FALSE` and without:

# %%
lme4 = pd.DataFrame(
    {
        "ML": [39.7174006217, 0.4952586436, 1.6962426459, 20.7091778164, 4.4366779300],
        "REML": [36.0765574576, 1.3393818161, 1.6801380456, 20.6917395910, 4.3054932715],
    },
    index=["criterion", "σ_p", "σ_e", "β₁", "β₂"],
)
by_hand = {
    "ML": [best.fun, theta_ml * sigma_e_ml, sigma_e_ml, *beta_ml],
    "REML": [best_reml.fun, theta_reml * sigma_e_reml, sigma_e_reml, *beta_reml],
}
for name, values in by_hand.items():
    same(f"{name}, criterion", values[0], lme4[name].iloc[0])
    same(f"{name}, estimates", values[1:], lme4[name].iloc[1:], within=1e-6)
pd.concat({"lme4": lme4, "by hand": pd.DataFrame(by_hand, lme4.index)}, axis=1).round(6)

# %% tags=["hide-input"]
wide = np.linspace(0, 3, 201)
figure, axis = plt.subplots(figsize=(6.4, 3.2))
for name, function, optimum, colour, at_theta in [
    ("ML", profiled_ml, best, "C1", 1.2),
    ("REML", profiled_reml, best_reml, "C0", 2.4),
]:
    heights = np.array([function(t) for t in wide]) - optimum.fun
    axis.plot(wide, heights, color=colour, linewidth=2)
    axis.plot(optimum.x, 0, "o", color=colour)
    place = (at_theta, np.interp(at_theta, wide, heights))
    style = {"textcoords": "offset points", "color": colour, "ha": "right"}
    axis.annotate(name, place, (0, 6), **style)
axis.axvline(theta, color="0.5", linestyle=":")
axis.annotate("true θ", (theta, 2.6), (4, 0), textcoords="offset points", color="0.4")
axis.set(xlabel="θ", ylabel="criterion − its minimum", ylim=(-0.15, 3))
plt.show()

# %% [markdown]
# REML's estimate of the differences between pots is nearly three times as large as ML's, and both
# curves are flat around their minimum.
#
# ### The bias of ML, seen by simulation
#
# Heights of new seedlings in new pots, at the true values, thousands of times; for each data set
# both estimates, found on a grid of values of $\theta$, for all data sets at once.

# %%
repeats = 500 if SMOKE else 5000
rng = np.random.default_rng(7)
effects = sigma_p * rng.standard_normal((repeats, q)) @ Z.T
data_sets = X @ [20.0, 4.0] + effects + sigma_e * rng.standard_normal((repeats, n))

# %%
candidates = np.concatenate([[0.0], np.geomspace(0.03, 60, 300)])
r2s, dets, dets_fixed = [], [], []
for t in candidates:
    V0_inverse = np.linalg.inv(np.eye(n) + t**2 * Z @ Z.T)
    XtV = X.T @ V0_inverse
    P = V0_inverse - XtV.T @ np.linalg.solve(XtV @ X, XtV)  # then y'Py is r squared
    r2s.append(np.einsum("si,ij,sj->s", data_sets, P, data_sets))
    dets.append(-np.linalg.slogdet(V0_inverse)[1])
    dets_fixed.append(np.linalg.slogdet(XtV @ X)[1])
r2s = np.array(r2s)
dets, dets_fixed = np.array(dets)[:, None], np.array(dets_fixed)[:, None]

# %%
rows = {}
for name, divisor, determinants in [
    ("ML", n, dets),
    ("REML", n - p, dets + dets_fixed),
]:
    where = np.argmin(divisor * np.log(r2s) + determinants, axis=0)
    variance_e = r2s[where, np.arange(repeats)] / divisor
    variance_p = candidates[where] ** 2 * variance_e
    rows[name] = {
        "mean of σ_p²": variance_p.mean(),
        "± its Monte Carlo error": variance_p.std() / np.sqrt(repeats),
        "mean of σ_e²": variance_e.mean(),
        "share with σ_p = 0": np.mean(where == 0),
    }
rows["true"] = {"mean of σ_p²": sigma_p**2, "mean of σ_e²": sigma_e**2}
simulated = pd.DataFrame(rows).T
assert simulated.loc["ML", "mean of σ_p²"] < 0.65 * sigma_p**2
assert abs(simulated.loc["REML", "mean of σ_p²"] / sigma_p**2 - 1) < 0.2
simulated.map(lambda value: "" if np.isnan(value) else f"{value:.3f}")

# %% [markdown]
# ML finds about half of the variance between pots: it has four pots, spends two of them on the
# means of the moistures, and divides by four all the same. REML's mean differs from the truth by
# hardly more than the error of the simulation. Where there are hundreds of pots and few fixed
# effects, ML and REML are nearly the same.
#
# ## 8. One factorisation that holds it all: the blocked Cholesky
#
# So far there were inverses everywhere. The package computes none. It writes all sums of products
# that the data can contribute into one small matrix and factorises that.
#
# First a change of variable. Let $u = \Lambda v$ with $\Lambda = \theta I_4$, and
# $v \sim N(0, \sigma_e^2 I_4)$: the pot effects in units of the seedlings. The penalised sum of
# squares becomes $(y - X\beta - Z\Lambda v)'(y - X\beta - Z\Lambda v) + v'v$. Nothing is divided
# by $\theta$ now, so $\theta = 0$ is a value like others. In models with slopes $\Lambda$ is
# block diagonal, and all that follows stays.
#
# Put the columns side by side, $[Z\Lambda,\ X,\ y]$, multiply by the transpose, and add the
# penalty:
#
# $$
# A = \begin{bmatrix}
# \Lambda'Z'Z\Lambda + I_4 & \Lambda'Z'X & \Lambda'Z'y \\
# X'Z\Lambda & X'X & X'y \\
# y'Z\Lambda & y'X & y'y
# \end{bmatrix} .
# $$
#
# From here on with REML's estimates, as the package has them, in place of the true values:

# %%
theta = reml.sds["pot"].iloc[0] / reml.sigma
sigma_e, sigma_p = reml.sigma, reml.sds["pot"].iloc[0]
everything = np.column_stack([theta * Z, X, y])
A = everything.T @ everything
A[:q, :q] += np.eye(q)
names = [*(f"v_{pot}" for pot in pots), "β₁", "β₂", "y"]
pd.DataFrame(A, index=names, columns=names).round(3)

# %% [markdown]
# Every symmetric positive definite matrix is a product $A = LL'$ with $L$ lower triangular, zero
# above its diagonal. This is the *Cholesky factor*, Gaussian elimination for symmetric matrices.

# %%
L = np.linalg.cholesky(A)
same("L L' against A", L @ L.T, A)
pd.DataFrame(L, index=names, columns=names).round(3)

# %% [markdown]
# Cut it where the unknowns change, after the four pots and after the two fixed effects:
#
# $$
# L = \begin{bmatrix}
# L_{ZZ} & 0 & 0 \\ L_{XZ} & L_{XX} & 0 \\ \ell_{yZ}' & \ell_{yX}' & r
# \end{bmatrix} .
# $$
#
# Multiply $LL'$ out, block by block, and compare with $A$:
#
# - **Upper left:** $L_{ZZ}L_{ZZ}' = \Lambda'Z'Z\Lambda + I_4$. The determinant of a triangular
#   matrix is the product of its diagonal, so
#   $\log|V_0| = \log|\Lambda'Z'Z\Lambda + I_4| = 2\sum\log (L_{ZZ})_{jj}$, with step 5's
#   determinant lemma.
# - **Below it:** $L_{XZ}L_{ZZ}' = X'Z\Lambda$, so $L_{XZ} = X'Z\Lambda (L_{ZZ}')^{-1}$.
# - **Middle:** $L_{XZ}L_{XZ}' + L_{XX}L_{XX}' = X'X$. So $L_{XX}L_{XX}'$ is
#   $X'X - X'Z\Lambda(\Lambda'Z'Z\Lambda + I_4)^{-1}\Lambda'Z'X$, and by Woodbury's formula this
#   is $X'V_0^{-1}X$. Hence $\log|X'V_0^{-1}X| = 2\sum\log(L_{XX})_{kk}$: the term of REML.
# - **Last row, left and middle, in the same way:** $L_{XX}\ell_{yX} = X'V_0^{-1}y$.
# - **Last row, right:** $\ell_{yZ}'\ell_{yZ} + \ell_{yX}'\ell_{yX} + r^2 = y'y$. Woodbury's
#   formula turns the difference of the outer two into $y'V_0^{-1}y$, so
#   $r^2 = y'V_0^{-1}y - y'V_0^{-1}X(X'V_0^{-1}X)^{-1}X'V_0^{-1}y$. Put $\hat\beta$ into
#   $(y - X\beta)'V_0^{-1}(y - X\beta)$ and multiply out: this is the $r^2$ of step 6.
#
# So the whole criterion stands on the diagonal of $L$:

# %%
L_ZZ, L_XZ, L_XX = L[:q, :q], L[q : q + p, :q], L[q : q + p, q : q + p]
l_yZ, l_yX, r = L[-1, :q], L[-1, q : q + p], L[-1, -1]
log_diagonal = np.log(np.diag(L))
dof = n - p
criterion = 2 * log_diagonal[:q].sum() + 2 * log_diagonal[q : q + p].sum()
criterion += dof * (1 + np.log(2 * np.pi * r**2 / dof))

_, r2, log_det, log_det_fixed = at(theta)
same("log|V0|", 2 * log_diagonal[:q].sum(), log_det)
same("log|X'V0⁻¹X|", 2 * log_diagonal[q : q + p].sum(), log_det_fixed)
same("r²", r**2, r2)
same("REML criterion from the diagonal of L", criterion, reml.criterion)
same("σ_e", r / np.sqrt(dof), reml.sigma)

# %% [markdown]
# **The estimates by back substitution.** Henderson's equations for $(v, \beta)$ have the first
# six rows and columns of $A$ as their matrix. With their Cholesky factor known, two triangular
# systems are left, and the first of them has been solved along with the factorisation: the last
# row of $A = LL'$ says $L_1\,(\ell_{yZ}', \ell_{yX}')' = (\Lambda'Z'y;\ X'y)$, where $L_1$ is $L$
# without its last row and column. The second system, with $L_1'$, is solved from its end:
#
# - $L_{XX}'\,\hat\beta = \ell_{yX}$;
# - $L_{ZZ}'\,\tilde v = \ell_{yZ} - L_{XZ}'\hat\beta$;
# - $\tilde u = \Lambda\tilde v$.

# %%
beta_hat = np.linalg.solve(L_XX.T, l_yX)
v_tilde = np.linalg.solve(L_ZZ.T, l_yZ - L_XZ.T @ beta_hat)
u_tilde = theta * v_tilde
same("β", beta_hat, reml.beta)
same("u", u_tilde, reml.ranef()["pot"]["Intercept"])

# %% [markdown]
# **Standard errors.**
# $\operatorname{var}(\hat\beta) = (X'V^{-1}X)^{-1} = \sigma_e^2(L_{XX}L_{XX}')^{-1}$. For the
# pots there are two. Given $\beta$, step 3's, from $L_{ZZ}$ alone. And with the uncertainty of
# $\hat\beta$ in it, from the inverse of all of Henderson's matrix, $\sigma_e^2(L_1L_1')^{-1}$.
# This is the covariance matrix of $(\tilde v - v, \hat\beta - \beta)$; the next paragraph derives
# it.

# %%
L_1 = L[: q + p, : q + p]
inverse = sigma_e**2 * np.linalg.inv(L_1 @ L_1.T)
given_beta = sigma_e**2 * np.linalg.inv(L_ZZ @ L_ZZ.T)
package_sd = {b: reml.ranef_sd(given_beta=b)["pot"]["Intercept"] for b in (True, False)}
same("covariance matrix of β", inverse[q:, q:], reml.vcov)
same("sd of pots given β", theta * np.sqrt(np.diag(given_beta)), package_sd[True])
same("sd of pots", theta * np.sqrt(np.diag(inverse)[:q]), package_sd[False])

# %% [markdown]
# **Exact draws.** Add noise before the back substitution: with $\varepsilon$ a vector of six
# independent standard normal numbers, solve
# $L_1'\,(v, \beta)' = (\ell_{yZ}, \ell_{yX})' + \sigma_e\varepsilon$.
#
# - The mean of the solution is the solution without noise, $(\tilde v, \hat\beta)$.
# - Its covariance matrix is, by fact 2 with $T = \sigma_e (L_1')^{-1}$,
#   $\ \sigma_e^2\,(L_1')^{-1}L_1^{-1} = \sigma_e^2(L_1L_1')^{-1}$.
# - And it is normal. So each solution is one draw from the distribution of $(v, \beta)$ given the
#   heights and the two standard deviations: minus twice its log density is, up to a constant, the
#   penalised sum of squares over $\sigma_e^2$, whose minimum is $(\tilde v, \hat\beta)$ and whose
#   quadratic part has the matrix $L_1L_1'/\sigma_e^2$.
#
# No chain, nothing to converge. Compared with the closed form, in units of the Monte Carlo error,
# and beside it the draws of the package for the same known standard deviations and a flat prior
# on $\beta$:

# %%
draws = 4_000
rng = np.random.default_rng(8)
noise = rng.standard_normal((q + p, draws))
centre = np.concatenate([l_yZ, l_yX])
by_hand = np.linalg.solve(L_1.T, centre[:, None] + sigma_e * noise)
by_hand[:q] *= theta

# %%
scale = np.array([theta] * q + [1.0] * p)
closed_mean = np.concatenate([u_tilde, beta_hat])
closed_cov = scale[:, None] * inverse * scale

# %%
as_known = {"sd[pot]": sigma_p, "sigma": sigma_e}
flat = blm.LMM(formula, plants, priors="flat", fixed=as_known).fit(random_seed=1)
posterior = flat.data["posterior"]
by_package = np.vstack(
    [
        posterior["u_pot"].to_numpy().reshape(-1, q).T,
        posterior["beta"].to_numpy().reshape(-1, p).T,
    ]
)

# %%
closed_sd = np.sqrt(np.diag(closed_cov))
# the sd of a product of two normal variables with mean zero
products = np.sqrt(np.outer(closed_sd, closed_sd) ** 2 + closed_cov**2)
rows = {}
for name, sample in [("by hand", by_hand), ("package", by_package)]:
    size = np.sqrt(sample.shape[1])
    means = np.abs(sample.mean(axis=1) - closed_mean) / closed_sd * size
    covs = np.abs(np.cov(sample) - closed_cov) / products * size
    assert means.max() < 4 and covs.max() < 5
    rows[name] = {"means": means.max(), "covariances": covs.max()}
pd.DataFrame(rows).T.rename_axis("largest difference in Monte Carlo errors").round(2)

# %% [markdown]
# The means of the package's draws are closer to the formula than those of independent draws can
# be. Its $\varepsilon$ are not independent from draw to draw, but spread evenly over the normal
# distribution; each single draw is what it would be otherwise.

# %% [markdown]
# ## 9. Why not maximise over everything at once?
#
# Step 2 minimised over $\beta$ and $u$ together, for known standard deviations. It is tempting to
# go on and take the joint density of step 1 as a function of $u$ and $\sigma_p$ too. Look at what
# happens. Hold $\sigma_e$ at its estimate, and for each $\sigma_p$ put in the best $u$ and
# $\beta$. By step 5 the penalised sum of squares is then $r^2(\theta)$, so that, up to constants,
#
# | | minus twice the log density along $\sigma_p$ |
# |---|---|
# | joint in $(y, u)$, *centered* | $r^2(\theta)/\sigma_e^2 + q\log\sigma_p^2$ |
# | joint in $(y, z)$ with $u = \sigma_p z$, *noncentered* | $r^2(\theta)/\sigma_e^2$ |
# | $u$ integrated out (ML) | $r^2(\theta)/\sigma_e^2 + \log\lvert I_4 + \theta^2 Z'Z\rvert$ |
#
# All three have the same fit. The first has $q\log\sigma_p^2$ from the density of $u$, which goes
# to minus infinity as $\sigma_p \to 0$: the best is always "no differences between pots",
# whatever the data. In the second that term is gone, because the density of $z \sim N(0, I_4)$
# has no $\sigma_p$ in it, and nothing holds against a larger $\sigma_p$: the best is infinity.
# Only the integral has the determinant, which counts how many values of $u$ go with a $\sigma_p$
# and not just how good the best one is.

# %% tags=["hide-input"]
sds = np.geomspace(0.01, 30, 200)
found = [at(sd / sigma_e) for sd in sds]
fit = np.array([r2 for _, r2, *_ in found]) / sigma_e**2
curves = {
    "joint, centered": fit + q * np.log(sds**2),
    "joint, noncentered": fit,
    "u integrated out": fit + np.array([log_det for *_, log_det, _ in found]),
}
figure, axis = plt.subplots(figsize=(6.4, 3.4))
for (name, curve), style in zip(curves.items(), ["--", ":", "-"], strict=True):
    height = -0.5 * (curve - np.interp(1.0, sds, curve))
    axis.plot(sds, height, color="C0", linestyle=style, linewidth=2, label=name)
axis.set(xscale="log", xlabel="σ_p", ylabel="log density − its value at 1")
axis.set_ylim(-7, 8)
axis.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# The joint modes run away in opposite directions, though the model is one and the same: only the
# variable was changed. A maximum of a density depends on the variable, a maximum of a likelihood
# does not. So the package never maximises over $u$.
#
# ## 10. From here to the posterior
#
# Steps 6 and 7 took the function of two standard deviations and looked for its highest point. A
# Bayesian takes the whole function. Bayes' theorem: *posterior = likelihood × prior, divided by
# its integral*. The priors of the package, which can be changed:

# %%
model.priors.table()

# %% [markdown]
# $\beta$ has a normal prior here. It can be integrated out even more simply than with a flat one.
# Let $X_c$ be $X$ with its second column centred, since the prior of the intercept is about the
# mean of all rows, and let $\beta_c \sim N(m, S)$ be the intercept and the difference. Then
# $y = X_c\beta_c + Zu + e$ is a sum of three independent normal vectors, and by fact 2
#
# $$
# y \sim N(X_c m,\ V + X_c S X_c') .
# $$

# %%
records = model.priors.records()
m = np.array([records["Intercept"].mu, 0.0])
S = np.diag([records["Intercept"].sigma, records["moisture[T.2]"].sigma]) ** 2.0
X_c = X - [0.0, X[:, 1].mean()]

# %% [markdown]
# The posterior density of $(\log\sigma_p, \log\sigma_e)$ is, up to its integral, this density
# times the two priors, times $\sigma_p\sigma_e$. The last factor is there because the density per
# unit of $\log\sigma$ is $\sigma$ times the density per unit of $\sigma$: a step $d\log\sigma$ is
# a step $d\sigma = \sigma\, d\log\sigma$. On a grid:

# %%
log_p, log_e = np.linspace(-9, 5, 281), np.linspace(-1, 3, 101)
cell = (log_p[1] - log_p[0]) * (log_e[1] - log_e[0])
grid_p, grid_e = np.meshgrid(np.exp(log_p), np.exp(log_e), indexing="ij")
Vs = grid_p[..., None, None] ** 2 * (Z @ Z.T) + grid_e[..., None, None] ** 2 * np.eye(n)
total = Vs + X_c @ S @ X_c.T
centred = y - X_c @ m
solved = np.linalg.solve(total, centred[:, None])[..., 0]
log_posterior = -0.5 * (np.linalg.slogdet(total)[1] + solved @ centred)
log_posterior -= 0.5 * n * np.log(2 * np.pi)
log_posterior += records["sd[pot, Intercept]"].logpdf(grid_p)
log_posterior += records["sigma"].logpdf(grid_e)
log_posterior += np.log(grid_p) + np.log(grid_e)

# %% [markdown]
# Add up over the grid and divide by the sum: what is left is a probability for each cell. The sum
# itself, times the size of a cell, is kept for later. (The largest value is taken out before the
# exponential, and put back after the logarithm, so that no number is too small for the computer.)

# %%
highest = log_posterior.max()
evidence = np.log(np.sum(np.exp(log_posterior - highest)) * cell) + highest
probability = np.exp(log_posterior - evidence) * cell

# %% [markdown]
# In each cell $\beta_c$ is normal given the heights. The exponent now has two parts with
# $\beta_c$, the fit $(y - X_c\beta_c)'V^{-1}(y - X_c\beta_c)$ and the prior's
# $(\beta_c - m)'S^{-1}(\beta_c - m)$. Together their quadratic part has the matrix
# $X_c'V^{-1}X_c + S^{-1}$, whose inverse is the covariance matrix; and the derivative is zero at
# $m + (X_c'V^{-1}X_c + S^{-1})^{-1}X_c'V^{-1}(y - X_cm)$.

# %%
half = np.linalg.solve(Vs, np.broadcast_to(X_c, (*Vs.shape[:2], n, p)))
half = np.swapaxes(half, -1, -2)
beta_var = np.linalg.inv(half @ X_c + np.linalg.inv(S))
beta_mean = m + (beta_var @ (half @ centred)[..., None])[..., 0]


# %% [markdown]
# Means and standard deviations are sums over the cells. The mean of a mixture is the mean of the
# means; its variance is the mean of the variances plus the variance of the means. Beside them,
# `model.fit()`:


# %%
def moments(values, variances=0.0):
    """Mean and sd over the grid."""
    mean = np.sum(probability * values)
    return mean, np.sqrt(np.sum(probability * (variances + (values - mean) ** 2)))


on_grid = {
    "beta[moisture[T.2]]": moments(beta_mean[..., 1], beta_var[..., 1, 1]),
    "sd[pot, Intercept]": moments(grid_p),
    "sigma": moments(grid_e),
}
sampled = {"draws": 200, "chains": 2} if SMOKE else {}
post = model.fit(random_seed=1, **sampled)
summary = post.summary().loc[list(on_grid)]
table = pd.DataFrame(on_grid, index=["mean, grid", "sd, grid"]).T
table.insert(1, "mean, fit", summary["mean"])
table["sd, fit"] = summary["sd"]
for kind in ("mean", "sd"):
    gaps = table[f"{kind}, grid"] - table[f"{kind}, fit"]
    errors = np.abs(gaps) / summary[f"mcse_{kind}"]
    assert errors.max() < 4
    print(f"{kind}: largest difference {errors.max():.1f} Monte Carlo errors")
table.round(3)

# %% tags=["hide-input"]
draws_p = post.data["posterior"]["sd_pot"].to_numpy().ravel()
draws_e = post.data["posterior"]["sigma"].to_numpy().ravel()
figure, axes = plt.subplots(1, 2, figsize=(7, 3.3))
density = probability / cell
heights = density.max() * np.array([0.02, 0.1, 0.25, 0.5, 0.75])
axes[0].plot(np.log(draws_p), np.log(draws_e), ".", color="0.6", ms=1.5)
axes[0].contour(log_p, log_e, density.T, heights, colors="C0", linewidths=1.2)
axes[0].plot(np.log(sigma_p), np.log(sigma_e), "o", color="C1")
axes[0].annotate(
    "REML",
    (np.log(sigma_p), np.log(sigma_e)),
    (-3.6, 1.4),
    color="C1",
    arrowprops={"arrowstyle": "-", "color": "C1"},
)
axes[0].set(xlim=(-4, 3), ylim=(-0.4, 1.8), xlabel="log σ_p", ylabel="log σ_e")
axes[1].hist(draws_p, np.linspace(0, 8, 41), density=True, color="C0", alpha=0.35)
of_p = probability.sum(axis=1) / (log_p[1] - log_p[0]) / np.exp(log_p)
axes[1].plot(np.exp(log_p), of_p, color="C0", linewidth=2)
axes[1].axvline(sigma_p, color="C1")
axes[1].annotate("REML", (sigma_p, 0), (5, 6), **near)
axes[1].set(xlim=(0, 8), xlabel="σ_p", yticks=[])
axes[1].spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# Lines are the grid; dots and bars are the draws. The right picture is what step 6 could not
# show: given ten seedlings, the standard deviation of pots may be nearly zero or may be four. The
# posterior mean lies above REML's estimate, which is near the peak, because the right tail is
# long.
#
# The divisor of the grid is worth keeping. It is the *evidence*, the density of the heights under
# the whole model, priors included, and the fit has it too:

# %%
print(f"log evidence, grid: {evidence:.3f}")
print(f"log evidence, fit:  {post.log_evidence}")
assert abs(evidence - post.log_evidence.value) < 5 * post.log_evidence.error

# %% [markdown]
# **What the sampler adds.** A grid with 100 points along each of two axes has 10,000 cells. A
# random slope adds two parameters, and the grid has a hundred million. `model.fit()` evaluates
# the same function, by the factorisation of step 8, at points that it draws where the posterior
# is, corrects for the way they were drawn, and gives each kept point one exact draw of
# $(\beta, u)$ by step 8's back substitution. Because $\beta$ and $u$ have been integrated out
# ("collapsed"), it has to move in these few dimensions only. [The collapsed
# sampler](../../explanation/collapsed_sampler.md) tells how.
#
# ## The steps at a glance
#
# | step, formula | in the package |
# |---|---|
# | [1][step 1] joint density: fit, size of $u$ | `model.y`, `model.X`, `model.Z` |
# | [2][step 2] Henderson's equations | `fit.beta`, `fit.ranef()` |
# | [3][step 3] BLUP: $GZ'V^{-1}(y - X\hat\beta)$ | `fit.ranef()`, `fit.ranef_sd()` |
# | [4][step 4] GLS: $(X'V^{-1}X)^{-1}X'V^{-1}y$ | `fit.fixef()`, `fit.vcov`, `fit.V()` |
# | [5][step 5] marginal density: $N(X\beta, V)$ | `fit.loglik`, `fixed={...}` |
# | [6][step 6] profile: $d(\theta)$ | `model.ml()` |
# | [7][step 7] REML: $d_R(\theta)$ | `model.reml()` |
# | [8][step 8] Cholesky: $A = LL'$ | `fit.criterion`, `fit.vcov` |
# | [9][step 9] joint modes: there are none | nothing, on purpose |
# | [10][step 10] posterior: likelihood × prior | `model.fit()`, `post.log_evidence` |
#
# [step 1]: #the-joint-density-of-heights-and-pot-effects
# [step 2]: #the-smallest-value-over-and-u-together-henderson-s-equations
# [step 3]: #the-effects-of-pots-are-a-conditional-expectation-blup
# [step 4]: #the-fixed-effects-are-generalised-least-squares-gls
# [step 5]: #integrating-out-u-and-why-no-n-n-matrix-is-needed
# [step 6]: #profiling-from-four-unknowns-to-one
# [step 7]: #ml-against-reml
# [step 8]: #one-factorisation-that-holds-it-all-the-blocked-cholesky
# [step 9]: #why-not-maximise-over-everything-at-once
# [step 10]: #from-here-to-the-posterior
#
# ## Next
#
# - [The marginal likelihood](../../explanation/marginal_likelihood.md) has the same steps for any
#   mixed model: several factors, slopes, weights, structured residuals.
# - [The sleep study](03_sleepstudy_beside_reml) compares REML and the posterior on data that one
#   would want to analyse.
# - [The first notebook](01_lecture_seedlings) shows the same ten seedlings from the side of the
#   model.
#
# ## References
#
# - C. R. Henderson (1950). Estimation of genetic parameters (abstract). *Annals of Mathematical
#   Statistics* 21, 309–310.
# - C. R. Henderson (1975). Best linear unbiased estimation and prediction under a selection
#   model. *Biometrics* 31, 423–447. [doi:10.2307/2529430](https://doi.org/10.2307/2529430)
# - G. K. Robinson (1991). That BLUP is a good thing: the estimation of random effects.
#   *Statistical Science* 6, 15–32.
#   [doi:10.1214/ss/1177011926](https://doi.org/10.1214/ss/1177011926)
# - H. D. Patterson and R. Thompson (1971). Recovery of inter-block information when block sizes
#   are unequal. *Biometrika* 58, 545–554.
#   [doi:10.1093/biomet/58.3.545](https://doi.org/10.1093/biomet/58.3.545)
# - D. A. Harville (1974). Bayesian inference for variance components using only error contrasts.
#   *Biometrika* 61, 383–385.
#   [doi:10.1093/biomet/61.2.383](https://doi.org/10.1093/biomet/61.2.383)
# - D. Bates, M. Mächler, B. Bolker and S. Walker (2015). Fitting linear mixed-effects models
#   using lme4. *Journal of Statistical Software* 67(1).
#   [doi:10.18637/jss.v067.i01](https://doi.org/10.18637/jss.v067.i01)
