"""Prior distributions with closed-form log densities, derivatives and draws.

Each record knows its support, its log density and the derivative of it, how to draw from itself
and which PyMC distribution it is, so that nothing but the last needs PyMC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Protocol, override, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaln, gammaln

from bayeslmm.exceptions import PriorError

Array = NDArray[np.float64]

_LOG_2 = float(np.log(2.0))
_LOG_2PI = float(np.log(2.0 * np.pi))


@runtime_checkable
class Prior(Protocol):
    """What every univariate prior offers."""

    @property
    def positive(self) -> bool:
        """Whether the density vanishes below zero."""

    @property
    def proper(self) -> bool:
        """Whether the density integrates to one."""

    def logpdf(self, x: ArrayLike) -> Array:
        """Return the log density at `x`, ``-inf`` outside the support."""

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return the derivative of the log density at `x`, zero outside the support."""

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""

    def dist(self) -> Any:
        """Return the prior as an unnamed PyMC distribution."""


class Record:
    """Text and parameters of a record."""

    __slots__ = ()

    def __str__(self) -> str:
        values = (format_number(value) for value in self.parameters().values())
        return f"{type(self).__name__}({', '.join(values)})"

    def parameters(self) -> dict[str, float]:
        """Return the parameters by the names that PyMC gives them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def require_finite(self, *names: str) -> None:
        """Raise unless the parameters `names` are one finite number each."""
        for name in names:
            value = getattr(self, name)
            if not (isinstance(value, Real) and np.isfinite(float(value))):
                raise PriorError(
                    f"{type(self).__name__} needs one finite number for {name}; got {value!r}."
                )

    def require_positive(self, *names: str) -> None:
        """Raise unless the parameters `names` are one positive, finite number each."""
        for name in names:
            value = getattr(self, name)
            if not (isinstance(value, Real) and np.isfinite(float(value)) and float(value) > 0):
                raise PriorError(
                    f"{type(self).__name__} needs a positive, finite {name}; got {value!r}."
                )


class _Family(Record):
    """Shared behaviour of the univariate records: support and conversion to PyMC."""

    __slots__ = ()

    positive: ClassVar[bool] = True
    proper: ClassVar[bool] = True

    def logpdf(self, x: ArrayLike) -> Array:
        """Return the log density at `x`, ``-inf`` outside the support."""
        x = np.asarray(x, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(self._logpdf(x))
        return np.where(x >= 0, value, -np.inf) if self.positive else value

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return the derivative of the log density at `x`, zero outside the support."""
        x = np.asarray(x, dtype=float)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.asarray(self._dlogpdf(x))
        return np.where(x >= 0, value, 0.0) if self.positive else value

    def dist(self) -> Any:
        """Return the prior as an unnamed PyMC distribution."""
        import pymc as pm

        return getattr(pm, type(self).__name__).dist(**self.parameters())

    def _logpdf(self, x: Array) -> Array:
        raise NotImplementedError

    def _dlogpdf(self, x: Array) -> Array:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Fixed(Record):
    """No distribution: the parameter is known.

    Densities are with respect to the parameters that are not known, to which this adds nothing.

    Attributes
    ----------
    z : tuple of float
        Its coordinates: the log of a standard deviation, a power, the coordinates of correlations.
    value : float
        The parameter itself; NaN for correlations that are several.

    Examples
    --------
    >>> print(Fixed((0.0,), 1.0))
    fixed at 1
    """

    z: tuple[float, ...]
    value: float

    positive: ClassVar[bool] = False
    proper: ClassVar[bool] = True

    def __str__(self) -> str:
        return "fixed" if np.isnan(self.value) else f"fixed at {format_number(self.value)}"

    @override
    def parameters(self) -> dict[str, float]:
        return {"value": self.value, **{f"z{i}": z for i, z in enumerate(self.z)}}

    @classmethod
    def of(cls, parameters: Mapping[str, float]) -> Fixed:
        """The inverse of :meth:`parameters`."""
        rest = {key: value for key, value in parameters.items() if key != "value"}
        return cls(tuple(rest.values()), parameters.get("value", np.nan))

    def logpdf(self, x: ArrayLike) -> Array:
        """Return zeros."""
        return np.zeros(np.shape(x))

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return zeros."""
        return np.zeros(np.shape(x))

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Return the value `size` times."""
        return np.full(size, self.value)

    def dist(self) -> Any:
        """Refuse: a known parameter is a constant of a PyMC model."""
        raise PriorError("A parameter that is fixed has no distribution.")


