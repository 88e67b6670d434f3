"""Over-parameterised fixed effects: an indicator for every level of every factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.formula.evaluation import NO_FUNCTIONS, UserFunctions
from bayeslmm.formula.matrices import Rows, as_variables, evaluate
from bayeslmm.formula.terms import Side, read_side


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class UnreducedTerm:
    """A term without contrasts.

    Attributes
    ----------
    pieces : tuple of str
        Its factors and covariates as written; none for the intercept.
    values : ndarray (n, k)
        An indicator of every combination of levels, times the covariates.
    names : tuple of str
        Of the k columns.
    """

    pieces: tuple[str, ...]
    values: NDArray[np.float64]
    names: tuple[str, ...]


def unreduced_terms(
    side: Side, frame: Rows, functions: UserFunctions = NO_FUNCTIONS
) -> list[UnreducedTerm]:
    """Evaluate a right-hand side term by term, lower orders first, without contrasts.

    Arguments as in :func:`unreduced_columns`.
    """
    variables = as_variables(frame)
    found = []
    for single in sorted(map(side.product, side.terms), key=lambda single: len(single.operands)):
        columns = evaluate(single, variables, functions)
        pieces = tuple(part.text for part in single.operands)
        found.append(UnreducedTerm(pieces=pieces, values=columns.values, names=columns.names))
    return found


def unreduced_columns(
    side: Side | str, frame: Rows, functions: UserFunctions = NO_FUNCTIONS
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Evaluate a right-hand side term by term, so that no contrasts are applied.

    Parameters
    ----------
    side : Side or str
        Fixed effects with an explicit intercept: ``"1 + x * f"``.
    frame : pandas.DataFrame or Variables
        n complete rows.
    functions : mapping of str to callable, optional
        The user's own functions.

    Returns
    -------
    values : ndarray, shape (n, k)
        Mostly not of full rank.
    names : tuple of str, length k

    Examples
    --------
    >>> unreduced_columns("1 + f", pd.DataFrame({"f": ["a", "b"]}))[1]
    ('Intercept', 'f[a]', 'f[b]')
    """
    side = read_side(side) if isinstance(side, str) else side
    found = unreduced_terms(side, frame, functions)
    if not found:
        return np.empty((len(frame), 0)), ()
    values = np.hstack([term.values for term in found])
    return values, tuple(name for term in found for name in term.names)
