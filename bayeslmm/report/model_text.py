"""Rows, cells and footnotes of a table of models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from bayeslmm.comparison.models import check_same_data, check_same_fixed
from bayeslmm.data.design import Design
from bayeslmm.report.columns import GOODNESS, Column, Key
from bayeslmm.report.tables import decimals_of, number, p_value, significant

Statistic = Literal["interval", "std_error", "statistic", "p_value"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)

PARTS = {"fixed": "Fixed effects", "residual": "Residual"}
FIT = "Fit"

MEASURES = {
    "nobs": "Rows",
    "levels": "Levels of {}",
    "icc": "ICC {}",
    "r2": "R² {}",
    "loglik": "Log likelihood",
    "aic": "AIC",
    "bic": "BIC",
    "log_evidence": "Log evidence",
}
WHOLE = {"nobs", "levels"}
SHARES = {"icc", "r2"}
CRITERION_DECIMALS = 2


class Texts:
    """Texts of a table: what the user wants, else what the design says."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels

    def of(self, name: str) -> str:
        """Text of a coefficient, a grouping factor or a measure."""
        return self.labels.get(name, name)

    def row(self, key: Key, terms: Sequence[str]) -> str:
        """Label of the row of a parameter."""
        part, _, term = key
        if part == "residual":
            return self.labels.get("sigma", "σ")
        if part == "fixed":
            return self.of(term)
        kind = term.partition("(")[0]
        return f"{kind}({', '.join(self.of(t) for t in terms)})"

    def measure(self, measure: str, group: str) -> str:
        """Label of the row of a measure of fit."""
        if measure in self.labels:
            return f"{self.labels[measure]} {self.of(group)}".strip()
        return MEASURES[measure].format(self.of(group)).strip()


def parameter_keys(columns: Iterable[Column]) -> list[Key]:
    """Rows of the parameters of all fits: fixed effects, grouping factors, residual."""
    seen: list[Key] = list(
        dict.fromkeys(key for column in columns for key in column.parameters.index)
    )
    groups = list(dict.fromkeys(group for part, group, _ in seen if part == "random"))

    def place(key: Key) -> tuple[int, int, bool]:
        part, group, term = key
        order = ["fixed", "random", "residual"].index(part)
        return order, groups.index(group) if group in groups else 0, term.startswith("cor(")

    return sorted(seen, key=place)


def fit_keys(columns: Mapping[str, Column], chosen: Sequence[str]) -> list[Key]:
    """Rows of the measures of fit that are asked for and known."""
    seen = dict.fromkeys(
        key for column in columns.values() for key in column.goodness.index if key[0] in chosen
    )
    ordered = sorted(seen, key=lambda key: GOODNESS.index(key[0]))
    return [("fit", group, measure) for measure, group in ordered]


Groups = tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


