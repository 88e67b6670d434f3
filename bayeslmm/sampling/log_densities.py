"""Log likelihood of each observation and log prior of each draw, exact and without PyMC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import points_of_variables
from bayeslmm.sampling.tree import RESPONSE, SAMPLE_DIMS, creation_attrs, obs_coord
from bayeslmm.sampling.variables import effect_arrays
from bayeslmm.schema import (
    BETA,
    COEF_DIM,
    OBS_DIM,
    SIGMA,
    coef_dim,
    cor_name,
    group_keys,
    sd_name,
)

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]


def log_likelihood(dt: xr.DataTree, design: Design) -> xr.Dataset:
    """Log density of each observation given beta, u and sigma.

    Parameters
    ----------
    dt : xarray.DataTree
        Posterior draws of the model.
    design : Design
        Its design.

    Returns
    -------
    xarray.Dataset
        ``y`` with dims chain, draw, obs_id, fit to be the group log_likelihood. It takes 8 bytes
        per draw and observation.
    """
    import xarray as xr

    posterior = dt["posterior"].dataset
    random = effect_arrays(design, posterior)
    mean = linear_predictor(design, posterior[BETA].to_numpy(), random)
    log_scale = np.log(posterior[SIGMA].to_numpy())[..., None]
    if design.weights is not None:
        log_scale = log_scale - 0.5 * np.log(design.weights)
    values = -0.5 * (np.log(2 * np.pi) + ((design.y - mean) * np.exp(-log_scale)) ** 2) - log_scale
    coords = _draw_coords(posterior) | {OBS_DIM: obs_coord(design)}
    attrs = creation_attrs() | {"sample_dims": list(SAMPLE_DIMS)}
    return xr.Dataset({RESPONSE: ((*SAMPLE_DIMS, OBS_DIM), values)}, coords, attrs)


def log_prior(dt: xr.DataTree, priors: Priors) -> xr.Dataset:
    """Log prior density of beta, the standard deviations, the correlations and sigma.

    Parameters
    ----------
    dt : xarray.DataTree
        Posterior draws of the model.
    priors : Priors
        Its priors.

    Returns
    -------
    xarray.Dataset
        A variable per parameter, fit to be the group log_prior, in the coordinates in which the
        priors are given: ``beta`` (coef); ``sd_g`` (g_coef), ``cor_g`` per grouping factor with
        key g; ``sigma``. Flat priors count zero.
    """
    import xarray as xr

    posterior = dt["posterior"].dataset
    shape = (posterior.sizes["chain"], posterior.sizes["draw"])
    gamma = posterior[BETA].to_numpy() @ priors.fixed_map.T
    variables: dict[str, Any] = {
        BETA: ((*SAMPLE_DIMS, COEF_DIM), _stacked(priors.beta, gamma)),
    }
    coords = _draw_coords(posterior) | {COEF_DIM: posterior[COEF_DIM]}
    keys = group_keys(priors.factors)
    sizes = {k: len(coefs) for k, coefs in zip(keys, priors.factor_coefs, strict=True)}
    points = priors.coordinates.to_working(points_of_variables(sizes, posterior))
    for f, key in enumerate(keys):
        dim = coef_dim(key)
        sds = points.sds[f].reshape(*shape, -1)
        variables[sd_name(key)] = ((*SAMPLE_DIMS, dim), _stacked(priors.sd[f], sds))
        coords[dim] = posterior[dim]
        if any(lkj is not None for lkj in priors.cor[f]):
            values = _correlation_density(priors, f, points.chols[f])
            variables[cor_name(key)] = (SAMPLE_DIMS, values.reshape(shape))
    sigma = priors.sigma.logpdf(posterior[SIGMA].to_numpy())
    variables[SIGMA] = (SAMPLE_DIMS, sigma)
    attrs = creation_attrs() | {"sample_dims": list(SAMPLE_DIMS)}
    return xr.Dataset(variables, coords, attrs)


def _stacked(records: Sequence[Any], values: Array) -> Array:
    """Log density of each entry of the last axis under its own record."""
    result = np.empty_like(values)
    for j, record in enumerate(records):
        result[..., j] = record.logpdf(values[..., j])
    return result


def _correlation_density(priors: Priors, factor: int, chols: Array) -> Array:
    """Log density (S,) of the correlations of working columns, from their roots (S, k, k)."""
    total = np.zeros(len(chols))
    for block, lkj in zip(priors.blocks[factor], priors.cor[factor], strict=True):
        if lkj is not None:
            rows = chols[:, list(block)]
            total += lkj.logpdf_correlation(rows @ rows.swapaxes(1, 2))
    return total


def _draw_coords(posterior: xr.Dataset) -> dict[str, Any]:
    return {dim: posterior[dim] for dim in SAMPLE_DIMS}
