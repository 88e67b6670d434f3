"""Models and results in words: printed forms in the manner of lme4's, lists, counts, shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd

from bayeslmm.covariance.kinds import structure_of
from bayeslmm.covariance.structure import explained, sds_and_correlation, zero_sds
from bayeslmm.data.design import Design, RandomFactor
from bayeslmm.estimation.estimate import SINGULAR, Fit
from bayeslmm.priors.defaults import labels_of
from bayeslmm.priors.fixed import fixed_by_slot
from bayeslmm.priors.keys import slot_names
from bayeslmm.priors.record import sd_labels
from bayeslmm.summaries.parameters import (
    covariance_parameters,
    known_labels,
    residual_parameters,
)

DIGITS = 4


def random_effects_block(
    design: Design,
    sds: Mapping[str, pd.Series],
    corrs: Mapping[str, pd.DataFrame],
    residuals: Sequence[float],
) -> str:
    """lme4's table of standard deviations and correlations; blank where they are not modelled."""
    rows: list[list[str]] = [["Groups", "Name", "Std.Dev.", "Corr"]]
    known = known_labels(design)
    for factor in design.random:
        corr = corrs[factor.name].to_numpy()
        parts = zip(factor.blocks, structure_of(factor).parts, strict=True)
        block_of = {i: block if part.n_cors else () for block, part in parts for i in block}
        for i, (name, sd) in enumerate(sds[factor.name].items()):
            cells = [f"{corr[i, j]:5.2f}" if j in block_of[i] else " " * 5 for j in range(i)]
            group = factor.name if i == 0 else ""
            cells += ["fixed"] if f"sd[{factor.name}, {name}]" in known else []
            rows.append([group, str(name), number(sd), " ".join(cells)])
    for i, (row, value) in enumerate(zip(residual_parameters(design), residuals, strict=True)):
        name = "".join(row.terms) if row.kind == "sigma" else row.label
        mark = "fixed" if row.label in known else ""
        rows.append(["Residual" if i == 0 else "", name, number(value), mark])
    return _aligned(rows, right=(2,))


def number(value: float) -> str:
    """A number at the width of a table: four significant digits or fixed point."""
    if not np.isfinite(value):
        return str(value)
    size = abs(value)
    if size != 0 and (size < 1e-4 or size >= 1e7):
        return f"{value:.{DIGITS - 1}e}"
    decimals = max(0, DIGITS - 1 - int(np.floor(np.log10(size)))) if size > 0 else 1
    return f"{value:.{min(decimals, 6)}f}"


def groups_line(design: Design) -> str:
    """Rows, dropped rows and levels, as lme4's last line."""
    counts = "; ".join(f"{factor.name}, {_level_count(factor)}" for factor in design.random)
    groups = f", groups: {counts}" if counts else ""
    return f"Number of obs: {design.n}{design.not_used}{groups}"


def model_name(design: Design) -> str:
    """What the model is, with or without random effects."""
    return "Linear mixed model" if design.random else "Linear model"


def covariance_heading(design: Design) -> str:
    """Heading of the table of standard deviations and correlations."""
    return "Random effects" if design.random else "Residuals"


def _level_count(factor: RandomFactor) -> str:
    if factor.relationship is None:
        return str(factor.n_levels)
    with_rows = np.count_nonzero(factor.counts())
    rest = "" if with_rows == factor.n_levels else f", {with_rows} with rows"
    return f"{factor.n_levels} (related{rest})"


def residual_lines(design: Design) -> list[str]:
    """What residuals are, where they are not normal with one standard deviation."""
    spec = design.spec
    if spec.conditional is None:
        return []
    name = "Student t" if spec.family == "student" else "normal"
    scale = "" if spec.scale is None else f", log(sigma) {spec.scale.formula.source}"
    return [f"Residuals: {name}{scale}"]


def design_notes(design: Design) -> list[str]:
    """What was changed on the way from data to design."""
    notes = []
    if design.aliased:
        names = ", ".join(design.aliased)
        notes = [f"Fixed-effects columns dropped, linear combinations of earlier ones: {names}."]
    if known := known_values(design):
        notes.append(f"Known, not estimated: {', '.join(known)}.")
    return notes


