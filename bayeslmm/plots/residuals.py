"""Pictures of residuals and random effects against what the model assumes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import scipy.sparse as sp
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.residuals import ResidualKind, scaled_residuals
from bayeslmm.exceptions import check_choice
from bayeslmm.plots.common import (
    BAND_ALPHA,
    MAIN,
    QUIET,
    SECOND,
    TICK_SIZE,
    Drawing,
    Visuals,
    band,
    dataset,
    inner_probability,
    own_xlabel,
    own_ylabel,
    picture,
    points,
    segments,
    shown_levels,
    thinned,
    titles,
    two_widths,
    variable_name,
)
from bayeslmm.plots.panels import WIDTH
from bayeslmm.summaries.posterior_tables import interval_defaults

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

MOST_LABELS = 20
SCALES = {
    "pearson": ("standardised residual", "over their standard deviation"),
    "normalised": ("normalised residual", "whitened by their covariance matrix"),
}
"""Label of the axis, and what it means, of residuals that have no unit."""

FITTED, QUANTILES, BY_LEVEL = "residuals and fitted values", "Q-Q of residuals", "residuals by {}"


def plot_residuals(
    design: Design,
    group: str | None,
    beta: Array,
    u: Sequence[Array],
    covariance: sp.csr_array,
    how: Drawing,
    *,
    label: str,
    kind: ResidualKind | None = None,
) -> PlotCollection:
    """Draw residuals and random effects against what the model assumes of them.

    Parameters
    ----------
    design : Design
        The design.
    group : str, optional
        Grouping factor by whose levels residuals are drawn; the first by default, if there is one.
    beta : ndarray (p,)
        Fixed effects.
    u : sequence of ndarray (J, k)
        Random effects per grouping factor.
    covariance : scipy.sparse.csr_array (n, n)
        Of the residuals.
    how : Drawing
        How to draw it.
    label : str
        What both are.
    kind : {"response", "pearson", "normalised"}, optional
        Which residuals; "normalised" with a residual structure and "pearson" else by default.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    fitted = linear_predictor(design, beta, u)
    chosen: ResidualKind = kind or ("normalised" if design.spec.structured else "pearson")
    check_choice(chosen, get_args(ResidualKind), "kind")
    residuals = scaled_residuals(design, design.y - fitted, covariance, chosen)
    unit = f"residual of {design.response}" if chosen == "response" else SCALES[chosen][0]
    levels = _levels(design, group, residuals) if design.random or group else None
    quantiles = {QUANTILES: residuals, **_effects(design, u)}
    marks = dataset(
        {
            FITTED: points(fitted, residuals),
            **({} if levels is None else {levels.panel: levels.marks}),
            **{name: _normal(values) for name, values in quantiles.items()},
        }
    )
    lines = dataset({name: _quartile_line(values) for name, values in quantiles.items()})
    scale = f" ({SCALES[chosen][1]})" if chosen in SCALES else ""
    what = f"Residuals{scale}{' and random effects' if design.random else ''}"
    prob, _ = interval_defaults(None)
    smooth = trend(fitted, residuals)
    return picture(
        how,
        marks,
        _visuals(design, levels, marks, lines, unit),
        _trend(smooth, prob),
        size=(WIDTH / 2, 2.6),
        title=f"{what} of {design.response}: {label}",
        legend=None
        if smooth is None
        else {f"smooth trend, {two_widths(prob)} pointwise bands": {"color": SECOND}},
        columns=2,
    )


# --- a smooth trend --------------------------------------------------------------------

SPAN = 0.75
"""Share of the rows that a local line is fitted to, as R's ``loess`` has by default."""

TREND_POINTS = 60
FEWEST = 10
"""Different fitted values from which on there is a trend to show."""

FEWEST_NEAR = 3
"""Different fitted values that each local line goes through, however many rows share one."""


@dataclass(frozen=True, slots=True, eq=False)
class Trend:
    """A local mean with its standard errors, at increasing places."""

    x: Array
    mean: Array
    error: Array


def trend(x: Array, y: Array) -> Trend | None:
    """Local lines with tricube weights over the nearest rows, and their pointwise errors.

    Errors are those of a linear smoother of independent values with one variance, that of `y` about
    zero. None where there are too few different places.

    References
    ----------
    Cleveland (1979), doi:10.1080/01621459.1979.10481038; without its robust iterations.
    """
    scale = float(np.ptp(x)) or 1.0
    different = np.unique(np.round((x - x.mean()) / scale, 6)) * scale + x.mean()
    if len(different) < FEWEST:
        return None
    at = np.linspace(x.min(), x.max(), TREND_POINTS)
    nearest = min(len(x) - 1, int(np.ceil(SPAN * len(x))))
    mean, error = np.empty(len(at)), np.empty(len(at))
    for i, place in enumerate(at):
        gap = x - place
        reach = max(
            float(np.partition(np.abs(gap), nearest)[nearest]),
            float(np.partition(np.abs(different - place), FEWEST_NEAR)[FEWEST_NEAR]),
        )
        weights = np.clip(1.0 - np.abs(gap / reach) ** 3, 0.0, None) ** 3
        total, first = weights.sum(), weights @ gap
        second = weights @ gap**2
        share = weights * (second - first * gap) / (total * second - first**2)
        mean[i], error[i] = share @ y, np.sqrt(share @ share)
    return Trend(at, mean, error * float(np.sqrt(np.mean(y**2))))


