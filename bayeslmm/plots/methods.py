"""Pictures: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.results.estimate_base import EstimateBase
from bayeslmm.results.posterior_base import PosteriorBase


class EstimatePlots(EstimateBase):
    """Pictures of an estimate."""


class PosteriorPlots(PosteriorBase):
    """Pictures of a posterior."""
