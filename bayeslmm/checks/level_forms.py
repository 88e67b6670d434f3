"""Leverages and residuals of every row given covariance parameters, with one grouping factor.

With one grouping factor both are quadratic and linear forms in the row's own covariates (z, x),
whose matrices depend on the level and the draw alone:

    leverage = z'Ez + (x - B'z)'C(x - B'z),    residual = y - x'beta - z'(b - B beta),

E the covariance matrix over sigma^2 of the level's random effects given beta, B = E Z'X,
b = E Z'y, C that of beta. So every level takes one product of its rows' monomials with the
coefficients of all draws, in place of work per row and draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.likelihood.batch import lower_pairs, to_working
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta, to_working_beta

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

ENTRIES = 1 << 21
"""Entries (rows or levels' coefficients times draws) of the arrays that are worked on at once."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelSystem:
    """A design with one grouping factor, its rows in the order of their levels.

    Attributes
    ----------
    plan : Plan
        Its cross-products, whose working basis is used.
    prior : GaussianBeta or None
        Normal prior on beta; None for a flat one or where beta is given.
    order : ndarray of int (n,)
        Rows of the design in this order.
    ends : ndarray of int (J + 1,)
        Where each level begins and ends.
    z, x, y : ndarray (n, k), (n, p), (n,)
        Rows in the working basis.
    """

    plan: Plan
    prior: GaussianBeta | None
    order: Indices
    ends: Indices
    z: Array
    x: Array
    y: Array

    def batches(self, draws: int) -> Iterator[slice]:
        """Parts of so many draws that can be worked on at once."""
        k, p = self.z.shape[1], self.x.shape[1]
        step = max(1, ENTRIES // max(len(self.y), (len(self.ends) - 1) * k * (k + p)))
        for start in range(0, draws, step):
            yield slice(start, min(start + step, draws))


def has_level_forms(plan: Plan) -> bool:
    """Whether a plan has a single grouping factor, and nothing that needs more care."""
    return plan.n_tail == 0 and not plan.nested and plan.split is None


def level_system(design: Design, plan: Plan, prior: GaussianBeta | None) -> LevelSystem:
    """Arrange a design for :func:`level_forms`."""
    factor, basis = design.random[0], plan.products.basis
    order = np.argsort(factor.codes, kind="stable")
    counts = np.bincount(factor.codes, minlength=factor.n_levels)
    response = design.y - design.offset - design.X @ basis.shift
    return LevelSystem(
        plan=plan,
        prior=prior,
        order=order,
        ends=np.concatenate([[0], np.cumsum(counts)]),
        z=(factor.Z @ basis.random[0])[order],
        x=(design.X @ basis.fixed)[order],
        y=response[order],
    )


def level_forms(
    system: LevelSystem, relative: Array, sigma: Array, beta: Array | None
) -> tuple[Array, Array]:
    """Leverages over sigma^2 (n, C) and residuals (n, C), in the order of the design.

    Parameters
    ----------
    system : LevelSystem
        The data.
    relative : ndarray (C, k, k)
        Relative roots of the covariance matrices in the user's columns.
    sigma : ndarray (C,)
        Residual standard deviations.
    beta : ndarray (C, p) or None
        Fixed effects where they are given rather than integrated out.
    """
    products, p = system.plan.products, system.x.shape[1]
    (root,) = to_working(system.plan, [relative])
    gram = root.swapaxes(1, 2)[:, None] @ products.random[0] @ root[:, None]
    inner = np.linalg.inv(gram + np.eye(gram.shape[2]))
    own = root[:, None] @ inner @ root.swapaxes(1, 2)[:, None]  # E (C, J, k, k)
    taken = own @ products.mixed[0]  # [B b] (C, J, k, p + 1)
    covariance, known = _fixed_effects(system, taken, sigma, beta)
    slopes = taken[..., :p]
    turned = slopes @ covariance[:, None]  # B C (C, J, k, p)
    quadratic = own + turned @ slopes.swapaxes(2, 3)
    modes = taken[..., p] - (slopes @ known[:, None, :, None])[..., 0]  # (C, J, k)
    leverage = _monomials(system.x) @ _coefficients(covariance).T
    residual = system.y[:, None] - system.x @ known.T
    _subtract_by_level(system, quadratic, turned, modes, leverage, residual)
    back = np.empty_like(system.order)
    back[system.order] = np.arange(len(back))
    return leverage[back], residual[back]


def _fixed_effects(
    system: LevelSystem, taken: Array, sigma: Array, beta: Array | None
) -> tuple[Array, Array]:
    """Covariance matrices over sigma^2 (C, p, p) and means (C, p) of working fixed effects."""
    products, p = system.plan.products, system.x.shape[1]
    if beta is not None:
        known = np.array([to_working_beta(products, row) for row in beta])
        return np.zeros((len(sigma), p, p)), known.reshape(len(sigma), p)
    mixed = products.mixed[0]
    flat = taken.reshape(len(taken), -1, p + 1)
    equations = products.fixed - mixed.reshape(-1, p + 1).T @ flat
    if system.prior is not None:
        own = system.prior.cross_products(products.basis)
        equations = equations + sigma[:, None, None] ** 2 * own
    covariance = np.linalg.inv(equations[:, :p, :p])
    return covariance, (covariance @ equations[:, :p, p:])[:, :, 0]


def _subtract_by_level(
    system: LevelSystem,
    quadratic: Array,
    turned: Array,
    modes: Array,
    leverage: Array,
    residual: Array,
) -> None:
    """Add what depends on the level to leverages and residuals (n, C), in place."""
    k, p = system.z.shape[1], system.x.shape[1]
    crossed = (system.z[:, :, None] * system.x[:, None, :]).reshape(len(system.y), k * p)
    monomials = np.hstack([_monomials(system.z), crossed])  # (n, K)
    coefficients = np.concatenate(
        [_coefficients(quadratic), -2.0 * turned.reshape(*turned.shape[:2], k * p)], axis=2
    )  # (C, J, K)
    by_level = np.ascontiguousarray(coefficients.transpose(1, 2, 0))
    modes = np.ascontiguousarray(modes.transpose(1, 2, 0))
    for level, (start, end) in enumerate(zip(system.ends[:-1], system.ends[1:], strict=True)):
        leverage[start:end] += monomials[start:end] @ by_level[level]
        residual[start:end] -= system.z[start:end] @ modes[level]


def _monomials(columns: Array) -> Array:
    """Products (n, k (k + 1) / 2) of pairs of columns (n, k)."""
    rows, cols = lower_pairs(columns.shape[1])
    return columns[:, rows] * columns[:, cols]


def _coefficients(matrices: Array) -> Array:
    """Coefficients (..., k (k + 1) / 2) of these products in quadratic forms (..., k, k)."""
    rows, cols = lower_pairs(matrices.shape[-1])
    return matrices[..., rows, cols] * np.where(rows == cols, 1.0, 2.0)
