## make_reference.R -- rebuilds the whole reference set:  Rscript make_reference.R [output folder]
## (default output folder: the folder this script lies in; a second argument is a regular expression of data set names to run only)
args <- commandArgs(FALSE); me <- sub("^--file=", "", grep("^--file=", args, value = TRUE)[1]); HERE <- dirname(normalizePath(me))
a <- commandArgs(TRUE); source(file.path(HERE, "reflib.R"))
init_set(if (length(a) >= 1) a[1] else HERE, "open", me)
ONLY <- if (length(a) >= 2) a[2] else "."
go <- function(name) grepl(ONLY, name)

## ============================================================ lme4 data
if (go("sleepstudy")) { add_pkg("sleepstudy", "lme4")
  for (R in c(TRUE, FALSE)) { s <- if (R) "reml" else "ml"
    fit_lmer("sleepstudy", paste0("int_", s), "Reaction ~ Days + (1 | Subject)", R, tags = c("random intercept"))
    fit_lmer("sleepstudy", paste0("slope_", s), "Reaction ~ Days + (Days | Subject)", R, tags = c("random slope"))
    fit_lmer("sleepstudy", paste0("uncor_", s), "Reaction ~ Days + (Days || Subject)", R, tags = c("random slope", "uncorrelated")) }
  fit_lmer("sleepstudy", "slopeonly_reml", "Reaction ~ Days + (0 + Days | Subject)", TRUE, tags = c("random slope", "no random intercept")) }
if (go("Dyestuff")) { add_pkg("Dyestuff", "lme4"); add_pkg("Dyestuff2", "lme4")
  for (R in c(TRUE, FALSE)) { s <- if (R) "reml" else "ml"
    fit_lmer("Dyestuff", paste0("int_", s), "Yield ~ 1 + (1 | Batch)", R, tags = "random intercept")
    fit_lmer("Dyestuff2", paste0("int_", s), "Yield ~ 1 + (1 | Batch)", R, tags = c("random intercept", "singular"), notes = "variance of Batch is estimated at exactly 0") } }
if (go("Penicillin")) { add_pkg("Penicillin", "lme4")
  for (R in c(TRUE, FALSE)) fit_lmer("Penicillin", paste0("crossed_", if (R) "reml" else "ml"), "diameter ~ 1 + (1 | plate) + (1 | sample)", R, tags = "crossed") }
if (go("Pastes")) { add_pkg("Pastes", "lme4")
  for (R in c(TRUE, FALSE)) fit_lmer("Pastes", paste0("nested_", if (R) "reml" else "ml"), "strength ~ 1 + (1 | batch/cask)", R, tags = "nested")
  fit_lmer("Pastes", "sample_reml", "strength ~ 1 + (1 | batch) + (1 | sample)", TRUE, tags = "nested", notes = "same model as nested_reml: sample is the explicit batch:cask label") }
if (go("cake")) { add_pkg("cake", "lme4", ordered = "temperature")
  fit_lmer("cake", "temp_reml", "angle ~ recipe * temp + (1 | recipe:replicate)", TRUE, tags = c("interaction", "interaction group"))
  fit_lmer("cake", "temperature_poly_reml", "angle ~ recipe * temperature + (1 | recipe:replicate)", TRUE, tags = c("interaction", "ordered factor"), notes = "temperature is an ordered factor: R's contr.poly (orthonormal polynomial contrasts)")
  fit_lmer("cake", "temperature_treat_reml", "angle ~ recipe * temperature + (1 | recipe:replicate)", TRUE, contrasts = 'list(temperature = "contr.treatment")', tags = c("interaction"), notes = "same column space as temperature_poly_reml, treatment contrasts")
  fit_lmer("cake", "temperature_poly_ml", "angle ~ recipe * temperature + (1 | recipe:replicate)", FALSE, tags = c("interaction", "ordered factor"), notes = "the call of lme4's help page") }
if (go("InstEval")) { add_pkg("InstEval", "lme4", ordered = c("studage", "lectage"), note = "studage and lectage are ordered factors in R")
  fit_lmer("InstEval", "sd_reml", "y ~ 1 + (1 | s) + (1 | d)", TRUE, tags = c("crossed", "big"), profile = FALSE)
  fit_lmer("InstEval", "service_reml", "y ~ service + (1 | s) + (1 | d) + (1 | dept:service)", TRUE, tags = c("crossed", "big"), profile = FALSE)
  fit_lmer("InstEval", "sd_ml", "y ~ 1 + (1 | s) + (1 | d)", FALSE, tags = c("crossed", "big"), profile = FALSE) }

