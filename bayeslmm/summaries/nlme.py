"""Covariance parameters as nlme reports them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.parameters import random_parameters
from bayeslmm.summaries.variance_explained import Quantity

Array = NDArray[np.float64]


def nlme_quantity(design: Design) -> Quantity:
    """Random effects as they are, then nlme's numbers for the structure of the residuals.

    Its `sigma` is the standard deviation where all variance covariates are zero (of logarithms:
    one), in the first stratum; those of other strata are ratios to it.
    """
    spec = design.spec.residual
    names = ["sigma"] if spec is None else spec.nlme_names
    index = pd.Index([*(p.label for p in random_parameters(design)), *names], name="parameter")

    def values(joint: JointDraws) -> Array:
        sds, powers, cors = joint.points.natural
        residual = sds if spec is None else spec.nlme(sds, powers, cors)
        return np.column_stack([_random(design, joint), residual])

    return Quantity(index, values)


def _random(design: Design, joint: JointDraws) -> Array:
    """Standard deviations and correlations (S, m) of the random effects."""
    columns = []
    for row in random_parameters(design):
        covariance, index = joint.covariances[row.factor], row.index
        sds = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        if row.kind == "sd":
            columns.append(sds[:, index[0]])
        else:
            with np.errstate(invalid="ignore"):
                product = sds[:, index[0]] * sds[:, index[1]]
                columns.append(covariance[:, index[0], index[1]] / product)
    return np.stack(columns, axis=1) if columns else np.empty((joint.size, 0))
