"""Points, intervals and curves in panels, a colour per series, with data and draws behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.plots.common import (
    CIRCLE,
    DASHED,
    DOTTED,
    MAIN,
    MOST_LABELS,
    QUIET,
    STRONG,
    Drawing,
    Visuals,
    height_of,
    levels_across,
    levels_upwards,
    outer,
    own_xlabel,
    picture,
    titles,
    variable_name,
)

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Bounds = tuple[Array, Array]

WIDTH, HEIGHT = 7.0, 3.4
"""Inches of a picture of one panel: the width of a page."""

LETTERS_PER_INCH = 13
"""Of labels of ticks."""

MARKERS = ("C0", "C2", "C5", "C4", "C3")
"""Circles, triangles, squares, diamonds and crosses, told apart without colour."""

CROWDED = 40
"""Points side by side from which on they are smaller."""

DENSITY_POINTS = 80
SEEN = 0.01
"""Height of a density, of its largest, below which it is not drawn."""

LINES = 50
"""Draws that are shown as lines or as points."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Series:
    """What one colour shows in a panel, at P places along its axis.

    Attributes
    ----------
    label : str
        Its entry in the legend; series of one label share a colour.
    places : ndarray (P,)
        Where on the axis.
    centre : ndarray (P,)
        Estimates or posterior means; NaN where there is none.
    inner, outer : tuple of ndarray (P,)
        Lower and upper bounds of two intervals.
    wider : tuple of ndarray (P,), optional
        Bounds of where new levels or responses lie.
    draws : ndarray (S, P), optional
        Posterior draws to show behind.
    data : ndarray (2, n)
        Places and values of data to show behind.
    """

    label: str
    places: Array
    centre: Array
    inner: Bounds
    outer: Bounds
    wider: Bounds | None = None
    draws: Array | None = None
    data: Array = field(default_factory=lambda: np.empty((2, 0)))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Panel:
    """Series over one variable.

    Attributes
    ----------
    label : str
        Its title; a name for itself where it has none to show.
    axis : str
        The variable.
    ticks : tuple of str or None
        Labels of the places 0, 1, ...; None for a number.
    curve : bool
        Whether places are dense, so that lines and bands are drawn in place of points.
    joined : bool
        Whether points are joined by lines.
    slot : float
        Width along the axis that one point has to itself.
    draws : {"density", "points", "lines"} or None
        How draws are shown.
    known : pair of float, optional
        Between which places there are data; a curve is dotted beyond.
    series : tuple of Series
    """

    label: str
    axis: str
    ticks: tuple[str, ...] | None
    curve: bool = False
    joined: bool = False
    slot: float
    draws: str | None = None
    known: tuple[float, float] | None = None
    series: tuple[Series, ...]

    @property
    def goes_beyond(self) -> bool:
        """Whether a curve goes beyond the data."""
        if not self.curve or self.known is None:
            return False
        places = np.concatenate([one.places for one in self.series])
        return bool(np.any((places < self.known[0]) | (places > self.known[1])))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Style:
    """How panels are drawn.

    Attributes
    ----------
    value : str
        Label of the axis of values.
    title : str
    label : str
        What points or curves and their intervals are, in the legend.
    upright : bool
        Whether values are on the y axis; or on the x axis, with places above each other.
    zero : float, optional
        Where a reference line is: zero for differences, one for ratios.
    data : str
        Entry of the data in the legend; "" for none.
    wider : str
        That of the bounds of new levels or responses.
    titled : bool
        Whether panels have titles.
    apart : bool
        Whether each panel has values of its own kind, with places above each other.
    overlaid : bool
        Whether series share their places, or have one each.
    """

    value: str
    title: str
    label: str
    upright: bool = True
    zero: float | None = None
    data: str = ""
    wider: str = ""
    titled: bool = True
    apart: bool = False
    overlaid: bool = False


