"""Pictures of marginal means, contrasts, slopes and comparisons, with data and draws behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.second_pass import gathered
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.effects.groups import text_of
from bayeslmm.effects.quantities import LinearQuantities
from bayeslmm.effects.sources import EstimateSource
from bayeslmm.effects.variables import variables_of
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.plots.common import (
    Drawing,
    inner_probability,
    level_of_picture,
    value_order,
)
from bayeslmm.plots.panels import Panel, Series, Style, fits_across, plot_panels, spread_out
from bayeslmm.summaries.posterior_tables import interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Draws = Literal["density", "points", "lines"]

MOST_SERIES = 8
"""Colours of one picture: what has more levels gets a panel for each."""

MOST_PANELS = 24
MOST_POINTS = 5000
"""Rows of the data of which points are drawn, evenly spaced where there are more."""

TOGETHER = 0.8
"""Share of the way from one level to the next that its series have together."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spread:
    """m quantities with two intervals, and their draws (S, m) where they have some."""

    centre: Array
    inner: tuple[Array, Array]
    outer: tuple[Array, Array]
    draws: Array | None
    label: str

    def take(self, rows: Indices) -> Spread:
        """Some of the quantities, in another order."""
        inner, outer = ((low[rows], high[rows]) for low, high in (self.inner, self.outer))
        draws = None if self.draws is None else self.draws[:, rows]
        return Spread(
            centre=self.centre[rows], inner=inner, outer=outer, draws=draws, label=self.label
        )


def spread_of(quantities: LinearQuantities, prob: float | None, source: str) -> Spread:
    """Estimates or posterior means with two intervals, as the tables of the quantities have them.

    Parameters
    ----------
    quantities : LinearQuantities
        The quantities.
    prob : float, optional
        Coverage of the outer interval; ArviZ's rcParams by default.
    source : str
        What the points are: "REML estimate".
    """
    estimated = isinstance(quantities.source, EstimateSource)
    draws = None if estimated else quantities.draws.to_numpy()
    draws = None if draws is None else draws.reshape(-1, draws.shape[-1])
    return spread_of_tables(quantities.table, prob, source, draws, estimated=estimated)


def spread_of_tables(
    table: Callable[[float], pd.DataFrame],
    prob: float | None,
    source: str,
    draws: Array | None = None,
    *,
    estimated: bool,
) -> Spread:
    """Two intervals of the rows of a table that is made for each coverage."""
    if estimated:
        prob, kind = level_of_picture(prob), "confidence intervals"
    else:
        prob, name = interval_defaults(prob)
        kind = name.upper()
    inner = inner_probability(prob)
    narrow, wide = table(inner), table(prob)
    return Spread(
        centre=wide["estimate" if estimated else "mean"].to_numpy(dtype=float),
        inner=bounds_of(narrow),
        outer=bounds_of(wide),
        draws=draws,
        label=f"{source}, {coverage(inner)} and {coverage(prob)} {kind}",
    )


def bounds_of(table: pd.DataFrame) -> tuple[Array, Array]:
    """Lower and upper bounds in a table of estimates or of draws."""
    ends = ("conf_low", "_lb"), ("conf_high", "_ub")
    low, high = (next(c for c in table if str(c).endswith(end)) for end in ends)
    return table[low].to_numpy(dtype=float), table[high].to_numpy(dtype=float)


