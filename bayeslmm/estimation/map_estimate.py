"""The marginal posterior mode of the covariance parameters (MAP).

u and beta are integrated out and the density is maximised without a Jacobian, so that under flat
priors the mode is the REML estimate. A joint mode over (u, covariance parameters) would not be:
it inflates or collapses the standard deviations.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, WorkingPoints
from bayeslmm.covariance.structure import lower_factor, sd_leaders
from bayeslmm.estimation.estimate import Fit, any_singular, fit_likelihood, search_tolerance
from bayeslmm.estimation.optimise import Optimum, hessian, minimise
from bayeslmm.estimation.start import Start, likelihood_start, starting_point
from bayeslmm.exceptions import SamplingError, listed
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise, single_threaded
from bayeslmm.likelihood.log_posterior import (
    beta_prior,
    log_posterior,
    log_posterior_unconstrained,
)
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
        search = _SignedSearch(plan, priors, start)
        optimum = minimise(
            search.objective,
            search.start,
            plan.products.n_obs,
            tolerance=search_tolerance(plan),
        )
        if not optimum.converged and (edges := _edges(search, optimum.x)):
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
    uniform = [uniform_correlations(p) == prior for p, prior in zip(parts, given, strict=True)]
    uniform += [prior == own.uniform for prior in own.cor]
    return not any(p.proper for p in scalars) and all(uniform)


def _describe(plan: Plan, priors: Priors, search: _SignedSearch, optimum: Optimum) -> Fit:
    coordinates = priors.coordinates
    point = _canonical(search.point(optimum.x))
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
        singular=any_singular(fact.factors, factors),
        optimum=optimum,
        prior=prior,
        given_beta=priors.beta_sampled,
    )


def _edges(search: _SignedSearch, x: Array) -> list[str]:
    """Labels of the parameters beside which their prior vanishes, but for sds beside zero."""
    priors, point, residuals = search.priors, search.point(x), search.priors.residuals
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


def _canonical(point: WorkingPoints) -> WorkingPoints:
    """Nonnegative standard deviations, zero where negligible; positive diagonals."""
    sds, chols = [], []
    for sd, chol in zip(point.sds, point.chols, strict=True):
        signs = np.where(sd < 0, -1.0, 1.0)
        sds.append(np.abs(sd))
        chols.append(signs[:, :, None] * chol * signs[:, None, :])
    return replace(point, sds=tuple(sds), chols=tuple(chols))


def _covariance(plan: Plan, priors: Priors, x: Array) -> Array:
    """Inverse curvature of the density at a mode, NaN for standard deviations of zero."""
    inside = np.isfinite(x)
    cov = np.full((len(x), len(x)), np.nan)
    if not np.all(inside):
        return cov

    def gradient(z: Array) -> Array:
        return -log_posterior_unconstrained(plan, priors, z, jacobian=False)[1]

    curvature = hessian(gradient, x)
    if np.linalg.eigvalsh(curvature)[0] > 0:
        cov = np.linalg.inv(curvature)
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
    user = coordinates.to_user(coordinates.points(x))
    pieces: list[Array] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for structure, sds, chol in zip(coordinates.structures, user.sds, user.chols, strict=True):
            corr = chol @ chol.swapaxes(1, 2)
            rho = [np.clip(corr[:, i, j], -1.0, 1.0) for i, j in structure.pairs]
            distinct = sds[:, sd_leaders(structure)]
            pieces += [np.log(distinct), *(np.arctanh(r)[:, None] for r in rho)]
        residual_sds, powers, cors = user.natural
        return np.concatenate([*pieces, np.log(residual_sds), powers, np.arctanh(cors)], axis=1)


class _SignedSearch:
    """Coordinates in which a standard deviation of zero is an interior point.

    Standard deviations are in units of their starting value. They carry a sign, which the density
    ignores, or are squares where the structure does not allow that sign; gamma, where beta is
    sampled, is in units of its standard error; sigma is on the log scale.
    """

    def __init__(self, plan: Plan, priors: Priors, estimate: Fit | Start) -> None:
        self.plan, self.priors, self.coordinates = plan, priors, priors.coordinates
        start = starting_point(plan, priors, estimate)
        structures = self.coordinates.structures
        self.log_sds = self.coordinates.logs[: -len(self.coordinates.residual.scales)]
        even = np.concatenate([np.zeros(0, dtype=bool), *(s.even for s in structures)])
        self.powers = np.where(even, 1.0, 2.0)
        self.scales = np.exp(start[self.log_sds])
        rows = priors.fixed_map if priors.beta_sampled else np.empty((0, 0))
        moved = rows @ estimate.vcov @ rows.T if len(rows) else rows
        self.gamma_scale = np.sqrt(np.diag(moved))
        self.start = start
        self.start[self.log_sds] = 1.0
        self.start[self.coordinates.beta] /= self.gamma_scale

    def point(self, x: Array) -> WorkingPoints:
        """Parameters, standard deviations with their sign, at the coordinates (d,)."""
        plain = x.copy()
        plain[self.log_sds] = 0.0
        plain[self.coordinates.beta] *= self.gamma_scale
        point = self.coordinates.points(plain[None])
        sds = np.split(x[self.log_sds] ** self.powers * self.scales, self._cuts)[:-1]
        places = [structure.sd_places for structure in self.coordinates.structures]
        return replace(point, sds=tuple(own[None, at] for own, at in zip(sds, places, strict=True)))

    @property
    def _cuts(self) -> Array:
        sizes = [structure.n_sds for structure in self.coordinates.structures]
        return np.cumsum(sizes, dtype=np.intp)

    def objective(self, x: Array) -> tuple[float, Array]:
        """-2 log posterior density and its gradient."""
        value, slope = log_posterior(self.plan, self.priors, self.point(x))
        plain = x.copy()
        plain[self.log_sds] = 0.0
        gradient = self.coordinates.pull_back(plain, slope, jacobian=False)
        gradient[self.log_sds] *= self.powers * x[self.log_sds] ** (self.powers - 1.0) * self.scales
        gradient[self.coordinates.beta] *= self.gamma_scale
        return -2.0 * value, -2.0 * gradient
