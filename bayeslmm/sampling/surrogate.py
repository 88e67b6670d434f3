"""A polynomial stand-in for the elimination of the random effects, where that is dear.

The log determinant and the equations of the fixed effects are analytic functions of the relative
covariance parameters, so polynomials fitted to a few dozen exact evaluations reproduce them over
the posterior to many digits. Sigma, the fixed effects and the priors stay exact.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import comb

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.covariance.residual import PLAIN, Residual
from bayeslmm.exceptions import SamplingError
from bayeslmm.likelihood.batch import Reduced
from bayeslmm.likelihood.crossprod import WorkingProducts
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.log_posterior import (
    Reduce,
    log_posterior_batch,
    log_posterior_of,
    reduce_at,
)
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.importance import Chains, repeated_point, sample_density
from bayeslmm.sampling.pareto import log_mean

Array = NDArray[np.float64]
Degrees = NDArray[np.intp]

POINTS_PER_TERM = 1.6
LARGEST_DEGREE = 14

CELLS = 1 << 20
"""Points times terms worked on at once."""

REACH = 1.05
"""Mahalanobis radius trusted, relative to that of the farthest evaluated point."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Axes:
    """Relative covariance parameters in which the equations are close to polynomials.

    For a standard deviation it is log(1 + a ratio^2), with ratio its quotient by sigma and a the
    largest sum of squares of a level: the log determinant of that level, flat towards zero. For
    a correlation that is the only one of its block it is the hyperbolic tangent of its coordinate,
    the correlation itself where that may be anything; for several, their coordinates.

    Attributes
    ----------
    kinds : tuple of {"sd", "cor", "z"}
        What each of the m coordinates is.
    log_size : ndarray (m,)
        Log a, zero for correlations.
    residual : Residual
        Structure of the residuals, whose parameters beside sigma are further coordinates, as they
        are.
    """

    kinds: tuple[str, ...]
    log_size: Array
    residual: Residual

    @property
    def size(self) -> int:
        """Number of coordinates."""
        return len(self.kinds) + self.residual.n_shape

    def __call__(self, x: Array) -> Array:
        """Relative coordinates (S, m) at unconstrained coordinates (S, d)."""
        m = len(self.kinds)
        result = x[:, :m].copy()
        for i, kind in enumerate(self.kinds):
            if kind == "sd":
                ratio = result[:, i] - x[:, m]
                result[:, i] = np.logaddexp(0.0, 2.0 * ratio + self.log_size[i])
            elif kind == "cor":
                result[:, i] = np.tanh(result[:, i])
        shapes = self.residual.relative(x[:, m : m + 1 + self.residual.n_shape])[1]
        return np.concatenate([result, shapes], axis=1)

    @property
    def strips(self) -> Array:
        """Distance (m,) of the nearest singularities from the real axis."""
        widths = {"sd": np.pi, "cor": 1.0, "z": 0.5 * np.pi}
        kinds = [*self.kinds, *["z"] * self.residual.n_shape]
        return np.array([widths[kind] for kind in kinds])


