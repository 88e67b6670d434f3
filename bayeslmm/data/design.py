"""A formula on data: what a model knows without rows, and rows under it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.residual import PLAIN, BoundResidual, Residual, ResidualRows
from bayeslmm.covariance.scale import Family
from bayeslmm.data.frames import (
    check_infinite,
    column_names,
    complete_cases,
    missing,
    plain_frame,
    read_only,
)
from bayeslmm.data.grouping import GroupingFactor, grouping_factor
from bayeslmm.data.inputs import (
    Expression,
    check_column_scales,
    check_complete,
    check_fixed_factors,
    check_labels,
    check_not_own_predictor,
    check_present,
    check_rows,
    check_variables,
    check_varies,
    first_value,
    precision_weights,
)
from bayeslmm.data.random_factors import (
    FactorSpec,
    RandomFactor,
    other_rows,
    random_factors,
    shortened,
)
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec, residual_spec
from bayeslmm.data.scale_model import ScaleRows, ScaleSpec, scale_model
from bayeslmm.data.unobserved import Missing, Unobserved, unobserved_rows
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables, own_functions
from bayeslmm.formula.grammar import Formula, ScaleFormula, parse, parse_scale
from bayeslmm.formula.matrices import Columns, Encoding, evaluate, reevaluate, unreduced_columns
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import RowSpace, row_space
from bayeslmm.formula.residual import ResidualFormula, parse_residual
from bayeslmm.formula.terms import Side
from bayeslmm.schema import sanitise

__all__ = ["Design", "FactorSpec", "RandomFactor", "Spec", "build_design"]

_log = logging.getLogger(__name__)
Array = NDArray[np.float64]
RandomPart = Literal["levels", "covariates", "none"]

MOST_NAMED = 50
"""Dropped columns that a log message names; `Design.aliased` has them all."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encodings:
    """How the columns of a model are evaluated on other data.

    Attributes
    ----------
    sides : mapping of Side to Encoding
        The fixed effects and the left-hand sides of the random-effects terms.
    response : Expression
    offsets : tuple of Expression
    """

    sides: Mapping[Side, Encoding]
    response: Expression
    offsets: tuple[Expression, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Spec:
    """What a model knows without rows: its size does not depend on how many there were.

    Attributes
    ----------
    formula : Formula
    functions : mapping of str to callable
        The user's own functions.
    weights : str or None
        The column of the precision weights; None without one.
    fixed : RowSpace
        Labels of the fixed effects, and which combinations of them the rows determine.
    random : tuple of FactorSpec
        Grouping factors in the order of first appearance in the formula.
    residual : ResidualSpec or None
        Structure of the residuals; None where they are independent with one variance.
    encodings : Encodings or callable
        How columns are evaluated on other data. A model that was read from a file has a function
        that evaluates the formula on its data when there are new data.
    known : mapping of str to number or matrix
        Covariance parameters that are known, by the names that priors have.
    family : {"gaussian", "student"}
        Distribution of the residuals.
    scale : ScaleSpec or None
        Predictors of their scale; None where all rows have one.
    """

    formula: Formula
    functions: UserFunctions
    weights: str | None
    fixed: RowSpace
    random: tuple[FactorSpec, ...]
    residual: ResidualSpec | None
    encodings: Encodings | Callable[[], Encodings]
    known: Mapping[str, Any] = field(default_factory=dict)
    family: Family = "gaussian"
    scale: ScaleSpec | None = None

    @property
    def conditional(self) -> str | None:
        """What keeps random effects from being integrated out, as written; None where nothing."""
        student = "family='student'" if self.family == "student" else None
        scale = None if self.scale is None else f"sigma={self.scale.formula.source!r}"
        return " and ".join(part for part in (student, scale) if part is not None) or None

    @property
    def residual_structure(self) -> Residual:
        """Structure of the residuals."""
        return PLAIN if self.residual is None else self.residual.structure

    @property
    def structured(self) -> bool:
        """Whether residuals have more than one standard deviation sigma, or are correlated."""
        return not self.residual_structure.plain

    @property
    def residual_source(self) -> str | None:
        """The structure of the residuals as written."""
        return None if self.residual is None else self.residual.formula.source

    @property
    def residual_multiplier(self) -> str:
        """How known standard errors are written with a multiplier sigma that is estimated."""
        errors = None if self.residual is None else self.residual.formula.errors
        return "" if errors is None else f"se({errors.place[0]}, sigma=True)"

    @property
    def has_errors(self) -> bool:
        """Whether the rows have known standard errors, which are their weights."""
        return self.residual is not None and self.residual.formula.errors is not None

    @property
    def relationships(self) -> dict[str, Relationship]:
        """Known covariances of levels by grouping factor."""
        known = {factor.name: factor.relationship for factor in self.random}
        return {name: value for name, value in known.items() if value is not None}

    def rows(
        self,
        data: Any,
        *,
        weights: Any = None,
        random: RandomPart = "levels",
        residual: bool = False,
    ) -> Design:
        """Evaluate the columns of the model on other data.

        Parameters
        ----------
        data : data frame or mapping
            Complete rows of the variables on the right of the formula. If the variables of the
            response are there, it is evaluated too.
        weights : str or array-like, optional
            Precision weights of the rows; default the column given when the model was built, if
            the data have it, else none.
        random : {"levels", "covariates", "none"}
            What is needed of the random effects: their covariates and levels; the covariates
            alone, every row being of a new level; or nothing, so that the result has no `random`.
        residual : bool
            Whether the columns of the structure of the residuals, or of the predictors of their
            scale, are needed.

        Returns
        -------
        Design
            With the coefficients and levels of the model, and no row dropped.

        Raises
        ------
        DataError
            If a variable is absent, missing or infinite in some row, or a factor among the
            covariates has a level that the model has not seen.

        Examples
        --------
        >>> data = {"y": [1.0, 2.0, 4.0, 3.0], "x": [0, 1, 0, 1], "g": ["a", "a", "b", "b"]}
        >>> spec = build_design("y ~ x + (1 | g)", data).spec
        >>> spec.rows({"x": [2, 5], "g": ["b", "c"]}).X.tolist()
        [[1.0, 2.0], [1.0, 5.0]]
        """
        return _other_rows(self, data, weights, random, residual)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Design:
    """The arrays of a linear mixed model: y = offset + X beta + Z u + e.

    Attributes
    ----------
    spec : Spec
        What the model knows without these rows.
    y : ndarray, shape (n,)
        Response, transformed as the formula says; the offset is not subtracted. NaN where new
        data have no response.
    offset : ndarray, shape (n,)
        Sum of the offsets; zeros without one.
    weights : ndarray, shape (n,), or None
        Precision weights: the residual variance is sigma^2 / weight. With known standard errors,
        one over their squares.
    X : ndarray, shape (n, p)
        Fixed-effects covariates, of full column rank.
    X_full : ndarray, shape (n, p_full)
        X before columns were dropped; X itself if none was.
    random : tuple of RandomFactor
        In the order of first appearance in the formula.
    residual_rows : ResidualRows or None
        Columns of the structure of the residuals, if there is one.
    index : pandas.Index
        Labels of the rows used.
    dropped : ndarray of int
        Positions of the rows of the data that are not used, as they are incomplete.
    data : pandas.DataFrame
        The variables of the formula in the rows used; not to be changed.
    unobserved : Unobserved or None
        Those of the rows not used that lack the response alone, if they are kept to be predicted.
    scale_rows : ScaleRows or None
        Columns of the predictors of the residual scale, if there are any.
    """

    spec: Spec
    y: Array
    offset: Array
    weights: Array | None
    X: Array
    X_full: Array
    random: tuple[RandomFactor, ...]
    residual_rows: ResidualRows | None
    index: pd.Index
    dropped: NDArray[np.intp]
    data: pd.DataFrame
    scale_rows: ScaleRows | None = None
    unobserved: Unobserved | None = None

    @property
    def n_unobserved(self) -> int:
        """Number of rows without a response that are kept to be predicted."""
        return 0 if self.unobserved is None else self.unobserved.n

    @property
    def n_dropped(self) -> int:
        """Number of rows dropped as incomplete."""
        return len(self.dropped) - self.n_unobserved

    @property
    def not_used(self) -> str:
        """Numbers of rows dropped and kept to be predicted, in words and in brackets."""
        words = [f"{self.n_dropped} incomplete rows dropped"] * (self.n_dropped > 0)
        words += [f"{self.n_unobserved} without response to predict"] * (self.n_unobserved > 0)
        return f" ({', '.join(words)})" if words else ""

    @property
    def formula(self) -> Formula:
        """The formula, read."""
        return self.spec.formula

    @property
    def response(self) -> str:
        """Label of the response."""
        return self.spec.formula.response

    @property
    def coefs(self) -> tuple[str, ...]:
        """Labels (p,) of the fixed effects."""
        return self.spec.fixed.coefs

    @property
    def coefs_full(self) -> tuple[str, ...]:
        """Labels (p_full,) of the columns of `X_full`."""
        return self.spec.fixed.coefs_full

    @property
    def aliased(self) -> tuple[str, ...]:
        """Labels of the columns of `X_full` that are not in `X`."""
        return self.spec.fixed.aliased

    @property
    def residual(self) -> BoundResidual | None:
        """Relative precision matrix of the residuals of these rows, without their weights."""
        if not self.spec.structured or self.residual_rows is None:
            return None
        assert self.spec.residual is not None
        return self.spec.residual.structure.bind(self.residual_rows)

    @property
    def n(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def sample(self) -> pd.DataFrame:
        """Rows with each level of each factor of the fixed effects: all rows."""
        return self.data

    @property
    def mean_offset(self) -> float:
        """Mean of the offset."""
        return float(self.offset.mean())

    def mean_of(self, variable: str) -> float:
        """Mean of a numeric variable of the formula."""
        return float(np.mean(self.data[variable].to_numpy(dtype=np.float64)))

    def range_of(self, variable: str) -> tuple[float, float]:
        """Smallest and largest value of a numeric variable of the formula."""
        values = self.data[variable].to_numpy(dtype=np.float64)
        return float(values.min()), float(values.max())

    @property
    def mean_inverse_weight(self) -> float:
        """Mean of one over the precision weight."""
        return float((1.0 / self.row_weights).mean())

    @property
    def weighted(self) -> bool:
        """Whether rows have precision weights."""
        return self.weights is not None

    @property
    def row_weights(self) -> Array:
        """Precision weights (n,): ones where none were given."""
        return np.ones(self.n) if self.weights is None else self.weights

    @property
    def p(self) -> int:
        """Number of fixed effects."""
        return len(self.coefs)

    @property
    def moments(self) -> Moments:
        """Moments of the p columns of X and of the response less the offset, which comes last."""
        return Moments.of(np.column_stack([self.X, self.y - self.offset]))

    def restricted(self, spec: Spec, random: tuple[RandomFactor, ...]) -> Design:
        """The design with some of the grouping factors only."""
        return replace(self, spec=spec, random=random)

    def take(self, rows: NDArray[np.intp]) -> Design:
        """Some of the rows, with the coefficients and levels of all."""
        known, scale = self.residual_rows, self.scale_rows
        return replace(
            self,
            y=self.y[rows],
            offset=self.offset[rows],
            weights=None if self.weights is None else self.weights[rows],
            X=self.X[rows],
            X_full=self.X_full[rows],
            random=tuple(factor.take(rows) for factor in self.random),
            residual_rows=None if known is None else known.take(rows),
            scale_rows=None if scale is None else scale.take(rows),
            index=self.index[rows],
            data=self.data.iloc[rows],
        )

    def X_frame(self) -> pd.DataFrame:
        """X as a data frame of rows by coefficients."""
        return pd.DataFrame(self.X, index=self.index, columns=list(self.coefs), copy=True)

    def y_series(self) -> pd.Series:
        """The response as a series."""
        return pd.Series(self.y, index=self.index, name=self.response, copy=True)

    def Z_matrix(self) -> sp.csr_array:
        """Z as a sparse array (n, sum of J k), zero in rows of new levels.

        Columns go by grouping factor, then level, then coefficient, as in `Z_labels`. A level has
        the coefficients of its own stratum only.
        """
        return sp.csr_array(self.full_Z_matrix()[:, self.own_columns()])

    def full_Z_matrix(self) -> sp.csr_array:
        """Z with columns for all coefficients of every level, also of other strata."""
        return _sparse_z(self.n, self.random)

    def own_columns(self) -> NDArray[np.intp]:
        """Places of the columns of `Z_matrix` among those of `full_Z_matrix`."""
        found, start = [np.empty(0, dtype=np.intp)], 0
        for factor in self.random:
            levels, k = factor.n_levels, factor.n_coefs
            starts = start + np.arange(levels)[:, None] * k
            found.append((starts + factor.spec.own_places).ravel())
            start += levels * k
        return np.concatenate(found)

    def Z_labels(self) -> pd.MultiIndex:
        """Grouping factor, level and coefficient of each column of `Z_matrix`."""
        parts = [
            (
                np.full(factor.n_levels * len(factor.own_coefs), factor.name, dtype=object),
                np.repeat(factor.levels, len(factor.own_coefs)),
                np.tile(np.array(factor.own_coefs, dtype=object), factor.n_levels),
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
        values, names = unreduced_columns(self.formula.right, self.data, self.spec.functions)
        return pd.DataFrame(values, index=self.index, columns=list(names))

    def __repr__(self) -> str:
        aliased = f" (aliased: {shortened(self.aliased)})" if self.aliased else ""
        lines = [
            f"Design of {self.formula.source}",
            f"  response {self.response}: {self.n} rows{self.not_used}",
            f"  fixed effects: {shortened(self.coefs) or 'none'}{aliased}",
        ]
        for factor in self.random:
            new = f" and {len(factor.new_levels)} new" if len(factor.new_levels) else ""
            lines.append(f"  {factor.name}: {factor.n_levels} levels{new} x {_blocks(factor)}")
        return "\n".join(lines)


def _blocks(factor: RandomFactor) -> str:
    named = zip(factor.kinds, factor.blocks, strict=True)
    shown = ((kind, shortened([factor.coefs[i] for i in block])) for kind, block in named)
    return " + ".join(f"{'' if kind == 'us' else kind}({coefs})" for kind, coefs in shown)


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
    residual: ResidualFormula | str | None = None,
    relationships: Mapping[str, Relationship] | None = None,
    missing: Missing = "drop",
    fixed: Mapping[str, Any] | None = None,
    family: str = "gaussian",
    sigma: ScaleFormula | str | None = None,
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
    missing : {"drop", "keep"}
        Whether rows that lack nothing but the response are dropped too, or kept to be predicted.
    fixed : mapping of str to number or matrix, optional
        Covariance parameters that are known.
    family : {"gaussian", "student"}
        Distribution of the residuals.
    sigma : ScaleFormula or str, optional
        Predictors of the log residual scale, ``"~ x + (1 | g)"``. Rows with a missing value in one
        of its variables are dropped.

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
    variables = formula.variables
    for part in (residual, scale):
        if part is not None:
            check_variables(part, names)
            variables = variables | part.variables
    named = weights if isinstance(weights, str) else None
    wanted = variables if named is None else variables | {named}
    frame = plain_frame(data, sorted(wanted))
    values = precision_weights(weights, frame, data, names)
    if values is not None and residual is not None and residual.errors is not None:
        raise DataError(
            f"weights= and {residual.errors.text} both say how variances of rows differ: give one "
            "of them, such as standard errors divided by the root of the weights."
        )
    check_infinite(frame, variables)
    gaps = None if values is None else np.isnan(values)
    complete, dropped = complete_cases(frame, sorted(variables), gaps)
    kept = unobserved_rows(formula, residual, frame[sorted(variables)], values, dropped, missing)
    if len(dropped):
        count = len(dropped) - (0 if kept is None else kept.n)
        _log.info("%d of %d rows are incomplete and dropped.", count, len(frame))
        values = None if values is None else np.delete(values, dropped)
    known = relationships or {}
    held = dict(fixed or {})
    design = _evaluate(formula, complete, values, dropped, named, functions, residual, known, held)
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


def require_marginal(design: Design, what: str) -> None:
    """Refuse what integrates random effects out, where residuals do not let it.

    Raises
    ------
    DataError
        If residuals are not normal, or their scale has predictors.
    """
    if (reason := design.spec.conditional) is not None:
        raise DataError(
            f"{what} integrates the random effects out, which {reason} does not allow: it is not "
            "there for this model. Use fit(), which samples everything with NUTS, and what works "
            "on its draws."
        )


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
    residual: ResidualFormula | None,
    relationships: Mapping[str, Relationship],
    known: Mapping[str, Any],
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
    free = "sigma" not in {str(key).strip() for key in known}
    free = free and not (residual is not None and residual.known)
    random = random_factors(formula, frame, columns, relationships, saturated=not free)
    found = None if residual is None else residual_spec(residual, frame)
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
    check_labels(full.names)
    check_column_scales(full.names, full.values, "the fixed effects")
    check_rows(variables.n, int(full.kept.sum()))
    fixed = row_space(full.values, full.names, read_only(full.kept))
    if fixed.aliased:
        _log.warning(
            "Fixed effects dropped as linear combinations of earlier ones: %s.",
            shortened(fixed.aliased, limit=MOST_NAMED),
        )
    return full, fixed


# --- other rows ------------------------------------------------------------------------


def _other_rows(spec: Spec, data: Any, weights: Any, random: RandomPart, residual: bool) -> Design:
    if random not in get_args(RandomPart):
        raise ValueError(f"random must be one of {get_args(RandomPart)}, got {random!r}")
    encodings = spec.encodings if isinstance(spec.encodings, Encodings) else spec.encodings()
    formula, names = spec.formula, column_names(data)
    needed = formula.predictors(effects=random != "none", groups=random == "levels")
    structure = spec.residual if residual else None
    needed = needed if structure is None else needed | structure.formula.variables
    scale = spec.scale if residual else None
    if scale is not None:
        needed |= scale.predictors(groups=random == "levels") | scale.formula.grouping & set(names)
    check_present(needed, names)
    response = formula.left.variables
    response = response if response.issubset(names) else frozenset[str]()
    if weights is None and spec.weights in names:
        weights = spec.weights
    named = {weights} if isinstance(weights, str) else set[str]()
    frame = plain_frame(data, needed | response | named)
    values = precision_weights(weights, frame, data, names)
    check_complete(frame, needed)
    check_infinite(frame, needed)
    if structure is not None and structure.formula.errors is not None:
        if values is not None:
            raise DataError(
                f"weights= of new data and {structure.formula.errors.text} both say how variances "
                "of rows differ: give the column of standard errors alone."
            )
        values = structure.precisions(frame)
    if values is not None and np.isnan(values).any():
        raise DataError("The weights of the new data are missing in some rows.")
    variables = Variables(frame)
    factors = spec.random if random != "none" else ()
    sides = dict.fromkeys([formula.right, *(side for factor in factors for side in factor.sides)])
    columns = {side: reevaluate(encodings.sides[side], variables) for side in sides}
    x_full = read_only(columns[formula.right].values)
    offset = sum((part.value(variables) for part in encodings.offsets), np.zeros(len(frame)))
    groups = random == "levels"
    return Design(
        spec=spec,
        y=read_only(_new_response(encodings.response, response, frame)),
        offset=read_only(offset),
        weights=None if values is None else read_only(values),
        X=read_only(spec.fixed.full_rank(x_full)),
        X_full=x_full,
        random=tuple(other_rows(factor, frame, columns, groups=groups) for factor in factors),
        residual_rows=None if structure is None else structure.rows(frame),
        index=frame.index,
        dropped=read_only(np.empty(0, dtype=np.intp)),
        data=frame,
        scale_rows=None if scale is None else scale.rows(frame),
    )


def _new_response(response: Expression, variables: frozenset[str], frame: pd.DataFrame) -> Array:
    """The response where the new data have it, else NaN."""
    y = np.full(len(frame), np.nan)
    rows = np.full(len(frame), bool(variables))
    for name in variables:
        rows &= ~missing(frame[name])
    if rows.any():
        y[rows] = response.value(Variables(frame[rows]))
    return y


# --- rows by the levels of a grouping factor, a variable or cells of several --------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RowGroups:
    """Groups of rows.

    Attributes
    ----------
    codes : ndarray of int (n,)
        Group of each row, from 0 without gaps.
    factor : GroupingFactor
        The groups (m,) as levels.
    values : pandas.Index
        Their labels, but the values of a variable where it is one.
    key : str
        Name made of letters, digits and ``_``.
    """

    codes: NDArray[np.intp]
    factor: GroupingFactor
    values: pd.Index
    key: str


def require_random(design: Design, otherwise: str) -> None:
    """Refuse what is about random effects where there are none; `otherwise` says what follows."""
    if not design.random:
        raise DataError(f"`{design.formula.source}` has no random effects, so {otherwise}.")


def row_groups(design: Design, by: str) -> RowGroups | None:
    """Group the rows; None where `by` is no grouping factor, variable or cells such as ``"a:b"``.

    The levels of a variable are in the order that they have as levels of a grouping factor.
    """
    for factor in design.random:
        if factor.name == by:
            codes, spec = factor.codes, factor.spec
            if factor.relationship is not None:  # which has levels without rows
                present, codes = np.unique(codes, return_inverse=True)
                spec = spec.with_levels(present)
            values = pd.Index(spec.levels)
            return RowGroups(codes=codes, factor=spec, values=values, key=factor.key)
    names = [by] if by in design.data.columns else by.split(":")
    if not set(names) <= set(design.data.columns):
        return None
    codes, found = grouping_factor(design.data, names)
    values = pd.Index(found.levels) if len(names) > 1 else found.parts[0]
    return RowGroups(codes=codes, factor=found, values=values, key=sanitise(by))


def coefficient_sets(design: Design) -> list[tuple[int, str, NDArray[np.intp]]]:
    """Coefficients that levels have together.

    Place and name of the grouping factor, with the stratum where a term has ``by=``, and the places
    of the coefficients.
    """
    return [
        (f, f"{factor.name}, {stratum}" if stratum else factor.name, places)
        for f, factor in enumerate(design.random)
        for stratum, places in factor.spec.kinds_of_level
    ]


def group_names(design: Design) -> list[str]:
    """Grouping factors and variables that rows can be grouped by."""
    names = [*(factor.name for factor in design.random), *map(str, design.data.columns)]
    return list(dict.fromkeys(names))
