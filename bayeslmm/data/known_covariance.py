"""Known covariance matrices of the residuals, such as those of estimates in a meta-analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from bayeslmm.covariance.known import KnownCorrelation
from bayeslmm.covariance.residual import ResidualRows
from bayeslmm.data.grouping import (
    GroupingFactor,
    canonical,
    factor_of_cells,
    level_order,
)
from bayeslmm.exceptions import DataError, listed
from bayeslmm.formula.residual import ResidualFormula

Array = NDArray[np.float64]

ASYMMETRY = 1e-8
"""Difference of two opposite entries, relative to their variances, that passes for rounding."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class KnownCovariance:
    """A known covariance matrix V of residuals.

    Attributes
    ----------
    name : str
        As the structure of the residuals names it, and the column of labels in the data.
    matrix : scipy.sparse.csr_array (m, m)
        V, symmetric with positive variances.
    labels : pandas.Index or None
        Labels of its rows, in the order of levels; None where they are the rows of the data.
    """

    name: str
    matrix: sp.csr_array
    labels: pd.Index | None

    @classmethod
    def of(cls, name: str, matrix: Any, labels: pd.Index | None) -> KnownCovariance:
        """The covariance matrix of labels in any order.

        Raises
        ------
        DataError
            If it is no covariance matrix, or a label stands twice or is missing.
        """
        values = _checked(name, matrix)
        if labels is None:
            return cls(name=name, matrix=values, labels=None)
        if labels.hasnans or not labels.is_unique:
            twice = labels[labels.duplicated()].unique().tolist()
            why = f"{listed(twice)} stands twice" if twice else "one is missing"
            raise DataError(f"covariances: the labels of `{name}` must tell rows apart: {why}.")
        if len(labels) != values.shape[0]:
            raise DataError(
                f"covariances: `{name}` has {values.shape[0]} rows and {len(labels)} labels."
            )
        order = level_order(canonical(labels))
        return cls(name=name, matrix=values[order][:, order], labels=canonical(labels)[order])

    @property
    def factor(self) -> GroupingFactor:
        """The labels as levels."""
        assert self.labels is not None
        places = np.arange(len(self.labels), dtype=np.intp)
        return factor_of_cells((self.name,), (self.labels,), places[:, None])

    @property
    def correlation(self) -> KnownCorrelation:
        """The correlations."""
        scale = sp.diags_array(1.0 / np.sqrt(self.matrix.diagonal()))
        return KnownCorrelation(sp.csr_array(scale @ self.matrix @ scale))

    def with_labels(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, KnownCovariance]:
        """Rows of data with their labels, which are their numbers where the matrix has none.

        Raises
        ------
        DataError
            If it is not clear which row of the matrix belongs to which row of the data.
        """
        there = self.name in frame
        if self.labels is not None:
            if there:
                return frame, self
            raise DataError(
                f"The data have no column `{self.name}`, whose values say which row of the known "
                "covariance matrix belongs to a row of the data. Add it, or give covariances= a "
                "plain matrix with a row for each row of the data, in their order."
            )
        if there:
            raise DataError(
                f"covariances: `{self.name}` is a column of the data, but the matrix has no labels "
                "to match it: give a data frame with the values of the column as labels of rows "
                f"and columns, or leave the column out, so that rows of the matrix are those of "
                "the data in their order."
            )
        if self.matrix.shape[0] != len(frame):
            raise DataError(
                f"covariances: `{self.name}` has {self.matrix.shape[0]} rows and the data have "
                f"{len(frame)}, rows with missing values included: a matrix without labels has a "
                "row for each, in their order."
            )
        rows = pd.RangeIndex(len(frame)).to_numpy()
        own = KnownCovariance(name=self.name, matrix=self.matrix, labels=pd.Index(rows))
        return frame.assign(**{self.name: rows}), own

    def check_labelled(self, names: Sequence[str]) -> None:
        """Refuse new data without labels."""
        if self.name not in names:
            raise DataError(
                f"The new data have no column `{self.name}` of labels, so that the covariances of "
                "their sampling errors are not known: what rows would report cannot be predicted. "
                "Their effects can: kind='epred' needs none."
            )

    def check_rows(self, rows: ResidualRows, frame: pd.DataFrame, groups: GroupingFactor) -> None:
        """Refuse rows of one label, covariances between groups, and blocks of no covariance matrix.

        Raises
        ------
        DataError
            That names a group.
        """
        assert rows.place is not None and rows.group is not None
        place = rows.place.astype(np.intp)
        labels = frame[self.name].to_numpy()
        if len(np.unique(place)) < len(place):
            twice = labels[pd.Series(place).duplicated().to_numpy()][0]
            raise DataError(
                f"`{twice}` of `{self.name}` is the label of two rows: a row of the known "
                "covariance matrix belongs to one row of the data."
            )
        own = self.matrix[place][:, place].tocoo()
        apart = np.flatnonzero((rows.group[own.row] != rows.group[own.col]) & (own.data != 0.0))
        if len(apart):
            i, j = own.row[apart[0]], own.col[apart[0]]
            one, two = (groups.levels[rows.group[at]] for at in (i, j))
            raise DataError(
                f"The known covariance matrix `{self.name}` has {own.data[apart[0]]:.3g} between "
                f"rows `{labels[i]}` and `{labels[j]}`, which are of different groups, `{one}` and "
                f"`{two}` of {groups.name}. Check the order of its rows, or name a larger group."
            )
        for group in rows.groups():
            block = self.matrix[place[group]][:, place[group]].toarray()
            scale = np.sqrt(np.diag(block))
            smallest = np.linalg.eigvalsh(block / np.outer(scale, scale))[0]
            if smallest < len(block) * np.finfo(float).eps:
                raise DataError(
                    f"The known covariance matrix `{self.name}` of the {len(block)} rows of "
                    f"`{groups.levels[rows.group[group[0]]]}` of {groups.name} is not positive "
                    f"definite: the smallest eigenvalue of its correlations is {smallest:.3g}."
                )


