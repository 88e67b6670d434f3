"""Random effects of new levels of which some rows have been observed, in closed form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.connected import by_part, connected
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.strata import Strata, divided_levels
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.residuals import (
    require_normal_residuals,
    residual_blocks,
    residual_sds,
)
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.prediction.rows import Rows, linear_draws, require_memory
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.sampling.pareto import MAX_PARETO_K, smooth_weights
from bayeslmm.summaries.estimate_tables import mode_arrays

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cluster:
    """New levels that share observed rows with each other, and with no other new level.

    Attributes
    ----------
    levels : tuple of ndarray of int (m,)
        Numbers of its new levels per grouping factor.
    lower : ndarray (S, q, q)
        Cholesky factor of the precision matrix of their spherical random effects given the rows.
    half : ndarray (S, q)
        Its solution of the right-hand side.
    log_density : ndarray (S,)
        Log density of the whitened rows given each draw.
    """

    levels: tuple[Indices, ...]
    lower: Array
    half: Array
    log_density: Array

    def spherical(self, places: Indices, rng: np.random.Generator) -> Array:
        """Spherical random effects (S', q) at some of the draws, which may repeat."""
        noise = normal_draws(rng, self.half.shape[1], len(places))
        upper = self.lower[places].transpose(0, 2, 1)
        return np.asarray(np.linalg.solve(upper, (self.half[places] + noise)[..., None])[..., 0])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Update:
    """Distribution of new levels' random effects given observed rows, for each draw.

    Attributes
    ----------
    counts : tuple of int
        Number of new levels per grouping factor.
    roots : tuple of ndarray (S, k, k)
        Roots of the covariance matrices.
    clusters : tuple of Cluster
        Sets of new levels that are independent of each other.
    log_density : ndarray (S,)
        Log density of the observed rows given each draw.
    """

    counts: tuple[int, ...]
    roots: tuple[Array, ...]
    clusters: tuple[Cluster, ...]
    log_density: Array

    def effects(self, places: Indices, rng: np.random.Generator) -> list[Array]:
        """Draw random effects (S', m, k) per grouping factor at some of the draws."""
        pairs = list(zip(self.counts, self.roots, strict=True))
        result = [np.zeros((len(places), m, root.shape[1])) for m, root in pairs]
        for cluster in self.clusters:
            spherical = cluster.spherical(places, rng)
            start = 0
            for array, levels, (_, root) in zip(result, cluster.levels, pairs, strict=True):
                stop = start + len(levels) * root.shape[1]
                part = spherical[:, start:stop].reshape(len(places), len(levels), root.shape[1])
                array[:, levels] = part @ root[places].transpose(0, 2, 1)
                start = stop
        return result


def check_observed(rows: Rows) -> None:
    """Refuse observed rows that have no new level or lack a response.

    Raises
    ------
    DataError
    """
    spec, known = rows.design.spec.residual, rows.design.residual_rows
    new_groups = False
    if spec is not None and spec.group is not None and known is not None:
        assert known.group is not None
        old = known.group < len(spec.group.levels)
        new_groups = not old.all()
        if old.any():
            raise DataError(
                f"observed= has {int(old.sum())} rows of groups of {spec.group.name} that the "
                "model has seen, with whose residuals theirs are correlated; to learn more about "
                "known groups, fit the model to all data."
            )
    if not new_groups and not any(member.n_fresh for member in rows.members):
        raise DataError(
            "observed= has rows of known levels only. It is for levels that the model has not "
            "seen; to learn more about known ones, fit the model to all data."
        )
    if not np.isfinite(rows.design.y).all():
        raise DataError(f"observed= needs the response {rows.design.response} in every row.")


def observe(rows: Rows, joint: JointDraws) -> Update:
    """Distribution of the random effects of the new levels of observed rows.

    Parameters
    ----------
    rows : Rows
        Rows with their response, at least one of a level that the model has not seen.
    joint : JointDraws
        S draws of the parameters. Known levels of the rows take part with their random effects.

    Returns
    -------
    Update
    """
    require_normal_residuals(rows.design, "A prediction given observed rows")
    residual, log_dets, clusters = observed_residuals(rows, joint), np.zeros(joint.size), []
    for here in _row_sets(rows):
        parts = [
            member.columns(root, here)
            for member, root in zip(rows.members, joint.roots, strict=True)
        ]
        columns = np.concatenate([*(z for _, z in parts), residual[:, here, None]], axis=2)
        white, log_det = _whitened(rows.design, joint, here, columns)
        levels = tuple(at for at, _ in parts)
        clusters.append(_condition(levels, white[:, :, :-1], white[:, :, -1]))
        log_dets = log_dets + log_det
    log_density = np.sum([cluster.log_density for cluster in clusters], axis=0) - log_dets
    return Update(
        counts=tuple(member.n_fresh for member in rows.members),
        roots=tuple(joint.roots),
        clusters=tuple(clusters),
        log_density=log_density,
    )


def _whitened(
    design: Design, joint: JointDraws, here: Indices, columns: Array
) -> tuple[Array, Array]:
    """Columns (S, n, q) in units of the Cholesky factor of R, and its log determinant (S,)."""
    if joint.points.residual.correlation is None:
        sds = residual_sds(design, joint.points, here)
        return columns / sds[:, :, None], np.sum(np.log(sds), axis=1)
    root = batched_cholesky(residual_blocks(design, joint.points, here))
    diagonal = np.diagonal(root, axis1=1, axis2=2)
    return np.linalg.solve(root, columns), np.sum(np.log(diagonal), axis=1)


def reweight(log_density: Array, rng: np.random.Generator) -> tuple[Indices, float]:
    """Draws resampled by how probable they make the observed rows, and the Pareto k of doing so."""
    weights, k = smooth_weights(log_density - log_density.max())
    if k > MAX_PARETO_K:
        _log.warning(
            "The observed rows surprise the model: the importance weights of its draws have a "
            "Pareto k of %.2f, above %.1f. Refit the model to the old and the observed rows.",
            k,
            MAX_PARETO_K,
        )
    cumulative = np.cumsum(np.exp(weights))
    places = (rng.random() + np.arange(len(weights))) / len(weights) * cumulative[-1]
    return np.searchsorted(cumulative, places).clip(max=len(weights) - 1), k


def observed_residuals(
    rows: Rows, joint: JointDraws, fresh: Sequence[Array] | None = None
) -> Array:
    """Response less fixed effects and effects of known, and given new, levels: (S, n)."""
    empty = [np.zeros((joint.size, m.n_fresh, m.n_coefs)) for m in rows.members]
    empty = empty if fresh is None else list(fresh)
    known = joint.effects([member.wanted for member in rows.members]) if rows.members else []
    effects = list(zip(known, empty, strict=True))
    require_memory(joint.size * rows.design.n, "residuals of observed rows")
    return np.asarray(rows.design.y - linear_draws(rows, joint, effects, slice(None)))


def _row_sets(rows: Rows) -> list[Indices]:
    """Rows that new levels, and groups of correlated residuals, connect, set by set."""
    n, known = rows.design.n, rows.design.residual_rows
    edges, size = [], n
    if known is not None and known.group is not None:
        edges.append((np.arange(n), size + known.group))
        size += int(known.group.max()) + 1
    for member in rows.members:
        for level in member.levels:
            at = np.flatnonzero(level.fresh >= 0)
            edges.append((at, size + level.fresh[at]))
        size += member.n_fresh
    return by_part(connected(edges, size)[:n])


def _condition(levels: tuple[Indices, ...], white: Array, residual: Array) -> Cluster:
    """Condition spherical effects with columns (S, n, q) on whitened residuals (S, n)."""
    n, q = white.shape[1:]
    lower = np.linalg.cholesky(white.transpose(0, 2, 1) @ white + np.eye(q))
    right = np.einsum("snq,sn->sq", white, residual)
    half = np.linalg.solve(lower, right[..., None])[..., 0]
    log_det = 2.0 * np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)), axis=1)
    squares = np.sum(residual**2, axis=1) - np.sum(half**2, axis=1)
    log_density = -0.5 * (squares + log_det + n * np.log(2.0 * np.pi))
    return Cluster(levels=levels, lower=lower, half=half, log_density=log_density)


