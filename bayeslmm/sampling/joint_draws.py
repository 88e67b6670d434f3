"""Joint draws of everything a model does not know: what prediction and assessment work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.likelihood.batch import batch_system, batched_cholesky
from bayeslmm.likelihood.draws import draw_random
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.sampling.variables import effect_arrays
from bayeslmm.schema import BETA, SIGMA, cor_name, sd_name, u_name

if TYPE_CHECKING:
    import xarray as xr

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


# --- draws of chosen random effects for draws of everything else ---


AT_ONCE = 1 << 24
"""Random effects drawn at once where those of all levels are needed to draw some: 128 MB."""


def draw_effects(
    plan: Plan,
    points: Points,
    beta: Array,
    wanted: Sequence[Indices],
    rng: np.random.Generator,
) -> list[Array]:
    """Draw random effects of chosen levels, jointly, given draws of everything else.

    Parameters
    ----------
    plan : Plan
        Cross-products of the data.
    points : Points
        S covariance parameters.
    beta : ndarray (S, p)
        Fixed effects.
    wanted : sequence of ndarray (m,)
        Places of the levels, one array per grouping factor; empty where none is wanted.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    list of ndarray (S, m, k)
        One array per grouping factor.
    """
    # Calls for different levels must not share their noise, although they share the seed.
    key = b"|".join(np.asarray(levels).tobytes() for levels in wanted)
    rng = np.random.default_rng([int(rng.integers(2**63)), crc32(key)])
    coefs = [block.shape[1] for block in plan.products.random]
    if not any(len(levels) for levels in wanted):
        return [np.empty((len(beta), 0, k)) for k in coefs]
    with single_threaded():
        if len(wanted) == 1:
            return draw_random(batch_system(restrict(plan, wanted[0])), points, beta, rng)
        system = batch_system(plan)
        total = sum(block.shape[0] * block.shape[1] for block in plan.products.random)
        step = max(1, AT_ONCE // total)
        result = [np.empty((len(beta), len(at), k)) for at, k in zip(wanted, coefs, strict=True)]
        for start in range(0, len(beta), step):
            rows = slice(start, start + step)
            drawn = draw_random(system, points.take(rows), beta[rows], rng)
            for array, u, levels in zip(result, drawn, wanted, strict=True):
                array[rows] = u[:, levels]
        return result


def restrict(plan: Plan, levels: Indices) -> Plan:
    """Plan of a single grouping factor with some of its levels: enough to draw them given beta."""
    products = plan.products
    kept = replace(
        products,
        random=(products.random[0][levels],),
        mixed=(products.mixed[0][levels],),
    )
    return make_plan(kept)


def points_of(design: Design, posterior: xr.Dataset) -> Points:
    """Covariance parameters of all draws."""
    sizes = {factor.key: factor.n_coefs for factor in design.random}
    return points_of_variables(sizes, posterior)


def points_of_variables(sizes: Mapping[str, int], posterior: xr.Dataset) -> Points:
    """Covariance parameters of all draws.

    Parameters
    ----------
    sizes : mapping of str to int
        Number of coefficients of each grouping factor, by its key in names of variables.
    posterior : xarray.Dataset
        Draws of the public variables.
    """
    sds, chols = [], []
    for key, k in sizes.items():
        values = _flat(posterior[sd_name(key)].to_numpy())
        sds.append(values)
        chol = np.broadcast_to(np.eye(k), (len(values), k, k))
        if k > 1:
            chol = _correlation_roots(_flat(posterior[cor_name(key)].to_numpy()))
        chols.append(chol)
    sigma = posterior[SIGMA].to_numpy().ravel()
    empty = np.empty((len(sigma), 0))
    return Points(sds=tuple(sds), chols=tuple(chols), sigma=sigma, beta=empty)


def _correlation_roots(correlations: Array) -> Array:
    """Roots (S, k, k) of correlation matrices, also of those that have lost rank."""
    roots = batched_cholesky(correlations)
    lost = ~np.isfinite(roots).all(axis=(1, 2))
    if np.any(lost):
        values, vectors = np.linalg.eigh(correlations[lost])
        roots[lost] = vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :]
    return roots


def _flat(draws: Array) -> Array:
    return draws.reshape(-1, *draws.shape[2:])
