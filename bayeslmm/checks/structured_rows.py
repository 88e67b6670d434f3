"""Rows of models whose residuals have a structure: what leaving them out takes, draw by draw.

With U U' the conditional covariance of the linear predictor over sigma^2 and P the relative
precision matrix of the residuals, the precision of the response over sigma^-2, effects integrated
out, is ``S = P - (P U)(P U)'``, and S times the response less its mean is ``q = P e``, e the
conditional residual. Given all other rows, rows g are normal with mean ``y_g - S_gg^-1 q_g`` and
covariance ``sigma^2 S_gg^-1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.checks.row_forms import RowForms, row_forms, row_system
from bayeslmm.covariance.coordinates import Points
from bayeslmm.data.design import Design
from bayeslmm.estimation.residuals import residual_sds
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta
from bayeslmm.likelihood.marginal import LOG_2PI
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

AT_ONCE = 32
"""Draws whose covariance matrices are made at once."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StructuredRows:
    """The rows of a design at one draw of the covariance parameters.

    Attributes
    ----------
    forms : RowForms
        Rows of U and conditional residuals, of a single draw.
    precision : scipy.sparse.csr_array (n, n)
        P.
    covariance : scipy.sparse.csr_array (n, n)
        Its inverse.
    sds : ndarray (n,)
        Standard deviations of the residuals.
    sigma : float
    """

    forms: RowForms
    precision: sp.csr_array
    covariance: sp.csr_array
    sds: Array
    sigma: float

    @cached_property
    def residual(self) -> Array:
        """Conditional residuals e (n,)."""
        return self.forms.residual[:, 0]

    @cached_property
    def weighted(self) -> Array:
        """P e (n,)."""
        return np.asarray(self.precision @ self.residual)

    @cached_property
    def parts(self) -> list[tuple[Indices | None, Array]]:
        """Columns of U by rows: those of each row's level, and those that all rows share."""
        every = np.arange(len(self.sds))
        own = [
            (codes, level[:, 0])
            for codes, level in zip(self.forms.codes, self.forms.levels, strict=True)
        ]
        return [*own, (None, self.forms.border(every)[0])]

    @cached_property
    def turned(self) -> list[tuple[Indices | None, Array]]:
        """P U in the same parts: correlated rows share their level where columns are of levels."""
        return [(codes, np.asarray(self.precision @ part)) for codes, part in self.parts]

    @cached_property
    def share(self) -> Array:
        """Diagonal (n,) of U U': the variance of the linear predictor over sigma^2."""
        return np.sum([np.sum(part**2, axis=1) for _, part in self.parts], axis=0)

    @property
    def taken(self) -> Array:
        """Share (n,) of the residual variance that the fitted values take."""
        return self.share * (self.sigma / self.sds) ** 2

    @cached_property
    def left(self) -> Array:
        """Diagonal (n,) of S."""
        own = np.sum([np.sum(part**2, axis=1) for _, part in self.turned], axis=0)
        return np.asarray(self.precision.diagonal() - own)

    def left_blocks(self, rows: Indices) -> Array:
        """Blocks S_gg (G, m, m) of groups of rows (G, m)."""
        first = np.broadcast_to(rows[:, :, None], (*rows.shape, rows.shape[1]))
        flat = self.precision[first.ravel(), first.transpose(0, 2, 1).ravel()]
        return np.asarray(flat).reshape(first.shape) - self._squares(self.turned, rows)

    def spread_blocks(self, rows: Indices) -> Array:
        """Blocks (U U')_gg (G, m, m) of groups of rows (G, m)."""
        return self._squares(self.parts, rows)

    @staticmethod
    def _squares(parts: list[tuple[Indices | None, Array]], rows: Indices) -> Array:
        total = np.zeros((*rows.shape, rows.shape[1]))
        for codes, part in parts:
            here = part[rows]
            square = here @ here.transpose(0, 2, 1)
            if codes is not None:
                square *= codes[rows][:, :, None] == codes[rows][:, None, :]
            total += square
        return total

    def scores(self) -> tuple[Array, Array]:
        """Log densities (n,) of each row given the others, and of a replicate given all."""
        out = _normal(self.weighted**2 / self.left, -np.log(self.left), self.sigma, 1)
        variance = (self.sds / self.sigma) ** 2 + self.share
        within = _normal(self.residual**2 / variance, np.log(variance), self.sigma, 1)
        return out, within

    def group_scores(self, rows: Indices) -> tuple[Array, Array]:
        """The same of groups of rows (G, m): (G,)."""
        size = rows.shape[1]
        lower = batched_cholesky(self.left_blocks(rows))
        half = np.linalg.solve(lower, self.weighted[rows][..., None])[..., 0]
        out = _normal(np.sum(half**2, axis=1), -_log_det(lower), self.sigma, size)
        first = np.broadcast_to(rows[:, :, None], (*rows.shape, size))
        flat = self.covariance[first.ravel(), first.transpose(0, 2, 1).ravel()]
        cov = np.asarray(flat).reshape(first.shape) + self.spread_blocks(rows)
        lower = batched_cholesky(cov)
        half = np.linalg.solve(lower, self.residual[rows][..., None])[..., 0]
        return out, _normal(np.sum(half**2, axis=1), _log_det(lower), self.sigma, size)


def structured_rows(
    design: Design,
    plan: Plan,
    prior: GaussianBeta | None,
    joint: JointDraws,
    *,
    given_beta: bool = False,
) -> Iterator[StructuredRows]:
    """The rows at each draw."""
    law = design.residual
    assert law is not None
    entries, root = law.entries, np.sqrt(design.row_weights)
    sds = residual_sds(design, joint.points)
    scale = root[entries.rows] * root[entries.cols]
    apart = entries.rows != entries.cols
    covariances = _relative_covariances(design, joint.points)
    for s, covariance in enumerate(covariances):
        draw = joint.take(np.array([s]))
        shape = joint.points.shapes[s]
        values = law.precision(shape[None])[0][0][entries.kinds] * scale
        rows = np.concatenate([entries.rows, entries.cols[apart]])
        cols = np.concatenate([entries.cols, entries.rows[apart]])
        both = np.concatenate([values, values[apart]])
        system = row_system(design, plan.at(shape), prior, given_beta=given_beta)
        yield StructuredRows(
            forms=row_forms(system, draw, slice(0, 1)),
            precision=sp.csr_array((both, (rows, cols)), shape=(design.n, design.n)),
            covariance=covariance,
            sds=sds[s],
            sigma=float(joint.points.sigma[s]),
        )


def _relative_covariances(design: Design, points: Points) -> Iterator[sp.csr_array]:
    """The covariance matrix of the residuals over sigma^2 at each of the points."""
    rows, root = design.residual_rows, 1.0 / np.sqrt(design.row_weights)
    assert rows is not None
    for start in range(0, len(points.sigma), AT_ONCE):
        some = points.take(slice(start, start + AT_ONCE))
        ones = np.ones(len(some.sigma))
        values, row, col = some.residual.covariance_entries(rows, ones, some.shapes)
        for own in values * (root[row] * root[col]):
            yield sp.csr_array((own, (row, col)), shape=(design.n, design.n))


def _normal(square: Array, log_det: Array, sigma: float, size: int) -> Array:
    """Log density from the quadratic form and log determinant relative to sigma^2."""
    return -0.5 * (size * (LOG_2PI + 2.0 * np.log(sigma)) + log_det + square / sigma**2)


def _log_det(lower: Array) -> Array:
    return np.asarray(2.0 * np.sum(np.log(np.diagonal(lower, axis1=-2, axis2=-1)), axis=-1))
