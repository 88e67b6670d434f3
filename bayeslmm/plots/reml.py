"""Pictures, drawn by ArviZ on any of its backends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import xarray as xr

from bayeslmm.comparison.reml import compare_reml
from bayeslmm.plots.common import BAND_ALPHA, TITLE_SIZE, Backend, chosen_backend, variable_name
from bayeslmm.summaries.parameters import parameter_draws, parameters

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

ESTIMATE_COLOR = "C1"


def plot_compare_reml(
    post: Any,
    reml: Any,
    *,
    labels: str | Sequence[str] | None = None,
    prob: float | None = None,
    names: Mapping[str, str] | None = None,
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
) -> PlotCollection:
    """Draw posterior densities with the REML estimate and its confidence interval.

    Parameters
    ----------
    post : Posterior
        The posterior.
    reml : Estimate, statsmodels MixedLMResults, DataFrame, str or path
        The estimate, as :func:`bayeslmm.compare_reml` takes it.
    labels : str or sequence of str, optional
        Parameters to draw, such as ``"sd[Subject, Days]"``; all by default.
    prob : float, optional
        Probability of both intervals; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
    names : mapping of str to str, optional
        Names in the estimate, to ours.
    backend : {"matplotlib", "bokeh", "plotly", "none"}, optional
        ArviZ's ``rcParams["plot.backend"]`` by default.
    visuals : mapping, optional
        What to draw and how: the keys of ``arviz.plot_dist``, and "estimate" (a vertical line) and
        "confidence_interval" (a band). False leaves one out.
    **pc_kwargs
        Passed on to ``arviz_plots.PlotCollection.wrap`` by ``arviz.plot_dist``.

    Returns
    -------
    arviz_plots.PlotCollection
        One plot per parameter. At a boundary there is no band.

    Raises
    ------
    OptionalDependencyError
        If no plotting library is installed.
    ValueError
        If a label is unknown.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> from bayeslmm.plots.reml import plot_compare_reml
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> post = model.fit(method="laplace", random_seed=1)
    >>> pc = plot_compare_reml(post, model.reml(), labels="sigma", backend="none")
    >>> "estimate" in pc.viz.children
    True
    """
    chosen = chosen_backend(backend)
    import arviz_plots as azp

    table = compare_reml(post, reml, prob=prob, names=names)
    table = table.loc[_chosen(labels, list(table.index))]
    shown: Any = {"point_estimate_text": False, **(visuals or {})}
    line, band = shown.pop("estimate", {}), shown.pop("confidence_interval", {})
    if chosen == "matplotlib":
        figure = {"layout": "constrained", **pc_kwargs.get("figure_kwargs", {})}
        pc_kwargs = {**pc_kwargs, "figure_kwargs": figure}
    draws: Any = _draws(post, table.index)
    collection: PlotCollection = azp.plot_dist(
        draws,
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


def _draws(post: Any, labels: pd.Index) -> xr.Dataset:
    """One variable per parameter, by its label."""
    dataset = post.data["posterior"].to_dataset()
    known = {p.label: p for p in parameters(post.design)}
    return xr.Dataset(
        {
            variable_name(label): (
                ("chain", "draw"),
                parameter_draws(dataset, post.design, known[label]),
            )
            for label in labels
        },
        coords={"chain": dataset["chain"], "draw": dataset["draw"]},
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
