"""Maxima of likelihoods where some covariance parameters are known.

Standard deviations are not relative to sigma here: known ones could not be held then. The search
moves the free coordinates of ``plan.held``, and sigma with them unless it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points, Slopes, WorkingPoints
from bayeslmm.covariance.structure import sd_leaders
from bayeslmm.estimation.optimise import Optimum, minimise
from bayeslmm.estimation.signed import LogDensity, SignedSearch, canonical, reported
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import factorise
from bayeslmm.likelihood.log_posterior import parameter_slopes
from bayeslmm.likelihood.marginal import (
    log_density_given_beta_grad,
    log_density_grad,
    log_likelihood_grad,
)

Array = NDArray[np.float64]

NEGLIGIBLE = 1e-4
"""A standard deviation that adds less than the square of this to a residual variance may be 0."""

SNAP_INCREASE = 1e-8
"""Deviance units that setting such a standard deviation to zero may cost."""

DIFFERENCE = 1e-4
"""Step of the central differences by the coordinates of the search."""

NUDGE = 1e-2
"""Smallest standard deviation, over the one that adds a residual variance, to search from."""


@dataclass(frozen=True, slots=True, eq=False)
class HeldSearch:
    """The search for the maximum of a likelihood over the free coordinates of a plan.

    Attributes
    ----------
    plan : Plan
        The data.
    reml : bool
        Restricted or full likelihood.
    signed : SignedSearch
        The coordinates that it moves.
    """

    plan: Plan
    reml: bool
    signed: SignedSearch

    @property
    def coordinates(self) -> Coordinates:
        """Coordinates of the user's columns."""
        return self.signed.coordinates

    def minimise(self, tolerance: float) -> Optimum:
        """Find the maximum; standard deviations next to zero become zero."""
        optimum = minimise_signed(self.signed, self.plan.products.n_obs, tolerance)
        x, value = optimum.x, optimum.value
        for place in np.flatnonzero(self._negligible(optimum.x)):
            trial = x.copy()
            trial[place] = 0.0
            there = self.signed.objective(trial)[0]
            if there < value + SNAP_INCREASE:
                x, value = trial, there
        if x is optimum.x:
            return optimum
        return replace(optimum, x=x, value=value, gradient=self.signed.objective(x)[1])

    def _negligible(self, z: Array) -> NDArray[np.bool_]:
        """Free coordinates (f,) that are standard deviations next to zero, but not there."""
        coordinates, point = self.coordinates, self.signed.point(z)
        pairs = zip(coordinates.structures, point.sds, strict=True)
        sds = np.concatenate([np.zeros(0), *(np.abs(sd[0, sd_leaders(s)]) for s, sd in pairs)])
        small = np.zeros(coordinates.size, dtype=bool)
        limit = NEGLIGIBLE * float(point.sigma[0]) * np.exp(log_units(self.plan, coordinates))
        small[self.signed.log_sds] = (sds > 0.0) & (sds < limit)
        return small[coordinates.free]

    def points(self, z: Array) -> Points:
        """Parameters at free coordinates (S, f)."""
        rows = [self.coordinates.to_user(canonical(self.signed.point(row))) for row in z]
        return Points(
            sds=tuple(np.concatenate(part) for part in zip(*(r.sds for r in rows), strict=True)),
            chols=tuple(
                np.concatenate(part) for part in zip(*(r.chols for r in rows), strict=True)
            ),
            sigma=np.concatenate([row.sigma for row in rows]),
            shapes=np.concatenate([row.shapes for row in rows]),
            residual=self.coordinates.residual,
            beta=np.empty((len(rows), 0)),
        )

    def vcov(self, z: Array) -> Array:
        """Covariance matrix (p, p) of beta."""
        point = self.signed.point(z)
        fact = factorise(self.plan.at(point.shapes[0]), [t[0] for t in point.factors])
        return np.asarray(point.sigma[0] ** 2 * fact.beta_root @ fact.beta_root.T)

    def slopes(self, function: Callable[[Array], Array], z: Array) -> Array:
        """Derivatives (f, ...) of a function by the free coordinates, by central differences."""
        shape = np.shape(function(z))
        result = np.empty((len(z), *shape))
        with np.errstate(invalid="ignore"):
            for i, shift in enumerate(DIFFERENCE * np.eye(len(z))):
                result[i] = (function(z + shift) - function(z - shift)) / (2.0 * DIFFERENCE)
        return result

    def report(self, z: Array) -> Array:
        """Parameters (n_covariance,) as estimates report them."""
        return reported(self.coordinates, self.points(z[None]))[0]


def search_of(plan: Plan, reml: bool) -> HeldSearch:
    """The search of a plan; the same whatever parameters of residuals the plan is made at."""
    coordinates = plan.held
    assert coordinates is not None
    plan = plan.at(np.zeros(coordinates.residual.n_shape))
    signed = SignedSearch(
        coordinates, likelihood_of(plan, reml), _start(plan, coordinates), np.zeros(0)
    )
    return HeldSearch(plan, reml, signed)


def minimise_signed(signed: SignedSearch, scale: float, tolerance: float) -> Optimum:
    """Minimise -2 log density; trivially where nothing is free."""
    if not len(signed.start):
        value, gradient = signed.objective(signed.start)
        return Optimum(
            x=signed.start,
            value=value,
            gradient=gradient,
            hessian=np.zeros((0, 0)),
            converged=bool(np.isfinite(value)),
            evaluations=1,
            message="every covariance parameter is fixed",
        )
    logs = np.isin(signed.coordinates.free, signed.log_sds)
    return minimise(signed.objective, signed.start, scale, on_log_scale=logs, tolerance=tolerance)


