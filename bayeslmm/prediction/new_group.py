"""Random effects of new levels of which some rows have been observed, in closed form.

For every draw of the other parameters, the random effects of the new levels given the observed rows
are normal. How probable each draw makes these rows reweights the draws: together they are the
posterior given the old and the new data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.prediction.linear import linear_draws, require_memory
from bayeslmm.prediction.rows import Membership, Rows
from bayeslmm.sampling.density_sampler import MAX_PARETO_K
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.pareto import smooth_weights

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)


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
    if not any(member.n_fresh for member in rows.members):
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
    scale = np.ones(rows.design.n) if rows.design.weights is None else rows.design.weights**-0.5
    white = _residuals(rows, joint) / (joint.sigma[:, None] * scale)
    clusters = []
    for here in _row_sets(rows):
        parts = [
            _spherical_columns(member, root, here)
            for member, root in zip(rows.members, joint.roots, strict=True)
        ]
        columns = np.concatenate([z for _, z in parts], axis=2)
        columns /= joint.sigma[:, None, None] * scale[here, None]
        clusters.append(_condition(tuple(at for at, _ in parts), columns, white[:, here]))
    log_density = np.sum([cluster.log_density for cluster in clusters], axis=0)
    log_density = log_density - np.sum(np.log(scale)) - rows.design.n * np.log(joint.sigma)
    return Update(
        counts=tuple(member.n_fresh for member in rows.members),
        roots=tuple(joint.roots),
        clusters=tuple(clusters),
        log_density=log_density,
    )


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


def _residuals(rows: Rows, joint: JointDraws) -> Array:
    """Response less fixed effects and effects of known levels: (S, n)."""
    empty = [np.zeros((joint.size, m.n_fresh, m.Z.shape[1])) for m in rows.members]
    known = joint.effects([member.wanted for member in rows.members])
    effects = list(zip(known, empty, strict=True))
    return np.asarray(rows.design.y - linear_draws(rows, joint, effects, slice(None)))


def _row_sets(rows: Rows) -> list[Indices]:
    """Rows that new levels connect, set by set."""
    n = rows.design.n
    row, column, start = [], [], n
    for member in rows.members:
        at = np.flatnonzero(member.fresh >= 0)
        row.append(at)
        column.append(start + member.fresh[at])
        start += member.n_fresh
    edges = (np.concatenate(row), np.concatenate(column))
    graph = sp.coo_array((np.ones(len(edges[0])), edges), shape=(start, start))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels[:n], kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[:n][order])) + 1)


def _spherical_columns(member: Membership, root: Array, here: Indices) -> tuple[Indices, Array]:
    """New levels of some rows, and the columns of Z times the root of G for them (S, n, m k)."""
    fresh, Z = member.fresh[here], member.Z[here]
    levels = np.unique(fresh[fresh >= 0])
    n, k = Z.shape
    require_memory(len(root) * n * len(levels) * k, "observed rows")
    result = np.zeros((len(root), n, len(levels), k))
    at = np.flatnonzero(fresh >= 0)
    result[:, at, np.searchsorted(levels, fresh[at])] = Z[at] @ root
    return levels, result.reshape(len(root), n, len(levels) * k)


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
        Their random effects, as from :func:`bayeslmm.prediction.linear.effects_of_rows`.
    seen : Rows
        Observed rows.
    updated : sequence of ndarray (S, m, k)
        Random effects of the new levels of the observed rows.
    """
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
