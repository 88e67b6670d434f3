"""Residuals of rows to predict given those of observed rows of the same groups.

Let C = L L' be the correlations of the observed rows of a group and then of those to predict. The
observed residuals over their standard deviations are ``L_oo w``, which gives w; those to predict
are ``L_no w + L_nn v`` with v standard normal. That is one formula for every structure, and rows
to predict of one group are correlated as they are given the past.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.covariance.residual import ResidualRows
from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.residuals import AT_ONCE, draw_residuals, residual_sds
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.prediction.observed import observed_residuals
from bayeslmm.prediction.rows import Rows, prediction_rows, take_rows
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
ResidualsOf = Literal["conditional", "new"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Past:
    """Observed rows that share groups of correlated residuals with rows to predict.

    Attributes
    ----------
    seen : Rows
        The o observed rows.
    new : Design
        The n rows to predict.
    joined : ResidualRows
        The observed rows, then those to predict.
    groups : tuple of (ndarray of int, ndarray of int)
        Places among the observed rows and among those to predict, for each group of the latter.
    """

    seen: Rows
    new: Design
    joined: ResidualRows
    groups: tuple[tuple[Indices, Indices], ...]


def conditions(new: Any, target: str, kind: str, terms: Any, residuals: ResidualsOf | None) -> bool:
    """Whether residuals of rows to predict are conditional on observed ones.

    By default those of responses of known or new levels are.

    Raises
    ------
    ValueError
        If that is asked for where it has no meaning.
    """
    fits = {
        'kind="epred" or "response"; the linear predictor has no residuals': kind != "linpred",
        'target="conditional" or "new", as residuals are those left by the random effects of '
        "the levels": target in ("conditional", "new"),
        "all random effects: leave terms= out": terms is None,
        "new rows; those of the model have their own residuals": new is not None,
    }
    if residuals is None:
        return kind == "response" and all(fits.values())
    check_choice(residuals, ("conditional", "new"), "residuals")
    if residuals == "conditional":
        for needed, there in fits.items():
            if not there:
                raise ValueError(f'residuals="conditional" needs {needed}.')
    return residuals == "conditional"


def past_rows(design: Design, rows: Rows) -> Past | None:
    """Observed rows that rows to predict are correlated with; None where there are none.

    Parameters
    ----------
    design : Design
        The design of the model.
    rows : Rows
        Rows to predict, with the columns of the structure of the residuals.

    Raises
    ------
    DataError
        If a row to predict is at a place of its group where the model has a row, or its group is
        one of which the model has sums only.
    """
    if isinstance(design, SummarisedDesign):
        _require_new_groups(design, rows)
    known, fresh = design.residual_rows, rows.design.residual_rows
    if known is None or fresh is None or known.group is None or fresh.group is None:
        return None
    assert design.spec.residual is not None
    old = np.flatnonzero(np.isin(known.group, fresh.group))
    if not len(old):
        return None
    joined = design.spec.residual.together(known.take(old), fresh)
    return Past(
        seen=take_rows(prediction_rows(design, None, "conditional"), old),
        new=rows.design,
        joined=joined,
        groups=_groups(known.group[old], fresh.group),
    )


def _require_new_groups(design: SummarisedDesign, rows: Rows) -> None:
    """Refuse rows of groups whose observed residuals are not kept."""
    spec, fresh = design.spec.residual, rows.design.residual_rows
    if spec is None or spec.group is None or fresh is None or fresh.group is None:
        return
    old = fresh.group < len(spec.group.levels)
    if old.any():
        raise DataError(
            f"{int(old.sum())} of {fresh.n} rows to predict are of groups of {spec.group.name} "
            "that the model has seen: their residuals are correlated with those of the data, of "
            f"which the model has only sums, as it was built from {design.summary.words}. Draw "
            'residuals anew, residuals="new", or build the model from a data frame in memory.'
        )


def told_rows(design: Design, rows: Rows, seen: Rows) -> Past | None:
    """The same of observed rows of groups that the model has not seen."""
    spec, known = design.spec.residual, seen.design.residual_rows
    if spec is None or known is None or known.group is None:
        return None
    joined = spec.rows(pd.concat([seen.design.data, rows.design.data]))
    assert joined.group is not None
    before, after = np.split(joined.group, [seen.design.n])
    return Past(seen=seen, new=rows.design, joined=joined, groups=_groups(before, after))


def _groups(before: Indices, after: Indices) -> tuple[tuple[Indices, Indices], ...]:
    return tuple(
        (np.flatnonzero(before == level), np.flatnonzero(after == level))
        for level in np.unique(after)
    )


def residuals_given(
    rows: Rows,
    joint: JointDraws,
    pasts: Sequence[tuple[Past, Sequence[Array] | None]],
    rng: np.random.Generator | None = None,
) -> Array:
    """Residuals (S, n) of rows to predict, drawn, or expected without `rng`.

    Parameters
    ----------
    rows : Rows
        Rows to predict.
    joint : JointDraws
        S draws.
    pasts : sequence of (Past, random effects)
        Observed rows of different groups, with the random effects (S, m, k) of their new levels.
    rng : numpy.random.Generator, optional
        Source of randomness.
    """
    result = np.zeros((joint.size, rows.design.n))
    if rng is not None:
        result = draw_residuals(rows.design, joint.points, rng)
    for past, fresh in pasts:
        known = observed_residuals(past.seen, joint, fresh)
        none = np.zeros(0, dtype=np.intp)
        told = [after for before, after in past.groups if len(before)]
        covered = np.concatenate([none, *told])
        drawn = conditional_residuals(past, joint.points, known, rng)
        result[:, covered] = drawn[:, covered]
    return result


def conditional_residuals(
    past: Past, points: AnyPoints, residuals: Array, rng: np.random.Generator | None = None
) -> Array:
    """Residuals (S, n) of rows to predict given those observed, drawn, or expected without `rng`.

    Parameters
    ----------
    past : Past
        The rows.
    points : Points
        S covariance parameters.
    residuals : ndarray (S, o)
        Residuals of the observed rows.
    rng : numpy.random.Generator, optional
        Source of randomness.
    """
    shape = (len(points.sigma), past.new.n)
    noise = np.zeros(shape) if rng is None else rng.standard_normal(shape)
    scaled = residuals / residual_sds(past.seen.design, points)
    for draws, before, after, root in _roots(past, points):
        o, own = len(before), np.ix_(draws, after)
        white = np.linalg.solve(root[:, :o, :o], scaled[np.ix_(draws, before)][..., None])
        both = np.concatenate([white, noise[own][..., None]], axis=1)
        noise[own] = (root[:, o:] @ both)[..., 0]
    return np.asarray(residual_sds(past.new, points) * noise)


def conditional_variances(past: Past, points: AnyPoints) -> Array:
    """Variances (S, n) of the residuals of rows to predict given those observed."""
    left = np.empty((len(points.sigma), past.new.n))
    for draws, before, after, root in _roots(past, points):
        left[np.ix_(draws, after)] = np.sum(root[:, len(before) :, len(before) :] ** 2, axis=2)
    return np.asarray(residual_sds(past.new, points) ** 2 * left)


def _roots(past: Past, points: AnyPoints) -> Iterator[tuple[Indices, Indices, Indices, Array]]:
    """Cholesky factors (s, o + m, o + m) of the correlations of each group, draw by draw."""
    law, z = points.residual.correlation, points.residual.cors_of(points.shapes)
    assert law is not None
    for before, after in past.groups:
        rows = past.joined.take(np.concatenate([before, past.seen.design.n + after]))
        step = max(1, AT_ONCE // rows.n**2)
        for start in range(0, len(z), step):
            draws = np.arange(start, min(start + step, len(z)))
            root = batched_cholesky(law.matrix(z[draws], rows))
            if not np.isfinite(root).all():
                raise DataError(
                    f"The correlations of {rows.n} residuals of one group, {len(after)} of them to "
                    "predict, are not positive definite: places are too near to each other, or "
                    "there are more rows than a negative correlation of all with all allows. "
                    'Predict fewer rows at a time, or draw residuals anew: residuals="new".'
                )
            yield draws, before, after, root
