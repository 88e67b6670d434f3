"""Pictures of parameters: densities beside an estimate, and ranks of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.plots.common import (
    BAND_ALPHA,
    MAIN,
    PANEL_TITLE_SIZE,
    SECOND,
    TICK_SIZE,
    Drawing,
    Visuals,
    add_title,
    arviz_plots,
    chosen,
    chosen_parameters,
    draw,
    outer,
    picture,
    titles,
    variable_name,
)
from bayeslmm.plots.densities import columns_for
from bayeslmm.plots.panels import HEIGHT, WIDTH
from bayeslmm.sampling.calibration import band as uniform_band
from bayeslmm.sampling.calibration import counts_below
from bayeslmm.sampling.tree import SAMPLE_DIMS
from bayeslmm.summaries.parameters import (
    free_parameters,
    parameter_draws,
    parameters,
)
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection


Array = NDArray[np.float64]

# --- posterior and an estimate -----------------------------------------------------------


def plot_compared(
    design: Design,
    draws: xr.Dataset,
    table: pd.DataFrame,
    how: Drawing,
    *,
    labels: str | Sequence[str] | None = None,
) -> PlotCollection:
    """Draw posterior densities with an estimate and its confidence interval.

    Parameters
    ----------
    design : Design
        The design of the model.
    draws : xarray.Dataset
        Posterior draws.
    table : pandas.DataFrame
        From :func:`bayeslmm.compare_reml`.
    how : Drawing
        How to draw it.
    labels
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.reml`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    import arviz_plots as azp

    refusal = "The posterior has no {}. Its parameters are: {}."
    free = [parameter.label for parameter in free_parameters(design)]
    wanted = [label for label in table.index if label in free] if labels is None else labels
    table = table.loc[chosen_parameters(wanted, list(table.index), design, refusal)]
    shown = how.of_arviz(point_estimate_text=False, title={"size": PANEL_TITLE_SIZE})
    line, band = shown.pop("estimate", {}), shown.pop("confidence_interval", {})
    across = columns_for(list(table.index), len(table))
    known = {p.label: p for p in parameters(design)}
    collection: PlotCollection = arviz_plots().plot_dist(
        xr.Dataset(
            {
                variable_name(label): (SAMPLE_DIMS, parameter_draws(draws, design, known[label]))
                for label in table.index
            },
            coords={dim: draws[dim] for dim in SAMPLE_DIMS},
        ),
        ci_prob=table.attrs["prob"],
        ci_kind=table.attrs["ci_kind"],
        backend=how.backend,
        visuals=shown,
        **how.layout(len(table), (WIDTH / across, 1.7), across),
    )
    bounded = table.dropna(subset=["conf_low", "conf_high"])
    if band is not False and len(bounded):
        limits = _by_label(bounded[["conf_low", "conf_high"]], "band_dim")
        kwargs = {"color": SECOND, "alpha": BAND_ALPHA, **band}
        collection.map(azp.visuals.vspan, "confidence_interval", data=limits, **kwargs)
    if line is not False:
        estimates = _by_label(table[["estimate"]].dropna())
        collection.map(azp.visuals.vline, "estimate", data=estimates, **{"color": SECOND, **line})
    axes = {"data": collection.data, "axis": "x", "size": TICK_SIZE}
    draw(collection, {"ticks": (azp.visuals.ticklabel_props, axes)})
    add_title(collection, _title(table), how.visuals)
    return collection


def _title(table: pd.DataFrame) -> str:
    source, percent = table.attrs["estimate"], coverage(table.attrs["prob"])
    return (
        f"Posterior density and {percent} interval; line and band: "
        f"{source.removeprefix('bayeslmm ')} estimate and {percent} confidence interval"
    )


def _by_label(table: pd.DataFrame, *dims: str) -> xr.Dataset:
    """One variable per row, a vector along a dimension or a number."""
    rows = zip(table.index, table.to_numpy(), strict=True)
    return xr.Dataset({variable_name(n): (dims, row if dims else row[0]) for n, row in rows})


# --- ranks of simulations ----------------------------------------------------------------

RANK_HEIGHT = 2.0
EXACT_BAND = 1000
"""Values up to which the band is exact; beyond, it narrows with the root of their number."""


def plot_calibration(
    ranks: pd.DataFrame,
    out_of: int,
    level: float,
    how: Drawing,
    *,
    labels: str | Sequence[str] | None = None,
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
    how : Drawing
        How to draw it.
    labels : str or sequence of str, optional
        Parameters to draw; all by default.

    Returns
    -------
    arviz_plots.PlotCollection
        Line and band are evaluated at the same points, between which both are straight, so that
        the line leaves the band exactly where the test rejects.

    Raises
    ------
    ValueError
        If a label is unknown.
    """
    refusal = "No ranks of {}. There are ranks of: {}."
    ranks = ranks[chosen(labels, list(ranks.columns), refusal)]
    lines = _differences(ranks, out_of)
    across = columns_for(list(ranks.columns), ranks.shape[1])
    return picture(
        how,
        lines,
        _rank_visuals(lines, uniform_band(len(ranks), out_of, level)),
        size=(WIDTH / across, RANK_HEIGHT),
        title=f"Δ ECDF of the ranks of {len(ranks)} simulations",
        legend=_rank_legend(1.0 - level),
        columns=across,
        sharex=True,
        sharey=True,
    )


def plot_uniformity(
    values: Array, name: str, title: str, prob: float, how: Drawing
) -> PlotCollection:
    """Draw the ECDF difference of values (n,) that are uniform on 0 to 1 where a model is right.

    Parameters
    ----------
    values : ndarray (n,)
        Probability integral transforms.
    name : str
        What they are, on the axis.
    title : str
        Title of the figure.
    prob : float
        Probability with which independent uniform values stay inside the band.
    how : Drawing
        How to draw it.
    """
    out_of = min(len(values), 100)
    ranks = np.minimum((values * (out_of + 1)).astype(int), out_of)
    lines = _differences(pd.DataFrame({f"{name} ": ranks}), out_of)
    visuals = _rank_visuals(lines, _band(len(values), out_of, prob)) | {"title": None}
    label = {"data": lines, "text": name}
    visuals["xlabel"] = (arviz_plots().visuals.labelled_x, label)
    return picture(
        how,
        lines,
        visuals,
        size=(WIDTH, HEIGHT),
        title=title,
        legend=_rank_legend(prob),
    )


@cache
def _band(n: int, out_of: int, prob: float) -> tuple[Array, Array]:
    """Simultaneous band for n uniform values at `out_of` places."""
    few = min(n, EXACT_BAND)
    low, high = uniform_band(few, out_of, 1.0 - prob)
    centre, narrower = np.arange(1, out_of + 1) / (out_of + 1), np.sqrt(few / n)
    return centre + narrower * (low - centre), centre + narrower * (high - centre)


def _rank_legend(prob: float) -> dict[str, dict[str, Any]]:
    shaded = {"color": MAIN, "linewidth": 6.0, "alpha": 0.4}
    return {
        "observed less uniform": {"color": SECOND},
        f"holds all of the line in {100.0 * prob:.4g} % of cases if uniform": shaded,
    }


def _rank_visuals(lines: xr.Dataset, bounds: tuple[Array, Array]) -> Visuals:
    """The line within its band."""
    import arviz_plots as azp

    across = lines.sel(plot_axis="x")
    points = np.linspace(0.0, 1.0, lines.sizes["point"])
    low, high = (_with_ends(bound) - points for bound in bounds)
    region = {"x": points, "y_bottom": low, "y_top": high, "color": "C0", "alpha": BAND_ALPHA}
    axis = {"x": [0.0, 1.0], "y": 0.0, "color": "gray", "width": 0.8}
    return {
        "band": (azp.visuals.fill_between_y, {"data": across, **region}),
        "ref_line": (azp.visuals.line_xy, {"data": across, **axis}),
        "ecdf": (azp.visuals.line_xy, {"data": lines, "color": "C1"}),
        "title": titles(lines),
        "xlabel": (
            azp.visuals.labelled_x,
            {"data": lambda c: outer(c, lines)[0], "text": "rank / draws"},
        ),
        "ylabel": (
            azp.visuals.labelled_y,
            {"data": lambda c: outer(c, lines)[1], "text": "Δ ECDF"},
        ),
        "ticks": (azp.visuals.ticklabel_props, {"data": lines, "axis": "both", "size": TICK_SIZE}),
        "ticklabels": (
            azp.visuals.set_ticklabel_visibility,
            {"data": lambda c: outer(c, lines)[0], "axis": "x", "visible": True},
        ),
    }


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
