"""The rows of data beyond memory once more, batch by batch, for a model that was made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.batches import Batch, Reader
from bayeslmm.data.design import Design
from bayeslmm.data.level_sets import merged_categories
from bayeslmm.data.residual_survey import whole_batches
from bayeslmm.data.sources import BATCH, Source, frames_source, open_source
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

SAME = 1e-8
"""Relative difference of sums over the same rows in another order: rounding, with room."""

OTHER_ROWS = (
    "{words}: these are not the rows that the model was made of: {why}. Nothing of this reading is "
    "kept. Give the rows of the model, in any order, with with_source(), or build the model again."
)

NO_SOURCE = (
    "This reads the rows of the data again, and the model has only sums over them and does not "
    "know where they are, as it was loaded or sent here; it was built from {words}. Give them: "
    "fit.with_source(source), with a path or whatever else a model is built from."
)


def with_source(design: Design, data: Any) -> SummarisedDesign:
    """A design of sums that knows where its rows are.

    Raises
    ------
    DataError
        If the design has its rows.
    FormulaError
        If the source lacks columns of the formula.
    """
    if not isinstance(design, SummarisedDesign):
        raise DataError(
            "The model has its rows in memory: with_source() is for a model of data beyond memory."
        )
    source = open_source(data) or frames_source("The data frame", [data])
    reader_of(design, source)
    return design.with_source(source)


def reader_of(design: SummarisedDesign, source: Source) -> Reader:
    """What reads the rows of a model again."""
    spec = design.spec
    residual = None if spec.residual is None else spec.residual.formula
    return Reader(source=source, formula=spec.formula, weights=spec.weights, residual=residual)


def row_parts(design: Design) -> Iterator[Design]:
    """The rows of a design, some at a time: all at once where they are in memory.

    Yields
    ------
    Design
        With the coefficients and levels of the model; the index numbers the rows of the source.

    Raises
    ------
    DataError
        If the design does not know its source, or the source does not have the rows of the model;
        that is known at the end of the last part only.
    """
    if not isinstance(design, SummarisedDesign):
        yield design
        return
    if design.source is None:
        raise DataError(NO_SOURCE.format(words=design.summary.words))
    reader = reader_of(design, design.source)
    sums = _Sums(design)
    for batch in reader if reader.residual is None else whole_batches(reader.residual, reader):
        part = _part(design, batch)
        sums.add(part)
        yield part
    reader.require_rows()
    if reader.n_dropped != design.n_dropped:
        raise _other_rows(
            design, f"{reader.n_dropped} rows are incomplete and {design.n_dropped} of the model"
        )
    sums.compare()


MANY_ROWS = (
    "{what} of {n:,} rows: these are more than are held at once (about a million). {instead}"
)

SOME_GROUPS = (
    "Build the model from a data frame with all rows of some groups, or of a sample of them."
)


def gathered(design: Design, what: str, instead: str) -> Design:
    """The rows of a design together: itself where they are in memory.

    Parameters
    ----------
    design : Design
    what, instead : str
        What is asked for, and what to do where the rows are more than a batch.

    Raises
    ------
    DataError
        If they are, or as :func:`row_parts` does.
    """
    if not isinstance(design, SummarisedDesign):
        return design
    if design.n > BATCH:
        raise DataError(MANY_ROWS.format(what=what, n=design.n, instead=instead))
    parts = list(row_parts(design))
    frame = concatenated([part.data for part in parts])
    weights = None
    if design.weighted:
        weights = np.concatenate([part.row_weights for part in parts])
    return design.spec.rows(frame, weights=weights)


def concatenated(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Frames below each other; categories are those of all of them, in their order."""
    whole = {}
    for name in frames[0]:
        columns = [frame[name] for frame in frames]
        if isinstance(columns[0].dtype, pd.CategoricalDtype):
            categories = columns[0].cat.categories
            for column in columns[1:]:
                categories = merged_categories(str(name), categories, column.cat.categories)
            columns = [column.cat.set_categories(categories) for column in columns]
        whole[name] = pd.concat(columns)
    return pd.DataFrame(whole)


def _part(design: SummarisedDesign, batch: Batch) -> Design:
    frame = batch.frame.set_axis(pd.Index(batch.places), axis=0)
    try:
        weights = None if design.spec.has_errors else batch.weights
        part = design.spec.rows(frame, weights=weights, residual=design.spec.residual is not None)
    except DataError as error:
        raise _other_rows(design, f"{str(error).rstrip('.')} ({batch.where})") from error
    for factor in part.random:
        if len(factor.new_levels):
            raise _other_rows(
                design, f"{factor.name} has the level {factor.new_levels[0]!r} {batch.where}"
            )
    return part


def _other_rows(design: SummarisedDesign, why: str) -> DataError:
    words = "The source" if design.source is None else design.source.words
    return DataError(OTHER_ROWS.format(words=words, why=why))


class _Sums:
    """Sums over rows that tell whether they are those of the model.

    They are those of X and y and, by level of each grouping factor, numbers of rows and sums of
    each covariate, squared and with y, in the working basis.
    """

    def __init__(self, design: SummarisedDesign) -> None:
        self.design, self.basis = design, design.products.basis
        sizes = [factor.n_levels for factor in design.random]
        self.known = design.products.untied(sizes)
        self.n = 0
        self.fixed = np.zeros_like(self.known[0])
        shapes = [own.shape[:2] for own in self.known[1]]
        self.own, self.mixed = ([np.zeros(shape) for shape in shapes] for _ in range(2))
        self.counts = [np.zeros(shape[0], dtype=np.intp) for shape in shapes]

    def add(self, part: Design) -> None:
        """Take in rows."""
        basis, root = self.basis, np.sqrt(part.row_weights)
        y = root * (part.y - part.offset - part.X @ basis.shift)
        columns = np.column_stack([(part.X @ basis.fixed) * root[:, None], y])
        self.n += part.n
        self.fixed += columns.T @ columns
        for f, factor in enumerate(part.random):
            z = (factor.Z @ basis.random[f]) * root[:, None]
            self.counts[f] += np.bincount(factor.codes, minlength=factor.n_levels)
            for c in range(z.shape[1]):
                levels = factor.n_levels
                self.own[f][:, c] += np.bincount(factor.codes, z[:, c] ** 2, levels)
                self.mixed[f][:, c] += np.bincount(factor.codes, z[:, c] * y, levels)

    def compare(self) -> None:
        """Raise DataError unless these are the sums of the model."""
        (fixed, random, mixed), design = self.known, self.design
        if self.n != design.n:
            raise _other_rows(design, f"there are {self.n} rows and {design.n} of the model")
        size = np.sqrt(np.diag(fixed))
        size = np.where(size > 0.0, size, 1.0)
        if np.any(np.abs(self.fixed - fixed) > SAME * np.outer(size, size)):
            raise _other_rows(design, "sums of the covariates and the response differ")
        spread = size[-1] / np.sqrt(self.n)
        for f, factor in enumerate(design.random):
            own = np.einsum("jkk->jk", random[f])
            room = SAME * (own + own.sum(axis=0) / self.n)
            changed = np.abs(self.own[f] - own) > room
            changed |= np.abs(self.mixed[f] - mixed[f][:, :, -1]) > room * spread
            changed |= (self.counts[f] != factor.counts())[:, None]
            if changed.any():
                level = factor.levels[int(np.argmax(changed.any(axis=1)))]
                raise _other_rows(design, f"sums over the rows of {factor.name} {level} differ")
