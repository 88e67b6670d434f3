"""REML and ML estimates of a linear mixed model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points, unit_rows
from bayeslmm.covariance.residual import Residual
from bayeslmm.covariance.structure import (
    Structure,
    is_singular,
    lower_factor,
    lower_root,
    sd_leaders,
)
from bayeslmm.estimation.held import HeldSearch, search_of
from bayeslmm.estimation.optimise import TOLERANCE, Objective, Optimum, attempt, minimise
from bayeslmm.exceptions import NoEstimateError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import (
    Factorisation,
    GaussianBeta,
    factorise,
    factorise_working,
    single_threaded,
)
from bayeslmm.likelihood.marginal import (
    EXACT_RESPONSE,
    has_criteria,
    ml_criterion,
    profiled_criteria,
    reml_criterion,
    rss_gradient,
    score,
)
from bayeslmm.likelihood.moments import fixed_sensitivities
from bayeslmm.likelihood.split_rows import EXACT_EFFECTS

Array = NDArray[np.float64]
Method = Literal["REML", "ML", "MAP"]

_log = logging.getLogger(__name__)

SINGULAR = 1e-4
"""lme4's tolerance on the diagonal of a relative factor."""

SNAP_INCREASE = 1e-8
"""Deviance units that setting a negligible entry of a relative factor to zero may cost."""

FLAT_CURVATURE = 1e-6
"""Curvature of the criterion per level below which the data do not determine a direction."""

ROUNDED = 1e-4
"""Rounding of the criterion, in deviance units, where little is left of the response.

Determinants then are small differences; a hundredth of a standard error off a minimum.
"""

SHAPE_STEP = 1e-4
"""Step of the central differences of the covariance of beta by the residuals' shape."""

