"""Priors on the parameters of the residuals: standard deviations, powers, correlations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.residual import Correlation, Residual
from bayeslmm.covariance.structure import Structure
from bayeslmm.priors.families import LKJ, Fixed, Prior, Uniform

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class ResidualPriors:
    """Priors on the parameters of R.

    Attributes
    ----------
    structure : Residual
        Structure of the residuals.
    sd : tuple of Prior
        On the m standard deviations.
    power : tuple of Prior
        On the q coefficients of covariates in the log standard deviation.
    cor : tuple of LKJ or of Prior
        On the correlations of each arm: of the matrix, or of each of its parameters.
    """

    structure: Residual
    sd: tuple[Prior, ...]
    power: tuple[Prior, ...]
    cor: tuple[LKJ | Prior, ...]

    @property
    def uniform(self) -> LKJ | Prior | None:
        """The default prior on the correlations of an arm; None where there are none."""
        return uniform_residual_correlations(self.structure.correlation)

    def records(self) -> dict[str, Prior | LKJ]:
        """The priors by the names that tables show."""
        names = self.structure.prior_names
        return dict(zip(names, (*self.sd, *self.power, *self.cor), strict=True))

    def logpdf(self, sigma: Array, shapes: Array) -> Array:
        """Log density (S,) of the parameters at scales (S,) and shapes (S, r)."""
        sds, powers = self.structure.sds(sigma, shapes), self.structure.powers_of(shapes)
        value = np.zeros(len(sigma))
        for j, prior in enumerate(self.sd):
            value = value + prior.logpdf(sds[:, j])
        for j, prior in enumerate(self.power):
            value = value + prior.logpdf(powers[:, j])
        return value + self.log_cor(self.structure.cors_of(shapes))

    def log_cor(self, z: Array) -> Array:
        """Log density (S,) of the correlations at coordinates (S, n_cors)."""
        law, value = self.structure.correlation, np.zeros(len(z))
        if law is None:
            return value
        parts = z.reshape(len(z), law.n_arms, -1)
        for arm, prior in enumerate(self.cor):
            if isinstance(prior, LKJ):
                value = value + prior.logpdf(_matrices(law).cholesky(parts[:, arm]))
            elif not isinstance(prior, Fixed):
                value = value + np.sum(prior.logpdf(law.parameters(parts[:, arm])), axis=1)
        return value

    def slopes(self, sigma: float, shape: Array) -> tuple[float, Array]:
        """Derivatives of :meth:`logpdf` at one point by sigma at fixed shape, and by shape (r,)."""
        sds = self.structure.sds(np.array([sigma]), shape[None])[0]
        by_log = np.array([float(p.dlogpdf(sd)) * sd for p, sd in zip(self.sd, sds, strict=True)])
        powers = self.structure.powers_of(shape[None])[0]
        by_power = [float(p.dlogpdf(x)) for p, x in zip(self.power, powers, strict=True)]
        by_cor = self._cor_slopes(self.structure.cors_of(shape[None])[0])
        return float(by_log.sum()) / sigma, np.concatenate([by_log[1:], by_power, by_cor])

    def _cor_slopes(self, z: Array) -> Array:
        law = self.structure.correlation
        if law is None or not law.n_cors:
            return z
        parts, result = z.reshape(law.n_arms, -1), []
        for arm, prior in enumerate(self.cor):
            own = parts[arm]
            if isinstance(prior, Fixed):
                result.append(np.zeros_like(own))
            elif isinstance(prior, LKJ):
                matrices = _matrices(law)
                result.append(matrices.pull_back(own, prior.dlogpdf(matrices.cholesky(own))))
            else:
                slope = prior.dlogpdf(law.parameters(own[None])[0])
                result.append(slope * law.parameter_slopes(own))
        return np.concatenate(result)

    def sample(self, rng: np.random.Generator, size: int) -> tuple[Array, Array]:
        """Draw scales (S,) and shapes (S, r)."""
        sds = np.stack([prior.sample(rng, size) for prior in self.sd], axis=1)
        with np.errstate(divide="ignore"):
            ratios = np.log(sds[:, 1:]) - np.log(sds[:, :1])
        pieces = [ratios, *(prior.sample(rng, size)[:, None] for prior in self.power)]
        law = self.structure.correlation
        if law is not None:
            pieces += [self._sample_cor(prior, rng, size) for prior in self.cor]
        return sds[:, 0], np.concatenate(pieces, axis=1)

    def _sample_cor(self, prior: LKJ | Prior, rng: np.random.Generator, size: int) -> Array:
        law = self.structure.correlation
        assert law is not None
        if isinstance(prior, Fixed):
            return np.tile(prior.z, (size, 1))
        if isinstance(prior, LKJ):
            matrices = _matrices(law)
            return matrices.coordinates(prior.sample_cholesky(rng, size, matrices.n_coefs))
        count = law.n_cors // law.n_arms
        return law.from_parameters(
            np.stack([prior.sample(rng, size) for _ in range(count)], axis=1)
        )


def uniform_residual_correlations(law: Correlation | None) -> LKJ | Prior | None:
    """A uniform prior on the correlations of residuals; None where there are none."""
    if law is None or not law.n_cors:
        return None
    return LKJ(1.0) if law.on_matrix else Uniform(law.lowest, 1.0)


def _matrices(law: Correlation) -> Structure:
    """The structure of the matrix that an LKJ prior is on."""
    assert isinstance(law, OverOccasions)
    return law.structure
