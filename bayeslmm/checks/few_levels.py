"""Standard deviations whose size the data do not bound: too few levels beside the fixed effects."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.summaries.parameters import covariance_parameters

Array = NDArray[np.float64]

ENOUGH = 2
"""Directions of the effects, beside the fixed effects, from which on the likelihood falls off fast
enough in a standard deviation that the data bound it above: it falls as the power -ENOUGH."""

NEW = 1e-8
"""Share of a squared length that counts as a direction of its own."""


def unbounded_parameters(design: Design) -> dict[str, str]:
    """Covariance parameters whose posterior is mostly the prior, each with the reason in words.

    With `r` directions of a coefficient's random effects left beside the fixed effects, the
    likelihood falls off as the power `-r` of its standard deviation: at `r` of one or less it
    cannot be normalised, so the upper end of the posterior is the prior's. Two levels and an
    intercept leave one.

    Parameters
    ----------
    design : Design
        The design of the model.

    Returns
    -------
    dict
        By label: those standard deviations and the correlations of their coefficients.
    """
    found = {}
    for row in covariance_parameters(design)[:-1]:
        factor = design.random[row.factor]
        fewest = min(_directions(design, factor, column) for column in row.index)
        if fewest < ENOUGH:
            found[row.label] = _reason(row.label, factor, fewest)
    return found


def _directions(design: Design, factor: RandomFactor, column: int) -> int:
    """Directions of a coefficient's effects beside the fixed effects; at most :data:`ENOUGH`."""
    used = np.unique(factor.codes[factor.Z[:, column] != 0.0])
    if len(used) - design.p >= ENOUGH:
        return ENOUGH
    columns = np.where(factor.codes[:, None] == used, factor.Z[:, [column]], 0.0)
    columns /= np.linalg.norm(columns, axis=0)
    q = np.linalg.qr(design.X / np.linalg.norm(design.X, axis=0))[0]
    left = columns - q @ (q.T @ columns)
    own = np.linalg.eigvalsh(left.T @ left) > NEW
    return min(ENOUGH, int(own.sum()))


def _reason(label: str, factor: RandomFactor, directions: int) -> str:
    left = "one difference" if directions else "nothing"
    return (
        f"{label}: beside the fixed effects the {factor.n_levels} levels of {factor.name} leave "
        f"{left} to learn it from, so the data set it no upper limit and its posterior is mostly "
        "its prior. Report it as that, or take the levels as fixed."
    )
