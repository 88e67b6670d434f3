"""Residuals of rows at covariance parameters: conditional, in standard units, whitened.

Given the covariance parameters, with beta and the random effects integrated out, W^1/2 e / sigma of
the residuals e = y - E(X beta + Z u | y) has covariance matrix I - H, where H is that of lme4's
``hatvalues``. So has each sum a'W e / sigma of residuals, and the one along the covariate of a
random effect in one level is that random effect in other units: it deviates from zero as far as
the rest of the data say. Divided by their standard deviations, both are standard normal under the
model one by one, shrinkage and all, and what they are together is known by simulation.

Where residuals have a structure, P = sigma^2 R^-1 takes the place of W. Sums a'P e / sigma have
variance a'S a, S = P - P U U' P; that of a single row is its residual from what all other rows say
of it, also those that it is correlated with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.checks.row_forms import RowForms, leverages, row_forms, row_plan, row_system
from bayeslmm.checks.structured_rows import structured_rows
from bayeslmm.data.connected import independent_parts
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.residuals import (
    draw_residuals,
    require_normal_residuals,
    residual_blocks,
    residual_sds,
    whiten_residuals,
)
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import GaussianBeta, single_threaded
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]

LARGEST_CUBES = 3e10
"""Sum of the cubed sizes of the independent parts of the data that is still whitened: seconds."""

CUBES = 1e10
"""The same, times the number of draws, beyond which draws are thinned."""

WORK = 1e11
"""Multiplications for the residuals of all draws, beyond which these are thinned: seconds."""

FEWEST = 4

AT_ONCE = 1 << 22
"""Entries of covariance matrices that are held at once: 32 MB, or what a single one takes."""

UNKNOWN = 1e-11
"""Share of a variance that is left to a residual below which rounding leaves nothing of it."""


def row_residuals(
    design: Design,
    plan: Plan,
    prior: GaussianBeta | None,
    joint: JointDraws,
    *,
    given_beta: bool = False,
) -> tuple[Array, Array]:
    """Conditional residuals over their standard deviation, and leverages, of rows by draw.

    Parameters
    ----------
    design : Design
        The design.
    plan : Plan
        Its cross-products.
    prior : GaussianBeta or None
        Normal prior on beta; None for a flat one.
    joint : JointDraws
        S draws of the covariance parameters, and of beta where it is given.
    given_beta : bool
        Whether beta is not integrated out.

    Returns
    -------
    pearson : ndarray (S, n)
        Response less its conditional mean, over the residual standard deviation of the row.
    leverage : ndarray (S, n)
        Derivative of the fitted value by the response (lme4's ``hatvalues``). Where residuals have
        a structure, the share of the residual variance that the fitted value takes, which is the
        same where they are independent.
    """
    if design.spec.structured:
        each = structured_rows(design, plan, prior, joint, given_beta=given_beta)
        pairs = [(rows.residual / rows.sds, rows.taken) for rows in each]
        pearson, leverage = (np.stack(part) for part in zip(*pairs, strict=True))
        return pearson, leverage
    system = row_system(design, plan, prior, given_beta=given_beta)
    pearson, leverage = np.empty((2, design.n, joint.size))
    with single_threaded():
        for draws in system.batches(joint.size):
            for rows, share, residual in leverages(system, joint, draws):
                weights = system.weights[rows, None]
                pearson[rows, draws] = np.sqrt(weights) * residual / joint.sigma[draws]
                leverage[rows, draws] = weights * share
    return pearson.T, leverage.T


def thinned(design: Design, plan: Plan, joint: JointDraws) -> JointDraws:
    """As many of the draws as residuals are affordable at."""
    width = row_plan(design, plan).n_tail + design.p + 1
    return joint.thin(max(FEWEST, int(WORK / (design.n * float(width) ** 2))))


def residual_table(
    design: Design,
    plan: Plan,
    prior: GaussianBeta | None,
    joint: JointDraws,
    *,
    given_beta: bool = False,
) -> pd.DataFrame:
    """Residuals of every kind by row, means over draws: over fewer where each is dear."""
    joint = thinned(design, plan, joint)
    pearson, leverage = row_residuals(design, plan, prior, joint, given_beta=given_beta)
    sds = residual_sds(design, joint.points)
    response = np.mean(pearson * sds, axis=0)
    marginal = marginal_residuals(design, joint)
    left = np.where(1.0 - leverage > UNKNOWN, 1.0 - leverage, np.nan)
    columns = {
        "fitted": design.y - response,
        "response": response,
        "pearson": pearson.mean(axis=0),
        "standardised": np.mean(pearson / np.sqrt(left), axis=0),
        "marginal": np.nan if marginal is None else marginal.mean(axis=0),
    }
    if joint.points.residual.correlation is not None:
        white = whiten_residuals(design, joint.points, pearson * sds)
        columns["normalised"] = white.mean(axis=0)
    return pd.DataFrame(columns, index=design.index)


def marginal_residuals(design: Design, joint: JointDraws) -> Array | None:
    """Whiten y - offset - X beta by the Cholesky root of V, by draw: (R, n), R at most S.

    Rows in independent parts of the data are whitened apart. None where a part is too large.
    """
    if not design.random:
        return whiten_residuals(
            design, joint.points, design.y - design.offset - joint.beta @ design.X.T
        )
    some = whitening_draws(design, joint)
    if some is None:
        return None
    residual = design.y - design.offset - some.beta @ design.X.T
    return whiten(design, some, residual[:, :, None])[:, :, 0]


def whitening_draws(design: Design, joint: JointDraws) -> JointDraws | None:
    """As many of the draws as rows are whitened at; None where that takes too long at one."""
    cubes = float(sum(float(len(part)) ** 3 for part in independent_parts(design)))
    return None if cubes > LARGEST_CUBES else joint.thin(max(1, int(CUBES / cubes)))


def whiten(design: Design, joint: JointDraws, columns: Array) -> Array:
    """Columns (S or 1, n, q) times the inverse Cholesky root of V at S draws: (S, n, q)."""
    result = np.empty((joint.size, *columns.shape[1:]))
    columns = np.broadcast_to(columns, result.shape)
    roots = joint.roots
    with single_threaded():
        for rows in independent_parts(design):
            step = max(1, AT_ONCE // len(rows) ** 2)
            for start in range(0, joint.size, step):
                draws = slice(start, start + step)
                cov = residual_blocks(design, joint.points.take(draws), rows)
                for factor, root in zip(design.random, roots, strict=True):
                    half = factor.Z[rows] @ root[draws]
                    cov += (half @ half.transpose(0, 2, 1)) * factor.similarity(rows[:, None], rows)
                result[draws, rows] = np.linalg.solve(np.linalg.cholesky(cov), columns[draws, rows])
    return result


# --- residuals and random effects in standard units, of the data and of replicates of them ---


"""Numbers simulated at once: 32 MB."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Standardised:
    """Residuals and random effects in standard units, at one draw of the covariance parameters.

    Attributes
    ----------
    residuals : ndarray (R, n)
        Residuals over their standard deviations, from what all other rows say; NaN in rows that the
        model fits exactly, whatever their response.
    fitted : ndarray (R, n)
        Fitted values.
    effects : tuple of ndarray (R, J, k)
        Random effects over their standard deviations per grouping factor; NaN where the fixed
        effects take them all, or the level has no information.
    """

    residuals: Array
    fitted: Array
    effects: tuple[Array, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class StandardUnits:
    """What turns responses into standard units at one draw of the covariance parameters.

    Attributes
    ----------
    design : Design
        The data.
    precision : scipy.sparse.csr_array (n, n)
        P, the diagonal matrix of the weights where residuals are independent.
    forms : RowForms
        Rows of U at one draw, and the residuals of the data.
    sigma : float
        Residual standard deviation that P is relative to.
    left : ndarray (n,)
        Diagonal of S; NaN where it is zero.
    sums : tuple of tuples of scipy.sparse.csr_array (J, n)
        A' of the random effects, by factor and coefficient.
    """

    design: Design
    precision: sp.csr_array
    forms: RowForms
    sigma: float
    left: Array
    sums: tuple[tuple[sp.csr_array, ...], ...]

    @cached_property
    def effects_left(self) -> tuple[Array, ...]:
        """Diagonals (J, k) of A'SA, the variances of sums along each random effect."""
        with single_threaded():
            return tuple(_effects_left(self.precision, self.forms, own) for own in self.sums)

    def residuals(self) -> Array:
        """The residuals of the data (n,) in standard units, without the random effects."""
        weighted: Array = self.precision @ self.forms.residual[:, 0]
        return weighted / (self.sigma * np.sqrt(self.left))

    def observed(self) -> Standardised:
        """The data in standard units."""
        return self._standardised(self.design.y[None], self.forms.residual.T)

    def replicated(self, responses: Array) -> Standardised:
        """Other responses (R, n) of the same model in standard units."""
        change = (responses - self.design.y).T
        smooth = smoothed(self.forms, self.precision @ change)
        return self._standardised(responses, (self.forms.residual + change - smooth).T)

    def _standardised(self, responses: Array, residuals: Array) -> Standardised:
        weighted = np.asarray(self.precision @ residuals.T)
        effects = []
        for own, left in zip(self.sums, self.effects_left, strict=True):
            sums = [(total @ weighted).T for total in own]
            effects.append(np.stack(sums, axis=2) / (self.sigma * np.sqrt(left)))
        return Standardised(
            residuals=weighted.T / (self.sigma * np.sqrt(self.left)),
            fitted=responses - residuals,
            effects=tuple(effects),
        )


def standard_units(
    design: Design,
    plan: Plan,
    prior: GaussianBeta | None,
    joint: JointDraws,
    *,
    given_beta: bool = False,
) -> Iterator[tuple[JointDraws, StandardUnits]]:
    """Standard units at each draw, with that draw; arguments as of :func:`row_residuals`."""
    require_normal_residuals(design, "A check of simulated residuals and random effects")
    sums = tuple(tuple(_sums(f, c) for c in range(f.n_coefs)) for f in design.random)
    each = _rows_at(design, plan, prior, joint, given_beta=given_beta)
    for s, (forms, precision, left) in enumerate(each):
        units = StandardUnits(
            design=design,
            precision=precision,
            forms=forms,
            sigma=float(joint.points.sigma[s]),
            left=np.where(left > UNKNOWN * precision.diagonal(), left, np.nan),
            sums=sums,
        )
        yield _draw(joint, s), units


def _rows_at(
    design: Design,
    plan: Plan,
    prior: GaussianBeta | None,
    joint: JointDraws,
    *,
    given_beta: bool,
) -> Iterator[tuple[RowForms, sp.csr_array, Array]]:
    """Rows of U, P and the diagonal of S at each draw."""
    if design.spec.structured:
        for rows in structured_rows(design, plan, prior, joint, given_beta=given_beta):
            yield rows.forms, rows.precision, rows.left
        return
    system = row_system(design, plan, prior, given_beta=given_beta)
    weights = system.weights
    precision = sp.csr_array(sp.diags_array(weights))
    for s in range(joint.size):
        with single_threaded():
            forms = row_forms(system, _draw(joint, s), slice(0, 1))
            share = np.concatenate([forms.leverage(rows)[:, 0] for rows in forms.parts(AT_ONCE)])
        yield forms, precision, weights * (1.0 - weights * share)


def simulated(
    design: Design, draw: JointDraws, size: int, rng: np.random.Generator
) -> Iterator[Array]:
    """Responses (R, n) of the model at one draw of its parameters, `size` in all, in parts."""
    total = design.n + sum(factor.n_levels * factor.n_coefs for factor in design.random)
    step = max(1, AT_ONCE // total)
    for start in range(0, size, step):
        count = min(step, size - start)
        effects = [
            factor.effects(
                rng.standard_normal((count, factor.n_levels, factor.n_coefs)) @ root[0].T
            )
            for factor, root in zip(design.random, draw.roots, strict=True)
        ]
        beta = np.broadcast_to(draw.beta, (count, design.p))
        noise = draw_residuals(design, draw.points.take(np.zeros(count, dtype=np.intp)), rng)
        yield linear_predictor(design, beta, effects) + noise


def smoothed(forms: RowForms, values: Array) -> Array:
    """UU' times columns (n, R), U being that of a single draw."""
    result = np.zeros_like(values)
    for codes, level in zip(forms.codes, forms.levels, strict=True):
        size = int(codes.max()) + 1
        for i in range(level.shape[2]):
            column = level[:, 0, i]
            total = sp.csr_array((column, (codes, np.arange(len(codes)))), (size, len(codes)))
            result += column[:, None] * (total @ values)[codes]
    parts = list(forms.parts(AT_ONCE))
    inner = sum(forms.border(rows)[0].T @ values[rows] for rows in parts)
    for rows in parts:
        result[rows] += forms.border(rows)[0] @ inner
    return result


def _draw(joint: JointDraws, s: int) -> JointDraws:
    """One of the draws, without its random effects."""
    rows = slice(s, s + 1)
    return replace(joint, shape=(1, 1), beta=joint.beta[rows], points=joint.points.take(rows))


def _sums(factor: RandomFactor, c: int) -> sp.csr_array:
    """Matrix A' (J, n) that sums rows, times a covariate of the factor, by level."""
    n, slots = len(factor.Z), factor.slots
    values = np.concatenate([slot.Z[:, c] for slot in slots])
    codes = np.concatenate([slot.codes for slot in slots])
    return sp.csr_array((values, (codes, np.tile(np.arange(n), len(slots)))), (factor.n_levels, n))


def _effects_left(
    precision: sp.csr_array, forms: RowForms, each: tuple[sp.csr_array, ...]
) -> Array:
    """Diagonal (J, k) of A'SA, A having a column per random effect."""
    n_levels = each[0].shape[0]
    result = np.empty((n_levels, len(each)))
    for c, sums in enumerate(each):
        turned = sp.csr_array(sums @ precision)
        whole = np.asarray(turned.multiply(sums).sum(axis=1)).ravel()
        taken = np.zeros((n_levels, forms.width))
        for rows in forms.parts(AT_ONCE):
            taken += turned[:, rows] @ forms.border(rows)[0]
        lost = np.sum(taken**2, axis=1)
        for codes, level in zip(forms.codes, forms.levels, strict=True):
            for i in range(level.shape[2]):
                at = (np.arange(len(codes)), codes)
                shared = turned @ sp.csr_array((level[:, 0, i], at), (len(codes), codes.max() + 1))
                lost += np.asarray(shared.multiply(shared).sum(axis=1)).ravel()
        result[:, c] = np.where(whole - lost > UNKNOWN * whole, whole - lost, np.nan)
    return result
