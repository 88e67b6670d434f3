"""The collapsed sampler: covariance parameters by importance, beta and u by exact draws.

u and beta are integrated out in closed form, which leaves the few covariance parameters. Their
posterior density is sampled from a fitted importance density by independence
Metropolis-Hastings chains, and every kept state gets one exact draw of (beta, u).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg import block_diag

from bayeslmm.covariance.structure import lower_root
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.estimate import Fit, parameters_of_columns, search_tolerance
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.optimise import Optimum, minimise
from bayeslmm.estimation.progress import stages
from bayeslmm.estimation.start import (
    Start,
    likelihood_start,
    log_units,
    prior_ranges,
    starting_point,
)
from bayeslmm.exceptions import PriorError, SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import (
    log_posterior_batch,
    log_posterior_unconstrained,
    reduce_at,
)
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.groups import effect_group, summarise_effects
from bayeslmm.sampling.importance import LogDensity
from bayeslmm.sampling.pareto import pareto_k
from bayeslmm.sampling.surrogate import (
    CovarianceDraws,
    is_dear,
    sample_covariance,
)
from bayeslmm.sampling.tree import EFFECT_GROUP, LARGEST_U, as_chains, complete, posterior_tree

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)


START_SD = 0.5
DEAR_START_SD = 1.5
"""Asymptotic sd of a coordinate up to which REML is a good start; dear models are less choosy."""

DEPENDENT = 1e-10
"""Smallest eigenvalue of the correlations of estimates that are not functions of each other."""


def fit_collapsed(
    model: Model,
    *,
    draws: int = 1000,
    chains: int = 4,
    random_seed: int | np.random.Generator | None = None,
    store_u: bool | None = None,
    progressbar: bool = True,
) -> xr.DataTree:
    """Draw from the exact posterior by sampling the covariance parameters alone.

    Parameters
    ----------
    model : Model
        Design, priors and what is computed from them once.
    draws, chains : int
        Size of the result.
    random_seed : int or numpy.random.Generator, optional
        Source of randomness.
    store_u : bool, optional
        Whether draws of the random effects are stored; by default where they take less than
        512 MB. Else the group ``random_effects`` has their posterior means, standard deviations
        and quantiles, from their exact distribution given some dozens of the draws.
    progressbar : bool
        Whether to show the stages of a computation that takes more than a moment.

    Returns
    -------
    xarray.DataTree
        ArviZ schema. ``sample_stats`` has `lp`, the log density of the covariance parameters,
        `acceptance_rate` and, per chain, `pareto_k` of the importance ratios and `n_evaluations`,
        a chain's share of the exact density evaluations (without those of the starting point). The
        root's attributes have the log evidence where the priors are proper.

    Raises
    ------
    PriorError
        If the posterior is improper.
    SamplingError
        If the importance density does not fit: use ``method="nuts"``.
    """
    began = time.perf_counter()
    rng = seeded(random_seed)
    design, priors = model.design, model.priors
    plan = model.system
    with single_threaded(), stages(progressbar and is_dear(plan)) as stage:
        stage("Searching the mode")
        centre, root = starting_approximation(model)
        stage("Sampling the covariance parameters")
        run = sample_covariance(plan, priors, centre, root, chains, draws, rng)
        x = run.chains.x.reshape(chains * draws, -1)
        if store_u is None:
            store_u = effects_fit(design, chains * draws)
        stage("Drawing the effects")
        variables = complete(design, priors, plan, run.reduce, x, rng, random_effects=store_u)
        extra = {} if store_u else {EFFECT_GROUP: _summaries(model, x)}
    shaped = as_chains(variables, chains, draws)
    attrs = {
        "method": "collapsed",
        "inference_library": "bayeslmm",
        "sampling_time": time.perf_counter() - began,
        "surrogate_error": run.surrogate_error,
        **_evidence(run, priors),
    }
    return posterior_tree(design, priors, shaped, _statistics(run), attrs, extra)


def effects_fit(design: Design, draws: int) -> bool:
    """Whether draws of all random effects take less than :data:`LARGEST_U` bytes."""
    return 8 * draws * sum(f.n_levels * f.n_coefs for f in design.random) <= LARGEST_U


def _summaries(model: Model, x: Array) -> xr.Dataset:
    points = model.priors.coordinates.points(x)
    _log.info("draws of the random effects are not stored: see draw_u and store_u")
    return effect_group(model.design, summarise_effects(model.system, model.priors, points))


def starting_approximation(model: Model) -> tuple[Array, Array]:
    """Middle (d,) of the log density and lower root (f, f) of a covariance matrix.

    The root is of the coordinates that are free. The REML estimate and its asymptotic covariance
    matrix where the data determine them well, the priors do not contradict them and no parameter is
    known, else the mode and its inverse curvature; where the search does not end at a regular mode,
    the point it reached and unit scales. No scale exceeds that of its prior.

    Raises
    ------
    PriorError
        If the posterior is improper.
    """
    plan, priors = model.system, model.priors
    exact = partial(reduce_at, plan, priors.coordinates)
    target = partial(log_posterior_batch, plan, priors, exact)
    reml = likelihood_start(plan, priors, lambda: model.reml)
    require_proper(target, plan, priors, starting_point(plan, priors, reml))
    ranges = prior_ranges(priors)
    if isinstance(reml, Fit) and not reml.singular and _is_direct(plan) and plan.held is None:
        centre, cov = _on_coordinates(reml, *parameters_of_columns(reml, priors.mixing))
        if _is_determined(cov, DEAR_START_SD if is_dear(plan) else START_SD):
            root = np.linalg.cholesky(cov)
            if priors.beta_sampled:
                centre = np.concatenate([centre, priors.fixed_map @ reml.beta])
                root = block_diag(root, lower_root(priors.fixed_map @ reml.vcov_root))
            if ranges.contains(centre):
                return centre, ranges.narrow(root)
    mode = search_mode(plan, priors, reml)
    root = gaussian_root(mode) if is_regular(priors, mode) else np.eye(len(mode.x))
    free = priors.coordinates.free
    return priors.coordinates.complete(mode.x), ranges.take(free).narrow(root)


def _on_coordinates(fit: Fit, centre: Array, cov: Array) -> tuple[Array, Array]:
    """Estimates (d,) and their covariance matrix, with residual correlations by coordinate."""
    residual = fit.plan.residual
    if not residual.n_cors:
        return centre, cov
    at, slopes = slice(-residual.n_cors, None), np.eye(len(centre))
    slopes[at, at] = np.linalg.inv(residual.report(fit.sigma, fit.shape)[1][at, at])
    moved = np.append(centre[: -residual.n_cors], residual.cors_of(fit.shape[None])[0])
    return moved, slopes @ cov @ slopes.T


def _is_direct(plan: Plan) -> bool:
    """Whether correlation coordinates are those on which an estimate has its standard errors."""
    return all(structure.direct for structure in plan.products.structures)


def _is_determined(cov: Array, largest_sd: float) -> bool:
    """Whether a covariance matrix of estimates on unconstrained scales will do as a start."""
    if not np.all(np.isfinite(cov)) or np.min(np.diag(cov)) <= 0.0:
        return False
    sds = np.sqrt(np.diag(cov))
    distinct = np.linalg.eigvalsh(cov / np.outer(sds, sds))[0] > DEPENDENT
    return bool(distinct and np.max(sds) < largest_sd)


def _statistics(run: CovarianceDraws) -> dict[str, Array]:
    chains = len(run.chains.x)
    by_chain = run.chains.log_ratios.reshape(chains, -1)
    return {
        "lp": run.chains.log_density,
        "acceptance_rate": run.chains.acceptance,
        "pareto_k": np.array([pareto_k(ratios) for ratios in by_chain])
        if run.chains.proposals.shape[1]
        else np.full(chains, np.nan),
        "n_evaluations": np.full(chains, run.n_evaluations / chains),
    }


def _evidence(run: CovarianceDraws, priors: Priors) -> dict[str, Any]:
    if not priors.proper:
        return {}
    return {
        "log_evidence": run.log_evidence,
        "log_evidence_error": run.log_evidence_error,
    }


# --- the Laplace approximation ---


LARGEST_SPREAD = 20.0
"""Standard deviation of a log scale or correlation coordinate beyond which there is no mode."""


def fit_laplace(
    model: Model,
    *,
    draws: int = 1000,
    chains: int = 4,
    random_seed: int | np.random.Generator | None = None,
) -> xr.DataTree:
    """Draw from the Laplace approximation of the posterior.

    Parameters
    ----------
    model : Model
        Design, priors and what is computed from them once.
    draws, chains : int
        Independent draws, arranged as so many chains.
    random_seed : int or numpy.random.Generator, optional
        Source of randomness.

    Returns
    -------
    xarray.DataTree
        ArviZ schema; ``sample_stats`` has `lp`, the log density at each draw, and
        `log_weight`, its log ratio to the approximation, up to a constant.

    Raises
    ------
    SamplingError
        If the density has no mode with negative curvature, as where it is improper.
    """
    began = time.perf_counter()
    rng = seeded(random_seed)
    design, priors = model.design, model.priors
    with single_threaded():
        mode = find_mode(model)
        reduce = partial(reduce_at, model.system, priors.coordinates)
        noise = rng.standard_normal((draws * chains, len(mode.x)))
        coordinates = priors.coordinates.complete(mode.x + noise @ gaussian_root(mode).T)
        density = log_posterior_batch(model.system, priors, reduce, coordinates)
        variables = complete(design, priors, model.system, reduce, coordinates, rng)
    weights = density + 0.5 * np.sum(noise**2, axis=1)
    stats = {"lp": density, "log_weight": weights - np.max(weights)}
    attrs = {
        "method": "laplace",
        "inference_library": "bayeslmm",
        "sampling_time": time.perf_counter() - began,
    }
    shaped, shaped_stats = (as_chains(arrays, chains, draws) for arrays in (variables, stats))
    return posterior_tree(design, priors, shaped, shaped_stats, attrs)


def gaussian_root(mode: Optimum) -> Array:
    """Lower Cholesky factor (d, d) of the covariance matrix of the approximation."""
    return np.asarray(np.linalg.cholesky(np.linalg.inv(mode.hessian / 2.0)))


def find_mode(model: Model) -> Optimum:
    """Mode of the log posterior density on the free coordinates (f,), in -2 log density.

    Raises
    ------
    SamplingError
        If the search ends anywhere else.
    """
    plan, priors = model.system, model.priors
    optimum = search_mode(plan, priors, likelihood_start(plan, priors, lambda: model.reml))
    if not is_regular(priors, optimum):
        cause = "Give the standard deviations proper priors"
        if priors.beta_sampled:
            cause += ", or beta priors without a kink near the estimate"
        raise SamplingError(
            "The posterior density of the covariance parameters has no regular mode "
            f"({optimum.message}), so there is no Laplace approximation. {cause}, or use "
            "method='collapsed' or method='nuts'."
        )
    return optimum


def search_mode(plan: Plan, priors: Priors, start: Fit | Start) -> Optimum:
    """Where the search for the mode ends that starts at an estimate, whether or not that is one.

    Of the free coordinates (f,).
    """
    coordinates = priors.coordinates
    free = coordinates.free

    def objective(z: Array) -> tuple[float, Array]:
        value, gradient = log_posterior_unconstrained(plan, priors, coordinates.complete(z))
        return -2.0 * value, -2.0 * gradient[free]

    return minimise(
        objective,
        starting_point(plan, priors, start)[free],
        plan.products.n_obs,
        tolerance=search_tolerance(plan),
    )


def is_regular(priors: Priors, optimum: Optimum) -> bool:
    """Whether it is a mode, and no log scale has an absurd standard deviation there."""
    if not optimum.converged or np.any(np.linalg.eigvalsh(optimum.hessian) <= 0):
        return False
    covariance = priors.coordinates.free < priors.coordinates.n_covariance
    variances = np.diag(np.linalg.inv(optimum.hessian / 2.0))
    return bool(np.all(variances[covariance] < LARGEST_SPREAD**2))


# --- whether the density is proper where priors are flat ---


FAR = (5.0, 7.0)
"""Log ratios to sigma, in units of the covariates' length, between which the tail is measured.

