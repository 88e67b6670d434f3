# Cluster-robust tests by clubSandwich 0.5.8, and anova tables by lmerTest 3.1.3 with pbkrtest 0.5.2
# (R 4.2.2). Run in this folder: Rscript make_small_samples.R > small_samples.json
# kenward_roger_sas.csv: SAS' estimates of FEV1 ~ ARMCD, from design/ddfm_covtype of
# github.com/openpharma/mmrm (Apache 2.0); "full" is of the listings that say "Kenward-Roger" as the
# method of standard errors, "linear" of those that say "Prasad-Rao-Jeske-Kackar-Harville".
suppressMessages({library(lme4); library(nlme); library(clubSandwich); library(jsonlite)})

tight <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-12, maxfun = 1e5))
tests <- function(fit, joint, cluster = NULL) {
  out <- list()
  for (type in c("CR0", "CR1", "CR2", "CR3")) {
    v <- tryCatch(if (is.null(cluster)) vcovCR(fit, type = type)
                  else vcovCR(fit, cluster = cluster, type = type), error = function(e) NULL)
    if (is.null(v)) next
    t <- coef_test(fit, v, test = "Satterthwaite")
    w <- Wald_test(fit, constraints = joint, vcov = v, test = "HTZ")
    out[[type]] <- list(se = t$SE, df = if (is.null(t$df_Satt)) t$df else t$df_Satt,
                        F = w$Fstat, num_df = w$df_num, den_df = w$df_denom)
  }
  out
}

data(sleepstudy); O <- as.data.frame(Orthodont)
S <- subset(sleepstudy, !(as.integer(Subject) %% 3 == 0 & Days > 4) & !(Subject == "372" & Days > 0))
slope <- lmer(Reaction ~ Days + (Days | Subject), S, control = tight)
P <- Pastes
nested <- lmer(strength ~ cask + (1 | batch) + (1 | sample), P, control = tight)
few <- subset(O, as.integer(Subject) %% 2 == 0 & !(Sex == "Female" & age > 12))
ar1 <- lme(distance ~ age * Sex, few, random = ~ 1 | Subject, correlation = corAR1(form = ~ 1 | Subject),
           control = lmeControl(opt = "nlminb", tolerance = 1e-11, msTol = 1e-13, msMaxIter = 500))
hetero <- gls(distance ~ age * Sex, few, correlation = corCompSymm(form = ~ 1 | Subject),
              weights = varIdent(form = ~ 1 | Sex),
              control = glsControl(tolerance = 1e-11, msTol = 1e-13, msMaxIter = 500))
D <- read.csv("singletons.csv")  # the last two groups have one row, one with a coefficient of its own
single <- lmer(y ~ x + only + (1 | g), D, control = tight)
write(toJSON(list(
  singletons = list(data = as.list(D), tests = tests(single, constrain_zero(1:2))),
  sleepstudy = list(rows = as.integer(rownames(S)), tests = tests(slope, diag(2))),
  pastes = list(tests = tests(nested, constrain_zero(2:3), P$batch)),
  ar1 = list(rows = as.integer(rownames(few)), tests = tests(ar1, constrain_zero(2:4))),
  hetero = list(tests = tests(hetero, constrain_zero(3:4)))
), digits = NA, auto_unbox = TRUE, pretty = TRUE), stdout())
