"""Data and fitted lines by level of a grouping factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.effects.variables import variables_of
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import DataError
from bayeslmm.formula.grammar import locate
from bayeslmm.plots.common import (
    BAND_ALPHA,
    CIRCLE,
    DASHED,
    DIAMOND,
    MAIN,
    SECOND,
    STRONG,
    TICK_SIZE,
    Drawing,
    Visuals,
    band,
    dataset,
    inner_probability,
    level_of_picture,
    levels_across,
    outer,
    picture,
    points,
    segments,
    shown_levels,
    titles,
    two_widths,
    value_order,
)
from bayeslmm.plots.panels import HEIGHT, WIDTH
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.estimate_tables import mode_arrays
from bayeslmm.summaries.posterior_tables import interval, interval_defaults

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Effects = Callable[[Sequence[Indices]], Sequence[Array]]
Bounds = tuple[Array, Array]
Line = tuple[Array, Bounds, Bounds, Array]
Lines = Sequence[Line]
"""Fitted line, its inner and outer bounds and the population's line (G,) of each level."""

GRID = 40
"""Values of a numeric variable at which lines are evaluated."""

MOST_PANELS = 30
ALL_ROWS = "all rows"
"""Label of the only panel of a model without random effects."""

BESIDE = 0.15
"""How far data and population lie from the fit of a factor, beside each other."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Axis:
    """The variable along which lines are drawn.

    Attributes
    ----------
    name : str
    values : ndarray (G,)
        Values it takes, in its own type.
    places : ndarray (G,)
        Where they are drawn: at themselves, or one after another for a factor.
    numeric : bool
    """

    name: str
    values: NDArray[Any]
    places: Array
    numeric: bool


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LevelGrid:
    """Averages over the rows of a level, with the variable set to each of its values.

    Attributes
    ----------
    label : str
        The level.
    x, y : ndarray (rows,)
        Where its data are drawn.
    X : ndarray (G, p)
        Mean row of the fixed-effects matrix.
    offset : ndarray (G,)
    wanted : tuple of ndarray of int
        Levels of every grouping factor that occur.
    Z : tuple of ndarray (G, m k)
        Mean row of the random-effects matrix of these levels.
    """

    label: str
    x: Array
    y: Array
    X: Array
    offset: Array
    wanted: tuple[Indices, ...]
    Z: tuple[Array, ...]

    def average(self, beta: Array) -> Array:
        """X beta at draws (..., p): (..., G)."""
        return np.asarray(beta @ self.X.T + self.offset)

    def conditional(self, beta: Array, effects: Effects) -> Array:
        """X beta + Z u at draws (S, p): (S, G)."""
        result = self.average(beta)
        for z, u in zip(self.Z, effects(self.wanted), strict=True):
            result = result + u.reshape(*u.shape[:-2], -1) @ z.T
        return result


def axis(design: Design, x: str | None, grouped: Sequence[str] = ()) -> Axis:
    """The variable along which lines are drawn: by default the first numeric fixed one.

    Variables in `grouped`, those that make the levels, are drawn only where asked for. A number
    that the formula makes a factor, as ``C(day)`` does, is drawn as one.

    Raises
    ------
    DataError
        If there is no such variable, or none by default.
    """
    formula = design.formula
    allowed = formula.predictors(effects=False, groups=False).union(
        *(term.left.variables for term in formula.random)
    )
    ordered = sorted(allowed, key=lambda name: locate(design.formula.source, name))
    levels = _factor_levels(design)
    if x is None:
        x = _first_variable(design, ordered, levels, grouped)
    if x not in allowed:
        listed = ", ".join(ordered) or "none"
        raise DataError(f"x={x!r} is no covariate of the formula; its covariates are: {listed}.")
    if x in levels:
        labels = np.array(levels[x], dtype=object)[value_order(levels[x], design.data[x])]
        places = np.arange(len(labels), dtype=float)
        return Axis(name=x, values=labels, places=places, numeric=False)
    column = design.data[x]
    values = np.linspace(float(column.min()), float(column.max()), GRID)
    return Axis(name=x, values=values, places=values, numeric=True)


def _factor_levels(design: Design) -> dict[str, list[Any]]:
    """Levels of the variables that are factors in the fixed or random effects."""
    formula = design.formula
    found: dict[str, list[Any]] = {}
    for part in (formula.right, *(term.left for term in formula.random)):
        found |= variables_of(design, part).levels
    return found


def _first_variable(
    design: Design, ordered: Sequence[str], levels: Mapping[str, Any], grouped: Sequence[str]
) -> str:
    """The first numeric variable of the fixed effects, or else the first of any."""
    fixed = design.formula.predictors(effects=False, groups=False)
    numeric = [name for name in ordered if name in fixed and name not in levels]
    candidates = numeric or [name for name in ordered if name in fixed] or ordered
    candidates = [name for name in candidates if name not in grouped]
    if not candidates:
        raise DataError(
            f"{design.formula.source} has no covariate to draw lines along. "
            "fit.plot.caterpillar() shows its levels."
        )
    return candidates[0]


def level_grid(design: Design, place: int, level: int, along: Axis) -> LevelGrid:
    """Mean rows of X and Z in a level, at each value of a variable.

    Raises
    ------
    DataError
        If the variable decides the level, or its values make levels that the model has not seen.
    """
    factor = design.random[place]
    if along.name in factor.factors:
        raise DataError(f"x={along.name!r} is part of the grouping factor {factor.name}.")
    kept = factor.codes == level
    if not kept.any():
        raise DataError(f"{factor.name} {factor.levels[level]} has no rows, so no line to draw.")
    return _grid(design, kept, str(factor.levels[level]), along, f"{factor.name} ")


def whole_grid(design: Design, along: Axis) -> LevelGrid:
    """Mean rows of X over all rows of a model without random effects."""
    return _grid(design, np.ones(design.n, dtype=bool), ALL_ROWS, along)


def _grid(
    design: Design, kept: NDArray[np.bool_], label: str, along: Axis, group: str = ""
) -> LevelGrid:
    rows = design.data[kept]
    names = sorted(design.formula.predictors())
    others = [name for name in names if name != along.name]
    rows = rows.reset_index(drop=True)
    distinct = rows[others].drop_duplicates() if others else rows[others].iloc[:1]
    counts = np.array([float(len(rows))])
    if others:
        groups = rows.groupby(others, sort=False, observed=True).ngroup()
        counts = np.bincount(groups.to_numpy()).astype(float)
    grid = len(along.values)
    frame = distinct.iloc[np.tile(np.arange(len(distinct)), grid)].reset_index(drop=True)
    new = np.repeat(along.values, len(distinct))
    frame[along.name] = new if along.numeric else pd.Series(new).astype(rows[along.name].dtype)
    found = design.spec.rows(frame, random="levels")
    wanted, means = [], []
    for random in found.random:
        if (random.codes < 0).any():
            raise DataError(
                f"Some levels of {random.name} do not occur with every value of {along.name}, so "
                f"the line of {group}{label} is not known there. Choose another x."
            )
        levels, codes = np.unique(random.codes, return_inverse=True)
        spread = np.zeros((len(frame), len(levels), random.n_coefs))
        spread[np.arange(len(frame)), codes] = random.Z
        wanted.append(levels)
        means.append(_means(spread.reshape(len(frame), -1), counts, grid))
    return LevelGrid(
        label=label,
        x=_drawn_at(rows[along.name], along),
        y=design.y[kept],
        X=_means(found.X, counts, grid),
        offset=_means(found.offset[:, None], counts, grid)[:, 0],
        wanted=tuple(wanted),
        Z=tuple(means),
    )


def _means(values: Array, counts: Array, grid: int) -> Array:
    """Weighted means (grid, m) of rows (grid x distinct rows, m)."""
    stacked = values.reshape(grid, len(counts), -1)
    return np.asarray(np.einsum("r,grm->gm", counts / counts.sum(), stacked))


def _drawn_at(column: pd.Series, along: Axis) -> Array:
    if along.numeric:
        return column.to_numpy(dtype=float)
    place = {value: position for position, value in enumerate(along.values)}
    return np.array([place[value] for value in column], dtype=float)


def grids_of(
    design: Design, x: str | None, group: str | None, levels: Sequence[Any] | None
) -> tuple[RandomFactor | None, Axis, list[LevelGrid]]:
    """A grouping factor, the variable along which lines go, and grids of the levels.

    Where no levels are given, they are as many as fit, evenly spaced. Without random effects there
    is no factor, and one grid of all rows.
    """
    if not design.random and group is None and levels is None:
        along = axis(design, x)
        return None, along, [whole_grid(design, along)]
    place, positions = shown_levels(design, group, levels)
    along = axis(design, x, design.random[place].factors)
    if levels is None and len(positions) > MOST_PANELS:
        positions = np.linspace(0, len(positions) - 1, MOST_PANELS).round().astype(np.intp)
    grids = [level_grid(design, place, level, along) for level in positions]
    return design.random[place], along, grids


def plot_fitted(
    design: Design,
    x: str | None,
    group: str | None,
    levels: Sequence[Any] | None,
    lines_at: Callable[[Sequence[LevelGrid]], tuple[Lines, str]],
    how: Drawing,
) -> PlotCollection:
    """Draw data and fitted lines, a panel per level, or one without random effects.

    Parameters
    ----------
    design : Design
        The design.
    x, group : str, optional
        Variable on the x axis, and grouping factor.
    levels : sequence, optional
        Its levels; all that fit by default.
    lines_at : callable
        Takes data and mean rows per level; returns fitted line, its inner and outer bounds and the
        population's line (G,) per level, and what line and bands are.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    factor, along, grids = grids_of(design, x, group, levels)
    lines, label = lines_at(grids)
    data, drawn = _visuals(along, grids, lines)
    dot = {"linestyle": "none", "marker": CIRCLE}
    line, average = {"color": MAIN}, {"color": SECOND, "linestyle": DASHED}
    if not along.numeric:
        line, average = {**dot, **line}, {"linestyle": "none", "marker": DIAMOND, "color": SECOND}
    legend = {"data": {"color": STRONG, **dot}, label: line}
    columns = _per_row(len(grids))
    width = WIDTH / columns
    title = f"{design.response} by {along.name}"
    if factor is None:  # the population's line is the fitted one
        drawn["population"] = None
    else:
        legend["population (fixed effects only)"] = average
        title += f" in each {factor.name}"
        if len(grids) < factor.n_levels:
            title += f" ({len(grids)} of {factor.n_levels} levels)"
    return picture(
        how,
        data,
        {**drawn, **_axes(design, along, data)},
        size=(width, max(1.5, 0.8 * width)) if factor is not None else (WIDTH, HEIGHT),
        title=title,
        legend=legend,
        columns=columns,
        sharex=True,
        sharey=True,
    )


