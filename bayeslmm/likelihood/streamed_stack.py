"""Cross-products of data beyond memory as functions of residual parameters, batch by batch.

A batch has all rows of its groups, so that no pair of tied rows is in two batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from bayeslmm.covariance.residual import Residual, ResidualRows
from bayeslmm.data.memberships import Slot
from bayeslmm.exceptions import DataError
from bayeslmm.likelihood.crossprod import Basis
from bayeslmm.likelihood.tied import TiedProducts, tied_products

Array = NDArray[np.float64]
Indices = NDArray[np.intp]

PAIRS = 1 << 21
"""Pairs of tied rows that are taken in at once."""

LARGEST = 1 << 27
"""Numbers that the sums may take: 1 GB."""


class StackSums:
    """Sums over pairs of tied rows of batches.

    Parameters
    ----------
    basis : Basis
        Of all columns.
    structure : Residual
        Structure of the residuals.
    text : str
        It, as written.
    known : TiedProducts, optional
        Those of earlier rows, in this basis.
    """

    def __init__(
        self, basis: Basis, structure: Residual, text: str, known: TiedProducts | None = None
    ) -> None:
        self.basis, self.structure, self.text = basis, structure, text
        self._parts: list[TiedProducts] = [] if known is None else [known]

    def add(
        self,
        y: Array,
        X: Array,
        slots: Sequence[Sequence[Slot]],
        root: Array | None,
        rows: ResidualRows,
    ) -> None:
        """Take in rows, all of each of their groups, which come one after the other.

        Parameters
        ----------
        y : ndarray (n,)
            Response less offset.
        X : ndarray (n, p)
        slots : sequence of sequence of Slot
            Levels and covariates of each grouping factor.
        root : ndarray (n,) or None
            Root of the precision weights.
        rows : ResidualRows

        Raises
        ------
        DataError
            If entries of the precision matrix are of so many kinds that sums do not fit.
        """
        columns = np.column_stack([X @ self.basis.fixed, y - X @ self.basis.shift])
        working = [
            [slot._replace(Z=slot.Z @ a) for slot in own]
            for own, a in zip(slots, self.basis.random, strict=True)
        ]
        if root is not None:
            columns *= root[:, None]
            working = [[s._replace(Z=s.Z * root[:, None]) for s in own] for own in working]
        for here in _chunks(rows):
            part = tied_products(
                self.basis,
                columns[here],
                [[slot.take(here) for slot in own] for own in working],
                self.structure.bind(rows.take(here)),
                0.0 if root is None else 2.0 * float(np.sum(np.log(root[here]))),
            )
            self._append(part)

    def products(self) -> TiedProducts:
        """All sums."""
        self._parts = [reduce(add, self._parts[::-1])]
        return self._parts[0]

    def _append(self, part: TiedProducts) -> None:
        """Add to parts whose sizes at least halve, so that adding J parts costs log J of them."""
        while self._parts and self._parts[-1].n_numbers < 2 * part.n_numbers:
            part = self._parts.pop() + part
        self._parts.append(part)
        if sum(own.n_numbers for own in self._parts) > LARGEST:
            kinds = max(own.law.entries.size for own in self._parts)
            raise DataError(
                f"residual={self.text!r}: the sums over pairs of rows take more than "
                f"{8e-9 * LARGEST:.0f} GB, as there are {kinds:,} different kinds of pairs. Each "
                "distance between rows of a group, set of occasions and value of a covariate of "
                "the variance makes some of its own: round them, or read the data into a data "
                "frame."
            )


def _chunks(rows: ResidualRows) -> Iterator[slice]:
    """Rows of whole groups with so many pairs."""
    if rows.group is None:
        starts, pairs = np.arange(rows.n), np.ones(rows.n)
    else:
        starts = np.flatnonzero(np.diff(rows.group, prepend=-1))
        pairs = np.diff(np.append(starts, rows.n)).astype(float) ** 2
    number = np.cumsum(pairs) // PAIRS
    firsts = starts[np.flatnonzero(np.diff(number, prepend=-1))]
    for start, stop in zip(firsts, np.append(firsts[1:], rows.n), strict=True):
        yield slice(int(start), int(stop))
