"""Where the search of the posterior starts: at an estimate, brought to where the priors have mass.

Priors may contradict the data, or vanish outside a narrow range. A search from the estimate alone
would start where the posterior density is zero, and a proposal of its width would miss the range.
And where the likelihood has no maximum there is no estimate, but the priors may make a mode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points, unit_rows
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import lower_factor, sd_leaders
from bayeslmm.estimation.estimate import Fit, fit_likelihood, user_factors
from bayeslmm.exceptions import NoEstimateError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.families import LKJ, Fixed, Prior
from bayeslmm.priors.record import Priors, uniform_correlations

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

START_LOG_RATIO = -3.0
"""Smallest log standard deviation to start from, relative to sigma over the covariate's length."""

START_Z = 2.0
"""Largest correlation coordinate to start from."""

PRIOR_DRAWS = 100
"""Draws of a prior whose range stands for where it has its mass."""

WIDTHS = 4.0
"""The range of so many draws in standard deviations: 3.4 where uniform, 5 where normal."""

EVERYWHERE = np.array([-np.inf, np.inf])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PriorRanges:
    """The box of unconstrained coordinates in which draws of the priors lie.

    Attributes
    ----------
    low, high : ndarray (d,)
        Bounds; infinite where a prior is flat.
    """

    low: Array
    high: Array

    def clip(self, x: Array) -> Array:
        """Nearest coordinates (d,) inside."""
        return np.clip(x, self.low, self.high)

    def take(self, places: NDArray[np.intp]) -> PriorRanges:
        """The box of some of the coordinates."""
        return PriorRanges(low=self.low[places], high=self.high[places])

    def contains(self, x: Array) -> bool:
        """Whether coordinates (d,) are inside."""
        return bool(np.all((self.low <= x) & (x <= self.high)))

    def narrow(self, root: Array) -> Array:
        """Lower root (d, d) of a covariance matrix, its sds cut to those of the priors."""
        longest = (self.high - self.low) / WIDTHS
        cut = np.minimum(1.0, longest / np.linalg.norm(root, axis=1))
        return root if np.all(cut == 1.0) else cut[:, None] * root


def prior_ranges(priors: Priors) -> PriorRanges:
    """Ranges of 100 draws of each prior, which are the same in every call."""
    rng = np.random.default_rng(0)
    coordinates = priors.coordinates
    box = np.tile(EVERYWHERE, (coordinates.size, 1))
    with np.errstate(divide="ignore"):
        for f, row in enumerate(priors.sd):
            box[coordinates.sds(f)] = [np.log(_range(prior, rng)) for prior in row]
            box[coordinates.cors(f)] = _correlation_ranges(priors, f, rng)
        box[coordinates.sigma] = np.log(_range(priors.sigma, rng))
    if priors.beta_sampled:
        box[coordinates.beta] = [_range(prior, rng) for prior in priors.beta]
    box[coordinates.held_places] = coordinates.held_values[:, None]
    return PriorRanges(low=box[:, 0], high=box[:, 1])


def _correlation_ranges(priors: Priors, factor: int, rng: np.random.Generator) -> Array:
    """Ranges (n_cors, 2) of the coordinates of correlations: of patterns with the user's priors."""
    parts, pieces = priors.structures[factor].parts, [np.empty((0, 2))]
    for part, prior in zip(parts, priors.cor[factor], strict=True):
        own = EVERYWHERE
        plain = isinstance(prior, Fixed) or prior == uniform_correlations(part)
        if isinstance(part, Pattern) and not plain:
            assert prior is not None and not isinstance(prior, LKJ)
            own = part.coordinates_at(_range(prior, rng))
        pieces.append(np.tile(own, (part.n_cors, 1)))
    return np.concatenate(pieces)


def _range(prior: Prior, rng: np.random.Generator) -> Array:
    """Lowest and highest of some draws; the support where there are none."""
    support = np.array([0.0 if prior.positive else -np.inf, np.inf])
    if not prior.proper:
        return support
    try:
        draws = prior.sample(rng, PRIOR_DRAWS)
    except NotImplementedError:  # a density that the user gave without a generator
        return support
    return np.array([draws.min(), draws.max()])


class Start(NamedTuple):
    """Parameters in the middle of the priors and the data, named as those of a ``Fit``."""

    factors: tuple[Array, ...]
    sigma: float
    shape: Array
    beta: Array
    vcov: Array


def likelihood_start(
    plan: Plan, priors: Priors, reml: Callable[[], Fit] | None = None
) -> Fit | Start:
    """The REML estimate or, where the likelihood has no maximum but priors are proper, a stand-in.

    `reml` returns the estimate where it is computed elsewhere.

    Raises
    ------
    NoEstimateError
        If there is no estimate and sigma has a flat prior.
    """
    try:
        return fit_likelihood(plan, "REML") if reml is None else reml()
    except NoEstimateError as error:
        if not priors.sigma.proper:
            raise
        reason = str(error).split(":")[0]
    _log.warning("REML has no estimate (%s): searching the mode under the priors instead.", reason)
    basis = plan.products.basis
    sigma = float(np.median(priors.sigma.sample(np.random.default_rng(0), PRIOR_DRAWS)))
    return Start(
        factors=user_factors(plan, [np.eye(s.n_coefs) for s in plan.products.structures]),
        sigma=sigma,
        shape=plan.shape,
        beta=basis.shift,
        vcov=sigma**2 * basis.fixed @ basis.fixed.T / plan.products.n_obs,
    )


def starting_point(plan: Plan, priors: Priors, fit: Fit | Start) -> Array:
    """Coordinates of an estimate, kept off the boundary and within the ranges of the priors."""
    coordinates = priors.coordinates
    x = np.nan_to_num(vector_of(coordinates, fit), neginf=-np.inf)
    units = log_units(plan, coordinates)
    for f in range(len(coordinates.structures)):
        floor = np.log(fit.sigma) + units[coordinates.sds(f)] + START_LOG_RATIO
        x[coordinates.sds(f)] = np.maximum(x[coordinates.sds(f)], floor)
        x[coordinates.cors(f)] = np.clip(x[coordinates.cors(f)], -START_Z, START_Z)
    return prior_ranges(priors).clip(x)


def vector_of(coordinates: Coordinates, fit: Fit | Start) -> Array:
    """Coordinates (d,) of an estimate; not finite where it is at a boundary."""
    roots = [fit.sigma * t[None] for t in fit.factors]
    lower = [lower_factor(s, t) for s, t in zip(coordinates.structures, roots, strict=True)]
    sds, chols = zip(*(unit_rows(root) for root in lower), strict=True) if lower else ((), ())
    user = Points(
        sds=sds,
        chols=chols,
        sigma=np.array([fit.sigma]),
        shapes=fit.shape[None],
        residual=coordinates.residual,
        beta=fit.beta[None],
    )
    return coordinates.vector(coordinates.to_working(user))[0]


def log_units(plan: Plan, coordinates: Coordinates) -> Array:
    """Logs (d,) of the sds over sigma at which working columns add about one residual variance.

    Zero for everything but standard deviations.
    """
    units = np.zeros(coordinates.size)
    for f, (w, a) in enumerate(zip(coordinates.mixing, plan.products.basis.random, strict=True)):
        own = np.log(np.abs(np.diag(np.linalg.solve(w, a))))
        units[coordinates.sds(f)] = own[sd_leaders(coordinates.structures[f])]
    return units
