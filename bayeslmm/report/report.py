"""A report of a posterior: one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from bayeslmm._writing import check_replaceable, replacing
from bayeslmm.data.design import Design
from bayeslmm.estimation.estimate import Fit
from bayeslmm.report.findings import Findings, find
from bayeslmm.report.findings_section import findings_section
from bayeslmm.report.frames import text_table
from bayeslmm.report.page import Section, html_document, paragraph, scrolling_table, subheading
from bayeslmm.report.picture_sections import checks_section, effects_section, fitted_section
from bayeslmm.report.sections import (
    diagnostics_section,
    model_section,
    notes_section,
    parameters_section,
    priors_section,
    reml_section,
    variance_section,
)
from bayeslmm.report.source import Source
from bayeslmm.report.versions import posterior_versions
from bayeslmm.summaries.fits import is_estimate
from bayeslmm.summaries.parameters import parameters
from bayeslmm.summaries.posterior_tables import interval_defaults, parameter_matrix, summarise
from bayeslmm.summaries.text import estimate_notes


def write_report(
    source: Source,
    path: str | Path,
    *,
    reml: Any = None,
    findings: Findings | None = None,
    title: str | None = None,
    prob: float | None = None,
    random_seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the report; see :meth:`bayeslmm.Posterior.report`."""
    target = _checked_path(path, overwrite=overwrite)
    page = report_page(
        source,
        reml=reml,
        findings=findings,
        title=title,
        prob=prob,
        random_seed=random_seed,
    )
    with replacing(target, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return target


def report_page(
    source: Source,
    *,
    reml: Any = None,
    findings: Findings | None = None,
    title: str | None = None,
    prob: float | None = None,
    random_seed: int = 0,
) -> str:
    """HTML of the report."""
    design = source.design
    prob, kind = interval_defaults(prob)
    own = reml is None
    given = source.model.reml if own else None if reml is False else reml
    checked = find(source, random_seed=random_seed) if findings is None else findings
    dataset = source.data["posterior"].to_dataset()
    rows = parameters(design)
    table = summarise(
        parameter_matrix(dataset, design, rows),
        pd.Index([row.label for row in rows], name="parameter"),
        prob,
        kind,
    )
    sections = [
        findings_section(checked),
        notes_section(source, _notes_of(given, design)),
        model_section(design),
        parameters_section(source, table, prob, kind),
        priors_section(source),
        diagnostics_section(source, source.glance()),
        reml_section(source, given, prob, own=own),
        variance_section(source, prob),
        effects_section(source, prob),
        fitted_section(source, prob),
        checks_section(source, prob, random_seed),
        _methods_section(source, checked),
    ]
    return html_document(
        title or f"Linear mixed model of {design.response}",
        _lead(source),
        sections,
        f"Written by bayeslmm from draws made at {_made_at(dataset.attrs)}.",
    )


def _notes_of(reml: Any, design: Design) -> tuple[str, ...]:
    """What a reader should know of an estimate made here."""
    if isinstance(reml, Fit):
        return estimate_notes(reml, design)
    return estimate_notes(reml.fit, reml.design) if is_estimate(reml) else ()


def _lead(source: Source) -> str:
    found, design = source.diagnostics, source.design
    groups = ", ".join(f"{f.n_levels:,} levels of {f.name}" for f in design.random)
    return (
        f"{design.formula.source}: {design.n:,} rows, {groups}; "
        f"{found.chains * found.draws:,} posterior draws by the method "
        f"“{source.data.attrs['method']}”."
    )


def _made_at(attrs: Mapping[Any, Any]) -> str:
    stamp = str(attrs.get("created_at", ""))
    return f"{stamp[:10]} {stamp[11:16]} UTC" if stamp else "an unknown time"


def _methods_section(source: Source, findings: Findings) -> Section:
    text = source.methods_paragraph(references=True, findings=findings)
    first, *rest = text.split("\n\n")
    references = "".join(f"<li>{escape(text)}</li>" for text in rest[1:])
    versions = list(posterior_versions(source.data.attrs, source.priors).items())
    parts: Sequence[str] = (
        f"<blockquote>{paragraph(first)}</blockquote>",
        subheading("References"),
        f"<ul>{references}</ul>",
        subheading("Software"),
        scrolling_table(text_table("Versions", ("Software", "Version"), versions)),
    )
    return Section(key="methods", title="Methods, for a paper", parts=tuple(parts))


def _checked_path(path: str | Path, *, overwrite: bool) -> Path:
    """The file to write.

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
    return target
