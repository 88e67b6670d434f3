"""Prior beside posterior densities of the parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.plots.common import (
    MAIN,
    PANEL_TITLE_SIZE,
    SECOND,
    Backend,
    add_legend,
    add_title,
    arviz_plots,
    chosen_backend,
    figure_settings,
    variable_name,
)
from bayeslmm.priors.record import Priors
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
    collection = _drawn(pairs, chosen, visuals, pc_kwargs)
    _zoom(collection, pairs)
    entries = {"prior": {"color": SECOND}, "posterior": {"color": MAIN}}
    add_legend(collection, entries, visuals)
    add_title(collection, "Prior and posterior densities", visuals)
    return collection


def _drawn(
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
