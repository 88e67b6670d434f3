"""Tables of pinned figures: to JSON, and compared with what was stored."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from pin_posteriors import shorten

Table = dict[str, Any]
"""Keys index (labels) and columns (values by name); null for NaN."""

CLOSE = 1e-6
"""Relative difference of exact figures.

The optimum is found to rounding: shuffled rows and other units of the response change estimates by
1e-12, degrees of freedom by 1e-9. Another search that stops where the criterion is within 1e-10 of
its optimum stays within 1e-6 in what depends on it smoothly.
"""

DIFFERENCED = 1e-5
"""The same of what rests on the curvature of the criterion, which may be differenced.

Degrees of freedom that are whole numbers, as in balanced designs, were within 3e-7 of them.
"""

OF_CURVATURE = frozenset({"df", "den_df", "std_error", "conf_low", "conf_high"})
"""Columns that may. Standard errors of fixed effects do not: `vcov` has them too."""

SINGULAR = 1e-5
"""The same at a boundary with a free direction: there shuffled rows change degrees of freedom by
1e-7."""

SMALL = 0.1
"""A figure near zero may be off by this share of what the largest of its column may be off by."""

P_CLOSE = 1e-3
"""Relative difference of p-values, which magnify a difference of t by t^2."""

P_LEAST = 1e-30
"""p-values below are not told apart."""


def thin(table: pd.DataFrame | pd.Series, rows: int = 12) -> pd.DataFrame | pd.Series:
    """At most so many rows, equally spaced."""
    positions = np.unique(np.linspace(0, len(table) - 1, min(rows, len(table))).round().astype(int))
    return table.iloc[positions]


def as_table(values: pd.DataFrame | pd.Series | Mapping[str, Any], *, digits: bool = True) -> Table:
    """A frame, a series or figures by name, as JSON has them."""
    if isinstance(values, Mapping):
        values = pd.Series(values)
    frame = values.to_frame("value") if isinstance(values, pd.Series) else values
    return {
        "index": [_label(label) for label in frame.index],
        "columns": {
            str(name): [_value(v, digits=digits) for v in column] for name, column in frame.items()
        },
    }


def _label(label: Any) -> str:
    parts = label if isinstance(label, tuple) else (label,)
    return ", ".join(f"{p:.10g}" if isinstance(p, float) else str(p) for p in parts)


def _value(value: Any, *, digits: bool) -> Any:
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, float | int | np.number):
        number = float(value)
        if math.isnan(number):
            return None
        return shorten(number) if digits and math.isfinite(number) else number
    return None if value is None or value is pd.NA else str(value)


def differences(new: Mapping[str, Table], old: Mapping[str, Table], close: float) -> list[str]:
    """What is missing, and figures that differ by more than `close`, in words."""
    return [
        line for name, table in old.items() for line in _differ(name, new.get(name), table, close)
    ]


def _differ(name: str, new: Table | None, old: Table, close: float) -> Iterator[str]:
    if new is None:
        yield f"{name}: missing"
        return
    if new["index"] != old["index"]:
        yield f"{name}: rows {new['index']}, not {old['index']}"
        return
    for column, values in old["columns"].items():
        if column not in new["columns"]:
            yield f"{name}: no column {column}"
            continue
        size = _largest(values)
        for label, one, two in zip(old["index"], new["columns"][column], values, strict=True):
            if not _same(one, two, column, size, close):
                yield f"{name}[{label}, {column}]: {one!r}, not {two!r}"


def _largest(values: Sequence[Any]) -> float:
    return max((abs(v) for v in values if isinstance(v, float) and math.isfinite(v)), default=0.0)


def _same(one: Any, two: Any, column: str, size: float, close: float) -> bool:
    if not isinstance(one, float) or not isinstance(two, float):
        return bool(one == two)
    if column == "p_value":
        return math.isclose(max(one, P_LEAST), max(two, P_LEAST), rel_tol=P_CLOSE)
    if column in OF_CURVATURE:
        close = max(close, DIFFERENCED)
    return math.isclose(one, two, rel_tol=close, abs_tol=SMALL * close * size)
