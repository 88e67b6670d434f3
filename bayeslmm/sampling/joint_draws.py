"""Joint draws of everything a model does not know: what prediction and assessment work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import (
    Coordinates,
    Points,
    plain_coordinates,
)
from bayeslmm.covariance.residual import Residual
from bayeslmm.covariance.scale import ScalePoints
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.estimation.bootstrap import bootstrap_fits
from bayeslmm.estimation.estimate import (
    Fit,
    points_at,
    points_of_fits,
    user_factors,
    working_factors,
)
from bayeslmm.estimation.executor import Executor
from bayeslmm.estimation.held import search_of
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.batch import reduce_equations
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.likelihood.draws import draw_random, normal_draws
from bayeslmm.likelihood.elimination import Plan, make_plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import fixed_effects_at
from bayeslmm.sampling.tree import effect_arrays
from bayeslmm.schema import (
    BETA,
    BETA_SIGMA,
    COR_RESIDUAL,
    NU,
    POWER_RESIDUAL,
    SIGMA,
    coef_dim,
    cor_name,
    level_dim,
    sd_name,
    u_name,
)

if TYPE_CHECKING:
    import xarray as xr

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


STRUCTURED = (
    "This is not there yet for a model whose residuals have a structure (residual=...): it is for "
    "independent residuals of one variance."
)


UNEQUAL = (
    "This is not there for a model with Student-t residuals or predictors of sigma: it is for "
    "normal residuals of one variance."
)


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
        """Residual standard deviations (S,), of a row with weight one.

        Raises
        ------
        DataError
            If residuals have a structure, so that rows differ.
        """
        if self.points.scale is not None:
            raise DataError(UNEQUAL)
        if not self.points.residual.plain:
            raise DataError(STRUCTURED)
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
            np.ascontiguousarray(u.reshape(-1, *u.shape[2:])[:, levels])
            for u, levels in zip(arrays, wanted, strict=True)
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
        if plan.separable:
            return draw_random(restrict(plan, wanted[0]), points, beta, rng)
        total = sum(block.shape[0] * block.shape[1] for block in plan.products.random)
        step = max(1, AT_ONCE // total)
        result = [np.empty((len(beta), len(at), k)) for at, k in zip(wanted, coefs, strict=True)]
        for start in range(0, len(beta), step):
            rows = slice(start, start + step)
            drawn = draw_random(plan, points.take(rows), beta[rows], rng)
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
    structure, scale = design.spec.residual_structure, design.spec.scale
    if scale is None:
        return points_of_variables(sizes, structure, posterior, {}, None)
    own = {factor.key: len(factor.coefs) for factor in scale.random}
    return points_of_variables(sizes, structure, posterior, own, scale.means)


def points_of_variables(
    sizes: Mapping[str, int],
    residual: Residual,
    posterior: xr.Dataset,
    scale_keys: Mapping[str, int],
    means: Array | None,
) -> Points:
    """Covariance parameters of all draws.

    Parameters
    ----------
    sizes : mapping of str to int
        Number of coefficients of each grouping factor, by its key in names of variables.
    residual : Residual
        Structure of the residuals.
    posterior : xarray.Dataset
        Draws of the public variables.
    scale_keys : mapping of str to int
        As `sizes`, of the random effects in the log residual scale.
    means : ndarray (q,) or None
        Column means of the predictors of the residual scale; None without any.
    """
    sds, chols = _random_points(sizes, posterior)
    if means is None:
        sigma, shapes = residual.from_natural(*residual_draws(residual, posterior))
    else:
        sigma = np.exp(_flat(posterior[BETA_SIGMA].to_numpy()) @ means)
        shapes = np.empty((len(sigma), 0))
    empty = np.empty((len(sigma), 0))
    return Points(
        sds=sds,
        chols=chols,
        sigma=sigma,
        shapes=shapes,
        residual=residual,
        beta=empty,
        scale=scale_points(scale_keys, posterior),
    )


def scale_points(sizes: Mapping[str, int], posterior: xr.Dataset) -> ScalePoints | None:
    """Tails of the residuals and predictors of their scale; None where there is neither."""
    if NU not in posterior and BETA_SIGMA not in posterior:
        return None
    size = posterior.sizes["chain"] * posterior.sizes["draw"]
    sds, chols = _random_points(sizes, posterior)
    effects = [
        posterior[u_name(key)].transpose("chain", "draw", level_dim(key), coef_dim(key)).to_numpy()
        for key in sizes
    ]
    there = BETA_SIGMA in posterior
    return ScalePoints(
        nu=posterior[NU].to_numpy().ravel() if NU in posterior else None,
        gamma=_flat(posterior[BETA_SIGMA].to_numpy()) if there else np.empty((size, 0)),
        sds=sds,
        chols=chols,
        effects=tuple(map(_flat, effects)),
    )


def _random_points(
    sizes: Mapping[str, int], posterior: xr.Dataset
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Draws of standard deviations (S, k) and roots (S, k, k) of correlations by factor."""
    sds, chols = [], []
    for key, k in sizes.items():
        values = _flat(posterior[sd_name(key)].to_numpy())
        sds.append(values)
        chol = np.broadcast_to(np.eye(k), (len(values), k, k))
        if k > 1:
            chol = _correlation_roots(_flat(posterior[cor_name(key)].to_numpy()))
        chols.append(chol)
    return tuple(sds), tuple(chols)