def likelihood_of(plan: Plan, reml: bool) -> LogDensity:
    """The log (restricted) likelihood as a function of the parameters."""
    gradient = log_density_grad if reml else log_likelihood_grad

    def density(point: WorkingPoints) -> tuple[float, Slopes]:
        here = plan.at(point.shapes[0])
        slopes = gradient(here, [t[0] for t in point.factors], float(point.sigma[0]))
        return slopes.value, parameter_slopes(point, slopes)

    return density


def _start(plan: Plan, coordinates: Coordinates) -> Array:
    """Residuals of the fixed effects as sigma, and effects that add as much; no correlations."""
    products = plan.products
    x = np.zeros(coordinates.size)
    dof = max(products.n_obs - products.n_fixed, 1)
    total = max(float(products.fixed[-1, -1]), np.finfo(float).tiny)
    x[coordinates.logs[-len(coordinates.residual.scales) :]] = 0.5 * np.log(total / dof)
    x = coordinates.complete(x[coordinates.free])
    log_sds = coordinates.logs[: -len(coordinates.residual.scales)]
    x[log_sds] = x[coordinates.sigma] + log_units(plan, coordinates)
    return coordinates.complete(x[coordinates.free])


def log_units(plan: Plan, coordinates: Coordinates) -> Array:
    """Logs of the sds over sigma, factor by factor, that add about one residual variance."""
    pairs = zip(coordinates.structures, plan.products.basis.random, strict=True)
    own = [np.log(np.abs(np.diag(a)))[sd_leaders(s)] for s, a in pairs]
    return np.concatenate([np.zeros(0), *own])


# --- profiles: one more parameter is held, at one value after the other ---


class HeldCurve:
    """Signed root of the deviance drop as a function of one coordinate.

    Parameters
    ----------
    search : HeldSearch
        The search of the estimate.
    x : ndarray (d,)
        All coordinates of the estimate.
    minimum : float
        Its criterion.
    place : int
        The coordinate.
    tolerance : float
        Of searches.
    """

    def __init__(
        self, search: HeldSearch, x: Array, minimum: float, place: int, tolerance: float
    ) -> None:
        self.search, self.minimum, self.place = search, minimum, place
        self.tolerance = tolerance
        self.states = {float(x[place]): x}

    def __call__(self, value: float) -> tuple[float, float]:
        """Root of the deviance over its minimum (nonnegative), and its derivative."""
        known = self.search.coordinates
        held = replace(known, held=tuple(sorted({**dict(known.held), self.place: value}.items())))
        nearest = min(self.states, key=lambda there: abs(there - value))
        start = held.complete(self._nudged(self.states[nearest])[held.free])
        signed = SignedSearch(held, self.search.signed.density, start, np.zeros(0))
        scale = self.search.plan.products.n_obs
        optimum = minimise_signed(signed, scale, self.tolerance)
        point = canonical(signed.point(optimum.x))
        self.states[value] = held.vector(point)[0]
        by_place = _gradient(held, self.search.signed.density, point)[self.place]
        root = float(np.sqrt(max(optimum.value - self.minimum, 0.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return root, float(np.float64(by_place) / (2.0 * root))

    def _nudged(self, x: Array) -> Array:
        """Coordinates with standard deviations away from zero."""
        search, nudged = self.search, x.copy()
        sigma = x[search.coordinates.sigma]
        floor = sigma + log_units(search.plan, search.coordinates) + np.log(NUDGE)
        places = search.signed.log_sds
        nudged[places] = np.maximum(x[places], floor)
        return nudged


def _gradient(coordinates: Coordinates, density: LogDensity, point: WorkingPoints) -> Array:
    """Gradient (d,) of -2 log density by all unconstrained coordinates."""
    x = coordinates.vector(point)[0]
    return -2.0 * coordinates.pull_back(x, density(point)[1], jacobian=False)


@dataclass(frozen=True, slots=True)
class HeldEffect:
    """Root of the deviance drop as a function of one fixed effect.

    Attributes
    ----------
    search : HeldSearch
        The search of the ML estimate.
    coef : int
        Which fixed effect.
    z : ndarray (f,)
        Coordinates of the estimate.
    minimum : float
        Its criterion.
    tolerance : float
        Of searches.
    """

    search: HeldSearch
    coef: int
    z: Array
    minimum: float
    tolerance: float

    def __call__(self, value: float) -> tuple[float, float]:
        """Root of the deviance over its minimum (nonnegative), and its derivative."""
        search, plan = self.search, self.search.plan
        last = np.zeros(1)

        def density(point: WorkingPoints) -> tuple[float, Slopes]:
            here, factors = plan.at(point.shapes[0]), [t[0] for t in point.factors]
            sigma, fact = float(point.sigma[0]), factorise(here, factors)
            row = fact.beta_root[self.coef]
            gap = (value - fact.beta[self.coef]) / float(row @ row)
            last[0] = gap / sigma**2
            beta = fact.beta + fact.beta_root @ row * gap
            slopes = log_density_given_beta_grad(here, factors, sigma, beta)
            return slopes.value, replace(parameter_slopes(point, slopes), gamma=np.zeros(0))

        start = search.coordinates.vector(canonical(search.signed.point(self.z)))[0]
        floor = start[search.coordinates.sigma] + log_units(plan, search.coordinates)
        places = search.signed.log_sds
        start[places] = np.maximum(start[places], floor + np.log(NUDGE))
        signed = SignedSearch(search.coordinates, density, start, np.zeros(0))
        optimum = minimise_signed(signed, plan.products.n_obs, self.tolerance)
        signed.objective(optimum.x)
        root = float(np.sqrt(max(optimum.value - self.minimum, 0.0)))
        with np.errstate(divide="ignore", invalid="ignore"):
            return root, float(last[0] / np.float64(root))
