"""Pictures of parameters: densities beside the prior or an estimate, and ranks of a calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    TITLE_SIZE,
    Backend,
    add_legend,
    add_title,
    arviz_plots,
    chosen_backend,
    figure_settings,
    variable_name,
)
from bayeslmm.priors.record import Priors
from bayeslmm.sampling.calibration import band as uniform_band
from bayeslmm.sampling.calibration import counts_below
from bayeslmm.sampling.groups import prior_predictive
from bayeslmm.summaries.parameters import parameter_draws, parameters

if TYPE_CHECKING:
    from arviz_plots import PlotCollection


Array = NDArray[np.float64]

PANEL = (2.8, 2.2)
CENTRE = 0.9
"""Central probability of the prior that every panel shows."""


def plot_prior_posterior(
    design: Design,
    priors: Priors,
    posterior: xr.Dataset,
    *,
    labels: str | Sequence[str] | None = None,
    random_seed: int | np.random.Generator | None = 0,
    backend: Backend | None = None,
    visuals: Mapping[str, Any] | None = None,
    **pc_kwargs: Any,
) -> PlotCollection:
    """Draw prior and posterior densities with ``arviz.plot_dist``.

    Parameters
    ----------
    design : Design
        The design.
    priors : Priors
        Its priors, all proper.
    posterior : Dataset
        Posterior draws.
    labels : str or sequence of str, optional
        Parameters to draw; all by default.
    random_seed : int or numpy.random.Generator, optional
        Seed of the draws from the prior, as many as there are from the posterior.
    backend, visuals, **pc_kwargs
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.prior_posterior`.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    PriorError
        If a prior is flat.
    ValueError
        If a label is unknown.
    """
    chosen = chosen_backend(backend)
    known = {parameter.label: parameter for parameter in parameters(design)}
    wanted = _chosen(labels, list(known))
    draws = posterior.sizes["chain"] * posterior.sizes["draw"]
    prior = prior_predictive(design, priors, draws, random_seed)["prior"].to_dataset()
    pairs = {
        label: [
            parameter_draws(group, design, known[label]).ravel() for group in (prior, posterior)
        ]
        for label in wanted
    }
    collection = _both_densities(pairs, chosen, visuals, pc_kwargs)
    _zoom(collection, pairs)
    entries = {"prior": {"color": SECOND}, "posterior": {"color": MAIN}}
    add_legend(collection, entries, visuals)
    add_title(collection, "Prior and posterior densities", visuals)
    return collection


def _both_densities(
    pairs: Mapping[str, Sequence[Array]],
    backend: str,
    visuals: Mapping[str, Any] | None,
    pc_kwargs: Mapping[str, Any],
) -> PlotCollection:
    """What ``arviz.plot_prior_posterior`` draws, whose legend cannot be changed."""
    azp = arviz_plots()
    data = xr.Dataset(
        {variable_name(label): (("group", "sample"), pair) for label, pair in pairs.items()},
        coords={"group": ["prior", "posterior"]},
    )
    layout: dict[str, Any] = {"cols": ["__variable__"], "col_wrap": 4, **pc_kwargs}
    across = min(len(pairs), layout["col_wrap"] or int(np.ceil(np.sqrt(len(pairs)))))
    figure = figure_settings(backend, across * PANEL[0], -(-len(pairs) // across) * PANEL[1] + 0.6)
    layout["figure_kwargs"] = figure | dict(pc_kwargs.get("figure_kwargs", {}))
    if "aes" not in layout:
        layout |= {"aes": {"color": ["group"]}, "color": [SECOND, MAIN]}
    own = {"legend", "figure_title"}
    shown = {name: value for name, value in (visuals or {}).items() if name not in own}
    hidden = dict.fromkeys(("credible_interval", "point_estimate", "point_estimate_text"), False)
    title = {"title": {"size": PANEL_TITLE_SIZE}}
    return azp.plot_dist(
        data,
        sample_dims=["sample"],
        backend=backend,
        visuals={**hidden, **title, **shown},
        **layout,
    )


def _zoom(collection: PlotCollection, pairs: Mapping[str, Sequence[Array]]) -> None:
    """Limits that show the posterior and the centre of the prior, whose tails may be long."""
    import arviz_plots as azp

    tail = (1.0 - CENTRE) / 2.0
    for label, (prior, posterior) in pairs.items():
        low, high = np.quantile(prior, [tail, 1.0 - tail])
        low, high = min(low, posterior.min()), max(high, posterior.max())
        low = 0.0 if prior.min() >= 0.0 else low
        margin = 0.02 * (high - low)
        collection.map(
            azp.visuals.set_xlim,
            "xlim",
            data=xr.Dataset({variable_name(label): 0.0}),
            limits=(low - margin, high + margin),
            ignore_aes="all",
            store_artist=False,
        )


def _chosen(labels: str | Sequence[str] | None, known: list[str]) -> list[str]:
    if labels is None:
        return known
    labels = [labels] if isinstance(labels, str) else list(labels)
    if not labels or (unknown := [label for label in labels if label not in known]):
        given = ", ".join(map(repr, unknown)) if labels else "empty labels"
        raise ValueError(f"The model has no {given}. Its parameters are: {', '.join(known)}.")
    return labels


# --- posterior and an estimate -----------------------------------------------------------

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

    table = table.loc[_of_table(labels, list(table.index))]
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


def _of_table(labels: str | Sequence[str] | None, known: list[str]) -> list[str]:
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


# --- ranks of simulations ----------------------------------------------------------------

RANK_PANEL = (2.6, 2.0)
"""Width and height of one plot in inches, where the figure's size is not given."""

RANKS_TITLE = "Δ ECDF of the ranks of {n} simulations"


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
        lines, backend=chosen, **_rank_layout(ranks.shape[1], chosen, pc_kwargs)
    )
    drawn = _rank_visuals(lines, uniform_band(len(ranks), out_of, level))
    for name, (function, settings) in drawn.items():
        wanted = (visuals or {}).get(name, {})
        if wanted is not False:
            collection.map(function, name, **{**settings, **wanted})
    if hasattr(collection, "add_title"):  # since ArviZ 1.3
        collection.add_title(RANKS_TITLE.format(n=len(ranks)), size=PANEL_TITLE_SIZE)
    return collection


def _rank_visuals(
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
    title = {"subset_info": True, "labeller": BaseLabeller(), "size": PANEL_TITLE_SIZE}
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


def _rank_layout(count: int, backend: str, pc_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    layout: dict[str, Any] = {"cols": ["__variable__"], "col_wrap": 4, **pc_kwargs}
    figure: dict[str, Any] = {"sharex": True, "sharey": True}
    columns = min(count, layout["col_wrap"] or int(np.ceil(np.sqrt(count))))
    rows = -(-count // columns)
    if backend == "matplotlib":
        figure["layout"] = "constrained"
    if backend != "none":
        figure |= {"figsize": (columns * RANK_PANEL[0], rows * RANK_PANEL[1])}
        figure["figsize_units"] = "inches"
    return layout | {"figure_kwargs": figure | dict(pc_kwargs.get("figure_kwargs", {}))}
