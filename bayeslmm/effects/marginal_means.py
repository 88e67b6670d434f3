"""Estimated marginal means: averages of the linear predictor over a reference grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayeslmm.data.design import Design
from bayeslmm.effects.grid import (
    Weights,
    average_over,
    cell_weights,
    check_known,
    encode_grid,
    grid_frame,
    grid_values,
    variables_of,
)
from bayeslmm.effects.linear import Combinations, names_of
from bayeslmm.effects.quantities import LinearQuantities, scale_notes
from bayeslmm.effects.sources import Source

TARGETS = ("average", "population")
"""With u = 0 and with u averaged over: one thing in a linear model."""


def marginal_means(
    design: Design,
    source: Source,
    variables: str | Sequence[str],
    *,
    at: Mapping[str, Any] | None = None,
    weights: Weights = "equal",
    by: str | Sequence[str] | None = None,
    target: str = "average",
) -> LinearQuantities:
    """Marginal means of the levels of variables.

    Parameters
    ----------
    design : Design
        The design of the model.
    source : EstimateSource or PosteriorSource
        The uncertainty of the coefficients.
    variables, at, weights, by, target
        As in ``fit.means()``.

    Returns
    -------
    LinearQuantities
    """
    check_target(target, TARGETS)
    means = mean_combinations(design, variables, at=at, weights=weights, by=by)
    return LinearQuantities(
        title=_title(means), quantities=means, source=source, notes=scale_notes(design)
    )


def check_target(target: str, allowed: Sequence[str]) -> None:
    """Raise ValueError for an unknown target."""
    if target not in allowed:
        names = ", ".join(map(repr, allowed))
        raise ValueError(f"target={target!r}: one of {names} is expected here.")


def mean_combinations(
    design: Design,
    variables: str | Sequence[str],
    *,
    at: Mapping[str, Any] | None,
    weights: Weights,
    by: str | Sequence[str] | None,
) -> Combinations:
    """Weights of the coefficients in marginal means."""
    known = variables_of(design)
    groups = names_of(by)
    wanted = [n for n in names_of(variables) if n not in groups] + list(groups)
    check_known(wanted, known.names, "means()")
    values = grid_values(known, wanted, at)
    frame = grid_frame(values, design.data)
    cells = encode_grid(design, known, frame, [*wanted, *(at or {})])
    share = cell_weights(design, frame, list(known.levels), wanted, weights)
    return average_over(cells, values, wanted, groups, share)


def _title(means: Combinations) -> str:
    names = " x ".join(means.labels.columns)
    return "Marginal mean" if names == "average" else f"Marginal means of {names}"
