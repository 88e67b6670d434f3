"""What can be wrong with a fit: scores, residuals, influence, singularity, calibration."""
