"""What every check of a posterior found, as one value that print, report and methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from bayeslmm.checks.report import Report
from bayeslmm.exceptions import BayesLMMError
from bayeslmm.report.finding_topics import (
    TOPIC_CHECKS,
    Finding,
    Severity,
    Topic,
    too_many_rows,
)
from bayeslmm.report.source import Source
from bayeslmm.summaries.text import listed

TOPICS: tuple[Topic, ...] = tuple(TOPIC_CHECKS)

WORDS: dict[Severity, str] = {"alarm": "alarm", "note": "note", "none": "nothing found"}
NOT_RUN = "not run"
NOT_ASKED = "It was not asked for."
"""Verdict of a topic that was left out on purpose."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class Findings(Report):
    """What the checks of a posterior found, topic by topic.

    Attributes
    ----------
    items : tuple of Finding
        One per topic: convergence, residuals, influence, sensitivity, singularity, loo; also of
        those that were not run.
    """

    items: tuple[Finding, ...]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.items)

    def __getitem__(self, topic: str) -> Finding:
        for item in self.items:
            if item.topic == topic:
                return item
        raise KeyError(f"{topic!r}: the topics are {', '.join(i.topic for i in self.items)}.")

    @property
    def alarms(self) -> tuple[Topic, ...]:
        """Topics with an alarm."""
        return self.topics("alarm")

    @property
    def not_run(self) -> tuple[Topic, ...]:
        """Topics that were not run."""
        return tuple(item.topic for item in self.items if not item.run)

    def topics(self, severity: Severity) -> tuple[Topic, ...]:
        """Topics that were run and came out like this."""
        return tuple(i.topic for i in self.items if i.run and i.severity == severity)

    @property
    def table(self) -> pd.DataFrame:
        """A row per topic: whether it was run, severity ("" where not), verdict."""
        rows = [(i.run, i.severity if i.run else "", i.verdict) for i in self.items]
        index = pd.Index([i.topic for i in self.items], name="topic")
        return pd.DataFrame(rows, index=index, columns=["run", "severity", "verdict"])

    @property
    def heading(self) -> str:
        """First line of the printed form: alarms, what was checked and what was not."""
        return headline(self)

    @property
    def messages(self) -> tuple[str, ...]:
        """Verdict of each topic, alarms first; then what there is to say of alarms and notes."""
        order = ("alarm", "note", "none")
        ran = [i for severity in order for i in self.items if i.run and i.severity == severity]
        return (
            *(f"{item.topic} ({WORDS[item.severity]}): {item.verdict}" for item in ran),
            *(f"{i.topic} ({NOT_RUN}): {i.verdict}" for i in self.items if not i.run),
            *(f"{item.topic}: {text}" for item in ran for text in item.details),
        )

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        return {}


def headline(found: Findings, titles: Mapping[Topic, str] | None = None) -> str:
    """Which topics have an alarm, which a note, which nothing, and which were not run.

    Parameters
    ----------
    found : Findings
        The findings.
    titles : mapping, optional
        Other names of the topics.
    """
    parts = {
        "Alarms": found.alarms,
        "Notes": found.topics("note"),
        "Nothing found": found.topics("none"),
        "Not run": found.not_run,
    }
    first = [] if found.alarms else ["No alarms."]
    shown = {
        name: [titles[topic].lower() if titles else topic for topic in topics]
        for name, topics in parts.items()
    }
    return " ".join(
        [*first, *(f"{name}: {listed(topics)}." for name, topics in shown.items() if topics)]
    )


def find(
    source: Source,
    topics: Sequence[str] | None = None,
    *,
    random_seed: int | None = 0,
) -> Findings:
    """Run the checks of a posterior.

    Parameters
    ----------
    source : Source
        The posterior.
    topics : sequence of str, optional
        Which to run; by default all, but for those that go through the rows where these are many.
    random_seed : int, optional
        Seed of the checks that draw.

    Returns
    -------
    Findings

    Raises
    ------
    ValueError
        If there is no such topic.
    """
    if isinstance(topics, str):
        topics = [topics]
    if unknown := sorted(set(topics or ()) - set(TOPICS)):
        raise ValueError(
            f"topics={unknown!r}: of {', '.join(map(repr, sorted(TOPICS)))} is expected."
        )
    items = []
    for topic, check in TOPIC_CHECKS.items():
        why = too_many_rows(source, topic) if topics is None else ""
        if topics is not None and topic not in topics:
            why = NOT_ASKED
        items.append(_unrun(topic, why) if why else _checked(source, topic, check, random_seed))
    return Findings(items=tuple(items))


def _checked(
    source: Source,
    topic: Topic,
    check: Callable[[Source, int | None], Finding],
    random_seed: int | None,
) -> Finding:
    """What a check found; what it refuses to judge was not run, for the reason that it gives."""
    try:
        return check(source, random_seed)
    except BayesLMMError as error:
        return _unrun(topic, str(error))


def _unrun(topic: Topic, why: str) -> Finding:
    return Finding(topic=topic, run=False, severity="none", verdict=why)


def methods_sentences(found: Findings) -> list[str]:
    """What was checked, what came out and what was not run, for a methods paragraph."""
    sentences = [
        f"{TITLES[item.topic]}: {item.verdict}"
        for item in found
        if item.run and item.topic != "convergence"
    ]
    left_out = [TITLES[item.topic].lower() for item in found if not item.run]
    if left_out:
        sentences.append(f"Not checked: {listed(left_out)}.")
    return sentences


TITLES: dict[Topic, str] = {
    "convergence": "Convergence",
    "residuals": "Residuals and random effects",
    "influence": "Influence of rows and levels",
    "sensitivity": "Sensitivity to the priors",
    "singularity": "Singularity",
    "loo": "Leave-one-out cross-validation",
}
