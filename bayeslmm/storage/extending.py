"""More draws for a posterior: another run of its engine, put behind the first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import SamplingError
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.collapsed import find_mode, gaussian_root
from bayeslmm.sampling.engine import require_positive, sample_posterior
from bayeslmm.sampling.groups import effect_group, log_likelihood, log_prior, summarise_effects
from bayeslmm.sampling.joint_draws import points_of
from bayeslmm.sampling.tree import EFFECT_GROUP, SAMPLE_DIMS, assemble
from bayeslmm.schema import BETA

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]

RUNS = "draws_of_runs"
"""Attribute with the draws per chain of each run."""

BY_CHAIN: Mapping[str, Callable[[Array, Array], Array]] = {
    "n_evaluations": np.add,
    "pareto_k": np.fmax,
}
"""How statistics of whole chains combine: work adds up, of diagnostics the worse one counts."""

_OWN = ("posterior", "sample_stats", "observed_data", "constant_data", EFFECT_GROUP)


def extended_tree(
    model: Model,
    data: xr.DataTree,
    draws: int,
    random_seed: int | np.random.Generator | None = None,
    options: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Draw again by the engine of a posterior and join the draws.

    Parameters
    ----------
    model : Model
        Design, priors and what is computed from them once.
    data : xarray.DataTree
        The posterior.
    draws : int
        Further draws per chain.
    random_seed : int or numpy.random.Generator, optional
        Seed; no stream of random numbers that the first run could have used is used again.
    options : mapping, optional
        Further arguments of the engine.

    Returns
    -------
    xarray.DataTree
    """
    require_positive(draws=draws)
    posterior = data["posterior"].to_dataset()
    method = str(data.attrs["method"])
    new = sample_posterior(
        model,
        method=method,  # type: ignore[arg-type]
        draws=draws,
        chains=posterior.sizes["chain"],
        random_seed=fresh_generator(random_seed, posterior.sizes["draw"]),
        options={**_engine_options(data, method), **(options or {})},
    )
    groups = {name: node.to_dataset() for name, node in data.children.items()}
    joined = joined_draws(posterior, new["posterior"].to_dataset())
    statistics = joined_statistics(groups["sample_stats"], new["sample_stats"].to_dataset())
    if method == "laplace":
        runs = [
            (tree["posterior"].to_dataset(), tree["sample_stats"].to_dataset())
            for tree in (data, new)
        ]
        weights = _joined_weights(runs, model)
        statistics["log_weight"] = (SAMPLE_DIMS, weights)
    core = {**groups, "posterior": joined, "sample_stats": statistics}
    kept = _other_groups(core, model)
    attrs = joined_attrs(data.attrs, new.attrs, (posterior.sizes["draw"], draws))
    return assemble(kept, attrs)


def fresh_generator(
    random_seed: int | np.random.Generator | None, done: int
) -> np.random.Generator:
    """Generator whose stream differs from that of the seed itself and of every other extension."""
    base = int(np.random.default_rng(random_seed).integers(2**63))
    return np.random.default_rng([base, done])


def _engine_options(data: xr.DataTree, method: str) -> dict[str, Any]:
    """Arguments of the engine that the posterior tells."""
    if method == "collapsed":
        return {"store_u": EFFECT_GROUP not in data.children}
    if method != "nuts":
        return {}
    options: dict[str, Any] = {"form": str(data.attrs.get("form", "noncentered"))}
    if "tuning_steps" in data.attrs:
        options["tune"] = int(data.attrs["tuning_steps"])
    return options


# --- joining ---------------------------------------------------------------------------


def joined_draws(one: xr.Dataset, two: xr.Dataset) -> xr.Dataset:
    """Datasets of chains and draws, the second behind the first, draws numbered on."""
    steps = np.arange(one.sizes["draw"] + two.sizes["draw"])
    two = two.assign_coords(chain=one["chain"])
    variables = {}
    for name, variable in one.variables.items():
        if "draw" not in variable.dims or name == "draw":
            continue
        if name not in two.variables:
            raise SamplingError(f"The new draws lack {name}, which the posterior has.")
        other = two[name].variable.transpose(*variable.dims)
        variables[name] = xr.Variable.concat([variable, other], dim="draw")
    coords = {name: values for name, values in one.coords.items() if "draw" not in values.dims}
    joined = xr.Dataset(variables, coords={**coords, "draw": steps}, attrs=one.attrs)
    joined = joined.set_coords([name for name in variables if name in one.coords])
    if "created_at" in two.attrs:
        joined.attrs["created_at"] = two.attrs["created_at"]
    if "sampling_time" in one.attrs and "sampling_time" in two.attrs:
        joined.attrs["sampling_time"] = one.attrs["sampling_time"] + two.attrs["sampling_time"]
    return joined


