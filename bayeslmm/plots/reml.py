"""Posterior densities with an estimate, drawn by ArviZ on any of its backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from bayeslmm.data.design import Design
from bayeslmm.plots.common import BAND_ALPHA, TITLE_SIZE, Backend, chosen_backend, variable_name
from bayeslmm.summaries.parameters import parameter_draws, parameters

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

ESTIMATE_COLOR = "C1"


def plot_compared(
    design: Design,
    draws: xr.Dataset,
    table: pd.DataFrame,
    *,
    labels: str | Sequence[str] | None = None,
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
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
    labels, backend, visuals, **pc_kwargs
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.reml`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    chosen = chosen_backend(backend)
    import arviz_plots as azp

    table = table.loc[_chosen(labels, list(table.index))]
    shown: Any = {"point_estimate_text": False, **(visuals or {})}
    line, band = shown.pop("estimate", {}), shown.pop("confidence_interval", {})
    if chosen == "matplotlib":
        figure = {"layout": "constrained", **pc_kwargs.get("figure_kwargs", {})}
        pc_kwargs = {**pc_kwargs, "figure_kwargs": figure}
    shown_draws: Any = _draws(design, draws, table.index)
    collection: PlotCollection = azp.plot_dist(
        shown_draws,
        ci_prob=table.attrs["prob"],
        ci_kind=table.attrs["ci_kind"],
        backend=chosen,
        visuals=shown,
        **pc_kwargs,
    )
    bounded = table.dropna(subset=["conf_low", "conf_high"])
    if band is not False and len(bounded):
        limits = _dataset(bounded[["conf_low", "conf_high"]], "band_dim")
        kwargs = {"color": ESTIMATE_COLOR, "alpha": BAND_ALPHA, **band}
        collection.map(azp.visuals.vspan, "confidence_interval", data=limits, **kwargs)
    if line is not False:
        kwargs = {"color": ESTIMATE_COLOR, **line}
        estimates = _dataset(table[["estimate"]].dropna(), None)
        collection.map(azp.visuals.vline, "estimate", data=estimates, **kwargs)
    if hasattr(collection, "add_title"):  # since ArviZ 1.3
        collection.add_title(_title(table), size=TITLE_SIZE)
    return collection


def _title(table: pd.DataFrame) -> str:
    source, percent = table.attrs["estimate"], 100.0 * table.attrs["prob"]
    return (
        f"Posterior density and {percent:g} % interval; line and band: {source} estimate and "
        f"{percent:g} % confidence interval"
    )


def _chosen(labels: str | Sequence[str] | None, known: list[str]) -> list[str]:
    if labels is None:
        return known
    labels = [labels] if isinstance(labels, str) else list(labels)
    if unknown := [label for label in labels if label not in known]:
        raise ValueError(
            f"The posterior has no {', '.join(map(repr, unknown))}. Its parameters are: "
            f"{', '.join(known)}."
        )
    return labels


def _draws(design: Design, draws: xr.Dataset, labels: pd.Index) -> xr.Dataset:
    """One variable per parameter, by its label."""
    known = {p.label: p for p in parameters(design)}
    return xr.Dataset(
        {
            variable_name(label): (
                ("chain", "draw"),
                parameter_draws(draws, design, known[label]),
            )
            for label in labels
        },
        coords={"chain": draws["chain"], "draw": draws["draw"]},
    )


def _dataset(table: pd.DataFrame, dim: str | None) -> xr.Dataset:
    """One variable per row, a vector along `dim` or a number."""
    dims = () if dim is None else (dim,)
    return xr.Dataset(
        {
            variable_name(label): (dims, row if dim else row[0])
            for label, row in zip(table.index, table.to_numpy(), strict=True)
        }
    )
