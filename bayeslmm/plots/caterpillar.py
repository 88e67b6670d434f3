"""Caterpillar plots: the random effects of a grouping factor with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    MAIN,
    PANEL_TITLE_SIZE,
    QUIET,
    TICK_SIZE,
    Backend,
    Intervals,
    Visuals,
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

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Indices = NDArray[np.intp]

MAX_LEVELS = 2000
MOST_LABELS = 45
PANEL_WIDTH, SINGLE_WIDTH = 3.2, 5.0
VISUALS = (
    "interval",
    "point",
    "ref_line",
    "title",
    "xlabel",
    "ylabel",
    "yticks",
    "ylim",
    "figure_title",
)


def plot_caterpillar(
    design: Design,
    group: str | None,
    levels: Sequence[Any] | None,
    intervals: Callable[[int, Indices], Intervals],
    *,
    coefs: str | Sequence[str] | None = None,
    order: str = "estimate",
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
) -> PlotCollection:
    """Draw random effects by level with intervals, one panel per coefficient.

    Parameters
    ----------
    design : Design
        The design.
    group : str, optional
        Grouping factor as in the formula; needed where there are several.
    levels : sequence, optional
        Levels; all by default.
    intervals : callable
        Takes the place of the grouping factor and those of its levels (m,), returns arrays (m, k).
    coefs : str or sequence of str, optional
        Coefficients to draw; all by default.
    order : str
        "estimate": by the first coefficient drawn; "label": as the levels come; or the name of a
        coefficient.
    backend, visuals, **pc_kwargs
        As in :meth:`bayeslmm.plots.accessors.Plots.caterpillar`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    chosen = chosen_backend(backend)
    check_visuals(visuals, VISUALS)
    place, positions = shown_levels(design, group, levels)
    _check_drawable(design, place, len(positions))
    effects = intervals(place, positions)
    factor = design.random[place]
    columns = _columns(factor.coefs, coefs)
    rows = _order(order, factor.coefs, effects, columns)
    labels = [factor.levels[positions[row]] for row in rows]
    heights = np.arange(len(rows), dtype=float)
    names = [factor.coefs[c] for c in columns]
    marks, bars = (
        dataset(dict(zip(names, arrays, strict=True)))
        for arrays in (
            [points(effects.centre[rows, c], heights) for c in columns],
            [
                segments((effects.lower[rows, c], effects.upper[rows, c]), (heights, heights))
                for c in columns
            ],
        )
    )
    height = 0.7 + min(max(0.19 * len(rows), 1.2), 8.5)
    width = PANEL_WIDTH if len(columns) > 1 else SINGLE_WIDTH
    collection = panels(
        marks, chosen, size=(width, height), share={"sharey": True}, pc_kwargs=pc_kwargs
    )
    draw(collection, _visuals(marks, bars, labels, factor.name, design.response), visuals)
    title = f"Random effects of {factor.name} on {design.response}: {effects.label}"
    add_title(collection, title, visuals)
    return collection


def _check_drawable(design: Design, place: int, count: int) -> None:
    """Raise unless so many levels fit into a picture."""
    if count > MAX_LEVELS:
        name = design.random[place].name
        raise DataError(
            f"{name} has {count:,} levels; a picture shows at most {MAX_LEVELS:,}. Name those to "
            "draw with levels=."
        )


def _visuals(
    marks: xr.Dataset, bars: xr.Dataset, labels: list[Any], group: str, response: str
) -> Visuals:
    import arviz_plots as azp
    from arviz_base.labels import BaseLabeller

    count = len(labels)
    dense = count > MOST_LABELS
    places, shown = thinned(labels, MOST_LABELS)
    zero = xr.Dataset({name: 0.0 for name in marks.data_vars})
    first = marks[[next(iter(marks.data_vars))]]
    title = {"subset_info": True, "labeller": BaseLabeller(), "size": PANEL_TITLE_SIZE}
    ticks = {"data": marks, "values": places, "labels": shown, "size": TICK_SIZE}
    mark = {"color": MAIN, "size": 6 if dense else 20}
    return {
        "ref_line": (azp.visuals.vline, {"data": zero, "color": QUIET, "width": 0.8}),
        "interval": (
            azp.visuals.line_xy,
            {"data": bars, "color": MAIN, "width": 0.8 if dense else 1.6},
        ),
        "point": (azp.visuals.scatter_xy, {"data": marks, **mark}),
        "title": (azp.visuals.labelled_title, {"data": marks, **title}),
        "xlabel": (azp.visuals.labelled_x, {"data": marks, "text": f"effect on {response}"}),
        "ylabel": (azp.visuals.labelled_y, {"data": first, "text": group}),
        "yticks": (set_yticks, ticks),
        "ylim": (azp.visuals.set_ylim, {"data": marks, "limits": (-0.7, count - 0.3)}),
    }


def _columns(known: Sequence[str], wanted: str | Sequence[str] | None) -> list[int]:
    names = [wanted] if isinstance(wanted, str) else list(known if wanted is None else wanted)
    if not names or (unknown := [name for name in names if name not in known]):
        given = ", ".join(map(repr, unknown)) if names else "nothing"
        raise ValueError(f"coefs names {given}; the coefficients are: {', '.join(known)}.")
    return [list(known).index(name) for name in names]


def _order(
    order: str, known: Sequence[str], effects: Intervals, columns: Sequence[int]
) -> NDArray[np.intp]:
    """Rows from the bottom of the picture to its top."""
    if order == "label":
        return np.arange(len(effects.centre))[::-1]
    if order == "estimate":
        return np.argsort(effects.centre[:, columns[0]], kind="stable")
    if order in known:
        return np.argsort(effects.centre[:, list(known).index(order)], kind="stable")
    allowed = ", ".join(map(repr, ["estimate", "label", *known]))
    raise ValueError(f"order={order!r}: one of {allowed} is expected.")
