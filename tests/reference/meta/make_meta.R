# Figures of metafor 3.8.1 for tests/test_meta_analysis.py; run in this folder:
#   Rscript make_meta.R
# Reads bcg.csv, school_calendar.csv and periodontal.csv of bayeslmm/_datasets and lung_cancer.csv
# here, writes meta.json.
suppressMessages({library(metafor); library(jsonlite)})

data_of <- function(name) read.csv(file.path("../../../bayeslmm/_datasets", paste0(name, ".csv")))

bcg <- escalc(measure = "RR", ai = vaccinated_cases, bi = vaccinated_others,
              ci = control_cases, di = control_others, data = data_of("bcg"))
schools <- transform(data_of("school_calendar"), yi = d, vi = variance)
gums <- transform(data_of("periodontal"), yi = difference, vi = variance)
lung <- read.csv("lung_cancer.csv")
V <- bldiag(lapply(split(gums[, c("cov_pd", "cov_al")], gums$trial), as.matrix))
tight <- list(rel.tol = 1e-12, threshold = 1e-10, maxiter = 10000)
exact <- list(optimizer = "bobyqa", rhobeg = 0.1, rhoend = 1e-9, maxfun = 1e5)

typical <- function(m, rows = rep(TRUE, m$k)) {
  W <- solve(m$V)
  X <- model.matrix(m)
  P <- W - W %*% X %*% solve(t(X) %*% W %*% X) %*% t(X) %*% W
  (sum(rows) - if (all(rows)) m$p else 1) / sum(diag(P)[rows])
}

common <- function(m) list(
  beta = as.numeric(coef(m)), se = m$se, vcov = as.matrix(unname(vcov(m))),
  loglik = as.numeric(logLik(m)), QE = m$QE, QEp = m$QEp, QM = m$QM, QMp = m$QMp,
  ci_lb = m$ci.lb, ci_ub = m$ci.ub, k = m$k, p = m$p)

uni <- function(m) {
  s <- c(common(m), list(tau2 = m$tau2, se_tau2 = m$se.tau2, I2 = m$I2, H2 = m$H2))
  if (m$p == 1) { pi <- predict(m); s$pi <- c(pi$pi.lb, pi$pi.ub) }
  s
}
mv <- function(m) c(common(m), list(sigma2 = m$sigma2, tau2 = m$tau2, rho = m$rho))

out <- list()
for (method in c("REML", "ML")) {
  key <- function(name) paste(name, method, sep = ".")
  out[[key("bcg")]] <- uni(rma(yi, vi, data = bcg, method = method, control = tight))
  out[[key("bcg_moderated")]] <- uni(rma(yi, vi, mods = ~ latitude + allocation, data = bcg,
                                         method = method, control = tight))
  out[[key("lung")]] <- uni(rma(yi, vi, mods = ~ design, data = lung, method = method,
                                control = tight))
  m <- rma.mv(yi, vi, random = ~ 1 | district / school, data = schools, method = method,
              control = exact)
  out[[key("schools")]] <- c(mv(m), list(
    typical = typical(m), I2 = 100 * m$sigma2 / (sum(m$sigma2) + typical(m)),
    pi = c(predict(m)$pi.lb, predict(m)$pi.ub)))
  m <- rma.mv(yi, vi, mods = ~ year, random = ~ 1 | district / school, data = schools,
              method = method, control = exact)
  out[[key("schools_year")]] <- mv(m)
  gums$outcome <- factor(gums$outcome)
  m <- rma.mv(yi, V, mods = ~ outcome - 1, random = ~ outcome | trial, struct = "UN",
              data = gums, method = method, control = exact)
  s <- sapply(levels(gums$outcome), function(o) typical(m, gums$outcome == o))
  out[[key("gums")]] <- c(mv(m), list(typical = unname(s), I2 = unname(100 * m$tau2 / (m$tau2 + s)),
    pi = unname(cbind(coef(m) - qnorm(.975) * sqrt(m$se^2 + m$tau2),
                      coef(m) + qnorm(.975) * sqrt(m$se^2 + m$tau2)))))
  gums$since <- gums$year - 1983
  m <- rma.mv(yi, V, mods = ~ outcome + outcome:since - 1, random = ~ outcome | trial,
              struct = "UN", data = gums, method = method, control = exact)
  out[[key("gums_year")]] <- mv(m)
  m <- rma.mv(yi, V, mods = ~ outcome - 1, random = ~ outcome | trial, struct = "CS",
              data = gums, method = method, control = exact)
  out[[key("gums_cs")]] <- mv(m)
}
knha <- rma(yi, vi, data = bcg, test = "knha", control = tight)
out$bcg_knha <- c(uni(knha), list(dfs = knha$ddf, s2w = knha$s2w))
tt <- rma(yi, vi, data = bcg, test = "t", control = tight)
out$bcg_t <- list(ci_lb = tt$ci.lb, ci_ub = tt$ci.ub, pi = c(predict(tt)$pi.lb, predict(tt)$pi.ub))
fixed <- rma(yi, vi, data = bcg, method = "FE")
out$bcg_common <- uni(fixed)
mv1 <- rma.mv(yi, vi, random = ~ 1 | trial, data = bcg, control = exact)
out$bcg_profile <- confint(mv1, digits = 8)$random
out$bcg_q_profile <- confint(rma(yi, vi, data = bcg, control = tight), digits = 10)$random
held <- rma.mv(yi, V, mods = ~ outcome - 1, random = ~ outcome | trial, struct = "UN", data = gums,
               tau2 = c(0.03, 0.01), rho = 0.5)
out$gums_held <- mv(held)
out$gums_common <- common(rma.mv(yi, V, mods = ~ outcome - 1, data = gums))
part <- gums[-3, ]
out$gums_dropped <- mv(rma.mv(yi, V[-3, -3], mods = ~ outcome - 1, random = ~ outcome | trial,
                              struct = "UN", data = part, control = exact))
writeLines(toJSON(out, digits = 12, auto_unbox = TRUE, pretty = TRUE), "meta.json")
