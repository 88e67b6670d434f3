"""Forest plots: what each study reported, what is known of it beside the others, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from bayeslmm.data.design import Design
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.plots.common import (
    CIRCLE,
    DASHED,
    DIAMOND,
    MAIN,
    QUIET,
    SQUARE,
    STRONG,
    TICK_SIZE,
    Drawing,
    Visuals,
    dataset,
    level_order,
    picture,
    points,
    segments,
    set_yticks,
    texts_at,
)
from bayeslmm.plots.panels import WIDTH
from bayeslmm.plots.quantities import Spread
from bayeslmm.summaries.posterior_tables import locate_levels
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

MOST_ROWS = 500
NUMBERS = 60
"""Rows up to which estimates stand beside them as numbers."""

PANEL = "studies "
RATIOS = (1.0, 2.0, 5.0)
"""First digits of ticks of ratios."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Forest:
    """What a forest plot shows.

    Attributes
    ----------
    labels : list of str
        One per row of the data.
    reported, error : ndarray (n,)
        Estimates and their standard errors.
    shrunken : Spread or None
        Effects (n,) given all rows; None without random effects.
    mean : Spread
        The mean effect (1,).
    new : tuple of ndarray (1,), optional
        Bounds of the effect of a new level.
    prob : float
        Coverage of the outer intervals.
    """

    labels: list[str]
    reported: Array
    error: Array
    shrunken: Spread | None
    mean: Spread
    new: tuple[Array, Array] | None
    prob: float


def reported_rows(design: Design, group: str | None) -> tuple[list[str], NDArray[np.intp]]:
    """Labels of the rows, and the places of their levels in the order of labels.

    Parameters
    ----------
    design : Design
        The design of a model of estimates with known standard errors.
    group : str, optional
        Grouping factor of the labels; by default the one with most levels.

    Raises
    ------
    DataError
        If standard errors are not known, rows are beyond memory, or there are too many.
    """
    if isinstance(design, SummarisedDesign):
        raise DataError(
            "A forest plot shows the rows of the data, of which the model keeps sums. Make the "
            "model of a data frame in memory, or see fit.plot.caterpillar()."
        )
    if not design.spec.has_errors:
        raise DataError(
            "A forest plot is of estimates whose standard errors are known: name their column in "
            'LMM(..., residual="se(column)"). fit.plot.caterpillar() shows random effects.'
        )
    if design.n > MOST_ROWS:
        raise DataError(
            f"A forest plot has a line for each row, and there are {design.n:,} of them; it "
            f"shows at most {MOST_ROWS}. fit.plot.caterpillar(levels=...) shows some levels."
        )
    if not design.random and group is None:
        return [str(label) for label in design.index], np.arange(design.n)
    if group is None:
        group = max(design.random, key=lambda factor: factor.n_levels).name
    place, _ = locate_levels(design, group, None)
    factor = design.random[place]
    labels = [str(factor.levels[code]) for code in factor.codes]
    counts = pd.Series(labels).value_counts()
    repeated = [counts[label] > 1 for label in labels]
    named = zip(labels, design.index, repeated, strict=True)
    rank = np.empty(factor.n_levels, dtype=np.intp)
    rank[level_order(design, factor.spec)] = np.arange(factor.n_levels)
    shown = [f"{label} ({row})" if again else label for label, row, again in named]
    return shown, np.asarray(rank[factor.codes])


