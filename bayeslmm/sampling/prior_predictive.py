"""Draws of the parameters and of responses from the prior, without PyMC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.priors.record import PriorDraws, Priors
from bayeslmm.sampling.tree import prior_tree
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name, u_name

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


def prior_predictive(
    design: Design, priors: Priors, draws: int = 500, random_seed: Any = None
) -> xr.DataTree:
    """Draw parameters and responses from the prior.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors, all proper.
    draws : int
        Number of draws.
    random_seed : int, sequence of int or numpy.random.Generator, optional
        Seed of the draws.

    Returns
    -------
    xarray.DataTree
        Groups prior, prior_predictive, observed_data and constant_data; one chain.

    Raises
    ------
    PriorError
        If a prior is flat.
    """
    rng = np.random.default_rng(random_seed)
    prior = priors.sample(rng, draws)
    random = []
    for factor, sd, chol in zip(design.random, prior.sds, prior.chols, strict=True):
        z = rng.standard_normal((draws, factor.n_levels, factor.n_coefs))
        random.append(np.einsum("sjl,skl,sk->sjk", z, chol, sd))
    mean = linear_predictor(design, prior.beta, random)
    scale = np.ones(design.n) if design.weights is None else 1.0 / np.sqrt(design.weights)
    response = mean + prior.sigma[:, None] * scale * rng.standard_normal(mean.shape)
    values = _prior_values(design, prior, random)
    chain = {name: array[None] for name, array in values.items()}
    return prior_tree(design, priors, chain, response[None])


def _prior_values(design: Design, prior: PriorDraws, random: list[Array]) -> dict[str, Array]:
    values = {BETA: prior.beta, SIGMA: prior.sigma}
    for factor, sd, chol, u in zip(design.random, prior.sds, prior.chols, random, strict=True):
        values[sd_name(factor.key)] = sd
        values[u_name(factor.key)] = u
        if factor.n_coefs > 1:
            values[cor_name(factor.key)] = chol @ chol.transpose(0, 2, 1)
    return values
