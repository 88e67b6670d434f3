"""NUTS through PyMC, its draws brought to the package's schema."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import WorkingPoints, is_identity
from bayeslmm.data.design import Design, require_marginal
from bayeslmm.data.seeds import seeded
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.draws import draw_random
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.model import SHAPE, Form, build_model
from bayeslmm.sampling.tree import (
    RESPONSE,
    all_factors,
    as_chains,
    draw_beta,
    effect_variables,
    parameter_dims,
    posterior_tree,
)
from bayeslmm.sampling.variables import chol_name, working_sd_name
from bayeslmm.schema import BETA, BETA_SIGMA, SIGMA, sd_name, u_name

Array = NDArray[np.float64]

TARGET_ACCEPT = 0.9

STATISTICS = {
    "lp": "lp",
    "logp": "lp",
    "step_size": "step_size",
    "step_size_bar": "step_size_bar",
    "tree_depth": "tree_depth",
    "depth": "tree_depth",
    "reached_max_treedepth": "reached_max_treedepth",
    "maxdepth_reached": "reached_max_treedepth",
    "acceptance_rate": "acceptance_rate",
    "mean_tree_accept": "acceptance_rate",
    "n_steps": "n_steps",
    "diverging": "diverging",
    "energy": "energy",
    "energy_error": "energy_error",
    "index_in_trajectory": "index_in_trajectory",
}
"""Sampler statistics that are kept, and their names in the ArviZ schema."""

IN_JAX = ("numpyro", "blackjax")
"""Samplers that cannot call NumPy."""

_OWN = ("draws", "model", "return_inferencedata", "trace", "var_names")
_INTEGER = {"tree_depth", "n_steps", "index_in_trajectory"}


def sample_nuts(
    design: Design,
    priors: Priors,
    form: Form = "noncentered",
    system: Plan | None = None,
    *,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    cores: int | None = None,
    random_seed: Any = None,
    progressbar: bool = True,
    nuts_sampler: str | None = None,
    target_accept: float | None = None,
    **kwargs: Any,
) -> xr.DataTree:
    """Sample the posterior with NUTS.

    Parameters
    ----------
    design : Design
        The design of the model.
    priors : Priors
        Its priors.
    form : {"noncentered", "centered", "marginal"}
        Parametrisation that is sampled; the posterior is the same. In the marginal form the
        covariance parameters are sampled and u and beta drawn exactly afterwards.
    system : Plan, optional
        The cross-products of the design if at hand; for the marginal form only.
    draws, tune, chains : int
        Draws kept per chain, tuning steps per chain, number of chains.
    cores : int, optional
        Chains that run at once.
    random_seed : int, sequence of int or numpy.random.Generator, optional
        Seed of the run.
    progressbar : bool
        Whether PyMC shows its progress bar.
    nuts_sampler : {"nutpie", "pymc", "numpyro", "blackjax"}, optional
        PyMC chooses by default, nutpie where it can. The last two, which are in JAX, cannot sample
        the marginal form, nor models with a residual structure.
    target_accept : float, optional
        Target acceptance rate; 0.9 by default.
    **kwargs
        Passed on to ``pymc.sample``.

    Returns
    -------
    xarray.DataTree
        Groups posterior, sample_stats, observed_data and constant_data, as the ArviZ schema has
        them. Variables that only the sampler needs are left out.

    Raises
    ------
    ValueError
        If the sampler cannot sample this form of the model.
    SamplingError
        If the run ended early, so that draws are missing.
    """
    if clash := sorted(set(kwargs) & set(_OWN)):
        raise TypeError(f"sample_nuts sets these arguments of pymc.sample: {', '.join(clash)}.")
    if target_accept is not None and not 0.0 < target_accept < 1.0:
        raise ValueError(f"target_accept={target_accept!r}: a number between 0 and 1 is expected")
    if nuts_sampler in IN_JAX and (form == "marginal" or design.spec.structured):
        raise ValueError(
            f"nuts_sampler={nuts_sampler!r} needs densities in JAX, and those of form='marginal' "
            "and of models with residual= are computed by NumPy: use 'nutpie' or 'pymc'."
        )
    rng = seeded(random_seed)
    if form == "marginal" and not len(priors.coordinates.free):
        raise SamplingError(
            "Every covariance parameter is fixed and the effects are integrated out, so that "
            "form='marginal' has nothing to sample: use method='collapsed', which is exact here."
        )
    if form == "marginal" and system is None:
        require_marginal(design, "form='marginal'")
        system = marginal_system(design)
    model = build_model(design, priors, form, system)
    kwargs.setdefault("compute_convergence_checks", False)  # diagnostics.check does them
    start = time.perf_counter()
    with model, warnings.catch_warnings():
        # of PyMC's own sampler, whose start method is PyMC's to choose
        warnings.filterwarnings("ignore", r".*use of fork\(\) may lead", DeprecationWarning)
        raw = pm.sample(
            draws=draws,
            tune=tune,
            chains=chains,
            cores=cores,
            random_seed=int(rng.integers(2**31)),
            progressbar=progressbar,
            nuts_sampler=nuts_sampler,
            target_accept=TARGET_ACCEPT if target_accept is None else target_accept,
            var_names=_sampled_names(design, priors, form),
            **kwargs,
        )
    values = _sampled_values(raw, design, chains, draws)
    if form == "marginal" and system is not None:
        values |= complete_draws(design, priors, system, values, rng)
    attrs = {"method": "nuts", "form": form, **_inference_attrs(raw["posterior"].attrs)}
    attrs.setdefault("sampling_time", time.perf_counter() - start)
    return posterior_tree(design, priors, values, statistics(raw["sample_stats"].dataset), attrs)


def compile_nuts(
    design: Design,
    priors: Priors,
    form: Form = "noncentered",
    *,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    cores: int | None = None,
    target_accept: float = TARGET_ACCEPT,
) -> Callable[[Design, np.random.Generator], xr.DataTree]:
    """Compile the model once, to sample it with NUTS for many responses.

    Parameters
    ----------
    design : Design
        The design of the model; its response is not used.
    priors : Priors
        Its priors.
    form : {"noncentered", "centered"}
        Parametrisation that is sampled. The marginal form has no response to exchange.
    draws, tune, chains, cores, target_accept
        As in :func:`sample_nuts`.

    Returns
    -------
    callable
        Takes the design with another response and a Generator, returns what :func:`sample_nuts`
        returns, sampled by nutpie.
    """
    import nutpie

    if form == "marginal":
        raise ValueError("form='marginal' cannot be compiled apart from the response")
    compiled = nutpie.compile_pymc_model(
        build_model(design, priors, form), var_names=_sampled_names(design, priors, form)
    )

    def sample(changed: Design, rng: np.random.Generator) -> xr.DataTree:
        raw = nutpie.sample(
            compiled.with_data(**{f"_{RESPONSE}": changed.y}),
            draws=draws,
            tune=tune,
            chains=chains,
            cores=cores,
            seed=int(rng.integers(2**31)),
            target_accept=target_accept,
            save_warmup=False,
            progress_bar=False,
        )
        values = _sampled_values(raw, changed, chains, draws)
        stats = statistics(raw["sample_stats"].dataset)
        attrs = {"method": "nuts", "form": form, "inference_library": "nutpie"}
        return posterior_tree(changed, priors, values, stats, attrs)

    return sample


def _sampled_values(
    raw: xr.DataTree, design: Design, chains: int, draws: int
) -> dict[str, NDArray[Any]]:
    """Recorded variables of a complete run."""
    posterior = raw["posterior"].dataset
    require_complete(posterior, chains, draws)
    values = {str(name): posterior[name].to_numpy() for name in posterior.data_vars}
    effects = {u_name(factor.key) for factor in all_factors(design)} & set(values)
    values |= {name: values[name].swapaxes(-2, -1) for name in effects}
    return values if design.p else values | {BETA: np.empty((chains, draws, 0))}


def require_complete(posterior: xr.Dataset, chains: int, draws: int) -> None:
    """Raise if chains or draws are missing: an interrupted run comes back cut or padded by NaN.

    Parameters
    ----------
    posterior : xarray.Dataset
        Draws as the sampler gave them.
    chains, draws : int
        What was asked for.

    Raises
    ------
    SamplingError
        Naming the incomplete chains.
    """
    if posterior.sizes["chain"] < chains:
        raise SamplingError(
            f"Sampling ended early: {posterior.sizes['chain']} of {chains} chains were delivered."
        )
    scale = posterior[SIGMA if SIGMA in posterior else BETA_SIGMA].to_numpy()
    finite = np.isfinite(scale).reshape(*scale.shape[:2], -1).all(axis=2)
    short = [
        f"chain {chain} delivered {count} of {draws} draws"
        for chain, count in enumerate(finite.sum(axis=1))
        if count < draws
    ]
    if short:
        raise SamplingError(
            f"Sampling ended early: {'; '.join(short)}. Run it again without interrupting it."
        )


def statistics(sample_stats: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Sampler statistics by ArviZ's names; those of one sampler only are left out.

    Parameters
    ----------
    sample_stats : xarray.Dataset
        The group as nutpie, PyMC or another sampler writes it.

    Returns
    -------
    dict of str to ndarray (chain, draw)
    """
    kept = {}
    for name, target in STATISTICS.items():
        if name in sample_stats and sample_stats[name].ndim == 2:
            values = sample_stats[name].to_numpy()
            kept[target] = values.astype(np.int64) if target in _INTEGER else values
    return kept