@dataclass(frozen=True, slots=True)
class Normal(_Family):
    """Normal distribution.

    Attributes
    ----------
    mu, sigma : float
        Mean and standard deviation.

    Examples
    --------
    >>> print(Normal(0.0, 12.5))
    Normal(0, 12.5)
    """

    mu: float
    sigma: float

    positive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.require_finite("mu")
        self.require_positive("sigma")

    def _logpdf(self, x: Array) -> Array:
        return -0.5 * (((x - self.mu) / self.sigma) ** 2 + _LOG_2PI) - np.log(self.sigma)

    def _dlogpdf(self, x: Array) -> Array:
        return (self.mu - x) / self.sigma**2

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return rng.normal(self.mu, self.sigma, size)


@dataclass(frozen=True, slots=True)
class HalfNormal(_Family):
    """Normal distribution of mean zero, folded at zero.

    Attributes
    ----------
    sigma : float
        Standard deviation before folding.
    """

    sigma: float

    def __post_init__(self) -> None:
        self.require_positive("sigma")

    def _logpdf(self, x: Array) -> Array:
        return _LOG_2 - 0.5 * ((x / self.sigma) ** 2 + _LOG_2PI) - np.log(self.sigma)

    def _dlogpdf(self, x: Array) -> Array:
        return -x / self.sigma**2

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return np.abs(rng.normal(0.0, self.sigma, size))


@dataclass(frozen=True, slots=True)
class HalfStudentT(_Family):
    """Student t distribution at zero, folded at zero: the default for standard deviations.

    Attributes
    ----------
    nu : float
        Degrees of freedom.
    sigma : float
        Scale.

    Examples
    --------
    >>> print(HalfStudentT(3.0, 56.3))
    HalfStudentT(3, 56.3)
    """

    nu: float
    sigma: float

    def __post_init__(self) -> None:
        self.require_positive("nu", "sigma")

    def _logpdf(self, x: Array) -> Array:
        nu = self.nu
        constant = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(nu * np.pi)
        kernel = -0.5 * (nu + 1) * np.log1p((x / self.sigma) ** 2 / nu)
        return _LOG_2 + constant - np.log(self.sigma) + kernel

    def _dlogpdf(self, x: Array) -> Array:
        return -(self.nu + 1) * x / (self.nu * self.sigma**2 + x**2)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return np.abs(self.sigma * rng.standard_t(self.nu, size))


@dataclass(frozen=True, slots=True)
class HalfCauchy(_Family):
    """Cauchy distribution at zero, folded at zero.

    Attributes
    ----------
    beta : float
        Scale.
    """

    beta: float

    def __post_init__(self) -> None:
        self.require_positive("beta")

    def _logpdf(self, x: Array) -> Array:
        return _LOG_2 - np.log(np.pi * self.beta) - np.log1p((x / self.beta) ** 2)

    def _dlogpdf(self, x: Array) -> Array:
        return -2 * x / (self.beta**2 + x**2)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return np.abs(self.beta * rng.standard_cauchy(size))


@dataclass(frozen=True, slots=True)
class Exponential(_Family):
    """Exponential distribution.

    Attributes
    ----------
    lam : float
        Rate, one over the mean.
    """

    lam: float

    def __post_init__(self) -> None:
        self.require_positive("lam")

    def _logpdf(self, x: Array) -> Array:
        return np.log(self.lam) - self.lam * x

    def _dlogpdf(self, x: Array) -> Array:
        return np.full_like(x, -self.lam)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return rng.exponential(1.0 / self.lam, size)


