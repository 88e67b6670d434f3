"""The picture of a calibration check, drawn by ArviZ on any of its backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.plots.common import BAND_ALPHA, Backend, chosen_backend, variable_name
from bayeslmm.sampling.calibration import band, counts_below

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

PANEL_SIZE = (2.6, 2.0)
"""Width and height of one plot in inches, where the figure's size is not given."""

TITLE_SIZE = 10
TITLE = "Δ ECDF of the ranks of {n} simulations"


def plot_calibration(
    ranks: pd.DataFrame,
    out_of: int,
    level: float,
    *,
    labels: str | Sequence[str] | None = None,
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
) -> PlotCollection:
    """Draw ECDF-difference plots of ranks with their simultaneous band.

    Parameters
    ----------
    ranks : DataFrame
        Ranks 0 to `out_of`, simulations by parameters.
    out_of : int
        Largest possible rank.
    level : float
        Probability with which uniform ranks may leave the band.
    labels : str or sequence of str, optional
        Parameters to draw; all by default.
    backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
        ArviZ's ``rcParams["plot.backend"]`` by default.
    visuals : mapping, optional
        Settings of "ecdf", "band", "ref_line", "title" and "xlabel"; False leaves one out.
    **pc_kwargs
        Passed on to ``arviz_plots.PlotCollection.wrap``.

    Returns
    -------
    arviz_plots.PlotCollection
        Line and band are evaluated at the same points, between which both are straight, so that
        the line leaves the band exactly where the test rejects.

    Raises
    ------
    OptionalDependencyError
        If no plotting library is installed.
    ValueError
        If a label is unknown.
    """
    chosen = chosen_backend(backend)
    import arviz_plots as azp

    ranks = ranks[_selected(labels, list(ranks.columns))]
    lines = _differences(ranks, out_of)
    collection: PlotCollection = azp.PlotCollection.wrap(
        lines, backend=chosen, **_layout(ranks.shape[1], chosen, pc_kwargs)
    )
    drawn = _visuals(lines, band(len(ranks), out_of, level))
    for name, (function, settings) in drawn.items():
        wanted = (visuals or {}).get(name, {})
        if wanted is not False:
            collection.map(function, name, **{**settings, **wanted})
    if hasattr(collection, "add_title"):  # since ArviZ 1.3
        collection.add_title(TITLE.format(n=len(ranks)), size=TITLE_SIZE)
    return collection


def _visuals(
    lines: xr.Dataset, bounds: tuple[Array, Array]
) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Functions and settings by visual, in the order of drawing."""
    import arviz_plots as azp
    from arviz_base.labels import BaseLabeller

    across = lines.sel(plot_axis="x")
    points = np.linspace(0.0, 1.0, lines.sizes["point"])
    low, high = (_with_ends(bound) - points for bound in bounds)
    region = {"x": points, "y_bottom": low, "y_top": high, "color": "C0", "alpha": BAND_ALPHA}
    axis = {"x": [0.0, 1.0], "y": 0.0, "color": "gray", "width": 0.8}
    title = {"subset_info": True, "labeller": BaseLabeller(), "size": TITLE_SIZE}
    return {
        "band": (azp.visuals.fill_between_y, {"data": across, **region}),
        "ref_line": (azp.visuals.line_xy, {"data": across, **axis}),
        "ecdf": (azp.visuals.line_xy, {"data": lines, "color": "C1"}),
        "title": (azp.visuals.labelled_title, title),
        "xlabel": (azp.visuals.labelled_x, {"text": "rank / draws"}),
    }


def _selected(labels: str | Sequence[str] | None, known: list[str]) -> list[str]:
    if labels is None:
        return known
    labels = [labels] if isinstance(labels, str) else list(labels)
    if unknown := [label for label in labels if label not in known]:
        raise ValueError(
            f"No ranks of {', '.join(map(repr, unknown))}. There are ranks of: {', '.join(known)}."
        )
    return labels


def _differences(ranks: pd.DataFrame, out_of: int) -> xr.Dataset:
    """Empirical less uniform distribution function, a variable (plot_axis, point) per parameter."""
    points = np.arange(out_of + 2) / (out_of + 1)
    variables = {
        variable_name(label): (
            ("plot_axis", "point"),
            [points, _with_ends(counts_below(ranks[label], out_of) / len(ranks)) - points],
        )
        for label in ranks
    }
    return xr.Dataset(variables, coords={"plot_axis": ["x", "y"]})


def _with_ends(values: Array) -> Array:
    """Values of a distribution function with its ends, 0 and 1."""
    return np.concatenate([[0.0], values, [1.0]])


def _layout(count: int, backend: str, pc_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    layout: dict[str, Any] = {"cols": ["__variable__"], "col_wrap": 4, **pc_kwargs}
    figure: dict[str, Any] = {"sharex": True, "sharey": True}
    columns = min(count, layout["col_wrap"] or int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    if backend == "matplotlib":
        figure["layout"] = "constrained"
    if backend != "none":
        figure |= {"figsize": (columns * PANEL_SIZE[0], rows * PANEL_SIZE[1])}
        figure["figsize_units"] = "inches"
    return layout | {"figure_kwargs": figure | dict(pc_kwargs.get("figure_kwargs", {}))}
