"""Predictive scores, variance explained and diagnostics: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.assessment.variance_methods import (
    EstimateVarianceExplained,
    PosteriorVarianceExplained,
)


class EstimateAssessment(EstimateVarianceExplained):
    """Predictive scores, variance explained and diagnostics of an estimate."""


class PosteriorAssessment(PosteriorVarianceExplained):
    """Predictive scores, variance explained and diagnostics of a posterior."""
