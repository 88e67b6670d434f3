"""Draws of what makes residuals other than normal with one scale: tails, predictors of the scale.

The residual of row i has the scale ``sigma_i = exp(W_i gamma + Z_i v)``, or sigma, over the root of
its weight. A normal residual has it for its standard deviation; that of a Student-t residual is
``sigma_i sqrt(nu / (nu - 2))``, infinite for nu <= 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Family = Literal["gaussian", "student"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScalePoints:
    """S points of the parameters of such residuals.

    Attributes
    ----------
    nu : ndarray (S,) or None
        Degrees of freedom; None where residuals are normal.
    gamma : ndarray (S, q)
        Coefficients of the log scale; q = 0 where all rows have one scale.
    sds : tuple of ndarray (S, k)
        Standard deviations of the random effects v per grouping factor.
    chols : tuple of ndarray (S, k, k)
        Roots of their correlation matrices.
    effects : tuple of ndarray (S, J, k)
        The random effects v.
    """

    nu: Array | None
    gamma: Array
    sds: tuple[Array, ...] = ()
    chols: tuple[Array, ...] = ()
    effects: tuple[Array, ...] = ()

    @property
    def roots(self) -> list[Array]:
        """Roots (S, k, k) of the covariance matrices of v per grouping factor."""
        pairs = zip(self.sds, self.chols, strict=True)
        return [sd[:, :, None] * chol for sd, chol in pairs]

    @property
    def one_scale(self) -> bool:
        """Whether all rows have one scale."""
        return self.gamma.shape[1] == 0

    @property
    def stretch(self) -> Array | float:
        """Standard deviation over scale (S,): one for normal residuals, else at least one."""
        if self.nu is None:
            return 1.0
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.nu > 2.0, np.sqrt(self.nu / (self.nu - 2.0)), np.inf)

    def take(self, rows: slice | Indices) -> ScalePoints:
        """Some of the points."""
        return ScalePoints(
            nu=None if self.nu is None else self.nu[rows],
            gamma=self.gamma[rows],
            sds=tuple(sds[rows] for sds in self.sds),
            chols=tuple(chols[rows] for chols in self.chols),
            effects=tuple(effects[rows] for effects in self.effects),
        )

    def with_effects(self, effects: Sequence[Array]) -> ScalePoints:
        """Other random effects."""
        return replace(self, effects=tuple(effects))

    def noise(self, rng: np.random.Generator, n: int) -> Array:
        """Draws (S, n) of residuals of scale one."""
        size = len(self.gamma)
        normal = rng.standard_normal((size, n))
        if self.nu is None:
            return normal
        return normal / np.sqrt(rng.chisquare(self.nu[:, None], (size, n)) / self.nu[:, None])

    def log_density(self, standard: Array) -> Array:
        """Log density (S, n) of residuals of scale one."""
        if self.nu is None:
            return np.asarray(-0.5 * (np.log(2.0 * np.pi) + standard**2))
        return student_log_density(self.nu[:, None], standard)


def student_log_density(nu: Array, x: Array) -> Array:
    """Log density of Student's t distribution with nu degrees of freedom."""
    constant = gammaln(0.5 * (nu + 1.0)) - gammaln(0.5 * nu) - 0.5 * np.log(nu * np.pi)
    return np.asarray(constant - 0.5 * (nu + 1.0) * np.log1p(x**2 / nu))
