"""Sums over some rows of data beyond memory, which add up to those of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.batches import Reader
from bayeslmm.data.design import Encodings
from bayeslmm.data.frames import Codes
from bayeslmm.data.level_sets import SeenLevels, united
from bayeslmm.data.residual_rows import ResidualSpec, check_weights_once
from bayeslmm.data.residual_survey import surveyed_residual, whole_batches
from bayeslmm.data.sources import Source
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import Coding, Extremes, Layout, Survey, checked_spec
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import reevaluate
from bayeslmm.formula.residual import ResidualFormula, parse_residual
from bayeslmm.likelihood.pushed import pushed_sums
from bayeslmm.likelihood.rebasing import basis_of_model, basis_of_part, in_basis, placed
from bayeslmm.likelihood.streamed import RunningSums

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Part:
    """All that a model needs of some rows.

    Attributes
    ----------
    formula : Formula
    functions : mapping of str to callable
        The user's.
    weights : str or None
        Column of the precision weights.
    layout : Layout
        The columns.
    encodings : Encodings
        How they are built.
    summary : Summary
        What is kept of the rows beside their products.
    extremes : Extremes
    levels : tuple of SeenLevels
        Of each grouping factor.
    products : WorkingProducts or TiedProducts
        In the basis of these rows.
    residual : ResidualSpec or None
        Structure of the residuals.
    """

    formula: Formula
    functions: UserFunctions
    weights: str | None
    layout: Layout
    encodings: Encodings
    summary: Summary
    extremes: Extremes
    levels: tuple[SeenLevels, ...]
    products: Any
    residual: ResidualSpec | None = None

    def __add__(self, other: Part) -> Part:
        """Of both sets of rows, which have none in common.

        Raises
        ------
        DataError
            If the columns of the model are not the same in both.
        """
        _check_columns(self, other)
        pairs = zip(self.levels, other.levels, strict=True)
        found = [united(mine, theirs) for mine, theirs in pairs]
        levels = tuple(both for both, _, _ in found)
        sizes = [len(both.factor.levels) for both in levels]
        places = [own for _, own, _ in found], [own for _, _, own in found]
        summary = _both_summaries(self, other, places, sizes)
        whole = replace(
            self,
            summary=summary,
            extremes=self.extremes + other.extremes,
            levels=levels,
        )
        now = basis_of_part(summary.weighted, self.layout.factors)
        parts = [
            placed(in_basis(part.products, now), place, sizes)
            for part, place in zip((self, other), places, strict=True)
        ]
        return replace(whole, products=parts[0] + parts[1])

    def design(self, known: Mapping[str, Any]) -> SummarisedDesign:
        """The design of a model of these rows.

        Parameters
        ----------
        known : mapping of str to number or matrix
            Covariance parameters that are held.

        Raises
        ------
        FormulaError, DataError
            As for data in memory.
        """
        spec = checked_spec(
            self.formula,
            self.functions,
            self.weights,
            known,
            self.layout,
            self.encodings,
            self.summary,
            self.extremes,
            self.levels,
            self.residual,
        )
        own, kept = self.layout, spec.fixed.kept
        basis = basis_of_model(self.summary.weighted, own.factors, own.structures, kept)
        products = in_basis(self.products, basis, kept)
        weights = self.summary.log_weights  # of one origin, so that files give the same numbers
        products = replace(products, log_weights=weights)
        return SummarisedDesign(spec, self.summary, products)


def read_part(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    coding: Coding | None = None,
    residual: ResidualFormula | None = None,
) -> Part:
    """Read all rows of a source, as often as it takes.

    Parameters
    ----------
    formula : Formula
    source : Source
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    coding : Coding, optional
        That of all rows, of which these are a part; then they are read once.
    residual : ResidualFormula, optional
        Structure of the residuals; its levels and times are found by a reading of their own.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    reader = Reader(source=source, formula=formula, weights=weights, residual=residual)
    structure = None if residual is None else surveyed_residual(residual, reader)
    survey = Survey(formula, functions, coding, structure)
    if coding is None:
        pushed = pushed_sums(formula, source, weights, functions, residual)
        if pushed is not None:
            return Part(formula=formula, functions=functions, weights=weights, **pushed)
    while not survey.complete:
        sums: RunningSums | None = None
        survey.begin()
        for batch in reader if residual is None else whole_batches(residual, reader):
            taken = survey.take(batch)
            if taken is None:
                sums = None
                continue
            assert survey.totals is not None
            sums = sums or RunningSums(survey.layout, structure)
            sums.add(taken, survey.totals, survey.levels.sizes)
        reader.require_rows()
        survey.end(reader)
    assert sums is not None
    if reader.n_dropped:
        total = reader.n + reader.n_dropped
        _log.info("%d of %d rows are incomplete and dropped.", reader.n_dropped, total)
    _log.info("%s: cross-products of %d rows.", source.words, reader.n)
    return part_of(survey, reader, sums)


