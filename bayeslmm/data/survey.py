"""The first passes over data beyond memory: levels, columns and moments, and so the spec.

One pass is enough where no transform has to see whole columns and the first batch has all levels of
the factors among the covariates; each depth of such transforms, and levels that come late, take
another one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of
from bayeslmm.data.batches import Batch, BatchColumns, Reader, batch_columns, located
from bayeslmm.data.building import fixed_space
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.inputs import (
    Expression,
    check_extremes,
    check_fixed_factors,
    check_not_own_predictor,
    check_weights_scale,
)
from bayeslmm.data.level_sets import GroupingSets, merged_categories
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.random_terms import amalgamated, check_batch, spec_of_levels
from bayeslmm.data.sources import Source
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
from bayeslmm.formula.rank import RowSpace, independent_columns
from bayeslmm.formula.syntax import Operand
from bayeslmm.formula.terms import Side

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]


def survey(
    formula: Formula,
    source: Source,
    *,
    weights: str | None,
    functions: UserFunctions,
    known: Mapping[str, Any],
) -> tuple[Spec, Summary, Reader]:
    """Find out everything about data beyond memory but their cross-products.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    known : mapping of str to number or matrix
        Covariance parameters that are held.

    Returns
    -------
    spec : Spec
        The same that the data have in memory.
    summary : Summary
    reader : Reader
        By which the rows are read again.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    check_not_own_predictor(formula)
    for term in formula.random:
        what = "by=" if term.by is not None else "mm()" if term.members is not None else None
        if what is not None:
            raise DataError(
                f"{term.source} has {what}, which is for data in memory. Take it out, or read the "
                "data into a data frame."
            )
    reader = Reader(source=source, formula=formula, weights=weights)
    found = _Survey(formula, functions)
    while not found.complete:
        found.read(reader)
    if reader.n_dropped:
        total = reader.n + reader.n_dropped
        _log.info("%d of %d rows are incomplete and dropped.", reader.n_dropped, total)
    return *found.finish(reader, known), reader


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


