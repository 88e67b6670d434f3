"""Densities of rows, or of groups of rows, given all others, with the effects integrated out.

References
----------
Vehtari, Mononen, Tolvanen, Sivula, Winther (2016), Bayesian leave-one-out cross-validation
approximations for Gaussian latent variable models, JMLR 17(103).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.assessment.row_forms import RowForms, RowSystem, row_forms, row_system
from bayeslmm.design.design import Design
from bayeslmm.exceptions import SamplingError
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.inference.progress import tracked
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.priors.record import Priors

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
LOG_2PI = float(np.log(2.0 * np.pi))

LARGEST_SCORES = 1 << 26
"""Most densities that are held at once: 512 MB."""

LARGEST_WORK = 1e12
"""Multiplications above which draws are thinned: about a minute."""

FEWEST = 200
"""Draws that are kept however dear each is."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LeaveOut:
    """Densities of each row or group y_g for S draws theta of what is not integrated out.

    Attributes
    ----------
    log_density : ndarray (S, m)
        log p(y_g | y without g, theta).
    in_sample : ndarray (S, m)
        log p(replicate of y_g = y_g | y, theta).
    mean, sd : ndarray (S, m) or None
        Of the normal distribution of each row given the others; None for groups.
    """

    log_density: Array
    in_sample: Array
    mean: Array | None
    sd: Array | None


def leave_out_densities(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    groups: Indices | None = None,
    *,
    progressbar: bool = False,
) -> Array:
    """Log densities (S, m) of rows or groups given all others: see :func:`leave_out`."""
    return leave_out(design, plan, priors, joint, groups, progressbar=progressbar).log_density


def leave_out(
    design: Design,
    plan: Plan,
    priors: Priors,
    joint: JointDraws,
    groups: Indices | None = None,
    *,
    progressbar: bool = False,
) -> LeaveOut:
    """Density of each row, or group of rows, given all others and each draw.

    Random effects are integrated out, and fixed effects where their prior is normal or flat, so
    that the draws are only those of the covariance parameters: exact, without a refit.

    Parameters
    ----------
    design : Design
        The design of the model.
    plan : Plan
        Its cross-products.
    priors : Priors
        Its priors.
    joint : JointDraws
        S draws.
    groups : ndarray of int (n,), optional
        Group 0, ..., m - 1 of each row; every row is its own by default.
    progressbar : bool
        Whether to show one.

    Returns
    -------
    LeaveOut

    Raises
    ------
    SamplingError
        If a flat prior leaves beta undetermined without some of the rows.
    """
    prior = None if priors.beta_sampled else beta_prior(priors)
    system = row_system(design, plan, prior)
    roots = [root / joint.sigma[:, None, None] for root in joint.roots]
    parts = []
    with single_threaded(), np.errstate(divide="ignore", invalid="ignore"):
        for rows in tracked(list(system.batches(joint.size)), "Leave-out", progressbar):
            sigma = joint.sigma[rows]
            beta = joint.beta[rows] if priors.beta_sampled else None
            forms = row_forms(system, [root[rows] for root in roots], sigma, beta)
            one = _score_rows if groups is None else _score_groups
            parts.append(one(system, forms, sigma, groups))
    result = LeaveOut(
        log_density=np.concatenate([part.log_density for part in parts]),
        in_sample=np.concatenate([part.in_sample for part in parts]),
        mean=None if groups is not None else np.concatenate([_given(p.mean) for p in parts]),
        sd=None if groups is not None else np.concatenate([_given(p.sd) for p in parts]),
    )
    _check(result.log_density, "row" if groups is None else "group")
    return result


def affordable(design: Design, plan: Plan, draws: int, scores: int) -> int:
    """How many draws the memory for their densities, and the time, allow."""
    border = plan.n_tail + design.p + 1
    by_memory = LARGEST_SCORES // max(1, scores)
    by_time = int(LARGEST_WORK / (design.n * float(border) ** 2))
    return min(draws, max(FEWEST, min(by_memory, by_time)))


