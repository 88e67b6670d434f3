"""Pictures of what checks found: influence, sensitivity to priors and data, Pareto k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from bayeslmm.checks.influence import GroupInfluence, PosteriorInfluence, RowInfluence
from bayeslmm.checks.resampled import RESAMPLE_K
from bayeslmm.checks.row_extremes import RowExtremes
from bayeslmm.checks.sensitivity import POWERS, Sensitivity
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import (
    CIRCLE,
    DASHED,
    MAIN,
    QUIET,
    SECOND,
    STRONG,
    TICK_SIZE,
    Drawing,
    Visuals,
    dataset,
    levels_across,
    own_xlabel,
    own_ylabel,
    picture,
    points,
    segments,
    texts_at,
    titles,
    variable_name,
)
from bayeslmm.plots.panels import HEIGHT, WIDTH, Panel, Series, Style, plot_panels

if TYPE_CHECKING:
    from arviz_plots import PlotCollection
    from arviz_stats.utils import ELPDData

Array = NDArray[np.float64]
Found = RowInfluence | GroupInfluence | PosteriorInfluence

MOST_CASES = 40
"""Levels of a picture of influence: the most influential ones."""

NAMED = 3
"""Rows that are named in a panel."""

MOST_ACROSS = 20
"""Levels of a grouping variable that are named beside each other."""

COOK, KL = "Cook's distance", "KL divergence (nats)"


# --- influence -------------------------------------------------------------------------


def plot_influence(found: object, how: Drawing) -> PlotCollection:
    """Draw how much rows, or levels, move a fit.

    Parameters
    ----------
    found : RowInfluence, GroupInfluence or PosteriorInfluence
        What ``fit.check.influence()`` returned.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    DataError
        If only the most extreme of many rows are known.
    TypeError
        If this is no influence.
    """
    if isinstance(found, GroupInfluence):
        return _of_groups(found, how)
    if isinstance(found, PosteriorInfluence) and found.by is not None:
        shifts = ("shift of a mean (sd)", found.shift)
        title = f"Posterior without each level of {found.by}"
        return _by_level(found.table["kl"], KL, [shifts], found.by, title, how)
    if isinstance(found, PosteriorInfluence):
        table = found.table
        panels = {
            "divergence by row": (_rows_of(table), table["kl"], "row", KL),
            "largest shift and divergence": (
                table["kl"],
                table["max_shift"],
                KL,
                "largest shift of a mean (sd)",
            ),
        }
        return _of_rows(panels, "Posterior without each row", how)
    if isinstance(found, RowInfluence):
        table = found.table
        spread = ("leverage", "standardised residual")
        panels = {
            "residual and leverage": (table["leverage"], table["standardised"], *spread),
        }
        if table["cooks_distance"].notna().any():
            cook = (_rows_of(table), table["cooks_distance"], "row", COOK)
            panels = {"Cook's distance by row": cook, **panels}
        return _of_rows(panels, "Influence of rows on the fixed effects", how)
    if isinstance(found, RowExtremes):
        raise DataError(
            "A picture of influence shows every row, and of more than about a million rows only "
            "the most extreme ones are known. check.influence(by=...) is of levels."
        )
    raise TypeError(
        "by= is the name of a grouping factor or variable, or what fit.check.influence() returned; "
        f"got {type(found).__name__}."
    )


def _rows_of(table: pd.DataFrame) -> pd.Series:
    return pd.Series(np.arange(1.0, len(table) + 1.0), index=table.index)


def _of_rows(
    panels: dict[str, tuple[pd.Series, pd.Series, str, str]], title: str, how: Drawing
) -> PlotCollection:
    """Points of rows, the largest named."""
    import arviz_plots as azp

    data = dataset({name: points(x, y) for name, (x, y, *_) in panels.items()})
    dots = {"data": data, "color": MAIN, "size": 10 if len(data) <= 500 else 5, "alpha": 0.6}
    stems, lines = {}, {}
    for name, (x, y, *_) in panels.items():
        lines[variable_name(name)] = _named(x.to_numpy(), y.to_numpy(), list(y.index))
        if panels[name][2] == "row":
            stems[name] = segments((x, x), (np.zeros(len(y)), y))
    below = {variable_name(name): panel[2] for name, panel in panels.items()}
    beside = {variable_name(name): panel[3] for name, panel in panels.items()}
    zero = xr.Dataset(dict.fromkeys(below, 0.0))
    drawn: Visuals = {
        "zero": (azp.visuals.hline, {"data": zero, "color": QUIET, "width": 0.8}),
        "stems": (
            (azp.visuals.line_xy, {"data": dataset(stems), "color": MAIN, "width": 0.7})
            if stems
            else None
        ),
        "points": (azp.visuals.scatter_xy, dots),
        "named": (texts_at, {"data": data, "lines": lines, "size": TICK_SIZE, "subset_info": True}),
        "title": titles(data),
        "xlabel": (own_xlabel, {"data": data, "texts": below, "subset_info": True}),
        "ylabel": (own_ylabel, {"data": data, "texts": beside, "subset_info": True}),
    }
    size = (WIDTH / len(panels), 2.9)
    return picture(how, data, drawn, size=size, title=title, columns=2)


def _named(x: Array, y: Array, labels: Sequence[Any]) -> list[tuple[float, float, str]]:
    """Labels beside the largest values, on the side where there is room."""
    largest = [i for i in np.argsort(-np.abs(y), kind="stable")[:NAMED] if y[i] != 0.0]
    middle = (x.min() + x.max()) / 2.0
    texts = [f" {labels[i]}" if x[i] <= middle else f"{labels[i]} " for i in largest]
    return [(float(x[i]), float(y[i]), text) for i, text in zip(largest, texts, strict=True)]


def _of_groups(found: GroupInfluence, how: Drawing) -> PlotCollection:
    changes = [("relative change of an sd", found.relative_change)]
    size, name = found.table["max_sd_change"], "largest change of an sd"
    if found.dfbetas.shape[1]:
        changes = [("dfbetas (standard errors)", found.dfbetas), *changes]
        size, name = found.table["cooks_distance"], COOK
    title = f"Estimate without each level of {found.by}"
    return _by_level(size, name, changes, found.by, title, how)


def _by_level(
    size: pd.Series,
    name: str,
    changes: Sequence[tuple[str, pd.DataFrame]],
    by: str,
    title: str,
    how: Drawing,
) -> PlotCollection:
    """A panel of how much each level matters, and panels of what it changes."""
    order = size.sort_values(ascending=False, kind="stable").index[:MOST_CASES]
    ticks = tuple(map(str, order))
    places = np.arange(len(order), dtype=float)[::-1]

    def series(label: str, values: pd.Series) -> Series:
        centre = values.loc[order].to_numpy(dtype=float)
        none = (centre, centre)
        return Series(
            label=label,
            places=places,
            centre=centre,
            inner=none,
            outer=(np.minimum(centre, 0.0), np.maximum(centre, 0.0)) if not label else none,
        )

    def panel(text: str, drawn: Sequence[Series]) -> Panel:
        return Panel(label=text, axis=by, ticks=ticks, slot=0.8, series=tuple(drawn))

    panels = [panel(name, [series("", size)])]
    for text, table in changes:
        panels.append(panel(text, [series(str(label), table[label]) for label in table]))
    if len(order) < len(size):
        title += f" ({len(order)} of {len(size)})"
    style = Style(
        value="", title=title, label=name, upright=False, zero=0.0, apart=True, overlaid=True
    )
    return plot_panels(panels, style, how)


# --- sensitivity -----------------------------------------------------------------------


def plot_sensitivity(found: Sensitivity, how: Drawing) -> PlotCollection:
    """Draw how posterior means and standard deviations move with powers of prior and likelihood.

    Parameters
    ----------
    found : Sensitivity
        What ``post.check.sensitivity()`` returned.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    labels = list(found.table.index)
    places = np.arange(len(labels), dtype=float)[::-1]
    low, high = POWERS
    panels = []
    for column, title in (
        ("mean_shift", "shift of the mean (sd)"),
        ("sd_change", "relative change of the sd"),
    ):
        drawn = []
        for component, aside in (("likelihood", 0.18), ("prior", -0.18)):
            ends = [found.scaled.loc[(component, p), column].to_numpy() for p in (low, high)]
            drawn.append(
                Series(
                    label=f"power of the {component}",
                    places=places + aside,
                    centre=ends[1],
                    inner=(ends[1], ends[1]),
                    outer=(ends[0], ends[1]),
                )
            )
        panels.append(
            Panel(
                label=title,
                axis="parameter",
                ticks=tuple(labels),
                slot=0.4,
                series=tuple(drawn),
            )
        )
    style = Style(
        value="",
        title="Posterior under powers of the prior and of the likelihood",
        label=f"from power {low:g} to power {high:g} (mark)",
        upright=False,
        zero=0.0,
        apart=True,
    )
    return plot_panels(panels, style, how)


