"""Marginal means, contrasts, slopes and hypotheses: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.results.estimate_base import EstimateBase
from bayeslmm.results.posterior_base import PosteriorBase


class EstimateMeans(EstimateBase):
    """Marginal means, contrasts, slopes and hypotheses of an estimate."""


class PosteriorMeans(PosteriorBase):
    """Marginal means, contrasts, slopes and hypotheses of a posterior."""
