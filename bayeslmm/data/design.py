"""What a model knows without rows, a spec, and rows under it, a design."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.residual import PLAIN, BoundResidual, Residual, ResidualRows
from bayeslmm.covariance.scale import Family
from bayeslmm.data.frames import check_infinite, column_names, missing, plain_frame, read_only
from bayeslmm.data.inputs import Expression, check_complete, check_present, precision_weights
from bayeslmm.data.known_covariance import KnownCovariance
from bayeslmm.data.random_factors import FactorSpec, RandomFactor, shortened
from bayeslmm.data.random_terms import other_rows
from bayeslmm.data.relationships import Relationship
from bayeslmm.data.residual_rows import ResidualSpec
from bayeslmm.data.row_kinds import RowKinds
from bayeslmm.data.scale_model import ScaleRows, ScaleSpec
from bayeslmm.data.unobserved import Unobserved
from bayeslmm.exceptions import DataError
from bayeslmm.formula.evaluation import UserFunctions, Variables
from bayeslmm.formula.grammar import Formula
from bayeslmm.formula.matrices import Encoding, reevaluate, unreduced_columns
from bayeslmm.formula.moments import Moments
from bayeslmm.formula.rank import RowSpace
from bayeslmm.formula.terms import Side

__all__ = ["Design", "FactorSpec", "RandomFactor", "Spec"]

Array = NDArray[np.float64]
RandomPart = Literal["levels", "covariates", "none"]


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
        """How known variances are written with a multiplier sigma that is estimated."""
        errors = None if self.residual is None else self.residual.formula.errors
        return "" if errors is None else errors.multiplied

    @property
    def has_errors(self) -> bool:
        """Whether the rows have known variances: their weights are one over these."""
        return self.residual is not None and self.residual.formula.errors is not None

    @property
    def relationships(self) -> dict[str, Relationship]:
        """Known covariances of levels by grouping factor."""
        known = {factor.name: factor.relationship for factor in self.random}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def covariances(self) -> dict[str, KnownCovariance]:
        """Known covariance matrix of the residuals by its name."""
        known = None if self.residual is None else self.residual.known
        return {} if known is None else {known.name: known}

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
        >>> from bayeslmm.data.building import build_design
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
    def row_kinds(self) -> RowKinds:
        """The rows by the coefficients of their log standard deviations."""
        if self.residual_rows is None:
            raise DataError(
                f"The rows lack the variables of the residual structure "
                f"{self.spec.residual_source}."
            )
        return RowKinds.of(self.residual_rows, self.weights)

    def by_scale(self) -> dict[int, Design]:
        """The rows of each stratum or occasion that has a standard deviation, by its place."""
        assert self.residual_rows is not None
        n_scales = len(self.spec.residual_structure.scales)
        scale = np.argmax(self.residual_rows.log_sd[:, :n_scales], axis=1)
        return {int(at): self.take(np.flatnonzero(scale == at)) for at in np.unique(scale)}

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

    def without_data(self) -> Design:
        """The arrays without the variables of the formula, of which these were made."""
        return replace(self, data=self.data.iloc[:, :0])

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
        for codes, z, _ in factor.slots:
            first = start + np.maximum(codes, 0)[:, None] * k
            columns.append(first + np.arange(k))
            values.append(np.where((codes >= 0)[:, None], z, 0.0))
        start += factor.n_levels * k
    index, data = np.hstack(columns), np.hstack(values)
    pointer = np.arange(n + 1) * index.shape[1]
    result = sp.csr_array((data.ravel(), index.ravel(), pointer), shape=(n, start))
    result.sum_duplicates()  # a level that is two members of a row
    result.eliminate_zeros()
    return result


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
    if structure is not None and structure.known is not None:
        structure.known.check_labelled(names)
    check_present(needed, names)
    response = formula.left.variables
    response = response if response.issubset(names) else frozenset[str]()
    if weights is None and spec.weights in names:
        weights = spec.weights
    named = {weights} if isinstance(weights, str) else set[str]()
    frame = plain_frame(data, needed | response | named)
    values = precision_weights(weights, frame, data, names)
    check_complete(frame, needed - formula.members)
    check_infinite(frame, needed)
    if structure is not None and structure.formula.errors is not None:
        if values is not None:
            raise DataError(
                f"weights= of new data and {structure.formula.errors.text} both say how variances "
                "of rows differ: leave weights= out."
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


def require_random(design: Design, otherwise: str) -> None:
    """Refuse what is about random effects where there are none; `otherwise` says what follows."""
    if not design.random:
        raise DataError(f"`{design.formula.source}` has no random effects, so {otherwise}.")


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
