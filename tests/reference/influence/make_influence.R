# Figures of lme4 that bayeslmm's influence(), residual_checks() and singularity() are held against.
# Run in this folder: Rscript make_influence.R
# R 4.2.2, lme4 1.1-31 (package versions are written to versions.txt).
library(lme4)
data(Machines, package = "nlme")
Machines <- as.data.frame(Machines)
Machines$Worker <- factor(as.character(Machines$Worker))
tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5),
                     calc.derivs = FALSE)
sleepstudy$w <- 1 / (1 + sleepstudy$Days)
fits <- list(
  sleepstudy = lmer(Reaction ~ Days + (Days | Subject), sleepstudy, control = tight),
  sleepstudy_weighted = lmer(Reaction ~ Days + (Days | Subject), sleepstudy, weights = w,
                             control = tight),
  Penicillin = lmer(diameter ~ 1 + (1 | plate) + (1 | sample), Penicillin, control = tight),
  Pastes = lmer(strength ~ 1 + (1 | batch) + (1 | sample), Pastes, control = tight),
  Machines = lmer(score ~ Machine + (Machine | Worker), Machines, control = tight))

rows <- do.call(rbind, lapply(names(fits), function(name) {
  m <- fits[[name]]
  scaled <- residuals(m, type = "pearson", scaled = TRUE)
  data.frame(fit = name, row = seq_len(nobs(m)), leverage = unname(hatvalues(m)),
             residual = unname(scaled),
             rstudent = unname(rstudent(m)), cooks_distance = unname(cooks.distance(m)))
}))
rows[-(1:2)] <- signif(rows[-(1:2)], 10)
write.csv(rows, "rows.csv", row.names = FALSE)

deleted <- function(name, group, data) {
  m <- fits[[name]]
  do.call(rbind, lapply(levels(factor(data[[group]])), function(level) {
    part <- droplevels(data[data[[group]] != level, ])
    s <- update(m, data = part)
    gap <- fixef(s) - fixef(m)
    v <- as.matrix(vcov(m))
    sds <- as.data.frame(VarCorr(s))
    out <- data.frame(fit = name, level = level,
      cooks_distance = drop(gap %*% solve(v, gap)) / length(gap),
      covratio = det(as.matrix(vcov(s))) / det(v))
    for (i in seq_along(gap)) {
      out[[paste0("estimate", i)]] <- fixef(s)[[i]]
      out[[paste0("dfbetas", i)]] <- gap[[i]] / sqrt(diag(as.matrix(vcov(s))))[[i]]
    }
    out$sigma <- sigma(s)
    out$sd1 <- sds$sdcor[1]
    out
  }))
}
groups <- list(deleted("sleepstudy", "Subject", sleepstudy),
               deleted("Penicillin", "sample", Penicillin))
columns <- unique(unlist(lapply(groups, names)))
groups <- lapply(groups, function(g) { g[setdiff(columns, names(g))] <- NA; g[columns] })
write.csv(do.call(rbind, groups), "groups.csv", row.names = FALSE)

pca <- do.call(rbind, lapply(names(fits), function(name) {
  found <- rePCA(fits[[name]])
  do.call(rbind, lapply(names(found), function(g) {
    d <- found[[g]]$sdev
    data.frame(fit = name, group = g, component = seq_along(d), sd = d,
               cumulative = cumsum(d^2) / sum(d^2))
  }))
}))
write.csv(pca, "pca.csv", row.names = FALSE)
writeLines(c(R.version.string, paste("lme4", packageVersion("lme4"))), "versions.txt")
