"""One marginal density as functions without arguments: the gate's only knowledge of the layers.

A rebuild that moves the density changes this file; the gate takes each checkout's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bayeslmm.likelihood.marginal import log_density, log_density_grad, marginal_system


def densities(model: Any, reml: Any) -> tuple[Callable[[], float], Callable[[], float]]:
    """Log density at a REML estimate of random intercepts: alone, and with its gradient.

    Both return the value, so that they can be held against each other and another checkout.
    """
    plan = marginal_system(model.design)
    factors = [np.array([[float(sd.iloc[0]) / reml.sigma]]) for sd in reml.sds.values()]
    sigma = float(reml.sigma)
    return (
        lambda: float(log_density(plan, factors, sigma)),
        lambda: float(log_density_grad(plan, factors, sigma)[0]),
    )
