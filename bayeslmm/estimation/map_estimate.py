"""The marginal posterior mode of the covariance parameters (MAP).

u and beta are integrated out and the density is maximised without a Jacobian, so that under flat
priors the mode is the REML estimate. A joint mode over (u, covariance parameters) would not be:
it inflates or collapses the standard deviations.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates
from bayeslmm.covariance.structure import lower_factor, sd_leaders
from bayeslmm.estimation.estimate import Fit, any_singular, fit_likelihood, search_tolerance
from bayeslmm.estimation.optimise import Optimum, hessian, minimise
from bayeslmm.estimation.signed import SignedSearch, canonical, reported
from bayeslmm.estimation.start import Start, likelihood_start, starting_point
from bayeslmm.exceptions import SamplingError, listed
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise, single_threaded
from bayeslmm.likelihood.log_posterior import (
    beta_prior,
    log_posterior,
    log_posterior_unconstrained,
)
from bayeslmm.priors.families import Fixed
from bayeslmm.priors.record import Priors, uniform_correlations

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

DIFFERENCE = 1e-5
"""Step of the central differences of the reported parameters by the coordinates."""

EDGE = 1e-3
"""Step, in parts of a standard deviation's value or of an effect's standard error, to an edge."""


def fit_map(plan: Plan, priors: Priors, reml: Fit | None = None) -> Fit:
    """Maximise the marginal posterior density of the covariance parameters.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    reml : Fit, optional
        The REML fit, where the search starts; made here where it is not given.

    Returns
    -------
    Fit
        With ``method="MAP"``; `criterion` is -2 log p(y, parameters).

    Raises
    ------
    SamplingError
        If the density has no mode inside the support of the priors, or none that can be computed.
    """
    if is_flat(priors):
        return replace(reml or fit_likelihood(plan, "REML"), method="MAP")
    start = reml or likelihood_start(plan, priors)
    with single_threaded():
        search = _search(plan, priors, start)
        optimum = minimise(
            search.objective,
            search.start,
            plan.products.n_obs,
            tolerance=search_tolerance(plan),
        )
        if not optimum.converged and (edges := _edges(priors, search, optimum.x)):
            raise SamplingError(
                "The posterior density has no mode inside the support of the priors: it still "
                f"rises where the prior of {listed(edges)} ends. Sample it with fit(), or give a "
                "prior that does not end where the data point."
            )
        if not np.isfinite(optimum.value):
            raise SamplingError(
                "The posterior density of the covariance parameters cannot be computed in double "
                "precision around its mode: centre and rescale covariates."
            )
        fit = _describe(plan, priors, search, optimum)
    if not optimum.converged:
        _log.warning("MAP did not converge: %s", optimum.message)
    return fit


def is_flat(priors: Priors) -> bool:
    """Whether the posterior mode is the REML estimate."""
    own = priors.residuals
    scalars = [*priors.beta, *own.sd, *own.power, *(p for row in priors.sd for p in row)]
    parts = (part for structure in priors.structures for part in structure.parts)
    given = (prior for row in priors.cor for prior in row)
    uniform = [
        prior == uniform_correlations(part) or isinstance(prior, Fixed)
        for part, prior in zip(parts, given, strict=True)
    ]
    uniform += [prior == own.uniform or isinstance(prior, Fixed) for prior in own.cor]
    return all(not p.proper or isinstance(p, Fixed) for p in scalars) and all(uniform)


def _search(plan: Plan, priors: Priors, estimate: Fit | Start) -> SignedSearch:
    rows = priors.fixed_map if priors.beta_sampled else np.empty((0, 0))
    moved = rows @ estimate.vcov @ rows.T if len(rows) else rows
    return SignedSearch(
        priors.coordinates,
        partial(log_posterior, plan, priors),
        starting_point(plan, priors, estimate),
        np.sqrt(np.diag(moved)),
    )


def _describe(plan: Plan, priors: Priors, search: SignedSearch, optimum: Optimum) -> Fit:
    coordinates = priors.coordinates
    point = canonical(search.point(optimum.x))
    x = coordinates.vector(point)[0]
    factors = tuple(
        lower_factor(s, t[0]) for s, t in zip(coordinates.structures, point.factors, strict=True)
    )
    sigma, d = float(point.sigma[0]), coordinates.n_covariance
    prior, plan = beta_prior(priors), plan.at(point.shapes[0])
    fact = factorise(plan, factors, prior, sigma)
    cov = _covariance(plan, priors, x) if optimum.converged else np.full((len(x), len(x)), np.nan)
    if priors.beta_sampled:
        inverse = np.linalg.inv(priors.fixed_map)
        beta, vcov = point.beta[0], inverse @ cov[d:, d:] @ inverse.T
    else:
        beta, vcov = fact.beta, sigma**2 * fact.beta_root @ fact.beta_root.T
    parameters, jacobian = _report(coordinates, x)
    return Fit(
        method="MAP",
        plan=plan,
        factors=factors,
        sigma=sigma,
        beta=beta,
        vcov=vcov,
        criterion=float(optimum.value),
        log_likelihood=np.nan,
        parameters=parameters,
        parameter_cov=jacobian @ cov[:d, :d] @ jacobian.T,
        vcov_gradient=np.zeros((0, len(beta), len(beta))),
        internal_cov=np.zeros((0, 0)),
        singular=any_singular(fact.factors),
        optimum=optimum,
        prior=prior,
        given_beta=priors.beta_sampled,
    )


def _edges(priors: Priors, search: SignedSearch, x: Array) -> list[str]:
    """Labels of the parameters beside which their prior vanishes, but for sds beside zero."""
    point, residuals = search.point(x), priors.residuals
    names = list(priors.records())
    sampled = point.gamma.shape[1]
    sds = [prior for row in priors.sd for prior in row]
    labels = [*names[:sampled], *names[len(priors.coefs) :][: len(sds)]]
    labels += [*residuals.structure.sd_names, *residuals.structure.powers]
    scalars = [*priors.beta[:sampled], *sds, *residuals.sd, *residuals.power]
    own = zip(search.coordinates.structures, point.sds, strict=True)
    distinct = [part[0, sd_leaders(structure)] for structure, part in own]
    positive = np.abs(np.concatenate([*distinct, point.natural[0][0]]))
    powers = point.natural[1][0]
    values = np.concatenate([point.gamma[0], positive, powers])
    steps = EDGE * np.concatenate([search.gamma_scale, positive, np.ones(len(powers))])
    beside = values[:, None] + steps[:, None] * [-1.0, 1.0]  # (parameters, 2)
    return [
        key
        for key, prior, pair in zip(labels, scalars, beside, strict=True)
        if np.any(prior.logpdf(pair) == -np.inf)
    ]


def _covariance(plan: Plan, priors: Priors, x: Array) -> Array:
    """Inverse curvature of the density at a mode, NaN for standard deviations of zero."""
    inside = np.isfinite(x)
    cov = np.full((len(x), len(x)), np.nan)
    if not np.all(inside):
        return cov

    coordinates = priors.coordinates

    def gradient(z: Array) -> Array:
        at = coordinates.complete(z)
        return -log_posterior_unconstrained(plan, priors, at, jacobian=False)[1][coordinates.free]

    free = coordinates.free
    curvature = hessian(gradient, x[free])
    if np.all(np.linalg.eigvalsh(curvature) > 0):
        cov = np.zeros((len(x), len(x)))
        cov[np.ix_(free, free)] = np.linalg.inv(curvature)
    return cov


def _report(coordinates: Coordinates, x: Array) -> tuple[Array, Array]:
    """Parameters of the user's columns as ``Fit`` has them, and their Jacobian by x."""
    d = coordinates.n_covariance
    shifts = np.zeros((d, coordinates.size))
    shifts[:, :d] = DIFFERENCE * np.eye(d)
    with np.errstate(invalid="ignore"):
        value = _reported(coordinates, x[None])[0]
        gap = _reported(coordinates, x + shifts) - _reported(coordinates, x - shifts)
    return value, gap.T / (2.0 * DIFFERENCE)


def _reported(coordinates: Coordinates, x: Array) -> Array:
    """Reported parameters (S, n_covariance) at coordinates (S, d)."""
    return reported(coordinates, coordinates.to_user(coordinates.points(x)))
