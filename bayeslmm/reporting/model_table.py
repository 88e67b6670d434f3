"""One or several fits side by side, as a table for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd

from bayeslmm.reporting.columns import GOODNESS, Column
from bayeslmm.reporting.markup import Format, Markup, TextTable, render
from bayeslmm.reporting.numbers import decimals_of, number, p_value, significant

Statistic = Literal["interval", "std_error", "statistic", "p_value"]
STATISTICS: tuple[Statistic, ...] = get_args(Statistic)
FORMATS = ("markdown", "html", "latex", "frame")

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


@runtime_checkable
class Tabulated(Protocol):
    """What is needed of a fit: its column of the table."""

    def _column(self, level: float, prob: float | None) -> Column:
        """Numbers of the fit."""
        ...


def model_table(
    fits: Any,
    *,
    format: Literal["markdown", "html", "latex", "frame"] = "markdown",
    statistic: Statistic | Sequence[Statistic] | None = "interval",
    digits: int = 3,
    labels: Mapping[str, str] | None = None,
    goodness: Sequence[str] | None = None,
    level: float = 0.95,
    prob: float | None = None,
    caption: str | None = None,
) -> Markup | pd.DataFrame:
    """Put one or several fits side by side: estimates and posteriors in one table.

    Parameters
    ----------
    fits : Estimate, Posterior, or mapping of str to them, or sequence of them
        The fits; the keys of a mapping head the columns.
    format : {"markdown", "html", "latex", "frame"}
        Language of the table: Markdown, HTML with caption and scoped headings, LaTeX for the
        package booktabs, or a data frame of the numbers at full precision.
    statistic : {"interval", "std_error", "statistic", "p_value"}, or several of them, or None
        What stands beside each estimate. t statistics and p-values are those of fixed effects of
        REML and ML fits; a posterior has none.
    digits : int
        Significant digits of the smallest standard error of a row; all numbers of the row have as
        many decimals. The data frame is not rounded.
    labels : mapping of str to str, optional
        Other texts for coefficients (``"Days"``), grouping factors (``"Subject"``) and measures of
        fit (``"nobs"``).
    goodness : sequence of str, optional
        Which measures of fit, of "nobs", "levels", "icc", "r2", "loglik", "aic", "bic" and
        "log_evidence"; all that are known by default.
    level : float
        Coverage of confidence intervals.
    prob : float, optional
        Probability of credible intervals; ArviZ's ``rcParams["stats.ci_prob"]`` by default.
    caption : str, optional
        Caption; names the response by default.

    Returns
    -------
    Markup or pandas.DataFrame
        A string that notebooks show as a table; or, for "frame", rows by part, group and term and
        columns by model and statistic. Rows are on the scale of the response: standard deviations
        and correlations, not variances.

    Raises
    ------
    TypeError
        If something else than a fit is given.
    ValueError
        If an option is unknown, or no fit is given.

    Notes
    -----
    Footnotes say what each column holds: a confidence interval and a credible interval answer
    different questions. A posterior has its mean and standard deviation where an estimate has its
    value and standard error. The ICC is each grouping factor's share of the variance given the
    fixed effects.

    References
    ----------
    Follows R's ``modelsummary::modelsummary`` and ``sjPlot::tab_model``.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> from bayeslmm.reporting.model_table import model_table
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> print(model_table({"REML": model.reml()}, goodness=["nobs"]))
    **Models of Yield**
    <BLANKLINE>
    | Term | REML |
    | --- | ---: |
    | **Fixed effects** |  |
    | Intercept | 1527.5 [1477.7, 1577.3] |
    | **Random effects by Batch** |  |
    | sd(Intercept) | 42.0 [18.9, 93.1] |
    | **Residual** |  |
    | σ | 49.51 [37.31, 65.70] |
    | **Fit** |  |
    | Rows | 30 |
    <BLANKLINE>
    ...
    """
    shown = _checked(format, statistic, digits, goodness)
    columns = {name: fit._column(level, prob) for name, fit in named_fits(fits).items()}
    chosen = GOODNESS if goodness is None else tuple(goodness)
    if format == "frame":
        return _frame(columns, chosen)
    table = TextTable(
        caption=_caption(columns) if caption is None else caption,
        header=("Term", *columns),
        groups=_groups(columns, chosen, shown, digits, Texts(labels or {})),
        notes=_notes(columns, chosen, shown),
    )
    return render(table, format)


def table_text(fit: Any, *, format: Format, **options: Any) -> Markup:
    """Table of one fit as text."""
    table = model_table(fit, format=format, **options)
    if isinstance(table, pd.DataFrame):
        raise AssertionError("a table of text was asked for")
    return table


class Texts:
    """Texts of a table: what the user wants, else what the design says."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self.labels = labels

    def of(self, name: str) -> str:
        """Text of a coefficient, a grouping factor or a measure."""
        return self.labels.get(name, name)

    def row(self, key: tuple[str, str, str], terms: Sequence[str]) -> str:
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


def named_fits(fits: Any) -> dict[str, Tabulated]:
    """Fits by the headings of their columns.

    Raises
    ------
    TypeError
        If something else than a fit is given.
    ValueError
        If no fit is given.
    """
    if isinstance(fits, Tabulated):
        fits = [fits]
    pairs = fits.items() if isinstance(fits, Mapping) else [(None, fit) for fit in _listed(fits)]
    found: dict[str, Tabulated] = {}
    for name, fit in pairs:
        if not isinstance(fit, Tabulated):
            raise TypeError(
                f"An estimate or a posterior is expected, got {type(fit).__name__}: "
                'model_table({"REML": model.reml(), "Bayes": model.fit()}).'
            )
        found[_free(found, getattr(fit, "method", "") if name is None else str(name))] = fit
    if not found:
        raise ValueError("No fit is given: at least one estimate or posterior is expected.")
    return found