# --- Pareto k --------------------------------------------------------------------------


def plot_pareto_k(
    scores: ELPDData, by: str | None, how: Drawing, *, conditional: bool = False
) -> PlotCollection:
    """Draw the Pareto k of scores, rows or levels side by side, with the limits that matter.

    Parameters
    ----------
    scores : ELPDData
        What ``post.loo()`` returned.
    by : str, optional
        Grouping variable of the levels left out; None for rows.
    how : Drawing
        How to draw it.
    conditional : bool
        Whether they are given the random effects, so that none is sampled anew.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    DataError
        If the scores have no pointwise values.
    """
    import arviz_plots as azp

    if getattr(scores, "pareto_k", None) is None:
        raise DataError(
            "These scores have no pointwise values, as of more than about a million rows. "
            "loo(out=...) writes them to a file."
        )
    given = scores.pareto_k
    k = np.asarray(given, dtype=float).ravel()
    labels = [str(v) for v in np.ravel(given[given.dims[0]])]
    again, limit = k == 0.0, float(scores.good_k)
    x = np.arange(len(k)) + (1.0 if by is None else 0.0)
    poor = ~(k <= limit)  # also where it is infinite: drawn at the top
    top = max(1.0, float(np.max(k, initial=0.0, where=np.isfinite(k))))
    shown: Array = np.where(np.isfinite(k), k, top)
    above_zero: Array = np.maximum(shown, 0.0)
    name = "k "

    def dots(kept: Any, color: str, size: float) -> Any:
        if not kept.any():
            return None
        data = dataset({name: points(x[kept], shown[kept])})
        return azp.visuals.scatter_xy, {"data": data, "color": color, "size": size}

    def line(at: float, style: str) -> Any:
        data = xr.Dataset({name: at})
        return azp.visuals.hline, {"data": data, "color": QUIET, "linestyle": style, "width": 1.0}

    data = dataset({name: points(x, shown)})
    lines = {name: _named(np.asarray(x), above_zero, labels)}
    across: Visuals = {"xticks": None, "xlim": None}
    if by is not None:
        across = levels_across(data, labels, MOST_ACROSS)
    x_text = "row" if by is None else f"level of {by}"
    drawn: Visuals = {
        "again_limit": None if conditional else line(RESAMPLE_K, "C2"),
        "limit": line(limit, DASHED),
        "points": dots(~again & ~poor, MAIN, 12),
        "again": dots(again, SECOND, 20),
        "poor": dots(poor, STRONG, 26),
        "named": (texts_at, {"data": data, "lines": lines, "size": TICK_SIZE, "subset_info": True}),
        "xlabel": (azp.visuals.labelled_x, {"data": data, "text": x_text}),
        "ylabel": (azp.visuals.labelled_y, {"data": data, "text": "Pareto k"}),
        **across,
    }
    legend = _pareto_legend(int(again.sum()), int(poor.sum()), len(k), limit)
    if not conditional:
        legend[f"{RESAMPLE_K:g}, above which is sampled anew"] = {"color": QUIET, "linestyle": "C2"}
    title = f"Pareto k of each {x_text} left out" + ", given the random effects" * conditional
    return picture(how, data, drawn, size=(WIDTH, HEIGHT), title=title, legend=legend)


def _pareto_legend(again: int, poor: int, n: int, limit: float) -> dict[str, dict[str, Any]]:
    """How many there are of each kind, and the limit of the poor ones."""
    dot = {"marker": CIRCLE, "linestyle": "none"}
    legend = {f"reweighted: {n - again - poor:,}": {"color": MAIN, **dot}}
    if again:
        legend[f"sampled anew: {again:,}"] = {"color": SECOND, **dot}
    if poor:
        legend[f"unreliable: {poor:,}"] = {"color": STRONG, **dot}
    legend[f"{limit:.2g}, above which weights fail"] = {"color": QUIET, "linestyle": DASHED}
    return legend