def make_axes(
    products: WorkingProducts, mixing: Sequence[Array], residual: Residual = PLAIN
) -> Axes:
    """Axes that suit some data, for working columns ``Z @ mixing``."""
    kinds: list[str] = []
    sizes: list[float] = []
    bases = products.basis.random
    for s, gram, basis, w in zip(products.structures, products.random, bases, mixing, strict=True):
        inverse = np.linalg.solve(basis, w)
        diagonal = np.einsum("ai,jab,bi->ji", inverse, gram, inverse).max(axis=0)
        largest = np.zeros(s.n_sds)
        np.maximum.at(largest, s.sd_places, diagonal)
        kinds += ["sd"] * s.n_sds
        sizes += list(np.log(np.maximum(largest, 1e-300)))
        for part in s.parts:
            kinds += ["cor" if part.n_cors == 1 else "z"] * part.n_cors
            sizes += [0.0] * part.n_cors
    return Axes(kinds=tuple(kinds), log_size=np.array(sizes), residual=residual)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Surrogate:
    """Polynomials on relative coordinates.

    Attributes
    ----------
    axes : Axes
        The relative coordinates.
    centre, half : ndarray (m,)
        The box of the evaluated points, mapped to [-1, 1].
    degrees : ndarray (T, m)
        Degree of each term in each coordinate.
    coefficients : ndarray (T, 1 + n_entries)
        For the log determinant and the lower triangle of the equations.
    middle, root, radius : ndarray (m,), ndarray (m, m), float
        Ellipsoid outside which the density counts as zero.
    """

    axes: Axes
    centre: Array
    half: Array
    degrees: Degrees
    coefficients: Array
    middle: Array
    root: Array
    radius: float

    def __call__(self, x: Array) -> Reduced:
        """Approximate equations at unconstrained coordinates (S, d)."""
        relative = self.axes(x)
        values = np.empty((len(x), self.coefficients.shape[1]))
        step = max(1, CELLS // len(self.degrees))
        for start in range(0, len(x), step):
            rows = slice(start, start + step)
            terms = chebyshev_terms((relative[rows] - self.centre) / self.half, self.degrees)
            values[rows] = terms @ self.coefficients
        inside = self.radius_of(relative) <= 1.0
        log_det = np.where(inside, values[:, 0], np.nan)
        return Reduced(log_det=log_det, fixed=unpack(values[:, 1:]))

    def radius_of(self, relative: Array) -> Array:
        """Distance (S,) from the middle over the reach: the density counts as zero beyond one."""
        white = solve_triangular(self.root, (relative - self.middle).T, lower=True)
        return np.asarray(np.linalg.norm(white, axis=0) / self.radius)


def fit_surrogate(axes: Axes, x: Array, reduced: Reduced, log_density: Array) -> Surrogate:
    """Fit polynomials to exact evaluations.

    Parameters
    ----------
    axes : Axes
        The relative coordinates.
    x : ndarray (S, d)
        Unconstrained coordinates.
    reduced : Reduced
        The equations there.
    log_density : ndarray (S,)
        Log posterior density there: points where it is small count less.

    Returns
    -------
    Surrogate
    """
    relative = axes(x)
    lower, upper = relative.min(axis=0), relative.max(axis=0)
    centre, half = 0.5 * (lower + upper), np.maximum(0.5 * (upper - lower), 1e-6)
    degrees = polynomial_degrees(axes.strips / half, int(len(x) / POINTS_PER_TERM))
    weight = np.exp(np.clip(0.25 * (log_density - np.max(log_density)), -4.0, 0.0))
    terms = chebyshev_terms((relative - centre) / half, degrees) * weight[:, None]
    values = np.column_stack([reduced.log_det, pack(reduced.fixed)])
    offset = values.mean(axis=0)
    coefficients = np.linalg.lstsq(terms, (values - offset) * weight[:, None])[0]
    coefficients[0] += offset
    middle, cov = np.average(relative, axis=0, weights=weight), np.cov(relative.T, aweights=weight)
    root = np.linalg.cholesky(np.atleast_2d(cov) + 1e-12 * np.diag(half**2))
    white = solve_triangular(root, (relative - middle).T, lower=True)
    return Surrogate(
        axes=axes,
        centre=centre,
        half=half,
        degrees=degrees,
        coefficients=coefficients,
        middle=middle,
        root=root,
        radius=REACH * float(np.sqrt(np.max(np.sum(white**2, axis=0)))),
    )


def polynomial_degrees(ratio: Array, count: int) -> Degrees:
    """Degrees (T, m) of the `count` most useful terms, few in coordinates with a short range.

    The coefficients of a function that is analytic in a strip fall off like rho^-n with
    rho = s + sqrt(s^2 + 1), where s (m,) is the width of the strip over half the range.
    """
    cost = np.log(ratio + np.sqrt(ratio**2 + 1.0)).tolist()
    chosen: list[tuple[int, ...]] = []
    # Every term is reached once: from the one with its last nonzero degree lowered.
    heap: list[tuple[float, tuple[int, ...]]] = [(0.0, (0,) * len(cost))]
    while heap and len(chosen) < max(count, 1):
        total, term = heapq.heappop(heap)
        chosen.append(term)
        last = max((i for i, degree in enumerate(term) if degree), default=0)
        for i in range(last, len(cost)):
            if term[i] < LARGEST_DEGREE:
                raised = (*term[:i], term[i] + 1, *term[i + 1 :])
                heapq.heappush(heap, (total + cost[i], raised))
    return np.array(chosen, dtype=np.intp)


def chebyshev_terms(t: Array, degrees: Degrees) -> Array:
    """Products of Chebyshev polynomials (S, T) at points (S, m) of the box [-1, 1]^m."""
    result: Array = np.ones((len(t), len(degrees)))
    for column, degree in zip(t.T, degrees.T, strict=True):
        table = np.polynomial.chebyshev.chebvander(column, int(degree.max(initial=0)))
        result *= table[:, degree]
    return result


def pack(matrices: Array) -> Array:
    """Lower triangles (S, n_entries) of symmetric matrices (S, p, p)."""
    rows, cols = np.tril_indices(matrices.shape[1])
    return matrices[:, rows, cols]


def unpack(entries: Array) -> Array:
    """Symmetric matrices (S, p, p) from their lower triangles (S, n_entries)."""
    size = int((np.sqrt(8 * entries.shape[1] + 1) - 1) / 2)
    rows, cols = np.tril_indices(size)
    matrices = np.empty((len(entries), size, size))
    matrices[:, rows, cols] = entries
    matrices[:, cols, rows] = entries
    return matrices


# --- sampling the covariance parameters on a surrogate that is fitted, checked and refined ---


CHECKS = 20
"""Draws of each round at which the surrogate is compared with the exact density."""

TYPICAL_ERROR = 0.005
LARGEST_ERROR = 0.05
"""Standard deviation and largest size of the error in log density that is accepted.

An error of standard deviation s moves no posterior mean by more than about s posterior sds: a small
part of the Monte Carlo error of some thousand draws.
"""

OUTSIDE = 8
"""Proposals beyond the reach of the surrogate at which the exact density is evaluated."""

MOST_OUTSIDE = 0.002
"""Share of the posterior that may lie out there."""

NEGLIGIBLE = 15.0
"""Log density below the largest at which a point does not matter."""

ROUNDS = 7
LARGEST_DESIGN = 1500

HOPELESS = 1.0
"""Spread of the errors of the first surrogate beyond which no better one is tried."""

SLOWEST_GAIN = 0.5
"""Factor by which a round must reduce a spread that is not yet small."""

PROBED = 5
"""Number of relative coordinates from which the first surrogate is tried out before sampling."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SurrogateRun:
    """Chains on a surrogate, and how far it is from the exact density.

    Attributes
    ----------
    chains : Chains
        The chains.
    surrogate : Surrogate
        The surrogate.
    errors : ndarray (n,)
        Exact less surrogate log density at some of the draws.
    outside : float
        Share of the posterior, at most, beyond the reach of the surrogate.
    beyond : ndarray (n, d)
        Points there whose density is not negligible.
    """

    chains: Chains
    surrogate: Surrogate
    errors: Array
    outside: float
    beyond: Array

    @property
    def accurate(self) -> bool:
        """Whether the errors are negligible."""
        largest = float(np.max(np.abs(self.errors)))
        close = self.spread < TYPICAL_ERROR and largest < LARGEST_ERROR
        return close and self.outside < MOST_OUTSIDE

    @property
    def spread(self) -> float:
        """Standard deviation of the errors."""
        return float(np.std(self.errors))


class SurrogateSampler:
    """Fits a surrogate to exact evaluations, samples it, and adds evaluations where it is wrong.

    Parameters
    ----------
    exact : callable
        Eliminates the random effects exactly.
    plan : Plan
        The data.
    priors : Priors
        The priors.
    centre : ndarray (d,)
        A point in the middle of the posterior.
    root : ndarray (d, d)
        Lower Cholesky factor of its approximate covariance matrix.
    rng : numpy.random.Generator
        Source of randomness.
    """

    def __init__(
        self,
        exact: Reduce,
        plan: Plan,
        priors: Priors,
        centre: Array,
        root: Array,
        rng: np.random.Generator,
    ) -> None:
        self.exact, self.axes = exact, make_axes(plan.products, priors.mixing, priors.residual)
        self.assemble = partial(log_posterior_of, plan, priors)
        self.density = partial(log_posterior_batch, plan, priors)
        self.centre, self.root, self.rng = centre, root, rng
        self.x = design_points(centre, root, design_size(self.axes.size), rng)
        self.reduced = exact(self.x)

    def run(self, chains: int, draws: int) -> SurrogateRun | None:
        """Sample until the surrogate is accurate; None where it does not get there."""
        try:
            return self._refine(chains, draws)
        except (SamplingError, np.linalg.LinAlgError):
            return None

    def _refine(self, chains: int, draws: int) -> SurrogateRun | None:
        if self.axes.size >= PROBED and self._probe() > HOPELESS:
            return None
        spread = HOPELESS / SLOWEST_GAIN
        for _ in range(ROUNDS):
            found = self._round(chains, draws)
            if found.accurate:
                return found
            stuck = found.spread > max(SLOWEST_GAIN * spread, 10.0 * TYPICAL_ERROR)
            if stuck or len(self.x) > LARGEST_DESIGN:
                return None
            spread = found.spread
            self._add(self._widened(found.chains))
            if found.outside > MOST_OUTSIDE:
                self._add(found.beyond)
        return None

    def _fit(self) -> Surrogate:
        values = self.assemble(self.reduced, self.x)
        return fit_surrogate(self.axes, self.x, self.reduced, values)

    def _probe(self) -> float:
        """Spread of the errors at draws of the Gaussian approximation, which are kept."""
        surrogate = self._fit()
        points = self.centre + self.rng.standard_normal((CHECKS, len(self.centre))) @ self.root.T
        return float(np.std(self._errors(surrogate, points)))

    def _round(self, chains: int, draws: int) -> SurrogateRun:
        surrogate = self._fit()
        target = partial(self.density, surrogate)
        run = sample_density(target, self.centre, self.root, chains, draws, self.rng)
        states = run.x.reshape(chains * draws, -1)
        checked = states[self.rng.choice(len(states), min(CHECKS, len(states)), replace=False)]
        errors = self._errors(surrogate, checked)
        outside, beyond = self._outside(surrogate, run)
        return SurrogateRun(
            chains=run, surrogate=surrogate, errors=errors, outside=outside, beyond=beyond
        )

    def _outside(self, surrogate: Surrogate, run: Chains) -> tuple[float, Array]:
        """Estimated share of the posterior beyond the reach of the surrogate, and points there.

        The proposals go further than the surrogate; those just outside, where the density should
        be largest, and some others are evaluated exactly.
        """
        radius = surrogate.radius_of(self.axes(run.proposals))
        places = np.flatnonzero(radius > 1.0)
        if not len(places):
            return 0.0, run.proposals[places]
        nearest = places[np.argsort(radius[places])[: OUTSIDE // 2]]
        others = self.rng.choice(places, min(OUTSIDE // 2, len(places)), replace=False)
        chosen = np.unique(np.concatenate([nearest, others]))
        points = run.proposals[chosen]
        log_density = self.assemble(self.exact(points), points)
        largest = float(np.max(log_density - run.log_proposal[chosen]))
        largest -= log_mean(run.log_ratios)[0]
        share = float(len(places) / len(radius) * np.exp(min(largest, 50.0)))
        return share, points[log_density > np.max(run.values) - NEGLIGIBLE]

    def _errors(self, surrogate: Surrogate, points: Array) -> Array:
        """Exact less surrogate log density at points, which join the design."""
        reduced = self._add(points)
        with np.errstate(invalid="ignore"):
            return self.assemble(reduced, points) - self.density(surrogate, points)

    def _add(self, points: Array) -> Reduced:
        reduced = self.exact(points)
        self.x = np.concatenate([self.x, points])
        self.reduced = Reduced(
            log_det=np.concatenate([self.reduced.log_det, reduced.log_det]),
            fixed=np.concatenate([self.reduced.fixed, reduced.fixed]),
        )
        return reduced

    def _widened(self, chains: Chains) -> Array:
        """States pushed away from their mean by up to one half."""
        states = chains.x.reshape(-1, chains.x.shape[2])
        chosen = states[self.rng.choice(len(states), max(CHECKS, 3 * len(self.x) // 4))]
        mean = states.mean(axis=0)
        stretch = self.rng.uniform(1.0, 1.5, (len(chosen), 1))
        return np.asarray(mean + (chosen - mean) * stretch)


def design_size(m: int) -> int:
    """Number of first evaluations in m dimensions: for polynomials of third or fourth degree."""
    degree = 4 if m <= 3 else 3
    return 8 + int(np.ceil(POINTS_PER_TERM * comb(m + degree, degree)))


def design_points(centre: Array, root: Array, count: int, rng: np.random.Generator) -> Array:
    """Points spread over what a Gaussian approximation suggests, and some way beyond."""
    noise = rng.standard_normal((count, len(centre)))
    radius = np.linalg.norm(noise, axis=1, keepdims=True)
    stretched = np.minimum(1.5 * radius, np.sqrt(len(centre)) + 4.0)
    return np.asarray(centre + (noise / radius * stretched) @ root.T)


# --- the covariance parameters, on the exact density or on a surrogate of it ---


_log = logging.getLogger(__name__)

CHEAP = 100_000.0
"""Operations of one evaluation up to which a surrogate would not pay."""

OVERHEAD = 100.0
"""Operations per term and coordinate of a surrogate evaluation, refits included."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CovarianceDraws:
    """Chains of the covariance parameters and what made them.

    Attributes
    ----------
    chains : Chains
        The chains.
    reduce : callable
        What eliminated the random effects: exactly, or a surrogate.
    n_evaluations : int
        Exact evaluations of the density.
    surrogate_error : float
        Standard deviation of the surrogate's error in log density over the posterior; 0 without.
    log_evidence, log_evidence_error : float
        Log of the integral of the density, and its Monte Carlo standard error.
    """

    chains: Chains
    reduce: Reduce
    n_evaluations: int
    surrogate_error: float
    log_evidence: float
    log_evidence_error: float


def operations(plan: Plan) -> float:
    """Rough number of operations of one evaluation."""
    p = plan.products.n_fixed
    if plan.sums is not None:
        k = len(plan.classes.gram)
        per_class = 10.0 * k**3 + k * (k + 1) * (p + 1) ** 2
        return per_class * len(plan.classes.counts) + (plan.n_tail + p) ** 3 / 3.0
    if plan.border is not None:
        return float(len(plan.border.plan.products.fixed) ** 3)
    blocks = sum(gram.size * gram.shape[1] for gram in plan.products.random)
    return 100.0 * blocks + plan.n_tail**3 / 3.0 + 20.0 * plan.coupling.nnz


def is_dear(plan: Plan) -> bool:
    """Whether a surrogate takes much less time than the exact density."""
    m = sum(s.n_theta for s in plan.products.structures)
    terms = design_size(m) / POINTS_PER_TERM
    return operations(plan) > max(CHEAP, OVERHEAD * terms * m)


def sample_covariance(
    plan: Plan,
    priors: Priors,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> CovarianceDraws:
    """Sample the covariance parameters.

    Parameters
    ----------
    plan : Plan
        The data.
    priors : Priors
        The priors.
    centre : ndarray (d,)
        A point in the middle.
    root : ndarray (f, f)
        Lower Cholesky factor of the approximate covariance matrix of the free coordinates.
    chains, draws : int
        Size of the result.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    CovarianceDraws

    Raises
    ------
    SamplingError
        If the importance density does not fit.
    """
    exact = _Counted(partial(reduce_at, plan, priors.coordinates))
    if is_dear(plan) and not priors.held:
        sampler = SurrogateSampler(exact, plan, priors, centre, root, rng)
        found = sampler.run(chains, draws)
        if found is not None:
            value, error = log_mean(found.chains.log_ratios)
            correction, its_error = log_mean(found.errors)
            return CovarianceDraws(
                chains=found.chains,
                reduce=found.surrogate,
                n_evaluations=exact.count,
                surrogate_error=found.spread,
                log_evidence=value + correction,
                log_evidence_error=float(np.hypot(error, its_error)),
            )
        _log.info("no polynomial surrogate is accurate enough: evaluating exactly")
    return _sample_exactly(plan, priors, exact, centre, root, chains, draws, rng)


def _sample_exactly(
    plan: Plan,
    priors: Priors,
    exact: _Counted,
    centre: Array,
    root: Array,
    chains: int,
    draws: int,
    rng: np.random.Generator,
) -> CovarianceDraws:
    """Move the coordinates that are not known, and evaluate the density at each point."""
    coordinates = priors.coordinates

    def target(z: Array) -> Array:
        return log_posterior_batch(plan, priors, exact, coordinates.complete(z))

    if len(coordinates.free):
        run = sample_density(target, centre[coordinates.free], root, chains, draws, rng)
        value, error = log_mean(run.log_ratios)
    else:
        value, error = float(target(np.zeros((1, 0)))[0]), 0.0
        if not np.isfinite(value):
            raise SamplingError(
                "The density of the data cannot be computed at the fixed parameters: check them."
            )
        run = repeated_point(value, chains, draws)
    return CovarianceDraws(
        chains=replace(run, x=coordinates.complete(run.x)),
        reduce=exact,
        n_evaluations=exact.count,
        surrogate_error=0.0,
        log_evidence=value,
        log_evidence_error=error,
    )


class _Counted:
    """The exact elimination, which counts its evaluations."""

    def __init__(self, reduce: Reduce) -> None:
        self.reduce = reduce
        self.count = 0

    def __call__(self, x: Array) -> Reduced:
        self.count += len(x)
        return self.reduce(x)
