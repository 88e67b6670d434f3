"""A design of which only sums over rows are kept, as the rows do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.residual import BoundResidual
from bayeslmm.data.design import Design, Spec
from bayeslmm.data.frames import Codes, read_only
from bayeslmm.data.memberships import Member
from bayeslmm.data.random_factors import FactorSpec, RandomFactor
from bayeslmm.data.row_kinds import RowKinds, ScaledRows
from bayeslmm.data.sources import Source
from bayeslmm.exceptions import DataError
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]

NEEDS_ROWS = (
    "This needs the rows of the data all at once, and the model has only sums over them: it was "
    "built from {words}. Estimates, draws, summaries, tests, means, contrasts, hypotheses and "
    "predictions at new rows (predict(new)) need no rows; fitted(), residuals(), augment(), loo(), "
    "check.residuals(), check.influence(), slopes(), comparisons() and average_predictions() read "
    "the rows again. For simulated responses and pictures of data, build the model from a data "
    "frame in memory, such as one of some of the groups."
)


class RowsNeededError(DataError):
    """Something needs the rows of data that a model has only sums over."""


def briefly(error: Exception) -> str:
    """What an error says, where the same one would be said again and again."""
    if isinstance(error, RowsNeededError):
        return "It needs the rows of the data, and the model keeps sums over them."
    return str(error)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Summary:
    """What is kept of the rows, beside their cross-products.

    Attributes
    ----------
    words : str
        Where they came from.
    n, n_dropped : int
        Rows used, and dropped as incomplete.
    sides : mapping of Side to Moments
        Moments of the columns of each side; those of the fixed effects are all, also columns that
        are dropped, and the response less the offset comes last.
    weighted : mapping of Side to Moments
        The same of rows times the roots of their precision weights; `sides` where there are none.
    counts : mapping of str to ndarray of int (J,)
        Rows of each level of each grouping factor, by its key.
    log_weights : float
        Sum of the log precision weights.
    mean_inverse_weight : float
        Mean over the rows of one over the weight.
    mean_offset : float
    means : mapping of str to float
        Mean of each numeric variable of the fixed effects and the offsets.
    ranges : mapping of str to tuple of float
        Its smallest and largest value; absent where they are withheld.
    sample : pandas.DataFrame
        Some rows, with each level of each factor of the fixed effects and slopes at least once.
    states : mapping of str to object
        What transforms of whole columns remember, by the text of their calls.
    scaled : ScaledRows or None
        Rows by their standard deviation, where residuals have a structure.
    """

    words: str
    n: int
    n_dropped: int
    sides: Mapping[Side, Moments]
    weighted: Mapping[Side, Moments]
    counts: Mapping[str, Codes]
    log_weights: float
    mean_inverse_weight: float
    mean_offset: float
    means: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    sample: pd.DataFrame
    states: Mapping[str, Any]
    scaled: ScaledRows | None = None

    def columns(self, side: Side) -> Array:
        """Columns (m, k) of a side in few dimensions: lengths and angles are the weighted ones."""
        return self.weighted[side].columns

    def refuse(self) -> NoReturn:
        """Say that rows are needed."""
        raise RowsNeededError(NEEDS_ROWS.format(words=self.words))


class SummarisedFactor(RandomFactor):
    """A grouping factor of which rows are not kept."""

    __slots__ = ("summary",)
    summary: Summary

    def __init__(self, spec: FactorSpec, summary: Summary) -> None:
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "summary", summary)
        object.__setattr__(self, "new_levels", read_only(np.empty(0, dtype=object)))

    def __reduce__(self) -> tuple[Any, ...]:
        return SummarisedFactor, (self.spec, self.summary)

    @property
    def Z(self) -> Array:
        """Not kept."""
        self.summary.refuse()

    @property
    def members(self) -> tuple[Member, ...]:
        """Not kept."""
        self.summary.refuse()

    def counts(self) -> Codes:
        """Number (J,) of the rows of each level."""
        return self.summary.counts[self.spec.key]

    def moments(self, columns: Sequence[int]) -> Moments:
        """Moments of some columns of Z, of one term."""
        return side_moments(self.spec, self.summary.sides, columns)


def side_moments(
    spec: FactorSpec, sides: Mapping[Side, Moments], columns: Sequence[int]
) -> Moments:
    """Moments of coefficients of a grouping factor that are of one term."""
    start = 0
    for side in spec.sides:
        found = sides[side]
        width = side_width(side, sides)
        if start <= columns[0] < start + width:
            return found.take([column - start for column in columns])
        start += width
    raise IndexError(columns)


def side_width(side: Side, sides: Mapping[Side, Moments]) -> int:
    """Columns of a side: the first one's moments hold the response too."""
    return len(sides[side].centre) - (side == next(iter(sides)))


