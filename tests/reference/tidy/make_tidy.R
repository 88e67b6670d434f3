# Tables with the columns and names of broom.mixed::tidy(fit), from lme4 fits of the data in ../data.
# Rscript make_tidy.R OUTPUT_FOLDER     (from the folder of this file)
suppressPackageStartupMessages(library(lme4))

read <- function(name, factors) {
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")))
  for (f in names(factors)) {
    d[[f]] <- if (is.null(factors[[f]])) factor(d[[f]]) else factor(d[[f]], levels = factors[[f]])
  }
  d
}

tidy <- function(fit, profile = FALSE, scales = c("sdcor", "vcov")) {
  scales <- match.arg(scales)
  b <- coef(summary(fit))
  ci <- confint(fit, method = "Wald", quiet = TRUE)[rownames(b), , drop = FALSE]
  v <- as.data.frame(VarCorr(fit))
  prefix <- if (scales == "sdcor") c("sd", "cor") else c("var", "cov")
  var1 <- ifelse(v$grp == "Residual", "Observation", v$var1)
  term <- ifelse(is.na(v$var2), paste0(prefix[1], "__", var1),
                 paste0(prefix[2], "__", var1, ".", v$var2))
  rci <- matrix(NA_real_, nrow(v), 2)
  if (profile) {
    p <- confint(fit, method = "profile", oldNames = FALSE, quiet = TRUE)
    ci <- p[rownames(b), , drop = FALSE]
    name <- ifelse(v$grp == "Residual", "sigma",
                   ifelse(is.na(v$var2), paste0("sd_", v$var1, "|", v$grp),
                          paste0("cor_", v$var2, ".", v$var1, "|", v$grp)))
    rci <- p[name, , drop = FALSE]
  }
  rbind(
    data.frame(effect = "fixed", group = NA, term = rownames(b), estimate = b[, 1],
               std.error = b[, 2], statistic = b[, 3], conf.low = ci[, 1], conf.high = ci[, 2]),
    data.frame(effect = "ran_pars", group = v$grp, term = term, estimate = v[[scales]],
               std.error = NA, statistic = NA, conf.low = rci[, 1], conf.high = rci[, 2]))
}

out <- commandArgs(TRUE)[1]
save <- function(table, name)
  write.csv(format(table, digits = 8, trim = TRUE), file.path(out, paste0(name, ".csv")),
            row.names = FALSE, quote = 1:3)
control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5))

sleep <- read("sleepstudy", list(Subject = NULL))
slope <- lmer(Reaction ~ Days + (Days | Subject), sleep, control = control)
save(tidy(slope, profile = TRUE), "sleepstudy_profile")
save(tidy(slope, scales = "vcov"), "sleepstudy_vcov")
save(tidy(lmer(Reaction ~ Days + (Days | Subject), sleep, REML = FALSE, control = control)),
     "sleepstudy_ml")
save(tidy(lmer(Reaction ~ Days + (Days || Subject), sleep, control = control)), "sleepstudy_uncor")

orthodont <- read("Orthodont", list(Subject = NULL, Sex = c("Male", "Female")))
save(tidy(lmer(distance ~ age * Sex + (age | Subject), orthodont, control = control)), "Orthodont")

machines <- read("Machines", list(Worker = NULL, Machine = c("A", "B", "C")))
save(tidy(lmer(score ~ Machine + (0 + Machine | Worker), machines, control = control)), "Machines")

pastes <- read("Pastes", list(batch = NULL, cask = NULL))
save(tidy(lmer(strength ~ 1 + (1 | batch/cask), pastes, control = control)), "Pastes")

dyestuff2 <- read("Dyestuff2", list(Batch = NULL))
save(tidy(lmer(Yield ~ 1 + (1 | Batch), dyestuff2)), "Dyestuff2")

pixel <- read("Pixel", list(Dog = NULL, Side = NULL))
save(tidy(lmer(pixel ~ day + I(day^2) + (day | Dog) + (1 | Dog:Side), pixel, control = control)),
     "Pixel")

design <- read("sim_design", list(g = NULL, f1 = c("low", "med", "high"), f2 = c("no", "yes")))
save(tidy(lmer(y ~ poly(x, 2) + f1 * f2 + (f2 | g), design, control = control)), "sim_design")
