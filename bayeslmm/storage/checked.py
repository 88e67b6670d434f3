"""Values of a file, refused where they cannot be those of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.frames import read_only
from bayeslmm.exceptions import StorageError
from bayeslmm.storage.frames import Stored


def check_fit(right: bool, what: str) -> None:
    """Raise StorageError where a part of a file does not fit the rest."""
    if not right:
        raise StorageError(
            f"The {what} of the saved model or sums do not fit the rest: the file was not written "
            "by save(), or the installed libraries read it otherwise. Load it with the versions it "
            "was saved with."
        )


def checked_texts(values: Sequence[Any]) -> tuple[str, ...]:
    """Labels, each once."""
    check_fit(len(set(values)) == len(values) and all(isinstance(v, str) for v in values), "labels")
    return tuple(values)


def checked_array(arrays: Stored, name: str, shape: tuple[int, ...], kind: str) -> NDArray[Any]:
    """An array of a shape and kind of dtype."""
    array = arrays[name]
    check_fit(array.shape == shape and array.dtype.kind == kind, f"numbers {name}")
    return read_only(array)


def checked_numbers(arrays: Stored, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """An array of finite numbers in double precision."""
    array = checked_array(arrays, name, shape, "f")
    check_fit(array.dtype == np.float64 and bool(np.isfinite(array).all()), f"numbers {name}")
    return array


def checked_weights(arrays: Stored, n: int) -> NDArray[np.float64] | None:
    """Positive precision weights (n,); None where the file has none."""
    if "weights" not in arrays:
        return None
    weights = checked_numbers(arrays, "weights", (n,))
    check_fit(bool((weights > 0.0).all()), "weights")
    return weights


def checked_positions(arrays: Stored, name: str) -> NDArray[np.intp]:
    """Positions of rows, rising."""
    rows = arrays[name]
    rising = np.all(np.diff(rows) > 0) and np.all(rows[:1] >= 0)
    check_fit(rows.ndim == 1 and rows.dtype.kind == "i" and bool(rising), "dropped rows")
    return read_only(rows.astype(np.intp))
