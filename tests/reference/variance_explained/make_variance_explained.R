# Variance components, intraclass correlations and R2 of lme4 fits by insight and performance,
# beside the diagonal of V = Z G Z' + R computed from lme4's own matrices.
# Rscript make_variance_explained.R OUTPUT_FILE     (from the folder of this file)
# Made with R 4.2.2, lme4 1.1-31, performance 0.10.2, insight 0.19.0.
suppressPackageStartupMessages({library(lme4); library(performance); library(jsonlite)})

read <- function(name) {
  meta <- fromJSON(file.path("..", "data", paste0(name, ".meta.json")), simplifyVector = FALSE)
  d <- read.csv(file.path("..", "data", paste0(name, ".csv")), na.strings = "")
  for (column in meta$columns) if (column$type == "factor") {
    levels <- unlist(column$levels)
    if (is.null(levels)) levels <- unique(d[[column$name]])
    d[[column$name]] <- factor(d[[column$name]], levels = levels)
  }
  d
}

control <- lmerControl(optimizer = "bobyqa", optCtrl = list(maxfun = 2e5, rhoend = 1e-10),
                       check.conv.singular = "ignore")
number <- function(x) if (is.null(x) || length(x) == 0) NA_real_ else as.numeric(unname(x))[1]

# Mean diagonal of Z_f G_f Z_f' per grouping factor
diagonals <- function(fit) {
  # Z and Lambda go by decreasing number of levels, one block per random-effects term
  zt <- getME(fit, "Ztlist"); gp <- getME(fit, "Gp"); lambdat <- getME(fit, "Lambdat")
  flist <- getME(fit, "flist"); assign <- attr(flist, "assign"); cnms <- getME(fit, "cnms")
  z <- getME(fit, "Zt")
  per_term <- sapply(seq_along(cnms), function(i) {
    rows <- (gp[i] + 1):gp[i + 1]
    root <- lambdat[rows, rows] %*% z[rows, , drop = FALSE]
    sigma(fit)^2 * mean(Matrix::colSums(root^2))
  })
  names(per_term) <- names(flist)[assign]
  as.list(tapply(per_term, names(per_term), sum))
}

describe <- function(id, data, formula, REML = TRUE, weights = NULL) {
  d <- read(data)
  call <- list(as.formula(formula), data = d, REML = REML, control = control)
  if (!is.null(weights)) call$weights <- d[[weights]]
  fit <- do.call(lmer, call)
  quiet <- function(x) suppressWarnings(suppressMessages(x))
  capture.output({
    v <- quiet(insight::get_variance(fit))
    i <- quiet(icc(fit))
    r <- quiet(r2_nakagawa(fit))
  })
  w <- weights(fit)
  list(
    id = id, data = data, formula = formula, REML = REML,
    weights = if (is.null(weights)) NA else weights,
    singular = isSingular(fit),
    insight = list(fixed = number(v$var.fixed), random = number(v$var.random),
                   residual = number(v$var.residual)),
    performance = list(
      icc_adjusted = if (is.data.frame(i)) i$ICC_adjusted else NA_real_,
      icc_unadjusted = if (is.data.frame(i)) i$ICC_unadjusted else NA_real_,
      r2_marginal = if (is.list(r)) number(r$R2_marginal) else NA_real_,
      r2_conditional = if (is.list(r)) number(r$R2_conditional) else NA_real_),
    lme4 = list(fixed = var(as.vector(getME(fit, "X") %*% fixef(fit))),
                random = diagonals(fit), residual = sigma(fit)^2 * mean(1 / w))
  )
}

fits <- list(
  describe("sleepstudy slope", "sleepstudy", "Reaction ~ Days + (Days | Subject)"),
  describe("sleepstudy slope ML", "sleepstudy", "Reaction ~ Days + (Days | Subject)", REML = FALSE),
  describe("sleepstudy intercept", "sleepstudy", "Reaction ~ Days + (1 | Subject)"),
  describe("sleepstudy uncorrelated", "sleepstudy", "Reaction ~ Days + (Days || Subject)"),
  describe("sleepstudy slope not fixed", "sleepstudy", "Reaction ~ 1 + (Days | Subject)"),
  describe("Penicillin", "Penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
  describe("Penicillin no intercept", "Penicillin", "diameter ~ 0 + sample + (1 | plate)"),
  describe("Pastes", "Pastes", "strength ~ 1 + (1 | batch/cask)"),
  describe("Machines", "Machines", "score ~ Machine + (Machine | Worker)"),
  describe("Machines cells", "Machines", "score ~ Machine + (0 + Machine | Worker)"),
  describe("Machines nested", "Machines", "score ~ Machine + (1 | Worker/Machine)"),
  describe("Orthodont", "Orthodont", "distance ~ age * Sex + (age | Subject)"),
  describe("Oats", "Oats", "yield ~ Variety + nitro + (1 | Block/Variety)"),
  describe("Dyestuff", "Dyestuff", "Yield ~ 1 + (1 | Batch)"),
  describe("Dyestuff2", "Dyestuff2", "Yield ~ 1 + (1 | Batch)"),
  describe("weights", "sim_weights", "y ~ x + (1 | g)", weights = "w"),
  describe("weights slope", "sim_weights", "y ~ x + (x | g)", weights = "w"),
  describe("offset", "sim_offset", "y ~ x + offset(o) + (1 | g)")
)
about <- list(R = R.version.string,
  packages = sapply(c("lme4", "performance", "insight"), function(p) as.character(packageVersion(p))))
writeLines(toJSON(list(about = lapply(about, as.list), fits = fits), digits = NA, auto_unbox = TRUE, na = "null",
                  pretty = TRUE), commandArgs(TRUE)[1])
