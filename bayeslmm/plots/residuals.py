"""Pictures of residuals and random effects against what the model assumes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.plots.common import (
    MAIN,
    QUIET,
    SECOND,
    TICK_SIZE,
    Drawing,
    Visuals,
    dataset,
    picture,
    plain,
    points,
    segments,
    shown_levels,
    thinned,
    titles,
    variable_name,
)

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

MOST_LABELS = 20
FITTED, QUANTILES, BY_LEVEL = "residuals and fitted values", "Q-Q of residuals", "residuals by {}"


def plot_residuals(
    design: Design,
    group: str | None,
    beta: Array,
    u: Sequence[Array],
    how: Drawing,
    *,
    label: str,
) -> PlotCollection:
    """Draw residuals and random effects against what the model assumes of them.

    Parameters
    ----------
    design : Design
        The design.
    group : str, optional
        Grouping factor by whose levels residuals are drawn; the first by default.
    beta : ndarray (p,)
        Fixed effects.
    u : sequence of ndarray (J, k)
        Random effects per grouping factor.
    how : Drawing
        How to draw it.
    label : str
        What both are.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    place, order = shown_levels(design, group or design.random[0].name, None)
    factor, fitted = design.random[place], linear_predictor(design, beta, u)
    residuals, unit = design.y - fitted, f"residual of {design.response}"
    if design.weights is not None:
        residuals, unit = residuals * np.sqrt(design.weights), f"{unit} × √weight"
    by_level = BY_LEVEL.format(factor.name)
    quantiles = {QUANTILES: residuals, **_effects(design, u)}
    marks = dataset(
        {
            FITTED: points(fitted, residuals),
            by_level: points(np.argsort(order)[factor.codes], residuals),
            **{name: _normal(values) for name, values in quantiles.items()},
        }
    )
    lines = dataset({name: _quartile_line(values) for name, values in quantiles.items()})
    return picture(
        how,
        marks,
        _visuals(design, place, order, marks, lines, residuals, unit),
        size=(3.2, 2.8),
        title=f"Residuals and random effects of {design.response}: {label}",
        columns=3,
    )


def _effects(design: Design, u: Sequence[Array]) -> dict[str, Array]:
    return {
        f"Q-Q of {factor.name}: {coef}": values[:, c]
        for factor, values in zip(design.random, u, strict=True)
        for c, coef in enumerate(factor.coefs)
    }


def _normal(values: Array) -> xr.DataArray:
    """Ordered values against normal quantiles at the plotting positions of R's ``ppoints``."""
    n = len(values)
    shift = 3 / 8 if n <= 10 else 1 / 2
    positions = (np.arange(1, n + 1) - shift) / (n + 1 - 2 * shift)
    return points(stats.norm.ppf(positions), np.sort(values))


def _quartile_line(values: Array) -> xr.DataArray:
    """Line through the quartiles over the range of the quantiles, as R's ``qqline``."""
    x = _normal(values).sel(plot_axis="x").to_numpy()
    low, high = np.quantile(values, [0.25, 0.75])
    slope = (high - low) / (stats.norm.ppf(0.75) - stats.norm.ppf(0.25))
    ends = np.array([x.min(), x.max()])
    return points(ends, (low + high) / 2 + slope * ends)


def _visuals(
    design: Design,
    place: int,
    order: NDArray[np.intp],
    marks: xr.Dataset,
    lines: xr.Dataset,
    residuals: Array,
    unit: str,
) -> Visuals:
    """Everything that is drawn, what comes first at the back."""
    import arviz_plots as azp

    factor = design.random[place]
    by_level = variable_name(BY_LEVEL.format(factor.name))
    zero = xr.Dataset({name: 0.0 for name in (FITTED, by_level)})
    means = dataset({by_level: _level_means(factor, order, residuals)})
    places, labels = thinned(list(factor.levels[order]), MOST_LABELS)
    upright = 90 if sum(map(len, labels)) > 26 else 0
    ticks = {"values": places, "labels": labels, "size": TICK_SIZE, "rotation": upright}
    size = 8 if design.n > 500 else 14
    dots = {"data": marks, "color": MAIN, "size": size, "alpha": 0.7}
    return {
        "zero": (azp.visuals.hline, {"data": zero, "color": QUIET, "width": 0.8}),
        "qq_line": (azp.visuals.line_xy, {"data": lines, "color": QUIET, "width": 1.0}),
        "points": (azp.visuals.scatter_xy, dots),
        "level_mean": (azp.visuals.line_xy, {"data": means, "color": SECOND, "width": 1.8}),
        "title": titles(marks),
        **_axis_labels(design, factor, by_level, marks, unit),
        "xticks": (azp.visuals.set_xticks, {"data": marks[[by_level]], **ticks}),
    }


def _level_means(factor: RandomFactor, order: NDArray[np.intp], residuals: Array) -> xr.DataArray:
    """A short line at the mean residual of each level."""
    counts = np.bincount(factor.codes, minlength=factor.n_levels)
    sums = np.bincount(factor.codes, weights=residuals, minlength=factor.n_levels)
    at = np.arange(factor.n_levels)
    means = np.divide(sums, counts, out=np.full(factor.n_levels, np.nan), where=counts > 0)
    return segments((at - 0.35, at + 0.35), (means[order],) * 2)


def _axis_labels(
    design: Design, factor: RandomFactor, by_level: str, marks: xr.Dataset, unit: str
) -> Visuals:
    """Texts of the axes, which differ between panels."""
    names = [str(name) for name in marks.data_vars]
    across = {FITTED: f"fitted {design.response}", by_level: factor.name}
    text_x = dict.fromkeys(names, "normal quantile") | across
    text_y = dict.fromkeys(names, "random effect")
    text_y |= dict.fromkeys((FITTED, by_level, QUANTILES), unit)
    return {
        "xlabel": (_label, {"data": marks, "axis": "x", "texts": text_x, "subset_info": True}),
        "ylabel": (_label, {"data": marks, "axis": "y", "texts": text_y, "subset_info": True}),
    }


def _label(
    da: xr.DataArray,
    target: Any,
    *,
    axis: str,
    texts: Mapping[str, str],
    var_name: str,
    sel: Any,
    isel: Any,
    **kwargs: Any,
) -> Any:
    """Text of an axis by the name of the panel."""
    import arviz_plots as azp

    function = azp.visuals.labelled_x if axis == "x" else azp.visuals.labelled_y
    return function(da, target, text=plain(texts[var_name]), **kwargs)
