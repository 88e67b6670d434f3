"""Each piece of the random part taken out in turn, and tested."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import chdtrc

from bayeslmm.column_types import kind_of
from bayeslmm.comparison.boundary import boundary_p_value
from bayeslmm.data.design import Design, require_random
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.estimation.estimate import Fit, fit_likelihood
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.deletions import random_deletions
from bayeslmm.likelihood.marginal import marginal_system
from bayeslmm.storage.changes import updated_design
from bayeslmm.summaries.estimate_tables import information_criteria

NONE = "<none>"
"""The row of the model itself."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A design and its estimate."""

    design: Design
    fit: Fit

    def changed(self, formula: str) -> Fitted:
        """The model of another formula, fitted to the same rows by the same criterion."""
        design = updated_design(self.design, formula=formula)
        if design.n != self.design.n:
            raise DataError(
                f"{formula!r} has {design.n} rows, the model {self.design.n}: rows with missing "
                "values must be the same in all models."
            )
        return Fitted(design, fit_likelihood(marginal_system(design), likelihood_of(self.fit)))


def likelihood_of(fit: Fit) -> Literal["REML", "ML"]:
    """The criterion of an estimate; refuses posterior modes.

    Raises
    ------
    ValueError
        If it is a "MAP" estimate.
    """
    if fit.method == "MAP":
        raise ValueError(
            "Posterior modes have no likelihood-ratio test: take model.reml() or model.ml()."
        )
    return fit.method


def ranova_table(fitted: Fitted, *, reduce_terms: bool) -> pd.DataFrame:
    """Test of each piece of the random part; see ``estimate.ranova()``."""
    likelihood_of(fitted.fit)
    require_random(fitted.design, "there is none to be taken out")
    if known := [name for name in fitted.design.spec.known if name.startswith(("sd", "cor["))]:
        raise DataError(
            f"{listed(known)} are known (fixed=), and a model without the term has them not: fit "
            "it by itself and compare with lrt()."
        )
    formulas = random_deletions(
        fitted.design.formula, reduce_terms=reduce_terms, factors=_factors(fitted.design)
    )
    rows = [_row(fitted, fitted)]
    rows += [_row(fitted, fitted.changed(formula)) for formula in formulas.values()]
    table = pd.DataFrame(rows, index=pd.Index([NONE, *formulas], name="term"))
    table["df"] = table["df"].astype("Int64")
    table.attrs = {
        "method": fitted.fit.method,
        "formulas": {NONE: fitted.design.formula.source} | formulas,
    }
    return table


def _factors(design: Design) -> frozenset[str]:
    """Variables of the left sides of random-effects terms that are no numbers."""
    names = {name for term in design.formula.random for name in term.left.variables}
    frame = design.sample if isinstance(design, SummarisedDesign) else design.data
    return frozenset(name for name in names if kind_of(frame[name]) != "numbers")


def _row(large: Fitted, small: Fitted) -> dict[str, float]:
    count, aic, _ = information_criteria(small.fit)
    row = {"n_parameters": count, "loglik": small.fit.log_likelihood, "aic": aic}
    empty = {"chisq": np.nan, "df": pd.NA, "p_value": np.nan, "p_boundary": np.nan}
    if small is large:
        return row | empty
    df = information_criteria(large.fit)[0] - count
    chisq = 2.0 * (large.fit.log_likelihood - small.fit.log_likelihood)
    if df < 1:  # no special case, as (1 | g) is none of (0 + x | g)
        return row | empty | {"chisq": chisq, "df": df}
    interior = not small.fit.singular
    boundary = boundary_p_value(small.design, large.design, chisq, df, interior=interior)
    p_value = float(chdtrc(df, max(chisq, 0.0)))
    return row | {"chisq": chisq, "df": df, "p_value": p_value, "p_boundary": boundary}
