# RatPupWeight with its outlying pup, and the t test of a mean of its own for the pup by nlme.
# Run in this folder: Rscript make_outlier.R
# R 4.2.2, nlme 3.1-162.
library(nlme)
data <- as.data.frame(RatPupWeight)
write.csv(data, "RatPupWeight.csv", row.names = FALSE, quote = FALSE)
fit <- function(fixed) {
  lme(fixed, random = ~ 1 | Litter, data = data,
      control = lmeControl(tolerance = 1e-12, msTol = 1e-12))
}
scaled <- resid(fit(weight ~ Treatment * sex + Lsize), type = "pearson")
row <- which.max(abs(scaled))
data$shift <- as.numeric(seq_len(nrow(data)) == row)
shifted <- summary(fit(weight ~ Treatment * sex + Lsize + shift))$tTable["shift", ]
write.csv(data.frame(row = row, litter = data$Litter[row], scaled = signif(scaled[row], 8),
                     t = signif(shifted["t-value"], 8)),
          "outlier.csv", row.names = FALSE, quote = FALSE)
