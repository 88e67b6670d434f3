# ranova, drop1 and step by lmerTest, fits of each level by lme4 and nlme, of the data in ../data.
# Rscript make_selection.R     (from the folder of this file; writes selection.json)
# Made with R 4.2.2, lme4 1.1-31, lmerTest 3.1-3, nlme 3.1-162.
suppressPackageStartupMessages({library(lme4); library(lmerTest); library(jsonlite)})

read <- function(name) {
  meta <- fromJSON(file.path("..", "data", paste0(name, ".meta.json")), simplifyVector = FALSE)
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")))
  for (column in meta$columns) if (column$type == "factor") {
    d[[column$name]] <- factor(as.character(d[[column$name]]), levels = unlist(column$levels))
  }
  d
}
tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(maxfun = 2e5, rhoend = 1e-10))
table_of <- function(a) {
  a <- as.data.frame(a)
  names(a) <- sub("^F value$", "statistic", sub("^Pr.*$", "p_value", names(a)))
  cbind(term = rownames(a), a)
}
selection_of <- function(m) {
  s <- step(m)
  list(ranova = table_of(ranova(m)), whole = table_of(ranova(m, reduce.terms = FALSE)),
    drop1 = table_of(drop1(m)), random = table_of(s$random), fixed = table_of(s$fixed),
    found = paste(deparse(formula(get_model(s)), width.cutoff = 500), collapse = " "))
}
dyestuff2 <- read("Dyestuff2")
dyestuff2$x <- (seq_len(30) * 7) %% 11
dyestuff2$z <- (seq_len(30) * 5) %% 13
oats <- read("Oats")
oats$late <- seq_len(72) > 20
cases <- list(
  sleepstudy = lmer(Reaction ~ Days + (Days | Subject), read("sleepstudy"), control = tight),
  sleepstudy_ml = lmer(Reaction ~ Days + (Days | Subject), read("sleepstudy"), REML = FALSE, control = tight),
  sleepstudy_uncorrelated = lmer(Reaction ~ Days + (Days || Subject), read("sleepstudy"), control = tight),
  machines = lmer(score ~ Machine + (0 + Machine | Worker), read("Machines"), control = tight),
  machines_nested = lmer(score ~ Machine + (1 | Worker/Machine), read("Machines"), control = tight),
  oats = lmer(yield ~ nitro * Variety + (1 | Block/Variety), oats[oats$late, ], control = tight),
  cake = lmer(angle ~ recipe * temperature + (1 | recipe:replicate), read("cake"), control = tight),
  orthodont = lmer(distance ~ age * Sex + (age | Subject), read("Orthodont"), control = tight),
  design = lmer(y ~ x * f1 + f2 + (x | g), read("sim_design"), control = tight),
  pastes = lmer(strength ~ 1 + (1 | batch/cask), read("Pastes"), control = tight),
  penicillin = lmer(diameter ~ 1 + (1 | plate) + (1 | sample), read("Penicillin"), control = tight),
  dyestuff2 = lmer(Yield ~ x + z + (1 | Batch), dyestuff2, control = tight)
)
out <- list(selection = lapply(cases, selection_of))

# refits by ML of REML fits
m0 <- lmer(Reaction ~ 1 + (1 | Subject), read("sleepstudy"), control = tight)
m1 <- lmer(Reaction ~ Days + (1 | Subject), read("sleepstudy"), control = tight)
m2 <- lmer(Reaction ~ Days + (Days | Subject), read("sleepstudy"), control = tight)
out$anova <- as.data.frame(suppressMessages(anova(m0, m1, m2)))

# a fit per level
lists_of <- function(formula, data) {
  m <- nlme::lmList(formula, data)
  i <- nlme::intervals(m)
  list(sigma = m |> summary() |> (\(s) s$RSE)(), df = summary(m)$df.residual,
    coef = cbind(level = rownames(coef(m)), coef(m)),
    se = apply(summary(m)$coefficients[, "Std. Error", ], 2, identity, simplify = FALSE),
    low = i[, "lower", ], high = i[, "upper", ], levels = dimnames(i)[[1]])
}
out$lists <- list(
  sleepstudy = lists_of(Reaction ~ Days | Subject, read("sleepstudy")),
  orthodont = lists_of(distance ~ age | Subject, read("Orthodont")))
write(toJSON(out, digits = NA, na = "null", auto_unbox = TRUE), "selection.json")
