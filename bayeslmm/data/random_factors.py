"""Random-effects terms and data to grouping factors with their covariates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import listed, read_only
from bayeslmm.data.grouping import (
    GroupingFactor,
    grouping_factor,
    is_continuous,
    lookup_levels,
    new_levels,
)
from bayeslmm.data.inputs import check_column_scales
from bayeslmm.exceptions import DataError, FormulaError
from bayeslmm.formula.evaluation import NO_FUNCTIONS, UserFunctions, Variables
from bayeslmm.formula.grammar import Formula, RandomTerm, locate
from bayeslmm.formula.matrices import Columns, Rows, Spec, as_variables, evaluate, reevaluate
from bayeslmm.formula.terms import Side
from bayeslmm.schema import group_keys

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RandomFactor:
    """All random-effects terms on one grouping factor, amalgamated as in lme4.

    Attributes
    ----------
    name : str
        The grouping factor as first written: ``"Subject"``, ``"batch:cask"``.
    key : str
        The name made of letters, digits and ``_``, unique in the model.
    factors : tuple of str
        Variables of the grouping factor.
    levels : ndarray of str, shape (J,), object
    codes : ndarray of int, shape (n,)
        Level of each row; -1 for a level that the model has not seen.
    coefs : tuple of str, length k
        Labels of the coefficients that vary by level.
    blocks : tuple of tuple of int
        A partition of the k coefficients: they are correlated within a block and independent
        between blocks. A term with ``|`` is one block. A term with ``||`` has one block per
        column, so the columns of a factor are independent too, as in brms: ``(f || g)`` has an
        intercept and treatment-coded columns of `f`, all independent.
    Z : ndarray, shape (n, k)
        Covariate of each coefficient in each row.
    extended_codes : ndarray of int, shape (n,)
        As `codes`, with J, J + 1, ... for the new levels: rows of one new level share a number.
    new_levels : ndarray of str, object
        Labels of the new levels; empty for the data of the model.
    grouping : GroupingFactor
        The raw values behind the levels.
    specs : tuple
        How the columns of each term are evaluated on new data.
    """

    name: str
    key: str
    factors: tuple[str, ...]
    levels: NDArray[np.object_]
    codes: NDArray[np.intp]
    coefs: tuple[str, ...]
    blocks: tuple[tuple[int, ...], ...]
    Z: NDArray[np.float64]
    extended_codes: NDArray[np.intp]
    new_levels: NDArray[np.object_]
    grouping: GroupingFactor
    specs: tuple[Spec, ...]

    @property
    def n_levels(self) -> int:
        """Number of levels J that the model knows."""
        return len(self.levels)

    @property
    def n_coefs(self) -> int:
        """Number of coefficients k per level."""
        return len(self.coefs)

    def __repr__(self) -> str:
        new = f", {len(self.new_levels)} new" if len(self.new_levels) else ""
        return f"RandomFactor({self.name}: {self.n_levels} levels{new} x {shortened(self.coefs)})"


def shortened(names: Sequence[str], limit: int = 8) -> str:
    """Join the first few names."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f", ... ({more} more)" if more > 0 else "")


def random_factors(
    formula: Formula,
    frame: Rows,
    functions: UserFunctions = NO_FUNCTIONS,
    known: Mapping[Side, Columns] | None = None,
) -> tuple[RandomFactor, ...]:
    """Evaluate the random-effects terms of a formula.

    Parameters
    ----------
    formula : Formula
        Terms on the same variables, in whatever order (``a:b`` and ``b:a``), share a factor.
    frame : pandas.DataFrame or Variables
        n complete rows.
    functions : mapping of str to callable, optional
        The user's own functions.
    known : mapping of Side to Columns, optional
        Sides that are evaluated already.

    Returns
    -------
    tuple of RandomFactor
        In the order of first appearance.

    Raises
    ------
    FormulaError
        If a grouping factor is continuous, or two terms give it the same coefficient.
    DataError
        If a grouping factor has one level, or a term has as many random effects as rows or more.
    """
    groups: dict[frozenset[str], list[RandomTerm]] = {}
    for term in formula.random:
        groups.setdefault(frozenset(term.factors), []).append(term)
    variables = as_variables(frame)
    columns = dict(known or {})
    for term in formula.random:
        if term.left not in columns:
            columns[term.left] = evaluate(term.left, variables, functions)
    for found in columns.values():
        read_only(found.values)
    keys = group_keys([terms[0].group for terms in groups.values()])
    return tuple(
        _random_factor(formula.source, terms, key, variables.frame, columns)
        for terms, key in zip(groups.values(), keys, strict=True)
    )


def _random_factor(
    source: str,
    terms: Sequence[RandomTerm],
    key: str,
    frame: pd.DataFrame,
    columns: Mapping[Side, Columns],
) -> RandomFactor:
    _check_discrete(source, terms[0], frame)
    grouping = grouping_factor(frame, terms[0].factors)
    _check_levels(terms[0], grouping, len(frame))
    coefs: list[str] = []
    blocks: list[tuple[int, ...]] = []
    for term in terms:
        names = columns[term.left].names
        _check_coefs(source, term, names, coefs)
        positions = range(len(coefs), len(coefs) + len(names))
        added = [tuple(positions)] if term.correlated else [(i,) for i in positions]
        _check_count(term, len(grouping.levels), len(added[0]), len(frame))
        coefs += names
        blocks += added
    z = _beside([columns[term.left] for term in terms])
    for block in blocks:
        columns_of = [coefs[b] for b in block]
        check_column_scales(
            columns_of, z[:, list(block)], f"the random effects of `{grouping.name}`"
        )
    _report_deficient(grouping.name, terms, columns)
    specs = tuple(columns[term.left].spec for term in terms)
    return random_factor(grouping, key, tuple(coefs), blocks, z, specs)