def _per_row(count: int) -> int:
    """Panels beside each other: no more than a page has room for."""
    return min(count, 3) if count <= 6 else 5 if count > 20 else 4


def _visuals(along: Axis, grids: Sequence[LevelGrid], lines: Lines) -> tuple[xr.Dataset, Visuals]:
    """The data as drawn, and all visuals but those of the axes."""
    import arviz_plots as azp

    names = [grid.label for grid in grids]
    at = along.places

    def each(make: Callable[[Line], Any]) -> Any:
        return dataset(dict(zip(names, map(make, lines), strict=True)))

    aside = 0.0 if along.numeric else BESIDE
    data = dataset(
        {name: points(grid.x - aside, grid.y) for name, grid in zip(names, grids, strict=True)}
    )
    fitted, population = each(lambda v: points(at, v[0])), each(lambda v: points(at + aside, v[3]))
    bands = [each(lambda v: band(at, *v[2])), each(lambda v: band(at, *v[1]))]
    if along.numeric:
        spread = {"color": MAIN, "alpha": BAND_ALPHA}
        average = {"color": SECOND, "linestyle": DASHED, "width": 1.2}
        main: Visuals = {
            "interval": (azp.visuals.fill_between_y, {"data": bands[0], **spread}),
            "inner_interval": (azp.visuals.fill_between_y, {"data": bands[1], **spread}),
            "population": (azp.visuals.line_xy, {"data": population, **average}),
            "fitted": (azp.visuals.line_xy, {"data": fitted, "color": MAIN, "width": 1.6}),
        }
    else:
        bars = [each(lambda v: segments((at, at), v[2])), each(lambda v: segments((at, at), v[1]))]
        average = {"color": SECOND, "marker": DIAMOND, "size": 22}
        main = {
            "interval": (azp.visuals.line_xy, {"data": bars[0], "color": MAIN, "width": 1.3}),
            "inner_interval": (azp.visuals.line_xy, {"data": bars[1], "color": MAIN, "width": 3.2}),
            "population": (azp.visuals.scatter_xy, {"data": population, **average}),
            "fitted": (azp.visuals.scatter_xy, {"data": fitted, "color": MAIN, "size": 20}),
        }
    mark = {"data": data, "color": STRONG, "size": 10, "alpha": 0.7}
    return data, {**main, "data": (azp.visuals.scatter_xy, mark)}