## ============================================================ nlme data, lmer fits
if (go("Orthodont")) { add_pkg("Orthodont", "nlme", note = "Subject is an ordered factor in nlme (ordered by max distance); stored as a plain factor, level order kept")
  for (R in c(TRUE, FALSE)) { s <- if (R) "reml" else "ml"
    fit_lmer("Orthodont", paste0("slope_", s), "distance ~ age * Sex + (age | Subject)", R, tags = c("random slope", "interaction", "negative correlation"))
    fit_lmer("Orthodont", paste0("int_", s), "distance ~ age * Sex + (1 | Subject)", R, tags = c("random intercept", "interaction")) }
  F <- "distance ~ age * Sex"; L1 <- "distance ~ age * Sex + (1 | Subject)"; L2 <- "distance ~ age * Sex + (age | Subject)"
  for (m in c("REML", "ML")) { s <- tolower(m)
    fit_nlme("Orthodont", paste0("lme_int_varident_", s), F, "~ 1 | Subject", "Subject", weights = "varIdent(form = ~ 1 | Sex)", method = m, formula = L1, tags = "varIdent")
    fit_nlme("Orthodont", paste0("lme_slope_varident_", s), F, "~ age | Subject", "Subject", weights = "varIdent(form = ~ 1 | Sex)", method = m, formula = L2, tags = "varIdent")
    fit_nlme("Orthodont", paste0("gls_compsymm_", s), F, NULL, "Subject", correlation = "corCompSymm(form = ~ 1 | Subject)", method = m, formula = F, tags = "corCompSymm", notes = "marginally the random-intercept model when Rho > 0")
    fit_nlme("Orthodont", paste0("gls_ar1_", s), F, NULL, "Subject", correlation = "corAR1(form = ~ 1 | Subject)", method = m, formula = F, tags = "corAR1") }
  fit_nlme("Orthodont", "gls_ar1_varident_reml", F, NULL, "Subject", correlation = "corAR1(form = ~ 1 | Subject)", weights = "varIdent(form = ~ 1 | Sex)", formula = F, tags = c("corAR1", "varIdent"))
  fit_nlme("Orthodont", "gls_compsymm_varident_reml", F, NULL, "Subject", correlation = "corCompSymm(form = ~ 1 | Subject)", weights = "varIdent(form = ~ 1 | Sex)", formula = F, tags = c("corCompSymm", "varIdent"))
  fit_nlme("Orthodont", "gls_unstructured_reml", F, NULL, "Subject", correlation = "corSymm(form = ~ 1 | Subject)", weights = "varIdent(form = ~ 1 | age)", formula = F, tags = c("corSymm", "varIdent", "unstructured"), notes = "fully unstructured 4 x 4 residual covariance (strata of varIdent are the ages)")
  fit_nlme("Orthodont", "lme_int_ar1_reml", F, "~ 1 | Subject", "Subject", correlation = "corAR1(form = ~ 1 | Subject)", formula = L1, tags = "corAR1", notes = "Phi is estimated slightly below 0")
  fit_nlme("Orthodont", "lme_slope_lme_reml", F, "~ age | Subject", "Subject", formula = L2, tags = "plain lme", notes = "no residual structure: nlme::lme version of Orthodont__slope_reml") }
if (go("Oats")) { add_pkg("Oats", "nlme")
  for (R in c(TRUE, FALSE)) fit_lmer("Oats", paste0("split_", if (R) "reml" else "ml"), "yield ~ nitro + (1 | Block/Variety)", R, tags = c("nested", "split-plot"))
  fit_lmer("Oats", "split_variety_reml", "yield ~ nitro * Variety + (1 | Block/Variety)", TRUE, tags = c("nested", "split-plot", "interaction")) }
if (go("Machines")) { add_pkg("Machines", "nlme")
  fit_lmer("Machines", "slopes_reml", "score ~ Machine + (Machine | Worker)", TRUE, tags = c("random slope", "factor slope"))
  fit_lmer("Machines", "slopes_ml", "score ~ Machine + (Machine | Worker)", FALSE, tags = c("random slope", "factor slope"))
  fit_lmer("Machines", "cells_reml", "score ~ Machine + (0 + Machine | Worker)", TRUE, tags = c("factor slope"), notes = "same model as slopes_reml, cell-means parametrisation")
  fit_lmer("Machines", "nested_reml", "score ~ Machine + (1 | Worker/Machine)", TRUE, tags = "nested")
  fit_lmer("Machines", "int_reml", "score ~ Machine + (1 | Worker)", TRUE, tags = "random intercept") }
if (go("Rail")) { add_pkg("Rail", "nlme"); for (R in c(TRUE, FALSE)) fit_lmer("Rail", paste0("int_", if (R) "reml" else "ml"), "travel ~ 1 + (1 | Rail)", R, tags = "random intercept") }
if (go("ergoStool")) { add_pkg("ergoStool", "nlme"); fit_lmer("ergoStool", "int_reml", "effort ~ Type + (1 | Subject)", TRUE, tags = "random intercept")
  fit_lmer("ergoStool", "int_sum_reml", "effort ~ Type + (1 | Subject)", TRUE, contrasts = 'list(Type = "contr.sum")', tags = c("random intercept", "sum contrasts")) }
if (go("Pixel")) { add_pkg("Pixel", "nlme"); fit_lmer("Pixel", "nested_slope_reml", "pixel ~ day + I(day^2) + (day | Dog) + (1 | Dog:Side)", TRUE, tags = c("nested", "random slope", "polynomial")) }
if (go("Ovary")) { add_pkg("Ovary", "nlme"); F <- "follicles ~ sin(2*pi*Time) + cos(2*pi*Time)"
  L <- "follicles ~ sin(2*pi*Time) + cos(2*pi*Time) + (sin(2*pi*Time) || Mare)"
  fit_lmer("Ovary", "diag_reml", L, TRUE, tags = c("random slope", "uncorrelated", "transformed covariates"))
  fit_nlme("Ovary", "lme_diag_reml", F, "list(Mare = pdDiag(~ sin(2*pi*Time)))", "Mare", formula = L, tags = "plain lme")
  for (m in c("REML", "ML")) fit_nlme("Ovary", paste0("lme_diag_ar1_", tolower(m)), F, "list(Mare = pdDiag(~ sin(2*pi*Time)))", "Mare", correlation = "corAR1()", method = m, formula = L, tags = "corAR1", notes = "corAR1() takes the order of the rows within Mare")
  fit_nlme("Ovary", "lme_int_ar1_reml", F, "~ 1 | Mare", "Mare", correlation = "corAR1()", formula = "follicles ~ sin(2*pi*Time) + cos(2*pi*Time) + (1 | Mare)", tags = "corAR1") }