@dataclass(frozen=True, slots=True)
class Gamma(_Family):
    """Gamma distribution.

    Attributes
    ----------
    alpha, beta : float
        Shape and rate: the mean is ``alpha / beta``.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        self.require_positive("alpha", "beta")

    def _logpdf(self, x: Array) -> Array:
        constant = self.alpha * np.log(self.beta) - gammaln(self.alpha)
        power = 0.0 if self.alpha == 1 else (self.alpha - 1) * np.log(x)
        return constant + power - self.beta * x

    def _dlogpdf(self, x: Array) -> Array:
        power = 0.0 if self.alpha == 1 else (self.alpha - 1) / x
        return power - self.beta + np.zeros_like(x)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return rng.gamma(self.alpha, 1.0 / self.beta, size)


@dataclass(frozen=True, slots=True)
class InverseGamma(_Family):
    """Inverse gamma distribution.

    Attributes
    ----------
    alpha, beta : float
        Shape and scale: the mean is ``beta / (alpha - 1)``.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        self.require_positive("alpha", "beta")

    def _logpdf(self, x: Array) -> Array:
        constant = self.alpha * np.log(self.beta) - gammaln(self.alpha)
        inside = constant - (self.alpha + 1) * np.log(x) - self.beta / x
        return np.where(x > 0, inside, -np.inf)

    def _dlogpdf(self, x: Array) -> Array:
        return np.where(x > 0, (self.beta / x - self.alpha - 1) / x, 0.0)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return self.beta / rng.gamma(self.alpha, 1.0, size)


@dataclass(frozen=True, slots=True)
class LogNormal(_Family):
    """Distribution whose logarithm is normal.

    Attributes
    ----------
    mu, sigma : float
        Mean and standard deviation of the logarithm.
    """

    mu: float
    sigma: float

    def __post_init__(self) -> None:
        self.require_finite("mu")
        self.require_positive("sigma")

    def _logpdf(self, x: Array) -> Array:
        log_x = np.log(x)
        z = (log_x - self.mu) / self.sigma
        inside = -0.5 * (z**2 + _LOG_2PI) - np.log(self.sigma) - log_x
        return np.where(x > 0, inside, -np.inf)

    def _dlogpdf(self, x: Array) -> Array:
        return np.where(x > 0, -(1 + (np.log(x) - self.mu) / self.sigma**2) / x, 0.0)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return rng.lognormal(self.mu, self.sigma, size)


@dataclass(frozen=True, slots=True)
class Uniform(_Family):
    """Uniform distribution: the default for the correlation parameters of covariance patterns.

    Attributes
    ----------
    lower, upper : float
        The ends of the range.

    Examples
    --------
    >>> print(Uniform(-0.5, 1.0))
    Uniform(-0.5, 1)
    """

    lower: float
    upper: float

    positive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.require_finite("lower", "upper")
        if not self.lower < self.upper:
            raise PriorError(f"Uniform needs ends in order; got {self.lower}, {self.upper}.")

    def _logpdf(self, x: Array) -> Array:
        inside = (self.lower <= x) & (x <= self.upper)
        return np.where(inside, -np.log(self.upper - self.lower), -np.inf)

    def _dlogpdf(self, x: Array) -> Array:
        return np.zeros_like(x)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Draw `size` independent values."""
        return rng.uniform(self.lower, self.upper, size)


@dataclass(frozen=True, slots=True)
class Flat(_Family):
    """Improper uniform density, one everywhere.

    On a standard deviation it stands for :class:`HalfFlat`; on correlations for the uniform
    distribution over correlation matrices, ``LKJ(1)``.
    """

    positive: ClassVar[bool] = False
    proper: ClassVar[bool] = False

    def __str__(self) -> str:
        return "flat"

    def _logpdf(self, x: Array) -> Array:
        return np.zeros_like(x)

    def _dlogpdf(self, x: Array) -> Array:
        return np.zeros_like(x)

    def sample(self, rng: np.random.Generator, size: int) -> Array:
        """Refuse: there is nothing to draw from."""
        raise PriorError("A flat prior is improper: it cannot be drawn from.")


@dataclass(frozen=True, slots=True)
class HalfFlat(Flat):
    """Improper uniform density, one on the positive half line."""

    positive: ClassVar[bool] = True


def format_number(value: float) -> str:
    """Write a number with three significant digits, or all digits before the decimal point."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