DEGENERATE = 1e-8
"""Residual over total sum of squares below which sigma counts as zero where no minimum is found."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fit:
    """Parameters of a fitted model and their uncertainty.

    Attributes
    ----------
    method : str
        "REML", "ML" or "MAP" (from :mod:`bayeslmm.estimation.map_estimate`).
    plan : Plan
        The data, at the estimated parameters of the residuals.
    factors : tuple of ndarray (k, k)
        Relative factors T in the user's coordinates, lower triangular, nonnegative diagonal.
    sigma : float
        Residual standard deviation.
    beta : ndarray (p,)
        Fixed effects.
    vcov : ndarray (p, p)
        Covariance matrix of beta at the estimated covariance parameters.
    criterion : float
        -2 log (restricted) likelihood with all constants; for "MAP", -2 log posterior density.
    log_likelihood : float
        Log (restricted) likelihood; NaN for "MAP".
    parameters : ndarray (d,)
        Covariance parameters on the scale of `parameter_cov`: per grouping factor the logs of
        distinct standard deviations, then the inverse hyperbolic tangents of the correlations that
        determine the others (`Structure.pairs`); last, log sigma and the other parameters of the
        residuals (``Residual.report``).
    parameter_cov : ndarray (d, d)
        Their asymptotic covariance matrix; NaN where the fit is at a boundary.
    vcov_gradient : ndarray (m, p, p)
        Derivatives of `vcov` by m internal coordinates.
    internal_cov : ndarray (m, m)
        Asymptotic covariance matrix of these coordinates: theta and log sigma or, where parameters
        are known, those of :class:`bayeslmm.estimation.held.HeldSearch`.
    singular : bool
        Whether a covariance matrix of random effects has lost rank.
    optimum : Optimum
        How the optimisation ended.
    prior : GaussianBeta or None
        Normal prior on beta ("MAP" only).
    given_beta : bool
        Whether beta was not integrated out ("MAP" under other priors on beta).
    """

    method: Method
    plan: Plan
    factors: tuple[Array, ...]
    sigma: float
    beta: Array
    vcov: Array
    criterion: float
    log_likelihood: float
    parameters: Array
    parameter_cov: Array
    vcov_gradient: Array
    internal_cov: Array
    singular: bool
    optimum: Optimum
    prior: GaussianBeta | None = None
    given_beta: bool = False

    @property
    def shape(self) -> Array:
        """Parameters (r,) of the residuals beside sigma."""
        return self.plan.shape

    @property
    def factorisation(self) -> Factorisation:
        """The mixed-model equations factorised at the estimate."""
        return factorise(self.plan, self.factors, self.prior, self.sigma)

    @property
    def vcov_root(self) -> Array:
        """Lower root (p, p) of `vcov`: exact where covariates far from zero make it singular."""
        if self.given_beta:
            return np.asarray(np.linalg.cholesky(self.vcov))
        return self.sigma * lower_root(self.factorisation.beta_root)


def fit_likelihood(plan: Plan, method: Literal["REML", "ML"]) -> Fit:
    """Maximise the restricted or the full likelihood.

    Parameters
    ----------
    plan : Plan
        From :func:`bayeslmm.likelihood.marginal.marginal_system`.
    method : {"REML", "ML"}
        The criterion.

    Returns
    -------
    Fit

    Raises
    ------
    NoEstimateError
        If the model reproduces the response exactly, so that sigma is zero.
    """
    reml = method == "REML"
    if plan.held is not None:
        return _fit_held(plan, method)
    if plan.products.fixed[-1, -1] == 0.0:
        raise NoEstimateError(EXACT_RESPONSE)
    with single_threaded():
        batch = partial(profiled_criteria, plan, reml=reml) if has_criteria(plan) else None
        optimum = minimise(
            lambda x: _criterion_and_gradient(plan, x, reml),
            _start(plan, reml),
            plan.products.n_obs,
            information=_level_counts(plan),
            on_log_scale=plan.theta.sds,
            tolerance=search_tolerance(plan),
            batch=batch,
        )
        _check_residual(plan, optimum)
        optimum = _snap(plan, optimum, reml)
        fit = _describe(plan, optimum, reml)
    if not optimum.converged:
        _log.warning("%s did not converge: %s", method, optimum.message)
    if fit.singular:
        _log.info("%s: the fit is singular, a covariance matrix lost rank; see its notes", method)
    return fit


def _fit_held(plan: Plan, method: Literal["REML", "ML"]) -> Fit:
    """Maximise the likelihood over the parameters that are not known."""
    with single_threaded():
        search = search_of(plan, method == "REML")
        optimum = search.minimise(search_tolerance(plan))
        fit = _describe_held(search, optimum, method)
    if not optimum.converged:
        rss, total = fit.factorisation.rss, search.plan.products.fixed[-1, -1]
        if search.coordinates.sigma in search.coordinates.free and rss < DEGENERATE * total:
            raise NoEstimateError(EXACT_EFFECTS)
        _log.warning("%s did not converge: %s", method, optimum.message)
    return fit


def _describe_held(search: HeldSearch, optimum: Optimum, method: Literal["REML", "ML"]) -> Fit:
    point = search.points(optimum.x[None])
    plan, sigma = search.plan.at(point.shapes[0]), float(point.sigma[0])
    structures = plan.products.structures
    factors = tuple(lower_factor(s, t[0]) for s, t in zip(structures, point.factors, strict=True))
    fact = factorise(plan, factors)
    cov = 2.0 * _pseudo_inverse(optimum.hessian)
    jacobian = search.slopes(search.report, optimum.x).T
    values, vectors = np.linalg.eigh(optimum.hessian)
    flat = vectors[:, np.abs(values) < FLAT_CURVATURE * plan.products.n_obs]
    lost = np.linalg.norm(jacobian @ flat, axis=1) > 1e-3
    jacobian = np.where(lost[:, None] | ~np.isfinite(jacobian), np.nan, jacobian)
    return Fit(
        method=method,
        plan=plan,
        factors=factors,
        sigma=sigma,
        beta=fact.beta,
        vcov=sigma**2 * fact.beta_root @ fact.beta_root.T,
        criterion=float(optimum.value),
        log_likelihood=-0.5 * float(optimum.value),
        parameters=search.report(optimum.x),
        parameter_cov=jacobian @ cov @ jacobian.T,
        vcov_gradient=search.slopes(search.vcov, optimum.x),
        internal_cov=cov,
        singular=any_singular(fact.factors),
        optimum=optimum,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What the search of an estimate minimises, for other searches to be set beside it.

    Attributes
    ----------
    objective : callable
        Criterion and gradient (d,) at coordinates (d,).
    start : ndarray (d,)
        Where it starts.
    minimise : callable
        The search itself, from a start.
    fit : callable
        The estimate at an optimum.
    """

    objective: Objective
    start: Array
    minimise: Callable[[Array], Optimum]
    fit: Callable[[Optimum], Fit]


