"""Predictions and simulations: methods of posteriors and estimates."""

from bayeslmm.fits.arviz_methods import PosteriorArviz
from bayeslmm.fits.prediction_estimate import EstimatePrediction
from bayeslmm.fits.prediction_posterior import PosteriorPrediction

__all__ = ["EstimatePrediction", "PosteriorArviz", "PosteriorPrediction"]