def plot_forest(
    design: Design,
    forest: Forest,
    ranks: NDArray[np.intp],
    how: Drawing,
    *,
    order: str = "data",
    exp: bool = False,
) -> PlotCollection:
    """Draw a forest plot; arguments as in ``fit.plot.forest()``.

    Parameters
    ----------
    design : Design
        The design of the model.
    forest : Forest
        What to show.
    ranks : ndarray (n,)
        Of the rows in the order of labels.
    how : Drawing
        How to draw it.
    order, exp
        As the user gave them.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    check_choice(order, ["data", "label", "estimate"], "order")
    n = len(forest.labels)
    keys = {"data": np.arange(n), "label": ranks, "estimate": forest.reported}
    rows = np.argsort(keys[order], kind="stable")
    heights = np.arange(n, dtype=float)[::-1] + 2.5  # a gap, the mean and a new level below
    z = float(norm.ppf(0.5 + forest.prob / 2.0))
    drawn, ends = _lines(forest, rows, heights, z)
    data = dataset({PANEL: points(forest.reported[rows], heights)})
    numbers = n <= NUMBERS
    right = ends[1] + (0.42 if numbers else 0.03) * (ends[1] - ends[0])
    left = ends[0] - 0.03 * (ends[1] - ends[0])
    if numbers:
        at = ends[1] + 0.04 * (ends[1] - ends[0])
        drawn["numbers"] = _numbers(forest, rows, heights, at, z, exp=exp)
    group = design.random[0].name if len(design.random) == 1 else "level"
    return picture(
        how,
        data,
        {
            **drawn,
            **_axes(design, forest, data, rows, heights, (left, right), ends, group, exp=exp),
        },
        size=(WIDTH, 1.2 + (0.24 if numbers else 0.12) * (n + 3)),
        title=f"{design.response}: estimates and their mean",
        legend=_legend(forest),
    )


def _lines(
    forest: Forest, rows: NDArray[np.intp], heights: Array, z: float
) -> tuple[Visuals, tuple[float, float]]:
    """Marks and intervals, and the ends of all that is drawn."""
    import arviz_plots as azp

    y, error = forest.reported[rows], forest.error[rows]
    aside = 0.0 if forest.shrunken is None else 0.16
    low, high = y - z * error, y + z * error
    size = 12.0 + 60.0 * (error.min() / error) ** 2

    def lines(x: Any, at: Any, **style: Any) -> Any:
        return azp.visuals.line_xy, {"data": dataset({PANEL: segments(x, (at, at))}), **style}

    marks = xr.Dataset(
        {PANEL: (("plot_axis", "row"), [y, heights + aside])},
        coords={"plot_axis": ["x", "y"], "row": np.arange(len(y))},
    )
    observed = {"data": marks, "sizes": size, "color": QUIET, "marker": SQUARE}
    mean = forest.mean
    line = xr.Dataset({PANEL: float(mean.centre[0])})
    drawn: Visuals = {
        "mean_line": (azp.visuals.vline, {"data": line, "color": MAIN, "width": 0.7, "alpha": 0.6}),
        "ref_line": (
            azp.visuals.vline,
            {"data": xr.Dataset({PANEL: 0.0}), "color": STRONG, "width": 0.7},
        ),
        "observed_interval": lines((low, high), heights + aside, color=QUIET, width=1.0),
        "observed": (_sized, observed),
    }
    ends = [low.min(), high.max(), mean.outer[0][0], mean.outer[1][0], 0.0]
    if forest.shrunken is not None:
        s = forest.shrunken.take(rows)
        below = heights - aside
        drawn["interval"] = lines(s.outer, below, color=MAIN, width=1.2)
        drawn["inner_interval"] = lines(s.inner, below, color=MAIN, width=2.8)
        mark = {"data": dataset({PANEL: points(s.centre, below)}), "color": MAIN, "size": 16}
        drawn["point"] = (azp.visuals.scatter_xy, mark)
        ends += [s.outer[0].min(), s.outer[1].max()]
    drawn["mean"] = _diamond(mean)
    if forest.new is not None:
        drawn["new"] = lines(forest.new, 0.0, color=MAIN, linestyle=DASHED, width=1.4)
        ends += [forest.new[0][0], forest.new[1][0]]
    return drawn, (float(np.nanmin(ends)), float(np.nanmax(ends)))


def _sized(da: xr.DataArray, target: Any, *, sizes: Array, **style: Any) -> Any:
    """Points each of a size of its own; bokeh takes one size for all."""
    from arviz_plots.plot_collection import backend_from_object

    backend = backend_from_object(target)
    x, y = (da.sel(plot_axis=axis).to_numpy() for axis in ("x", "y"))
    if backend.__name__.endswith("bokeh"):
        places = range(len(x))
        found = [backend.scatter(x[[i]], y[[i]], target, size=sizes[i], **style) for i in places]
        return found[0]
    return backend.scatter(x, y, target, size=sizes, **style)


def _diamond(mean: Spread) -> Any:
    """A diamond from one end of the interval of the mean to the other."""
    import arviz_plots as azp

    x = np.array([mean.outer[0][0], mean.centre[0], mean.outer[1][0]])
    rise = np.array([0.0, 0.32, 0.0])
    values = np.array([x, 1.2 - rise, 1.2 + rise])
    dims, names = ("kwarg", "corner"), ["x", "y_bottom", "y_top"]
    data = xr.Dataset({PANEL: (dims, values)}, coords={"kwarg": names})
    return azp.visuals.fill_between_y, {"data": data, "color": MAIN, "alpha": 1.0}


def _numbers(
    forest: Forest, rows: NDArray[np.intp], heights: Array, x: float, z: float, *, exp: bool
) -> Any:
    """Estimates and intervals in figures, at the right of their lines."""
    y, error = forest.reported[rows], forest.error[rows]
    own = zip(y, y - z * error, y + z * error, heights, strict=True)
    lines = [(x, float(at), _figures((a, b, c), exp=exp)) for a, b, c, at in own]
    mean = (forest.mean.centre[0], forest.mean.outer[0][0], forest.mean.outer[1][0])
    lines.append((x, 1.2, _figures(mean, exp=exp)))
    if forest.new is not None:
        low, high = (_two(bound[0], exp=exp) for bound in forest.new)
        lines.append((x, 0.0, f"[{low}, {high}]"))
    lines.append((x, float(heights[0] + 1.0), f"reported [{coverage(forest.prob)}]"))
    data = xr.Dataset({PANEL: x})
    return texts_at, {"data": data, "lines": {PANEL: lines}, "size": TICK_SIZE, "subset_info": True}


def _figures(values: Sequence[float], *, exp: bool) -> str:
    centre, low, high = (_two(value, exp=exp) for value in values)
    return f"{centre} [{low}, {high}]"


def _two(value: float, *, exp: bool) -> str:
    """A number with two decimals, or with three digits where it is large or small."""
    value = float(np.exp(value)) if exp else float(value)
    text = f"{value:.2f}" if value == 0.0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _short(value: float) -> str:
    return f"{value:g}".replace("-", "\N{MINUS SIGN}")


def _axes(
    design: Design,
    forest: Forest,
    data: xr.Dataset,
    rows: NDArray[np.intp],
    heights: Array,
    limits: tuple[float, float],
    ends: tuple[float, float],
    group: str,
    *,
    exp: bool,
) -> Visuals:
    import arviz_plots as azp

    labels = [forest.labels[row] for row in rows]
    places = [*heights, 1.2]
    labels.append("mean")
    if forest.new is not None:
        places, labels = [*places, 0.0], [*labels, f"new {group}"]
    ticks = {"data": data, "values": places, "labels": labels, "size": TICK_SIZE}
    name = f"exp({design.response})" if exp else design.response
    at = _ratio_ticks(ends) if exp else _even_ticks(ends)
    shown = {"values": np.log(at) if exp else at, "labels": [_short(value) for value in at]}
    bottom = -0.8 if forest.new is not None else 0.4
    return {
        "xlabel": (azp.visuals.labelled_x, {"data": data, "text": name}),
        "xticks": (azp.visuals.set_xticks, {"data": data, **shown}),
        "yticks": (set_yticks, ticks),
        "xlim": (azp.visuals.set_xlim, {"data": data, "limits": limits}),
        "ylim": (azp.visuals.set_ylim, {"data": data, "limits": (bottom, heights[0] + 1.7)}),
    }


def _even_ticks(limits: tuple[float, float]) -> Array:
    """Round numbers within limits, five to ten of them."""
    width = max(limits[1] - limits[0], np.finfo(float).tiny)
    power = 10.0 ** np.floor(np.log10(width))
    step = power * next(s for s in (2.0, 1.0, 0.5, 0.2, 0.1) if width / (s * power) >= 4.0)
    first, last = np.ceil(limits[0] / step), np.floor(limits[1] / step)
    return np.round(np.arange(first, last + 1) * step, 12)


def _ratio_ticks(limits: tuple[float, float]) -> Array:
    """Ratios 1, 2, 5, 10, ... within limits on the log scale; others where these are too few."""
    powers = 10.0 ** np.arange(np.floor(limits[0] / 2.302), np.ceil(limits[1] / 2.302) + 1)
    found = np.outer(powers, RATIOS).ravel()
    found = found[(np.log(found) >= limits[0]) & (np.log(found) <= limits[1])]
    if len(found) >= 3:
        return np.asarray(found[:: -(-len(found) // 8)])
    return np.unique(np.round(np.exp(np.linspace(*limits, 5)), 2))


def _legend(forest: Forest) -> dict[str, dict[str, Any]]:
    chance = coverage(forest.prob)
    grey = {"color": QUIET, "marker": SQUARE}
    entries: dict[str, dict[str, Any]] = {f"reported, {chance} confidence interval": grey}
    if forest.shrunken is not None:
        entries[forest.shrunken.label] = {"color": MAIN, "marker": CIRCLE}
    entries[f"mean, {chance}"] = {
        "color": MAIN,
        "marker": DIAMOND,
        "linestyle": "none",
    }
    if forest.new is not None:
        entries[f"effect of a new level, {chance}"] = {"color": MAIN, "linestyle": DASHED}
    return entries
