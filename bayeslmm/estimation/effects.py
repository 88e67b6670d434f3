"""Quantities linear in the fixed and random effects: linear predictor, coefficients by level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design

Array = NDArray[np.float64]


def linear_predictor(design: Design, beta: Array, u: Sequence[Array] | None) -> Array:
    """Offset + X beta + Z u at the rows of a design, for one draw or many.

    Parameters
    ----------
    design : Design
        The design.
    beta : ndarray (..., p)
        Fixed effects.
    u : sequence of ndarray (..., J, k) or None
        Random effects per grouping factor; None leaves them at zero.

    Returns
    -------
    ndarray (..., n)
    """
    result = np.asarray(beta @ design.X.T + design.offset)
    for factor, effects in zip(design.random, u or (), strict=u is not None):
        for codes, z, _ in factor.slots:
            for c in range(factor.n_coefs):
                result += effects[..., codes, c] * z[:, c]
    return result


def effect_frames(design: Design, values: Sequence[Array]) -> dict[str, pd.DataFrame]:
    """One data frame of levels by coefficients per grouping factor from arrays (J, k).

    The columns are those that each level has: with ``by=``, those of its stratum.
    """
    return {
        factor.name: pd.DataFrame(
            factor.own(value),
            index=pd.Index(factor.levels, name=factor.name),
            columns=list(factor.own_coefs),
        )
        for factor, value in zip(design.random, values, strict=True)
    }


def coefficient_frames(design: Design, beta: Array, u: Sequence[Array]) -> dict[str, pd.DataFrame]:
    """Fixed plus random effects by level, every fixed effect a column (lme4's ``coef``).

    A random coefficient without a fixed counterpart has its own column, with a fixed effect of
    zero.
    """
    fixed = dict(zip(design.coefs, beta, strict=True))
    frames = effect_frames(design, u)
    for factor in design.random:
        columns = [*design.coefs, *(c for c in factor.own_coefs if c not in fixed)]
        frame = frames[factor.name].reindex(columns=columns, fill_value=0.0)
        frames[factor.name] = frame + pd.Series({c: fixed.get(c, 0.0) for c in columns})
    return frames
