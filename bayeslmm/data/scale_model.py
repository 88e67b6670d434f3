"""Predictors of the log residual scale: ``log sigma_i = W_i gamma + Z_i v`` on data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.frames import read_only
from bayeslmm.data.grouping import GroupingFactor
from bayeslmm.data.inputs import check_column_scales, check_fixed_factors, check_labels, check_rows
from bayeslmm.data.random_factors import FactorSpec, RandomFactor
from bayeslmm.data.random_terms import other_rows, random_factors
from bayeslmm.exceptions import FormulaError
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import ScaleFormula
from bayeslmm.formula.matrices import Encoding, evaluate, reevaluate
from bayeslmm.formula.rank import RowSpace, row_space
from bayeslmm.formula.terms import Side
from bayeslmm.schema import group_keys

Array = NDArray[np.float64]

INTERCEPT = "Intercept"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScaleRows:
    """What a model of the residual scale needs of n rows.

    Attributes
    ----------
    W : ndarray (n, q)
        Covariates of the coefficients gamma.
    random : tuple of RandomFactor
        Grouping factors of the random effects v.
    """

    W: Array
    random: tuple[RandomFactor, ...]

    def take(self, rows: NDArray[np.intp]) -> ScaleRows:
        """Some of the rows."""
        return ScaleRows(W=self.W[rows], random=tuple(f.take(rows) for f in self.random))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScaleSpec:
    """A model of the residual scale without rows.

    Attributes
    ----------
    formula : ScaleFormula
    fixed : RowSpace
        Labels of the q coefficients, the intercept first.
    means : ndarray (q,)
        Column means of W in the rows of the model, at which the prior of sigma is meant.
    random : tuple of FactorSpec
        Their keys start with ``sigma_``.
    encodings : mapping of Side to Encoding
        How the columns are evaluated on other data.
    """

    formula: ScaleFormula
    fixed: RowSpace
    means: Array
    random: tuple[FactorSpec, ...]
    encodings: Mapping[Side, Encoding]

    @property
    def coefs(self) -> tuple[str, ...]:
        """Labels (q,) of the coefficients."""
        return self.fixed.coefs

    def predictors(self, *, groups: bool) -> frozenset[str]:
        """Variables, with those of the grouping factors if wanted."""
        sides = [self.formula.right, *(term.left for term in self.formula.random)]
        found = frozenset[str]().union(*(side.variables for side in sides))
        return found | self.formula.grouping if groups else found

    def rows(self, frame: pd.DataFrame) -> ScaleRows:
        """Evaluate the columns on other complete rows.

        Their levels may be new; without a grouping variable all rows are of one new level.
        """
        there = set(frame.columns)
        variables = Variables(frame)
        columns = {side: reevaluate(own, variables) for side, own in self.encodings.items()}
        return ScaleRows(
            W=read_only(self.fixed.full_rank(columns[self.formula.right].values)),
            random=tuple(
                other_rows(own, frame, columns, groups=there.issuperset(own.factors))
                for own in self.random
            ),
        )


def scale_model(
    formula: ScaleFormula,
    frame: pd.DataFrame,
    functions: UserFunctions,
    others: tuple[GroupingFactor, ...],
) -> tuple[ScaleSpec, ScaleRows]:
    """Evaluate the formula of ``sigma=`` on the rows of a model.

    Parameters
    ----------
    formula : ScaleFormula
    frame : pandas.DataFrame
        n complete rows.
    functions : mapping of str to callable
        The user's own functions.
    others : tuple of GroupingFactor
        Grouping factors of the linear predictor, whose names in the posterior are taken.

    Raises
    ------
    FormulaError
        If there is no intercept, or a grouping factor is continuous.
    DataError
        If the columns cannot be used.
    """
    check_fixed_factors(formula, frame)
    variables = Variables(frame)
    sides = dict.fromkeys([formula.right, *(term.left for term in formula.random)])
    columns = {side: evaluate(side, variables, functions) for side in sides}
    full = columns[formula.right]
    if INTERCEPT not in full.names:
        raise FormulaError(
            "The formula of sigma= needs its intercept: without it the residual scale would be 1 "
            "in the units of the response where the covariates are 0. Leave out the `0 +`.",
            formula.source,
            0,
            len(formula.source),
        )
    check_labels(full.names)
    check_column_scales(full.names, full.values, "sigma=")
    check_rows(len(frame), int(full.kept.sum()))
    fixed = row_space(full.values, full.names, read_only(full.kept))
    if fixed.aliased:
        dropped = ", ".join(fixed.aliased)
        _log.warning("sigma=: dropped as linear combinations of earlier columns: %s.", dropped)
    W = read_only(fixed.full_rank(full.values))
    random = _with_keys(random_factors(formula, frame, columns, {}), others)
    spec = ScaleSpec(
        formula=formula,
        fixed=fixed,
        means=read_only(W.mean(axis=0)),
        random=tuple(factor.spec for factor in random),
        encodings={side: found.encoding for side, found in columns.items()},
    )
    return spec, ScaleRows(W=W, random=random)


def _with_keys(
    random: tuple[RandomFactor, ...], others: tuple[GroupingFactor, ...]
) -> tuple[RandomFactor, ...]:
    """Grouping factors with keys ``sigma_g`` that no other factor has."""
    names = [*(other.name for other in others), *(f"sigma_{factor.name}" for factor in random)]
    keys = group_keys(names)[len(others) :]
    return tuple(
        replace(factor, spec=replace(factor.spec, key=key))
        for factor, key in zip(random, keys, strict=True)
    )
