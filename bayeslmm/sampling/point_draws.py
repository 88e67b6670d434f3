"""A point estimate as a single draw, so that it goes through what draws go through."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.estimation.estimate import Fit
from bayeslmm.sampling.estimate_draws import points_of_fits
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]


def point_draws(fit: Fit, modes: Sequence[Array]) -> JointDraws:
    """The estimate as one draw, with the conditional modes (J, k) as random effects."""
    return JointDraws(
        shape=(1, 1),
        beta=fit.beta[None],
        points=points_of_fits([fit]),
        effects=lambda wanted: [u[levels][None] for u, levels in zip(modes, wanted, strict=True)],
    )
