"""A formula evaluated on data for the first time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.covariance.scale import Family
from bayeslmm.data.design import Design, Encodings, Spec
from bayeslmm.data.frames import (
    check_infinite,
    column_names,
    complete_cases,
    plain_frame,
    read_only,
)
from bayeslmm.data.inputs import (
    check_column_scales,
    check_fixed_factors,
    check_labels,
    check_not_own_predictor,
    check_rows,
    check_variables,
    check_varies,
    first_value,
    precision_weights,
)
from bayeslmm.data.known_covariance import KnownCovariance, covariance_of
from bayeslmm.data.random_factors import shortened
from bayeslmm.data.random_terms import random_factors
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec, check_weights_once, residual_spec
from bayeslmm.data.scale_model import scale_model
from bayeslmm.data.unobserved import Missing, Unobserved, unobserved_rows
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables, own_functions
from bayeslmm.formula.grammar import Formula, ScaleFormula, parse, parse_scale
from bayeslmm.formula.matrices import Columns, evaluate
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import RowSpace, row_space
from bayeslmm.formula.residual import ResidualFormula, parse_residual

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]

MOST_NAMED = 50
"""Dropped columns that a log message names; `Design.aliased` has them all."""


def build_design(
    formula: Formula | str,
    data: Any,
    *,
    weights: Any = None,
    functions: UserFunctions | None = None,
    residual: ResidualFormula | str | None = None,
    relationships: Mapping[str, Relationship] | None = None,
    missing: Missing = "drop",
    fixed: Mapping[str, Any] | None = None,
    family: str = "gaussian",
    sigma: ScaleFormula | str | None = None,
    covariances: Mapping[str, KnownCovariance] | None = None,
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
    residual : ResidualFormula or str, optional
        Structure of the residuals, for example ``"us(visit | id)"``. Rows with a missing value in
        one of its variables are dropped.
    relationships : mapping of str to Relationship, optional
        Known covariances of the levels of grouping factors.
    missing : {"drop", "keep", "raise"}
        Whether rows that lack nothing but the response are dropped too, or kept to be predicted, or
        no row may be incomplete.
    fixed : mapping of str to number or matrix, optional
        Covariance parameters that are known.
    family : {"gaussian", "student"}
        Distribution of the residuals.
    sigma : ScaleFormula or str, optional
        Predictors of the log residual scale, ``"~ x + (1 | g)"``. Rows with a missing value in one
        of its variables are dropped.
    covariances : mapping of str to KnownCovariance, optional
        The known covariance matrix that the structure of the residuals names.

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
    residual = parse_residual(residual) if isinstance(residual, str) else residual
    scale = parse_scale(sigma, functions) if not isinstance(sigma, ScaleFormula | None) else sigma
    checked = _family(family, residual, scale)
    _check_conditional(checked, scale, fixed=bool(fixed), kept=missing == "keep")
    covariance = covariance_of(residual, covariances or {})
    labels = [] if covariance is None else [covariance.name]
    variables = formula.variables
    for part in (residual, scale):
        if part is not None:
            check_variables(part, [*names, *labels])
            variables = variables | part.variables
    named = weights if isinstance(weights, str) else None
    wanted = variables if named is None else variables | {named}
    frame = plain_frame(data, sorted(wanted))
    if covariance is not None:
        frame, covariance = covariance.with_labels(frame)
    values = precision_weights(weights, frame, data, names)
    if values is not None and residual is not None:
        check_weights_once(residual)
    check_infinite(frame, variables)
    gaps = None if values is None else np.isnan(values)
    complete, dropped = complete_cases(frame, sorted(variables), gaps, formula.members)
    kept = unobserved_rows(formula, residual, frame[sorted(variables)], values, dropped, missing)
    if len(dropped):
        count = len(dropped) - (0 if kept is None else kept.n)
        _log.info("%d of %d rows are incomplete and dropped.", count, len(frame))
        values = None if values is None else np.delete(values, dropped)
    known = relationships or {}
    held = dict(fixed or {})
    law = None if residual is None else partial(residual_spec, residual, known=covariance)
    free = "sigma" not in {str(key).strip() for key in held}
    free = free and not (residual is not None and residual.known)
    design = _evaluate(
        formula, complete, values, dropped, named, functions, law, known, held, saturated=not free
    )
    design = with_scale(design, checked, scale)
    return design if kept is None else _with_unobserved(design, kept)


def _family(family: str, residual: ResidualFormula | None, scale: ScaleFormula | None) -> Family:
    """The family, if it is one and goes with what is said of the residuals' variances."""
    if family not in get_args(Family):
        raise ValueError(f"family={family!r}: 'gaussian' or 'student' is expected")
    if residual is not None and scale is not None:
        raise DataError(
            f"residual={residual.source!r} and sigma={scale.source!r} both describe the variance "
            "of the residuals: leave one of them out."
        )
    if residual is not None and family == "student":
        raise DataError(
            "family='student' is for independent residuals: it does not go with "
            f"residual={residual.source!r}. Leave one of them out; groups with variances of their "
            "own are sigma='~ f'."
        )
    return "student" if family == "student" else "gaussian"


