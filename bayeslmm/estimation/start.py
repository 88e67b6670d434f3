"""Where the search of the posterior starts: at an estimate, brought to where the priors have mass.

Priors may contradict the data, or vanish outside a narrow range. A search from the estimate alone
would start where the posterior density is zero, and a proposal of its width would miss the range.
And where the likelihood has no maximum there is no estimate, but the priors may make a mode.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.structure import Structure, unconstrained
from bayeslmm.estimation.estimate import Fit, fit_likelihood, user_factors
from bayeslmm.exceptions import NoEstimateError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.families import Prior
from bayeslmm.priors.record import Priors

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
    """The box in which draws of the priors lie; unbounded where a prior is flat.

    Attributes
    ----------
    low, high : ndarray (d,)
        Bounds of ``rotation @ x``.
    rotation : ndarray (d, d)
        From unconstrained coordinates x to those in which the priors are given: the identity but
        for fixed effects, which become centred.
    """

    low: Array
    high: Array
    rotation: Array

    def clip(self, x: Array) -> Array:
        """Nearest coordinates (d,) inside."""
        inside = np.clip(self.rotation @ x, self.low, self.high)
        return np.linalg.solve(self.rotation, inside)

    def contains(self, x: Array) -> bool:
        """Whether coordinates (d,) are inside."""
        given = self.rotation @ x
        return bool(np.all((self.low <= given) & (given <= self.high)))

    def narrow(self, root: Array) -> Array:
        """Lower root (d, d) of a covariance matrix, its sds cut to those of the priors."""
        given = self.rotation @ root
        longest = (self.high - self.low) / WIDTHS
        cut = np.minimum(1.0, longest / np.linalg.norm(given, axis=1))
        if np.all(cut == 1.0):
            return root
        back = np.linalg.solve(self.rotation, cut[:, None] * given)
        upper = np.linalg.qr(back.T, mode="r")
        return np.asarray((upper * np.sign(np.diag(upper))[:, None]).T)


def prior_ranges(structures: Sequence[Structure], priors: Priors) -> PriorRanges:
    """Ranges of 100 draws of each prior, which are the same in every call."""
    rng = np.random.default_rng(0)
    pieces: list[Array] = []
    with np.errstate(divide="ignore"):
        for structure, row in zip(structures, priors.sd, strict=True):
            pieces += [np.log(_range(prior, rng)) for prior in row]
            pieces += [EVERYWHERE] * len(structure.pairs)
        pieces.append(np.log(_range(priors.sigma, rng)))
    first = len(pieces)
    pieces += [_range(prior, rng) for prior in priors.beta if priors.beta_sampled]
    low, high = np.array(pieces).T
    rotation = np.eye(len(pieces))
    if priors.beta_sampled:
        rotation[first:, first:] = priors.centering
    return PriorRanges(low=low, high=high, rotation=rotation)


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
    beta: Array
    vcov: Array


def likelihood_start(plan: Plan, priors: Priors) -> Fit | Start:
    """The REML estimate or, where the likelihood has no maximum but priors are proper, a stand-in.

    Raises
    ------
    NoEstimateError
        If there is no estimate and sigma has a flat prior.
    """
    try:
        return fit_likelihood(plan, "REML")
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
        beta=basis.shift,
        vcov=sigma**2 * basis.fixed @ basis.fixed.T / plan.products.n_obs,
    )


def starting_point(plan: Plan, priors: Priors, fit: Fit | Start) -> Array:
    """Coordinates of an estimate, kept off the boundary and within the ranges of the priors."""
    structures = plan.products.structures
    pieces = [
        _inside(s, unconstrained(s, t, fit.sigma), np.log(fit.sigma) + np.log(np.abs(np.diag(a))))
        for s, t, a in zip(structures, fit.factors, plan.products.basis.random, strict=True)
    ]
    beta = fit.beta if priors.beta_sampled else np.zeros(0)
    estimate = np.concatenate([*pieces, [np.log(fit.sigma)], beta])
    return prior_ranges(structures, priors).clip(estimate)


def _inside(structure: Structure, eta: Array, log_unit: Array) -> Array:
    k = structure.n_coefs
    log_sds = np.maximum(eta[:k], log_unit + START_LOG_RATIO)
    return np.concatenate([log_sds, np.clip(np.nan_to_num(eta[k:]), -START_Z, START_Z)])
