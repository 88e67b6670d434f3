"""Densities of parameters and hypotheses: exact where there is a closed form, else of draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import norm

from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.plots.common import (
    BAND_ALPHA,
    MAIN,
    QUIET,
    SECOND,
    STRONG,
    TICK_SIZE,
    Drawing,
    Visuals,
    chosen_parameters,
    own_xlabel,
    picture,
    titles,
    variable_name,
)
from bayeslmm.plots.panels import WIDTH
from bayeslmm.priors.families import LKJ, Prior
from bayeslmm.priors.record import Priors
from bayeslmm.summaries.parameters import Parameter, free_parameters, joint_parameter

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Logpdf = Callable[[Array], Array]

POINTS = 200
PRIOR_DRAWS = 100_000
"""Draws of a prior that has no closed form in the user's coordinates."""

CENTRE = 0.9
"""Central probability of the prior that every panel shows."""

DRAWN = 0.999
"""Central probability of draws that the density of draws is of: the rest is far out."""

HIGHEST = 2.0
"""Height of a prior, in those of the posterior's top, at which the picture ends."""

HEIGHT = 2.0
LETTERS_PER_INCH = 12
"""Of titles of panels."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A density at increasing places."""

    x: Array
    height: Array


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Densities:
    """What one panel shows.

    Attributes
    ----------
    label : str
        Its title.
    prior, posterior : Curve or None
    line : float or None
        A value to mark.
    region : tuple of float or None
        A region to shade.
    below : str
        Label of the axis.
    """

    label: str
    prior: Curve | None = None
    posterior: Curve | None = None
    line: float | None = None
    region: tuple[float, float] | None = None
    below: str = ""


# --- densities -------------------------------------------------------------------------


def curve_of_draws(draws: Array, bandwidth: str = "experimental") -> Curve:
    """Density of draws, which ends where they do (at a bound), without what is far out.

    Priors want the bandwidth "silverman": they have one hump and long tails, in which ArviZ's
    bandwidth, made for posteriors of any form, shows each draw.
    """
    from arviz_stats.base import array_stats

    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1.0 - DRAWN) / 2.0, (1.0 + DRAWN) / 2.0])
    if not low < high:
        return Curve(np.array([low, high]), np.zeros(2))
    inside = draws[(draws >= low) & (draws <= high)]
    x, height, _ = array_stats.kde(inside, bound_correction=True, bw=bandwidth)
    return Curve(np.asarray(x), np.asarray(height) * len(inside) / len(draws))


def curve_of(logpdf: Logpdf, low: float, high: float) -> Curve:
    """A density that is known, between two places."""
    x = np.linspace(low, high, POINTS)
    with np.errstate(over="ignore"):
        return Curve(x, np.exp(logpdf(x)))


def marginal_prior(priors: Priors, parameter: Parameter) -> Logpdf | None:
    """Log prior density of one parameter in the user's coordinates; None without a closed form.

    Fixed effects are linear in coordinates with independent priors: normal where these are. A
    standard deviation has one where its column is a multiple of a working column, and a correlation
    under an LKJ prior where no columns are mixed: a beta distribution on -1 to 1.
    """
    if parameter.kind == "beta":
        return _of_fixed_effect(priors, parameter.index[0])
    if parameter.kind == "sd":
        row = priors.mixing[parameter.factor][parameter.index[0]]
        (used,) = np.nonzero(row)
        if len(used) != 1:
            return None
        structure = priors.coordinates.structures[parameter.factor]
        record = priors.sd[parameter.factor][structure.sd_places[used[0]]]
        return _scaled(record, abs(float(row[used[0]])))
    record = priors.records().get(parameter.label)
    if parameter.kind == "cor":
        return _of_correlation(priors, parameter)
    return record.logpdf if isinstance(record, Prior) and not isinstance(record, LKJ) else None


def _of_fixed_effect(priors: Priors, place: int) -> Logpdf | None:
    row = np.linalg.inv(priors.fixed_map)[place]
    if priors.beta_root is not None:
        sd = float(np.linalg.norm(np.linalg.solve(priors.beta_root.T, np.eye(len(row))[place])))
        mean = float(priors.beta_mean[place])
        return lambda x: np.asarray(norm.logpdf(x, mean, sd))
    (used,) = np.nonzero(np.abs(row) > 1e-12 * np.abs(row).max())
    return _scaled(priors.beta[used[0]], float(row[used[0]])) if len(used) == 1 else None


def _scaled(record: Prior, by: float) -> Logpdf:
    """Log density of a multiple of what has a prior."""
    return lambda x: record.logpdf(x / by) - np.log(abs(by))


