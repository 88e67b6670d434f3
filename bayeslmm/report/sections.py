"""The sections of a report: model, parameters, priors, diagnostics, estimate, variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.comparison.tables import (
    AGREES,
    BOUNDARY,
    DIFFERS,
    FAR,
    NARROWED,
    POORLY_SAMPLED,
    PRIOR,
    PULLED_DOWN,
    PULLED_UP,
)
from bayeslmm.data.design import Design
from bayeslmm.exceptions import BayesLMMError
from bayeslmm.report.frames import cell, estimates_table, text_table
from bayeslmm.report.numbers import number, significant
from bayeslmm.report.page import (
    Section,
    absent,
    bullets,
    paragraph,
    scrolling_table,
    subheading,
)
from bayeslmm.report.pictures import picture
from bayeslmm.report.source import Source
from bayeslmm.report.words import model_sentences, prior_sentences
from bayeslmm.summaries.text import counted, listed

FLAGS = {
    AGREES: "posterior and estimate say the same.",
    PRIOR: (
        "too few levels: the data do not bound this parameter, and what is reported is mostly its "
        "prior."
    ),
    PULLED_UP: "the prior makes it noticeably larger than the estimate.",
    PULLED_DOWN: "the prior makes it noticeably smaller than the estimate.",
    NARROWED: "the prior makes it noticeably more certain than the data do.",
    FAR: "posterior and estimate differ, by the prior or by the shape of the posterior.",
    BOUNDARY: (
        "the estimate is at the boundary of its range and has no standard error; the posterior is "
        "the better summary."
    ),
    POORLY_SAMPLED: "R-hat or effective sample size is not good enough to compare.",
    DIFFERS: "the estimate is not the maximum that this package finds: other data or model?",
}

SOURCES = {
    "default": (
        "Source “default”: weakly informative, scaled by the standard deviations of response and "
        "covariates."
    ),
    "user": "Source “user”: chosen for this analysis.",
    "flat": "Source “flat”: uniform; the posterior mode is then the REML estimate.",
}

RHAT = "R\N{NON-BREAKING HYPHEN}hat"

KINDS = {"eti": "equal-tailed", "hdi": "highest-density"}


def notes_section(source: Source, estimate_notes: Sequence[str]) -> Section:
    """What was changed on the way to the draws, and how the estimate beside them fared."""
    design = source.design
    said = source.diagnostics.messages()  # among the findings
    found = [note for note in source.notes if note not in said]
    if count := len(design.dropped):
        rows = counted(count, "row")
        found.insert(0, f"{rows} dropped because a variable of the model is missing there.")
    own = [note for note in estimate_notes if note not in found]
    parts = [bullets(found, "warnings")] if found else []
    if not found:
        parts.append(paragraph("Nothing was dropped, and no other method was fallen back to."))
    if own:
        parts += [subheading("On the REML estimate"), bullets(own, "warnings")]
    return Section(key="notes", title="Notes on data and fit", parts=tuple(parts))


def model_section(design: Design) -> Section:
    """The model in words, and its grouping factors."""
    parts = [paragraph(" ".join(model_sentences(design)))]
    facts = [
        ("Formula", design.formula.source),
        ("Response", design.response),
        ("Rows used", design.n),
        ("Rows dropped for missing values", len(design.dropped)),
        ("Fixed effects", listed(design.coefs)),
        ("Columns dropped", listed(design.aliased)),
        ("Weights", _weights(design)),
        ("Offset", " + ".join(design.formula.offsets) or "none"),
    ]
    parts.append(scrolling_table(text_table("Model and data", ("Item", "Value"), facts)))
    header = ("Grouping factor", "Levels", "Coefficients per level", "Rows per level")
    rows = [
        (f.name, f.n_levels, listed(f.coefs), _sizes(np.bincount(f.codes))) for f in design.random
    ]
    parts.append(scrolling_table(text_table("Grouping factors", header, rows)))
    return Section(key="model", title="Model and data", parts=tuple(parts))


def _weights(design: Design) -> str:
    if design.weights is None:
        return "none"
    return f"precision weights {design.recipe.weights or '(given as values)'}"


def _sizes(counts: np.ndarray[Any, Any]) -> str:
    low, high = int(counts.min()), int(counts.max())
    if low == high:
        return f"{low:,}"
    return f"{low:,} to {high:,} (median {np.median(counts):,.0f})"


def parameters_section(source: Source, table: pd.DataFrame, prob: float, kind: str) -> Section:
    """Posterior of the fixed effects and covariance parameters."""
    approximate = source.diagnostics.approximate
    checks = {} if approximate else {RHAT: "r_hat", "ESS bulk": "ess_bulk", "ESS tail": "ess_tail"}
    frame = pd.concat([table, source.summary()[list(checks.values())]], axis=1)
    frame = frame.astype({name: int for name in ("ess_bulk", "ess_tail") if name in frame})
    if "r_hat" in frame:
        frame["r_hat"] = [f"{value:.3f}" if np.isfinite(value) else "–" for value in frame["r_hat"]]
    notes = ["Standard deviations and correlations, not variances; sigma is that of the residuals."]
    if not approximate:
        notes.append("R-hat should be below 1.01; ESS is the effective sample size.")
    shown = estimates_table(
        frame,
        "Posterior of the parameters",
        columns={
            "Mean": ("mean",),
            "SD": ("sd",),
            "Median": ("median",),
            f"{100 * prob:g} % {KINDS.get(kind, kind)} interval": tuple(table.columns[-2:]),
        },
        scale="sd",
        others=checks,
        notes=notes,
    )
    return Section(key="parameters", title="Parameters", parts=(scrolling_table(shown),))


def priors_section(source: Source) -> Section:
    """Priors, and what the data did to them."""
    rows = source.priors.table().to_numpy().tolist()
    used = set(source.priors.sources.values())
    sentences = prior_sentences(source.priors)
    kept = [text for text in sentences if "~" not in text]
    parts = [paragraph(" ".join(kept))] if kept else []
    parts.append(scrolling_table(text_table("Priors", ("Parameter", "Prior", "Source"), rows)))
    parts.append(paragraph(" ".join(SOURCES[name] for name in SOURCES if name in used)))
    parts.append(
        picture(
            lambda: source.plot_prior_posterior(backend="matplotlib"),
            what="Prior and posterior densities",
            alt=(
                "Densities of every parameter before and after seeing the data. The posterior "
                "means and intervals are in the table of parameters, the priors in the table of "
                "priors."
            ),
            caption=(
                "Prior and posterior densities. A posterior that looks like its prior has learnt "
                "little from the data."
            ),
        )
    )
    return Section(key="priors", title="Priors", parts=tuple(parts))


def diagnostics_section(source: Source, glance: pd.DataFrame) -> Section:
    """Convergence checks in numbers and words."""
    found = source.diagnostics
    row = glance.iloc[0]
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
        facts += [
            ("Largest R-hat", _of(rhat, found.max_rhat_parameter)),
            (
                "Smallest bulk ESS",
                _of(cell(round(found.min_ess_bulk)), found.min_ess_bulk_parameter),
            ),
            (
                "Smallest tail ESS",
                _of(cell(round(found.min_ess_tail)), found.min_ess_tail_parameter),
            ),
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
    messages = found.messages()
    verdict = paragraph("All checks passed.") if not messages else bullets(messages, "warnings")
    table = scrolling_table(text_table("Convergence checks", ("Check", "Value"), facts))
    return Section(key="diagnostics", title="Diagnostics", parts=(verdict, table))


def _of(value: str, name: str) -> str:
    return f"{value} ({name})"


def reml_section(source: Source, reml: Any, prob: float, *, own: bool) -> Section:
    """Posterior beside an estimate."""
    if reml is None:
        why = "it was not asked for (reml=False)."
        parts: tuple[Any, ...] = (absent("Comparison with REML", why),)
        return Section(key="reml", title="Posterior beside REML", parts=parts)
    table = source.compare_reml(reml, prob=prob)
    name = "REML" if own else str(table.attrs["estimate"])
    flags = [f"{flag}: {FLAGS[flag]}" for flag in FLAGS if flag in set(table["flag"])]
    lead = (
        "The REML estimate is this package's own, of the same model and rows."
        if own
        else f"The estimate is the {name} fit that was given."
    )
    figure = picture(
        lambda: source.plot_reml(reml, prob=prob, backend="matplotlib"),
        what="Densities with the estimate",
        alt=(
            f"Posterior density of every parameter with the {name} estimate as a line and its "
            "confidence interval as a band; the numbers are in the table above."
        ),
        caption=f"Posterior densities; line and band: {name} estimate and confidence interval.",
    )
    shown = scrolling_table(_beside_estimate(table, name, prob))
    parts = (paragraph(lead), shown, bullets(flags), figure)
    return Section(key="reml", title=f"Posterior beside {name}", parts=parts)


def _beside_estimate(table: pd.DataFrame, name: str, prob: float) -> Any:
    low, high = (column for column in table if str(column).endswith(("_lb", "_ub")))
    percent = f"{100 * prob:g} %"
    return estimates_table(
        table.assign(
            moved=[_shift(value) for value in table["shift"]],
            by_prior=[_shift(value) for value in table["prior_shift"]],
        ),
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


def _shift(value: float) -> str:
    return number(value, 2, 3) or "–"


def variance_section(source: Source, prob: float) -> Section:
    """Variance partition, ICC and R2."""
    parts = []
    tables: Mapping[str, Any] = {
        "Variance by part of the model": lambda: _partition(source.variance_partition(prob), prob),
        "Intraclass correlation": lambda: _shares(
            source.icc(prob), "Intraclass correlation by grouping factor", "Grouping factor", prob
        ),
        "R2": lambda: _shares(source.r2(prob=prob), "Variance explained (R²)", "R²", prob),
    }
    for what, make in tables.items():
        try:
            parts.append(scrolling_table(make()))
        except BayesLMMError as error:
            parts.append(absent(what, str(error)))
    parts.append(
        paragraph(
            "Shares are computed on every draw and summarised last. With random slopes a grouping "
            "factor's variance is its mean over the rows. Marginal R² counts the fixed effects, "
            "conditional R² the random effects too."
        )
    )
    return Section(key="variance", title="Where the variance is", parts=tuple(parts))


def _partition(frame: pd.DataFrame, prob: float) -> Any:
    plain = {"fixed": "Fixed effects", "residual": "Residual"}
    labels = [
        plain.get(row["component"], f"{row['group']} ({row['term']})")
        for _, row in frame.iterrows()
    ]
    frame = frame.set_axis(labels, axis=0)
    bounds = [name for name in frame if str(name).endswith(("_lb", "_ub"))]
    variance = tuple(name for name in bounds if str(name).startswith("variance_"))
    percent = f"{100 * prob:g} % interval"
    shown = {"Variance": ("variance_mean",), percent: variance}
    table = frame.drop(columns=["component", "group", "term"])
    shares = [name for name in bounds if str(name).startswith("share_")]
    table["share"] = [
        f"{row['share_mean']:.2f} ({row[shares[0]]:.2f} to {row[shares[1]]:.2f})"
        for _, row in table.iterrows()
    ]
    return estimates_table(
        table,
        "Variance by part of the model",
        first="Part",
        columns=shown,
        scale="variance_sd",
        others={f"Share of the total ({percent})": "share"},
    )


def _shares(frame: pd.DataFrame, caption: str, first: str, prob: float) -> Any:
    return estimates_table(
        frame,
        caption,
        first=first,
        columns={
            "Mean": ("mean",),
            "SD": ("sd",),
            f"{100 * prob:g} % interval": tuple(frame.columns[-2:]),
        },
        scale="sd",
        digits=2,
    )
