"""Predictions by covariates and conditional slopes: curves with bands, or points of a factor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.effects.averages import mean_and_sd
from bayeslmm.effects.grid import check_known, encode_grid, grid_frame, grid_values
from bayeslmm.effects.quantities import LinearQuantities, names_of
from bayeslmm.effects.variables import Variables, is_factor, variables_of
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.plots.common import Drawing, level_of_picture
from bayeslmm.plots.panels import Panel, Style, plot_panels
from bayeslmm.plots.quantities import (
    MOST_PANELS,
    Draws,
    Spread,
    cloud_of,
    label_of,
    on_scale,
    panels_of,
    plan_of,
    response_of,
    shown_draws,
    spread_of,
    title_of,
)
from bayeslmm.prediction.predict import predict
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Kind = Literal["epred", "response"]
PredictionTarget = Literal["average", "population"]

GRID = 40
"""Values of a numeric variable at which curves are evaluated."""

MOST_DRAWS = 2000
"""Draws of the parameters that bounds of new levels and responses are made of."""

WIDER = {
    ("epred", "population"): "means of new levels",
    ("response", "average"): "responses of an average level",
    ("response", "population"): "responses of new levels",
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Request:
    """What of a fit is drawn by which variables.

    Attributes
    ----------
    design : Design
        The design of the model.
    means : callable
        ``fit.means``.
    joint : callable
        Returns draws of the parameters, for bands of new levels and responses.
    prob : float or None
        Coverage of the outer band.
    source : str
        What the curves are.
    target, kind : str
        Whose values the wider band has, if there is one.
    seed : int
        Seed of new levels and responses.
    estimated : bool
        Whether they are of an estimate, and not of draws.
    options : mapping
        Further arguments of `means`.
    """

    design: Design
    means: Callable[..., LinearQuantities]
    joint: Callable[[], JointDraws]
    prob: float | None
    source: str
    target: str
    kind: str
    seed: int
    estimated: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def widens(self) -> bool:
        """Whether there is a wider band than that of the mean."""
        return (self.kind, self.target) in WIDER


def plot_predictions(
    request: Request,
    x: str | None,
    by: str | Sequence[str] | None,
    at: Mapping[str, Any] | None,
    how: Drawing,
    *,
    data: bool | None = None,
    draws: Draws | bool | None = None,
) -> PlotCollection:
    """Draw predictions along a variable, or a panel for each term of the fixed effects.

    Parameters
    ----------
    request : Request
        What to draw.
    x, by, at, data, draws
        As in :meth:`bayeslmm.plots.accessors.Plots.predictions`.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    DataError
        If there is no such variable, or there are too many panels.
    """
    check_choice(request.kind, ["epred", "response"], "kind")
    check_choice(request.target, ["average", "population"], "target")
    design, known = request.design, variables_of(request.design)
    groups = names_of(by)
    if x is None and groups:
        raise DataError(f"by={by!r} needs the variable of the axis, x=.")
    terms = _highest_terms(design, known) if x is None else [(*names_of(x), *groups)]
    for names in terms:
        check_known(names, known.names, "predictions()")
    panels: list[Panel] = []
    first: tuple[LinearQuantities, Spread] | None = None
    cloud = cloud_of(design, data, at, known.names)
    for names in terms:
        values = shown_values(design, known, names, at)
        quantities = request.means(names[0], by=names[1:], at=values, **request.options)
        spread = spread_of(quantities, request.prob, request.source)
        plan = plan_of(design, quantities.labels, names[0])
        wider = wider_bounds(request, quantities, names, values)
        curve = plan.numeric and len(plan.values) > 1
        shown = shown_draws(draws, spread, plan, default=False, curve=curve)
        prefix = " x ".join(names) + " " if len(terms) > 1 else ""
        panels += panels_of(
            plan,
            quantities,
            spread,
            on_scale(cloud, quantities),
            wider,
            curve=curve,
            joined=plan.ordered,
            draws=shown,
            prefix=prefix,
        )
        first = first or (quantities, spread)
    assert first is not None
    return plot_panels(_ticks_that_fit(panels), _style(request, terms, first, cloud), how)


def _style(
    request: Request,
    terms: Sequence[tuple[str, ...]],
    first: tuple[LinearQuantities, Spread],
    cloud: Any,
) -> Style:
    one = len(terms) == 1
    name = response_of(request.design, first[0])
    title = f"{name} by the terms of the fixed effects"
    if one:
        title = f"{name} by {' and '.join(terms[0])}"
        lost = title_of(first[0]).removeprefix(first[0].title)
        title += lost
    wider = ""
    if request.widens:
        words = WIDER[request.kind, request.target] if request.design.random else "new responses"
        wider = f"{words}: {coverage(chance_of(request)[0])} interval"
    return Style(
        value=name,
        title=title,
        label=label_of(*first),
        data=cloud.label if cloud else "",
        wider=wider,
        titled=any(len(names) > 2 for names in terms),
    )


def _ticks_that_fit(panels: list[Panel]) -> list[Panel]:
    if len(panels) > MOST_PANELS:
        raise DataError(
            f"The fixed effects make {len(panels)} panels; a picture has at most {MOST_PANELS}. "
            "Choose a variable with x=."
        )
    return panels


# --- terms and values ------------------------------------------------------------------


def _highest_terms(design: Design, known: Variables) -> list[tuple[str, ...]]:
    """Variables of each term that is part of no other, the first a number where there is one.

    Raises
    ------
    DataError
        If the fixed effects have no variables.
    """
    right = design.formula.right
    sets = {frozenset(right.product(term).variables) & set(known.names) for term in right.terms}
    highest = [names for names in sets if names and not any(names < other for other in sets)]
    if not highest:
        raise DataError(
            f"{design.formula.source} has no variable among its fixed effects to draw along. "
            "fit.plot.means() shows the overall mean."
        )
    place = {name: i for i, name in enumerate(sorted(known.names, key=design.formula.source.find))}

    def ordered(names: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=lambda name: (name in known.levels, place[name])))

    return sorted(map(ordered, highest), key=lambda names: [place[name] for name in names])


def shown_values(
    design: Design, known: Variables, names: Sequence[str], at: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Values to predict at: along the first variable a grid, of other numbers three.

    The three are the mean and the mean less and plus the standard deviation.
    """
    values = dict(at or {})
    for i, name in enumerate(names):
        if name in values or name not in known.centres:
            continue
        if i == 0:
            values[name] = np.linspace(*design.range_of(name), GRID)
        else:
            mean, sd = mean_and_sd(design, name)
            values[name] = [_short(mean + step * sd, sd) for step in (-1.0, 0.0, 1.0)]
    return values


