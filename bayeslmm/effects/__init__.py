"""Marginal means, contrasts, slopes and hypotheses of a fit."""
