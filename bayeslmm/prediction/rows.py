"""New rows of a model: covariates, levels of each grouping factor, and draws there.

Some rows of new levels may have been observed. For every draw of the other parameters, the random
effects of these levels given the observed rows are normal. How probable each draw makes these rows
reweights the draws: together they are the posterior given the old and the new data.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.frames import column_names, plain_frame
from bayeslmm.data.memberships import Slot
from bayeslmm.data.random_terms import numbered_members
from bayeslmm.estimation.residuals import (
    draw_residuals,
    with_new_levels,
    with_scale_effects,
)
from bayeslmm.exceptions import DataError, check_choice, listed
from bayeslmm.likelihood.draws import normal_draws
from bayeslmm.sampling.joint_draws import JointDraws

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Target = Literal["conditional", "new", "population", "average"]
Terms = Sequence[str] | Mapping[str, Sequence[str]]


class Level(NamedTuple):
    """One level of each row of a prediction.

    Attributes
    ----------
    known : ndarray of int (n,)
        Place of the level among those of the model; -1 where it is not one of them.
    fresh : ndarray of int (n,)
        Number of the new level, from 0; -1 where the level is known.
    Z : ndarray (n, k)
        Covariates, zero for coefficients that are left out.
    """

    known: Indices
    fresh: Indices
    Z: Array

    def take(self, rows: Indices) -> Level:
        """Some of the rows."""
        return Level(self.known[rows], self.fresh[rows], self.Z[rows])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Membership:
    """Levels of one grouping factor in the rows of a prediction.

    Attributes
    ----------
    levels : tuple of Level
        One of each row, or several over which effects are summed.
    n_fresh : int
        How many new levels there are.
    labels : tuple of str
        Labels of the new levels; empty for the target "population", where they have none.
    n_coefs : int
        Number of coefficients k per level.
    """

    levels: tuple[Level, ...]
    n_fresh: int
    labels: tuple[str, ...]
    n_coefs: int

    @property
    def wanted(self) -> Indices:
        """Places of the known levels that occur, increasing."""
        places = [level.known[level.known >= 0] for level in self.levels]
        return np.unique(np.concatenate([np.empty(0, dtype=np.intp), *places]))

    @property
    def all_new(self) -> bool:
        """Whether no level is known."""
        return not any((level.known >= 0).any() for level in self.levels)

    def variance(self, covariance: Array) -> Array:
        """Variance (n,) of the effects in each row, of new levels with a covariance (k, k)."""
        total = np.zeros(1)
        for one, two in product(self.levels, self.levels):
            same = (one.fresh == two.fresh) & (one.fresh >= 0)
            total = total + same * np.einsum("ni,ij,nj->n", one.Z, covariance, two.Z)
        return total

    def columns(self, root: Array, here: Indices) -> tuple[Indices, Array]:
        """New levels of some rows, and the columns of Z times roots (S, k, k) for them.

        The columns are (S, n, m k).
        """
        found = [(level.fresh[here], level.Z[here]) for level in self.levels]
        levels = np.unique(np.concatenate([fresh[fresh >= 0] for fresh, _ in found]))
        require_memory(len(root) * len(here) * len(levels) * self.n_coefs, "observed rows")
        result = np.zeros((len(root), len(here), len(levels), self.n_coefs))
        for fresh, Z in found:
            at = np.flatnonzero(fresh >= 0)
            result[:, at, np.searchsorted(levels, fresh[at])] += Z[at] @ root
        return levels, result.reshape(len(root), len(here), len(levels) * self.n_coefs)


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
    groups = [factor.spec.identity for factor in kept]
    terms = tuple(term for term in design.formula.random if term.identity in groups)
    formula = replace(design.formula, random=terms)
    spec = replace(design.spec, formula=formula, random=tuple(factor.spec for factor in kept))
    return design.restricted(spec, kept)


def _membership(factor: RandomFactor) -> Membership:
    return Membership(
        levels=tuple(
            Level(codes, np.where(codes < 0, extended - factor.n_levels, -1), z)
            for codes, z, extended in factor.slots
        ),
        n_fresh=len(factor.new_levels),
        labels=tuple(map(str, factor.new_levels)),
        n_coefs=factor.n_coefs,
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
        nothing = Level(nowhere, nowhere, np.zeros((n, factor.n_coefs)))
        absent = Membership(levels=(nothing,), n_fresh=0, labels=(), n_coefs=factor.n_coefs)
        member = found.get(factor.name, absent)
        kept = (level._replace(Z=np.where(mask, level.Z, 0.0)) for level in member.levels)
        result.append(replace(member, levels=tuple(kept)))
    return tuple(result)


def take_rows(rows: Rows, part: Indices) -> Rows:
    """Some of the rows."""
    members = [
        replace(m, levels=tuple(level.take(part) for level in m.levels)) for m in rows.members
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
        grouping = {name for factor in partial.random for name in factor.spec.variables}
        source = plain_frame(new, grouping & set(names))
    found = {}
    for factor in encoded.random:
        slots = _units(source, factor, names)
        nowhere = np.full(encoded.n, -1, dtype=np.intp)
        found[factor.name] = Membership(
            levels=tuple(Level(nowhere, slot.codes, slot.Z) for slot in slots),
            n_fresh=1 + max(int(slot.codes.max(initial=-1)) for slot in slots),
            labels=(),
            n_coefs=factor.n_coefs,
        )
    return Rows(design=encoded, members=_members(design, found, included, encoded.n))


def _units(source: pd.DataFrame, factor: RandomFactor, names: Sequence[str]) -> tuple[Slot, ...]:
    """Each row in levels numbered from 0: of its own where the data do not name them."""
    missing = factor.spec.variables.difference(names)
    if missing and factor.pooled:
        raise DataError(
            f"The new rows lack {listed(sorted(missing))}, so that it is not known how many levels "
            f"of `{factor.name}` each belongs to, and with which weights."
        )
    if missing:
        codes = np.arange(len(factor.Z))
        return (Slot(codes, factor.Z, codes),)
    frame = source[sorted(factor.spec.variables)]
    if not factor.pooled and frame.isna().to_numpy().any():
        raise DataError(f"The grouping factor `{factor.name}` is missing in some of the new rows.")
    return tuple(member.slot(factor.Z) for member in numbered_members(factor.spec, frame))


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
    per_level = [member.n_coefs for member in rows.members]
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
    wanted = member.wanted
    for level in member.levels:
        places, others = level.known[part], level.fresh[part]
        _add_levels(result, known, np.searchsorted(wanted, places), places >= 0, level.Z[part])
        _add_levels(result, fresh, others, others >= 0, level.Z[part])


def _add_levels(
    result: Array, u: Array, places: Indices, used: NDArray[np.bool_], covariates: Array
) -> None:
    """Add effects u (S, J, k) at places (n,) where they are used."""
    if not used.any():
        return
    k = u.shape[2]
    entries, Z = u.reshape(len(u), -1), np.where(used[:, None], covariates, 0.0)
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
