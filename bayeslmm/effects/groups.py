"""Contrasts within groups of labelled quantities: stacked weights and their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.effects.contrasts import contrast_weights
from bayeslmm.effects.sources import Family

Array = NDArray[np.float64]


def text_of(value: Any) -> str:
    """A level or a number as labels show it."""
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def joined(labels: pd.DataFrame) -> list[str]:
    """Labels of several columns as one text each."""
    return [" ".join(map(text_of, row)) for row in labels.itertuples(index=False)]


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Contrasts of labelled quantities.

    Attributes
    ----------
    matrix : ndarray (c, m)
        Weights of the quantities.
    labels : pandas.DataFrame
        c rows.
    families : list of Family
        Contrasts that are adjusted together.
    """

    matrix: Array
    labels: pd.DataFrame
    families: list[Family]


def check_by(labels: pd.DataFrame, by: tuple[str, ...]) -> pd.DataFrame:
    """The columns that are not in `by`; refuse an unknown one, and having none left."""
    unknown = [name for name in by if name not in labels.columns]
    if unknown:
        raise ValueError(f"by={unknown}: columns among {', '.join(labels.columns)} are expected.")
    others = labels.drop(columns=list(by))
    if others.shape[1] == 0:
        raise ValueError("Every variable is in by=, so that there is nothing to contrast.")
    return others


def stacked(labels: pd.DataFrame, by: tuple[str, ...], method: Any, **options: Any) -> Stacked:
    """Contrasts within groups; options as in `contrast_weights`."""
    others = check_by(labels, by)
    rows: list[Array] = []
    records: list[dict[str, Any]] = []
    families: list[Family] = []
    for value, members in groups_of(labels, by):
        names = joined(others.iloc[members])
        levels = [row if len(row) > 1 else row[0] for row in others.iloc[members].values.tolist()]
        levels = [tuple(level) if isinstance(level, list) else level for level in levels]
        if len(members) < 2 and isinstance(method, str):
            raise ValueError(
                f"There is one mean only ({', '.join(names) or 'overall'}), and nothing to contrast"
                " it with."
            )
        weights, texts = contrast_weights(method, names, levels, **options)
        block = np.zeros((len(weights), len(labels)))
        block[:, members] = weights
        families.append((np.arange(len(records), len(records) + len(texts)), len(members)))
        rows.append(block)
        records += [dict(zip(by, value, strict=True)) | {"contrast": text} for text in texts]
    return Stacked(np.vstack(rows), pd.DataFrame(records), families)


def groups_of(
    labels: pd.DataFrame, by: tuple[str, ...]
) -> list[tuple[tuple[Any, ...], NDArray[np.intp]]]:
    """Places of the rows with each combination of values of `by`."""
    if not by:
        return [((), np.arange(len(labels)))]
    places: dict[tuple[Any, ...], list[int]] = {}
    for i, key in enumerate(labels[list(by)].itertuples(index=False, name=None)):
        places.setdefault(key, []).append(i)
    return [(key, np.array(members)) for key, members in places.items()]


# --- interactions ----------------------------------------------------------------------


def interaction_stacked(labels: pd.DataFrame, by: tuple[str, ...], interaction: Any) -> Stacked:
    """Contrasts of contrasts: a family for each variable that is not in `by`.

    Parameters
    ----------
    labels : pandas.DataFrame
        Of all combinations of the variables' values.
    by : tuple of str
        Columns within whose values contrasts are taken.
    interaction : str, sequence or mapping
        A method for all variables, one for each in their order, or methods by variable.

    Returns
    -------
    Stacked
        Labels with a column for each variable; one family in each group.
    """
    others = check_by(labels, by)
    methods = _methods(interaction, list(others.columns))
    rows: list[Array] = []
    records: list[dict[str, Any]] = []
    families: list[Family] = []
    for value, members in groups_of(labels, by):
        block, texts = _crossed(others.iloc[members], methods)
        wide = np.zeros((len(block), len(labels)))
        wide[:, members] = block
        families.append((np.arange(len(records), len(records) + len(block)), 0))
        rows.append(wide)
        records += [dict(zip(by, value, strict=True)) | text for text in texts]
    return Stacked(np.vstack(rows), pd.DataFrame(records), families)


def _methods(interaction: Any, names: list[str]) -> dict[str, Any]:
    """The method of each variable."""
    if isinstance(interaction, Mapping) and set(interaction) == set(names):
        return {name: interaction[name] for name in names}
    if isinstance(interaction, str):
        return dict.fromkeys(names, interaction)
    several = isinstance(interaction, Sequence) and len(interaction) == len(names)
    if isinstance(interaction, Mapping) or not several:
        raise ValueError(
            f"interaction={interaction!r}: a method, or one for each of {', '.join(names)}, is "
            "expected."
        )
    return dict(zip(names, interaction, strict=True))


def _crossed(
    labels: pd.DataFrame, methods: Mapping[str, Any]
) -> tuple[Array, list[dict[str, str]]]:
    """Products of the variables' contrasts, the first varying fastest."""
    levels = {name: list(dict.fromkeys(labels[name])) for name in methods}
    places = {
        name: np.array([levels[name].index(value) for value in labels[name]]) for name in methods
    }
    if len(labels) != int(np.prod([len(found) for found in levels.values()])):
        raise ValueError(
            "Interaction contrasts need all combinations of levels; some are not there, because a "
            "factor is nested in another."
        )
    families = {
        name: contrast_weights(method, [text_of(v) for v in levels[name]], levels[name], name)
        for name, method in methods.items()
    }
    rows, texts = [], []
    names = list(methods)
    for chosen in product(*(range(len(families[name][1])) for name in names[::-1])):
        which = dict(zip(names[::-1], chosen, strict=True))
        parts = [families[name][0][which[name]][places[name]] for name in names]
        rows.append(np.prod(parts, axis=0))
        texts.append({name: families[name][1][which[name]] for name in names})
    return np.array(rows), texts
