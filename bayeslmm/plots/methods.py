"""Pictures: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.plots.effect_methods import PosteriorEffectPlots
from bayeslmm.plots.estimate_methods import EstimatePlots
from bayeslmm.plots.model_methods import PosteriorModelPlots

__all__ = ["EstimatePlots", "PosteriorPlots"]


class PosteriorPlots(PosteriorEffectPlots, PosteriorModelPlots):
    """Pictures of a posterior."""
