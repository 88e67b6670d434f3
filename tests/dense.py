"""Brute-force dense algebra on small designs: the ground truth of the marginal layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bayeslmm.likelihood.covariance import Structure, correlation_cholesky


@dataclass(frozen=True)
class Columns:
    """The columns that cross-products need of a grouping factor."""

    codes: np.ndarray
    Z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]
    n_levels: int


@dataclass(frozen=True)
class Case:
    """A small design with its response."""

    y: np.ndarray
    X: np.ndarray
    random: tuple[Columns, ...]
    weights: np.ndarray | None

    @property
    def offset(self) -> np.ndarray:
        return np.zeros(len(self.y))

    def z_matrix(self, factor: int) -> np.ndarray:
        """Dense Z of one grouping factor."""
        columns = self.random[factor]
        k = columns.Z.shape[1]
        z = np.zeros((len(self.y), columns.n_levels * k))
        for row, code in enumerate(columns.codes):
            z[row, code * k : (code + 1) * k] = columns.Z[row]
        return z

    def covariance(self, factors: list[np.ndarray]) -> np.ndarray:
        """V over sigma^2 at relative factors."""
        n = len(self.y)
        v = np.eye(n) if self.weights is None else np.diag(1.0 / self.weights)
        for f, t in enumerate(factors):
            z = self.z_matrix(f)
            v = v + z @ np.kron(np.eye(self.random[f].n_levels), t @ t.T) @ z.T
        return v


def make_case(
    seed: int,
    n: int,
    levels: tuple[int, ...],
    blocks: tuple[tuple[tuple[int, ...], ...], ...],
    weighted: bool,
) -> Case:
    """A random unbalanced design with an intercept and two covariates."""
    rng = np.random.default_rng(seed)
    X = np.column_stack([np.ones(n), 3.0 * rng.normal(size=n) + 10.0, rng.normal(size=n)])
    random = []
    for count, block in zip(levels, blocks, strict=True):
        k = sum(len(part) for part in block)
        Z = np.column_stack([np.ones(n), *(rng.normal(size=n) + 2.0 for _ in range(k - 1))])
        codes = rng.permutation(
            np.concatenate([np.arange(count), rng.integers(0, count, n - count)])
        )
        random.append(Columns(codes.astype(np.intp), Z, block, count))
    y = rng.normal(size=n) + X @ [1.0, 2.0, 3.0]
    weights = rng.uniform(0.5, 2.0, n) if weighted else None
    return Case(y, X, tuple(random), weights)


def random_factors(case: Case, seed: int, *, singular: bool) -> list[np.ndarray]:
    """Lower-triangular relative factors with the structure of the case."""
    rng = np.random.default_rng(seed)
    result = []
    for columns in case.random:
        k = columns.Z.shape[1]
        t = np.zeros((k, k))
        for block in columns.blocks:
            t[np.ix_(block, block)] = np.tril(rng.normal(size=(len(block),) * 2))
        result.append(t)
    if singular:
        result[-1][-1, -1] = 0.0
    return result


def relative_factor(structure: Structure, eta: np.ndarray, log_sigma: float) -> np.ndarray:
    """Relative factor T (k, k) at unconstrained eta and log sigma."""
    k = structure.n_coefs
    return np.exp(eta[:k] - log_sigma)[:, None] * correlation_cholesky(structure, eta[k:])
