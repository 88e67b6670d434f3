# Known parameters and known standard errors by metafor 3.8-1 and nlme 3.1-162 (R 4.2.2).
# Rscript fixed.R > ../structures/fixed.json
suppressMessages({library(metafor); library(nlme); library(jsonlite)})

bcg <- escalc(measure = "RR", ai = tpos, bi = tneg, ci = cpos, di = cneg, data = dat.bcg)
meta <- function(formula, method) {
  fit <- rma(formula, vi, data = bcg, method = method, control = list(threshold = 1e-13))
  x <- model.matrix(fit)
  # metafor's restricted likelihood has + log|X'X| / 2, lme4's and ours have not.
  extra <- if (method == "REML") 0.5 * as.numeric(determinant(crossprod(x))$modulus) else 0
  list(tau = sqrt(fit$tau2), beta = as.numeric(fit$beta), se = fit$se, p_value = fit$pval,
       loglik = as.numeric(logLik(fit)) - extra)
}
multi <- rma.mv(yi, vi, random = ~ 1 | trial, data = bcg)
limits <- function(fit) as.numeric(confint(fit)$random["sigma", c("ci.lb", "ci.ub")])
fixed <- rma(yi, vi, data = bcg, method = "FE")

O <- as.data.frame(Orthodont)
ml <- lme(distance ~ age, random = ~ age | Subject, data = O, method = "ML",
          control = lmeControl(sigma = 1.2))
reml <- rma.mv(distance ~ age, V = rep(1.44, nrow(O)), random = ~ 1 | Subject, data = O)
multiplier <- lme(distance ~ age, random = ~ 1 | Subject, data = O, weights = varFixed(~ age))
ar1 <- gls(distance ~ age, data = O, correlation = corAR1(0.5, form = ~ 1 | Subject, fixed = TRUE))
scale <- gls(distance ~ age, data = O, correlation = corAR1(form = ~ 1 | Subject),
             control = glsControl(sigma = 2.5))
write(toJSON(list(
  bcg = list(yi = as.numeric(bcg$yi), vi = as.numeric(bcg$vi), ablat = bcg$ablat),
  reml = meta(yi ~ 1, "REML"), ml = meta(yi ~ 1, "ML"),
  reml_ablat = meta(yi ~ ablat, "REML"),
  profile_tau = limits(multi),
  common = list(beta = as.numeric(fixed$beta), se = fixed$se, p_value = fixed$pval,
                loglik = as.numeric(logLik(fixed))),
  orthodont = list(
    ml_sigma = list(beta = as.numeric(fixef(ml)), sds = as.numeric(VarCorr(ml)[1:2, "StdDev"]),
                    cor = as.numeric(VarCorr(ml)["age", "Corr"])),
    reml_sigma = list(sd = sqrt(reml$sigma2), se = reml$se),
    multiplier = list(beta = as.numeric(fixef(multiplier)), sigma = multiplier$sigma,
                      sd = as.numeric(VarCorr(multiplier)[1, "StdDev"]),
                      loglik = as.numeric(logLik(multiplier))),
    ar1 = list(beta = as.numeric(coef(ar1)), sigma = ar1$sigma, se = as.numeric(sqrt(diag(vcov(ar1)))),
               loglik = as.numeric(logLik(ar1))),
    scale = list(beta = as.numeric(coef(scale)),
                 cor = as.numeric(coef(scale$modelStruct$corStruct, unconstrained = FALSE)),
                 se = as.numeric(sqrt(diag(vcov(scale)))), loglik = as.numeric(logLik(scale))))
), auto_unbox = TRUE, digits = 12), stdout())
