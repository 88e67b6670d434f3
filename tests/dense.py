"""Brute-force dense algebra on small designs: the ground truth of the marginal layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bayeslmm.covariance.structure import Structure
from bayeslmm.data.memberships import Slot
from bayeslmm.data.relationships import Relationship


@dataclass(frozen=True)
class Columns:
    """The columns that cross-products need of a grouping factor."""

    codes: np.ndarray
    Z: np.ndarray
    blocks: tuple[tuple[int, ...], ...]
    n_levels: int
    relationship: Relationship | None = None
    named: tuple[str, ...] = ()
    others: tuple[tuple[np.ndarray, np.ndarray], ...] = ()
    """Further levels of each row and their covariates, which add up."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All levels of each row and their covariates."""
        return tuple(Slot(c, z, c) for c, z in ((self.codes, self.Z), *self.others))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the covariance structures, unstructured where none are given."""
        return self.named or ("us",) * len(self.blocks)

    @property
    def between(self) -> np.ndarray:
        """Covariance of the levels, up to Sigma."""
        known = self.relationship
        return np.eye(self.n_levels) if known is None else known.covariance


@dataclass(frozen=True)
class Case:
    """A small design with its response."""

    y: np.ndarray
    X: np.ndarray
    random: tuple[Columns, ...]
    weights: np.ndarray | None
    residual: Any = None

    @property
    def offset(self) -> np.ndarray:
        return np.zeros(len(self.y))

    def z_matrix(self, factor: int) -> np.ndarray:
        """Dense Z of one grouping factor."""
        columns = self.random[factor]
        k = columns.Z.shape[1]
        z = np.zeros((len(self.y), columns.n_levels * k))
        for codes, covariates, _ in columns.slots:
            z[np.arange(len(z))[:, None], codes[:, None] * k + np.arange(k)] += covariates
        return z

    def covariance(self, factors: list[np.ndarray]) -> np.ndarray:
        """V over sigma^2 at relative factors."""
        n = len(self.y)
        v = np.eye(n) if self.weights is None else np.diag(1.0 / self.weights)
        for f, t in enumerate(factors):
            z = self.z_matrix(f)
            v = v + z @ np.kron(self.random[f].between, t @ t.T) @ z.T
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
    return np.exp(eta[:k] - log_sigma)[:, None] * structure.cholesky(eta[k:])


def case_of(design: Any) -> Case:
    """The dense case of a design, its offset taken from the response."""
    random = tuple(
        Columns(
            first.codes,
            first.Z,
            f.blocks,
            f.n_levels,
            f.relationship,
            f.kinds,
            tuple((slot.codes, slot.Z) for slot in others),
        )
        for f in design.random
        for first, *others in [f.slots]
    )
    return Case(design.y - design.offset, design.X, random, design.weights)


def all_z(case: Case) -> np.ndarray:
    """Dense Z (n, q) of all grouping factors, level by level, factor by factor."""
    return np.hstack([case.z_matrix(f) for f in range(len(case.random))])


def fixed_moments(
    case: Case, factors: list[np.ndarray], sigma: float, mean: np.ndarray, precision: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (p,) and covariance (p, p) of beta given the covariance parameters, u integrated out."""
    inverse = np.linalg.inv(sigma**2 * case.covariance(factors))
    cov = np.linalg.inv(case.X.T @ inverse @ case.X + precision)
    return cov @ (case.X.T @ inverse @ case.y + precision @ mean), cov


def random_moments(
    case: Case, factors: list[np.ndarray], sigma: float, beta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean (q,) and covariance (q, q) of all random effects given beta and all else."""
    z = all_z(case)
    g = np.zeros((z.shape[1], z.shape[1]))
    start = 0
    for columns, t in zip(case.random, factors, strict=True):
        stop = start + columns.n_levels * len(t)
        g[start:stop, start:stop] = np.kron(columns.between, sigma**2 * t @ t.T)
        start = stop
    gain = np.linalg.solve(sigma**2 * case.covariance(factors), z @ g).T
    return gain @ (case.y - case.X @ beta), g - gain @ z @ g


def log_posterior_dense(
    case: Case, priors: Any, sds: list[np.ndarray], chols: list[np.ndarray], sigma: float
) -> float:
    """Log density of y and the covariance parameters themselves, beta and u integrated out.

    Under a flat prior on beta the likelihood is the restricted one.
    """
    factors = [sd[:, None] * chol / sigma for sd, chol in zip(sds, chols, strict=True)]
    v = sigma**2 * case.covariance(factors)
    if priors.beta_precision is not None:
        v = v + case.X @ np.linalg.solve(priors.beta_precision, case.X.T)
        gap = case.y - case.X @ priors.beta_mean
        value = len(gap) * np.log(2 * np.pi) + np.linalg.slogdet(v)[1]
        value = -0.5 * (value + gap @ np.linalg.solve(v, gap))
    else:
        inverse = np.linalg.inv(v)
        information = case.X.T @ inverse @ case.X
        gap = case.y - case.X @ np.linalg.solve(information, case.X.T @ inverse @ case.y)
        n, p = case.X.shape
        value = (n - p) * np.log(2 * np.pi) + np.linalg.slogdet(v)[1]
        value = -0.5 * (value + np.linalg.slogdet(information)[1] + gap @ inverse @ gap)
    for sd, chol, sd_priors, blocks, lkjs in zip(
        sds, chols, priors.sd, priors.blocks, priors.cor, strict=True
    ):
        value += sum(float(prior.logpdf(s)) for prior, s in zip(sd_priors, sd, strict=True))
        for block, lkj in zip(blocks, lkjs, strict=True):
            if lkj is not None:
                value += float(lkj.logpdf(chol[np.ix_(block, block)]))
    return float(value + priors.sigma.logpdf(sigma))


def numerical(function, x, step=1e-6):
    """Central-difference gradient."""
    x = np.asarray(x, dtype=float)
    result = np.empty_like(x)
    for i in range(x.size):
        shift = np.zeros_like(x)
        shift.flat[i] = step
        result.flat[i] = (function(x + shift) - function(x - shift)) / (2 * step)
    return result


def assert_factor_gradients(density, plan, factors, gradients, tolerance):
    """Gradients by the free entries of each factor equal differences of ``density(factors)``."""
    for f, structure in enumerate(plan.products.structures):
        index = structure.theta_index

        def moved(entries, f=f, index=index):
            t = np.array(factors[f], dtype=float)
            t[index] = entries
            return density([*factors[:f], t, *factors[f + 1 :]])

        expected = numerical(moved, factors[f][index])
        assert gradients[f][index] == pytest.approx(expected, abs=tolerance)