def joined_statistics(one: xr.Dataset, two: xr.Dataset) -> xr.Dataset:
    """Sampler statistics of two runs that both have, by draw or as :data:`BY_CHAIN` says."""
    common = [
        name
        for name, values in one.data_vars.items()
        if name in two and ("draw" in values.dims or name in BY_CHAIN)
    ]
    joined = joined_draws(one[common], two)
    for name in common:
        if "draw" not in one[name].dims:
            values = BY_CHAIN[str(name)](one[name].to_numpy(), two[name].to_numpy())
            joined[name] = (one[name].dims, values)
    return joined


def _joined_weights(runs: Sequence[tuple[xr.Dataset, xr.Dataset]], model: Model) -> Array:
    """Log weights of Laplace draws: each run has its own constant, which must become one.

    `runs` are the draws and the statistics of each.
    """
    mode = find_mode(model)
    root = gaussian_root(mode)
    parts = []
    for draws, statistics in runs:
        weights, density = (statistics[name].to_numpy() for name in ("log_weight", "lp"))
        best = int(np.argmax(weights))
        x = _coordinates(draws, best, model.design, model.priors)
        noise = np.linalg.solve(root, x - mode.x)
        exact = density.ravel()[best] + 0.5 * np.sum(noise**2)
        parts.append(weights - weights.ravel()[best] + exact)
    joined = np.concatenate(parts, axis=1)
    return np.asarray(joined - np.max(joined))


def _coordinates(draws: xr.Dataset, place: int, design: Design, priors: Priors) -> Array:
    """Unconstrained coordinates of one draw."""
    every = points_of(design, draws)
    beta = draws[BETA].to_numpy().reshape(len(every.sigma), design.p)
    point = replace(every, beta=beta).take(slice(place, place + 1))
    coordinates = priors.coordinates
    return coordinates.vector(coordinates.to_working(point))[0]


def joined_attrs(
    one: Mapping[Any, Any], two: Mapping[Any, Any], sizes: Sequence[int]
) -> dict[Any, Any]:
    """Root attributes of two runs joined."""
    result = dict(one)
    result[RUNS] = [*[int(n) for n in one.get(RUNS, sizes[:1])], int(sizes[1])]
    if "sampling_time" in one and "sampling_time" in two:
        result["sampling_time"] = one["sampling_time"] + two["sampling_time"]
    if "surrogate_error" in one and "surrogate_error" in two:
        result["surrogate_error"] = max(one["surrogate_error"], two["surrogate_error"])
    if "log_evidence" in one and "log_evidence" in two:
        value, error = combined_estimate(
            [one["log_evidence"], two["log_evidence"]],
            [one["log_evidence_error"], two["log_evidence_error"]],
        )
        result |= {"log_evidence": value, "log_evidence_error": error}
    return result


def combined_estimate(values: Sequence[float], errors: Sequence[float]) -> tuple[float, float]:
    """Independent estimates of one number, weighted by their inverse variances, and the error.

    An estimate without an error (zero) is taken for exact.
    """
    variances = np.square(np.array(errors, dtype=float))
    if np.any(variances == 0.0):
        return float(values[int(np.argmin(variances))]), 0.0
    weights = 1.0 / variances
    value = float(np.sum(weights * np.array(values)) / np.sum(weights))
    return value, float(1.0 / np.sqrt(np.sum(weights)))


# --- other groups ----------------------------------------------------------------------


def _other_groups(groups: Mapping[str, xr.Dataset], model: Model) -> dict[str, xr.Dataset]:
    """Groups of the joined draws: computed anew where that is exact, left out where not."""
    tree = xr.DataTree.from_dict({name: groups[name] for name in ("posterior", "sample_stats")})
    kept: dict[str, xr.Dataset] = {}
    gone = []
    for name, dataset in groups.items():
        if name == EFFECT_GROUP:
            kept[name] = _effect_summaries(model, groups["posterior"])
        elif name == "log_likelihood":
            kept[name] = log_likelihood(tree, model.design)
        elif name == "log_prior":
            kept[name] = log_prior(tree, model.priors)
        elif name in _OWN or name.startswith("prior") or "draw" not in dataset.dims:
            kept[name] = dataset
        else:
            gone.append(name)
    if gone:
        _log.warning("Groups of the old draws are left out: %s", ", ".join(gone))
    return kept


def _effect_summaries(model: Model, posterior: xr.Dataset) -> xr.Dataset:
    design, priors = model.design, model.priors
    points = points_of(design, posterior)
    if priors.beta_sampled:
        beta = posterior[BETA].to_numpy().reshape(len(points.sigma), design.p)
        points = replace(points, beta=beta)
    return effect_group(design, summarise_effects(model.system, priors, points))