# --- which quantity goes where ---------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Plan:
    """Where each quantity, and each row of the data, is drawn.

    Attributes
    ----------
    design : Design
        The design of the model.
    main : str
        The variable of the axis.
    values : list
        Its values, in order.
    numeric : bool
        Whether it is a number on its own axis.
    series : str or None
        The variable that colours tell apart.
    faceted : tuple of str
        Those that panels tell apart.
    """

    design: Design
    main: str
    values: list[Any]
    numeric: bool
    series: str | None
    faceted: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the values of the axis are numbers or in an order that the data state."""
        if self.numeric:
            return True
        if self.main not in self.design.sample:
            return False
        column = self.design.sample[self.main]
        return bool(getattr(column.dtype, "ordered", False)) or _all_numbers(self.values)

    def labelled(self, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        """Series and panel of each row of labels."""
        series = [""] * len(frame) if self.series is None else _texts(frame, (self.series,))
        return series, _texts(frame, self.faceted)


def _all_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values)


def _texts(frame: pd.DataFrame, names: Sequence[str]) -> list[str]:
    rows = frame[list(names)].itertuples(index=False, name=None)
    return [
        ", ".join(f"{n}: {text_of(v)}" for n, v in zip(names, row, strict=True)) for row in rows
    ]


def plan_of(design: Design, labels: pd.DataFrame, main: str) -> Plan:
    """Tell the variables of the labels apart by places, colours and panels.

    Raises
    ------
    DataError
        If there were too many panels.
    """
    others = [name for name in labels if name != main]
    few = [name for name in others if labels[name].nunique() <= MOST_SERIES]
    faceted = tuple(name for name in others if name not in few[:1])
    panels = len(labels[list(faceted)].drop_duplicates()) if faceted else 1
    if panels > MOST_PANELS:
        raise DataError(
            f"{' x '.join(faceted)} has {panels} values; a picture has at most {MOST_PANELS} "
            f"panels. Choose some with at={{{faceted[0]!r}: [...]}}."
        )
    return Plan(
        design=design,
        main=main,
        values=ordered_values(design, main, labels[main]),
        numeric=main in variables_of(design).centres,
        series=few[0] if few else None,
        faceted=faceted,
    )


def ordered_values(design: Design, name: str, column: pd.Series) -> list[Any]:
    """Distinct values in the order of pictures: text naturally, all else as it comes."""
    values = column.drop_duplicates().tolist()
    if name not in design.sample:
        return values
    return [values[i] for i in value_order(values, design.sample[name])]


def in_order(design: Design, labels: pd.DataFrame, names: Sequence[str]) -> list[str]:
    """Distinct texts of some columns, each in the order of pictures, the last varying fastest."""
    ranks = []
    for name in names:
        rank = {value: i for i, value in enumerate(ordered_values(design, name, labels[name]))}
        ranks.append([rank[value] for value in labels[name]])
    order = np.lexsort(ranks[::-1]) if ranks else np.arange(len(labels))
    return list(dict.fromkeys(_texts(labels.iloc[order], names)))


# --- the data behind -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Cloud:
    """Rows of the data: what they are at, their response, and the entry of a legend."""

    frame: pd.DataFrame
    y: Array
    label: str


def cloud_of(
    design: Design, wanted: bool | None, at: Mapping[str, Any] | None, names: Sequence[str]
) -> Cloud | None:
    """The data to show behind, or None: those beyond memory are shown only where asked for.

    Raises
    ------
    DataError
        If they are asked for, and more than a batch.
    """
    if wanted is False or (wanted is None and isinstance(design, SummarisedDesign)):
        return None
    rows = gathered(design, "The data in a picture", "Leave data= out.")
    frame, y = rows.data.reset_index(drop=True), np.asarray(rows.y)
    kept = np.ones(len(y), dtype=bool)
    for name, values in (at or {}).items():
        if name in variables_of(design).levels:
            texts = {str(v) for v in ([values] if np.ndim(values) == 0 else values)}
            kept &= frame[name].astype(str).isin(texts).to_numpy()
    places = np.flatnonzero(kept)
    label = "data"
    if len(places) > MOST_POINTS:
        label = f"data ({MOST_POINTS:,} of {len(places):,} rows)"
        places = places[np.linspace(0, len(places) - 1, MOST_POINTS).round().astype(int)]
    known = [name for name in names if name in frame]
    return Cloud(frame=frame.loc[places, known].reset_index(drop=True), y=y[places], label=label)


def on_scale(cloud: Cloud | None, quantities: LinearQuantities) -> Cloud | None:
    """The data on the scale that quantities are shown on."""
    if cloud is None or quantities.scale is None:
        return cloud
    return replace(cloud, y=quantities.scale.transform.values(cloud.y))


def response_of(design: Design, quantities: LinearQuantities) -> str:
    """Name of the response on the scale that quantities are shown on."""
    scale = quantities.scale
    return design.response if scale is None else scale.transform.variable


def _cloud_labels(plan: Plan, cloud: Cloud, labels: pd.DataFrame) -> pd.DataFrame:
    """Rows of the data with numbers that colours or panels tell apart set to the nearest shown."""
    frame = cloud.frame.copy()
    numeric = variables_of(plan.design).centres
    for name in (*plan.faceted, *([plan.series] if plan.series else [])):
        if name in numeric:
            shown = np.unique(labels[name].to_numpy(dtype=float))
            gaps = np.abs(frame[name].to_numpy(dtype=float)[:, None] - shown)
            frame[name] = shown[gaps.argmin(axis=1)]
    return frame


# --- panels ----------------------------------------------------------------------------


def panels_of(
    plan: Plan,
    quantities: LinearQuantities,
    spread: Spread,
    cloud: Cloud | None = None,
    wider: tuple[Array, Array] | None = None,
    *,
    curve: bool = False,
    joined: bool = False,
    draws: str | None = None,
    upright: bool = True,
    prefix: str = "",
) -> list[Panel]:
    """Panels of quantities with all that is drawn there."""
    labels = quantities.labels
    series, facets = plan.labelled(labels)
    colours = in_order(plan.design, labels, [plan.series] if plan.series else [])
    shares = 1 if curve else len(colours)
    slot = _unit(plan) * TOGETHER / shares
    rank = {value: i for i, value in enumerate(plan.values)}
    at = labels[plan.main]
    base = at.to_numpy(dtype=float) if plan.numeric else np.array([rank[v] for v in at], float)
    data = _data_by_panel(plan, cloud, labels, rank)
    panels = []
    for facet in in_order(plan.design, labels, plan.faceted):
        drawn = []
        for k, colour in enumerate(colours):
            picks = zip(series, facets, strict=True)
            rows = np.flatnonzero([s == colour and f == facet for s, f in picks])
            rows = rows[np.argsort(base[rows], kind="stable")]
            aside = 0.0 if curve else (k - (shares - 1) / 2.0) * slot
            cells = data.get((colour, facet), np.empty((2, 0)))
            drawn.append(_series(plan, spread, rows, base, aside, colour, cells, wider, slot))
        ticks = None if plan.numeric else tuple(map(text_of, plan.values))
        panel = Panel(
            label=prefix + facet or " ",
            axis=plan.main,
            ticks=ticks,
            curve=curve,
            joined=joined,
            slot=slot,
            draws=draws,
            known=_range_of_data(plan) if curve else None,
            series=tuple(drawn),
        )
        panels.append(panel if upright else _turned(panel, len(plan.values)))
    return panels


def _range_of_data(plan: Plan) -> tuple[float, float] | None:
    """Where the data begin and end along the axis; None where sums withhold it."""
    if isinstance(plan.design, SummarisedDesign) and plan.design.withholds(plan.main):
        return None
    return plan.design.range_of(plan.main)


def _unit(plan: Plan) -> float:
    """Distance from one place to the next, and less of it for numbers, where places mean more."""
    if not plan.numeric:
        return 1.0
    gaps = np.diff(np.unique(np.asarray(plan.values, dtype=float)))
    return 0.4 * float(gaps.min()) if len(gaps) else 1.0


def _series(
    plan: Plan,
    spread: Spread,
    rows: Indices,
    base: Array,
    aside: float,
    label: str,
    data: Array,
    wider: tuple[Array, Array] | None,
    slot: float,
) -> Series:
    beside = 0.0 if plan.numeric else aside + slot * (-0.28 + 0.3 * spread_out(data.shape[1]))
    own = spread.take(rows)
    return Series(
        label=label,
        places=base[rows] + aside,
        centre=own.centre,
        inner=own.inner,
        outer=own.outer,
        wider=None if wider is None else (wider[0][rows], wider[1][rows]),
        draws=own.draws,
        data=np.array([data[0] + beside, data[1]]),
    )


def _turned(panel: Panel, count: int) -> Panel:
    """Places from the bottom to the top, the first on top."""
    series = [
        replace(
            one,
            places=count - 1 - one.places,
            data=np.array([count - 1 - one.data[0], one.data[1]]),
        )
        for one in panel.series
    ]
    return replace(panel, series=tuple(series))


def _data_by_panel(
    plan: Plan, cloud: Cloud | None, labels: pd.DataFrame, rank: Mapping[Any, int]
) -> dict[tuple[str, str], Array]:
    """Places and values (2, n) of the data of each series in each panel."""
    if cloud is None:
        return {}
    frame = _cloud_labels(plan, cloud, labels)
    if plan.main not in frame:
        places = np.zeros(len(frame))
    elif plan.numeric:
        places = frame[plan.main].to_numpy(dtype=float)
    else:
        places = np.array([rank.get(v, np.nan) for v in frame[plan.main]], dtype=float)
    series, facets = plan.labelled(frame)
    found: dict[tuple[str, str], list[int]] = {}
    for i in np.flatnonzero(np.isfinite(places)):
        found.setdefault((series[i], facets[i]), []).append(int(i))
    return {key: np.array([places[rows], cloud.y[rows]]) for key, rows in found.items()}


# --- pictures --------------------------------------------------------------------------


def shown_draws(
    draws: str | bool | None, spread: Spread, plan: Plan, *, default: bool, curve: bool = False
) -> str | None:
    """How draws are shown: as asked for, or as suits the axis.

    Parameters
    ----------
    draws : str or bool, optional
        What the user said.
    spread : Spread
        The draws.
    plan : Plan
        The axis: lines suit numbers and densities all else.
    default : bool
        Whether to show draws where the user said nothing.
    curve : bool
        Whether places are dense.

    Raises
    ------
    ValueError
        If the way is unknown or does not suit the axis, or an estimate is asked for draws.
    """
    if isinstance(draws, str):
        check_choice(draws, ["density", "points", "lines"], "draws")
    if draws and spread.draws is None:
        raise ValueError(
            f"draws={draws!r}: an estimate has no draws. Leave draws= out, or fit a posterior with "
            "model.fit()."
        )
    if curve and draws in ("density", "points"):
        raise ValueError(f"draws={draws!r} is for points; along {plan.main} it is draws='lines'.")
    if draws is False or spread.draws is None or (draws is None and not default):
        return None
    return draws if isinstance(draws, str) else "lines" if plan.numeric else "density"


def label_of(quantities: LinearQuantities, spread: Spread) -> str:
    """Entry of a legend: what is drawn of the quantities."""
    adjusted = quantities.adjust != "none" and len(quantities.labels) > 1
    return spread.label + (f" ({quantities.adjust})" if adjusted else "")


def title_of(quantities: LinearQuantities) -> str:
    """Title of a picture: what the quantities are, and how many cannot be drawn."""
    title = quantities.title
    lost = int((~quantities.estimable).sum())
    return f"{title}; {lost} of {len(quantities.labels)} cannot be estimated" if lost else title


def plot_means(
    design: Design,
    quantities: LinearQuantities,
    prob: float | None,
    source: str,
    how: Drawing,
    *,
    at: Mapping[str, Any] | None = None,
    data: bool | None = None,
    draws: Draws | bool | None = None,
    lines: bool | None = None,
) -> PlotCollection:
    """Draw marginal means; arguments as in :meth:`bayeslmm.plots.accessors.Plots.means`.

    Parameters
    ----------
    design : Design
        The design of the model.
    quantities : LinearQuantities
        The means.
    prob : float, optional
        Coverage of the outer intervals.
    source : str
        What the points are.
    how : Drawing
        How to draw it.
    at, data, draws, lines
        As the user gave them.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    labels = quantities.labels
    spread = spread_of(quantities, prob, source)
    plan = plan_of(design, labels, str(labels.columns[0]))
    joined = len(plan.values) > 1 and (plan.ordered if lines is None else lines)
    shown = shown_draws(draws, spread, plan, default=True)
    cloud = on_scale(cloud_of(design, data, at, list(labels)), quantities)
    facets = len(in_order(design, labels, plan.faceted))
    texts = [text_of(value) for value in plan.values]
    upright = plan.numeric or joined or fits_across(texts, facets)
    panels = panels_of(plan, quantities, spread, cloud, joined=joined, draws=shown, upright=upright)
    style = Style(
        value=response_of(design, quantities),
        title=title_of(quantities),
        label=label_of(quantities, spread),
        upright=upright,
        data=cloud.label if cloud else "",
        titled=bool(plan.faceted),
    )
    return plot_panels(panels, style, how)


