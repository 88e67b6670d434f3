"""Kenward and Roger's adjustment where residuals have a structure, from the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.compound_symmetry import CompoundSymmetry
from bayeslmm.covariance.coordinates import Points
from bayeslmm.covariance.occasions import OverOccasions
from bayeslmm.covariance.residual import Residual
from bayeslmm.covariance.toeplitz import Toeplitz
from bayeslmm.data.connected import independent_parts
from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import gathered
from bayeslmm.estimation.directions import (
    STEP,
    differences,
    is_bent,
    pattern_directions,
    pattern_parameters,
)
from bayeslmm.estimation.estimate import Fit, plan_at, points_at, user_factors, working_factors
from bayeslmm.estimation.held import search_of
from bayeslmm.estimation.kenward_roger import Adjustment, weighted_bias
from bayeslmm.estimation.residuals import residual_blocks
from bayeslmm.estimation.row_blocks import (
    alike_blocks,
    check_blocks,
    random_part,
)
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

WHAT = "Kenward and Roger's method with a residual structure"
INSTEAD = "Take df='satterthwaite'."

BOUNDARY = (
    "The full form of Kenward and Roger's method needs second derivatives by the parameters of the "
    "residuals, of which one is at its boundary here. Take df='kenward-roger-linear'."
)


class Moves(NamedTuple):
    """Covariance parameters at an estimate (first) and d steps ahead of and behind it."""

    points: Points
    step: float

    def slopes(self, values: Array) -> Array:
        """Derivatives (d, ...) of a function by the d coordinates from its values (1 + 2d, ...)."""
        d = len(values) // 2
        return np.asarray((values[1 : d + 1] - values[d + 1 :]) / (2.0 * self.step))


def moves_of(fit: Fit) -> Moves:
    """Parameters around an estimate along the coordinates that ``fit.internal_cov`` is of."""
    plan = fit.plan
    if plan.held is not None:
        search, x = search_of(plan, fit.method == "REML"), fit.optimum.x
        shifts = STEP * np.eye(len(x))
        return Moves(search.points(np.concatenate([x[None], x + shifts, x - shifts])), STEP)
    x = np.append(fit.optimum.x, np.log(fit.sigma))
    shifts = STEP * np.eye(len(x))
    rows = np.concatenate([x[None], x + shifts, x - shifts])
    plans = [plan_at(plan, row[:-1]) for row in rows]
    factors = [
        user_factors(plan, working_factors(plan, row[:-1]))
        for plan, row in zip(plans, rows, strict=True)
    ]
    shapes = np.stack([p.shape for p in plans])
    return Moves(points_at(factors, np.exp(rows[:, -1]), shapes, plan.residual), STEP)


def from_rows(design: Design, fit: Fit, *, full: bool) -> Adjustment:
    """The adjustment with the observed information, as SAS and mmrm.

    The linear form is the same in every parametrisation. The full one is in SAS' parameters:
    variances and covariances where V is linear in them, else variances and correlations, ranges of
    exponential and Gaussian fields; powers of variance covariates.
    """
    design = gathered(design, WHAT, INSTEAD)
    blocks = independent_parts(design)
    check_blocks(blocks, WHAT, INSTEAD)
    moves, root = moves_of(fit), fit.vcov_root
    m, p = len(fit.internal_cov), len(fit.beta)
    bends = _bends(design, fit, moves) if full else None
    first, pairs, bent = np.zeros((m, p, p)), np.zeros((m, m, p, p)), np.zeros((p, p))
    for rows, covariances in alike_blocks(design, moves.points, blocks, copies=(m + 1) * p):
        slopes = moves.slopes(covariances)  # (m, o, o)
        white = np.linalg.solve(covariances[0], design.X[rows] @ root)  # (C, o, p)
        moved = slopes[:, None] @ white
        first += np.einsum("cop,icoq->ipq", white, moved, optimize=True)
        again = np.linalg.solve(covariances[0], moved)
        pairs += np.einsum("icop,jcoq->ijpq", moved, again, optimize=True)
        if bends is not None:
            bent += np.einsum("cop,cor->pr", white, bends.of(rows[0]) @ white)
    bias = weighted_bias(first, pairs, fit.internal_cov) - 0.25 * bent
    return Adjustment(root=root, first=first, spread=fit.internal_cov, bias=bias)


class Bends(NamedTuple):
    """Second derivatives of V, weighted by the covariances of the parameters.

    Attributes
    ----------
    design : Design
        The rows.
    random : dict of int to ndarray (k, k)
        Per grouping factor with a pattern, of the covariance matrix of its effects.
    residual : tuple or None
        Points (S,) around the estimate, and weights (S,) of R there; None where R is linear.
    """

    design: Design
    random: dict[int, Array]
    residual: tuple[Points, Array] | None

    def of(self, rows: NDArray[np.intp]) -> Array:
        """Of V (o, o) of some rows."""
        total = np.zeros((len(rows), len(rows)))
        if self.residual is not None:
            points, weights = self.residual
            total += np.tensordot(weights, residual_blocks(self.design, points, rows), 1)
        for f, sigma in self.random.items():
            total += random_part(self.design.random[f], sigma[None], rows)[0]
        return total


def _bends(design: Design, fit: Fit, moves: Moves) -> Bends | None:
    """Second derivatives of V in SAS' parameters; None where V is linear in these."""
    random: dict[int, Array] = {}
    roots = moves.points.roots
    for f, structure in enumerate(fit.plan.products.structures):
        sigma = roots[f] @ roots[f].swapaxes(1, 2)
        for block, part in zip(structure.blocks, structure.parts, strict=True):
            if is_bent(part):
                own = sigma[:, np.array(block)[:, None], np.array(block)]
                jacobian = moves.slopes(pattern_parameters(part, own)).T
                spread = jacobian @ fit.internal_cov @ jacobian.T
                second = pattern_directions(part, own[0])[1]
                wide = random.setdefault(f, np.zeros(sigma.shape[1:]))
                wide[np.ix_(block, block)] = np.einsum("ij,ijkl->kl", spread, second)
    residual = None if is_linear(fit.plan.residual) else _residual_bends(fit, moves)
    return Bends(design, random, residual) if random or residual else None


