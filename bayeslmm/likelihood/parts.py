"""Sums over some rows of data beyond memory, which add up to those of all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.data.batches import Reader
from bayeslmm.data.design import Encodings, Spec
from bayeslmm.data.frames import Codes
from bayeslmm.data.known_covariance import covariance_of
from bayeslmm.data.level_sets import SeenLevels, united
from bayeslmm.data.random_terms import amalgamated, check_relationships, keeps_totals
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec, check_weights_once
from bayeslmm.data.residual_survey import surveyed_residual, whole_batches
from bayeslmm.data.sources import Source
from bayeslmm.data.summarised import SummarisedDesign, Summary
from bayeslmm.data.survey import Coding, Extremes, Layout, Survey, checked_spec
from bayeslmm.data.unobserved import Missing, check_missing, refuse_incomplete
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import reevaluate
from bayeslmm.formula.residual import ResidualFormula, parse_residual
from bayeslmm.likelihood.crossprod import WorkingProducts
from bayeslmm.likelihood.factor_columns import factor_covariates, level_places, own_columns
from bayeslmm.likelihood.pushed import log_dropped, pushed_sums
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
        sizes = [len(both) for both in levels]
        places = [own for _, own, _ in found], [own for _, _, own in found]
        summary = _both_summaries(self, other, places, sizes)
        now = basis_of_part(summary.weighted, self.layout.factors)
        parts = [
            placed(in_basis(part.products, now), place, sizes)
            for part, place in zip((self, other), places, strict=True)
        ]
        return replace(
            self,
            summary=summary,
            extremes=self.extremes + other.extremes,
            levels=levels,
            products=parts[0] + parts[1],
        )

    def design(
        self, known: Mapping[str, Any], relationships: Mapping[str, Relationship] | None = None
    ) -> SummarisedDesign:
        """The design of a model of these rows.

        Parameters
        ----------
        known : mapping of str to number or matrix
            Covariance parameters that are held.
        relationships : mapping of str to Relationship, optional
            Known covariances of levels by grouping factor, which the rows were read with.

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
            relationships or {},
        )
        pairs = list(zip(spec.random, self.levels, strict=True))
        places = [level_places(factor, seen) for factor, seen in pairs]
        counts = {}
        for factor, place in zip(spec.random, places, strict=True):
            counts[factor.key] = np.zeros(len(factor.levels), dtype=np.intp)
            counts[factor.key][place] = self.summary.counts[factor.key]
        summary = replace(self.summary, counts=counts)
        return SummarisedDesign(spec, summary, self._products_of_model(spec, places))

    def _products_of_model(self, spec: Spec, places: Sequence[Codes]) -> Any:
        """The sums in the basis of the model, over its levels and its columns."""
        summary, kept = self.summary, spec.fixed.kept
        structures = tuple(map(structure_of, spec.random))
        covariates = [factor_covariates(factor, summary) for factor in spec.random]
        basis = basis_of_model(summary.weighted[self.layout.right], covariates, structures, kept)
        own = [own_columns(factor, summary) for factor in spec.random]
        sizes = [len(factor.levels) for factor in spec.random]
        products = placed(in_basis(self.products, basis, kept, own), places, sizes)
        if isinstance(products, WorkingProducts):
            known_levels = tuple(factor.relationship for factor in spec.random)
            products = replace(products, structures=structures, relationships=known_levels)
        # weights of one origin, so that files give the same numbers
        return replace(products, log_weights=summary.log_weights)


