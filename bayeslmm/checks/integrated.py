"""Densities of rows, or of groups of rows, given all others, with the effects integrated out.

References
----------
Vehtari, Mononen, Tolvanen, Sivula, Winther (2016), Bayesian leave-one-out cross-validation
approximations for Gaussian latent variable models, JMLR 17(103).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.checks.row_forms import (
    ENTRIES,
    ROW_ENTRIES,
    RowForms,
    RowSystem,
    leverages,
    row_forms,
    row_plan,
    row_system,
)
from bayeslmm.checks.structured_rows import StructuredRows, structured_rows
from bayeslmm.data.design import Design
from bayeslmm.data.packed import Packed, packed
from bayeslmm.data.row_groups import RowGroups, group_names, row_groups
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.progress import tracked
from bayeslmm.exceptions import DataError, SamplingError
from bayeslmm.likelihood.batch import run_parallel
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.likelihood.elimination import Plan
from bayeslmm.likelihood.factorise import single_threaded
from bayeslmm.likelihood.log_posterior import beta_prior
from bayeslmm.likelihood.marginal import LOG_2PI
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGEST_SCORES = 1 << 26
"""Most densities that are held at once: 512 MB."""

LARGEST_WORK = 1e11
"""Multiplications above which draws are thinned."""

SEPARATE = 1e-10
"""Squared cosine of an angle from which on a direction of beta is known from other rows."""

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

    @classmethod
    def empty(cls, size: int, count: int, *, moments: bool) -> LeaveOut:
        """Room for S draws and m rows or groups; scores of one lie side by side in memory."""
        log_density, in_sample, mean, sd = (np.empty((count, size)).T for _ in range(4))
        return cls(
            log_density=log_density,
            in_sample=in_sample,
            mean=mean if moments else None,
            sd=sd if moments else None,
        )

    def take(self, draws: slice) -> LeaveOut:
        """Views of some of the draws."""
        return LeaveOut(
            log_density=self.log_density[draws],
            in_sample=self.in_sample[draws],
            mean=None if self.mean is None else self.mean[draws],
            sd=None if self.sd is None else self.sd[draws],
        )


def case_groups(design: Design, by: str, option: str = "by") -> RowGroups:
    """Rows by what is left out at once: a level, or a cell of several variables.

    Raises
    ------
    DataError
        If the model has no such grouping factor or variable.
    """
    allowed = f"one of {', '.join(group_names(design))}, or None for single rows"
    if not isinstance(by, str):
        raise DataError(
            f"{option}= takes the name of a grouping factor or of a variable of the formula, or "
            f"several joined by a colon, such as 'site:plot', got {type(by).__name__}: {allowed}."
        )
    groups = row_groups(design, by)
    if groups is None:
        raise DataError(
            f"{option}={by!r} is neither a grouping factor nor a variable of the formula: "
            f"{allowed}."
        )
    return groups


def packed_cases(design: Design, by: str) -> Packed:
    """Rows that stand for all rows of data beyond memory where groups are left out at once.

    Raises
    ------
    DataError
        As :func:`case_groups`, and if there are too many cells of these and grouping factors.
    """
    assert isinstance(design, SummarisedDesign)
    names: list[str] = []
    if isinstance(by, str) and by not in [factor.name for factor in design.random]:
        names = [by] if by in design.sample.columns else by.split(":")
    return packed(design, names, lambda part: case_groups(part, by))


def leave_out(
    model: Model,
    joint: JointDraws,
    groups: Indices | None = None,
    *,
    moments: bool = False,
    pack: Packed | None = None,
    progressbar: bool = False,
) -> LeaveOut:
    """Density of each row, or group of rows, given all others and each draw.

    Random effects are integrated out, and fixed effects where their prior is normal or flat, so
    that the draws are only those of the covariance parameters: exact, without a refit.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        S draws.
    groups : ndarray of int (n,), optional
        Group 0, ..., m - 1 of each row; every row is its own by default.
    moments : bool
        Whether means and sds of the rows given the others are wanted too.
    pack : Packed, optional
        What the rows stand for, where they are packed and groups are left out.
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
    design, priors = model.design, model.priors
    check_determined(design, priors, groups)
    given = priors.beta_sampled
    prior = None if given else beta_prior(priors)
    if design.spec.structured:
        rows = structured_rows(design, model.system, prior, joint, given_beta=given)
        return _leave_out_structured(design, rows, joint, groups, progressbar=progressbar)
    system = row_system(design, model.system, prior, given_beta=given)
    members = None if groups is None else _members(groups)
    count = design.n if members is None else len(members)
    result = LeaveOut.empty(joint.size, count, moments=moments and groups is None)

    def score(draws: slice) -> None:
        if members is None:
            parts = leverages(system, joint, draws)
            score_rows(parts, system.weights, design.y, joint.sigma[draws], result.take(draws))
        else:
            _score_groups(system, members, joint, draws, result)

    batches = system.batches(joint.size)
    with single_threaded(), np.errstate(divide="ignore", invalid="ignore"):
        if system.by_level and members is None:
            run_parallel(score, batches)
        else:
            for draws in tracked(batches, "Leave-out", progressbar):
                score(draws)
    if pack is not None and groups is not None:
        # Rows of zeros, which packing leaves out, have a density too.
        zeros, log_weights = pack.constants(groups)
        scale = LOG_2PI + 2.0 * np.log(joint.sigma)
        constant = 0.5 * (log_weights - np.multiply.outer(scale, zeros))
        result.log_density[:] += constant
        result.in_sample[:] += constant
    check_finite(result.log_density)
    return result


