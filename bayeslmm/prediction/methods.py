"""Predictions and simulations: methods of posteriors and estimates."""

from bayeslmm.prediction.arviz_methods import PosteriorArviz
from bayeslmm.prediction.estimate_methods import EstimatePrediction
from bayeslmm.prediction.posterior_methods import PosteriorPrediction

__all__ = ["EstimatePrediction", "PosteriorArviz", "PosteriorPrediction"]
