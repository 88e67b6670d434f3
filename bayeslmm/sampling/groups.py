"""Groups of ArviZ's schema that go with draws: prior, log densities, summaries of random effects.

All are exact and need no PyMC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from bayeslmm.covariance.coordinates import AnyPoints, Points
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.residuals import draw_residuals, row_log_density, with_scale_effects
from bayeslmm.likelihood.batch import run_parallel
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise, to_working_beta
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.moments import conditional_covariances, conditional_modes
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import points_of, points_of_variables
from bayeslmm.sampling.tree import (
    RESPONSE,
    SAMPLE_DIMS,
    covariance_variables,
    creation_attrs,
    draw_attrs,
    effect_arrays,
    effect_variables,
    obs_coord,
    own_dim,
    parameter_dataset,
    prior_of_sums,
    prior_tree,
    text_labels,
)
from bayeslmm.schema import (
    BETA,
    COEF_DIM,
    OBS_DIM,
    SIGMA,
    coef_dim,
    cor_name,
    group_keys,
    level_dim,
    sd_name,
    u_name,
)

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
        Groups prior, prior_predictive, observed_data and constant_data; one chain. Of data beyond
        memory there is the group prior alone: responses take rows.

    Raises
    ------
    PriorError
        If a prior is flat.
    """
    rng = seeded(random_seed)
    prior, random = draw_prior(design, priors, draws, rng)
    if isinstance(design, SummarisedDesign):
        return prior_of_sums(design, priors, _prior_values(design, prior, random))
    mean = linear_predictor(design, prior.beta, random)
    prior = with_scale_effects(design, prior, rng)
    response = mean + draw_residuals(design, prior, rng)
    return prior_tree(design, priors, _prior_values(design, prior, random), response[None])


def draw_prior(
    design: Design, priors: Priors, draws: int, rng: np.random.Generator
) -> tuple[Points, list[Array]]:
    """Parameters from the prior, and random effects (S, J, k) of each grouping factor."""
    prior = priors.sample(rng, draws)
    random = []
    for factor, sd, chol in zip(design.random, prior.sds, prior.chols, strict=True):
        z = rng.standard_normal((draws, factor.n_levels, factor.n_coefs))
        random.append(factor.effects(np.einsum("sjl,skl,sk->sjk", z, chol, sd)))
    return prior, random


def _prior_values(design: Design, prior: Points, random: list[Array]) -> dict[str, Array]:
    """The public variables of prior draws in one chain."""
    values = covariance_variables(design, prior) | {BETA: prior.beta}
    values |= effect_variables(design, random)
    return {name: array[None] for name, array in values.items()}


def prior_dataset(design: Design, prior: Points, random: list[Array]) -> xr.Dataset:
    """Group prior."""
    return parameter_dataset(design, _prior_values(design, prior, random))


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
    residuals = (design.y - mean).reshape(-1, design.n)
    values = row_log_density(design, points_of(design, posterior), residuals).reshape(mean.shape)
    coords = _draw_coords(posterior) | {OBS_DIM: obs_coord(design)}
    return xr.Dataset({RESPONSE: ((*SAMPLE_DIMS, OBS_DIM), values)}, coords, draw_attrs())


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
    scale_sizes = _scale_sizes(priors)
    scale = priors.scale
    means = scale.fixed_map[0] if scale is not None and len(scale.fixed_map) else None
    user = points_of_variables(sizes, priors.residual, posterior, scale_sizes, means)
    points = priors.coordinates.to_working(user)
    for f, key in enumerate(keys):
        dim = coef_dim(key)
        sds = points.sds[f].reshape(*shape, -1)
        places = priors.coordinates.structures[f].sd_places
        records = [priors.sd[f][place] for place in places]
        shares = np.bincount(places)[places]  # of coefficients that share one density
        variables[sd_name(key)] = ((*SAMPLE_DIMS, dim), _stacked(records, sds) / shares)
        coords[dim] = posterior[dim]
        if any(prior is not None for prior in priors.cor[f]):
            values = priors.log_cor(f, points.chols[f])
            variables[cor_name(key)] = (SAMPLE_DIMS, values.reshape(shape))
    variables[SIGMA] = (SAMPLE_DIMS, priors.sigma.logpdf(user.sigma).reshape(shape))
    variables |= _scale_log_prior(priors, user, list(scale_sizes), shape)
    return xr.Dataset(variables, coords, draw_attrs())