def _score_rows(system: RowSystem, forms: RowForms, sigma: Array, _: Indices | None) -> LeaveOut:
    weights = system.weights[:, None]
    left = 1.0 - weights * forms.leverage
    log_variance = 2.0 * np.log(sigma) - np.log(weights)
    square = weights * (forms.residual / sigma) ** 2
    log_density = -0.5 * (LOG_2PI + log_variance - np.log(left) + square / left)
    seen = 1.0 + weights * forms.leverage
    in_sample = -0.5 * (LOG_2PI + log_variance + np.log(seen) + square / seen)
    return LeaveOut(
        log_density=log_density.T,
        in_sample=in_sample.T,
        mean=(system.design.y[:, None] - forms.residual / left).T,
        sd=np.sqrt(np.exp(log_variance) / left).T,
    )


def _score_groups(
    system: RowSystem, forms: RowForms, sigma: Array, groups: Indices | None
) -> LeaveOut:
    assert groups is not None
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    log_density = np.empty((len(sigma), len(members)))
    in_sample = np.empty_like(log_density)
    for g, rows in enumerate(members):
        root = np.sqrt(system.weights[rows])
        columns = root[:, None] * _group_columns(forms, rows)
        white = (root[:, None] * forms.residual[rows] / sigma).T
        constant = len(rows) * (LOG_2PI + 2.0 * np.log(sigma)) - 2.0 * np.sum(np.log(root))
        for result, sign in ((log_density, -1.0), (in_sample, 1.0)):
            try:
                value = _quadratic(columns, white, sign)
            except np.linalg.LinAlgError:
                value = np.full(len(sigma), np.nan)
            result[:, g] = -0.5 * (constant + value)
    return LeaveOut(log_density=log_density, in_sample=in_sample, mean=None, sd=None)


def _group_columns(forms: RowForms, rows: Indices) -> Array:
    """Rows (C, n_g, R) of U with the columns of all levels that occur in a group."""
    parts = [forms.border(rows)]
    for codes, level in zip(forms.codes, forms.levels, strict=True):
        found, place = np.unique(codes[rows], return_inverse=True)
        spread = np.zeros((level.shape[1], len(rows), len(found), level.shape[2]))
        spread[:, np.arange(len(rows)), place] = level[rows].transpose(1, 0, 2)
        parts.append(spread.reshape(*spread.shape[:2], -1))
    return np.concatenate(parts, axis=2)


def _quadratic(columns: Array, white: Array, sign: float) -> Array:
    """Return r'M r - log |M| (C,), with M^-1 = I + UU' (sign +1) or I - UU' (sign -1).

    With sign -1 the rows are left out: their precision given the others is I - UU', and r are the
    residuals given all rows, so that the deviation from the prediction is M r.
    """
    _, n, rank = columns.shape
    if rank < n:
        inner = np.eye(rank) + sign * columns.transpose(0, 2, 1) @ columns
        lower = np.linalg.cholesky(inner)
        half = np.linalg.solve(lower, np.einsum("cnr,cn->cr", columns, white)[..., None])[..., 0]
        square = np.sum(white**2, axis=1) - sign * np.sum(half**2, axis=1)
    else:
        lower = np.linalg.cholesky(np.eye(n) + sign * columns @ columns.transpose(0, 2, 1))
        half = np.linalg.solve(lower, white[..., None])[..., 0]
        square = np.sum(half**2, axis=1)
    log_det = 2.0 * np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)), axis=1)
    return np.asarray(square + sign * log_det)


def _given(values: Array | None) -> Array:
    assert values is not None
    return values


def _check(log_density: Array, what: str) -> None:
    lost = int(np.sum(~np.isfinite(log_density).all(axis=0)))
    if lost:
        raise SamplingError(
            f"Without {lost} {what}{'s' if lost > 1 else ''} the fixed effects are not "
            "determined, and their priors are flat, so that there is no prediction for "
            f"{'them' if lost > 1 else 'it'}. Give the fixed effects proper priors."
        )