if (go("BodyWeight")) { add_pkg("BodyWeight", "nlme"); F <- "weight ~ Time * Diet"; L <- "weight ~ Time * Diet + (Time | Rat)"
  for (R in c(TRUE, FALSE)) fit_lmer("BodyWeight", paste0("slope_", if (R) "reml" else "ml"), L, R, tags = c("random slope", "interaction", "negative correlation"))
  fit_nlme("BodyWeight", "lme_slope_car1_reml", F, "~ Time | Rat", "Rat", correlation = "corCAR1(form = ~ Time)", formula = L, tags = "corCAR1", notes = "times are unequally spaced; the same model as corExp(form = ~ Time)")
  fit_nlme("BodyWeight", "lme_slope_ar1_reml", F, "~ Time | Rat", "Rat", correlation = "corAR1()", formula = L, tags = "corAR1", notes = "AR(1) in the order of the rows, not in time")
  fit_nlme("BodyWeight", "lme_slope_varpower_time_reml", F, "~ Time | Rat", "Rat", weights = "varPower(form = ~ Time)", formula = L, tags = "varPower", notes = "the book's varPower() of the fitted values is left out: nlme iterates it, its optimum is of no fixed likelihood")
  fit_nlme("BodyWeight", "lme_slope_varident_diet_reml", F, "~ Time | Rat", "Rat", weights = "varIdent(form = ~ 1 | Diet)", formula = L, tags = "varIdent") }
## ============================================================ mlmRev data
if (go("Exam")) { add_pkg("Exam", "mlmRev", drop = "student")
  fit_lmer("Exam", "int_reml", "normexam ~ standLRT + (1 | school)", TRUE, tags = "random intercept")
  fit_lmer("Exam", "covars_reml", "normexam ~ standLRT + sex + schgend + (1 | school)", TRUE, tags = "random intercept")
  for (R in c(TRUE, FALSE)) fit_lmer("Exam", paste0("slope_", if (R) "reml" else "ml"), "normexam ~ standLRT + sex + schgend + (standLRT | school)", R, tags = "random slope") }
if (go("Chem97")) { add_pkg("Chem97", "mlmRev", drop = "student")
  fit_lmer("Chem97", "null_reml", "score ~ 1 + (1 | lea/school)", TRUE, tags = c("nested", "big"), profile = FALSE)
  fit_lmer("Chem97", "gcse_reml", "score ~ gcsecnt + gender + (1 | lea/school)", TRUE, tags = c("nested", "big"), profile = FALSE)
  fit_lmer("Chem97", "slope_ml", "score ~ gcsecnt + gender + age + (gcsecnt | school) + (1 | lea)", FALSE, tags = c("nested", "random slope", "big"), profile = FALSE) }

## ============================================================ the lecture's examples (simulated)
if (go("lecture")) {
  add_sim("lecture_plants", 20101, function() {
    pot <- rep(c("A", "B", "C", "D"), c(3, 2, 3, 2)); moisture <- ifelse(pot %in% c("A", "B"), "1", "2")
    mu <- 20; d <- 4; sd_pot <- 2; sd_e <- 1.2; b <- setNames(rnorm(4, 0, sd_pot), LETTERS[1:4])
    y <- round(mu + d * (moisture == "2") + b[pot] + rnorm(10, 0, sd_e), 2)
    list(data = data.frame(height = unname(y), moisture = factor(moisture), pot = factor(pot)),
         truth = list(true_values = list(fixed = list(`(Intercept)` = mu, moisture2 = d), sd = list(pot = sd_pot), sigma = sd_e), random_effects = list(pot = as.list(b)))) },
    note = "plants in pots: two soil moistures, two pots each, 3+2+3+2 seedlings")
  for (R in c(TRUE, FALSE)) fit_lmer("lecture_plants", paste0("pot_", if (R) "reml" else "ml"), "height ~ moisture + (1 | pot)", R, tags = c("simulated", "tiny"))
  add_sim("lecture_surgery", 20107, function() {
    cells <- expand.grid(procedure = c("P1", "P2"), team = paste0("T", 1:5), stringsAsFactors = FALSE)
    npat <- c(5, 4, 6, 5, 3, 6, 4, 4, 5, 7); d <- cells[rep(seq_len(10), npat), ]
    mu <- 60; del <- -6; sd_t <- 5; sd_tp <- 3; sd_e <- 6
    bt <- setNames(rnorm(5, 0, sd_t), paste0("T", 1:5)); bc <- rnorm(10, 0, sd_tp); bc <- setNames(bc, paste(cells$team, cells$procedure, sep = ":"))
    y <- round(mu + del * (d$procedure == "P2") + bt[d$team] + bc[paste(d$team, d$procedure, sep = ":")] + rnorm(nrow(d), 0, sd_e), 1)
    list(data = data.frame(y = unname(y), procedure = factor(d$procedure), team = factor(d$team)),
         truth = list(true_values = list(fixed = list(`(Intercept)` = mu, procedureP2 = del), sd = list(team = sd_t, `team:procedure` = sd_tp), sigma = sd_e), random_effects = list(team = as.list(bt), `team:procedure` = as.list(bc)))) },
    note = "two surgical procedures, each done by the same five teams, 3 to 7 patients per cell")
  for (R in c(TRUE, FALSE)) { s <- if (R) "reml" else "ml"
    fit_lmer("lecture_surgery", paste0("team_", s), "y ~ procedure + (1 | team)", R, tags = c("simulated", "crossed"))
    fit_lmer("lecture_surgery", paste0("teamproc_", s), "y ~ procedure + (1 | team) + (1 | team:procedure)", R, tags = c("simulated", "crossed", "interaction group")) } }

