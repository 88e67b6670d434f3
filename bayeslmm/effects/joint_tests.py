"""Joint tests of the terms of a model by contrasts of marginal means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.grid import check_known, mean_combinations
from bayeslmm.effects.groups import groups_of, interaction_stacked
from bayeslmm.effects.quantities import names_of
from bayeslmm.effects.sources import Combinations, EstimateSource, PosteriorSource, Source
from bayeslmm.effects.tests_of_fixed import f_test, noted
from bayeslmm.effects.variables import variables_of
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]

RANK = 1e-8
"""Eigenvalue of the correlations of draws over the largest one that counts as zero."""


def joint_tests(
    design: Design,
    source: Source,
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    weights: Any = "equal",
) -> pd.DataFrame:
    """Joint tests of all terms; arguments as in ``fit.joint_tests()``.

    Returns
    -------
    pandas.DataFrame
        One row per term and combination of values of `by`.
    """
    known, groups = variables_of(design), names_of(by)
    check_known([*groups, *(at or {})], known.names, "joint_tests()")
    chosen = dict(at or {})
    centres = {name: c for name, c in known.centres.items() if name not in {*groups, *chosen}}
    spread = {name: _two_values(design, name, c) for name, c in centres.items()}
    rows: list[dict[str, Any]] = []
    lost: list[str] = []
    terms = _variables_of_terms(design)
    for names in _terms(terms, [name for name in known.names if name not in groups]):
        beside = _beside(design, terms, names)
        values = {name: two for name, two in spread.items() if name in beside} | chosen
        means, _ = mean_combinations(design, names, at=values, weights=weights, by=groups)
        found = interaction_stacked(means.labels, means.by, "sequential")
        contrasts = means.combine(found.matrix, found.labels, ())
        inside = source.space.estimable(contrasts.weights)
        for key, members in groups_of(found.labels, groups):
            kept = members[inside[members]]
            label = ":".join(names)
            if len(kept) < len(members):
                lost.append(label)
            test = _judged(source, contrasts, kept)
            rows.append({"term": label} | dict(zip(groups, key, strict=True)) | test)
    table = pd.DataFrame(rows)
    if not len(table):
        raise ValueError("There is no term to test: every variable of the fixed part is in by=.")
    table = table.set_index(["term", *groups] if groups else "term")
    return _noted(source, table, lost)


def _variables_of_terms(design: Design) -> list[frozenset[str]]:
    right = design.formula.right
    return [right.product(term).variables for term in right.terms]


def _beside(design: Design, terms: Sequence[frozenset[str]], names: Sequence[str]) -> set[str]:
    """Variables that share a term or an offset with these; all others cancel in their contrasts."""
    sums = [*terms, *(frozenset(shift.variables) for shift in design.formula.shifts)]
    return set[str]().union(names, *(one for one in sums if not one.isdisjoint(names)))


def _terms(terms: Sequence[frozenset[str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of these variables that some term of the model has all of, few first."""
    within = [[name for name in names if name in term] for term in dict.fromkeys(terms)]
    found = {
        chosen
        for term in within
        for size in range(1, len(term) + 1)
        for chosen in combinations(term, size)
    }
    return sorted(found, key=lambda chosen: (len(chosen), *map(names.index, chosen)))


def _two_values(design: Design, name: str, centre: float) -> list[float]:
    """One unit on either side of the mean of a covariate, or less to stay in its range."""
    try:
        low, high = design.range_of(name)
    except DataError:  # withheld
        return [centre - 1.0, centre + 1.0]
    away = min(1.0, centre - low, high - centre)
    away = away if away > 0.0 else 1.0
    return [centre - away, centre + away]


def _noted(source: Source, table: pd.DataFrame, lost: Sequence[str]) -> pd.DataFrame:
    words = ""
    if lost:
        terms = ", ".join(dict.fromkeys(lost))
        words = f"Some contrasts of {terms} cannot be estimated and are left out."
    if isinstance(source, EstimateSource):
        return noted(source.inference, table, words)
    if words:
        table.attrs["note"] = words
    return table


def _judged(source: Source, contrasts: Combinations, rows: NDArray[np.intp]) -> dict[str, float]:
    """A joint test of some contrasts of an estimate, or where zero is among draws of them."""
    chosen = Combinations(
        labels=contrasts.labels.iloc[rows],
        weights=contrasts.weights[rows],
        constant=contrasts.constant[..., rows],
    )
    if isinstance(source, EstimateSource):
        reduced = source.space.reduce(chosen.weights)
        return f_test(source.inference, reduced, -chosen.constant)
    return contour(source, chosen)


def contour(source: PosteriorSource, quantities: Combinations) -> dict[str, float]:
    """Where zero is among the draws of several quantities.

    Returns
    -------
    dict of str to float
        rank: number of independent quantities. distance: Mahalanobis distance of zero from the
        posterior mean. contour_probability: share of the draws that are farther from the mean than
        zero is, the probability beyond the contour of the posterior density through zero if that
        is about elliptical; 1 / draws is the smallest that is told from zero.

    References
    ----------
    Box, Tiao (1973), "Bayesian Inference in Statistical Analysis", section 2.8; Held (2004),
    doi:10.1198/1061860043137.
    """
    draws = source.values(quantities)
    if not draws.shape[1]:
        return {"rank": 0, "distance": np.nan, "contour_probability": np.nan}
    centre = draws.mean(axis=0)
    sd = draws.std(axis=0, ddof=1)
    scaled = (draws - centre) / sd
    sizes, vectors = np.linalg.eigh(scaled.T @ scaled / (len(draws) - 1))
    kept = sizes > RANK * sizes[-1]
    root = vectors[:, kept] / np.sqrt(sizes[kept])
    distances = np.linalg.norm(scaled @ root, axis=1)
    zero = float(np.linalg.norm((centre / sd) @ root))
    return {
        "rank": int(kept.sum()),
        "distance": zero,
        "contour_probability": float(np.mean(distances >= zero)),
    }
