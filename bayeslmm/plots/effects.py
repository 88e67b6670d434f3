"""Pictures of random effects by level: caterpillars, and what partial pooling does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.data.design import Design
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    CIRCLE,
    CROSS,
    DASHED,
    MAIN,
    PANEL_TITLE_SIZE,
    QUIET,
    SECOND,
    SQUARE,
    STRONG,
    TICK_SIZE,
    Backend,
    Intervals,
    Visuals,
    add_legend,
    add_title,
    check_visuals,
    chosen_backend,
    dataset,
    draw,
    level_of_picture,
    panels,
    points,
    segments,
    set_yticks,
    thinned,
)
from bayeslmm.plots.level_order import shown_levels
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import mode_arrays, mode_sds
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection


Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_LEVELS = 2000
MOST_LABELS = 45
PANEL_WIDTH, SINGLE_WIDTH = 3.2, 5.0
CATERPILLAR = (
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
    check_visuals(visuals, CATERPILLAR)
    place, positions = shown_levels(design, group, levels)
    _check_drawable(design, place, len(positions))
    effects = intervals(place, positions)
    factor = design.random[place]
    columns = _some_columns(factor.coefs, coefs)
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
    draw(collection, _caterpillar(marks, bars, labels, factor.name, design.response), visuals)
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


def _caterpillar(
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


def _some_columns(known: Sequence[str], wanted: str | Sequence[str] | None) -> list[int]:
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


# --- points and intervals --------------------------------------------------------------


def effects_of_draws(
    design: Design, joint: JointDraws, place: int, positions: Indices, prob: float | None
) -> Intervals:
    """Posterior means and intervals (m, k) of random effects of a grouping factor."""
    prob, kind = interval_defaults(prob)
    wanted = [np.empty(0, dtype=np.intp)] * len(design.random)
    wanted[place] = positions
    draws = joint.effects(wanted)[place]
    lower, upper = interval(draws, prob, kind)
    label = f"posterior mean and {coverage(prob)} {kind.upper()}"
    return Intervals(draws.mean(axis=0), lower, upper, label)


def effects_of_fit(fit: Fit, place: int, positions: Indices, level: float | None) -> Intervals:
    """Conditional modes and normal intervals (m, k) of random effects of a grouping factor."""
    level = level_of_picture(level)
    z = stats.norm.ppf(0.5 + level / 2.0)
    centre, sd = mode_arrays(fit)[place][positions], mode_sds(fit)[place][positions]
    label = f"{fit.method} conditional mode and {coverage(level)} prediction interval"
    return Intervals(centre, centre - z * sd, centre + z * sd, label)


# --- shrinkage ---------------------------------------------------------------------------


ELLIPSES = (0.5, 0.9)
"""Share of levels that the drawn ellipses hold under the estimated covariance matrix."""

MOST_LABELS = 45
CROWDED, CROWDED_SIZE = 60, 0.3
"""From how many levels on points are smaller, and their size relative to that of few."""
SHRINKAGE = (
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
    check_visuals(visuals, SHRINKAGE)
    columns = _one_or_two(design, place, coefs)
    if np.isnan(values.no_pooling[positions]).all():
        raise DataError(
            f"No level of {design.random[place].name} has rows enough to estimate its own "
            f"{', '.join(design.random[place].coefs)}, so there is nothing to shrink from."
        )
    if len(columns) == 1:
        drawn, size = _one(design, place, positions, values, columns[0])
    else:
        drawn, size = _two(design, place, positions, values, columns)
    data = xr.Dataset({_panel(design, place): drawn["no_pooling"][1]["data"].to_array()[0]})
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


def _panel(design: Design, place: int) -> str:
    return f"{design.random[place].key} "


def _one_or_two(design: Design, place: int, coefs: Sequence[str] | None) -> list[int]:
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

    name = _panel(design, place)
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

    factor, name = design.random[place], _panel(design, place)
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
    data = dataset({_panel(design, place): arrays["no_pooling"]})
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


# --- without pooling ---------------------------------------------------------------------

RANK_TOLERANCE = 1e-10
"""Smallest ratio of singular values at which a level's own coefficients are estimable."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shrinkage:
    """Coefficients of the levels of a grouping factor, by how much they are pooled.

    Attributes
    ----------
    population : ndarray (k,)
        Fixed effects that belong to the coefficients; zero for a coefficient without one.
    no_pooling : ndarray (J, k)
        Least squares in each level by itself; NaN where its rows do not determine them.
    partial : ndarray (J, k)
        Population plus random effects.
    reml : ndarray (J, k) or None
        The same by REML.
    covariance : ndarray (k, k)
        Of the random effects.
    """

    population: Array
    no_pooling: Array
    partial: Array
    reml: Array | None
    covariance: Array


def shrinkage(
    design: Design,
    place: int,
    beta: Array,
    u: Sequence[Array],
    covariance: Array,
    reml: tuple[Array, Array] | None = None,
) -> Shrinkage:
    """Coefficients by level without pooling and with it.

    Parameters
    ----------
    design : Design
        The design.
    place : int
        Place of the grouping factor.
    beta : ndarray (p,)
        Fixed effects.
    u : sequence of ndarray (J, k)
        Random effects of every grouping factor.
    covariance : ndarray (k, k)
        Covariance matrix of the random effects of the one drawn.
    reml : tuple of ndarray (p,) and (J, k), optional
        Fixed effects and random effects of this factor by REML.

    Returns
    -------
    Shrinkage
        Without pooling, the response less everything that is no coefficient of this factor (other
        fixed effects, other grouping factors, offset) is regressed on the factor's covariates in
        each level by itself.
    """
    factor = design.random[place]
    population = _matched(design, place, beta)
    kept = [np.zeros_like(v) if f == place else v for f, v in enumerate(u)]
    rest = linear_predictor(design, beta, kept) - factor.Z @ population
    no_pooling = _separate(design, place, design.y - rest)
    by_reml = None if reml is None else _matched(design, place, reml[0]) + reml[1]
    return Shrinkage(
        population=population,
        no_pooling=no_pooling,
        partial=population + u[place],
        reml=by_reml,
        covariance=covariance,
    )


def _matched(design: Design, place: int, beta: Array) -> Array:
    """Fixed effects of the factor's coefficients, by label; zero where there is none."""
    fixed = dict(zip(design.coefs, beta, strict=True))
    return np.array([fixed.get(coef, 0.0) for coef in design.random[place].coefs])


def _separate(design: Design, place: int, response: Array) -> Array:
    """Weighted least squares of the response on the covariates, level by level."""
    factor = design.random[place]
    root = np.ones(design.n) if design.weights is None else np.sqrt(design.weights)
    z, y = factor.Z * root[:, None], response * root
    result = np.full((factor.n_levels, factor.n_coefs), np.nan)
    by_level = np.argsort(factor.codes, kind="stable")
    bounds = np.searchsorted(factor.codes[by_level], np.arange(factor.n_levels + 1))
    for level, (start, stop) in enumerate(pairwise(bounds)):
        rows = by_level[start:stop]
        scale = np.linalg.norm(z[rows], axis=0)
        if len(rows) < factor.n_coefs or not scale.all():
            continue
        solution, _, rank, _ = np.linalg.lstsq(z[rows] / scale, y[rows], rcond=RANK_TOLERANCE)
        if rank == factor.n_coefs:
            result[level] = solution / scale
    return result
