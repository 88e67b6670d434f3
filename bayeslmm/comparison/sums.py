"""Whether models that keep sums over rows are of the same data, and rows to compare them on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.random_factors import FactorSpec
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.variables import made_factors, made_up_values

Array = NDArray[np.float64]

SAME = 1e-9
"""Relative difference of sums over the same rows, which differ by rounding."""

ROWS = 300
"""Made-up rows on which two models are compared."""

LEVELS = 25
"""Levels of a grouping factor in them, so that rows share levels."""


def of_sums(*designs: Design) -> bool:
    """Whether some design keeps sums over rows alone."""
    return any(isinstance(design, SummarisedDesign) for design in designs)


def differing_sums(first: Design, second: Design) -> str:
    """What shows that models of as many rows are of different data; nothing where they agree.

    Compared are mean, variance and extremes of the response less the offset, those of the columns
    of fixed effects that both have and their covariances, sums of weights, and the levels of
    grouping factors that both have. Rows in another order are the same data.
    """
    shared = [coef for coef in first.coefs if coef in second.coefs]
    one, two = _joint(first, shared), _joint(second, shared)
    if not all(map(_close, one[-1], two[-1])):
        return "response"
    mine, other = ((d.mean_inverse_weight, _log_weights(d)) for d in (first, second))
    if not np.allclose(mine, other, rtol=SAME, atol=SAME * first.n):
        return "weights"
    levels = {factor.name: factor.levels for factor in second.random}
    for factor in first.random:
        own = levels.get(factor.name)
        if own is not None and not np.array_equal(factor.levels, own):
            return f"levels of {factor.name}"
    for name, left, right in zip(shared, one, two, strict=False):
        if not all(map(_close, left, right)):
            return name
    return ""


def _joint(design: Design, coefs: Sequence[str]) -> list[tuple[Array, ...]]:
    """Mean, extremes and covariances of some columns of X, and of the response, which is last."""
    moments = design.moments
    places = [*(design.coefs.index(coef) for coef in coefs), design.p]
    chosen = moments.take(places)
    sizes = np.linalg.norm(chosen.centred, axis=0)
    scaled = chosen.centred / np.where(sizes > 0, sizes, 1.0)
    correlations = scaled.T @ scaled
    spread = np.maximum(chosen.largest, np.finfo(float).tiny)
    return [
        (
            np.array([chosen.means[i], chosen.low[i], chosen.high[i]]) / spread[i],
            np.array([spread[i]]),
            np.array([sizes[i] / spread[i]]),
            correlations[i],
        )
        for i in range(len(places))
    ]


def _close(one: Array, two: Array) -> bool:
    return np.allclose(one, two, rtol=SAME, atol=np.sqrt(SAME) * SAME)


def _log_weights(design: Design) -> float:
    if isinstance(design, SummarisedDesign):
        return design.summary.log_weights
    return float(np.sum(np.log(design.row_weights)))


# --- rows ------------------------------------------------------------------------------


def on_common_rows(first: Design, second: Design) -> tuple[Design, Design]:
    """Two designs on the same rows: made-up ones where one of them does not keep its rows."""
    if not of_sums(first, second):
        return first, second
    for design in (first, second):
        if any(f.members or f.divided or f.relationship is not None for f in design.spec.random):
            raise ValueError(
                f"Whether {design.formula.source!r}, which has mm(), by= or relationships=, and a "
                "model of data beyond memory are nested is not known: compare their AIC or BIC."
            )
    frame, weights = _made_up_rows([first, second]), None
    if first.weighted:
        weights = np.random.default_rng(2).uniform(0.5, 2.0, len(frame))
    one, two = (
        design.spec.rows(frame, random="levels", weights=weights) for design in (first, second)
    )
    return one, two


def _made_up_rows(designs: Sequence[Design]) -> pd.DataFrame:
    """Rows of all variables on the right of two formulas."""
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {}
    factors = [factor for design in designs for factor in design.spec.random]
    for factor in sorted(factors, key=lambda factor: -len(factor.factors)):
        _add_levels(columns, factor, rng)
    as_factors = frozenset[str]().union(*(made_factors(d.formula.right) for d in designs))
    for design in designs:
        names = sorted(design.formula.predictors(groups=False) - set(columns))
        columns |= made_up_values(design, names, ROWS, rng, as_factors)
    return pd.DataFrame(columns)


def _add_levels(columns: dict[str, Any], factor: FactorSpec, rng: np.random.Generator) -> None:
    """Levels of one grouping factor; where its variables have values, ones that go with them."""
    given = [i for i, name in enumerate(factor.factors) if name in columns]
    if len(given) == len(factor.factors):
        return
    cells = factor.cells
    chosen = rng.choice(len(cells), size=min(LEVELS, len(cells)), replace=False)
    places = rng.choice(chosen, size=ROWS)
    if given:
        known = np.column_stack(
            [factor.parts[i].get_indexer(columns[factor.factors[i]]) for i in given]
        )
        for row, wanted in enumerate(known):
            matching = np.flatnonzero((cells[:, given] == wanted).all(axis=1))
            if len(matching):
                places[row] = rng.choice(matching)
    for i, name in enumerate(factor.factors):
        if name not in columns:
            columns[name] = factor.parts[i].take(cells[places, i])