## ============================================================ simulated designs
if (go("sim_cross3")) { add_sim("sim_cross3", 30101, function() {     # (a)
    n <- 2000; nA <- 40; nB <- 25; nC <- 12
    pA <- rexp(nA) + 0.1; A <- sample(nA, n, TRUE, pA); B <- sample(nB, n, TRUE); C <- sample(nC, n, TRUE, (1:nC)^1.5)
    x1 <- r4(rnorm(n)); x2 <- r4(runif(n, -2, 2) + 0.3 * x1)
    S <- matrix(c(1.2^2, -0.4 * 1.2 * 0.6, -0.4 * 1.2 * 0.6, 0.6^2), 2); bA <- mvn(nA, S); bB <- rnorm(nB, 0, 0.8); bC <- rnorm(nC, 0, 0.5)
    y <- r6(3 + 1.5 * x1 - 0.7 * x2 + bA[A, 1] + bA[A, 2] * x1 + bB[B] + bC[C] + rnorm(n, 0, 1.1))
    list(data = data.frame(y, x1, x2, A = lab("a", A), B = lab("b", B), C = lab("c", C)),
         truth = list(true_values = list(fixed = list(`(Intercept)` = 3, x1 = 1.5, x2 = -0.7), sd = list(A = c(1.2, 0.6), B = 0.8, C = 0.5), corr = list(A = -0.4), sigma = 1.1))) },
    note = "(a) three crossed factors, unbalanced, random slope on A")
  for (R in c(TRUE, FALSE)) fit_lmer("sim_cross3", paste0("full_", if (R) "reml" else "ml"), "y ~ x1 + x2 + (x1 | A) + (1 | B) + (1 | C)", R, tags = c("simulated", "crossed", "random slope"))
  fit_lmer("sim_cross3", "abc_reml", "y ~ x1 + x2 + (1 | A) + (1 | B) + (1 | C) + (1 | A:B)", TRUE, tags = c("simulated", "crossed", "interaction group")) }
if (go("sim_many")) { add_sim("sim_many", 30102, function() {         # (b)
    G <- 10000; m <- 5; g <- rep(seq_len(G), each = m); x <- r4(rnorm(G * m))
    S <- matrix(c(1, 0.3 * 1 * 0.5, 0.3 * 0.5, 0.25), 2); b <- mvn(G, S)
    y <- r4(1 + 0.5 * x + b[g, 1] + b[g, 2] * x + rnorm(G * m, 0, 1))
    list(data = data.frame(y, x, g = lab("g", g, 5)), truth = list(true_values = list(fixed = list(`(Intercept)` = 1, x = 0.5), sd = list(g = c(1, 0.5)), corr = list(g = 0.3), sigma = 1))) },
    note = "(b) 10,000 groups of 5")
  fit_lmer("sim_many", "slope_reml", "y ~ x + (x | g)", TRUE, tags = c("simulated", "big", "random slope"), profile = FALSE)
  fit_lmer("sim_many", "int_ml", "y ~ x + (1 | g)", FALSE, tags = c("simulated", "big"), profile = FALSE) }
if (go("sim_imbalance")) { add_sim("sim_imbalance", 30103, function() {   # (c)
    size <- c(rep(1, 60), rep(2, 30), sample(3:10, 20, TRUE), sample(11:50, 9, TRUE), 400); G <- length(size); g <- sample(rep(sample(G), size))
    n <- length(g); x <- r4(rnorm(n)); b <- rnorm(G, 0, 0.9)
    y <- r6(-1 + 0.8 * x + b[g] + rnorm(n, 0, 1.3))
    list(data = data.frame(y, x, g = lab("g", g, 3)), truth = list(true_values = list(fixed = list(`(Intercept)` = -1, x = 0.8), sd = list(g = 0.9), sigma = 1.3))) },
    note = "(c) group sizes 1 (60 groups) to 400 (1 group), rows shuffled")
  for (R in c(TRUE, FALSE)) fit_lmer("sim_imbalance", paste0("int_", if (R) "reml" else "ml"), "y ~ x + (1 | g)", R, tags = c("simulated", "unbalanced"))
  fit_lmer("sim_imbalance", "slope_reml", "y ~ x + (x | g)", TRUE, tags = c("simulated", "unbalanced", "random slope"), notes = "the data have no slope variance") }
if (go("sim_missing")) { add_sim("sim_missing", 30104, function() {       # (d)
    n <- 400; G <- 40; g <- sample(G, n, TRUE); x1 <- r4(rnorm(n)); x2 <- r4(rnorm(n)); f <- sample(c("lo", "mid", "hi"), n, TRUE); b <- rnorm(G, 0, 1)
    y <- r6(2 + x1 - 0.5 * x2 + c(lo = 0, mid = 0.6, hi = 1.2)[f] + b[g] + rnorm(n)); z <- r4(rnorm(n))
    gf <- lab("g", g, 2); f <- factor(f, levels = c("lo", "mid", "hi"))
    y[sample(n, 32)] <- NA; x2[sample(n, 40)] <- NA; f[sample(n, 20)] <- NA; gf[sample(n, 5)] <- NA; z[sample(n, 100)] <- NA
    gf[gf %in% "g07"] -> tmp; y[which(gf == "g07")] <- NA              # one whole group has no response
    list(data = data.frame(y = unname(y), x1, x2, f, g = gf, z), truth = list(true_values = list(fixed = list(`(Intercept)` = 2, x1 = 1, x2 = -0.5, fmid = 0.6, fhi = 1.2), sd = list(g = 1), sigma = 1))) },
    note = "(d) missing values in y, x2, f, the grouping factor and in z (not used by any model); all y of group g07 are missing, so it is no level of the fits")
  fit_lmer("sim_missing", "all_reml", "y ~ x1 + x2 + f + (1 | g)", TRUE, tags = c("simulated", "missing"), notes = "rows with a missing value in any variable of the formula are dropped; n = rows used")
  fit_lmer("sim_missing", "x1_reml", "y ~ x1 + (1 | g)", TRUE, tags = c("simulated", "missing"), notes = "missing x2, f, z do not matter here") }
