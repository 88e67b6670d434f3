"""Predictive checks: replicated responses against the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.exceptions import DataError, SamplingError, check_choice
from bayeslmm.plots.common import (
    CIRCLE,
    DIAMOND,
    MAIN,
    PANEL_TITLE_SIZE,
    SECOND,
    STRONG,
    TICK_SIZE,
    TRIANGLE,
    Drawing,
    Visuals,
    add_legend,
    add_title,
    arviz_plots,
    band,
    dataset,
    draw,
    group_order,
    height_of,
    inner_probability,
    levels_upwards,
    outer,
    picture,
    plain,
    points,
    segments,
    titles,
    two_widths,
    variable_name,
)
from bayeslmm.plots.fitted import axis
from bayeslmm.plots.panels import HEIGHT, WIDTH
from bayeslmm.plots.parameters import plot_uniformity
from bayeslmm.prediction.checks import (
    STATISTICS,
    Statistic,
    check_statistic,
    check_table,
    predictive_dataset,
    row_groups,
)
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.sampling.tree import RESPONSE, with_groups
from bayeslmm.schema import OBS_DIM
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Kind = Literal["dist", "interval", "tstat", "pit", "loo_pit"]

NAMES = {"pit": "PIT", "loo_pit": "LOO-PIT"}
MOST_BARS = 60
"""Rows up to which each has an interval of its own; of more, intervals make bands."""

GROUP, PRIOR = "posterior_predictive", "prior_predictive"
MOST_PANELS = 24
REPLICATES = 50
"""Replicates of which densities are drawn, as many as ArviZ draws by default."""

DENSITIES = {
    "predictive_dist": {"color": MAIN, "alpha": 0.25},
    "observed_dist": {"color": STRONG, "width": 2.0},
}
ENTRIES = {"observed": {"color": STRONG}, "replicated": {"color": MAIN}}
PRIOR_ENTRIES = {"observed": {"color": STRONG}, "drawn from the prior": {"color": MAIN}}


def plot_predictive(
    design: Design,
    data: xr.DataTree,
    kind: Kind,
    loo_pit: Callable[[], Array],
    how: Drawing,
    *,
    by: str | None = None,
    x: str | None = None,
    statistic: str | Statistic = "mean",
    prob: float | None = None,
) -> PlotCollection:
    """Draw a predictive check with ArviZ's functions, or one by the levels of a factor.

    Parameters
    ----------
    design : Design
        The design.
    data : DataTree
        With group posterior_predictive, except for "loo_pit".
    loo_pit : callable
        Returns the probability integral transform (n,) of each row left out.
    how : Drawing
        How to draw it.
    kind, by, x, statistic, prob
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.predictive`.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    ValueError
        If the kind is unknown, or does not go by levels.
    SamplingError
        If the group is missing.
    """
    _check(data, kind, by, x, statistic)
    if kind == "tstat" and by is not None:
        chance, values = interval_defaults(prob)[0], replicated(data)
        wide, narrow = (
            check_table(design, values, statistic, by, p)
            for p in (chance, inner_probability(chance))
        )
        return _by_level(design, wide, narrow, _statistic_name(statistic), prob, how)
    if kind == "dist":
        data = _few(data, how.pc_kwargs.get("num_samples", REPLICATES))
    if kind == "dist" and by is not None:
        title = f"Replicated and observed {design.response} by {by}"
        return _densities(design, data, by, how, title)
    if kind == "interval":
        return _intervals(design, replicated(data), by, x, prob, how)
    if kind in ("pit", "loo_pit"):
        values = loo_pit() if kind == "loo_pit" else _transforms(design, replicated(data))
        name = f"{'Leave-one-out p' if kind == 'loo_pit' else 'P'}robability integral transform"
        short, (chance, _) = NAMES[kind], interval_defaults(prob)
        return plot_uniformity(values, short, f"{name} of {design.response}", chance, how)
    collection = _by_arviz(design, data, kind, statistic, how)
    titles = {
        "dist": f"Replicated and observed {design.response}",
        "tstat": f"Replicated and observed {_statistic_name(statistic)} of {design.response}",
    }
    add_title(collection, titles[kind], how.visuals)
    return collection


def with_replicates(
    data: xr.DataTree,
    design: Design,
    joint: JointDraws,
    kind: str,
    random_seed: int | np.random.Generator | None,
) -> xr.DataTree:
    """Draws with conditional replicates of the response where a picture needs them and has none."""
    if GROUP in data.children or kind == "loo_pit":
        return data
    rng = seeded(random_seed)
    replicates = predictive_dataset(design, joint, "conditional", rng)
    return with_groups(data, posterior_predictive=replicates)


def _check(
    data: xr.DataTree, kind: str, by: str | None, x: str | None, statistic: str | Statistic
) -> None:
    check_choice(kind, get_args(Kind), "kind")
    if kind == "tstat":
        check_statistic(statistic)
    if by is not None and kind not in ("dist", "interval", "tstat"):
        raise ValueError(f"by={by!r} goes with kind 'dist', 'interval' or 'tstat', not {kind!r}.")
    if x is not None and (kind != "interval" or by is None):
        raise ValueError(f"x={x!r} goes with kind 'interval' and by=, whose panels it runs along.")
    if kind != "loo_pit" and GROUP not in data.children:
        raise SamplingError(
            f"The posterior has no group {GROUP}. Add it first: "
            "post = post.with_posterior_predictive(random_seed=1)"
        )


def _statistic_name(statistic: str | Statistic) -> str:
    if not isinstance(statistic, str):
        return str(getattr(statistic, "__name__", "statistic"))
    return {"sd": "standard deviation", "min": "minimum", "max": "maximum"}.get(
        statistic, statistic
    )


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def replicated(data: xr.DataTree) -> Array:
    """Replicated responses (S, n)."""
    values = data[GROUP][RESPONSE].to_numpy()
    return np.asarray(values.reshape(-1, values.shape[-1]))


def _few(data: xr.DataTree, wanted: int, name: str = GROUP) -> xr.DataTree:
    """Observed data and as many replicates as are drawn: ArviZ looks at all that it is given."""
    group = data[name].to_dataset()
    each = min(-(-wanted // group.sizes["chain"]), group.sizes["draw"])
    places = np.linspace(0, group.sizes["draw"] - 1, each).round().astype(np.intp)
    groups = {name: group.isel(draw=places), "observed_data": data["observed_data"].to_dataset()}
    return xr.DataTree.from_dict(groups)


def _by_arviz(
    design: Design,
    data: xr.DataTree,
    kind: str,
    statistic: str | Statistic,
    how: Drawing,
) -> PlotCollection:
    """One panel by ArviZ, with the response named on its axis."""
    azp, common = arviz_plots(), _settings(how)
    observed: dict[str, Any] = {"linestyle": "none"}
    if kind == "dist":
        observed, shown = {}, how.of_arviz(title=False, **DENSITIES)
        collection = azp.plot_ppc_dist(data, visuals=shown, **common)
    else:
        mark = {"color": STRONG, "size": 60, "marker": TRIANGLE}
        shown = how.of_arviz(title=False, observed_tstat=mark, dist={"color": MAIN})
        function = STATISTICS[statistic] if isinstance(statistic, str) else statistic

        def of_one_response(y: Array) -> float:  # as checks compute it: ArviZ's sd divides by n
            return float(function(y))

        collection = azp.plot_ppc_tstat(data, t_stat=of_one_response, visuals=shown, **common)
        observed["marker"] = TRIANGLE
    _name_response(collection, design, kind, statistic)
    add_legend(collection, {**ENTRIES, "observed": ENTRIES["observed"] | observed}, how.visuals)
    return collection


def _transforms(design: Design, values: Array) -> Array:
    """Share (n,) of replicates (S, n) below each response; ties count half."""
    return np.asarray((values < design.y).mean(axis=0) + 0.5 * (values == design.y).mean(axis=0))


def _settings(how: Drawing) -> dict[str, Any]:
    """Arguments of ArviZ's functions for one wide panel."""
    return {"backend": how.backend, **how.pc_kwargs, "figure_kwargs": how.figure(WIDTH, 3.6)}


def _name_response(
    collection: PlotCollection, design: Design, kind: str, statistic: str | Statistic
) -> None:
    """Name the response on the axis that it is on, where ArviZ does not."""
    import arviz_plots as azp

    text = plain(design.response)
    if kind == "tstat":
        text = f"{_statistic_name(statistic)} of {text}"
    data = xr.Dataset({RESPONSE: 0.0})
    collection.map(azp.visuals.labelled_x, "response", data=data, text=text, ignore_aes="all")


def _panel_rows(design: Design, by: str, fewest: int = 1) -> dict[str, NDArray[np.intp]]:
    """Rows of each panel.

    Raises
    ------
    DataError
        If there are too many levels, or one has too few rows.
    """
    groups = row_groups(design, by)
    if len(groups) > MOST_PANELS:
        raise DataError(
            f"{by} has {len(groups)} levels; a picture shows at most {MOST_PANELS} panels. "
            "kind='tstat' shows a statistic of each."
        )
    if small := [str(label) for label, rows in groups.items() if len(rows) < fewest]:
        raise DataError(
            f"{by} has levels with fewer than three rows ({', '.join(small[:5])}), which have no "
            "density. kind='tstat' shows a statistic of each."
        )
    labels = list(groups)
    ordered = [labels[place] for place in group_order(design, by, labels)]
    return {variable_name(str(label)): groups[label] for label in ordered}


def _by_panel(data: xr.DataTree, rows_of: Mapping[str, NDArray[np.intp]], name: str) -> xr.DataTree:
    """Replicates and data with one variable per panel."""
    return xr.DataTree.from_dict(
        {
            group: xr.Dataset(
                {
                    panel: data[group][RESPONSE]
                    .isel({OBS_DIM: rows})
                    .drop_vars(OBS_DIM, errors="ignore")
                    .rename({OBS_DIM: f"row_{i}"})
                    for i, (panel, rows) in enumerate(rows_of.items())
                }
            )
            for group in (name, "observed_data")
        }
    )


def _densities(
    design: Design, data: xr.DataTree, by: str, how: Drawing, title: str, group: str = GROUP
) -> PlotCollection:
    """Densities of the response by level: one variable, and so one panel, per level."""
    azp = arviz_plots()
    names = _panel_rows(design, by, fewest=3)
    collection = azp.plot_ppc_dist(
        _by_panel(data, names, group),
        group=group,
        backend=how.backend,
        visuals=how.of_arviz(title={"size": PANEL_TITLE_SIZE}, **DENSITIES),
        **how.layout(len(names), (WIDTH / min(len(names), 4), 1.5), sharex=True),
    )
    bottom, _ = outer(collection, xr.Dataset(dict.fromkeys(names, 0.0)))
    label = {"data": bottom, "text": design.response}
    draw(collection, {"response": (azp.visuals.labelled_x, label)})
    entries = ENTRIES if group == GROUP else PRIOR_ENTRIES
    add_legend(collection, entries, how.visuals)
    add_title(collection, title, how.visuals)
    return collection


def plot_prior_predictive(
    design: Design, data: xr.DataTree, how: Drawing, *, by: str | None = None
) -> PlotCollection:
    """Draw densities of responses drawn from the prior over that of the data.

    Parameters
    ----------
    design : Design
        The design.
    data : DataTree
        With group prior_predictive.
    how : Drawing
        How to draw it.
    by : str, optional
        Grouping factor or variable, a panel per level.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    if PRIOR not in data.children:
        raise DataError(
            "Responses drawn from the prior need the rows of the data, of which the model keeps "
            "sums. Make the model of a data frame in memory; fit.plot of prior densities and of "
            "what they imply need no rows."
        )
    data = _few(data, how.pc_kwargs.get("num_samples", REPLICATES), PRIOR)
    few = {"num_samples": data[PRIOR].sizes["draw"]}
    how = replace(how, pc_kwargs={**how.pc_kwargs, **few})
    title = f"{design.response}: drawn from the prior, and observed"
    if by is not None:
        return _densities(design, data, by, how, f"{title}, by {by}", PRIOR)
    azp = arviz_plots()
    shown = how.of_arviz(title=False, **DENSITIES)
    collection: PlotCollection = azp.plot_ppc_dist(
        data, group=PRIOR, visuals=shown, **_settings(how)
    )
    _name_response(collection, design, "dist", "mean")
    add_legend(collection, PRIOR_ENTRIES, how.visuals)
    add_title(collection, title, how.visuals)
    return collection


# --- intervals of rows -----------------------------------------------------------------


def _intervals(
    design: Design, values: Array, by: str | None, x: str | None, prob: float | None, how: Drawing
) -> PlotCollection:
    """Two predictive intervals of each row, by predicted mean or by covariate and group."""
    import arviz_plots as azp

    chance, kind = interval_defaults(prob)
    inner, wide = (interval(values, p, kind) for p in (inner_probability(chance), chance))
    mean, y = values.mean(axis=0), design.y
    outside = (y < wide[0]) | (y > wide[1])
    if by is None:
        rows_of, along = {"rows": np.argsort(mean, kind="stable")}, "rows by predicted mean"
        at = np.empty(design.n)
        at[rows_of["rows"]] = np.arange(1.0, design.n + 1.0)
    else:
        rows_of = _panel_rows(design, by)
        along, at = _covariate(design, by, x, rows_of)
    smooth = by is None and design.n > MOST_BARS

    def each(make: Callable[[NDArray[np.intp]], xr.DataArray]) -> xr.Dataset:
        return dataset({label: make(rows) for label, rows in rows_of.items()})

    def region(bounds: tuple[Array, Array], width: float) -> Any:
        low, high = bounds
        if smooth:
            shaded = each(lambda r: band(at[r], low[r], high[r]))
            return azp.visuals.fill_between_y, {"data": shaded, "color": MAIN, "alpha": 0.25}
        bars = each(lambda r: segments((at[r], at[r]), (low[r], high[r])))
        return azp.visuals.line_xy, {"data": bars, "color": MAIN, "width": width}

    def marks(shown: NDArray[np.bool_], color: str, size: float) -> Any:
        data = each(lambda r: points(at[r][shown[r]], y[r][shown[r]]))
        return azp.visuals.scatter_xy, {"data": data, "color": color, "size": size}

    data = each(lambda r: points(at[r], y[r]))
    size = 6.0 if design.n > 500 else 10.0
    columns = min(len(rows_of), 3) if len(rows_of) <= 6 else 4
    drawn: Visuals = {
        "interval": region(wide, 1.2),
        "inner_interval": region(inner, 2.8),
        "observed": marks(~outside, STRONG, size),
        "outside": marks(outside, SECOND, 1.6 * size) if outside.any() else None,
        "title": titles(data) if by is not None else None,
        "xlabel": (azp.visuals.labelled_x, {"data": lambda c: outer(c, data)[0], "text": along}),
        "ylabel": (
            azp.visuals.labelled_y,
            {"data": lambda c: outer(c, data)[1], "text": design.response},
        ),
        "ticks": (azp.visuals.ticklabel_props, {"data": data, "axis": "both", "size": TICK_SIZE}),
    }
    if by is not None:
        visible = {"data": lambda c: outer(c, data)[0], "axis": "x", "visible": True}
        drawn["ticklabels"] = (azp.visuals.set_ticklabel_visibility, visible)
    share = f"outside {coverage(chance)}: {outside.sum():,} of {design.n:,} rows"
    dot = {"marker": CIRCLE, "linestyle": "none"}
    return picture(
        how,
        data,
        drawn,
        size=(WIDTH / columns, HEIGHT if by is None else 1.5 if columns == 4 else 2.0),
        title=f"{two_widths(chance)} predictive intervals of {design.response}",
        legend={
            f"{two_widths(chance)} {kind.upper()}": {"color": MAIN},
            "observed": {"color": STRONG, **dot},
            **({share: {"color": SECOND, **dot}} if outside.any() else {}),
        },
        columns=columns,
        sharex=by is not None,
        sharey=by is not None,
    )


def _covariate(
    design: Design, by: str, x: str | None, rows_of: Mapping[str, NDArray[np.intp]]
) -> tuple[str, Array]:
    """What panels by level run along, and its value in each row: without a covariate, a number."""
    try:
        along = axis(design, x, (by,))
    except DataError:
        if x is not None:
            raise
        at = np.empty(design.n)
        for rows in rows_of.values():
            at[rows] = np.arange(1.0, len(rows) + 1.0)
        return "row of the level", at
    column = design.data[along.name]
    if along.numeric:
        return along.name, column.to_numpy(dtype=float)
    place = {value: float(position) for position, value in enumerate(along.values)}
    return along.name, np.array([place[value] for value in column])


# --- statistics of levels ----------------------------------------------------------------


def _numeric(design: Design, by: str) -> bool:
    """Whether levels are numbers that mean something: those of a variable, no grouping factor."""
    if by in {factor.name for factor in design.random} or by not in design.data:
        return False
    return pd.api.types.is_numeric_dtype(design.data[by])


def _by_level(
    design: Design,
    table: pd.DataFrame,
    inside: pd.DataFrame,
    name: str,
    prob: float | None,
    how: Drawing,
) -> PlotCollection:
    """Intervals of a statistic of replicates by level, with the observed one."""
    import arviz_plots as azp

    by = str(table.index.name)
    ordered = (
        table.sort_index() if _numeric(design, by) else table.sort_values("observed", kind="stable")
    )
    y = np.arange(len(ordered), dtype=float)
    chance, kind = interval_defaults(prob)
    low, high = (ordered[c] for c in ordered if str(c).endswith(("_lb", "_ub")))
    inner = inside.loc[ordered.index]
    narrow = tuple(inner[c] for c in inner if str(c).endswith(("_lb", "_ub")))
    key = f"{name} "
    marks = dataset({key: points(ordered["mean"], y)})
    bars = dataset({key: segments((low, high), (y, y))})
    within = dataset({key: segments((narrow[0], narrow[1]), (y, y))})
    observed = dataset({key: points(ordered["observed"], y)})
    seen = {"data": observed, "color": STRONG, "size": 24, "marker": DIAMOND}
    drawn: Visuals = {
        "interval": (azp.visuals.line_xy, {"data": bars, "color": MAIN, "width": 1.3}),
        "inner_interval": (azp.visuals.line_xy, {"data": within, "color": MAIN, "width": 3.2}),
        "replicated": (azp.visuals.scatter_xy, {"data": marks, "color": MAIN, "size": 20}),
        "observed": (azp.visuals.scatter_xy, seen),
        "xlabel": (azp.visuals.labelled_x, {"data": marks, "text": f"{name} of {design.response}"}),
        **levels_upwards(marks, by, list(ordered.index)),
    }
    replicates = f"replicated: mean, {two_widths(chance)} {kind.upper()}"
    return picture(
        how,
        marks,
        drawn,
        size=(WIDTH, height_of(len(ordered))),
        title=f"{_upper(name)} of {design.response} by {by}",
        legend={
            "observed": {"color": STRONG, "marker": DIAMOND, "linestyle": "none"},
            replicates: {"color": MAIN, "marker": CIRCLE},
        },
    )
