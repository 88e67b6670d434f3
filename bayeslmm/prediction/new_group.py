"""Random effects of new levels of which some rows have been observed, in closed form.

For every draw of the other parameters, the random effects of the new levels given the observed rows
are normal. How probable each draw makes these rows reweights the draws: together they are the
posterior given the old and the new data.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.design.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.inference.joint_draws import JointDraws
from bayeslmm.inference.pareto import smooth_weights
from bayeslmm.likelihood.batch_draws import normal_draws
from bayeslmm.prediction.linear import linear_draws, require_memory
from bayeslmm.prediction.rows import Membership, Rows, prediction_rows

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_log = logging.getLogger(__name__)

MAX_K = 0.7
"""Pareto k above which importance weights are not to be relied on."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Update:
    """New levels' random effects given observed rows, one set per draw.

    Attributes
    ----------
    labels : tuple of tuple of str
        New levels per grouping factor.
    effects : tuple of ndarray (S, m, k)
        Their random effects per grouping factor.
    log_density : ndarray (S,)
        Log density of the observed rows given each draw.
    """

    labels: tuple[tuple[str, ...], ...]
    effects: tuple[Array, ...]
    log_density: Array

    def take(self, rows: Indices) -> Update:
        """Some of the draws."""
        return Update(
            labels=self.labels,
            effects=tuple(u[rows] for u in self.effects),
            log_density=self.log_density[rows],
        )


def observe(
    design: Design, joint: JointDraws, observed: Any, rng: np.random.Generator | None
) -> Update:
    """Random effects of the new levels of observed rows.

    Parameters
    ----------
    design : Design
        The design of the model.
    joint : JointDraws
        S draws of the parameters.
    observed : data frame
        Rows with their response, at least one of a level that the model has not seen.
    rng : numpy.random.Generator or None
        Source of randomness; None gives the conditional means.

    Returns
    -------
    Update

    Raises
    ------
    DataError
        If there is no new level, or a response is missing.
    """
    rows = prediction_rows(design, observed, "new")
    if not any(member.n_fresh for member in rows.members):
        raise DataError(
            "observed= has rows of known levels only. It is for levels that the model has not "
            "seen; to learn more about known ones, fit the model to all data."
        )
    if not np.isfinite(rows.design.y).all():
        raise DataError(f"observed= needs the response {design.response} in every row.")
    residual = _residuals(rows, joint)
    scale = np.ones(rows.design.n) if rows.design.weights is None else rows.design.weights**-0.5
    columns = [_spherical_columns(m, r) for m, r in zip(rows.members, joint.roots, strict=True)]
    white = np.concatenate(columns, axis=2) / (joint.sigma[:, None, None] * scale[:, None])
    spherical, log_density = _condition(white, residual / (joint.sigma[:, None] * scale), rng)
    log_density = log_density - np.sum(np.log(scale)) - rows.design.n * np.log(joint.sigma)
    return Update(
        labels=tuple(tuple(map(str, f.new_levels)) for f in rows.design.random),
        effects=tuple(_in_units(spherical, rows.members, joint.roots)),
        log_density=log_density,
    )


def reweight(log_density: Array, rng: np.random.Generator) -> tuple[Indices, float]:
    """Draws resampled by how probable they make the observed rows, and the Pareto k of doing so."""
    weights, k = smooth_weights(log_density - log_density.max())
    if k > MAX_K:
        _log.warning(
            "The observed rows surprise the model: the importance weights of its draws have a "
            "Pareto k of %.2f, above %.1f. Refit the model to the old and the observed rows.",
            k,
            MAX_K,
        )
    cumulative = np.cumsum(np.exp(weights))
    places = (rng.random() + np.arange(len(weights))) / len(weights) * cumulative[-1]
    return np.searchsorted(cumulative, places).clip(max=len(weights) - 1), k


def _residuals(rows: Rows, joint: JointDraws) -> Array:
    """Response less fixed effects and effects of known levels: (S, n)."""
    empty = [np.zeros((joint.size, m.n_fresh, m.Z.shape[1])) for m in rows.members]
    wanted = [np.unique(m.known[m.known >= 0]) for m in rows.members]
    effects = list(zip(joint.effects(wanted), empty, strict=True))
    return np.asarray(rows.design.y - linear_draws(rows, joint, effects, slice(None)))


def _spherical_columns(member: Membership, root: Array) -> Array:
    """Columns of Z times the root of G, of the new levels: (S, n, m k)."""
    n, k = member.Z.shape
    require_memory(len(root) * n * member.n_fresh * k, "observed rows")
    scaled = member.Z @ root
    result = np.zeros((len(root), n, member.n_fresh, k))
    here = np.flatnonzero(member.fresh >= 0)
    result[:, here, member.fresh[here]] = scaled[:, here]
    return result.reshape(len(root), n, member.n_fresh * k)


def _condition(
    white: Array, residual: Array, rng: np.random.Generator | None
) -> tuple[Array, Array]:
    """Draws (or means) of spherical effects (S, q), and log densities of whitened residuals."""
    size, n, q = white.shape
    lower = np.linalg.cholesky(white.transpose(0, 2, 1) @ white + np.eye(q))
    right = np.einsum("snq,sn->sq", white, residual)
    half = np.linalg.solve(lower, right[..., None])[..., 0]
    noise = np.zeros((size, q)) if rng is None else normal_draws(rng, q, size)
    upper = lower.transpose(0, 2, 1)
    spherical = np.linalg.solve(upper, (half + noise)[..., None])[..., 0]
    log_det = 2.0 * np.sum(np.log(np.diagonal(lower, axis1=1, axis2=2)), axis=1)
    squares = np.sum(residual**2, axis=1) - np.sum(half**2, axis=1)
    return spherical, -0.5 * (squares + log_det + n * np.log(2.0 * np.pi))


def _in_units(
    spherical: Array, members: Sequence[Membership], roots: Sequence[Array]
) -> list[Array]:
    result, start = [], 0
    for member, root in zip(members, roots, strict=True):
        k = member.Z.shape[1]
        stop = start + member.n_fresh * k
        part = spherical[:, start:stop].reshape(len(root), member.n_fresh, k)
        result.append(part @ root.transpose(0, 2, 1))
        start = stop
    return result


def replaced_effects(
    rows: Rows, effects: Sequence[tuple[Array, Array]], update: Update
) -> list[tuple[Array, Array]]:
    """Random effects that rows need, those of observed new levels taken from an update."""
    result = []
    factors = zip(effects, rows.design.random, update.labels, update.effects, strict=True)
    for (known, fresh), factor, labels, values in factors:
        at = _places(list(map(str, factor.new_levels)), labels)
        fresh = fresh.copy()
        fresh[:, at >= 0] = values[:, at[at >= 0]]
        result.append((known, fresh))
    return result


def _places(labels: Sequence[str], known: Sequence[str]) -> Indices:
    """Place of each new level among those observed; -1 where it is not."""
    places = {label: i for i, label in enumerate(known)}
    return np.array([places.get(label, -1) for label in labels], dtype=np.intp)