def _listed(fits: Any) -> Sequence[Any]:
    return list(fits) if isinstance(fits, Sequence) and not isinstance(fits, str) else [fits]


def _free(taken: Mapping[str, Any], name: str) -> str:
    heading, count = name, 1
    while heading in taken:
        count += 1
        heading = f"{name} {count}"
    return heading


def _checked(format: Any, statistic: Any, digits: object, goodness: Any) -> tuple[Statistic, ...]:
    if format not in FORMATS:
        raise ValueError(f"format={format!r}: one of {', '.join(map(repr, FORMATS))} is expected.")
    if (
        isinstance(digits, bool)
        or not isinstance(digits, Integral)
        or int(digits) not in range(1, 11)
    ):
        raise ValueError(f"digits={digits!r}: a whole number from 1 to 10 is expected.")
    shown = (statistic,) if isinstance(statistic, str) else tuple(statistic or ())
    if unknown := [name for name in shown if name not in STATISTICS]:
        allowed = ", ".join(map(repr, STATISTICS))
        raise ValueError(f"statistic={unknown!r}: of {allowed} is expected, or None.")
    if isinstance(goodness, str) or not set(goodness or ()) <= set(GOODNESS):
        allowed = ", ".join(map(repr, GOODNESS))
        raise ValueError(f"goodness={goodness!r}: a list of {allowed} is expected.")
    return shown


def _frame(columns: Mapping[str, Column], chosen: Sequence[str]) -> pd.DataFrame:
    """Numbers of all fits, rows in the order of the table."""
    parts = []
    for column in columns.values():
        good = column.goodness[column.goodness.index.get_level_values(0).isin(chosen)]
        keys = [("fit", group, measure) for measure, group in good.index]
        index = pd.MultiIndex.from_tuples(keys, names=column.parameters.index.names)
        whole = good.set_axis(index, axis=0).reindex(columns=column.parameters.columns)
        parts.append(pd.concat([column.parameters, whole]) if len(good) else column.parameters)
    keys = [*parameter_keys(columns.values()), *_fit_keys(columns, chosen)]
    index = pd.MultiIndex.from_tuples(keys, names=parts[0].index.names)
    wide = [part.reindex(index) for part in parts]
    return pd.concat(wide, axis=1, keys=list(columns), names=["model", "statistic"])


def parameter_keys(columns: Any) -> list[tuple[str, str, str]]:
    """Rows of the parameters of all fits: fixed effects, grouping factors, residual."""
    seen = list(dict.fromkeys(key for column in columns for key in column.parameters.index))
    groups = list(dict.fromkeys(group for part, group, _ in seen if part == "random"))

    def place(key: tuple[str, str, str]) -> tuple[int, int, bool]:
        part, group, term = key
        order = ["fixed", "random", "residual"].index(part)
        return order, groups.index(group) if group in groups else 0, term.startswith("cor(")

    return sorted(seen, key=place)


def _fit_keys(columns: Mapping[str, Column], chosen: Sequence[str]) -> list[tuple[str, str, str]]:
    seen = dict.fromkeys(
        key for column in columns.values() for key in column.goodness.index if key[0] in chosen
    )
    ordered = sorted(seen, key=lambda key: GOODNESS.index(key[0]))
    return [("fit", group, measure) for measure, group in ordered]


Groups = tuple[tuple[str, tuple[tuple[str, ...], ...]], ...]


def _groups(
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
    if len({column.method for column in columns.values()} - set(columns)) > 0:
        methods = [column.label for column in columns.values()]
        groups.setdefault(FIT, []).append((written.labels.get("method", "Method"), *methods))
    for _, group, measure in _fit_keys(columns, chosen):
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


def _caption(columns: Mapping[str, Column]) -> str:
    responses = dict.fromkeys(column.response for column in columns.values())
    return f"Models of {', '.join(responses)}"


def _notes(
    columns: Mapping[str, Column], chosen: Sequence[str], shown: Sequence[Statistic]
) -> tuple[str, ...]:
    """What the columns hold and what must not be compared."""
    notes = [_about(name, column, shown) for name, column in columns.items()]
    if "std_error" in shown and any(c.bayesian for c in columns.values()):
        notes.append(
            "In parentheses: standard errors; of posteriors, posterior standard deviations."
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
    rows = {int(c.goodness.loc[("nobs", ""), "estimate"]) for c in all_columns}
    if len({c.response for c in all_columns}) > 1 or len(rows) > 1:
        found.append(
            "The fits are not of the same rows and response: log likelihoods, AIC, BIC and log "
            "evidence are not comparable."
        )
    by_likelihood = [c for c in all_columns if c.method in ("REML", "ML")]
    if len(by_likelihood) > 1 and {"loglik", "aic", "bic"} & set(chosen):
        fixed = {c.fixed_terms for c in by_likelihood}
        if len({c.method for c in by_likelihood}) > 1:
            found.append("Log likelihoods, AIC and BIC of REML and of ML are not comparable.")
        elif by_likelihood[0].method == "REML" and len(fixed) > 1:
            found.append(
                "Log likelihoods, AIC and BIC of REML fits with different fixed effects are not "
                "comparable: fit with ML."
            )
    return found