@dataclass(frozen=True, slots=True)
class LKJ(Record):
    """LKJ distribution of a correlation matrix, a density proportional to ``det(Omega)**(eta-1)``.

    Attributes
    ----------
    eta : float
        Shape; 1 is uniform over correlation matrices, larger values favour weak correlations.

    Notes
    -----
    Densities are with respect to Lebesgue measure on the entries of the correlation matrix, not
    of its Cholesky factor, although the factor is the argument.

    References
    ----------
    Lewandowski, Kurowicka, Joe (2009), doi:10.1016/j.jmva.2009.04.008.

    Examples
    --------
    >>> round(float(LKJ(1.0).logpdf([[1.0, 0.0], [0.6, 0.8]])), 4)   # uniform on (-1, 1)
    -0.6931
    """

    eta: float

    def __post_init__(self) -> None:
        self.require_positive("eta")

    def logpdf(self, x: ArrayLike) -> Array:
        """Return the log density at Cholesky factors `x` of shape (..., k, k)."""
        chol = np.asarray(x, dtype=float)
        with np.errstate(divide="ignore"):
            log_diag = np.log(np.diagonal(chol, axis1=-2, axis2=-1)).sum(axis=-1)
        constant = self.log_constant(chol.shape[-1])
        power = np.zeros_like(log_diag) if self.eta == 1 else 2 * (self.eta - 1) * log_diag
        return np.asarray(constant + power, dtype=float)

    def logpdf_correlation(self, omega: ArrayLike) -> Array:
        """Return the log density at correlation matrices `omega` of shape (..., k, k)."""
        matrix = np.asarray(omega, dtype=float)
        constant = self.log_constant(matrix.shape[-1])
        if self.eta == 1:
            return np.full(matrix.shape[:-2], constant)
        with np.errstate(divide="ignore"):
            log_det: Array = np.linalg.slogdet(matrix)[1]
        return constant + (self.eta - 1) * log_det

    def dlogpdf(self, x: ArrayLike) -> Array:
        """Return the derivative of the log density by the entries of the factor, same shape."""
        chol = np.asarray(x, dtype=float)
        return 2 * (self.eta - 1) * np.eye(chol.shape[-1]) / np.where(chol == 0, 1.0, chol)

    def log_constant(self, size: int) -> float:
        """Return the log normalising constant of ``size x size`` matrices."""
        shape = self._beta_shapes(size)
        terms = betaln(shape, shape) + (2 * shape - 1) * _LOG_2
        return float(-np.sum(np.arange(size - 1, 0, -1) * terms))

    def sample_cholesky(self, rng: np.random.Generator, draws: int, size: int) -> Array:
        """Draw Cholesky factors (draws, size, size) through canonical partial correlations."""
        lower = np.zeros((draws, size, size))
        lower[:, 0, 0] = 1.0
        shape = self._beta_shapes(size)
        for row in range(1, size):
            left = np.ones(draws)
            for col in range(row):
                partial = 2 * rng.beta(shape[col], shape[col], draws) - 1
                lower[:, row, col] = partial * left
                left = left * np.sqrt(1 - partial**2)
            lower[:, row, row] = left
        return lower

    def _beta_shapes(self, size: int) -> Array:
        """Beta shape of the partial correlations in each column, (size - 1,)."""
        return np.asarray(self.eta + 0.5 * np.arange(size - 2, -1, -1), dtype=float)
