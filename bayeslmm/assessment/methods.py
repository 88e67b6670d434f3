"""Predictive scores, variance explained and diagnostics: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.results.estimate_base import EstimateBase
from bayeslmm.results.posterior_base import PosteriorBase


class EstimateAssessment(EstimateBase):
    """Predictive scores, variance explained and diagnostics of an estimate."""


class PosteriorAssessment(PosteriorBase):
    """Predictive scores, variance explained and diagnostics of a posterior."""