def _trend(smooth: Trend | None, prob: float) -> Visuals:
    """The trend with two bands, in the panel of fitted values."""
    import arviz_plots as azp

    if smooth is None:
        return {"trend_band": None, "inner_trend_band": None, "trend": None}

    def region(chance: float) -> Any:
        half = float(stats.norm.ppf(0.5 + chance / 2.0)) * smooth.error
        data = dataset({FITTED: band(smooth.x, smooth.mean - half, smooth.mean + half)})
        return azp.visuals.fill_between_y, {"data": data, "color": SECOND, "alpha": BAND_ALPHA}

    line = {"data": dataset({FITTED: points(smooth.x, smooth.mean)}), "color": SECOND, "width": 1.6}
    return {
        "trend_band": region(prob),
        "inner_trend_band": region(inner_probability(prob)),
        "trend": (azp.visuals.line_xy, line),
    }


# --- panels ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """The panel of residuals by level.

    Attributes
    ----------
    panel, name : str
        Its title, and the grouping factor.
    labels : list of str
        Levels in the order of the picture.
    marks, means : xarray.DataArray
        Residuals, and a short line at their mean in each level.
    """

    panel: str
    name: str
    labels: list[str]
    marks: xr.DataArray
    means: xr.DataArray


def _levels(design: Design, group: str | None, residuals: Array) -> _Levels:
    place, order = shown_levels(design, group or design.random[0].name, None)
    factor = design.random[place]
    rows, codes = factor.memberships()
    return _Levels(
        panel=BY_LEVEL.format(factor.name),
        name=factor.name,
        labels=list(factor.levels[order]),
        marks=points(np.argsort(order)[codes], residuals[rows]),
        means=_level_means(factor, order, residuals),
    )


def _effects(design: Design, u: Sequence[Array]) -> dict[str, Array]:
    return {
        f"Q-Q of {factor.name}: {coef}": values[factor.levels_of(c), c]
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
    design: Design, levels: _Levels | None, marks: xr.Dataset, lines: xr.Dataset, unit: str
) -> Visuals:
    """Everything that is drawn, what comes first at the back."""
    import arviz_plots as azp

    by_level = [] if levels is None else [variable_name(levels.panel)]
    zero = xr.Dataset({name: 0.0 for name in (FITTED, *by_level)})
    size = 5 if design.n > 500 else 10
    dots = {"data": marks, "color": MAIN, "size": size, "alpha": 0.55}
    visuals: Visuals = {
        "zero": (azp.visuals.hline, {"data": zero, "color": QUIET, "width": 0.8}),
        "qq_line": (azp.visuals.line_xy, {"data": lines, "color": QUIET, "width": 1.0}),
        "points": (azp.visuals.scatter_xy, dots),
        "level_mean": None,
        "title": titles(marks),
        **_axis_labels(design, levels, marks, unit),
        "xticks": None,
    }
    if levels is None:
        return visuals
    means = {"data": dataset({levels.panel: levels.means}), "color": SECOND, "width": 1.8}
    places, labels = thinned(levels.labels, MOST_LABELS)
    upright = 90 if sum(len(text) + 1 for text in labels) > 36 else 0
    ticks = {"values": places, "labels": labels, "size": TICK_SIZE, "rotation": upright}
    return {
        **visuals,
        "level_mean": (azp.visuals.line_xy, means),
        "xticks": (azp.visuals.set_xticks, {"data": marks[by_level], **ticks}),
    }


def _level_means(factor: RandomFactor, order: NDArray[np.intp], residuals: Array) -> xr.DataArray:
    """A short line at the mean residual of each level."""
    rows, codes = factor.memberships()
    counts = np.bincount(codes, minlength=factor.n_levels)
    sums = np.bincount(codes, weights=residuals[rows], minlength=factor.n_levels)
    at = np.arange(factor.n_levels)
    means = np.divide(sums, counts, out=np.full(factor.n_levels, np.nan), where=counts > 0)
    return segments((at - 0.35, at + 0.35), (means[order],) * 2)


def _axis_labels(design: Design, levels: _Levels | None, marks: xr.Dataset, unit: str) -> Visuals:
    """Texts of the axes, which differ between panels."""
    names = [str(name) for name in marks.data_vars]
    across = {FITTED: f"fitted {design.response}"}
    if levels is not None:
        across[variable_name(levels.panel)] = levels.name
    text_x = dict.fromkeys(names, "normal quantile") | across
    text_y = dict.fromkeys(names, "random effect")
    text_y |= dict.fromkeys((*across, QUANTILES), unit)
    return {
        "xlabel": (own_xlabel, {"data": marks, "texts": text_x, "subset_info": True}),
        "ylabel": (own_ylabel, {"data": marks, "texts": text_y, "subset_info": True}),
    }