class _Survey:
    def __init__(self, formula: Formula, functions: UserFunctions) -> None:
        self.formula, self.functions = formula, functions
        sides = sides_of(formula)
        operands = [formula.left, *formula.shifts, *(p for side in sides for p in side.operands)]
        self.groups = amalgamated(formula)
        readings = [part.reading for part in operands if part.reading is not None]
        self.memory = Memory(readings, functions)
        self.sample = _Sample(sides, operands, functions)
        self.levels = GroupingSets([terms[0].factors for terms in self.groups.values()])
        self.columns: dict[Side, Columns] = {}
        self.encodings: Encodings | None = None
        self.totals: _Totals | None = None
        self.first = True
        self.complete = False

    def read(self, reader: Reader) -> None:
        """One pass over all rows."""
        self.totals, late = None, False
        for batch in reader:
            variables = Variables(batch.frame)
            new = self.first and self._look(batch, variables)
            if not self.memory.complete:
                self._remember(batch, variables)
                continue
            late = late or (new and self.totals is not None)
            if not late:
                self._add(batch)
        self.first = False
        self.complete = self.memory.complete and not late
        if not self.memory.complete:
            self.memory.close()
        if not self.complete:
            self.encodings = None

    def _look(self, batch: Batch, variables: Variables) -> bool:
        """Take in levels; whether columns of the model may be new."""
        for terms in self.groups.values():
            check_batch(self.formula.source, terms, batch.frame, {})
        self.levels.add(batch.frame)
        new = located(batch, lambda: self.sample.add(batch.frame, variables))
        if self.sample.full:
            check_fixed_factors(self.formula, self.sample.frame())
            self._encode()
        return new

    def _remember(self, batch: Batch, variables: Variables) -> None:
        located(batch, lambda: self.memory.add(variables))

    def _add(self, batch: Batch) -> None:
        """Take in the moments of the columns."""
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
            self.totals = _Totals(self.formula, batch.frame)
        self.totals.add(batch, found)

    def _encode(self) -> Encodings:
        """How columns are built, from the sample."""
        frame, states = self.sample.frame(), self.memory.states
        self.columns = sample_columns(self.formula, frame, self.functions, states)
        return sample_encodings(self.formula, self.columns, frame, self.functions, states)

    def finish(self, reader: Reader, known: Mapping[str, Any]) -> tuple[Spec, Summary]:
        """Check what can be checked of all rows only, and put the spec together."""
        assert self.encodings is not None and self.totals is not None
        formula, totals = self.formula, self.totals
        check_extremes(formula.response, reader.n, totals.low, totals.high)
        check_fixed_factors(formula, self.sample.frame(), reader.n)
        fixed = self._fixed(totals.sides[formula.right])
        totals.check_weights(reader.weights)
        free = "sigma" not in {str(key).strip() for key in known}
        spec = Spec(
            formula=formula,
            functions=self.functions,
            weights=reader.weights,
            fixed=fixed,
            random=self._random(totals, saturated=not free),
            residual=None,
            encodings=self.encodings,
            known=known,
        )
        return spec, totals.summary(reader, self.sample.frame(), self.memory.states)

    def _fixed(self, moments: Moments) -> RowSpace:
        names = self.columns[self.formula.right].names
        columns = moments.take(range(len(names)))
        return fixed_space(names, columns, lambda: independent_columns(columns), moments.n)

    def _random(self, totals: _Totals, *, saturated: bool) -> tuple[FactorSpec, ...]:
        moments = {}
        for side, columns in self.columns.items():
            names = columns.names
            moments[side] = names, totals.sides[side].take(range(len(names)))
        groups = zip(self.groups.items(), self.levels.finish(), strict=True)
        return tuple(
            spec_of_levels(self.formula.source, terms, key, grouping, moments, saturated=saturated)
            for (key, terms), grouping in groups
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


class _Totals:
    """Sums and extremes over the rows so far."""

    def __init__(self, formula: Formula, frame: pd.DataFrame) -> None:
        self.formula = formula
        self.heads: dict[Side, tuple[Array, Array]] = {}
        self.tails: dict[Side, Moments] = {}
        self.weighted: dict[Side, Moments] = {}
        self.low, self.high = np.full(3, np.inf), np.full(3, -np.inf)
        self.weights = np.array([np.inf, -np.inf])
        self.log_weights = self.inverse_weights = self.offset = 0.0
        names = formula.predictors(effects=False, groups=False)
        self.means = {name: 0.0 for name in sorted(names) if kind_of(frame[name]) == "numbers"}
        self.ranges: dict[str, tuple[float, float]] = {}
        self.n = 0

    def add(self, batch: Batch, found: BatchColumns) -> None:
        shifted = bool(self.formula.shifts)
        response = found.y - found.offset if shifted else found.y
        low, high = float(found.y.min()), float(found.y.max())
        lows, highs = (low, 0.0, low), (high, 0.0, high)
        if shifted:
            lows = (low, float(found.offset.min()), float(response.min()))
            highs = (high, float(found.offset.max()), float(response.max()))
        self.low, self.high = np.minimum(self.low, lows), np.maximum(self.high, highs)
        for side, values in found.sides.items():
            rows = [*values.T, response] if side == self.formula.right else [*values.T]
            columns = np.array(rows).reshape(len(rows), len(response)).T
            self._add_side(side, columns, found.weights)
        n = len(response)
        self.n += n
        for name in self.means:
            values = batch.frame[name].to_numpy(dtype=np.float64)
            self.means[name] += (float(np.mean(values)) - self.means[name]) * n / self.n
            low, high = self.ranges.get(name, (np.inf, -np.inf))
            self.ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
        self.offset += (float(found.offset.mean()) - self.offset) * n / self.n
        if found.weights is not None:
            self.log_weights += float(np.sum(np.log(found.weights)))
            self.inverse_weights += float(np.sum(1.0 / found.weights))
            self.weights[0] = min(self.weights[0], found.weights.min())
            self.weights[1] = max(self.weights[1], found.weights.max())

    def _add_side(self, side: Side, columns: Array, weights: Array | None) -> None:
        """Moments of columns, the first rows apart: they decide on the signs of a QR."""
        k = columns.shape[1]
        head, roots = self.heads.get(side, (np.empty((0, k)), np.empty(0)))
        more = max(k - len(head), 0)
        if more:
            own = np.ones(len(columns[:more])) if weights is None else np.sqrt(weights[:more])
            head, roots = np.vstack([head, columns[:more]]), np.append(roots, own)
            self.heads[side] = head, roots
        if len(columns) > more:
            _accumulate(self.tails, side, columns[more:], None)
            if weights is not None:
                _accumulate(self.weighted, side, columns[more:], weights[more:])

    @property
    def sides(self) -> dict[Side, Moments]:
        """Moments of the columns of each side, without weights."""
        result = {}
        for side, (head, _) in self.heads.items():
            tail, own = self.tails.get(side), Moments.of(head)
            result[side] = own if tail is None else tail + own
        return result

    def check_weights(self, name: str | None) -> None:
        """Raise DataError for weights that are too different."""
        if name is not None:
            check_weights_scale(f"The weights `{name}`", self.weights)

    def summary(self, reader: Reader, sample: pd.DataFrame, states: Mapping[str, Any]) -> Summary:
        weighted = reader.weights is not None
        rest = self.weighted if weighted else self.tails
        tails = {
            side: rest[side].columns if side in rest else head[:0]
            for side, (head, _) in self.heads.items()
        }
        heads = {side: head * roots[:, None] for side, (head, roots) in self.heads.items()}
        return Summary(
            words=reader.source.words,
            n=reader.n,
            n_dropped=reader.n_dropped,
            sides=self.sides,
            heads=heads,
            tails=tails,
            log_weights=self.log_weights,
            mean_inverse_weight=self.inverse_weights / self.n if weighted else 1.0,
            mean_offset=self.offset,
            means=self.means,
            ranges=self.ranges,
            sample=sample,
            states=states,
        )


def _accumulate(
    totals: dict[Side, Moments], side: Side, columns: Array, weights: Array | None
) -> None:
    known = totals.get(side)
    more = Moments.of(columns, weights, None if known is None else known.centre)
    totals[side] = more if known is None else known + more
