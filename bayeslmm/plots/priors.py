"""Pictures of what priors imply: shares of variance, the spread of the response, predictions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bayeslmm.checks.implied_priors import implied_draws, prior_joint
from bayeslmm.data.design import Design
from bayeslmm.data.seeds import seeded
from bayeslmm.effects.grid import marginal_means
from bayeslmm.effects.sources import source_of_draws
from bayeslmm.estimation.model import Model
from bayeslmm.estimation.residuals import with_scale_effects
from bayeslmm.plots.common import Drawing
from bayeslmm.plots.conditional import Request
from bayeslmm.plots.densities import Curve, Densities, curve_of_draws, plot_densities
from bayeslmm.priors.record import Priors
from bayeslmm.summaries.text import coverage

if TYPE_CHECKING:
    from arviz_plots import PlotCollection

Array = NDArray[np.float64]

LEFT_OUT = "sd_y / observed"
PREDICTED = 4000
"""Draws from the prior that predictions are of."""

TAIL = 0.95
"""Quantile up to which standard deviations are drawn."""


def plot_implied(
    design: Design,
    priors: Priors,
    draws: int,
    random_seed: int | np.random.Generator | None,
    how: Drawing,
) -> PlotCollection:
    """Draw prior densities of what follows from the parameters.

    Parameters
    ----------
    design : Design
        The design of a model.
    priors : Priors
        Its priors, all proper.
    draws : int
        Number of draws from the prior.
    random_seed : int or numpy.random.Generator, optional
        Seed.
    how : Drawing
        How to draw it.

    Returns
    -------
    arviz_plots.PlotCollection
    """
    rows, seen, _ = implied_draws(design, priors, draws, random_seed)
    panels = []
    for name, values in rows.items():
        if name == LEFT_OUT:
            continue
        curve = curve_of_draws(values, "silverman" if name in seen else "experimental")
        if name in seen:
            end = max(float(np.quantile(values, TAIL)), 1.1 * seen[name])
            inside = curve.x <= end
            curve = Curve(curve.x[inside], curve.height[inside])
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
        below = f"median {middle:.3g}\n{coverage(0.9)}: {low:.3g} to {high:.3g}"
        panels.append(Densities(label=name, prior=curve, line=seen.get(name), below=below))
    title = f"What the priors imply of {design.response}; lines: observed"
    return plot_densities(panels, how, title)


def prior_request(
    model: Model,
    target: str,
    kind: str,
    prob: float | None,
    random_seed: int | np.random.Generator | None,
) -> Request:
    """What of the prior is drawn along variables, as of a posterior."""
    design, rng = model.design, seeded(random_seed)
    prior = with_scale_effects(design, model.priors.sample(rng, PREDICTED), rng)
    joint = prior_joint(design, prior, rng)
    return Request(
        design=design,
        means=partial(marginal_means, design, source_of_draws(design, joint)),
        joint=lambda: joint,
        prob=prob,
        source="prior mean",
        target=target,
        kind=kind,
        seed=int(rng.integers(2**63)),
        estimated=False,
    )