def _leave_out_structured(
    design: Design,
    each: Iterator[StructuredRows],
    joint: JointDraws,
    groups: Indices | None,
    *,
    progressbar: bool,
) -> LeaveOut:
    """Leave out rows or groups where residuals have a structure, one draw after the other."""
    members = None if groups is None else _members(groups)
    count = design.n if members is None else len(members)
    log_density, in_sample, mean, sd = (np.empty((count, joint.size)).T for _ in range(4))
    with single_threaded(), np.errstate(divide="ignore", invalid="ignore"):
        for s in tracked(range(joint.size), "Leave-out", progressbar):
            rows = next(each)
            if members is None:
                log_density[s], in_sample[s] = rows.scores()
                mean[s] = design.y - rows.weighted / rows.left
                sd[s] = rows.sigma / np.sqrt(rows.left)
                continue
            sizes = np.array([len(part) for part in members])
            for size in np.unique(sizes):
                places = np.flatnonzero(sizes == size)
                found = rows.group_scores(np.stack([members[place] for place in places]))
                log_density[s, places], in_sample[s, places] = found
    check_finite(log_density)
    alone = members is None
    return LeaveOut(
        log_density=log_density,
        in_sample=in_sample,
        mean=mean if alone else None,
        sd=sd if alone else None,
    )


def predicted_densities(
    model: Model, rows: Design, joint: JointDraws, members: Sequence[Indices] | None
) -> Array:
    """Log densities (S, m) of rows, or of groups of them, given the rows of a model.

    The rows are further ones, or replicates of the model's own; effects are integrated out.

    Parameters
    ----------
    model : Model
        The model of the rows that are known, with independent residuals.
    rows : Design
        The rows to be scored, with the levels of the model.
    joint : JointDraws
        S draws of what is not integrated out.
    members : sequence of ndarray of int, optional
        Places of the rows of each of m groups that are scored together; single rows by default.
    """
    given = model.priors.beta_sampled
    prior = None if given else beta_prior(model.priors)
    system = row_system(model.design, model.system, prior, given_beta=given).with_rows(rows)
    result = np.empty((rows.n if members is None else len(members), joint.size)).T
    with single_threaded():
        for draws in system.batches(joint.size):
            sigma = joint.sigma[draws]
            if members is not None:
                _predict_groups(system, members, joint, draws, result)
                continue
            for some, leverage, residual in leverages(system, joint, draws):
                variance = sigma**2 * (1.0 / system.weights[some, None] + leverage)
                log_density = -0.5 * (LOG_2PI + np.log(variance) + residual**2 / variance)
                result[draws].T[some] = log_density
    return result


