"""PyMC variables of the residuals' distribution: predictors of their log scale, Student-t tails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt

from bayeslmm.data.design import Design
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.tree import RESPONSE
from bayeslmm.sampling.variables import covariance_root, variable
from bayeslmm.schema import (
    BETA_SIGMA,
    NU,
    OBS_DIM,
    SIGMA,
    SIGMA_COEF_DIM,
    coef_dim,
    level_dim,
    u_name,
)

SCALE = f"_{SIGMA}"
"""The scale at the column means of its predictors, where it has any."""


def scale_of_rows(design: Design, priors: Priors, spread: float) -> Any:
    """Scales of the residuals (n,), or () where all rows have one, without their weights."""
    rows, spec = design.scale_rows, design.spec.scale
    if rows is None or spec is None or priors.scale is None:
        return variable(SIGMA, (priors.sigma,), None, spread)
    sigma = variable(SCALE, (priors.sigma,), None, spread)
    own = [pt.log(sigma)[None]]
    if priors.scale.gamma:
        own.append(variable(f"_{BETA_SIGMA}", priors.scale.gamma, None, 0.0, vector=True))
    inverse = np.linalg.inv(priors.scale.fixed_map)
    gamma = pm.Deterministic(BETA_SIGMA, pt.dot(inverse, pt.concatenate(own)), dims=SIGMA_COEF_DIM)
    log_scale = pt.dot(pm.Data("_W", rows.W, dims=(OBS_DIM, SIGMA_COEF_DIM)), gamma)
    assert priors.scale_labels is not None
    for f, factor in enumerate(rows.random):
        structure, mixing = priors.scale_labels.structures[f], priors.scale.mixing[f]
        root = covariance_root(
            factor, structure, mixing, priors.scale.sd[f], priors.scale.cor[f], 1.0
        )
        dims = (coef_dim(factor.key), level_dim(factor.key))
        z = pm.Normal(f"_z_{factor.key}", 0.0, 1.0, dims=dims)
        effects = pm.Deterministic(u_name(factor.key), pt.dot(pt.dot(mixing, root), z), dims=dims)
        log_scale = log_scale + pt.sum(factor.Z * effects.T[factor.codes], axis=1)
    return pt.exp(log_scale)


def residual_distribution(mu: Any, scale: Any, priors: Priors, observed: Any) -> Any:
    """The response around its mean: normal, or Student-t where the model says so."""
    if priors.scale is None or priors.scale.nu is None:
        return pm.Normal(RESPONSE, mu, scale, observed=observed, dims=OBS_DIM)
    nu = variable(NU, (priors.scale.nu,), None, None)
    return pm.StudentT(RESPONSE, nu=nu, mu=mu, sigma=scale, observed=observed, dims=OBS_DIM)
