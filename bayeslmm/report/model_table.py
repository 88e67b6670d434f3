"""One or several fits side by side, as a table for a paper."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
import pandas as pd

from bayeslmm.comparison.models import check_same_data, check_same_fixed
from bayeslmm.data.design import Design
from bayeslmm.exceptions import check_choice
from bayeslmm.report.broom import GOODNESS, Column, Key
from bayeslmm.report.tables import (
    Format,
    Markup,
    TextTable,
    decimals_of,
    number,
    p_value,
    render,
    significant,
)
from bayeslmm.summaries import is_posterior
from bayeslmm.summaries.parameters import probability
from bayeslmm.summaries.posterior_tables import interval_defaults

LEVEL = 0.95
"""Coverage of the intervals of a table of estimates alone."""

FORMATS = ("markdown", "html", "latex", "frame")


@runtime_checkable
class Tabulated(Protocol):
    """What is needed of a fit: its column of the table."""

    def _column(self, level: float) -> Column:
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
    level: float | None = None,
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
        REML and ML fits; a posterior and its mode (MAP) have none.
    digits : int
        Significant digits of the smallest standard error of a row; all numbers of the row have as
        many decimals. The data frame is not rounded.
    labels : mapping of str to str, optional
        Other texts for coefficients (``"Days"``), grouping factors (``"Subject"``) and measures of
        fit (``"nobs"``).
    goodness : sequence of str, optional
        Which measures of fit, of "nobs", "levels", "icc", "r2", "loglik", "aic", "bic" and
        "log_evidence"; all that are known by default.
    level, prob : float, optional
        Coverage of all intervals of the table, confidence and credible ones alike, by either name.
        By default ArviZ's ``rcParams["stats.ci_prob"]`` where a posterior is among the fits, else
        0.95. The heading of each column states it.
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
        If an option is unknown, no fit is given, or `level` and `prob` differ.

    Notes
    -----
    Footnotes say what each column holds: a confidence interval and a credible interval answer
    different questions. They also say where likelihoods cannot be compared, by the rules of
    :func:`bayeslmm.compare`: other rows, response or weights, REML with other fixed effects. A
    posterior has its mean and standard deviation where an estimate has its value and standard
    error. The ICC is each grouping factor's share of the variance given the fixed effects.

    References
    ----------
    Follows R's ``modelsummary::modelsummary`` and ``sjPlot::tab_model``.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> model = blm.LMM("Yield ~ 1 + (1 | Batch)", blm.load_dataset("Dyestuff"))
    >>> print(blm.model_table({"REML": model.reml()}, goodness=["nobs"]))
    **Models of Yield**
    <BLANKLINE>
    | Term | REML [95 %] |
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
    named = _named(fits)
    level = common_level(list(named.values()), level, prob)
    columns = columns_of(named, level)
    chosen = GOODNESS if goodness is None else tuple(goodness)
    if format == "frame":
        return _frame(columns, chosen, level)
    percent = f" [{100 * level:g} %]" if "interval" in shown else ""
    table = TextTable(
        caption=default_caption(columns) if caption is None else caption,
        header=("Term", *(f"{name}{percent}" for name in columns)),
        groups=row_groups(columns, chosen, shown, digits, Texts(labels or {})),
        notes=footnotes(columns, chosen, shown),
    )
    return render(table, format)


def table_text(fit: Any, *, format: Format, **options: Any) -> Markup:
    """Table of one fit as text."""
    table = model_table(fit, format=format, **options)
    if isinstance(table, pd.DataFrame):
        raise AssertionError("a table of text was asked for")
    return table


def columns_of(named: Mapping[str | int, Tabulated], level: float) -> dict[str, Column]:
    """Columns of the fits by their headings, all with intervals of one coverage."""
    found: dict[str, Column] = {}
    for name, fit in named.items():
        column = fit._column(level)
        found[_free(found, column.label if isinstance(name, int) else name)] = column
    return found


def common_level(fits: Sequence[Any], level: float | None, prob: float | None) -> float:
    """The one coverage of the intervals of a table.

    Raises
    ------
    ValueError
        If it is no probability, or two different ones are given.
    """
    given = [
        probability(value, name)
        for name, value in (("level", level), ("prob", prob))
        if value is not None
    ]
    if len(set(given)) > 1:
        raise ValueError(
            f"level={level!r} and prob={prob!r}: all intervals of a table have one coverage, so "
            "give one of them."
        )
    if given:
        return given[0]
    posterior = any(map(is_posterior, fits))
    return interval_defaults()[0] if posterior else LEVEL


def _named(fits: Any) -> dict[str | int, Tabulated]:
    """Fits by the names that the user gave them, or by their places."""
    if isinstance(fits, Tabulated):
        fits = [fits]
    listed = isinstance(fits, Sequence) and not isinstance(fits, str)
    named: dict[str | int, Any] = (
        {str(name): fit for name, fit in fits.items()}
        if isinstance(fits, Mapping)
        else dict(enumerate(fits if listed else [fits]))
    )
    for fit in named.values():
        if not isinstance(fit, Tabulated):
            raise TypeError(
                f"An estimate or a posterior is expected, got {type(fit).__name__}: "
                'model_table({"REML": model.reml(), "Bayes": model.fit()}).'
            )
    if not named:
        raise ValueError("No fit is given: at least one estimate or posterior is expected.")
    return named


def _free(taken: Mapping[str, Any], name: str) -> str:
    heading, count = name, 1
    while heading in taken:
        count += 1
        heading = f"{name} {count}"
    return heading


def _checked(format: Any, statistic: Any, digits: object, goodness: Any) -> tuple[Statistic, ...]:
    check_choice(format, FORMATS, "format")
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


def _frame(columns: Mapping[str, Column], chosen: Sequence[str], level: float) -> pd.DataFrame:
    """Numbers of all fits, rows in the order of the table."""
    parts = []
    for column in columns.values():
        good = column.goodness[column.goodness.index.get_level_values(0).isin(chosen)]
        keys = [("fit", group, measure) for measure, group in good.index]
        index = pd.MultiIndex.from_tuples(keys, names=column.parameters.index.names)
        whole = good.set_axis(index, axis=0).reindex(columns=column.parameters.columns)
        parts.append(pd.concat([column.parameters, whole]) if len(good) else column.parameters)
    keys = [*parameter_keys(columns.values()), *fit_keys(columns, chosen)]
    index = pd.MultiIndex.from_tuples(keys, names=parts[0].index.names)
    wide = [part.reindex(index) for part in parts]
    table = pd.concat(wide, axis=1, keys=list(columns), names=["model", "statistic"])
    table.attrs["level"] = level
    return table


# --- rows, cells and footnotes of a table of models ---------------------------------

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
    responses = dict.fromkeys(column.design.response for column in columns.values())
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
    if dropped := column.design.n_dropped:
        text += f"; {dropped} incomplete rows dropped"
    return f"{text}. {column.design.formula.source}"


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
