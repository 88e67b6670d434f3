"""What every picture is made of: panels, visuals, legends, titles, on any backend of ArviZ."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bayeslmm.exceptions import require
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Backend = Literal["matplotlib", "bokeh", "plotly", "none"]
Visuals = dict[str, tuple[Any, dict[str, Any]]]
"""Functions and settings by visual, in the order of drawing."""

MAIN, SECOND, QUIET, STRONG = "C0", "C1", "gray", "B1"
"""Blue and orange of most styles, which differ for every kind of colour vision, grey and black."""

DASHED = "C1"
CIRCLE, TRIANGLE, CROSS, DIAMOND, SQUARE = "C0", "C2", "C3", "C4", "C5"
"""ArviZ's names of a line style and of markers, which every backend knows."""

UNSTORED = ("xticks", "yticks", "ticklabels", "xlim", "ylim")
BAND_ALPHA = 0.2
TITLE_SIZE = 12
PANEL_TITLE_SIZE = 10
TICK_SIZE = 8
LEGEND_SIZE = 9
TITLE_LETTERS_PER_INCH = 11
LEGEND_LETTERS_PER_INCH = 15
EXTRA_HEIGHT = 0.6
"""Inches for the title and a legend, beside the panels."""
SLASH = "\N{DIVISION SLASH}"
"""In place of "/" in the names of plots, which xarray's trees do not accept."""


@dataclass(frozen=True, slots=True, eq=False)
class Intervals:
    """Points and their intervals.

    Attributes
    ----------
    centre, lower, upper : ndarray
        Arrays of one shape.
    label : str
        What they are: "posterior mean and 94 % ETI".
    """

    centre: Array
    lower: Array
    upper: Array
    label: str


def chosen_backend(backend: Backend | None) -> Any:
    """The backend to use; ArviZ would draw nothing, and say nothing, where none is installed."""
    from arviz_base import rcParams

    chosen = rcParams["plot.backend"] if backend is None else backend
    if chosen == "matplotlib" or (backend is None and chosen == "none"):
        require("matplotlib", "plots")
    return chosen


def arviz_plots() -> Any:
    """ArviZ's plots, untyped: their annotations allow less than the functions do."""
    return import_module("arviz_plots")


def variable_name(label: str) -> str:
    """Name that ArviZ and netCDF take for something with this label."""
    return label.replace("/", SLASH)


def plain(text: str) -> str:
    """A text of a picture: names without the backticks that formulas need."""
    return text.replace("`", "")


def level_of_picture(level: float | None) -> float:
    """Coverage of the intervals of an estimate in a picture: ArviZ's rcParams where not given."""
    return interval_defaults()[0] if level is None else probability(level, "level")


# --- panels ----------------------------------------------------------------------------


def panels(
    data: xr.Dataset,
    backend: str,
    *,
    size: tuple[float, float],
    columns: int = 4,
    share: Mapping[str, Any] | None = None,
    pc_kwargs: Mapping[str, Any] | None = None,
) -> PlotCollection:
    """A collection with one panel per variable.

    Parameters
    ----------
    data : Dataset
        A variable per panel, named as :func:`variable_name` says.
    backend : str
        The backend.
    size : tuple of float
        Width and height of one panel in inches.
    columns : int
        Largest number of panels in a row.
    share : mapping, optional
        `sharex` and `sharey`.
    pc_kwargs : mapping, optional
        The user's arguments of ``PlotCollection.wrap``, which go first.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    import arviz_plots as azp

    layout: dict[str, Any] = {"cols": ["__variable__"], "col_wrap": columns, **(pc_kwargs or {})}
    count = len(data.data_vars)
    wrap = layout["col_wrap"] or int(np.ceil(np.sqrt(count)))
    across = min(count, wrap)
    width, height = across * size[0], -(-count // across) * size[1]
    figure = {**figure_settings(backend, width, height + EXTRA_HEIGHT), **(share or {})}
    figure |= layout.pop("figure_kwargs", {})
    return azp.PlotCollection.wrap(data, backend=backend, figure_kwargs=figure, **layout)


def figure_settings(backend: str, width: float, height: float) -> dict[str, Any]:
    """Size and layout of a figure in inches, as each backend wants to be told."""
    if backend == "matplotlib":
        return {"figsize": (width, height), "figsize_units": "inches", "layout": "constrained"}
    return {"figsize": (100 * width, 100 * height), "figsize_units": "dots"}


def draw(
    collection: PlotCollection, drawn: Visuals, wanted: Mapping[str, Any] | None = None
) -> None:
    """Draw visuals in their order, with the user's settings over the default ones.

    Ticks and limits are not stored in the collection, which has one place per panel.

    Raises
    ------
    ValueError
        If `wanted` names a visual that there is not.
    """
    for name, (function, settings) in drawn.items():
        chosen = (wanted or {}).get(name, {})
        if chosen is not False:
            defaults = {"ignore_aes": "all", "store_artist": name not in UNSTORED}
            written = {"text": plain(settings["text"])} if "text" in settings else {}
            collection.map(function, name, **{**defaults, **settings, **written, **chosen})


def check_visuals(wanted: Mapping[str, Any] | None, known: Sequence[str]) -> None:
    """Raise ValueError for a visual that there is not."""
    if unknown := sorted(set(wanted or {}) - set(known)):
        raise ValueError(
            f"visuals has {', '.join(map(repr, unknown))}; this picture has "
            f"{', '.join(map(repr, sorted(known)))}."
        )


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
    import xarray as xr

    chosen = (wanted or {}).get("legend", {})
    if chosen is False:
        return
    kwargs = [dict(entry) for entry in entries.values()]
    settings: dict[str, Any] = {}
    if collection.backend == "matplotlib":
        per_row = LEGEND_LETTERS_PER_INCH * _width(collection) / (max(map(len, entries)) + 7)
        columns = min(len(entries), max(1, int(per_row)))
        settings = {"loc": "outside lower center", "ncols": columns, "frameon": False}
        settings["fontsize"] = LEGEND_SIZE
    else:
        kwargs = [{"color": entry.get("color", QUIET)} for entry in kwargs]
    module = import_module(f"arviz_plots.backend.{collection.backend}")
    drawn = module.legend(
        collection, kwargs, list(entries), update_visuals=False, **{**settings, **chosen}
    )
    box = np.empty((), dtype=object)
    box[()] = drawn if drawn is not None else {"labels": list(entries), "kwargs": kwargs}
    collection.viz["legend/entries"] = xr.DataArray(box)


def _width(collection: PlotCollection) -> float:
    """Width of the figure in inches."""
    module = import_module(f"arviz_plots.backend.{collection.backend}.core")
    (width, _), units = module.get_figsize(collection)
    if width is None:
        return 10.0
    return float(width) if units == "inches" else float(width) / 100.0


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


def set_yticks(da: xr.DataArray, target: Any, *, values: Any, labels: Any, **kwargs: Any) -> Any:
    """Ticks of the y axis, which ArviZ's visuals lack."""
    from arviz_plots.plot_collection import backend_from_object

    return backend_from_object(target).yticks(values, labels, target, **kwargs)


def thinned(labels: Sequence[Any], limit: int) -> tuple[Array, list[str]]:
    """Equally spaced places of at most `limit` labels, and these labels."""
    step = -(-len(labels) // limit)
    places = np.arange(0, len(labels), step)
    return places.astype(float), [str(label) for label in labels[::step]]
