"""Columns of a data frame in the few forms that a model matrix is built from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.column_types import EXACT, kind_of, level_order, plain, refused, to_floats
from bayeslmm.exceptions import DataError

MOST_COLUMNS = 10_000
"""Columns of one model matrix."""

MOST_LEVELS = 5_000
"""Levels of a factor of a model matrix; grouping factors have as many as they like."""


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """An operand of a model matrix on other data.

    Attributes
    ----------
    label : str
    kind : str
        "categorical" or "numerical", when the model was built.
    levels : sequence or None
        The levels that it had.
    values : array-like (n,) or (n, k)
        Its values on the other data.
    is_factor : bool
        Whether these are levels.
    """

    label: str
    kind: str
    levels: Sequence[Any] | None
    values: Any
    is_factor: bool


class Variables(Mapping[str, pd.Series]):
    """The columns of a data frame as formulas read them, each normalised once, when it is read.

    Numbers of any type become float64, truth values bool, strings objects; unused categories are
    dropped. Every column has a range index.

    Parameters
    ----------
    frame : pandas.DataFrame
        n rows, any index.
    known : mapping of str to Series, optional
        Columns that are normalised already.
    """

    def __init__(self, frame: pd.DataFrame, known: Mapping[str, pd.Series] | None = None) -> None:
        self.frame = frame
        self.n = len(frame)
        self._read = dict(known or {})

    def __getitem__(self, name: str) -> pd.Series:
        """One column; DataError for whole numbers that floats cannot tell apart."""
        if name not in self._read:
            column = self.frame[name]
            self._read[name] = _normalised(pd.Series(column.array, name=name, copy=False))
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, self.frame.columns))

    def __len__(self) -> int:
        return self.frame.shape[1]

    def require(self, names: Iterable[str]) -> None:
        """Raise DataError for names that are no columns, or columns that cannot be normalised."""
        names = sorted(names)
        absent = [name for name in names if name not in self.frame.columns]
        if absent:
            raise DataError(
                f"{listed(absent)} not found in the data; the columns are "
                f"{listed(sorted(map(str, self.frame.columns)))}."
            )
        for name in names:
            self[name]

    def check_kinds(self, names: Iterable[str]) -> None:
        """Raise DataError for a column among `names` that is neither numeric nor a factor."""
        for name in names:
            kind = kind_of(self[name])
            if kind in ("dates or times", "intervals"):
                raise DataError(
                    f"`{name}` must be converted from {kind} to numbers. To make it a factor, "
                    f"write C({name})."
                )

    def categories(self, names: Iterable[str]) -> dict[str, pd.Index]:
        """Return the categories of each categorical column among `names`."""
        return {
            name: self[name].cat.categories
            for name in names
            if isinstance(self[name].dtype, pd.CategoricalDtype)
        }

    def conform(self, categories: Mapping[str, pd.Index]) -> Variables:
        """Give columns the categories of earlier data; values outside them become missing."""
        if not categories:
            return self
        known = dict(self._read)
        for name, levels in categories.items():
            values = pd.Index(self[name].to_numpy(dtype=object), dtype=object, tupleize_cols=False)
            codes = levels.get_indexer(values)
            known[name] = pd.Series(pd.Categorical.from_codes(codes, categories=levels))
        return Variables(self.frame, known)

    def to_frame(self, names: Iterable[str]) -> pd.DataFrame:
        """Some columns as a data frame with a range index."""
        return pd.DataFrame({name: self[name] for name in names}, index=pd.RangeIndex(self.n))


def _normalised(column: pd.Series) -> pd.Series:
    if column.dtype == np.float64:
        return column
    column = plain(column)
    kind = kind_of(column)
    if kind == "numbers" and not refused(column):
        return to_floats(column)  # whole numbers wrap around: 3 - 5 is 254 in eight bits
    if kind == "categories":
        return column.cat.remove_unused_categories()
    if kind == "truth values":
        return column.astype(object if column.isna().any() else bool)
    if kind == "mixed values":
        return _categorical(column)
    return column.astype(object) if kind == "text" else column


def _categorical(column: pd.Series) -> pd.Series:
    """Levels of mixed kinds, in an order that pandas does not have."""
    codes, found = pd.factorize(column)
    order = level_order(found)
    place = np.append(np.argsort(order), -1)
    categories = pd.Index(found.to_numpy()[order], dtype=object, tupleize_cols=False)
    return pd.Series(pd.Categorical.from_codes(place[codes], categories))


def whole_numbers(values: Any) -> Any:
    """Levels that are whole numbers as integers, so that labels do not say ``2.0``."""
    if not isinstance(values, pd.Series) or values.dtype != np.float64:
        return values
    whole = (values == np.rint(values)) & (np.abs(values) < EXACT)
    return values.astype(np.int64) if whole.all() else values


def is_marked(values: Any) -> bool:
    """Tell whether values come with formulaic's notes about them."""
    return hasattr(values, "__formulaic_metadata__")


