"""Covariance parameters as nlme reports them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import joint_parameter, random_parameters
from bayeslmm.summaries.variance_explained import Quantity

Array = NDArray[np.float64]


def nlme_quantity(design: Design) -> Quantity:
    """Random effects as they are, then nlme's numbers for the structure of the residuals.

    Its `sigma` is the standard deviation where all variance covariates are zero (of logarithms:
    one), in the first stratum; those of other strata are ratios to it.
    """
    spec = design.spec.residual
    names = ["sigma"] if spec is None else spec.nlme_names
    rows = random_parameters(design)
    index = pd.Index([*(row.label for row in rows), *names], name="parameter")

    def values(joint: JointDraws) -> Array:
        sds, powers, cors = joint.points.natural
        residual = sds if spec is None else spec.nlme(sds, powers, cors)
        random = [joint_parameter(joint, row) for row in rows]
        return np.column_stack([*random, residual])

    return Quantity(index, values)
