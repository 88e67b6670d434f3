"""A polynomial stand-in for the elimination of the random effects, where that is dear.

The log determinant and the equations of the fixed effects are analytic functions of the relative
covariance parameters, so polynomials fitted to a few dozen exact evaluations reproduce them over
the posterior to many digits. Sigma, the fixed effects and the priors stay exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from bayeslmm.likelihood.batch import Reduced
from bayeslmm.likelihood.crossprod import CrossProducts

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
    the correlation of two coefficients it is the correlation, for more of them the inverse
    hyperbolic tangents of the partial correlations.

    Attributes
    ----------
    kinds : tuple of {"sd", "cor", "z"}
        What each of the m coordinates is.
    log_size : ndarray (m,)
        Log a, zero for correlations.
    """

    kinds: tuple[str, ...]
    log_size: Array

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
        return result

    @property
    def strips(self) -> Array:
        """Distance (m,) of the nearest singularities from the real axis."""
        widths = {"sd": np.pi, "cor": 1.0, "z": 0.5 * np.pi}
        return np.array([widths[kind] for kind in self.kinds])


def make_axes(products: CrossProducts, mixing: Sequence[Array]) -> Axes:
    """Axes that suit some data, for working columns ``Z @ mixing``."""
    kinds: list[str] = []
    sizes: list[float] = []
    bases = products.basis.random
    for s, gram, basis, w in zip(products.structures, products.random, bases, mixing, strict=True):
        inverse = np.linalg.solve(basis, w)
        diagonal = np.einsum("ai,jab,bi->ji", inverse, gram, inverse).max(axis=0)
        kinds += ["sd"] * s.n_coefs
        sizes += list(np.log(np.maximum(diagonal, 1e-300)))
        for block in s.blocks:
            pairs = len(block) * (len(block) - 1) // 2
            kinds += ["cor" if pairs == 1 else "z"] * pairs
            sizes += [0.0] * pairs
    return Axes(kinds=tuple(kinds), log_size=np.array(sizes))


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
        inside = self._radius(relative) <= 1.0
        log_det = np.where(inside, values[:, 0], np.nan)
        return Reduced(log_det_random=log_det, fixed=unpack(values[:, 1:]))

    def relative_radius(self, x: Array) -> Array:
        """Distance (S,) from the middle over the reach: the density counts as zero beyond one."""
        return self._radius(self.axes(x))

    def _radius(self, relative: Array) -> Array:
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
    values = np.column_stack([reduced.log_det_random, pack(reduced.fixed)])
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
