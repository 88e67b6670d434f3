# Predictions by lme4's predict(newdata, re.form, allow.new.levels = TRUE) and a parametric
# bootstrap by bootMer, from fits of the data in ../data.
# Rscript make_prediction.R     (from the folder of this file; writes prediction.json)
# R 4.2.2, lme4 1.1-31, jsonlite 1.8.4. This lme4 has no predict(se.fit = TRUE).
suppressPackageStartupMessages({library(lme4); library(splines); library(jsonlite)})

read <- function(name) {
  meta <- fromJSON(file.path("..", "data", paste0(name, ".meta.json")), simplifyVector = FALSE)
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")))
  for (column in meta$columns) if (column$type == "factor") {
    d[[column$name]] <- factor(as.character(d[[column$name]]), levels = unlist(column$levels))
  }
  d
}
tight <- lmerControl(optimizer = "nloptwrap",
                     optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12, maxeval = 1e5),
                     check.conv.singular = "ignore")
case <- function(id, data, formula, new, forms, weights = NULL) {
  d <- read(data)
  d$w__ <- if (is.null(weights)) 1 else d[[weights]]
  fit <- lmer(as.formula(formula), d, weights = w__, control = tight)
  predictions <- lapply(forms, function(form) {
    form <- if (form == "NULL") NULL else if (form == "NA") NA else as.formula(form)
    as.numeric(predict(fit, newdata = new, re.form = form, allow.new.levels = TRUE))
  })
  list(id = id, data = data, formula = formula, weights = weights, new = as.list(new),
       re_form = predictions, sigma = sigma(fit), singular = isSingular(fit))
}
all_forms <- c(conditional = "NULL", average = "NA")
cases <- list(
  case("sleepstudy", "sleepstudy", "Reaction ~ Days + (Days | Subject)",
       data.frame(Days = c(0, 4.5, 10, 10, 3), Subject = c("308", "309", "372", "new", "other")),
       c(all_forms, intercept = "~ (1 | Subject)", slope = "~ (0 + Days | Subject)")),
  case("spline", "sleepstudy", "Reaction ~ ns(Days, df = 3) + (1 | Subject)",
       data.frame(Days = c(0, 4.5, 9), Subject = c("308", "309", "new")), all_forms),
  case("log", "sleepstudy", "log(Reaction) ~ Days + (1 | Subject)",
       data.frame(Days = c(0, 12), Subject = c("308", "new")), all_forms),
  case("crossed", "Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)",
       data.frame(plate = c("a", "z", "b", "z"), sample = c("A", "B", "G", "G")),
       c(all_forms, plate = "~ (1 | plate)", sample = "~ (1 | sample)")),
  case("nested", "Pastes", "strength ~ 1 + (1 | batch / cask)",
       data.frame(batch = c("A", "A", "K", "B"), cask = c("a", "d", "a", "c")),
       c(all_forms, batch = "~ (1 | batch)")),
  case("cells", "Machines", "score ~ 0 + Machine + (0 + Machine | Worker)",
       data.frame(Machine = c("A", "B", "C", "C"), Worker = c("1", "6", "3", "new")), all_forms),
  case("weights", "sim_weights", "y ~ x + (1 | g)",
       data.frame(x = c(-1, 0.5, 2), g = c("g26", "g14", "new")), all_forms, weights = "w"),
  case("offset", "sim_offset", "y ~ x + offset(o) + (1 | g)",
       data.frame(x = c(-1, 0.5, 2), o = c(1, 5, 9), g = c("g01", "g02", "new")), all_forms),
  case("singular", "Dyestuff2", "Yield ~ 1 + (1 | Batch)",
       data.frame(Batch = c("A", "G")), all_forms)
)

sleep <- read("sleepstudy")
fit <- lmer(Reaction ~ Days + (Days | Subject), sleep, control = tight)
statistics <- function(m) {
  v <- as.data.frame(VarCorr(m), order = "lower.tri")$sdcor
  c(fixef(m), v[1], v[3], v[2], v[4])
}
labels <- c("beta[Intercept]", "beta[Days]", "sd[Subject, Intercept]", "sd[Subject, Days]",
            "cor[Subject, Intercept, Days]", "sigma")
boot <- bootMer(fit, statistics, nsim = 4000, seed = 1, use.u = FALSE)$t
colnames(boot) <- labels
boot <- boot[complete.cases(boot), ]
bootstrap <- list(
  nsim = nrow(boot), estimate = as.list(setNames(statistics(fit), labels)),
  mean = as.list(colMeans(boot)), sd = as.list(apply(boot, 2, sd)),
  quantiles = list(probs = c(0.05, 0.25, 0.5, 0.75, 0.95),
                   values = lapply(setNames(labels, labels), function(l)
                     as.numeric(quantile(boot[, l], c(0.05, 0.25, 0.5, 0.75, 0.95)))))
)
write_json(list(cases = cases, bootstrap = bootstrap), "prediction.json",
           digits = NA, auto_unbox = TRUE, pretty = TRUE, null = "null")