class SummarisedDesign(Design):
    """What a model knows of rows that do not fit into memory: sums over them.

    It stands where a design stands; what needs rows raises DataError.

    Parameters
    ----------
    spec : Spec
    summary : Summary
        What is kept of the rows.
    products : object
        Their cross-products.
    source : Source, optional
        Where the rows can be read again. Copies keep it; pickles and files do not.
    """

    __slots__ = ("products", "source", "summary")
    summary: Summary
    products: Any
    source: Source | None

    def __init__(
        self, spec: Spec, summary: Summary, products: Any = None, source: Source | None = None
    ) -> None:
        for name, value in (
            ("source", source),
            ("spec", spec),
            ("summary", summary),
            ("products", products),
            ("random", tuple(SummarisedFactor(factor, summary) for factor in spec.random)),
            ("residual_rows", None),
            ("scale_rows", None),
            ("unobserved", None),
        ):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return SummarisedDesign, (self.spec, self.summary, self.products)

    def __copy__(self) -> SummarisedDesign:
        return self.with_source(self.source)

    def __deepcopy__(self, memo: dict[int, Any]) -> SummarisedDesign:
        copied = deepcopy((self.spec, self.summary, self.products), memo)
        return SummarisedDesign(*copied, source=self.source)

    def without_data(self) -> SummarisedDesign:
        """The same without the source of the rows."""
        return self.with_source(None)

    def with_source(self, source: Source | None) -> SummarisedDesign:
        """The same with rows that can be read again."""
        return SummarisedDesign(self.spec, self.summary, self.products, source)

    @property
    def n(self) -> int:
        """Number of rows."""
        return self.summary.n

    @property
    def n_dropped(self) -> int:
        """Number of rows dropped as incomplete."""
        return self.summary.n_dropped

    @property
    def moments(self) -> Moments:
        """Moments of the columns of X and of the response less the offset, which comes last."""
        whole = self.summary.sides[self.formula.right]
        return whole.take(np.append(self.spec.fixed.kept, True))

    @property
    def weighted(self) -> bool:
        """Whether rows have precision weights."""
        return self.spec.weights is not None or self.spec.has_errors

    @property
    def residual(self) -> BoundResidual | None:
        """Relative precision matrix of the residuals, without places of its entries."""
        return getattr(self.products, "law", None)

    @property
    def row_kinds(self) -> RowKinds:
        """The rows by the coefficients of their log standard deviations."""
        assert self.summary.scaled is not None
        return self.summary.scaled.kinds

    def by_scale(self) -> dict[int, Design]:
        """The rows of each stratum or occasion that has a standard deviation, by its place."""
        scaled, right = self.summary.scaled, self.formula.right
        assert scaled is not None
        parts: dict[int, Design] = {}
        for place, sides in scaled.sides.items():
            own = ScaledRows(kinds=scaled.kinds.of_scale(place), sides={})
            some = replace(self.summary, n=sides[right].n, sides=sides, scaled=own)
            parts[place] = SummarisedDesign(self.spec, some)
        return parts

    def restricted(self, spec: Spec, random: tuple[RandomFactor, ...]) -> Design:
        """The design with some of the grouping factors only, for predictions at new rows."""
        return SummarisedDesign(spec, self.summary)

    @property
    def sample(self) -> pd.DataFrame:
        """Some rows, with each level of each factor of the fixed effects."""
        return self.summary.sample

    @property
    def mean_offset(self) -> float:
        """Mean of the offset."""
        return self.summary.mean_offset

    def mean_of(self, variable: str) -> float:
        """Mean of a numeric variable of the fixed effects."""
        return self.summary.means[variable]

    def range_of(self, variable: str) -> tuple[float, float]:
        """Smallest and largest value of a numeric variable of the fixed effects."""
        if variable not in self.summary.ranges:
            raise DataError(
                f"The smallest and largest value of `{variable}` are withheld from the sums that "
                "the model was built from. What needs them, such as a slope, needs sums that were "
                "saved without smallest_cell=; predictions at given values do not."
            )
        return self.summary.ranges[variable]

    @property
    def mean_inverse_weight(self) -> float:
        """Mean of one over the precision weight."""
        return self.summary.mean_inverse_weight


def _not_kept(name: str) -> property:
    def refuse(self: SummarisedDesign) -> NoReturn:
        self.summary.refuse()

    refuse.__doc__ = f"The {name} of the rows, which are not kept."
    return property(refuse)


for _name in ("y", "offset", "weights", "X", "X_full", "index", "dropped", "data"):
    setattr(SummarisedDesign, _name, _not_kept(_name))
