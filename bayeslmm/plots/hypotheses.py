"""Pictures of hypotheses: posterior and prior densities, or tests of an estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from bayeslmm.effects.equivalence import checked_region
from bayeslmm.effects.expressions import symbols_of
from bayeslmm.effects.hypothesis import Hypotheses, PosteriorEvidence, read_hypotheses
from bayeslmm.estimation.model import Model
from bayeslmm.exceptions import DataError
from bayeslmm.plots.common import Drawing
from bayeslmm.plots.densities import Curve, Densities, curve_of, curve_of_draws, plot_densities
from bayeslmm.plots.panels import Panel, Series, Style, plot_panels
from bayeslmm.plots.quantities import MOST_PANELS, spread_of_tables
from bayeslmm.sampling.joint_draws import JointDraws

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]
Prior = tuple[float, float] | Array | None


def labels_of(index: pd.Index) -> list[str]:
    """Texts of hypotheses, with their levels where they are about those."""
    if index.nlevels == 1:
        return [str(text) for text in index]
    return [f"{text[0]}, {': '.join(map(str, text[1:]))}" for text in index]


def prior_differences(
    model: Model, joint: JointDraws, expressions: str | Sequence[str]
) -> list[Prior]:
    """What priors say of left side less right side of each hypothesis.

    Parameters
    ----------
    model : Model
        The model.
    joint : JointDraws
        Draws of its posterior.
    expressions : str or sequence of str
        Hypotheses.

    Returns
    -------
    list
        Mean and standard deviation where it is normal, draws elsewhere, None where priors are not
        proper.
    """
    symbols = symbols_of(model.design)
    hypotheses = read_hypotheses(expressions, symbols)
    evidence = PosteriorEvidence(model=model, joint=joint, symbols=symbols, rope=None, effects={})
    return [evidence.prior(hypothesis) for hypothesis in hypotheses]


def plot_judged(
    found: Hypotheses, priors: Sequence[Prior] | None, rope: Any, how: Drawing
) -> PlotCollection:
    """Draw posterior densities of left side less right side, and prior ones.

    Parameters
    ----------
    found : Hypotheses
        Of a posterior.
    priors : sequence, optional
        What priors say of each, as :func:`prior_differences` returns it.
    rope : float or pair of float, optional
        Region of practical equivalence, as the user gave it.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection

    Raises
    ------
    DataError
        If there are too many hypotheses, or no draw of one is defined.
    """
    assert found.draws is not None
    labels = labels_of(found.columns.index)
    if len(labels) > MOST_PANELS:
        raise DataError(
            f"There are {len(labels)} hypotheses; a picture has at most {MOST_PANELS} panels. Draw "
            "some of them."
        )
    region = None if rope is None else checked_region(rope)
    panels = []
    for i, label in enumerate(labels):
        draws = found.draws[:, i]
        if not np.isfinite(draws).any():
            raise DataError(f"{label}: cannot be estimated from these data, so no density to draw.")
        after = curve_of_draws(draws)
        ends = np.array([after.x[0], after.x[-1], 0.0, *(region or ())])
        margin = 0.04 * np.ptp(ends)
        low, high = float(ends.min() - margin), float(ends.max() + margin)
        before = None if priors is None else _prior_curve(priors[i], low, high)
        panel = Densities(
            label=label,
            prior=before,
            posterior=after,
            line=0.0,
            region=region,
            below=_below(found.columns.iloc[i]),
        )
        panels.append(panel)
    title = "Hypotheses: left side less right side"
    return plot_densities(panels, how, title, "region of practical equivalence")


def _prior_curve(prior: Prior, low: float, high: float) -> Curve | None:
    """Prior density where the posterior is, zero and the region included."""
    if prior is None:
        return None
    if isinstance(prior, tuple):
        mean, sd = prior
        return curve_of(lambda x: np.asarray(norm.logpdf(x, mean, sd)), low, high) if sd else None
    curve = curve_of_draws(prior, "silverman")
    inside = (curve.x >= low) & (curve.x <= high)
    return Curve(curve.x[inside], curve.height[inside])


def _below(row: pd.Series) -> str:
    """Probability, evidence ratio and share in the region, as the table has them."""
    parts = []
    if np.isfinite(row["probability"]):
        parts.append(f"probability {row['probability']:.3g}")
    if np.isfinite(row["evidence_ratio"]):
        parts.append(f"evidence ratio {row['bound']}{row['evidence_ratio']:.3g}")
    if np.isfinite(row.get("rope_probability", np.nan)):
        parts.append(f"in the region {row['rope_probability']:.3g}")
    return "\n".join(parts)


def plot_tests(
    found: Hypotheses, prob: float | None, source: str, response: str, how: Drawing
) -> PlotCollection:
    """Draw left side less right side of an estimate, with two intervals and a line at zero.

    Parameters
    ----------
    found : Hypotheses
        Of an estimate.
    prob : float, optional
        Coverage of the outer interval.
    source : str
        What the points are.
    response : str
        Name of the response.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    spread = spread_of_tables(found.table, prob, source, estimated=True)
    labels = labels_of(found.columns.index)
    series = Series(
        label="",
        places=np.arange(len(labels), dtype=float)[::-1],
        centre=spread.centre,
        inner=spread.inner,
        outer=spread.outer,
    )
    panel = Panel(
        label=" ",
        axis="hypothesis",
        ticks=tuple(labels),
        slot=0.8,
        series=(series,),
    )
    style = Style(
        value=f"left side less right side ({response})",
        title="Hypotheses",
        label=spread.label,
        upright=False,
        zero=0.0,
        titled=False,
    )
    return plot_panels([panel], style, how)
