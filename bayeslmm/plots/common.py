"""What every picture is made of: panels, visuals, legends, titles, on any backend of ArviZ."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.grouping import GroupingFactor
from bayeslmm.data.row_groups import row_groups
from bayeslmm.exceptions import require
from bayeslmm.summaries.parameters import covariance_labels, probability
from bayeslmm.summaries.posterior_tables import interval_defaults, locate_levels
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Backend = Literal["matplotlib", "bokeh", "plotly", "none"]
Visuals = dict[str, tuple[Any, dict[str, Any]] | None]
"""Functions and settings by visual, in the order of drawing; None for what these data lack."""

MAIN, SECOND, QUIET, STRONG = "C0", "C1", "gray", "B1"
"""Blue and orange of most styles, which differ for every kind of colour vision, grey and black."""

DASHED, DOTTED = "C1", "C2"
CIRCLE, TRIANGLE, CROSS, DIAMOND, SQUARE = "C0", "C2", "C3", "C4", "C5"
"""ArviZ's names of line styles and of markers, which every backend knows."""

OWN = ("legend", "figure_title")
"""Visuals of this package, of which ArviZ's functions know nothing."""

LIMITS = ("xlim", "ylim")
UNSTORED = ("xticks", "yticks", "ticks", "ticklabels", "named", *LIMITS)
BAND_ALPHA = 0.2
TITLE_SIZE = 12
PANEL_TITLE_SIZE = 10
TICK_SIZE = 8
LEGEND_SIZE = 9
TITLE_LETTERS_PER_INCH = 11
LEGEND_LETTERS_PER_INCH = 15
MOST_LABELS = 45
EXTRA_HEIGHT = 0.6
"""Inches for the title and a legend, beside the panels."""
SLASH = "\N{DIVISION SLASH}"
"""In place of "/" in the names of plots, which xarray's trees do not accept."""


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Points and two intervals of each.

    Attributes
    ----------
    centre : ndarray
        The points.
    inner, outer : tuple of ndarray
        Lower and upper bounds, arrays of the same shape.
    label : str
        What they are: "posterior mean, 50 % and 94 % ETI".
    """

    centre: Array
    inner: tuple[Array, Array]
    outer: tuple[Array, Array]
    label: str

    def own(self, factor: RandomFactor, levels: NDArray[np.intp]) -> Intervals:
        """Those (m, own) of random effects (m, k) of levels that the levels have."""
        bounds = [[factor.own(b, levels) for b in pair] for pair in (self.inner, self.outer)]
        (a, b), (c, d) = bounds
        return Intervals(factor.own(self.centre, levels), (a, b), (c, d), self.label)


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """How the user wants a picture drawn.

    Attributes
    ----------
    backend : str
        The backend.
    visuals : mapping
        Settings by visual; False leaves one out.
    pc_kwargs : mapping
        Arguments of ``PlotCollection.wrap``, or of a function of ArviZ.
    """

    backend: str
    visuals: Mapping[str, Any]
    pc_kwargs: Mapping[str, Any]

    def layout(
        self, count: int, size: tuple[float, float], columns: int = 4, **share: Any
    ) -> dict[str, Any]:
        """Arguments of ``PlotCollection.wrap`` for panels of a size in inches, a variable each."""
        layout = {"cols": ["__variable__"], "col_wrap": columns, **self.pc_kwargs}
        across = min(count, layout["col_wrap"] or int(np.ceil(np.sqrt(count))))
        width, height = across * size[0], -(-count // across) * size[1] + EXTRA_HEIGHT
        return layout | {"figure_kwargs": self.figure(width, height, **share)}

    def figure(self, width: float, height: float, **share: Any) -> dict[str, Any]:
        """Size in inches and layout of a figure, as each backend wants to be told."""
        settings = {"figsize": (100 * width, 100 * height), "figsize_units": "dots"}
        if self.backend == "matplotlib":
            settings = {"figsize": (width, height), "figsize_units": "inches"}
            settings["layout"] = "constrained"
        return settings | share | dict(self.pc_kwargs.get("figure_kwargs", {}))

    def of_arviz(self, **defaults: Any) -> dict[str, Any]:
        """Visuals for a function of ArviZ, the user's over default ones."""
        return defaults | {k: v for k, v in self.visuals.items() if k not in OWN}


def drawing(
    backend: Backend | None, visuals: Mapping[str, Any] | None, pc_kwargs: Mapping[str, Any]
) -> Drawing:
    """How to draw; ArviZ would draw nothing, and say nothing, where no backend is installed."""
    from arviz_base import rcParams

    chosen = rcParams["plot.backend"] if backend is None else backend
    if chosen == "matplotlib" or (backend is None and chosen == "none"):
        require("matplotlib", "plots")
    return Drawing(chosen, visuals or {}, pc_kwargs)


