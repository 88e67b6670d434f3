"""The marginal posterior mode of the covariance parameters (MAP).

u and beta are integrated out and the density is maximised without a Jacobian, so that under flat
priors the mode is the REML estimate. A joint mode over (u, covariance parameters) would not be:
it inflates or collapses the standard deviations.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import (
    correlation_cholesky,
    correlation_cholesky_jacobian,
    unconstrained,
)
from bayeslmm.data.frames import listed
from bayeslmm.estimation.estimate import Fit, any_singular, fit_likelihood, search_tolerance
from bayeslmm.estimation.optimise import Optimum, hessian, minimise
from bayeslmm.estimation.start import Start, likelihood_start, starting_point
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise, single_threaded
from bayeslmm.likelihood.log_posterior import (
    LARGEST_LOG,
    Point,
    beta_prior,
    log_posterior,
    log_posterior_unconstrained,
)
from bayeslmm.priors.lkj import LKJ
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

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
    scalars = [*priors.beta, priors.sigma, *(p for row in priors.sd for p in row)]
    uniform = (lkj is None or lkj == LKJ(1.0) for row in priors.cor for lkj in row)
    return not any(p.proper for p in scalars) and all(uniform)


def _describe(plan: Plan, priors: Priors, search: _SignedSearch, optimum: Optimum) -> Fit:
    point = _canonical(search.point(optimum.x))
    prior = beta_prior(priors)
    fact = factorise(plan, point.factors, prior, point.sigma)
    factors = tuple(point.factors)
    x = _unconstrained_coordinates(plan, factors, point)
    cov = _covariance(plan, priors, x) if optimum.converged else np.full((len(x), len(x)), np.nan)
    d = len(x) - len(point.beta)
    if priors.beta_sampled:
        beta, vcov = point.beta, cov[d:, d:]
    else:
        beta, vcov = fact.beta, point.sigma**2 * fact.beta_root @ fact.beta_root.T
    parameters, jacobian = _report(plan, x[:d])
    return Fit(
        method="MAP",
        plan=plan,
        factors=factors,
        sigma=point.sigma,
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
    priors, point = search.priors, search.point(x)
    scalars = [(key, p) for key, p in priors.records().items() if not isinstance(p, LKJ)]
    if not priors.beta_sampled:
        scalars = scalars[len(priors.coefs) :]
    positive = np.abs(np.concatenate([*point.sds, [point.sigma]]))
    centering = priors.centering if priors.beta_sampled else np.zeros((0, 0))
    values = np.concatenate([centering @ point.beta, positive])
    steps = EDGE * np.concatenate([np.abs(centering) @ search.beta_scale, positive])
    beside = values[:, None] + steps[:, None] * [-1.0, 1.0]  # (parameters, 2)
    return [
        key
        for (key, prior), pair in zip(scalars, beside, strict=True)
        if np.any(prior.logpdf(pair) == -np.inf)
    ]


def _canonical(point: Point) -> Point:
    """Nonnegative standard deviations, zero where negligible; positive diagonals."""
    sds, chols = [], []
    for sd, chol in zip(point.sds, point.chols, strict=True):
        signs = np.where(sd < 0, -1.0, 1.0)
        sds.append(np.abs(sd))
        chols.append(signs[:, None] * chol * signs)
    return Point(sds=tuple(sds), chols=tuple(chols), sigma=point.sigma, beta=point.beta)


def _unconstrained_coordinates(plan: Plan, factors: Sequence[Array], point: Point) -> Array:
    pieces = [
        unconstrained(s, t, point.sigma)
        for s, t in zip(plan.products.structures, factors, strict=True)
    ]
    return np.concatenate([*pieces, [np.log(point.sigma)], point.beta])


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


def _report(plan: Plan, x: Array) -> tuple[Array, Array]:
    """Log sds, atanh correlations and log sigma, and their Jacobian by the coordinates `x`."""
    value = _reported(plan, x)
    jacobian = np.empty((len(value), len(x)))
    for i in range(len(x)):
        shift = np.zeros(len(x))
        shift[i] = 1e-5
        with np.errstate(invalid="ignore"):
            difference = _reported(plan, x + shift) - _reported(plan, x - shift)
        jacobian[:, i] = difference / 2e-5
    return value, jacobian


def _reported(plan: Plan, x: Array) -> Array:
    pieces, start = [], 0
    for s in plan.products.structures:
        chol = correlation_cholesky(s, x[start + s.n_coefs : start + s.n_theta])
        corr = chol @ chol.T
        rho = np.array([corr[i, j] for i, j in s.pairs])
        pieces += [x[start : start + s.n_coefs], np.arctanh(rho)]
        start += s.n_theta
    return np.concatenate([*pieces, [x[start]]])


class _SignedSearch:
    """Coordinates in which a standard deviation of zero is an interior point.

    Standard deviations carry a sign, which the density ignores, in units of their starting value;
    beta, where it is sampled, is in units of its standard error; sigma is on the log scale.
    """

    def __init__(self, plan: Plan, priors: Priors, estimate: Fit | Start) -> None:
        self.plan, self.priors = plan, priors
        self.structures = plan.products.structures
        sampled = priors.beta_sampled
        self.beta_scale = np.sqrt(np.diag(estimate.vcov)) if sampled else np.zeros(0)
        self.scales: list[Array] = []
        self.start = starting_point(plan, priors, estimate)
        start = 0
        for s in self.structures:
            self.scales.append(np.exp(self.start[start : start + s.n_coefs]))
            self.start[start : start + s.n_coefs] = 1.0
            start += s.n_theta
        self.start[start + 1 :] /= self.beta_scale

    def point(self, x: Array) -> Point:
        """Parameters, standard deviations with their sign, at the coordinates."""
        sds, chols, start = [], [], 0
        for s, scale in zip(self.structures, self.scales, strict=True):
            sds.append(x[start : start + s.n_coefs] * scale)
            chols.append(correlation_cholesky(s, x[start + s.n_coefs : start + s.n_theta]))
            start += s.n_theta
        return Point(
            sds=tuple(sds),
            chols=tuple(chols),
            sigma=float(np.exp(np.clip(x[start], -LARGEST_LOG, LARGEST_LOG))),
            beta=x[start + 1 :] * self.beta_scale,
        )

    def objective(self, x: Array) -> tuple[float, Array]:
        """-2 log posterior density and its gradient."""
        point = self.point(x)
        value, slope = log_posterior(self.plan, self.priors, point)
        pieces, start = [], 0
        for f, (s, scale) in enumerate(zip(self.structures, self.scales, strict=True)):
            jacobian = correlation_cholesky_jacobian(s, x[start + s.n_coefs : start + s.n_theta])
            pieces += [slope.sds[f] * scale, np.sum(slope.chols[f] * jacobian, axis=(1, 2))]
            start += s.n_theta
        pieces += [np.array([slope.sigma * point.sigma]), slope.beta * self.beta_scale]
        return -2.0 * value, -2.0 * np.concatenate(pieces)
