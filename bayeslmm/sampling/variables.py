"""PyMC variables of priors: scalars and vectors, correlation matrices, covariance matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from numpy.typing import NDArray
from pymc.distributions.shape_utils import rv_size_is_none
from pymc.logprob.transforms import Transform

from bayeslmm.covariance.coordinates import is_identity
from bayeslmm.covariance.pattern import Pattern
from bayeslmm.covariance.structure import Structure
from bayeslmm.data.random_factors import RandomFactor
from bayeslmm.priors.families import LKJ, Fixed, Flat, Record
from bayeslmm.schema import coef_bis_dim, coef_dim, cor_name, sd_name

Array = NDArray[np.float64]


class CorrelationTransform(Transform):
    """Cholesky factor of a correlation matrix to arctanh of canonical partial correlations.

    The Jacobian is that of the correlation matrix, not of its factor, to go with a density on
    correlation matrices.

    Parameters
    ----------
    size : int
        Number of rows of the matrix.
    """

    name = "correlation"
    ndim_supp = 1

    def __init__(self, size: int) -> None:
        self.size = size
        self.cells = np.tril_indices(size, -1)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Return the unconstrained coordinates (size * (size - 1) / 2,), row by row."""
        squares = pt.cumsum(value**2, axis=-1)
        left = pt.sqrt(1.0 - squares + value**2)
        return pt.arctanh((value / left)[..., self.cells[0], self.cells[1]])

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Return the Cholesky factor (size, size)."""
        zeros = pt.zeros((*value.shape[:-1], self.size, self.size))
        coordinates = zeros[..., self.cells[0], self.cells[1]].set(value)
        log_left = -_log_cosh(coordinates)
        left = pt.exp(pt.cumsum(log_left, axis=-1) - log_left)
        return left * (pt.tanh(coordinates) + np.eye(self.size))

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Return the log Jacobian of the correlation matrix by the coordinates."""
        return pt.sum(-(self.size - self.cells[1]) * _log_cosh(value), axis=-1)


def lkj_cholesky(name: str, prior: LKJ, size: int) -> Any:
    """Cholesky factor of an LKJ correlation matrix, its density that of the matrix.

    ``pm.LKJCorr`` has the density of the factor instead, which moves the mode of matrices of three
    or more rows.
    """
    constant = prior.log_constant(size)
    transform = CorrelationTransform(size)

    def logp(value: Any, eta: Any) -> Any:
        log_diag = pt.log(pt.diagonal(value, axis1=-2, axis2=-1))
        return constant + 2.0 * (eta - 1.0) * pt.sum(log_diag, axis=-1)

    def dist(eta: Any, batch: Any) -> Any:
        shape = eta + 0.5 * (size - 2 - transform.cells[1])
        batch = None if rv_size_is_none(batch) else (*batch, len(transform.cells[1]))
        partial = 2.0 * pm.Beta.dist(shape, shape, size=batch) - 1.0
        return transform.backward(pt.arctanh(partial))

    return pm.CustomDist(
        name,
        prior.eta,
        dist=dist,
        logp=logp,
        support_point=lambda *_: pt.eye(size),
        signature="()->(n,n)",
        class_name="LKJ",
        default_transform=transform,
    )


def _log_cosh(x: Any) -> Any:
    return pt.softplus(2.0 * x) - x - np.log(2.0)


def variable(
    name: str, priors: Sequence[Any], dim: str | None, start: Any, *, vector: bool = False
) -> Any:
    """Model variable of one prior, or a vector of several along `dim` or without a dimension.

    `start` is where flat priors start; the others start where PyMC has them start.
    """
    first = priors[0]
    if vector:
        own = [variable(f"{name}_{i}", (prior,), None, start) for i, prior in enumerate(priors)]
        return pt.stack(own)
    if dim is None and isinstance(first, Fixed):
        return pm.Deterministic(name, pt.constant(first.value))
    closed = isinstance(first, Record) and not isinstance(first, Fixed)
    if closed and all(type(prior) is type(first) for prior in priors):
        initval = start if isinstance(first, Flat) else None
        return _closed_form_variable(name, priors, dim, initval)
    if dim is None:
        return pm.modelcontext(None).register_rv(first.dist(), name=name)
    starts = np.broadcast_to(start, len(priors))
    parts = [variable(f"_{name}_{i}", (prior,), None, starts[i]) for i, prior in enumerate(priors)]
    return pm.Deterministic(name, pt.stack(parts), dims=dim)