def plot_panels(panels: Sequence[Panel], style: Style, how: Drawing) -> PlotCollection:
    """Draw panels.

    Parameters
    ----------
    panels : sequence of Panel
        All along one axis, or each along its own.
    style : Style
        What the axes, the title and the legend say.
    how : Drawing
        How the user wants it drawn.

    Returns
    -------
    arviz_plots.PlotCollection
        Its visuals, those that the panels have, go along the dimension "series".
    """
    labels = list(dict.fromkeys(one.label for panel in panels for one in panel.series))
    most = max(len(one.places) for panel in panels for one in panel.series)
    base = xr.Dataset(
        {
            variable_name(panel.label): (("series", "place"), np.zeros((len(labels), most)))
            for panel in panels
        },
        coords={"series": np.arange(len(labels)), "place": np.arange(most)},
    )
    colors, marks = _colours(labels)
    together = len({(panel.axis, panel.ticks) for panel in panels}) == 1
    aes = {
        "aes": {"color": ["series"], "marker": ["series"], "overlay": ["place"]},
        "color": colors,
        "marker": marks,
    }
    return picture(
        how,
        base,
        _drawn(panels, labels, style),
        _axes(panels, base, style, together=together),
        size=_size(panels, style),
        title=style.title,
        legend=_legend(panels, labels, style, colors, marks),
        columns=_columns(len(panels)),
        aes=aes,
        sharex=(together or not style.upright) and not style.apart,
        sharey=style.upright or together,
    )