def replaced_effects(
    rows: Rows,
    effects: Sequence[tuple[Array, Array]],
    seen: Rows,
    updated: Sequence[Array],
) -> list[tuple[Array, Array]]:
    """Random effects that rows need, those of new levels that were seen replaced.

    Parameters
    ----------
    rows : Rows
        Rows to predict.
    effects : sequence of (known, fresh)
        Their random effects, as from :func:`bayeslmm.prediction.rows.effects_of_rows`.
    seen : Rows
        Observed rows.
    updated : sequence of ndarray (S, m, k)
        Random effects of the new levels of the observed rows.

    Raises
    ------
    DataError
        If a level is in another stratum of its grouping factor where it was observed.
    """
    observed = {factor.name: factor for factor in seen.design.random}
    for factor in rows.design.random:
        for strata in factor.spec.strata:
            if strata is not None and factor.name in observed:
                now, then = rows.design.data, seen.design.data
                _check_same_strata(strata, (factor, now), (observed[factor.name], then))
    result = []
    for (known, fresh), member, other, values in zip(
        effects, rows.members, seen.members, updated, strict=True
    ):
        places = {label: i for i, label in enumerate(other.labels)}
        at = np.array([places.get(label, -1) for label in member.labels], dtype=np.intp)
        fresh = fresh.copy()
        fresh[:, at >= 0] = values[:, at[at >= 0]]
        result.append((known, fresh))
    return result


