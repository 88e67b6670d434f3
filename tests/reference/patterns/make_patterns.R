# REML fits with structured random effects, from glmmTMB (cs, ar1, toep, diag) and nlme
# (pdCompSymm, pdIdent), on Machines and on Orthodont with each age an occasion.
# Rscript make_patterns.R ../data > patterns.json
suppressMessages({library(glmmTMB); library(nlme); library(jsonlite)})
folder <- commandArgs(TRUE)[1]
machines <- read.csv(file.path(folder, "Machines.csv"), stringsAsFactors = TRUE)
machines$Worker <- factor(machines$Worker)
orthodont <- read.csv(file.path(folder, "Orthodont.csv"), stringsAsFactors = TRUE)
orthodont$occasion <- factor(orthodont$age)

tmb <- function(formula, data) {
  fit <- glmmTMB(formula, data, REML = TRUE,
                 control = glmmTMBControl(optCtrl = list(iter.max = 2000, eval.max = 2000, rel.tol = 1e-12)))
  v <- VarCorr(fit)$cond[[1]]
  list(package = "glmmTMB", criterion = -2 * as.numeric(logLik(fit)), sigma = sigma(fit),
       sds = as.vector(attr(v, "stddev")), correlation = unname(as.matrix(attr(v, "correlation"))),
       beta = as.vector(fixef(fit)$cond), convergence = fit$fit$convergence)
}
lmefit <- function(fixed, random, data) {
  fit <- lme(fixed, random = random, data = data, method = "REML",
             control = lmeControl(msMaxIter = 500, msTol = 1e-12, tolerance = 1e-12, opt = "optim", reltol = 1e-14))
  G <- matrix(as.numeric(unclass(getVarCov(fit))), nrow = 3)
  list(package = "nlme", criterion = -2 * as.numeric(logLik(fit)), sigma = fit$sigma,
       sds = sqrt(diag(G)), correlation = cov2cor(G), beta = as.vector(fixef(fit)))
}
fits <- list(
  "Machines: score ~ Machine + cs(0 + Machine | Worker)" = tmb(score ~ Machine + cs(0 + Machine | Worker), machines),
  "Machines: score ~ Machine + toep(0 + Machine | Worker)" = tmb(score ~ Machine + toep(0 + Machine | Worker), machines),
  "Machines: score ~ Machine + ar1(0 + Machine | Worker)" = tmb(score ~ Machine + ar1(0 + Machine | Worker), machines),
  "Machines: score ~ Machine + diag(0 + Machine | Worker)" = tmb(score ~ Machine + diag(0 + Machine | Worker), machines),
  "Machines: score ~ Machine + homcs(0 + Machine | Worker)" = lmefit(score ~ Machine, list(Worker = pdCompSymm(~ Machine - 1)), machines),
  "Machines: score ~ Machine + homdiag(0 + Machine | Worker)" = lmefit(score ~ Machine, list(Worker = pdIdent(~ Machine - 1)), machines),
  "Orthodont: distance ~ age * Sex + ar1(0 + age | Subject)" = tmb(distance ~ age * Sex + ar1(0 + occasion | Subject), orthodont)
)
versions <- list(R = as.character(getRversion()), glmmTMB = as.character(packageVersion("glmmTMB")),
                 nlme = as.character(packageVersion("nlme")))
cat(toJSON(list(versions = versions, fits = fits), digits = NA, auto_unbox = TRUE, pretty = TRUE), "\n")
