# Figures of the R package rbmi 1.5.2 (Apache License >= 2), which is not needed to run this.
#
# Usage: Rscript rbmi.R antidepressant_data.rda OUT, with the data from data/ of its repository
# (github.com/insightsengineering/rbmi). Writes antidepressant.csv and rbmi.json into OUT.

arguments <- commandArgs(trailingOnly = TRUE)
load(arguments[1])
columns <- c("PATIENT", "VISIT", "THERAPY", "BASVAL", "CHANGE")
write.csv(antidepressant_data[columns], file.path(arguments[2], "antidepressant.csv"),
          row.names = FALSE, quote = FALSE)

# tests/testthat/test-pool.R: analyses whose combination by mice is in helper-mice.R
set.seed(101)
ests <- rnorm(100)
ses <- rnorm(100, mean = 10, sd = 1)
rows <- function(x) paste(format(x, digits = 17, trim = TRUE), collapse = ", ")

# printed in the vignettes: conditional mean imputation with the jackknife (CondMean_Inference)
# and Bayesian imputation with 150 data sets (quickstart), both under jump to reference
json <- sprintf('{
 "condmean": {
  "estimates": {"4": [-1.708, -1.616, -0.092], "5": [-2.828, -4.133, 1.305],
   "6": [-4.159, -6.088, 1.929], "7": [-4.839, -6.965, 2.126]},
  "jackknife_se": {"4": 0.695, "5": 0.878, "6": 0.862, "7": 0.858}
 },
 "bayes": {
  "4": {"PLACEBO": [-1.70762640, 0.4749573, -2.64531931, -0.7699335, 4.262148e-04],
   "DRUG": [-1.61581996, 0.4862316, -2.57577141, -0.6558685, 1.093708e-03],
   "difference": [-0.09180645, 0.6826279, -1.43949684, 1.2558839, 8.931772e-01]},
  "7": {"PLACEBO": [-4.79721722, 0.7890249, -6.35705568, -3.2373788, 1.065619e-08],
   "DRUG": [-6.96632675, 0.8315362, -8.61125519, -5.3213983, 7.137070e-14],
   "difference": [2.16910952, 1.1200045, -0.04448631, 4.3827054, 5.472200e-02]}
 },
 "rubin": {
  "estimates": [%s],
  "std_errors": [%s],
  "complete_df": [1, 101, 201, 901],
  "estimate": -0.0371910999889995,
  "variance": 101.041208835068,
  "df": [0.495639147566121, 98.1863703534555, 197.263709795315, 890.556358423296]
 }
}', rows(ests), rows(ses))
writeLines(json, file.path(arguments[2], "rbmi.json"))
