"""Marginal means, contrasts, slopes and hypotheses: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.fits.effects_estimate import EstimateMeans
from bayeslmm.fits.effects_posterior import PosteriorMeans

__all__ = ["EstimateMeans", "PosteriorMeans"]