def arviz_plots() -> Any:
    """ArviZ's plots, untyped: their annotations allow less than the functions do."""
    return import_module("arviz_plots")


def variable_name(label: str) -> str:
    """Name that ArviZ and netCDF take for something with this label."""
    return label.replace("/", SLASH)


def plain(text: str) -> str:
    """A text of a picture: names without the backticks that formulas need."""
    return text.replace("`", "")


def inner_probability(prob: float) -> float:
    """Probability of the inner interval beside an outer one."""
    return 0.5 if prob > 0.5 else prob / 2.0


def two_widths(prob: float) -> str:
    """Both probabilities of intervals in words: "50 % and 94 %"."""
    return f"{coverage(inner_probability(prob))} and {coverage(prob)}"


def level_of_picture(level: float | None) -> float:
    """Coverage of the intervals of an estimate in a picture: ArviZ's rcParams where not given."""
    return interval_defaults()[0] if level is None else probability(level, "level")


def chosen(wanted: str | Sequence[str] | None, known: Sequence[str], refusal: str) -> list[str]:
    """Names that are asked for, all by default.

    Raises
    ------
    ValueError
        If one is unknown: `refusal` with it and the known ones filled in; or if there is none.
    """
    names = [wanted] if isinstance(wanted, str) else list(known if wanted is None else wanted)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(refusal.format(", ".join(map(repr, unknown)), ", ".join(known)))
    if not names:
        raise ValueError(f"There is nothing to draw: choose among {', '.join(known)}.")
    return names


def chosen_parameters(
    wanted: str | Sequence[str] | None, known: Sequence[str], design: Design, refusal: str
) -> list[str]:
    """Labels of parameters that are asked for, by any name that a hypothesis may use for them.

    Raises
    ------
    ValueError
        As :func:`chosen`.
    """
    if wanted is not None:
        full = {name: parameter.label for name, parameter in covariance_labels(design).items()}
        names = [wanted] if isinstance(wanted, str) else wanted
        wanted = list(dict.fromkeys(full.get(name, name) for name in names))
    return chosen(wanted, known, refusal)


# --- panels ----------------------------------------------------------------------------


def picture(
    how: Drawing,
    data: xr.Dataset,
    *layers: Visuals,
    size: tuple[float, float],
    title: str,
    legend: Mapping[str, Mapping[str, Any]] | None = None,
    columns: int = 4,
    aes: Mapping[str, Any] | None = None,
    **share: bool,
) -> PlotCollection:
    """Draw a panel per variable with its visuals, a legend and a title.

    Parameters
    ----------
    how : Drawing
        How the user wants it.
    data : Dataset
        A variable per panel, named as :func:`variable_name` says.
    *layers : Visuals
        What is drawn, in this order.
    size : tuple of float
        Width and height of one panel in inches.
    title : str
        Title of the figure.
    legend : mapping, optional
        Entries of :func:`add_legend`.
    columns : int
        Largest number of panels in a row.
    aes : mapping, optional
        Aesthetics of ``PlotCollection.wrap`` and their values, which the user's go before.
    **share : bool
        `sharex` and `sharey`.

    Raises
    ------
    ValueError
        If the user names a visual that there is not.
    """
    import arviz_plots as azp

    known = {name for drawn in layers for name in drawn} | {"figure_title"}
    known |= set() if legend is None else {"legend"}
    if unknown := sorted(set(how.visuals) - known):
        raise ValueError(
            f"visuals has {', '.join(map(repr, unknown))}; this picture has "
            f"{', '.join(map(repr, sorted(known)))}."
        )
    layout = dict(aes or {}) | how.layout(len(data.data_vars), size, columns, **share)
    collection: PlotCollection = azp.PlotCollection.wrap(data, backend=how.backend, **layout)
    shared = how.backend == "matplotlib" and any(share.values())
    panels = collection.viz["figure"].item().axes if shared else ()
    for axes in panels:
        axes.set_autoscale_on(False)  # which would scale all of them at each artist
    for drawn in layers:
        draw(collection, {k: v for k, v in drawn.items() if k not in LIMITS}, how.visuals)
    for axes in panels:
        axes.autoscale()
    for drawn in layers:
        draw(collection, {k: v for k, v in drawn.items() if k in LIMITS}, how.visuals)
    if legend is not None:
        add_legend(collection, legend, how.visuals)
    add_title(collection, title, how.visuals)
    return collection


