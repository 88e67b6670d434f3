"""The sections of a report that are mostly pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.exceptions import BayesLMMError
from bayeslmm.plots.level_order import level_order
from bayeslmm.report.frames import text_table
from bayeslmm.report.numbers import decimals_of, number
from bayeslmm.report.page import Section, absent, paragraph, scrolling_table, subheading
from bayeslmm.report.pictures import picture
from bayeslmm.report.source import Source

MOST_LEVELS = 60
"""Levels that one picture or table can show."""

MOST_ROWS = 60
"""Rows of a covariance matrix that one picture can show."""

STATISTICS = ("mean", "sd", "min", "median", "max")
DIGITS = 3


def effects_section(source: Source, prob: float) -> Section:
    """Random effects by grouping factor."""
    parts = []
    for factor in source.design.random:
        parts.append(subheading(f"By {factor.name}"))
        parts += _factor_parts(source, factor, prob)
    return Section(key="effects", title="Random effects", parts=tuple(parts))


def _factor_parts(source: Source, factor: RandomFactor, prob: float) -> list[str]:
    places = level_order(source.design, factor.grouping)
    chosen = ""
    if factor.n_levels > MOST_LEVELS:
        places = places[np.linspace(0, factor.n_levels - 1, MOST_LEVELS).round().astype(int)]
        chosen = f" Shown are {MOST_LEVELS} of {factor.n_levels:,} levels, evenly spaced."
    levels = [factor.levels[i] for i in places]
    coefs = ", ".join(factor.coefs)
    caterpillar = picture(
        lambda: source.plot.caterpillar(
            factor.name, levels=levels, prob=prob, backend="matplotlib"
        ),
        what=f"Random effects by {factor.name}",
        alt=(
            f"Posterior means and {100 * prob:g} % intervals of the random effects ({coefs}) of "
            f"{len(levels)} levels of {factor.name}, in order of size. The numbers are in the "
            "table below."
        ),
        caption=(
            f"Random effects by {factor.name}: posterior means and {100 * prob:g} % intervals."
            f"{chosen}"
        ),
    )
    shrinkage = picture(
        lambda: source.plot.shrinkage(factor.name, levels=levels, backend="matplotlib"),
        what=f"Shrinkage of {factor.name}",
        alt=(
            f"Coefficients of {len(levels)} levels of {factor.name}: each level by itself, and as "
            "the model has it, pulled towards the population."
        ),
        caption=(
            "Partial pooling: what each level says by itself and what the posterior makes of it. "
            f"Levels that say little are pulled most.{chosen}"
        ),
    )
    return [caterpillar, _effects_table(source, factor, places, chosen), shrinkage]


def _effects_table(source: Source, factor: RandomFactor, places: np.ndarray, chosen: str) -> str:
    means = source.ranef()[factor.name].to_numpy()[places]
    sds = source.ranef_sd()[factor.name].to_numpy()[places]
    decimals = [decimals_of(sds[:, c], means[:, c], DIGITS - 1) for c in range(factor.n_coefs)]
    rows = [
        (
            str(factor.levels[place]),
            *(
                f"{number(m, d, DIGITS)} ({number(s, d, DIGITS)})"
                for m, s, d in zip(mean, sd, decimals, strict=True)
            ),
        )
        for place, mean, sd in zip(places, means, sds, strict=True)
    ]
    caption = f"Random effects by {factor.name}: posterior mean (standard deviation).{chosen}"
    table = text_table(caption, (factor.name, *factor.coefs), rows, numeric=True)
    return (
        f"<details><summary>Table of the random effects by {escape(factor.name)}</summary>\n"
        f"{scrolling_table(table)}\n</details>"
    )


def fitted_section(source: Source, prob: float) -> Section:
    """Data and fitted lines; covariance of the response."""
    design = source.design
    first = design.random[0]
    lines = picture(
        lambda: source.plot.fitted(group=first.name, prob=prob, backend="matplotlib"),
        what="Data and fitted lines",
        alt=(
            f"Panels by level of {first.name}: data, fitted line with {100 * prob:g} % interval, "
            "and the line of the population."
        ),
        caption=f"Data and fitted lines by {first.name}; {100 * prob:g} % intervals of the mean.",
    )
    levels = _levels_to_show(design)
    shown = ", ".join(map(str, levels))
    matrix = picture(
        lambda: source.plot.covariance("V", levels=levels, backend="matplotlib"),
        what="Covariance of the response",
        alt=(
            f"Heat map of the covariance matrix of the response in the rows of {first.name} "
            f"{shown}: covariances between rows of a level, and rows of different levels."
        ),
        caption=(
            "Posterior mean of the covariance matrix of the response, V = ZGZ' + R, in the rows of "
            f"{first.name} {shown}."
        ),
    )
    return Section(key="fitted", title="Fitted values and covariance", parts=(lines, matrix))


def _levels_to_show(design: Design) -> Sequence[str]:
    """First levels of the first grouping factor that one picture can show; at least one."""
    factor = design.random[0]
    order = level_order(design, factor.grouping)
    counts = np.cumsum(np.bincount(factor.codes, minlength=factor.n_levels)[order])
    number_of = max(1, min(3, int(np.searchsorted(counts, MOST_ROWS, side="right"))))
    return [str(label) for label in factor.levels[order[:number_of]]]


def checks_section(source: Source, prob: float, seed: int) -> Section:
    """Residuals and posterior predictive checks."""
    residuals = picture(
        lambda: source.plot.residuals(backend="matplotlib"),
        what="Residuals",
        alt=(
            "Residuals against fitted values and against normal quantiles, and by level; random "
            "effects against normal quantiles."
        ),
        caption=(
            "Residuals and random effects against what the model assumes: no pattern, points along "
            "the lines."
        ),
    )
    parts = [residuals, subheading("Posterior predictive checks")]
    parts.append(
        paragraph(
            "Responses were simulated from the posterior at the rows of the data, with the same "
            f"levels (seed {seed}). A model that fits makes data like those observed."
        )
    )
    try:
        parts.append(_checks_table(source, prob, seed))
    except BayesLMMError as error:
        parts.append(absent("Table of predictive checks", str(error)))
    densities = picture(
        lambda: source.plot.predictive("dist", random_seed=seed, backend="matplotlib"),
        what="Predictive densities",
        alt="Density of the observed response over densities of simulated responses.",
        caption="Observed response and responses simulated from the posterior.",
    )
    return Section(key="checks", title="Residuals and predictive checks", parts=(*parts, densities))


def _checks_table(source: Source, prob: float, seed: int) -> str:
    rows = []
    for statistic in STATISTICS:
        row = source.check.predictive(statistic, prob=prob, random_seed=seed).iloc[0]
        low, high = (row[name] for name in row.index if str(name).endswith(("_lb", "_ub")))
        decimals = decimals_of([row["sd"]], [row["mean"]], DIGITS)
        observed, mean, low, high = (
            number(float(v), decimals, DIGITS) for v in (row["observed"], row["mean"], low, high)
        )
        rows.append((statistic, observed, mean, f"{low} to {high}", f"{row['p_value']:.2f}"))
    header = ("Statistic", "Observed", "Simulated mean", f"{100 * prob:g} % interval", "p")
    table = text_table("Statistics of the response", header, rows, numeric=True)
    note = (
        "p: probability that the statistic of a simulated response is larger than the observed "
        "one; near 0 or 1 is a misfit."
    )
    return f"{scrolling_table(table)}\n{paragraph(note)}"
