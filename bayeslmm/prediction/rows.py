"""New rows of a model: their covariates, and which level of each grouping factor they belong to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.frames import column_names, plain_frame
from bayeslmm.data.grouping import grouping_factor
from bayeslmm.exceptions import DataError

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
    design: Design, new: Any, target: Target, terms: Terms | None = None, weights: Any = None
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
    if target not in get_args(Target):
        allowed = ", ".join(map(repr, get_args(Target)))
        raise ValueError(f"target={target!r}: one of {allowed} is expected.")
    if new is None and weights is not None:
        raise ValueError("weights= is for new rows; those of the model keep their own weights.")
    included = included_coefs(design, terms)
    if target == "average" or not any(mask.any() for mask in included):
        encoded = design if new is None else design.encode(new, weights=weights, random="none")
        return Rows(design=encoded, members=())
    partial = _partial(design, included)
    if target == "population":
        return _population_rows(design, partial, new, weights, included)
    encoded = partial if new is None else partial.encode(new, weights=weights)
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
    return replace(design, random=kept, formula=replace(design.formula, random=terms))


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
        if lost := [coef for coef in coefs if coef not in factor.coefs]:
            raise ValueError(
                f"terms: {name} has no random coefficient {', '.join(map(repr, lost))}; it has "
                f"{', '.join(map(repr, factor.coefs))}."
            )
        result.append(np.array([coef in coefs for coef in factor.coefs]))
    return result


def _population_rows(
    design: Design,
    partial: Design,
    new: Any,
    weights: Any,
    included: Sequence[NDArray[np.bool_]],
) -> Rows:
    """Every level is new; rows share one where the data have its grouping variables."""
    if new is None:
        encoded, source, names = partial, design.data, list(design.data.columns)
    else:
        encoded = partial.encode(new, weights=weights, random="covariates")
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
    return grouping_factor(frame, factor.factors).codes


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
