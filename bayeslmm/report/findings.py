"""The checks of a posterior, each boiled down to a severity, a verdict and what there is to say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from scipy.special import ndtri

from bayeslmm.checks.influence import LARGE_SHIFT
from bayeslmm.checks.residual_checks import SUSPECT
from bayeslmm.checks.sensitivity import LITTLE, TAIL
from bayeslmm.checks.singularity import COMPATIBLE, LIKELY
from bayeslmm.comparison.reml import FAR, NARROWED, PULLED_DOWN, PULLED_UP
from bayeslmm.data.summarised import briefly
from bayeslmm.exceptions import BayesLMMError
from bayeslmm.sampling.pareto import MAX_PARETO_K
from bayeslmm.summaries.text import Report, counted, listed

Topic = Literal["convergence", "residuals", "influence", "sensitivity", "singularity", "loo"]
Severity = Literal["alarm", "note", "none"]

MOST_ROWS = 5000
"""Rows above which checks that go through them are not run unasked."""

MOST_LEVELS = 1000
"""The same for the levels of a grouping factor that are left out one by one."""

ROW_WISE: tuple[Topic, ...] = ("residuals", "influence", "loo")

CHANCE = 0.05
"""Probability with which a topic that looks at many cases may alarm of a right model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What the checks of one topic found.

    Attributes
    ----------
    topic : str
        "convergence", "residuals", "influence", "sensitivity", "singularity" or "loo".
    run : bool
        Whether it was run.
    severity : {"alarm", "note", "none"}
        "alarm" for what a reader must know before using a number, "note" for what a right model
        shows now and then, "none" where there is nothing to say or it was not run.
    verdict : str
        A sentence; why it was not run, where it was not.
    details : tuple of str
        What there is to say, a sentence or two each; empty where all is well.
    """

    topic: Topic
    run: bool = True
    severity: Severity
    verdict: str
    details: tuple[str, ...] = ()


def too_many_rows(source: Any, topic: Topic) -> str:
    """Why a topic is not run unasked; empty where it is."""
    if topic not in ROW_WISE or source.design.n <= MOST_ROWS:
        return ""
    return (
        f"With {source.design.n:,} rows (more than {MOST_ROWS:,}) it takes long: "
        f'post.findings("{topic}") runs it.'
    )


# --- convergence -----------------------------------------------------------------------


def convergence(source: Any, _: int | None = None) -> Finding:
    """R-hat, effective sample sizes, divergences; of an approximation its importance ratios."""
    found = source.diagnostics
    total = found.chains * found.draws
    if found.approximate:
        numbers = (
            f"Pareto k of the approximation {found.pareto_k:.2f}, importance effective sample size "
            f"{found.importance_ess:,.0f} of {total:,} draws"
        )
    else:
        rhat = f"{found.max_rhat:.3f}" if np.isfinite(found.max_rhat) else "unknown (one chain)"
        smallest = min(found.min_ess_bulk, found.min_ess_tail)
        numbers = (
            f"largest R-hat {rhat}, smallest effective sample size {smallest:,.0f} of {total:,} "
            "draws"
        )
    messages = found.messages()
    if not messages:
        verdict = f"All checks passed: {numbers}."
        return Finding(topic="convergence", severity="none", verdict=verdict)
    verdict = f"The draws did not pass all checks: {numbers}."
    return Finding(topic="convergence", severity="alarm", verdict=verdict, details=messages)


# --- residuals -------------------------------------------------------------------------


def residuals(source: Any, random_seed: int | None) -> Finding:
    """Whatever ``post.check.residuals()`` checks, as many checks as there are."""
    found = source.check.residuals(random_seed=random_seed)
    p_values = found.table["p_value"]
    failed = p_values[p_values < SUSPECT].sort_values()
    count = counted(len(p_values), "check")
    if not len(failed):
        verdict = f"None of {count} fails (no p-value below {SUSPECT:g})."
        return Finding(topic="residuals", severity="none", verdict=verdict)
    named = listed(f"{name} ({_p(value, found.draws)})" for name, value in failed.items())
    beyond = bool(failed.iloc[0] * len(p_values) < CHANCE)
    fail = "fails" if len(failed) == 1 else "fail"
    verdict = f"{len(failed)} of {count} {fail}: {named}"
    verdict += "." if beyond else f"; one in {round(1 / SUSPECT)} does of a right model."
    details = tuple(text for text in found.messages if text.startswith(tuple(failed.index)))
    severity: Severity = "alarm" if beyond else "note"
    return Finding(topic="residuals", severity=severity, verdict=verdict, details=details)


def _p(value: float, draws: int) -> str:
    return f"p = {value:.2g}" if value > 0.0 else f"p below {1.0 / draws:.2g}"


# --- influence -------------------------------------------------------------------------


def influence(source: Any, _: int | None = None) -> Finding:
    """Rows, and levels of each grouping factor, left out one by one."""
    left = [f.name for f in source.design.random if f.n_levels > MOST_LEVELS]
    chosen = [f.name for f in source.design.random if f.name not in left]
    cases = [_cases(source, by) for by in (None, *chosen)]
    shifts = [f"{case.largest:.2f} without {case.worst}" for case in cases]
    limits = [f"{case.limit:.2f}" for case in cases]
    verdict = (
        f"The largest shifts of a posterior mean, in its standard deviations: {listed(shifts)} "
        f"(a right model: up to {listed(limits)})."
    )
    if any(case.poor for case in cases):
        poor = [f"{case.poor} {case.what}" for case in cases if case.poor]
        verdict += f" Importance weights do not reach the posteriors without {listed(poor)}."
    if left:
        verdict += f" Levels of {listed(left)} were not left out: they are too many."
    return Finding(
        topic="influence",
        severity=_worst([case.severity for case in cases]),
        verdict=verdict,
        details=tuple(text for case in cases for text in case.details),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cases:
    """Rows or levels left out: the worst one, its shift, the limit, how many weights are poor."""

    what: str
    worst: str
    largest: float
    limit: float
    poor: int
    messages: tuple[str, ...]

    @property
    def severity(self) -> Severity:
        if self.largest > self.limit:
            return "alarm"
        return "note" if self.largest > LARGE_SHIFT or self.poor else "none"

    @property
    def details(self) -> tuple[str, ...]:
        return self.messages if self.severity != "none" else ()


def _cases(source: Any, by: str | None) -> _Cases:
    found = source.check.influence(by, progressbar=False)
    table = found.table
    worst = table["max_shift"].idxmax()
    poor = int((table["pareto_k"] > MAX_PARETO_K).sum())
    what, one = ("row", "row {}") if by is None else ("level", f"level {{}} of {by}")
    return _Cases(
        what=(what if poor == 1 else f"{what}s") + ("" if by is None else f" of {by}"),
        worst=one.format(worst),
        largest=float(table["max_shift"].max()),
        limit=expected_shift(len(table), found.shift.shape[1]),
        poor=poor,
        messages=found.messages,
    )


def expected_shift(cases: int, parameters: int) -> float:
    """Largest shift of a posterior mean that leaving out a case of a right model explains.

    A case at z standard deviations, one of m, moves a mean by about z / sqrt(m) of its posterior
    standard deviations and the logarithm of a standard deviation by (z^2 - 1) / sqrt(2 m). With z
    the value that the largest of all cases exceeds, for any parameter, with probability
    :data:`CHANCE`, the second is the larger one; where cases are many it is below what deserves a
    look at all.
    """
    z = -float(ndtri(0.5 * CHANCE / (cases * parameters)))
    return max(LARGE_SHIFT, (z**2 - 1.0) / np.sqrt(2.0 * cases))


# --- priors ----------------------------------------------------------------------------


def sensitivity(source: Any, random_seed: int | None) -> Finding:
    """Power scaling, prior against posterior, too few levels, and the pull away from REML."""
    found = source.check.sensitivity()
    table = found.table
    sensitive = table["diagnosis"] != ""
    decided = sensitive & (table["prior"] >= table["likelihood"])
    alarms = {
        "mostly the prior, too few levels": list(found.unbounded),
        "sensitive to the priors no less than to the data": list(table.index[decided]),
    }
    details = list(found.messages)
    if source.priors.proper:
        contraction = source.check.contraction(random_seed=random_seed)
        alarms |= _beside_prior(contraction.table)
        labels = tuple(f"{label}:" for label in (*alarms[LITTLE_ADDED], *alarms[IN_TAIL]))
        details += [text for text in contraction.messages if labels and text.startswith(labels)]
    alarming = {label for labels in alarms.values() for label in labels}
    mild = [str(label) for label in table.index[sensitive] if label not in alarming]
    notes = {"sensitive to the priors, though more so to the data": mild, **_pulled(source)}
    parts = [f"{listed(labels)}: {what}" for what, labels in (alarms | notes).items() if labels]
    severity: Severity = "alarm" if alarming else "note" if parts else "none"
    verdict = "; ".join(parts) or (
        "No parameter depends on slightly stronger or weaker priors "
        f"(sensitivities below {found.threshold:g}), nor do the priors pull one from REML"
    )
    return Finding(
        topic="sensitivity",
        severity=severity,
        verdict=f"{verdict}.",
        details=tuple(dict.fromkeys(details)) if parts else (),
    )


LITTLE_ADDED = "the data add little to the prior"
IN_TAIL = "in the tail of the prior"


def _beside_prior(table: pd.DataFrame) -> dict[str, list[str]]:
    """Parameters whose posterior is as wide as the prior, or in its tail."""
    quantile = table["prior_quantile"]
    return {
        LITTLE_ADDED: list(table.index[table["contraction"] < LITTLE]),
        IN_TAIL: list(table.index[(quantile < TAIL) | (quantile > 1.0 - TAIL)]),
    }


def _pulled(source: Any) -> dict[str, list[str]]:
    """Parameters that the priors move from REML or narrow, by compare_reml's flag."""
    fit = source.model.reml_or_none()
    if fit is None:
        return {}
    flags = source.compare_reml(fit)["flag"]
    noted = (PULLED_UP, PULLED_DOWN, NARROWED, FAR)
    return {flag: list(flags.index[flags == flag]) for flag in noted}


