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
from bayeslmm.exceptions import DataError, SamplingError, check_choice
from bayeslmm.plots.common import (
    CIRCLE,
    DIAMOND,
    MAIN,
    PANEL_TITLE_SIZE,
    STRONG,
    TRIANGLE,
    Drawing,
    Visuals,
    add_legend,
    add_title,
    arviz_plots,
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
    variable_name,
)
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
from bayeslmm.summaries.posterior_tables import interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Kind = Literal["dist", "interval", "tstat", "pit", "loo_pit"]

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
    kind, by, statistic, prob
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
    _check(data, kind, by, statistic)
    if kind == "tstat" and by is not None:
        table = check_table(design, replicated(data), statistic, by, prob)
        return _by_level(design, table, _statistic_name(statistic), prob, how)
    if kind == "dist":
        data = _few(data, how.pc_kwargs.get("num_samples", REPLICATES))
    if kind == "dist" and by is not None:
        title = f"Replicated and observed {design.response} by {by}"
        return _densities(design, data, by, how, title)
    if kind == "loo_pit":
        collection = _uniformity(loo_pit(), how)
    else:
        collection = _by_arviz(design, data, kind, statistic, prob, how)
    widest, _ = interval_defaults(prob)
    titles = {
        "dist": f"Replicated and observed {design.response}",
        "interval": f"{coverage(inner_probability(widest))} and {coverage(widest)} predictive "
        f"intervals of {design.response}",
        "tstat": f"Replicated and observed {_statistic_name(statistic)} of {design.response}",
        "pit": f"Probability integral transform of {design.response}",
        "loo_pit": f"Leave-one-out probability integral transform of {design.response}",
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
    rng = np.random.default_rng(random_seed)
    replicates = predictive_dataset(design, joint, "conditional", rng)
    return with_groups(data, posterior_predictive=replicates)


def _check(data: xr.DataTree, kind: str, by: str | None, statistic: str | Statistic) -> None:
    check_choice(kind, get_args(Kind), "kind")
    if kind == "tstat":
        check_statistic(statistic)
    if by is not None and kind not in ("dist", "tstat"):
        raise ValueError(f"by={by!r} goes with kind 'dist' or 'tstat', not {kind!r}.")
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
    prob: float | None,
    how: Drawing,
) -> PlotCollection:
    """One panel by ArviZ, with the response named on its axis."""
    azp, common = arviz_plots(), _settings(how)
    observed: dict[str, Any] = {"linestyle": "none"}
    if kind == "dist":
        observed, shown = {}, how.of_arviz(title=False, **DENSITIES)
        collection = azp.plot_ppc_dist(data, visuals=shown, **common)
    elif kind == "interval":
        widest, ci_kind = interval_defaults(prob)
        mark = {"color": STRONG, "marker": CIRCLE, "size": 12}
        shown = how.of_arviz(title=False, ylabel=False, observed_markers=mark)
        probs = inner_probability(widest), widest
        collection = azp.plot_ppc_interval(
            data, ci_kind=ci_kind, ci_probs=probs, visuals=shown, **common
        )
        observed["marker"] = CIRCLE
    elif kind == "tstat":
        mark = {"color": STRONG, "size": 60, "marker": TRIANGLE}
        shown = how.of_arviz(title=False, observed_tstat=mark, dist={"color": MAIN})
        function = STATISTICS[statistic] if isinstance(statistic, str) else statistic

        def of_one_response(y: Array) -> float:  # as checks compute it: ArviZ's sd divides by n
            return float(function(y))

        collection = azp.plot_ppc_tstat(data, t_stat=of_one_response, visuals=shown, **common)
        observed["marker"] = TRIANGLE
    else:
        return azp.plot_ppc_pit(data, visuals=how.of_arviz(title=False), **common)
    _name_response(collection, design, kind, statistic)
    add_legend(collection, {**ENTRIES, "observed": ENTRIES["observed"] | observed}, how.visuals)
    return collection