def complete_draws(
    design: Design,
    priors: Priors,
    system: Plan,
    values: Mapping[str, Array],
    rng: np.random.Generator,
) -> dict[str, Array]:
    """Exact draws of u, and of an integrated beta, for draws of the covariance parameters.

    Parameters
    ----------
    design, priors, system : Design, Priors, Plan
        The model.
    values : mapping of str to ndarray (chain, draw, ...)
        Draws of sigma, the shape of the residuals where they have a structure, the standard
        deviations, the Cholesky factors of the correlations and, if sampled, beta.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    dict of str to ndarray (chain, draw, ...)
        The variables ``beta`` and ``u_g``.
    """
    points = _points(design, priors, values)
    with single_threaded():
        sampled = priors.beta_sampled
        reduced = None if sampled else reduce_equations(system, points)
        beta = draw_beta(priors, system, reduced, points, rng)
        effects = draw_random(system, points, beta, rng)
    drawn = {BETA: beta, **effect_variables(design, effects)}
    return as_chains(drawn, *values[SIGMA].shape[:2])


def _sampled_names(design: Design, priors: Priors, form: Form) -> list[str]:
    """Variables that PyMC is to record: the public ones and what exact draws need."""
    names = list(parameter_dims(design))
    if form != "marginal":
        return names if design.p else [name for name in names if name != BETA]
    exact = {u_name(factor.key) for factor in design.random}
    if not priors.beta_sampled:
        exact.add(BETA)
    names = [name for name in names if name not in exact]
    for factor, mixing, lkjs in zip(design.random, priors.mixing, priors.cor, strict=True):
        names += [chol_name(factor.key, b) for b, lkj in enumerate(lkjs) if lkj is not None]
        names += [] if is_identity(mixing) else [working_sd_name(factor.key)]
    return names if not design.spec.structured else [*names, SHAPE]


