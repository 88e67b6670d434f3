"""Pictures of random effects by level: caterpillars, and what partial pooling does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from bayeslmm.covariance.coordinates import AnyPoints
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.effects import linear_predictor
from bayeslmm.estimation.estimate import Fit, points_of_fits
from bayeslmm.estimation.residuals import require_normal_residuals, residual_blocks
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.likelihood.sums import separate_coefficients
from bayeslmm.plots.common import (
    CIRCLE,
    CROSS,
    DASHED,
    MAIN,
    MOST_LABELS,
    QUIET,
    SECOND,
    SQUARE,
    STRONG,
    Drawing,
    Intervals,
    Visuals,
    chosen,
    dataset,
    height_of,
    inner_probability,
    level_of_picture,
    levels_upwards,
    picture,
    points,
    segments,
    shown_levels,
    titles,
    two_widths,
)
from bayeslmm.plots.panels import WIDTH
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import mode_arrays, mode_sds
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection


Array = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_LEVELS = 2000


def plot_caterpillar(
    design: Design,
    group: str | None,
    levels: Sequence[Any] | None,
    intervals: Callable[[int, Indices], Intervals],
    how: Drawing,
    *,
    coefs: str | Sequence[str] | None = None,
    order: str = "estimate",
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
    how : Drawing
        How to draw it.
    coefs, order
        As in :meth:`bayeslmm.plots.accessors.Plots.caterpillar`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    place, positions = shown_levels(design, group, levels)
    factor = design.random[place]
    if len(positions) > MAX_LEVELS:
        raise DataError(
            f"{factor.name} has {len(positions):,} levels; a picture shows at most "
            f"{MAX_LEVELS:,}. Name those to draw with levels=."
        )
    import arviz_plots as azp

    effects = intervals(place, positions).own(factor, positions)
    names = chosen(coefs, factor.own_coefs, "coefs names {}; the coefficients are: {}.")
    columns = [factor.own_coefs.index(name) for name in names]
    rows = _order(order, factor.own_coefs, effects, columns)
    labels = [factor.levels[positions[row]] for row in rows]
    picked = list(zip(names, columns, strict=True))
    drawn = _caterpillar(effects, rows, picked, labels, factor.name)
    marks = drawn["point"][1]["data"]
    text = {"data": marks, "text": f"effect on {design.response}"}
    zero = {"data": xr.Dataset(dict.fromkeys(marks, 0.0)), "color": QUIET, "width": 0.8}
    return picture(
        how,
        marks,
        {"ref_line": (azp.visuals.vline, zero)},
        {**drawn, "xlabel": (azp.visuals.labelled_x, text)},
        title=f"Random effects of {factor.name} on {design.response}: {effects.label}",
        **_layout(len(names), len(rows)),
    )


def plot_level_coefs(
    levels: Sequence[Any],
    known: Sequence[str],
    intervals: Intervals,
    how: Drawing,
    title: str,
    coefs: str | Sequence[str] | None,
    order: str,
) -> PlotCollection:
    """Draw coefficients (J, p) of regressions in each level, one panel per coefficient.

    Arguments as in :func:`plot_caterpillar`; `known` are the labels of the coefficients.
    """
    if len(levels) > MAX_LEVELS:
        raise DataError(f"A picture shows at most {MAX_LEVELS:,} levels; here are {len(levels):,}.")
    import arviz_plots as azp

    names = chosen(coefs, known, "coefs names {}; the coefficients are: {}.")
    columns = [list(known).index(name) for name in names]
    rows = _order(order, known, intervals, columns)
    labels, group = [levels[row] for row in rows], str(getattr(levels, "name", ""))
    drawn = _caterpillar(intervals, rows, list(zip(names, columns, strict=True)), labels, group)
    marks, layout = drawn["point"][1]["data"], _layout(len(names), len(rows))
    text = {"data": marks, "text": "coefficient"}
    drawn["xlabel"] = (azp.visuals.labelled_x, text)
    return picture(how, marks, drawn, title=title, **layout)


def _layout(panels: int, rows: int) -> dict[str, Any]:
    """Sizes of panels of levels above each other, all in the width of a page."""
    columns = min(panels, 4)
    height = 0.7 + min(max(0.19 * rows, 1.2), 8.5)
    return {"size": (WIDTH / columns, height), "columns": columns, "sharey": True}


def _caterpillar(
    effects: Intervals,
    rows: Indices,
    picked: Sequence[tuple[str, int]],
    labels: list[Any],
    group: str,
) -> dict[str, Any]:
    """Two intervals and a point of each coefficient in each level."""
    import arviz_plots as azp

    y, dense = np.arange(len(rows), dtype=float), len(labels) > MOST_LABELS

    def bars(bounds: tuple[Array, Array]) -> xr.Dataset:
        low, high = (bound[rows] for bound in bounds)
        return dataset({n: segments((low[:, c], high[:, c]), (y, y)) for n, c in picked})

    marks = dataset({n: points(effects.centre[rows, c], y) for n, c in picked})
    style = {"color": MAIN, "width": 0.7 if dense else 1.3}
    inner = {"color": MAIN, "width": 1.5 if dense else 3.2}
    mark = {"data": marks, "color": MAIN, "size": 6 if dense else 20}
    return {
        "interval": (azp.visuals.line_xy, {"data": bars(effects.outer), **style}),
        "inner_interval": (azp.visuals.line_xy, {"data": bars(effects.inner), **inner}),
        "point": (azp.visuals.scatter_xy, mark),
        "title": titles(marks),
        **levels_upwards(marks, group, labels),
    }


def _order(
    order: str, known: Sequence[str], effects: Intervals, columns: Sequence[int]
) -> NDArray[np.intp]:
    """Rows from the bottom of the picture to its top."""
    if order == "label":
        return np.arange(len(effects.centre))[::-1]
    if order == "estimate":
        return np.argsort(effects.centre[:, columns[0]], kind="stable")
    check_choice(order, ["estimate", "label", *known], "order")
    return np.argsort(effects.centre[:, list(known).index(order)], kind="stable")


# --- points and intervals --------------------------------------------------------------


def effects_of_draws(
    joint: JointDraws, prob: float | None, place: int, positions: Indices
) -> Intervals:
    """Posterior means and intervals (m, k) of random effects of a grouping factor."""
    prob, kind = interval_defaults(prob)
    wanted = [np.empty(0, dtype=np.intp)] * len(joint.points.sds)
    wanted[place] = positions
    draws = joint.effects(wanted)[place]
    inner, outer = (interval(draws, p, kind) for p in (inner_probability(prob), prob))
    label = f"posterior mean, {two_widths(prob)} {kind.upper()}"
    return Intervals(draws.mean(axis=0), inner, outer, label)


def effects_of_fit(fit: Fit, level: float | None, place: int, positions: Indices) -> Intervals:
    """Conditional modes and normal intervals (m, k) of random effects of a grouping factor."""
    level = level_of_picture(level)
    centre, sd = mode_arrays(fit)[place][positions], mode_sds(fit)[place][positions]
    inner, outer = (stats.norm.ppf(0.5 + p / 2.0) * sd for p in (inner_probability(level), level))
    label = f"{fit.method} conditional mode, {two_widths(level)} prediction intervals"
    return Intervals(
        centre, (centre - inner, centre + inner), (centre - outer, centre + outer), label
    )


# --- shrinkage ---------------------------------------------------------------------------


ELLIPSES = (0.5, 0.9)
"""Share of levels that the drawn ellipses hold under the estimated covariance matrix."""

DOT = {"linestyle": "none", "marker": CIRCLE}
LEGEND: dict[str, tuple[str, dict[str, Any]]] = {
    "no_pooling": ("no pooling", {**DOT, "color": QUIET}),
    "partial_pooling": ("posterior mean", {**DOT, "color": MAIN}),
    "reml": ("REML", {"linestyle": "none", "marker": CROSS, "color": SECOND}),
    "population": ("population", {"color": STRONG}),
    "ellipse": (
        f"{' and '.join(map(coverage, ELLIPSES))} of levels",
        {"color": QUIET, "linestyle": DASHED, "linewidth": 0.8},
    ),
}
"""Text and style by visual."""

CROWDED, CROWDED_SIZE = 60, 0.3
"""From how many levels on points are smaller, and their size relative to that of few."""


def plot_shrinkage(
    design: Design,
    reml: Fit,
    group: str | None,
    levels: Sequence[Any] | None,
    beta: Array,
    u: Sequence[Array],
    covariances: Sequence[Array],
    how: Drawing,
    *,
    coefs: str | Sequence[str] | None = None,
) -> PlotCollection:
    """Draw coefficients of levels without pooling, with it, and by REML.

    Parameters
    ----------
    design : Design
        The design.
    reml : Fit
        The REML estimate.
    group, levels, coefs
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.shrinkage`.
    beta, u, covariances : ndarray (p,), sequences of ndarray (J, k) and (k, k)
        Posterior means.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection
        Levels from top to bottom where there is one coefficient, a plane where there are two.

    Raises
    ------
    DataError
        If the rows of no level determine its own coefficients.
    """
    place, positions = shown_levels(design, group, levels)
    factor = design.random[place]
    columns = _one_or_two(factor.own_coefs, coefs)
    by_reml = (reml.beta, mode_arrays(reml)[place])
    values = shrinkage(design, place, beta, u, by_reml, points_of_fits([reml]))
    alone = np.isnan(values.no_pooling[positions])
    if alone.all():
        raise DataError(
            f"No level of {factor.name} has rows enough to estimate its own "
            f"{', '.join(factor.own_coefs)}, so there is nothing to shrink from."
        )
    plane = len(columns) == 2
    rows = positions
    if not plane:
        rows = positions[np.argsort(values.partial[positions, columns[0]], kind="stable")]
    contours = [
        _ellipses(values.population[columns], covariances[place][np.ix_(own, own)])
        for own in _spreads(factor, positions, columns)
    ]
    drawn = _shrunk(design, factor, rows, values, columns, np.hstack(contours))
    shown = [name for name in LEGEND if drawn[name] and how.visuals.get(name) is not False]
    legend = {text: dict(style) for text, style in (LEGEND[name] for name in shown)}
    if plane and "population" in legend:
        legend["population"] |= {"linestyle": "none", "marker": SQUARE}
    missing = int(alone.any(axis=1).sum())
    note = f"; {missing} levels have too few rows of their own" if missing else ""
    size = (WIDTH, 5.6) if plane else (WIDTH, height_of(len(rows)))
    title = f"Shrinkage of {factor.name} effects{note}"
    data = xr.Dataset({f"{factor.key} ": 0.0})
    return picture(how, data, drawn, size=size, title=title, legend=legend)


def _one_or_two(known: Sequence[str], coefs: str | Sequence[str] | None) -> list[int]:
    names = [coefs] if isinstance(coefs, str) else list(known[:2] if coefs is None else coefs)
    unknown = [name for name in names if name not in known]
    if unknown or len(names) not in (1, 2) or len(set(names)) < len(names):
        raise ValueError(
            f"coefs={names!r}: one or two different coefficients are expected, of: "
            f"{', '.join(known)}."
        )
    return [known.index(name) for name in names]


def _shrunk(
    design: Design,
    factor: RandomFactor,
    rows: Indices,
    values: Shrinkage,
    columns: Sequence[int],
    contours: Array,
) -> Visuals:
    """Levels in the plane of two coefficients, or from bottom to top by one of them."""
    import arviz_plots as azp

    x, y = columns[0], columns[-1]
    plane = x != y
    heights = np.arange(len(rows), dtype=float)

    def of(values: Array) -> tuple[Array, Array]:
        return values[rows, x], values[rows, y] if plane else heights

    def panel(array: xr.DataArray) -> xr.Dataset:
        return dataset({f"{factor.key} ": array})

    def dots(xy: Iterable[Array], color: str, size: float, **marker: str) -> Any:
        style = {"color": color, "size": size, **marker}
        return azp.visuals.scatter_xy, {"data": panel(points(*xy)), **style}

    alone, partial = of(values.no_pooling), of(values.partial)
    arrows, one = segments(*zip(alone, partial, strict=True)), values.population[[x, y]]
    scale = CROWDED_SIZE if len(rows) > CROWDED else 1.0
    line = {"color": QUIET, "linestyle": DASHED, "width": 0.8}
    data = panel(points(*alone))
    drawn: Visuals = {
        "ellipse": (azp.visuals.line_xy, {"data": panel(points(*contours)), **line}),
        "arrow": (
            azp.visuals.line_xy,
            {"data": panel(arrows), "color": QUIET, "alpha": 0.7, "width": 1.0},
        ),
        "no_pooling": dots(alone, QUIET, scale * 22),
        "reml": dots(of(values.reml), SECOND, scale * 60, marker=CROSS),
        "partial_pooling": dots(partial, MAIN, scale * 30),
        "population": dots(one[:, None], STRONG, 50, marker=SQUARE),
        "xlabel": (azp.visuals.labelled_x, {"data": data, "text": _axis_label(design, factor, x)}),
    }
    if plane:
        label = {"data": data, "text": _axis_label(design, factor, y)}
        return {**drawn, "ylabel": (azp.visuals.labelled_y, label), "yticks": None, "ylim": None}
    mean = {"data": panel(xr.DataArray(one[0])), "color": STRONG, "width": 0.8}
    upwards = levels_upwards(data, factor.name, [factor.levels[row] for row in rows])
    return {**drawn, "population": (azp.visuals.vline, mean), "ellipse": None, **upwards}


def _axis_label(design: Design, factor: RandomFactor, column: int) -> str:
    coef = factor.own_coefs[column]
    kind = "fixed + random" if coef in design.coefs else "random"
    return f"{coef}: {kind} effect on {design.response}"


def _spreads(factor: RandomFactor, positions: Indices, columns: Sequence[int]) -> list[Indices]:
    """Places of two coefficients, or of one twice, in each stratum of the levels that are drawn."""
    own = factor.spec.own_places[positions][:, [columns[0], columns[-1]]]
    return list(np.unique(own, axis=0))


def _ellipses(centre: Array, covariance: Array) -> Array:
    """Contours (2, m) of a normal distribution of levels' coefficients, with gaps after them."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    angles = np.linspace(0.0, 2.0 * np.pi, 101)
    circle = np.vstack([np.cos(angles), np.sin(angles)])
    pieces = []
    for share in ELLIPSES:
        radius = np.sqrt(-2.0 * np.log1p(-share))
        curve = centre[:, None] + radius * root @ circle
        pieces += [curve, np.full((2, 1), np.nan)]
    return np.hstack(pieces)


# --- without pooling ---------------------------------------------------------------------

RANK_TOLERANCE = 1e-10
"""Smallest ratio of singular values at which a level's own coefficients are estimable."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shrinkage:
    """The m coefficients that a level has, for all of them, by how much they are pooled.

    Attributes
    ----------
    population : ndarray (m,)
        Fixed effects that belong to the coefficients; zero for a coefficient without one.
    no_pooling : ndarray (J, m)
        Least squares in each level by itself; NaN where its rows do not determine them.
    partial : ndarray (J, m)
        Population plus random effects.
    reml : ndarray (J, m)
        The same by REML.
    """

    population: Array
    no_pooling: Array
    partial: Array
    reml: Array


def shrinkage(
    design: Design,
    place: int,
    beta: Array,
    u: Sequence[Array],
    reml: tuple[Array, Array],
    points: AnyPoints,
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
    reml : tuple of ndarray (p,) and (J, k)
        Fixed effects and random effects of this factor by REML.
    points : Points
        One, with the covariance parameters of the residuals.

    Returns
    -------
    Shrinkage
        Without pooling, the response less everything that is no coefficient of this factor (other
        fixed effects, other grouping factors, offset) is regressed on the factor's covariates in
        each level by itself.
    """
    factor = design.random[place]
    population = matched_effects(design, place, beta)
    if isinstance(design, SummarisedDesign):
        no_pooling = population + separate_coefficients(design, place, beta, u)
    else:
        kept = [np.zeros_like(v) if f == place else v for f, v in enumerate(u)]
        rest = linear_predictor(design, beta, kept) - own_covariates(factor) @ population
        no_pooling = _separate(design, place, design.y - rest, points)
    return Shrinkage(
        population=population,
        no_pooling=no_pooling,
        partial=population + factor.own(u[place]),
        reml=matched_effects(design, place, reml[0]) + factor.own(reml[1]),
    )


def matched_effects(design: Design, place: int, beta: Array) -> Array:
    """Fixed effects (..., m) of the factor's coefficients, by label; zero where there is none."""
    known = {coef: i for i, coef in enumerate(design.coefs)}
    own = design.random[place].own_coefs
    parts = [beta[..., known[c]] if c in known else np.zeros(beta.shape[:-1]) for c in own]
    return np.stack(parts, axis=-1)


def own_covariates(factor: RandomFactor) -> Array:
    """Covariates (n, m) of the coefficients that the level of each row has."""
    return np.take_along_axis(factor.Z, factor.spec.own_places[factor.codes], axis=1)


def _separate(design: Design, place: int, response: Array, points: AnyPoints) -> Array:
    """Generalised least squares of the response on the covariates, level by level."""
    require_normal_residuals(design, "Least squares level by level")
    factor = design.random[place]
    columns = np.column_stack([own_covariates(factor), response])
    if points.residual.plain:
        columns *= np.sqrt(design.row_weights)[:, None]
    k = columns.shape[1] - 1
    result = np.full((factor.n_levels, k), np.nan)
    by_level = np.argsort(factor.codes, kind="stable")
    bounds = np.searchsorted(factor.codes[by_level], np.arange(factor.n_levels + 1))
    for level, (start, stop) in enumerate(pairwise(bounds)):
        rows = by_level[start:stop]
        white = columns[rows]
        if not points.residual.plain and len(rows):
            root = np.linalg.cholesky(residual_blocks(design, points, rows)[0])
            white = np.linalg.solve(root, white)
        z, y = white[:, :-1], white[:, -1]
        scale = np.linalg.norm(z, axis=0)
        if len(rows) < k or not scale.all():
            continue
        solution, _, rank, _ = np.linalg.lstsq(z / scale, y, rcond=RANK_TOLERANCE)
        if rank == k:
            result[level] = solution / scale
    return result
