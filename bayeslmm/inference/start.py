"""Where the search for a posterior mode starts: at the REML estimate, if there is one."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.exceptions import NoEstimateError
from bayeslmm.inference.estimate import Fit, fit_likelihood, user_factors
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]

_log = logging.getLogger(__name__)

PRIOR_DRAWS = 101
"""Draws of sigma from its prior whose median is a start."""


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
