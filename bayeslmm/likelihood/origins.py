"""Where sums come from: which rows are in them, so that none counts twice, and what adds up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np

from bayeslmm.data.coding import covariate_levels
from bayeslmm.exceptions import DataError, listed
from bayeslmm.likelihood.parts import Part

DIGITS = 6
"""Decimals of means and root mean squares, in units of the latter, that identify sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Which rows are in sums.

    Attributes
    ----------
    name : str or None
        As the site calls them.
    rows, dropped : int
        Rows used, and dropped as incomplete.
    digest : str
        SHA-256 of counts, means and sizes of columns.
    """

    name: str | None
    rows: int
    dropped: int
    digest: str

    @property
    def words(self) -> str:
        """Name, or the beginning of the digest."""
        return self.name or f"unnamed {self.digest[:8]}"


def weights_words(part: Part) -> str:
    """Which weights a part has."""
    return "no weights" if part.weights is None else f"the weights `{part.weights}`"


# --- what adds up ----------------------------------------------------------------------


def check_models(one: Part, two: Part, names: tuple[str, str]) -> None:
    """Raise DataError unless two parts are of one model, in words that say what differs.

    Parameters
    ----------
    one, two : Part
    names : tuple of str
        What the two are called.
    """
    formulas = one.formula.source, two.formula.source
    if formulas[0] != formulas[1]:
        _differ(names, f"is of `{formulas[0]}`", f"of `{formulas[1]}`", "with one formula")
    if one.weights != two.weights:
        _differ(names, f"has {weights_words(one)}", weights_words(two), "with the same weights=")
    if set(one.functions) != set(two.functions):
        own = [listed(sorted(part.functions)) or "none" for part in (one, two)]
        _differ(names, f"has the functions {own[0]}", own[1], "with the same functions=")
    levels = [
        {name: own.astype(str).tolist() for name, own in found.items()}
        for found in map(_levels, (one, two))
    ]
    for name in levels[0]:
        mine, theirs = levels[0][name], levels[1].get(name, [])
        if mine != theirs and theirs:
            text = f"has the levels {listed(mine)} of `{name}`", listed(theirs)
            _differ(names, *text, "with the same levels=, or with like= one of them")
    if not _same_state(dict(one.summary.states), dict(two.summary.states)):
        calls = sorted(set(one.summary.states) | set(two.summary.states))
        raise DataError(
            f"{names[0]} and {names[1]} cannot be added: {listed(calls)} remembers other values in "
            "each. Make all parts with like= one of them, so that they share its centres, scales "
            "and knots."
        )


def _levels(part: Part) -> dict[str, Any]:
    return covariate_levels(part.formula, part.summary.sample, part.functions)


def _differ(names: tuple[str, str], mine: str, theirs: str, remedy: str) -> None:
    raise DataError(
        f"The parts cannot be added: {names[0]} {mine}, and {names[1]} {theirs}. Make all parts "
        f"{remedy}."
    )


def _same_state(one: Any, two: Any) -> bool:
    """Whether transforms remember the same, number for number."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same_state(one[k], two[k]) for k in one)
    if is_dataclass(one):
        return bool(one == two)
    return bool(np.array_equal(one, two))


def check_distinct(first: Sequence[Origin], second: Sequence[Origin], *, allow_equal: bool) -> None:
    """Raise DataError for rows that would count twice."""
    known = {origin.digest: origin for origin in first}
    named = {origin.name: origin for origin in first if origin.name is not None}
    for origin in second:
        same = known.get(origin.digest)
        if same is not None and not allow_equal:
            raise DataError(
                f"{same.words} and {origin.words} have the same sums over {origin.rows} rows, "
                "which would count twice. Leave one out; if they are different rows all the same, "
                "add them with CrossProducts.total(parts, allow_equal=True)."
            )
        if same is None and origin.name in named:
            raise DataError(
                f"Two parts are called {origin.name}, of {named[origin.name].rows} and "
                f"{origin.rows} rows: versions of the same data, or two sites. Leave one out, or "
                "make one with another name=."
            )


def digest(part: Part) -> str:
    """SHA-256 of what identifies sums, in whatever order and batches their rows were read.

    It is made of what all files of the part have, so that it tells nothing more.
    """
    summary = part.summary
    found: list[str] = [part.formula.source, str(part.weights)]
    found += [str(summary.n), str(summary.n_dropped)]
    for seen, counts in zip(part.levels, summary.counts.values(), strict=True):
        found += [json.dumps(seen.factor.levels.tolist()), str(counts.tolist())]
    for side, names in part.layout.names.items():
        moments = summary.sides[side]
        sizes = moments.root_mean_squares
        means = np.round(moments.means / np.where(sizes > 0, sizes, 1.0), DIGITS) + 0.0
        found += [*names, *(f"{mean:.{DIGITS}f}" for mean in means)]
        found += [f"{size:.{DIGITS}e}" for size in sizes]
        found.append(str(moments.filled.tolist()))
    return hashlib.sha256("\n".join(found).encode("utf-8", "surrogatepass")).hexdigest()