def residual_draws(residual: Residual, posterior: xr.Dataset) -> tuple[Array, Array, Array]:
    """Draws of the standard deviations (S, m), powers (S, q) and correlations of the residuals."""
    size = posterior.sizes["chain"] * posterior.sizes["draw"]

    def matrix(name: str, there: bool) -> Array:
        return posterior[name].to_numpy().reshape(size, -1) if there else np.empty((size, 0))

    return (
        matrix(SIGMA, True),
        matrix(POWER_RESIDUAL, bool(residual.powers)),
        matrix(COR_RESIDUAL, residual.n_cors > 0),
    )


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


# --- joint draws that stand for the uncertainty of a point estimate ---


Uncertainty = Literal["laplace", "bootstrap", "plugin"]

STEP = 1e-5
"""Step of central differences on the log and inverse hyperbolic tangent scales."""

NEAR_ZERO = 1.0
"""Standard error of the log of a standard deviation that may as well be zero."""

FLAT = 5.0
"""Standard error of such a log at a posterior mode beyond which the draws would mean nothing."""


def estimate_draws(
    design: Design,
    fit: Fit,
    uncertainty: Uncertainty = "laplace",
    draws: int = 1000,
    random_seed: int | np.random.Generator | None = None,
    *,
    executor: Executor | None = None,
    progressbar: bool = False,
) -> JointDraws:
    """Draw covariance parameters around an estimate, and (beta, u) exactly given each.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        The estimate.
    uncertainty : {"laplace", "bootstrap", "plugin"}
        Covariance parameters from their asymptotic normal distribution on the unconstrained
        scale; from refits to responses simulated from the estimate; or held at the estimate.
    draws : int
        Number of draws.
    random_seed : int or numpy.random.Generator, optional
        Seed.
    executor : Executor, optional
        Where the refits of the bootstrap run.
    progressbar : bool
        Whether to show one for the bootstrap.

    Returns
    -------
    JointDraws
        One chain. Given the covariance parameters, (beta, u) has its conditional normal
        distribution under a flat prior on beta (its normal prior for "MAP").

    Raises
    ------
    ValueError
        If `uncertainty` is unknown.
    SamplingError
        If the criterion is flat in some direction, where "laplace" has no meaning.

    Notes
    -----
    At a boundary, where log standard deviations are infinite, and within a standard error of one,
    "laplace" is normal in the free entries of the relative factors (lme4's theta) instead.

    References
    ----------
    Laird, Louis (1987), doi:10.1080/01621459.1987.10478490, for "bootstrap": draws of the effects
    given bootstrapped covariance parameters and the data.
    """
    if uncertainty not in get_args(Uncertainty):
        allowed = ", ".join(map(repr, get_args(Uncertainty)))
        raise ValueError(f"uncertainty={uncertainty!r}: one of {allowed} is expected")
    rng = seeded(random_seed)
    if uncertainty == "laplace":
        points = _laplace_points(fit, draws, rng)
    elif uncertainty == "bootstrap":
        fits = bootstrap_fits(design, fit, draws, rng, executor=executor, progressbar=progressbar)
        points = points_of_fits(fits)
    else:
        points = points_of_fits([fit] * draws)
    beta = _draw_beta(fit, points, rng)
    seed = int(rng.integers(2**63))
    return JointDraws(
        shape=(1, draws),
        beta=beta,
        points=points,
        effects=lambda wanted: draw_effects(
            fit.plan, points, beta, wanted, np.random.default_rng(seed)
        ),
    )


