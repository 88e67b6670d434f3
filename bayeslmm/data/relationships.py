"""Known relationships between the levels of a grouping factor: u ~ N(0, A x Sigma).

A is a covariance matrix, such as that of a pedigree, of markers or of distances, given as it is or
by its inverse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.sparse.csgraph import connected_components

from bayeslmm.data.frames import read_only
from bayeslmm.data.pedigree import Pedigree
from bayeslmm.data.sparse_cholesky import SparseCholesky, sparse_cholesky
from bayeslmm.exceptions import DataError, listed

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
type Matrix = Array | sp.csc_array
Kind = Literal["covariance", "precision"]

LARGEST_DENSE = 5_000
"""Levels up to which A itself is computed from a sparse inverse: 0.2 GB."""

UNEQUAL = 1e-10
"""Relative difference of two relationships that is not rounding."""

ASYMMETRY = 1e-8
"""Difference of two opposite entries, relative to the diagonal, that passes for rounding."""


@dataclass(frozen=True, eq=False)
class Relationship:
    """A known covariance matrix A of the levels of a grouping factor, up to a variance.

    Parameters
    ----------
    matrix : array-like or scipy.sparse matrix (J, J)
        A, or its inverse; symmetric and positive definite.
    labels : sequence of length J
        The levels in the order of the rows, as the data have them.
    kind : {"covariance", "precision"}
        Whether `matrix` is A or its inverse.

    Raises
    ------
    DataError
        If the matrix is not square, symmetric, finite and positive definite, or labels are missing,
        occur twice or are not as many as rows.

    Examples
    --------
    >>> import bayeslmm as blm
    >>> near = blm.Relationship([[1.0, 0.5], [0.5, 1.0]], ["a", "b"])
    >>> round(near.log_det, 4)
    -0.2877
    """

    matrix: Matrix
    labels: pd.Index
    kind: Kind = "covariance"

    def __init__(
        self, matrix: ArrayLike | sp.sparray, labels: Any, kind: Kind = "covariance"
    ) -> None:
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
        index = labels if isinstance(labels, pd.Index) else pd.Index(list(labels))
        object.__setattr__(self, "matrix", _checked(matrix, index, kind))
        object.__setattr__(self, "labels", index)
        object.__setattr__(self, "kind", kind)
        _check_labels(index)
        self._factor if self.is_sparse else self._root  # noqa: B018  not positive definite?

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_sparse(self) -> bool:
        """Whether it is known by a sparse inverse."""
        return self.kind == "precision" and sp.issparse(self.matrix)

    @cached_property
    def _root(self) -> Array:
        """Lower Cholesky factor of the matrix, whichever it is."""
        dense = self.matrix if isinstance(self.matrix, np.ndarray) else self.matrix.toarray()
        try:
            return read_only(np.asarray(cholesky(dense, lower=True, check_finite=False)))
        except np.linalg.LinAlgError as error:
            raise self._indefinite(f"eigenvalue is {np.linalg.eigvalsh(dense)[0]:.3g}") from error

    @cached_property
    def _factor(self) -> SparseCholesky:
        """Cholesky factor of a sparse inverse."""
        try:
            return sparse_cholesky(cast(sp.csc_array, self.matrix))
        except np.linalg.LinAlgError as error:
            raise self._indefinite("pivot is not positive") from error

    def _indefinite(self, smallest: str) -> DataError:
        return DataError(
            f"The {self.kind} matrix of a relationship is not positive definite: its smallest "
            f"{smallest}. Identical levels, such as clones, must be one level; a matrix from "
            "markers may need a small number added to its diagonal."
        )

    @cached_property
    def log_det(self) -> float:
        """Log determinant of A."""
        if self.is_sparse:
            return -self._factor.log_det
        half = float(np.sum(np.log(np.diag(self._root))))
        return 2.0 * half if self.kind == "covariance" else -2.0 * half

    @cached_property
    def root(self) -> Array:
        """Lower Cholesky factor L (J, J) of A."""
        if self.kind == "covariance":
            return self._root
        return read_only(np.asarray(cholesky(self.covariance, lower=True, check_finite=False)))

    @cached_property
    def covariance(self) -> Array:
        """A (J, J).

        Raises
        ------
        DataError
            If its inverse is sparse and A would have more than 5,000 rows.
        """
        if self.kind == "covariance":
            return cast(Array, self.matrix)
        if not self.is_sparse:
            return self._inverse
        self._check_size(len(self))
        dense = self._factor.solve(np.eye(len(self)))
        return read_only(0.5 * (dense + dense.T))

    def _check_size(self, columns: int) -> None:
        """Refuse many columns of A where only its inverse is sparse."""
        if len(self) * columns > LARGEST_DENSE**2:
            raise DataError(
                f"This needs all relationships of {columns:,} levels with {len(self):,}, "
                f"{8e-9 * len(self) * columns:,.1f} GB of numbers; only their inverse is sparse. "
                f"It is done for up to {LARGEST_DENSE:,} levels."
            )

    @cached_property
    def variances(self) -> Array:
        """Diagonal of A (J,)."""
        if self.is_sparse:
            return read_only(self._factor.inverse.diagonal)
        return np.diag(self.covariance)

    def times(self, columns: Array) -> Array:
        """A times columns (J, m)."""
        if self.is_sparse:
            return self._factor.solve(columns)
        return np.asarray(self.covariance @ columns)

    def between(self, first: Indices, second: Indices) -> Array:
        """Relationships of pairs of levels, arrays of one shape."""
        if not self.is_sparse or len(self) <= LARGEST_DENSE:
            return self.covariance[first, second]
        levels, place = np.unique(second, return_inverse=True)
        self._check_size(len(levels))
        unit = np.zeros((len(self), len(levels)))
        unit[levels, np.arange(len(levels))] = 1.0
        return self._factor.solve(unit)[first, place.reshape(np.shape(second))]

    def sets_apart(self, levels: Indices) -> bool:
        """Whether some of the levels are related, or have unequal variances."""
        variances = self.variances[levels]
        if np.any(np.abs(variances - variances[0]) > UNEQUAL * variances[0]):
            return True
        probe = np.zeros((len(self), 1))
        probe[levels, 0] = np.random.default_rng(0).standard_normal(len(levels))
        gap = (self.times(probe) - variances[0] * probe)[levels]
        return bool(np.any(np.abs(gap) > UNEQUAL * variances[0]))

    @cached_property
    def precision(self) -> Matrix:
        """Inverse of A (J, J), sparse where it was given so."""
        return self.matrix if self.kind == "precision" else self._inverse

    @property
    def _inverse(self) -> Array:
        lower = dpotri(self._root, lower=1)[0]
        return read_only(np.asarray(np.tril(lower) + np.tril(lower, -1).T))

    @cached_property
    def families(self) -> Indices:
        """Family (J,) of each level: no two families are related."""
        return connected_components(sp.csr_array(self.matrix != 0), directed=False)[1]

    def effects(self, independent: Array) -> Array:
        """Random effects (..., J, k) with these relationships from those of unrelated levels."""
        if not self.is_sparse:
            return np.asarray(self.root @ independent)
        columns = np.moveaxis(independent, -2, 0)
        related = self._factor.back(columns.reshape(len(self), -1))
        return np.moveaxis(related.reshape(columns.shape), 0, -2)

    def precision_draws(self, noise: Array) -> Array:
        """Vectors (J, m) of covariance matrix A^-1 from standard normal ones."""
        if self.is_sparse:
            return self._factor.times(noise)
        if self.kind == "precision":
            return np.asarray(self._root @ noise)
        return np.asarray(solve_triangular(self._root, noise, lower=True, trans="T"))

    def with_unrelated(self, labels: Sequence[Any] | NDArray[np.object_]) -> Relationship:
        """The same with more levels that are related to none."""
        if not len(labels):
            return self
        more = sp.block_diag([sp.csc_array(self.matrix), sp.eye_array(len(labels))], format="csc")
        matrix = more if sp.issparse(self.matrix) else more.toarray()
        return Relationship(matrix, self.labels.astype(object).append(pd.Index(labels)), self.kind)

    def reordered(self, order: Indices) -> Relationship:
        """The same relationships with the levels in another order."""
        if np.array_equal(order, np.arange(len(self))):
            return self  # with what it has computed
        made = object.__new__(Relationship)
        object.__setattr__(made, "matrix", self.matrix[order][:, order])
        object.__setattr__(made, "labels", self.labels[order])
        object.__setattr__(made, "kind", self.kind)
        return made

    def equals(self, other: Relationship) -> bool:
        """Whether two relationships are the same, number for number."""
        if self is other:
            return True
        if self.kind != other.kind or not self.labels.equals(other.labels):
            return False
        return bool(abs(self.matrix - other.matrix).max() == 0.0)

    def __getstate__(self) -> dict[str, Any]:
        return {"matrix": self.matrix, "labels": self.labels, "kind": self.kind}

    def __repr__(self) -> str:
        sparse = "sparse " if sp.issparse(self.matrix) else ""
        return f"Relationship of {len(self):,} levels ({sparse}{self.kind})"


def relationships_of(given: Mapping[str, Any] | None) -> dict[str, Relationship]:
    """Relationships by grouping factor from what a user gave.

    Parameters
    ----------
    given : mapping of str to DataFrame, Pedigree or Relationship, or None
        A data frame is a covariance matrix with equal labels of rows and columns.

    Raises
    ------
    DataError
        If one of them cannot be used.
    """
    if given is not None and not isinstance(given, Mapping):
        raise DataError(
            "relationships must be a mapping from grouping factors to matrices, such as "
            f"{{'animal': A}}, got {type(given).__name__}."
        )
    return {name: _relationship(name, value) for name, value in (given or {}).items()}


def _relationship(name: str, value: Any) -> Relationship:
    try:
        if isinstance(value, Relationship):
            return value
        if isinstance(value, Pedigree):
            return Relationship(value.A_inverse, value.labels, "precision")
        if isinstance(value, pd.DataFrame):
            return _of_frame(value)
    except DataError as error:
        raise DataError(f"relationships: `{name}`: {error}") from error
    raise DataError(
        f"relationships: `{name}` must be a data frame with labels of rows and columns, a pedigree "
        f"or a Relationship(matrix, labels), got {type(value).__name__}."
    )


def _of_frame(frame: pd.DataFrame) -> Relationship:
    """A labelled covariance matrix; columns in any order, and their labels perhaps text."""
    _check_labels(frame.index)
    rows, columns = frame.index, frame.columns
    if set(rows) != set(columns) and set(map(str, rows)) == set(map(str, columns)):
        rows, columns = rows.map(str), columns.map(str)
    order = columns.get_indexer(rows) if columns.is_unique else np.array([-1])
    if len(rows) != len(columns) or np.any(order < 0):
        raise DataError(
            "the rows and columns of the data frame must have the same labels, each once."
        )
    try:
        values = frame.iloc[:, order].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError("the data frame must hold numbers.") from error
    return Relationship(values, frame.index)


def _checked(matrix: Any, labels: pd.Index, kind: Kind) -> Matrix:
    """The matrix as floats, exactly symmetric."""
    sparse = sp.issparse(matrix)
    try:
        values = sp.csc_array(matrix, dtype=np.float64) if sparse else np.array(matrix, dtype=float)
    except (TypeError, ValueError) as error:
        raise DataError(f"The {kind} matrix of a relationship must hold numbers.") from error
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise DataError(
            f"The {kind} matrix of a relationship must be square, its shape is {values.shape}."
        )
    if values.shape[0] != len(labels):
        raise DataError(
            f"The {kind} matrix of a relationship has {values.shape[0]} rows, but there are "
            f"{len(labels)} labels."
        )
    if not values.shape[0]:
        raise DataError("A relationship needs at least one level.")
    if not np.isfinite(values.data if sparse else values).all():
        raise DataError(f"The {kind} matrix of a relationship holds values that are not finite.")
    gap = abs(values - values.T)
    largest = float(gap.max())
    if largest > ASYMMETRY * float(np.abs(values.diagonal()).max()):
        at = np.unravel_index(int(gap.argmax()), gap.shape)
        first, second = (str(labels[i]) for i in at)
        raise DataError(
            f"The {kind} matrix of a relationship is not symmetric: its entries for "
            f"{listed([first])} and {listed([second])} differ by {largest:.3g}."
        )
    if largest > 0.0:
        values = 0.5 * (values + values.T)
    return sp.csc_array(values) if sparse else read_only(values)


def _check_labels(labels: pd.Index) -> None:
    if labels.hasnans:
        raise DataError("Some labels of the relationship are missing.")
    if not labels.is_unique:
        twice = [str(label) for label in labels[labels.duplicated()].unique()]
        raise DataError(
            f"The labels of a relationship must be unique, but {listed(twice)} "
            f"{'occurs' if len(twice) == 1 else 'occur'} more than once."
        )


# --- levels of the data among those of a relationship -----------------------------------


def missing_levels(name: str, absent: list[str]) -> DataError:
    """What is wrong with levels of the data that a relationship does not have."""
    shown = ", ".join(map(repr, absent[:5])) + (f" and {len(absent) - 5} more" * (len(absent) > 5))
    return DataError(
        f"The relationship of `{name}` does not have {len(absent)} of the levels in the data: "
        f"{shown}. Add them (unrelated ones have zeros beside a one on the diagonal) or drop their "
        "rows."
    )
