"""Priors of Student-t residuals and of the predictors of the residual scale.

The scale at the column means of its predictors has the prior of sigma. The other columns are
centred and made orthonormal, with standard deviation one, as those of the fixed effects; their
coefficients are Normal(0, 1) on the log scale: one sd of a covariate changes the scale by a factor
of 1/e to e or so. Standard deviations of random effects in the log scale are HalfStudentT(3, 1) on
their working columns. So neither units nor origin of the covariates matter, and the response only
through sigma.

References
----------
Juarez, Steel (2010), doi:10.1198/jbes.2009.07145, and brms for nu ~ Gamma(2, 0.1). brms gives the
sd of random effects in log sigma a half-t of three degrees of freedom too, of scale 2.5, which
allows levels whose scales differ by a factor of e^5; coefficients have a flat prior there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import blocked
from bayeslmm.covariance.scale import ScalePoints
from bayeslmm.covariance.structure import Structure
from bayeslmm.priors.families import LKJ, Gamma, Normal, Prior

Array = NDArray[np.float64]

DEGREES_OF_FREEDOM = Gamma(2.0, 0.1)
LOG_SCALE = 1.0
"""Scale of the priors on what changes log sigma."""


@dataclass(frozen=True, kw_only=True)
class ScaleLabels:
    """The names of the parameters of Student-t residuals and of predictors of the scale.

    Attributes
    ----------
    student : bool
        Whether there are degrees of freedom.
    coefs : tuple of str
        Labels of the q coefficients of the log scale, the intercept first; empty without them.
    factors, factor_coefs, blocks
        Grouping factors of its random effects, as of :class:`bayeslmm.priors.record.Labels`.
    """

    student: bool
    coefs: tuple[str, ...]
    factors: tuple[str, ...]
    factor_coefs: tuple[tuple[str, ...], ...]
    blocks: tuple[tuple[tuple[int, ...], ...], ...]

    @property
    def structures(self) -> tuple[Structure, ...]:
        """Covariance structure of each grouping factor."""
        return tuple(blocked(blocks, ("us",) * len(blocks)) for blocks in self.blocks)

    @property
    def names(self) -> dict[tuple[str, int, int], str]:
        """Name in the table of each parameter but sigma, by kind, grouping factor and place."""
        found = {("nu", 0, 0): "nu"} if self.student else {}
        found |= {("beta_sigma", 0, j): f"beta_sigma[{c}]" for j, c in enumerate(self.coefs) if j}
        for f, (name, coefs) in enumerate(zip(self.factors, self.factor_coefs, strict=True)):
            found |= {("sd_sigma", f, s): f"sd_sigma[{name}, {c}]" for s, c in enumerate(coefs)}
        for f, (name, coefs) in enumerate(zip(self.factors, self.factor_coefs, strict=True)):
            several = sum(len(block) > 1 for block in self.blocks[f]) > 1
            for b, block in enumerate(self.blocks[f]):
                inside = f", {', '.join(coefs[c] for c in block)}" if several else ""
                if len(block) > 1:
                    found["cor_sigma", f, b] = f"cor_sigma[{name}{inside}]"
        return found

    @property
    def keys(self) -> dict[str, list[tuple[str, int, int]]]:
        """Parameters that each key of a user addresses, from the general to the specific."""
        slots = list(self.names)
        general = {kind: [s for s in slots if s[0] == kind] for kind in KINDS if kind != "nu"}
        for f, name in enumerate(self.factors):
            for kind in ("sd_sigma", "cor_sigma"):
                own = [s for s in slots if s[:2] == (kind, f)]
                general[f"{kind}[{name}]"] = own
        return general | {name: [slot] for slot, name in self.names.items()}


KINDS = ("nu", "beta_sigma", "sd_sigma", "cor_sigma")


@dataclass(frozen=True, eq=False, kw_only=True)
class ScalePriors:
    """Priors on the parameters of :class:`ScaleLabels`.

    Attributes
    ----------
    nu : Prior or None
        On the degrees of freedom.
    fixed_map : ndarray (q, q)
        The matrix C of the coordinates ``C gamma``: the first is log sigma at the column means.
    gamma : tuple of Prior
        On the others (q - 1).
    alone : tuple of bool
        Which of them are the coefficient of the same place; the others share a joint prior.
    mixing : tuple of ndarray (k, k)
        Working columns of the random effects are ``Z @ W``.
    sd : tuple of tuple of Prior
        On the standard deviations of the working columns.
    cor : tuple of tuple of (LKJ or None)
        On the correlations of each block.
    """

    nu: Prior | None
    fixed_map: Array
    gamma: tuple[Prior, ...]
    alone: tuple[bool, ...]
    mixing: tuple[Array, ...]
    sd: tuple[tuple[Prior, ...], ...]
    cor: tuple[tuple[LKJ | None, ...], ...]

    def records(self, labels: ScaleLabels) -> dict[str, Prior | LKJ]:
        """The priors by the names that tables show, marginal where joint."""
        found: dict[tuple[str, int, int], Prior | LKJ] = {}
        if self.nu is not None:
            found["nu", 0, 0] = self.nu
        inverse = np.linalg.inv(self.fixed_map)[1:, 1:]
        normals = [p if isinstance(p, Normal) else Normal(0.0, 1.0) for p in self.gamma]
        means = inverse @ np.array([p.mu for p in normals])
        sds = np.sqrt(inverse**2 @ np.array([p.sigma for p in normals]) ** 2)
        for j, (prior, alone) in enumerate(zip(self.gamma, self.alone, strict=True)):
            found["beta_sigma", 0, j + 1] = (
                prior if alone else Normal(float(means[j]), float(sds[j]))
            )
        for f, (sds_of, cors) in enumerate(zip(self.sd, self.cor, strict=True)):
            found |= {("sd_sigma", f, s): prior for s, prior in enumerate(sds_of)}
            found |= {("cor_sigma", f, b): p for b, p in enumerate(cors) if p is not None}
        return {name: found[slot] for slot, name in labels.names.items()}

    def coefficients(self, sigma: Array, others: Array) -> Array:
        """Coefficients (S, q) from the scale at the column means (S,) and coordinates (S, q-1)."""
        with np.errstate(divide="ignore"):
            own = np.concatenate([np.log(sigma)[:, None], others], axis=1)
        return own @ np.linalg.inv(self.fixed_map).T

    def sample(self, labels: ScaleLabels, sigma: Array, rng: np.random.Generator) -> ScalePoints:
        """Draw from the prior, given draws of sigma (S,); random effects are left out."""
        size = len(sigma)
        nu = None if self.nu is None else self.nu.sample(rng, size)
        others = _columns([prior.sample(rng, size) for prior in self.gamma], size)
        gamma = self.coefficients(sigma, others) if labels.coefs else np.empty((size, 0))
        sds, chols = [], []
        for f, structure in enumerate(labels.structures):
            sd = _columns([prior.sample(rng, size) for prior in self.sd[f]], size)
            chol = np.tile(np.eye(structure.n_coefs), (size, 1, 1))
            for block, prior in zip(labels.blocks[f], self.cor[f], strict=True):
                if prior is not None:
                    rows = np.array(block)
                    chol[:, rows[:, None], rows] = prior.sample_cholesky(rng, size, len(block))
            root = self.mixing[f] @ (sd[:, :, None] * chol)
            lengths = np.linalg.norm(root, axis=2)
            sds.append(lengths)
            chols.append(root / np.where(lengths > 0, lengths, 1.0)[:, :, None])
        return ScalePoints(nu=nu, gamma=gamma, sds=tuple(sds), chols=tuple(chols))

    def logpdf(self, labels: ScaleLabels, points: ScalePoints) -> dict[str, Array]:
        """Log density (S,) by kind and grouping factor, at points in the columns of users.

        That of the standard deviations and correlations is meant for their working columns.
        """
        result: dict[str, Array] = {}
        if self.nu is not None and points.nu is not None:
            result["nu"] = np.asarray(self.nu.logpdf(points.nu))
        if self.gamma:
            own = (points.gamma @ self.fixed_map.T)[:, 1:]
            result["beta_sigma"] = _total(self.gamma, own)
        for f, root in enumerate(points.roots):
            working = np.linalg.solve(self.mixing[f], root)
            lengths = np.linalg.norm(working, axis=2)
            result[f"sd_sigma {f}"] = _total(self.sd[f], lengths)
            rows = working / lengths[:, :, None]
            for block, prior in zip(labels.blocks[f], self.cor[f], strict=True):
                if prior is not None:
                    part = rows[:, list(block)]
                    value = prior.logpdf_correlation(part @ part.swapaxes(1, 2))
                    result[f"cor_sigma {f}"] = result.get(f"cor_sigma {f}", 0.0) + value
        return result


def fits(priors: ScalePriors | None, labels: ScaleLabels | None) -> bool:
    """Whether priors are for the parameters with these names."""
    if priors is None or labels is None:
        return priors is None and labels is None
    q, sizes = len(labels.coefs), [len(coefs) for coefs in labels.factor_coefs]
    return (
        (priors.nu is not None) == labels.student
        and priors.fixed_map.shape == (q, q)
        and len(priors.gamma) == len(priors.alone) == max(q - 1, 0)
        and [w.shape for w in priors.mixing] == [(k, k) for k in sizes]
        and [len(row) for row in priors.sd] == sizes
        and [len(row) for row in priors.cor] == [len(row) for row in labels.blocks]
    )


def _total(priors: Sequence[Prior], values: Array) -> Array:
    """Log density (S,) of independent values (S, m)."""
    return np.asarray(sum(prior.logpdf(values[:, j]) for j, prior in enumerate(priors)))


def _columns(columns: Sequence[Array], size: int) -> Array:
    return np.stack(columns, axis=1) if columns else np.empty((size, 0))
