"""A point estimate given observed rows of new levels, at its covariance parameters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.prediction.rows import Rows
from bayeslmm.sampling.estimate_draws import point_draws
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import mode_arrays

Array = NDArray[np.float64]


def updated_point(design: Design, fit: Fit, seen: Rows) -> tuple[JointDraws, list[Array]]:
    """Fixed effects and conditional modes given old and observed rows.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate, whose covariance parameters are held.
    seen : Rows
        Observed rows.

    Returns
    -------
    point : JointDraws
        One draw with the fixed effects and the modes of the known levels.
    fresh : list of ndarray (1, m, k)
        Modes of the new levels per grouping factor.
    """
    extended = replace(fit, plan=marginal_system(_extended(design, seen.design)))
    if not fit.given_beta:
        extended = replace(extended, beta=extended.factorisation.beta)
    modes = mode_arrays(extended)
    known = [u[: factor.n_levels] for u, factor in zip(modes, design.random, strict=True)]
    fresh = [u[factor.n_levels :][None] for u, factor in zip(modes, design.random, strict=True)]
    return point_draws(extended, known), fresh


def _extended(design: Design, seen: Design) -> Design:
    """The rows of a design followed by those of the same model on other data."""
    weights = None
    if design.weights is not None or seen.weights is not None:
        weights = np.concatenate([_weights(design), _weights(seen)])
    pairs = zip(design.random, seen.random, strict=True)
    return replace(
        design,
        y=np.concatenate([design.y, seen.y]),
        offset=np.concatenate([design.offset, seen.offset]),
        weights=weights,
        X=np.concatenate([design.X, seen.X]),
        random=tuple(_extended_factor(factor, other) for factor, other in pairs),
    )


def _extended_factor(factor: RandomFactor, other: RandomFactor) -> RandomFactor:
    return replace(
        factor,
        levels=np.concatenate([factor.levels, other.new_levels]),
        codes=np.concatenate([factor.codes, other.extended_codes]),
        Z=np.concatenate([factor.Z, other.Z]),
    )


def _weights(design: Design) -> Array:
    return np.ones(design.n) if design.weights is None else design.weights
