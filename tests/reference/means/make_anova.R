# Type I and II tests of terms with several degrees of freedom, and means weighted by rows of a
# weighted fit, by R, from lme4 fits of the data in ../data.
# Rscript make_anova.R     (from the folder of this file; writes anova.json)
# Made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3, emmeans 1.8.4-1.
suppressPackageStartupMessages({library(lme4); library(lmerTest); library(emmeans); library(jsonlite)})
emm_options(lmer.df = "satterthwaite", cov.keep = 0, opt.digits = FALSE)

read <- function(name) {
  meta <- fromJSON(file.path("..", "data", paste0(name, ".meta.json")), simplifyVector = FALSE)
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")))
  for (column in meta$columns) if (column$type == "factor") {
    d[[column$name]] <- factor(as.character(d[[column$name]]), levels = unlist(column$levels))
  }
  d
}
tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(maxfun = 2e5, rhoend = 1e-10))
anova_of <- function(model, type) {
  a <- as.data.frame(anova(model, type = type))
  names(a) <- c("sum_sq", "mean_sq", "num_df", "den_df", "statistic", "p_value")
  cbind(term = rownames(a), a)
}
table_of <- function(object) as.data.frame(summary(object, infer = c(TRUE, TRUE)))
out <- list()

# neither cells nor groups are balanced; rep counts the rows of a cell, three each before the loss
machines <- read("Machines")
machines$rep <- factor(ave(seq_len(nrow(machines)), machines$Worker, machines$Machine, FUN = seq_along))
machines <- machines[!(seq_len(nrow(machines)) %in% c(2, 5, 6, 11, 20, 21, 33, 40, 41, 42, 54)), ]
m <- lmer(score ~ Machine + (0 + Machine | Worker), machines, control = tight)
out$machines_one <- list(anova1 = anova_of(m, 1), anova2 = anova_of(m, 2), anova3 = anova_of(m, 3))
m <- lmer(score ~ Machine * rep + (0 + Machine | Worker), machines, control = tight)
out$machines_two <- list(anova1 = anova_of(m, 1), anova2 = anova_of(m, 2), anova3 = anova_of(m, 3))

wts <- read("sim_weights")
wts$a <- factor(ifelse(wts$x > 0, "hi", "lo"))
wts$b <- factor(c("u", "v", "v")[1 + as.integer(substring(as.character(wts$g), 2)) %% 3])
m <- lmer(y ~ a * b + x + (1 | g), wts, weights = w, control = tight)
out$weighted <- list(equal = table_of(emmeans(m, ~ a)),
  proportional = table_of(emmeans(m, ~ a, weights = "proportional")),
  outer = table_of(emmeans(m, ~ a, weights = "outer")),
  cells = table_of(emmeans(m, ~ a, weights = "cells")))

write_json(out, "anova.json", digits = NA, na = "null", pretty = FALSE, auto_unbox = TRUE)