def _check_same_strata(
    strata: Strata, one: tuple[RandomFactor, pd.DataFrame], two: tuple[RandomFactor, pd.DataFrame]
) -> None:
    """Refuse a new level that two sets of rows put into different strata."""
    found: dict[str, str] = {}
    for factor, frame in (one, two):
        fresh = factor.extended_codes - factor.n_levels
        values = frame[strata.of.name].to_numpy()
        for row in np.flatnonzero(fresh >= 0):
            level, value = str(factor.new_levels[fresh[row]]), str(values[row])
            if found.setdefault(level, value) != value:
                raise divided_levels(factor.name, strata.of.name, [level])


# --- a point estimate given observed rows of new levels, at its covariance parameters ---


def updated_point(design: Design, fit: Fit, seen: Rows) -> tuple[JointDraws, list[Array]]:
    """Fixed effects and conditional modes given old and observed rows.

    Parameters
    ----------
    design : Design
        The design of the model.
    fit : Fit
        Its estimate, whose covariance parameters are held.
    seen : Rows
        Observed rows.

    Returns
    -------
    point : JointDraws
        One draw with the fixed effects and the modes of the known levels.
    fresh : list of ndarray (1, m, k)
        Modes of the new levels per grouping factor.
    """
    plan = marginal_system(_extended(design, seen.design)).at(fit.shape)
    extended = replace(fit, plan=plan)
    if not fit.given_beta:
        extended = replace(extended, beta=extended.factorisation.beta)
    modes = mode_arrays(extended)
    known = [u[: factor.n_levels] for u, factor in zip(modes, design.random, strict=True)]
    fresh = [u[factor.n_levels :][None] for u, factor in zip(modes, design.random, strict=True)]
    return point_draws(extended, known), fresh


def _extended(design: Design, seen: Design) -> Design:
    """The rows of a design followed by those of the same model on other data."""
    require_normal_residuals(design, "A prediction given observed rows")
    weights, spec = None, design.spec.residual
    if design.weights is not None or seen.weights is not None:
        weights = np.concatenate([design.row_weights, seen.row_weights])
    pairs = zip(design.random, seen.random, strict=True)
    return replace(
        design,
        y=np.concatenate([design.y, seen.y]),
        offset=np.concatenate([design.offset, seen.offset]),
        weights=weights,
        X=np.concatenate([design.X, seen.X]),
        random=tuple(_extended_factor(factor, other) for factor, other in pairs),
        residual_rows=None if spec is None else spec.rows(pd.concat([design.data, seen.data])),
    )


def _extended_factor(factor: RandomFactor, other: RandomFactor) -> RandomFactor:
    known = factor.relationship
    spec = replace(
        factor.spec,
        levels=np.concatenate([factor.levels, other.new_levels]),
        relationship=None if known is None else known.with_unrelated(other.new_levels),
    )
    pairs = zip(factor.members, other.members, strict=True)
    return replace(
        factor,
        spec=spec,
        Z=np.concatenate([factor.Z, other.Z]),
        members=tuple(one.followed_by(two) for one, two in pairs),
    )
