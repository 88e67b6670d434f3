"""Coordinate-wise transformations that make skewed posterior densities nearly elliptical.

A log standard deviation has an exponential left tail wherever zero is possible. Different powers
to the left and to the right of a centre straighten such tails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POWERS = (0.35, 0.5, 0.7, 0.85, 1.0, 1.2, 1.45)
"""Powers tried on each side; one half turns an exponential tail into a Gaussian one."""

N_QUANTILES = 600
"""Weighted quantiles that the powers are fitted to."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Warp:
    """Two-sided power transformation of u = (x - centre) / scale.

    ``y = ((1 + u)^right - 1) / right`` for u >= 0, ``y = -((1 - u)^left - 1) / left`` below.

    Attributes
    ----------
    centre, scale, left, right : ndarray (d,)
        One of each per coordinate; powers are positive.

    References
    ----------
    Yeo, Johnson (2000), doi:10.1093/biomet/87.4.954, with two free powers.
    """

    centre: Array
    scale: Array
    left: Array
    right: Array

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Transformed points (S, d) and the log Jacobian (S,) of the transformation."""
        u = (x - self.centre) / self.scale
        power = np.where(u >= 0, self.right, self.left)
        log_size = np.log1p(np.abs(u))
        y = np.sign(u) * np.expm1(power * log_size) / power
        log_jacobian = np.sum((power - 1.0) * log_size - np.log(self.scale), axis=1)
        return y, log_jacobian

    def inverse(self, y: Array) -> Array:
        """Points (S, d) whose transforms are `y`."""
        power = np.where(y >= 0, self.right, self.left)
        u = np.sign(y) * np.expm1(np.log1p(power * np.abs(y)) / power)
        return self.centre + self.scale * u


def identity_warp(d: int) -> Warp:
    """Transformation that changes nothing."""
    return Warp(centre=np.zeros(d), scale=np.ones(d), left=np.ones(d), right=np.ones(d))


def fit_warp(x: Array, weights: Array) -> Warp:
    """Powers under which weighted points (S, d) are as Gaussian as can be, per coordinate.

    Parameters
    ----------
    x : ndarray (S, d)
        Points.
    weights : ndarray (S,)
        Their weights, which sum to one.

    Returns
    -------
    Warp
    """
    columns = [_fit_coordinate(_quantiles(column, weights)) for column in x.T]
    centre, scale, left, right = np.array(columns).T
    return Warp(centre=centre, scale=scale, left=left, right=right)


def _quantiles(column: Array, weights: Array) -> Array:
    order = np.argsort(column)
    reached = np.cumsum(weights[order])
    levels = (np.arange(N_QUANTILES) + 0.5) / N_QUANTILES
    return np.interp(levels * reached[-1], reached, column[order])


def _fit_coordinate(points: Array) -> tuple[float, float, float, float]:
    """Centre, scale, left and right power by Gaussian profile likelihood."""
    lower, centre, upper = np.quantile(points, [0.16, 0.5, 0.84])
    scale = max(0.5 * (upper - lower), 1e-12)
    u = (points - centre) / scale
    # Each side contributes sums that do not depend on the power of the other.
    left, right = (_side_sums(np.abs(u[side])) for side in (u < 0, u >= 0))
    n = len(u)
    mean = (right[0] - left[0][:, None]) / n
    variance = (right[1] + left[1][:, None]) / n - mean**2
    value = (right[2] + left[2][:, None]) / n - 0.5 * np.log(np.maximum(variance, 1e-300))
    best = np.unravel_index(np.argmax(value), value.shape)
    return float(centre), float(scale), POWERS[best[0]], POWERS[best[1]]


def _side_sums(size: Array) -> tuple[Array, Array, Array]:
    """Sums of transformed sizes, of their squares and of log Jacobians, one per power."""
    power = np.array(POWERS)[:, None]
    log_size = np.log1p(size)
    y = np.expm1(power * log_size) / power
    return y.sum(axis=1), np.sum(y**2, axis=1), np.sum((power - 1.0) * log_size, axis=1)
