"""Sums over pieces of the data, each read apart with one coding of the columns, and added up.

What columns are built from is not known before the rows are read: levels of factors among the
covariates, and what transforms such as scale() remember. So each reading of all pieces finds that
out too. It starts from what the first batch has; where rows have more, all pieces are read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from bayeslmm.data.batches import Batch, Reader, located
from bayeslmm.data.inputs import check_fixed_factors
from bayeslmm.data.sources import Source
from bayeslmm.data.survey import CHANGED, Coding, Survey, sample_columns
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.memory import Found, both_found
from bayeslmm.likelihood.parts import Part, part_of
from bayeslmm.likelihood.streamed import RunningSums


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What is to be found out of each piece.

    Attributes
    ----------
    formula : Formula
    weights : str or None
        Column of the precision weights.
    functions : mapping of str to callable
        The user's.
    coding : Coding
        What is known of the columns.
    units : mapping of str to tuple of float
        Those of poly(), by the text of its calls.
    rows : int or None
        Complete rows that an earlier reading had.
    every : bool
        Whether it had all rows looked at, so that no more levels can come.
    """

    formula: Formula
    weights: str | None
    functions: UserFunctions
    coding: Coding
    units: Mapping[str, tuple[float, float]]
    rows: int | None = None
    every: bool = False

    def survey(self) -> Survey:
        """A survey with this coding, whose sample looks for what the coding lacks."""
        survey = Survey(self.formula, self.functions, self.coding)
        survey.memory.units |= self.units
        survey.sample.add(self.coding.sample, Variables(self.coding.sample))
        return survey


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Findings:
    """What some rows have.

    Attributes
    ----------
    n, n_dropped : int
        Rows that are complete, and that are not.
    kinds : mapping of str to str
        What columns hold.
    part : Part or None
        Sums; None without complete rows, or where the coding is not known or lacks levels.
    samples : tuple of DataFrame
        Rows with levels that the coding lacks.
    found : mapping
        What is found of transforms whose memory is not known.
    """

    n: int
    n_dropped: int
    kinds: Mapping[str, str]
    part: Part | None
    samples: tuple[pd.DataFrame, ...]
    found: Found

    def __add__(self, other: Findings) -> Findings:
        """Of both sets of rows, which have none in common.

        Raises
        ------
        DataError
            If columns are of different kinds.
        """
        _check_kinds(self.kinds, other.kinds)
        samples = self.samples + other.samples
        parts = [own for own in (self.part, other.part) if own is not None and not samples]
        return Findings(
            n=self.n + other.n,
            n_dropped=self.n_dropped + other.n_dropped,
            kinds={**other.kinds, **self.kinds},
            part=parts[0] + parts[1] if len(parts) > 1 else next(iter(parts), None),
            samples=samples,
            found=both_found(self.found, other.found),
        )


def first_request(
    formula: Formula, source: Source, weights: str | None, functions: UserFunctions
) -> tuple[Request, Batch]:
    """What can be known of the columns before all rows are read: what the first batch has.

    Returns
    -------
    Request
    Batch
        The first one.

    Raises
    ------
    FormulaError, DataError
        As for data in memory, and if the source cannot be read.
    """
    survey = Survey(formula, functions)
    reader = Reader(source=source, formula=formula, weights=weights)
    batch = next(iter(reader), None)
    if batch is None:
        reader.require_rows()
    assert batch is not None
    _look(survey, batch)
    request = Request(
        formula=formula,
        weights=weights,
        functions=functions,
        coding=Coding(sample=survey.sample.frame(), states={}),
        units={},
    )
    return _in_units(request, batch), batch


def next_request(
    request: Request, found: Findings, batch: Batch | None, words: str
) -> Request | None:
    """What is still to be found out of all rows; None where their sums are known.

    The first batch is needed where transforms remember whole columns.

    Raises
    ------
    DataError
        If an earlier reading had other rows.
    """
    changed = request.rows not in (None, found.n) or (request.every and found.samples)
    if changed:
        raise DataError(CHANGED.format(words=words))
    survey = request.survey()
    if survey.memory.complete and not found.samples:
        if found.part is None:
            raise DataError(CHANGED.format(words=words))
        return None
    for sample in found.samples:
        survey.sample.add(sample, Variables(sample))
    _check_levels(survey)
    if not survey.memory.complete:
        survey.memory.take(found.found)
        survey.memory.close()
    coding = Coding(sample=survey.sample.frame(), states=survey.memory.states)
    return _in_units(replace(request, coding=coding, rows=found.n, every=True), batch)


def read_piece(request: Request, source: Source) -> Findings:
    """Read the rows of a piece once.

    Parameters
    ----------
    request : Request
    source : Source

    Raises
    ------
    DataError
        As for data in memory, and if the source cannot be read.
    """
    survey, sums, lacking = request.survey(), None, False
    known = len(survey.sample.frame())
    reader = Reader(source=source, formula=request.formula, weights=request.weights)
    survey.begin()
    for batch in reader:
        lacking = _look(survey, batch) or lacking
        if lacking and survey.memory.complete:
            continue
        taken = survey.take(batch)
        if taken is not None:
            assert survey.totals is not None
            sums = sums or RunningSums(survey.layout, None)
            sums.add(taken, survey.totals, survey.levels.sizes)
    return Findings(
        n=reader.n,
        n_dropped=reader.n_dropped,
        kinds=reader.kinds,
        part=None if lacking or sums is None else part_of(survey, reader, sums),
        samples=(survey.sample.frame().iloc[known:],) if lacking else (),
        found=survey.memory.found,
    )


def _in_units(request: Request, batch: Batch | None) -> Request:
    """With the units of transforms that come next, which all pieces must share."""
    survey = request.survey()
    if not survey.memory.complete:
        assert batch is not None
        rows = Variables(batch.frame)
        located(batch, lambda: survey.memory.add(rows))
    return replace(request, units=dict(survey.memory.units))


def _look(survey: Survey, batch: Batch) -> bool:
    """Whether a batch has levels of factors among the covariates that have not been seen."""
    variables = Variables(batch.frame)
    new = located(batch, lambda: survey.sample.add(batch.frame, variables))
    if new:
        _check_levels(survey)
    return new


def _check_levels(survey: Survey) -> None:
    """Raise the error of a factor with too many levels."""
    if survey.sample.full:
        frame = survey.sample.frame()
        check_fixed_factors(survey.formula, frame)
        sample_columns(survey.formula, frame, survey.functions, survey.memory.states)


def _check_kinds(one: Mapping[str, str], two: Mapping[str, str]) -> None:
    for name in sorted(one.keys() & two.keys()):
        if one[name] != two[name]:
            raise DataError(
                f"`{name}` holds {one[name]} in one part of the data and {two[name]} in another. "
                "Give all parts one type."
            )
