# Likelihoods, AIC, BIC and likelihood-ratio tests of three models of sleepstudy, from lme4.
# Writes anova.csv into the working directory. Made with R 4.2.2 and lme4 1.1-31.
library(lme4)
f <- list(intercepts = Reaction ~ Days + (1 | Subject), uncorrelated = Reaction ~ Days + (Days || Subject), slopes = Reaction ~ Days + (Days | Subject))
fits <- lapply(f, lmer, data = sleepstudy, REML = FALSE)
a <- anova(fits[[1]], fits[[2]], fits[[3]])
reml <- lapply(f, lmer, data = sleepstudy)
b <- anova(reml[[1]], reml[[2]], reml[[3]], refit = FALSE)
out <- rbind(data.frame(method = "ML", model = names(f), as.data.frame(a)), data.frame(method = "REML", model = names(f), as.data.frame(b)))
names(out) <- c("method", "model", "npar", "aic", "bic", "loglik", "minus2loglik", "chisq", "df", "p_value")
write.csv(format(out, digits = 12, trim = TRUE), "anova.csv", row.names = FALSE, quote = FALSE)