def _uniformity(pit: Array, how: Drawing) -> PlotCollection:
    """What ``arviz.plot_loo_pit`` draws, of exact transforms."""
    label = {"text": "LOO-PIT"}
    shown = how.of_arviz(title=False, xlabel=label, ylabel={}, remove_axis=False)
    tree = xr.DataTree.from_dict({"loo_pit": xr.Dataset({RESPONSE: (OBS_DIM, pit)})})
    return arviz_plots().plot_ecdf_pit(
        tree, group="loo_pit", sample_dims=[OBS_DIM], visuals=shown, **_settings(how)
    )


def _settings(how: Drawing) -> dict[str, Any]:
    """Arguments of ArviZ's functions for one wide panel."""
    return {"backend": how.backend, **how.pc_kwargs, "figure_kwargs": how.figure(7.0, 3.6)}


def _name_response(
    collection: PlotCollection, design: Design, kind: str, statistic: str | Statistic
) -> None:
    """Name the response on the axis that it is on, where ArviZ does not."""
    import arviz_plots as azp

    text = plain(design.response)
    if kind == "tstat":
        text = f"{_statistic_name(statistic)} of {text}"
    function = azp.visuals.labelled_y if kind == "interval" else azp.visuals.labelled_x
    data = xr.Dataset({RESPONSE: 0.0})
    collection.map(function, "response", data=data, text=text, ignore_aes="all")


def _density_panels(design: Design, by: str) -> dict[str, NDArray[np.intp]]:
    """Rows of each panel of densities.

    Raises
    ------
    DataError
        If there are too many levels, or one has too few rows.
    """
    groups = row_groups(design, by)
    if len(groups) > MOST_PANELS:
        raise DataError(
            f"{by} has {len(groups)} levels; a picture shows at most {MOST_PANELS} densities. "
            "kind='tstat' shows a statistic of each."
        )
    if small := [str(label) for label, rows in groups.items() if len(rows) < 3]:
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
    names = _density_panels(design, by)
    collection = azp.plot_ppc_dist(
        _by_panel(data, names, group),
        group=group,
        backend=how.backend,
        visuals=how.of_arviz(title={"size": PANEL_TITLE_SIZE}, **DENSITIES),
        **how.layout(len(names), (2.6, 2.0), sharex=True),
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


def _by_level(
    design: Design, table: pd.DataFrame, name: str, prob: float | None, how: Drawing
) -> PlotCollection:
    """Intervals of a statistic of replicates by level, with the observed one."""
    import arviz_plots as azp

    by = str(table.index.name)
    ordered = table.sort_values("observed", kind="stable")
    y = np.arange(len(ordered), dtype=float)
    chance, kind = interval_defaults(prob)
    low, high = (ordered[c] for c in ordered if str(c).endswith(("_lb", "_ub")))
    key = f"{name} "
    marks = dataset({key: points(ordered["mean"], y)})
    bars = dataset({key: segments((low, high), (y, y))})
    observed = dataset({key: points(ordered["observed"], y)})
    seen = {"data": observed, "color": STRONG, "size": 24, "marker": DIAMOND}
    drawn: Visuals = {
        "interval": (azp.visuals.line_xy, {"data": bars, "color": MAIN, "width": 1.6}),
        "replicated": (azp.visuals.scatter_xy, {"data": marks, "color": MAIN, "size": 20}),
        "observed": (azp.visuals.scatter_xy, seen),
        "xlabel": (azp.visuals.labelled_x, {"data": marks, "text": f"{name} of {design.response}"}),
        **levels_upwards(marks, by, list(ordered.index)),
    }
    replicates = f"replicated: mean and {coverage(chance)} {kind.upper()}"
    return picture(
        how,
        marks,
        drawn,
        size=(6.0, height_of(len(ordered))),
        title=f"{_upper(name)} of {design.response} by {by}",
        legend={
            "observed": {"color": STRONG, "marker": DIAMOND, "linestyle": "none"},
            replicates: {"color": MAIN, "marker": CIRCLE},
        },
    )
