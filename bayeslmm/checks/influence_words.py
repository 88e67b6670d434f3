"""What the influence of rows and levels on an estimate is, in words."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from bayeslmm.summaries.text import counted, listed

FAR = 3.0
"""Size from which on standardised residuals are counted."""

CHANCE_OF_FAR = float(2.0 * stats.norm.sf(FAR))

SUSPECT = 0.05
"""Share of right models of which a row is named for its residual."""

LARGE_ROW_COOK = 1.0
"""Cook's distance of a row above which it is named."""

LARGE_COOK = 4.0
"""Cook's distances above this over the number of cases deserve a look (as in influence.ME)."""

LARGE_DFBETAS = 2.0
"""The same for absolute dfbetas, over the root of the number of cases."""

HIGH_LEVERAGE = 2.0
"""Leverages above this times their mean are called high."""

LARGE_COVRATIO = 3.0
"""Distance of covratio from one, over the number of fixed effects per case, from which a change of
precision is named (Belsley, Kuh, Welsch 1980)."""

LARGE_SD_CHANGE = 0.1
"""Relative change of a standard deviation that is named."""

FEW_LEVELS_SD_CHANGE = float(np.sqrt(2.0))
"""The same over the number of levels, where these are few: two over the root of the number of
levels, as for dfbetas, times the relative standard error of their standard deviation, about one
over the root of twice their number."""

NO_SD = 1e-3
"""Standard deviation over sigma that counts as zero."""

NO_FIXED = (
    "The model has no fixed effects, so that Cook's distances and what else is about them are not "
    "defined."
)


def row_messages(table: pd.DataFrame) -> tuple[str, ...]:
    """Findings in a table of :class:`~bayeslmm.checks.influence.RowInfluence`."""
    n = len(table)
    messages = []
    cook = table["cooks_distance"]
    if cook.isna().all():
        messages.append(NO_FIXED)
    large = cook[cook > LARGE_ROW_COOK].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"{counted(len(large), 'row')} with a Cook's distance above {LARGE_ROW_COOK:g}: "
            f"{listed(large.index, 5)}. Rows of one level act together: look at "
            "check.influence(by=...) too."
        )
    high = table.index[table["leverage"] > HIGH_LEVERAGE * table["leverage"].mean()]
    if len(high):
        messages.append(
            f"{counted(len(high), 'row')} with a leverage above twice the mean: {listed(high, 5)}. "
            "Their covariates are unusual, whatever their response."
        )
    size = table["standardised"].abs()
    extreme = size[size > FAR].sort_values(ascending=False)
    if _more_than_chance(extreme, n):
        messages.append(
            f"{counted(len(extreme), 'row')} more than three standard deviations from the fitted "
            f"value ({n * CHANCE_OF_FAR:.1f} expected): {listed(extreme.index, 5)}."
        )
    found = [message for message in messages if message != NO_FIXED]
    return tuple(messages) if found else (*messages, "No row stands out.")


def _more_than_chance(extreme: pd.Series, n: int) -> bool:
    """Whether residuals beyond three are more, or larger, than those of a right model mostly are.

    Each of the two happens to one right model in forty at most.
    """
    if not len(extreme):
        return False
    larger = float(stats.norm.sf(extreme.iloc[0])) < 0.25 * SUSPECT / n
    return larger or bool(stats.binom.sf(len(extreme) - 1, n, CHANCE_OF_FAR) < 0.5 * SUSPECT)


def group_messages(
    table: pd.DataFrame,
    dfbetas: pd.DataFrame,
    estimates: pd.DataFrame,
    change: pd.DataFrame,
    relative_change: pd.DataFrame,
) -> tuple[str, ...]:
    """Findings in the tables of a :class:`~bayeslmm.checks.influence.GroupInfluence`."""
    messages = [
        *_fixed_messages(table, dfbetas, estimates),
        *_precision_messages(table["covratio"], dfbetas.shape[1]),
        *_spread_messages(estimates, change, relative_change),
    ]
    new = table.index[table["singular"].astype(bool)]
    if len(new):
        messages.append(f"The refit without {listed(new, 5)} is singular.")
    messages = messages or ["No level stands out."]
    return (*messages, NO_FIXED) if not dfbetas.shape[1] else tuple(messages)


def _fixed_messages(
    table: pd.DataFrame, dfbetas: pd.DataFrame, estimates: pd.DataFrame
) -> list[str]:
    """How levels move the fixed effects."""
    messages, m = [], len(table)
    cook = table["cooks_distance"]
    large = cook[cook > LARGE_COOK / m].sort_values(ascending=False)
    if len(large):
        messages.append(
            f"Without {listed(large.index, 5)} the fixed effects move most (Cook's distance above "
            f"{LARGE_COOK:g}/{m})."
        )
    limit = LARGE_DFBETAS / np.sqrt(m)
    for coef in dfbetas:
        moved = dfbetas[coef].abs()
        names = moved[moved > limit].sort_values(ascending=False).index
        if len(names):
            worst = names[0]
            messages.append(
                f"{coef}: absolute dfbetas above {limit:.2f} without {listed(names, 5)}; without "
                f"{worst} the estimate is {estimates.loc[worst, f'beta[{coef}]']:.4g}."
            )
    lost = table.index[dfbetas.isna().any(axis=1)]
    if len(lost):
        messages.append(
            f"Without {listed(lost, 5)} the rest of the data does not determine every fixed effect."
        )
    return messages


def _precision_messages(covratio: pd.Series, p: int) -> list[str]:
    """How levels change the covariance matrix of the fixed effects."""
    limit = LARGE_COVRATIO * p / len(covratio)
    messages = []
    for found, word in (
        (covratio[covratio > 1.0 + limit].sort_values(ascending=False), "less"),
        (covratio[covratio < 1.0 - limit].sort_values(), "more"),
    ):
        if len(found):
            messages.append(
                f"Without {listed(found.index, 5)} the fixed effects are estimated {word} "
                f"precisely (covratio more than {limit:.2g} from one; it is {found.iloc[0]:.3g} "
                f"without {found.index[0]})."
            )
    return messages


def _spread_messages(
    estimates: pd.DataFrame, change: pd.DataFrame, relative_change: pd.DataFrame
) -> list[str]:
    """How levels change the standard deviations."""
    limit = max(LARGE_SD_CHANGE, FEW_LEVELS_SD_CHANGE / len(estimates))
    messages = []
    for label in relative_change:
        whole = (estimates[label] - change[label]).max()
        sigma = (estimates["sigma"] - change["sigma"]).max()
        without = estimates[label]
        if whole > NO_SD * sigma:
            moved = relative_change[label].abs()
            found = moved[moved > limit].sort_values(ascending=False).index
            what = f"changes by more than {100.0 * limit:.0f} %"
        else:
            found = without[without > NO_SD * sigma].sort_values(ascending=False).index
            what = "is no longer zero"
        if len(found):
            messages.append(
                f"{label} {what} without {listed(found, 5)}; without {found[0]} the estimate is "
                f"{without[found[0]]:.4g}, and {whole:.4g} with all levels."
            )
    return messages
