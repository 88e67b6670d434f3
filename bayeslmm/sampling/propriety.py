"""Whether the posterior density is proper where priors are flat."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.estimation.start import log_units
from bayeslmm.exceptions import PriorError
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.priors.record import Priors, sd_label
from bayeslmm.sampling.importance import LogDensity

Array = NDArray[np.float64]

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
    return point


def _flat_scales(priors: Priors) -> dict[int, str]:
    """Coordinates of standard deviations (and sigma) with flat priors, and their names."""
    coordinates, found = priors.coordinates, {}
    for f, (factor, coefs) in enumerate(zip(priors.factors, priors.factor_coefs, strict=True)):
        for i, prior in enumerate(priors.sd[f]):
            if not prior.proper:
                found[coordinates.sds(f).start + i] = sd_label(factor, coefs[i])
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
