"""A report of a posterior: one self-contained HTML page; its template has the words."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.data.summarised import SummarisedDesign, briefly
from bayeslmm.estimation.estimate import Fit
from bayeslmm.exceptions import BayesLMMError, require
from bayeslmm.plots.common import Backend, drawing, lay_out, level_order
from bayeslmm.plots.parameters import plot_compared
from bayeslmm.plots.predictive import replicated
from bayeslmm.prediction.checks import check_table
from bayeslmm.report.findings import NOT_RUN, TITLES, WORDS, Findings, find, headline
from bayeslmm.report.methods import model_sentences, posterior_versions, prior_sentences
from bayeslmm.report.tables import (
    DIGITS,
    TextTable,
    cell,
    decimals_of,
    estimates_table,
    number,
    significant,
    templates,
    text_table,
)
from bayeslmm.summaries import is_estimate
from bayeslmm.summaries.posterior_tables import interval_defaults, parameter_table
from bayeslmm.summaries.text import counted, estimate_notes, listed, model_name
from bayeslmm.writing import check_replaceable, replacing

Array = NDArray[np.float64]

BEYOND_MEMORY = (
    "The data, {words}, were read in batches, and sums over their rows kept: what needs the rows "
    "is not on this page. For residuals, influence and leave-one-out cross-validation, build the "
    "model from a data frame of some of the groups."
)

WIDE = 680
"""Pixels of the page above which a picture scrolls on a narrow screen rather than shrink."""


def write_report(source: Any, path: str | Path, *, overwrite: bool = False, **options: Any) -> Path:
    """Write the report of a posterior; see :meth:`bayeslmm.Posterior.report`.

    Parameters
    ----------
    source : Posterior
        The posterior.
    path : str or path
        The file.
    overwrite : bool
        Whether to replace a file of that name.
    **options
        Of :func:`report_page`.

    Raises
    ------
    ValueError
        If it is not an HTML file by its name.
    FileExistsError
        If it exists and is not to be overwritten.
    FileNotFoundError
        If its folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"path={str(path)!r}: a name ending in .html is expected.")
    check_replaceable(target, overwrite=overwrite)
    page = report_page(source, **options)
    with replacing(target, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target


def report_page(
    source: Any,
    *,
    reml: Any = None,
    findings: Findings | None = None,
    title: str | None = None,
    prob: float | None = None,
    random_seed: int = 0,
) -> str:
    """HTML of the report; its template has all the words that do not depend on the fit."""
    prob, kind = interval_defaults(prob)
    findings = find(source, random_seed=random_seed) if findings is None else findings
    context = {
        "title": title or f"{model_name(source.design)} of {source.design.response}",
        "design": source.design,
        "found": source.diagnostics,
        "attrs": source.data.attrs,
        "made_at": source.data["posterior"].attrs.get("created_at"),
        **_sections(source, reml, findings, prob, kind, random_seed),
        "percent": f"{100 * prob:g} %",
        "wide": WIDE,
    }
    return templates().get_template("report.html").render(context)


def _sections(
    source: Any, reml: Any, findings: Findings, prob: float, kind: str, seed: int
) -> dict[str, Context]:
    """What the template of each section is filled with."""
    design, own = source.design, reml is None
    why = "" if design.spec.conditional is None else f"{design.spec.conditional} has no REML"
    if own and why:
        own, reml = False, False
    given = source.model.reml if own else None if reml is False else reml
    notes: tuple[str, ...] = ()
    if isinstance(given, Fit):
        notes = estimate_notes(given, design)
    elif is_estimate(given):
        notes = estimate_notes(given.fit, given.design)
    table = parameter_table(source.data["posterior"].to_dataset(), design, prob, kind)
    return {
        "findings": findings_section(findings),
        "notes": notes_section(source, notes),
        "model": model_section(design),
        "parameters": parameters_section(source, table, prob, kind),
        "priors": priors_section(source),
        "diagnostics": diagnostics_section(source),
        "reml": reml_section(source, given, prob, own=own) | {"why": why},
        "variance": variance_section(source, prob),
        "effects": effects_section(source, prob),
        "fitted": fitted_section(source, prob),
        "checks": checks_section(source, prob, seed),
        "methods": methods_section(source, findings),
    }


Context = dict[str, Any]
"""What the template of a section is filled with."""

RHAT = "R\N{NON-BREAKING HYPHEN}hat"
KINDS = {"eti": "equal-tailed", "hdi": "highest-density"}
STATISTICS = ("mean", "sd", "min", "median", "max")

MOST_LEVELS = 60
"""Levels that one picture or table can show."""

MOST_ROWS = 60
"""Rows of a covariance matrix that one picture can show."""

RESOLUTION = 130
"""Dots per inch: sharp at the width of the page on a screen of two dots per pixel and in print."""


# --- pictures --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture in the page itself, or why it is not there.

    Attributes
    ----------
    png : str
        In base64.
    width, height : int
        Pixels of the page.
    why : str
        Why it cannot be drawn; empty where it is.
    """

    png: str = ""
    width: int = 0
    height: int = 0
    why: str = ""


def picture(draw: Callable[..., Any], *args: Any, **options: Any) -> Picture:
    """Draw a plot of ArviZ by Matplotlib.

    Parameters
    ----------
    draw : callable
        Returns a plot collection.
    *args, **options
        Its arguments, but `backend`.

    Notes
    -----
    Only this package's own errors, which say what does not apply, are put into words; any other
    is a defect and is raised.
    """
    try:
        png, width, height = _png(lambda: draw(*args, **options, backend="matplotlib"))
    except BayesLMMError as error:
        return Picture(why=briefly(error))
    return Picture(png=png, width=width, height=height)


def _png(draw: Callable[[], Any]) -> tuple[str, int, int]:
    """Base64 of the picture, and its width and height in pixels of the page."""
    pyplot = require("matplotlib.pyplot", "plots")
    buffer = io.BytesIO()
    before = set(pyplot.get_fignums())
    try:
        with pyplot.style.context("default"):
            figure = draw().viz["figure"].item()
            lay_out(figure, RESOLUTION)
            figure.savefig(buffer, format="png", dpi=RESOLUTION, metadata={"Software": None})
            width, height = (round(96 * inches) for inches in figure.get_size_inches())
    finally:
        for opened in set(pyplot.get_fignums()) - before:
            pyplot.close(opened)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), width, height


def attempt[T](make: Callable[[], T]) -> T | str:
    """What is made, or the reason why it cannot be."""
    try:
        return make()
    except BayesLMMError as error:
        return briefly(error)


# --- sections --------------------------------------------------------------------------


def findings_section(found: Findings) -> Context:
    """Headline, a table of all topics, and the details of those with an alarm or a note."""
    rows = [
        (TITLES[item.topic], WORDS[item.severity] if item.run else NOT_RUN, item.verdict)
        for item in found
    ]
    return {
        "headline": headline(found, TITLES),
        "table": text_table("What the checks found", ("Check", "Result", "Verdict"), rows),
        "details": [
            (f"{TITLES[item.topic]}: {WORDS[item.severity]}", item.details, item.severity)
            for item in sorted(found, key=lambda item: item.severity)
            if item.severity != "none" and item.details
        ],
    }


def notes_section(source: Any, estimate_notes: Sequence[str]) -> Context:
    """What was changed on the way to the draws, and how the estimate beside them fared."""
    said = source.diagnostics.messages()  # among the findings
    found = [note for note in source.notes if note not in said]
    if count := source.design.n_dropped:
        rows = counted(count, "row")
        found.insert(0, f"{rows} dropped because a variable of the model is missing there.")
    if isinstance(source.design, SummarisedDesign):
        found.insert(0, BEYOND_MEMORY.format(words=source.design.summary.words))
    return {"own": found, "estimate": [note for note in estimate_notes if note not in found]}


def model_section(design: Design) -> Context:
    """The model in words, and its grouping factors."""
    weights = "none"
    if design.spec.has_errors:
        weights = f"known standard errors, {design.spec.residual_source}"
    elif design.weighted:
        weights = f"precision weights {design.spec.weights or '(given as values)'}"
    facts = [
        ("Formula", design.formula.source),
        ("Response", design.response),
        ("Rows used", design.n),
        ("Rows dropped for missing values", design.n_dropped),
        *[("Rows without response to predict", m) for m in (design.n_unobserved,) if m],
        ("Fixed effects", listed(design.coefs)),
        ("Columns dropped", listed(design.aliased)),
        ("Weights", weights),
        ("Offset", " + ".join(design.formula.offsets) or "none"),
    ]
    header = ("Grouping factor", "Levels", "Coefficients per level", "Rows per level")
    rows = [
        (
            f.name,
            f.n_levels,
            listed(f.own_coefs),
            _sizes(f.counts()),
        )
        for f in design.random
    ]
    return {
        "sentences": model_sentences(design),
        "facts": text_table("Model and data", ("Item", "Value"), facts),
        "groups": text_table("Grouping factors", header, rows) if rows else None,
    }


def _sizes(counts: np.ndarray[Any, Any]) -> str:
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,} (median {np.median(counts):,.0f})"


def _figure(value: float, form: str) -> str:
    if not np.isfinite(value):
        return "–"
    return format(int(value) if form == "d" else value, form)


def parameters_section(source: Any, table: pd.DataFrame, prob: float, kind: str) -> Context:
    """Posterior of the fixed effects and covariance parameters."""
    approximate = source.diagnostics.approximate
    checks = {} if approximate else {RHAT: "r_hat", "ESS bulk": "ess_bulk", "ESS tail": "ess_tail"}
    frame = pd.concat([table, source.summary()[list(checks.values())]], axis=1)
    for name, form in (("r_hat", ".3f"), ("ess_bulk", "d"), ("ess_tail", "d")):
        if name in frame:  # not of parameters that are known
            frame[name] = [_figure(value, form) for value in frame[name]]
    notes = ["Standard deviations and correlations, not variances; sigma is that of the residuals."]
    if not approximate:
        notes.append("R-hat should be below 1.01; ESS is the effective sample size.")
    interval = f"{100 * prob:g} % {KINDS.get(kind, kind)} interval"
    return {
        "table": estimates_table(
            frame,
            "Posterior of the parameters",
            columns={
                "Mean": ("mean",),
                "SD": ("sd",),
                "Median": ("median",),
                interval: tuple(table.columns[-2:]),
            },
            scale="sd",
            others=checks,
            notes=notes,
        )
    }


def priors_section(source: Any) -> Context:
    """Priors, and what the data did to them."""
    rows = source.priors.table().to_numpy().tolist()
    return {
        "sentences": [text for text in prior_sentences(source.priors) if "~" not in text],
        "table": text_table("Priors", ("Parameter", "Prior", "Source"), rows),
        "sources": set(source.priors.sources.values()),
        "densities": picture(source.plot.prior_posterior),
    }


def diagnostics_section(source: Any) -> Context:
    """Convergence checks in numbers and words."""
    found, row = source.diagnostics, source.glance().iloc[0]
    facts: list[tuple[str, object]] = [
        ("Method", str(row["method"])),
        ("Chains", found.chains),
        ("Draws per chain", found.draws),
    ]
    if found.approximate:
        facts.append(("Pareto k of the importance ratios", found.pareto_k))
        facts.append(("Importance effective sample size", round(found.importance_ess)))
    else:
        rhat = f"{found.max_rhat:.3f}" if np.isfinite(found.max_rhat) else "one chain: none"
        bulk, tail = (cell(round(size)) for size in (found.min_ess_bulk, found.min_ess_tail))
        facts += [
            ("Largest R-hat", f"{rhat} ({found.max_rhat_parameter})"),
            ("Smallest bulk ESS", f"{bulk} ({found.min_ess_bulk_parameter})"),
            ("Smallest tail ESS", f"{tail} ({found.min_ess_tail_parameter})"),
        ]
    if np.isfinite(row["divergences"]):
        facts.append(("Divergent transitions", found.divergences))
        facts.append(("Transitions at the tree depth limit", found.treedepth_hits))
    if np.isfinite(found.min_ebfmi):
        facts.append(("Smallest E-BFMI", found.min_ebfmi))
    if np.isfinite(found.proposal_k):
        facts.append(("Pareto k of the proposals", found.proposal_k))
        facts.append(("Acceptance rate", found.acceptance_rate))
    if np.isfinite(row["log_evidence"]):
        value = number(row["log_evidence"], 2, 3)
        error = significant(row["log_evidence_error"], 2)
        facts.append(("Log evidence", f"{value} (Monte Carlo error {error})"))
    table = text_table("Convergence checks", ("Check", "Value"), facts)
    return {"messages": found.messages(), "table": table}


def reml_section(source: Any, reml: Any, prob: float, *, own: bool) -> Context:
    """Posterior beside an estimate; no table where none is asked for."""
    if reml is None:
        return {"name": "REML", "table": None}
    table = source.compare_reml(reml, prob=prob)
    name = "REML" if own else str(table.attrs["estimate"])

    def densities(backend: Backend) -> Any:
        return plot_compared(source.design, source._draws, table, drawing(backend, None, {}))

    return {
        "name": name,
        "own": own,
        "table": _beside_estimate(table, name, prob),
        "flags": set(table["flag"]),
        "densities": picture(densities),
    }


def _beside_estimate(table: pd.DataFrame, name: str, prob: float) -> TextTable:
    low, high = (column for column in table if str(column).endswith(("_lb", "_ub")))
    percent = f"{100 * prob:g} %"
    shifts = {"moved": "shift", "by_prior": "prior_shift"}
    texts = {to: [number(v, 2, 3) or "–" for v in table[of]] for to, of in shifts.items()}
    return estimates_table(
        table.assign(**texts),
        f"Posterior and {name} estimate by parameter",
        columns={
            f"{name} estimate": ("estimate",),
            f"{percent} confidence interval": ("conf_low", "conf_high"),
            "Posterior mean": ("mean",),
            f"{percent} credible interval": (low, high),
        },
        scale="sd",
        others={"Shift": "moved", "due to prior": "by_prior", "Verdict": "flag"},
        notes=[
            "Shift: posterior mean less estimate, in standard errors, on the log scale for "
            "standard deviations and the inverse hyperbolic tangent scale for correlations; beside "
            "it the part due to the prior.",
        ],
    )


def variance_section(source: Any, prob: float) -> Context:
    """Variance partition, ICC and R2."""

    def icc() -> TextTable:
        caption = "Intraclass correlation by grouping factor"
        table = source.icc(prob)
        if table.index.nlevels > 1:
            table.index = pd.Index([", ".join(labels) for labels in table.index])
        return _shares(table, caption, "Grouping factor", prob)

    def r2() -> TextTable:
        return _shares(source.r2(prob=prob), "Variance explained (R²)", "R²", prob)

    parts = attempt(lambda: _partition(source.variance_partition(prob), prob))
    tables = {
        "Variance by part of the model": parts,
        "Intraclass correlation": attempt(icc),
        "R2": attempt(r2),
    }
    return {"tables": list(tables.items())}


def _partition(frame: pd.DataFrame, prob: float) -> TextTable:
    plain = {"fixed": "Fixed effects", "residual": "Residual"}
    rows = zip(frame["component"], frame["group"], frame["term"], strict=True)
    labels = [plain.get(part, f"{group} ({term})") for part, group, term in rows]
    bounds = {
        kind: [n for n in frame if str(n).startswith(kind) and str(n).endswith(("_lb", "_ub"))]
        for kind in ("variance_", "share_")
    }
    shares = frame[["share_mean", *bounds["share_"]]].to_numpy()
    percent = f"{100 * prob:g} % interval"
    return estimates_table(
        frame.set_axis(labels, axis=0).assign(
            share=[f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in shares]
        ),
        "Variance by part of the model",
        first="Part",
        columns={"Variance": ("variance_mean",), percent: tuple(bounds["variance_"])},
        scale="variance_sd",
        others={f"Share of the total ({percent})": "share"},
    )


def _shares(frame: pd.DataFrame, caption: str, first: str, prob: float) -> TextTable:
    interval = f"{100 * prob:g} % interval"
    columns = {"Mean": ("mean",), "SD": ("sd",), interval: tuple(frame.columns[-2:])}
    return estimates_table(frame, caption, first=first, columns=columns, scale="sd", digits=2)


def effects_section(source: Any, prob: float) -> Context:
    """Random effects by grouping factor."""
    return {"factors": [_factor_parts(source, f, prob) for f in source.design.random]}


def _factor_parts(source: Any, factor: RandomFactor, prob: float) -> Context:
    places = level_order(source.design, factor.spec)
    chosen = ""
    if factor.n_levels > MOST_LEVELS:
        places = places[np.linspace(0, factor.n_levels - 1, MOST_LEVELS).round().astype(int)]
        chosen = f" Shown are {MOST_LEVELS} of {factor.n_levels:,} levels, evenly spaced."
    levels = [factor.levels[i] for i in places]
    return {
        "name": factor.name,
        "coefs": ", ".join(factor.own_coefs),
        "shown": len(levels),
        "chosen": chosen,
        "caterpillar": picture(source.plot.caterpillar, factor.name, levels=levels, prob=prob),
        "table": _effects_table(source, factor, places, chosen),
        "shrinkage": picture(source.plot.shrinkage, factor.name, levels=levels),
    }


def _effects_table(source: Any, factor: RandomFactor, places: np.ndarray, chosen: str) -> TextTable:
    means = source.ranef()[factor.name].to_numpy()[places]
    sds = source.ranef_sd()[factor.name].to_numpy()[places]
    decimals = [decimals_of(sds[:, c], means[:, c], DIGITS - 1) for c in range(sds.shape[1])]
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
    return text_table(caption, (factor.name, *factor.own_coefs), rows, numeric=True)


def fitted_section(source: Any, prob: float) -> Context:
    """Data and fitted lines; covariance of the response between rows of some levels."""
    if not source.design.random:
        return {"group": None, "lines": picture(source.plot.fitted, prob=prob)}
    group = source.design.random[0].name
    levels = _levels_to_show(source.design)
    return {
        "group": group,
        "levels": ", ".join(levels),
        "lines": picture(source.plot.fitted, group=group, prob=prob),
        "covariance": picture(source.plot.covariance, "V", levels=levels),
    }


def _levels_to_show(design: Design) -> list[str]:
    """First levels of the first grouping factor that one picture can show; at least one."""
    factor = design.random[0]
    order = level_order(design, factor.spec)
    counts = np.cumsum(factor.counts()[order])
    number_of = max(1, min(3, int(np.searchsorted(counts, MOST_ROWS, side="right"))))
    return [str(label) for label in factor.levels[order[:number_of]]]


def checks_section(source: Any, prob: float, seed: int) -> Context:
    """Residuals and posterior predictive checks."""
    parts = {"seed": seed, "residuals": picture(source.plot.residuals)}
    simulated = attempt(lambda: source.with_posterior_predictive(random_seed=seed))
    if isinstance(simulated, str):
        return {**parts, "table": simulated, "densities": Picture(why=simulated)}
    table = _checks_table(source.design, replicated(simulated.data), prob)
    return {**parts, "table": table, "densities": picture(simulated.plot.predictive, "dist")}


def _checks_table(design: Design, responses: Array, prob: float) -> TextTable:
    rows = []
    checks = [check_table(design, responses, name, None, prob) for name in STATISTICS]
    for statistic, row in pd.concat(checks).iterrows():
        bounds = (row[name] for name in row.index if str(name).endswith(("_lb", "_ub")))
        decimals = decimals_of([row["sd"]], [row["mean"]], DIGITS)
        observed, mean, low, high = (
            number(float(v), decimals, DIGITS) for v in (row["observed"], row["mean"], *bounds)
        )
        rows.append((statistic, observed, mean, f"{low} to {high}", f"{row['p_value']:.2f}"))
    header = ("Statistic", "Observed", "Simulated mean", f"{100 * prob:g} % interval", "p")
    return text_table("Statistics of the response", header, rows, numeric=True)


def methods_section(source: Any, findings: Findings) -> Context:
    """The methods paragraph, its references and the versions of the software."""
    text = source.methods_paragraph(references=True, findings=findings)
    paragraph, _, *references = text.split("\n\n")
    versions = list(posterior_versions(source.data.attrs, source.priors).items())
    table = text_table("Versions", ("Software", "Version"), versions)
    return {"paragraph": paragraph, "references": references, "versions": table}