def known_values(design: Design) -> list[str]:
    """Covariance parameters that are held, with their values: "sigma fixed at 1"."""
    labels = labels_of(design.spec)
    names = slot_names(labels)
    known = fixed_by_slot(labels, design.spec)
    return [f"{name} {known[slot]}" for slot, name in names.items() if slot in known]


def contrast_notes(design: Design) -> list[str]:
    """Ordered categories that are treatment-coded, where a user of R expects polynomials."""
    parts = [part for coef in design.coefs for part in coef.split(":")]
    names = [
        str(name)
        for name, column in design.sample.items()
        if isinstance(column.dtype, pd.CategoricalDtype)
        and column.dtype.ordered
        and any(part.startswith(f"{name}[T.") for part in parts)
    ]
    if not names:
        return []
    return [
        f"Ordered categories with treatment contrasts: {', '.join(names)} (R's are "
        f"C({names[0]}, contr.poly))."
    ]


def singular_notes(fit: Fit, design: Design) -> list[str]:
    """A singular fit in words: which standard deviation is zero, which correlation is one."""
    notes = []
    products = fit.plan.products
    for factor, structure, t, a in zip(
        design.random, products.structures, fit.factors, products.basis.random, strict=True
    ):
        corr = sds_and_correlation(t)[1]
        working = np.linalg.solve(a, t)
        zero = np.flatnonzero(zero_sds(working, SINGULAR)).tolist()
        dependent = explained(working, SINGULAR)
        names = sd_labels(factor.name, factor.coefs, structure)
        for place in dict.fromkeys(structure.sd_places[zero].tolist()):
            notes.append(f"{names[place]} is estimated at zero.")
        for block in factor.blocks:
            kept = [i for i in block if i not in zero]
            if dependent[kept].any():
                notes.append(
                    _dependence(
                        factor.name, [factor.coefs[i] for i in kept], corr[np.ix_(kept, kept)]
                    )
                )
    if notes:
        notes.append(
            "The fit is singular: the estimate is on the boundary of the parameter space. "
            "That is no failure; a posterior shows which values the data allow."
        )
    return notes


def unidentified_notes(fit: Fit, design: Design) -> list[str]:
    """Parameters that the likelihood does not determine, though they are not at a boundary."""
    labels = [parameter.label for parameter in covariance_parameters(design)]
    lost = np.isfinite(fit.parameters) & np.isnan(np.diag(fit.parameter_cov))
    if fit.singular or not fit.optimum.converged or not lost.any():
        return []
    names = ", ".join(label for label, flag in zip(labels, lost, strict=True) if flag)
    return [
        f"The data do not determine {names}: the likelihood is flat there, and the estimate is "
        "where the search began. Look for a grouping factor that is also a fixed effect, or two "
        "that divide the rows alike."
    ]


def estimate_notes(fit: Fit, design: Design) -> tuple[str, ...]:
    """Everything a reader of an estimate should know."""
    notes = design_notes(design) + singular_notes(fit, design) + unidentified_notes(fit, design)
    if fit.given_beta:
        notes.append(
            "Priors on fixed effects are neither all normal nor all flat, so beta was "
            "maximised together with the covariance parameters: they are those of ML rather "
            "than REML."
        )
    if not fit.optimum.converged:
        notes.append(f"The optimiser did not converge: {fit.optimum.message}.")
    return tuple(notes)


def fit_text(
    heading: Sequence[str],
    design: Design,
    title: str,
    random: str,
    fixed: pd.DataFrame,
    notes: Sequence[str],
) -> str:
    """Printed form of a fit: heading, formula, random effects, groups, fixed effects, notes."""
    first, *rest = heading
    parts = [first, f"Formula: {design.formula.source}", *residual_lines(design), *rest]
    parts += [title, random]
    parts += [groups_line(design), "Fixed effects:", frame_text(fixed.rename_axis(None)), *notes]
    return "\n".join(parts)


def _dependence(group: str, coefs: Sequence[str], corr: np.ndarray) -> str:
    if len(coefs) == 2:
        sign = "+1" if corr[0, 1] > 0 else "-1"
        return f"cor[{group}, {coefs[0]}, {coefs[1]}] is estimated at {sign}."
    return (
        f"The covariance matrix of {', '.join(coefs)} by {group} is estimated at a rank below "
        f"{len(coefs)}: their random effects are linearly dependent."
    )


