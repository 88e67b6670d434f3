"""Mixtures of multivariate Student t distributions: importance densities that are easy to refit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

Array = NDArray[np.float64]

EM_STEPS = 12
"""Steps of the expectation-maximisation algorithm in one refit."""

SMALLEST_SHARE = 0.02
"""Share of the weight below which a component is dropped."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StudentMixture:
    """Mixture of K multivariate t distributions.

    Attributes
    ----------
    weights : ndarray (K,)
        Shares of the components, which sum to one.
    means : ndarray (K, d)
        Locations.
    roots : ndarray (K, d, d)
        Lower Cholesky factors of the scale matrices.
    df : ndarray (K,)
        Degrees of freedom.
    """

    weights: Array
    means: Array
    roots: Array
    df: Array

    def logpdf(self, x: Array) -> Array:
        """Log density (S,) at points (S, d)."""
        return _log_sum_exp(
            self.component_logpdf(self.distances(x)) + np.log(self.weights)[:, None]
        )

    def distances(self, x: Array) -> Array:
        """Squared Mahalanobis distances (K, S) of points (S, d) from the components."""
        inverse = np.linalg.inv(self.roots)
        white = inverse @ x.T
        white -= inverse @ self.means[:, :, None]
        return np.einsum("kds,kds->ks", white, white)

    def component_logpdf(self, distances: Array) -> Array:
        """Log densities (K, S) of the components at squared distances (K, S) from them."""
        d, nu = self.means.shape[1], self.df
        constant = gammaln((nu + d) / 2) - gammaln(nu / 2) - 0.5 * d * np.log(nu * np.pi)
        constant -= np.log(np.diagonal(self.roots, axis1=1, axis2=2)).sum(axis=1)
        tails = np.log1p(distances / nu[:, None])
        return np.asarray(constant[:, None] - 0.5 * (nu + d)[:, None] * tails)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Independent draws (size, d)."""
        component = rng.choice(len(self.weights), size=size, p=self.weights)
        noise = rng.standard_normal((size, self.means.shape[1]))
        df = self.df[component]
        noise *= np.sqrt(df / rng.chisquare(df))[:, None]
        moved = np.einsum("sij,sj->si", self.roots[component], noise)
        return self.means[component] + moved


def student(mean: Array, root: Array, df: float) -> StudentMixture:
    """Mixture of one component."""
    return StudentMixture(
        weights=np.ones(1), means=mean[None], roots=root[None], df=np.array([float(df)])
    )


def combine(parts: list[tuple[float, StudentMixture]]) -> StudentMixture:
    """Mixture of mixtures with given shares."""
    return StudentMixture(
        weights=np.concatenate([share * part.weights for share, part in parts]),
        means=np.concatenate([part.means for _, part in parts]),
        roots=np.concatenate([part.roots for _, part in parts]),
        df=np.concatenate([part.df for _, part in parts]),
    )


def weighted_root(x: Array, weights: Array) -> tuple[Array, Array]:
    """Weighted mean (d,) and Cholesky factor (d, d) of the weighted covariance matrix."""
    mean = weights @ x
    gap = x - mean
    cov = (gap * weights[:, None]).T @ gap
    return mean, _root(cov)


def fit_mixture(
    x: Array, weights: Array, components: int, df: float, rng: np.random.Generator
) -> StudentMixture:
    """Fit a mixture to weighted points by expectation-maximisation.

    Parameters
    ----------
    x : ndarray (S, d)
        Points.
    weights : ndarray (S,)
        Their weights, which sum to one.
    components : int
        Largest number of components.
    df : float
        Degrees of freedom of each.
    rng : numpy.random.Generator
        Chooses the starting locations.

    Returns
    -------
    StudentMixture

    References
    ----------
    Cappe, Douc, Guillin, Marin, Robert (2008), doi:10.1007/s11222-008-9059-x.
    """
    _, root = weighted_root(x, weights)
    means = x[rng.choice(len(x), size=components, p=weights)]
    mixture = StudentMixture(
        weights=np.full(components, 1.0 / components),
        means=means,
        roots=np.repeat(root[None], components, axis=0),
        df=np.full(components, df),
    )
    for _ in range(EM_STEPS):
        mixture = _em_step(mixture, x, weights, root)
    return mixture


def _em_step(mixture: StudentMixture, x: Array, weights: Array, overall: Array) -> StudentMixture:
    d = x.shape[1]
    distances = mixture.distances(x)
    log_parts = mixture.component_logpdf(distances) + np.log(mixture.weights)[:, None]
    shares = np.exp(log_parts - _log_sum_exp(log_parts)) * weights
    totals = shares.sum(axis=1)
    kept = np.flatnonzero(totals > SMALLEST_SHARE)
    nu = mixture.df[:, None]
    tilted = (shares * (nu + d) / (nu + distances))[kept]
    means = tilted @ x / tilted.sum(axis=1, keepdims=True)
    # A component narrower than a tenth of the whole would follow single points.
    floor = 0.01 * overall @ overall.T
    roots = []
    for k, (share, mean) in enumerate(zip(tilted, means, strict=True)):
        gap = x - mean
        roots.append(_root((gap.T * share) @ gap / totals[kept[k]] + floor))
    return StudentMixture(
        weights=totals[kept] / totals[kept].sum(),
        means=means,
        roots=np.array(roots),
        df=mixture.df[kept],
    )


def _log_sum_exp(parts: Array) -> Array:
    """Logarithm of the sum over the first axis; finite parts are expected."""
    top = parts.max(axis=0)
    return np.asarray(top + np.log(np.exp(parts - top).sum(axis=0)))


def _root(cov: Array) -> Array:
    """Cholesky factor of a covariance matrix, with a ridge where it is nearly singular."""
    size = np.maximum(np.diag(cov), np.finfo(float).tiny)
    scale = np.sqrt(size)
    corr = cov / scale / scale[:, None]
    return np.asarray(scale[:, None] * np.linalg.cholesky(corr + 1e-9 * np.eye(len(cov))))


# --- coordinate-wise transformations that make skewed posterior densities nearly elliptical ---


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
