"""The head of a report: what the checks found, and which were not run."""

from __future__ import annotations

from bayeslmm.report.findings import NOT_RUN, TITLES, WORDS, Findings, headline
from bayeslmm.report.frames import text_table
from bayeslmm.report.page import Section, bullets, paragraph, scrolling_table, subheading

LEAD = (
    "An alarm is what to know before using a number of this page; a note is what a right model "
    "shows now and then."
)


def findings_section(found: Findings) -> Section:
    """Headline, a table of all topics, and the details of those with an alarm or a note."""
    rows = [
        (TITLES[item.topic], WORDS[item.severity] if item.run else NOT_RUN, item.verdict)
        for item in found
    ]
    table = text_table("What the checks found", ("Check", "Result", "Verdict"), rows)
    parts = [
        f"<p><strong>{headline(found, TITLES)}</strong></p>",
        scrolling_table(table),
        paragraph(LEAD),
    ]
    for severity in ("alarm", "note"):
        for item in found:
            if item.severity == severity and item.details:
                parts.append(subheading(f"{TITLES[item.topic]}: {WORDS[item.severity]}"))
                parts.append(bullets(item.details, "warnings" if severity == "alarm" else ""))
    return Section(key="findings", title="Findings of the checks", parts=tuple(parts))