def plot_differences(
    design: Design,
    quantities: LinearQuantities,
    prob: float | None,
    source: str,
    how: Drawing,
    *,
    value: str,
    main: str | None = None,
    draws: Draws | bool | None = None,
) -> PlotCollection:
    """Draw contrasts, comparisons or slopes above each other, with a line at zero.

    Parameters
    ----------
    design : Design
        The design of the model.
    quantities : LinearQuantities
        What to draw.
    prob, source, how
        As in :func:`plot_means`.
    value : str
        Label of the axis of values.
    main : str, optional
        Column of labels that goes up the axis; the first by default.
    draws : str or bool, optional
        How draws are shown.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    labels = quantities.labels
    spread = spread_of(quantities, prob, source)
    plan = plan_of(design, labels, main or str(labels.columns[0]))
    plan = replace(plan, numeric=False)
    ratio = "" if quantities.scale is None else quantities.scale.transform.ratio
    style = Style(
        value=f"{ratio} of {response_of(design, quantities)}" if ratio else value,
        title=title_of(quantities),
        label=label_of(quantities, spread),
        upright=False,
        zero=1.0 if ratio else 0.0,
        titled=bool(plan.faceted),
    )
    shown = shown_draws(draws, spread, plan, default=True)
    panels = panels_of(plan, quantities, spread, draws=shown, upright=False)
    return plot_panels(panels, style, how)
