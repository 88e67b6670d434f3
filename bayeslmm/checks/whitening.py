"""Residuals of rows at covariance parameters: conditional, standardised, whitened."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from bayeslmm.checks.row_forms import row_forms, row_system
from bayeslmm.data.design import Design
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
        Derivative of the fitted value by the response (lme4's ``hatvalues``).
    """
    system = row_system(design, plan, None if given_beta else prior)
    pearson, leverage = [], []
    root_weights = np.sqrt(system.weights)[:, None]
    with single_threaded():
        for rows in system.batches(joint.size):
            sigma = joint.sigma[rows]
            relative = [root[rows] / sigma[:, None, None] for root in joint.roots]
            forms = row_forms(system, relative, sigma, joint.beta[rows] if given_beta else None)
            pearson.append((root_weights * forms.residual / sigma).T)
            leverage.append((system.weights[:, None] * forms.leverage).T)
    return np.concatenate(pearson), np.concatenate(leverage)


def thinned(design: Design, plan: Plan, joint: JointDraws) -> JointDraws:
    """As many of the draws as residuals are affordable at."""
    width = plan.n_tail + design.p + 1
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
    scale = 1.0 if design.weights is None else 1.0 / np.sqrt(design.weights)
    response = np.mean(pearson * joint.sigma[:, None], axis=0) * scale
    marginal = marginal_residuals(design, joint)
    left = np.where(1.0 - leverage > UNKNOWN, 1.0 - leverage, np.nan)
    return pd.DataFrame(
        {
            "fitted": design.y - response,
            "response": response,
            "pearson": pearson.mean(axis=0),
            "standardised": np.mean(pearson / np.sqrt(left), axis=0),
            "marginal": np.nan if marginal is None else marginal.mean(axis=0),
        },
        index=design.index,
    )


def marginal_residuals(design: Design, joint: JointDraws) -> Array | None:
    """Whiten y - offset - X beta by the Cholesky root of V, by draw: (R, n), R at most S.

    Rows in independent parts of the data are whitened apart. None where a part is too large.
    """
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
    variance = np.ones(design.n) if design.weights is None else 1.0 / design.weights
    result = np.empty((joint.size, *columns.shape[1:]))
    columns = np.broadcast_to(columns, result.shape)
    roots, sigma = joint.roots, joint.sigma[:, None, None]
    with single_threaded():
        for rows in independent_parts(design):
            step = max(1, AT_ONCE // len(rows) ** 2)
            for start in range(0, joint.size, step):
                draws = slice(start, start + step)
                cov = sigma[draws] ** 2 * np.diag(variance[rows])
                for factor, root in zip(design.random, roots, strict=True):
                    half = factor.Z[rows] @ root[draws]
                    same = factor.codes[rows][:, None] == factor.codes[rows]
                    cov += (half @ half.transpose(0, 2, 1)) * same
                result[draws, rows] = np.linalg.solve(np.linalg.cholesky(cov), columns[draws, rows])
    return result


def independent_parts(design: Design) -> list[NDArray[np.intp]]:
    """Rows of each part of the data that shares no level with any other part."""
    rows, columns, start = [], [], 0
    for factor in design.random:
        rows.append(np.arange(design.n))
        columns.append(start + factor.codes)
        start += factor.n_levels
    index = (np.concatenate(rows), design.n + np.concatenate(columns))
    size = design.n + start
    graph = sp.coo_array((np.ones(len(index[0])), index), shape=(size, size))
    labels = connected_components(graph.tocsr(), directed=False)[1][: design.n]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