if (go("sim_rankdef")) { add_sim("sim_rankdef", 30105, function() {       # (e)
    n <- 300; G <- 30; g <- rep(seq_len(G), each = 10); x1 <- round(rnorm(n), 3); x2 <- round(rnorm(n), 3); x3 <- 2 * x1 - x2
    a <- sample(c("a1", "a2", "a3"), n, TRUE); b <- sample(c("b1", "b2"), n, TRUE); b[a == "a3"] <- "b1"        # cell a3:b2 is empty
    u <- rnorm(G, 0, 0.7); y <- r6(1 + x1 + 0.5 * x2 + c(a1 = 0, a2 = 0.5, a3 = 1)[a] + 0.4 * (b == "b2") + u[g] + rnorm(n, 0, 0.9))
    list(data = data.frame(y = unname(y), x1, x2, x3 = round(x3, 3), a = factor(a), b = factor(b), g = lab("g", g)), truth = list(true_values = list(fixed = list(`(Intercept)` = 1, x1 = 1, x2 = 0.5, aa2 = 0.5, aa3 = 1, bb2 = 0.4), sd = list(g = 0.7), sigma = 0.9))) },
    note = "(e) x3 = 2*x1 - x2; cell a3:b2 is empty")
  fit_lmer("sim_rankdef", "collinear_reml", "y ~ x1 + x2 + x3 + (1 | g)", TRUE, tags = c("simulated", "rank-deficient"))
  fit_lmer("sim_rankdef", "emptycell_reml", "y ~ a * b + (1 | g)", TRUE, tags = c("simulated", "rank-deficient"))
  fit_lmer("sim_rankdef", "both_ml", "y ~ x3 + x2 + x1 + a * b + (1 | g)", FALSE, tags = c("simulated", "rank-deficient"), notes = "the column dropped depends on the order of the terms: lme4 keeps the earlier ones") }
near <- function(rho, sd2) eval(bquote(function() {
    G <- 25; m <- 8; g <- rep(seq_len(G), each = m); x <- rep(seq(0, 1.4, by = 0.2), G); s1 <- 1; s2 <- .(sd2); rho <- .(rho)
    b <- mvn(G, matrix(c(s1^2, rho * s1 * s2, rho * s1 * s2, s2^2), 2)); y <- r6(2 + x + b[g, 1] + b[g, 2] * x + rnorm(G * m, 0, 0.7))
    list(data = data.frame(y, x, g = lab("g", g)), truth = list(true_values = list(fixed = list(`(Intercept)` = 2, x = 1), sd = list(g = c(s1, s2)), corr = list(g = rho), sigma = 0.7))) }))
if (go("sim_corr")) {                                                     # (f)
  add_sim("sim_corr_pos", 30116, near(0.98, 0.5), note = "(f) true correlation +0.98; estimated at +1 (seed chosen for that)")
  add_sim("sim_corr_pos_interior", 30114, near(0.98, 0.5), note = "(f) true correlation +0.98; estimated just inside (seed chosen for that)")
  add_sim("sim_corr_neg", 30107, near(-0.97, 0.5), note = "(f) true correlation -0.97; estimated at -1")
  add_sim("sim_corr_neg_interior", 30118, near(-0.9, 0.9), note = "(f) strong negative correlation, larger slopes")
  for (k in c("sim_corr_pos", "sim_corr_pos_interior", "sim_corr_neg", "sim_corr_neg_interior")) for (R in c(TRUE, FALSE)) fit_lmer(k, paste0("slope_", if (R) "reml" else "ml"), "y ~ x + (x | g)", R, tags = c("simulated", "random slope", "near-singular")) }
if (go("sim_scale")) { add_sim("sim_scale", 30108, function() {           # (g)
    G <- 40; m <- 10; n <- G * m; g <- rep(seq_len(G), each = m); z1 <- rnorm(n); z2 <- rnorm(n); b <- mvn(G, matrix(c(1, 0.2, 0.2, 0.36), 2))
    y <- r6(5 + 1.2 * z1 - 0.8 * z2 + b[g, 1] + b[g, 2] * z1 + rnorm(n))
    list(data = data.frame(y, big = round(3e6 + 1e6 * z1, 1), small = signif(1e-6 * z2, 10), g = lab("g", g)), truth = list(true_values = list(fixed = list(`(Intercept)` = 5 - 3 * 1.2, big = 1.2e-6, small = -0.8e6), sigma = 1, note = "slope on (big - 3e6)/1e6: sd 0.6, corr with the intercept at big = 3e6: 0.333"))) },
    note = "(g) big ~ 3e6 (sd 1e6), small ~ 1e-6")
  fit_lmer("sim_scale", "int_reml", "y ~ big + small + (1 | g)", TRUE, tags = c("simulated", "badly scaled"))
  d <- DS$sim_scale$data; d$big6 <- (d$big - 3e6) / 1e6; d$small6 <- d$small * 1e6; d$bigraw6 <- d$big / 1e6
  add_data("sim_scale_rescaled", d[c("y", "big6", "bigraw6", "small6", "g")], DS$sim_scale$source, note = "sim_scale with big6 = (big-3e6)/1e6, bigraw6 = big/1e6, small6 = small*1e6")
  fit_lmer("sim_scale_rescaled", "int_reml", "y ~ bigraw6 + small6 + (1 | g)", TRUE, tags = c("simulated"), notes = "sim_scale__int_reml in sane units: same fitted values. (A change of units of the fixed effects adds 2*log of the factor to the REML criterion; here 1e-6 and 1e6 cancel.)")
  fit_lmer("sim_scale_rescaled", "slope_reml", "y ~ big6 + small6 + (big6 | g)", TRUE, tags = c("simulated", "random slope"))
  fit_lmer("sim_scale_rescaled", "slope_uncentred_reml", "y ~ bigraw6 + small6 + (bigraw6 | g)", TRUE, tags = c("simulated", "random slope", "negative correlation"), notes = "the same model as slope_reml, origin of the slope covariate moved by 3 units") 
  m <- fit_lmer("sim_scale_rescaled", "slope_ml", "y ~ big6 + small6 + (big6 | g)", FALSE, tags = c("simulated", "random slope"))
  t0 <- getME(m, "theta"); L <- matrix(c(t0[1:2], 0, t0[3]), 2); L <- matrix(c(1, 0, -3, 1e-6), 2) %*% L; S <- tcrossprod(L); L <- t(chol(S))
  fit_lmer("sim_scale", "slope_ml", "y ~ big + small + (big | g)", FALSE, tags = c("simulated", "badly scaled", "random slope"), profile = FALSE, ddf = FALSE, glmm = FALSE, theta_fixed = L[lower.tri(L, TRUE)],
    notes = "raw units. lme4's default optimizer and bobyqa stop far from the optimum here (see verification.lme4_alone); the values are those of the optimum of sim_scale_rescaled__slope_ml transformed to raw units: same ML criterion. isSingular is a false alarm of the units (see singular_scale_free)") }
