# Fits by lme4 of responses of which fixed and random effects leave a hundred thousandth or a
# millionth: Rscript make_small_residuals.R writes data.csv and fits.json beside itself.
library(lme4)
library(jsonlite)
folder <- dirname(sub("--file=", "", grep("--file=", commandArgs(FALSE), value = TRUE)))
set.seed(20)
n_levels <- 12; per_level <- 6
g <- rep(seq_len(n_levels), each = per_level)
h <- rep(seq_len(per_level), n_levels)
x <- round(rnorm(n_levels * per_level), 3)
u <- rnorm(n_levels); s <- rnorm(n_levels, sd = 0.5); v <- rnorm(per_level)
e <- rnorm(n_levels * per_level)
data <- data.frame(
  g = sprintf("g%02d", g), h = sprintf("h%d", h), x = x,
  int_5 = 1 + 2 * x + u[g] + 1e-5 * e,
  int_6 = 1 + 2 * x + u[g] + 1e-6 * e,
  slope_5 = 1 + 2 * x + u[g] + s[g] * x + 1e-5 * e,
  slope_6 = 1 + 2 * x + u[g] + s[g] * x + 1e-6 * e,
  cross_5 = 1 + 2 * x + u[g] + v[h] + 1e-5 * e
)
data[-(1:2)] <- lapply(data[-(1:2)], function(column) as.numeric(sprintf("%.17g", column)))
text <- data
text[-(1:2)] <- lapply(data[-(1:2)], function(column) sprintf("%.17g", column))
write.csv(text, file.path(folder, "data.csv"), row.names = FALSE, quote = FALSE)

fit_one <- function(response, random, reml, sd_ratio) {
  formula <- as.formula(paste(response, "~ x +", random))
  parts <- lFormula(formula, data, REML = reml)
  deviance <- do.call(mkLmerDevfun, parts)
  k <- length(parts$reTrms$theta)
  start <- as.numeric(parts$reTrms$theta) * sd_ratio  # of the order of sd over sigma
  scale <- function(z) deviance(z * sd_ratio)
  best <- list(value = Inf)
  z <- start / sd_ratio
  for (i in 1:20) {
    found <- optim(z, scale, method = "Nelder-Mead",
                   control = list(reltol = 1e-15, maxit = 5000))
    z <- found$par
  }
  theta <- z * sd_ratio
  criterion <- deviance(theta)
  opt <- list(par = theta, fval = criterion, conv = 0)
  fit <- mkMerMod(environment(deviance), opt, parts$reTrms, fr = parts$fr)
  list(
    response = response, formula = paste(response, "~ x +", random), REML = reml,
    criterion = criterion, theta = theta, sigma = sigma(fit),
    beta = as.numeric(fixef(fit)), se = as.numeric(sqrt(diag(as.matrix(vcov(fit))))),
    sds = lapply(VarCorr(fit), function(block) as.numeric(attr(block, "stddev")))
  )
}

fits <- list()
for (reml in c(TRUE, FALSE)) {
  fits <- c(fits, list(
    fit_one("int_5", "(1 | g)", reml, 1e5), fit_one("int_6", "(1 | g)", reml, 1e6),
    fit_one("slope_5", "(x | g)", reml, 1e5), fit_one("slope_6", "(x | g)", reml, 1e6),
    fit_one("cross_5", "(1 | g) + (1 | h)", reml, 1e5)
  ))
}
write_json(
  list(software = c(R = R.version.string, lme4 = as.character(packageVersion("lme4"))), fits = fits),
  file.path(folder, "fits.json"), digits = NA, auto_unbox = TRUE, pretty = TRUE
)