def search_for(plan: Plan, method: Literal["REML", "ML"]) -> Search:
    """The search that :func:`fit_likelihood` makes."""
    reml, tolerance = method == "REML", search_tolerance(plan)
    if plan.held is not None:
        held = search_of(plan, reml)
        objective: Objective = held.signed.objective
        logs = np.isin(held.signed.coordinates.free, held.signed.log_sds)
        information, start = None, held.signed.start
        fit = partial(_describe_held, held, method=method)
    else:
        objective = partial(_criterion_and_gradient, plan, reml=reml)
        logs, information, start = plan.theta.sds, _level_counts(plan), _start(plan, reml)
        fit = partial(_describe, plan, reml=reml)

    def minimised(x: Array) -> Optimum:
        return minimise(
            objective,
            x,
            plan.products.n_obs,
            information=information,
            on_log_scale=logs,
            tolerance=tolerance,
        )

    return Search(objective, start, minimised, fit)


def search_tolerance(plan: Plan) -> float:
    """Deviance units from a minimum at which a search counts as converged."""
    return TOLERANCE if plan.split is None else ROUNDED


def working_factors(plan: Plan, theta: Array) -> list[Array]:
    """Relative factors in the working basis from their concatenated free entries."""
    return plan.theta.factors(theta)


def plan_at(plan: Plan, theta: Array) -> Plan:
    """The plan with the residuals' parameters of theta."""
    return plan.at(theta[plan.theta.shape])


def user_factors(plan: Plan, working: Sequence[Array]) -> tuple[Array, ...]:
    """Lower-triangular relative factors in the user's coordinates."""
    products = plan.products
    return tuple(
        lower_factor(s, a @ t)
        for s, a, t in zip(products.structures, products.basis.random, working, strict=True)
    )


def parameters_of_columns(fit: Fit, mixing: Sequence[Array]) -> tuple[Array, Array]:
    """Parameters and covariance matrix of an estimate as `Fit` has them, of columns ``Z @ mixing``.

    Parameters
    ----------
    fit : Fit
        A REML or ML estimate.
    mixing : sequence of ndarray (k, k)
        One matrix per grouping factor.
    """
    plan, working = fit.plan, working_factors(fit.plan, fit.optimum.x)
    bases = [np.linalg.solve(w, a) for w, a in zip(mixing, plan.products.basis.random, strict=True)]
    parameters, jacobian = report(plan, bases, working, fit.sigma)
    return parameters, _parameter_covariance(plan, jacobian, fit.internal_cov, fit.optimum)


def points_of_fits(fits: Sequence[Fit]) -> Points:
    """Covariance parameters of several estimates."""
    sigma, shapes = np.array([fit.sigma for fit in fits]), np.stack([fit.shape for fit in fits])
    return points_at([fit.factors for fit in fits], sigma, shapes, fits[0].plan.residual)


