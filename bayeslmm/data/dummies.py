"""Over-parameterised fixed effects: an indicator for every level of every factor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.formula.formulaic_seam import (
    NO_FUNCTIONS,
    UserFunctions,
    check_terms,
    evaluate,
    tokens,
)


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
    rhs: str, frame: pd.DataFrame, functions: UserFunctions = NO_FUNCTIONS
) -> list[UnreducedTerm]:
    """Evaluate a right-hand side term by term, lower orders first, without contrasts.

    Arguments as in :func:`unreduced_columns`.
    """
    factors = factors_as_written(rhs)
    found = []
    for pieces in sorted((as_written(term, factors) for term in check_terms(rhs)), key=len):
        columns = evaluate(f"0 + {':'.join(pieces)}" if pieces else "1", frame, functions)
        term = UnreducedTerm(pieces=tuple(pieces), values=columns.values, names=columns.names)
        found.append(term)
    return found


def unreduced_columns(
    rhs: str, frame: pd.DataFrame, functions: UserFunctions = NO_FUNCTIONS
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Evaluate a right-hand side term by term, so that no contrasts are applied.

    Parameters
    ----------
    rhs : str
        Fixed effects with an explicit intercept: ``"1 + x * f"``.
    frame : pandas.DataFrame
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
    found = unreduced_terms(rhs, frame, functions)
    if not found:
        return np.empty((len(frame), 0)), ()
    values = np.hstack([term.values for term in found])
    return values, tuple(name for term in found for name in term.names)


def factors_as_written(rhs: str) -> dict[str, str]:
    """From each factor as formulaic names it to its text, in the order of appearance."""
    texts = [token.text for token in tokens(rhs) if token.kind in ("name", "python")]
    return {check_terms(f"0 + {text}")[0]: text for text in texts}


def as_written(term: str, factors: dict[str, str]) -> list[str]:
    """The factors of a term in the order of the formula and quoted as there; none for "1"."""
    found, piece = set(), ""
    for part in term.split(":"):
        piece = f"{piece}:{part}" if piece else part
        if piece in factors:
            found.add(piece)
            piece = ""
    return [text for name, text in factors.items() if name in found]