def is_linear(residual: Residual) -> bool:
    """Whether R is linear in variances and covariances."""
    law = residual.correlation
    if residual.powers:
        return False
    if law is None or (not law.n_cors and len(residual.scales) == 1):
        return True
    if not isinstance(law, OverOccasions):
        return False
    if law.structure.mixes:
        return True
    banded = isinstance(law.structure, (CompoundSymmetry, Toeplitz))
    return banded and len(residual.scales) == len(residual.arms)


def _residual_bends(fit: Fit, moves: Moves) -> tuple[Points, Array]:
    """Points and weights of which the sum over R is ``sum W_ij R_ij``."""
    residual = fit.plan.residual

    def parameters(points: Points) -> Array:
        sds, powers, cors = points.natural
        own = cors if residual.correlation is None else residual.correlation.nlme(cors)
        return np.concatenate([sds**2, powers, own], axis=1)

    values = parameters(moves.points)
    jacobian = moves.slopes(values).T
    spread = jacobian @ fit.internal_cov @ jacobian.T
    sizes = np.maximum(np.abs(values[0]), 1e-2)
    steps = STEP * sizes
    m, q = len(residual.scales), len(residual.powers)
    seen: list[Array] = []

    def record(x: Array) -> Array:
        """Remember the points, and say which they are: differences are then weights of points."""
        start = sum(map(len, seen))
        seen.append(x)
        total = 2 * len(steps) ** 2 + 1
        return np.eye(total)[start : start + len(x)]

    weights = np.einsum("ij,ijs->s", spread, differences(record, values[0], steps)[1])
    x = np.concatenate(seen)
    law, cors = residual.correlation, x[:, m + q :]
    own = cors if law is None else law.from_nlme(cors)
    with np.errstate(invalid="ignore"):
        sigma, shapes = residual.from_natural(np.sqrt(x[:, :m]), x[:, m : m + q], own)
    if not np.isfinite(shapes).all() or not np.isfinite(weights).all():
        raise DataError(BOUNDARY)
    none = np.empty((len(x), 0))
    points = replace(
        moves.points, sds=(), chols=(), sigma=sigma, shapes=shapes, beta=none, residual=residual
    )
    return points, weights[: len(x)]