def _axes(design: Design, along: Axis, data: xr.Dataset) -> Visuals:
    """Titles, and labels and ticks at the outer panels."""
    import arviz_plots as azp

    def bottom(collection: PlotCollection) -> xr.Dataset:
        return outer(collection, data)[0]

    def left(collection: PlotCollection) -> xr.Dataset:
        return outer(collection, data)[1]

    visible = {"data": bottom, "axis": "x", "visible": True}
    axes: Visuals = {
        "title": titles(data),
        "xlabel": (azp.visuals.labelled_x, {"data": bottom, "text": along.name}),
        "ylabel": (azp.visuals.labelled_y, {"data": left, "text": design.response}),
        "xticks": None,
        "xlim": None,
        "ticks": (azp.visuals.ticklabel_props, {"data": data, "axis": "both", "size": TICK_SIZE}),
    }
    if not along.numeric:
        axes |= levels_across(data, [str(value) for value in along.values], len(along.values))
    return {**axes, "ticklabels": (azp.visuals.set_ticklabel_visibility, visible)}


def lines_of_draws(
    joint: JointDraws, prob: float | None, grids: Sequence[LevelGrid]
) -> tuple[Lines, str]:
    """Mean and interval of X beta + Z u, and mean of X beta, on the grid of each level."""
    prob, kind = interval_defaults(prob)
    lines = []
    for grid in grids:
        draws = grid.conditional(joint.beta, joint.effects)
        inner, outer = (interval(draws, p, kind) for p in (inner_probability(prob), prob))
        lines.append((draws.mean(axis=0), inner, outer, grid.average(joint.beta.mean(axis=0))))
    return lines, f"conditional mean: posterior mean, {two_widths(prob)} {kind.upper()}"


def lines_of_fit(
    fit: Fit, joint: JointDraws, grids: Sequence[LevelGrid], level: float | None
) -> tuple[Lines, str]:
    """Estimate of X beta + Z u with the interval of its draws, and X beta, for each level."""
    level, modes = level_of_picture(level), mode_arrays(fit)
    lines = []
    for grid in grids:
        draws = grid.conditional(joint.beta, joint.effects)
        inner, outer = (interval(draws, p, "eti") for p in (inner_probability(level), level))
        centre = grid.conditional(
            fit.beta, lambda wanted: [u[w] for u, w in zip(modes, wanted, strict=True)]
        )
        lines.append((centre, inner, outer, grid.average(fit.beta)))
    return lines, f"conditional mean: {fit.method}, {two_widths(level)} intervals"
