"""The collapsed sampler: covariance parameters by importance, beta and u by exact draws.

u and beta are integrated out in closed form, which leaves the few covariance parameters. Their
posterior density is sampled from a fitted importance density by independence
Metropolis-Hastings chains, and every kept state gets one exact draw of (beta, u).
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.linalg import block_diag

from bayeslmm.covariance.structure import lower_root
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit, parameters_of_columns
from bayeslmm.estimation.progress import stages
from bayeslmm.estimation.start import likelihood_start, prior_ranges, starting_point
from bayeslmm.likelihood.batch import BatchSystem, batch_system
from bayeslmm.likelihood.batch_posterior import log_posterior_batch, reduce_at
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.completion import as_chains, complete
from bayeslmm.sampling.covariance_sampler import (
    CovarianceDraws,
    is_dear,
    sample_covariance,
)
from bayeslmm.sampling.effect_summary import summarise_effects
from bayeslmm.sampling.laplace import gaussian_root, is_regular, search_mode
from bayeslmm.sampling.pareto import pareto_k
from bayeslmm.sampling.propriety import require_proper
from bayeslmm.sampling.tree import EFFECT_GROUP, LARGEST_U, effect_group, posterior_tree

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)


START_SD = 0.5
DEAR_START_SD = 1.5
"""Asymptotic sd of a coordinate up to which REML is a good start; dear models are less choosy."""

DEPENDENT = 1e-10
"""Smallest eigenvalue of the correlations of estimates that are not functions of each other."""


def fit_collapsed(
    design: Design,
    plan: Plan,
    priors: Priors,
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
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    priors : Priors
        Its priors.
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
    rng = np.random.default_rng(random_seed)
    system = batch_system(plan)
    with single_threaded(), stages(progressbar and is_dear(system)) as stage:
        stage("Searching the mode")
        centre, root = starting_approximation(system, priors)
        stage("Sampling the covariance parameters")
        run = sample_covariance(system, priors, centre, root, chains, draws, rng)
        x = run.chains.x.reshape(chains * draws, -1)
        if store_u is None:
            store_u = effects_fit(design, chains * draws)
        stage("Drawing the effects")
        variables = complete(design, priors, system, run.reduce, x, rng, random_effects=store_u)
        extra = {} if store_u else {EFFECT_GROUP: _summaries(design, plan, priors, x)}
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


def _summaries(design: Design, plan: Plan, priors: Priors, x: Array) -> xr.Dataset:
    points = priors.coordinates.points(x)
    _log.info("draws of the random effects are not stored: see draw_u and store_u")
    return effect_group(design, summarise_effects(plan, priors, points))


def starting_approximation(system: BatchSystem, priors: Priors) -> tuple[Array, Array]:
    """Middle (d,) of the log density and lower root (d, d) of a covariance matrix.

    The REML estimate and its asymptotic covariance matrix where the data determine them well and
    the priors do not contradict them, else the mode and its inverse curvature; where the search
    does not end at a regular mode, the point it reached and unit scales. No scale exceeds that of
    its prior.

    Raises
    ------
    PriorError
        If the posterior is improper.
    """
    plan = system.plan
    target = partial(
        log_posterior_batch, plan, priors, partial(reduce_at, system, priors.coordinates)
    )
    reml = likelihood_start(plan, priors)
    require_proper(target, plan, priors, starting_point(plan, priors, reml))
    ranges = prior_ranges(priors)
    if isinstance(reml, Fit) and not reml.singular and _is_pairwise(plan):
        centre, cov = parameters_of_columns(reml, priors.mixing)
        if _is_determined(cov, DEAR_START_SD if is_dear(system) else START_SD):
            root = np.linalg.cholesky(cov)
            if priors.beta_sampled:
                centre = np.concatenate([centre, priors.fixed_map @ reml.beta])
                root = block_diag(root, lower_root(priors.fixed_map @ reml.vcov_root))
            if ranges.contains(centre):
                return centre, ranges.narrow(root)
    mode = search_mode(plan, priors, reml)
    root = gaussian_root(mode) if is_regular(priors, mode) else np.eye(len(mode.x))
    return mode.x, ranges.narrow(root)


def _is_pairwise(plan: Plan) -> bool:
    """Whether no three coefficients are correlated: partial correlations are then correlations."""
    return all(len(block) <= 2 for s in plan.products.structures for block in s.blocks)


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
        "pareto_k": np.array([pareto_k(ratios) for ratios in by_chain]),
        "n_evaluations": np.full(chains, run.n_evaluations / chains),
    }


def _evidence(run: CovarianceDraws, priors: Priors) -> dict[str, Any]:
    if not priors.proper:
        return {}
    return {
        "log_evidence": run.log_evidence,
        "log_evidence_error": run.log_evidence_error,
    }