if (go("sim_weights")) { add_sim("sim_weights", 30109, function() {       # (h)
    G <- 30; n <- 360; g <- sample(G, n, TRUE); x <- r4(rnorm(n)); w <- round(rgamma(n, 2, 1) + 0.05, 3); b <- rnorm(G, 0, 1)
    y <- r6(1 + 2 * x + b[g] + rnorm(n, 0, 1.5 / sqrt(w)))
    list(data = data.frame(y, x, w, g = lab("g", g)), truth = list(true_values = list(fixed = list(`(Intercept)` = 1, x = 2), sd = list(g = 1), sigma = 1.5, note = "residual sd of row i = sigma / sqrt(w_i)"))) },
    note = "(h) known weights w: Var(e_i) = sigma^2 / w_i")
  for (R in c(TRUE, FALSE)) fit_lmer("sim_weights", paste0("w_", if (R) "reml" else "ml"), "y ~ x + (1 | g)", R, weights = "w", tags = c("simulated", "weights"))
  fit_lmer("sim_weights", "now_reml", "y ~ x + (1 | g)", TRUE, tags = c("simulated"), notes = "weights ignored, for contrast")
  fit_lmer("sim_weights", "slope_w_reml", "y ~ x + (x | g)", TRUE, weights = "w", tags = c("simulated", "weights", "random slope")) }
if (go("sim_offset")) { add_sim("sim_offset", 30110, function() {         # (i)
    G <- 20; n <- 240; g <- rep(seq_len(G), each = 12); x <- r4(rnorm(n)); o <- r4(rnorm(n, 10, 3)); b <- rnorm(G, 0, 0.6)
    y <- r6(o + 0.5 + 1.1 * x + b[g] + rnorm(n, 0, 0.8))
    list(data = data.frame(y, x, o, g = lab("g", g)), truth = list(true_values = list(fixed = list(`(Intercept)` = 0.5, x = 1.1), sd = list(g = 0.6), sigma = 0.8))) }, note = "(i) offset o enters with coefficient 1")
  fit_lmer("sim_offset", "offset_reml", "y ~ x + offset(o) + (1 | g)", TRUE, tags = c("simulated", "offset"), notes = "fitted values include the offset")
  fit_lmer("sim_offset", "free_reml", "y ~ x + o + (1 | g)", TRUE, tags = c("simulated"), notes = "o as an ordinary covariate, for contrast") }
if (go("sim_design")) { add_sim("sim_design", 30111, function() {         # (j)
    G <- 30; n <- 450; g <- sample(G, n, TRUE); x <- r4(runif(n, 0, 10)); f1 <- sample(c("low", "med", "high"), n, TRUE, c(.5, .3, .2)); f2 <- sample(c("no", "yes"), n, TRUE); b <- mvn(G, matrix(c(1, .3, .3, .49), 2)); bx <- rnorm(G, 0, 0.2)
    y <- r6(4 + bx[g] * (x - 5) + 0.8 * x - 0.06 * x^2 + c(low = 0, med = 1, high = 2)[f1] + 0.7 * (f2 == "yes") - 0.9 * (f1 == "high" & f2 == "yes") + b[g, 1] + b[g, 2] * (f2 == "yes") + rnorm(n))
    list(data = data.frame(y = unname(y), x, f1 = factor(f1, levels = c("low", "med", "high")), f2 = factor(f2), g = lab("g", g)),
         truth = list(true_values = list(fixed = list(`(Intercept)` = 4, x = 0.8, `I(x^2)` = -0.06, f1med = 1, f1high = 2, f2yes = 0.7, `f1high:f2yes` = -0.9), sd = list(g = c(1, 0.7)), corr = list(g = 0.3 / 0.7), sigma = 1, note = "sd of g: intercept and f2yes; besides an independent slope on x - 5 with sd 0.2"))) },
    note = "(j) many ways to write fixed effects; levels of f1 are low, med, high (not alphabetical)")
  k <- "sim_design"; tg <- c("simulated", "design matrix")
  fit_lmer(k, "inter_reml", "y ~ x + f1 * f2 + (1 | g)", TRUE, tags = c(tg, "interaction"))
  fit_lmer(k, "slopeint_reml", "y ~ x * f1 + f2 + (f2 | g)", TRUE, tags = c(tg, "interaction", "factor slope"))
  fit_lmer(k, "threeway_reml", "y ~ x * f1 * f2 + (1 | g)", TRUE, tags = c(tg, "interaction"))
  fit_lmer(k, "nested_fixed_reml", "y ~ f1 / x + (1 | g)", TRUE, tags = c(tg, "interaction"))
  fit_lmer(k, "minus_reml", "y ~ (x + f1 + f2)^2 - x:f2 + (1 | g)", TRUE, tags = c(tg, "interaction"))
  fit_lmer(k, "poly_reml", "y ~ poly(x, 2) + f1 + (1 | g)", TRUE, tags = c(tg, "polynomial"), notes = "poly(): orthonormal polynomials of the x of the rows used")
  fit_lmer(k, "rawpoly_reml", "y ~ x + I(x^2) + f1 + (1 | g)", TRUE, tags = c(tg, "polynomial"), notes = "same column space as poly_reml: same fitted values, REML criterion differs by the change of basis")
  fit_lmer(k, "poly_ml", "y ~ poly(x, 2) + f1 + (1 | g)", FALSE, tags = c(tg, "polynomial"))
  fit_lmer(k, "rawpoly_ml", "y ~ x + I(x^2) + f1 + (1 | g)", FALSE, tags = c(tg, "polynomial"), notes = "same ML criterion as poly_ml")
  fit_lmer(k, "sum_reml", "y ~ x + f1 * f2 + (1 | g)", TRUE, contrasts = 'list(f1 = "contr.sum", f2 = "contr.sum")', tags = c(tg, "sum contrasts"))
  fit_lmer(k, "helmert_reml", "y ~ x + f1 + (1 | g)", TRUE, contrasts = 'list(f1 = "contr.helmert")', tags = c(tg, "helmert contrasts"))
  x <- DS$sim_design$data$x; kn <- attr(ns(x, 3), "knots"); bk <- attr(ns(x, 3), "Boundary.knots")
  fit_lmer(k, "ns_reml", "y ~ ns(x, 3) + f1 + f2 + (1 | g)", TRUE, tags = c(tg, "spline"), notes = sprintf("ns(): natural cubic spline, interior knots %s, boundary knots %s", paste(fmtnum(kn), collapse = ", "), paste(fmtnum(bk), collapse = ", ")))
  fit_lmer(k, "ns_ml", "y ~ ns(x, 3) + f1 + f2 + (1 | g)", FALSE, tags = c(tg, "spline"), notes = "ML: the criterion does not depend on the spline basis, only on the knots")
  fit_lmer(k, "noint_reml", "y ~ 0 + f1 + x + (1 | g)", TRUE, tags = c(tg, "no intercept"))
  fit_lmer(k, "log_reml", "log(y + 10) ~ log(x + 1) + f1 + (1 | g)", TRUE, tags = c(tg, "transformed response"))
  fit_lmer(k, "scale_reml", "y ~ scale(x) + f1 + (scale(x) | g)", TRUE, tags = c(tg, "random slope"), notes = "scale(): centred and divided by the sd (n-1) of the rows used")
  fit_lmer(k, "dblbar_reml", "y ~ x + f2 + (x || g)", TRUE, tags = c(tg, "uncorrelated")) 
  fit_lmer(k, "twoterms_reml", "y ~ x + f2 + (1 | g) + (0 + x | g)", TRUE, tags = c(tg, "uncorrelated"), notes = "dblbar_reml written out")
  ## full model matrix of the two basis-dependent fits, for comparing bases
  d <- DS$sim_design$data; M <- cbind(poly(d$x, 2), ns(d$x, 3)); colnames(M) <- c("poly1", "poly2", "ns1", "ns2", "ns3")
  con <- gzfile(file.path(OUT, "data", "sim_design_basis.csv.gz"), "wb", compression = 9); writeLines(c(paste(colnames(M), collapse = ","), apply(M, 1, function(r) paste(fmtnum(r), collapse = ","))), con); close(con) }
