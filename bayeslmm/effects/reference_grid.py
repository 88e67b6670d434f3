"""What marginal means are averages over: the reference grid in words, and factors in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.groups import text_of
from bayeslmm.effects.variables import Variables
from bayeslmm.summaries.text import frame_text, html_page, listed

Array = NDArray[np.float64]
Nests = dict[str, tuple[str, ...]]
"""Factors that are nested, with those that they are nested in."""

SHOWN = 12
"""Values of a variable that are shown."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True, repr=False)
class ReferenceGrid:
    """The combinations of values that marginal means are averages of; prints as a table.

    Attributes
    ----------
    frame : pandas.DataFrame
        One row per combination: the values of all variables of the fixed part, and `weight`, which
        is scaled to a sum of one within each mean.
    variables : pandas.DataFrame
        One row per variable: its kind, its values, and what becomes of it: "told apart",
        "averaged over" or "held".
    weights : str
        How levels that are averaged over count.
    notes : tuple of str
        Interactions with what is averaged over or held, and factors nested in others.
    """

    frame: pd.DataFrame
    variables: pd.DataFrame
    weights: str
    notes: tuple[str, ...] = ()

    def _heading(self) -> str:
        return f"Reference grid of {len(self.frame)} combinations, weights {self.weights!r}"

    def __repr__(self) -> str:
        table = self.variables.reset_index()
        text = (
            frame_text(table.set_axis([""] * len(table), axis=0))
            if len(table)
            else "(no variables)"
        )
        return "\n".join([self._heading(), text, *self.notes])

    def _repr_html_(self) -> str:
        return html_page(self._heading(), self.variables, self.notes)


def reference_grid(
    design: Design,
    known: Variables,
    values: Mapping[str, list[Any]],
    wanted: Sequence[str],
    frame: pd.DataFrame,
    weights: str,
    nests: Nests,
) -> ReferenceGrid:
    """Describe a reference grid.

    Parameters
    ----------
    design : Design
        The design of the model.
    known : Variables
        Its factors and covariates.
    values : mapping of str to list
        Values of the grid.
    wanted : sequence of str
        Variables that are told apart.
    frame : pandas.DataFrame
        The grid with its weights.
    weights : str
        How they were found.
    nests : mapping of str to tuple of str
        Factors nested in others.
    """
    rows = {}
    for name, found in values.items():
        held = "held" if len(found) == 1 else "averaged over"
        rows[name] = {
            "kind": "factor" if name in known.levels else "covariate",
            "values": _values_text(found),
            "use": "told apart" if name in wanted else held,
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "values", "use"])
    notes = [
        f"{name} is nested in {listed(list(inside))}: only combinations in the data are there."
        for name, inside in nests.items()
    ]
    return ReferenceGrid(
        frame=frame,
        variables=table.rename_axis("variable"),
        weights=weights,
        notes=(*notes, *_interactions(design, values, wanted, nests)),
    )


def _values_text(values: Sequence[Any]) -> str:
    texts = [text_of(value) for value in values[:SHOWN]]
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return ", ".join(texts) + more


def _interactions(
    design: Design, values: Mapping[str, list[Any]], wanted: Sequence[str], nests: Nests
) -> list[str]:
    """Say so where a variable that is told apart interacts with one that is not."""
    right = design.formula.right
    partners: dict[str, list[str]] = {}
    for term in right.terms:
        names = right.product(term).variables
        for name in [n for n in wanted if n in names]:
            others = [n for n in values if n in names and n not in wanted]
            others = [n for n in others if name not in nests.get(n, ())]
            found = partners.setdefault(name, [])
            found += [other for other in others if other not in found]
    notes = []
    for name, others in partners.items():
        if others:
            words = [
                f"{n} (held at {text_of(values[n][0])})" if len(values[n]) == 1 else n
                for n in others
            ]
            notes.append(
                f"{name} interacts with {listed(words)}, not told apart here: results may mislead."
            )
    return notes


# --- nesting -----------------------------------------------------------------------------


def nesting(design: Design, known: Variables) -> Nests:
    """Factors each of whose levels occurs with one level of another, and is in no term without it.

    Found from rows in memory only; elsewhere means of combinations that are not there are NaN.
    """
    if isinstance(design, SummarisedDesign) or len(known.levels) < 2:
        return {}
    right = design.formula.right
    terms = [right.product(term).variables for term in right.terms]
    found: Nests = {}
    for inner, outer in permutations(known.levels, 2):
        together = [outer in names for names in terms if inner in names]
        if len(known.levels[inner]) <= len(known.levels[outer]) or not all(together):
            continue
        pairs = design.data[[inner, outer]].drop_duplicates()
        if len(pairs) == len(known.levels[inner]):
            found[inner] = (*found.get(inner, ()), outer)
    return found


def containers(nests: Nests, wanted: Sequence[str]) -> list[str]:
    """Factors that those wanted are nested in and that are not wanted themselves."""
    outer = [name for inner in wanted for name in nests.get(inner, ())]
    return [name for name in dict.fromkeys(outer) if name not in wanted]


def existing(design: Design, nests: Nests, frame: pd.DataFrame) -> Array:
    """One for the rows (n,) of a grid whose nested levels are in the data so, zero for others."""
    result = np.ones(len(frame))
    for inner, outer in nests.items():
        names = [inner, *outer]
        there = set(design.data[names].astype(object).itertuples(index=False, name=None))
        keys = frame[names].astype(object).itertuples(index=False, name=None)
        result *= np.array([key in there for key in keys], dtype=float)
    return result


def existing_labels(design: Design, nests: Nests, labels: pd.DataFrame) -> NDArray[np.bool_]:
    """Which labels (m,) of means are of combinations that are there."""
    named = {
        inner: tuple(name for name in outer if name in labels)
        for inner, outer in nests.items()
        if inner in labels
    }
    return existing(design, named, labels) > 0
