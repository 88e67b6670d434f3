"""Searches in coordinates in which a standard deviation of zero is an interior point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Coordinates, Points, Slopes, WorkingPoints
from bayeslmm.covariance.structure import sd_leaders

Array = NDArray[np.float64]
LogDensity = Callable[[WorkingPoints], tuple[float, Slopes]]
"""Log density and its derivatives at a single point."""


class SignedSearch:
    """Coordinates in which a standard deviation of zero is an interior point.

    Standard deviations are in units of their starting value. They carry a sign, which the density
    ignores, or are squares where the structure does not allow that sign; gamma, where beta is
    sampled, is in units of its standard error; the parameters of residuals are as they are. Known
    coordinates are left out.

    Parameters
    ----------
    coordinates : Coordinates
        Of the parameters.
    density : callable
        What is maximised.
    start : ndarray (d,)
        Unconstrained coordinates.
    gamma_scale : ndarray (p,)
        Standard errors of gamma; empty where beta is integrated out.
    """

    def __init__(
        self, coordinates: Coordinates, density: LogDensity, start: Array, gamma_scale: Array
    ) -> None:
        self.coordinates, self.density, self.gamma_scale = coordinates, density, gamma_scale
        structures = coordinates.structures
        self.log_sds = coordinates.logs[: -len(coordinates.residual.scales)]
        even = np.concatenate([np.zeros(0, dtype=bool), *(s.even for s in structures)])
        self.powers = np.where(even, 1.0, 2.0)
        self.scales = np.exp(start[self.log_sds])
        self._full = start.copy()
        self._full[self.log_sds] = 1.0
        self._full[coordinates.beta] /= gamma_scale
        self.start: Array = self._full[coordinates.free]

    def full(self, z: Array) -> Array:
        """All coordinates (d,), known ones among them, of this search."""
        x = self._full.copy()
        x[self.coordinates.free] = z
        return x

    def point(self, z: Array) -> WorkingPoints:
        """Parameters, standard deviations with their sign, at free coordinates (f,)."""
        x = self.full(z)
        plain = x.copy()
        plain[self.log_sds] = 0.0
        plain[self.coordinates.beta] *= self.gamma_scale
        point = self.coordinates.points(plain[None])
        sds = np.split(x[self.log_sds] ** self.powers * self.scales, self._cuts)[:-1]
        places = [structure.sd_places for structure in self.coordinates.structures]
        return replace(point, sds=tuple(own[None, at] for own, at in zip(sds, places, strict=True)))

    @property
    def _cuts(self) -> Array:
        sizes = [structure.n_sds for structure in self.coordinates.structures]
        return np.cumsum(sizes, dtype=np.intp)

    def objective(self, z: Array) -> tuple[float, Array]:
        """-2 log density and its gradient."""
        x = self.full(z)
        value, slope = self.density(self.point(z))
        plain = x.copy()
        plain[self.log_sds] = 0.0
        gradient = self.coordinates.pull_back(plain, slope, jacobian=False)
        gradient[self.log_sds] *= self.powers * x[self.log_sds] ** (self.powers - 1.0) * self.scales
        gradient[self.coordinates.beta] *= self.gamma_scale
        return -2.0 * value, -2.0 * gradient[self.coordinates.free]


def canonical(point: WorkingPoints) -> WorkingPoints:
    """Nonnegative standard deviations, zero where negligible; positive diagonals."""
    sds, chols = [], []
    for sd, chol in zip(point.sds, point.chols, strict=True):
        signs = np.where(sd < 0, -1.0, 1.0)
        sds.append(np.abs(sd))
        chols.append(signs[:, :, None] * chol * signs[:, None, :])
    return replace(point, sds=tuple(sds), chols=tuple(chols))


def reported(coordinates: Coordinates, points: Points) -> Array:
    """Parameters (S, n_covariance) of the user's columns as estimates report them.

    Logs of distinct standard deviations, then inverse hyperbolic tangents of the correlations that
    determine the others, per grouping factor; those of the residuals.
    """
    pieces: list[Array] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for structure, sds, chol in zip(
            coordinates.structures, points.sds, points.chols, strict=True
        ):
            corr = chol @ chol.swapaxes(1, 2)
            rho = [np.clip(corr[:, i, j], -1.0, 1.0) for i, j in structure.pairs]
            distinct = sds[:, sd_leaders(structure)]
            pieces += [np.log(distinct), *(np.arctanh(r)[:, None] for r in rho)]
        residual_sds, powers, cors = points.natural
        return np.concatenate([*pieces, np.log(residual_sds), powers, np.arctanh(cors)], axis=1)