def _scale_sizes(priors: Priors) -> dict[str, int]:
    """Number of coefficients of each grouping factor of the log scale, by its key."""
    labels = priors.scale_labels
    if labels is None:
        return {}
    names = [*priors.factors, *(f"sigma_{name}" for name in labels.factors)]
    keys = group_keys(names)[len(priors.factors) :]
    return {key: len(coefs) for key, coefs in zip(keys, labels.factor_coefs, strict=True)}


def _scale_log_prior(
    priors: Priors, points: Points, keys: Sequence[str], shape: tuple[int, int]
) -> dict[str, Any]:
    """Log prior densities of the tails and of the predictors of the scale, a variable each."""
    if priors.scale is None or priors.scale_labels is None or points.scale is None:
        return {}
    found = priors.scale.logpdf(priors.scale_labels, points.scale)
    names = {
        f"{kind} {f}": f"{kind[:-6]}_{key}"
        for f, key in enumerate(keys)
        for kind in ("sd_sigma", "cor_sigma")
    }
    return {
        names.get(name, name): (SAMPLE_DIMS, values.reshape(shape))
        for name, values in found.items()
    }


def _stacked(records: Sequence[Any], values: Array) -> Array:
    """Log density of each entry of the last axis under its own record."""
    result = np.empty_like(values)
    for j, record in enumerate(records):
        result[..., j] = record.logpdf(values[..., j])
    return result


def _draw_coords(posterior: xr.Dataset) -> dict[str, Any]:
    return {dim: posterior[dim] for dim in SAMPLE_DIMS}


# --- posterior means, sds and quantiles of random effects without drawing them ---


Short = NDArray[np.float32]

PROBABILITIES = (0.025, 0.055, 0.5, 0.945, 0.975)
"""Probabilities of the stored quantiles."""

WORK = 1 << 21
"""Random effects times draws of the covariance parameters that are mixed, where that is enough."""

STATES = (64, 1000)
"""Fewest and most draws that are mixed."""

LARGEST_TABLE = 1 << 27
"""Most moments held in memory at once, 0.5 GB in single precision, at the cost of fewer draws."""

CHUNK = 1 << 14
"""Random effects whose quantiles are worked out at once."""

NEWTON_STEPS = 3


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EffectSummary:
    """Posterior of the random effects of one grouping factor.

    Attributes
    ----------
    mean, sd : ndarray (J, k)
        Posterior means and standard deviations.
    quantiles : ndarray (n, J, k)
        Posterior quantiles at :data:`PROBABILITIES`.
    """

    mean: Array
    sd: Array
    quantiles: Array


