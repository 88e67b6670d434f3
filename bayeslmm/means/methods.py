"""Marginal means, contrasts, slopes and hypotheses: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.means.estimate_methods import EstimateMeans
from bayeslmm.means.posterior_methods import PosteriorMeans

__all__ = ["EstimateMeans", "PosteriorMeans"]
