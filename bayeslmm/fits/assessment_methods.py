"""Predictive scores and variance explained: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.fits.loo_methods import PosteriorCrossValidation
from bayeslmm.fits.variance_methods import (
    EstimateVarianceExplained,
    PosteriorVarianceExplained,
)


class EstimateAssessment(EstimateVarianceExplained):
    """Variance explained by an estimate."""


class PosteriorAssessment(PosteriorCrossValidation, PosteriorVarianceExplained):
    """Predictive scores of a posterior, and variance explained by it."""