def draw(
    collection: PlotCollection, drawn: Visuals, wanted: Mapping[str, Any] | None = None
) -> None:
    """Draw visuals in their order, with the user's settings over the default ones.

    The data of a visual may be a function of the collection. Ticks and limits are not stored in
    the collection, which has one place per panel.
    """
    for name, visual in drawn.items():
        own = (wanted or {}).get(name, {})
        if visual is None or own is False:
            continue
        function, settings = visual
        settings = {"ignore_aes": "all", "store_artist": name not in UNSTORED, **settings}
        if callable(settings["data"]):
            settings["data"] = settings["data"](collection)
        if "text" in settings:
            settings["text"] = plain(settings["text"])
        collection.map(function, name, **{**settings, **own})


def titles(data: xr.Dataset) -> tuple[Any, dict[str, Any]]:
    """The visual that writes the name of each panel above it."""
    import arviz_plots as azp
    from arviz_base.labels import BaseLabeller

    settings = {"subset_info": True, "labeller": BaseLabeller(), "size": PANEL_TITLE_SIZE}
    return azp.visuals.labelled_title, {"data": data, **settings}


def levels_upwards(data: xr.Dataset, group: str, labels: Sequence[Any]) -> Visuals:
    """Labels, ticks and limits of a y axis with a level at each whole number from zero on."""
    import arviz_plots as azp

    places, shown = thinned(labels, MOST_LABELS)
    first = data[[next(iter(data.data_vars))]]
    ticks = {"data": data, "values": places, "labels": shown, "size": TICK_SIZE}
    return {
        "ylabel": (azp.visuals.labelled_y, {"data": first, "text": group}),
        "yticks": (set_yticks, ticks),
        "ylim": (azp.visuals.set_ylim, {"data": data, "limits": (-0.7, len(labels) - 0.3)}),
    }


def height_of(levels: int) -> float:
    """Inches of a panel with so many levels above each other."""
    return 1.0 + min(max(0.2 * levels, 1.2), 8.0)


def outer(collection: PlotCollection, data: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Of panels with shared axes, those without a panel below and those without one to the left."""
    names = [str(name) for name in data.data_vars]
    rows = {name: int(collection.viz["row_index"][name]) for name in names}
    columns = {name: int(collection.viz["col_index"][name]) for name in names}
    taken = {(rows[name], columns[name]) for name in names}
    below = [name for name in names if (rows[name] + 1, columns[name]) not in taken]
    left = [name for name in names if columns[name] == 0]
    return data[below], data[left]


def add_title(
    collection: PlotCollection, text: str, wanted: Mapping[str, Any] | None = None
) -> None:
    """Title of the figure, in as many lines as its width needs."""
    chosen = (wanted or {}).get("figure_title", {})
    if chosen is False or not hasattr(collection, "add_title"):  # since ArviZ 1.3
        return
    letters = max(24, int(TITLE_LETTERS_PER_INCH * _width(collection)))
    settings = {"size": TITLE_SIZE, **chosen}
    collection.add_title(textwrap.fill(settings.pop("text", plain(text)), letters), **settings)


def add_legend(
    collection: PlotCollection,
    entries: Mapping[str, Mapping[str, Any]],
    wanted: Mapping[str, Any] | None = None,
) -> None:
    """Legend below the panels.

    Parameters
    ----------
    collection : PlotCollection
    entries : mapping
        Color, marker, linestyle and so on by label. Of these the legends of bokeh and plotly,
        which are of lines, show the color only.
    wanted : mapping, optional
        The user's settings, of which "legend" goes to the backend; False leaves the legend out.
    """
    chosen = (wanted or {}).get("legend", {})
    if chosen is False:
        return
    kwargs = [dict(entry) for entry in entries.values()]
    settings: dict[str, Any] = {}
    if collection.backend == "matplotlib":
        columns = _legend_columns(list(entries), LEGEND_LETTERS_PER_INCH * _width(collection))
        settings = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        settings["fontsize"] = LEGEND_SIZE
    else:
        kwargs = [{"color": entry.get("color", QUIET)} for entry in kwargs]
    module = import_module(f"arviz_plots.backend.{collection.backend}")
    drawn = module.legend(
        collection, kwargs, list(entries), update_visuals=False, **{**settings, **chosen}
    )
    import xarray as xr

    box = np.empty((), dtype=object)
    box[()] = drawn if drawn is not None else {"labels": list(entries), "kwargs": kwargs}
    collection.viz["legend/entries"] = xr.DataArray(box)


def _legend_columns(texts: Sequence[str], letters: float) -> int:
    """Most columns of a legend that fit into a width in letters, filled from top to bottom."""
    for columns in range(len(texts), 1, -1):
        parts = np.array_split(np.array([len(text) for text in texts]), columns)
        if sum(part.max() + 9 for part in parts) <= letters:
            return columns
    return 1


def _width(collection: PlotCollection) -> float:
    """Width of the figure in inches."""
    module = import_module(f"arviz_plots.backend.{collection.backend}.core")
    (width, _), units = module.get_figsize(collection)
    if width is None:
        return 10.0
    return float(width) if units == "inches" else float(width) / 100.0


def lay_out(figure: Any, dpi: float) -> None:
    """Place the panels of a Matplotlib figure for good, as its constrained layout would.

    Panels without labels are as wide and high as those with labels in their row and column, which
    alone are measured.
    """
    from matplotlib.transforms import Bbox

    engine = figure.get_layout_engine()
    across, down, inner = {}, {}, []
    for axes in figure.axes:
        if (cell := axes.get_subplotspec()) is None:
            continue
        column, row = cell.colspan.start, cell.rowspan.start
        if _labelled(axes):
            across[column] = down[row] = axes
        else:
            inner.append((axes, column, row))
    inner = [(axes, column, row) for axes, column, row in inner if column in across and row in down]
    if engine is None or not inner:
        return
    for axes, _, _ in inner:
        axes.set_in_layout(False)
    figure.set_dpi(dpi)
    engine.execute(figure)
    figure.set_layout_engine("none")
    for axes, column, row in inner:
        x, y = across[column].get_position(), down[row].get_position()
        axes.set_position(Bbox([[x.x0, y.y0], [x.x1, y.y1]]))


def _labelled(axes: Any) -> bool:
    """Whether an axis of a panel has numbers or a label."""
    sides = ((axes.xaxis, "labelbottom"), (axes.yaxis, "labelleft"))
    return any(
        axis.get_tick_params().get(side, True) or axis.get_label_text() for axis, side in sides
    )


# --- data and visuals ------------------------------------------------------------------


def points(x: ArrayLike, y: ArrayLike) -> xr.DataArray:
    """Points as ArviZ's visuals take them, (plot_axis, own dimension)."""
    import xarray as xr

    values = np.array(np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float)))
    return xr.DataArray(values, dims=("plot_axis", "point"), coords={"plot_axis": ["x", "y"]})


