"""Pictures: methods of posteriors and estimates."""

from __future__ import annotations

from bayeslmm.fits.plots_effect import PosteriorEffectPlots
from bayeslmm.fits.plots_estimate import EstimatePlots
from bayeslmm.fits.plots_model import PosteriorModelPlots

__all__ = ["EstimatePlots", "PosteriorPlots"]


class PosteriorPlots(PosteriorEffectPlots, PosteriorModelPlots):
    """Pictures of a posterior."""
