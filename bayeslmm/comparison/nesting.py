"""Whether the likelihoods of two models can be compared, and whether one contains the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design

Array = NDArray[np.float64]

TOLERANCE = 1e-7
"""Share of a column's or matrix's norm that may lie outside the span of the larger model's."""

MAX_ROWS = 300
"""Rows on which covariance structures are compared."""


def check_same_data(first: Design, second: Design) -> None:
    """Refuse models of different data.

    Parameters
    ----------
    first, second : Design
        The designs of two models.

    Raises
    ------
    ValueError
        If the number of rows, the response or the weights differ.
    """
    if first.n != second.n:
        raise ValueError(
            f"The models use different data: {_rows(first)}, {_rows(second)}. Drop the rows that "
            "are incomplete in any of the variables first, then fit all models to the rest."
        )
    if not np.allclose(first.y, second.y, rtol=1e-12, atol=0.0):
        raise ValueError(
            f"The models have different responses: {first.response} in {_quoted(first)} and "
            f"{second.response} in {_quoted(second)}, or their rows are in another order."
        )
    if not np.allclose(_weights(first), _weights(second), rtol=1e-12, atol=0.0):
        raise ValueError(f"{_quoted(first)} and {_quoted(second)} have different weights.")


def check_same_fixed(first: Design, second: Design) -> None:
    """Refuse models with different X, whose restricted likelihoods are those of different data.

    Raises
    ------
    ValueError
        If the columns are not the same.
    """
    same = set(first.coefs) == set(second.coefs)
    if same:
        order = [second.coefs.index(coef) for coef in first.coefs]
        same = np.allclose(first.X, second.X[:, order], rtol=1e-12, atol=0.0)
    if not same:
        raise ValueError(
            "Restricted likelihoods of models with different fixed effects cannot be compared: "
            f"{', '.join(first.coefs)} in {_quoted(first)} and {', '.join(second.coefs)} in "
            f"{_quoted(second)}. Refit both with ml() in place of reml()."
        )


def check_nested(small: Design, large: Design) -> None:
    """Refuse a pair of models of which the first is no special case of the second.

    Covariance structures of more than `MAX_ROWS` rows are compared on some of them, so that a
    difference which shows nowhere else can be missed, but nested models never refused.

    Parameters
    ----------
    small, large : Design
        Designs of the same data.

    Raises
    ------
    ValueError
        Saying which part is not nested.
    """
    shift = (small.offset - large.offset)[:, None]
    if not _in_span(np.hstack([small.X, shift]), large.X):
        raise ValueError(_message("fixed", small, large))
    rows = _some_rows([small, large])
    inner, outer = (np.column_stack(list(_directions(d, rows))) for d in (small, large))
    if not _in_span(inner, outer):
        raise ValueError(_message("random", small, large))


def _in_span(columns: Array, basis: Array) -> bool:
    basis = basis / np.maximum(np.linalg.norm(basis, axis=0), np.finfo(float).tiny)
    size = np.linalg.norm(columns, axis=0)
    solution = np.linalg.lstsq(basis, columns, rcond=None)[0]
    outside = np.linalg.norm(columns - basis @ solution, axis=0)
    return bool(np.all(outside <= TOLERANCE * size))


def _directions(design: Design, rows: NDArray[np.intp]) -> Iterator[Array]:
    """Upper triangles of the matrices whose combinations are the covariances of the response."""
    upper = np.triu_indices(len(rows))
    yield np.diag(1.0 / _weights(design)[rows])[upper]
    for factor in design.random:
        codes, Z = factor.codes[rows], factor.Z[rows]
        same = codes[upper[0]] == codes[upper[1]]
        for block in factor.blocks:
            for i, a in enumerate(block):
                for b in block[: i + 1]:
                    product = Z[upper[0], a] * Z[upper[1], b] + Z[upper[0], b] * Z[upper[1], a]
                    yield product * same


def _some_rows(designs: Sequence[Design]) -> NDArray[np.intp]:
    """Rows of whole levels of every grouping factor, as many as fit."""
    n = designs[0].n
    if n <= MAX_ROWS:
        return np.arange(n)
    factors = {factor.name: factor for design in designs for factor in design.random}
    rng = np.random.default_rng(0)
    chosen = [
        np.argsort(rng.permutation(factor.n_levels)[factor.codes], kind="stable")[
            : MAX_ROWS // len(factors)
        ]
        for factor in factors.values()
    ]
    return np.unique(np.concatenate(chosen))


def _weights(design: Design) -> Array:
    return np.ones(design.n) if design.weights is None else design.weights


def _rows(design: Design) -> str:
    dropped = len(design.dropped)
    note = f" ({dropped} incomplete rows dropped)" if dropped else ""
    return f"{_quoted(design)} has {design.n} rows{note}"


def _quoted(design: Design) -> str:
    return f"`{design.formula.source}`"


def _message(part: str, small: Design, large: Design) -> str:
    return (
        f"The models are not nested: the {part} effects of {_quoted(small)} are no special case of "
        f"those of {_quoted(large)}, so there is no likelihood-ratio test between them. Compare "
        "their AIC or BIC, or their posteriors by cross-validation."
    )