def summarise_effects(plan: Plan, priors: Priors, points: AnyPoints) -> list[EffectSummary]:
    """Posterior summaries of all random effects.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    points : AnyPoints
        Draws of the covariance parameters; some dozens, spread evenly over them, are used.

    Returns
    -------
    list of EffectSummary
        One per grouping factor, on the scale of the response.
    """
    total = sum(gram.shape[0] * gram.shape[1] for gram in plan.products.random)
    count = min(int(np.clip(WORK // total, *STATES)), max(LARGEST_TABLE // (2 * total), 24))
    states = np.linspace(0, len(points.sigma) - 1, min(count, len(points.sigma))).astype(int)
    reference = _moments(plan, priors, points, int(states[0]))
    shape = (len(states),)
    shifts = [np.empty(shape + mean.shape, dtype=np.float32) for mean, _ in reference]
    scales = [np.empty(shape + mean.shape, dtype=np.float32) for mean, _ in reference]

    def fill(place: int) -> None:
        moments = _moments(plan, priors, points, int(states[place]))
        for f, ((mean, sd), (mean0, sd0)) in enumerate(zip(moments, reference, strict=True)):
            shifts[f][place] = (mean - mean0) / sd0
            scales[f][place] = sd / sd0

    run_parallel(fill, range(len(states)))
    parts = zip(reference, shifts, scales, strict=True)
    return [_mixture(mean, sd, shift, scale) for (mean, sd), shift, scale in parts]


def _moments(
    plan: Plan, priors: Priors, points: AnyPoints, state: int
) -> list[tuple[Array, Array]]:
    """Means and standard deviations (J, k) of the random effects given one draw."""
    sigma, plan = float(points.sigma[state]), plan.at(points.shapes[state])
    factors = [t[state] for t in points.factors]
    beta = None
    if priors.beta_sampled:
        beta = to_working_beta(plan.products, points.beta[state])
    fact = factorise(plan, factors, beta_prior(priors), sigma)
    modes, _ = conditional_modes(fact, beta)
    covariances = conditional_covariances(fact, given_beta=priors.beta_sampled)
    result = []
    basis = plan.products.basis
    for f, (mode, cov) in enumerate(zip(modes, covariances, strict=True)):
        columns = basis.random[f]
        variance = np.einsum("ka,jab,kb->jk", columns, cov, columns)
        sd = sigma * np.sqrt(np.maximum(variance, 0.0))
        result.append((basis.effects(f, mode), np.maximum(sd, np.finfo(float).tiny)))
    return result


def _mixture(mean: Array, sd: Array, shift: Short, scale: Short) -> EffectSummary:
    """Summaries of equal mixtures; `shift` and `scale` (M, J, k) are relative to `mean`, `sd`."""
    flat_shift = shift.reshape(len(shift), -1)
    flat_scale = scale.reshape(len(scale), -1)
    size = flat_shift.shape[1]
    moments = np.empty((2, size))
    quantiles = np.empty((len(PROBABILITIES), size))

    def fill(start: int) -> None:
        rows = slice(start, start + CHUNK)
        m, s = flat_shift[:, rows].astype(float), flat_scale[:, rows].astype(float)
        centre = m.mean(axis=0)
        spread = np.sqrt(np.mean(s**2, axis=0) + np.var(m, axis=0))
        moments[:, rows] = centre, spread
        for i, probability in enumerate(PROBABILITIES):
            start_at = centre + spread * ndtri(probability)
            quantiles[i, rows] = _mixture_quantile(m, s, probability, start_at)

    run_parallel(fill, range(0, size, CHUNK))
    centre, spread = moments.reshape(2, *mean.shape)
    return EffectSummary(
        mean=mean + sd * centre,
        sd=sd * spread,
        quantiles=mean + sd * quantiles.reshape(-1, *mean.shape),
    )


def _mixture_quantile(means: Array, sds: Array, probability: float, start: Array) -> Array:
    """Quantiles of equal mixtures of M normal distributions (M, n), by Newton's method."""
    quantile = start
    for _ in range(NEWTON_STEPS):
        z = (quantile - means) / sds
        excess = ndtr(z).mean(axis=0) - probability
        density = np.mean(np.exp(-0.5 * z**2) / sds, axis=0) / np.sqrt(2.0 * np.pi)
        quantile = quantile - excess / np.maximum(density, 1e-12)
    return quantile


def effect_group(design: Design, summaries: Sequence[EffectSummary]) -> xr.Dataset:
    """Group random_effects: summaries of random effects whose draws are not stored.

    Variables ``u_g_mean``, ``u_g_sd`` (coefficient, level) and ``u_g_quantile`` (quantile,
    coefficient, level) per grouping factor with key g.
    """
    import xarray as xr

    coords: dict[str, Any] = {"quantile": np.array(PROBABILITIES)}
    variables: dict[str, Any] = {}
    for factor, summary in zip(design.random, summaries, strict=True):
        dims = (own_dim(factor), level_dim(factor.key))
        coords |= {dims[0]: text_labels(factor.own_coefs), dims[1]: text_labels(factor.levels)}
        name = u_name(factor.key)
        mean, sd, quantiles = map(factor.own, (summary.mean, summary.sd, summary.quantiles))
        variables[f"{name}_mean"] = (dims, mean.T)
        variables[f"{name}_sd"] = (dims, sd.T)
        variables[f"{name}_quantile"] = (("quantile", *dims), quantiles.swapaxes(-2, -1))
    return xr.Dataset(variables, coords, creation_attrs() | {"sample_dims": []})
