"""The terms of the fixed part in over-parameterised form, of rows or of sums over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.variables import varied_rows
from bayeslmm.exceptions import DataError
from bayeslmm.formula.matrices import Rows, evaluate, unreduced_terms
from bayeslmm.formula.terms import Side

Array = NDArray[np.float64]

FILLED = 1e-9
"""Length of a column over that of its whole term from which some row is in its combination."""

SPANNED = 1e-9
"""Share of a column's length that may lie outside the span of the model's columns."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Term:
    """A term of the fixed part.

    Attributes
    ----------
    label : str
        As written, such as ``"age:Sex"``.
    factors, covariates : frozenset of str
        Its pieces that are factors and those that are numeric.
    columns : ndarray (m, k)
        An indicator of every combination of levels, times the covariates; less their means for
        covariates beside an intercept, which changes no hypothesis about a term.
    empty : tuple of str
        Combinations of levels of several factors that no row has.
    """

    label: str
    factors: frozenset[str]
    covariates: frozenset[str]
    columns: Array
    empty: tuple[str, ...] = ()

    def contained_in(self, other: Term) -> bool:
        """Whether the other has the same covariates and all its factors and more (SAS)."""
        return self.covariates == other.covariates and self.factors < other.factors


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FixedPart:
    """The terms of the fixed part beside its columns.

    Attributes
    ----------
    terms : list of Term
        Lower orders first.
    X : ndarray (m, p)
        Columns of the fixed effects: in all rows, or in few dimensions with the lengths and angles
        that they and those of the terms have in all rows.
    ones : ndarray (m,)
        The constant.
    n : int
        Number of rows.
    has_constant : bool
        Whether it is a column of the model.
    """

    terms: list[Term]
    X: Array
    ones: Array
    n: int
    has_constant: bool


def fixed_part(design: Design) -> FixedPart:
    """The terms of the fixed part, in over-parameterised form.

    Raises
    ------
    DataError
        If only sums over rows are kept, from which the columns of the terms do not follow.
    """
    if isinstance(design, SummarisedDesign):
        return _of_sums(design)
    frame, functions, right = design.data, design.spec.functions, design.formula.right
    written = unreduced_terms(right, frame, functions)
    texts = {text for pieces, _ in written for text in pieces}
    single = {text: evaluate(f"0 + {text}", frame, functions).values for text in texts}
    found = [(pieces, term.names, term.values) for pieces, term in written]
    return FixedPart(
        terms=_terms(found, single, np.ones(design.n)),
        X=design.X,
        ones=np.ones(design.n),
        n=design.n,
        has_constant="Intercept" in design.coefs,
    )


Written = tuple[tuple[str, ...], tuple[str, ...], Array]
"""Pieces of a term, and names and values of its columns."""


def _terms(written: Sequence[Written], single: dict[str, Array], ones: Array) -> list[Term]:
    """Terms from their columns; `single` has those of each piece in any rows."""
    categorical = {text for text, columns in single.items() if _is_indicators(columns)}
    centred = any(not pieces for pieces, _, _ in written)
    found = []
    for pieces, names, columns in written:
        parts = frozenset(pieces)
        factors, covariates = parts & categorical, parts - categorical
        if centred and covariates and not factors:
            columns = columns - np.outer(ones, ones @ columns / (ones @ ones))
        lengths = np.linalg.norm(columns, axis=0)
        filled = lengths > FILLED * np.linalg.norm(lengths)
        pairs = zip(names, filled, strict=True)
        found.append(
            Term(
                label=":".join(pieces) or "Intercept",
                factors=factors,
                covariates=covariates,
                columns=columns,
                empty=tuple(name for name, there in pairs if len(factors) > 1 and not there),
            )
        )
    return found


def _is_indicators(columns: Array) -> bool:
    """Whether columns are those of a factor without contrasts: one of them is one in each row."""
    inside = np.isin(columns, (0.0, 1.0)).all()
    return columns.shape[1] > 1 and bool(inside) and bool(np.all(columns.sum(axis=1) == 1.0))


# --- from sums over rows ---------------------------------------------------------------


def _of_sums(design: SummarisedDesign) -> FixedPart:
    """Columns of the terms as combinations of those of the model, whose lengths are known.

    The combinations are the same in any rows; they are found in made-up ones.
    """
    right, summary = design.formula.right, design.summary
    moments = summary.sides[right]
    singles = {
        part.text: _values(f"0 + {part.text}", design.sample, design) for part in right.operands
    }
    widths = [v.shape[1] for v in singles.values() if not _is_indicators(v)]
    frame = varied_rows(design, 2 + int(np.prod([1 + width for width in widths])))
    columns = design.spec.rows(frame, random="none").X_full
    written = unreduced_terms(right, frame, design.spec.functions, dict(summary.states))
    values = np.hstack([term.values for _, term in written])
    combine = _combinations(design, columns, values)
    known = moments.columns[:, :-1]
    parts = np.split(known @ combine, np.cumsum([len(t.names) for _, t in written])[:-1], axis=1)
    found = [(p, t.names, part) for (p, t), part in zip(written, parts, strict=True)]
    return FixedPart(
        terms=_terms(found, singles, moments.ones),
        X=known[:, design.spec.fixed.kept],
        ones=moments.ones,
        n=design.n,
        has_constant="Intercept" in design.coefs,
    )


def _values(side: Side | str, frame: Rows, design: SummarisedDesign) -> Array:
    return evaluate(side, frame, design.spec.functions, dict(design.summary.states)).values


def _combinations(design: SummarisedDesign, columns: Array, wanted: Array) -> Array:
    """Weights of `columns` (m, k) that give those wanted (m, l), where rows are varied enough."""
    sizes = np.linalg.norm(columns, axis=0)
    scaled = columns / np.where(sizes > 0, sizes, 1.0)
    combine = np.linalg.lstsq(scaled, wanted)[0]
    lengths = np.linalg.norm(wanted, axis=0)
    lost = np.linalg.norm(scaled @ combine - wanted, axis=0) > SPANNED * lengths
    kept = scaled[:, design.spec.fixed.kept]
    if lost.any() or np.linalg.matrix_rank(kept) < kept.shape[1]:
        raise DataError(
            f"Columns of the terms of {design.formula.source!r} do not follow from sums over rows: "
            "tests of terms need a model of a data frame in memory here. Tests of coefficients "
            "need none: contest() and hypothesis()."
        )
    return combine / np.where(sizes > 0, sizes, 1.0)[:, None]