def _draw_beta(fit: Fit, points: Points, rng: np.random.Generator) -> Array:
    noise = normal_draws(rng, len(fit.beta), len(points.sigma))
    if fit.given_beta:
        return fit.beta + noise @ fit.vcov_root.T
    with single_threaded():
        reduced = reduce_equations(fit.plan, points)
        return fixed_effects_at(fit.plan, fit.prior, reduced, points.sigma, noise)


def _laplace_points(fit: Fit, draws: int, rng: np.random.Generator) -> Points:
    coordinates = plain_coordinates(fit.plan.products.structures, fit.plan.residual)
    known = np.isfinite(fit.parameters).all() and np.isfinite(fit.parameter_cov).all()
    if fit.singular or not known or _is_open_below(fit):
        return _boundary_points(fit, draws, rng)
    shifts = STEP * np.eye(len(fit.parameters))
    centre = _unconstrained(coordinates, fit.parameters[None])[0]
    ahead = _unconstrained(coordinates, fit.parameters + shifts)
    behind = _unconstrained(coordinates, fit.parameters - shifts)
    jacobian = (ahead - behind).T / (2.0 * STEP)
    covariance = jacobian @ fit.parameter_cov @ jacobian.T
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    x = centre + normal_draws(rng, len(centre), draws) @ root.T
    return coordinates.to_user(coordinates.points(x))


def _is_open_below(fit: Fit) -> bool:
    """Whether zero is so near to a standard deviation that its log is not nearly normal."""
    logs = plain_coordinates(fit.plan.products.structures, fit.plan.residual).logs
    limit = FLAT if fit.method == "MAP" else NEAR_ZERO
    return bool(np.any(np.diag(fit.parameter_cov)[logs] > limit**2))


def _boundary_points(fit: Fit, draws: int, rng: np.random.Generator) -> Points:
    """Normal draws of the free entries of the relative factors and of log sigma.

    The criterion is an even function of a relative factor whose standard deviation is estimated at
    zero, so that the normal distribution about zero, folded, has its curvature.
    """
    flat = not fit.singular and not np.isfinite(fit.parameter_cov).all()
    if fit.method == "MAP" or flat:
        raise SamplingError(
            "The criterion is flat in some direction at the estimate, where the covariance "
            "parameters have no asymptotic normal distribution. Use uncertainty='bootstrap', or "
            "'plugin' to hold them at the estimate."
        )
    values, vectors = np.linalg.eigh(fit.internal_cov)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    if fit.plan.held is not None:
        moved = fit.optimum.x + normal_draws(rng, len(fit.optimum.x), draws) @ root.T
        return search_of(fit.plan, fit.method == "REML").points(moved)
    centre = np.append(fit.optimum.x, np.log(fit.sigma))
    x = centre + normal_draws(rng, len(centre), draws) @ root.T
    factors = [user_factors(fit.plan, working_factors(fit.plan, row[:-1])) for row in x]
    shapes = x[:, fit.plan.theta.shape]
    return points_at(factors, np.exp(x[:, -1]), shapes, fit.plan.residual)


def _unconstrained(coordinates: Coordinates, parameters: Array) -> Array:
    """From log sds and inverse hyperbolic tangents of correlations to coordinates, (S, d) both."""
    x = parameters.copy()
    for f, structure in enumerate(coordinates.structures):
        rho = np.tanh(parameters[:, coordinates.cors(f)])
        x[:, coordinates.cors(f)] = structure.from_correlations(rho)
    law, count = coordinates.residual.correlation, coordinates.residual.n_cors
    if law is not None and count:
        own = slice(coordinates.n_covariance - count, coordinates.n_covariance)
        x[:, own] = law.from_correlations(np.tanh(parameters[:, own]))
    return x


# --- a point estimate as a single draw, so that it goes through what draws go through ---


def point_draws(fit: Fit, modes: Sequence[Array]) -> JointDraws:
    """The estimate as one draw, with the conditional modes (J, k) as random effects."""
    return JointDraws(
        shape=(1, 1),
        beta=fit.beta[None],
        points=points_of_fits([fit]),
        effects=lambda wanted: [u[levels][None] for u, levels in zip(modes, wanted, strict=True)],
    )
