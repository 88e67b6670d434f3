"""Joint draws of everything a model does not know: what prediction and assessment work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.sampling.draw_effects import draw_effects, points_of
from bayeslmm.sampling.variables import effect_arrays
from bayeslmm.schema import BETA, u_name

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class JointDraws:
    """S joint draws of the fixed effects, the covariance parameters and the random effects.

    They come from a posterior, or from what stands for the uncertainty of an estimate.

    Attributes
    ----------
    shape : tuple of int
        Chains and draws per chain; S is their product, chains one after another.
    beta : ndarray (S, p)
        Fixed effects.
    points : Points
        Standard deviations, Cholesky factors of the correlations, sigma.
    effects : callable
        Given places of levels (one array per grouping factor), returns their random effects
        (S, m, k) per grouping factor, drawn jointly.
    """

    shape: tuple[int, int]
    beta: Array
    points: Points
    effects: Callable[[Sequence[Indices]], list[Array]]

    @property
    def size(self) -> int:
        """Number of draws S."""
        return len(self.beta)

    @property
    def sigma(self) -> Array:
        """Residual standard deviations (S,), of a row with weight one."""
        return self.points.sigma

    @property
    def roots(self) -> list[Array]:
        """Roots (S, k, k) of the covariance matrices, D chol(Omega), per grouping factor."""
        return self.points.roots

    @property
    def covariances(self) -> list[Array]:
        """Covariance matrices (S, k, k) of the coefficients per grouping factor."""
        return [root @ root.transpose(0, 2, 1) for root in self.roots]

    def take(self, rows: Indices, shape: tuple[int, int] | None = None) -> JointDraws:
        """Some of the draws, in one chain or in a given shape; each keeps its random effects."""
        effects = self.effects
        return replace(
            self,
            shape=(1, len(rows)) if shape is None else shape,
            beta=self.beta[rows],
            points=self.points.take(rows),
            effects=lambda wanted: [u[rows] for u in effects(wanted)],
        )

    def hold(self, wanted: Sequence[Indices]) -> JointDraws:
        """Itself with the random effects of some levels, in increasing order, drawn for good.

        The result has those only. Without it, calls for different levels draw independently where
        random effects are not stored.
        """
        drawn = self.effects(wanted)
        return replace(
            self,
            effects=lambda some: [
                u[:, np.searchsorted(at, levels)]
                for u, at, levels in zip(drawn, wanted, some, strict=True)
            ],
        )

    def thin(self, size: int) -> JointDraws:
        """At most `size` draws, equally spaced; itself where it has no more."""
        if self.size <= size:
            return self
        return self.take(np.linspace(0, self.size - 1, size).round().astype(np.intp))


def posterior_draws(
    design: Design, plan: Callable[[], Plan], posterior: xr.Dataset, seed: int = 0
) -> JointDraws:
    """Joint draws of a posterior.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : callable
        Returns its cross-products; called where the random effects are not stored.
    posterior : xarray.Dataset
        Draws of the public variables, with or without those of the random effects.
    seed : int
        Seed of random effects that are not stored: the same levels get the same draws.

    Returns
    -------
    JointDraws
    """
    shape = (posterior.sizes["chain"], posterior.sizes["draw"])
    beta = posterior[BETA].to_numpy().reshape(shape[0] * shape[1], design.p)
    points = points_of(design, posterior)

    def stored(wanted: Sequence[Indices]) -> list[Array]:
        arrays = effect_arrays(design, posterior)
        return [
            u.reshape(-1, *u.shape[2:])[:, levels] for u, levels in zip(arrays, wanted, strict=True)
        ]

    def drawn(wanted: Sequence[Indices]) -> list[Array]:
        return draw_effects(plan(), points, beta, wanted, np.random.default_rng(seed))

    has_draws = all(u_name(factor.key) in posterior for factor in design.random)
    return JointDraws(shape=shape, beta=beta, points=points, effects=stored if has_draws else drawn)


def all_levels(design: Design) -> list[Indices]:
    """Places of every level of every grouping factor."""
    return [np.arange(factor.n_levels) for factor in design.random]