def _check_conditional(
    family: Family, scale: ScaleFormula | None, *, fixed: bool, kept: bool
) -> None:
    """Refuse what is there for normal residuals without predictors of their scale only."""
    if family == "gaussian" and scale is None:
        return
    for given, name, advice in (
        (fixed, "fixed=", "Give a narrow prior instead, such as pm.Normal.dist(1.0, 0.001)."),
        (kept, 'missing="keep"', "Predict these rows with predict() after the fit."),
    ):
        if given:
            words = "family='student'" if family == "student" else "sigma="
            raise DataError(f"{name} does not go with {words}. {advice}")


def with_scale(design: Design, family: Family, scale: ScaleFormula | None) -> Design:
    """The design with residuals of a family and, if there are any, predictors of their scale."""
    if scale is None:
        return replace(design, spec=replace(design.spec, family=family))
    spec = design.spec
    found, rows = scale_model(scale, design.data, spec.functions, spec.random)
    return replace(design, spec=replace(spec, family=family, scale=found), scale_rows=rows)


def _with_unobserved(design: Design, kept: Unobserved) -> Design:
    """A design with rows to predict, which must be predictable.

    Raises
    ------
    DataError
        If they are not.
    """
    if kept.n:
        try:
            rows = design.spec.rows(kept.data, weights=kept.weights, residual=True)
            spec, old, new = design.spec.residual, design.residual_rows, rows.residual_rows
            if spec is not None and old is not None and new is not None and old.group is not None:
                spec.together(old, new)
        except DataError as error:
            raise DataError(
                f'missing="keep": {kept.n} rows without a response cannot all be predicted. {error}'
            ) from error
    return replace(design, unobserved=kept)


def _evaluate(
    formula: Formula,
    frame: pd.DataFrame,
    weights: Array | None,
    dropped: NDArray[np.intp],
    weights_name: str | None,
    functions: UserFunctions,
    residual: Callable[[pd.DataFrame], ResidualSpec] | None,
    relationships: Mapping[str, Relationship],
    known: Mapping[str, Any],
    *,
    saturated: bool,
) -> Design:
    variables = Variables(frame)
    y, response = first_value(formula.left, variables, functions)
    shifts = [first_value(shift, variables, functions) for shift in formula.shifts]
    offset = sum((values for values, _ in shifts), np.zeros(len(frame)))
    check_varies(formula.response, y, offset)
    check_fixed_factors(formula, frame)
    full, fixed = _fixed_effects(formula, variables, functions)
    columns = {formula.right: full}
    for term in formula.random:
        if term.left not in columns:
            columns[term.left] = evaluate(term.left, variables, functions)
    random = random_factors(formula, frame, columns, relationships, saturated=saturated)
    found = None if residual is None else residual(frame)
    errors = None if found is None else found.precisions(frame)
    weights = weights if errors is None else errors
    encodings = Encodings(
        sides={side: found.encoding for side, found in columns.items()},
        response=response,
        offsets=tuple(expression for _, expression in shifts),
    )
    return Design(
        spec=Spec(
            formula=formula,
            functions=functions,
            weights=weights_name,
            fixed=fixed,
            random=tuple(factor.spec for factor in random),
            residual=found,
            encodings=encodings,
            known=known,
        ),
        y=read_only(y),
        offset=read_only(offset),
        weights=None if weights is None else read_only(weights),
        X=read_only(fixed.full_rank(full.values)),
        X_full=read_only(full.values),
        random=random,
        residual_rows=None if found is None else found.rows(frame),
        index=frame.index,
        dropped=read_only(dropped),
        data=frame,
    )


def _fixed_effects(
    formula: Formula, variables: Variables, functions: UserFunctions
) -> tuple[Columns, RowSpace]:
    """All columns of the fixed effects, and those among them that are independent."""
    full = evaluate(formula.right, variables, functions)
    return full, fixed_space(full.names, full.values, lambda: full.kept, variables.n)


def fixed_space(
    names: Sequence[str],
    columns: Array | Moments,
    independent: Callable[[], NDArray[np.bool_]],
    n: int,
) -> RowSpace:
    """Row space of the fixed effects in n rows.

    Which columns are independent is asked for when their numbers are known to have room.

    Raises
    ------
    DataError
        If the columns or their labels cannot be used, or rows are too few.
    """
    check_labels(names)
    check_column_scales(names, columns, "the fixed effects")
    kept = read_only(independent())
    check_rows(n, int(kept.sum()))
    fixed = row_space(columns, names, kept)
    if fixed.aliased:
        _log.warning(
            "Fixed effects dropped as linear combinations of earlier ones: %s.",
            shortened(fixed.aliased, limit=MOST_NAMED),
        )
    return fixed
