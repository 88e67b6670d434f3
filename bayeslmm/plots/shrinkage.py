"""Shrinkage plots: what partial pooling does to the estimates of single levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    CIRCLE,
    CROSS,
    DASHED,
    MAIN,
    QUIET,
    SECOND,
    SQUARE,
    STRONG,
    TICK_SIZE,
    Backend,
    Visuals,
    add_legend,
    add_title,
    check_visuals,
    chosen_backend,
    dataset,
    draw,
    panels,
    points,
    segments,
    set_yticks,
    thinned,
)
from bayeslmm.plots.level_order import shown_levels
from bayeslmm.plots.pooling import Shrinkage, shrinkage
from bayeslmm.summaries.estimate_tables import mode_arrays
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

ELLIPSES = (0.5, 0.9)
"""Share of levels that the drawn ellipses hold under the estimated covariance matrix."""

MOST_LABELS = 45
CROWDED, CROWDED_SIZE = 60, 0.3
"""From how many levels on points are smaller, and their size relative to that of few."""
VISUALS = (
    "arrow",
    "ellipse",
    "figure_title",
    "legend",
    "no_pooling",
    "partial_pooling",
    "population",
    "reml",
    "xlabel",
    "ylabel",
    "ylim",
    "yticks",
)


def plot_posterior_shrinkage(
    design: Design,
    reml: Fit,
    group: str | None,
    levels: Sequence[Any] | None,
    beta: Array,
    u: Sequence[Array],
    covariances: Sequence[Array],
    **kwargs: Any,
) -> PlotCollection:
    """Draw the shrinkage of posterior means, beside REML; arguments as below."""
    place, positions = shown_levels(design, group, levels)
    by_reml = (reml.beta, mode_arrays(reml)[place])
    values = shrinkage(design, place, beta, u, covariances[place], by_reml)
    return plot_shrinkage(design, place, positions, values, label="posterior mean", **kwargs)


def plot_shrinkage(
    design: Design,
    place: int,
    positions: NDArray[np.intp],
    values: Shrinkage,
    *,
    label: str,
    coefs: Sequence[str] | None = None,
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
) -> PlotCollection:
    """Draw coefficients of levels without pooling, with it, and by REML.

    Parameters
    ----------
    design : Design
        The design.
    place : int
        Place of the grouping factor.
    positions : ndarray of int
        Levels to draw.
    values : Shrinkage
        What to draw.
    label : str
        What partial pooling is: "posterior mean".
    coefs : sequence of str, optional
        One or two coefficients; the first two by default.
    backend, visuals, **pc_kwargs
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.shrinkage`.

    Returns
    -------
    arviz_plots.PlotCollection
        Levels from top to bottom where there is one coefficient, a plane where there are two.

    Raises
    ------
    DataError
        If the rows of no level determine its own coefficients.
    """
    chosen = chosen_backend(backend)
    check_visuals(visuals, VISUALS)
    columns = _columns(design, place, coefs)
    if np.isnan(values.no_pooling[positions]).all():
        raise DataError(
            f"No level of {design.random[place].name} has rows enough to estimate its own "
            f"{', '.join(design.random[place].coefs)}, so there is nothing to shrink from."
        )
    if len(columns) == 1:
        drawn, size = _one(design, place, positions, values, columns[0])
    else:
        drawn, size = _two(design, place, positions, values, columns)
    data = xr.Dataset({_name(design, place): drawn["no_pooling"][1]["data"].to_array()[0]})
    collection = panels(data, chosen, size=size, pc_kwargs=pc_kwargs)
    draw(collection, drawn, visuals)
    kept = {
        name: entry for name, entry in _entries(label, len(columns) == 2).items() if name in drawn
    }
    hidden = [name for name in kept if (visuals or {}).get(name) is False]
    entries = {text: style for name, (text, style) in kept.items() if name not in hidden}
    add_legend(collection, entries, visuals)
    missing = int(np.isnan(values.no_pooling[positions]).any(axis=1).sum())
    note = f"; {missing} levels have too few rows of their own" if missing else ""
    add_title(collection, f"Shrinkage of {design.random[place].name} effects{note}", visuals)
    return collection


def _name(design: Design, place: int) -> str:
    return f"{design.random[place].key} "


def _columns(design: Design, place: int, coefs: Sequence[str] | None) -> list[int]:
    known = list(design.random[place].coefs)
    names = [coefs] if isinstance(coefs, str) else list(known[:2] if coefs is None else coefs)
    unknown = [name for name in names if name not in known]
    if unknown or len(names) not in (1, 2) or len(set(names)) < len(names):
        raise ValueError(
            f"coefs={names!r}: one or two different coefficients are expected, of: "
            f"{', '.join(known)}."
        )
    return [known.index(name) for name in names]


def _entries(label: str, plane: bool) -> dict[str, tuple[str, dict[str, Any]]]:
    """Text and style of the legend by visual."""
    dot = {"linestyle": "none", "marker": CIRCLE}
    return {
        "no_pooling": ("no pooling", {**dot, "color": QUIET}),
        "partial_pooling": (label, {**dot, "color": MAIN}),
        "reml": ("REML", {"linestyle": "none", "marker": CROSS, "color": SECOND}),
        "population": (
            "population",
            {"linestyle": "none", "marker": SQUARE, "color": STRONG}
            if plane
            else {"color": STRONG},
        ),
        "ellipse": (
            " and ".join(map(coverage, ELLIPSES)) + " of levels",
            {"color": QUIET, "linestyle": DASHED, "linewidth": 0.8},
        ),
    }


def _marks(design: Design, place: int, arrays: Mapping[str, xr.DataArray]) -> Visuals:
    """The visuals that pictures of one and of two coefficients share."""
    import arviz_plots as azp

    name = _name(design, place)
    styles: dict[str, dict[str, Any]] = {
        "ellipse": {"color": QUIET, "linestyle": DASHED, "width": 0.8},
        "arrow": {"color": QUIET, "alpha": 0.7, "width": 1.0},
        "no_pooling": {"color": QUIET, "size": 22},
        "reml": {"color": SECOND, "size": 60, "marker": CROSS},
        "partial_pooling": {"color": MAIN, "size": 30},
        "population": {"color": STRONG, "size": 50, "marker": SQUARE},
    }
    lines = ("ellipse", "arrow")
    crowded = arrays["no_pooling"].sizes["point"] > CROWDED
    if crowded:
        for visual in ("no_pooling", "reml", "partial_pooling"):
            styles[visual]["size"] *= CROWDED_SIZE
    return {
        visual: (
            azp.visuals.line_xy if visual in lines else azp.visuals.scatter_xy,
            {"data": dataset({name: arrays[visual]}), **style},
        )
        for visual, style in styles.items()
        if visual in arrays
    }


def _one(
    design: Design, place: int, positions: NDArray[np.intp], values: Shrinkage, column: int
) -> tuple[Visuals, tuple[float, float]]:
    """Levels from bottom to top by their partially pooled coefficient."""
    import arviz_plots as azp

    factor, name = design.random[place], _name(design, place)
    rows = positions[np.argsort(values.partial[positions, column], kind="stable")]
    heights = np.arange(len(rows), dtype=float)
    alone, partial = values.no_pooling[rows, column], values.partial[rows, column]
    arrays = {
        "arrow": segments((alone, partial), (heights, heights)),
        "no_pooling": points(alone, heights),
        "partial_pooling": points(partial, heights),
    }
    if values.reml is not None:
        arrays["reml"] = points(values.reml[rows, column], heights)
    drawn = _marks(design, place, arrays)
    places, labels = thinned([factor.levels[row] for row in rows], MOST_LABELS)
    data = dataset({name: arrays["no_pooling"]})
    mean = xr.Dataset({name: values.population[column]})
    axis = {"data": data, "text": _axis_label(design, place, column)}
    ticks = {"data": data, "values": places, "labels": labels, "size": TICK_SIZE}
    drawn = {
        "population": (azp.visuals.vline, {"data": mean, "color": STRONG, "width": 0.8}),
        **drawn,
        "xlabel": (azp.visuals.labelled_x, axis),
        "ylabel": (azp.visuals.labelled_y, {"data": data, "text": factor.name}),
        "yticks": (set_yticks, ticks),
        "ylim": (azp.visuals.set_ylim, {"data": data, "limits": (-0.7, len(rows) - 0.3)}),
    }
    return drawn, (6.0, 1.0 + min(max(0.2 * len(rows), 1.2), 8.0))


def _two(
    design: Design,
    place: int,
    positions: NDArray[np.intp],
    values: Shrinkage,
    columns: Sequence[int],
) -> tuple[Visuals, tuple[float, float]]:
    """Levels in the plane of two coefficients."""
    import arviz_plots as azp

    x, y = columns
    alone, partial = values.no_pooling[positions], values.partial[positions]
    arrays = {
        "arrow": segments((alone[:, x], partial[:, x]), (alone[:, y], partial[:, y])),
        "no_pooling": points(alone[:, x], alone[:, y]),
        "partial_pooling": points(partial[:, x], partial[:, y]),
        "population": points([values.population[x]], [values.population[y]]),
        "ellipse": _ellipses(values, columns),
    }
    if values.reml is not None:
        arrays["reml"] = points(values.reml[positions][:, x], values.reml[positions][:, y])
    data = dataset({_name(design, place): arrays["no_pooling"]})
    drawn = {
        **_marks(design, place, arrays),
        "xlabel": (
            azp.visuals.labelled_x,
            {"data": data, "text": _axis_label(design, place, x)},
        ),
        "ylabel": (
            azp.visuals.labelled_y,
            {"data": data, "text": _axis_label(design, place, y)},
        ),
    }
    return drawn, (7.0, 5.6)


def _axis_label(design: Design, place: int, column: int) -> str:
    coef = design.random[place].coefs[column]
    kind = "fixed + random" if coef in design.coefs else "random"
    return f"{coef}: {kind} effect on {design.response}"


def _ellipses(values: Shrinkage, columns: Sequence[int]) -> xr.DataArray:
    """Contours of the normal distribution of the levels' coefficients, with a gap between them."""
    pick = list(columns)
    eigenvalues, vectors = np.linalg.eigh(values.covariance[np.ix_(pick, pick)])
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    angles = np.linspace(0.0, 2.0 * np.pi, 101)
    circle = np.vstack([np.cos(angles), np.sin(angles)])
    pieces = []
    for share in ELLIPSES:
        radius = np.sqrt(-2.0 * np.log1p(-share))
        curve = values.population[pick][:, None] + radius * root @ circle
        pieces += [curve, np.full((2, 1), np.nan)]
    x, y = np.hstack(pieces)
    return points(x, y)