def _points(design: Design, priors: Priors, values: Mapping[str, Array]) -> WorkingPoints:
    """Covariance parameters of all draws, chains one after another."""
    chains, draws = values[SIGMA].shape[:2]
    size = chains * draws
    sds, chols = [], []
    for factor, mixing, lkjs in zip(design.random, priors.mixing, priors.cor, strict=True):
        name = sd_name(factor.key) if is_identity(mixing) else working_sd_name(factor.key)
        sds.append(values[name].reshape(size, -1))
        chol = np.tile(np.eye(factor.n_coefs), (size, 1, 1))
        for number, (block, lkj) in enumerate(zip(factor.blocks, lkjs, strict=True)):
            if lkj is not None:
                rows, own = np.array(block), values[chol_name(factor.key, number)]
                chol[:, rows[:, None], rows] = own.reshape(size, len(block), len(block))
        chols.append(chol)
    gamma = np.empty((size, 0))
    if priors.beta_sampled:
        gamma = values[BETA].reshape(size, -1) @ priors.fixed_map.T
    sigma = values[SIGMA].reshape(size, -1)[:, 0]
    shapes = values.get(SHAPE, np.empty(0)).reshape(size, -1)
    return priors.coordinates.working(sds, chols, sigma, shapes, gamma)


def _inference_attrs(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    wanted = ("inference_library", "inference_library_version", "sampling_time", "tuning_steps")
    return {key: attrs[key] for key in wanted if key in attrs}
