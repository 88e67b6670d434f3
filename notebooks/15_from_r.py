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
# # From R: the same model, the same numbers, and a posterior
#
# You have a mixed model in R, by lme4 or nlme, and its estimates are in a paper or a report. This
# notebook brings the fit here and answers two questions:
#
# 1. Does the same model give the same numbers here? `blm.compare_estimates()` says so parameter by
#    parameter, in standard errors.
# 2. What does a posterior say beside them? `blm.compare_reml()` puts one beside the other.
#
# On the way: how names of coefficients are matched, what factor levels and contrasts do, REML
# against ML, a fit that stopped too early, and a list of what else makes two fits differ. You need
# to know what `lmer(distance ~ age * Sex + (age | Subject))` means, and no more.
#
# The tables below are the output of R 4.2.2 with lme4 1.1-31, nlme 3.1-162 and broom.mixed 0.2.9.4,
# as they were printed. The R lines that made them stand above them.

# %%
import io
import os

import matplotlib.pyplot as plt
import pandas as pd

import bayeslmm as blm

SMOKE = os.environ.get("BAYESLMM_SMOKE") == "1"  # a short run, to see that it works
DRAWS = {"draws": 200, "chains": 2} if SMOKE else {}
plt.rcParams.update({"figure.dpi": 110})


def read(text):
    """A CSV file that stands in this notebook; yours is read by pd.read_csv("fit.csv")."""
    return pd.read_csv(io.StringIO(text))


# %% [markdown]
# ## What to take along
#
# The data are Potthoff and Roy's (1964, doi:10.1093/biomet/51.3-4.313): a distance in the skull of
# 27 children, measured at the ages of 8, 10, 12 and 14. In R:
#
# ```r
# library(lme4)
# library(broom.mixed)
# growth <- as.data.frame(nlme::Orthodont)
# fit <- lmer(distance ~ age * Sex + (age | Subject), growth)
#
# write.csv(tidy(fit), "fit.csv", row.names = FALSE)
# write.csv(glance(fit), "glance.csv", row.names = FALSE)
# write.csv(growth, "growth.csv", row.names = FALSE)
# ```
#
# A CSV file of the data forgets two things that the model depends on: the order of the levels of
# each factor, since the first one is the reference level, and the contrasts. Take them along:
#
# ```r
# factors <- Filter(is.factor, model.frame(fit))
# jsonlite::write_json(list(levels = lapply(factors, levels),
#                           ordered = lapply(factors, is.ordered),
#                           contrasts = attr(getME(fit, "X"), "contrasts")), "factors.json")
# ```
#
# `arrow::write_feather(growth, "growth.feather")` is the better way where R has arrow:
# `pd.read_feather` then returns factors as categories with their levels in order. Contrasts are
# part of the fit and not of the data, so that they have to be looked up in any case.

# %%
lme4_fit = read("""
"effect","group","term","estimate","std.error","statistic"
"fixed",NA,"(Intercept)",16.3406250000002,1.01824680749506,16.0478038131039
"fixed",NA,"age",0.78437500000001,0.085980684170849,9.12268851503213
"fixed",NA,"SexFemale",1.03210227272737,1.59528615689802,0.646969992351879
"fixed",NA,"age:SexFemale",-0.304829545454577,0.134705843621358,-2.26292740730251
"ran_pars","Subject","sd__(Intercept)",2.40301630477198,NA,NA
"ran_pars","Subject","cor__(Intercept).age",-0.666908664928017,NA,NA
"ran_pars","Subject","sd__age",0.180143270477739,NA,NA
"ran_pars","Residual","sd__Observation",1.31020037329703,NA,NA
""")
lme4_fit

# %% [markdown]
# These are broom.mixed's columns. Any program that can write `effect`, `group`, `term`, `estimate`
# and `std.error` will do. Without broom.mixed, base R makes them in a few lines:
#
# ```r
# b <- coef(summary(fit))
# v <- as.data.frame(VarCorr(fit))
# residual <- v$grp == "Residual"
# term <- ifelse(is.na(v$var2), paste0("sd__", ifelse(residual, "Observation", v$var1)),
#                paste0("cor__", v$var1, ".", v$var2))
# write.csv(rbind(
#   data.frame(effect = "fixed", group = NA, term = rownames(b),
#              estimate = b[, 1], std.error = b[, 2]),
#   data.frame(effect = "ran_pars", group = v$grp, term = term,
#              estimate = v$sdcor, std.error = NA)), "fit.csv", row.names = FALSE)
# ```
#
# ## The same model here
#
# The data set is in the package. To start where you would, it is turned into what `pd.read_csv`
# makes of the file: factors are text.

