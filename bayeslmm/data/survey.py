"""What is found out of data beyond memory in batches, beside cross-products: columns and moments.

One reading is enough where no transform has to see whole columns and the first batch has all levels
of the factors among the covariates; each depth of such transforms, and levels that come late, take
another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of
from bayeslmm.covariance.kinds import blocked
from bayeslmm.covariance.residual import ResidualRows
from bayeslmm.covariance.structure import Structure
from bayeslmm.data.batches import Batch, BatchColumns, Reader, batch_columns, located
from bayeslmm.data.building import fixed_space
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.frames import Codes
from bayeslmm.data.inputs import (
    Expression,
    check_extremes,
    check_fixed_factors,
    check_not_own_predictor,
    check_weights_scale,
)
from bayeslmm.data.level_sets import GroupingSets, SeenLevels, merged_categories
from bayeslmm.data.random_terms import amalgamated, check_batch, coefs_of_terms, spec_of_levels
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.row_kinds import ScaledRows
from bayeslmm.data.summarised import Summary
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import (
    MOST_LEVELS,
    UserFunctions,
    Variables,
    evaluate_expression,
)
from bayeslmm.formula.expressions import STATEFUL
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import Columns, evaluate, is_factor
from bayeslmm.formula.memory import Memory
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import independent_columns
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]

CHANGED = (
    "{words} changed while it was read: a later reading has other rows than the first one. Give "
    "data that stay as they are."
)


def sides_of(formula: Formula) -> tuple[Side, ...]:
    """The different sides of a formula, that of the fixed effects first."""
    return tuple(dict.fromkeys([formula.right, *(term.left for term in formula.random)]))


def sample_columns(
    formula: Formula, sample: pd.DataFrame, functions: UserFunctions, states: Mapping[str, Any]
) -> dict[Side, Columns]:
    """Columns of each side in rows that have each level of each factor."""
    rows = Variables(sample)
    return {side: evaluate(side, rows, functions, dict(states)) for side in sides_of(formula)}


def sample_encodings(
    formula: Formula,
    columns: Mapping[Side, Columns],
    sample: pd.DataFrame,
    functions: UserFunctions,
    states: Mapping[str, Any],
) -> Encodings:
    """How the columns are built in other rows."""
    rows = Variables(sample)

    def expression(operand: Operand) -> Expression:
        own = not operand.functions.isdisjoint(functions)
        categories = rows.categories(sorted(operand.variables)) if own else {}
        return Expression(operand, functions, categories, dict(states))

    return Encodings(
        sides={side: found.encoding for side, found in columns.items()},
        response=expression(formula.left),
        offsets=tuple(map(expression, formula.shifts)),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Layout:
    """Columns of a model and its grouping factors, before levels are known.

    Attributes
    ----------
    right : Side
        That of the fixed effects.
    names : mapping of Side to tuple of str
        Labels of the columns of each side.
    factors : tuple of tuple of Side
        What varies over the levels of each grouping factor.
    structures : tuple of Structure
        Covariance structure of each.
    """

    right: Side
    names: Mapping[Side, tuple[str, ...]]
    factors: tuple[tuple[Side, ...], ...]
    structures: tuple[Structure, ...]


def layout_of(formula: Formula, names: Mapping[Side, tuple[str, ...]]) -> Layout:
    """The layout of a formula whose sides have columns of these names."""
    groups = list(amalgamated(formula).values())
    found = [coefs_of_terms(terms, names) for terms in groups]
    return Layout(
        right=formula.right,
        names=names,
        factors=tuple(tuple(term.left for term in terms) for terms in groups),
        structures=tuple(blocked(blocks, kinds) for _, blocks, kinds in found),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Taken:
    """Rows of a batch, taken in by a survey.

    Attributes
    ----------
    columns : BatchColumns
    codes : list of ndarray of int (n,)
        Number of the level of each grouping factor.
    residual : ResidualRows or None
        Columns of the structure of the residuals.
    """

    columns: BatchColumns
    codes: list[Codes]
    residual: ResidualRows | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Coding:
    """What columns are built from, known before rows are read.

    Attributes
    ----------
    sample : pandas.DataFrame
        Rows with each level of each factor among the covariates.
    states : mapping of str to object
        What transforms of whole columns remember, by the text of their calls.
    """

    sample: pd.DataFrame
    states: Mapping[str, Any]


class Survey:
    """What is found out of rows beside their cross-products, batch by batch.

    Parameters
    ----------
    formula : Formula
    functions : mapping of str to callable
        The user's.
    coding : Coding, optional
        That of all rows, of which these are a part; it is found out by default.
    residual : ResidualSpec, optional
        Structure of the residuals.

    Attributes
    ----------
    complete : bool
        Whether all rows have been taken in; else they have to be read again.
    totals : Totals or None
        Sums and extremes of the columns so far, in this reading.
    """

    def __init__(
        self,
        formula: Formula,
        functions: UserFunctions,
        coding: Coding | None = None,
        residual: ResidualSpec | None = None,
    ) -> None:
        check_not_own_predictor(formula)
        _refuse_terms(formula)
        self.formula, self.functions, self.residual = formula, functions, residual
        sides = sides_of(formula)
        operands = [formula.left, *formula.shifts, *(p for side in sides for p in side.operands)]
        self.groups = amalgamated(formula)
        readings = [part.reading for part in operands if part.reading is not None]
        self.memory = Memory(readings, functions, {} if coding is None else coding.states)
        self._coding = coding
        self.sample = _Sample(sides, operands, functions)
        self.levels = GroupingSets([terms[0].factors for terms in self.groups.values()])
        self.columns: dict[Side, Columns] = {}
        self.encodings: Encodings | None = None
        self.totals: Totals | None = None
        self.complete = False
        self._late = False
        self._rows: int | None = None

    @property
    def layout(self) -> Layout:
        """The columns, once rows have been taken in."""
        names = {side: columns.names for side, columns in self.columns.items()}
        return layout_of(self.formula, names)

    @property
    def coding(self) -> Coding:
        """What columns are built from: as given, or in the rows so far."""
        given = self._coding
        sample = self.sample.frame() if given is None else given.sample
        return Coding(sample=sample, states=self.memory.states)

    def begin(self) -> None:
        """Begin a reading."""
        self.totals, self._late = None, False

    def take(self, batch: Batch) -> Taken | None:
        """Take in rows; None where their columns cannot be known in this reading."""
        variables = Variables(batch.frame)
        unknown = self._coding is None and self._rows is None
        new = unknown and self._look(batch, variables)
        if not self.memory.complete:
            located(batch, lambda: self.memory.add(variables))
            return None
        self._late = self._late or (new and self.totals is not None)
        return None if self._late else self._add(batch)

    def end(self, reader: Reader) -> None:
        """End a reading.

        Raises
        ------
        DataError
            If it had other rows than an earlier one.
        """
        if self._rows not in (None, reader.n):
            raise DataError(CHANGED.format(words=reader.source.words))
        self._rows = reader.n
        self.complete = self.memory.complete and not self._late
        if not self.memory.complete:
            self.memory.close()
        if not self.complete:
            self.encodings = None

    def _look(self, batch: Batch, variables: Variables) -> bool:
        """Whether columns of the model may be new."""
        new = located(batch, lambda: self.sample.add(batch.frame, variables))
        if self.sample.full:
            check_fixed_factors(self.formula, self.sample.frame())
            self._encode()
        return new

    def _add(self, batch: Batch) -> Taken:
        if self.encodings is None:
            self.encodings = self._encode()
        found = batch_columns(batch, self.encodings)
        for terms in self.groups.values():
            own = {
                term.left: Columns(
                    values=found.sides[term.left],
                    names=self.columns[term.left].names,
                    encoding=self.columns[term.left].encoding,
                )
                for term in terms
            }
            check_batch(self.formula.source, terms, batch.frame, own)
        if self.totals is None:
            self.totals = Totals(self.formula, batch.frame)
        self.totals.add(batch, found)
        rows, spec = None, self.residual
        if spec is not None and not spec.structure.plain:
            rows = located(batch, lambda: spec.rows_apart(batch.frame))
            self.totals.add_scaled(rows, found, len(spec.structure.scales))
        return Taken(columns=found, codes=self.levels.add(batch.frame), residual=rows)

    def _encode(self) -> Encodings:
        """How columns are built, from the sample."""
        frame, states = self.coding.sample, self.memory.states
        self.columns = sample_columns(self.formula, frame, self.functions, states)
        return sample_encodings(self.formula, self.columns, frame, self.functions, states)


def _refuse_terms(formula: Formula) -> None:
    for term in formula.random:
        what = "by=" if term.by is not None else "mm()" if term.members is not None else None
        if what is not None:
            raise DataError(
                f"{term.source} has {what}, which is for data in memory. Take it out, or read the "
                "data into a data frame."
            )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Extremes:
    """Smallest and largest values, for checks.

    Attributes
    ----------
    low, high : ndarray (3,)
        Of the response, the offset, and the one less the other.
    weights : ndarray (2,)
        Smallest and largest precision weight.
    """

    low: Array
    high: Array
    weights: Array

    def __add__(self, other: Extremes) -> Extremes:
        """Of both sets of rows."""
        ends = [np.minimum(self.weights[0], other.weights[0])]
        ends.append(np.maximum(self.weights[1], other.weights[1]))
        return Extremes(
            low=np.minimum(self.low, other.low),
            high=np.maximum(self.high, other.high),
            weights=np.array(ends),
        )


def checked_spec(
    formula: Formula,
    functions: UserFunctions,
    weights: str | None,
    known: Mapping[str, Any],
    layout: Layout,
    encodings: Encodings,
    summary: Summary,
    extremes: Extremes,
    levels: Sequence[SeenLevels],
    residual: ResidualSpec | None,
) -> Spec:
    """The spec of a model of all rows, after checking what can be checked of all of them only.

    Raises
    ------
    FormulaError, DataError
        As for data in memory.
    """
    check_extremes(formula.response, summary.n, extremes.low, extremes.high)
    check_fixed_factors(formula, summary.sample, summary.n)
    names = layout.names[formula.right]
    columns = summary.sides[formula.right].take(range(len(names)))
    fixed = fixed_space(names, columns, lambda: independent_columns(columns), summary.n)
    if weights is not None:
        check_weights_scale(f"The weights `{weights}`", extremes.weights)
    free = "sigma" not in {str(key).strip() for key in known}
    free = free and not (residual is not None and residual.formula.known)
    moments = {
        side: (own, summary.sides[side].take(range(len(own)))) for side, own in layout.names.items()
    }
    groups = zip(amalgamated(formula).items(), levels, strict=True)
    return Spec(
        formula=formula,
        functions=functions,
        weights=weights,
        fixed=fixed,
        random=tuple(
            spec_of_levels(formula.source, terms, key, seen.factor, moments, saturated=not free)
            for (key, terms), seen in groups
        ),
        residual=residual,
        encodings=encodings,
        known=known,
    )


class _Sample:
    """Rows with each level of each factor among the covariates, of which columns are made."""

    def __init__(
        self, sides: Sequence[Side], operands: Sequence[Operand], functions: UserFunctions
    ) -> None:
        self.functions = functions
        self.full = False
        self._occasions = frozenset().union(*(side.names for side in sides if side.occasions))
        self._operands = {part.label: part for side in sides for part in side.operands}
        self._variables = sorted(frozenset[str]().union(*(part.variables for part in operands)))
        self._levels: dict[str, pd.Index] = {}
        self._categories: dict[str, pd.Index] = {}
        self._parts: list[pd.DataFrame] = []

    def add(self, frame: pd.DataFrame, variables: Variables) -> bool:
        """Take rows of a batch with levels that are new; whether there are any."""
        self._merge_categories(frame)
        rows = [] if self._parts else [np.zeros(1, dtype=np.intp)]
        for label, values in self._factors(variables):
            rows.append(self._new(label, values))
        chosen = np.unique(np.concatenate([np.empty(0, dtype=np.intp), *rows]))
        if not len(chosen):
            return False
        self._parts.append(frame.iloc[chosen])
        self.full = any(len(levels) > MOST_LEVELS for levels in self._levels.values())
        return True

    def frame(self) -> pd.DataFrame:
        """The rows."""
        parts = [part.copy() for part in self._parts]
        for part in parts:
            for name, categories in self._categories.items():
                part[name] = part[name].cat.set_categories(categories)
        whole = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
        self._parts = [whole]
        return whole.reset_index(drop=True)

    def _factors(self, variables: Variables) -> list[tuple[str, Any]]:
        """Operands of sides, and categorical variables of all expressions, that are levels."""
        found: dict[str, Any] = {}
        for name in self._variables:
            if isinstance(variables.frame[name].dtype, pd.CategoricalDtype):
                found[name] = variables[name]
        for label, part in self._operands.items():
            if part.reading is None:
                values: Any = variables[label]
                if kind_of(values) == "numbers" and label not in self._occasions:
                    continue
                found[label] = values
            elif part.functions.isdisjoint(STATEFUL):
                with np.errstate(all="ignore"):
                    values = _evaluated(part, variables, self.functions)
                if values is not None and is_factor(values):
                    found[label] = getattr(values, "__wrapped__", values)
        return list(found.items())

    def _new(self, label: str, values: Any) -> NDArray[np.intp]:
        """First rows of the levels that have not been seen."""
        codes, uniques = pd.factorize(pd.Series(values).reset_index(drop=True))
        levels = pd.Index(uniques, dtype=object, tupleize_cols=False)
        known = self._levels.get(label, pd.Index([], dtype=object))
        fresh = np.flatnonzero(known.get_indexer(levels) < 0)
        if not len(fresh):
            return fresh
        self._levels[label] = known.append(levels[fresh])
        first = np.full(len(levels), -1, dtype=np.intp)
        rows = np.flatnonzero(codes >= 0)[::-1]
        first[codes[rows]] = rows
        return first[fresh]

    def _merge_categories(self, frame: pd.DataFrame) -> None:
        for name in self._variables:
            dtype = frame[name].dtype
            if isinstance(dtype, pd.CategoricalDtype):
                known = self._categories.get(name, dtype.categories)
                same = known is dtype.categories or dtype.categories.equals(known)
                found = known if same else merged_categories(name, known, dtype.categories)
                self._categories[name] = found


def _evaluated(part: Operand, variables: Variables, functions: UserFunctions) -> Any:
    """Values of an expression; None where it fails, of which evaluating its side speaks."""
    assert part.reading is not None
    try:
        return evaluate_expression(part.reading, variables, functions, {})
    except Exception:
        return None


class Totals:
    """Sums and extremes over the rows so far.

    Attributes
    ----------
    sides, weighted : dict of Side to Moments
        Of the columns, the response less the offset last among those of the fixed effects; without
        and with weights.
    latest : dict of Side to Moments
        Those of the last batch, with weights.
    scaled : ScaledRows or None
        Rows by their standard deviation, where residuals have a structure.
    """

    def __init__(self, formula: Formula, frame: pd.DataFrame) -> None:
        self.formula = formula
        self.sides: dict[Side, Moments] = {}
        self.weighted: dict[Side, Moments] = {}
        self.latest: dict[Side, Moments] = {}
        self.scaled: ScaledRows | None = None
        self._low, self._high = np.full(3, np.inf), np.full(3, -np.inf)
        self._weights = np.array([np.inf, -np.inf])
        self.log_weights = self._inverse_weights = self._offset = 0.0
        names = formula.predictors(effects=False, groups=False)
        self._means = {name: 0.0 for name in sorted(names) if kind_of(frame[name]) == "numbers"}
        self._ranges: dict[str, tuple[float, float]] = {}
        self.n = 0

    def add(self, batch: Batch, found: BatchColumns) -> None:
        """Take in the rows of a batch."""
        shifted = bool(self.formula.shifts)
        response = found.y - found.offset if shifted else found.y
        low, high = float(found.y.min()), float(found.y.max())
        lows, highs = (low, 0.0, low), (high, 0.0, high)
        if shifted:
            lows = (low, float(found.offset.min()), float(response.min()))
            highs = (high, float(found.offset.max()), float(response.max()))
        self._low, self._high = np.minimum(self._low, lows), np.maximum(self._high, highs)
        for side, values in found.sides.items():
            rows = [*values.T, response] if side == self.formula.right else [*values.T]
            columns = np.array(rows).reshape(len(rows), len(response)).T
            self._add_side(side, columns, found.weights)
        n = len(response)
        self.n += n
        for name in self._means:
            values = batch.frame[name].to_numpy(dtype=np.float64)
            self._means[name] += (float(np.mean(values)) - self._means[name]) * n / self.n
            low, high = self._ranges.get(name, (np.inf, -np.inf))
            self._ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
        self._offset += (float(found.offset.mean()) - self._offset) * n / self.n
        if found.weights is not None:
            self.log_weights += float(np.sum(np.log(found.weights)))
            self._inverse_weights += float(np.sum(1.0 / found.weights))
            self._weights[0] = min(self._weights[0], found.weights.min())
            self._weights[1] = max(self._weights[1], found.weights.max())

    def add_scaled(self, rows: ResidualRows, found: BatchColumns, n_scales: int) -> None:
        """Take in the rows of a batch by their standard deviation, of which there are some."""
        columns = dict(found.sides)
        right = self.formula.right
        columns[right] = np.column_stack([columns[right], found.y - found.offset])
        more = ScaledRows.of(rows, found.weights, columns, n_scales)
        self.scaled = more if self.scaled is None else self.scaled + more

    def _add_side(self, side: Side, columns: Array, weights: Array | None) -> None:
        latest = _accumulate(self.sides, side, columns, None)
        if weights is None:
            self.weighted[side] = self.sides[side]
        else:
            latest = _accumulate(self.weighted, side, columns, weights)
        self.latest[side] = latest

    @property
    def extremes(self) -> Extremes:
        """Smallest and largest values so far."""
        return Extremes(low=self._low, high=self._high, weights=self._weights)

    def summary(
        self,
        reader: Reader,
        coding: Coding,
        counts: Mapping[str, Codes],
    ) -> Summary:
        """What is kept of the rows."""
        return Summary(
            words=reader.source.words,
            n=reader.n,
            n_dropped=reader.n_dropped,
            sides=self.sides,
            weighted=self.weighted,
            counts=counts,
            log_weights=self.log_weights,
            mean_inverse_weight=self._inverse_weights / self.n if reader.weighted else 1.0,
            mean_offset=self._offset,
            means=self._means,
            ranges=self._ranges,
            sample=coding.sample,
            states=coding.states,
            scaled=self.scaled,
        )


def _accumulate(
    totals: dict[Side, Moments], side: Side, columns: Array, weights: Array | None
) -> Moments:
    """Add moments of columns to those of a side; their own ones."""
    known = totals.get(side)
    more = Moments.of(columns, weights, None if known is None else known.centre)
    totals[side] = more if known is None else known + more
    return more