def _closed_form_variable(name: str, priors: Sequence[Any], dim: str | None, initval: Any) -> Any:
    family = getattr(pm, type(priors[0]).__name__)
    parameters = [prior.parameters() for prior in priors]
    stacked = {key: np.array([values[key] for values in parameters]) for key in parameters[0]}
    if dim is None:
        scalars = {key: values[0] for key, values in stacked.items()}
        return family(name, **scalars, initval=initval)
    if initval is not None:
        initval = np.broadcast_to(np.asarray(initval, dtype=float), len(priors)).copy()
    return family(name, **stacked, dims=dim, initval=initval)


def covariance_root(
    factor: RandomFactor,
    structure: Structure,
    mixing: Array,
    sd_priors: Sequence[Any],
    cor_priors: Sequence[Any],
    spread: float,
) -> Any:
    """Lower root (k, k) of a covariance matrix with priors on its working columns."""
    key, k = factor.key, factor.n_coefs
    plain = is_identity(mixing)
    name = sd_name(key) if plain else working_sd_name(key)
    sd = _scales(name, sd_priors, structure, coef_dim(key), spread)
    chol = pt.eye(k)
    parts = zip(structure.blocks, structure.parts, cor_priors, strict=True)
    for number, (block, part, prior) in enumerate(parts):
        if prior is not None:
            own = _correlation_root(chol_name(key, number), part, prior)
            at = np.array(block)
            chol = own if len(block) == k else chol[at[:, None], at].set(own)
    root = sd[:, None] * chol
    rows = chol
    if not plain:
        own = pt.dot(mixing, root)
        lengths = pt.sqrt(pt.sum(own**2, axis=1))
        pm.Deterministic(sd_name(key), lengths, dims=coef_dim(key))
        rows = own / lengths[:, None]
    if k > 1:
        _correlations(key, k, pt.dot(rows, rows.T))
    return root


def _scales(name: str, priors: Sequence[Any], structure: Structure, dim: str, start: float) -> Any:
    """Standard deviations (k,) of the coefficients, of which some may share one."""
    if structure.n_sds == structure.n_coefs:
        return variable(name, priors, dim, start)
    own = [variable(f"_{name}_{i}", (prior,), None, start) for i, prior in enumerate(priors)]
    return pm.Deterministic(name, pt.stack(own)[structure.sd_places], dims=dim)


def _correlation_root(name: str, part: Structure, prior: Any) -> Any:
    """Cholesky factor (k, k) of the correlations of one block."""
    if isinstance(prior, Fixed):
        return pm.Deterministic(name, pt.constant(part.cholesky(np.array([prior.z]))[0]))
    if not isinstance(part, Pattern):
        return lkj_cholesky(name, prior, part.n_coefs)
    own = [variable(f"{name}_{i}", (prior,), None, 0.0) for i in range(part.n_cors)]
    sines = [part.sine(parameter) for parameter in own]
    cosines = [pt.sqrt(1.0 - sine**2) for sine in sines]
    rows = part.rows(sines, cosines, [pt.constant(unit) for unit in np.eye(part.n_coefs)])
    return pm.Deterministic(name, pt.stack(rows))


def _correlations(key: str, k: int, product: Any) -> None:
    """Record correlation matrices, with a diagonal of exactly one."""
    diagonal = np.arange(k)
    dims = (coef_dim(key), coef_bis_dim(key))
    pm.Deterministic(cor_name(key), product[diagonal, diagonal].set(1.0), dims=dims)


def working_sd_name(key: str) -> str:
    """Name of the standard deviations of the working columns, where they are not the user's."""
    return f"_{sd_name(key)}_working"


def chol_name(key: str, block: int) -> str:
    """Name of the Cholesky factor of the correlations of one block."""
    return f"_chol_{key}__{block}"


def mixed(mixing: Array, values: Any) -> Any:
    """Rows (k, ...) of the user's columns from those of the working columns."""
    return values if is_identity(mixing) else pt.dot(mixing, values)
