"""Pictures of planned studies: power and assurance by size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bayeslmm.plots.common import (
    CIRCLE,
    DASHED,
    MAIN,
    QUIET,
    Drawing,
    Visuals,
    dataset,
    picture,
    points,
    segments,
    titles,
)
from bayeslmm.plots.panels import WIDTH

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

HEIGHT = 3.0
MOST_SIZES = 10
"""Sizes that are named on the axis."""


def plot_curve(
    table: pd.DataFrame,
    counted: str,
    name: str,
    how: Drawing,
    target: float | None,
    alpha: float | None,
) -> PlotCollection:
    """Draw a proportion by size with its interval, a panel per effect.

    Parameters
    ----------
    table : DataFrame
        Columns share, conf_low and conf_high; rows by size and effect.
    counted : str
        What the sizes count.
    name : str
        What the proportion is.
    how : Drawing
        How to draw it.
    target, alpha : float or None
        Where lines are drawn: the proportion wanted, and that without any effect.
    """
    import arviz_plots as azp

    parts = {
        str(effect): part.droplevel("effect")
        for effect, part in table.groupby(level="effect", sort=False)
    }
    lines = dataset({k: points(part.index, part["share"]) for k, part in parts.items()})
    bars = dataset(
        {
            k: segments((part.index, part.index), (part["conf_low"], part["conf_high"]))
            for k, part in parts.items()
        }
    )
    across = lines.sel(plot_axis="x")
    at = np.unique([size for part in parts.values() for size in part.index])
    sizes = at[:: -(-len(at) // MOST_SIZES)]
    shown = [f"{size:,}" for size in sizes]
    wide = {k: np.array([min(v.index), max(v.index)], float) for k, v in parts.items()}

    def level(at: float | None, style: str) -> tuple[object, dict[str, object]] | None:
        if at is None:
            return None
        flat = dataset({k: points(x, np.full(2, at)) for k, x in wide.items()})
        return azp.visuals.line_xy, {"data": flat, "color": QUIET, "linestyle": style, "width": 0.9}

    visuals: Visuals = {
        "target": level(target, DASHED),
        "alpha": level(alpha, "C2"),
        "interval": (azp.visuals.line_xy, {"data": bars, "color": MAIN, "width": 1.4}),
        "line": (azp.visuals.line_xy, {"data": lines, "color": MAIN, "alpha": 0.5}),
        "points": (azp.visuals.scatter_xy, {"data": lines, "color": MAIN}),
        "xticks": (azp.visuals.set_xticks, {"data": across, "values": sizes, "labels": shown}),
        "ylim": (azp.visuals.set_ylim, {"data": across, "limits": (-0.03, 1.03)}),
        "title": titles(lines),
        "xlabel": (azp.visuals.labelled_x, {"data": across, "text": counted}),
        "ylabel": (azp.visuals.labelled_y, {"data": across, "text": name}),
    }
    title = f"{name.capitalize()} by {counted}"
    marks: dict[str, object] = {"color": MAIN, "marker": CIRCLE}
    legend: dict[str, dict[str, object]] = {f"{name}, Monte Carlo interval": marks}
    if target is not None:
        legend[f"{target:g}, the {name} wanted"] = {"color": QUIET, "linestyle": DASHED}
    if alpha is not None:
        legend[f"{alpha:g}, without an effect"] = {"color": QUIET, "linestyle": "C2"}
    columns = min(len(parts), 2)
    return picture(
        how,
        lines,
        visuals,
        size=(WIDTH / columns, HEIGHT),
        title=title,
        legend=legend,
        columns=columns,
        sharex=True,
        sharey=True,
    )
