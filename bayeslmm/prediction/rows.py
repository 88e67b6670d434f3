"""New rows of a model: covariates, levels of each grouping factor, and draws there.

Some rows of new levels may have been observed. For every draw of the other parameters, the random
effects of these levels given the observed rows are normal. How probable each draw makes these rows
reweights the draws: together they are the posterior given the old and the new data.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.frames import column_names, plain_frame
from bayeslmm.data.grouping import grouping_factor
from bayeslmm.data.strata import Strata, divided_levels
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.residuals import (
    draw_residuals,
    require_normal_residuals,
    residual_blocks,
    residual_sds,
    with_new_levels,
    with_scale_effects,
)
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.blocks import batched_cholesky
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.sampling.joint_draws import JointDraws, point_draws
from bayeslmm.sampling.pareto import MAX_PARETO_K, smooth_weights
from bayeslmm.summaries.estimate_tables import mode_arrays
from bayeslmm.summaries.parameters import check_choice

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Target = Literal["conditional", "new", "population", "average"]
Terms = Sequence[str] | Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Membership:
    """Levels of one grouping factor in the rows of a prediction.

    Attributes
    ----------
    known : ndarray of int (n,)
        Place of the level among those of the model; -1 where it is not one of them.
    fresh : ndarray of int (n,)
        Number of the new level, from 0; -1 where the level is known.
    n_fresh : int
        How many new levels there are.
    labels : tuple of str
        Labels of the new levels; empty for the target "population", where they have none.
    Z : ndarray (n, k)
        Covariates, zero for coefficients that are left out.
    """

    known: Indices
    fresh: Indices
    n_fresh: int
    labels: tuple[str, ...]
    Z: Array

    @property
    def wanted(self) -> Indices:
        """Places of the known levels that occur, increasing."""
        return np.unique(self.known[self.known >= 0])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rows:
    """Rows to predict.

    Attributes
    ----------
    design : Design
        The model evaluated there.
    members : tuple of Membership
        Per grouping factor of the model; empty for the target "average".
    """

    design: Design
    members: tuple[Membership, ...]


def prediction_rows(
    design: Design,
    new: Any,
    target: Target,
    terms: Terms | None = None,
    weights: Any = None,
    *,
    residual: bool = False,
) -> Rows:
    """Evaluate a model on rows to predict.

    Parameters
    ----------
    design : Design
        The design of the model.
    new : data frame, mapping or None
        New rows; None for those of the model.
    target : {"conditional", "new", "population", "average"}
        What the random effects are.
    terms : sequence of str or mapping, optional
        Grouping factors whose effects count, or the coefficients that count per factor.
    weights : str or array-like, optional
        Precision weights of the new rows; those of the model keep their own.
    residual : bool
        Whether the columns of the structure of the residuals are needed.

    Returns
    -------
    Rows

    Raises
    ------
    ValueError
        If the target or a term is unknown.
    DataError
        If the new rows cannot be used, or have unknown levels under "conditional".
    """
    check_choice(target, get_args(Target), "target")
    if new is None and weights is not None:
        raise ValueError("weights= is for new rows; those of the model keep their own weights.")
    included = included_coefs(design, terms)
    if target == "average" or not any(mask.any() for mask in included):
        encode = functools.partial(design.spec.rows, new, weights=weights, residual=residual)
        return Rows(design=design if new is None else encode(random="none"), members=())
    partial = _partial(design, included)
    if target == "population":
        return _population_rows(design, partial, new, weights, included, residual=residual)
    encoded = partial
    if new is not None:
        encoded = partial.spec.rows(new, weights=weights, residual=residual)
    if target == "conditional":
        _refuse_unknown(encoded.random)
    found = {factor.name: _membership(factor) for factor in encoded.random}
    return Rows(design=encoded, members=_members(design, found, included, encoded.n))


def _partial(design: Design, included: Sequence[NDArray[np.bool_]]) -> Design:
    """The design without the grouping factors that are left out: new rows need not have them."""
    pairs = zip(design.random, included, strict=True)
    kept = tuple(factor for factor, mask in pairs if mask.any())
    groups = [set(factor.factors) for factor in kept]
    terms = tuple(term for term in design.formula.random if set(term.factors) in groups)
    formula = replace(design.formula, random=terms)
    spec = replace(design.spec, formula=formula, random=tuple(factor.spec for factor in kept))
    return design.restricted(spec, kept)


def _membership(factor: RandomFactor) -> Membership:
    return Membership(
        known=factor.codes,
        fresh=np.where(factor.codes < 0, factor.extended_codes - factor.n_levels, -1),
        n_fresh=len(factor.new_levels),
        labels=tuple(map(str, factor.new_levels)),
        Z=factor.Z,
    )


def _members(
    design: Design,
    found: Mapping[str, Membership],
    included: Sequence[NDArray[np.bool_]],
    n: int,
) -> tuple[Membership, ...]:
    """One per grouping factor of the model: those found, and none of the levels of the others."""
    nowhere = np.full(n, -1, dtype=np.intp)
    result = []
    for factor, mask in zip(design.random, included, strict=True):
        absent = Membership(
            known=nowhere, fresh=nowhere, n_fresh=0, labels=(), Z=np.zeros((n, factor.n_coefs))
        )
        member = found.get(factor.name, absent)
        result.append(replace(member, Z=np.where(mask, member.Z, 0.0)))
    return tuple(result)


def take_rows(rows: Rows, part: Indices) -> Rows:
    """Some of the rows."""
    members = [
        replace(m, known=m.known[part], fresh=m.fresh[part], Z=m.Z[part]) for m in rows.members
    ]
    return Rows(design=rows.design.take(part), members=tuple(members))


def included_coefs(design: Design, terms: Terms | None) -> list[NDArray[np.bool_]]:
    """Which coefficients (k,) of each grouping factor count.

    Raises
    ------
    ValueError
        If a grouping factor or coefficient is unknown.
    """
    if terms is None:
        return [np.ones(factor.n_coefs, dtype=bool) for factor in design.random]
    if isinstance(terms, str):
        terms = [terms]
    wanted = terms if isinstance(terms, Mapping) else dict.fromkeys(terms)
    names = {factor.name: factor for factor in design.random}
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(
            f"terms: the model has no grouping factor {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(map(repr, names))}."
        )
    result = []
    for name, factor in names.items():
        chosen = wanted.get(name, ())
        chosen = (chosen,) if isinstance(chosen, str) else chosen
        coefs = factor.coefs if chosen is None else tuple(chosen)
        plain = factor.spec.plain_coefs
        if lost := [coef for coef in coefs if coef not in (*factor.coefs, *plain)]:
            raise ValueError(
                f"terms: {name} has no random coefficient {', '.join(map(repr, lost))}; it has "
                f"{', '.join(map(repr, factor.coefs))}."
            )
        labels = zip(factor.coefs, plain, strict=True)
        result.append(np.array([not {*label}.isdisjoint(coefs) for label in labels]))
    return result


def _population_rows(
    design: Design,
    partial: Design,
    new: Any,
    weights: Any,
    included: Sequence[NDArray[np.bool_]],
    *,
    residual: bool,
) -> Rows:
    """Every level is new; rows share one where the data have its grouping variables."""
    if new is None:
        encoded, source, names = partial, design.data, list(design.data.columns)
    else:
        encoded = partial.spec.rows(new, weights=weights, random="covariates", residual=residual)
        names = column_names(new)
        grouping = {name for factor in partial.random for name in factor.factors}
        source = plain_frame(new, grouping & set(names))
    found = {}
    for factor in encoded.random:
        codes = _units(source, factor, names)
        found[factor.name] = Membership(
            known=np.full(encoded.n, -1, dtype=np.intp),
            fresh=codes,
            n_fresh=int(codes.max(initial=-1)) + 1,
            labels=(),
            Z=factor.Z,
        )
    return Rows(design=encoded, members=_members(design, found, included, encoded.n))


def _units(source: pd.DataFrame, factor: RandomFactor, names: Sequence[str]) -> Indices:
    if not set(factor.factors) <= set(names):
        return np.arange(len(factor.Z))
    frame = source[list(factor.factors)]
    if frame.isna().to_numpy().any():
        raise DataError(f"The grouping factor `{factor.name}` is missing in some of the new rows.")
    return grouping_factor(frame, factor.factors)[0]


def _refuse_unknown(random: Sequence[RandomFactor]) -> None:
    for factor in random:
        if len(factor.new_levels):
            shown = ", ".join(map(repr, factor.new_levels[:5]))
            more = len(factor.new_levels) - 5
            raise DataError(
                f"{factor.name} has levels that the model has not seen: {shown}"
                f"{f' and {more} more' if more > 0 else ''}. target='new' draws their random "
                "effects from the fitted distribution, 'population' integrates over those of "
                "every level, 'average' leaves them at zero."
            )


def scales_at(
    rows: Rows, joint: JointDraws, target: Target, rng: np.random.Generator
) -> JointDraws:
    """Draws whose random effects in the log residual scale are those of a target.

    Levels of the data keep theirs under "conditional" and "new"; under "population" every level
    gets new ones, and under "average" they are zero.

    Raises
    ------
    DataError
        If the rows have levels there that the model has not seen, under "conditional".
    """
    scale, own = joint.points.scale, rows.design.scale_rows
    if scale is None or own is None or not own.random:
        return joint
    if target == "conditional":
        _refuse_unknown(own.random)
    points = joint.points
    if target == "population":
        points = with_scale_effects(rows.design, points, rng)
    if target == "average":
        shapes = [(joint.size, f.n_levels + len(f.new_levels), f.n_coefs) for f in own.random]
        points = replace(points, scale=scale.with_effects([np.zeros(shape) for shape in shapes]))
    return replace(joint, points=with_new_levels(rows.design, points, rng))


# --- draws at these rows ---


LARGEST = 2**31
"""Bytes of draws that are held at once."""


def effects_of_rows(
    rows: Rows, joint: JointDraws, rng: np.random.Generator
) -> list[tuple[Array, Array]]:
    """Random effects that the rows need, per grouping factor.

    Returns
    -------
    list of (known, fresh)
        Draws (S, J', k) of the levels that occur, in the order of their places, and (S, m, k) of
        the new levels, independent of each other given the covariance parameters.
    """
    wanted = [member.wanted for member in rows.members]
    if not wanted:
        return []
    per_level = [member.Z.shape[1] for member in rows.members]
    counts = [len(w) + m.n_fresh for w, m in zip(wanted, rows.members, strict=True)]
    entries = sum(k * count for k, count in zip(per_level, counts, strict=True))
    require_memory(joint.size * entries, "random effects")
    known = joint.effects(wanted)
    return [
        (u, new_effects(root, member.n_fresh, rng))
        for u, root, member in zip(known, joint.roots, rows.members, strict=True)
    ]


def new_effects(root: Array, levels: int, rng: np.random.Generator) -> Array:
    """Random effects (S, levels, k) of levels without data, given roots (S, k, k) of Sigma."""
    size, k = root.shape[:2]
    noise = normal_draws(rng, levels * k, size).reshape(size, levels, k)
    return np.asarray(noise @ root.transpose(0, 2, 1))


def linear_draws(
    rows: Rows, joint: JointDraws, effects: Sequence[tuple[Array, Array]], part: slice
) -> Array:
    """Draws (S, n) of offset + X beta + Z u at some of the rows."""
    design = rows.design
    result = joint.beta @ design.X[part].T
    result += design.offset[part]
    for member, (known, fresh) in zip(rows.members, effects, strict=bool(effects)):
        add_effects(result, member, known, fresh, part)
    return result


def add_effects(result: Array, member: Membership, known: Array, fresh: Array, part: slice) -> None:
    """Add the effects of one grouping factor to draws (S, n) of its rows."""
    k = known.shape[2]
    level = member.known[part]
    for u, places, used in (
        (known, np.searchsorted(member.wanted, level), level >= 0),
        (fresh, member.fresh[part], member.fresh[part] >= 0),
    ):
        if used.any():
            entries, Z = u.reshape(len(u), -1), np.where(used[:, None], member.Z[part], 0.0)
            for c in range(k):
                added = np.take(entries, np.where(used, places * k + c, 0), axis=1)
                added *= Z[:, c]
                result += added


def response_noise(rows: Rows, joint: JointDraws, part: slice, rng: np.random.Generator) -> Array:
    """Draws (S, n) of the residuals at some of the rows: all of them where they are correlated."""
    if not joint.points.plain:
        return draw_residuals(rows.design, joint.points, rng)[:, part]
    weights = rows.design.weights
    noise = rng.standard_normal((joint.size, len(rows.design.y[part])))
    noise *= joint.sigma[:, None]
    return noise if weights is None else noise / np.sqrt(weights[part])


def require_memory(entries: int, what: str) -> None:
    """Raise where draws would not fit into memory."""
    if 8 * entries > LARGEST:
        raise DataError(
            f"Draws of the {what} would take {8 * entries / 2**30:.1f} GB, more than the limit of "
            f"{LARGEST / 2**30:g} GB. Ask for fewer draws (draws=) or predict fewer rows at a time."
        )


# --- random effects of new levels of which some rows have been observed, in closed form ---


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
            _spherical_columns(member, root, here)
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
    empty = [np.zeros((joint.size, m.n_fresh, m.Z.shape[1])) for m in rows.members]
    empty = empty if fresh is None else list(fresh)
    known = joint.effects([member.wanted for member in rows.members]) if rows.members else []
    effects = list(zip(known, empty, strict=True))
    require_memory(joint.size * rows.design.n, "residuals of observed rows")
    return np.asarray(rows.design.y - linear_draws(rows, joint, effects, slice(None)))


def _row_sets(rows: Rows) -> list[Indices]:
    """Rows that new levels, and groups of correlated residuals, connect, set by set."""
    n, known = rows.design.n, rows.design.residual_rows
    row, column, start = [], [], n
    if known is not None and known.group is not None:
        row.append(np.arange(n))
        column.append(start + known.group)
        start += int(known.group.max()) + 1
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
    return replace(
        factor,
        spec=spec,
        codes=np.concatenate([factor.codes, other.extended_codes]),
        Z=np.concatenate([factor.Z, other.Z]),
    )
