"""Predictions and simulations: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.results.estimate_base import EstimateBase
from bayeslmm.results.posterior_base import PosteriorBase


class EstimatePrediction(EstimateBase):
    """Predictions and simulations of an estimate."""


class PosteriorPrediction(PosteriorBase):
    """Predictions and simulations of a posterior."""
