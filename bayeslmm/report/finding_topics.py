"""The checks of a posterior, each boiled down to a severity, a verdict and what there is to say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import ndtri

from bayeslmm.checks.posterior_influence import LARGE_SHIFT
from bayeslmm.checks.residual_checks import SUSPECT
from bayeslmm.checks.sensitivity import LITTLE, TAIL
from bayeslmm.checks.singularity import reml_fit
from bayeslmm.checks.singularity_words import COMPATIBLE, LIKELY
from bayeslmm.comparison.tables import FAR, NARROWED, PULLED_DOWN, PULLED_UP
from bayeslmm.fits.estimate import Estimate
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.report.source import Source
from bayeslmm.sampling.diagnostics import MAX_PARETO_K
from bayeslmm.summaries.text import counted, listed

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


def too_many_rows(source: Source, topic: Topic) -> str:
    """Why a topic is not run unasked; empty where it is."""
    if topic not in ROW_WISE or source.design.n <= MOST_ROWS:
        return ""
    return (
        f"With {source.design.n:,} rows (more than {MOST_ROWS:,}) it takes long: "
        f'post.findings("{topic}") runs it.'
    )


# --- convergence -----------------------------------------------------------------------


def convergence(source: Source, _: int | None = None) -> Finding:
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


def residuals(source: Source, random_seed: int | None) -> Finding:
    """Whatever :meth:`Posterior.residual_checks` checks, as many checks as there are."""
    found = source.residual_checks(random_seed=random_seed)
    p_values = found.table["p_value"]
    failed = p_values[p_values < SUSPECT].sort_values()
    count = counted(len(p_values), "check")
    if not len(failed):
        verdict = f"None of {count} fails (no p-value below {SUSPECT:g})."
        return Finding(topic="residuals", severity="none", verdict=verdict)
    named = listed(f"{name} ({_p(value, found.draws)})" for name, value in failed.items())
    beyond = bool(failed.iloc[0] * len(p_values) < CHANCE)
    verdict = f"{len(failed)} of {count} {_fails(len(failed))}: {named}"
    verdict += "." if beyond else f"; one in {round(1 / SUSPECT)} does of a right model."
    details = tuple(text for text in found.messages if text.startswith(tuple(failed.index)))
    severity: Severity = "alarm" if beyond else "note"
    return Finding(topic="residuals", severity=severity, verdict=verdict, details=details)


def _fails(count: int) -> str:
    return "fails" if count == 1 else "fail"


def _p(value: float, draws: int) -> str:
    return f"p = {value:.2g}" if value > 0.0 else f"p below {1.0 / draws:.2g}"


# --- influence -------------------------------------------------------------------------


def influence(source: Source, _: int | None = None) -> Finding:
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


def _cases(source: Source, by: str | None) -> _Cases:
    found = source.influence(by, progressbar=False)
    table = found.table
    worst = table["max_shift"].idxmax()
    poor = int((table["pareto_k"] > MAX_PARETO_K).sum())
    what, one = ("row", "row {}") if by is None else ("level", f"level {{}} of {by}")
    return _Cases(
        what=f"{what if poor == 1 else f'{what}s'}" + ("" if by is None else f" of {by}"),
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


def sensitivity(source: Source, random_seed: int | None) -> Finding:
    """Power scaling, prior against posterior, too few levels, and the pull away from REML."""
    found = source.sensitivity()
    table = found.table
    sensitive = table["diagnosis"] != ""
    decided = sensitive & (table["prior"] >= table["likelihood"])
    alarms = {
        "mostly the prior, too few levels": list(found.unbounded),
        "sensitive to the priors no less than to the data": list(table.index[decided]),
    }
    details = list(found.messages)
    if source.priors.proper:
        contraction = source.contraction(random_seed=random_seed)
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


def _pulled(source: Source) -> dict[str, list[str]]:
    """Parameters that the priors move from REML or narrow, by compare_reml's flag."""
    fit = reml_fit(marginal_system(source.design))
    if fit is None:
        return {}
    flags = source.compare_reml(Estimate(source.design, fit))["flag"]
    noted = (PULLED_UP, PULLED_DOWN, NARROWED, FAR)
    return {flag: list(flags.index[flags == flag]) for flag in noted}


# --- singularity -----------------------------------------------------------------------


def singularity(source: Source, _: int | None = None) -> Finding:
    """Boundaries that the data allow, dimensions that are negligible, a singular REML fit."""
    found = source.singularity()
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


def loo(source: Source, _: int | None = None) -> Finding:
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
    order: tuple[Severity, ...] = ("alarm", "note", "none")
    return next(severity for severity in order if severity in severities)


TOPIC_CHECKS: dict[Topic, Callable[[Source, int | None], Finding]] = {
    "convergence": convergence,
    "residuals": residuals,
    "influence": influence,
    "sensitivity": sensitivity,
    "singularity": singularity,
    "loo": loo,
}