def _predict_groups(
    system: RowSystem,
    members: Sequence[Indices],
    joint: JointDraws,
    draws: slice,
    result: Array,
) -> None:
    forms, sigma = row_forms(system, joint, draws), joint.sigma[draws]
    sizes = np.array([len(rows) for rows in members])
    for places in _alike(sizes, len(sigma), forms.width):
        rows = np.stack([members[place] for place in places])
        step = max(1, ENTRIES // (rows.size * (rows.shape[1] + forms.width)))
        for start in range(0, len(sigma), step):
            some = slice(start, min(start + step, len(sigma)))
            (scores,) = _score_alike(system, forms.take(some), sigma[some], rows, (1.0,))
            result[draws.start + some.start : draws.start + some.stop, places] = scores


def structured_predictions(
    model: Model, joint: JointDraws, out: Indices | None, members: Sequence[Indices] | None
) -> Array:
    """As :func:`predicted_densities` where residuals have a structure.

    Parameters
    ----------
    model : Model
        The model of all rows.
    joint : JointDraws
        S draws.
    out : ndarray of int or None
        Rows that are left out and scored given the others; None for replicates of all rows given
        all.
    members : sequence of ndarray of int, optional
        Places among the rows scored of each of m groups; single rows by default.
    """
    given = model.priors.beta_sampled
    prior = None if given else beta_prior(model.priors)
    scored = [
        _structured_density(rows, out, members)
        for rows in structured_rows(model.design, model.system, prior, joint, given_beta=given)
    ]
    return np.stack(scored)


def _structured_density(
    rows: StructuredRows, out: Indices | None, members: Sequence[Indices] | None
) -> Array:
    """Log densities (m,) at one draw."""
    if out is None and members is None:
        return rows.scores()[1]
    if out is None and members is not None:
        return np.array([rows.group_scores(one[None])[1][0] for one in members])
    assert out is not None
    inverse = np.linalg.inv(rows.left_blocks(out[None])[0])
    deviation, cov = inverse @ rows.weighted[out], rows.sigma**2 * inverse
    if members is None:
        variance = np.diag(cov)
        return np.asarray(-0.5 * (LOG_2PI + np.log(variance) + deviation**2 / variance))
    return np.array([_normal_density(deviation[one], cov[np.ix_(one, one)]) for one in members])


def _normal_density(deviation: Array, cov: Array) -> float:
    half = np.linalg.solve(lower := np.linalg.cholesky(cov), deviation)
    return float(-0.5 * (len(half) * LOG_2PI + half @ half) - np.sum(np.log(np.diag(lower))))


def affordable(
    design: Design, plan: Plan, draws: int, scores: int, groups: Indices | None = None
) -> int:
    """How many draws the memory for their densities, and the time, allow."""
    plan = row_plan(design, plan)
    border = float(plan.n_tail + design.p + 1)
    eliminated = [design.random[stage.factor] for stage in plan.stages]
    by_level = sum(float(factor.n_levels * factor.n_coefs) for factor in eliminated)
    work = 4.0 * design.n * border + border**3 + by_level * border**2
    if groups is not None:
        size = np.bincount(groups).astype(float)
        met = sum(np.minimum(size, factor.n_levels) * factor.n_coefs for factor in eliminated)
        rank = np.minimum(size, border + met)
        work += float(np.sum(size * rank**2))
    by_memory = LARGEST_SCORES // max(1, scores)
    return min(draws, max(FEWEST, min(by_memory, int(LARGEST_WORK / work))))


def _undetermined(design: Design, priors: Priors, groups: Indices | None) -> int:
    """Number of rows or groups without which flat priors leave beta undetermined."""
    flat = np.array([not prior.proper for prior in priors.beta], dtype=bool)
    if not flat.any():
        return 0
    # The prior is on `fixed_map @ beta`: these are the columns of its coordinates.
    columns = np.linalg.solve(priors.fixed_map.T, design.X.T).T[:, flat]
    q = np.linalg.qr(columns / np.linalg.norm(columns, axis=0))[0]
    if groups is None:
        return int(np.sum(1.0 - np.sum(q**2, axis=1) < SEPARATE))
    norms = np.array([np.linalg.norm(q[rows], 2) for rows in _members(groups)])
    return int(np.sum(1.0 - norms**2 < SEPARATE))


def _members(groups: Indices) -> list[Indices]:
    """Rows of each group."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


# What follows fills in the scores of some draws.


def score_rows(
    parts: Iterable[tuple[Indices, Array, Array]],
    weights: Array,
    y: Array,
    sigma: Array,
    result: LeaveOut,
) -> None:
    """Fill in scores (C, n) of rows with weights and responses (n,) at C draws of sigma.

    `parts` are those of :func:`bayeslmm.checks.row_forms.leverages`.
    """
    for rows, leverage, residual in parts:
        own = weights[rows, None]
        share = own * leverage
        constant = LOG_2PI + 2.0 * np.log(sigma) - np.log(own)
        square = own * (residual / sigma) ** 2
        for scores, sign in ((result.log_density, -1.0), (result.in_sample, 1.0)):
            factor = 1.0 + sign * share
            scores.T[rows] = -0.5 * (constant + sign * np.log(factor) + square / factor)
        if result.mean is not None and result.sd is not None:
            left = 1.0 - share
            result.mean.T[rows] = y[rows, None] - residual / left
            result.sd.T[rows] = sigma / np.sqrt(own * left)


def _score_groups(
    system: RowSystem, members: list[Indices], joint: JointDraws, draws: slice, result: LeaveOut
) -> None:
    forms, sigma = row_forms(system, joint, draws), joint.sigma[draws]
    sizes = np.array([len(rows) for rows in members])
    for places in _alike(sizes, len(sigma), forms.width):
        rows = np.stack([members[place] for place in places])
        step = max(1, ENTRIES // (rows.size * (rows.shape[1] + forms.width)))
        for start in range(0, len(sigma), step):
            some = slice(start, min(start + step, len(sigma)))
            scores = _score_alike(system, forms.take(some), sigma[some], rows, (-1.0, 1.0))
            at = slice(draws.start + some.start, draws.start + some.stop)
            result.log_density[at, places], result.in_sample[at, places] = scores


def _alike(sizes: Indices, draws: int, width: int) -> Iterator[Indices]:
    """Groups of equal size, as many together as fit into the cache."""
    for size in np.unique(sizes):
        places = np.flatnonzero(sizes == size)
        step = max(1, ROW_ENTRIES // int(draws * size * (size + width)))
        for start in range(0, len(places), step):
            yield places[start : start + step]


def _score_alike(
    system: RowSystem, forms: RowForms, sigma: Array, rows: Indices, signs: Sequence[float]
) -> list[Array]:
    """Log densities (C, G) of G groups of n_g rows (G, n_g).

    The rows are among those that the system knows, and left out (sign -1), or are replicates or
    further ones (sign 1).
    """
    root = np.sqrt(system.weights[rows])
    white = (root[:, :, None] * forms.residual[rows]).transpose(2, 0, 1) / sigma[:, None, None]
    constant = rows.shape[1] * (LOG_2PI + 2.0 * np.log(sigma)[:, None])
    constant = constant - 2.0 * np.sum(np.log(root), axis=1)
    shape = (len(sigma), *rows.shape, forms.width)
    border = forms.border(rows.ravel()).reshape(shape) * root[:, :, None]
    levels = [
        (codes[rows], (level[rows] * root[:, :, None, None]).transpose(2, 0, 1, 3))
        for codes, level in zip(forms.codes, forms.levels, strict=True)
    ]
    places = [_places(codes) for codes, _ in levels]
    extra = sum(
        int(place.max() + 1) * level.shape[3]
        for place, (_, level) in zip(places, levels, strict=True)
    )
    if forms.width + extra < rows.shape[1]:
        spread = [_spread(place, part) for place, (_, part) in zip(places, levels, strict=True)]
        columns = np.concatenate([border, *spread], axis=3)
        found = [_low_rank(columns, white, sign) for sign in signs]
    else:
        cov = border @ border.transpose(0, 1, 3, 2)
        for codes, part in levels:
            cov += (part @ part.transpose(0, 1, 3, 2)) * (codes[:, :, None] == codes[:, None])
        found = [_full_rank(cov, white, sign) for sign in signs]
    return [-0.5 * (constant + one) for one in found]


def _places(codes: Indices) -> Indices:
    """Levels (G, n_g) numbered from 0 within each group."""
    keys = np.arange(len(codes))[:, None] * (codes.max() + 1) + codes
    found, inverse = np.unique(keys, return_inverse=True)
    first = np.searchsorted(found, np.arange(len(codes)) * (codes.max() + 1))
    return np.asarray(inverse.reshape(codes.shape) - first[:, None])


def _spread(place: Indices, part: Array) -> Array:
    """Columns (C, G, n_g, F k) of the levels that occur in each group from (C, G, n_g, k)."""
    chosen = place[:, :, None] == np.arange(place.max() + 1)
    spread = part[:, :, :, None, :] * chosen[:, :, :, None]
    return spread.reshape(*part.shape[:3], -1)


# Return r'M r - log |M| (C, G), with M^-1 = I + UU' (sign +1) or I - UU' (sign -1). With sign -1
# the rows are left out: their precision given the others is I - UU', and r are the residuals given
# all rows, so that the deviation from the prediction is M r.


def _low_rank(columns: Array, white: Array, sign: float) -> Array:
    """From U (C, G, n_g, R) with R less than n_g."""
    turned = columns.transpose(0, 1, 3, 2)
    lower = batched_cholesky(np.eye(columns.shape[3]) + sign * turned @ columns)
    half = np.linalg.solve(lower, turned @ white[..., None])[..., 0]
    square = np.sum(white**2, axis=2) - sign * np.sum(half**2, axis=2)
    return np.asarray(square + sign * _log_det(lower))


def _full_rank(cov: Array, white: Array, sign: float) -> Array:
    """From UU' (C, G, n_g, n_g)."""
    lower = batched_cholesky(np.eye(cov.shape[2]) + sign * cov)
    half = np.linalg.solve(lower, white[..., None])[..., 0]
    return np.asarray(np.sum(half**2, axis=2) + sign * _log_det(lower))


def _log_det(lower: Array) -> Array:
    return np.asarray(2.0 * np.sum(np.log(np.diagonal(lower, axis1=-2, axis2=-1)), axis=-1))


def check_determined(design: Design, priors: Priors, groups: Indices | None) -> None:
    """Raise SamplingError if flat priors leave beta undetermined without some row or group."""
    refuse_undetermined(_undetermined(design, priors, groups), groups)


def refuse_undetermined(lost: int, groups: Indices | None = None) -> None:
    """Raise SamplingError if some rows or groups take what fixed effects are known from."""
    if lost:
        what = "row" if groups is None else "group"
        raise SamplingError(
            f"Without {lost} {what}{'s' if lost > 1 else ''} the fixed effects are not "
            "determined, and their priors are flat, so that there is no prediction for "
            f"{'them' if lost > 1 else 'it'}. Give the fixed effects proper priors."
        )


def check_finite(log_density: Array) -> None:
    """Raise SamplingError if densities (S, m) are lost to rounding."""
    lost = int(np.sum(~np.isfinite(log_density.sum(axis=0))))
    if lost:
        raise SamplingError(
            f"The densities of {lost} rows or groups left out are lost to rounding: in some draws "
            "the residual standard deviation is almost zero beside those of the random effects."
        )