def segments(x: tuple[ArrayLike, ArrayLike], y: tuple[ArrayLike, ArrayLike]) -> xr.DataArray:
    """Line pieces from (x0, y0) to (x1, y1), as one line with gaps between them."""
    x0, x1, y0, y1 = np.broadcast_arrays(*(np.asarray(v, float) for v in (*x, *y)))
    gap = np.full_like(x0, np.nan)
    return points(np.column_stack([x0, x1, gap]).ravel(), np.column_stack([y0, y1, gap]).ravel())


def band(x: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> xr.DataArray:
    """Region between two lines, (kwarg, own dimension)."""
    import xarray as xr

    values = np.array(np.broadcast_arrays(*(np.asarray(v, float) for v in (x, lower, upper))))
    names = ["x", "y_bottom", "y_top"]
    return xr.DataArray(values, dims=("kwarg", "point"), coords={"kwarg": names})


def dataset(arrays: Mapping[str, xr.DataArray]) -> xr.Dataset:
    """One variable per label, each along dimensions of its own length."""
    import xarray as xr

    renamed = {}
    for i, (label, array) in enumerate(arrays.items()):
        own = {"point": f"point_{i}"} if "point" in array.dims else {}
        renamed[variable_name(label)] = array.rename(own)
    return xr.Dataset(renamed)


def own_xlabel(
    da: xr.DataArray, target: Any, *, texts: Mapping[str, str], var_name: str, **settings: Any
) -> Any:
    """Name the x axis of each panel."""
    import arviz_plots as azp

    kept = {k: v for k, v in settings.items() if k not in ("sel", "isel")}
    return azp.visuals.labelled_x(da, target, text=plain(texts[var_name]), **kept)


def own_ylabel(
    da: xr.DataArray, target: Any, *, texts: Mapping[str, str], var_name: str, **settings: Any
) -> Any:
    """Name the y axis of each panel."""
    import arviz_plots as azp

    kept = {k: v for k, v in settings.items() if k not in ("sel", "isel")}
    return azp.visuals.labelled_y(da, target, text=plain(texts[var_name]), **kept)


def texts_at(
    da: xr.DataArray,
    target: Any,
    *,
    lines: Mapping[str, Sequence[tuple[float, float, str]]],
    var_name: str,
    **settings: Any,
) -> Any:
    """Texts right of places (x, y) of each panel; those that end in a space go to the left."""
    from arviz_plots.plot_collection import backend_from_object

    backend = backend_from_object(target)
    kept = {"color": STRONG} | {k: v for k, v in settings.items() if k not in ("sel", "isel")}
    found = None
    for x, y, text in lines[var_name]:
        side = "right" if text.endswith(" ") else "left"
        found = backend.text(x, y, text, target, **{"horizontal_align": side, **kept})
    return found


def set_yticks(da: xr.DataArray, target: Any, *, values: Any, labels: Any, **kwargs: Any) -> Any:
    """Ticks of the y axis, which ArviZ's visuals lack."""
    from arviz_plots.plot_collection import backend_from_object

    return backend_from_object(target).yticks(values, labels, target, **kwargs)


def levels_across(data: xr.Dataset, labels: Sequence[Any], most: int = MOST_LABELS) -> Visuals:
    """Ticks and limits of an x axis with a level at each whole number from zero on."""
    import arviz_plots as azp

    places, shown = thinned(labels, most)
    ticks = {"data": data, "values": places, "labels": shown, "size": TICK_SIZE}
    limits = {"data": data, "limits": (-0.5, len(labels) - 0.5)}
    return {"xticks": (azp.visuals.set_xticks, ticks), "xlim": (azp.visuals.set_xlim, limits)}


def thinned(labels: Sequence[Any], limit: int) -> tuple[Array, list[str]]:
    """Equally spaced places of at most `limit` labels, and these labels."""
    step = -(-len(labels) // limit)
    places = np.arange(0, len(labels), step)
    return places.astype(float), [str(label) for label in labels[::step]]


# --- the order of levels: text naturally, s2 before s10 --------------------------------


def shown_levels(
    design: Design, group: str | None, levels: Sequence[Any] | None
) -> tuple[int, Indices]:
    """Places of a grouping factor and of the levels to show: those given, or all, in order.

    Raises
    ------
    DataError
        If one of them does not exist.
    """
    place, positions = locate_levels(design, group, levels)
    if levels is None:
        positions = level_order(design, design.spec.random[place])
    return place, positions


def level_order(design: Design, grouping: GroupingFactor) -> Indices:
    """Places (J,) of the levels in the order of pictures.

    Text is ordered naturally, variable by variable; numbers and categories stay as they are.

    Parameters
    ----------
    design : Design
        The design whose sample has the variables.
    grouping : GroupingFactor
        The levels.
    """
    ranks = []
    names = grouping.factors[: len(grouping.parts)]  # members share one set of levels
    for i, (name, part) in enumerate(zip(names, grouping.parts, strict=True)):
        order = value_order(list(part), design.sample[name])
        rank = np.empty(len(order), dtype=np.intp)
        rank[order] = np.arange(len(order))
        ranks.append(rank[grouping.cells[:, i]])
    return np.lexsort(ranks[::-1])


def value_order(values: Sequence[Any], column: pd.Series) -> Indices:
    """Places of the values of a column: text in natural order, everything else as it comes."""
    kept = isinstance(column.dtype, pd.CategoricalDtype)
    if kept or not all(isinstance(value, str) for value in values):
        return np.arange(len(values))
    keys = [natural_key(value) for value in values]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.intp)


def group_order(design: Design, by: Any, labels: Sequence[Any]) -> Indices:
    """Places of the groups of rows that `by` makes, with their labels, in the order of pictures.

    Parameters
    ----------
    design : Design
        The design.
    by : str or array-like
        A grouping factor, a variable, cells such as ``"a:b"``, or a value per row.
    labels : sequence
        Values or labels of the groups.
    """
    if not isinstance(by, str):
        return value_order(labels, pd.Series(by))
    groups = row_groups(design, by)
    assert groups is not None
    order = level_order(design, groups.factor)
    rank = {str(groups.factor.levels[place]): position for position, place in enumerate(order)}
    return np.argsort([rank[str(label)] for label in labels])


def natural_key(text: str) -> tuple[list[tuple[str, int, str]], str]:
    """Key that sorts digits by the number they write: its length, then its digits."""
    pieces = re.split("([0-9]+)", text)
    digits = [piece.lstrip("0") for piece in pieces[1::2]] + [""]
    return [(word, len(d), d) for word, d in zip(pieces[::2], digits, strict=True)], text