def points_at(
    factors: Sequence[tuple[Array, ...]], sigma: Array, shapes: Array, residual: Residual
) -> Points:
    """From relative factors per grouping factor, one tuple per draw, sigma (S,) and shapes."""
    stacks = [np.stack(stack) * sigma[:, None, None] for stack in zip(*factors, strict=True)]
    moments = [unit_rows(roots) for roots in stacks]
    return Points(
        sds=tuple(sds for sds, _ in moments),
        chols=tuple(rows for _, rows in moments),
        sigma=sigma,
        shapes=shapes,
        residual=residual,
        beta=np.empty((len(sigma), 0)),
    )


def profiled_sigma(fact: Factorisation, reml: bool) -> float:
    """Residual standard deviation that maximises the criterion at fixed relative factors."""
    return float(np.sqrt(fact.rss / _dof(fact.plan, reml)))


def _dof(plan: Plan, reml: bool) -> int:
    return plan.products.n_obs - (plan.products.n_fixed if reml else 0)


def _start(plan: Plan, reml: bool) -> Array:
    """Covariance matrices after one step of the EM algorithm from the residual variance.

    In the working basis, from S = TT' = I: ``S - S G S / J`` with G the derivative of the criterion
    by S, half of that by T, and J the number of levels (Laird, Ware, 1982, doi:10.2307/2529876).
    Where the arithmetic breaks down the search starts from I.
    """
    theta, grams = plan.theta, plan.products.random
    identity, moved = [np.eye(s.n_coefs) for s in theta.structures], []
    try:
        fact = factorise_working(plan, identity)
        slopes = score(fact, _dof(plan, reml) / fact.rss, restricted=reml)
        for structure, slope, gram in zip(theta.structures, slopes.factors, grams, strict=True):
            square = np.eye(structure.n_coefs) - 0.5 * slope / len(gram)
            moved.append(lower_factor(structure, np.linalg.cholesky(0.5 * (square + square.T))))
    except np.linalg.LinAlgError:
        return theta.vector(identity, plan.shape)
    return theta.vector(moved, plan.shape)


def _level_counts(plan: Plan) -> Array:
    """Number of levels behind each entry of theta: its information is of that order."""
    products = plan.products
    levels = [len(gram) for gram in products.random]
    own = np.repeat(np.array(levels, dtype=float), [s.n_theta for s in products.structures])
    return np.append(own, np.full(len(plan.shape), float(products.n_obs)))


def _factorise_at(plan: Plan, theta: Array) -> Factorisation:
    return factorise_working(plan_at(plan, theta), working_factors(plan, theta))


def _check_residual(plan: Plan, optimum: Optimum) -> None:
    """Refuse a model whose criterion falls without bound as sigma goes to zero."""
    if not np.all(np.isfinite(optimum.hessian)):
        raise NoEstimateError(
            "the likelihood cannot be maximised in double precision: the search "
            f"{optimum.message}. Remove a random-effects term, or centre and rescale covariates."
        )
    total = plan.products.fixed[-1, -1]
    if not optimum.converged and _factorise_at(plan, optimum.x).rss < DEGENERATE * total:
        raise NoEstimateError(EXACT_EFFECTS)


def _criterion_and_gradient(plan: Plan, theta: Array, reml: bool) -> tuple[float, Array]:
    fact = _factorise_at(plan, theta)
    value = reml_criterion(fact) if reml else ml_criterion(fact)
    slopes = score(fact, _dof(plan, reml) / fact.rss, restricted=reml)
    return value, plan.theta.gradient(theta, *slopes)


def _snap(plan: Plan, optimum: Optimum, reml: bool) -> Optimum:
    """Set entries near to a boundary to exactly there where the criterion permits."""
    x, value = optimum.x, optimum.value
    for entries, values in plan.theta.negligible(optimum.x, SINGULAR):
        if np.any(x[entries] != values):
            trial = x.copy()
            trial[entries] = values
            trial_value = attempt(lambda z: _criterion_and_gradient(plan, z, reml), trial)[0]
            if trial_value < value + SNAP_INCREASE:
                x, value = trial, trial_value
    if x is optimum.x:
        return optimum
    return Optimum(
        x=x,
        value=value,
        gradient=_criterion_and_gradient(plan, x, reml)[1],
        hessian=optimum.hessian,
        converged=optimum.converged,
        evaluations=optimum.evaluations,
        message=optimum.message,
    )


