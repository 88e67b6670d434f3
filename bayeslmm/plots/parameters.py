"""Pictures of parameters: densities beside an estimate, and ranks of a calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.plots.common import (
    BAND_ALPHA,
    SECOND,
    Drawing,
    Visuals,
    add_title,
    arviz_plots,
    chosen,
    picture,
    titles,
    variable_name,
)
from bayeslmm.sampling.calibration import band as uniform_band
from bayeslmm.sampling.calibration import counts_below
from bayeslmm.sampling.tree import SAMPLE_DIMS
from bayeslmm.summaries.parameters import (
    parameter_draws,
    parameters,
)

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
    table = table.loc[chosen(wanted, list(table.index), refusal)]
    shown = how.of_arviz(point_estimate_text=False)
    line, band = shown.pop("estimate", {}), shown.pop("confidence_interval", {})
    constrained = {"layout": "constrained"} if how.backend == "matplotlib" else {}
    figure = {**constrained, **how.pc_kwargs.get("figure_kwargs", {})}
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
        **{**how.pc_kwargs, "figure_kwargs": figure},
    )
    bounded = table.dropna(subset=["conf_low", "conf_high"])
    if band is not False and len(bounded):
        limits = _by_label(bounded[["conf_low", "conf_high"]], "band_dim")
        kwargs = {"color": SECOND, "alpha": BAND_ALPHA, **band}
        collection.map(azp.visuals.vspan, "confidence_interval", data=limits, **kwargs)
    if line is not False:
        estimates = _by_label(table[["estimate"]].dropna())
        collection.map(azp.visuals.vline, "estimate", data=estimates, **{"color": SECOND, **line})
    add_title(collection, _title(table), how.visuals)
    return collection


def _title(table: pd.DataFrame) -> str:
    source, percent = table.attrs["estimate"], 100.0 * table.attrs["prob"]
    return (
        f"Posterior density and {percent:g} % interval; line and band: {source} estimate and "
        f"{percent:g} % confidence interval"
    )


def _by_label(table: pd.DataFrame, *dims: str) -> xr.Dataset:
    """One variable per row, a vector along a dimension or a number."""
    rows = zip(table.index, table.to_numpy(), strict=True)
    return xr.Dataset({variable_name(n): (dims, row if dims else row[0]) for n, row in rows})


# --- ranks of simulations ----------------------------------------------------------------

RANK_PANEL = (2.6, 2.0)


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
    return picture(
        how,
        lines,
        _rank_visuals(lines, uniform_band(len(ranks), out_of, level)),
        size=RANK_PANEL,
        title=f"Δ ECDF of the ranks of {len(ranks)} simulations",
        sharex=True,
        sharey=True,
    )


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
        "xlabel": (azp.visuals.labelled_x, {"data": lines, "text": "rank / draws"}),
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