Far enough that the limit is reached to 1e-4, and near enough for double precision.
"""

MIDDLE = 2.0
"""Largest log ratio to sigma of the standard deviations that do not move."""

DECAY = -0.5
"""Slope of the log density by the log standard deviations that counts as integrable.

The slope is a whole number in the limit: minus what the data determine, plus the sds that move.
"""

MAX_TOGETHER = 6
"""Most standard deviations whose subsets are all tried."""


def require_proper(target: LogDensity, plan: Plan, priors: Priors, centre: Array) -> None:
    """Refuse flat priors under which the posterior density does not integrate.

    The tail of the density is measured as the standard deviations with flat priors, one by one
    and together, grow without bound.

    Parameters
    ----------
    target : callable
        Log density on the unconstrained coordinates.
    plan : Plan
        The data.
    priors : Priors
        The priors.
    centre : ndarray (d,)
        A point in the middle.

    Raises
    ------
    PriorError
        Naming the parameters whose tail does not decay, with what to do.
    """
    flat = _flat_scales(priors)
    near = _bounded(plan, priors, centre)
    places = list(flat)
    sizes = list(range(1, len(places) + 1))
    if len(places) > MAX_TOGETHER:
        sizes = [1, len(places)]
    for size in sizes:
        for subset in combinations(places, size):
            if _slope(target, near, subset) > DECAY:
                _refuse([flat[place] for place in subset])


def _bounded(plan: Plan, priors: Priors, centre: Array) -> Array:
    """The point with log ratios to sigma of at most :data:`MIDDLE`."""
    coordinates = priors.coordinates
    point, units = centre.copy(), log_units(plan, coordinates)
    for f in range(len(coordinates.structures)):
        at = coordinates.sds(f)
        point[at] = np.minimum(point[at], point[coordinates.sigma] + units[at] + MIDDLE)
    return coordinates.complete(point[coordinates.free])


def _flat_scales(priors: Priors) -> dict[int, str]:
    """Coordinates of standard deviations (and sigma) with flat priors, and their names."""
    coordinates, found = priors.coordinates, {}
    for f, row in enumerate(priors.sd):
        for i, (name, prior) in enumerate(zip(priors.sd_names(f), row, strict=True)):
            if not prior.proper:
                found[coordinates.sds(f).start + i] = name
    if not priors.sigma.proper:
        found[coordinates.sigma] = "sigma"
    return found


def _slope(target: LogDensity, near: Array, subset: tuple[int, ...]) -> float:
    """Change of the log density per unit of the log standard deviations of a subset."""
    direction = np.zeros(len(near))
    direction[list(subset)] = 1.0
    first, second = target(near + np.outer(FAR, direction))
    if not np.isfinite(first):
        return -np.inf
    return float((second - first) / (FAR[1] - FAR[0]))


def _refuse(names: list[str]) -> None:
    which = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]} together"
    raise PriorError(
        f"The posterior is improper under flat priors: its density does not fall off as {which} "
        "grows, because the data have too few levels (or rows) for them. Give them proper priors, "
        f'such as priors={{"{names[0]}": pm.HalfStudentT.dist(3, scale)}}, or use the defaults.'
    )