def _colours(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Colour and marker of each series; one without a label beside others is black."""
    if list(labels) == [""]:
        return [MAIN], [CIRCLE]
    told = [label for label in labels if label]
    colors = [f"C{told.index(label)}" if label else STRONG for label in labels]
    marks = [MARKERS[told.index(label) % len(MARKERS)] if label else CIRCLE for label in labels]
    return colors, marks


def _columns(panels: int) -> int:
    return 2 if panels == 4 else min(panels, 3)


def _size(panels: Sequence[Panel], style: Style) -> tuple[float, float]:
    """Inches of one panel: together they have the width of a page."""
    across = _columns(len(panels))
    width = WIDTH / across
    if style.upright:
        return width, HEIGHT if len(panels) == 1 else max(2.3, 0.8 * width)
    ticks = max(len(panel.ticks or ()) for panel in panels)
    series = 1 if style.overlaid else max(len(panel.series) for panel in panels)
    return width, height_of(int(np.ceil(ticks * max(1.0, 0.8 * series))))


def fits_across(labels: Sequence[str], panels: int) -> bool:
    """Whether labels of levels find room beside each other on the x axis."""
    width = WIDTH / _columns(panels) - 0.6
    return len(labels) * (max(map(len, labels), default=0) + 1.5) <= LETTERS_PER_INCH * width


# --- layers ----------------------------------------------------------------------------

Part = Callable[[Panel, Series], Array | None]
"""From a series in a panel to an array (2 or 3, points), or to nothing."""


def _layer(
    panels: Sequence[Panel], labels: Sequence[str], part: Part, *, turned: bool
) -> xr.Dataset | None:
    """Arrays of all series, one variable (series, coordinate, point) per panel that has some.

    Where the picture is `turned`, places are along the y axis.
    """
    found: dict[str, xr.DataArray] = {}
    for i, panel in enumerate(panels):
        arrays = {one.label: part(panel, one) for one in panel.series}
        known = {label: a for label, a in arrays.items() if a is not None and a.shape[-1]}
        if not known:
            continue
        rows, size = len(next(iter(known.values()))), max(a.shape[-1] for a in known.values())
        if turned and rows == 2:
            known = {label: a[::-1] for label, a in known.items()}
        full = np.full((len(labels), rows, size), np.nan)
        for label, array in known.items():
            full[labels.index(label), :, : array.shape[-1]] = array
        dim, names = ("plot_axis", ["x", "y"]) if rows == 2 else ("kwarg", BAND)
        coords = {"series": np.arange(len(labels)), dim: names}
        found[variable_name(panel.label)] = xr.DataArray(full, coords, ("series", dim, f"at_{i}"))
    return xr.Dataset(found) if found else None


BAND = ["x", "y_bottom", "y_top"]


def _pieces(low: Array, high: Array, places: Array) -> Array:
    """Line pieces (2, 3 P) from low to high at each place, as one line with gaps."""
    gap = np.full_like(low, np.nan)
    values = np.column_stack([low, high, gap]).ravel()
    return np.array([np.repeat(places, 3), values])


def _centre(_: Panel, one: Series) -> Array:
    return np.array([one.places, one.centre])


def _joined(panel: Panel, one: Series) -> Array | None:
    return _centre(panel, one) if panel.joined else None


def _within(panel: Panel, one: Series) -> Array:
    """The curve where there are data."""
    if panel.known is None:
        return _centre(panel, one)
    ends = np.clip(panel.known, one.places[0], one.places[-1])
    inside = one.places[(one.places > ends[0]) & (one.places < ends[1])]
    places = np.concatenate([ends[:1], inside, ends[1:]])
    places = places[(places >= panel.known[0]) & (places <= panel.known[1])]
    return np.array([places, np.interp(places, one.places, one.centre)])


def _beyond(panel: Panel, one: Series) -> Array | None:
    """The curve below and above the data, as one line with a gap."""
    if panel.known is None or not panel.goes_beyond:
        return None
    inside = [end for end in panel.known if one.places[0] < end < one.places[-1]]
    places = np.union1d(one.places, inside)
    values = np.interp(places, one.places, one.centre)
    values[(places > panel.known[0]) & (places < panel.known[1])] = np.nan
    return np.array([places, values])


def _edges(_: Panel, one: Series) -> Array | None:
    """Both bounds of the wider band, as one line with a gap."""
    if one.wider is None:
        return None
    low, high = (np.array([one.places, bound]) for bound in one.wider)
    return np.hstack([low, [[np.nan], [np.nan]], high])


def _bars(which: str) -> Part:
    def part(_: Panel, one: Series) -> Array | None:
        bounds: Bounds | None = getattr(one, which)
        return None if bounds is None else _pieces(*bounds, one.places)

    return part


def _region(which: str) -> Part:
    return lambda _, one: np.array([one.places, *getattr(one, which)])


def _drawn(panels: Sequence[Panel], labels: Sequence[str], style: Style) -> Visuals:
    """All visuals but those of the axes, from the back to the front."""
    import arviz_plots as azp

    line, scatter, fill = azp.visuals.line_xy, azp.visuals.scatter_xy, azp.visuals.fill_between_y

    def layer(part: Part, function: Any, *, curve: bool | None, **settings: Any) -> Any:
        wanted = [panel for panel in panels if curve is None or panel.curve == curve]
        data = _layer(wanted, labels, part, turned=not style.upright)
        if data is None:
            return None
        used = {"marker"} if function is not scatter else set()
        own = {"ignore_aes": frozenset({*used, "overlay"}), **settings}
        return function, {"data": data, **own}

    dashed = {"linestyle": DASHED, "width": 1.0, "alpha": 0.8}
    dots, small = _dots(panels, labels), _shrunk(panels, style)
    return {
        "zero": _zero(panels, style),
        "data": layer(lambda _, one: one.data, scatter, curve=None, marker=CIRCLE, **dots),
        "draws": _layer_of_draws(panels, labels, style, "lines"),
        "draw_points": _layer_of_draws(panels, labels, style, "points"),
        "density": _layer_of_densities(panels, labels, style),
        "band": layer(_region("outer"), fill, curve=True, alpha=0.15),
        "inner_band": layer(_region("inner"), fill, curve=True, alpha=0.25),
        "wider_band": layer(_edges, line, curve=True, **dashed),
        "curve": layer(_within, line, curve=True, width=1.8),
        "beyond": layer(_beyond, line, curve=True, width=1.8, linestyle=DOTTED),
        "joined": layer(_joined, line, curve=False, width=1.0, alpha=0.7),
        "wider": layer(_bars("wider"), line, curve=False, **dashed),
        "interval": layer(_bars("outer"), line, curve=False, width=1.3 * small),
        "inner_interval": layer(_bars("inner"), line, curve=False, width=3.6 * small),
        "point": layer(_centre, scatter, curve=False, size=34 * small),
    }


def _dots(panels: Sequence[Panel], labels: Sequence[str]) -> dict[str, Any]:
    """Settings of the data, which are smaller and fainter where they are many."""
    few = max(one.data.shape[1] for panel in panels for one in panel.series) <= 300
    color = {"color": QUIET} if len(labels) == 1 else {}
    return {"size": 9 if few else 4, "alpha": 0.45 if few else 0.25} | color


def _shrunk(panels: Sequence[Panel], style: Style) -> float:
    """Factor of widths and sizes of marks, where they would stand too close."""
    slots = max(len(one.places) * len(panel.series) for panel in panels for one in panel.series)
    return 1.0 if slots * (_columns(len(panels)) if style.upright else 1) <= CROWDED else 0.5


def _zero(panels: Sequence[Panel], style: Style) -> tuple[Any, dict[str, Any]] | None:
    import arviz_plots as azp

    if style.zero is None:
        return None
    zero = xr.Dataset({variable_name(panel.label): style.zero for panel in panels})
    function = azp.visuals.hline if style.upright else azp.visuals.vline
    return function, {"data": zero, "color": QUIET, "width": 0.9}


# --- draws behind ----------------------------------------------------------------------


def _with_draws(panels: Sequence[Panel], shown: str) -> list[Panel]:
    """Panels that show draws in some way."""
    return [
        panel
        for panel in panels
        if panel.draws == shown and any(one.draws is not None for one in panel.series)
    ]


def _layer_of_densities(panels: Sequence[Panel], labels: Sequence[str], style: Style) -> Any:
    """Densities beside each point."""
    import arviz_plots as azp

    own = _with_draws(panels, "density")
    if not own:
        return None
    data = _densities(own, labels, upright=style.upright)
    settings = {"data": data, "alpha": 0.3, "ignore_aes": frozenset({"marker"})}
    return azp.visuals.fill_between_y, settings


def _layer_of_draws(
    panels: Sequence[Panel], labels: Sequence[str], style: Style, shown: str
) -> Any:
    """Some draws, as lines over all places or as points beside each."""
    import arviz_plots as azp

    own, lines = _with_draws(panels, shown), shown == "lines"
    if not own:
        return None

    def part(panel: Panel, one: Series) -> Array | None:
        if one.draws is None:
            return None
        some = one.draws[np.linspace(0, len(one.draws) - 1, LINES).round().astype(int)]
        places = np.broadcast_to(one.places, some.shape)
        if lines:
            gap = np.full((len(some), 1), np.nan)
            xy = np.array([np.hstack([places, gap]).ravel(), np.hstack([some, gap]).ravel()])
        else:
            aside = panel.slot * (0.28 + 0.3 * spread_out(len(some)))[:, None]
            xy = np.array([(places + aside).ravel(), some.ravel()])
        return xy

    data = _layer(own, labels, part, turned=not style.upright)
    settings = {"data": data, "ignore_aes": frozenset({"overlay", "marker"})}
    if lines:
        return azp.visuals.line_xy, {**settings, "alpha": 0.25, "width": 0.6}
    return azp.visuals.scatter_xy, {**settings, "alpha": 0.3, "size": 4, "marker": CIRCLE}


def _densities(panels: Sequence[Panel], labels: Sequence[str], *, upright: bool) -> xr.Dataset:
    """Regions (series, place, x and two y, point) of densities that rise from their places."""
    found = {}
    for i, panel in enumerate(panels):
        most = max(len(one.places) for one in panel.series)
        full = np.full((len(labels), most, 3, DENSITY_POINTS), np.nan)
        for one in panel.series:
            if one.draws is None:
                continue
            for k in np.flatnonzero(np.isfinite(one.draws).all(axis=0)):
                region = _density(one.draws[:, k], one.places[k], panel.slot, upright=upright)
                full[labels.index(one.label), k] = region
        dims = ("series", "place", "kwarg", f"at_{i}")
        coords = {"series": np.arange(len(labels)), "place": np.arange(most), "kwarg": BAND}
        found[variable_name(panel.label)] = xr.DataArray(full, coords, dims)
    return xr.Dataset(found)


def _density(draws: Array, place: float, slot: float, *, upright: bool) -> Array:
    """Region (3, points) of a density: upright, the values at which it exceeds each height."""
    from arviz_stats.base import array_stats

    if np.ptp(draws) == 0.0:
        return np.full((3, DENSITY_POINTS), np.nan)
    values, heights, _ = array_stats.kde(draws)
    seen = heights >= SEEN * heights.max()
    values, heights = values[seen], heights[seen]
    start, tall = place + 0.06 * slot, 0.4 * slot / heights.max()
    if not upright:
        at = np.linspace(values[0], values[-1], DENSITY_POINTS)
        top = start + tall * np.interp(at, values, heights)
        return np.array([at, np.full_like(at, start), top])
    cut = np.linspace(SEEN * heights.max(), heights.max() * 0.999, DENSITY_POINTS)
    above = heights >= cut[:, None]
    low = values[above.argmax(axis=1)]
    high = values[len(values) - 1 - above[:, ::-1].argmax(axis=1)]
    return np.array([start + tall * cut, low, high])


def spread_out(count: int) -> Array:
    """Numbers (count,) spread evenly over -1/2 to 1/2, neighbours far apart."""
    golden = (np.sqrt(5.0) - 1.0) / 2.0
    return np.asarray(np.arange(1, count + 1) * golden % 1.0 - 0.5)


# --- axes and legend -------------------------------------------------------------------


def _axes(panels: Sequence[Panel], base: xr.Dataset, style: Style, *, together: bool) -> Visuals:
    """Titles, labels and ticks."""
    import arviz_plots as azp

    data = xr.Dataset({name: 0.0 for name in base.data_vars})
    axes: Visuals = {"title": titles(data) if style.titled else None}
    if not style.upright:
        first = panels[0]
        assert first.ticks is not None
        upwards = levels_upwards(data, first.axis, first.ticks[::-1])
        label = {"data": data, "text": style.value}
        return {**axes, "xlabel": (azp.visuals.labelled_x, label), **upwards}

    def left(collection: PlotCollection) -> xr.Dataset:
        return outer(collection, data)[1]

    def bottom(collection: PlotCollection) -> xr.Dataset:
        return outer(collection, data)[0]

    axes["ylabel"] = (azp.visuals.labelled_y, {"data": left, "text": style.value})
    texts = {variable_name(panel.label): panel.axis for panel in panels}
    where: Any = bottom if together else data
    axes["xlabel"] = (own_xlabel, {"data": where, "texts": texts, "subset_info": True})
    levels = [panel for panel in panels if panel.ticks is not None]
    if levels:
        across = {}
        for panel in levels:
            most = _most_labels(panel.ticks or (), len(panels))
            across[variable_name(panel.label)] = levels_across(data, panel.ticks or (), most)
        own = {"data": data[list(across)], "levels": across, "subset_info": True}
        axes |= {"xticks": (_own_xticks, own), "xlim": (_own_xlim, own)}
    if together:
        visible = {"data": bottom, "axis": "x", "visible": True}
        axes["ticklabels"] = (azp.visuals.set_ticklabel_visibility, visible)
    return axes


def _own_xticks(
    da: xr.DataArray, target: Any, *, levels: Mapping[str, Visuals], var_name: str, **_: Any
) -> Any:
    """Ticks of the x axis of each panel."""
    return _own_visual(da, target, levels[var_name]["xticks"])


def _own_xlim(
    da: xr.DataArray, target: Any, *, levels: Mapping[str, Visuals], var_name: str, **_: Any
) -> Any:
    """Limits of the x axis of each panel."""
    return _own_visual(da, target, levels[var_name]["xlim"])


def _own_visual(da: xr.DataArray, target: Any, visual: Any) -> Any:
    function, settings = visual
    return function(da, target, **{k: v for k, v in settings.items() if k != "data"})


def _most_labels(ticks: Sequence[str], panels: int) -> int:
    """How many labels have room on an x axis."""
    width = WIDTH / _columns(panels) - 0.6
    longest = max(map(len, ticks), default=0) + 1.5
    return int(np.clip(LETTERS_PER_INCH * width / longest, 2, MOST_LABELS))


def _legend(
    panels: Sequence[Panel],
    labels: Sequence[str],
    style: Style,
    colors: Sequence[str],
    marks: Sequence[str],
) -> Mapping[str, Mapping[str, Any]]:
    points = any(not panel.curve for panel in panels)
    entries: dict[str, dict[str, Any]] = {}
    for label, color, mark in zip(labels, colors, marks, strict=True):
        entries[label] = {"color": color, **({"marker": mark} if points else {})}
    own = entries.pop("", {"color": STRONG})
    shown = dict.fromkeys(
        SHOWN[draws] for draws in ("density", "points", "lines") if _with_draws(panels, draws)
    )
    entries[", ".join([style.label, *shown])] = own
    if style.data:
        entries[style.data] = {"color": QUIET, "marker": CIRCLE, "linestyle": "none"}
    if any(panel.goes_beyond for panel in panels):
        entries["beyond the data"] = {"color": QUIET, "linestyle": DOTTED}
    if style.wider:
        entries[style.wider] = {"color": QUIET, "linestyle": DASHED}
    return entries


SHOWN = {"density": "density", "points": "draws", "lines": "draws"}
"""What the legend says of draws."""
