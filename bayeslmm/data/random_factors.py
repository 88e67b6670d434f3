"""Grouping factors: their levels and coefficients, and rows by these."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.grouping import GroupingFactor
from bayeslmm.data.memberships import Member, Slot
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.strata import Strata
from bayeslmm.exceptions import DataError
from bayeslmm.formula.members import Members
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FactorSpec(GroupingFactor):
    """A grouping factor of a model, and what varies over its levels, without rows.

    All random-effects terms on one grouping factor are amalgamated, as in lme4.

    Attributes
    ----------
    key : str
        The name made of letters, digits and ``_``, unique in the model.
    coefs : tuple of str, length k
        Labels of the coefficients that vary by level.
    blocks : tuple of tuple of int
        A partition of the k coefficients: they are correlated within a block and independent
        between blocks. A term with ``|`` is one block. A term with ``||`` has one block per
        column, so the columns of a factor are independent too, as in brms: ``(f || g)`` has an
        intercept and treatment-coded columns of `f`, all independent.
    kinds : tuple of str
        Name of the covariance structure of each block, such as "us" or "homcs".
    sides : tuple of Side
        What varies in each term; their columns side by side are the covariates.
    relationship : Relationship or None
        Known covariance of the levels, in their order; the levels are then those that it has, with
        rows or without.
    strata : tuple of Strata or None
        Of each side, where its term has ``by=``: its columns then are once for each stratum.
    members : Members or None
        Where a row belongs to a level in each of the variables, as ``mm()`` says.
    """

    key: str
    coefs: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    kinds: tuple[str, ...]
    sides: tuple[Side, ...]
    relationship: Relationship | None = None
    strata: tuple[Strata | None, ...] = ()
    members: Members | None = None

    @property
    def variables(self) -> frozenset[str]:
        """Variables of the grouping factor, with those of the weights of members."""
        weights = frozenset[str]() if self.members is None else self.members.columns
        return weights.union(self.factors)

    @property
    def identity(self) -> tuple[bool, frozenset[str]]:
        """What factors of two models share that are the same."""
        return self.members is not None, frozenset(self.factors)

    @property
    def divided(self) -> bool:
        """Whether a term has ``by=``."""
        return any(strata is not None for strata in self.strata)

    @property
    def own_coefs(self) -> tuple[str, ...]:
        """Labels (m,) of the coefficients of one level, those of its own strata only."""
        return tuple(name for name, _ in self._own())

    @property
    def own_places(self) -> Indices:
        """Their places (J, m) among all coefficients."""
        return np.column_stack([places for _, places in self._own()])

    def _own(self) -> Iterator[tuple[str, Indices]]:
        found = [strata for strata in self.strata if strata is not None]
        first = {int(place): (s, i) for s in found for i, place in enumerate(s.places[0])}
        others = {int(place) for s in found for place in s.places[1:].ravel()}
        for place, coef in enumerate(self.coefs):
            if place in first:
                strata, i = first[place]
                yield strata.coefs[i], strata.places[strata.of_level, i]
            elif place not in others:
                yield coef, np.full(len(self.levels), place)

    @property
    def plain_coefs(self) -> tuple[str, ...]:
        """Labels (k,) of all coefficients, without their strata."""
        labels = list(self.coefs)
        for strata in self.strata:
            for place, coef in () if strata is None else strata.labelled():
                labels[place] = coef
        return tuple(labels)

    @property
    def stratum_names(self) -> tuple[str, ...]:
        """Stratum (k,) of each coefficient; "" where it is of all levels."""
        names = [""] * len(self.coefs)
        for strata in self.strata:
            for name, places in (
                () if strata is None else zip(strata.names, strata.places, strict=True)
            ):
                for place in places.tolist():
                    names[place] = name
        return tuple(names)

    @property
    def kinds_of_level(self) -> list[tuple[str, Indices]]:
        """Levels that have the same coefficients: in words, and the places (m,) of these.

        All levels, without a word, where no term has ``by=``.
        """
        if not self.divided:
            return [("", np.arange(len(self.coefs)))]
        places, first = np.unique(self.own_places, axis=0, return_index=True)
        found = [strata for strata in self.strata if strata is not None]
        names = [
            ", ".join(dict.fromkeys(s.names[s.of_level[level]] for s in found)) for level in first
        ]
        return list(zip(names, places, strict=True))

    def stratum(self, columns: Sequence[int]) -> tuple[Strata, int] | None:
        """The strata and the one of them that coefficients are of; None where of all levels."""
        for strata in self.strata:
            number = None if strata is None else strata.number(columns)
            if strata is not None and number is not None:
                return strata, number
        return None

    def with_levels(self, chosen: Indices) -> FactorSpec:
        """Some of the levels, independent ones."""
        return replace(
            self,
            levels=self.levels[chosen],
            cells=self.cells[chosen],
            strata=tuple(s and replace(s, of_level=s.of_level[chosen]) for s in self.strata),
            relationship=None,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RandomFactor:
    """Rows by the levels of one grouping factor, and their covariates.

    Attributes
    ----------
    spec : FactorSpec
        The levels and coefficients of the model.
    Z : ndarray, shape (n, k)
        Covariate of each coefficient in each row, without weights of members.
    members : tuple of Member
        Level of each row; with ``mm()`` several, each with its weight.
    new_levels : ndarray of str, object
        Labels of the new levels; empty for the data of the model.
    """

    spec: FactorSpec
    Z: NDArray[np.float64]
    members: tuple[Member, ...]
    new_levels: NDArray[np.object_]

    @property
    def pooled(self) -> bool:
        """Whether rows belong to several levels."""
        return self.spec.members is not None

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Levels and covariates of each row, over which effects are summed."""
        return tuple(member.slot(self.Z) for member in self.members)

    @property
    def codes(self) -> Indices:
        """Level (n,) of each row; -1 for a level that the model has not seen."""
        return self._only.codes

    @property
    def extended_codes(self) -> Indices:
        """As `codes`, with J, J + 1, ... for the new levels: rows of one share a number."""
        return self._only.extended_codes

    @property
    def _only(self) -> Member:
        if self.pooled:
            raise DataError(
                f"Rows belong to several levels of `{self.name}`: what is asked for needs the one "
                "level of each row, and is not there for multi-membership terms."
            )
        return self.members[0]

    def memberships(self) -> tuple[Indices, Indices]:
        """Places (m,) of rows, and the level of each: with ``mm()``, of all with a weight."""
        rows, codes = [], []
        for member in self.members:
            weights = np.ones(len(self.Z)) if member.weights is None else member.weights
            used = np.flatnonzero(weights)
            rows.append(used)
            codes.append(member.codes[used])
        return np.concatenate(rows), np.concatenate(codes)

    def counts(self) -> Indices:
        """Number (J,) of the rows that belong to each level."""
        pairs = np.unique(np.column_stack(self.memberships()), axis=0)
        return np.bincount(pairs[:, 1], minlength=self.n_levels)

    def levels_at(self, row: int) -> Indices:
        """Places of the levels that a row belongs to, those with a weight."""
        here = [m.codes[row] for m in self.members if m.weights is None or m.weights[row] != 0.0]
        return np.array(list(dict.fromkeys(here)), dtype=np.intp)

    @property
    def name(self) -> str:
        """The grouping factor as first written: ``"Subject"``, ``"batch:cask"``."""
        return self.spec.name

    @property
    def key(self) -> str:
        """The name as variables of the posterior have it."""
        return self.spec.key

    @property
    def factors(self) -> tuple[str, ...]:
        """Variables of the grouping factor."""
        return self.spec.factors

    @property
    def levels(self) -> NDArray[np.object_]:
        """Labels (J,) of the levels that the model knows."""
        return self.spec.levels

    @property
    def n_levels(self) -> int:
        """Number of levels J that the model knows."""
        return len(self.spec.levels)

    @property
    def coefs(self) -> tuple[str, ...]:
        """Labels (k,) of the coefficients."""
        return self.spec.coefs

    @property
    def n_coefs(self) -> int:
        """Number of coefficients k per level."""
        return len(self.spec.coefs)

    @property
    def blocks(self) -> tuple[tuple[int, ...], ...]:
        """Places of the coefficients that are correlated with each other."""
        return self.spec.blocks

    @property
    def kinds(self) -> tuple[str, ...]:
        """Name of the covariance structure of each block."""
        return self.spec.kinds

    @property
    def relationship(self) -> Relationship | None:
        """Known covariance of the levels; None where they are independent."""
        return self.spec.relationship

    @property
    def own_coefs(self) -> tuple[str, ...]:
        """Labels (m,) of the coefficients that one level has: all k but with ``by=``."""
        return self.spec.own_coefs

    def take(self, rows: Indices) -> RandomFactor:
        """Some of the rows, with all levels."""
        return replace(
            self, Z=self.Z[rows], members=tuple(member.take(rows) for member in self.members)
        )

    def with_levels(self, chosen: Indices) -> RandomFactor:
        """The same rows with some of the levels, increasing, which are all that count in them."""
        place = np.zeros(self.n_levels, dtype=np.intp)
        place[chosen] = np.arange(len(chosen))
        members = tuple(
            member._replace(codes=place[member.codes], extended_codes=place[member.codes])
            for member in self.members
        )
        return replace(self, spec=self.spec.with_levels(chosen), members=members)

    def own(self, u: NDArray[np.float64], levels: Indices | None = None) -> NDArray[np.float64]:
        """The coefficients (..., J, m) that each level has, of values u (..., J, k).

        `levels` are those in u, by default all.
        """
        if not self.spec.divided:
            return u
        places = self.spec.own_places
        places = places if levels is None else places[levels]
        return u[..., np.arange(len(places))[:, None], places]

    def spread(self, own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Random effects (..., J, k), zero for coefficients of other strata, from :meth:`own`."""
        if not self.spec.divided:
            return own
        places = self.spec.own_places
        result = np.zeros((*own.shape[:-1], self.n_coefs), dtype=own.dtype)
        result[..., np.arange(len(places))[:, None], places] = own
        return result

    def levels_of(self, column: int) -> Indices:
        """Places of the levels that have a coefficient."""
        found = self.spec.stratum([column])
        return (
            np.arange(self.n_levels)
            if found is None
            else np.flatnonzero(found[0].of_level == found[1])
        )

    def covariates(self, columns: Sequence[int]) -> NDArray[np.float64]:
        """Some columns of Z in the rows of those levels that have these coefficients."""
        found, values = self.spec.stratum(columns), self.Z[:, list(columns)]
        if found is None:
            return values
        strata, number = found
        return values[(self.codes >= 0) & (strata.of_level[self.codes] == number)]

    def moments(self, columns: Sequence[int]) -> Moments:
        """Moments of :meth:`covariates`."""
        return Moments.of(self.covariates(columns))

    def effect_moments(self, columns: Sequence[int]) -> Moments:
        """Moments of some columns of Z, rows times the relative deviation of their effects."""
        if self.relationship is None and not self.pooled and not self.spec.divided:
            return self.moments(columns)
        if self.relationship is None and not self.pooled:  # zero in rows of other strata
            return Moments.of(self.Z[:, list(columns)])
        every = np.arange(len(self.Z))
        return Moments.of(self.Z[:, list(columns)], self.similarity(every, every))

    def effects(self, independent: NDArray[np.float64]) -> NDArray[np.float64]:
        """Random effects (..., J, k) from those of independent levels of the same Sigma."""
        known = self.relationship
        return independent if known is None else known.effects(independent)

    def similarity(self, first: Indices, second: Indices) -> NDArray[np.float64]:
        """Relationship of the levels of some rows to those of others, by the places of the rows.

        Without known relationships it is one for a level and itself, and zero else; with weights of
        members, the sum over pairs of these, weighted.
        """
        total = np.zeros(np.broadcast_shapes(first.shape, second.shape))
        for one, two in product(self.members, self.members):
            a, b = np.broadcast_arrays(one.codes[first], two.codes[second])
            known = self.relationship
            same = np.asarray(a == b, dtype=float) if known is None else known.between(a, b)
            if one.weights is not None and two.weights is not None:
                same = same * one.weights[first] * two.weights[second]
            total += same
        return total

    def __repr__(self) -> str:
        new = f", {len(self.new_levels)} new" if len(self.new_levels) else ""
        return f"RandomFactor({self.name}: {self.n_levels} levels{new} x {shortened(self.coefs)})"


def shortened(names: Sequence[str], limit: int = 8) -> str:
    """Join the first few names."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f", ... ({more} more)" if more > 0 else "")
