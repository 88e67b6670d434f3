# glance() and augment() of lme4 fits by broom.mixed, which the tests compare with.
# R 4.2.2; lme4 1.1-31, broom.mixed 0.2.9.4. Run in this folder: Rscript make_reporting.R
suppressMessages({library(lme4); library(broom.mixed)})

sleep <- sleepstudy
sleep$w <- 1 + (seq_len(nrow(sleep)) - 1) %% 3
sleep$o <- 2 * sleep$Days
fits <- list(
  sleep_reml = lmer(Reaction ~ Days + (Days | Subject), sleep),
  sleep_weighted_ml = lmer(Reaction ~ Days + offset(o) + (Days | Subject), sleep,
                           weights = w, REML = FALSE),
  penicillin_reml = lmer(diameter ~ 1 + (1 | plate) + (1 | sample), Penicillin)
)
glances <- NULL
for (name in names(fits)) {
  fit <- fits[[name]]
  g <- as.data.frame(glance(fit))
  criterion <- if (isREML(fit)) REMLcrit(fit) else deviance(fit)
  glances <- rbind(glances, data.frame(
    fit = name, nobs = g$nobs, sigma = g$sigma, loglik = g$logLik, aic = g$AIC, bic = g$BIC,
    criterion = criterion, df_residual = g$df.residual))
  a <- as.data.frame(augment(fit))
  out <- data.frame(.fitted = a$.fitted, .fixed = a$.fixed, .resid = a$.resid,
                    .pearson_resid = residuals(fit, type = "pearson", scaled = TRUE),
                    .hat = a$.hat, .cooksd = a$.cooksd)
  write.csv(format(out, digits = 12), paste0(name, "_augment.csv"), row.names = FALSE,
            quote = FALSE)
}
write.csv(format(glances, digits = 12), "glance.csv", row.names = FALSE, quote = FALSE)
