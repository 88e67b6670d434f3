"""Batches of a source as complete rows, and the columns of a model in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.column_types import kind_of
from bayeslmm.data.design import Encodings
from bayeslmm.data.frames import check_infinite, complete_cases, missing, plain_frame
from bayeslmm.data.inputs import check_variables, precision_weights
from bayeslmm.data.residual_rows import precisions
from bayeslmm.data.sources import Source
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.evaluation import Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import reevaluate
from bayeslmm.formula.residual import ResidualFormula
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """Complete rows of a batch.

    Attributes
    ----------
    start : int
        Rows of the source before the batch.
    frame : pandas.DataFrame
        The variables of the formula.
    weights : ndarray (n,) or None
        Precision weights.
    places : ndarray of int (n,)
        Places of the rows in the source.
    """

    start: int
    frame: pd.DataFrame
    weights: Array | None
    places: NDArray[np.intp]

    @property
    def where(self) -> str:
        """Where the rows are, in words."""
        return f"in the batch after row {self.start}" if self.start else "in the first batch"


@dataclass(eq=False, kw_only=True)
class Reader:
    """A source read as complete rows of the variables of a formula.

    Attributes
    ----------
    source : Source
    formula : Formula
    weights : str or None
        Column of the precision weights.
    residual : ResidualFormula or None
        Structure of the residuals.
    kinds : dict of str to str
        What each column holds, as far as has been read.
    """

    source: Source
    formula: Formula
    weights: str | None
    residual: ResidualFormula | None = None
    names: list[str] = field(init=False)
    n: int = 0
    n_dropped: int = 0
    _gaps: dict[str, int] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = self.source.columns()
        check_variables(self.formula, self.names)
        if self.residual is not None:
            check_variables(self.residual, self.names)
        precision_weights_name(self.weights, self.names)

    @property
    def variables(self) -> list[str]:
        """The variables of the formula and of the structure of the residuals."""
        own = frozenset[str]() if self.residual is None else self.residual.variables
        return sorted(self.formula.variables | own)

    @property
    def weighted(self) -> bool:
        """Whether rows have precision weights, by themselves or by known standard errors."""
        known = self.residual is not None and self.residual.errors is not None
        return known or self.weights is not None

    def __iter__(self) -> Iterator[Batch]:
        """Read everything once."""
        self.n = self.n_dropped = 0
        self._gaps.clear()
        variables, wanted = self.variables, self.wanted
        for start, raw in self.source.frames(wanted):
            batch = self._batch(start, plain_frame(raw, wanted), variables)
            if batch is not None:
                yield batch

    @property
    def wanted(self) -> list[str]:
        """Columns that are read."""
        return sorted({*self.variables, *({self.weights} if self.weights else ())})

    def require_rows(self) -> None:
        """Raise DataError if the last reading had no complete row."""
        if not self.n:
            self._nothing(self.variables)
        total = self.n + self.n_dropped
        empty = sorted(name for name in self.formula.members if self._gaps[name] == total)
        if empty:
            raise DataError(
                f"All {total} values of {listed(empty)} are missing; take the variable out of the "
                "formula or fill it in."
            )

    def _batch(self, start: int, frame: pd.DataFrame, variables: list[str]) -> Batch | None:
        gaps = {name: missing(frame[name]) for name in frame.columns}
        drop = np.zeros(len(frame), dtype=bool)
        for name, gap in gaps.items():
            drop |= gap & (name not in self.formula.members)
            self._gaps[name] = self._gaps.get(name, 0) + int(gap.sum())
        self.n_dropped += int(drop.sum())
        if drop.all():
            return None
        self._check_kinds(start, frame, gaps)
        weights = precision_weights(self.weights, frame, frame, self.names)
        check_infinite(frame, variables)
        complete = frame if list(frame.columns) == variables else frame[variables]
        places = np.arange(start, start + len(frame))
        if drop.any():
            unweighted = None if weights is None else np.isnan(weights)
            complete, dropped = self._complete(frame, variables, unweighted)
            weights = None if weights is None else np.delete(weights, dropped)
            places = np.delete(places, dropped)
        self.n += len(complete)
        batch = Batch(start=start, frame=complete, weights=weights, places=places)
        residual = self.residual
        if residual is None or residual.errors is None:
            return batch
        return replace(batch, weights=located(batch, lambda: precisions(residual, complete)))

    def _complete(
        self, frame: pd.DataFrame, variables: list[str], unweighted: NDArray[np.bool_] | None
    ) -> tuple[pd.DataFrame, NDArray[np.intp]]:
        """Complete rows, and the places of the others; of members there may be none in a batch."""
        optional = self.formula.members
        needed = [name for name in variables if name not in optional]
        complete, dropped = complete_cases(frame, needed, unweighted)
        if optional:
            own = np.delete(np.arange(len(frame)), dropped)
            more = {name: frame[name].iloc[own] for name in variables if name in optional}
            complete = complete.assign(**more)[variables]
        return complete, dropped

    def _check_kinds(
        self, start: int, frame: pd.DataFrame, gaps: Mapping[str, NDArray[np.bool_]]
    ) -> None:
        for name, column in frame.items():
            if gaps[str(name)].all():
                continue
            kind = kind_of(column)
            known = self.kinds.setdefault(str(name), kind)
            if kind != known:
                raise DataError(
                    f"{self.source.words}: `{name}` holds {known} at first and {kind} after row "
                    f"{start}. Give all parts one type."
                )

    def _nothing(self, variables: list[str]) -> None:
        if not self.n_dropped:
            raise DataError("The data have no rows.")
        empty = sorted(name for name in variables if self._gaps[name] == self.n_dropped)
        if empty:
            raise DataError(
                f"All {self.n_dropped} values of {listed(empty)} are missing; take the variable "
                "out of the formula or fill it in."
            )
        counts = ", ".join(f"`{name}` {gap}" for name, gap in self._gaps.items() if gap)
        raise DataError(
            f"No row is complete: each of the {self.n_dropped} rows lacks a value of some variable "
            f"(missing values: {counts})."
        )


def precision_weights_name(weights: str | None, names: list[str]) -> None:
    """Raise DataError for a column of weights that is not there."""
    if weights is not None and weights not in names:
        precision_weights(weights, pd.DataFrame(), None, names)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class BatchColumns:
    """The columns of a model in the rows of a batch.

    Attributes
    ----------
    y, offset : ndarray (n,)
    weights : ndarray (n,) or None
    sides : mapping of Side to ndarray (n, k)
    """

    y: Array
    offset: Array
    weights: Array | None
    sides: Mapping[Side, Array]


def batch_columns(batch: Batch, encodings: Encodings) -> BatchColumns:
    """Evaluate the columns of a model in a batch."""
    variables = Variables(batch.frame)

    def columns() -> BatchColumns:
        offset = np.zeros(variables.n)
        for shift in encodings.offsets:
            offset += shift.value(variables)
        return BatchColumns(
            y=encodings.response.value(variables),
            offset=offset,
            weights=batch.weights,
            sides={side: reevaluate(e, variables).values for side, e in encodings.sides.items()},
        )

    return located(batch, columns)


def located[T](batch: Batch, compute: Callable[[], T]) -> T:
    """What is computed from a batch; DataError says where the batch is."""
    try:
        return compute()
    except DataError as error:
        if not batch.start:
            raise
        raise type(error)(f"{error} ({batch.where})".replace("..", ".")) from error