def _aligned(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " + " ".join(cells)).rstrip())
    return "\n".join(lines)


def frame_text(frame: pd.DataFrame) -> str:
    """A data frame at four significant digits."""
    if frame.empty:
        return " none"
    return frame.to_string(formatters={c: _cell for c in frame.columns}, index_names=False)


def _cell(value: object) -> str:
    if isinstance(value, float | np.floating):
        return number(float(value))
    return str(value)


def html_page(heading: str, table: pd.DataFrame, notes: Sequence[str]) -> str:
    """HTML fragment: heading lines, a table and notes."""
    lines = "<br>".join(escape(line) for line in heading.strip().splitlines())
    return f"<p>{lines}</p>{_html_table(table)}{_html_list(notes)}"


def _html_table(table: pd.DataFrame) -> str:
    return str(table.to_html(float_format=number, na_rep="", border=0))


def _html_list(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def posterior_notes(
    attrs: Mapping[Any, Any], *, beta_sampled: bool, has_effects: bool
) -> Iterator[str]:
    """What a reader should know about how draws were made."""
    if attrs["method"] == "laplace" and beta_sampled:
        yield (
            "Priors on fixed effects are neither all normal nor all flat, so the Laplace "
            "approximation is joint in beta and its standard deviations are too small."
        )
    if not has_effects:
        yield (
            "Draws of the random effects are not stored, only their posterior means, "
            "standard deviations and quantiles; draw_u() draws those of chosen levels."
        )
    if "fallback" in attrs:
        yield f"Sampled with NUTS, because the collapsed sampler refused: {attrs['fallback']}"


# --- lists, counts and shares as they are written in sentences ----------------------

MOST = 12
"""Names that are written out in a sentence."""


def listed(names: Iterable[object], most: int = MOST) -> str:
    """Names in a sentence: "a, b and c"; the first ones and a count where there are many."""
    words = [str(name) for name in names]
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most:,} more"
    if len(words) < 2:
        return words[0] if words else "none"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def counted(count: int, noun: str) -> str:
    """A count with its noun in the right number: "1 row", "1,200 rows"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def percent(share: float) -> str:
    """A share in words that never rounds a possible event to 0 % or 100 %."""
    if not np.isfinite(share):
        return "unknown"
    if 0.0 < share < 0.001:
        return "below 0.1 %"
    if 0.999 < share < 1.0:
        return "above 99.9 %"
    decimals = 1 if 0.0 < min(share, 1.0 - share) < 0.1 else 0
    return f"{100.0 * share:.{decimals}f} %"


def coverage(prob: float) -> str:
    """A nominal probability in per cent: "95 %", without a line break before the sign."""
    return f"{100.0 * prob:g}\N{NO-BREAK SPACE}%"


# --- results made of tables and sentences -------------------------------------------

WIDTH = 88
"""Columns to which printed sentences are wrapped."""


class Report:
    """A result made of tables and findings in words: prints both, also in notebooks."""

    __slots__ = ()

    @property
    def heading(self) -> str:
        """First line of the printed form."""
        raise NotImplementedError

    @property
    def messages(self) -> tuple[str, ...]:
        """Findings and advice, a sentence or two each."""
        raise NotImplementedError

    def _tables(self) -> Mapping[str, pd.DataFrame]:
        raise NotImplementedError

    def __str__(self) -> str:
        return report_text(self.heading, self._tables(), self.messages)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return report_html(self.heading, self._tables(), self.messages)


def report_text(heading: str, tables: Mapping[str, pd.DataFrame], messages: Sequence[str]) -> str:
    """Heading, tables at four significant digits and messages as wrapped paragraphs."""
    parts = [heading]
    for title, table in tables.items():
        if len(table):
            parts += ["", title, _frame_text(table)]
    if messages:
        parts.append("")
    parts += [fill(line, WIDTH, initial_indent="- ", subsequent_indent="  ") for line in messages]
    return "\n".join(parts)


def report_html(heading: str, tables: Mapping[str, pd.DataFrame], messages: Sequence[str]) -> str:
    """HTML fragment of the same."""
    body = "".join(
        f"<p>{escape(title)}</p>{_html_table(table)}"
        for title, table in tables.items()
        if len(table)
    )
    return f"<p>{escape(heading)}</p>{body}{_html_list(messages)}"


def _frame_text(table: pd.DataFrame) -> str:
    return table.to_string(float_format=number, na_rep="", index_names=table.index.nlevels > 1)