# --- singularity -----------------------------------------------------------------------


def singularity(source: Any, _: int | None = None) -> Finding:
    """Boundaries that the data allow, dimensions that are negligible, a singular REML fit."""
    found = source.check.singularity()
    table, rank = found.table, found.rank
    open_ = table.index[table["support"] >= COMPATIBLE]
    likely = table.index[table["probability"] > LIKELY]
    idle = rank.index[(rank["n_coefs"] > 1) & (rank["p_negligible"] > LIKELY)]
    parts = []
    if found.reml_singular:
        parts.append("The REML fit is singular.")
    if len(open_):
        parts.append(f"The data allow the boundary for {listed(open_)}.")
    if others := [label for label in likely if label not in open_]:
        parts.append(f"Most draws of {listed(others)} are at the boundary.")
    if len(idle):
        parts.append(f"Fewer dimensions would do for {listed(idle)}.")
    severity: Severity = "note" if parts else "none"
    if found.reml_singular or len(likely) or len(idle):
        severity = "alarm"
    concerned = tuple(f"{label}:" for label in (*open_, *likely, *idle))
    details = [text for text in found.messages if text.startswith(concerned)] if concerned else []
    if parts:
        details.append(found.messages[-1])
    verdict = " ".join(parts) or (
        "No standard deviation or correlation is near its boundary, nor is the REML fit singular."
    )
    return Finding(
        topic="singularity",
        severity=severity,
        verdict=verdict,
        details=tuple(dict.fromkeys(details)),
    )