# %%
growth = blm.load_dataset("Orthodont").astype({"Sex": str, "Subject": str})
formula = "distance ~ age * Sex + (age | Subject)"
as_text = blm.LMM(formula, growth).reml()
try:
    blm.compare_estimates(as_text, lme4_fit)
except blm.DataError as error:
    print(error)

# %% [markdown]
# The intercept and the slope of age matched, and nothing was guessed about the rest. Text has no
# order, so the alphabet made girls the reference here; in R it is boys, by the order of the levels
# in `factors.json`. Give the factor that order:

# %%
levels = {"Sex": ["Male", "Female"]}  # of factors.json
for name, order in levels.items():
    growth[name] = pd.Categorical(growth[name], order)
model = blm.LMM(formula, growth)
reml = model.reml()
table = blm.compare_estimates(reml, lme4_fit)
table.round(6)

# %% [markdown]
# `SexFemale` of R is `Sex[T.Female]` here; the comparison knows R's spelling, also of interactions,
# `I(x^2)`, `poly(x, 2)1` and `scale(x)`. What it does not know is told by `names=`, as in
# `names={"id": "Subject"}` where the factor has another name there.
#
# How much is a difference? The column `in_std_errors` puts it on the scale that matters:

# %%
worst = table["in_std_errors"].abs()
print(f"largest difference: {worst.max():.1e} standard errors, of {worst.idxmax()}")
print("flags:", ", ".join(table["flag"].unique()))
assert worst.max() < 0.01

# %% [markdown]
# Two programs that maximise one function stop at slightly different places. The criterion says
# which came closer to the minimum; here is lme4's, from `glance(fit)`:

# %%
lme4_glance = read("""
"nobs","sigma","logLik","AIC","BIC","REMLcrit","df.residual"
108,1.31020037329703,-216.2908335323,448.581667064601,470.038716881594,432.581667064601,100
""")
print(f"REML criterion: lme4 {lme4_glance['REMLcrit'][0]:.7f}, here {reml.criterion:.7f}")
assert 0 <= lme4_glance["REMLcrit"][0] - reml.criterion < 1e-3
pd.DataFrame(
    {
        "lme4": lme4_glance.loc[0, ["logLik", "AIC", "BIC"]].to_numpy(float),
        "here": [reml.loglik, reml.aic, reml.bic],
    },
    index=["logLik", "AIC", "BIC"],
).round(5)

# %% [markdown]
# lme4's default optimizer left a hundred-thousandth on the table, which nobody needs to mind. With
# tight tolerances of lme4 the two agree to six or more digits, which `tests/reference` checks for
# 113 fits. The criterion of REML depends on the coding of the fixed effects, so compare it only
# where the names of the coefficients are the same.
#
# ## The posterior beside it
#
# `compare_reml` takes the same table in place of an estimate made here.

# %%
post = model.fit(random_seed=1, **DRAWS)
beside = blm.compare_reml(post, lme4_fit)
beside[["estimate", "std_error", "mean", "sd", "shift", "prior_shift", "flag"]].round(3)

# %% [markdown]
# `shift` is the posterior mean less the estimate, in standard errors; `prior_shift` is that part of
# it which the priors cause. What is left is the shape of the posterior: the mean of a skewed
# density lies beside its mode, and REML reports modes. The flag `differs` would say that the R fit
# is not the maximum of this model's density.

# %%
post.plot.reml(lme4_fit, backend="matplotlib")
plt.show()

# %% [markdown]
# lme4 has no standard errors for standard deviations and correlations; the posterior has a whole
# density. Here the correlation of intercepts and slopes is the parameter whose estimate says least:

# %%
cor = "cor[Subject, Intercept, age]"
low, high = (beside.loc[cor, c] for c in beside.columns if c.startswith("eti"))
print(f"lme4: {beside.loc[cor, 'estimate']:.2f}; posterior: from {low:.2f} to {high:.2f}")

# %% [markdown]
# ## A fit that stopped too early
#
# R warns when an optimizer gives up. Warnings are easy to lose. This is the same call with `control
# = lmerControl(optimizer = "Nelder_Mead", optCtrl = list(maxfun = 30))`, where it did:

# %%
stopped = read("""
"effect","group","term","estimate","std.error","statistic"
"fixed",NA,"(Intercept)",16.3406250000002,0.910190069098677,17.9529809814137
"fixed",NA,"age",0.784374999999967,0.0884573408598236,8.86726858817685
"fixed",NA,"SexFemale",1.03210227272723,1.42599378332564,0.723777540123775
"fixed",NA,"age:SexFemale",-0.304829545454526,0.138586018940568,-2.19956924792862
"ran_pars","Subject","sd__(Intercept)",1.26361098173573,NA,NA
"ran_pars","Subject","cor__(Intercept).age",-0.429284240845243,NA,NA
"ran_pars","Subject","sd__age",0.180743061633348,NA,NA
"ran_pars","Residual","sd__Observation",1.36034675067244,NA,NA
""")
blm.compare_estimates(reml, stopped)[["estimate", "other", "in_std_errors", "flag"]].round(3)

# %% [markdown]
# The fixed effects are the same, since the design is balanced; their standard errors are not, and
# the standard deviation of the intercepts is about half. Who is right? The one with the smaller
# criterion. `all_fit()` asks several optimizers of this package as well:

# %%
print(f"lme4 stopped at {435.00618021279:.3f}; here {reml.criterion:.3f}")
print(str(model.all_fit()).splitlines()[-1])

# %% [markdown]
# ## Contrasts, ordered factors
#
# `cake` has an ordered factor, temperature. R gives ordered factors polynomial contrasts without
# being asked; here they are treatment contrasts until you say otherwise. The recipe was coded by
# `contr.sum`:
#
# ```r
# cakes <- lmer(angle ~ recipe * temperature + (1 | recipe:replicate), cake,
#               contrasts = list(recipe = "contr.sum"))
# write.csv(tidy(cakes), "cakes.csv", row.names = FALSE)
# ```

# %%
lme4_cakes = read("""
"effect","group","term","estimate","std.error","statistic"
"fixed",NA,"(Intercept)",32.122222222222,1.0027612295276,32.0337696316348
"fixed",NA,"recipe1",1.00000000000009,1.41811853061985,0.705159673474543
"fixed",NA,"recipe2",-0.477777777777823,1.41811853061985,-0.336909621771171
"fixed",NA,"temperature.L",6.61094224140736,0.674469329807305,9.80169438289522
"fixed",NA,"temperature.Q",-0.385518272750254,0.674469329807304,-0.571587551446404
"fixed",NA,"temperature.C",-0.548250741149948,0.674469329807304,-0.812862374789649
"fixed",NA,"temperature^4",-1.29767802399835,0.674469329807304,-1.92399856694609
"fixed",NA,"temperature^5",-0.914114077314911,0.674469329807304,-1.35530859138706
"fixed",NA,"recipe1:temperature.L",-0.180612323188307,0.953843673618179,-0.189352121509804
"fixed",NA,"recipe2:temperature.L",0.27357454835876,0.953843673618179,0.28681277228691
"fixed",NA,"recipe1:temperature.Q",-0.327326835353989,0.953843673618181,-0.34316612292699
"fixed",NA,"recipe2:temperature.Q",-0.560092584939047,0.953843673618181,-0.587195365897293
"fixed",NA,"recipe1:temperature.C",-1.77725995544983,0.953843673618181,-1.86326124983165
"fixed",NA,"recipe2:temperature.C",0.915959697449911,0.953843673618181,0.960282824936537
"fixed",NA,"recipe1:temperature^4",-2.0536069700168,0.953843673618181,-2.15298064747542
"fixed",NA,"recipe2:temperature^4",0.970108814057017,0.953843673618181,1.01705220770311
"fixed",NA,"recipe1:temperature^5",0.762928288111219,0.953843673618183,0.799846252811248
"fixed",NA,"recipe2:temperature^5",0.0993906577172406,0.953843673618183,0.10420015403596
"ran_pars","recipe:replicate","sd__(Intercept)",6.4681556241781,NA,NA
"ran_pars","Residual","sd__Observation",4.52447781056357,NA,NA
""")
cake = blm.load_dataset("cake")
cakes = blm.LMM(
    "angle ~ recipe * temperature + (1 | recipe:replicate)",
    cake,
    contrasts={"recipe": "sum", "temperature": "poly"},
)
coded = blm.compare_estimates(cakes.reml(), lme4_cakes)
print("largest difference in standard errors:", f"{coded['in_std_errors'].abs().max():.1e}")
assert set(coded["flag"]) == {"agrees"}
coded[["estimate", "other", "flag"]].iloc[[0, 1, 2, 3, 6, 8, -2, -1]].round(4)

