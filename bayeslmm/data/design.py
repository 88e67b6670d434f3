"""Formula and data to the arrays of a model, labelled and re-evaluable on new data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.data.frames import (
    check_infinite,
    column_names,
    complete_cases,
    missing,
    plain_frame,
    read_only,
)
from bayeslmm.data.grouping import grouping_factor
from bayeslmm.data.inputs import (
    Expression,
    check_column_scales,
    check_complete,
    check_fixed_factors,
    check_labels,
    check_not_own_predictor,
    check_present,
    check_rows,
    check_seen,
    check_variables,
    check_varies,
    expression_value,
    numeric_expression,
    precision_weights,
    sum_of,
)
from bayeslmm.data.random_factors import RandomFactor, encode_factor, random_factors, shortened
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables, own_functions
from bayeslmm.formula.grammar import Formula, parse
from bayeslmm.formula.matrices import (
    Spec,
    evaluate,
    evaluate_response,
    reevaluate,
    unreduced_columns,
)
from bayeslmm.schema import sanitise

__all__ = ["Design", "RandomFactor", "build_design"]

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
RandomPart = Literal["levels", "covariates", "none"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recipe:
    """How a design is evaluated on new data."""

    fixed: Spec | None
    kept: NDArray[np.bool_]
    response: Expression
    offsets: tuple[Expression, ...]
    weights: str | None
    seen: pd.DataFrame
    functions: UserFunctions


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Design:
    """The arrays of a linear mixed model: y = offset + X beta + Z u + e.

    Attributes
    ----------
    formula : Formula
    response : str
        Label of the response.
    y : ndarray, shape (n,)
        Response, transformed as the formula says; the offset is not subtracted. NaN where new
        data have no response.
    offset : ndarray, shape (n,)
        Sum of the offsets; zeros without one.
    weights : ndarray, shape (n,), or None
        Precision weights: the residual variance is sigma^2 / weight.
    X : ndarray, shape (n, p)
        Fixed-effects covariates, of full column rank.
    coefs : tuple of str, length p
        Labels of the fixed effects.
    X_full : ndarray, shape (n, p_full)
        X before columns were dropped; X itself if none was.
    coefs_full : tuple of str
    aliased : tuple of str
        Columns dropped because they are linear combinations of earlier ones.
    random : tuple of RandomFactor
        In the order of first appearance in the formula.
    index : pandas.Index
        Labels of the rows used.
    dropped : ndarray of int
        Positions of the rows of the data that were dropped as incomplete.
    data : pandas.DataFrame
        The variables of the formula in the rows used; not to be changed.
    recipe : Recipe
        How the design is evaluated on new data.
    evaluated : callable, optional
        Gives the same design with a complete recipe, by evaluating the formula on the data: a
        design that was read from a file does so when there are new data.
    """

    formula: Formula
    response: str
    y: Array
    offset: Array
    weights: Array | None
    X: Array
    coefs: tuple[str, ...]
    X_full: Array
    coefs_full: tuple[str, ...]
    aliased: tuple[str, ...]
    random: tuple[RandomFactor, ...]
    index: pd.Index
    dropped: NDArray[np.intp]
    data: pd.DataFrame
    recipe: Recipe
    evaluated: Callable[[], Design] | None = None

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def row_weights(self) -> Array:
        """Precision weights (n,): ones where none were given."""
        return np.ones(self.n) if self.weights is None else self.weights

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return len(self.coefs)

    def encode(
        self,
        new_data: Any,
        *,
        weights: Any = None,
        random: RandomPart = "levels",
    ) -> Design:
        """Evaluate the same columns on new data.

        Parameters
        ----------
        new_data : data frame or mapping
            Complete rows of the variables on the right of the formula. If the variables of the
            response are there, it is evaluated too.
        weights : str or array-like, optional
            Precision weights of the new rows; default the column given when the design was built,
            if the new data have it, else none.
        random : {"levels", "covariates", "none"}
            What is needed of the random effects: their covariates and levels; the covariates
            alone, every row being of a new level; or nothing, so that the result has no `random`.

        Returns
        -------
        Design
            With the coefficients and levels of this one, and no row dropped.

        Raises
        ------
        DataError
            If a variable is absent, missing or infinite in some row, or a factor among the
            covariates has a level that the model has not seen.
        """
        return _encode(self, new_data, weights, random)

    def X_frame(self) -> pd.DataFrame:
        """X as a data frame of rows by coefficients."""
        return pd.DataFrame(self.X, index=self.index, columns=list(self.coefs), copy=True)

    def y_series(self) -> pd.Series:
        """The response as a series."""
        return pd.Series(self.y, index=self.index, name=self.response, copy=True)

    def Z_matrix(self) -> sp.csr_array:
        """Z as a sparse array (n, sum of J k), zero in rows of new levels.

        Columns go by grouping factor, then level, then coefficient, as in `Z_labels`.
        """
        return _sparse_z(self.n, self.random)

    def Z_labels(self) -> pd.MultiIndex:
        """Grouping factor, level and coefficient of each column of `Z_matrix`."""
        parts = [
            (
                np.full(factor.n_levels * factor.n_coefs, factor.name, dtype=object),
                np.repeat(factor.levels, factor.n_coefs),
                np.tile(np.array(factor.coefs, dtype=object), factor.n_levels),
            )
            for factor in self.random
        ]
        columns = zip(*parts, strict=True) if parts else ((), (), ())
        arrays = [np.concatenate([np.empty(0, dtype=object), *column]) for column in columns]
        return pd.MultiIndex.from_arrays(arrays, names=["group", "level", "term"])

    def overparameterised(self) -> pd.DataFrame:
        """Over-parameterised X: an intercept and an indicator of every level of every factor.

        Returns
        -------
        pandas.DataFrame
            Rows by columns, usually not of full rank; `X` is a full-rank version of it.
        """
        values, names = unreduced_columns(self.formula.right, self.data, self.recipe.functions)
        return pd.DataFrame(values, index=self.index, columns=list(names))

    def __repr__(self) -> str:
        dropped = f" ({len(self.dropped)} incomplete dropped)" if len(self.dropped) else ""
        aliased = f" (aliased: {shortened(self.aliased)})" if self.aliased else ""
        lines = [
            f"Design of {self.formula.source}",
            f"  response {self.response}: {self.n} rows{dropped}",
            f"  fixed effects: {shortened(self.coefs) or 'none'}{aliased}",
        ]
        for factor in self.random:
            new = f" and {len(factor.new_levels)} new" if len(factor.new_levels) else ""
            lines.append(f"  {factor.name}: {factor.n_levels} levels{new} x {_blocks(factor)}")
        return "\n".join(lines)


def _blocks(factor: RandomFactor) -> str:
    return " + ".join(f"({shortened([factor.coefs[i] for i in b])})" for b in factor.blocks)


def _sparse_z(n: int, random: Sequence[RandomFactor]) -> sp.csr_array:
    columns, values, start = [np.empty((n, 0), dtype=np.intp)], [np.empty((n, 0))], 0
    for factor in random:
        k = factor.n_coefs
        known = (factor.codes >= 0)[:, None]
        first = start + np.maximum(factor.codes, 0)[:, None] * k
        columns.append(first + np.arange(k))
        values.append(np.where(known, factor.Z, 0.0))
        start += factor.n_levels * k
    index, data = np.hstack(columns), np.hstack(values)
    pointer = np.arange(n + 1) * index.shape[1]
    result = sp.csr_array((data.ravel(), index.ravel(), pointer), shape=(n, start))
    result.eliminate_zeros()
    return result


# --- building --------------------------------------------------------------------------


def build_design(
    formula: Formula | str,
    data: Any,
    *,
    weights: Any = None,
    functions: UserFunctions | None = None,
) -> Design:
    """Evaluate a formula on data.

    Parameters
    ----------
    formula : Formula or str
        For example ``"Reaction ~ Days + (Days | Subject)"``.
    data : data frame or mapping
        A frame of pandas, polars, pyarrow or another library that narwhals reads, or a mapping of
        columns. Rows with a missing value in a variable of the formula are dropped. It is never
        changed.
    weights : str or array-like, optional
        Precision weights, a column or one value per row of `data`, positive: the residual
        variance of a row is sigma^2 / weight. Rows where it is missing are dropped.
    functions : mapping of str to callable, optional
        The user's own functions by the names that the formula calls them.

    Returns
    -------
    Design

    Raises
    ------
    FormulaError
        If the formula cannot be read, names a variable that the data do not have, or groups by a
        continuous variable.
    DataError
        If the data cannot be used.

    Notes
    -----
    Columns of X that are linear combinations of earlier ones are dropped, the earlier ones kept,
    as in lme4; they are named in `Design.aliased` and in a log message.

    Examples
    --------
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0], "x": [0, 1, 0, 1], "g": ["a", "a", "b", "b"]}
    >>> build_design("y ~ x + (1 | g)", data).coefs
    ('Intercept', 'x')
    """
    functions = own_functions(functions)
    formula = parse(formula, functions) if isinstance(formula, str) else formula
    check_not_own_predictor(formula)
    names = column_names(data)
    check_variables(formula, names)
    variables = formula.variables
    named = weights if isinstance(weights, str) else None
    wanted = variables if named is None else variables | {named}
    frame = plain_frame(data, sorted(wanted))
    values = precision_weights(weights, frame, data, names)
    check_infinite(frame, variables)
    gaps = None if values is None else np.isnan(values)
    complete, dropped = complete_cases(frame, sorted(variables), gaps)
    if len(dropped):
        _log.info("%d of %d rows are incomplete and dropped.", len(dropped), len(frame))
        values = None if values is None else np.delete(values, dropped)
    return _evaluate(formula, complete, values, dropped, named, functions)


def _evaluate(
    formula: Formula,
    frame: pd.DataFrame,
    weights: Array | None,
    dropped: NDArray[np.intp],
    weights_name: str | None,
    functions: UserFunctions,
) -> Design:
    columns, label = Variables(frame), formula.response
    y = evaluate_response(formula.left, columns, functions)
    offsets = tuple(numeric_expression(shift, columns, functions) for shift in formula.shifts)
    offset = sum_of(offsets, columns)
    check_varies(label, y, offset)
    check_fixed_factors(formula, frame)
    full = evaluate(formula.right, columns, functions)
    check_labels(full.names)
    check_column_scales(full.names, full.values, "the fixed effects")
    kept = full.kept
    check_rows(len(frame), int(kept.sum()))
    aliased = _chosen(full.names, ~kept)
    if aliased:
        _log.warning(
            "Fixed effects dropped as linear combinations of earlier ones: %s.", ", ".join(aliased)
        )
    return Design(
        formula=formula,
        response=label,
        y=read_only(y),
        offset=read_only(offset),
        weights=None if weights is None else read_only(weights),
        X=_full_rank(full.values, kept),
        coefs=_chosen(full.names, kept),
        X_full=read_only(full.values),
        coefs_full=full.names,
        aliased=aliased,
        random=random_factors(formula, columns, functions, {formula.right: full}),
        index=frame.index,
        dropped=read_only(dropped),
        data=frame,
        recipe=Recipe(
            fixed=full.spec,
            kept=read_only(kept),
            response=numeric_expression(formula.left, columns, functions),
            offsets=offsets,
            weights=weights_name,
            seen=frame,
            functions=functions,
        ),
    )


def _full_rank(columns: Array, kept: NDArray[np.bool_]) -> Array:
    return read_only(columns if kept.all() else np.ascontiguousarray(columns[:, kept]))


def _chosen(names: Sequence[str], which: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(name for name, chosen in zip(names, which, strict=True) if chosen)


# --- new data --------------------------------------------------------------------------


def _encode(design: Design, new_data: Any, weights: Any, random: RandomPart) -> Design:
    if random not in get_args(RandomPart):
        raise ValueError(f"random must be one of {get_args(RandomPart)}, got {random!r}")
    whole = design if design.evaluated is None else design.evaluated()
    formula, recipe = design.formula, whole.recipe
    names = column_names(new_data)
    needed = formula.predictors(effects=random != "none", groups=random == "levels")
    check_present(needed, names)
    response = formula.left.variables
    response = response if response.issubset(names) else frozenset[str]()
    if weights is None and recipe.weights in names:
        weights = recipe.weights
    named = {weights} if isinstance(weights, str) else set[str]()
    frame = plain_frame(new_data, needed | response | named)
    values = precision_weights(weights, frame, new_data, names)
    check_complete(frame, needed)
    check_infinite(frame, needed)
    if values is not None and np.isnan(values).any():
        raise DataError("The weights of the new data are missing in some rows.")
    specs = {factor.key: factor.specs for factor in whole.random}
    factors = tuple(replace(f, specs=specs[f.key]) for f in design.random if random != "none")
    columns = Variables(frame)
    assert recipe.fixed is not None
    check_seen([recipe.fixed, *(s for f in factors for s in f.specs)], columns, recipe.seen)
    x_full = read_only(reevaluate(recipe.fixed, columns).values)
    return replace(
        design,
        y=read_only(_new_response(recipe, response, frame)),
        offset=read_only(sum_of(recipe.offsets, columns)),
        weights=None if values is None else read_only(values),
        X=_full_rank(x_full, recipe.kept),
        X_full=x_full,
        random=tuple(encode_factor(f, columns, groups=random == "levels") for f in factors),
        index=frame.index,
        dropped=read_only(np.empty(0, dtype=np.intp)),
        data=frame,
        recipe=recipe,
        evaluated=None,
    )


def _new_response(recipe: Recipe, variables: frozenset[str], frame: pd.DataFrame) -> Array:
    """The response where the new data have it, else NaN."""
    y = np.full(len(frame), np.nan)
    rows = np.full(len(frame), bool(variables))
    for name in variables:
        rows &= ~missing(frame[name])
    if rows.any():
        y[rows] = expression_value(recipe.response, frame[rows])
    return y


# --- rows by the levels of a grouping factor, a variable or cells of several --------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowGroups:
    """Groups of rows.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Group of each row, from 0 without gaps.
    labels : ndarray of str (m,), object
        Labels of the groups, those of the levels of a grouping factor.
    values : pandas.Index
        The same, but the values of a variable where it is one.
    key : str
        Name made of letters, digits and ``_``.
    """

    codes: NDArray[np.intp]
    labels: NDArray[np.object_]
    values: pd.Index
    key: str


def row_groups(design: Design, by: str) -> RowGroups | None:
    """Group the rows; None where `by` is no grouping factor, variable or cells such as ``"a:b"``.

    The levels of a variable are in the order that they have as levels of a grouping factor.
    """
    for factor in design.random:
        if factor.name == by:
            values = pd.Index(factor.levels)
            return RowGroups(
                codes=factor.codes, labels=factor.levels, values=values, key=factor.key
            )
    names = [by] if by in design.data.columns else by.split(":")
    if not set(names) <= set(design.data.columns):
        return None
    found = grouping_factor(design.data, names)
    values = pd.Index(found.levels) if len(names) > 1 else found.parts[0]
    return RowGroups(codes=found.codes, labels=found.levels, values=values, key=sanitise(by))


def group_names(design: Design) -> list[str]:
    """Grouping factors and variables that rows can be grouped by."""
    names = [*(factor.name for factor in design.random), *map(str, design.data.columns)]
    return list(dict.fromkeys(names))


# --- which linear combinations of the fixed effects the data determine --------------------


ESTIMABLE = 1e-8
"""Squared share of a combination outside the row space of X that counts as nothing (emmeans)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowSpace:
    """Which combinations of the columns of X the data can say anything about.

    Attributes
    ----------
    kept : ndarray of bool (p_full,)
        Columns of the model.
    scale : ndarray (p_full,)
        Size of each column.
    null : ndarray (p_full, r)
        Orthonormal basis of the combinations of scaled columns that vanish in every row.
    coefs : tuple of str, length p
        Labels of the columns of the model.
    """

    kept: NDArray[np.bool_]
    scale: Array
    null: Array
    coefs: tuple[str, ...]

    def estimable(self, weights: Array) -> NDArray[np.bool_]:
        """Which rows of weights (m, p_full) are combinations of rows of X."""
        scaled = weights / self.scale
        outside = np.sum((scaled @ self.null) ** 2, axis=1)
        return outside <= ESTIMABLE * np.sum(scaled**2, axis=1)

    def reduce(self, weights: Array) -> Array:
        """Weights (m, p) of the coefficients that the model has, NaN where not estimable."""
        return np.where(self.estimable(weights)[:, None], weights[:, self.kept], np.nan)


def row_space(design: Design) -> RowSpace:
    """Row space of the fixed effects of a design."""
    kept = np.array([name not in design.aliased for name in design.coefs_full], dtype=bool)
    scale = np.sqrt(np.mean(design.X_full**2, axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    null = np.zeros((len(kept), int(np.sum(~kept))))
    if null.size:
        scaled = design.X_full / scale
        solution = np.linalg.lstsq(scaled[:, kept], scaled[:, ~kept])[0]
        null[kept] = -solution
        null[~kept] = np.eye(null.shape[1])
        null = np.linalg.qr(null)[0]
    return RowSpace(kept=kept, scale=scale, null=null, coefs=design.coefs)
