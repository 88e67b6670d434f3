"""What a calibration check ranks of every simulation."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.sampling.tree import effect_arrays
from bayeslmm.schema import BETA, SIGMA
from bayeslmm.summaries.parameters import parameter_draws, parameters

Array = NDArray[np.float64]

LEVELS_RANKED = 3
"""Levels of each grouping factor whose random effects are ranked."""

LOG_LIKELIHOOD = "log_likelihood"


def ranked(dataset: xr.Dataset, design: Design) -> dict[str, Array]:
    """What is ranked: every parameter, random effects of a few levels and the log likelihood.

    Parameters
    ----------
    dataset : Dataset
        Draws of the public variables.
    design : Design
        The design, its response being that of the simulation.

    Returns
    -------
    dict of str to ndarray (chain, draw)
    """
    values = {row.label: parameter_draws(dataset, design, row) for row in parameters(design)}
    for factor, u in zip(design.random, effect_arrays(design, dataset), strict=True):
        count = min(LEVELS_RANKED, factor.n_levels)
        for level in np.linspace(0, factor.n_levels - 1, count).round().astype(int):
            for i, coef in enumerate(factor.coefs):
                label = f"u[{factor.name}, {factor.levels[level]}, {coef}]"
                values[label] = u[..., level, i]
    return values | {LOG_LIKELIHOOD: log_likelihood(dataset, design)}


def log_likelihood(dataset: xr.Dataset, design: Design) -> Array:
    """Log density (chain, draw) of the response given all parameters, up to a constant."""
    beta, sigma = dataset[BETA].to_numpy(), dataset[SIGMA].to_numpy()
    random = effect_arrays(design, dataset)
    weights = 1.0 if design.weights is None else design.weights
    rss = np.empty(sigma.shape)
    for chain in range(len(sigma)):  # one at a time for the memory of (draw, n) arrays
        mean = linear_predictor(design, beta[chain], [u[chain] for u in random])
        rss[chain] = np.sum(weights * (design.y - mean) ** 2, axis=-1)
    return np.asarray(-0.5 * rss / sigma**2 - design.n * np.log(sigma))