def known_covariances(given: Mapping[str, Any] | None) -> dict[str, KnownCovariance]:
    """Known covariance matrices by name from what a user gave.

    Parameters
    ----------
    given : mapping of str to DataFrame, array-like or scipy.sparse matrix, or None
        A data frame has equal labels of rows and columns; another matrix has the rows of the data.

    Raises
    ------
    DataError
        If one of them is no covariance matrix.
    """
    if given is not None and not isinstance(given, Mapping):
        raise DataError(
            "covariances must be a mapping from the name in residual='known(V | group)' to the "
            f"matrix, such as {{'V': V}}, got {type(given).__name__}."
        )
    return {str(name): _known(str(name), value) for name, value in (given or {}).items()}


def covariance_of(
    formula: ResidualFormula | None, known: Mapping[str, KnownCovariance]
) -> KnownCovariance | None:
    """The matrix that a structure of the residuals names; None where it names none.

    Raises
    ------
    DataError
        If it is not there, or others are.
    """
    name = None if formula is None else formula.matrix
    if strange := [other for other in known if other != name]:
        says = "no known(...)" if name is None else f"known({name} | ...)"
        raise DataError(
            f"covariances: {listed(strange)} is named by no structure of the residuals, which has "
            f'{says}: write residual="known({strange[0]} | group)".'
        )
    if name is not None and name not in known:
        assert formula is not None
        raise DataError(
            f"{formula.source} needs the matrix: give covariances={{{name!r}: {name}}}."
        )
    return None if name is None else known[name]


def _known(name: str, value: Any) -> KnownCovariance:
    if isinstance(value, KnownCovariance):
        return value
    if not isinstance(value, pd.DataFrame):
        return KnownCovariance.of(name, value, None)
    rows, columns = value.index, value.columns
    if set(rows) != set(columns) and set(map(str, rows)) == set(map(str, columns)):
        rows, columns = rows.map(str), columns.map(str)
    same = columns.is_unique and rows.is_unique and set(rows) == set(columns)
    if not same:
        raise DataError(
            f"covariances: the rows and columns of `{name}` must have the same labels, each once. "
            "A matrix without labels, in the order of the rows of the data, is an array: "
            "V.to_numpy()."
        )
    return KnownCovariance.of(name, value.iloc[:, columns.get_indexer(rows)], value.index)


def _checked(name: str, matrix: Any) -> sp.csr_array:
    """A matrix as floats, exactly symmetric, of positive variances.

    Raises
    ------
    DataError
        If it cannot be had so.
    """
    try:
        values = sp.csr_array(
            matrix if sp.issparse(matrix) else np.asarray(matrix, dtype=np.float64),
            dtype=np.float64,
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"covariances: `{name}` must be a matrix of numbers.") from error
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not values.shape[0]:
        raise DataError(f"covariances: `{name}` must be square, its shape is {values.shape}.")
    if not np.isfinite(values.data).all():
        row = int(values.tocoo().row[~np.isfinite(values.data)][0])
        raise DataError(
            f"covariances: `{name}` holds values that are not finite, first in its row {row} "
            "(counted from 0): take such rows out of it and of the data."
        )
    variances = values.diagonal()
    if np.any(variances <= 0.0):
        row = int(np.argmax(variances <= 0.0))
        raise DataError(
            f"covariances: `{name}` must have positive variances, and that of row {row} (counted "
            f"from 0) is {variances[row]:g}."
        )
    gap = sp.coo_array(values - values.T)
    scale = np.sqrt(variances[gap.row] * variances[gap.col])
    if np.any(np.abs(gap.data) > ASYMMETRY * scale):
        at = int(np.argmax(np.abs(gap.data) / scale))
        i, j = int(gap.row[at]), int(gap.col[at])
        raise DataError(
            f"covariances: `{name}` must be symmetric, and has {values[i, j]:.6g} in row {i}, "
            f"column {j} (counted from 0), but {values[j, i]:.6g} in row {j}, column {i}."
        )
    return sp.csr_array(0.5 * (values + values.T))