def row_groups(
    columns: Mapping[str, Column],
    chosen: Sequence[str],
    shown: Sequence[Statistic],
    digits: int,
    written: Texts,
) -> Groups:
    """Row groups of the table of text."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    terms = {key: t for column in columns.values() for key, t in column.terms.items()}
    for key in parameter_keys(columns.values()):
        rows = [_row_of(column.parameters, key) for column in columns.values()]
        title = PARTS.get(key[0], f"Random effects by {written.of(key[1])}")
        cells = _cells(rows, shown, digits)
        groups.setdefault(title, []).append((written.row(key, terms[key]), *cells))
    if {column.label for column in columns.values()} - set(columns):
        methods = [column.label for column in columns.values()]
        groups.setdefault(FIT, []).append((written.labels.get("method", "Method"), *methods))
    for _, group, measure in fit_keys(columns, chosen):
        rows = [_row_of(column.goodness, (measure, group)) for column in columns.values()]
        cells = _measure_cells(measure, rows, shown, digits)
        groups.setdefault(FIT, []).append((written.measure(measure, group), *cells))
    return tuple((title, tuple(rows)) for title, rows in groups.items())


def _row_of(table: pd.DataFrame, key: tuple[str, ...]) -> pd.Series | None:
    return table.loc[key] if key in table.index else None


def _cells(
    rows: Sequence[pd.Series | None], shown: Sequence[Statistic], digits: int
) -> tuple[str, ...]:
    """Cells of one row, all at the same decimals."""
    present = [row for row in rows if row is not None]
    errors = [row["std_error"] for row in present]
    decimals = decimals_of(errors, [row["estimate"] for row in present], digits)
    return tuple("" if row is None else _cell(row, shown, decimals, digits) for row in rows)


def _cell(row: pd.Series, shown: Sequence[Statistic], decimals: int | None, digits: int) -> str:
    """An estimate and what stands beside it."""
    parts = [number(row["estimate"], decimals, digits)]
    for name in shown:
        if name == "std_error" and np.isfinite(row["std_error"]):
            parts.append(f"({number(row['std_error'], decimals, digits)})")
        elif name == "interval" and np.isfinite(row["conf_low"]):
            bounds = (number(row[c], decimals, digits) for c in ("conf_low", "conf_high"))
            parts.append(f"[{', '.join(bounds)}]")
        elif name == "statistic" and np.isfinite(row.get("statistic", np.nan)):
            parts.append(f"t = {significant(row['statistic'], digits)}")
        elif name == "p_value" and np.isfinite(row.get("p_value", np.nan)):
            parts.append(p_value(row["p_value"]))
    return " ".join(parts)


def _measure_cells(
    measure: str, rows: Sequence[pd.Series | None], shown: Sequence[Statistic], digits: int
) -> tuple[str, ...]:
    if measure in SHARES:
        return tuple("" if row is None else _cell(row, shown, digits - 1, digits) for row in rows)
    decimals = 0 if measure in WHOLE else CRITERION_DECIMALS
    values = [np.nan if row is None else row["estimate"] for row in rows]
    return tuple(number(value, decimals, digits) for value in values)


def default_caption(columns: Mapping[str, Column]) -> str:
    """Caption that names the responses."""
    responses = dict.fromkeys(column.response for column in columns.values())
    return f"Models of {', '.join(responses)}"


def footnotes(
    columns: Mapping[str, Column], chosen: Sequence[str], shown: Sequence[Statistic]
) -> tuple[str, ...]:
    """What the columns hold and what must not be compared."""
    notes = [_about(name, column, shown) for name, column in columns.items()]
    kinds = {"posteriors" if c.bayesian else c.method for c in columns.values()}
    if "std_error" in shown and (posterior := sorted(kinds & {"posteriors", "MAP"}, reverse=True)):
        notes.append(
            f"In parentheses: standard errors; of {' and '.join(posterior)}, posterior standard "
            "deviations."
        )
    if {"interval", "std_error"} & set(shown) and any(c.at_boundary for c in columns.values()):
        notes.append(
            "A standard deviation or correlation without an interval is at the boundary of its "
            "range, or the data do not determine it."
        )
    errors = {
        name: column.goodness.loc[("log_evidence", ""), "std_error"]
        for name, column in columns.items()
        if ("log_evidence", "") in column.goodness.index and "log_evidence" in chosen
    }
    if errors:
        texts = ", ".join(f"{name} {significant(error, 2)}" for name, error in errors.items())
        notes.append(f"Monte Carlo error of the log evidence: {texts}.")
    return (*notes, *_warnings(columns, chosen))


def _about(name: str, column: Column, shown: Sequence[Statistic]) -> str:
    text = f"{name}: {column.estimand}"
    if "interval" in shown:
        text += f", {column.interval}"
    if column.dropped:
        text += f"; {column.dropped} incomplete rows dropped"
    return f"{text}. {column.formula}"


def _warnings(columns: Mapping[str, Column], chosen: Sequence[str]) -> list[str]:
    """Comparisons along a row of the table that have no meaning."""
    found, all_columns = [], list(columns.values())
    same_data = _all_pass(check_same_data, all_columns)
    if not same_data:
        found.append(
            "The fits are not all of the same rows, response and weights: log likelihoods, AIC, "
            "BIC and log evidence are not comparable."
        )
    by_likelihood = [c for c in all_columns if c.method in ("REML", "ML")]
    if len(by_likelihood) > 1 and {"loglik", "aic", "bic"} & set(chosen):
        if len({c.method for c in by_likelihood}) > 1:
            found.append("Log likelihoods, AIC and BIC of REML and of ML are not comparable.")
        elif (
            same_data
            and by_likelihood[0].method == "REML"
            and not _all_pass(check_same_fixed, by_likelihood)
        ):
            found.append(
                "Log likelihoods, AIC and BIC of REML fits with different fixed effects are not "
                "comparable: fit with ML."
            )
    return found


def _all_pass(check: Callable[[Design, Design], None], columns: Sequence[Column]) -> bool:
    """Whether a check of pairs of models refuses none."""
    first, *others = (column.design for column in columns)
    try:
        for other in others:
            check(first, other)
    except ValueError:
        return False
    return True