def read_part(
    formula: Formula,
    source: Source,
    weights: str | None,
    functions: UserFunctions,
    coding: Coding | None = None,
    residual: ResidualFormula | None = None,
    relationships: Mapping[str, Relationship] | None = None,
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
    relationships : mapping of str to Relationship, optional
        Known covariances of levels by grouping factor.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    reader = Reader(source=source, formula=formula, weights=weights, residual=residual)
    structure = None if residual is None else surveyed_residual(residual, reader)
    survey = Survey(formula, functions, coding, structure, relationships)
    if coding is None:
        needs = None if residual is None else residual.source
        if keeps_totals(formula, relationships):
            needs = "a model with relationships=, by= or mm()"
        pushed = pushed_sums(formula, source, weights, functions, needs)
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
    log_reading(source, reader.n, reader.n_dropped)
    return part_of(survey, reader, sums)


def log_reading(source: Source, n: int, n_dropped: int) -> None:
    """Log how many rows of a source were used, and dropped as incomplete."""
    log_dropped(n, n_dropped)
    _log.info("%s: cross-products of %d rows.", source.words, n)


def part_of(survey: Survey, reader: Reader, sums: RunningSums) -> Part:
    """What has been read at the end of a reading."""
    assert survey.totals is not None and survey.encodings is not None
    found = survey.levels.finish()
    products, counts = sums.finish(survey.totals, [places for _, places in found])
    summary = survey.totals.summary(
        reader,
        survey.coding,
        dict(zip(survey.groups, counts, strict=True)),
        {
            key: survey.factors[key].finish(places)
            for key, (_, places) in zip(survey.groups, found, strict=True)
            if key in survey.factors
        },
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


ADVICE = {
    "missing": "rows to predict would have to be kept, and only sums over rows are. Leave it out, "
    "and predict the rows that lack a response with predict(new) after the fit.",
    "family": "its likelihood is no function of sums over rows. Leave it out, or read the data, or "
    "some of the groups, into a data frame.",
    "sigma": "a likelihood with predictors of the residual scale is no function of sums over rows. "
    "Give variances by group or by covariate with residual='strata(f)' or residual='power(x)', or "
    "read the data, or some of the groups, into a data frame.",
    "covariances": "a known covariance matrix has a row for each row of the data. Read the data "
    "into a data frame, or give standard errors and an assumed correlation as columns: "
    "residual='cs(estimate | study) * se(se)'.",
}
"""What is refused of data beyond memory, by the argument of ``LMM``: why, and what to do."""


def streamed_design(
    formula: Formula,
    source: Source,
    weights: Any,
    functions: UserFunctions,
    known: Mapping[str, Any],
    residual: str | None,
    relationships: Mapping[str, Relationship],
    read: Callable[..., Part] = read_part,
    *,
    missing: Missing,
    family: str,
    sigma: str | None,
    covariances: Mapping[str, Any],
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
    relationships : mapping of str to Relationship
        Known covariances of levels by grouping factor.
    read : callable
        Reads all rows, as :func:`read_part` does.
    missing, family, sigma, covariances
        Arguments of ``LMM``, which beyond their defaults are for data in memory, but for
        ``missing="raise"``.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    check_missing(missing)
    in_memory = {
        "missing": missing if missing == "keep" else None,
        "family": None if family == "gaussian" else family,
        "sigma": sigma,
        "covariances": list(covariances) or None,
    }
    for name, value in in_memory.items():
        if value is not None:
            raise DataError(f"{name}={value!r} is not there for {source.words}: {ADVICE[name]}")
    check_weights_name(weights, source)
    structure = None if residual is None else parse_residual(residual)
    covariance_of(structure, {})
    if weights is not None and structure is not None:
        check_weights_once(structure)
    groups = [terms[0].group for terms in amalgamated(formula).values()]
    check_relationships(relationships, groups)
    part = read(
        formula, source, weights, functions, residual=structure, relationships=relationships
    )
    design = part.design(known, relationships)
    refuse_incomplete(design, missing)
    return design


def check_weights_name(weights: Any, source: Source) -> None:
    """Raise DataError for weights that are no column, as rows are not held."""
    if weights is not None and not isinstance(weights, str):
        raise DataError(
            f"weights= of {source.words} must be the name of a column, got "
            f"{type(weights).__name__}: rows are read in batches, each with its own weights. Add "
            "the weights to the data as a column, and give its name."
        )


# --- adding ----------------------------------------------------------------------------


def _check_columns(first: Part, second: Part) -> None:
    """Raise DataError unless the columns of the model are built in the same way."""
    words = _model_words(first), _model_words(second)
    if words[0] != words[1]:
        raise DataError(
            f"The sums are of different models, which cannot be added: {words[0]}, and {words[1]}."
        )
    if first.layout.names == second.layout.names:
        samples = [first.summary.sample, second.summary.sample]
        different = samples[: 1 if samples[0].equals(samples[1]) else 2]
        if all(equal_columns(first, second, sample) for sample in different):
            return
    raise DataError(
        "The sums are of different columns, which cannot be added: "
        f"{_column_words(first, second)}. Levels of factors among the covariates, and what "
        "transforms such as scale() remember, must be those of all rows in each part."
    )


def _model_words(part: Part) -> str:
    weights = "" if part.weights is None else f" with weights `{part.weights}`"
    residual = "" if part.residual is None else f" with residual {part.residual.formula.source}"
    return f"`{part.formula.source}`{weights}{residual}"


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
        factors={
            key: own.merged(b.factors[key], (mine, theirs), size)
            for key, size, mine, theirs in zip(a.counts, sizes, *places, strict=True)
            if (own := a.factors.get(key)) is not None
        },
        scaled=None if a.scaled is None or b.scaled is None else a.scaled + b.scaled,
    )