# --- cross-validation ------------------------------------------------------------------


def loo(source: Any, _: int | None = None) -> Finding:
    """Whether the leave-one-out scores of rows are reliable, and what they are."""
    found: Any = source.loo(progressbar=False)
    k = np.asarray(found.pareto_k)
    bad = int(np.sum(k > found.good_k))
    scores = (
        f"Expected log predictive density {found.elpd:.1f} (standard error {found.se:.1f}), "
        f"effective number of parameters {found.p:.1f}"
    )
    if not bad:
        verdict = f"{scores}; the scores of all {len(k):,} rows are reliable."
        return Finding(topic="loo", severity="none", verdict=verdict)
    verdict = f"{scores}; the scores of {bad} of {len(k):,} rows are not reliable."
    coord = np.asarray(found.elpd_i[found.elpd_i.dims[0]])
    names = [str(name) for name in coord[np.argsort(-k, kind="stable")][:bad]]
    detail = (
        f"Rows with a Pareto k above {found.good_k:.2f}: {listed(names, 5)}. Leaving them out "
        "changes the posterior so much that importance weights do not reach it: look at their "
        "influence, use more draws or refit without them."
    )
    return Finding(topic="loo", severity="alarm", verdict=verdict, details=(detail,))


def _worst(severities: Sequence[Severity]) -> Severity:
    return min(severities, key=get_args(Severity).index)


TOPIC_CHECKS: dict[Topic, Callable[[Any, int | None], Finding]] = {
    "convergence": convergence,
    "residuals": residuals,
    "influence": influence,
    "sensitivity": sensitivity,
    "singularity": singularity,
    "loo": loo,
}


# --- what every check of a posterior found, as one value that print, report and methods share ---

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

    def sentences(self) -> list[str]:
        """What was checked, what came out and what was not run, for a methods paragraph."""
        told = [i for i in self.items if i.run and i.topic != "convergence"]
        said = [f"{TITLES[item.topic]}: {item.verdict}" for item in told]
        left_out = [TITLES[item.topic].lower() for item in self.items if not item.run]
        return [*said, f"Not checked: {listed(left_out)}."] if left_out else said

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
    source: Any,
    topics: Sequence[str] | None = None,
    *,
    random_seed: int | None = 0,
) -> Findings:
    """Run the checks of a posterior.

    Parameters
    ----------
    source : Any
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
    source: Any,
    topic: Topic,
    check: Callable[[Any, int | None], Finding],
    random_seed: int | None,
) -> Finding:
    """What a check found; what it refuses to judge was not run, for the reason that it gives."""
    try:
        return check(source, random_seed)
    except BayesLMMError as error:
        return _unrun(topic, briefly(error))


def _unrun(topic: Topic, why: str) -> Finding:
    return Finding(topic=topic, run=False, severity="none", verdict=why)


TITLES: dict[Topic, str] = {
    "convergence": "Convergence",
    "residuals": "Residuals and random effects",
    "influence": "Influence of rows and levels",
    "sensitivity": "Sensitivity to the priors",
    "singularity": "Singularity",
    "loo": "Leave-one-out cross-validation",
}