# %% [markdown]
# Without `contrasts=` this is the same model under other names. Its means, predictions and standard
# deviations are the same; only its coefficients are not, and so the comparison refuses them:

# %%
plain = blm.LMM("angle ~ recipe * temperature + (1 | recipe:replicate)", cake).reml()
try:
    blm.compare_estimates(plain, lme4_cakes)
except blm.DataError as error:
    print(str(error).splitlines()[0])
print(f"sigma: {plain.sigma:.6f} and {cakes.reml().sigma:.6f}")
assert abs(plain.sigma - cakes.reml().sigma) < 1e-4

# %% [markdown]
# ## ML, and nlme's standard errors
#
# nlme's `lme()` has REML by default, too; `gls()` also. For a likelihood-ratio test of fixed
# effects somebody has fitted by ML and kept that fit:
#
# ```r
# by_ml <- lme(distance ~ age * Sex, random = ~ age | Subject, data = growth, method = "ML")
# write.csv(tidy(by_ml), "by_ml.csv", row.names = FALSE)
# ```

# %%
nlme_fit = read("""
"effect","group","term","estimate","std.error","df","statistic","p.value"
"fixed",NA,"(Intercept)",16.340625,0.998752125243376,79,16.3610415307183,4.3175785956072e-27
"fixed",NA,"age",0.784375,0.0843294162698285,79,9.30132135019456,2.51243735033869e-14
"fixed",NA,"SexFemale",1.03210227272727,1.56474385958825,25,0.659598225232126,0.515542575431269
"fixed",NA,"age:SexFemale",-0.304829545454546,0.132118804011276,79,-2.30723815384015,0.0236606
"ran_pars","Subject","sd_(Intercept)",2.13468828243967,NA,NA,NA,NA
"ran_pars","Subject","cor_age.(Intercept)",-0.602519453929501,NA,NA,NA,NA
"ran_pars","Subject","sd_age",0.154138967830349,NA,NA,NA,NA
"ran_pars","Residual","sd_Observation",1.31003963995322,NA,NA,NA,NA
""")
against_reml = blm.compare_estimates(reml, nlme_fit)
print("closest:", against_reml.attrs["closest"])
against_reml[["estimate", "other", "in_std_errors", "flag"]].round(3)

# %% [markdown]
# The log says that these are the values of ML, and so does `attrs["closest"]`. So compare with
# `ml()`:

# %%
by_ml = blm.compare_estimates(model.ml(), nlme_fit)
by_ml[["estimate", "other", "std_error", "other_std_error", "flag"]].round(4)

# %%
ratio = (by_ml["other_std_error"] / by_ml["std_error"]).dropna()
factor = (model.nobs / (model.nobs - 4)) ** 0.5
print(f"ratio of the standard errors: {ratio.min():.4f} to {ratio.max():.4f}")
print(f"sqrt(n / (n - p)) = {factor:.4f}")
assert abs(ratio - factor).max() < 1e-3