def _short(value: float, sd: float) -> float:
    """A number with as many digits as tell thousandths of a standard deviation apart."""
    digits = int(np.clip(2 - np.floor(np.log10(sd)), 0, 15)) if sd > 0.0 else 6
    return round(value, digits)


# --- new levels and responses ----------------------------------------------------------


def chance_of(request: Request) -> tuple[float, str]:
    """Probability and kind of the wider band."""
    if request.estimated:
        return level_of_picture(request.prob), "eti"
    return interval_defaults(request.prob)


def wider_bounds(
    request: Request,
    quantities: LinearQuantities,
    names: Sequence[str],
    values: Mapping[str, Any],
) -> tuple[Array, Array] | None:
    """Bounds of predictions of new levels or responses, of all cells that a mean averages over.

    Raises
    ------
    ValueError
        If these cells do not count equally.
    """
    if not request.widens:
        return None
    if request.options.get("weights", "equal") != "equal":
        raise ValueError(
            f"weights={request.options['weights']!r}: predictions of new levels and responses "
            "average over factors with weights='equal'."
        )
    design, joint = request.design, request.joint().thin(MOST_DRAWS)
    cells = grid_values(variables_of(design), names, values)
    frame = grid_frame(cells, design.sample)
    shift = _offset_shift(design, frame, [*names, *values])
    frame = _completed(design, frame)
    count, bounds = len(quantities.labels), []
    for place in range(count):  # each with the same new levels and residuals: smooth curves
        prediction = predict(
            design,
            joint,
            frame.iloc[place::count].reset_index(drop=True),
            target=request.target,  # type: ignore[arg-type]
            kind=request.kind,  # type: ignore[arg-type]
            rng=np.random.default_rng(request.seed),
        )
        drawn = prediction.draws() + shift[place::count]
        bounds.append(interval(drawn.reshape(-1, 1), *chance_of(request)))
    lower, upper = np.concatenate(bounds, axis=1)
    if quantities.scale is not None:
        back = quantities.scale.transform.values
        lower, upper = np.sort([back(lower), back(upper)], axis=0)
    lost = ~quantities.estimable.to_numpy()
    lower[lost], upper[lost] = np.nan, np.nan
    return lower, upper


def new_unit(design: Design) -> tuple[pd.DataFrame | None, bool]:
    """A row of covariates at their means, None without any; and whether there are factors too."""
    known = variables_of(design)
    values = {name: [centre] for name, centre in known.centres.items()}
    frame = _completed(design, grid_frame(values, design.sample)) if not known.levels else None
    return (None if frame is None or not len(frame.columns) else frame), bool(known.levels)


def _offset_shift(design: Design, frame: pd.DataFrame, explicit: Sequence[str]) -> Array:
    """Offset (cells,) that means take, less that of the rows of the grid."""
    known = variables_of(design)
    mean = encode_grid(design, known, frame, explicit).constant
    return np.asarray(mean - design.spec.rows(frame, random="none").offset)


def _completed(design: Design, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a grid with the covariates of the random effects too, at their means.

    Raises
    ------
    DataError
        If one of them is a factor that the fixed effects do not have.
    """
    needed: set[str] = set().union(*(term.left.variables for term in design.formula.random))
    for name in sorted(needed - set(frame)):
        if is_factor(design.sample[name]):
            raise DataError(
                f"`{name}` is a factor among the random effects alone: at which level should new "
                "ones be predicted? fit.predict() takes rows with it."
            )
        frame = frame.assign(**{name: design.mean_of(name)})
    return frame


# --- slopes along a covariate ----------------------------------------------------------


def plot_slopes_along(
    design: Design,
    slopes: Callable[..., LinearQuantities],
    variable: str,
    along: str,
    prob: float | None,
    source: str,
    how: Drawing,
    *,
    by: str | Sequence[str] | None = None,
    at: Mapping[str, Any] | None = None,
    draws: Draws | bool | None = None,
) -> PlotCollection:
    """Draw the slope by a variable along another; arguments as in ``fit.plot.slopes()``."""
    known = variables_of(design)
    names = (*names_of(along), *names_of(by))
    check_known(names, known.names, "slopes()")
    values = shown_values(design, known, names, at)
    quantities = slopes(variable, by=names, at=values)
    spread = spread_of(quantities, prob, source)
    plan = plan_of(design, quantities.labels, names[0])
    curve = plan.numeric and len(plan.values) > 1
    shown = shown_draws(draws, spread, plan, default=not curve, curve=curve)
    panels = panels_of(plan, quantities, spread, curve=curve, joined=plan.ordered, draws=shown)
    style = Style(
        value=f"slope of {design.response} by {variable}",
        title=f"Slope by {variable} along {along}",
        label=label_of(quantities, spread),
        zero=0.0,
        titled=bool(plan.faceted),
    )
    return plot_panels(panels, style, how)
