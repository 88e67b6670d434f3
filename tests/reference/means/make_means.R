# Marginal means, contrasts, trends and F tests by R, from lme4 fits of the data in ../data.
# Rscript make_means.R     (from the folder of this file; writes means.json)
# Made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3, emmeans 1.8.4-1, pbkrtest 0.5.2. Covariates with
# two values count as numeric here (cov.keep = 0), as in bayeslmm.
suppressPackageStartupMessages({library(lme4); library(lmerTest); library(emmeans); library(jsonlite)})
emm_options(lmer.df = "satterthwaite", cov.keep = 0, opt.digits = FALSE)

read <- function(name, levels = list()) {
  meta <- fromJSON(file.path("..", "data", paste0(name, ".meta.json")), simplifyVector = FALSE)
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")))
  for (column in meta$columns) if (column$type == "factor") {
    d[[column$name]] <- factor(as.character(d[[column$name]]), levels = unlist(column$levels))
  }
  d
}
tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(maxfun = 2e5, rhoend = 1e-10))
fit <- function(...) {
  call <- match.call()
  call[[1]] <- quote(lmerTest::lmer)
  call$control <- quote(tight)
  eval(call, globalenv())
}
table_of <- function(object, ...) {
  as.data.frame(summary(object, infer = c(TRUE, TRUE), ...))
}
anova_of <- function(model, type) {
  a <- as.data.frame(anova(model, type = type))
  names(a) <- c("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")
  cbind(term = rownames(a), a)
}
contest_of <- function(model, L) {
  a <- as.data.frame(contest(model, L, joint = TRUE))
  names(a) <- c("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")
  a
}
out <- list()

machines <- read("Machines"); sleep <- read("sleepstudy"); orth <- read("Orthodont")
design <- read("sim_design"); rank <- read("sim_rankdef"); offs <- read("sim_offset")
oats <- read("Oats"); wts <- read("sim_weights"); cake <- read("cake")

m <- fit(score ~ Machine + (1 | Worker), machines)
e <- emmeans(m, ~ Machine)
out$machines_int <- list(
  means = table_of(e), pairwise = table_of(pairs(e)),
  holm = table_of(contrast(e, "pairwise", adjust = "holm")),
  sidak = table_of(contrast(e, "pairwise", adjust = "sidak")),
  bonferroni = table_of(contrast(e, "pairwise", adjust = "bonferroni")),
  none = table_of(contrast(e, "pairwise", adjust = "none")),
  reference = table_of(contrast(e, "trt.vs.ctrl", adjust = "none")),
  sequential = table_of(contrast(e, "consec", adjust = "none")),
  effects = table_of(contrast(e, "eff", adjust = "none")),
  polynomial = table_of(contrast(e, "poly")),
  custom = table_of(contrast(e, list("C - mean(A, B)" = c(-0.5, -0.5, 1)))),
  anova3 = anova_of(m, 3), contest = contest_of(m, rbind(c(0, 1, 0), c(0, 0, 1))))

m <- fit(score ~ Machine + (0 + Machine | Worker), machines)
e <- emmeans(m, ~ Machine)
out$machines_slopes <- list(means = table_of(e), pairwise = table_of(pairs(e)), anova3 = anova_of(m, 3))

m <- fit(distance ~ age * Sex + (age | Subject), orth)
e <- emmeans(m, ~ Sex); a <- emmeans(m, ~ Sex | age, at = list(age = c(8, 14)))
tr <- emtrends(m, ~ Sex, var = "age")
out$orthodont <- list(
  means = table_of(e), pairwise = table_of(pairs(e)), at = table_of(a), at_pairwise = table_of(pairs(a)),
  trends = table_of(tr), trends_pairwise = table_of(pairs(tr)),
  anova1 = anova_of(m, 1), anova2 = anova_of(m, 2), anova3 = anova_of(m, 3),
  contest = contest_of(m, rbind(c(0, 1, 0, 0), c(0, 1, 0, 1))))

m <- fit(Reaction ~ Days + (Days | Subject), sleep)
out$sleepstudy <- list(
  means = table_of(emmeans(m, ~ 1)), at = table_of(emmeans(m, ~ Days, at = list(Days = c(0, 5, 9)))),
  trends = table_of(emtrends(m, ~ 1, var = "Days")), contest = contest_of(m, rbind(c(1, 0), c(0, 1))))
m <- fit(Reaction ~ poly(Days, 2, raw = TRUE) + (Days | Subject), sleep)
out$sleepstudy_quadratic <- list(
  trends = table_of(emtrends(m, ~ Days, var = "Days", at = list(Days = c(0, 4.5, 9)), delta.var = 1e-6)))

m <- fit(y ~ x + f1 * f2 + (1 | g), design)
e <- emmeans(m, ~ f1)
out$design_inter <- list(
  counts = as.data.frame(table(design$f1, design$f2)),
  means = table_of(e), pairwise = table_of(pairs(e)),
  proportional = table_of(emmeans(m, ~ f1, weights = "proportional")),
  outer = table_of(emmeans(m, ~ f1, weights = "outer")),
  cells = table_of(emmeans(m, ~ f1, weights = "cells")),
  by = table_of(emmeans(m, ~ f1 | f2)), by_pairwise = table_of(pairs(emmeans(m, ~ f1 | f2))),
  both_pairwise = table_of(pairs(emmeans(m, ~ f1 * f2))),
  anova1 = anova_of(m, 1), anova2 = anova_of(m, 2), anova3 = anova_of(m, 3))
m <- fit(y ~ x * f1 + f1:f2 + f2 + (1 | g), design)
out$design_three <- list(anova1 = anova_of(m, 1), anova2 = anova_of(m, 2), anova3 = anova_of(m, 3),
  trends = table_of(emtrends(m, ~ f1, var = "x")))

m <- fit(y ~ a * b + x1 + (1 | g), rank)
out$rankdef <- list(counts = as.data.frame(table(rank$a, rank$b)),
  both = table_of(emmeans(m, ~ a * b)), a = table_of(emmeans(m, ~ a)), b = table_of(emmeans(m, ~ b)),
  by_pairwise = table_of(pairs(emmeans(m, ~ a | b)), adjust = "none"),
  both_pairwise = table_of(pairs(emmeans(m, ~ a * b)), adjust = "none"),
  anova3 = anova_of(m, 3))

m <- fit(y ~ x + offset(o) + (1 | g), offs)
out$offset <- list(means = table_of(emmeans(m, ~ 1)), at = table_of(emmeans(m, ~ x, at = list(x = c(-1, 1)))))
m <- fit(y ~ x + (x | g), wts, weights = w)
out$weights <- list(means = table_of(emmeans(m, ~ 1)), at = table_of(emmeans(m, ~ x, at = list(x = c(-1, 1)))))

m <- fit(angle ~ recipe * temperature + (1 | recipe:replicate), cake)
e <- emmeans(m, ~ temperature)
out$cake <- list(means = table_of(e), polynomial = table_of(contrast(e, "poly")),
  pairwise = table_of(pairs(e)), anova3 = anova_of(m, 3))

m <- fit(yield ~ Variety * nitro + (1 | Block / Variety), oats)
out$oats <- list(means = table_of(emmeans(m, ~ Variety)), trends = table_of(emtrends(m, ~ Variety, var = "nitro")),
  anova3 = anova_of(m, 3), anova2 = anova_of(m, 2))

write_json(out, "means.json", digits = NA, na = "null", pretty = FALSE, auto_unbox = TRUE)