def _describe(plan: Plan, optimum: Optimum, reml: bool) -> Fit:
    plan = plan_at(plan, optimum.x)
    fact = _factorise_at(plan, optimum.x)
    sigma = profiled_sigma(fact, reml)
    working = working_factors(plan, optimum.x)
    factors = user_factors(plan, working)
    internal_cov = _internal_covariance(plan, fact, optimum, sigma, reml)
    parameters, jacobian = report(plan, plan.products.basis.random, working, sigma)
    root = fact.beta_root
    return Fit(
        method="REML" if reml else "ML",
        plan=plan,
        factors=factors,
        sigma=sigma,
        beta=fact.beta,
        vcov=sigma**2 * root @ root.T,
        criterion=float(optimum.value),
        log_likelihood=-0.5 * float(optimum.value),
        parameters=parameters,
        parameter_cov=_parameter_covariance(plan, jacobian, internal_cov, optimum),
        vcov_gradient=_vcov_gradient(plan, optimum.x, fact, sigma),
        internal_cov=internal_cov,
        singular=any_singular(working),
        optimum=optimum,
    )


def any_singular(working: Sequence[Array]) -> bool:
    """Whether a covariance matrix of random effects has lost rank."""
    return any(is_singular(factor, SINGULAR) for factor in working)


def _internal_covariance(
    plan: Plan, fact: Factorisation, optimum: Optimum, sigma: float, reml: bool
) -> Array:
    """Asymptotic covariance of (theta, log sigma): twice the inverse Hessian, unprofiled."""
    slopes = plan.theta.gradient(optimum.x, *rss_gradient(fact))
    mixed = -2.0 * slopes / sigma**2
    corner = 4.0 * _dof(plan, reml)
    d = len(optimum.x)
    full = np.empty((d + 1, d + 1))
    full[:d, :d] = optimum.hessian + np.outer(mixed, mixed) / corner
    full[:d, d] = full[d, :d] = mixed
    full[d, d] = corner
    return 2.0 * _pseudo_inverse(full)


def _parameter_covariance(
    plan: Plan, jacobian: Array, internal_cov: Array, optimum: Optimum
) -> Array:
    """Covariance of the reported parameters, NaN for those that move along a flat direction."""
    units = 1.0 / np.sqrt(_level_counts(plan))
    values, vectors = np.linalg.eigh(optimum.hessian * np.outer(units, units))
    flat = vectors[:, np.abs(values) < FLAT_CURVATURE] * units[:, None]
    flat /= np.maximum(np.linalg.norm(flat, axis=0), np.finfo(float).tiny)
    moves = np.linalg.norm(jacobian[:, :-1] @ flat, axis=1)
    jacobian = np.where((moves > 1e-3)[:, None], np.nan, jacobian)
    return jacobian @ internal_cov @ jacobian.T


def _pseudo_inverse(matrix: Array) -> Array:
    """Inverse on the space of positive eigenvalues, as lmerTest does for singular fits."""
    values, vectors = np.linalg.eigh(matrix)
    good = values > 1e-10 * np.max(np.abs(values), initial=0.0)
    return (vectors[:, good] / values[good]) @ vectors[:, good].T


