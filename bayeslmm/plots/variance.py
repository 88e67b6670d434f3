"""Pictures of the parts of the variance, and of a new level beside the known ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.estimation.residuals import require_variance
from bayeslmm.exceptions import DataError, check_choice
from bayeslmm.plots.common import (
    Drawing,
    chosen,
    inner_probability,
    level_of_picture,
    shown_levels,
    two_widths,
)
from bayeslmm.plots.effects import matched_effects
from bayeslmm.plots.panels import Panel, Series, Style, plot_panels
from bayeslmm.plots.quantities import Spread
from bayeslmm.sampling.joint_draws import JointDraws
from bayeslmm.summaries.posterior_tables import interval, interval_defaults
from bayeslmm.summaries.variance_explained import part_labels, share_of_total, variance_parts

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

MOST_LEVELS = 100
"""Levels that are shown beside a new one."""


def spread_of_draws(draws: Array, point: Array | None, prob: float | None, source: str) -> Spread:
    """Two intervals of draws (S, m), of a posterior or around an estimate.

    Parameters
    ----------
    draws : ndarray (S, m)
        The draws.
    point : ndarray (m,), optional
        Values at the estimate; None for a posterior, whose means are shown.
    prob : float, optional
        Probability of the outer interval.
    source : str
        What the points are.
    """
    if point is None:
        chance, kind = interval_defaults(prob)
        name = kind.upper()
    else:
        chance, kind, name = level_of_picture(prob), "eti", "intervals"
    inner, outer = (interval(draws, p, kind) for p in (inner_probability(chance), chance))
    centre = draws.mean(axis=0) if point is None else point
    label = f"{source}, {two_widths(chance)} {name}"
    return Spread(centre=centre, inner=inner, outer=outer, draws=draws, label=label)


def plot_variance(
    design: Design,
    joint: JointDraws,
    point: JointDraws | None,
    prob: float | None,
    source: str,
    how: Drawing,
    *,
    fixed: bool = True,
) -> PlotCollection:
    """Draw the share of each part of the model in the variance of the response.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        Draws of the posterior, or around an estimate.
    point : JointDraws, optional
        The estimate; None for a posterior.
    prob, source, how
        As in :func:`spread_of_draws`.
    fixed : bool
        Whether the fixed effects are one of the parts.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    require_variance(joint.points)
    rows = part_labels(design)
    repeated = rows["group"].duplicated(keep=False)
    labels = ["fixed effects"]
    for group, term, several in zip(rows["group"], rows["term"], repeated, strict=True):
        if isinstance(group, str):
            labels.append(f"{group}: {term}" if several else group)
    labels.append("residual")
    first = 0 if fixed else 1

    def shares(of: JointDraws) -> Array:
        return share_of_total(variance_parts(design, of)[:, first:])

    spread = spread_of_draws(
        shares(joint), None if point is None else shares(point)[0], prob, source
    )
    panel = Panel(
        label=" ",
        axis="part",
        ticks=tuple(labels[first:]),
        slot=0.8,
        draws="density" if point is None else None,
        series=(_series("", spread),),
    )
    beyond = "" if fixed else " given the fixed effects"
    style = Style(
        value=f"share of the variance of {design.response}{beyond}",
        title=f"Variance of {design.response} by source",
        label=spread.label,
        upright=False,
        zero=0.0,
        titled=False,
    )
    return plot_panels([panel], style, how)


def _series(label: str, spread: Spread, places: Array | None = None) -> Series:
    """Quantities above each other, the first on top."""
    at = np.arange(len(spread.centre), dtype=float)[::-1] if places is None else places
    return Series(
        label=label,
        places=at,
        centre=spread.centre,
        inner=spread.inner,
        outer=spread.outer,
        draws=spread.draws,
    )


# --- a new level -----------------------------------------------------------------------


def new_effects(joint: JointDraws, place: int, rng: np.random.Generator) -> Array:
    """Random effects (S, k) of a level that has not been seen, one for each draw."""
    root = joint.roots[place]
    return np.asarray(np.einsum("skl,sl->sk", root, rng.normal(size=root.shape[:2])))


def plot_new_level(
    design: Design,
    joint: JointDraws,
    point: JointDraws | None,
    group: str | None,
    levels: Sequence[Any] | None,
    prob: float | None,
    source: str,
    how: Drawing,
    *,
    coefs: str | Sequence[str] | None = None,
    order: str = "estimate",
    rng: np.random.Generator,
) -> PlotCollection:
    """Draw coefficients of levels and the distribution of those of a new level below them.

    Parameters
    ----------
    design : Design
        The design.
    joint : JointDraws
        Draws of the posterior, or around an estimate.
    point : JointDraws, optional
        The estimate; None for a posterior.
    group, levels, coefs, order
        As in ``fit.plot.new_level()``.
    rng : numpy.random.Generator
        Random numbers of the new level.
    prob, source, how
        As in :func:`spread_of_draws`.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    DataError
        If levels have covariance matrices by stratum, or there are too many levels.
    """
    place, positions = shown_levels(design, group, levels)
    factor = design.random[place]
    if factor.spec.divided:
        raise DataError(
            f"{factor.name} has a covariance matrix in each stratum, and a new level could be of "
            "any: fit.predict() of new rows says of which."
        )
    if len(positions) > MOST_LEVELS:
        raise DataError(
            f"{factor.name} has {len(positions):,} levels; this picture shows at most "
            f"{MOST_LEVELS} beside a new one. Name those to draw with levels=."
        )
    names = chosen(coefs, factor.own_coefs, "coefs names {}; the coefficients are: {}.")
    check_choice(order, ["estimate", "label"], "order")
    columns = [factor.own_coefs.index(name) for name in names]
    wanted = [np.empty(0, dtype=np.intp)] * len(design.random)
    wanted[place] = positions

    def values(of: JointDraws) -> tuple[Array, Array]:
        fixed = matched_effects(design, place, of.beta)
        return fixed, fixed[:, None, :] + of.effects(wanted)[place]

    fixed, known = values(joint)
    at = None if point is None else values(point)
    new = fixed + new_effects(joint, place, rng)
    first = (known.mean(axis=0) if at is None else at[1][0])[:, columns[0]]
    rows = np.argsort(-first, kind="stable") if order == "estimate" else np.arange(len(first))
    ticks = [*(str(factor.levels[positions[row]]) for row in rows), f"new {factor.name}"]
    panels, label = [], ""
    for name, c in zip(names, columns, strict=True):
        seen = spread_of_draws(
            known[:, rows, c], None if at is None else at[1][0, rows, c], prob, source
        )
        unseen = spread_of_draws(new[:, [c]], None if at is None else at[0][0, [c]], prob, source)
        label = seen.label
        above = np.arange(len(rows), dtype=float)[::-1] + 1.0
        panels.append(
            Panel(
                label=name,
                axis=factor.name,
                ticks=tuple(ticks),
                slot=0.8,
                draws="density",
                series=(
                    _series("levels of the data", seen, above),
                    _series(ticks[-1], unseen, np.zeros(1)),
                ),
            )
        )
    style = Style(
        value="fixed + random effect",
        title=f"Coefficients of {design.response} in the levels of {factor.name} and a new one",
        label=label,
        upright=False,
        apart=True,
        overlaid=True,
    )
    return plot_panels(panels, style, how)