if (go("sim_labels")) { add_sim("sim_labels", 30112, function() {         # (k)
    ids <- c(3, 10, 7, 100, 21, 2, 15, 999, 1, 40, 8, 60); sites <- c("North field", "Zürich Süd", "東京", "naïve café", "a|b", "x:y", "50%", "it's", "say \"hi\"", "comma, here", " lead", "tab\there", "Ελλάδα", "emoji 🌱", "+plus", "~tilde", "(paren)", "NaN-like", "None ", "True")
    plots <- c("p:1", "p|2", "p 3", "p4"); pads <- c("7", "07", "007", "1e3", "1000", "0x10", "-0", "0")
    n <- 480; s <- rep(seq_along(sites), each = 24); i <- sample(length(ids), n, TRUE); p <- rep(rep(1:4, each = 6), 20); q <- sample(8, n, TRUE); x <- r4(rnorm(n))
    bs <- rnorm(20); bi <- rnorm(12, 0, .7); bp <- rnorm(80, 0, .8); bq <- rnorm(8, 0, .6)
    y <- r6(1 + .5 * x + bs[s] + bi[i] + bp[(s - 1) * 4 + p] + bq[q] + rnorm(n, 0, .9)); k <- sample(n)
    d <- data.frame(y, x, id = as.integer(ids[i]), id_str = factor(as.character(ids[i]), levels = as.character(ids)), site = factor(sites[s], levels = sites), plot = factor(plots[p], levels = plots), pad = factor(pads[q], levels = pads))[k, ]; rownames(d) <- NULL
    list(data = d, truth = list(true_values = list(fixed = list(`(Intercept)` = 1, x = .5), sd = list(site = 1, id = .7, `site:plot` = .8, pad = .6), sigma = .9))) },
    note = "(k) labels: id is integer in the file, id_str the same as a factor; pad has labels that collapse when read as numbers (7, 07, 007; 1e3, 1000; -0, 0); site has spaces, unicode, quotes, commas, a tab, ':' and '|'. Read factors as strings.")
  fit_lmer("sim_labels", "id_reml", "y ~ x + (1 | id) + (1 | site)", TRUE, tags = c("simulated", "labels"), notes = "id is numeric in the data: a numeric column after the bar is a grouping factor", glmm = FALSE)
  fit_lmer("sim_labels", "idstr_reml", "y ~ x + (1 | id_str) + (1 | site)", TRUE, tags = c("simulated", "labels"), notes = "same numbers as id_reml")
  fit_lmer("sim_labels", "nested_reml", "y ~ x + (1 | site/plot) + (1 | pad)", TRUE, tags = c("simulated", "labels", "nested"))
  add_sim("sim_labels_collide", 30113, function() {
    f1 <- c("a:b", "a", "a:b:c", "b"); f2 <- c("c", "b:c", "x", "c"); G <- expand.grid(f1 = f1, f2 = unique(f2), stringsAsFactors = FALSE); K <- nrow(G); k <- rep(seq_len(K), each = 8)
    b <- rnorm(K, 0, 1.5); x <- r4(rnorm(length(k))); y <- r6(1 + x + b[k] + rnorm(length(k), 0, .8))
    list(data = data.frame(y, x, f1 = factor(G$f1[k], levels = f1), f2 = factor(G$f2[k], levels = unique(f2)), cell = lab("cell", k)), truth = list(true_values = list(fixed = list(`(Intercept)` = 1, x = 1), sd = list(`f1:f2` = 1.5), sigma = .8))) },
    note = "(k) f1 = 'a:b', f2 = 'c' and f1 = 'a', f2 = 'b:c' are different cells whose pasted labels are the same; cell is the true cell")
  fit_lmer("sim_labels_collide", "cell_reml", "y ~ x + (1 | cell)", TRUE, tags = c("simulated", "labels"), notes = "the RIGHT answer for (1 | f1:f2): 12 distinct cells")
  fit_lmer("sim_labels_collide", "f1f2_lme4_reml", "y ~ x + (1 | f1:f2)", TRUE, tags = c("simulated", "labels", "lme4 bug"), glmm = FALSE, notes = "what lme4 1.1-31 gives: it pastes labels, so colliding cells are merged (see groups). NOT a value to reproduce; the right one is cell_reml") }

