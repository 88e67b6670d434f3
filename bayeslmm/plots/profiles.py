"""Pictures of profile likelihoods: the signed root of the deviance along each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import chdtr
from scipy.stats import norm

from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.executor import Executor
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    DASHED,
    MAIN,
    QUIET,
    SECOND,
    TICK_SIZE,
    Drawing,
    Visuals,
    chosen_parameters,
    dataset,
    inner_probability,
    level_of_picture,
    outer,
    picture,
    points,
    segments,
    titles,
    two_widths,
)
from bayeslmm.plots.densities import columns_for
from bayeslmm.plots.panels import WIDTH
from bayeslmm.summaries.estimate_tables import profile_table
from bayeslmm.summaries.parameters import parameters

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

ROOTS = (0.5, 1.0, 1.5, 2.0, 2.6)
"""Signed roots of the deviance at which each profile is found, the nearest ones at its limits."""

DENSE = 60


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Values of a parameter and the signed roots of the deviance there, both increasing."""

    x: Array
    zeta: Array

    def at(self, zeta: float) -> float:
        """Value of the parameter at a signed root; NaN beyond the profile."""
        if not self.zeta[0] <= zeta <= self.zeta[-1]:
            return float("nan")
        return float(PchipInterpolator(self.zeta, self.x)(zeta))

    def dense(self) -> tuple[Array, Array]:
        """Values and roots along a smooth curve."""
        zeta = np.linspace(self.zeta[0], self.zeta[-1], DENSE)
        return np.asarray(PchipInterpolator(self.zeta, self.x)(zeta)), zeta

    def straight(self) -> tuple[Array, Array]:
        """Ends of the line of a normal likelihood: NaN where the profile ends near its middle."""
        slope = 2.0 / (self.at(1.0) - self.at(-1.0))
        ends = np.array([self.x[0], self.x[-1]])
        return ends, slope * (ends - self.at(0.0))

    def limits(self, z: Sequence[float]) -> xr.DataArray:
        """Lines from zero to the curve at the confidence limits of normal quantiles."""
        heights = np.array([sign * root for root in z for sign in (-1.0, 1.0)])
        places = np.array([self.at(height) for height in heights])
        return segments((places, places), (np.zeros(len(heights)), heights))


def roots_through(limits: Sequence[float]) -> list[float]:
    """Roots of `ROOTS`, of which the nearest are moved to those of confidence limits."""
    kept = list(ROOTS)
    for z in limits:
        kept.remove(min(kept, key=lambda root: abs(root - z)))
    return sorted([*kept, *limits])


def profiles(
    fit: Fit,
    design: Design,
    labels: Sequence[str] | str | None,
    roots: Sequence[float],
    executor: Executor | None,
) -> dict[str, Profile]:
    """Profiles of parameters through signed roots; by default of those that have one.

    Raises
    ------
    DataError
        If one that is named has none, or none has: it is known, or at a boundary from which nothing
        can be seen.
    ValueError
        If a label is unknown, or the fit is a MAP estimate.
    """
    known = {parameter.label: parameter for parameter in parameters(design)}
    refusal = "The model has no {}. Its parameters are: {}."
    names = chosen_parameters(labels, list(known), design, refusal)
    kinds = list(dict.fromkeys(known[name].kind for name in names))
    tables = [
        profile_table(fit, design, float(chdtr(1, root**2)), kinds, executor) for root in roots
    ]
    found = {}
    for name in names:
        x, zeta = _ends(roots, [table.loc[name] for table in tables])
        if len(x) > 2 and (np.diff(x) > 0).all():
            found[name] = Profile(x, zeta)
    missing = [name for name in names if name not in found]
    if missing and (labels is not None or not found):
        raise DataError(
            f"No profile can be drawn of {', '.join(missing)}: the value is known, or the "
            "likelihood hardly changes along it."
        )
    return found


def _ends(roots: Sequence[float], rows: Sequence[pd.Series]) -> tuple[Array, Array]:
    """Limits at each root that are no bound of the parameter, in increasing order."""
    pairs = []
    for root, row in zip(roots, rows, strict=True):
        for sign, end, bound in (
            (-1.0, "conf_low", "lower_at_bound"),
            (1.0, "conf_high", "upper_at_bound"),
        ):
            if np.isfinite(row[end]) and not row[bound]:
                pairs.append((sign * root, float(row[end])))
    pairs.sort()
    zeta, x = np.array(pairs).T if pairs else (np.empty(0), np.empty(0))
    return x, zeta


def plot_profile(
    fit: Fit,
    design: Design,
    level: float | None,
    how: Drawing,
    *,
    labels: str | Sequence[str] | None = None,
    executor: Executor | None = None,
) -> PlotCollection:
    """Draw the signed root of the deviance along each parameter.

    Parameters
    ----------
    fit : Fit
        A REML or ML estimate.
    design : Design
        The design.
    level : float, optional
        Coverage of the outer interval.
    how : Drawing
        How to draw it.
    labels, executor
        As in :meth:`bayeslmm.plots.accessors.EstimatePlots.profile`.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    import arviz_plots as azp

    level = level_of_picture(level)
    z = [float(norm.ppf(0.5 + p / 2.0)) for p in (inner_probability(level), level)]
    roots = roots_through(z)
    found = profiles(fit, design, labels, roots, executor)
    across = columns_for(list(found), len(found))
    curves = dataset({name: points(*one.dense()) for name, one in found.items()})
    straight = dataset({name: points(*one.straight()) for name, one in found.items()})
    limits = dataset({name: one.limits(z) for name, one in found.items()})
    zero, top = xr.Dataset(dict.fromkeys(curves, 0.0)), roots[-1] + 0.3
    line = {"data": straight, "color": QUIET, "linestyle": DASHED, "width": 0.9}
    drawn: Visuals = {
        "zero": (azp.visuals.hline, {"data": zero, "color": QUIET, "width": 0.8}),
        "normal": (azp.visuals.line_xy, line),
        "limits": (azp.visuals.line_xy, {"data": limits, "color": SECOND, "width": 1.2}),
        "profile": (azp.visuals.line_xy, {"data": curves, "color": MAIN, "width": 1.6}),
        "title": titles(curves),
        "ylabel": (azp.visuals.labelled_y, {"data": lambda c: outer(c, curves)[1], "text": "ζ"}),
        "ticks": (azp.visuals.ticklabel_props, {"data": curves, "axis": "both", "size": TICK_SIZE}),
        "ylim": (azp.visuals.set_ylim, {"data": curves, "limits": (-top, top)}),
    }
    return picture(
        how,
        curves,
        drawn,
        size=(WIDTH / across, 1.9),
        title=f"Profiles ({_criteria(fit, list(found))}): signed root ζ of the deviance",
        legend={
            "profile": {"color": MAIN},
            f"{two_widths(level)} confidence limits": {"color": SECOND},
            "straight, as of a normal likelihood": {"color": QUIET, "linestyle": DASHED},
        },
        columns=across,
        sharey=True,
    )


def _criteria(fit: Fit, names: Sequence[str]) -> str:
    """What is profiled: fixed effects have the full likelihood, also those of a REML fit."""
    fixed = [name.startswith("beta[") for name in names]
    if fit.method == "ML" or all(fixed):
        return "ML"
    return "REML, fixed effects ML" if any(fixed) else "REML"