# %% [markdown]
# All estimates agree. The standard errors differ by a factor: nlme's `summary()` multiplies those
# of an ML fit by $\sqrt{n / (n - p)}$ (its argument `adjustSigma`), lme4 does not, and neither does
# this package. Under REML the three agree.
#
# ## What else makes two fits differ
#
# Go through this list when a flag says `differs`.
#
# **Rows.** Both drop rows with a missing value in a variable of the formula: compare `nobs` first.
# R evaluates `scale(x)`, `poly(x, 2)` and `ns(x, 3)` on all values of `x` and drops rows
# afterwards; here rows are dropped first, so that centres and knots are those of the rows used.
#
# **Factors.** Levels and their order; text here takes the order of the alphabet. A number such as a
# visit is a covariate in both until you write `factor(visit)` there and `C(visit)` here; grouping
# factors are factors always. Ordered factors have polynomial contrasts in R alone. Where labels of
# two grouping factors paste to the same text, as `1` with `12` and `11` with `2` might, lme4 can
# merge the two cells; here they stay apart.
#
# **Columns without information.** Both drop them: lme4 says so in a message, here they are in
# `model.design.aliased`.
#
# **Weights.** lme4's `weights = w` means variances $\sigma^2 / w$, and so does `weights="w"` here.
# In nlme, `varFixed(~ v)` means variances $\sigma^2 v$: pass $1 / v$. `varIdent` and `varPower` are
# `residual="strata(f)"` and `residual="power(x)"`; `varcorr(style="nlme")` prints them as nlme
# does.
#
# **Offset.** `offset(x)` belongs into the formula here. If it was an argument in R, put it there.
#
# **Criterion.** `lmer()`, `lme()` and `gls()` maximise the restricted likelihood by default,
# `glmmTMB()` the likelihood. Here you say `reml()` or `ml()`.
#
# **Scale of random effects.** Standard deviations are on the scale of the response per unit of the
# covariate, in all of them. Look whether the table has variances (`scales = "vcov"` of `tidy()`,
# which is understood), and whether a covariate was divided by ten or centred before one fit and not
# before the other: the standard deviation of intercepts is that at zero of the covariate.
#
# **Double bars.** lme4's `(f || g)` with a factor `f` makes only the intercept independent; the
# columns of `f` stay correlated. Here `||` makes all columns independent, as in brms.
#
# **Standard errors.** `summary(fit, ddf = "Kenward-Roger")` has larger ones; compare
# `reml.with_df("kenward-roger")`. Those of nlme's ML fits are above.
#
# **Intervals.** lme4's profile intervals are of the ML deviance, also for a REML fit; here they are
# of the criterion that was maximised.
#
# **Singular fits.** At a standard deviation of zero there are no standard errors, correlations mean
# nothing, and two programs may print anything for them. The flag is then `at the boundary`.
#
# Two of these can be seen at once:
#
# ```r
# weighted <- lmer(distance ~ offset(age / 2) + Sex + (1 | Subject), growth, weights = age)
# write.csv(tidy(weighted), "weighted.csv", row.names = FALSE)
# ```

# %%
lme4_weighted = read("""
"effect","group","term","estimate","std.error","statistic"
"fixed",NA,"(Intercept)",19.5980113636363,0.491524710252157,39.8718740988267
"fixed",NA,"SexFemale",-2.45958161157017,0.770071224644993,-3.19396639278925
"ran_pars","Subject","sd__(Intercept)",1.82558337087565,NA,NA
"ran_pars","Residual","sd__Observation",4.84177244181327,NA,NA
""")
weighted = blm.LMM("distance ~ offset(age / 2) + Sex + (1 | Subject)", growth, weights="age")
matched = blm.compare_estimates(weighted.reml(), lme4_weighted)
assert set(matched["flag"]) == {"agrees"}
matched[["estimate", "other", "in_std_errors", "flag"]].round(5)

# %% [markdown]
# ## Next
#
# - [Sleepstudy beside REML](03_sleepstudy_beside_reml.py) reads one posterior beside REML from
#   beginning to end.
# - [When REML says zero](09_when_reml_says_zero.py): what to report where an estimate lies at the
#   boundary.
# - [Coming from](../../how_to/coming_from.md) lme4, nlme, brms and others: what the functions of R
#   are called here.
# - [Tables and reports](../../how_to/tables_and_reports.md) has `tidy()` tables, for the way back
#   to R.