## ============================================================ pedigree (simulated)
if (go("sim_pedigree")) {
  r <- add_sim("sim_pedigree", 30114, function() {
    nf <- 40; per <- 60; gens <- 4; N <- nf + per * gens; sire <- dam <- integer(N); sex <- sample(c("M", "F"), N, TRUE); gen <- integer(N)
    prev <- seq_len(nf); k <- nf
    for (t in seq_len(gens)) { m <- prev[sex[prev] == "M"]; f <- prev[sex[prev] == "F"]; sires <- sample(m, min(6, length(m))); dams <- sample(f, min(15, length(f))); id <- k + seq_len(per)
      sire[id] <- sample(sires, per, TRUE); dam[id] <- sample(dams, per, TRUE); gen[id] <- t; if (t == 2) { z <- sample(id, 6); sire[z[1:3]] <- 0L; dam[z[4:6]] <- 0L }; prev <- id; k <- k + per }
    ped <- data.frame(sire, dam); A <- make_A(ped); rownames(A) <- colnames(A) <- sprintf("an%03d", seq_len(N))
    va <- 1.6; ve <- 2.0; vp <- 0.5; a <- drop(t(chol(A)) %*% rnorm(N)) * sqrt(va); rec <- which(gen > 0 & runif(N) < 0.85); pe <- rnorm(N, 0, sqrt(vp))
    y <- r6(10 + 1.5 * (sex[rec] == "M") + 0.3 * gen[rec] + a[rec] + pe[rec] + rnorm(length(rec), 0, sqrt(ve)))
    nrep <- sample(1:3, length(rec), TRUE); rr <- rep(rec, nrep); y2 <- r6(10 + 1.5 * (sex[rr] == "M") + 0.3 * gen[rr] + a[rr] + pe[rr] + rnorm(length(rr), 0, sqrt(ve)))
    nmz <- function(i) factor(rownames(A)[i], levels = rownames(A)[sort(unique(i))])
    list(data = data.frame(y, animal = nmz(rec), sex = factor(sex[rec]), gen = gen[rec]), rep = data.frame(y = y2, animal = nmz(rr), pe = nmz(rr), sex = factor(sex[rr]), gen = gen[rr]), A = A,
         ped = data.frame(animal = rownames(A), sire = ifelse(sire > 0, rownames(A)[pmax(sire, 1)], NA), dam = ifelse(dam > 0, rownames(A)[pmax(dam, 1)], NA), sex = sex, gen = gen),
         truth = list(true_values = list(fixed = list(`(Intercept)` = 10, sexM = 1.5, gen = 0.3), variance = list(animal = va, pe = vp, residual = ve, note = "single-record data: residual variance = pe + residual = 2.5")), breeding_values = as.list(setNames(a, rownames(A))))) },
    note = "animal model: 40 founders, 4 generations of 60, inbreeding, some half-known parents, founders and 15 % of the rest without a record; one record per animal. Pedigree: sim_pedigree_ped.csv (parents before offspring, empty = unknown); A: sim_pedigree_A.csv.gz",
    extra = I(c("data/sim_pedigree_ped.csv", "data/sim_pedigree_A.csv.gz")))
  A <- r$A; af <- write_A("sim_pedigree_A", A, rownames(A)); pd <- r$ped
  writeLines(c("\"animal\",\"sire\",\"dam\",\"sex\",\"gen\"", paste(csvq(pd$animal), csvq(pd$sire), csvq(pd$dam), csvq(pd$sex), pd$gen, sep = ",")), file.path(OUT, "data", "sim_pedigree_ped.csv"))
  add_data("sim_pedigree_rep", r$rep, DS$sim_pedigree$source, truth = list(dataset = "sim_pedigree_rep", simulated = TRUE, seed = 30114, see = "sim_pedigree.truth.json", true_values = r$truth$true_values), note = "the same animals with 1 to 3 records each; pe = animal again, for the permanent-environment term", extra = I(c("data/sim_pedigree_ped.csv", "data/sim_pedigree_A.csv.gz")))
  DS[["sim_pedigree_rep"]]$true_values <- r$truth$true_values
  for (R in c(TRUE, FALSE)) fit_ped("sim_pedigree", paste0("animal_", if (R) "reml" else "ml"), "y ~ sex + gen + (1 | animal)", "animal", A, R, af, tags = "simulated")
  for (R in c(TRUE, FALSE)) fit_ped("sim_pedigree_rep", paste0("repeat_", if (R) "reml" else "ml"), "y ~ sex + gen + (1 | animal) + (1 | pe)", "animal", A, R, af, tags = "simulated", notes = "animal ~ N(0, sd^2 A), pe ~ N(0, sd^2 I)")
  fit_lmer("sim_pedigree_rep", "iid_reml", "y ~ sex + gen + (1 | animal)", TRUE, tags = "simulated", notes = "ordinary independent animals, for contrast with repeat_reml") }
write_index()
write_readme("The OPEN reference set: for the developers of the package.")
logmsg("done", length(ls(INDEX)), "fits", length(ls(DS)), "data sets")