def part_of(survey: Survey, reader: Reader, sums: RunningSums) -> Part:
    """What has been read at the end of a reading."""
    assert survey.totals is not None and survey.encodings is not None
    found = survey.levels.finish()
    products, counts = sums.finish(survey.totals, [places for _, places in found])
    summary = survey.totals.summary(
        reader,
        survey.coding,
        dict(zip(survey.groups, counts, strict=True)),
    )
    return Part(
        formula=survey.formula,
        functions=survey.functions,
        weights=reader.weights,
        layout=survey.layout,
        encodings=survey.encodings,
        summary=summary,
        extremes=survey.totals.extremes,
        levels=tuple(seen for seen, _ in found),
        products=products,
        residual=survey.residual,
    )


def streamed_design(
    formula: Formula,
    source: Source,
    weights: Any,
    functions: UserFunctions,
    known: Mapping[str, Any],
    residual: str | None,
    in_memory: Mapping[str, Any],
    read: Callable[..., Part] = read_part,
) -> SummarisedDesign:
    """The design of data beyond memory.

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
    residual : str or None
        Structure of the residuals.
    in_memory : mapping of str to object
        Arguments that are for data in memory, None where they are not given.
    read : callable
        Reads all rows, as :func:`read_part` does.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    if given := [name for name, value in in_memory.items() if value is not None]:
        raise DataError(
            f"{listed([f'{name}=' for name in given])}: for data in memory, not yet for "
            f"{source.words}. Read the data into a data frame, or leave it out."
        )
    check_weights_name(weights, source)
    structure = None if residual is None else parse_residual(residual)
    if weights is not None and structure is not None:
        check_weights_once(structure)
    return read(formula, source, weights, functions, residual=structure).design(known)


def check_weights_name(weights: Any, source: Source) -> None:
    """Raise DataError for weights that are no column, as rows are not held."""
    if weights is not None and not isinstance(weights, str):
        raise DataError(
            f"weights= of {source.words} must be the name of a column, got "
            f"{type(weights).__name__}."
        )


# --- adding ----------------------------------------------------------------------------


def _check_columns(first: Part, second: Part) -> None:
    """Raise DataError unless the columns of the model are built in the same way."""
    same = first.formula.source == second.formula.source and first.weights == second.weights
    if not same:
        raise DataError(
            "The sums are of different models, which cannot be added: "
            f"{_model_words(first)}, and {_model_words(second)}."
        )
    if first.layout.names == second.layout.names:
        samples = first.summary.sample, second.summary.sample
        if all(equal_columns(first, second, sample) for sample in samples):
            return
    raise DataError(
        "The sums are of different columns, which cannot be added: "
        f"{_column_words(first, second)}. Levels of factors among the covariates, and what "
        "transforms such as scale() remember, must be those of all rows in each part."
    )


def _model_words(part: Part) -> str:
    weights = "" if part.weights is None else f" with weights `{part.weights}`"
    return f"`{part.formula.source}`{weights}"


def _column_words(first: Part, second: Part) -> str:
    for side, names in first.layout.names.items():
        others = second.layout.names[side]
        if names != others:
            return f"{listed(names)}, and {listed(others)}"
    return "they have one name and other values for the same rows"


def equal_columns(first: Part, second: Part, sample: pd.DataFrame) -> bool:
    """Whether two ways to build columns agree in some rows."""
    rows = Variables(sample)
    try:
        return all(
            np.array_equal(
                reevaluate(first.encodings.sides[side], rows).values,
                reevaluate(second.encodings.sides[side], rows).values,
            )
            for side in first.layout.names
        )
    except DataError:
        return False


def _both_summaries(
    first: Part, second: Part, places: tuple[list[Codes], list[Codes]], sizes: list[int]
) -> Summary:
    a, b = first.summary, second.summary
    n = a.n + b.n

    def mean(one: float, two: float) -> float:
        return one + (two - one) * (b.n / n)

    def both[V](merge: Callable[[V, V], V], one: Mapping[Any, V], two: Mapping[Any, V]) -> Any:
        return {key: merge(one[key], two[key]) for key in one}

    sides = both(lambda x, y: x + y, a.sides, b.sides)
    weighted = sides
    if a.weighted is not a.sides:
        weighted = both(lambda x, y: x + y, a.weighted, b.weighted)
    counts = {}
    for key, size, mine, theirs in zip(a.counts, sizes, *places, strict=True):
        counts[key] = np.zeros(size, dtype=np.intp)
        counts[key][mine] += a.counts[key]
        counts[key][theirs] += b.counts[key]
    return Summary(
        words=a.words if a.words == b.words else f"{a.words} and {b.words}",
        n=n,
        n_dropped=a.n_dropped + b.n_dropped,
        sides=sides,
        weighted=weighted,
        counts=counts,
        log_weights=a.log_weights + b.log_weights,
        mean_inverse_weight=mean(a.mean_inverse_weight, b.mean_inverse_weight),
        mean_offset=mean(a.mean_offset, b.mean_offset),
        means=both(mean, a.means, b.means),
        ranges={
            name: (min(low, b.ranges[name][0]), max(high, b.ranges[name][1]))
            for name, (low, high) in a.ranges.items()
            if name in b.ranges  # else a part does not tell
        },
        sample=a.sample,
        states=a.states,
        scaled=None if a.scaled is None or b.scaled is None else a.scaled + b.scaled,
    )
