"""A report of a posterior: one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bayeslmm.estimation.estimate import Fit
from bayeslmm.report import sections
from bayeslmm.report.findings import Findings, find
from bayeslmm.report.tables import templates
from bayeslmm.summaries import is_estimate
from bayeslmm.summaries.posterior_tables import interval_defaults, parameter_table
from bayeslmm.summaries.text import estimate_notes
from bayeslmm.writing import check_replaceable, replacing

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
        **_heading(source, title),
        **_sections(source, reml, findings, prob, kind, random_seed),
        "percent": f"{100 * prob:g} %",
        "wide": WIDE,
    }
    return templates().get_template("report.html").render(context)


def _heading(source: Any, title: str | None) -> dict[str, str]:
    found, design = source.diagnostics, source.design
    groups = ", ".join(f"{f.n_levels:,} levels of {f.name}" for f in design.random)
    stamp = str(source.data["posterior"].attrs.get("created_at", ""))
    return {
        "title": title or f"Linear mixed model of {design.response}",
        "lead": (
            f"{design.formula.source}: {design.n:,} rows, {groups}; "
            f"{found.chains * found.draws:,} posterior draws by the method "
            f"“{source.data.attrs['method']}”."
        ),
        "made_at": f"{stamp[:10]} {stamp[11:16]} UTC" if stamp else "an unknown time",
    }


def _sections(
    source: Any,
    reml: Any,
    findings: Findings,
    prob: float,
    kind: str,
    seed: int,
) -> dict[str, sections.Context]:
    """What the template of each section is filled with."""
    design, own = source.design, reml is None
    given = source.model.reml if own else None if reml is False else reml
    notes: tuple[str, ...] = ()
    if isinstance(given, Fit):
        notes = estimate_notes(given, design)
    elif is_estimate(given):
        notes = estimate_notes(given.fit, given.design)
    table = parameter_table(source.data["posterior"].to_dataset(), design, prob, kind)
    return {
        "findings": sections.findings_section(findings),
        "notes": sections.notes_section(source, notes),
        "model": sections.model_section(design),
        "parameters": sections.parameters_section(source, table, prob, kind),
        "priors": sections.priors_section(source),
        "diagnostics": sections.diagnostics_section(source),
        "reml": sections.reml_section(source, given, prob, own=own),
        "variance": sections.variance_section(source, prob),
        "effects": sections.effects_section(source, prob),
        "fitted": sections.fitted_section(source, prob),
        "checks": sections.checks_section(source, prob, seed),
        "methods": sections.methods_section(source, findings),
    }
