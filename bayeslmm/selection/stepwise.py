"""Backward elimination: the random part by likelihood ratios, then the fixed part by F tests."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import pandas as pd

from bayeslmm.data.design import Design
from bayeslmm.effects.tests_of_fixed import deletion_table
from bayeslmm.estimation.estimate import Fit
from bayeslmm.estimation.inference import Inference
from bayeslmm.exceptions import listed
from bayeslmm.selection.random_part import NONE, Fitted, likelihood_of, ranova_table

Judge = Callable[[Design, Fit], Inference]
"""How fixed effects of an estimate are judged."""


@dataclass(frozen=True, slots=True, eq=False)
class Reduction:
    """Terms taken out in turn, and what is left.

    Attributes
    ----------
    table : DataFrame
        One row per term taken out, `eliminated` numbering them, then one per term that stays,
        where it is 0.
    fitted : Fitted
        The model that is left.
    """

    table: pd.DataFrame
    fitted: Fitted


def reduced_random(fitted: Fitted, alpha: float) -> Reduction:
    """Take out the piece of the random part with the largest p-value, while it is above alpha."""
    likelihood_of(fitted.fit)
    rows, gone = [], 0
    while fitted.design.random:
        tests = ranova_table(fitted, reduce_terms=True)
        if not gone:
            rows.append(tests.loc[[NONE]])
        p_values = tests["p_value"]
        if not (p_values > alpha).any():
            rows.append(tests.drop(index=NONE).assign(eliminated=0))
            break
        gone += 1
        worst = p_values.idxmax()
        rows.append(tests.loc[[worst]].assign(eliminated=gone))
        fitted = fitted.changed(tests.attrs["formulas"][worst])
    return Reduction(_joined(rows), fitted)


def reduced_fixed(fitted: Fitted, judge: Judge, alpha: float, keep: Collection[str]) -> Reduction:
    """Take out the term that no other contains with the largest p-value, while it is above alpha.

    Raises
    ------
    ValueError
        If a term to be kept is not there.
    """
    rows, gone = [], 0
    while True:
        tests = deletion_table(fitted.design, judge(fitted.design, fitted.fit))
        if not gone:
            _check_kept(keep, fitted.design)
        p_values = tests["p_value"].drop(index=[term for term in keep if term in tests.index])
        if not (p_values > alpha).any():
            rows.append(tests.assign(eliminated=0))
            return Reduction(_joined(rows), fitted)
        gone += 1
        worst = p_values.idxmax()
        rows.append(tests.loc[[worst]].assign(eliminated=gone))
        fitted = fitted.changed(f"~ . - {worst}")


def _check_kept(keep: Collection[str], design: Design) -> None:
    texts = {part.label: part.text for part in design.formula.right.operands}
    terms = [":".join(texts[label] for label in term) for term in design.formula.right.terms]
    if absent := [term for term in keep if term not in terms]:
        raise ValueError(
            f"keep= names {listed(absent)}; the terms of the fixed part are "
            f"{listed([term for term in terms if term])}."
        )


def _joined(rows: list[pd.DataFrame]) -> pd.DataFrame:
    if not rows:
        return pd.DataFrame()
    table = pd.concat(rows)
    table.insert(0, "eliminated", table.pop("eliminated").astype("Int64"))
    table.attrs = {}
    return table