def _vcov_gradient(plan: Plan, theta: Array, fact: Factorisation, sigma: float) -> Array:
    """Derivatives (d + 1, p, p) of sigma^2 C by (theta, log sigma), C = (X'V^-1 X)^-1.

    As dC = C X'V^-1 Z dG Z'V^-1 X C, one pass over the levels serves every parameter.
    """
    rows, places = [], plan.theta
    parts = zip(
        places.structures, places.parts(theta), fact.factors, fixed_sensitivities(fact), strict=True
    )
    for f, (structure, x, t, part) in enumerate(parts):
        by_entry = np.einsum("jap,jbq->abpq", part, t.T @ plan.products.related(f, part))
        half = np.tensordot(structure.theta_slopes(x), by_entry, 2)
        rows += list(half + half.transpose(0, 2, 1))
    root = fact.beta_root
    rows += list(_shape_slopes(plan, fact))
    rows.append(2.0 * root @ root.T)
    return sigma**2 * np.array(rows)


def _shape_slopes(plan: Plan, fact: Factorisation) -> Array:
    """Derivatives (r, p, p) of C = (X'V^-1 X)^-1 by the residuals' shape, by differences."""
    result = np.empty((len(plan.shape), len(fact.beta), len(fact.beta)))
    for i in range(len(plan.shape)):
        shift = np.zeros(len(plan.shape))
        shift[i] = SHAPE_STEP
        near = [factorise_working(plan.at(plan.shape + s), fact.factors) for s in (shift, -shift)]
        ahead, behind = (one.beta_root @ one.beta_root.T for one in near)
        result[i] = (ahead - behind) / (2.0 * SHAPE_STEP)
    return result


# --- the covariance parameters on the scale on which they are reported, and their derivatives ---


def report(
    plan: Plan, bases: Sequence[Array], working: Sequence[Array], sigma: float
) -> tuple[Array, Array]:
    """Reported covariance parameters and their Jacobian by (theta, log sigma).

    Parameters
    ----------
    plan : Plan
        The data.
    bases : sequence of ndarray (k, k)
        Maps from the working basis to the columns that the parameters are about.
    working : sequence of ndarray (k, k)
        Relative factors in the working basis.
    sigma : float
        Residual standard deviation.
    """
    values, blocks = [], []
    theta = plan.theta
    for f, (structure, a, t) in enumerate(zip(theta.structures, bases, working, strict=True)):
        value, jacobian = _report_factor(structure, a, t)
        value[: structure.n_sds] += np.log(sigma)
        block = np.zeros((len(value), theta.size + 1))
        block[:, theta.places(f)] = jacobian
        block[: structure.n_sds, -1] = 1.0
        values.append(value)
        blocks.append(block)
    value, jacobian = plan.residual.report(sigma, plan.shape)
    last = np.zeros((len(value), theta.size + 1))
    last[:, -1], last[:, theta.shape] = jacobian[:, 0], jacobian[:, 1:]
    return np.concatenate([*values, value]), np.vstack([*blocks, last])


def _report_factor(structure: Structure, basis: Array, working: Array) -> tuple[Array, Array]:
    """Log relative sds and atanh correlations of one factor, and derivatives by its theta."""
    root = basis @ working
    derivative = basis @ structure.theta_slopes(structure.theta(working))
    gram = root @ root.T
    d_gram = derivative @ root.T
    d_gram = d_gram + d_gram.transpose(0, 2, 1)
    variances = np.diag(gram)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_sds = 0.5 * np.log(variances)
        d_log_sds = 0.5 * np.diagonal(d_gram, axis1=1, axis2=2) / variances
        leaders = sd_leaders(structure)
        values, rows = list(log_sds[leaders]), list(d_log_sds.T[leaders])
        for i, j in structure.pairs:
            scale = np.sqrt(variances[i] * variances[j])
            rho = np.clip(gram[i, j] / scale, -1.0, 1.0)
            d_rho = d_gram[:, i, j] / scale - rho * (d_log_sds[:, i] + d_log_sds[:, j])
            values.append(np.arctanh(rho))
            rows.append(d_rho / (1.0 - rho**2))
    jacobian = np.array(rows)
    at_boundary = ~np.all(np.isfinite(jacobian), axis=1) | ~np.isfinite(values)
    jacobian[at_boundary] = np.nan
    return np.array(values), jacobian