def random_factor(
    grouping: GroupingFactor,
    key: str,
    coefs: tuple[str, ...],
    blocks: Sequence[tuple[int, ...]],
    z: NDArray[np.float64],
    specs: tuple[Spec, ...] = (),
) -> RandomFactor:
    """A grouping factor of the data, in which no level is new."""
    return RandomFactor(
        name=grouping.name,
        key=key,
        factors=grouping.factors,
        levels=grouping.levels,
        codes=grouping.codes,
        coefs=coefs,
        blocks=tuple(blocks),
        Z=z,
        extended_codes=grouping.codes,
        new_levels=read_only(np.empty(0, dtype=object)),
        grouping=grouping,
        specs=specs,
    )


def _beside(columns: Sequence[Columns]) -> NDArray[np.float64]:
    if len(columns) == 1:
        return read_only(columns[0].values)
    return read_only(np.hstack([found.values for found in columns]))


# --- checks ----------------------------------------------------------------------------


def _check_discrete(source: str, term: RandomTerm, frame: pd.DataFrame) -> None:
    for name in term.factors:
        if is_continuous(frame[name]):
            first, last = term.factor_span
            start, end = (first + at for at in locate(source[first:last], name))
            raise FormulaError(
                f"The grouping factor `{name}` holds numbers that are not whole, so it cannot name "
                f"groups. A covariate goes on the left of the bar; to group by `{name}` all the "
                "same, make it categorical or text.",
                source,
                start,
                end,
            )


def _check_levels(term: RandomTerm, grouping: GroupingFactor, n: int) -> None:
    n_levels = len(grouping.levels)
    if n_levels == 1:
        raise DataError(
            f"The grouping factor `{grouping.name}` has one level, {grouping.levels[0]!r}, in the "
            f"{n} complete rows; a variance between levels needs at least two. Take "
            f"{term.source} out of the formula."
        )
    if n_levels >= n:
        raise DataError(
            f"The grouping factor `{grouping.name}` has as many levels as there are complete rows "
            f"({n}), so the effects of {term.source} cannot be told from the residuals. Group by "
            "a variable with fewer levels."
        )


def _check_count(term: RandomTerm, n_levels: int, n_coefs: int, n: int) -> None:
    if n_levels * n_coefs >= n:
        raise DataError(
            f"{term.source} has {n_levels} levels of `{term.group}` times {n_coefs} coefficients, "
            f"so {n_levels * n_coefs} random effects, but there are only {n} complete rows: they "
            "cannot be told from the residuals. Take coefficients out of the term."
        )


def _check_coefs(
    source: str, term: RandomTerm, names: Sequence[str], earlier: Sequence[str]
) -> None:
    if not names:
        message = f"{term.source} has no coefficient; write e.g. (1 | {term.group})."
        raise FormulaError(message, source, *term.span)
    repeated = [name for name in names if name in earlier]
    if repeated:
        raise FormulaError(
            f"An earlier term on the grouping factor `{term.group}` already has {listed(repeated)};"
            " write the terms so that each coefficient occurs once.",
            source,
            *term.span,
        )


def _report_deficient(
    name: str, terms: Sequence[RandomTerm], columns: Mapping[Side, Columns]
) -> None:
    redundant: list[str] = []
    for term in terms:
        found = columns[term.left]
        several = term.correlated and len(found.names) > 1
        kept = found.kept if several else found.values.any(axis=0)
        redundant += [coef for coef, keep in zip(found.names, kept, strict=True) if not keep]
    if redundant:
        _log.warning(
            "Grouping factor %s: the columns of %s are zero or linear combinations of other "
            "columns of their term, so the data say nothing about their variances by themselves.",
            name,
            ", ".join(redundant),
        )


# --- new data --------------------------------------------------------------------------


def encode_factor(factor: RandomFactor, columns: Variables, *, groups: bool) -> RandomFactor:
    """Evaluate a grouping factor and its covariates on new data.

    Parameters
    ----------
    factor : RandomFactor
        Of the model.
    columns : Variables
        n new complete rows.
    groups : bool
        Whether the frame has the variables of the grouping factor; if not, every row is of one
        unnamed new level.

    Returns
    -------
    RandomFactor
        With the levels and coefficients of the model.
    """
    frame = columns.frame
    if groups:
        codes = lookup_levels(factor.grouping, frame)
        extended, labels = new_levels(factor.grouping, frame, codes)
    else:
        codes = np.full(len(frame), -1, dtype=np.intp)
        extended, labels = np.full_like(codes, factor.n_levels), np.array(["new"], dtype=object)
    z = _beside([reevaluate(spec, columns) for spec in factor.specs])
    return replace(
        factor,
        codes=read_only(codes),
        extended_codes=read_only(extended),
        new_levels=read_only(labels),
        Z=z,
    )