def unwrapped(values: Any) -> Any:
    """Values without formulaic's notes about them."""
    return values.__wrapped__ if is_marked(values) else values


def holds_levels(values: Any) -> bool:
    """Tell whether values are levels (strings, booleans, categories) and not numbers."""
    dtype = getattr(values, "dtype", None)
    if not isinstance(values, pd.Series | pd.Categorical | np.ndarray):
        return False
    if isinstance(dtype, np.dtype):
        return dtype.kind in "bOSU"
    return (
        isinstance(dtype, pd.CategoricalDtype)
        or pd.api.types.is_string_dtype(dtype)
        or pd.api.types.is_bool_dtype(dtype)
    )


def outside(values: Any, known: Iterable[Any]) -> list[Any]:
    """List the distinct values, in order of appearance, that are not among `known`."""
    allowed = set(known)
    found = pd.Series(values).dropna().unique().tolist()
    return [value for value in found if value not in allowed]


# --- what a model matrix may be -----------------------------------------------------------


def check_levels(label: str, count: int) -> None:
    """Raise ValueError for a factor with too many levels."""
    if count > MOST_LEVELS:
        raise ValueError(
            f"the factor `{label}` has {count} levels, and one of a model matrix may have "
            f"{MOST_LEVELS}; a grouping factor, (1 | group), may have more"
        )


def check_columns(before: int, sizes: Iterable[int]) -> int:
    """Add the columns of a product to a count; raise ValueError for too many."""
    count = before + math.prod(sizes)
    if count > MOST_COLUMNS:
        raise ValueError(
            f"these terms have more than {MOST_COLUMNS} columns; a combination of factors with "
            "many levels is a grouping factor, (1 | f1:f2)"
        )
    return count


def as_numbers(values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    """Columns (n, k) in double precision; DataError if they are no numbers, or not finite."""
    if values.dtype.kind not in "biufO":
        raise DataError(f"{listed(names)} must be numeric or a factor, got {values.dtype} values.")
    try:
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{listed(names)} cannot be made numeric: {error}") from error
    check_finite(values, names)
    return values


def undefined(label: str) -> str:
    """Say that an operand is missing in some rows."""
    return f"`{label}` is missing or undefined (NaN) in some rows."


def not_evaluated(reason: str, columns: Variables, variables: Iterable[str]) -> str:
    """Say why a model matrix cannot be built."""
    used = columns.to_frame(sorted(variables))
    times = list(used.select_dtypes(["datetime", "datetimetz", "timedelta"]).columns)
    hint = f" {listed(times)} must be converted from dates or times to numbers." if times else ""
    return f"The columns of the model cannot be evaluated on these data: {reason}{hint}"


def check_finite(values: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise DataError for the first column of `values` (n, k) that is not finite."""
    bad = ~np.isfinite(values)
    if bad.any():
        column = int(bad.any(axis=0).argmax())
        rows = np.flatnonzero(bad[:, column])
        raise DataError(
            f"`{names[column]}` is missing, undefined or infinite in {rows.size} of "
            f"{len(values)} rows (first at position {rows[0]})."
        )


def listed(values: Iterable[Any]) -> str:
    """Join names or levels for a message."""
    return ", ".join(f"`{value}`" for value in values)
