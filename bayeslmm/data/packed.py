"""Rows that have the cross-products of many rows, cell by cell of levels: few stand for all.

The rows of a cell have one level of each grouping factor and of what they are to be grouped by. A
rotation of them leaves as many rows as there are independent columns, and rows of zeros, of which
only the number counts. So whatever takes whole cells out of the data needs no more than these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayeslmm.data.design import Design
from bayeslmm.data.memberships import Member
from bayeslmm.data.row_groups import RowGroups
from bayeslmm.data.second_pass import concatenated, row_parts
from bayeslmm.data.summarised import SummarisedDesign
from bayeslmm.exceptions import DataError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

LARGEST = 1 << 27
"""Most numbers that the cross-products of all cells may be: 1 GB."""

PENDING = 1 << 18
"""Cells that wait to be added to those with the same levels."""

DEPENDENT = 1e-15
"""Share of the squares of a cell below which a direction has no more than rounding."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Packed:
    """Rows that stand for all rows of a model.

    Attributes
    ----------
    design : Design
        They, without weights and offset.
    counts : ndarray (m,)
        How many rows a cell has, at its first row here; zero at its others.
    log_weights : ndarray (m,)
        Sums of the log precision weights of a cell, likewise.
    """

    design: Design
    counts: Array
    log_weights: Array

    def constants(self, codes: Indices) -> tuple[Array, Array]:
        """By group (m,) of these rows: rows of zeros that are left out, and sums of log weights."""
        zeros = np.bincount(codes, self.counts) - np.bincount(codes)
        return zeros, np.bincount(codes, self.log_weights)


def packed(
    design: SummarisedDesign, by: Sequence[str], groups: Callable[[Design], RowGroups]
) -> Packed:
    """Read the rows again and pack them.

    Parameters
    ----------
    design : SummarisedDesign
    by : sequence of str
        Variables that tell cells apart beside the grouping factors.
    groups : callable
        Groups rows by these; called to raise what is wrong with them.

    Raises
    ------
    DataError
        If cells are too many.
    """
    cells = _Cells(design, by)
    for part in row_parts(design):
        if not cells.parts:
            groups(part)
        cells.add(part)
    return cells.finish()


class _Cells:
    def __init__(self, design: SummarisedDesign, by: Sequence[str]) -> None:
        self.design, self.by = design, list(by)
        self.parts: list[tuple[pd.DataFrame, pd.DataFrame, Array]] = []

    def add(self, part: Design) -> None:
        """Take in rows."""
        keys = {f"factor {f}": factor.codes for f, factor in enumerate(part.random)}
        table = pd.DataFrame(keys, index=part.data.index)
        for name in self.by:
            table[f"by {name}"] = part.data[name]
        cell, first = _numbered(table)
        columns = self._columns(part)
        sums = np.empty((len(first), self._width + 2))
        pairs = zip(*np.tril_indices(columns.shape[1]), strict=True)
        for place, (i, j) in enumerate(pairs):
            sums[:, place] = np.bincount(cell, columns[:, i] * columns[:, j], len(first))
        sums[:, -2] = np.bincount(cell, minlength=len(first))
        sums[:, -1] = np.bincount(cell, np.log(part.row_weights), len(first))
        self.parts.append((table.iloc[first], part.data.iloc[first], sums))
        if sum(len(sums) for *_, sums in self.parts[1:]) > max(PENDING, len(self.parts[0][2])):
            self._merge()

    @property
    def _width(self) -> int:
        q = self.design.p + 1 + sum(factor.n_coefs for factor in self.design.random)
        return q * (q + 1) // 2

    def _columns(self, part: Design) -> Array:
        """Weighted working columns (n, q): of each grouping factor, of X and of y."""
        basis, root = self.design.products.basis, np.sqrt(part.row_weights)[:, None]
        zs = [f.Z @ a for f, a in zip(part.random, basis.random, strict=True)]
        y = part.y - part.offset - part.X @ basis.shift
        return np.column_stack([*zs, part.X @ basis.fixed, y]) * root

    def _merge(self) -> None:
        """Add up cells with the same levels."""
        if len(self.parts) > 1:
            table = concatenated([keys for keys, *_ in self.parts])
            frame = concatenated([rows for _, rows, _ in self.parts])
            sums = np.concatenate([own for *_, own in self.parts])
            cell, first = _numbered(table)
            added = np.zeros((len(first), sums.shape[1]))
            np.add.at(added, cell, sums)
            self.parts = [(table.iloc[first], frame.iloc[first], added)]
        ((_, _, sums),) = self.parts
        if sums.size > LARGEST:
            raise DataError(
                f"There are {len(sums):,} cells of the grouping factors and what is left out, too "
                "many to be held. Leave out levels that contain whole levels of the largest "
                "grouping factor, or build the model from a data frame of some groups."
            )

    def finish(self) -> Packed:
        """Rows with these cross-products."""
        self._merge()
        ((_, frame, sums),) = self.parts
        design, basis = self.design, self.design.products.basis
        rows, cell = _roots(sums[:, :-2])
        head = np.append(True, cell[1:] != cell[:-1])
        base = design.spec.rows(frame.reset_index(drop=True)).take(cell)
        factors, start = [], 0
        for factor, own in zip(base.random, basis.random, strict=True):
            z = rows[:, start : start + factor.n_coefs]
            member = Member(factor.codes, factor.codes)
            Z = np.linalg.solve(own.T, z.T).T
            factors.append(replace(factor, Z=Z, members=(member,)))
            start += factor.n_coefs
        X = np.linalg.solve(basis.fixed.T, rows[:, start:-1].T).T if design.p else rows[:, :0]
        whole = replace(
            base,
            y=rows[:, -1] + X @ basis.shift,
            offset=np.zeros(len(rows)),
            weights=None,
            X=X,
            X_full=X,
            random=tuple(factors),
            index=pd.RangeIndex(len(rows)),
        )
        counts, logs = (np.where(head, sums[cell, i], 0.0) for i in (-2, -1))
        return Packed(design=whole, counts=counts, log_weights=logs)


def _numbered(table: pd.DataFrame) -> tuple[Indices, Indices]:
    """Number (n,) of the cell of each row, and a row of each cell."""
    names = list(table.columns)
    cell = table.groupby(names, sort=False, observed=True, dropna=False).ngroup().to_numpy()
    return cell, np.unique(cell, return_index=True)[1]


def _roots(sums: Array) -> tuple[Array, Indices]:
    """Rows (m, q) whose squares are the lower triangles (cells, q (q + 1) / 2), and their cells."""
    q = int((np.sqrt(8 * sums.shape[1] + 1) - 1) / 2)
    first, second = np.tril_indices(q)
    square = np.empty((len(sums), q, q))
    square[:, first, second] = square[:, second, first] = sums
    size = np.sqrt(np.einsum("cqq->q", square))
    size = np.where(size > 0.0, size, 1.0)
    values, vectors = np.linalg.eigh(square / np.outer(size, size))
    kept = values > DEPENDENT * values[:, -1:]
    kept[:, -1] = True  # a cell of zeros is a row of zeros
    roots = np.sqrt(np.maximum(values, 0.0))[:, :, None] * vectors.transpose(0, 2, 1) * size
    cell, place = np.nonzero(kept)
    return roots[cell, place], cell
