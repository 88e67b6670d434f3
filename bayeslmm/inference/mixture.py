"""Mixtures of multivariate Student t distributions: importance densities that are easy to refit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import gammaln, logsumexp

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
        return np.asarray(logsumexp(self.component_logpdf(x) + np.log(self.weights), axis=1))

    def component_logpdf(self, x: Array) -> Array:
        """Log densities (S, K) of the components."""
        d = x.shape[1]
        result = np.empty((len(x), len(self.weights)))
        for k, (nu, root) in enumerate(zip(self.df, self.roots, strict=True)):
            constant = gammaln((nu + d) / 2) - gammaln(nu / 2) - 0.5 * d * np.log(nu * np.pi)
            constant -= np.sum(np.log(np.diag(root)))
            result[:, k] = constant - 0.5 * (nu + d) * np.log1p(self.distance(x, k) / nu)
        return result

    def distance(self, x: Array, component: int) -> Array:
        """Squared Mahalanobis distance (S,) from a component."""
        white = solve_triangular(
            self.roots[component], (x - self.means[component]).T, lower=True, check_finite=False
        )
        return np.einsum("ds,ds->s", white, white)

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
    log_parts = mixture.component_logpdf(x) + np.log(mixture.weights)
    shares = np.exp(log_parts - logsumexp(log_parts, axis=1, keepdims=True)) * weights[:, None]
    totals = shares.sum(axis=0)
    kept = np.flatnonzero(totals > SMALLEST_SHARE)
    means, roots = [], []
    for k in kept:
        nu = mixture.df[k]
        scale = (nu + d) / (nu + mixture.distance(x, int(k)))
        tilted = shares[:, k] * scale
        mean = tilted @ x / tilted.sum()
        gap = x - mean
        cov = (gap * tilted[:, None]).T @ gap / totals[k]
        # A component narrower than a tenth of the whole would follow single points.
        roots.append(_root(cov + 0.01 * overall @ overall.T))
        means.append(mean)
    return StudentMixture(
        weights=totals[kept] / totals[kept].sum(),
        means=np.array(means),
        roots=np.array(roots),
        df=mixture.df[kept],
    )


def _root(cov: Array) -> Array:
    """Cholesky factor of a covariance matrix, with a ridge where it is nearly singular."""
    size = np.maximum(np.diag(cov), np.finfo(float).tiny)
    scale = np.sqrt(size)
    corr = cov / scale / scale[:, None]
    return np.asarray(scale[:, None] * np.linalg.cholesky(corr + 1e-9 * np.eye(len(cov))))
