"""Draws of single parameters out of joint draws, from a posterior or a prior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import Parameter

Array = NDArray[np.float64]


def joint_parameter(joint: JointDraws, row: Parameter) -> Array:
    """Draws (S,) of one parameter; correlations in [-1, 1] in spite of rounding."""
    points = joint.points
    return _values(joint.beta, points.sds, points.chols, points.sigma, row)


def prior_parameter(prior: Points, row: Parameter) -> Array:
    """Draws (S,) of one parameter from its prior, correlations likewise."""
    return _values(prior.beta, prior.sds, prior.chols, prior.sigma, row)


def _values(
    beta: Array, sds: Sequence[Array], chols: Sequence[Array], sigma: Array, row: Parameter
) -> Array:
    if row.kind == "beta":
        return beta[:, row.index[0]]
    if row.kind == "sd":
        return sds[row.factor][:, row.index[0]]
    if row.kind == "cor":
        pair = chols[row.factor][:, list(row.index)]
        return np.clip(np.sum(pair[:, 0] * pair[:, 1], axis=1), -1.0, 1.0)
    return sigma