def _of_correlation(priors: Priors, parameter: Parameter) -> Logpdf | None:
    f = parameter.factor
    w = priors.mixing[f]
    structure = priors.coordinates.structures[f]
    for block, prior in zip(structure.blocks, priors.cor[f], strict=True):
        own = w[np.ix_(block, block)]
        if set(parameter.index) <= set(block) and isinstance(prior, LKJ):
            if np.count_nonzero(own) != len(block):
                return None
            power = prior.eta - 1.0 + (len(block) - 2) / 2.0
            return _beta_on_both_sides(power)
    return None


def _beta_on_both_sides(power: float) -> Logpdf:
    """Log density proportional to (1 - r^2)^power on -1 to 1."""
    from scipy.special import betaln

    constant = (2.0 * power + 1.0) * np.log(2.0) + betaln(power + 1.0, power + 1.0)

    def logpdf(r: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = power * np.log(1.0 - r**2) if power else np.zeros_like(r)
        return np.where(np.abs(r) <= 1.0, inside - constant, -np.inf)

    return logpdf


def prior_curves(
    design: Design,
    priors: Priors,
    wanted: Sequence[Parameter],
    random_seed: int | np.random.Generator | None,
    reach: Mapping[str, tuple[float, float]],
) -> dict[str, Curve]:
    """Prior density of each parameter over its centre and over what else is to be seen.

    Parameters
    ----------
    design : Design
        The design.
    priors : Priors
        Its priors, all proper.
    wanted : sequence of Parameter
        The parameters.
    random_seed : int or numpy.random.Generator, optional
        Seed of draws.
    reach : mapping of str to tuple of float
        Ends of what else is to be seen, by label.

    Raises
    ------
    PriorError
        If a prior is flat.
    """
    points = priors.sample(seeded(random_seed), PRIOR_DRAWS)
    tail, curves = (1.0 - CENTRE) / 2.0, {}
    for parameter in wanted:
        draws = joint_parameter(points, parameter)
        low, high = np.quantile(draws, [tail, 1.0 - tail])
        low = 0.0 if draws.min() >= 0.0 else low
        if parameter.kind in ("cor", "cor_residual"):
            low, high = max(draws.min(), -1.0), min(draws.max(), 1.0)
        seen = reach.get(parameter.label, (low, high))
        low, high = min(low, seen[0]), max(high, seen[1])
        logpdf = marginal_prior(priors, parameter)
        if logpdf is not None:
            curves[parameter.label] = curve_of(logpdf, low, high)
            continue
        curve = curve_of_draws(draws, "silverman")
        x = np.linspace(max(low, curve.x[0]), min(high, curve.x[-1]), POINTS)
        curves[parameter.label] = Curve(x, np.interp(x, curve.x, curve.height))
    return curves


# --- pictures --------------------------------------------------------------------------


def plot_parameters(
    design: Design,
    priors: Priors,
    how: Drawing,
    *,
    labels: str | Sequence[str] | None = None,
    random_seed: int | np.random.Generator | None = 0,
    posterior: Callable[[Parameter], Array] | None = None,
) -> PlotCollection:
    """Draw prior densities of parameters, and posterior ones where there are draws.

    Parameters
    ----------
    design : Design
        The design.
    priors : Priors
        Its priors, all proper.
    how : Drawing
        How to draw it.
    labels, random_seed
        As in :meth:`bayeslmm.plots.accessors.PosteriorPlots.prior_posterior`.
    posterior : callable, optional
        Returns posterior draws (S,) of a parameter.

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
    known = {parameter.label: parameter for parameter in free_parameters(design)}
    refusal = "The model has no {}. Its parameters are: {}."
    names = chosen_parameters(labels, list(known), design, refusal)
    wanted = [known[name] for name in names]
    after: dict[str, Curve] = {}
    if posterior is not None:
        after = {row.label: curve_of_draws(posterior(row)) for row in wanted}
    reach = {label: (float(curve.x[0]), float(curve.x[-1])) for label, curve in after.items()}
    before = prior_curves(design, priors, wanted, random_seed, reach)
    panels = [
        Densities(label=name, prior=before[name], posterior=after.get(name)) for name in names
    ]
    title = "Prior densities" if posterior is None else "Prior and posterior densities"
    return plot_densities(panels, how, title)


def plot_densities(
    panels: Sequence[Densities], how: Drawing, title: str, region: str = ""
) -> PlotCollection:
    """Draw densities, a panel each.

    Parameters
    ----------
    panels : sequence of Densities
        What to draw.
    how : Drawing
        How to draw it.
    title : str
        Title of the figure.
    region : str
        What a shaded region is.

    Returns
    -------
    arviz_plots.PlotCollection
        Visuals "prior", "prior_area", "posterior", "posterior_area", "line" and "region".
    """
    import arviz_plots as azp

    data = xr.Dataset({variable_name(panel.label): 0.0 for panel in panels})
    styles = {"prior": SECOND, "posterior": MAIN}
    drawn: Visuals = {"region": _regions(panels), "line": _lines(panels)}
    for kind, color in styles.items():
        drawn |= _curves(panels, kind, color)
    texts = {variable_name(panel.label): panel.below for panel in panels if panel.below}
    drawn["title"] = titles(data)
    drawn["xlabel"] = None
    if texts:
        label = {"data": data[list(texts)], "texts": texts, "subset_info": True}
        drawn["xlabel"] = (own_xlabel, label)
    small = {"data": data, "axis": "x", "size": TICK_SIZE}
    drawn["ticks"] = (azp.visuals.ticklabel_props, small)
    drawn["yaxis"] = (azp.visuals.remove_axis, {"data": data, "axis": "y"})
    legend: dict[str, dict[str, Any]] = {
        kind: {"color": styles[kind]} for kind in styles if drawn[kind] is not None
    }
    if drawn["region"] is not None:
        legend[region] = {"color": QUIET, "linewidth": 6.0, "alpha": 0.4}
    across = columns_for(
        [line for p in panels for line in (p.label, *p.below.splitlines())], len(panels)
    )
    width = WIDTH / across
    if tops := _tops(panels):
        drawn["ylim"] = (_set_top, {"data": data[list(tops)], "tops": tops, "subset_info": True})
    size = (width, HEIGHT if across > 1 else 2.8)
    return picture(how, data, drawn, size=size, title=title, legend=legend, columns=across)


def columns_for(texts: Sequence[str], count: int) -> int:
    """Panels beside each other, of so many, that leave room for texts above and below them."""
    longest = max(map(len, texts))
    across = 2 if count == 4 else min(count, 3)
    return min(across, max(1, int(LETTERS_PER_INCH * WIDTH / (longest + 2))))


def _tops(panels: Sequence[Densities]) -> dict[str, float]:
    """Heights at which priors are cut that are far higher than the posterior."""
    tops = {}
    for panel in panels:
        if panel.prior is None or panel.posterior is None:
            continue
        highest = HIGHEST * float(panel.posterior.height.max())
        if float(panel.prior.height.max()) > highest > 0.0:
            tops[variable_name(panel.label)] = highest
    return tops


def _set_top(
    da: xr.DataArray, target: Any, *, tops: Mapping[str, float], var_name: str, **kwargs: Any
) -> Any:
    """End the y axis of a panel at its own height."""
    from arviz_plots.plot_collection import backend_from_object

    top = tops[var_name]
    return backend_from_object(target).ylim((-0.03 * top, top), target)


def _curves(panels: Sequence[Densities], kind: str, color: str) -> Visuals:
    import arviz_plots as azp

    lines, areas = {}, {}
    for i, panel in enumerate(panels):
        curve: Curve | None = getattr(panel, kind)
        if curve is None:
            continue
        name, dim = variable_name(panel.label), f"at_{i}"
        lines[name] = xr.DataArray(
            [curve.x, curve.height], {"plot_axis": ["x", "y"]}, ("plot_axis", dim)
        )
        areas[name] = xr.DataArray(
            [curve.x, np.zeros_like(curve.x), curve.height],
            {"kwarg": ["x", "y_bottom", "y_top"]},
            ("kwarg", dim),
        )
    if not lines:
        return {kind: None, f"{kind}_area": None}
    area = {"data": xr.Dataset(areas), "color": color, "alpha": BAND_ALPHA}
    line = {"data": xr.Dataset(lines), "color": color, "width": 1.5}
    return {
        f"{kind}_area": (azp.visuals.fill_between_y, area),
        kind: (azp.visuals.line_xy, line),
    }


def _regions(panels: Sequence[Densities]) -> Any:
    import arviz_plots as azp

    regions = {
        variable_name(panel.label): ("ends", list(panel.region)) for panel in panels if panel.region
    }
    if not regions:
        return None
    settings = {"data": xr.Dataset(regions), "color": QUIET, "alpha": 0.25}
    return azp.visuals.vspan, settings


def _lines(panels: Sequence[Densities]) -> Any:
    import arviz_plots as azp

    lines = {variable_name(p.label): p.line for p in panels if p.line is not None}
    if not lines:
        return None
    return azp.visuals.vline, {"data": xr.Dataset(lines), "color": STRONG, "width": 1.0}
