"""The rows of a planned study: crossed and nested factors, and their variables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.exceptions import DataError
from bayeslmm.summaries.parameters import whole_number

Indices = NDArray[np.intp]

LARGEST = 10_000_000
"""Most rows of a planned study."""


def simulate_design(
    factors: Mapping[str, int | Sequence[Any]],
    *,
    between: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
    rows: int = 1,
) -> pd.DataFrame:
    """Rows of a planned study: every combination of levels, and variables of the levels.

    Parameters
    ----------
    factors : mapping of str to int or sequence
        Names of the columns that are crossed. A number is that of levels, which are named after the
        column, ``"Subject01"``; a sequence or an array holds the values themselves, such as
        ``range(10)`` or ``["before", "after"]``. A path ``"school/class"`` stands for a column
        ``class`` nested in the column ``school``, of which it comes after: each school has levels
        of its own.
    between : mapping of str to mapping, optional
        Variables by the column that they vary between: ``{"Subject": {"arm": ["a", "b"]}}`` gives
        the subjects the arms a, b, a, b, ... in turn. The values of a variable are repeated until
        every level has one, so that an array with a value for each level gives these. Several
        variables of one column are crossed where they are lists of fewer values than levels:
        the first changes fastest.
    rows : int
        Rows of each combination.

    Returns
    -------
    pandas.DataFrame
        A column for each factor and variable; the rows of a level of the first factor stand
        together. It has no response.

    Raises
    ------
    DataError
        If a name is not text, is there twice or is of no column, a column or variable has no
        levels or values, or the rows would be too many.
    ValueError
        If `rows` is not a whole number of at least 1.

    Notes
    -----
    What varies within all others is a crossed factor, such as ``"Days"``. Covariates of rows are
    columns that you add to the data frame.

    References
    ----------
    The idea is that of R's ``designr`` and ``faux::sim_design``.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> design = blm.simulate_design(
    ...     {"Subject": 4, "Days": range(3)}, between={"Subject": {"arm": ["a", "b"]}}
    ... )
    >>> print(design.head(4).to_string(index=False))
     Subject  Days arm
    Subject1     0   a
    Subject1     1   a
    Subject1     2   a
    Subject2     0   b
    >>> blm.simulate_design({"school": 2, "school/class": 3, "pupil": 5}).shape
    (30, 3)
    """
    if not isinstance(factors, Mapping) or not factors:
        raise DataError(
            f"factors={factors!r}: a mapping from names of columns to numbers of levels or to "
            "values is expected, such as {'Subject': 20, 'Days': range(10)}."
        )
    rows, between = whole_number(rows, "rows"), between or {}
    levels: dict[str, list[Any]] = {}
    parents: dict[str, str] = {}
    for path, given in factors.items():
        parent, name = _names(path, levels)
        levels[name] = _levels(name, given)
        if parent:
            parents[name] = parent
    size = rows * int(np.prod([float(len(own)) for own in levels.values()]))
    if size > LARGEST:
        raise DataError(f"The design would have {size:,} rows; {LARGEST:,} are the most.")
    frame = _crossed(levels, parents, rows)
    for name, variables in between.items():
        _add_variables(frame, levels, name, variables)
    return frame


def _names(path: Any, known: Mapping[str, Any]) -> tuple[str, str]:
    """The column that a factor is nested in, if any, and its own."""
    if not isinstance(path, str) or not path.strip():
        raise DataError(f"{path!r} is no name of a column: text is expected.")
    *above, name = (part.strip() for part in path.split("/"))
    parent = above[-1] if above else ""
    if above and parent not in known:
        raise DataError(
            f"{path!r} is nested in {parent!r}, which must come before it: "
            f"{{{parent!r}: 10, {path!r}: 4}}."
        )
    if name in known or not name:
        raise DataError(f"The column {name!r} is there twice.")
    return parent, name


def _levels(name: str, given: Any) -> list[Any]:
    if isinstance(given, str) or not np.ndim(given) <= 1 or given is None:
        raise DataError(f"{name!r}: a number of levels, or a list of values; got {given!r}.")
    if np.ndim(given) == 0 and not hasattr(given, "__len__"):
        count = whole_number(given, name, why=" as a number of levels")
        width = len(str(count))
        return [f"{name}{i:0{width}d}" for i in range(1, count + 1)]
    values = list(given)
    if not values:
        raise DataError(f"{name!r} has no values.")
    if len(set(values)) < len(values):
        raise DataError(f"{name!r} has a value twice: use rows= for several rows of each.")
    return values


def _crossed(
    levels: Mapping[str, list[Any]], parents: Mapping[str, str], rows: int
) -> pd.DataFrame:
    """Every combination, the first factor changing slowest."""
    sizes = [len(own) for own in levels.values()]
    places = np.indices((*sizes, rows)).reshape(len(sizes) + 1, -1)[:-1]
    columns = {
        name: pd.Series(own).to_numpy()[at]
        for (name, own), at in zip(levels.items(), places, strict=True)
    }
    for name, parent in parents.items():  # in the order of nesting
        joined = zip(columns[parent], columns[name], strict=True)
        columns[name] = np.array([f"{above}:{own}" for above, own in joined], dtype=object)
    return pd.DataFrame(columns)


def _add_variables(
    frame: pd.DataFrame, levels: Mapping[str, list[Any]], name: str, variables: Any
) -> None:
    """Give the levels of a column their values, in turn."""
    if name not in levels or not isinstance(variables, Mapping):
        raise DataError(
            f"between={{{name!r}: ...}}: a column of {', '.join(levels)} and its variables are "
            "expected, such as {'Subject': {'arm': ['a', 'b']}}."
        )
    codes, found = pd.factorize(frame[name])
    step = 1
    for variable, given in variables.items():
        if not isinstance(variable, str) or variable in frame:
            raise DataError(f"The variable {variable!r} of {name!r} is there twice or is no name.")
        values = [] if isinstance(given, str) or np.ndim(given) == 0 else list(given)
        if not values or len(values) > len(found):
            raise DataError(
                f"{variable!r} needs a list of at most {len(found)} values, one for each level of "
                f"{name!r} or fewer, which are given in turn; got {given!r}."
            )
        each = (np.arange(len(found)) // step) % len(values)
        frame[variable] = pd.Series(values).to_numpy()[each[codes]]
        step *= len(values) if len(values) < len(found) else 1
